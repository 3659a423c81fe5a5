//! Drop events: the one consumer of the ring buffer, and the budget it grants.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use aya::maps::{Map, MapData, MapError, RingBuf};
use nix::{
    fcntl::{Flock, FlockArg},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::maps::{EVENT_BURST, EVENTS, Maps, MapsError, pin_of};
use crate::observe::Event;

/// Why events cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// A ring buffer has one read position: two readers would steal from each other.
    #[error("events are already being read by process {holder}: stop it, or read its output")]
    Taken {
        /// What the holder wrote into the lock file.
        holder: String,
    },
    /// The lock file could not be used.
    #[error("cannot take {}", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The ring buffer could not be opened.
    #[error("cannot open the ring buffer")]
    Open(#[source] MapError),
    /// The programs are of another version.
    #[error("{count} events are of another ABI: use the netpath that the programs belong to")]
    Foreign {
        /// How many there were at once.
        count: u64,
    },
    /// Waiting failed.
    #[error("cannot wait for events")]
    Wait(#[source] io::Error),
    /// Map I/O.
    #[error("cannot grant events")]
    Maps(#[from] MapsError),
}

/// The consumer: holds the lock, and the read position.
pub struct Consumer {
    ring: RingBuf<MapData>,
    pin: PathBuf,
    /// Inode of the pin: another one is another ring buffer.
    inode: Option<u64>,
    spent: Vec<u32>,
    _lock: Flock<File>,
}

impl Consumer {
    /// Becomes the consumer of the ring buffer pinned below `pins`; `lock` is the file that says who is.
    pub fn new(pins: &Path, lock: &Path) -> Result<Self, EventsError> {
        let lock = take(lock)?;
        let pin = pin_of(pins, EVENTS);
        // Looked at first: one that takes its place before it is opened is found out.
        let inode = inode(&pin);
        let data = MapData::from_pin(&pin).map_err(EventsError::Open)?;
        let ring = RingBuf::try_from(Map::RingBuf(data)).map_err(EventsError::Open)?;
        Ok(Self { ring, pin, inode, spent: Vec::new(), _lock: lock })
    }

    /// Whether what is read is still what is pinned.
    pub fn is_pinned(&self) -> bool {
        self.inode.is_some() && inode(&self.pin) == self.inode
    }

    /// Waits up to `timeout` for events.
    pub fn events(&mut self, timeout: Duration) -> Result<Vec<Event>, EventsError> {
        let (mut events, mut count) = (Vec::new(), 0);
        self.read(timeout, |record| match Event::decode(record) {
            Ok(event) => events.push(event),
            Err(_) => count += 1,
        })?;
        if count == 0 { Ok(events) } else { Err(EventsError::Foreign { count }) }
    }

    /// Grants every endpoint a fresh budget: whoever starts to read wants to see what happens now.
    pub fn grant_all(&mut self, maps: &mut Maps) -> Result<(), EventsError> {
        maps.grant(0, EVENT_BURST)?;
        for (_, row) in maps.endpoints()? {
            maps.grant(row.id, EVENT_BURST)?;
        }
        Ok(())
    }

    /// Waits up to `timeout` for events and hands the bytes of each to `handle`, with the endpoint's id.
    pub fn read(&mut self, timeout: Duration, mut handle: impl FnMut(&[u8])) -> Result<usize, EventsError> {
        let milliseconds = u16::try_from(timeout.as_millis()).unwrap_or(u16::MAX);
        let fd = self.ring.as_raw_fd();
        // SAFETY: `ring` owns the descriptor and outlives this borrow.
        let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
        let mut fds = [PollFd::new(borrowed.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(milliseconds)) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(EventsError::Wait(error.into())),
        }
        let mut count = 0;
        while let Some(item) = self.ring.next() {
            if let Some(id) = item.first_chunk::<4>() {
                let id = u32::from_ne_bytes(*id);
                if !self.spent.contains(&id) {
                    self.spent.push(id);
                }
            }
            handle(&item);
            count += 1;
        }
        Ok(count)
    }

    /// Grants a fresh budget to the endpoints whose events were read since the last call.
    ///
    /// Called at a fixed pace it is the limit: so many events per reason and direction each time.
    pub fn grant_spent(&mut self, maps: &mut Maps) -> Result<(), EventsError> {
        for id in self.spent.drain(..) {
            maps.grant(id, EVENT_BURST)?;
        }
        Ok(())
    }
}

fn inode(pin: &Path) -> Option<u64> {
    std::fs::metadata(pin).map(|meta| meta.ino()).ok()
}

fn take(path: &Path) -> Result<Flock<File>, EventsError> {
    let failed = |source: io::Error| EventsError::Lock { path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(failed)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            use std::io::Write;
            lock.set_len(0).map_err(failed)?;
            writeln!(lock, "{}", std::process::id()).map_err(failed)?;
            Ok(lock)
        }
        Err((_, nix::Error::EWOULDBLOCK)) => {
            let holder = std::fs::read_to_string(path).unwrap_or_default();
            Err(EventsError::Taken { holder: holder.trim().to_owned() })
        }
        Err((_, error)) => Err(failed(error.into())),
    }
}
