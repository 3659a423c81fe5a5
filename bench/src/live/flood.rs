//! A flood of packets that are denied, while the agent that ships looks after the node: how much of a CPU it takes, and
//! whether each drop is counted.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    egress, eventually,
    lab::frame_to_pod,
    peers::{Kind, Peer},
    scene::Scene,
    verdict::Verdict,
};
use crate::{
    Effort,
    agent::Agent,
    figures::{Figures, Unit},
    samples::Samples,
    say,
};

/// The node that is flooded: the pod that there is, and no rows of others, which the agent would take away.
pub(super) const NODE: Peer = Peer { kind: Kind::Netpath, size: 1 };

/// One flood.
struct Flood {
    /// Percent of one CPU.
    agent: f64,
    packets: f64,
    seconds: f64,
    uncounted: f64,
}

/// Floods from the pod's socket and from the wire, and prints what came of it. In the namespace of the far ends.
pub(super) fn run(effort: Effort, binary: &Path, scene: &mut Scene, figures: &mut Figures) -> Result<()> {
    // The agent looks at the node every five seconds, and grants events twice in a second: as long as it takes to do so twice.
    let twice = Duration::from_secs(11);
    let (rounds, packets, span) = match effort {
        Effort::Quick => (1, 20_000, Duration::ZERO),
        Effort::Usual => (1, 1_000_000, twice),
        Effort::Full => (3, 1_000_000, twice),
    };
    let place = scene.place(NODE, Verdict::Denied).context("there is no such site")?;
    let wire = place.site.wire_index;
    let policed = place.policed.as_ref().context("netpath polices it")?;
    let agent = Agent::start(binary, policed.root(), Some(&policed.netns), None)?;
    let idle = over(&agent, || {
        std::thread::park_timeout(span.max(Duration::from_secs(1)));
        Ok(())
    })?;
    let (mut pod, mut far, mut uncounted) = (Vec::new(), Vec::new(), Samples::default());
    let frame = frame_to_pod(Verdict::Denied.other_end(), 53)?;
    for _ in 0..rounds {
        pod.push(flood(scene, &agent, (packets, span), |scene| {
            let place = scene.place(NODE, Verdict::Denied).context("there is no such site")?;
            egress::send(place, Verdict::Denied.other_end(), packets).map(drop)
        })?);
        if scene.no_generator.is_some() {
            continue;
        }
        far.push(flood(scene, &agent, (packets, span), |scene| {
            scene.programs.send(wire, &frame, packets).map(drop)
        })?);
    }
    say(format_args!(
        "\n### A flood\n\nPackets that are denied, {packets} at a time, for {} s{}. While nothing is sent the agent takes {:.2} % of a \
         CPU.\n\n| | packets | a second | the agent, % of a CPU | not counted |\n|---|---:|---:|---|---:|",
        span.as_secs(),
        if rounds == 1 { String::new() } else { format!(", {rounds} times") },
        idle.percent
    ));
    for (what, floods) in [("from the pod", &pod), ("from the wire", &far)] {
        if floods.is_empty() {
            continue;
        }
        let of = |f: fn(&Flood) -> f64| floods.iter().map(f).collect::<Samples>();
        say(format_args!(
            "| {what} | {:.0} | {:.0} | {} | {:.0} |",
            of(|flood| flood.packets).median(),
            of(|flood| flood.packets / flood.seconds).median(),
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

/// One flood: `packets` at a time by `send`, once and until so much time is over.
fn flood(
    scene: &mut Scene,
    agent: &Agent,
    (packets, span): (u32, Duration),
    mut send: impl FnMut(&mut Scene) -> Result<()>,
) -> Result<Flood> {
    let dropped = |scene: &Scene| -> Result<u64> {
        let place = scene.place(NODE, Verdict::Denied).context("there is no such site")?;
        let counted = place.policed.as_ref().context("netpath polices it")?.counted()?;
        Ok(counted.tx_dropped + counted.rx_dropped)
    };
    let (before, sunk) = (dropped(scene)?, scene.programs.sunk()?);
    let mut sent = 0;
    let Took { percent, seconds } = over(agent, || {
        let begun = Instant::now();
        loop {
            send(scene)?;
            sent += u64::from(packets);
            if span <= begun.elapsed() {
                return eventually(|| Ok(dropped(scene)? - before == sent)).map(drop);
            }
        }
    })?;
    ensure!(scene.programs.sunk()? == sunk, "packets of the flood have left the node");
    // What is more than was sent is as wrong as what is less.
    let uncounted = sent.abs_diff(dropped(scene)? - before) as f64;
    Ok(Flood { agent: percent, packets: sent as f64, seconds, uncounted })
}

/// What the agent took meanwhile.
struct Took {
    percent: f64,
    seconds: f64,
}

/// What the agent takes while `f` runs: user and system time of all its threads, of the time on the wall.
fn over(agent: &Agent, f: impl FnOnce() -> Result<()>) -> Result<Took> {
    let (before, begun) = (agent.cpu()?, Instant::now());
    f()?;
    let (took, seconds) = (agent.cpu()? - before, begun.elapsed().as_secs_f64());
    Ok(Took { percent: took.as_secs_f64() / seconds * 100.0, seconds })
}
