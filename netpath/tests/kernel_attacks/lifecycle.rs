//! What is left of a pod that is gone: nothing that a later one could inherit, and nobody else's while it lives.

use netpath_ebpf::drop_reason::DropReason::ZoneDeny;
use serde_json::json;

use crate::arena::{A, private, strict};
use crate::common::node::{
    GATEWAY, INTERNET, MASTER, Node, OUTSIDE_MAC, Pod, at, conf, crosses, pod_fence, text,
};
use crate::common::wire::{Mac, carries, marker, udp_frame};
use crate::common::{NetNs, PATIENCE, eventually};

const MAC: Mac = [2, 0x70, 0xff, 0, 0, 0x21];

/// A zone from which the internet can be reached.
fn wide() -> serde_json::Value {
    json!({ "policy": "private", "allow": ["8.8.8.8/32"] })
}

/// A pod with the same MAC and address each time.
#[track_caller]
fn same(node: &Node, zone: &serde_json::Value) -> Pod {
    let mut conf = conf(&["10.12.34.200/24"], Some(zone));
    conf["mac"] = json!(text(MAC));
    let mut pod = node.pod_with(conf);
    pod.mac = MAC;
    pod.key = netpath_ebpf::abi::EndpointKey::new(1, MAC);
    pod
}

/// Whether the pod reaches the internet.
#[track_caller]
fn reaches(node: &Node, pod: &Pod) -> bool {
    let mark = marker();
    let frame = udp_frame((MAC, OUTSIDE_MAC), A, INTERNET, (1, 2), &mark);
    crosses(&pod.socket(), &node.far_end(), &frame, &mark, pod_fence(pod, A))
}

#[test]
fn row_21_mac_and_address_of_a_pod_that_is_gone_give_the_next_one_nothing() {
    for tc in ["auto", "clsact"] {
        let node = Node::new(&json!({ "unknownSource": "drop", "tc": tc }));
        // Somebody who stays, so that rows and zones are not simply all gone.
        let _other = node.pod(&["10.12.34.201/24"], Some(&wide()));
        let first = same(&node, &wide());
        let row = node.row(&first);
        assert!(reaches(&node, &first), "{tc}: the first one's zone is wide");
        assert!(node.counters(&first).tx_packets >= 2, "{tc}");
        node.delete(&first);

        let second = same(&node, &private());
        let now = node.row(&second);
        assert!(now.generation != row.generation || now.id != row.id, "{tc}: {now:?}");
        // It may have announced its address.
        let begun = node.counters(&second);
        assert!(begun.tx_packets <= 1 && begun.rx_packets == 0, "{tc}: counters begin at nothing: {begun:?}");
        assert!(!reaches(&node, &second), "{tc}: the zone is its own");
        assert_eq!(node.drops(&second).tx_dropped[at(ZoneDeny)], 1, "{tc}");

        // And the other way round: what the second was denied the third is not.
        node.delete(&second);
        let third = same(&node, &wide());
        assert_eq!(node.drops(&third).tx_dropped.iter().sum::<u64>(), 0, "{tc}");
        assert!(reaches(&node, &third), "{tc}");
    }
}

#[test]
fn row_21_between_two_pods_the_mac_is_nobodys() {
    let node = Node::new(&strict());
    let other = node.pod(&["10.12.34.201/24"], Some(&private()));
    let first = same(&node, &wide());
    assert_eq!(node.maps().cookie_owners().expect("readable").len(), 2);
    node.delete(&first);
    assert_eq!(
        node.maps().cookie_owners().expect("readable").len(),
        1,
        "its namespace answers for nothing any more"
    );
    assert_eq!(
        node.maps()
            .claims(1)
            .expect("readable")
            .iter()
            .filter(|(prefix, _)| prefix.contains(A.into()) && prefix.prefix() == 32)
            .count(),
        0,
        "nor is its address bound"
    );
    // The sandbox lives on and makes itself an interface with the MAC and address it had.
    let place = first.netns.name();
    node.netns.ip(&format!(
        "link add net1 link {MASTER} netns {place} address {} type macvlan mode bridge",
        text(MAC)
    ));
    first.netns.ip("link set net1 up");
    let before = node.totals().unknown_dropped;
    let mark = marker();
    crate::common::node::stay_on_this_cpu();
    let far = node.far_end();
    let _ = first.socket().send(&udp_frame((MAC, OUTSIDE_MAC), A, GATEWAY, (1, 2), &mark));
    let last = marker();
    let fence = pod_fence(&other, std::net::Ipv4Addr::new(10, 12, 34, 201));
    other.socket().send(&fence(&last)).expect("the fence is allowed");
    assert!(!far.until(&last).iter().any(|seen| carries(seen, &mark)));
    assert_eq!(node.totals().unknown_dropped - before, 1);
}

#[test]
fn row_21_what_a_living_pod_has_no_other_one_gets() {
    let node = Node::new(&strict());
    let living = same(&node, &private());
    let refused = |mac: Mac, address: &str, what: &str| {
        let netns = NetNs::new("pod");
        let mut conf = conf(&[address], Some(&private()));
        conf["mac"] = json!(text(mac));
        let output = node.call("ADD", &netns, &conf);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!output.status.success(), "{what}: {said}");
        assert!(!netns.ip("-o link").contains("net1"), "{what}: nothing half-made stays");
        said
    };
    refused(MAC, "10.12.34.202/24", "the same MAC");
    let said = refused([2, 0x70, 0xff, 0, 0, 0x22], "10.12.34.200/24", "the same address");
    assert!(said.contains("10.12.34.200"), "{said}");
    // The living one never noticed.
    let mark = marker();
    let frame = udp_frame((MAC, OUTSIDE_MAC), A, GATEWAY, (1, 2), &mark);
    assert!(crosses(&living.socket(), &node.far_end(), &frame, &mark, pod_fence(&living, A)));
}

#[test]
fn row_21_a_namespace_that_is_gone_without_del_leaves_no_open_row() {
    let node = Node::new(&strict());
    let other = node.pod(&["10.12.34.201/24"], Some(&private()));
    let first = same(&node, &wide());
    let key = first.key;
    drop(first.netns);
    // The kernel takes the interface with the namespace; the next one is not made to wait for the DEL.
    let next = eventually(PATIENCE, "the MAC is free", || {
        let netns = NetNs::new("pod");
        let mut conf = conf(&["10.12.34.200/24"], Some(&private()));
        conf["mac"] = json!(text(MAC));
        let output = node.call("ADD", &netns, &conf);
        output.status.success().then_some(Pod { netns, mac: MAC, key, conf })
    });
    assert!(!reaches(&node, &next), "the zone is the new one's");
    drop(other);
}
