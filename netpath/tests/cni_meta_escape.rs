//! Networks of a tenant who wants a policed master, or the node's files, by a configuration that the executed plugin
//! reads in another way than we do.

#[path = "common/cni.rs"]
mod cni;
mod common;
#[path = "common/meta.rs"]
mod meta;

use meta::MetaSite;
use serde_json::{Value, json};

/// The cluster network and `eno1` are the administrator's; pods are given what plugins of others make.
#[track_caller]
fn site() -> MetaSite {
    let meta = MetaSite::new();
    meta.site.second_master();
    meta.site.masters(r#"{"eno1": {"zone": {"local": ["10.9.0.0/24"]}, "types": ["macvlan"]}}"#);
    meta
}

/// The network `text` is refused for the sake of `eno1`, and nobody was executed for it.
#[track_caller]
fn refused(text: &str) {
    let meta = site();
    meta.nad_text("sly", text);
    let (pod, node) = (meta.links(), links(&meta));
    meta.call("ADD", &meta.conf("sly", json!({}))).fails(105, "masters.json allows no attachment of type");
    assert_eq!((meta.links(), links(&meta)), (pod, node), "{text}");
}

fn links(meta: &MetaSite) -> Vec<String> {
    let links: Value = serde_json::from_str(&meta.site.node.ip("-j link show")).unwrap();
    links.as_array().unwrap().iter().map(|link| link["ifname"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_plugin_that_does_not_know_the_containers_links_takes_the_nodes() {
    refused(
        r#"{"cniVersion": "1.0.0", "type": "ipvlan", "master": "eno1", "linkInContainer": true, "ipam": {}}"#,
    );
    refused(r#"{"cniVersion": "1.0.0", "type": "host-device", "device": "eno1", "linkInContainer": true}"#);
}

#[test]
fn letters_that_go_takes_for_others_name_the_master_too() {
    refused(
        "{\"cniVersion\": \"1.0.0\", \"type\": \"ipvlan\", \"master\": \"eno2\", \"ma\u{17f}ter\": \"eno1\", \"ipam\": {}}",
    );
}

#[test]
fn a_device_is_named_by_its_hardware_address_too() {
    let meta = site();
    let eno1: Value = serde_json::from_str(&meta.site.node.ip("-j link show eno1")).unwrap();
    let mac = eno1[0]["address"].as_str().unwrap().to_owned();
    meta.nad("sly", json!({"cniVersion": "1.0.0", "type": "host-device", "hwaddr": mac.to_uppercase()}));
    let before = links(&meta);
    meta.call("ADD", &meta.conf("sly", json!({}))).fails(105, "masters.json allows no attachment of type");
    assert_eq!(links(&meta), before);
}

#[test]
fn a_master_is_found_however_deep_it_stands() {
    refused(
        r#"{"cniVersion": "1.0.0", "type": "one", "delegate": {"type": "ipvlan", "master": "eno1", "ipam": {}}}"#,
    );
    refused(r#"{"cniVersion": "1.0.0", "type": "one", "links": [{"name": "eno1"}]}"#);
}

/// The IPAM is given the whole configuration, and executed by whom it likes.
#[test]
fn an_ipam_is_held_against_what_is_allowed_as_any_plugin() {
    let meta = site();
    let before = (meta.links(), links(&meta));
    let conf = |kind: &str, ipam: Value| json!({"cniVersion": "1.0.0", "type": kind, "master": "eno2", "device": "eno1", "ipam": ipam});
    for kind in ["macvlan", "one"] {
        for (ipam, code, text) in [
            (json!({"type": "host-device"}), 7, "gives no addresses"),
            (json!({"TYPE": "macvlan"}), 7, "gives no addresses"),
            (json!({"type": "two"}), 7, "ipam.type `two`: `allowedTypes`"),
            (json!({"type": "three"}), 105, "masters.json allows no attachment of type"),
        ] {
            meta.nad("sly", conf(kind, ipam.clone()));
            let keys = json!({"allowedTypes": ["macvlan", "one", "three"]});
            meta.call("ADD", &meta.conf("sly", keys)).fails(code, text);
            assert_eq!((meta.links(), links(&meta)), before, "{kind} {ipam}");
            assert!(meta.said().is_empty(), "{kind} {ipam}");
        }
    }
    meta.nad(
        "sly",
        json!({"cniVersion": "1.0.0", "type": "one", "delegate": conf("x", json!({"type": "vlan"}))}),
    );
    meta.call("ADD", &meta.conf("sly", json!({}))).fails(7, "delegate.ipam.type `vlan`");
}

/// Go merges what is given twice into one, and would find in the first what we looked for in the last.
#[test]
fn what_was_looked_at_is_what_is_executed() {
    let meta = site();
    meta.nad_text(
        "sly",
        "{\"cniVersion\": \"1.0.0\", \"type\": \"one\", \"IPAM\": {\"dataDir\": \"/etc\", \"type\": \"host-local\"},
          \"ipam\": {\"type\": \"host-local\", \"dataDir\": \"/a\", \"DATADIR\": \"/var/lib/cni/x\"}}",
    );
    meta.call("ADD", &meta.conf("sly", json!({}))).ok();
    let one = meta.calls().into_iter().find(|call| call.plugin == "one").unwrap();
    let keys: Vec<_> =
        one.stdin.as_object().unwrap().keys().filter(|key| key.eq_ignore_ascii_case("ipam")).collect();
    assert_eq!(keys, ["ipam"]);
    assert_eq!(one.stdin["ipam"], json!({"type": "host-local", "DATADIR": "/var/lib/cni/x"}));
}

#[test]
fn a_default_network_is_no_way_around_isolation() {
    let meta = site();
    let one = json!({"cniVersion": "1.0.0", "type": "one"});
    meta.nad_in("infra", "theirs", one.clone());
    meta.nad_in("kube-system", "everybodys", one.clone());
    meta.nad("own", one);
    let conf = |default: &str| {
        let mut conf = meta.conf("", json!({"namespaceIsolation": true}));
        conf["runtimeConfig"]["io.kubernetes.cri.pod-annotations"]["v1.multus-cni.io/default-network"] =
            json!(default);
        conf
    };
    meta.call("ADD", &conf("infra/theirs")).fails(105, "refers to target namespace infra");
    assert!(meta.said().is_empty());
    for default in ["everybodys", "web/own"] {
        meta.call("ADD", &conf(default)).ok();
        meta.call("DEL", &conf(default)).ok();
        assert_eq!(meta.said(), ["ADD one eth0", "DEL one eth0"], "{default}");
    }
}
