//! What a cluster demands of its meta-plugin: one network's trouble is not the node's, nothing hangs, and every wish of
//! an annotation reaches the plugin that it is for.

#[path = "common/cni.rs"]
mod cni;
mod common;
#[path = "common/meta.rs"]
mod meta;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use cni::{Outcome, zoned};
use common::{NetNs, PATIENCE, eventually, run};
use meta::{MetaSite, NOTHING};
use serde_json::{Value, json};

/// STATUS, and a pod without networks of its own.
#[track_caller]
fn the_node_is_in_service(meta: &MetaSite, what: &str) {
    meta.said();
    let mut conf = meta.conf("", json!({}));
    conf["cniVersion"] = json!("1.1.0");
    meta.call("STATUS", &conf).ok();
    let pod = NetNs::new("bare");
    let conf = meta.conf("", json!({}));
    meta.call("ADD", &conf).id("bare").netns(&pod.path()).ok();
    meta.call("DEL", &conf).id("bare").netns(&pod.path()).ok();
    assert_eq!(meta.said(), ["STATUS first ", "ADD first eth0", "DEL first eth0"], "{what}");
}

#[test]
fn a_networks_trouble_is_not_the_nodes() {
    let meta = MetaSite::new();
    meta.cluster(json!({"cniVersion": "1.1.0", "name": "cbr0", "plugins": [{"type": "first"}]}));
    let mut ipam = cni::pool();
    ipam["rangeEnd"] = json!("10.9.0.100");
    meta.nad("priv", zoned(json!({"ipam": ipam})));
    let conf = meta.conf("priv", json!({}));
    meta.call("ADD", &conf).ok();
    let other = NetNs::new("other");
    let add = |id: &str| meta.call("ADD", &conf).id(id).netns(&other.path());
    add("c2").fails(120, "no IP addresses available");
    the_node_is_in_service(&meta, "the pool is used up");
    meta.call("DEL", &conf).ok();

    run(&["umount", meta.site.root.bpffs().to_str().unwrap()]);
    fs::remove_dir(meta.site.root.bpffs()).unwrap();
    fs::write(meta.site.root.bpffs(), "").unwrap();
    add("c3").fails(130, "web/priv");
    the_node_is_in_service(&meta, "there is no BPF file system");

    meta.site.node.ip("link del eno1");
    add("c4").fails(101, "eno1");
    the_node_is_in_service(&meta, "the master is gone");
}

