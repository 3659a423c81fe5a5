//! Zones of every shape against a reference that shares no code with the compiler.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use netpath_ebpf::abi::{
    Endpoint, PORT_RANGES, PortRange, TrieKey4, TrieKey6, ZONE_PORT_SETS, ZoneSlot, zone_flags, zone_verdict,
};
use netpath_ebpf::bits::{bytes16, raw16};
use netpath_ebpf::drop_reason::DropReason;
use netpath_ebpf::packet::{Facts, bit, l3};
use netpath_ebpf::verdict::{self, Rules};
use proptest::prelude::*;

use super::entry::tests::entry;
use super::*;

/// Whether the first `length` bits of two addresses are the same.
fn same_head(a: &[u8], b: &[u8], length: u32) -> bool {
    (0..length as usize).all(|bit| (a[bit / 8] ^ b[bit / 8]) & (0x80 >> (bit % 8)) == 0)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The other end of a packet.
#[derive(Clone, Copy, Debug)]
struct End {
    address: IpAddr,
    protocol: u8,
    port: u16,
}

fn is_around(prefix: IpNetwork, address: IpAddr) -> bool {
    prefix.is_ipv4() == address.is_ipv4()
        && same_head(&octets(prefix.ip()), &octets(address), u32::from(prefix.prefix()))
}

/// Whether `entry` is about packets to or from `end`.
fn is_about(entry: &ZoneEntry, end: End) -> bool {
    let named = |ports: &Ports| {
        let number = match (ports.protocol, end.address) {
            (Protocol::Tcp, _) => 6,
            (Protocol::Udp, _) => 17,
            (Protocol::Sctp, _) => 132,
            (Protocol::Icmp, IpAddr::V4(_)) => 1,
            (Protocol::Icmp, IpAddr::V6(_)) => 58,
        };
        end.protocol == number && ports.first <= end.port && end.port <= ports.last
    };
    is_around(entry.prefix(), end.address) && (entry.ports().is_empty() || entry.ports().iter().any(named))
}

/// The reference: a denial with ports holds, else the longest entry that the packet matches decides, a denial
/// wins a tie, none denies.
fn allowed_by(local: &[IpNetwork], allow: &[ZoneEntry], deny: &[ZoneEntry], end: End) -> bool {
    let matched = |list: &[ZoneEntry]| -> Vec<ZoneEntry> {
        list.iter().filter(|entry| is_about(entry, end)).cloned().collect()
    };
    let denied = matched(deny);
    if denied.iter().any(|entry| !entry.ports().is_empty()) {
        return false;
    }
    let length = |prefix: &IpNetwork| i16::from(prefix.prefix());
    let local = local.iter().filter(|prefix| is_around(**prefix, end.address)).map(length);
    let open = local.chain(matched(allow).iter().map(|entry| length(&entry.prefix()))).max().unwrap_or(-1);
    open > denied.iter().map(|entry| length(&entry.prefix())).max().unwrap_or(-1)
}

/// What a zone means: (may be sent to, may send).
fn reference(zone: &Zone, end: End) -> (bool, bool) {
    let egress = allowed_by(&zone.local, &zone.allow, &zone.deny, end);
    let ingress = match zone.ingress {
        Ingress::Zone => egress,
        Ingress::Local => allowed_by(&zone.local, &[], &zone.deny, end),
        Ingress::Any => true,
    };
    (egress, ingress)
}

/// The packets of an address about which zones of these tests can differ: every named port and its neighbours.
fn ends(zones: &[&Zone], address: IpAddr) -> Vec<End> {
    let mut ports = vec![0];
    for entry in zones.iter().flat_map(|zone| zone.allow.iter().chain(&zone.deny)) {
        for named in entry.ports() {
            ports.extend([
                named.first.saturating_sub(1),
                named.first,
                named.last,
                named.last.saturating_add(1),
            ]);
        }
    }
    ports.sort_unstable();
    ports.dedup();
    let all = [1_u8, 6, 17, 47, 58, 132];
    all.into_iter()
        .flat_map(|protocol| ports.iter().map(move |&port| End { address, protocol, port }))
        .collect()
}

/// The maps as programs read them, for a zone in row 1 and the slot with index `row`.
struct InMaps<'a> {
    slot: ZoneSlot,
    image: &'a ZoneImage,
    row: u32,
    trie4: Vec<TrieEntry<TrieKey4>>,
    trie6: Vec<TrieEntry<TrieKey6>>,
}

