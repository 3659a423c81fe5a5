//! The agent on a node without Kubernetes: networks in a directory, metrics and health over HTTP.

#[path = "common/agent.rs"]
mod agent;
#[path = "common/api.rs"]
mod api;
mod common;
#[path = "common/http.rs"]
mod http;

use std::path::{Path, PathBuf};

use agent::{Agent, directory};
use api::{FakeApi, Fault, Times};
use common::enforce::{POD, all_live, enters, hooks, is_enforced, is_well, leaves, private};
use common::node::{GATEWAY, INTERNET, MASTER, Node, Pod, conf};
use common::{PATIENCE, eventually, run};
use netpath::kernel::bpf::Hook;
use netpath::kernel::bpf::attach::Via;
use serde_json::{Value, json};

/// Defines the network that `common::node::conf` describes.
fn define(node: &Node, namespace: &str, zone: &Value) {
    define_conf(node, namespace, &conf(&["10.12.34.200/24"], Some(zone)));
}

/// Defines a network of this configuration.
fn define_conf(node: &Node, namespace: &str, conf: &Value) {
    let nad = json!({
        "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
        "metadata": { "name": conf["name"], "namespace": namespace }, "spec": { "config": conf.to_string() },
    });
    let path = directory(node).join(format!("{namespace}.json"));
    std::fs::create_dir_all(directory(node)).expect("made");
    std::fs::write(path.with_extension("tmp"), nad.to_string()).expect("written");
    std::fs::rename(path.with_extension("tmp"), path).expect("in place");
}

fn open() -> Value {
    let mut zone = private();
    zone["allow"] = json!(["8.0.0.0/8"]);
    zone
}

#[test]
fn a_changed_network_is_put_in_force_for_pods_that_run() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    define(&node, "default", &private());
    let agent = Agent::start(&node);
    let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
    assert!(is_enforced(&node, &pod));
    define(&node, "default", &open());
    agent.eventually("it is open", || leaves(&node, &pod, POD, INTERNET).then_some(()));
    define(&node, "default", &private());
    agent.eventually("it is closed", || (!leaves(&node, &pod, POD, INTERNET)).then_some(()));
    assert!(is_enforced(&node, &pod));
    // One that is wrong changes nothing, and is named.
    let changes = agent.value("netpath_zone_changes_total", &[]);
    define(&node, "default", &json!({ "policy": "privat" }));
    let refused =
        || agent.value("netpath_network_refused", &["namespace=\"default\"", "name=\"privatezone\""]);
    assert_eq!(agent.eventually("it is refused", refused), 1);
    assert!(is_enforced(&node, &pod));
    assert_eq!(agent.value("netpath_zone_changes_total", &[]), changes);
    // One that is gone leaves its zone where it is.
    std::fs::remove_file(directory(&node).join("default.json")).expect("removed");
    agent.eventually("it is forgotten", || refused().is_none().then_some(()));
    assert!(is_enforced(&node, &pod));
    is_well(&node);
}

/// The file of a pod's record, and what it says.
fn record(node: &Node, pod: &Pod) -> (PathBuf, Value) {
    let path = node.root.state().join(format!("{}-net1.json", pod.netns.name()));
    let text = std::fs::read_to_string(&path).expect("its record");
    (path, serde_json::from_str(&text).expect("JSON"))
}

/// Puts another record in the place of one.
fn replace(path: &Path, record: &Value) {
    std::fs::write(path.with_extension("tmp"), record.to_string()).expect("written");
    std::fs::rename(path.with_extension("tmp"), path).expect("in place");
}

#[test]
fn records_come_to_have_what_is_in_force_whoever_is_ended() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    define(&node, "default", &private());
    let agent = Agent::start(&node);
    let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
    let (path, before) = record(&node, &pod);
    define(&node, "default", &open());
    let is_open =
        || (record(&node, &pod).1["zone"]["compiled"]["allow"] == json!(["8.0.0.0/8"])).then_some(());
    agent.eventually("the record has the edit", is_open);
    let (_, edited) = record(&node, &pod);
    let rest = |record: &Value| {
        let mut rest = record.clone();
        rest["zone"] = Value::Null;
        rest
    };
    assert_eq!(rest(&edited), rest(&before), "and is the same otherwise");
    // A mode is not in the digest.
    let mut audited = open();
    audited["mode"] = json!("audit");
    define(&node, "default", &audited);
    let is_audited = || (record(&node, &pod).1["zone"]["compiled"]["mode"] == "audit").then_some(());
    agent.eventually("the record has the mode", is_audited);
    // Whoever is ended after the zone is in force leaves this.
    agent.kill();
    replace(&path, &before);
    let agent = Agent::start(&node);
    agent.eventually("the record is found", is_audited);
    assert_eq!(agent.value("netpath_zone_changes_total", &[]), Some(0), "what is in force stays");
    is_well(&node);
}

