//! The policy's meaning, once: the same functions in the kernel, in tests and in tools.
//!
//! Who a frame belongs to is decided before anything but Ethernet is read: endpoint by (master, source
//! MAC), else the host, else unknown. Endpoint comes first because in macvlan mode `passthru` the pod's MAC
//! is the master's. Frames of the host never reach this module's readers, so no drop reason exists for them.

use crate::{
    abi::{
        Endpoint, Master, PortRange, Prefix4, Prefix6, ZoneSlot, endpoint_flags, kind, mode, word_place,
        zone_flags, zone_verdict,
    },
    bits::{eq32, eq128, field4, field16},
    drop_reason::DropReason,
    packet::{Facts, bit, l3},
};

/// Look-ups that a verdict needs: maps in the kernel, an image on the host.
pub trait Rules {
    /// The generation of `zone` in force and its index in `zone_slots`; `None` = not loaded.
    ///
    /// Called once per packet and direction, so that all of a verdict comes from one generation.
    fn zone(&self, zone: u32) -> Option<(&ZoneSlot, u32)>;
    /// Word (see [`zone_verdict`]) of the longest prefix of `slot` that covers `address`; 0 = none.
    fn trie4(&self, slot: u32, address: u32) -> u32;
    /// The same for IPv6.
    fn trie6(&self, slot: u32, address: [u64; 2]) -> u32;
    /// What port set `set` of `slot` says of a packet: [`port_word`] of the first range that holds it; 0 = none.
    fn ports(&self, slot: u32, set: u32, protocol: u8, port: u16) -> u32;
}

/// What a verdict comes to: a drop reason, whether the sender is told, and which rule of the zone decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision(u32);

impl Decision {
    const REJECT: u32 = 1 << 16;
    const RULED: u32 = 1 << 17;

    /// It passes, and no rule of the zone was asked.
    pub const PASS: Self = Self(0);
    /// There is nothing to judge by.
    pub const CLOSED: Self = Self::deny(DropReason::ZoneNotLoaded);

    /// It is denied for `reason`, and no rule of the zone was asked.
    #[inline(always)]
    const fn deny(reason: DropReason) -> Self {
        Self(reason as u32)
    }

    /// `rule` decided, and lets it pass.
    #[inline(always)]
    const fn by_rule(rule: u32) -> Self {
        Self(Self::RULED | (rule & 0xff) << 8)
    }

    /// As one number: what a function of its own can return.
    #[inline(always)]
    pub const fn to_bits(self) -> u32 {
        self.0
    }

    /// Reads [`Decision::to_bits`] back.
    #[inline(always)]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// Number of the drop reason; 0 = it passes.
    #[inline(always)]
    pub const fn reason(self) -> u8 {
        self.0.to_le_bytes()[0]
    }

    /// The rule of the zone that decided.
    #[inline(always)]
    pub const fn rule(self) -> Option<u8> {
        if self.0 & Self::RULED == 0 { None } else { Some(self.0.to_le_bytes()[1]) }
    }

