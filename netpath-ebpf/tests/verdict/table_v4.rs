//! Cases of the link layer, ARP and IPv4.

use std::net::Ipv4Addr;

use netpath_ebpf::drop_reason::DropReason::{
    DhcpServer, Ethertype, IpOptions, Malformed, SourceArp, SourceV4, Vlan, ZoneDeny, ZoneNotLoaded,
};

use super::{
    cases::{PASS, Table},
    frames::{
        ARP, IPV4, PEER_MAC, POD_MAC, arp as arp_packet, cut, error4, ethernet, icmp, igmp, padded, raw, tcp,
        udp, v4, with,
    },
    model::{BROADCAST4, DENIED4, FAR4, GATEWAY4, NEAR4, NOBODY4, ONE_WAY4, POD4, POD4_SECOND, Setup},
};

const ROUTERS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 22);

/// What is not IP at all.
pub(super) fn link_layer(t: &mut Table) {
    let ip = v4(POD4, NEAR4, udp(1, 2)).frame();
    let tagged = |tpid: u16| ethernet(tpid, &[&[0, 100][..], &ip[12..]].concat());
    t.add("802.1Q tag", tagged(0x8100), Some(Vlan), Some(Vlan));
    t.add("802.1ad tag", tagged(0x88a8), Some(Vlan), Some(Vlan));
    t.add("old QinQ tag", tagged(0x9100), Some(Vlan), Some(Vlan));
    t.add("priority tag", ethernet(0x8100, &[&[0, 0][..], &ip[12..]].concat()), Some(Vlan), Some(Vlan));
    t.add("a tag and no more", ethernet(0x8100, &[]), Some(Vlan), Some(Vlan));
    let other = Some(Ethertype);
    t.add("LLDP", ethernet(0x88cc, &[2, 7, 4, 0, 0, 0]), other, other);
    t.add("MPLS", ethernet(0x8847, &[0; 24]), other, other);
    t.add("PPPoE", ethernet(0x8864, &[0; 24]), other, other);
    t.add("EAPOL", ethernet(0x888e, &[0; 24]), other, other);
    t.add("RARP", ethernet(0x8035, &[0; 28]), other, other);
    t.add("802.3 length", ethernet(38, &[0x42, 0x42, 3]), other, other);
    t.add("IPv4 in SNAP", ethernet(28, &[0xaa, 0xaa, 3, 0, 0, 0, 8, 0]), other, other);
    t.add("ethertype 0", ethernet(0, &[]), other, other);
    t.on(Setup::NotLoaded, "LLDP without a zone", ethernet(0x88cc, &[2, 7]), other, other);
}

