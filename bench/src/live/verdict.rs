//! What is to become of a packet.

use std::net::Ipv4Addr;

use super::lab::{GATEWAY, STRANGER};

/// Whether the zone lets a packet pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    /// It does.
    Allowed,
    /// It does not.
    Denied,
}

impl Verdict {
    /// Its part of a figure's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
        }
    }

    /// The other end of packets that are to have it.
    pub(super) fn other_end(self) -> Ipv4Addr {
        match self {
            Self::Allowed => GATEWAY,
            Self::Denied => STRANGER,
        }
    }
}
