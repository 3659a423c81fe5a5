//! Whether a zone stays within another one.
//!
//! Prefixes alone do not answer it: a longer `allow` overrides a shorter `deny`, so that each of the
//! network's lists may look harmless beside the bound's. What counts is which packets each image lets
//! through, and that is compared exactly, at every address, protocol and port where one of the two can change.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use netpath_ebpf::abi::{zone_flags, zone_verdict};

use super::conf::ALLOW;
use super::ports::Packet;
use super::{BoundError, Ingress, Zone, ZoneEntry, ZoneError, ZoneImage, compile};

/// A protocol that no entry can name: what is left when all those are looked at that one does.
const ANY_OTHER: (u8, u16) = (0, 0);

/// What `zone` lets through and `bound` does not, if anything. `local_key` says where its local prefixes were
/// written.
pub(super) fn check(
    zone: &Zone,
    local_key: &'static str,
    bound: &Zone,
) -> Result<Option<BoundError>, ZoneError> {
    if zone.mode < bound.mode {
        return Ok(Some(BoundError::Mode { mode: zone.mode, bound: bound.mode }));
    }
    if bound.ingress < zone.ingress {
        return Ok(Some(BoundError::Ingress { ingress: zone.ingress, bound: bound.ingress }));
    }
    let (ours, theirs) = (compile(zone)?, compile(bound)?);
    if let Some(packet) = excess(&ours, &theirs, zone_verdict::EGRESS) {
        let (key, prefix) = allowing(zone, local_key, &packet);
        return Ok(Some(match denying(&bound.deny, &packet) {
            None => BoundError::Allow { key, prefix, allowed: allowed(bound) },
            Some(denied) if zone.deny.iter().any(|own| own.covers(&denied)) => {
                BoundError::AllowsDenied { key, prefix, denied }
            }
            Some(denied) => BoundError::DenyLacks { denied },
        }));
    }
    // With `any` there is no list to exceed, and a rank above the bound's was refused before.
    if bound.ingress != Ingress::Any
        && let Some(packet) = excess(&ours, &theirs, zone_verdict::INGRESS)
    {
        let local = zone.local.iter().copied().filter(|prefix| prefix.contains(packet.address));
        let prefix = local.max_by_key(IpNetwork::prefix).unwrap_or_else(|| packet.address.into());
        return Ok(Some(BoundError::Local { key: local_key, prefix }));
    }
    // The flag opens link-local addresses, even where the prefix that sets it is denied piece by piece.
    if ours.flags() & !theirs.flags() & zone_flags::HAS_V6 != 0 {
        let open = ours.v6().iter().find(|(_, word)| word & zone_verdict::EGRESS != 0);
        let address = IpAddr::V6(open.map_or(Ipv6Addr::UNSPECIFIED, |(prefix, _)| prefix.network()));
        let (protocol, port) = ANY_OTHER;
        let (key, prefix) = allowing(zone, local_key, &Packet { address, protocol, port });
        return Ok(Some(BoundError::Allow { key, prefix, allowed: allowed(bound) }));
    }
    Ok(None)
}

/// A packet to which `ours` grants `verdict` and `theirs` does not.
fn excess(ours: &ZoneImage, theirs: &ZoneImage, verdict: u32) -> Option<Packet> {
    // Between two neighbours of this list neither image changes its mind.
    let mut edges: Vec<IpAddr> = Vec::new();
    for prefix in ours.prefixes().chain(theirs.prefixes()).map(|(prefix, _)| prefix) {
        edges.push(prefix.network());
        edges.extend(after(prefix.broadcast()));
    }
    edges.sort_unstable();
    edges.dedup();
    let (our_words, their_words) = (Index::new(ours), Index::new(theirs));
    let mut compared = HashSet::new();
    edges.into_iter().find_map(|address| {
        let (our_word, their_word) = (our_words.word(address), their_words.word(address));
        if !compared.insert((our_word, their_word)) {
            return None;
        }
        let named = ours.port_edges(our_word).chain(theirs.port_edges(their_word));
        std::iter::once(ANY_OTHER).chain(named).find_map(|(protocol, port)| {
            let grants = |image: &ZoneImage, word| image.decide(word, protocol, port) & verdict != 0;
            (grants(ours, our_word) && !grants(theirs, their_word)).then_some(Packet {
                address,
                protocol,
                port,
            })
        })
    })
}

/// An image that is asked often: its own list is walked from the start for each question, and who writes a
/// network says how long it is.
struct Index {
    /// The longest first.
    lengths: Vec<u8>,
    words: HashMap<IpNetwork, u32>,
}

impl Index {
    fn new(image: &ZoneImage) -> Self {
        let words: HashMap<_, _> = image.prefixes().collect();
        let mut lengths: Vec<u8> = words.keys().map(IpNetwork::prefix).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        lengths.dedup();
        Self { lengths, words }
    }

    /// The word of the longest prefix around `address`; 0 = none.
    fn word(&self, address: IpAddr) -> u32 {
        let prefix = |&length: &u8| {
            let host = IpNetwork::new(address, length).ok()?;
            self.words.get(&IpNetwork::new(host.network(), length).ok()?).copied()
        };
        self.lengths.iter().find_map(prefix).unwrap_or(0)
    }
}

fn after(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => u32::from(v4).checked_add(1).map(|bits| IpAddr::V4(Ipv4Addr::from(bits))),
        IpAddr::V6(v6) => u128::from(v6).checked_add(1).map(|bits| IpAddr::V6(Ipv6Addr::from(bits))),
    }
}

/// Which entry of `zone` lets `packet` through, and where it was written.
fn allowing(zone: &Zone, local_key: &'static str, packet: &Packet) -> (&'static str, ZoneEntry) {
    let local = zone.local.iter().filter(|prefix| prefix.contains(packet.address));
    let local = local.copied().max_by_key(IpNetwork::prefix);
    let allow = zone.allow.iter().filter(|entry| entry.holds(packet));
    match (local, allow.max_by_key(|entry| entry.prefix().prefix())) {
        (Some(local), Some(allow)) if allow.prefix().prefix() <= local.prefix() => {
            (local_key, ZoneEntry::whole(local))
        }
        (_, Some(allow)) => (ALLOW, allow.clone()),
        (Some(local), None) => (local_key, ZoneEntry::whole(local)),
        (None, None) => (ALLOW, ZoneEntry::whole(packet.address.into())),
    }
}

/// The entry of `list` that denies `packet`: one with ports is stronger than one without, whatever its length.
fn denying(list: &[ZoneEntry], packet: &Packet) -> Option<ZoneEntry> {
    let holding = list.iter().filter(|entry| entry.holds(packet));
    holding.max_by_key(|entry| (!entry.is_whole(), entry.prefix().prefix())).cloned()
}

fn allowed(bound: &Zone) -> Vec<ZoneEntry> {
    let local = bound.local.iter().copied().map(ZoneEntry::whole);
    local.chain(bound.allow.iter().cloned()).collect()
}
