//! Ways out of the zone that a pod can try with a raw socket, and ways in; the far end is the witness. And
//! frames that BPF_PROG_TEST_RUN cannot make: runts, tags in the packet's metadata, packets in fragments.
//!
//! 802.1Q devices may be missing here (CONFIG_VLAN_8021Q): tags are written by hand. The kernel moves the
//! outer one to metadata at TC ingress all the same.

mod common;

use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::Duration;

use common::node::{
    GATEWAY, INTERNET, MASTER, NODE, NODE_MAC, Node, OUTSIDE_MAC, Pod, WIRE, at, crosses, pod_fence, text,
};
use common::wire::{
    BROADCAST, RawSocket, advertisement, arp, carries, ethernet, ethertype, ipv4, ipv6, marker, protocol,
    udp, udp_frame,
};
use common::{PATIENCE, eventually};
use netpath_ebpf::drop_reason::DropReason;
use serde_json::{Value, json};

const A: Ipv4Addr = Ipv4Addr::new(10, 12, 34, 200);
const B: Ipv4Addr = Ipv4Addr::new(10, 12, 34, 201);

fn private() -> Value {
    json!({ "policy": "private" })
}

/// Whether a frame of the pod's reaches the far end.
#[track_caller]
fn leaves(node: &Node, pod: &Pod, frame: &[u8], mark: &[u8]) -> bool {
    crosses(&pod.socket(), &node.far_end(), frame, mark, pod_fence(pod, A))
}

#[test]
fn a_mac_that_nobody_owns_is_dropped_or_audited_as_the_master_says() {
    let stranger = [2, 0xba, 0xd0, 0, 0, 1];
    for (word, passes) in [("drop", false), ("audit", true), ("auto", true)] {
        let node = Node::new(&json!({ "unknownSource": word }));
        let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
        let before = (node.totals(), node.unowned(), node.counters(&pod));
        let mark = marker();
        let frame = udp_frame((stranger, OUTSIDE_MAC), A, INTERNET, (1, 2), &mark);
        assert_eq!(leaves(&node, &pod, &frame, &mark), passes, "{word}");
        let (totals, rows) = (node.totals(), node.unowned());
        let passed = totals.unknown_passed - before.0.unknown_passed;
        let dropped = totals.unknown_dropped - before.0.unknown_dropped;
        assert_eq!((passed, dropped), if passes { (1, 0) } else { (0, 1) }, "{word}");
        let reason = at(DropReason::UnknownSource);
        let by_reason = (
            rows.tx_audited[reason] - before.1.tx_audited[reason],
            rows.tx_dropped[reason] - before.1.tx_dropped[reason],
        );
        assert_eq!(by_reason, (passed, dropped), "{word}");
        assert_eq!(
            node.counters(&pod).tx_packets - before.2.tx_packets,
            1,
            "{word}: the fence alone is the pod's"
        );
    }
}

