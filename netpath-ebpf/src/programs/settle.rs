//! That what was judged is what leaves.
//!
//! Whoever may open packet sockets can send frames whose bytes are not the kernel's yet: those of a transmit ring lie in
//! memory that the sender goes on writing to, and a checksum that is still to be filled in is written behind
//! every program, where the sender says. What is larger than a frame may be is cut into frames behind every program as
//! well, with lengths, numbers and checksums written into the headers of each, where the sender said that they are.

use core::arch::asm;

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_probe_read_kernel, bpf_skb_pull_data},
};
use netpath_ebpf::{
    abi::{CAST_TO_KERNEL, SKB_SUMS_LEN},
    checksum,
    packet::{ETH_ARP, ETH_IPV4, ETH_IPV6, ETH_VLAN, IPV4_HEAD, IPV6_HEAD, TAG_LEN},
};

use super::globals;

/// Bytes that are read of a frame of this ethertype, whatever it is, besides what few frames need.
#[inline(always)]
pub(crate) fn need(ethertype: u16) -> u32 {
    match ethertype {
        // TCP without options in IPv4 has no more than 54 in its linear part.
        ETH_IPV4 | ETH_ARP => IPV4_HEAD as u32,
        ETH_IPV6 => IPV6_HEAD as u32,
        _ => IPV6_HEAD as u32 + TAG_LEN,
    }
}

/// Brings the first `need` bytes of a frame, or all that it has, where nobody but the kernel writes.
#[inline(always)]
pub(crate) fn settle(skb: *mut __sk_buff, need: u32) -> bool {
    // SAFETY: The context is valid.
    let (data, end, length) = unsafe { ((*skb).data as usize, (*skb).data_end as usize, (*skb).len) };
    let want = if length < need { length } else { need };
    if data + want as usize <= end {
        return true;
    }
    // What the kernel has yet to cut into segments has its headers in one piece unless somebody made it by hand, and
    // moving bytes of such a frame can stop the kernel.
    // SAFETY: As above.
    unsafe { (*skb).gso_size == 0 && bpf_skb_pull_data(skb, want) == 0 }
}

/// The kernel's own record of a frame as a pointer whose type the verifier knows: what is behind it is read without a call.
#[derive(Clone, Copy)]
struct Typed(u64);

/// Reads `$width` at an offset that the loader knows; as the verifier does, which allows only what has that width there.
macro_rules! read {
    ($typed:expr, $offset:expr, $width:literal) => {{
        let value: u64;
        // SAFETY: The verifier has looked where it reads.
        unsafe {
            asm!(concat!("{1} += {2}\n{0} = *(", $width, " *)({1} + 0)"), out(reg) value,
                inout(reg) $typed.0 => _, in(reg) u64::from($offset), options(readonly, nostack, preserves_flags));
        }
        value
    }};
}

impl Typed {
    /// `None` where the kernel does not give it out.
    #[inline(always)]
    fn of(skb: *mut __sk_buff) -> Option<Self> {
        if !globals::have_skb_type() {
            return None;
        }
        let record: u64;
        // SAFETY: A call like that of a helper, which reads and writes nothing.
        unsafe {
            asm!("call {cast}", cast = const CAST_TO_KERNEL, inout("r1") skb => _, lateout("r0") record,
                lateout("r2") _, lateout("r3") _, lateout("r4") _, lateout("r5") _, options(nomem, nostack));
        }
        Some(Self(record))
    }
}

/// Reads what the kernel has `offset` bytes into its own record of a frame.
#[inline(always)]
fn recorded<T>(skb: *mut __sk_buff, offset: u32) -> Option<T> {
    // SAFETY: The helper reads what can be read and fails for the rest; what is read is plain numbers.
    unsafe { bpf_probe_read_kernel(skb.cast::<u8>().wrapping_add(offset as usize).cast::<T>()) }.ok()
}

/// Bytes from the beginning of the memory that a frame is in to the beginning of the frame.
#[inline(always)]
fn headroom(skb: *mut __sk_buff) -> Option<i64> {
    let at = globals::skb_head();
    let [head, data] = match Typed::of(skb) {
        Some(typed) => [read!(typed, at, "u64"), read!(typed, at + 8, "u64")],
        None => recorded(skb, at)?,
    };
    Some(data.wrapping_sub(head) as i64)
}

