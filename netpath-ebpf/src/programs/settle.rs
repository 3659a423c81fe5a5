//! That what was judged is what leaves.
//!
//! Whoever may open packet sockets can send frames whose bytes are not the kernel's yet: those of a transmit ring lie in
//! memory that the sender goes on writing to, and a checksum that is still to be filled in is written behind
//! every program, where the sender says.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_CSUM_LEVEL_DEC, BPF_CSUM_LEVEL_INC, BPF_CSUM_LEVEL_QUERY},
    helpers::{bpf_csum_level, bpf_skb_change_tail, bpf_skb_pull_data},
};
use netpath_ebpf::packet::{
    ETH_ARP, ETH_IPV4, ETH_IPV6, Facts, ICMP, ICMPV6, IPV4_HEAD, IPV6_HEAD, TAG_LEN, l3,
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

/// Whether a checksum that is still to be filled in lies behind everything that is judged.
///
/// Asked from Linux 6.13 on: on 6.1 and 6.12 the answer was wrong for connections of the kernel's own, for a reason that is
/// not known. Nothing says so directly. Of a frame without a checksum the level can be raised and is there then; of one whose
/// checksum is to be filled in it cannot. And such a frame cannot be cut off before the end of its checksum.
#[inline(always)]
pub(crate) fn is_checksum_behind(skb: *mut __sk_buff, facts: &Facts, skip: u32) -> bool {
    const EINVAL: i64 = -22;
    if !globals::have_cookie() {
        return true;
    }
    // SAFETY: The context is valid.
    unsafe {
        bpf_csum_level(skb, BPF_CSUM_LEVEL_INC.into());
        if bpf_csum_level(skb, BPF_CSUM_LEVEL_QUERY.into()) >= 0 {
            bpf_csum_level(skb, BPF_CSUM_LEVEL_DEC.into());
            return true;
        }
    }
    let is_judged_further = match facts.l3 {
        // Whose type, target and options count, and whose checksum no kernel leaves to others.
        l3::V4 => facts.protocol == ICMP,
        l3::V6 => facts.protocol == ICMPV6,
        _ => true,
    };
    if is_judged_further {
        return false;
    }
    // Behind the ports. What it takes to find out spoils a frame whose checksum is before them, and that one is dropped.
    let ports = u32::from(facts.transport) + skip + 4;
    // SAFETY: As above.
    unsafe { bpf_skb_change_tail(skb, ports + 1, 0) == EINVAL }
}
