//! The `ipam` of a network configuration.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use ipnetwork::IpNetwork;
use serde_json::Value;

use super::address::{RequestedIp, network_of, parse_ip, parse_network};
use super::args::CniArgs;
use super::conf::{ArgsCni, NetConf, RuntimeConfig, plugin_name};
use super::error::ConfError;
use super::json::{View, elements};
use super::result::{Dns, Route, routes};
use super::version::CniVersion;

/// IPAMs that do nothing but give addresses, as everybody knows.
pub const WELL_KNOWN: [&str; 4] = ["host-local", "static", "dhcp", "whereabouts"];

/// Plugins that make, move or change interfaces, or execute other plugins.
///
/// As an IPAM they would be given the whole configuration, and do with it what they do: an interface plugin reads the
/// same `ipam`, and executes itself without end.
const NO_IPAMS: [&str; 39] = [
    "accelerated-bridge",
    "bandwidth",
    "bond",
    "bridge",
    "calico",
    "danm",
    "dummy",
    "firewall",
    "flannel",
    "genie",
    "host-device",
    "ib-sriov",
    "ib-sriov-cni",
    "ipoib",
    "ipvlan",
    "ipvtap",
    "loopback",
    "macvlan",
    "macvtap",
    "multus",
    "multus-shim",
    "netpath",
    "ovs",
    "ovs-cni",
    "passthru",
    "portmap",
    "ptp",
    "rdma",
    "route-override",
    "sbr",
    "sriov",
    "sriov-cni",
    "tap",
    "tuning",
    "userspace",
    "veth",
    "vlan",
    "vrf",
    "win-bridge",
];

/// Refuses an `ipam.type` that is known to give no addresses.
pub fn check_kind(field: &str, kind: &str) -> Result<(), ConfError> {
    match NO_IPAMS.contains(&kind) {
        true => Err(ConfError::field(
            field,
            kind,
            "is a plugin for interfaces and gives no addresses: write an IPAM, such as host-local or static",
        )),
        false => Ok(()),
    }
}

/// Where addresses come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IpamConf {
    /// From nowhere: there is no `ipam`, or it names no `type`.
    None,
    /// From pools of this host.
    HostLocal(HostLocalConf),
    /// From the configuration itself.
    Static(StaticConf),
    /// From a plugin that is executed.
    Delegated {
        /// Its file name.
        kind: String,
        /// Subnets that the configuration itself names, where we understand it: whereabouts' ranges.
        nad_subnets: Vec<IpNetwork>,
    },
}

/// Configuration of `host-local`, complete and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostLocalConf {
    /// The pools; one address comes from each.
    pub ranges: Vec<RangeSet>,
    /// Routes for the sandbox.
    pub routes: Vec<Route>,
    /// Where the addresses in use are kept, if not in the default directory.
    pub data_dir: Option<PathBuf>,
    /// A file that says what `dns` of the result is.
    pub resolv_conf: Option<PathBuf>,
    /// Addresses that somebody asked for, each once: at most one from each pool.
    pub requested: Vec<IpAddr>,
    /// Subnets that the configuration itself names, those of `runtimeConfig` not among them.
    pub nad_subnets: Vec<IpNetwork>,
}

/// A pool: ranges of one family that do not overlap. There is at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet(pub Vec<Range>);

/// A range of addresses, both ends included, in a subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The subnet, without host bits.
    pub subnet: IpNetwork,
    /// The first address.
    pub start: IpAddr,
    /// The last address.
    pub end: IpAddr,
    /// The gateway, which is not given away. It need not lie in the subnet.
    pub gateway: IpAddr,
}

/// Configuration of `static`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticConf {
    /// The addresses with their gateways.
    pub addresses: Vec<(IpNetwork, Option<IpAddr>)>,
    /// Routes for the sandbox.
    pub routes: Vec<Route>,
    /// Name resolution.
    pub dns: Dns,
    /// Networks of the addresses that the configuration itself names, those asked for not among them.
    pub nad_subnets: Vec<IpNetwork>,
    /// Gateways that the configuration itself names.
    pub nad_gateways: Vec<IpAddr>,
}

impl IpamConf {
    /// The IPAM of `conf` with what `CNI_ARGS` ask for. A host-local without any range is an error.
    pub fn from_conf(conf: &NetConf, args: &CniArgs) -> Result<Self, ConfError> {
        let requests = Requests { args, args_cni: &conf.args_cni, runtime: &conf.runtime };
        let ipam = read_with(&View::root(&conf.raw), conf.cni_version, &requests)?;
        match &ipam {
            Self::HostLocal(host_local) if host_local.ranges.is_empty() => Err(ConfError::Missing {
                field: "ipam.ranges".into(),
                fix: "give host-local a pool, such as [[{\"subnet\": \"10.12.34.0/24\"}]]",
            }),
            _ => Ok(ipam),
        }
    }

