//! Packages of the distribution: what tests need, and how apt is asked.

use std::{path::Path, process::Command};

use anyhow::Result;

use crate::{
    process::{self, find_program, run},
    setup::{Item, Remedy, State},
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
    run(&mut apt_get(&["update", "--quiet=2"]))
}

/// Installs packages, and nothing that they merely recommend; never removes one.
pub(crate) fn install(packages: &[String]) -> Result<()> {
    let mut command = apt_get(&["install", "--quiet=2", "--yes", "--no-install-recommends", "--no-remove"]);
    run(command.args(packages))
}

fn apt_get(args: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    // Another apt may run at the same time on a machine that has just started.
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0"])
        .args(args);
    command
}

#[test]
fn candidates_are_read_from_apt_cache_policy() {
    let policy = "rustc-web:\n  Installed: (none)\n  Candidate: 1.96.0+dfsg1-1~deb12u2\n  Version table:\n";
    assert_eq!(candidate(policy).as_deref(), Some("1.96.0+dfsg1-1~deb12u2"));
    assert_eq!(candidate("x:\n  Installed: (none)\n  Candidate: (none)\n"), None);
    assert_eq!(candidate(""), None);
}
