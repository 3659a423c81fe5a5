//! The plugin's credentials: a token of its own service account, for this node, renewed long before it ends.
//!
//! The token is bound to the Node object (Kubernetes 1.31): it says which node it is of, which the admission policies of
//! deploy/admission hold its holder to, and ends with the node.

use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::jiff::Timestamp;
use kube::{Client, Config};
use serde_json::{Value, json};

use super::{Shared, installer::held};
use crate::{
    causes::full,
    install,
    spec::{base64, install::Source},
    whole,
};

/// The life that is asked for; a server may grant another.
const BOUND: u64 = 24 * 3600;
/// The same of a token that nothing ends before its time. Half of it is how long an agent may be away.
const UNBOUND: u64 = 3600;
/// More is no token, whose longest are some thousand characters.
const LONGEST: usize = 64 << 10;
/// No token is renewed earlier, however short the server makes its life.
const SHORTEST: Duration = Duration::from_secs(30);
/// How often it is looked whether half of a life is over, or what failed is tried again.
const LOOK: Duration = Duration::from_secs(5);

/// The API server, as the plugin is to reach it.
pub(super) struct Server {
    url: String,
    /// Authorities, DER.
    authorities: Vec<Vec<u8>>,
    accepts_any: bool,
}

impl Server {
    pub(super) fn of(config: &Config) -> Self {
        Self {
            url: config.cluster_url.to_string().trim_end_matches('/').to_owned(),
            authorities: config.root_cert.clone().unwrap_or_default(),
            accepts_any: config.accept_invalid_certs,
        }
    }

    /// The plugin's kubeconfig, whose token lies beside it.
    fn kubeconfig(&self, token: &str) -> String {
        let mut cluster = json!({ "server": self.url });
        if !self.authorities.is_empty() {
            cluster["certificate-authority-data"] = base64::encode(pem(&self.authorities).as_bytes()).into();
        }
        if self.accepts_any {
            cluster["insecure-skip-tls-verify"] = true.into();
        }
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config",
            "clusters": [{"name": "local", "cluster": cluster}],
            "users": [{"name": "netpath", "user": {"tokenFile": token}}],
            "contexts": [{"name": "netpath", "context": {"cluster": "local", "user": "netpath"}}],
            "current-context": "netpath",
        });
        format!("{kubeconfig:#}\n")
    }
}

fn pem(authorities: &[Vec<u8>]) -> String {
    let mut text = String::new();
    for der in authorities {
        text += "-----BEGIN CERTIFICATE-----\n";
        let encoded = base64::encode(der);
        for line in encoded.as_bytes().chunks(64) {
            text += &String::from_utf8_lossy(line);
            text += "\n";
        }
        text += "-----END CERTIFICATE-----\n";
    }
    text
}

/// When a token was given, for how long, and when it ends by the server's clock. The node's may be wrong.
struct Life {
    from: Instant,
    length: Duration,
    until: SystemTime,
}

