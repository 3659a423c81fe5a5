//! From wire format to valid types.

pub mod args;
pub mod conf;
pub mod env;
pub mod error;
pub mod ipam;
pub mod json;
pub mod names;
pub mod result;
pub mod version;

pub use args::CniArgs;
pub use conf::{ArgsCni, MacvlanConf, MacvlanMode, NetConf, RequestedIp, RuntimeConfig, ValidAttachment};
pub use env::{CniEnv, Command, EnvError};
pub use error::{ConfError, ErrorObject, code};
pub use ipam::{HostLocalConf, IpamConf, Range, RangeSet, StaticConf};
pub use names::{ContainerId, IfName, Mac, NetworkName};
pub use result::{CniResult, Dns, Interface, IpConfig, Route};
pub use version::CniVersion;
