//! `cargo xtask test`: the tests by tier, from what needs nothing to what needs a whole lab.
//!
//! A file in `netpath/tests` belongs to a tier by its name. One that belongs to none, or to two, fails the
//! run: no test is forgotten. What cannot run fails as well; only asking for another tier leaves tests out.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::{
    bench,
    beside::Beside,
    build::{self, Profile},
    cluster::stage::Stage,
    ebpf,
    excerpt::Excerpts,
    fuzz, lint,
    process::{self, say},
    setup, vm, workspace,
};

/// What is asked for on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Selection {
    /// Set-up, lint, release binary, every tier, fuzzing and the benchmark for some seconds.
    All,
    /// Pure code and the tools; needs neither root nor the eBPF object.
    Unit,
    /// The compiled programs, by BPF_PROG_TEST_RUN.
    Programs,
    /// Links, routes, programs and maps in network namespaces.
    Kernel,
    /// The plugin, by its protocol and against the standard plugins.
    Cni,
    /// The lab.
    Lab,
    /// Pods of a real container runtime.
    Runtime,
    /// A Kubernetes of real parts, which is built once.
    Cluster,
    /// Every fuzz target, for some seconds.
    Fuzz,
    /// Every case of the benchmark, briefly: verdicts and counters must be right, times may be any.
    Bench,
    /// The programs, the tests of tiers `programs` and `kernel`, and the masters that the ordinary kernel may lack,
    /// on Debian's kernels in emulated machines.
    Vm,
}

/// Tests that need the same things.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tier {
    Unit,
    Programs,
    Kernel,
    Cni,
    Lab,
    Runtime,
    Cluster,
    Vm,
}

/// Which files of `netpath/tests` belong to which tier; `*` at the end stands for anything.
const TIERS: &[(Tier, &[&str])] = &[
    (Tier::Unit, &["layering", "golden*", "pure_*", "docs*"]),
    (Tier::Programs, &["bpf_*", "programs*"]),
    (Tier::Kernel, &["kernel_*", "netns_*", "exec_*", "datapath_*"]),
    (Tier::Cni, &["cni_*", "plugin_*", "ipam*", "dhcp*", "state_*"]),
    (Tier::Lab, &["lab*"]),
    (Tier::Runtime, &["runtime_*"]),
    (Tier::Cluster, &["cluster_*"]),
    (Tier::Vm, &["vm_*"]),
];

/// What is run whole instead of by `cargo test`; it counts as one test.
struct Run {
    selection: Selection,
    /// As one would type it.
    command: &'static str,
    run: fn() -> Result<()>,
}

const RUNS: &[Run] = &[
    Run { selection: Selection::Fuzz, command: "cargo xtask fuzz", run: fuzz::brief },
    Run { selection: Selection::Bench, command: "cargo xtask bench --quick", run: bench::quick },
];

/// What the summary lines of test runs add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
}

