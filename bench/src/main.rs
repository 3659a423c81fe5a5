//! The benchmark: what netpath costs, each figure beside what it is compared with, in one run.
//!
//! One suite a module; README.md has the method and the results. Nothing here judges a time: a run fails where
//! a case could not be run or a program did not do what the case says.

mod cluster;
mod cni;
mod frames;
mod machine;
mod micro;
mod node;
mod samples;
mod stage;
mod sync;

use std::{fmt::Display, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

/// Measures what netpath costs.
#[derive(Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench", disable_version_flag = true)]
struct Cli {
    #[command(subcommand)]
    suite: Suite,
}

#[derive(Subcommand)]
enum Suite {
    /// Nanoseconds a packet of each program, by BPF_PROG_TEST_RUN on the shipped object.
    Micro(micro::Args),
    /// Microseconds of ADD and DEL above the plugins that the meta-plugin executes.
    Cni(cni::Args),
    /// What grows with the endpoints of a node: rows, counters, a scrape of the agent.
    Sync(sync::Args),
    /// Time that a container runtime takes for pods on a cluster of real parts.
    Cluster(cluster::Args),
}

/// Where the reference programs are; `cargo xtask bench` builds them and sets it.
const REFERENCE_VARIABLE: &str = "NETPATH_BENCH_REFERENCE";
/// Where the release binary is; `cargo xtask bench` builds it and sets it.
const BINARY_VARIABLE: &str = "NETPATH_BENCH_BINARY";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let Cli { suite } = Cli::parse();
    for line in machine::describe() {
        say(line);
    }
    match suite {
        Suite::Micro(args) => {
            let Some(reference) = std::env::var_os(REFERENCE_VARIABLE).map(PathBuf::from) else {
                anyhow::bail!("{REFERENCE_VARIABLE} is not set: start the benchmark by `cargo xtask bench`");
            };
            micro::run(&args, &reference)
        }
        Suite::Cni(args) => cni::run_suite(&args),
        Suite::Sync(args) => sync::run(&args),
        Suite::Cluster(args) => cluster::run(&args),
    }
}

/// Prints one line of the report.
#[expect(clippy::print_stdout, reason = "the one function that writes to stdout")]
fn say(line: impl Display) {
    println!("{line}");
}
