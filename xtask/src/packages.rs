//! Packages of the distribution: what tests need, and how apt is asked.

use std::{path::Path, process::Command};

use anyhow::Result;

use crate::{
    apt::{self, Apt},
    process::{self, find_program, run, say},
    setup::{Item, Remedy, State},
    workspace,
};

/// A program or file that tests use, and the Debian package that has it.
struct Tool {
    package: &'static str,
    found_by: FoundBy,
    why: &'static str,
}

/// How to tell that a tool is there, whoever installed it.
enum FoundBy {
    Program(&'static str),
    AnyFile(&'static [&'static str]),
}

/// Everything that tests and the lab run besides our own programs.
const TOOLS: &[Tool] = &[
    Tool {
        package: "iproute2",
        found_by: FoundBy::Program("ip"),
        why: "tests and lab make network namespaces and links, and read `ip -s link`",
    },
    Tool { package: "iputils-ping", found_by: FoundBy::Program("ping"), why: "the lab's question is a ping" },
    Tool {
        package: "nftables",
        found_by: FoundBy::Program("nft"),
        why: "the lab's firewall source-NATs, so that isolation cannot be its doing",
    },
    Tool {
        package: "iperf3",
        found_by: FoundBy::Program("iperf3"),
        why: "counters are compared after megabytes of TCP",
    },
    Tool {
        package: "ethtool",
        found_by: FoundBy::Program("ethtool"),
        why: "counters are compared with offloads on and off",
    },
    Tool {
        package: "bpftool",
        found_by: FoundBy::Program("bpftool"),
        why: "pinned maps must dump with field names",
    },
    Tool {
        package: "containernetworking-plugins",
        found_by: FoundBy::AnyFile(&["/usr/lib/cni/macvlan", "/opt/cni/bin/macvlan"]),
        why: "the standard plugins are what ours is compared with",
    },
    Tool {
        package: "dnsmasq-base",
        found_by: FoundBy::Program("dnsmasq"),
        why: "`dhcp` is tried with a real DHCP server",
    },
    Tool {
        package: "qemu-system-x86",
        found_by: FoundBy::Program("qemu-system-x86_64"),
        why: "programs are loaded and tested on older kernels",
    },
    Tool {
        package: "busybox-static",
        found_by: FoundBy::Program("busybox"),
        why: "the shell of the machines with those kernels",
    },
    Tool {
        package: "kmod",
        found_by: FoundBy::Program("modprobe"),
        why: "tells the order of loading of those kernels' modules",
    },
    Tool {
        package: "containerd",
        found_by: FoundBy::Program("containerd"),
        why: "the container runtime that pods are made by",
    },
    Tool { package: "runc", found_by: FoundBy::Program("runc"), why: "starts what containerd is told to" },
    Tool {
        package: "buildah",
        found_by: FoundBy::Program("buildah"),
        why: "makes the image, without a daemon or a registry",
    },
    Tool { package: "openssl", found_by: FoundBy::Program("openssl"), why: "keys of the test cluster" },
    Tool {
        package: "etcd-server",
        found_by: FoundBy::Program("etcd"),
        why: "where the test cluster keeps its objects",
    },
    Tool { package: "conntrack", found_by: FoundBy::Program("conntrack"), why: "kubelet calls it" },
    Tool {
        package: "iptables",
        found_by: FoundBy::Program("iptables"),
        why: "kubelet and the standard portmap plugin call it",
    },
    Tool { package: "make", found_by: FoundBy::Program("make"), why: "Kubernetes is built with it" },
    Tool { package: "jq", found_by: FoundBy::Program("jq"), why: "Kubernetes' build calls it" },
    Tool {
        package: "dpkg-dev",
        found_by: FoundBy::Program("dpkg-source"),
        why: "unpacks the source package of Kubernetes",
    },
    Tool {
        package: "rsync",
        found_by: FoundBy::Program("rsync"),
        why: "Kubernetes' code generation breaks without it",
    },
    Tool {
        package: "golang-1.19-go",
        found_by: FoundBy::AnyFile(&["/usr/lib/go-1.19/bin/go"]),
        why: "compiles Kubernetes",
    },
    Tool {
        package: "golang-github-modern-go-reflect2-dev",
        found_by: FoundBy::AnyFile(&["/usr/share/gocode/src/github.com/modern-go/reflect2/reflect2.go"]),
        why: "Kubernetes' own copy crashes the API server when it is compiled with this Go",
    },
];

/// The tools as items of the set-up.
pub(crate) fn tools() -> Vec<Item> {
    TOOLS
        .iter()
        .map(|tool| {
            let found = match tool.found_by {
                FoundBy::Program(name) => find_program(name),
                FoundBy::AnyFile(files) => {
                    files.iter().map(|file| Path::new(file).to_owned()).find(|file| file.exists())
                }
            };
            let state = match found {
                Some(path) => State::Present(path.display().to_string()),
                None => State::Missing(Remedy::Apt(tool.package.to_owned())),
            };
            Item { name: tool.package.to_owned(), why: tool.why.to_owned(), state }
        })
        .collect()
}

/// Whether packages of this machine are managed by apt.
pub(crate) fn has_apt() -> bool {
    find_program("apt-get").is_some() && find_program("apt-cache").is_some()
}

/// The version of `package` that apt would install, by the package lists of this machine.
pub(crate) fn offered(package: &str) -> Result<Option<String>> {
    if !has_apt() {
        return Ok(None);
    }
    let policy = process::output(Command::new("apt-cache").env("LC_ALL", "C").args(["policy", package]))?;
    Ok(candidate(&policy))
}

fn candidate(policy: &str) -> Option<String> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

/// Fetches apt's package lists.
pub(crate) fn update() -> Result<()> {
    Apt::of_the_machine().update()
}

/// Installs packages, and nothing that they merely recommend; never removes one.
///
/// What is on the machine already may come from Debian's backports, while its sources do not name them: a package
/// of the same source then fits only in the version from there.
pub(crate) fn install(packages: &[String]) -> Result<()> {
    let own = Apt::of_the_machine();
    let fits = |package: &&String| {
        let mut simulation = own.install();
        process::output(simulation.arg("--simulate").arg(package)).is_ok()
    };
    let (fitting, others): (Vec<_>, Vec<_>) = packages.iter().partition(fits);
    if !fitting.is_empty() {
        run(own.install().args(fitting))?;
    }
    if others.is_empty() {
        return Ok(());
    }
    let suite = format!("{}-backports", apt::codename()?);
    say(format_args!(
        "not to be installed from the machine's own sources without removing others: {others:?}"
    ));
    let apt = Apt::beside_suite("Debian", &suite, &workspace::cache()?)?;
    run(apt.install().args(["--target-release", &suite]).args(others))
}

#[test]
fn candidates_are_read_from_apt_cache_policy() {
    let policy = "rustc-web:\n  Installed: (none)\n  Candidate: 1.96.0+dfsg1-1~deb12u2\n  Version table:\n";
    assert_eq!(candidate(policy).as_deref(), Some("1.96.0+dfsg1-1~deb12u2"));
    assert_eq!(candidate("x:\n  Installed: (none)\n  Candidate: (none)\n"), None);
    assert_eq!(candidate(""), None);
}
