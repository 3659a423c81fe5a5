//! Zones in the maps: one row each, with two slots of which one is in force.

use std::{collections::HashSet, path::Path};

use aya::maps::{MapError, MapInfo, lpm_trie::Key};
use netpath_ebpf::abi::{
    NAME_LEN, PORT_RANGES, PortRange, PortSet, Rule, TrieKey4, TrieKey6, ZONE_PORT_SETS, ZoneInfo, ZoneSlot,
    zone_flags, zone_word,
};

use super::{
    maps::{Maps, MapsError, Raw, get, pin_of, set},
    rules::Numbers,
    sys,
};

/// What a zone's row shall hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneContent {
    /// The slot; its generation is set when it is written.
    pub slot: ZoneSlot,
    /// Prefix length, address, verdict bits: what goes into the IPv4 trie.
    pub trie_v4: Vec<(u32, [u8; 4], u32)>,
    /// The same for IPv6.
    pub trie_v6: Vec<(u32, [u8; 16], u32)>,
    /// The port sets that its words name, at most [`ZONE_PORT_SETS`].
    pub ports: Vec<PortSet>,
    /// The entries that its words and ranges name by their place, counted from 1.
    pub rules: Vec<Rule>,
}

/// A zone as the maps have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneRow {
    /// Row.
    pub id: u32,
    /// Name and digest.
    pub info: ZoneInfo,
    /// The slot in force.
    pub slot: ZoneSlot,
}

impl Maps {
    /// Every zone that is loaded.
    pub fn zones(&self) -> Result<Vec<ZoneRow>, MapsError> {
        let mut rows = Vec::new();
        for id in 1..=self.meta()?.zone_rows {
            if let Some(row) = self.zone(id)? {
                rows.push(row);
            }
        }
        Ok(rows)
    }

    /// The zone in row `id`, if one is loaded.
    pub fn zone(&self, id: u32) -> Result<Option<ZoneRow>, MapsError> {
        let word: u32 = get(&self.zone_words, "zone_words", id)?;
        if word & zone_word::LOADED == 0 {
            return Ok(None);
        }
        let info = get(&self.zone_info, "zone_info", id)?;
        let slot = get(&self.zone_slots, "zone_slots", slot_index(id, word))?;
        Ok(Some(ZoneRow { id, info, slot }))
    }

    /// What zone `id` holds, its tries included; `None` if it is not loaded.
    pub fn zone_content(&self, id: u32) -> Result<Option<ZoneContent>, MapsError> {
        loop {
            let word: u32 = get(&self.zone_words, "zone_words", id)?;
            if word & zone_word::LOADED == 0 {
                return Ok(None);
            }
            let index = slot_index(id, word);
            let slot: ZoneSlot = get(&self.zone_slots, "zone_slots", index)?;
            let (mut trie_v4, mut trie_v6) = (Vec::new(), Vec::new());
            if slot.flags & zone_flags::TRIE_V4 != 0 {
                for entry in self.zone_trie_v4.iter() {
                    let (key, Raw(verdict)) = entry.map_err(|source| unlisted("zone_trie_v4", source))?;
                    let Raw(data) = key.data();
                    if data.slot == index {
                        trie_v4.push((key.prefix_len().saturating_sub(32), data.addr, verdict));
                    }
                }
            }
            if slot.flags & zone_flags::TRIE_V6 != 0 {
                for entry in self.zone_trie_v6.iter() {
                    let (key, Raw(verdict)) = entry.map_err(|source| unlisted("zone_trie_v6", source))?;
                    let Raw(data) = key.data();
                    if data.slot == index {
                        trie_v6.push((key.prefix_len().saturating_sub(32), data.addr, verdict));
                    }
                }
            }
            let mut ports = Vec::new();
            for row in port_rows(index) {
                ports.push(get(&self.ports, "ports", row)?);
            }
            let used = ports.iter().rposition(|set| *set != NO_PORTS).map_or(0, |last| last + 1);
            ports.truncate(used);
            let (rules, numbers) = self.entries(id, slot.generation)?;
            // Readers hold no lock: what was flipped meanwhile is read again.
            let after: u32 = get(&self.zone_words, "zone_words", id)?;
            let again: ZoneSlot = get(&self.zone_slots, "zone_slots", index)?;
            if after == word && again == slot {
                trie_v4.iter_mut().for_each(|(_, _, word)| *word = numbers.word(*word));
                trie_v6.iter_mut().for_each(|(_, _, word)| *word = numbers.word(*word));
                ports.iter_mut().for_each(|set| *set = numbers.set(*set));
                return Ok(Some(ZoneContent { slot: numbers.slot(slot), trie_v4, trie_v6, ports, rules }));
            }
        }
    }

    /// The row of the zone with this digest, made if there is none.
    ///
    /// An existing row is never changed here: two networks of one name cannot loosen each other's zone.
    pub fn ensure_zone(
        &mut self,
        name: &str,
        digest: [u8; 16],
        content: &ZoneContent,
    ) -> Result<u32, MapsError> {
        let rows = self.zones()?;
        if let Some(row) = rows.iter().find(|row| row.info.digest == digest) {
            return Ok(row.id);
        }
        let id = self.free_zone()?;
        self.forget(id)?;
        self.write_zone(id, name, digest, content)?;
        Ok(id)
    }

