//! The tier `vm`: the programs and their tests on other kernels than the one of this machine.
//!
//! Debian's cloud kernels boot in qemu with software emulation, which needs no rights and is the same on every
//! machine. Each machine has one CPU and a share of the tests of its kernel; as many run at once as there are CPUs, or
//! half as many while the other tiers of a whole run go on. The whole system is an initramfs: the modules, a shell, the
//! release binary, and the test binaries with the libraries of this machine. What happens inside is read from the serial
//! console; a test binary without its summary, or a machine that does not switch itself off in time, has failed.

mod console;
mod initramfs;
mod kernel;
mod steps;

use std::{
    fs, io,
    path::Path,
    process::{Command, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

pub(crate) use self::kernel::Series;
use self::{
    console::Report,
    initramfs::Archive,
    kernel::{Found, Kernel},
    steps::{Step, TestBinary},
};
use crate::{
    build::{self, Profile},
    process::{self, say},
    test::Tally,
    workspace,
};

/// How long one machine may run, from its start until it switches itself off: several times what it takes where
/// nothing else runs.
const PATIENCE: Duration = Duration::from_secs(1800);

/// What the machine has beside what is built here, each with its libraries: tests call them.
const PROGRAMS: &[&str] = &["ip", "tc", "ethtool", "ping", "bpftool", "setpriv", "timeout"];

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
    "ifb",
    "act_mirred",
    "cls_u32",
    "tun",
];

/// Files that tests read where they were built, below the repository's root; one is there for its directory.
const FILES: &[&str] = &["docs/cli.md", "netpath/Cargo.toml"];

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
    /// What the tests that failed said.
    pub(crate) excerpts: Vec<String>,
}

impl Outcome {
    /// The end of a run by hand, or beside another.
    pub(crate) fn conclude(self) -> Result<()> {
        self.excerpts.iter().for_each(|excerpt| say(format_args!("\n{excerpt}")));
        say(self.tally);
        if !self.problems.is_empty() {
            bail!("on other kernels:\n  {}", self.problems.join("\n  "));
        }
        Ok(())
    }
}

/// How many CPUs machines have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cpus {
    All,
    /// Half of them, until what goes on beside closes our standard input; all from then on.
    HalfForNow,
}

impl Cpus {
    /// Waits until this one of so many workers may boot a machine.
    fn wait_for(self, worker: usize, workers: usize) {
        if self == Self::HalfForNow && workers.div_ceil(2) <= worker {
            // Nothing is written to it, and an error is an end as well.
            let _ = io::copy(&mut io::stdin(), &mut io::sink());
        }
    }
}

/// Boots each kernel and runs everything in it, or only the files of tests that are named.
pub(crate) fn run(series: &[Series], only: &[String], cpus: Cpus, kept: FileSystem) -> Result<Outcome> {
    let netpath = build::run(Profile::Release)?;
    let tests = steps::binaries(only)?;
    steps::say_left_out(&tests, only.is_empty())?;
    let mut outcome = Outcome::default();
    let mut kernels = Vec::new();
    for series in series {
        match kernel::get(*series)? {
            Found::Kernel(kernel) => kernels.push((*series, kernel)),
            Found::OutOfReach(error) => {
                let note = format!("SKIPPED: Linux {} cannot be had here: {error:#}", series.number());
                say(&note);
                outcome.skipped.push(note);
            }
        }
    }
    let mut machines = Vec::new();
    for (series, kernel) in &kernels {
        for (index, steps) in steps::shares(*series, &tests).into_iter().enumerate() {
            let name = format!("{}/{}", series.number(), index + 1);
            // The verifier is asked once for each kernel.
            let verifies = index == 0 && series.is_supported();
            let (series, netpath, tests) = (*series, &netpath, &tests);
            machines.push(Machine { name, series, kernel, netpath, verifies, tests, steps });
        }
    }
    let reports = all(&machines, cpus, kept)?;
    say("");
    for (series, kernel) in &kernels {
        let mut whole = Report::default();
        let (mut count, mut seconds) = (0, 0);
        let release = &kernel.release;
        for (machine, report, took) in reports.iter().filter(|(machine, ..)| machine.series == *series) {
            (count, seconds) = (count + 1, seconds + took);
            let names = machine.steps.iter().map(|step| step.name.as_str());
            let problems = report.problems(machine.verifies, names);
            outcome
                .problems
                .extend(problems.into_iter().map(|problem| format!("Linux {release}: {problem}")));
            let excerpts = report.excerpts().into_iter();
            outcome.excerpts.extend(excerpts.map(|excerpt| format!("Linux {release}: {excerpt}")));
            whole.add(report);
        }
        say(format_args!("Linux {release}: {whole}; {count} machines, {seconds} s of their time"));
        outcome.tally = outcome.tally.and(whole.tally());
    }
    Ok(outcome)
}

