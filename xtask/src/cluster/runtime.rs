//! containerd on a node, as a plain process, and an image that comes from no registry.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::machine::{Machine, eventually, write};
use crate::{
    apt::Apt,
    process::{self, find_program},
    workspace,
};

/// Where a node's runtime listens, on the node.
pub(crate) const SOCKET: &str = "/run/containerd/containerd.sock";

/// The image of the pods' sandboxes, and of containers: busybox, static.
pub(crate) const IMAGE: &str = "localhost/busybox:1";

/// The image that the lab's pod names; here it is the same busybox.
const LAB_IMAGE: &str = "docker.io/nicolaka/netshoot:latest";

/// Where a newer containerd is in Debian.
const NEWER_SUITE: &str = "sid";

/// A set of containerd's programs.
#[derive(Clone, Debug)]
pub(crate) struct Containerd(PathBuf);

impl Containerd {
    /// The one in this directory, or the distribution's.
    pub(crate) fn of(dir: Option<&Path>) -> Result<Self> {
        match dir {
            Some(dir) => Ok(Self(dir.to_owned())),
            None => {
                let found =
                    find_program("containerd").context("containerd is missing: `cargo xtask setup`")?;
                Ok(Self(found.parent().context("a program lies in a directory")?.to_owned()))
            }
        }
    }

    fn program(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }

    /// Starts it on a node and waits until it answers.
    pub(crate) fn start(&self, node: &Machine) -> Result<()> {
        write(&node.path("/etc/containerd/config.toml"), CONFIG)?;
        // The shim is looked for on PATH first.
        let path = format!("PATH={}:/usr/sbin:/usr/bin:/sbin:/bin", self.0.display());
        let words = ["env", &path, &self.program("containerd"), "--config", "/etc/containerd/config.toml"];
        node.start("containerd", &words.map(str::to_owned))?;
        eventually(&format!("containerd of {} answers", node.name), || {
            Ok(process::output(&mut self.ctr(node, &["version"])).is_ok().then_some(()))
        })
    }

    /// Gives a node the image.
    pub(crate) fn import(&self, node: &Machine, image: &Path) -> Result<()> {
        let image = image.to_string_lossy();
        process::output(&mut self.ctr(node, &["--namespace", "k8s.io", "images", "import", &image])).map(drop)
    }

    fn ctr(&self, node: &Machine, words: &[&str]) -> Command {
        let mut ctr = node.command(self.program("ctr"));
        ctr.args(["--address", SOCKET]).args(words);
        ctr
    }
}

/// Of version 2, which containerd 1.6 and 2.1 read.
const CONFIG: &str = r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"

[grpc]
address = "/run/containerd/containerd.sock"

[ttrpc]
address = "/run/containerd/containerd.sock.ttrpc"

[plugins."io.containerd.internal.v1.opt"]
path = "/var/lib/containerd/opt"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/busybox:1"
disable_apparmor = true
restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/opt/cni/bin"
conf_dir = "/etc/cni/net.d"
max_conf_num = 1
"#;

/// Makes the image in `dir`, in the format of `docker save`, under both names.
pub(crate) fn image(dir: &Path) -> Result<PathBuf> {
    let archive = dir.join("image.tar");
    let (root, parts) = (dir.join("image/root"), dir.join("image/parts"));
    for dir in [root.join("bin"), root.join("tmp"), root.join("etc"), parts.clone()] {
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    let busybox = find_program("busybox").context("busybox is missing: `cargo xtask setup`")?;
    fs::copy(&busybox, root.join("bin/busybox"))
        .with_context(|| format!("cannot copy {}", busybox.display()))?;
    for applet in process::output(Command::new(&busybox).arg("--list"))?.lines() {
        let link = root.join("bin").join(applet);
        if !link.exists() {
            std::os::unix::fs::symlink("busybox", &link)
                .with_context(|| format!("cannot link {}", link.display()))?;
        }
    }
    let layer = parts.join("layer.tar");
    let tar = |archive: &Path, from: &Path| {
        let mut tar = Command::new("tar");
        tar.args(["--create", "--numeric-owner", "--owner=0", "--group=0", "--file"]).arg(archive);
        process::output(tar.arg("--directory").arg(from).arg("."))
    };
    tar(&layer, &root)?;
    let sum = process::output(Command::new("sha256sum").arg(&layer))?;
    let sum = sum.split_whitespace().next().context("sha256sum printed nothing")?.to_owned();
    let config = json!({
        "architecture": architecture(), "os": "linux",
        // As the first process of a pod: it reaps what others leave, and ends when it is asked to.
        "config": {"Entrypoint": ["sh", "-c", "trap 'exit 0' TERM INT; while :; do sleep 3600 & wait; done"],
                   "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{sum}")]},
    });
    write(&parts.join("config.json"), &config.to_string())?;
    let manifest =
        json!([{"Config": "config.json", "RepoTags": [IMAGE, LAB_IMAGE], "Layers": ["layer.tar"]}]);
    write(&parts.join("manifest.json"), &manifest.to_string())?;
    tar(&archive, &parts)?;
    let rest = dir.join("image");
    fs::remove_dir_all(&rest).with_context(|| format!("cannot remove {}", rest.display()))?;
    Ok(archive)
}

/// The architecture by Go's name.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Directory of the programs of a containerd that speaks CNI 1.1, downloaded once.
///
/// An error where the suite cannot be reached, or where what it has now does not run here.
pub(crate) fn newer() -> Result<PathBuf> {
    let cache = workspace::cache()?;
    let dir = cache.join(format!("containerd-{NEWER_SUITE}"));
    let programs = dir.join("usr/bin");
    if !programs.join("containerd").exists() {
        let draft = cache.join(format!("containerd-{NEWER_SUITE}-{}", std::process::id()));
        let apt = Apt::of_suite("Debian", NEWER_SUITE, &cache)?;
        apt.unpack(&["containerd"], &draft)?;
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
        fs::rename(&draft, &dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    process::output(Command::new(programs.join("containerd")).arg("--version"))?;
    Ok(programs)
}
