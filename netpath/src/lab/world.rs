//! The machines of the lab, each a network namespace, and the cables between them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
    unistd::mkdtemp,
};

use super::{
    error::LabError,
    nad::{MASTERS, Manifest},
    tools::{self, Signals},
};
use crate::{
    kernel::{
        bpf::sys,
        netns,
        sysctl::{self, SysctlError},
    },
    root::Root,
};

/// The NIC that the private zone is on.
pub(super) const MASTER: &str = "enp0s8";
/// The port of the switch that [`MASTER`] is plugged into.
pub(super) const PORT: &str = "worker01";

/// Directories and namespaces of a lab are named after it: this and its id.
const PREFIX: &str = "netpath-lab-";
/// Where directories of labs are; only root can put anything there.
const PARENT: &str = "/run";
const NAMESPACES: &str = "/run/netns";

/// A machine or a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Host {
    Switch,
    Internet,
    Gateway,
    Master01,
    Worker01,
    Worker02,
    /// The pod of the lab: its network has a default route.
    NetPod,
    /// Its network has IPv6, and no IPv4 route.
    RiddlePod,
}

impl Host {
    pub(super) const ALL: [Self; 8] = [
        Self::Switch,
        Self::Internet,
        Self::Gateway,
        Self::Master01,
        Self::Worker01,
        Self::Worker02,
        Self::NetPod,
        Self::RiddlePod,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Switch => "switch",
            Self::Internet => "internet",
            Self::Gateway => "gateway",
            Self::Master01 => "master01",
            Self::Worker01 => "worker01",
            Self::Worker02 => "worker02",
            Self::NetPod => "net-pod",
            Self::RiddlePod => "riddle-pod",
        }
    }

    /// Sysctls that are set before the first link is there, as `name` and value.
    fn sysctls(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Switch => &[("net/ipv6/conf/default/disable_ipv6", "1")],
            Self::Gateway => &[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")],
            Self::Worker01 => &[("net/ipv4/ip_forward", "1")],
            // Its network has no IPv6, and what the kernel says unasked would be counted with the rest.
            Self::NetPod => &[("net/ipv6/conf/default/disable_ipv6", "1")],
            Self::Internet | Self::Master01 | Self::Worker02 | Self::RiddlePod => &[],
        }
    }
}

/// Set everywhere: machines differ in their defaults.
const SYSCTLS: &[(&str, &str)] = &[
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
];

/// What `ip -batch` is told, host by host in this order; `{x}` is the namespace of host x.
///
/// eth0 of a pod is as Calico makes it: a /32, and the node as gateway behind an address that nobody has.
const LINKS: &[(Host, &str)] = &[
    (
        Host::Switch,
        "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0
         link set br0 up",
    ),
    (
        Host::Internet,
        "link set lo up
         address add 8.8.8.8/32 dev lo
         address add 2001:4860:4860::8888/128 dev lo",
    ),
    (
        Host::Gateway,
        "link add lan type veth peer name gateway netns {switch}
         link add wan type veth peer name gateway netns {internet}
         address add 10.12.34.254/24 dev lan
         address add 2001:db8:12:34::fe/64 dev lan nodad
         address add 203.0.113.2/24 dev wan
         address add 2001:db8:ffff::2/64 dev wan nodad
         link set lo up
         link set lan up
         link set wan up
         route add default via 203.0.113.1
         route add default via 2001:db8:ffff::1",
    ),
    (
        Host::Master01,
        "link add enp0s8 type veth peer name master01 netns {switch}
         address add 10.12.34.10/24 dev enp0s8
         link set lo up
         link set enp0s8 up",
    ),
    (
        Host::Worker02,
        "link add enp0s8 type veth peer name worker02 netns {switch}
         address add 10.12.34.102/24 dev enp0s8
         link set lo up
         link set enp0s8 up",
    ),
    (
        Host::Worker01,
        "link add enp0s8 type veth peer name worker01 netns {switch}
         link add enp0s3 type veth peer name worker01 netns {internet}
         link add cali1 address ee:ee:ee:ee:ee:ee type veth peer name eth0 netns {net-pod}
         link add cali2 address ee:ee:ee:ee:ee:ee type veth peer name eth0 netns {riddle-pod}
         address add 10.12.34.101/24 dev enp0s8
         address add 172.27.100.101/24 dev enp0s3
         link set lo up
         link set enp0s8 up
         link set enp0s3 up
         link set cali1 up
         link set cali2 up
         route add 10.244.5.2/32 dev cali1
         route add 10.244.5.3/32 dev cali2",
    ),
    (
        Host::Internet,
        "address add 203.0.113.1/24 dev gateway
         address add 2001:db8:ffff::1/64 dev gateway nodad
         address add 172.27.100.254/24 dev worker01
         link set gateway up
         link set worker01 up
         route add 2001:db8:12:34::/64 via 2001:db8:ffff::2",
    ),
    (Host::Worker01, "route add default via 172.27.100.254"),
    (
        Host::Switch,
        "link set gateway master br0 up
         link set master01 master br0 up
         link set worker01 master br0 up
         link set worker02 master br0 up",
    ),
    (Host::NetPod, POD_ETH0),
    (Host::RiddlePod, POD_ETH0),
];

