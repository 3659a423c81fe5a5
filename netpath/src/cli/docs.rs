//! `netpath docs`: documentation that is generated from tables in the code.

use std::{path::Path, process::ExitCode};

use anyhow::Context;

use super::say;
use crate::observe::drop_reasons_markdown;

/// Arguments of `netpath docs`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only compare, and fail if a file is out of date.
    #[arg(long)]
    check: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut stale = false;
    for (path, wanted) in [("docs/drop-reasons.md", drop_reasons_markdown())] {
        let path = Path::new(path);
        let current = std::fs::read_to_string(path).unwrap_or_default();
        if current == wanted {
            continue;
        }
        match args.check {
            true => {
                stale = true;
                say(format_args!("{} is out of date: run `cargo xtask codegen`", path.display()));
            }
            false => {
                std::fs::write(path, wanted).with_context(|| format!("cannot write {}", path.display()))?;
            }
        }
    }
    Ok(if stale { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
