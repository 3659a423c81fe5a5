//! The eBPF data path: maps, programs, pins and events.

pub mod attach;
pub mod bases;
mod batch;
mod beside;
pub mod bpffs;
mod cast;
pub mod clsact;
pub mod counters;
mod endpoints;
pub mod events;
mod fill;
pub mod identity;
mod links;
pub mod loader;
pub mod maps;
pub mod object;
pub mod pins;
pub mod rules;
pub mod selftest;
pub mod skb;
pub mod support;
pub mod swap;
pub mod sys;
pub mod told;
pub mod tree;
pub mod trees;
mod types;
pub mod zones;

use std::{io, path::PathBuf};

use aya::{EbpfError, programs::ProgramError};
use netpath_ebpf::abi::ABI_VERSION;

/// The points of a master that programs are attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hook {
    /// TC ingress: what the master receives, and what pods of one master send each other.
    Ingress,
    /// TC egress: everything that leaves by the master.
    Egress,
    /// Native XDP: what comes from the wire, before the kernel has made a packet of it.
    Xdp,
}

impl Hook {
    /// All hooks, in the order they are attached: nothing is dropped before it can be counted on the way in.
    pub const ALL: [Self; 3] = [Self::Ingress, Self::Egress, Self::Xdp];

    /// Name of the program, of its pin and in output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
            Self::Xdp => "xdp",
        }
    }
}

/// How a TC program is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TcHook {
    /// TCX where the kernel has it (Linux 6.6), else clsact.
    #[default]
    Auto,
    /// TCX or failure.
    Tcx,
    /// A clsact qdisc with a direct-action filter, on every kernel.
    Clsact,
}

