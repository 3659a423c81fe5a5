//! ADD behind another plugin: polices the macvlan that `prevResult` names.

use serde_json::Value;

use super::{
    Call, PluginError,
    add::record,
    del::delete_row,
    police::{Attachment, Entered, Rules, leave},
};
use crate::{
    causes::full,
    exec::{self, Effects},
    kernel::{
        netlink::{Link, MacVlanMode, Route},
        netns::Netns,
    },
    plan::{self, Guard, Place, Setting, Step},
    spec::{Acd, CniResult, IfName, IpConfig},
    state::{self, Kind, Phase, Record, Records},
    zone::{Ipvlan, Refusal, ZoneConf},
};

/// Polices the interface and passes `prevResult` on as it came.
///
/// The interface is up already. It is set down while its guards and its row are put in place, so that what
/// it sends afterwards is judged; its routes, which the kernel drops with the link, are added again.
pub(super) fn add(call: &Call<'_>) -> Result<Value, PluginError> {
    let (container_id, ifname) = call.attachment()?;
    let prev = call.conf.prev_result.as_ref().ok_or(PluginError::NoNetworks)?;
    let acd = call.conf.acd()?;
    let path = call.env.netns.as_deref().ok_or(PluginError::NoAttachment)?;
    let mut effects = Effects::open(Netns::open(path)?)?;
    let link = effects.link(ifname.as_str())?;
    let ips = ips_of(prev, ifname)?;
    if is_ipvlan(&link) {
        let rules = exempt(call, &mut effects, &link)?;
        if acd == Acd::On {
            return Err(PluginError::AcdIpvlan { ifname: ifname.to_string() });
        }
        rules.check_addresses(call, &ips)?;
        return Ok(prev.to_json(call.version())?);
    }
    must_be_macvlan(&link)?;
    let master = master_of(&mut effects, &link)?;
    let rules = Rules::read(call, master, Place::Node)?;
    rules.check_addresses(call, &ips)?;
    // Before anything is changed: a version that cannot express the result fails every time.
    let result = prev.to_json(call.version())?;
    let mut record = record(call, &effects, &rules, link.mac)?;
    record.ips = ips.iter().map(|ip| ip.address).collect();
    let records = Records::new(call.root);
    let earlier = records.read(container_id, ifname)?;
    match &earlier {
        // We stand behind ourselves: the interface is of our own making, and it is ours to remove.
        Some(made) if made.kind == Kind::Macvlan && made.netns == record.netns && made.mac == record.mac => {
            if rules.zone.is_none() && made.zone.is_some() {
                // Being named twice must not make anything laxer.
                if acd == Acd::On
                    && let Err(failed) = run(&mut effects, plan::probe(ifname, &ips))
                {
                    // It must not go on with an address that is somebody else's.
                    return Err(undone(failed, lower(&mut effects, link.index)));
                }
                return Ok(result);
            }
            record = Record {
                kind: Kind::Macvlan,
                conf: made.conf.clone(),
                host_local_dir: made.host_local_dir.clone(),
                ..record
            };
        }
        // Nobody could find its row any more once this record is in the place of that.
        Some(other) if other.mac != record.mac => delete_row(call, other)?,
        Some(_) | None => {}
    }
    records.write(&record)?;
    match police(call, &mut effects, &rules, &link, &ips) {
        Ok(entered) => {
            record.endpoint = Some(entered.endpoint);
            record.master =
                record.master.map(|master| state::Master { id: Some(entered.master.into()), ..master });
            record.phase = Phase::Ready;
            records.write(&record)?;
            Ok(result)
        }
        // With a row left behind the record stays: DEL finds in it what to end.
        Err(failed @ PluginError::Undo { .. }) => Err(failed),
        // The interface stays down: the runtime calls DEL on the whole list, and until then it must not talk.
        Err(failed) => {
            let undo = match earlier {
                Some(earlier) => records.write(&earlier),
                None => records.remove(container_id, ifname).map(drop),
            };
            Err(undone(failed, undo.map_err(PluginError::from)))
        }
    }
}

fn police(
    call: &Call<'_>,
    effects: &mut Effects,
    rules: &Rules,
    link: &Link,
    ips: &[IpConfig],
) -> Result<Entered, PluginError> {
    let ifname = call.attachment()?.1;
    let acd = call.conf.acd()?;
    let mac = link.mac.ok_or_else(|| PluginError::NotInResult { ifname: ifname.to_string() })?;
    let routes: Vec<Route> = effects.sandbox().routes(Some(link.index))?;
    let mut undo = exec::UndoStack::default();
    let guard = if rules.zone.is_some() { Guard::Policed } else { Guard::None };
    // First the settings, since IPv6 addresses survive the link's going down only with one of them.
    let mut settings = plan::prepare(ifname, link.mtu, ips, guard, acd)?;
    settings.retain(|step| matches!(step, Step::SetSysctl { .. }));
    exec::run(effects, &settings, &mut undo)?;
    if acd == Acd::On {
        // It has its addresses already, and would announce them when it goes up.
        run(effects, [arp_notify(ifname, "0")])?;
    }
    effects.sandbox().set_down(link.index)?;
    let cookie = effects.cookie();
    let attachment =
        Attachment { mac, ips, cookie, passthru: link.macvlan_mode == Some(MacVlanMode::Passthrough) };
    let entered = rules.enter(call, effects.node(), &attachment)?;
    let Err(failed) = raise(call, effects, link.index, &routes, ips) else { return Ok(entered) };
    // The link before its row: a pod must not send without one.
    let down = lower(effects, link.index);
    Err(undone(failed, down.and_then(|()| leave(call, &entered))))
}