const POD_ETH0: &str = "link set lo up
    address add {eth0} dev eth0
    link set eth0 up
    neighbour add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent
    route add 169.254.1.1 dev eth0 scope link
    route add default via 169.254.1.1 dev eth0";

/// Source NAT: of the node for its pods' eth0, and of the gateway for the whole private zone, on purpose.
const NAT: &[(Host, &str)] = &[(Host::Gateway, "wan"), (Host::Worker01, "enp0s3")];

/// A lab. Dropping it removes it, unless it is kept.
pub(super) struct World {
    id: String,
    standing: bool,
}

impl World {
    /// Makes directory, namespaces and links of a new lab; nothing is left of one that could not be finished.
    pub(super) fn build(signals: &Signals) -> Result<Self, LabError> {
        let template = Path::new(PARENT).join(format!("{PREFIX}XXXXXX"));
        let dir =
            mkdtemp(&template).map_err(|errno| LabError::io("make the directory", template)(errno.into()))?;
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let world = Self { id: name.trim_start_matches(PREFIX).to_owned(), standing: true };
        for host in Host::ALL {
            signals.check()?;
            tools::run(None, &["ip", "netns", "add", &world.netns_name(host)], "")?;
            let write = || {
                SYSCTLS.iter().chain(host.sysctls()).try_for_each(|(key, value)| sysctl::write(key, value))
            };
            netns::within(&world.netns(host), write)??;
        }
        for (host, script) in LINKS {
            signals.check()?;
            tools::run(
                None,
                &["ip", "-n", &world.netns_name(*host), "-batch", "-"],
                &world.script(*host, script),
            )?;
        }
        for (host, ifname) in NAT {
            let rules = format!(
                "table ip lab {{\n chain out {{\n type nat hook postrouting priority srcnat\n \
                 oifname \"{ifname}\" masquerade\n }}\n}}\n"
            );
            tools::run(Some(&world.netns(*host)), &["nft", "-f", "-"], &rules)?;
        }
        for (host, ifname) in [(Host::Gateway, "lan"), (Host::Master01, MASTER), (Host::Worker02, MASTER)] {
            world.hush(host, ifname)?;
        }
        Ok(world)
    }

    /// Makes `ifname` of `host` ask for a neighbour once, and not again whether that is still there: what a kernel
    /// sends seconds after the question that led to it would be counted in another row.
    pub(super) fn hush(&self, host: Host, ifname: &str) -> Result<(), LabError> {
        let write = || {
            for ip in ["ipv4", "ipv6"] {
                for (name, value) in [("delay_first_probe_time", "60"), ("mcast_solicit", "1")] {
                    let key = format!("net/{ip}/neigh/{ifname}/{name}");
                    // An interface without IPv6 has none of its neighbours.
                    if sysctl::exists(&key) {
                        sysctl::write(&key, value)?;
                    }
                }
            }
            Ok::<_, SysctlError>(())
        };
        Ok(netns::within(&self.netns(host), write)??)
    }