/// ARP: who may claim what, and ask for whom.
pub(super) fn arp(t: &mut Table) {
    let spoof = Some(SourceArp);
    let ask = |sender, target| arp_packet(1, POD_MAC, sender, target);
    let answer = |sender, target| arp_packet(2, POD_MAC, sender, target);
    t.add("ARP for a neighbour", ask(POD4, NEAR4), PASS, PASS);
    t.add("ARP for a neighbour, padded", padded(ask(POD4, NEAR4), &[0; 18]), PASS, PASS);
    t.add("ARP from the second address", ask(POD4_SECOND, NEAR4), PASS, PASS);
    t.add("ARP for 8.8.8.8", ask(POD4, FAR4), Some(ZoneDeny), PASS);
    t.add("ARP for a denied host", ask(POD4, DENIED4), Some(ZoneDeny), PASS);
    t.add("ARP for the gateway outside the zone", ask(POD4, GATEWAY4), PASS, PASS);
    t.add("ARP for 0.0.0.0", ask(POD4, NOBODY4), Some(ZoneDeny), PASS);
    t.on(
        Setup::Nameless,
        "ARP probe for 0.0.0.0 without gateway",
        ask(NOBODY4, NOBODY4),
        Some(ZoneDeny),
        PASS,
    );
    t.add("ARP probe", ask(NOBODY4, POD4), PASS, PASS);
    t.add("ARP probe for a neighbour's", ask(NOBODY4, NEAR4), spoof, PASS);
    t.add("ARP probe outside the zone", ask(NOBODY4, FAR4), spoof, PASS);
    t.on(Setup::Dhcp, "ARP probe of an offer", ask(NOBODY4, NEAR4), PASS, PASS);
    t.on(Setup::Dhcp, "ARP probe of an offer outside", ask(NOBODY4, FAR4), Some(ZoneDeny), PASS);
    t.add("ARP announcement", ask(POD4, POD4), PASS, PASS);
    t.add("ARP announcement as answer", answer(POD4, POD4), PASS, PASS);
    t.add("ARP answer", answer(POD4, NEAR4), PASS, PASS);
    t.add("ARP answer to one outside", answer(POD4, FAR4), Some(ZoneDeny), PASS);
    t.add("ARP answer to a probe", answer(POD4, NOBODY4), PASS, PASS);
    t.add("ARP answer to a probe for another's", answer(NEAR4, NOBODY4), spoof, PASS);
    t.add("ARP answer from 0.0.0.0", answer(NOBODY4, NEAR4), spoof, PASS);
    t.add("ARP answer for the gateway", answer(GATEWAY4, NEAR4), spoof, PASS);
    t.add("ARP request as a neighbour", ask(NEAR4, NEAR4), spoof, PASS);
    t.add("ARP with another sender MAC", arp_packet(1, PEER_MAC, POD4, NEAR4), spoof, PASS);
    t.add("ARP operation 3", arp_packet(3, POD_MAC, POD4, NEAR4), spoof, PASS);
    t.add("ARP operation 257", with(ask(POD4, NEAR4), 20, &[1, 1]), spoof, PASS);
    t.add("ARP of another hardware type", with(ask(POD4, NEAR4), 14, &[0, 6]), spoof, PASS);
    t.add("ARP of another protocol", with(ask(POD4, NEAR4), 16, &[0x86, 0xdd]), spoof, PASS);
    t.add("ARP with other lengths", with(ask(POD4, NEAR4), 18, &[6, 16]), spoof, PASS);
    t.add("ARP cut off", cut(ask(POD4, NEAR4), 41), Some(Malformed), Some(Malformed));
    t.add("ARP of nothing", ethernet(ARP, &[]), Some(Malformed), Some(Malformed));
    let lost = Some(ZoneNotLoaded);
    t.on(Setup::NotLoaded, "ARP without a zone", ask(POD4, NEAR4), lost, lost);
    t.on(Setup::NotLoaded, "ARP for the gateway without a zone", ask(POD4, GATEWAY4), lost, lost);
    t.on(Setup::NotLoaded, "ARP answer to a probe without a zone", answer(POD4, NOBODY4), lost, lost);
    t.on(Setup::NotLoaded, "spoofed ARP without a zone", ask(NEAR4, NEAR4), spoof, lost);
}

