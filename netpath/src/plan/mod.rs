//! What to do to the host: steps as values, each with its undo.
//!
//! A journey asks for the steps of one stage, has `exec` run them, does what only it can do (IPAM, maps), and asks
//! for the next. Nothing here looks at the host: what is known of it comes as arguments.

mod default_route;
mod macvlan;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnetwork::IpNetwork;

pub use default_route::{
    Attached, DefaultRoute, DefaultRoutes, Moved, SeveralDefaults, check_gateways, default_routes,
};
pub use macvlan::{ACD, DAD, Guard, Master, PlanError, activate, announce, create, prepare, probe, routes};

use crate::spec::{Mac, MacvlanMode};

/// One change of the host. Links are those of the sandbox, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Create a macvlan in the sandbox; it is down.
    CreateMacvlan(Macvlan),
    /// Delete a link.
    DeleteLink {
        /// The link.
        ifname: String,
    },
    /// Write a sysctl of a link.
    SetSysctl {
        /// The link.
        ifname: String,
        /// Which of its settings.
        setting: Setting,
        /// What to write.
        value: String,
    },
    /// Add an address.
    AddAddress {
        /// The link.
        ifname: String,
        /// The address and its network.
        address: IpNetwork,
    },
    /// Remove an address.
    DeleteAddress {
        /// The link.
        ifname: String,
        /// The address and its network.
        address: IpNetwork,
    },
    /// Set a link up.
    SetUp {
        /// The link.
        ifname: String,
    },
    /// Set a link down.
    SetDown {
        /// The link.
        ifname: String,
    },
    /// Look by ARP whether somebody has IPv4 addresses, which must not be on the link to be free (RFC 5227).
    ProbeV4 {
        /// The link, which is up.
        ifname: String,
        /// The addresses.
        addresses: Vec<Ipv4Addr>,
        /// How long.
        timeout: Duration,
    },
    /// Tell everybody who has IPv4 addresses now.
    AnnounceV4 {
        /// The link, which has them and is up.
        ifname: String,
        /// The addresses.
        addresses: Vec<Ipv4Addr>,
    },
    /// Wait until IPv6 duplicate address detection has ended.
    WaitDad {
        /// The link.
        ifname: String,
        /// How long at most.
        timeout: Duration,
    },
    /// Add a route.
    AddRoute {
        /// The link it goes through.
        ifname: String,
        /// The route.
        route: RouteVia,
    },
    /// Remove a route.
    DeleteRoute {
        /// The link it goes through.
        ifname: String,
        /// The route.
        route: RouteVia,
    },
}

/// A macvlan to be created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Macvlan {
    /// Its name.
    pub ifname: String,
    /// The link it stands on.
    pub master: Master,
    /// Where the master is.
    pub place: Place,
    /// What it may talk to on the same master.
    pub mode: MacvlanMode,
    /// Its hardware address; the kernel's choice otherwise.
    pub mac: Option<Mac>,
    /// Its MTU; the master's otherwise.
    pub mtu: Option<u32>,
    /// Length of the queue of broadcasts.
    pub bc_queue_len: Option<u32>,
}

/// The namespace a master is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The node's, where the plugin runs.
    Node,
    /// The pod's (`linkInContainer`).
    Sandbox,
}

/// A route through a link, with nothing left to be derived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteVia {
    /// Where to.
    pub dst: IpNetwork,
    /// By which router; on the link itself otherwise.
    pub gateway: Option<IpAddr>,
    /// Metric; the kernel's default otherwise.
    pub priority: Option<u32>,
    /// Routing table; the main one otherwise.
    pub table: Option<u32>,
    /// `RT_SCOPE_*`; universe otherwise.
    pub scope: Option<u8>,
    /// Path MTU.
    pub mtu: Option<u32>,
    /// TCP segment size to announce.
    pub advmss: Option<u32>,
    /// `RTPROT_*`: who made it; boot, as an administrator's, otherwise. The kernel deletes no other's.
    pub protocol: Option<u8>,
}

/// A sysctl that each link has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// Announce IPv4 addresses when the link goes up.
    ArpNotify,
    /// Announce IPv6 addresses when the link goes up.
    NdiscNotify,
    /// Refuse IPv4 unicast inside a frame to a group address, which no hook on the master can attribute.
    DropUnicastInMulticastV4,
    /// The same for IPv6.
    DropUnicastInMulticastV6,
    /// How the link-local address is made; 0 is from the hardware address, which the endpoint's row expects.
    AddrGenMode,
    /// Whether to listen to router advertisements.
    AcceptRa,
    /// Whether to make addresses from router advertisements.
    Autoconf,
    /// Whether the link is without IPv6.
    DisableIpv6,
    /// Keep IPv6 addresses while the link is down.
    KeepAddrOnDown,
}

impl Setting {
    /// The path of this setting of link `ifname` below `/proc/sys`.
    pub fn key(self, ifname: &str) -> String {
        format!("{}/{}", self.directory(ifname), self.name())
    }

    /// The directory of all settings of `ifname` in this one's protocol.
    ///
    /// It is absent where the kernel, or this link (for an MTU below 1280), has no IPv6; there is nothing to set then.
    pub fn directory(self, ifname: &str) -> String {
        format!("net/{}/conf/{ifname}", if self.is_v6() { "ipv6" } else { "ipv4" })
    }

