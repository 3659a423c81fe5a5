//! What a pod's `sendto` costs: CPU time of the thread that calls it. All that follows runs in it as well, through the
//! pod's macvlan and the master to the far end of the wire, where a TC program counts the frame and drops it: the
//! least that an end can do, and the same for all. The receiving side of a veth without NAPI runs at the end of the
//! system call, on the same CPU.
//!
//! The datagrams are of one flow that nobody answers. So conntrack, where a peer asks it, never calls it established;
//! what it comes to once it was answered is a case of its own.

use std::{collections::BTreeSet, net::Ipv4Addr, os::fd::AsRawFd as _};

use anyhow::{Context as _, Result, bail, ensure};
use netpath_ebpf::abi::Counters;
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, SockaddrIn, sendto},
};

use super::{
    clock::Clock,
    eventually,
    peers::{Drop, Kind, Peer},
    scene::{Place, Scene},
    verdict::Verdict,
};
use crate::{
    Effort,
    figures::{Figures, Unit},
    order::order,
    samples::Samples,
    say,
};

/// Bytes of each datagram.
const PAYLOAD: [u8; 18] = [0; 18];
/// Packets before each slice, which warm what the slices of others have cooled down.
const WARM: u32 = 16;
/// Packets of a slice; fewer where each walks a list of a thousand.
const SLICE: u32 = 1024;
const SHORT: u32 = 128;

/// One figure in the making.
struct Case {
    peer: Peer,
    verdict: Verdict,
    packets: u32,
    /// Nanoseconds a packet, by round.
    time: Samples,
}

/// Which peers, in which sizes.
pub(super) fn peers(effort: Effort) -> Vec<Peer> {
    let (pods, sizes): (&[u32], &[u32]) = match effort {
        Effort::Quick => (&[1, 100], &[1, 100]),
        Effort::Usual => (&[1, 10, 100, 1000, 10_000, 100_000], &[1, 10, 100]),
        Effort::Full => (&[1, 10, 100, 1000, 10_000, 100_000], &[1, 10, 100, 1000]),
    };
    ALL.into_iter()
        .flat_map(|kind| {
            let sizes = match kind {
                Kind::Netpath => pods,
                kind if kind.is_sized() => sizes,
                _ => &[1],
            };
            sizes.iter().map(move |size| Peer { kind, size: *size })
        })
        .collect()
}

/// In the order of the table.
const ALL: [Kind; 13] = [
    Kind::None,
    Kind::NoneAgain,
    Kind::TcEmpty,
    Kind::Netpath,
    Kind::IptablesLegacy,
    Kind::IptablesNft,
    Kind::NftList,
    Kind::NftSet,
    Kind::Mnp,
    Kind::MnpEstablished,
    Kind::NftNetdev,
    Kind::NftNetdevSet,
    Kind::U32,
];

/// What `kind` is measured with.
fn verdicts(kind: Kind) -> &'static [Verdict] {
    match kind {
        // Nothing denies there, and conntrack never knew of what was denied.
        Kind::None | Kind::NoneAgain | Kind::MnpEstablished => &[Verdict::Allowed],
        _ => &[Verdict::Allowed, Verdict::Denied],
    }
}

/// Measures all cases and prints the table. On one CPU, in the namespace of the far ends.
pub(super) fn run(effort: Effort, scene: &Scene, clock: Clock, figures: &mut Figures) -> Result<()> {
    let rounds = match effort {
        Effort::Quick => 2,
        Effort::Usual => 70,
        Effort::Full => 120,
    };
    let peers = peers(effort);
    let of = |peer: Peer| verdicts(peer.kind).iter().map(move |verdict| (peer, *verdict));
    // What has no site and no reason for it fails when it is measured.
    let there = |(peer, _): &(Peer, Verdict)| !scene.missing.contains_key(&peer.kind);
    let mut cases: Vec<Case> = peers
        .iter()
        .flat_map(|peer| of(*peer))
        .filter(there)
        .map(|(peer, verdict)| Case {
            peer,
            verdict,
            packets: if peer.size < 1000 || peer.kind == Kind::Netpath { SLICE } else { SHORT },
            time: Samples::default(),
        })
        .collect();
    for round in 0..rounds {
        for at in order(round, cases.len()) {
            let case = &mut cases[at];
            let failed = format!("{} cannot be taken", figure(case.peer, case.verdict));
            case.measure(scene, clock).context(failed)?;
        }
    }
    for (peer, verdict) in peers.iter().flat_map(|peer| of(*peer)) {
        if let Some(why) = scene.missing.get(&peer.kind) {
            figures.miss(figure(peer, verdict), why);
        }
    }
    report(&cases, scene, clock, rounds);
    for Case { peer, verdict, time, .. } in cases {
        figures.put(figure(peer, verdict), Unit::Nanoseconds, time);
    }
    Ok(())
}

/// The clock for what this machine's kernel was built like.
pub(super) fn clock(scene: &Scene) -> Result<Clock> {
    let nobody = Peer { kind: Kind::None, size: 1 };
    let place = scene.place(nobody, Verdict::Allowed).context("there is no such site")?;
    Clock::choose(|| send(place, Verdict::Allowed.other_end(), SHORT).map(drop))
}

/// A figure's name.
fn figure(peer: Peer, verdict: Verdict) -> String {
    format!("live/egress/{}/{peer}", verdict.name())
}

