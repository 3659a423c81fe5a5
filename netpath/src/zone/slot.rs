//! A zone's image as the bytes of the maps, and back.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use netpath_ebpf::abi::{
    PortSet, Prefix4, Prefix6, Rule, TrieKey4, TrieKey6, ZoneSlot, word_place, zone_flags, zone_verdict,
};

use super::ZoneImage;
use super::prefix::covers;

/// An entry of `zone_trie_v4` or `zone_trie_v6`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrieEntry<K> {
    /// Length of the prefix in bits, the 32 bits of the slot included.
    pub prefix_len: u32,
    /// Slot and network address.
    pub key: K,
    /// Word of [`zone_verdict`].
    pub verdicts: u32,
}

/// Why map content is not a zone: it was not written by this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// Never written.
    #[error("the zone's slot was never written")]
    Empty,
    /// An inline entry whose mask is not a prefix, or whose address has host bits.
    #[error("entry {index} of the zone's inline {family} list is not a prefix")]
    Inline {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// Position in the list.
        index: usize,
    },
    /// A trie entry with an impossible length or host bits.
    #[error("the zone's {family} trie holds an entry of {prefix_len} bits that is not a prefix")]
    Trie {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// Its length, the slot included.
        prefix_len: u32,
    },
    /// A word that names a port set which holds nothing.
    #[error("`{prefix}` of the zone is decided by port set {set}, which is empty")]
    Ports {
        /// The prefix.
        prefix: IpNetwork,
        /// Number of the set.
        set: u32,
    },
}

/// Bits of a trie key before the address: the slot.
const SLOT_BITS: u32 = 32;

impl ZoneImage {
    /// The slot of this image as the zone's `generation`. A family that is a trie leaves its list empty.
    pub fn slot(&self, generation: u64) -> ZoneSlot {
        let mut slot = ZoneSlot { generation, flags: self.flags, ..ZoneSlot::EMPTY };
        if let Some(&(prefix, word)) = near(&self.v4) {
            slot.near_v4 = prefix4(prefix);
            slot.near_word_v4 = word;
        }
        if let Some(&(prefix, word)) = near(&self.v6) {
            slot.near_v6 = prefix6(prefix);
            slot.near_word_v6 = word;
        }
        if self.flags & zone_flags::TRIE_V4 == 0 {
            for (index, (prefix, word)) in self.v4.iter().enumerate() {
                slot.v4[index] = prefix4(*prefix);
                slot.words_v4[word_place(index)] = *word;
            }
        }
        if self.flags & zone_flags::TRIE_V6 == 0 {
            for (index, (prefix, word)) in self.v6.iter().enumerate() {
                slot.v6[index] = prefix6(*prefix);
                slot.words_v6[word_place(index)] = *word;
            }
        }
        slot
    }

    /// Entries of `zone_trie_v4` for row `slot` of `zone_slots`; none where the list is inline.
    pub fn trie4(&self, slot: u32) -> Vec<TrieEntry<TrieKey4>> {
        if self.flags & zone_flags::TRIE_V4 == 0 {
            return Vec::new();
        }
        let entry = |&(prefix, verdicts): &(Ipv4Network, u32)| TrieEntry {
            prefix_len: SLOT_BITS + u32::from(prefix.prefix()),
            key: TrieKey4 { slot, addr: prefix.network().octets() },
            verdicts,
        };
        self.v4.iter().map(entry).collect()
    }

    /// Entries of `zone_trie_v6` for row `slot` of `zone_slots`; none where the list is inline.
    pub fn trie6(&self, slot: u32) -> Vec<TrieEntry<TrieKey6>> {
        if self.flags & zone_flags::TRIE_V6 == 0 {
            return Vec::new();
        }
        let entry = |&(prefix, verdicts): &(Ipv6Network, u32)| TrieEntry {
            prefix_len: SLOT_BITS + u32::from(prefix.prefix()),
            key: TrieKey6 { slot, addr: prefix.network().octets() },
            verdicts,
        };
        self.v6.iter().map(entry).collect()
    }

    /// Reads an image back from a slot and those entries of the tries, of `ports` and of `rules` that belong to it;
    /// those of the tries in any order.
    pub fn from_maps(
        slot: &ZoneSlot,
        trie4: &[TrieEntry<TrieKey4>],
        trie6: &[TrieEntry<TrieKey6>],
        ports: &[PortSet],
        rules: &[Rule],
    ) -> Result<Self, SlotError> {
        if slot.generation == 0 {
            return Err(SlotError::Empty);
        }
        let v4 = if slot.flags & zone_flags::TRIE_V4 == 0 {
            inline4(slot)?
        } else {
            trie4.iter().map(from_trie4).collect::<Result<_, _>>()?
        };
        let v6 = if slot.flags & zone_flags::TRIE_V6 == 0 {
            inline6(slot)?
        } else {
            trie6.iter().map(from_trie6).collect::<Result<_, _>>()?
        };
        let mut image = Self { flags: slot.flags, v4, v6, ports: ports.to_vec(), rules: rules.to_vec() };
        image.sort();
        let lost = image
            .prefixes()
            .find(|&(_, word)| word & zone_verdict::PORTS != 0 && image.ruling(word).ranges.is_empty());
        match lost {
            Some((prefix, word)) => Err(SlotError::Ports { prefix, set: zone_verdict::port_set(word) }),
            None => Ok(image),
        }
    }
}

