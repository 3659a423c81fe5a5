//! Suite `micro`: nanoseconds a packet of each program above an empty one of its type.
//!
//! Every figure is a difference between neighbours: the empty program runs on the same frames right before the
//! case does, and rounds over all cases are repeated, so that what the machine does meanwhile meets all of them.

use std::{collections::BTreeMap, ops::Range, path::Path, time::Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use netpath::kernel::bpf::Hook;
use netpath_ebpf::abi::flow_bits;

use crate::{
    Effort,
    figures::{Figures, Unit},
    frames::{
        self, AT_DESTINATION_MAC, AT_DESTINATION4, AT_PORTS4, AT_SOURCE_MAC, AT_SOURCE4, HOST_MAC, Mac,
        PEER_MAC, POD4, POD6, PREFIX4_STEP, UNKNOWN_MAC, pod_mac,
    },
    machine::{allowed_cpus, stay_on},
    node::{Counted, Node, Shape},
    samples::Samples,
    say,
    stage::{Reference, Stage, Vary},
};

/// Where the kinds of traffic are measured, and what the size of a node is held against.
const USUAL: Shape = Shape { endpoints: 100, prefixes: 8 };
/// How often a program is loaded: where its code comes to lie moves its time by up to ten nanoseconds.
const COPIES: usize = 6;

/// Sizes of the tables.
fn endpoints(effort: Effort) -> &'static [u32] {
    match effort {
        Effort::Quick => &[1, 100, 1024],
        Effort::Usual => &[1, 100, 1024, 100_000],
        Effort::Full => &[1, 100, 1024, 4096, 100_000],
    }
}

/// As [`endpoints`].
fn prefixes(effort: Effort) -> &'static [u32] {
    match effort {
        Effort::Quick => &[1, 8, 9, 1000],
        Effort::Usual => &[1, 8, 9, 100, 1000, 10_000],
        Effort::Full => &[1, 4, 8, 9, 16, 100, 1000, 10_000],
    }
}

/// What passes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Traffic {
    Allowed4,
    Allowed6,
    Denied4,
    Unknown,
    Host,
    Sibling,
    /// Allowed IPv4, of another endpoint each time.
    AllEndpoints,
    /// Allowed IPv4, with another prefix of the zone each time.
    AllPrefixes,
    /// Allowed IPv4, of a flow that nothing is known of.
    NewFlows,
}

