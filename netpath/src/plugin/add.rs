//! ADD of a macvlan.

use std::{
    net::IpAddr,
    time::{SystemTime, UNIX_EPOCH},
};

use nix::net::if_::if_indextoname;
use serde_json::Value;

use super::{
    Call, PluginError,
    del::delete_row,
    meta::refuse_ipam,
    police::{Attachment, Entered, Rules, failed, leave},
};
use crate::{
    causes::full,
    exec::{self, Effects, UndoStack},
    ipam::{self, IpamResult},
    kernel::{
        netlink::{Link, Netlink},
        netns::Netns,
    },
    plan::{self, Guard, Place},
    police::{recorded_zone, resolve_master},
    spec::{CniResult, Interface, IpamConf, Mac, MacvlanConf, MacvlanMode},
    state::{self, Kind, Phase, Pod, Record, Records},
};

/// What has been done so far, for the way back.
#[derive(Default)]
struct Done {
    undo: UndoStack,
    /// What an ADD of the same attachment left that was never deleted.
    earlier: Option<Record>,
    recorded: bool,
    allocated: bool,
    entered: Option<Entered>,
}

/// Makes, addresses, polices and raises the interface, or leaves everything as it was.
pub(super) fn add(call: &Call<'_>) -> Result<Value, PluginError> {
    let macvlan = MacvlanConf::from_conf(&call.conf, &call.env.args)?;
    refuse_ipam(call)?;
    let path = call.env.netns.as_deref().ok_or(PluginError::NoAttachment)?;
    let mut effects = Effects::open(Netns::open(path)?)?;
    let (master, place) = locate(&mut effects, &macvlan)?;
    let macvlan = MacvlanConf { link_in_container: place == Place::Sandbox, ..macvlan };
    let rules = Rules::read(call, master, place)?;
    if rules.zone.is_some() && rules.is_elsewhere() {
        return Err(PluginError::MasterElsewhere { name: rules.master.link.name.clone() });
    }
    if rules.zone.is_some() && place == Place::Sandbox {
        return Err(PluginError::ZoneInContainer);
    }
    if rules.zone.is_some() && macvlan.mode == MacvlanMode::Passthru {
        refuse_the_nodes_own(&mut effects, &rules)?;
    }
    if matches!(call.ipam, IpamConf::None) {
        // Whether the version can express it does not depend on anything that is still to be done.
        result(call, None, IpamResult::default()).to_json(call.version())?;
    }
    let mut done = Done::default();
    match attach(call, &macvlan, &mut effects, &rules, &mut done) {
        Ok(result) => Ok(result),
        Err(failed) => Err(take_back(call, &mut effects, done, failed)),
    }
}

/// The master, and where it really is.
///
/// In the pod it may be a macvlan of the node's link. The kernel makes the new one stand on that link too: it
/// would be a second way onto the wire, past the zone of the first, if it were not treated as what it is.
pub(super) fn locate(effects: &mut Effects, conf: &MacvlanConf) -> Result<(Link, Place), PluginError> {
    let place = if conf.link_in_container { Place::Sandbox } else { Place::Node };
    let master = find_master(effects.place(place), conf.master.as_deref(), place)?;
    if let (Place::Sandbox, true, Some(below), Some(_)) =
        (place, master.is_macvlan(), master.link, master.link_netnsid)
        && effects.place_of_master(&master)? == Some(Place::Node)
    {
        return Ok((effects.node().link_by_index(below)?, Place::Node));
    }
    Ok((master, place))
}

/// The master, which must exist.
fn find_master(netlink: &mut Netlink, name: Option<&str>, place: Place) -> Result<Link, PluginError> {
    let place = match place {
        Place::Node => "on the node",
        Place::Sandbox => "in the pod",
    };
    resolve_master(netlink, name)?.ok_or_else(|| match name.filter(|name| !name.is_empty()) {
        Some(name) => PluginError::NoMaster { name: name.to_owned(), place },
        None => PluginError::NoDefaultRoute { place },
    })
}

/// A passthru interface has the master's MAC, so its zone would judge what the node sends by that master: one
/// that the node has an address on is not for a pod.
fn refuse_the_nodes_own(effects: &mut Effects, rules: &Rules) -> Result<(), PluginError> {
    let link = &rules.master.link;
    let addresses = effects.node().addresses(Some(link.index))?;
    let used = addresses.iter().map(|it| it.address.ip()).find(|address| match address {
        IpAddr::V4(_) => true,
        IpAddr::V6(v6) => !v6.is_unicast_link_local(),
    });
    match used {
        Some(address) => Err(PluginError::PassthruOfNode { name: link.name.clone(), address }),
        None => Ok(()),
    }
}

