//! Constants the loader writes before the programs are loaded, one set a master.

use netpath_ebpf::abi;

#[unsafe(no_mangle)]
static MASTER: u32 = 0;
#[unsafe(no_mangle)]
static HOST_MAC: u64 = 0;
#[unsafe(no_mangle)]
static CPUS: u32 = 1;
#[unsafe(no_mangle)]
static FLOW_BITS: u32 = abi::flow_bits(1);
#[unsafe(no_mangle)]
static COOKIE_BY: u32 = abi::cookie_by::NOTHING;
#[unsafe(no_mangle)]
static REJECT_MARK: u32 = 0;
#[unsafe(no_mangle)]
static SKB_SUMS: u32 = 0;
#[unsafe(no_mangle)]
static SKB_SUMMED: u32 = 0;
#[unsafe(no_mangle)]
static SKB_CHECKSUM: u32 = 0;
#[unsafe(no_mangle)]
static SKB_HEAD: u32 = 0;
#[unsafe(no_mangle)]
static SKB_NETWORK: u32 = 0;
#[unsafe(no_mangle)]
static HAVE_SKB_TYPE: u32 = 0;
#[unsafe(no_mangle)]
static SKB_SOCKET: u32 = 0;
#[unsafe(no_mangle)]
static SOCKET_NETNS: u32 = 0;
#[unsafe(no_mangle)]
static NETNS_COOKIE: u32 = 0;

/// Dense id of the master these programs sit on.
#[inline(always)]
pub(crate) fn master() -> u16 {
    // SAFETY: A static; volatile because the loader changes it after compilation.
    (unsafe { core::ptr::read_volatile(&raw const MASTER) }) as u16
}

/// The MAC, in memory order, that the host had on the master when the programs were loaded; 0 where that is not known. Frames with it
/// are not looked for among the flows; whose they are it does not say.
#[inline(always)]
pub(crate) fn host_mac() -> u64 {
    // SAFETY: As above.
    unsafe { core::ptr::read_volatile(&raw const HOST_MAC) }
}

/// How TC programs learn the cookie of a frame's network namespace, one of [`abi::cookie_by`]. What they do not use the verifier removes
/// as dead code.
#[inline(always)]
pub(crate) fn cookie_by() -> u32 {
    // SAFETY: As above.
    unsafe { core::ptr::read_volatile(&raw const COOKIE_BY) }
}

/// What our answers to denied frames are marked with on their way back; 0 = nothing is answered.
#[inline(always)]
pub(crate) fn reject_mark() -> u32 {
    // SAFETY: As above.
    unsafe { core::ptr::read_volatile(&raw const REJECT_MARK) }
}

/// CPUs that counters are laid out for.
#[inline(always)]
pub(crate) fn cpus() -> u32 {
    // SAFETY: As above.
    unsafe { core::ptr::read_volatile(&raw const CPUS) }
}

/// Rows of `flows` that each CPU has, as a power of two.
#[inline(always)]
pub(crate) fn flow_bits() -> u32 {
    // SAFETY: As above.
    unsafe { core::ptr::read_volatile(&raw const FLOW_BITS) }
}

/// Whether the loader put the kernel's function in the place of [`abi::CAST_TO_KERNEL`]. Where it did not, the verifier
/// removes the call as dead code.
#[inline(always)]
pub(crate) fn have_skb_type() -> bool {
    // SAFETY: As above.
    unsafe { core::ptr::read_volatile(&raw const HAVE_SKB_TYPE) != 0 }
}

/// Where the kernel's record of a frame (`struct sk_buff`) begins to tell of its checksum, in bytes.
#[inline(always)]
pub(crate) fn skb_sums() -> u32 {
    // SAFETY: As above.
    unsafe { core::ptr::read_volatile(&raw const SKB_SUMS) }
}

/// Where that record has `ip_summed`, in bits; 0 = not known, and nothing of that
/// record is read.
#[inline(always)]
pub(crate) fn skb_summed() -> u32 {
    // SAFETY: As above.
    unsafe { core::ptr::read_volatile(&raw const SKB_SUMMED) }
}

/// Where that record has `csum_start`, and `csum_offset` behind it, in bytes.
#[inline(always)]
pub(crate) fn skb_checksum() -> u32 {
    // SAFETY: As above.
    unsafe { core::ptr::read_volatile(&raw const SKB_CHECKSUM) }
}

/// Where that record has `head`, and `data` behind it, in bytes.
#[inline(always)]
pub(crate) fn skb_head() -> u32 {
    // SAFETY: As above.
    unsafe { core::ptr::read_volatile(&raw const SKB_HEAD) }
}

/// Where that record has `network_header`, in bytes.
#[inline(always)]
pub(crate) fn skb_network() -> u32 {
    // SAFETY: As above.
    unsafe { core::ptr::read_volatile(&raw const SKB_NETWORK) }
}

/// Where that record has `sk`, in bytes.
#[inline(always)]
pub(crate) fn skb_socket() -> u32 {
    // SAFETY: As above.
    unsafe { core::ptr::read_volatile(&raw const SKB_SOCKET) }
}

/// Where a socket (`struct sock`) has its network namespace, in bytes.
#[inline(always)]
pub(crate) fn socket_netns() -> u32 {
    // SAFETY: As above.
    unsafe { core::ptr::read_volatile(&raw const SOCKET_NETNS) }
}

/// Where a network namespace (`struct net`) has its cookie, in bytes.
#[inline(always)]
pub(crate) fn netns_cookie() -> u32 {
    // SAFETY: As above.
    unsafe { core::ptr::read_volatile(&raw const NETNS_COOKIE) }
}
