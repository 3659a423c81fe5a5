//! Facts read from the bytes of a frame. No maps, no pointers, no policy.
//!
//! A program reads Ethernet first and looks for the owner of the frame; only a frame that belongs to a
//! policed endpoint comes here. Everything is read at constant offsets from a [`Head`], so that the same
//! code runs on packet memory, on a copy of it, and on a slice in a test. What lies at a variable offset
//! (IPv6 extension headers) is read by [`walk`] through [`Load`].

use crate::{
    bits::{eq32, opaque},
    drop_reason::DropReason,
};

/// Length of an Ethernet header.
pub const ETH_LEN: u32 = 14;
/// Length of a VLAN tag.
pub const TAG_LEN: u32 = 4;
/// Ethertype of IPv4.
pub const ETH_IPV4: u16 = 0x0800;
/// Ethertype of ARP.
pub const ETH_ARP: u16 = 0x0806;
/// Ethertype of IPv6.
pub const ETH_IPV6: u16 = 0x86dd;
/// Ethertypes of VLAN tags: 802.1Q, 802.1ad, and the old QinQ.
pub const ETH_VLAN: [u16; 3] = [0x8100, 0x88a8, 0x9100];

/// Bytes of head that [`arp`] reads.
pub const ARP_HEAD: usize = 42;
/// Bytes of head that [`ipv4`] reads.
pub const IPV4_HEAD: usize = 42;
/// Bytes of head that [`ipv6`] reads.
pub const IPV6_HEAD: usize = 62;
/// Bytes of head that [`neighbour`], [`quote4`] and [`quote6`] read.
pub const LONG_HEAD: usize = 106;

/// IPv4's ICMP.
pub const ICMP: u8 = 1;
const IGMP: u8 = 2;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
const SCTP: u8 = 132;
/// IPv6's ICMP.
pub const ICMPV6: u8 = 58;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// The first bytes of a frame at constant offsets. Bytes behind the end of the frame read as anything:
/// whoever asks compares with the frame's length first.
pub trait Head {
    /// The byte at `OFFSET`.
    fn u8<const OFFSET: usize>(&self) -> u8;
    /// Two bytes at `OFFSET` as the number they mean on the wire.
    fn u16<const OFFSET: usize>(&self) -> u16;
    /// Four bytes at `OFFSET` in memory order, as [`crate::bits::raw4`].
    fn raw4<const OFFSET: usize>(&self) -> u32;
    /// Eight bytes at `OFFSET` in memory order.
    fn raw8<const OFFSET: usize>(&self) -> u64;
}

/// A frame, whatever holds it.
pub trait Frame {
    /// Its first bytes.
    type Head: Head;

    /// Length of the frame in bytes.
    fn length(&self) -> u32;
    /// A head that covers `N` bytes, where the frame has them.
    fn head<const N: usize>(&self) -> Option<Self::Head>;
    /// A head that covers [`LONG_HEAD`] bytes, where the frame has them.
    fn long_head(&self) -> Option<Self::Head>;
    /// [`walk`], which a program keeps as a function of its own: a loop over variable offsets has no place
    /// in a verdict.
    fn walk(&self, first: u8, end: u32) -> u64;
}

/// Bytes of a frame at variable offsets.
pub trait Load {
    /// Two bytes at `offset`, in wire order; `None` behind the end of the frame.
    fn pair(&self, offset: u32) -> Option<[u8; 2]>;
}

/// Layer-3 protocol of a frame.
pub mod l3 {
    /// Not read, or none of the three.
    pub const NONE: u8 = 0;
    /// ARP.
    pub const ARP: u8 = 1;
    /// IPv4.
    pub const V4: u8 = 4;
    /// IPv6.
    pub const V6: u8 = 6;
}

