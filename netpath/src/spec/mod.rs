//! From wire format to valid types: all that CNI says about environment, stdin and stdout.
//!
//! Everything here is pure. What is parsed once cannot be wrong afterwards, and every error names the field,
//! its value and what to write instead.

pub mod address;
pub mod annotation;
pub mod args;
pub mod base64;
pub mod conf;
pub mod device_info;
pub mod env;
pub mod error;
pub mod event;
pub mod install;
pub mod ipam;
pub mod json;
pub mod meta;
pub mod nad;
pub mod names;
pub mod network_status;
pub mod outcome;
pub mod per_node;
pub mod request;
pub mod result;
pub mod version;

pub use address::RequestedIp;
pub use annotation::Selection;
pub use args::CniArgs;
pub use conf::{Acd, ArgsCni, MacvlanConf, MacvlanMode, NetConf, RuntimeConfig, ValidAttachment};
pub use device_info::DeviceInfo;
pub use env::{CniEnv, Command, EnvError};
pub use error::{ConfError, ErrorObject, code};
pub use event::{Event, Severity};
pub use ipam::{HostLocalConf, IpamConf, Range, RangeSet, StaticConf};
pub use meta::{ClusterNetwork, MetaConf};
pub use nad::{Nad, NetworkConf};
pub use names::{ContainerId, IfName, Mac, NetworkName};
pub use network_status::NetworkStatus;
pub use request::{Delegate, PodRef};
pub use result::{CniResult, Dns, Interface, IpConfig, Route};
pub use version::CniVersion;