/// Why the data path could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// This binary was built without the programs.
    #[error(
        "this netpath was built without its eBPF programs: run `cargo xtask build-ebpf` and build it again"
    )]
    NoObject,
    /// An administrator has switched the data path off.
    #[error("{} exists, so nothing is attached: remove the file to switch netpath on again", path.display())]
    Disabled {
        /// The file.
        path: PathBuf,
    },
    /// The kernel is older than what the programs are tested on.
    #[error(
        "this node runs Linux {found} and masters are policed on {} or newer: {missing}",
        support::OLDEST
    )]
    Kernel {
        /// What it says of itself.
        found: String,
        /// What netpath needs and it has not.
        missing: String,
    },
    /// The kernel's programs may interrupt each other.
    #[error(
        "this node runs Linux {found}, which is built with PREEMPT_RT: masters are not policed there, since programs on one CPU \
         may interrupt each other; networks without a zone work"
    )]
    Preemptible {
        /// What it says of itself.
        found: String,
    },
    /// The kernel does not say which it is.
    #[error("cannot read which kernel this is from {}", path.display())]
    Release {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No BPF file system, and none could be mounted.
    #[error("cannot mount the BPF file system at {}", path.display())]
    Bpffs {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something else is where the BPF file system should be.
    #[error(
        "{} is no BPF file system and {what}: move that away, or mount one there (`mount -t bpf bpf {}`)",
        path.display(), path.display()
    )]
    NotBpffs {
        /// Where.
        path: PathBuf,
        /// What is there.
        what: &'static str,
    },
    /// No BPF file system, and what is mounted here the node would not see.
    #[error(
        "no BPF file system is mounted at {}, and netpath mounts one only where process 1 sees it: give this container \
         the node's (mountPropagation: HostToContainer); enter a network namespace by `nsenter --net=` and not by `ip netns exec`",
        path.display()
    )]
    ElsewhereMounted {
        /// Where.
        path: PathBuf,
    },
    /// Where the pins are could not be read or written down.
    #[error("it cannot be told which BPF file system the pins are on")]
    Mark(#[source] crate::whole::WholeError),
    /// The pins are on another BPF file system.
    #[error(
        "at {} is {found}, and what is in force is pinned on the BPF file system of device {known} (says {}): give this \
         container the node's, or enter a network namespace by `nsenter --net=` and not by `ip netns exec`; if the other \
         one is mounted nowhere, remove that file",
        path.display(), mark.display()
    )]
    OtherBpffs {
        /// Where.
        path: PathBuf,
        /// What is there, in words.
        found: String,
        /// What is in force.
        known: String,
        /// Who says so.
        mark: PathBuf,
    },
    /// An older version's programs are on the node: two sets would judge each frame, each by its own rows.
    #[error(
        "{} is the data path of an older netpath, of ABI {version}, and goes on enforcing; this one is of ABI {ABI_VERSION}: run \
         `netpath upgrade`, which puts this one in its place without a gap",
        path.display()
    )]
    OlderAbi {
        /// Its pins.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// A newer version's programs are on the node.
    #[error(
        "{} is the data path of a newer netpath, of ABI {version}, and goes on enforcing; this one is of ABI {ABI_VERSION}: \
         upgrade the plugin binary, or go back with `netpath upgrade --roll-back`",
        path.display()
    )]
    NewerAbi {
        /// Its pins.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// Several versions' programs are on the node.
    #[error(
        "{} and {} are there at once, and each judges and counts every frame: run `netpath uninstall` with the version that \
         one of them belongs to",
        one.display(), other.display()
    )]
    TwoTrees {
        /// One of them.
        one: PathBuf,
        /// Another.
        other: PathBuf,
    },
    /// Programs that were replaced may still run.
    #[error("cannot wait for the programs that were replaced")]
    Settle {
        /// Why.
        source: io::Error,
    },
    /// The object could not be loaded.
    #[error("cannot load the eBPF object")]
    Load {
        /// Why.
        source: Box<EbpfError>,
    },
    /// The programs' constants could not be put down.
    #[error("cannot write the constants of the programs")]
    Constants {
        /// Why.
        source: io::Error,
    },
    /// The kernel did not say what its programs may do.
    #[error("cannot find out what programs may ask the kernel of a frame")]
    Probe {
        /// Why.
        source: Box<aya::programs::ProgramError>,
    },
    /// The kernel did not say what its records of frames look like.
    #[error("cannot read the kernel's types (BTF)")]
    Types {
        /// Why.
        source: io::Error,
    },
    /// The kernel did not take the description of what is in the maps.
    #[error("the kernel refused the types (BTF) of the maps")]
    TypesRefused {
        /// Why.
        source: io::Error,
    },
    /// What holds a hook until the program is ready was refused.
    #[error("the kernel refused a program that lets everything pass")]
    Placeholder {
        /// Why.
        source: io::Error,
    },
    /// One program was refused.
    #[error("the kernel refused program `{program}`")]
    Program {
        /// Its name.
        program: &'static str,
        /// Why.
        source: Box<ProgramError>,
    },
    /// The object has no such program.
    #[error("the eBPF object has no program `{program}`: it belongs to another version")]
    Missing {
        /// Its name.
        program: &'static str,
    },
    /// The self-test said no.
    #[error(
        "program `{program}` would not let a frame of the host pass ({frame}: verdict {verdict}); nothing was attached"
    )]
    SelfTest {
        /// Its name.
        program: &'static str,
        /// Which frame.
        frame: &'static str,
        /// What it returned.
        verdict: i32,
    },
    /// A hook is taken or cannot be used.
    #[error("cannot attach program `{}` to {master}{}", hook.name(), note)]
    Attach {
        /// Where.
        hook: Hook,
        /// Name of the master.
        master: String,
        /// What to do about it; empty or a parenthesis.
        note: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Something else is where the link of a hook should be.
    #[error("pin {} is not the link of that hook: run `netpath attach`, which puts ours in its place", path.display())]
    Misplaced {
        /// The pin.
        path: PathBuf,
    },
    /// Who decides before ours is not known.
    #[error("cannot list the programs before `{}` on {master}", hook.name())]
    Before {
        /// Where.
        hook: Hook,
        /// Name of the master.
        master: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Filters have no place on this interface.
    #[error(
        "cannot attach program `{}` to {master}, which has a qdisc `{kind}` where filters need `clsact`: remove it (`tc qdisc del dev {master} {kind}`), or have TCX, for which Linux 6.6 needs none",
        hook.name()
    )]
    Qdisc {
        /// Where.
        hook: Hook,
        /// Name of the master.
        master: String,
        /// What it has.
        kind: String,
    },
    /// There is no link for XDP on this interface.
    #[error(
        "native XDP on {master} was refused by bpf_link (MTU or driver): set `xdp` to `off` for this master in masters.json"
    )]
    NoXdp {
        /// Name of the master.
        master: String,
    },
    /// A pin could not be made, read or removed.
    #[error("cannot {op} pin {}", path.display())]
    Pin {
        /// What was tried.
        op: &'static str,
        /// The pin.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Map I/O.
    #[error("cannot use the maps")]
    Maps(#[from] maps::MapsError),
}
