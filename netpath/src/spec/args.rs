//! CNI_ARGS.
use std::net::IpAddr;
use super::{conf::RequestedIp, error::ConfError, names::Mac};
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CniArgs {
    pub mac: Option<Mac>,
    pub ips: Vec<RequestedIp>,
    pub gateways: Vec<IpAddr>,
    pub k8s_pod_namespace: Option<String>,
    pub k8s_pod_name: Option<String>,
    pub k8s_pod_uid: Option<String>,
    pub k8s_pod_infra_container_id: Option<String>,
    /// All pairs as they came, in order, duplicates included.
    pub pairs: Vec<(String, String)>,
}
impl CniArgs { pub fn parse(value: &str) -> Result<Self, ConfError> { todo!() } }
