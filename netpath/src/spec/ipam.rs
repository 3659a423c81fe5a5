//! IPAM sections of network configurations.
use std::net::IpAddr;
use std::path::PathBuf;
use ipnetwork::IpNetwork;
use super::{args::CniArgs, conf::NetConf, error::ConfError, result::{Dns, Route}};
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IpamConf {
    /// `{}` or absent
    None,
    HostLocal(HostLocalConf),
    Static(StaticConf),
    /// Executed from CNI_PATH. `nad_subnets`: whereabouts' ranges, where the NAD names them.
    Delegated { kind: String, nad_subnets: Vec<IpNetwork> },
}
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostLocalConf {
    /// From `IpamConf::from_conf`: at least one. In `NetConf::ipam` perhaps none (GC has no runtimeConfig).
    pub ranges: Vec<RangeSet>,
    pub routes: Vec<Route>,
    pub data_dir: Option<PathBuf>,
    pub resolv_conf: Option<PathBuf>,
    pub requested: Vec<IpAddr>,
    /// Subnets that the NAD itself names, never runtimeConfig.
    pub nad_subnets: Vec<IpNetwork>,
}
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet(pub Vec<Range>);
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range { pub subnet: IpNetwork, pub start: IpAddr, pub end: IpAddr, pub gateway: IpAddr }
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticConf {
    pub addresses: Vec<(IpNetwork, Option<IpAddr>)>,
    pub routes: Vec<Route>,
    pub dns: Dns,
    /// Networks of the addresses that the NAD itself names.
    pub nad_subnets: Vec<IpNetwork>,
}
impl IpamConf {
    /// With CNI_ARGS; ranges are complete.
    pub fn from_conf(conf: &NetConf, args: &CniArgs) -> Result<Self, ConfError> { todo!() }
    /// What a zone's `local` defaults to: from the NAD alone.
    pub fn local_subnets(&self) -> Option<Vec<IpNetwork>> { todo!() }
}
impl Range { pub fn contains(&self, ip: IpAddr) -> bool { todo!() } }
impl RangeSet { pub fn contains(&self, ip: IpAddr) -> bool { todo!() } }
// Display: Range "start-end", RangeSet joined by ","
