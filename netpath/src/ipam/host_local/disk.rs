//! The directory of a network, as the standard plugin keeps it.
//!
//! `<address>` holds `<container id>\r\n<interface>`; `last_reserved_ip.<range set>` holds the address given
//! last; `lock` is locked by `flock(2)` while anything is read or changed.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::Flock;

use super::{HostLocalError, Reservation};
use crate::flock;

const LINE_BREAK: &str = "\r\n";

/// A locked directory.
pub(super) struct Store {
    dir: PathBuf,
    _lock: Flock<File>,
}

/// An address that is taken.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) address: IpAddr,
    /// Content of the file; empty if it cannot be read.
    pub(super) owner: String,
}

impl Entry {
    pub(super) fn into_reservation(self) -> Option<Reservation> {
        let (container_id, ifname) = match self.owner.split_once(LINE_BREAK) {
            Some((container_id, ifname)) => (container_id.to_owned(), Some(ifname.to_owned())),
            None => (self.owner, None),
        };
        (!container_id.is_empty()).then_some(Reservation { address: self.address, container_id, ifname })
    }
}

/// Content of the file of an address.
pub(super) fn owner(container_id: &str, ifname: &str) -> String {
    format!("{container_id}{LINE_BREAK}{ifname}")
}

impl Store {
    /// Locks `dir`, making it first if need be.
    pub(super) fn create(dir: &Path, within: Duration) -> Result<Self, HostLocalError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(dir)
            .map_err(io_error("create the directory", dir))?;
        Self::lock(dir, within)
    }

    /// Locks `dir` if it exists.
    pub(super) fn open(dir: &Path, within: Duration) -> Result<Option<Self>, HostLocalError> {
        match fs::metadata(dir) {
            Ok(_) => Self::lock(dir, within).map(Some),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("look at the directory", dir)(error)),
        }
    }

    fn lock(dir: &Path, within: Duration) -> Result<Self, HostLocalError> {
        let path = dir.join("lock");
        // Opened for writing only because a file cannot be created otherwise; nothing is written.
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o750)
            .open(&path)
            .map_err(io_error("open the lock", &path))?;
        match flock::exclusive(file, within) {
            Ok(Some(lock)) => Ok(Self { dir: dir.to_owned(), _lock: lock }),
            Ok(None) => Err(HostLocalError::Locked { dir: dir.to_owned(), within }),
            Err(source) => Err(HostLocalError::Lock { dir: dir.to_owned(), source }),
        }
    }

    /// All addresses that are taken.
    ///
    /// An empty file is one whose writer was killed between creating and writing it: nobody else can be at it
    /// while we hold the lock, and no DEL would ever find it. So it is removed.
    pub(super) fn entries(&self) -> Result<Vec<Entry>, HostLocalError> {
        let list = |source| io_error("list the directory", &self.dir)(source);
        let mut entries = Vec::new();
        for file in fs::read_dir(&self.dir).map_err(list)? {
            let name = file.map_err(list)?.file_name();
            let Some(address) = name.to_str().and_then(|name| name.parse::<IpAddr>().ok()) else { continue };
            let path = self.dir.join(&name);
            // One that cannot be read is taken all the same.
            let owner = read_owner(&path).ok();
            match owner {
                Some(owner) if owner.is_empty() => {
                    fs::remove_file(&path).map_err(io_error("remove the empty file", &path))?;
                }
                owner => entries.push(Entry { address, owner: owner.unwrap_or_default() }),
            }
        }
        Ok(entries)
    }

    /// Takes `address`; false if it is taken.
    pub(super) fn reserve(
        &self,
        address: IpAddr,
        set: usize,
        container_id: &str,
        ifname: &str,
    ) -> Result<bool, HostLocalError> {
        let path = self.path(address);
        let mut file = match File::options().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(false),
            Err(error) => return Err(io_error("create", &path)(error)),
        };
        let last = self.last_path(set);
        let written = file
            .write_all(owner(container_id, ifname).as_bytes())
            .map_err(io_error("write", &path))
            .and_then(|()| write_last(&last, address).map_err(io_error("write", &last)));
        if written.is_err() {
            // The write error is the one to report; an empty file is removed by whoever comes next.
            let _ = fs::remove_file(&path);
        }
        written.map(|()| true)
    }

    /// Gives `address` back.
    pub(super) fn release(&self, address: IpAddr) -> Result<(), HostLocalError> {
        let path = self.path(address);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(io_error("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// The address that a range set gave last. Losing it only loses the turn, so what is wrong with it does not matter.
    pub(super) fn last_reserved(&self, set: usize) -> Option<IpAddr> {
        fs::read_to_string(self.last_path(set)).ok()?.parse().ok()
    }

    fn path(&self, address: IpAddr) -> PathBuf {
        self.dir.join(address.to_string())
    }

    fn last_path(&self, set: usize) -> PathBuf {
        self.dir.join(format!("last_reserved_ip.{set}"))
    }
}

/// With as few system calls as can be: an ADD does it for every address of the network.
fn read_owner(path: &Path) -> io::Result<String> {
    let mut buffer = [0; 512];
    let length = File::open(path)?.read(&mut buffer)?;
    let trim = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if length < buffer.len() { Ok(trim(&buffer[..length])) } else { fs::read(path).map(|bytes| trim(&bytes)) }
}

fn write_last(path: &Path, address: IpAddr) -> io::Result<()> {
    let text = address.to_string();
    // Over what is there: to cut a file off first takes a file system longer than all else here. Whoever is ended in between
    // leaves another address, or none, which is where the next search begins.
    let mut file = File::options().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    let length = text.len() as u64;
    let is_longer = length < file.metadata()?.len();
    file.write_all(text.as_bytes())?;
    if is_longer { file.set_len(length) } else { Ok(()) }
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HostLocalError {
    move |source| HostLocalError::Io { what, path: path.to_owned(), source }
}
