//! The table of which hook sees what, row by row, on a real macvlan, with native XDP and without.
//!
//! A packet socket on the master stands between XDP and TC ingress: what XDP dropped it does not see, what
//! TC ingress dropped it has seen. What left the node is what the wire's other end received.

mod common;

use std::net::Ipv4Addr;

use common::node::{GATEWAY, INTERNET, MASTER, NODE_MAC, Node, OUTSIDE_MAC, Pod, at, crosses, pod_fence};
use common::wire::{BROADCAST, RawSocket, arp, ethernet, ethertype, marker, udp_frame};
use netpath_ebpf::abi::Counters;
use netpath_ebpf::drop_reason::DropReason;
use serde_json::{Value, json};

const A: Ipv4Addr = Ipv4Addr::new(10, 12, 34, 200);
const B: Ipv4Addr = Ipv4Addr::new(10, 12, 34, 201);

fn both_ways(test: impl Fn(&Node, bool)) {
    for xdp in ["off", "native"] {
        test(&Node::new(&json!({ "xdp": xdp, "unknownSource": "drop" })), xdp == "native");
    }
}

fn private() -> Value {
    json!({ "policy": "private" })
}

/// What was counted since `before`: sent, received, sent and dropped, received and dropped.
fn since(node: &Node, pod: &Pod, before: &Counters) -> [u64; 4] {
    let now = node.counters(pod);
    [
        now.tx_packets - before.tx_packets,
        now.rx_packets - before.rx_packets,
        now.tx_dropped - before.tx_dropped,
        now.rx_dropped - before.rx_dropped,
    ]
}

/// A fence from outside to a pod.
fn outside_fence(pod: &Pod, address: Ipv4Addr) -> impl Fn(&[u8]) -> Vec<u8> {
    let mac = pod.mac;
    move |marker| udp_frame((OUTSIDE_MAC, mac), GATEWAY, address, (9, 9), marker)
}

#[test]
fn outside_to_pod_is_judged_by_xdp_where_it_is_attached_else_by_tc_ingress_and_counted_once() {
    both_ways(|node, xdp| {
        let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
        let (outside, inside) = (node.far_end(), pod.socket());
        let tap = RawSocket::open(&node.netns, MASTER);
        let fence = outside_fence(&pod, A);
        let before = node.counters(&pod);

        let mark = marker();
        let allowed = udp_frame((OUTSIDE_MAC, pod.mac), GATEWAY, A, (53, 5353), &mark);
        assert!(crosses(&outside, &inside, &allowed, &mark, &fence));
        assert_eq!(since(node, &pod, &before), [0, 2, 0, 0], "xdp {xdp}: the frame and its fence");
        let bytes = node.counters(&pod).rx_bytes - before.rx_bytes;
        assert_eq!(bytes, 2 * allowed.len() as u64);

        let mark = marker();
        let denied = udp_frame((OUTSIDE_MAC, pod.mac), INTERNET, A, (53, 5353), &mark);
        assert!(!crosses(&outside, &inside, &denied, &mark, &fence), "xdp {xdp}: 8.8.8.8 reached the pod");
        assert_eq!(since(node, &pod, &before), [0, 3, 0, 1], "xdp {xdp}: dropped once by two programs");
        assert_eq!(node.drops(&pod).rx_dropped[at(DropReason::ZoneDeny)], 1);

        let last = marker();
        outside.send(&udp_frame((OUTSIDE_MAC, pod.mac), GATEWAY, A, (9, 9), &last)).expect("sent");
        let seen = tap.until(&last);
        let seen_denied = seen.iter().any(|frame| common::wire::carries(frame, &mark));
        assert_eq!(seen_denied, !xdp, "XDP drops before a packet socket on the master can see it");
    });
}

#[test]
fn whatever_leaves_a_pod_passes_tc_egress_even_past_the_qdisc() {
    both_ways(|node, xdp| {
        let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
        let (far, fence) = (node.far_end(), pod_fence(&pod, A));
        for bypass in [false, true] {
            let inside = pod.socket();
            if bypass {
                inside.bypass_qdisc();
            }
            let before = node.counters(&pod);
            let mark = marker();
            let allowed = udp_frame((pod.mac, OUTSIDE_MAC), A, GATEWAY, (1, 2), &mark);
            assert!(crosses(&inside, &far, &allowed, &mark, &fence), "xdp {xdp}, bypass {bypass}");
            assert_eq!(since(node, &pod, &before), [2, 0, 0, 0], "xdp {xdp}, bypass {bypass}");
            assert_eq!(node.counters(&pod).tx_bytes - before.tx_bytes, 2 * allowed.len() as u64);

            let mark = marker();
            let denied = udp_frame((pod.mac, OUTSIDE_MAC), A, INTERNET, (1, 2), &mark);
            assert!(!crosses(&inside, &far, &denied, &mark, &fence), "xdp {xdp}, bypass {bypass}: left");
            let mark = marker();
            let odd = ethernet(OUTSIDE_MAC, pod.mac, 0x88b5, &mark);
            assert!(!crosses(&inside, &far, &odd, &mark, &fence), "xdp {xdp}, bypass {bypass}: left");
            assert_eq!(since(node, &pod, &before), [4, 0, 2, 0], "xdp {xdp}, bypass {bypass}");
        }
        let drops = node.drops(&pod);
        assert_eq!(drops.tx_dropped[at(DropReason::ZoneDeny)], 2);
        assert_eq!(drops.tx_dropped[at(DropReason::Ethertype)], 2);
    });
}

