//! Why the lab could not be built or asked.

use std::{io, path::PathBuf};

use nix::sys::signal::Signal;

use crate::{
    child::ChildError,
    kernel::{
        bpf::{BpfError, events::EventsError, maps::MapsError},
        netlink::NetlinkError,
        netns::NetnsError,
        sysctl::SysctlError,
    },
    state::StateError,
};

/// Why the lab could not be built or asked; what it found is never an error.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// Not root.
    #[error(
        "the lab makes network namespaces and loads programs, which takes root: run `sudo netpath lab` (user id {uid} may not)"
    )]
    NotRoot {
        /// Who asked.
        uid: u32,
    },
    /// A program is not installed.
    #[error("the lab needs `{program}`, which is not in PATH: install it (Debian: `apt install {package}`)")]
    NoTool {
        /// Its name.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// There is no such lab.
    #[error("there is no lab `{id}`: neither {} nor a namespace of that name exists", dir.display())]
    NoLab {
        /// As it was given.
        id: String,
        /// Where its directory would be.
        dir: PathBuf,
    },
    /// Not what an id looks like.
    #[error(
        "`{id}` is not the id of a lab: those have six letters and digits, as `netpath lab --keep` prints"
    )]
    Id {
        /// As it was given.
        id: String,
    },
    /// A signal came.
    #[error("ended by {signal}")]
    Interrupted {
        /// Which.
        signal: Signal,
    },
    /// Signals could not be waited for.
    #[error("cannot arrange to clean up on signals")]
    Signals {
        /// Why.
        source: io::Error,
    },
    /// A program could not be run.
    #[error("cannot run `{line}`")]
    Run {
        /// Its command line.
        line: String,
        /// Why.
        source: io::Error,
    },
    /// A program failed.
    #[error("`{line}` failed ({status}): {stderr}")]
    Failed {
        /// Its command line.
        line: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// A file of the lab.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The plugin could not be run.
    #[error("cannot call the plugin")]
    Call(#[from] ChildError),
    /// The plugin said no.
    #[error("{command} of network `{network}` for pod {pod} failed: {said}")]
    Plugin {
        /// CNI_COMMAND.
        command: &'static str,
        /// The network.
        network: String,
        /// The pod.
        pod: &'static str,
        /// Message and details of the error object.
        said: String,
    },
    /// The attachment is not counted.
    #[error("the attachment of pod {pod} has no {what}, so nothing can be measured")]
    Uncounted {
        /// The pod.
        pod: &'static str,
        /// What is missing.
        what: &'static str,
    },
    /// Raw frames could not be read or sent.
    #[error("cannot {what} in namespace `{netns}`")]
    Wire {
        /// What was attempted.
        what: &'static str,
        /// Where.
        netns: String,
        /// Why.
        source: io::Error,
    },
    /// An interface is not there.
    #[error("no interface `{ifname}` in namespace `{netns}`")]
    NoLink {
        /// Its name.
        ifname: &'static str,
        /// Where.
        netns: String,
    },
    /// Some of the lab could not be removed.
    #[error("the lab could not be removed completely: {}", failures.iter().map(in_full).collect::<Vec<_>>().join("; "))]
    Remove {
        /// Everything that failed.
        failures: Vec<LabError>,
    },
    /// An embedded manifest.
    #[error("the example {file} cannot be used")]
    Manifest {
        /// Its name in `deploy/examples`.
        file: &'static str,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A namespace.
    #[error("cannot use a namespace of the lab")]
    Netns(#[from] NetnsError),
    /// Netlink.
    #[error("cannot look at the master")]
    Netlink(#[from] NetlinkError),
    /// A sysctl.
    #[error("cannot prepare a namespace of the lab")]
    Sysctl(#[from] SysctlError),
    /// Programs.
    #[error("cannot tell what is attached")]
    Bpf(#[from] BpfError),
    /// Counters.
    #[error("cannot read the counters")]
    Maps(#[from] MapsError),
    /// Events.
    #[error("cannot read the events")]
    Events(#[from] EventsError),
    /// Records.
    #[error("cannot read the records of the plugin")]
    State(#[from] StateError),
}

impl LabError {
    /// A file operation that failed.
    pub(super) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }
}

/// An error with its causes: of several errors only one can be a source.
fn in_full(error: &LabError) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
