//! The tier `vm`: the programs and their tests on other kernels than the one of this machine.
//!
//! Debian's cloud kernels boot in qemu with software emulation, which needs no rights and is the same on every
//! machine; all of them at once, since each uses one CPU. The whole system is an initramfs: the modules, a shell,
//! the release binary and the test binaries, both static. What happens inside is read from the serial console; a
//! test binary without its summary, or a machine that does not switch itself off in time, has failed.

mod console;
mod initramfs;
mod kernel;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

pub(crate) use self::kernel::Series;
use self::{
    console::Report,
    initramfs::Archive,
    kernel::{Found, Kernel},
};
use crate::{
    build::{self, Profile},
    process::{self, say},
    test::{self, Tally},
    workspace,
};

/// How long one machine may run, from its start until it switches itself off: several times what it takes where
/// nothing else runs.
const PATIENCE: Duration = Duration::from_secs(1800);

/// What the machine has beside what is built here, each with its libraries: tests call them.
const PROGRAMS: &[&str] = &["ip", "tc", "ethtool", "ping", "bpftool", "setpriv"];

/// What the kernels of Debian have as modules and tests use; `modprobe` adds what these need.
const MODULES: &[&str] = &[
    "af_packet",
    "veth",
    "dummy",
    "bridge",
    "macvlan",
    "macvtap",
    "ipvlan",
    "8021q",
    "bonding",
    "sch_ingress",
    "cls_bpf",
    "nf_tables",
];

/// Files that tests read where they were built, below the repository's root; one is there for its directory.
const FILES: &[&str] = &["docs/cli.md", "netpath/Cargo.toml"];

/// The one file of tests for kernels that netpath refuses, which runs nowhere else.
const REFUSAL: &str = "vm_refusal";

/// Beginnings of the names of files about what is attached where, by one of two ways. Where a kernel has TCX, they run a second time with the
/// administrator's word for clsact; what is not among them says by itself how it wants to be attached, or
/// attaches nothing (BPF_PROG_TEST_RUN).
const BOTH_WAYS: &[&str] = &["kernel_attacks", "kernel_hooks"];

/// The variable by which the tests' nodes get `tc: clsact` into masters.json.
const BY_CLSACT: &str = "NETPATH_TEST_TC=clsact";

/// Tests that a kernel, or any of these machines, cannot run. Whatever is not named here runs.
const LEFT_OUT: &[LeftOut] = &[
    LeftOut {
        test: "zones::a_zone_that_is_replaced_under_load_is_never_half_written",
        on: &Series::ALL,
        why: "a race of two CPUs over 100,000 packets; the machine has one CPU, which is emulated",
    },
    LeftOut {
        test: "xdp_comes_and_goes_during_a_transfer_and_no_packet_is_counted_twice_or_never",
        on: &Series::ALL,
        why: "five attachments during a transfer: on the emulated CPU the transfer leaves the verifier no time",
    },
    LeftOut {
        test: "ours_comes_first_and_others_still_see_what_may_pass",
        on: &[Series::V6_1],
        why: "a chain of programs at one hook is TCX's; a second netpath would replace the filter of the first",
    },
    LeftOut {
        test: "status_names_the_program_that_comes_before_ours_at_a_tcx_hook",
        on: &[Series::V6_1],
        why: "a chain of programs at one hook is TCX's",
    },
];

/// A test that does not run.
struct LeftOut {
    test: &'static str,
    on: &'static [Series],
    why: &'static str,
}

/// What becomes of a machine's file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileSystem {
    /// Left, to boot the machine by hand with the command that is printed.
    Kept,
    Removed,
}

/// What came of all machines.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) tally: Tally,
    /// Everything that is not as it must be.
    pub(crate) problems: Vec<String>,
    /// Kernels that could not be had and need not be.
    pub(crate) skipped: Vec<String>,
}

impl Outcome {
    /// The end of a run by hand.
    pub(crate) fn conclude(self) -> Result<()> {
        self.skipped.iter().for_each(say);
        if !self.problems.is_empty() {
            bail!("on other kernels:\n  {}", self.problems.join("\n  "));
        }
        Ok(())
    }
}

