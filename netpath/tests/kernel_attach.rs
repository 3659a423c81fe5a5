//! The life of the programs on a master: attached once, replaced without a gap, kept when nothing of netpath
//! runs, attached again to a NIC that comes back, removed without a trace. By TCX and by clsact.

mod common;

use std::cell::Cell;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use aya::maps::{Array, Map, MapData};
use aya::programs::ProgramError;
use aya_obj::{VerifierLog, copy_instructions};
use common::node::{
    GATEWAY, INTERNET, MASTER, Node, OUTSIDE_MAC, Pod, WIRE, conf, crosses, kernel_release, pod_fence,
    runs_both_ways, usual_via,
};
use common::traffic::under_traffic;
use common::wire::{marker, udp_frame};
use common::{NetNs, PATIENCE, eventually, run, veth};
use netpath::kernel::bpf::attach::{HookState, Via, inspect};
use netpath::kernel::bpf::events::{Consumer, EventsError};
use netpath::kernel::bpf::maps::{EVENT_BURST, pin_of};
use netpath::kernel::bpf::{BpfError, Hook, object, told};
use netpath::kernel::netlink::Netlink;
use netpath::observe::{Direction, Event};
use netpath::police::{self, MasterLink};
use netpath::root::Root;
use netpath::state::Lock;
use netpath_ebpf::abi::{Master, kind, mode};
use serde_json::{Value, json};

const POD: Ipv4Addr = Ipv4Addr::new(10, 12, 34, 200);

fn private() -> Value {
    json!({ "policy": "private" })
}

/// The ways programs are attached: what masters.json says, and what comes of it on this kernel.
fn ways() -> Vec<(Value, Via, bool)> {
    let mut ways = vec![
        (json!({ "unknownSource": "drop" }), usual_via(), false),
        (json!({ "unknownSource": "drop", "xdp": "native" }), usual_via(), true),
    ];
    if runs_both_ways() {
        ways.insert(1, (json!({ "unknownSource": "drop", "tc": "clsact" }), Via::Clsact, false));
    }
    ways
}

fn ifindex(node: &Node) -> u32 {
    node.netns.exec(&format!("cat /sys/class/net/{MASTER}/ifindex")).trim().parse().expect("an index")
}

fn hooks(node: &Node) -> Vec<HookState> {
    node.netns.within(|| inspect(&node.root.pins(), 1, ifindex(node))).expect("readable")
}

/// Ids of the pinned links: an update keeps them, a new attachment does not.
fn link_ids(node: &Node) -> Vec<u64> {
    let links = node.root.pins().join("links/1");
    let mut pins: Vec<_> =
        std::fs::read_dir(links).into_iter().flatten().map(|pin| pin.expect("a pin").path()).collect();
    pins.sort();
    let id = |pin: &std::path::PathBuf| {
        let shown = run(&["bpftool", "-j", "link", "show", "pinned", pin.to_str().expect("text")]);
        let shown: Value = serde_json::from_str(&shown).expect("JSON");
        shown["id"].as_u64().expect("an id")
    };
    pins.iter().map(id).collect()
}

/// Whether a datagram from the pod reaches the wire's far end.
fn leaves(node: &Node, pod: &Pod, address: Ipv4Addr) -> bool {
    let mark = marker();
    let frame = udp_frame((pod.mac, OUTSIDE_MAC), POD, address, (1, 2), &mark);
    crosses(&pod.socket(), &node.far_end(), &frame, &mark, pod_fence(pod, POD))
}

fn is_enforced(node: &Node, pod: &Pod) -> bool {
    assert!(leaves(node, pod, GATEWAY), "the zone itself stays open");
    !leaves(node, pod, INTERNET)
}

