//! `netpath agent`

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::Context;

use super::view;
use crate::{
    agent::{self, Options},
    root::Root,
};

/// Arguments of `netpath agent`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Name of this node in the cluster; else its host name.
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    node: Option<String>,
    /// Where metrics and health are served, over HTTP without credentials.
    #[arg(long, default_value = "0.0.0.0:9639", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// How the Kubernetes API is reached; else as a pod reaches it.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// A directory of manifests that stands in for the Kubernetes API, as the plugin's `networks`.
    #[arg(long, value_name = "DIR", conflicts_with = "kubeconfig")]
    networks: Option<PathBuf>,
    /// Namespace of the ConfigMap `masters`.
    #[arg(long, env = "NAMESPACE", default_value = "netpath", value_name = "NAME")]
    namespace: String,
    /// The plugin's kubeconfig, by which events and network-status are written.
    #[arg(long, value_name = "FILE", default_value = "/etc/cni/net.d/netpath.d/netpath.kubeconfig")]
    plugin_kubeconfig: PathBuf,
}

pub(super) fn run(root: &Root, args: Args) -> anyhow::Result<ExitCode> {
    view::check_rights(root)?;
    let host = || {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname");
        name.context("cannot read the host name: name the node by --node")
    };
    let node = args.node.map_or_else(|| host().map(|name| name.trim().to_owned()), Ok)?;
    let plugin_kubeconfig = root.join(&args.plugin_kubeconfig.to_string_lossy());
    let options = Options {
        node,
        listen: args.listen,
        kubeconfig: args.kubeconfig,
        networks: args.networks.clone(),
        namespace: args.namespace,
        plugin_kubeconfig: args.networks.is_none().then_some(plugin_kubeconfig),
    };
    agent::run(root, options)?;
    Ok(ExitCode::SUCCESS)
}
