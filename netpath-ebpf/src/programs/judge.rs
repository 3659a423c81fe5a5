//! What becomes of a frame of an endpoint: judged, counted, reported, remembered.

use netpath_ebpf::{
    abi::{Endpoint, direction, endpoint_flags, flow_outcome},
    drop_reason::DropReason,
    packet::Facts,
    verdict::{self, Decision, Fate},
};

use super::{
    Ethernet,
    account::{Drop, Size, counters, master_counters, report, rule_counters, rule_row},
    flows::{Place, SENT},
    globals,
    maps::{MASTERS, Scratch},
    rules::Maps,
};

/// Judges by `facts` what `row` sent: [`Decision::to_bits`].
///
/// A global function like [`super::read::read_skb`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_sent(row: *const Endpoint, facts: *const Facts) -> u32 {
    if row.is_null() || facts.is_null() {
        return Decision::CLOSED.to_bits();
    }
    // SAFETY: Both are map values; nothing writes to the facts now.
    unsafe { verdict::egress(&*facts, &*row, &Maps).to_bits() }
}

/// As [`judge_sent`], for what `row` shall receive.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_received(row: *const Endpoint, facts: *const Facts) -> u32 {
    if row.is_null() || facts.is_null() {
        return Decision::CLOSED.to_bits();
    }
    // SAFETY: As above.
    unsafe { verdict::ingress(&*facts, &*row, &Maps).to_bits() }
}

/// Reports `drop`, the facts of which are in `scratch`.
#[inline(always)]
pub(crate) fn tell(scratch: *mut Scratch, drop: Drop) {
    // SAFETY: This CPU's map value, and nothing else refers to it now.
    unsafe {
        // Field by field: a copy of the whole would be made on the stack first, its padding by `memset`.
        let to = &raw mut (*scratch).drop;
        (*to).packets = drop.packets;
        (*to).macs = drop.macs;
        (*to).endpoint = drop.endpoint;
        (*to).generation = drop.generation;
        (*to).reason = drop.reason;
        (*to).direction = drop.direction;
        (*to).audited = drop.audited;
        (*to).rule = drop.rule;
        report(&*scratch);
    }
}

/// Whether the MAC is the host's. Then a drop is a mistake: it passes and is counted as an alert.
#[inline(always)]
fn is_hosts(row: &Endpoint, mac_raw: u64) -> bool {
    if row.flags & endpoint_flags::PASSTHRU != 0 {
        return false;
    }
    let Some(master) = MASTERS.get(u32::from(globals::master())) else { return false };
    if !verdict::is_host(master, mac_raw) {
        return false;
    }
    if let Some(totals) = master_counters() {
        totals.host_dropped += 1;
    }
    true
}

/// An endpoint, and how its frames are judged. That is asked once for each frame: the row may be replaced meanwhile, also by that of
/// another endpoint, and a frame that was not read would be judged by what is known of another one.
#[derive(Clone, Copy)]
pub(crate) struct Party<'a> {
    /// Its row.
    pub row: &'a Endpoint,
    /// Whether its frames are read.
    pub judged: bool,
    mode: u8,
}

impl<'a> Party<'a> {
    #[inline(always)]
    pub(crate) fn of(row: &'a Endpoint) -> Self {
        // SAFETY: A map value; volatile because it is read once.
        let mode = unsafe { core::ptr::read_volatile(&raw const row.mode) };
        Self { row, judged: verdict::is_judged(row.kind, mode), mode }
    }
}

/// What is done with a frame that an endpoint sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// It passes.
    Passed,
    /// It is dropped in silence.
    Dropped,
    /// It is dropped, and its sender is told.
    Rejected,
}

/// Remembers the verdict at `place`, if it is one that needs no report.
#[inline(always)]
fn remember(row: &Endpoint, decision: Decision, fate: Fate, scratch: *mut Scratch, place: Place, way: usize) {
    let rule = decision.rule().map_or(0, |rule| rule_row(row.zone, rule));
    let is_zones = decision.reason() == DropReason::ZoneDeny as u8;
    match fate {
        Fate::Pass => place.remember(scratch, way, row.id, rule),
        // Only who sent something is told.
        Fate::Drop if is_zones && (way != SENT || !decision.rejects()) => {
            place.remember(scratch, way, row.id, rule | flow_outcome::DENIED);
        }
        Fate::Audit | Fate::Drop => {}
    }
}