/// Sets the link down, if it is still there.
fn lower(effects: &mut Effects, index: u32) -> Result<(), PluginError> {
    match effects.sandbox().set_down(index) {
        Err(error) if !error.is_absent() => Err(error.into()),
        _ => Ok(()),
    }
}

/// What failed, and with it what could not be undone.
fn undone(failed: PluginError, undo: Result<(), PluginError>) -> PluginError {
    match undo {
        Ok(()) => failed,
        Err(error) => PluginError::Undo { failed: Box::new(failed), left: vec![full(&error)] },
    }
}

fn run(effects: &mut Effects, steps: impl IntoIterator<Item = Step>) -> Result<(), PluginError> {
    let steps: Vec<_> = steps.into_iter().collect();
    Ok(exec::run(effects, &steps, &mut exec::UndoStack::default())?)
}

fn arp_notify(ifname: &IfName, value: &str) -> Step {
    Step::SetSysctl { ifname: ifname.to_string(), setting: Setting::ArpNotify, value: value.to_owned() }
}

/// Sets the link up, looks whether its addresses are its own if that is asked for, and adds the routes again that
/// went with its being down.
fn raise(
    call: &Call<'_>,
    effects: &mut Effects,
    index: u32,
    routes: &[Route],
    ips: &[IpConfig],
) -> Result<(), PluginError> {
    effects.sandbox().set_up(index)?;
    if call.conf.acd()? == Acd::On {
        let ifname = call.attachment()?.1;
        run(effects, plan::probe(ifname, ips))?;
        run(effects, [arp_notify(ifname, "1")].into_iter().chain(plan::announce(ifname, ips)))?;
    }
    if ips.iter().any(|ip| ip.gateway.is_some_and(|gateway| gateway.is_ipv6())) {
        effects.wait_dad(index, plan::DAD)?;
    }
    let sandbox = effects.sandbox();
    let here = sandbox.routes(Some(index))?;
    for route in routes {
        if !here.contains(route) {
            match sandbox.add_route(route) {
                // The kernel made it again itself, with another attribute.
                Err(error) if error.errno() == Some(libc::EEXIST) => {}
                result => result?,
            }
        }
    }
    Ok(())
}

fn must_be_macvlan(link: &Link) -> Result<(), PluginError> {
    match link.kind.as_deref() {
        Some("macvlan") => Ok(()),
        kind => Err(PluginError::NotMacvlan {
            ifname: link.name.clone(),
            kind: kind.map_or_else(|| "a device".to_owned(), |kind| format!("of kind {kind}")),
        }),
    }
}

pub(super) fn is_ipvlan(link: &Link) -> bool {
    link.kind.as_deref() == Some("ipvlan")
}

/// The rules of a master that an ipvlan may use unpoliced; else why it may not. It gets no row and no record:
/// there is nothing of ours to end.
pub(super) fn exempt(call: &Call<'_>, effects: &mut Effects, link: &Link) -> Result<Rules, PluginError> {
    let master = master_of(effects, link)?;
    let rules = Rules::read(call, master, Place::Node)?;
    let (master, ifname) = (rules.master.link.name.clone(), link.name.clone());
    match &rules.master.entry {
        Some(entry) if entry.ipvlan() == Ipvlan::Unpoliced => match ZoneConf::from_conf(&call.conf.raw)? {
            None => Ok(rules),
            Some(_) => Err(Refusal::IpvlanZone { master, ifname }.into()),
        },
        _ => Err(Refusal::Ipvlan { master, ifname }.into()),
    }
}

/// The master, which must be in the node's own namespace.
pub(super) fn master_of(effects: &mut Effects, link: &Link) -> Result<Link, PluginError> {
    let missing =
        || PluginError::NoMaster { name: format!("(lower link of `{}`)", link.name), place: "on the node" };
    // An index alone could be that of quite another link of ours.
    if effects.place_of_master(link)? != Some(Place::Node) {
        return Err(missing());
    }
    let index = link.link.ok_or_else(missing)?;
    let master = effects.node().link_by_index(index);
    match master {
        Ok(master) => Ok(master),
        Err(error) if error.is_absent() => Err(missing()),
        Err(error) => Err(error.into()),
    }
}

/// The addresses `prevResult` gives the interface.
fn ips_of(prev: &CniResult, ifname: &IfName) -> Result<Vec<IpConfig>, PluginError> {
    let index = prev
        .interfaces
        .iter()
        .position(|interface| interface.name == ifname.as_str() && interface.sandbox.is_some())
        .ok_or_else(|| PluginError::NotInResult { ifname: ifname.to_string() })?;
    Ok(prev.ips.iter().filter(|ip| ip.interface.is_none_or(|i| i == index)).cloned().collect())
}
