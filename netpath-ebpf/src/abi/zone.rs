//! Zones as the maps hold them: two slots a zone, one word that says which is in force.

use core::mem::offset_of;

use super::NAME_LEN;

/// Prefixes of one family that a zone holds inline; a longer list lives in the family's trie as a whole.
pub const ZONE_INLINE: usize = 8;
/// Places in [`ZoneSlot::words_v4`]: one for each inline entry and one for "no entry", by [`word_place`].
pub const ZONE_WORDS: usize = 16;
/// Rows of `rules` and `rule_counters` that each zone has. Rule 0 is "no entry matched", the last two are
/// [`REST_ALLOW`] and [`REST_DENY`]; each of the others is an entry of the zone.
pub const ZONE_RULES: u32 = 32;
/// The rule of all entries of `local` and `allow` that have no row of their own.
pub const REST_ALLOW: u8 = 30;
/// The rule of all entries of `deny` that have no row of their own.
pub const REST_DENY: u8 = 31;
/// Port sets that one slot of a zone may have. Ranges of different rules make different sets, so that there are
/// more than a person writes.
pub const ZONE_PORT_SETS: u32 = 64;
/// Port ranges of one prefix, those of the prefixes around it included.
pub const PORT_RANGES: usize = 8;

/// What a zone says of a prefix: one `u32`, in [`ZoneSlot::words_v4`], as value of the tries, and with the
/// same verdict bits in [`PortRange`].
pub mod zone_verdict {
    /// The endpoint may send to the prefix.
    pub const EGRESS: u32 = 1;
    /// The prefix may send to the endpoint.
    pub const INGRESS: u32 = 1 << 1;
    /// Protocol and port decide first, by the port set of this word; the two bits above hold for what no range
    /// of it names.
    pub const PORTS: u32 = 1 << 2;
    /// The prefix is the network's own, not one that was allowed beyond it. The programs do not read it.
    pub const LOCAL: u32 = 1 << 3;
    /// Where the rule stands that decides what the endpoint sends: eight bits, below [`super::ZONE_RULES`].
    pub const EGRESS_RULE_SHIFT: u32 = 8;
    /// Where the number of the port set stands: eight bits, below [`super::ZONE_PORT_SETS`].
    pub const PORT_SET_SHIFT: u32 = 16;
    /// Where the rule stands that decides what the endpoint receives: seven bits.
    pub const INGRESS_RULE_SHIFT: u32 = 24;
    /// The bits of both rules.
    pub const RULES: u32 = 0xff << EGRESS_RULE_SHIFT | 0x7f << INGRESS_RULE_SHIFT;

    /// The rules of a word that decide these two ways.
    #[inline(always)]
    pub const fn rules(egress: u8, ingress: u8) -> u32 {
        (egress as u32) << EGRESS_RULE_SHIFT | (ingress as u32 & 0x7f) << INGRESS_RULE_SHIFT
    }

    /// The port set of a word.
    #[inline(always)]
    pub const fn port_set(word: u32) -> u32 {
        word >> PORT_SET_SHIFT & 0xff
    }
}

/// An IPv4 prefix of a zone. An unused entry has `net` all ones and `mask` zero: it matches nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Prefix4 {
    /// Network address, host bits zero.
    pub net: [u8; 4],
    /// Netmask.
    pub mask: [u8; 4],
}

impl Prefix4 {
    /// The entry that matches nothing.
    pub const NONE: Self = Self { net: [0xff; 4], mask: [0; 4] };
}

/// An IPv6 prefix of a zone. An unused entry has `net` all ones and `mask` zero: it matches nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Prefix6 {
    /// Network address, host bits zero.
    pub net: [u8; 16],
    /// Netmask.
    pub mask: [u8; 16],
}

impl Prefix6 {
    /// The entry that matches nothing.
    pub const NONE: Self = Self { net: [0xff; 16], mask: [0; 16] };
}

/// Bits of [`ZoneSlot::flags`].
pub mod zone_flags {
    /// The IPv4 list is in `zone_trie_v4`, not inline.
    pub const TRIE_V4: u32 = 1;
    /// The IPv6 list is in `zone_trie_v6`, not inline.
    pub const TRIE_V6: u32 = 1 << 1;
    /// Any source may send to the endpoint (`ingress: any`).
    pub const INGRESS_ANY: u32 = 1 << 2;
    /// The zone names an IPv6 prefix: unicast to link-local addresses is not limited to ICMPv6.
    pub const HAS_V6: u32 = 1 << 3;
    /// What the endpoint sends outside the zone is answered (`onDeny: reject`).
    pub const REJECT: u32 = 1 << 4;
}