#[test]
fn two_networks_of_one_name_are_not_taken_for_each_other() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    define(&node, "one", &private());
    define(&node, "two", &open());
    let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
    let agent = Agent::start(&node);
    // Called without a meta-plugin, nobody knows which of the two it was.
    assert!(is_enforced(&node, &pod));
    assert_eq!(agent.value("netpath_zone_changes_total", &[]), Some(0));
    // Of another pod it is known; what becomes of its network is not the first one's affair.
    let known = node.pod(&["10.12.34.201/24"], Some(&private()));
    let (path, mut value) = record(&node, &known);
    value["nad"] = json!("two/privatezone");
    replace(&path, &value);
    let other = std::net::Ipv4Addr::new(10, 12, 34, 201);
    agent.eventually("its own network is in force", || leaves(&node, &known, other, INTERNET).then_some(()));
    assert!(is_enforced(&node, &pod));
}

#[test]
fn a_record_from_before_the_maps_were_lost_names_nobody_elses_row() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    let mut other = conf(&["10.12.34.201/24"], Some(&private()));
    other["name"] = json!("other");
    let stale = node.pod_with(other.clone());
    // What is down is not seen on the master, and so has no row in the maps that are made anew.
    stale.netns.ip("link set net1 down");
    node.uninstall();
    let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
    let numbers = |pod: &Pod| record(&node, pod).1["endpoint"].clone();
    assert_eq!(numbers(&stale), numbers(&pod), "ids and generations begin anew with the maps");
    other["zone"] = open();
    define_conf(&node, "default", &other);
    let agent = Agent::start(&node);
    agent.passes();
    assert!(is_enforced(&node, &pod), "it has the zone of another pod's network");
    assert_eq!(agent.value("netpath_zone_changes_total", &[]), Some(0));
    for (network, expected) in [("privatezone", true), ("other", false)] {
        let label = format!("network=\"{network}\"");
        let counted = agent.value("netpath_pod_transmit_packets_total", &[&label]);
        assert_eq!(counted.is_some(), expected, "{network}");
    }
}

/// Another master of the node.
const OTHER: &str = "other0";

/// The network that `common::node::conf` describes, on the other master.
fn moved(address: &str, zone: &Value) -> Value {
    let mut conf = conf(&[address], Some(zone));
    conf["master"] = json!(OTHER);
    conf
}

#[test]
fn a_network_that_moves_to_another_master_leaves_its_pods_as_they_are_and_says_so() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    node.netns.ip(&format!("link add {OTHER} type veth peer name other1"));
    node.netns.ip(&format!("link set {OTHER} up"));
    node.write(&node.root.masters(), &json!({ MASTER: {}, OTHER: {} }));
    define(&node, "default", &private());
    let agent = Agent::start(&node);
    let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
    assert!(is_enforced(&node, &pod));
    let refused = || agent.value("netpath_network_refused", &["name=\"privatezone\""]);
    let changes = || agent.value("netpath_zone_changes_total", &[]).expect("counted");
    // Nothing is withheld from who has what the definition says, wherever it lies.
    define_conf(&node, "default", &moved("10.12.34.200/24", &private()));
    agent.passes();
    assert_eq!((refused(), changes()), (None, 0));

    define_conf(&node, "default", &moved("10.12.34.200/24", &open()));
    agent.eventually("it is said", refused);
    agent.says(&["is not in force for all of its pods", "run on", MASTER, OTHER]);
    assert!(is_enforced(&node, &pod), "the zone was written for another wire");
    let in_force = "its zone is in force";
    assert!(!agent.log.lock().expect("ours").contains(in_force), "nothing is in force");
    // Who is made now lies there, and is who an edit is for.
    let new = node.pod_with(moved("10.12.34.201/24", &open()));
    assert_eq!(changes(), 0);
    define_conf(&node, "default", &moved("10.12.34.201/24", &private()));
    agent.eventually("it is in force there", || (changes() == 1).then_some(()));
    agent.says(&[in_force, &format!("master=\"{OTHER}\""), "attachments=1"]);
    agent.eventually("all have the same again", || refused().is_none().then_some(()));
    define_conf(&node, "default", &moved("10.12.34.201/24", &open()));
    agent.eventually("one lies elsewhere", refused);
    // It moves back: now it is the other one that stays behind.
    let mut another = open();
    another["allow"] = json!(["8.0.0.0/8", "172.16.5.0/24"]);
    define(&node, "default", &another);
    agent.eventually("it is open", || leaves(&node, &pod, POD, INTERNET).then_some(()));
    assert_eq!(agent.eventually("the other one is told of", refused), 1);
    node.delete(&new);
    agent.eventually("nobody is left", || refused().is_none().then_some(()));
    // A master that is not here is no matter of other nodes where pods of the network run.
    let mut gone = moved("10.12.34.200/24", &private());
    gone["master"] = json!("gone0");
    define_conf(&node, "default", &gone);
    agent.says(&["cannot be put in force", "no link `gone0`"]);
    assert!(leaves(&node, &pod, POD, INTERNET), "what is in force stays");
    node.delete(&pod);
    agent.eventually("it is other nodes' matter", || refused().is_none().then_some(()));
}

