//! Why a CNI command failed.

use std::path::PathBuf;

use crate::{
    exec::StepError,
    ipam::IpamError,
    kernel::{netlink::NetlinkError, netns::NetnsError},
    plan::PlanError,
    police::PoliceError,
    spec::{ConfError, EnvError, code},
    state::{LockError, StateError},
    zone::{Refusal, ZoneError},
};

/// Why a CNI command failed. The text becomes `msg` of the error object, the chain of causes `details`.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// The environment.
    #[error(transparent)]
    Env(#[from] EnvError),
    /// The configuration.
    #[error(transparent)]
    Conf(#[from] ConfError),
    /// A type that this binary is not.
    #[error("`type`: `{kind}`: netpath serves the types `macvlan` and `netpath`")]
    Type {
        /// As configured.
        kind: String,
    },
    /// `ipam.type` leads back to this binary.
    #[error(
        "`ipam.type`: `{kind}` is netpath itself, which gives no addresses: write the name of an IPAM plugin"
    )]
    AsIpam {
        /// As configured.
        kind: String,
    },
    /// `CNI_NETNS` is the plugin's own namespace.
    #[error("CNI_NETNS: `{}` is the network namespace the plugin itself runs in", path.display())]
    OwnNetns {
        /// As given.
        path: PathBuf,
    },
    /// The runtime named no sandbox or interface.
    #[error("CNI_CONTAINERID, CNI_IFNAME and CNI_NETNS are needed for this command")]
    NoAttachment,
    /// The namespace.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// No master.
    #[error("`master`: no link `{name}` {place}: write the name of one that exists")]
    NoMaster {
        /// As configured.
        name: String,
        /// Where it was looked for.
        place: &'static str,
    },
    /// No default route to take the master from.
    #[error(
        "`master` is empty, and no default route was found {place} to take it from: write the name of a link"
    )]
    NoDefaultRoute {
        /// Where it was looked for.
        place: &'static str,
    },
    /// A zone on a macvlan whose own master cannot be reached.
    #[error(
        "master `{name}` is a macvlan of a link in another network namespace, where nothing can be enforced: remove `zone`, or name another master"
    )]
    MasterElsewhere {
        /// Name of the master.
        name: String,
    },
    /// A zone on a master that the pod owns.
    #[error(
        "`zone`: with `linkInContainer` the master is the pod's own, where nothing can be enforced: remove one of the two"
    )]
    ZoneInContainer,
    /// A policed passthru interface on a master that the node itself uses.
    #[error(
        "`mode`: passthru takes `{name}` from the node, which has {address} on it: write bridge, or remove that address"
    )]
    PassthruOfNode {
        /// Name of the master.
        name: String,
        /// An address that the node has on it.
        address: std::net::IpAddr,
    },
    /// The interface is there already.
    #[error(
        "interface `{ifname}` already exists in the pod: choose another name, or DEL the attachment that has it"
    )]
    Exists {
        /// Its name.
        ifname: String,
    },
    /// An IPAM plugin without addresses.
    #[error("IPAM plugin returned missing IP config")]
    NoAddresses,
    /// The administrator does not want it.
    #[error("masters.json does not allow this attachment")]
    Refused(#[from] Refusal),
    /// The zone.
    #[error(transparent)]
    Zone(#[from] ZoneError),
    /// A plan that cannot be made.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A step that failed.
    #[error(transparent)]
    Step(#[from] StepError),
    /// A probe whose answer nobody could read.
    #[error(
        "`acd`: `{ifname}` is an ipvlan, which has the MAC of its master: an answer to a probe does not come back to it, so remove `acd`, or use macvlan"
    )]
    AcdIpvlan {
        /// CNI_IFNAME.
        ifname: String,
    },
    /// IPAM.
    #[error(transparent)]
    Ipam(#[from] IpamError),
    /// Netlink.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Policing.
    #[error("`{ifname}` cannot be policed, so it is not attached")]
    Police {
        /// The interface.
        ifname: String,
        /// Why.
        source: Box<PoliceError>,
    },
    /// The records.
    #[error(transparent)]
    State(#[from] StateError),
    /// The lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// CHECK and chained ADD need it.
    #[error("required prevResult missing")]
    NoPrevResult,
    /// A configuration of type `netpath` that is neither for a pod's networks nor behind another plugin.
    #[error(
        "`type`: `netpath` without `clusterNetwork`, `delegates` or `prevResult`: name the networks of pods by one of the first two, or put it behind the plugin that makes the interface, in a list"
    )]
    NoNetworks,
    /// A chained ADD without an interface to police.
    #[error(
        "`prevResult` names no interface `{ifname}` in this sandbox: put `netpath` behind the plugin that makes it"
    )]
    NotInResult {
        /// CNI_IFNAME.
        ifname: String,
    },
    /// A chained ADD on something else than a macvlan.
    #[error(
        "`{ifname}` is {kind}, and netpath polices macvlan interfaces only: remove `netpath` from the list, or use macvlan"
    )]
    NotMacvlan {
        /// CNI_IFNAME.
        ifname: String,
        /// What it is.
        kind: String,
    },
    /// CHECK found something else than ADD left.
    #[error("{what}: expected {expected}, found {found}")]
    Check {
        /// What was looked at.
        what: String,
        /// As it was after ADD.
        expected: String,
        /// As it is.
        found: String,
    },
    /// A network of the pod, or finding it.
    #[error(transparent)]
    Meta(#[from] super::MetaError),
    /// STATUS: no pod at all could be started.
    #[error("the cluster network cannot serve any pod")]
    Unavailable {
        /// Code of the error object.
        code: u32,
        /// Why.
        source: Box<PluginError>,
    },
    /// What failed, and what could not be undone after it.
    #[error("{failed}; what was done before it could not all be undone: {}", left.join("; "))]
    Undo {
        /// What failed first.
        #[source]
        failed: Box<PluginError>,
        /// What is left behind.
        left: Vec<String>,
    },
}

