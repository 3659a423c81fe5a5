//! A node, a pod and the program, as the tests of the tool want them.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
};

use serde_json::{Value, json};

use super::common::{NetNs, veth};

pub(crate) const NETWORK: &str = "privatezone";
pub(crate) const OUTSIDE: &str = "8.8.8.8";
pub(crate) const GATEWAY: &str = "10.12.34.254";
/// Exit code where nothing is loaded.
pub(crate) const NOTHING_LOADED: i32 = 3;
/// Exit code of `status` where something needs attention.
pub(crate) const ATTENTION: i32 = 4;

/// A node with master `enp0s8`, a gateway that also is the internet, and a pod.
pub(crate) struct Lab {
    pub(crate) root: tempfile::TempDir,
    pub(crate) node: NetNs,
    pub(crate) gateway: NetNs,
    pub(crate) pod: NetNs,
}

impl Lab {
    pub(crate) fn new(masters: Option<Value>) -> Self {
        let root = tempfile::tempdir().expect("a directory for the node's root");
        let (node, gateway, pod) = (NetNs::new("node"), NetNs::new("gw"), NetNs::new("pod"));
        veth(&node, "enp0s8", &gateway, "sw");
        node.ip("addr add 10.12.34.101/24 dev enp0s8");
        gateway.ip("addr add 10.12.34.254/24 dev sw");
        gateway.ip("addr add 8.8.8.8/32 dev lo");
        if let Some(masters) = masters {
            let directory = root.path().join("etc/cni/net.d/netpath.d");
            fs::create_dir_all(&directory).expect("directory of masters.json");
            fs::write(directory.join("masters.json"), masters.to_string()).expect("masters.json");
        }
        Self { root, node, gateway, pod }
    }

    /// The program in the node's namespace. Not by `ip netns exec`, which hides mounts.
    pub(crate) fn spawn(&self, command: &mut Command) -> Child {
        command.env("NETPATH_ROOT", self.root.path());
        self.node.within(|| command.spawn()).expect("the program can be started")
    }

    pub(crate) fn netpath(&self, words: &[&str]) -> Answer {
        let mut command = Command::new(env!("CARGO_BIN_EXE_netpath"));
        command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Answer::of(self.spawn(&mut command).wait_with_output().expect("output"))
    }

    /// The answer of a command that must succeed, as JSON.
    #[track_caller]
    pub(crate) fn json(&self, command: &str) -> Value {
        let answer = self.netpath(&[command, "-o", "json"]);
        assert_eq!(answer.code, 0, "{answer:?}");
        serde_json::from_str(&answer.stdout).expect("JSON")
    }

    /// Calls the plugin as a runtime does.
    #[track_caller]
    pub(crate) fn cni(&self, verb: &str, conf: &Value) {
        self.cni_as(verb, "net1", conf);
    }

    /// The same for another interface.
    #[track_caller]
    pub(crate) fn cni_as(&self, verb: &str, ifname: &str, conf: &Value) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_netpath"));
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", "c1")
            .env("CNI_NETNS", self.pod.path())
            .env("CNI_IFNAME", ifname)
            .env("CNI_PATH", "/usr/lib/cni")
            .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=net-pod")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = self.spawn(&mut command);
        let mut stdin = child.stdin.take().expect("piped");
        std::io::Write::write_all(&mut stdin, conf.to_string().as_bytes()).expect("the plugin reads");
        drop(stdin);
        let answer = Answer::of(child.wait_with_output().expect("output"));
        assert_eq!(answer.code, 0, "{verb}: {answer:?}");
    }

    /// One echo request over net1; whether it was answered.
    pub(crate) fn ping(&self, target: &str) -> bool {
        let mut command = Command::new("ping");
        command
            .args(["-c", "1", "-W", "1", "-I", "net1", target])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.pod.within(|| command.status()).expect("ping is installed").success()
    }

    pub(crate) fn pins(&self) -> PathBuf {
        self.root.path().join("sys/fs/bpf/netpath/v4")
    }

    /// Applies a manifest with this zone.
    pub(crate) fn apply(&self, zone: &Value) -> Answer {
        let config = conf(zone).to_string();
        let manifest = format!(
            "kind: NetworkAttachmentDefinition\nmetadata:\n  name: {NETWORK}\nspec:\n  config: '{config}'\n"
        );
        let file = self.root.path().join("nad.yaml");
        fs::write(&file, manifest).expect("manifest");
        self.netpath(&["apply", file.to_str().expect("UTF-8")])
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Not asserted: a panic while another unwinds would hide it.
        let _ =
            Command::new("umount").arg(self.root.path().join("sys/fs/bpf")).stderr(Stdio::null()).status();
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Answer {
    pub(crate) fn of(output: Output) -> Self {
        Self {
            code: output.status.code().expect("it exits by itself"),
            stdout: String::from_utf8(output.stdout).expect("UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }

    #[track_caller]
    pub(crate) fn says(&self, sentence: &str) {
        assert!(self.stdout.contains(sentence), "`{sentence}` is not in {self:?}");
    }

    #[track_caller]
    pub(crate) fn complains(&self, sentence: &str) {
        assert!(self.stderr.contains(sentence), "`{sentence}` is not in {self:?}");
    }
}

/// The lab's network with this zone; `null` leaves it out.
pub(crate) fn conf(zone: &Value) -> Value {
    let mut conf = json!({
        "cniVersion": "1.0.0", "name": NETWORK, "type": "macvlan", "master": "enp0s8", "mode": "bridge",
        "ipam": {
            "type": "host-local", "subnet": "10.12.34.0/24", "rangeStart": "10.12.34.200",
            "rangeEnd": "10.12.34.220", "gateway": GATEWAY, "routes": [{ "dst": "0.0.0.0/0" }],
        },
    });
    if !zone.is_null() {
        conf["zone"] = zone.clone();
    }
    conf
}

pub(crate) fn private() -> Value {
    json!({ "policy": "private" })
}
