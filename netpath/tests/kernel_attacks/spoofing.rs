//! Sending as somebody else. The namespace a frame was sent from gives its sender away, where the kernel tells it.

use netpath_ebpf::drop_reason::DropReason::{self, SourceMac, SourceV4, SourceV6, UnknownSource, ZoneDeny};
use serde_json::json;

use crate::arena::{
    A, A6, Arena, B, B6, Fate, Grown, HONEST, STRANGER, Way, Who, attempt, both_hooks, kernel_tells_cookies,
    private, silent, strict,
};
use crate::common::node::{
    GATEWAY, GATEWAY6, INTERNET, INTERNET6, MASTER, NODE, NODE_MAC, Node, OUTSIDE_MAC, crosses, pod_fence,
    stay_on_this_cpu,
};
use crate::common::wire::{RawSocket, arp, carries, ethernet, ethertype, marker, udp_frame, udp6_frame};

/// Frames that the sender is known to have sent: dropped as its own.
fn caught() -> Fate {
    Fate::refused(SourceMac)
}

#[test]
fn row_01_a_mac_that_nobody_owns_is_the_pods_that_sent_it() {
    for word in ["drop", "audit", "auto"] {
        let arena = Arena::new(&json!({ "unknownSource": word }));
        let expected = match (kernel_tells_cookies(), word) {
            (true, _) => caught(),
            // The address it claims is one of the zone.
            (false, "drop" | "auto") => Fate::dropped(Who::Nobody, "tx", UnknownSource),
            (false, _) => {
                let passed =
                    Grown { who: Who::Nobody, what: "tx audited", reason: UnknownSource.label(), by: 1 };
                Fate { arrived: true, grown: vec![passed] }
            }
        };
        for destination in [INTERNET, GATEWAY] {
            let mark = marker();
            let frame = udp_frame((STRANGER, OUTSIDE_MAC), A, destination, (1, 2), &mark);
            assert_eq!(arena.fate(Way::Out, &frame, &mark), expected, "{word}: to {destination}");
        }
        let mark = marker();
        let frame = udp_frame((arena.a.mac, OUTSIDE_MAC), A, GATEWAY, (1, 2), &mark);
        assert_eq!(arena.fate(Way::Out, &frame, &mark), Fate::passed(), "{word}: one's own");
    }
}

#[test]
fn row_01_a_mac_that_nobody_owns_from_nobody_is_dropped_or_audited_as_the_master_says() {
    // A namespace that no attachment is in, on a macvlan that came after the programs.
    // `auto` drops what claims an address of the zone: here every upper device was policed when it looked.
    for (word, source, passes) in [
        ("drop", A, false),
        ("drop", INTERNET, false),
        ("audit", A, true),
        ("auto", A, false),
        ("auto", B, false),
        ("auto", INTERNET, true),
    ] {
        let node = Node::new(&json!({ "unknownSource": word }));
        let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
        let other = silent("other");
        let place = other.name();
        node.netns.ip(&format!("link add late link {MASTER} netns {place} type macvlan mode bridge"));
        other.ip("link set late up");
        let (socket, far) = (RawSocket::open(&other, "late"), node.far_end());
        let before = (node.totals(), node.unowned());
        let mark = marker();
        stay_on_this_cpu();
        let _ = socket.send(&udp_frame((STRANGER, OUTSIDE_MAC), source, INTERNET, (1, 2), &mark));
        let last = marker();
        pod.socket().send(&pod_fence(&pod, A)(&last)).expect("the fence is allowed");
        let arrived = far.until(&last).iter().any(|seen| carries(seen, &mark));
        let (totals, rows) = (node.totals(), node.unowned());
        let at = crate::common::node::at(UnknownSource);
        let counted = [
            totals.unknown_passed - before.0.unknown_passed,
            totals.unknown_dropped - before.0.unknown_dropped,
            rows.tx_audited[at] - before.1.tx_audited[at],
            rows.tx_dropped[at] - before.1.tx_dropped[at],
        ];
        let expected = if passes { [1, 0, 1, 0] } else { [0, 1, 0, 1] };
        assert_eq!((arrived, counted), (passes, expected), "{word}: as {source}");
    }
}

