//! Runs a call of the plugin under `ptrace`, and ends it by SIGKILL right before its n-th effect.
//!
//! What counts is what the program asks of the kernel, so that no effect can be forgotten, and the program that is
//! tested is the one that ships: it has no hook. Between two effects the world is as after the first of them, so all
//! states that a killed process can leave are seen by counting `n` up. Plugins that it executes are not traced: they
//! die with it, wherever they are.

use std::collections::HashMap;
use std::fmt;
use std::io::Read;

use nix::errno::Errno;
use nix::sys::ptrace::{self, Event, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::cni::Call;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("say here in which registers this machine passes the arguments of system calls");

/// How a traced call ended.
#[derive(Debug)]
pub(crate) enum End {
    /// Right before this effect, the one that was asked for.
    Killed(#[expect(dead_code, reason = "a failing test prints it")] Effect),
    /// By itself, with this status and output: it has fewer effects.
    Exited { status: i32, stdout: String, effects: u32 },
}

/// Something that outlasts the process, or a wait for another one.
#[derive(Clone, Copy)]
pub(crate) struct Effect {
    call: &'static str,
    arguments: [u64; 3],
}

impl fmt::Debug for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}({:#x}, {:#x}, {:#x})",
            self.call, self.arguments[0], self.arguments[1], self.arguments[2]
        )
    }
}

/// A child is made.
const FORK: &str = "fork";
/// A child is at work meanwhile.
const WAIT: &str = "poll";

/// Stops before the plugin, so that it can be traced from its first instruction.
const STOPPED: [&str; 3] = ["sh", "-c", "kill -STOP $$; exec \"$0\" \"$@\""];

/// Runs `call`, which is killed right before effect `n`, the first being 1.
///
/// All of it happens on the calling thread, as `ptrace` demands.
#[expect(clippy::zombie_processes, reason = "it is waited for in the loop, as a tracer does")]
pub(crate) fn killed_at(call: &Call, n: u32) -> End {
    let mut child = call.spawn(&STOPPED);
    let main = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let stopped = waitpid(main, Some(WaitPidFlag::WUNTRACED)).unwrap();
    assert!(matches!(stopped, WaitStatus::Stopped(_, Signal::SIGSTOP)), "{stopped:?}");
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_EXITKILL;
    ptrace::seize(main, options).unwrap();

    let mut tracee = Tracee::default();
    // Only what this thread started or traces: other tests of this process have children too.
    let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
    let (status, killed) = loop {
        let (pid, signal) = match waitpid(None, Some(flags)).unwrap() {
            WaitStatus::PtraceSyscall(pid) => {
                if let Some(effect) = tracee.at_syscall(pid)
                    && tracee.effects == n
                {
                    kill(main, Signal::SIGKILL).unwrap();
                    tracee.killed = Some(effect);
                }
                (pid, None)
            }
            WaitStatus::PtraceEvent(pid, _, event) => {
                if event == Event::PTRACE_EVENT_EXEC as i32 {
                    tracee.runs = true;
                }
                (pid, None)
            }
            WaitStatus::Stopped(pid, signal) => (pid, Some(signal).filter(|it| *it != Signal::SIGTRAP)),
            WaitStatus::Exited(pid, status) if pid == main => break (status, tracee.killed),
            WaitStatus::Signaled(pid, signal, _) if pid == main => {
                assert_eq!((signal, tracee.killed.is_some()), (Signal::SIGKILL, true), "it died by itself");
                break (-1, tracee.killed);
            }
            // A thread of it.
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => continue,
            other => panic!("{other:?}"),
        };
        match ptrace::syscall(pid, signal) {
            // Killed meanwhile.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => panic!("{errno}"),
        }
    };
    if let Some(effect) = killed {
        return End::Killed(effect);
    }
    let mut stdout = String::new();
    child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    End::Exited { status, stdout, effects: tracee.effects }
}

#[derive(Default)]
struct Tracee {
    /// Whether the plugin has taken the place of the shell.
    runs: bool,
    /// Threads that are inside of a system call.
    inside: HashMap<Pid, bool>,
    /// Whether a child was started that has not been waited for yet. How often it is waited for is chance.
    has_child: bool,
    effects: u32,
    killed: Option<Effect>,
}

