//! Who has which MAC and address on a master: rows say it, and records whether the attachment behind one lives.

use std::net::IpAddr;
use std::path::Path;

use netpath_ebpf::abi::{Endpoint, EndpointKey, kind};

use crate::{
    kernel::{
        self,
        bpf::{maps::Maps, tree::Tree},
        netns,
    },
    root::Root,
    spec::{ContainerId, IfName},
    state::{self, Phase, Record, Records, StateError},
};

/// The rows of a master that belong to attachments.
#[derive(Debug, Default)]
pub struct Neighbours {
    rows: Vec<(EndpointKey, Endpoint)>,
    of: Option<(Root, ContainerId, IfName)>,
}

impl Neighbours {
    /// Reads the rows of the link `ifindex` of this namespace, for an attachment that is `own`. Where nothing is
    /// loaded, or it cannot be read, there are none: whoever enters a row afterwards fails, and says why.
    pub fn read(root: &Root, ifindex: u32, container_id: &ContainerId, ifname: &IfName) -> Self {
        let rows = || -> Option<Vec<_>> {
            // Two maps of all that there are.
            let tree = Tree::open(&root.pins()).ok().flatten()?;
            let cookie = netns::cookie().unwrap_or(0);
            let masters = tree.masters().ok()?;
            let (id, _) =
                masters.iter().find(|(_, row)| row.ifindex == ifindex && row.netns_cookie == cookie)?;
            Some(of(tree.endpoints().ok()?, *id))
        };
        Self {
            rows: rows().unwrap_or_default(),
            of: Some((root.clone(), container_id.clone(), ifname.clone())),
        }
    }

    /// The living attachment that has `address`, as people name it.
    pub fn holder(&self, address: IpAddr) -> Option<String> {
        let (root, container_id, ifname) = self.of.as_ref()?;
        let (key, row) = self.rows.iter().find(|(_, row)| has(row, address))?;
        holder(root, (container_id, ifname), key, row).ok().flatten()
    }
}

/// The rows of master `id` that belong to attachments.
pub(super) fn of_master(
    maps: &Maps,
    id: u16,
) -> Result<Vec<(EndpointKey, Endpoint)>, crate::kernel::bpf::maps::MapsError> {
    Ok(of(maps.endpoints()?, id))
}

fn of(mut rows: Vec<(EndpointKey, Endpoint)>, master: u16) -> Vec<(EndpointKey, Endpoint)> {
    rows.retain(|(key, row)| key.master == master && row.kind == kind::ENDPOINT);
    rows
}

/// Whether `address` is one of the row's.
pub(super) fn has(row: &Endpoint, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => !ip.is_unspecified() && row.v4.contains(&ip.octets()),
        IpAddr::V6(ip) => !ip.is_unspecified() && row.v6.contains(&ip.octets()),
    }
}

/// The living attachment, other than `own`, behind a row. A row without one was left by somebody who was killed,
/// or by a sandbox that is gone and whose DEL is still to come.
pub(super) fn holder(
    root: &Root,
    own: (&ContainerId, &IfName),
    key: &EndpointKey,
    row: &Endpoint,
) -> Result<Option<String>, StateError> {
    let boot = state::boot_id()?;
    let listing = Records::new(root).all()?;
    let holder = listing
        .records
        .into_iter()
        .find(|record| !record.is_of(own.0, own.1) && names(record, key, row) && !is_gone(record, &boot));
    Ok(holder.map(|record| match &record.pod {
        Some(pod) => format!("pod {}/{} ({})", pod.namespace, pod.name, record.ifname),
        None => format!("container {} ({})", record.container_id, record.ifname),
    }))
}

/// Whether a record names this row. Ids and generations begin anew where maps were lost, and a record whose interface nobody found
/// then says what is another one's by now: the MAC tells.
pub fn is_row_of<Conf, Compiled>(record: &Record<Conf, Compiled>, key: &EndpointKey, row: &Endpoint) -> bool {
    record.endpoint.is_some_and(|own| (own.id, own.generation) == (row.id, row.generation))
        && record.mac.is_some_and(|mac| mac.bytes() == key.mac)
}

/// Whether a record is that of a row. An ADD under way has not yet written down which row is its own: there
/// the MAC, which it chose before, has to tell.
pub fn names(record: &Record, key: &EndpointKey, row: &Endpoint) -> bool {
    match (record.endpoint, record.phase) {
        (Some(_), _) => is_row_of(record, key, row),
        (None, Phase::Adding) => record.mac.is_some_and(|mac| mac.bytes() == key.mac),
        (None, Phase::Ready) => false,
    }
}

/// Whether the sandbox is gone: another boot, no such path, or another namespace at it.
pub fn is_gone<Conf, Compiled>(record: &Record<Conf, Compiled>, boot: &str) -> bool {
    record.boot_id != boot || is_netns_gone(&record.netns)
}

/// Whether a namespace of this boot is gone: no such path, no namespace at it, or another one.
///
/// The kernel gives the number of one that is gone to the next, so where the numbers agree the cookies decide. What
/// cannot be told is not gone.
pub fn is_netns_gone(netns: &state::Netns) -> bool {
    match netns::identity(&netns.path) {
        Ok(identity) if (identity.dev, identity.ino) != (netns.dev, netns.inode) => {
            // Where it is not mounted for us there is an ordinary file.
            let is_anothers = netns::is_namespace(identity) && !netns.path.starts_with("/proc");
            is_anothers || would_be_seen(&netns.path)
        }
        Ok(_) => match (netns.cookie, netns::cookie_of(&netns.path)) {
            (Some(known), Ok(Some(found))) => known != found,
            (_, Err(error)) => error.is_gone(),
            (_, Ok(_)) => false,
        },
        Err(error) => error.is_gone() && would_be_seen(&netns.path),
    }
}

/// Whether a namespace that is at this path of the node would be there for us as well. A container need not have the
/// node's directory, nor what was mounted there since, nor its processes.
fn would_be_seen(path: &Path) -> bool {
    match path.starts_with("/proc") {
        true => kernel::sees_all_processes().unwrap_or(false),
        false => path.parent().is_some_and(|parent| kernel::mounts::follows_init(parent).unwrap_or(false)),
    }
}
