//! Files that are there whole or not at all.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::StateError;

/// Writes `bytes` in place of an earlier file at `path`, whose directory is made where it is missing.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(StateError::io("create the directory", dir))?;
    let (draft, mut file) = draft(dir)?;
    let written = file.write_all(bytes).map_err(StateError::io("write the draft", &draft));
    let result =
        written.and_then(|()| fs::rename(&draft, path).map_err(StateError::io("put into place", path)));
    if result.is_err() {
        // What failed is reported; a draft that stays is swept later.
        let _ = fs::remove_file(&draft);
    }
    result
}

/// A file that no other writer uses. In another container a writer may have the same process id.
pub(super) fn draft(dir: &Path) -> Result<(PathBuf, File), StateError> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    loop {
        let draft = dir.join(format!(".{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
        match File::options().write(true).create_new(true).mode(0o600).open(&draft) {
            Ok(file) => return Ok((draft, file)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(StateError::io("create the draft", &draft)(error)),
        }
    }
}

/// What is in the file; `None` if there is none.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, StateError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(StateError::io("read", path)(error)),
    }
}

/// Removes the file; whether there was one.
pub(super) fn remove(path: &Path) -> Result<bool, StateError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(StateError::io("remove", path)(error)),
    }
}

/// Below a file there is nothing, as there is nothing in a directory that does not exist.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}
