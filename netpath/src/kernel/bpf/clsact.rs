//! Filters of the clsact qdisc: how TC programs are attached where TCX is missing or not wanted.
//!
//! All of it goes by the interface's number: a name may be another one's by now.

use std::os::fd::{AsFd as _, OwnedFd};

use super::Hook;
use crate::kernel::netlink::{CLSACT, Filter, FilterHook, FilterPlace, Netlink, NetlinkError};

/// Where our filters stand: at the first priority there is, with a handle of their own, so that a second attach replaces the first.
const PLACE: FilterPlace = FilterPlace { priority: 1, handle: 0x6e70 };

/// Whether a filter stands where ours do.
pub fn is_at_our_place(filter: &Filter) -> bool {
    filter.place == PLACE && filter.protocol == FilterPlace::EVERYTHING
}

/// The BPF filters of `ifindex` in the current network namespace, in the order they run; XDP has none.
pub fn filters(ifindex: u32, hook: Hook) -> Result<Vec<Filter>, NetlinkError> {
    match filter_hook(hook) {
        Some(hook) => Netlink::open()?.bpf_filters(ifindex, hook),
        None => Ok(Vec::new()),
    }
}

/// Has `ifindex` have a clsact qdisc; the kind of the one that has its place, if it is another one.
pub(super) fn add(ifindex: u32) -> Result<Option<String>, NetlinkError> {
    let mut netlink = Netlink::open()?;
    match netlink.add_clsact(ifindex) {
        Err(error) if error.errno() == Some(libc::EEXIST) => {
            Ok(netlink.filter_qdisc(ifindex)?.filter(|kind| kind != CLSACT))
        }
        added => added.map(|()| None),
    }
}

/// Adds a filter for a program, or puts it in the place of the one that stands where ours do.
pub(super) fn put(ifindex: u32, hook: Hook, program: &OwnedFd) -> Result<(), NetlinkError> {
    let Some(at) = filter_hook(hook) else { return Ok(()) };
    let mut netlink = Netlink::open()?;
    let instead = netlink.bpf_filters(ifindex, at)?.iter().any(is_at_our_place);
    netlink.set_bpf_filter(ifindex, at, PLACE, (program.as_fd(), hook.name()), instead)
}

/// Removes the filter that stands where ours do; the caller knows whose it is.
pub(super) fn remove(ifindex: u32, hook: Hook) -> Result<(), NetlinkError> {
    let Some(at) = filter_hook(hook) else { return Ok(()) };
    let mut netlink = Netlink::open()?;
    let removed = netlink.delete_filter(ifindex, at, PLACE);
    // There are several numbers for one that somebody has removed meanwhile, or its qdisc.
    if removed.is_err() && !netlink.bpf_filters(ifindex, at)?.iter().any(is_at_our_place) {
        return Ok(());
    }
    removed
}

const fn filter_hook(hook: Hook) -> Option<FilterHook> {
    match hook {
        Hook::Ingress => Some(FilterHook::Ingress),
        Hook::Egress => Some(FilterHook::Egress),
        Hook::Xdp => None,
    }
}
