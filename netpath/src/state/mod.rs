//! One record per attachment, and the lock that everything that writes shares.

mod caches;
mod device_infos;
mod first_network;
mod lock;
mod record;
mod records;
mod sandbox;
mod tally;

pub use caches::{CachedResult, DelegateCache, ResultCache};
pub use device_infos::{DeviceInfoError, DeviceInfos};
pub use first_network::FirstNetwork;
pub use lock::{Lock, LockError, PATIENCE};
pub use record::{Endpoint, Fingerprint, Kind, Master, Netns, Outline, Phase, Pod, Record, Zone};
pub use records::{Known, Listing, Records, StateError, Torn, TornCause, boot_id};
pub use sandbox::{Sandbox, Sandboxes};
pub use tally::Tally;
