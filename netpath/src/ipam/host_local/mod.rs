//! `host-local`: addresses from pools, one file for each that is taken.

mod disk;
mod pool;

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;

use self::disk::{Entry, Store};
use super::refused::{Refuse, RefusedAddress};
use super::{IpamResult, Network, Request, code};
use crate::root::Root;
use crate::spec::{self, ContainerId, Dns, HostLocalConf, IfName, IpConfig, RangeSet};

/// An address that an attachment holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// The address.
    pub address: IpAddr,
    /// The sandbox, as its runtime called it.
    pub container_id: String,
    /// The interface; files of very old versions of the standard plugin do not name it.
    pub ifname: Option<String>,
}

pub(super) fn directory(network: &Network<'_>, conf: &HostLocalConf) -> PathBuf {
    let data_dir = match &conf.data_dir {
        Some(dir) => network.root.join(&dir.to_string_lossy()),
        None => network.root.host_local(),
    };
    data_dir.join(network.name.as_str())
}

/// Decides on all addresses before the first is reserved, so that an error leaves nothing behind.
pub(super) fn add(
    request: &Request<'_>,
    conf: &HostLocalConf,
    refuse: Refuse<'_>,
) -> Result<IpamResult, HostLocalError> {
    let network = &request.network;
    let dns = match &conf.resolv_conf {
        Some(path) => resolv_conf(&network.root.join(&path.to_string_lossy()))?,
        None => Dns::default(),
    };
    let directory = directory(network, conf);
    if conf.data_dir.is_some() {
        refuse_ours(network.root, &directory)?;
    }
    let store = Store::create(&directory, network.within)?;
    let entries = store.entries()?;
    let mine = held(&entries, request.container_id, request.ifname);
    let mut taken: HashSet<IpAddr> = entries.iter().map(|entry| entry.address).collect();
    let last: Vec<_> = (0..conf.ranges.len()).map(|set| store.last_reserved(set)).collect();
    let owner = Owner { container_id: request.container_id, ifname: request.ifname };
    let choices = loop {
        let pool = pool::Pool { sets: &conf.ranges, taken: &taken, mine: &mine, last: &last, refuse };
        let choices = pool.choose(&conf.requested, request.container_id)?;
        // Whoever reserves without the lock may have been faster.
        match reserve_all(&store, &choices, owner)? {
            None => break choices,
            Some(address) => taken.insert(address),
        };
    };
    let ips = choices
        .into_iter()
        .map(|choice| IpConfig { address: choice.address, gateway: Some(choice.gateway), interface: None })
        .collect();
    Ok(IpamResult { ips, routes: conf.routes.clone(), dns })
}

pub(super) fn del(request: &Request<'_>, conf: &HostLocalConf) -> Result<(), HostLocalError> {
    let network = &request.network;
    let Some(store) = Store::open(&directory(network, conf), network.within)? else {
        return Ok(());
    };
    for address in held(&store.entries()?, request.container_id, request.ifname) {
        store.release(address)?;
    }
    Ok(())
}

/// Beyond the standard plugin, which is content with any reservation: every address of `ips` that comes from
/// our ranges must be the attachment's.
pub(super) fn check(
    request: &Request<'_>,
    conf: &HostLocalConf,
    ips: &[IpConfig],
) -> Result<(), HostLocalError> {
    let network = &request.network;
    let mine = match Store::open(&directory(network, conf), network.within)? {
        Some(store) => held(&store.entries()?, request.container_id, request.ifname),
        None => Vec::new(),
    };
    if mine.is_empty() {
        return Err(HostLocalError::NotFound { container_id: request.container_id.clone() });
    }
    let missing = ips
        .iter()
        .map(|ip| ip.address.ip())
        .find(|&address| conf.ranges.iter().any(|set| set.contains(address)) && !mine.contains(&address));
    match missing {
        Some(address) => {
            Err(HostLocalError::NotReserved { address, container_id: request.container_id.clone() })
        }
        None => Ok(()),
    }
}

