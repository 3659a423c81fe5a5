//! The one binary: CNI plugin where `CNI_COMMAND` is set, else the operator's tool.

use std::{
    io::{Read, Write},
    process::ExitCode,
};

use clap::Parser;
use netpath::{cli, plugin, root};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // Logs go to stderr: a runtime reads the result from stdout.
    let filter = EnvFilter::try_from_env("NETPATH_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
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
