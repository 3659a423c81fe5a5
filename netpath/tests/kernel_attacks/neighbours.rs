//! Who answers for an address, who hands addresses out, who is the router: what a pod may say of itself, and no more.

use std::net::Ipv6Addr;

use netpath_ebpf::drop_reason::DropReason::{
    DhcpServer, LinkLocal, RouterGuard, SourceArp, SourceNd, SourceV6, ZoneDeny,
};
use serde_json::Value;

use crate::arena::{
    A, A6, ALL_NODES, ALL_NODES_MAC, Arena, B, B6, Fate, HONEST, STRANGER, Way, attempt, both_hooks, private,
    strict,
};
use crate::common::node::{GATEWAY, GATEWAY6, INTERNET, INTERNET6, NODE, Node, OUTSIDE_MAC, text};
use crate::common::wire::{
    BROADCAST, Mac, advertisement, arp, carries, ethernet, ethertype, ipv4, ipv6, marker, protocol, udp,
};
use crate::common::{PATIENCE, eventually};

/// The link-local address that a MAC gives (RFC 4291, appendix A).
fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.map(u16::from);
    Ipv6Addr::new(0xfe80, 0, 0, 0, (a ^ 2) << 8 | b, c << 8 | 0xff, 0xfe00 | d, e << 8 | f)
}

/// A neighbour solicitation for `target` with the option that names `mac`.
fn solicitation(target: Ipv6Addr, mac: Mac) -> Vec<u8> {
    let mut body = vec![135, 0, 0, 0, 0, 0, 0, 0];
    body.extend(target.octets());
    body.extend([1, 1]);
    body.extend(mac);
    body
}

#[test]
fn row_11_a_pod_is_no_router() {
    for entry in both_hooks() {
        let arena = Arena::new(&entry);
        let icmp = |destination, kind: u8, mark: &[u8]| {
            let body = [&[kind, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0][..], mark].concat();
            arena.v6(destination, protocol::ICMPV6, &body)
        };
        // Behind an extension header it is the same message.
        let hidden = |kind: u8, mark: &[u8]| {
            let body =
                [&[protocol::ICMPV6, 0, 1, 4, 0, 0, 0, 0, kind, 0, 0, 0, 64, 0, 7, 8][..], mark].concat();
            arena.v6(ALL_NODES, 60, &body)
        };
        arena.table(vec![
            attempt("an echo request", HONEST, |mark| icmp(GATEWAY6, 128, mark)),
            attempt("a router solicitation", HONEST, |mark| {
                icmp("ff02::2".parse().expect("an address"), 133, mark)
            }),
            attempt("a router advertisement to everybody", RouterGuard, |mark| icmp(ALL_NODES, 134, mark)),
            attempt("a router advertisement to one", RouterGuard, |mark| icmp(GATEWAY6, 134, mark)),
            attempt("a redirect", RouterGuard, |mark| icmp(GATEWAY6, 137, mark)),
            attempt("a hidden router advertisement", RouterGuard, |mark| hidden(134, mark)),
            attempt("a hidden redirect", RouterGuard, |mark| hidden(137, mark)),
        ]);
        // A sibling that believed it would send everything to the attacker: unicast to it is judged as well.
        let mark = marker();
        let mut frame = icmp(B6, 134, &mark);
        frame[..6].copy_from_slice(&arena.b.mac);
        assert_eq!(arena.fate(Way::Sibling, &frame, &mark), Fate::refused(RouterGuard));
    }
}

