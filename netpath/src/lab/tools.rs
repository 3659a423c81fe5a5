//! Programs of the system, each run to its end, and the signals that end the lab between two of them.

use std::{
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};

use super::error::LabError;
use crate::kernel::{netns, pdeathsig::die_with_us};

/// What the lab runs, and the Debian packages that have it.
const PROGRAMS: &[(&str, &str)] = &[("ip", "iproute2"), ("nft", "nftables"), ("ping", "iputils-ping")];

/// Fails with one sentence where something is missing.
pub(super) fn check_programs(path: Option<&std::ffi::OsStr>) -> Result<(), LabError> {
    let dirs: Vec<_> = path.map(|path| std::env::split_paths(path).collect()).unwrap_or_default();
    for (program, package) in PROGRAMS {
        if !dirs.iter().any(|dir| dir.join(program).is_file()) {
            return Err(LabError::NoTool { program, package });
        }
    }
    Ok(())
}

/// Signals that would end the process: they are taken note of instead, so that everything is cleaned up.
pub(super) struct Signals(SignalFd);

impl Signals {
    /// Must be called before any thread is started, since each has its own mask.
    pub(super) fn hold() -> Result<Self, LabError> {
        let mask: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
        let fd = mask
            .thread_block()
            .and_then(|()| SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC));
        fd.map(Self).map_err(|errno| LabError::Signals { source: errno.into() })
    }

    /// Fails once a signal has come.
    pub(super) fn check(&self) -> Result<(), LabError> {
        let info = self.0.read_signal().map_err(|errno| LabError::Signals { source: errno.into() })?;
        let number = info.and_then(|info| i32::try_from(info.ssi_signo).ok());
        match number.and_then(|number| Signal::try_from(number).ok()) {
            Some(signal) => Err(LabError::Interrupted { signal }),
            None => Ok(()),
        }
    }
}

/// Runs a program that must succeed, in `netns` where one is named; returns what it printed.
pub(super) fn run(netns: Option<&Path>, words: &[&str], stdin: &str) -> Result<String, LabError> {
    let output = output(netns, words, stdin)?;
    if !output.status.success() {
        return Err(LabError::Failed {
            line: words.join(" "),
            status: output.status,
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program, in `netns` where one is named.
///
/// Not by `ip netns exec`, which would give it a mount namespace of its own: what it mounts must be seen here.
pub(super) fn output(netns: Option<&Path>, words: &[&str], stdin: &str) -> Result<Output, LabError> {
    let run = || {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        die_with_us(&mut command);
        let mut child = command.spawn()?;
        if let Some(mut pipe) = child.stdin.take() {
            // A program that does not read its input says by its status whether it did its work.
            let _ = pipe.write_all(stdin.as_bytes());
        }
        child.wait_with_output()
    };
    let result = match netns {
        Some(path) => netns::within(path, run)?,
        None => run(),
    };
    tracing::debug!(?netns, line = words.join(" "), ?result, "ran");
    result.map_err(|source| LabError::Run { line: words.join(" "), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let dir = tempfile::tempdir().expect("a directory");
        let check = || check_programs(Some(dir.path().as_os_str())).map_err(|error| error.to_string());
        let text = |program, package| {
            Err(format!(
                "the lab needs `{program}`, which is not in PATH: install it (Debian: `apt install {package}`)"
            ))
        };
        assert_eq!(check(), text("ip", "iproute2"));
        std::fs::write(dir.path().join("ip"), "").expect("a file");
        assert_eq!(check(), text("nft", "nftables"));
        std::fs::write(dir.path().join("nft"), "").expect("a file");
        std::fs::write(dir.path().join("ping"), "").expect("a file");
        assert_eq!(check(), Ok(()));
    }
}
