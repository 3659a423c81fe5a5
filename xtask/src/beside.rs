//! A part of a run that goes on beside the others: a process of its own, so that what it says is kept apart.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};

use crate::{
    process::{self, say},
    test::Tally,
    workspace,
};

/// Begins the lines of a part that name what it had to leave out.
const SKIPPED: &str = "SKIPPED: ";

/// A part that was started. Dropped before its end, it is killed.
pub(crate) struct Beside {
    child: Child,
    /// As one would type it.
    command: String,
    /// What it says.
    log: PathBuf,
}

/// What came of a part.
pub(crate) struct Ended {
    pub(crate) tally: Tally,
    /// What failed, as one would type it.
    pub(crate) broken: Option<String>,
    /// What could not be tried.
    pub(crate) notes: Vec<String>,
}

impl Beside {
    /// Starts this program once more with these words. It may take all of the machine when its standard input ends.
    pub(crate) fn start(words: &[&str]) -> Result<Self> {
        let log = workspace::target_directory()?.join(format!("{}.log", words.join("-")));
        let file = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        // It ends with us, however we end: without us it would take the whole machine.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]);
        command.arg(std::env::current_exe().context("cannot tell our own path")?);
        command.current_dir(workspace::root()?).args(words).stdin(Stdio::piped());
        command
            .stdout(file.try_clone().with_context(|| format!("cannot share {}", log.display()))?)
            .stderr(file);
        let line = process::line(&command);
        let child = command.spawn().with_context(|| format!("cannot start: {line}"))?;
        let command = format!("cargo xtask {}", words.join(" "));
        say(format_args!("beside the rest, into {}: $ {command}", log.display()));
        Ok(Self { child, command, log })
    }

    /// Lets it have the machine, waits for its end and says what it said. Its sum is its last line but errors.
    pub(crate) fn end(mut self) -> Result<Ended> {
        drop(self.child.stdin.take());
        let status = self.child.wait().with_context(|| format!("cannot wait for: {}", self.command))?;
        let text = fs::read(&self.log).with_context(|| format!("cannot read {}", self.log.display()))?;
        let text = String::from_utf8_lossy(&text);
        say(text.trim_end());
        Ok(judge(&self.command, status.success(), &text))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // It has ended, unless an error ended us; what it started ends with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A part that says no sum did not come to its end, whatever its status.
fn judge(command: &str, success: bool, text: &str) -> Ended {
    let sum = text.lines().rev().find_map(Tally::parse);
    Ended {
        tally: sum.unwrap_or_default(),
        broken: (!success || sum.is_none()).then(|| command.to_owned()),
        notes: text.lines().filter(|line| line.starts_with(SKIPPED)).map(str::to_owned).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_fails_by_its_status_and_without_its_sum() {
        let sum = "SKIPPED: 5.10\n\n34 passed, 0 failed\n";
        for (success, text, broken, passed) in [
            (true, sum, false, 34),
            (false, sum, true, 34),
            (false, "33 passed, 1 failed\nerror: on other kernels: x", true, 33),
            (true, "Linux 6.1: 34 passed, 0 failed; 8 machines", true, 0),
            (true, "", true, 0),
        ] {
            let ended = judge("cargo xtask x", success, text);
            assert_eq!((ended.broken.is_some(), ended.tally.passed), (broken, passed), "{text}");
        }
        assert_eq!(judge("", true, sum).notes, ["SKIPPED: 5.10"]);
    }
}
