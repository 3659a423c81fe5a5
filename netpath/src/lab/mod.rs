//! `netpath lab`: the lab that netpath was asked for, on one machine, asked without and with the zone.
//!
//! Machines are network namespaces, named after the lab, so that several labs stand side by side. The real
//! binary is called as a container runtime calls it; nothing here knows what netpath does to an interface.

mod error;
mod judge;
mod measure;
mod nad;
mod report;
mod rows;
mod runtime;
mod tools;
mod wire;
mod world;

use std::time::Instant;

use nix::unistd::geteuid;

pub use error::LabError;
use measure::{Bench, is_promisc};
use nad::{Manifest, Network};
use report::{Answer, Asked, Report};
use rows::{Row, rows};
use runtime::Attached;
use tools::Signals;
use world::{Host, World};

use crate::kernel::bpf::{attach, told};

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Leave the lab standing, with the zone in force.
    pub keep: bool,
    /// Answer in JSON.
    pub json: bool,
}

/// Builds the lab, asks every question without and with the zone, and removes it. Output goes to `say`.
///
/// Returns whether everything was as expected. Whatever goes wrong, and on SIGINT, SIGTERM and SIGHUP as well,
/// nothing is left behind.
pub fn run(options: Options, say: &mut dyn FnMut(&str)) -> Result<bool, LabError> {
    let began = Instant::now();
    let signals = prepare()?;
    let world = World::build(&signals)?;
    if !options.json {
        say(&format!(
            "Lab {}: network namespaces on this machine. The gateway does source-NAT.\n",
            world.id()
        ));
        say(report::PICTURE);
        say("");
    }
    let mut report = ask_all(&world, &signals, options.keep)?;
    report.seconds = began.elapsed().as_secs_f64();
    let (id, kept) = (world.id().to_owned(), options.keep);
    let binary = std::env::current_exe().unwrap_or_else(|_| "netpath".into()).display().to_string();
    let how = if kept { how_to_enter(&world, &binary) } else { String::new() };
    match kept {
        true => world.keep(),
        false => world.remove()?,
    }
    match options.json {
        true => say(&crate::spec::json::to_text(&report.json(kept))),
        false => say(&report.table()),
    }
    if kept && options.json {
        tracing::warn!("the lab stands: remove it with `netpath lab --remove {id}`");
    } else if kept {
        say(&how);
    }
    Ok(report.is_good())
}

/// Removes a lab that was kept, or whose process was killed.
pub fn remove(id: &str) -> Result<(), LabError> {
    let _signals = prepare()?;
    World::find(id)?.remove()
}

fn prepare() -> Result<Signals, LabError> {
    let uid = geteuid();
    if !uid.is_root() {
        return Err(LabError::NotRoot { uid: uid.as_raw() });
    }
    tools::check_programs(std::env::var_os("PATH").as_deref())?;
    Signals::hold()
}

/// One half of the lab.
struct Phase {
    masters: Manifest,
    networks: [(Host, Network); 2],
}

fn phases() -> Result<[Phase; 2], LabError> {
    let riddle = Network::from_manifest(nad::DUALSTACK)?;
    Ok([
        Phase {
            masters: world::COUNTED,
            networks: [
                (Host::NetPod, Network::from_manifest(nad::UNPOLICED)?),
                (Host::RiddlePod, riddle.clone().without_zone()),
            ],
        },
        Phase {
            masters: world::POLICED,
            networks: [(Host::NetPod, Network::from_manifest(nad::POLICED)?), (Host::RiddlePod, riddle)],
        },
    ])
}

fn ask_all(world: &World, signals: &Signals, keep: bool) -> Result<Report, LabError> {
    let [without, with] = phases()?;
    let rows = rows(told::has_netns_cookie()?);
    let mut bench = None;
    let mut promisc = true;

    let pods = attach_pods(world, signals, &without)?;
    promisc &= is_promisc(world)?;
    let seen_without = ask(world, signals, &rows, &mut bench, false, &pods)?;
    detach_pods(world, &pods)?;
    promisc &= is_promisc(world)?;

    let pods = attach_pods(world, signals, &with)?;
    let seen_with = ask(world, signals, &rows, &mut bench, true, &pods)?;
    let hooks = hooks(world, &pods)?;
    if !keep {
        detach_pods(world, &pods)?;
    }
    promisc &= is_promisc(world)?;

    let asked = |row: &Row, zone: bool, seen| Asked { faults: judge::faults(row, zone, &seen), seen };
    let both = rows.iter().zip(seen_without).zip(seen_with);
    let answers = both
        .map(|((row, without), with)| Answer {
            row: *row,
            asked: [asked(row, false, without), asked(row, true, with)],
        })
        .collect();
    Ok(Report {
        id: world.id().to_owned(),
        answers,
        hooks,
        pods: pods.iter().map(|pod| format!("{}: {}", pod.host.name(), pod.line())).collect(),
        promisc,
        seconds: 0.0,
    })
}

fn attach_pods(world: &World, signals: &Signals, phase: &Phase) -> Result<Vec<Attached>, LabError> {
    world.write_masters(phase.masters.text)?;
    let mut pods = Vec::new();
    for (host, network) in &phase.networks {
        signals.check()?;
        pods.push(runtime::add(world, *host, network.clone())?);
    }
    Ok(pods)
}

fn detach_pods(world: &World, pods: &[Attached]) -> Result<(), LabError> {
    pods.iter().try_for_each(|pod| runtime::del(world, pod))
}

/// The instruments are set up once: there are maps only when the first pod has been attached.
fn ask<'a>(
    world: &'a World,
    signals: &Signals,
    rows: &[Row],
    bench: &mut Option<Bench<'a>>,
    zone: bool,
    pods: &[Attached],
) -> Result<Vec<judge::Seen>, LabError> {
    let bench = match bench {
        Some(bench) => bench,
        None => bench.insert(Bench::new(world)?),
    };
    let mut answers = Vec::new();
    for row in rows {
        signals.check()?;
        let pod = pods.iter().find(|pod| pod.host == row.from);
        let pod = pod.ok_or(LabError::Uncounted { pod: row.from.name(), what: "interface" })?;
        answers.push(bench.ask(row, zone, pod)?);
    }
    Ok(answers)
}

/// What is attached to the master, as `egress tcx`.
fn hooks(world: &World, pods: &[Attached]) -> Result<Vec<String>, LabError> {
    let Some(pod) = pods.first() else { return Ok(Vec::new()) };
    let states = attach::inspect(&world.root().pins(), pod.master, pod.master_index())?;
    let live = states.iter().filter(|state| state.live);
    Ok(live.map(|state| format!("{} {}", state.hook.name(), state.via.name())).collect())
}

fn how_to_enter(world: &World, binary: &str) -> String {
    let mut text = format!(
        "\nThe lab stands, with the zone in force. netpath's root is {root}.\n\
         Enter:\n",
        root = world.root().path().display()
    );
    for host in Host::ALL {
        text += &format!("  nsenter --net={} bash    # {}\n", world.netns(host).display(), host.name());
    }
    let (root, node) = (world.root().path().display().to_string(), world.netns(Host::Worker01));
    text += &format!(
        "Look:\n  \
           nsenter --net={pod} ping -I net1 8.8.8.8\n  \
           nsenter --net={node} {binary} --root {root} pods\n  \
           nsenter --net={node} {binary} --root {root} drops --follow\n\
         Remove:\n  \
           {binary} lab --remove {id}",
        pod = world.netns(Host::NetPod).display(),
        node = node.display(),
        id = world.id(),
    );
    text
}
