//! Programs and filters of others on a policed master: ours comes first and lets the others run; where it cannot
//! come first, or cannot be there at all, that is said by name, and what can be enforced is.

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc;

use aya::programs::tc::{NlOptions, TcAttachOptions, qdisc_add_clsact};
use aya::programs::{LinkOrder, Program, SchedClassifier, TcAttachType};
use common::enforce::{
    POD, alerts, all_live, by_clsact, hooks, is_enforced, is_well, leaves, policed, private, ways,
};
use common::loaded::programs;
use common::node::{INTERNET, MASTER, Node, WIRE, conf};
use common::{NetNs, PATIENCE, eventually, run};
use netpath::kernel::bpf::Hook;
use netpath::kernel::bpf::maps::Maps;
use netpath::kernel::bpf::object::{self, Settings};
use netpath_ebpf::abi::{Master, unknown_source};
use serde_json::json;
use tempfile::TempDir;

/// Somebody else's program: ours once more, on maps of its own, under a name of its own in the chain.
///
/// It knows nobody, so it lets everything pass with the verdict "next".
struct Stranger {
    programs: BTreeMap<Hook, Program>,
    maps: Maps,
    root: netpath::root::Root,
    _directory: TempDir,
}

impl Stranger {
    fn new() -> Self {
        let directory = TempDir::with_prefix("netpath-stranger-").expect("a directory");
        let root = netpath::root::Root::new(directory.path());
        netpath::kernel::bpf::bpffs::ensure(&root.bpffs()).expect("a BPF file system");
        std::fs::create_dir_all(root.pins().join("maps")).expect("a directory");
        let maps = object::maps(&root.pins(), &Settings::default()).expect("maps");
        let programs = programs(&root.pins(), 1, &[Hook::Egress, Hook::Xdp]);
        Self { programs, maps, root, _directory: directory }
    }

    /// Frames of the pods that it has let pass.
    fn seen(&self) -> u64 {
        self.maps.counters().expect("mapped").master(1).unknown_passed
    }

    fn egress(&mut self) -> &mut SchedClassifier {
        let program = self.programs.get_mut(&Hook::Egress).expect("a program");
        program.try_into().expect("a classifier")
    }

    /// Puts it at the head of the TCX chain.
    fn first_by_tcx(&mut self, node: &Node) {
        let program = self.egress();
        let order = TcAttachOptions::TcxOrder(LinkOrder::first());
        let attached = node.netns.within(|| program.attach_with_options(MASTER, TcAttachType::Egress, order));
        attached.expect("it can be attached");
    }

    /// Puts it into the priority of ours: there the youngest filter runs first.
    fn first_by_clsact(&mut self, node: &Node) {
        let program = self.egress();
        let options = NlOptions { priority: 1, ..NlOptions::default() };
        let attached = node.netns.within(|| {
            let _ = qdisc_add_clsact(MASTER);
            program.attach_with_options(MASTER, TcAttachType::Egress, TcAttachOptions::Netlink(options))
        });
        attached.expect("it can be attached");
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.root.bpffs()).status();
    }
}

#[test]
fn who_comes_before_us_is_named_by_status_and_by_attach() {
    for entry in ways() {
        let node = Node::new(&entry);
        let pod = policed(&node);
        is_well(&node);
        let mut stranger = Stranger::new();
        match by_clsact(&node) {
            true => stranger.first_by_clsact(&node),
            false => stranger.first_by_tcx(&node),
        }
        let sentence = format!("{MASTER}: egress runs before netpath at egress and may decide alone");
        alerts(&node, &sentence);
        // Ours is still behind it: only a verdict of the other would take a frame out of its hands.
        assert!(is_enforced(&node, &pod));
        let output = node.try_netpath(&["attach", MASTER]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(4), "{said}");
        assert!(said.contains(&format!("ALERT: {sentence}")), "{said}");
        drop(stranger);
        if by_clsact(&node) {
            // The kernel gave the youngest filter the first handle of its own.
            node.netns.exec(&format!("tc filter del dev {MASTER} egress prio 1 handle 0x1 bpf"));
        }
        node.netpath(&["attach", MASTER]);
        is_well(&node);
    }
}

