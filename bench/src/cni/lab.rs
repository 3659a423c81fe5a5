//! A node with one master, pods without interfaces, and the network that they are to get. All of it is gone with the run.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use netpath::kernel::{
    bpf::maps::Maps,
    netlink::{Link, Netlink},
    netns::Netns,
};
use netpath_ebpf::abi::kind;
use serde_json::{Value, json};

use super::{PLUGIN, STANDARD, call::Call};
use crate::{netns::Namespace, root::Directory};

/// Type of the plugin under test, ours and the standard one.
pub(super) const MACVLAN: &str = "macvlan";
/// The node's NIC.
pub(super) const MASTER: &str = "master0";
/// What a pod's macvlan is called.
pub(super) const IFNAME: &str = "net1";
/// Where a route of the network leads to.
pub(super) const BEYOND: &str = "10.97.0.0/16";
/// The router of the network.
pub(super) const GATEWAY: &str = "10.96.255.254";

/// A sandbox.
pub(super) struct Pod {
    pub(super) netns: Namespace,
    pub(super) open: Netns,
    pub(super) netlink: Netlink,
}

impl Pod {
    pub(super) fn new() -> Result<Self> {
        let netns = Namespace::new("pod")?;
        let open = Netns::open(&netns.path())?;
        let netlink = Netlink::in_netns(&open)?;
        Ok(Self { netns, open, netlink })
    }

    /// The interface as every ADD has to leave it: a macvlan that is up, with an address and a route.
    pub(super) fn attached(&mut self) -> Result<Link> {
        let link = self.netlink.find_link(IFNAME)?.context("there is no such interface after ADD")?;
        ensure!(link.is_macvlan() && link.is_up(), "after ADD it is {link:?}");
        let addresses = self.netlink.addresses(Some(link.index))?;
        let ours = addresses.iter().filter(|it| it.address.to_string().starts_with("10.96.")).count();
        ensure!(ours == 1, "after ADD its addresses are {addresses:?}");
        let routes = self.netlink.routes(Some(link.index))?;
        ensure!(
            routes.iter().any(|route| route.dst.to_string() == BEYOND),
            "after ADD its routes are {routes:?}"
        );
        Ok(link)
    }

    /// What every DEL has to leave: nothing.
    pub(super) fn is_bare(&mut self) -> Result<()> {
        match self.netlink.find_link(IFNAME)? {
            Some(link) => bail!("after DEL there still is {link:?}"),
            None => Ok(()),
        }
    }
}

/// Who attaches a pod to the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// The binary as the interface plugin `macvlan`.
    Plain,
    /// The binary as meta-plugin: [`PLUGIN`] for the first network, and ours from a directory.
    Whole,
    /// What the meta-plugin executes for the first network, alone.
    Loopback,
    /// The standard `macvlan`, which executes the standard `host-local`.
    Standard,
}

impl Who {
    /// Whether the pod has an interface of the network then.
    pub(super) fn attaches(self) -> bool {
        self != Self::Loopback
    }

    /// Whether a zone is in force for it.
    pub(super) fn polices(self) -> bool {
        matches!(self, Self::Plain | Self::Whole)
    }
}

/// The node.
pub(super) struct Lab {
    binary: PathBuf,
    directory: Directory,
    pub(super) node: Namespace,
    /// The other end of the cable.
    _wire: Namespace,
}

impl Lab {
    pub(super) fn new(binary: PathBuf) -> Result<Self> {
        let (node, wire) = (Namespace::new("node")?, Namespace::new("wire")?);
        let directory = Directory::with_memory("node")?;
        node.ip(&[
            "link set lo up".to_owned(),
            format!("link add {MASTER} type veth peer name wire netns {}", wire.name()),
            format!("link set {MASTER} up"),
        ])?;
        wire.ip(&["link set lo up", "link set wire up"].map(str::to_owned))?;
        // All three hooks have a program: what ADD looks after is as much as it ever is.
        directory.write(
            "etc/cni/net.d/netpath.d/masters.json",
            &json!({ MASTER: { "xdp": "native" } }).to_string(),
        )?;
        let first = json!({"cniVersion": "1.0.0", "name": "first", "type": PLUGIN});
        directory.write("etc/cni/net.d/10-first.conf", &first.to_string())?;
        let lab = Self { binary, directory, node, _wire: wire };
        let conf = lab.network(Who::Whole).to_string();
        lab.directory.write("nads/zoned.yaml", &nad("zoned", "bench", &conf))?;
        fs::create_dir_all(lab.addresses())?;
        Ok(lab)
    }

    /// Runs `work` with its thread on the node, where all that it starts is then, too.
    pub(super) fn on_the_node<T>(&self, work: impl FnOnce() -> T) -> Result<T> {
        self.node.within(work)
    }

