//! A tree of pins of any ABI that this version can read: who is on which master, and what was counted.
//!
//! Everything else of an older tree is not read: zones come from the records, and what is known of senders is made
//! of the rows. So a version is described by the layout of a few maps, and of the words of its counters, which
//! [`super::bases::COUNTED`] has for all of them until one differs.

use std::path::{Path, PathBuf};

use aya::maps::{Array, Map, MapData};
use netpath_ebpf::abi::{
    ABI_VERSION, Endpoint, EndpointKey, Master, Meta, Owner, READABLE_BY, REST_ALLOW, REST_DENY, Rule,
    rule_kind,
};

use super::{
    bases::{Bases, Counted, Rows},
    batch::Bulk,
    maps::{MapsError, Plain, Raw, Table, get, open, pin_of},
    rules,
};

/// Rows by their keys.
type Listed<K, V> = Result<Vec<(K, V)>, MapsError>;

type ReadRules = fn(&Path) -> Listed<u32, Rule>;

/// How to read the rows of one ABI version, as rows of this one.
struct Layout {
    masters: fn(&Path, u32) -> Listed<u16, Master>,
    owners: fn(&Path) -> Listed<u32, Owner>,
    endpoints: fn(&Path) -> Listed<EndpointKey, Endpoint>,
    /// Rows of `rules` and of their counters, where it has them.
    rules: Option<ReadRules>,
}

/// This version's own.
const OWN: Layout = Layout {
    masters: masters::<Master>,
    owners: owners::<Owner>,
    endpoints: endpoints::<Endpoint>,
    rules: Some(all_rules::<Rule>),
};

/// Version 2.
const V2: Layout = Layout {
    masters: masters::<v2::Master>,
    owners: owners::<v2::Owner>,
    endpoints: endpoints::<v2::Endpoint>,
    rules: None,
};

/// The layout of a version; `None` if it is not known. Version 1 was in no release.
fn layout(meta: &Meta) -> Option<&'static Layout> {
    match meta.abi_version {
        ABI_VERSION => Some(&OWN),
        2 => Some(&V2),
        // A newer version whose rows are those that this one knows says so.
        version if ABI_VERSION < version && meta.readable_by != 0 && meta.readable_by <= ABI_VERSION => {
            Some(&OWN)
        }
        _ => None,
    }
}

/// Whether a tree of this version is read by one that is as old as `version`.
pub const fn is_readable_by(version: u32) -> bool {
    READABLE_BY <= version
}

/// A tree of pins, to be read.
pub struct Tree {
    pins: PathBuf,
    layout: &'static Layout,
    /// What it says of itself.
    pub meta: Meta,
    bases: Bases,
}

impl Tree {
    /// Opens the tree at `pins`; `None` if its maps were never finished.
    pub fn open(pins: &Path) -> Result<Option<Self>, MapsError> {
        let Some(meta) = meta(pins)? else { return Ok(None) };
        let Some(layout) = layout(&meta) else {
            return Err(MapsError::Unknown { path: pins.to_owned(), found: meta.abi_version });
        };
        Ok(Some(Self { pins: pins.to_owned(), layout, meta, bases: Bases::open(pins)? }))
    }

    /// Rows of `masters` up to the last that was used, also those of masters that are gone.
    pub fn masters(&self) -> Result<Vec<(u16, Master)>, MapsError> {
        (self.layout.masters)(&self.pins, self.meta.master_rows)
    }

    /// Every id that was ever given away.
    pub fn owners(&self) -> Result<Vec<(u32, Owner)>, MapsError> {
        (self.layout.owners)(&self.pins)
    }

    /// Every endpoint and foreign row.
    pub fn endpoints(&self) -> Result<Vec<(EndpointKey, Endpoint)>, MapsError> {
        (self.layout.endpoints)(&self.pins)
    }

