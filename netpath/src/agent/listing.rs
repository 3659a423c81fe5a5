//! What is there, as the records and the maps say; read again when it changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use netpath_ebpf::abi::{Endpoint, EndpointKey, kind};

use crate::{
    kernel::{
        bpf::maps::{Maps, text},
        netns,
    },
    police::PoliceError,
    root::Root,
    state::{self, Known, Outline, Records, Sandbox, Sandboxes, StateError},
};

/// Id, generation and MAC: what a record and its row have in common, see [`crate::police::is_row_of`].
pub(super) type RowId = (u32, u32, [u8; 6]);

/// An attachment's row, as its record names it.
pub(super) fn id_of(record: &Outline) -> RowId {
    let (id, generation) = record.endpoint.map_or((0, 0), |endpoint| (endpoint.id, endpoint.generation));
    (id, generation, record.mac.map_or([0; 6], |mac| mac.bytes()))
}

/// A row, as the record of its attachment names it.
pub(super) fn id_of_row(key: &EndpointKey, row: &Endpoint) -> RowId {
    (row.id, row.generation, key.mac)
}

/// What is in force for an attachment.
#[derive(Clone, Copy)]
pub(super) struct InForce {
    /// Row of its zone.
    pub(super) zone: u32,
    pub(super) mode: u8,
    /// Dense id of the master that it lies on.
    pub(super) master: u16,
}

/// What is in force for whom.
#[derive(Default)]
pub(super) struct Zones {
    pub(super) rows: BTreeMap<RowId, InForce>,
    /// Dense ids of the masters of this namespace by index.
    pub(super) masters: BTreeMap<u32, u16>,
    /// Names of all masters by dense id, as they were when they were put under police.
    pub(super) names: BTreeMap<u16, String>,
    pub(super) digests: BTreeMap<u32, [u8; 16]>,
}

impl Zones {
    pub(super) fn read(maps: &Maps) -> Result<Self, PoliceError> {
        let rows = maps.endpoints()?.into_iter().filter(|(_, row)| row.kind == kind::ENDPOINT);
        let cookie = netns::cookie().unwrap_or(0);
        let all = maps.masters()?;
        let masters = all.iter().filter(|(_, row)| row.netns_cookie == cookie);
        Ok(Self {
            rows: rows
                .map(|(key, row)| {
                    let in_force = InForce { zone: row.zone, mode: row.mode, master: key.master };
                    (id_of_row(&key, &row), in_force)
                })
                .collect(),
            masters: masters.map(|(id, row)| (row.ifindex, *id)).collect(),
            names: all.iter().map(|(id, row)| (*id, text(&row.name))).collect(),
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
        // A record that could not be read may be mended in place.
        if self.stamp.is_stale(&root.state()) || !self.known.is_whole() {
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
    /// Those that could not be read.
    torn: BTreeSet<PathBuf>,
}

impl SandboxListing {
    pub(super) fn read(&mut self, root: &Root) -> Result<(), StateError> {
        if self.stamp.is_stale(&root.state().join("sandboxes")) || !self.torn.is_empty() {
            let all = Sandboxes::new(root).all_again(&mut self.torn);
            self.all = all.inspect_err(|_| self.stamp = Stamp::default())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        io::Write,
        sync::{Mutex, PoisonError},
    };

    use serde_json::json;

    use super::*;

    /// A log that can be read.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// How often a log has `line` of what is said meanwhile.
    fn said(line: &str, within: impl FnOnce()) -> usize {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, within);
        let bytes = log.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        String::from_utf8(bytes).expect("text").matches(line).count()
    }

    /// A directory of a file `whole` and the file `name`, which is half of itself; neither the file's end nor anything else
    /// changes the directory afterwards.
    fn half_written(dir: &Path, whole: &str, name: &str, text: &str) {
        fs::create_dir_all(dir).expect("made");
        fs::write(dir.join(whole), text.replace("c1", "c0")).expect("written");
        fs::write(dir.join(name), &text[..text.len() / 2]).expect("written");
        let then = SystemTime::now() - Duration::from_secs(60);
        File::open(dir).and_then(|dir| dir.set_modified(then)).expect("an older directory");
    }

    #[test]
    fn a_record_that_could_not_be_read_is_tried_again_and_said_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = Root::new(dir.path());
        let text = json!({
            "container_id": "c1", "ifname": "net1", "phase": "ready", "kind": "macvlan", "created": 1,
            "boot_id": state::boot_id().expect("readable"),
            "netns": { "path": "/run/netns/a", "dev": 4, "inode": 5, "cookie": null },
            "network": "priv", "conf": {}, "ips": [],
        });
        let text = text.to_string();
        half_written(&root.state(), "c0-net1.json", "c1-net1.json", &text);
        let mut listing = Listing::default();
        let warned = said("a record is ignored", || {
            for _ in 0..3 {
                assert_eq!(listing.read(&root).expect("the other one").len(), 1);
            }
        });
        assert_eq!(warned, 1);
        fs::write(root.state().join("c1-net1.json"), &text).expect("written in place");
        let warned = said("a record is ignored", || {
            assert_eq!(listing.read(&root).expect("both").len(), 2);
        });
        assert_eq!(warned, 0);
    }

    #[test]
    fn a_sandbox_that_could_not_be_read_is_tried_again_and_said_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = Root::new(dir.path());
        let text = json!({
            "container_id": "c1", "ifname": "eth0", "phase": "ready", "created": 1, "boot_id": "b",
            "netns": null, "network": "cluster", "pod": null, "annotation": null, "delegates": [],
            "args": "", "runtime": {},
        });
        let text = text.to_string();
        let sandboxes = root.state().join("sandboxes");
        half_written(&sandboxes, "c0.json", "c1.json", &text);
        let mut listing = SandboxListing::default();
        let warned = said("a record is ignored", || {
            for _ in 0..3 {
                listing.read(&root).expect("the other one");
                assert_eq!(listing.all.len(), 1);
            }
        });
        assert_eq!(warned, 1);
        fs::write(sandboxes.join("c1.json"), &text).expect("written in place");
        let warned = said("a record is ignored", || listing.read(&root).expect("both"));
        assert_eq!((warned, listing.all.len()), (0, 2));
    }
}