    /// Whether the sender shall be told.
    #[inline(always)]
    pub const fn rejects(self) -> bool {
        self.0 & Self::REJECT != 0
    }
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

/// Whether frames of an endpoint of this kind ([`kind`]) and mode ([`mode`]) are read at all.
#[inline(always)]
pub fn is_judged(endpoint_kind: u8, endpoint_mode: u8) -> bool {
    endpoint_kind == kind::ENDPOINT && endpoint_mode != mode::OFF
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

/// What becomes of a packet that `endpoint` sent.
#[inline(always)]
pub fn egress(facts: &Facts, endpoint: &Endpoint, rules: &impl Rules) -> Decision {
    if facts.flaw != 0 {
        return Decision(facts.flaw as u32);
    }
    match facts.l3 {
        l3::ARP => egress_arp(facts, endpoint, rules),
        l3::V4 => egress4(facts, endpoint, rules),
        l3::V6 => egress6(facts, endpoint, rules),
        _ => Decision::deny(DropReason::Ethertype),
    }
}

/// What becomes of a packet for `endpoint`.
#[inline(always)]
pub fn ingress(facts: &Facts, endpoint: &Endpoint, rules: &impl Rules) -> Decision {
    if facts.flaw != 0 {
        return Decision(facts.flaw as u32);
    }
    let Some((slot, index)) = rules.zone(endpoint.zone) else {
        return Decision::deny(DropReason::ZoneNotLoaded);
    };
    match facts.l3 {
        // The answer is judged when it leaves; until then nothing is told to anybody.
        l3::ARP => Decision::PASS,
        l3::V4 => ingress4(facts, endpoint, slot, index, rules),
        l3::V6 => ingress6(facts, endpoint, slot, index, rules),
        _ => Decision::deny(DropReason::Ethertype),
    }
}

#[inline(always)]
fn egress_arp(facts: &Facts, endpoint: &Endpoint, rules: &impl Rules) -> Decision {
    let target = facts.destination4;
    // Who has no address yet asks for the one it is to have: a probe for another's makes that one give it up
    // (RFC 5227). Only a DHCP client may look at an address that it was offered and that is not bound yet.
    let probe = u32::from(facts.bits & bit::ARP_PROBE != 0) & (own4(endpoint, target) | leases(endpoint));
    let form = u32::from(facts.bits & bit::ARP_FORM != 0);
    if form & (own4(endpoint, facts.source4) | probe) == 0 {
        return Decision::deny(DropReason::SourceArp);
    }
    // SAFETY: `abi` holds it to a multiple of four.
    let gateway = eq32(target, unsafe { field4(&endpoint.gateway_v4) }) & (eq32(target, 0) ^ 1);
    // Whoever probes for an address has none that could lie in the zone: unanswered, they would take this one.
    let defence = u32::from(facts.bits & bit::ARP_DEFENCE != 0);
    let known = own4(endpoint, target) | gateway | defence;
    let Some((slot, index)) = rules.zone(endpoint.zone) else {
        return Decision::deny(DropReason::ZoneNotLoaded);
    };
    if known != 0 {
        return Decision::PASS;
    }
    reaches(slot, entry4(slot, index, rules, target))
}

#[inline(always)]
fn egress4(facts: &Facts, endpoint: &Endpoint, rules: &impl Rules) -> Decision {
    let (bits, destination) = (facts.bits, facts.destination4);
    if own4(endpoint, facts.source4) == 0 {
        // Without an address yet: DHCP's broadcasts, and IGMP as RFC 4541 has it.
        let broadcast = eq32(destination, u32::MAX);
        let nameless =
            facts.source4 == 0 && (bits & bit::IGMP != 0 || bits & bit::DHCP_CLIENT != 0 && broadcast != 0);
        if !nameless {
            return Decision::deny(DropReason::SourceV4);
        }
    }
    // Clients look at the port they are answered at, not at the port an answer comes from.
    if bits & (bit::DHCP_SERVER | bit::TO_DHCP_CLIENT) != 0 {
        return Decision::deny(DropReason::DhcpServer);
    }
    let Some((slot, index)) = rules.zone(endpoint.zone) else {
        return Decision::deny(DropReason::ZoneNotLoaded);
    };
    // 255.255.255.255 and 224.0.0.0/24 never leave the link.
    let local_group = eq32(destination, u32::MAX)
        | eq32(destination & u32::from_ne_bytes([255, 255, 255, 0]), u32::from_ne_bytes([224, 0, 0, 0]));
    if local_group != 0 {
        return Decision::PASS;
    }
    let way = Way::out(facts.destination_port);
    decide(facts, slot, index, rules, entry4(slot, index, rules, destination), way)
}

#[inline(always)]
fn egress6(facts: &Facts, endpoint: &Endpoint, rules: &impl Rules) -> Decision {
    let (bits, destination) = (facts.bits, facts.destination6);
    if own6(endpoint, facts.source6) == 0 {
        // Without an address yet: duplicate address detection, router solicitation, MLD (RFC 4862, 3590).
        let nameless = bits & (bit::SOLICITATION | bit::ROUTER_SOLICITATION | bit::MLD) != 0
            && eq128(facts.source6, [0, 0]) != 0
            && is_multicast6(destination);
        if !nameless {
            return Decision::deny(DropReason::SourceV6);
        }
    }
    if bits & bit::ROUTER != 0 {
        return Decision::deny(DropReason::RouterGuard);
    }
    // Clients look at the port they are answered at, not at the port an answer comes from.
    if bits & (bit::DHCP_SERVER | bit::TO_DHCP_CLIENT) != 0 {
        return Decision::deny(DropReason::DhcpServer);
    }
    let neighbour = bits & (bit::SOLICITATION | bit::ADVERTISEMENT) != 0;
    let target_is_own = neighbour && own6(endpoint, facts.target6) != 0;
    let asks = bits & bit::SOLICITATION != 0 && !target_is_own;
    if neighbour {
        // An advertisement is about oneself; a solicitation goes to its target or to a group of this link.
        let aimed = is_link_group6(destination) || eq128(destination, facts.target6) != 0;
        // From nobody it is duplicate address detection, which fails for whoever else is at it (RFC 4862).
        let detects = eq128(facts.source6, [0, 0]) != 0 && leases(endpoint) == 0;
        let honest = if asks { aimed && !detects } else { target_is_own };
        if bits & bit::ND_FORM == 0 || !honest {
            return Decision::deny(DropReason::SourceNd);
        }
    }
    let Some((slot, index)) = rules.zone(endpoint.zone) else {
        return Decision::deny(DropReason::ZoneNotLoaded);
    };
    let target = if asks { facts.target6 } else { destination };
    if is_link_group6(target) {
        return Decision::PASS;
    }
    if is_link_local6(target) {
        let free = bits & bit::ICMPV6 != 0 || slot.flags & zone_flags::HAS_V6 != 0;
        return if free { Decision::PASS } else { Decision::deny(DropReason::LinkLocal) };
    }
    // SAFETY: `abi` holds it to a multiple of eight.
    let gateway =
        asks && eq128(target, unsafe { field16(&endpoint.gateway_v6) }) != 0 && eq128(target, [0, 0]) == 0;
    if gateway {
        return Decision::PASS;
    }
    let word = entry6(slot, index, rules, target);
    if neighbour {
        return reaches(slot, word);
    }
    let way = Way::out(facts.destination_port);
    decide(facts, slot, index, rules, word, way)
}

#[inline(always)]
fn ingress4(facts: &Facts, endpoint: &Endpoint, slot: &ZoneSlot, index: u32, rules: &impl Rules) -> Decision {
    let bits = facts.bits;
    if let Some(answer) = dhcp_answer(bits, endpoint) {
        return answer;
    }
    if slot.flags & zone_flags::INGRESS_ANY != 0 {
        return Decision::PASS;
    }
    // An error about the endpoint's own packet may come from any router on the way (path MTU).
    let quoted = bits & bit::ICMP_ERROR != 0 && own4(endpoint, facts.quoted4) != 0;
    if quoted && reaches(slot, entry4(slot, index, rules, facts.target4)).reason() == 0 {
        return Decision::PASS;
    }
    let way = Way::inwards(facts.source_port);
    decide(facts, slot, index, rules, entry4(slot, index, rules, facts.source4), way)
}

#[inline(always)]
fn ingress6(facts: &Facts, endpoint: &Endpoint, slot: &ZoneSlot, index: u32, rules: &impl Rules) -> Decision {
    let bits = facts.bits;
    if let Some(answer) = dhcp_answer(bits, endpoint) {
        return answer;
    }
    if slot.flags & zone_flags::INGRESS_ANY != 0 {
        return Decision::PASS;
    }
    if is_link_local6(facts.source6) {
        let free = bits & bit::ICMPV6 != 0 || slot.flags & zone_flags::HAS_V6 != 0;
        return if free { Decision::PASS } else { Decision::deny(DropReason::LinkLocal) };
    }
    let quoted = bits & bit::ICMP_ERROR != 0 && own6(endpoint, facts.quoted6) != 0;
    if quoted && reaches(slot, entry6(slot, index, rules, facts.target6)).reason() == 0 {
        return Decision::PASS;
    }
    let word = entry6(slot, index, rules, facts.source6);
    // Whoever is allowed by ports has to find the pod, and to answer its question for a MAC.
    if bits & (bit::SOLICITATION | bit::ADVERTISEMENT) != 0 && word & zone_verdict::PORTS != 0 {
        return Decision::PASS;
    }
    let way = Way::inwards(facts.source_port);
    decide(facts, slot, index, rules, word, way)
}

/// What becomes of a packet from a DHCP server to a DHCP client; `None` for any other packet.
#[inline(always)]
fn dhcp_answer(bits: u32, endpoint: &Endpoint) -> Option<Decision> {
    const ANSWER: u32 = bit::DHCP_SERVER | bit::TO_DHCP_CLIENT;
    match (bits & ANSWER == ANSWER, endpoint.flags & endpoint_flags::DHCP != 0) {
        (false, _) => None,
        (true, true) => Some(Decision::PASS),
        (true, false) => Some(Decision::deny(DropReason::DhcpServer)),
    }
}

/// 1 if the endpoint's addresses come from DHCP.
#[inline(always)]
fn leases(endpoint: &Endpoint) -> u32 {
    u32::from(endpoint.flags & endpoint_flags::DHCP != 0)
}

/// 1 if the endpoint may send from `address`. An unused slot is zero, and zero is nobody's.
#[inline(always)]
fn own4(endpoint: &Endpoint, address: u32) -> u32 {
    // SAFETY: `abi` holds them to multiples of four.
    let own = |i: usize| unsafe { field4(&endpoint.v4[i]) };
    let mut found = eq32(own(0), address);
    // Few have more than one.
    let mut i = if found == 0 { 1 } else { endpoint.v4.len() };
    while i < endpoint.v4.len() {
        found |= eq32(own(i), address);
        i += 1;
    }
    found & (eq32(address, 0) ^ 1)
}

/// 1 if the endpoint may send from `address`, its link-local address included.
#[inline(always)]
fn own6(endpoint: &Endpoint, address: [u64; 2]) -> u32 {
    // SAFETY: `abi` holds them to multiples of eight.
    let own = |i: usize| unsafe { field16(&endpoint.v6[i]) };
    let mut found = eq128(own(0), address);
    let mut i = endpoint.v6.len();
    if found == 0 {
        // SAFETY: As above.
        found = eq128(unsafe { field16(&endpoint.link_local) }, address);
        i = 1;
    }
    while i < endpoint.v6.len() {
        found |= eq128(own(i), address);
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

/// Which way a packet goes: the bit of [`zone_verdict`] it needs, where the rule of that way stands, and the port of
/// the other end.
#[derive(Clone, Copy)]
struct Way {
    wanted: u32,
    rule: u32,
    port: u16,
}

impl Way {
    #[inline(always)]
    const fn out(port: u16) -> Self {
        Self { wanted: zone_verdict::EGRESS, rule: zone_verdict::EGRESS_RULE_SHIFT, port }
    }

    #[inline(always)]
    const fn inwards(port: u16) -> Self {
        Self { wanted: zone_verdict::INGRESS, rule: zone_verdict::INGRESS_RULE_SHIFT, port }
    }
}

/// What a zone's `word` says of a packet.
#[inline(always)]
fn decide(facts: &Facts, slot: &ZoneSlot, index: u32, rules: &impl Rules, word: u32, way: Way) -> Decision {
    let mut word = word;
    if word & zone_verdict::PORTS != 0 {
        if facts.bits & bit::LATER_FRAGMENT != 0 {
            return Decision::deny(DropReason::Fragment);
        }
        let range = rules.ports(index, zone_verdict::port_set(word), facts.protocol, way.port);
        if range != 0 {
            word = range;
        }
    }
    // Bit 31 is no part of a rule.
    let rule = word >> way.rule & 0x7f;
    if word & way.wanted != 0 { Decision::by_rule(rule) } else { outside(slot, rule) }
}

/// What a zone's `word` says of asking for an address: it may be asked for if anything may be sent to it.
#[inline(always)]
fn reaches(slot: &ZoneSlot, word: u32) -> Decision {
    let rule = word >> zone_verdict::EGRESS_RULE_SHIFT & 0xff;
    match word & (zone_verdict::EGRESS | zone_verdict::PORTS) {
        0 => outside(slot, rule),
        // Open by ports, and a question for an address has none: no entry decides.
        zone_verdict::PORTS => Decision::PASS,
        _ => Decision::by_rule(rule),
    }
}

/// A denial by `rule` of the zone.
#[inline(always)]
fn outside(slot: &ZoneSlot, rule: u32) -> Decision {
    let told = if slot.flags & zone_flags::REJECT != 0 { Decision::REJECT } else { 0 };
    Decision(Decision::deny(DropReason::ZoneDeny).0 | Decision::by_rule(rule).0 | told)
}

/// A prefix in numbers as [`field4`] and [`field16`] have them.
struct Parts<T> {
    net: T,
    mask: T,
}

/// # Safety
///
/// The prefix lies on a multiple of four.
#[inline(always)]
unsafe fn parts4(prefix: &Prefix4) -> Parts<u32> {
    // SAFETY: Each part is as long as that.
    unsafe { Parts { net: field4(&prefix.net), mask: field4(&prefix.mask) } }
}

/// # Safety
///
/// The prefix lies on a multiple of eight.
#[inline(always)]
unsafe fn parts6(prefix: &Prefix6) -> Parts<[u64; 2]> {
    // SAFETY: Each part is a multiple of that long.
    unsafe { Parts { net: field16(&prefix.net), mask: field16(&prefix.mask) } }
}

/// What the zone says of `address`: the word of the longest prefix around it.
#[inline(always)]
fn entry4(slot: &ZoneSlot, index: u32, rules: &impl Rules, address: u32) -> u32 {
    // SAFETY: Of a slot, whose prefixes `abi` holds to multiples of four.
    let near = unsafe { parts4(&slot.near_v4) };
    if eq32(address & near.mask, near.net) != 0 {
        return slot.near_word_v4;
    }
    if slot.flags & zone_flags::TRIE_V4 != 0 {
        return rules.trie4(index, address);
    }
    let mut i = 0;
    while i < slot.v4.len() {
        // SAFETY: As above.
        let prefix = unsafe { parts4(&slot.v4[i]) };
        if address & prefix.mask == prefix.net {
            return slot.words_v4[word_place(i)];
        }
        i += 1;
    }
    slot.words_v4[word_place(i)]
}

/// As [`entry4`].
#[inline(always)]
fn entry6(slot: &ZoneSlot, index: u32, rules: &impl Rules, address: [u64; 2]) -> u32 {
    // SAFETY: Of a slot, whose prefixes `abi` holds to multiples of eight.
    let Parts { net, mask } = unsafe { parts6(&slot.near_v6) };
    if eq128([address[0] & mask[0], address[1] & mask[1]], net) != 0 {
        return slot.near_word_v6;
    }
    if slot.flags & zone_flags::TRIE_V6 != 0 {
        return rules.trie6(index, address);
    }
    let mut i = 0;
    while i < slot.v6.len() {
        // SAFETY: As above.
        let Parts { net, mask } = unsafe { parts6(&slot.v6[i]) };
        if (address[0] & mask[0] ^ net[0]) | (address[1] & mask[1] ^ net[1]) == 0 {
            return slot.words_v6[word_place(i)];
        }
        i += 1;
    }
    slot.words_v6[word_place(i)]
}

/// What [`Rules::ports`] returns for `range`, so that it reads as a word; never 0.
#[inline(always)]
pub fn port_word(range: &PortRange) -> u32 {
    const FOUND: u32 = 1 << 31;
    u32::from(range.verdicts) & (zone_verdict::EGRESS | zone_verdict::INGRESS)
        | zone_verdict::rules(range.egress_rule, range.ingress_rule)
        | FOUND
}
