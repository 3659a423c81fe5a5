//! Where things are: the repository, the target directory, the files that xtask makes.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::process;

/// Lowest compiler release the workspace builds with, as in its `Cargo.toml`.
pub(crate) const RUST_VERSION: &str = env!("CARGO_PKG_RUST_VERSION");

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
    let mut metadata = cargo()?;
    metadata.args(["metadata", "--no-deps", "--offline", "--format-version=1"]);
    let metadata: serde_json::Value = serde_json::from_str(&process::output(&mut metadata)?)
        .context("`cargo metadata` did not print JSON")?;
    let target =
        metadata["target_directory"].as_str().context("`cargo metadata` names no target_directory")?;
    Ok(PathBuf::from(target))
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
