//! DEL: whatever is left of an attachment goes, and what is gone already is fine.

use netpath_ebpf::abi::EndpointKey;

use super::{Call, PluginError, Role, add::full, police::failed};
use crate::{
    ipam,
    kernel::{
        bpf::maps::Maps,
        netlink::Netlink,
        netns::{self, Netns},
    },
    spec::{ContainerId, IfName, IpamConf, NetConf},
    state::{Kind, Lock, Record, Records},
};

/// Ends an attachment: link, row, addresses, record. Everything is attempted; errors are reported together.
///
/// The record says how it was made. Without one (the standard plugin made it, or the disk was lost) the
/// configuration of this call has to do. A namespace that is gone took its link with it.
pub(super) fn del(call: &Call<'_>) -> Result<(), PluginError> {
    let (container_id, ifname) = call.attachment()?;
    let records = Records::new(call.root);
    let record = records.read(container_id, ifname)?;
    let mut errors: Vec<PluginError> = Vec::new();
    let ours = record.as_ref().map_or(call.role == Role::Macvlan, |record| record.kind == Kind::Macvlan);
    if ours && let Err(error) = delete_link(call, ifname, record.as_ref()) {
        errors.push(error);
    }
    if let Some(record) = &record
        && let Err(error) = delete_row(call, record)
    {
        errors.push(error);
    }
    if ours && let Err(error) = release(call, container_id, ifname, record.as_ref()) {
        errors.push(error);
    }
    let mut errors = errors.into_iter();
    match errors.next() {
        None => {
            records.remove(container_id, ifname)?;
            Ok(())
        }
        Some(first) => match errors.map(|error| full(&error)).collect::<Vec<_>>() {
            others if others.is_empty() => Err(first),
            left => Err(PluginError::Undo { failed: Box::new(first), left }),
        },
    }
}

/// Deletes the link if the sandbox still stands and still is the one of the record.
fn delete_link(call: &Call<'_>, ifname: &IfName, record: Option<&Record>) -> Result<(), PluginError> {
    // Later calls for the same sandbox come without a namespace: the first one took the link.
    let Some(path) = call.env.netns.as_deref() else { return Ok(()) };
    let netns = match Netns::open(path) {
        Ok(netns) => netns,
        Err(error) if error.is_gone() => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if let Some(record) = record {
        let identity = netns.identity()?;
        if (identity.dev, identity.ino) != (record.netns.dev, record.netns.inode) {
            // Another sandbox at the same path: its link is not ours.
            return Ok(());
        }
    } else if netns::is_same_as_current(path)? {
        return Err(PluginError::OwnNetns { path: path.to_owned() });
    }
    let mut sandbox = Netlink::in_netns(&netns)?;
    let link = match sandbox.find_link(ifname.as_str())? {
        Some(link) if link.kind.as_deref() == Some("macvlan") => link,
        Some(_) | None => return Ok(()),
    };
    match sandbox.delete_link(link.index) {
        Err(error) if !error.is_absent() => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Takes the row out of force, also one whose ADD was ended before it could record its id.
fn delete_row(call: &Call<'_>, record: &Record) -> Result<(), PluginError> {
    let (Some(master), Some(mac)) = (&record.master, record.mac) else { return Ok(()) };
    let unusable = |error: crate::kernel::bpf::maps::MapsError| failed(&record.ifname, error.into());
    let _lock = Lock::acquire(call.root)?;
    let maps = match Maps::open(&call.root.pins()) {
        Ok(Some(maps)) => maps,
        // Nothing is loaded, or it belongs to another version, which sweeps for itself.
        Ok(None) | Err(crate::kernel::bpf::maps::MapsError::Abi { .. }) => return Ok(()),
        Err(error) => return Err(unusable(error)),
    };
    let mut maps = maps;
    let cookie = netns::cookie().unwrap_or(0);
    let rows = maps.masters().map_err(unusable)?;
    let id = rows.iter().find(|(_, row)| row.ifindex == master.ifindex && row.netns_cookie == cookie);
    let Some((id, _)) = id else { return Ok(()) };
    let key = EndpointKey::new(*id, mac.bytes());
    let Some(row) = maps.endpoint(key).map_err(unusable)? else { return Ok(()) };
    let same = record.endpoint.is_none_or(|own| own.id == row.id && own.generation == row.generation);
    // An ADD that was ended half-way has no id yet; the row is its own if nobody else's record names it.
    if same && (record.endpoint.is_some() || !is_anothers(call, row.id, row.generation)?) {
        maps.remove_endpoint(key, row.id).map_err(unusable)?;
    }
    Ok(())
}

fn is_anothers(call: &Call<'_>, id: u32, generation: u32) -> Result<bool, PluginError> {
    let listing = Records::new(call.root).all()?;
    let names =
        |record: &Record| record.endpoint.is_some_and(|row| row.id == id && row.generation == generation);
    Ok(listing.records.iter().any(names))
}

/// Gives the addresses back by the configuration that took them.
fn release(
    call: &Call<'_>,
    container_id: &ContainerId,
    ifname: &IfName,
    record: Option<&Record>,
) -> Result<(), PluginError> {
    let recorded = record.map(|record| serde_json::Value::Object(record.conf.clone()).to_string());
    let result = match &recorded {
        Some(stdin) => {
            let conf = NetConf::parse(stdin.as_bytes())?;
            let ipam_conf = IpamConf::from_conf(&conf, &call.env.args)?;
            let network = ipam::Network {
                name: &conf.name,
                cni_version: conf.cni_version,
                conf: &ipam_conf,
                stdin: stdin.as_bytes(),
                ..call.network()
            };
            ipam::del(&ipam::Request { network, container_id, ifname })
        }
        None => ipam::del(&ipam::Request { network: call.network(), container_id, ifname }),
    };
    match result {
        // A plugin that is gone does not come back by being asked again; the pod must not wait for it.
        Err(error) if !error.is_worth_retrying() => {
            tracing::error!(container = %container_id, interface = %ifname, error = full(&error), "addresses leaked");
            Ok(())
        }
        result => Ok(result?),
    }
}