    /// A row for a new zone. Zones that no endpoint names are kept for the next pod of their network until
    /// their room is needed.
    pub(super) fn free_zone(&mut self) -> Result<u32, MapsError> {
        let mut meta = self.meta()?;
        let capacity = self.zone_words.len();
        if meta.zone_rows + 1 < capacity {
            meta.zone_rows += 1;
            set(&mut self.meta, "meta", 0, meta)?;
            return Ok(meta.zone_rows);
        }
        let named: Vec<u32> = self.endpoints()?.iter().map(|(_, row)| row.zone).collect();
        (1..capacity).find(|id| !named.contains(id)).ok_or(MapsError::Full {
            map: "zone_slots",
            capacity: capacity - 1,
            setting: "zones",
        })
    }

    /// Takes the zone that had row `id` before out of force, if one had, and forgets what it counted. No endpoint
    /// names it.
    fn forget(&mut self, id: u32) -> Result<(), MapsError> {
        let word: u32 = get(&self.zone_words, "zone_words", id)?;
        let current: ZoneSlot = get(&self.zone_slots, "zone_slots", slot_index(id, word))?;
        if current.generation == 0 {
            return Ok(());
        }
        self.remove_zone(id)?;
        sys::grace_period().map_err(|source| MapsError::Grace { zone: id, source })?;
        // Neither slot is read any more: writing one need not wait again.
        self.settled.push((id, word & !zone_word::LOADED, current.generation));
        self.reset_rules(id)
    }

    /// Waits until nothing reads the idle slots of these zones any more, so that writing them does not have
    /// to: for those who are about to take the lock, which must not be held for so long.
    pub fn settle(&mut self, zones: &[u32]) -> Result<(), MapsError> {
        let mut seen = Vec::new();
        for &id in zones {
            let word: u32 = get(&self.zone_words, "zone_words", id)?;
            let current: ZoneSlot = get(&self.zone_slots, "zone_slots", slot_index(id, word))?;
            seen.push((id, word, current.generation));
        }
        if let Some((zone, _, _)) = seen.first() {
            sys::grace_period().map_err(|source| MapsError::Grace { zone: *zone, source })?;
        }
        // Of a zone that somebody flips from now on, word and generation will not be these any more.
        self.settled = seen;
        Ok(())
    }

    /// Puts new content in force for zone `id` as one generation; returns its number.
    pub fn write_zone(
        &mut self,
        id: u32,
        name: &str,
        digest: [u8; 16],
        content: &ZoneContent,
    ) -> Result<u64, MapsError> {
        let word: u32 = get(&self.zone_words, "zone_words", id)?;
        let current: ZoneSlot = get(&self.zone_slots, "zone_slots", slot_index(id, word))?;
        let next = word ^ zone_word::SLOT | zone_word::LOADED;
        let index = slot_index(id, next);
        let idle: ZoneSlot = get(&self.zone_slots, "zone_slots", index)?;
        let settled = self.settled.contains(&(id, word, current.generation));
        if idle.generation != 0 && !settled {
            // A program that read the word before the last flip may still be reading this slot. One that
            // was never written was never in force.
            sys::grace_period().map_err(|source| MapsError::Grace { zone: id, source })?;
        }
        // The slot is marked before its first entry goes into a trie: listing all of them can be spared otherwise.
        if idle.generation != 0 {
            self.clear_tries(index)?;
        }
        let numbers = self.place_rules(id, current.generation, content)?;
        // Sets that no word names are emptied too: what the slot held before is nobody's.
        for (row, ranges) in port_rows(index).zip(content.ports.iter().chain(std::iter::repeat(&NO_PORTS))) {
            set(&mut self.ports, "ports", row, numbers.set(*ranges))?;
        }
        let slot = numbers.slot(ZoneSlot { generation: current.generation + 1, ..content.slot });
        set(&mut self.zone_slots, "zone_slots", index, slot)?;
        if let Err(failed) = self.fill_tries(index, content, &numbers) {
            self.clear_tries(index)?;
            if !matches!(failed, MapsError::Full { .. }) {
                return Err(failed);
            }
            self.make_room(id)?;
            if let Err(failed) = self.fill_tries(index, content, &numbers) {
                // The next zone must not find the room taken by one that never was.
                self.clear_tries(index)?;
                return Err(failed);
            }
        }
        // Whoever is ended between these steps leaves a zone without a digest, never a wrong one.
        let info = ZoneInfo { name: padded(name), digest: [0; 16], flipped_ns: boot_ns() };
        set(&mut self.zone_info, "zone_info", id, info)?;
        self.change(|maps| set(&mut maps.zone_words, "zone_words", id, next))?;
        set(&mut self.zone_info, "zone_info", id, ZoneInfo { digest, ..info })?;
        Ok(slot.generation)
    }