impl Tracee {
    /// The effect that a thread is about to have, if it is one and new.
    fn at_syscall(&mut self, pid: Pid) -> Option<Effect> {
        let inside = self.inside.entry(pid).or_default();
        *inside = !*inside;
        if !*inside || !self.runs {
            return None;
        }
        // A thread that was killed meanwhile has no registers.
        let effect = effect(pid, &ptrace::getregs(pid).ok()?)?;
        if effect.call == WAIT && !self.has_child {
            return None;
        }
        self.has_child = effect.call == FORK;
        self.effects += 1;
        Some(effect)
    }
}

fn effect(pid: Pid, regs: &libc::user_regs_struct) -> Option<Effect> {
    let arguments = [regs.rdi, regs.rsi, regs.rdx];
    let is = |flags: u64, bits: libc::c_int| flags & u64::try_from(bits).unwrap() != 0;
    let call = match i64::try_from(regs.orig_rax).ok()? {
        libc::SYS_open if is(arguments[1], libc::O_CREAT | libc::O_TRUNC) => "open",
        libc::SYS_openat if is(arguments[2], libc::O_CREAT | libc::O_TRUNC) => "openat",
        // Logs change nothing.
        libc::SYS_write | libc::SYS_writev | libc::SYS_pwrite64 if arguments[0] != 2 => "write",
        libc::SYS_sendto if !is_netlink_get(pid, arguments[1]) => "sendto",
        libc::SYS_sendmsg => "sendmsg",
        libc::SYS_mkdir | libc::SYS_mkdirat => "mkdir",
        libc::SYS_rename | libc::SYS_renameat | libc::SYS_renameat2 => "rename",
        libc::SYS_unlink | libc::SYS_unlinkat | libc::SYS_rmdir => "unlink",
        libc::SYS_link | libc::SYS_linkat => "link",
        libc::SYS_symlink | libc::SYS_symlinkat => "symlink",
        libc::SYS_truncate | libc::SYS_ftruncate => "truncate",
        libc::SYS_chmod | libc::SYS_fchmod | libc::SYS_fchmodat => "chmod",
        libc::SYS_mount => "mount",
        libc::SYS_bpf if lasts(arguments[0]) => "bpf",
        libc::SYS_fork | libc::SYS_vfork => FORK,
        // Not one of its own threads.
        libc::SYS_clone if !is(arguments[0], libc::CLONE_THREAD) => FORK,
        libc::SYS_clone3 if !is(word(pid, arguments[0])?, libc::CLONE_THREAD) => FORK,
        libc::SYS_poll | libc::SYS_ppoll => WAIT,
        libc::SYS_kill => "kill",
        _ => return None,
    };
    Some(Effect { call, arguments })
}

/// Whether a command of `bpf(2)` changes what others see: what is loaded and not pinned goes with the process.
fn lasts(command: u64) -> bool {
    const UPDATE_ELEM: u64 = 2;
    const DELETE_ELEM: u64 = 3;
    const OBJ_PIN: u64 = 6;
    const PROG_ATTACH: u64 = 8;
    const PROG_DETACH: u64 = 9;
    const LOOKUP_AND_DELETE_ELEM: u64 = 21;
    const UPDATE_BATCH: u64 = 26;
    const DELETE_BATCH: u64 = 27;
    const LINK_CREATE: u64 = 28;
    const LINK_UPDATE: u64 = 29;
    const LINK_DETACH: u64 = 34;
    [
        UPDATE_ELEM,
        DELETE_ELEM,
        OBJ_PIN,
        PROG_ATTACH,
        PROG_DETACH,
        LOOKUP_AND_DELETE_ELEM,
        UPDATE_BATCH,
        DELETE_BATCH,
        LINK_CREATE,
        LINK_UPDATE,
        LINK_DETACH,
    ]
    .contains(&command)
}

/// Whether a message to the kernel only asks: the kinds of rtnetlink come in fours, and the third of them is GET.
fn is_netlink_get(pid: Pid, address: u64) -> bool {
    word(pid, address).is_some_and(|header| (header >> 32) & 3 == 2)
}

/// Eight bytes of its memory.
fn word(pid: Pid, address: u64) -> Option<u64> {
    let address = std::ptr::with_exposed_provenance_mut(usize::try_from(address).ok()?);
    ptrace::read(pid, address).ok().map(i64::cast_unsigned)
}
