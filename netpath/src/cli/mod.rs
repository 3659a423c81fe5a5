//! The operator's tool.

mod attach;
mod docs;
mod programs;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::root::{self, Root};

/// Policed, measured secondary interfaces for pods.
///
/// As a CNI plugin (with CNI_COMMAND in the environment) netpath makes and polices interfaces; called by
/// hand it shows and changes what the node enforces.
#[derive(Debug, Parser)]
#[command(name = "netpath", version, arg_required_else_help = true)]
pub struct Cli {
    /// Directory that every path hangs off; labs and tests give each node its own.
    #[arg(long, global = true, env = root::ENV, default_value = "/", value_name = "DIR")]
    root: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Attach the programs to masters, or bring attached ones to this build.
    Attach(attach::Args),
    /// Try the programs on this kernel without attaching them; one JSON object a line.
    Programs,
    /// Write or check the generated documentation.
    #[command(hide = true)]
    Docs(docs::Args),
}

/// Runs the tool; errors are printed with their causes.
pub fn run(cli: Cli) -> ExitCode {
    let root = Root::new(cli.root);
    let result = match cli.command {
        Command::Attach(args) => attach::run(&root, &args),
        Command::Programs => programs::run(),
        Command::Docs(args) => docs::run(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("netpath: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints one line of output. Everything the tool says on standard output goes through here.
pub(crate) fn say(text: impl std::fmt::Display) {
    use std::io::Write;
    // A reader that went away (`| head`) is no reason to complain.
    let _ = writeln!(std::io::stdout(), "{text}");
}
