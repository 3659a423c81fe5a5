//! What an upgrade carries over: rows, zones, what is known of senders, counters.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::Path,
};

use netpath_ebpf::abi::{ABI_VERSION, Endpoint, EndpointKey, mode};

use super::{
    PoliceError, content, identity,
    upgrade::{Old, Upgraded, is_anybodys},
};
use crate::{
    kernel::{
        bpf::{
            bases::{Bases, COUNTED, Of},
            maps::{Maps, text, without_meta},
            object::{self, Settings},
            tree::{Tree, same_rules},
        },
        netlink::Netlink,
        netns,
    },
    root::Root,
    state::{self, Record, Records},
    zone::{Zone, compile},
};

/// Makes maps at `stage` that say what the tree in force says.
///
/// Who is on a master is what its rows say: who has none was not let in, and an upgrade lets nobody in. Ids and
/// generations stay, so that records and events name the same rows before and after.
pub(super) fn fill(
    root: &Root,
    node: &mut Netlink,
    settings: &Settings,
    old: &Old,
    stage: &Path,
    done: &mut Upgraded,
) -> Result<Maps, PoliceError> {
    let mut maps = object::finish(stage, settings)?;
    Bases::make(stage, maps.meta()?.cpus)?;
    maps.restore(&old.tree.meta, &old.masters, &old.owners)?;
    let boot = state::boot_id()?;
    let mut records = Records::new(root).all()?.records;
    records.retain(|record| record.boot_id == boot);
    let records = Named::of(&records);
    let mut zones = Zones::of(old)?;
    let (mut named, mut rows) = (HashSet::from([0]), Vec::with_capacity(old.rows.len()));
    for (key, row) in &old.rows {
        let record = records.find(key, row);
        if !is_anybodys(node, old, record, key, row)? {
            done.swept += 1;
            continue;
        }
        let zone = zones.carry(&mut maps, row, record)?;
        if row.zone != 0 && zone == 0 && row.mode == mode::ENFORCE {
            done.closed.push((*key, record.cloned()));
        }
        let row = Endpoint { zone, ..*row };
        match named.insert(zone) {
            // A zone that no row names would make room for the next one.
            true => maps.set_endpoint(*key, &row)?,
            false => rows.push((*key, row)),
        }
        done.rows += 1;
    }
    maps.set_endpoints(&rows)?;
    let links = node.links()?;
    identity::refresh_vlans(&mut maps, netns::cookie().unwrap_or(0), &links)?;
    for (id, _) in &old.masters {
        identity::refresh(&mut maps, *id)?;
    }
    for here in &old.here {
        identity::host_addresses(&mut maps, node, &here.link, here.id)?;
    }
    Ok(maps)
}

/// Records by the row that they name.
struct Named<'a> {
    by_row: HashMap<(u32, u32, [u8; 6]), &'a Record>,
    /// Those that have not written down which row is their own.
    others: Vec<&'a Record>,
}

impl<'a> Named<'a> {
    fn of(records: &'a [Record]) -> Self {
        let (mut by_row, mut others) = (HashMap::new(), Vec::new());
        for record in records {
            match record.endpoint.zip(record.mac) {
                Some((own, mac)) => drop(by_row.insert((own.id, own.generation, mac.bytes()), record)),
                None => others.push(record),
            }
        }
        Self { by_row, others }
    }

    fn find(&self, key: &EndpointKey, row: &Endpoint) -> Option<&'a Record> {
        let others = || self.others.iter().find(|record| super::names(record, key, row));
        let own = self.by_row.get(&(row.id, row.generation, key.mac));
        own.or_else(others).copied()
    }
}

/// Where zones come from: maps of this ABI as they are, those of another from the records.
struct Zones {
    own: Option<Maps>,
    /// Old row, new row.
    done: BTreeMap<u32, u32>,
}

impl Zones {
    fn of(old: &Old) -> Result<Self, PoliceError> {
        let own = match old.tree.meta.abi_version {
            ABI_VERSION => Maps::open(&old.pins)?,
            _ => None,
        };
        Ok(Self { own, done: BTreeMap::new() })
    }