/// Boots each kernel and runs everything in it, or only the files of tests that are named.
pub(crate) fn run(series: &[Series], only: &[String], kept: FileSystem) -> Result<Outcome> {
    let netpath = build::run(Profile::Release)?;
    let tests = static_tests(only)?;
    for LeftOut { test, on, why } in LEFT_OUT {
        let on: Vec<_> = on.iter().map(|series| series.number()).collect();
        say(format_args!("left out on {}: {test}: {why}", on.join(", ")));
    }
    let mut outcome = Outcome::default();
    let mut machines = Vec::new();
    for series in series {
        match kernel::get(*series)? {
            Found::Kernel(kernel) => {
                let steps = steps(*series, &tests);
                let archive = system(*series, &kernel, &netpath, &tests, &steps)?;
                machines.push(Machine { series: *series, kernel, archive, steps });
            }
            Found::OutOfReach(error) => {
                let note = format!("SKIPPED: Linux {} cannot be had here: {error:#}", series.number());
                say(&note);
                outcome.skipped.push(note);
            }
        }
    }
    let ended: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = machines
            .iter()
            .map(|machine| {
                scope.spawn(move || {
                    let start = Instant::now();
                    (machine, machine.boot(kept), start.elapsed().as_secs())
                })
            })
            .collect();
        running.into_iter().map(|thread| thread.join()).collect()
    });
    say("");
    for ended in ended {
        let Ok((machine, report, seconds)) = ended else {
            bail!("a thread that followed a machine panicked")
        };
        let report = report?;
        let release = &machine.kernel.release;
        say(format_args!("Linux {release}: {report}; {seconds} s"));
        outcome.tally = outcome.tally.and(report.tally());
        let names = machine.steps.iter().map(|step| step.name.as_str());
        let problems = report.problems(machine.series.is_supported(), names);
        outcome.problems.extend(problems.into_iter().map(|problem| format!("Linux {release}: {problem}")));
    }
    Ok(outcome)
}

/// A run of a test binary in a machine.
struct Step {
    name: String,
    test: String,
    environment: &'static str,
}

/// What runs on a kernel.
fn steps(series: Series, tests: &[TestBinary]) -> Vec<Step> {
    let mut steps = Vec::new();
    for TestBinary { name, .. } in tests {
        if (name == REFUSAL) == series.is_supported() {
            continue;
        }
        steps.push(Step { name: name.clone(), test: name.clone(), environment: "" });
        if series.has_tcx() && BOTH_WAYS.iter().any(|file| name.starts_with(file)) {
            let again = format!("{name}-clsact");
            steps.push(Step { name: again, test: name.clone(), environment: BY_CLSACT });
        }
    }
    steps
}

/// A static test binary.
struct TestBinary {
    name: String,
    path: PathBuf,
}

/// Builds the tests that need a kernel and nothing that these machines lack.
fn static_tests(only: &[String]) -> Result<Vec<TestBinary>> {
    let host = workspace::host_triple()?;
    let mut command = workspace::cargo()?;
    command.args([
        "test",
        "--quiet",
        "--locked",
        "--no-run",
        "--message-format=json",
        "--package",
        "netpath",
    ]);
    command.args(["--target", &host]);
    let targets = test::kernel_targets()?;
    if let Some(unknown) = only.iter().find(|name| !targets.contains(name)) {
        bail!("no file of tests for these machines is called `{unknown}`: {}", targets.join(", "));
    }
    for target in targets.into_iter().filter(|target| only.is_empty() || only.contains(target)) {
        command.args(["--test", &target]);
    }
    // Emulated: what is built without optimisation takes minutes. Without debug information, since all of it is
    // in the machine's memory.
    command.env("CARGO_PROFILE_DEV_OPT_LEVEL", "1").env("CARGO_PROFILE_DEV_DEBUG", "0");
    command.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    say(format_args!("$ {}", process::line(&command)));
    let messages = process::output(&mut command)?;
    let mut tests = Vec::new();
    for line in messages.lines() {
        let message: serde_json::Value =
            serde_json::from_str(line).with_context(|| format!("cargo did not print JSON: {line}"))?;
        if let (Some(path), Some(true)) =
            (message["executable"].as_str(), message["profile"]["test"].as_bool())
        {
            let name = message["target"]["name"].as_str().with_context(|| format!("no name in {line}"))?;
            tests.push(TestBinary { name: name.to_owned(), path: PathBuf::from(path) });
        }
    }
    if tests.is_empty() {
        bail!("cargo built no test");
    }
    tests.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tests)
}