#[test]
fn a_tcx_program_before_our_clsact_filter_is_named() {
    let node = Node::new(&json!({ "unknownSource": "drop", "tc": "clsact" }));
    let pod = policed(&node);
    assert!(by_clsact(&node));
    let mut stranger = Stranger::new();
    let program = stranger.egress();
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    let attached = node.netns.within(|| program.attach_with_options(MASTER, TcAttachType::Egress, order));
    match attached {
        Ok(_) => alerts(&node, &format!("{MASTER}: egress runs before netpath at egress")),
        // Before Linux 6.6 there is no such chain that anybody could stand in.
        Err(error) => {
            assert!(common::chain(&error).contains("Invalid argument"), "{}", common::chain(&error));
        }
    }
    assert!(is_enforced(&node, &pod));
}

#[test]
fn what_we_let_pass_goes_on_to_the_filters_behind_us() {
    for entry in ways() {
        let node = Node::new(&entry);
        let pod = policed(&node);
        let mut stranger = Stranger::new();
        let [(id, row)] = node.maps().masters().expect("readable")[..] else { panic!("one master") };
        let row = Master { unknown_source: unknown_source::AUDIT, ..row };
        stranger.maps.set_master(id, &row).expect("written");
        let program = stranger.egress();
        let options = NlOptions { priority: 7, ..NlOptions::default() };
        let attached = node.netns.within(|| {
            let _ = qdisc_add_clsact(MASTER);
            program.attach_with_options(MASTER, TcAttachType::Egress, TcAttachOptions::Netlink(options))
        });
        attached.expect("it can be attached");
        // To the stranger the pod's MAC is nobody's: what it sees is counted, and passes.
        let before = stranger.seen();
        assert!(is_enforced(&node, &pod));
        assert_eq!(
            stranger.seen() - before,
            3,
            "an allowed frame and two fences; the denied one is gone before"
        );
        is_well(&node);
    }
}

#[test]
fn a_priority_that_is_taken_is_a_named_error() {
    let node = Node::new(&json!({ "tc": "clsact" }));
    node.netns.exec(&format!("tc qdisc add dev {MASTER} clsact"));
    node.netns
        .exec(&format!("tc filter add dev {MASTER} egress prio 1 protocol ip u32 match u32 0 0 flowid 1:1"));
    let netns = NetNs::new("pod");
    let output = node.call("ADD", &netns, &conf(&["10.12.34.200/24"], Some(&private())));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("cannot attach program `egress`") && said.contains("priority 1"), "{said}");
    assert!(!netns.ip("link").contains("net1"), "a refused ADD leaves nothing behind");
    let left = node.netns.exec(&format!("tc filter show dev {MASTER} ingress"));
    assert_eq!(left.trim(), "", "half of the hooks would judge half of the frames");
    node.netns.exec(&format!("tc filter del dev {MASTER} egress prio 1"));
    let pod = policed(&node);
    assert!(is_enforced(&node, &pod));
}

/// What the kernel says of the far end of the wire while `run` runs: a veth's other end is given other offloads whenever a program
/// comes to the master's XDP hook or goes from it.
#[track_caller]
fn heard_at_the_far_end(node: &Node, run: impl FnOnce()) -> Vec<String> {
    let mut command = Command::new("ip");
    command.args(["-o", "monitor", "link", "dev", WIRE]).stdout(Stdio::piped());
    let mut monitor = node.outside.within(|| command.spawn()).expect("ip is installed");
    let (sender, lines) = mpsc::channel();
    let output = BufReader::new(monitor.stdout.take().expect("piped"));
    let reader = std::thread::spawn(move || {
        output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)).ok();
    });
    // `ip` prints no alias in a line, and a group it does.
    let fence = |group: &str| node.outside.ip(&format!("link set {WIRE} group {group}"));
    let is_fence = |line: &String, group: &str| line.contains(&format!("group {group} "));
    eventually(PATIENCE, "it listens", || {
        fence("7001");
        fence("7002");
        lines.try_iter().find(|line| is_fence(line, "7002"))
    });
    fence("7003");
    let next = || lines.recv_timeout(PATIENCE).expect("it hears what is done");
    while !is_fence(&next(), "7003") {}
    run();
    fence("7004");
    let mut heard = Vec::new();
    loop {
        match next() {
            line if is_fence(&line, "7004") => break,
            line => heard.push(line),
        }
    }
    monitor.kill().expect("it runs");
    monitor.wait().expect("ours");
    reader.join().expect("it does not panic");
    heard
}

