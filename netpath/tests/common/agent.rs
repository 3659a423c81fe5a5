//! A running `netpath agent`, and what it says over HTTP and in its log.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::io::{BufRead, BufReader, Error};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use crate::api::FakeApi;
use crate::common::node::Node;
use crate::common::{PATIENCE, eventually};
use crate::http::{self, ADDRESS};

/// An agent, ended with the test.
pub(crate) struct Agent<'a> {
    pub(crate) node: &'a Node,
    pub(crate) process: Child,
    /// What it has logged.
    pub(crate) log: Arc<Mutex<String>>,
}

impl<'a> Agent<'a> {
    /// One that has looked at everything.
    #[track_caller]
    pub(crate) fn start(node: &'a Node) -> Self {
        Self::begin(node).ready()
    }

    #[track_caller]
    pub(crate) fn ready(self) -> Self {
        self.eventually("it is ready", || self.get("/readyz").filter(|(status, _)| *status == 200));
        self
    }

    #[track_caller]
    pub(crate) fn begin(node: &'a Node) -> Self {
        std::fs::create_dir_all(directory(node)).expect("made");
        Self::begin_with(node, &["--networks", "/etc/networks"])
    }

    /// One that follows an API server.
    #[track_caller]
    pub(crate) fn with_api(node: &'a Node, api: &FakeApi) -> Self {
        let path = node.root.join("etc/kubeconfig");
        std::fs::create_dir_all(node.root.join("etc")).expect("made");
        std::fs::write(&path, api.kubeconfig()).expect("written");
        let path = path.to_str().expect("text");
        Self::begin_with(node, &["--kubeconfig", path, "--plugin-kubeconfig", "/etc/kubeconfig"])
    }

    #[track_caller]
    pub(crate) fn begin_with(node: &'a Node, words: &[&str]) -> Self {
        Self::spawn(node, node.command(), words)
    }

    /// One that lacks a capability, by its number in `linux/capability.h`.
    #[track_caller]
    pub(crate) fn begin_without(node: &'a Node, capability: libc::c_ulong) -> Self {
        std::fs::create_dir_all(directory(node)).expect("made");
        let mut command = node.command();
        let give_up = move || {
            // SAFETY: Takes numbers, and says by its result whether it was done.
            let done = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
            if done == 0 { Ok(()) } else { Err(Error::last_os_error()) }
        };
        // SAFETY: Between fork and exec it makes one system call and allocates nothing.
        unsafe { command.pre_exec(give_up) };
        Self::spawn(node, command, &["--networks", "/etc/networks"])
    }

    #[track_caller]
    fn spawn(node: &'a Node, mut command: Command, words: &[&str]) -> Self {
        node.netns.ip("link set lo up");
        command.args(["agent", "--listen", ADDRESS, "--node", "worker01"]).args(words);
        command
            .env("NETPATH_LOG", std::env::var("NETPATH_LOG").unwrap_or_else(|_| "info".to_owned()))
            .stderr(Stdio::piped())
            .stdin(Stdio::null());
        let mut process = node.netns.within(|| command.spawn()).expect("it can be run");
        let (stderr, log) = (process.stderr.take().expect("piped"), Arc::<Mutex<String>>::default());
        let lines = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                *lines.lock().expect("nobody panicked with it") += &(line + "\n");
            }
        });
        Self { node, process, log }
    }

    #[track_caller]
    pub(crate) fn eventually<T>(&self, what: &str, ready: impl FnMut() -> Option<T>) -> T {
        eventually(2 * PATIENCE, what, ready)
    }

    /// Waits until it has logged this.
    #[track_caller]
    pub(crate) fn says(&self, words: &[&str]) {
        let said = || self.log.lock().expect("nobody panicked with it").clone();
        let is_said =
            || said().lines().any(|line| words.iter().all(|word| line.contains(word))).then_some(());
        self.eventually(&format!("it says {words:?}"), is_said);
    }

    /// Waits until it has looked at everything once more.
    #[track_caller]
    pub(crate) fn passes(&self) {
        let passes = || self.value("netpath_agent_passes_total", &[]);
        let before = passes().expect("counted");
        self.eventually("a pass that began since", || passes().filter(|now| before + 2 <= *now));
    }

    /// An answer: status and text.
    pub(crate) fn get(&self, path: &str) -> Option<(u16, String)> {
        self.node.netns.within(|| http::get(path))
    }

    #[track_caller]
    pub(crate) fn metrics(&self) -> String {
        let (status, text) = self.get("/metrics").expect("an answer");
        assert_eq!(status, 200);
        assert!(text.ends_with("# EOF\n"), "{text}");
        text
    }

    /// The value of the one series of this name whose labels hold all of these.
    #[track_caller]
    pub(crate) fn value(&self, name: &str, labels: &[&str]) -> Option<u64> {
        http::value(&self.metrics(), name, labels)
    }

    /// As an administrator with `kill -9`.
    #[track_caller]
    pub(crate) fn kill(mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("ours");
        let said = self.log.lock().expect("nobody panicked with it").clone();
        assert!(!said.contains("panicked"), "{said}");
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("the agent said:\n{}", self.log.lock().map(|said| said.clone()).unwrap_or_default());
        }
    }
}

/// Where networks are defined on a node without a cluster.
pub(crate) fn directory(node: &Node) -> PathBuf {
    node.root.join("etc/networks")
}