    /// The subnets that the configuration itself names: what a zone's `local` is where it is not given.
    ///
    /// What a runtime, an annotation or a lease says is never among them: whoever may ask for an address must
    /// not choose the zone by it.
    pub fn local_subnets(&self) -> Option<Vec<IpNetwork>> {
        let subnets = match self {
            Self::None => return None,
            Self::HostLocal(HostLocalConf { nad_subnets, .. })
            | Self::Static(StaticConf { nad_subnets, .. })
            | Self::Delegated { nad_subnets, .. } => nad_subnets,
        };
        Some(subnets.clone()).filter(|subnets| !subnets.is_empty())
    }

    /// Refuses a plugin in place of an IPAM that is none. A DEL must not fail for it.
    pub fn check(&self) -> Result<(), ConfError> {
        match self {
            Self::Delegated { kind, .. } => check_kind("ipam.type", kind),
            Self::None | Self::HostLocal(_) | Self::Static(_) => Ok(()),
        }
    }

    /// The plugin that is executed for addresses and given all of the configuration, unless everybody knows it.
    pub fn unknown_kind(&self) -> Option<&str> {
        match self {
            Self::Delegated { kind, .. } => Some(kind.as_str()).filter(|kind| !WELL_KNOWN.contains(kind)),
            Self::None | Self::HostLocal(_) | Self::Static(_) => None,
        }
    }

    /// The gateways that the configuration itself names.
    pub fn gateways(&self) -> Vec<IpAddr> {
        match self {
            Self::None | Self::Delegated { .. } => Vec::new(),
            Self::HostLocal(conf) => unique(conf.ranges.iter().flat_map(|set| &set.0).map(|it| it.gateway)),
            Self::Static(conf) => conf.nad_gateways.clone(),
        }
    }
}

/// Everything by which an address can be asked for.
struct Requests<'a> {
    args: &'a CniArgs,
    args_cni: &'a ArgsCni,
    runtime: &'a RuntimeConfig,
}

/// Reads the `ipam` of a configuration without `CNI_ARGS`.
pub(super) fn read(
    root: &View<'_>,
    version: CniVersion,
    runtime: &RuntimeConfig,
    args_cni: &ArgsCni,
) -> Result<IpamConf, ConfError> {
    read_with(root, version, &Requests { args: &CniArgs::default(), args_cni, runtime })
}

fn read_with(root: &View<'_>, version: CniVersion, requests: &Requests<'_>) -> Result<IpamConf, ConfError> {
    let Some(ipam) = root.object("ipam")? else { return Ok(IpamConf::None) };
    match ipam.parsed("type", plugin_name)? {
        None => Ok(IpamConf::None),
        Some(kind) => match kind.as_str() {
            "host-local" => HostLocalConf::read(&ipam, version, requests).map(IpamConf::HostLocal),
            "static" => StaticConf::read(&ipam, version, requests).map(IpamConf::Static),
            "whereabouts" => Ok(IpamConf::Delegated { nad_subnets: whereabouts_subnets(&ipam), kind }),
            _ => Ok(IpamConf::Delegated { kind, nad_subnets: Vec::new() }),
        },
    }
}

impl HostLocalConf {
    fn read(ipam: &View<'_>, version: CniVersion, requests: &Requests<'_>) -> Result<Self, ConfError> {
        let mut own = Vec::new();
        if ipam.get("subnet").is_some() {
            own.push(RangeSet(vec![Range::read(ipam)?])); // The older way to write a single range.
        }
        own.extend(range_sets(ipam, "ranges")?);
        let nad_subnets = unique(own.iter().flat_map(|set| &set.0).map(|range| range.subnet));

        let ranges = [requests.runtime.ip_ranges.clone(), own].concat();
        for (i, set) in ranges.iter().enumerate() {
            if let Some(other) = ranges[..i].iter().find(|other| other.overlaps(set)) {
                let rule = format!("overlaps with the pool {other}: one address comes from each pool");
                return Err(ConfError::field("ipam.ranges", set.to_string(), rule));
            }
        }
        one_per_family(version, "ipam.ranges", ranges.iter().map(|set| set.0[0].subnet))?;

        let Requests { args, args_cni, runtime } = requests;
        let requested = [&args.ips, &args_cni.ips, &runtime.ips].into_iter().flatten().map(|it| it.ip());
        Ok(Self {
            ranges,
            routes: usable_routes(ipam)?,
            data_dir: ipam.text("dataDir")?.map(PathBuf::from),
            resolv_conf: ipam.text("resolvConf")?.map(PathBuf::from),
            requested: unique(requested),
            nad_subnets,
        })
    }
}