#[test]
fn sibling_unicast_is_judged_at_tc_ingress_and_counted_for_both() {
    both_ways(|node, xdp| {
        let a = node.pod(&["10.12.34.200/24"], Some(&private()));
        // B refuses what is not the gateway: A may send, B may not receive.
        let b = node.pod(&["10.12.34.201/24"], Some(&private()));
        let strict = json!({ "policy": "private", "deny": ["10.12.34.200/32"] });
        let c = node.pod(&["10.12.34.202/24"], Some(&strict));
        let (from, far) = (a.socket(), node.far_end());
        let tap = RawSocket::open(&node.netns, MASTER);
        let before = [&a, &b, &c].map(|pod| node.counters(pod));

        let mark = marker();
        let frame = udp_frame((a.mac, b.mac), A, B, (1, 2), &mark);
        let to_b = |marker: &[u8]| udp_frame((a.mac, b.mac), A, B, (9, 9), marker);
        assert!(crosses(&from, &b.socket(), &frame, &mark, to_b), "xdp {xdp}");
        assert_eq!(since(node, &a, &before[0]), [2, 0, 0, 0], "xdp {xdp}");
        assert_eq!(since(node, &b, &before[1]), [0, 2, 0, 0], "xdp {xdp}");
        let bytes = node.counters(&b).rx_bytes - before[1].rx_bytes;
        assert_eq!(bytes, 2 * frame.len() as u64, "xdp {xdp}");

        // The same frame is outside B's neighbour's zone: sent by A, dropped on the way into C.
        let mark = marker();
        let strangers = udp_frame((a.mac, c.mac), A, Ipv4Addr::new(10, 12, 34, 202), (1, 2), &mark);
        from.send(&strangers).expect("A may send it");
        // A frame that A may not send to B either.
        let spoofed_mark = marker();
        let spoofed = udp_frame((a.mac, b.mac), INTERNET, B, (1, 2), &spoofed_mark);
        assert!(!crosses(&from, &b.socket(), &spoofed, &spoofed_mark, to_b), "xdp {xdp}");
        assert_eq!(since(node, &a, &before[0]), [4, 0, 1, 0], "xdp {xdp}");
        assert_eq!(since(node, &b, &before[1]), [0, 3, 0, 0], "xdp {xdp}: judged as A's before it is B's");
        assert_eq!(since(node, &c, &before[2]), [0, 0, 0, 1], "xdp {xdp}");
        assert_eq!(node.drops(&a).tx_dropped[at(DropReason::SourceV4)], 1);
        assert_eq!(node.drops(&c).rx_dropped[at(DropReason::ZoneDeny)], 1);

        // All of it went through the master's ingress, none through its egress.
        let last = marker();
        from.send(&to_b(&last)).expect("sent");
        let seen = tap.until(&last);
        for mark in [&mark, &spoofed_mark] {
            assert!(seen.iter().any(|frame| common::wire::carries(frame, mark)), "xdp {xdp}");
        }
        let mark = marker();
        let probe = udp_frame((a.mac, OUTSIDE_MAC), A, GATEWAY, (1, 2), &mark);
        from.send(&probe).expect("sent");
        let left = far.until(&mark);
        assert!(
            !left.iter().any(|frame| frame[..6] == b.mac || frame[..6] == c.mac),
            "xdp {xdp}: {left:02x?}"
        );
    });
}

