//! What a sender is told whose packet the zone denies: which packets are answered, and the answer's bytes.
//!
//! Pure: words in, words out. A word is four bytes of the packet in memory order, so that sums of words are
//! the sums that checksums are made of (RFC 1071) on a machine of either byte order.

use crate::packet::{ETH_LEN, Facts, ICMP, ICMPV6, TCP, bit, l3};

/// Words of a packet behind Ethernet that an answer is made of: IPv6 and TCP.
pub const PACKET_WORDS: usize = 15;
/// Words of the longest answer behind Ethernet: IPv6, ICMPv6 and what it quotes.
pub const ANSWER_WORDS: usize = 24;

/// Bytes of IPv4's header without options.
const IPV4: u16 = 20;
/// Bytes of IPv6's header, and its words.
const IPV6: u16 = 40;
const IPV6_WORDS: usize = 10;
/// Bytes behind the IP header by which a socket recognizes what an error is about (RFC 792), and their words.
const QUOTED: u16 = 8;
const QUOTED_WORDS: usize = 2;
/// Bytes of TCP's header without options, and of ICMP's.
const TCP_HEADER: u16 = 20;
const ICMP_HEADER: u16 = 8;

/// TTL of what ends on this node's own interface, and the hop limit of ICMPv6.
const TTL: u8 = 64;
const HOP_LIMIT: u8 = 255;

/// How a packet is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Not at all.
    Silence,
    /// A TCP reset in IPv4.
    Reset4,
    /// ICMP, administratively prohibited.
    Prohibited4,
    /// A TCP reset in IPv6.
    Reset6,
    /// ICMPv6, administratively prohibited.
    Prohibited6,
}

impl Kind {
    /// How the packet with these `facts` is answered. `group`: the frame is for a group MAC.
    ///
    /// As RFC 1122 (3.2.2) and RFC 4443 (2.4) have it: nothing for errors, for groups, and for fragments
    /// other than the first. Nothing for neighbour messages, which are asked again anyway, nor for IPv6 packets
    /// with extension headers, whose transport is not where it is read from.
    #[inline(always)]
    pub fn of(facts: &Facts, group: bool) -> Self {
        const NEVER: u32 = bit::LATER_FRAGMENT
            | bit::ICMP_ERROR
            | bit::IGMP
            | bit::MLD
            | bit::ROUTER
            | bit::ROUTER_SOLICITATION
            | bit::SOLICITATION
            | bit::ADVERTISEMENT
            | bit::WALKED;
        if group || facts.bits & NEVER != 0 {
            return Self::Silence;
        }
        match facts.l3 {
            l3::V4 => {
                let first = facts.destination4.to_ne_bytes()[0];
                // Source quench and redirect are errors that quote, too.
                let error = facts.protocol == ICMP && (facts.source_port == 4 || facts.source_port == 5);
                match (error || first == 0 || first == 127 || first >= 224, facts.protocol) {
                    (true, _) => Self::Silence,
                    (false, TCP) => Self::Reset4,
                    (false, _) => Self::Prohibited4,
                }
            }
            l3::V6 => {
                let group = facts.destination6[0].to_ne_bytes()[0] == 0xff;
                let error = facts.protocol == ICMPV6 && facts.source_port < 128;
                match (error || group, facts.protocol) {
                    (true, _) => Self::Silence,
                    (false, TCP) => Self::Reset6,
                    (false, _) => Self::Prohibited6,
                }
            }
            _ => Self::Silence,
        }
    }

    /// Bytes behind Ethernet that the answer is made of.
    pub const fn reads(self) -> u16 {
        match self {
            Self::Silence => 0,
            Self::Reset4 => IPV4 + TCP_HEADER,
            Self::Prohibited4 => IPV4 + QUOTED,
            Self::Reset6 => IPV6 + TCP_HEADER,
            Self::Prohibited6 => IPV6 + QUOTED,
        }
    }

    /// Bytes of the answer behind Ethernet.
    pub const fn length(self) -> u16 {
        match self {
            Self::Silence => 0,
            Self::Reset4 => IPV4 + TCP_HEADER,
            Self::Prohibited4 => IPV4 + ICMP_HEADER + IPV4 + QUOTED,
            Self::Reset6 => IPV6 + TCP_HEADER,
            Self::Prohibited6 => IPV6 + ICMP_HEADER + IPV6 + QUOTED,
        }
    }
}

