//! Files that are there whole or not at all.
//!
//! A file is written as a draft beside its place and then renamed. The writer holds a lock on its draft, so that a
//! draft without one is known to be that of a writer that was killed, in whatever container it ran.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, OFlag, RenameFlags, renameat2};
use sha2::{Digest, Sha256};

/// How often a draft is begun again that somebody swept between its creation and its lock.
const TRIES: u32 = 8;
/// The most that is read of a file.
const LARGEST: u64 = 4 << 20;

/// Why a file could not be written, read or removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {}", path.display())]
pub struct WholeError {
    /// What was attempted.
    pub what: &'static str,
    /// On what.
    pub path: PathBuf,
    /// The cause.
    pub source: io::Error,
}

impl WholeError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self { what, path: path.to_owned(), source }
    }
}

/// Writes `bytes` in place of an earlier file at `path`, whose directory is made where it is missing.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), WholeError> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(WholeError::io("create the directory", dir))?;
    for tries_left in (0..TRIES).rev() {
        let (draft, mut file) = draft(path)?;
        let written = file.write_all(bytes).map_err(WholeError::io("write", path));
        match written.and_then(|()| fs::rename(&draft, path).map_err(WholeError::io("put into place", path)))
        {
            Err(error) if error.source.kind() == ErrorKind::NotFound && 0 < tries_left => {}
            Err(error) => {
                // What failed is reported; a draft that stays is swept later.
                let _ = fs::remove_file(&draft);
                return Err(error);
            }
            Ok(()) => break,
        }
    }
    Ok(())
}

/// The same for a file of others' directory, with this mode, written by `write`: it is on the disk before it is seen,
/// since a power failure must not leave half of it.
pub fn publish(
    path: &Path,
    mode: u32,
    write: impl Fn(&mut File) -> io::Result<()>,
) -> Result<(), WholeError> {
    sweep_of(path)?;
    let (draft, mut file) = draft(path)?;
    let written = write(&mut file)
        .and_then(|()| file.set_permissions(Permissions::from_mode(mode)))
        .and_then(|()| file.sync_all())
        .map_err(WholeError::io("write", path));
    // A program that is open for writing cannot be executed.
    drop(file);
    let renamed =
        written.and_then(|()| fs::rename(&draft, path).map_err(WholeError::io("put into place", path)));
    if let Err(error) = renamed {
        let _ = fs::remove_file(&draft);
        return Err(error);
    }
    let dir = path.parent().unwrap_or(Path::new("/"));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(WholeError::io("write the directory", dir))
}

/// The same where there is a file at `path`, and nothing where there is none; whether there was one.
///
/// Who removed it meanwhile does not find it again.
pub fn update(path: &Path, bytes: &[u8]) -> Result<bool, WholeError> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    if !dir.exists() {
        return Ok(false);
    }
    let (draft, mut file) = draft(path)?;
    let result = file.write_all(bytes).map_err(WholeError::io("write", path)).and_then(|()| {
        match renameat2(AT_FDCWD, &draft, AT_FDCWD, path, RenameFlags::RENAME_EXCHANGE) {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            // Not every file system can: then who removes it in this moment finds it again.
            Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) if path.exists() => {
                fs::rename(&draft, path).map_err(WholeError::io("put into place", path)).map(|()| true)
            }
            Err(errno) => Err(WholeError::io("put into place", path)(errno.into())),
        }
    });
    // What is there now is the draft, or what was there before; one that stays is swept later.
    let _ = fs::remove_file(&draft);
    result
}

/// A file for `path` that no other writer uses. In another container a writer may have the same process id.
fn draft(path: &Path) -> Result<(PathBuf, Flock<File>), WholeError> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let prefix = prefix(path.file_name().unwrap_or_default());
    loop {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let draft = path.with_file_name(format!("{prefix}{}-{count}", std::process::id()));
        match File::options().write(true).create_new(true).mode(0o600).open(&draft) {
            Ok(file) => match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => return Ok((draft, file)),
                // Somebody looks whether it is left behind, and removes it.
                Err((_, Errno::EWOULDBLOCK | Errno::EINTR)) => {}
                Err((_, errno)) => return Err(WholeError::io("lock a draft of", path)(errno.into())),
            },
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(WholeError::io("write", path)(error)),
        }
    }
}

