//! Suite `sync`: what grows with the pods of a node: rows into maps, counters out of them, a scrape of the agent, and how long
//! a change of a network takes.
//!
//! The endpoints of the first table are rows and records that the library writes; no pod is behind them. Those of the second are
//! attachments that the plugin made. The agent is the binary that ships, and is asked over HTTP as Prometheus asks it.

mod api;
mod fleet;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use netpath::{
    kernel::netns,
    police,
    root::Root,
    state::{self, Record, Records},
};
use serde_json::json;

use self::fleet::Fleet;
use crate::{
    Effort, binary,
    figures::{Figures, Unit},
    frames::pod_mac,
    node::{Node, Shape},
    samples::Samples,
    say,
};

/// How long the agent may take until it is ready.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the suite.
pub(crate) fn run(effort: Effort, figures: &mut Figures) -> Result<()> {
    let binary = binary()?;
    let (sizes, rounds, pods): (&[u32], _, _) = match effort {
        Effort::Quick => (&[1, 100], 3, 10),
        Effort::Usual => (&[1, 250, 1000, 10_000], 10, 1000),
        Effort::Full => (&[1, 250, 1000, 4096, 10_000], 30, 1000),
    };
    say("\n## sync: what grows with the endpoints of a node\n");
    say(
        "| endpoints | rows into the maps by ADDs, ms | by an upgrade, ms | counters read, ms | list of rows, ms | scrape over HTTP, ms | until it was \
         written, ms | bytes of it | agent's memory, MiB |",
    );
    say("|---:|---|---|---|---|---|---|---:|---:|");
    for endpoints in sizes {
        let found = row(&binary, *endpoints, rounds).with_context(|| format!("{endpoints} endpoints"))?;
        say(&found);
        found.put(*endpoints, figures);
    }
    attached(&binary, pods, rounds, figures).with_context(|| format!("{pods} attachments"))
}

/// What takes real attachments, and an agent that follows an API server.
fn attached(binary: &Path, pods: u32, rounds: usize, figures: &mut Figures) -> Result<()> {
    // One of its own: whoever uninstalled netpath must not have it come back.
    let bare = Fleet::new(binary)?;
    let load: Samples = (0..rounds).map(|_| bare.load()).collect::<Result<_>>()?;
    drop(bare);
    let mut fleet = Fleet::new(binary)?;
    fleet.attach(pods)?;
    let (api, agent) = fleet.agent()?;
    let mut edits = Samples::default();
    for round in (1..).take(rounds) {
        let before = fleet.recorded()?;
        edits.push(fleet.edit(&api, round)?);
        // The next one comes when what follows from this one is done: people do not edit a zone every second.
        fleet.settle(&before)?;
        agent.passes()?;
    }
    let text = agent.get("/metrics")?.context("the agent answers")?;
    let sent = text.lines().filter(|line| line.starts_with("netpath_pod_transmit_packets_total{")).count();
    ensure!(sent == pods as usize, "{sent} of {pods} attachments are in what the agent says");
    let memory: Samples = [resident(&text)?].into_iter().collect();
    say(format_args!(
        "\nWith {pods} attachments: a zone is edited, from the API's word until it holds, {edits} ms; the agent's memory then \
         {memory} MiB. Programs are loaded and attached, with the start of `netpath attach`, in {load} ms."
    ));
    figures.put(format!("sync/edit/{pods}"), Unit::Milliseconds, edits);
    figures.put(format!("sync/agent/{pods}"), Unit::Mebibytes, memory);
    figures.put("sync/load", Unit::Milliseconds, load);
    Ok(())
}

/// One line of the table.
struct Row {
    endpoints: u32,
    fill: Samples,
    carry: Samples,
    read: Samples,
    list: Samples,
    scrape: Samples,
    gathered: Samples,
    bytes: usize,
    memory: f64,
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { endpoints, fill, carry, read, list, scrape, gathered, bytes, memory } = self;
        write!(
            f,
            "| {endpoints} | {fill} | {carry} | {read} | {list} | {scrape} | {gathered} | {bytes} | {memory:.1} |"
        )
    }
}

impl Row {
    fn put(self, endpoints: u32, figures: &mut Figures) {
        for (what, samples) in [
            ("fill", self.fill),
            ("carry", self.carry),
            ("read", self.read),
            ("list", self.list),
            ("render", self.scrape),
        ] {
            figures.put(format!("sync/{what}/{endpoints}"), Unit::Milliseconds, samples);
        }
        figures.put(format!("sync/memory/{endpoints}"), Unit::Mebibytes, [self.memory].into_iter().collect());
    }
}

/// How often the maps are filled anew.
const FILLS: usize = 3;

/// Measures one.
fn row(binary: &Path, endpoints: u32, rounds: usize) -> Result<Row> {
    // No program is loaded: nothing of this depends on one.
    let new = || Node::new(Shape { endpoints, prefixes: 8 }, 0);
    let mut fill = Samples::default();
    for _ in 1..FILLS {
        fill.push(milliseconds(new()?.filling()));
    }
    let node = new()?;
    fill.push(milliseconds(node.filling()));
    let carry = (0..FILLS).map(|_| Ok(milliseconds(node.carried()?))).collect::<Result<_>>()?;
    let maps = police::maps(node.root())?.context("maps are there")?;
    let (mut read, mut list) = (Samples::default(), Samples::default());
    for _ in 0..rounds {
        let begun = Instant::now();
        ensure!(node.counted()?.sent == 0, "nothing was sent");
        read.push(milliseconds(begun.elapsed()));
        let begun = Instant::now();
        ensure!(maps.endpoints()?.len() == endpoints as usize, "all are listed");
        list.push(milliseconds(begun.elapsed()));
    }
    settings(node.root(), endpoints)?;
    records(node.root(), &node)?;
    let agent = Agent::start(binary, node.root())?;
    let (mut scrape, mut gathered) = (Samples::default(), Samples::default());
    let mut text = String::new();
    for _ in 0..rounds {
        let begun = Instant::now();
        text = agent.get("/metrics")?.context("the agent answers")?;
        scrape.push(milliseconds(begun.elapsed()));
        gathered.push(value(&text, "netpath_scrape_microseconds")? / 1e3);
    }
    let sent = text.lines().filter(|line| line.starts_with("netpath_pod_transmit_packets_total{")).count();
    ensure!(sent == endpoints as usize, "{sent} endpoints are in what the agent says");
    let (bytes, memory) = (text.len(), resident(&text)?);
    Ok(Row { endpoints, fill, carry, read, list, scrape, gathered, bytes, memory })
}