/// Writes the answer of `kind` to `packet`, which was `frame` bytes long with Ethernet. False: there is none.
#[inline(always)]
pub fn write(kind: Kind, packet: &[u32; PACKET_WORDS], frame: u32, answer: &mut [u32; ANSWER_WORDS]) -> bool {
    match kind {
        Kind::Silence => false,
        Kind::Reset4 => reset4(packet, frame, answer),
        Kind::Prohibited4 => prohibited4(packet, answer),
        Kind::Reset6 => reset6(packet, frame, answer),
        Kind::Prohibited6 => prohibited6(packet, answer),
    }
}

#[inline(always)]
fn reset4(packet: &[u32; PACKET_WORDS], frame: u32, answer: &mut [u32; ANSWER_WORDS]) -> bool {
    let total = low(packet[0]);
    // Total length 0 is what a packet above 64 KiB says that is still to be segmented (BIG TCP).
    let total = if total == 0 { frame - ETH_LEN } else { total };
    let segment = [packet[5], packet[6], packet[7], packet[8]];
    let Some(reset) = reset(segment, total.wrapping_sub(u32::from(IPV4))) else { return false };
    header4(packet, TCP, Kind::Reset4.length(), answer);
    let pseudo = words(&[answer[3], answer[4], pair(u16::from(TCP), TCP_HEADER)]);
    [answer[5], answer[6], answer[7], answer[8]] = reset;
    answer[9] = pair_raw(fold(pseudo + words(&reset)), 0);
    true
}

#[inline(always)]
fn reset6(packet: &[u32; PACKET_WORDS], frame: u32, answer: &mut [u32; ANSWER_WORDS]) -> bool {
    let payload = high(packet[1]);
    let payload = if payload == 0 { frame - ETH_LEN - u32::from(IPV6) } else { payload };
    let segment = [packet[10], packet[11], packet[12], packet[13]];
    let Some(reset) = reset(segment, payload) else { return false };
    header6(packet, TCP, TTL, Kind::Reset6.length(), answer);
    let pseudo = addresses(answer) + words(&[pair(u16::from(TCP), TCP_HEADER)]);
    [answer[10], answer[11], answer[12], answer[13]] = reset;
    answer[14] = pair_raw(fold(pseudo + words(&reset)), 0);
    true
}

/// The first four words of the reset that answers `segment` of `length` bytes (RFC 9293, section 3.10.7.1).
#[inline(always)]
fn reset(segment: [u32; 4], length: u32) -> Option<[u32; 4]> {
    const FIN: u8 = 1;
    const SYN: u8 = 1 << 1;
    const RST: u8 = 1 << 2;
    const ACK: u8 = 1 << 4;
    /// Five words.
    const OFFSET: u8 = 5 << 4;
    let [ports, sequence, acknowledged, rest] = segment;
    let [offset, flags, ..] = rest.to_ne_bytes();
    let header = u32::from(offset >> 4) * 4;
    if flags & RST != 0 || header < u32::from(TCP_HEADER) || length < header {
        return None;
    }
    let (sequence, acknowledged, flags) = if flags & ACK != 0 {
        (acknowledged, 0, RST)
    } else {
        let taken = length - header + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        (0, u32::from_be(sequence).wrapping_add(taken).to_be(), RST | ACK)
    };
    let rest = u32::from_ne_bytes([OFFSET, flags, 0, 0]);
    Some([ports.rotate_left(16), sequence, acknowledged, rest])
}

#[inline(always)]
fn prohibited4(packet: &[u32; PACKET_WORDS], answer: &mut [u32; ANSWER_WORDS]) -> bool {
    /// Destination unreachable, communication administratively prohibited.
    const TYPE_CODE: u16 = 3 << 8 | 13;
    if low(packet[0]) < u32::from(IPV4 + QUOTED) {
        return false;
    }
    header4(packet, ICMP, Kind::Prohibited4.length(), answer);
    let quote = [packet[0], packet[1], packet[2], packet[3], packet[4], packet[5], packet[6]];
    let sum = fold(words(&[pair(TYPE_CODE, 0)]) + words(&quote));
    answer[5] = pair_raw(TYPE_CODE.to_be(), sum);
    answer[6] = 0;
    let mut i = 0;
    while i < quote.len() {
        answer[7 + i] = quote[i];
        i += 1;
    }
    true
}

