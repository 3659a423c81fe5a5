//! A node with a container runtime whose CNI plugin is netpath, for one test: `cargo xtask cluster` makes it.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};

use netpath::kernel::netns;
use serde_json::{Value, json};

use crate::common::run;
use crate::cri::{Cri, LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata};

/// Our plugin and tool.
pub(crate) const OURS: &str = env!("CARGO_BIN_EXE_netpath");

/// The image that every node has.
pub(crate) const IMAGE: &str = "localhost/busybox:1";

/// The one node of a site.
const NODE: &str = "worker01";

/// Files that only say how far something has come.
const MEMORY: [&str; 2] = ["lock", "last_reserved_ip."];
/// What outlives pods: how the master was before them, where the pins are, what an agent held and knew, and how often
/// something has happened on the node.
const LASTING: [&str; 5] = [
    "/var/lib/netpath/promisc",
    "/run/netpath/bpffs",
    "/run/netpath/agent",
    "/run/netpath/events.lock",
    "/var/lib/netpath/v1/counters/",
];

/// The program of `cargo xtask`, which `cargo xtask test` names.
#[track_caller]
pub(crate) fn xtask() -> PathBuf {
    let beside = Path::new(OURS).with_file_name("xtask");
    let path = std::env::var_os("NETPATH_XTASK").map_or(beside, PathBuf::from);
    assert!(path.exists(), "{} is missing: start these tests by `cargo xtask test`", path.display());
    path
}

/// A machine of a cluster, as `environment.json` describes it.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) name: String,
    init: u64,
}

impl Machine {
    #[track_caller]
    pub(crate) fn of(dir: &Path, name: &str) -> Self {
        let text = fs::read_to_string(dir.join("environment.json")).unwrap();
        let environment: Value = serde_json::from_str(&text).unwrap();
        let init = environment["machines"][name]["init"].as_u64();
        Self { name: name.to_owned(), init: init.unwrap_or_else(|| panic!("no machine {name}: {text}")) }
    }

    /// A path of the machine, as we see it.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init))
    }

    /// Runs a line of a shell; it must succeed.
    #[track_caller]
    pub(crate) fn sh(&self, line: &str) -> String {
        let target = format!("--target={}", self.init);
        run(&["nsenter", &target, "--mount", "--net", "--pid", "--uts", "--", "sh", "-euc", line])
    }

    /// Runs `f` in its network namespace.
    pub(crate) fn within<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        netns::within(&PathBuf::from(format!("/proc/{}/ns/net", self.init)), f).unwrap()
    }

    /// The tool, on the machine; it must succeed.
    #[track_caller]
    pub(crate) fn tool(&self, words: &str) -> Value {
        serde_json::from_str(&self.sh(&format!("{OURS} {words} -o json"))).unwrap()
    }

    /// What pods leave behind where they are not ended well: files, rows, links of the node.
    #[track_caller]
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let find = "find /var/lib/netpath /var/lib/cni /run/netpath /run/netns -mindepth 1 ! -type d 2>/dev/null || :";
        let found = self.sh(find);
        let is_kept = |path: &&str| {
            let name = path.rsplit('/').next().unwrap_or_default();
            !MEMORY.iter().any(|it| name.starts_with(it)) && !LASTING.iter().any(|it| path.starts_with(it))
        };
        let mut left: Vec<String> = found.lines().filter(is_kept).map(str::to_owned).collect();
        let links: Value = serde_json::from_str(&self.sh("ip -j link show")).unwrap();
        let links = links.as_array().unwrap().iter().map(|link| link["ifname"].as_str().unwrap());
        left.extend(links.filter(|name| name.starts_with("veth")).map(|name| format!("link {name}")));
        left.extend(self.pods().iter().map(|pod| format!("row {pod}")));
        left
    }

    /// The attachments that the maps hold.
    #[track_caller]
    pub(crate) fn pods(&self) -> Vec<Value> {
        let text = self.sh(&format!("{OURS} pods -o json || [ $? = 3 ]"));
        let text: Value = serde_json::from_str(&text).unwrap();
        text["pods"].as_array().cloned().unwrap_or_default()
    }
}

/// A node of a test's own, with a switch and a gateway.
pub(crate) struct Site {
    dir: PathBuf,
    pub(crate) cri: Cri,
    pub(crate) node: Machine,
    cgroup: String,
}

impl Site {
    #[track_caller]
    pub(crate) fn new() -> Self {
        Self::with(&[])
    }

