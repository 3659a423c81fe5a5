//! DEL: whatever is left of an attachment goes, and what is gone already is fine.

use std::path::Path;

use netpath_ebpf::abi::{Endpoint, EndpointKey, Master, kind};

use super::{Call, PluginError, Role, meta::refuse_ipam, police::failed, sweep::conf_of};
use crate::causes::full;
use crate::{
    ipam,
    kernel::{
        bpf::maps::{Maps, MapsError, pin_of},
        netlink::{Link, Netlink, NetlinkError},
        netns::{self, Netns},
    },
    police::{self, PoliceError},
    root::Root,
    spec::{CniEnv, ConfError, ContainerId, IfName, IpamConf, NetConf},
    state::{Kind, Lock, Record, Records, Sandboxes, boot_id},
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
    // A client gives its lease back over the interface; everybody else's address is free only once the
    // interface is gone.
    let lease_first = call.has_dhcp();
    let ours = record.as_ref().map_or(call.role == Role::Macvlan, |record| record.kind == Kind::Macvlan);
    if ours
        && lease_first
        && let Err(error) = release(call, container_id, ifname, record.as_ref())
    {
        errors.push(error);
    }
    let stays = match ours {
        true => delete_link(call, ifname, record.as_ref()).err(),
        // The plugin before us deletes it. Until then it must not send without its row.
        false => {
            silence(call, ifname, record.as_ref());
            None
        }
    };
    let keeps_row = stays.is_some();
    errors.extend(stays);
    // An interface that could not be removed stays policed until it can be.
    if let Some(record) = &record
        && !keeps_row
        && let Err(error) = delete_row(call, record)
    {
        errors.push(error);
    }
    if ours
        && !lease_first
        && let Err(error) = release(call, container_id, ifname, record.as_ref())
    {
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
    // Later calls for the same sandbox come without a namespace: mostly the first one took the link. Where the
    // sandbox still stands, its link must not outlive its row.
    let Some(path) = call.env.netns.as_deref().or_else(|| still_there(record?)) else { return Ok(()) };
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
    let mut sandbox = match Netlink::in_netns(&netns) {
        Ok(sandbox) => sandbox,
        // An ordinary file where a namespace was mounted.
        Err(NetlinkError::Netns(error)) if error.is_gone() => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let link = match sandbox.find_link(ifname.as_str())? {
        Some(link) if link.kind.as_deref() == Some("macvlan") => link,
        Some(_) | None => return Ok(()),
    };
    match sandbox.delete_link(link.index) {
        Err(error) if !error.is_absent() => return Err(error.into()),
        Ok(()) | Err(_) => {}
    }
    match record {
        Some(_) => Ok(()),
        // Its record may have been lost: then only the link itself could say which row is its own.
        None => delete_row_of(call, &link, netns::cookie_of(path)?),
    }
}

/// The recorded path of the sandbox, if that very namespace is still found there.
fn still_there(record: &Record) -> Option<&Path> {
    let path = record.netns.path.as_path();
    let identity = netns::identity(path).ok()?;
    // After a boot the numbers are given anew.
    let same = boot_id().is_ok_and(|boot| boot == record.boot_id)
        && (identity.dev, identity.ino) == (record.netns.dev, record.netns.inode)
        && netns::cookie_of(path).ok()? == record.netns.cookie
        && !netns::is_same_as_current(path).ok()?;
    same.then_some(path)
}

/// Sets the link of a policed attachment down, as far as it can be had.
fn silence(call: &Call<'_>, ifname: &IfName, record: Option<&Record>) {
    let (Some(path), Some(record)) = (call.env.netns.as_deref(), record) else { return };
    if record.zone.is_none() {
        return;
    }
    let set_down = || -> Result<(), PluginError> {
        let netns = Netns::open(path)?;
        let identity = netns.identity()?;
        if (identity.dev, identity.ino) != (record.netns.dev, record.netns.inode) {
            return Ok(());
        }
        let mut sandbox = Netlink::in_netns(&netns)?;
        match sandbox.find_link(ifname.as_str())? {
            Some(link) => Ok(sandbox.set_down(link.index)?),
            None => Ok(()),
        }
    };
    if let Err(error) = set_down() {
        tracing::warn!(interface = %ifname, error = full(&error), "cannot set the interface down before its row goes");
    }
}

/// Takes the row of a link without a record out of force: the one with its MAC and its namespace.
fn delete_row_of(call: &Call<'_>, link: &Link, cookie: Option<u64>) -> Result<(), PluginError> {
    let (Some(mac), Some(cookie)) = (link.mac, cookie) else { return Ok(()) };
    let ifname = call.attachment()?.1;
    let unusable = |error: MapsError| failed(ifname, error.into());
    let Some((mut maps, _lock)) = locked_maps(call, ifname)? else { return Ok(()) };
    for (key, row) in maps.endpoints().map_err(unusable)? {
        if key.mac == mac.bytes()
            && row.kind == kind::ENDPOINT
            && row.cookie == cookie
            && !is_anothers(call, &key, &row)?
        {
            // With it go the cookie and the claims that were its own.
            let left = police::leave(&mut maps, key.master, mac, row.id);
            left.map_err(|error| failed(ifname, error))?;
        }
    }
    Ok(())
}

/// The maps, unless nothing is loaded, or what is belongs to another version, which sweeps for itself.
fn usable_maps(call: &Call<'_>) -> Result<Option<Maps>, MapsError> {
    match Maps::open(&call.root.pins()) {
        Err(MapsError::Abi { .. }) => Ok(None),
        maps => maps,
    }
}

/// The same with the lock, under which no others take their place. Where there are none it is not asked for.
fn locked_maps(call: &Call<'_>, ifname: &IfName) -> Result<Option<(Maps, Lock)>, PluginError> {
    let unusable = |error: PoliceError| failed(ifname, error);
    police::check_bpffs(call.root).map_err(unusable)?;
    if !pin_of(&call.root.pins(), "meta").exists() {
        return Ok(None);
    }
    let lock = Lock::acquire(call.root)?;
    Ok(usable_maps(call).map_err(|error| unusable(error.into()))?.map(|maps| (maps, lock)))
}

/// The configuration with which the attachment of this call was made, as JSON.
pub(super) fn recorded_conf(root: &Root, env: &CniEnv) -> Option<Vec<u8>> {
    let (container_id, ifname) = (env.container_id.as_ref()?, env.ifname.as_ref()?);
    let conf = match Records::new(root).read(container_id, ifname).ok()? {
        Some(record) => record.conf,
        None => {
            let sandbox = Sandboxes::new(root).read(container_id).ok()??;
            conf_of(root, &sandbox)
        }
    };
    Some(serde_json::Value::Object(conf).to_string().into_bytes())
}

/// Takes the row out of force, also one whose ADD was ended before it could record its id.
pub(super) fn delete_row(call: &Call<'_>, record: &Record) -> Result<(), PluginError> {
    let (Some(master), Some(mac)) = (&record.master, record.mac) else { return Ok(()) };
    if record.boot_id != boot_id()? {
        // The maps went with the boot it is of; what has its number now is somebody else's.
        return Ok(());
    }
    let unusable = |error: MapsError| failed(&record.ifname, error.into());
    let Some((mut maps, _lock)) = locked_maps(call, &record.ifname)? else { return Ok(()) };
    // A NIC that is gone may have lost its row already; its number stays that of the rows of its pods.
    let id = match master.id.and_then(|id| u16::try_from(id).ok()) {
        Some(id) => Some(id),
        None => {
            let cookie = netns::cookie().unwrap_or(0);
            let rows = maps.masters().map_err(unusable)?;
            let is_its = |row: &Master| row.ifindex == master.ifindex && row.netns_cookie == cookie;
            rows.iter().find(|(_, row)| is_its(row)).map(|(id, _)| *id)
        }
    };
    let Some(id) = id else { return Ok(()) };
    let key = EndpointKey::new(id, mac.bytes());
    let Some(row) = maps.endpoint(key).map_err(unusable)? else { return Ok(()) };
    if row.kind != kind::ENDPOINT || !police::names(record, &key, &row) {
        return Ok(());
    }
    // An ADD that was ended half-way has no id yet; the row is its own if nobody else's record names it.
    if record.endpoint.is_some() || !is_anothers(call, &key, &row)? {
        // With it go the cookie and the claims that were its own.
        police::leave(&mut maps, id, mac, row.id).map_err(|error| failed(&record.ifname, error))?;
    }
    Ok(())
}

fn is_anothers(call: &Call<'_>, key: &EndpointKey, row: &Endpoint) -> Result<bool, PluginError> {
    let (container_id, ifname) = call.attachment()?;
    let listing = Records::new(call.root).all()?;
    Ok(listing
        .records
        .iter()
        .any(|record| !record.is_of(container_id, ifname) && police::names(record, key, row)))
}

/// Gives the addresses back by the configuration that took them.
fn release(
    call: &Call<'_>,
    container_id: &ContainerId,
    ifname: &IfName,
    record: Option<&Record>,
) -> Result<(), PluginError> {
    let result = match record.and_then(|record| recorded(call, record)) {
        Some((stdin, conf, ipam_conf)) => {
            let network = ipam::Network {
                name: &conf.name,
                cni_version: conf.cni_version,
                conf: &ipam_conf,
                stdin: stdin.as_bytes(),
                ..call.network()
            };
            ipam::del(&ipam::Request { network, container_id, ifname })
        }
        None => match refuse_ipam(call) {
            // Its ADD was refused, so it has made nothing, and must not be executed now.
            Err(PluginError::Conf(_) | PluginError::Refused(_) | PluginError::Meta(_)) => Ok(()),
            _ => ipam::del(&ipam::Request { network: call.network(), container_id, ifname }),
        },
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

/// The configuration as ADD executed it. One that cannot be read any more is as good as none: that of this call
/// has to do, for it will not become better by being asked for again.
fn recorded(call: &Call<'_>, record: &Record) -> Option<(String, NetConf, IpamConf)> {
    let stdin = serde_json::Value::Object(record.conf.clone()).to_string();
    let read = || -> Result<_, ConfError> {
        let conf = NetConf::parse(stdin.as_bytes())?;
        let ipam_conf = IpamConf::from_conf(&conf, &call.env.args)?;
        Ok((conf, ipam_conf))
    };
    match read() {
        Ok((conf, ipam_conf)) => Some((stdin, conf, ipam_conf)),
        Err(error) => {
            tracing::warn!(error = full(&error), "the recorded configuration is ignored");
            None
        }
    }
}