fn attach(
    call: &Call<'_>,
    macvlan: &MacvlanConf,
    effects: &mut Effects,
    rules: &Rules,
    done: &mut Done,
) -> Result<Value, PluginError> {
    let (container_id, ifname) = call.attachment()?;
    let acd = call.conf.acd()?;
    let link = &rules.master.link;
    let plan_master = plan::Master { name: link.name.clone(), index: link.index, mtu: link.mtu };
    // Chosen here and not by the kernel, so that the record knows the row before there is one. A passthru
    // interface has its master's MAC; another one would be set on the master too.
    let macvlan = match macvlan.mode {
        MacvlanMode::Passthru => macvlan.clone(),
        _ => MacvlanConf { mac: Some(macvlan.mac.unwrap_or_else(random_mac)), ..macvlan.clone() },
    };
    let steps = plan::create(&macvlan, ifname, &plan_master)?;
    if effects.sandbox().find_link(ifname.as_str())?.is_some() {
        return Err(PluginError::Exists { ifname: ifname.to_string() });
    }
    let mac = match macvlan.mode {
        MacvlanMode::Passthru => link.mac,
        _ => macvlan.mac,
    };
    let mut record = record(call, effects, rules, mac)?;
    let records = Records::new(call.root);
    done.earlier = records.read(container_id, ifname)?;
    if let Some(earlier) = &done.earlier {
        // Its link is gone. Nobody could find its row any more once this record is in the place of that.
        delete_row(call, earlier)?;
    }
    records.write(&record)?;
    done.recorded = true;
    exec::run(effects, &steps, &mut done.undo)?;
    let made = effects.link(ifname.as_str())?;
    let mac = made.mac.or(mac);

    let counted = rules.is_counted(call) && !macvlan.link_in_container && !rules.is_elsewhere();
    let guard = if rules.zone.is_some() { Guard::Policed } else { Guard::None };
    let passthru = macvlan.mode == MacvlanMode::Passthru;
    let cookie = record.netns.cookie;
    if let (true, true, Some(mac)) = (counted, call.has_dhcp(), mac) {
        // The client raises the link to ask for its address, so it is policed before it has one.
        exec::run(effects, &plan::prepare(ifname, made.mtu, &[], guard, acd)?, &mut done.undo)?;
        let attachment = Attachment { mac, ips: &[], cookie, passthru };
        done.entered = Some(rules.enter(call, effects.node(), &attachment)?);
    }
    let allocated = allocate(call, effects, rules, done)?;
    rules.check_addresses(call, &allocated.ips)?;
    record.ips = allocated.ips.iter().map(|ip| ip.address).collect();
    if !allocated.ips.is_empty() || guard != Guard::None {
        exec::run(effects, &plan::prepare(ifname, made.mtu, &allocated.ips, guard, acd)?, &mut done.undo)?;
    }
    if let (true, Some(mac)) = (counted, mac) {
        let attachment = Attachment { mac, ips: &allocated.ips, cookie, passthru };
        let entered = match done.entered {
            Some(entered) => rules.readdress(call, entered, &attachment)?,
            None => rules.enter(call, effects.node(), &attachment)?,
        };
        done.entered = Some(entered);
        record.endpoint = Some(entered.endpoint);
        record.master =
            record.master.map(|master| state::Master { id: Some(entered.master.into()), ..master });
    }
    let existing = effects.other_routes(ifname.as_str(), &allocated.routes)?;
    let steps = plan::activate(ifname, &allocated.ips, &allocated.routes, &existing, acd)?;
    exec::run(effects, &steps, &mut done.undo)?;
    // A result that the configuration's version cannot express is an error like any other.
    let result = result(call, mac, allocated).to_json(call.version())?;
    record.phase = Phase::Ready;
    records.write(&record)?;
    Ok(result)
}

/// Asks IPAM for addresses. None of them may be one that the node itself has, nor, where the interface is
/// policed, one that a living attachment to the same master has.
fn allocate(
    call: &Call<'_>,
    effects: &mut Effects,
    rules: &Rules,
    done: &mut Done,
) -> Result<IpamResult, PluginError> {
    if matches!(call.ipam, IpamConf::None) {
        return Ok(IpamResult::default());
    }
    let (container_id, ifname) = call.attachment()?;
    let own = effects.node().addresses(None)?;
    let others = rules.neighbours(call);
    let refuse = |address: IpAddr| match own.iter().find(|own| own.address.ip() == address) {
        Some(own) => Some(format!("is the node's own, on `{}`", name_of(own.index).unwrap_or_default())),
        None => others.holder(address).map(|holder| format!("is that of {holder}")),
    };
    let request = ipam::Request { network: call.network(), container_id, ifname };
    let mut allocated = ipam::add(&request, &refuse)?;
    done.allocated = true;
    if allocated.ips.is_empty() {
        return Err(PluginError::NoAddresses);
    }
    for ip in &mut allocated.ips {
        ip.interface = Some(0);
    }
    Ok(allocated)
}