/// Its attachments are policed on whatever the link of the pod lies on, and no link of the node is looked for.
#[test]
fn a_network_whose_master_is_a_link_of_the_pod_is_not_refused() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
    let mut inner = conf(&["10.12.34.201/24"], Some(&private()));
    inner["name"] = json!("inner");
    inner["master"] = json!("net1");
    inner["linkInContainer"] = json!(true);
    let output = node.call_for("net2", "ADD", &pod.netns, &inner);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    define_conf(&node, "others", &inner);
    define(&node, "default", &open());
    let agent = Agent::start(&node);
    agent.eventually("another network is put in force", || leaves(&node, &pod, POD, INTERNET).then_some(()));
    agent.passes();
    assert_eq!(agent.value("netpath_network_refused", &["name=\"inner\""]), None);
}

#[test]
fn what_others_take_off_is_attached_again_three_times() {
    let node = Node::new(&json!({ "unknownSource": "drop", "tc": "clsact" }));
    let agent = Agent::start(&node);
    let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
    for count in 1..=3 {
        node.netns.exec(&format!("tc qdisc del dev {MASTER} clsact"));
        agent.eventually("it is attached again", || {
            let states = hooks(&node);
            (states.len() == 2 && states.iter().all(|state| state.live)).then_some(())
        });
        assert!(is_enforced(&node, &pod));
        let repairs = || agent.value("netpath_repairs_total", &["what=\"egress\""]).filter(|it| *it == count);
        agent.eventually("it is counted", repairs);
    }
    node.netns.exec(&format!("tc qdisc del dev {MASTER} clsact"));
    let unready = || agent.get("/readyz").filter(|(status, _)| *status == 503);
    let (_, why) = agent.eventually("it gives up", unready);
    assert!(why.contains("taken off again and again"), "{why}");
    let status = agent.value("netpath_attach_status", &["hook=\"egress\""]);
    assert_eq!(status, Some(0));
}

#[test]
fn masters_that_appear_later_are_attached_and_what_uninstall_took_off_is_not() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    node.write(&node.root.masters(), &json!({ MASTER: {}, "later0": {} }));
    let agent = Agent::start(&node);
    agent.eventually("the master", || agent.value("netpath_attach_status", &["\"enp0s8\"", "egress"]));
    assert_eq!(agent.value("netpath_attach_status", &["later0"]), None);
    node.netns.ip("link add later0 type veth peer name later1");
    agent.eventually("the later one", || {
        agent.value("netpath_attach_status", &["\"later0\"", "egress"]).filter(|it| *it == 1)
    });
    std::fs::create_dir_all(node.root.disable().parent().expect("a directory")).expect("made");
    std::fs::write(node.root.disable(), "").expect("written");
    node.netpath(&["uninstall", "--yes"]);
    let (_, why) =
        agent.eventually("it says so", || agent.get("/readyz").filter(|(status, _)| *status == 503));
    assert!(why.contains("uninstalled on this node"), "{why}");
    agent.passes();
    assert!(hooks(&node).is_empty() && !node.root.pins().exists());
}

