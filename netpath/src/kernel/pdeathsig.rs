//! Children that do not outlive us.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;

use nix::fcntl::OFlag;
use nix::sys::prctl;
use nix::sys::signal::Signal;
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

/// Enough for a few system calls, and for a signal.
const STACK: usize = 16 << 10;

/// Stacks begin at multiples of 16.
#[derive(Clone, Copy)]
#[repr(align(16))]
struct Aligned(#[expect(dead_code, reason = "it is room")] [u8; 16]);

/// Starts the leader of a process group that ends with us, in whatever way we end.
///
/// The kernel tells a child of its parent's death, but nobody whom that child has forked. So the leader reads a pipe
/// whose other end is ours alone, until that is closed by whatever ends us, and then kills its group. Who joins the
/// group before it executes anything can leave nothing behind, unless it leaves the group.
///
/// The leader shares our memory, since a copy would take longer than all the rest, and executes nothing.
pub fn lead_group() -> io::Result<Leader> {
    let (theirs, ours) = pipe2(OFlag::O_CLOEXEC)?;
    let mut stack = vec![Aligned([0; 16]); STACK / 16].into_boxed_slice();
    let argument = ptr::without_provenance_mut(usize::try_from(theirs.as_raw_fd()).unwrap_or_default());
    let flags = libc::CLONE_VM | libc::SIGCHLD;
    // SAFETY: The leader has a stack of its own, which `Leader` keeps until it has been collected. It makes system calls
    // alone; what one of them that fails writes to `errno`, which is ours, is read by nobody who was not told to.
    let pid = match unsafe { libc::clone(lead, stack.as_mut_ptr_range().end.cast(), flags, argument) } {
        -1 => return Err(io::Error::last_os_error()),
        pid => Pid::from_raw(pid),
    };
    let leader = Leader::new(pid, ours, Box::new(stack));
    // It does this as well; who joins the group must find it.
    setpgid(pid, pid)?;
    Ok(leader)
}

/// The leader's whole life.
extern "C" fn lead(argument: *mut libc::c_void) -> libc::c_int {
    let Ok(pipe) = RawFd::try_from(argument.addr()) else { return 1 };
    // SAFETY: System calls on numbers, and by number: the library's own functions would keep accounts in our thread.
    // Every descriptor but the pipe is closed: no one else may wait for its end because of us, and our own copy of the
    // pipe's other end must go.
    unsafe {
        let group = libc::syscall(libc::SYS_getpid);
        libc::syscall(libc::SYS_setpgid, 0, 0);
        libc::syscall(libc::SYS_dup3, pipe, 0, 0);
        if libc::syscall(libc::SYS_close_range, 1, libc::c_uint::MAX, 0) != 0 {
            for fd in 1..1024 {
                libc::syscall(libc::SYS_close, fd);
            }
        }
        let mut byte = 0_u8;
        // Nobody writes: it returns at the end of the pipe, or for a signal.
        while libc::syscall(libc::SYS_read, 0, &raw mut byte, 1_usize) < 0
            && *libc::__errno_location() == libc::EINTR
        {}
        // By number: never anybody else's group.
        libc::syscall(libc::SYS_kill, -group, libc::SIGKILL);
        libc::syscall(libc::SYS_exit_group, 0);
    }
    0
}
