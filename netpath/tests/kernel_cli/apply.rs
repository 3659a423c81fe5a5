//! `netpath apply`: a changed network for pods that run.

use std::fs;

use serde_json::{Value, json};

use super::{
    common::veth,
    lab::{GATEWAY, Lab, OUTSIDE, conf, private},
};

#[test]
fn a_changed_network_reaches_a_pod_that_runs() {
    let lab = Lab::new(Some(json!({ "enp0s8": {
        "zone": { "local": ["10.12.34.0/24"], "allow": ["8.8.8.8/32", "10.0.0.0/8"], "mode": "audit" },
    } })));
    lab.cni("ADD", &conf(&private()));
    assert!(!lab.ping(OUTSIDE));

    let answer = lab.apply(&json!({ "policy": "private", "allow": ["8.8.8.8/32"] }));
    assert_eq!(answer.code, 0, "{answer:?}");
    answer.says("privatezone on enp0s8: generation 2 in force for 1 attachment, enforce\n    + 8.8.8.8/32");
    assert!(lab.ping(OUTSIDE));
    lab.apply(&json!({ "policy": "private", "allow": ["8.8.8.8/32"] }))
        .says("generation 2 was in force already for 1 attachment, enforce");

    // The record has it as the last good one.
    let record = fs::read_to_string(lab.root.path().join("var/lib/netpath/v1/c1-net1.json")).expect("record");
    let record: Value = serde_json::from_str(&record).expect("JSON");
    assert_eq!(record["zone"]["compiled"]["allow"], json!(["8.8.8.8/32"]));
    assert_eq!(record["zone"]["digest"], lab.json("zones")["zones"][0]["digest"]);
    assert_eq!(record["conf"]["zone"], private(), "how it ends does not change");

    for (zone, why) in [
        (json!({ "policy": "private", "alow": ["8.8.8.8/32"] }), "`zone.alow` is not a known key"),
        (json!({ "policy": "private", "allow": ["9.9.9.9/32"] }), "`zone.allow` has `9.9.9.9/32`, the bound"),
    ] {
        let answer = lab.apply(&zone);
        assert_eq!(answer.code, 1, "{answer:?}");
        answer.complains("privatezone is refused, generation 2 of its zone stays in force: ");
        answer.complains(why);
        assert!(lab.ping(OUTSIDE), "the last good zone stays");
    }

    lab.apply(&json!({ "policy": "private", "mode": "audit" }))
        .says("generation 3 in force for 1 attachment, audit");
    assert!(lab.ping(OUTSIDE), "audit lets it pass");
    let pods = lab.json("pods");
    assert_eq!(pods["pods"][0]["mode"], "audit");
    assert!(pods["pods"][0]["tx_audited"].as_u64().is_some_and(|count| 1 <= count), "{pods}");
    lab.apply(&private()).says("enforce for 1 attachment, generation 3 as before");
    assert!(!lab.ping(OUTSIDE));

    // More prefixes than a slot holds go into the trie, and are read back from it.
    let many: Vec<String> = (0..12).map(|n| format!("10.99.{n}.0/24")).collect();
    let answer = lab.apply(&json!({ "policy": "private", "allow": many }));
    assert_eq!(answer.code, 0, "{answer:?}");
    let zones = lab.json("zones");
    assert_eq!(zones["zones"][0]["trie_v4"], true, "{zones}");
    assert_eq!(zones["zones"][0]["prefixes"].as_array().map(Vec::len), Some(13), "{zones}");
    assert!(lab.ping(GATEWAY));
}

#[test]
fn a_zone_comes_to_a_pod_without_one_and_leaves_it() {
    let lab = Lab::new(Some(json!({ "enp0s8": {} })));
    lab.cni("ADD", &conf(&Value::Null));
    let key = "net/ipv4/conf/net1/drop_unicast_in_l2_multicast";
    assert!(lab.ping(OUTSIDE));
    assert_eq!(lab.pod.sysctl(key), "0");
    lab.apply(&private()).says("generation 1 in force for 1 attachment, enforce");
    assert!(!lab.ping(OUTSIDE));
    assert_eq!(lab.pod.sysctl(key), "1");
    lab.apply(&Value::Null).says("no zone; 1 attachment counted and not policed from now on");
    assert!(lab.ping(OUTSIDE));
    assert_eq!(lab.json("pods")["pods"][0]["zone"], Value::Null);
}

