//! Pins: where they lie, how they are made and removed, and how one that was lost is found again.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    maps::{MapError, MapInfo},
    programs::ProgramInfo,
};

use super::{
    BpfError, Hook,
    maps::{NAMES, pin_of},
    sys,
};

pub(super) fn link_pin(pins: &Path, id: u16, hook: Hook) -> PathBuf {
    pins.join("links").join(id.to_string()).join(hook.name())
}

pub(super) fn program_pin(pins: &Path, id: u16, hook: Hook) -> PathBuf {
    pins.join("progs").join(id.to_string()).join(hook.name())
}

pub(super) fn make_parent(path: &Path) -> Result<(), BpfError> {
    let Some(parent) = path.parent() else { return Ok(()) };
    fs::create_dir_all(parent).map_err(|source| BpfError::Pin {
        op: "make the directory of",
        path: path.to_owned(),
        source: source.into(),
    })
}

pub(super) fn remove_file(path: &Path) -> Result<(), BpfError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(BpfError::Pin { op: "remove", path: path.to_owned(), source: source.into() }),
    }
}

/// Where a program is pinned before it is moved to [`program_pin`].
pub(super) fn fresh_pin(pins: &Path, id: u16, hook: Hook) -> PathBuf {
    program_pin(pins, id, hook).with_file_name(format!("{}-new", hook.name()))
}

pub(super) fn unpin(pins: &Path, id: u16, hook: Hook) -> Result<(), BpfError> {
    remove_file(&link_pin(pins, id, hook))?;
    remove_file(&fresh_pin(pins, id, hook))?;
    remove_file(&program_pin(pins, id, hook))
}

/// Removes every pin below `pins`, maps last. Programs that are still attached by link are detached.
pub fn remove_pins(pins: &Path) -> Result<(), BpfError> {
    remove_directory(&pins.join("links"))?;
    remove_directory(&pins.join("progs"))?;
    remove_maps(pins)?;
    remove_directory(pins)
}

/// Removes the pins of the maps. While `meta` is there all others are, so whoever is ended here leaves none that
/// seem to be whole.
pub fn remove_maps(pins: &Path) -> Result<(), BpfError> {
    let meta = pin_of(pins, "meta");
    if !meta.is_dir() {
        remove_file(&meta)?;
    }
    remove_directory(&pins.join("maps"))
}

fn remove_directory(path: &Path) -> Result<(), BpfError> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(BpfError::Pin { op: "remove", path: path.to_owned(), source: source.into() })
        }
        _ => Ok(()),
    }
}

/// Ids of the pinned maps by name; one whose pin is missing, or is something else, is left out.
pub(super) fn map_ids(pins: &Path) -> Vec<(&'static str, u32)> {
    NAMES.iter().filter_map(|name| map_id(pins, name)).collect()
}

/// The same of one map.
pub(super) fn map_id(pins: &Path, name: &'static str) -> Option<(&'static str, u32)> {
    MapInfo::from_pin(pin_of(pins, name)).ok().map(|info| (name, info.id()))
}

/// Which of our maps it is by its name, as the kernel keeps it.
///
/// Not the library's `name_as_str`: the first call of that tries two dozen of the kernel's features out, which takes longer than
/// all that an ADD does with maps.
fn name_of(map: &MapInfo) -> Option<&'static str> {
    NAMES.iter().find(|name| name.as_bytes() == map.name()).copied()
}

/// Whether a program works on the maps with these ids: one may have lost its pin, and been made again since.
///
/// What others use that is none of these is in `private`, and so is what this one uses, when it is.
pub(super) fn is_bound(program: u32, pinned: &[(&str, u32)], private: &mut Vec<u32>) -> bool {
    let used = sys::program_maps(program).unwrap_or_default();
    let mut is_private = |id: u32| {
        if !private.contains(&id) && MapInfo::from_id(id).is_ok_and(|map| name_of(&map).is_none()) {
            private.push(id);
        }
        private.contains(&id)
    };
    // A program without maps is none of ours.
    let is_ours = used.iter().any(|used| pinned.iter().any(|(_, id)| id == used));
    is_ours && used.iter().all(|used| pinned.iter().any(|(_, id)| id == used) || is_private(*used))
}

/// Whether a program works on any of these maps.
pub(super) fn uses_any(program: u32, pinned: &[(&str, u32)]) -> bool {
    let used = sys::program_maps(program).unwrap_or_default();
    used.iter().any(|used| pinned.iter().any(|(_, id)| id == used))
}

/// Pins maps again whose pins were removed while programs use them; returns the names of those that stay lost.
///
/// A program that is attached keeps its maps, so nothing of what they hold is lost with a pin.
pub fn recover_maps(pins: &Path) -> Result<Vec<&'static str>, BpfError> {
    let lost = |name: &&&str| !pin_of(pins, name).exists();
    let mut missing: Vec<&'static str> = NAMES.iter().filter(lost).copied().collect();
    if missing.is_empty() {
        return Ok(missing);
    }
    // One that cannot be asked for now is not lost: whoever takes it for lost makes all of them anew.
    let unread = |source: Box<dyn std::error::Error + Send + Sync>| BpfError::Pin {
        op: "find maps for",
        path: pins.to_owned(),
        source,
    };
    let mut used = Vec::new();
    for program in programs(pins)? {
        match sys::program_maps(program) {
            Ok(maps) => used.extend(maps),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(unread(error.into())),
        }
    }
    for id in used {
        let info = match MapInfo::from_id(id) {
            Ok(info) => info,
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
                continue;
            }
            Err(error) => return Err(unread(error.into())),
        };
        let Some(at) = missing.iter().position(|name| name_of(&info) == Some(*name)) else { continue };
        let path = pin_of(pins, missing[at]);
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| BpfError::Pin {
            op: "make again",
            path: path.clone(),
            source,
        };
        make_parent(&path)?;
        let map = aya::maps::MapData::from_id(id).map_err(|source| failed(source.into()))?;
        map.pin(&path).map_err(|source| failed(source.into()))?;
        missing.swap_remove(at);
    }
    Ok(missing)
}

/// Ids of the programs that pinned links run and of those that are pinned themselves.
fn programs(pins: &Path) -> Result<Vec<u32>, BpfError> {
    let failed = |path: &Path, source: Box<dyn std::error::Error + Send + Sync>| BpfError::Pin {
        op: "read",
        path: path.to_owned(),
        source,
    };
    let mut found = Vec::new();
    for path in files(&pins.join("links"))? {
        let link = sys::pinned_link(&path).map_err(|source| failed(&path, source.into()))?;
        found.extend(link.hook.map(|_| link.program));
    }
    for path in files(&pins.join("progs"))? {
        found.push(ProgramInfo::from_pin(&path).map_err(|source| failed(&path, source.into()))?.id());
    }
    Ok(found)
}

/// The files of the directories below `directory`.
pub(super) fn files(directory: &Path) -> Result<Vec<PathBuf>, BpfError> {
    let list = |path: &Path| -> Result<Vec<PathBuf>, BpfError> {
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries.collect::<io::Result<Vec<_>>>(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => Err(error),
        };
        let entries = entries.map_err(|source| BpfError::Pin {
            op: "list",
            path: path.to_owned(),
            source: source.into(),
        })?;
        Ok(entries.into_iter().map(|entry| entry.path()).collect())
    };
    let mut found = Vec::new();
    for master in list(directory)? {
        found.extend(list(&master)?);
    }
    Ok(found)
}
