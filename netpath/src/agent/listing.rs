//! What is there, as the records and the maps say; read again when it changed.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use netpath_ebpf::abi::kind;

use crate::{
    kernel::bpf::maps::Maps,
    police::PoliceError,
    root::Root,
    state::{self, Known, Outline, Records, Sandbox, Sandboxes, StateError},
};

/// An attachment's row, as its record names it.
pub(super) fn id_of(record: &Outline) -> (u32, u32) {
    record.endpoint.map_or((0, 0), |endpoint| (endpoint.id, endpoint.generation))
}

/// What is in force for whom.
#[derive(Default)]
pub(super) struct Zones {
    /// Row of the zone and mode, by id and generation of the attachment.
    pub(super) rows: BTreeMap<(u32, u32), (u32, u8)>,
    pub(super) digests: BTreeMap<u32, [u8; 16]>,
}

impl Zones {
    pub(super) fn read(maps: &Maps) -> Result<Self, PoliceError> {
        let rows = maps.endpoints()?.into_iter().filter(|(_, row)| row.kind == kind::ENDPOINT);
        Ok(Self {
            rows: rows.map(|(_, row)| ((row.id, row.generation), (row.zone, row.mode))).collect(),
            digests: maps.zones()?.into_iter().map(|zone| (zone.id, zone.info.digest)).collect(),
        })
    }
}

/// When a directory changed last, as far as was read of it.
#[derive(Default)]
struct Stamp(Option<SystemTime>);

impl Stamp {
    /// What changed within the kernel's clock tick before the last look may not have been seen.
    const TICK: Duration = Duration::from_millis(50);

    /// Whether it has to be read again; then it is up to now.
    fn is_stale(&mut self, dir: &Path) -> bool {
        let found = fs::metadata(dir).and_then(|meta| meta.modified()).ok();
        if found.is_some() && found == self.0 {
            return false;
        }
        let now = SystemTime::now();
        self.0 = found.filter(|then| now.duration_since(*then).is_ok_and(|age| Self::TICK < age));
        true
    }
}

/// The records of this boot. Another list is another one.
pub(super) type Outlines = Arc<[Arc<Outline>]>;

/// The records, read again when one was written or removed: once for all threads.
#[derive(Default)]
pub(super) struct Listing {
    stamp: Stamp,
    known: Known,
    records: Outlines,
}

impl Listing {
    pub(super) fn read(&mut self, root: &Root) -> Result<Outlines, StateError> {
        if self.stamp.is_stale(&root.state()) {
            let mut read = || -> Result<Outlines, StateError> {
                let boot = state::boot_id()?;
                let mut records = Records::new(root).outlines(&mut self.known)?;
                records.retain(|record| record.boot_id == boot);
                Ok(records.into())
            };
            // What could not be read is tried again.
            let read = read().inspect_err(|_| self.stamp = Stamp::default())?;
            if !read.iter().map(Arc::as_ptr).eq(self.records.iter().map(Arc::as_ptr)) {
                self.records = read;
            }
        }
        Ok(Arc::clone(&self.records))
    }
}

/// The sandboxes of this node, in the same way.
#[derive(Default)]
pub(super) struct SandboxListing {
    stamp: Stamp,
    pub(super) all: Vec<Sandbox>,
}

impl SandboxListing {
    pub(super) fn read(&mut self, root: &Root) -> Result<(), StateError> {
        if self.stamp.is_stale(&root.state().join("sandboxes")) {
            self.all = Sandboxes::new(root).all().inspect_err(|_| self.stamp = Stamp::default())?;
        }
        Ok(())
    }
}