/// Where the kernel's record says that the network header begins, in bytes behind the beginning of that memory.
#[inline(always)]
fn network(skb: *mut __sk_buff) -> Option<u16> {
    let at = globals::skb_network();
    match Typed::of(skb) {
        Some(typed) => Some(read!(typed, at, "u16") as u16),
        None => recorded(skb, at),
    }
}

/// `ip_summed`, and behind it `csum_start` and `csum_offset`.
#[inline(always)]
fn sums(skb: *mut __sk_buff) -> Option<(u64, u32)> {
    let (summed, place) = (globals::skb_summed(), globals::skb_checksum());
    if let Some(typed) = Typed::of(skb) {
        let sums = read!(typed, summed / 8, "u8") >> (summed % 8);
        return Some((sums, read!(typed, place, "u32") as u32));
    }
    // At once: each read is a call.
    let words = recorded::<[u64; SKB_SUMS_LEN as usize / 8]>(skb, globals::skb_sums())?;
    // `offset` is in bits, and what is looked for lies within one word: the loader has looked.
    let bits = |offset: u32| words[(offset / 64) as usize % words.len()] >> (offset % 64);
    let from = globals::skb_sums() * 8;
    Some((bits(summed - from), bits(place * 8 - from) as u32))
}

/// Where a checksum will be written that the kernel leaves to be filled in behind the programs, in bytes behind the beginning of the
/// frame; `Ok(None)` for a frame that has none, and an error where it cannot be read: it is no record then.
#[inline(always)]
fn checksum_field(skb: *mut __sk_buff) -> Result<Option<i64>, ()> {
    const CHECKSUM_PARTIAL: u64 = 3;
    let (summed, place) = sums(skb).ok_or(())?;
    if summed & 3 != CHECKSUM_PARTIAL {
        return Ok(None);
    }
    let headroom = headroom(skb).ok_or(())?;
    Ok(Some(checksum::field(place as u16, (place >> 16) as u16, headroom)))
}

/// Whether the kernel will cut this frame, if it is to be cut, by the headers that were judged: it goes by the protocol
/// and the place of the network header that it was told, and not by what stands in the frame. Where the kernel does not tell
/// what its record looks like, the protocol alone is compared.
#[inline(always)]
pub(crate) fn is_cut_as_read(skb: *mut __sk_buff, ethertype: u16) -> bool {
    const MAC_HEADER: i64 = 14;
    // SAFETY: The context is valid.
    let (gso_size, protocol) = unsafe { ((*skb).gso_size, (*skb).protocol) };
    if gso_size == 0 {
        return true;
    }
    if protocol as u16 != ethertype.to_be() {
        return false;
    }
    if globals::skb_summed() == 0 {
        return true;
    }
    let Some(network) = network(skb) else { return false };
    let Some(headroom) = headroom(skb) else { return false };
    let at = i64::from(network) - headroom;
    // From a tag in the frame, or from what is behind it, the kernel finds the same way.
    let is_tagged = ethertype == ETH_VLAN[0] || ethertype == ETH_VLAN[1];
    at == MAC_HEADER || is_tagged && at == MAC_HEADER + i64::from(TAG_LEN)
}

/// Whether a checksum that is still to be filled in may be written over the source of a frame of this ethertype: over its MAC
/// or its address. Then neither is a proof of anything.
#[inline(always)]
pub(crate) fn is_source_open(skb: *mut __sk_buff, ethertype: u16) -> bool {
    if globals::skb_summed() == 0 {
        return false;
    }
    let field = match checksum_field(skb) {
        Ok(Some(field)) => field,
        Ok(None) => return false,
        // Nothing is known of the frame.
        Err(()) => return true,
    };
    checksum::is_over_source(field, ethertype)
}

/// Whether a checksum that is still to be filled in lies behind everything that is judged, as `is_behind` says of its place. True where the kernel does not
/// tell what its record of a frame looks like.
///
/// No helper says so, and what can be had from them by asking sideways changes: `bpf_skb_change_tail` refused to cut a frame off
/// before the end of its checksum until a fix of 2026 ("Fix bpf_skb_change_tail wrt csum partial skbs": Linux 6.1.189, 6.12.112,
/// 6.18.54), and since then it does cut, and leaves the checksum as it is. So the record itself is read.
#[inline(always)]
pub(crate) fn is_checksum_behind(skb: *mut __sk_buff, is_behind: impl FnOnce(i64) -> bool) -> bool {
    if globals::skb_summed() == 0 {
        return true;
    }
    let field = match checksum_field(skb) {
        Ok(Some(field)) => field,
        Ok(None) => return true,
        Err(()) => return false,
    };
    is_behind(field)
}
