//! `cargo xtask vm-test`: the programs and their tests on other kernels than the one of this machine.
//!
//! Debian's cloud kernels boot in qemu with software emulation, which needs no rights and is the same on every
//! machine. The whole system is an initramfs: the modules, a shell, the release binary and the test binaries,
//! both static. What happens inside is read from the serial console; a test binary without its summary, or a
//! machine that does not switch itself off in time, has failed.

mod console;
mod initramfs;
mod kernel;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

pub(crate) use self::kernel::Series;
use self::{console::Report, initramfs::Archive, kernel::Kernel};
use crate::{
    build::{self, Profile},
    process::{self, say},
    test, workspace,
};

/// How long one machine may run, from its start until it switches itself off.
const PATIENCE: Duration = Duration::from_secs(600);

/// What the machine has beside what is built here, each with its libraries: tests call them.
const PROGRAMS: &[&str] = &["ip", "tc", "ethtool", "ping", "bpftool"];

/// What the kernels of Debian have as modules and tests use; `modprobe` adds what these need.
const MODULES: &[&str] = &[
    "af_packet",
    "veth",
    "dummy",
    "bridge",
    "macvlan",
    "ipvlan",
    "8021q",
    "bonding",
    "sch_ingress",
    "cls_bpf",
    "nf_tables",
];

/// Tests that these machines cannot run, with the reason. Whatever is not named here runs.
const LEFT_OUT: &[(&str, &str)] = &[
    (
        "zones::a_zone_that_is_replaced_under_load_is_never_half_written",
        "a race of two CPUs over 100,000 packets; the machine has one CPU, which is emulated",
    ),
    (
        "xdp_comes_and_goes_during_a_transfer_and_no_packet_is_counted_twice_or_never",
        "five attachments during a transfer: on the emulated CPU the transfer leaves the verifier no time",
    ),
    (
        "with_offloads_every_segment_and_every_header_is_counted_once",
        "its sum of bytes presupposes that TCP sends nothing twice, as it does where a round trip takes long",
    ),
];

/// Files of tests that are not run in these machines, and why.
const FILES_LEFT_OUT: &[(&str, &str)] = &[
    ("kernel_attach", "presupposes TCX where nothing else is asked for, which 6.1 does not have"),
    ("kernel_attacks", "not fitted to the time of an emulated CPU yet"),
    ("kernel_cli", "presupposes TCX in what the tool prints"),
    ("kernel_host", "not fitted to the time of an emulated CPU yet"),
    ("kernel_zone", "not fitted to the time of an emulated CPU yet"),
];

/// Boots each kernel and runs everything in it; fails if anything failed on any.
pub(crate) fn run(series: &[Series], keep: bool) -> Result<()> {
    let netpath = build::run(Profile::Release)?;
    let tests = static_tests()?;
    for (test, why) in LEFT_OUT.iter().chain(FILES_LEFT_OUT) {
        say(format_args!("left out: {test}: {why}"));
    }
    let mut summary = Vec::new();
    let mut broken = Vec::new();
    for series in series {
        let kernel = kernel::get(*series)?;
        say(format_args!("\n== Linux {} ==", kernel.release));
        let start = Instant::now();
        let report = boot(&kernel, &netpath, &tests, keep)?;
        let names = tests.iter().map(|test| test.name.as_str());
        let problems = report.problems(names);
        let seconds = start.elapsed().as_secs();
        summary.push(format!("Linux {}: {report}; {seconds} s", kernel.release));
        broken.extend(problems.into_iter().map(|problem| format!("Linux {}: {problem}", kernel.release)));
    }
    say("");
    summary.iter().for_each(say);
    if !broken.is_empty() {
        bail!("on other kernels:\n  {}", broken.join("\n  "));
    }
    Ok(())
}

/// A static test binary.
struct TestBinary {
    name: String,
    path: PathBuf,
}

/// Builds the tests that need a kernel and nothing that these machines lack.
fn static_tests() -> Result<Vec<TestBinary>> {
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
    let left_out = |target: &String| FILES_LEFT_OUT.iter().any(|(file, _)| file == target);
    for target in test::kernel_targets()?.into_iter().filter(|target| !left_out(target)) {
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

/// Runs one machine to its end.
fn boot(kernel: &Kernel, netpath: &Path, tests: &[TestBinary], keep: bool) -> Result<Report> {
    let initramfs = workspace::target_directory()?.join("vm").join(format!("{}.cpio", kernel.release));
    let archive = system(kernel, netpath, tests)?;
    let dir = initramfs.parent().context("a file has a directory")?;
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    archive.write(&initramfs)?;

    let mut qemu = Command::new("qemu-system-x86_64");
    // Not KVM: where it is nested it can have the wrong CPU or hang, and emulation is fast enough.
    qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1", "-m", "1024", "-M", "q35"]);
    qemu.args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-serial", "stdio"]);
    qemu.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(&initramfs);
    qemu.args(["-append", "console=ttyS0 quiet panic=-1 rdinit=/init"]);
    say(format_args!("$ {}", process::line(&qemu)));
    qemu.stdin(Stdio::null()).stdout(Stdio::piped());
    let report = console::follow(&mut qemu, PATIENCE);
    if keep {
        say(format_args!("kept: {}", initramfs.display()));
    } else {
        fs::remove_file(&initramfs).with_context(|| format!("cannot remove {}", initramfs.display()))?;
    }
    report
}

/// Everything that is in the machine.
fn system(kernel: &Kernel, netpath: &Path, tests: &[TestBinary]) -> Result<Archive> {
    let mut archive = Archive::default();
    archive.file("/bin/busybox", &kernel::busybox()?)?;
    for program in PROGRAMS {
        archive.program(program)?;
    }
    let mut init = String::from(include_str!("vm/init.sh"));
    for module in kernel.modules(MODULES)? {
        let path = format!("/modules/{}", module.name);
        init.push_str(&format!("load {path} {}\n", module.options));
        archive.bytes(&path, 0o644, module.read()?);
    }
    archive.file("/usr/bin/netpath", netpath)?;
    init.push_str("step programs /usr/bin/netpath programs\n");
    // Tests run the binary that was built with them, by the path it was built at.
    let built =
        tests.first().and_then(|test| test.path.parent()?.parent()).context("tests have a directory")?;
    archive.file(&built.join("netpath").to_string_lossy(), &built.join("netpath"))?;
    for TestBinary { name, path } in tests {
        archive.file(&format!("/tests/{name}"), path)?;
        init.push_str(&format!("step {name} /tests/{name} --exact"));
        for (test, _) in LEFT_OUT {
            init.push_str(&format!(" --skip {test}"));
        }
        init.push('\n');
    }
    init.push_str("poweroff -f\n");
    archive.bytes("/init", 0o755, init.into_bytes());
    Ok(archive)
}