#[test]
fn row_11_a_pod_is_no_dhcp_server() {
    for entry in both_hooks() {
        let arena = Arena::new(&entry);
        let v4 = |destination, ports: (u16, u16), mark: &[u8]| {
            arena.v4(destination, protocol::UDP, &udp(ports.0, ports.1, mark))
        };
        let v6 = |destination, ports: (u16, u16), mark: &[u8]| {
            arena.v6(destination, protocol::UDP, &udp(ports.0, ports.1, mark))
        };
        let everybody = std::net::Ipv4Addr::BROADCAST;
        arena.table(vec![
            attempt("a client that renews", HONEST, |mark| v4(GATEWAY, (68, 67), mark)),
            attempt("a client of DHCPv6", HONEST, |mark| {
                v6("ff02::1:2".parse().expect("an address"), (546, 547), mark)
            }),
            attempt("an offer to everybody", DhcpServer, |mark| v4(everybody, (67, 68), mark)),
            attempt("an offer to one", DhcpServer, |mark| v4(NODE, (67, 68), mark)),
            // What a client looks at is its own port: it takes a lease from any other.
            attempt("an offer from another port", DhcpServer, |mark| v4(everybody, (1067, 68), mark)),
            attempt("an answer of DHCPv6 from another port", DhcpServer, |mark| {
                v6(GATEWAY6, (1547, 546), mark)
            }),
            attempt("a relay", DhcpServer, |mark| v4(GATEWAY, (67, 67), mark)),
            attempt("an answer of DHCPv6", DhcpServer, |mark| v6(GATEWAY6, (547, 546), mark)),
        ]);
        let mark = marker();
        let mut frame = v4(B, (67, 68), &mark);
        frame[..6].copy_from_slice(&arena.b.mac);
        assert_eq!(arena.fate(Way::Sibling, &frame, &mark), Fate::refused(DhcpServer));
    }
}

#[test]
fn row_11_link_local_addresses_are_no_back_door() {
    // Without an IPv6 prefix a zone has no say in link-local unicast: ICMPv6 alone passes.
    let node = Node::dual(&strict());
    let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
    assert!(node.row(&pod).v6.iter().all(|address| *address == [0; 16]));
    drop((node, pod));

    let arena = Arena::new(&strict());
    let own = link_local(arena.a.mac);
    let other = link_local(OUTSIDE_MAC);
    let from = |source, destination, next: u8, body: &[u8]| {
        arena.frame(ethertype::IPV6, &ipv6(source, destination, next, body))
    };
    let echo = |mark: &[u8]| [&[128, 0, 0, 0, 0, 1, 0, 1][..], mark].concat();
    arena.table(vec![
        attempt("one's own to another's", HONEST, |mark| from(own, other, protocol::ICMPV6, &echo(mark))),
        attempt("the router's", SourceV6, |mark| from(other, GATEWAY6, protocol::ICMPV6, &echo(mark))),
        attempt("a sibling's", SourceV6, |mark| {
            from(link_local(arena.b.mac), other, protocol::ICMPV6, &echo(mark))
        }),
        attempt("one's own to outside", ZoneDeny, |mark| from(own, INTERNET6, protocol::ICMPV6, &echo(mark))),
    ]);
}

#[test]
fn row_11_link_local_unicast_is_icmpv6_alone_where_the_zone_has_no_ipv6() {
    let node = Node::dual(&strict());
    // The address alone, and a zone that says nothing of IPv6.
    let zone = serde_json::json!({ "policy": "private", "local": ["10.12.34.0/24"] });
    let pod = node.pod(&["10.12.34.200/24"], Some(&zone));
    pod.netns.set_sysctl("net/ipv6/conf/net1/disable_ipv6", "0");
    let (inside, far) = (pod.socket(), node.far_end());
    let (own, other) = (link_local(pod.mac), link_local(OUTSIDE_MAC));
    for (next, passes) in [(protocol::ICMPV6, true), (protocol::UDP, false)] {
        let mark = marker();
        let body = if passes { [&[128, 0, 0, 0, 0, 1, 0, 1][..], &mark].concat() } else { udp(1, 2, &mark) };
        let frame = ethernet(OUTSIDE_MAC, pod.mac, ethertype::IPV6, &ipv6(own, other, next, &body));
        let before = node.drops(&pod);
        let fence = crate::common::node::pod_fence(&pod, A);
        let arrived = crate::common::node::crosses(&inside, &far, &frame, &mark, fence);
        let at = crate::common::node::at(LinkLocal);
        let dropped = node.drops(&pod).tx_dropped[at] - before.tx_dropped[at];
        assert_eq!((arrived, dropped), (passes, u64::from(!passes)), "next header {next}");
    }
}