fn result(call: &Call<'_>, mac: Option<Mac>, allocated: IpamResult) -> CniResult {
    let interface = Interface {
        name: call.env.ifname.as_ref().map(ToString::to_string).unwrap_or_default(),
        mac: mac.map(|mac| mac.to_string()),
        mtu: None,
        sandbox: call.env.netns.as_ref().map(|path| path.display().to_string()),
        socket_path: None,
        pci_id: None,
    };
    CniResult {
        interfaces: vec![interface],
        ips: allocated.ips,
        routes: allocated.routes,
        dns: call.conf.dns.clone(),
    }
}

/// The record of an attachment that begins.
pub(super) fn record(
    call: &Call<'_>,
    effects: &Effects,
    rules: &Rules,
    mac: Option<Mac>,
) -> Result<Record, PluginError> {
    let (container_id, ifname) = call.attachment()?;
    let netns = effects.netns();
    let identity = netns.identity()?;
    let args = &call.env.args;
    let link = &rules.master.link;
    let zone = rules.zone.as_ref().map(|zone| recorded_zone(call.conf.name.as_str(), zone));
    Ok(Record {
        container_id: container_id.clone(),
        ifname: ifname.clone(),
        phase: Phase::Adding,
        kind: match call.role {
            super::Role::Macvlan => Kind::Macvlan,
            super::Role::Chained => Kind::Chained,
        },
        created: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        boot_id: state::boot_id()?,
        netns: state::Netns {
            path: netns.path().to_owned(),
            dev: identity.dev,
            inode: identity.ino,
            cookie: effects.cookie(),
        },
        network: call.conf.name.clone(),
        nad: call.nad.map(str::to_owned),
        pod: match (&args.k8s_pod_namespace, &args.k8s_pod_name) {
            (Some(namespace), Some(name)) => {
                Some(Pod { namespace: namespace.clone(), name: name.clone(), uid: args.k8s_pod_uid.clone() })
            }
            _ => None,
        },
        conf: call.conf.raw.clone(),
        master: Some(state::Master { name: link.name.clone(), ifindex: link.index, id: None }),
        mac,
        endpoint: None,
        zone: zone.transpose().map_err(|error| failed(ifname, error))?,
        ips: Vec::new(),
        host_local_dir: ipam::host_local_dir(&call.network()),
    })
}

/// The name of a link of the node, whose namespace is the calling thread's.
fn name_of(index: u32) -> Option<String> {
    if_indextoname(index).ok()?.into_string().ok()
}

/// A locally administered unicast address.
fn random_mac() -> Mac {
    use std::hash::{BuildHasher, RandomState};
    // Seeded by the kernel for every process; unique is enough here, secret it need not be.
    let random = RandomState::new().hash_one(std::process::id()).to_ne_bytes();
    Mac::new([random[0] & 0xfe | 2, random[1], random[2], random[3], random[4], random[5]])
}

/// Undoes what was done, last first, attempts all of it, and reports both.
fn take_back(call: &Call<'_>, effects: &mut Effects, done: Done, failed: PluginError) -> PluginError {
    let mut left = Vec::new();
    let Ok((container_id, ifname)) = call.attachment() else { return failed };
    let release = |left: &mut Vec<String>| {
        let request = ipam::Request { network: call.network(), container_id, ifname };
        if done.allocated
            && let Err(error) = ipam::del(&request)
        {
            left.push(full(&error));
        }
    };
    // A client gives its lease back over the interface.
    if call.has_dhcp() {
        release(&mut left);
    }
    // The link before its row, which stays if that does: a pod must not send without one.
    let unwound: Vec<_> = exec::unwind(effects, done.undo).into_iter().map(|error| full(&error)).collect();
    let is_gone = unwound.is_empty();
    left.extend(unwound);
    if let Some(entered) = &done.entered
        && is_gone
        && let Err(error) = leave(call, entered)
    {
        left.push(full(&error));
    }
    if !call.has_dhcp() {
        release(&mut left);
    }
    // With something left behind the record stays: DEL, which comes next, finds in it what to end.
    if done.recorded && left.is_empty() {
        let records = Records::new(call.root);
        let restored = match &done.earlier {
            Some(earlier) => records.write(earlier),
            None => records.remove(container_id, ifname).map(drop),
        };
        left.extend(restored.err().map(|error| full(&error)));
    }
    match left.is_empty() {
        true => failed,
        false => PluginError::Undo { failed: Box::new(failed), left },
    }
}
