//! `cargo xtask`: everything that is done to this repository besides writing it.
//!
//! Commands in the order they build on each other: `setup` makes the machine able, `build-ebpf`, `build` and
//! `image` make the product, `test`, `fuzz`, `bench`, `lint` and `lab` judge it, `codegen` writes the files that are made from code.
//! xtask depends on no member of the workspace: the netpath library is built around the object that xtask
//! makes, so the arrow must not point back.

mod apt;
mod bench;
mod beside;
mod build;
mod cluster;
mod codegen;
mod ebpf;
mod elf;
mod excerpt;
mod fuzz;
mod image;
mod lab;
mod lint;
mod manifests;
mod packages;
mod process;
mod setup;
mod test;
mod toolchain;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Sets up the machine, builds, tests and checks netpath.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_version_flag = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building and testing need and this machine lacks; each item says why.
    Setup {
        /// Only report; fail when something is missing.
        #[arg(long)]
        check: bool,
    },
    /// Build the eBPF programs into `<target>/bpf/netpath.bpf.o` and print what is in it.
    BuildEbpf,
    /// Build the eBPF programs, then the `netpath` binary around them.
    Build {
        /// One static binary, optimised for size: what is shipped.
        #[arg(long)]
        release: bool,
    },
    /// Build the release binary, then an image with nothing but it: `<target>/image/netpath.tar`, for `ctr images import`,
    /// `podman load` and `docker load`.
    Image(image::Options),
    /// Set up, lint, build and test; or one tier of tests alone.
    Test {
        #[arg(value_enum, default_value = "all")]
        tier: test::Selection,
        /// Trust that `cargo xtask setup` has been run.
        #[arg(long)]
        skip_setup: bool,
    },
    /// The tier `vm` of the tests, or a part of it: Debian's kernels in emulated machines.
    VmTest {
        /// Only this kernel; may be given more than once.
        #[arg(long, value_enum)]
        kernel: Vec<vm::Series>,
        /// Only this file of `netpath/tests`; may be given more than once.
        #[arg(long)]
        test: Vec<String>,
        /// Keep the machine's file system, to boot it by hand with the command that is printed.
        #[arg(long)]
        keep: bool,
        /// Take half of the CPUs until standard input ends.
        #[arg(long)]
        beside: bool,
    },
    /// Build the fuzz targets and run them: all, or those that are named.
    Fuzz {
        /// For each of them.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
        targets: Vec<String>,
    },
    /// rustfmt, clippy, the layering test, generated files up to date.
    Lint,
    /// Rewrite generated files: `netpath-ebpf/abi.lock`, `docs/`, `deploy/netpath.yaml`.
    Codegen {
        /// Only report; fail when a file is out of date.
        #[arg(long, conflicts_with = "abi_compatible")]
        check: bool,
        /// `abi.rs` changed, and any mix of old and new programs on one set of maps still works.
        #[arg(long)]
        abi_compatible: bool,
    },
    /// Build, then run the benchmark with these arguments; `cargo xtask bench --help` has them.
    #[command(disable_help_flag = true)]
    Bench {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// A Kubernetes of real parts on this machine, with netpath as its CNI plugin.
    Cluster {
        #[command(subcommand)]
        action: cluster::Action,
    },
    /// Set up, build, then run `netpath lab` with these arguments.
    Lab {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        // Not by returning it from `main`: that prints a backtrace where RUST_BACKTRACE is set.
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Setup { check } => setup::run(if check { setup::Mode::Check } else { setup::Mode::Install }),
        Command::BuildEbpf => ebpf::run(),
        Command::Build { release } => {
            build::run(if release { build::Profile::Release } else { build::Profile::Debug }).map(drop)
        }
        Command::Image(options) => image::run(&options),
        Command::Test { tier, skip_setup } => test::run(tier, skip_setup),
        Command::VmTest { kernel, test, keep, beside } => {
            let kernels = if kernel.is_empty() { &vm::Series::ALL[..] } else { &kernel };
            let kept = if keep { vm::FileSystem::Kept } else { vm::FileSystem::Removed };
            let cpus = if beside { vm::Cpus::HalfForNow } else { vm::Cpus::All };
            vm::run(kernels, &test, cpus, kept)?.conclude()
        }
        Command::Lint => lint::run(),
        Command::Codegen { check: true, .. } => codegen::check(),
        Command::Codegen { check: false, abi_compatible } => codegen::write(abi_compatible),
        Command::Fuzz { seconds, targets } => fuzz::run(&targets, seconds),
        Command::Bench { args } => bench::run(&args),
        Command::Cluster { action } => cluster::run(action),
        Command::Lab { args } => lab::run(&args),
    }
}