#[test]
fn a_pod_sends_as_itself_or_not_at_all() {
    let node = Node::dual(&json!({ "unknownSource": "drop" }));
    let pod = node.pod(&["10.12.34.200/24", "fd00:34::200/64"], Some(&private()));
    let own6 = Ipv6Addr::new(0xfd00, 0x34, 0, 0, 0, 0, 0, 0x200);
    let gateway6 = common::node::GATEWAY6;
    let everybody6: Ipv6Addr = "ff02::1".parse().expect("an address");
    let group = [0x33, 0x33, 0, 0, 0, 1];
    let frame = |kind: u16, body: &[u8]| ethernet(OUTSIDE_MAC, pod.mac, kind, body);
    let nd = |source, target, mac| {
        ethernet(
            group,
            pod.mac,
            ethertype::IPV6,
            &ipv6(source, everybody6, protocol::ICMPV6, &advertisement(target, mac)),
        )
    };
    let mut router = vec![134, 0, 0, 0, 64, 0, 7, 8];
    router.extend([0; 8]);
    let mut options = ipv4(A, GATEWAY, protocol::UDP, &[&[0x83, 3, 4, 0][..], &udp(1, 2, &[])].concat());
    options[0] = 0x46;
    let mut routed = vec![protocol::UDP, 2, 4, 1, 0, 0, 0, 0];
    routed.extend(common::node::INTERNET6.octets());
    routed.extend(udp(1, 2, &[]));
    let attempts: Vec<(&str, Vec<u8>, DropReason)> = vec![
        (
            "another IPv4 source",
            frame(ethertype::IPV4, &ipv4(B, GATEWAY, protocol::UDP, &udp(1, 2, &[]))),
            DropReason::SourceV4,
        ),
        (
            "the node's IPv4 source",
            frame(ethertype::IPV4, &ipv4(NODE, GATEWAY, protocol::UDP, &udp(1, 2, &[]))),
            DropReason::SourceV4,
        ),
        (
            "another IPv6 source",
            frame(ethertype::IPV6, &ipv6(gateway6, gateway6, protocol::UDP, &udp(1, 2, &[]))),
            DropReason::SourceV6,
        ),
        (
            "ARP for the gateway's address",
            frame(ethertype::ARP, &arp(2, (pod.mac, GATEWAY), (OUTSIDE_MAC, NODE))),
            DropReason::SourceArp,
        ),
        (
            "ARP with another MAC",
            frame(ethertype::ARP, &arp(2, ([2; 6], A), (OUTSIDE_MAC, NODE))),
            DropReason::SourceArp,
        ),
        (
            "ARP who-has 8.8.8.8",
            frame(ethertype::ARP, &arp(1, (pod.mac, A), ([0; 6], INTERNET))),
            DropReason::ZoneDeny,
        ),
        ("an advertisement for the gateway", nd(own6, gateway6, pod.mac), DropReason::SourceNd),
        ("an advertisement with another MAC", nd(own6, own6, [2; 6]), DropReason::SourceNd),
        (
            "a router advertisement",
            frame(ethertype::IPV6, &ipv6(own6, everybody6, protocol::ICMPV6, &router)),
            DropReason::RouterGuard,
        ),
        (
            "a DHCP server",
            frame(ethertype::IPV4, &ipv4(A, GATEWAY, protocol::UDP, &udp(67, 68, &[]))),
            DropReason::DhcpServer,
        ),
        ("a source route", frame(ethertype::IPV4, &options), DropReason::IpOptions),
        (
            "a routing header",
            frame(ethertype::IPV6, &ipv6(own6, gateway6, 43, &routed)),
            DropReason::ExtensionHeader,
        ),
        ("MPLS", frame(0x8847, &[0, 0, 0x11, 0xff]), DropReason::Ethertype),
        ("LLDP", frame(0x88cc, &[2, 7, 4]), DropReason::Ethertype),
        ("LLC", frame(38, &[0x42, 0x42, 3]), DropReason::Ethertype),
        ("a VLAN tag, inline at egress", frame(ethertype::VLAN, &[0, 100, 8, 0, 0x45]), DropReason::Vlan),
        ("two tags", frame(ethertype::QINQ, &[0, 200, 0x81, 0, 0, 100, 8, 0]), DropReason::Vlan),
        ("nothing but Ethernet", frame(ethertype::IPV4, &[]), DropReason::Malformed),
        ("one byte of IPv4", frame(ethertype::IPV4, &[0x45]), DropReason::Malformed),
        ("one byte of IPv6", frame(ethertype::IPV6, &[0x60]), DropReason::Malformed),
        ("one byte of ARP", frame(ethertype::ARP, &[0]), DropReason::Malformed),
        ("15 bytes of something", frame(0x88b5, &[7]), DropReason::Ethertype),
    ];
    let (inside, far) = (pod.socket(), node.far_end());
    for (what, frame, reason) in attempts {
        let before = (node.drops(&pod).tx_dropped, node.counters(&pod).tx_dropped);
        inside.send(&frame).expect_err(what);
        let (rows, all) = (node.drops(&pod).tx_dropped, node.counters(&pod).tx_dropped);
        let grown: Vec<_> =
            DropReason::ALL.iter().filter(|reason| rows[at(**reason)] != before.0[at(**reason)]).collect();
        assert_eq!((grown, all - before.1), (vec![&reason], 1), "{what}");
    }
    // Of all of that nothing has left.
    let mark = marker();
    inside.send(&pod_fence(&pod, A)(&mark)).expect("the fence is allowed");
    let left = far.until(&mark);
    assert!(!left.iter().any(|frame| frame[6..12] == pod.mac && frame[..2] != [0x33, 0x33]), "{left:02x?}");
}

#[test]
fn the_kernel_refuses_frames_too_short_for_ethernet_and_the_programs_never_see_one() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
    let (inside, outside) = (pod.socket(), node.far_end());
    let before = (node.counters(&pod), node.totals());
    let frame = ethernet(OUTSIDE_MAC, pod.mac, ethertype::IPV4, &[]);
    for length in 1..14 {
        for socket in [&inside, &outside] {
            let refused = socket.send(&frame[..length]).expect_err("not even a header");
            assert_eq!(refused.raw_os_error(), Some(libc::EINVAL), "{length} bytes");
        }
    }
    assert_eq!((node.counters(&pod), node.totals()), before);
}