impl Traffic {
    /// How it is called in the names of figures.
    fn slug(self) -> &'static str {
        match self {
            Self::Allowed4 => "allowed4",
            Self::Allowed6 => "allowed6",
            Self::Denied4 => "denied4",
            Self::Unknown => "unknown",
            Self::Host => "host",
            Self::Sibling => "sibling",
            Self::AllEndpoints => "endpoints",
            Self::AllPrefixes => "prefixes",
            Self::NewFlows => "flows",
        }
    }

    /// How it is called in the tables.
    fn name(self, hook: Hook) -> &'static str {
        match (self, hook) {
            (Self::Allowed4, _) => "allowed IPv4",
            (Self::Allowed6, _) => "allowed IPv6",
            (Self::Denied4, _) => "denied IPv4",
            (Self::Unknown, Hook::Egress) => "from a MAC that nobody owns",
            (Self::Unknown, _) => "for a MAC that nobody owns",
            (Self::Host, Hook::Egress) => "the host's own",
            (Self::Host, _) => "for the host",
            (Self::Sibling, _) => "allowed IPv4 from a sibling, judged for both",
            (Self::AllEndpoints, _) => "allowed IPv4, any endpoint",
            (Self::AllPrefixes, _) => "allowed IPv4, any prefix",
            (Self::NewFlows, _) => "allowed IPv4, a new flow each",
        }
    }

    /// Frames, and what has to become of them.
    fn plan(self, hook: Hook, shape: Shape) -> Plan {
        let middle = shape.prefixes / 2;
        let outside =
            |inside: Mac| if hook == Hook::Egress { (inside, PEER_MAC) } else { (PEER_MAC, inside) };
        let v4 = |inside: Mac, peer| match hook {
            Hook::Egress => frames::udp4(outside(inside), POD4, peer),
            Hook::Ingress | Hook::Xdp => frames::udp4(outside(inside), peer, POD4),
        };
        let v6 = |inside: Mac, peer| match hook {
            Hook::Egress => frames::udp6(outside(inside), POD6, peer),
            Hook::Ingress | Hook::Xdp => frames::udp6(outside(inside), peer, POD6),
        };
        let passed = match hook {
            Hook::Egress => Counted { sent: 1, ..Counted::default() },
            Hook::Ingress | Hook::Xdp => Counted { received: 1, ..Counted::default() },
        };
        let dropped = match hook {
            Hook::Egress => Counted { sent_dropped: 1, ..Counted::default() },
            Hook::Ingress | Hook::Xdp => Counted { received_dropped: 1, ..Counted::default() },
        };
        let plan = |frame, counted| Plan { frame, vary: Vary::default(), passes: true, counted };
        match self {
            Self::Allowed4 => plan(v4(pod_mac(0), frames::host4(middle)), passed),
            Self::Allowed6 => plan(v6(pod_mac(0), frames::host6(middle)), passed),
            Self::Denied4 => Plan { passes: false, ..plan(v4(pod_mac(0), frames::beside4(middle)), dropped) },
            Self::Unknown => {
                // Who sends is what egress has to know; for whom a frame is that nobody here owns, nobody asks.
                let unknown = u64::from(hook == Hook::Egress);
                plan(v4(UNKNOWN_MAC, frames::host4(middle)), Counted { unknown, ..Counted::default() })
            }
            Self::Host => {
                let host = u64::from(hook != Hook::Xdp);
                plan(v4(HOST_MAC, frames::host4(middle)), Counted { host, ..Counted::default() })
            }
            Self::Sibling => plan(
                frames::udp4((pod_mac(0), pod_mac(1)), POD4, POD4),
                Counted { sent: 1, received: 1, ..Counted::default() },
            ),
            Self::AllEndpoints => {
                let offset = if hook == Hook::Egress { AT_SOURCE_MAC } else { AT_DESTINATION_MAC };
                let vary = Vary { offset, count: shape.endpoints, step: 1, base: 0 };
                Plan { vary, ..plan(v4(pod_mac(0), frames::host4(middle)), passed) }
            }
            Self::AllPrefixes => {
                let offset = if hook == Hook::Egress { AT_DESTINATION4 } else { AT_SOURCE4 };
                let base = frames::host4(0).into();
                let vary = Vary { offset, count: shape.prefixes, step: PREFIX4_STEP, base };
                Plan { vary, ..plan(v4(pod_mac(0), frames::host4(middle)), passed) }
            }
            Self::NewFlows => {
                // A thousand times as many as are remembered; no port of DHCP is among them.
                let (base, step) = (0x4000_0035, 0x100);
                let vary = Vary { offset: AT_PORTS4, count: 1024 << flow_bits(1), step, base };
                Plan { vary, ..plan(v4(pod_mac(0), frames::host4(middle)), passed) }
            }
        }
    }
}

/// What is sent through a program, and what must come of each packet.
struct Plan {
    frame: Vec<u8>,
    vary: Vary,
    passes: bool,
    counted: Counted,
}

/// What one figure is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    hook: Hook,
    shape: Shape,
    traffic: Traffic,
}

/// One figure in the making.
struct Case {
    key: Key,
    plan: Plan,
    above: Samples,
    /// With the empty program's share.
    whole: Samples,
}

/// A reference program beside the empty one.
struct Floor {
    hook: Hook,
    reference: Reference,
    /// A load each.
    stages: Vec<Stage>,
    /// Above the empty program; of the empty program itself: the whole of it.
    above: Samples,
}