/// To take an XDP program many a NIC stops for a moment, with the node's own traffic.
#[test]
fn xdp_is_not_asked_for_before_everything_else_is_in_place() {
    let entry = json!({ "tc": "clsact", "xdp": "native" });
    let node = Node::new(&entry);
    node.netns.exec(&format!("tc qdisc add dev {MASTER} clsact"));
    for hook in ["ingress", "egress"] {
        let filter = format!("dev {MASTER} {hook} prio 1");
        node.netns.exec(&format!("tc filter add {filter} protocol ip u32 match u32 0 0 flowid 1:1"));
        let heard = heard_at_the_far_end(&node, || {
            let program = format!("cannot attach program `{hook}`");
            refused(&node, &[&program, "priority 1"]);
        });
        assert_eq!(heard, Vec::<String>::new(), "{hook} failed, and XDP was asked for");
        node.netns.exec(&format!("tc filter del {filter}"));
    }
    let heard = heard_at_the_far_end(&node, || drop(policed(&node)));
    assert!(!heard.is_empty(), "a program that comes is not heard, so that its absence says nothing");
    all_live(&node, &entry);
}

/// The kernel takes a filter for what is sent there, and has it judge what arrives.
#[test]
fn a_qdisc_without_a_place_for_what_is_sent_is_a_named_error() {
    let entry = json!({ "unknownSource": "drop", "tc": "clsact" });
    let node = Node::new(&entry);
    let (theirs, ours) = (format!("dev {MASTER} ingress"), format!("dev {MASTER} clsact"));
    let named = ["which has a qdisc `ingress`", &format!("tc qdisc del {theirs}")];
    node.netns.exec(&format!("tc qdisc add {theirs}"));
    refused(&node, &named);
    node.netns.exec(&format!("tc qdisc del {theirs}"));
    let pod = policed(&node);
    all_live(&node, &entry);
    assert!(is_enforced(&node, &pod));
    // It comes later, in the place of ours, and a filter of ours is in it.
    node.netns.exec(&format!("tc qdisc del {ours}"));
    node.netns.exec(&format!("tc qdisc add {theirs}"));
    our_egress_filter(&node, "protocol all", "direct-action");
    assert_eq!(hooks(&node).iter().filter(|state| state.hook == Hook::Egress && state.live).count(), 0);
    alerts(&node, &format!("{MASTER}: egress is not attached"));
    assert!(!node.try_netpath(&["attach"]).status.success());
    node.netns.exec(&format!("tc qdisc del {theirs}"));
    node.netpath(&["attach"]);
    all_live(&node, &entry);
    assert!(is_enforced(&node, &pod));
}

/// Adds a filter for our program with our priority and handle, by somebody else.
fn our_egress_filter(node: &Node, words: &str, action: &str) {
    let pin = node.root.pins().join("progs/1/egress");
    let filter = format!("dev {MASTER} parent ffff:fff3 prio 1 handle 0x6e70 {words}");
    let line = format!("tc filter add {filter} bpf {action} object-pinned");
    let words: Vec<&str> = line.split_whitespace().chain(pin.to_str()).collect();
    // `ip netns exec` would hide the BPF file system.
    node.netns.within(|| run(&words));
}

/// It runs our program, and not on every packet, or what that says is a class and no verdict.
#[test]
fn a_filter_that_does_not_decide_on_every_packet_is_not_ours() {
    let entry = json!({ "unknownSource": "drop", "tc": "clsact" });
    let verdict = "direct-action";
    for (words, action) in [("protocol all chain 5", verdict), ("protocol ip", verdict), ("protocol all", "")]
    {
        let node = Node::new(&entry);
        let pod = policed(&node);
        node.netns.exec(&format!("tc filter del dev {MASTER} egress prio 1"));
        our_egress_filter(&node, words, action);
        alerts(&node, &format!("{MASTER}: egress is not attached"));
        if words == "protocol ip" {
            let refused = node.try_netpath(&["attach"]);
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(!refused.status.success() && said.contains("priority 1"), "{said}");
            node.netns.exec(&format!("tc filter del dev {MASTER} egress prio 1"));
        }
        node.netpath(&["attach"]);
        all_live(&node, &entry);
        assert!(is_enforced(&node, &pod), "{words}");
        is_well(&node);
    }
}