/// IPv4 headers, fragments, options.
pub(super) fn form(t: &mut Table) {
    let bad = Some(Malformed);
    let good = || v4(POD4, NEAR4, udp(1000, 2000));
    t.add("UDP to a neighbour", good().frame(), PASS, PASS);
    t.add("UDP, padded", padded(good().frame(), &[0xaa; 20]), PASS, PASS);
    t.add("IPv4 of nothing", ethernet(IPV4, &[]), bad, bad);
    t.add("IPv4 of 19 bytes", cut(good().frame(), 33), bad, bad);
    t.add("IPv4 header alone", cut(good().frame(), 34), bad, bad);
    t.add("IPv4 header alone that says so", v4(POD4, NEAR4, raw(253, &[])).frame(), PASS, PASS);
    t.add("IPv4 longer than the frame", good().total(37).frame(), bad, bad);
    t.add("IPv4 of 65535 bytes that are not there", good().total(0xffff).frame(), bad, bad);
    t.add("IPv4 shorter than its header", good().total(19).frame(), bad, bad);
    t.add("IPv4 of length 0", good().total(0).frame(), bad, bad);
    t.add("IPv4 with version 6", good().first_byte(0x65).frame(), bad, bad);
    t.add("IPv4 with version 0", good().first_byte(0x05).frame(), bad, bad);
    t.add("IPv4 with a header of 16 bytes", good().first_byte(0x44).frame(), bad, bad);
    t.add("IPv4 with a header of 0 bytes", good().first_byte(0x40).frame(), bad, bad);
    t.add("IPv4 header behind its end", good().first_byte(0x4f).frame(), bad, bad);
    t.add("UDP header cut off", v4(POD4, NEAR4, raw(17, &[0; 7])).frame(), bad, bad);
    t.add("UDP header in the padding", padded(v4(POD4, NEAR4, raw(17, &[])).frame(), &[0; 20]), bad, bad);
    t.add("TCP header cut off", v4(POD4, NEAR4, raw(6, &[0; 19])).frame(), bad, bad);
    t.add("ICMP header cut off", v4(POD4, NEAR4, raw(1, &[8; 7])).frame(), bad, bad);
    t.add("IGMP header cut off", v4(POD4, NEAR4, raw(2, &[0; 7])).frame(), bad, bad);
    t.add("TCP", v4(POD4, NEAR4, tcp(1000, 80)).frame(), PASS, PASS);
    t.add("ESP", v4(POD4, NEAR4, raw(50, &[1, 2, 3])).frame(), PASS, PASS);

    t.add("first fragment", good().fragment(0x2000).frame(), PASS, PASS);
    t.add("first fragment outside", v4(POD4, FAR4, udp(1, 2)).fragment(0x2000).frame(), Some(ZoneDeny), PASS);
    let tiny = v4(POD4, NEAR4, raw(17, &[0; 4])).fragment(0x2000);
    t.add("first fragment too small for its header", tiny.frame(), bad, bad);
    let later = v4(POD4, NEAR4, raw(17, &[1])).fragment(185);
    t.add("last fragment of one byte", later.frame(), PASS, PASS);
    let later = v4(POD4, FAR4, raw(17, &[0; 8])).fragment(0x2000 | 185);
    t.add("later fragment outside", later.frame(), Some(ZoneDeny), PASS);
    let later = v4(FAR4, NEAR4, raw(17, &[0; 8])).fragment(185);
    t.add("later fragment of another source", later.frame(), Some(SourceV4), Some(ZoneDeny));
    let later = v4(POD4, NEAR4, udp(67, 68)).fragment(185);
    t.add("later fragment whose bytes look like DHCP", later.frame(), PASS, PASS);
    let later = v4(NOBODY4, BROADCAST4, udp(68, 67)).fragment(185);
    t.add("later fragment of DHCP", later.frame(), Some(SourceV4), Some(ZoneDeny));

    let options = Some(IpOptions);
    let alert = [0x94, 4, 0, 0];
    t.add("strict source route", good().options(&[0x89, 7, 4, 8, 8, 8, 8, 0]).frame(), options, options);
    t.add("loose source route", good().options(&[0x83, 7, 4, 8, 8, 8, 8, 0]).frame(), options, options);
    t.add("options of nothing", good().options(&[1, 1, 1, 1]).frame(), options, options);
    t.add("Router Alert in UDP", good().options(&alert).frame(), options, options);
    let report = || v4(POD4, ROUTERS, igmp(0x22, NOBODY4));
    t.add("IGMP with Router Alert", report().options(&alert).frame(), PASS, PASS);
    t.add("IGMP without Router Alert", report().frame(), PASS, PASS);
    t.add("IGMP with another option", report().options(&[0x44, 4, 5, 0]).frame(), options, options);
    let two = report().options(&[0x94, 4, 0, 0, 0x83, 3, 4, 0]);
    t.add("IGMP with Router Alert and a source route", two.frame(), options, options);
    let cut_options = report().options(&alert).total(24);
    t.add("IGMP that ends with its options", cut_options.frame(), bad, bad);

    // Above 64 KiB a packet that is still to be segmented says 0.
    let big = v4(POD4, NEAR4, raw(6, &vec![0x50; 70_000]));
    t.add("BIG TCP", big.frame(), PASS, PASS);
    let big = v4(POD4, FAR4, raw(6, &vec![0x50; 70_000]));
    t.add("BIG TCP outside", big.frame(), Some(ZoneDeny), PASS);
}