fn prefix4(prefix: Ipv4Network) -> Prefix4 {
    Prefix4 { net: prefix.network().octets(), mask: prefix.mask().octets() }
}

fn prefix6(prefix: Ipv6Network) -> Prefix6 {
    Prefix6 { net: prefix.network().octets(), mask: prefix.mask().octets() }
}

/// The widest prefix that may be sent to, if by some ports alone, and in which no longer one lies: what it holds needs no search.
fn near<P: Copy + Ord + Into<IpNetwork>>(list: &[(P, u32)]) -> Option<&(P, u32)> {
    // By address, the shorter first: if a longer one lies in a prefix, the next in this order does.
    let mut ordered: Vec<&(P, u32)> = list.iter().collect();
    let key = |entry: &(P, u32)| {
        let network: IpNetwork = entry.0.into();
        (network.network(), network.prefix())
    };
    ordered.sort_by_key(|entry| key(entry));
    let next = ordered.iter().skip(1).map(Some).chain([None]);
    let alone = ordered.iter().zip(next).filter(|((prefix, _), next)| {
        next.is_none_or(|(inner, _)| !covers((*prefix).into(), (*inner).into()))
    });
    let open = alone
        .map(|(entry, _)| *entry)
        .filter(|(_, word)| word & (zone_verdict::EGRESS | zone_verdict::PORTS) != 0);
    open.min_by_key(|entry| (key(entry).1, key(entry).0))
}

fn inline4(slot: &ZoneSlot) -> Result<Vec<(Ipv4Network, u32)>, SlotError> {
    let used = slot.v4.iter().enumerate().filter(|(_, entry)| **entry != Prefix4::NONE);
    used.map(|(index, entry)| {
        let (net, mask) = (Ipv4Addr::from(entry.net), Ipv4Addr::from(entry.mask));
        match Ipv4Network::with_netmask(net, mask) {
            Ok(prefix) if prefix.network() == net => Ok((prefix, slot.words_v4[word_place(index)])),
            _ => Err(SlotError::Inline { family: "IPv4", index }),
        }
    })
    .collect()
}

fn inline6(slot: &ZoneSlot) -> Result<Vec<(Ipv6Network, u32)>, SlotError> {
    let used = slot.v6.iter().enumerate().filter(|(_, entry)| **entry != Prefix6::NONE);
    used.map(|(index, entry)| {
        let (net, mask) = (Ipv6Addr::from(entry.net), Ipv6Addr::from(entry.mask));
        match Ipv6Network::with_netmask(net, mask) {
            Ok(prefix) if prefix.network() == net => Ok((prefix, slot.words_v6[word_place(index)])),
            _ => Err(SlotError::Inline { family: "IPv6", index }),
        }
    })
    .collect()
}

fn from_trie4(entry: &TrieEntry<TrieKey4>) -> Result<(Ipv4Network, u32), SlotError> {
    let error = SlotError::Trie { family: "IPv4", prefix_len: entry.prefix_len };
    let length =
        entry.prefix_len.checked_sub(SLOT_BITS).and_then(|bits| u8::try_from(bits).ok()).ok_or(error)?;
    match Ipv4Network::new(Ipv4Addr::from(entry.key.addr), length) {
        Ok(prefix) if prefix.network() == prefix.ip() => Ok((prefix, entry.verdicts)),
        _ => Err(error),
    }
}

