//! A node with real attachments, made by the plugin that ships, and the agent that follows an API server beside them.
//!
//! The pods share one network namespace: what is measured does not depend on how many there are.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use netpath::{police, state::Records};
use serde_json::{Value, json};

use super::api::Api;
use crate::{
    agent::Agent,
    http,
    netns::Namespace,
    root::{self, Directory},
};

/// Where the network and the pods are.
pub(super) const NAMESPACE: &str = "web";
/// Their network.
pub(super) const NETWORK: &str = "bench";

const MASTER: &str = "bench0";
/// ADDs at once.
const THREADS: u32 = 4;
/// How long a change may take until it counts as lost.
const PATIENCE: Duration = Duration::from_secs(30);

/// Network namespaces and a root of their own, gone when this is dropped.
pub(super) struct Fleet {
    binary: PathBuf,
    directory: Directory,
    node: Namespace,
    pods: Namespace,
    attachments: u32,
}

impl Fleet {
    /// The zones that the records have, by digest.
    pub(super) fn recorded(&self) -> Result<BTreeSet<Option<String>>> {
        let records = Records::new(self.directory.root()).all()?.records.into_iter();
        Ok(records.map(|record| record.zone.map(|zone| zone.digest)).collect())
    }

    /// Waits until all records have one zone that is not among `before`: whoever edits a network next meets an agent that has
    /// nothing to do.
    pub(super) fn settle(&self, before: &BTreeSet<Option<String>>) -> Result<()> {
        let begun = Instant::now();
        loop {
            let now = self.recorded()?;
            if now.len() == 1 && now.is_disjoint(before) {
                return Ok(());
            }
            ensure!(begun.elapsed() < PATIENCE, "not all records have the zone that is in force");
            thread::park_timeout(Duration::from_millis(200));
        }
    }

    /// A node without attachments.
    pub(super) fn new(binary: &Path) -> Result<Self> {
        let fleet = Self {
            binary: binary.to_owned(),
            directory: Directory::new("fleet")?,
            node: Namespace::quiet("node")?,
            pods: Namespace::quiet("pods")?,
            attachments: 0,
        };
        fleet.node.ip(&[
            format!("link add {MASTER} type veth peer name wire netns {}", fleet.pods.name()),
            format!("link set {MASTER} up"),
        ])?;
        fleet.pods.ip(&["link set wire up".to_owned()])?;
        let masters = fleet.directory.root().masters();
        root::write(&masters, &json!({ MASTER: { "xdp": "native" } }).to_string())?;
        Ok(fleet)
    }

    /// The network's configuration; `extra` is one more prefix of its zone.
    pub(super) fn network(extra: u32) -> Value {
        let extra = format!("172.{}.{}.0/24", 16 + extra / 256 % 16, extra % 256);
        json!({"cniVersion": "1.0.0", "name": NETWORK, "type": "macvlan", "mode": "bridge", "master": MASTER,
            "zone": {"policy": "private", "local": ["10.12.0.0/16", "192.168.0.0/16", extra]},
            "ipam": {"type": "static", "addresses": []}})
    }

    /// Attaches so many pods, by as many calls of the plugin.
    pub(super) fn attach(&mut self, pods: u32) -> Result<()> {
        let fleet = &*self;
        let each = |first: u32| (first..pods).step_by(THREADS as usize).try_for_each(|pod| fleet.add(pod));
        thread::scope(|scope| {
            let threads: Vec<_> =
                (0..THREADS.min(pods)).map(|first| scope.spawn(move || each(first))).collect();
            let ended = threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            ended.collect::<Result<()>>()
        })?;
        self.attachments = pods;
        Ok(())
    }

    fn add(&self, pod: u32) -> Result<()> {
        let mut conf = Self::network(0);
        let address = format!("10.12.{}.{}/16", 1 + pod / 250, 1 + pod % 250);
        conf["ipam"]["addresses"] = json!([{"address": address}]);
        let mut plugin = self.netpath();
        plugin
            .env("CNI_COMMAND", "ADD")
            .env("CNI_CONTAINERID", format!("c{pod}"))
            .env("CNI_IFNAME", format!("net{pod}"))
            .env("CNI_NETNS", self.pods.path())
            .env("CNI_PATH", "/nowhere")
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE={NAMESPACE};K8S_POD_NAME=pod{pod};K8S_POD_UID=uid{pod}"
                ),
            );
        self.node.run(&mut plugin, &conf.to_string()).with_context(|| format!("ADD of pod {pod}"))
    }

    fn netpath(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.env("NETPATH_ROOT", self.directory.path());
        command
    }

    /// An API server with the network, and an agent that follows it.
    pub(super) fn agent(&self) -> Result<(Api, Agent)> {
        let api = self.node.within(|| Api::start(&Self::network(0), self.attachments))??;
        self.directory.write("kubeconfig", &http::kubeconfig(api.address))?;
        let (root, kubeconfig) = (self.directory.root(), self.directory.path().join("kubeconfig"));
        let agent = Agent::start(&self.binary, root, Some(&self.node), Some(&kubeconfig))?;
        Ok((api, agent))
    }

    /// How long it takes from an edit of the network until it holds in the maps, in milliseconds.
    pub(super) fn edit(&self, api: &Api, round: u32) -> Result<f64> {
        let maps = police::maps(self.directory.root())?.context("maps are there")?;
        let generation =
            || -> Result<u64> { Ok(maps.zones()?.iter().map(|zone| zone.slot.generation).sum()) };
        let before = generation()?;
        let begun = Instant::now();
        api.edit(&Self::network(round));
        while generation()? == before {
            ensure!(begun.elapsed() < PATIENCE, "an edit of the network is not in force");
            thread::park_timeout(Duration::from_micros(200));
        }
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    }

    /// How long `netpath attach` takes where nothing is in the kernel, in milliseconds.
    pub(super) fn load(&self) -> Result<f64> {
        let begun = Instant::now();
        self.node.run(self.netpath().args(["attach", MASTER]), "")?;
        let took = begun.elapsed().as_secs_f64() * 1e3;
        self.directory.must_be_attached(&self.node, MASTER)?;
        self.node.run(self.netpath().args(["uninstall", "--yes"]), "")?;
        Ok(took)
    }
}
