//! Pointers, maps and helpers: read facts, look up, decide, count, report. No policy: that is `verdict`.

mod account;
mod flows;
mod frame;
mod globals;
mod judge;
mod maps;
mod read;
mod record;
mod reject;
mod rules;
mod sender;
mod settle;

use core::arch::asm;

use account::{Drop, Size, counters, master_counters, received_size, sent_size};
use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action, xdp_md},
    helpers::bpf_xdp_adjust_meta,
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use flows::{Epoch, OUTSIDE, RECEIVED, SENT};
use frame::{Buff, Context, Packet, Skb};
use judge::{Party, Sent, received, sent, tell};
use maps::{ENDPOINT_ROWS, MASTERS, SCRATCH, Scratch};
use netpath_ebpf::{
    abi::{Endpoint, EndpointKey, Master, direction},
    packet::{self, Frame, Head},
    verdict::{self, Fate},
};
use read::{Reading, read_buff, read_skb};
use sender::{Offence, Stacked, View};

const NEXT: i32 = TC_ACT_UNSPEC;
const SHOT: i32 = TC_ACT_SHOT;

/// The Ethernet header: all that is read of a frame before its owner is known.
struct Ethernet {
    /// MACs as `bits` has them: six bytes in memory order, two zero bytes.
    source_raw: u64,
    destination_raw: u64,
    ethertype: u16,
}

impl Ethernet {
    #[inline(always)]
    fn read(frame: &impl Frame) -> Option<Self> {
        frame.head::<14>().map(|head| Self::of(&head))
    }

    #[inline(always)]
    fn of(head: &impl Head) -> Self {
        let destination_raw = u64::from(head.raw4::<0>()) | u64::from(head.u16::<4>().to_be()) << 32;
        let source_raw = u64::from(head.raw4::<6>()) | u64::from(head.u16::<10>().to_be()) << 32;
        Self { source_raw, destination_raw, ethertype: head.u16::<12>() }
    }

    #[inline(always)]
    fn macs(&self) -> [u64; 2] {
        [self.source_raw, self.destination_raw]
    }

    /// Group addresses have the lowest bit of the first byte set.
    #[inline(always)]
    fn is_group(&self) -> bool {
        self.destination_raw & 1 != 0
    }
}

#[inline(always)]
fn endpoint(master: u16, mac_raw: u64) -> Option<&'static Endpoint> {
    // The layout of `EndpointKey`: six bytes of MAC, then the master.
    let raw = mac_raw | u64::from(master) << 48;
    // SAFETY: Both are eight plain bytes; a row is only ever replaced as a whole.
    unsafe { ENDPOINT_ROWS.get(core::mem::transmute::<u64, EndpointKey>(raw)) }
}

/// The scratch of this CPU.
#[inline(always)]
fn scratch() -> Option<*mut Scratch> {
    SCRATCH.get_ptr_mut(0)
}

/// The frame of `context`, with this CPU's room for a copy of its head.
#[inline(always)]
fn packet<C: Context>(context: C, scratch: *mut Scratch) -> Packet<C> {
    // SAFETY: `scratch` is this CPU's map value.
    Packet { context, copy: unsafe { (&raw mut (*scratch).head).cast::<u8>() }, length: 0 }
}