/// Who may send to whom.
pub(super) fn zone(t: &mut Table) {
    let deny = Some(ZoneDeny);
    let to = |destination| v4(POD4, destination, udp(1000, 2000)).frame();
    let from = |source| v4(source, POD4, udp(1000, 2000)).frame();
    t.add("to 8.8.8.8", to(FAR4), deny, PASS);
    t.add("to a denied host of the zone", to(DENIED4), deny, PASS);
    t.add("to an allowed network", to(Ipv4Addr::new(172, 16, 5, 9)), PASS, PASS);
    t.add("next to an allowed network", to(Ipv4Addr::new(172, 16, 4, 255)), deny, PASS);
    t.add("to the gateway outside the zone, not by ARP", to(GATEWAY4), deny, PASS);
    t.add("to a network that may not answer", to(ONE_WAY4), PASS, PASS);
    t.add("to 0.0.0.0", to(NOBODY4), deny, PASS);
    t.add("to 255.255.255.255", to(BROADCAST4), PASS, PASS);
    t.add("to the subnet's broadcast", to(Ipv4Addr::new(10, 12, 34, 255)), PASS, PASS);
    t.add("to a group of the link", to(Ipv4Addr::new(224, 0, 0, 251)), PASS, PASS);
    t.add("to the first group beyond the link", to(Ipv4Addr::new(224, 0, 1, 0)), deny, PASS);
    t.add("to SSDP", to(Ipv4Addr::new(239, 255, 255, 250)), deny, PASS);
    t.add("to a group in the zone", to(Ipv4Addr::new(239, 1, 1, 1)), PASS, PASS);
    t.add("to class E", to(Ipv4Addr::new(255, 255, 255, 254)), deny, PASS);
    t.add("from the second address", v4(POD4_SECOND, NEAR4, udp(1, 2)).frame(), PASS, PASS);
    let spoof = Some(SourceV4);
    t.add("as a neighbour", v4(NEAR4, NEAR4, udp(1, 2)).frame(), spoof, PASS);
    t.add("from 8.8.8.8", from(FAR4), spoof, deny);
    t.add("from a denied host", from(DENIED4), spoof, deny);
    t.add("from an allowed network", from(Ipv4Addr::new(172, 16, 5, 9)), spoof, PASS);
    t.add("from a network that may not send", from(ONE_WAY4), spoof, deny);
    t.add("from 0.0.0.0", from(NOBODY4), spoof, deny);
    t.add("TCP answer from 8.8.8.8", v4(FAR4, POD4, tcp(80, 1000)).frame(), spoof, deny);
    t.on(Setup::Any, "from 8.8.8.8 with ingress any", from(FAR4), spoof, PASS);
    t.on(Setup::Any, "to 8.8.8.8 with ingress any", to(FAR4), deny, PASS);
    let lost = Some(ZoneNotLoaded);
    t.on(Setup::NotLoaded, "UDP without a zone", to(NEAR4), lost, lost);
    t.on(Setup::NotLoaded, "broadcast without a zone", to(BROADCAST4), lost, lost);
    t.on(Setup::NotLoaded, "spoofed UDP without a zone", from(NEAR4), spoof, lost);
    t.on(Setup::NotLoaded, "malformed without a zone", cut(to(NEAR4), 30), Some(Malformed), Some(Malformed));

    let discover = |source, destination| v4(source, destination, udp(68, 67)).frame();
    t.on(Setup::Nameless, "DHCP discover", discover(NOBODY4, BROADCAST4), PASS, deny);
    t.add("DHCP discover of one with addresses", discover(NOBODY4, BROADCAST4), PASS, deny);
    t.add("DHCP from 0.0.0.0 to one server", discover(NOBODY4, NEAR4), spoof, deny);
    t.add("DHCP from 0.0.0.0 by another port", v4(NOBODY4, BROADCAST4, udp(1068, 67)).frame(), spoof, deny);
    t.add("UDP broadcast from 0.0.0.0", v4(NOBODY4, BROADCAST4, udp(68, 68)).frame(), spoof, deny);
    t.add("TCP broadcast from 0.0.0.0", v4(NOBODY4, BROADCAST4, tcp(68, 67)).frame(), spoof, deny);
    t.add("DHCP renewal in the zone", discover(POD4, NEAR4), PASS, PASS);
    t.add("DHCP renewal outside", discover(POD4, FAR4), deny, PASS);
    t.on(Setup::Nameless, "UDP before an address", to(NEAR4), spoof, PASS);
    let server = Some(DhcpServer);
    let offer = |source, destination| v4(source, destination, udp(67, 68)).frame();
    t.add("DHCP offer", offer(POD4, BROADCAST4), server, server);
    t.add("DHCP offer from another port", v4(POD4, BROADCAST4, udp(1067, 68)).frame(), server, PASS);
    t.add("DHCP offer between clients", v4(POD4, NEAR4, udp(68, 68)).frame(), server, PASS);
    t.add("DHCP offer from a neighbour", offer(NEAR4, POD4), spoof, server);
    t.on(Setup::Dhcp, "DHCP offer to a client", offer(NEAR4, POD4), spoof, PASS);
    t.on(Setup::Dhcp, "DHCP offer from outside to a client", offer(FAR4, POD4), spoof, PASS);
    t.on(Setup::Dhcp, "DHCP offer of a client", offer(POD4, NEAR4), server, PASS);
    t.add("DHCP relay", v4(POD4, NEAR4, udp(67, 67)).frame(), server, PASS);
    t.add("from port 67 by TCP", v4(POD4, NEAR4, tcp(67, 68)).frame(), PASS, PASS);

    t.on(
        Setup::Nameless,
        "IGMP before an address",
        v4(NOBODY4, ROUTERS, igmp(0x22, NOBODY4)).frame(),
        PASS,
        deny,
    );
    let member = Ipv4Addr::new(239, 255, 0, 1);
    t.add("IGMP to a group outside", v4(POD4, member, igmp(0x16, member)).frame(), deny, PASS);
    t.add("IGMP as a neighbour", v4(NEAR4, ROUTERS, igmp(0x22, NOBODY4)).frame(), spoof, PASS);
    let alert = [0x94, 4, 0, 0];
    let later = v4(NOBODY4, ROUTERS, igmp(0x22, NOBODY4)).options(&alert).fragment(185);
    t.add("later fragment of IGMP from 0.0.0.0", later.frame(), spoof, deny);
}

