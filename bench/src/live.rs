//! Suite `live`: CPU time of real traffic of pods, with netpath and with other ways to police it.
//!
//! netpath is the real thing: the binary that ships added the pods and attached its programs. All cases run in one
//! process, on one CPU, one slice of each in every round, so that what the machine does meanwhile meets all of them. A
//! slice counts only if every packet of it became what it should.

mod clock;
mod egress;
mod flood;
mod ingress;
mod lab;
mod peers;
mod policed;
mod programs;
mod scene;
mod verdict;

use std::{
    collections::BTreeSet,
    panic::resume_unwind,
    time::{Duration, Instant},
};

use anyhow::Result;
use netpath::kernel::netns::within;
use nix::sched::sched_getcpu;

use self::{peers::Peer, scene::Scene};
use crate::{Effort, binary, figures::Figures, machine::stay_on, reference, say};

/// How long what is under way may take to be counted.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs the suite.
pub(crate) fn run(effort: Effort, figures: &mut Figures) -> Result<()> {
    let (binary, reference) = (binary()?, reference()?);
    let peers: BTreeSet<Peer> =
        egress::peers(effort).into_iter().chain(ingress::peers()).chain([flood::NODE]).collect();
    let mut scene = Scene::new(&binary, &reference, &peers)?;
    say("\n## live: CPU time of traffic of a pod");
    let outside = scene.outside.path();
    let timed = || {
        // What is sent runs to its end on the CPU that sends it, and finds in the caches what it left there.
        stay_on(sched_getcpu()?)?;
        let clock = egress::clock(&scene)?;
        egress::run(effort, &scene, clock, figures)?;
        ingress::run(effort, &mut scene, clock, figures)
    };
    // The generator sends from the namespace that its thread is in. And the thread ends, and with it its affinity, which
    // processes that are started later would inherit.
    let thread = || within(&outside, timed)?;
    std::thread::scope(|scope| scope.spawn(thread).join().unwrap_or_else(|panic| resume_unwind(panic)))?;
    within(&outside, || flood::run(effort, &binary, &mut scene, figures))?
}

/// Waits until `ready`, or for so long that it will not come any more.
fn eventually(mut ready: impl FnMut() -> Result<bool>) -> Result<bool> {
    let deadline = Instant::now() + PATIENCE;
    while !ready()? {
        if deadline < Instant::now() {
            return Ok(false);
        }
        std::thread::park_timeout(Duration::from_millis(1));
    }
    Ok(true)
}
