//! The decision, written a second time from the rules: plainly, over slices, with nothing of `verdict.rs` or
//! `packet.rs` but the names of the reasons. Slow and obvious on purpose.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netpath_ebpf::drop_reason::DropReason;

use super::model::{Pod, Rule, Zone};

type Verdict = Result<(), DropReason>;

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;

/// Which way a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// The pod sent it.
    Egress,
    /// It is for the pod.
    Ingress,
}

/// Why `frame` must not pass; `None`: it may. `tagged`: a VLAN tag stands beside the frame.
pub(crate) fn decide(
    frame: &[u8],
    tagged: bool,
    way: Way,
    pod: &Pod,
    zone: Option<&Zone>,
) -> Option<DropReason> {
    let verdict = match way {
        Way::Egress => egress(frame, tagged, pod, zone),
        Way::Ingress => ingress(frame, tagged, pod, zone),
    };
    verdict.err()
}

/// A frame whose form is right.
enum Packet<'a> {
    Arp(&'a [u8]),
    V4(V4<'a>),
    V6(V6<'a>),
}

struct V4<'a> {
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    /// What the transport says; `None` for a later fragment.
    transport: Option<&'a [u8]>,
}

struct V6<'a> {
    source: Ipv6Addr,
    destination: Ipv6Addr,
    /// The last of the chain of next-header values.
    protocol: u8,
    /// Whether there are extension headers.
    extended: bool,
    transport: Option<&'a [u8]>,
}

fn be16(bytes: &[u8], at: usize) -> usize {
    usize::from(bytes[at]) << 8 | usize::from(bytes[at + 1])
}

fn v4_at(bytes: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3])
}

fn v6_at(bytes: &[u8], at: usize) -> Ipv6Addr {
    let octets: [u8; 16] = bytes[at..at + 16].try_into().expect("sixteen bytes");
    Ipv6Addr::from(octets)
}

fn deny_unless(condition: bool, reason: DropReason) -> Verdict {
    if condition { Ok(()) } else { Err(reason) }
}

// ---- Form: malformed, ethertype, VLAN, options, extension headers

fn parse(frame: &[u8], tagged: bool) -> Result<Packet<'_>, DropReason> {
    if tagged {
        return Err(DropReason::Vlan);
    }
    let body = &frame[14..];
    match be16(frame, 12) {
        0x0806 if body.len() < 28 => Err(DropReason::Malformed),
        0x0806 => Ok(Packet::Arp(body)),
        0x0800 => parse_v4(body).map(Packet::V4),
        0x86dd => parse_v6(body).map(Packet::V6),
        0x8100 | 0x88a8 | 0x9100 => Err(DropReason::Vlan),
        _ => Err(DropReason::Ethertype),
    }
}

fn parse_v4(body: &[u8]) -> Result<V4<'_>, DropReason> {
    if body.len() < 20 || body[0] >> 4 != 4 {
        return Err(DropReason::Malformed);
    }
    let header = usize::from(body[0] & 15) * 4;
    let said = be16(body, 2);
    // A packet above 64 KiB that is still to be segmented (BIG TCP) cannot say its length.
    let total = if said == 0 && body.len() > 65_535 { body.len() } else { said };
    if header < 20 || total < header || total > body.len() {
        return Err(DropReason::Malformed);
    }
    let payload = &body[header..total];
    let later = be16(body, 6) & 0x1fff != 0;
    let protocol = body[9];
    let least = match protocol {
        _ if later => 0,
        TCP => 20,
        SCTP => 12,
        UDP | 1 | 2 => 8,
        _ => 0,
    };
    if payload.len() < least {
        return Err(DropReason::Malformed);
    }
    let router_alert = header == 24 && protocol == 2 && body[20..22] == [0x94, 0x04];
    if header > 20 && !router_alert {
        return Err(DropReason::IpOptions);
    }
    let transport = (!later).then_some(payload);
    Ok(V4 { source: v4_at(body, 12), destination: v4_at(body, 16), protocol, transport })
}

fn parse_v6(body: &[u8]) -> Result<V6<'_>, DropReason> {
    if body.len() < 40 || body[0] >> 4 != 6 {
        return Err(DropReason::Malformed);
    }
    let said = be16(body, 4);
    let behind = &body[40..];
    let length = if said == 0 && behind.len() > 65_535 { behind.len() } else { said };
    if length > behind.len() {
        return Err(DropReason::Malformed);
    }
    let payload = &behind[..length];
    let (source, destination) = (v6_at(body, 8), v6_at(body, 24));
    let first = body[6];
    if !is_extension(first) {
        if payload.len() < least_v6(first) {
            return Err(DropReason::Malformed);
        }
        return Ok(V6 { source, destination, protocol: first, extended: false, transport: Some(payload) });
    }
    if payload.len() < 8 {
        return Err(DropReason::Malformed);
    }
    let (protocol, transport) = follow(first, payload).ok_or(DropReason::ExtensionHeader)?;
    Ok(V6 { source, destination, protocol, extended: true, transport })
}

