//! Cases of IPv6 and its neighbour discovery.

use std::net::Ipv6Addr;

use netpath_ebpf::drop_reason::DropReason::{
    DhcpServer, ExtensionHeader, LinkLocal, Malformed, RouterGuard, SourceNd, SourceV6, ZoneDeny,
    ZoneNotLoaded,
};

use super::{
    cases::{PASS, Table},
    frames::{
        IPV6, PEER_MAC, POD_MAC, cut, error6, ethernet, icmp6, link_layer, mld, neighbour, padded, raw, tcp,
        udp, v6,
    },
    model::{
        ALL_NODES, DENIED6, FAR6, GATEWAY6, NEAR6, NEAR6_LINK, NOBODY6, ONE_WAY6, POD6, POD6_LINK, Setup,
    },
};

fn address(text: &str) -> Ipv6Addr {
    text.parse().expect("an address")
}

/// IPv6 headers and extension headers.
pub(super) fn form(t: &mut Table) {
    let bad = Some(Malformed);
    let good = || v6(POD6, NEAR6, udp(1000, 2000));
    t.add("UDP to a neighbour by IPv6", good().frame(), PASS, PASS);
    t.add("UDP by IPv6, padded", padded(good().frame(), &[0xaa; 9]), PASS, PASS);
    t.add("IPv6 of nothing", ethernet(IPV6, &[]), bad, bad);
    t.add("IPv6 of 39 bytes", cut(good().frame(), 53), bad, bad);
    t.add("IPv6 header alone", cut(good().frame(), 54), bad, bad);
    t.add("IPv6 with no next header", v6(POD6, NEAR6, raw(59, &[])).frame(), PASS, PASS);
    t.add("IPv6 longer than the frame", good().length(17).frame(), bad, bad);
    t.add("IPv6 of 65535 bytes that are not there", good().length(0xffff).frame(), bad, bad);
    t.add("IPv6 of length 0", good().length(0).frame(), bad, bad);
    t.add("IPv6 with version 4", good().first_byte(0x45).frame(), bad, bad);
    t.add("IPv6 with traffic class", good().first_byte(0x6f).frame(), PASS, PASS);
    t.add("UDP header cut off by IPv6", v6(POD6, NEAR6, raw(17, &[0; 7])).frame(), bad, bad);
    t.add("TCP header cut off by IPv6", v6(POD6, NEAR6, raw(6, &[0; 19])).frame(), bad, bad);
    t.add("ICMPv6 header cut off", v6(POD6, NEAR6, raw(58, &[128, 0, 0, 0])).frame(), bad, bad);
    t.add("extension header cut off", v6(POD6, NEAR6, raw(60, &[17, 0, 1, 2])).frame(), bad, bad);
    t.add("TCP by IPv6", v6(POD6, NEAR6, tcp(1000, 80)).frame(), PASS, PASS);
    let big = v6(POD6, NEAR6, raw(6, &vec![0x50; 70_000]));
    t.add("BIG TCP by IPv6", big.frame(), PASS, PASS);
    let jumbo = v6(POD6, NEAR6, raw(6, &vec![0x50; 70_000])).header(0, &[0, 0, 0xc2, 4, 0, 1, 0x11, 0x78]);
    t.add("BIG TCP with a jumbo option", jumbo.frame(), PASS, PASS);

    let chain = Some(ExtensionHeader);
    t.add("destination options", good().options(1).frame(), PASS, PASS);
    t.add("long destination options", good().options(3).frame(), PASS, PASS);
    t.add("hop-by-hop options", good().router_alert().frame(), PASS, PASS);
    t.add(
        "authentication header",
        good()
            .header(51, &[0, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])
            .frame(),
        PASS,
        PASS,
    );
    let six = || good().router_alert().options(1).options(1).options(1).options(1).options(1);
    t.add("six extension headers", six().frame(), PASS, PASS);
    t.add("seven extension headers", six().options(1).frame(), chain, chain);
    t.add("routing header", good().header(43, &[0, 2, 0, 1, 0, 0, 0, 0]).frame(), chain, chain);
    t.add("segment routing header", good().header(43, &[0, 2, 4, 0, 0, 0, 0, 0]).frame(), chain, chain);
    let hidden = good().options(1).header(43, &[0, 0, 4, 0, 0, 0, 0, 0]);
    t.add("routing header behind options", hidden.frame(), chain, chain);
    let hidden = good().fragment(1).header(43, &[0, 0, 4, 0, 0, 0, 0, 0]);
    t.add("routing header in a fragment", hidden.frame(), chain, chain);
    let beyond = v6(POD6, NEAR6, raw(60, &[17, 1, 1, 4, 0, 0, 0, 0]));
    t.add("options that end behind the packet", beyond.frame(), chain, chain);
    let beyond = v6(POD6, NEAR6, raw(60, &[59, 1, 1, 4, 0, 0, 0, 0])).frame();
    t.add("options that end in the padding", padded(beyond, &[0; 16]), chain, chain);
    let beyond = v6(POD6, NEAR6, raw(60, &[44, 0, 1, 4, 0, 0, 0, 0])).frame();
    let fragment = [17, 0, 5, 0xa8, 0, 0, 0, 7];
    t.add("later fragment in the padding", padded(beyond, &fragment), chain, chain);
    let empty = v6(POD6, NEAR6, raw(17, &[])).options(1);
    t.add("options and no UDP behind them", empty.clone().frame(), chain, chain);
    t.add("options and UDP in the padding", padded(empty.frame(), &[0; 16]), chain, chain);
    let options = v6(POD6, NEAR6, raw(17, &[0; 7])).options(1);
    t.add("options and a UDP header cut off", options.frame(), chain, chain);
    t.add("options and ESP", v6(POD6, NEAR6, raw(50, &[1])).options(1).frame(), PASS, PASS);
    t.add("options and no next header", v6(POD6, NEAR6, raw(59, &[])).options(1).frame(), PASS, PASS);

    t.add("atomic fragment", good().fragment(0).frame(), PASS, PASS);
    t.add("first fragment by IPv6", good().fragment(1).frame(), PASS, PASS);
    let later = |destination| v6(POD6, destination, raw(17, &[1])).fragment(1448);
    t.add("later fragment by IPv6", later(NEAR6).frame(), PASS, PASS);
    t.add("later fragment outside by IPv6", later(FAR6).frame(), Some(ZoneDeny), PASS);
    let later = v6(POD6, NEAR6, raw(17, &[0; 8])).options(1).fragment(1448);
    t.add("later fragment behind options", later.frame(), PASS, PASS);
    let later = v6(POD6, NEAR6, udp(547, 546)).fragment(1448);
    t.add("later fragment whose bytes look like DHCPv6", later.frame(), PASS, PASS);
    let bare = v6(POD6, NEAR6, raw(44, &[17, 0, 0, 1]));
    t.add("fragment header cut off", bare.frame(), bad, bad);

    // The first fragment ends with its options; the padding shows an echo, the second fragment brings what it likes.
    let cloak = v6(POD6_LINK, ALL_NODES, raw(58, &[])).fragment(1).options(1).frame();
    t.add(
        "echo in the padding of a first fragment",
        padded(cloak, &[128, 0, 0, 0, 0, 0, 0, 0]),
        chain,
        chain,
    );
}