    /// The entries of all zones, by row; those that are gone are not always told from those in force.
    pub fn rules(&self) -> Result<Vec<(u32, Rule)>, MapsError> {
        self.layout.rules.map_or(Ok(Vec::new()), |rules| rules(&self.pins))
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

fn masters<T: Plain + Into<Master>>(pins: &Path, rows: u32) -> Listed<u16, Master> {
    let table: Array<MapData, Raw<T>> = open(pins, "masters", Map::Array)?;
    let ids = (1..u16::MAX).zip(1..=rows);
    ids.map(|(id, row)| get(&table, "masters", row).map(|value| (id, value.into()))).collect()
}

fn owners<T: Plain + Into<Owner>>(pins: &Path) -> Listed<u32, Owner> {
    let rows = Bulk::<u32, T>::open(pins, "owners")?.rows()?.into_iter();
    let rows = rows.map(|(id, owner)| (id, owner.into()));
    Ok(rows.filter(|(id, owner): &(u32, Owner)| *id != 0 && owner.generation != 0).collect())
}

fn endpoints<T: Plain + Into<Endpoint>>(pins: &Path) -> Listed<EndpointKey, Endpoint> {
    let rows = Bulk::<EndpointKey, T>::open(pins, "endpoints")?.rows()?;
    Ok(rows.into_iter().map(|(key, row)| (key, row.into())).collect())
}

fn all_rules<T: Plain + Into<Rule>>(pins: &Path) -> Listed<u32, Rule> {
    let rows = Bulk::<u32, T>::open(pins, "rules")?.rows()?.into_iter();
    let rows = rows.map(|(row, rule)| (row, rule.into()));
    Ok(rows.filter(|(_, rule): &(u32, Rule)| rule.kind != rule_kind::FREE).collect())
}

/// Pairs of rows of rules that stand for one entry, of `old` and of `new`, for each pair of zones.
pub fn same_rules(old: &Tree, new: &Tree, zones: &[(u32, u32)]) -> Result<Vec<(u32, u32)>, MapsError> {
    if old.layout.rules.is_none() {
        return Ok(Vec::new());
    }
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

/// The rows of version 2. What stands here does not change any more.
mod v2 {
    use netpath_ebpf::abi::{self, EndpointKey};

    use super::super::maps::Plain;

    #[derive(Clone, Copy)]
    #[repr(C)]
    pub(super) struct Master {
        netns_cookie: u64,
        stamp: u64,
        ifindex: u32,
        unknown_source: u8,
        host_mac_count: u8,
        mtu: u16,
        host_macs: [[u8; 8]; 8],
        name: [u8; 16],
        object: u64,
        flags: u32,
        pad: u32,
    }

    #[derive(Clone, Copy)]
    #[repr(C)]
    pub(super) struct Owner {
        key: EndpointKey,
        generation: u32,
        pad: u32,
    }

    #[derive(Clone, Copy)]
    #[repr(C)]
    pub(super) struct Endpoint {
        id: u32,
        generation: u32,
        zone: u32,
        mode: u8,
        kind: u8,
        flags: u16,
        cookie: u64,
        v4: [[u8; 4]; 4],
        gateway_v4: [u8; 4],
        pad: [u8; 4],
        v6: [[u8; 16]; 4],
        link_local: [u8; 16],
        gateway_v6: [u8; 16],
    }

    impl Plain for Master {}
    impl Plain for Owner {}
    impl Plain for Endpoint {}

    impl From<Master> for abi::Master {
        fn from(old: Master) -> Self {
            let Master { netns_cookie, stamp, ifindex, unknown_source, host_mac_count, mtu, .. } = old;
            let Master { host_macs, name, object, flags, pad, .. } = old;
            Self {
                netns_cookie,
                stamp,
                ifindex,
                unknown_source,
                host_mac_count,
                mtu,
                host_macs,
                name,
                object,
                flags,
                pad,
            }
        }
    }

    impl From<Owner> for abi::Owner {
        fn from(old: Owner) -> Self {
            let Owner { key, generation, pad } = old;
            Self { key, generation, pad }
        }
    }

    impl From<Endpoint> for abi::Endpoint {
        fn from(old: Endpoint) -> Self {
            let Endpoint { id, generation, zone, mode, kind, flags, cookie, v4, gateway_v4, pad, .. } = old;
            let Endpoint { v6, link_local, gateway_v6, .. } = old;
            Self {
                id,
                generation,
                zone,
                mode,
                kind,
                flags,
                cookie,
                v4,
                gateway_v4,
                pad,
                v6,
                link_local,
                gateway_v6,
            }
        }
    }

    const _: () = assert!(size_of::<Master>() == 120 && size_of::<Owner>() == 16);
    const _: () = assert!(size_of::<Endpoint>() == 144);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta_of(abi_version: u32, readable_by: u32) -> Meta {
        Meta { abi_version, cpus: 1, last_endpoint_id: 0, zone_rows: 0, master_rows: 0, readable_by }
    }

    #[test]
    fn a_version_is_read_if_it_is_described_or_says_that_it_can_be() {
        assert!(layout(&meta_of(ABI_VERSION, READABLE_BY)).is_some());
        assert!(layout(&meta_of(2, 0)).is_some());
        assert!(layout(&meta_of(ABI_VERSION + 1, ABI_VERSION)).is_some());
        assert!(layout(&meta_of(ABI_VERSION + 1, ABI_VERSION + 1)).is_none());
        assert!(layout(&meta_of(ABI_VERSION + 1, 0)).is_none());
        assert!(layout(&meta_of(1, 0)).is_none());
        assert!(is_readable_by(ABI_VERSION), "a version reads its own");
    }
}
