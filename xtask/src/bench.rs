//! `cargo xtask bench`: the benchmark with nothing prepared but the repository.

use std::process::Command;

use anyhow::{Result, bail};

use crate::{build, cluster::stage::Stage, ebpf, process, workspace};

/// The benchmark's package and binary.
const PROGRAM: &str = "netpath-bench";

/// Tells the benchmark where the programs are that it compares ours with.
const REFERENCE_VARIABLE: &str = "NETPATH_BENCH_REFERENCE";

/// Tells it where the binary is that ships.
const BINARY_VARIABLE: &str = "NETPATH_BENCH_BINARY";

/// Builds the programs and the benchmark around them, and runs it with `args`.
pub(crate) fn run(args: &[String]) -> Result<()> {
    if args.iter().any(|word| ["-h", "--help"].contains(&word.as_str())) {
        return process::run(program("dev")?.arg("--help"));
    }
    if !process::is_root()? {
        bail!("the benchmark loads programs: run it as root");
    }
    let asked_for_cluster = args.iter().any(|word| word == "cluster");
    let stage = asked_for_cluster.then(Stage::of_benchmark).transpose()?;
    ebpf::run()?;
    // What this program times itself is to be as fast as what ships, unless no time counts.
    let mut command = program(if args.iter().any(|word| word == "--quick") { "dev" } else { "benchmark" })?;
    command.env(REFERENCE_VARIABLE, ebpf::reference()?);
    command.env(BINARY_VARIABLE, build::binary(build::Profile::Release)?);
    if let Some(stage) = &stage {
        command.envs(stage.environment.iter().map(|(name, value)| (name, value)));
    }
    process::run(command.args(args))
}

/// Builds the benchmark in a profile, and is the command that runs it.
fn program(profile: &str) -> Result<Command> {
    let mut command = workspace::cargo()?;
    command.args(["build", "--quiet", "--locked", workspace::MEMBERS, "--profile", profile]);
    process::run(command.args(["--bin", PROGRAM]))?;
    // Cargo's one exception.
    let directory = if profile == "dev" { "debug" } else { profile };
    let mut program = Command::new(workspace::target_directory()?.join(directory).join(PROGRAM));
    program.current_dir(workspace::root()?);
    Ok(program)
}

/// The shortest run of every suite: fails only where a case did not run or a count is wrong.
pub(crate) fn quick() -> Result<()> {
    run(&["--quick".to_owned()])
}
