//! Many rows of a hash map by one system call (`BPF_MAP_LOOKUP_BATCH`, Linux 5.6), where one after the other takes two for
//! each and begins anew when a row is removed meanwhile.

use std::io;

use aya::maps::{HashMap, IterableMap, MapData};

use super::{
    maps::{MapsError, Plain, Raw},
    sys,
};

/// Rows that are asked for at once: as much memory as this is taken for a moment.
const ROOM: u32 = 256;

/// Every row. One that is written or removed meanwhile may be in it or not; all others are, once.
pub(super) fn rows<K: Plain, V: Plain>(
    map: &HashMap<MapData, Raw<K>, Raw<V>>,
    name: &'static str,
) -> Result<Vec<(K, V)>, MapsError> {
    let failed = |source| MapsError::Row { op: "list", map: name, source };
    let (mut rows, mut room, mut position) = (Vec::new(), ROOM, None);
    loop {
        // SAFETY: The map's type says how long its keys and values are, which was compared when it was opened, and `Plain` is
        // what any bytes are a value of.
        match unsafe { sys::lookup_batch(map.map().fd(), position, room, &mut rows) } {
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
