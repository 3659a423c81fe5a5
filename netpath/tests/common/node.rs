//! A node under test: master `enp0s8`, the wire's other end `outside`, pods made by the real plugin, and a
//! root directory of its own with everything netpath keeps. All of it is gone when the test ends.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use netpath::kernel::bpf::attach::Via;
use netpath::kernel::bpf::maps::Maps;
use netpath::kernel::netlink::Netlink;
use netpath::police;
use netpath::root::Root;
use netpath::state::Lock;
use netpath_ebpf::abi::{Counters, DropCounters, Endpoint, EndpointKey, MasterCounters};
use netpath_ebpf::drop_reason::DropReason;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::wire::{self, Mac, RawSocket, udp_frame};
use super::{NetNs, veth};

/// The master, on the node.
pub(crate) const MASTER: &str = "enp0s8";
/// The other end of its cable, in `outside`.
pub(crate) const WIRE: &str = "wire";
/// The node's own address on the master.
pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(10, 12, 34, 101);
/// The gateway, which is `outside`.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 12, 34, 254);
/// A host of the internet, which is `outside` as well.
pub(crate) const INTERNET: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);
/// The gateway in IPv6.
pub(crate) const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x34, 0, 0, 0, 0, 0, 0xfe);
/// A host of the IPv6 internet.
pub(crate) const INTERNET6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 8, 0, 0, 0, 0, 8);
/// MAC of the wire's other end.
pub(crate) const OUTSIDE_MAC: Mac = [2, 0x0f, 0, 0, 0, 0xfe];
/// MAC of the master.
pub(crate) const NODE_MAC: Mac = [2, 0x0f, 0, 0, 0, 0x65];

/// A node, its wire and its root.
pub(crate) struct Node {
    pub(crate) netns: NetNs,
    pub(crate) outside: NetNs,
    pub(crate) root: Root,
    /// CNI_ARGS of the calls from now on.
    pub(crate) args: Mutex<String>,
    directory: TempDir,
}

impl Node {
    /// A node whose `masters.json` has `entry` for the master. IPv6 is off: it talks unasked.
    #[track_caller]
    pub(crate) fn new(entry: &Value) -> Self {
        Self::make(entry, false)
    }

    /// The same with IPv6 on the wire.
    #[track_caller]
    pub(crate) fn dual(entry: &Value) -> Self {
        Self::make(entry, true)
    }

    #[track_caller]
    fn make(entry: &Value, v6: bool) -> Self {
        let directory = TempDir::with_prefix("netpath-node-").expect("a temporary directory");
        let root = Root::new(directory.path());
        let (netns, outside, args) = (NetNs::new("node"), NetNs::new("out"), Mutex::default());
        let node = Self { netns, outside, root, args, directory };
        for netns in [&node.netns, &node.outside] {
            quiet(netns, v6);
        }
        veth(&node.netns, MASTER, &node.outside, WIRE);
        node.address();
        if v6 {
            for address in [GATEWAY6, INTERNET6] {
                node.outside.ip(&format!("addr add {address}/64 dev {WIRE} nodad"));
            }
        }
        node.set_master(entry);
        node
    }

    /// Gives both ends of the wire their MACs and addresses; done again after the wire was cut.
    pub(crate) fn address(&self) {
        self.netns.ip_lines(&[
            format!("link set {MASTER} address {}", text(NODE_MAC)),
            format!("addr add {NODE}/24 dev {MASTER}"),
            format!("route add default via {GATEWAY}"),
        ]);
        self.outside.ip_lines(&[
            format!("link set {WIRE} address {}", text(OUTSIDE_MAC)),
            format!("addr add {GATEWAY}/24 dev {WIRE}"),
            format!("addr add {INTERNET}/32 dev {WIRE}"),
        ]);
    }

    /// Writes the master's entry in `masters.json`; an entry that does not say how to attach gets [`asked_via`].
    pub(crate) fn set_master(&self, entry: &Value) {
        let mut entry = entry.clone();
        if let (Some(word), true) = (asked_via(), entry["tc"].is_null()) {
            entry["tc"] = json!(word);
        }
        self.write(&self.root.masters(), &json!({ MASTER: entry }));
    }

    /// Writes a file of the administrator.
    pub(crate) fn write(&self, path: &Path, value: &Value) {
        std::fs::create_dir_all(path.parent().expect("below the root")).expect("a directory");
        std::fs::write(path, value.to_string()).expect("a file");
    }

