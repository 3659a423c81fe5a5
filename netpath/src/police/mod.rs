//! Policing: what plugin and tool share between an interface and the maps.
//!
//! A master comes under police once: row, census, programs. An attachment is policed by a row of its own,
//! which is in force before its link goes up. Everything here that writes holds the lock of the root.

mod adopt;
mod apply;
mod carry;
mod identity;
mod inherit;
mod master;
mod neighbours;
mod network;
mod row;
mod upgrade;

use std::path::{Path, PathBuf};

pub use apply::{Applied, Rewritten, Running, apply, recorded_zone, remember, running};
pub use identity::{bound, unexplained};
pub use master::{
    Attached, MasterLink, ahead, attach, check_bpffs, maps, refresh_promisc, resolve_master, uninstall,
};
pub use neighbours::{Neighbours, is_gone, is_netns_gone, is_row_of, names};
pub use network::{GuardError, InForce, Network, NetworkError, Resolved, guard, guard_new};
pub use row::{Wanted, check, content, enter, image, leave, readdress};
pub use upgrade::{Outcome, Step, Upgraded, Watch, is_under_police, is_unfinished, upgrade};

use crate::{
    causes::full,
    kernel::{
        bpf::{BpfError, maps::MapsError, object::Settings},
        netlink::NetlinkError,
    },
    root::Root,
    spec::{Mac, code},
    state::{LockError, StateError},
    zone::{Masters, MastersError, ZoneError},
};

/// Why an interface could not be policed.
#[derive(Debug, thiserror::Error)]
pub enum PoliceError {
    /// A file of the administrator could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// `settings.json` is wrong.
    #[error("{} is not valid", path.display())]
    Settings {
        /// The file.
        path: PathBuf,
        /// Which key.
        source: serde_json::Error,
    },
    /// `masters.json` is wrong.
    #[error("masters.json cannot be used, so nothing can be bounded by it")]
    Masters(#[from] MastersError),
    /// The zone is wrong, or beyond its bound.
    #[error("the zone of this network cannot be enforced")]
    Zone(#[from] ZoneError),
    /// The data path.
    #[error("the data path is not available")]
    Bpf(#[from] BpfError),
    /// The maps.
    #[error("the maps cannot be used")]
    Maps(#[from] MapsError),
    /// Netlink.
    #[error("the master cannot be inspected")]
    Netlink(#[from] NetlinkError),
    /// The lock.
    #[error("the data path is busy")]
    Lock(#[from] LockError),
    /// The records.
    #[error("the records cannot be used")]
    State(#[from] StateError),
    /// More addresses than a row holds.
    #[error(
        "{count} {family} addresses on one interface: a policed one has at most {limit}; leave some out, or use a second attachment"
    )]
    Addresses {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// How many there are.
        count: usize,
        /// How many fit.
        limit: usize,
    },
    /// Another attachment has the MAC.
    #[error(
        "MAC {mac} is already that of {owner} on `{master}`: choose another one, or delete that attachment"
    )]
    MacTaken {
        /// The MAC.
        mac: Mac,
        /// Who has it.
        owner: String,
        /// Name of the master.
        master: String,
    },
    /// A host of the network has the MAC.
    #[error(
        "MAC {mac} is that of {address} on `{master}`: choose another one; if nobody has it there any more, `ip \
         neighbour del {address} dev {master}`"
    )]
    MacOfNeighbour {
        /// The MAC.
        mac: Mac,
        /// An address behind it.
        address: std::net::IpAddr,
        /// Name of the master.
        master: String,
    },
    /// Another attachment has the address.
    #[error("address {address} is that of {owner}: ask for another one, or delete that attachment")]
    AddressTaken {
        /// The address.
        address: std::net::IpAddr,
        /// Who has it.
        owner: String,
    },
    /// More host MACs than a row holds.
    #[error(
        "the host sends with {count} MACs on `{master}`, of which netpath can know {limit}: remove upper devices"
    )]
    HostMacs {
        /// Name of the master.
        master: String,
        /// How many there are.
        count: usize,
        /// How many fit.
        limit: usize,
    },
    /// The master has no MAC.
    #[error("`{master}` has no MAC address, so it cannot carry policed interfaces")]
    NoMac {
        /// Name of the master.
        master: String,
    },
    /// Somebody's XDP in generic mode blinds TC.
    #[error(
        "XDP program {program} runs on `{master}` in generic mode, behind which TC at ingress may not see the Ethernet \
         header: attach it in native mode (`ip link set {master} xdpdrv …`), or take it off (`ip link set {master} \
         xdpgeneric off`)"
    )]
    GenericXdp {
        /// Name of the master.
        master: String,
        /// Id of the program.
        program: u32,
    },
    /// A master that could not be brought under police, nor left as it was.
    #[error("{}; what was done before it could not be undone", full(failed.as_ref()))]
    Undo {
        /// What failed first.
        failed: Box<PoliceError>,
        /// What failed then.
        source: Box<PoliceError>,
    },
    /// A setting is smaller than what is in use.
    #[error(
        "`{setting}` in settings.json is {asked}, and attachments that run have numbers up to {needed}: say {needed} or more"
    )]
    TooSmall {
        /// The setting.
        setting: &'static str,
        /// What it says.
        asked: u32,
        /// What it has to be at least.
        needed: u32,
    },
    /// A master that cannot be upgraded from here.
    #[error(
        "`{master}` is in another network namespace and may have programs attached, so nothing was changed: delete its pods, \
         or run `netpath uninstall` and `netpath attach`"
    )]
    Elsewhere {
        /// Name of the master.
        master: String,
    },
    /// A hook that could not be given its old program again.
    #[error(
        "{hook} of {master} has the new program and the others have the old ones, each with all zones in force; run `netpath \
         upgrade` again"
    )]
    LeftNew {
        /// Name of the master.
        master: String,
        /// Name of the hook.
        hook: &'static str,
        /// Why.
        source: Box<PoliceError>,
    },
    /// All is in force, and something of before is left.
    #[error(
        "the upgrade is in force, and what was there before could not be removed: run `netpath upgrade` again"
    )]
    Untidy {
        /// Why.
        source: Box<PoliceError>,
    },
    /// What CHECK found.
    #[error("the attachment is not policed as it should be: {what}; {fix}")]
    Unpoliced {
        /// What is missing.
        what: &'static str,
        /// What to do about it.
        fix: &'static str,
    },
}

