//! Counting and reporting: count first, then limit, then emit.

use core::arch::asm;

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_get_smp_processor_id, bpf_skb_load_bytes},
};
use netpath_ebpf::{
    abi::{Counters, DropEvent, MasterCounters, REASON_SLOTS, RuleCounters, ZONE_RULES, direction},
    bits::opaque,
    packet::{Facts, bit, l3},
};

use super::{
    globals,
    maps::{BUDGETS, COUNTERS, DROPS, EVENTS, MASTER_COUNTERS, RULE_COUNTERS, Scratch},
};

/// How much one frame counts for.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    /// Packets on the wire.
    pub packets: u64,
    /// Bytes on the wire without FCS.
    pub bytes: u64,
}

/// What a frame counts for that leaves.
#[inline(always)]
pub(crate) fn sent_size(skb: *mut __sk_buff) -> Size {
    // SAFETY: The context is valid.
    let (segments, bytes) = unsafe { ((*skb).gso_segs, (*skb).wire_len) };
    Size { packets: u64::from(if segments == 0 { 1 } else { segments }), bytes: u64::from(bytes) }
}

/// What a received frame counts for: merged packets (GRO) had a header each on the wire.
#[inline(always)]
pub(crate) fn received_size(skb: *mut __sk_buff) -> Size {
    // SAFETY: The context is valid.
    let (length, segments) = unsafe { ((*skb).len, (*skb).gso_segs) };
    if segments <= 1 {
        return Size { packets: 1, bytes: u64::from(length) };
    }
    let headers = u64::from(header_length(skb));
    let segments = u64::from(segments);
    Size { packets: segments, bytes: u64::from(length) + (segments - 1) * headers }
}

/// Length of Ethernet, IP and transport headers of a merged TCP or UDP packet.
#[inline(never)]
fn header_length(skb: *mut __sk_buff) -> u32 {
    let byte = |offset: u32| {
        let mut value = 0u8;
        // SAFETY: One byte is written to one byte.
        let ok = unsafe { bpf_skb_load_bytes(skb.cast(), offset, (&raw mut value).cast(), 1) };
        if ok == 0 { u32::from(value) } else { 0 }
    };
    let (transport, protocol) = match byte(14) >> 4 {
        4 => (14 + (byte(14) & 15) * 4, byte(23)),
        _ => (54, byte(20)),
    };
    match protocol {
        6 => transport + (byte(transport + 12) >> 4) * 4,
        _ => transport + 8,
    }
}

/// This CPU's counters of an endpoint.
#[inline(always)]
pub(crate) fn counters(id: u32) -> Option<&'static mut Counters> {
    // SAFETY: A helper without arguments.
    counters_on(unsafe { bpf_get_smp_processor_id() }, id)
}

/// The counters of an endpoint on `cpu`, which is this one.
#[inline(always)]
pub(crate) fn counters_on(cpu: u32, id: u32) -> Option<&'static mut Counters> {
    let slot = COUNTERS.get_ptr_mut(id.wrapping_mul(globals::cpus()).wrapping_add(cpu))?;
    // SAFETY: The slot is this CPU's alone, and programs on one CPU do not interrupt each other.
    Some(unsafe { &mut *slot })
}

/// The row of `rule_counters` of a rule of a zone.
#[inline(always)]
pub(crate) fn rule_row(zone: u32, rule: u8) -> u32 {
    zone.wrapping_mul(ZONE_RULES).wrapping_add(u32::from(rule) & (ZONE_RULES - 1))
}

/// This CPU's row of `rule_counters`.
#[inline(always)]
pub(crate) fn rule_counters(row: u32) -> Option<&'static mut RuleCounters> {
    let slot = RULE_COUNTERS.get_ptr_mut(row)?;
    // SAFETY: As in `counters`.
    Some(unsafe { &mut *slot })
}

/// This CPU's counters of the master.
#[inline(always)]
pub(crate) fn master_counters() -> Option<&'static mut MasterCounters> {
    // SAFETY: As in `counters`.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let index = u32::from(globals::master()) * globals::cpus() + cpu;
    let slot = MASTER_COUNTERS.get_ptr_mut(index)?;
    // SAFETY: As above.
    Some(unsafe { &mut *slot })
}

/// One drop, or what would have been one.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Drop {
    /// Packets on the wire.
    pub packets: u64,
    /// Source and destination MAC: six bytes in memory order, two zero bytes.
    pub macs: [u64; 2],
    /// Endpoint id; 0 = nobody.
    pub endpoint: u32,
    /// Its generation.
    pub generation: u32,
    /// Number of the reason.
    pub reason: u8,
    /// One of [`direction`].
    pub direction: u8,
    /// 1 = the packet passes all the same.
    pub audited: u8,
    /// The rule of the zone that denied it.
    pub rule: u8,
    /// Always zero.
    pub pad: [u8; 4],
}