/// How the drafts of a file begin. Its own name may be as long as names can be.
fn prefix(name: &OsStr) -> String {
    let digest = Sha256::digest(name.as_encoded_bytes());
    let digits: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    format!(".{digits}-")
}

/// Whether this is the name of a draft of ours.
pub fn is_draft(name: &OsStr) -> bool {
    let parts = name.to_str().and_then(|name| name.strip_prefix('.')).map(|name| name.split('-'));
    let Some(parts) = parts else { return false };
    let parts: Vec<&str> = parts.collect();
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match parts[..] {
        [digest, process, count] => {
            digest.len() == 16
                && digest.bytes().all(|byte| byte.is_ascii_hexdigit())
                && is_number(process)
                && is_number(count)
        }
        _ => false,
    }
}

/// What lies where a configuration or a record should, and is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Who opens a pipe or a device may wait for ever.
    #[error("it is {found}, and must be an ordinary file")]
    Kind {
        /// What lies there.
        found: &'static str,
    },
    /// Nobody writes so much.
    #[error("it has more than {LARGEST} bytes")]
    Large,
}

impl Unfit {
    /// What made reading fail, if it is this.
    pub fn of(error: &io::Error) -> Option<Self> {
        error.get_ref().and_then(|inner| inner.downcast_ref()).copied()
    }
}

/// What is in a configuration or a record: an ordinary file of at most 4 MiB. Nothing else is waited for.
pub fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    bytes_up_to(path, LARGEST)
}

/// The same of at most `largest` bytes.
pub fn bytes_up_to(path: &Path, largest: u64) -> io::Result<Vec<u8>> {
    let file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    let kind = file.metadata()?.file_type();
    let found = match () {
        () if kind.is_file() => None,
        () if kind.is_dir() => Some("a directory"),
        () if kind.is_fifo() => Some("a named pipe"),
        () if kind.is_block_device() || kind.is_char_device() => Some("a device"),
        () => Some("a socket or the like"),
    };
    if let Some(found) = found {
        return Err(io::Error::new(ErrorKind::InvalidInput, Unfit::Kind { found }));
    }
    let mut bytes = Vec::new();
    file.take(largest.saturating_add(1)).read_to_end(&mut bytes)?;
    match u64::try_from(bytes.len()).is_ok_and(|length| length <= largest) {
        true => Ok(bytes),
        false => Err(io::Error::new(ErrorKind::InvalidInput, Unfit::Large)),
    }
}

/// The same of a text.
pub fn text(path: &Path) -> io::Result<String> {
    String::from_utf8(bytes(path)?).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
}

/// What is in the file; `None` if there is none.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, WholeError> {
    match bytes(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(WholeError::io("read", path)(error)),
    }
}

/// Removes the file, and drafts of it whose writers were killed; whether there was a file.
pub fn remove(path: &Path) -> Result<bool, WholeError> {
    sweep_of(path)?;
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(WholeError::io("remove", path)(error)),
    }
}

/// Removes all drafts in `dir` whose writers were killed. Returns how many.
pub fn sweep(dir: &Path) -> Result<usize, WholeError> {
    sweep_those(dir, |_| true)
}

/// Removes the drafts of one file whose writers were killed.
fn sweep_of(path: &Path) -> Result<(), WholeError> {
    if let (Some(dir), Some(name)) = (path.parent(), path.file_name()) {
        let prefix = prefix(name);
        sweep_those(dir, |draft| draft.as_encoded_bytes().starts_with(prefix.as_bytes()))?;
    }
    Ok(())
}

