//! A NIC that is renamed, gets another MAC or another MTU, carries jumbo frames, or comes back under a newer build.

mod common;

use std::time::Duration;

use common::enforce::{
    POD, alerts, all_live, enters, hooks, ifindex, is_enforced, is_well, leaves, policed, private, status,
    ways,
};
use common::node::{GATEWAY, INTERNET, MASTER, Node, OUTSIDE_MAC, Pod, WIRE, conf};
use common::wire::{RawSocket, carries, marker, udp_frame};
use netpath::kernel::bpf::attach::{Target, detach, ensure};
use netpath::kernel::bpf::{TcHook, object};
use netpath_ebpf::abi::Master;
use serde_json::{Value, json};

#[test]
fn a_renamed_nic_stays_under_police() {
    for entry in ways() {
        let node = Node::new(&entry);
        let pod = policed(&node);
        let before: Vec<_> = hooks(&node).iter().map(|state| state.program).collect();
        node.netns.ip(&format!("link set {MASTER} down"));
        node.netns.ip(&format!("link set {MASTER} name eth9"));
        node.netns.ip("link set eth9 up");
        pod.netns.ip("link set net1 up");
        // The administrator's file still says the old name, and the programs care for no name.
        let (said, _) = status(&node);
        assert!(said.contains("eth9") && said.contains("zones on eth9 are advice"), "{said}");
        node.write(&node.root.masters(), &json!({ "eth9": entry }));
        is_well(&node);
        assert!(leaves(&node, &pod, POD, GATEWAY));
        assert!(is_enforced(&node, &pod));
        node.netpath(&["attach"]);
        let states = node.netns.within(|| {
            netpath::kernel::bpf::attach::inspect(
                &node.root.pins(),
                1,
                common::enforce::index_of(&node, "eth9"),
            )
        });
        let states = states.expect("readable");
        assert!(states.iter().all(|state| state.live && !before.contains(&state.program)), "{states:?}");
        // A pod by the new name is on the same master, and both reach their zone alone.
        let mut network = conf(&["10.12.34.201/24"], Some(&private()));
        network["master"] = json!("eth9");
        let second = node.pod_with(network);
        assert_eq!(node.maps().masters().expect("readable").len(), 1);
        assert!(!leaves(&node, &second, "10.12.34.201".parse().expect("an address"), INTERNET));
        assert!(is_enforced(&node, &pod));
    }
}

/// Another NIC may have the name by the time that the kernel is asked.
#[test]
fn programs_go_to_the_nic_and_not_to_its_name() {
    for entry in ways() {
        let node = Node::new(&entry);
        let pod = policed(&node);
        node.netns.ip("link add other0 type veth peer name other1");
        let (pins, ifindex) = (node.root.pins(), ifindex(&node));
        let target = Target {
            pins: &pins,
            cpus: object::cpus(),
            id: 1,
            ifindex,
            name: "other0",
            xdp: entry["xdp"] == "native",
            tc: if entry["tc"] == "clsact" { TcHook::Clsact } else { TcHook::Auto },
            host_macs: &[],
        };
        node.netns.within(|| {
            detach(&pins, 1, Some("other0"), ifindex).expect("detached");
            ensure(&target, &[], false).expect("attached");
        });
        let other = node.netns.exec("tc qdisc show dev other0") + &node.netns.exec("ip link show other0");
        assert!(!other.contains("clsact") && !other.contains("xdp"), "{other}");
        all_live(&node, &entry);
        assert!(is_enforced(&node, &pod));
    }
}