fn is_extension(next: u8) -> bool {
    matches!(next, 0 | 43 | 44 | 51 | 60)
}

fn least_v6(protocol: u8) -> usize {
    match protocol {
        TCP => 20,
        SCTP => 12,
        UDP | 58 => 8,
        _ => 0,
    }
}

/// Follows at most six extension headers inside the packet: what they lead to, and its bytes unless this is a
/// later fragment. `None`: a routing header, or a chain that is too long or cut off.
fn follow(first: u8, payload: &[u8]) -> Option<(u8, Option<&[u8]>)> {
    let (mut next, mut rest) = (first, payload);
    for _ in 0..6 {
        if !is_extension(next) {
            break;
        }
        if next == 43 || rest.len() < 8 {
            return None;
        }
        let length = match next {
            44 => 8,
            51 => (usize::from(rest[1]) + 2) * 4,
            _ => (usize::from(rest[1]) + 1) * 8,
        };
        if rest.len() < length {
            return None;
        }
        let later = next == 44 && be16(rest, 2) & 0xfff8 != 0;
        next = rest[0];
        rest = &rest[length..];
        if later {
            return Some((next, None));
        }
    }
    if is_extension(next) || rest.len() < least_v6(next) {
        return None;
    }
    Some((next, Some(rest)))
}

impl V4<'_> {
    fn udp(&self) -> Option<(usize, usize)> {
        let transport = self.transport.filter(|_| self.protocol == UDP)?;
        Some((be16(transport, 0), be16(transport, 2)))
    }
}

impl V6<'_> {
    fn udp(&self) -> Option<(usize, usize)> {
        let transport = self.transport.filter(|_| self.protocol == UDP)?;
        Some((be16(transport, 0), be16(transport, 2)))
    }

    fn icmp_type(&self) -> Option<u8> {
        self.transport.filter(|_| self.protocol == 58).map(|transport| transport[0])
    }
}

// ---- What the zone and the attachment say

impl Zone {
    fn longest(&self, address: IpAddr) -> Option<&Rule> {
        let around = self.rules.iter().filter(|rule| covers(rule.net, rule.length, address));
        around.max_by_key(|rule| rule.length)
    }

    /// Whether `address` may be asked for, or have been sent to: by whatever port.
    fn reaches(&self, address: IpAddr) -> bool {
        self.longest(address).is_some_and(|rule| rule.egress || !rule.ports.is_empty())
    }

    /// Whether a packet may go to, or come from, `address`, which is the other end.
    fn judge(&self, address: IpAddr, way: Way, protocol: u8, transport: Option<&[u8]>) -> Verdict {
        let rule = self.longest(address).ok_or(DropReason::ZoneDeny)?;
        let mut allowed = (rule.egress, rule.ingress);
        if !rule.ports.is_empty() {
            let transport = transport.ok_or(DropReason::Fragment)?;
            let port = match (protocol, way) {
                (TCP | UDP | SCTP, Way::Egress) => be16(transport, 2),
                (TCP | UDP | SCTP, Way::Ingress) => be16(transport, 0),
                _ => 0,
            };
            for range in rule.ports.iter().rev() {
                let inside = usize::from(range.first) <= port && port <= usize::from(range.last);
                if range.protocol == protocol && inside {
                    allowed = (range.egress, range.ingress);
                }
            }
        }
        match way {
            Way::Egress => deny_unless(allowed.0, DropReason::ZoneDeny),
            Way::Ingress => deny_unless(allowed.1, DropReason::ZoneDeny),
        }
    }

    /// Whether the network has IPv6 that the pod may use.
    fn has_v6(&self) -> bool {
        self.rules.iter().any(|rule| rule.net.is_ipv6() && rule.egress)
    }
}

fn covers(net: IpAddr, length: u8, address: IpAddr) -> bool {
    let bits = |octets: &[u8]| -> Vec<bool> {
        octets.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1 == 1)).collect()
    };
    let (net, address) = match (net, address) {
        (IpAddr::V4(net), IpAddr::V4(address)) => (bits(&net.octets()), bits(&address.octets())),
        (IpAddr::V6(net), IpAddr::V6(address)) => (bits(&net.octets()), bits(&address.octets())),
        _ => return false,
    };
    net[..usize::from(length)] == address[..usize::from(length)]
}

