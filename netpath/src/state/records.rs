//! The records on disk: one file each, written whole or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use serde::de::DeserializeOwned;

use super::record::{Outline, Record};
use crate::root::Root;
use crate::spec::{ContainerId, IfName, code};
use crate::whole::{self, WholeError};

/// The records of a node.
#[derive(Clone, Debug)]
pub struct Records {
    dir: PathBuf,
}

/// All that lies in the directory.
#[derive(Debug, Default)]
pub struct Listing {
    /// What can be read, by container id and interface name.
    pub records: Vec<Record>,
    /// What cannot: it counts as no record, and is shown to the operator.
    pub torn: Vec<Torn>,
}

/// A file that is no record, though it has the name of one.
#[derive(Debug)]
pub struct Torn {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub cause: TornCause,
}

/// What is wrong with a record.
#[derive(Debug, thiserror::Error)]
pub enum TornCause {
    /// Nothing was written, or a power failure took it.
    #[error("it is empty")]
    Empty,
    /// It is cut off, or somebody edited it.
    #[error("it is not a valid record")]
    Invalid(#[source] serde_json::Error),
    /// It is no ordinary file, or its disk fails.
    #[error("it cannot be read")]
    Unreadable(#[source] io::Error),
    /// Somebody renamed or copied it.
    #[error("it holds the record of {container_id} {ifname}")]
    Misnamed {
        /// Container id inside.
        container_id: ContainerId,
        /// Interface name inside.
        ifname: IfName,
    },
}

/// Why records could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file operation failed.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A record could not be written as JSON.
    #[error("cannot write the record of {container_id} {ifname} as JSON")]
    Encode {
        /// Of which container.
        container_id: ContainerId,
        /// Of which interface.
        ifname: IfName,
        /// The cause.
        source: serde_json::Error,
    },
}

impl From<WholeError> for StateError {
    fn from(WholeError { what, path, source }: WholeError) -> Self {
        Self::Io { what, path, source }
    }
}

impl StateError {
    /// Code of the CNI error object.
    pub fn cni_code(&self) -> u32 {
        code::IO
    }

    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, path: path.to_owned(), source }
    }
}

/// Inode, when it was last changed, and its length: a record is never written in place.
type Stamp = (u64, i64, i64, u64);

/// Records that were read, by file.
#[derive(Debug, Default)]
pub struct Known {
    read: BTreeMap<PathBuf, (Stamp, Arc<Outline>)>,
    /// Those that could not be read, and of which that was said.
    failed: BTreeSet<PathBuf>,
}

impl Known {
    /// Whether all could be read. What could not may be readable the next time, though nothing changes in the directory.
    pub fn is_whole(&self) -> bool {
        self.failed.is_empty()
    }
}

/// What is in a record's file, or what is wrong with it.
type Loaded<Conf, Compiled> = Result<Record<Conf, Compiled>, TornCause>;

impl Records {
    /// The records of `root`. Nothing is created before the first write.
    pub fn new(root: &Root) -> Self {
        Self { dir: root.state() }
    }

    /// The file of an attachment.
    ///
    /// A `-` in an interface name is escaped, since `a` with `b-c` and `a-b` with `c` would be one file. An
    /// interface name has no `%`.
    pub fn path(&self, container_id: &ContainerId, ifname: &IfName) -> PathBuf {
        let ifname = ifname.as_str().replace('-', "%2d");
        self.dir.join(format!("{container_id}-{ifname}.json"))
    }

    /// Writes `record` in place of an earlier one of the same attachment.
    ///
    /// A reader finds the earlier record or this one, whole. When it fails the earlier one is untouched.
    ///
    /// Not synced: a power failure that takes the record takes the interface it describes too, and a torn
    /// record is none. What remains, an address reservation, is ended by the DEL that the runtime sends with
    /// the configuration it kept. Two syncs an ADD cost more than all else that an ADD does.
    pub fn write(&self, record: &Record) -> Result<(), StateError> {
        Ok(whole::replace(&self.path(&record.container_id, &record.ifname), &bytes(record)?)?)
    }

    /// Writes `record` in place of the one that is there; whether there is one. Who removed it meanwhile does not find it again.
    pub fn update(&self, record: &Record) -> Result<bool, StateError> {
        Ok(whole::update(&self.path(&record.container_id, &record.ifname), &bytes(record)?)?)
    }

    /// The record of an attachment. An empty or torn one is none, and says so in the log.
    pub fn read(&self, container_id: &ContainerId, ifname: &IfName) -> Result<Option<Record>, StateError> {
        let path = self.path(container_id, ifname);
        match self.load(&path).map_err(StateError::io("read the record", &path))? {
            None => Ok(None),
            Some(Ok(record)) => Ok(Some(record)),
            Some(Err(cause)) => {
                tracing::warn!(path = %path.display(), cause = &cause as &dyn std::error::Error, "a record is ignored");
                Ok(None)
            }
        }
    }

    /// Removes the record of an attachment, torn or not; whether there was one.
    ///
    /// Not synced: a record that a power failure brings back carries the boot id of before.
    pub fn remove(&self, container_id: &ContainerId, ifname: &IfName) -> Result<bool, StateError> {
        Ok(whole::remove(&self.path(container_id, ifname))?)
    }

