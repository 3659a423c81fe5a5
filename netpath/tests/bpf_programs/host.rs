//! The node is never cut off its own network: frames of the host, of strangers, and for groups.

use netpath::kernel::bpf::{Hook, selftest};
use netpath_ebpf::{
    abi::{DropCounters, Endpoint, REASON_SLOTS, endpoint_flags, mode, unknown_source},
    drop_reason::DropReason,
};

use crate::{
    node::{HOST_MAC, MASTER, Node, master, runs, slot, way},
    verdict::{
        cases::{self, Case},
        frames::{PEER_MAC, POD_MAC, between, ethernet},
        image::Layout,
        model::Setup,
        reference::Way,
    },
};

const NO_DROPS: DropCounters = DropCounters {
    tx_dropped: [0; REASON_SLOTS],
    rx_dropped: [0; REASON_SLOTS],
    tx_audited: [0; REASON_SLOTS],
    rx_audited: [0; REASON_SLOTS],
};

/// The frame of `case` with the host's MAC where the pod's was.
fn of_the_host(case: &Case, hook: Hook) -> Vec<u8> {
    match way(hook) {
        Way::Egress => between(&case.frame(Way::Egress), HOST_MAC, PEER_MAC),
        Way::Ingress => between(&case.frame(Way::Ingress), PEER_MAC, HOST_MAC),
    }
}

/// Every case with every hook that can be shown it.
fn runnable() -> impl Iterator<Item = (Case, Hook)> {
    let each = cases::all().into_iter().flat_map(|case| Hook::ALL.map(|hook| (case.clone(), hook)));
    each.filter(|(case, hook)| runs(*hook, case))
}

/// Every case that `hook` can be shown.
fn shown_to(hook: Hook) -> impl Iterator<Item = Case> {
    runnable().filter(move |(_, each)| *each == hook).map(|(case, _)| case)
}

#[test]
fn every_reason_times_host_mac_passes() {
    for unknown in [unknown_source::AUDIT, unknown_source::DROP] {
        let (mut node, row) = Node::in_setup(Setup::Dual, Layout::Fit);
        node.maps.set_master(MASTER, &master(unknown)).expect("master row");
        let mut frames = 0;
        for (case, hook) in runnable() {
            assert!(node.passes(hook, &of_the_host(&case, hook)), "{} at {}", case.name, hook.name());
            frames += u64::from(hook != Hook::Xdp);
        }
        assert_eq!(node.drops(0), NO_DROPS);
        assert_eq!(node.drops(row.id), NO_DROPS);
        let totals = node.master_counters();
        assert_eq!(totals.host_packets, frames, "TC counts them, XDP leaves them alone");
        assert_eq!([totals.unknown_dropped, totals.unknown_passed, totals.host_dropped], [0; 3]);
    }
}

#[test]
fn the_frames_of_the_self_test_pass() {
    let mut node = Node::new();
    node.maps.set_master(MASTER, &master(unknown_source::DROP)).expect("master row");
    for hook in Hook::ALL {
        for (name, frame) in selftest::host_frames(HOST_MAC) {
            assert!(node.passes(hook, &frame), "{name} at {}", hook.name());
        }
    }
}

/// A row whose MAC the host has taken, or got back: whatever it says, the host wins, and it shows.
#[test]
fn an_endpoint_row_with_a_host_mac_drops_nothing() {
    let mut node = Node::new();
    for setup in Setup::ALL {
        let row = node.add(HOST_MAC, setup, Layout::Fit);
        let (mut saved, before) = (0, node.master_counters().host_dropped);
        for (case, hook) in runnable().filter(|(case, _)| case.setup == setup) {
            assert!(node.passes(hook, &of_the_host(&case, hook)), "{} at {}", case.name, hook.name());
            saved += u64::from(is_dropped(&case, hook));
        }
        assert!(saved > 0);
        assert_eq!(node.master_counters().host_dropped - before, saved, "{setup:?}");
        assert_eq!(node.drops(row.id), NO_DROPS, "{setup:?}");
    }
}

