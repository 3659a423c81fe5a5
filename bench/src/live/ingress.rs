//! What a packet from the wire costs: CPU time of the thread that makes the frames. They are XDP live frames of a test
//! run in `outside`, handed to the wire's far end, so that they come out of the master's receive path, which runs in
//! the same thread. **The generator is in every figure.** Its own part, as far as it can be had alone, is
//! `live/ingress/generator`: frames that are made and taken back, without the hand-over to the wire.
//!
//! What is allowed ends in the pod's raw prerouting, the same for all: nearly nothing of a pod's real work.

use anyhow::{Context as _, Result, ensure};

use super::{
    clock::Clock,
    eventually,
    lab::{Device, INTERFACE, frame_to_pod},
    peers::{self, Kind, Peer},
    scene::{self, Scene},
    verdict::Verdict,
};
use crate::{
    Effort,
    figures::{Figures, Unit},
    order::order,
    samples::Samples,
    say,
};

/// Port that frames come from.
const SOURCE: u16 = 53;

/// Frames of a slice: so many that what the kernel does once for each (some 0.2 ms) is little of it; fewer where each
/// walks a list.
const SLICE: u32 = 32_768;
const SHORT: u32 = 4096;

/// What is measured, in the order of the table.
const CASES: [(Verdict, Peer); 16] = [
    (Verdict::Denied, Peer { kind: Kind::XdpEmpty, size: 1 }),
    (Verdict::Denied, Peer { kind: Kind::Netpath, size: 100 }),
    (Verdict::Denied, Peer { kind: Kind::TcEmpty, size: 1 }),
    (Verdict::Denied, Peer { kind: Kind::NftNetdev, size: 1 }),
    (Verdict::Denied, Peer { kind: Kind::NftNetdev, size: 100 }),
    (Verdict::Denied, Peer { kind: Kind::NftNetdevSet, size: 100 }),
    (Verdict::Denied, Peer { kind: Kind::IptablesLegacy, size: 1 }),
    (Verdict::Denied, Peer { kind: Kind::IptablesLegacy, size: 100 }),
    (Verdict::Denied, Peer { kind: Kind::IptablesNft, size: 1 }),
    (Verdict::Denied, Peer { kind: Kind::NftList, size: 1 }),
    (Verdict::Denied, Peer { kind: Kind::NftList, size: 100 }),
    (Verdict::Denied, Peer { kind: Kind::NftSet, size: 100 }),
    (Verdict::Allowed, Peer { kind: Kind::None, size: 1 }),
    (Verdict::Allowed, Peer { kind: Kind::NoneAgain, size: 1 }),
    (Verdict::Allowed, Peer { kind: Kind::BothEmpty, size: 1 }),
    (Verdict::Allowed, Peer { kind: Kind::Netpath, size: 100 }),
];

/// What it is called.
const GENERATOR: &str = "live/ingress/generator";

/// The peers of the cases.
pub(super) fn peers() -> impl Iterator<Item = Peer> {
    CASES.into_iter().map(|(_, peer)| peer)
}

struct Case {
    verdict: Verdict,
    peer: Peer,
    packets: u32,
    /// The pod's interface.
    pod: Device,
    /// Nanoseconds a packet, by round.
    time: Samples,
}

/// Measures all cases and prints the table. On one CPU, in the namespace of the far ends.
pub(super) fn run(effort: Effort, scene: &mut Scene, clock: Clock, figures: &mut Figures) -> Result<()> {
    let (rounds, packets) = match effort {
        Effort::Quick => (2, SHORT),
        Effort::Usual => (40, SLICE),
        Effort::Full => (90, SLICE),
    };
    if let Some(why) = &scene.no_generator {
        for name in CASES.iter().map(|(verdict, peer)| figure(*verdict, *peer)).chain([GENERATOR.to_owned()])
        {
            figures.miss(name, why);
        }
        say(format_args!("\n### From the wire\n\nNothing: {why}."));
        return Ok(());
    }
    let (mut cases, mut lacking) = (Vec::new(), Vec::new());
    for (verdict, peer) in CASES {
        let Some(place) = scene.place(peer, verdict) else {
            let why = scene.missing.get(&peer.kind).with_context(|| format!("{peer} has no site"))?;
            lacking.push((verdict, peer, why.clone()));
            continue;
        };
        match prepare(scene, verdict, peer) {
            Ok(()) => cases.push(Case {
                verdict,
                peer,
                packets: if matches!(peer.kind, Kind::NftNetdev | Kind::NftList) {
                    SHORT.max(packets / peer.size)
                } else {
                    packets
                },
                pod: Device::new(&place.site.pod, INTERFACE)?,
                time: Samples::default(),
            }),
            Err(error) => lacking.push((verdict, peer, scene::lacks(&error))),
        }
    }
    let mut generator = Samples::default();
    let frame = frame_to_pod(Verdict::Denied.other_end(), SOURCE)?;
    for round in 0..rounds {
        generator.push(clock.live(packets, || scene.programs.send_nowhere(&frame, packets))?);
        for at in order(round, cases.len()) {
            let case = &mut cases[at];
            let failed = format!("{} cannot be taken", figure(case.verdict, case.peer));
            case.measure(scene, clock).context(failed)?;
        }
    }
    report(&cases, &generator, clock, (rounds, packets));
    for (verdict, peer, why) in lacking {
        say(format_args!("| {} | {} | {why} | |", what(peer), verdict.name()));
        figures.miss(figure(verdict, peer), why);
    }
    figures.put(GENERATOR, Unit::Nanoseconds, generator);
    for Case { verdict, peer, time, .. } in cases {
        figures.put(figure(verdict, peer), Unit::Nanoseconds, time);
    }
    Ok(())
}

