//! CHECK: the attachment is still what ADD made of it.

use std::fmt::Display;

use super::{
    Call, PluginError, Role,
    add::locate,
    chained,
    police::{Rules, failed},
};
use crate::{
    exec::Effects,
    ipam,
    kernel::{netlink::Link, netns::Netns, sysctl},
    plan::{Place, Setting},
    police,
    spec::{CniResult, IfName, IpConfig, MacvlanConf},
    state::{Record, Records},
};

/// Compares link, addresses, routes, reservations and policing with the result of ADD.
pub(super) fn check(call: &Call<'_>) -> Result<(), PluginError> {
    let (container_id, ifname) = call.attachment()?;
    let prev = call.conf.prev_result.as_ref().ok_or(PluginError::NoPrevResult)?;
    let path = call.env.netns.as_deref().ok_or(PluginError::NoAttachment)?;
    let mut effects = Effects::open(Netns::open(path)?)?;
    let link = effects.link(ifname.as_str())?;
    if call.role == Role::Macvlan {
        ipam::check(&ipam::Request { network: call.network(), container_id, ifname }, Some(prev))?;
        check_link(call, &mut effects, &link, prev)?;
        check_addresses(&mut effects, &link, ifname, prev)?;
    }
    if call.role == Role::Chained && chained::is_ipvlan(&link) {
        return chained::exempt(call, &mut effects, &link).map(drop);
    }
    match Records::new(call.root).read(container_id, ifname)? {
        Some(record) => check_policed(call, &record, &effects),
        None => check_unrecorded(call, &mut effects, &link),
    }
}

fn same<T: PartialEq + Display>(what: String, expected: &T, found: &T) -> Result<(), PluginError> {
    match expected == found {
        true => Ok(()),
        false => Err(PluginError::Check { what, expected: expected.to_string(), found: found.to_string() }),
    }
}

fn check_link(
    call: &Call<'_>,
    effects: &mut Effects,
    link: &Link,
    prev: &CniResult,
) -> Result<(), PluginError> {
    let ifname = &link.name;
    let sandbox = call.env.netns.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    let interface = prev
        .interfaces
        .iter()
        .find(|interface| interface.name == *ifname && interface.sandbox.as_deref() == Some(&sandbox))
        .ok_or_else(|| PluginError::NotInResult { ifname: ifname.clone() })?;
    let conf = MacvlanConf::from_conf(&call.conf, &call.env.args)?;
    let (master, place) = locate(effects, &conf)?;
    same(format!("kind of `{ifname}`"), &"macvlan".to_owned(), &link.kind.clone().unwrap_or_default())?;
    // An index says nothing without the namespace it is one of.
    if effects.place_of_master(link)? != Some(place) {
        return Err(PluginError::Check {
            what: format!("master of `{ifname}`"),
            expected: format!("`{}`", master.name),
            found: "a link in another namespace".into(),
        });
    }
    same(format!("master of `{ifname}` (index)"), &master.index, &link.link.unwrap_or_default())?;
    let mode = link.macvlan_mode.map(|mode| format!("{mode:?}").to_lowercase()).unwrap_or_default();
    same(format!("mode of `{ifname}`"), &format!("{:?}", conf.mode).to_lowercase(), &mode)?;
    if let Some(mac) = &interface.mac {
        let found = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
        same(format!("MAC of `{ifname}`"), &mac.to_lowercase(), &found)?;
    }
    Ok(())
}

fn check_addresses(
    effects: &mut Effects,
    link: &Link,
    ifname: &IfName,
    prev: &CniResult,
) -> Result<(), PluginError> {
    let missing =
        |what: String| PluginError::Check { what, expected: "to be there".into(), found: "nothing".into() };
    let here: Vec<_> =
        effects.sandbox().addresses(Some(link.index))?.into_iter().map(|a| a.address).collect();
    let routes = effects.sandbox().routes(None)?;
    for ip in &prev.ips {
        if !here
            .iter()
            .any(|address| address.ip() == ip.address.ip() && address.prefix() == ip.address.prefix())
        {
            return Err(missing(format!("address {} of `{ifname}`", ip.address)));
        }
    }
    for route in &prev.routes {
        // As a gateway the unspecified address means that there is none.
        let gateway = route
            .gw
            .or_else(|| first_gateway(&prev.ips, route.dst.is_ipv6()))
            .filter(|gateway| !gateway.is_unspecified());
        let found = routes.iter().any(|other| {
            other.dst.network() == route.dst.network()
                && other.dst.prefix() == route.dst.prefix()
                && (gateway.is_none() || other.gateway == gateway)
                && route.table.is_none_or(|table| other.table == table)
        });
        if !found {
            return Err(missing(format!("route to {} in the pod", route.dst)));
        }
    }
    Ok(())
}

fn first_gateway(ips: &[IpConfig], v6: bool) -> Option<std::net::IpAddr> {
    ips.iter().filter_map(|ip| ip.gateway).find(|gateway| gateway.is_ipv6() == v6)
}

/// What only netpath promises: the row, the programs, and the settings that keep group frames out.
fn check_policed(call: &Call<'_>, record: &Record, effects: &Effects) -> Result<(), PluginError> {
    let ifname = &record.ifname;
    if let (Some(master), Some(mac), Some(endpoint)) = (&record.master, record.mac, record.endpoint)
        && let Some(id) = master.id.and_then(|id| u16::try_from(id).ok())
    {
        police::check(call.root, id, master.ifindex, mac, endpoint, &record.ips)
            .map_err(|error| failed(ifname, error))?;
    }
    if record.zone.is_some() {
        check_settings(effects, ifname)?;
    }
    Ok(())
}

fn check_settings(effects: &Effects, ifname: &IfName) -> Result<(), PluginError> {
    let read = |setting: &Setting| {
        let key = setting.key(ifname.as_str());
        let has_family = sysctl::exists(&setting.directory(ifname.as_str()));
        let found = sysctl::read(&key).unwrap_or_default();
        (key, found.trim().to_owned(), has_family)
    };
    let guards = [
        (Setting::DropUnicastInMulticastV4, "1"),
        (Setting::DropUnicastInMulticastV6, "1"),
        (Setting::AddrGenMode, "0"),
        (Setting::AcceptRa, "0"),
        (Setting::Autoconf, "0"),
    ];
    let found =
        effects.netns().within(|| guards.iter().map(|(setting, _)| read(setting)).collect::<Vec<_>>())?;
    for ((setting, expected), (key, found, has_family)) in guards.iter().zip(found) {
        // Where the link has no IPv6 there is nothing to guard.
        if has_family || !setting.is_v6() {
            same(format!("sysctl {key}"), &(*expected).to_owned(), &found)?;
        }
    }
    Ok(())
}

/// Without a record the interface may be the standard plugin's, unless the network is policed.
fn check_unrecorded(call: &Call<'_>, effects: &mut Effects, link: &Link) -> Result<(), PluginError> {
    let (master, place) = match call.role {
        Role::Macvlan => locate(effects, &MacvlanConf::from_conf(&call.conf, &call.env.args)?)?,
        Role::Chained => (chained::master_of(effects, link)?, Place::Node),
    };
    match Rules::read(call, master, place)?.zone {
        None => Ok(()),
        Some(_) => Err(PluginError::Check {
            what: format!("record of `{}`", link.name),
            expected: "to be there, for the network has a zone".into(),
            found: "none: delete the pod".into(),
        }),
    }
}