    /// Takes zone `id` out of force: enforcing endpoints that name it drop everything.
    pub fn remove_zone(&mut self, id: u32) -> Result<(), MapsError> {
        let word: u32 = get(&self.zone_words, "zone_words", id)?;
        self.change(|maps| set(&mut maps.zone_words, "zone_words", id, word & !zone_word::LOADED))
    }

    fn fill_tries(&mut self, index: u32, content: &ZoneContent, numbers: &Numbers) -> Result<(), MapsError> {
        for (length, addr, word) in &content.trie_v4 {
            let key = Key::new(32 + length, Raw(TrieKey4 { slot: index, addr: *addr }));
            let result = self.zone_trie_v4.insert(&key, Raw(numbers.word(*word)), 0);
            result.map_err(|source| unwritten(self.pins(), "zone_trie_v4", source))?;
        }
        for (length, addr, word) in &content.trie_v6 {
            let key = Key::new(32 + length, Raw(TrieKey6 { slot: index, addr: *addr }));
            let result = self.zone_trie_v6.insert(&key, Raw(numbers.word(*word)), 0);
            result.map_err(|source| unwritten(self.pins(), "zone_trie_v6", source))?;
        }
        Ok(())
    }

    /// Removes from the tries what no endpoint needs: zones kept for the next pod of their network, what zones were
    /// before their last change, and what somebody who was ended half-way has left. Zone `but` is being written.
    fn make_room(&mut self, but: u32) -> Result<(), MapsError> {
        let named: HashSet<u32> = self.endpoints()?.iter().map(|(_, row)| row.zone).collect();
        let mut needed = HashSet::new();
        for id in 1..=self.meta()?.zone_rows {
            let word: u32 = get(&self.zone_words, "zone_words", id)?;
            match word & zone_word::LOADED != 0 {
                true if id == but || named.contains(&id) => drop(needed.insert(slot_index(id, word))),
                true => self.remove_zone(id)?,
                false => {}
            }
        }
        // A program may still be reading what was in force a moment ago.
        sys::grace_period().map_err(|source| MapsError::Grace { zone: but, source })?;
        self.remove_from_tries(|slot| !needed.contains(&slot))
    }

    fn clear_tries(&mut self, index: u32) -> Result<(), MapsError> {
        self.remove_from_tries(|slot| slot == index)
    }

    fn remove_from_tries(&mut self, which: impl Fn(u32) -> bool) -> Result<(), MapsError> {
        let v4: Vec<_> = self.zone_trie_v4.keys().flatten().filter(|key| which(key.data().0.slot)).collect();
        for key in v4 {
            let result = self.zone_trie_v4.remove(&key);
            result.map_err(|source| trie_error("zone_trie_v4", source))?;
        }
        let v6: Vec<_> = self.zone_trie_v6.keys().flatten().filter(|key| which(key.data().0.slot)).collect();
        for key in v6 {
            let result = self.zone_trie_v6.remove(&key);
            result.map_err(|source| trie_error("zone_trie_v6", source))?;
        }
        Ok(())
    }
}

/// A port set that holds nothing.
const NO_PORTS: PortSet =
    [PortRange { protocol: 0, verdicts: 0, egress_rule: 0, ingress_rule: 0, first: 0, last: 0 }; PORT_RANGES];

/// Rows of `ports` that belong to row `slot` of `zone_slots`.
fn port_rows(slot: u32) -> std::ops::Range<u32> {
    slot * ZONE_PORT_SETS..(slot + 1) * ZONE_PORT_SETS
}

fn slot_index(zone: u32, word: u32) -> u32 {
    zone * 2 + (word & zone_word::SLOT) / zone_word::SLOT
}

fn unlisted(map: &'static str, source: MapError) -> MapsError {
    MapsError::Access { op: "list", map, source }
}

/// A trie without room says so in its own way.
fn unwritten(pins: &Path, map: &'static str, source: MapError) -> MapsError {
    let errno = match &source {
        MapError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    };
    match errno {
        Some(libc::ENOSPC) => {
            let capacity = MapInfo::from_pin(pin_of(pins, map)).map_or(0, |info| info.max_entries());
            MapsError::Full { map, capacity, setting: "prefixes" }
        }
        _ => trie_error(map, source),
    }
}

fn trie_error(map: &'static str, source: MapError) -> MapsError {
    MapsError::Access { op: "write", map, source }
}

/// `text` cut to fit, at a character's boundary, and padded with zeros.
fn padded(text: &str) -> [u8; NAME_LEN] {
    let mut bytes = [0; NAME_LEN];
    let end = text.floor_char_boundary(NAME_LEN);
    bytes[..end].copy_from_slice(&text.as_bytes()[..end]);
    bytes
}

fn boot_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    now.map_or(0, |now| {
        u64::try_from(now.tv_sec()).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec()).unwrap_or(0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_is_cut_between_characters() {
        assert_eq!(std::str::from_utf8(&padded(&"ä".repeat(40))), Ok("ä".repeat(32).as_str()));
        assert_eq!(&padded("net")[..5], b"net\0\0");
    }
}