/// Whose address a packet may have.
pub(super) fn source(t: &mut Table) {
    let spoof = Some(SourceV6);
    let from = |source| v6(source, NEAR6, udp(1, 2)).frame();
    t.add("as a neighbour by IPv6", from(NEAR6), spoof, PASS);
    t.add("as one outside", from(FAR6), spoof, Some(ZoneDeny));
    t.add("from the own link-local address", from(POD6_LINK), PASS, PASS);
    t.add("from another link-local address", from(NEAR6_LINK), spoof, PASS);
    t.add("from ::", from(NOBODY6), spoof, Some(ZoneDeny));
    t.add("from a group", from(ALL_NODES), spoof, Some(ZoneDeny));
    t.add("from ::ffff:10.12.34.5", from(address("::ffff:10.12.34.5")), spoof, Some(ZoneDeny));
    t.on(Setup::Nameless, "IPv6 before an address", from(POD6), spoof, PASS);
    let routers = address("ff02::2");
    let all_mld = address("ff02::16");
    let deny = Some(ZoneDeny);
    t.add("router solicitation from ::", v6(NOBODY6, routers, icmp6(133, &[0; 4])).frame(), PASS, deny);
    t.add("router solicitation", v6(POD6_LINK, routers, icmp6(133, &[0; 4])).frame(), PASS, PASS);
    t.add("MLD report from ::", v6(NOBODY6, all_mld, mld()).router_alert().frame(), PASS, deny);
    t.add("MLD report", v6(POD6_LINK, all_mld, mld()).router_alert().frame(), PASS, PASS);
    t.add("MLD report as a neighbour", v6(NEAR6_LINK, all_mld, mld()).router_alert().frame(), spoof, PASS);
    t.add("MLD report from :: to a host", v6(NOBODY6, NEAR6, mld()).router_alert().frame(), spoof, deny);
    t.add("echo from :: to a group", v6(NOBODY6, ALL_NODES, icmp6(128, &[0; 4])).frame(), spoof, deny);
    t.add("UDP from :: to a group", v6(NOBODY6, ALL_NODES, udp(1, 2)).frame(), spoof, deny);

    let guard = Some(RouterGuard);
    t.add("router advertisement", v6(POD6_LINK, ALL_NODES, icmp6(134, &[0; 12])).frame(), guard, PASS);
    t.add("redirect", v6(POD6_LINK, NEAR6, icmp6(137, &[0; 36])).frame(), guard, PASS);
    let hidden = v6(POD6_LINK, ALL_NODES, icmp6(134, &[0; 12]));
    t.add("router advertisement behind options", hidden.clone().options(1).frame(), guard, PASS);
    t.add("router advertisement in a fragment", hidden.clone().fragment(1).frame(), guard, PASS);
    t.add(
        "router advertisement in all of it",
        hidden.router_alert().options(2).fragment(0).frame(),
        guard,
        PASS,
    );
    t.add(
        "router advertisement as a router",
        v6(NEAR6_LINK, ALL_NODES, icmp6(134, &[0; 12])).frame(),
        spoof,
        PASS,
    );
    let server = Some(DhcpServer);
    t.add("DHCPv6 answer from another port", v6(POD6, NEAR6, udp(1547, 546)).frame(), server, PASS);
    t.add("DHCPv6 answer", v6(POD6_LINK, NEAR6_LINK, udp(547, 546)).frame(), server, server);
    t.add("DHCPv6 answer behind options", v6(POD6, NEAR6, udp(547, 546)).options(1).frame(), server, server);
    t.on(
        Setup::Dhcp,
        "DHCPv6 answer to a client",
        v6(NEAR6_LINK, POD6_LINK, udp(547, 546)).frame(),
        spoof,
        PASS,
    );
    t.add("DHCPv6 solicit", v6(POD6_LINK, address("ff02::1:2"), udp(546, 547)).frame(), PASS, PASS);
    t.on(
        Setup::V4Only,
        "DHCPv6 answer without IPv6",
        v6(NEAR6_LINK, POD6_LINK, udp(547, 546)).frame(),
        spoof,
        server,
    );
}