pub(super) fn gc(
    network: &Network<'_>,
    conf: &HostLocalConf,
    is_dead: &dyn Fn(&ContainerId, &IfName) -> bool,
) -> Result<Vec<Reservation>, HostLocalError> {
    let Some(store) = Store::open(&directory(network, conf), network.within)? else {
        return Ok(Vec::new());
    };
    let mut released = Vec::new();
    for reservation in store.entries()?.into_iter().filter_map(Entry::into_reservation) {
        let (container_id, Some(ifname)) = (&reservation.container_id, &reservation.ifname) else { continue };
        // A name that no runtime could have given us is not ours.
        let names = ContainerId::parse("container id", container_id)
            .and_then(|container_id| Ok((container_id, IfName::parse("interface", ifname)?)));
        if names.is_ok_and(|(container_id, ifname)| is_dead(&container_id, &ifname)) {
            store.release(reservation.address)?;
            released.push(reservation);
        }
    }
    Ok(released)
}

/// What is reserved in the directory of a network; nothing if it does not exist.
pub fn reservations(directory: &Path, within: Duration) -> Result<Vec<Reservation>, HostLocalError> {
    let Some(store) = Store::open(directory, within)? else {
        return Ok(Vec::new());
    };
    let mut reservations: Vec<_> = store.entries()?.into_iter().filter_map(Entry::into_reservation).collect();
    reservations.sort_by_key(|reservation| reservation.address);
    Ok(reservations)
}

/// Whose a new reservation is.
#[derive(Clone, Copy)]
struct Owner<'a> {
    container_id: &'a ContainerId,
    ifname: &'a IfName,
}

/// Addresses of an attachment; without any, those of files that name only its container.
fn held(entries: &[Entry], container_id: &ContainerId, ifname: &IfName) -> Vec<IpAddr> {
    let owned_by = |owner: &str| -> Vec<IpAddr> {
        entries.iter().filter(|entry| entry.owner == owner).map(|entry| entry.address).collect()
    };
    let exact = owned_by(&disk::owner(container_id.as_str(), ifname.as_str()));
    if exact.is_empty() { owned_by(container_id.as_str()) } else { exact }
}

/// Reserves all or nothing; the address that somebody else was faster with, if any.
fn reserve_all(
    store: &Store,
    choices: &[pool::Choice],
    owner: Owner<'_>,
) -> Result<Option<IpAddr>, HostLocalError> {
    for (done, choice) in choices.iter().enumerate() {
        let reserved = store.reserve(
            choice.address.ip(),
            choice.set,
            owner.container_id.as_str(),
            owner.ifname.as_str(),
        );
        if matches!(reserved, Ok(true)) {
            continue;
        }
        for earlier in &choices[..done] {
            // The error that led here is the one to report.
            let _ = store.release(earlier.address.ip());
        }
        return reserved.map(|_| Some(choice.address.ip()));
    }
    Ok(None)
}

/// Refuses a directory among netpath's own: what a network makes there would be taken for the administrator's
/// word, such as `/etc/netpath/disable`.
fn refuse_ours(root: &Root, directory: &Path) -> Result<(), HostLocalError> {
    let refused = || HostLocalError::Ours { directory: directory.to_owned() };
    let asked = real(directory).ok_or_else(refused)?;
    for ours in [root.masters(), root.disable(), root.state(), root.lock()] {
        if ours.parent().and_then(real).is_some_and(|ours| asked.starts_with(ours)) {
            return Err(refused());
        }
    }
    Ok(())
}

/// `path` without symbolic links, of which the end need not exist; `None` if that end goes upwards.
fn real(path: &Path) -> Option<PathBuf> {
    let (there, known) = path.ancestors().find_map(|it| Some((it, it.canonicalize().ok()?)))?;
    let rest = path.strip_prefix(there).ok()?;
    rest.components().all(|it| matches!(it, Component::Normal(_))).then(|| known.join(rest))
}

/// Reads a file that a network names: it must be one that ends, so neither a pipe nor a device.
fn read_text(path: &Path) -> io::Result<String> {
    const LIMIT: u64 = 1 << 20;
    // Opening a pipe waits for its other end otherwise.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no ordinary file"));
    }
    let mut text = String::new();
    if file.take(LIMIT + 1).read_to_string(&mut text)? as u64 > LIMIT {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is longer than 1 MiB"));
    }
    Ok(text)
}

