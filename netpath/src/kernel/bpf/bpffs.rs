//! The BPF file system that pins lie on: there is one for all of netpath.
//!
//! Each mount of one that is not a copy of another mount is a file system of its own. Pins made in a second one
//! would be a second set of maps, and both sets would judge each frame. A container, or what `ip netns exec` runs,
//! may see another one than the node does. So whoever puts something in force leaves the number of the file
//! system's device in a file, which all see, and who finds another one there does nothing.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process,
};

use nix::sys::stat::{major, minor};

use super::{BpfError, sys};
use crate::{
    kernel::{
        mounts::{is_namespace_of_init, lines},
        sees_all_processes,
    },
    whole,
};

/// Makes sure that a BPF file system is mounted at `path`, and mounts one if `path` has none.
///
/// Nothing is mounted over another file system, nor over files, nor where the node would not see it.
pub fn ensure(path: &Path) -> Result<(), BpfError> {
    let failed = |source: io::Error| BpfError::Bpffs { path: path.to_owned(), source };
    if sys::is_bpffs(path).map_err(failed)? {
        return Ok(());
    }
    fs::create_dir_all(path).map_err(failed)?;
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev());
    let is_mounted = match path.parent() {
        Some(parent) => device(path).map_err(failed)? != device(parent).map_err(failed)?,
        None => true,
    };
    if is_mounted || fs::read_dir(path).map_err(failed)?.next().is_some() {
        let what = if is_mounted { "another file system is mounted there" } else { "there are files in it" };
        return Err(BpfError::NotBpffs { path: path.to_owned(), what });
    }
    // Process 1 is the node's, or none of ours: where it is we, this is a container with processes of its own.
    if process::id() == 1 || !is_namespace_of_init().map_err(failed)? {
        return Err(BpfError::ElsewhereMounted { path: path.to_owned() });
    }
    sys::mount_bpffs(path).map_err(failed)
}

/// Refuses to let a tool mount one in a container, where process 1 is the container's own.
///
/// A runtime executes plugins where the node's own processes are, so for them process 1 is the right one to ask.
pub fn must_be_mounted(path: &Path) -> Result<(), BpfError> {
    let failed = |source: io::Error| BpfError::Bpffs { path: path.to_owned(), source };
    if sees_all_processes().map_err(failed)? || sys::is_bpffs(path).map_err(failed)? {
        return Ok(());
    }
    Err(BpfError::ElsewhereMounted { path: path.to_owned() })
}

/// Leaves the number of the file system at `path`, of the boot `boot`, in `mark`. The caller holds the lock and has
/// checked.
pub fn leave_mark(path: &Path, mark: &Path, boot: &str) -> Result<(), BpfError> {
    let failed = |source: io::Error| BpfError::Bpffs { path: path.to_owned(), source };
    let text = format!("{} {boot}\n", device(path).map_err(failed)?);
    if whole::text(mark).is_ok_and(|known| known == text) {
        return Ok(());
    }
    whole::replace(mark, text.as_bytes()).map_err(BpfError::Mark)
}

/// What is known of a BPF file system that may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It is mounted, and the one that the mark names.
    Marked,
    /// The mark names none, or one that is gone.
    Unmarked,
}

/// Whether the BPF file system at `path` is the one that `mark` names, if that is still to be seen anywhere.
///
/// After it was unmounted everywhere, or the node was booted, its pins are gone, and a new one may take its place. In
/// another process namespace, as of a node that is a container, not everybody is to be seen: there it is gone for
/// those who see what process 1 sees, as long as nothing else is mounted.
pub fn check(path: &Path, mark: &Path, boot: &str) -> Result<Known, BpfError> {
    let failed = |source: io::Error| BpfError::Bpffs { path: path.to_owned(), source };
    let Some(text) = whole::read(mark).map_err(BpfError::Mark)? else { return Ok(Known::Unmarked) };
    let text = String::from_utf8_lossy(&text);
    let Some((known, of_boot)) = text.trim().split_once(' ') else { return Ok(Known::Unmarked) };
    let found = match sys::is_bpffs(path).map_err(failed)? {
        true => Some(device(path).map_err(failed)?),
        false => None,
    };
    match found.as_deref() == Some(known) {
        true if of_boot == boot => return Ok(Known::Marked),
        false if of_boot == boot => {}
        _ => return Ok(Known::Unmarked),
    }
    let sees_enough = sees_all_processes().map_err(failed)?
        || (found.is_none() && is_namespace_of_init().map_err(failed)?);
    if sees_enough && !is_mounted_anywhere(known).map_err(failed)? {
        return Ok(Known::Unmarked);
    }
    let found =
        found.map_or_else(|| "no BPF file system".to_owned(), |device| format!("the one of device {device}"));
    Err(BpfError::OtherBpffs { path: path.to_owned(), found, known: known.to_owned(), mark: mark.to_owned() })
}

/// As in `mountinfo`: `major:minor`.
fn device(path: &Path) -> io::Result<String> {
    let device = fs::metadata(path)?.dev();
    Ok(format!("{}:{}", major(device), minor(device)))
}

/// Whether any process has a BPF file system of this device mounted. Numbers that are free are given to others.
fn is_mounted_anywhere(device: &str) -> io::Result<bool> {
    let mut seen = BTreeSet::new();
    for entry in fs::read_dir("/proc")? {
        let path: PathBuf = entry?.path();
        // A process that ends meanwhile takes its namespace with it, or others have it as well.
        let Ok(text) = fs::read(path.join("mountinfo")) else { continue };
        let Some(first) = lines(&text).next() else { continue };
        if seen.insert(first.to_owned()) && lines(&text).any(|line| is_bpffs_of(line, device)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads a line of `mountinfo` (proc_pid_mountinfo(5)): the third word is the device, the type comes after ` - `.
fn is_bpffs_of(line: &[u8], device: &str) -> bool {
    let mut words = line.split(|byte| *byte == b' ');
    words.nth(2) == Some(device.as_bytes())
        && words.skip_while(|word| *word != b"-").nth(1).is_some_and(|kind| kind == b"bpf")
}

#[cfg(test)]
mod tests {
    use super::is_bpffs_of;

    #[test]
    fn a_device_number_that_is_somebody_elses_now_is_not_it() {
        let line = |device, kind| {
            format!("71 27 0:{device} / /sys/fs/bp\u{e9}f rw shared:30 - {kind} none rw,mode=700")
        };
        assert!(is_bpffs_of(line(40, "bpf").as_bytes(), "0:40"));
        assert!(!is_bpffs_of(line(40, "tmpfs").as_bytes(), "0:40"));
        assert!(!is_bpffs_of(line(41, "bpf").as_bytes(), "0:4"));
        assert!(!is_bpffs_of(b"71 27", "0:40"));
    }
}
