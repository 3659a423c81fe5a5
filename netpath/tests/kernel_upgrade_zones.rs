//! What an upgrade makes of zones: they read the same before and after, whether they are copied or made of records, and
//! what their entries have decided goes on.

mod common;

use std::collections::BTreeMap;
use std::fs::File;
use std::net::Ipv4Addr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use aya::maps::{Array, Map, MapData};
use common::enforce::{POD, is_well, leaves};
use common::node::{GATEWAY, INTERNET, Node, Pod, conf};
use netpath::kernel::bpf::{Hook, maps::pin_of};
use netpath::kernel::netlink::Netlink;
use netpath::police::{self, Step};
use netpath::state::Lock;
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

/// What is enforced, without the numbers of rows and of generations, and without what was counted.
#[track_caller]
fn read(node: &Node) -> Vec<Value> {
    let shown: Value = serde_json::from_str(&node.netpath(&["zones", "-o", "json"])).expect("JSON");
    let mut zones = shown["zones"].as_array().expect("a list").clone();
    for zone in &mut zones {
        (zone["id"], zone["generation"]) = (Value::Null, Value::Null);
        for entry in zone["entries"].as_array_mut().expect("a list") {
            for key in ["tx_packets", "tx_bytes", "rx_packets", "rx_bytes"] {
                assert!(entry[key].is_u64(), "{entry}");
                entry[key] = Value::Null;
            }
        }
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

/// Packets sent by each entry of the one zone, as it is written.
#[track_caller]
fn sent(node: &Node) -> BTreeMap<String, u64> {
    let shown: Value = serde_json::from_str(&node.netpath(&["zones", "-o", "json"])).expect("JSON");
    let zones = shown["zones"].as_array().expect("a list");
    let [zone] = &zones[..] else { panic!("one zone: {shown}") };
    let entries = zone["entries"].as_array().expect("a list");
    let one = |entry: &Value| {
        let name = format!("{} {}", entry["kind"], entry["prefix"]).replace('"', "");
        (name, entry["tx_packets"].as_u64().expect("a number"))
    };
    entries.iter().map(one).collect()
}

/// Puts a zone with these entries of `allow` in force for pods that run.
#[track_caller]
fn apply(node: &Node, allow: &[&str]) {
    let path = node.root.join("network.json");
    let zone = json!({ "policy": "private", "allow": allow });
    node.write(&path, &conf(&["10.12.34.200/24"], Some(&zone)));
    node.netpath(&["apply", path.to_str().expect("text")]);
}

/// Two datagrams to each, which pass, and one to the internet, which does not.
#[track_caller]
fn send(node: &Node, pod: &Pod) {
    for to in [GATEWAY, Ipv4Addr::new(172, 16, 5, 1)] {
        assert!(leaves(node, pod, POD, to) && leaves(node, pod, POD, to));
    }
    assert!(!leaves(node, pod, POD, INTERNET));
}

/// Ends an upgrade when it has replaced one hook of two; the caller holds the lock.
#[track_caller]
fn killed_between_hooks(node: &Node) {
    let is_over = AtomicBool::new(false);
    let ended = std::thread::scope(|scope| {
        // Who waits for the lock waits for one holder 2 s, and an emulated CPU may need more for a step: by this it is
        // another holder each time.
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                File::open(node.root.lock()).expect("held").set_modified(SystemTime::now()).expect("touched");
                std::thread::park_timeout(Duration::from_millis(100));
            }
        });
        let ended = catch_unwind(AssertUnwindSafe(|| {
            node.netns.within(|| {
                let mut netlink = Netlink::open().expect("netlink");
                police::upgrade(&node.root, &mut netlink, false, &mut |step| {
                    assert!(step != Step::Replaced(1, Hook::Egress), "killed");
                    Ok(())
                })
            })
        }));
        is_over.store(true, Ordering::Relaxed);
        ended
    });
    assert!(ended.is_err());
}

