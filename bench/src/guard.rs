//! What a run leaves behind: nothing, however it ends.
//!
//! A second process waits for the end of a pipe that the run holds open, and then takes away what bears the run's
//! number: processes that were told of its directories or namespaces, mounts, those directories, those namespaces. SIGKILL, which a run
//! cannot answer, needs no more.

use std::{
    fs,
    io::{self, Read as _},
    os::unix::{fs::DirBuilderExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, umount2};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Tells the second process whose guard it is.
const VARIABLE: &str = "NETPATH_BENCH_GUARDS";
/// How everything is called that a run makes, with its number behind.
const PREFIX: &str = "npbench-";
/// Where namespaces have their names.
pub(crate) const NAMESPACES: &str = "/run/netns";

/// How what this run makes is called; namespaces and directories have more behind it.
pub(crate) fn name() -> String {
    format!("{PREFIX}{}", std::process::id())
}

/// Where all directories of this run lie.
pub(crate) fn directory() -> PathBuf {
    std::env::temp_dir().join(name())
}

/// The second process, told to begin when this is dropped, and waited for.
pub(crate) struct Guard(Child);

impl Guard {
    /// Takes away what runs that were killed together with their guards have left, and starts this run's guard.
    pub(crate) fn start() -> Result<Self> {
        for number in strays() {
            let name = format!("{PREFIX}{number}");
            end_processes(&name);
            sweep(&name);
        }
        let mut command = Command::new(std::env::current_exe().context("where this program is")?);
        // A group of its own: what ends the run at a terminal ends its group.
        let command =
            command.env(VARIABLE, name()).stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
        let mut guard = command.spawn().context("the guard of this run cannot be started")?;
        // Made here and by nobody else: others may write where it lies. What another has made is not the guard's to take away.
        if let Err(error) = fs::DirBuilder::new().mode(0o700).create(directory()) {
            let _ = guard.kill().and_then(|()| guard.wait());
            return Err(error).with_context(|| format!("cannot make {}", directory().display()));
        }
        Ok(Self(guard))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // It says itself what it could not do.
        let _ = self.0.wait();
    }
}

/// Does a guard's work and returns true, if this process is one.
pub(crate) fn serve() -> bool {
    let Some(name) = std::env::var(VARIABLE).ok().filter(|name| name.starts_with(PREFIX)) else {
        return false;
    };
    // Nobody writes: it returns when the run has ended.
    let _ = io::stdin().read(&mut [0]);
    let mut clean = 0;
    for _ in 0..50 {
        // Who was still at work may have made one more thing, or have started one more process, which has not been told yet.
        let ended = end_processes(&name);
        clean = if sweep(&name) && ended == 0 { clean + 1 } else { 0 };
        if clean == 2 {
            return true;
        }
        std::thread::park_timeout(Duration::from_millis(100));
    }
    eprintln!("error: something of {name} is left in {} or {NAMESPACES}", std::env::temp_dir().display());
    true
}

/// Ends what the run called `name` has started, and what was started by that: plugins are told of its directory or namespaces in
/// their environment, and hand that on. Returns how many there were.
fn end_processes(name: &str) -> usize {
    let own = std::process::id();
    let numbers = entries(Path::new("/proc")).filter_map(|entry| entry.parse::<u32>().ok());
    numbers.filter(|number| *number != own && end_if_told(*number, name)).count()
}

/// Ends the process with this number, if it works on the run called `name`. Its handle is there first: should the number become another's
/// meanwhile, that one is not ended.
///
/// Returns whether it may have been there: also of one of which that could not be found out.
fn end_if_told(number: u32, name: &str) -> bool {
    let Some(number) = Pid::from_raw(number.cast_signed()) else { return false };
    match pidfd_open(number, PidfdFlags::empty()) {
        Ok(process) => {
            let environment = fs::read(format!("/proc/{}/environ", number.as_raw_pid())).unwrap_or_default();
            is_told_of(&environment, name) && pidfd_send_signal(process, Signal::KILL).is_ok()
        }
        // A thread that is not the first of its process is not to be had so, and is no process.
        Err(error) => !matches!(error, Errno::SRCH | Errno::INVAL),
    }
}

/// Whether an environment says that its process works on the run called `name`: where a plugin finds its node or its pod. What people's
/// shells remember of directories says nothing.
fn is_told_of(environment: &[u8], name: &str) -> bool {
    let variables = environment.split(|byte| *byte == 0);
    let places = variables.filter(|it| it.starts_with(b"NETPATH_ROOT=") || it.starts_with(b"CNI_NETNS="));
    let mut parts = places.flat_map(|place| place.split(|byte| *byte == b'/'));
    parts.any(|part| {
        part.strip_prefix(name.as_bytes()).is_some_and(|rest| matches!(rest.first(), None | Some(b'-')))
    })
}

/// Takes away what is called `name`. Whether nothing is left.
fn sweep(name: &str) -> bool {
    let directory = std::env::temp_dir().join(name);
    let below = |line: &str| {
        let point = Path::new(line.split(' ').nth(4)?);
        point.starts_with(&directory).then(|| point.to_owned())
    };
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for mount in mounts.lines().rev().filter_map(below) {
        let _ = umount2(&mount, MntFlags::MNT_DETACH);
    }
    for netns in entries(Path::new(NAMESPACES)).filter(|entry| entry.starts_with(&format!("{name}-"))) {
        let netns = Path::new(NAMESPACES).join(netns);
        let _ = umount2(&netns, MntFlags::MNT_DETACH);
        let _ = fs::remove_file(netns);
    }
    let _ = fs::remove_dir_all(&directory);
    !directory.exists() && !entries(Path::new(NAMESPACES)).any(|entry| entry.starts_with(&format!("{name}-")))
}

/// Numbers of runs that are over and have left something.
fn strays() -> impl Iterator<Item = u32> {
    let names = entries(&std::env::temp_dir()).chain(entries(Path::new(NAMESPACES)));
    names
        .filter_map(|name| number(&name))
        .filter(|number| !Path::new("/proc").join(number.to_string()).exists())
}

/// Of which run something is, by its name.
fn number(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

/// Names in a directory; none where there is no such directory.
fn entries(directory: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_bears_the_number_of_a_run_is_told_from_all_else() {
        assert_eq!(number("npbench-12"), Some(12));
        assert_eq!(number("npbench-12-pod3"), Some(12));
        assert_eq!(["npbench-", "npbench-a-1", "npbench", "addpod"].map(number), [None; 4]);
    }

    #[test]
    fn who_is_told_of_a_run_by_a_path_is_told_from_all_others() {
        for told in ["A=b\0NETPATH_ROOT=/tmp/npbench-12/node1\0", "CNI_NETNS=/run/netns/npbench-12-pod3\0"] {
            assert!(is_told_of(told.as_bytes(), "npbench-12"), "{told:?}");
        }
        for other in [
            "",
            "NETPATH_ROOT=/tmp/npbench-123/node1\0",
            "CNI_NETNS=/run/netns/npbench-1-pod3\0",
            "OLDPWD=/tmp/npbench-12/node1\0",
            "NETPATH_BENCH_GUARDS=npbench-12\0",
        ] {
            assert!(!is_told_of(other.as_bytes(), "npbench-12"), "{other:?}");
        }
    }

    #[test]
    fn who_is_left_of_a_run_is_ended_with_its_children() {
        let name = format!("npbench-ended-{}", std::process::id());
        let mut shell = Command::new("sh");
        shell.args(["-c", "sleep 1000 & echo; wait"]).env("NETPATH_ROOT", format!("/tmp/{name}/node1"));
        let mut shell = shell.stdout(Stdio::piped()).spawn().expect("a shell");
        shell.stdout.take().expect("piped").read_exact(&mut [0]).expect("its child is there");
        let begun = std::time::Instant::now();
        let mut ended = 0;
        while ended < 2 {
            ended += end_processes(&name);
            assert!(begun.elapsed() < Duration::from_secs(30), "{ended} of two");
        }
        assert!(!shell.wait().expect("ours").success());
    }

    #[test]
    fn a_sweep_takes_its_own_and_nothing_that_begins_alike() {
        let make = |name: &str| {
            let path = std::env::temp_dir().join(name).join("a/b");
            fs::create_dir_all(&path).expect("a directory");
            path
        };
        let name = format!("npbench-test-{}", std::process::id());
        let (own, other) = (make(&name), make(&format!("{name}0")));
        assert!(sweep(&name));
        assert!(!own.exists() && other.exists());
        assert!(sweep(&format!("{name}0")));
    }
}