#[test]
fn programs_are_replaced_under_traffic_without_a_gap_and_counters_go_on() {
    for (entry, via, xdp) in ways() {
        let node = Node::new(&entry);
        let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
        let (before, links, row) = (hooks(&node), link_ids(&node), node.row(&pod));
        assert_eq!(before.len(), if xdp { 3 } else { 2 });
        assert!(before.iter().all(|hook| hook.live), "{before:?}");
        assert!(before.iter().all(|hook| hook.via == via || hook.hook == Hook::Xdp), "{before:?}");
        // As if an older build had attached them.
        let mut maps = node.maps();
        let [(id, master)] = maps.masters().expect("readable")[..] else { panic!("one master") };
        maps.set_master(id, &Master { object: 1, ..master }).expect("written");
        under_traffic(&node, &pod, POD, || {
            for _ in 0..4 {
                let said = node.netpath(&["attach"]);
                assert_eq!(said.matches("replaced").count(), before.len(), "{said}");
                assert!(!said.contains("attached"), "{said}");
            }
        });
        let after = hooks(&node);
        for (old, new) in before.iter().zip(&after) {
            assert!(new.live && new.via == old.via && new.program != old.program, "{old:?} {new:?}");
        }
        assert_eq!(link_ids(&node), links, "links are updated, not made again");
        assert_eq!(node.row(&pod), row);
        assert_eq!(maps.masters().expect("readable"), [(id, master)], "the digest is this build's again");
    }
}

/// What programs compare with what they remember.
fn epoch(node: &Node) -> u32 {
    let data = MapData::from_pin(pin_of(&node.root.pins(), "epoch")).expect("pinned");
    let map: Array<_, u32> = Map::Array(data).try_into().expect("one number");
    map.get(&0, 0).expect("readable")
}

#[test]
fn a_second_start_changes_nothing() {
    for (entry, _, _) in ways() {
        let node = Node::new(&entry);
        let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
        let (before, links) = (hooks(&node), link_ids(&node));
        let masters = police::masters(&node.root).expect("valid");
        let started = epoch(&node);
        let again = node.netns.within(|| {
            let mut netlink = Netlink::open().expect("netlink");
            let link = netlink.link_by_name(MASTER).expect("the master");
            let entry = masters.find(&[MASTER]).expect("one").cloned();
            let _lock = Lock::acquire(&node.root).expect("nobody else has the lock");
            police::attach(&node.root, &mut netlink, &MasterLink { link, entry }, false)
                .expect("attached")
                .changes
        });
        assert_eq!(again, []);
        // Whoever changed a map by hand says so by it.
        assert!(
            started < epoch(&node) && epoch(&node).is_multiple_of(2),
            "what programs remember is ended all the same"
        );
        let second = node.pod(&["10.12.34.201/24"], Some(&private()));
        assert_eq!(
            (hooks(&node), link_ids(&node)),
            (before, links),
            "the second pod finds everything in place"
        );
        assert_ne!(node.row(&second).id, node.row(&pod).id);
    }
}

#[test]
fn enforcement_and_counting_go_on_when_nothing_of_netpath_runs() {
    for (entry, _, _) in ways() {
        let node = Node::new(&entry);
        let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
        let mut environment = b"NETPATH_ROOT=".to_vec();
        environment.extend(node.root.path().as_os_str().as_encoded_bytes());
        let processes = std::fs::read_dir("/proc").expect("procfs").flatten();
        let alive = processes.filter(|process| {
            let found = std::fs::read(process.path().join("environ")).unwrap_or_default();
            found.split(|byte| *byte == 0).any(|variable| variable == environment)
        });
        assert_eq!(alive.count(), 0, "a process of this root is still there");
        let before = node.counters(&pod);
        assert!(is_enforced(&node, &pod));
        let now = node.counters(&pod);
        assert_eq!([now.tx_packets - before.tx_packets, now.tx_dropped - before.tx_dropped], [3, 1]);
    }
}

#[test]
fn uninstall_leaves_no_trace_and_a_later_pod_installs_again() {
    for (entry, _, _) in ways() {
        let node = Node::new(&entry);
        let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
        assert!(is_enforced(&node, &pod));
        node.uninstall();
        assert!(!node.root.pins().exists(), "pins are left");
        assert!(leaves(&node, &pod, INTERNET), "a program is left");
        for way in ["ingress", "egress"] {
            let filters = node.netns.exec(&format!("tc filter show dev {MASTER} {way}"));
            assert_eq!(filters.trim(), "", "{way}");
        }
        assert!(!node.netns.ip(&format!("link show {MASTER}")).contains("xdp"));
        node.uninstall();
        node.delete(&pod);
        let again = node.pod(&["10.12.34.200/24"], Some(&private()));
        assert!(is_enforced(&node, &again));
    }
}

