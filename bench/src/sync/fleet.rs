//! A node with real attachments, made by the plugin that ships, and the agent that follows an API server beside them.
//!
//! The pods share one network namespace: what is measured does not depend on how many there are.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use netpath::{police, root::Root, state::Records};
use serde_json::{Value, json};

use super::{Agent, api::Api, within};

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
    root: Root,
    node: String,
    pods: String,
    attachments: u32,
}

impl Fleet {
    /// The zones that the records have, by digest.
    pub(super) fn recorded(&self) -> Result<BTreeSet<Option<String>>> {
        let records = Records::new(&self.root).all()?.records.into_iter();
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
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("npsync-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let fleet = Self {
            binary: binary.to_owned(),
            root: Root::new(std::env::temp_dir().join(&name)),
            node: format!("{name}-n"),
            pods: format!("{name}-p"),
            attachments: 0,
        };
        fs::create_dir_all(fleet.root.path())?;
        for netns in [&fleet.node, &fleet.pods] {
            succeed(Command::new("ip").args(["netns", "add", netns]))?;
        }
        // IPv6 off: nobody talks unasked.
        for words in [
            "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1".to_owned(),
            "ip link set lo up".to_owned(),
            format!("ip link add {MASTER} type veth peer name wire netns {}", fleet.pods),
            format!("ip link set {MASTER} up"),
        ] {
            let (program, words) = words.split_once(' ').context("a program and its words")?;
            succeed(fleet.on_node(program).args(words.split(' ')))?;
        }
        let mut wire = Command::new("ip");
        succeed(wire.args(["-n", &fleet.pods, "link", "set", "wire", "up"]))?;
        Ok(fleet)
    }

    /// `nsenter` into the node's network, and no further: `ip netns exec` would hide the node's BPF file system.
    fn on_node(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.node)).arg(program.as_ref());
        command
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
        let mut plugin = self.on_node(&self.binary);
        plugin
            .env("NETPATH_ROOT", self.root.path())
            .env("CNI_COMMAND", "ADD")
            .env("CNI_CONTAINERID", format!("c{pod}"))
            .env("CNI_IFNAME", format!("net{pod}"))
            .env("CNI_NETNS", format!("/run/netns/{}", self.pods))
            .env("CNI_PATH", "/nowhere")
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE={NAMESPACE};K8S_POD_NAME=pod{pod};K8S_POD_UID=uid{pod}"
                ),
            );
        let mut child = plugin.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        child.stdin.take().context("piped")?.write_all(conf.to_string().as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "ADD of pod {pod}: {}", String::from_utf8_lossy(&output.stdout));
        Ok(())
    }

    /// An API server with the network, and an agent that follows it.
    pub(super) fn agent(&self) -> Result<(Api, Agent)> {
        let api = within(Some(&self.node), || Api::start(&Self::network(0), self.attachments))?;
        let kubeconfig = self.root.path().join("kubeconfig");
        fs::write(&kubeconfig, api.kubeconfig())?;
        let mut command = self.on_node(&self.binary);
        command.arg("agent").arg("--kubeconfig").arg(&kubeconfig);
        let agent = Agent::spawn(command, &self.root, Some(&self.node))?;
        Ok((api, agent))
    }

    /// How long it takes from an edit of the network until it holds in the maps, in milliseconds.
    pub(super) fn edit(&self, api: &Api, round: u32) -> Result<f64> {
        let maps = police::maps(&self.root)?.context("maps are there")?;
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
        let netpath = |verb: &[&str]| {
            let mut command = self.on_node(&self.binary);
            command.args(verb).env("NETPATH_ROOT", self.root.path()).stdout(Stdio::null());
            command
        };
        let begun = Instant::now();
        succeed(&mut netpath(&["attach", MASTER]))?;
        let took = begun.elapsed().as_secs_f64() * 1e3;
        succeed(&mut netpath(&["uninstall", "--yes"]))?;
        Ok(took)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // Each may fail where `new` did; then there is nothing to undo. What a failed run leaves is named by its prefix.
        for netns in [&self.node, &self.pods] {
            let _ = Command::new("ip").args(["netns", "del", netns]).stderr(Stdio::null()).status();
        }
        let _ = nix::mount::umount2(&self.root.bpffs(), nix::mount::MntFlags::MNT_DETACH);
        let _ = fs::remove_dir_all(self.root.path());
    }
}

fn succeed(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