/// Value of `zone_slots`: one generation of one zone; two slots a zone, index `zone * 2 + slot`.
///
/// Inline prefixes are sorted longest first, a deny before an allow of equal length: the first match is
/// the answer, and `words_*[word_place(i)]` is what entry i says. No match is place `word_place(ZONE_INLINE)`.
/// `near_*` is a prefix of the list, or of the trie, in which no longer one lies: what it holds needs no search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ZoneSlot {
    /// Which generation of the zone this is; counts from 1, 0 = never written.
    pub generation: u64,
    /// Bits of [`zone_flags`].
    pub flags: u32,
    /// Word of `near_v4`.
    pub near_word_v4: u32,
    /// Word of `near_v6`.
    pub near_word_v6: u32,
    /// Always zero.
    pub pad: u32,
    /// An IPv4 prefix that decides alone.
    pub near_v4: Prefix4,
    /// An IPv6 prefix that decides alone.
    pub near_v6: Prefix6,
    /// IPv4 prefixes.
    pub v4: [Prefix4; ZONE_INLINE],
    /// IPv6 prefixes.
    pub v6: [Prefix6; ZONE_INLINE],
    /// What the IPv4 prefixes say: words of [`zone_verdict`].
    pub words_v4: [u32; ZONE_WORDS],
    /// What the IPv6 prefixes say.
    pub words_v6: [u32; ZONE_WORDS],
}

const _: () = assert!(size_of::<ZoneSlot>() == 8 + 16 + 8 + 32 + 40 * ZONE_INLINE + 8 * ZONE_WORDS);
// The programs read addresses by words.
const _: () = assert!(offset_of!(ZoneSlot, near_v4) % 4 == 0 && offset_of!(ZoneSlot, v4) % 4 == 0);
const _: () = assert!(offset_of!(ZoneSlot, near_v6) % 8 == 0 && offset_of!(ZoneSlot, v6) % 8 == 0);
const _: () = assert!(align_of::<ZoneSlot>() == 8);

impl ZoneSlot {
    /// A slot that was never written.
    pub const EMPTY: Self = Self {
        generation: 0,
        flags: 0,
        near_word_v4: 0,
        near_word_v6: 0,
        pad: 0,
        near_v4: Prefix4::NONE,
        near_v6: Prefix6::NONE,
        v4: [Prefix4::NONE; ZONE_INLINE],
        v6: [Prefix6::NONE; ZONE_INLINE],
        words_v4: [0; ZONE_WORDS],
        words_v6: [0; ZONE_WORDS],
    };
}

/// Where the word of inline entry `index` stands; [`ZONE_INLINE`] is "no entry". The order is that in which the first programs of
/// this version found a word by the bit of its entry, with a de Bruijn number.
pub const fn word_place(index: usize) -> usize {
    const LAST: u32 = 15;
    const { assert!(ZONE_WORDS == LAST as usize + 1) };
    ((1u32 << index).wrapping_mul(0x09af) >> 12 & LAST) as usize
}

/// Bits of a word in `zone_words` (a `u32` per zone; 0 = zone not loaded). It is the one thing that a
/// change flips, and it is read once per packet.
pub mod zone_word {
    /// Set once the zone has been written.
    pub const LOADED: u32 = 1;
    /// The slot in force: 0 or 1.
    pub const SLOT: u32 = 1 << 1;
}

/// Data part of a key of `zone_trie_v4`; the prefix length counts the 32 bits of `slot` as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct TrieKey4 {
    /// Index into `zone_slots`; in `claims_v4` the dense id of a master.
    pub slot: u32,
    /// Address.
    pub addr: [u8; 4],
}

/// Data part of a key of `zone_trie_v6`; the prefix length counts the 32 bits of `slot` as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct TrieKey6 {
    /// Index into `zone_slots`; in `claims_v6` the dense id of a master.
    pub slot: u32,
    /// Address.
    pub addr: [u8; 16],
}

