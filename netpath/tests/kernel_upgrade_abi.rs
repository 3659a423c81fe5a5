//! Another ABI and other sizes of the maps take the place of what is in force under a flood from several pods, and
//! whatever does it is killed or fails at every step: not one frame crosses the zone, not one inside it is lost, each
//! counts once, and no counter goes back.
//!
//! An older tree is one of this version under another name: what an upgrade reads of it has the layout that this version has. It has
//! the maps that version 3 did not have as well, since the programs that run use them.

mod common;

use std::net::Ipv4Addr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use aya::maps::{Array, Map, MapData};
use common::enforce::{
    POD, alerts, all_live, hooks, ifindex, is_enforced, is_enforced_for, is_well, leaves, policed, private,
    status, ways,
};
use common::flood::under_flood;
use common::node::{GATEWAY, INTERNET, MASTER, NODE, Node, OUTSIDE_MAC, Pod, at, conf};
use common::wire::{marker, udp_frame};
use common::{NetNs, chain, times, veth};
use netpath::kernel::bpf::Hook;
use netpath::kernel::bpf::attach::inspect;
use netpath::kernel::bpf::maps::pin_of;
use netpath::kernel::bpf::trees::{self, Trees};
use netpath::kernel::netlink::Netlink;
use netpath::police::{self, Outcome, PoliceError, Step};
use netpath::state::Lock;
use netpath_ebpf::abi::{ABI_VERSION, Counters, DropCounters, EndpointKey};
use netpath_ebpf::drop_reason::DropReason;
use serde_json::{Value, json};

/// Three pods in the zone, and their addresses.
fn pods(node: &Node) -> [(Pod, Ipv4Addr); 3] {
    [200, 201, 202].map(|number| {
        let address = Ipv4Addr::new(10, 12, 34, number);
        (node.pod(&[&format!("{address}/24")], Some(&private())), address)
    })
}

fn refs(pods: &[(Pod, Ipv4Addr)]) -> Vec<(&Pod, Ipv4Addr)> {
    pods.iter().map(|(pod, address)| (pod, *address)).collect()
}

/// Gives the tree in force the name and the word of another version.
#[track_caller]
fn disguise(node: &Node, version: u32, readable_by: u32) -> PathBuf {
    let trees = Trees::list(&node.root.pins()).expect("readable");
    let (_, pins) = trees.in_force().expect("one tree").expect("a tree").clone();
    let other = pins.parent().expect("a parent").join(format!("v{version}"));
    std::fs::rename(&pins, &other).expect("renamed");
    let data = MapData::from_pin(pin_of(&other, "meta")).expect("pinned");
    let mut meta: Array<_, [u32; 6]> = Map::Array(data).try_into().expect("six words");
    let mut words = meta.get(&0, 0).expect("readable");
    (words[0], words[5]) = (version, readable_by);
    meta.set(0, words, 0).expect("written");
    other
}

const OLDER: u32 = ABI_VERSION - 1;

/// What an upgrade is done for.
#[derive(Clone, Copy, Debug)]
enum Cause {
    /// The tree in force is of an older ABI.
    Older,
    /// The settings ask for other sizes, in turn.
    Sizes,
}

/// Makes `netpath upgrade` have something to do.
#[track_caller]
fn provoke(node: &Node, cause: Cause, round: usize) {
    match cause {
        Cause::Older => drop(disguise(node, OLDER, 0)),
        Cause::Sizes => {
            let endpoints = if round.is_multiple_of(2) { 2048 } else { 1500 };
            node.write(&node.root.settings(), &json!({ "endpoints": endpoints, "zones": 300 - round }));
        }
    }
}

/// Names below `netpath/` in the BPF file system.
fn directories(node: &Node) -> Vec<String> {
    let parent = node.root.pins();
    let entries = std::fs::read_dir(parent.parent().expect("a parent")).expect("readable");
    let names = entries.map(|entry| entry.expect("readable").file_name().into_string().expect("text"));
    names.collect()
}

/// One tree is there and its links run programs on its maps.
#[track_caller]
fn one_tree(node: &Node, entry: &Value) {
    assert_eq!(directories(node), [format!("v{ABI_VERSION}")]);
    all_live(node, entry);
    is_well(node);
}

/// `netpath upgrade`, which must succeed.
#[track_caller]
fn upgrade(node: &Node) -> String {
    node.netpath(&["upgrade"])
}

