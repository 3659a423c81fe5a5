//! The environment variables of a CNI call.
use std::path::PathBuf;
use super::{args::CniArgs, error::ConfError, names::{ContainerId, IfName}};
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command { Add, Del, Check, Gc, Status, Version }
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniEnv {
    pub command: Command,
    /// Always there for ADD, DEL, CHECK.
    pub container_id: Option<ContainerId>,
    pub netns: Option<PathBuf>,
    /// Always there for ADD, DEL, CHECK.
    pub ifname: Option<IfName>,
    pub args: CniArgs,
    /// CNI_PATH, split.
    pub path: Vec<PathBuf>,
    /// CNI_NETNS_OVERRIDE: the sandbox may be the plugin's own namespace.
    pub netns_override: bool,
}
#[derive(Debug, thiserror::Error)]
pub enum EnvError {
    #[error("required env variables [{}] missing", names.join(","))]
    Missing { names: Vec<&'static str> },
    #[error("unknown CNI_COMMAND: {value}")]
    UnknownCommand { value: String },
    #[error(transparent)]
    Invalid(#[from] ConfError),
}
impl EnvError { pub fn cni_code(&self) -> u32 { super::error::code::ENV } }
impl CniEnv { pub fn parse(get: impl Fn(&str) -> Option<String>) -> Result<Self, EnvError> { todo!() } }
