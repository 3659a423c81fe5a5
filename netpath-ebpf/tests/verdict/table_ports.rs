//! Cases of a zone in which ports decide: always those of the other end.

use std::net::{Ipv4Addr, Ipv6Addr};

use netpath_ebpf::drop_reason::DropReason::{Fragment, Malformed, SourceV4, SourceV6, ZoneDeny};

use super::{
    cases::{PASS, Table},
    frames::{Carried, POD_MAC, arp, error4, error6, icmp, icmp6, neighbour, raw, sctp, tcp, udp, v4, v6},
    model::{DENIED4, FAR4, FAR6, NEAR4, NEAR6, POD4, POD6, Setup},
};

/// In the /16 alone.
const WIDE: Ipv4Addr = Ipv4Addr::new(172, 16, 200, 1);
/// In the /24 inside it.
const NARROW: Ipv4Addr = Ipv4Addr::new(172, 16, 5, 1);
/// Denied inside the /24.
const SHUT: Ipv4Addr = Ipv4Addr::new(172, 16, 5, 66);
/// ICMP alone.
const PINGED: Ipv4Addr = Ipv4Addr::new(172, 16, 6, 1);
/// All of TCP.
const ALL_TCP: Ipv4Addr = Ipv4Addr::new(172, 16, 7, 1);
const NARROW6: Ipv6Addr = Ipv6Addr::new(0xfd00, 5, 0, 0, 0, 0, 0, 1);
const NAMES6: Ipv6Addr = Ipv6Addr::new(0xfd00, 6, 0, 0, 0, 0, 0, 1);

const DENY: Option<netpath_ebpf::drop_reason::DropReason> = Some(ZoneDeny);

/// IPv4: each protocol, the edges of ranges, nesting, fragments, what has no ports.
pub(super) fn v4_ports(t: &mut Table) {
    let p = Setup::Ports;
    // The pod's own address lies in its local prefix, so that its frames seen from the wire are let in.
    let mut to = |name, other, carried: Carried, egress| {
        t.on(p, name, v4(POD4, other, carried).frame(), egress, PASS);
    };
    to("TCP to the allowed port", WIDE, tcp(40_000, 443), PASS);
    to("TCP to the port before it", WIDE, tcp(443, 442), DENY);
    to("TCP to the port behind it", WIDE, tcp(443, 444), DENY);
    to("UDP to the number of a TCP port", WIDE, udp(40_000, 443), DENY);
    to("UDP to the first port of a range", WIDE, udp(1, 1000), PASS);
    to("UDP to the last port of a range", WIDE, udp(1, 2000), PASS);
    to("UDP before a range", WIDE, udp(1, 999), DENY);
    to("UDP behind a range", WIDE, udp(1, 2001), DENY);
    to("UDP to a denied port inside an allowed range", WIDE, udp(1, 1500), DENY);
    to("UDP beside a denied port inside an allowed range", WIDE, udp(1, 1501), PASS);
    to("ping where ports alone are allowed", WIDE, icmp(8, &[]), DENY);
    to("GRE where ports alone are allowed", WIDE, raw(47, &[0; 8]), DENY);
    to("a port of the wider prefix inside the longer one", NARROW, tcp(1, 443), PASS);
    to("a port of the longer prefix", NARROW, udp(1, 53), PASS);
    to("a port of neither prefix", NARROW, tcp(1, 80), DENY);
    to("an SCTP port", NARROW, sctp(1, 3868), PASS);
    to("another SCTP port", NARROW, sctp(3868, 1), DENY);
    to("an allowed port of a host that is denied as a whole", SHUT, tcp(1, 443), DENY);
    to("ping where ICMP is allowed", PINGED, icmp(8, &[]), PASS);
    to("TCP where ICMP is allowed", PINGED, tcp(1, 443), DENY);
    to("TCP port 0 where all of TCP is allowed", ALL_TCP, tcp(1, 0), PASS);
    to("TCP port 65535 where all of TCP is allowed", ALL_TCP, tcp(1, 65_535), PASS);
    to("UDP where all of TCP is allowed", ALL_TCP, udp(1, 443), DENY);
    to("an allowed port outside the zone", FAR4, tcp(1, 443), DENY);
    to("a local neighbour by any port", NEAR4, tcp(1, 80), PASS);
    to("a local neighbour by a denied port", NEAR4, tcp(1, 22), DENY);
    to("a local neighbour by the same port of UDP", NEAR4, udp(1, 22), PASS);
    to("a denied host by any port", DENIED4, udp(1, 22), DENY);

    let first = v4(POD4, WIDE, udp(1, 1000)).fragment(0x2000).frame();
    t.on(p, "a first fragment has ports", first, PASS, PASS);
    let later = |other| v4(POD4, other, raw(17, &[0; 16])).fragment(2).frame();
    // The pod's own prefix has a port rule as well.
    t.on(p, "a later fragment to a prefix with ports", later(WIDE), Some(Fragment), Some(Fragment));
    t.on(p, "a later fragment to a prefix without", later(SHUT), DENY, Some(Fragment));
    t.on(p, "a later fragment outside the zone", later(FAR4), DENY, Some(Fragment));
    let short = v4(POD4, NARROW, raw(132, &[0; 11])).frame();
    t.on(p, "an SCTP header cut off", short, Some(Malformed), Some(Malformed));

    let mut from = |name, other, carried: Carried, ingress| {
        t.on(p, name, v4(other, POD4, carried).frame(), Some(SourceV4), ingress);
    };
    from("an answer from the allowed port", WIDE, tcp(443, 40_000), PASS);
    from("TCP to the allowed port from another", WIDE, tcp(40_000, 443), DENY);
    from("an SCTP answer", NARROW, sctp(3868, 7), PASS);
    from("a ping from where ICMP is allowed", PINGED, icmp(8, &[]), PASS);
    from("from a denied port of a neighbour", NEAR4, tcp(22, 40_000), DENY);
    from("to the same port of the pod", NEAR4, tcp(40_000, 22), PASS);
    let sent = v4(POD4, WIDE, tcp(40_000, 443)).frame();
    from("an error from a router about a packet to a prefix with ports", FAR4, error4(3, &sent, 28), PASS);
    let sent = v4(POD4, SHUT, tcp(40_000, 443)).frame();
    from("an error from a router about a packet to a denied host", FAR4, error4(3, &sent, 28), DENY);

    let ask = |target| arp(1, POD_MAC, POD4, target);
    t.on(p, "ARP for a host by ports alone", ask(WIDE), PASS, PASS);
    t.on(p, "ARP for a host that is denied as a whole", ask(SHUT), DENY, PASS);
}