fn sweep_those(dir: &Path, which: impl Fn(&OsStr) -> bool) -> Result<usize, WholeError> {
    let mut swept = 0;
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if is_absent(&error) => return Ok(0),
        Err(error) => return Err(WholeError::io("list the directory", dir)(error)),
    };
    for entry in entries {
        let name = entry.map_err(WholeError::io("list the directory", dir))?.file_name();
        if !is_draft(&name) || !which(&name) {
            continue;
        }
        let path = dir.join(&name);
        let file = match File::options().write(true).open(&path) {
            Ok(file) => file,
            // Finished meanwhile.
            Err(error) if is_absent(&error) => continue,
            Err(error) => return Err(WholeError::io("open the draft", &path)(error)),
        };
        // Kept until it is gone, so that a writer that has not yet locked it notices.
        let _lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, Errno::EWOULDBLOCK | Errno::EINTR)) => continue,
            Err((_, errno)) => return Err(WholeError::io("lock the draft", &path)(errno.into())),
        };
        match fs::remove_file(&path) {
            Ok(()) => swept += 1,
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(WholeError::io("remove the draft", &path)(error)),
        }
    }
    Ok(swept)
}

/// Below a file there is nothing, as there is nothing in a directory that does not exist.
fn is_absent(error: &io::Error) -> bool {
    // Nor is there a file of a name that is too long.
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::InvalidFilename)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn drafts_of_writers_that_were_killed_go_with_their_file() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        replace(&one, b"1").unwrap();
        for path in [&one, &two] {
            // The lock of a process that is gone is gone.
            drop(draft(path).unwrap());
        }
        fs::write(dir.path().join(".other-1-2"), "").unwrap();
        assert_eq!(names(dir.path()).len(), 4);
        assert!(remove(&one).unwrap());
        assert_eq!(names(dir.path()).len(), 2);
        assert!(!remove(&two).unwrap());
        assert_eq!(names(dir.path()), [".other-1-2"]);
    }

    #[test]
    fn a_draft_that_is_being_written_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x".repeat(255));
        let (draft, file) = draft(&path).unwrap();
        assert_eq!((sweep(dir.path()).unwrap(), draft.exists()), (0, true));
        drop(file);
        assert_eq!((sweep(dir.path()).unwrap(), draft.exists()), (1, false));
        assert_eq!(sweep(&dir.path().join("none")).unwrap(), 0);
    }

    #[test]
    fn what_is_no_ordinary_file_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let (pipe, large) = (dir.path().join("pipe"), dir.path().join("large"));
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        File::create(&large).unwrap().set_len(LARGEST + 1).unwrap();
        for (path, expected) in [
            (pipe.as_path(), "it is a named pipe, and must be an ordinary file"),
            (Path::new("/dev/zero"), "it is a device, and must be an ordinary file"),
            (dir.path(), "it is a directory, and must be an ordinary file"),
            (large.as_path(), "it has more than 4194304 bytes"),
        ] {
            let error = read(path).unwrap_err().source;
            assert_eq!(error.to_string(), expected);
            assert!(Unfit::of(&error).is_some());
        }
        File::create(&large).unwrap().set_len(LARGEST).unwrap();
        assert!(read(&large).is_ok());
        assert!(Unfit::of(&io::Error::from(ErrorKind::NotFound)).is_none());
    }

    #[test]
    fn a_writer_and_a_sweeper_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| (0..500).for_each(|_| replace(&path, b"whole").unwrap()));
            while !writer.is_finished() {
                sweep(dir.path()).unwrap();
            }
        });
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(names(dir.path()), ["file"]);
    }

    #[test]
    fn names_of_others_are_no_drafts() {
        for name in ["a", ".", ".a-1-2", ".0123456789abcdef", ".0123456789abcdef-1", ".0123456789abcdef-1-x"]
        {
            assert!(!is_draft(OsStr::new(name)), "{name}");
        }
        assert!(is_draft(OsStr::new(".0123456789abcdef-1-2")));
    }
}
