//! The agent installs the plugin on a node, keeps it there, and gives all of it back.

#[path = "common/agent.rs"]
mod agent;
#[path = "common/api.rs"]
mod api;
mod common;
#[path = "common/http.rs"]
mod http;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use agent::Agent;
use api::{FakeApi, Fault, Times};
use common::enforce::{hooks, private};
use common::node::Node;
use serde_json::{Value, json};

const CONF: &str = "etc/cni/net.d/00-netpath.conflist";
const TOKEN: &str = "etc/cni/net.d/netpath.d/netpath.token";

/// A node whose cluster network has its configuration there.
fn node() -> Node {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    let conf = json!({"cniVersion": "1.0.0", "name": "cbr0", "plugins": [{"type": "bridge"}]});
    node.write(&node.root.join("etc/cni/net.d/10-cbr0.conflist"), &conf);
    node
}

fn begin<'a>(node: &'a Node, api: &FakeApi) -> Agent<'a> {
    begin_with(node, api, &["--no-runtime"])
}

fn begin_with<'a>(node: &'a Node, api: &FakeApi, words: &[&str]) -> Agent<'a> {
    let path = node.root.join("etc/kubeconfig");
    fs::write(&path, api.kubeconfig()).expect("written");
    let own = ["--install", "--kubeconfig", path.to_str().expect("text")];
    Agent::begin_with(node, &[&own, words].concat())
}

fn read(node: &Node, path: &str) -> Option<String> {
    fs::read_to_string(node.root.join(path)).ok()
}

fn names(node: &Node) -> Vec<String> {
    let dir = node.root.join("etc/cni/net.d");
    let entries = fs::read_dir(dir).expect("a directory");
    let mut names: Vec<_> =
        entries.map(|it| it.expect("readable").file_name().into_string().expect("text")).collect();
    names.sort();
    names
}

fn rename(node: &Node, from: &str, to: &str) {
    let path = |name: &str| node.root.join("etc/cni/net.d").join(name);
    fs::rename(path(from), path(to)).expect("renamed");
}

/// Why the agent is not ready.
fn unready(agent: &Agent<'_>, word: &str) -> String {
    agent.eventually(word, || agent.get("/readyz").filter(|(_, why)| why.contains(word))).1
}

#[test]
fn a_node_is_installed_in_order_and_given_back() {
    let node = node();
    let api = FakeApi::new(&node.netns);
    api.bind_to_nodes();
    // Nothing is written while pods could not be given anything.
    api.fault("GET network-attachment-definitions", Fault::Status(500), Times::Always);
    api.fault("GET apis/k8s.cni.cncf.io", Fault::Status(500), Times::Always);
    let agent = begin(&node, &api);
    unready(&agent, "waits for the API server");
    assert_eq!(names(&node), ["10-cbr0.conflist", "netpath.d"]);
    api.heal();
    let agent = agent.ready();
    let conf: Value = serde_json::from_str(&read(&node, CONF).expect("written")).expect("JSON");
    let plugin = &conf["plugins"][0];
    assert_eq!(plugin["clusterNetwork"], "/etc/cni/net.d/10-cbr0.conflist");
    assert_eq!(plugin["kubeconfig"], "/etc/cni/net.d/netpath.d/netpath.kubeconfig");
    // A token of the plugin's account, for this node, which nobody else can read.
    assert_eq!(read(&node, TOKEN).as_deref(), Some("netpath-1"));
    let asked = api.asked();
    let request = asked.iter().find(|it| it.path.ends_with("/token")).expect("asked");
    assert_eq!(request.path, "/api/v1/namespaces/netpath/serviceaccounts/netpath/token");
    assert_eq!(request.body["spec"]["boundObjectRef"]["name"], "worker01");
    assert_eq!(request.body["spec"]["expirationSeconds"], 86400);
    for path in [TOKEN, "etc/cni/net.d/netpath.d/netpath.kubeconfig", CONF] {
        let mode = fs::metadata(node.root.join(path)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{path}");
    }
    let expires = agent.value("netpath_agent_token_expiry_timestamp_seconds", &[]).expect("known");
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
    assert!((now + 86_000..now + 86_500).contains(&expires), "{expires}");
    // The plugin is the program, and works by what was written.
    let plugin = node.root.join("opt/cni/bin/netpath");
    let own = fs::read(env!("CARGO_BIN_EXE_netpath")).expect("readable");
    assert!(fs::read(&plugin).expect("there") == own);
    // Files that somebody removes are there again.
    for path in [TOKEN, "opt/cni/bin/netpath"] {
        fs::remove_file(node.root.join(path)).expect("removed");
        agent.eventually(path, || node.root.join(path).exists().then_some(()));
    }
    let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
    assert!(!hooks(&node).is_empty());
    let said = node.netpath(&["uninstall", "--yes"]);
    assert!(said.contains("an agent runs on this node"), "{said}");
    assert!(hooks(&node).is_empty());
    unready(&agent, "run/netpath/uninstalled says so");
    let status = node.command().arg("status").output().expect("it can be run");
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("run/netpath/uninstalled exists, so nothing is attached"), "{status}");
    agent.eventually("two looks more", || {
        let passes = agent.value("netpath_agent_passes_total", &[]);
        passes.filter(|passes| 4 <= *passes)
    });
    assert_eq!(names(&node), ["10-cbr0.conflist", "netpath.d"]);
    assert!(!node.root.join(TOKEN).exists() && hooks(&node).is_empty());
    // Whoever wants it back says so.
    fs::remove_file(node.root.uninstalled()).expect("removed");
    let agent = agent.ready();
    assert_eq!(names(&node), ["00-netpath.conflist", "10-cbr0.conflist", "netpath.d"]);
    agent.kill();
    let said = node.netpath(&["uninstall", "--yes"]);
    assert!(!said.contains("an agent runs"), "{said}");
    assert!(!node.root.uninstalled().exists() && !node.root.installed().exists());
    node.delete(&pod);
}

