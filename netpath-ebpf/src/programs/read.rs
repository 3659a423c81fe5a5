//! Reads a frame into this CPU's scratch, in functions that the verifier walks once.

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use netpath_ebpf::{
    checksum,
    drop_reason::DropReason,
    packet::{Frame as _, read},
};

use super::{
    frame::{Buff, Packet, Skb},
    maps::Scratch,
    packet, settle,
};

/// How a frame is to be read, as a function of its own takes it.
#[derive(Clone, Copy)]
pub(crate) struct Reading {
    /// Its ethertype.
    pub ethertype: u16,
    /// Whether a VLAN tag stands beside it that was not accepted.
    pub tagged: bool,
    /// As in [`Skb`].
    pub skip: u32,
    /// As in [`Skb`].
    pub leaves: bool,
    /// Whether it is a frame that cannot be read without its sender's hand in it.
    pub unsettled: bool,
}

impl Reading {
    #[inline(always)]
    pub(crate) fn to_bits(self) -> u32 {
        let flags = u32::from(self.tagged) | u32::from(self.leaves) << 1 | u32::from(self.unsettled) << 2;
        u32::from(self.ethertype) | flags << 16 | self.skip << 24
    }

    #[inline(always)]
    fn from_bits(bits: u32) -> Self {
        let is_set = |bit: u32| bits >> bit & 1 != 0;
        Self {
            ethertype: bits as u16,
            tagged: is_set(16),
            skip: bits >> 24,
            leaves: is_set(17),
            unsettled: is_set(18),
        }
    }
}

/// Reads what the verdict needs to know into `scratch`, which is this CPU's. Always 0: the kernel wants a number.
///
/// A global function (it has a name for the linker and for BTF): the verifier walks it once, knowing nothing
/// of its caller, instead of once for every way to reach it.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn read_skb(skb: *mut __sk_buff, reading: u32, scratch: *mut Scratch) -> u32 {
    if scratch.is_null() {
        return 0;
    }
    let reading = Reading::from_bits(reading);
    let frame = packet(Skb { raw: skb, skip: reading.skip, leaves: reading.leaves }, scratch);
    // SAFETY: `scratch` is this CPU's map value; nothing else refers to its facts now.
    let facts = unsafe { &mut (*scratch).facts };
    if reading.unsettled {
        facts.reset(reading.ethertype, frame.length());
        facts.flaw = DropReason::Malformed as u8;
        return 0;
    }
    read(&frame, reading.ethertype, reading.tagged, facts);
    let is_behind = |field| checksum::is_behind(field, facts, reading.skip);
    if reading.leaves && facts.flaw == 0 && !settle::is_checksum_behind(skb, is_behind) {
        facts.flaw = DropReason::Malformed as u8;
    }
    0
}

/// As [`read_skb`], for XDP, which has to call for a frame's `length`.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn read_buff(
    buff: *mut xdp_md,
    ethertype: u32,
    length: u32,
    scratch: *mut Scratch,
) -> u32 {
    if scratch.is_null() {
        return 0;
    }
    // SAFETY: As above.
    let facts = unsafe { &mut (*scratch).facts };
    let frame = Packet { length, ..packet(Buff(buff), scratch) };
    read(&frame, ethertype as u16, false, facts);
    0
}