#[test]
fn row_02_the_masters_own_mac_does_not_make_a_pod_the_host() {
    for entry in both_hooks() {
        let arena = Arena::new(&entry);
        let frame = |source, mark: &[u8]| udp_frame((NODE_MAC, OUTSIDE_MAC), source, INTERNET, (1, 2), mark);
        // An address of a pod with the host's MAC: sent from a pod's namespace, it is no host's.
        let expected = if kernel_tells_cookies() { caught() } else { Fate::passed() };
        for source in [A, B] {
            let mark = marker();
            assert_eq!(arena.fate(Way::Out, &frame(source, &mark), &mark), expected, "{entry}: as {source}");
        }
        for source in [A6, B6] {
            let mark = marker();
            let frame = udp6_frame((NODE_MAC, OUTSIDE_MAC), source, INTERNET6, (1, 2), &mark);
            assert_eq!(arena.fate(Way::Out, &frame, &mark), expected, "{entry}: as {source}");
        }
        // The honest twin: the host with its own MAC, from its own namespace, with whatever address.
        let host = RawSocket::open(&arena.node.netns, MASTER);
        for source in [NODE, A] {
            let mark = marker();
            let fate = arena.one_fate(Way::Out, &host, &arena.node.far_end(), &frame(source, &mark), &mark);
            assert_eq!(fate, Fate::passed(), "{entry}: the host as {source}");
        }
    }
}

#[test]
fn row_02_out_of_reach_the_hosts_mac_with_an_address_of_no_pod_unless_the_master_is_dedicated() {
    for (dedicated, expected) in [(false, Fate::passed()), (true, caught())] {
        let arena = Arena::new(&json!({ "unknownSource": "drop", "dedicatedMaster": dedicated }));
        let expected = if kernel_tells_cookies() { expected } else { Fate::passed() };
        for source in [NODE, INTERNET] {
            let mark = marker();
            let frame = udp_frame((NODE_MAC, OUTSIDE_MAC), source, INTERNET, (1, 2), &mark);
            assert_eq!(arena.fate(Way::Out, &frame, &mark), expected, "dedicated {dedicated}: as {source}");
        }
        // A protocol that has no addresses at all.
        let mark = marker();
        let frame = ethernet(OUTSIDE_MAC, NODE_MAC, 0x88b5, &mark);
        assert_eq!(arena.fate(Way::Out, &frame, &mark), expected, "dedicated {dedicated}: no IP");
        let host = RawSocket::open(&arena.node.netns, MASTER);
        let mark = marker();
        let frame = udp_frame((NODE_MAC, OUTSIDE_MAC), NODE, INTERNET, (1, 2), &mark);
        let fate = arena.one_fate(Way::Out, &host, &arena.node.far_end(), &frame, &mark);
        assert_eq!(fate, Fate::passed(), "dedicated {dedicated}: the host itself");
    }
}

#[test]
fn row_03_a_siblings_mac_is_no_disguise() {
    for entry in both_hooks() {
        let arena = Arena::new(&entry);
        let b = arena.b.mac;
        for (what, source, destination, without_cookie) in [
            ("one's own address", A, GATEWAY, Some(SourceV4)),
            ("the sibling's, out of the zone", B, INTERNET, Some(ZoneDeny)),
            // Without the cookie this is the sibling, in all that can be seen; answers go to it.
            ("the sibling's, within the zone", B, GATEWAY, None::<DropReason>),
        ] {
            let mark = marker();
            let frame = udp_frame((b, OUTSIDE_MAC), source, destination, (1, 2), &mark);
            let expected = match (kernel_tells_cookies(), without_cookie) {
                (true, _) => caught(),
                (false, Some(reason)) => Fate::dropped(Who::B, "tx", reason),
                (false, None) => Fate::passed(),
            };
            assert_eq!(arena.fate(Way::Out, &frame, &mark), expected, "{entry}: {what}");
        }
        let mark = marker();
        let frame = udp_frame((b, OUTSIDE_MAC), B, GATEWAY, (1, 2), &mark);
        let (sibling, far) = (arena.b.socket(), arena.node.far_end());
        assert_eq!(
            arena.one_fate(Way::Out, &sibling, &far, &frame, &mark),
            Fate::passed(),
            "the sibling itself"
        );
    }
}

#[test]
fn row_03_no_pod_is_impersonated_towards_a_sibling() {
    let arena = Arena::new(&strict());
    let (a, b) = (arena.a.mac, arena.b.mac);
    let third = arena.node.pod(&["10.12.34.202/24"], Some(&private()));
    let third_address = std::net::Ipv4Addr::new(10, 12, 34, 202);
    for (what, mac, source, without_cookie) in [
        ("one's own address, another MAC", STRANGER, A, Fate::passed()),
        ("one's own address, the host's MAC", NODE_MAC, A, Fate::passed()),
        ("a third pod's address, nobody's MAC", STRANGER, third_address, Fate::passed()),
        ("a third pod's address and MAC", third.mac, third_address, Fate::passed()),
    ] {
        let mark = marker();
        let frame = udp_frame((mac, b), source, B, (1, 2), &mark);
        let expected = if kernel_tells_cookies() { caught() } else { without_cookie };
        assert_eq!(arena.fate(Way::Sibling, &frame, &mark), expected, "{what}");
    }
    let mark = marker();
    let frame = udp_frame((a, b), A, B, (1, 2), &mark);
    assert_eq!(arena.fate(Way::Sibling, &frame, &mark), Fate::passed(), "as oneself");
}

