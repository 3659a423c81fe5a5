//! Zones as the maps hold them: two slots a zone, one word that says which is in force.

use super::NAME_LEN;

/// Prefixes of one family that a zone holds inline; a longer list lives in the family's trie as a whole.
pub const ZONE_INLINE: usize = 8;
/// Places in [`ZoneSlot::words_v4`]: one for each inline entry and one for "no entry", by [`word_place`].
pub const ZONE_WORDS: usize = 16;
/// Port sets that one slot of a zone may have.
pub const ZONE_PORT_SETS: u32 = 16;
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
    /// Where the number of the port set stands: eight bits, below [`super::ZONE_PORT_SETS`].
    pub const PORT_SET_SHIFT: u32 = 16;

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

/// Where the word of inline entry `index` stands; [`ZONE_INLINE`] is "no entry".
pub const fn word_place(index: usize) -> usize {
    place_of(1 << index) as usize
}

/// [`word_place`] by the bit of the entry. A de Bruijn number: each of its first nine shifts begins with
/// four other bits, so that finding the place of the lowest set bit takes a multiplication and no branch.
#[inline(always)]
pub const fn place_of(bit: u32) -> u32 {
    const LAST: u32 = 15;
    const { assert!(ZONE_WORDS == LAST as usize + 1) };
    bit.wrapping_mul(0x09af) >> 12 & LAST
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
    /// Always zero.
    pub pad: [u8; 2],
    /// First port of the other end: of the destination where the endpoint sends, else of the source.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

/// Value of `ports`: the ranges of a prefix, the first match is the answer; index
/// `zone_slots index * ZONE_PORT_SETS + set`.
pub type PortSet = [PortRange; PORT_RANGES];

const _: () = assert!(size_of::<PortSet>() == 8 * PORT_RANGES);

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
    fn every_entry_has_a_place_of_its_own() {
        let mut seen = [false; ZONE_WORDS];
        for index in 0..=ZONE_INLINE {
            let place = word_place(index);
            assert!(!seen[place], "{index}");
            seen[place] = true;
        }
    }
}
