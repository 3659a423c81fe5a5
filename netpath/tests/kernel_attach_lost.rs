//! What is lost of the data path, by somebody's hand, a file system or a kill, is found by status and mended by the
//! next ADD or attach; nothing of it ends in silence.

mod common;

use common::NetNs;
use common::enforce::{
    POD, alerts, all_live, by_clsact, enters, hooks, is_enforced, is_well, leaves, mend, policed, private,
    status, ways,
};
use common::node::{INTERNET, MASTER, Node, conf};
use netpath::kernel::bpf::maps::{NAMES, pin_of};
use netpath_ebpf::abi::{kind, mode};
use serde_json::json;

/// Maps that no program uses: with its pin such a map itself is gone.
const UNUSED: [&str; 4] = ["meta", "owners", "zone_info", "rules"];

#[test]
fn a_deleted_qdisc_or_filter_is_named_and_attached_again() {
    for by_add in [false, true] {
        for what in
            ["qdisc del dev enp0s8 clsact", "filter del dev enp0s8 egress", "filter del dev enp0s8 ingress"]
        {
            let entry = json!({ "unknownSource": "drop", "tc": "clsact" });
            let node = Node::new(&entry);
            let pod = policed(&node);
            assert!(by_clsact(&node) && is_enforced(&node, &pod));
            node.netns.exec(&format!("tc {what}"));
            let hook = if what.ends_with("ingress") { "ingress" } else { "egress" };
            let open = if hook == "ingress" {
                enters(&node, &pod, POD, INTERNET)
            } else {
                leaves(&node, &pod, POD, INTERNET)
            };
            assert!(open, "{what}: who deletes it ends enforcement");
            alerts(&node, &format!("{MASTER}: {hook} is not attached, so nothing is enforced there"));
            mend(&node, by_add);
            all_live(&node, &entry);
            assert!(is_enforced(&node, &pod), "{what}");
            is_well(&node);
        }
    }
}

#[test]
fn somebody_elses_qdisc_leaves_tcx_alone() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    let pod = policed(&node);
    if by_clsact(&node) {
        return node.uninstall();
    }
    node.netns.exec(&format!("tc qdisc add dev {MASTER} clsact"));
    assert!(is_enforced(&node, &pod));
    node.netns.exec(&format!("tc qdisc del dev {MASTER} clsact"));
    assert!(is_enforced(&node, &pod));
    is_well(&node);
}

#[test]
fn a_lost_pin_of_a_program_is_named_and_attached_again() {
    for by_add in [false, true] {
        for entry in ways() {
            let node = Node::new(&entry);
            let pod = policed(&node);
            let wanted: Vec<_> = hooks(&node).iter().map(|state| state.hook).collect();
            for hook in wanted {
                for directory in ["links", "progs"] {
                    let pin = node.root.pins().join(directory).join("1").join(hook.name());
                    if pin.exists() {
                        std::fs::remove_file(&pin).expect("removed");
                    }
                }
                alerts(&node, &format!("{MASTER}: {} is not attached", hook.name()));
                if !(by_add && hook != netpath::kernel::bpf::Hook::Egress) {
                    mend(&node, by_add);
                } else {
                    node.netpath(&["attach"]);
                }
                all_live(&node, &entry);
                assert!(is_enforced(&node, &pod));
                is_well(&node);
            }
        }
    }
}