#[test]
fn row_12_arp_claims_nothing_but_oneself() {
    for entry in both_hooks() {
        let arena = Arena::new(&entry);
        let a = arena.a.mac;
        // A trailer in the padding tells the frames apart.
        let send = |operation, sender: (Mac, _), target: (Mac, _), mark: &[u8]| {
            arena.frame(ethertype::ARP, &[&arp(operation, sender, target), mark].concat())
        };
        let nobody: Mac = [0; 6];
        let zero = std::net::Ipv4Addr::UNSPECIFIED;
        arena.table(vec![
            attempt("a question", HONEST, |mark| send(1, (a, A), (nobody, GATEWAY), mark)),
            attempt("an answer", HONEST, |mark| send(2, (a, A), (OUTSIDE_MAC, GATEWAY), mark)),
            attempt("an announcement", HONEST, |mark| send(1, (a, A), (nobody, A), mark)),
            attempt("a probe for one's own", HONEST, |mark| send(1, (a, zero), (nobody, A), mark)),
            attempt("an answer to a probe", HONEST, |mark| send(2, (a, A), (OUTSIDE_MAC, zero), mark)),
            attempt("a sibling's address, as an answer to a probe", SourceArp, |mark| {
                send(2, (a, B), (OUTSIDE_MAC, zero), mark)
            }),
            attempt("the gateway's address, as an answer", SourceArp, |mark| {
                send(2, (a, GATEWAY), (OUTSIDE_MAC, NODE), mark)
            }),
            attempt("the gateway's address, as a question", SourceArp, |mark| {
                send(1, (a, GATEWAY), (nobody, NODE), mark)
            }),
            attempt("the gateway's address, as an announcement", SourceArp, |mark| {
                send(1, (a, GATEWAY), (nobody, GATEWAY), mark)
            }),
            attempt("a sibling's address", SourceArp, |mark| send(2, (a, B), (OUTSIDE_MAC, GATEWAY), mark)),
            attempt("the node's address", SourceArp, |mark| send(2, (a, NODE), (OUTSIDE_MAC, GATEWAY), mark)),
            attempt("one's own address at a sibling's MAC", SourceArp, |mark| {
                send(2, (arena.b.mac, A), (OUTSIDE_MAC, GATEWAY), mark)
            }),
            attempt("one's own address at nobody's MAC", SourceArp, |mark| {
                send(2, (STRANGER, A), (OUTSIDE_MAC, GATEWAY), mark)
            }),
            attempt("an answer from nobody", SourceArp, |mark| {
                send(2, (a, zero), (OUTSIDE_MAC, GATEWAY), mark)
            }),
            attempt("an operation that does not exist", SourceArp, |mark| {
                send(9, (a, A), (OUTSIDE_MAC, GATEWAY), mark)
            }),
            attempt("a question for what is outside", ZoneDeny, |mark| {
                send(1, (a, A), (nobody, INTERNET), mark)
            }),
        ]);
        // Unicast to the sibling it passes a program, and is judged there.
        let mark = marker();
        let mut frame = send(2, (a, GATEWAY), (arena.b.mac, B), &mark);
        frame[..6].copy_from_slice(&arena.b.mac);
        assert_eq!(arena.fate(Way::Sibling, &frame, &mark), Fate::refused(SourceArp));
    }
}

