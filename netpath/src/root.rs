//! The one setting that every path hangs off.

use std::path::{Path, PathBuf};

use netpath_ebpf::abi::ABI_VERSION;

/// Environment variable that sets the root; the option `--root` of the tool wins over it.
pub const ENV: &str = "NETPATH_ROOT";

/// The directory below which netpath keeps everything: `/` on a node.
///
/// Labs and tests give each "node" on one machine a root of its own. A root is never mixed with another:
/// a BPF file system is mounted at its `sys/fs/bpf`, and state, locks and configuration lie beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Root {
    /// A root at `path`, which must be absolute for children with another working directory to agree on.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The root directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// `path` below the root, whether it begins with a slash or not.
    pub fn join(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    /// Where the BPF file system is mounted.
    pub fn bpffs(&self) -> PathBuf {
        self.join("sys/fs/bpf")
    }

    /// Says which file system is meant by that, since not all see the same.
    pub fn bpffs_mark(&self) -> PathBuf {
        self.join("run/netpath/bpffs")
    }

    /// Directory of the pins of this ABI version.
    pub fn pins(&self) -> PathBuf {
        self.bpffs().join(format!("netpath/v{ABI_VERSION}"))
    }

    /// One record per attachment.
    pub fn state(&self) -> PathBuf {
        self.join("var/lib/netpath/v1")
    }

    /// Taken for milliseconds around every change of maps, pins and records.
    pub fn lock(&self) -> PathBuf {
        self.join("run/netpath/lock")
    }

    /// Held by the one consumer of drop events.
    pub fn events_lock(&self) -> PathBuf {
        self.join("run/netpath/events.lock")
    }

    /// Held by the node agent as long as it runs: what may wait is then left to it.
    pub fn agent_lock(&self) -> PathBuf {
        self.join("run/netpath/agent.lock")
    }

    /// The administrator's word on masters.
    pub fn masters(&self) -> PathBuf {
        self.join("etc/cni/net.d/netpath.d/masters.json")
    }

    /// While this file exists nothing is attached.
    pub fn disable(&self) -> PathBuf {
        self.join("etc/netpath/disable")
    }

    /// Written by whoever uninstalls netpath while an agent could bring it back: it counts as [`Self::disable`].
    pub fn uninstalled(&self) -> PathBuf {
        self.join("run/netpath/uninstalled")
    }

    /// The file, if there is one, that says that nothing is to be attached.
    pub fn disabled(&self) -> Option<PathBuf> {
        [self.disable(), self.uninstalled()].into_iter().find(|path| path.exists())
    }

    /// What was installed on this node, so that it can be taken back.
    pub fn installed(&self) -> PathBuf {
        self.join("var/lib/netpath/installed.json")
    }

    /// Sizes of the maps.
    pub fn settings(&self) -> PathBuf {
        self.join("etc/netpath/settings.json")
    }

    /// Default data directory of the `host-local` IPAM.
    pub fn host_local(&self) -> PathBuf {
        self.join("var/lib/cni/networks")
    }

    /// Multus's caches.
    pub fn multus_cache(&self) -> PathBuf {
        self.join("var/lib/cni/multus")
    }
}

impl Default for Root {
    fn default() -> Self {
        Self::new("/")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_hangs_off_the_root() {
        let root = Root::new("/tmp/node1");
        for path in [
            root.bpffs(),
            root.bpffs_mark(),
            root.pins(),
            root.state(),
            root.lock(),
            root.events_lock(),
            root.agent_lock(),
            root.masters(),
            root.disable(),
            root.uninstalled(),
            root.installed(),
            root.settings(),
            root.host_local(),
            root.multus_cache(),
            root.join("/etc"),
        ] {
            assert!(path.starts_with("/tmp/node1"), "{}", path.display());
        }
        assert_eq!(Root::default().pins(), Path::new("/sys/fs/bpf/netpath/v4"));
    }
}
