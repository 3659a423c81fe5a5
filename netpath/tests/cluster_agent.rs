//! The manifests of deploy/ on a real Kubernetes: agents in pods of the shipped image, from a node without netpath to a
//! node without netpath.

mod common;
#[path = "common/cri.rs"]
mod cri;
#[path = "common/http.rs"]
mod http;
#[path = "common/kube.rs"]
mod kube;
#[path = "common/site.rs"]
mod site;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use common::eventually;
use kube::{Kube, Namespace, PATIENCE};
use serde_json::{Value, json};
use site::{Machine, OURS, macvlan};

const NODES: [&str; 2] = ["worker01", "worker02"];
/// The API server, as nodes reach it. There is no kube-proxy here, by whose rules they would reach the service's address.
const SERVER: (&str, &str) = ("10.0.2.10", "6443");

const AGENTS: &str = "app.kubernetes.io/component=agent";
/// And those of the DaemonSet that takes all of it off the nodes.
const UNINSTALLERS: &str = "app.kubernetes.io/component=uninstall";

/// A manifest of deploy/.
fn manifest(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The agent's, told where the API server is.
fn agent() -> String {
    let (host, port) = SERVER;
    let told = format!(
        "          env:\n            - {{ name: KUBERNETES_SERVICE_HOST, value: \"{host}\" }}\n            - {{ name: \
         KUBERNETES_SERVICE_PORT, value: \"{port}\" }}\n"
    );
    let text = before_1_30(&manifest("agent/agent.yaml"));
    assert_eq!(text.matches("          env:\n").count(), 1);
    text.replace("          env:\n", &told)
}

/// A manifest as this Kubernetes can read it, which has annotations in the place of a key.
fn before_1_30(text: &str) -> String {
    let key = "        appArmorProfile: { type: Unconfined }\n";
    assert_eq!(text.matches(key).count(), 1);
    text.replace(key, "")
}

/// The manifest that takes netpath off.
fn uninstall() -> String {
    before_1_30(&manifest("uninstall/uninstall.yaml"))
}

struct Cluster<'a> {
    kube: &'a Kube,
}

impl Cluster<'_> {
    fn netpath(&self, words: &[&str], stdin: &str) -> String {
        self.kube.kubectl(&[&["--namespace", "netpath"][..], words].concat(), stdin)
    }

    #[track_caller]
    fn rolled_out(&self, name: &str) {
        let words = ["rollout", "status", &format!("daemonset/{name}"), "--timeout=120s"];
        let namespaced = [&["--namespace", "netpath"][..], &words].concat();
        if let Err(error) = self.kube.try_kubectl(&namespaced, "") {
            let logs = NODES.map(|node| self.readiness(node));
            panic!("{name}: {error}\n{}\n{logs:?}", self.netpath(&["describe", "pods"], ""));
        }
    }

    /// What the agent of a node says of its readiness.
    fn readiness(&self, node: &str) -> String {
        self.get(node, "/readyz")
    }

    fn get(&self, node: &str, path: &str) -> String {
        let answer = self.kube.node(node).within(|| http::get(path));
        answer.map(|(status, text)| format!("{status} {text}")).unwrap_or_default()
    }

    /// The sum of all series of a metric whose labels hold these.
    fn value(&self, node: &str, name: &str, labels: &[&str]) -> u64 {
        let text = self.get(node, "/metrics");
        let own = text.lines().filter(|line| {
            line.split(['{', ' ']).next() == Some(name) && labels.iter().all(|label| line.contains(label))
        });
        own.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    fn agent_of(&self, node: &str) -> String {
        let field = format!("spec.nodeName={node}");
        let words =
            ["get", "pods", "--selector", "app.kubernetes.io/component=agent", "--field-selector", &field];
        self.netpath(&[&words[..], &["--output", "jsonpath={.items[0].metadata.name}"]].concat(), "")
    }
}

fn files(node: &Machine) -> String {
    node.sh("cd /etc/cni/net.d && ls -A . netpath.d")
}