impl PoliceError {
    /// Code of the CNI error object; own codes are in `docs/errors.md`.
    pub fn cni_code(&self) -> u32 {
        match self {
            Self::Lock(error) => error.cni_code(),
            Self::Undo { failed, .. } => failed.cni_code(),
            Self::State(error) => error.cni_code(),
            Self::Zone(_) | Self::Masters(_) | Self::Settings { .. } => 7,
            Self::Read { .. } => 5,
            Self::AddressTaken { .. } => crate::ipam::code::REFUSED,
            Self::Addresses { .. } | Self::MacTaken { .. } | Self::MacOfNeighbour { .. } => 131,
            Self::Unpoliced { .. } => 132,
            // Somebody is about to upgrade, or to upgrade the plugin: the runtime tries again.
            Self::Bpf(BpfError::OlderAbi { .. } | BpfError::NewerAbi { .. })
            | Self::Maps(MapsError::Abi { .. }) => code::TRY_AGAIN,
            Self::LeftNew { source, .. } | Self::Untidy { source } => source.cni_code(),
            Self::Bpf(_)
            | Self::Maps(_)
            | Self::Netlink(_)
            | Self::HostMacs { .. }
            | Self::NoMac { .. }
            | Self::TooSmall { .. }
            | Self::Elsewhere { .. }
            | Self::GenericXdp { .. } => 130,
        }
    }
}

/// Reads `settings.json`; without the file the defaults hold.
pub fn settings(root: &Root) -> Result<Settings, PoliceError> {
    let path = root.settings();
    match read(&path)? {
        None => Ok(Settings::default()),
        Some(bytes) => {
            serde_json::from_slice(&bytes).map_err(|source| PoliceError::Settings { path, source })
        }
    }
}

/// Reads `masters.json`; without the file every zone is advice.
pub fn masters(root: &Root) -> Result<Masters, PoliceError> {
    let path = root.masters();
    match read(&path)? {
        None => Ok(Masters::none(&path)),
        Some(bytes) => Ok(Masters::parse(&path, &bytes)?),
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, PoliceError> {
    match crate::whole::bytes(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PoliceError::Read { path: path.to_owned(), source }),
    }
}