/// Runs machines, each on a CPU of its own: as many at once as there are CPUs, in their order.
fn all<'a>(
    machines: &'a [Machine<'a>],
    cpus: Cpus,
    kept: FileSystem,
) -> Result<Vec<(&'a Machine<'a>, Report, u64)>> {
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let waiting = Mutex::new(machines.iter());
    let next = || waiting.lock().ok()?.next();
    let work = |worker| -> Result<Vec<_>> {
        cpus.wait_for(worker, workers);
        let mut reports = Vec::new();
        while let Some(machine) = next() {
            let start = Instant::now();
            let report = machine.boot(kept)?;
            reports.push((machine, report, start.elapsed().as_secs()));
        }
        Ok(reports)
    };
    let ended: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = (0..workers).map(|worker| scope.spawn(move || work(worker))).collect();
        running.into_iter().map(|thread| thread.join()).collect()
    });
    let mut reports = Vec::new();
    for ended in ended {
        let Ok(of_one) = ended else { bail!("a thread that followed machines panicked") };
        reports.extend(of_one?);
    }
    Ok(reports)
}

/// A machine that can be booted.
struct Machine<'a> {
    name: String,
    series: Series,
    kernel: &'a Kernel,
    /// The release binary.
    netpath: &'a Path,
    /// Whether it is to load its programs and say what the verifier says.
    verifies: bool,
    tests: &'a [TestBinary],
    steps: Vec<Step>,
}

impl Machine<'_> {
    /// Runs it to its end.
    fn boot(&self, kept: FileSystem) -> Result<Report> {
        let dir = workspace::target_directory()?.join("vm");
        let initramfs = dir.join(format!("{}.cpio", self.name.replace('/', "-")));
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        self.system(&initramfs)?.write(&initramfs)?;

        // It ends with the thread that follows it, however that ends.
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        // Not KVM: where it is nested (PVM, say) it can have the wrong CPU or hang, and emulation is fast enough. Nor `-icount`,
        // whose clock would not mind other work: it takes twice the time.
        // An old CPU without its mitigations: what a newer one has takes a quarter more time to emulate.
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", "Nehalem", "-smp", "1", "-m", "1024", "-M", "q35"]);
        qemu.args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-serial", "stdio"]);
        qemu.arg("-kernel").arg(&self.kernel.image).arg("-initrd").arg(&initramfs);
        qemu.args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off rdinit=/init"]);
        say(format_args!("{}: $ {}", self.name, process::line(&qemu)));
        qemu.stdin(Stdio::null()).stdout(Stdio::piped());
        let report = console::follow(&mut qemu, &self.name, PATIENCE);
        match kept {
            FileSystem::Kept => say(format_args!("kept: {}", initramfs.display())),
            FileSystem::Removed => fs::remove_file(&initramfs)
                .with_context(|| format!("cannot remove {}", initramfs.display()))?,
        }
        report
    }

    /// Everything that is in it; `scratch` is a file that may be written.
    fn system(&self, scratch: &Path) -> Result<Archive> {
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
        for module in self.kernel.modules(MODULES)? {
            let path = format!("/modules/{}", module.name);
            init.push_str(&format!("load {path} {}\n", module.options));
            archive.bytes(&path, 0o644, module.read()?);
        }
        // Tests run the binary by the path at which the one was built that was built with them. Here it is the one
        // that is shipped: what is built without optimisation takes an emulated CPU minutes.
        let built = self
            .tests
            .first()
            .and_then(|test| test.path.parent()?.parent())
            .context("tests have a directory")?;
        let netpath = built.join("netpath");
        archive.file(&netpath.to_string_lossy(), self.netpath)?;
        if self.verifies {
            init.push_str(&format!("step programs '{}' programs\n", netpath.display()));
        }
        for TestBinary { name, path } in self.tests {
            if self.steps.iter().any(|step| step.test == *name) {
                archive.built(&format!("/tests/{name}"), path, scratch)?;
            }
        }
        for step in &self.steps {
            init.push_str(&step.line(self.series));
        }
        init.push_str("poweroff -f\n");
        archive.bytes("/init", 0o755, init.into_bytes());
        Ok(archive)
    }
}
