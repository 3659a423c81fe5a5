//! etcd, API server, controller manager and scheduler on one machine, and a kubelet on each node.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{
    cni,
    machine::{Machine, eventually, write},
    network, runtime,
};
use crate::process::{self, find_program};

/// Networks that no pod and no machine has.
const SERVICES: &str = "10.96.0.0/16";

/// Pods that one node may have.
const MAX_PODS: u32 = 250;

/// A cluster whose parts lie in one directory.
pub(crate) struct ControlPlane<'a> {
    /// What is made for it: keys, tokens, credentials.
    pub(crate) dir: &'a Path,
    /// Kubernetes' programs.
    pub(crate) programs: &'a Path,
    pub(crate) machine: &'a Machine,
}

impl ControlPlane<'_> {
    /// Starts everything and waits until objects can be made.
    pub(crate) fn start(&self, nodes: &[String]) -> Result<()> {
        self.keys(nodes)?;
        self.start_etcd()?;
        self.start_api_server()?;
        self.start_controllers()?;
        eventually("pods can be made in the namespace `default`", || {
            Ok(self.kubectl(&["get", "serviceaccount", "default"]).is_ok().then_some(()))
        })
    }

    fn start_etcd(&self) -> Result<()> {
        let etcd = find_program("etcd").context("etcd is missing: `cargo xtask setup`")?;
        // In memory: whoever wants to keep a cluster takes another.
        let mut words = vec![etcd.to_string_lossy().into_owned()];
        words.extend(["--data-dir=/run/etcd".to_owned(), "--log-level=warn".to_owned()]);
        self.machine.start("etcd", &words)
    }

    /// Starts the API server and waits until it is ready.
    pub(crate) fn start_api_server(&self) -> Result<()> {
        let address = network::public(network::CONTROL_PLANE);
        let file = |name: &str| self.dir.join(name).to_string_lossy().into_owned();
        self.machine.start(
            "kube-apiserver",
            &[
                self.program("kube-apiserver"),
                "--etcd-servers=http://127.0.0.1:2379".to_owned(),
                format!("--cert-dir={}", file("certificates")),
                format!("--advertise-address={address}"),
                format!("--service-cluster-ip-range={SERVICES}"),
                format!("--token-auth-file={}", file("tokens.csv")),
                "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
                format!("--service-account-key-file={}", file("service-accounts.key")),
                format!("--service-account-signing-key-file={}", file("service-accounts.key")),
                "--authorization-mode=Node,RBAC".to_owned(),
                "--enable-admission-plugins=NodeRestriction".to_owned(),
                "--kubelet-preferred-address-types=InternalIP".to_owned(),
                "--allow-privileged=true".to_owned(),
                "--max-requests-inflight=1000".to_owned(),
                "--max-mutating-requests-inflight=500".to_owned(),
            ],
        )?;
        eventually("the API server is ready", || {
            Ok(self.kubectl(&["get", "--raw", "/readyz"]).is_ok().then_some(()))
        })
    }

    fn start_controllers(&self) -> Result<()> {
        let kubeconfig = format!("--kubeconfig={}", self.admin().display());
        let key = format!(
            "--service-account-private-key-file={}",
            self.dir.join("service-accounts.key").to_string_lossy()
        );
        let own = ["--leader-elect=false", "--kube-api-qps=200", "--kube-api-burst=400"].map(str::to_owned);
        let mut words = vec![self.program("kube-controller-manager"), kubeconfig.clone(), key];
        words.push("--controllers=*,-nodeipam,-cloud-node-lifecycle,-route,-service".to_owned());
        words.extend(own.clone());
        self.machine.start("kube-controller-manager", &words)?;
        let mut words = vec![self.program("kube-scheduler"), kubeconfig];
        words.extend(own);
        self.machine.start("kube-scheduler", &words)
    }

    /// Starts the kubelet of a node.
    pub(crate) fn start_kubelet(&self, node: &Machine, number: u8, cgroup: &str) -> Result<()> {
        write(&node.path("/var/lib/kubelet/resolv.conf"), "")?;
        write(&node.path("/var/lib/kubelet/config.yaml"), &kubelet(cgroup))?;
        let kubeconfig = self.dir.join(format!("{}.kubeconfig", node.name));
        node.start(
            "kubelet",
            &[
                self.program("kubelet"),
                format!("--kubeconfig={}", kubeconfig.display()),
                "--config=/var/lib/kubelet/config.yaml".to_owned(),
                "--container-runtime=remote".to_owned(),
                format!("--container-runtime-endpoint=unix://{}", runtime::SOCKET),
                format!("--hostname-override={}", node.name),
                format!("--node-ip={}", network::public(number)),
                "--root-dir=/var/lib/kubelet".to_owned(),
                "--cert-dir=/var/lib/kubelet/pki".to_owned(),
                "--volume-plugin-dir=/var/lib/kubelet/plugins-of-volumes".to_owned(),
            ],
        )
    }

    /// When the kubelet of a node last said how it is; empty before it has.
    pub(crate) fn heartbeat(&self, node: &str) -> String {
        let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].lastHeartbeatTime}";
        self.kubectl(&["get", "node", node, "--output", path]).unwrap_or_default()
    }

    /// Waits until a node says that it is ready, at another time than `before`: what it said before it was switched
    /// off says nothing now.
    pub(crate) fn wait_for(&self, node: &str, before: &str) -> Result<()> {
        let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        eventually(&format!("node {node} is ready"), || {
            if self.heartbeat(node) == before {
                return Ok(None);
            }
            let status = self.kubectl(&["get", "node", node, "--output", path]);
            Ok(status.is_ok_and(|status| status == "True").then_some(()))
        })
    }

    /// Makes netpath's identity and the resource definition, and gives each node credentials.
    pub(crate) fn admit(&self, manifests: &Path, nodes: &[Machine]) -> Result<()> {
        for part in ["crd", "identity"] {
            self.kubectl(&["apply", "--kustomize", &manifests.join(part).to_string_lossy()])?;
        }
        for node in nodes {
            let request = self.dir.join("token-request.json");
            write(
                &request,
                r#"{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 86400}}"#,
            )?;
            let path = "/api/v1/namespaces/netpath/serviceaccounts/netpath/token";
            let answer =
                self.kubectl(&["create", "--raw", path, "--filename", &request.to_string_lossy()])?;
            let answer: serde_json::Value =
                serde_json::from_str(&answer).context("a token request is not answered with JSON")?;
            let token =
                answer["status"]["token"].as_str().context("a token request is answered without a token")?;
            let path = node.path(cni::KUBECONFIG);
            write(&path, &self.kubeconfig(token)?)?;
            let only_root = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            fs::set_permissions(&path, only_root)
                .with_context(|| format!("cannot protect {}", path.display()))?;
        }
        Ok(())
    }

    /// `kubectl` as the administrator.
    pub(crate) fn kubectl(&self, words: &[&str]) -> Result<String> {
        let mut kubectl = Command::new("nsenter");
        kubectl.arg(format!("--net=/proc/{}/ns/net", self.machine.init)).arg(self.program("kubectl"));
        process::output(kubectl.arg("--kubeconfig").arg(self.admin()).args(words))
    }

    /// The administrator's credentials.
    fn admin(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }

    fn program(&self, name: &str) -> String {
        self.programs.join(name).to_string_lossy().into_owned()
    }

    fn keys(&self, nodes: &[String]) -> Result<()> {
        fs::create_dir_all(self.dir).with_context(|| format!("cannot create {}", self.dir.display()))?;
        let key = self.dir.join("service-accounts.key");
        let mut openssl = Command::new("openssl");
        process::output(openssl.args(["genrsa", "-out"]).arg(&key).arg("2048"))?;
        self.certificate()?;
        let mut tokens = Vec::new();
        let admin = token()?;
        tokens.push(format!("{admin},admin,admin,\"system:masters\""));
        write(&self.admin(), &self.kubeconfig(&admin)?)?;
        for node in nodes {
            let token = token()?;
            tokens.push(format!("{token},system:node:{node},{node},\"system:nodes\""));
            write(&self.dir.join(format!("{node}.kubeconfig")), &self.kubeconfig(&token)?)?;
        }
        write(&self.dir.join("tokens.csv"), &(tokens.join("\n") + "\n"))
    }

    /// The API server's certificate, which is its own authority.
    fn certificate(&self) -> Result<()> {
        let dir = self.dir.join("certificates");
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let names = format!(
            "subjectAltName=IP:{},IP:127.0.0.1,IP:10.96.0.1,DNS:kubernetes.default.svc",
            network::public(network::CONTROL_PLANE)
        );
        let run =
            |words: &[&str]| process::output(Command::new("openssl").args(words).current_dir(&dir)).map(drop);
        write(&dir.join("names"), &names)?;
        run(&[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "3650",
            "-subj",
            "/CN=netpath-cluster",
            "-keyout",
            "ca.key",
            "-out",
            "ca.crt",
        ])?;
        run(&[
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=kube-apiserver",
            "-keyout",
            "apiserver.key",
            "-out",
            "apiserver.csr",
        ])?;
        run(&[
            "x509",
            "-req",
            "-in",
            "apiserver.csr",
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "3650",
            "-extfile",
            "names",
            "-out",
            "apiserver.crt",
        ])
    }

    fn kubeconfig(&self, token: &str) -> Result<String> {
        let authority = self.dir.join("certificates/ca.crt");
        let authority = process::output(Command::new("base64").arg("--wrap=0").arg(&authority))?;
        Ok(format!(
            "apiVersion: v1
kind: Config
clusters:
- name: netpath
  cluster:
    server: https://{}:6443
    certificate-authority-data: {authority}
users:
- name: holder
  user:
    token: {token}
contexts:
- name: netpath
  context: {{cluster: netpath, user: holder}}
current-context: netpath
",
            network::public(network::CONTROL_PLANE)
        ))
    }
}

fn token() -> Result<String> {
    Ok(process::output(Command::new("openssl").args(["rand", "-hex", "16"]))?.trim().to_owned())
}

/// A kubelet that shares its machine with others.
fn kubelet(cgroup: &str) -> String {
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {{enabled: true}}
  webhook: {{enabled: false}}
authorization: {{mode: AlwaysAllow}}
cgroupDriver: cgroupfs
cgroupRoot: {cgroup}
failSwapOn: false
enforceNodeAllocatable: []
evictionHard: {{memory.available: 50Mi, nodefs.available: 1%, nodefs.inodesFree: 1%, imagefs.available: 1%}}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
resolvConf: /var/lib/kubelet/resolv.conf
nodeStatusUpdateFrequency: 2s
maxPods: {MAX_PODS}
kubeAPIQPS: 200
kubeAPIBurst: 400
eventRecordQPS: 0
"
    )
}
