//! What an upgrade makes of zones: they read the same before and after, whether they are copied or made of records.

mod common;

use aya::maps::{Array, Map, MapData};
use common::node::{Node, Pod};
use netpath::kernel::bpf::maps::pin_of;
use netpath_ebpf::abi::ABI_VERSION;
use serde_json::{Value, json};

/// Zones with ports, with more prefixes than fit inline, in both families, and one that only reports.
fn zones() -> [(&'static str, Value); 3] {
    let many: Vec<String> = (0..20).map(|i| format!("172.16.{i}.0/24")).collect();
    let many6: Vec<String> = (0..20).map(|i| format!("fd00:{i:x}::/64")).collect();
    let both = [many, many6].concat();
    [
        (
            "10.12.34.200/24",
            json!({ "policy": "private", "allow": [
            { "cidr": "172.16.5.0/24", "ports": ["tcp/443", "udp/1000-2000"] }, "192.0.2.7"
        ], "deny": [{ "cidr": "10.12.34.0/24", "ports": ["tcp/22"] }] }),
        ),
        ("10.12.34.201/24", json!({ "policy": "private", "allow": both, "onDeny": "reject" })),
        ("10.12.34.202/24", json!({ "policy": "private", "mode": "audit", "ingress": "any" })),
    ]
}

/// What is enforced, without the numbers of rows and of generations.
#[track_caller]
fn read(node: &Node) -> Vec<Value> {
    let shown: Value = serde_json::from_str(&node.netpath(&["zones", "-o", "json"])).expect("JSON");
    let mut zones = shown["zones"].as_array().expect("a list").clone();
    for zone in &mut zones {
        (zone["id"], zone["generation"]) = (Value::Null, Value::Null);
    }
    zones.sort_by_key(|zone| zone["digest"].to_string());
    zones
}

/// Rows of attachments, without the number of their zone.
#[track_caller]
fn rows(node: &Node, pods: &[Pod]) -> Vec<netpath_ebpf::abi::Endpoint> {
    pods.iter().map(|pod| netpath_ebpf::abi::Endpoint { zone: 0, ..node.row(pod) }).collect()
}

#[test]
fn zones_with_ports_and_long_lists_read_the_same_before_and_after() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    let pods = zones().map(|(address, zone)| node.pod(&[address], Some(&zone)));
    let (zones, before) = (read(&node), rows(&node, &pods));
    assert_eq!(zones.len(), 3, "{zones:?}");
    let pins = node.root.pins();
    for round in 0..4 {
        if round % 2 == 0 {
            // The tree of an older version, whose zones this one does not read.
            let older = pins.parent().expect("a parent").join(format!("v{}", ABI_VERSION - 1));
            std::fs::rename(&pins, &older).expect("renamed");
            let data = MapData::from_pin(pin_of(&older, "meta")).expect("pinned");
            let mut meta: Array<_, [u32; 6]> = Map::Array(data).try_into().expect("six words");
            let mut words = meta.get(&0, 0).expect("readable");
            words[0] = ABI_VERSION - 1;
            meta.set(0, words, 0).expect("written");
        } else {
            node.write(&node.root.settings(), &json!({ "zones": 10 + round }));
        }
        let said = node.netpath(&["upgrade"]);
        assert!(said.contains("3 attachments carried over"), "{said}");
        assert_eq!((read(&node), rows(&node, &pods)), (zones.clone(), before.clone()), "round {round}");
    }
    for pod in &pods {
        node.delete(pod);
    }
    assert!(node.maps().endpoints().expect("readable").is_empty());
}
