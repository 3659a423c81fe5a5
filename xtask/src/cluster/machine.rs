//! A machine of the cluster: an init process with namespaces of its own. When it is killed, everything in it goes:
//! the kernel kills the processes, and with the last of them go mounts and links.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::process;

/// How long a machine, or a program in it, may take to be up or gone.
const PATIENCE: Duration = Duration::from_secs(60);

/// What makes a machine of a process.
const INIT: &str = include_str!("init.sh");

/// A running machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) name: String,
    /// Process id of its init, as this machine's host sees it.
    pub(crate) init: u32,
    /// When that process started, in the kernel's ticks: an id is given to another process some day.
    started: u64,
    /// Where what it keeps over a reboot lies, and its logs.
    dir: PathBuf,
}

impl Machine {
    /// Switches a machine on. What it keeps lies below `dir`.
    pub(crate) fn boot(name: &str, dir: &Path) -> Result<Self> {
        let disk = dir.join("disk");
        fs::create_dir_all(&disk).with_context(|| format!("cannot create {}", disk.display()))?;
        let script = dir.join("init.sh");
        write(&script, INIT)?;
        let log = log_file(&dir.join("init.log"))?;
        let mut command = Command::new("setsid");
        command.args(["unshare", "--fork", "--pid", "--mount-proc", "--mount", "--net", "--uts", "--ipc"]);
        command.arg("bash").arg(&script).arg(name).arg(&disk);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let line = process::line(&command);
        let mut unshare = command.spawn().with_context(|| format!("cannot start: {line}"))?;
        let children = format!("/proc/{0}/task/{0}/children", unshare.id());
        let ready = || -> Result<Option<Self>> {
            if let Some(status) = unshare.try_wait().context("cannot wait for a machine")? {
                let log = fs::read_to_string(dir.join("init.log")).unwrap_or_default();
                bail!("machine {name} did not start ({status}): {log}");
            }
            let children = fs::read_to_string(&children).unwrap_or_default();
            let Some(init) = children.split_whitespace().next().and_then(|pid| pid.parse().ok()) else {
                return Ok(None);
            };
            let is_up = Path::new(&format!("/proc/{init}/root/run/machine-is-up")).exists();
            let Some(started) = start_of(init).filter(|_| is_up) else { return Ok(None) };
            Ok(Some(Self { name: name.to_owned(), init, started, dir: dir.to_owned() }))
        };
        eventually(&format!("machine {name} is up"), ready)
    }

    /// A command that runs in the machine.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.init));
        command.args(["--mount", "--net", "--pid", "--uts", "--ipc", "--"]).arg(program);
        command
    }

    /// Runs a line of a shell in the machine; it must succeed.
    pub(crate) fn sh(&self, line: &str) -> Result<String> {
        process::output(self.command("sh").args(["-euc", line])).with_context(|| format!("on {}", self.name))
    }

    /// Runs `ip` with these words in the machine.
    pub(crate) fn ip(&self, words: &str) -> Result<()> {
        self.sh(&format!("ip {words}")).map(drop)
    }

    /// Starts a program that stays; what it says goes to `<name>.log`.
    pub(crate) fn start(&self, name: &str, words: &[String]) -> Result<()> {
        let log = log_file(&self.log(name))?;
        let mut command = Command::new("setsid");
        let within = self.command("sh");
        command.arg(within.get_program()).args(within.get_args());
        command.args(["-c", "echo $$ > /run/$0.pid; exec \"$@\"", name]).args(words);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let line = process::line(&command);
        command.spawn().with_context(|| format!("cannot start: {line}"))?;
        Ok(())
    }

    /// Kills a program that [`Self::start`] started, and waits until it is gone.
    pub(crate) fn kill(&self, name: &str) -> Result<()> {
        self.sh(&format!(
            "pid=$(cat /run/{name}.pid); kill -9 $pid; rm /run/{name}.pid; while [ -e /proc/$pid/exe ]; do sleep 0.02; done"
        ))
        .map(drop)
    }

    /// Where a program of the machine writes what it does.
    pub(crate) fn log(&self, program: &str) -> PathBuf {
        self.dir.join(format!("{program}.log"))
    }

    /// A path of the machine, as its host sees it.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init))
    }

    /// Whether it runs.
    pub(crate) fn is_up(&self) -> bool {
        start_of(self.init) == Some(self.started)
    }

    /// Switches the machine off at once, as a power failure does.
    pub(crate) fn power_off(&self) -> Result<()> {
        if self.is_up() {
            process::output(Command::new("kill").args(["-9", &self.init.to_string()]))?;
        }
        eventually(&format!("machine {} is off", self.name), || Ok((!self.is_up()).then_some(())))
    }
}

/// Waits until `ready` has an answer.
pub(crate) fn eventually<T>(what: &str, mut ready: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ready()? {
            return Ok(answer);
        }
        if deadline < Instant::now() {
            bail!("not within {} s: {what}", PATIENCE.as_secs());
        }
        thread::park_timeout(Duration::from_millis(10));
    }
}

/// Writes a file and the directories it needs.
pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn log_file(path: &Path) -> Result<fs::File> {
    let mut options = fs::File::options();
    options.create(true).append(true);
    options.open(path).with_context(|| format!("cannot write {}", path.display()))
}

/// When a process started; `None` for one that has ended.
fn start_of(pid: u32) -> Option<u64> {
    parse_start(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Field 22 of `/proc/<pid>/stat`; the name in field 2 may hold anything.
fn parse_start(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[test]
fn the_start_of_a_process_is_read_behind_any_name() {
    let rest = "1 1 1 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
    assert_eq!(parse_start(&format!("7 (a) b) S {rest}")), Some(4711));
    assert_eq!(parse_start(&format!("7 (sh) Z {rest}")), None, "has ended");
    assert_eq!(parse_start(""), None);
    assert!(start_of(std::process::id()).is_some());
}
