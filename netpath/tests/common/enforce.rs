//! Whether a pod's zone holds, as the far end of the wire sees it, and what is attached to the master.

use std::net::Ipv4Addr;

use netpath::kernel::bpf::Hook;
use netpath::kernel::bpf::attach::{HookState, Via, inspect};
use serde_json::{Value, json};

use super::node::{GATEWAY, INTERNET, MASTER, Node, OUTSIDE_MAC, Pod, crosses, pod_fence, runs_both_ways};
use super::wire::{RawSocket, marker, udp_frame};

/// Address of the first pod.
pub(crate) const POD: Ipv4Addr = Ipv4Addr::new(10, 12, 34, 200);

/// The network's zone.
pub(crate) fn private() -> Value {
    json!({ "policy": "private" })
}

/// Entries of masters.json for each way of attaching that the kernel offers and the run is to show: the usual one,
/// filters where they are another one, and XDP beside the usual one.
pub(crate) fn ways() -> Vec<Value> {
    let mut ways =
        vec![json!({ "unknownSource": "drop" }), json!({ "unknownSource": "drop", "xdp": "native" })];
    if runs_both_ways() {
        ways.insert(1, json!({ "unknownSource": "drop", "tc": "clsact" }));
    }
    ways
}

/// A pod with the address [`POD`] in the zone.
#[track_caller]
pub(crate) fn policed(node: &Node) -> Pod {
    node.pod(&["10.12.34.200/24"], Some(&private()))
}

/// Index of the master.
pub(crate) fn ifindex(node: &Node) -> u32 {
    index_of(node, MASTER)
}

/// Index of a link of the node.
pub(crate) fn index_of(node: &Node, name: &str) -> u32 {
    node.netns.exec(&format!("cat /sys/class/net/{name}/ifindex")).trim().parse().expect("an index")
}

/// What is attached to the master.
pub(crate) fn hooks(node: &Node) -> Vec<HookState> {
    node.netns.within(|| inspect(&node.root.pins(), 1, ifindex(node))).expect("readable")
}

/// Whether TC programs of this master are filters of a clsact qdisc.
pub(crate) fn by_clsact(node: &Node) -> bool {
    hooks(node).iter().any(|state| state.via == Via::Clsact)
}

/// Whether every hook that is wanted has its program, on the maps that are pinned.
#[track_caller]
pub(crate) fn all_live(node: &Node, entry: &Value) {
    let wanted = if entry["xdp"] == "native" { &Hook::ALL[..] } else { &Hook::ALL[..2] };
    let states = hooks(node);
    assert_eq!(states.iter().map(|state| state.hook).collect::<Vec<_>>(), wanted, "{states:?}");
    assert!(states.iter().all(|state| state.live && state.bound), "{states:?}");
}

/// Whether a datagram of the pod reaches the far end of the wire.
#[track_caller]
pub(crate) fn leaves(node: &Node, pod: &Pod, from: Ipv4Addr, to: Ipv4Addr) -> bool {
    let mark = marker();
    let frame = udp_frame((pod.mac, OUTSIDE_MAC), from, to, (1, 2), &mark);
    crosses(&pod.socket(), &node.far_end(), &frame, &mark, pod_fence(pod, from))
}

/// Whether a datagram from outside the zone reaches the pod.
#[track_caller]
pub(crate) fn enters(node: &Node, pod: &Pod, own: Ipv4Addr, from: Ipv4Addr) -> bool {
    let (mark, mac) = (marker(), pod.mac);
    let frame = udp_frame((OUTSIDE_MAC, mac), from, own, (1, 2), &mark);
    let to = RawSocket::open(&pod.netns, "net1");
    let fence = |mark: &[u8]| udp_frame((OUTSIDE_MAC, mac), GATEWAY, own, (9, 9), mark);
    crosses(&node.far_end(), &to, &frame, &mark, fence)
}

/// Whether the zone holds both ways, while what is inside it passes.
#[track_caller]
pub(crate) fn is_enforced(node: &Node, pod: &Pod) -> bool {
    is_enforced_for(node, pod, POD)
}

/// The same for a pod with another address.
#[track_caller]
pub(crate) fn is_enforced_for(node: &Node, pod: &Pod, own: Ipv4Addr) -> bool {
    assert!(leaves(node, pod, own, GATEWAY), "the zone itself stays open");
    assert!(enters(node, pod, own, GATEWAY), "the zone itself stays open on the way in");
    let [out, into] = [leaves(node, pod, own, INTERNET), enters(node, pod, own, INTERNET)];
    assert_eq!(out, into, "one way is enforced and the other is not");
    !out
}

/// What `netpath status` says and whether it asks for attention.
#[track_caller]
pub(crate) fn status(node: &Node) -> (String, bool) {
    let output = node.try_netpath(&["status"]);
    let said = String::from_utf8(output.stdout).expect("text");
    match output.status.code() {
        Some(0) => (said, false),
        Some(3 | 4) => (said, true),
        other => panic!("status: {other:?} {}", String::from_utf8_lossy(&output.stderr)),
    }
}

/// `netpath status` says this sentence and asks for attention.
#[track_caller]
pub(crate) fn alerts(node: &Node, sentence: &str) {
    let (said, attention) = status(node);
    assert!(attention && said.contains(&format!("ALERT: {sentence}")), "{sentence}\n{said}");
}

/// `netpath status` has nothing to complain of.
#[track_caller]
pub(crate) fn is_well(node: &Node) {
    let (said, attention) = status(node);
    assert!(!attention, "{said}");
}

/// What brings a master back: the next attach, or the next pod.
pub(crate) fn mend(node: &Node, by_add: bool) {
    match by_add {
        true => drop(node.pod(&["10.12.34.201/24"], Some(&private()))),
        false => drop(node.netpath(&["attach", MASTER])),
    }
}