impl<'a> InMaps<'a> {
    fn new(image: &'a ZoneImage, row: u32) -> Self {
        Self { slot: image.slot(1), image, row, trie4: image.trie4(row), trie6: image.trie6(row) }
    }
}

impl Rules for InMaps<'_> {
    fn zone(&self, zone: u32) -> Option<(&ZoneSlot, u32)> {
        (zone == 1).then_some((&self.slot, self.row))
    }
    fn trie4(&self, slot: u32, address: u32) -> u32 {
        let around = self.trie4.iter().filter(|entry| {
            entry.key.slot == slot
                && same_head(&entry.key.addr, &address.to_ne_bytes(), entry.prefix_len - 32)
        });
        around.max_by_key(|entry| entry.prefix_len).map_or(0, |entry| entry.verdicts)
    }
    fn trie6(&self, slot: u32, address: [u64; 2]) -> u32 {
        let around = self.trie6.iter().filter(|entry| {
            entry.key.slot == slot && same_head(&entry.key.addr, &bytes16(address), entry.prefix_len - 32)
        });
        around.max_by_key(|entry| entry.prefix_len).map_or(0, |entry| entry.verdicts)
    }
    fn ports(&self, slot: u32, set: u32, protocol: u8, port: u16) -> u32 {
        assert_eq!(slot, self.row);
        let set = &self.image.ports()[usize::try_from(set).expect("small")];
        let holds = |range: &&PortRange| {
            range.protocol != 0 && range.protocol == protocol && (range.first..=range.last).contains(&port)
        };
        set.iter().find(holds).map_or(0, verdict::port_word)
    }
}

const POD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const POD6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// The row of the pod whose packets these are.
fn pod() -> Endpoint {
    let mut row = Endpoint {
        id: 1,
        generation: 1,
        zone: 1,
        mode: netpath_ebpf::abi::mode::ENFORCE,
        kind: netpath_ebpf::abi::kind::ENDPOINT,
        flags: 0,
        cookie: 0,
        v4: [[0; 4]; 4],
        gateway_v4: [0; 4],
        pad: [0; 4],
        v6: [[0; 16]; 4],
        link_local: [0; 16],
        gateway_v6: [0; 16],
    };
    (row.v4[0], row.v6[0]) = (POD.octets(), POD6.octets());
    row
}

/// A packet of the pod to `end`, and one from there to the pod.
fn packets(end: End, bits: u32) -> [Facts; 2] {
    let facts = |source: IpAddr, destination: IpAddr| {
        let mut facts = Facts { protocol: end.protocol, bits, ..Facts::default() };
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                facts.l3 = l3::V4;
                facts.source4 = u32::from_ne_bytes(source.octets());
                facts.destination4 = u32::from_ne_bytes(destination.octets());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                facts.l3 = l3::V6;
                (facts.source6, facts.destination6) = (raw16(source.octets()), raw16(destination.octets()));
            }
            _ => unreachable!("both are of one family"),
        }
        facts
    };
    let pod = if end.address.is_ipv4() { IpAddr::V4(POD) } else { IpAddr::V6(POD6) };
    let out = Facts { source_port: 7, destination_port: end.port, ..facts(pod, end.address) };
    [out, Facts { source_port: end.port, destination_port: 7, ..facts(end.address, pod) }]
}

/// What the verdict says of packets to and from `end`: reasons, or nothing.
fn judged(maps: &InMaps<'_>, end: End, bits: u32) -> [Option<DropReason>; 2] {
    let [out, back] = packets(end, bits);
    let reasons =
        [verdict::egress(&out, &pod(), maps).reason(), verdict::ingress(&back, &pod(), maps).reason()];
    reasons.map(DropReason::from_number)
}

