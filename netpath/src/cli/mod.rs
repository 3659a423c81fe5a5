//! The operator's tool.

mod agent;
mod apply;
mod attach;
mod docs;
mod drops;
mod follow;
mod intruders;
mod lab;
pub(crate) mod manifest;
mod pods;
mod programs;
mod status;
mod sweep;
mod table;
mod uninstall;
mod upgrade;
mod view;
mod zones;

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
    /// Show masters, hooks, programs and maps, and what needs attention.
    Status(status::Args),
    /// Show attachments with their counters.
    Pods(pods::Args),
    /// Show zones as the kernel enforces them.
    Zones(zones::Args),
    /// Show what was dropped, by attachment and reason; or follow drops as they happen.
    Drops(drops::Args),
    /// Put changed networks in force for attachments that run.
    Apply(apply::Args),
    /// Attach the programs to masters, or bring attached ones to this build.
    Attach(attach::Args),
    /// Bring what is in force to this version and to settings.json, without a gap.
    Upgrade(upgrade::Args),
    /// Keep this node true to the cluster, and serve metrics; runs until it is told to end.
    Agent(agent::Args),
    /// End what is dead and what no runtime will send a DEL for any more.
    Sweep(sweep::Args),
    /// Detach everything and remove every pin; asks first.
    Uninstall(uninstall::Args),
    /// Try the programs on this kernel without attaching them; one JSON object a line.
    Programs,
    /// Build the lab on this machine, and ask who reaches whom, without and with the zone.
    Lab(lab::Args),
    /// Write or check the generated documentation.
    #[command(hide = true)]
    Docs(docs::Args),
}

/// Runs the tool; errors are printed with their causes.
pub fn run(cli: Cli) -> ExitCode {
    let root = Root::new(cli.root);
    let result = match cli.command {
        Command::Status(args) => status::run(&root, &args),
        Command::Pods(args) => pods::run(&root, &args),
        Command::Zones(args) => zones::run(&root, &args),
        Command::Drops(args) => drops::run(&root, &args),
        Command::Apply(args) => apply::run(&root, &args),
        Command::Attach(args) => attach::run(&root, &args),
        Command::Upgrade(args) => upgrade::run(&root, &args),
        Command::Agent(args) => agent::run(&root, args),
        Command::Sweep(args) => sweep::run(&root, &args),
        Command::Uninstall(args) => uninstall::run(&root, &args),
        Command::Programs => programs::run(),
        Command::Lab(args) => lab::run(&args),
        Command::Docs(args) => docs::run(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("netpath: {}", lines(format_args!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

/// Prints one line of output.
pub(crate) fn say(text: impl std::fmt::Display) {
    // A reader that went away (`| head`) is no reason to complain.
    let _ = tell(text);
}

/// The text without control characters: a kernel takes them in names of interfaces, and a terminal obeys them.
fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter.is_control() && letter != '\t' {
            true => shown.extend(letter.escape_default()),
            false => shown.push(letter),
        }
    }
    shown
}

/// The same of a text of several lines.
fn lines(text: impl std::fmt::Display) -> String {
    text.to_string().split('\n').map(printable).collect::<Vec<_>>().join("\n")
}

/// Prints one line, for those who must know that nobody reads it any more. Everything the tool says on
/// standard output goes through here.
fn tell(text: impl std::fmt::Display) -> std::io::Result<()> {
    use std::io::Write;
    writeln!(std::io::stdout(), "{}", lines(text))
}