/// Every frame of these lengths crosses both ways and counts once, and what is outside the zone crosses not.
#[track_caller]
fn lengths(node: &Node, pod: &Pod, lengths: &[usize]) {
    let (inner, outer) = (pod.socket(), node.far_end());
    for &length in lengths {
        let before = node.counters(pod);
        let mark = marker();
        let payload = [mark.clone(), vec![0x55; length - 42 - mark.len()]].concat();
        let _ = inner.send(&udp_frame((pod.mac, OUTSIDE_MAC), POD, INTERNET, (1, 2), &payload));
        outer.send(&udp_frame((OUTSIDE_MAC, pod.mac), INTERNET, POD, (1, 2), &payload)).expect("sent");
        inner.send(&udp_frame((pod.mac, OUTSIDE_MAC), POD, GATEWAY, (3, 4), &payload)).expect("allowed");
        outer.send(&udp_frame((OUTSIDE_MAC, pod.mac), GATEWAY, POD, (3, 4), &payload)).expect("sent");
        for (what, socket) in [("out", &outer), ("in", &inner)] {
            loop {
                let frame =
                    socket.receive(common::PATIENCE).unwrap_or_else(|| panic!("{length} bytes {what}"));
                if carries(&frame, &mark) {
                    assert_eq!(frame.len(), length, "{what}");
                    assert_eq!(frame[35], 3, "{what}: the denied one came through: {:02x?}", &frame[..42]);
                    break;
                }
            }
        }
        let bytes = u64::try_from(length).expect("small");
        let counted = common::eventually(common::PATIENCE, "the frames are counted", || {
            let now = node.counters(pod);
            let grown = [
                now.tx_packets - before.tx_packets,
                now.rx_packets - before.rx_packets,
                now.tx_dropped - before.tx_dropped,
                now.rx_dropped - before.rx_dropped,
                now.tx_bytes - before.tx_bytes,
                now.rx_bytes - before.rx_bytes,
            ];
            (grown[..4].iter().all(|count| *count != 0)).then_some(grown)
        });
        assert_eq!(counted, [1, 1, 1, 1, bytes, bytes], "{length} bytes");
    }
}

fn set_mtu(node: &Node, mtu: u32) {
    node.outside.ip(&format!("link set {WIRE} mtu {mtu}"));
    node.netns.ip(&format!("link set {MASTER} mtu {mtu}"));
}

#[test]
fn jumbo_frames_are_judged_and_counted_as_a_whole() {
    for entry in ways() {
        let node = Node::new(&entry);
        set_mtu(&node, 9000);
        let pod = policed(&node);
        all_live(&node, &entry);
        assert!(pod.netns.ip("link show net1").contains("mtu 9000"));
        lengths(&node, &pod, &[100, 1514, 3600, 4097, 9014]);
        is_well(&node);
    }
}

#[test]
fn an_mtu_that_changes_under_the_programs_changes_no_verdict_and_no_count() {
    for entry in ways() {
        let node = Node::new(&entry);
        let pod = policed(&node);
        lengths(&node, &pod, &[1514]);
        // Nobody tells netpath: what is longer than it knows of is counted by TC, once.
        set_mtu(&node, 9000);
        pod.netns.ip("link set net1 mtu 9000");
        lengths(&node, &pod, &[1514, 1519, 9014]);
        node.netpath(&["attach"]);
        lengths(&node, &pod, &[1514, 1519, 9014]);
        set_mtu(&node, 1500);
        lengths(&node, &pod, &[90, 1514]);
        node.netpath(&["attach"]);
        lengths(&node, &pod, &[90, 1514]);
        is_well(&node);
    }
}

/// Marks the master as one whose programs another build attached.
fn as_if_by_another_build(node: &Node) {
    let mut maps = node.maps();
    let [(id, master)] = maps.masters().expect("readable")[..] else { panic!("one master") };
    maps.set_master(id, &Master { object: 1, ..master }).expect("written");
}

#[test]
fn a_nic_that_returns_under_a_newer_build_is_this_builds() {
    for entry in ways() {
        let node = Node::new(&entry);
        let pod = policed(&node);
        let index = ifindex(&node);
        as_if_by_another_build(&node);
        let (said, _) = status(&node);
        assert!(said.contains("the programs are of another build"), "{said}");
        node.netns.ip(&format!("link del {MASTER}"));
        alerts(&node, &format!("{MASTER} is gone: its pods have lost their interfaces"));
        let other = node.outside.name();
        node.netns.ip(&format!("link add {MASTER} index {index} type veth peer name {WIRE} netns {other}"));
        node.netns.ip(&format!("link set {MASTER} up"));
        node.outside.ip(&format!("link set {WIRE} up"));
        node.address();
        node.delete(&pod);
        let again = policed(&node);
        all_live(&node, &entry);
        let (said, attention) = status(&node);
        assert!(!attention && !said.contains("another build"), "{said}");
        assert!(is_enforced(&node, &again));
    }
}