/// Which rule the verdict says decided about packets to and from `end`.
fn decided(maps: &InMaps<'_>, end: End) -> [Option<u8>; 2] {
    let [out, back] = packets(end, 0);
    [verdict::egress(&out, &pod(), maps).rule(), verdict::ingress(&back, &pod(), maps).rule()]
}

/// Whether `rule` may have decided about `end`, which was allowed or not. It is about the packet and of a list that
/// says so; nobody decides only where nobody without ports denies.
fn may_decide(zone: &Zone, image: &ZoneImage, end: End, rule: u8, allowed: bool, lists: &[List]) -> bool {
    let Some(place) = usize::from(rule).checked_sub(1) else {
        return !allowed && !zone.deny.iter().any(|entry| entry.is_whole() && is_about(entry, end));
    };
    let found = image.rules().get(place).and_then(ZoneRule::from_maps);
    found.is_some_and(|ZoneRule { list, entry }| {
        let written = match list {
            List::Local => entry.is_whole() && zone.local.contains(&entry.prefix()),
            List::Allow => zone.allow.contains(&entry),
            List::Deny => zone.deny.contains(&entry),
        };
        let says = if allowed { lists.contains(&list) } else { list == List::Deny };
        written && says && is_about(&entry, end)
    })
}

/// Whether all packets of `address` meet one fate: else a later fragment, which has no ports, meets none.
fn is_about_ports(zone: &Zone, address: IpAddr) -> bool {
    let fates: Vec<bool> = ends(&[zone], address).into_iter().map(|end| reference(zone, end).0).collect();
    fates.iter().any(|fate| *fate != fates[0])
}

/// Addresses that share heads of every length, so that prefixes nest and meet.
fn address() -> impl Strategy<Value = IpAddr> {
    let v4 = (0..4_u8, 0..=255_u8, prop_oneof![Just(0_u8), Just(1), Just(127), Just(128), Just(255)]);
    let v6 = (0..4_u16, 0..4_u16, prop_oneof![Just(0_u16), Just(1), Just(0x8000), Just(0xffff)]);
    prop_oneof![
        v4.prop_map(|(b, c, d)| IpAddr::V4(Ipv4Addr::new(10, b, c & 0x83, d))),
        v6.prop_map(|(b, f, h)| IpAddr::V6(Ipv6Addr::new(0xfd00, b, 0, 0, 0, f, 0, h))),
    ]
}

fn prefix() -> impl Strategy<Value = IpNetwork> {
    (address(), any::<proptest::sample::Index>()).prop_map(|(address, index)| {
        let (shortest, full) = if address.is_ipv4() { (8, 32) } else { (32, 128) };
        let length = u8::try_from(shortest + index.index(full - shortest + 1)).expect("at most 128");
        prefix::canonical(IpNetwork::new(address, length).expect("length fits"))
    })
}

fn ingress() -> impl Strategy<Value = Ingress> {
    prop_oneof![Just(Ingress::Local), Just(Ingress::Zone), Just(Ingress::Any)]
}

/// Few ports, so that ranges nest and meet.
fn ports() -> impl Strategy<Value = Ports> {
    let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Tcp, Protocol::Udp, Protocol::Sctp]);
    let ranges = (protocol, 1..6_u16, 0..4_u16).prop_map(|(protocol, first, more)| Ports {
        protocol,
        first,
        last: first + more,
    });
    let all = prop::sample::select(vec![Protocol::Icmp, Protocol::Tcp]).prop_map(|protocol| Ports {
        protocol,
        first: 0,
        last: u16::MAX,
    });
    prop_oneof![6 => ranges, 1 => all]
}

fn zone_entry() -> impl Strategy<Value = ZoneEntry> {
    let ports = prop_oneof![2 => Just(Vec::new()), 1 => prop::collection::vec(ports(), 1..3)];
    (prefix(), ports).prop_map(|(prefix, ports)| {
        let texts: Vec<String> = ports.iter().map(ToString::to_string).collect();
        let item = match texts.is_empty() {
            true => serde_json::json!(prefix),
            false => serde_json::json!({ "cidr": prefix, "ports": texts }),
        };
        ZoneEntry::parse("zone.allow", &item).expect("an entry")
    })
}