#[test]
fn counters_go_on_over_sandboxes_agents_and_kills() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    let args = |uid: &str| format!("K8S_POD_NAMESPACE=web;K8S_POD_NAME=net-pod;K8S_POD_UID={uid}");
    *node.args.lock().expect("ours") = args("one");
    let mut agent = Agent::start(&node);
    let sent = |agent: &Agent<'_>| agent.value("netpath_pod_transmit_packets_total", &["interface=\"net1\""]);
    let dropped = |agent: &Agent<'_>| {
        agent.value("netpath_pod_dropped_packets_total", &["direction=\"tx\"", "reason=\"zone-deny\""])
    };
    let mut last = (0, 0);
    for round in 0..4 {
        let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
        assert!(leaves(&node, &pod, POD, GATEWAY) && !leaves(&node, &pod, POD, INTERNET));
        assert!(enters(&node, &pod, POD, GATEWAY));
        let now = (sent(&agent).expect("counted"), dropped(&agent).expect("counted"));
        assert!(last.0 < now.0 && last.1 < now.1, "round {round}: {last:?} {now:?}");
        last = now;
        if round % 2 == 0 {
            agent.kill();
            agent = Agent::start(&node);
            let now = (sent(&agent).expect("counted"), dropped(&agent).expect("counted"));
            assert!(last.0 <= now.0 && last.1 <= now.1, "{last:?} {now:?}");
        }
        node.delete(&pod);
        assert_eq!((sent(&agent), dropped(&agent)), (Some(last.0), Some(last.1)), "between two sandboxes");
    }
    // A later pod of that name begins anew, and nobody has the name twice.
    *node.args.lock().expect("ours") = args("two");
    let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
    assert!(leaves(&node, &pod, POD, GATEWAY));
    assert!(sent(&agent).expect("counted") < last.0);
}

#[test]
fn two_agents_take_turns() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    let first = Agent::start(&node);
    let second = Agent::begin(&node);
    second.says(&["another agent runs on this node"]);
    let holder = std::fs::read_to_string(node.root.agent_lock()).expect("readable");
    assert_eq!(holder.trim(), first.process.id().to_string());
    first.kill();
    second.eventually("the second is ready", || second.get("/readyz").filter(|(status, _)| *status == 200));
    let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
    assert!(is_enforced(&node, &pod));
    run(&["kill", "-TERM", &second.process.id().to_string()]);
    let mut second = second;
    eventually(PATIENCE, "it ends when it is told to", || second.process.try_wait().expect("ours"));
    assert!(is_enforced(&node, &pod), "what is in force stays");
    all_live(&node, &json!({}));
}

#[test]
fn what_is_served_is_what_the_kernel_has() {
    let node = Node::new(&json!({ "unknownSource": "drop", "xdp": "native" }));
    let agent = Agent::start(&node);
    let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
    assert!(is_enforced(&node, &pod));
    let counters = node.counters(&pod);
    let labels = ["master=\"enp0s8\"", "network=\"privatezone\"", "interface=\"net1\""];
    for (name, expected) in [
        ("netpath_pod_transmit_packets_total", counters.tx_packets),
        ("netpath_pod_transmit_bytes_total", counters.tx_bytes),
        ("netpath_pod_receive_packets_total", counters.rx_packets),
        ("netpath_pod_receive_bytes_total", counters.rx_bytes),
    ] {
        assert_eq!(agent.value(name, &labels), Some(expected), "{name}");
    }
    for (hook, via) in hooks(&node).iter().map(|state| (state.hook, state.via)) {
        let labels = [format!("hook=\"{}\"", hook.name()), format!("via=\"{}\"", via.name())];
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        assert_eq!(agent.value("netpath_attach_status", &labels), Some(1));
        assert_eq!(hook == Hook::Xdp, via == Via::XdpNative);
    }
    assert_eq!(agent.value("netpath_map_entries", &["map=\"endpoints\""]), Some(1));
    let (status, _) = agent.get("/nowhere").expect("an answer");
    assert_eq!(status, 404);
    agent.eventually("the drop is read", || {
        agent.value("netpath_drop_events_read_total", &[]).filter(|it| *it != 0)
    });
    agent.says(&["netpath::drops", "zone-deny", "net1"]);
    agent.kill();
}

/// The annotation by which the pods of these tests ask for their network.
fn asking() -> Value {
    json!({ "k8s.v1.cni.cncf.io/networks": "privatezone" })
}

