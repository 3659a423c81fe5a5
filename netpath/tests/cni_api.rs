//! The meta-plugin before an API server: what it asks, how often, and what the pod is told.

#[path = "common/api.rs"]
mod api;
#[path = "common/api_site.rs"]
mod api_site;
#[path = "common/cni.rs"]
mod cni;
mod common;
#[path = "common/meta.rs"]
mod meta;

use std::fs;

use api::{Fault, Times};
use api_site::ApiSite;
use meta::NOTHING;
use serde_json::json;

const STATUS: &str = "k8s.v1.cni.cncf.io/network-status";

#[test]
fn an_add_asks_twice_or_thrice_and_a_del_never() {
    let site = ApiSite::new();
    let conf = site.conf("a,a,a");
    site.meta.call("ADD", &conf).ok();
    assert_eq!(
        site.api.said(),
        ["GET nads/a cached", "PATCH pods/p/status"],
        "one GET for each distinct network"
    );
    assert_eq!(site.meta.said(), ["ADD first eth0", "ADD one net1", "ADD one net2", "ADD one net3"]);
    site.meta.call("CHECK", &conf).ok();
    site.meta.call("DEL", &conf).ok();
    assert_eq!(site.api.said(), NOTHING);
    site.meta.said();

    site.meta.call("ADD", &site.mute()).ok();
    assert_eq!(site.api.said(), ["GET pods/p", "GET nads/a cached", "PATCH pods/p/status"]);
    assert_eq!(site.meta.said(), ["ADD first eth0", "ADD one net1"]);
    site.meta.call("DEL", &site.mute()).ok();
    assert_eq!(site.api.said(), NOTHING);
    assert_eq!(site.meta.remembered(), NOTHING);
}

#[test]
fn network_status_is_multuss_and_nothing_else_of_the_pod_changes() {
    let site = ApiSite::new();
    site.meta.call("ADD", &site.conf("a")).ok();
    let expected = r#"[{
    "name": "cbr0",
    "interface": "eth0",
    "ips": [
        "10.8.0.0"
    ],
    "mac": "02:00:00:00:00:00",
    "default": true,
    "dns": {}
},{
    "name": "web/a",
    "interface": "net1",
    "ips": [
        "10.8.0.1"
    ],
    "mac": "02:00:00:00:00:01",
    "dns": {}
}]"#;
    assert_eq!(site.api.status_text("web", "p").unwrap(), expected);
    assert_eq!(site.api.object("pods/web/p").unwrap()["metadata"]["annotations"]["kept"], "x");
    let patch = site.api.asked().into_iter().find(|it| it.method == "PATCH").unwrap();
    assert_eq!(patch.headers["content-type"], "application/merge-patch+json");
    assert_eq!(patch.body, json!({"metadata": {"uid": "u1", "annotations": {STATUS: expected}}}));
}

#[test]
fn a_pod_that_asks_for_nothing_needs_no_api() {
    let site = ApiSite::new();
    // Neither a server, nor a readable kubeconfig.
    let path = site.meta.site.root.join("etc/kubeconfig");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let conf = site.conf("");
    site.meta.call("ADD", &conf).ok();
    site.meta.call("CHECK", &conf).ok();
    site.meta.call("DEL", &conf).ok();
    site.meta.call("DEL", &conf).ok();
    assert_eq!(site.meta.said(), ["ADD first eth0", "CHECK first eth0", "DEL first eth0", "DEL first eth0"]);
    assert_eq!(site.api.said(), NOTHING);
    site.meta.call("ADD", &site.conf("a")).id("c2").fails(5, "cannot read the kubeconfig");
    assert_eq!(site.meta.said(), NOTHING);
}