/// ARP and ND name the pod's MAC; sent with the host's they are as wrong as from anybody.
fn is_dropped(case: &Case, hook: Hook) -> bool {
    let (pod, zone) = case.setup.world();
    let frame = of_the_host(case, hook);
    crate::verdict::reference::decide(&frame, false, way(hook), &pod, zone.as_ref()).is_some()
}

#[test]
fn in_passthru_the_pod_has_the_host_mac_and_is_policed() {
    let (mut node, row) = Node::in_setup(Setup::Dual, Layout::Fit);
    let row = Endpoint { flags: row.flags | endpoint_flags::PASSTHRU, ..row };
    node.set(HOST_MAC, &row);
    for (case, hook) in runnable().filter(|(case, _)| case.setup == Setup::Dual) {
        let passes = node.passes(hook, &of_the_host(&case, hook));
        assert_eq!(passes, !is_dropped(&case, hook), "{} at {}", case.name, hook.name());
    }
    let totals = node.master_counters();
    assert_eq!([totals.host_packets, totals.host_dropped], [0; 2]);
}

#[test]
fn unknown_sources_follow_the_master() {
    let mut node = Node::new();
    let stranger = |frame: &[u8]| between(frame, [2, 9, 9, 9, 9, 9], PEER_MAC);
    let reason = slot(DropReason::UnknownSource);
    let (mut audited, mut dropped) = (0, 0);
    for case in shown_to(Hook::Egress) {
        let frame = stranger(&case.frame(Way::Egress));
        node.maps.set_master(MASTER, &master(unknown_source::AUDIT)).expect("master row");
        assert!(node.passes(Hook::Egress, &frame), "{}", case.name);
        audited += 1;
        node.maps.set_master(MASTER, &master(unknown_source::DROP)).expect("master row");
        assert!(!node.passes(Hook::Egress, &frame), "{}", case.name);
        dropped += 1;
        // What comes from the wire is nobody's to judge.
        let from_wire = between(&frame, [2, 9, 9, 9, 9, 9], [2, 8, 8, 8, 8, 8]);
        assert!(
            node.passes(Hook::Ingress, &from_wire) && node.passes(Hook::Xdp, &from_wire),
            "{}",
            case.name
        );
    }
    let totals = node.master_counters();
    assert_eq!([totals.unknown_passed, totals.unknown_dropped], [audited, dropped]);
    let drops = node.drops(0);
    assert_eq!([drops.tx_audited[reason], drops.tx_dropped[reason]], [audited, dropped]);
    // A MAC of zeros is an unused entry of the host's list, not the host.
    assert!(!node.passes(Hook::Egress, &between(&ethernet(0x0800, &[0; 20]), [0; 6], PEER_MAC)));
}

#[test]
fn group_frames_pass_at_ingress_and_are_nobodys() {
    let (node, row) = Node::in_setup(Setup::Dual, Layout::Fit);
    let mut frames = 0;
    for case in shown_to(Hook::Ingress) {
        for group in [[0xff; 6], [1, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]] {
            let frame = between(&case.frame(Way::Ingress), PEER_MAC, group);
            assert!(node.passes(Hook::Ingress, &frame) && node.passes(Hook::Xdp, &frame), "{}", case.name);
            frames += 1;
        }
    }
    assert_eq!(node.master_counters().group_packets, frames);
    assert_eq!(node.counters(row.id), Default::default());
}

#[test]
fn what_an_endpoint_sends_to_a_group_is_judged() {
    let (node, row) = Node::in_setup(Setup::Dual, Layout::Fit);
    for case in shown_to(Hook::Egress).filter(|case| case.setup == Setup::Dual) {
        let frame = between(&case.frame(Way::Egress), POD_MAC, [0xff; 6]);
        assert_eq!(node.passes(Hook::Egress, &frame), case.egress.is_none(), "{}", case.name);
    }
    assert_eq!(row.mode, mode::ENFORCE);
}