/// The same in this process, with a say at every step.
fn upgrade_with(
    node: &Node,
    watch: &mut (dyn FnMut(Step) -> Result<(), PoliceError> + Send),
) -> Result<Outcome, PoliceError> {
    node.netns.within(|| {
        let _lock = Lock::acquire(&node.root).expect("nobody else has it");
        police::upgrade(&node.root, &mut Netlink::open().expect("netlink"), false, watch)
    })
}

/// How far from one step of an upgrade to the next that is tried: all of them, or a quarter where a part is run.
fn stride() -> usize {
    if times(4) == 4 { 1 } else { 4 }
}

/// The steps of an upgrade, in their order.
fn steps(node: &Node) -> Vec<Step> {
    let mut steps = Vec::new();
    let outcome = upgrade_with(node, &mut |step| {
        steps.push(step);
        Ok(())
    });
    assert!(matches!(outcome, Ok(Outcome::Upgraded(_))), "{outcome:?}");
    steps
}

#[test]
fn another_abi_takes_over_under_a_flood() {
    for entry in ways() {
        let node = Node::new(&entry);
        let pods = pods(&node);
        let rows = pods.each_ref().map(|(pod, _)| node.row(pod));
        under_flood(&node, &refs(&pods), || {
            for round in 0..times(3) {
                provoke(&node, Cause::Older, round as usize);
                let said = upgrade(&node);
                let sentence = format!(
                    "ABI {ABI_VERSION} is in force instead of ABI {OLDER}: 3 attachments carried over, with zones and \
                     counters"
                );
                assert!(said.contains(&sentence) && said.contains("egress replaced"), "{said}");
            }
        });
        // Records and events name the same rows, and the rows say the same.
        assert_eq!(pods.each_ref().map(|(pod, _)| node.row(pod)), rows);
        one_tree(&node, &entry);
        assert!(upgrade(&node).contains("is of this build"), "there is nothing left to do");
    }
}

#[test]
fn maps_of_other_sizes_take_over_under_a_flood() {
    for entry in ways() {
        let node = Node::new(&entry);
        let pods = pods(&node);
        let rows = pods.each_ref().map(|(pod, _)| node.row(pod));
        under_flood(&node, &refs(&pods), || {
            for round in 0..times(4).max(2) {
                provoke(&node, Cause::Sizes, round as usize);
                let (said, _) = status(&node);
                assert!(
                    said.contains("settings.json and this build ask for other sizes of endpoints, owners"),
                    "{said}"
                );
                let said = upgrade(&node);
                assert!(
                    said.contains("the maps have the sizes of settings.json: 3 attachments carried over"),
                    "{said}"
                );
                let fill = node.maps().fill().expect("readable");
                assert_eq!(fill.endpoint_rows, if round % 2 == 0 { 2048 } else { 1500 });
                assert_eq!(fill.zone_rows, 300 - round as usize);
            }
        });
        assert_eq!(pods.each_ref().map(|(pod, _)| node.row(pod)), rows);
        assert_eq!(node.maps().zones().expect("readable")[0].slot.generation, 1, "the zone did not change");
        one_tree(&node, &entry);
    }
}

#[test]
fn killed_at_any_step_it_opens_nothing_and_the_next_run_finishes() {
    for (entry, cause) in ways().into_iter().zip([Cause::Older, Cause::Sizes, Cause::Older]) {
        let node = Node::new(&entry);
        let pods = pods(&node);
        provoke(&node, cause, 0);
        let steps = steps(&node);
        assert!(steps.ends_with(&[Step::Carried, Step::Switched, Step::Named, Step::Removed]), "{steps:?}");
        under_flood(&node, &refs(&pods), || {
            for (round, end) in steps.iter().enumerate().step_by(stride()) {
                provoke(&node, cause, round + 1);
                killed_at(&node, *end);
                let pins = node.root.pins();
                if !Trees::list(&pins).expect("readable").unfinished(&pins).expect("readable").is_empty() {
                    alerts(&node, "an upgrade was ended half-way");
                }
                let output = node.try_netpath(&["upgrade"]);
                assert!(output.status.success(), "{end:?}: {}", String::from_utf8_lossy(&output.stderr));
                assert_eq!(directories(&node), [format!("v{ABI_VERSION}")], "{end:?}");
            }
        });
        one_tree(&node, &entry);
    }
}

/// Ends an upgrade at this step. Nothing of it tidies up when it is dropped: this is what a kill leaves.
#[track_caller]
fn killed_at(node: &Node, end: Step) {
    let ended = catch_unwind(AssertUnwindSafe(|| {
        upgrade_with(node, &mut |step| {
            assert!(step != end, "killed");
            Ok(())
        })
    }));
    assert!(ended.is_err(), "{end:?}");
}

