//! Children that do not outlive us.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpgrp, getpid, getppid, pipe2};

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

/// The same for all that `command` has forked by then and that is still in its process group, which it must lead.
///
/// The kernel tells a child of its parent's death, and nobody else. So one more process belongs to the group: it
/// reads a pipe whose other end is ours alone, until that is closed by whatever ends us, and then kills the group,
/// itself as well. It is a child of ours, to be collected with the group.
pub fn group_dies_with_us(command: &mut Command) {
    die_with_us(command);
    let pipe = pipe2(OFlag::O_CLOEXEC);
    // SAFETY: the closure runs in the child between fork and exec; it makes system calls and neither allocates nor
    // takes a lock, and so does the process that it forks.
    unsafe {
        // Both ends live in the closure, and so in our process as long as `command` does.
        command.pre_exec(move || match &pipe {
            Ok((ours, _held)) => guard(ours),
            Err(errno) => Err((*errno).into()),
        });
    }
}

fn guard(pipe: &OwnedFd) -> io::Result<()> {
    if getpgrp() != getpid() {
        // The guard would kill the group of somebody else.
        return Err(Errno::EINVAL.into());
    }
    let flags = libc::CLONE_PARENT | libc::SIGCHLD;
    // Not `fork`, which runs what others registered for it.
    // SAFETY: Without a stack of its own and without CLONE_VM this is a fork; the new process only makes system calls.
    match unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } {
        0 => watch(pipe.as_raw_fd()),
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The guard's whole life.
fn watch(pipe: RawFd) -> ! {
    // SAFETY: System calls on numbers. Every descriptor but the pipe is closed: no one else may wait for its end
    // because of us, and our own copy of the pipe's other end must go.
    unsafe {
        libc::dup2(pipe, 0);
        if libc::syscall(libc::SYS_close_range, 1, libc::c_uint::MAX, 0) != 0 {
            for fd in 1..1024 {
                libc::close(fd);
            }
        }
        let mut byte = 0_u8;
        // Nobody writes: it returns at the end of the pipe, or for a signal.
        while libc::read(0, (&raw mut byte).cast(), 1) < 0 && *libc::__errno_location() == libc::EINTR {}
        libc::kill(0, libc::SIGKILL);
        libc::_exit(0)
    }
}

fn set(parent: Pid) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // A parent that died before the call above sends no signal any more.
    if getppid() == parent { Ok(()) } else { Err(nix::errno::Errno::ESRCH.into()) }
}