/// A machine that can be booted.
struct Machine {
    series: Series,
    kernel: Kernel,
    archive: Archive,
    steps: Vec<Step>,
}

impl Machine {
    /// Runs it to its end.
    fn boot(&self, kept: FileSystem) -> Result<Report> {
        let dir = workspace::target_directory()?.join("vm");
        let initramfs = dir.join(format!("{}.cpio", self.kernel.release));
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        self.archive.write(&initramfs)?;

        let mut qemu = Command::new("qemu-system-x86_64");
        // Not KVM: where it is nested it can have the wrong CPU or hang, and emulation is fast enough.
        // An old CPU without its mitigations: what a newer one has takes a quarter more time to emulate.
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", "Nehalem", "-smp", "1", "-m", "1024", "-M", "q35"]);
        qemu.args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-serial", "stdio"]);
        qemu.arg("-kernel").arg(&self.kernel.image).arg("-initrd").arg(&initramfs);
        qemu.args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off rdinit=/init"]);
        say(format_args!("$ {}", process::line(&qemu)));
        qemu.stdin(Stdio::null()).stdout(Stdio::piped());
        let report = console::follow(&mut qemu, self.series.number(), PATIENCE);
        match kept {
            FileSystem::Kept => say(format_args!("kept: {}", initramfs.display())),
            FileSystem::Removed => fs::remove_file(&initramfs)
                .with_context(|| format!("cannot remove {}", initramfs.display()))?,
        }
        report
    }
}

/// Everything that is in a machine. `netpath` is the release binary.
fn system(
    series: Series,
    kernel: &Kernel,
    netpath: &Path,
    tests: &[TestBinary],
    steps: &[Step],
) -> Result<Archive> {
    let mut archive = Archive::default();
    archive.file("/bin/busybox", &kernel::busybox()?)?;
    for program in PROGRAMS {
        archive.program(program)?;
    }
    for file in FILES {
        let path = workspace::root()?.join(file);
        archive.file(&path.to_string_lossy(), &path)?;
    }
    let mut init = String::from(include_str!("vm/init.sh"));
    for module in kernel.modules(MODULES)? {
        let path = format!("/modules/{}", module.name);
        init.push_str(&format!("load {path} {}\n", module.options));
        archive.bytes(&path, 0o644, module.read()?);
    }
    if series.is_supported() {
        archive.file("/usr/bin/netpath", netpath)?;
        init.push_str("step programs /usr/bin/netpath programs\n");
    }
    // Tests run the binary that was built with them, by the path it was built at.
    let built =
        tests.first().and_then(|test| test.path.parent()?.parent()).context("tests have a directory")?;
    archive.file(&built.join("netpath").to_string_lossy(), &built.join("netpath"))?;
    for TestBinary { name, path } in tests {
        if steps.iter().any(|step| step.test == *name) {
            archive.file(&format!("/tests/{name}"), path)?;
        }
    }
    for Step { name, test, environment } in steps {
        init.push_str(&format!("step {name} env {environment} /tests/{test} --exact"));
        for left_out in LEFT_OUT.iter().filter(|left_out| left_out.on.contains(&series)) {
            init.push_str(&format!(" --skip {}", left_out.test));
        }
        init.push('\n');
    }
    init.push_str("poweroff -f\n");
    archive.bytes("/init", 0o755, init.into_bytes());
    Ok(archive)
}
