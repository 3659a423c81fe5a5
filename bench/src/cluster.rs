//! Suite `cluster`: how long a container runtime takes for a pod's sandbox, with and without a second network.
//!
//! On a node of the cluster that `cargo xtask bench cluster` stands up; its kubelet is stopped, so that pods are made by CRI
//! directly, one at a time. The kinds of pods take turns, and the turn's order is reversed each time: what the machine does meanwhile
//! meets all of them.

#[path = "../../netpath/tests/common/cri.rs"]
mod cri;

use std::{
    collections::HashMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use self::cri::{Cri, LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata};
use crate::{
    Effort,
    figures::{Figures, Unit},
    samples::Samples,
    say,
};

/// Where the cluster lies; `cargo xtask bench cluster` sets it.
const CLUSTER_VARIABLE: &str = "NETPATH_CLUSTER";

const NODE: &str = "worker01";
const NAMESPACE: &str = "bench";
const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";

/// Turns that are not counted: files are read for the first time, programs are attached.
const WARM_UP: usize = 3;

/// A kind of pod, and what it asks for.
const KINDS: [(&str, Option<&str>); 3] = [
    ("default network alone", None),
    ("one NAD more", Some("open")),
    ("one NAD more, with a zone", Some("private")),
];

/// Runs the suite.
pub(crate) fn run(effort: Effort, figures: &mut Figures) -> Result<()> {
    let pods = match effort {
        Effort::Quick => 2,
        Effort::Usual => 40,
        Effort::Full => 100,
    };
    let dir = std::env::var_os(CLUSTER_VARIABLE).map(PathBuf::from);
    let cluster = Cluster::at(dir.with_context(|| format!("{CLUSTER_VARIABLE} is not set"))?)?;
    let turns = pods + WARM_UP;
    let uids = cluster.make_pods(turns)?;
    let mut times: Vec<Samples> = KINDS.iter().map(|_| Samples::default()).collect();
    let mut more: Vec<Samples> = times.clone();
    for turn in 0..turns {
        let mut order: Vec<usize> = (0..KINDS.len()).collect();
        if turn % 2 == 1 {
            order.reverse();
        }
        let mut took = [0.0; KINDS.len()];
        for kind in order {
            let name = format!("pod-{kind}-{turn}");
            let pod = cluster.sandbox(&name, uids.get(&name).context("a pod without UID")?, KINDS[kind].1);
            let start = Instant::now();
            let id = cluster.cri.run(&pod).with_context(|| format!("{name} cannot be run"))?;
            took[kind] = start.elapsed().as_secs_f64() * 1e3;
            cluster
                .cri
                .stop(&id)
                .and_then(|()| cluster.cri.remove(&id))
                .context("a sandbox cannot be ended")?;
        }
        if WARM_UP <= turn {
            for (kind, took_by_it) in took.iter().enumerate() {
                times[kind].push(*took_by_it);
                more[kind].push(took_by_it - took[0]);
            }
        }
    }
    say(format_args!("RunPodSandbox, milliseconds, {pods} of each kind: median (8 of 10 within)"));
    let alone = times[0].median();
    for (kind, (name, nad)) in KINDS.iter().enumerate() {
        let above = more[kind].median();
        say(format_args!(
            "  {name:26} {:20}  {above:+.1} in the same turn, {:+.1} %",
            times[kind].to_string(),
            above / alone * 100.0
        ));
        figures.put(
            format!("cluster/sandbox/{}", nad.unwrap_or("alone")),
            Unit::Milliseconds,
            times[kind].clone(),
        );
    }
    Ok(())
}

struct Cluster {
    dir: PathBuf,
    cgroup: String,
    cri: Cri,
}

impl Cluster {
    fn at(dir: PathBuf) -> Result<Self> {
        let path = dir.join("environment.json");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let environment: Value = serde_json::from_str(&text).context("the cluster's description is JSON")?;
        let init = environment["machines"][NODE]["init"].as_u64().context("the cluster has no such node")?;
        let cgroup = environment["cgroup"].as_str().context("the cluster has no cgroup")?;
        let cri = Cri::connect(Path::new(&format!("/proc/{init}/root/run/containerd/containerd.sock")));
        Ok(Self { dir, cgroup: format!("/{cgroup}/{NODE}/bench"), cri })
    }

    /// Makes networks, and pods that no node will run: the API server knows them by name and UID.
    fn make_pods(&self, turns: usize) -> Result<HashMap<String, String>> {
        let conf = |zone: bool| {
            let mut conf = json!({"cniVersion": "1.0.0", "type": "macvlan", "master": "enp0s8", "mode": "bridge",
                "ipam": {"type": "host-local", "subnet": "10.12.34.0/24", "rangeStart": "10.12.34.120",
                         "rangeEnd": "10.12.34.240", "gateway": "10.12.34.254"}});
            if zone {
                conf["zone"] = json!({"policy": "private"});
            }
            conf.to_string()
        };
        let mut items =
            vec![json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})];
        for (name, zone) in [("open", false), ("private", true)] {
            items.push(json!({"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
                "metadata": {"name": name, "namespace": NAMESPACE}, "spec": {"config": conf(zone)}}));
        }
        // Pods are refused before the namespace's service account is there.
        items.push(json!({"apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": "default", "namespace": NAMESPACE}}));
        self.apply(items)?;
        let mut pods = Vec::new();
        for turn in 0..turns {
            for (kind, (_, networks)) in KINDS.iter().enumerate() {
                let annotations = networks.map_or(json!({}), |name| json!({NETWORKS: name}));
                pods.push(json!({"apiVersion": "v1", "kind": "Pod", "metadata":
                    {"name": format!("pod-{kind}-{turn}"), "namespace": NAMESPACE, "annotations": annotations},
                    "spec": {"schedulerName": "nobody", "automountServiceAccountToken": false,
                             "containers": [{"name": "main", "image": "localhost/busybox:1"}]}}));
            }
        }
        self.apply(pods)?;
        let known = self.kubectl(&["--namespace", NAMESPACE, "get", "pods", "--output", "json"], "")?;
        let known: Value = serde_json::from_str(&known).context("kubectl did not print JSON")?;
        let text = |it: &Value, key: &str| it["metadata"][key].as_str().unwrap_or_default().to_owned();
        let items = known["items"].as_array().context("kubectl printed no list")?;
        Ok(items.iter().map(|it| (text(it, "name"), text(it, "uid"))).collect())
    }

    fn apply(&self, items: Vec<Value>) -> Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        self.kubectl(&["apply", "--filename", "-"], &list.to_string()).map(drop)
    }

    fn kubectl(&self, words: &[&str], stdin: &str) -> Result<String> {
        let mut child = Command::new(self.dir.join("kubectl"))
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start kubectl")?;
        if let Some(mut pipe) = child.stdin.take() {
            pipe.write_all(stdin.as_bytes()).context("kubectl does not listen")?;
        }
        let output = child.wait_with_output().context("cannot wait for kubectl")?;
        ensure!(output.status.success(), "kubectl {} failed", words.join(" "));
        String::from_utf8(output.stdout).context("kubectl did not print UTF-8")
    }

    fn sandbox(&self, name: &str, uid: &str, networks: Option<&str>) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: uid.to_owned(),
                namespace: NAMESPACE.to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: String::new(),
            annotations: networks.map(|name| (NETWORKS.to_owned(), name.to_owned())).into_iter().collect(),
            linux: Some(LinuxPodSandboxConfig { cgroup_parent: self.cgroup.clone(), security_context: None }),
        }
    }
}