/// The pools that `key` lists: `[[{"subnet": …}, …], …]`.
pub(super) fn range_sets(view: &View<'_>, key: &str) -> Result<Vec<RangeSet>, ConfError> {
    view.array(key)?.into_iter().map(|(path, value)| RangeSet::read(&path, value)).collect()
}

impl RangeSet {
    fn read(path: &str, value: &Value) -> Result<Self, ConfError> {
        let ranges: Vec<Range> = elements(path, value)?
            .into_iter()
            .map(|(path, value)| Range::read(&View::at(path, value)?))
            .collect::<Result<_, _>>()?;
        let Some(first) = ranges.first() else {
            return Err(ConfError::field(
                path,
                "[]",
                "a pool needs a range, such as {\"subnet\": \"10.12.34.0/24\"}",
            ));
        };
        for (i, range) in ranges.iter().enumerate() {
            let rule = if range.subnet.is_ipv4() != first.subnet.is_ipv4() {
                format!("is of another family than {first}: write a pool for each family")
            } else if let Some(other) = ranges[..i].iter().find(|other| other.overlaps(range)) {
                format!("overlaps with {other} of the same pool")
            } else {
                continue;
            };
            return Err(ConfError::field(path, range.to_string(), rule));
        }
        Ok(Self(ranges))
    }

    /// Whether `ip` is an address of the pool.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.0.iter().any(|range| range.contains(ip))
    }

    /// Whether an address could come from both pools.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.0.iter().any(|range| other.0.iter().any(|other| range.overlaps(other)))
    }
}

impl Range {
    fn read(view: &View<'_>) -> Result<Self, ConfError> {
        let key = "subnet";
        let subnet = view.parsed(key, parse_network)?.ok_or_else(|| ConfError::Missing {
            field: view.path_of(key),
            fix: "write the subnet of the range, such as 10.12.34.0/24",
        })?;
        let bits = if subnet.is_ipv4() { 32 } else { 128 };
        let rule = if network_of(subnet) != subnet {
            Some(format!("has host bits: write {}", network_of(subnet)))
        } else if bits - 2 < subnet.prefix() {
            Some(format!("is too small to allocate from: write a prefix length of at most {}", bits - 2))
        } else {
            None
        };
        if let Some(rule) = rule {
            return Err(ConfError::field(view.path_of(key), subnet.to_string(), rule));
        }

        let inside = |key: &str, default: IpAddr| match view.parsed(key, parse_ip)? {
            Some(ip) if !subnet.contains(ip) => {
                Err(ConfError::field(view.path_of(key), ip.to_string(), format!("is not in {subnet}")))
            }
            ip => Ok(ip.unwrap_or(default)),
        };
        let (first, last) = bounds(subnet);
        let (start, end) = (inside("rangeStart", first)?, inside("rangeEnd", last)?);
        if end < start {
            let rule = format!("lies before the start of the range, {start}");
            return Err(ConfError::field(view.path_of("rangeEnd"), end.to_string(), rule));
        }
        let gateway = gateway_of(view, subnet)?.unwrap_or(first);
        Ok(Self { subnet, start, end, gateway })
    }

    /// Whether `ip` is an address of the range.
    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.start.is_ipv4() && (self.start..=self.end).contains(&ip)
    }

    /// Whether an address could come from both ranges.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.start) || other.contains(self.start)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&ranges.join(","))
    }
}

/// The first and the last address that a range has where it names none: in IPv4 the broadcast address is not
/// among them.
fn bounds(subnet: IpNetwork) -> (IpAddr, IpAddr) {
    match subnet {
        IpNetwork::V4(subnet) => {
            let (network, broadcast) = (u32::from(subnet.network()), u32::from(subnet.broadcast()));
            (Ipv4Addr::from(network + 1).into(), Ipv4Addr::from(broadcast - 1).into())
        }
        IpNetwork::V6(subnet) => {
            (Ipv6Addr::from(u128::from(subnet.network()) + 1).into(), subnet.broadcast().into())
        }
    }
}

