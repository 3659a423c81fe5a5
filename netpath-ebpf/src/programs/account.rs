//! Counting and reporting: count first, then limit, then emit.

use core::arch::asm;

use aya_ebpf::helpers::bpf_get_smp_processor_id;
use netpath_ebpf::{
    abi::{Counters, DropEvent, MasterCounters, REASON_SLOTS, direction},
    bits::{bytes4, bytes16},
    packet::{Facts, bit, l3},
};

use super::{
    globals,
    maps::{BUDGETS, COUNTERS, DROPS, EVENTS, MASTER_COUNTERS},
};

/// How much one frame counts for.
#[derive(Clone, Copy)]
pub struct Size {
    /// Packets on the wire.
    pub packets: u64,
    /// Bytes on the wire without FCS.
    pub bytes: u64,
}

/// This CPU's counters of an endpoint.
#[inline(always)]
pub fn counters(id: u32) -> Option<&'static mut Counters> {
    // SAFETY: The slot is this CPU's alone, and programs on one CPU do not interrupt each other.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let slot = COUNTERS.get_ptr_mut(id.wrapping_mul(globals::cpus()).wrapping_add(cpu))?;
    // SAFETY: As above.
    Some(unsafe { &mut *slot })
}

/// This CPU's counters of the master.
#[inline(always)]
pub fn master_counters() -> Option<&'static mut MasterCounters> {
    // SAFETY: As in `counters`.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let index = u32::from(globals::master()) * globals::cpus() + cpu;
    let slot = MASTER_COUNTERS.get_ptr_mut(index)?;
    // SAFETY: As above.
    Some(unsafe { &mut *slot })
}

/// One drop, or what would have been one.
#[derive(Clone, Copy)]
pub struct Drop {
    /// Endpoint id; 0 = nobody.
    pub endpoint: u32,
    /// Its generation.
    pub generation: u32,
    /// Number of the reason.
    pub reason: u8,
    /// One of [`direction`].
    pub direction: u8,
    /// The packet passes all the same.
    pub audited: bool,
}

/// Adds to a counter that all CPUs share. `AtomicU64` does not exist for this target.
#[inline(always)]
fn add(counter: *mut u64, packets: u64) {
    // SAFETY: `counter` points into a map value.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) packets, options(nostack)) };
}

/// Counts a drop by reason and emits an event if the endpoint's budget allows.
#[inline(always)]
pub fn report(drop: Drop, packets: u64, facts: &Facts, macs: [[u8; 6]; 2]) {
    let slot = usize::from(drop.reason) & (REASON_SLOTS - 1);
    if let Some(row) = DROPS.get_ptr_mut(drop.endpoint) {
        // SAFETY: `row` points to a map value; the index is masked.
        let counter = unsafe {
            match (drop.direction, drop.audited) {
                (direction::TX, false) => &raw mut (*row).tx_dropped[slot],
                (direction::TX, true) => &raw mut (*row).tx_audited[slot],
                (_, false) => &raw mut (*row).rx_dropped[slot],
                (_, true) => &raw mut (*row).rx_audited[slot],
            }
        };
        add(counter, packets);
    }
    let Some(budget) = BUDGETS.get_ptr_mut(drop.endpoint) else { return };
    // SAFETY: As above. A race between CPUs may lose a decrement: one event more, never a wrap.
    let left = unsafe {
        match drop.direction {
            direction::TX => &mut (*budget).tx[slot],
            _ => &mut (*budget).rx[slot],
        }
    };
    let Some(totals) = master_counters() else { return };
    if *left <= 0 {
        totals.events_limited += 1;
        return;
    }
    *left -= 1;
    let Some(mut entry) = EVENTS.reserve(0) else {
        totals.events_lost += 1;
        return;
    };
    totals.events_emitted += 1;
    entry.write(event(drop, facts, macs));
    entry.submit(0);
}

#[inline(always)]
fn event(drop: Drop, facts: &Facts, macs: [[u8; 6]; 2]) -> DropEvent {
    let (source, destination) = match facts.l3 {
        l3::V6 => {
            // What an error quotes is in `target6` too, and is not where the packet goes.
            let asks = facts.bits & (bit::SOLICITATION | bit::ADVERTISEMENT) != 0
                && facts.target6[0] | facts.target6[1] != 0;
            (bytes16(facts.source6), bytes16(if asks { facts.target6 } else { facts.destination6 }))
        }
        l3::NONE => ([0; 16], [0; 16]),
        _ => (mapped(facts.source4), mapped(facts.destination4)),
    };
    DropEvent {
        endpoint: drop.endpoint,
        generation: drop.generation,
        master: globals::master(),
        ethertype: facts.ethertype,
        reason: drop.reason,
        direction: drop.direction,
        audited: u8::from(drop.audited),
        protocol: facts.protocol,
        source,
        destination,
        source_port: facts.source_port,
        destination_port: facts.destination_port,
        length: facts.length,
        source_mac: macs[0],
        destination_mac: macs[1],
        pad: [0; 4],
    }
}

/// `::ffff:a.b.c.d`
#[inline(always)]
fn mapped(address: u32) -> [u8; 16] {
    let a = bytes4(address);
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a[0], a[1], a[2], a[3]]
}