/// Bits of [`Facts::bits`].
pub mod bit {
    /// ARP: sender hardware address is the frame's source MAC, form and operation are right.
    pub const ARP_FORM: u32 = 1;
    /// ARP: a request from 0.0.0.0.
    pub const ARP_PROBE: u32 = 1 << 1;
    /// UDP from port 67 (IPv4) or 547 (IPv6): speaks as a DHCP server.
    pub const DHCP_SERVER: u32 = 1 << 2;
    /// UDP to port 67 from port 68.
    pub const DHCP_CLIENT: u32 = 1 << 3;
    /// UDP to port 68 (IPv4) or 546 (IPv6): towards a DHCP client.
    pub const TO_DHCP_CLIENT: u32 = 1 << 4;
    /// IGMP.
    pub const IGMP: u32 = 1 << 5;
    /// An ICMP or ICMPv6 error.
    pub const ICMP_ERROR: u32 = 1 << 6;
    /// ICMPv6.
    pub const ICMPV6: u32 = 1 << 7;
    /// ICMPv6 router advertisement or redirect.
    pub const ROUTER: u32 = 1 << 8;
    /// ICMPv6 router solicitation.
    pub const ROUTER_SOLICITATION: u32 = 1 << 9;
    /// ICMPv6 neighbour solicitation.
    pub const SOLICITATION: u32 = 1 << 10;
    /// ICMPv6 neighbour advertisement.
    pub const ADVERTISEMENT: u32 = 1 << 11;
    /// ICMPv6 multicast listener message.
    pub const MLD: u32 = 1 << 12;
    /// Neighbour solicitation or advertisement whose form and link-layer options are right.
    pub const ND_FORM: u32 = 1 << 13;
    /// The IPv6 packet has extension headers; it must be walked.
    pub const WALK: u32 = 1 << 14;
    /// A fragment other than the first: no ports.
    pub const LATER_FRAGMENT: u32 = 1 << 15;
    /// Any fragment.
    pub const ANY_FRAGMENT: u32 = 1 << 16;
    /// The packet has IPv6 extension headers and was walked.
    pub const WALKED: u32 = 1 << 17;
    /// ARP: an answer to a probe, which names 0.0.0.0 as its target.
    pub const ARP_DEFENCE: u32 = 1 << 18;
}

/// What the bytes of one frame say.
///
/// Addresses are in memory order (see [`crate::bits`]). In the kernel this lives in a per-CPU map value:
/// written before the verdict and read back by it, so that the verifier forgets how it came about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Facts {
    /// Source address of IPv6.
    pub source6: [u64; 2],
    /// Destination address of IPv6.
    pub destination6: [u64; 2],
    /// Target of a neighbour message, or destination quoted by an ICMPv6 error.
    pub target6: [u64; 2],
    /// Source address of a packet quoted by an ICMPv6 error.
    pub quoted6: [u64; 2],
    /// Source address of IPv4, sender protocol address of ARP.
    pub source4: u32,
    /// Destination address of IPv4, target protocol address of ARP.
    pub destination4: u32,
    /// Destination address of a packet quoted by an ICMP error.
    pub target4: u32,
    /// Source address of a packet quoted by an ICMP error.
    pub quoted4: u32,
    /// Bits of [`bit`].
    pub bits: u32,
    /// Length of the frame without VLAN metadata.
    pub length: u32,
    /// Where an IPv6 packet ends in the frame; the rest is padding.
    pub end: u32,
    /// Ethertype, or a length below 1536.
    pub ethertype: u16,
    /// Source port, or ICMP type.
    pub source_port: u16,
    /// Destination port, or ICMP code.
    pub destination_port: u16,
    /// Where in the frame, without an accepted tag, what an IP packet carries begins.
    pub transport: u16,
    /// One of [`l3`].
    pub l3: u8,
    /// IP protocol, or the last next-header value of IPv6.
    pub protocol: u8,
    /// Number of a drop reason that the bytes alone give; 0 = none.
    pub flaw: u8,
    /// Always zero.
    pub pad: [u8; 1],
}

impl Facts {
    /// Starts over for a frame of `length` bytes. Addresses stay as they are: they mean something only where `l3` says that
    /// they were read, and a target or a quoted address only where `bits` say so.
    #[expect(clippy::cast_possible_truncation, reason = "the only value cast is zero")]
    #[inline(always)]
    pub fn reset(&mut self, ethertype: u16, length: u32) {
        // A zero that the compiler does not know: it would call `memset`, which in BPF is a loop over bytes.
        let zero = opaque(0);
        let (word, half, byte) = (zero as u32, zero as u16, zero as u8);
        self.bits = word;
        self.length = length;
        self.ethertype = ethertype;
        self.source_port = half;
        self.destination_port = half;
        self.transport = half;
        self.l3 = byte;
        self.protocol = byte;
        self.flaw = byte;
    }
}

