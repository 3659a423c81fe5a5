//! The kernel's own record of a frame (`struct sk_buff`), as far as no helper tells what is in it.

use core::arch::asm;

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_get_netns_cookie, bpf_probe_read_kernel},
};
use netpath_ebpf::abi::{CAST_TO_KERNEL, SKB_SUMS_LEN, cookie_by};

use super::globals;

/// A struct of the kernel's as a pointer whose type the verifier knows: what is behind it is read without a call.
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
    /// The record of a frame; `None` where the kernel does not give it out.
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
pub(crate) fn headroom(skb: *mut __sk_buff) -> Option<i64> {
    let at = globals::skb_head();
    let [head, data] = match Typed::of(skb) {
        Some(typed) => [read!(typed, at, "u64"), read!(typed, at + 8, "u64")],
        None => recorded(skb, at)?,
    };
    Some(data.wrapping_sub(head) as i64)
}

/// Where the kernel's record says that the network header begins, in bytes behind the beginning of that memory.
#[inline(always)]
pub(crate) fn network(skb: *mut __sk_buff) -> Option<u16> {
    let at = globals::skb_network();
    match Typed::of(skb) {
        Some(typed) => Some(read!(typed, at, "u16") as u16),
        None => recorded(skb, at),
    }
}

/// `ip_summed`, and behind it `csum_start` and `csum_offset`.
#[inline(always)]
pub(crate) fn sums(skb: *mut __sk_buff) -> Option<(u64, u32)> {
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

/// The cookie of the network namespace that the frame's socket is in; `None` where there is no socket, and where the kernel does not
/// tell.
#[inline(always)]
pub(crate) fn cookie(skb: *mut __sk_buff) -> Option<u64> {
    // In this order: 6.1, which learns none, walks 114,000 instructions of TC ingress, and 207,000 where this is a `match`.
    let by = globals::cookie_by();
    if by == cookie_by::NOTHING {
        return None;
    }
    if by == cookie_by::TYPES {
        let socket = Typed(read!(Typed::of(skb)?, globals::skb_socket(), "u64"));
        if socket.0 == 0 {
            return None;
        }
        let netns = Typed(read!(socket, globals::socket_netns(), "u64"));
        // No socket is without one. But where the kernel's types say that RCU guards this pointer (`__rcu`, as clang writes it),
        // the verifier has nobody read behind it unasked.
        if netns.0 == 0 {
            return None;
        }
        return Some(read!(netns, globals::netns_cookie(), "u64"));
    }
    // SAFETY: The context is valid; the pointer is only compared with null.
    if unsafe { (*skb).__bindgen_anon_2.sk }.is_null() {
        return None;
    }
    // SAFETY: As above.
    Some(unsafe { bpf_get_netns_cookie(skb.cast()) })
}