/// Every frame that leaves by the master: what pods send out, and the host's own.
#[classifier]
pub(crate) fn egress(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let epoch = Epoch::now();
    let place = match flows::egress(skb, epoch) {
        Ok(verdict) => return verdict,
        Err(place) => place.veiled(epoch),
    };
    let Some(scratch) = scratch() else { return NEXT };
    let whole = packet(Skb::new(skb), scratch);
    let Some(mut ethernet) = Ethernet::read(&whole) else { return NEXT };
    // Its MACs are the kernel's own bytes on every way that there is to send.
    let unsettled = !settle::settle(skb, settle::need(ethernet.ethertype))
        || !settle::is_cut_as_read(skb, ethernet.ethertype);
    // SAFETY: The context is valid.
    let tagged = unsafe { (*skb).vlan_present != 0 };
    let size = sent_size(skb);
    let view = match endpoint(epoch.then(globals::master()), ethernet.source_raw) {
        Some(row) => View { row, tagged, skip: 0, counts: true },
        None => {
            let Some(master) = MASTERS.get(u32::from(globals::master())) else { return NEXT };
            if verdict::is_host(master, ethernet.source_raw) {
                return match sender::borrowed_host_mac(skb, master, &ethernet, unsettled) {
                    Some(offence) => tell_offence(offence, &ethernet, frame_length(skb), scratch, size),
                    None => host(size),
                };
            }
            match sender::stacked(skb, master, &mut ethernet, tagged) {
                Stacked::Policed(view) => view,
                // The kernel's own VLAN interfaces have their tag beside the frame; in the frame a pod wrote it itself.
                Stacked::Open if tagged => return host(size),
                Stacked::Open => {
                    return match sender::pods_own(skb) {
                        Some(offence) => tell_offence(offence, &ethernet, frame_length(skb), scratch, size),
                        None => host(size),
                    };
                }
                Stacked::No => return unknown(skb, master, &ethernet, scratch, size, unsettled),
            }
        }
    };
    let row = view.row;
    if let Some(offence) = sender::borrowed_mac(skb, row) {
        return tell_offence(offence, &ethernet, frame_length(skb), scratch, size);
    }
    let party = Party::of(row);
    if party.judged {
        let View { tagged, skip, .. } = view;
        let reading = Reading { ethertype: ethernet.ethertype, tagged, skip, leaves: true, unsettled };
        read_skb(skb, reading.to_bits(), scratch);
    }
    match sent(party, &ethernet, scratch, size, view.counts, place) {
        Sent::Passed => NEXT,
        // Through a VLAN interface: what that denies is answered there.
        Sent::Rejected if view.counts => answer(skb, scratch),
        Sent::Dropped | Sent::Rejected => SHOT,
    }
}

/// Tells the sender of the denied frame whose facts are in `scratch`.
#[inline(always)]
fn answer(skb: *mut __sk_buff, scratch: *mut Scratch) -> i32 {
    // SAFETY: This CPU's map value, and nothing else refers to it now.
    reject::answer(skb, unsafe { &mut *scratch })
}

/// Counts a frame that is the host's own business.
#[inline(always)]
fn host(size: Size) -> i32 {
    if let Some(totals) = master_counters() {
        totals.host_packets += size.packets;
    }
    NEXT
}

#[inline(always)]
fn frame_length(skb: *mut __sk_buff) -> u32 {
    // SAFETY: The context is valid.
    unsafe { (*skb).len }
}

/// A frame sent with a MAC that nobody owns.
#[inline(always)]
fn unknown(
    skb: *mut __sk_buff,
    master: &Master,
    ethernet: &Ethernet,
    scratch: *mut Scratch,
    size: Size,
    unsettled: bool,
) -> i32 {
    let offence = sender::unknown_mac(skb, master, ethernet, unsettled);
    if offence.endpoint == 0
        && let Some(totals) = master_counters()
    {
        match offence.fate() {
            Fate::Drop => totals.unknown_dropped += size.packets,
            Fate::Pass | Fate::Audit => totals.unknown_passed += size.packets,
        }
    }
    tell_offence(offence, ethernet, frame_length(skb), scratch, size)
}

/// Counts and reports a frame whose source MAC is not its sender's.
#[inline(always)]
fn tell_offence(
    offence: Offence,
    ethernet: &Ethernet,
    length: u32,
    scratch: *mut Scratch,
    size: Size,
) -> i32 {
    let dropped = offence.fate() == Fate::Drop;
    if offence.endpoint != 0
        && let Some(count) = counters(offence.endpoint)
    {
        match dropped {
            true => count.tx_dropped += size.packets,
            false => {
                count.tx_packets += size.packets;
                count.tx_bytes += size.bytes;
                count.tx_audited += size.packets;
            }
        }
    }
    // SAFETY: This CPU's map value.
    unsafe { (*scratch).facts.reset(ethernet.ethertype, length) };
    let drop = Drop {
        packets: size.packets,
        endpoint: offence.endpoint,
        generation: offence.generation,
        macs: ethernet.macs(),
        reason: offence.reason,
        direction: direction::TX,
        audited: u8::from(!dropped),
        rule: 0,
        pad: [0; 4],
    };
    tell(scratch, drop);
    if dropped { SHOT } else { NEXT }
}

