//! Runs a plugin of others so that it can neither hang us nor leave anything behind.
//!
//! A process that outlives a CNI plugin and holds the runtime's pipe keeps the whole sandbox from being
//! set up or torn down until it ends. So a child begins in a process group of its own, which is killed at the
//! deadline and after the child's end, and by its leader where we are killed; its pipes are ours and never the
//! runtime's; and what still holds them then is not waited for.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open};

/// Starts the leader of a child's group: `kernel::pdeathsig::lead_group`.
///
/// It is an argument because it needs `unsafe`, which is the kernel module's alone.
pub type Lead = fn() -> io::Result<Leader>;

/// A process of ours that leads a group, and kills it when our end of a pipe is closed. Dropping it ends the group.
pub struct Leader {
    pid: Pid,
    _pipe: OwnedFd,
}

impl Leader {
    /// The leader `pid`, a child of ours that has not been collected.
    pub fn new(pid: Pid, pipe: OwnedFd) -> Self {
        Self { pid, _pipe: pipe }
    }

    /// Kills the group. The leader is not yet collected, so its number cannot have become somebody else's.
    fn kill(&self) {
        // It may not lead yet. An error says that nothing is left.
        let _ = killpg(self.pid, Signal::SIGKILL).or_else(|_| kill(self.pid, Signal::SIGKILL));
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.kill();
        // It waits for nothing that could keep it from dying.
        while waitpid(self.pid, None) == Err(Errno::EINTR) {}
    }
}

/// More than this is not a CNI result.
pub const STDOUT_LIMIT: usize = 1 << 20;

/// What is kept of stderr, its end, for error messages.
const STDERR_KEPT: usize = 16 << 10;
/// What is forwarded of stderr, its beginning: it may go to the runtime's log, on the node's disk.
const STDERR_FORWARDED: usize = 1 << 20;

/// How long an executable that is being written is waited for (an installer may be replacing it).
const BUSY_PATIENCE: Duration = Duration::from_secs(5);

/// How long a killed child may take to vanish; only one stuck in the kernel needs longer.
const BURIAL_PATIENCE: Duration = Duration::from_secs(1);

/// What a child left that ended by itself.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// All it wrote to stdout.
    pub stdout: Vec<u8>,
    /// The end of what it wrote to stderr.
    pub stderr: Vec<u8>,
}

/// Why a child did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// It could not be started.
    #[error("cannot execute {program}")]
    Spawn {
        /// The executable.
        program: String,
        /// The cause.
        source: io::Error,
    },
    /// It was killed because it took too long.
    #[error("{program} did not end within {within:?} and was killed with its process group")]
    Deadline {
        /// The executable.
        program: String,
        /// The time it had.
        within: Duration,
    },
    /// It was killed because it wrote without end.
    #[error("{program} wrote more than {STDOUT_LIMIT} bytes to stdout and was killed with its process group")]
    TooMuchOutput {
        /// The executable.
        program: String,
    },
    /// Talking to it failed.
    #[error("cannot {what} of {program}")]
    Pipe {
        /// What was attempted.
        what: &'static str,
        /// The executable.
        program: String,
        /// The cause.
        source: io::Error,
    },
}

impl ChildError {
    /// Whether the program is there and cannot be executed, and will not be by being asked again: it may not, it is no
    /// program, or what interprets it is gone.
    pub fn is_no_program(&self) -> bool {
        match self {
            Self::Spawn { source, .. } => {
                let is_gone = matches!(source.kind(), ErrorKind::PermissionDenied | ErrorKind::NotFound);
                is_gone || source.raw_os_error() == Some(Errno::ENOEXEC as i32)
            }
            Self::Deadline { .. } | Self::TooMuchOutput { .. } | Self::Pipe { .. } => false,
        }
    }
}

/// The executable `name` in the first of the directories that has it; never one outside of them.
pub fn find(name: &str, directories: &[PathBuf]) -> Option<PathBuf> {
    if name.is_empty() || name.contains('/') {
        return None;
    }
    directories.iter().map(|directory| directory.join(name)).find(|file| file.is_file())
}

