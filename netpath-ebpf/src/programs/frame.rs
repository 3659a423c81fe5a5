//! A frame as XDP and TC show it, and its head at constant offsets.

use core::{arch::asm, mem::size_of};

use aya_ebpf::{
    bindings::{__sk_buff, xdp_md},
    helpers::{bpf_skb_load_bytes, bpf_xdp_get_buff_len, bpf_xdp_load_bytes},
};
use netpath_ebpf::{
    abi::HEAD_LEN,
    bits::opaque,
    packet::{ETH_LEN, Frame, Head, LONG_HEAD, Load, TAG_LEN, walk},
};

use super::settle::settle;

/// The first bytes of a frame: packet memory that was checked against its end, or a copy.
pub(crate) struct Bytes(*const u8);

/// Reads `$width` at a constant offset. An assembler load, because LLVM would otherwise read byte by byte:
/// it does not know that the kernel's BPF allows unaligned words in packets.
macro_rules! load {
    ($from:expr, $offset:ident, $width:literal) => {{
        let value: u64;
        // SAFETY: `Bytes` covers every offset that its reader uses; the verifier proves it again.
        unsafe {
            asm!(concat!("{0} = *(", $width, " *)({1} + {2})"), out(reg) value, in(reg) $from.0,
                const $offset, options(pure, readonly, nostack, preserves_flags));
        }
        value
    }};
}

impl Head for Bytes {
    #[inline(always)]
    fn u8<const OFFSET: usize>(&self) -> u8 {
        load!(self, OFFSET, "u8") as u8
    }
    #[inline(always)]
    fn u16<const OFFSET: usize>(&self) -> u16 {
        u16::from_be(load!(self, OFFSET, "u16") as u16)
    }
    #[inline(always)]
    fn raw4<const OFFSET: usize>(&self) -> u32 {
        load!(self, OFFSET, "u32") as u32
    }
    #[inline(always)]
    fn raw8<const OFFSET: usize>(&self) -> u64 {
        load!(self, OFFSET, "u64")
    }
}

/// What both kinds of context offer.
pub(crate) trait Context: Copy {
    /// Address of the first byte.
    fn data(&self) -> usize;
    /// Address behind the last linear byte.
    fn data_end(&self) -> usize;
    /// Whether the frame is read as it lies there.
    fn is_direct(&self) -> bool;
    /// Length of the frame, linear or not.
    fn length(&self) -> u32;
    /// Brings as many bytes where their sender does not write any more, if that has to be.
    fn settle(&self, length: u32) -> bool;
    /// Copies the first `length` bytes, at most [`HEAD_LEN`], to `to`.
    fn copy(&self, to: *mut u8, length: u32) -> bool;
    /// [`walk`] in a function of its own.
    fn walk(&self, first: u8, end: u32) -> u64;
}

/// A context and room for a copy of its head: [`HEAD_LEN`] bytes of this CPU's scratch.
pub(crate) struct Packet<C> {
    /// The context.
    pub context: C,
    /// The room.
    pub copy: *mut u8,
    /// Its length where it was asked for already: XDP has to call for it. 0 = not asked yet.
    pub length: u32,
}

impl<C: Context> Packet<C> {
    /// The first `N` bytes where they lie in linear memory.
    #[inline(always)]
    pub(crate) fn direct<const N: usize>(&self) -> Option<Bytes> {
        let data = self.context.data();
        if data + N <= self.context.data_end() { Some(Bytes(data as *const u8)) } else { None }
    }

    /// As much of the head as there is, up to [`HEAD_LEN`], as a copy.
    #[inline(always)]
    fn copied(&self) -> Option<Bytes> {
        // Hidden, or the bound is checked on another register than the one the helper gets.
        let length = opaque(u64::from(self.context.length()));
        let length = if length > HEAD_LEN as u64 { HEAD_LEN as u64 } else { length };
        // Not "is it zero": from that Linux 6.1 does not learn that the helper gets at least one byte. And of a
        // frame without a whole Ethernet header the rest would be what an earlier frame left in the scratch.
        if length < u64::from(ETH_LEN) || !self.context.copy(self.copy, length as u32) {
            return None;
        }
        Some(Bytes(self.copy))
    }
}

impl<C: Context> Frame for Packet<C> {
    type Head = Bytes;

    #[inline(always)]
    fn length(&self) -> u32 {
        if self.length == 0 { self.context.length() } else { self.length }
    }

    /// Packet memory where it is linear, else a copy.
    #[inline(always)]
    fn head<const N: usize>(&self) -> Option<Bytes> {
        let data = self.context.data();
        if self.context.is_direct() && data + N <= self.context.data_end() {
            return Some(Bytes(data as *const u8));
        }
        self.copied()
    }

    /// Always a copy: few packets need it, and one way is less to verify than two.
    #[inline(always)]
    fn long_head(&self) -> Option<Bytes> {
        if !self.context.settle(LONG_HEAD as u32) {
            return None;
        }
        self.copied()
    }

    #[inline(always)]
    fn walk(&self, first: u8, end: u32) -> u64 {
        self.context.walk(first, end)
    }
}

/// A TC context.
#[derive(Clone, Copy)]
pub(crate) struct Skb {
    /// The context.
    pub raw: *mut __sk_buff,
    /// Bytes between the MACs and the ethertype that are not read: 0, or a VLAN tag that was accepted.
    pub skip: u32,
    /// Whether it is on its way out: then its sender may still write to it.
    pub leaves: bool,
}

