//! A node that netpath polices: its root directory, the pod that its plugin added, and as many more rows as asked for.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use netpath::{kernel::bpf::maps::Maps, police, root::Root};
use netpath_ebpf::abi::{Counters, EndpointKey};
use serde_json::json;

use super::lab::{GATEWAY, INTERFACE, POD, Site, ZONE, mac, text};
use crate::{
    frames::pod_mac,
    netns::Namespace,
    root::{Directory, MASTER, write},
};

/// Endpoints that a node's maps have room for at least, so that small nodes differ only in what is in the maps.
const ROOM: u32 = 4096;

/// The node; unmounted and removed with it.
pub(super) struct Policed {
    maps: Maps,
    id: u32,
    directory: Directory,
    /// Where the master is.
    pub(super) netns: Namespace,
}

impl Policed {
    /// Has the plugin add the pod of `site`, whose master is in `netns`, and puts rows in for the other pods.
    pub(super) fn new(binary: &Path, netns: Namespace, site: &Site, pods: u32) -> Result<Self> {
        let directory = Directory::new("node")?;
        let root = directory.root();
        write(&root.settings(), &json!({ "endpoints": (pods + 8).max(ROOM) }).to_string())?;
        let masters = json!({ &*site.master: { "unknownSource": "drop", "xdp": "native" } });
        write(&root.masters(), &masters.to_string())?;
        let mut local: Vec<String> = (1..8).map(|number| format!("10.{number}.0.0/24")).collect();
        local.push(ZONE.to_owned());
        let conf = json!({
            "cniVersion": "1.0.0", "name": "bench", "type": "macvlan", "master": site.master, "mode": "bridge",
            "mac": text(mac()), "zone": { "policy": "private", "local": local },
            "ipam": { "type": "static", "addresses": [{ "address": format!("{POD}/24"), "gateway": GATEWAY }] },
        });
        let mut add = Command::new(binary);
        add.env_clear()
            .env("NETPATH_ROOT", root.path())
            .env("CNI_COMMAND", "ADD")
            .env("CNI_CONTAINERID", "bench")
            .env("CNI_NETNS", site.pod.path())
            .env("CNI_IFNAME", INTERFACE)
            .env("CNI_PATH", root.join("bin"));
        netns.run(&mut add, &conf.to_string()).context("ADD")?;
        directory.must_be_attached(&netns, &site.master)?;
        let mut maps = police::maps(root)?.context("ADD left no maps")?;
        let row = maps.endpoint(EndpointKey::new(MASTER, mac()))?.context("ADD left no row")?;
        for number in 1..pods {
            maps.add_endpoint(EndpointKey::new(MASTER, pod_mac(number)), row)?;
        }
        let rows = maps.endpoints()?.len();
        ensure!(rows == pods as usize, "{rows} rows for {pods} pods");
        Ok(Self { maps, id: row.id, directory, netns })
    }

    /// What was counted of the pod so far.
    pub(super) fn counted(&self) -> Result<Counters> {
        Ok(self.maps.counters()?.endpoint(self.id))
    }

    /// What the binary knows as its root.
    pub(super) fn root(&self) -> &Root {
        self.directory.root()
    }
}