/// Every frame that the master receives, and what pods of one master send each other.
#[classifier]
pub(crate) fn ingress(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    if reject::is_answer(skb) {
        return NEXT;
    }
    let epoch = Epoch::now();
    let Some(master) = MASTERS.get(u32::from(globals::master())) else { return NEXT };
    // SAFETY: The context is valid.
    let tagged = unsafe { (*skb).vlan_present != 0 };
    let stamped = is_stamped(skb, master.stamp);
    // A tag that the NIC took off is not in what XDP judged; counted it has all the same.
    if stamped && !tagged {
        return NEXT;
    }
    let [place_sent, place_received, place_outside] = match flows::ingress(skb, epoch) {
        Ok(verdict) => return verdict,
        Err(places) => places.map(|place| place.veiled(epoch)),
    };
    let Some(scratch) = scratch() else { return NEXT };
    let frame = packet(Skb::new(skb), scratch);
    let Some(ethernet) = Ethernet::read(&frame) else { return NEXT };
    if ethernet.is_group() {
        // macvlan hands a copy to everybody: it can be attributed to none, and the copies for siblings
        // pass no hook at all. Policed interfaces refuse unicast in group frames by sysctl.
        if let Some(totals) = master_counters() {
            totals.group_packets += 1;
        }
        return NEXT;
    }
    let receiver = endpoint(epoch.then(globals::master()), ethernet.destination_raw);
    if receiver.is_none() && verdict::is_host(master, ethernet.destination_raw) {
        if let Some(totals) = master_counters() {
            totals.host_packets += 1;
        }
        return NEXT;
    }
    let sender = if stamped { None } else { endpoint(epoch.then(globals::master()), ethernet.source_raw) };
    let size = received_size(skb);
    // Only what pods of this node send each other still knows its socket here.
    let offence = match sender {
        Some(row) => sender::borrowed_mac(skb, row),
        None => sender::forged_sibling(skb, &ethernet),
    };
    if let Some(offence) = offence {
        return tell_offence(offence, &ethernet, frame_length(skb), scratch, size);
    }
    if sender.is_none() && receiver.is_some() {
        // A socket's packet on a virtual wire, whose MAC nobody here has.
        place_sent.unless(place_outside).remember(scratch, SENT, 0, 0);
    }
    let (receiver, sender) = (receiver.map(Party::of), sender.map(Party::of));
    if receiver.is_some_and(|it| it.judged) || sender.is_some_and(|it| it.judged) {
        let (skip, leaves, unsettled) = (0, false, false);
        let reading = Reading { ethertype: ethernet.ethertype, tagged, skip, leaves, unsettled };
        read_skb(skb, reading.to_bits(), scratch);
    }
    if let Some(party) = sender {
        match sent(party, &ethernet, scratch, size, true, place_sent) {
            Sent::Passed => {}
            Sent::Dropped => return SHOT,
            // What came by the wire is nobody's here, whatever it says: a host out there could have pods told anything.
            Sent::Rejected if sender::is_its_own(skb, party.row) => return answer(skb, scratch),
            Sent::Rejected => return SHOT,
        }
    }
    if let Some(party) = receiver {
        // A sender that is known but no endpoint is outside as well.
        let is_endpoints = sender.is_some_and(|it| it.row.id != 0);
        let at = if is_endpoints { (place_received, RECEIVED) } else { (place_outside, OUTSIDE) };
        if !received(party, &ethernet, scratch, size, || !stamped, at) {
            return SHOT;
        }
    }
    NEXT
}

/// Bytes of the mark that XDP sets in front of a frame: the master's stamp, and the MAC that it was judged for.
const MARK_LEN: i32 = 16;

