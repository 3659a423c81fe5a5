//! The case table in the kernel: same frames, same reasons, in each mode and with zones in either place.

use std::collections::{BTreeMap, BTreeSet};

use netpath::kernel::bpf::Hook;
use netpath_ebpf::{
    abi::{Counters, DropCounters, Endpoint, REASON_SLOTS, kind, mode, unknown_source},
    drop_reason::DropReason,
};

use crate::{
    node::{MASTER, Node, master, runs, slot, way},
    verdict::{
        cases,
        frames::{POD_MAC, between, ethernet},
        image::Layout,
        model::Setup,
        reference::Way,
    },
};

/// Where each reason is reached in these tests. A tag beside the frame (`vlan`), and everything about frames that
/// are not linear or below 14 bytes, is shown on real interfaces besides.
const REACHED: [(DropReason, &[Hook]); 16] = {
    const BOTH: &[Hook] = &[Hook::Egress, Hook::Ingress, Hook::Xdp];
    const OUT: &[Hook] = &[Hook::Egress];
    [
        (DropReason::Malformed, BOTH),
        (DropReason::Ethertype, BOTH),
        (DropReason::Vlan, BOTH),
        (DropReason::SourceV4, OUT),
        (DropReason::SourceV6, OUT),
        (DropReason::SourceArp, OUT),
        (DropReason::SourceNd, OUT),
        (DropReason::UnknownSource, OUT),
        (DropReason::RouterGuard, OUT),
        (DropReason::DhcpServer, BOTH),
        (DropReason::IpOptions, BOTH),
        (DropReason::ExtensionHeader, BOTH),
        (DropReason::LinkLocal, BOTH),
        (DropReason::ZoneDeny, BOTH),
        (DropReason::ZoneNotLoaded, BOTH),
        (DropReason::Fragment, BOTH),
    ]
};

/// What one frame did to the drop counters: reason, or nothing; more than one is a failure.
fn reason_between(
    before: &DropCounters,
    after: &DropCounters,
    way: Way,
    audited: bool,
) -> Option<DropReason> {
    let lists = |counters: &DropCounters| {
        [counters.tx_dropped, counters.rx_dropped, counters.tx_audited, counters.rx_audited]
    };
    let which = match (way, audited) {
        (Way::Egress, false) => 0,
        (Way::Ingress, false) => 1,
        (Way::Egress, true) => 2,
        (Way::Ingress, true) => 3,
    };
    let mut found = None;
    for (list, (old, new)) in lists(before).iter().zip(lists(after)).enumerate() {
        for number in 0..REASON_SLOTS {
            match new[number] - old[number] {
                0 => {}
                1 if list == which && found.is_none() => {
                    let number = u8::try_from(number).expect("a small number");
                    found = Some(DropReason::from_number(number).expect("a reason"));
                }
                more => panic!("list {list}, reason {number}: {more} counted"),
            }
        }
    }
    found
}

/// What one frame did to the counters of the endpoint, apart from bytes.
fn packets_between(before: &Counters, after: &Counters) -> [u64; 6] {
    let list =
        |c: &Counters| [c.tx_packets, c.rx_packets, c.tx_dropped, c.rx_dropped, c.tx_audited, c.rx_audited];
    let (before, after) = (list(before), list(after));
    std::array::from_fn(|i| after[i] - before[i])
}