/// Runs the tests that were asked for. The last line is the sum of all of them.
pub(crate) fn run(selection: Selection, skip_setup: bool) -> Result<()> {
    let files = files()?;
    let tiers: Vec<Tier> =
        TIERS.iter().map(|(tier, _)| *tier).filter(|tier| selection.includes(*tier)).collect();
    let runs: Vec<&Run> =
        RUNS.iter().filter(|run| selection == Selection::All || selection == run.selection).collect();
    if let [tier] = tiers[..]
        && !files.contains_key(&tier)
    {
        bail!("no file in netpath/tests belongs to tier {tier:?}");
    }
    let privileged = tiers.iter().any(|tier| *tier != Tier::Unit) || !runs.is_empty();
    if privileged && !process::is_root()? {
        bail!(
            "these tests make network namespaces and load programs: run them as root (`cargo xtask test unit` needs no rights)"
        );
    }
    let mut laps = Laps::begin();
    if privileged && !skip_setup {
        setup::run(setup::Mode::Install)?;
        laps.end("set-up");
    }
    match selection {
        Selection::All => compile()?,
        Selection::Unit => {}
        _ => ebpf::run()?,
    }
    laps.end("build");
    // An emulated machine is one busy thread, and most tests wait most of the time.
    let machines =
        (selection == Selection::All).then(|| Beside::start(&["vm-test", "--beside"])).transpose()?;
    let mut tally = Tally::default();
    let (mut broken, mut notes, mut excerpts) = (Vec::new(), Vec::new(), Vec::new());
    for tier in tiers {
        if tier == Tier::Vm {
            if machines.is_some() {
                continue;
            }
            say(format_args!("\n== {tier:?} =="));
            let outcome = vm::run(&vm::Series::ALL, &[], vm::Cpus::All, vm::FileSystem::Removed)?;
            tally = tally.and(outcome.tally);
            broken.extend(outcome.problems);
            notes.extend(outcome.skipped);
            excerpts.extend(outcome.excerpts);
            laps.end(&format!("{tier:?}"));
            continue;
        }
        let targets = files.get(&tier).map(Vec::as_slice).unwrap_or_default();
        // Stands until the tests of this tier have run.
        let stage = cluster_stage(tier, targets)?;
        notes.extend(stage.note.clone());
        let targets = &stage.targets;
        for args in arguments(tier, targets) {
            say(format_args!("\n== {tier:?} =="));
            broken.extend(cargo_test(&args, &stage.environment, &mut tally, &mut excerpts)?);
        }
        laps.end(&format!("{tier:?}"));
    }
    for run in runs {
        say(format_args!("\n== {:?} ==", run.selection));
        match (run.run)() {
            Ok(()) => tally.passed += 1,
            Err(error) => {
                say(format_args!("error: {error:#}"));
                tally.failed += 1;
                broken.push(run.command.to_owned());
            }
        }
        laps.end(&format!("{:?}", run.selection));
    }
    if let Some(machines) = machines {
        say(format_args!("\n== {:?} ==", Tier::Vm));
        let ended = machines.end()?;
        tally = tally.and(ended.tally);
        broken.extend(ended.broken);
        notes.extend(ended.notes);
        laps.end(&format!("rest of {:?}", Tier::Vm));
    }
    notes.push(laps.to_string());
    conclude(tally, &broken, &excerpts, &notes)
}

/// Judges the source and compiles everything that a whole run needs, so that nothing is compiled beside tests. One thread
/// links the binary that ships, for minutes: the rest goes on meanwhile.
fn compile() -> Result<()> {
    // First, since netpath is compiled around the object.
    ebpf::run()?;
    thread::scope(|scope| {
        let shipped = scope.spawn(|| build::binary(Profile::Release));
        let rest = lint::run().and_then(|()| tests());
        match shipped.join() {
            Ok(Err(error)) if rest.is_err() => {
                say(format_args!("error: {error:#}"));
                rest
            }
            Ok(shipped) => rest.and(shipped.map(drop)),
            Err(_) => bail!("the thread that built the binary that ships panicked"),
        }
    })
}

/// Compiles all tests.
fn tests() -> Result<()> {
    let mut command = workspace::cargo()?;
    command.args(["test", "--quiet", "--locked", "--no-run", workspace::MEMBERS]);
    process::run(command.args(["--lib", "--bins", "--tests"]))
}

/// What took how long, so that a run that has become slow says where.
struct Laps {
    last: Instant,
    laps: Vec<(String, Duration)>,
}

impl Laps {
    fn begin() -> Self {
        Self { last: Instant::now(), laps: Vec::new() }
    }

    /// What went on since the last end has this name.
    fn end(&mut self, name: &str) {
        let now = Instant::now();
        self.laps.push((name.to_owned(), now.duration_since(self.last)));
        self.last = now;
    }
}

impl fmt::Display for Laps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let laps: Vec<_> =
            self.laps.iter().map(|(name, took)| format!("{name} {} s", took.as_secs())).collect();
        write!(f, "took: {}", laps.join(", "))
    }
}

