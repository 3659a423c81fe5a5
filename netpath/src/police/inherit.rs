//! Inheritance: an interface that Multus or a runtime had made, by a plugin that knows no zones, becomes an attachment of
//! ours when its master comes under police. What it was made by stands in the caches that libcni keeps.

use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::Value;

use super::{Network, apply::recorded_zone, neighbours};
use crate::{
    kernel::{
        netlink::{Link, Netlink},
        netns::{self, Netns},
    },
    plugin::CHAINED,
    root::Root,
    spec::{CniArgs, CniResult, ContainerId, IfName, Mac, json::View},
    state::{self, CachedResult, Kind, Master, Phase, Pod, Record, ResultCache},
    zone::Masters,
};

/// Where libcni keeps results, for Multus and for runtimes.
const CACHES: [&str; 2] = ["var/lib/cni/multus", "var/lib/cni"];

/// What was made for living sandboxes, by whomever; cached results that nobody can read are none.
pub(super) fn known(root: &Root) -> Vec<(ContainerId, IfName, CachedResult)> {
    let mut all = Vec::new();
    for dir in CACHES {
        match ResultCache::new(&root.join(dir)).all() {
            Ok(found) => all.extend(found),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cached results are not looked at");
            }
        }
    }
    all
}

/// The record of the interface with this MAC, if one of `known` made it on `master` and it is there as was said.
///
/// A cache that stayed behind may tell of an interface that is long gone, so the interface itself is looked at.
pub(super) fn inherit(
    root: &Root,
    node: &mut Netlink,
    masters: &Masters,
    master: &Link,
    mac: Mac,
    known: &[(ContainerId, IfName, CachedResult)],
) -> Option<Record> {
    let found = known.iter().find_map(|(container_id, ifname, cached)| {
        let result = CniResult::parse(crate::spec::CniVersion::V1_0_0, cached.result.as_ref()?).ok()?;
        let made = |name: &str| {
            let its = |it: &&crate::spec::Interface| it.name == name && it.sandbox.is_some();
            result
                .interfaces
                .iter()
                .find(its)
                .and_then(|it| it.mac.as_deref())
                .and_then(|mac| Mac::parse("mac", mac).ok())
        };
        let is_it = made(ifname.as_str()) == Some(mac);
        is_it.then_some((container_id, ifname, cached, result))
    });
    let (container_id, ifname, cached, result) = found?;
    let conf: Value = serde_json::from_slice(&cached.config).ok()?;
    let network = Network::of_conf(conf.as_object()?, None).ok()?;
    let resolved = match network.resolve(masters, node) {
        Ok(resolved) if resolved.link.index == master.index => resolved,
        Ok(_) => return None,
        Err(error) => {
            // It has to be known all the same, or it would be cut off: as somebody else's.
            tracing::warn!(network = %network.conf.name, error = &error as &dyn std::error::Error,
                "an interface that was made by it is let pass");
            return None;
        }
    };
    // libcni before 1.1 (containerd 1.6) writes no path of the namespace; the result has it.
    let path = match cached.netns.as_str() {
        "" => {
            let mut own = result.interfaces.iter().filter(|it| it.name == ifname.as_str());
            own.find_map(|it| it.sandbox.clone())?
        }
        path => path.to_owned(),
    };
    let netns = match Netns::open(Path::new(&path)) {
        Ok(netns) => netns,
        Err(error) => {
            tracing::warn!(network = %network.conf.name, error = &error as &dyn std::error::Error,
                "an interface that was made by it is let pass, since its namespace cannot be opened");
            return None;
        }
    };
    let identity = netns.identity().ok().filter(|identity| netns::is_namespace(*identity))?;
    let link = match Netlink::in_netns(&netns).and_then(|mut pod| pod.find_link(ifname.as_str())) {
        Ok(link) => link?,
        Err(error) => {
            tracing::warn!(network = %network.conf.name, netns = %netns.path().display(),
                error = &error as &dyn std::error::Error,
                "an interface that was made by it is let pass, since its namespace cannot be looked into");
            return None;
        }
    };
    if link.mac != Some(mac) || !link.is_macvlan() {
        return None;
    }
    let pairs: Vec<String> = cached.args.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let args = CniArgs::parse_leniently(&pairs.join(";"));
    let pod = match (args.k8s_pod_namespace, args.k8s_pod_name) {
        (Some(namespace), Some(name)) => Some(Pod { namespace, name, uid: args.k8s_pod_uid }),
        _ => None,
    };
    let name = network.conf.name.clone();
    let zone = resolved.zone.as_ref().map(|zone| recorded_zone(name.as_str(), zone)).transpose().ok()?;
    let record = Record {
        container_id: container_id.clone(),
        ifname: ifname.clone(),
        phase: Phase::Ready,
        kind: if network.conf.kind == CHAINED { Kind::Chained } else { Kind::Macvlan },
        created: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        boot_id: state::boot_id().ok()?,
        netns: state::Netns {
            path: netns.path().to_owned(),
            dev: identity.dev,
            inode: identity.ino,
            cookie: netns::cookie_of(netns.path()).ok().flatten(),
        },
        host_local_dir: host_local_dir(root, &network),
        network: name,
        nad: None,
        pod,
        conf: network.conf.raw,
        master: Some(Master { name: master.name.clone(), ifindex: master.index, id: None }),
        mac: Some(mac),
        endpoint: None,
        zone,
        ips: result.ips.iter().map(|ip| ip.address).collect(),
    };
    (!neighbours::is_netns_gone(&record.netns)).then_some(record)
}

/// Where its addresses are reserved, if by `host-local`.
fn host_local_dir(root: &Root, network: &Network) -> Option<std::path::PathBuf> {
    let view = View::root(&network.conf.raw);
    let ipam = view.object("ipam").ok()??;
    if ipam.text("type").ok()?? != "host-local" {
        return None;
    }
    let parent = ipam.text("dataDir").ok()?.map(|dir| root.join(dir));
    Some(parent.unwrap_or_else(|| root.host_local()).join(network.conf.name.as_str()))
}
