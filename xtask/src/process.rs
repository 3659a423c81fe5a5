//! Running other programs, and the one place that writes to stdout.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// Prints one line for people.
#[expect(clippy::print_stdout, reason = "the one function that writes to stdout")]
pub(crate) fn say(line: impl std::fmt::Display) {
    println!("{line}");
}

/// Runs `command` with our stdout and stderr; the error is the command itself, as one would type it.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = line(command);
    say(format_args!("$ {line}"));
    let status = command.status().with_context(|| format!("cannot start: {line}"))?;
    if !status.success() {
        bail!("failed ({status}): {line}");
    }
    Ok(())
}

/// Runs `command` and returns its stdout; its stderr becomes part of the error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let line = line(command);
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start: {line}"))?;
    if !out.status.success() {
        bail!("failed ({}): {line}\n{}", out.status, String::from_utf8_lossy(&out.stderr).trim_end());
    }
    String::from_utf8(out.stdout).with_context(|| format!("output is not UTF-8: {line}"))
}

/// The command as one would type it, with the variables that were set for it.
pub(crate) fn line(command: &Command) -> String {
    let variables = command.get_envs().filter_map(|(key, value)| {
        // The separator of encoded flags is a control character.
        Some(format!("{}={}", key.display(), quoted(&value?.to_string_lossy().replace('\x1f', " "))))
    });
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    variables.chain(words.map(|word| quoted(&word.to_string_lossy()))).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./,:+@".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { format!("'{word}'") }
}

/// Finds a program in `PATH` and in the two directories that only root's `PATH` has on Debian.
pub(crate) fn find_program(name: impl AsRef<OsStr>) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name.as_ref()))
        .find(|file| is_executable(file))
}

/// Whether `file` is a regular file that somebody may execute.
pub(crate) fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Whether this process runs as root.
pub(crate) fn is_root() -> Result<bool> {
    Ok(output(Command::new("id").arg("-u"))?.trim() == "0")
}

#[test]
fn commands_are_printed_as_typed() {
    let mut command = Command::new("cargo");
    command.env("CARGO_ENCODED_RUSTFLAGS", "-Ca\x1f-Cb").env_remove("RUSTC").args(["x", "", "a b"]);
    assert_eq!(line(&command), "CARGO_ENCODED_RUSTFLAGS='-Ca -Cb' cargo x '' 'a b'");
}
