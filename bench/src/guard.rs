//! What a run leaves behind: nothing, however it ends.
//!
//! A second process waits for the end of a pipe that the run holds open, and then takes away what bears the run's
//! number: mounts, the directories that they lie in, network namespaces. SIGKILL, which a run cannot answer, needs no more.

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
            sweep(&format!("{PREFIX}{number}"));
        }
        // Made here and by nobody else: others may write where it lies.
        let made = fs::DirBuilder::new().mode(0o700).create(directory());
        made.with_context(|| format!("cannot make {}", directory().display()))?;
        let mut command = Command::new(std::env::current_exe().context("where this program is")?);
        // A group of its own: what ends the run at a terminal ends its group.
        let command =
            command.env(VARIABLE, name()).stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
        Ok(Self(command.spawn().context("the guard of this run cannot be started")?))
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
    // What the run had started may be about to make one more thing.
    for _ in 0..50 {
        if sweep(&name) {
            return true;
        }
        std::thread::park_timeout(Duration::from_millis(100));
    }
    eprintln!("error: something of {name} is left in {} or {NAMESPACES}", std::env::temp_dir().display());
    true
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