/// Where an upgrade was ended between two hooks the next pod is policed at both, and an uninstall finds both.
#[test]
fn killed_between_two_hooks_pods_start_and_all_can_be_removed() {
    for entry in ways() {
        let node = Node::new(&entry);
        let pod = policed(&node);
        for removed in [false, true] {
            provoke(&node, Cause::Sizes, usize::from(removed));
            killed_at(&node, Step::Replaced(1, Hook::Ingress));
            let states = hooks(&node);
            assert!(states.iter().any(|state| !state.bound), "one works on the new maps: {states:?}");
            if removed {
                node.netpath(&["uninstall", "--yes"]);
                assert!(!node.root.pins().parent().expect("a parent").exists(), "nothing is left");
                assert!(leaves(&node, &pod, POD, INTERNET), "nothing is enforced");
                continue;
            }
            let second = node.pod(&["10.12.34.201/24"], Some(&private()));
            all_live(&node, &entry);
            assert!(is_enforced(&node, &pod));
            assert!(is_enforced_for(&node, &second, Ipv4Addr::new(10, 12, 34, 201)));
            let before = counted(&node, &pod);
            upgrade(&node);
            assert_eq!(counted(&node, &pod).0, before.0);
            one_tree(&node, &entry);
        }
    }
}

#[test]
fn killed_at_one_step_after_another_it_still_counts_each_frame_once() {
    let entry = json!({ "unknownSource": "drop", "xdp": "native" });
    let node = Node::new(&entry);
    let pods = pods(&node);
    provoke(&node, Cause::Sizes, 0);
    let steps = steps(&node);
    under_flood(&node, &refs(&pods), || {
        provoke(&node, Cause::Sizes, 1);
        for end in steps.iter().take_while(|step| **step != Step::Switched) {
            killed_at(&node, *end);
        }
        assert!(3 < directories(&node).len(), "hooks of each may have counted: {:?}", directories(&node));
        let said = upgrade(&node);
        assert!(said.contains("3 attachments carried over"), "{said}");
    });
    one_tree(&node, &entry);
}

#[test]
fn a_failure_at_any_step_leaves_the_old_or_the_new_in_force() {
    for (entry, cause) in ways().into_iter().zip([Cause::Sizes, Cause::Older, Cause::Sizes]) {
        let node = Node::new(&entry);
        let pods = pods(&node);
        provoke(&node, cause, 0);
        let steps = steps(&node);
        let switched = steps.iter().position(|step| *step == Step::Switched).expect("one of them");
        under_flood(&node, &refs(&pods), || {
            for (round, end) in steps.iter().enumerate().step_by(stride()) {
                provoke(&node, cause, round + 1);
                fails_at(&node, *end, switched <= round);
                upgrade(&node);
                assert_eq!(directories(&node), [format!("v{ABI_VERSION}")], "{end:?}");
            }
        });
        one_tree(&node, &entry);
    }
}

/// Lets an upgrade fail at this step; before the maps have changed places the old ones must be in force again.
#[track_caller]
fn fails_at(node: &Node, end: Step, switched: bool) {
    let trees = Trees::list(&node.root.pins()).expect("readable");
    let (_, pins) = trees.in_force().expect("one").expect("a tree").clone();
    let id = trees::id(&pins).expect("readable");
    let failed = upgrade_with(node, &mut |step| match step == end {
        true => Err(PoliceError::NoMac { master: "of the test".to_owned() }),
        false => Ok(()),
    });
    let failed = chain(&failed.expect_err("a step failed"));
    assert!(failed.contains("of the test"), "{failed}");
    assert_eq!(failed.contains("the upgrade is in force"), switched, "{failed}");
    if matches!(end, Step::Filled | Step::Loaded) {
        assert_eq!(directories(node).len(), 1, "{end:?}: nothing of it was ever in force");
    }
    if !switched {
        assert_eq!(trees::id(&pins).expect("readable"), id, "{end:?}: the old maps are in force");
        let states = node.netns.within(|| inspect(&pins, 1, ifindex(node))).expect("readable");
        assert!(states.iter().all(|state| state.live && state.bound), "{end:?} {states:?}");
    }
}

