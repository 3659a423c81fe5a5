//! A kubeconfig: where the API server is, whom to trust, and who we are.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;
use ureq::http::Uri;
use ureq::tls::PemItem;

use super::super::ClusterError;
use crate::root::Root;
use crate::spec::base64;
use crate::whole;

/// Where distributions keep the certificates of public authorities.
const PUBLIC_AUTHORITIES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"];

/// What a kubeconfig says, with every file that it names read.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Kubeconfig {
    /// The file itself.
    pub(super) path: PathBuf,
    /// `https://10.96.0.1:443`, perhaps with a path behind it; no slash at the end.
    pub(super) server: String,
    /// Whom to trust; `None` trusts everybody, for the administrator said so.
    pub(super) authorities: Option<Vec<u8>>,
    /// Certificate and key, both PEM.
    pub(super) client: Option<(Vec<u8>, Vec<u8>)>,
    /// Value of the header `Authorization`.
    pub(super) authorization: Option<String>,
    /// `proxy-url`
    pub(super) proxy: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    current_context: Option<String>,
    clusters: Option<Vec<NamedCluster>>,
    contexts: Option<Vec<NamedContext>>,
    users: Option<Vec<NamedUser>>,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: Option<User>,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    user: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: Option<String>,
    certificate_authority: Option<String>,
    certificate_authority_data: Option<String>,
    insecure_skip_tls_verify: Option<bool>,
    tls_server_name: Option<String>,
    proxy_url: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<String>,
    client_certificate: Option<String>,
    client_certificate_data: Option<String>,
    client_key: Option<String>,
    client_key_data: Option<String>,
    username: Option<String>,
    password: Option<String>,
    exec: Option<IgnoredAny>,
    auth_provider: Option<IgnoredAny>,
    #[serde(rename = "as")]
    impersonate: Option<String>,
}

impl Kubeconfig {
    /// Reads the file and those that it names. Absolute paths in it hang off the root, relative ones off its directory.
    pub(super) fn read(root: &Root, path: &Path) -> Result<Self, ClusterError> {
        let text = whole::text(path).map_err(ClusterError::io("read the kubeconfig", path))?;
        // The parser's own words quote the file, and so its tokens, to whoever may read a pod's events.
        let file: File = serde_saphyr::from_str(&text).map_err(|error| ClusterError::Kubeconfig {
            path: path.to_owned(),
            field: error.location().map_or("its text".to_owned(), |at| format!("line {}", at.line())),
            fix: "this is not valid YAML, or not what a kubeconfig has here",
            source: None,
        })?;
        Reader { root, path }.resolve(file)
    }
}

struct Reader<'a> {
    root: &'a Root,
    path: &'a Path,
}

/// A client's certificate and its key, both in PEM.
type Identity = (Vec<u8>, Vec<u8>);