impl PluginError {
    /// Codes below 100 are the CNI specification's, the rest are listed in `docs/errors.md`.
    pub fn cni_code(&self) -> u32 {
        match self {
            Self::Env(error) => error.cni_code(),
            Self::Conf(error) => error.cni_code(),
            Self::OwnNetns { .. } => code::NETNS,
            Self::NoAttachment => code::ENV,
            Self::Type { .. }
            | Self::Zone(_)
            | Self::Plan(_)
            | Self::ZoneInContainer
            | Self::AsIpam { .. }
            | Self::PassthruOfNode { .. }
            | Self::AcdIpvlan { .. }
            | Self::NoNetworks
            | Self::NoPrevResult => code::CONF,
            Self::Netns(error) if error.is_gone() => code::UNKNOWN_CONTAINER,
            Self::Netns(_) => 100,
            Self::NoMaster { .. } | Self::NoDefaultRoute { .. } | Self::MasterElsewhere { .. } => 101,
            Self::Step(error) if error.is_conflict() => crate::ipam::code::REFUSED,
            Self::Netlink(error) if error.is_conflict() => crate::ipam::code::REFUSED,
            Self::Exists { .. } | Self::Step(_) | Self::Netlink(_) => 102,
            Self::NotInResult { .. } | Self::NotMacvlan { .. } => 103,
            Self::Check { .. } => 104,
            Self::Refused(_) => 105,
            Self::NoAddresses => crate::ipam::code::ALLOCATION,
            Self::Ipam(error) => error.cni_code(),
            Self::Police { source, .. } => source.cni_code(),
            Self::State(error) => error.cni_code(),
            Self::Lock(error) => error.cni_code(),
            Self::Meta(error) => error.cni_code(),
            Self::Unavailable { code, .. } => *code,
            Self::Undo { failed, .. } => failed.cni_code(),
        }
    }
}
