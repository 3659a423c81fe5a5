//! Network namespaces of a run, and programs that run in them.

use std::{
    fs,
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, bail};
use netpath::kernel::netns;

use crate::guard;

/// A network namespace that goes with us.
#[derive(Debug)]
pub(crate) struct Namespace(String);

impl Namespace {
    /// Makes one; `role` is for people who look at a run that is under way.
    pub(crate) fn new(role: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let namespace = Self(format!("{}-{role}{}", guard::name(), NEXT.fetch_add(1, Ordering::Relaxed)));
        run(Command::new("ip").args(["netns", "add", namespace.name()]), "")?;
        Ok(namespace)
    }

    /// The same with its loopback up, and without IPv6, which talks unasked.
    pub(crate) fn quiet(role: &str) -> Result<Self> {
        let namespace = Self::new(role)?;
        for key in ["all", "default"] {
            let path = format!("/proc/sys/net/ipv6/conf/{key}/disable_ipv6");
            match namespace.within(|| fs::write(path, "1"))? {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        namespace.ip(&["link set lo up".to_owned()])?;
        Ok(namespace)
    }

    /// For `ip -n`.
    pub(crate) fn name(&self) -> &str {
        &self.0
    }

    /// As `CNI_NETNS` has it.
    pub(crate) fn path(&self) -> PathBuf {
        Path::new(guard::NAMESPACES).join(&self.0)
    }

    /// Runs `f` in it.
    pub(crate) fn within<T>(&self, f: impl FnOnce() -> T) -> Result<T> {
        Ok(netns::within(&self.path(), f)?)
    }

    /// Runs `ip` with these lines.
    pub(crate) fn ip(&self, lines: &[String]) -> Result<()> {
        run(Command::new("ip").args(["-n", &self.0, "-batch", "-"]), &lines.join("\n"))
    }

    /// Runs a program in it: in its network, and no further. `ip netns exec` would hide the BPF file system.
    pub(crate) fn run(&self, command: &mut Command, stdin: &str) -> Result<()> {
        self.within(|| run(command, stdin))?
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // What stays is for the guard.
        let _ = Command::new("ip").args(["netns", "del", &self.0]).stderr(Stdio::null()).status();
    }
}

/// Runs a program to its end, which has to be a good one; what it says of a failure is the error.
pub(crate) fn run(command: &mut Command, stdin: &str) -> Result<()> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let spawned = command.spawn();
    let program = command.get_program().display();
    let mut child = spawned.with_context(|| format!("`{program}` cannot be run"))?;
    if let Some(mut pipe) = child.stdin.take() {
        // One that has given up reads no further, and says why.
        let _ = pipe.write_all(stdin.as_bytes());
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = [output.stderr, output.stdout].concat();
        let said = String::from_utf8_lossy(&said);
        let said = said.lines().map(str::trim).find(|line| !line.is_empty());
        bail!("{program}: {}", said.unwrap_or("failed without a word"));
    }
    Ok(())
}
