//! Programs that are started, fed and waited for, all of them in the same way.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};

/// A program, and what it reads.
pub(super) struct Call {
    pub(super) command: Command,
    pub(super) stdin: String,
}

impl Call {
    /// Runs it to its end, which must be a good one.
    pub(super) fn run(&mut self) -> Result<()> {
        let command = &mut self.command;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        if let Some(mut pipe) = child.stdin.take() {
            // One that reads nothing closes its end.
            let _ = pipe.write_all(self.stdin.as_bytes());
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let said = [output.stdout, output.stderr].concat();
            bail!("{command:?} failed: {}", String::from_utf8_lossy(&said));
        }
        Ok(())
    }

    /// The same, in microseconds.
    pub(super) fn time(mut self) -> Result<f64> {
        timed(|| self.run())
    }
}

/// A program that reads nothing.
impl From<Command> for Call {
    fn from(command: Command) -> Self {
        Self { command, stdin: String::new() }
    }
}

/// What `work` takes, in microseconds.
pub(super) fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let begun = Instant::now();
    work()?;
    Ok(begun.elapsed().as_secs_f64() * 1e6)
}

/// Runs `ip` with these words; it must succeed.
pub(super) fn ip(words: &str) -> Result<()> {
    let status = Command::new("ip").args(words.split_whitespace()).status().context("cannot start ip")?;
    ensure!(status.success(), "ip {words} failed");
    Ok(())
}