#[test]
fn a_siblings_mac_carries_only_what_the_sibling_might_send() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    let a = node.pod(&["10.12.34.200/24"], Some(&private()));
    let b = node.pod(&["10.12.34.201/24"], Some(&private()));
    let before = node.counters(&b);
    for (what, source, destination, reason) in [
        ("one's own address", A, GATEWAY, DropReason::SourceV4),
        ("out of the zone", B, INTERNET, DropReason::ZoneDeny),
    ] {
        let mark = marker();
        let frame = udp_frame((b.mac, OUTSIDE_MAC), source, destination, (1, 2), &mark);
        assert!(!leaves(&node, &a, &frame, &mark), "{what}");
        assert_eq!(node.drops(&b).tx_dropped[at(reason)], 1, "{what}");
    }
    assert_eq!(node.counters(&b).tx_dropped - before.tx_dropped, 2);
    // As the master itself a pod is taken for the host: nothing here may drop that. The answers go to the host.
    let mark = marker();
    let frame = udp_frame((NODE_MAC, OUTSIDE_MAC), A, GATEWAY, (1, 2), &mark);
    leaves(&node, &a, &frame, &mark);
    assert_eq!(node.totals().host_dropped, 0);
}

#[test]
fn unicast_in_a_group_frame_reaches_no_socket() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
    pod.knows(GATEWAY, OUTSIDE_MAC);
    node.outside.ip(&format!("neigh replace {A} lladdr {} dev {WIRE} nud permanent", text(pod.mac)));
    let socket = pod.netns.within(|| UdpSocket::bind((A, 4000))).expect("free");
    socket.set_read_timeout(Some(PATIENCE)).expect("set");
    // A real checksum is needed here, or nothing would reach the socket for another reason: zero is none.
    let datagram = |destination, source, payload: &[u8]| {
        let mut body = udp(4000, 4000, payload);
        body[6..8].fill(0);
        ethernet(destination, OUTSIDE_MAC, ethertype::IPV4, &ipv4(source, A, protocol::UDP, &body))
    };
    let far = node.far_end();
    let before = node.totals().group_packets;
    far.send(&datagram(BROADCAST, INTERNET, b"from outside, to everybody")).expect("sent");
    far.send(&datagram(BROADCAST, GATEWAY, b"from the gateway, to everybody")).expect("sent");
    // From a sibling, whose copy no hook sees.
    let sibling = node.pod(&["10.12.34.201/24"], Some(&private()));
    let mut body = udp(4000, 4000, b"from a sibling, to everybody");
    body[6..8].fill(0);
    let spoofed = ethernet(BROADCAST, sibling.mac, ethertype::IPV4, &ipv4(INTERNET, A, protocol::UDP, &body));
    let _ = sibling.socket().send(&spoofed);
    eventually(PATIENCE, "the group frames were counted", || {
        (node.totals().group_packets >= before + 2).then_some(())
    });
    far.send(&datagram(pod.mac, GATEWAY, b"from the gateway, to the pod")).expect("sent");
    let mut received = [0; 100];
    let (length, _) = socket.recv_from(&mut received).expect("the datagram that is for it");
    assert_eq!(&received[..length], b"from the gateway, to the pod", "and nothing came before it");
    socket.set_read_timeout(Some(Duration::from_millis(20))).expect("set");
    socket.recv_from(&mut received).expect_err("nor behind it");
}

