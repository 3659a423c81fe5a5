//! Zones: replaced as one generation, missing ones close, neighbours in the maps do not leak.

use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use netpath::kernel::bpf::Hook;
use netpath_ebpf::{
    abi::{Endpoint, EndpointKey, mode},
    drop_reason::DropReason,
};

use crate::{
    node::{MASTER, Node, content, slot},
    verdict::{
        frames::{PEER_MAC, POD_MAC, between, udp, v4, v6},
        image::{Image, Layout, ZONE, endpoint},
        model::{FAR4, FAR6, NEAR4, NEAR6, POD4, POD6, Setup, Zone, both},
    },
};

fn write(node: &mut Node, id: u32, zone: &Zone, layout: Layout) -> u64 {
    node.maps.write_zone(id, "lan", [9; 16], &content(&Image::new(zone, layout))).expect("zone")
}

#[test]
fn each_write_is_a_generation_and_the_old_content_is_gone() {
    let (mut node, _) = Node::in_setup(Setup::Dual, Layout::Fit);
    let only = |net: &str, length| Zone::of([both(net, length, true)], false);
    let frames = [
        v4(POD4, NEAR4, udp(1, 2)).frame(),
        v4(POD4, FAR4, udp(1, 2)).frame(),
        v6(POD6, NEAR6, udp(1, 2)).frame(),
        v6(POD6, FAR6, udp(1, 2)).frame(),
    ];
    let steps = [
        (only("10.12.34.0", 24), [true, false, false, false]),
        (only("8.0.0.0", 8), [false, true, false, false]),
        (only("fd00:12::", 64), [false, false, true, false]),
        (only("2000::", 3), [false, false, false, true]),
        (Zone::default(), [false; 4]),
    ];
    let mut generation = 1;
    // From inline to trie and back, so that each kind of leftover could show.
    for layouts in
        [[Layout::Fit; 2], [Layout::Tries; 2], [Layout::Fit, Layout::Tries], [Layout::Tries, Layout::Fit]]
    {
        for (i, (zone, expected)) in steps.iter().enumerate() {
            generation += 1;
            assert_eq!(write(&mut node, ZONE, zone, layouts[i % 2]), generation);
            let row = node.maps.zone(ZONE).expect("readable").expect("loaded");
            assert_eq!(row.slot.generation, generation);
            let found = frames.each_ref().map(|frame| node.passes(Hook::Egress, frame));
            assert_eq!(&found, expected, "step {i}, {layouts:?}");
        }
    }
}

/// Two contents that agree on every frame below, but of which no mixture does: the entry that decides stands at
/// another place, or in another map.
#[test]
fn a_zone_that_is_replaced_under_load_is_never_half_written() {
    let (mut node, row) = Node::in_setup(Setup::Dual, Layout::Fit);
    let near = both("10.12.34.77", 32, true);
    let near6 = both("fd00:12::77", 128, true);
    let denied = |last: u8| both(&Ipv4Addr::new(10, 99, 0, last).to_string(), 32, false);
    let denied6 = |last: u8| both(&format!("fd00:99::{last}"), 128, false);
    let first = Zone::of([near, near6], false);
    let second = Zone::of(
        (0..7)
            .map(denied)
            .chain((0..7).map(denied6))
            .chain([both("10.0.0.0", 8, true), both("fd00::", 8, true)]),
        false,
    );
    let images = [
        content(&Image::new(&first, Layout::Fit)),
        content(&Image::new(&second, Layout::Fit)),
        content(&Image::new(&first, Layout::Tries)),
        content(&Image::new(&second, Layout::Tries)),
    ];
    node.maps.write_zone(ZONE, "lan", [9; 16], &images[0]).expect("zone");
    let mut writer = netpath::kernel::bpf::maps::Maps::open(&node.pins()).expect("maps").expect("loaded");
    let done = AtomicBool::new(false);
    let mut runs = 0;
    thread::scope(|scope| {
        scope.spawn(|| {
            for i in 1..=120 {
                writer.write_zone(ZONE, "lan", [9; 16], &images[i % images.len()]).expect("zone");
            }
            done.store(true, Ordering::Release);
        });
        let frames = [v4(POD4, NEAR4, udp(1, 2)).frame(), v6(POD6, NEAR6, udp(1, 2)).frame()];
        while !done.load(Ordering::Acquire) {
            for frame in &frames {
                node.passes_times(Hook::Egress, frame, 2000);
                runs += 2000;
            }
        }
    });
    assert!(runs >= 100_000, "{runs} packets are too few to show anything");
    assert_eq!(node.counters(row.id).tx_dropped, 0, "of {runs}");
    assert_eq!(node.counters(row.id).tx_packets, runs);
}

