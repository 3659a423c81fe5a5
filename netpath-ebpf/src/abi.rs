//! What the programs and user space share: map keys, map values, event records and their version.
//!
//! Nothing else belongs here. Addresses and MACs are bytes in network order; every number is in host
//! order. Padding is spelled out, since the verifier refuses, or the kernel leaks, what is not. Inside one
//! [`ABI_VERSION`] layouts are append-only into padding: any mix of old and new programs on one set of
//! maps is legal.

/// Version of everything in this file; it names the pin directory (`v4`) and stands in [`Meta`].
pub const ABI_VERSION: u32 = 4;
/// The oldest version that reads `masters`, `owners`, `endpoints`, `rules` and all counters of this one as its own: its programs
/// can take the place of these. It stands in [`Meta`]; raise it with a layout of those maps.
pub const READABLE_BY: u32 = 3;

mod flow;
mod zone;

use core::mem::offset_of;

pub use flow::*;
pub use zone::*;

/// Rows of `masters`: NICs of one node that carry policed attachments. Id 0 is never used.
pub const MAX_MASTERS: u32 = 64;
/// MACs by which the host itself sends on one master (device, permanent, upper devices in its namespace).
pub const HOST_MACS: usize = 8;
/// Addresses of one family that an endpoint may send from.
pub const ENDPOINT_ADDRS: usize = 4;
/// Bytes of a zone's or network's name kept for people, zero-padded.
pub const NAME_LEN: usize = 64;
/// Room for drop reasons in [`DropCounters`] and [`Budget`]; a power of two.
pub const REASON_SLOTS: usize = 32;
/// Bytes of the kernel's own record of a frame that programs read at once to learn what becomes of its checksum: from where the
/// loader tells them, on a multiple of eight.
pub const SKB_SUMS_LEN: u32 = 32;
/// What the object calls where `bpf_cast_to_kern_ctx` is meant (Linux 6.2), which makes of a program's context the kernel's own record
/// of the frame. No helper has this number: the loader puts the kernel's function there, whose number each kernel has another.
pub const CAST_TO_KERNEL: u32 = 0x6b66_756e;
/// How programs of TC learn the cookie of a frame's network namespace.
pub mod cookie_by {
    /// Not at all.
    pub const NOTHING: u32 = 0;
    /// By the helper `bpf_get_netns_cookie` (for TC since Linux 6.13).
    pub const HELPER: u32 = 1;
    /// By the types of the kernel's own records (Linux 6.2).
    pub const TYPES: u32 = 2;
}
/// Largest frame head any program reads: Ethernet, IPv6, ICMPv6 error, quoted IPv6 header.
pub const HEAD_LEN: usize = 128;

/// Key of `endpoints`: who sends with this MAC on this master.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C, align(8))]
pub struct EndpointKey {
    /// MAC address of the attachment's interface.
    pub mac: [u8; 6],
    /// Dense id of the master: a row of `masters`.
    pub master: u16,
}

const _: () = assert!(size_of::<EndpointKey>() == 8);

impl EndpointKey {
    /// The key of `mac` on the master with dense id `master`.
    pub const fn new(master: u16, mac: [u8; 6]) -> Self {
        Self { mac, master }
    }
}

/// What a row of `endpoints` stands for.
pub mod kind {
    /// An attachment that netpath made or adopted.
    pub const ENDPOINT: u8 = 1;
    /// Somebody else's upper device found by the census: passed and counted, never judged.
    pub const FOREIGN: u8 = 2;
}

/// What happens to a packet of an endpoint for which a drop reason was found.
pub mod mode {
    /// No zone, or a zone that is switched off: counted, no reason is ever looked for.
    pub const OFF: u8 = 0;
    /// Every reason is counted and reported, the packet passes.
    pub const AUDIT: u8 = 1;
    /// The packet is dropped.
    pub const ENFORCE: u8 = 2;
}

/// Bits of [`Endpoint::flags`].
pub mod endpoint_flags {
    /// Addresses come from DHCP: answers of a DHCP server (UDP 67 to 68) may reach the endpoint.
    pub const DHCP: u16 = 1;
    /// The interface shares the master's MAC (macvlan mode `passthru`): the host-MAC safety net is off.
    pub const PASSTHRU: u16 = 1 << 1;
}