/// Runs the suite and prints its tables.
pub(crate) fn run(effort: Effort, figures: &mut Figures, reference: &Path) -> Result<()> {
    let (rounds, packets, copies) = match effort {
        Effort::Quick => (2, 2_000, 1),
        Effort::Usual => (18, 50_000, COPIES),
        Effort::Full => (42, 50_000, COPIES),
    };
    let mut cases: Vec<Case> = keys(effort).into_iter().map(Case::new).collect();
    let mut nodes = BTreeMap::new();
    let mut stages = BTreeMap::new();
    for key in cases.iter().map(|case| case.key) {
        if let std::collections::btree_map::Entry::Vacant(entry) = nodes.entry(key.shape) {
            let node = Node::new(key.shape, copies)
                .with_context(|| format!("cannot make a node of {:?}", key.shape))?;
            for hook in Hook::ALL {
                for (copy, program) in node.programs(hook).into_iter().enumerate() {
                    stages.insert((key.shape, hook, copy), Stage::of(reference, hook, program)?);
                }
            }
            entry.insert(node);
        }
    }
    let mut empty = BTreeMap::new();
    for (hook, copy) in Hook::ALL.into_iter().flat_map(|hook| (0..copies).map(move |copy| (hook, copy))) {
        empty.insert((hook, copy), Stage::of_reference(reference, hook, Reference::Empty)?);
    }
    let mut floors = floors(reference, copies)?;
    let mut limiter = Limiter::new(reference, copies)?;
    let mut two_cpus = TwoCpus::new(reference, nodes.get(&USUAL).context("the usual node")?)?;
    for copy in (0..copies).cycle().take(rounds) {
        for floor in &mut floors {
            let bare = empty.get_mut(&(floor.hook, copy)).context("an empty program of each type")?;
            floor.measure(bare, copy, packets)?;
        }
        for case in &mut cases {
            let Key { hook, shape, traffic } = case.key;
            let bare = empty.get_mut(&(hook, copy)).context("an empty program of each type")?;
            let stage = stages.get_mut(&(shape, hook, copy)).context("a stage of each program")?;
            let node = nodes.get(&shape).context("a node of each shape")?;
            case.measure(node, bare, stage, packets)
                .with_context(|| format!("{}, {}, {shape:?}", hook.name(), traffic.name(hook)))?;
        }
        let limited = stages.get_mut(&(USUAL, Hook::Egress, copy)).context("a stage of each program")?;
        let usual = nodes.get(&USUAL).context("the usual node")?;
        limiter.measure(usual, limited, copy, packets).context("egress, events held back")?;
        if let Some(two_cpus) = &mut two_cpus {
            two_cpus.measure(usual, packets).context("egress on two CPUs")?;
        }
    }
    report(effort, &cases, &floors, rounds, packets);
    limiter.finish(figures);
    match two_cpus {
        Some(two_cpus) => two_cpus.finish(figures),
        None => TwoCpus::NAMES.into_iter().for_each(|name| figures.miss(name, "one CPU")),
    }
    for floor in floors {
        let kind = if floor.hook == Hook::Xdp { "xdp" } else { "tc" };
        figures.put(format!("micro/{kind}/{}", floor.reference.slug()), Unit::Nanoseconds, floor.above);
    }
    for Case { key: Key { hook, shape, traffic }, above, whole, .. } in cases {
        let Shape { endpoints, prefixes } = shape;
        let name = format!("micro/{}/{}/{endpoints}/{prefixes}", hook.name(), traffic.slug());
        figures.put(format!("{name}/whole"), Unit::Nanoseconds, whole);
        figures.put(name, Unit::Nanoseconds, above);
    }
    Ok(())
}

/// Everything that is measured, each once, in the order of the tables.
fn keys(effort: Effort) -> Vec<Key> {
    let mut keys = Vec::new();
    for hook in Hook::ALL {
        keys.extend(kinds(hook).into_iter().map(|traffic| Key { hook, shape: USUAL, traffic }));
        for endpoints in endpoints(effort) {
            let shape = Shape { endpoints: *endpoints, ..USUAL };
            keys.extend([Traffic::Allowed4, Traffic::AllEndpoints].map(|traffic| Key {
                hook,
                shape,
                traffic,
            }));
        }
        for prefixes in prefixes(effort) {
            let shape = Shape { prefixes: *prefixes, ..USUAL };
            keys.extend(LISTED.map(|traffic| Key { hook, shape, traffic }));
        }
    }
    keys.sort();
    keys.dedup();
    keys
}