#[test]
fn a_pod_that_lost_its_row_gets_it_again_with_its_zone() {
    let node = Node::new(&json!({}));
    let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
    node.uninstall();
    assert!(leaves(&node, &pod, INTERNET), "nothing polices it");
    // The census of the next attach finds its MAC, and its record says whose that is.
    node.netpath(&["attach", MASTER]);
    let row = node.row(&pod);
    assert_eq!((row.kind, row.mode), (kind::ENDPOINT, mode::ENFORCE));
    assert!(is_enforced(&node, &pod));
    node.delete(&pod);
    assert_eq!(node.maps().endpoints().expect("readable"), [], "DEL finds the new row");
}

#[test]
fn a_master_that_was_deleted_and_made_again_is_attached_again() {
    // Whether the new NIC gets the old one's index or another one, the pins of the old one are dead.
    for same_index in [true, false] {
        for (entry, _, xdp) in ways().into_iter().take(if same_index { usize::MAX } else { 1 }) {
            let node = Node::new(&entry);
            let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
            let index = ifindex(&node);
            node.netns.ip(&format!("link del {MASTER}"));
            if same_index {
                let other = node.outside.name();
                node.netns
                    .ip(&format!("link add {MASTER} index {index} type veth peer name {WIRE} netns {other}"));
                node.netns.ip(&format!("link set {MASTER} up"));
                node.outside.ip(&format!("link set {WIRE} up"));
            } else {
                node.netns.ip("link add filler type bridge");
                veth(&node.netns, MASTER, &node.outside, WIRE);
            }
            assert_eq!(ifindex(&node) == index, same_index);
            node.address();
            node.delete(&pod);
            let said = node.netpath(&["attach"]);
            assert_eq!(said.matches(" attached (").count(), if xdp { 3 } else { 2 }, "{said}");
            let states = hooks(&node);
            assert!(states.iter().all(|state| state.live), "same index {same_index}: {states:?}");
            let masters = node.maps().masters().expect("readable");
            assert_eq!(masters.len(), 1, "the row of the NIC that is gone is free again");
            let again = node.pod(&["10.12.34.200/24"], Some(&private()));
            assert!(is_enforced(&node, &again), "same index {same_index}");
        }
    }
}

#[test]
fn a_pod_that_outlives_its_nic_leaves_no_row() {
    let node = Node::new(&json!({}));
    let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
    node.netns.ip(&format!("link del {MASTER}"));
    node.netns.ip("link add filler type bridge");
    veth(&node.netns, MASTER, &node.outside, WIRE);
    node.address();
    // The row of the old NIC is freed, and with it the way from an interface index to the rows of its pods.
    node.netpath(&["attach"]);
    assert_eq!(node.maps().endpoints().expect("readable").len(), 1);
    node.delete(&pod);
    assert_eq!(node.maps().endpoints().expect("readable"), []);
}

#[test]
fn a_stranger_that_went_with_the_nic_is_not_let_pass_on_the_next() {
    let node = Node::new(&json!({}));
    let (index, elsewhere) = (ifindex(&node), NetNs::new("elsewhere"));
    let name = elsewhere.name();
    node.netns.ip(&format!("link add name stranger link {MASTER} netns {name} type macvlan mode bridge"));
    elsewhere.ip("link set stranger up");
    node.netpath(&["attach"]);
    let kinds =
        || node.maps().endpoints().expect("readable").iter().map(|(_, row)| row.kind).collect::<Vec<_>>();
    assert_eq!(kinds(), [kind::FOREIGN]);
    node.netns.ip(&format!("link del {MASTER}"));
    let other = node.outside.name();
    node.netns.ip(&format!("link add {MASTER} index {index} type veth peer name {WIRE} netns {other}"));
    node.netns.ip(&format!("link set {MASTER} up"));
    node.netpath(&["attach"]);
    assert!(kinds().is_empty(), "{:?}", kinds());
}

