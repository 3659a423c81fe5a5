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
mod http;
mod live;
mod machine;
mod micro;
mod netns;
mod node;
mod order;
mod plot;
mod report;
mod root;
mod samples;
mod stage;
mod sync;

use std::{collections::BTreeSet, fmt::Display, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum};

use self::{figures::Figures, goals::Goal, guard::Guard};

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
    /// Fail where a ratio is beyond its goal, or a goal has no figure.
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
    let suites = suites(&cli, &goals)?;
    check(&cli, &suites, &goals)?;
    if suites != BTreeSet::from([Suite::Cluster]) {
        reference()?;
        binary()?;
    }
    let history = cli.json.as_deref().map(history::open).transpose()?;
    cli.plots.as_deref().map(plot::prepare).transpose()?;
    // What it is to watch over comes after it, and goes before it.
    let _guard = Guard::start()?;
    let machine = machine::describe();
    for line in machine.lines() {
        say(line);
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    say(format_args!("\nAgain: `{}`", ["cargo xtask bench", &words.join(" ")].join(" ").trim_end()));
    let mut figures = Figures::default();
    for suite in suites {
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
        report::table(&goals, &figures).lines().for_each(say);
    }
    if let Some(mut file) = history {
        history::append(&mut file, &machine, effort, &figures)?;
    }
    if let Some(directory) = &cli.plots {
        plot::draw(directory, &figures)?;
    }
    let mut failed = report::miscounted(&goals::all()?, &figures);
    if cli.check {
        failed.extend(report::beyond(&goals, &figures, cli.slack));
    }
    failed.iter().for_each(|line| eprintln!("{line}"));
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Refuses what would only be found out at the end, or would hold nothing against anything.
fn check(cli: &Cli, suites: &BTreeSet<Suite>, goals: &[Goal]) -> Result<()> {
    let Cli { slack, only, check, .. } = cli;
    ensure!(slack.is_finite() && 1.0 <= *slack, "--slack {slack}: name a number of 1 or more");
    let mut held = false;
    for goal in goals {
        let (Goal { id, .. }, is_run) = (goal, goal_suites(goal)?.is_subset(suites));
        ensure!(
            only.is_empty() || is_run,
            "--only {id}: needs suite {}; name it, or none",
            goal.suites().next().unwrap_or_default()
        );
        held |= is_run;
    }
    ensure!(held || !check, "--check: no goal is of these suites; leave it out, or name others");
    Ok(())
}

/// Those that are named, or those that the goals need.
fn suites(cli: &Cli, goals: &[Goal]) -> Result<BTreeSet<Suite>> {
    if !cli.suites.is_empty() {
        return Ok(cli.suites.iter().copied().collect());
    }
    let mut needed = BTreeSet::new();
    for goal in goals {
        needed.extend(goal_suites(goal)?);
    }
    Ok(needed)
}

/// Those that a goal needs.
fn goal_suites(goal: &Goal) -> Result<BTreeSet<Suite>> {
    goal.suites().map(|name| Suite::from_str(name, false).map_err(anyhow::Error::msg)).collect()
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
    let value = value
        .with_context(|| format!("{variable} is not set: start the benchmark by `cargo xtask bench`"))?;
    ensure!(
        value.is_file(),
        "{variable}={}: no such file; name one, or use `cargo xtask bench`",
        value.display()
    );
    Ok(value)
}

/// Prints one line of the report.
#[expect(clippy::print_stdout, reason = "the one function that writes to stdout")]
fn say(line: impl Display) {
    println!("{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of these words.
    fn refused(words: &str) -> String {
        let checked = || -> Result<()> {
            let cli = Cli::try_parse_from(std::iter::once("bench").chain(words.split_whitespace()))?;
            let goals = goals::select(goals::all()?, &cli.only)?;
            check(&cli, &suites(&cli, &goals)?, &goals)
        };
        checked().map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn what_would_hold_nothing_against_anything_is_refused() {
        assert!(refused("--only P5 micro").contains("--only P5: needs suite live"));
        assert!(refused("--check cluster").contains("--check: no goal"));
        for words in
            ["", "--check", "--check --slack 1.15", "--only P5,P7 live cni", "--check sync", "cluster"]
        {
            assert_eq!(refused(words), "", "{words}");
        }
    }

    #[test]
    fn a_slack_is_a_number_of_one_or_more() {
        for slack in ["0.9", "nan", "inf", "-1"] {
            let said = refused(&format!("--check --slack={slack}"));
            assert!(said.contains("--slack") && said.contains("1 or more"), "{said}");
        }
        assert!(refused("--slack 2").contains("--check"));
    }
}
