//! Where things are: the repository, the target directory, the files that xtask makes.

use std::{
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::process;

/// Lowest compiler release the workspace builds with, as in its `Cargo.toml`.
pub(crate) const RUST_VERSION: &str = env!("CARGO_PKG_RUST_VERSION");

/// Whom cargo builds in its profile `dev`, whatever target is wanted: features are those of all members then, so that no
/// crate is compiled once for a test, once for a tool and once for the benchmark.
pub(crate) const MEMBERS: &str = "--workspace";

/// The repository's root.
pub(crate) fn root() -> Result<PathBuf> {
    // Cargo sets the variable when it runs xtask; a repository that moved after the build is still found.
    let here = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    let root = here.parent().with_context(|| format!("{} has no parent directory", here.display()))?;
    Ok(root.to_owned())
}

/// The target directory that cargo uses here, whatever it is set by.
///
/// `netpath/build.rs` asks in the same way, so that both agree about where the object is.
pub(crate) fn target_directory() -> Result<PathBuf> {
    let metadata = metadata()?;
    let target =
        metadata["target_directory"].as_str().context("`cargo metadata` names no target_directory")?;
    Ok(PathBuf::from(target))
}

/// The files of tests of every member, by the member's name.
pub(crate) fn test_targets() -> Result<BTreeMap<String, Vec<String>>> {
    let metadata = metadata()?;
    let list = |value: &Value, what: &str| {
        value.as_array().cloned().with_context(|| format!("`cargo metadata` names no {what}"))
    };
    let mut members = BTreeMap::new();
    for package in list(&metadata["packages"], "packages")? {
        let name = package["name"].as_str().context("a package without a name")?;
        let mut targets = Vec::new();
        for target in list(&package["targets"], "targets")? {
            if list(&target["kind"], "kind")?.iter().any(|kind| kind == "test") {
                targets.push(target["name"].as_str().context("a target without a name")?.to_owned());
            }
        }
        targets.sort();
        members.insert(name.to_owned(), targets);
    }
    Ok(members)
}

fn metadata() -> Result<Value> {
    let mut metadata = cargo()?;
    metadata.args(["metadata", "--no-deps", "--offline", "--format-version=1"]);
    serde_json::from_str(&process::output(&mut metadata)?).context("`cargo metadata` did not print JSON")
}

/// The finished object. Its directory holds nothing else, since `netpath/build.rs` watches it.
pub(crate) fn bpf_object(target: &Path) -> PathBuf {
    target.join("bpf").join("netpath.bpf.o")
}

/// The programs that the benchmark compares ours with.
pub(crate) fn reference_object(target: &Path) -> PathBuf {
    target.join("bench").join("reference.bpf.o")
}

/// Where what was downloaded or takes long to build is kept: outside the repository and the target directory, since
/// `cargo clean` is no reason to do it again.
pub(crate) fn cache() -> Result<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    Ok(base.context("neither XDG_CACHE_HOME nor HOME is set: where may downloads be kept?")?.join("netpath"))
}

/// A program that `cargo install` put where `PATH` need not lead.
pub(crate) fn cargo_bin(name: &str) -> Option<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    home.map(|home| home.join("bin").join(name)).filter(|file| process::is_executable(file))
}

/// The cargo that runs us, in the repository's root.
pub(crate) fn cargo() -> Result<Command> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()?);
    Ok(command)
}

/// The triple that programs for this machine are built for.
pub(crate) fn host_triple() -> Result<String> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = process::output(Command::new(rustc).arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("`rustc -vV` prints no `host:` line")?.to_owned())
}
