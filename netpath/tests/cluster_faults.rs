//! What goes wrong around pods that ask for networks. One fault at a time, on one node, where nothing else runs.

mod common;
#[path = "common/cri.rs"]
mod cri;
#[path = "common/kube.rs"]
mod kube;
#[path = "common/site.rs"]
mod site;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::eventually;
use kube::{Kube, Namespace, PATIENCE};
use site::{Machine, private};

const NODE: &str = "worker02";
const NOTHING: [&str; 0] = [];

/// Waits at a command for as long as a file is there, and says that it waits; then does what it is called for.
const GATE: &str = r#"#!/bin/sh
if [ -e "/run/hold-$CNI_COMMAND" ]; then
    : > "/run/held-$CNI_COMMAND"
    while [ -e "/run/hold-$CNI_COMMAND" ]; do sleep 0.05; done
fi
exec /opt/cni/bin/bridge.real
"#;

/// The node is one test's alone.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A gate before the first network's plugin.
struct Gate(Machine);

impl Gate {
    #[track_caller]
    fn before(node: &Machine) -> Self {
        node.sh("mv /opt/cni/bin/bridge /opt/cni/bin/bridge.real");
        std::fs::write(node.path("/opt/cni/bin/bridge"), GATE).unwrap();
        node.sh("chmod 755 /opt/cni/bin/bridge");
        Self(node.clone())
    }

    #[track_caller]
    fn close(&self, command: &str) {
        self.0.sh(&format!("touch /run/hold-{command}"));
    }

    #[track_caller]
    fn is_reached(&self, command: &str) {
        let path = self.0.path(&format!("/run/held-{command}"));
        eventually(PATIENCE, &format!("{command} waits at the gate"), || path.exists().then_some(()));
    }

    #[track_caller]
    fn open(&self, command: &str) {
        self.0.sh(&format!("rm -f /run/hold-{command} /run/held-{command}"));
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.0.sh("rm -f /run/hold-* /run/held-*; mv /opt/cni/bin/bridge.real /opt/cni/bin/bridge");
    }
}

/// Starts the API server again, whatever happens.
struct ApiServer<'a>(&'a Kube);

impl<'a> ApiServer<'a> {
    #[track_caller]
    fn stopped(kube: &'a Kube) -> Self {
        kube.cluster("stop master01 kube-apiserver");
        Self(kube)
    }
}

impl Drop for ApiServer<'_> {
    fn drop(&mut self) {
        self.0.cluster("start master01 kube-apiserver");
    }
}

/// A node on which nothing is attached, until this is dropped.
struct Disabled(Machine);

impl Disabled {
    #[track_caller]
    fn new(node: &Machine) -> Self {
        node.sh("touch /etc/netpath/disable");
        Self(node.clone())
    }
}

impl Drop for Disabled {
    fn drop(&mut self) {
        self.0.sh("rm /etc/netpath/disable");
    }
}

#[track_caller]
fn nothing_is_left(node: &Machine) {
    let mut left = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        left = node.leftovers();
        if left.is_empty() {
            return;
        }
        std::thread::park_timeout(Duration::from_millis(100));
    }
    panic!("left on the node: {left:?}");
}

#[test]
fn an_api_server_that_stops_during_an_add_delays_the_pod() {
    let _alone = alone();
    let kube = Kube::new();
    let namespace = Namespace::new(&kube, "api-add");
    namespace.nad("mv", &private());
    let node = kube.node(NODE);
    let gate = Gate::before(&node);
    gate.close("ADD");
    namespace.pod("p", NODE, "mv");
    gate.is_reached("ADD");
    {
        let _stopped = ApiServer::stopped(&kube);
        gate.open("ADD");
        // The policed network's status cannot be written: the ADD is taken back, and waits for kubelet's next try.
        nothing_is_left(&node);
    }
    namespace.ready("p");
    assert_eq!(namespace.network_status("p")[1]["name"], "api-add/mv");
    assert_eq!(namespace.rows(&node), 1);
    namespace.exec("p", "ping -c 1 -W 3 -I net1 10.12.34.254").unwrap();
    namespace.delete("p");
    nothing_is_left(&node);
}

#[test]
fn an_api_server_that_stops_during_a_del_delays_nothing_on_the_node() {
    let _alone = alone();
    let kube = Kube::new();
    let namespace = Namespace::new(&kube, "api-del");
    namespace.nad("mv", &private());
    namespace.pod("p", NODE, "mv");
    namespace.ready("p");
    let node = kube.node(NODE);
    let gate = Gate::before(&node);
    gate.close("DEL");
    namespace.kubectl(&["delete", "pod", "p", "--wait=false"], "");
    gate.is_reached("DEL");
    {
        let _stopped = ApiServer::stopped(&kube);
        gate.open("DEL");
        eventually(PATIENCE, "row and addresses are gone without the API server", || {
            let addresses = node.sh("ls /var/lib/cni/networks/* | grep '^10' || :");
            (node.pods().is_empty() && addresses.is_empty()).then_some(())
        });
    }
    namespace.gone("p");
    nothing_is_left(&node);
}

