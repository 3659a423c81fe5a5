//! `cargo xtask cluster`: a Kubernetes of real parts on this machine, with netpath as its CNI plugin.
//!
//! Machines are processes with namespaces of their own: a switch, a gateway, a control plane, two nodes, cabled as in
//! the lab. Each node has its own disk, /run, BPF file system and runtime. Nothing of the machine that hosts them is touched, and
//! what runs in one ends with it. Tests stand up the same, or nodes with a runtime and without Kubernetes, by the
//! same commands.

mod cgroup;
mod cni;
mod control_plane;
mod kubernetes;
mod machine;
mod network;
mod runtime;
pub(crate) mod stage;

use std::{
    collections::BTreeMap,
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    iter,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};

use self::{
    cni::Source,
    control_plane::ControlPlane,
    machine::{Machine, write},
    runtime::Containerd,
};
use crate::{
    build::{self, Profile},
    image,
    process::{self, say},
    setup, workspace,
};

/// The nodes, with the number that ends their addresses.
const NODES: [(&str, u8); 2] = [("worker01", 101), ("worker02", 102)];

/// What to do with a cluster.
#[derive(Subcommand)]
pub(crate) enum Action {
    /// Build Kubernetes into the cache, unless it is there.
    Build,
    /// Set up, build, stand the cluster up, and say how it is used.
    Up(Up),
    /// Remove a cluster and all that it made, whatever state it is in.
    Down {
        #[command(flatten)]
        place: Place,
    },
    /// Kill a program of a machine: `stop master01 kube-apiserver`, `stop worker01 kubelet`.
    Stop {
        machine: String,
        program: String,
        #[command(flatten)]
        place: Place,
    },
    /// Start it again, and wait until it answers.
    Start {
        machine: String,
        program: String,
        #[command(flatten)]
        place: Place,
    },
    /// Switch a node off as a power failure does: its disk alone stays.
    PowerOff {
        machine: String,
        #[command(flatten)]
        place: Place,
    },
    /// Switch a node on again.
    Boot {
        machine: String,
        #[command(flatten)]
        place: Place,
    },
}

/// Where a cluster lies.
#[derive(Args)]
pub(crate) struct Place {
    /// Directory of the cluster; more than one may run at the same time.
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// How a cluster is stood up.
#[derive(Args)]
pub(crate) struct Up {
    #[command(flatten)]
    place: Place,
    /// One node with a runtime and netpath, and no Kubernetes: networks are manifests in a directory.
    #[arg(long)]
    runtime_only: bool,
    /// This netpath, and no set-up; otherwise the release binary is built.
    #[arg(long)]
    netpath: Option<PathBuf>,
    /// An archive of an image that every node gets, as `cargo xtask image` makes; of the release binary that is built here
    /// it is made anyway.
    #[arg(long)]
    image: Option<PathBuf>,
    /// Directory of another containerd than the distribution's.
    #[arg(long)]
    containerd: Option<PathBuf>,
}

/// What a cluster is stood up of.
pub(crate) struct Parts<'a> {
    pub(crate) netpath: &'a Path,
    /// Archive of its image.
    pub(crate) image: Option<&'a Path>,
    /// Kubernetes' programs; without them there are nodes alone.
    pub(crate) kubernetes: Option<&'a Path>,
    /// Directory of another containerd than the distribution's.
    pub(crate) containerd: Option<&'a Path>,
}

impl<'a> Parts<'a> {
    /// Nothing but a binary.
    pub(crate) fn of(netpath: &'a Path) -> Self {
        Self { netpath, image: None, kubernetes: None, containerd: None }
    }
}

/// A cluster, as `environment.json` in its directory says.
#[derive(Serialize, Deserialize)]
struct Cluster {
    dir: PathBuf,
    /// Name of its cgroups.
    cgroup: String,
    netpath: PathBuf,
    containerd: Option<PathBuf>,
    /// Archives of images that every node gets.
    images: Vec<PathBuf>,
    /// Kubernetes' programs, where there is more than a runtime.
    kubernetes: Option<PathBuf>,
    /// Command that is `kubectl`.
    kubectl: Option<PathBuf>,
    machines: BTreeMap<String, Machine>,
}

/// Does it.
pub(crate) fn run(action: Action) -> Result<()> {
    if !process::is_root()? {
        bail!("a cluster is made of namespaces, mounts and cgroups: run as root");
    }
    match action {
        Action::Build => {
            setup::run(setup::Mode::Install)?;
            say(kubernetes::get()?.display());
            Ok(())
        }
        Action::Up(options) => up(options),
        Action::Down { place } => down(&place.dir()?),
        Action::Stop { machine, program, place } => stop(&place.dir()?, &machine, &program),
        Action::Start { machine, program, place } => Cluster::read(&place.dir()?)?.start(&machine, &program),
        Action::PowerOff { machine, place } => Cluster::read(&place.dir()?)?.machine(&machine)?.power_off(),
        Action::Boot { machine, place } => Cluster::read(&place.dir()?)?.boot_again(&machine),
    }
}