/// Value of `endpoints`: one attachment as the programs see it.
///
/// A row is replaced as a whole by `bpf_map_update_elem`, so a program sees the old or the new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Endpoint {
    /// Index into `owners`, `counters`, `drops` and `budgets`; never 0 in use.
    pub id: u32,
    /// Grows each time the id is given away, so that a late event is not taken for its successor's.
    pub generation: u32,
    /// Row of `zone_words`; 0 = no zone.
    pub zone: u32,
    /// One of [`mode`].
    pub mode: u8,
    /// One of [`kind`].
    pub kind: u8,
    /// Bits of [`endpoint_flags`].
    pub flags: u16,
    /// Network namespace cookie of the sandbox (`SO_NETNS_COOKIE`, Linux 5.14); 0 = unknown.
    pub cookie: u64,
    /// IPv4 addresses it may send from; `0.0.0.0` = unused slot.
    pub v4: [[u8; 4]; ENDPOINT_ADDRS],
    /// IPv4 gateway of the attachment: may be asked for by ARP even outside the zone; `0.0.0.0` = none.
    pub gateway_v4: [u8; 4],
    /// Always zero.
    pub pad: [u8; 4],
    /// IPv6 addresses it may send from; `::` = unused slot.
    pub v6: [[u8; 16]; ENDPOINT_ADDRS],
    /// Its EUI-64 link-local address.
    pub link_local: [u8; 16],
    /// IPv6 gateway of the attachment; `::` = none.
    pub gateway_v6: [u8; 16],
}

const _: () = assert!(size_of::<Endpoint>() == 4 + 4 + 4 + 1 + 1 + 2 + 8 + 16 + 4 + 4 + 64 + 16 + 16);
// The programs read addresses by words.
const _: () = assert!(offset_of!(Endpoint, v4) % 4 == 0 && offset_of!(Endpoint, gateway_v4) % 4 == 0);
const _: () = assert!(offset_of!(Endpoint, v6) % 8 == 0 && offset_of!(Endpoint, link_local) % 8 == 0);
const _: () = assert!(offset_of!(Endpoint, gateway_v6) % 8 == 0 && align_of::<Endpoint>() == 8);

/// Value of `owners`, indexed by endpoint id: whose id it is. All zero = free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Owner {
    /// Key of the endpoint that holds the id; the master is 0 while the id is free.
    pub key: EndpointKey,
    /// Generation last given out for this id.
    pub generation: u32,
    /// Always zero.
    pub pad: u32,
}

const _: () = assert!(size_of::<Owner>() == 16);

/// What [`Master::unknown_source`] says of frames whose source is neither an endpoint nor the host.
pub mod unknown_source {
    /// Counted and reported, passed.
    pub const AUDIT: u8 = 0;
    /// Dropped.
    pub const DROP: u8 = 1;
    /// Dropped if the source address is one that `claims_v4` or `claims_v6` knows, else passed and reported.
    pub const CLAIMED: u8 = 2;
}

/// Bits of [`Master::flags`].
pub mod master_flags {
    /// The NIC serves attachments alone: a host MAC or a foreign one is no excuse for an endpoint's cookie or
    /// address.
    pub const DEDICATED: u32 = 1;
    /// `vlans` has rows for this master.
    pub const VLANS: u32 = 1 << 1;
}

/// Value of `masters`, indexed by dense master id. `ifindex` 0 = free row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Master {
    /// Cookie of the network namespace the master lives in: ifindexes repeat between namespaces.
    pub netns_cookie: u64,
    /// Random, drawn when the row is made: XDP stamps it in front of a frame that it has counted.
    pub stamp: u64,
    /// Interface index of the master in its namespace.
    pub ifindex: u32,
    /// One of [`unknown_source`].
    pub unknown_source: u8,
    /// How many of `host_macs` are in use.
    pub host_mac_count: u8,
    /// Its MTU. XDP counts no frame that is longer: on the wire it was several. 0 = not known, XDP counts none.
    pub mtu: u16,
    /// MACs the host sends with; unused entries are all zero, which is nobody's MAC.
    pub host_macs: [[u8; 8]; HOST_MACS],
    /// Interface name when the row was made, zero-padded, for people.
    pub name: [u8; 16],
    /// Digest of the object file that the attached programs come from; 0 = not attached yet.
    pub object: u64,
    /// Bits of [`master_flags`].
    pub flags: u32,
    /// Always zero.
    pub pad: u32,
}

