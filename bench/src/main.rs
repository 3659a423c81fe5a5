//! The benchmark: what netpath costs, each figure beside what it is compared with, in one run.
//!
//! One suite a module; README.md has the method and the results. A run fails where a case could not be run or a
//! program did not do what the case says; by a time it fails only when it is asked to hold its ratios against the
//! goals (`--check`).

mod agent;
mod cluster;
mod cni;
mod figures;
mod frames;
mod goals;
mod guard;
mod history;
mod live;
mod machine;
mod micro;
mod netns;
mod node;
mod plot;
mod report;
mod root;
mod samples;
mod stage;
mod sync;

use std::{collections::BTreeSet, fmt::Display, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum};

use self::{figures::Figures, guard::Guard};

/// Measures what netpath costs, beside what it is compared with.
#[derive(Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench", disable_version_flag = true)]
struct Cli {
    /// What is measured; without any, all but `cluster`.
    suites: Vec<Suite>,
    /// Every case once or twice, in 90 seconds: whether all of them run and count right; times mean little.
    #[arg(long)]
    quick: bool,
    /// More rounds and larger sizes, in about twelve minutes.
    #[arg(long, conflicts_with = "quick")]
    full: bool,
    /// Only what these goals need, such as `P5,P7`.
    #[arg(long, value_delimiter = ',', value_name = "GOAL")]
    only: Vec<String>,
    /// Fail where a ratio is beyond its goal.
    #[arg(long, conflicts_with = "quick")]
    check: bool,
    /// With --check: how many times its limit a ratio may be; 1.15 where other work disturbs the machine.
    #[arg(long, default_value_t = 1.0, requires = "check", value_name = "FACTOR")]
    slack: f64,
    /// Append each figure as a line of JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw plots into this directory, as SVG.
    #[arg(long, value_name = "DIRECTORY")]
    plots: Option<PathBuf>,
}

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Suite {
    /// Nanoseconds a packet of each program, by BPF_PROG_TEST_RUN on the shipped object.
    Micro,
    /// CPU time of traffic of pods, with netpath and with other ways to police it.
    Live,
    /// Time of ADD and DEL, beside the standard plugins and what the kernel alone takes.
    Cni,
    /// What grows with the endpoints of a node: rows, counters, a scrape of the agent.
    Sync,
    /// Time that a container runtime takes for pods on a cluster of real parts; only where it is named.
    Cluster,
}

/// How much of everything is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Effort {
    /// Enough to see that every case runs.
    Quick,
    /// Enough for figures that can be read.
    Usual,
    /// All sizes.
    Full,
}

/// Where the reference programs are; `cargo xtask bench` builds them and sets it.
const REFERENCE_VARIABLE: &str = "NETPATH_BENCH_REFERENCE";
/// Where the release binary is; `cargo xtask bench` builds it and sets it.
const BINARY_VARIABLE: &str = "NETPATH_BENCH_BINARY";

fn main() -> ExitCode {
    if guard::serve() {
        return ExitCode::SUCCESS;
    }
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    let cli = Cli::parse();
    let goals = goals::select(goals::all()?, &cli.only)?;
    let effort = match (cli.quick, cli.full) {
        (true, _) => Effort::Quick,
        (false, false) => Effort::Usual,
        (false, true) => Effort::Full,
    };
    ensure!(cli.slack >= 1.0, "--slack {}: 1 or more", cli.slack);
    // What it is to watch over comes after it, and goes before it.
    let _guard = Guard::start()?;
    let machine = machine::describe();
    for line in machine.lines() {
        say(line);
    }
    let mut figures = Figures::default();
    for suite in suites(&cli, &goals)? {
        match suite {
            Suite::Micro => micro::run(effort, &mut figures, &reference()?)?,
            Suite::Live => live::run(effort, &mut figures)?,
            Suite::Cni => cni::run(effort, &mut figures)?,
            Suite::Sync => sync::run(effort, &mut figures)?,
            Suite::Cluster => cluster::run(effort, &mut figures)?,
        }
    }
    // What is taken in a moment says nothing of a goal.
    if effort != Effort::Quick {
        report::table(&goals, &figures, cli.slack).lines().for_each(say);
    }
    if let Some(file) = &cli.json {
        history::append(file, &machine, effort, &figures)?;
    }
    if let Some(directory) = &cli.plots {
        plot::draw(directory, &figures)?;
    }
    let beyond = report::beyond(&goals, &figures, cli.slack);
    if cli.check && !beyond.is_empty() {
        beyond.iter().for_each(|line| eprintln!("{line}"));
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Those that are named, or those that the goals need.
fn suites(cli: &Cli, goals: &[goals::Goal]) -> Result<BTreeSet<Suite>> {
    if !cli.suites.is_empty() {
        return Ok(cli.suites.iter().copied().collect());
    }
    let named = |name: &str| Suite::from_str(name, false).map_err(anyhow::Error::msg);
    goals.iter().flat_map(goals::Goal::suites).map(named).collect()
}

/// Where the reference programs are.
fn reference() -> Result<PathBuf> {
    from_xtask(REFERENCE_VARIABLE)
}

/// Where the binary is that ships.
fn binary() -> Result<PathBuf> {
    from_xtask(BINARY_VARIABLE)
}

fn from_xtask(variable: &str) -> Result<PathBuf> {
    let value = std::env::var_os(variable).map(PathBuf::from);
    value.with_context(|| format!("{variable} is not set: start the benchmark by `cargo xtask bench`"))
}

/// Prints one line of the report.
#[expect(clippy::print_stdout, reason = "the one function that writes to stdout")]
fn say(line: impl Display) {
    println!("{line}");
}
