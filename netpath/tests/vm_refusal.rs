//! On a kernel that is too old for the programs: a clear refusal wherever something would have been policed,
//! nothing left behind, and networks without a zone as ever. Runs in an emulated machine with such a kernel alone.

mod common;

use common::NetNs;
use common::node::{MASTER, Node, conf, kernel_release};
use serde_json::json;

/// What every refusal has to say: the kernel there is, the oldest that would do, what this one lacks.
#[track_caller]
fn is_refusal(said: &str) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("procfs");
    let expected =
        format!("this node runs Linux {} and masters are policed on 6.1 or newer: ", release.trim());
    assert!(said.contains(&expected), "{said}");
    assert!(said.contains("XDP programs for packets in fragments (Linux 5.18)"), "{said}");
}

/// Nothing of netpath is on the node.
#[track_caller]
fn is_untouched(node: &Node) {
    assert!(!node.root.bpffs().exists(), "a BPF file system was mounted");
    for way in ["ingress", "egress"] {
        assert_eq!(node.netns.exec(&format!("tc filter show dev {MASTER} {way}")).trim(), "");
    }
}

#[test]
fn this_is_an_old_kernel() {
    assert!(kernel_release() < (6, 1), "these tests are about kernels that are refused");
}

#[test]
fn a_policed_network_is_refused_and_leaves_nothing() {
    // By its own zone, and by the administrator's.
    let private = json!({ "policy": "private", "local": ["10.12.34.0/24"] });
    for (entry, zone) in [(json!({}), Some(private.clone())), (json!({ "zone": private }), None)] {
        let node = Node::new(&entry);
        let pod = NetNs::new("pod");
        let output = node.call("ADD", &pod, &conf(&["10.12.34.200/24"], zone.as_ref()));
        let said = String::from_utf8(output.stdout).expect("text");
        assert!(!output.status.success(), "{said}");
        let error: serde_json::Value = serde_json::from_str(&said).expect("an error object");
        assert_eq!(error["code"], 130, "{said}");
        is_refusal(&said);
        assert!(!pod.ip("link").contains("net1"), "a refused ADD leaves nothing behind");
        is_untouched(&node);
    }
}

#[test]
fn the_tool_says_it_too() {
    let node = Node::new(&json!({}));
    for words in [&["attach", MASTER][..], &["programs"]] {
        let output = node.try_netpath(words);
        assert!(!output.status.success(), "{words:?}");
        is_refusal(&String::from_utf8_lossy(&output.stderr));
    }
    is_untouched(&node);
}

#[test]
fn a_network_without_a_zone_works_as_ever() {
    // No entry for the master either: with one its pods are counted, which takes the programs.
    let node = Node::new(&json!({}));
    std::fs::remove_file(node.root.masters()).expect("the file that the node came with");
    let pod = node.pod(&["10.12.34.200/24"], None);
    pod.netns.exec("ping -q -c 1 -W 5 10.12.34.254");
    node.delete(&pod);
    assert!(!pod.netns.ip("link").contains("net1"));
    is_untouched(&node);
}