/// Neighbour discovery: who may claim what, and ask for whom.
pub(super) fn neighbours(t: &mut Table) {
    let (lie, deny) = (Some(SourceNd), Some(ZoneDeny));
    let own = link_layer(1, POD_MAC);
    let own_target = link_layer(2, POD_MAC);
    let node = |last: u16| Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, last);
    let ask = |target, options: &[u8]| v6(POD6, node(0x77), neighbour(135, target, options)).frame();
    t.add("solicitation", ask(NEAR6, &own), PASS, PASS);
    t.add("solicitation without options", ask(NEAR6, &[]), PASS, PASS);
    t.add(
        "solicitation with a nonce",
        ask(NEAR6, &[&own[..], &[14, 1, 1, 2, 3, 4, 5, 6]].concat()),
        PASS,
        PASS,
    );
    t.add("solicitation for one outside", ask(FAR6, &own), deny, PASS);
    t.add("solicitation for a denied host", ask(DENIED6, &own), deny, PASS);
    t.add("solicitation for the gateway outside the zone", ask(GATEWAY6, &own), PASS, PASS);
    t.add("solicitation for a link-local address", ask(NEAR6_LINK, &own), PASS, PASS);
    t.add("solicitation for ::", ask(NOBODY6, &own), deny, PASS);
    let bare = v6(POD6_LINK, node(0), neighbour(135, NOBODY6, &[])).frame();
    t.on(Setup::Nameless, "solicitation for :: without gateway", bare, deny, PASS);
    t.add("solicitation with another's MAC", ask(NEAR6, &link_layer(1, PEER_MAC)), lie, PASS);
    let second = [&own[..], &link_layer(1, PEER_MAC)].concat();
    t.add("solicitation with another's MAC behind the own", ask(NEAR6, &second), lie, PASS);
    let hidden = [&[14, 1, 0, 0, 0, 0, 0, 0][..], &link_layer(2, PEER_MAC)].concat();
    t.add("solicitation with another's MAC behind a nonce", ask(NEAR6, &hidden), lie, PASS);
    let long = [&[14, 2, 0, 0, 0, 0, 0, 0][..], &link_layer(1, PEER_MAC)].concat();
    t.add("solicitation with an option of sixteen bytes", ask(NEAR6, &long), lie, PASS);
    t.add("solicitation with an option of length 0", ask(NEAR6, &[1, 0, 2, 0, 0, 0, 0, 0x11]), lie, PASS);
    t.add("solicitation with three options", ask(NEAR6, &[&own[..], &own, &own].concat()), lie, PASS);
    t.add("solicitation with half an option", ask(NEAR6, &own[..4]), lie, PASS);
    t.add("solicitation without a target", v6(POD6, node(0x77), icmp6(135, &[0; 4])).frame(), lie, PASS);
    t.add(
        "solicitation whose options are padding",
        padded(ask(NEAR6, &[]), &link_layer(1, PEER_MAC)),
        PASS,
        PASS,
    );
    let behind = v6(POD6, node(0x77), neighbour(135, NEAR6, &own));
    t.add("solicitation behind options", behind.clone().options(1).frame(), lie, PASS);
    t.add("solicitation in a fragment", behind.clone().fragment(1).frame(), lie, PASS);
    t.add("solicitation in an atomic fragment", behind.fragment(0).frame(), lie, PASS);
    // Sixteen bytes of options, placed so that who overlooks them reads a good target and good options.
    let mask = [0, 1, 0x1e, 4, 0, 0, 0, 0, 0xfd, 0, 0, 0x12, 0, 0, 0, 0];
    let outside = neighbour(135, address("2001:db8::1:0:0:8"), &[]);
    t.add(
        "solicitation behind options that imitate one",
        v6(POD6, node(0x77), outside).header(60, &mask).frame(),
        lie,
        PASS,
    );
    t.add("solicitation to its target", v6(POD6, NEAR6, neighbour(135, NEAR6, &own)).frame(), PASS, PASS);
    t.add("solicitation to another", v6(POD6, NEAR6, neighbour(135, GATEWAY6, &own)).frame(), lie, PASS);
    let wide = address("ff0e::1:ff00:77");
    t.add(
        "solicitation to a group beyond the link",
        v6(POD6, wide, neighbour(135, NEAR6, &own)).frame(),
        lie,
        PASS,
    );
    t.add(
        "solicitation as a neighbour",
        v6(NEAR6, node(5), neighbour(135, POD6, &own)).frame(),
        Some(SourceV6),
        PASS,
    );
    let dad = |target| v6(NOBODY6, node(5), neighbour(135, target, &[])).frame();
    t.add("duplicate address detection", dad(POD6), PASS, deny);
    t.add("duplicate address detection, link-local", dad(POD6_LINK), PASS, deny);
    t.add("duplicate address detection of a neighbour's", dad(NEAR6), lie, deny);
    t.add("duplicate address detection outside", dad(FAR6), lie, deny);
    t.on(Setup::Dhcp, "duplicate address detection of an offer", dad(NEAR6), PASS, deny);
    t.on(Setup::Dhcp, "duplicate address detection of an offer outside", dad(FAR6), deny, deny);
    t.add(
        "solicitation from :: to a host",
        v6(NOBODY6, NEAR6, neighbour(135, NEAR6, &[])).frame(),
        Some(SourceV6),
        deny,
    );

    let tell = |target, options: &[u8]| v6(POD6, ALL_NODES, neighbour(136, target, options)).frame();
    t.add("advertisement", tell(POD6, &own_target), PASS, PASS);
    t.add("advertisement without options", tell(POD6, &[]), PASS, PASS);
    t.add("advertisement of the link-local address", tell(POD6_LINK, &own_target), PASS, PASS);
    t.add("advertisement of a neighbour", tell(NEAR6, &own_target), lie, PASS);
    t.add("advertisement of the gateway", tell(GATEWAY6, &own_target), lie, PASS);
    t.add("advertisement with another's MAC", tell(POD6, &link_layer(2, PEER_MAC)), lie, PASS);
    t.add("advertisement with three options", tell(POD6, &[&own_target[..], &own, &own].concat()), lie, PASS);
    t.add("advertisement without a target", v6(POD6, ALL_NODES, icmp6(136, &[0; 4])).frame(), lie, PASS);
    let to = |destination| v6(POD6, destination, neighbour(136, POD6, &own_target)).frame();
    t.add("advertisement to a neighbour", to(NEAR6), PASS, PASS);
    t.add("advertisement to one outside", to(FAR6), deny, PASS);
    t.add(
        "advertisement from ::",
        v6(NOBODY6, ALL_NODES, neighbour(136, POD6, &[])).frame(),
        Some(SourceV6),
        deny,
    );
    let lost = Some(ZoneNotLoaded);
    t.on(Setup::NotLoaded, "solicitation without a zone", ask(NEAR6, &own), lost, lost);
    t.on(
        Setup::NotLoaded,
        "router advertisement without a zone",
        v6(POD6, ALL_NODES, icmp6(134, &[0; 12])).frame(),
        Some(RouterGuard),
        lost,
    );
}

