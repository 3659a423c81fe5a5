//! A host inside the zone that carries things on: a list of addresses sees whom a packet is for, not what is in it;
//! a list of ports leaves little to carry things in.

use std::net::UdpSocket;
use std::thread;

use netpath_ebpf::drop_reason::DropReason::{Fragment, ZoneDeny};

use crate::arena::{A, A6, Arena, HONEST, attempt, strict};
use crate::common::PATIENCE;
use crate::common::node::{GATEWAY, GATEWAY6, INTERNET, INTERNET6, WIRE, text};
use crate::common::wire::{ethertype, ipv4, ipv6, marker, protocol, udp};

const IPIP: u8 = 4;
const IPV6_IN_IPV4: u8 = 41;
const GRE: u8 = 47;
const ESP: u8 = 50;

#[test]
fn row_14_out_of_reach_a_tunnel_to_a_host_inside_passes_and_one_to_outside_does_not() {
    let arena = Arena::new(&strict());
    let inner = |mark: &[u8]| ipv4(A, INTERNET, protocol::UDP, &udp(1, 2, mark));
    let inner6 = |mark: &[u8]| ipv6(A6, INTERNET6, protocol::UDP, &udp(1, 2, mark));
    let gre = |mark: &[u8]| [&[0, 0, 8, 0][..], &inner(mark)].concat();
    let vxlan = |mark: &[u8]| {
        udp(1, 4789, &[&[8, 0, 0, 0, 0, 0, 1, 0][..], &[0; 12], &[8, 0], &inner(mark)].concat())
    };
    let wireguard = |mark: &[u8]| udp(51820, 51820, &[&[4, 0, 0, 0][..], mark].concat());
    for (destination, destination6, expected) in
        [(GATEWAY, GATEWAY6, HONEST), (INTERNET, INTERNET6, Some(ZoneDeny))]
    {
        arena.table(vec![
            attempt("IPv4 in IPv4", expected, |mark| arena.v4(destination, IPIP, &inner(mark))),
            attempt("IPv6 in IPv4", expected, |mark| arena.v4(destination, IPV6_IN_IPV4, &inner6(mark))),
            attempt("GRE", expected, |mark| arena.v4(destination, GRE, &gre(mark))),
            attempt("ESP", expected, |mark| arena.v4(destination, ESP, &[&[0; 8], mark].concat())),
            attempt("VXLAN", expected, |mark| arena.v4(destination, protocol::UDP, &vxlan(mark))),
            attempt("WireGuard", expected, |mark| arena.v4(destination, protocol::UDP, &wireguard(mark))),
            attempt("IPv6 in IPv6", expected, |mark| arena.v6(destination6, IPV6_IN_IPV4, &inner6(mark))),
            attempt("IPv4 in IPv6", expected, |mark| arena.v6(destination6, IPIP, &inner(mark))),
        ]);
    }
}

#[test]
fn row_15_out_of_reach_a_proxy_inside_the_zone_carries_anything_out() {
    let arena = Arena::new(&strict());
    let node = &arena.node;
    node.outside.ip(&format!("neigh replace {A} lladdr {} dev {WIRE} nud permanent", text(arena.a.mac)));
    let bound = |address| {
        let socket = node.outside.within(|| UdpSocket::bind((address, 3128))).expect("free");
        socket.set_read_timeout(Some(PATIENCE)).expect("set");
        socket
    };
    let (proxy, internet) = (bound(GATEWAY), bound(INTERNET));
    let pod = arena.a.netns.within(|| UdpSocket::bind((A, 0))).expect("free");
    let secret = marker();
    pod.send_to(&secret, (GATEWAY, 3128)).expect("sent");
    let mut buffer = [0; 100];
    let length = thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 100];
            let (length, _) = proxy.recv_from(&mut buffer).expect("the pod's datagram");
            proxy.send_to(&buffer[..length], (INTERNET, 3128)).expect("passed on");
        });
        internet.recv_from(&mut buffer).expect("what the proxy passed on").0
    });
    assert_eq!(&buffer[..length], secret);
    let totals = node.drops(&arena.a);
    assert_eq!(totals.tx_dropped.iter().sum::<u64>(), 0, "nothing of it can be seen on the master");
}