/// What is applied then would be in force at one of two hooks.
#[test]
fn a_network_that_waits_while_an_upgrade_is_killed_is_not_applied_by_half() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    let zone = |allow: &[&str]| json!({ "policy": "private", "allow": allow });
    let pod = node.pod(&["10.12.34.200/24"], Some(&zone(&["172.16.5.0/24"])));
    let path = node.root.join("network.json");
    node.write(&path, &conf(&["10.12.34.200/24"], Some(&zone(&[]))));
    let lock = Lock::acquire(&node.root).expect("nobody else has it");
    let mut command = Command::new(env!("CARGO_BIN_EXE_netpath"));
    command.args(["apply", path.to_str().expect("text")]).env("NETPATH_ROOT", node.root.path());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let waiting = node.netns.within(|| command.spawn()).expect("it can be run");
    let files = PathBuf::from(format!("/proc/{}/fd", waiting.id()));
    common::eventually(common::PATIENCE, "it stands in line", || {
        let mut files = std::fs::read_dir(&files).expect("it runs");
        let is_lock = |file: &Path| std::fs::read_link(file).is_ok_and(|to| to == node.root.lock());
        files.any(|file| file.is_ok_and(|file| is_lock(&file.path()))).then_some(())
    });
    node.write(&node.root.settings(), &json!({ "zones": 20 }));
    killed_between_hooks(&node);
    drop(lock);
    let output = waiting.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("an upgrade was ended half-way"), "{said}");
    let far = Ipv4Addr::new(172, 16, 5, 1);
    assert!(leaves(&node, &pod, POD, far), "the last good zone is in force");
    node.netpath(&["upgrade"]);
    assert!(leaves(&node, &pod, POD, far));
    node.netpath(&["apply", path.to_str().expect("text")]);
    assert!(!leaves(&node, &pod, POD, far));
}

#[test]
fn what_each_entry_decided_goes_on_and_ends_with_the_entry() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    let pod = node.pod(&["10.12.34.200/24"], Some(&json!({ "policy": "private", "allow": ["10.9.0.0/16"] })));
    // The rows of entries that come later are others than those that a zone made at once would give them.
    apply(&node, &["172.16.5.0/24", "192.0.2.7"]);
    apply(&node, &["10.9.0.0/16", "172.16.5.0/24"]);
    send(&node, &pod);
    for round in 0..3 {
        let before = sent(&node);
        assert!(2 <= before["allow 172.16.5.0/24"], "{before:?}");
        node.write(&node.root.settings(), &json!({ "zones": 20 + round }));
        node.netpath(&["upgrade"]);
        assert_eq!(sent(&node), before);
        send(&node, &pod);
        assert_eq!(sent(&node)["allow 172.16.5.0/24"], before["allow 172.16.5.0/24"] + 2);
    }
    // What new programs counted when somebody was ended is not lost either.
    let before = sent(&node);
    node.write(&node.root.settings(), &json!({ "zones": 30 }));
    {
        let _lock = Lock::acquire(&node.root).expect("nobody else has it");
        killed_between_hooks(&node);
    }
    send(&node, &pod);
    assert_eq!(sent(&node), before, "the new maps are not in force yet");
    node.netpath(&["upgrade"]);
    let now = sent(&node);
    // Each datagram has a fence to the gateway behind it.
    for (entry, count) in [("allow 172.16.5.0/24", 2), ("local 10.12.34.0/24", 7), ("none null", 1)] {
        assert_eq!(now[entry], before[entry] + count, "{before:?} {now:?}");
    }
    apply(&node, &[]);
    apply(&node, &["192.0.2.9"]);
    apply(&node, &["172.16.5.0/24"]);
    assert_eq!(sent(&node)["allow 172.16.5.0/24"], 0, "another entry of the same text begins at zero");
    send(&node, &pod);
    assert_eq!(sent(&node)["allow 172.16.5.0/24"], 2);
    is_well(&node);
}
