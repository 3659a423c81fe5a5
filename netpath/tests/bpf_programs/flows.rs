//! What programs remember of flows: it counts as a verdict does, and ends with whatever it came from.

use netpath::kernel::{
    bpf::{
        Hook,
        maps::{EVENT_BURST, Maps, MapsError},
        told,
    },
    netns,
};
use netpath_ebpf::{
    abi::{
        CookieOwner, DropCounters, Endpoint, EndpointKey, Master, MasterCounters, ZONE_RULES, endpoint_flags,
        flow_bits, kind, master_flags, mode, unknown_source, zone_word,
    },
    drop_reason::DropReason,
};
use nix::{
    sched::{CpuSet, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};

use crate::{
    node::{Context, FIRST_HOST_MAC, MASTER, Node, STAMP, content, master, slot},
    verdict::{
        frames::{PEER_MAC, POD_MAC, V4, between, tcp, udp, v4, v6, with},
        image::{Image, Layout, ZONE},
        model::{FAR4, NEAR4, NEAR6, POD4, POD4_SECOND, POD6, Setup, Zone, both},
    },
};

/// Each CPU remembers for itself: all runs of a test are on one.
fn on_one_cpu() {
    let mut cpus = CpuSet::new();
    cpus.set(sched_getcpu().expect("a CPU")).expect("within the set");
    sched_setaffinity(Pid::from_raw(0), &cpus).expect("a thread of one CPU");
}

/// Makes a change of the maps as the library does.
fn change(node: &mut Node, write: impl FnOnce(&mut Maps) -> Result<(), MapsError>) {
    node.maps.change(write).expect("a change");
}

/// A node with the pod of the table, all of whose runs are on one CPU.
fn node() -> (Node, Endpoint) {
    on_one_cpu();
    Node::in_setup(Setup::Dual, Layout::Fit)
}

fn near() -> V4 {
    v4(POD4, NEAR4, udp(4000, 5000))
}

/// The frame as `hook` sees it: to the pod where that judges what it receives.
fn at(hook: Hook, frame: &[u8]) -> Vec<u8> {
    match hook {
        Hook::Egress => between(frame, POD_MAC, PEER_MAC),
        Hook::Ingress | Hook::Xdp => between(frame, PEER_MAC, POD_MAC),
    }
}

/// A packet between the pod and its neighbour, the way that `hook` judges.
fn usual(hook: Hook) -> Vec<u8> {
    match hook {
        Hook::Egress => at(hook, &near().frame()),
        Hook::Ingress | Hook::Xdp => at(hook, &v4(NEAR4, POD4, udp(5000, 4000)).frame()),
    }
}

/// Takes the zone out of force past the library: whoever asks for it from now on finds none.
fn hide_zone(node: &Node) {
    let mut words = node.raw::<u32>("zone_words");
    let word = words.get(&ZONE, 0).expect("a word");
    words.set(ZONE, word & !zone_word::LOADED, 0).expect("a word");
}

#[test]
fn a_verdict_is_remembered_until_the_next_epoch() {
    for hook in Hook::ALL {
        let (mut node, _) = node();
        // At TC ingress who sent it is remembered first.
        assert!(node.passes_times(hook, &usual(hook), 2));
        hide_zone(&node);
        assert!(node.passes(hook, &usual(hook)), "{}: it was not remembered", hook.name());
        let other = with(usual(hook), 34, &[1, 1, 1, 1]);
        assert!(!node.passes(hook, &other), "{}: of other ports nothing is known", hook.name());
        change(&mut node, |_| Ok(()));
        assert!(!node.passes(hook, &usual(hook)), "{}: it is forgotten", hook.name());
    }
}

/// Frames of both families, the way that `hook` judges.
fn both_families(hook: Hook) -> [Vec<u8>; 2] {
    let v6_frame = match hook {
        Hook::Egress => v6(POD6, NEAR6, tcp(4000, 5000)).frame(),
        Hook::Ingress | Hook::Xdp => v6(NEAR6, POD6, tcp(5000, 4000)).frame(),
    };
    [usual(hook), at(hook, &v6_frame)]
}

#[test]
fn every_bit_that_tells_a_flow_is_compared() {
    for hook in Hook::ALL {
        for (frame, is_v6) in both_families(hook).iter().zip([false, true]) {
            let (node, _) = node();
            assert!(node.passes_times(hook, frame, 3));
            hide_zone(&node);
            assert!(node.passes(hook, frame), "{}: it was not remembered", hook.name());
            let mut rows = node.raw::<[u64; 8]>("flows");
            let used = rows.iter().map(|row| row.expect("a row")).enumerate().filter(|(_, row)| row[0] != 0);
            let used: Vec<(usize, [u64; 8])> = used.collect();
            // A test run gives its frames a socket: who sent it is remembered as well, where the kernel tells that.
            let told = hook == Hook::Ingress && told::has_netns_cookie().expect("a probe");
            assert_eq!(used.len(), if told { 2 } else { 1 }, "{}", hook.name());
            for (index, row) in used {
                let index = u32::try_from(index).expect("an index");
                // IPv4 has its addresses in one word; the last has what came of it.
                let compared = (0..7).filter(|word| is_v6 || !(2..5).contains(word));
                for (word, bit) in compared.flat_map(|word| [0, 17, 33, 63].map(|bit| (word, bit))) {
                    let mut other = row;
                    other[word] ^= 1 << bit;
                    rows.set(index, other, 0).expect("a row");
                    assert!(!node.passes(hook, frame), "{}, v6 {is_v6}: bit {bit} of {word}", hook.name());
                }
                rows.set(index, row, 0).expect("a row");
                assert!(node.passes(hook, frame));
            }
        }
    }
}

/// A write that changes nothing for the pod of the test, and is one that verdicts may depend on.
type Write = (&'static str, fn(&mut Node));

#[test]
fn every_write_ends_what_is_remembered() {
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 0x33];
    fn key() -> EndpointKey {
        EndpointKey::new(MASTER, OTHER)
    }
    fn other(node: &Node) -> Endpoint {
        node.maps.endpoint(key()).expect("readable").expect("the other pod")
    }
    const WRITES: [Write; 9] = [
        ("set_master", |node| node.maps.set_master(MASTER, &master(unknown_source::AUDIT)).expect("written")),
        ("add_endpoint", |node| {
            let row = other(node);
            let _ =
                node.maps.add_endpoint(EndpointKey::new(MASTER, [2, 0, 0, 0, 0, 0x44]), row).expect("added");
        }),
        ("set_endpoint", |node| node.maps.set_endpoint(key(), &other(node)).expect("written")),
        ("set_endpoints", |node| node.maps.set_endpoints(&[(key(), other(node))]).expect("written")),
        ("remove_endpoint", |node| node.maps.remove_endpoint(key(), other(node).id).expect("removed")),
        ("set_cookie_owner", |node| node.maps.set_cookie_owner(MASTER, 77, None).expect("written")),
        ("set_claim", |node| {
            node.maps.set_claim(MASTER, "192.0.2.0/24".parse().expect("a prefix"), 2).expect("written");
        }),
        ("write_zone", |node| {
            let zone = content(&Image::new(&Zone::default(), Layout::Fit));
            let _ = node.maps.write_zone(ZONE + 1, "other", [1; 16], &zone).expect("written");
        }),
        ("remove_zone", |node| node.maps.remove_zone(ZONE + 1).expect("removed")),
    ];
    for (what, write) in WRITES {
        for hook in Hook::ALL {
            let (mut node, row) = node();
            node.maps.add_endpoint(key(), row).expect("another pod");
            assert!(node.passes_times(hook, &usual(hook), 3));
            hide_zone(&node);
            assert!(node.passes(hook, &usual(hook)), "it is remembered");
            write(&mut node);
            assert!(!node.passes(hook, &usual(hook)), "{what} at {}", hook.name());
        }
    }
}

/// Whoever is ended within a change leaves its first half.
#[test]
fn nothing_is_remembered_while_something_changes() {
    for hook in Hook::ALL {
        let (mut node, _) = node();
        assert!(node.passes_times(hook, &usual(hook), 3));
        let mut epoch = node.raw::<u32>("epoch");
        let before = epoch.get(&0, 0).expect("a number");
        assert_eq!(before % 2, 0);
        epoch.set(0, before + 1, 0).expect("a number");
        let new = with(usual(hook), 34, &[1, 1, 1, 1]);
        assert!(node.passes_times(hook, &usual(hook), 3) && node.passes_times(hook, &new, 3));
        hide_zone(&node);
        assert!(!node.passes(hook, &usual(hook)), "{}: what is old", hook.name());
        assert!(!node.passes(hook, &new), "{}: what is new", hook.name());
        change(&mut node, |_| Ok(()));
        assert_eq!(epoch.get(&0, 0).expect("a number"), before + 2);
        assert!(!node.passes(hook, &usual(hook)) && !node.passes(hook, &new));
    }
}

/// A pod in mode `passthru` has the host's own MAC: nothing is looked for among the flows for that, and it is judged.
#[test]
fn a_pod_with_the_hosts_mac_is_judged_each_time() {
    for hook in Hook::ALL {
        let (mut node, row) = node();
        let passthru = Endpoint { flags: endpoint_flags::PASSTHRU, ..row };
        node.maps.add_endpoint(EndpointKey::new(MASTER, FIRST_HOST_MAC), passthru).expect("a row");
        let frame = match hook {
            Hook::Egress => between(&usual(hook), FIRST_HOST_MAC, PEER_MAC),
            Hook::Ingress | Hook::Xdp => between(&usual(hook), PEER_MAC, FIRST_HOST_MAC),
        };
        assert!(node.passes_times(hook, &frame, 3));
        hide_zone(&node);
        assert!(!node.passes(hook, &frame), "{}", hook.name());
    }
}

#[test]
fn what_xdp_knows_is_marked_and_what_is_longer_than_the_wire_takes_is_not() {
    let (node, row) = node();
    let frame = usual(Hook::Xdp);
    for round in 1..=3 {
        let (passed, out) = node.xdp_output(&frame);
        assert!(passed && out.starts_with(&STAMP.to_ne_bytes()), "round {round}");
        assert_eq!(node.counters(row.id).rx_packets, round);
    }
    let long = [&frame[..], &[0; 1500]].concat();
    let (passed, out) = node.xdp_output(&long);
    assert!(passed && !out.starts_with(&STAMP.to_ne_bytes()));
    assert_eq!(node.counters(row.id).rx_packets, 3, "TC counts it");
}

#[test]
fn what_is_known_counts_as_what_is_not() {
    // With a preamble of the wire, as it were: not the length of the frame.
    let one = Context { wire_length: 900, segments: 1, gso_size: 0 };
    for (udp4, udp6) in [(udp(4000, 5000), udp(4000, 5000)), (tcp(4000, 5000), tcp(4000, 5000))] {
        let (node, row) = node();
        let sent = [v4(POD4, NEAR4, udp4.clone()).frame(), v6(POD6, NEAR6, udp6.clone()).frame()];
        let received = [v4(NEAR4, POD4, udp4).frame(), v6(NEAR6, POD6, udp6).frame()];
        for round in 1..=4u64 {
            for frame in &sent {
                assert!(node.passes_as(Hook::Egress, &at(Hook::Egress, frame), one));
            }
            for frame in &received {
                assert!(node.passes(Hook::Ingress, &at(Hook::Ingress, frame)));
                assert!(node.passes(Hook::Xdp, &at(Hook::Xdp, frame)));
            }
            let counted = node.counters(row.id);
            let bytes: usize = received.iter().map(Vec::len).sum();
            assert_eq!((counted.tx_packets, counted.tx_bytes), (round * 2, round * 1800));
            assert_eq!((counted.rx_packets, counted.rx_bytes), (round * 4, round * 2 * bytes as u64));
        }
        hide_zone(&node);
        for frame in &sent {
            assert!(node.passes_as(Hook::Egress, &at(Hook::Egress, frame), one), "it was not remembered");
        }
    }
}

/// What is several packets on the wire is judged each time, and counts as so many.
#[test]
fn what_stands_for_several_is_not_looked_for() {
    for context in [
        Context { wire_length: 9000, segments: 7, gso_size: 0 },
        Context { wire_length: 9000, segments: 7, gso_size: 1400 },
        Context { wire_length: 9000, segments: 0, gso_size: 1400 },
    ] {
        for hook in Hook::ALL.into_iter().filter(|hook| *hook != Hook::Xdp) {
            let (node, row) = node();
            assert!(node.passes_times(hook, &usual(hook), 3));
            let before = node.counters(row.id);
            assert!(node.passes_as(hook, &usual(hook), context));
            let after = node.counters(row.id);
            let packets = match hook {
                Hook::Egress => after.tx_packets - before.tx_packets,
                _ => after.rx_packets - before.rx_packets,
            };
            assert_eq!(packets, u64::from(context.segments.max(1)), "{context:?}");
            hide_zone(&node);
            assert!(node.passes(hook, &usual(hook)), "one packet is known");
            assert!(!node.passes_as(hook, &usual(hook), context), "{context:?} at {}", hook.name());
        }
    }
}

/// What another interface of this node sends, which is no endpoint: it is remembered for who is to have it.
#[test]
fn what_a_stranger_of_the_node_sends_is_known() {
    let (mut node, row) = node();
    node.set(PEER_MAC, &Endpoint { id: 0, cookie: 0, kind: kind::FOREIGN, mode: mode::OFF, ..row });
    let frame = usual(Hook::Ingress);
    assert!(node.passes_times(Hook::Ingress, &frame, 4));
    assert_eq!(node.counters(row.id).rx_packets, 4);
    hide_zone(&node);
    assert!(node.passes(Hook::Ingress, &frame), "it was not remembered");
}

#[test]
fn rules_count_what_is_known() {
    let (node, _) = node();
    let rules = || node.rule_rows(ZONE * ZONE_RULES..(ZONE + 1) * ZONE_RULES);
    let packets = |round: u64| {
        let (sent, received): (u64, u64) =
            rules().iter().fold((0, 0), |sum, row| (sum.0 + row[0], sum.1 + row[2]));
        assert_eq!((sent, received), (2 * round, 2 * round), "round {round}");
    };
    for round in 1..=4 {
        assert!(node.passes(Hook::Egress, &usual(Hook::Egress)));
        assert!(!node.passes(Hook::Egress, &at(Hook::Egress, &v4(POD4, FAR4, udp(1, 2)).frame())));
        assert!(node.passes(Hook::Ingress, &usual(Hook::Ingress)));
        assert!(!node.passes(Hook::Xdp, &at(Hook::Xdp, &v4(FAR4, POD4, udp(1, 2)).frame())));
        packets(round);
    }
}

#[test]
fn a_denied_flow_is_reported_counted_and_held_back_as_before() {
    for (hook, frame) in [
        (Hook::Egress, v4(POD4, FAR4, udp(1, 2)).frame()),
        (Hook::Ingress, v4(FAR4, POD4, udp(1, 2)).frame()),
        (Hook::Xdp, v4(FAR4, POD4, udp(1, 2)).frame()),
    ] {
        let (mut node, row) = node();
        let reason = slot(DropReason::ZoneDeny);
        let dropped = |node: &Node| {
            let (drops, counters) = (node.drops(row.id), node.counters(row.id));
            match hook {
                Hook::Egress => (drops.tx_dropped[reason], counters.tx_dropped, counters.tx_packets),
                _ => (drops.rx_dropped[reason], counters.rx_dropped, counters.rx_packets),
            }
        };
        let burst = u64::try_from(EVENT_BURST).expect("a few");
        for sent in 1..=burst + 20 {
            assert!(!node.passes(hook, &at(hook, &frame)));
            assert_eq!(dropped(&node), (sent, sent, 0));
            let MasterCounters { events_emitted, events_limited, events_lost, .. } = node.master_counters();
            assert_eq!((events_emitted, events_limited), (sent.min(burst), sent.saturating_sub(burst)));
            assert_eq!(events_lost, 0);
        }
        // Whoever is granted more is told again.
        node.maps.grant(row.id, 3).expect("a budget");
        for _ in 0..5 {
            assert!(!node.passes(hook, &at(hook, &frame)));
        }
        assert_eq!(node.master_counters().events_emitted, burst + 3);
        assert_eq!(node.master_counters().events_limited, 22);
    }
}

/// One change of what a verdict comes from, and what it makes of a packet that passed.
type Change = (&'static str, fn(&mut Node, &Endpoint), Option<DropReason>);

fn zone_without_neighbour(node: &mut Node, _: &Endpoint) {
    let zone = Zone::of([both("192.168.0.0", 16, true)], false);
    node.maps.write_zone(ZONE, "lan", [9; 16], &content(&Image::new(&zone, Layout::Fit))).expect("zone");
}

fn no_zone(node: &mut Node, _: &Endpoint) {
    node.maps.remove_zone(ZONE).expect("no zone");
}

fn other_zone(node: &mut Node, row: &Endpoint) {
    node.set(POD_MAC, &Endpoint { zone: ZONE + 1, ..*row });
}

fn in_one_call(node: &mut Node, row: &Endpoint) {
    let row = Endpoint { zone: ZONE + 1, ..*row };
    node.maps.set_endpoints(&[(EndpointKey::new(MASTER, POD_MAC), row)]).expect("rows");
}

fn audited(node: &mut Node, row: &Endpoint) {
    other_zone(node, row);
    node.set(POD_MAC, &Endpoint { zone: ZONE + 1, mode: mode::AUDIT, ..*row });
}

#[test]
fn every_change_ends_what_was_known() {
    const CHANGES: [Change; 5] = [
        ("a zone without the neighbour", zone_without_neighbour, Some(DropReason::ZoneDeny)),
        ("no zone", no_zone, Some(DropReason::ZoneNotLoaded)),
        ("another zone", other_zone, Some(DropReason::ZoneNotLoaded)),
        ("another zone by a call for many", in_one_call, Some(DropReason::ZoneNotLoaded)),
        ("audited", audited, None),
    ];
    for (what, change, reason) in CHANGES {
        for hook in Hook::ALL {
            let (mut node, row) = node();
            for _ in 0..3 {
                assert!(node.passes(hook, &usual(hook)));
            }
            change(&mut node, &row);
            for _ in 0..3 {
                assert_eq!(node.passes(hook, &usual(hook)), reason.is_none(), "{what} at {}", hook.name());
            }
            let (drops, out) = (node.drops(row.id), hook == Hook::Egress);
            let list = match reason {
                Some(_) if out => drops.tx_dropped,
                Some(_) => drops.rx_dropped,
                None if out => drops.tx_audited,
                None => drops.rx_audited,
            };
            let found = list[slot(reason.unwrap_or(DropReason::ZoneNotLoaded))];
            assert_eq!(found, 3, "{what} at {}", hook.name());
        }
    }
}

#[test]
fn what_was_denied_passes_as_soon_as_it_may() {
    for hook in Hook::ALL {
        let (mut node, _) = node();
        let frame = match hook {
            Hook::Egress => v4(POD4, FAR4, udp(1, 2)).frame(),
            _ => v4(FAR4, POD4, udp(1, 2)).frame(),
        };
        for _ in 0..20 {
            assert!(!node.passes(hook, &at(hook, &frame)));
        }
        let zone = Zone::of([both("8.0.0.0", 8, true), both("10.12.34.0", 24, true)], false);
        node.maps
            .write_zone(ZONE, "lan", [9; 16], &content(&Image::new(&zone, Layout::Tries)))
            .expect("zone");
        assert!(node.passes(hook, &at(hook, &frame)), "{}", hook.name());
    }
}

/// The pod's address, its whole row, and who answers for its namespace: nothing of it outlives its end.
#[test]
fn a_row_that_changes_or_goes_takes_its_flows_along() {
    let (mut node, row) = node();
    let frame = usual(Hook::Egress);
    assert!(node.passes_times(Hook::Egress, &frame, 3));
    let mut moved = row;
    moved.v4 = [[0; 4]; 4];
    moved.v4[0] = POD4_SECOND.octets();
    node.set(POD_MAC, &moved);
    assert!(!node.passes(Hook::Egress, &frame), "an address that it has no more");
    node.set(POD_MAC, &row);
    assert!(node.passes_times(Hook::Egress, &frame, 3));
    let counted = node.counters(row.id).tx_packets;
    node.maps.remove_endpoint(EndpointKey::new(MASTER, POD_MAC), row.id).expect("gone");
    assert!(node.passes(Hook::Egress, &frame), "nobody's MAC is audited here");
    assert_eq!(node.counters(row.id).tx_packets, counted, "nothing is counted for who is gone");
    assert_eq!(node.master_counters().unknown_passed, 1);
    node.maps.set_master(MASTER, &master(unknown_source::DROP)).expect("master row");
    assert!(!node.passes(Hook::Egress, &frame));
}

#[test]
fn a_namespace_that_begins_to_answer_for_itself_ends_what_was_known() {
    let (mut node, row) = node();
    // A kernel that does not tell cookies cannot tell the two apart.
    let told = told::has_netns_cookie().expect("a probe");
    let cookie = netns::cookie().expect("Linux 5.14");
    node.set(POD_MAC, &Endpoint { cookie: cookie + 1, ..row });
    let frame = usual(Hook::Egress);
    assert!(node.passes_times(Hook::Egress, &frame, 3), "sent from where nobody is known");
    let owner =
        CookieOwner { endpoint: row.id, generation: row.generation, mode: mode::ENFORCE, pad: [0; 7] };
    node.maps.set_cookie_owner(MASTER, cookie, Some(owner)).expect("cookie");
    assert_eq!(node.passes(Hook::Egress, &frame), !told, "another pod with this one's MAC");
    node.maps.set_cookie_owner(MASTER, cookie, None).expect("cookie");
    node.set(POD_MAC, &Endpoint { cookie: 0, kind: kind::FOREIGN, mode: mode::OFF, ..row });
    assert!(node.passes_times(Hook::Egress, &frame, 3));
    node.maps.set_cookie_owner(MASTER, cookie, Some(owner)).expect("cookie");
    node.maps
        .set_master(MASTER, &Master { flags: master_flags::DEDICATED, ..master(unknown_source::AUDIT) })
        .expect("master row");
    assert_eq!(node.passes(Hook::Egress, &frame), !told, "on a dedicated NIC");
}

#[test]
fn what_is_not_plain_is_judged_whatever_is_known_of_its_flow() {
    for hook in Hook::ALL {
        let (node, row) = node();
        let turn = |packet: fn(V4) -> V4| {
            let (source, destination, carried) = match hook {
                Hook::Egress => (POD4, NEAR4, udp(4000, 5000)),
                _ => (NEAR4, POD4, udp(5000, 4000)),
            };
            at(hook, &packet(v4(source, destination, carried)).frame())
        };
        let usual = turn(|packet| packet);
        for (what, frame, reason) in [
            ("options", turn(|packet| packet.options(&[7, 4, 4, 0])), DropReason::IpOptions),
            ("a total below its headers", turn(|packet| packet.total(27)), DropReason::Malformed),
            ("a total beyond the frame", turn(|packet| packet.total(400)), DropReason::Malformed),
            ("another version", turn(|packet| packet.first_byte(0x65)), DropReason::Malformed),
            ("a tag in it", [&usual[..12], &[0x81, 0, 0, 5], &usual[12..]].concat(), DropReason::Vlan),
        ] {
            assert!(node.passes_times(hook, &usual, 3));
            let before = node.drops(row.id);
            assert!(!node.passes(hook, &frame), "{what} at {}", hook.name());
            let after = node.drops(row.id);
            let counted = |drops: &DropCounters| match hook {
                Hook::Egress => drops.tx_dropped[slot(reason)],
                _ => drops.rx_dropped[slot(reason)],
            };
            assert_eq!(counted(&after), counted(&before) + 1, "{what} at {}", hook.name());
        }
    }
}

/// Of a passing flow and of one that is denied, each takes the row that the other had.
#[test]
fn a_row_has_one_flow_at_a_time() {
    let (node, row) = node();
    // More flows than there are rows.
    let rows = 1u32 << flow_bits(node.maps.meta().expect("meta").cpus);
    let count = 3 * rows;
    for turn in 0..2 {
        for number in 0..count {
            let port = u16::try_from(number).expect("a port");
            let to = if number % 2 == 0 { NEAR4 } else { FAR4 };
            let frame = at(Hook::Egress, &v4(POD4, to, udp(port, 7)).frame());
            assert_eq!(node.passes(Hook::Egress, &frame), to == NEAR4, "{turn} {number}");
        }
    }
    let counted = node.counters(row.id);
    assert_eq!(counted.tx_packets, u64::from(count));
    assert_eq!(counted.tx_dropped, u64::from(count));
    let used = node.raw_rows::<8>("flows").into_iter().filter(|words| words[0] != 0).count();
    assert!(used > rows as usize / 2, "only {used} rows were ever used");
}