#[test]
fn networks_follow_the_api_through_all_that_a_watch_meets() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    node.netns.ip("link set lo up");
    let api = FakeApi::new(&node.netns);
    let network = |zone: &Value| conf(&["10.12.34.200/24"], Some(zone));
    api.nad("default", "privatezone", &network(&private()));
    let agent = Agent::with_api(&node, &api).ready();
    let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
    assert!(is_enforced(&node, &pod));
    let opens = |what: &str| {
        api.nad("default", "privatezone", &network(&open()));
        agent.eventually(what, || leaves(&node, &pod, POD, INTERNET).then_some(()));
    };
    let closes = |what: &str| {
        api.nad("default", "privatezone", &network(&private()));
        agent.eventually(what, || (!leaves(&node, &pod, POD, INTERNET)).then_some(()));
    };
    opens("a change is in force");
    closes("the next one is, too");
    api.forget();
    opens("a version that the server has forgotten");
    // A server that is away, and what changed meanwhile.
    api.fault("GET", Fault::Status(500), Times::Always);
    api.forget();
    let broken = || agent.get("/readyz").filter(|(_, why)| why.contains("cannot be watched"));
    agent.eventually("it says so", broken);
    api.nad("default", "privatezone", &network(&private()));
    assert!(leaves(&node, &pod, POD, INTERNET), "what is in force stays");
    api.heal();
    agent.eventually("it is back", || (!leaves(&node, &pod, POD, INTERNET)).then_some(()));
    agent.eventually("it is ready", || agent.get("/readyz").filter(|(status, _)| *status == 200));
    // What is no network at all stops nothing.
    api.nad("default", "broken", &json!("no object"));
    api.nad("default", "wrong", &json!({ "cniVersion": "9.9", "type": "macvlan", "name": "w" }));
    opens("others go on");
    agent.eventually("the wrong one is named", || {
        agent.value("netpath_network_refused", &["name=\"wrong\""]).filter(|it| *it == 1)
    });
    let refused = || {
        api.events()
            .into_iter()
            .find(|event| event["reason"] == "NetworkRefused" && event["involvedObject"]["name"] == "wrong")
    };
    let event = agent.eventually("its owner is told", refused);
    assert_eq!(event["involvedObject"]["kind"], "NetworkAttachmentDefinition");
    assert!(event["message"].as_str().expect("text").contains("9.9"), "{event}");
}

#[test]
fn the_administrators_word_comes_from_the_cluster() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    node.netns.ip("link set lo up");
    let api = FakeApi::new(&node.netns);
    let agent = Agent::with_api(&node, &api).ready();
    let masters = || std::fs::read_to_string(node.root.masters()).expect("readable");
    let (before, word) = (masters(), r#"{"enp0s8": {"unknownSource": "audit"}}"#);
    api.configmap("netpath", "masters", &json!({ "masters.json": word }));
    agent.eventually("it is written", || (masters() == word).then_some(()));
    api.configmap("netpath", "masters", &json!({ "masters.json": "{\"enp0s8\": {\"unknown\": 1}}" }));
    agent.says(&["masters.json", "unknown"]);
    assert_eq!(masters(), word, "what was good stays");
    api.remove("configmaps/netpath/masters");
    agent.passes();
    assert_eq!(masters(), word, "a file that nobody speaks for any more is the administrator's");
    assert_ne!(before, word);
}

#[test]
fn owners_are_told_of_drops_and_of_what_is_missing() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    node.netns.ip("link set lo up");
    let api = FakeApi::new(&node.netns);
    api.pod("web", "net-pod", "u1", asking());
    api.pod("web", "bare-pod", "u2", asking());
    api.pod("web", "plain-pod", "u3", json!({}));
    for pod in ["bare-pod", "plain-pod"] {
        api.runs("web", pod);
    }
    let agent = Agent::with_api(&node, &api).ready();
    *node.args.lock().expect("ours") = "K8S_POD_NAMESPACE=web;K8S_POD_NAME=net-pod;K8S_POD_UID=u1".to_owned();
    let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
    assert!(!leaves(&node, &pod, POD, INTERNET));
    let event = |reason: &str| {
        let events = api.events();
        let found = events.iter().find(|event| event["reason"] == reason)?;
        Some((found["involvedObject"]["name"].clone(), found["message"].as_str()?.to_owned()))
    };
    let (name, message) = agent.eventually("its owner is told of the drop", || event("PacketsDropped"));
    assert_eq!(name, "net-pod");
    assert!(message.starts_with("net1: 1 packet dropped, the last to 8.8.8.8: zone-deny"), "{message}");
    let (name, message) = agent.eventually("of what is missing", || event("NetworkMissing"));
    assert_eq!(name, "bare-pod");
    assert!(message.contains("was not started by netpath"), "{message}");
    assert_eq!(agent.value("netpath_pods_bare", &[]), Some(1));
    api.remove("pods/web/bare-pod");
    agent.eventually("it is gone", || agent.value("netpath_pods_bare", &[]).filter(|it| *it == 0));
}
