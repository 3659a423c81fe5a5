//! What an ARP or a neighbour discovery packet says of who has an address.
//!
//! Whoever is on the wire writes these bytes: what is cut off or contradicts itself says nothing.

use std::net::{IpAddr, Ipv6Addr};

use super::{arp::Arp, part};
use crate::spec::Mac;

/// That a station has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// What is claimed.
    pub address: IpAddr,
    /// By whom.
    pub mac: Mac,
}

/// Bytes of an IPv6 header.
const IPV6: usize = 40;
/// `ICMPv6`, as IPv6 names what follows.
const ICMPV6: u8 = 58;
/// What no router has passed on.
const UNROUTED: u8 = 255;
/// Bytes of a solicitation or an advertisement before its options.
const MESSAGE: usize = 24;

impl Claim {
    /// What the sender of an ARP packet says of itself. `body` begins behind the Ethernet header.
    ///
    /// A probe, whose sender has no address yet, claims nothing: it asks whether it may.
    pub fn of_arp(body: &[u8]) -> Option<Self> {
        let Arp { mac, sender, .. } = Arp::read(body)?;
        let is_claim = !sender.is_unspecified() && mac.bytes() != [0; 6];
        is_claim.then_some(Self { address: sender.into(), mac })
    }

    /// What a neighbour solicitation says of its sender, an advertisement of its target. `packet` begins with the IPv6
    /// header, `source` is the MAC that sent it: the word where no option names one.
    ///
    /// A solicitation without a source address asks whether its sender may have one, and claims nothing. The checksum
    /// is not looked at: what is wrong is believed by nobody, and is worth knowing of all the same.
    pub fn of_neighbour(source: Mac, packet: &[u8]) -> Option<Self> {
        let head: [u8; IPV6] = part(packet, 0)?;
        let length = usize::from(u16::from_be_bytes([head[4], head[5]]));
        let body = packet.get(IPV6..IPV6 + length)?;
        let [kind, code] = part(body, 0)?;
        let (sender, target): ([u8; 16], [u8; 16]) = (part(packet, 8)?, part(body, 8)?);
        let (address, option) = match kind {
            135 => (sender, 1),
            136 => (target, 2),
            _ => return None,
        };
        let named = link_layer_address(body.get(MESSAGE..)?, option)?;
        let (address, mac) = (Ipv6Addr::from(address), named.unwrap_or(source));
        let is_discovery = head[0] >> 4 == 6 && head[6] == ICMPV6 && head[7] == UNROUTED && code == 0;
        let is_claim = is_discovery && !address.is_unspecified() && !address.is_multicast();
        (is_claim && mac.bytes() != [0; 6]).then_some(Self { address: address.into(), mac })
    }
}