/// Runs `command` with `stdin`; it has `within` to end, after which its process group is killed.
///
/// Whatever the child wrote to stderr goes to our stderr. Nothing of its process group is left when this
/// returns, be it with an error or not.
pub fn run(mut command: Command, stdin: &[u8], within: Duration, lead: Lead) -> Result<Output, ChildError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let deadline = Instant::now() + within;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let started = lead().and_then(|leader| {
        command.process_group(leader.pid.as_raw());
        Ok((spawn(&mut command, deadline)?, leader))
    });
    let (child, leader) = started.map_err(|source| ChildError::Spawn { program: program.clone(), source })?;
    let mut group = Group { child, leader, ended: None };

    let mut talk = match Talk::begin(&mut group.child) {
        Ok(talk) => talk,
        Err(source) => return Err(ChildError::Pipe { what: "open the pipes", program, source }),
    };
    let outcome = talk.until_exit(stdin, deadline);
    let status = group.bury(&talk.exit);
    match outcome {
        Ok(Event::Exited) => {}
        Ok(Event::Late) => return Err(ChildError::Deadline { program, within }),
        Ok(Event::Flood) => return Err(ChildError::TooMuchOutput { program }),
        Err(source) => return Err(ChildError::Pipe { what: "use the pipes", program, source }),
    }
    // What it wrote before its end is in the pipes by now; a descendant that still holds them is not ours to wait for.
    talk.drain().map_err(|source| ChildError::Pipe {
        what: "read the output",
        program: program.clone(),
        source,
    })?;
    match status {
        Some(status) if talk.stdout.len() <= STDOUT_LIMIT => {
            Ok(Output { status, stdout: talk.stdout, stderr: talk.stderr })
        }
        Some(_) => Err(ChildError::TooMuchOutput { program }),
        None => Err(ChildError::Deadline { program, within }),
    }
}