impl Reader<'_> {
    fn resolve(&self, file: File) -> Result<Kubeconfig, ClusterError> {
        let contexts = file.contexts.unwrap_or_default();
        let current = non_empty(file.current_context);
        let context = match (&current, &contexts[..]) {
            (Some(name), all) => all.iter().find(|it| it.name == *name),
            (None, [only]) => Some(only),
            (None, _) => None,
        };
        let context = &context
            .ok_or_else(|| {
                self.wrong("current-context", "name one of `contexts`, which says cluster and user")
            })?
            .context;
        let clusters = file.clusters.unwrap_or_default();
        let cluster = clusters.into_iter().find(|it| it.name == context.cluster);
        let cluster = cluster.ok_or_else(|| self.wrong("context.cluster", "name one of `clusters`"))?.cluster;
        let user = match non_empty(context.user.clone()) {
            Some(name) => {
                let named = file.users.unwrap_or_default().into_iter().find(|it| it.name == name);
                named
                    .ok_or_else(|| self.wrong("context.user", "name one of `users`"))?
                    .user
                    .unwrap_or_default()
            }
            None => User::default(),
        };
        if non_empty(cluster.tls_server_name.clone()).is_some() {
            return Err(self.wrong("tls-server-name", "leave it out: write the name into `server`"));
        }
        Ok(Kubeconfig {
            path: self.path.to_owned(),
            server: self.server(&cluster)?,
            authorities: self.authorities(&cluster)?,
            client: self.client(&user)?,
            authorization: self.authorization(&user)?,
            proxy: non_empty(cluster.proxy_url),
        })
    }

    fn server(&self, cluster: &Cluster) -> Result<String, ClusterError> {
        let fix = "write it like https://10.96.0.1:443";
        let wrong = || self.wrong("server", fix);
        let text = non_empty(cluster.server.clone()).ok_or_else(wrong)?;
        let uri: Uri = without_brackets(text.trim_end_matches('/')).parse().map_err(|source| {
            let source = Some(Box::new(source) as Box<_>);
            ClusterError::Kubeconfig { path: self.path.to_owned(), field: "server".to_owned(), fix, source }
        })?;
        match (uri.scheme_str(), uri.host(), uri.query()) {
            (Some("http" | "https"), Some(_), None) => Ok(uri.to_string().trim_end_matches('/').to_owned()),
            _ => Err(wrong()),
        }
    }

    fn authorities(&self, cluster: &Cluster) -> Result<Option<Vec<u8>>, ClusterError> {
        let is_plain = cluster.server.as_deref().is_some_and(|server| server.starts_with("http:"));
        if is_plain || cluster.insecure_skip_tls_verify.unwrap_or_default() {
            return Ok(None);
        }
        let key = "certificate-authority";
        let own = self.data(key, &cluster.certificate_authority_data, &cluster.certificate_authority)?;
        let pem = match own {
            Some(pem) => pem,
            None => {
                let fix = "write the cluster's certificate authority";
                let public =
                    PUBLIC_AUTHORITIES.iter().find_map(|path| whole::bytes(&self.root.join(path)).ok());
                public.ok_or_else(|| self.wrong(key, fix))?
            }
        };
        let is_some = ureq::tls::parse_pem(&pem).any(|item| matches!(item, Ok(PemItem::Certificate(_))));
        if !is_some {
            return Err(self.wrong(key, "it must hold a certificate in PEM"));
        }
        Ok(Some(pem))
    }

    fn client(&self, user: &User) -> Result<Option<Identity>, ClusterError> {
        let certificate =
            self.data("client-certificate", &user.client_certificate_data, &user.client_certificate)?;
        let key = self.data("client-key", &user.client_key_data, &user.client_key)?;
        match (certificate, key) {
            (Some(certificate), Some(key)) => Ok(Some((certificate, key))),
            (None, None) => Ok(None),
            (Some(_), None) => {
                Err(self.wrong("client-key", "it belongs to `client-certificate`: write both"))
            }
            (None, Some(_)) => {
                Err(self.wrong("client-certificate", "it belongs to `client-key`: write both"))
            }
        }
    }

    fn authorization(&self, user: &User) -> Result<Option<String>, ClusterError> {
        let fix = "use `token`, `tokenFile` or a client certificate: nothing is executed for a token while a pod waits";
        if user.exec.is_some() {
            return Err(self.wrong("exec", fix));
        }
        if user.auth_provider.is_some() {
            return Err(self.wrong("auth-provider", fix));
        }
        if user.impersonate.is_some() {
            return Err(self.wrong("as", "use credentials of netpath's own"));
        }
        if let Some(file) = non_empty(user.token_file.clone()) {
            let path = self.path_of(&file);
            match (whole::text(&path), non_empty(user.token.clone())) {
                (Ok(token), _) if !token.trim().is_empty() => return Ok(Some(bearer(&token))),
                (_, Some(token)) => return Ok(Some(bearer(&token))),
                (Ok(_), None) => {
                    return Err(self.wrong("tokenFile", "the file is empty: write a token into it"));
                }
                (Err(error), None) => return Err(ClusterError::io("read the token in", &path)(error)),
            }
        }
        if let Some(token) = non_empty(user.token.clone()) {
            return Ok(Some(bearer(&token)));
        }
        let basic = |user: String| {
            let password = |it: &User| it.password.clone().unwrap_or_default();
            (user, password)
        };
        Ok(non_empty(user.username.clone()).map(basic).map(|(name, password)| {
            format!("Basic {}", base64::encode(format!("{name}:{}", password(user)).as_bytes()))
        }))
    }

    /// What stands in the file itself, else in the file that it names.
    fn data(
        &self,
        field: &str,
        inline: &Option<String>,
        file: &Option<String>,
    ) -> Result<Option<Vec<u8>>, ClusterError> {
        if let Some(text) = non_empty(inline.clone()) {
            let text: String = text.split_whitespace().collect();
            let fix = "write the PEM file in base64, in one piece";
            return base64::decode(&text).map(Some).ok_or_else(|| self.wrong(&format!("{field}-data"), fix));
        }
        let Some(file) = non_empty(file.clone()) else { return Ok(None) };
        let path = self.path_of(&file);
        whole::bytes(&path).map(Some).map_err(ClusterError::io("read", &path))
    }

    fn path_of(&self, text: &str) -> PathBuf {
        match Path::new(text).is_absolute() {
            true => self.root.join(text),
            false => self.path.parent().unwrap_or(Path::new("/")).join(text),
        }
    }

    fn wrong(&self, field: &str, fix: &'static str) -> ClusterError {
        ClusterError::Kubeconfig { path: self.path.to_owned(), field: field.to_owned(), fix, source: None }
    }
}

fn bearer(token: &str) -> String {
    format!("Bearer {}", token.trim())
}

fn non_empty(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.trim().is_empty())
}