/// ICMP errors from routers outside.
pub(super) fn errors(t: &mut Table) {
    let (deny, spoof) = (Some(ZoneDeny), Some(SourceV4));
    let about = v4(POD4, NEAR4, udp(1000, 2000)).frame();
    let error = |kind, quoted: &[u8], length| v4(FAR4, POD4, error4(kind, quoted, length)).frame();
    t.add("echo", v4(POD4, NEAR4, icmp(8, &[0; 8])).frame(), PASS, PASS);
    t.add("echo from outside", v4(FAR4, POD4, icmp(8, &[0; 40])).frame(), spoof, deny);
    for (kind, name) in [
        (3, "unreachable about own packet"),
        (11, "time exceeded about own packet"),
        (12, "parameter problem about own packet"),
    ] {
        t.add(name, error(kind, &about, 28), spoof, PASS);
    }
    t.add("source quench about own packet", error(4, &about, 28), spoof, deny);
    t.add("redirect about own packet", error(5, &about, 28), spoof, deny);
    t.add("error that quotes a header alone", error(3, &about, 20), spoof, PASS);
    t.add("error that quotes 19 bytes", error(3, &about, 19), spoof, deny);
    t.add("error that quotes nothing", error(3, &about, 0), spoof, deny);
    t.add("error whose quote is padding", padded(error(3, &about, 0), &about[14..]), spoof, deny);
    let other = v4(NEAR4, NEAR4, udp(1, 2)).frame();
    t.add("error about another's packet", error(3, &other, 28), spoof, deny);
    let outside = v4(POD4, FAR4, udp(1, 2)).frame();
    t.add("error about a packet that the zone denies", error(3, &outside, 28), spoof, deny);
    let one_way = v4(POD4, ONE_WAY4, udp(1, 2)).frame();
    t.add("error about a packet to a network that may not answer", error(3, &one_way, 28), spoof, PASS);
    let first = v4(POD4, NEAR4, udp(1, 2)).fragment(0x2000).frame();
    t.add("error about a first fragment", error(3, &first, 28), spoof, PASS);
    let later = v4(POD4, NEAR4, udp(1, 2)).fragment(185).frame();
    t.add("error about a later fragment", error(3, &later, 28), spoof, deny);
    let version = v4(POD4, NEAR4, udp(1, 2)).first_byte(0x65).frame();
    t.add("error that quotes another version", error(3, &version, 28), spoof, deny);
    let short = v4(POD4, NEAR4, udp(1, 2)).first_byte(0x44).frame();
    t.add("error that quotes a header of 16 bytes", error(3, &short, 28), spoof, deny);
    let fragment = v4(FAR4, POD4, error4(3, &about, 28)).fragment(185).frame();
    t.add("later fragment that looks like an error", fragment, spoof, deny);
    t.add(
        "error from a neighbour about anything",
        v4(NEAR4, POD4, error4(3, &other, 28)).frame(),
        spoof,
        PASS,
    );
    t.add("error of the pod", v4(POD4, NEAR4, error4(3, &other, 28)).frame(), PASS, PASS);
    t.add("error of the pod to one outside", v4(POD4, FAR4, error4(3, &other, 28)).frame(), deny, PASS);
    let lost = Some(ZoneNotLoaded);
    t.on(Setup::NotLoaded, "error about own packet without a zone", error(3, &about, 28), spoof, lost);
}
