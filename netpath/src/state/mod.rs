//! One record per attachment, and the lock that everything that writes shares.

mod lock;
mod record;
mod records;

pub use lock::{Lock, LockError, PATIENCE};
pub use record::{Endpoint, Kind, Master, Netns, Phase, Pod, Record, Zone};
pub use records::{Listing, Records, StateError, Torn, TornCause, boot_id};
