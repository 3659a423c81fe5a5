//! Address management: `host-local` and `static` in-process, everything else executed from `CNI_PATH`.
//!
//! `host-local` keeps its reservations as the standard plugin does, so that a directory can be used by both,
//! in turn and at the same time.

mod delegate;
mod host_local;
mod refused;
mod static_addresses;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnetwork::IpNetwork;

pub use delegate::DelegateError;
pub use host_local::{HostLocalError, Reservation, reservations};
pub use refused::{Refuse, RefusedAddress};
pub use static_addresses::StaticError;

use crate::child::Lead;
use crate::root::Root;
use crate::spec::{
    CniEnv, CniResult, CniVersion, Command, ContainerId, Dns, IfName, IpConfig, IpamConf, NetworkName, Route,
};

/// The time that one executed IPAM plugin, or the wait for a reservation directory, may take.
pub const WITHIN: Duration = Duration::from_secs(30);

/// The time that an executed IPAM plugin may take for STATUS.
pub const STATUS_WITHIN: Duration = Duration::from_secs(4);

/// Set for executed IPAM plugins, to the `ipam.type` they are executed for.
///
/// One that is ourselves would execute itself again, and again: the configuration is the same.
pub const AS_IPAM: &str = "NETPATH_AS_IPAM";

/// Own codes of CNI error objects, see [`IpamError::cni_code`].
pub mod code {
    /// No address could be allocated.
    pub const ALLOCATION: u32 = 120;
    /// The address must not be used by a pod.
    pub const REFUSED: u32 = 121;
    /// CHECK found the reservations not as they should be.
    pub const CHECK: u32 = 122;
    /// An executed plugin failed without saying a code of its own.
    pub const PLUGIN: u32 = 123;
}

/// A network's address management, whatever attachment it is for.
#[derive(Clone, Copy)]
pub struct Network<'a> {
    /// `name` of the network configuration.
    pub name: &'a NetworkName,
    /// Version of the configuration.
    pub cni_version: CniVersion,
    /// The `ipam` section, with what CNI_ARGS adds to it.
    pub conf: &'a IpamConf,
    /// The complete configuration as it came: executed plugins get it unchanged.
    pub stdin: &'a [u8],
    /// The environment of the call; executed plugins get the same.
    pub env: &'a CniEnv,
    /// What the paths in the configuration hang off.
    pub root: &'a Root,
    /// Usually [`WITHIN`], for STATUS [`STATUS_WITHIN`].
    pub within: Duration,
    /// Usually `kernel::pdeathsig::lead_group`.
    pub lead: Lead,
}

/// A network's address management for one attachment.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// The network.
    pub network: Network<'a>,
    /// The sandbox.
    pub container_id: &'a ContainerId,
    /// The interface in the sandbox.
    pub ifname: &'a IfName,
}

/// What an attachment got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpamResult {
    /// Addresses; none of them names an interface.
    pub ips: Vec<IpConfig>,
    /// Routes.
    pub routes: Vec<Route>,
    /// Name servers.
    pub dns: Dns,
}

/// Allocates addresses; an error leaves nothing allocated.
///
/// `refuse` says which addresses a pod must not have although they lie in its ranges: the node's own, a live
/// endpoint's. The gateway, the network's and the broadcast address are refused in any case. From a pool the
/// next address is taken instead; one that was asked for, or that an executed plugin chose, is an error.
pub fn add(request: &Request<'_>, refuse: Refuse<'_>) -> Result<IpamResult, IpamError> {
    match request.network.conf {
        IpamConf::None => Ok(IpamResult::default()),
        IpamConf::HostLocal(conf) => Ok(host_local::add(request, conf, refuse)?),
        IpamConf::Static(conf) => Ok(static_addresses::add(conf, refuse)?),
        IpamConf::Delegated { kind, .. } => add_delegated(request, kind, refuse),
    }
}

/// Refuses addresses that were asked for beyond `subnets`, or that are one of `gateways`.
pub fn check_asked(ips: &[IpConfig], subnets: &[IpNetwork], gateways: &[IpAddr]) -> Result<(), IpamError> {
    refused::beyond(ips, subnets, gateways).map_or(Ok(()), |refused| Err(IpamError::Refused(refused)))
}

/// Gives all addresses of the attachment back. What is not there is not an error.
pub fn del(request: &Request<'_>) -> Result<(), IpamError> {
    match request.network.conf {
        IpamConf::None | IpamConf::Static(_) => Ok(()),
        IpamConf::HostLocal(conf) => Ok(host_local::del(request, conf)?),
        IpamConf::Delegated { kind, .. } => {
            Ok(delegate::run(&request.network, kind, Command::Del, Some(request)).map(drop)?)
        }
    }
}

/// Checks that the addresses of `prev_result` are still the attachment's.
pub fn check(request: &Request<'_>, prev_result: Option<&CniResult>) -> Result<(), IpamError> {
    let ips = prev_result.map_or(&[][..], |result| &result.ips);
    match request.network.conf {
        IpamConf::None => Ok(()),
        IpamConf::HostLocal(conf) => Ok(host_local::check(request, conf, ips)?),
        IpamConf::Static(conf) => Ok(static_addresses::check(conf, request.ifname, prev_result)?),
        IpamConf::Delegated { kind, .. } => {
            Ok(delegate::run(&request.network, kind, Command::Check, Some(request)).map(drop)?)
        }
    }
}

