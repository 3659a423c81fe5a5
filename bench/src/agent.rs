//! A running agent, the binary that ships, which is asked over HTTP as Prometheus asks it.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use netpath::{
    kernel::{netns, pdeathsig::die_with_us},
    root::Root,
};
use nix::{time::ClockId, unistd::Pid};

use crate::netns::Namespace;

/// How long it may take until it is ready, or has looked at everything once more.
const PATIENCE: Duration = Duration::from_secs(60);

/// An agent; ended when it is dropped, and with the thread that started it.
pub(crate) struct Agent {
    process: Child,
    address: SocketAddr,
    /// The network namespace that it listens in; none: where we are.
    netns: Option<PathBuf>,
}

impl Agent {
    /// Starts one and waits until it has looked at everything once. Its networks are those of an API server, or none.
    pub(crate) fn start(
        binary: &Path,
        root: &Root,
        netns: Option<&Namespace>,
        kubeconfig: Option<&Path>,
    ) -> Result<Self> {
        // Free a moment ago; should somebody take it meanwhile, the agent says so and ends.
        let free = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr();
        let netns = netns.map(Namespace::path);
        let address = within(netns.as_deref(), free)??;
        let mut command = Command::new(binary);
        match kubeconfig {
            Some(path) => command.args(["agent", "--kubeconfig"]).arg(path),
            None => command.args(["agent", "--networks", "/networks"]),
        };
        fs::create_dir_all(root.join("networks"))?;
        command
            .args(["--node", "bench", "--listen", &address.to_string()])
            .env("NETPATH_ROOT", root.path())
            .env("NETPATH_LOG", std::env::var("NETPATH_LOG").unwrap_or_else(|_| "error".to_owned()))
            .stdin(Stdio::null());
        die_with_us(&mut command);
        let process = within(netns.as_deref(), || command.spawn())??;
        let mut agent = Self { process, address, netns };
        let begun = Instant::now();
        while !agent.passes().is_ok_and(|passes| passes >= 1.0) {
            ensure!(begun.elapsed() < PATIENCE, "the agent does not answer");
            ensure!(agent.process.try_wait()?.is_none(), "the agent has ended");
            std::thread::park_timeout(Duration::from_millis(20));
        }
        Ok(agent)
    }

    /// Waits until it has looked at everything once more.
    pub(crate) fn settle(&self) -> Result<()> {
        let (before, begun) = (self.passes()?, Instant::now());
        // The next one to end may have begun already.
        while self.passes()? < before + 2.0 {
            ensure!(begun.elapsed() < PATIENCE, "the agent does not look at anything any more");
            std::thread::park_timeout(Duration::from_millis(50));
        }
        Ok(())
    }

    fn passes(&self) -> Result<f64> {
        value(&self.metrics()?, "netpath_agent_passes_total")
    }

    /// What it tells Prometheus.
    pub(crate) fn metrics(&self) -> Result<String> {
        let mut stream = within(self.netns.as_deref(), || TcpStream::connect(self.address))??;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
        ensure!(head.starts_with("HTTP/1.1 200"), "the agent answers {:?}", head.lines().next());
        Ok(body.to_owned())
    }

    /// What all its threads have taken of a CPU so far.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(self.process.id().cast_signed()))?;
        Ok(clock.now()?.into())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A number without labels in what an agent says.
pub(crate) fn value(text: &str, name: &str) -> Result<f64> {
    let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(found.with_context(|| format!("the agent does not say {name}"))?.parse()?)
}

/// Sockets and programs stay where they were opened.
fn within<T>(netns: Option<&Path>, f: impl FnOnce() -> T) -> Result<T> {
    match netns {
        Some(netns) => Ok(netns::within(netns, f)?),
        None => Ok(f()),
    }
}