/// Reads what the verdict needs to know of a frame; `tagged`: a VLAN tag stands beside it.
#[inline(always)]
pub fn read(frame: &impl Frame, ethertype: u16, tagged: bool, facts: &mut Facts) {
    facts.reset(ethertype, frame.length());
    if tagged {
        facts.flaw = DropReason::Vlan as u8;
        return;
    }
    match ethertype {
        ETH_ARP => match frame.head::<ARP_HEAD>() {
            Some(head) => arp(&head, facts),
            None => facts.flaw = DropReason::Malformed as u8,
        },
        ETH_IPV4 => match frame.head::<IPV4_HEAD>() {
            Some(head) => ipv4(&head, facts),
            None => facts.flaw = DropReason::Malformed as u8,
        },
        ETH_IPV6 => match frame.head::<IPV6_HEAD>() {
            Some(head) => ipv6(&head, facts),
            None => facts.flaw = DropReason::Malformed as u8,
        },
        other => other_ethertype(other, facts),
    }
    if facts.bits & bit::WALK != 0 && facts.flaw == 0 {
        walked(frame.walk(facts.protocol, facts.end), facts);
    }
    const RARE: u32 = bit::SOLICITATION | bit::ADVERTISEMENT | bit::ICMP_ERROR;
    if facts.bits & RARE != 0 {
        body(frame, facts);
    }
}

/// Reads the bodies that few packets have.
#[inline(always)]
fn body(frame: &impl Frame, facts: &mut Facts) {
    let zero = opaque(0);
    facts.target6 = [zero, zero];
    facts.quoted6 = [zero, zero];
    (facts.target4, facts.quoted4) = (0, 0);
    let Some(head) = frame.long_head() else { return };
    if facts.bits & (bit::SOLICITATION | bit::ADVERTISEMENT) != 0 {
        neighbour(&head, facts);
    } else if facts.l3 == l3::V4 {
        quote4(&head, facts);
    } else {
        quote6(&head, facts);
    }
}

/// The flaw of a frame whose ethertype is none of the three.
#[inline(always)]
pub fn other_ethertype(ethertype: u16, facts: &mut Facts) {
    facts.flaw = match ethertype {
        e if e == ETH_VLAN[0] || e == ETH_VLAN[1] || e == ETH_VLAN[2] => DropReason::Vlan,
        _ => DropReason::Ethertype,
    } as u8;
}

/// Reads an ARP packet (RFC 826). `facts` has been reset.
#[inline(always)]
pub fn arp(head: &impl Head, facts: &mut Facts) {
    facts.l3 = l3::ARP;
    if facts.length < 42 {
        (facts.source4, facts.destination4) = (0, 0);
        facts.flaw = DropReason::Malformed as u8;
        return;
    }
    // Ethernet, IPv4, address lengths 6 and 4: one word, then the operation.
    let form =
        eq32(head.raw4::<14>(), u32::from_ne_bytes([0, 1, 8, 0])) & eq32(u32::from(head.u16::<18>()), 0x0604);
    let operation = head.u16::<20>();
    let sender_mac = eq32(head.raw4::<22>(), head.raw4::<6>())
        & eq32(u32::from(head.u16::<26>()), u32::from(head.u16::<10>()));
    facts.source4 = head.raw4::<28>();
    facts.destination4 = head.raw4::<38>();
    let request = eq32(u32::from(operation), 1);
    let reply = eq32(u32::from(operation), 2);
    facts.bits = ((form & sender_mac & (request | reply)) * bit::ARP_FORM)
        | ((request & eq32(facts.source4, 0)) * bit::ARP_PROBE)
        | ((reply & eq32(facts.destination4, 0)) * bit::ARP_DEFENCE);
}