/// Multus writes `https://[10.96.0.1]:443`, since it cannot know the family. Brackets are for IPv6 alone.
fn without_brackets(server: &str) -> String {
    let Some((before, rest)) = server.split_once('[') else { return server.to_owned() };
    match rest.split_once(']') {
        Some((host, after)) if host.parse::<Ipv4Addr>().is_ok() => format!("{before}{host}{after}"),
        _ => server.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const CA: &str = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";

    fn read(text: &str) -> Result<Kubeconfig, ClusterError> {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        for (name, text) in [("etc/kubeconfig", text), ("etc/ca.crt", CA), ("etc/token", "from-file\n")] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        Kubeconfig::read(&Root::new(dir.path()), &dir.path().join("etc/kubeconfig"))
    }

    /// As Multus's entry point writes it.
    fn multus(cluster: &str, user: &str) -> String {
        format!(
            "# Kubeconfig file for Multus CNI plugin.\napiVersion: v1\nkind: Config\nclusters:\n- name: local\n  cluster:\n{cluster}\n\
             users:\n- name: multus\n  user:\n{user}\ncontexts:\n- name: multus-context\n  context:\n    cluster: local\n    user: multus\n\
             current-context: multus-context\n"
        )
    }

    #[test]
    fn what_multus_writes_is_read() {
        let ca = base64::encode(CA.as_bytes());
        let cluster = format!("    server: https://[10.96.0.1]:443\n    certificate-authority-data: {ca}");
        let read = read(&multus(&cluster, "    token: \"abc\"")).unwrap();
        assert_eq!(read.server, "https://10.96.0.1:443");
        assert_eq!(read.authorities.as_deref(), Some(CA.as_bytes()));
        assert_eq!(read.authorization.as_deref(), Some("Bearer abc"));
        assert_eq!((read.client, read.proxy), (None, None));
    }

    #[test]
    fn servers_have_a_scheme_and_a_host() {
        for (text, expected) in [
            ("http://127.0.0.1:8080/", "http://127.0.0.1:8080"),
            ("https://[fd00::1]:6443", "https://[fd00::1]:6443"),
            ("https://rancher/k8s/clusters/c-1/", "https://rancher/k8s/clusters/c-1"),
        ] {
            let cluster = format!("    server: {text}\n    insecure-skip-tls-verify: true");
            let read = read(&multus(&cluster, "    token: x")).unwrap();
            assert_eq!((read.server.as_str(), read.authorities), (expected, None));
        }
        for bad in ["10.96.0.1:443", "ftp://a", "https://", "https://a b", "''"] {
            let error =
                read(&multus(&format!("    server: {bad}"), "    token: x")).err().unwrap().to_string();
            assert!(error.ends_with("server: write it like https://10.96.0.1:443"), "{bad}: {error}");
        }
    }

    #[test]
    fn files_are_found_beside_the_kubeconfig_and_below_the_root() {
        let cluster = "    server: https://a:1\n    certificate-authority: ca.crt";
        let of_file = read(&multus(cluster, "    token: old\n    tokenFile: /etc/token")).unwrap();
        assert_eq!(of_file.authorization.as_deref(), Some("Bearer from-file"));
        let fallback = read(&multus(cluster, "    token: old\n    tokenFile: none")).unwrap();
        assert_eq!(fallback.authorization.as_deref(), Some("Bearer old"));
        let basic = read(&multus(cluster, "    username: u\n    password: p")).unwrap();
        assert_eq!(basic.authorization.as_deref(), Some("Basic dTpw"));
        let error = read(&multus(cluster, "    tokenFile: none")).err().unwrap().to_string();
        assert!(error.starts_with("cannot read the token in") && error.ends_with("etc/none"), "{error}");
    }

    #[test]
    fn what_is_missing_or_cannot_be_done_is_named() {
        let good = "    server: https://a:1\n    certificate-authority: ca.crt";
        for (text, expected) in [
            (multus(good, "    exec: {command: aws}"), "exec: use `token`"),
            (multus(good, "    auth-provider: {name: gcp}"), "auth-provider: use `token`"),
            (multus(good, "    as: admin"), "as: use credentials"),
            (multus(good, "    client-certificate: ca.crt"), "client-key: it belongs"),
            (multus("    server: https://a:1\n    certificate-authority: token", "    token: x"), "PEM"),
            (
                multus("    server: https://a:1\n    certificate-authority-data: '@'", "    token: x"),
                "base64",
            ),
            (multus(&format!("{good}\n    tls-server-name: b"), "    token: x"), "tls-server-name: leave"),
            (
                multus(good, "    token: x").replace("current-context: multus-context", "current-context: b"),
                "current-context: name",
            ),
            (multus(good, "    token: x").replace("cluster: local", "cluster: b"), "context.cluster: name"),
            (multus(good, "    token: x").replace("user: multus", "user: b"), "context.user: name"),
            ("[".to_owned(), "is not valid YAML"),
            // A token that is a list.
            (multus(good, "    token: [hunter2"), "is not valid YAML"),
            (multus(good, "    token: {hunter2: hunter2}"), "is not valid YAML"),
        ] {
            let error = read(&text).err().unwrap();
            let mut said = format!("{error:?}");
            said += &format!(" {:#}", anyhow::Error::from(error));
            assert!(said.contains(expected), "`{expected}` is not in: {said}");
            assert!(!said.contains("hunter2"), "a secret is in: {said}");
        }
        // One context needs no choice.
        assert!(read(&multus(good, "    token: x").replace("current-context: multus-context", "")).is_ok());
    }
}