    /// With options for `cluster up`.
    #[track_caller]
    pub(crate) fn with(options: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let target = Path::new(OURS).parent().and_then(Path::parent).unwrap();
        let name = format!("{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = target.join("cluster/test").join(name);
        let (program, place) = (xtask(), dir.to_str().unwrap().to_owned());
        let up = ["cluster", "up", "--runtime-only", "--netpath", OURS, "--dir", &place];
        run(&[&[program.to_str().unwrap()][..], &up, options].concat());
        // From here on `drop` takes it down.
        let node = Machine::of(&dir, NODE);
        let text = fs::read_to_string(dir.join("environment.json")).unwrap();
        let environment: Value = serde_json::from_str(&text).unwrap();
        let cgroup = format!("/{}/{NODE}/pods", environment["cgroup"].as_str().unwrap());
        let cri = Cri::connect(&node.path("/run/containerd/containerd.sock"));
        Self { dir, cri, node, cgroup }
    }

    /// `cargo xtask cluster` with these words.
    #[track_caller]
    pub(crate) fn cluster(&self, words: &str) {
        let program = xtask();
        let words: Vec<&str> = words.split_whitespace().collect();
        let place = ["--dir", self.dir.to_str().unwrap()];
        run(&[&[program.to_str().unwrap(), "cluster"][..], &words, &place].concat());
    }

    /// Switches the node off as a power failure does, and on again.
    #[track_caller]
    pub(crate) fn reboot(&mut self) {
        self.cluster(&format!("power-off {NODE}"));
        self.cluster(&format!("boot {NODE}"));
        self.node = Machine::of(&self.dir, NODE);
        self.cri = self.connect();
    }

    /// Another connection, for another thread.
    #[track_caller]
    pub(crate) fn connect(&self) -> Cri {
        Cri::connect(&self.node.path("/run/containerd/containerd.sock"))
    }

    /// Defines a network in namespace `web`.
    #[track_caller]
    pub(crate) fn nad(&self, name: &str, config: &Value) {
        let nad = json!({"kind": "NetworkAttachmentDefinition", "metadata": {"name": name, "namespace": "web"},
                         "spec": {"config": config.to_string()}});
        fs::write(self.node.path("/etc/netpath/networks").join(format!("{name}.json")), nad.to_string())
            .unwrap();
    }

    /// Puts a shell script on the node as a plugin.
    #[track_caller]
    pub(crate) fn plugin(&self, name: &str, script: &str) {
        let path = self.node.path("/opt/cni/bin").join(name);
        // Not over one that runs.
        let draft = path.with_file_name(format!(".{name}"));
        fs::write(&draft, script).unwrap();
        fs::set_permissions(&draft, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        fs::rename(&draft, &path).unwrap();
    }

    /// A pod of namespace `web` that asks for these networks.
    pub(crate) fn pod(&self, name: &str, networks: &str) -> PodSandboxConfig {
        let key = "k8s.v1.cni.cncf.io/networks".to_owned();
        let annotations = if networks.is_empty() { None } else { Some((key, networks.to_owned())) };
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-of-{name}"),
                namespace: "web".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: String::new(),
            annotations: annotations.into_iter().collect(),
            linux: Some(LinuxPodSandboxConfig { cgroup_parent: self.cgroup.clone(), security_context: None }),
        }
    }

    /// Ends a sandbox as kubelet does: stopped twice, then removed.
    #[track_caller]
    pub(crate) fn end(&self, id: &str) {
        for _ in 0..2 {
            self.cri.stop(id).unwrap();
        }
        self.cri.remove(id).unwrap();
    }

    /// What became of a sandbox: network-status and events.
    #[track_caller]
    pub(crate) fn outcome(&self, id: &str) -> Value {
        let path = self.node.path(&format!("/run/netpath/sandboxes/{id}.json"));
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    }

    /// network-status of a sandbox.
    #[track_caller]
    pub(crate) fn network_status(&self, id: &str) -> Value {
        let outcome = self.outcome(id);
        let text = outcome["annotations"]["k8s.v1.cni.cncf.io/network-status"].as_str().unwrap();
        serde_json::from_str(text).unwrap()
    }

    /// Command lines of the node's processes but the runtime's own.
    #[track_caller]
    pub(crate) fn processes(&self) -> BTreeMap<u64, String> {
        let text = self.node.sh("for dir in /proc/[0-9]*; do tr '\\0' ' ' < $dir/cmdline 2>/dev/null | sed \"s|^|${dir#/proc/} |\"; echo; done");
        text.lines()
            .filter_map(|line| line.split_once(' '))
            .filter_map(|(pid, line)| Some((pid.parse().ok()?, line.to_owned())))
            .collect()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Ok(log) = fs::read_to_string(self.dir.join(NODE).join("containerd.log"))
        {
            let lines: Vec<&str> = log.lines().collect();
            let from = lines.len().saturating_sub(15);
            eprintln!("containerd said last:\n{}", lines[from..].join("\n"));
        }
        let program = Path::new(OURS).with_file_name("xtask");
        let program = std::env::var_os("NETPATH_XTASK").map_or(program, PathBuf::from);
        // Not asserted: a panic while another unwinds would hide it. The tier removes what is left.
        let _ = Command::new(program).args(["cluster", "down", "--dir"]).arg(&self.dir).status();
    }
}

/// A macvlan on the private network, with a pool, and keys added or replaced.
pub(crate) fn macvlan(keys: &Value) -> Value {
    let mut conf = json!({"cniVersion": "1.0.0", "type": "macvlan", "master": "enp0s8", "mode": "bridge",
        "ipam": {"type": "host-local", "subnet": "10.12.34.0/24", "rangeStart": "10.12.34.120",
                 "rangeEnd": "10.12.34.240", "gateway": "10.12.34.254", "routes": [{"dst": "0.0.0.0/0"}]}});
    for (key, value) in keys.as_object().unwrap() {
        conf[key] = value.clone();
    }
    conf
}

/// The same in a private zone.
pub(crate) fn private() -> Value {
    macvlan(&json!({"zone": {"policy": "private"}}))
}