/// Reads an IPv4 header and the first four bytes behind it (RFC 791). `facts` has been reset.
#[inline(always)]
pub fn ipv4(head: &impl Head, facts: &mut Facts) {
    facts.l3 = l3::V4;
    facts.transport = 34;
    if facts.length < 34 {
        (facts.source4, facts.destination4) = (0, 0);
        facts.flaw = DropReason::Malformed as u8;
        return;
    }
    let version = head.u8::<14>();
    let total = u32::from(head.u16::<16>());
    let fragment = head.u16::<20>();
    let protocol = head.u8::<23>();
    facts.protocol = protocol;
    facts.source4 = head.raw4::<26>();
    facts.destination4 = head.raw4::<30>();
    let header = u32::from(version & 15) * 4;
    let room = facts.length - ETH_LEN;
    // Total length 0 is what a packet above 64 KiB says that is still to be segmented (BIG TCP).
    let total = if total == 0 && room > 0xffff { room } else { total };
    let later = fragment & 0x1fff != 0;
    // The transport header must be there, or a program behind this one reads something else than we do.
    let least = match protocol {
        _ if later => header,
        TCP => header + 20,
        SCTP => header + 12,
        UDP | ICMP | IGMP => header + 8,
        _ => header,
    };
    if version >> 4 != 4 || header < 20 || total < least || room < total {
        facts.flaw = DropReason::Malformed as u8;
        return;
    }
    let mut bits = 0;
    if fragment & 0x3fff != 0 {
        bits |= bit::ANY_FRAGMENT;
    }
    if header != 20 {
        // Router Alert is what IGMP carries (RFC 2236); any other option can change where a packet goes
        // or who answers it.
        let alert = header == 24 && protocol == IGMP && facts.length >= 38 && head.u16::<34>() == 0x9404;
        if !alert {
            facts.flaw = DropReason::IpOptions as u8;
            return;
        }
        // Back at once: what follows would be verified once more for this header length.
        facts.bits = bits | if later { bit::LATER_FRAGMENT } else { bit::IGMP };
        return;
    }
    if later {
        facts.bits = bits | bit::LATER_FRAGMENT;
        return;
    }
    match protocol {
        UDP => {
            let (source, destination) = (head.u16::<34>(), head.u16::<36>());
            facts.source_port = source;
            facts.destination_port = destination;
            bits |= eq32(u32::from(source), 67) * bit::DHCP_SERVER;
            bits |= (eq32(u32::from(source), 68) & eq32(u32::from(destination), 67)) * bit::DHCP_CLIENT;
            bits |= eq32(u32::from(destination), 68) * bit::TO_DHCP_CLIENT;
        }
        TCP | SCTP => {
            facts.source_port = head.u16::<34>();
            facts.destination_port = head.u16::<36>();
        }
        ICMP => {
            let kind = head.u8::<34>();
            facts.source_port = u16::from(kind);
            facts.destination_port = u16::from(head.u8::<35>());
            let kind = u32::from(kind);
            bits |= (eq32(kind, 3) | eq32(kind, 11) | eq32(kind, 12)) * bit::ICMP_ERROR;
        }
        IGMP => bits |= bit::IGMP,
        _ => {}
    }
    facts.bits = bits;
}

/// Reads an IPv6 header and the first eight bytes behind it (RFC 8200). `facts` has been reset.
#[inline(always)]
pub fn ipv6(head: &impl Head, facts: &mut Facts) {
    facts.l3 = l3::V6;
    facts.transport = 54;
    if facts.length < 54 {
        let zero = opaque(0);
        (facts.source6, facts.destination6) = ([zero, zero], [zero, zero]);
        facts.flaw = DropReason::Malformed as u8;
        return;
    }
    let payload = u32::from(head.u16::<18>());
    let next = head.u8::<20>();
    facts.protocol = next;
    facts.source6 = [head.raw8::<22>(), head.raw8::<30>()];
    facts.destination6 = [head.raw8::<38>(), head.raw8::<46>()];
    let room = facts.length - 54;
    // Payload length 0 is what a packet above 64 KiB says that is still to be segmented (BIG TCP).
    let payload = if payload == 0 && room > 0xffff { room } else { payload };
    let least = match next {
        TCP => 20,
        SCTP => 12,
        UDP => 8,
        ICMPV6 => 8,
        HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS | AUTHENTICATION => 8,
        _ => 0,
    };
    if head.u8::<14>() >> 4 != 6 || payload < least || room < payload {
        facts.flaw = DropReason::Malformed as u8;
        return;
    }
    match next {
        HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS | AUTHENTICATION => {
            facts.bits = bit::WALK;
            facts.end = 54 + payload;
        }
        _ => transport6(next, [head.u8::<54>(), head.u8::<55>(), head.u8::<56>(), head.u8::<57>()], facts),
    }
}

