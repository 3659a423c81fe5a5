//! The image that is shipped, as the agent of a node: in a pod with the few rights that its work takes.

mod common;
#[path = "common/cri.rs"]
mod cri;
#[path = "common/http.rs"]
mod http;
#[path = "common/site.rs"]
mod site;

use std::fs;

use common::{PATIENCE, eventually, run};
use cri::{
    Capability, ContainerConfig, HOST_TO_CONTAINER, KeyValue, LinuxContainerConfig,
    LinuxContainerSecurityContext, LinuxSandboxSecurityContext, Mount, NamespaceOption, OF_CONTAINER,
    OF_NODE, RUNTIME_DEFAULT, SecurityProfile,
};
use serde_json::json;
use site::{IMAGE, OURS, Site, private};

const NOTHING: [&str; 0] = [];

const LOGS: &str = "/run/logs-of-agent";

/// All that the agent may do, as deploy/agent has it: writes to directories of plugins that are not root's; switches NICs and
/// attaches programs; hears who claims addresses of pods; loads programs and looks into pods' namespaces.
const CAPABILITIES: [&str; 4] = ["DAC_OVERRIDE", "NET_ADMIN", "NET_RAW", "SYS_ADMIN"];

/// The same in `/proc/<pid>/status`, by the numbers in `linux/capability.h`.
const EFFECTIVE: u64 = 1 << 1 | 1 << 12 | 1 << 13 | 1 << 21;

/// What of the node the agent sees, under the node's paths.
const MOUNTS: [&str; 9] = [
    "/etc/cni/net.d",
    "/etc/netpath",
    "/opt/cni/bin",
    "/run/containerd",
    "/run/netns",
    "/run/netpath",
    "/sys/fs/bpf",
    "/var/lib/cni",
    "/var/lib/netpath",
];

/// What kubelet has hidden in every container that is not privileged.
const MASKED: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
];
/// What may only be read there.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

#[track_caller]
fn told(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name}: start these tests by `cargo xtask test runtime`"))
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// A node that has the image, and policed networks on one master.
#[track_caller]
fn site() -> Site {
    let site = Site::with(&["--image", &told("NETPATH_IMAGE_ARCHIVE")]);
    site.nad("priv", &private());
    let masters = json!({"enp0s8": {"unknownSource": "drop", "promisc": "on"}, "later0": {"xdp": "native"}});
    fs::write(site.node.path("/etc/cni/net.d/netpath.d/masters.json"), masters.to_string()).unwrap();
    site.node.sh(&format!("mkdir -p {LOGS} /run/netpath"));
    site
}

/// A pod with the agent in it.
struct Agent<'a> {
    site: &'a Site,
    sandbox: String,
}

impl<'a> Agent<'a> {
    #[track_caller]
    fn start(site: &'a Site, capabilities: &[&str]) -> Self {
        Self::start_with_processes(site, capabilities, OF_NODE)
    }

