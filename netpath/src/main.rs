//! The one binary: CNI plugin where `CNI_COMMAND` is set, else the operator's tool.

use std::{
    io::{Read, Write},
    process::ExitCode,
};

use clap::Parser;
use netpath::{cli, plugin, root};
use tracing_subscriber::{
    Layer as _,
    filter::{LevelFilter, Targets},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

fn main() -> ExitCode {
    // Logs go to stderr: a runtime reads the result from stdout.
    let wanted = std::env::var("NETPATH_LOG").ok().and_then(|text| text.parse::<Targets>().ok());
    let filter = wanted.unwrap_or_else(|| Targets::new().with_default(LevelFilter::WARN));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    tracing_subscriber::registry().with(lines.with_filter(filter)).init();
    match std::env::var_os("CNI_COMMAND") {
        Some(_) => as_plugin(),
        None => cli::run(cli::Cli::parse()),
    }
}

fn as_plugin() -> ExitCode {
    let root = std::env::var_os(root::ENV).map(root::Root::new).unwrap_or_default();
    let mut stdin = Vec::new();
    let answer = match std::io::stdin().read_to_end(&mut stdin) {
        Ok(_) => plugin::run(&root, |name| std::env::var(name).ok(), &stdin),
        Err(error) => {
            tracing::error!(%error, "cannot read the network configuration from standard input");
            return ExitCode::FAILURE;
        }
    };
    if let Some(value) = answer.stdout
        && let Err(error) = writeln!(std::io::stdout(), "{}", netpath::spec::json::to_text(&value))
    {
        tracing::error!(%error, "cannot write the result");
        return ExitCode::FAILURE;
    }
    ExitCode::from(answer.exit)
}