/// Spawns, waiting for an executable that somebody still writes.
fn spawn(command: &mut Command, deadline: Instant) -> io::Result<Child> {
    let patience = deadline.min(Instant::now() + BUSY_PATIENCE);
    loop {
        match command.spawn() {
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy && Instant::now() < patience => {
                // Nobody tells when the writer closes the file.
                thread::park_timeout(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

/// A child and all it forked; dropping it kills what is left of them.
struct Group {
    child: Child,
    leader: Leader,
    ended: Option<ExitStatus>,
}

impl Group {
    /// Kills the group and collects the child; `None` if the kernel does not let it die.
    fn bury(&mut self, exit: &OwnedFd) -> Option<ExitStatus> {
        self.kill();
        let timeout = PollTimeout::try_from(BURIAL_PATIENCE).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(exit.as_fd(), PollFlags::POLLIN)];
        if matches!(poll(&mut fds, timeout), Ok(1..)) {
            self.ended = self.child.wait().ok();
        }
        self.ended
    }

    /// The child too where it has left the group, alone or as the leader of another one, as `timeout` does. It is not
    /// yet collected either.
    fn kill(&mut self) {
        self.leader.kill();
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = self.child.kill();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.ended.is_none() {
            self.kill();
            let _ = self.child.try_wait();
        }
    }
}

enum Event {
    Exited,
    Late,
    Flood,
}

/// Our ends of a child's pipes; `None` once closed.
struct Talk {
    /// Readable once the child has ended.
    exit: OwnedFd,
    to_stdin: Option<File>,
    from_stdout: Option<File>,
    from_stderr: Option<File>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    /// How much of stderr has been passed on.
    forwarded: usize,
}

impl Talk {
    fn begin(child: &mut Child) -> io::Result<Self> {
        let to_stdin = child.stdin.take().map(OwnedFd::from).map(non_blocking).transpose()?;
        let from_stdout = child.stdout.take().map(OwnedFd::from).map(non_blocking).transpose()?;
        let from_stderr = child.stderr.take().map(OwnedFd::from).map(non_blocking).transpose()?;
        // The end of a pipe says nothing about the end of a child. The child is not collected yet, so that its
        // process id is its own, and stays so until its group has been killed.
        let exit = pidfd_open(rustix::process::Pid::from_child(child), PidfdFlags::empty())?;
        Ok(Self {
            exit,
            to_stdin,
            from_stdout,
            from_stderr,
            stdout: Vec::new(),
            stderr: Vec::new(),
            forwarded: 0,
        })
    }

    /// Feeds and reads the child until one of the three ends of it.
    fn until_exit(&mut self, mut stdin: &[u8], deadline: Instant) -> io::Result<Event> {
        loop {
            if stdin.is_empty() {
                self.to_stdin = None;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Event::Late);
            }
            if !self.wait(left)? {
                continue;
            }
            if let Some(pipe) = &mut self.to_stdin {
                match pipe.write(stdin) {
                    Ok(written) => stdin = &stdin[written..],
                    Err(error) if is_retry(&error) => {}
                    // A plugin need not read its stdin (VERSION does not).
                    Err(error) if error.kind() == ErrorKind::BrokenPipe => stdin = &[],
                    Err(error) => return Err(error),
                }
            }
            let exited = is_readable(self.exit.as_fd())?;
            self.drain()?;
            if exited {
                return Ok(Event::Exited);
            }
            if self.stdout.len() > STDOUT_LIMIT {
                return Ok(Event::Flood);
            }
        }
    }

    /// Whether something can be done before `left` is over.
    fn wait(&self, left: Duration) -> io::Result<bool> {
        let mut fds = vec![PollFd::new(self.exit.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.to_stdin.iter().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLOUT)));
        let readers = self.from_stdout.iter().chain(&self.from_stderr);
        fds.extend(readers.map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
        // One more, since a timeout is cut to milliseconds and zero would spin.
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::EINTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Takes what is in the pipes now, without waiting for more.
    fn drain(&mut self) -> io::Result<()> {
        let room = (STDOUT_LIMIT + 1).saturating_sub(self.stdout.len());
        take(&mut self.from_stdout, room, |bytes| self.stdout.extend_from_slice(bytes))?;
        take(&mut self.from_stderr, STDOUT_LIMIT, |bytes| {
            // Nobody can be told when our own stderr is gone.
            let _ = io::stderr().write_all(forwarded(&mut self.forwarded, bytes));
            self.stderr.extend_from_slice(bytes);
            let surplus = self.stderr.len().saturating_sub(STDERR_KEPT);
            self.stderr.drain(..surplus);
        })
    }
}

/// The part of `bytes` that is still passed on after `before`.
fn forwarded<'a>(before: &mut usize, bytes: &'a [u8]) -> &'a [u8] {
    let bytes = &bytes[..bytes.len().min(STDERR_FORWARDED - *before)];
    *before += bytes.len();
    bytes
}

/// Reads until the pipe is empty, closed, or `room` is used up: a fast writer must not keep us from the deadline.
fn take(pipe: &mut Option<File>, mut room: usize, mut sink: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = [0; 4096];
    while let Some(open) = pipe
        && room > 0
    {
        let want = room.min(buffer.len());
        match open.read(&mut buffer[..want]) {
            Ok(0) => *pipe = None,
            Ok(got) => {
                sink(&buffer[..got]);
                room -= got;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn non_blocking(fd: OwnedFd) -> io::Result<File> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(fd.into())
}

fn is_readable(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::ZERO)? > 0)
}

fn is_retry(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::pdeathsig::{die_with_us, lead_group};
    use std::fs;
    use std::os::unix::process::ExitStatusExt;
    use std::path::Path;

    const LONG: Duration = Duration::from_secs(20);

    fn sh(script: &str, stdin: &[u8], within: Duration) -> Result<Output, ChildError> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        run(command, stdin, within, lead_group)
    }

    /// Whether a process exists that is not just waiting to be collected.
    fn alive(pid: &str) -> bool {
        fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
            .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z")))
    }

    fn pid_in(file: &Path) -> String {
        let pid = fs::read_to_string(file).expect("the script wrote its child's process id");
        assert!(!pid.trim().is_empty(), "the script wrote its child's process id");
        pid
    }

    #[track_caller]
    fn dies(pid: &str) {
        let deadline = Instant::now() + LONG;
        while alive(pid) {
            assert!(Instant::now() < deadline, "process {pid} survives");
            thread::yield_now();
        }
    }

    #[test]
    fn input_and_outputs_larger_than_a_pipe() {
        let input: Vec<u8> = (0..400_000_u32).map(|n| b"0123456789"[n as usize % 10]).collect();
        let output = sh("tee /dev/stderr", &input, LONG).unwrap();
        assert!(output.status.success());
        assert_eq!(output.stdout, input);
        assert_eq!(output.stderr, input[input.len() - STDERR_KEPT..]);
    }

    #[test]
    fn what_is_forwarded_comes_to_an_end() {
        let mut before = 0;
        assert_eq!(forwarded(&mut before, b"ab"), b"ab");
        assert_eq!(forwarded(&mut before, &vec![b'x'; STDERR_FORWARDED]).len(), STDERR_FORWARDED - 2);
        assert_eq!(forwarded(&mut before, b"ab"), b"");
    }

    #[test]
    fn input_that_nobody_reads() {
        let output = sh("exec true", &vec![b'x'; 1 << 20], LONG).unwrap();
        assert!(output.status.success());
    }

    #[test]
    fn status_and_both_outputs() {
        let output = sh("echo out; echo err >&2; exit 7", b"", LONG).unwrap();
        assert_eq!(
            (output.status.code(), &*output.stdout, &*output.stderr),
            (Some(7), &b"out\n"[..], &b"err\n"[..])
        );
    }

    #[test]
    fn at_the_deadline_the_child_and_what_it_forked_are_killed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let start = Instant::now();
        let script = format!("sleep 1000 & echo $! > {}; while :; do sleep 1000; done", file.display());
        let error = sh(&script, b"", Duration::from_millis(300)).expect_err("it never ends");
        assert!(matches!(error, ChildError::Deadline { .. }), "{error}");
        assert!(start.elapsed() < LONG, "{:?}", start.elapsed());
        dies(&pid_in(&file));
    }

    #[test]
    fn a_child_that_leads_a_group_of_its_own_is_killed_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let script =
            format!("exec timeout 900 sh -c 'echo $$ > {}; while :; do sleep 800; done'", file.display());
        let error = sh(&script, b"", Duration::from_millis(500)).expect_err("it never ends");
        assert!(matches!(error, ChildError::Deadline { .. }), "{error}");
        dies(&pid_in(&file));
    }

    #[test]
    fn what_a_child_leaves_behind_is_killed_after_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let start = Instant::now();
        let output = sh(&format!("sleep 1000 & echo $! > {}; echo done", file.display()), b"", LONG).unwrap();
        assert_eq!(output.stdout, b"done\n");
        assert!(start.elapsed() < LONG, "{:?}", start.elapsed());
        dies(&pid_in(&file));
    }

    #[test]
    fn who_left_the_group_with_our_pipes_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let start = Instant::now();
        let script = format!(
            "setsid sh -c 'echo $$ > {0}; exec sleep 30' & while [ ! -s {0} ]; do :; done; echo done",
            file.display()
        );
        let output = sh(&script, b"", LONG).unwrap();
        assert_eq!(output.stdout, b"done\n");
        assert!(start.elapsed() < LONG, "{:?}", start.elapsed());
        let pid = pid_in(&file).trim().parse().unwrap();
        nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL)
            .expect("it outlived its group, as this test needs");
    }

    #[test]
    fn output_without_end_is_cut() {
        let start = Instant::now();
        let error = sh("exec cat /dev/zero", b"", LONG).expect_err("it never ends");
        assert!(matches!(error, ChildError::TooMuchOutput { .. }), "{error}");
        assert!(start.elapsed() < LONG, "{:?}", start.elapsed());
    }

    #[test]
    fn an_executable_that_is_still_written_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("plugin");
        fs::copy("/bin/true", &file).unwrap();
        let writer = File::options().append(true).open(&file).unwrap();
        let runner = thread::spawn(move || {
            run(Command::new(file), b"", LONG, lead_group).map(|output| output.status.success())
        });
        thread::park_timeout(Duration::from_millis(60));
        drop(writer);
        assert!(runner.join().unwrap().unwrap());
    }

    #[test]
    fn what_is_not_there_is_named() {
        let error =
            run(Command::new("/nonexistent/plugin"), b"", LONG, lead_group).expect_err("there is none");
        assert_eq!(error.to_string(), "cannot execute /nonexistent/plugin");
    }

    #[test]
    fn nothing_of_a_group_is_left_to_be_collected() {
        sh("sleep 1000 & sleep 1000 & exit 0", b"", LONG).unwrap();
        let children = fs::read_to_string(format!("/proc/self/task/{}/children", nix::unistd::gettid()));
        assert_eq!(children.unwrap(), "");
    }

    #[test]
    fn a_child_dies_with_the_thread_that_waits_for_it() {
        let mut command = Command::new("sleep");
        command.arg("1000");
        die_with_us(&mut command);
        let mut child = thread::spawn(move || command.spawn().unwrap()).join().unwrap();
        let deadline = Instant::now() + LONG;
        let status = loop {
            match child.try_wait().unwrap() {
                Some(status) => break status,
                None => assert!(Instant::now() < deadline, "it survives the thread that started it"),
            }
        };
        assert_eq!(status.signal(), Some(9));
    }
}