/// Runs the tool and kills it after a while; whether that was in time.
fn killed(node: &Node, words: &[&str], after: Duration) -> bool {
    let mut command = Command::new("timeout");
    command
        .args(["-s", "KILL", &format!("{:.4}", after.as_secs_f64()), env!("CARGO_BIN_EXE_netpath")])
        .args(words);
    command.env_clear().env("NETPATH_ROOT", node.root.path()).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let output = node.netns.within(|| command.output()).expect("it can be run");
    match output.status.code() {
        Some(0) => false,
        Some(137) | None => true,
        _ => panic!("{words:?}: {}", String::from_utf8_lossy(&[output.stdout, output.stderr].concat())),
    }
}

#[test]
fn the_tool_is_killed_at_whatever_moment() {
    for (entry, cause) in ways().into_iter().zip([Cause::Sizes, Cause::Older, Cause::Sizes]) {
        let node = Node::new(&entry);
        let pods = pods(&node);
        let mut count = 0;
        let rounds = times(8).max(3);
        under_flood(&node, &refs(&pods), || {
            provoke(&node, cause, 0);
            let start = Instant::now();
            assert!(!killed(&node, &["upgrade"], Duration::from_secs(60)), "it has all the time it wants");
            let whole = start.elapsed();
            for round in 0..rounds {
                provoke(&node, cause, round as usize + 1);
                count += u32::from(killed(&node, &["upgrade"], whole * (2 * round + 1) / (2 * rounds)));
                upgrade(&node);
            }
        });
        assert!(0 < count, "some of {rounds} were killed in time");
        one_tree(&node, &entry);
    }
}

/// Sends from the pod what is dropped and what passes, and from a MAC that nobody has.
#[track_caller]
fn traffic(node: &Node, pod: &Pod) {
    assert!(is_enforced(node, pod));
    // With the source of the node's network and a MAC of nobody, from the node's side of the wire.
    let mark = marker();
    let frame = udp_frame(([2, 9, 9, 9, 9, 9], OUTSIDE_MAC), NODE, GATEWAY, (1, 2), &mark);
    let master = common::wire::RawSocket::open(&node.netns, MASTER);
    let _ = master.send(&frame);
}

/// All that a pod's row and the master's row say.
fn counted(
    node: &Node,
    pod: &Pod,
) -> (Counters, DropCounters, DropCounters, netpath_ebpf::abi::MasterCounters) {
    (node.counters(pod), node.drops(pod), node.unowned(), node.totals())
}

#[test]
fn every_counter_is_carried_over_and_goes_with_its_endpoint() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    node.write(&node.root.settings(), &json!({ "endpoints": 3 }));
    let pod = policed(&node);
    for cause in [Cause::Older, Cause::Older, Cause::Sizes, Cause::Sizes] {
        traffic(&node, &pod);
        let before = counted(&node, &pod);
        assert!(
            0 < before.0.tx_packets && 0 < before.0.rx_dropped && 0 < before.3.unknown_dropped,
            "{before:?}"
        );
        assert!(0 < before.1.tx_dropped[at(DropReason::ZoneDeny)], "{before:?}");
        assert!(0 < before.2.tx_dropped[at(DropReason::UnknownSource)], "{before:?}");
        let endpoints = node.maps().fill().expect("readable").endpoint_rows;
        match cause {
            Cause::Older => drop(disguise(&node, OLDER, 0)),
            Cause::Sizes => node.write(&node.root.settings(), &json!({ "endpoints": endpoints + 1 })),
        }
        upgrade(&node);
        assert_eq!(counted(&node, &pod), before);
    }
    node.delete(&pod);
    // Whoever gets the number next begins at zero.
    let rows = node.maps().fill().expect("readable").endpoint_rows;
    for _ in 0..=rows {
        let pod = policed(&node);
        // What a pod says of itself when its link comes up is all that it may have.
        let own = node.counters(&pod);
        assert!(own.tx_packets <= 1, "{own:?}");
        let Counters { rx_packets, tx_dropped, rx_dropped, .. } = own;
        assert_eq!((rx_packets, tx_dropped, rx_dropped, node.drops(&pod).tx_dropped), (0, 0, 0, [0; 32]));
        node.delete(&pod);
    }
}

