//! The trees of pins of one node, all below `<bpffs>/netpath`.
//!
//! `v<ABI>` is in force: its links run programs on its maps. `next-<id>-<n>` is one that is being made to take its
//! place; `<id>` is the kernel's number for the map `meta` of the tree in force. Numbers are not used again, so
//! that whoever finds such a directory knows whether its turn is still to come: once the trees have changed places
//! the one in force has another number.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use aya::maps::{MapError, MapInfo};
use netpath_ebpf::abi::ABI_VERSION;

use super::{
    BpfError,
    maps::{MapsError, pin_of},
    pins, sys,
};

/// The trees that are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trees {
    parent: PathBuf,
    /// ABI version by name, and directory.
    versions: Vec<(u32, PathBuf)>,
    /// Number in the name, and directory.
    staged: Vec<(u32, PathBuf)>,
}

impl Trees {
    /// Those beside `pins`, which is the directory of this version's.
    pub fn list(pins: &Path) -> Result<Self, BpfError> {
        let parent = pins.parent().unwrap_or(pins).to_owned();
        let mut trees = Self { parent, versions: Vec::new(), staged: Vec::new() };
        let failed = |source: io::Error| BpfError::Pin {
            op: "list",
            path: trees.parent.clone(),
            source: source.into(),
        };
        let entries = match fs::read_dir(&trees.parent) {
            Ok(entries) => entries.collect::<io::Result<Vec<_>>>().map_err(failed)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(failed(source)),
        };
        for entry in entries {
            let path = entry.path();
            match path.file_name().and_then(|name| name.to_str()).and_then(parse) {
                Some(Name::Version(version)) => trees.versions.push((version, path)),
                Some(Name::Staged(id)) => trees.staged.push((id, path)),
                None => {}
            }
        }
        trees.versions.sort();
        trees.staged.sort();
        Ok(trees)
    }

    /// The tree in force, of whatever version; `None` if there is none.
    pub fn in_force(&self) -> Result<Option<&(u32, PathBuf)>, BpfError> {
        match &self.versions[..] {
            [] => Ok(None),
            [one] => Ok(Some(one)),
            [(_, one), (_, other), ..] => Err(BpfError::TwoTrees { one: one.clone(), other: other.clone() }),
        }
    }

    /// Refuses a node on which anything but this version's tree is in force.
    pub fn check(&self) -> Result<(), BpfError> {
        match self.in_force()? {
            Some((version, path)) if *version < ABI_VERSION => {
                Err(BpfError::OlderAbi { path: path.clone(), version: *version })
            }
            Some((version, path)) if ABI_VERSION < *version => {
                Err(BpfError::NewerAbi { path: path.clone(), version: *version })
            }
            _ => Ok(()),
        }
    }

    /// Directories that were to take the place of the tree at `pins` when somebody was ended.
    pub fn unfinished(&self, pins: &Path) -> Result<Vec<&Path>, MapsError> {
        let own = id(pins)?;
        let its = self.staged.iter().filter(|(id, _)| own == Some(*id));
        Ok(its.map(|(_, path)| path.as_path()).collect())
    }

    /// Every directory that is not in force.
    pub fn staged(&self) -> impl Iterator<Item = &Path> {
        self.staged.iter().map(|(_, path)| path.as_path())
    }

    /// A directory that is not there, for what shall take the place of the tree at `pins`.
    pub fn stage(&self, pins: &Path) -> Result<PathBuf, MapsError> {
        let own = id(pins)?.unwrap_or(0);
        let mut count = 1;
        loop {
            let path = self.parent.join(format!("next-{own}-{count}"));
            if self.staged.iter().all(|(_, other)| *other != path) {
                return Ok(path);
            }
            count += 1;
        }
    }
}

/// What the name of a directory says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    Version(u32),
    Staged(u32),
}

fn parse(name: &str) -> Option<Name> {
    if let Some(version) = name.strip_prefix('v') {
        return version.parse().ok().map(Name::Version);
    }
    let (id, count) = name.strip_prefix("next-")?.split_once('-')?;
    count.parse::<u32>().ok()?;
    id.parse().ok().map(Name::Staged)
}

/// The kernel's number for the map `meta` of a tree; `None` if it has none.
pub fn id(pins: &Path) -> Result<Option<u32>, MapsError> {
    let path = pin_of(pins, "meta");
    // Who may not ask the kernel for maps is refused also where there is none.
    if !path.exists() {
        return Ok(None);
    }
    match MapInfo::from_pin(&path) {
        Ok(info) => Ok(Some(info.id())),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == ErrorKind::NotFound => Ok(None),
        // It is there: who takes it for gone would look for another one without end.
        Err(source) => Err(MapsError::Open { path, source }),
    }
}

/// Whether anything is attached by the pins of a tree.
pub fn has_programs(pins: &Path) -> Result<bool, BpfError> {
    Ok(!pins::files(&pins.join("links"))?.is_empty() || !pins::files(&pins.join("progs"))?.is_empty())
}

/// Puts the maps of a finished tree under those names where others were, in one step.
pub fn exchange_maps(in_force: &Path, stage: &Path) -> Result<(), BpfError> {
    let path = in_force.join("maps");
    sys::exchange(&path, &stage.join("maps")).map_err(|source| BpfError::Pin {
        op: "put the new maps in the place of",
        path,
        source: source.into(),
    })
}

/// Gives a directory another name.
pub fn rename(from: &Path, to: &Path) -> Result<(), BpfError> {
    fs::rename(from, to).map_err(|source| BpfError::Pin {
        op: "rename",
        path: from.to_owned(),
        source: source.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_a_directory_is() {
        assert_eq!(parse("v2"), Some(Name::Version(2)));
        assert_eq!(parse("next-17-1"), Some(Name::Staged(17)));
        for other in ["v", "vine", "v2-1", "next", "next-1", "next-x-1", "next-1-x", "maps"] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn one_tree_is_in_force_and_of_this_version() {
        let dir = tempfile::tempdir().expect("a directory");
        let pins = dir.path().join(format!("v{ABI_VERSION}"));
        let list = || Trees::list(&pins).expect("readable");
        assert_eq!(Trees::list(&dir.path().join("absent/v1")).expect("absence is an answer").versions, []);
        fs::create_dir(&pins).expect("made");
        assert_eq!(list().in_force().expect("one"), Some(&(ABI_VERSION, pins.clone())));
        list().check().expect("its own");
        let older = dir.path().join(format!("v{}", ABI_VERSION - 1));
        fs::create_dir(&older).expect("made");
        assert!(matches!(list().check(), Err(BpfError::TwoTrees { .. })));
        fs::remove_dir(&pins).expect("removed");
        assert!(matches!(list().check(), Err(BpfError::OlderAbi { .. })));
        fs::rename(&older, dir.path().join("v99")).expect("renamed");
        assert!(matches!(list().check(), Err(BpfError::NewerAbi { version: 99, .. })));
        assert_eq!(list().stage(&pins).expect("readable"), dir.path().join("next-0-1"));
        fs::create_dir(dir.path().join("next-0-1")).expect("made");
        assert_eq!(list().stage(&pins).expect("readable"), dir.path().join("next-0-2"));
    }
}
