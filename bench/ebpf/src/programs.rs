//! Each kind of program three times: one that does nothing, one that reads the headers, one that also looks a
//! row up. And for each kind a stage, by which a test run calls any of them, or one of netpath's.
//!
//! A test run gives a program one and the same buffer again and again. The stage makes of it what a stream of
//! packets is: it can write another address into each, and it takes back the metadata that XDP put in front,
//! for which a frame that never leaves has soon no room. It calls by a tail call from a function of its own, so
//! that the program returns to it. The empty program is called in the same way, so that the stage costs nothing
//! in a difference.

use core::arch::asm;

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_UNSPEC, xdp_action, xdp_md},
    btf_maps::{Array, HashMap, ProgramArray},
    helpers::{bpf_get_prandom_u32, bpf_xdp_adjust_meta},
    macros::{btf_map, classifier, xdp},
    programs::{TcContext, XdpContext},
};

/// What a stage returns when there was nothing to call.
const NOTHING_CALLED: u32 = 77;
/// Bytes of a row of `rows`: about as many as an endpoint has in netpath.
const ROW: usize = 144;

/// What the stage writes into each packet: `base + random below count * step`, big-endian, at `offset`.
/// `count` 0: nothing.
#[repr(C)]
struct Vary {
    offset: u32,
    count: u32,
    step: u32,
    base: u32,
}

#[btf_map(name = "vary")]
static VARY: Array<Vary, 1> = Array::new();
#[btf_map(name = "tc_called")]
static TC_CALLED: ProgramArray<1> = ProgramArray::new();
#[btf_map(name = "xdp_called")]
static XDP_CALLED: ProgramArray<1> = ProgramArray::new();
#[btf_map(name = "rows")]
static ROWS: HashMap<u64, [u8; ROW], 4096> = HashMap::new();

/// Writes into the packet between `data` and `data_end` what `VARY` says.
#[inline(always)]
fn vary(data: usize, data_end: usize) {
    let Some(vary) = VARY.get(0) else { return };
    if vary.count == 0 {
        return;
    }
    let offset = (vary.offset & 63) as usize;
    if data + offset + 4 > data_end {
        return;
    }
    // SAFETY: A helper without arguments.
    let random = unsafe { bpf_get_prandom_u32() };
    let below = ((u64::from(random) * u64::from(vary.count)) >> 32) as u32;
    let value = vary.base.wrapping_add(below.wrapping_mul(vary.step));
    // SAFETY: Checked against the end just now. An assembler store, or it would be one for each byte.
    unsafe {
        asm!("*(u32 *)({0} + 0) = {1}", in(reg) data + offset, in(reg) u64::from(value.to_be()), options(nostack));
    }
}

/// Hides a constant: the compiler knows nothing of calls that do not come back.
#[inline(always)]
fn nothing_called() -> u32 {
    let mut value = u64::from(NOTHING_CALLED);
    // SAFETY: A register moved onto itself.
    unsafe { asm!("{0} = {0}", inout(reg) value, options(nomem, nostack)) };
    value as u32
}

#[inline(never)]
fn call_tc(skb: *mut __sk_buff) -> u32 {
    // SAFETY: Nothing here has to be dropped.
    unsafe { TC_CALLED.tail_call(&TcContext::new(skb), 0) };
    nothing_called()
}

#[inline(never)]
fn call_xdp(buff: *mut xdp_md) -> u32 {
    // SAFETY: Nothing here has to be dropped.
    unsafe { XDP_CALLED.tail_call(&XdpContext::new(buff), 0) };
    nothing_called()
}

/// Calls the TC program in `tc_called`.
#[classifier]
pub(crate) fn tc_stage(ctx: TcContext) -> i32 {
    vary(ctx.data(), ctx.data_end());
    call_tc(ctx.skb.skb) as i32
}

/// Calls the XDP program in `xdp_called`.
#[xdp(frags)]
pub(crate) fn xdp_stage(ctx: XdpContext) -> u32 {
    vary(ctx.data(), ctx.data_end());
    let verdict = call_xdp(ctx.ctx);
    // SAFETY: The context is valid. Reading the two pointers again: what was called may have moved them.
    unsafe {
        let (meta, data) = ((*ctx.ctx).data_meta as usize, (*ctx.ctx).data as usize);
        bpf_xdp_adjust_meta(ctx.ctx, (data - meta) as i32);
    }
    verdict
}

/// Does nothing.
#[classifier]
pub(crate) fn tc_empty(_: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// Reads Ethernet and IPv4.
#[classifier]
pub(crate) fn tc_parse(ctx: TcContext) -> i32 {
    parse(ctx.data(), ctx.data_end());
    TC_ACT_UNSPEC
}

/// Reads Ethernet and IPv4 and looks the source MAC up.
#[classifier]
pub(crate) fn tc_lookup(ctx: TcContext) -> i32 {
    lookup(parse(ctx.data(), ctx.data_end()));
    TC_ACT_UNSPEC
}

/// Does nothing.
#[xdp(frags)]
pub(crate) fn xdp_empty(_: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Reads Ethernet and IPv4.
#[xdp(frags)]
pub(crate) fn xdp_parse(ctx: XdpContext) -> u32 {
    parse(ctx.data(), ctx.data_end());
    xdp_action::XDP_PASS
}

/// Reads Ethernet and IPv4 and looks the source MAC up.
#[xdp(frags)]
pub(crate) fn xdp_lookup(ctx: XdpContext) -> u32 {
    lookup(parse(ctx.data(), ctx.data_end()));
    xdp_action::XDP_PASS
}

/// The source MAC as a key, after the headers have been read.
#[inline(always)]
fn parse(data: usize, data_end: usize) -> u64 {
    if data + 42 > data_end {
        return 0;
    }
    let (low, high, ethertype, total, source, destination): (u64, u64, u64, u64, u64, u64);
    // SAFETY: The verifier proves each load again; `volatile` by being assembler without `pure`.
    unsafe {
        asm!("{0} = *(u32 *)({1} + 6)", out(reg) low, in(reg) data, options(nostack));
        asm!("{0} = *(u16 *)({1} + 10)", out(reg) high, in(reg) data, options(nostack));
        asm!("{0} = *(u16 *)({1} + 12)", out(reg) ethertype, in(reg) data, options(nostack));
        asm!("{0} = *(u16 *)({1} + 16)", out(reg) total, in(reg) data, options(nostack));
        asm!("{0} = *(u32 *)({1} + 26)", out(reg) source, in(reg) data, options(nostack));
        asm!("{0} = *(u32 *)({1} + 30)", out(reg) destination, in(reg) data, options(nostack));
    }
    if ethertype == 8 && total == 0 && source == destination {
        return 0;
    }
    low | high << 32
}

#[inline(always)]
fn lookup(key: u64) {
    // SAFETY: The value is plain bytes and is not changed.
    if let Some(row) = unsafe { ROWS.get(key) } {
        // SAFETY: A byte of the row, read so that the look-up is for something.
        unsafe { core::ptr::read_volatile(row.as_ptr()) };
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: The programs cannot panic; the linker removes this.
    unsafe { core::hint::unreachable_unchecked() }
}

/// The helpers that these programs call are open to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
