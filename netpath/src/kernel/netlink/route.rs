use std::net::IpAddr;

use ipnetwork::IpNetwork;
use rtnetlink::packet_core::{NLM_F_APPEND, NLM_F_CREATE};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType, RouteVia,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Netlink, NetlinkError, Op, decode};

/// A unicast route through one next hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to; of prefix length 0 for a default route.
    pub dst: IpNetwork,
    /// By which router; on the link itself otherwise.
    pub gateway: Option<IpAddr>,
    /// By which link.
    pub index: Option<u32>,
    /// Metric; `None` is 0 for IPv4, and to be chosen by the kernel (1024) when an IPv6 route is added.
    pub priority: Option<u32>,
    /// Routing table.
    pub table: u32,
    /// `RT_SCOPE_*`; IPv6 ignores it.
    pub scope: u8,
    /// `RTPROT_*`: who made it.
    pub protocol: u8,
    /// Path MTU.
    pub mtu: Option<u32>,
    /// TCP segment size to announce.
    pub advmss: Option<u32>,
    /// Take the gateway to be on the link although no address of ours says so.
    pub onlink: bool,
}

impl Route {
    /// The main routing table.
    pub const MAIN: u32 = RouteHeader::RT_TABLE_MAIN as u32;

    /// A route through link `index` in the main table, as an administrator would add it.
    pub fn new(dst: IpNetwork, gateway: Option<IpAddr>, index: u32) -> Self {
        Self {
            dst,
            gateway,
            index: Some(index),
            priority: None,
            table: Self::MAIN,
            scope: libc::RT_SCOPE_UNIVERSE,
            protocol: libc::RTPROT_BOOT,
            mtu: None,
            advmss: None,
            onlink: false,
        }
    }
}

impl Netlink {
    /// The unicast routes through link `index`, or all of this namespace, of all tables and both families.
    ///
    /// A route with several next hops is listed once for each.
    pub fn routes(&mut self, index: Option<u32>) -> Result<Vec<Route>, NetlinkError> {
        let mut routes = self.routes_of(AddressFamily::Inet)?;
        routes.extend(self.routes_of(AddressFamily::Inet6)?);
        routes.retain(|route| index.is_none_or(|index| route.index == Some(index)));
        Ok(routes)
    }

    /// The routes of one family.
    pub fn routes_of(&mut self, family: AddressFamily) -> Result<Vec<Route>, NetlinkError> {
        let request = || {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            RouteNetlinkMessage::GetRoute(message)
        };
        let mut routes = self.channel.dump(Op::ListRoutes, request, decode::routes)?;
        // A kernel without IPv6 answers for all the families it has.
        routes.retain(|route| route.dst.is_ipv4() == (family == AddressFamily::Inet));
        Ok(routes)
    }

    /// The link the default route goes through: the best of IPv4, else the best of IPv6.
    pub fn default_route_link(&mut self) -> Result<Option<u32>, NetlinkError> {
        let mut routes = self.routes(None)?;
        routes.retain(|r| r.dst.prefix() == 0 && r.table == Route::MAIN && r.index.is_some());
        let best = routes.iter().min_by_key(|r| (r.dst.is_ipv6(), r.priority.unwrap_or(0)));
        Ok(best.and_then(|route| route.index))
    }

    /// Adds a route, behind those there are for the same destination and priority.
    pub fn add_route(&mut self, route: &Route) -> Result<(), NetlinkError> {
        let op = Op::AddRoute { dst: route.dst, gateway: route.gateway };
        let message = RouteNetlinkMessage::NewRoute(message(route));
        // Appended, for without a flag the kernel puts an IPv4 route in front of an equal one, and a network
        // would take over the pod's own default route.
        self.channel.acknowledged(op, message, NLM_F_CREATE | NLM_F_APPEND)
    }

    /// Removes a route.
    pub fn delete_route(&mut self, route: &Route) -> Result<(), NetlinkError> {
        let op = Op::DeleteRoute { dst: route.dst, gateway: route.gateway };
        self.channel.acknowledged(op, RouteNetlinkMessage::DelRoute(message(route)), 0)
    }
}

fn message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = match route.dst {
        IpNetwork::V4(_) => AddressFamily::Inet,
        IpNetwork::V6(_) => AddressFamily::Inet6,
    };
    message.header.destination_prefix_length = route.dst.prefix();
    // Tables above 255 are named by the attribute alone.
    message.header.table = u8::try_from(route.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    message.header.protocol = RouteProtocol::from(route.protocol);
    message.header.scope = RouteScope::from(route.scope);
    message.header.kind = RouteType::Unicast;
    if route.onlink {
        message.header.flags = RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    if route.dst.prefix() != 0 {
        attributes.push(RouteAttribute::Destination(RouteAddress::from(route.dst.network())));
    }
    attributes.push(RouteAttribute::Table(route.table));
    attributes.extend(route.index.map(RouteAttribute::Oif));
    attributes.extend(route.priority.map(RouteAttribute::Priority));
    attributes.extend(route.gateway.map(|gateway| match (route.dst, gateway) {
        // An IPv4 route through an IPv6 router (RFC 5549).
        (IpNetwork::V4(_), IpAddr::V6(router)) => RouteAttribute::Via(RouteVia::Inet6(router)),
        _ => RouteAttribute::Gateway(RouteAddress::from(gateway)),
    }));
    let mut metrics = Vec::new();
    metrics.extend(route.mtu.map(RouteMetric::Mtu));
    metrics.extend(route.advmss.map(RouteMetric::Advmss));
    if !metrics.is_empty() {
        attributes.push(RouteAttribute::Metrics(metrics));
    }
    message
}
