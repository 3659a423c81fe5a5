//! Bases: what was counted in maps that the present ones have replaced.
//!
//! They are maps beside those of the counters, made by user space when a tree takes the place of another, and no
//! program knows them: they go with the counters they belong to, at an uninstall or a reboot, and change places with
//! them in the same step. Whoever reads a counter adds its base; [`super::maps::Maps`] does.

use std::{io, path::Path};

use aya::{
    maps::{MapData, MapError, MapType},
    util::nr_cpus,
};

use super::{
    maps::{MapsError, pin_of},
    sys,
};

/// What a row of a map of counters belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// An endpoint: the row is its id.
    Endpoint,
    /// A master: the row is its dense id.
    Master,
    /// A rule of a zone: the row is that of `rules`.
    Rule,
}

/// A map of counters: rows of 64-bit words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Its name.
    pub map: &'static str,
    /// Name of the map of its bases.
    pub base: &'static str,
    /// Words of a row.
    pub words: usize,
    /// The first word that only grows.
    pub first: usize,
    /// Each CPU has a row of its own: `row * CPUs + CPU`. Of a per-CPU map a row is all of them by itself.
    pub per_cpu: bool,
    /// What a row belongs to.
    pub of: Of,
}

/// Every map whose contents outlive it.
pub const COUNTED: &[Counted] = &[COUNTERS, MASTER_COUNTERS, DROPS, REJECTS, RULE_COUNTERS];

pub(super) const COUNTERS: Counted =
    Counted { map: "counters", base: "base_counters", words: 8, first: 0, per_cpu: true, of: Of::Endpoint };
pub(super) const MASTER_COUNTERS: Counted = Counted {
    map: "master_counters",
    base: "base_masters",
    words: 8,
    first: 0,
    per_cpu: true,
    of: Of::Master,
};
pub(super) const DROPS: Counted =
    Counted { map: "drops", base: "base_drops", words: 128, first: 0, per_cpu: false, of: Of::Endpoint };
/// The bucket and the time of its last refill are no counters.
pub(super) const REJECTS: Counted =
    Counted { map: "rejects", base: "base_rejects", words: 4, first: 2, per_cpu: false, of: Of::Endpoint };
pub(super) const RULE_COUNTERS: Counted =
    Counted { map: "rule_counters", base: "base_rules", words: 4, first: 0, per_cpu: false, of: Of::Rule };

/// A pinned array of rows of 64-bit words.
#[derive(Debug)]
pub struct Rows {
    data: MapData,
    /// The kernel's number for it.
    id: u32,
    name: &'static str,
    words: usize,
    /// Rows that are added up to one.
    copies: u32,
    /// Values that one look-up yields, to be added up as well.
    lanes: usize,
    rows: u32,
}

impl Rows {
    /// Opens one; `None` if there is no such pin.
    pub fn open(
        pins: &Path,
        name: &'static str,
        words: usize,
        copies: u32,
    ) -> Result<Option<Self>, MapsError> {
        let path = pin_of(pins, name);
        if !path.exists() {
            return Ok(None);
        }
        let failed = |source| MapsError::Open { path: path.clone(), source };
        let data = MapData::from_pin(&path).map_err(failed)?;
        let info = data.info().map_err(failed)?;
        let expected = words * 8;
        if info.value_size() as usize != expected {
            let size = info.value_size() as usize;
            let source = MapError::InvalidValueSize { size, expected };
            return Err(MapsError::Layout { path, source });
        }
        let lanes = match info.map_type().map_err(failed)? {
            MapType::PerCpuArray => {
                nr_cpus().map_err(|(_, source)| MapsError::Row { op: "size", map: name, source })?
            }
            _ => 1,
        };
        let (id, rows) = (info.id(), info.max_entries() / copies.max(1));
        Ok(Some(Self { data, id, name, words, copies, lanes, rows }))
    }