#[test]
fn beside_an_older_tree_the_plugin_waits_for_the_upgrade() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    let (pod, gone) = (policed(&node), node.pod(&["10.12.34.201/24"], Some(&private())));
    let older = disguise(&node, OLDER, 0);
    let netns = NetNs::new("pod");
    let output = node.call("ADD", &netns, &conf(&["10.12.34.202/24"], Some(&private())));
    let said: Value = serde_json::from_slice(&output.stdout).expect("an error object");
    assert_eq!(said["code"], 11, "the runtime is to try again: {said}");
    assert!(said.to_string().contains("run `netpath upgrade`"), "{said}");
    assert!(!netns.ip("link").contains("net1"), "a refused ADD leaves nothing behind");
    alerts(&node, &format!("{} is the data path of an older netpath", older.display()));
    let output = node.try_netpath(&["pods"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("run `netpath upgrade`"));
    node.delete(&gone);
    assert!(!gone.netns.ip("link").contains("net1"));
    assert!(leaves(&node, &pod, POD, GATEWAY) && !leaves(&node, &pod, POD, INTERNET), "it goes on enforcing");
    let said = upgrade(&node);
    assert!(
        said.contains("1 attachment carried over, with zones and counters; 1 row that nobody has"),
        "{said}"
    );
    assert!(node.maps().endpoint(gone.key).expect("readable").is_none(), "DEL came to the old maps no more");
    let later = node.pod(&["10.12.34.201/24"], Some(&private()));
    assert!(is_enforced(&node, &pod));
    assert!(is_enforced_for(&node, &later, Ipv4Addr::new(10, 12, 34, 201)));
    is_well(&node);
}

#[test]
fn a_newer_tree_is_taken_over_only_if_it_says_that_it_can_be_and_somebody_says_so() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    let pod = policed(&node);
    let newer = disguise(&node, ABI_VERSION + 1, 0);
    let refused = |words: &[&str], what: &str| {
        let output = node.try_netpath(words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(what), "{words:?}: {said}");
        assert!(newer.exists() && directories(&node).len() == 1, "nothing was changed");
    };
    refused(&["upgrade"], "upgrade the plugin binary");
    refused(&["upgrade", "--roll-back"], "cannot read");
    refused(&["attach"], "upgrade the plugin binary");
    disguise(&node, ABI_VERSION + 1, ABI_VERSION);
    refused(&["upgrade"], "netpath upgrade --roll-back");
    let of = |pins: &Path| node.netns.within(|| inspect(pins, 1, ifindex(&node))).expect("readable");
    let before = of(&newer);
    let said = node.netpath(&["upgrade", "--roll-back"]);
    assert!(said.contains(&format!("instead of ABI {}", ABI_VERSION + 1)), "{said}");
    assert!(hooks(&node).iter().zip(&before).all(|(now, before)| now.program != before.program));
    assert!(is_enforced(&node, &pod));
    is_well(&node);
}

#[test]
fn a_zone_that_no_record_tells_closes_its_attachment_and_no_other() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    let [(one, own), (lost, _), _] = pods(&node);
    let (id, ifname) = (lost.netns.name(), "net1");
    let record = node.root.state().join(format!("{id}-{ifname}.json"));
    let text = std::fs::read_to_string(&record).expect("a record");
    let mut value: Value = serde_json::from_str(&text).expect("JSON");
    value["zone"]["compiled"] = json!({ "of": "a later version" });
    std::fs::write(&record, value.to_string()).expect("written");
    disguise(&node, OLDER, 0);
    let output = node.try_netpath(&["upgrade"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("ALERT:") && said.contains("so nothing passes"), "{said}");
    assert!(!leaves_to_fence_of(&node, &lost, Ipv4Addr::new(10, 12, 34, 201), &one, own));
    assert!(is_enforced(&node, &one));
}

/// Whether a pod's frame to the gateway is at the far end before one that another pod sends after it.
#[track_caller]
fn leaves_to_fence_of(node: &Node, pod: &Pod, from: Ipv4Addr, other: &Pod, own: Ipv4Addr) -> bool {
    common::node::stay_on_this_cpu();
    let (mark, fence) = (marker(), marker());
    let to = node.far_end();
    let _ = pod.socket().send(&udp_frame((pod.mac, OUTSIDE_MAC), from, GATEWAY, (1, 2), &mark));
    let frame = udp_frame((other.mac, OUTSIDE_MAC), own, GATEWAY, (9, 9), &fence);
    other.socket().send(&frame).expect("the fence is allowed");
    to.until(&fence).iter().any(|seen| common::wire::carries(seen, &mark))
}