/// One range of ports: what it says goes before what the prefix says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PortRange {
    /// IP protocol; 0 = unused, matches nothing.
    pub protocol: u8,
    /// The bits `EGRESS` and `INGRESS` of [`zone_verdict`].
    pub verdicts: u8,
    /// Rule that decides by this range what the endpoint sends.
    pub egress_rule: u8,
    /// Rule that decides by this range what the endpoint receives.
    pub ingress_rule: u8,
    /// First port of the other end: of the destination where the endpoint sends, else of the source.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

/// Value of `ports`: the ranges of a prefix, the first match is the answer; index
/// `zone_slots index * ZONE_PORT_SETS + set`.
pub type PortSet = [PortRange; PORT_RANGES];

const _: () = assert!(size_of::<PortSet>() == 8 * PORT_RANGES);

/// What a rule of a zone is.
pub mod rule_kind {
    /// The row is free, or was never used.
    pub const FREE: u8 = 0;
    /// An entry of `local`.
    pub const LOCAL: u8 = 1;
    /// An entry of `allow`.
    pub const ALLOW: u8 = 2;
    /// An entry of `deny`.
    pub const DENY: u8 = 3;
}

/// Value of `rules`, index `zone * ZONE_RULES + rule`: which entry of the zone a rule is. For people, and for
/// finding the row of an entry again when the zone is changed; the programs never read it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Rule {
    /// Last generation of the zone that has the entry: below the one in force the row is nobody's.
    pub generation: u64,
    /// Network address; IPv4 in the first four bytes.
    pub addr: [u8; 16],
    /// Length of the prefix.
    pub prefix_len: u8,
    /// 4 or 6.
    pub family: u8,
    /// One of [`rule_kind`].
    pub kind: u8,
    /// Always zero.
    pub pad: [u8; 5],
    /// The ports that the entry is about; none: all that is sent. Only protocol, first and last are set.
    pub ports: PortSet,
}

const _: () = assert!(size_of::<Rule>() == 8 + 16 + 8 + size_of::<PortSet>());

/// Value of `rule_counters`, one for each CPU, index `zone * ZONE_RULES + rule`: packets that a rule decided, those
/// that only would have been dropped included. Both generations of a zone count into the same rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RuleCounters {
    /// Packets that endpoints sent.
    pub tx_packets: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Packets to endpoints.
    pub rx_packets: u64,
    /// Their bytes.
    pub rx_bytes: u64,
}

const _: () = assert!(size_of::<RuleCounters>() == 32);

impl RuleCounters {
    /// Counts so much, sent if `direction` is [`super::direction::TX`].
    #[inline(always)]
    pub fn count(&mut self, direction: u8, packets: u64, bytes: u64) {
        match direction {
            super::direction::TX => {
                self.tx_packets += packets;
                self.tx_bytes += bytes;
            }
            _ => {
                self.rx_packets += packets;
                self.rx_bytes += bytes;
            }
        }
    }
}

/// Value of `zone_info`, for people and for finding a zone again; the programs never read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ZoneInfo {
    /// Name of the network the zone belongs to, zero-padded UTF-8, cut to fit.
    pub name: [u8; NAME_LEN],
    /// Digest of name and content: what an ADD looks a zone up by.
    pub digest: [u8; 16],
    /// Time of the last flip, nanoseconds of `CLOCK_BOOTTIME`.
    pub flipped_ns: u64,
}

const _: () = assert!(size_of::<ZoneInfo>() == NAME_LEN + 16 + 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_has_room_for_its_parts() {
        let parts = [0xf, 0xff << zone_verdict::PORT_SET_SHIFT, zone_verdict::RULES, 1 << 31];
        assert_eq!(parts.iter().fold(0, |seen, part| if seen & part == 0 { seen | part } else { 0 }), !0xf0);
        assert_eq!(zone_verdict::rules(REST_DENY, REST_DENY) & !zone_verdict::RULES, 0);
        assert!(u32::from(REST_DENY) == ZONE_RULES - 1 && ZONE_PORT_SETS <= 1 << 8);
    }

    #[test]
    fn every_entry_has_a_place_of_its_own() {
        let mut seen = [false; ZONE_WORDS];
        for index in 0..=ZONE_INLINE {
            let place = word_place(index);
            assert!(!seen[place], "{index}");
            seen[place] = true;
        }
    }
}
