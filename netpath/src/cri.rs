//! The container runtime's word on which sandboxes there are, by the interface that the kubelet uses (CRI).

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::{Code, Status};

use crate::grpc;
use crate::root::Root;

/// Where runtimes serve: containerd, CRI-O, and the containerd of k3s and RKE2.
const SOCKETS: [&str; 3] =
    ["run/containerd/containerd.sock", "run/crio/crio.sock", "run/k3s/containerd/containerd.sock"];

/// The time that one runtime has to answer.
const WITHIN: Duration = Duration::from_secs(20);

/// Current runtimes.
const LIST: &str = "/runtime.v1.RuntimeService/ListPodSandbox";
/// Those before containerd 1.6 and CRI-O 1.23.
const OLD_LIST: &str = "/runtime.v1alpha2.RuntimeService/ListPodSandbox";

/// Why a runtime could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum CriError {
    /// Nothing can be asked at all.
    #[error("cannot start asking the container runtime")]
    Runtime {
        /// The cause.
        source: io::Error,
    },
    /// Nobody serves the socket.
    #[error("cannot connect to the container runtime's socket {}: is it running?", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// The cause.
        source: tonic::transport::Error,
    },
    /// It refused, or answered what cannot be understood.
    #[error("the container runtime at {} does not say which sandboxes it has", socket.display())]
    Refused {
        /// The socket.
        socket: PathBuf,
        /// The cause.
        source: Box<Status>,
    },
    /// It did not answer in time.
    #[error("the container runtime at {} did not say within {WITHIN:?} which sandboxes it has", socket.display())]
    Late {
        /// The socket.
        socket: PathBuf,
    },
}

/// Sockets of runtimes that are there, where runtimes usually serve.
pub fn sockets(root: &Root) -> Vec<PathBuf> {
    SOCKETS.iter().map(|socket| root.join(socket)).filter(|socket| socket.exists()).collect()
}

/// The container ids of all sandboxes that a runtime has, ready or not.
pub fn sandboxes(socket: &Path) -> Result<BTreeSet<String>, CriError> {
    let answer = grpc::within(WITHIN, ask(socket)).map_err(|source| CriError::Runtime { source })?;
    answer.ok_or_else(|| CriError::Late { socket: socket.to_owned() })?
}

async fn ask(socket: &Path) -> Result<BTreeSet<String>, CriError> {
    let connect = |source| CriError::Connect { socket: socket.to_owned(), source };
    let mut client = grpc::connect(socket).await.map_err(connect)?;
    let refused = |source| CriError::Refused { socket: socket.to_owned(), source: Box::new(source) };
    let answer: List = match grpc::unary(&mut client, LIST, All {}).await {
        Err(status) if status.code() == Code::Unimplemented => {
            grpc::unary(&mut client, OLD_LIST, All {}).await.map_err(refused)?
        }
        answer => answer.map_err(refused)?,
    };
    Ok(answer.items.into_iter().map(|item| item.id).collect())
}

// The parts of the packages `runtime.v1` and `runtime.v1alpha2` that are of use here, which are the same in both.

#[derive(Clone, PartialEq, prost::Message)]
struct All {}

#[derive(Clone, PartialEq, prost::Message)]
struct List {
    #[prost(message, repeated, tag = "1")]
    items: Vec<Item>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Item {
    #[prost(string, tag = "1")]
    id: String,
}