/// Its number is given to the next NIC, and what it counted is not.
#[test]
fn a_nic_that_is_made_again_counts_from_nothing() {
    for entry in ways() {
        let node = Node::new(&entry);
        let pod = policed(&node);
        let frame = udp_frame(([2, 9, 9, 9, 9, 9], OUTSIDE_MAC), POD, GATEWAY, (1, 2), &marker());
        let _ = RawSocket::open(&node.netns, MASTER).send(&frame);
        let unknown = || node.totals().unknown_dropped + node.totals().unknown_passed;
        common::eventually(common::PATIENCE, "the frame is counted", || (unknown() == 1).then_some(()));
        let index = ifindex(&node);
        node.netns.ip(&format!("link del {MASTER}"));
        let other = node.outside.name();
        node.netns.ip(&format!(
            "link add {MASTER} index {} type veth peer name {WIRE} netns {other}",
            index + 1000
        ));
        node.netns.ip(&format!("link set {MASTER} up"));
        node.outside.ip(&format!("link set {WIRE} up"));
        node.address();
        node.delete(&pod);
        let again = policed(&node);
        let masters = node.maps().masters().expect("readable");
        assert!(matches!(masters[..], [(1, row)] if row.ifindex == index + 1000), "{masters:?}");
        assert_eq!(unknown(), 0);
        assert!(is_enforced(&node, &again));
    }
}

#[test]
fn a_repair_by_a_newer_build_leaves_no_program_of_the_older_one() {
    for entry in ways() {
        let node = Node::new(&entry);
        let pod = policed(&node);
        let before = hooks(&node);
        as_if_by_another_build(&node);
        // One hook is lost; the other would stay the older build's.
        for directory in ["links", "progs"] {
            let _ = std::fs::remove_file(node.root.pins().join(directory).join("1/egress"));
        }
        let _second = node.pod(&["10.12.34.201/24"], Some(&private()));
        for (old, new) in before.iter().zip(hooks(&node)) {
            assert!(new.live && new.program != old.program, "{old:?} {new:?}");
        }
        let (said, attention) = status(&node);
        assert!(!attention && !said.contains("another build"), "{said}");
        assert!(is_enforced(&node, &pod));
    }
}

#[test]
fn a_nic_that_goes_down_and_up_keeps_its_programs() {
    for entry in ways() {
        let node = Node::new(&entry);
        let pod = policed(&node);
        let before = hooks(&node);
        node.netns.ip(&format!("link set {MASTER} down"));
        node.netns.ip(&format!("link set {MASTER} up"));
        // A macvlan follows its master's carrier a little later.
        let far = node.far_end();
        let inner = RawSocket::open(&pod.netns, "net1");
        common::eventually(common::PATIENCE, "the wire works again", || {
            let mark = marker();
            inner.send(&udp_frame((pod.mac, OUTSIDE_MAC), POD, GATEWAY, (1, 2), &mark)).ok()?;
            while let Some(frame) = far.receive(Duration::from_millis(50)) {
                if carries(&frame, &mark) {
                    return Some(());
                }
            }
            None
        });
        assert_eq!(hooks(&node), before);
        assert!(is_enforced(&node, &pod) && !enters(&node, &pod, POD, INTERNET));
        is_well(&node);
    }
}

#[test]
fn a_mac_that_changes_is_known_after_the_next_add() {
    let entry: Value = json!({ "unknownSource": "audit" });
    let node = Node::new(&entry);
    let pod = policed(&node);
    let before = node.maps().masters().expect("readable")[0].1;
    node.netns.ip(&format!("link set {MASTER} address 02:0f:00:00:00:77"));
    node.netns.exec(&format!("ping -q -c 2 -i 0.01 -W 2 {GATEWAY}"));
    assert!(is_enforced(&node, &pod), "the pod's own MAC did not change");
    let _second = node.pod(&["10.12.34.201/24"], Some(&private()));
    let after = node.maps().masters().expect("readable")[0].1;
    assert_ne!(before.host_macs, after.host_macs);
    assert_eq!(after.host_macs[0][..6], [2, 0x0f, 0, 0, 0, 0x77]);
    assert_eq!((before.stamp, before.ifindex), (after.stamp, after.ifindex), "it is the same master");
}