#[test]
fn a_missing_zone_closes_an_enforcing_endpoint_and_no_other() {
    let (mut node, row) = Node::in_setup(Setup::Dual, Layout::Fit);
    let frame = v4(POD4, NEAR4, udp(1, 2)).frame();
    let inward = between(&frame, PEER_MAC, POD_MAC);
    assert!(node.passes(Hook::Egress, &frame));
    node.maps.remove_zone(ZONE).expect("removed");
    let reason = slot(DropReason::ZoneNotLoaded);
    for hook in Hook::ALL {
        assert!(!node.passes(hook, if hook == Hook::Egress { &frame } else { &inward }), "{}", hook.name());
    }
    let drops = node.drops(row.id);
    assert_eq!([drops.tx_dropped[reason], drops.rx_dropped[reason]], [1, 2]);
    // Rows that never were, that no map has room for, and zone 0, which is no zone.
    for zone in [0, 2, 8, 9, 10_000, u32::MAX] {
        node.set(POD_MAC, &Endpoint { zone, ..row });
        assert!(!node.passes(Hook::Egress, &frame), "zone {zone}");
    }
    node.set(POD_MAC, &Endpoint { mode: mode::AUDIT, ..row });
    assert!(node.passes(Hook::Egress, &frame) && node.passes(Hook::Ingress, &inward));
    let drops = node.drops(row.id);
    assert_eq!([drops.tx_audited[reason], drops.rx_audited[reason]], [1, 1]);
    node.set(POD_MAC, &Endpoint { mode: mode::OFF, ..row });
    assert!(node.passes(Hook::Egress, &frame) && node.passes(Hook::Ingress, &inward));
    assert_eq!(node.drops(row.id), drops);
    // Loaded again, in force again.
    node.set(POD_MAC, &row);
    let (_, zone) = Setup::Dual.world();
    write(&mut node, ZONE, &zone.expect("a zone"), Layout::Fit);
    assert!(node.passes(Hook::Egress, &frame));
}

/// The tries of all zones are one map: a prefix of one zone is no other's.
#[test]
fn zones_do_not_see_each_other() {
    for layout in [Layout::Fit, Layout::Tries] {
        let mut node = Node::new();
        let (pod, _) = Setup::Dual.world();
        let macs = [[2, 0, 0, 0, 0, 0x31], [2, 0, 0, 0, 0, 0x32], [2, 0, 0, 0, 0, 0x33]];
        let nets = ["10.1.0.0", "10.2.0.0", "10.3.0.0"];
        for (i, (mac, net)) in (1..).zip(macs.iter().zip(nets)) {
            write(&mut node, i, &Zone::of([both(net, 16, true)], false), layout);
            let row = Endpoint { zone: i, ..endpoint(&pod) };
            node.maps.add_endpoint(EndpointKey::new(MASTER, *mac), row).expect("endpoint row");
        }
        for (i, mac) in macs.iter().enumerate() {
            for j in 1..=3u8 {
                let frame = v4(POD4, Ipv4Addr::new(10, j, 0, 1), udp(1, 2)).frame();
                let passes = node.passes(Hook::Egress, &between(&frame, *mac, PEER_MAC));
                assert_eq!(passes, i + 1 == usize::from(j), "{layout:?}: zone {} and 10.{j}", i + 1);
            }
        }
    }
}

#[test]
fn a_row_on_another_master_is_not_ours() {
    let mut node = Node::new();
    let (pod, _) = Setup::Dual.world();
    let key = EndpointKey::new(MASTER + 1, POD_MAC);
    let row = node.maps.add_endpoint(key, endpoint(&pod)).expect("endpoint row");
    assert!(node.passes(Hook::Egress, &v4(POD4, FAR4, udp(1, 2)).frame()));
    assert_eq!(node.master_counters().unknown_passed, 1);
    assert_eq!(node.counters(row.id), Default::default());
}

/// Prefixes are shared by all networks: one that asks for more than there are, or pods that are gone, must not take
/// them from the next.
#[test]
fn a_zone_that_does_not_fit_takes_nothing_and_one_that_nobody_needs_makes_room() {
    let mut node = Node::new();
    let zone = |net: u8, count: u8| {
        let nets =
            (0..=count).flat_map(|i| [i, 128 | i].map(|last| both(&format!("{net}.9.{i}.{last}"), 32, true)));
        content(&Image::new(&Zone::of(nets, false), Layout::Tries))
    };
    let lan = node.maps.ensure_zone("lan", [250; 16], &zone(10, 20)).expect("there is room");
    let (pod, _) = Setup::Dual.world();
    let row = Endpoint { zone: lan, ..endpoint(&pod) };
    node.maps.add_endpoint(EndpointKey::new(MASTER, POD_MAC), row).expect("endpoint row");
    let before = node.maps.zone_content(lan).expect("readable").expect("loaded");
    for round in 0..40 {
        let failed = node.maps.ensure_zone("big", [round; 16], &zone(20, 127)).expect_err("too large");
        assert!(failed.to_string().contains("raise `prefixes` in settings.json"), "{failed}");
        let small = zone(30 + round, 40);
        let id = node.maps.ensure_zone("small", [100 + round; 16], &small).expect("there is room");
        let found = node.maps.zone_content(id).expect("readable").expect("loaded");
        assert_eq!(found.trie_v4.len(), small.trie_v4.len());
    }
    let after = node.maps.zone_content(lan).expect("readable").expect("loaded");
    assert_eq!(after, before, "a pod that lives keeps its own");
    // Each change leaves the prefixes of the generation before.
    for round in 0..8 {
        node.maps.write_zone(lan, "lan", [200 + round; 16], &zone(90 + round, 50)).expect("there is room");
    }
    node.maps.write_zone(lan, "lan", [9; 16], &zone(20, 127)).expect_err("too large");
    let kept = node.maps.zone_content(lan).expect("readable").expect("loaded");
    assert_eq!(kept.trie_v4.len(), zone(97, 50).trie_v4.len());
}