/// Memory of the agent that says `text`, in MiB.
fn resident(text: &str) -> Result<f64> {
    Ok(value(text, "process_resident_memory_bytes")? / f64::from(1 << 20))
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A number without labels in what the agent says.
fn value(text: &str, name: &str) -> Result<f64> {
    let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(found.with_context(|| format!("the agent does not say {name}"))?.parse()?)
}

/// Says that the maps are meant to be as large as they are.
fn settings(root: &Root, endpoints: u32) -> Result<()> {
    let path = root.settings();
    fs::create_dir_all(path.parent().context("is in a directory")?)?;
    Ok(fs::write(path, json!({ "endpoints": endpoints.max(4096) }).to_string())?)
}

/// A record for each row, as the plugin leaves it.
fn records(root: &Root, node: &Node) -> Result<()> {
    let own = fs::metadata("/proc/self/ns/net")?;
    let (dev, inode) = {
        use std::os::unix::fs::MetadataExt as _;
        (own.dev(), own.ino())
    };
    let boot_id = state::boot_id()?;
    let records = Records::new(root);
    for (number, row) in (0..).zip(node.rows()) {
        let mac = pod_mac(number).map(|byte| format!("{byte:02x}")).join(":");
        let record = json!({
            "container_id": format!("c{number}"), "ifname": "net1", "phase": "ready", "kind": "macvlan", "created": 1,
            "boot_id": boot_id, "network": "bench", "nad": "default/bench",
            "netns": {"path": "/proc/self/ns/net", "dev": dev, "inode": inode, "cookie": null},
            "pod": {"namespace": "default", "name": format!("pod-{number}"), "uid": format!("uid-{number}")},
            "conf": {"cniVersion": "1.0.0", "name": "bench", "type": "macvlan"},
            "master": {"name": "bench0", "ifindex": 7, "id": 1}, "mac": mac,
            "endpoint": {"id": row.0, "generation": row.1}, "zone": null, "ips": [], "host_local_dir": null,
        });
        records.write(&serde_json::from_value::<Record>(record)?)?;
    }
    Ok(())
}

/// A running agent; ended when it is dropped.
struct Agent {
    process: Child,
    address: SocketAddr,
    /// The network namespace that it listens in, by name; none: ours.
    netns: Option<String>,
}

impl Agent {
    /// Starts one and waits until it answers.
    fn start(binary: &Path, root: &Root) -> Result<Self> {
        let networks = root.path().join("networks");
        fs::create_dir_all(&networks)?;
        let mut command = Command::new(binary);
        command.args(["agent", "--networks", "/networks"]);
        Self::spawn(command, root, None)
    }

    /// Starts `command`, an agent with its source of networks, and waits until it answers.
    fn spawn(mut command: Command, root: &Root, netns: Option<&str>) -> Result<Self> {
        let netns = netns.map(str::to_owned);
        // Free a moment ago; should somebody take it meanwhile, the agent says so and ends.
        let free = || Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?);
        let address = within(netns.as_deref(), free)?;
        let process = command
            .args(["--node", "bench", "--listen"])
            .arg(address.to_string())
            .env("NETPATH_ROOT", root.path())
            .env("NETPATH_LOG", std::env::var("NETPATH_LOG").unwrap_or_else(|_| "error".to_owned()))
            .stdin(Stdio::null())
            .spawn()?;
        let mut agent = Self { process, address, netns };
        let begun = Instant::now();
        while agent
            .get("/metrics")
            .ok()
            .flatten()
            .is_none_or(|text| !text.contains("netpath_agent_passes_total 1"))
        {
            ensure!(begun.elapsed() < PATIENCE, "the agent does not answer");
            ensure!(agent.process.try_wait()?.is_none(), "the agent has ended");
            std::thread::park_timeout(Duration::from_millis(20));
        }
        Ok(agent)
    }

    /// Waits until all was looked at once more.
    fn passes(&self) -> Result<()> {
        let passes =
            || value(&self.get("/metrics")?.context("the agent answers")?, "netpath_agent_passes_total");
        let (before, begun) = (passes()?, Instant::now());
        while passes()? < before + 2.0 {
            ensure!(begun.elapsed() < PATIENCE, "the agent does not look at anything any more");
            std::thread::park_timeout(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The body of an answer; `None` where it is no success.
    fn get(&self, path: &str) -> Result<Option<String>> {
        let mut stream = within(self.netns.as_deref(), || Ok(TcpStream::connect(self.address)?))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
        Ok(head.starts_with("HTTP/1.1 200").then(|| body.to_owned()))
    }
}

/// Runs `f` in a network namespace: sockets stay where they were opened.
fn within<T>(netns: Option<&str>, f: impl FnOnce() -> Result<T>) -> Result<T> {
    match netns {
        None => f(),
        Some(netns) => netns::within(&Path::new("/run/netns").join(netns), f)?,
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