impl Pod {
    fn owns4(&self, address: Ipv4Addr) -> bool {
        self.v4.contains(&address)
    }

    fn owns6(&self, address: Ipv6Addr) -> bool {
        self.v6.contains(&address) || self.link_local == address
    }
}

/// ff01 and ff02 never leave the link.
fn stays_on_link(address: Ipv6Addr) -> bool {
    let octets = address.octets();
    octets[0] == 0xff && matches!(octets[1] & 15, 1 | 2)
}

// ---- What the pod sends

fn egress(frame: &[u8], tagged: bool, pod: &Pod, zone: Option<&Zone>) -> Verdict {
    match parse(frame, tagged)? {
        Packet::Arp(arp) => egress_arp(frame, arp, pod, zone),
        Packet::V4(packet) => egress_v4(&packet, pod, zone),
        Packet::V6(packet) => egress_v6(frame, &packet, pod, zone),
    }
}

fn egress_arp(frame: &[u8], arp: &[u8], pod: &Pod, zone: Option<&Zone>) -> Verdict {
    let operation = be16(arp, 6);
    let form = arp[..6] == [0, 1, 8, 0, 6, 4] && matches!(operation, 1 | 2);
    // Sender hardware address = source MAC = row.
    let sender_mac = arp[8..14] == frame[6..12];
    let sender = v4_at(arp, 14);
    // Sender address 0 only in a probe, and that only for one's own address, or for one that DHCP offers.
    let target = v4_at(arp, 24);
    let probe = operation == 1 && sender.is_unspecified() && (pod.dhcp || pod.owns4(target));
    deny_unless(form && sender_mac && (pod.owns4(sender) || probe), DropReason::SourceArp)?;
    let zone = zone.ok_or(DropReason::ZoneNotLoaded)?;
    // An answer to a probe, which was asked by nobody.
    let defence = operation == 2 && target.is_unspecified();
    let known = pod.owns4(target) || pod.gateway4 == Some(target) || defence;
    deny_unless(known || zone.reaches(target.into()), DropReason::ZoneDeny)
}

fn egress_v4(packet: &V4<'_>, pod: &Pod, zone: Option<&Zone>) -> Verdict {
    let destination = packet.destination;
    if !pod.owns4(packet.source) {
        let dhcp = packet.udp() == Some((68, 67)) && destination.is_broadcast();
        let igmp = packet.protocol == 2 && packet.transport.is_some();
        deny_unless(packet.source.is_unspecified() && (dhcp || igmp), DropReason::SourceV4)?;
    }
    let serves = packet.udp().is_some_and(|(from, to)| from == 67 || to == 68);
    deny_unless(!serves, DropReason::DhcpServer)?;
    let zone = zone.ok_or(DropReason::ZoneNotLoaded)?;
    let on_link = destination.is_broadcast() || destination.octets()[..3] == [224, 0, 0];
    if on_link {
        return Ok(());
    }
    zone.judge(destination.into(), Way::Egress, packet.protocol, packet.transport)
}

fn egress_v6(frame: &[u8], packet: &V6<'_>, pod: &Pod, zone: Option<&Zone>) -> Verdict {
    let (kind, destination) = (packet.icmp_type(), packet.destination);
    if !pod.owns6(packet.source) {
        // Duplicate address detection, router solicitation, multicast listener messages.
        let may_be_nameless = matches!(kind, Some(130..=133 | 135 | 143));
        let nameless = packet.source.is_unspecified() && destination.is_multicast() && may_be_nameless;
        deny_unless(nameless, DropReason::SourceV6)?;
    }
    deny_unless(!matches!(kind, Some(134 | 137)), DropReason::RouterGuard)?;
    let serves = packet.udp().is_some_and(|(from, to)| from == 547 || to == 546);
    deny_unless(!serves, DropReason::DhcpServer)?;
    let mut goes_to = destination;
    let mut asks = false;
    if let Some(135 | 136) = kind {
        let target = neighbour_target(frame, packet).ok_or(DropReason::SourceNd)?;
        if kind == Some(135) && !pod.owns6(target) {
            // The target is a destination too; what is not sent to it may not leave the link either.
            deny_unless(stays_on_link(destination) || destination == target, DropReason::SourceNd)?;
            deny_unless(!packet.source.is_unspecified() || pod.dhcp, DropReason::SourceNd)?;
            (goes_to, asks) = (target, true);
        } else {
            deny_unless(pod.owns6(target), DropReason::SourceNd)?;
        }
    }
    let zone = zone.ok_or(DropReason::ZoneNotLoaded)?;
    if stays_on_link(goes_to) {
        return Ok(());
    }
    if goes_to.is_unicast_link_local() {
        return deny_unless(packet.protocol == 58 || zone.has_v6(), DropReason::LinkLocal);
    }
    let gateway = asks && pod.gateway6 == Some(goes_to);
    if gateway {
        return Ok(());
    }
    if matches!(kind, Some(135 | 136)) {
        return deny_unless(zone.reaches(goes_to.into()), DropReason::ZoneDeny);
    }
    zone.judge(goes_to.into(), Way::Egress, packet.protocol, packet.transport)
}

