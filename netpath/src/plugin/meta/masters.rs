//! Holds executed plugins against what the administrator says of the node's masters. A plugin of ours does so itself.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{Call, MetaError, PluginError, resolve::is_in_process};
use crate::{
    kernel::netlink::{Link, Netlink},
    plugin::police::failed,
    police::{self, resolve_master},
    root::Root,
    spec::{Delegate, IfName, Mac, json::View},
    zone::Masters,
};

/// Plugins whose interface has the master's own hardware address, or is the master.
const SHARING: [&str; 2] = ["ipvlan", "host-device"];

/// A configuration that somebody else is executed with.
struct Executed<'a> {
    root: &'a Root,
    ifname: &'a IfName,
    /// The plugin that makes the interface.
    kind: &'a str,
    /// The plugin that is asked for addresses, where not everybody knows that it does nothing else.
    ipam: Option<&'a str>,
    raw: &'a Map<String, Value>,
    /// Whether somebody wrote it who is not the administrator.
    is_tenants: bool,
    nad_namespace: Option<&'a str>,
    pod_namespace: Option<&'a str>,
}

/// Refuses plugin `index` of a network on a master that is not for it.
pub(super) fn refuse(call: &Call<'_>, delegate: &Delegate, index: usize) -> Result<(), PluginError> {
    let plugin = &delegate.conf.plugins[index];
    let is_ours = is_in_process(&plugin.kind);
    if is_ours && plugin.unknown_ipam().is_none() {
        return Ok(());
    }
    Executed {
        root: call.root,
        ifname: &delegate.ifname,
        kind: &plugin.kind,
        ipam: plugin.unknown_ipam(),
        raw: plugin.raw(),
        is_tenants: is_ours || delegate.nad_namespace.is_some(),
        nad_namespace: delegate.nad_namespace.as_deref(),
        pod_namespace: call.env.args.k8s_pod_namespace.as_deref(),
    }
    .refuse()
}

/// Refuses a macvlan of ours whose IPAM is executed with all of its configuration, and could do with a master whatever
/// it likes. Who wrote it is not known where a runtime or another meta-plugin calls.
pub(in crate::plugin) fn refuse_ipam(call: &crate::plugin::Call<'_>) -> Result<(), PluginError> {
    call.ipam.check()?;
    let Some(ipam) = call.ipam.unknown_kind() else { return Ok(()) };
    Executed {
        root: call.root,
        ifname: call.attachment()?.1,
        kind: &call.conf.kind,
        ipam: Some(ipam),
        raw: &call.conf.raw,
        is_tenants: true,
        nad_namespace: call.nad.and_then(|nad| nad.split_once('/')).map(|(namespace, _)| namespace),
        pod_namespace: call.env.args.k8s_pod_namespace.as_deref(),
    }
    .refuse()
}

impl Executed<'_> {
    /// Of a tenant's network whatever names a link of the node counts, wherever it stands and whether or not the plugin
    /// is said to look for it in the pod: which keys a plugin reads is its own affair, and that of its version.
    fn refuse(&self) -> Result<(), PluginError> {
        let view = View::root(self.raw);
        let named = [view.text("master")?, view.text("device")?].into_iter().flatten().next();
        let takes_default = named.is_none() && ["ipvlan", "macvlan", "vlan"].contains(&self.kind);
        let in_container = !self.is_tenants && view.bool("linkInContainer").unwrap_or(false);
        if in_container || (!self.is_tenants && named.is_none() && !takes_default) {
            return Ok(());
        }
        let masters = police::masters(self.root).map_err(|error| failed(self.ifname, error))?;
        let said = Said::of(self.raw);
        // Most tenants' networks on nodes without such masters name nothing that would have to be looked for.
        let is_sharing = SHARING.iter().any(|kind| self.kind == *kind || said.texts.contains(kind));
        let mut node = Netlink::open()?;
        let mut links = Vec::new();
        if named.is_some() || takes_default {
            links.extend(resolve_master(&mut node, named)?);
        }
        if self.is_tenants && (is_sharing || !masters.entries().is_empty()) {
            let all = node.links()?;
            let meant = all.iter().filter(|link| said.means(link));
            links.extend(meant.map(|link| below(link, &all).clone()));
        }
        links.iter().try_for_each(|link| self.refuse_on(is_sharing, &masters, link))
    }

    fn refuse_on(&self, is_sharing: bool, masters: &Masters, master: &Link) -> Result<(), PluginError> {
        let names = master.names();
        let entry = masters.find(&names).map_err(|error| failed(self.ifname, error.into()))?;
        if let Some(entry) = entry {
            entry.check_type(self.kind)?;
            self.ipam.map_or(Ok(()), |ipam| entry.check_type(ipam))?;
            entry.check_namespaces(self.nad_namespace, self.pod_namespace)?;
        }
        if is_sharing && (entry.is_some() || police::is_under_police(self.root, master.index)) {
            let (kind, master) = (self.kind.to_owned(), master.name.clone());
            return Err(MetaError::SharedAddress { kind, master }.into());
        }
        Ok(())
    }
}

/// What a macvlan stands on: what is made on it stands there too.
fn below<'a>(link: &'a Link, all: &'a [Link]) -> &'a Link {
    let lower = link.link.filter(|_| link.is_macvlan() && link.link_netnsid.is_none());
    lower.and_then(|index| all.iter().find(|other| other.index == index)).unwrap_or(link)
}

/// What a configuration says, taken apart.
struct Said<'a> {
    texts: HashSet<&'a str>,
    macs: HashSet<Mac>,
    /// Directories of devices, whole.
    devices: HashSet<PathBuf>,
}

impl<'a> Said<'a> {
    fn of(raw: &'a Map<String, Value>) -> Self {
        let mut texts = HashSet::new();
        for (key, value) in raw {
            // A network may have the name of its master.
            if !["name", "type", "cniVersion"].iter().any(|own| crate::spec::json::is_same_key(own, key)) {
                texts.insert(key.as_str());
                collect(value, &mut texts);
            }
        }
        let macs = texts.iter().filter_map(|text| Mac::parse("", text).ok()).collect();
        let paths = texts.iter().filter(|text| text.starts_with("/sys/"));
        let devices = paths.filter_map(|path| fs::canonicalize(path).ok()).collect();
        Self { texts, macs, devices }
    }

    /// Whether it names the link: by a name, its hardware address, its device on the bus or that one's directory.
    fn means(&self, link: &Link) -> bool {
        let is_named = |name: &String| self.texts.contains(name.as_str());
        let has = |mac: Option<Mac>| mac.is_some_and(|mac| self.macs.contains(&mac));
        is_named(&link.name)
            || link.alt_names.iter().any(is_named)
            || has(link.mac)
            || has(link.permanent_mac)
            || self.means_device(&link.name)
    }

    fn means_device(&self, name: &str) -> bool {
        let Ok(device) = fs::canonicalize(Path::new("/sys/class/net").join(name).join("device")) else {
            return false;
        };
        let on_bus = device.file_name().and_then(|name| name.to_str());
        on_bus.is_some_and(|address| self.texts.contains(address))
            || self.devices.iter().any(|said| said.starts_with(&device) || device.starts_with(said))
    }
}

fn collect<'a>(value: &'a Value, texts: &mut HashSet<&'a str>) {
    match value {
        Value::String(text) => {
            texts.insert(text);
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, texts)),
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            texts.insert(key);
            collect(value, texts);
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