    /// A lab that was kept, or that somebody killed, to be removed.
    pub(super) fn find(id: &str) -> Result<Self, LabError> {
        if id.len() != 6 || !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(LabError::Id { id: id.to_owned() });
        }
        let mut world = Self { id: id.to_owned(), standing: false };
        let dir = world.root().path().to_owned();
        world.standing = dir.exists() || Host::ALL.iter().any(|host| world.netns(*host).exists());
        match world.standing {
            true => Ok(world),
            false => Err(LabError::NoLab { id: id.to_owned(), dir }),
        }
    }

    /// What tells this lab from others.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// The root of worker01, the node that netpath runs on.
    pub(super) fn root(&self) -> Root {
        Root::new(Path::new(PARENT).join(format!("{PREFIX}{}", self.id)))
    }

    /// Name of the namespace of a host, for `ip -n`.
    pub(super) fn netns_name(&self, host: Host) -> String {
        format!("{PREFIX}{}-{}", self.id, host.name())
    }

    /// Path of the namespace of a host.
    pub(super) fn netns(&self, host: Host) -> PathBuf {
        Path::new(NAMESPACES).join(self.netns_name(host))
    }

    /// Puts the administrator's word on the master in place of an earlier one.
    pub(super) fn write_masters(&self, content: &str) -> Result<(), LabError> {
        let path = self.root().masters();
        let dir = path.parent().unwrap_or(&path);
        fs::create_dir_all(dir).map_err(LabError::io("make the directory", dir))?;
        fs::write(&path, content).map_err(LabError::io("write", &path))
    }

    /// Lets the lab stand.
    pub(super) fn keep(mut self) {
        self.standing = false;
    }

    /// Removes everything, whatever part of it exists; tries all and reports all that failed.
    pub(super) fn remove(mut self) -> Result<(), LabError> {
        self.standing = false;
        self.take_down()
    }

    fn take_down(&self) -> Result<(), LabError> {
        let mut failures = Vec::new();
        // Programs and maps go with the mount: nothing else holds their pins.
        let bpffs = self.root().bpffs();
        if sys::is_bpffs(&bpffs).unwrap_or(false) {
            match umount2(&bpffs, MntFlags::MNT_DETACH) {
                Ok(()) | Err(Errno::EINVAL) => {}
                Err(errno) => failures.push(LabError::io("unmount", bpffs)(errno.into())),
            }
        }
        for host in Host::ALL.into_iter().filter(|host| self.netns(*host).exists()) {
            failures.extend(tools::run(None, &["ip", "netns", "delete", &self.netns_name(host)], "").err());
        }
        let root = self.root();
        match fs::remove_dir_all(root.path()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                failures.push(LabError::io("remove", root.path())(error));
            }
            _ => {}
        }
        if failures.is_empty() { Ok(()) } else { Err(LabError::Remove { failures }) }
    }

    fn script(&self, host: Host, script: &str) -> String {
        let eth0 = if host == Host::RiddlePod { "10.244.5.3/32" } else { "10.244.5.2/32" };
        let named = Host::ALL.iter().fold(script.to_owned(), |script, host| {
            script.replace(&format!("{{{}}}", host.name()), &self.netns_name(*host))
        });
        named.replace("{eth0}", eth0)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.standing
            && let Err(error) = self.take_down()
        {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                id = self.id,
                "the lab is not wholly removed"
            );
        }
    }
}

/// `masters.json` while there is no zone: the master is promiscuous and its traffic counted, nothing is refused.
pub(super) const COUNTED: Manifest =
    Manifest { file: "masters.json", text: r#"{ "enp0s8": { "promisc": "on", "unknownSource": "audit" } }"# };
/// `masters.json` while there is one.
pub(super) const POLICED: Manifest = MASTERS;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zone::Masters;

    #[test]
    fn no_placeholder_is_left() {
        let world = World { id: "aB3xYz".to_owned(), standing: false };
        for (host, script) in LINKS {
            let script = world.script(*host, script);
            assert!(!script.contains(['{', '}']), "{script}");
        }
        assert_eq!(world.netns(Host::NetPod), Path::new("/run/netns/netpath-lab-aB3xYz-net-pod"));
        assert_eq!(world.root().path(), Path::new("/run/netpath-lab-aB3xYz"));
    }

    #[test]
    fn both_words_of_the_administrator_are_valid() {
        for manifest in [COUNTED, POLICED] {
            let masters = Masters::parse(Path::new(manifest.file), manifest.text.as_bytes()).expect("valid");
            assert!(masters.find(&[MASTER]).expect("one entry").is_some(), "{}", manifest.text);
        }
    }

    #[test]
    fn an_id_is_no_path() {
        for id in ["", "../etc", "aB3xY", "aB3xYzz", "aB3x/z", "aB3x*z"] {
            assert!(matches!(World::find(id), Err(LabError::Id { .. })), "{id}");
        }
    }
}