#[test]
fn settings_that_are_too_small_are_refused_and_change_nothing() {
    let entry = json!({ "unknownSource": "drop" });
    let node = Node::new(&entry);
    let pods = pods(&node);
    node.write(&node.root.settings(), &json!({ "endpoints": 2 }));
    let id = trees::id(&node.root.pins()).expect("readable");
    let output = node.try_netpath(&["upgrade"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("have numbers up to 3: say 3 or more"), "{said}");
    assert_eq!(trees::id(&node.root.pins()).expect("readable"), id);
    assert!(is_enforced(&node, &pods[0].0));
    node.write(&node.root.settings(), &json!({ "endpoints": 3 }));
    upgrade(&node);
    one_tree(&node, &entry);
    let netns = NetNs::new("pod");
    let output = node.call("ADD", &netns, &conf(&["10.12.34.203/24"], Some(&private())));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("raise `endpoints` in settings.json and run `netpath upgrade`"), "{said}");
    node.write(&node.root.settings(), &json!({ "endpoints": 4 }));
    upgrade(&node);
    let output = node.call("ADD", &netns, &conf(&["10.12.34.203/24"], Some(&private())));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    one_tree(&node, &entry);
}

/// Whoever made maps was ended on the way, and then the settings were changed.
#[test]
fn half_made_maps_of_other_sizes_are_made_again() {
    let entry = json!({ "unknownSource": "drop" });
    let node = Node::new(&entry);
    let pod = policed(&node);
    node.delete(&pod);
    let pins = node.root.pins();
    let kept = pins.parent().expect("a parent").join("kept");
    std::fs::create_dir_all(kept.join("maps")).expect("made");
    for name in ["owners", "endpoints", "budgets"] {
        let data = MapData::from_pin(pin_of(&pins, name)).expect("pinned");
        data.pin(pin_of(&kept, name)).expect("pinned again");
    }
    node.uninstall();
    // As if the maps had been made one by one, and their maker had been ended after three of them.
    std::fs::create_dir_all(&pins).expect("made");
    std::fs::rename(kept.join("maps"), pins.join("maps")).expect("renamed");
    std::fs::remove_dir(&kept).expect("removed");
    node.write(&node.root.settings(), &json!({ "endpoints": 2 }));
    let pods = [200, 201].map(|number| {
        let address = Ipv4Addr::new(10, 12, 34, number);
        (node.pod(&[&format!("{address}/24")], Some(&private())), address)
    });
    assert_eq!(node.maps().fill().expect("readable").endpoint_rows, 2);
    for (pod, address) in &pods {
        assert!(is_enforced_for(&node, pod, *address));
    }
    one_tree(&node, &entry);
}

/// Each master has its hooks replaced; of one whose NIC is gone the rows stay until its pods are deleted.
#[test]
fn all_masters_are_upgraded_at_once_and_one_that_is_gone_is_no_obstacle() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    veth(&node.netns, "eno9", &node.outside, "wire9");
    let pod = policed(&node);
    let mut network = conf(&["10.12.34.201/24"], Some(&private()));
    network["master"] = json!("eno9");
    let second = node.pod_with(network);
    provoke(&node, Cause::Older, 0);
    let said = upgrade(&node);
    for hook in ["enp0s8: ingress", "enp0s8: egress", "eno9: ingress", "eno9: egress"] {
        assert!(said.contains(&format!("{hook} replaced")), "{said}");
    }
    assert!(is_enforced(&node, &pod));
    node.netns.ip("link del eno9");
    for cause in [Cause::Older, Cause::Sizes] {
        provoke(&node, cause, 1);
        let said = upgrade(&node);
        assert!(said.contains("2 attachments carried over") && !said.contains("eno9"), "{said}");
        assert!(is_enforced(&node, &pod));
    }
    let key = EndpointKey::new(2, second.mac);
    assert!(node.maps().endpoint(key).expect("readable").is_some());
    node.delete(&second);
    assert!(node.maps().endpoint(key).expect("readable").is_none());
}

#[test]
fn a_master_in_another_namespace_is_named_and_nothing_is_changed() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    let pod = policed(&node);
    let other = NetNs::new("other");
    veth(&other, "eno9", &node.outside, "wire9");
    let mut command = Command::new(env!("CARGO_BIN_EXE_netpath"));
    command.args(["attach", "eno9"]).env("NETPATH_ROOT", node.root.path());
    let output = other.within(|| command.output()).expect("it can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    provoke(&node, Cause::Sizes, 0);
    let id = trees::id(&node.root.pins()).expect("readable");
    let output = node.try_netpath(&["upgrade"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("`eno9` is in another network namespace"), "{said}");
    assert_eq!((trees::id(&node.root.pins()).expect("readable"), directories(&node).len()), (id, 1));
    assert!(is_enforced(&node, &pod));
}