#[test]
fn whoever_takes_its_place_is_named_and_not_chased() {
    let node = node();
    let api = FakeApi::new(&node.netns);
    api.bind_to_nodes();
    let multus = json!({"cniVersion": "0.3.1", "name": "multus-cni-network", "type": "multus-shim",
        "clusterNetwork": "/host/etc/cni/net.d/10-cbr0.conflist", "globalNamespaces": "default,infra"});
    node.write(&node.root.join("etc/cni/net.d/00-multus.conf"), &multus);
    let agent = begin(&node, &api).ready();
    assert_eq!(
        names(&node),
        ["00-multus.conf.netpath-saved", "00-netpath.conflist", "10-cbr0.conflist", "netpath.d"]
    );
    let conf: Value = serde_json::from_str(&read(&node, CONF).expect("written")).expect("JSON");
    assert_eq!(conf["plugins"][0]["clusterNetwork"], "/etc/cni/net.d/10-cbr0.conflist");
    assert_eq!(conf["plugins"][0]["globalNamespaces"], "default,infra");
    // Three times it is put back.
    for count in 1..=3 {
        rename(&node, "00-netpath.conflist", "00-netpath.conflist.cilium_bak");
        agent.eventually("it is back", || node.root.join(CONF).exists().then_some(()));
        agent.eventually("it is counted", || {
            let repairs = agent.value("netpath_repairs_total", &["what=\"cni-configuration\""]);
            repairs.filter(|it| *it == count)
        });
    }
    rename(&node, "00-netpath.conflist", "00-netpath.conflist.cilium_bak");
    let why = unready(&agent, "put back three times");
    assert!(why.contains("cni.exclusive"), "{why}");
    assert!(!node.root.join(CONF).exists());
    // Who puts it back by hand is believed.
    rename(&node, "00-netpath.conflist.cilium_bak", "00-netpath.conflist");
    let agent = agent.ready();
    node.write(&node.root.join("etc/cni/net.d/00-aaa.conf"), &json!({"name": "a", "type": "bridge"}));
    let why = unready(&agent, "comes before 00-netpath.conflist");
    assert!(why.contains("/etc/cni/net.d/00-aaa.conf"), "{why}");
    fs::remove_file(node.root.join("etc/cni/net.d/00-aaa.conf")).expect("removed");
    rename(&node, "10-cbr0.conflist", "gone");
    unready(&agent, "the cluster network's configuration /etc/cni/net.d/10-cbr0.conflist is gone");
    // Whoever looks after nodes is told as well.
    let told = |reason: &str| api.events().into_iter().find(|event| event["reason"] == reason);
    let event = agent.eventually("it is told of the node", || told("NetpathFailing"));
    assert_eq!(event["metadata"]["namespace"], "default");
    assert_eq!(
        event["involvedObject"],
        json!({"apiVersion": "v1", "kind": "Node", "namespace": "", "name": "worker01", "uid": "worker01"})
    );
    assert!(event["message"].as_str().expect("text").starts_with("install: "), "{event}");
    rename(&node, "gone", "10-cbr0.conflist");
    let agent = agent.ready();
    agent.eventually("and of its end", || told("NetpathWorks"));
    agent.kill();
    node.netpath(&["uninstall", "--yes"]);
    assert_eq!(names(&node), ["00-multus.conf", "10-cbr0.conflist", "netpath.d"]);
}