    /// Runs the tool on the node; it must succeed.
    #[track_caller]
    pub(crate) fn netpath(&self, words: &[&str]) -> String {
        let output = self.try_netpath(words);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "netpath {words:?}: {stderr}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// Runs the tool on the node.
    pub(crate) fn try_netpath(&self, words: &[&str]) -> Output {
        let mut command = self.command();
        command.args(words);
        self.netns.within(|| command.output()).expect("the tool can be run")
    }

    pub(crate) fn command(&self) -> Command {
        // What is shipped is measured, by whoever wants to know what it costs.
        let program = std::env::var_os("NETPATH_TEST_PROGRAM");
        let mut command = Command::new(program.unwrap_or_else(|| env!("CARGO_BIN_EXE_netpath").into()));
        command.env_clear().env("NETPATH_ROOT", self.directory.path());
        command
    }

    /// Calls the plugin on the node.
    pub(crate) fn call(&self, verb: &str, pod: &NetNs, conf: &Value) -> Output {
        self.call_for("net1", verb, pod, conf)
    }

    /// The same for an interface of this name.
    pub(crate) fn call_for(&self, ifname: &str, verb: &str, pod: &NetNs, conf: &Value) -> Output {
        let mut command = self.command();
        command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", pod.name()).env("CNI_NETNS", pod.path());
        command
            .env("CNI_IFNAME", ifname)
            .env("CNI_ARGS", &*self.args.lock().expect("nobody panicked with it"))
            .env("CNI_PATH", self.directory.path().join("bin"))
            .env("PATH", "/usr/sbin:/usr/bin");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let conf = conf.to_string();
        let done = self.netns.within(|| -> std::io::Result<Output> {
            let mut child = command.spawn()?;
            std::io::Write::write_all(&mut child.stdin.take().expect("piped"), conf.as_bytes())?;
            child.wait_with_output()
        });
        done.expect("the plugin can be run")
    }

    /// Adds a pod by a network with these addresses and this zone; it must succeed.
    #[track_caller]
    pub(crate) fn pod(&self, addresses: &[&str], zone: Option<&Value>) -> Pod {
        self.pod_with(conf(addresses, zone))
    }

    /// Adds a pod by a network configuration; it must succeed.
    #[track_caller]
    pub(crate) fn pod_with(&self, mut conf: Value) -> Pod {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let netns = NetNs::new("pod");
        let v6 = conf["ipam"].to_string().contains("fd00:");
        quiet(&netns, v6);
        let mac = [2, 0x70, number[0], number[1], number[2], number[3]];
        if conf["mac"].is_null() {
            conf["mac"] = json!(text(mac));
        }
        let output = self.call("ADD", &netns, &conf);
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "ADD of {conf}: {stdout}");
        Pod { netns, mac, key: EndpointKey::new(1, mac), conf }
    }

    /// Deletes a pod's interface; it must succeed.
    #[track_caller]
    pub(crate) fn delete(&self, pod: &Pod) {
        let output = self.call("DEL", &pod.netns, &pod.conf);
        assert!(output.status.success(), "DEL: {}", String::from_utf8_lossy(&output.stdout));
    }

    /// The maps of the node.
    #[track_caller]
    pub(crate) fn maps(&self) -> Maps {
        Maps::open(&self.root.pins()).expect("maps of this version").expect("the data path is loaded")
    }

    /// The row of a pod.
    #[track_caller]
    pub(crate) fn row(&self, pod: &Pod) -> Endpoint {
        self.maps().endpoint(pod.key).expect("readable").expect("the pod has a row")
    }

    /// The counters of a pod.
    #[track_caller]
    pub(crate) fn counters(&self, pod: &Pod) -> Counters {
        self.maps().counters().expect("mapped").endpoint(self.row(pod).id)
    }

    /// The counters of the master.
    #[track_caller]
    pub(crate) fn totals(&self) -> MasterCounters {
        self.maps().counters().expect("mapped").master(1)
    }

    /// The drops of a pod by reason.
    #[track_caller]
    pub(crate) fn drops(&self, pod: &Pod) -> DropCounters {
        self.maps().drops(self.row(pod).id).expect("readable")
    }

    /// The drops of frames that nobody owns.
    #[track_caller]
    pub(crate) fn unowned(&self) -> DropCounters {
        self.maps().drops(0).expect("readable")
    }

    /// Removes everything of netpath from the node.
    #[track_caller]
    pub(crate) fn uninstall(&self) {
        let _lock = Lock::acquire(&self.root).expect("nobody else has the lock");
        let removed =
            self.netns.within(|| police::uninstall(&self.root, &mut Netlink::open().expect("netlink")));
        removed.expect("uninstall");
    }

    /// A socket at the far end of the wire: what arrives there has left the node.
    #[track_caller]
    pub(crate) fn far_end(&self) -> RawSocket {
        RawSocket::open(&self.outside, WIRE)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Before the directory goes. Not asserted: nothing may be mounted yet.
        let _ = Command::new("umount").arg(self.root.bpffs()).stderr(Stdio::null()).status();
    }
}

/// A pod with a policed interface `net1`.
pub(crate) struct Pod {
    pub(crate) netns: NetNs,
    pub(crate) mac: Mac,
    pub(crate) key: EndpointKey,
    pub(crate) conf: Value,
}