/// Whether XDP has judged and counted this frame for whom it is now.
#[inline(always)]
fn is_stamped(skb: *mut __sk_buff, stamp: u64) -> bool {
    // SAFETY: The context is valid; the mark is read only if it lies in front of the data, the MAC if it is linear.
    unsafe {
        let (meta, data, end) = ((*skb).data_meta as usize, (*skb).data as usize, (*skb).data_end as usize);
        if meta + MARK_LEN as usize > data || data + 6 > end {
            return false;
        }
        let (found, judged, high): (u64, u64, u64);
        // As in `stamp`.
        asm!("{0} = *(u64 *)({1} + 0)", out(reg) found, in(reg) meta, options(readonly, nostack, preserves_flags));
        asm!("{0} = *(u64 *)({1} + 8)", out(reg) judged, in(reg) meta, options(readonly, nostack, preserves_flags));
        asm!("{0} = *(u16 *)({1} + 4)", out(reg) high, in(reg) data, options(readonly, nostack, preserves_flags));
        let low: u64;
        asm!("{0} = *(u32 *)({1} + 0)", out(reg) low, in(reg) data, options(readonly, nostack, preserves_flags));
        found == stamp && judged == low | high << 32
    }
}

/// Every frame from the wire, before the kernel has made a packet of it.
#[xdp(frags)]
pub(crate) fn xdp(ctx: XdpContext) -> u32 {
    let epoch = Epoch::now();
    let place = match flows::xdp(ctx.ctx, epoch, |length, mac| mark(ctx.ctx, length, mac)) {
        Ok(verdict) => return verdict,
        Err(place) => place.veiled(epoch),
    };
    let Some(scratch) = scratch() else { return xdp_action::XDP_PASS };
    let frame = packet(Buff(ctx.ctx), scratch);
    let Some(ethernet) = Ethernet::read(&frame) else { return xdp_action::XDP_PASS };
    if ethernet.is_group() {
        return xdp_action::XDP_PASS;
    }
    let Some(row) = endpoint(epoch.then(globals::master()), ethernet.destination_raw) else {
        return xdp_action::XDP_PASS;
    };
    let length = frame.length();
    let size = Size { packets: 1, bytes: u64::from(length) };
    let party = Party::of(row);
    if party.judged {
        read_buff(ctx.ctx, ethernet.ethertype.into(), length, scratch);
    }
    let claim = || mark(ctx.ctx, length, ethernet.destination_raw);
    match received(party, &ethernet, scratch, size, claim, (place, RECEIVED)) {
        true => xdp_action::XDP_PASS,
        false => xdp_action::XDP_DROP,
    }
}

/// Marks the frame as counted for `mac`. False: TC counts. The driver has no room for metadata, or the frame is longer than one is on
/// the wire: a veth or a tap may hand over what the sender's offload has yet to cut, and TC knows the segments.
///
/// Metadata stays with a frame, also in the pod that it was for: if that sends it on to a sibling it is still there.
#[inline(always)]
fn mark(buff: *mut xdp_md, length: u32, mac: u64) -> bool {
    let Some(master) = MASTERS.get(u32::from(globals::master())) else { return false };
    if length > u32::from(master.mtu) + packet::ETH_LEN + packet::TAG_LEN {
        return false;
    }
    let stamp = master.stamp;
    // SAFETY: The context is valid; the mark is written only where there is room.
    unsafe {
        if bpf_xdp_adjust_meta(buff, -MARK_LEN) != 0 {
            return false;
        }
        let (meta, data) = ((*buff).data_meta as usize, (*buff).data as usize);
        if meta + MARK_LEN as usize > data {
            return false;
        }
        // Assembler stores: LLVM would write byte by byte.
        asm!("*(u64 *)({0} + 0) = {1}", in(reg) meta, in(reg) stamp, options(nostack, preserves_flags));
        asm!("*(u64 *)({0} + 8) = {1}", in(reg) meta, in(reg) mac, options(nostack, preserves_flags));
    }
    true
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: The programs cannot panic; the linker removes this.
    unsafe { core::hint::unreachable_unchecked() }
}

/// The helpers that this program calls are open to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
