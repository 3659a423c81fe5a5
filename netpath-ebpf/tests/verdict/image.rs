//! The verdict's three needs on the host: a frame in a slice, the look-ups from a value, both as the ABI has them.

use std::net::{IpAddr, Ipv6Addr};

use netpath_ebpf::{
    abi::{
        ENDPOINT_ADDRS, Endpoint, PORT_RANGES, PortRange, PortSet, Prefix4, Prefix6, ZONE_INLINE, ZoneSlot,
        endpoint_flags, kind, mode, word_place, zone_flags, zone_verdict,
    },
    bits::{bytes4, bytes16, raw4, raw16},
    drop_reason::DropReason,
    flow::Plain,
    packet::{ETH_IPV4, ETH_IPV6, Facts, Frame, Head, IPV4_HEAD, IPV6_HEAD, Load, read, walk},
    verdict::{self, Decision, Rules},
};

use super::{
    model::{self, Pod, Rule, Zone},
    reference::Way,
};

/// A frame in a slice. What lies behind its end differs with `behind`, as it would in scratch memory.
#[derive(Clone, Copy)]
pub(crate) struct Slice<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) behind: u8,
}

impl Slice<'_> {
    fn raw<const N: usize>(&self, offset: usize) -> [u8; N] {
        std::array::from_fn(|i| self.bytes.get(offset + i).copied().unwrap_or(self.behind))
    }
}

impl Head for Slice<'_> {
    fn u8<const OFFSET: usize>(&self) -> u8 {
        self.raw::<1>(OFFSET)[0]
    }
    fn u16<const OFFSET: usize>(&self) -> u16 {
        u16::from_be_bytes(self.raw(OFFSET))
    }
    fn raw4<const OFFSET: usize>(&self) -> u32 {
        u32::from_ne_bytes(self.raw(OFFSET))
    }
    fn raw8<const OFFSET: usize>(&self) -> u64 {
        u64::from_ne_bytes(self.raw(OFFSET))
    }
}

impl Load for Slice<'_> {
    fn pair(&self, offset: u32) -> Option<[u8; 2]> {
        let at = offset as usize;
        self.bytes.get(at..at + 2)?.try_into().ok()
    }
}

impl<'a> Frame for Slice<'a> {
    type Head = Slice<'a>;

    fn length(&self) -> u32 {
        u32::try_from(self.bytes.len()).expect("a frame")
    }
    fn head<const N: usize>(&self) -> Option<Slice<'a>> {
        Some(*self)
    }
    fn long_head(&self) -> Option<Slice<'a>> {
        Some(*self)
    }
    fn walk(&self, first: u8, end: u32) -> u64 {
        walk(first, end, self)
    }
}

/// Where a zone's prefixes are put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Inline where they fit.
    Fit,
    /// In the tries, however few they are.
    Tries,
}

/// A zone as the maps hold it.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// The slot.
    pub(crate) slot: ZoneSlot,
    /// Prefix length, address, bits: rows of the IPv4 trie.
    pub(crate) trie_v4: Vec<(u32, [u8; 4], u32)>,
    /// The same for IPv6.
    pub(crate) trie_v6: Vec<(u32, [u8; 16], u32)>,
    /// The port sets that words name.
    pub(crate) ports: Vec<PortSet>,
}

impl Image {
    /// `zone` laid out.
    pub(crate) fn new(zone: &Zone, layout: Layout) -> Self {
        let mut slot = ZoneSlot { generation: 1, flags: 0, ..ZoneSlot::EMPTY };
        let (mut v4, mut v6, mut ports) = (Vec::new(), Vec::new(), Vec::new());
        for rule in &zone.rules {
            let length = u32::from(rule.length);
            match rule.net {
                IpAddr::V4(net) => v4.push((length, net.octets(), bits(rule, &mut ports))),
                IpAddr::V6(net) => v6.push((length, net.octets(), bits(rule, &mut ports))),
            }
        }
        v4.sort_by_key(|row| std::cmp::Reverse(row.0));
        v6.sort_by_key(|row| std::cmp::Reverse(row.0));
        if zone.any {
            slot.flags |= zone_flags::INGRESS_ANY;
        }
        if zone.rules.iter().any(|rule| rule.net.is_ipv6() && rule.egress) {
            slot.flags |= zone_flags::HAS_V6;
        }
        let mut image = Self { slot, trie_v4: vec![], trie_v6: vec![], ports };
        if layout == Layout::Tries || v4.len() > ZONE_INLINE {
            image.slot.flags |= zone_flags::TRIE_V4;
            image.trie_v4 = v4;
        } else {
            for (i, (length, net, bits)) in v4.into_iter().enumerate() {
                let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0).to_be_bytes();
                image.slot.v4[i] = Prefix4 { net, mask };
                image.slot.words_v4[word_place(i)] = bits;
            }
        }
        if layout == Layout::Tries || v6.len() > ZONE_INLINE {
            image.slot.flags |= zone_flags::TRIE_V6;
            image.trie_v6 = v6;
        } else {
            for (i, (length, net, bits)) in v6.into_iter().enumerate() {
                let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0).to_be_bytes();
                image.slot.v6[i] = Prefix6 { net, mask };
                image.slot.words_v6[word_place(i)] = bits;
            }
        }
        image
    }
}