#[test]
fn the_switch_file_stops_all_attaching_and_ends_nothing() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
    std::fs::create_dir_all(node.root.disable().parent().expect("a parent")).expect("a directory");
    std::fs::write(node.root.disable(), "").expect("a file");
    let netns = NetNs::new("pod");
    let output = node.call("ADD", &netns, &conf(&["10.12.34.201/24"], Some(&private())));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!output.status.success() && said.contains("etc/netpath/disable"), "{said}");
    assert!(!netns.ip("link").contains("net1"), "a refused ADD leaves nothing behind");
    let output = node.try_netpath(&["attach"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("etc/netpath/disable"), "{said}");
    assert!(is_enforced(&node, &pod), "what is attached stays attached");
    std::fs::remove_file(node.root.disable()).expect("removed");
    node.netpath(&["attach"]);
}

/// Attaches the programs of another root to the same master: another netpath, as good as any stranger.
fn stranger(node: &Node, root: &Root, entry: &Value) -> std::process::Output {
    node.write(&root.masters(), &json!({ MASTER: entry }));
    let root = root.path().to_str().expect("text");
    node.try_netpath(&["--root", root, "attach"])
}

/// A second root, unmounted when it goes.
struct Second {
    directory: tempfile::TempDir,
}

impl Second {
    fn new() -> Self {
        Self { directory: tempfile::TempDir::with_prefix("netpath-second-").expect("a directory") }
    }

    fn root(&self) -> Root {
        Root::new(self.directory.path())
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        let path = self.root().bpffs();
        let _ = std::process::Command::new("umount").arg(path).stderr(std::process::Stdio::null()).status();
    }
}

#[test]
fn somebody_elses_xdp_is_a_named_error_and_tc_does_without() {
    let node = Node::new(&json!({ "unknownSource": "drop", "xdp": "native" }));
    let second = Second::new();
    assert!(stranger(&node, &second.root(), &json!({ "xdp": "native" })).status.success());
    let netns = NetNs::new("pod");
    let output = node.call("ADD", &netns, &conf(&["10.12.34.200/24"], Some(&private())));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("another XDP program is attached") && said.contains("bpftool net show"), "{said}");
    assert!(!netns.ip("link").contains("net1"), "a refused ADD leaves nothing behind");
    node.set_master(&json!({ "unknownSource": "drop", "xdp": "off" }));
    let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
    assert!(is_enforced(&node, &pod));
}

#[test]
fn ours_comes_first_and_others_still_see_what_may_pass() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    let second = Second::new();
    assert!(stranger(&node, &second.root(), &json!({})).status.success());
    let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
    // To the stranger the pod's MAC is nobody's: it passes, and is counted.
    let others = || {
        let maps =
            netpath::kernel::bpf::maps::Maps::open(&second.root().pins()).expect("readable").expect("loaded");
        maps.counters().expect("mapped").master(1).unknown_passed
    };
    let before = others();
    assert!(is_enforced(&node, &pod));
    assert_eq!(others() - before, 3, "two fences and one allowed frame; the denied one was gone before");

    // The one that stands behind us is told so: who comes first may decide alone.
    let states = node.netns.within(|| inspect(&second.root().pins(), 1, ifindex(&node))).expect("readable");
    let ahead = |states: &[HookState]| node.netns.within(|| police::ahead(MASTER, ifindex(&node), states));
    assert_eq!(
        ahead(&states).expect("listed"),
        [(Hook::Ingress, vec!["ingress".to_owned()]), (Hook::Egress, vec!["egress".to_owned()])]
    );
    assert_eq!(ahead(&hooks(&node)).expect("listed"), []);
}