/// Has the master take the generator's frames, and the pod drop what is allowed.
fn prepare(scene: &Scene, verdict: Verdict, peer: Peer) -> Result<()> {
    let place = scene.place(peer, verdict).context("there is no such site")?;
    let is_polled = matches!(peer.kind, Kind::XdpEmpty | Kind::BothEmpty | Kind::Netpath);
    if !is_polled {
        place.site.poll(&scene.node)?;
    }
    if verdict == Verdict::Allowed { scene::load(&place.site.pod, &peers::sink()) } else { Ok(()) }
}

/// What it is, for the table.
fn what(peer: Peer) -> String {
    let size = if peer.kind.is_sized() { format!(": {}", peer.size) } else { String::new() };
    peer.kind.what().to_owned() + &size
}

/// A figure's name.
fn figure(verdict: Verdict, peer: Peer) -> String {
    format!("live/ingress/{}/{peer}", verdict.name())
}

impl Case {
    /// One slice of it; every packet must have become what the verdict says.
    fn measure(&mut self, scene: &mut Scene, clock: Clock) -> Result<()> {
        let Self { verdict, peer, packets, .. } = *self;
        let frame = frame_to_pod(verdict.other_end(), SOURCE)?;
        let place = scene.place(peer, verdict).context("there is no such site")?;
        let counted = |scene: &Scene| -> Result<[u64; 4]> {
            let place = scene.place(peer, verdict).context("there is no such site")?;
            let ours =
                place.policed.as_ref().map(|policed| policed.counted()).transpose()?.unwrap_or_default();
            Ok([place.site.master_device.received()?, self.pod.received()?, ours.rx_packets, ours.rx_dropped])
        };
        let wire = place.site.wire_index;
        let before = counted(scene)?;
        let time = clock.live(packets, || scene.programs.send(wire, &frame, packets))?;
        let all = u64::from(packets);
        let reaches_pod = verdict == Verdict::Allowed || peer.kind.is_in_pod();
        let ours = match (peer.kind, verdict) {
            (Kind::Netpath, Verdict::Allowed) => [all, 0],
            (Kind::Netpath, Verdict::Denied) => [0, all],
            _ => [0, 0],
        };
        let expected = [all, if reaches_pod { all } else { 0 }, ours[0], ours[1]];
        let found = || -> Result<[u64; 4]> {
            let now = counted(scene)?;
            Ok([0, 1, 2, 3].map(|at| now[at].wrapping_sub(before[at])))
        };
        eventually(|| Ok(found()? == expected))?;
        ensure!(
            found()? == expected,
            "of {all} frames {:?} came to the master, came to the pod, were passed by netpath, were dropped by netpath; \
             not {expected:?}",
            found()?
        );
        let place = scene.place(peer, verdict).context("there is no such site")?;
        ensure!(place.socket.recv(&mut [0; 64]).is_err(), "a frame came through to the pod's socket");
        self.time.push(time);
        Ok(())
    }
}

/// The table, and where netpath is not the cheapest.
fn report(cases: &[Case], generator: &Samples, clock: Clock, (rounds, packets): (usize, u32)) {
    let find = |verdict, kind, size| {
        let peer = Peer { kind, size };
        cases.iter().find(|case| case.verdict == verdict && case.peer == peer).map(|case| &case.time)
    };
    say(format_args!(
        "\n### From the wire\n\n{rounds} rounds of slices of {packets} frames, {SHORT} where a list is walked; all cases in each round. {} a frame, \
         **the generator's in each**: median (eight in ten lie between). Frames that the generator makes and takes \
         back: {generator}.\n\n| | | ns | of netpath's in the same round |\n|---|---|---:|---:|",
        clock.what()
    ));
    for Case { verdict, peer, time, .. } in cases {
        let ours = find(*verdict, Kind::Netpath, 100);
        let ratio = ours.and_then(|ours| time.paired(ours, |time, ours| time / ours));
        let ratio = ratio.map_or_else(String::new, |ratio| format!("{:.2}", ratio.median()));
        say(format_args!("| {} | {} | {time} | {ratio} |", what(*peer), verdict.name()));
    }
}