#[test]
fn a_lost_pin_of_a_map_is_made_again_from_the_programs() {
    for by_add in [false, true] {
        let entry = json!({ "unknownSource": "drop", "xdp": "native" });
        let node = Node::new(&entry);
        let pod = policed(&node);
        assert!(is_enforced(&node, &pod));
        let (row, before, drops) = (node.row(&pod), node.counters(&pod), node.drops(&pod));
        for name in NAMES.iter().filter(|name| !UNUSED.contains(name)) {
            std::fs::remove_file(pin_of(&node.root.pins(), name)).expect("removed");
        }
        let output = node.try_netpath(&["status"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && said.contains("cannot open map") && said.contains("netpath attach"),
            "{said}"
        );
        mend(&node, by_add);
        all_live(&node, &entry);
        assert_eq!((node.row(&pod), node.drops(&pod)), (row, drops), "the very maps are back");
        assert!(is_enforced(&node, &pod));
        let now = node.counters(&pod);
        assert!(
            now.tx_packets > before.tx_packets && now.tx_dropped > before.tx_dropped,
            "{before:?} {now:?}"
        );
        is_well(&node);
    }
}

#[test]
fn a_map_that_no_program_uses_is_lost_with_its_pin_and_all_are_made_again_from_the_records() {
    for (entry, name) in ways().iter().flat_map(|entry| UNUSED.map(|name| (entry, name))) {
        let node = Node::new(entry);
        let pod = policed(&node);
        std::fs::remove_file(pin_of(&node.root.pins(), name)).expect("removed");
        let said = node.try_netpath(&["status"]);
        assert!(!said.status.success(), "{name}: {}", String::from_utf8_lossy(&said.stdout));
        mend(&node, name == "owners");
        all_live(&node, entry);
        let row = node.row(&pod);
        assert_eq!((row.kind, row.mode), (kind::ENDPOINT, mode::ENFORCE), "{name}");
        assert!(is_enforced(&node, &pod), "{name}");
        is_well(&node);
        std::fs::remove_file(pin_of(&node.root.pins(), name)).expect("removed");
        node.netpath(&["uninstall", "--yes"]);
        assert!(hooks(&node).iter().all(|state| !state.live), "{name}");
        for hook in ["ingress", "egress"] {
            assert_eq!(node.netns.exec(&format!("tc filter show dev {MASTER} {hook}")).trim(), "", "{name}");
        }
    }
}

#[test]
fn something_else_in_the_place_of_a_pin_is_named_and_goes_by_uninstall() {
    for (entry, name) in ways().iter().flat_map(|entry| ["endpoints", "meta"].map(|name| (entry, name))) {
        let node = Node::new(entry);
        let pod = policed(&node);
        let pin = pin_of(&node.root.pins(), name);
        std::fs::remove_file(&pin).expect("removed");
        std::fs::create_dir(&pin).expect("made");
        let output = node.try_netpath(&["attach", MASTER]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(pin.to_str().expect("text")), "{said}");
        node.netpath(&["uninstall", "--yes"]);
        assert!(!node.root.pins().exists() && hooks(&node).is_empty());
        for hook in ["ingress", "egress"] {
            assert_eq!(node.netns.exec(&format!("tc filter show dev {MASTER} {hook}")).trim(), "", "{name}");
        }
        node.netpath(&["attach", MASTER]);
        assert!(is_enforced(&node, &pod), "{name}");
        is_well(&node);
    }
}

#[test]
fn maps_of_which_some_are_left_and_no_program_is_are_made_anew() {
    for entry in ways() {
        let node = Node::new(&entry);
        let pod = policed(&node);
        let pins = node.root.pins();
        for name in ["masters", "meta", "endpoints", "zone_slots"] {
            for part in ["links", "progs"] {
                std::fs::remove_dir_all(pins.join(part)).or_else(absent).expect("removed");
            }
            std::fs::remove_file(pin_of(&pins, name)).expect("removed");
            mend(&node, false);
            all_live(&node, &entry);
            assert!(is_enforced(&node, &pod), "{name}");
            is_well(&node);
        }
    }
}

fn absent(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

#[test]
fn all_pins_lost_is_named_and_made_again_from_the_records() {
    for by_add in [false, true] {
        for entry in ways() {
            let node = Node::new(&entry);
            let pod = policed(&node);
            let clsact = by_clsact(&node);
            std::fs::remove_dir_all(node.root.bpffs().join("netpath")).expect("removed");
            // A filter needs no pin to stay; a link does.
            common::eventually(common::PATIENCE, "the links let go", || {
                (leaves(&node, &pod, POD, INTERNET) != clsact).then_some(())
            });
            alerts(&node, "container nptest-");
            let (said, _) = status(&node);
            assert!(
                said.contains("was attached with a zone and nothing is loaded, so it is not policed"),
                "{said}"
            );
            mend(&node, by_add);
            all_live(&node, &entry);
            let row = node.row(&pod);
            assert_eq!((row.kind, row.mode), (kind::ENDPOINT, mode::ENFORCE));
            assert!(is_enforced(&node, &pod));
            is_well(&node);
            node.delete(&pod);
        }
    }
}

#[test]
fn uninstall_names_a_filter_whose_pins_are_gone() {
    let node = Node::new(&json!({ "unknownSource": "drop", "tc": "clsact" }));
    let pod = policed(&node);
    std::fs::remove_dir_all(node.root.bpffs().join("netpath")).expect("removed");
    let output = node.try_netpath(&["uninstall", "--yes"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{said}");
    for hook in ["ingress", "egress"] {
        assert!(said.contains(&format!("tc filter del dev {MASTER} {hook} prio 1")), "{said}");
    }
    // As it says: attach takes them over, and then they can go.
    node.netpath(&["attach", MASTER]);
    assert!(is_enforced(&node, &pod));
    node.netpath(&["uninstall", "--yes"]);
    for hook in ["ingress", "egress"] {
        assert_eq!(node.netns.exec(&format!("tc filter show dev {MASTER} {hook}")).trim(), "");
    }
}

/// Older or newer: its programs go on, ours would judge the same frames by other rows.
#[test]
fn beside_another_abi_nothing_is_attached_and_what_it_made_is_deleted() {
    let node = Node::new(&json!({}));
    let pod = policed(&node);
    let pins = node.root.pins();
    for (version, what) in [("v1", "older netpath, of ABI 1"), ("v99", "newer netpath, of ABI 99")] {
        let other = pins.parent().expect("a parent").join(version);
        std::fs::rename(&pins, &other).expect("renamed");
        let netns = NetNs::new("pod");
        let output = node.call("ADD", &netns, &conf(&["10.12.34.201/24"], Some(&private())));
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!output.status.success() && said.contains(what) && said.contains(version), "{said}");
        assert!(!netns.ip("link").contains("net1"), "a refused ADD leaves nothing behind");
        let output = node.try_netpath(&["attach", MASTER]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(what), "{said}");
        assert!(is_enforced(&node, &pod), "the other one goes on");
        std::fs::rename(&other, &pins).expect("renamed back");
    }
    let other = pins.parent().expect("a parent").join("v99");
    std::fs::rename(&pins, &other).expect("renamed");
    let output = node.call("DEL", &pod.netns, &conf(&["10.12.34.200/24"], Some(&private())));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(!pod.netns.ip("link").contains("net1"));
    std::fs::rename(&other, &pins).expect("renamed back");
}
