//! Zones of every shape against a reference that shares no code with the compiler.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use netpath_ebpf::abi::{TrieKey4, TrieKey6, ZONE_INLINE, ZoneSlot, word_place, zone_flags, zone_verdict};
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

/// The reference: the longest prefix around `address` decides, a denial wins a tie, none denies.
fn allowed_by(allow: &[&[IpNetwork]], deny: &[IpNetwork], address: IpAddr) -> bool {
    let longest = |list: &mut dyn Iterator<Item = &IpNetwork>| {
        list.filter(|prefix| prefix.is_ipv4() == address.is_ipv4())
            .filter(|prefix| same_head(&octets(prefix.ip()), &octets(address), u32::from(prefix.prefix())))
            .map(|prefix| i16::from(prefix.prefix()))
            .max()
            .unwrap_or(-1)
    };
    longest(&mut allow.iter().copied().flatten()) > longest(&mut deny.iter())
}

/// What a zone means: (may be sent to, may send).
fn reference(zone: &Zone, address: IpAddr) -> (bool, bool) {
    let egress = allowed_by(&[&zone.local, &zone.allow], &zone.deny, address);
    let ingress = match zone.ingress {
        Ingress::Zone => egress,
        Ingress::Local => allowed_by(&[&zone.local], &zone.deny, address),
        Ingress::Any => true,
    };
    (egress, ingress)
}