/// Puts a plugin in the place of one that only writes down.
fn plugin(meta: &MetaSite, path: &str, script: &str) {
    let file = meta.site.root.join(path);
    meta.site.write(&file, &format!("#!/bin/sh\n{script}\n"));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_plugin_that_hangs_and_forks_is_ended_in_time_with_what_it_forked() {
    let meta = MetaSite::new();
    meta.cluster(json!({"cniVersion": "1.1.0", "name": "cbr0", "plugins": [{"type": "first"}]}));
    let pid = meta.site.root.join("pid");
    plugin(&meta, "fake/bin/first", &format!("sleep 1000 & echo $! > {}; wait", pid.display()));
    let mut conf = meta.conf("", json!({}));
    conf["cniVersion"] = json!("1.1.0");
    let start = Instant::now();
    meta.call("STATUS", &conf).fails(11, "the plugin first did not end within");
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    let pid = fs::read_to_string(pid).unwrap();
    let stat = format!("/proc/{}/stat", pid.trim());
    eventually(PATIENCE, "what it forked is gone", || {
        let is_alive = fs::read_to_string(&stat)
            .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z")));
        (!is_alive).then_some(())
    });
}

/// Two plugins have five seconds in all.
#[test]
fn a_plugin_in_this_process_has_no_more_time_than_another() {
    let meta = MetaSite::new();
    plugin(&meta, "fake/bin/hangs", "exec sleep 1000");
    let macvlan = json!({"type": "macvlan", "master": "eno1", "ipam": {"type": "hangs"}});
    meta.cluster(json!({"cniVersion": "1.1.0", "name": "cbr0", "plugins": [macvlan, macvlan]}));
    let mut conf = meta.conf("", json!({}));
    conf["cniVersion"] = json!("1.1.0");
    meta.call("STATUS", &conf).fails(11, "the IPAM plugin hangs did not end within 2.");
}

#[test]
fn every_wish_reaches_the_plugins_that_declare_it() {
    let meta = MetaSite::new();
    let names =
        ["ips", "mac", "infinibandGUID", "portMappings", "bandwidth", "deviceID", "ipam-claim-reference"];
    let all: Value =
        names.iter().map(|name| ((*name).to_owned(), true.into())).collect::<serde_json::Map<_, _>>().into();
    meta.nad(
        "a",
        json!({"cniVersion": "1.0.0", "plugins": [{"type": "one", "capabilities": all},
        {"type": "two", "args": {"cni": {"x": 1, "y": 2}}}]}),
    );
    let asks = json!([
        {"name": "a", "namespace": "web", "interface": "lan0", "ips": ["10.1.0.5/24", "fd00::5"],
         "mac": "02:00:00:00:00:77", "infiniband-guid": "C2:11:22:33:44:55:66:77", "deviceID": "d1",
         "portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "tcp"}],
         "bandwidth": {"ingressRate": 1, "ingressBurst": 2, "egressRate": 3, "egressBurst": 4},
         "cni-args": {"x": 9, "deep": {"z": [1]}}, "example.com/unknown": {"is": "ignored"}},
        {"name": "a", "ipam-claim-reference": "claim"}
    ]);
    meta.call("ADD", &meta.conf(&asks.to_string(), json!({}))).ok();
    let calls = meta.calls();
    assert_eq!(
        calls[1].stdin["runtimeConfig"],
        json!({"ips": ["10.1.0.5/24", "fd00::5"], "mac": "02:00:00:00:00:77", "infinibandGUID": "C2:11:22:33:44:55:66:77",
            "portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "tcp"}],
            "bandwidth": {"ingressRate": 1, "ingressBurst": 2, "egressRate": 3, "egressBurst": 4}, "deviceID": "d1"})
    );
    assert!(calls[2].stdin.get("runtimeConfig").is_none(), "it declares nothing");
    let args = [&calls[1].stdin["args"]["cni"], &calls[2].stdin["args"]["cni"]];
    assert_eq!(args, [&json!({"x": 9, "deep": {"z": [1]}}), &json!({"x": 9, "y": 2, "deep": {"z": [1]}})]);
    assert!(calls[1].var("CNI_ARGS").ends_with(";MAC=02:00:00:00:00:77;IP=10.1.0.5/24,fd00::5"));
    assert_eq!(calls[3].stdin["runtimeConfig"], json!({"ipam-claim-reference": "claim"}));
}

#[test]
fn the_same_network_twice_is_two_attachments() {
    let meta = MetaSite::new();
    meta.nad("a", json!({"cniVersion": "1.0.0", "type": "one"}));
    let conf = meta.conf("a,a", json!({}));
    meta.call("ADD", &conf).ok();
    assert_eq!(meta.said(), ["ADD first eth0", "ADD one net1", "ADD one net2"]);
    let status = meta.status();
    let shown: Vec<_> = (1..3).map(|at| (&status[at]["name"], &status[at]["interface"])).collect();
    assert_eq!(shown, [(&json!("web/a"), &json!("net1")), (&json!("web/a"), &json!("net2"))]);
    meta.call("DEL", &conf).ok();
    assert_eq!(meta.said(), ["DEL one net2", "DEL one net1", "DEL first eth0"]);
    assert_eq!(meta.remembered(), NOTHING);
}

#[test]
fn a_definition_without_a_configuration_names_one_of_the_nodes() {
    let meta = MetaSite::new();
    let nad =
        json!({"kind": "NetworkAttachmentDefinition", "metadata": {"name": "bare", "namespace": "web"}});
    meta.site.write(&meta.site.root.join("nads/bare.json"), &nad.to_string());
    let conf = meta.conf("bare", json!({}));
    let dir = meta.site.root.join("etc/cni/multus/net.d");
    let named = "NetworkAttachmentDefinition web/bare has no `spec.config`, and there is no network configuration `bare`";
    meta.call("ADD", &conf).fails(7, named);
    fs::create_dir_all(&dir).unwrap();
    meta.call("ADD", &conf).fails(7, named);
    meta.site.write(&dir.join("10-broken.conf"), "{");
    let list = json!({"cniVersion": "1.0.0", "name": "bare", "plugins": [{"type": "one"}, {"type": "two"}]});
    meta.site.write(&dir.join("20-bare.conflist"), &list.to_string());
    meta.call("ADD", &conf).ok();
    assert_eq!(meta.said(), ["ADD first eth0", "ADD one net1", "ADD two net1"]);
    assert_eq!(meta.status()[1]["name"], "web/bare");
}

#[test]
fn plugins_are_looked_for_in_the_nodes_directory_first() {
    let meta = MetaSite::new();
    meta.nad("a", json!({"cniVersion": "1.0.0", "type": "one"}));
    plugin(
        &meta,
        "opt/cni/bin/one",
        "echo '{\"cniVersion\": \"1.0.0\", \"ips\": [{\"address\": \"10.7.7.7/24\"}]}'",
    );
    meta.call("ADD", &meta.conf("a", json!({}))).ok();
    assert_eq!(meta.status()[1]["ips"], json!(["10.7.7.7"]));
    let path = meta.calls()[0].var("CNI_PATH").to_owned();
    assert!(path.starts_with(meta.site.root.join("opt/cni/bin:").to_str().unwrap()), "{path}");
    meta.call("ADD", &meta.conf("a", json!({"binDir": "/nothing/here"}))).id("c2").ok();
    assert_eq!(meta.said(), ["ADD first eth0", "ADD first eth0", "ADD one net1"]);
}

#[test]
fn a_pod_that_asks_for_nothing_has_no_status() {
    let meta = MetaSite::new();
    meta.call("ADD", &meta.conf("", json!({}))).ok();
    assert!(!meta.site.root.join("run/netpath/sandboxes/c1.json").exists());
}

#[test]
fn an_add_waits_until_the_first_network_is_ready() {
    let meta = MetaSite::new();
    let conf = meta.conf("", json!({"readinessindicatorfile": "/run/ready"}));
    let running = meta.call("ADD", &conf).spawn(&[]);
    // It reads its configuration, and waits.
    eventually(PATIENCE, "it runs", || {
        fs::read_to_string(format!("/proc/{}/comm", running.id()))
            .ok()
            .filter(|name| name.trim() == "netpath")
    });
    assert_eq!(meta.said(), NOTHING);
    meta.site.write(&meta.site.root.join("run/ready"), "");
    let outcome = Outcome::of(running);
    assert_eq!(outcome.exit, 0, "{outcome:?}");
    assert_eq!(meta.said(), ["ADD first eth0"]);
}

#[test]
fn each_node_gives_addresses_of_its_own_range() {
    let meta = MetaSite::new();
    let range = |start: u8| json!({"rangeStart": format!("10.12.34.{start}"), "rangeEnd": format!("10.12.34.{}", start + 1)});
    let ipam = json!({"type": "host-local", "dataDir": meta.site.root.join("hl"), "subnet": "10.12.34.0/24",
        "perNode": {"worker01": range(200), "worker02": range(210)}});
    let conf = json!({"cniVersion": "1.0.0", "name": "mv", "type": "one", "ipam": ipam});
    meta.nad("mv", conf.clone());
    for (node, start) in [("worker01", 200), ("worker02", 210)] {
        meta.call("ADD", &meta.conf("mv", json!({"nodeName": node}))).ok();
        let calls = meta.calls();
        let asked = &calls.iter().rfind(|call| call.text() == "ADD one net1").unwrap().stdin["ipam"];
        assert_eq!((&asked["rangeStart"], asked.get("perNode")), (&range(start)["rangeStart"], None));
        meta.call("DEL", &meta.conf("mv", json!({"nodeName": node}))).ok();
    }
    // The name of the host is that of a node where none is written.
    for keys in [json!({"nodeName": "worker03"}), json!({})] {
        meta.call("ADD", &meta.conf("mv", keys)).fails(7, "has no range");
    }
}