/// What the first table has of a program.
fn kinds(hook: Hook) -> Vec<Traffic> {
    let mut kinds = vec![
        Traffic::Allowed4,
        Traffic::Allowed6,
        Traffic::NewFlows,
        Traffic::Denied4,
        Traffic::Unknown,
        Traffic::Host,
    ];
    if hook == Hook::Ingress {
        kinds.push(Traffic::Sibling);
    }
    kinds
}

/// What is measured for each length of a zone's list.
const LISTED: [Traffic; 5] =
    [Traffic::Allowed4, Traffic::Allowed6, Traffic::Denied4, Traffic::AllPrefixes, Traffic::NewFlows];

impl Case {
    fn new(key: Key) -> Self {
        let plan = key.traffic.plan(key.hook, key.shape);
        Self { key, plan, above: Samples::default(), whole: Samples::default() }
    }

    /// One round of it.
    fn measure(&mut self, node: &Node, bare: &mut Stage, stage: &mut Stage, packets: u32) -> Result<()> {
        let Plan { frame, vary, passes, counted } = &self.plan;
        let below = bare.run(frame, *vary, packets)?;
        let before = node.counted()?;
        let run = stage.run(frame, *vary, packets)?;
        let after = node.counted()?;
        ensure!(run.passed == *passes, "the packet {}", if run.passed { "passed" } else { "was dropped" });
        count(after, before, *counted, packets)?;
        self.above.push(run.nanoseconds - below.nanoseconds);
        self.whole.push(run.nanoseconds);
        Ok(())
    }
}

/// Fails unless so many packets were counted since `before`, each as `each`.
fn count(after: Counted, before: Counted, each: Counted, packets: u32) -> Result<()> {
    let found = after.since(before, each, packets.into());
    found.map_err(|found| {
        anyhow!("of {packets} packets {found:?} were counted, of each it should have been {each:?}")
    })
}

/// What it costs that the events of a flood are held back: a drop whose budget for events is used up, beside one in
/// maps without a row for budgets, which is only counted.
struct Limiter {
    node: Node,
    silent: Vec<Stage>,
    above: Samples,
}

impl Limiter {
    fn new(reference: &Path, copies: usize) -> Result<Self> {
        let node = Node::without_budgets(USUAL, copies)?;
        let silent = node.programs(Hook::Egress).into_iter();
        let silent =
            silent.map(|program| Stage::of(reference, Hook::Egress, program)).collect::<Result<_>>()?;
        Ok(Self { node, silent, above: Samples::default() })
    }

    /// One round; `limited` is of `usual`, where the flood of the cases has used up the budget.
    fn measure(&mut self, usual: &Node, limited: &mut Stage, copy: usize, packets: u32) -> Result<()> {
        let Plan { frame, vary, counted, .. } = Traffic::Denied4.plan(Hook::Egress, USUAL);
        let before = (usual.events_limited()?, usual.counted()?, self.node.counted()?);
        let silent = self.silent[copy].run(&frame, vary, packets)?;
        let limited = limited.run(&frame, vary, packets)?;
        for (now, before) in [(usual.counted()?, before.1), (self.node.counted()?, before.2)] {
            count(now, before, counted, packets)?;
        }
        ensure!(self.node.events_limited()? == 0, "there was a budget");
        let held = usual.events_limited()? - before.0;
        ensure!(held == u64::from(packets), "of {packets} events {held} were held back");
        self.above.push(limited.nanoseconds - silent.nanoseconds);
        Ok(())
    }

    fn finish(self, figures: &mut Figures) {
        say(format_args!("\nAn event held back, above a drop that is only counted: {} ns.", self.above));
        figures.put("micro/egress/limiter", Unit::Nanoseconds, self.above);
    }
}

/// One endpoint that sends by one CPU, and by two at once.
struct TwoCpus {
    cpus: [usize; 2],
    stages: [Stage; 2],
    alone: Samples,
    both: Samples,
}

impl TwoCpus {
    const NAMES: [&str; 2] = ["micro/egress/cpus/1", "micro/egress/cpus/2"];

