//! What a drop event means.
//!
//! [`Event`] is an event as it was read from the ring buffer, with its text for people and its form for
//! programs; [`tally`] keeps a flood of them readable. Nothing here reads a clock.

mod docs;
mod event;
mod tally;
mod text;

pub use docs::drop_reasons_markdown;
pub use event::{DecodeError, Direction, Event, Reason};
pub use tally::{Group, Limits, Report, Window, tally};