/// The MAC in the first option of this kind; `None` where the options are broken.
fn link_layer_address(mut options: &[u8], wanted: u8) -> Option<Option<Mac>> {
    let mut found = None;
    while let [kind, words, ..] = *options {
        let (option, rest) = options.split_at_checked(usize::from(words) * 8).filter(|_| words != 0)?;
        if kind == wanted && found.is_none() {
            found = Some(Mac::new(part(option, 2)?));
        }
        options = rest;
    }
    options.is_empty().then_some(found)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    const HOST: Mac = Mac::new([2, 0, 0, 0, 0, 0x11]);
    const OTHER: Mac = Mac::new([2, 0, 0, 0, 0, 0x22]);
    const V4: Ipv4Addr = Ipv4Addr::new(10, 12, 34, 200);
    const V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x34, 0, 0, 0, 0, 0, 0x200);

    fn arp(operation: u8, mac: Mac, address: Ipv4Addr) -> Vec<u8> {
        let head = [0, 1, 8, 0, 6, 4, 0, operation];
        [&head[..], &mac.bytes(), &address.octets(), &[0; 6], &[10, 12, 34, 1]].concat()
    }

    fn discovery(kind: u8, sender: Ipv6Addr, target: Ipv6Addr, options: &[u8]) -> Vec<u8> {
        let length = u8::try_from(MESSAGE + options.len()).unwrap();
        let head = [0x60, 0, 0, 0, 0, length, ICMPV6, UNROUTED];
        let body = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target.octets(), options].concat();
        [&head[..], &sender.octets(), &[0xff; 16], &body].concat()
    }

    fn option(kind: u8, mac: Mac) -> Vec<u8> {
        [&[kind, 1][..], &mac.bytes()].concat()
    }

    fn claim(address: impl Into<IpAddr>, mac: Mac) -> Option<Claim> {
        Some(Claim { address: address.into(), mac })
    }

    #[test]
    fn a_question_and_an_answer_claim_and_a_probe_does_not() {
        assert_eq!(Claim::of_arp(&arp(1, HOST, V4)), claim(V4, HOST));
        assert_eq!(Claim::of_arp(&arp(2, HOST, V4)), claim(V4, HOST));
        assert_eq!(Claim::of_arp(&arp(1, HOST, Ipv4Addr::UNSPECIFIED)), None);
        // The wire pads what is short.
        assert_eq!(Claim::of_arp(&[arp(1, HOST, V4), vec![0; 18]].concat()), claim(V4, HOST));
    }

    #[test]
    fn what_is_no_arp_of_ipv4_on_ethernet_says_nothing() {
        assert_eq!(Claim::of_arp(&arp(3, HOST, V4)), None);
        assert_eq!(Claim::of_arp(&arp(1, Mac::new([0; 6]), V4)), None);
        for at in 0..6 {
            let mut body = arp(1, HOST, V4);
            body[at] ^= 1;
            assert_eq!(Claim::of_arp(&body), None, "byte {at}");
        }
    }

    #[test]
    fn a_solicitation_claims_for_its_sender_and_an_advertisement_for_its_target() {
        let other = Ipv6Addr::LOCALHOST;
        let said = |packet: &[u8]| Claim::of_neighbour(HOST, packet);
        assert_eq!(said(&discovery(135, V6, other, &[])), claim(V6, HOST));
        assert_eq!(said(&discovery(135, V6, other, &option(1, OTHER))), claim(V6, OTHER));
        assert_eq!(said(&discovery(136, other, V6, &[])), claim(V6, HOST));
        // Behind another option, of which there may be any.
        let options = [option(14, HOST), option(2, OTHER)].concat();
        assert_eq!(said(&discovery(136, other, V6, &options)), claim(V6, OTHER));
        // Duplicate address detection asks.
        assert_eq!(said(&discovery(135, Ipv6Addr::UNSPECIFIED, V6, &[])), None);
        assert_eq!(said(&discovery(134, V6, V6, &[])), None);
        assert_eq!(said(&discovery(136, other, Ipv6Addr::from([0xff; 16]), &[])), None);
    }

    #[test]
    fn what_was_routed_or_has_broken_options_says_nothing() {
        let said = |packet: &[u8]| Claim::of_neighbour(HOST, packet);
        let packet = discovery(136, V6, V6, &option(2, OTHER));
        // Version, next header, hop limit, code.
        for (at, value) in [(0, 0x40), (6, 17), (7, 254), (41, 1)] {
            let mut packet = packet.clone();
            packet[at] = value;
            assert_eq!(said(&packet), None, "byte {at}");
        }
        for options in [&[2, 0, 0, 0, 0, 0, 0, 0][..], &[2, 2, 0, 0, 0, 0, 0, 0], &[2]] {
            assert_eq!(said(&discovery(136, V6, V6, options)), None, "{options:?}");
        }
        assert_eq!(said(&[&packet[..], &[0; 9]].concat()), claim(V6, OTHER), "padding is not read");
    }

    #[test]
    fn what_is_cut_off_says_nothing() {
        let (arp, packet) = (arp(2, HOST, V4), discovery(136, V6, V6, &option(2, OTHER)));
        assert!((0..arp.len()).all(|length| Claim::of_arp(&arp[..length]).is_none()));
        assert!((0..packet.len()).all(|length| Claim::of_neighbour(HOST, &packet[..length]).is_none()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..160)) {
            let _ = (Claim::of_arp(&bytes), Claim::of_neighbour(HOST, &bytes));
        }

        /// Bytes that reach the end of the parser: a claim is only what stands in the frame.
        #[test]
        fn what_is_claimed_stands_in_the_packet(
            kind in 135u8..=136,
            options in prop::collection::vec(any::<u8>(), 0..48),
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let mut packet = discovery(kind, V6, V6, &options);
            for (at, value) in flips {
                let at = at.index(packet.len());
                packet[at] = value;
            }
            if let Some(Claim { address: IpAddr::V6(address), mac }) = Claim::of_neighbour(HOST, &packet) {
                prop_assert!(packet.windows(16).any(|window| window == address.octets()));
                prop_assert!(mac == HOST || packet.windows(6).any(|window| window == mac.bytes()));
            }
        }
    }
}