#[test]
fn pods_come_back_with_their_node() {
    let _alone = alone();
    let kube = Kube::new();
    let namespace = Namespace::new(&kube, "reboot");
    namespace.nad("mv", &private());
    namespace.pod("p", NODE, "mv");
    namespace.ready("p");
    let before = namespace.try_get("pod", "p").unwrap();
    kube.cluster(&format!("power-off {NODE}"));
    kube.cluster(&format!("boot {NODE}"));
    let restarts = |pod: &serde_json::Value| pod["status"]["containerStatuses"][0]["restartCount"].as_u64();
    let after = eventually(PATIENCE, "the pod's container runs anew", || {
        namespace.try_get("pod", "p").filter(|pod| restarts(pod) > restarts(&before))
    });
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"], "it is the same pod");
    namespace.ready("p");
    let node = kube.node(NODE);
    namespace.exec("p", "ping -c 1 -W 3 -I net1 10.12.34.254").unwrap();
    namespace.exec("p", "ping -c 1 -W 1 -I net1 8.8.8.8").expect_err("the zone is in force again");
    assert_eq!(namespace.rows(&node), 1);
    let reserved = node.sh("ls /var/lib/cni/networks/mv | grep '^10'");
    assert_eq!(reserved.lines().count(), 1, "the old sandbox's address is free: {reserved}");
    let status = namespace.network_status("p");
    assert_eq!(status[1]["ips"][0].as_str(), reserved.lines().next());
    namespace.delete("p");
    nothing_is_left(&node);
}

#[test]
fn a_policed_network_without_a_data_path_fails_closed() {
    let _alone = alone();
    let kube = Kube::new();
    let namespace = Namespace::new(&kube, "closed");
    namespace.nad("mv", &private());
    let node = kube.node(NODE);
    let disabled = Disabled::new(&node);
    for (pod, networks) in [("policed", "mv"), ("plain", "")] {
        namespace.pod(pod, NODE, networks);
    }
    namespace.ready("plain");
    namespace.event("policed", "FailedCreatePodSandBox", "/etc/netpath/disable");
    let pod = namespace.try_get("pod", "policed").unwrap();
    assert_eq!(pod["status"]["phase"], "Pending");
    drop(disabled);
    namespace.ready("policed");
    for pod in ["policed", "plain"] {
        namespace.delete(pod);
    }
    nothing_is_left(&node);
}

#[test]
fn with_isolation_networks_of_other_namespaces_are_refused() {
    let _alone = alone();
    let kube = Kube::new();
    let (namespace, other) = (Namespace::new(&kube, "isolated"), Namespace::new(&kube, "foreign"));
    for namespace in [&namespace, &other] {
        namespace.nad("mv", &private());
    }
    let node = kube.node(NODE);
    let set = |value: bool| {
        let conf = "/etc/cni/net.d/00-netpath.conflist";
        node.sh(&format!(
            "jq '.plugins[0].namespaceIsolation = {value}' {conf} > {conf}.new && mv {conf}.new {conf}"
        ));
    };
    set(true);
    namespace.pod("refused", NODE, "foreign/mv");
    namespace.event("refused", "FailedCreatePodSandBox", "namespace isolation enabled");
    namespace.pod("own", NODE, "mv");
    namespace.ready("own");
    set(false);
    namespace.ready("refused");
    for pod in ["refused", "own"] {
        namespace.delete(pod);
    }
    nothing_is_left(&node);
}

#[test]
fn a_node_is_switched_to_netpath_and_back_with_its_pods_running() {
    let _alone = alone();
    let kube = Kube::new();
    let namespace = Namespace::new(&kube, "switch");
    namespace.nad("mv", &private());
    let node = kube.node(NODE);
    let addresses = || node.sh("ls /var/lib/cni/networks/cbr0 | grep '^10' || :");
    node.sh("cd /etc/cni/net.d; mv 00-netpath.conflist .netpath-saved");
    // Whether the runtime has noticed is seen by what a pod gets.
    eventually(PATIENCE, "pods get the stock network alone", || {
        namespace.pod("stock", NODE, "mv");
        namespace.ready("stock");
        let is_stock = namespace.exec("stock", "ip link show net1").is_err();
        (is_stock || {
            namespace.delete("stock");
            false
        })
        .then_some(())
    });
    node.sh("cd /etc/cni/net.d; mv .netpath-saved 00-netpath.conflist");
    namespace.exec("stock", "ping -c 1 -W 3 8.8.8.8").unwrap();
    eventually(PATIENCE, "pods get netpath's networks", || {
        namespace.pod("ours", NODE, "mv");
        namespace.ready("ours");
        let is_ours = namespace.exec("ours", "ip link show net1").is_ok();
        (is_ours || {
            namespace.delete("ours");
            false
        })
        .then_some(())
    });
    assert_eq!(addresses().lines().count(), 2);
    namespace.delete("stock");
    eventually(PATIENCE, "the stock pod's address is free", || {
        (addresses().lines().count() == 1).then_some(())
    });
    namespace.exec("ours", "ping -c 1 -W 3 -I net1 10.12.34.254").unwrap();
    namespace.delete("ours");
    nothing_is_left(&node);
    assert_eq!(addresses().lines().collect::<Vec<_>>(), NOTHING);
}
