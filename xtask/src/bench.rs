//! `cargo xtask bench`: the benchmark with nothing prepared but the repository.

use anyhow::{Result, bail};

use crate::{build, cluster::stage::Stage, ebpf, process, workspace};

/// Tells the benchmark where the programs are that it compares ours with.
const REFERENCE_VARIABLE: &str = "NETPATH_BENCH_REFERENCE";

/// Tells it where the binary is that ships.
const BINARY_VARIABLE: &str = "NETPATH_BENCH_BINARY";

/// Builds the programs and the benchmark around them, and runs it with `args`.
pub(crate) fn run(args: &[String]) -> Result<()> {
    if args.iter().any(|word| ["-h", "--help"].contains(&word.as_str())) {
        let mut command = workspace::cargo()?;
        return process::run(command.args([
            "run",
            "--quiet",
            "--locked",
            "--package",
            "netpath-bench",
            "--",
            "--help",
        ]));
    }
    if !process::is_root()? {
        bail!("the benchmark loads programs: run it as root");
    }
    let asked_for_cluster = args.iter().any(|word| word == "cluster");
    let stage = asked_for_cluster.then(Stage::of_benchmark).transpose()?;
    ebpf::run()?;
    let mut command = workspace::cargo()?;
    command.env(REFERENCE_VARIABLE, ebpf::reference()?);
    command.env(BINARY_VARIABLE, build::binary(build::Profile::Release)?);
    if let Some(stage) = &stage {
        command.envs(stage.environment.iter().map(|(name, value)| (name, value)));
    }
    // What this program times itself is to be as fast as what ships, unless no time counts.
    let profile = if args.iter().any(|word| word == "--quick") { "dev" } else { "benchmark" };
    command.args(["run", "--quiet", "--locked", "--profile", profile, "--package", "netpath-bench", "--"]);
    process::run(command.args(args))
}

/// The shortest run of every suite: fails only where a case did not run or a count is wrong.
pub(crate) fn quick() -> Result<()> {
    run(&["--quick".to_owned()])
}