/// Reads the first four bytes of what an IPv6 packet carries.
#[inline(always)]
fn transport6(protocol: u8, start: [u8; 4], facts: &mut Facts) {
    let source = u16::from_be_bytes([start[0], start[1]]);
    let destination = u16::from_be_bytes([start[2], start[3]]);
    match protocol {
        UDP => {
            facts.source_port = source;
            facts.destination_port = destination;
            facts.bits |= (eq32(u32::from(source), 547) * bit::DHCP_SERVER)
                | (eq32(u32::from(destination), 546) * bit::TO_DHCP_CLIENT);
        }
        TCP | SCTP => {
            facts.source_port = source;
            facts.destination_port = destination;
        }
        ICMPV6 => {
            facts.source_port = u16::from(start[0]);
            facts.destination_port = u16::from(start[1]);
            facts.bits |= bit::ICMPV6
                | match start[0] {
                    1..=4 => bit::ICMP_ERROR,
                    130..=132 | 143 => bit::MLD,
                    133 => bit::ROUTER_SOLICITATION,
                    134 | 137 => bit::ROUTER,
                    135 => bit::SOLICITATION,
                    136 => bit::ADVERTISEMENT,
                    _ => 0,
                };
        }
        _ => {}
    }
}

/// Follows the extension headers of an IPv6 packet that ends at `end` and packs what it finds into one number:
/// bits 0–7 the last protocol, 8 routing header or chain that cannot be followed, 9 fragment, 10 later
/// fragment, 16–31 where the payload begins, 32–63 its first four bytes in wire order.
///
/// `end` is the packet's, not the frame's: whoever receives it cuts off what lies behind, and a header that
/// we read there could stand for the one that a later fragment brings. A number, because in the kernel this
/// is a function of its own, which can return nothing else.
#[expect(clippy::cast_possible_truncation, reason = "six headers of at most 2048 bytes each")]
#[inline(always)]
pub fn walk(first: u8, end: u32, frame: &impl Load) -> u64 {
    const BAD: u64 = 1 << 8;
    let mut next = first;
    let mut offset: u32 = 54;
    let mut found: u64 = 0;
    // RFC 8200 allows each header once and destination options twice: six is all a host may send.
    for _ in 0..6 {
        match next {
            HOP_BY_HOP | DESTINATION_OPTIONS | AUTHENTICATION | FRAGMENT => {}
            // Its last address, not the one in the header, is where the packet goes.
            ROUTING => return found | BAD,
            _ => break,
        }
        let Some(pair) = frame.pair(offset) else { return found | BAD };
        let mut later = false;
        if next == FRAGMENT {
            let Some(position) = frame.pair(offset + 2) else { return found | BAD };
            found |= 1 << 9;
            later = u16::from_be_bytes(position) & 0xfff8 != 0;
            offset += 8;
        } else if next == AUTHENTICATION {
            offset += (u32::from(pair[1]) + 2) * 4;
        } else {
            offset += (u32::from(pair[1]) + 1) * 8;
        }
        if offset > end {
            return found | BAD;
        }
        next = pair[0];
        if later {
            return found | 1 << 10 | u64::from(next) | u64::from(offset as u16) << 16;
        }
    }
    found |= u64::from(next) | u64::from(offset as u16) << 16;
    let least = match next {
        HOP_BY_HOP | DESTINATION_OPTIONS | AUTHENTICATION | FRAGMENT | ROUTING => return found | BAD,
        TCP => 20,
        SCTP => 12,
        UDP | ICMPV6 => 8,
        _ => return found,
    };
    if offset + least > end {
        return found | BAD;
    }
    let (Some(a), Some(b)) = (frame.pair(offset), frame.pair(offset + 2)) else { return found | BAD };
    found | u64::from(u32::from_be_bytes([a[0], a[1], b[0], b[1]])) << 32
}