/// A network with a zone that holds the internet, or not.
fn network(open: bool) -> Value {
    let allow = if open { json!(["8.8.8.8"]) } else { json!([]) };
    let mut conf = macvlan(&json!({"zone": {"policy": "private", "allow": allow}}));
    conf["ipam"]["rangeStart"] = json!("10.12.34.60");
    conf["ipam"]["rangeEnd"] = json!("10.12.34.69");
    conf
}

#[test]
fn from_nothing_to_nothing() {
    let kube = Kube::new();
    let cluster = Cluster { kube: &kube };
    let nodes = NODES.map(|name| kube.node(name));
    // As nodes are that nobody has prepared.
    for node in &nodes {
        node.sh("mkdir /run/saved; cp -a /etc/cni/net.d /opt/cni/bin/netpath /run/saved");
        node.sh(&format!("{OURS} uninstall --yes"));
        node.sh("cd /etc/cni/net.d; rm -r 00-netpath.conflist netpath.d /opt/cni/bin/netpath");
    }
    let masters =
        json!({"enp0s8": {"zone": {"local": ["10.12.34.0/24"], "allow": ["8.8.8.8"]}, "promisc": "on"}});
    let masters = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "masters", "namespace": "netpath"},
        "data": {"masters.json": masters.to_string()}});
    cluster.netpath(&["apply", "--filename", "-"], &masters.to_string());
    cluster.netpath(&["apply", "--filename", "-"], &agent());
    cluster.rolled_out("netpath-agent");
    for (name, node) in NODES.iter().zip(&nodes) {
        assert_eq!(
            files(node),
            ".:\n00-netpath.conflist\n10-cbr0.conflist\nnetpath.d\n\nnetpath.d:\nmasters.json\nnetpath.kubeconfig\nnetpath.token\n"
        );
        let conf: Value = serde_json::from_str(&node.sh("cat /etc/cni/net.d/00-netpath.conflist")).unwrap();
        assert_eq!(conf["plugins"][0]["nodeName"], json!(name));
        assert_eq!(conf["plugins"][0]["clusterNetwork"], "/etc/cni/net.d/10-cbr0.conflist");
    }

    // A pod by what the agent has installed, and what is said of it.
    let web = Namespace::new(&kube, "installed");
    web.nad("mv", &network(false));
    web.pod("p", NODES[0], "mv");
    web.ready("p");
    let reaches = |address: &str| web.exec("p", &format!("ping -c 1 -W 1 -I net1 {address}")).is_ok();
    assert!(reaches("10.12.34.254") && !reaches("8.8.8.8"));
    assert_eq!(web.network_status("p")[1]["name"], "installed/mv");
    web.event("p", "AddedInterface", "Add net1");
    web.event("p", "PacketsDropped", "to 8.8.8.8: zone-deny");
    let labels = ["namespace=\"installed\"", "pod=\"p\"", "network=\"installed/mv\""];
    let sent = || cluster.value(NODES[0], "netpath_pod_transmit_packets_total", &labels);
    assert!(0 < sent());

    // A network is changed for the pod that runs, within a second.
    for open in [true, false] {
        web.nad("mv", &network(open));
        let begun = Instant::now();
        eventually(PATIENCE, "the zone follows", || (reaches("8.8.8.8") == open).then_some(()));
        // `ping` waits a second for what does not come.
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }
    // A mistake is told to whoever made it, and what was good stays.
    let mut wrong = network(true);
    wrong["zone"]["alow"] = json!([]);
    web.nad("mv", &wrong);
    let field = "involvedObject.name=mv,reason=NetworkRefused";
    eventually(PATIENCE, "the mistake is told", || {
        let words =
            ["--namespace", "installed", "get", "events", "--field-selector", field, "--output", "json"];
        let events: Value = serde_json::from_str(&kube.kubectl(&words, "")).unwrap();
        let message = events["items"][0]["message"].as_str()?.to_owned();
        message.contains("zone.alow").then_some(())
    });
    assert!(!reaches("8.8.8.8"));
    web.nad("mv", &network(false));

    // An agent that is killed or replaced takes nothing with it, and no counter goes back.
    let before = sent();
    let old = cluster.agent_of(NODES[0]);
    cluster.netpath(&["delete", "pod", &old], "");
    assert!(reaches("10.12.34.254") && !reaches("8.8.8.8"));
    cluster.rolled_out("netpath-agent");
    assert_ne!(cluster.agent_of(NODES[0]), old);
    eventually(PATIENCE, "it goes on counting", || (before < sent()).then_some(()));

    // Uninstalled: nothing is left in force, and an agent that is still there does not bring it back.
    let before: Vec<_> = NODES.iter().map(|node| cluster.agent_of(node)).collect();
    cluster.netpath(&["apply", "--filename", "-"], &uninstall());
    cluster.rolled_out("netpath-uninstall");
    let words = ["logs", "--selector", UNINSTALLERS, "--container", "uninstall", "--tail=-1"];
    let said = cluster.netpath(&words, "");
    assert!(said.contains("installed/p (net1) loses its zone and keeps running"), "{said}");
    assert!(reaches("8.8.8.8"), "nobody holds it any more");
    for (name, node) in NODES.iter().zip(&nodes) {
        assert_eq!(files(node), ".:\n10-cbr0.conflist\nnetpath.d\n\nnetpath.d:\nmasters.json\n", "{name}");
        assert_eq!(node.sh("ls -d /sys/fs/bpf/netpath 2>/dev/null || :"), "");
        eventually(PATIENCE, "its agent says so", || {
            cluster.readiness(name).contains("/run/netpath/uninstalled says so").then_some(())
        });
    }
    let after: Vec<_> = NODES.iter().map(|node| cluster.agent_of(node)).collect();
    assert_eq!(before, after, "the agents were there all the time");
    web.pod("plain", NODES[0], "");
    web.ready("plain");

    // Also when the uninstaller ends before the agents do.
    cluster.netpath(&["delete", "--filename", "-"], &uninstall());
    // Its pods end after it is deleted, and whoever ends last takes the mark along.
    let ended = ["wait", "--for=delete", "pod", "--selector", UNINSTALLERS, "--timeout=60s"];
    cluster.netpath(&ended, "");
    for (name, node) in NODES.iter().zip(&nodes) {
        assert!(cluster.readiness(name).contains("/run/netpath/uninstalled says so"), "{name}");
        assert_eq!(node.sh("ls -d /sys/fs/bpf/netpath 2>/dev/null || :"), "");
    }
    cluster.netpath(&["delete", "--filename", "-"], &agent());
    cluster.netpath(&["wait", "--for=delete", "pod", "--selector", AGENTS, "--timeout=60s"], "");

    // Installed anew, the pods that run come back under their zones.
    for node in &nodes {
        node.sh("rm /run/netpath/uninstalled");
    }
    cluster.netpath(&["apply", "--filename", "-"], &agent());
    cluster.rolled_out("netpath-agent");
    eventually(PATIENCE, "the zone is back", || (!reaches("8.8.8.8")).then_some(()));
    assert!(reaches("10.12.34.254"));
    for pod in ["p", "plain"] {
        web.delete(pod);
    }

    // In the order of docs/install.md, and back to what the other tests stand on.
    cluster.netpath(&["apply", "--filename", "-"], &uninstall());
    cluster.rolled_out("netpath-uninstall");
    cluster.netpath(&["delete", "--filename", "-"], &agent());
    cluster.netpath(&["wait", "--for=delete", "pod", "--selector", AGENTS, "--timeout=60s"], "");
    cluster.netpath(&["delete", "--filename", "-"], &uninstall());
    let words = ["wait", "--for=delete", "pod", "--selector", UNINSTALLERS];
    cluster.netpath(&[&words[..], &["--timeout=60s"]].concat(), "");
    cluster.netpath(&["delete", "configmap", "masters"], "");
    for node in &nodes {
        assert_eq!(
            node.sh("ls /run/netpath/uninstalled /var/lib/netpath/installed.json 2>/dev/null || :"),
            ""
        );
        node.sh("rm -r /etc/cni/net.d/*; cp -a /run/saved/netpath /opt/cni/bin/; cp -a /run/saved/net.d /etc/cni/");
        node.sh("rm -r /run/saved /run/netpath/agent*");
    }
}