#[test]
fn a_first_network_that_only_the_api_knows_keeps_no_pod_from_ending_and_no_node_from_serving() {
    let site = ApiSite::new();
    let mut network = api_site::plugin("first");
    network["cniVersion"] = json!("1.1.0");
    site.api.nad("infra", "first", &network);
    let mut conf = site.conf("");
    conf["cniVersion"] = json!("1.1.0");
    conf["clusterNetwork"] = json!("infra/first");
    // Nobody knows it yet, and nobody is asked.
    site.meta.call("STATUS", &conf).ok();
    assert_eq!((site.api.said(), site.meta.said()), (vec![], vec![]));
    site.meta.call("ADD", &conf).ok();
    assert_eq!(site.api.said(), ["GET nads/first cached"]);
    // The server is gone. DEL comes once more than there is anything to end.
    site.kubeconfig("none");
    site.meta.call("STATUS", &conf).ok();
    site.meta.call("DEL", &conf).ok();
    site.meta.call("DEL", &conf).ok();
    assert_eq!(site.api.said(), NOTHING);
    assert_eq!(site.meta.said(), ["ADD first eth0", "DEL first eth0", "DEL first eth0"]);
    assert_eq!(site.meta.remembered(), ["var/lib/netpath/v1/first-networks/cluster.json"]);
}