impl Selection {
    fn includes(self, tier: Tier) -> bool {
        match self {
            Self::All => true,
            Self::Unit => tier == Tier::Unit,
            Self::Programs => tier == Tier::Programs,
            Self::Kernel => tier == Tier::Kernel,
            Self::Cni => tier == Tier::Cni,
            Self::Lab => tier == Tier::Lab,
            Self::Runtime => tier == Tier::Runtime,
            Self::Cluster => tier == Tier::Cluster,
            Self::Vm => tier == Tier::Vm,
            Self::Fuzz | Self::Bench => false,
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

impl Tally {
    /// Reads the sum that a run ends with.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let (passed, failed) = line.strip_suffix(" failed")?.split_once(" passed, ")?;
        Some(Self { passed: passed.parse().ok()?, failed: failed.parse().ok()?, ignored: 0 })
    }

    /// The sum of two.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            ignored: self.ignored + other.ignored,
        }
    }
}

/// The test targets that need a kernel and the programs in it, and nothing else.
pub(crate) fn kernel_targets() -> Result<Vec<String>> {
    let mut files = files()?;
    Ok([Tier::Programs, Tier::Kernel, Tier::Vm]
        .into_iter()
        .flat_map(|tier| files.remove(&tier).unwrap_or_default())
        .collect())
}

/// The files of tests of all members by their tier; those of others than netpath need nothing.
fn files() -> Result<BTreeMap<Tier, Vec<String>>> {
    let mut members = workspace::test_targets()?;
    let mut files = by_tier(&members.remove("netpath").context("netpath is no member of the workspace")?)?;
    files.entry(Tier::Unit).or_default().extend(members.into_values().flatten());
    Ok(files)
}

fn by_tier(targets: &[String]) -> Result<BTreeMap<Tier, Vec<String>>> {
    let mut files: BTreeMap<Tier, Vec<String>> = BTreeMap::new();
    for target in targets {
        let belongs = |patterns: &[&str]| patterns.iter().any(|pattern| matches(pattern, target));
        let tiers: Vec<Tier> =
            TIERS.iter().filter(|(_, patterns)| belongs(patterns)).map(|(tier, _)| *tier).collect();
        match tiers[..] {
            [tier] => files.entry(tier).or_default().push(target.clone()),
            [] => bail!(
                "netpath/tests/{target}.rs belongs to no tier, so it would never run: name it by a pattern of TIERS in \
                 xtask/src/test.rs, or add one"
            ),
            _ => bail!(
                "netpath/tests/{target}.rs belongs to more than one tier by TIERS in xtask/src/test.rs: {tiers:?}"
            ),
        }
    }
    Ok(files)
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == pattern,
    }
}

/// The arguments of each `cargo test` that a tier takes.
fn arguments(tier: Tier, targets: &[String]) -> Vec<Vec<String>> {
    let with = |words: &[&str]| -> Vec<String> {
        std::iter::once(&workspace::MEMBERS).chain(words).map(|word| (*word).to_owned()).collect()
    };
    let files = targets.iter().flat_map(|target| ["--test", target]).collect::<Vec<_>>();
    match tier {
        Tier::Unit => vec![with(&[&["--lib", "--bins"], &files[..]].concat()), with(&["--doc"])],
        _ if targets.is_empty() => Vec::new(),
        _ => vec![with(&files)],
    }
}

/// Prepares what a tier's tests run on.
fn cluster_stage(tier: Tier, targets: &[String]) -> Result<Stage> {
    match tier {
        Tier::Runtime => Stage::of_runtimes(targets),
        Tier::Cluster => Stage::of_kubernetes(targets),
        _ => Ok(Stage::bare(targets)),
    }
}

