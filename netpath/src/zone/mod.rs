//! Zone configuration to wanted map content.
//!
//! [`ZoneConf`] is what a network says in its `zone` key, [`MasterEntry`] what the administrator of the
//! cluster says of the master; [`resolve`] makes a [`Zone`] of the two, and [`compile`] an image of it,
//! as the maps hold it.

mod bound;
mod compile;
mod conf;
mod entry;
mod error;
mod fields;
mod flatten;
mod image;
mod masters;
mod ports;
mod prefix;
mod resolve;
mod rules;
mod slot;

#[cfg(test)]
mod properties;

pub use compile::compile;
pub use conf::{Ingress, Mode, OnDeny, ZoneConf};
pub use entry::{Ipvlan, MasterEntry, Promisc, Refusal, Tc, UnknownSource, Xdp};
pub use error::{BoundError, ValueError, ZoneError};
pub use image::{Difference, Ruling, ZoneImage};
pub use masters::{Masters, MastersError};
pub use ports::{Ports, Protocol, ZoneEntry, range_text};
pub use resolve::{Zone, ZoneWarning, resolve};
pub use rules::{List, ZoneRule};
pub use slot::{SlotError, TrieEntry};
