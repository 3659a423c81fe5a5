//! Verdicts that are remembered: what was found out of a plain packet holds for all packets of its flow.
//!
//! A row of `flows` is written after a whole verdict, with the `epoch` that was read before anything else of it. Whoever changes what a
//! verdict depends on makes `epoch` odd before, and even again, and another one, afterwards: while it is odd nothing is remembered, and
//! what was judged by the old rows was judged in an old epoch. What depends on one packet alone (its shape, who sent it, where its
//! checksum will be written) is looked at in each.

use core::{arch::asm, ptr};

use aya_ebpf::{
    bindings::{__sk_buff, xdp_action, xdp_md},
    helpers::bpf_get_smp_processor_id,
};
use netpath_ebpf::{
    abi::{Flow, FlowKey, cookie_by, direction, flow_hook, flow_outcome},
    bits::opaque,
    checksum,
    drop_reason::DropReason,
    flow::{Plain, row},
    packet::{ETH_IPV4, ETH_IPV6, IPV4_HEAD, IPV6_HEAD},
};

use super::{
    Ethernet, NEXT, SHOT,
    account::{Size, add, counters, counters_on, master_counters, rule_counters},
    frame::{Buff, Bytes, Context, Skb},
    globals,
    maps::{BUDGETS, DROPS, EPOCH, FLOW_ROWS, Scratch},
    packet, record, scratch, settle,
};

/// Which of the keys in the scratch is that of what was sent, of what is to be received, and of what is to be received from nobody of
/// this node.
pub(crate) const SENT: usize = 0;
pub(crate) const RECEIVED: usize = 1;
pub(crate) const OUTSIDE: usize = 2;

/// The value of `epoch` that a frame is judged in.
#[derive(Clone, Copy)]
pub(crate) struct Epoch(u32);

impl Epoch {
    /// The present one.
    #[inline(always)]
    pub(crate) fn now() -> Self {
        // SAFETY: A reference to a map value; volatile because it is read once, before what it vouches for.
        Self(EPOCH.get(0).map_or(0, |epoch| unsafe { ptr::read_volatile(epoch) }))
    }

    /// Whether something is being changed.
    #[inline(always)]
    fn is_changing(self) -> bool {
        self.0 & 1 != 0
    }

    /// `value`, by an instruction that needs the epoch: what is found by it, so a row and its zone, is read no sooner than the epoch, also
    /// by a processor that keeps no order among reads that do not depend on each other. Cookies, claims and the master's own row are not
    /// found by it; between their change and the end of it lie system calls, longer than any processor looks ahead.
    #[inline(always)]
    pub(crate) fn then(self, value: u16) -> u16 {
        let mut after = u64::from(self.0);
        // SAFETY: Arithmetic on one register.
        unsafe {
            asm!("{0} &= 0", "{0} |= {1}", inout(reg) after, in(reg) u64::from(value),
                options(nomem, nostack, preserves_flags));
        }
        after as u16
    }
}

/// Where a flow will be remembered; its key stands in the scratch, put there for the frame at hand.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// Index into `flows`.
    row: u32,
    epoch: u32,
}

impl Place {
    /// The frame is not plain, or its verdict depends on more than its flow. Its number is hidden: the compiler would write a constant anew
    /// at each way out of what asks for flows.
    #[inline(always)]
    fn nowhere() -> Self {
        Self { row: opaque(u32::MAX.into()) as u32, epoch: 0 }
    }

    /// The same, if `other` is nowhere; else nowhere.
    #[inline(always)]
    pub(crate) fn unless(self, other: Self) -> Self {
        let taken = u64::from(!other.row).wrapping_neg() >> 32;
        Self { row: self.row | taken as u32, ..self }
    }

    /// The same, of which the verifier does not know how it came about: or it walks all that follows once for each way.
    #[inline(always)]
    pub(crate) fn veiled(self, epoch: Epoch) -> Self {
        let mut nothing = u64::from(epoch.0);
        // SAFETY: Arithmetic on registers. What is left is zero, and the verifier does not compare registers that it subtracts.
        unsafe {
            asm!("{0} -= {1}", inout(reg) nothing, in(reg) opaque(u64::from(epoch.0)),
                options(nomem, nostack, preserves_flags));
        }
        Self { row: self.row.wrapping_add(nothing as u32), epoch: self.epoch.wrapping_add(nothing as u32) }
    }

    /// Remembers of what was [`SENT`], or is to be [`RECEIVED`], also from [`OUTSIDE`], that it is endpoint `id`'s, and what becomes of
    /// it ([`flow_outcome`]).
    #[inline(always)]
    pub(crate) fn remember(self, scratch: *mut Scratch, way: usize, id: u32, outcome: u32) {
        // Also nowhere, which is a row that is not there: to ask would be two ways to walk.
        // SAFETY: This CPU's map value.
        let key = unsafe { &(*scratch).flows[way] };
        write_flow(key, self.row, self.epoch, u64::from(id) << 32 | u64::from(outcome));
    }
}