    /// `None` where there is one CPU.
    fn new(reference: &Path, node: &Node) -> Result<Option<Self>> {
        // Far apart, so that they do not share a core.
        let allowed = allowed_cpus()?;
        let (Some(first), Some(last)) = (allowed.first(), allowed.last()) else { return Ok(None) };
        if first == last {
            return Ok(None);
        }
        let program = *node.programs(Hook::Egress).first().context("a copy")?;
        let stage = || Stage::of(reference, Hook::Egress, program);
        let (cpus, stages) = ([*first, *last], [stage()?, stage()?]);
        Ok(Some(Self { cpus, stages, alone: Samples::default(), both: Samples::default() }))
    }

    /// One round: each CPU alone, then both, as often as it takes until most of it was at once.
    fn measure(&mut self, node: &Node, packets: u32) -> Result<()> {
        let Plan { frame, vary, counted, .. } = Traffic::Allowed4.plan(Hook::Egress, USUAL);
        const TRIES: u32 = 20;
        // A thread wakes tens of microseconds after the other: that is to be nothing of it.
        let packets = 20 * packets;
        let start = std::sync::Barrier::new(2);
        let ([one_cpu, other_cpu], [first, second]) = (self.cpus, &mut self.stages);
        let on = |cpu: usize, stage: &mut Stage, waits: bool| -> Result<(f64, Range<Instant>)> {
            stay_on(cpu)?;
            if waits {
                start.wait();
            }
            let begun = Instant::now();
            let run = stage.run(&frame, vary, packets)?;
            Ok((run.nanoseconds, begun..Instant::now()))
        };
        let before = node.counted()?;
        // Threads of their own: this one stays where the kernel puts it.
        let alone = std::thread::scope(|scope| joined(scope.spawn(|| on(one_cpu, first, false))))?.0
            + std::thread::scope(|scope| joined(scope.spawn(|| on(other_cpu, second, false))))?.0;
        let mut both = || -> Result<_> {
            let (one, other) = std::thread::scope(|scope| {
                let other = scope.spawn(|| on(other_cpu, second, true));
                let one = scope.spawn(|| on(one_cpu, first, true));
                (joined(one), joined(other))
            });
            let ((one, when), (other, at)) = (one?, other?);
            let together = when.end.min(at.end).saturating_duration_since(when.start.max(at.start));
            Ok(((one + other) / 2.0, (when.end - when.start).max(at.end - at.start) < 2 * together))
        };
        let mut tries = 0;
        let both = loop {
            let (took, is_at_once) = both()?;
            tries += 1;
            if is_at_once {
                break took;
            }
            ensure!(tries < TRIES, "two CPUs cannot be had at once");
        };
        // Two loads of the stage differ: both are in either figure.
        self.alone.push(alone / 2.0);
        self.both.push(both);
        count(node.counted()?, before, counted, (2 + 2 * tries) * packets)?;
        Ok(())
    }

    fn finish(self, figures: &mut Figures) {
        say(format_args!(
            "One endpoint on one CPU: {} ns, on two at once: {} ns each.",
            self.alone, self.both
        ));
        for (name, samples) in Self::NAMES.into_iter().zip([self.alone, self.both]) {
            figures.put(name, Unit::Nanoseconds, samples);
        }
    }
}

fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn floors(reference: &Path, copies: usize) -> Result<Vec<Floor>> {
    let mut floors = Vec::new();
    for hook in [Hook::Egress, Hook::Xdp] {
        for kind in [Reference::Empty, Reference::Parse, Reference::Lookup] {
            let stage = |_| -> Result<Stage> {
                let mut stage = Stage::of_reference(reference, hook, kind)?;
                stage.add_row(pod_mac(0))?;
                Ok(stage)
            };
            let stages = (0..copies).map(stage).collect::<Result<_>>()?;
            floors.push(Floor { hook, reference: kind, stages, above: Samples::default() });
        }
    }
    Ok(floors)
}

