//! netpath on a node, as an administrator installs it: binary, configuration, and the network it stands before.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    machine::{Machine, write},
    network,
};

/// Where Debian's package `containernetworking-plugins` puts the standard plugins, and where others do.
const STANDARD: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

const CONFIGURATIONS: &str = "/etc/cni/net.d";

/// The configuration of the cluster network, which would serve alone as well.
pub(crate) const CLUSTER_NETWORK: &str = "/etc/cni/net.d/10-cbr0.conflist";

/// Credentials for the API server.
pub(crate) const KUBECONFIG: &str = "/etc/cni/net.d/netpath.d/netpath.kubeconfig";

/// Manifests that stand in for the API.
pub(crate) const NETWORKS: &str = "/etc/netpath/networks";

/// Where networks are defined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Api,
    Directory,
}

/// Puts everything on a node before its runtime looks.
pub(crate) fn install(node: &Machine, number: u8, netpath: &Path, source: Source) -> Result<()> {
    let bin = node.path("/opt/cni/bin");
    for dir in [&bin, &node.path(NETWORKS), &node.path("/etc/cni/net.d/netpath.d")] {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    let standard = STANDARD.iter().find(|dir| Path::new(dir).join("bridge").exists());
    let standard = standard.context("the standard plugins are missing: `cargo xtask setup`")?;
    for entry in fs::read_dir(standard).with_context(|| format!("cannot list {standard}"))? {
        let plugin = entry.with_context(|| format!("cannot list {standard}"))?.path();
        let copy = bin.join(plugin.file_name().unwrap_or_default());
        fs::copy(&plugin, &copy).with_context(|| format!("cannot copy {}", plugin.display()))?;
    }
    // By a rename: after a reboot the old one may be running.
    let (draft, binary) = (bin.join(".netpath"), bin.join("netpath"));
    fs::copy(netpath, &draft).with_context(|| format!("cannot copy {}", netpath.display()))?;
    fs::rename(&draft, &binary).with_context(|| format!("cannot create {}", binary.display()))?;
    configure(node, CLUSTER_NETWORK, &cluster_network(number))?;
    configure(node, &format!("{CONFIGURATIONS}/00-netpath.conflist"), &meta(source))
}

/// By a rename in the same directory: a runtime takes note of that, and of no half-written file.
fn configure(node: &Machine, path: &str, configuration: &Value) -> Result<()> {
    let path = node.path(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let draft = path.with_file_name(format!(".{name}"));
    write(&draft, &format!("{configuration:#}\n"))?;
    fs::rename(&draft, &path).with_context(|| format!("cannot create {}", path.display()))
}

/// A bridge on each node; what leaves it is routed.
fn cluster_network(number: u8) -> Value {
    json!({"cniVersion": "1.0.0", "name": "cbr0", "plugins": [
        {"type": "bridge", "bridge": "cbr0", "isGateway": true, "hairpinMode": true,
         "ipam": {"type": "host-local", "ranges": [[{"subnet": network::pods(number)}]],
                  "routes": [{"dst": "0.0.0.0/0"}]}},
        {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}]})
}

fn meta(source: Source) -> Value {
    let mut plugin = json!({"type": "netpath", "clusterNetwork": CLUSTER_NETWORK, "capabilities":
        {"portMappings": true, "bandwidth": true, "io.kubernetes.cri.pod-annotations": true}});
    match source {
        Source::Api => plugin["kubeconfig"] = json!(KUBECONFIG),
        Source::Directory => plugin["networks"] = json!(NETWORKS),
    }
    json!({"cniVersion": "1.0.0", "cniVersions": ["0.4.0", "1.0.0", "1.1.0"], "name": "netpath", "plugins": [plugin]})
}