fn resolv_conf(path: &Path) -> Result<Dns, HostLocalError> {
    let text =
        read_text(path).map_err(|source| HostLocalError::ResolvConf { path: path.to_owned(), source })?;
    let mut dns = Dns::default();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        let mut fields = line.split_whitespace();
        let (Some(key), values) = (fields.next(), fields.map(str::to_owned).collect::<Vec<_>>()) else {
            continue;
        };
        let Some(first) = values.first() else { continue };
        match key {
            "nameserver" => dns.nameservers.push(first.clone()),
            "domain" => dns.domain = Some(first.clone()),
            "search" => dns.search.extend(values),
            "options" => dns.options.extend(values),
            _ => {}
        }
    }
    Ok(dns)
}

/// Why `host-local` failed. Where the standard plugin has a text for it, it is the same.
#[derive(Debug, thiserror::Error)]
pub enum HostLocalError {
    /// A directory of netpath's own.
    #[error("ipam.dataDir: {} is a directory of netpath, or leads upwards: write another one, or leave it out", directory.display())]
    Ours {
        /// With the name of the network.
        directory: PathBuf,
    },
    /// Every address is taken or refused.
    #[error("failed to allocate for range {set}: no IP addresses available in range set: {range_set}")]
    Exhausted {
        /// Index of the range set.
        set: usize,
        /// The range set.
        range_set: String,
    },
    /// The attachment has an address already.
    #[error(
        "failed to allocate for range {set}: {address} has been allocated to {container_id}, duplicate allocation is not allowed"
    )]
    Duplicate {
        /// Index of the range set.
        set: usize,
        /// The address it has.
        address: IpAddr,
        /// The sandbox.
        container_id: ContainerId,
    },
    /// The address that was asked for is taken.
    #[error(
        "failed to allocate for range {set}: requested IP address {address} is not available in range set {range_set}"
    )]
    Taken {
        /// Index of the range set.
        set: usize,
        /// The address.
        address: IpAddr,
        /// The range set.
        range_set: String,
    },
    /// The address that was asked for is a gateway.
    #[error("failed to allocate for range {set}: requested ip {address} is subnet's gateway")]
    Gateway {
        /// Index of the range set.
        set: usize,
        /// The address.
        address: IpAddr,
    },
    /// The address that was asked for is one that no pod may have.
    #[error("failed to allocate for range {set}: {refused}")]
    Refused {
        /// Index of the range set.
        set: usize,
        /// The address.
        refused: RefusedAddress,
    },
    /// More addresses were asked for than there are range sets with them.
    #[error(
        "failed to allocate all requested IPs: {}",
        addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    )]
    Leftover {
        /// The addresses.
        addresses: Vec<IpAddr>,
    },
    /// CHECK found no reservation.
    #[error("host-local: Failed to find address added by container {container_id}")]
    NotFound {
        /// The sandbox.
        container_id: ContainerId,
    },
    /// CHECK found reservations, but not this one.
    #[error("host-local: address {address} is not reserved for container {container_id}")]
    NotReserved {
        /// The address.
        address: IpAddr,
        /// The sandbox.
        container_id: ContainerId,
    },
    /// The name servers could not be read.
    #[error("cannot read ipam.resolvConf {}", path.display())]
    ResolvConf {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Somebody keeps the directory locked.
    #[error("the reservations in {} stay locked for more than {within:?}: look who holds {}", dir.display(), dir.join("lock").display())]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// How long we waited.
        within: Duration,
    },
    /// `flock(2)` failed.
    #[error("cannot lock the reservations in {}", dir.display())]
    Lock {
        /// The directory.
        dir: PathBuf,
        /// The cause.
        source: Errno,
    },
    /// A file operation failed.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl HostLocalError {
    /// Code of the CNI error object.
    pub fn cni_code(&self) -> u32 {
        match self {
            Self::Exhausted { .. } | Self::Duplicate { .. } | Self::Taken { .. } | Self::Leftover { .. } => {
                code::ALLOCATION
            }
            Self::Gateway { .. } | Self::Refused { .. } => code::REFUSED,
            Self::NotFound { .. } | Self::NotReserved { .. } => code::CHECK,
            Self::Locked { .. } => spec::code::TRY_AGAIN,
            Self::Ours { .. } => spec::code::CONF,
            Self::ResolvConf { .. } | Self::Lock { .. } | Self::Io { .. } => spec::code::IO,
        }
    }
}

/// Which of `sets` an address belongs to.
fn in_set(sets: &[RangeSet], set: usize, address: IpAddr) -> bool {
    sets.get(set).is_some_and(|set| set.contains(address))
}

#[cfg(test)]
mod tests;
