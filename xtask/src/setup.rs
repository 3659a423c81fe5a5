//! `cargo xtask setup`: says what building and testing need and why, and installs what is missing.
//!
//! Whether something is there is told by the thing itself, a program or a file, and not by a package
//! database: what somebody installed in another way is good enough.

use std::{collections::BTreeSet, process::Command};

use anyhow::{Result, bail};

use crate::{
    fuzz, packages,
    process::{self, find_program, is_root, say},
    toolchain, workspace,
};

/// What to do about missing items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Install,
    Check,
}

/// One thing that building or testing needs.
pub(crate) struct Item {
    /// Unique among the items of one run.
    pub(crate) name: String,
    pub(crate) why: String,
    pub(crate) state: State,
}

/// Whether an item is there.
pub(crate) enum State {
    /// Where, or which version.
    Present(String),
    Missing(Remedy),
}

/// How a missing item gets here.
pub(crate) enum Remedy {
    /// A package of Debian.
    Apt(String),
    /// Arguments of rustup.
    Rustup(Vec<String>),
    /// Arguments of cargo, with the LLVM to build with.
    CargoInstall { llvm_prefix: String, args: Vec<String> },
    /// Arguments of cargo.
    Cargo(Vec<String>),
    /// Cannot be told before this other item is there.
    Later(String),
    /// Only a person can do this.
    ByHand(String),
}

impl Item {
    fn remedy(&self) -> Option<&Remedy> {
        match &self.state {
            State::Present(_) => None,
            State::Missing(remedy) => Some(remedy),
        }
    }
}

/// Reports every item; installs what is missing, or fails when something is.
pub(crate) fn run(mode: Mode) -> Result<()> {
    let mut lists_are_fresh = false;
    if mode == Mode::Install && !toolchain::has_compiler() && packages::has_apt() && is_root()? {
        // The route depends on what apt offers, and a fresh machine has no package lists.
        packages::update()?;
        lists_are_fresh = true;
    }
    let (route, why) = toolchain::choose()?;
    say(format_args!("eBPF toolchain: {route} route, because {why}"));

    let mut reported = BTreeSet::new();
    let mut attempted = BTreeSet::new();
    loop {
        // Collected anew in each turn: which LLVM is needed shows only when the compiler is there.
        let items = items(route);
        for item in items.iter().filter(|item| reported.insert((item.name.clone(), item.remedy().is_none())))
        {
            report(item);
        }
        let missing: Vec<&Item> = items.iter().filter(|item| item.remedy().is_some()).collect();
        if missing.is_empty() {
            say("setup: everything is there");
            return Ok(());
        }
        if mode == Mode::Check {
            bail!("{} missing; `cargo xtask setup` installs what it can: {}", missing.len(), names(&missing));
        }
        install(&missing, &mut lists_are_fresh, &mut attempted)?;
    }
}

fn items(route: toolchain::Route) -> Vec<Item> {
    let mut items = cargo_tools();
    items.extend(toolchain::items(route));
    items.extend(packages::tools());
    items.extend(fuzz::items());
    items
}

fn report(item: &Item) {
    match &item.state {
        State::Present(found) => say(format_args!("  ok       {}: {} [{found}]", item.name, item.why)),
        State::Missing(Remedy::Later(other)) => {
            say(format_args!("  missing  {}: {} [after {other}]", item.name, item.why));
        }
        State::Missing(_) => say(format_args!("  missing  {}: {}", item.name, item.why)),
    }
}

/// Takes the first kind of step that helps; the next turn sees what it changed.
fn install(missing: &[&Item], lists_are_fresh: &mut bool, attempted: &mut BTreeSet<String>) -> Result<()> {
    let mut by_hand = Vec::new();
    let mut apt = Vec::new();
    for item in missing {
        match item.remedy() {
            Some(Remedy::ByHand(what)) => by_hand.push(what.clone()),
            Some(Remedy::Apt(package)) if packages::has_apt() => apt.push(package.clone()),
            Some(Remedy::Apt(package)) => {
                by_hand.push(format!("what Debian has in package {package}: {}", item.why));
            }
            _ => {}
        }
    }
    if !by_hand.is_empty() {
        bail!("this machine cannot be set up by itself; install by hand:\n  - {}", by_hand.join("\n  - "));
    }
    if !apt.is_empty() && !is_root()? {
        bail!(
            "packages are installed by root; run as root, then again as yourself:\n  apt-get update && apt-get install \
             --no-install-recommends {}",
            apt.join(" ")
        );
    }
    let turn: Vec<&&Item> = match apt.is_empty() {
        false => missing.iter().filter(|item| matches!(item.remedy(), Some(Remedy::Apt(_)))).collect(),
        true => {
            missing.iter().filter(|item| !matches!(item.remedy(), Some(Remedy::Later(_)))).take(1).collect()
        }
    };
    for item in &turn {
        if !attempted.insert(item.name.clone()) {
            bail!("{} was installed and is still not found: {}", item.name, item.why);
        }
    }
    if !apt.is_empty() {
        if !*lists_are_fresh {
            packages::update()?;
            *lists_are_fresh = true;
        }
        return packages::install(&apt);
    }
    match turn.first().and_then(|item| item.remedy()) {
        Some(Remedy::Rustup(args)) => process::run(Command::new("rustup").args(args)),
        Some(Remedy::CargoInstall { llvm_prefix, args }) => {
            // In a directory of its own, so that our target directory does not fill up with it.
            let mut cargo = workspace::cargo()?;
            process::run(cargo.env_remove("CARGO_TARGET_DIR").env("LLVM_PREFIX", llvm_prefix).args(args))
        }
        Some(Remedy::Cargo(args)) => {
            process::run(workspace::cargo()?.env_remove("CARGO_TARGET_DIR").args(args))
        }
        _ => bail!("missing, and nothing here can install it: {}", names(missing)),
    }
}

/// rustfmt and clippy, of the toolchain that runs us.
fn cargo_tools() -> Vec<Item> {
    let tools = [
        ("fmt", "rustfmt", "rustfmt-web", "`cargo xtask lint` checks the format"),
        ("clippy", "clippy", "rust-web-clippy", "`cargo xtask lint` checks the shared lint table"),
    ];
    tools
        .into_iter()
        .map(|(command, component, package, why)| {
            let found = workspace::cargo()
                .and_then(|mut cargo| process::output(cargo.args([command, "--version"])))
                .map(|version| version.trim().to_owned());
            let state = match found {
                Ok(version) => State::Present(version),
                // A cargo of rustup is told by the toolchain it names to what it runs.
                Err(_)
                    if std::env::var_os("RUSTUP_TOOLCHAIN").is_some() && find_program("rustup").is_some() =>
                {
                    State::Missing(Remedy::Rustup(vec![
                        "component".to_owned(),
                        "add".to_owned(),
                        component.to_owned(),
                    ]))
                }
                Err(_) => State::Missing(Remedy::Apt(package.to_owned())),
            };
            Item { name: component.to_owned(), why: why.to_owned(), state }
        })
        .collect()
}

fn names(items: &[&Item]) -> String {
    items.iter().map(|item| item.name.as_str()).collect::<Vec<_>>().join(", ")
}
