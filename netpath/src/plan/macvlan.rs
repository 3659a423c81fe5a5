use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::{Macvlan, Place, RouteVia, Setting, Step};
use crate::spec::{Acd, IfName, IpConfig, MacvlanConf, Route};

/// How long duplicate address detection may take; it takes one to two seconds where nobody answers.
pub const DAD: Duration = Duration::from_secs(5);
/// How long IPv4 addresses are probed for: RFC 5227 has four to seven seconds, which a pod's start cannot wait.
pub const ACD: Duration = Duration::from_millis(200);
/// The smallest MTU with which a link has IPv6 at all.
const MIN_MTU_V6: u32 = 1280;
/// The main routing table.
const MAIN: u32 = 254;
/// The metric the kernel gives an IPv6 route that asks for none.
const METRIC_V6: u32 = 1024;

/// Why no plan can be made.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The kernel makes no macvlan with a larger MTU than its master's.
    #[error(
        "`mtu`: {mtu}: master `{master}` has only {master_mtu}; lower `mtu`, leave it out, or raise the master's"
    )]
    Mtu {
        /// As it was configured.
        mtu: u32,
        /// Name of the master.
        master: String,
        /// MTU of the master.
        master_mtu: u32,
    },
    /// The link has no IPv6 and the address cannot be added.
    #[error(
        "{address} needs IPv6, which a link with an MTU of {mtu} has not; raise `mtu` to {MIN_MTU_V6} or more"
    )]
    MtuWithoutIpv6 {
        /// The address.
        address: IpAddr,
        /// The MTU of the link.
        mtu: u32,
    },
    /// There is nobody to send to.
    #[error("route {route}: {gateway} is of the other address family; give a gateway of the destination's")]
    GatewayFamily {
        /// The destination.
        route: ipnetwork::IpNetwork,
        /// The gateway.
        gateway: IpAddr,
    },
}

/// What must be known of a master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Master {
    /// Its name.
    pub name: String,
    /// Its index in its namespace.
    pub index: u32,
    /// Its MTU.
    pub mtu: u32,
}

/// How a link is kept from what no hook on its master can judge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// The link is not policed.
    None,
    /// It is policed.
    Policed,
    /// It is policed, and its addresses come from router advertisements.
    PolicedAutoconf,
}

/// Stage 1: the link, down, in the sandbox.
pub fn create(conf: &MacvlanConf, ifname: &IfName, master: &Master) -> Result<Vec<Step>, PlanError> {
    // Configurations write "the default" as no MTU or as 0.
    let mtu = conf.mtu.filter(|mtu| *mtu != 0);
    if let Some(mtu) = mtu.filter(|mtu| master.mtu < *mtu) {
        return Err(PlanError::Mtu { mtu, master: master.name.clone(), master_mtu: master.mtu });
    }
    Ok(vec![Step::CreateMacvlan(Macvlan {
        ifname: ifname.as_str().to_owned(),
        master: master.clone(),
        place: if conf.link_in_container { Place::Sandbox } else { Place::Node },
        mode: conf.mode,
        mac: conf.mac,
        mtu,
        bc_queue_len: conf.bc_queue_len,
    })])
}

/// Stage 2, after IPAM: settings and addresses, while the link is still down. `mtu` is the link's.
///
/// Addresses that are probed for first come with [`activate`]: a link that is down sends nothing.
pub fn prepare(
    ifname: &IfName,
    mtu: u32,
    ips: &[IpConfig],
    guard: Guard,
    acd: Acd,
) -> Result<Vec<Step>, PlanError> {
    use Setting as S;

    let set = |ifname: &str, setting, value: &str| Step::SetSysctl {
        ifname: ifname.to_owned(),
        setting,
        value: value.to_owned(),
    };
    let link = ifname.as_str();
    let mut steps = Vec::new();
    match guard {
        Guard::None => {}
        Guard::Policed | Guard::PolicedAutoconf => {
            steps.push(set(link, S::DropUnicastInMulticastV4, "1"));
            steps.push(set(link, S::DropUnicastInMulticastV6, "1"));
            steps.push(set(link, S::AddrGenMode, "0"));
        }
    }
    if guard == Guard::Policed {
        steps.push(set(link, S::AcceptRa, "0"));
        steps.push(set(link, S::Autoconf, "0"));
    }
    steps.push(set(link, S::ArpNotify, "1"));
    steps.push(set(link, S::NdiscNotify, "1"));
    if let Some(ip) = ips.iter().find(|ip| ip.address.is_ipv6()) {
        if mtu < MIN_MTU_V6 {
            return Err(PlanError::MtuWithoutIpv6 { address: ip.address.ip(), mtu });
        }
        // Runtimes make sandboxes without IPv6 where the cluster has none.
        steps.push(set("lo", S::DisableIpv6, "0"));
        steps.push(set(link, S::DisableIpv6, "0"));
        steps.push(set(link, S::KeepAddrOnDown, "1"));
    }
    let now = ips.iter().filter(|ip| acd == Acd::Off || ip.address.is_ipv6());
    steps.extend(now.map(|ip| add_address(link, ip)));
    Ok(steps)
}