/// The target of a solicitation or advertisement whose body is exactly 24, 32 or 40 bytes, not behind
/// extension headers, with options of eight bytes whose link-layer addresses are the frame's source MAC.
fn neighbour_target(frame: &[u8], packet: &V6<'_>) -> Option<Ipv6Addr> {
    let body = packet.transport.filter(|_| !packet.extended)?;
    if !matches!(body.len(), 24 | 32 | 40) {
        return None;
    }
    for option in body[24..].chunks(8) {
        let names_other = matches!(option[0], 1 | 2) && option[2..] != frame[6..12];
        if option[1] != 1 || names_other {
            return None;
        }
    }
    Some(v6_at(body, 8))
}

// ---- What is for the pod

fn ingress(frame: &[u8], tagged: bool, pod: &Pod, zone: Option<&Zone>) -> Verdict {
    let packet = parse(frame, tagged)?;
    let zone = zone.ok_or(DropReason::ZoneNotLoaded)?;
    match packet {
        // The answer is judged when it leaves.
        Packet::Arp(_) => Ok(()),
        Packet::V4(packet) => ingress_v4(&packet, pod, zone),
        Packet::V6(packet) => ingress_v6(&packet, pod, zone),
    }
}

fn ingress_v4(packet: &V4<'_>, pod: &Pod, zone: &Zone) -> Verdict {
    if packet.udp() == Some((67, 68)) {
        return deny_unless(pod.dhcp, DropReason::DhcpServer);
    }
    let error_about_own = || {
        let message = packet.transport.filter(|_| packet.protocol == 1)?;
        let quoted = message.get(8..28).filter(|_| matches!(message[0], 3 | 11 | 12))?;
        let readable = quoted[0] >> 4 == 4 && quoted[0] & 15 >= 5 && be16(quoted, 6) & 0x1fff == 0;
        (readable && pod.owns4(v4_at(quoted, 12))).then(|| v4_at(quoted, 16))
    };
    let answers = || error_about_own().is_some_and(|to| zone.reaches(to.into()));
    if zone.any || answers() {
        return Ok(());
    }
    zone.judge(packet.source.into(), Way::Ingress, packet.protocol, packet.transport)
}

fn ingress_v6(packet: &V6<'_>, pod: &Pod, zone: &Zone) -> Verdict {
    if packet.udp() == Some((547, 546)) {
        return deny_unless(pod.dhcp, DropReason::DhcpServer);
    }
    if zone.any {
        return Ok(());
    }
    if packet.source.is_unicast_link_local() {
        return deny_unless(packet.protocol == 58 || zone.has_v6(), DropReason::LinkLocal);
    }
    let error_about_own = || {
        let message = packet.transport.filter(|_| packet.protocol == 58 && !packet.extended)?;
        let quoted = message.get(8..).filter(|quoted| quoted.len() >= 40 && matches!(message[0], 1..=4))?;
        let fragment = quoted[6] == 44;
        let first = !fragment || quoted.len() >= 48 && be16(quoted, 42) & 0xfff8 == 0;
        (quoted[0] >> 4 == 6 && first && pod.owns6(v6_at(quoted, 8))).then(|| v6_at(quoted, 24))
    };
    let answers = || error_about_own().is_some_and(|to| zone.reaches(to.into()));
    if answers() {
        return Ok(());
    }
    // Neighbour discovery belongs to whatever port is allowed, as ARP does.
    let by_ports = zone.longest(packet.source.into()).is_some_and(|rule| !rule.ports.is_empty());
    if by_ports && matches!(packet.icmp_type(), Some(135 | 136)) {
        return Ok(());
    }
    zone.judge(packet.source.into(), Way::Ingress, packet.protocol, packet.transport)
}
