//! Network configurations.
use std::net::IpAddr;
use ipnetwork::IpNetwork;
use serde_json::{Map, Value};
use super::{args::CniArgs, error::ConfError, ipam::{IpamConf, RangeSet}, names::*, result::{CniResult, Dns}, version::CniVersion};
/// An address that somebody asked for, with or without a prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestedIp { pub ip: IpAddr, pub prefix: Option<u8> }
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeConfig { pub mac: Option<Mac>, pub ips: Vec<RequestedIp>, pub ip_ranges: Vec<RangeSet> }
/// `args.cni`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArgsCni { pub mac: Option<Mac>, pub ips: Vec<RequestedIp> }
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValidAttachment { pub container_id: ContainerId, pub ifname: IfName }
#[derive(Clone, Debug, PartialEq)]
pub struct NetConf {
    pub raw: Map<String, Value>,
    pub cni_version: CniVersion,
    pub name: NetworkName,
    /// `type`
    pub kind: String,
    pub prev_result: Option<CniResult>,
    pub runtime: RuntimeConfig,
    pub args_cni: ArgsCni,
    pub dns: Dns,
    /// As the configuration alone says; ADD and CHECK use `IpamConf::from_conf`, which adds CNI_ARGS.
    pub ipam: IpamConf,
    /// None = the caller named no list (nothing may be concluded from that); Some(empty) = nothing is valid.
    pub valid_attachments: Option<Vec<ValidAttachment>>,
    pub disable_gc: bool,
}
impl NetConf {
    pub fn parse(stdin: &[u8]) -> Result<Self, ConfError> { todo!() }
    /// The version to answer in, for VERSION and for errors: never fails, LATEST in doubt.
    pub fn parse_version(stdin: &[u8]) -> CniVersion { todo!() }
    /// `zone`, whatever the case of its key. null = absent.
    pub fn zone(&self) -> Option<&Value> { todo!() }
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MacvlanMode { Bridge, Private, Vepa, Passthru }
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MacvlanConf {
    pub master: Option<String>, pub mode: MacvlanMode, pub mtu: Option<u32>, pub mac: Option<Mac>,
    pub link_in_container: bool, pub bc_queue_len: Option<u32>,
}
impl MacvlanConf { pub fn from_conf(conf: &NetConf, args: &CniArgs) -> Result<Self, ConfError> { todo!() } }