#[test]
fn events_arrive_at_one_consumer_and_are_limited() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
    let lock = node.root.events_lock();
    let mut consumer = Consumer::new(&node.root.pins(), &lock).expect("the first");
    match Consumer::new(&node.root.pins(), Path::new(&lock)) {
        Err(EventsError::Taken { holder }) => assert_eq!(holder, std::process::id().to_string()),
        Err(error) => panic!("{}", common::chain(&error)),
        Ok(_) => panic!("two consumers steal from each other"),
    }
    let mut maps = node.maps();
    consumer.grant_all(&mut maps).expect("granted");
    let (socket, row, before) = (pod.socket(), node.row(&pod), node.totals());
    let drop_many = |consumer: &mut Consumer| {
        for _ in 0..20 {
            let frame = udp_frame((pod.mac, OUTSIDE_MAC), POD, INTERNET, (4660, 53), b"to the internet");
            socket.send(&frame).expect_err("dropped");
        }
        let mut events = Vec::new();
        while consumer
            .read(Duration::from_millis(20), |bytes| events.push(Event::decode(bytes).expect("an event")))
            .expect("readable")
            > 0
        {}
        events
    };
    let burst = usize::try_from(EVENT_BURST).expect("small");
    let events = drop_many(&mut consumer);
    assert_eq!(events.len(), burst, "limited by endpoint and reason");
    for event in &events {
        assert_eq!(
            (event.endpoint, event.generation, event.direction),
            (row.id, row.generation, Direction::Tx)
        );
        let line = event.line(|_, _| Some("default/net-pod".to_owned()));
        assert!(
            line.contains("8.8.8.8") && line.contains("zone-deny") && line.contains("default/net-pod"),
            "{line}"
        );
    }
    assert_eq!(drop_many(&mut consumer).len(), 0, "without a grant drops are counted and not emitted");
    consumer.grant_spent(&mut maps).expect("granted");
    assert_eq!(drop_many(&mut consumer).len(), burst);
    let now = node.totals();
    let total = u64::try_from(burst).expect("small");
    assert_eq!(now.events_emitted - before.events_emitted, 2 * total);
    assert_eq!(now.events_limited - before.events_limited, 60 - 2 * total);
    assert_eq!(now.events_lost, 0);
    assert_eq!(node.counters(&pod).tx_dropped, 60, "every drop is counted, whatever becomes of its event");
    drop(consumer);
    eventually(PATIENCE, "the lock is free again", || Consumer::new(&node.root.pins(), &lock).ok());
}

/// Takes the place of a kernel that refuses whole programs that go by its types to whose namespace a frame is from: none that can be
/// had does. The second set is the real one, in the real kernel.
#[test]
fn programs_that_are_refused_by_types_are_loaded_without() {
    let refusals = Cell::new(0);
    let loaded = told::with_what_is_known(|object, told| {
        if told.netns_cookie() != "types" {
            return object::verify_by(object, told);
        }
        refusals.set(refusals.get() + 1);
        let source = ProgramError::LoadError {
            io_error: io::Error::from_raw_os_error(libc::EACCES),
            verifier_log: VerifierLog::new(String::new()),
        };
        Err(BpfError::Program { program: Hook::Ingress.name(), source: Box::new(source) })
    });
    let (by, expected) = match kernel_release() {
        release if release < (6, 2) => ("nothing", 0),
        release if release < (6, 13) => ("nothing", 1),
        _ => ("helper", 0),
    };
    let loaded: Vec<_> =
        loaded.expect("they load").iter().map(|it| (it.hook, it.verified > 0, it.netns_cookie)).collect();
    assert_eq!(loaded, Hook::ALL.map(|hook| (hook, true, by)));
    assert_eq!(refusals.get(), expected);
}

/// Its pins are where they do not belong: the one of a hook says nothing of another one.
#[test]
fn a_pin_of_another_hook_is_not_taken_for_its_own() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    node.netpath(&["attach", MASTER]);
    let (links, filters) = (node.root.pins().join("links/1"), node.root.pins().join("progs/1"));
    match usual_via() {
        Via::Clsact => std::fs::rename(filters.join("egress"), filters.join("ingress")),
        _ => std::fs::rename(links.join("egress"), links.join("ingress")),
    }
    .expect("moved");
    assert_eq!(hooks(&node).iter().filter(|state| state.live).count(), 0);
    if usual_via() == Via::Tcx {
        node.write(&node.root.settings(), &json!({ "endpoints": 2048 }));
        let upgraded = node.try_netpath(&["upgrade"]);
        let said = String::from_utf8_lossy(&upgraded.stderr).into_owned();
        assert!(!upgraded.status.success() && said.contains("is not the link of that hook"), "{said}");
    }
    node.netpath(&["attach", MASTER]);
    let live: Vec<Hook> = hooks(&node).iter().filter(|state| state.live).map(|state| state.hook).collect();
    assert_eq!(live, [Hook::Ingress, Hook::Egress]);
    let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
    assert!(is_enforced(&node, &pod));
}

