//! Interfaces on a policed master that no attachment explains: what a pod with NET_ADMIN can make.
//!
//! A macvlan in mode `source` takes frames of other pods, and no program on the master can stop it: the kernel hands
//! frames out behind every hook. It can be seen, though: in the namespaces of the attachments, and by its MAC in the
//! master's list of addresses wherever it is.

use std::{collections::HashSet, path::Path};

use super::view::View;
use crate::{
    kernel::{
        netlink::{Link, MacVlanMode, Netlink},
        netns::{self, Identity, Netns},
    },
    spec::Mac,
    state::{Kind, Phase, Record},
};

/// A master of the caller's namespace, as far as this module wants to know it.
pub(super) struct Master<'a> {
    pub(super) id: u16,
    pub(super) name: &'a str,
    pub(super) ifindex: u32,
    /// MACs that the host sends with.
    pub(super) host: Vec<Mac>,
    /// Whether frames with a MAC that nobody has are dropped, be it only those with a claimed address.
    pub(super) drops_unknown: bool,
}

/// Looks at the namespaces of all attachments, and at the addresses that the masters receive; returns sentences that
/// somebody should read.
///
/// A namespace that cannot be entered is gone, or about to go: its interfaces go with it.
pub(super) fn look(view: &View, masters: &[Master<'_>], node: &mut Netlink) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    let records: Vec<&Record> =
        view.endpoints.iter().filter_map(|row| row.record.as_ref()).chain(&view.rowless).collect();
    let here = Netns::open(Path::new("/proc/thread-self/ns/net"))?;
    let mut seen = HashSet::new();
    let mut explained: HashSet<Mac> = HashSet::new();
    for record in &records {
        let identity = Identity { dev: record.netns.dev, ino: record.netns.inode };
        if !seen.insert(identity) {
            continue;
        }
        let own: Vec<_> = records.iter().filter(|other| other.netns.inode == identity.ino).copied().collect();
        for (link, master) in macvlans(&record.netns.path, identity, masters, &here) {
            explained.extend(link.mac);
            found.extend(intruder(&link, master, &own));
        }
    }
    explained.extend(records.iter().filter_map(|record| record.mac));
    // Where unknown frames pass, somebody unknown is expected.
    for master in masters.iter().filter(|master| master.drops_unknown) {
        let rows = view.endpoints.iter().filter(|row| row.key.master == master.id);
        let rows: HashSet<Mac> = rows.map(|row| Mac::new(row.key.mac)).collect();
        let known = |mac: &Mac| rows.contains(mac) || explained.contains(mac) || master.host.contains(mac);
        for mac in node.unicast_list(master.ifindex)?.iter().filter(|mac| !known(mac)) {
            let name = master.name;
            found.push(format!(
                "{name}: a device with MAC {mac} receives on it and is neither the host's nor an attachment's: look for a \
                 macvlan on {name} in other network namespaces"
            ));
        }
    }
    Ok(found)
}

/// The macvlans of a namespace that stand on one of these masters; none where it is not what was recorded.
fn macvlans<'a>(
    path: &Path,
    recorded: Identity,
    masters: &'a [Master<'a>],
    node: &Netns,
) -> Vec<(Link, &'a Master<'a>)> {
    let links = || -> Option<Vec<(Link, &Master<'_>)>> {
        let netns = Netns::open(path).ok()?;
        if netns.identity().ok()? != recorded || netns::is_same_as_current(path).ok()? {
            return None;
        }
        let mut netlink = Netlink::in_netns(&netns).ok()?;
        let node = netlink.namespace_id(node).ok()?;
        let master = |link: &Link| {
            let below = link.is_macvlan() && link.link_netnsid.is_some() && link.link_netnsid == node;
            masters.iter().find(|master| below && link.link == Some(master.ifindex))
        };
        Some(
            netlink.links().ok()?.into_iter().filter_map(|link| master(&link).map(|on| (link, on))).collect(),
        )
    };
    links().unwrap_or_default()
}

/// What is wrong with a macvlan in the namespace of these attachments.
fn intruder(link: &Link, master: &Master<'_>, records: &[&Record]) -> Option<String> {
    let (ifname, on) = (&link.name, master.name);
    let pod = records.first().map(|record| record.pod_name())?;
    let mode = mode_name(link.macvlan_mode);
    let own = records.iter().find(|record| {
        record.ifname.to_string() == *ifname
            && record.master.as_ref().is_none_or(|recorded| recorded.ifindex == master.ifindex)
    });
    let Some(own) = own else {
        let harm = match link.macvlan_mode {
            Some(MacVlanMode::Source) => "it can take frames that are for other pods",
            _ => "it receives what its MAC is sent, past every zone",
        };
        return Some(format!(
            "{pod} has `{ifname}`, a macvlan in {mode} mode on {on} that no attachment explains: {harm}; delete the pod, \
             and let no pod with NET_ADMIN have this network"
        ));
    };
    let recorded = own.conf.get("mode").and_then(|mode| mode.as_str()).filter(|mode| !mode.is_empty());
    let recorded = match own.kind {
        Kind::Macvlan => Some(recorded.unwrap_or("bridge")),
        // Somebody else's plugin made it, in a mode that is not ours to know.
        Kind::Chained => recorded.or((mode != "source").then_some(mode)),
    };
    if recorded != Some(mode) {
        let was = recorded.unwrap_or("another");
        return Some(format!(
            "{pod}: `{ifname}` on {on} is in {mode} mode and was made in {was} mode: somebody with NET_ADMIN in the pod \
             changed it; delete the pod"
        ));
    }
    match (own.mac, link.mac) {
        (Some(was), Some(is)) if was != is && own.phase == Phase::Ready => Some(format!(
            "{pod}: `{ifname}` on {on} has MAC {is} and was given {was}: somebody with NET_ADMIN in the pod changed it, \
             and its frames are nobody's; delete the pod"
        )),
        _ => None,
    }
}

/// The word that `ip link` and CNI have for a mode.
fn mode_name(mode: Option<MacVlanMode>) -> &'static str {
    match mode {
        Some(MacVlanMode::Private) => "private",
        Some(MacVlanMode::Vepa) => "vepa",
        Some(MacVlanMode::Bridge) => "bridge",
        Some(MacVlanMode::Passthrough) => "passthru",
        Some(MacVlanMode::Source) => "source",
        Some(_) | None => "unknown",
    }
}