#[test]
fn of_a_broadcast_only_the_copy_for_the_wire_is_seen_and_counted() {
    both_ways(|node, xdp| {
        let a = node.pod(&["10.12.34.200/24"], Some(&private()));
        let b = node.pod(&["10.12.34.201/24"], Some(&private()));
        let (from, sibling, far) = (a.socket(), b.socket(), node.far_end());
        let before = [&a, &b].map(|pod| node.counters(pod));
        let mark = marker();
        let everybody = Ipv4Addr::BROADCAST;
        from.send(&udp_frame((a.mac, BROADCAST), A, everybody, (1, 2), &mark)).expect("sent");
        far.until(&mark);
        sibling.until(&mark);
        assert_eq!(since(node, &a, &before[0]), [1, 0, 0, 0], "xdp {xdp}");
        assert_eq!(since(node, &b, &before[1]), [0, 0, 0, 0], "xdp {xdp}: no hook sees a sibling's copy");

        // Denied, it does not leave; the sibling's copy is beyond any hook, which is why the answer is judged.
        let mark = marker();
        let mut denied = ethernet(BROADCAST, a.mac, ethertype::ARP, &arp(1, (a.mac, A), ([0; 6], INTERNET)));
        denied.extend(&mark);
        assert!(!crosses(&from, &far, &denied, &mark, pod_fence(&a, A)), "xdp {xdp}");
        sibling.until(&mark);
        assert_eq!(since(node, &a, &before[0]), [2, 0, 1, 0], "xdp {xdp}");
        assert_eq!(node.drops(&a).tx_dropped[at(DropReason::ZoneDeny)], 1);

        // From outside a group frame is for everybody and counted for nobody.
        let group = node.totals().group_packets;
        let mark = marker();
        far.send(&udp_frame((OUTSIDE_MAC, BROADCAST), GATEWAY, everybody, (1, 2), &mark)).expect("sent");
        from.until(&mark);
        sibling.until(&mark);
        assert_eq!(node.totals().group_packets, group + 1, "xdp {xdp}");
        assert_eq!(since(node, &b, &before[1])[1..], [0, 0, 0], "xdp {xdp}");
    });
}

#[test]
fn a_frame_for_the_own_node_goes_to_the_wire_and_not_to_the_node() {
    both_ways(|node, xdp| {
        let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
        let (from, far) = (pod.socket(), node.far_end());
        let tap = RawSocket::open(&node.netns, MASTER);
        let before = (node.counters(&pod), node.totals());
        let mark = marker();
        let own_node = udp_frame((pod.mac, NODE_MAC), A, common::node::NODE, (1, 2), &mark);
        assert!(crosses(&from, &far, &own_node, &mark, pod_fence(&pod, A)), "xdp {xdp}");
        assert_eq!(since(node, &pod, &before.0), [2, 0, 0, 0], "xdp {xdp}");
        let last = marker();
        node.far_end()
            .send(&udp_frame((OUTSIDE_MAC, NODE_MAC), GATEWAY, common::node::NODE, (9, 9), &last))
            .expect("sent");
        let seen = tap.until(&last);
        assert!(!seen.iter().any(|frame| common::wire::carries(frame, &mark)), "xdp {xdp}");
        assert_eq!(node.totals().host_dropped, 0);
    });
}

#[test]
fn the_hosts_own_frames_share_the_hooks_and_are_counted_as_the_hosts() {
    both_ways(|node, xdp| {
        let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
        let (host, far) = (RawSocket::open(&node.netns, MASTER), node.far_end());
        let before = (node.counters(&pod), node.totals());
        for _ in 0..3 {
            let mark = marker();
            host.send(&udp_frame((NODE_MAC, OUTSIDE_MAC), common::node::NODE, INTERNET, (1, 2), &mark))
                .expect("sent");
            far.until(&mark);
            let mark = marker();
            far.send(&udp_frame((OUTSIDE_MAC, NODE_MAC), INTERNET, common::node::NODE, (2, 1), &mark))
                .expect("sent");
            host.until(&mark);
        }
        assert_eq!(since(node, &pod, &before.0), [0, 0, 0, 0], "xdp {xdp}");
        let totals = node.totals();
        assert_eq!(totals.host_packets - before.1.host_packets, 6, "xdp {xdp}");
        assert_eq!((totals.host_dropped, totals.unknown_dropped), (0, 0), "xdp {xdp}");
    });
}

/// The way of attaching on kernels without TCX, where nothing but the filters themselves tells what is attached.
#[test]
fn on_clsact_a_second_pod_finds_the_filters_in_place() {
    let node = Node::new(&json!({ "xdp": "off", "tc": "clsact" }));
    let pods = ["10.12.34.200/24", "10.12.34.201/24"].map(|address| node.pod(&[address], Some(&private())));
    let filters = |way: &str| {
        node.netns.exec(&format!("tc filter show dev {MASTER} {way}")).matches("handle 0x6e70").count()
    };
    assert_eq!(["ingress", "egress"].map(filters), [1, 1]);
    let far = node.far_end();
    for (pod, own) in pods.iter().zip([A, B]) {
        let mark = marker();
        let denied = udp_frame((pod.mac, OUTSIDE_MAC), own, INTERNET, (1, 2), &mark);
        assert!(!crosses(&pod.socket(), &far, &denied, &mark, pod_fence(pod, own)));
        assert_eq!(node.drops(pod).tx_dropped[at(DropReason::ZoneDeny)], 1);
    }
    // Attached again: in place, so nothing is said and nothing changes.
    assert_eq!(node.netpath(&["attach", MASTER]).matches("attached (clsact)").count(), 0);
    assert_eq!(["ingress", "egress"].map(filters), [1, 1]);
}