#[test]
fn row_12_neighbour_discovery_claims_nothing_but_oneself() {
    for entry in both_hooks() {
        let arena = Arena::new(&entry);
        let a = arena.a.mac;
        let send = |source, destination, body: Vec<u8>, mark: &[u8]| {
            let packet = ipv6(source, destination, protocol::ICMPV6, &body);
            let mac = if destination == ALL_NODES { ALL_NODES_MAC } else { OUTSIDE_MAC };
            ethernet(mac, a, ethertype::IPV6, &[packet, mark.to_vec()].concat())
        };
        let with = |mut body: Vec<u8>, more: &[u8]| {
            body.extend(more);
            body
        };
        let option = |kind: u8, mac: Mac| [&[kind, 1][..], &mac].concat();
        arena.table(vec![
            attempt("an answer", HONEST, |mark| send(A6, GATEWAY6, advertisement(A6, a), mark)),
            attempt("an answer to everybody", HONEST, |mark| send(A6, ALL_NODES, advertisement(A6, a), mark)),
            attempt("a question", HONEST, |mark| send(A6, GATEWAY6, solicitation(GATEWAY6, a), mark)),
            attempt("the gateway's address", SourceNd, |mark| {
                send(A6, ALL_NODES, advertisement(GATEWAY6, a), mark)
            }),
            attempt("the gateway's address to one", SourceNd, |mark| {
                send(A6, GATEWAY6, advertisement(GATEWAY6, a), mark)
            }),
            attempt("a sibling's address", SourceNd, |mark| send(A6, GATEWAY6, advertisement(B6, a), mark)),
            attempt("one's own at another MAC", SourceNd, |mark| {
                send(A6, GATEWAY6, advertisement(A6, STRANGER), mark)
            }),
            attempt("a question that names another MAC", SourceNd, |mark| {
                send(A6, GATEWAY6, solicitation(GATEWAY6, STRANGER), mark)
            }),
            attempt("another MAC in a second option", SourceNd, |mark| {
                send(A6, GATEWAY6, with(advertisement(A6, a), &option(2, STRANGER)), mark)
            }),
            attempt("another MAC in a third option", SourceNd, |mark| {
                let more = [option(2, a), option(2, STRANGER)].concat();
                send(A6, GATEWAY6, with(advertisement(A6, a), &more), mark)
            }),
            attempt("an option that hides the next", SourceNd, |mark| {
                let mut body = advertisement(A6, a);
                body[25] = 2;
                send(A6, GATEWAY6, with(body, &option(2, STRANGER)), mark)
            }),
            attempt("behind an extension header", SourceNd, |mark| {
                let header = [protocol::ICMPV6, 0, 1, 4, 0, 0, 0, 0];
                let packet = ipv6(A6, GATEWAY6, 60, &[&header[..], &advertisement(A6, a)].concat());
                arena.frame(ethertype::IPV6, &[packet, mark.to_vec()].concat())
            }),
            attempt("a question for what is outside", ZoneDeny, |mark| {
                send(A6, GATEWAY6, solicitation(INTERNET6, a), mark).aimed_at(INTERNET6)
            }),
        ]);
    }
}

#[test]
fn row_12_nobodys_duplicate_address_detection_is_disturbed() {
    for entry in both_hooks() {
        let arena = Arena::new(&entry);
        let a = arena.a.mac;
        let probe = |target, mark: &[u8]| {
            let body = arp(1, (a, std::net::Ipv4Addr::UNSPECIFIED), ([0; 6], target));
            // To the wire alone: the sibling would answer a broadcast, as it should.
            ethernet(OUTSIDE_MAC, a, ethertype::ARP, &[body, mark.to_vec()].concat())
        };
        let detection = |target: Ipv6Addr, mark: &[u8]| {
            let [.., x, y, z] = target.octets();
            let group =
                Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(x), u16::from_be_bytes([y, z]));
            let mut body = vec![135, 0, 0, 0, 0, 0, 0, 0];
            body.extend(target.octets());
            let packet = ipv6(Ipv6Addr::UNSPECIFIED, group, protocol::ICMPV6, &body);
            ethernet([0x33, 0x33, 0xff, x, y, z], a, ethertype::IPV6, &[packet, mark.to_vec()].concat())
        };
        arena.table(vec![
            attempt("of one's own", HONEST, |mark| probe(A, mark)),
            attempt("of one's own, IPv6", HONEST, |mark| detection(A6, mark)),
            attempt("of one's own link-local address", HONEST, |mark| detection(link_local(a), mark)),
            attempt("of a sibling's", SourceArp, |mark| probe(B, mark)),
            attempt("of the gateway's", SourceArp, |mark| probe(GATEWAY, mark)),
            attempt("of a sibling's, IPv6", SourceNd, |mark| detection(B6, mark)),
            attempt("of the gateway's, IPv6", SourceNd, |mark| detection(GATEWAY6, mark)),
            attempt("of the gateway's link-local address", SourceNd, |mark| {
                detection(link_local(OUTSIDE_MAC), mark)
            }),
        ]);
    }
}