const _: () = assert!(size_of::<Master>() == 8 + 8 + 4 + 1 + 1 + 2 + 8 * HOST_MACS + 16 + 8 + 8);

/// Key of `cookies`: a pod that has an attachment on a master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct CookieKey {
    /// Cookie of the pod's network namespace, never 0.
    pub cookie: u64,
    /// Dense id of the master.
    pub master: u32,
    /// Always zero.
    pub pad: u32,
}

/// Value of `cookies`: which of the pod's endpoints answers for a frame that proves to be the pod's although
/// its source MAC is another. Only endpoints that are judged have a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct CookieOwner {
    /// Endpoint id.
    pub endpoint: u32,
    /// Its generation.
    pub generation: u32,
    /// One of [`mode`]; of several endpoints of the pod the strictest.
    pub mode: u8,
    /// Always zero.
    pub pad: [u8; 7],
}

const _: () = assert!(size_of::<CookieKey>() == 16 && size_of::<CookieOwner>() == 16);

/// Values of `claims_v4` and `claims_v6`, tries keyed by (master, address): who an address belongs to.
pub mod claim {
    /// It is bound to an endpoint of the master.
    pub const BOUND: u32 = 1;
    /// It lies in the local prefixes of a zone that an endpoint of the master has.
    pub const LOCAL: u32 = 1 << 1;
    /// The node has it on the master: its frames pass even with a MAC that it took on since.
    pub const HOST: u32 = 1 << 2;
}

/// Key of `vlans`: a VLAN interface that sits on a master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct VlanKey {
    /// Dense id of the master below.
    pub master: u16,
    /// VLAN id.
    pub vid: u16,
}

/// Value of `vlans`: dense id of the VLAN interface where it is a master itself, 0 where it is not policed.
pub type VlanMaster = u32;

/// Value of `counters`, indexed by `endpoint id * CPUs + CPU`: one cache line an endpoint and CPU.
///
/// Packets are packets on the wire (a GSO packet counts its segments), bytes are frame bytes without
/// FCS. "tx" is what the pod sent. Dropped packets are not part of `*_packets`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Counters {
    /// Packets the endpoint sent that passed.
    pub tx_packets: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Packets to the endpoint that passed.
    pub rx_packets: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Packets the endpoint sent that were dropped.
    pub tx_dropped: u64,
    /// Packets to the endpoint that were dropped.
    pub rx_dropped: u64,
    /// Packets sent that passed only because the mode is audit; part of `tx_packets`.
    pub tx_audited: u64,
    /// Packets received that passed only because the mode is audit; part of `rx_packets`.
    pub rx_audited: u64,
}

const _: () = assert!(size_of::<Counters>() == 64);

/// Value of `master_counters`, indexed by `master id * CPUs + CPU`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct MasterCounters {
    /// Frames with a host MAC, both directions; passed unread.
    pub host_packets: u64,
    /// Frames an endpoint's row would have dropped although the MAC is the host's: passed, and an alert.
    pub host_dropped: u64,
    /// Frames sent with a MAC that nobody owns, passed.
    pub unknown_passed: u64,
    /// Frames sent with a MAC that nobody owns, dropped.
    pub unknown_dropped: u64,
    /// Frames received for a group MAC: one copy for every upper device, attributed to none.
    pub group_packets: u64,
    /// Drop events written to `events`.
    pub events_emitted: u64,
    /// Drop events withheld because the budget of their endpoint and reason was used up.
    pub events_limited: u64,
    /// Drop events lost because `events` was full.
    pub events_lost: u64,
}

const _: () = assert!(size_of::<MasterCounters>() == 64);

/// Direction of a packet, as index into [`DropCounters`] and [`Budget`] and in [`DropEvent`].
pub mod direction {
    /// The endpoint sent it.
    pub const TX: u8 = 0;
    /// It was for the endpoint.
    pub const RX: u8 = 1;
}

