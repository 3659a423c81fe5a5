//! Network namespaces for tests: each test makes its own, and they are gone when it ends, by a panic as well.
//!
//! The oracle is `ip`, which shares no code with `kernel::netlink`. Everything here fails without root.

#![allow(dead_code, reason = "each test binary uses a part of it")]

pub(crate) mod enforce;
pub(crate) mod flood;
pub(crate) mod loaded;
pub(crate) mod node;
pub(crate) mod ring;
pub(crate) mod traffic;
pub(crate) mod wire;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{self, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use netpath::kernel::netns;

/// How long a test waits for what must happen: enough where an emulated CPU shares a core with the tests beside it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A network namespace with a name no other test has, on this machine and at this time.
#[derive(Debug)]
pub(crate) struct NetNs {
    name: String,
}

impl NetNs {
    /// Makes a namespace; `role` is for people who look at a failure.
    #[track_caller]
    pub(crate) fn new(role: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("nptest-{}-{}-{role}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run(&["ip", "netns", "add", &name]);
        let netns = Self { name };
        netns.ip("link set lo up");
        netns
    }

    /// Its name for `ip -n`.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its path, as `CNI_NETNS` would have it.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Runs `ip` with these words in the namespace; it must succeed.
    #[track_caller]
    pub(crate) fn ip(&self, words: &str) -> String {
        run(&[&["ip", "-n", &self.name][..], &words.split_whitespace().collect::<Vec<_>>()].concat())
    }

    /// Runs `ip` once with all of these lines in the namespace, up to one that fails, which none may.
    #[track_caller]
    pub(crate) fn ip_lines(&self, lines: &[String]) {
        let mut ip = Command::new("ip");
        ip.args(["-n", &self.name, "-batch", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = ip.spawn().expect("`ip` can be run");
        let mut stdin = child.stdin.take().expect("piped");
        // One that gave up reads no further, and says why below.
        let _ = stdin.write_all(lines.join("\n").as_bytes());
        drop(stdin);
        let output = child.wait_with_output().expect("it ends");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{lines:?}: {}{stderr}", output.status);
    }

    /// Runs a program in the namespace; it must succeed.
    #[track_caller]
    pub(crate) fn exec(&self, words: &str) -> String {
        let words: Vec<_> = words.split_whitespace().collect();
        run(&[&["ip", "netns", "exec", &self.name][..], &words].concat())
    }

    /// What a sysctl of the namespace says.
    #[track_caller]
    pub(crate) fn sysctl(&self, key: &str) -> String {
        let read = self.within(|| std::fs::read_to_string(format!("/proc/sys/{key}")));
        read.unwrap_or_else(|error| panic!("{key}: {error}")).trim().to_owned()
    }

    /// Sets a sysctl of the namespace.
    #[track_caller]
    pub(crate) fn set_sysctl(&self, key: &str, value: &str) {
        // What is below `net` is of the namespace of the thread that opens it.
        let written = self.within(|| std::fs::write(format!("/proc/sys/{key}"), value));
        written.unwrap_or_else(|error| panic!("{key} = {value}: {error}"));
    }

    /// Runs `f` in the namespace.
    #[track_caller]
    pub(crate) fn within<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        netns::within(&self.path(), f).expect("the test's own namespace")
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        // Not asserted: a panic while another unwinds would hide it.
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// Joins two namespaces by a cable; both ends are up.
#[track_caller]
pub(crate) fn veth(a: &NetNs, name_a: &str, b: &NetNs, name_b: &str) {
    a.ip_lines(&[
        format!("link add {name_a} type veth peer name {name_b} netns {}", b.name()),
        format!("link set {name_a} up"),
    ]);
    b.ip(&format!("link set {name_b} up"));
}

/// The part of a full run that an emulated CPU is given, by `NETPATH_TEST_PART` (30: a thirtieth); 1 elsewhere.
fn part() -> u32 {
    let part = std::env::var("NETPATH_TEST_PART").ok().filter(|part| !part.is_empty());
    part.map_or(1, |part| {
        let number = part.parse().ok().filter(|part| *part != 0);
        number.unwrap_or_else(|| panic!("NETPATH_TEST_PART is `{part}`, not a number above 0"))
    })
}

/// How often a test does what it does `whole` times in a full run.
pub(crate) fn times(whole: u32) -> u32 {
    whole.div_ceil(part())
}

/// How long a flood waits from one frame to the next: not at all, unless the CPU would have time for nothing else.
pub(crate) fn pace() -> Option<Duration> {
    Some(part()).filter(|part| *part != 1).map(|part| Duration::from_millis(part.into()))
}

/// Waits until `ready` has an answer.
#[track_caller]
pub(crate) fn eventually<T>(patience: Duration, what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = ready() {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        thread::park_timeout(Duration::from_millis(5));
    }
}

/// Runs a program, which must succeed, and returns what it prints.
#[track_caller]
pub(crate) fn run(words: &[&str]) -> String {
    let output = Command::new(words[0]).args(&words[1..]).output();
    let output = output.unwrap_or_else(|error| panic!("`{}` cannot be run: {error}", words[0]));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {}{stderr}", words.join(" "), output.status);
    String::from_utf8(output.stdout).expect("programs print UTF-8")
}

/// The text of an error and of all its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