/// Gives back the addresses of attachments that `is_dead` knows to be ours and gone; what was given back.
///
/// It is asked rather than told the valid ones, since a directory may hold another runtime's reservations
/// too. Executed plugins get the call as it came, if the configuration's version has GC.
pub fn gc(
    network: &Network<'_>,
    is_dead: &dyn Fn(&ContainerId, &IfName) -> bool,
) -> Result<Vec<Reservation>, IpamError> {
    match network.conf {
        IpamConf::None | IpamConf::Static(_) => Ok(Vec::new()),
        IpamConf::HostLocal(conf) => Ok(host_local::gc(network, conf, is_dead)?),
        IpamConf::Delegated { kind, .. } => run_optional(network, kind, Command::Gc).map(|()| Vec::new()),
    }
}

/// Asks an executed plugin whether it could serve an ADD; those in-process always can.
pub fn status(network: &Network<'_>) -> Result<(), IpamError> {
    match network.conf {
        IpamConf::None | IpamConf::Static(_) | IpamConf::HostLocal(_) => Ok(()),
        IpamConf::Delegated { kind, .. } => run_optional(network, kind, Command::Status),
    }
}

/// Directory of the reservations, where the IPAM is `host-local`.
pub fn host_local_dir(network: &Network<'_>) -> Option<PathBuf> {
    match network.conf {
        IpamConf::HostLocal(conf) => Some(host_local::directory(network, conf)),
        IpamConf::None | IpamConf::Static(_) | IpamConf::Delegated { .. } => None,
    }
}

fn add_delegated(request: &Request<'_>, kind: &str, refuse: Refuse<'_>) -> Result<IpamResult, IpamError> {
    let added = delegate::run(&request.network, kind, Command::Add, Some(request))
        .and_then(|output| delegate::parse_result(&request.network, kind, &output))
        .map_err(IpamError::from)
        .and_then(|result| match refused::any(&result.ips, refuse) {
            Some(refused) => Err(IpamError::Refused(refused)),
            None => Ok(result),
        });
    let error = match added {
        Ok(result) => return Ok(result),
        Err(error @ IpamError::Delegate(DelegateError::NotFound { .. } | DelegateError::Name { .. })) => {
            return Err(error);
        }
        Err(error) => error,
    };
    // The specification's order: who executes an ADD that fails executes its DEL.
    match delegate::run(&request.network, kind, Command::Del, Some(request)) {
        Ok(_) => Err(error),
        Err(undo) => Err(IpamError::Undo { add: Box::new(error), undo }),
    }
}

/// GC and STATUS: a plugin of before CNI 1.1 does not know them, and then has nothing to say.
fn run_optional(network: &Network<'_>, kind: &str, command: Command) -> Result<(), IpamError> {
    if network.cni_version.allows(command).is_err() {
        return Ok(());
    }
    match delegate::run(network, kind, command, None) {
        Err(DelegateError::Failed { code: crate::spec::code::ENV | crate::spec::code::VERSION, .. }) => {
            Ok(())
        }
        result => Ok(result.map(drop)?),
    }
}

/// Why address management failed.
#[derive(Debug, thiserror::Error)]
pub enum IpamError {
    /// `host-local` failed.
    #[error(transparent)]
    HostLocal(#[from] HostLocalError),
    /// `static` failed.
    #[error(transparent)]
    Static(#[from] StaticError),
    /// An executed plugin failed.
    #[error(transparent)]
    Delegate(#[from] DelegateError),
    /// An address that a pod must not have was asked for, or chosen by an executed plugin.
    #[error(transparent)]
    Refused(RefusedAddress),
    /// An executed plugin failed, and then its DEL too: addresses may stay allocated there.
    #[error("{add}; its DEL failed too")]
    Undo {
        /// How the ADD failed.
        add: Box<IpamError>,
        /// How the DEL failed.
        #[source]
        undo: DelegateError,
    },
}

impl IpamError {
    /// Code of the CNI error object.
    pub fn cni_code(&self) -> u32 {
        match self {
            Self::HostLocal(error) => error.cni_code(),
            Self::Static(error) => error.cni_code(),
            Self::Delegate(error) => error.cni_code(),
            Self::Refused(_) => code::REFUSED,
            Self::Undo { add, .. } => add.cni_code(),
        }
    }

    /// Whether a failed DEL is worth another attempt. One of a plugin that is gone is not: it must be noted
    /// and answered with success, or the pod stays Terminating for ever.
    pub fn is_worth_retrying(&self) -> bool {
        match self {
            Self::Delegate(DelegateError::NotFound { .. } | DelegateError::Name { .. }) => false,
            Self::Delegate(DelegateError::Run { source, .. }) => !source.is_no_program(),
            _ => true,
        }
    }
}