impl Skb {
    /// The frame as it is.
    #[inline(always)]
    pub(crate) fn new(raw: *mut __sk_buff) -> Self {
        Self { raw, skip: 0, leaves: false }
    }
}

impl Context for Skb {
    #[inline(always)]
    fn data(&self) -> usize {
        // SAFETY: The context is valid for the whole run of the program.
        unsafe { (*self.raw).data as usize }
    }
    #[inline(always)]
    fn data_end(&self) -> usize {
        // SAFETY: As above.
        unsafe { (*self.raw).data_end as usize }
    }
    #[inline(always)]
    fn is_direct(&self) -> bool {
        self.skip == 0
    }
    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: As above.
        unsafe { (*self.raw).len - self.skip }
    }
    #[inline(always)]
    fn settle(&self, length: u32) -> bool {
        !self.leaves || settle(self.raw, length + self.skip)
    }
    #[inline(always)]
    fn copy(&self, to: *mut u8, length: u32) -> bool {
        if self.skip == 0 {
            // SAFETY: `to` has room for `HEAD_LEN` bytes, `length` is at most that.
            return unsafe { bpf_skb_load_bytes(self.raw.cast(), 0, to.cast(), length) == 0 };
        }
        copy_untagged(self.raw, to, length)
    }
    #[inline(always)]
    fn walk(&self, first: u8, end: u32) -> u64 {
        walk_skb(self.raw, first, end | self.skip << 24 | u32::from(self.leaves) << 31)
    }
}

/// The two MACs, then what follows the tag.
#[inline(always)]
fn copy_untagged(skb: *mut __sk_buff, to: *mut u8, length: u32) -> bool {
    const MACS: u32 = 12;
    let rest = length - MACS;
    if rest == 0 || rest > HEAD_LEN as u32 - MACS {
        return false;
    }
    // SAFETY: `to` has room for `HEAD_LEN` bytes, and so for the MACs and at most that many less.
    unsafe {
        bpf_skb_load_bytes(skb.cast(), 0, to.cast(), MACS) == 0
            && bpf_skb_load_bytes(skb.cast(), MACS + TAG_LEN, to.add(MACS as usize).cast(), rest) == 0
    }
}

impl Load for Skb {
    #[inline(always)]
    fn pair(&self, offset: u32) -> Option<[u8; 2]> {
        if self.leaves {
            // Headers that the kernel makes are in one piece; of others only what is known to be its own.
            let end = (offset + self.skip + 2) & 0xffff;
            if self.data() + end as usize > self.data_end() {
                return None;
            }
        }
        let mut pair = [0; 2];
        // SAFETY: Two bytes are written to two bytes.
        let ok = unsafe {
            bpf_skb_load_bytes(
                self.raw.cast(),
                offset + self.skip,
                pair.as_mut_ptr().cast(),
                size_of::<[u8; 2]>() as u32,
            )
        };
        if ok == 0 { Some(pair) } else { None }
    }
}

/// `skip` comes in the highest byte of `end`, and `leaves` in the highest bit: a function of its own has few arguments
/// to lose on the stack.
#[inline(never)]
fn walk_skb(skb: *mut __sk_buff, first: u8, end: u32) -> u64 {
    walk(first, end & 0xff_ffff, &Skb { raw: skb, skip: end >> 24 & 0x7f, leaves: end >> 31 != 0 })
}

/// An XDP context.
#[derive(Clone, Copy)]
pub(crate) struct Buff(pub *mut xdp_md);

impl Context for Buff {
    #[inline(always)]
    fn data(&self) -> usize {
        // SAFETY: The context is valid for the whole run of the program.
        unsafe { (*self.0).data as usize }
    }
    #[inline(always)]
    fn data_end(&self) -> usize {
        // SAFETY: As above.
        unsafe { (*self.0).data_end as usize }
    }
    #[inline(always)]
    fn is_direct(&self) -> bool {
        true
    }
    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: As above.
        unsafe { bpf_xdp_get_buff_len(self.0) as u32 }
    }
    #[inline(always)]
    fn settle(&self, _length: u32) -> bool {
        true
    }
    #[inline(always)]
    fn copy(&self, to: *mut u8, length: u32) -> bool {
        // SAFETY: `to` has room for `HEAD_LEN` bytes, `length` is at most that.
        unsafe { bpf_xdp_load_bytes(self.0, 0, to.cast(), length) == 0 }
    }
    #[inline(always)]
    fn walk(&self, first: u8, end: u32) -> u64 {
        walk_buff(self.0, first, end)
    }
}

impl Load for Buff {
    #[inline(always)]
    fn pair(&self, offset: u32) -> Option<[u8; 2]> {
        let mut pair = [0; 2];
        // SAFETY: Two bytes are written to two bytes.
        let ok = unsafe {
            bpf_xdp_load_bytes(self.0, offset, pair.as_mut_ptr().cast(), size_of::<[u8; 2]>() as u32)
        };
        if ok == 0 { Some(pair) } else { None }
    }
}

#[inline(never)]
fn walk_buff(buff: *mut xdp_md, first: u8, end: u32) -> u64 {
    walk(first, end, &Buff(buff))
}