prop_compose! {
    fn any_zone()(
        local in prop::collection::vec(prefix(), 0..6),
        allow in prop::collection::vec(zone_entry(), 0..10),
        deny in prop::collection::vec(zone_entry(), 0..10),
        ingress in ingress(),
    ) -> Zone {
        Zone { mode: Mode::Enforce, local, allow, deny, ingress, on_deny: OnDeny::Drop }
    }
}

/// Those that fit the maps; `too_many_ports_are_refused` has the others.
fn zone() -> impl Strategy<Value = Zone> {
    any_zone().prop_filter("fits the maps", |zone| compile(zone).is_ok())
}

fn compiled(zone: &Zone) -> ZoneImage {
    compile(zone).expect("fits the maps")
}

/// Every prefix of a zone.
fn prefixes(zone: &Zone) -> Vec<IpNetwork> {
    let entries = zone.allow.iter().chain(&zone.deny).map(ZoneEntry::prefix);
    zone.local.iter().copied().chain(entries).collect()
}

/// Addresses at and beside every edge of `zones`.
fn edges(zones: &[&Zone]) -> Vec<IpAddr> {
    let mut edges = Vec::new();
    for prefix in zones.iter().flat_map(|zone| prefixes(zone)) {
        match (prefix.network(), prefix.broadcast()) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                for bits in [
                    u32::from(first).wrapping_sub(1),
                    first.into(),
                    last.into(),
                    u32::from(last).wrapping_add(1),
                ] {
                    edges.push(IpAddr::V4(bits.into()));
                }
            }
            (IpAddr::V6(first), IpAddr::V6(last)) => {
                for bits in [
                    u128::from(first).wrapping_sub(1),
                    first.into(),
                    last.into(),
                    u128::from(last).wrapping_add(1),
                ] {
                    edges.push(IpAddr::V6(bits.into()));
                }
            }
            _ => unreachable!("both ends are of one family"),
        }
    }
    edges
}

/// The `zone` key that says what `zone` says.
fn conf(zone: &Zone) -> ZoneConf {
    ZoneConf::parse(&zone.to_json()).expect("a zone's own words")
}

