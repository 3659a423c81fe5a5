//! The meta-plugin: gives a pod its first network, and those that it asks for.

mod add;
mod chain;
mod del;
mod devices;
mod error;
mod masters;
mod resolve;
mod routes;
mod tell;
mod verbs;

use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::Value;

pub use error::MetaError;
pub(super) use masters::refuse_ipam;

use super::{Origin, PluginError};
use crate::{
    cluster::{Api, Cluster, Directory},
    kernel::netns,
    root::Root,
    spec::{CniEnv, Command, ContainerId, IfName, MetaConf, NetConf, PodRef},
    state::{DelegateCache, DeviceInfos, FirstNetwork, ResultCache, Sandboxes},
};

/// The time that one ADD may take in all: kubelet gives up on a sandbox after two minutes or more.
const ADD: Duration = Duration::from_secs(90);
/// The time of one DEL, CHECK or GC in all.
const DEL: Duration = Duration::from_secs(60);
/// The time of one STATUS: runtimes ask every five seconds.
const STATUS: Duration = Duration::from_secs(5);
/// The time that one executed plugin may take of it.
const PLUGIN: Duration = Duration::from_secs(60);
/// How many meta-plugins may execute each other.
const DEPTH: u32 = 2;

/// One call of the meta-plugin.
struct Call<'a> {
    root: &'a Root,
    env: &'a CniEnv,
    conf: &'a NetConf,
    meta: &'a MetaConf,
    /// Directories of plugins.
    path: Vec<PathBuf>,
    depth: u32,
    deadline: Instant,
    source: Option<Rc<dyn Cluster>>,
}

/// Runs the command on the pod's networks.
pub(super) fn run(
    root: &Root,
    env: &CniEnv,
    conf: &NetConf,
    meta: &MetaConf,
    origin: &Origin<'_>,
) -> Result<Option<Value>, PluginError> {
    let within = match env.command {
        Command::Add => ADD,
        Command::Status => STATUS,
        Command::Del | Command::Check | Command::Gc | Command::Version => DEL,
    };
    if DEPTH <= origin.depth {
        return match env.command {
            // There is nothing of ours to end, and an error would be asked for again for ever.
            Command::Del | Command::Gc => Ok(None),
            _ => Err(MetaError::Depth { depth: origin.depth }.into()),
        };
    }
    let deadline = Instant::now() + within;
    let call = Call {
        root,
        env,
        conf,
        meta,
        path: std::iter::once(root.join(&meta.bin_dir.to_string_lossy())).chain(env.path.clone()).collect(),
        depth: origin.depth,
        deadline,
        source: source(root, meta, deadline),
    };
    match env.command {
        Command::Add => {
            call.refuse_own_netns()?;
            add::add(&call).map(Some)
        }
        Command::Del => del::del(&call).map(|()| None),
        Command::Check => verbs::check(&call).map(|()| None),
        Command::Gc => verbs::gc(&call).map(|()| None),
        Command::Status => verbs::status(&call).map(|()| None),
        Command::Version => Ok(None),
    }
}

/// Who knows pods and networks. A directory stands in for the API, so it is asked where both are named.
fn source(root: &Root, meta: &MetaConf, deadline: Instant) -> Option<Rc<dyn Cluster>> {
    match (&meta.networks, &meta.kubeconfig) {
        (Some(dir), _) => Some(Rc::new(Directory::new(root, root.join(&dir.to_string_lossy())))),
        (None, Some(file)) => Some(Rc::new(Api::new(root, root.join(&file.to_string_lossy()), deadline))),
        (None, None) => None,
    }
}

impl Call<'_> {
    fn attachment(&self) -> Result<(&ContainerId, &IfName), PluginError> {
        match (&self.env.container_id, &self.env.ifname) {
            (Some(container_id), Some(ifname)) => Ok((container_id, ifname)),
            _ => Err(PluginError::NoAttachment),
        }
    }

    fn refuse_own_netns(&self) -> Result<(), PluginError> {
        match &self.env.netns {
            Some(path) if !self.env.netns_override && netns::is_same_as_current(path)? => {
                Err(PluginError::OwnNetns { path: path.clone() })
            }
            _ => Ok(()),
        }
    }

    fn delegate_cache(&self) -> DelegateCache {
        DelegateCache::new(self.cni_dir())
    }

    fn result_cache(&self) -> ResultCache {
        ResultCache::new(&self.cni_dir())
    }

    fn sandboxes(&self) -> Sandboxes {
        Sandboxes::new(self.root)
    }

    fn device_infos(&self) -> DeviceInfos {
        DeviceInfos::new(self.root)
    }

    fn first_network(&self) -> FirstNetwork {
        FirstNetwork::new(self.root, &self.conf.name)
    }

    fn cni_dir(&self) -> PathBuf {
        self.root.join(&self.meta.cni_dir.to_string_lossy())
    }

    /// The pod, if the runtime names one.
    fn pod(&self) -> Option<PodRef> {
        let args = &self.env.args;
        let (mut namespace, name) = (args.k8s_pod_namespace.clone()?, args.k8s_pod_name.clone()?);
        let uid = args.k8s_pod_uid.clone();
        // Podman knows no namespaces, and fills in the container's name for both.
        if self.meta.networks.is_some() && uid.is_none() && namespace == name {
            namespace = "default".to_owned();
        }
        Some(PodRef { namespace, name, uid })
    }

    /// Whether the source can know of this pod: the API knows only those that have a name.
    fn has_pod_of_source(&self) -> bool {
        self.pod().is_some() || self.meta.networks.is_some()
    }

    /// The pod; where the runtime names none, the sandbox is one of the namespace `default`.
    fn pod_or_sandbox(&self) -> Result<PodRef, PluginError> {
        let sandbox = || -> Result<PodRef, PluginError> {
            let name = self.attachment()?.0.to_string();
            Ok(PodRef { namespace: "default".to_owned(), name, uid: None })
        };
        self.pod().map_or_else(sandbox, Ok)
    }

    /// `namespace/name/uid`, as it stands in errors.
    fn pod_text(&self) -> String {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let args = &self.env.args;
        format!("{}/{}/{}", text(&args.k8s_pod_namespace), text(&args.k8s_pod_name), text(&args.k8s_pod_uid))
    }
}
