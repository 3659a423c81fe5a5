//! Counters of endpoints and masters, read without a system call per value.

use netpath_ebpf::abi::{Counters, MasterCounters};

use super::{
    bases::{self, Bases, Rows},
    maps::MapsError,
    sys::Mapped,
};

/// The counters as they stand, read from mapped memory.
pub struct CounterView {
    endpoints: (Mapped, Option<Mapped>),
    masters: (Mapped, Option<Mapped>),
    cpus: usize,
}

impl CounterView {
    /// Maps what is counted now and what was counted before.
    pub(super) fn new(endpoints: &Rows, masters: &Rows, bases: &Bases, cpus: u32) -> Result<Self, MapsError> {
        let base = |counted| bases.of(counted).map(Rows::mapped).transpose();
        Ok(Self {
            endpoints: (endpoints.mapped()?, base(&bases::COUNTERS)?),
            masters: (masters.mapped()?, base(&bases::MASTER_COUNTERS)?),
            cpus: cpus as usize,
        })
    }

    /// Sum over all CPUs for endpoint `id`, and what was counted before these maps.
    pub fn endpoint(&self, id: u32) -> Counters {
        let w = self.sum(&self.endpoints, id as usize);
        Counters {
            tx_packets: w[0],
            tx_bytes: w[1],
            rx_packets: w[2],
            rx_bytes: w[3],
            tx_dropped: w[4],
            rx_dropped: w[5],
            tx_audited: w[6],
            rx_audited: w[7],
        }
    }

    /// The same for master `id`.
    pub fn master(&self, id: u16) -> MasterCounters {
        let w = self.sum(&self.masters, usize::from(id));
        MasterCounters {
            host_packets: w[0],
            host_dropped: w[1],
            unknown_passed: w[2],
            unknown_dropped: w[3],
            group_packets: w[4],
            events_emitted: w[5],
            events_limited: w[6],
            events_lost: w[7],
        }
    }

    fn sum(&self, (map, base): &(Mapped, Option<Mapped>), id: usize) -> [u64; 8] {
        let mut total: [u64; 8] = base.as_ref().and_then(|base| base.words(id)).unwrap_or_default();
        for cpu in 0..self.cpus {
            let words: [u64; 8] = map.words(id * self.cpus + cpu).unwrap_or_default();
            for (sum, word) in total.iter_mut().zip(words) {
                *sum = sum.wrapping_add(word);
            }
        }
        total
    }
}