impl Case {
    /// One slice of it; every packet must have become what the verdict says.
    fn measure(&mut self, scene: &Scene, clock: Clock) -> Result<()> {
        let Self { peer, verdict, packets, .. } = *self;
        let place = scene.place(peer, verdict).context("there is no such site")?;
        let all = u64::from(WARM + packets);
        let (sunk, counted) = (scene.programs.sunk()?, counted(place)?);
        let mut refused = send(place, verdict.other_end(), WARM)?;
        let begun = clock.now()?;
        refused += send(place, verdict.other_end(), packets)?;
        let time = clock.now()? - begun;
        let expected = if verdict == Verdict::Allowed { all } else { 0 };
        let arrived = || -> Result<u64> { Ok(scene.programs.sunk()?.wrapping_sub(sunk)) };
        eventually(|| Ok(arrived()? == expected))?;
        ensure!(arrived()? == expected, "of {all} packets {} have left the node, not {expected}", arrived()?);
        let expected = if verdict == Verdict::Denied && peer.kind.is_in_pod() { all } else { 0 };
        ensure!(refused == expected, "{refused} of {all} packets were refused, not {expected}");
        if let (Some(before), Some(after)) = (counted, self::counted(place)?) {
            let found = [after.tx_packets - before.tx_packets, after.tx_dropped - before.tx_dropped];
            let wanted = if verdict == Verdict::Allowed { [all, 0] } else { [0, all] };
            ensure!(found == wanted, "netpath counted {found:?}, passed and dropped, not {wanted:?}");
        }
        self.time.push(time.as_secs_f64() * 1e9 / f64::from(packets));
        Ok(())
    }
}

/// What netpath has counted at a place that it polices.
fn counted(place: &Place) -> Result<Option<Counters>> {
    place.policed.as_ref().map(|policed| policed.counted()).transpose()
}

/// Sends datagrams from the pod's socket, one by one, and says how many were refused: netfilter fails the call by EPERM.
/// What TC drops looks sent.
pub(super) fn send(place: &Place, to: Ipv4Addr, packets: u32) -> Result<u64> {
    let [a, b, c, d] = to.octets();
    let (socket, to) = (place.socket.as_raw_fd(), SockaddrIn::new(a, b, c, d, 53));
    let mut refused = 0;
    for _ in 0..packets {
        match sendto(socket, &PAYLOAD, &to, MsgFlags::empty()) {
            Ok(_) | Err(Errno::ENOBUFS) => {}
            Err(Errno::EPERM) => refused += 1,
            Err(errno) => bail!("sendto: {errno}"),
        }
    }
    Ok(refused)
}

/// The time of a case.
fn find(cases: &[Case], kind: Kind, size: u32, verdict: Verdict) -> Option<&Samples> {
    let peer = Peer { kind, size };
    cases.iter().find(|case| case.peer == peer && case.verdict == verdict).map(|case| &case.time)
}

/// The table.
fn report(cases: &[Case], scene: &Scene, clock: Clock, rounds: usize) {
    let sizes: BTreeSet<u32> =
        cases.iter().filter(|case| case.peer.kind.is_sized()).map(|case| case.peer.size).collect();
    let none = find(cases, Kind::None, 1, Verdict::Allowed).cloned().unwrap_or_default();
    say(format_args!(
        "\n### From a pod\n\n{rounds} rounds of slices of {SLICE} datagrams, {SHORT} where a list has a thousand entries; all \
         cases in each round. {} a datagram, median, and in brackets of `no policy` in the same round.\n",
        clock.what()
    ));
    let columns: Vec<String> = sizes.iter().map(u32::to_string).collect();
    say(format_args!("| | | {} |", columns.join(" | ")));
    say(format_args!("|---|---|{}", "---:|".repeat(columns.len())));
    let cell = |time: &Samples| {
        let ratio = time.paired(&none, |time, none| time / none).unwrap_or_default();
        format!("{:.0} ({:.2})", time.median(), ratio.median())
    };
    for kind in ALL {
        if let Some(why) = scene.missing.get(&kind) {
            say(format_args!("| {} | {why} |{}", kind.what(), " |".repeat(columns.len())));
            continue;
        }
        // What has no size stands in the first column.
        let sizes = if kind.is_sized() { sizes.clone() } else { BTreeSet::from([1]) };
        for verdict in verdicts(kind) {
            let cells =
                sizes.iter().map(|size| find(cases, kind, *size, *verdict).map(cell).unwrap_or_default());
            let cells: Vec<String> =
                cells.chain(std::iter::repeat_n(String::new(), columns.len() - sizes.len())).collect();
            say(format_args!("| {} | {} | {} |", kind.what(), verdict.name(), cells.join(" | ")));
        }
    }
    if scene.drop == Some(Drop::ToDown) && !scene.missing.contains_key(&Kind::U32) {
        say("\ntc u32 drops by sending to a device that is down: this kernel has no action that drops.");
    }
    cheaper(cases);
}

/// What differs by less is alike.
const ALIKE: f64 = 0.995;

/// Says who polices for less than netpath.
fn cheaper(cases: &[Case]) {
    for verdict in [Verdict::Allowed, Verdict::Denied] {
        let Some(ours) = find(cases, Kind::Netpath, 100, verdict) else { continue };
        let peers = cases.iter().filter(|case| case.verdict == verdict && is_policy(case.peer.kind));
        let cheaper = peers.filter_map(|case| {
            let ratio = case.time.paired(ours, |peer, ours| peer / ours)?.median();
            (ratio < ALIKE).then(|| format!("{} ({ratio:.2} of ours)", case.peer))
        });
        let cheaper: Vec<String> = cheaper.collect();
        let cheaper = if cheaper.is_empty() { "nothing".to_owned() } else { cheaper.join(", ") };
        say(format_args!("\nCheaper than netpath with 100 pods, {}: {cheaper}.", verdict.name()));
    }
}

/// Whether it decides anything.
fn is_policy(kind: Kind) -> bool {
    !matches!(
        kind,
        Kind::None | Kind::NoneAgain | Kind::TcEmpty | Kind::XdpEmpty | Kind::BothEmpty | Kind::Netpath
    )
}
