//! The policy's meaning, once: the same functions in the kernel, in tests and in tools.
//!
//! Who a frame belongs to is decided before anything but Ethernet is read: endpoint by (master, source
//! MAC), else the host, else unknown. Endpoint comes first because in macvlan mode `passthru` the pod's MAC
//! is the master's. Frames of the host never reach this module's readers, so no drop reason exists for them.

use crate::{
    abi::{Endpoint, Master, ZoneSlot, endpoint_flags, kind, mode, zone_flags, zone_verdict},
    bits::{eq32, eq128, raw4, raw16},
    drop_reason::DropReason,
    packet::{Facts, bit, l3},
};

/// Look-ups that a verdict needs: maps in the kernel, an image on the host.
pub trait Rules {
    /// The generation of `zone` in force and its index in `zone_slots`; `None` = not loaded.
    ///
    /// Called once per packet and direction, so that all of a verdict comes from one generation.
    fn zone(&self, zone: u32) -> Option<(&ZoneSlot, u32)>;
    /// Bits of [`zone_verdict`] for the longest prefix of `slot` that covers `address`; 0 = none.
    fn trie4(&self, slot: u32, address: u32) -> u32;
    /// The same for IPv6.
    fn trie6(&self, slot: u32, address: [u64; 2]) -> u32;
}

/// What happens to a packet of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It passes.
    Pass,
    /// It passes; in mode `enforce` it would not have.
    Audit,
    /// It is dropped.
    Drop,
}

/// Whether frames of `endpoint` are read at all.
#[inline(always)]
pub fn is_judged(endpoint: &Endpoint) -> bool {
    endpoint.kind == kind::ENDPOINT && endpoint.mode != mode::OFF
}

/// What `reason` (a number, 0 = none) means for an endpoint in `endpoint_mode`. An unknown mode enforces.
#[inline(always)]
pub fn fate(endpoint_mode: u8, reason: u8) -> Fate {
    match (reason, endpoint_mode) {
        (0, _) | (_, mode::OFF) => Fate::Pass,
        (_, mode::AUDIT) => Fate::Audit,
        (_, _) => Fate::Drop,
    }
}

/// Whether `mac` (six bytes and two zero bytes in memory order) is one the host sends with.
#[inline(always)]
pub fn is_host(master: &Master, mac: u64) -> bool {
    // Unused entries are zero, and a raw socket can send with any source: zero becomes what no entry is.
    let mac = mac | u64::from(eq128([mac, 0], [0, 0])) << 63;
    let (mut found, mut i) = (0, 0);
    while i < master.host_macs.len() {
        let row = &master.host_macs[i];
        // Two halves as one address whose second half is constant.
        let value = u64::from_ne_bytes(*row);
        found |= eq128([value, 0], [mac, 0]);
        i += 1;
    }
    found != 0
}

/// Why a packet that `endpoint` sent must not pass; 0 = it may.
#[inline(always)]
pub fn egress(facts: &Facts, endpoint: &Endpoint, rules: &impl Rules) -> u8 {
    if facts.flaw != 0 {
        return facts.flaw;
    }
    match facts.l3 {
        l3::ARP => egress_arp(facts, endpoint, rules),
        l3::V4 => egress4(facts, endpoint, rules),
        l3::V6 => egress6(facts, endpoint, rules),
        _ => DropReason::Ethertype as u8,
    }
}

/// Why a packet for `endpoint` must not reach it; 0 = it may.
#[inline(always)]
pub fn ingress(facts: &Facts, endpoint: &Endpoint, rules: &impl Rules) -> u8 {
    if facts.flaw != 0 {
        return facts.flaw;
    }
    let Some((slot, index)) = rules.zone(endpoint.zone) else {
        return DropReason::ZoneNotLoaded as u8;
    };
    match facts.l3 {
        // The answer is judged when it leaves; until then nothing is told to anybody.
        l3::ARP => 0,
        l3::V4 => ingress4(facts, endpoint, slot, index, rules),
        l3::V6 => ingress6(facts, endpoint, slot, index, rules),
        _ => DropReason::Ethertype as u8,
    }
}

#[inline(always)]
fn egress_arp(facts: &Facts, endpoint: &Endpoint, rules: &impl Rules) -> u8 {
    let probe = u32::from(facts.bits & bit::ARP_PROBE != 0);
    let form = u32::from(facts.bits & bit::ARP_FORM != 0);
    if form & (own4(endpoint, facts.source4) | probe) == 0 {
        return DropReason::SourceArp as u8;
    }
    let target = facts.destination4;
    let gateway = eq32(target, raw4(&endpoint.gateway_v4)) & (eq32(target, 0) ^ 1);
    let known = own4(endpoint, target) | gateway;
    let Some((slot, index)) = rules.zone(endpoint.zone) else {
        return DropReason::ZoneNotLoaded as u8;
    };
    if known == 0 && !allows4(slot, index, rules, target, zone_verdict::EGRESS) {
        return DropReason::ZoneDeny as u8;
    }
    0
}