#[test]
fn row_14_a_list_of_ports_leaves_tunnels_and_proxies_no_way() {
    // Port 9 is that of the fence behind each frame.
    let zone = serde_json::json!({
        "policy": "private", "local": [],
        "allow": [
            { "cidr": GATEWAY.to_string(), "ports": ["tcp/443", "udp/53", "udp/9"] },
            { "cidr": GATEWAY6.to_string(), "ports": ["tcp/443"] },
        ],
    });
    let arena = Arena::zones(&strict(), &zone, &zone);
    let tcp = |port: u16, mark: &[u8]| {
        let port = port.to_be_bytes();
        [&[0x9c, 0x40, port[0], port[1]][..], &[0; 8], &[0x50, 2, 0xff, 0xff, 0, 0, 0, 0], mark].concat()
    };
    let datagram = |port: u16, mark: &[u8]| arena.v4(GATEWAY, protocol::UDP, &udp(1000, port, mark));
    let inner = |mark: &[u8]| ipv4(A, INTERNET, protocol::UDP, &udp(1, 2, mark));
    let inner6 = |mark: &[u8]| ipv6(A6, INTERNET6, protocol::UDP, &udp(1, 2, mark));
    let fragment = |word: u16, mark: &[u8]| {
        let mut packet = ipv4(A, GATEWAY, protocol::UDP, &udp(1000, 53, mark));
        packet[6..8].copy_from_slice(&word.to_be_bytes());
        arena.frame(ethertype::IPV4, &packet)
    };
    arena.table(vec![
        attempt("a port of the list", HONEST, |mark| datagram(53, mark)),
        attempt("TCP to a port of the list", HONEST, |mark| {
            arena.v4(GATEWAY, protocol::TCP, &tcp(443, mark))
        }),
        attempt("TCP to a port of the list, IPv6", HONEST, |mark| {
            arena.v6(GATEWAY6, protocol::TCP, &tcp(443, mark))
        }),
        attempt("VXLAN", ZoneDeny, |mark| datagram(4789, mark)),
        attempt("WireGuard", ZoneDeny, |mark| datagram(51820, mark)),
        attempt("a web proxy", ZoneDeny, |mark| arena.v4(GATEWAY, protocol::TCP, &tcp(3128, mark))),
        attempt("a web proxy, IPv6", ZoneDeny, |mark| arena.v6(GATEWAY6, protocol::TCP, &tcp(3128, mark))),
        attempt("a port of the list as one's own", ZoneDeny, |mark| {
            arena.v4(GATEWAY, protocol::UDP, &udp(53, 4789, mark))
        }),
        attempt("IPv4 in IPv4", ZoneDeny, |mark| arena.v4(GATEWAY, IPIP, &inner(mark))),
        attempt("IPv6 in IPv4", ZoneDeny, |mark| arena.v4(GATEWAY, IPV6_IN_IPV4, &inner6(mark))),
        attempt("IPv4 in IPv6", ZoneDeny, |mark| arena.v6(GATEWAY6, IPIP, &inner(mark))),
        attempt("GRE", ZoneDeny, |mark| arena.v4(GATEWAY, GRE, &inner(mark))),
        attempt("ESP", ZoneDeny, |mark| arena.v4(GATEWAY, ESP, &[&[0; 8], mark].concat())),
        attempt("in the body of a ping", ZoneDeny, |mark| {
            arena.v4(GATEWAY, protocol::ICMP, &[&[8, 0, 0, 0, 0, 1, 0, 1], mark].concat())
        }),
        attempt("by a port of the list to elsewhere", ZoneDeny, |mark| {
            arena.v4(INTERNET, protocol::UDP, &udp(1000, 53, mark))
        }),
        // Ports stand in the first fragment alone.
        attempt("a later fragment", Fragment, |mark| fragment(185, mark)),
        attempt("the first fragment", HONEST, |mark| fragment(0x2000, mark)),
    ]);
}