/// Writes a row of `flows`. A global function, as those of `read`: the verifier walks it once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn write_flow(key: *const FlowKey, row: u32, epoch: u32, id_and_outcome: u64) -> u32 {
    if key.is_null() {
        return 0;
    }
    // SAFETY: A map value, and nothing writes to it now.
    let key = unsafe { &*key };
    let Some(flow) = FLOW_ROWS.get_ptr_mut(row) else { return 0 };
    // SAFETY: A map value that only this CPU writes to, and programs on one CPU do not interrupt each other.
    unsafe {
        (*flow).who = key.who;
        (*flow).addresses[0] = key.addresses[0];
        (*flow).addresses[1] = key.addresses[1];
        (*flow).addresses[2] = key.addresses[2];
        (*flow).addresses[3] = key.addresses[3];
        (*flow).evidence = key.evidence;
        (*flow).ports = key.ports;
        (*flow).epoch = epoch;
        (*flow).id = (id_and_outcome >> 32) as u32;
        (*flow).outcome = id_and_outcome as u32;
    }
    0
}

/// A flow that is remembered.
#[derive(Clone, Copy)]
struct Known {
    flow: &'static Flow,
    cpu: u32,
}

impl Known {
    #[inline(always)]
    fn is_denied(self) -> bool {
        self.flow.outcome & flow_outcome::DENIED != 0
    }
}

/// A plain packet, and the epoch that it is judged in.
struct Seen {
    plain: Plain,
    epoch: Epoch,
}

impl Seen {
    #[inline(always)]
    fn v4(head: &Bytes, length: u32, epoch: Epoch) -> Option<Self> {
        Plain::v4(head, length).map(|plain| Self { plain, epoch })
    }

    #[inline(always)]
    fn v6<C: Context>(frame: &super::Packet<C>, length: u32, epoch: Epoch) -> Option<Self> {
        Plain::v6(&frame.direct::<IPV6_HEAD>()?, length).map(|plain| Self { plain, epoch })
    }

    /// The row of its flow, or where that will be remembered. Whether it is IPv6 the compiler knows as well.
    #[inline(always)]
    fn find<const V6: bool>(
        &self,
        mac: u64,
        hook: u64,
        evidence: u64,
        way: usize,
        nowhere: Place,
    ) -> Result<Known, Place> {
        let key = self.plain.key(mac, globals::master(), hook, evidence);
        // SAFETY: A helper without arguments.
        let cpu = unsafe { bpf_get_smp_processor_id() };
        let bits = globals::flow_bits();
        let index = cpu << bits | row(&key, bits);
        let Some(flow) = FLOW_ROWS.get(index) else { return Err(nowhere) };
        let mut differs = (flow.who ^ key.who)
            | (flow.addresses[0] ^ key.addresses[0])
            | (flow.evidence ^ key.evidence)
            | u64::from((flow.ports ^ key.ports) | (flow.epoch ^ self.epoch.0));
        if V6 {
            differs |= (flow.addresses[1] ^ key.addresses[1])
                | (flow.addresses[2] ^ key.addresses[2])
                | (flow.addresses[3] ^ key.addresses[3]);
        }
        if differs == 0 { Ok(Known { flow, cpu }) } else { Err(self.place(&key, index, way, nowhere)) }
    }

    #[inline(always)]
    fn place(&self, key: &FlowKey, row: u32, way: usize, nowhere: Place) -> Place {
        let Some(scratch) = scratch() else { return nowhere };
        // SAFETY: This CPU's map value, and nothing else refers to it now. Field by field, or it would be made on the stack first.
        unsafe {
            let to = &raw mut (*scratch).flows[way];
            (*to).who = key.who;
            (*to).addresses[0] = key.addresses[0];
            (*to).addresses[1] = key.addresses[1];
            (*to).addresses[2] = key.addresses[2];
            (*to).addresses[3] = key.addresses[3];
            (*to).evidence = key.evidence;
            (*to).ports = key.ports;
        }
        Place { row, epoch: self.epoch.0 }
    }
}

/// Whether a tag stands beside the frame, or it is several on the wire: few of the latter carry much, and pay for their verdict.
#[inline(always)]
fn is_more(skb: *mut __sk_buff) -> bool {
    // SAFETY: The context is valid.
    unsafe { (*skb).vlan_present != 0 || (*skb).gso_size != 0 || (*skb).gso_segs > 1 }
}