fn up(options: Up) -> Result<()> {
    let found = |path: PathBuf| fs::canonicalize(&path).with_context(|| format!("no {}", path.display()));
    let mut image = options.image.map(found).transpose()?;
    let netpath = match options.netpath {
        Some(netpath) => found(netpath)?,
        None => {
            setup::run(setup::Mode::Install)?;
            let netpath = build::run(Profile::Release)?;
            if image.is_none() {
                image = Some(image::archive(&netpath, image::NAME)?.archive);
            }
            netpath
        }
    };
    let programs = if options.runtime_only { None } else { Some(kubernetes::get()?) };
    let parts = Parts {
        netpath: &netpath,
        image: image.as_deref(),
        kubernetes: programs.as_deref(),
        containerd: options.containerd.as_deref(),
    };
    stand_up(&options.place.dir()?, &parts)
}

/// Stands up nodes and, where there is one, a cluster; removes all of it again where that fails.
pub(crate) fn stand_up(dir: &Path, parts: &Parts<'_>) -> Result<()> {
    down(dir)?;
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let mut cluster = Cluster {
        dir: dir.to_owned(),
        cgroup: group(dir),
        netpath: parts.netpath.to_owned(),
        containerd: parts.containerd.map(Path::to_owned),
        images: iter::once(runtime::image(dir)?).chain(parts.image.map(Path::to_owned)).collect(),
        kubernetes: parts.kubernetes.map(Path::to_owned),
        kubectl: None,
        machines: BTreeMap::new(),
    };
    match cluster.boot_all() {
        Ok(()) => {
            cluster.explain();
            Ok(())
        }
        Err(error) => {
            let logs = cluster.last_words();
            match down(dir) {
                Ok(()) => Err(error.context(logs)),
                Err(down) => Err(error.context(logs).context(format!("and it cannot be removed: {down:#}"))),
            }
        }
    }
}

