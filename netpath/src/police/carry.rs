//! What an upgrade carries over: rows, zones, what is known of senders, counters.

use std::{collections::BTreeMap, path::Path};

use netpath_ebpf::abi::{ABI_VERSION, Endpoint, EndpointKey, mode};

use super::{
    PoliceError, content, identity,
    upgrade::{Old, Upgraded, is_anybodys},
};
use crate::{
    kernel::{
        bpf::{
            bases::{Bases, COUNTED, MASTER_COUNTERS, Of, Rows},
            maps::Maps,
            object::{self, Settings},
            tree::Tree,
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
    let mut zones = Zones::of(old)?;
    for (key, row) in &old.rows {
        if !is_anybodys(node, old, &records, key, row)? {
            done.swept += 1;
            continue;
        }
        let record = records.iter().find(|record| super::names(record, key, row));
        let zone = zones.carry(&mut maps, row, record)?;
        if row.zone != 0 && zone == 0 && row.mode == mode::ENFORCE {
            done.closed.push((*key, record.cloned()));
        }
        maps.set_endpoint(*key, &Endpoint { zone, ..*row })?;
        done.rows += 1;
    }
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
        let end = found.info.name.iter().position(|byte| *byte == 0).unwrap_or(found.info.name.len());
        let name = String::from_utf8_lossy(&found.info.name[..end]);
        let new = maps.restore_zone(&name, found.info.digest, &content, content.slot.generation)?;
        self.done.insert(row.zone, new);
        Ok(new)
    }
}

/// Forgets what trying the new programs was counted as. None of them is attached.
pub(super) fn forget_trials(maps: &Maps, master: u16) -> Result<(), PoliceError> {
    let cpus = maps.meta()?.cpus;
    let rows = Rows::open(maps.pins(), MASTER_COUNTERS.map, MASTER_COUNTERS.words, cpus)?;
    Ok(rows.map_or(Ok(()), |rows| rows.clear(master.into()))?)
}

/// Makes what was counted in the tree in force, before it, and in those that somebody had begun, the base of what the
/// tree at `stage` counts. Nothing but the programs of `stage` may run any more.
pub(super) fn counters(old: &Old, stage: &Path) -> Result<(), PoliceError> {
    let bases = Bases::open(stage)?;
    for counted in COUNTED {
        let Some(base) = bases.of(counted) else { continue };
        let (live, before) = (old.tree.counted(counted)?, old.tree.bases().of(counted));
        let begun = old.begun.iter().map(|tree| Ok((Held::of(tree, counted.of)?, tree.counted(counted)?)));
        let begun = begun.collect::<Result<Vec<_>, PoliceError>>()?;
        let rows: Vec<u32> = match counted.of {
            // Row 0 is that of frames that nobody owns.
            Of::Endpoint => std::iter::once(0).chain(old.rows.iter().map(|(_, row)| row.id)).collect(),
            Of::Master => old.masters.iter().map(|(id, _)| u32::from(*id)).collect(),
        };
        for row in rows {
            let mut total = vec![0u64; counted.words];
            let also = begun.iter().filter(|(held, _)| held.is_same(old, row));
            let sources = also.filter_map(|(_, rows)| rows.as_ref()).chain(&live).chain(before);
            for source in sources {
                for (sum, word) in total.iter_mut().zip(source.get(row)?).skip(counted.first) {
                    *sum = sum.wrapping_add(word);
                }
            }
            if total.iter().any(|word| *word != 0) {
                base.set(row, &total)?;
            }
        }
    }
    Ok(())
}

/// Whose rows of counters were in a tree that somebody had begun.
enum Held {
    Endpoints(BTreeMap<u32, (EndpointKey, u32)>),
    Masters(BTreeMap<u32, u64>),
}

impl Held {
    fn of(tree: &Tree, of: Of) -> Result<Self, PoliceError> {
        Ok(match of {
            Of::Endpoint => {
                let rows = tree.endpoints()?.into_iter();
                Self::Endpoints(rows.map(|(key, row)| (row.id, (key, row.generation))).collect())
            }
            Of::Master => {
                let rows = tree.masters()?.into_iter();
                Self::Masters(rows.map(|(id, row)| (id.into(), row.stamp)).collect())
            }
        })
    }

    /// Whether the row is that of the same holder now.
    fn is_same(&self, old: &Old, row: u32) -> bool {
        match self {
            Self::Endpoints(_) if row == 0 => true,
            Self::Endpoints(held) => held.get(&row).is_some_and(|(key, generation)| {
                old.rows.iter().any(|(now, endpoint)| {
                    endpoint.id == row && now == key && endpoint.generation == *generation
                })
            }),
            Self::Masters(held) => held.get(&row).is_some_and(|stamp| {
                old.masters.iter().any(|(id, master)| u32::from(*id) == row && master.stamp == *stamp)
            }),
        }
    }
}

/// Whether programs have counted anything in the tree at `stage`.
pub(super) fn is_counted(stage: &Path) -> Result<bool, PoliceError> {
    let Some(tree) = Tree::open(stage)? else { return Ok(false) };
    let endpoints = tree.endpoints()?;
    let masters = tree.masters()?;
    for counted in COUNTED {
        let Some(live) = tree.counted(counted)? else { continue };
        let rows: Vec<u32> = match counted.of {
            Of::Endpoint => std::iter::once(0).chain(endpoints.iter().map(|(_, row)| row.id)).collect(),
            Of::Master => masters.iter().map(|(id, _)| u32::from(*id)).collect(),
        };
        for row in rows {
            if live.get(row)?.iter().skip(counted.first).any(|word| *word != 0) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