#[test]
fn an_older_server_binds_no_token_to_a_node() {
    let node = node();
    let api = FakeApi::new(&node.netns);
    let agent = begin(&node, &api).ready();
    agent.says(&["binds no token to a node"]);
    let asked = api.asked();
    let last = asked.iter().rfind(|it| it.path.ends_with("/token")).expect("asked");
    assert_eq!(
        (&last.body["spec"]["boundObjectRef"], &last.body["spec"]["expirationSeconds"]),
        (&Value::Null, &json!(3600))
    );
    // What it once had stays, and is tried again, where the server gives none.
    agent.kill();
    fs::remove_file(node.root.join(TOKEN)).expect("removed");
    api.fault("POST serviceaccounts", Fault::Status(403), Times::Always);
    let agent = begin(&node, &api);
    unready(&agent, "credentials");
    let conf: PathBuf = node.root.join(CONF);
    assert!(conf.exists(), "pods without networks start");
    api.heal();
    agent.ready();
    assert!(node.root.join(TOKEN).exists());
}

#[test]
fn where_no_cluster_network_is_it_waits() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    fs::create_dir_all(node.root.join("etc/networks")).expect("made");
    let agent = Agent::begin_with(&node, &["--install", "--no-runtime", "--networks", "/etc/networks"]);
    let why = unready(&agent, "there is no configuration of a cluster network");
    assert!(why.contains("/etc/cni/net.d"), "{why}");
    let conf = json!({"cniVersion": "1.0.0", "name": "cbr0", "plugins": [{"type": "bridge"}]});
    node.write(&node.root.join("etc/cni/net.d/10-cbr0.conflist"), &conf);
    agent.ready();
    let conf: Value = serde_json::from_str(&read(&node, CONF).expect("written")).expect("JSON");
    assert_eq!(conf["plugins"][0]["networks"], "/etc/networks");
    assert!(conf["plugins"][0].get("kubeconfig").is_none() && !node.root.join(TOKEN).exists());
}

#[test]
fn what_bounds_the_nics_is_there_before_the_configuration() {
    let node = node();
    fs::remove_file(node.root.masters()).expect("removed");
    let api = FakeApi::new(&node.netns);
    api.configmap("netpath", "masters", &json!({"masters.json": "{"}));
    let agent = begin(&node, &api);
    unready(&agent, "the ConfigMap `masters` cannot be put in force");
    assert!(!node.root.join(CONF).exists());
    api.configmap("netpath", "masters", &json!({"masters.json": r#"{"enp0s8": {"types": ["macvlan"]}}"#}));
    agent.ready();
    assert!(read(&node, "etc/cni/net.d/netpath.d/masters.json").expect("written").contains("types"));
}

#[test]
fn a_runtime_is_asked_where_there_is_one() {
    let node = node();
    let api = FakeApi::new(&node.netns);
    let agent = begin_with(&node, &api, &[]);
    unready(&agent, "no runtime's socket is there to ask");
    assert!(node.root.join(CONF).exists(), "it is written all the same");
}

#[test]
fn what_is_noted_is_noted_again_and_a_wrong_cluster_network_changes_nothing() {
    let node = node();
    let api = FakeApi::new(&node.netns);
    let with = |network: &str| begin_with(&node, &api, &["--no-runtime", "--cluster-network", network]);
    for (network, why) in [
        ("10-cbr0.conflist", "10-cbr0.conflist is no path of a file that is there"),
        ("/etc/cni/net.d", "it is a directory"),
        (
            "/etc/cni/net.d/../net.d/00-netpath.conflist",
            "00-netpath.conflist is no path of a file that is there",
        ),
        ("/none", "/none is no path of a file that is there"),
    ] {
        let agent = with(network);
        unready(&agent, why);
        assert!(!node.root.join(CONF).exists(), "{network}");
        agent.kill();
    }
    let agent = with("/etc/cni/net.d/10-cbr0.conflist").ready();
    // What says what is to be taken back is there again, and credentials are renewed.
    for path in [node.root.installed(), node.root.join(TOKEN)] {
        fs::remove_file(&path).expect("removed");
        agent.eventually("it is there again", || path.exists().then_some(()));
    }
    // Installed again within the pass in which it was uninstalled.
    node.netpath(&["uninstall", "--yes"]);
    fs::remove_file(node.root.uninstalled()).expect("removed");
    agent.eventually("it is installed again", || node.root.join(CONF).exists().then_some(()));
    agent.ready();
}
