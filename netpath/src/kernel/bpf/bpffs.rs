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
};

use nix::sys::stat::{major, minor};

use super::{BpfError, sys};

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
    if !is_mount_namespace_of_init().map_err(failed)? {
        return Err(BpfError::ElsewhereMounted { path: path.to_owned() });
    }
    sys::mount_bpffs(path).map_err(failed)
}

/// Leaves the number of the file system at `path` in `mark`. The caller holds the lock and has checked.
pub fn leave_mark(path: &Path, mark: &Path) -> Result<(), BpfError> {
    let failed = |source: io::Error| BpfError::Bpffs { path: path.to_owned(), source };
    let device = format!("{}\n", device(path).map_err(failed)?);
    if fs::read_to_string(mark).is_ok_and(|known| known == device) {
        return Ok(());
    }
    if let Some(dir) = mark.parent() {
        fs::create_dir_all(dir).map_err(failed)?;
    }
    // One that is torn names no device, and is written anew.
    fs::write(mark, device).map_err(failed)
}

/// Whether the BPF file system at `path` is the one that `mark` names, if that is still to be seen anywhere.
///
/// After it was unmounted everywhere its pins are gone, and a new one may take its place. From another process
/// namespace that cannot be told.
pub fn check(path: &Path, mark: &Path) -> Result<(), BpfError> {
    let failed = |source: io::Error| BpfError::Bpffs { path: path.to_owned(), source };
    let Ok(known) = fs::read_to_string(mark) else { return Ok(()) };
    let known = known.trim();
    let found = match sys::is_bpffs(path).map_err(failed)? {
        true => Some(device(path).map_err(failed)?),
        false => None,
    };
    if known.is_empty()
        || found.as_deref() == Some(known)
        || (sees_all_processes().map_err(failed)? && !is_mounted_anywhere(known).map_err(failed)?)
    {
        return Ok(());
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

/// Mounts have numbers of their own, so two lists that begin alike are of one namespace. The links in `/proc/1/ns`,
/// which would say so, are not for everybody to read.
fn is_mount_namespace_of_init() -> io::Result<bool> {
    let first = |path: &str| -> io::Result<Option<String>> {
        Ok(fs::read_to_string(path)?.lines().next().map(str::to_owned))
    };
    Ok(first("/proc/thread-self/mountinfo")? == first("/proc/1/mountinfo")?)
}

/// Whether this is the first process namespace (`PROC_PID_INIT_INO` of `include/linux/proc_ns.h`).
fn sees_all_processes() -> io::Result<bool> {
    Ok(fs::read_link("/proc/self/ns/pid")? == Path::new("pid:[4026531836]"))
}

/// Whether any process has a mount of this device.
fn is_mounted_anywhere(device: &str) -> io::Result<bool> {
    let mut seen = BTreeSet::new();
    for entry in fs::read_dir("/proc")? {
        let path: PathBuf = entry?.path();
        // A process that ends meanwhile takes its namespace with it, or others have it as well.
        let Ok(text) = fs::read_to_string(path.join("mountinfo")) else { continue };
        let Some(first) = text.lines().next() else { continue };
        if seen.insert(first.to_owned()) && text.lines().any(|line| line.split(' ').nth(2) == Some(device)) {
            return Ok(true);
        }
    }
    Ok(false)
}
