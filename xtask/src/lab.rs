//! `cargo xtask lab`: the lab with nothing prepared but the repository.

use std::process::Command;

use anyhow::Result;

use crate::{
    build::{self, Profile},
    process, setup,
};

/// Sets up, builds what is shipped, and runs `netpath lab` with `args`.
pub(crate) fn run(args: &[String]) -> Result<()> {
    setup::run(setup::Mode::Install)?;
    let netpath = build::run(Profile::Release)?;
    process::run(Command::new(netpath).arg("lab").args(args))
}