    /// All records. One that comes or goes meanwhile is listed or not.
    pub fn all(&self) -> Result<Listing, StateError> {
        let mut paths = self.names()?;
        paths.retain(|path| path.extension() == Some(OsStr::new("json")) && !is_draft(path));
        let mut listing = Listing::default();
        for path in paths {
            match self.load(&path) {
                Ok(None) => {}
                Ok(Some(Ok(record))) => listing.records.push(record),
                Ok(Some(Err(cause))) => listing.torn.push(Torn { path, cause }),
                // One file must not hide all others.
                Err(source) => listing.torn.push(Torn { path, cause: TornCause::Unreadable(source) }),
            }
        }
        listing.records.sort_by(|a, b| (&a.container_id, &a.ifname).cmp(&(&b.container_id, &b.ifname)));
        Ok(listing)
    }

    /// Of those that can be read the outlines. `known` has what was read before: only what was written since is read again,
    /// and what could not be read, of which the log is told once.
    pub fn outlines(&self, known: &mut Known) -> Result<Vec<Arc<Outline>>, StateError> {
        let mut paths = self.names()?;
        paths.retain(|path| path.extension() == Some(OsStr::new("json")) && !is_draft(path));
        let Known { read: mut before, failed: told } = std::mem::take(known);
        for path in paths {
            match self.outline(&path, before.remove(&path)) {
                Ok(Some(found)) => drop(known.read.insert(path, found)),
                // One that goes meanwhile is not there.
                Ok(None) => {}
                // One file must not hide all others.
                Err(cause) => {
                    if !told.contains(&path) {
                        let cause = &cause as &dyn std::error::Error;
                        tracing::warn!(path = %path.display(), cause, "a record is ignored for as long as it cannot be read");
                    }
                    known.failed.insert(path);
                }
            }
        }
        Ok(known.read.values().map(|(_, record)| Arc::clone(record)).collect())
    }

    /// The outline in a file, which is not read if it is still the one of `before`.
    fn outline(
        &self,
        path: &Path,
        before: Option<(Stamp, Arc<Outline>)>,
    ) -> Result<Option<(Stamp, Arc<Outline>)>, TornCause> {
        let meta = match fs::symlink_metadata(path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(TornCause::Unreadable(error)),
        };
        let stamp = (meta.ino(), meta.ctime(), meta.ctime_nsec(), meta.len());
        if let Some(known) = before.filter(|(then, _)| *then == stamp) {
            return Ok(Some(known));
        }
        let loaded = self.load(path).map_err(TornCause::Unreadable)?;
        loaded.map(|record| record.map(|record| (stamp, Arc::new(record)))).transpose()
    }

    /// Whose record a file is by its name.
    pub fn attachment_of(path: &Path) -> Option<(ContainerId, IfName)> {
        let (container_id, ifname) = path.file_stem()?.to_str()?.rsplit_once('-')?;
        let ifname = IfName::parse("file", &ifname.replace("%2d", "-")).ok()?;
        Some((ContainerId::parse("file", container_id).ok()?, ifname))
    }

    /// Removes what writers that were killed have left. Returns how many.
    pub fn sweep(&self) -> Result<usize, StateError> {
        Ok(whole::sweep(&self.dir)?)
    }

    fn names(&self) -> Result<Vec<PathBuf>, StateError> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(StateError::io("list the directory", &self.dir)(error)),
        };
        entries
            .map(|entry| {
                entry.map(|entry| entry.path()).map_err(StateError::io("list the directory", &self.dir))
            })
            .collect()
    }

    fn load<Conf: DeserializeOwned, Compiled: DeserializeOwned>(
        &self,
        path: &Path,
    ) -> io::Result<Option<Loaded<Conf, Compiled>>> {
        let bytes = match whole::bytes(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) if whole::Unfit::of(&error).is_some() => {
                return Ok(Some(Err(TornCause::Unreadable(error))));
            }
            Err(error) => return Err(error),
        };
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(Some(Err(TornCause::Empty)));
        }
        Ok(Some(match serde_json::from_slice::<Record<Conf, Compiled>>(&bytes) {
            Ok(record) if self.path(&record.container_id, &record.ifname) == path => Ok(record),
            Ok(record) => {
                Err(TornCause::Misnamed { container_id: record.container_id, ifname: record.ifname })
            }
            Err(source) => Err(TornCause::Invalid(source)),
        }))
    }
}

/// What is in a record's file.
fn bytes(record: &Record) -> Result<Vec<u8>, StateError> {
    let mut bytes = serde_json::to_vec_pretty(record).map_err(|source| StateError::Encode {
        container_id: record.container_id.clone(),
        ifname: record.ifname.clone(),
        source,
    })?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Container ids do not begin with a dot, so records do not either.
fn is_draft(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// Names the current boot of the kernel.
pub fn boot_id() -> Result<String, StateError> {
    static READ: OnceLock<String> = OnceLock::new();
    if let Some(read) = READ.get() {
        return Ok(read.clone());
    }
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let read = fs::read_to_string(path).map_err(StateError::io("read", path))?.trim().to_owned();
    Ok(READ.get_or_init(|| read).clone())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