fn from_trie6(entry: &TrieEntry<TrieKey6>) -> Result<(Ipv6Network, u32), SlotError> {
    let error = SlotError::Trie { family: "IPv6", prefix_len: entry.prefix_len };
    let length =
        entry.prefix_len.checked_sub(SLOT_BITS).and_then(|bits| u8::try_from(bits).ok()).ok_or(error)?;
    match Ipv6Network::new(Ipv6Addr::from(entry.key.addr), length) {
        Ok(prefix) if prefix.network() == prefix.ip() => Ok((prefix, entry.verdicts)),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{Zone, compile};
    use super::*;

    #[test]
    fn the_bytes_of_a_slot() {
        let zone = Zone::from_json(&json!({
            "local": ["10.12.34.0/24"], "allow": ["172.16.5.0/24", "fd00::/16"], "deny": ["10.12.34.13"],
            "ingress": "local",
        }));
        let slot = compile(&zone.expect("valid zone")).expect("fits").slot(3);
        assert_eq!((slot.generation, slot.flags), (3, zone_flags::HAS_V6));
        assert_eq!(slot.v4[0], Prefix4 { net: [10, 12, 34, 13], mask: [255; 4] });
        assert_eq!(slot.v4[1], Prefix4 { net: [10, 12, 34, 0], mask: [255, 255, 255, 0] });
        assert_eq!(slot.v4[2], Prefix4 { net: [172, 16, 5, 0], mask: [255, 255, 255, 0] });
        assert_eq!(slot.v4[3..], [Prefix4::NONE; 5]);
        let words = |words: [u32; 16], count: usize| -> Vec<u32> {
            (0..count).map(|index| words[word_place(index)] & !zone_verdict::RULES).collect()
        };
        assert_eq!(words(slot.words_v4, 9), [0, 11, 1, 0, 0, 0, 0, 0, 0]);
        // The local /24 has a longer prefix in it.
        assert_eq!((slot.near_v4, slot.near_word_v4 & !zone_verdict::RULES), (slot.v4[2], 1));
        let (mut net, mut mask) = ([0; 16], [0; 16]);
        (net[0], mask[0], mask[1]) = (0xfd, 0xff, 0xff);
        assert_eq!(slot.v6[0], Prefix6 { net, mask });
        assert_eq!(slot.v6[1..], [Prefix6::NONE; 7]);
        assert_eq!(words(slot.words_v6, 9), [1, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!((slot.near_v6, slot.near_word_v6 & !zone_verdict::RULES), (slot.v6[0], 1));
    }

    /// `0.0.0.0/0` has the mask of an unused entry and must not be one.
    #[test]
    fn the_widest_prefix_is_not_an_unused_entry() {
        let image =
            compile(&Zone::from_json(&json!({ "local": ["0.0.0.0/0", "::/0"] })).expect("valid zone"))
                .expect("fits");
        let slot = image.slot(1);
        assert_eq!(slot.v4[0], Prefix4 { net: [0; 4], mask: [0; 4] });
        assert_eq!(ZoneImage::from_maps(&slot, &[], &[], &[], image.rules()), Ok(image.clone()));
    }

    #[test]
    fn a_port_set_that_is_not_there_is_an_error() {
        let zone = json!({ "local": [], "allow": [{ "cidr": "10.0.0.1", "ports": ["tcp/443"] }] });
        let image = compile(&Zone::from_json(&zone).expect("valid zone")).expect("fits");
        let slot = image.slot(1);
        assert_eq!(slot.near_word_v4, zone_verdict::PORTS, "what is open by ports alone can be near");
        assert_eq!(ZoneImage::from_maps(&slot, &[], &[], image.ports(), image.rules()), Ok(image.clone()));
        let error = SlotError::Ports { prefix: "10.0.0.1/32".parse().expect("prefix"), set: 0 };
        assert_eq!(ZoneImage::from_maps(&slot, &[], &[], &[], &[]), Err(error));
        assert_eq!(ZoneImage::from_maps(&slot, &[], &[], &[PortSet::default()], &[]), Err(error));
    }

    #[test]
    fn what_we_did_not_write_is_an_error() {
        let image = compile(&Zone::from_json(&json!({ "local": ["10.0.0.0/8"] })).expect("valid zone"))
            .expect("fits");
        assert_eq!(ZoneImage::from_maps(&image.slot(0), &[], &[], &[], &[]), Err(SlotError::Empty));
        let mut slot = image.slot(1);
        slot.v4[0].mask = [255, 0, 255, 0];
        let inline = Err(SlotError::Inline { family: "IPv4", index: 0 });
        assert_eq!(ZoneImage::from_maps(&slot, &[], &[], &[], &[]), inline);
        slot.v4[0] = Prefix4 { net: [10, 0, 0, 1], mask: [255, 0, 0, 0] };
        assert_eq!(ZoneImage::from_maps(&slot, &[], &[], &[], &[]), inline);
        slot.flags = zone_flags::TRIE_V4;
        for (prefix_len, addr) in [(31, [0; 4]), (65, [0; 4]), (40, [10, 0, 0, 1])] {
            let entry = TrieEntry { prefix_len, key: TrieKey4 { slot: 2, addr }, verdicts: 3 };
            let error = Err(SlotError::Trie { family: "IPv4", prefix_len });
            assert_eq!(ZoneImage::from_maps(&slot, &[entry], &[], &[], &[]), error);
        }
    }
}
