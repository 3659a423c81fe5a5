//! Who really sent a frame: what its network namespace's cookie, its VLAN tag and its source address prove.
//!
//! A cookie proves something only if it is the recorded one of an endpoint on this master. Anything else
//! proves nothing: a frame that a kernel made by itself or forwarded has no socket, and the frames that a
//! primary CNI moves from a pod to this NIC carry the pod's cookie and the node's MAC rightly.

use core::mem::MaybeUninit;

use aya_ebpf::{bindings::__sk_buff, btf_maps::lpm_trie::Key, helpers::bpf_skb_load_bytes};
use netpath_ebpf::{
    abi::{
        CookieKey, CookieOwner, Endpoint, Master, TrieKey4, TrieKey6, VlanKey, claim, cookie_by, kind,
        master_flags, mode, unknown_source,
    },
    drop_reason::DropReason,
    packet::{ETH_ARP, ETH_IPV4, ETH_IPV6, ETH_VLAN, TAG_LEN},
    verdict::{Fate, fate},
};

use super::{
    Ethernet, endpoint, globals,
    maps::{CLAIMS_V4, CLAIMS_V6, COOKIES, VLAN_MASTERS},
    record::cookie,
    settle,
};

/// A frame whose source MAC is not its sender's.
#[derive(Clone, Copy)]
pub(crate) struct Offence {
    /// The endpoint that answers for it; 0 = nobody can be named.
    pub endpoint: u32,
    /// Its generation.
    pub generation: u32,
    /// One of [`mode`]: whether it is dropped.
    pub mode: u8,
    /// Number of the drop reason.
    pub reason: u8,
}

impl Offence {
    /// What becomes of the frame.
    #[inline(always)]
    pub(crate) fn fate(self) -> Fate {
        fate(self.mode, self.reason)
    }

    #[inline(always)]
    fn of(owner: &CookieOwner) -> Self {
        Self {
            endpoint: owner.endpoint,
            generation: owner.generation,
            mode: owner.mode,
            reason: DropReason::SourceMac as u8,
        }
    }

    #[inline(always)]
    fn nobodys(mode: u8, reason: DropReason) -> Self {
        Self { endpoint: 0, generation: 0, mode, reason: reason as u8 }
    }
}

/// For whom a frame is judged, and how it is read.
#[derive(Clone, Copy)]
pub(crate) struct View {
    /// The endpoint.
    pub row: &'static Endpoint,
    /// Whether a VLAN tag stands beside the frame that was not accepted.
    pub tagged: bool,
    /// As in [`super::Skb`].
    pub skip: u32,
    /// Whether it is counted if it passes: what comes through a VLAN interface that is a master itself has been.
    pub counts: bool,
}

/// What a VLAN interface above the master explains.
#[derive(Clone, Copy)]
pub(crate) enum Stacked {
    /// The frame of an endpoint of a VLAN interface that is a master itself.
    Policed(View),
    /// The frame of a VLAN interface that nobody polices.
    Open,
    /// Nothing.
    No,
}

/// Whether a frame that the master receives was sent by a socket of the pod of `row`. An older kernel cannot tell, and then
/// it is taken for granted.
///
/// What pods of this node send each other still knows its socket; what comes by a real wire knows none, and by a virtual
/// one that of the other end.
#[inline(always)]
pub(crate) fn is_its_own(skb: *mut __sk_buff, row: &Endpoint) -> bool {
    globals::cookie_by() == cookie_by::NOTHING || cookie(skb) == Some(row.cookie)
}

/// The endpoint of this master that `cookie` belongs to.
#[inline(always)]
fn owner(cookie: u64) -> Option<&'static CookieOwner> {
    let key = CookieKey { cookie, master: u32::from(globals::master()), pad: 0 };
    // SAFETY: Sixteen plain bytes; a row is only ever replaced as a whole.
    unsafe { COOKIES.get(&key) }
}

/// A frame with the MAC of `row`, sent by a pod that has another endpoint on this master.
#[inline(always)]
pub(crate) fn borrowed_mac(skb: *mut __sk_buff, row: &Endpoint) -> Option<Offence> {
    let cookie = cookie(skb)?;
    if cookie == row.cookie {
        return None;
    }
    // Whose row has no cookie may be another interface of the same pod: an upper device that netpath did not make.
    if row.cookie == 0 && !(row.kind == kind::FOREIGN && is_dedicated()) {
        return None;
    }
    owner(cookie).map(Offence::of)
}

#[inline(always)]
fn is_dedicated() -> bool {
    let master = super::MASTERS.get(u32::from(globals::master()));
    master.is_some_and(|master| master.flags & master_flags::DEDICATED != 0)
}

/// A frame of a pod that has an endpoint on this master.
#[inline(always)]
pub(crate) fn pods_own(skb: *mut __sk_buff) -> Option<Offence> {
    cookie(skb).and_then(owner).map(Offence::of)
}

/// A frame with a host MAC that is a pod's.
///
/// The cookie alone says nothing: primary CNIs move a pod's own frames here. Together with an address that
/// is bound to an endpoint of this master it does, and on a NIC that serves attachments alone.
#[inline(always)]
pub(crate) fn borrowed_host_mac(
    skb: *mut __sk_buff,
    master: &Master,
    ethernet: &Ethernet,
    unsettled: bool,
) -> Option<Offence> {
    let dedicated = master.flags & master_flags::DEDICATED != 0;
    match cookie(skb) {
        // The node's own sockets; if it has an endpoint's address, the node wins.
        Some(cookie) if cookie == master.netns_cookie => None,
        Some(cookie) => {
            let owner = owner(cookie)?;
            // A source that is not the one that leaves is nothing that a primary CNI moves here.
            let proven = dedicated
                || unsettled
                || settle::is_source_open(skb, ethernet.ethertype)
                || claims(skb, ethernet) & claim::BOUND != 0;
            if proven { Some(Offence::of(owner)) } else { None }
        }
        None if dedicated => {
            let proven =
                settle::is_source_open(skb, ethernet.ethertype) || claims(skb, ethernet) & claim::BOUND != 0;
            if proven { Some(Offence::nobodys(mode::ENFORCE, DropReason::SourceMac)) } else { None }
        }
        None => None,
    }
}