#[test]
fn row_03_out_of_reach_a_host_of_the_zone_is_impersonated_towards_a_sibling() {
    // The sibling cannot be told from a frame of the wire: it may be one that a switch brought back.
    let arena = Arena::new(&strict());
    let frame = |source, mark: &[u8]| udp_frame((OUTSIDE_MAC, arena.b.mac), source, B, (1, 2), mark);
    let mark = marker();
    assert_eq!(arena.fate(Way::Sibling, &frame(GATEWAY, &mark), &mark), Fate::passed());
    // Only as somebody who may talk to the sibling, and in a mode that does not switch not at all.
    let mark = marker();
    let refused = Fate::dropped(Who::B, "rx", ZoneDeny);
    assert_eq!(arena.fate(Way::Sibling, &frame(INTERNET, &mark), &mark), refused);
    drop(arena);
    let node = Node::dual(&strict());
    let pod = |address: &str| {
        let mut conf = crate::common::node::conf(&[address], Some(&private()));
        conf["mode"] = json!("private");
        node.pod_with(conf)
    };
    let (a, b) = (pod("10.12.34.200/24"), pod("10.12.34.201/24"));
    let (far, at) = (node.far_end(), crate::common::node::at(UnknownSource));
    let before = node.unowned().tx_dropped[at];
    let mark = marker();
    let frame = udp_frame((OUTSIDE_MAC, b.mac), GATEWAY, B, (1, 2), &mark);
    assert!(!crosses(&a.socket(), &far, &frame, &mark, pod_fence(&a, A)));
    let caught = if kernel_tells_cookies() {
        node.drops(&a).tx_dropped[crate::common::node::at(SourceMac)]
    } else {
        node.unowned().tx_dropped[at] - before
    };
    assert_eq!(caught, 1, "it goes by the wire, and TC egress sees it");
}

#[test]
fn row_04_a_pod_sends_from_its_own_addresses_alone() {
    for entry in both_hooks() {
        let arena = Arena::new(&entry);
        let a = arena.a.mac;
        let v4 = |source, mark: &[u8]| udp_frame((a, OUTSIDE_MAC), source, GATEWAY, (1, 2), mark);
        let v6 = |source, mark: &[u8]| udp6_frame((a, OUTSIDE_MAC), source, GATEWAY6, (1, 2), mark);
        arena.table(vec![
            attempt("its own", HONEST, |mark| v4(A, mark)),
            attempt("its own, IPv6", HONEST, |mark| v6(A6, mark)),
            attempt("a sibling's", SourceV4, |mark| v4(B, mark)),
            attempt("the node's", SourceV4, |mark| v4(NODE, mark)),
            attempt("the gateway's", SourceV4, |mark| v4(GATEWAY, mark)),
            attempt("one of the internet", SourceV4, |mark| v4(INTERNET, mark)),
            attempt("nobody's", SourceV4, |mark| v4(std::net::Ipv4Addr::UNSPECIFIED, mark)),
            attempt("everybody's", SourceV4, |mark| v4(std::net::Ipv4Addr::BROADCAST, mark)),
            attempt("a loopback", SourceV4, |mark| v4(std::net::Ipv4Addr::LOCALHOST, mark)),
            attempt("a sibling's, IPv6", SourceV6, |mark| v6(B6, mark)),
            attempt("the gateway's, IPv6", SourceV6, |mark| v6(GATEWAY6, mark)),
            attempt("nobody's, IPv6", SourceV6, |mark| v6(std::net::Ipv6Addr::UNSPECIFIED, mark)),
            attempt("one's own IPv4 in IPv6", SourceV6, |mark| v6(A.to_ipv6_mapped(), mark)),
        ]);
    }
}

#[test]
fn row_04_a_bound_address_of_another_pod_stays_its_own_after_arp() {
    // What a pod may say by ARP and what it may send agree: an address that it cannot claim it cannot use.
    let arena = Arena::new(&strict());
    let node = &arena.node;
    let (from, far) = (arena.a.socket(), node.far_end());
    let claim =
        ethernet(OUTSIDE_MAC, arena.a.mac, ethertype::ARP, &arp(2, (arena.a.mac, B), (OUTSIDE_MAC, GATEWAY)));
    from.send(&claim).expect_err("it is refused");
    let mark = marker();
    let frame = udp_frame((arena.a.mac, OUTSIDE_MAC), B, GATEWAY, (1, 2), &mark);
    assert!(!crosses(&from, &far, &frame, &mark, pod_fence(&arena.a, A)));
}
