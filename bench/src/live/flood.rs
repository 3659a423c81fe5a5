//! A flood of packets that are denied, while the agent that ships looks after the node: how much of a CPU it takes, and
//! whether each drop is counted.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{time::ClockId, unistd::Pid};

use super::{
    egress, eventually,
    lab::{Namespace, frame_to_pod},
    peers::{Kind, Peer},
    policed::Policed,
    scene::Scene,
    verdict::Verdict,
};
use crate::{
    Effort,
    figures::{Figures, Unit},
    samples::Samples,
    say,
};

/// The node that is flooded: the pod that there is, and no rows of others, which the agent would take away.
pub(super) const NODE: Peer = Peer { kind: Kind::Netpath, size: 1 };
/// How long the agent may take until it is ready.
const PATIENCE: Duration = Duration::from_secs(60);

/// One flood.
struct Flood {
    /// Percent of one CPU.
    agent: f64,
    seconds: f64,
    uncounted: f64,
}

/// Floods from the pod's socket and from the wire, and prints what came of it. In the namespace of the far ends.
pub(super) fn run(effort: Effort, binary: &Path, scene: &mut Scene, figures: &mut Figures) -> Result<()> {
    let (rounds, packets) = match effort {
        Effort::Quick => (1, 20_000),
        Effort::Usual => (3, 1_000_000),
        Effort::Full => (5, 1_000_000),
    };
    let place = scene.place(NODE, Verdict::Denied).context("there is no such site")?;
    let wire = place.site.wire_index;
    let policed = place.policed.as_ref().context("netpath polices it")?;
    let agent = Agent::start(binary, policed)?;
    let idle = agent.over(|| {
        std::thread::park_timeout(Duration::from_secs(if effort == Effort::Quick { 1 } else { 5 }));
        Ok(())
    })?;
    let (mut pod, mut far, mut uncounted) = (Vec::new(), Vec::new(), Samples::default());
    let frame = frame_to_pod(Verdict::Denied.other_end(), 53)?;
    for _ in 0..rounds {
        pod.push(flood(scene, &agent, packets, |scene| {
            let place = scene.place(NODE, Verdict::Denied).context("there is no such site")?;
            egress::send(place, Verdict::Denied.other_end(), packets).map(drop)
        })?);
        if scene.no_generator.is_some() {
            continue;
        }
        far.push(flood(scene, &agent, packets, |scene| {
            scene.programs.send(wire, &frame, packets).map(drop)
        })?);
    }
    say(format_args!(
        "\n### A flood\n\n{rounds} times {packets} packets that are denied. While nothing is sent the agent takes {:.2} % of a \
         CPU.\n\n| | packets a second | the agent, % of a CPU | not counted |\n|---|---:|---|---:|",
        idle.percent
    ));
    for (what, floods) in [("from the pod", &pod), ("from the wire", &far)] {
        if floods.is_empty() {
            continue;
        }
        let of = |f: fn(&Flood) -> f64| floods.iter().map(f).collect::<Samples>();
        say(format_args!(
            "| {what} | {:.0} | {} | {:.0} |",
            f64::from(packets) / of(|flood| flood.seconds).median(),
            of(|flood| flood.agent),
            floods.iter().map(|flood| flood.uncounted).sum::<f64>()
        ));
    }
    uncounted.push(pod.iter().chain(&far).map(|flood| flood.uncounted).sum());
    figures.put("live/flood/agent", Unit::Percent, pod.iter().map(|flood| flood.agent).collect());
    match &scene.no_generator {
        Some(why) => figures.miss("live/flood/agent/wire", why),
        None => {
            figures.put(
                "live/flood/agent/wire",
                Unit::Percent,
                far.iter().map(|flood| flood.agent).collect(),
            );
        }
    }
    figures.put("live/flood/agent/idle", Unit::Percent, [idle.percent].into_iter().collect());
    figures.put("live/flood/uncounted", Unit::Number, uncounted);
    Ok(())
}

/// One flood of `packets` by `send`.
fn flood(
    scene: &mut Scene,
    agent: &Agent,
    packets: u32,
    send: impl FnOnce(&mut Scene) -> Result<()>,
) -> Result<Flood> {
    let dropped = |scene: &Scene| -> Result<u64> {
        let place = scene.place(NODE, Verdict::Denied).context("there is no such site")?;
        let counted = place.policed.as_ref().context("netpath polices it")?.counted()?;
        Ok(counted.tx_dropped + counted.rx_dropped)
    };
    let (before, sunk) = (dropped(scene)?, scene.programs.sunk()?);
    let Took { percent, seconds } = agent.over(|| send(scene))?;
    let counted = || -> Result<u64> { Ok(dropped(scene)? - before) };
    eventually(|| Ok(counted()? == u64::from(packets)))?;
    ensure!(scene.programs.sunk()? == sunk, "packets of the flood have left the node");
    let uncounted = i64::from(packets) - i64::try_from(counted()?)?;
    // What is more than was sent is as wrong as what is less.
    Ok(Flood { agent: percent, seconds, uncounted: uncounted.abs() as f64 })
}

/// What the agent took meanwhile.
struct Took {
    percent: f64,
    seconds: f64,
}

/// A running agent; ended when it is dropped.
struct Agent {
    process: Child,
    clock: ClockId,
}

impl Agent {
    /// Starts one where the master is, and waits until it has looked at everything once.
    fn start(binary: &Path, policed: &Policed) -> Result<Self> {
        let (root, netns) = (policed.root(), &policed.netns);
        fs::create_dir_all(root.join("networks"))?;
        // Nobody else is in the namespace.
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 9090));
        let mut command = Command::new(binary);
        command
            .args(["agent", "--node", "bench", "--networks", "/networks", "--listen"])
            .arg(address.to_string())
            .env("NETPATH_ROOT", root)
            .env("NETPATH_LOG", "error")
            .stdin(Stdio::null());
        let process = netns.within(|| command.spawn())??;
        let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(process.id().cast_signed()))?;
        let mut agent = Self { process, clock };
        let begun = Instant::now();
        while !passes(netns, address).unwrap_or(false) {
            ensure!(begun.elapsed() < PATIENCE, "the agent does not answer");
            ensure!(agent.process.try_wait()?.is_none(), "the agent has ended");
            std::thread::park_timeout(Duration::from_millis(20));
        }
        Ok(agent)
    }

    /// What it takes while `f` runs: user and system time of all its threads, of the time on the wall.
    fn over(&self, f: impl FnOnce() -> Result<()>) -> Result<Took> {
        let (before, begun) = (Duration::from(self.clock.now()?), Instant::now());
        f()?;
        let (after, seconds) = (Duration::from(self.clock.now()?), begun.elapsed().as_secs_f64());
        Ok(Took { percent: (after - before).as_secs_f64() / seconds * 100.0, seconds })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Whether the agent says that it has made a pass.
fn passes(netns: &Namespace, address: SocketAddr) -> Result<bool> {
    let answer = netns.within(|| -> Result<String> {
        let mut stream = TcpStream::connect(address)?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })??;
    Ok(answer.lines().any(|line| line.starts_with("netpath_agent_passes_total ") && !line.ends_with(" 0")))
}
