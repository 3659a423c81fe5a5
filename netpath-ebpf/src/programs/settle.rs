//! That what was judged is what leaves.
//!
//! Whoever may open packet sockets can send frames whose bytes are not the kernel's yet: those of a transmit ring lie in
//! memory that the sender goes on writing to, and a checksum that is still to be filled in is written behind
//! every program, where the sender says. What is larger than a frame may be is cut into frames behind every program as
//! well, with lengths, numbers and checksums written into the headers of each, where the sender said that they are.

use aya_ebpf::{bindings::__sk_buff, helpers::bpf_skb_pull_data};
use netpath_ebpf::{
    checksum,
    packet::{ETH_ARP, ETH_IPV4, ETH_IPV6, ETH_VLAN, IPV4_HEAD, IPV6_HEAD, TAG_LEN},
};

use super::{
    globals,
    record::{headroom, network, sums},
};

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
