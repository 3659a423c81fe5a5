//! Where pods and networks are defined, and where what became of them is written: one seam for every source.

mod directory;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

pub use directory::Directory;

use crate::spec::{ConfError, ContainerId, Nad, PodRef, code};
use crate::whole::WholeError;

/// A source of pods and networks. Every call has a deadline of its own, and asks once.
pub trait Cluster {
    /// What is known of a pod; `None` where the source knows every pod, and not this one.
    fn pod(&self, pod: &PodRef) -> Result<Option<Pod>, ClusterError>;

    /// A network.
    fn nad(&self, namespace: &str, name: &str) -> Result<Nad, ClusterError>;

    /// Writes the network-status annotation of a pod: of that very one, if it has a UID.
    fn set_network_status(&self, pod: &PodRef, sandbox: &ContainerId, text: &str)
    -> Result<(), ClusterError>;

    /// Tells the pod's owner.
    fn post(&self, pod: &PodRef, sandbox: &ContainerId, event: &Event) -> Result<(), ClusterError>;

    /// Forgets a sandbox that is gone, where the source keeps anything of it.
    fn forget(&self, sandbox: &ContainerId) -> Result<(), ClusterError>;

    /// Removes what writers that were killed have left, where the source keeps files.
    fn sweep(&self) -> Result<(), ClusterError> {
        Ok(())
    }
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.uid`, where it is comparable with the runtime's.
    pub uid: Option<String>,
    /// `metadata.annotations`
    pub annotations: BTreeMap<String, String>,
}

/// Something that the pod's owner should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Event {
    /// Whether it calls for attention.
    pub severity: Severity,
    /// One word, for filters.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
}

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the names are Kubernetes'")]
pub enum Severity {
    Normal,
    Warning,
}

/// Why a source could not be asked or told.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// There is no such network. The text is the one that people search for.
    #[error("cannot find a network-attachment-definition ({name}) in namespace ({namespace})")]
    NoNad {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// A file operation failed.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A manifest is neither JSON nor YAML.
    #[error("{} is not valid YAML", path.display())]
    Yaml {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Box<serde_saphyr::Error>,
    },
    /// A manifest's object is not what it should be.
    #[error("{} holds an invalid object", path.display())]
    Object {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: ConfError,
    },
}

impl From<WholeError> for ClusterError {
    fn from(WholeError { what, path, source }: WholeError) -> Self {
        Self::Io { what, path, source }
    }
}

impl ClusterError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, path: path.to_owned(), source }
    }

    /// Code of the CNI error object.
    pub fn cni_code(&self) -> u32 {
        match self {
            Self::NoNad { .. } => crate::spec::code::CONF,
            Self::Io { .. } => code::IO,
            Self::Yaml { .. } | Self::Object { .. } => code::DECODE,
        }
    }
}
