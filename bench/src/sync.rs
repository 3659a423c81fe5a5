//! Suite `sync`: what grows with the pods of a node: rows into maps, counters out of them, a scrape of the agent, and how long
//! a change of a network takes.
//!
//! The endpoints of the first table are rows and records that the library writes; no pod is behind them. Those of the second are
//! attachments that the plugin made. The agent is the binary that ships, and is asked over HTTP as Prometheus asks it.

mod api;
mod fleet;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use netpath::{
    police,
    root::Root,
    state::{self, Record, Records},
};
use serde_json::json;

use self::fleet::Fleet;
use crate::{
    Effort,
    agent::{Agent, value},
    binary,
    figures::{Figures, Unit},
    frames::pod_mac,
    node::{Node, Shape},
    root,
    samples::Samples,
    say,
};

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
        agent.settle()?;
    }
    let text = agent.metrics()?;
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
    // The maps are meant to be as large as they are.
    root::write(&node.root().settings(), &json!({ "endpoints": endpoints.max(4096) }).to_string())?;
    records(node.root(), &node)?;
    let agent = Agent::start(binary, node.root(), None, None)?;
    let (mut scrape, mut gathered) = (Samples::default(), Samples::default());
    let mut text = String::new();
    for _ in 0..rounds {
        let begun = Instant::now();
        text = agent.metrics()?;
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
