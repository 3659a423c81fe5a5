//! `netpath lab`

use std::process::ExitCode;

use super::{
    say,
    view::{Format, Output},
};
use crate::lab::{self, LabError, Options};

/// Arguments of `netpath lab`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Leave the lab standing, and say how to enter, inspect and remove it.
    #[arg(long)]
    keep: bool,
    /// Only remove a lab that was kept, or whose process was killed.
    #[arg(long, value_name = "ID", conflicts_with_all = ["keep", "output"])]
    remove: Option<String>,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if let Some(id) = &args.remove {
        lab::remove(id)?;
        say(format_args!("lab {id} is removed"));
        return Ok(ExitCode::SUCCESS);
    }
    let options = Options { keep: args.keep, json: args.output.output == Format::Json };
    match lab::run(options, &mut |text| say(text)) {
        Ok(true) => Ok(ExitCode::SUCCESS),
        Ok(false) => Ok(ExitCode::FAILURE),
        // As a shell would report the end by a signal, which this was but for the cleaning up.
        Err(LabError::Interrupted { signal }) => {
            eprintln!("netpath: {signal}: the lab is removed");
            Ok(ExitCode::from(128 + u8::try_from(signal as i32).unwrap_or(0)))
        }
        Err(error) => Err(error.into()),
    }
}
