//! What a drop event means, and a packet by which neighbours find each other.
//!
//! [`Event`] is an event as it was read from the ring buffer, with its text for people and its form for
//! programs; [`tally`] keeps a flood of them readable. [`Claim`] is what a packet of the wire says of an address.
//! Nothing here reads a clock.

pub mod arp;
mod claim;
mod docs;
mod event;
mod tally;
mod text;

pub use claim::Claim;
pub use docs::drop_reasons_markdown;
pub use event::{DecodeError, Direction, Event, Reason};
pub use tally::{Group, Limits, Report, Window, tally};

/// The bytes of a packet from `at` on.
fn part<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}
