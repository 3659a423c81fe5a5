//! The programs themselves as the target: somebody on the node takes them away, or stands in front of them. That is
//! the node's own administrator or an agent of theirs; it is noticed, and one command puts things right.

use std::fs;
use std::path::Path;

use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
use netpath::kernel::bpf::attach::Via;
use serde_json::{Value, json};

use crate::arena::{A, Arena, private, strict};
use crate::common::node::{INTERNET, MASTER, Node, OUTSIDE_MAC, Pod, crosses, pod_fence, usual_via};
use crate::common::wire::{marker, udp_frame};
use crate::common::{PATIENCE, eventually};
use crate::tc;

/// What these tests are about, whatever else would be chosen (Linux 6.6).
fn tcx() -> Value {
    json!({ "unknownSource": "drop", "tc": "tcx" })
}

/// Whether a datagram to the internet leaves, and whether `netpath status` has something to say.
#[track_caller]
fn look(node: &Node, pod: &Pod) -> (bool, Option<String>) {
    let mark = marker();
    let frame = udp_frame((pod.mac, OUTSIDE_MAC), A, INTERNET, (1, 2), &mark);
    let leaves = crosses(&pod.socket(), &node.far_end(), &frame, &mark, pod_fence(pod, A));
    let output = node.try_netpath(&["status"]);
    let said = String::from_utf8(output.stdout).expect("text");
    let alert = said.lines().find(|line| line.starts_with("ALERT: ")).map(str::to_owned);
    assert_eq!(output.status.code(), Some(if alert.is_some() { 4 } else { 0 }), "{said}");
    (leaves, alert)
}

#[track_caller]
fn is_whole(node: &Node, pod: &Pod) {
    assert_eq!(look(node, pod), (false, None));
}

#[test]
fn row_24_a_qdisc_that_is_deleted_takes_clsact_filters_along_and_is_noticed_and_repaired() {
    let node = Node::new(&json!({ "unknownSource": "drop", "tc": "clsact" }));
    let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
    is_whole(&node, &pod);
    for repair in ["attach", "another ADD"] {
        node.netns.exec(&format!("tc qdisc del dev {MASTER} clsact"));
        let (leaves, alert) = look(&node, &pod);
        assert!(leaves, "nothing is in the way while nothing is attached");
        assert!(alert.is_some_and(|alert| alert.contains("is not attached, so nothing is enforced there")));
        let _pod = match repair {
            "attach" => {
                node.netpath(&["attach"]);
                None
            }
            _ => Some(node.pod(&["10.12.34.201/24"], Some(&private()))),
        };
        is_whole(&node, &pod);
    }
}

#[test]
fn row_24_tcx_does_not_mind_qdiscs() {
    let arena = Arena::new(&tcx());
    arena.node.netns.exec(&format!("tc qdisc add dev {MASTER} clsact"));
    is_whole(&arena.node, &arena.a);
    arena.node.netns.exec(&format!("tc qdisc del dev {MASTER} clsact"));
    is_whole(&arena.node, &arena.a);
}

#[test]
fn row_24_a_program_that_stands_in_front_and_accepts_is_named() {
    let node = Node::new(&tcx());
    let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
    is_whole(&node, &pod);
    // TC_ACT_OK, which TCX takes for "pass, and ask nobody else".
    let pin = tc::verdict(&node, 0);
    let mut program = SchedClassifier::from_pin(&pin).expect("it is pinned");
    let link = node.netns.within(|| {
        let first = TcAttachOptions::TcxOrder(LinkOrder::first());
        let id = program.attach_with_options(MASTER, TcAttachType::Egress, first).expect("attached");
        program.take_link(id).expect("it is ours")
    });
    let (leaves, alert) = look(&node, &pod);
    assert!(leaves, "who comes first decides");
    assert!(alert.is_some_and(|alert| alert.contains("runs before netpath at egress and may decide alone")));
    drop(link);
    is_whole(&node, &pod);

    // Behind ours it is asked about what ours lets pass, and cannot open what ours closes.
    let link = node.netns.within(|| {
        let last = TcAttachOptions::TcxOrder(LinkOrder::last());
        let id = program.attach_with_options(MASTER, TcAttachType::Egress, last).expect("attached");
        program.take_link(id).expect("it is ours")
    });
    is_whole(&node, &pod);
    drop(link);
}

/// Removes every pin below a directory.
fn remove(directory: &Path) {
    for entry in fs::read_dir(directory).expect("a directory").flatten() {
        match entry.file_type().expect("a type").is_dir() {
            true => remove(&entry.path()),
            false => fs::remove_file(entry.path()).expect("a pin"),
        }
    }
}

#[test]
fn row_25_pins_that_are_removed_end_enforcement_at_once_which_is_noticed_and_repaired() {
    let node = Node::new(&strict());
    let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
    is_whole(&node, &pod);
    for repair in ["attach", "another ADD"] {
        // A pin is all that holds a link, which the kernel lets go of a little later. A filter holds its program by
        // itself: there a lost pin ends nothing but netpath's knowledge of it.
        let by_link = usual_via() == Via::Tcx;
        remove(&node.root.pins().join(if by_link { "links" } else { "progs" }));
        let alert = eventually(PATIENCE, "the pin was all that held the program", || {
            let (leaves, alert) = look(&node, &pod);
            (leaves == by_link).then_some(alert)
        });
        assert!(alert.is_some_and(|alert| alert.contains("is not attached, so nothing is enforced there")));
        let _pod = match repair {
            "attach" => {
                node.netpath(&["attach"]);
                None
            }
            _ => Some(node.pod(&["10.12.34.201/24"], Some(&private()))),
        };
        is_whole(&node, &pod);
    }
}