impl StaticConf {
    fn read(ipam: &View<'_>, version: CniVersion, requests: &Requests<'_>) -> Result<Self, ConfError> {
        let mut addresses = Vec::new();
        for view in ipam.objects("addresses")? {
            let address = view.parsed("address", parse_network)?.ok_or_else(|| ConfError::Missing {
                field: view.path_of("address"),
                fix: "write an address with its prefix length, such as 10.12.34.5/24",
            })?;
            addresses.push((address, gateway_of(&view, address)?));
        }
        let nad_subnets = unique(addresses.iter().map(|(address, _)| network_of(*address)));
        let nad_gateways = unique(addresses.iter().filter_map(|(_, gateway)| *gateway));

        let Requests { args, args_cni, runtime } = requests;
        for address in with_prefixes("CNI_ARGS IP", &args.ips)? {
            // Once: Multus passes what it also passes by other ways.
            if !addresses.iter().any(|(known, _)| *known == address) {
                addresses.push((address, None));
            }
        }
        for gateway in &args.gateways {
            for (_, own) in addresses.iter_mut().filter(|(address, _)| address.contains(*gateway)) {
                *own = Some(*gateway);
            }
        }
        for (field, ips) in [("args.cni.ips", &args_cni.ips), ("runtimeConfig.ips", &runtime.ips)] {
            if !ips.is_empty() {
                addresses = unique(with_prefixes(field, ips)?).into_iter().map(|ip| (ip, None)).collect();
            }
        }
        one_per_family(version, "ipam.addresses", addresses.iter().map(|(address, _)| *address))?;
        Ok(Self {
            addresses,
            routes: usable_routes(ipam)?,
            dns: ipam.object("dns")?.map(|dns| Dns::read(&dns)).transpose()?.unwrap_or_default(),
            nad_subnets,
            nad_gateways,
        })
    }
}

fn with_prefixes(field: &str, ips: &[RequestedIp]) -> Result<Vec<IpNetwork>, ConfError> {
    let with_prefix = |ip: &RequestedIp| {
        ip.network().ok_or_else(|| {
            ConfError::field(
                field,
                ip.to_string(),
                "the IPAM static needs a prefix length: write 10.12.34.5/24",
            )
        })
    };
    ips.iter().map(with_prefix).collect()
}

/// The `gateway` beside an address or subnet.
fn gateway_of(view: &View<'_>, network: IpNetwork) -> Result<Option<IpAddr>, ConfError> {
    match view.parsed("gateway", parse_ip)? {
        Some(gateway) if gateway.is_ipv4() != network.is_ipv4() => Err(ConfError::field(
            view.path_of("gateway"),
            gateway.to_string(),
            format!("is of another family than {network}"),
        )),
        gateway => Ok(gateway),
    }
}

/// Routes that the kernel will take: it refuses an IPv4 destination with host bits when all else is done.
fn usable_routes(ipam: &View<'_>) -> Result<Vec<Route>, ConfError> {
    let routes = routes(ipam)?;
    for (i, route) in routes.iter().enumerate() {
        if route.dst.is_ipv4() && network_of(route.dst) != route.dst {
            let rule = format!("has host bits: write {}", network_of(route.dst));
            let field = format!("{}[{i}].dst", ipam.path_of("routes"));
            return Err(ConfError::field(field, route.dst.to_string(), rule));
        }
    }
    Ok(routes)
}

/// Results of CNI 0.1 and 0.2 have room for one address of each family.
fn one_per_family(
    version: CniVersion,
    field: &str,
    addresses: impl Iterator<Item = IpNetwork>,
) -> Result<(), ConfError> {
    let (v4, v6): (Vec<_>, Vec<_>) = addresses.partition(IpNetwork::is_ipv4);
    match (version < CniVersion::V0_3_0).then(|| v4.get(1).or(v6.get(1))).flatten() {
        None => Ok(()),
        Some(second) => {
            let rule = format!("CNI {version} has one address per family: use cniVersion 0.3.0 or later");
            Err(ConfError::field(field, second.to_string(), rule))
        }
    }
}

/// The subnets of whereabouts' flat keys: `range` and `ipRanges[].range`, as `10.0.0.0/24` or
/// `10.0.0.5-10.0.0.9/24`. What we do not understand is for whereabouts to judge; here it names no subnet.
fn whereabouts_subnets(ipam: &View<'_>) -> Vec<IpNetwork> {
    let subnet = |view: &View<'_>| {
        let text = view.text("range").ok().flatten()?;
        let end = text.rsplit('-').next()?;
        parse_network("range", end.trim()).ok().map(network_of)
    };
    let more = ipam.objects("ipRanges").unwrap_or_default();
    unique(std::iter::once(ipam).chain(&more).filter_map(subnet))
}

fn unique<T: PartialEq>(items: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut unique = Vec::new();
    for item in items {
        if !unique.contains(&item) {
            unique.push(item);
        }
    }
    unique
}

#[cfg(test)]
mod tests;
