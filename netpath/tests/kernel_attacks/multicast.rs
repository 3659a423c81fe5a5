//! Groups and broadcasts: what must go to everybody on the link goes there once; nothing else leaves by a group.

use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::Duration;

use netpath_ebpf::drop_reason::DropReason::ZoneDeny;

use crate::arena::{A, A6, Arena, HONEST, attempt, both_hooks, strict};
use crate::common::node::{GATEWAY, INTERNET, OUTSIDE_MAC, WIRE, text};
use crate::common::wire::{BROADCAST, ethernet, ethertype, ipv4, ipv6, marker, protocol, udp};
use crate::common::{PATIENCE, eventually};

#[test]
fn row_13_groups_beyond_the_link_are_no_way_out() {
    for entry in both_hooks() {
        let arena = Arena::new(&entry);
        let a = arena.a.mac;
        let v4 = |destination: &str, mark: &[u8]| {
            let destination: Ipv4Addr = destination.parse().expect("an address");
            let [_, b, c, d] = destination.octets();
            let mac = if destination.is_multicast() { [1, 0, 0x5e, b & 0x7f, c, d] } else { BROADCAST };
            let packet = ipv4(A, destination, protocol::UDP, &udp(1, 2, mark));
            ethernet(mac, a, ethertype::IPV4, &packet)
        };
        let v6 = |destination: &str, mark: &[u8]| {
            let destination: Ipv6Addr = destination.parse().expect("an address");
            let [.., w, x, y, z] = destination.octets();
            let packet = ipv6(A6, destination, protocol::UDP, &udp(1, 2, mark));
            ethernet([0x33, 0x33, w, x, y, z], a, ethertype::IPV6, &packet)
        };
        let mut table = Vec::new();
        for (destination, expected) in [
            ("255.255.255.255", HONEST),
            ("10.12.34.255", HONEST),
            ("224.0.0.1", HONEST),
            ("224.0.0.251", HONEST),
            ("224.0.1.0", Some(ZoneDeny)),
            ("224.0.1.1", Some(ZoneDeny)),
            ("232.1.1.1", Some(ZoneDeny)),
            ("239.255.255.250", Some(ZoneDeny)),
            ("8.8.8.255", Some(ZoneDeny)),
        ] {
            table.push(attempt(destination, expected, |mark| v4(destination, mark)));
        }
        for (destination, expected) in [
            ("ff01::1", HONEST),
            ("ff02::1", HONEST),
            ("ff02::16", HONEST),
            ("ff02::1:ff00:200", HONEST),
            ("ff04::1", Some(ZoneDeny)),
            ("ff05::1:3", Some(ZoneDeny)),
            ("ff08::1", Some(ZoneDeny)),
            ("ff0e::1", Some(ZoneDeny)),
            ("ff32:40:2001:db8::1", HONEST),
            ("ff3e:40:2001:db8::1", Some(ZoneDeny)),
        ] {
            table.push(attempt(destination, expected, |mark| v6(destination, mark)));
        }
        // Unicast in a frame to everybody, and a group in a frame to one: what counts is the IP address.
        table.push(attempt("unicast outside in a broadcast", ZoneDeny, |mark| {
            let packet = ipv4(A, INTERNET, protocol::UDP, &udp(1, 2, mark));
            ethernet(BROADCAST, a, ethertype::IPV4, &packet)
        }));
        table.push(attempt("a far group in a frame to one", ZoneDeny, |mark| {
            arena.udp(Ipv4Addr::new(239, 255, 255, 250), mark)
        }));
        arena.table(table);
    }
}

#[test]
fn row_13_unicast_in_a_frame_to_everybody_reaches_no_socket() {
    let arena = Arena::new(&strict());
    let (node, pod) = (&arena.node, &arena.a);
    node.outside.ip(&format!("neigh replace {A} lladdr {} dev {WIRE} nud permanent", text(pod.mac)));
    let socket = pod.netns.within(|| UdpSocket::bind((A, 4000))).expect("free");
    socket.set_read_timeout(Some(PATIENCE)).expect("set");
    // The checksum is none: a wrong one would keep the datagram from the socket for another reason.
    let datagram = |destination, from, source, payload: &[u8]| {
        let mut body = udp(4000, 4000, payload);
        body[6..8].fill(0);
        ethernet(destination, from, ethertype::IPV4, &ipv4(source, A, protocol::UDP, &body))
    };
    let far = node.far_end();
    let before = node.totals().group_packets;
    for (source, payload) in [(INTERNET, &b"from outside"[..]), (GATEWAY, b"from the gateway")] {
        far.send(&datagram(BROADCAST, OUTSIDE_MAC, source, payload)).expect("sent");
    }
    // From a sibling, whose copy no hook sees: the setting in the pod is the only guard.
    let _ = arena.b.socket().send(&datagram(BROADCAST, arena.b.mac, INTERNET, b"from a sibling"));
    eventually(PATIENCE, "the group frames were counted", || {
        (node.totals().group_packets >= before + 2).then_some(())
    });
    for version in ["ipv4", "ipv6"] {
        let key = format!("net/{version}/conf/net1/drop_unicast_in_l2_multicast");
        assert_eq!(pod.netns.sysctl(&key), "1");
    }
    let honest = marker();
    far.send(&datagram(pod.mac, OUTSIDE_MAC, GATEWAY, &honest)).expect("sent");
    let mut received = [0; 100];
    let (length, _) = socket.recv_from(&mut received).expect("the datagram that is for it");
    assert_eq!(&received[..length], honest, "and nothing came before it");
    socket.set_read_timeout(Some(Duration::from_millis(20))).expect("set");
    socket.recv_from(&mut received).expect_err("nor behind it");
}