impl Floor {
    fn measure(&mut self, bare: &mut Stage, copy: usize, packets: u32) -> Result<()> {
        let frame = frames::udp4((pod_mac(0), PEER_MAC), POD4, frames::host4(0));
        let below = match self.reference {
            Reference::Empty => 0.0,
            Reference::Parse | Reference::Lookup => bare.run(&frame, Vary::default(), packets)?.nanoseconds,
        };
        let run = self.stages[copy].run(&frame, Vary::default(), packets)?;
        ensure!(run.passed, "reference program {:?} dropped a packet", self.reference);
        self.above.push(run.nanoseconds - below);
        Ok(())
    }
}

/// The tables.
fn report(effort: Effort, cases: &[Case], floors: &[Floor], rounds: usize, packets: u32) {
    let find = |hook, shape, traffic| {
        let key = Key { hook, shape, traffic };
        cases.iter().find(|case| case.key == key).map_or(Samples::default(), |case| case.above.clone())
    };
    say(format_args!(
        "{} cases, each {rounds} times {packets} packets in turn with an empty program of its type. Nanoseconds a packet \
         above that: median (eight in ten lie between).\n",
        cases.len()
    ));
    say("### The reference programs\n\n| | TC | XDP |\n|---|---:|---:|");
    for (kind, name) in [
        (Reference::Empty, "empty, on its stage: the whole time"),
        (Reference::Parse, "reads Ethernet and IPv4"),
        (Reference::Lookup, "and looks up one row of 144 bytes by MAC"),
    ] {
        let of = |hook| floors.iter().find(|floor| floor.hook == hook && floor.reference == kind);
        let of = |hook| of(hook).map_or(Samples::default(), |floor| floor.above.clone());
        say(format_args!("| {name} | {} | {} |", of(Hook::Egress), of(Hook::Xdp)));
    }
    say(format_args!(
        "\n### Each program\n\n{} endpoints, {} prefixes of each family.\n\n| program | packet | ns |\n|---|---|---:|",
        USUAL.endpoints, USUAL.prefixes
    ));
    for hook in HOOKS {
        for traffic in kinds(hook) {
            say(format_args!(
                "| {} | {} | {} |",
                hook.name(),
                traffic.name(hook),
                find(hook, USUAL, traffic)
            ));
        }
    }
    let shapes = endpoints(effort).iter().map(|count| (*count, Shape { endpoints: *count, ..USUAL }));
    sweep(&find, "endpoints", &shapes.collect::<Vec<_>>(), &[Traffic::Allowed4, Traffic::AllEndpoints], 1);
    let shapes = prefixes(effort).iter().map(|count| (*count, Shape { prefixes: *count, ..USUAL }));
    sweep(&find, "prefixes of each family", &shapes.collect::<Vec<_>>(), &LISTED, 9);
}

/// The programs in the order of the tables.
const HOOKS: [Hook; 3] = [Hook::Egress, Hook::Ingress, Hook::Xdp];

/// A table over one size: a column for each, and the ratio of the largest to `small`.
fn sweep(
    find: &impl Fn(Hook, Shape, Traffic) -> Samples,
    what: &str,
    shapes: &[(u32, Shape)],
    rows: &[Traffic],
    small: u32,
) {
    let large = shapes.last().map_or(small, |(count, _)| *count);
    let columns: Vec<String> = shapes.iter().map(|(count, _)| count.to_string()).collect();
    say(format_args!(
        "\n### Over {what}\n\n| program | packet | {} | {large} / {small} |\n|---|---|{}---:|",
        columns.join(" | "),
        "---:|".repeat(columns.len())
    ));
    for hook in HOOKS {
        for traffic in rows {
            let cells: Vec<(u32, Samples)> =
                shapes.iter().map(|(count, shape)| (*count, find(hook, *shape, *traffic))).collect();
            let median = |count| {
                cells.iter().find(|(other, _)| *other == count).map_or(f64::NAN, |(_, cell)| cell.median())
            };
            let texts: Vec<String> = cells.iter().map(|(_, cell)| cell.to_string()).collect();
            let ratio = median(large) / median(small);
            say(format_args!(
                "| {} | {} | {} | {ratio:.2} |",
                hook.name(),
                traffic.name(hook),
                texts.join(" | ")
            ));
        }
    }
}
