//! Where live traffic begins and where it ends: a generator of frames, a sink that counts, and the least that a
//! program of each type can do to drop.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, xdp_action},
    btf_maps::{Array, PerCpuArray},
    helpers::bpf_redirect,
    macros::{btf_map, classifier, xdp},
    programs::{TcContext, XdpContext},
};

/// Interface index that `xdp_send` hands frames to.
#[btf_map(name = "target")]
static TARGET: Array<u32, 1> = Array::new();
/// Frames that came to `tc_sink`.
#[btf_map(name = "sunk")]
static SUNK: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Sends the frame out of the interface in `target`. Not by XDP_TX, which a frame of a test run would need a driver's
/// queue for.
#[xdp]
pub(crate) fn xdp_send(_: XdpContext) -> u32 {
    match TARGET.get(0) {
        // SAFETY: A helper that takes numbers.
        Some(target) => unsafe { bpf_redirect(*target, 0) as u32 },
        None => xdp_action::XDP_ABORTED,
    }
}

/// Drops.
#[xdp(frags)]
pub(crate) fn xdp_drop(_: XdpContext) -> u32 {
    xdp_action::XDP_DROP
}

/// Drops.
#[classifier]
pub(crate) fn tc_drop(_: TcContext) -> i32 {
    TC_ACT_SHOT
}

/// Counts and drops.
#[classifier]
pub(crate) fn tc_sink(_: TcContext) -> i32 {
    if let Some(sunk) = SUNK.get_ptr_mut(0) {
        // SAFETY: The pointer is to this CPU's own value.
        unsafe { *sunk += 1 };
    }
    TC_ACT_SHOT
}
