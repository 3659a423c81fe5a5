//! The only map I/O: rows in, rows out. What a row means is decided elsewhere.
//!
//! Every change happens under the lock that plugin and agent share; the caller holds it. Reading needs none.

use std::{
    io,
    path::{Path, PathBuf},
    sync::atomic::{Ordering, fence},
};

use aya::{
    Pod,
    maps::{Array, HashMap, IterableMap, LpmTrie, Map, MapData, MapError, PerCpuArray},
};
use netpath_ebpf::abi::{
    ABI_VERSION, Budget, CookieKey, CookieOwner, Counters, DropCounters, Endpoint, EndpointKey, Master, Meta,
    Owner, PortSet, READABLE_BY, REASON_SLOTS, Reject, Rule, RuleCounters, TrieKey4, TrieKey6, VlanKey,
    ZoneInfo, ZoneSlot,
};

use super::{
    bases::{self, Bases, Rows},
    counters::CounterView,
};

/// Events an endpoint may emit per reason and direction before the consumer has to grant more.
pub const EVENT_BURST: i32 = 8;

/// Why maps could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MapsError {
    /// The pin is there and cannot be opened.
    #[error("cannot open map {} (`netpath attach` makes a lost pin again)", path.display())]
    Open {
        /// The pin.
        path: PathBuf,
        /// Why.
        source: MapError,
    },
    /// The map is not the one this version works with.
    #[error("map {} has values of another size: it belongs to another version of netpath", path.display())]
    Layout {
        /// The pin.
        path: PathBuf,
        /// Why.
        source: MapError,
    },
    /// Written by a version with another ABI.
    #[error(
        "the maps are of ABI version {found}, this netpath speaks {ABI_VERSION}: use the netpath they belong to"
    )]
    Abi {
        /// Version in the map `meta`.
        found: u32,
    },
    /// Written by a version that this one knows nothing of.
    #[error(
        "{} is of ABI {found}, which this netpath, of ABI {ABI_VERSION}, cannot read: use a version that can, or run \
         `netpath uninstall` with the version it belongs to",
        path.display()
    )]
    Unknown {
        /// The pins.
        path: PathBuf,
        /// Version in the map `meta`.
        found: u32,
    },
    /// A row could not be read, written or made room for.
    #[error("cannot {op} map `{map}`")]
    Row {
        /// What was tried.
        op: &'static str,
        /// Name of the map.
        map: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A read or write failed.
    #[error("cannot {op} map `{map}`")]
    Access {
        /// What was tried.
        op: &'static str,
        /// Name of the map.
        map: &'static str,
        /// Why.
        source: MapError,
    },
    /// No room.
    #[error(
        "map `{map}` is full ({capacity} rows): raise `{setting}` in settings.json and run `netpath upgrade`"
    )]
    Full {
        /// Name of the map.
        map: &'static str,
        /// Its rows.
        capacity: u32,
        /// The setting that sizes it.
        setting: &'static str,
    },
    /// No room for a master, and no setting for more.
    #[error(
        "{most} NICs are under police or have pods that were, and there can be no more: delete those pods"
    )]
    Masters {
        /// How many there can be.
        most: u32,
    },
    /// The grace period before a slot is written again could not be waited for.
    #[error("cannot wait for running programs before zone {zone} is rewritten")]
    Grace {
        /// The zone.
        zone: u32,
        /// Why.
        source: io::Error,
    },
    /// Counters could not be mapped.
    #[error("cannot map the memory of `{map}`")]
    Mmap {
        /// Name of the map.
        map: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// An ABI value as aya wants it.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Raw<T>(pub(super) T);

/// Types of the ABI: fixed layout, no padding that is not spelled out, any bytes are a value.
pub(super) trait Plain: Copy + 'static {}

macro_rules! plain {
    ($($name:ty),+) => { $(impl Plain for $name {})+ };
}
plain!(
    Budget,
    CookieKey,
    CookieOwner,
    Counters,
    DropCounters,
    Endpoint,
    EndpointKey,
    Master,
    Meta,
    Owner,
    Reject,
    PortSet,
    Rule,
    RuleCounters,
    TrieKey4,
    TrieKey6,
    VlanKey,
    ZoneInfo,
    ZoneSlot,
    u32
);

// SAFETY: `Plain` is implemented above for ABI types alone, which have no padding and no invalid bytes.
unsafe impl<T: Plain> Pod for Raw<T> {}

pub(super) type Table<T> = Array<MapData, Raw<T>>;

/// The pinned maps of one node.
pub struct Maps {
    pins: PathBuf,
    pub(super) meta: Table<Meta>,
    masters: Table<Master>,
    pub(super) endpoints: HashMap<MapData, Raw<EndpointKey>, Raw<Endpoint>>,
    pub(super) owners: Table<Owner>,
    pub(super) zone_words: Table<u32>,
    pub(super) zone_slots: Table<ZoneSlot>,
    pub(super) zone_info: Table<ZoneInfo>,
    pub(super) zone_trie_v4: LpmTrie<MapData, Raw<TrieKey4>, Raw<u32>>,
    pub(super) zone_trie_v6: LpmTrie<MapData, Raw<TrieKey6>, Raw<u32>>,
    pub(super) ports: Table<PortSet>,
    pub(super) rules: Table<Rule>,
    pub(super) rule_counters: PerCpuArray<MapData, Raw<RuleCounters>>,
    pub(super) cookies: HashMap<MapData, Raw<CookieKey>, Raw<CookieOwner>>,
    pub(super) claims_v4: LpmTrie<MapData, Raw<TrieKey4>, Raw<u32>>,
    pub(super) claims_v6: LpmTrie<MapData, Raw<TrieKey6>, Raw<u32>>,
    pub(super) vlans: HashMap<MapData, Raw<VlanKey>, Raw<u32>>,
    pub(super) drops: Table<DropCounters>,
    budgets: Table<Budget>,
    pub(super) rejects: Table<Reject>,
    epoch: Table<u32>,
    /// Within [`Maps::change`].
    is_changing: bool,
    /// The two that are read from mapped memory.
    pub(super) counted: [Rows; 2],
    pub(super) bases: Bases,
    cpus: u32,
    /// The kernel's number for each, by name; `meta` is the first.
    ids: Vec<(&'static str, u32)>,
    /// Zone, word and generation of those whose idle slot nobody reads, unless they were flipped since.
    pub(super) settled: Vec<(u32, u32, u64)>,
}

/// Names of every pinned map, as in the object.
pub const NAMES: &[&str] = &[
    "meta",
    "masters",
    "endpoints",
    "owners",
    "zone_words",
    "zone_slots",
    "zone_info",
    "zone_trie_v4",
    "zone_trie_v6",
    "ports",
    "rules",
    "rule_counters",
    "cookies",
    "claims_v4",
    "claims_v6",
    "vlans",
    "rejects",
    "epoch",
    "flows",
    "counters",
    "master_counters",
    "drops",
    "budgets",
    EVENTS,
];

/// The ring of drop events.
pub(super) const EVENTS: &str = "events";
/// Those that [`Maps`] does not open.
pub(super) const UNOPENED: [&str; 2] = [EVENTS, "flows"];

/// A name in a row of a map, which zeros pad.
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// That the map which says what all others are is not pinned.
pub fn without_meta(pins: &Path) -> MapsError {
    MapsError::Open { path: pin_of(pins, "meta"), source: MapError::KeyNotFound }
}

/// Where map `name` is pinned below the pin directory.
pub fn pin_of(pins: &Path, name: &str) -> PathBuf {
    pins.join("maps").join(name)
}

pub(super) fn open<T: TryFrom<Map, Error = MapError>>(
    pins: &Path,
    name: &str,
    wrap: impl Fn(MapData) -> Map,
) -> Result<T, MapsError> {
    numbered(pins, name, wrap).map(|(map, _)| map)
}

/// The same, with the kernel's number for it.
fn numbered<T: TryFrom<Map, Error = MapError>>(
    pins: &Path,
    name: &str,
    wrap: impl Fn(MapData) -> Map,
) -> Result<(T, u32), MapsError> {
    let path = pin_of(pins, name);
    let failed = |source| MapsError::Open { path: path.clone(), source };
    let data = MapData::from_pin(&path).map_err(failed)?;
    let id = data.info().map_err(failed)?.id();
    let map = T::try_from(wrap(data)).map_err(|source| MapsError::Layout { path, source })?;
    Ok((map, id))
}

/// Maps that are opened one after the other.
struct Opening<'a> {
    pins: &'a Path,
    ids: Vec<(&'static str, u32)>,
}

impl Opening<'_> {
    fn open<T: TryFrom<Map, Error = MapError>>(
        &mut self,
        name: &'static str,
        wrap: impl Fn(MapData) -> Map,
    ) -> Result<T, MapsError> {
        let (map, id) = numbered(self.pins, name, wrap)?;
        self.ids.push((name, id));
        Ok(map)
    }

    fn rows(&mut self, counted: &bases::Counted, cpus: u32) -> Result<Rows, MapsError> {
        let missing =
            || MapsError::Open { path: pin_of(self.pins, counted.map), source: MapError::KeyNotFound };
        let rows = Rows::open(self.pins, counted.map, counted.words, cpus)?.ok_or_else(missing)?;
        self.ids.push((counted.map, rows.id()));
        Ok(rows)
    }
}

/// The row of master `id` in maps below `pins`; `None` while there are no maps.
pub(super) fn master(pins: &Path, id: u16) -> Result<Option<Master>, MapsError> {
    if !pin_of(pins, "masters").exists() {
        return Ok(None);
    }
    get(&open(pins, "masters", Map::Array)?, "masters", id.into()).map(Some)
}

/// Every master that has a row in maps below `pins`, of which others may be lost.
pub fn masters(pins: &Path) -> Result<Vec<(u16, Master)>, MapsError> {
    if !pin_of(pins, "masters").exists() {
        return Ok(Vec::new());
    }
    let table: Table<Master> = open(pins, "masters", Map::Array)?;
    let rows = (1..u16::MAX).zip(1..table.len()).map(|(id, row)| Ok((id, get(&table, "masters", row)?)));
    rows.filter(|row| row.as_ref().map_or(true, |(_, row): &(u16, Master)| row.ifindex != 0)).collect()
}

impl Maps {
    /// Opens the maps pinned below `pins`; `None` if nothing has been loaded there.
    pub fn open(pins: &Path) -> Result<Option<Self>, MapsError> {
        loop {
            let maps = Self::open_once(pins)?;
            // Others may have taken their place meanwhile: all of them are of one tree.
            if maps.as_ref().map_or(Ok(true), Self::is_in_force)? {
                return Ok(maps);
            }
        }
    }

    fn open_once(pins: &Path) -> Result<Option<Self>, MapsError> {
        // It is written last when maps are made, so with it all others are there.
        if !pin_of(pins, "meta").exists() {
            return Ok(None);
        }
        let meta: Table<Meta> = open(pins, "meta", Map::Array)?;
        let Raw(found) =
            meta.get(&0, 0).map_err(|source| MapsError::Access { op: "read", map: "meta", source })?;
        match found.abi_version {
            ABI_VERSION => {}
            // Whoever made the maps was ended before the last step; loading finishes it.
            0 => return Ok(None),
            found => return Err(MapsError::Abi { found }),
        }
        Self::open_all(pins, meta, found.cpus).map(Some)
    }

    /// Opens maps that were just made and writes down what they are.
    pub(super) fn initialize(pins: &Path, cpus: u32) -> Result<Self, MapsError> {
        let mut meta: Table<Meta> = open(pins, "meta", Map::Array)?;
        let value = Meta {
            abi_version: ABI_VERSION,
            cpus,
            last_endpoint_id: 0,
            zone_rows: 0,
            master_rows: 0,
            readable_by: READABLE_BY,
        };
        meta.set(0, Raw(value), 0).map_err(|source| MapsError::Access {
            op: "write",
            map: "meta",
            source,
        })?;
        let mut maps = Self::open_all(pins, meta, cpus)?;
        // Frames that nobody owns are reported under id 0.
        maps.grant(0, EVENT_BURST)?;
        Ok(maps)
    }

    fn open_all(pins: &Path, meta: Table<Meta>, cpus: u32) -> Result<Self, MapsError> {
        let info = meta.map().info();
        let tree = info.map_err(|source| MapsError::Access { op: "ask about", map: "meta", source })?.id();
        let mut opening = Opening { pins, ids: vec![("meta", tree)] };
        Ok(Self {
            pins: pins.to_owned(),
            meta,
            masters: opening.open("masters", Map::Array)?,
            endpoints: opening.open("endpoints", Map::HashMap)?,
            owners: opening.open("owners", Map::Array)?,
            zone_words: opening.open("zone_words", Map::Array)?,
            zone_slots: opening.open("zone_slots", Map::Array)?,
            zone_info: opening.open("zone_info", Map::Array)?,
            zone_trie_v4: opening.open("zone_trie_v4", Map::LpmTrie)?,
            zone_trie_v6: opening.open("zone_trie_v6", Map::LpmTrie)?,
            ports: opening.open("ports", Map::Array)?,
            rules: opening.open("rules", Map::Array)?,
            rule_counters: opening.open("rule_counters", Map::PerCpuArray)?,
            cookies: opening.open("cookies", Map::HashMap)?,
            claims_v4: opening.open("claims_v4", Map::LpmTrie)?,
            claims_v6: opening.open("claims_v6", Map::LpmTrie)?,
            vlans: opening.open("vlans", Map::HashMap)?,
            drops: opening.open("drops", Map::Array)?,
            budgets: opening.open("budgets", Map::Array)?,
            rejects: opening.open("rejects", Map::Array)?,
            epoch: opening.open("epoch", Map::Array)?,
            is_changing: false,
            counted: [opening.rows(&bases::COUNTERS, cpus)?, opening.rows(&bases::MASTER_COUNTERS, cpus)?],
            bases: Bases::open(pins)?,
            cpus,
            ids: opening.ids,
            settled: Vec::new(),
        })
    }

    /// The directory the maps are pinned below.
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// The kernel's number for each, by name.
    pub(super) fn ids(&self) -> &[(&'static str, u32)] {
        &self.ids
    }

    /// Whether these are the maps that are pinned now: others may have taken their place.
    pub fn is_in_force(&self) -> Result<bool, MapsError> {
        Ok(super::trees::id(&self.pins)? == self.ids.first().map(|(_, id)| *id))
    }

    /// What the maps say of themselves.
    pub fn meta(&self) -> Result<Meta, MapsError> {
        get(&self.meta, "meta", 0)
    }

    /// Rows in use and rows there are, for endpoints and zones.
    pub fn fill(&self) -> Result<Fill, MapsError> {
        Ok(Fill {
            endpoints: self.endpoints()?.len(),
            endpoint_rows: self.endpoint_rows(),
            zones: self.zones()?.len(),
            zone_rows: self.zone_rows(),
        })
    }

    /// Endpoint rows there are.
    pub fn endpoint_rows(&self) -> usize {
        self.owners.len() as usize - 1
    }

    /// Zones there is room for.
    pub fn zone_rows(&self) -> usize {
        self.zone_words.len() as usize - 1
    }

    /// Every master that has a row.
    pub fn masters(&self) -> Result<Vec<(u16, Master)>, MapsError> {
        let mut found = Vec::new();
        for (id, index) in (1..u16::MAX).zip(1..=self.meta()?.master_rows) {
            let master: Master = get(&self.masters, "masters", index)?;
            if master.ifindex != 0 {
                found.push((id, master));
            }
        }
        Ok(found)
    }

    /// The row of a master, in use or not.
    pub fn master(&self, id: u16) -> Result<Master, MapsError> {
        get(&self.masters, "masters", id.into())
    }

    /// The dense id for a master that has none yet; ids named by an endpoint row are not given again.
    pub fn free_master_id(&self) -> Result<u16, MapsError> {
        let endpoints = self.endpoints()?;
        for (id, index) in (1..u16::MAX).zip(1..self.masters.len()) {
            let row: Master = get(&self.masters, "masters", index)?;
            if row.ifindex == 0 && endpoints.iter().all(|(key, _)| key.master != id) {
                return Ok(id);
            }
        }
        Err(MapsError::Masters { most: self.masters.len() - 1 })
    }

    /// Writes the row of a master; a zeroed one frees it.
    pub fn set_master(&mut self, id: u16, master: &Master) -> Result<(), MapsError> {
        let mut meta = self.meta()?;
        if meta.master_rows < u32::from(id) {
            meta.master_rows = id.into();
            set(&mut self.meta, "meta", 0, meta)?;
        }
        self.change(|maps| set(&mut maps.masters, "masters", u32::from(id), *master))
    }

    /// Does `write`, which changes what verdicts depend on. Meanwhile programs remember no flow, and afterwards none of before. The
    /// caller holds the lock: two at once would end each other's change.
    ///
    /// Whoever is ended in between leaves it at that: until the next change each packet is judged.
    pub fn change<T, E: From<MapsError>>(
        &mut self,
        write: impl FnOnce(&mut Self) -> Result<T, E>,
    ) -> Result<T, E> {
        if self.is_changing {
            return write(self);
        }
        // Odd while something changes. That it wraps, after two thousand million changes, is no matter.
        let epoch = get::<u32>(&self.epoch, "epoch", 0)? | 1;
        set(&mut self.epoch, "epoch", 0, epoch)?;
        // Rows of arrays are written in place: in this order also for a processor that keeps none.
        fence(Ordering::SeqCst);
        self.is_changing = true;
        let result = write(self);
        self.is_changing = false;
        fence(Ordering::SeqCst);
        let ended = set(&mut self.epoch, "epoch", 0, epoch.wrapping_add(1));
        let value = result?;
        ended?;
        Ok(value)
    }

    /// Forgets what was counted for master `id`. None of its programs is attached.
    pub fn forget_master(&self, id: u16) -> Result<(), MapsError> {
        let [_, masters] = &self.counted;
        masters.clear(id.into())?;
        self.bases.forget(&bases::MASTER_COUNTERS, id.into())
    }

    /// Lets endpoint `id` emit `events` more per reason and direction.
    pub fn grant(&mut self, id: u32, events: i32) -> Result<(), MapsError> {
        set(&mut self.budgets, "budgets", id, budget(events))
    }

    /// Whether what is counted under `id` is of this use of it still, be its row there or not.
    pub fn is_last_use(&self, id: u32, generation: u32) -> Result<bool, MapsError> {
        Ok(get(&self.owners, "owners", id)?.generation == generation)
    }

    /// The row that this use of an id has; none where it has ended, or that is not known.
    pub fn owner(&self, id: u32, generation: u32) -> Result<Option<EndpointKey>, MapsError> {
        let owner: Owner = get(&self.owners, "owners", id)?;
        Ok((owner.generation == generation && owner.key.master != 0).then_some(owner.key))
    }

    /// Drops by reason of endpoint `id`; 0 = frames that nobody owns.
    pub fn drops(&self, id: u32) -> Result<DropCounters, MapsError> {
        let mut drops: DropCounters = get(&self.drops, "drops", id)?;
        let mut before = [0; 4 * REASON_SLOTS];
        self.bases.add(&bases::DROPS, id, &mut before)?;
        let fields =
            [&mut drops.tx_dropped, &mut drops.rx_dropped, &mut drops.tx_audited, &mut drops.rx_audited];
        for (count, before) in fields.into_iter().flatten().zip(before) {
            *count = count.wrapping_add(before);
        }
        Ok(drops)
    }

    /// The answers to what endpoint `id` may not send.
    pub fn rejects(&self, id: u32) -> Result<Reject, MapsError> {
        let reject: Reject = get(&self.rejects, "rejects", id)?;
        let mut words = [0, 0, reject.sent, reject.limited];
        self.bases.add(&bases::REJECTS, id, &mut words)?;
        let [_, _, sent, limited] = words;
        Ok(Reject { sent, limited, ..reject })
    }

    /// Maps the counters for reading.
    pub fn counters(&self) -> Result<CounterView, MapsError> {
        let [endpoints, masters] = &self.counted;
        CounterView::new(endpoints, masters, &self.bases, self.cpus)
    }
}

/// So many events per reason and direction.
pub(super) fn budget(events: i32) -> Budget {
    Budget { tx: [events; REASON_SLOTS], rx: [events; REASON_SLOTS] }
}

/// Rows in use and rows there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Endpoint and foreign rows in use.
    pub endpoints: usize,
    /// Endpoint rows there are.
    pub endpoint_rows: usize,
    /// Zones loaded.
    pub zones: usize,
    /// Zones there is room for.
    pub zone_rows: usize,
}

pub(super) fn get<T: Plain>(map: &Table<T>, name: &'static str, index: u32) -> Result<T, MapsError> {
    let value = map.get(&index, 0).map_err(|source| MapsError::Access { op: "read", map: name, source })?;
    Ok(value.0)
}

pub(super) fn set<T: Plain>(
    map: &mut Table<T>,
    name: &'static str,
    index: u32,
    value: T,
) -> Result<(), MapsError> {
    map.set(index, Raw(value), 0).map_err(|source| MapsError::Access { op: "write", map: name, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_maps_end_at_their_padding() {
        assert_eq!(text(b"enp0s8\0\0"), "enp0s8");
        assert_eq!(text(b"full"), "full");
        assert_eq!(text(b"\0"), "");
    }
}
