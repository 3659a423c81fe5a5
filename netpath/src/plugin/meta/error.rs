//! Why a pod could not be given its networks.

use std::io;
use std::path::PathBuf;

use crate::{
    cluster::ClusterError,
    delegate::DelegateError,
    kubelet::KubeletError,
    plan::SeveralDefaults,
    plugin::PluginError,
    spec::{ConfError, code},
};

/// Why a pod could not be given its networks.
#[derive(Debug, thiserror::Error)]
pub enum MetaError {
    /// Meta-plugins that execute each other.
    #[error(
        "meta-plugins execute each other ({depth} calls deep): `clusterNetwork` must not be a configuration of netpath or Multus"
    )]
    Depth {
        /// How deep.
        depth: u32,
    },
    /// The cluster network leads to a meta-plugin.
    #[error(
        "network `{network}` executes `{kind}`, a meta-plugin: write a network that makes interfaces itself"
    )]
    MetaInside {
        /// The network.
        network: String,
        /// Its plugin.
        kind: String,
    },
    /// A file or directory of configurations.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// No configuration of that name.
    #[error("no network configuration `{name}` in {}: write one there, with that `name`", directory.display())]
    NoConf {
        /// The name.
        name: String,
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// A definition without a configuration, of which there is none on the node either.
    #[error(
        "NetworkAttachmentDefinition {network} has no `spec.config`, and there is no network configuration `{name}` in {}: write one of the two",
        directory.display()
    )]
    NoConfig {
        /// Namespace and name.
        network: String,
        /// Its name alone.
        name: String,
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// The configuration of a network.
    #[error("the configuration of network `{network}` is not valid")]
    Conf {
        /// The network, or its file.
        network: String,
        /// What is wrong with it.
        source: ConfError,
    },
    /// There is nobody to ask.
    #[error(
        "{what}, and there is no source of networks: set `kubeconfig`, or `networks` to a directory of NetworkAttachmentDefinitions"
    )]
    NoSource {
        /// What needs one.
        what: String,
    },
    /// The source.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// Somebody else's pod.
    #[error("pod {namespace}/{name} is not known to the cluster: nothing is attached for it")]
    UnknownPod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// An earlier pod of the same name.
    #[error(
        "pod {pod} has UID {found} in the cluster, and the runtime attaches UID {expected}: it was replaced meanwhile"
    )]
    Uid {
        /// The pod.
        pod: String,
        /// By the runtime.
        expected: String,
        /// By the cluster.
        found: String,
    },
    /// Isolation.
    #[error(
        "namespace isolation enabled, annotation violates permission, pod is in namespace {pod} but refers to target namespace {nad}: use a network of the pod's own namespace, or add {nad} to `globalNamespaces`"
    )]
    Isolated {
        /// The pod's namespace.
        pod: String,
        /// The NAD's.
        nad: String,
    },
    /// A device that nobody names.
    #[error(
        "network `{network}` wants a device of `{resource}` that pod {pod} does not have, or has in use for another network; {found}: add one to the `resources` of a container, or name a device by `deviceID` in the annotation"
    )]
    NoDevice {
        /// The network.
        network: String,
        /// The resource.
        resource: String,
        /// Namespace, name and UID.
        pod: String,
        /// What it has.
        found: String,
    },
    /// The kubelet.
    #[error(transparent)]
    Kubelet(#[from] KubeletError),
    /// Two interfaces of one name.
    #[error(
        "interface `{ifname}` is asked for by `{first}` and by `{second}`: give one of them another `interface`"
    )]
    SameName {
        /// The name.
        ifname: String,
        /// The network that has it.
        first: String,
        /// The network that wants it too.
        second: String,
    },
    /// A wish that no plugin hears.
    #[error(
        "the pod asks network `{network}` for `{wish}`, and none of its plugins declares that capability: add it to `capabilities`, or ask for less"
    )]
    Unheard {
        /// The network.
        network: String,
        /// The capability.
        wish: &'static str,
    },
    /// Default routes.
    #[error(transparent)]
    Defaults(#[from] SeveralDefaults),
    /// The first network is not ready.
    #[error("{} does not exist: the pod's first network is not ready yet", path.display())]
    NotReady {
        /// `readinessindicatorfile`
        path: PathBuf,
    },
    /// The time is over.
    #[error("no time is left for the plugin {plugin}")]
    Late {
        /// The plugin.
        plugin: String,
    },
    /// An executed plugin.
    #[error(transparent)]
    Delegate(#[from] DelegateError),
    /// A plugin that shares its master's address.
    #[error(
        "{kind} on `{master}`: its frames have the master's hardware address, so nothing can be enforced on them: use macvlan there"
    )]
    SharedAddress {
        /// The plugin.
        kind: String,
        /// The master.
        master: String,
    },
    /// One network of the pod.
    #[error("[{pod}:{network}]: error {doing} container {preposition} network \"{network}\"")]
    Network {
        /// Namespace, name and UID.
        pod: String,
        /// The network.
        network: String,
        /// `adding` and so on.
        doing: &'static str,
        /// `to` or `from`
        preposition: &'static str,
        /// Why.
        source: Box<PluginError>,
    },
    /// Nobody knows what was made.
    #[error("{} is torn, and Multus's cache has nothing of it: end what is left by hand, and remove the file", path.display())]
    Torn {
        /// The record.
        path: PathBuf,
    },
    /// Several networks that could not be ended.
    #[error("errors: {}", failures.join(" / "))]
    Del {
        /// Each with its causes.
        failures: Vec<String>,
        /// Code of the first.
        code: u32,
    },
}

impl MetaError {
    /// Code of the CNI error object: that of the plugin where one failed.
    pub fn cni_code(&self) -> u32 {
        match self {
            Self::Depth { .. }
            | Self::MetaInside { .. }
            | Self::NoConf { .. }
            | Self::NoConfig { .. }
            | Self::NoSource { .. }
            | Self::NoDevice { .. }
            | Self::SameName { .. }
            | Self::Unheard { .. }
            | Self::Defaults(_) => code::CONF,
            Self::Isolated { .. } | Self::SharedAddress { .. } => 105,
            Self::UnknownPod { .. } | Self::Uid { .. } => 141,
            Self::Io { .. } | Self::Torn { .. } => code::IO,
            Self::Conf { source, .. } => source.cni_code(),
            Self::Cluster(error) => error.cni_code(),
            Self::Kubelet(error) => error.cni_code(),
            Self::NotReady { .. } | Self::Late { .. } => code::TRY_AGAIN,
            Self::Delegate(error) => error.cni_code(),
            Self::Network { source, .. } => source.cni_code(),
            Self::Del { code, .. } => *code,
        }
    }

    /// Whether asking for the same again can help.
    pub(super) fn is_worth_retrying(&self) -> bool {
        match self {
            Self::Delegate(error) => error.is_worth_retrying(),
            Self::Conf { .. } | Self::NoConf { .. } | Self::NoConfig { .. } | Self::MetaInside { .. } => {
                false
            }
            Self::Cluster(error) => error.cni_code() == code::TRY_AGAIN,
            _ => true,
        }
    }
}
