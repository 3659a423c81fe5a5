//! `cargo xtask build`: the eBPF object, then the `netpath` binary that carries it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{ebpf, elf, process, process::say, workspace};

/// Largest release binary, in bytes: it is copied to every node. A quarter of it is the agent's way to the API.
const SIZE_LIMIT: u64 = 12_000_000;

/// Which binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Dynamic and quickly built.
    Debug,
    /// Static and small: what is shipped.
    Release,
}

/// Builds the object and the binary around it; returns the binary's path.
pub(crate) fn run(profile: Profile) -> Result<PathBuf> {
    ebpf::run()?;
    binary(profile)
}

/// Builds the binary around the object that is there.
pub(crate) fn binary(profile: Profile) -> Result<PathBuf> {
    let target = workspace::target_directory()?;
    let mut command = workspace::cargo()?;
    command.args(["build", "--quiet", "--locked", "--bin", "netpath"]);
    match profile {
        Profile::Debug => {
            command.arg(workspace::MEMBERS);
            process::run(&mut command)?;
            let path = target.join("debug/netpath");
            say(format_args!("{}: {} bytes", path.display(), size(&path)?));
            Ok(path)
        }
        Profile::Release => {
            let host = workspace::host_triple()?;
            // With --target the flags stay away from build scripts and procedural macros, which cannot be static. At a
            // fixed address, as CNI plugins in Go are: 13,000 relocations took a fifth of a millisecond of each start.
            command.args(["--package", "netpath", "--release", "--target", &host]).env(
                "CARGO_ENCODED_RUSTFLAGS",
                ["-Ctarget-feature=+crt-static", "-Crelocation-model=static"].join("\u{1f}"),
            );
            process::run(&mut command)?;
            let path = target.join(host).join("release/netpath");
            say(format_args!("{}: {} bytes", path.display(), size(&path)?));
            must_be_static(&path)?;
            must_be_small(&path)?;
            Ok(path)
        }
    }
}

fn size(path: &Path) -> Result<u64> {
    Ok(path.metadata().with_context(|| format!("cannot read {}", path.display()))?.len())
}

fn must_be_static(path: &Path) -> Result<()> {
    let program = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let needs = elf::dynamic_needs(&program)?;
    if !needs.is_empty() {
        bail!("{} is not static, it needs {}", path.display(), needs.join(", "));
    }
    // For the reader only: ldd exits with an error for one of the two kinds of static programs.
    if let Ok(out) = Command::new("ldd").env("LC_ALL", "C").arg(path).output() {
        let text = [out.stdout, out.stderr].concat();
        say(format_args!("ldd: {}", String::from_utf8_lossy(&text).trim()));
    }
    Ok(())
}

fn must_be_small(path: &Path) -> Result<()> {
    let size = size(path)?;
    if SIZE_LIMIT <= size {
        bail!("{} has {size} bytes, it must have less than {SIZE_LIMIT}", path.display());
    }
    Ok(())
}