fn bits(rule: &Rule, sets: &mut Vec<PortSet>) -> u32 {
    let both = |egress, ingress| {
        (if egress { zone_verdict::EGRESS } else { 0 }) | if ingress { zone_verdict::INGRESS } else { 0 }
    };
    let mut word = both(rule.egress, rule.ingress);
    if !rule.ports.is_empty() {
        let mut set = [PortRange::default(); PORT_RANGES];
        for (place, range) in set.iter_mut().zip(&rule.ports) {
            let verdicts = u8::try_from(both(range.egress, range.ingress)).expect("two bits");
            let (protocol, first, last) = (range.protocol, range.first, range.last);
            *place = PortRange { protocol, verdicts, first, last, ..PortRange::default() };
        }
        let number = u32::try_from(sets.len()).expect("a few");
        word |= zone_verdict::PORTS | number << zone_verdict::PORT_SET_SHIFT;
        sets.push(set);
    }
    word
}

/// Row of the zone that [`endpoint`] names.
pub(crate) const ZONE: u32 = 1;

/// The row of `pod`, enforcing, in zone [`ZONE`].
pub(crate) fn endpoint(pod: &Pod) -> Endpoint {
    let mut row = Endpoint {
        id: 1,
        generation: 1,
        zone: ZONE,
        mode: mode::ENFORCE,
        kind: kind::ENDPOINT,
        flags: if pod.dhcp { endpoint_flags::DHCP } else { 0 },
        cookie: 0,
        v4: [[0; 4]; ENDPOINT_ADDRS],
        gateway_v4: pod.gateway4.map_or([0; 4], |address| address.octets()),
        pad: [0; 4],
        v6: [[0; 16]; ENDPOINT_ADDRS],
        link_local: pod.link_local.octets(),
        gateway_v6: pod.gateway6.unwrap_or(Ipv6Addr::UNSPECIFIED).octets(),
    };
    for (slot, address) in row.v4.iter_mut().zip(&pod.v4) {
        *slot = address.octets();
    }
    for (slot, address) in row.v6.iter_mut().zip(&pod.v6) {
        *slot = address.octets();
    }
    row
}

/// The maps: one zone or none.
pub(crate) struct Maps<'a>(pub(crate) Option<&'a Image>);

impl Rules for Maps<'_> {
    fn zone(&self, zone: u32) -> Option<(&ZoneSlot, u32)> {
        self.0.filter(|_| zone == ZONE).map(|image| (&image.slot, 2 * ZONE))
    }
    fn trie4(&self, slot: u32, address: u32) -> u32 {
        assert_eq!(slot, 2 * ZONE);
        let address = u32::from_be_bytes(bytes4(address));
        let image = self.0.expect("asked only where there is a zone");
        let around = image.trie_v4.iter().filter(|(length, net, _)| {
            let shift = 32 - length;
            address.checked_shr(shift) == u32::from_be_bytes(*net).checked_shr(shift)
        });
        around.max_by_key(|row| row.0).map_or(0, |row| row.2)
    }
    fn trie6(&self, slot: u32, address: [u64; 2]) -> u32 {
        assert_eq!(slot, 2 * ZONE);
        let address = u128::from_be_bytes(bytes16(address));
        let image = self.0.expect("asked only where there is a zone");
        let around = image.trie_v6.iter().filter(|(length, net, _)| {
            let shift = 128 - length;
            address.checked_shr(shift) == u128::from_be_bytes(*net).checked_shr(shift)
        });
        around.max_by_key(|row| row.0).map_or(0, |row| row.2)
    }
    fn ports(&self, slot: u32, set: u32, protocol: u8, port: u16) -> u32 {
        assert_eq!(slot, 2 * ZONE);
        let image = self.0.expect("asked only where there is a zone");
        let used = image.ports[set as usize].iter().filter(|range| range.protocol != 0);
        let mut holding =
            used.filter(|range| range.protocol == protocol && (range.first..=range.last).contains(&port));
        holding.next().map_or(0, verdict::port_word)
    }
}

