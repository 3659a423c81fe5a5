//! `cargo xtask bench`: the benchmark with nothing prepared but the repository.

use anyhow::{Result, bail};

use crate::{build, cluster::stage::Stage, ebpf, process, workspace};

/// Tells the benchmark where the programs are that it compares ours with.
const REFERENCE_VARIABLE: &str = "NETPATH_BENCH_REFERENCE";

/// Tells it where the binary is that ships.
const BINARY_VARIABLE: &str = "NETPATH_BENCH_BINARY";

/// Builds the programs and the benchmark around them, and runs it with `args`.
pub(crate) fn run(args: &[String]) -> Result<()> {
    if !process::is_root()? {
        bail!("the benchmark loads programs: run it as root");
    }
    if args.first().is_some_and(|suite| suite == "cluster") {
        return on_a_cluster(args);
    }
    ebpf::run()?;
    let reference = ebpf::reference()?;
    let mut command = workspace::cargo()?;
    if args.first().is_some_and(|suite| ["cni", "sync"].contains(&suite.as_str())) {
        command.env(BINARY_VARIABLE, build::binary(build::Profile::Release)?);
    }
    // The kernel takes the times, or those of other processes: how this program was compiled changes none.
    command.args(["run", "--quiet", "--locked", "--package", "netpath-bench", "--"]).args(args);
    process::run(command.env(REFERENCE_VARIABLE, reference))
}

/// Stands up a cluster for the suite that needs one, and removes it.
fn on_a_cluster(args: &[String]) -> Result<()> {
    let stage = Stage::of_benchmark()?;
    let mut command = workspace::cargo()?;
    command.args(["run", "--quiet", "--locked", "--package", "netpath-bench", "--"]).args(args);
    process::run(command.envs(stage.environment.iter().map(|(name, value)| (name, value))))
}

/// The shortest run of every suite: fails only where a case did not run or a verdict is wrong.
pub(crate) fn quick() -> Result<()> {
    for suite in ["micro", "cni", "sync"] {
        run(&[suite.to_owned(), "--quick".to_owned()])?;
    }
    Ok(())
}