#[inline(always)]
fn prohibited6(packet: &[u32; PACKET_WORDS], answer: &mut [u32; ANSWER_WORDS]) -> bool {
    /// Destination unreachable, communication with destination administratively prohibited.
    const TYPE_CODE: u16 = 1 << 8 | 1;
    const BODY: u16 = ICMP_HEADER + IPV6 + QUOTED;
    let payload = high(packet[1]);
    if payload != 0 && payload < u32::from(QUOTED) {
        return false;
    }
    header6(packet, ICMPV6, HOP_LIMIT, Kind::Prohibited6.length(), answer);
    let mut sum = addresses(answer) + words(&[pair(u16::from(ICMPV6), BODY), pair(TYPE_CODE, 0)]);
    let mut i = 0;
    while i < IPV6_WORDS + QUOTED_WORDS {
        answer[12 + i] = packet[i];
        sum += u64::from(packet[i]);
        i += 1;
    }
    answer[10] = pair_raw(TYPE_CODE.to_be(), fold(sum));
    answer[11] = 0;
    true
}

/// The header of an answer of `length` bytes: nothing is known to the pod but who it sent to, so the answer
/// comes from there.
#[inline(always)]
fn header4(packet: &[u32; PACKET_WORDS], protocol: u8, length: u16, answer: &mut [u32; ANSWER_WORDS]) {
    const DONT_FRAGMENT: u16 = 1 << 14;
    let length = length.to_be_bytes();
    answer[0] = u32::from_ne_bytes([0x45, 0, length[0], length[1]]);
    answer[1] = pair(0, DONT_FRAGMENT);
    answer[3] = packet[4];
    answer[4] = packet[3];
    let ttl = u16::from_ne_bytes([TTL, protocol]);
    let sum = words(&[answer[0], answer[1], pair_raw(ttl, 0), answer[3], answer[4]]);
    answer[2] = pair_raw(ttl, fold(sum));
}

/// As [`header4`].
#[inline(always)]
fn header6(
    packet: &[u32; PACKET_WORDS],
    protocol: u8,
    hops: u8,
    length: u16,
    answer: &mut [u32; ANSWER_WORDS],
) {
    let payload = (length - IPV6).to_be_bytes();
    answer[0] = u32::from_ne_bytes([0x60, 0, 0, 0]);
    answer[1] = u32::from_ne_bytes([payload[0], payload[1], protocol, hops]);
    let mut i = 0;
    while i < 4 {
        answer[2 + i] = packet[6 + i];
        answer[6 + i] = packet[2 + i];
        i += 1;
    }
}

/// Sum of IPv6's addresses.
#[inline(always)]
fn addresses(answer: &[u32; ANSWER_WORDS]) -> u64 {
    let mut sum = 0;
    let mut i = 2;
    while i < IPV6_WORDS {
        sum += u64::from(answer[i]);
        i += 1;
    }
    sum
}

/// Sum of words.
#[inline(always)]
fn words<const N: usize>(words: &[u32; N]) -> u64 {
    let mut sum = 0;
    let mut i = 0;
    while i < N {
        sum += u64::from(words[i]);
        i += 1;
    }
    sum
}

/// The checksum for a sum, in memory order.
#[inline(always)]
fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let [.., high, low] = ((sum & 0xffff) + (sum >> 16)).to_be_bytes();
    !u16::from_be_bytes([high, low])
}

/// A word of two numbers.
#[inline(always)]
fn pair(first: u16, second: u16) -> u32 {
    pair_raw(first.to_be(), second.to_be())
}

/// A word of two halves in memory order.
#[inline(always)]
fn pair_raw(first: u16, second: u16) -> u32 {
    let (first, second) = (first.to_ne_bytes(), second.to_ne_bytes());
    u32::from_ne_bytes([first[0], first[1], second[0], second[1]])
}

/// The number in the first two bytes of a word.
#[inline(always)]
fn high(word: u32) -> u32 {
    u32::from_be(word) >> 16
}

/// The number in the last two bytes of a word.
#[inline(always)]
fn low(word: u32) -> u32 {
    u32::from_be(word) & 0xffff
}