    /// With the node's processes, or its own.
    #[track_caller]
    fn start_with_processes(site: &'a Site, capabilities: &[&str], pid: i32) -> Self {
        let options = NamespaceOption { network: OF_NODE, pid };
        let mut pod = site.pod("agent", "");
        pod.hostname.clear();
        pod.log_directory = LOGS.to_owned();
        let context = LinuxSandboxSecurityContext { namespace_options: Some(options.clone()) };
        pod.linux.as_mut().unwrap().security_context = Some(context);
        let sandbox = site.cri.run(&pod).unwrap();
        let mount = |path: &str| Mount {
            container_path: path.to_owned(),
            host_path: path.to_owned(),
            readonly: path == "/run/containerd",
            propagation: HOST_TO_CONTAINER,
        };
        let sysctl = Mount {
            container_path: "/host/proc/sys/net".to_owned(),
            host_path: "/proc/sys/net".to_owned(),
            ..mount("")
        };
        let networks = "/etc/netpath/networks";
        let context = LinuxContainerSecurityContext {
            capabilities: Some(Capability { add: words(capabilities), drop: words(&["ALL"]) }),
            namespace_options: Some(options),
            readonly_rootfs: true,
            no_new_privs: true,
            masked_paths: words(&MASKED),
            readonly_paths: words(&READ_ONLY),
            seccomp: Some(SecurityProfile { kind: RUNTIME_DEFAULT }),
        };
        let container = ContainerConfig {
            args: words(&["agent", "--networks", networks, "--node", "worker01", "--listen", http::ADDRESS]),
            envs: vec![KeyValue { key: "NETPATH_LOG".to_owned(), value: "info".to_owned() }],
            mounts: MOUNTS.map(mount).into_iter().chain([sysctl]).collect(),
            log_path: "agent.log".to_owned(),
            linux: Some(LinuxContainerConfig { security_context: Some(context) }),
            ..ContainerConfig::of("agent", &told("NETPATH_IMAGE"))
        };
        fs::write(site.node.path(LOGS).join("agent.log"), "").unwrap();
        site.cri.start(&sandbox, &pod, container).unwrap();
        Self { site, sandbox }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.site.node.path(LOGS).join("agent.log")).unwrap()
    }

    #[track_caller]
    fn eventually<T>(&self, what: &str, ready: impl FnMut() -> Option<T>) -> T {
        eventually(2 * PATIENCE, what, ready)
    }

    /// An answer: status and text.
    fn get(&self, path: &str) -> Option<(u16, String)> {
        self.site.node.within(|| http::get(path))
    }

    /// The value of the one series of this name whose labels hold all of these.
    #[track_caller]
    fn value(&self, name: &str, labels: &[&str]) -> Option<u64> {
        http::value(&self.get("/metrics")?.1, name, labels)
    }

    /// What a pod has sent by its second interface.
    #[track_caller]
    fn sent(&self, pod: &str) -> Option<u64> {
        let pod = format!("pod=\"{pod}\"");
        self.value("netpath_pod_transmit_packets_total", &[&pod, "interface=\"net1\""])
    }

    /// A line of the status of its process.
    #[track_caller]
    fn status(&self, key: &str) -> String {
        let line = format!("for pid in $(pidof netpath); do grep ^{key}: /proc/$pid/status; done");
        let text = self.site.node.sh(&line);
        text.trim().rsplit('\t').next().unwrap_or_default().to_owned()
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the agent said:\n{}", self.log());
        }
    }
}

#[test]
fn a_tree_built_again_is_the_same_image() {
    let archive = told("NETPATH_IMAGE_ARCHIVE");
    let first = fs::read(&archive).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    run(&["tar", "--extract", "--directory", dir, "--file", &archive]);
    run(&[
        "sh",
        "-euc",
        &format!("cd {dir}; mkdir root; tar --extract --touch --directory root --file *.tar"),
    ]);
    // As its files are in the image: the binary, and what makes /var/run/netns what it is on a node.
    let found = run(&["find", &format!("{dir}/root"), "!", "-type", "d", "-printf", "%m %U:%G %P %l\n"]);
    let mut found: Vec<&str> = found.lines().map(str::trim_end).collect();
    found.sort_unstable();
    assert_eq!(found, ["755 0:0 netpath", "777 0:0 var/run /run"]);
    // Another file, of another time.
    run(&[site::xtask().to_str().unwrap(), "image", "--netpath", &format!("{dir}/root/netpath")]);
    assert!(first == fs::read(&archive).unwrap(), "the archive differs from the one before");
}

