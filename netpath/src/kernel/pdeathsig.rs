//! Children that do not outlive us.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::fcntl::OFlag;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::unistd::{Pid, getpid, getppid, pipe2, setpgid};

use crate::child::Leader;

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

/// Starts the leader of a process group that ends with us, in whatever way we end.
///
/// The kernel tells a child of its parent's death, but nobody whom that child has forked. So the leader reads a pipe
/// whose other end is ours alone, until that is closed by whatever ends us, and then kills its group. Who joins the
/// group before it executes anything can leave nothing behind, unless it leaves the group.
///
/// The leader is a copy of us and executes nothing. Sharing the memory would be quicker, but who kills us for the memory
/// that we use kills everybody who shares it.
pub fn lead_group() -> io::Result<Leader> {
    let (theirs, ours) = pipe2(OFlag::O_CLOEXEC)?;
    // Not even its own group ends it before us.
    let (all, mut before) = (SigSet::all(), SigSet::empty());
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&all), Some(&mut before))?;
    // Not `fork`, which runs what others registered for it.
    // SAFETY: Without CLONE_VM this is a fork; the new process makes system calls alone.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    if pid == 0 {
        lead(theirs.as_raw_fd(), ours.as_raw_fd());
    }
    let failed = io::Error::last_os_error();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    let pid = i32::try_from(pid).ok().filter(|pid| 0 < *pid).map(Pid::from_raw).ok_or(failed)?;
    let leader = Leader::new(pid, ours);
    // It does this as well; who joins the group must find it.
    setpgid(pid, pid)?;
    Ok(leader)
}

/// The leader's whole life.
fn lead(pipe: RawFd, ours: RawFd) -> ! {
    // SAFETY: System calls on numbers. Every descriptor but the pipe is closed, our own copy of its other end first: no
    // one else may wait for its end because of us.
    unsafe {
        libc::setpgid(0, 0);
        libc::close(ours);
        libc::dup2(pipe, 0);
        if libc::syscall(libc::SYS_close_range, 1, libc::c_uint::MAX, 0) != 0 {
            for fd in 1..1024 {
                libc::close(fd);
            }
        }
        let mut byte = 0_u8;
        // Nobody writes: it returns at the end of the pipe.
        while libc::read(0, (&raw mut byte).cast(), 1) < 0 && *libc::__errno_location() == libc::EINTR {}
        // By number: never anybody else's group.
        libc::kill(-libc::getpid(), libc::SIGKILL);
        libc::_exit(0)
    }
}