#[test]
fn a_network_that_is_missing_is_looked_for_behind_the_cache() {
    let site = ApiSite::new();
    site.api.uncached("web", "a");
    site.meta.call("ADD", &site.conf("a")).ok();
    assert_eq!(site.api.said(), ["GET nads/a cached", "GET nads/a", "PATCH pods/p/status"]);
    site.meta.call("DEL", &site.conf("a")).ok();
    site.meta.said();

    let text = "cannot find a network-attachment-definition (none) in namespace (web)";
    site.meta.call("ADD", &site.conf("none")).fails(7, text);
    assert_eq!(site.api.said(), ["GET nads/none cached", "GET nads/none"]);
    assert_eq!(site.meta.said(), NOTHING);
    let event = site.api.events().into_iter().find(|it| it["reason"] == "NoNetworkFound").unwrap();
    assert_eq!(
        (&event["type"], &event["message"], &event["count"]),
        (&json!("Warning"), &json!(text), &json!(1))
    );
    // What is said again is the same event.
    site.meta.call("ADD", &site.conf("none")).id("c2").fails(7, text);
    let event = site.api.events().into_iter().find(|it| it["reason"] == "NoNetworkFound").unwrap();
    assert_eq!(event["count"], 2);
    // What cannot be a name is no part of a path.
    site.meta.call("ADD", &site.conf(r#"[{"name": "../../secrets/x"}]"#)).fails(7, "(../../secrets/x)");
    assert!(!site.api.said().iter().any(|it| it.contains("secrets")));
}

#[test]
fn a_pod_that_is_gone_or_another_gets_nothing() {
    let site = ApiSite::new();
    site.api.pod("web", "p", "u2", json!({"k8s.v1.cni.cncf.io/networks": "a"}));
    let undone = ["ADD first eth0", "ADD one net1", "DEL one net1", "DEL first eth0"];
    site.meta.call("ADD", &site.conf("a")).fails(141, "gone from the cluster, or was replaced");
    assert_eq!(site.meta.said(), undone);
    assert_eq!(site.api.status_text("web", "p"), None);
    site.meta.call("ADD", &site.mute()).fails(141, "the runtime attaches UID u1");
    assert_eq!(site.meta.said(), NOTHING);
    let gone = "IgnoreUnknown=1;K8S_POD_NAMESPACE=web;K8S_POD_NAME=gone;K8S_POD_UID=u9";
    site.meta.call("ADD", &site.conf("a")).args(gone).fails(141, "gone from the cluster");
    assert_eq!(site.meta.said(), undone);
    site.meta.call("ADD", &site.mute()).args(gone).fails(141, "not known to the cluster");
    assert_eq!(site.meta.said(), NOTHING);
    assert_eq!(site.meta.remembered(), NOTHING);
}

#[test]
fn a_static_pod_is_known_by_its_mirror() {
    let site = ApiSite::new();
    let mut conf = site.conf("a");
    let annotations = &mut conf["runtimeConfig"]["io.kubernetes.cri.pod-annotations"];
    annotations["kubernetes.io/config.source"] = json!("file");
    annotations["kubernetes.io/config.hash"] = json!("h1");
    let mirror =
        |hash: &str| site.api.pod("web", "p", "mirrors-own", json!({"kubernetes.io/config.mirror": hash}));
    mirror("h1");
    site.meta.call("ADD", &conf).ok();
    assert!(site.api.status_text("web", "p").is_some());
    site.meta.call("DEL", &conf).ok();
    // That of another manifest is left alone, and the pod runs: its status waits.
    mirror("h0");
    site.meta.call("ADD", &conf).ok();
    assert_eq!(site.api.status_text("web", "p"), None);
    assert!(site.record()["pending_status"].as_str().unwrap().contains("web/a"));
}

#[test]
fn an_event_is_one_that_describe_shows() {
    let site = ApiSite::new();
    site.meta.call("ADD", &site.conf("a")).ok();
    let events = site.api.events();
    let added: Vec<_> = events.iter().filter(|it| it["reason"] == "AddedInterface").collect();
    assert_eq!(added.len(), 2);
    let event = added.iter().find(|it| it["message"] == "Add net1 [10.8.0.1/24] from web/a").unwrap();
    assert_eq!(
        event["involvedObject"],
        json!({"apiVersion": "v1", "kind": "Pod", "namespace": "web", "name": "p", "uid": "u1"})
    );
    assert_eq!((&event["type"], &event["source"]["component"]), (&json!("Normal"), &json!("netpath")));
    assert!(site.record().get("pending_events").is_none());
    assert_eq!(site.api.asked().iter().filter(|it| it.text() == "POST events").count(), 2);
}

#[test]
fn where_an_agent_runs_events_are_left_to_it() {
    let site = ApiSite::new();
    let root = &site.meta.site.root;
    site.meta.site.write(&root.agent_lock(), "");
    let lock = fs::File::open(root.agent_lock()).unwrap();
    let lock = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusive).unwrap();
    site.meta.call("ADD", &site.conf("a")).ok();
    assert!(site.api.events().is_empty());
    let pending = site.record()["pending_events"].clone();
    assert_eq!(pending[1]["message"], "Add net1 [10.8.0.1/24] from web/a");
    site.meta.call("DEL", &site.conf("a")).ok();
    drop(lock);
    site.meta.call("ADD", &site.conf("a")).ok();
    assert_eq!(site.api.events().len(), 2);
}

/// A process that is ended with the test.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_was_left_to_the_agent_is_told_and_written_by_it() {
    let site = ApiSite::new();
    let root = &site.meta.site.root;
    let kubeconfig = root.join("etc/kubeconfig");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_netpath"));
    command.env("NETPATH_ROOT", root.path()).args([
        "agent",
        "--node",
        "worker01",
        "--listen",
        "127.0.0.1:9639",
    ]);
    command.arg("--kubeconfig").arg(&kubeconfig).args(["--plugin-kubeconfig", "/etc/kubeconfig"]);
    let agent = Ended(site.meta.site.node.within(|| command.spawn()).unwrap());
    let is_held = || netpath::flock::is_held(&root.agent_lock()).unwrap().then_some(());
    common::eventually(common::PATIENCE, "it runs", is_held);
    // Of a network that is not policed the pod starts without its status.
    site.api.fault("PATCH", Fault::Status(403), Times::Always);
    site.meta.call("ADD", &site.conf("a")).ok();
    common::eventually(common::PATIENCE, "events are posted", || {
        (site.api.events().len() == 2).then_some(())
    });
    assert!(site.api.status_text("web", "p").is_none());
    site.api.heal();
    let status =
        common::eventually(common::PATIENCE, "the status is written", || site.api.status_text("web", "p"));
    assert!(status.contains("web/a"), "{status}");
    common::eventually(common::PATIENCE, "nothing is left to do", || {
        let record = site.record();
        (record.get("pending_status").is_none() && record.get("pending_events").is_none()).then_some(())
    });
    site.meta.call("DEL", &site.conf("a")).ok();
    assert!(!root.state().join("sandboxes/c1.json").exists());
    drop(agent);
}

#[test]
fn events_cost_a_pod_nothing() {
    let site = ApiSite::new();
    site.api.fault("POST events", Fault::Slow(std::time::Duration::from_secs(30)), Times::Always);
    let start = std::time::Instant::now();
    site.meta.call("ADD", &site.conf("a")).ok();
    assert!(start.elapsed() < std::time::Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(netpath::state::Tally::lost_events(&site.meta.site.root).read(), 2);
    site.api.heal();
    site.api.fault("POST events", Fault::Status(403), Times::Always);
    site.meta.call("ADD", &site.conf("a")).id("c2").ok();
    assert_eq!(netpath::state::Tally::lost_events(&site.meta.site.root).read(), 4);
}