/// Runs the table of one setup; every deviation is a line.
fn run_table(node: &mut Node, row: &Endpoint, setup: Setup, note: &str, wrong: &mut Vec<String>) {
    for case in cases::all().iter().filter(|case| case.setup == setup) {
        for hook in Hook::ALL.into_iter().filter(|hook| runs(*hook, case)) {
            let way = way(hook);
            let expected = case.expected(way).filter(|_| row.mode != mode::OFF && row.kind == kind::ENDPOINT);
            let audited = row.mode == mode::AUDIT;
            let (drops, counters) = (node.drops(row.id), node.counters(row.id));
            let passes = node.passes(hook, &case.frame(way));
            let found = reason_between(&drops, &node.drops(row.id), way, audited);
            if found != expected {
                wrong.push(format!(
                    "{} at {} ({note}): {expected:?} expected, {found:?} counted",
                    case.name,
                    hook.name()
                ));
            }
            let shall_pass = expected.is_none() || audited;
            if passes != shall_pass {
                wrong.push(format!("{} at {} ({note}): passed: {passes}", case.name, hook.name()));
            }
            let one = |yes: bool| u64::from(yes);
            let (out, inward) = (way == Way::Egress, way == Way::Ingress);
            let audit = expected.is_some() && audited;
            let counted = packets_between(&counters, &node.counters(row.id));
            let wanted = [
                one(out && shall_pass),
                one(inward && shall_pass),
                one(out && !shall_pass),
                one(inward && !shall_pass),
                one(out && audit),
                one(inward && audit),
            ];
            if counted != wanted {
                wrong.push(format!(
                    "{} at {} ({note}): counted {counted:?}, not {wanted:?}",
                    case.name,
                    hook.name()
                ));
            }
        }
    }
}

#[test]
fn the_kernel_says_what_the_table_says() {
    let mut node = Node::new();
    let mut wrong = Vec::new();
    for setup in Setup::ALL {
        for layout in [Layout::Fit, Layout::Tries] {
            let row = node.add(POD_MAC, setup, layout);
            for mode in [mode::OFF, mode::AUDIT, mode::ENFORCE] {
                let row = Endpoint { mode, ..row };
                node.set(POD_MAC, &row);
                let note = format!("{setup:?}, {layout:?}, mode {mode}");
                run_table(&mut node, &row, setup, &note, &mut wrong);
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_foreign_row_is_passed_and_counted_whatever_its_mode() {
    let (mut node, row) = Node::in_setup(Setup::Dual, Layout::Fit);
    let row = Endpoint { kind: kind::FOREIGN, mode: mode::ENFORCE, ..row };
    node.set(POD_MAC, &row);
    let mut wrong = Vec::new();
    run_table(&mut node, &row, Setup::Dual, "foreign", &mut wrong);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Maps are data: a mode that this program does not know is no way out.
#[test]
fn an_unknown_mode_enforces() {
    let (mut node, row) = Node::in_setup(Setup::Dual, Layout::Fit);
    let row = Endpoint { mode: 77, ..row };
    node.set(POD_MAC, &row);
    let mut wrong = Vec::new();
    run_table(&mut node, &row, Setup::Dual, "unknown mode", &mut wrong);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_drop_reason_is_reached_where_the_table_says() {
    let mut reached: BTreeMap<DropReason, BTreeSet<Hook>> = BTreeMap::new();
    let mut node = Node::new();
    for setup in Setup::ALL {
        let row = node.add(POD_MAC, setup, Layout::Fit);
        for case in cases::all().iter().filter(|case| case.setup == setup) {
            for hook in Hook::ALL.into_iter().filter(|hook| runs(*hook, case)) {
                let before = node.drops(row.id);
                if !node.passes(hook, &case.frame(way(hook))) {
                    let reason = reason_between(&before, &node.drops(row.id), way(hook), false);
                    reached.entry(reason.expect("a drop is counted")).or_default().insert(hook);
                }
            }
        }
    }
    node.maps.set_master(MASTER, &master(unknown_source::DROP)).expect("master row");
    let stranger = between(&ethernet(0x88b5, &[1, 2, 3]), [2, 9, 9, 9, 9, 9], [2, 0, 0, 0, 0, 0x99]);
    let before = node.drops(0);
    assert!(!node.passes(Hook::Egress, &stranger));
    let reason = reason_between(&before, &node.drops(0), Way::Egress, false).expect("a drop is counted");
    reached.entry(reason).or_default().insert(Hook::Egress);

    let expected: BTreeMap<_, BTreeSet<_>> =
        REACHED.iter().map(|(reason, hooks)| (*reason, hooks.iter().copied().collect())).collect();
    assert_eq!(reached, expected);
    // That a MAC is borrowed takes a cookie to tell: the tests of `sender`.
    let here = DropReason::ALL.iter().filter(|reason| **reason != DropReason::SourceMac);
    assert!(reached.keys().eq(here));
    assert_eq!(node.drops(0).tx_dropped[slot(DropReason::UnknownSource)], 1);
}
