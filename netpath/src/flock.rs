//! `flock(2)` with an end to the patience.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Locks `file` exclusively; `None` when others held it for longer than `patience`.
///
/// The lock ends when the returned value is dropped, or with the process however it ends.
pub fn exclusive(file: File, patience: Duration) -> Result<Option<Flock<File>>, Errno> {
    exclusive_in_line(file, patience, patience, || ())
}

/// The same, where `patience` is for one holder: it begins anew as long as `holder` tells of another one at its end.
/// After `longest` it is over.
pub fn exclusive_in_line<T: PartialEq>(
    file: File,
    patience: Duration,
    longest: Duration,
    holder: impl Fn() -> T,
) -> Result<Option<Flock<File>>, Errno> {
    let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(locked) => return Ok(Some(locked)),
        Err((file, Errno::EWOULDBLOCK | Errno::EINTR)) => file,
        Err((_, errno)) => return Err(errno),
    };
    // The kernel knows no deadline for a lock, and asking it again and again would lose every race against
    // those who wait. So a thread waits in line; when it is late, the lock it gets is dropped unused.
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let _ = sender.send(wait_in_line(file));
    });
    let end = Instant::now() + longest;
    let mut known = holder();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if let Ok(result) = receiver.recv_timeout(patience.min(left)) {
            return result.map(Some);
        }
        let now = holder();
        if now == known || left <= patience {
            return Ok(None);
        }
        known = now;
    }
}

/// Whether somebody holds the lock at `path`, exclusively. No file is no lock.
///
/// It is tried shared, and given back at once: who takes it must wait a moment instead of giving up at the first try.
pub fn is_held(path: &Path) -> io::Result<bool> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(false);
        }
        Err(error) => return Err(error),
    };
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(false),
        Err((_, Errno::EWOULDBLOCK)) => Ok(true),
        Err((_, errno)) => Err(errno.into()),
    }
}

fn wait_in_line(mut file: File) -> Result<Flock<File>, Errno> {
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusive) {
            Ok(locked) => return Ok(locked),
            Err((file, Errno::EINTR)) => file,
            Err((_, errno)) => return Err(errno),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn open(path: &std::path::Path) -> File {
        File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
    }

    #[test]
    fn patience_ends_and_a_late_lock_is_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = exclusive(open(&path), LONG).unwrap().expect("nobody else holds it");

        let start = Instant::now();
        assert!(exclusive(open(&path), Duration::from_millis(50)).unwrap().is_none());
        assert!(start.elapsed() >= Duration::from_millis(50));

        drop(held);
        // The thread of the second caller may get the lock before us; it must not keep it.
        assert!(exclusive(open(&path), LONG).unwrap().is_some());
    }

    #[test]
    fn patience_is_for_one_holder_and_has_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = exclusive(open(&path), LONG).unwrap().expect("nobody else holds it");
        let (patience, longest) = (Duration::from_millis(20), Duration::from_millis(100));
        let looks = std::cell::Cell::new(0);
        let another = || looks.replace(looks.get() + 1);
        let start = Instant::now();
        assert!(exclusive_in_line(open(&path), patience, longest, another).unwrap().is_none());
        assert!(start.elapsed() >= longest, "the line moves: {:?}", start.elapsed());
        assert!(looks.get() > 3);

        let looks = std::cell::Cell::new(0);
        let same = || looks.set(looks.get() + 1);
        assert!(exclusive_in_line(open(&path), patience, LONG, same).unwrap().is_none());
        assert_eq!(looks.get(), 2, "one holder has one patience");
        drop(held);
    }

    #[test]
    fn a_lock_is_held_as_long_as_its_holder_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert!(!is_held(&path).unwrap() && !path.exists());
        let held = exclusive(open(&path), LONG).unwrap().unwrap();
        assert!(is_held(&path).unwrap());
        drop(held);
        assert!(!is_held(&path).unwrap());
        assert!(exclusive(open(&path), Duration::ZERO).unwrap().is_some(), "asking keeps nobody out");
    }

    #[test]
    fn who_waits_is_woken_by_the_release() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = exclusive(open(&path), LONG).unwrap().unwrap();
        let second = thread::spawn({
            let file = open(&path);
            move || exclusive(file, LONG).unwrap().is_some()
        });
        drop(held);
        assert!(second.join().unwrap());
    }
}
