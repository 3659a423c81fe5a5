//! Numbers that processes which end leave behind for metrics.

use std::fs::{self, DirBuilder, File};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::Duration;

use super::StateError;
use crate::flock;
use crate::root::Root;

/// How long somebody else who counts is waited for: he writes one number.
const PATIENCE: Duration = Duration::from_millis(100);

/// A number that only grows: a decimal in a file of its own.
#[derive(Clone, Debug)]
pub struct Tally {
    path: PathBuf,
}

impl Tally {
    /// Events that no pod's owner has been told of.
    pub fn lost_events(root: &Root) -> Self {
        Self { path: root.state().join("counters/events-lost") }
    }

    /// What it is.
    pub fn read(&self) -> u64 {
        fs::read_to_string(&self.path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or_default()
    }

    /// Adds to it.
    pub fn add(&self, count: u64) -> Result<(), StateError> {
        let dir = self.path.parent().unwrap_or(&self.path);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(StateError::io("create the directory", dir))?;
        let io = |what| StateError::io(what, &self.path);
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&self.path);
        let locked = flock::exclusive(file.map_err(io("open"))?, PATIENCE);
        let Some(mut file) = locked.map_err(|errno| io("lock")(errno.into()))? else {
            return Err(io("lock")(std::io::ErrorKind::TimedOut.into()));
        };
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(io("read"))?;
        let sum = text.trim().parse::<u64>().unwrap_or_default().saturating_add(count);
        // It never gets shorter, so what is there is overwritten whole.
        file.rewind().and_then(|()| file.write_all(format!("{sum}\n").as_bytes())).map_err(io("write"))
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn nothing_is_lost_when_many_count() {
        let dir = tempfile::tempdir().unwrap();
        let tally = Tally::lost_events(&Root::new(dir.path()));
        assert_eq!(tally.read(), 0);
        let counters: Vec<_> = (0..8)
            .map(|_| {
                let tally = tally.clone();
                thread::spawn(move || (0..10).for_each(|_| tally.add(3).unwrap()))
            })
            .collect();
        counters.into_iter().for_each(|counter| counter.join().unwrap());
        assert_eq!(tally.read(), 240);
    }
}