/// Adds to a counter that all CPUs share. `AtomicU64` does not exist for this target.
#[inline(always)]
pub(crate) fn add(counter: *mut u64, packets: u64) {
    // SAFETY: `counter` points into a map value.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) packets, options(nostack)) };
}

/// Counts the drop in `scratch` by reason and emits an event if the endpoint's budget allows.
///
/// A function of its own, with one pointer as argument: three copies of it in one program, each with an
/// event on its stack, would not fit the 512 bytes that a program and what it calls may use together.
#[inline(never)]
pub(crate) fn report(scratch: &Scratch) -> u32 {
    let (drop, facts) = (&scratch.drop, &scratch.facts);
    let slot = usize::from(drop.reason) & (REASON_SLOTS - 1);
    if let Some(row) = DROPS.get_ptr_mut(drop.endpoint) {
        // SAFETY: `row` points to a map value; the index is masked.
        let counter = unsafe {
            match (drop.direction, drop.audited) {
                (direction::TX, 0) => &raw mut (*row).tx_dropped[slot],
                (direction::TX, _) => &raw mut (*row).tx_audited[slot],
                (_, 0) => &raw mut (*row).rx_dropped[slot],
                (_, _) => &raw mut (*row).rx_audited[slot],
            }
        };
        add(counter, drop.packets);
    }
    let Some(budget) = BUDGETS.get_ptr_mut(drop.endpoint) else { return 0 };
    // SAFETY: As above. A race between CPUs may lose a decrement: one event more, never a wrap.
    let left = unsafe {
        match drop.direction {
            direction::TX => &mut (*budget).tx[slot],
            _ => &mut (*budget).rx[slot],
        }
    };
    let Some(totals) = master_counters() else { return 0 };
    if *left <= 0 {
        totals.events_limited += 1;
        return 0;
    }
    *left -= 1;
    let Some(mut entry) = EVENTS.reserve(0) else {
        totals.events_lost += 1;
        return 0;
    };
    totals.events_emitted += 1;
    // SAFETY: Reserved for one event; every byte of it is written before it is submitted.
    unsafe { fill(entry.as_mut_ptr(), drop, facts) };
    entry.submit(0);
    1
}

/// Writes the event where it lies: built on the stack first it would take most of it.
#[inline(always)]
unsafe fn fill(event: *mut DropEvent, drop: &Drop, facts: &Facts) {
    // What an error quotes is in `target6` too, and is not where the packet goes.
    let asks = facts.bits & (bit::SOLICITATION | bit::ADVERTISEMENT) != 0
        && facts.target6[0] | facts.target6[1] != 0;
    // SAFETY: The caller's pointer is valid for writes; the two addresses are plain bytes.
    unsafe {
        (*event).endpoint = drop.endpoint;
        (*event).generation = drop.generation;
        (*event).master = globals::master();
        (*event).ethertype = facts.ethertype;
        (*event).reason = drop.reason;
        (*event).direction = drop.direction;
        (*event).audited = drop.audited;
        (*event).protocol = facts.protocol;
        let source = (&raw mut (*event).source).cast::<u32>();
        let destination = (&raw mut (*event).destination).cast::<u32>();
        match facts.l3 {
            l3::V6 => {
                write6(source, facts.source6);
                write6(destination, if asks { facts.target6 } else { facts.destination6 });
            }
            l3::NONE => {
                // See `Facts::reset`.
                let zero = opaque(0);
                write6(source, [zero, zero]);
                write6(destination, [zero, zero]);
            }
            _ => {
                write4(source, facts.source4);
                write4(destination, facts.destination4);
            }
        }
        (*event).source_port = facts.source_port;
        (*event).destination_port = facts.destination_port;
        (*event).length = facts.length;
        (*event).source_mac = mac(drop.macs[0]);
        (*event).destination_mac = mac(drop.macs[1]);
        // With its padding: one word.
        (&raw mut (*event).rule).cast::<u32>().write(u32::from_ne_bytes([drop.rule, 0, 0, 0]));
    }
}

/// Writes an IPv6 address in memory order.
#[inline(always)]
unsafe fn write6(to: *mut u32, address: [u64; 2]) {
    // SAFETY: The caller's pointer is valid for sixteen bytes and aligned to four.
    unsafe {
        to.write(address[0] as u32);
        to.add(1).write((address[0] >> 32) as u32);
        to.add(2).write(address[1] as u32);
        to.add(3).write((address[1] >> 32) as u32);
    }
}

/// Writes `::ffff:a.b.c.d`.
#[inline(always)]
unsafe fn write4(to: *mut u32, address: u32) {
    // SAFETY: As in `write6`.
    unsafe {
        to.write(0);
        to.add(1).write(0);
        to.add(2).write(u32::from_ne_bytes([0, 0, 0xff, 0xff]));
        to.add(3).write(address);
    }
}

#[inline(always)]
fn mac(raw: u64) -> [u8; 6] {
    let b = raw.to_ne_bytes();
    [b[0], b[1], b[2], b[3], b[4], b[5]]
}
