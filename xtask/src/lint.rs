//! `cargo xtask lint`: everything that is judged by reading the source.

use anyhow::Result;

use crate::{codegen, process, workspace};

/// rustfmt, clippy, the layering test, generated files; the first breach ends it.
pub(crate) fn run() -> Result<()> {
    cargo(&["fmt", "--all", "--check"])?;
    cargo(&[
        "clippy",
        "--quiet",
        workspace::MEMBERS,
        "--all-targets",
        "--all-features",
        "--locked",
        "--",
        "-D",
        "warnings",
    ])?;
    cargo(&["test", "--quiet", "--locked", workspace::MEMBERS, "--test", "layering"])?;
    codegen::check()
}

fn cargo(args: &[&str]) -> Result<()> {
    process::run(workspace::cargo()?.args(args))
}