/// What is done side by side is done one after the other.
#[test]
fn a_process_that_may_have_no_thread_attaches() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    // Nobody has as much memory for its stack.
    let mut attach = node.command();
    attach.args(["attach", MASTER]).env("RUST_MIN_STACK", (1u64 << 60).to_string());
    let attached = node.netns.within(|| attach.output()).expect("it can be run");
    assert!(attached.status.success(), "{attached:?}");
    assert_eq!(hooks(&node).iter().filter(|state| state.live).count(), 2);
}

/// The verifier's log of these programs is megabytes; the reason is at its end.
#[test]
fn a_refusal_says_where_and_why() {
    /// `r0 = *(u64 *)(r10 - 4096)`: stacks have 512 bytes.
    const BELOW_THE_STACK: [u8; 8] = [0x79, 0xa0, 0, 0xf0, 0, 0, 0, 0];
    const EXIT: u8 = 0x95;
    let loaded = told::with_what_is_known(|mut object, told| {
        let program = object.programs["egress"].function_key();
        let instructions = &mut object.functions.get_mut(&program).expect("its function").instructions;
        let refused = copy_instructions(&BELOW_THE_STACK).expect("an instruction");
        // Where ways through it end, in the place of what says how.
        let end = instructions.iter().position(|instruction| instruction.code == EXIT).expect("an end");
        instructions[end - 1] = refused[0];
        object::verify_by(object, told)
    });
    let error = loaded.expect_err("it cannot be taken");
    let BpfError::Program { program: "egress", source } = &error else { panic!("{error:?}") };
    let ProgramError::LoadError { io_error, verifier_log } = &**source else { panic!("{error:?}") };
    let log = verifier_log.to_string();
    assert_eq!(io_error.raw_os_error(), Some(libc::EACCES), "{error:?}");
    assert!(log.contains("invalid read from stack R10 off=-4096") && log.contains("processed"), "{log}");
    assert!(log.lines().count() <= 40, "{log}");
}

/// A map that cannot be opened for want of descriptors is not one that others took the place of, for which there is another one; a
/// filter that cannot be read is not one that is gone.
#[test]
fn too_few_descriptors_are_an_error_and_nothing_is_waited_for() {
    for tc in ["auto", "clsact"] {
        let node = Node::new(&json!({ "unknownSource": "drop", "tc": tc }));
        node.netpath(&["attach", MASTER]);
        node.netpath(&["status"]);
        let ends: Vec<Option<i32>> = (8..48).map(|limit| status_within(&node, limit)).collect();
        assert!(ends.iter().all(|code| matches!(code, Some(0 | 1))), "{tc}: {ends:?}");
        assert!(
            ends.contains(&Some(0)) && ends.contains(&Some(1)),
            "some limits are too low, and some are not: {ends:?}"
        );
    }
}

/// How `netpath status` ends that may have so many descriptors.
#[track_caller]
fn status_within(node: &Node, limit: u32) -> Option<i32> {
    let tool = node.command();
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -n \"$0\" && exec \"$@\"", &limit.to_string()]).arg(tool.get_program());
    limited.args(["status"]).env("NETPATH_ROOT", node.root.path());
    limited.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = node.netns.within(|| limited.spawn()).expect("a shell");
    let begun = Instant::now();
    let ended = loop {
        match child.try_wait().expect("ours") {
            None if begun.elapsed() < PATIENCE => std::thread::park_timeout(Duration::from_millis(1)),
            ended => break ended,
        }
    };
    if ended.is_none() {
        child.kill().and_then(|()| child.wait()).expect("ours");
    }
    ended.unwrap_or_else(|| panic!("with {limit} descriptors it ran on")).code()
}