    /// The new zone of a row; 0 where nobody can tell it: then what is enforced is closed.
    fn carry(
        &mut self,
        maps: &mut Maps,
        row: &Endpoint,
        record: Option<&Record>,
    ) -> Result<u32, PoliceError> {
        if row.zone == 0 {
            return Ok(0);
        }
        let Some(own) = &self.own else {
            // Rows that shared a zone share it again: it is found by its content.
            let Some(record) = record else { return Ok(0) };
            let zone = record.zone.as_ref().and_then(|zone| Zone::from_json(&zone.compiled).ok());
            let Some(image) = zone.and_then(|zone| compile(&zone).ok()) else { return Ok(0) };
            let network = record.network.as_str();
            return Ok(maps.ensure_zone(network, image.digest(network), &content(&image))?);
        };
        if let Some(new) = self.done.get(&row.zone) {
            return Ok(*new);
        }
        let (Some(found), Some(content)) = (own.zone(row.zone)?, own.zone_content(row.zone)?) else {
            return Ok(0);
        };
        let name = text(&found.info.name);
        let new = maps.restore_zone(&name, found.info.digest, &content, content.slot.generation)?;
        self.done.insert(row.zone, new);
        Ok(new)
    }
}

/// Makes what was counted in the tree in force, before it, and in those that somebody had begun, the base of what the
/// tree at `stage` counts. Nothing but the programs of `stage` may run any more.
pub(super) fn counters(old: &Old, stage: &Path) -> Result<(), PoliceError> {
    let new = Tree::open(stage)?.ok_or_else(|| without_meta(stage))?;
    add(&old.tree, &new, Some(old.tree.bases()))?;
    // The bases of what had been begun are those of the tree in force, and what that one counted until then.
    old.begun.iter().try_for_each(|begun| add(begun, &new, None))
}

/// Adds what `old` counted to the bases of `new`, for rows whose holder is the same.
fn add(old: &Tree, new: &Tree, before: Option<&Bases>) -> Result<(), PoliceError> {
    let same = Same::of(old, new)?;
    for counted in COUNTED {
        let Some(base) = new.bases().of(counted) else { continue };
        let live = old.counted(counted)?;
        let before = before.and_then(|bases| bases.of(counted));
        for (was, is) in same.rows(counted.of) {
            let mut total = base.get(*is)?;
            let own = total.clone();
            for source in live.iter().chain(before) {
                for (sum, word) in total.iter_mut().zip(source.get(*was)?).skip(counted.first) {
                    *sum = sum.wrapping_add(word);
                }
            }
            if total != own {
                base.set(*is, &total)?;
            }
        }
    }
    Ok(())
}

/// Rows of counters that have the same holder in two trees: there and here.
struct Same {
    endpoints: Vec<(u32, u32)>,
    masters: Vec<(u32, u32)>,
    rules: Vec<(u32, u32)>,
}

impl Same {
    fn of(old: &Tree, new: &Tree) -> Result<Self, PoliceError> {
        let (were, are): (HashMap<_, _>, _) = (old.endpoints()?.into_iter().collect(), new.endpoints()?);
        // Row 0 is that of frames that nobody owns.
        let (mut endpoints, mut zones) = (vec![(0, 0)], BTreeMap::new());
        for (key, row) in are {
            let held = were.get(&key);
            let held = held.filter(|old| (old.id, old.generation) == (row.id, row.generation));
            let Some(old) = held else { continue };
            endpoints.push((old.id, row.id));
            if old.zone != 0 && row.zone != 0 {
                zones.entry(old.zone).or_insert(row.zone);
            }
        }
        let (were, are) = (old.masters()?, new.masters()?);
        let drawn =
            are.iter().filter(|are| were.iter().any(|was| (was.0, was.1.stamp) == (are.0, are.1.stamp)));
        let masters = drawn.map(|(id, _)| (u32::from(*id), u32::from(*id))).collect();
        let zones: Vec<(u32, u32)> = zones.into_iter().collect();
        Ok(Self { endpoints, masters, rules: same_rules(old, new, &zones)? })
    }

    fn rows(&self, of: Of) -> &[(u32, u32)] {
        match of {
            Of::Endpoint => &self.endpoints,
            Of::Master => &self.masters,
            Of::Rule => &self.rules,
        }
    }
}

/// Whether programs have counted anything in the tree at `stage`.
pub(super) fn is_counted(stage: &Path) -> Result<bool, PoliceError> {
    let Some(tree) = Tree::open(stage)? else { return Ok(false) };
    let same = Same::of(&tree, &tree)?;
    for counted in COUNTED {
        let Some(live) = tree.counted(counted)? else { continue };
        for (row, _) in same.rows(counted.of) {
            if live.get(*row)?.iter().skip(counted.first).any(|word| *word != 0) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
