//! A container runtime by its gRPC interface (CRI, `runtime.v1`), as kubelet calls it. The messages hold the fields
//! that are used here, by their numbers in Kubernetes' `api.proto`.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use prost::Message;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// How long a call may take, unless it is said otherwise: longer than an ADD may.
const PATIENCE: Duration = Duration::from_secs(150);

#[derive(Clone, PartialEq, Message)]
pub(crate) struct PodSandboxMetadata {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    pub(crate) uid: String,
    #[prost(string, tag = "3")]
    pub(crate) namespace: String,
    #[prost(uint32, tag = "4")]
    pub(crate) attempt: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct PodSandboxConfig {
    #[prost(message, optional, tag = "1")]
    pub(crate) metadata: Option<PodSandboxMetadata>,
    #[prost(string, tag = "2")]
    pub(crate) hostname: String,
    #[prost(string, tag = "3")]
    pub(crate) log_directory: String,
    #[prost(map = "string, string", tag = "7")]
    pub(crate) annotations: HashMap<String, String>,
    #[prost(message, optional, tag = "8")]
    pub(crate) linux: Option<LinuxPodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct LinuxPodSandboxConfig {
    #[prost(string, tag = "1")]
    pub(crate) cgroup_parent: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) security_context: Option<LinuxSandboxSecurityContext>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct LinuxSandboxSecurityContext {
    #[prost(message, optional, tag = "1")]
    pub(crate) namespace_options: Option<NamespaceOption>,
}

/// Whose namespaces a sandbox and its containers have: the pod's, [`OF_CONTAINER`], or [`OF_NODE`].
#[derive(Clone, PartialEq, Message)]
pub(crate) struct NamespaceOption {
    #[prost(int32, tag = "1")]
    pub(crate) network: i32,
    #[prost(int32, tag = "2")]
    pub(crate) pid: i32,
}

pub(crate) const OF_CONTAINER: i32 = 1;
pub(crate) const OF_NODE: i32 = 2;

#[derive(Clone, PartialEq, Message)]
struct RunPodSandboxRequest {
    #[prost(message, optional, tag = "1")]
    config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct Nothing {}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxStatusRequest {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(bool, tag = "2")]
    verbose: bool,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxStatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<PodSandboxStatus>,
    #[prost(map = "string, string", tag = "2")]
    info: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxStatus {
    #[prost(message, optional, tag = "5")]
    network: Option<PodSandboxNetworkStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxNetworkStatus {
    #[prost(string, tag = "1")]
    ip: String,
}

#[derive(Clone, PartialEq, Message)]
struct ListPodSandboxResponse {
    #[prost(message, repeated, tag = "1")]
    items: Vec<Id>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ImageSpec {
    #[prost(string, tag = "1")]
    pub(crate) image: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ContainerMetadata {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct KeyValue {
    #[prost(string, tag = "1")]
    pub(crate) key: String,
    #[prost(string, tag = "2")]
    pub(crate) value: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Mount {
    #[prost(string, tag = "1")]
    pub(crate) container_path: String,
    #[prost(string, tag = "2")]
    pub(crate) host_path: String,
    #[prost(bool, tag = "3")]
    pub(crate) readonly: bool,
    /// Nothing that comes later is told, or [`HOST_TO_CONTAINER`].
    #[prost(int32, tag = "5")]
    pub(crate) propagation: i32,
}

pub(crate) const HOST_TO_CONTAINER: i32 = 1;

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    pub(crate) metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    pub(crate) image: Option<ImageSpec>,
    #[prost(string, repeated, tag = "4")]
    pub(crate) args: Vec<String>,
    #[prost(message, repeated, tag = "6")]
    pub(crate) envs: Vec<KeyValue>,
    #[prost(message, repeated, tag = "7")]
    pub(crate) mounts: Vec<Mount>,
    /// Below the sandbox's.
    #[prost(string, tag = "11")]
    pub(crate) log_path: String,
    #[prost(message, optional, tag = "15")]
    pub(crate) linux: Option<LinuxContainerConfig>,
}

impl ContainerConfig {
    /// A container that does what its image does.
    pub(crate) fn of(name: &str, image: &str) -> Self {
        Self {
            metadata: Some(ContainerMetadata { name: name.to_owned() }),
            image: Some(ImageSpec { image: image.to_owned() }),
            linux: Some(LinuxContainerConfig::default()),
            ..Self::default()
        }
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct LinuxContainerConfig {
    #[prost(message, optional, tag = "2")]
    pub(crate) security_context: Option<LinuxContainerSecurityContext>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct LinuxContainerSecurityContext {
    #[prost(message, optional, tag = "1")]
    pub(crate) capabilities: Option<Capability>,
    #[prost(message, optional, tag = "3")]
    pub(crate) namespace_options: Option<NamespaceOption>,
    #[prost(bool, tag = "7")]
    pub(crate) readonly_rootfs: bool,
    #[prost(bool, tag = "11")]
    pub(crate) no_new_privs: bool,
    #[prost(string, repeated, tag = "13")]
    pub(crate) masked_paths: Vec<String>,
    #[prost(string, repeated, tag = "14")]
    pub(crate) readonly_paths: Vec<String>,
    #[prost(message, optional, tag = "15")]
    pub(crate) seccomp: Option<SecurityProfile>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Capability {
    #[prost(string, repeated, tag = "1")]
    pub(crate) add: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub(crate) drop: Vec<String>,
}

/// [`RUNTIME_DEFAULT`] is the only one that is asked for.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SecurityProfile {
    #[prost(int32, tag = "1")]
    pub(crate) kind: i32,
}

pub(crate) const RUNTIME_DEFAULT: i32 = 0;

#[derive(Clone, PartialEq, Message)]
struct CreateContainerRequest {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct ExecSyncRequest {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(string, repeated, tag = "2")]
    cmd: Vec<String>,
    #[prost(int64, tag = "3")]
    timeout: i64,
}

/// What a program in a container printed, and how it ended.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Executed {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) stdout: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) stderr: Vec<u8>,
    #[prost(int32, tag = "3")]
    pub(crate) exit_code: i32,
}

impl Executed {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned() + &String::from_utf8_lossy(&self.stderr)
    }
}

#[derive(Clone, PartialEq, Message)]
struct StatusRequest {
    #[prost(bool, tag = "1")]
    verbose: bool,
}

#[derive(Clone, PartialEq, Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<RuntimeStatus>,
    #[prost(map = "string, string", tag = "2")]
    info: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct RuntimeStatus {
    #[prost(message, repeated, tag = "1")]
    conditions: Vec<Condition>,
}

/// What a runtime says of itself.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Condition {
    #[prost(string, tag = "1")]
    pub(crate) kind: String,
    #[prost(bool, tag = "2")]
    pub(crate) status: bool,
    #[prost(string, tag = "3")]
    pub(crate) reason: String,
    #[prost(string, tag = "4")]
    pub(crate) message: String,
}

/// A connection to a runtime.
pub(crate) struct Cri {
    tokio: tokio::runtime::Runtime,
    channel: Channel,
}

impl Cri {
    /// Connects to a socket, and waits until the runtime has found out what it had before it was started.
    #[track_caller]
    pub(crate) fn connect(socket: &Path) -> Self {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
        let channel = tokio.block_on(endpoint.connect());
        let channel = channel.unwrap_or_else(|error| panic!("{}: {error:?}", socket.display()));
        let cri = Self { tokio, channel };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer: Result<StatusResponse, _> =
                cri.call("Status", StatusRequest { verbose: false }, PATIENCE);
            match answer {
                Ok(_) => return cri,
                Err(error) => assert!(Instant::now() < deadline, "{}: {error:?}", socket.display()),
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }

    fn call<Q, A>(&self, method: &str, request: Q, patience: Duration) -> Result<A, Status>
    where
        Q: Message + Default + 'static,
        A: Message + Default + 'static,
    {
        self.tokio.block_on(async {
            let mut client = tonic::client::Grpc::new(self.channel.clone());
            client.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
            let path = format!("/runtime.v1.RuntimeService/{method}").parse().unwrap();
            let mut request = Request::new(request);
            request.set_timeout(patience);
            let codec = tonic_prost::ProstCodec::<Q, A>::default();
            Ok(client.unary(request, path, codec).await?.into_inner())
        })
    }

    /// Runs a sandbox; returns its id.
    pub(crate) fn run(&self, config: &PodSandboxConfig) -> Result<String, Status> {
        self.run_within(config, PATIENCE)
    }

    /// The same, given up on after some time.
    pub(crate) fn run_within(&self, config: &PodSandboxConfig, patience: Duration) -> Result<String, Status> {
        let request = RunPodSandboxRequest { config: Some(config.clone()) };
        self.call("RunPodSandbox", request, patience).map(|answer: Id| answer.id)
    }

    pub(crate) fn stop(&self, id: &str) -> Result<(), Status> {
        self.call("StopPodSandbox", Id { id: id.to_owned() }, PATIENCE).map(|_: Nothing| ())
    }

    /// The same, given up on after some time.
    pub(crate) fn stop_within(&self, id: &str, patience: Duration) -> Result<(), Status> {
        self.call("StopPodSandbox", Id { id: id.to_owned() }, patience).map(|_: Nothing| ())
    }

    pub(crate) fn remove(&self, id: &str) -> Result<(), Status> {
        self.call("RemovePodSandbox", Id { id: id.to_owned() }, PATIENCE).map(|_: Nothing| ())
    }

    /// Ids of all sandboxes.
    #[track_caller]
    pub(crate) fn sandboxes(&self) -> Vec<String> {
        let answer: Result<ListPodSandboxResponse, _> = self.call("ListPodSandbox", Nothing {}, PATIENCE);
        answer.unwrap().items.into_iter().map(|item| item.id).collect()
    }

    /// A sandbox's address, and the path of its network namespace on the node.
    #[track_caller]
    pub(crate) fn status(&self, id: &str) -> (String, String) {
        let request = PodSandboxStatusRequest { id: id.to_owned(), verbose: true };
        let answer: PodSandboxStatusResponse = self.call("PodSandboxStatus", request, PATIENCE).unwrap();
        let info: serde_json::Value = serde_json::from_str(&answer.info["info"]).unwrap();
        let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array().unwrap();
        let network = namespaces.iter().find(|it| it["type"] == "network").unwrap();
        let ip = answer.status.and_then(|status| status.network).map(|network| network.ip);
        (ip.unwrap_or_default(), network["path"].as_str().unwrap().to_owned())
    }

    /// Starts a container of a sandbox that does nothing; returns its id.
    #[track_caller]
    pub(crate) fn container(&self, sandbox: &str, config: &PodSandboxConfig, image: &str) -> String {
        self.start(sandbox, config, ContainerConfig::of("main", image)).unwrap()
    }

    /// Starts a container of a sandbox; returns its id.
    pub(crate) fn start(
        &self,
        sandbox: &str,
        config: &PodSandboxConfig,
        container: ContainerConfig,
    ) -> Result<String, Status> {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(container),
            sandbox_config: Some(config.clone()),
        };
        let created: Id = self.call("CreateContainer", request, PATIENCE)?;
        let _: Nothing = self.call("StartContainer", created.clone(), PATIENCE)?;
        Ok(created.id)
    }

    /// Runs a program in a container to its end.
    #[track_caller]
    pub(crate) fn exec(&self, container: &str, words: &str) -> Executed {
        let cmd = words.split_whitespace().map(str::to_owned).collect();
        let request = ExecSyncRequest { container_id: container.to_owned(), cmd, timeout: 60 };
        self.call("ExecSync", request, PATIENCE).unwrap()
    }

    /// What the runtime says of itself, and more about it.
    #[track_caller]
    pub(crate) fn runtime(&self) -> (Vec<Condition>, HashMap<String, String>) {
        let answer: StatusResponse = self.call("Status", StatusRequest { verbose: true }, PATIENCE).unwrap();
        (answer.status.unwrap().conditions, answer.info)
    }

    /// Whether it says that pods can have a network.
    #[track_caller]
    pub(crate) fn is_network_ready(&self) -> bool {
        self.runtime().0.iter().any(|it| it.kind == "NetworkReady" && it.status)
    }
}
