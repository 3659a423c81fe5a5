//! Frames, built so that a case reads as what it is. Checksums are zero: no rule looks at them.

use std::net::{Ipv4Addr, Ipv6Addr};

/// MAC of the pod that the cases are about.
pub(crate) const POD_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x11];
/// MAC of somebody on the wire.
pub(crate) const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x99];

pub(crate) const ARP: u16 = 0x0806;
pub(crate) const IPV4: u16 = 0x0800;
pub(crate) const IPV6: u16 = 0x86dd;

/// An Ethernet frame from the pod to somebody on the wire.
pub(crate) fn ethernet(ethertype: u16, body: &[u8]) -> Vec<u8> {
    [&PEER_MAC[..], &POD_MAC, &ethertype.to_be_bytes(), body].concat()
}

/// The same bytes with other MACs.
pub(crate) fn between(frame: &[u8], source: [u8; 6], destination: [u8; 6]) -> Vec<u8> {
    [&destination[..], &source, &frame[12..]].concat()
}

/// Cuts `frame` to `length` bytes.
pub(crate) fn cut(mut frame: Vec<u8>, length: usize) -> Vec<u8> {
    assert!(length < frame.len(), "nothing to cut");
    frame.truncate(length);
    frame
}

/// Appends `padding`, as Ethernet does below 60 bytes, and as whoever wants to be misread does.
pub(crate) fn padded(frame: Vec<u8>, padding: &[u8]) -> Vec<u8> {
    [&frame[..], padding].concat()
}

/// `frame` with the bytes at `at` replaced.
pub(crate) fn with(mut frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

/// An ARP packet; `operation` 1 asks, 2 answers.
pub(crate) fn arp(operation: u8, sender_mac: [u8; 6], sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, operation];
    let body = [&head[..], &sender_mac, &sender.octets(), &[0; 6], &target.octets()].concat();
    ethernet(ARP, &body)
}

/// What an IPv4 or IPv6 packet carries: protocol and bytes.
#[derive(Clone, Debug)]
pub(crate) struct Carried {
    protocol: u8,
    bytes: Vec<u8>,
}

/// `bytes` of any protocol.
pub(crate) fn raw(protocol: u8, bytes: &[u8]) -> Carried {
    Carried { protocol, bytes: bytes.to_vec() }
}

pub(crate) fn udp(source: u16, destination: u16) -> Carried {
    let ports = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    raw(17, &[&ports[..], &[0, 16, 0, 0], b"datagram"].concat())
}

pub(crate) fn tcp(source: u16, destination: u16) -> Carried {
    let ports = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    raw(6, &[&ports[..], &[0; 8], &[0x50, 2, 0xff, 0xff, 0, 0, 0, 0]].concat())
}

pub(crate) fn sctp(source: u16, destination: u16) -> Carried {
    let ports = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    raw(132, &[&ports[..], &[0; 8]].concat())
}

/// ICMP of IPv4: type, then what stands behind the first eight bytes.
pub(crate) fn icmp(kind: u8, body: &[u8]) -> Carried {
    raw(1, &[&[kind, 0, 0, 0, 0, 0, 0, 0][..], body].concat())
}

/// ICMPv6: type, then what stands behind the first four bytes.
pub(crate) fn icmp6(kind: u8, body: &[u8]) -> Carried {
    raw(58, &[&[kind, 0, 0, 0][..], body].concat())
}

pub(crate) fn igmp(kind: u8, group: Ipv4Addr) -> Carried {
    raw(2, &[&[kind, 0, 0, 0][..], &group.octets()].concat())
}

/// A neighbour message: 135 solicits, 136 advertises.
pub(crate) fn neighbour(kind: u8, target: Ipv6Addr, options: &[u8]) -> Carried {
    icmp6(kind, &[&[0; 4][..], &target.octets(), options].concat())
}

/// A link-layer address option: 1 of the source, 2 of the target.
pub(crate) fn link_layer(kind: u8, mac: [u8; 6]) -> Vec<u8> {
    [&[kind, 1][..], &mac].concat()
}

/// A multicast listener report of version 2 about nothing.
pub(crate) fn mld() -> Carried {
    icmp6(143, &[0; 4])
}

/// An ICMPv6 error about `packet` (a frame), cut to `length` bytes of it.
pub(crate) fn error6(kind: u8, packet: &[u8], length: usize) -> Carried {
    icmp6(kind, &[&[0; 4][..], &packet[14..14 + length]].concat())
}

/// An ICMP error about `packet` (a frame), cut to `length` bytes of it.
pub(crate) fn error4(kind: u8, packet: &[u8], length: usize) -> Carried {
    icmp(kind, &packet[14..14 + length])
}

