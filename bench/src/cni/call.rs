//! Programs that are started, fed and waited for, all of them in the same way.

use std::{process::Command, time::Instant};

use anyhow::Result;

use crate::netns;

/// A program, and what it reads.
pub(super) struct Call {
    pub(super) command: Command,
    pub(super) stdin: String,
}

impl Call {
    /// Runs it to its end, which must be a good one.
    pub(super) fn run(&mut self) -> Result<()> {
        netns::run(&mut self.command, &self.stdin)
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
