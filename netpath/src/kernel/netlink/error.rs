use std::fmt;
use std::io;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::super::netns::NetnsError;

/// What was asked of the kernel, for the error that says it was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// List all links.
    ListLinks,
    /// Read the link of this name.
    ReadLink(String),
    /// Read the link of this index.
    ReadLinkIndex(u32),
    /// Create a macvlan.
    AddMacvlan {
        /// Its name in the target namespace.
        ifname: String,
        /// Index of its master.
        master: u32,
    },
    /// Give a link another name.
    Rename {
        /// The name it has.
        from: String,
        /// The name it should get.
        to: String,
    },
    /// Set the link of this index up.
    SetUp(u32),
    /// Set the link of this index down.
    SetDown(u32),
    /// Switch promiscuous mode of the link of this index.
    SetPromisc {
        /// The link.
        index: u32,
        /// On or off.
        on: bool,
    },
    /// Delete the link of this index.
    DeleteLink(u32),
    /// List addresses.
    ListAddresses,
    /// Add an address.
    AddAddress {
        /// The link.
        index: u32,
        /// The address and its network.
        address: IpNetwork,
    },
    /// Remove an address.
    DeleteAddress {
        /// The link.
        index: u32,
        /// The address and its network.
        address: IpNetwork,
    },
    /// List routes.
    ListRoutes,
    /// Add a route.
    AddRoute {
        /// Its destination.
        dst: IpNetwork,
        /// Its gateway.
        gateway: Option<IpAddr>,
    },
    /// Remove a route.
    DeleteRoute {
        /// Its destination.
        dst: IpNetwork,
        /// Its gateway.
        gateway: Option<IpAddr>,
    },
    /// Read the hardware addresses a link receives.
    UnicastList(u32),
    /// Read the neighbours that were met on a link.
    ListNeighbours(u32),
    /// List the filters of the link of this index.
    ListFilters(u32),
    /// List qdiscs.
    ListQdiscs,
    /// Give the link of this index a qdisc clsact.
    AddClsact(u32),
    /// Set a filter of the link of this index.
    SetFilter(u32),
    /// Delete a filter of the link of this index.
    DeleteFilter(u32),
    /// Read the number another namespace goes by.
    NamespaceId,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let via = |gateway: &Option<IpAddr>| gateway.map(|gw| format!(" via {gw}")).unwrap_or_default();
        match self {
            Self::ListLinks => f.write_str("list links"),
            Self::ReadLink(name) => write!(f, "read link `{name}`"),
            Self::ReadLinkIndex(index) => write!(f, "read link {index}"),
            Self::AddMacvlan { ifname, master } => write!(f, "create macvlan `{ifname}` on link {master}"),
            Self::Rename { from, to } => write!(f, "rename link `{from}` to `{to}`"),
            Self::SetUp(index) => write!(f, "set link {index} up"),
            Self::SetDown(index) => write!(f, "set link {index} down"),
            Self::SetPromisc { index, on } => {
                write!(f, "switch promiscuous mode of link {index} {}", if *on { "on" } else { "off" })
            }
            Self::DeleteLink(index) => write!(f, "delete link {index}"),
            Self::ListAddresses => f.write_str("list addresses"),
            Self::AddAddress { index, address } => write!(f, "add address {address} to link {index}"),
            Self::DeleteAddress { index, address } => write!(f, "remove address {address} from link {index}"),
            Self::ListRoutes => f.write_str("list routes"),
            Self::AddRoute { dst, gateway } => write!(f, "add route {dst}{}", via(gateway)),
            Self::DeleteRoute { dst, gateway } => write!(f, "remove route {dst}{}", via(gateway)),
            Self::UnicastList(index) => write!(f, "read the unicast list of link {index}"),
            Self::ListNeighbours(index) => write!(f, "list the neighbours on link {index}"),
            Self::ListFilters(index) => write!(f, "list the filters of link {index}"),
            Self::ListQdiscs => f.write_str("list qdiscs"),
            Self::AddClsact(index) => write!(f, "add a qdisc clsact to link {index}"),
            Self::SetFilter(index) => write!(f, "set a filter of link {index}"),
            Self::DeleteFilter(index) => write!(f, "delete a filter of link {index}"),
            Self::NamespaceId => f.write_str("read the id of a network namespace"),
        }
    }
}

/// A negative answer of the kernel: an error number and, from most kernels, the reason in words.
#[derive(Debug, thiserror::Error)]
#[error("{}{}", io::Error::from_raw_os_error(*errno), reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default())]
pub struct Refusal {
    /// The error number.
    pub errno: i32,
    /// The kernel's own words (`NLMSGERR_ATTR_MSG`).
    pub reason: Option<String>,
}

/// Why a request over netlink failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket could not be opened.
    #[error("cannot open a netlink socket")]
    Open {
        /// What the system said.
        source: io::Error,
    },
    /// The namespace to open the socket in could not be entered.
    #[error("cannot open a netlink socket in another network namespace")]
    Netns(#[from] NetnsError),
    /// Sending the request or receiving the answer failed.
    #[error("no answer to: {op}")]
    Exchange {
        /// What was asked.
        op: Op,
        /// What the system said; `WouldBlock` after the deadline.
        source: io::Error,
    },
    /// The kernel said no.
    #[error("cannot {op}")]
    Refused {
        /// What was asked.
        op: Op,
        /// What the kernel said.
        source: Refusal,
    },
    /// The answer breaks the protocol.
    #[error("the kernel's answer is not understood: {op}: {what}")]
    Malformed {
        /// What was asked.
        op: Op,
        /// What is wrong with the answer.
        what: &'static str,
    },
    /// The listing changed each time it was read.
    #[error("the kernel's list kept changing while it was read {tries} times: {op}")]
    Unstable {
        /// What was asked.
        op: Op,
        /// How often it was tried.
        tries: u32,
    },
    /// There is no link of this name here.
    #[error("there is no link `{name}`")]
    NoLink {
        /// The name.
        name: String,
    },
    /// There is already a link of the name the new one should get.
    #[error("interface name `{name}` is taken")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// Another host uses an address of ours.
    #[error("address {address} on `{ifname}` is in use by another host")]
    Duplicate {
        /// The address that failed duplicate address detection.
        address: IpAddr,
        /// The link it is on.
        ifname: String,
    },
    /// Duplicate address detection did not end.
    #[error("addresses on `{ifname}` are still tentative after {seconds} s")]
    Tentative {
        /// The link.
        ifname: String,
        /// How long was waited.
        seconds: u64,
    },
}

impl NetlinkError {
    /// The kernel's error number, where it refused.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => Some(source.errno),
            _ => None,
        }
    }

    /// Whether an address is that of another host.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Duplicate { .. })
    }

    /// Whether what was to be removed is not there.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::NoLink { .. })
            || matches!(self.errno(), Some(libc::ENODEV | libc::ESRCH | libc::EADDRNOTAVAIL | libc::ENOENT))
    }
}