/// Keeps the credentials good for as long as the process lives, where the agent installs the plugin.
pub(super) async fn keep(client: &Client, server: &Server, shared: &Shared) {
    if !matches!(&shared.options.install, Some(site) if matches!(site.source, Source::Api(_))) {
        return;
    }
    let mut life: Option<Life> = None;
    loop {
        let is_due = life.as_ref().is_none_or(|life| (life.length / 2).max(SHORTEST) <= life.from.elapsed());
        // What is to be taken back is noted first.
        let may = !shared.root.uninstalled().exists() && shared.root.installed().exists();
        if may && (is_due || !is_there(shared)) {
            match renew(client, server, shared).await {
                Ok(given) => {
                    shared.report().errors.remove("credentials");
                    let until = given.until.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                    shared.report().token_expires = Some(until.as_secs());
                    life = Some(given);
                    shared.wake();
                }
                Err(error) => {
                    let error = full(&*error);
                    if shared.report().errors.insert("credentials", error.clone()).as_ref() != Some(&error) {
                        tracing::error!(error, "the plugin's credentials cannot be renewed");
                    }
                }
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether both files are there.
fn is_there(shared: &Shared) -> bool {
    let Some(kubeconfig) = &shared.options.plugin_kubeconfig else { return true };
    kubeconfig.exists() && install::token(kubeconfig).exists()
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

async fn renew(client: &Client, server: &Server, shared: &Shared) -> Result<Life, Failed> {
    let Some(path) = &shared.options.plugin_kubeconfig else { return Err("nowhere to write them".into()) };
    let from = Instant::now();
    let bound = json!({"apiVersion": "v1", "kind": "Node", "name": shared.options.node});
    let answer = match request(client, shared, Some(bound), BOUND).await {
        // Before Kubernetes 1.31: tokens cannot be bound to nodes.
        Err(kube::Error::Api(status)) if status.code == 400 => {
            let why = status.message.clone();
            let answer = request(client, shared, None, UNBOUND).await?;
            tracing::warn!(
                why,
                "the server binds no token to a node: the plugin's says of no node that it is its own, and \
                 holds for an hour"
            );
            answer
        }
        answer => answer?,
    };
    let text = |path: &str| answer.pointer(path).and_then(Value::as_str);
    let (Some(token), Some(until)) = (text("/status/token"), text("/status/expirationTimestamp")) else {
        return Err("the server answers a TokenRequest without a token".into());
    };
    if token.is_empty() || LONGEST < token.len() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("the server answers a TokenRequest with what is no token".into());
    }
    let until = SystemTime::from(until.parse::<Timestamp>()?);
    let granted = answer.pointer("/spec/expirationSeconds").and_then(Value::as_u64);
    let length = Duration::from_secs(granted.ok_or("the server does not say how long a token holds")?);
    let file = install::token(path);
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (root, path, token) = (shared.root.clone(), path.clone(), token.to_owned());
    let kubeconfig = server.kubeconfig(&name);
    let write = move || -> Result<(), Failed> {
        // Whoever uninstalls removes them, and must not find them there again.
        let _lock = held(&root)?;
        if let Some(dir) = path.parent() {
            whole::sweep(dir)?;
        }
        whole::replace(&file, token.as_bytes())?;
        if whole::read(&path)?.as_deref() != Some(kubeconfig.as_bytes()) {
            whole::replace(&path, kubeconfig.as_bytes())?;
        }
        Ok(())
    };
    tokio::task::spawn_blocking(write).await??;
    Ok(Life { from, length, until })
}

async fn request(
    client: &Client,
    shared: &Shared,
    bound: Option<Value>,
    seconds: u64,
) -> Result<Value, kube::Error> {
    let (namespace, account) = (&shared.options.namespace, &shared.options.account);
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
    let body = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"expirationSeconds": seconds, "boundObjectRef": bound},
    });
    let request = http::Request::post(path).header(http::header::CONTENT_TYPE, "application/json");
    let request = request.body(body.to_string().into_bytes()).map_err(kube::Error::HttpError)?;
    client.request(request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubeconfig_names_the_server_and_whom_to_trust() {
        let server = Server {
            url: "https://10.96.0.1:443".to_owned(),
            authorities: vec![vec![1; 50]],
            accepts_any: false,
        };
        let kubeconfig: Value = serde_json::from_str(&server.kubeconfig("netpath.token")).expect("JSON");
        let cluster = &kubeconfig["clusters"][0]["cluster"];
        assert_eq!(cluster["server"], "https://10.96.0.1:443");
        assert_eq!(kubeconfig["users"][0]["user"]["tokenFile"], "netpath.token");
        let authority = cluster["certificate-authority-data"].as_str().expect("text");
        let authority = String::from_utf8(base64::decode(authority).expect("base64")).expect("text");
        let lines: Vec<_> = authority.lines().collect();
        assert_eq!((lines[0], lines.len()), ("-----BEGIN CERTIFICATE-----", 4));
        assert!(lines[1].len() == 64 && lines[2].len() == 4);
        assert!(cluster.get("insecure-skip-tls-verify").is_none());
    }
}