/// Passes or drops, as a program of TC does, what an endpoint sends in a flow that is known; else where that will be remembered.
#[inline(always)]
pub(crate) fn egress(skb: *mut __sk_buff, epoch: Epoch) -> Result<i32, Place> {
    let nowhere = Place::nowhere();
    let frame = packet(Skb::new(skb), ptr::null_mut());
    let head = frame.direct::<IPV4_HEAD>().ok_or(nowhere)?;
    let ethernet = Ethernet::of(&head);
    let (mac, hook) = (ethernet.source_raw, flow_hook::EGRESS);
    if epoch.is_changing() || is_more(skb) || mac == globals::host_mac() {
        return Err(nowhere);
    }
    // SAFETY: The context is valid.
    let (length, wire_length) = unsafe { ((*skb).len, (*skb).wire_len) };
    let size = Size { packets: 1, bytes: u64::from(wire_length) };
    let cookie = record::cookie(skb).unwrap_or(0);
    let (known, transport) = match ethernet.ethertype {
        ETH_IPV4 => {
            let seen = Seen::v4(&head, length, epoch).ok_or(nowhere)?;
            (seen.find::<false>(mac, hook, cookie, SENT, nowhere)?, 34)
        }
        ETH_IPV6 => {
            let seen = Seen::v6(&frame, length, epoch).ok_or(nowhere)?;
            (seen.find::<true>(mac, hook, cookie, SENT, nowhere)?, 54)
        }
        _ => return Err(nowhere),
    };
    if !settle::is_checksum_behind(skb, |field| checksum::is_behind_ports(field, transport)) {
        return Err(nowhere);
    }
    if known.is_denied() {
        return if deny::<{ direction::TX }>(known, size) { Ok(SHOT) } else { Err(nowhere) };
    }
    count::<{ direction::TX }>(known, size);
    Ok(NEXT)
}

/// As [`egress`], for what the master receives and XDP has not judged; else where that will be remembered of who sent it, of who is to
/// have it, and of the latter if it comes from nobody here.
#[inline(always)]
pub(crate) fn ingress(skb: *mut __sk_buff, epoch: Epoch) -> Result<i32, [Place; 3]> {
    let nowhere = Place::nowhere();
    let none = [nowhere; 3];
    let frame = packet(Skb::new(skb), ptr::null_mut());
    let head = frame.direct::<IPV4_HEAD>().ok_or(none)?;
    let ethernet = Ethernet::of(&head);
    let is_hosts = ethernet.destination_raw == globals::host_mac();
    if epoch.is_changing() || is_more(skb) || ethernet.is_group() || is_hosts {
        return Err(none);
    }
    // SAFETY: The context is valid.
    let length = unsafe { (*skb).len };
    let size = Size { packets: 1, bytes: u64::from(length) };
    let cookie = record::cookie(skb).unwrap_or(0);
    let (sent, received) = match ethernet.ethertype {
        ETH_IPV4 => {
            let seen = Seen::v4(&head, length, epoch).ok_or(none)?;
            both::<false>(cookie, &ethernet, &seen, nowhere)?
        }
        ETH_IPV6 => {
            let seen = Seen::v6(&frame, length, epoch).ok_or(none)?;
            both::<true>(cookie, &ethernet, &seen, nowhere)?
        }
        _ => return Err(none),
    };
    let passes = !received.is_denied();
    match passes {
        true => count::<{ direction::RX }>(received, size),
        false if deny::<{ direction::RX }>(received, size) => {}
        false => return Err(none),
    }
    if let Some(sent) = sent {
        count::<{ direction::TX }>(sent, size);
    }
    Ok(if passes { NEXT } else { SHOT })
}

/// What is known of who is to have a frame, and of who sent it and may, if it is somebody here.
#[inline(always)]
fn both<const V6: bool>(
    cookie: u64,
    ethernet: &Ethernet,
    seen: &Seen,
    nowhere: Place,
) -> Result<(Option<Known>, Known), [Place; 3]> {
    let mut outside = nowhere;
    // What comes by a wire was sent by no socket that is known.
    if cookie == 0 {
        let (receiver, sender) = (ethernet.destination_raw, ethernet.source_raw);
        match seen.find::<V6>(receiver, flow_hook::OUTSIDE, sender, OUTSIDE, nowhere) {
            Ok(received) => return Ok((None, received)),
            Err(at) => outside = at,
        }
        // What tells cookies (Linux 6.2) is new enough for more: the verifier of 6.1 would walk 300,000 instructions, and not 105,000.
        if globals::cookie_by() == cookie_by::NOTHING {
            return Err([nowhere, nowhere, outside]);
        }
    }
    let sent = seen.find::<V6>(ethernet.source_raw, flow_hook::SENT, cookie, SENT, nowhere);
    // One after the other: the first packet of a flow has one place remembered, the second the other.
    let sent = sent.map_err(|at| [at, nowhere, outside])?;
    if sent.is_denied() {
        return Err([nowhere; 3]);
    }
    let receiver = ethernet.destination_raw;
    if sent.flow.id == 0 {
        let received = seen.find::<V6>(receiver, flow_hook::RECEIVED, 0, OUTSIDE, nowhere);
        return Ok((None, received.map_err(|at| [nowhere, nowhere, at])?));
    }
    let received = seen.find::<V6>(receiver, flow_hook::RECEIVED, 0, RECEIVED, nowhere);
    Ok((Some(sent), received.map_err(|at| [nowhere, at, nowhere])?))
}

