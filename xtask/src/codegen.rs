//! `cargo xtask codegen`: files in the repository that are made from code.
//!
//! - `netpath-ebpf/abi.lock`: the ABI's version and a hash of the `abi` module, so that nobody changes one and
//!   forgets the other. Comments and layout of the text do not count.
//! - `deploy/netpath.yaml`: the manifests in one file.
//! - `docs/`: written by the netpath binary from the tables that it works by.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{build, manifests, process, process::say, workspace};

const ABI: &str = "netpath-ebpf/src/abi.rs";
/// The rest of it, and what may stand in a row of `flows`.
const ABI_PARTS: [&str; 3] =
    ["netpath-ebpf/src/abi/zone.rs", "netpath-ebpf/src/abi/flow.rs", "netpath-ebpf/src/flow.rs"];
const LOCK: &str = "netpath-ebpf/abi.lock";

/// What `abi.lock` records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lock {
    version: u32,
    hash: u64,
}

/// Fails when a generated file is not what the code says.
pub(crate) fn check() -> Result<()> {
    let actual = Lock::of_source(&abi()?)?;
    judge(Lock::parse(&read(LOCK)?)?, actual)?;
    manifests::check()?;
    docs(&["--check"])
}

/// Rewrites generated files.
pub(crate) fn write(abi_compatible: bool) -> Result<()> {
    let actual = Lock::of_source(&abi()?)?;
    let path = path(LOCK)?;
    if path.exists() && !abi_compatible {
        let locked = Lock::parse(&read(LOCK)?)?;
        if locked.version == actual.version {
            judge(locked, actual)?;
        }
    }
    let text = actual.text();
    if !fs::read_to_string(&path).is_ok_and(|old| old == text) {
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        say(format_args!("wrote {LOCK}"));
    }
    manifests::write()?;
    docs(&[])
}

/// The text of the module.
fn abi() -> Result<String> {
    let mut text = read(ABI)?;
    for part in ABI_PARTS {
        text += &read(part)?;
    }
    Ok(text)
}

/// The hash may move only together with the version, and the record must follow both.
fn judge(locked: Lock, actual: Lock) -> Result<()> {
    if locked.version == actual.version && locked.hash != actual.hash {
        bail!(
            "the module `abi` changed, and ABI_VERSION is still {}. If old and new programs cannot share maps, raise ABI_VERSION \
             and run `cargo xtask codegen`. If any mix of them works, because the change is in padding, or if no release \
             has this version yet, run `cargo xtask codegen --abi-compatible`",
            actual.version
        );
    }
    if locked != actual {
        bail!(
            "{LOCK} records ABI version {}, {ABI} has {}: run `cargo xtask codegen`",
            locked.version,
            actual.version
        );
    }
    Ok(())
}

impl Lock {
    fn of_source(source: &str) -> Result<Self> {
        let version = source.lines().find_map(|line| line.strip_prefix("pub const ABI_VERSION: u32 = "));
        let version = version.and_then(|rest| rest.strip_suffix(';')?.parse().ok());
        let version =
            version.with_context(|| format!("{ABI} has no line `pub const ABI_VERSION: u32 = <number>;`"))?;
        Ok(Self { version, hash: hash(source) })
    }

    fn parse(text: &str) -> Result<Self> {
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "));
        let version = field("version").and_then(|value| value.parse().ok());
        let hash = field("hash").and_then(|value| u64::from_str_radix(value.strip_prefix("0x")?, 16).ok());
        match (version, hash) {
            (Some(version), Some(hash)) => Ok(Self { version, hash }),
            _ => bail!(
                "{LOCK} must have lines `version = <number>` and `hash = 0x<hexadecimal>`: run `cargo xtask codegen`"
            ),
        }
    }

    fn text(self) -> String {
        let Self { version, hash } = self;
        format!(
            "# Written by `cargo xtask codegen`: ABI_VERSION, and a hash of the module `abi` without comments and spaces.\nversion = {version}\nhash = 0x{hash:016x}\n"
        )
    }
}

/// FNV-1a over the source without comments and spaces. It guards against forgetting, not against malice.
fn hash(source: &str) -> u64 {
    let code = source.lines().map(|line| line.split_once("//").map_or(line, |(code, _comment)| code));
    let bytes = code.flat_map(str::split_whitespace).flat_map(str::bytes);
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn docs(args: &[&str]) -> Result<()> {
    let mut command = Command::new(build::binary(build::Profile::Debug)?);
    process::run(command.current_dir(workspace::root()?).arg("docs").args(args))
}

fn path(name: &str) -> Result<PathBuf> {
    Ok(workspace::root()?.join(name))
}

fn read(name: &str) -> Result<String> {
    let path = path(name)?;
    fs::read_to_string(&path).with_context(|| {
        format!("cannot read {}; `cargo xtask codegen` writes what is missing", path.display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str =
        "//! Doc.\npub const ABI_VERSION: u32 = 3;\npub struct A {\n    pub b: u8, // why\n}\n";

    #[test]
    fn only_code_moves_the_hash() {
        let same = "pub const ABI_VERSION: u32 = 3;\n/// Other words.\npub struct A { pub b: u8, }\n";
        assert_eq!(hash(SOURCE), hash(same));
        assert_ne!(hash(SOURCE), hash(&SOURCE.replace("u8", "u16")));
    }

    #[test]
    fn the_lock_reads_what_it_writes() {
        let lock = Lock::of_source(SOURCE).unwrap();
        assert_eq!(lock.version, 3);
        assert_eq!(Lock::parse(&lock.text()).unwrap(), lock);
        assert!(Lock::parse("version = 3\n").is_err());
        assert!(Lock::of_source("pub const ABI_VERSION: u32 = THREE;\n").is_err());
    }

    #[test]
    fn hash_and_version_move_together() {
        let locked = Lock { version: 3, hash: 1 };
        assert!(judge(locked, locked).is_ok());
        let forgotten = judge(locked, Lock { version: 3, hash: 2 }).unwrap_err().to_string();
        assert!(forgotten.contains("raise ABI_VERSION"), "{forgotten}");
        let unrecorded = judge(locked, Lock { version: 4, hash: 2 }).unwrap_err().to_string();
        assert!(unrecorded.contains("run `cargo xtask codegen`"), "{unrecorded}");
    }
}