/// What the programs read from the maps for a zone in row `row`, done by hand.
fn interpret(slot: &ZoneSlot, image: &ZoneImage, row: u32, address: IpAddr) -> (bool, bool) {
    let bytes = octets(address);
    let (trie, inline): (_, Vec<_>) = match address {
        IpAddr::V4(_) => {
            (zone_flags::TRIE_V4, slot.v4.iter().map(|e| (e.net.to_vec(), e.mask.to_vec())).collect())
        }
        IpAddr::V6(_) => {
            (zone_flags::TRIE_V6, slot.v6.iter().map(|e| (e.net.to_vec(), e.mask.to_vec())).collect())
        }
    };
    let entries: Vec<_> = match address {
        IpAddr::V4(_) => {
            let entry = |e: TrieEntry<TrieKey4>| (e.prefix_len, e.key.slot, e.key.addr.to_vec(), e.verdicts);
            image.trie4(row).into_iter().map(entry).collect()
        }
        IpAddr::V6(_) => {
            let entry = |e: TrieEntry<TrieKey6>| (e.prefix_len, e.key.slot, e.key.addr.to_vec(), e.verdicts);
            image.trie6(row).into_iter().map(entry).collect()
        }
    };
    let (words, near, near_word) = match address {
        IpAddr::V4(_) => {
            (slot.words_v4, (slot.near_v4.net.to_vec(), slot.near_v4.mask.to_vec()), slot.near_word_v4)
        }
        IpAddr::V6(_) => {
            (slot.words_v6, (slot.near_v6.net.to_vec(), slot.near_v6.mask.to_vec()), slot.near_word_v6)
        }
    };
    let holds = |net: &[u8], mask: &[u8]| {
        bytes.iter().zip(mask).map(|(byte, mask)| byte & mask).eq(net.iter().copied())
    };
    let word = if slot.flags & trie != 0 {
        let hit = entries
            .iter()
            .filter(|(length, slot, addr, _)| *slot == row && same_head(addr, &bytes, length - 32))
            .max_by_key(|(length, ..)| *length);
        hit.map_or(0, |(.., verdicts)| *verdicts)
    } else {
        assert!(entries.is_empty(), "a family is inline or a trie, not both");
        let hit = inline.iter().position(|(net, mask)| holds(net, mask));
        words[word_place(hit.unwrap_or(ZONE_INLINE))]
    };
    if holds(&near.0, &near.1) {
        assert_eq!(near_word, word, "the near prefix says what the search says");
    }
    let (egress, ingress) = (word & zone_verdict::EGRESS != 0, word & zone_verdict::INGRESS != 0);
    (egress, ingress || slot.flags & zone_flags::INGRESS_ANY != 0)
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

prop_compose! {
    fn zone()(
        local in prop::collection::vec(prefix(), 0..6),
        allow in prop::collection::vec(prefix(), 0..10),
        deny in prop::collection::vec(prefix(), 0..10),
        ingress in ingress(),
    ) -> Zone {
        Zone { mode: Mode::Enforce, local, allow, deny, ingress, on_deny: OnDeny::Drop }
    }
}

/// Addresses at and beside every edge of `zones`.
fn edges(zones: &[&Zone]) -> Vec<IpAddr> {
    let mut edges = Vec::new();
    for prefix in zones.iter().flat_map(|zone| zone.local.iter().chain(&zone.allow).chain(&zone.deny)) {
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
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn maps_say_what_the_zone_means(zone in zone(), more in prop::collection::vec(address(), 20), row in 0..9_u32) {
        let image = compile(&zone);
        let slot = image.slot(1);
        for address in edges(&[&zone]).into_iter().chain(more) {
            let expected = reference(&zone, address);
            prop_assert_eq!(interpret(&slot, &image, row, address), expected, "{} in {:?}", address, zone);
            let verdicts = image.verdicts(address);
            prop_assert_eq!(verdicts & zone_verdict::EGRESS != 0, expected.0);
            if zone.ingress != Ingress::Any {
                prop_assert_eq!(verdicts & zone_verdict::INGRESS != 0, expected.1);
            }
        }
    }

    #[test]
    fn inline_and_trie_say_the_same(zone in zone(), row in 0..9_u32) {
        let inline = compile(&zone);
        prop_assume!(inline.flags() & (zone_flags::TRIE_V4 | zone_flags::TRIE_V6) == 0);
        let mut trie = inline.clone();
        trie.flags |= zone_flags::TRIE_V4 | zone_flags::TRIE_V6;
        for address in edges(&[&zone]) {
            let said = interpret(&inline.slot(1), &inline, row, address);
            prop_assert_eq!(interpret(&trie.slot(1), &trie, row, address), said, "{} in {:?}", address, zone);
        }
    }

    #[test]
    fn lists_are_sorted_and_hold_each_prefix_once(zone in zone()) {
        let image = compile(&zone);
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
        let image = compile(&zone);
        let (mut trie4, mut trie6) = (image.trie4(row), image.trie6(row));
        trie4.reverse();
        trie6.reverse();
        prop_assert_eq!(ZoneImage::from_maps(&image.slot(9), &trie4, &trie6), Ok(image));
    }

    #[test]
    fn order_and_repetition_change_nothing(zone in zone()) {
        let mut other = zone.clone();
        other.local.reverse();
        other.allow.extend(zone.allow.iter().rev());
        other.deny.extend(zone.deny.iter().rev());
        prop_assert_eq!(compile(&other).digest("net"), compile(&zone).digest("net"));
    }

    #[test]
    fn a_difference_is_empty_only_for_the_same_image(a in zone(), b in zone()) {
        let (a, b) = (compile(&a), compile(&b));
        prop_assert_eq!(ZoneImage::difference(&a, &b).is_empty(), a == b);
        prop_assert_eq!(a.digest("net") == b.digest("net"), a == b);
    }

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
        let master = entry(&serde_json::json!({ "zone": bound.to_json(), "subnets": ["10.0.0.0/8", "fd00::/16"] }));
        let wider = |address: &IpAddr| {
            let (ours, theirs) = (reference(&asked, *address), reference(&bound, *address));
            ours.0 && !theirs.0 || ours.1 && !theirs.1
        };
        let has_v6 = |zone: &Zone| compile(zone).flags() & zone_flags::HAS_V6 != 0;
        let exceeds = bound.ingress < asked.ingress
            || edges(&[&asked, &bound]).iter().any(wider)
            || has_v6(&asked) && !has_v6(&bound);
        prop_assert_eq!(
            resolve(Some(&conf(&asked)), None, Some(&master)).map_err(|error| error.to_string()).is_err(),
            exceeds || asked.local.iter().any(|prefix| !prefix::covered_by(master.subnets().expect("set"), *prefix))
        );
    }

    /// Most pairs of random zones are refused; this one is narrowed on purpose.
    #[test]
    fn what_only_narrows_is_accepted(bound in zone(), more in prop::collection::vec(prefix(), 0..4), skip in 0..10_usize) {
        let master = entry(&serde_json::json!({ "zone": bound.to_json(), "subnets": ["10.0.0.0/8", "fd00::/16"] }));
        let mut asked = bound.clone();
        asked.deny.extend(more);
        if skip < asked.allow.len() {
            asked.allow.remove(skip);
        }
        let zone = resolve(Some(&conf(&asked)), None, Some(&master));
        prop_assert_eq!(zone, Ok(Some(asked)));
    }
}