/// Facts of a frame that may do everything, to and from addresses that are allowed.
fn facts_of_another() -> Facts {
    let (own4, near4) = (raw4(model::POD4.octets()), raw4(model::NEAR4.octets()));
    let (own6, near6) = (raw16(model::POD6.octets()), raw16(model::NEAR6.octets()));
    Facts {
        source6: own6,
        destination6: near6,
        target6: near6,
        quoted6: own6,
        source4: own4,
        destination4: near4,
        target4: near4,
        quoted4: own4,
        bits: u32::MAX,
        length: 1514,
        end: 1514,
        ethertype: 0x0800,
        source_port: 80,
        destination_port: 80,
        transport: 34,
        l3: 4,
        protocol: 6,
        flaw: 0,
        pad: [0],
    }
}

/// The flow of a frame that is plain.
pub(crate) fn plain(frame: &[u8]) -> Option<Plain> {
    let slice = Slice { bytes: frame, behind: 0 };
    match u16::from_be_bytes([frame[12], frame[13]]) {
        ETH_IPV4 if IPV4_HEAD <= frame.len() => Plain::v4(&slice, slice.length()),
        ETH_IPV6 if IPV6_HEAD <= frame.len() => Plain::v6(&slice, slice.length()),
        _ => None,
    }
}

/// Another frame of a flow, with nothing in it as it may have been in the first one but what the flow is told by.
fn another_of(flow: &Plain) -> Vec<u8> {
    let addresses: Vec<u8> = flow.addresses.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let carried = [&flow.ports.to_ne_bytes()[..], &[0xff; 36]].concat();
    let length = u16::try_from(carried.len()).expect("a small packet");
    let protocol = if flow.udp { 17 } else { 6 };
    let macs = [0xee; 12];
    let packet = match flow.v6 {
        true => {
            let [high, low] = length.to_be_bytes();
            [&[0x6f, 0xff, 0xff, 0xff, high, low, protocol, 0xff][..], &addresses].concat()
        }
        false => {
            let [high, low] = (length + 20).to_be_bytes();
            // Not to be fragmented, and the bit that means nothing.
            [&[0x45, 0xff, high, low, 0xff, 0xff, 0xc0, 0, 0xff, protocol, 0xff, 0xff][..], &addresses[..8]]
                .concat()
        }
    };
    let ethertype = if flow.v6 { ETH_IPV6 } else { ETH_IPV4 };
    [&macs[..], &ethertype.to_be_bytes(), &packet, &carried, &[0xaa; 5]].concat()
}

/// What `verdict.rs` says of a frame, and, if it is plain, of another one of its flow: what was found out of one is remembered for
/// the other.
pub(crate) fn verdict(
    frame: &[u8],
    tagged: bool,
    way: Way,
    row: &Endpoint,
    image: Option<&Image>,
) -> Option<DropReason> {
    let decision = decision(frame, tagged, way, row, image);
    if let Some(flow) = plain(frame).filter(|_| !tagged) {
        let other = another_of(&flow);
        assert_eq!(plain(&other), Some(flow), "the same flow");
        let its = self::decision(&other, tagged, way, row, image);
        assert_eq!(its, decision, "{way:?}: another packet of the flow");
    }
    (decision.reason() != 0).then(|| DropReason::from_number(decision.reason()).expect("a reason"))
}

/// What `verdict.rs` says of one frame, with other bytes behind its end each time.
fn decision(frame: &[u8], tagged: bool, way: Way, row: &Endpoint, image: Option<&Image>) -> Decision {
    let mut first = None;
    // 0x45, 0x60 and the rest are what a look behind the end would take for a header.
    for behind in [0, 0xff, 0x45, 0x60, 58, 17] {
        // The kernel's are of the packet before.
        let mut facts = if behind == 0 { Facts::default() } else { facts_of_another() };
        let slice = Slice { bytes: frame, behind };
        read(&slice, u16::from_be_bytes([frame[12], frame[13]]), tagged, &mut facts);
        let decision = match way {
            Way::Egress => verdict::egress(&facts, row, &Maps(image)),
            Way::Ingress => verdict::ingress(&facts, row, &Maps(image)),
        };
        assert_eq!(
            *first.get_or_insert(decision),
            decision,
            "depends on what lies behind the frame ({behind:#x})"
        );
    }
    first.expect("it ran")
}
