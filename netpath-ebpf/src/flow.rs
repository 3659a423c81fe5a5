//! Plain packets and their flows.
//!
//! A plain packet is TCP or UDP directly in IPv4 without options or in IPv6 without extension headers, whole, and at least as long as
//! its headers say. What [`crate::verdict`] makes of one depends on its addresses, protocol and ports, on who sent it or is to
//! have it, and on what the maps hold; so packets of one flow have one verdict as long as no map changes, and it need not be found
//! again for each of them. Everything else is judged packet by packet, also what stands for several on the wire (segmentation and
//! receive offloads): of those few carry much.

use crate::{
    abi::FlowKey,
    bits::opaque,
    packet::{ETH_LEN, Head, TCP, UDP},
};

/// What tells the flow of a plain packet from others between the same two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plain {
    /// As in [`FlowKey::addresses`].
    pub addresses: [u64; 4],
    /// As in [`FlowKey::ports`].
    pub ports: u32,
    /// UDP, else TCP.
    pub udp: bool,
    /// IPv6, else IPv4.
    pub v6: bool,
}

impl Plain {
    /// The packet of an IPv4 frame of `length` bytes, at least [`crate::packet::IPV4_HEAD`]; `None`: it is not plain.
    #[inline(always)]
    pub fn v4(head: &impl Head, length: u32) -> Option<Self> {
        const VERSION_AND_LENGTH: u8 = 0x45;
        // More fragments, or any offset.
        const FRAGMENT: u16 = 0x3fff;
        if head.u8::<14>() != VERSION_AND_LENGTH || head.u16::<20>() & FRAGMENT != 0 {
            return None;
        }
        let (udp, least) = match head.u8::<23>() {
            TCP => (false, 40),
            UDP => (true, 28),
            _ => return None,
        };
        let total = u32::from(head.u16::<16>());
        if total < least || length < ETH_LEN + total {
            return None;
        }
        // As in `Facts::reset`.
        let zero = opaque(0);
        let addresses = [head.raw8::<26>(), zero, zero, zero];
        Some(Self { addresses, ports: head.raw4::<34>(), udp, v6: false })
    }

    /// The packet of an IPv6 frame of `length` bytes, at least [`crate::packet::IPV6_HEAD`]; `None`: it is not plain.
    #[inline(always)]
    pub fn v6(head: &impl Head, length: u32) -> Option<Self> {
        const HEADER: u32 = 40;
        if head.u8::<14>() >> 4 != 6 {
            return None;
        }
        let (udp, least) = match head.u8::<20>() {
            TCP => (false, 20),
            UDP => (true, 8),
            _ => return None,
        };
        let payload = u32::from(head.u16::<18>());
        if payload < least || length < ETH_LEN + HEADER + payload {
            return None;
        }
        let addresses = [head.raw8::<22>(), head.raw8::<30>(), head.raw8::<38>(), head.raw8::<46>()];
        Some(Self { addresses, ports: head.raw4::<54>(), udp, v6: true })
    }

    /// Its flow, of the endpoint with `mac` (as in [`FlowKey::who`]) on `master`, at a hook of [`crate::abi::flow_hook`].
    #[inline(always)]
    pub fn key(&self, mac: u64, master: u16, hook: u64, evidence: u64) -> FlowKey {
        let place = u64::from(master) | hook << 6 | u64::from(self.udp) << 9 | u64::from(self.v6) << 10;
        FlowKey { who: mac | place << 48, addresses: self.addresses, evidence, ports: self.ports }
    }
}

/// Which of a CPU's `2^bits` rows a flow has.
#[expect(clippy::cast_possible_truncation, reason = "a dozen bits are left")]
#[inline(always)]
pub fn row(key: &FlowKey, bits: u32) -> u32 {
    // The fraction of the golden ratio: what differs in few bits comes to lie far apart (Knuth, TAOCP 3, 6.4).
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let [a, b, c, d] = key.addresses;
    let mixed = key.who ^ a ^ b ^ (c ^ d).rotate_left(32) ^ u64::from(key.ports) << 17;
    // High bits of a factor reach few bits of the product.
    let mixed = mixed ^ mixed >> 32;
    (mixed.wrapping_mul(GOLDEN) >> (64 - bits)) as u32
}