    /// Whether it is a setting of IPv6.
    pub fn is_v6(self) -> bool {
        match self {
            Self::ArpNotify | Self::DropUnicastInMulticastV4 => false,
            Self::NdiscNotify
            | Self::DropUnicastInMulticastV6
            | Self::AddrGenMode
            | Self::AcceptRa
            | Self::Autoconf
            | Self::DisableIpv6
            | Self::KeepAddrOnDown => true,
        }
    }

    /// The name of the file in [`Self::directory`].
    pub fn name(self) -> &'static str {
        match self {
            Self::ArpNotify => "arp_notify",
            Self::NdiscNotify => "ndisc_notify",
            Self::DropUnicastInMulticastV4 | Self::DropUnicastInMulticastV6 => "drop_unicast_in_l2_multicast",
            Self::AddrGenMode => "addr_gen_mode",
            Self::AcceptRa => "accept_ra",
            Self::Autoconf => "autoconf",
            Self::DisableIpv6 => "disable_ipv6",
            Self::KeepAddrOnDown => "keep_addr_on_down",
        }
    }
}

impl Step {
    /// What takes this step back, where that is known beforehand.
    ///
    /// A sysctl is taken back by writing what was there, which only `exec` knows.
    pub fn undo(&self) -> Option<Step> {
        match self.clone() {
            Self::CreateMacvlan(macvlan) => Some(Self::DeleteLink { ifname: macvlan.ifname }),
            Self::AddAddress { ifname, address } => Some(Self::DeleteAddress { ifname, address }),
            Self::AddRoute { ifname, route } => Some(Self::DeleteRoute { ifname, route }),
            Self::SetUp { ifname } => Some(Self::SetDown { ifname }),
            Self::SetDown { ifname } => Some(Self::SetUp { ifname }),
            Self::DeleteLink { .. }
            | Self::DeleteAddress { .. }
            | Self::DeleteRoute { .. }
            | Self::SetSysctl { .. }
            | Self::ProbeV4 { .. }
            | Self::AnnounceV4 { .. }
            | Self::WaitDad { .. } => None,
        }
    }

    /// The link it is about.
    pub fn ifname(&self) -> &str {
        match self {
            Self::CreateMacvlan(macvlan) => &macvlan.ifname,
            Self::DeleteLink { ifname }
            | Self::SetSysctl { ifname, .. }
            | Self::AddAddress { ifname, .. }
            | Self::DeleteAddress { ifname, .. }
            | Self::SetUp { ifname }
            | Self::SetDown { ifname }
            | Self::ProbeV4 { ifname, .. }
            | Self::AnnounceV4 { ifname, .. }
            | Self::WaitDad { ifname, .. }
            | Self::AddRoute { ifname, .. }
            | Self::DeleteRoute { ifname, .. } => ifname,
        }
    }
}

/// The steps that take `undos`, in the order they were recorded, back: the last comes first.
///
/// What concerns a link that is deleted in the end is left out, for it goes with the link.
pub fn unwind(undos: Vec<Step>) -> Vec<Step> {
    let deleted = |undo: &Step| {
        undos.iter().any(|other| matches!(other, Step::DeleteLink { ifname } if ifname == undo.ifname()))
    };
    let needed = |undo: &&Step| matches!(undo, Step::DeleteLink { .. }) || !deleted(undo);
    undos.iter().rev().filter(needed).cloned().collect()
}

/// Reads as an infinitive, for messages that begin with "cannot".
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateMacvlan(Macvlan { ifname, master, .. }) => {
                write!(f, "create macvlan `{ifname}` on master `{}`", master.name)
            }
            Self::DeleteLink { ifname } => write!(f, "delete link `{ifname}`"),
            Self::SetSysctl { ifname, setting, value } => {
                write!(f, "set sysctl `{}` to {value}", setting.key(ifname))
            }
            Self::AddAddress { ifname, address } => write!(f, "add address {address} to `{ifname}`"),
            Self::DeleteAddress { ifname, address } => write!(f, "remove address {address} from `{ifname}`"),
            Self::SetUp { ifname } => write!(f, "set `{ifname}` up"),
            Self::SetDown { ifname } => write!(f, "set `{ifname}` down"),
            Self::ProbeV4 { ifname, addresses, timeout } => {
                let (all, ms) = (list(addresses), timeout.as_millis());
                write!(f, "use {all} on `{ifname}`, for which ARP probes are sent within {ms} ms")
            }
            Self::AnnounceV4 { ifname, addresses } => {
                write!(f, "announce {} on `{ifname}`", list(addresses))
            }
            Self::WaitDad { ifname, timeout } => {
                write!(f, "use the IPv6 addresses of `{ifname}` within {} s", timeout.as_secs())
            }
            Self::AddRoute { ifname, route } => write!(f, "add route {route} to `{ifname}`"),
            Self::DeleteRoute { ifname, route } => write!(f, "remove route {route} from `{ifname}`"),
        }
    }
}

fn list(addresses: &[Ipv4Addr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for RouteVia {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.dst)?;
        let mut part = |name, value: Option<String>| value.map_or(Ok(()), |v| write!(f, " {name} {v}"));
        part("via", self.gateway.map(|v| v.to_string()))?;
        part("metric", self.priority.map(|v| v.to_string()))?;
        part("table", self.table.map(|v| v.to_string()))?;
        part("scope", self.scope.map(|v| v.to_string()))?;
        part("mtu", self.mtu.map(|v| v.to_string()))?;
        part("advmss", self.advmss.map(|v| v.to_string()))
    }
}