/// Runs one `cargo test` to its end, whatever fails in it; returns its command line if it failed, and adds to
/// `excerpts` what the tests that failed said.
fn cargo_test(
    args: &[String],
    environment: &[(&'static str, OsString)],
    tally: &mut Tally,
    excerpts: &mut Vec<String>,
) -> Result<Option<String>> {
    let mut said = Excerpts::default();
    let mut command: Command = workspace::cargo()?;
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    command.args(["test", "--quiet", "--locked", "--no-fail-fast"]).args(args);
    let line = process::line(&command);
    say(format_args!("$ {line}"));
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start: {line}"))?;
    let stdout = child.stdout.take().with_context(|| format!("no output of: {line}"))?;
    for text in BufReader::new(stdout).split(b'\n') {
        let text = text.with_context(|| format!("cannot read the output of: {line}"))?;
        let text = String::from_utf8_lossy(&text);
        say(&text);
        said.take(&text);
        if let Some(result) = parse_result(&text) {
            *tally = tally.and(result);
        }
    }
    excerpts.extend(said.into_texts());
    let status = child.wait().with_context(|| format!("cannot wait for: {line}"))?;
    Ok((!status.success()).then_some(line))
}

/// Reads `test result: ok. 5 passed; 0 failed; 0 ignored; …`.
pub(crate) fn parse_result(line: &str) -> Option<Tally> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |name: &str| {
        let field = counts.split("; ").find_map(|field| field.strip_suffix(name))?;
        field.trim().parse().ok()
    };
    Some(Tally { passed: count("passed")?, failed: count("failed")?, ignored: count("ignored")? })
}

/// Ends a run: what failed and what it said, what was not tried, the sum.
fn conclude(tally: Tally, broken: &[String], excerpts: &[String], notes: &[String]) -> Result<()> {
    let Tally { passed, ignored, .. } = tally;
    let verdict = match (broken, passed, ignored) {
        ([], 0, _) => Err("no test ran".to_owned()),
        ([], _, 1..) => Err(format!("{ignored} ignored tests: a test that does not run is a failed test")),
        ([], _, 0) => Ok(()),
        (broken, ..) => Err(format!("failed:\n  {}", broken.join("\n  "))),
    };
    if let Err(reason) = &verdict {
        say(format_args!("\n{reason}"));
    }
    excerpts.iter().for_each(|excerpt| say(format_args!("\n{excerpt}")));
    notes.iter().for_each(|note| say(format_args!("\n{note}")));
    say(format_args!("\n{tally}"));
    match verdict {
        Ok(()) => Ok(()),
        // The reason stands above; the sum is to be the last line of a run.
        Err(_) => std::process::exit(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn every_file_belongs_to_one_tier() {
        let files =
            by_tier(&names(&["bpf_egress", "kernel_netns", "lab", "layering", "runtime_pods", "vm_masters"]))
                .unwrap();
        assert_eq!(files[&Tier::Programs], ["bpf_egress"]);
        assert_eq!(files[&Tier::Unit], ["layering"]);
        assert_eq!(files[&Tier::Runtime], ["runtime_pods"]);
        assert_eq!(files[&Tier::Vm], ["vm_masters"]);
        let forgotten = by_tier(&names(&["kernel_netns", "somewhere"])).unwrap_err().to_string();
        assert!(forgotten.starts_with("netpath/tests/somewhere.rs belongs to no tier"), "{forgotten}");
    }

    #[test]
    fn patterns_do_not_overlap() {
        let all: Vec<&str> = TIERS.iter().flat_map(|(_, patterns)| *patterns).copied().collect();
        for (index, pattern) in all.iter().enumerate() {
            let example = pattern.trim_end_matches('*');
            let others = all.iter().enumerate().filter(|(other, _)| *other != index);
            let hits: Vec<_> = others.filter(|(_, other)| matches(other, example)).collect();
            assert!(hits.is_empty(), "{pattern} overlaps {hits:?}");
        }
    }

    #[test]
    fn summaries_are_added_up() {
        let line = "test result: FAILED. 5 passed; 2 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s";
        assert_eq!(parse_result(line), Some(Tally { passed: 5, failed: 2, ignored: 1 }));
        assert_eq!(parse_result("test spec::names ... ok"), None);
    }

    #[test]
    fn a_tier_runs_its_files_and_nothing_twice() {
        let cni = arguments(Tier::Cni, &names(&["cni_add", "ipam"]));
        assert_eq!(cni, [names(&["--workspace", "--test", "cni_add", "--test", "ipam"])]);
        assert!(arguments(Tier::Lab, &[]).is_empty());
        assert_eq!(arguments(Tier::Unit, &[]).len(), 2);
    }
}