/// A frame that left with a MAC nobody owns.
#[inline(always)]
pub(crate) fn unknown_mac(
    skb: *mut __sk_buff,
    master: &Master,
    ethernet: &Ethernet,
    unsettled: bool,
) -> Offence {
    if let Some(offence) = pods_own(skb) {
        return offence;
    }
    let dropped = match master.unknown_source {
        unknown_source::AUDIT => false,
        unknown_source::CLAIMED => {
            let claim = claims(skb, ethernet);
            // What it says now it may not say when it leaves.
            unsettled
                || settle::is_source_open(skb, ethernet.ethertype)
                || claim != 0 && claim & claim::HOST == 0
        }
        _ => true,
    };
    Offence::nobodys(if dropped { mode::ENFORCE } else { mode::AUDIT }, DropReason::UnknownSource)
}

/// A frame between pods of this node whose MAC no endpoint has, with an address that one of them has.
///
/// The cookie alone would do on a real wire, which knows no sockets. On a virtual one it may come
/// from the pod's interface on another master.
#[inline(always)]
pub(crate) fn forged_sibling(skb: *mut __sk_buff, ethernet: &Ethernet) -> Option<Offence> {
    let owner = cookie(skb).and_then(owner)?;
    if claims(skb, ethernet) & claim::BOUND != 0 { Some(Offence::of(owner)) } else { None }
}

/// `N` bytes of the frame at `offset`. Not into zeroed memory: to zero it would be a loop over its bytes.
#[inline(always)]
fn load<const N: usize>(skb: *mut __sk_buff, offset: u32) -> Option<[u8; N]> {
    let mut bytes = MaybeUninit::<[u8; N]>::uninit();
    // SAFETY: The context is valid, and `N` bytes are written to `N` bytes or an error is returned.
    unsafe {
        match bpf_skb_load_bytes(skb.cast(), offset, bytes.as_mut_ptr().cast(), N as u32) {
            0 => Some(bytes.assume_init()),
            _ => None,
        }
    }
}

/// Whom the source address of a frame belongs to on this master: bits of [`claim`].
#[inline(always)]
fn claims(skb: *mut __sk_buff, ethernet: &Ethernet) -> u32 {
    claims_of(skb, u32::from(ethernet.ethertype))
}

/// A function of its own: few frames need it. A tagged frame is another network's.
#[inline(never)]
fn claims_of(skb: *mut __sk_buff, ethertype: u32) -> u32 {
    const ARP: u32 = ETH_ARP as u32;
    const IPV4: u32 = ETH_IPV4 as u32;
    const IPV6: u32 = ETH_IPV6 as u32;
    // SAFETY: The context is valid.
    if unsafe { (*skb).vlan_present } != 0 {
        return 0;
    }
    let slot = u32::from(globals::master());
    match ethertype {
        ARP | IPV4 => {
            let offset = if ethertype == ARP { 28 } else { 26 };
            let Some(addr) = load::<4>(skb, offset) else { return 0 };
            CLAIMS_V4.get(&Key::new(64, TrieKey4 { slot, addr })).copied().unwrap_or(0)
        }
        IPV6 => {
            let Some(addr) = load::<16>(skb, 22) else { return 0 };
            CLAIMS_V6.get(&Key::new(160, TrieKey6 { slot, addr })).copied().unwrap_or(0)
        }
        _ => 0,
    }
}

/// Whether a tagged frame of nobody's MAC comes through a VLAN interface above this master.
///
/// A frame with an inline tag that is accepted gets the ethertype behind the tag.
#[inline(always)]
pub(crate) fn stacked(
    skb: *mut __sk_buff,
    master: &Master,
    ethernet: &mut Ethernet,
    tagged: bool,
) -> Stacked {
    if master.flags & master_flags::VLANS == 0 {
        return Stacked::No;
    }
    let inline = ethernet.ethertype == ETH_VLAN[0] || ethernet.ethertype == ETH_VLAN[1];
    // Tag control information, and the ethertype behind an inline tag.
    let (tci, behind) = match (tagged, inline) {
        // SAFETY: The context is valid.
        (true, _) => (unsafe { (*skb).vlan_tci } as u16, ethernet.ethertype),
        (false, true) => match load::<{ TAG_LEN as usize }>(skb, 14) {
            Some([a, b, c, d]) => (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])),
            None => return Stacked::No,
        },
        (false, false) => return Stacked::No,
    };
    let key = VlanKey { master: globals::master(), vid: tci & 0xfff };
    // SAFETY: Four plain bytes.
    match unsafe { VLAN_MASTERS.get(&key) } {
        None => Stacked::No,
        Some(0) => Stacked::Open,
        Some(&upper) => {
            let Some(row) = endpoint(upper as u16, ethernet.source_raw) else { return Stacked::No };
            let skip = if tagged { 0 } else { TAG_LEN };
            ethernet.ethertype = behind;
            Stacked::Policed(View { row, tagged: false, skip, counts: false })
        }
    }
}
