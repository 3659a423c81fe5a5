//! The frames of the cases: UDP from a pod or to it, 60 bytes and above.

use std::net::{Ipv4Addr, Ipv6Addr};

pub(crate) type Mac = [u8; 6];

/// Somebody on the wire.
pub(crate) const PEER_MAC: Mac = [2, 0, 0, 0, 0, 0x99];
/// The host on the master.
pub(crate) const HOST_MAC: Mac = [2, 0, 0, 0, 0, 1];
/// Nobody that netpath knows.
pub(crate) const UNKNOWN_MAC: Mac = [2, 0, 0, 0, 0, 0x77];
/// What every endpoint may send from: which of them sends, its MAC alone says.
pub(crate) const POD4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 200);
/// The same in IPv6.
pub(crate) const POD6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0xc8);

/// Where a frame has the lower four bytes of its destination MAC.
pub(crate) const AT_DESTINATION_MAC: u32 = 2;
/// Where it has those of its source MAC.
pub(crate) const AT_SOURCE_MAC: u32 = 8;
/// Where an IPv4 frame has its source address.
pub(crate) const AT_SOURCE4: u32 = 26;
/// Where it has its destination address.
pub(crate) const AT_DESTINATION4: u32 = 30;

/// Where it has its ports.
pub(crate) const AT_PORTS4: u32 = 34;

/// MAC of endpoint `number`.
pub(crate) fn pod_mac(number: u32) -> Mac {
    let [a, b, c, d] = number.to_be_bytes();
    [2, 0x70, a, b, c, d]
}

/// IPv4 prefix `number` of a zone, a /24: every other one, so that beside each lies one that is not listed.
pub(crate) fn prefix4(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + number * PREFIX4_STEP)
}

/// From one IPv4 prefix of a zone to the next.
pub(crate) const PREFIX4_STEP: u32 = 0x200;

/// IPv6 prefix `number` of a zone, a /48.
pub(crate) fn prefix6(number: u32) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0)) + (u128::from(number * 2) << 80))
}

/// A host of IPv4 prefix `number`.
pub(crate) fn host4(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(prefix4(number)) + 5)
}

/// A host beside it, that no prefix of the zone covers.
pub(crate) fn beside4(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(prefix4(number)) + 0x105)
}

/// A host of IPv6 prefix `number`.
pub(crate) fn host6(number: u32) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(prefix6(number)) + 5)
}

/// IPv4 with UDP.
pub(crate) fn udp4(
    (source_mac, destination_mac): (Mac, Mac),
    source: Ipv4Addr,
    destination: Ipv4Addr,
) -> Vec<u8> {
    let mut frame = [&destination_mac[..], &source_mac, &[8, 0]].concat();
    frame.extend([0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0]);
    frame.extend(source.octets());
    frame.extend(destination.octets());
    frame.extend([0x30, 0x39, 0, 53, 0, 26, 0, 0]);
    frame.extend([0; 18]);
    frame
}

/// IPv6 with UDP.
pub(crate) fn udp6(
    (source_mac, destination_mac): (Mac, Mac),
    source: Ipv6Addr,
    destination: Ipv6Addr,
) -> Vec<u8> {
    let mut frame = [&destination_mac[..], &source_mac, &[0x86, 0xdd]].concat();
    frame.extend([0x60, 0, 0, 0, 0, 26, 17, 64]);
    frame.extend(source.octets());
    frame.extend(destination.octets());
    frame.extend([0x30, 0x39, 0, 53, 0, 26, 0, 0]);
    frame.extend([0; 18]);
    frame
}