#[test]
fn a_tag_is_seen_inline_by_xdp_and_in_metadata_by_tc_ingress() {
    for xdp in ["off", "native"] {
        let node = Node::new(&json!({ "unknownSource": "drop", "xdp": xdp }));
        let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
        let far = node.far_end();
        let tagged = |tags: &[u8], mark: &[u8]| {
            let packet = ipv4(GATEWAY, A, protocol::UDP, &udp(1, 2, mark));
            [&pod.mac[..], &OUTSIDE_MAC, tags, &[8, 0], &packet].concat()
        };
        let fence = |mark: &[u8]| udp_frame((OUTSIDE_MAC, pod.mac), GATEWAY, A, (9, 9), mark);
        for (what, tags) in [
            ("one tag", &[0x81, 0, 0, 100][..]),
            ("two tags", &[0x88, 0xa8, 0, 200, 0x81, 0, 0, 100]),
            ("a priority tag", &[0x81, 0, 0xe0, 0]),
        ] {
            let before = node.drops(&pod).rx_dropped[at(DropReason::Vlan)];
            let mark = marker();
            let frame = tagged(tags, &mark);
            assert!(!crosses(&far, &pod.socket(), &frame, &mark, fence), "xdp {xdp}: {what}");
            assert_eq!(node.drops(&pod).rx_dropped[at(DropReason::Vlan)] - before, 1, "xdp {xdp}: {what}");
        }
        // A sibling's tag goes through the master's ingress alone, and is judged as the sender's.
        let sibling = node.pod(&["10.12.34.201/24"], Some(&private()));
        let mark = marker();
        let mut frame = tagged(&[0x81, 0, 0, 100], &mark);
        frame[6..12].copy_from_slice(&sibling.mac);
        let fence = |mark: &[u8]| udp_frame((sibling.mac, pod.mac), B, A, (9, 9), mark);
        assert!(!crosses(&sibling.socket(), &pod.socket(), &frame, &mark, fence), "xdp {xdp}: a sibling's");
        assert_eq!(node.drops(&sibling).tx_dropped[at(DropReason::Vlan)], 1, "xdp {xdp}: a sibling's");
    }
}

#[test]
fn a_tagged_frame_that_passes_is_counted_once_by_whichever_hook() {
    for (xdp, mode) in [("off", "audit"), ("native", "audit"), ("off", "off"), ("native", "off")] {
        let node = Node::new(&json!({ "unknownSource": "drop", "xdp": xdp }));
        let pod = node.pod(&["10.12.34.200/24"], Some(&json!({ "policy": "private", "mode": mode })));
        let before = node.counters(&pod);
        let packet = ipv4(GATEWAY, A, protocol::UDP, &udp(1, 2, &marker()));
        let frame = [&pod.mac[..], &OUTSIDE_MAC, &[0x81, 0, 0, 100, 8, 0], &packet].concat();
        let far = node.far_end();
        far.send(&frame).expect("sent");
        // A tag nobody listens to ends at the master; what counts is that it has been there.
        let inside = pod.socket();
        let last = marker();
        far.send(&udp_frame((OUTSIDE_MAC, pod.mac), GATEWAY, A, (9, 9), &last)).expect("sent");
        inside.until(&last);
        let now = node.counters(&pod);
        let counted = [now.rx_packets - before.rx_packets, now.rx_audited - before.rx_audited];
        assert_eq!(counted, [2, u64::from(mode == "audit")], "xdp {xdp}, {mode}");
    }
}

#[test]
fn large_datagrams_in_fragments_of_memory_and_of_ip_are_judged_by_their_heads() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
    pod.knows(GATEWAY, OUTSIDE_MAC);
    // The internet on the link, so that nothing has to be asked.
    pod.netns.ip(&format!("route add {INTERNET} dev net1"));
    pod.knows(INTERNET, OUTSIDE_MAC);
    let far = node.far_end();
    let socket = pod.netns.within(|| UdpSocket::bind((A, 0))).expect("free");
    let payload = marker().repeat(1500);
    for (destination, allowed) in [(GATEWAY, true), (INTERNET, false)] {
        let before = node.counters(&pod);
        let _ = socket.send_to(&payload, (destination, 4001));
        let now = eventually(PATIENCE, "all fragments are counted", || {
            let now = node.counters(&pod);
            let counted = now.tx_packets + now.tx_dropped - before.tx_packets - before.tx_dropped;
            // The kernel sends no further fragment once one was refused.
            (counted >= if allowed { payload.len() as u64 / 1480 } else { 1 }).then_some(now)
        });
        let passed = now.tx_packets > before.tx_packets;
        assert_eq!((passed, now.tx_dropped > before.tx_dropped), (allowed, !allowed), "{destination}");
    }
    let mark = marker();
    pod.socket().send(&pod_fence(&pod, A)(&mark)).expect("the fence is allowed");
    let left = far.until(&mark);
    let to_internet =
        |frame: &Vec<u8>| frame.len() >= 34 && frame[12..14] == [8, 0] && frame[30..34] == INTERNET.octets();
    assert!(!left.iter().any(to_internet));
    assert!(left.iter().any(|frame| carries(frame, &payload[..20])), "the allowed one has left");
    assert_eq!(RawSocket::open(&node.netns, MASTER).receive(Duration::ZERO), None);
}
