//! A network that has changed: its zone for the attachments that run.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use netpath_ebpf::abi::{Endpoint, EndpointKey, kind, mode};

use super::{PoliceError, content, identity, image, is_row_of};
use crate::{
    kernel::bpf::maps::Maps,
    root::Root,
    state::{self, Outline, Record, Records},
    zone::{Difference, Zone, ZoneImage, compile},
};

/// What became of a changed zone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Attachments that the zone is in force for now.
    pub endpoints: usize,
    /// Those whose row is another one now.
    pub changed: usize,
    /// Zone rows that were written.
    pub rewritten: Vec<Rewritten>,
    /// Attachments whose mode is another one now.
    pub modes: usize,
    /// Generation in force; `None` where there is no zone or nobody who has it.
    pub generation: Option<u64>,
}

/// A zone row that was written, as one generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewritten {
    /// The row.
    pub id: u32,
    /// Its generation now.
    pub generation: u64,
    /// What changed; `None` where the row was not readable, or is new.
    pub difference: Option<Difference>,
}

/// An attachment that runs: its record and its row.
pub type Running = (Arc<Outline>, EndpointKey, Endpoint);

/// The attachments that run, on whatever master, of those `records` that `is_meant` picks.
pub fn running(
    maps: &Maps,
    records: &[Arc<Outline>],
    is_meant: impl Fn(&Outline) -> bool,
) -> Result<Vec<Running>, PoliceError> {
    let boot = state::boot_id()?;
    let rows = maps.endpoints()?.into_iter();
    let rows = rows.filter(|(_, row)| row.kind == kind::ENDPOINT);
    let rows: BTreeMap<(u32, u32), (EndpointKey, Endpoint)> =
        rows.map(|(key, row)| ((row.id, row.generation), (key, row))).collect();
    let found = records.iter().filter(|record| record.boot_id == boot && is_meant(record));
    let found = found.filter_map(|record| {
        let own = record.endpoint?;
        let (key, row) = *rows.get(&(own.id, own.generation))?;
        is_row_of(record, &key, &row).then(|| (Arc::clone(record), key, row))
    });
    Ok(found.collect())
}

/// Puts `zone` in force for attachments that run; `None` ends their policing, they are counted only.
///
/// A row of the zone that nobody else uses is written in place, as one generation; otherwise the
/// attachments are given a row of their own. The caller holds the lock.
pub fn apply(
    maps: &mut Maps,
    running: &[Running],
    network: &str,
    zone: Option<&Zone>,
) -> Result<Applied, PoliceError> {
    let mut applied = Applied { endpoints: running.len(), ..Applied::default() };
    if running.is_empty() {
        return Ok(applied);
    }
    let own: BTreeSet<EndpointKey> = running.iter().map(|(_, key, _)| *key).collect();
    let rows = maps.endpoints()?.into_iter();
    let strangers = rows.filter(|(key, _)| !own.contains(key));
    let strangers: BTreeSet<u32> = strangers.map(|(_, row)| row.zone).collect();
    let compiled = zone.map(compile).transpose()?;
    // Rows that are done, so that each is flipped once.
    let mut done: Vec<(u32, u32)> = Vec::new();
    for (_, key, row) in running {
        let fresh = match (&compiled, zone) {
            (Some(image), Some(zone)) => {
                let target = match done.iter().find(|(old, _)| *old == row.zone) {
                    Some((_, new)) => *new,
                    None => {
                        let in_place = row.zone != 0 && !strangers.contains(&row.zone);
                        let target = write(maps, row.zone, in_place, network, image, &mut applied)?;
                        done.push((row.zone, target));
                        target
                    }
                };
                Endpoint { zone: target, mode: zone.mode().abi(), ..*row }
            }
            _ => Endpoint { zone: 0, mode: mode::OFF, ..*row },
        };
        applied.modes += usize::from(fresh.mode != row.mode);
        if fresh != *row {
            maps.set_endpoint(*key, &fresh)?;
            applied.changed += 1;
        }
    }
    let mut masters: Vec<u16> = running.iter().map(|(_, key, _)| key.master).collect();
    masters.dedup();
    for master in masters {
        identity::refresh(maps, master)?;
    }
    if let Some((_, id)) = done.last() {
        applied.generation = maps.zone(*id)?.map(|row| row.slot.generation);
    }
    Ok(applied)
}

/// Brings one row to `wanted`, or finds another one; returns the row that holds it.
fn write(
    maps: &mut Maps,
    id: u32,
    in_place: bool,
    network: &str,
    wanted: &ZoneImage,
    applied: &mut Applied,
) -> Result<u32, PoliceError> {
    let digest = wanted.digest(network);
    let current = if id == 0 { None } else { maps.zone(id)? };
    if current.as_ref().is_some_and(|row| row.info.digest == digest) {
        return Ok(id);
    }
    let before = match current {
        Some(_) => maps.zone_content(id)?.and_then(|content| image(&content).ok()),
        None => None,
    };
    let target = match in_place {
        true => {
            maps.write_zone(id, network, digest, &content(wanted))?;
            id
        }
        false => maps.ensure_zone(network, digest, &content(wanted))?,
    };
    applied.rewritten.push(Rewritten {
        id: target,
        generation: maps.zone(target)?.map_or(0, |row| row.slot.generation),
        difference: before.map(|before| ZoneImage::difference(&before, wanted)),
    });
    Ok(target)
}

/// Writes the zone that is in force for an attachment into its record: it is its last good one now. A record that is gone, or
/// is of another row by now, stays as it is.
///
/// Whoever is ended before leaves the zone of before: the agent finds what differs from what is in force. Where there was none it
/// should be done at once: whether there is one is what DEL and the guards go by.
pub fn remember(root: &Root, record: &Outline, zone: Option<&state::Zone>) -> Result<(), PoliceError> {
    let records = Records::new(root);
    let Some(now) = records.read(&record.container_id, &record.ifname)? else { return Ok(()) };
    if now.endpoint == record.endpoint && now.zone.as_ref() != zone {
        records.update(&Record { zone: zone.cloned(), ..now })?;
    }
    Ok(())
}

/// A zone as a record keeps it.
pub fn recorded_zone(network: &str, zone: &Zone) -> Result<state::Zone, PoliceError> {
    let digest = compile(zone)?.digest(network);
    let digest = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(state::Zone { digest, compiled: zone.to_json() })
}
