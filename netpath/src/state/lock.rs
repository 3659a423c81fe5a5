//! The lock that orders every change of maps and pins, by plugin and agent alike.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::Flock;

use crate::flock;
use crate::root::Root;
use crate::spec::code;

/// How long an ADD waits for one holder, who needs milliseconds: one that takes longer is stuck or starved.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// How long it stands in line: when a node boots, all its pods are made at once.
const LINE: Duration = Duration::from_secs(30);

/// Proof that this process alone changes maps and pins; dropping it ends that.
///
/// Hold it for milliseconds: never over an exec, IPAM, duplicate address detection, the API, a link
/// deletion, a grace period or a disk sync.
#[derive(Debug)]
pub struct Lock {
    file: Flock<File>,
}

impl Lock {
    /// Takes the lock of `root`, waiting for [`PATIENCE`] at most as long as the same process holds it.
    pub fn acquire(root: &Root) -> Result<Self, LockError> {
        Self::acquire_within(root, PATIENCE)
    }

    /// Takes the lock of `root`, waiting for `patience` at most as long as the same process holds it.
    pub fn acquire_within(root: &Root, patience: Duration) -> Result<Self, LockError> {
        let path = root.lock();
        let file = open(&path).map_err(|source| LockError::Open { path: path.clone(), source })?;
        // Who takes the lock signs it.
        let signed = || fs::metadata(&path).and_then(|it| it.modified()).ok();
        match flock::exclusive_in_line(file, patience, LINE.max(patience), signed) {
            Ok(Some(file)) => {
                let mut lock = Self { file };
                lock.sign().map_err(|source| LockError::Sign { path, source })?;
                Ok(lock)
            }
            Ok(None) => Err(LockError::Held { holder: holder(&path), path, patience }),
            Err(source) => Err(LockError::Lock { path, source }),
        }
    }

    /// Leaves our process id for those whose patience ends while we hold the lock.
    fn sign(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.write_all(format!("{}\n", std::process::id()).as_bytes())
    }
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(dir) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
    }
    File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Who signed last; a holder that has not signed yet is not known.
fn holder(path: &Path) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Why the lock could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The file could not be opened or created.
    #[error("cannot open the lock {}", path.display())]
    Open {
        /// The lock file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Somebody else kept it for too long.
    #[error(
        "{} holds the lock {} for more than {patience:?}; try again, and if it stays so look at that process",
        .holder.map_or("an unknown process".to_owned(), |pid| format!("process {pid}")),
        path.display()
    )]
    Held {
        /// The lock file.
        path: PathBuf,
        /// Process id that the holder left in the file.
        holder: Option<u32>,
        /// How long we waited.
        patience: Duration,
    },
    /// `flock(2)` failed.
    #[error("cannot lock {}", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// The cause.
        source: Errno,
    },
    /// The holder's process id could not be written.
    #[error("cannot write our process id to the lock {}", path.display())]
    Sign {
        /// The lock file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl LockError {
    /// Code of the CNI error object.
    pub fn cni_code(&self) -> u32 {
        match self {
            Self::Held { .. } => code::TRY_AGAIN,
            Self::Open { .. } | Self::Lock { .. } | Self::Sign { .. } => code::IO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_holder_when_patience_ends() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        let first = Lock::acquire(&root).unwrap();

        let error = Lock::acquire_within(&root, Duration::from_millis(20)).expect_err("it is held");
        assert_eq!(error.cni_code(), code::TRY_AGAIN);
        let text = error.to_string();
        assert!(text.contains(&format!("process {} holds", std::process::id())), "{text}");
        assert!(text.contains("run/netpath/lock"), "{text}");

        drop(first);
        Lock::acquire_within(&root, PATIENCE).expect("it is free again");
    }

    #[test]
    fn a_longer_process_id_of_the_past_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        fs::create_dir_all(root.lock().parent().unwrap()).unwrap();
        fs::write(root.lock(), "99999999999999\n").unwrap();
        let _lock = Lock::acquire(&root).unwrap();
        assert_eq!(holder(&root.lock()), Some(std::process::id()));
    }
}
