//! Rows of endpoints, and the ids that they are counted under.

use aya::maps::MapError;
use netpath_ebpf::abi::{DropCounters, Endpoint, EndpointKey, Owner, REASON_SLOTS, Reject};

use super::{
    batch,
    maps::{EVENT_BURST, Maps, MapsError, Raw, get, set},
};

impl Maps {
    /// Every endpoint and foreign row.
    pub fn endpoints(&self) -> Result<Vec<(EndpointKey, Endpoint)>, MapsError> {
        batch::rows(&self.endpoints, "endpoints")
    }

    /// The row of `key`.
    pub fn endpoint(&self, key: EndpointKey) -> Result<Option<Endpoint>, MapsError> {
        match self.endpoints.get(&Raw(key), 0) {
            Ok(Raw(row)) => Ok(Some(row)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(MapsError::Access { op: "read", map: "endpoints", source }),
        }
    }

    /// Gives `row` a fresh id and generation, zeroes that id's counters, and puts the row in force.
    ///
    /// Ids go round: one that was freed is used again only after all others, so that no program that still
    /// runs with the old row counts for its successor.
    pub fn add_endpoint(&mut self, key: EndpointKey, mut row: Endpoint) -> Result<Endpoint, MapsError> {
        let mut meta = self.meta()?;
        let ids = self.owners.len();
        let mut id = meta.last_endpoint_id;
        for _ in 1..ids {
            id = if id + 1 < ids { id + 1 } else { 1 };
            let mut owner: Owner = get(&self.owners, "owners", id)?;
            // Whoever was ended half-way left an id that names a row which does not name it.
            if owner.key.master != 0 && self.endpoint(owner.key)?.is_some_and(|row| row.id == id) {
                continue;
            }
            owner.key = key;
            owner.generation = owner.generation.checked_add(1).unwrap_or(1);
            set(&mut self.owners, "owners", id, owner)?;
            meta.last_endpoint_id = id;
            set(&mut self.meta, "meta", 0, meta)?;
            self.reset(id)?;
            (row.id, row.generation) = (id, owner.generation);
            if !self.insert_endpoint(key, &row)? {
                let old = self.endpoint(key)?;
                self.set_endpoint(key, &row)?;
                old.map_or(Ok(()), |old| self.release(key, old.id))?;
            }
            return Ok(row);
        }
        Err(MapsError::Full { map: "endpoints", capacity: ids - 1, setting: "endpoints" })
    }

    /// Puts a row in force where `key` has none; whether that was so.
    fn insert_endpoint(&mut self, key: EndpointKey, row: &Endpoint) -> Result<bool, MapsError> {
        const BPF_NOEXIST: u64 = 1;
        self.change(|maps| match maps.endpoints.insert(Raw(key), Raw(*row), BPF_NOEXIST) {
            Ok(()) => Ok(true),
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EEXIST) => {
                Ok(false)
            }
            Err(source) => Err(MapsError::Access { op: "write", map: "endpoints", source }),
        })
    }

    /// Replaces the row of an endpoint that keeps its id.
    pub fn set_endpoint(&mut self, key: EndpointKey, row: &Endpoint) -> Result<(), MapsError> {
        self.change(|maps| {
            let written = maps.endpoints.insert(Raw(key), Raw(*row), 0);
            written.map_err(|source| MapsError::Access { op: "write", map: "endpoints", source })
        })
    }

    /// The same for many rows.
    pub fn set_endpoints(&mut self, rows: &[(EndpointKey, Endpoint)]) -> Result<(), MapsError> {
        self.change(|maps| batch::write(&maps.endpoints, "endpoints", rows.iter().copied()))
    }

    /// Removes the row of `key` if it still has `id`; a row that is gone, or another's, is fine.
    pub fn remove_endpoint(&mut self, key: EndpointKey, id: u32) -> Result<(), MapsError> {
        if self.endpoint(key)?.is_some_and(|row| row.id == id) {
            self.change(|maps| match maps.endpoints.remove(&Raw(key)) {
                Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
                Err(source) => Err(MapsError::Access { op: "remove from", map: "endpoints", source }),
            })?;
        }
        self.release(key, id)
    }

    fn release(&mut self, key: EndpointKey, id: u32) -> Result<(), MapsError> {
        let mut owner: Owner = get(&self.owners, "owners", id)?;
        if owner.key == key {
            owner.key = EndpointKey::new(0, [0; 6]);
            set(&mut self.owners, "owners", id, owner)?;
        }
        Ok(())
    }

    fn reset(&mut self, id: u32) -> Result<(), MapsError> {
        let [counters, _] = &self.counted;
        counters.clear(id)?;
        let zero = [0; REASON_SLOTS];
        let drops = DropCounters { tx_dropped: zero, rx_dropped: zero, tx_audited: zero, rx_audited: zero };
        set(&mut self.drops, "drops", id, drops)?;
        set(&mut self.rejects, "rejects", id, Reject::default())?;
        self.bases.forget_endpoint(id)?;
        self.grant(id, EVENT_BURST)
    }
}