/// Prefixes of the zone that an attachment has.
fn prefixes(lab: &Lab, attachment: &str) -> Vec<String> {
    let zones = lab.json("zones");
    let zones = zones["zones"].as_array().expect("zones").iter();
    let has = |zone: &&Value| {
        zone["attachments"].as_array().is_some_and(|names| names.contains(&json!(attachment)))
    };
    let zone = zones.clone().find(has).unwrap_or_else(|| panic!("{attachment} has no zone: {zones:?}"));
    let prefixes = zone["prefixes"].as_array().expect("prefixes").iter();
    prefixes.map(|prefix| prefix["prefix"].as_str().expect("text").to_owned()).collect()
}

#[test]
fn pods_of_different_age_come_to_the_same_zone() {
    let lab = Lab::new(Some(json!({ "enp0s8": {} })));
    lab.cni("ADD", &conf(&private()));
    lab.cni_as("ADD", "net2", &conf(&json!({ "allow": ["172.16.5.0/24"] })));
    assert_eq!(prefixes(&lab, "default/net-pod/net1"), ["10.12.34.0/24"]);
    assert_eq!(prefixes(&lab, "default/net-pod/net2"), ["10.12.34.0/24", "172.16.5.0/24"]);

    let answer = lab.apply(&json!({ "allow": ["172.16.6.0/24"] }));
    assert_eq!(answer.code, 0, "{answer:?}");
    answer.says("in force for 2 attachments, enforce");
    for attachment in ["default/net-pod/net1", "default/net-pod/net2"] {
        assert_eq!(prefixes(&lab, attachment), ["10.12.34.0/24", "172.16.6.0/24"], "{attachment}");
    }
}

#[test]
fn a_network_of_the_same_name_on_another_master_is_left_alone() {
    let lab = Lab::new(Some(json!({ "enp0s8": {}, "enp0s9": {} })));
    veth(&lab.node, "enp0s9", &lab.gateway, "sw9");
    lab.cni("ADD", &conf(&private()));
    let mut other = conf(&private());
    other["master"] = json!("enp0s9");
    lab.cni_as("ADD", "net2", &other);
    let zones = lab.json("zones");
    assert_eq!(zones["zones"].as_array().map(Vec::len), Some(1), "one row for equal zones: {zones}");

    let answer = lab.apply(&json!({ "allow": ["172.16.6.0/24"] }));
    assert_eq!(answer.code, 0, "{answer:?}");
    answer.says("in force for 1 attachment, enforce\n    + 172.16.6.0/24  to and from");
    assert_eq!(prefixes(&lab, "default/net-pod/net1"), ["10.12.34.0/24", "172.16.6.0/24"]);
    assert_eq!(prefixes(&lab, "default/net-pod/net2"), ["10.12.34.0/24"]);
}

#[test]
fn who_lies_on_another_master_than_the_network_now_is_named() {
    let lab = Lab::new(Some(json!({ "enp0s8": {}, "enp0s9": {} })));
    veth(&lab.node, "enp0s9", &lab.gateway, "sw9");
    lab.cni("ADD", &conf(&private()));
    let mut moved = conf(&json!({ "allow": ["172.16.6.0/24"] }));
    moved["master"] = json!("enp0s9");
    let file = lab.root.path().join("moved.json");
    fs::write(&file, moved.to_string()).expect("written");
    let apply = || lab.netpath(&["apply", file.to_str().expect("UTF-8")]);
    let left = "    1 attachment of a network of this name lies on another master, and is left alone";
    let answer = apply();
    answer.says("privatezone: valid, and enp0s9 is not under police yet: no pod runs that it applies to\n");
    answer.says(left);
    assert_eq!(lab.netpath(&["attach", "enp0s9"]).code, 0);
    let answer = apply();
    answer.says("privatezone on enp0s9: valid; no attachment of it runs there, the next one gets it\n");
    answer.says(left);
    assert_eq!(prefixes(&lab, "default/net-pod/net1"), ["10.12.34.0/24"]);
    lab.cni("DEL", &conf(&private()));
    let answer = apply();
    assert!(!answer.stdout.contains("another master"), "{answer:?}");
}
