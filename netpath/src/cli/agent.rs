//! `netpath agent`

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::Context;

use super::view;
use crate::{
    agent::{self, Options},
    install::Site,
    root::Root,
    spec::{install::Source, meta::BIN_DIR},
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
    /// Service account whose tokens the plugin is given, in --namespace.
    #[arg(long, default_value = "netpath", value_name = "NAME")]
    account: String,
    /// Install the plugin, its configuration and its credentials on this node, and keep them there.
    #[arg(long)]
    install: bool,
    /// Directory of the runtime's network configurations.
    #[arg(long, default_value = "/etc/cni/net.d", value_name = "DIR")]
    cni_conf_dir: PathBuf,
    /// Directory of its plugins.
    #[arg(long, default_value = BIN_DIR, value_name = "DIR")]
    cni_bin_dir: PathBuf,
    /// Do not ask the runtime whether it makes networks by what was installed: there is none with CRI.
    #[arg(long, requires = "install")]
    no_runtime: bool,
    /// Configuration of the cluster network; else that which Multus stood before, or the first in --cni-conf-dir.
    #[arg(long, value_name = "FILE")]
    cluster_network: Option<PathBuf>,
}

pub(super) fn run(root: &Root, args: Args) -> anyhow::Result<ExitCode> {
    view::check_rights(root)?;
    let host = || {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname");
        name.context("cannot read the host name: name the node by --node")
    };
    let node = args.node.map_or_else(|| host().map(|name| name.trim().to_owned()), Ok)?;
    let site = Site {
        conf_dir: args.cni_conf_dir,
        bin_dir: args.cni_bin_dir,
        cluster_network: args.cluster_network,
        source: match &args.networks {
            Some(directory) => Source::Directory(directory.clone()),
            None => Source::Api(args.plugin_kubeconfig.clone()),
        },
        node: node.clone(),
    };
    let plugin_kubeconfig = root.join(&args.plugin_kubeconfig.to_string_lossy());
    let options = Options {
        node,
        listen: args.listen,
        kubeconfig: args.kubeconfig,
        networks: args.networks.clone(),
        namespace: args.namespace,
        plugin_kubeconfig: args.networks.is_none().then_some(plugin_kubeconfig),
        install: args.install.then_some(site),
        asks_runtimes: !args.no_runtime,
        account: args.account,
    };
    agent::run(root, options)?;
    Ok(ExitCode::SUCCESS)
}