/// An IPv4 packet; the methods make it lie.
#[derive(Clone, Debug)]
pub(crate) struct V4 {
    source: Ipv4Addr,
    destination: Ipv4Addr,
    carried: Carried,
    options: Vec<u8>,
    first_byte: Option<u8>,
    total: Option<u16>,
    fragment: u16,
}

pub(crate) fn v4(source: Ipv4Addr, destination: Ipv4Addr, carried: Carried) -> V4 {
    V4 { source, destination, carried, options: vec![], first_byte: None, total: None, fragment: 0 }
}

impl V4 {
    /// Options, a multiple of four bytes.
    pub(crate) fn options(self, options: &[u8]) -> Self {
        Self { options: options.to_vec(), ..self }
    }
    /// Version and header length as they shall stand there.
    pub(crate) fn first_byte(self, byte: u8) -> Self {
        Self { first_byte: Some(byte), ..self }
    }
    /// Total length as it shall stand there.
    pub(crate) fn total(self, total: u16) -> Self {
        Self { total: Some(total), ..self }
    }
    /// Offset in units of eight bytes; 0x2000 says that more follow.
    pub(crate) fn fragment(self, fragment: u16) -> Self {
        Self { fragment, ..self }
    }

    pub(crate) fn frame(self) -> Vec<u8> {
        let header = 20 + self.options.len();
        let size = header + self.carried.bytes.len();
        let words = u8::try_from(header / 4).expect("options fit");
        // What does not fit says zero, as BIG TCP does.
        let total = self.total.unwrap_or_else(|| u16::try_from(size).unwrap_or(0));
        let mut packet = vec![self.first_byte.unwrap_or(0x40 | words), 0];
        packet.extend(total.to_be_bytes());
        packet.extend([0, 0]);
        packet.extend(self.fragment.to_be_bytes());
        packet.extend([64, self.carried.protocol, 0, 0]);
        packet.extend(self.source.octets());
        packet.extend(self.destination.octets());
        packet.extend(self.options);
        packet.extend(self.carried.bytes);
        ethernet(IPV4, &packet)
    }
}

/// An IPv6 packet; the methods make it longer, or make it lie.
#[derive(Clone, Debug)]
pub(crate) struct V6 {
    source: Ipv6Addr,
    destination: Ipv6Addr,
    carried: Carried,
    /// Kind and bytes of each extension header; the first byte is filled in.
    chain: Vec<(u8, Vec<u8>)>,
    first_byte: u8,
    length: Option<u16>,
}

pub(crate) fn v6(source: Ipv6Addr, destination: Ipv6Addr, carried: Carried) -> V6 {
    V6 { source, destination, carried, chain: vec![], first_byte: 0x60, length: None }
}

impl V6 {
    /// One more extension header in front of what is carried.
    pub(crate) fn header(mut self, kind: u8, bytes: &[u8]) -> Self {
        self.chain.push((kind, bytes.to_vec()));
        self
    }
    /// Hop-by-hop options with Router Alert, as MLD has them.
    pub(crate) fn router_alert(self) -> Self {
        self.header(0, &[0, 0, 5, 2, 0, 0, 1, 0])
    }
    /// Destination options that are padding: `blocks` of eight bytes.
    pub(crate) fn options(self, blocks: u8) -> Self {
        let mut bytes = vec![0; usize::from(blocks) * 8];
        (bytes[1], bytes[2], bytes[3]) = (blocks - 1, 1, blocks * 8 - 4);
        self.header(60, &bytes)
    }
    /// A fragment header: `position` is the offset in bytes, and 1 if more follow.
    pub(crate) fn fragment(self, position: u16) -> Self {
        let p = position.to_be_bytes();
        self.header(44, &[0, 0, p[0], p[1], 0, 0, 0, 7])
    }
    pub(crate) fn first_byte(self, first_byte: u8) -> Self {
        Self { first_byte, ..self }
    }
    /// Payload length as it shall stand there.
    pub(crate) fn length(self, length: u16) -> Self {
        Self { length: Some(length), ..self }
    }

    pub(crate) fn frame(mut self) -> Vec<u8> {
        let mut next = self.carried.protocol;
        for (kind, bytes) in self.chain.iter_mut().rev() {
            bytes[0] = std::mem::replace(&mut next, *kind);
        }
        let mut payload: Vec<u8> = self.chain.into_iter().flat_map(|(_, bytes)| bytes).collect();
        payload.extend(self.carried.bytes);
        let length = self.length.unwrap_or_else(|| u16::try_from(payload.len()).unwrap_or(0));
        let mut packet = vec![self.first_byte, 0, 0, 0];
        packet.extend(length.to_be_bytes());
        packet.extend([next, 255]);
        packet.extend(self.source.octets());
        packet.extend(self.destination.octets());
        packet.extend(payload);
        ethernet(IPV6, &packet)
    }
}
