//! A tree of pins of any ABI that this version can read: who is on which master, and what was counted.
//!
//! Everything else of an older tree is not read: zones come from the records, and what is known of senders is made
//! of the rows. The words of counters are those that [`super::bases::COUNTED`] has for all versions until one differs.

use std::path::{Path, PathBuf};

use aya::maps::Map;
use netpath_ebpf::abi::{
    ABI_VERSION, Endpoint, EndpointKey, Master, Meta, Owner, READABLE_BY, REST_ALLOW, REST_DENY, Rule,
    rule_kind,
};

use super::{
    bases::{Bases, Counted, Rows},
    batch::Bulk,
    maps::{MapsError, Table, get, open, pin_of},
    rules,
};

/// The oldest version whose rows are those of this one. Version 3 knew no flows; those before it were in no release.
const OLDEST_READABLE: u32 = 3;

/// Whether the rows of a version are those of this one: a newer one says so.
fn is_readable(meta: &Meta) -> bool {
    match meta.abi_version {
        version if version <= ABI_VERSION => OLDEST_READABLE <= version,
        _ => meta.readable_by != 0 && meta.readable_by <= ABI_VERSION,
    }
}

/// Whether a tree of this version is read by one that is as old as `version`.
pub const fn is_readable_by(version: u32) -> bool {
    READABLE_BY <= version
}

/// A tree of pins, to be read.
pub struct Tree {
    pins: PathBuf,
    /// What it says of itself.
    pub meta: Meta,
    bases: Bases,
}

impl Tree {
    /// Opens the tree at `pins`; `None` if its maps were never finished.
    pub fn open(pins: &Path) -> Result<Option<Self>, MapsError> {
        let Some(meta) = meta(pins)? else { return Ok(None) };
        if !is_readable(&meta) {
            return Err(MapsError::Unknown { path: pins.to_owned(), found: meta.abi_version });
        }
        Ok(Some(Self { pins: pins.to_owned(), meta, bases: Bases::open(pins)? }))
    }

    /// Rows of `masters` up to the last that was used, also those of masters that are gone.
    pub fn masters(&self) -> Result<Vec<(u16, Master)>, MapsError> {
        let table: Table<Master> = open(&self.pins, "masters", Map::Array)?;
        let ids = (1..u16::MAX).zip(1..=self.meta.master_rows);
        ids.map(|(id, row)| get(&table, "masters", row).map(|master| (id, master))).collect()
    }

    /// Every id that was ever given away.
    pub fn owners(&self) -> Result<Vec<(u32, Owner)>, MapsError> {
        let mut rows: Vec<(u32, Owner)> = Bulk::open(&self.pins, "owners")?.rows()?;
        rows.retain(|(id, owner)| *id != 0 && owner.generation != 0);
        Ok(rows)
    }

    /// Every endpoint and foreign row.
    pub fn endpoints(&self) -> Result<Vec<(EndpointKey, Endpoint)>, MapsError> {
        Bulk::open(&self.pins, "endpoints")?.rows()
    }

    /// The entries of all zones, by row; those that are gone are not always told from those in force.
    pub fn rules(&self) -> Result<Vec<(u32, Rule)>, MapsError> {
        let mut rows: Vec<(u32, Rule)> = Bulk::open(&self.pins, "rules")?.rows()?;
        rows.retain(|(_, rule)| rule.kind != rule_kind::FREE);
        Ok(rows)
    }

    /// The rows that its programs count in; `None` if it has no such map.
    pub fn counted(&self, counted: &Counted) -> Result<Option<Rows>, MapsError> {
        let copies = if counted.per_cpu { self.meta.cpus } else { 1 };
        Rows::open(&self.pins, counted.map, counted.words, copies)
    }

    /// What was counted before it.
    pub fn bases(&self) -> &Bases {
        &self.bases
    }
}

/// What the maps at `pins` say of themselves; `None` if they were never finished. Its layout is that of every version.
pub fn meta(pins: &Path) -> Result<Option<Meta>, MapsError> {
    if !pin_of(pins, "meta").exists() {
        return Ok(None);
    }
    let table: Table<Meta> = open(pins, "meta", Map::Array)?;
    let meta: Meta = get(&table, "meta", 0)?;
    Ok((meta.abi_version != 0).then_some(meta))
}

/// Pairs of rows of rules that stand for one entry, of `old` and of `new`, for each pair of zones.
pub fn same_rules(old: &Tree, new: &Tree, zones: &[(u32, u32)]) -> Result<Vec<(u32, u32)>, MapsError> {
    let (were, are) = (old.rules()?, new.rules()?);
    let of = |zone: u32, rows: &[(u32, Rule)]| -> Vec<(u32, Rule)> {
        let own = rules::row_of(zone, 0)..rules::row_of(zone + 1, 0);
        rows.iter().copied().filter(|(row, _)| own.contains(row)).collect()
    };
    let mut pairs = Vec::new();
    for (was, is) in zones {
        for number in [0, REST_ALLOW, REST_DENY] {
            pairs.push((rules::row_of(*was, number), rules::row_of(*is, number)));
        }
        let were = of(*was, &were);
        for (row, rule) in of(*is, &are) {
            // An entry that went and came again may have a second row, which rests.
            let same = were.iter().filter(|(_, old)| rules::is_same(old, &rule));
            if let Some((before, _)) = same.max_by_key(|(_, old)| old.generation) {
                pairs.push((*before, row));
            }
        }
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta_of(abi_version: u32, readable_by: u32) -> Meta {
        Meta { abi_version, cpus: 1, last_endpoint_id: 0, zone_rows: 0, master_rows: 0, readable_by }
    }

    #[test]
    fn a_version_is_read_if_its_rows_are_ours_or_it_says_so() {
        assert!(is_readable(&meta_of(ABI_VERSION, READABLE_BY)));
        assert!(is_readable(&meta_of(OLDEST_READABLE, 0)));
        assert!(!is_readable(&meta_of(OLDEST_READABLE - 1, 0)));
        assert!(is_readable(&meta_of(ABI_VERSION + 1, ABI_VERSION)));
        assert!(!is_readable(&meta_of(ABI_VERSION + 1, ABI_VERSION + 1)));
        assert!(!is_readable(&meta_of(ABI_VERSION + 1, 0)));
        assert!(is_readable_by(ABI_VERSION), "a version reads its own");
    }
}
