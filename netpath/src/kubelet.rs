//! The kubelet's word on which devices a pod was given: its pod-resources API, over a socket on the node.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::{Code, Status};

use crate::grpc;
use crate::root::Root;
use crate::spec::{PodRef, code};

/// Where the kubelet serves.
const SOCKET: &str = "var/lib/kubelet/pod-resources/kubelet.sock";

/// The time it has to answer.
const WITHIN: Duration = Duration::from_secs(10);

/// Of one pod; kubelets have it since 1.27, and say so by default since 1.34.
const GET: &str = "/v1.PodResourcesLister/Get";
/// Of all pods.
const LIST: &str = "/v1.PodResourcesLister/List";

/// The devices of a pod by resource, in the order of their names.
pub type Devices = BTreeMap<String, Vec<String>>;

/// Why the kubelet could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum KubeletError {
    /// The socket cannot be looked at.
    #[error("cannot look at the kubelet's socket {}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Nothing can be asked at all.
    #[error("cannot start asking the kubelet")]
    Runtime {
        /// The cause.
        source: io::Error,
    },
    /// Nobody serves the socket.
    #[error("cannot connect to the kubelet's socket {}: is the kubelet running?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The cause.
        source: tonic::transport::Error,
    },
    /// It refused, or answered what cannot be understood.
    #[error("the kubelet does not say which devices pod {pod} has")]
    Refused {
        /// Namespace and name.
        pod: String,
        /// The cause.
        source: Box<Status>,
    },
    /// It did not answer in time.
    #[error("the kubelet did not say within {WITHIN:?} which devices pod {pod} has")]
    Late {
        /// Namespace and name.
        pod: String,
    },
}

impl KubeletError {
    /// Code of the CNI error object.
    pub fn cni_code(&self) -> u32 {
        match self {
            Self::Socket { .. } | Self::Runtime { .. } => code::IO,
            Self::Connect { .. } | Self::Refused { .. } | Self::Late { .. } => code::TRY_AGAIN,
        }
    }
}

/// The devices of a pod; `None` where no kubelet serves this node.
pub fn devices(root: &Root, pod: &PodRef) -> Result<Option<Devices>, KubeletError> {
    let path = root.join(SOCKET);
    match path.metadata() {
        Ok(metadata) if metadata.file_type().is_socket() => {}
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(KubeletError::Socket { path, source }),
    }
    let answer = grpc::within(WITHIN, ask(&path, pod)).map_err(|source| KubeletError::Runtime { source })?;
    let late = || KubeletError::Late { pod: format!("{}/{}", pod.namespace, pod.name) };
    answer.ok_or_else(late)?.map(|pods| Some(collect(&pods, pod)))
}

/// Asks for one pod, and where that is not served for all of them.
async fn ask(path: &Path, pod: &PodRef) -> Result<Vec<PodResources>, KubeletError> {
    let connect = |source| KubeletError::Connect { path: path.to_owned(), source };
    let mut client = grpc::connect(path).await.map_err(connect)?;
    let refused = |source| KubeletError::Refused {
        pod: format!("{}/{}", pod.namespace, pod.name),
        source: Box::new(source),
    };
    let request = GetRequest { name: pod.name.clone(), namespace: pod.namespace.clone() };
    match grpc::unary::<_, GetResponse>(&mut client, GET, request).await {
        Ok(response) => return Ok(response.pod.into_iter().collect()),
        // A kubelet with the call switched off says so in words alone, as it does of a pod that it does not know.
        Err(status) if matches!(status.code(), Code::Unimplemented | Code::Unknown | Code::NotFound) => {}
        Err(status) => return Err(refused(status)),
    }
    let response: ListResponse = grpc::unary(&mut client, LIST, ListRequest {}).await.map_err(refused)?;
    Ok(response.pods)
}

/// The devices of all its containers. An init container's are given to another container again.
fn collect(pods: &[PodResources], pod: &PodRef) -> Devices {
    let its = pods.iter().filter(|it| it.name == pod.name && it.namespace == pod.namespace);
    let mut devices: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for device in its.flat_map(|it| &it.containers).flat_map(|container| &container.devices) {
        devices.entry(device.resource_name.clone()).or_default().extend(device.device_ids.iter().cloned());
    }
    devices.into_iter().map(|(resource, ids)| (resource, ids.into_iter().collect())).collect()
}

// The parts of package `v1` that are of use here. Unknown fields are passed over.

#[derive(Clone, PartialEq, prost::Message)]
struct ListRequest {}

#[derive(Clone, PartialEq, prost::Message)]
struct ListResponse {
    #[prost(message, repeated, tag = "1")]
    pods: Vec<PodResources>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GetRequest {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    namespace: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GetResponse {
    #[prost(message, optional, tag = "1")]
    pod: Option<PodResources>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PodResources {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(message, repeated, tag = "3")]
    containers: Vec<ContainerResources>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerResources {
    #[prost(message, repeated, tag = "2")]
    devices: Vec<ContainerDevices>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerDevices {
    #[prost(string, tag = "1")]
    resource_name: String,
    #[prost(string, repeated, tag = "2")]
    device_ids: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, devices: &[(&str, &[&str])]) -> PodResources {
        let device = |(resource, ids): &(&str, &[&str])| ContainerDevices {
            resource_name: (*resource).to_owned(),
            device_ids: ids.iter().map(ToString::to_string).collect(),
        };
        // One container each.
        let containers = devices.iter().map(|it| ContainerResources { devices: vec![device(it)] }).collect();
        PodResources { name: name.to_owned(), namespace: "web".to_owned(), containers }
    }

    #[test]
    fn devices_of_all_containers_are_sorted_and_each_is_there_once() {
        let pods = [
            pod("q", &[("a/x", &["9"])]),
            pod(
                "p",
                &[("a/x", &["0000:03:02.1", "0000:03:02.0"]), ("b/y", &["7"]), ("a/x", &["0000:03:02.0"])],
            ),
        ];
        let reference = |name: &str| PodRef { namespace: "web".into(), name: name.into(), uid: None };
        let devices = collect(&pods, &reference("p"));
        assert_eq!(devices["a/x"], ["0000:03:02.0", "0000:03:02.1"]);
        assert_eq!(devices["b/y"], ["7"]);
        assert!(collect(&pods, &reference("none")).is_empty());
    }

    #[test]
    fn where_no_kubelet_serves_there_is_no_word() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        let pod = PodRef { namespace: "web".into(), name: "p".into(), uid: None };
        assert_eq!(devices(&root, &pod).unwrap(), None);
        let socket = root.join(SOCKET);
        std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
        // A kubelet that has ended leaves its socket.
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let error = devices(&root, &pod).unwrap_err();
        assert_eq!(error.cni_code(), code::TRY_AGAIN);
        assert!(error.to_string().contains("is the kubelet running?"), "{error}");
    }
}