/// While ingress is off, XDP is all that judges what arrives.
#[test]
fn xdp_that_is_not_wanted_any_more_goes_when_everything_else_is_in_place() {
    let (with, without) =
        (json!({ "tc": "clsact", "xdp": "native" }), json!({ "tc": "clsact", "xdp": "off" }));
    let node = Node::new(&with);
    let _pod = node.pod(&["10.12.34.201/24"], Some(&private()));
    all_live(&node, &with);
    let filter = format!("dev {MASTER} ingress prio 1");
    node.netns.exec(&format!("tc qdisc del dev {MASTER} clsact"));
    node.netns.exec(&format!("tc qdisc add dev {MASTER} clsact"));
    node.netns.exec(&format!("tc filter add {filter} protocol ip u32 match u32 0 0 flowid 1:1"));
    node.set_master(&without);
    refused(&node, &["cannot attach program `ingress`", "priority 1"]);
    let xdp = hooks(&node).into_iter().find(|state| state.hook == Hook::Xdp);
    assert!(xdp.is_some_and(|state| state.live), "nothing judges what arrives");
    node.netns.exec(&format!("tc filter del {filter}"));
    node.netpath(&["attach"]);
    all_live(&node, &without);
}

/// Pins the program `xdp` of a stranger, for `ip` to attach it: without a link, as most do.
fn foreign_xdp(stranger: &mut Stranger, mode: &str, node: &Node) {
    let program = stranger.programs.get_mut(&Hook::Xdp).expect("a program");
    let pin = stranger.root.pins().join("foreign");
    if !pin.exists() {
        program.pin(&pin).expect("pinned");
    }
    // `ip netns exec` would hide the BPF file system.
    let pin = pin.to_str().expect("text");
    node.netns.within(|| run(&["ip", "link", "set", MASTER, mode, "pinned", pin]));
}

#[test]
fn somebody_elses_native_xdp_is_a_named_error_and_tc_enforces_without() {
    let entry = json!({ "unknownSource": "drop", "xdp": "native" });
    let node = Node::new(&entry);
    let mut stranger = Stranger::new();
    foreign_xdp(&mut stranger, "xdpdrv", &node);
    refused(&node, &["another XDP program is attached", "bpftool net show"]);
    // As the error says: TC enforces without XDP, and theirs goes on.
    node.set_master(&json!({ "unknownSource": "drop", "xdp": "off" }));
    let pod = policed(&node);
    assert!(is_enforced(&node, &pod));
    is_well(&node);
    // Wanted again it fails again, and ends nothing.
    node.set_master(&entry);
    let output = node.try_netpath(&["attach"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("another XDP program is attached"), "{said}");
    alerts(&node, &format!("{MASTER}: xdp is not attached"));
    assert!(is_enforced(&node, &pod), "what was attached stays");
    assert!(node.netns.ip(&format!("link show {MASTER}")).contains("xdp"), "theirs is gone");
    // Once theirs has gone ours may come, without a gap for the pod that runs.
    node.netns.ip(&format!("link set {MASTER} xdpdrv off"));
    node.netpath(&["attach"]);
    all_live(&node, &entry);
    assert!(is_enforced(&node, &pod));
    is_well(&node);
}

#[test]
fn generic_xdp_would_blind_tc_and_is_a_named_error() {
    for xdp in ["off", "native"] {
        let entry = json!({ "unknownSource": "drop", "xdp": xdp });
        let node = Node::new(&entry);
        let mut stranger = Stranger::new();
        foreign_xdp(&mut stranger, "xdpgeneric", &node);
        refused(&node, &["in generic mode", "xdpgeneric off"]);
        node.netns.ip(&format!("link set {MASTER} xdpgeneric off"));
        let pod = policed(&node);
        assert!(is_enforced(&node, &pod));
        is_well(&node);
        if xdp == "native" {
            // The kernel lets nobody attach it beside ours.
            continue;
        }
        // One that comes later is named until it goes.
        foreign_xdp(&mut stranger, "xdpgeneric", &node);
        alerts(&node, &format!("{MASTER}: XDP program "));
        assert!(!leaves(&node, &pod, POD, INTERNET), "what leaves is judged all the same");
        let output = node.try_netpath(&["attach"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("in generic mode"), "{said}");
        node.netns.ip(&format!("link set {MASTER} xdpgeneric off"));
        is_well(&node);
        assert!(is_enforced(&node, &pod));
    }
}

/// An ADD fails with an error that says all of this, and leaves nothing behind.
#[track_caller]
fn refused(node: &Node, words: &[&str]) {
    let netns = NetNs::new("pod");
    let output = node.call("ADD", &netns, &conf(&["10.12.34.200/24"], Some(&private())));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!output.status.success() && words.iter().all(|word| said.contains(word)), "{said}");
    assert!(!netns.ip("link").contains("net1"), "a refused ADD leaves nothing behind");
}