#[test]
fn the_agent_in_a_pod_takes_over_a_node_and_keeps_it() {
    let site = site();
    let pod = site.pod("before", "priv");
    let before = site.cri.run(&pod).unwrap();
    let container = site.cri.container(&before, &pod, IMAGE);
    let reaches = |address: &str| {
        site.cri.exec(&container, &format!("ping -c 1 -W 1 -I net1 {address}")).exit_code == 0
    };
    // As on a node where the pod was there first.
    site.node.sh(&format!("{OURS} uninstall --yes; rm -f /etc/netpath/disable"));
    assert!(reaches("8.8.8.8"), "nothing is in force");

    let agent = Agent::start(&site, &CAPABILITIES);
    agent.eventually("it is ready", || agent.get("/readyz").filter(|(status, _)| *status == 200));
    assert_eq!(u64::from_str_radix(&agent.status("CapEff"), 16), Ok(EFFECTIVE));
    assert_eq!([agent.status("NoNewPrivs"), agent.status("Seccomp")], ["1", "2"]);
    for hook in ["ingress", "egress"] {
        let hook = format!("hook=\"{hook}\"");
        assert_eq!(agent.value("netpath_attach_status", &["\"enp0s8\"", &hook]), Some(1), "{hook}");
    }
    assert!(reaches("10.12.34.254") && !reaches("8.8.8.8"), "its zone is in force again");
    assert!(agent.sent("before").is_some_and(|sent| 0 < sent), "{:?}", agent.get("/metrics"));
    let labels = ["pod=\"before\"", "reason=\"zone-deny\""];
    assert_eq!(agent.value("netpath_pod_dropped_packets_total", &labels), Some(1));
    agent.eventually("it has read of the drop", || {
        agent.value("netpath_drop_events_read_total", &[]).filter(|read| 0 < *read)
    });

    let pod = site.pod("after", "priv");
    let after = site.cri.run(&pod).unwrap();
    let second = site.cri.container(&after, &pod, IMAGE);
    let sent = agent.sent("after").unwrap();
    assert_eq!(site.cri.exec(&second, "ping -c 3 -i 0.2 -W 1 -I net1 10.12.34.254").exit_code, 0);
    assert!(sent + 3 <= agent.sent("after").unwrap(), "three more were counted");
    site.node.sh("ip link add later0 type veth peer name later1");
    agent.eventually("a master that came later, with XDP", || {
        agent.value("netpath_attach_status", &["\"later0\"", "hook=\"xdp\""]).filter(|live| *live == 1)
    });

    // What is in force stays without the agent.
    site.end(&agent.sandbox);
    assert!(reaches("10.12.34.254") && !reaches("8.8.8.8"));
    site.end(&before);
    site.end(&after);
    assert_eq!(site.node.leftovers(), NOTHING);
}

#[test]
fn each_right_of_the_agent_is_needed() {
    let manifest = include_str!("../../deploy/agent/agent.yaml");
    assert!(manifest.contains(&format!("add: [{}]", CAPABILITIES.join(", "))));
    let site = site();
    for (left_out, expected) in [
        ("NET_ADMIN", "Operation not permitted"),
        // Which is also what lets it load programs.
        ("SYS_ADMIN", "run this as root (or with CAP_BPF, CAP_NET_ADMIN"),
        ("NET_RAW", "enp0s8 cannot be listened to: Operation not permitted"),
    ] {
        // Without a pod there is nothing to be heard; with one, nothing to be attached.
        let pod = (left_out == "NET_RAW").then(|| site.cri.run(&site.pod("web", "priv")).unwrap());
        let rest: Vec<&str> = CAPABILITIES.into_iter().filter(|it| *it != left_out).collect();
        let agent = Agent::start(&site, &rest);
        agent.eventually(&format!("it fails without {left_out}"), || {
            let unready = agent.get("/readyz").is_none_or(|(status, _)| status != 200);
            (unready && agent.log().contains(expected)).then_some(())
        });
        site.end(&agent.sandbox);
        pod.iter().for_each(|pod| site.end(pod));
    }
}

#[test]
fn an_agent_that_could_mount_a_file_system_of_its_own_does_not() {
    let site = site();
    site.node.sh("umount /sys/fs/bpf");
    for pid in [OF_CONTAINER, OF_NODE] {
        let agent = Agent::start_with_processes(&site, &CAPABILITIES, pid);
        agent.eventually("it says so", || {
            let (_, why) = agent.get("/readyz")?;
            why.contains("no BPF file system is mounted at /sys/fs/bpf").then_some(())
        });
        // The node would not see it, and neither would the plugin.
        let line = "cut -d' ' -f2,3 /proc/$(pidof netpath)/mounts | grep -x '/sys/fs/bpf bpf' || :";
        assert_eq!(site.node.sh(line), "");
        site.end(&agent.sandbox);
    }
    // What the node mounts is there for the agent at once.
    let agent = Agent::start(&site, &CAPABILITIES);
    site.node.sh("mount -t bpf bpf /sys/fs/bpf");
    agent.eventually("it is ready", || agent.get("/readyz").filter(|(status, _)| *status == 200));
    site.end(&agent.sandbox);
}
