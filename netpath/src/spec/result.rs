//! Results of every CNI version. The shape inside is 1.1.0's.
use std::net::IpAddr;
use ipnetwork::IpNetwork;
use serde_json::Value;
use super::{error::ConfError, version::CniVersion};
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CniResult { pub interfaces: Vec<Interface>, pub ips: Vec<IpConfig>, pub routes: Vec<Route>, pub dns: Dns }
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    pub name: String, pub mac: Option<String>, pub mtu: Option<u32>, pub sandbox: Option<String>,
    pub socket_path: Option<String>, pub pci_id: Option<String>,
}
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpConfig { pub address: IpNetwork, pub gateway: Option<IpAddr>, pub interface: Option<usize> }
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub dst: IpNetwork, pub gw: Option<IpAddr>, pub mtu: Option<u32>, pub advmss: Option<u32>,
    pub priority: Option<u32>, pub table: Option<u32>, pub scope: Option<u8>,
}
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns { pub nameservers: Vec<String>, pub domain: Option<String>, pub search: Vec<String>, pub options: Vec<String> }
impl CniResult {
    /// `version` is that of the configuration; a `cniVersion` in the value itself wins.
    pub fn parse(version: CniVersion, value: &Value) -> Result<Self, ConfError> { todo!() }
    pub fn to_json(&self, version: CniVersion) -> Result<Value, ConfError> { todo!() }
}
impl Dns { pub fn is_empty(&self) -> bool { todo!() } }