impl Pod {
    /// A packet socket on its interface.
    #[track_caller]
    pub(crate) fn socket(&self) -> RawSocket {
        RawSocket::open(&self.netns, "net1")
    }

    /// Knows a neighbour, so that nobody has to ask.
    pub(crate) fn knows(&self, address: impl std::fmt::Display, mac: Mac) {
        self.netns.ip(&format!("neigh replace {address} lladdr {} dev net1 nud permanent", text(mac)));
    }

    /// Packets and bytes that `ip -s link` shows for its interface: received, sent.
    #[track_caller]
    pub(crate) fn link_counters(&self) -> [u64; 4] {
        let shown: Value = serde_json::from_str(&self.netns.ip("-s -j link show net1")).expect("JSON");
        let stats = &shown[0]["stats64"];
        [("rx", "packets"), ("rx", "bytes"), ("tx", "packets"), ("tx", "bytes")]
            .map(|(way, what)| stats[way][what].as_u64().expect("a number"))
    }
}

/// How the whole run is to be attached, if it is asked: the same tests are to hold for TCX and for clsact.
fn asked_via() -> Option<String> {
    std::env::var("NETPATH_TEST_TC").ok().filter(|word| !word.is_empty())
}

/// Whether a test attaches by filters as well: not where that is the usual way, nor where the run was asked for one.
pub(crate) fn runs_both_ways() -> bool {
    asked_via().is_none() && usual_via() == Via::Tcx
}

/// How TC programs come to be attached where a test does not say it.
///
/// By the kernel's release, not by trying: a kernel that ought to have TCX and gets clsact is a failure.
pub(crate) fn usual_via() -> Via {
    match asked_via().as_deref() {
        Some("clsact") => Via::Clsact,
        Some("tcx") => Via::Tcx,
        Some("auto") | None if (6, 6) <= kernel_release() => Via::Tcx,
        Some("auto") | None => Via::Clsact,
        Some(word) => panic!("NETPATH_TEST_TC is `{word}`, not a word for `tc` in masters.json"),
    }
}

/// Version and patch level of the running kernel.
pub(crate) fn kernel_release() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("procfs");
    let mut numbers = release.split(['.', '-']).map(|number| number.trim().parse().expect("a number"));
    (numbers.next().expect("a version"), numbers.next().expect("a patch level"))
}

/// A network configuration with fixed addresses.
pub(crate) fn conf(addresses: &[&str], zone: Option<&Value>) -> Value {
    let addresses: Vec<_> = addresses.iter().map(|address| json!({ "address": address })).collect();
    let mut conf = json!({
        "cniVersion": "1.0.0", "name": "privatezone", "type": "macvlan", "master": MASTER, "mode": "bridge",
        "ipam": { "type": "static", "addresses": addresses },
    });
    if let Some(zone) = zone {
        conf["zone"] = zone.clone();
    }
    conf
}

/// Turns off what talks unasked.
fn quiet(netns: &NetNs, v6: bool) {
    for key in ["all", "default"] {
        if v6 {
            netns.set_sysctl(&format!("net/ipv6/conf/{key}/accept_dad"), "0");
            netns.set_sysctl(&format!("net/ipv6/conf/{key}/router_solicitations"), "0");
        } else {
            netns.set_sysctl(&format!("net/ipv6/conf/{key}/disable_ipv6"), "1");
        }
    }
}

/// A MAC for `ip`.
pub(crate) fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Sends `frame` (with `marker`) and a fence behind it; whether the frame was at `to` before the fence.
///
/// The fence shows that absence is no matter of time: what was sent before it would have been there.
#[track_caller]
pub(crate) fn crosses(
    from: &RawSocket,
    to: &RawSocket,
    frame: &[u8],
    marker: &[u8],
    fence: impl Fn(&[u8]) -> Vec<u8>,
) -> bool {
    stay_on_this_cpu();
    // A drop is ENOBUFS here; whether it was one is what the far end says.
    let _ = from.send(frame);
    let mark = wire::marker();
    from.send(&fence(&mark)).expect("the fence is allowed");
    to.until(&mark).iter().any(|seen| wire::carries(seen, marker))
}

/// Frames that one CPU sends stay in order on their way through queues per CPU.
pub(crate) fn stay_on_this_cpu() {
    use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
    let mut cpus = CpuSet::new();
    cpus.set(sched_getcpu().expect("a CPU")).expect("within the set");
    sched_setaffinity(nix::unistd::Pid::from_raw(0), &cpus).expect("this thread's affinity");
}

/// A fence from a pod to the gateway.
pub(crate) fn pod_fence(pod: &Pod, own: Ipv4Addr) -> impl Fn(&[u8]) -> Vec<u8> {
    let mac = pod.mac;
    move |marker| udp_frame((mac, OUTSIDE_MAC), own, GATEWAY, (9, 9), marker)
}

/// Index of a drop reason in the counters.
pub(crate) fn at(reason: DropReason) -> usize {
    usize::from(reason as u8)
}
