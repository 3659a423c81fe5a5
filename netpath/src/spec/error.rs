//! Errors of the wire.
use std::borrow::Cow;
use serde_json::Value;
use super::version::CniVersion;
/// Codes of the CNI specification; own ones begin at 100.
pub mod code {
    pub const VERSION: u32 = 1; pub const UNSUPPORTED_FIELD: u32 = 2; pub const UNKNOWN_CONTAINER: u32 = 3;
    pub const ENV: u32 = 4; pub const IO: u32 = 5; pub const DECODE: u32 = 6; pub const CONF: u32 = 7;
    pub const NETNS: u32 = 8; pub const TRY_AGAIN: u32 = 11; pub const UNAVAILABLE: u32 = 50; pub const LIMITED: u32 = 51;
}
/// What a failed call prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorObject { pub cni_version: CniVersion, pub code: u32, pub msg: String, pub details: String }
impl ErrorObject {
    /// msg = the error's text, details = its chain of causes.
    pub fn from_error(cni_version: CniVersion, code: u32, error: &(dyn std::error::Error + 'static)) -> Self { todo!() }
    /// Reads what a delegate printed; None if it is no error object.
    pub fn parse(version: CniVersion, value: &Value) -> Option<Self> { todo!() }
    pub fn to_json(&self) -> Value { todo!() }
}
/// Why an input of ours cannot be used: field, value, fix.
#[derive(Debug, thiserror::Error)]
pub enum ConfError {
    #[error("the network configuration is not valid JSON")]
    Json { source: serde_json::Error },
    #[error("{field} is missing: {fix}")]
    Missing { field: String, fix: Cow<'static, str> },
    #[error("{field} `{value}` is not {expected}")]
    Type { field: String, value: String, expected: &'static str },
    #[error("{field} `{value}`: {rule}")]
    Field { field: String, value: String, rule: Cow<'static, str> },
    #[error("cniVersion `{value}` is not supported: use one of {supported}")]
    Version { value: String, supported: String },
    #[error("cniVersion `{version}` does not allow {command}: it begins with {since}")]
    Command { version: CniVersion, command: &'static str, since: CniVersion },
    #[error("cannot convert: no valid IP addresses: a result of CNI {version} is nothing but addresses, use cniVersion 0.3.0 or later")]
    NoAddress { version: CniVersion },
}
impl ConfError { pub fn cni_code(&self) -> u32 { todo!() } }
/// What VERSION prints.
pub fn supported_versions_json(requested: CniVersion) -> Value { todo!() }