    /// The kernel's number for it.
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// Rows there are.
    pub fn len(&self) -> u32 {
        self.rows
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The row, all CPUs together; zeros behind the end.
    pub fn get(&self, row: u32) -> Result<Vec<u64>, MapsError> {
        let mut total = vec![0u64; self.words];
        if self.rows <= row {
            return Ok(total);
        }
        let mut words = vec![0u64; self.words * self.lanes];
        for copy in 0..self.copies {
            let index = row * self.copies + copy;
            sys::read_words(self.data.fd(), index, &mut words).map_err(self.failed("read"))?;
            for lane in words.chunks(self.words) {
                for (sum, word) in total.iter_mut().zip(lane) {
                    *sum = sum.wrapping_add(*word);
                }
            }
        }
        Ok(total)
    }

    /// Writes a value; of a per-CPU map that of one CPU, and zeros for the others.
    pub fn set(&self, index: u32, words: &[u64]) -> Result<(), MapsError> {
        // As many as the kernel reads.
        let mut all = words.to_vec();
        all.resize(self.words * self.lanes, 0);
        sys::write_words(self.data.fd(), index, &all).map_err(self.failed("write"))
    }

    /// Writes zeros, on every CPU, to a row of an array that nothing counts in.
    pub fn clear(&self, row: u32) -> Result<(), MapsError> {
        match self.copies {
            1 => self.set(row, &vec![0; self.words]),
            // However many CPUs there are it is one call.
            copies => sys::clear_words(self.data.fd(), row * copies..(row + 1) * copies, self.words)
                .map_err(self.failed("write")),
        }
    }

    /// Its memory, for reading.
    pub(super) fn mapped(&self) -> Result<sys::Mapped, MapsError> {
        let length = (self.rows * self.copies) as usize * self.words * 8;
        sys::Mapped::new(self.data.fd(), length).map_err(|source| MapsError::Mmap { map: self.name, source })
    }

    fn failed(&self, op: &'static str) -> impl Fn(io::Error) -> MapsError {
        let map = self.name;
        move |source| MapsError::Row { op, map, source }
    }
}

/// The bases of a tree; a tree that has never taken another's place has none.
#[derive(Debug)]
pub struct Bases(Vec<(Counted, Rows)>);

impl Bases {
    /// Opens those pinned below `pins`.
    pub fn open(pins: &Path) -> Result<Self, MapsError> {
        let mut found = Vec::new();
        for counted in COUNTED {
            if let Some(rows) = Rows::open(pins, counted.base, counted.words, 1)? {
                found.push((*counted, rows));
            }
        }
        Ok(Self(found))
    }

    /// Makes them for the tree at `pins`, as many rows as its counters have.
    pub fn make(pins: &Path, cpus: u32) -> Result<Self, MapsError> {
        for counted in COUNTED {
            let copies = if counted.per_cpu { cpus } else { 1 };
            let Some(rows) = Rows::open(pins, counted.map, counted.words, copies)? else { continue };
            let path = pin_of(pins, counted.base);
            let size = u32::try_from(counted.words * 8).unwrap_or(u32::MAX);
            let made = sys::make_array(size, rows.len()).and_then(|map| sys::pin(&map, &path));
            made.map_err(|source| MapsError::Row { op: "make", map: counted.base, source })?;
        }
        Self::open(pins)
    }

    /// The bases of a map of counters.
    pub fn of(&self, counted: &Counted) -> Option<&Rows> {
        self.0.iter().find(|(own, _)| own == counted).map(|(_, rows)| rows)
    }

    /// Adds the base of a row to what was counted.
    pub(super) fn add(&self, counted: &Counted, row: u32, words: &mut [u64]) -> Result<(), MapsError> {
        if let Some(base) = self.of(counted) {
            for (word, base) in words.iter_mut().zip(base.get(row)?).skip(counted.first) {
                *word = word.wrapping_add(base);
            }
        }
        Ok(())
    }

    /// Forgets what the last holder of a row counted.
    pub(super) fn forget(&self, counted: &Counted, row: u32) -> Result<(), MapsError> {
        self.of(counted).map_or(Ok(()), |rows| rows.clear(row))
    }

    /// Forgets what the last holder of an endpoint id counted.
    pub(super) fn forget_endpoint(&self, id: u32) -> Result<(), MapsError> {
        for (counted, _) in self.0.iter().filter(|(counted, _)| counted.of == Of::Endpoint) {
            self.forget(counted, id)?;
        }
        Ok(())
    }
}