#[inline(always)]
fn egress4(facts: &Facts, endpoint: &Endpoint, rules: &impl Rules) -> u8 {
    let (bits, destination) = (facts.bits, facts.destination4);
    if own4(endpoint, facts.source4) == 0 {
        // Without an address yet: DHCP's broadcasts, and IGMP as RFC 4541 has it.
        let broadcast = eq32(destination, u32::MAX);
        let nameless =
            facts.source4 == 0 && (bits & bit::IGMP != 0 || bits & bit::DHCP_CLIENT != 0 && broadcast != 0);
        if !nameless {
            return DropReason::SourceV4 as u8;
        }
    }
    if bits & bit::DHCP_SERVER != 0 {
        return DropReason::DhcpServer as u8;
    }
    let Some((slot, index)) = rules.zone(endpoint.zone) else {
        return DropReason::ZoneNotLoaded as u8;
    };
    // 255.255.255.255 and 224.0.0.0/24 never leave the link.
    let local_group = eq32(destination, u32::MAX)
        | eq32(destination & u32::from_ne_bytes([255, 255, 255, 0]), u32::from_ne_bytes([224, 0, 0, 0]));
    if local_group == 0 && !allows4(slot, index, rules, destination, zone_verdict::EGRESS) {
        return DropReason::ZoneDeny as u8;
    }
    0
}

#[inline(always)]
fn egress6(facts: &Facts, endpoint: &Endpoint, rules: &impl Rules) -> u8 {
    let (bits, destination) = (facts.bits, facts.destination6);
    if own6(endpoint, facts.source6) == 0 {
        // Without an address yet: duplicate address detection, router solicitation, MLD (RFC 4862, 3590).
        let nameless = bits & (bit::SOLICITATION | bit::ROUTER_SOLICITATION | bit::MLD) != 0
            && eq128(facts.source6, [0, 0]) != 0
            && is_multicast6(destination);
        if !nameless {
            return DropReason::SourceV6 as u8;
        }
    }
    if bits & bit::ROUTER != 0 {
        return DropReason::RouterGuard as u8;
    }
    if bits & bit::DHCP_SERVER != 0 {
        return DropReason::DhcpServer as u8;
    }
    let neighbour = bits & (bit::SOLICITATION | bit::ADVERTISEMENT) != 0;
    let target_is_own = own6(endpoint, facts.target6) != 0;
    let asks = bits & bit::SOLICITATION != 0 && !target_is_own;
    if neighbour {
        // An advertisement is about oneself; a solicitation goes to its target or to a group of this link.
        let aimed = is_link_group6(destination) || eq128(destination, facts.target6) != 0;
        let honest = if asks { aimed } else { target_is_own };
        if bits & bit::ND_FORM == 0 || !honest {
            return DropReason::SourceNd as u8;
        }
    }
    let Some((slot, index)) = rules.zone(endpoint.zone) else {
        return DropReason::ZoneNotLoaded as u8;
    };
    let target = if asks { facts.target6 } else { destination };
    if is_link_group6(target) {
        return 0;
    }
    if is_link_local6(target) {
        let free = bits & bit::ICMPV6 != 0 || slot.flags & zone_flags::HAS_V6 != 0;
        return if free { 0 } else { DropReason::LinkLocal as u8 };
    }
    let gateway = asks && eq128(target, raw16(&endpoint.gateway_v6)) != 0 && eq128(target, [0, 0]) == 0;
    if !gateway && !allows6(slot, index, rules, target, zone_verdict::EGRESS) {
        return DropReason::ZoneDeny as u8;
    }
    0
}

#[inline(always)]
fn ingress4(facts: &Facts, endpoint: &Endpoint, slot: &ZoneSlot, index: u32, rules: &impl Rules) -> u8 {
    let bits = facts.bits;
    if let Some(answer) = dhcp_answer(bits, endpoint) {
        return answer;
    }
    if slot.flags & zone_flags::INGRESS_ANY != 0 {
        return 0;
    }
    // An error about the endpoint's own packet may come from any router on the way (path MTU).
    let quoted = bits & bit::ICMP_ERROR != 0 && own4(endpoint, facts.quoted4) != 0;
    let allowed = allows4(slot, index, rules, facts.source4, zone_verdict::INGRESS)
        || quoted && allows4(slot, index, rules, facts.target4, zone_verdict::EGRESS);
    if allowed { 0 } else { DropReason::ZoneDeny as u8 }
}