/// IPv6: the same, and extension headers in front.
pub(super) fn v6_ports(t: &mut Table) {
    let p = Setup::Ports;
    let mut to = |name, frame, egress| t.on(p, name, frame, egress, PASS);
    to("IPv6 TCP to the allowed port", v6(POD6, NARROW6, tcp(1, 443)).frame(), PASS);
    to("IPv6 TCP to another port", v6(POD6, NARROW6, tcp(443, 80)).frame(), DENY);
    to("IPv6 SCTP", v6(POD6, NARROW6, sctp(1, 3868)).frame(), PASS);
    to("IPv6 SCTP behind options", v6(POD6, NARROW6, sctp(1, 3868)).options(2).frame(), PASS);
    to("IPv6 TCP behind options", v6(POD6, NARROW6, tcp(1, 443)).options(1).frame(), PASS);
    to("IPv6 TCP to another port behind options", v6(POD6, NARROW6, tcp(1, 444)).options(1).frame(), DENY);
    to("ping where ICMPv6 is allowed", v6(POD6, NARROW6, icmp6(128, &[0; 4])).frame(), PASS);
    to("ping where a port alone is allowed", v6(POD6, NAMES6, icmp6(128, &[0; 4])).frame(), DENY);
    to("IPv6 first fragment", v6(POD6, NAMES6, udp(1, 53)).fragment(1).frame(), PASS);
    to("IPv6 neighbour by a denied port", v6(POD6, NEAR6, tcp(1, 22)).frame(), DENY);
    to("solicitation of a host by ports alone", v6(POD6, NAMES6, neighbour(135, NAMES6, &[])).frame(), PASS);
    let later = v6(POD6, NAMES6, raw(17, &[0; 16])).fragment(8).frame();
    t.on(p, "IPv6 later fragment to a prefix with ports", later, Some(Fragment), Some(Fragment));
    let short = v6(POD6, NARROW6, raw(132, &[0; 11])).frame();
    t.on(p, "an SCTP header over IPv6 cut off", short, Some(Malformed), Some(Malformed));

    let mut from = |name, other, carried: Carried, ingress| {
        t.on(p, name, v6(other, POD6, carried).frame(), Some(SourceV6), ingress);
    };
    from("an IPv6 answer from the allowed port", NAMES6, udp(53, 9), PASS);
    from("IPv6 from another port", NAMES6, udp(9, 53), DENY);
    from("a solicitation by a host that ports alone allow", NAMES6, neighbour(135, POD6, &[]), PASS);
    from("an advertisement of a host that ports alone allow", NAMES6, neighbour(136, NAMES6, &[]), PASS);
    from("an advertisement of a host outside the zone", FAR6, neighbour(136, FAR6, &[]), DENY);
    from("a ping by a host that ports alone allow", NAMES6, icmp6(128, &[0; 4]), DENY);
    let sent = v6(POD6, NAMES6, udp(9, 53)).frame();
    from("an ICMPv6 error about a packet to a prefix with ports", FAR6, error6(2, &sent, 48), PASS);
}