/// Value of `drops`, indexed by endpoint id: packets by reason (index: number of the drop reason).
///
/// Added to with atomic instructions, since all CPUs share it. Row 0 holds frames that nobody owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct DropCounters {
    /// Sent packets that were dropped.
    pub tx_dropped: [u64; REASON_SLOTS],
    /// Received packets that were dropped.
    pub rx_dropped: [u64; REASON_SLOTS],
    /// Sent packets that would have been dropped in mode enforce.
    pub tx_audited: [u64; REASON_SLOTS],
    /// Received packets that would have been dropped in mode enforce.
    pub rx_audited: [u64; REASON_SLOTS],
}

const _: () = assert!(size_of::<DropCounters>() == 4 * 8 * REASON_SLOTS);

/// Value of `budgets`, indexed by endpoint id: how many events each (direction, reason) may still emit.
///
/// Signed, and tested for "not above zero": two CPUs that race may overshoot by one, never wrap. Only the
/// consumer of `events` refills it, so that without one a drop is counted and not emitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Budget {
    /// Events left, by reason, for packets the endpoint sent.
    pub tx: [i32; REASON_SLOTS],
    /// Events left, by reason, for packets to the endpoint.
    pub rx: [i32; REASON_SLOTS],
}

const _: () = assert!(size_of::<Budget>() == 2 * 4 * REASON_SLOTS);

/// Nanoseconds in which an endpoint earns one answer more: a hundred a second.
pub const REJECT_INTERVAL_NS: u64 = 10_000_000;
/// Answers that an endpoint may have saved.
pub const REJECT_BURST: i64 = 50;

/// Value of `rejects`, indexed by endpoint id: the token bucket of its answers to what it may not send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Reject {
    /// Answers that may still be sent.
    pub tokens: i64,
    /// Time of the last refill, nanoseconds of `CLOCK_MONOTONIC`.
    pub refilled_ns: u64,
    /// Answers sent.
    pub sent: u64,
    /// Answers withheld because the bucket was empty.
    pub limited: u64,
}

const _: () = assert!(size_of::<Reject>() == 32);

/// One packet that was dropped, or would have been, written to `events`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct DropEvent {
    /// Endpoint id; 0 = nobody's frame.
    pub endpoint: u32,
    /// Generation of the endpoint row: a reader that finds another one drops the event.
    pub generation: u32,
    /// Dense id of the master.
    pub master: u16,
    /// Ethertype, host order; a VLAN tag that stands in the frame is one; below 1536 it is a length.
    pub ethertype: u16,
    /// A drop reason as a number: the programs may be newer than the reader.
    pub reason: u8,
    /// One of [`direction`].
    pub direction: u8,
    /// 1 = only audited, the packet passed.
    pub audited: u8,
    /// IP protocol or last next-header value; 0 for ARP and what is not IP.
    pub protocol: u8,
    /// Source address; IPv4 as `::ffff:a.b.c.d`; for ARP the sender's; all zero where there is none.
    pub source: [u8; 16],
    /// Destination address in the same form; for ARP and neighbour messages the target.
    pub destination: [u8; 16],
    /// Source port, or ICMP type; 0 where there is none.
    pub source_port: u16,
    /// Destination port, or ICMP code; 0 where there is none.
    pub destination_port: u16,
    /// Frame length in bytes.
    pub length: u32,
    /// Source MAC.
    pub source_mac: [u8; 6],
    /// Destination MAC.
    pub destination_mac: [u8; 6],
    /// Where the zone denied it: which of the zone's rules did, 0 = no entry matched.
    pub rule: u8,
    /// Always zero.
    pub pad: [u8; 3],
}

const _: () = assert!(size_of::<DropEvent>() == 4 + 4 + 2 + 2 + 4 + 16 + 16 + 2 + 2 + 4 + 6 + 6 + 4);

/// The one value of `meta`: what wrote these maps. The same in every version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Meta {
    /// [`ABI_VERSION`] of the writer.
    pub abi_version: u32,
    /// CPUs that `counters` has room for (`num_possible_cpus`).
    pub cpus: u32,
    /// Endpoint id given out last: ids are handed out in turn, so that a freed one rests.
    pub last_endpoint_id: u32,
    /// The highest row of `zone_words` that was ever used: those above need not be read.
    pub zone_rows: u32,
    /// The highest row of `masters` that was ever used.
    pub master_rows: u32,
    /// [`READABLE_BY`] of the writer; 0: of nobody but its own version.
    pub readable_by: u32,
}

const _: () = assert!(size_of::<Meta>() == 24);
