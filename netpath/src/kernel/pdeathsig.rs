//! Children that do not outlive us.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpid, getppid};

/// Makes `command`, once spawned, die with the thread that spawned it, even if that is killed.
///
/// That thread must stay until the child has ended: the kernel watches the thread, not the process.
pub fn die_with_us(command: &mut Command) {
    let parent = getpid();
    // SAFETY: the closure runs in the child between fork and exec; it makes two system calls and neither
    // allocates nor takes a lock.
    unsafe {
        command.pre_exec(move || set(parent));
    }
}

fn set(parent: Pid) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // A parent that died before the call above sends no signal any more.
    if getppid() == parent { Ok(()) } else { Err(nix::errno::Errno::ESRCH.into()) }
}