/// Stage 3, after maps and programs: the link goes up, gets the addresses that were probed for, and its routes.
///
/// `existing` are the routes of the sandbox's other links: see [`routes`].
pub fn activate(
    ifname: &IfName,
    ips: &[IpConfig],
    routes: &[Route],
    existing: &[RouteVia],
    acd: Acd,
) -> Result<Vec<Step>, PlanError> {
    let link = ifname.as_str();
    let mut steps = vec![Step::SetUp { ifname: link.to_owned() }];
    if acd == Acd::On {
        steps.extend(probe(ifname, ips));
        steps.extend(ips.iter().filter(|ip| ip.address.is_ipv4()).map(|ip| add_address(link, ip)));
        // The kernel announces what a link has when it goes up, not what it is given later.
        steps.extend(announce(ifname, ips));
    }
    // Whoever routes IPv6 needs a source address that may be used; nobody else is made to wait.
    if gateway(ips, true).is_some() {
        steps.push(Step::WaitDad { ifname: link.to_owned(), timeout: DAD });
    }
    let routes = self::routes(ips, routes, existing)?;
    steps.extend(routes.into_iter().map(|route| Step::AddRoute { ifname: link.to_owned(), route }));
    Ok(steps)
}

/// Looks whether somebody else has the IPv4 addresses of `ips`, all in one go; nothing where there are none.
pub fn probe(ifname: &IfName, ips: &[IpConfig]) -> Option<Step> {
    let addresses = addresses_v4(ips)?;
    Some(Step::ProbeV4 { ifname: ifname.to_string(), addresses, timeout: ACD })
}

/// Tells the network of the IPv4 addresses of `ips`; nothing where there are none.
pub fn announce(ifname: &IfName, ips: &[IpConfig]) -> Option<Step> {
    Some(Step::AnnounceV4 { ifname: ifname.to_string(), addresses: addresses_v4(ips)? })
}

fn addresses_v4(ips: &[IpConfig]) -> Option<Vec<Ipv4Addr>> {
    let v4 = |ip: &IpConfig| match ip.address.ip() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    };
    Some(ips.iter().filter_map(v4).collect::<Vec<_>>()).filter(|all| !all.is_empty())
}

fn add_address(link: &str, ip: &IpConfig) -> Step {
    Step::AddAddress { ifname: link.to_owned(), address: ip.address }
}

/// The routes to be added for a result: each with its gateway, none twice.
///
/// A route without a gateway gets the first one of its family. A route without a priority never takes traffic
/// from one that the sandbox has for the same destination: it gets a worse metric than that. So a network with
/// a default route of its own leaves the pod's in force, unless it asks by `priority`.
pub fn routes(ips: &[IpConfig], routes: &[Route], existing: &[RouteVia]) -> Result<Vec<RouteVia>, PlanError> {
    let mut planned: Vec<RouteVia> = Vec::new();
    for route in routes {
        let v6 = route.dst.is_ipv6();
        let gateway = route.gw.or_else(|| gateway(ips, v6));
        if let Some(gateway) = gateway.filter(|gateway| gateway.is_ipv6() != v6) {
            return Err(PlanError::GatewayFamily { route: route.dst, gateway });
        }
        // Whoever writes `0.0.0.0` asks for a route on the link itself.
        let gateway = gateway.filter(|gateway| !gateway.is_unspecified());
        let rivals = existing.iter().filter(|other| {
            (other.dst.network(), other.dst.prefix()) == (route.dst.network(), route.dst.prefix())
                && other.table.unwrap_or(MAIN) == route.table.unwrap_or(MAIN)
        });
        let default = if v6 { METRIC_V6 } else { 0 };
        let worst = rivals.map(|other| other.priority.unwrap_or(default)).max();
        let behind = worst.map(|metric| metric.saturating_add(1).max(default));
        let route = RouteVia {
            dst: route.dst,
            gateway,
            priority: route.priority.or(behind),
            table: route.table,
            scope: route.scope,
            mtu: route.mtu,
            advmss: route.advmss,
            protocol: None,
        };
        // IPAM plugins repeat themselves, and the kernel refuses a second one.
        if !planned.contains(&route) {
            planned.push(route);
        }
    }
    Ok(planned)
}

fn gateway(ips: &[IpConfig], v6: bool) -> Option<IpAddr> {
    // The unspecified address says that there is none.
    let usable = |gateway: &IpAddr| gateway.is_ipv6() == v6 && !gateway.is_unspecified();
    ips.iter().filter_map(|ip| ip.gateway).find(usable)
}

#[cfg(test)]
mod tests;