/// Adds what [`walk`] found to `facts`.
#[inline(always)]
pub fn walked(found: u64, facts: &mut Facts) {
    // In wire order: the payload's first four bytes, where they are, the bits, the protocol.
    let [a, b, c, d, high, low, _, protocol] = found.to_be_bytes();
    facts.protocol = protocol;
    facts.transport = u16::from_be_bytes([high, low]);
    if found & 1 << 8 != 0 {
        facts.flaw = DropReason::ExtensionHeader as u8;
        return;
    }
    facts.bits = bit::WALKED | if found & 1 << 9 != 0 { bit::ANY_FRAGMENT } else { 0 };
    if found & 1 << 10 != 0 {
        // Of whatever type: the first fragment says which, and is judged by it.
        let icmp = eq32(u32::from(protocol), u32::from(ICMPV6));
        facts.bits |= bit::LATER_FRAGMENT | (icmp * bit::ICMPV6);
    } else {
        transport6(protocol, [a, b, c, d], facts);
    }
}

/// Reads the body of a neighbour solicitation or advertisement (RFC 4861, section 4.3 and 4.4).
///
/// The body has the target and at most two options of eight bytes each, so that no option can hide
/// behind a longer one; each link-layer address option names the frame's own source MAC. Extension headers
/// and fragments are not allowed (RFC 6980).
#[inline(always)]
pub fn neighbour(head: &impl Head, facts: &mut Facts) {
    let payload = u32::from(head.u16::<18>());
    if facts.bits & bit::WALKED != 0 || payload < 24 || facts.length < 54 + payload {
        return;
    }
    facts.target6 = [head.raw8::<62>(), head.raw8::<70>()];
    let mac_high = head.raw4::<6>();
    let mac_low = u32::from(head.u16::<10>());
    let own = |kind: u8, length: u8, high: u32, low: u16| {
        let link_layer = eq32(u32::from(kind), 1) | eq32(u32::from(kind), 2);
        let same = eq32(high, mac_high) & eq32(u32::from(low), mac_low);
        eq32(u32::from(length), 1) & ((link_layer ^ 1) | same)
    };
    let form = match payload {
        24 => 1,
        32 => own(head.u8::<78>(), head.u8::<79>(), head.raw4::<80>(), head.u16::<84>()),
        40 => {
            own(head.u8::<78>(), head.u8::<79>(), head.raw4::<80>(), head.u16::<84>())
                & own(head.u8::<86>(), head.u8::<87>(), head.raw4::<88>(), head.u16::<92>())
        }
        _ => 0,
    };
    facts.bits |= form * bit::ND_FORM;
}

/// Reads whom an ICMP error quotes (RFC 792). Nothing is set if the quote is too short or a later fragment.
#[inline(always)]
pub fn quote4(head: &impl Head, facts: &mut Facts) {
    // Two headers and the error's own eight bytes, by what the packet says of its length: the rest is padding.
    let readable = u32::from(head.u16::<16>()) >= 48;
    let header = head.u8::<42>();
    if !readable || header >> 4 != 4 || header & 15 < 5 || head.u16::<48>() & 0x1fff != 0 {
        return;
    }
    facts.quoted4 = head.raw4::<54>();
    facts.target4 = head.raw4::<58>();
}

/// Reads whom an ICMPv6 error quotes (RFC 4443). Nothing is set if the quote is too short or a later
/// fragment, or if the error itself has extension headers.
#[inline(always)]
pub fn quote6(head: &impl Head, facts: &mut Facts) {
    let payload = head.u16::<18>();
    if facts.bits & bit::WALKED != 0 || payload < 48 || head.u8::<62>() >> 4 != 6 {
        return;
    }
    // The first fragment of a datagram that is too big for the path is what a router complains about.
    if head.u8::<68>() == FRAGMENT && (payload < 56 || head.u16::<104>() & 0xfff8 != 0) {
        return;
    }
    facts.quoted6 = [head.raw8::<70>(), head.raw8::<78>()];
    facts.target6 = [head.raw8::<86>(), head.raw8::<94>()];
}