/// Who may send to whom.
pub(super) fn zone(t: &mut Table) {
    let deny = Some(ZoneDeny);
    let to = |destination| v6(POD6, destination, udp(1000, 2000)).frame();
    let from = |source| v6(source, POD6, udp(1000, 2000)).frame();
    t.add("to 2001:db8::8", to(FAR6), deny, PASS);
    t.add("to a denied host by IPv6", to(DENIED6), deny, PASS);
    t.add("to an allowed network by IPv6", to(address("fd00:5:0:7::9")), PASS, PASS);
    t.add("next to an allowed network by IPv6", to(address("fd00:5:1::9")), deny, PASS);
    t.add("to the gateway outside the zone, not by ND", to(GATEWAY6), deny, PASS);
    t.add("to a network that may not answer by IPv6", to(ONE_WAY6), PASS, PASS);
    t.add("to ::", to(NOBODY6), deny, PASS);
    t.add("to a group of the interface", to(address("ff01::1")), PASS, PASS);
    t.add("to a group of the link by IPv6", to(address("ff02::fb")), PASS, PASS);
    t.add("to a transient group of the link", to(address("ff12::1234")), PASS, PASS);
    t.add("to a group of scope 0", to(address("ff00::1")), deny, PASS);
    t.add("to a group of the realm", to(address("ff03::1")), deny, PASS);
    t.add("to a group of the site", to(address("ff05::2")), deny, PASS);
    t.add("to a group in the zone by IPv6", to(address("ff05::1:3")), PASS, PASS);
    t.add("to a global group", to(address("ff0e::1")), deny, PASS);
    t.add("from one outside by IPv6", from(FAR6), Some(SourceV6), deny);
    t.add("from a denied host by IPv6", from(DENIED6), Some(SourceV6), deny);
    t.add("from a network that may not send by IPv6", from(ONE_WAY6), Some(SourceV6), deny);
    t.on(Setup::Any, "from one outside with ingress any", from(FAR6), Some(SourceV6), PASS);
    t.on(Setup::Any, "to one outside with ingress any", to(FAR6), deny, PASS);

    let link = Some(LinkLocal);
    let local = |carried| v6(POD6_LINK, NEAR6_LINK, carried);
    t.add("UDP by link-local addresses", local(udp(1, 2)).frame(), PASS, PASS);
    t.on(Setup::V4Only, "UDP by link-local addresses without IPv6", local(udp(1, 2)).frame(), link, link);
    t.on(Setup::V4Only, "TCP by link-local addresses without IPv6", local(tcp(1, 2)).frame(), link, link);
    t.on(
        Setup::V4Only,
        "ESP by link-local addresses without IPv6",
        local(raw(50, &[0; 8])).frame(),
        link,
        link,
    );
    let echo = || icmp6(128, &[0; 8]);
    t.on(Setup::V4Only, "echo by link-local addresses", local(echo()).frame(), PASS, PASS);
    t.on(Setup::V4Only, "echo behind options", local(echo()).options(1).frame(), PASS, PASS);
    t.on(Setup::V4Only, "first fragment of an echo", local(echo()).fragment(1).frame(), PASS, PASS);
    t.on(
        Setup::V4Only,
        "later fragment of an echo",
        local(raw(58, &[0; 8])).fragment(1448).frame(),
        PASS,
        PASS,
    );
    t.on(Setup::V4Only, "later fragment of UDP", local(udp(1, 2)).fragment(1448).frame(), link, link);
    t.on(
        Setup::V4Only,
        "to the end of fe80::/10",
        v6(POD6_LINK, address("febf::1"), tcp(1, 2)).frame(),
        link,
        link,
    );
    t.on(
        Setup::V4Only,
        "behind the end of fe80::/10",
        v6(POD6_LINK, address("fec0::1"), tcp(1, 2)).frame(),
        deny,
        link,
    );
    t.on(
        Setup::V4Only,
        "UDP to a group without IPv6",
        v6(POD6_LINK, address("ff02::fb"), udp(1, 2)).frame(),
        PASS,
        link,
    );
    t.on(Setup::V4Only, "UDP to a neighbour without IPv6", to(NEAR6), deny, deny);
    t.on(Setup::Any, "UDP from a link-local address with ingress any", local(udp(1, 2)).frame(), PASS, PASS);
    let lost = Some(ZoneNotLoaded);
    t.on(Setup::NotLoaded, "UDP by IPv6 without a zone", to(NEAR6), lost, lost);
    t.on(Setup::NotLoaded, "group of the link without a zone", to(ALL_NODES), lost, lost);
    t.on(Setup::NotLoaded, "link-local without a zone", local(udp(1, 2)).frame(), lost, lost);
}