proptest! {
    // Each case is some ten thousand packets.
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn programs_do_what_the_zone_means(zone in zone(), more in prop::collection::vec(address(), 20), row in 0..9_u32) {
        let image = compiled(&zone);
        let maps = InMaps::new(&image, row);
        let deny = |allowed: bool| (!allowed).then_some(DropReason::ZoneDeny);
        for address in edges(&[&zone]).into_iter().chain(more) {
            for end in ends(&[&zone], address) {
                let (egress, ingress) = reference(&zone, end);
                let found = judged(&maps, end, 0);
                prop_assert_eq!(found, [deny(egress), deny(ingress)], "{:?} in {:?}", end, zone);
                let verdicts = image.verdicts(address, end.protocol, end.port);
                prop_assert_eq!(verdicts & zone_verdict::EGRESS != 0, egress);
                if zone.ingress != Ingress::Any {
                    prop_assert_eq!(verdicts & zone_verdict::INGRESS != 0, ingress);
                }
            }
            // A later fragment is cut off only where ports decide, and then always.
            let end = End { address, protocol: 17, port: 0 };
            let found = judged(&maps, end, bit::LATER_FRAGMENT | bit::ANY_FRAGMENT);
            let (egress, ingress) = reference(&zone, end);
            let expected = match (is_about_ports(&zone, address), zone.ingress) {
                (true, Ingress::Any) => [Some(DropReason::Fragment), None],
                (true, _) => [Some(DropReason::Fragment); 2],
                (false, _) => [deny(egress), deny(ingress)],
            };
            prop_assert_eq!(found, expected, "a fragment, {} in {:?}", address, zone);
            // Who may be sent to by any port may be asked for by ARP, and nobody else.
            let mut ask = packets(End { address, protocol: 0, port: 0 }, bit::ARP_FORM)[0];
            if address.is_ipv4() {
                ask.l3 = l3::ARP;
                let found = DropReason::from_number(verdict::egress(&ask, &pod(), &maps).reason());
                let reached = ends(&[&zone], address).into_iter().any(|end| reference(&zone, end).0);
                prop_assert_eq!(found, deny(reached), "ARP for {} in {:?}", address, zone);
            }
        }
    }

    #[test]
    fn inline_and_trie_say_the_same(zone in zone(), row in 0..9_u32) {
        let inline = compiled(&zone);
        prop_assume!(inline.flags() & (zone_flags::TRIE_V4 | zone_flags::TRIE_V6) == 0);
        let mut trie = inline.clone();
        trie.flags |= zone_flags::TRIE_V4 | zone_flags::TRIE_V6;
        let (inline, trie) = (InMaps::new(&inline, row), InMaps::new(&trie, row));
        for end in edges(&[&zone]).into_iter().flat_map(|address| ends(&[&zone], address)) {
            prop_assert_eq!(judged(&trie, end, 0), judged(&inline, end, 0), "{:?} in {:?}", end, zone);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// What is counted for an entry is what the entry says.
    #[test]
    fn who_decides_is_about_the_packet_and_says_so(zone in zone(), more in prop::collection::vec(address(), 20)) {
        let image = compiled(&zone);
        let maps = InMaps::new(&image, 3);
        for address in edges(&[&zone]).into_iter().chain(more) {
            for end in ends(&[&zone], address) {
                let (egress, ingress) = reference(&zone, end);
                let [sent, received] = decided(&maps, end);
                let by = |rule: Option<u8>, allowed: bool, lists: &[List]| {
                    rule.is_some_and(|rule| may_decide(&zone, &image, end, rule, allowed, lists))
                };
                let both = [List::Local, List::Allow];
                prop_assert!(by(sent, egress, &both), "{:?} to {:?} in {:?}", sent, end, zone);
                let right = match zone.ingress {
                    Ingress::Any => received.is_none(),
                    Ingress::Local => by(received, ingress, &[List::Local]),
                    Ingress::Zone => by(received, ingress, &both) && received == sent,
                };
                prop_assert!(right, "{:?} from {:?} in {:?}", received, end, zone);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// The error is about a prefix of the zone, and true: one entry less for that prefix can be what it takes.
    #[test]
    fn too_many_ports_are_refused(zone in any_zone(), count in 9..20_u16) {
        let mut zone = zone;
        let texts: Vec<String> = (0..count).map(|i| format!("tcp/{}", 100 + 2 * i)).collect();
        let item = serde_json::json!({ "cidr": "11.0.0.0/8", "ports": texts });
        zone.allow.push(ZoneEntry::parse("zone.allow", &item).expect("an entry"));
        match compile(&zone) {
            Err(ZoneError::PortRanges { prefix, limit }) => {
                prop_assert_eq!(limit, PORT_RANGES);
                prop_assert!(prefixes(&zone).contains(&prefix));
            }
            Err(ZoneError::PortSets { prefix, limit }) => {
                prop_assert_eq!(limit, ZONE_PORT_SETS);
                prop_assert!(prefixes(&zone).contains(&prefix));
            }
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn lists_are_sorted_and_hold_each_prefix_once(zone in zone()) {
        let image = compiled(&zone);
        let rank = |verdicts: u32| verdicts & zone_verdict::EGRESS;
        for (a, b) in image.v4().iter().zip(&image.v4()[image.v4().len().min(1)..]) {
            prop_assert!(a.0.prefix() > b.0.prefix() || a.0.prefix() == b.0.prefix() && rank(a.1) <= rank(b.1));
        }
        let mut prefixes: Vec<_> = image.prefixes().map(|(prefix, _)| prefix).collect();
        let listed = prefixes.len();
        prefixes.sort();
        prefixes.dedup();
        prop_assert_eq!(prefixes.len(), listed);
    }

    #[test]
    fn an_image_is_read_back_from_its_maps(zone in zone(), row in 0..9_u32) {
        let image = compiled(&zone);
        let (mut trie4, mut trie6) = (image.trie4(row), image.trie6(row));
        trie4.reverse();
        trie6.reverse();
        let again = ZoneImage::from_maps(&image.slot(9), &trie4, &trie6, image.ports(), image.rules());
        prop_assert_eq!(again, Ok(image));
    }

    #[test]
    fn a_zone_is_read_as_it_was_written(zone in zone()) {
        prop_assert_eq!(Zone::from_json(&zone.to_json()), Ok(zone));
    }

    #[test]
    fn order_and_repetition_change_nothing(zone in zone()) {
        let mut other = zone.clone();
        other.local.reverse();
        other.allow.extend(zone.allow.iter().rev().cloned());
        other.deny.extend(zone.deny.iter().rev().cloned());
        prop_assert_eq!(compiled(&other).digest("net"), compiled(&zone).digest("net"));
    }

    #[test]
    fn a_difference_is_empty_only_for_the_same_image(a in zone(), b in zone()) {
        let (a, b) = (compiled(&a), compiled(&b));
        let alike = |image: &ZoneImage| {
            let prefixes: Vec<_> = image.prefixes().map(|(p, word)| (p, image.ruling(word))).collect();
            (image.flags(), prefixes)
        };
        prop_assert_eq!(ZoneImage::difference(&a, &b).is_empty(), alike(&a) == alike(&b));
        prop_assert_eq!(a.digest("net") == b.digest("net"), a == b);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// A network that is let through reaches nothing that the bound does not, and one that is refused does.
    #[test]
    fn a_bound_holds_and_refuses_nothing_else(bound in zone(), other in zone(), same in any::<[bool; 4]>()) {
        // Random zones are seldom within each other, so that parts of the bound are kept.
        let [local, allow, deny, ingress] = same;
        let mut asked = bound.clone();
        if !local {
            asked.local = other.local.into_iter().take(1).collect();
        }
        if !allow {
            asked.allow = other.allow.into_iter().take(2).collect();
        }
        if !deny {
            asked.deny = other.deny;
        }
        if !ingress {
            asked.ingress = other.ingress;
        }
        prop_assume!(compile(&asked).is_ok());
        let master = entry(&serde_json::json!({ "zone": bound.to_json(), "subnets": ["10.0.0.0/8", "fd00::/16"] }));
        let wider = |end: End| {
            let (ours, theirs) = (reference(&asked, end), reference(&bound, end));
            ours.0 && !theirs.0 || ours.1 && !theirs.1
        };
        let has_v6 = |zone: &Zone| compiled(zone).flags() & zone_flags::HAS_V6 != 0;
        let both = [&asked, &bound];
        let exceeds = bound.ingress < asked.ingress
            || edges(&both).into_iter().flat_map(|address| ends(&both, address)).any(wider)
            || has_v6(&asked) && !has_v6(&bound);
        prop_assert_eq!(
            resolve(Some(&conf(&asked)), None, Some(&master)).map_err(|error| error.to_string()).is_err(),
            exceeds || asked.local.iter().any(|prefix| !prefix::covered_by(master.subnets().expect("set"), *prefix))
        );
    }

    /// Most pairs of random zones are refused; this one is narrowed on purpose.
    #[test]
    fn what_only_narrows_is_accepted(bound in zone(), more in prop::collection::vec(zone_entry(), 0..4), skip in 0..10_usize) {
        let master = entry(&serde_json::json!({ "zone": bound.to_json(), "subnets": ["10.0.0.0/8", "fd00::/16"] }));
        let mut asked = bound.clone();
        asked.deny.extend(more);
        if skip < asked.allow.len() {
            asked.allow.remove(skip);
        }
        prop_assume!(compile(&asked).is_ok());
        let zone = resolve(Some(&conf(&asked)), None, Some(&master));
        prop_assert_eq!(zone, Ok(Some(asked)));
    }
}
