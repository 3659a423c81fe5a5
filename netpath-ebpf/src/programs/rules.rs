//! The zones' rules as the maps hold them.

use aya_ebpf::btf_maps::lpm_trie::Key;
use netpath_ebpf::{
    abi::{TrieKey4, TrieKey6, ZONE_PORT_SETS, ZoneSlot, zone_word},
    verdict::{Rules, port_word},
};

use super::maps::{PORTS, ZONE_SLOTS, ZONE_TRIE_V4, ZONE_TRIE_V6, ZONE_WORDS};

// The library's keys, as they are filled in below.
const _: () = assert!(size_of::<Key<TrieKey4>>() == 12 && size_of::<Key<TrieKey6>>() == 24);

/// Look-ups in the maps.
pub(crate) struct Maps;

impl Rules for Maps {
    #[inline(always)]
    fn zone(&self, zone: u32) -> Option<(&ZoneSlot, u32)> {
        let word = ZONE_WORDS.get(zone)?;
        // SAFETY: A reference to a map value; volatile because it is read once, whatever is written meanwhile.
        let word = unsafe { core::ptr::read_volatile(word) };
        if word & zone_word::LOADED == 0 {
            return None;
        }
        let index = zone * 2 + (word & zone_word::SLOT) / zone_word::SLOT;
        Some((ZONE_SLOTS.get(index)?, index))
    }
    #[inline(always)]
    fn trie4(&self, slot: u32, address: u32) -> u32 {
        let words = [64, slot, address];
        // SAFETY: The layout of a key: how many bits count, then the slot and the address in memory order. Byte by byte is how LLVM
        // would fill one in.
        let key = unsafe { &*(&raw const words).cast::<Key<TrieKey4>>() };
        ZONE_TRIE_V4.get(key).copied().unwrap_or(0)
    }
    #[inline(always)]
    fn trie6(&self, slot: u32, address: [u64; 2]) -> u32 {
        let [a, b] = address;
        let words = [160, slot, a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32];
        // SAFETY: As above.
        let key = unsafe { &*(&raw const words).cast::<Key<TrieKey6>>() };
        ZONE_TRIE_V6.get(key).copied().unwrap_or(0)
    }
    #[inline(always)]
    fn ports(&self, slot: u32, set: u32, protocol: u8, port: u16) -> u32 {
        port_range(slot * ZONE_PORT_SETS + (set & (ZONE_PORT_SETS - 1)), u32::from(protocol), u32::from(port))
    }
}

/// What row `index` of `ports` says of `protocol` and `port`; 0 = nothing.
///
/// A function of its own: few zones have ports, and eight ranges have no place in a verdict.
#[inline(never)]
fn port_range(index: u32, protocol: u32, port: u32) -> u32 {
    let Some(set) = PORTS.get(index) else { return 0 };
    for range in set {
        let inside = u32::from(range.first) <= port && port <= u32::from(range.last);
        if u32::from(range.protocol) == protocol && protocol != 0 && inside {
            return port_word(range);
        }
    }
    0
}