/// As [`egress`], for what the master receives, at XDP. A pass is counted if `mark` could mark the frame for its MAC.
#[inline(always)]
pub(crate) fn xdp(
    buff: *mut xdp_md,
    epoch: Epoch,
    mark: impl FnOnce(u32, u64) -> bool,
) -> Result<u32, Place> {
    let nowhere = Place::nowhere();
    let frame = packet(Buff(buff), ptr::null_mut());
    let head = frame.direct::<IPV4_HEAD>().ok_or(nowhere)?;
    let ethernet = Ethernet::of(&head);
    let (mac, hook) = (ethernet.destination_raw, flow_hook::XDP);
    if epoch.is_changing() || ethernet.is_group() || mac == globals::host_mac() {
        return Err(nowhere);
    }
    let length = Buff(buff).length();
    let known = match ethernet.ethertype {
        ETH_IPV4 => {
            let seen = Seen::v4(&head, length, epoch).ok_or(nowhere)?;
            seen.find::<false>(mac, hook, 0, RECEIVED, nowhere)?
        }
        ETH_IPV6 => {
            let seen = Seen::v6(&frame, length, epoch).ok_or(nowhere)?;
            seen.find::<true>(mac, hook, 0, RECEIVED, nowhere)?
        }
        _ => return Err(nowhere),
    };
    let size = Size { packets: 1, bytes: u64::from(length) };
    if known.is_denied() {
        let told = deny::<{ direction::RX }>(known, size);
        return if told { Ok(xdp_action::XDP_DROP) } else { Err(nowhere) };
    }
    if mark(length, mac) {
        count::<{ direction::RX }>(known, size);
    }
    Ok(xdp_action::XDP_PASS)
}

/// Counts what passes.
#[inline(always)]
fn count<const DIRECTION: u8>(known: Known, size: Size) {
    let Known { flow, cpu } = known;
    let rule = flow.outcome & flow_outcome::RULE;
    if rule != 0
        && let Some(count) = rule_counters(rule)
    {
        count.count(DIRECTION, size.packets, size.bytes);
    }
    if let Some(count) = counters_on(cpu, flow.id) {
        match DIRECTION {
            direction::TX => {
                count.tx_packets += size.packets;
                count.tx_bytes += size.bytes;
            }
            _ => {
                count.rx_packets += size.packets;
                count.rx_bytes += size.bytes;
            }
        }
    }
}

/// Counts a packet of a flow that is denied. False: it is to be reported, and so to be read; nothing is counted yet.
#[inline(always)]
fn deny<const DIRECTION: u8>(known: Known, size: Size) -> bool {
    deny_flow(known.flow, size.packets, size.bytes, u32::from(DIRECTION)) != 0
}

/// As [`deny`]; a global function as [`write_flow`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn deny_flow(flow: *const Flow, packets: u64, bytes: u64, direction: u32) -> u32 {
    if flow.is_null() {
        return 0;
    }
    // SAFETY: A map value that only this CPU writes to.
    let flow = unsafe { &*flow };
    const REASON: usize = DropReason::ZoneDeny as usize;
    let is_sent = direction == u32::from(direction::TX);
    let budget = BUDGETS.get_ptr_mut(flow.id);
    if let Some(budget) = budget {
        // SAFETY: A map value.
        let left = unsafe { if is_sent { (*budget).tx[REASON] } else { (*budget).rx[REASON] } };
        if left > 0 {
            return 0;
        }
    }
    let (Some(drops), Some(count)) = (DROPS.get_ptr_mut(flow.id), counters(flow.id)) else { return 0 };
    // SAFETY: As above.
    let by_reason = unsafe {
        if is_sent { &raw mut (*drops).tx_dropped[REASON] } else { &raw mut (*drops).rx_dropped[REASON] }
    };
    add(by_reason, packets);
    match is_sent {
        true => count.tx_dropped += packets,
        false => count.rx_dropped += packets,
    }
    if let Some(count) = rule_counters(flow.outcome & flow_outcome::RULE) {
        count.count(direction as u8, packets, bytes);
    }
    if budget.is_some()
        && let Some(totals) = master_counters()
    {
        totals.events_limited += 1;
    }
    1
}