/// Judges what `party` sent, as its facts are in `scratch`, and counts it, a pass only where `counts`.
#[inline(always)]
pub(crate) fn sent(
    party: Party<'_>,
    ethernet: &Ethernet,
    scratch: *mut Scratch,
    size: Size,
    counts: bool,
    place: Place,
) -> Sent {
    let Party { row, judged, mode } = party;
    let decision = match judged {
        // SAFETY: This CPU's map value.
        true => Decision::from_bits(judge_sent(row, unsafe { &raw const (*scratch).facts })),
        false => Decision::PASS,
    };
    let reason = decision.reason();
    let fate = verdict::fate(mode, reason);
    if fate == Fate::Drop && is_hosts(row, ethernet.source_raw) {
        return Sent::Passed;
    }
    remember(row, decision, fate, scratch, place, SENT);
    if fate != Fate::Drop && !counts {
        return Sent::Passed;
    }
    if let Some(rule) = decision.rule()
        && let Some(count) = rule_counters(rule_row(row.zone, rule))
    {
        count.count(direction::TX, size.packets, size.bytes);
    }
    if let Some(count) = counters(row.id) {
        match fate {
            Fate::Drop => count.tx_dropped += size.packets,
            Fate::Pass | Fate::Audit => {
                count.tx_packets += size.packets;
                count.tx_bytes += size.bytes;
            }
        }
        if fate == Fate::Audit {
            count.tx_audited += size.packets;
        }
    }
    if fate != Fate::Pass {
        let drop = Drop {
            packets: size.packets,
            endpoint: row.id,
            generation: row.generation,
            macs: ethernet.macs(),
            reason,
            direction: direction::TX,
            audited: u8::from(fate == Fate::Audit),
            rule: decision.rule().unwrap_or(0),
            pad: [0; 4],
        };
        tell(scratch, drop);
    }
    match (fate, decision.rejects()) {
        (Fate::Pass | Fate::Audit, _) => Sent::Passed,
        (Fate::Drop, false) => Sent::Dropped,
        (Fate::Drop, true) => Sent::Rejected,
    }
}

/// Judges what is for `party`, and counts it, a pass only where `claim` says that it is counted here; remembers it at a place, of which the
/// key stands so in the scratch. True: it passes.
#[inline(always)]
pub(crate) fn received(
    party: Party<'_>,
    ethernet: &Ethernet,
    scratch: *mut Scratch,
    size: Size,
    claim: impl FnOnce() -> bool,
    (place, way): (Place, usize),
) -> bool {
    let Party { row, judged, mode } = party;
    let decision = match judged {
        // SAFETY: This CPU's map value.
        true => Decision::from_bits(judge_received(row, unsafe { &raw const (*scratch).facts })),
        false => Decision::PASS,
    };
    let reason = decision.reason();
    let fate = verdict::fate(mode, reason);
    if fate == Fate::Drop && is_hosts(row, ethernet.destination_raw) {
        return true;
    }
    remember(row, decision, fate, scratch, place, way);
    // What passes here unclaimed is counted by the next hook, audits included.
    if fate != Fate::Drop && !claim() {
        return true;
    }
    if let Some(rule) = decision.rule()
        && let Some(count) = rule_counters(rule_row(row.zone, rule))
    {
        count.count(direction::RX, size.packets, size.bytes);
    }
    if let Some(count) = counters(row.id) {
        match fate {
            Fate::Drop => count.rx_dropped += size.packets,
            Fate::Pass | Fate::Audit => {
                count.rx_packets += size.packets;
                count.rx_bytes += size.bytes;
            }
        }
        if fate == Fate::Audit {
            count.rx_audited += size.packets;
        }
    }
    if fate != Fate::Pass {
        let drop = Drop {
            packets: size.packets,
            endpoint: row.id,
            generation: row.generation,
            macs: ethernet.macs(),
            reason,
            direction: direction::RX,
            audited: u8::from(fate == Fate::Audit),
            rule: decision.rule().unwrap_or(0),
            pad: [0; 4],
        };
        tell(scratch, drop);
    }
    fate != Fate::Drop
}
