//! `cargo xtask build-ebpf`: the eBPF programs as one object with BTF.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    build,
    elf::{self, Program},
    process::{self, say},
    toolchain::{TARGET, Toolchain},
    workspace,
};

/// The package of the programs, and its binary.
const PACKAGE: &str = "netpath-ebpf";
/// The package of the programs that the benchmark compares them with.
const REFERENCE_PACKAGE: &str = "netpath-bench-ebpf";
/// The profile in the workspace's `Cargo.toml`, which is also cargo's name for the output directory.
const PROFILE: &str = "ebpf";
/// Most instructions the verifier may walk for one program. The kernel's own limit is a million; older kernels
/// need several times what newer ones need for the same program.
pub(crate) const VERIFIED_LIMIT: u64 = 200_000;

/// Instructions that the verifier walked, by program.
type Verified = BTreeMap<String, u64>;

/// Builds the object and prints what is in it.
pub(crate) fn run() -> Result<()> {
    let path = workspace::bpf_object(&workspace::target_directory()?);
    let object = object(PACKAGE, &path)?;

    let programs = elf::programs(&object)?;
    if programs.is_empty() {
        bail!("{} has no program: are the functions marked with a program type?", path.display());
    }
    let verified = verified_instructions()?;
    for line in table(&programs, verified.as_ref()) {
        say(line);
    }
    say(format_args!("{}: {} bytes with BTF", path.display(), object.len()));
    match verified {
        Some(verified) => within_limit(&programs, &verified),
        None => Ok(()),
    }
}

/// Builds the programs that the benchmark compares ours with; returns where they are.
pub(crate) fn reference() -> Result<PathBuf> {
    let path = workspace::reference_object(&workspace::target_directory()?);
    object(REFERENCE_PACKAGE, &path)?;
    Ok(path)
}

/// The object of `package`, written to `path` without what only debuggers read.
fn object(package: &str, path: &Path) -> Result<Vec<u8>> {
    let linked = build(package)?;
    elf::require_btf(&linked)?;
    let object = elf::without_dwarf(&linked)?;
    write_if_changed(path, &object)?;
    Ok(object)
}

/// Compiles and links; cargo does nothing when nothing changed.
fn build(package: &str) -> Result<Vec<u8>> {
    let target = workspace::target_directory()?.join("ebpf");
    let mut command = Toolchain::find()?.cargo_build(&target)?;
    command.args(["--quiet", "--package", package, "--bin", package, "--profile", PROFILE]);
    process::run(&mut command)?;
    let linked = target.join(TARGET).join(PROFILE).join(package);
    fs::read(&linked).with_context(|| format!("cannot read {}", linked.display()))
}

/// Keeps the file's time when its content stays, so that netpath is not rebuilt for nothing.
fn write_if_changed(path: &Path, content: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    let dir = path.parent().with_context(|| format!("{} has no directory", path.display()))?;
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

/// What the verifier of the running kernel says, when it can be asked.
///
/// The kernel counts what it loads, and the one loader is in the netpath binary, which is built around this
/// object: the numbers come from running that binary, as root, on a kernel with BPF. Without them the table has
/// no such column and the limit is not checked.
fn verified_instructions() -> Result<Option<Verified>> {
    if !process::is_root()? {
        return Ok(None);
    }
    let binary = build::binary(build::Profile::Debug)?;
    let text = process::output(Command::new(&binary).arg("programs"))?;
    let mut verified = Verified::new();
    for line in text.lines() {
        let row: serde_json::Value =
            serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
        let name = row["name"].as_str().with_context(|| format!("no name in {line}"))?;
        let count = row["verified_instructions"].as_u64().with_context(|| format!("no count in {line}"))?;
        // Kernels before 5.16 do not tell.
        if count == 0 {
            return Ok(None);
        }
        verified.insert(name.to_owned(), count);
    }
    Ok(Some(verified))
}

fn within_limit(programs: &[Program], verified: &Verified) -> Result<()> {
    for program in programs {
        let Some(&count) = verified.get(&program.name) else {
            bail!("the kernel was not asked about program {}", program.name);
        };
        if VERIFIED_LIMIT < count {
            bail!(
                "the verifier walks {count} instructions of program {}; the limit is {VERIFIED_LIMIT}",
                program.name
            );
        }
    }
    Ok(())
}

fn table(programs: &[Program], verified: Option<&Verified>) -> Vec<String> {
    let mut rows = vec![["program", "hook", "instructions", "verified"].map(str::to_owned)];
    for program in programs {
        let verified = verified.and_then(|verified| verified.get(&program.name));
        let verified = verified.map_or_else(String::new, u64::to_string);
        rows.push([program.name.clone(), program.hook.clone(), program.instructions.to_string(), verified]);
    }
    if verified.is_none() {
        rows[0][3].clear();
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or_default();
    let [name, hook, count] = [width(0), width(1), width(2)];
    let line = |[a, b, c, d]: &[String; 4]| {
        format!("{a:name$}  {b:hook$}  {c:>count$}  {d:>8}").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn programs() -> Vec<Program> {
        [("egress", "classifier", 901), ("xdp", "xdp.frags", 1042)]
            .map(|(name, hook, instructions)| Program {
                name: name.to_owned(),
                hook: hook.to_owned(),
                instructions,
            })
            .into()
    }

    #[test]
    fn the_table_has_a_column_for_what_was_measured() {
        assert_eq!(
            table(&programs(), None),
            [
                "program  hook        instructions",
                "egress   classifier           901",
                "xdp      xdp.frags           1042",
            ]
        );
        let verified = Verified::from([("egress".to_owned(), 7512), ("xdp".to_owned(), 35_000)]);
        assert_eq!(
            table(&programs(), Some(&verified)),
            [
                "program  hook        instructions  verified",
                "egress   classifier           901      7512",
                "xdp      xdp.frags           1042     35000",
            ]
        );
    }

    #[test]
    fn the_limit_holds_for_every_program() {
        let check = |egress, xdp| {
            let verified = Verified::from([("egress".to_owned(), egress), ("xdp".to_owned(), xdp)]);
            within_limit(&programs(), &verified).map_err(|error| error.to_string())
        };
        assert_eq!(check(1, VERIFIED_LIMIT), Ok(()));
        let over = "the verifier walks 200001 instructions of program xdp; the limit is 200000";
        assert_eq!(check(1, VERIFIED_LIMIT + 1), Err(over.to_owned()));
        let unknown = within_limit(&programs(), &Verified::new()).map_err(|error| error.to_string());
        assert_eq!(unknown, Err("the kernel was not asked about program egress".to_owned()));
    }
}
