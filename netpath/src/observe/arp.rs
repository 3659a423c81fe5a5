//! An ARP packet about IPv4 addresses on Ethernet (RFC 826).

use std::net::Ipv4Addr;

use super::part;
use crate::spec::Mac;

/// Ethernet, IPv4, and the lengths of their addresses: how such a packet begins.
pub const FORM: [u8; 6] = [0, 1, 8, 0, 6, 4];
/// Who asks.
pub const REQUEST: u16 = 1;
/// Who answers.
pub const REPLY: u16 = 2;

/// What one says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// [`REQUEST`] or [`REPLY`].
    pub operation: u16,
    /// The sender's MAC, as it says itself.
    pub mac: Mac,
    /// The sender's address; 0.0.0.0 of one that has none.
    pub sender: Ipv4Addr,
    /// The address that is asked for, or of whoever is told.
    pub target: Ipv4Addr,
}

impl Arp {
    /// Reads one, without Ethernet's header; nothing where it is cut off or about anything else.
    pub fn read(body: &[u8]) -> Option<Self> {
        let operation = u16::from_be_bytes(part(body, 6)?);
        let packet = Self {
            operation,
            mac: Mac::new(part(body, 8)?),
            sender: part::<4>(body, 14)?.into(),
            target: part::<4>(body, 24)?.into(),
        };
        (body.starts_with(&FORM) && matches!(operation, REQUEST | REPLY)).then_some(packet)
    }
}
