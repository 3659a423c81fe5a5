//! What grows with the pods of a node: rows into maps, counters out of them, and a scrape of the agent.
//!
//! The endpoints are rows and records that the library writes; no pod is behind them. The agent is the binary that
//! ships, and is asked over HTTP as Prometheus asks it.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use netpath::{
    police,
    root::Root,
    state::{self, Record, Records},
};
use serde_json::json;

use crate::{
    Effort, binary,
    figures::Figures,
    frames::pod_mac,
    node::{Node, Shape},
    samples::Samples,
    say,
};

/// How long the agent may take until it is ready.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the suite.
pub(crate) fn run(effort: Effort, _figures: &mut Figures) -> Result<()> {
    let binary = binary()?;
    let (sizes, rounds): (&[u32], _) = match effort {
        Effort::Quick => (&[1, 100], 3),
        Effort::Usual => (&[1, 250, 1000, 10_000], 10),
        Effort::Full => (&[1, 250, 1000, 4096, 10_000], 30),
    };
    say("\n## sync: what grows with the endpoints of a node\n");
    say(
        "| endpoints | rows into the maps, ms | counters read, us | list of rows, us | scrape over HTTP, ms | until it was \
         written, ms | bytes of it | agent's memory, MiB |",
    );
    say("|---:|---|---|---|---|---|---:|---:|");
    for endpoints in sizes {
        say(row(&binary, *endpoints, rounds).with_context(|| format!("{endpoints} endpoints"))?);
    }
    Ok(())
}

/// One line of the table.
fn row(binary: &PathBuf, endpoints: u32, rounds: usize) -> Result<String> {
    // No program is loaded: nothing of this depends on one.
    let node = Node::new(Shape { endpoints, prefixes: 8 }, 0)?;
    let fill = node.filling().as_secs_f64() * 1e3;
    let maps = police::maps(node.root())?.context("maps are there")?;
    let (mut read, mut list) = (Samples::default(), Samples::default());
    for _ in 0..rounds {
        let begun = Instant::now();
        ensure!(node.counted()?.sent == 0, "nothing was sent");
        read.push(begun.elapsed().as_secs_f64() * 1e6);
        let begun = Instant::now();
        ensure!(maps.endpoints()?.len() == endpoints as usize, "all are listed");
        list.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    settings(node.root(), endpoints)?;
    records(node.root(), &node)?;
    let agent = Agent::start(binary, node.root())?;
    let (mut scrape, mut gathered) = (Samples::default(), Samples::default());
    let mut text = String::new();
    for _ in 0..rounds {
        let begun = Instant::now();
        text = agent.get("/metrics")?.context("the agent answers")?;
        scrape.push(begun.elapsed().as_secs_f64() * 1e3);
        gathered.push(value(&text, "netpath_scrape_microseconds")? / 1e3);
    }
    let sent = text.lines().filter(|line| line.starts_with("netpath_pod_transmit_packets_total{")).count();
    ensure!(sent == endpoints as usize, "{sent} endpoints are in what the agent says");
    let memory = value(&text, "process_resident_memory_bytes")?;
    let (low, high) = scrape.spread();
    Ok(format!(
        "| {endpoints} | {fill:.1} | {read} | {list} | {:.1} ({low:.1} to {high:.1}) | {:.1} | {} | {:.1} |",
        scrape.median(),
        gathered.median(),
        text.len(),
        memory / f64::from(1 << 20)
    ))
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
}

impl Agent {
    /// Starts one and waits until it answers.
    fn start(binary: &PathBuf, root: &Root) -> Result<Self> {
        let networks = root.path().join("networks");
        fs::create_dir_all(&networks)?;
        // Free a moment ago; should somebody take it meanwhile, the agent says so and ends.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let process = Command::new(binary)
            .args(["agent", "--node", "bench", "--networks", "/networks", "--listen"])
            .arg(address.to_string())
            .env("NETPATH_ROOT", root.path())
            .env("NETPATH_LOG", "error")
            .stdin(Stdio::null())
            .spawn()?;
        let mut agent = Self { process, address };
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

    /// The body of an answer; `None` where it is no success.
    fn get(&self, path: &str) -> Result<Option<String>> {
        let mut stream = TcpStream::connect(self.address)?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
        Ok(head.starts_with("HTTP/1.1 200").then(|| body.to_owned()))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