/// Removes a cluster, also what is left of one whose making was interrupted.
pub(crate) fn down(dir: &Path) -> Result<()> {
    if dir.join(Cluster::FILE).exists() {
        for machine in Cluster::read(dir)?.machines.values() {
            machine.power_off()?;
        }
    }
    cgroup::remove(&group(dir))?;
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Kills a program of a machine.
fn stop(dir: &Path, machine: &str, program: &str) -> Result<()> {
    Cluster::read(dir)?.machine(machine)?.kill(program)
}

/// Where a cluster of the tests lies: each checkout has its own.
pub(crate) fn place(name: &str) -> Result<PathBuf> {
    Ok(workspace::target_directory()?.join("cluster").join(name))
}

impl Place {
    fn dir(&self) -> Result<PathBuf> {
        match &self.dir {
            Some(dir) => std::path::absolute(dir).with_context(|| format!("{} is no path", dir.display())),
            None => place("up"),
        }
    }
}

/// Name of the cgroups of the cluster in this directory.
fn group(dir: &Path) -> String {
    let mut hasher = DefaultHasher::new();
    dir.hash(&mut hasher);
    format!("netpath-{:012x}", hasher.finish() & 0xffff_ffff_ffff)
}

impl Cluster {
    const FILE: &str = "environment.json";
    const SWITCH: &str = "switch";
    const GATEWAY: &str = "gateway";
    const CONTROL_PLANE: &str = "master01";

    fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(Self::FILE);
        let text = fs::read_to_string(&path)
            .with_context(|| format!("no cluster is up: cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is not what was written", path.display()))
    }

    /// Written after each machine: what is not in it cannot be removed.
    fn save(&self) -> Result<()> {
        let (path, draft) = (self.dir.join(Self::FILE), self.dir.join(".environment.json"));
        write(&draft, &serde_json::to_string_pretty(self).context("a cluster is JSON")?)?;
        fs::rename(&draft, &path).with_context(|| format!("cannot create {}", path.display()))
    }

    fn machine(&self, name: &str) -> Result<&Machine> {
        let names = || self.machines.keys().cloned().collect::<Vec<_>>().join(", ");
        self.machines.get(name).with_context(|| format!("no machine `{name}`: there are {}", names()))
    }

    fn boot(&mut self, name: &str) -> Result<Machine> {
        let machine = Machine::boot(name, &self.dir.join(name))?;
        self.machines.insert(name.to_owned(), machine.clone());
        self.save()?;
        Ok(machine)
    }

    fn nodes(&self) -> &'static [(&'static str, u8)] {
        if self.kubernetes.is_some() { &NODES } else { &NODES[..1] }
    }

    fn control_plane(&self) -> Result<Option<ControlPlane<'_>>> {
        let Some(programs) = &self.kubernetes else { return Ok(None) };
        Ok(Some(ControlPlane { dir: &self.dir, programs, machine: self.machine(Self::CONTROL_PLANE)? }))
    }

    fn boot_all(&mut self) -> Result<()> {
        let switch = self.boot(Self::SWITCH)?;
        network::switch(&switch)?;
        let gateway = self.boot(Self::GATEWAY)?;
        network::gateway(&switch, &gateway)?;
        if self.kubernetes.is_some() {
            let others = self.nodes().iter().map(|(_, number)| *number).collect::<Vec<_>>();
            let machine = self.boot(Self::CONTROL_PLANE)?;
            network::join(&switch, &gateway, &machine, network::CONTROL_PLANE, &others)?;
        }
        let names: Vec<String> = self.nodes().iter().map(|(name, _)| (*name).to_owned()).collect();
        if let Some(control_plane) = self.control_plane()? {
            control_plane.start(&names)?;
        }
        for (name, number) in self.nodes() {
            self.start_node(name, *number)?;
        }
        if let Some(control_plane) = self.control_plane()? {
            let nodes: Vec<Machine> =
                names.iter().map(|name| self.machine(name).cloned()).collect::<Result<_>>()?;
            control_plane.admit(&workspace::root()?.join("deploy"), &nodes)?;
            for (name, number) in self.nodes() {
                control_plane.start_kubelet(self.machine(name)?, *number, &self.node_group(name))?;
            }
            for name in &names {
                control_plane.wait_for(name, "")?;
            }
            let kubectl = self.dir.join("kubectl");
            write(&kubectl, &self.kubectl_script(control_plane.machine, control_plane.programs))?;
            let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            fs::set_permissions(&kubectl, executable).context("cannot make kubectl executable")?;
            self.kubectl = Some(kubectl);
        }
        self.save()
    }

    /// Boots a node and starts its runtime.
    fn start_node(&mut self, name: &str, number: u8) -> Result<()> {
        cgroup::make(&self.cgroup, name)?;
        let node = self.boot(name)?;
        let (switch, gateway) = (self.machine(Self::SWITCH)?, self.machine(Self::GATEWAY)?);
        let others: Vec<u8> =
            self.nodes().iter().filter(|(other, _)| *other != name).map(|(_, number)| *number).collect();
        network::join(switch, gateway, &node, number, &others)?;
        let source = if self.kubernetes.is_some() { Source::Api } else { Source::Directory };
        cni::install(&node, number, &self.netpath, source)?;
        let containerd = Containerd::of(self.containerd.as_deref())?;
        containerd.start(&node)?;
        self.images.iter().try_for_each(|image| containerd.import(&node, image))
    }

    fn boot_again(&mut self, name: &str) -> Result<()> {
        let number = self.number(name)?;
        self.machine(name)?.power_off()?;
        self.start_node(name, number)?;
        let Some(control_plane) = self.control_plane()? else { return Ok(()) };
        let before = control_plane.heartbeat(name);
        control_plane.start_kubelet(self.machine(name)?, number, &self.node_group(name))?;
        control_plane.wait_for(name, &before)
    }

    fn start(&self, machine: &str, program: &str) -> Result<()> {
        let node = self.machine(machine)?;
        match (program, self.control_plane()?) {
            ("containerd", _) => Containerd::of(self.containerd.as_deref())?.start(node),
            ("kube-apiserver", Some(control_plane)) => control_plane.start_api_server(),
            ("kubelet", Some(control_plane)) => {
                let before = control_plane.heartbeat(machine);
                control_plane.start_kubelet(node, self.number(machine)?, &self.node_group(machine))?;
                control_plane.wait_for(machine, &before)
            }
            _ => bail!("`{program}` of {machine} is none of containerd, kubelet, kube-apiserver"),
        }
    }

    fn number(&self, name: &str) -> Result<u8> {
        let found = self.nodes().iter().find(|(node, _)| *node == name);
        Ok(found.with_context(|| format!("{name} is no node"))?.1)
    }

    fn node_group(&self, name: &str) -> String {
        format!("/{}/{name}", self.cgroup)
    }

    fn kubectl_script(&self, machine: &Machine, programs: &Path) -> String {
        format!(
            "#!/bin/sh\nexec nsenter --net=/proc/{}/ns/net {} --kubeconfig {} \"$@\"\n",
            machine.init,
            programs.join("kubectl").display(),
            self.dir.join("admin.kubeconfig").display()
        )
    }

    /// What a person has to know.
    fn explain(&self) {
        for machine in self.machines.values() {
            let dir = self.dir.join(&machine.name);
            say(format_args!(
                "{}: nsenter --target={} --all; logs in {}",
                machine.name,
                machine.init,
                dir.display()
            ));
        }
        if let Some(kubectl) = &self.kubectl {
            say(format_args!("\n    {} get nodes", kubectl.display()));
        }
    }

    /// The ends of the logs, for an error.
    fn last_words(&self) -> String {
        let mut words = String::from("the cluster was not to be stood up; what its parts said last:");
        for machine in self.machines.values() {
            for program in [
                "etcd",
                "kube-apiserver",
                "kube-controller-manager",
                "kube-scheduler",
                "containerd",
                "kubelet",
            ] {
                let text = fs::read_to_string(machine.log(program)).unwrap_or_default();
                for line in text.lines().rev().take(5).collect::<Vec<_>>().into_iter().rev() {
                    words.push_str(&format!("\n  {} {program}: {line}", machine.name));
                }
            }
        }
        words
    }
}