/// Aims a frame at another IPv6 address.
trait Aim {
    fn aimed_at(self, destination: Ipv6Addr) -> Self;
}

impl Aim for Vec<u8> {
    fn aimed_at(mut self, destination: Ipv6Addr) -> Self {
        self[38..54].copy_from_slice(&destination.octets());
        self
    }
}

/// Whom a pod takes for the gateway.
fn believed(pod: &crate::common::node::Pod) -> String {
    let shown: Value =
        serde_json::from_str(&pod.netns.ip(&format!("-j neigh show {GATEWAY} dev net1"))).expect("JSON");
    shown[0]["lladdr"].as_str().unwrap_or_default().to_owned()
}

/// An ARP announcement of the gateway's address at the attacker's MAC, to everybody.
fn poison(arena: &Arena, mark: &[u8]) -> Vec<u8> {
    let body = arp(2, (arena.a.mac, GATEWAY), (arena.a.mac, GATEWAY));
    ethernet(BROADCAST, arena.a.mac, ethertype::ARP, &[body, mark.to_vec()].concat())
}

#[test]
fn row_12_out_of_reach_a_broadcast_lie_reaches_siblings_in_bridge_mode_and_a_static_entry_helps() {
    let arena = Arena::new(&strict());
    // The sibling has learnt the gateway as it should.
    arena.b.netns.ip(&format!("neigh replace {GATEWAY} lladdr {} dev net1 nud stale", text(OUTSIDE_MAC)));
    let (from, far, sibling) = (arena.a.socket(), arena.node.far_end(), arena.b.socket());
    let mark = marker();
    let fate = arena.one_fate(Way::Out, &from, &far, &poison(&arena, &mark), &mark);
    assert_eq!(fate, Fate::refused(SourceArp), "the wire's copy is stopped and counted");
    let last = marker();
    from.send(&arena.fence(Way::Sibling, &last)).expect("the fence is allowed");
    assert!(
        sibling.until(&last).iter().any(|seen| carries(seen, &mark)),
        "the sibling's copy passes no program"
    );
    eventually(PATIENCE, "the sibling believes it", || {
        (believed(&arena.b) == text(arena.a.mac)).then_some(())
    });

    // What an administrator does: an entry that ARP cannot change.
    arena.b.knows(GATEWAY, OUTSIDE_MAC);
    let mark = marker();
    let _ = from.send(&poison(&arena, &mark));
    let last = marker();
    from.send(&arena.fence(Way::Sibling, &last)).expect("the fence is allowed");
    assert!(sibling.until(&last).iter().any(|seen| carries(seen, &mark)));
    assert_eq!(believed(&arena.b), text(OUTSIDE_MAC));
}

#[test]
fn row_12_in_private_and_vepa_mode_no_copy_reaches_a_sibling() {
    for mode in ["private", "vepa"] {
        let node = Node::dual(&strict());
        let pod = |v4: &str| {
            let mut conf = crate::common::node::conf(&[v4], Some(&private()));
            conf["mode"] = serde_json::json!(mode);
            node.pod_with(conf)
        };
        let arena = Arena { a: pod("10.12.34.200/24"), b: pod("10.12.34.201/24"), node };
        arena.b.netns.ip(&format!("neigh replace {GATEWAY} lladdr {} dev net1 nud stale", text(OUTSIDE_MAC)));
        let (from, far, sibling) = (arena.a.socket(), arena.node.far_end(), arena.b.socket());
        let mark = marker();
        let fate = arena.one_fate(Way::Out, &from, &far, &poison(&arena, &mark), &mark);
        assert_eq!(fate, Fate::refused(SourceArp), "{mode}");
        // What the sibling hears comes from the wire.
        let last = marker();
        let fence = ethernet(
            arena.b.mac,
            OUTSIDE_MAC,
            ethertype::IPV4,
            &ipv4(GATEWAY, B, protocol::UDP, &udp(9, 9, &last)),
        );
        far.send(&fence).expect("sent");
        assert!(!sibling.until(&last).iter().any(|seen| carries(seen, &mark)), "{mode}");
        assert_eq!(believed(&arena.b), text(OUTSIDE_MAC), "{mode}");
    }
}
