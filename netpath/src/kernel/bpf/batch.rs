//! Many rows of a hash map or an array by one system call (`BPF_MAP_LOOKUP_BATCH`, `BPF_MAP_UPDATE_BATCH`, Linux 5.6). To read one
//! after the other takes two calls for each, and begins anew when a row of a hash map is removed meanwhile.

use std::{io, marker::PhantomData, os::fd::AsFd, path::Path};

use aya::maps::{HashMap, IterableMap, MapData};

use super::{
    maps::{MapsError, Plain, Raw, pin_of},
    sys,
};

/// Rows that are asked for at once: as much memory as this is taken for a moment.
const ROOM: u32 = 256;

/// Every row of `map`. One that is written or removed meanwhile may be in it or not; all others are, once.
pub(super) fn rows<K: Plain, V: Plain>(
    map: &HashMap<MapData, Raw<K>, Raw<V>>,
    name: &'static str,
) -> Result<Vec<(K, V)>, MapsError> {
    // SAFETY: The map's type says how long its keys and values are, which was compared when it was opened.
    unsafe { list(map.map().fd(), name) }
}

/// Writes rows to `map`; where it fails those before are written.
pub(super) fn write<K: Plain, V: Plain>(
    map: &HashMap<MapData, Raw<K>, Raw<V>>,
    name: &'static str,
    rows: impl IntoIterator<Item = (K, V)>,
) -> Result<(), MapsError> {
    // SAFETY: As in `rows`.
    unsafe { put(map.map().fd(), name, rows) }
}

/// A pinned hash map or array from `K` to `V` that is opened for nothing else.
pub(super) struct Bulk<K, V> {
    data: MapData,
    name: &'static str,
    row: PhantomData<(K, V)>,
}

impl<K: Plain, V: Plain> Bulk<K, V> {
    /// Opens it; its keys and values must be as long as these.
    pub(super) fn open(pins: &Path, name: &'static str) -> Result<Self, MapsError> {
        let path = pin_of(pins, name);
        let failed = |source| MapsError::Open { path: path.clone(), source };
        let data = MapData::from_pin(&path).map_err(failed)?;
        let info = data.info().map_err(failed)?;
        let sizes = [info.key_size() as usize, info.value_size() as usize];
        if sizes != [size_of::<K>(), size_of::<V>()] {
            let source = aya::maps::MapError::InvalidValueSize { size: sizes[1], expected: size_of::<V>() };
            return Err(MapsError::Layout { path, source });
        }
        Ok(Self { data, name, row: PhantomData })
    }

    /// As [`write()`].
    pub(super) fn write(&self, rows: impl IntoIterator<Item = (K, V)>) -> Result<(), MapsError> {
        // SAFETY: `open` compared the sizes.
        unsafe { put(self.data.fd(), self.name, rows) }
    }

    /// As [`rows`].
    pub(super) fn rows(&self) -> Result<Vec<(K, V)>, MapsError> {
        // SAFETY: `open` compared the sizes.
        unsafe { list(self.data.fd(), self.name) }
    }
}

/// The keys of `map` must be as long as `K`, its values as `V`.
unsafe fn put<K: Plain, V: Plain>(
    map: impl AsFd,
    name: &'static str,
    rows: impl IntoIterator<Item = (K, V)>,
) -> Result<(), MapsError> {
    let (keys, values): (Vec<K>, Vec<V>) = rows.into_iter().unzip();
    // SAFETY: The caller compared the sizes, there is a value for each key, and `Plain` is what has no bytes that are not written.
    let result = unsafe { sys::update_batch(map, &keys, &values) };
    result.map_err(|source| MapsError::Row { op: "write", map: name, source })
}

/// The keys of `map` must be as long as `K`, its values as `V`.
unsafe fn list<K: Plain, V: Plain>(map: impl AsFd, name: &'static str) -> Result<Vec<(K, V)>, MapsError> {
    let failed = |source| MapsError::Row { op: "list", map: name, source };
    let map = map.as_fd();
    let (mut rows, mut room, mut position) = (Vec::new(), ROOM, None);
    loop {
        // SAFETY: The caller compared the sizes, and `Plain` is what any bytes are a value of.
        match unsafe { sys::lookup_batch(map, position, room, &mut rows) } {
            Ok(sys::Batch::More(next)) => position = Some(next),
            Ok(sys::Batch::Last) => return Ok(rows),
            // More than that stand in one place of the map.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => room = room.saturating_mul(2),
            Err(error) => return Err(failed(error)),
        }
        if room == u32::MAX {
            return Err(failed(io::ErrorKind::OutOfMemory.into()));
        }
    }
}
