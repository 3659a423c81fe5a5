//! Where pods and networks are defined, and where what became of them is written: one seam for every source.

mod api;
mod directory;
mod error;

use std::collections::BTreeMap;
use std::time::Duration;

pub use api::{Api, Subject};
pub use directory::Directory;
pub use error::ClusterError;

use crate::spec::{ContainerId, Event, Nad, PodRef};

/// A source of pods and networks. What a call may cost is the source's own affair: each says so.
pub trait Cluster {
    /// What is known of a pod; `None` where the source knows every pod, and not this one.
    fn pod(&self, pod: &PodRef) -> Result<Option<Pod>, ClusterError>;

    /// A network.
    fn nad(&self, namespace: &str, name: &str) -> Result<Nad, ClusterError>;

    /// Writes the network-status annotation of a pod: of that very one, where the source can tell.
    fn set_network_status(
        &self,
        pod: &PodRef,
        which: &Which,
        sandbox: &ContainerId,
        text: &str,
    ) -> Result<(), ClusterError>;

    /// Tells the pod's owner: now, or, where that costs time, when [`Self::deliver`] is called.
    fn post(&self, pod: &PodRef, sandbox: &ContainerId, event: &Event) -> Result<(), ClusterError>;

    /// Writes network-status, then tells the pod's owner of it. An event that cannot be told fails nothing.
    fn publish(
        &self,
        pod: &PodRef,
        which: &Which,
        sandbox: &ContainerId,
        text: &str,
        events: &[Event],
    ) -> Result<(), ClusterError> {
        self.set_network_status(pod, which, sandbox, text)?;
        for event in events {
            if let Err(error) = self.post(pod, sandbox, event) {
                tracing::warn!(error = &error as &dyn std::error::Error, "an event is lost");
            }
        }
        Ok(())
    }

    /// Takes back the events that are not delivered yet.
    fn take_undelivered(&self) -> Vec<Event> {
        Vec::new()
    }

    /// Delivers these events within this time, and returns how many were not. Fails nothing.
    fn deliver(&self, _pod: &PodRef, _events: &[Event], _within: Duration) -> usize {
        0
    }

    /// Forgets a sandbox that is gone, where the source keeps anything of it.
    fn forget(&self, sandbox: &ContainerId) -> Result<(), ClusterError>;
}

/// What tells a pod from a later one of the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// `metadata.uid`
    Uid(String),
    /// A static pod, which the API shows as a mirror: the mirror's UID is not the runtime's, but it carries the hash
    /// of the manifest, which is.
    MirrorOf(String),
    /// Nobody says.
    Any,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.uid`, where it is comparable with the runtime's.
    pub uid: Option<String>,
    /// `metadata.annotations`
    pub annotations: BTreeMap<String, String>,
}
