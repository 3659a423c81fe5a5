//! `cargo xtask fuzz`: the fuzz targets, built by cargo-fuzz and run for a bounded time.
//!
//! Without a sanitizer: what is fuzzed is Rust without `unsafe`, panics and assertions are what is looked for, and so a
//! stable compiler is enough. Where there is a nightly, `cargo +nightly fuzz run <target> fuzz/corpus/<target>
//! fuzz/seeds/<target>` does the same with AddressSanitizer.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{
    process::{self, find_program, say},
    setup::{Item, Remedy, State},
    workspace,
};

/// Seconds for each target in the tests.
const BRIEFLY: u32 = 10;
/// The release that is known to work on a stable compiler.
const VERSION: &str = "0.13.2";
/// Files here are in memory.
const MEMORY: &str = "/dev/shm";
/// Longest input, in bytes: what is read of a frame and of a configuration fits.
const LONGEST: u32 = 2048;

/// What the targets are built by.
pub(crate) fn items() -> Vec<Item> {
    let words = ["install", "cargo-fuzz", "--version", VERSION, "--locked"];
    let state = match find_program("cargo-fuzz").or_else(|| workspace::cargo_bin("cargo-fuzz")) {
        Some(path) => State::Present(path.display().to_string()),
        None => State::Missing(Remedy::Cargo(words.map(str::to_owned).into())),
    };
    vec![Item {
        name: format!("cargo-fuzz {VERSION}"),
        why: "`cargo xtask fuzz` builds what is fuzzed with it".to_owned(),
        state,
    }]
}

/// Every target, each for [`BRIEFLY`].
pub(crate) fn brief() -> Result<()> {
    run(&[], BRIEFLY)
}

/// Builds and runs `targets`, all of them if none is named, each for `seconds`.
pub(crate) fn run(targets: &[String], seconds: u32) -> Result<()> {
    let known = targets_of(&workspace::root()?.join("fuzz/fuzz_targets"))?;
    if let Some(unknown) = targets.iter().find(|target| !known.contains(target)) {
        bail!("there is no fuzz target `{unknown}`: there are {}", known.join(", "));
    }
    let wanted = if targets.is_empty() { &known[..] } else { targets };
    process::run(fuzz(&["build"])?.args(wanted.first().filter(|_| wanted.len() == 1)))?;
    let mut found = Vec::new();
    for target in wanted {
        say(format_args!("\n== fuzz {target}, {seconds} s =="));
        if let Err(error) = one(target, seconds) {
            say(format_args!("error: {error:#}"));
            found.push(target.as_str());
        }
    }
    if !found.is_empty() {
        bail!(
            "{}: the input that did it is in fuzz/artifacts; mend the cause, and keep the input under a name that says \
             what it is in fuzz/regressions/<target>",
            found.join(", ")
        );
    }
    Ok(())
}

/// Runs one target on what it found before, the seeds and the regressions.
fn one(target: &str, seconds: u32) -> Result<()> {
    let root = workspace::root()?;
    let mut command = fuzz(&["run"])?;
    command.arg(target);
    // What works on files makes some for each input: in memory that is many times faster.
    if Path::new(MEMORY).is_dir() {
        command.env("TMPDIR", MEMORY);
    }
    for kind in ["corpus", "seeds", "regressions"] {
        let directory = root.join("fuzz").join(kind).join(target);
        match kind {
            "corpus" => fs::create_dir_all(&directory)
                .with_context(|| format!("cannot create {}", directory.display()))?,
            // The fuzzer refuses a directory that is not there, and there need not be a regression.
            _ if !directory.is_dir() => continue,
            _ => {}
        }
        command.arg(format!("fuzz/{kind}/{target}"));
    }
    command.arg("--").arg(format!("-max_total_time={seconds}")).arg(format!("-max_len={LONGEST}"));
    // One input takes milliseconds at most; the fuzzer's own limit is 20 minutes.
    command.args([
        "-timeout=30",
        "-rss_limit_mb=2048",
        "-print_final_stats=1",
        "-print_funcs=0",
        "-verbosity=0",
    ]);
    process::run(&mut command)
}

/// `cargo fuzz` in the repository, with checks on and optimised as far as it pays for a short run.
fn fuzz(words: &[&str]) -> Result<Command> {
    let mut command = workspace::cargo()?;
    // Flags of its own would build everything anew in the directory of the others.
    let target = workspace::target_directory()?.join("fuzz");
    command.env("CARGO_TARGET_DIR", target).env("CARGO_PROFILE_DEV_OPT_LEVEL", "1");
    // Mostly it is built once: what is kept for the next time, and lines of a backtrace below the panic's own, cost more.
    command.env("CARGO_INCREMENTAL", "0").env("CARGO_PROFILE_DEV_DEBUG", "0");
    command.arg("fuzz").args(words).args(["--dev", "--sanitizer", "none"]);
    Ok(command)
}

/// Names of the files in the directory of the targets.
fn targets_of(directory: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    let mut targets = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("cannot list {}", directory.display()))?.path();
        if let Some(name) = path.file_stem().filter(|_| path.extension().is_some_and(|it| it == "rs")) {
            targets.push(name.to_string_lossy().into_owned());
        }
    }
    targets.sort();
    Ok(targets)
}
