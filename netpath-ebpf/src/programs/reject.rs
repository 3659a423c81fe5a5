//! `onDeny: reject`: the denied frame becomes the answer to it, and comes back to its sender.
//!
//! It is sent to the master's own receiving side, where it meets our program: a mark that nobody outside knows
//! lets it through there, unread and uncounted. Marks are 0 on what comes from the wire, and the kernel
//! takes them off what one namespace hands another.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS, BPF_F_INVALIDATE_HASH, BPF_F_RECOMPUTE_CSUM},
    helpers::{bpf_ktime_get_ns, bpf_redirect, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes},
};
use netpath_ebpf::{
    abi::{REJECT_BURST, REJECT_INTERVAL_NS},
    bits::opaque,
    packet::{ETH_IPV4, ETH_IPV6, ETH_LEN},
    reply::{self, ANSWER_WORDS, Kind, PACKET_WORDS},
};

use super::{
    SHOT,
    account::add,
    globals,
    maps::{REJECTS, Scratch},
};

/// An answer and what it is made of; part of the scratch.
#[repr(C)]
pub(crate) struct Room {
    packet: [u32; PACKET_WORDS],
    /// Seven halves of Ethernet's header, and one before them so that words lie where words may lie.
    ethernet: [u16; 8],
    body: [u32; ANSWER_WORDS],
}

/// Whether `skb` is an answer of ours on its way back; then it is unmarked, and nobody's business any more.
#[inline(always)]
pub(crate) fn is_answer(skb: *mut __sk_buff) -> bool {
    let mark = globals::reject_mark();
    // SAFETY: The context is valid.
    if mark == 0 || unsafe { (*skb).mark } != mark {
        return false;
    }
    // SAFETY: As above. From a register: some kernels refuse to store a constant here.
    unsafe { core::ptr::write_volatile(&raw mut (*skb).mark, opaque(0) as u32) };
    true
}

/// Answers the denied frame whose facts and owner are in `scratch`, or drops it in silence.
///
/// A function of its own, so that its stack and the verifier's work do not add to those of a verdict.
#[inline(never)]
pub(crate) fn answer(skb: *mut __sk_buff, scratch: &mut Scratch) -> i32 {
    let kind = Kind::of(&scratch.facts, scratch.drop.macs[1] & 1 != 0);
    if kind == Kind::Silence || globals::reject_mark() == 0 {
        return SHOT;
    }
    let frame = scratch.facts.length;
    let room = &mut scratch.reject;
    let ready = match kind {
        Kind::Silence => false,
        Kind::Reset4 => read::<{ Kind::Reset4.reads() }>(skb, room) && write(Kind::Reset4, frame, room),
        Kind::Prohibited4 => {
            read::<{ Kind::Prohibited4.reads() }>(skb, room) && write(Kind::Prohibited4, frame, room)
        }
        Kind::Reset6 => read::<{ Kind::Reset6.reads() }>(skb, room) && write(Kind::Reset6, frame, room),
        Kind::Prohibited6 => {
            read::<{ Kind::Prohibited6.reads() }>(skb, room) && write(Kind::Prohibited6, frame, room)
        }
    };
    // Last: what gets no answer takes nothing from the bucket.
    if !ready || !spend(scratch.drop.endpoint) {
        return SHOT;
    }
    let [source, destination] = scratch.drop.macs;
    let ethertype = match kind {
        Kind::Reset6 | Kind::Prohibited6 => ETH_IPV6,
        Kind::Silence | Kind::Reset4 | Kind::Prohibited4 => ETH_IPV4,
    };
    // MACs are in memory order, lowest bytes first.
    room.ethernet = [
        0,
        source as u16,
        (source >> 16) as u16,
        (source >> 32) as u16,
        destination as u16,
        (destination >> 16) as u16,
        (destination >> 32) as u16,
        ethertype.to_be(),
    ];
    send_back(skb, scratch, ETH_LEN + u32::from(kind.length()))
}

#[inline(always)]
fn read<const LENGTH: u16>(skb: *mut __sk_buff, room: &mut Room) -> bool {
    // SAFETY: `packet` has room for the longest of the four.
    unsafe {
        bpf_skb_load_bytes(skb.cast(), ETH_LEN, room.packet.as_mut_ptr().cast(), u32::from(LENGTH)) == 0
    }
}

#[inline(always)]
fn write(kind: Kind, frame: u32, room: &mut Room) -> bool {
    reply::write(kind, &room.packet, frame, &mut room.body)
}

/// Makes the frame the answer of `length` bytes and hands it to the receiving side of its device.
#[inline(always)]
fn send_back(skb: *mut __sk_buff, scratch: &mut Scratch, length: u32) -> i32 {
    const LONGEST: u64 = ETH_LEN as u64 + 4 * ANSWER_WORDS as u64;
    const FLAGS: u64 = BPF_F_INVALIDATE_HASH as u64 | BPF_F_RECOMPUTE_CSUM as u64;
    let length = opaque(u64::from(length));
    if length < u64::from(ETH_LEN) || length > LONGEST {
        return SHOT;
    }
    let answer = (&raw const scratch.reject).cast::<u8>();
    // SAFETY: From the second half of `ethernet` on there are as many bytes as the longest answer has. Resizing
    // linearizes the frame, makes it ours alone and ends its segmentation; nothing points into it here.
    let written = unsafe {
        let from = answer.add(offset_of!(Room, ethernet) + 2);
        bpf_skb_change_tail(skb, length as u32, 0) == 0
            && bpf_skb_store_bytes(skb, 0, from.cast(), length as u32, FLAGS) == 0
    };
    if !written {
        return SHOT;
    }
    if let Some(row) = REJECTS.get_ptr_mut(scratch.drop.endpoint) {
        // SAFETY: `row` points to a map value.
        add(unsafe { &raw mut (*row).sent }, 1);
    }
    // SAFETY: The context is valid.
    unsafe {
        core::ptr::write_volatile(&raw mut (*skb).mark, globals::reject_mark());
        bpf_redirect((*skb).ifindex, u64::from(BPF_F_INGRESS)) as i32
    }
}

/// Takes a token of `endpoint`. CPUs that race may take a few more than there are.
#[inline(always)]
fn spend(endpoint: u32) -> bool {
    let Some(row) = REJECTS.get_ptr_mut(endpoint) else { return false };
    // SAFETY: `row` points to a map value; every value of it is valid.
    unsafe {
        let (now, refilled) = (bpf_ktime_get_ns(), (*row).refilled_ns);
        // Another CPU may have written a later time than the one this CPU read.
        let passed = if now > refilled { now - refilled } else { 0 };
        let fresh = passed / REJECT_INTERVAL_NS;
        if fresh > 0 {
            let tokens = (*row).tokens + fresh.min(REJECT_BURST as u64) as i64;
            (*row).tokens = tokens.min(REJECT_BURST);
            (*row).refilled_ns = refilled + fresh * REJECT_INTERVAL_NS;
        }
        if (*row).tokens <= 0 {
            add(&raw mut (*row).limited, 1);
            return false;
        }
        (*row).tokens -= 1;
    }
    true
}