#[inline(always)]
fn ingress6(facts: &Facts, endpoint: &Endpoint, slot: &ZoneSlot, index: u32, rules: &impl Rules) -> u8 {
    let bits = facts.bits;
    if let Some(answer) = dhcp_answer(bits, endpoint) {
        return answer;
    }
    if slot.flags & zone_flags::INGRESS_ANY != 0 {
        return 0;
    }
    if is_link_local6(facts.source6) {
        let free = bits & bit::ICMPV6 != 0 || slot.flags & zone_flags::HAS_V6 != 0;
        return if free { 0 } else { DropReason::LinkLocal as u8 };
    }
    let quoted = bits & bit::ICMP_ERROR != 0 && own6(endpoint, facts.quoted6) != 0;
    let allowed = allows6(slot, index, rules, facts.source6, zone_verdict::INGRESS)
        || quoted && allows6(slot, index, rules, facts.target6, zone_verdict::EGRESS);
    if allowed { 0 } else { DropReason::ZoneDeny as u8 }
}

/// What becomes of a packet from a DHCP server to a DHCP client; `None` for any other packet.
#[inline(always)]
fn dhcp_answer(bits: u32, endpoint: &Endpoint) -> Option<u8> {
    const ANSWER: u32 = bit::DHCP_SERVER | bit::TO_DHCP_CLIENT;
    match (bits & ANSWER == ANSWER, endpoint.flags & endpoint_flags::DHCP != 0) {
        (false, _) => None,
        (true, true) => Some(0),
        (true, false) => Some(DropReason::DhcpServer as u8),
    }
}

/// 1 if the endpoint may send from `address`. An unused slot is zero, and zero is nobody's.
#[inline(always)]
fn own4(endpoint: &Endpoint, address: u32) -> u32 {
    let mut found = 0;
    let mut i = 0;
    while i < endpoint.v4.len() {
        found |= eq32(raw4(&endpoint.v4[i]), address);
        i += 1;
    }
    found & (eq32(address, 0) ^ 1)
}

/// 1 if the endpoint may send from `address`, its link-local address included.
#[inline(always)]
fn own6(endpoint: &Endpoint, address: [u64; 2]) -> u32 {
    let mut found = eq128(raw16(&endpoint.link_local), address);
    let mut i = 0;
    while i < endpoint.v6.len() {
        found |= eq128(raw16(&endpoint.v6[i]), address);
        i += 1;
    }
    found & (eq128(address, [0, 0]) ^ 1)
}

#[inline(always)]
fn is_multicast6(address: [u64; 2]) -> bool {
    u64::from_be(address[0]) >> 56 == 0xff
}

/// Multicast of interface-local or link-local scope (RFC 4291, section 2.7): it never leaves the link.
#[inline(always)]
fn is_link_group6(address: [u64; 2]) -> bool {
    let scope = u64::from_be(address[0]) >> 48 & 15;
    is_multicast6(address) && (scope == 1 || scope == 2)
}

#[inline(always)]
fn is_link_local6(address: [u64; 2]) -> bool {
    u64::from_be(address[0]) >> 54 == 0xfe80 >> 6
}

/// Whether the zone lets `address` do what `wanted`, one bit of [`zone_verdict`], says.
#[inline(always)]
fn allows4(slot: &ZoneSlot, index: u32, rules: &impl Rules, address: u32, wanted: u32) -> bool {
    if slot.flags & zone_flags::TRIE_V4 != 0 {
        return rules.trie4(index, address) & wanted != 0;
    }
    let mut hits = 0;
    let mut i = 0;
    while i < slot.v4.len() {
        let prefix = &slot.v4[i];
        hits |= eq32(address & raw4(&prefix.mask), raw4(&prefix.net)) << i;
        i += 1;
    }
    let list = if wanted == zone_verdict::EGRESS { slot.egress_v4 } else { slot.ingress_v4 };
    first(hits) & u32::from(list) != 0
}

/// As [`allows4`].
#[inline(always)]
fn allows6(slot: &ZoneSlot, index: u32, rules: &impl Rules, address: [u64; 2], wanted: u32) -> bool {
    if slot.flags & zone_flags::TRIE_V6 != 0 {
        return rules.trie6(index, address) & wanted != 0;
    }
    let mut hits = 0;
    let mut i = 0;
    while i < slot.v6.len() {
        let prefix = &slot.v6[i];
        let mask = raw16(&prefix.mask);
        hits |= eq128([address[0] & mask[0], address[1] & mask[1]], raw16(&prefix.net)) << i;
        i += 1;
    }
    let list = if wanted == zone_verdict::EGRESS { slot.egress_v6 } else { slot.ingress_v6 };
    first(hits) & u32::from(list) != 0
}

/// The lowest bit that is set: entries are sorted so that the first match is the answer.
#[inline(always)]
fn first(hits: u32) -> u32 {
    hits & hits.wrapping_neg()
}