/// ICMPv6 errors from routers outside.
pub(super) fn errors(t: &mut Table) {
    let (deny, spoof) = (Some(ZoneDeny), Some(SourceV6));
    let about = v6(POD6, NEAR6, udp(1000, 2000)).frame();
    let error = |kind, quoted: &[u8], length| v6(FAR6, POD6, error6(kind, quoted, length)).frame();
    t.add("echo by IPv6", v6(POD6, NEAR6, icmp6(128, &[0; 8])).frame(), PASS, PASS);
    t.add("echo from outside by IPv6", v6(FAR6, POD6, icmp6(128, &[0; 60])).frame(), spoof, deny);
    for (kind, name) in [
        (1, "unreachable about own packet by IPv6"),
        (2, "packet too big about own packet"),
        (3, "time exceeded about own packet by IPv6"),
        (4, "parameter problem about own packet by IPv6"),
    ] {
        t.add(name, error(kind, &about, 48), spoof, PASS);
    }
    t.add("experimental error about own packet", error(100, &about, 48), spoof, deny);
    t.add("error that quotes a header alone by IPv6", error(2, &about, 40), spoof, PASS);
    t.add("error that quotes 39 bytes", error(2, &about, 39), spoof, deny);
    t.add("error whose quote is padding by IPv6", padded(error(2, &about, 0), &about[14..]), spoof, deny);
    let other = v6(NEAR6, NEAR6, udp(1, 2)).frame();
    t.add("error about another's packet by IPv6", error(2, &other, 48), spoof, deny);
    let outside = v6(POD6, FAR6, udp(1, 2)).frame();
    t.add("error about a packet that the zone denies by IPv6", error(2, &outside, 48), spoof, deny);
    let one_way = v6(POD6, ONE_WAY6, udp(1, 2)).frame();
    t.add(
        "error about a packet to a network that may not answer by IPv6",
        error(2, &one_way, 48),
        spoof,
        PASS,
    );
    let first = v6(POD6, NEAR6, udp(1, 2)).fragment(1).frame();
    t.add("packet too big about a first fragment", error(2, &first, 56), spoof, PASS);
    t.add("packet too big about half a fragment header", error(2, &first, 47), spoof, deny);
    let later = v6(POD6, NEAR6, udp(1, 2)).fragment(1448).frame();
    t.add("packet too big about a later fragment", error(2, &later, 56), spoof, deny);
    let version = v6(POD6, NEAR6, udp(1, 2)).first_byte(0x45).frame();
    t.add("error that quotes another version by IPv6", error(2, &version, 48), spoof, deny);
    let behind = v6(FAR6, POD6, error6(2, &about, 48)).options(1).frame();
    t.add("error behind options", behind, spoof, deny);
    let link = v6(POD6_LINK, NEAR6, udp(1, 2)).frame();
    t.add("error about a packet from the link-local address", error(2, &link, 48), spoof, PASS);
    t.on(Setup::V4Only, "error about own packet without IPv6", error(2, &about, 48), spoof, deny);
    t.add(
        "error from a link-local router",
        v6(NEAR6_LINK, POD6, error6(2, &outside, 48)).frame(),
        spoof,
        PASS,
    );
    t.add("error of the pod by IPv6", v6(POD6, NEAR6, error6(1, &other, 48)).frame(), PASS, PASS);
    t.add(
        "error of the pod to one outside by IPv6",
        v6(POD6, FAR6, error6(1, &other, 48)).frame(),
        deny,
        PASS,
    );
}