    /// Where host-local, ours, keeps its addresses.
    pub(super) fn addresses(&self) -> PathBuf {
        self.directory.root().host_local().join("bench")
    }

    /// A call of a plugin for the sandbox `id`.
    pub(super) fn call(&self, who: Who, verb: &str, pod: &Namespace, id: &str) -> Call {
        let program = match who {
            Who::Plain | Who::Whole => self.binary.clone(),
            Who::Loopback => Path::new(STANDARD).join(PLUGIN),
            Who::Standard => Path::new(STANDARD).join(MACVLAN),
        };
        let ifname = if matches!(who, Who::Whole | Who::Loopback) { "eth0" } else { IFNAME };
        let mut command = Command::new(program);
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", id)
            .env("CNI_IFNAME", ifname)
            .env("CNI_NETNS", pod.path())
            .env("CNI_PATH", STANDARD)
            .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME=p;K8S_POD_UID=u1")
            .env("NETPATH_ROOT", self.directory.path());
        let conf = match who {
            Who::Whole => json!({"cniVersion": "1.0.0", "name": "cluster", "type": "netpath",
                "clusterNetwork": "/etc/cni/net.d/10-first.conf", "networks": "/nads",
                "runtimeConfig": {"io.kubernetes.cri.pod-annotations": {"k8s.v1.cni.cncf.io/networks": "zoned"}}}),
            Who::Loopback => json!({"cniVersion": "1.0.0", "name": "first", "type": PLUGIN}),
            Who::Plain | Who::Standard => self.network(who),
        };
        Call { command, stdin: conf.to_string() }
    }

    /// The network. The standard plugin knows no zones, and its addresses are in a directory of their own.
    fn network(&self, who: Who) -> Value {
        let mut conf = json!({"cniVersion": "1.0.0", "name": "bench", "type": MACVLAN, "master": MASTER, "mode": "bridge",
            "ipam": {"type": "host-local", "subnet": "10.96.0.0/16", "gateway": GATEWAY, "routes": [{"dst": BEYOND}]}});
        match who {
            Who::Standard => {
                let directory = self.directory.root().join("standard");
                conf["ipam"]["dataDir"] = json!(directory.display().to_string());
            }
            Who::Plain | Who::Whole | Who::Loopback => conf["zone"] = json!({"policy": "private"}),
        }
        conf
    }

    /// Fails unless the pod is attached as it should be after this ADD, with a row of its own in a zone where one is asked for.
    pub(super) fn check_added(&self, who: Who, pod: &mut Pod) -> Result<()> {
        if !who.attaches() {
            return Ok(());
        }
        let link = pod.attached()?;
        if who.polices() {
            let maps = Maps::open(&self.directory.root().pins())?.context("after ADD no maps are there")?;
            let mac = link.mac.context("a macvlan has a MAC")?.bytes();
            let rows = maps.endpoints()?;
            let own = |key: &[u8; 6], row: &netpath_ebpf::abi::Endpoint| {
                *key == mac && row.kind == kind::ENDPOINT && row.zone != 0
            };
            ensure!(
                rows.iter().any(|(key, row)| own(&key.mac, row)),
                "after ADD it has no row in a zone: {rows:?}"
            );
        }
        Ok(())
    }

    /// Fails if anything is left of the pod's attachment.
    pub(super) fn check_deleted(&self, who: Who, pod: &mut Pod) -> Result<()> {
        if who.attaches() {
            pod.is_bare()?;
        }
        Ok(())
    }

    /// Fails if a row or an address is left of pods that are gone.
    pub(super) fn check_nothing_left(&self) -> Result<()> {
        let maps = Maps::open(&self.directory.root().pins())?.context("no maps are there")?;
        let rows = maps.endpoints()?;
        ensure!(rows.is_empty(), "after all DELs there are rows: {rows:?}");
        for directory in [self.addresses(), self.directory.root().join("standard/bench")] {
            for file in fs::read_dir(&directory)? {
                let name = file?.file_name();
                let is_address = name.to_str().is_some_and(|name| name.parse::<IpAddr>().is_ok());
                ensure!(!is_address, "after all DELs {name:?} still is taken in {}", directory.display());
            }
        }
        Ok(())
    }
}

/// A NetworkAttachmentDefinition as people write it: its configuration in a block.
pub(super) fn nad(name: &str, namespace: &str, conf: &str) -> String {
    format!(
        "apiVersion: k8s.cni.cncf.io/v1\nkind: NetworkAttachmentDefinition\nmetadata:\n  name: {name}\n  namespace: {namespace}\nspec:\n  config: |\n    {conf}\n"
    )
}
