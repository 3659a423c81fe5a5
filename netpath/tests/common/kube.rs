//! The cluster that `cargo xtask test cluster` stands up, by `kubectl` as a person uses it.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::{eventually, run};
use crate::site::{IMAGE, Machine, xtask};

/// How long the cluster may take for something that needs one of its controllers, or a second try of kubelet.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// Where kubelet keeps what is asked of the plugin.
pub(crate) const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";
const NETWORK_STATUS: &str = "k8s.v1.cni.cncf.io/network-status";

/// The cluster.
pub(crate) struct Kube {
    dir: PathBuf,
}

impl Kube {
    #[track_caller]
    pub(crate) fn new() -> Self {
        let dir = std::env::var_os("NETPATH_CLUSTER");
        Self { dir: dir.expect("start these tests by `cargo xtask test cluster`").into() }
    }

    /// A node; anew after it has been switched off.
    #[track_caller]
    pub(crate) fn node(&self, name: &str) -> Machine {
        Machine::of(&self.dir, name)
    }

    /// `cargo xtask cluster` with these words.
    #[track_caller]
    pub(crate) fn cluster(&self, words: &str) {
        let program = xtask();
        let words: Vec<&str> = words.split_whitespace().collect();
        let place = ["--dir", self.dir.to_str().unwrap()];
        run(&[&[program.to_str().unwrap(), "cluster"][..], &words, &place].concat());
    }

    /// `kubectl`; what it printed, or what it complained of.
    pub(crate) fn try_kubectl(&self, words: &[&str], stdin: &str) -> Result<String, String> {
        let mut child = Command::new(self.dir.join("kubectl"))
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    #[track_caller]
    pub(crate) fn kubectl(&self, words: &[&str], stdin: &str) -> String {
        self.try_kubectl(words, stdin).unwrap_or_else(|error| panic!("kubectl {}: {error}", words.join(" ")))
    }
}

/// A namespace of the cluster for one test. Dropped, it is deleted with what is in it.
pub(crate) struct Namespace<'a> {
    pub(crate) kube: &'a Kube,
    pub(crate) name: String,
}

impl<'a> Namespace<'a> {
    #[track_caller]
    pub(crate) fn new(kube: &'a Kube, name: &str) -> Self {
        kube.kubectl(&["create", "namespace", name], "");
        let namespace = Self { kube, name: name.to_owned() };
        // Pods are refused before its service account has a token.
        eventually(PATIENCE, "the namespace can have pods", || {
            let account = namespace.try_get("serviceaccount", "default")?;
            account["secrets"].is_array().then_some(())
        });
        namespace
    }

    /// `kubectl` about this namespace.
    #[track_caller]
    pub(crate) fn kubectl(&self, words: &[&str], stdin: &str) -> String {
        self.kube.kubectl(&[&["--namespace", &self.name][..], words].concat(), stdin)
    }

    #[track_caller]
    pub(crate) fn apply(&self, manifest: &str) {
        self.kubectl(&["apply", "--filename", "-"], manifest);
    }

    pub(crate) fn try_get(&self, kind: &str, name: &str) -> Option<Value> {
        let words = ["--namespace", &self.name, "get", kind, name, "--output", "json"];
        serde_json::from_str(&self.kube.try_kubectl(&words, "").ok()?).ok()
    }

    /// Defines a network.
    #[track_caller]
    pub(crate) fn nad(&self, name: &str, config: &Value) {
        self.apply(
            &json!({"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
                "metadata": {"name": name}, "spec": {"config": config.to_string()}})
            .to_string(),
        );
    }

    /// Makes a pod on a node that asks for these networks.
    #[track_caller]
    pub(crate) fn pod(&self, name: &str, node: &str, networks: &str) {
        let annotations = if networks.is_empty() { json!({}) } else { json!({NETWORKS: networks}) };
        self.apply(
            &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "annotations": annotations},
                "spec": {"nodeName": node, "terminationGracePeriodSeconds": 0,
                         "containers": [{"name": "main", "image": IMAGE, "imagePullPolicy": "Never"}]}})
            .to_string(),
        );
    }

    /// Waits until a pod is ready.
    #[track_caller]
    pub(crate) fn ready(&self, pod: &str) {
        let words = [
            "--namespace",
            &self.name,
            "wait",
            "--for=condition=Ready",
            "--timeout=90s",
            &format!("pod/{pod}"),
        ];
        if let Err(error) = self.kube.try_kubectl(&words, "") {
            let why = self.kube.try_kubectl(&["--namespace", &self.name, "describe", "pod", pod], "");
            panic!("pod {pod} is not ready: {error}\n{}", why.unwrap_or_else(|error| error));
        }
    }

    /// Waits until a pod is gone from the API.
    #[track_caller]
    pub(crate) fn gone(&self, pod: &str) {
        eventually(PATIENCE, &format!("pod {pod} is gone"), || {
            self.try_get("pod", pod).is_none().then_some(())
        });
    }

    /// Deletes a pod and waits until it is gone.
    #[track_caller]
    pub(crate) fn delete(&self, pod: &str) {
        self.kubectl(&["delete", "pod", pod, "--wait=false"], "");
        self.gone(pod);
    }

    /// What the annotation says.
    #[track_caller]
    pub(crate) fn network_status(&self, pod: &str) -> Value {
        let object = self.try_get("pod", pod).unwrap();
        let text = object["metadata"]["annotations"][NETWORK_STATUS].as_str();
        serde_json::from_str(text.unwrap_or_else(|| panic!("no network-status in {object}"))).unwrap()
    }

    /// Runs a line in a pod; whether it succeeded, and what it printed.
    pub(crate) fn exec(&self, pod: &str, line: &str) -> Result<String, String> {
        let words = [
            &["--namespace", &self.name, "exec", pod, "--"][..],
            &line.split_whitespace().collect::<Vec<_>>(),
        ];
        self.kube.try_kubectl(&words.concat(), "")
    }

    /// Waits for an event about a pod with this reason, whose message holds `text`.
    #[track_caller]
    pub(crate) fn event(&self, pod: &str, reason: &str, text: &str) -> Value {
        let field = format!("involvedObject.name={pod},reason={reason}");
        let words = ["get", "events", "--field-selector", &field, "--output", "json"];
        // The kubelet tries a pod that failed again and again, and posts events when it has time.
        eventually(PATIENCE * 3, &format!("event {reason} of {pod} with `{text}`"), || {
            let events: Value = serde_json::from_str(&self.kubectl(&words, "")).unwrap();
            let found = events["items"]
                .as_array()?
                .iter()
                .find(|event| event["message"].as_str().is_some_and(|it| it.contains(text)));
            found.cloned()
        })
    }

    /// Rows of this namespace's pods on a node.
    #[track_caller]
    pub(crate) fn rows(&self, node: &Machine) -> usize {
        node.pods().iter().filter(|row| row["namespace"] == json!(self.name)).count()
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        // Not asserted: a panic while another unwinds would hide it. The cluster goes with the tier.
        let words = ["delete", "namespace", &self.name, "--wait=false"];
        let _ = self.kube.try_kubectl(&words, "");
    }
}

/// A manifest of deploy/examples.
#[track_caller]
pub(crate) fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples").join(name);
    std::fs::read_to_string(path).unwrap()
}
