//! Filters of the clsact qdisc: how TC programs are attached where TCX is missing or not wanted.

use super::Hook;
use crate::kernel::netlink::{Filter, FilterHook, Netlink, NetlinkError};

/// Priority of our filters: the first there is.
pub const PRIORITY: u16 = 1;
/// Handle of our filters: fixed, so that a second attach replaces the first.
pub const HANDLE: u32 = 0x6e70;

/// Whether a filter has the priority and the handle of ours.
pub fn is_at_our_place(filter: &Filter) -> bool {
    (filter.priority, filter.handle) == (PRIORITY, HANDLE)
}

/// The BPF filters of `ifindex` in the current network namespace, in the order they run; XDP has none.
pub fn filters(ifindex: u32, hook: Hook) -> Result<Vec<Filter>, NetlinkError> {
    let hook = match hook {
        Hook::Ingress => FilterHook::Ingress,
        Hook::Egress => FilterHook::Egress,
        Hook::Xdp => return Ok(Vec::new()),
    };
    Netlink::open()?.bpf_filters(ifindex, hook)
}
