//! Counters of a zone's entries: who decided how much, exactly, at every hook and through every change.

use netpath::{
    kernel::bpf::{Hook, maps::Maps, rules::RuleCount},
    police,
    zone::{Zone, ZoneRule, compile},
};
use netpath_ebpf::{
    abi::{Endpoint, EndpointKey, REST_ALLOW, REST_DENY, RuleCounters, mode},
    drop_reason::DropReason,
};
use serde_json::{Value, json};

use crate::{
    node::{Context, MASTER, Node, slot},
    verdict::{
        frames::{Carried, PEER_MAC, POD_MAC, arp, between, icmp, raw, tcp, udp, v4, v6},
        image::{Layout, ZONE, endpoint},
        model::{DENIED4, FAR4, FAR6, NEAR4, NEAR6, POD4, POD6, Pod, Setup},
    },
};

const SIBLING_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x22];
const REMOTE4: std::net::Ipv4Addr = std::net::Ipv4Addr::new(172, 16, 5, 9);

fn zone(ingress: &str) -> Value {
    json!({
        "local": ["10.12.34.0/24", "fd00:12::/64"],
        "allow": [{ "cidr": "172.16.0.0/16", "ports": ["tcp/443", "udp/53"] }],
        "deny": ["10.12.34.13", { "cidr": "10.12.34.0/24", "ports": ["tcp/22"] }],
        "ingress": ingress,
    })
}

/// Puts `zone` in force in row `id`.
fn write(maps: &mut Maps, id: u32, zone: &Value) {
    let image = compile(&Zone::from_json(zone).expect("a zone")).expect("fits the maps");
    maps.write_zone(id, "lan", image.digest("lan"), &police::content(&image)).expect("written");
}

fn node(zone: &Value) -> (Node, Endpoint) {
    let (mut node, row) = Node::in_setup(Setup::Dual, Layout::Fit);
    write(&mut node.maps, ZONE, zone);
    (node, row)
}

fn name(count: &RuleCount) -> String {
    match count.number {
        0 => "nobody".to_owned(),
        REST_ALLOW => "rest, allow".to_owned(),
        REST_DENY => "rest, deny".to_owned(),
        _ => ZoneRule::from_maps(&count.rule).expect("an entry").to_string(),
    }
}

/// Packets sent and received by rule, as far as any were.
fn packets(node: &Node, id: u32) -> Vec<(String, u64, u64)> {
    let counts = node.maps.rule_counts(id).expect("readable");
    let moved = counts.iter().filter(|count| count.counters != RuleCounters::default());
    moved.map(|count| (name(count), count.counters.tx_packets, count.counters.rx_packets)).collect()
}

fn of(lines: &[(&str, u64, u64)]) -> Vec<(String, u64, u64)> {
    lines.iter().map(|(name, sent, received)| ((*name).to_owned(), *sent, *received)).collect()
}

const LOCAL: &str = "local 10.12.34.0/24";
const LOCAL6: &str = "local fd00:12::/64";
const ALLOW: &str = "allow 172.16.0.0/16 tcp/443,udp/53";
const HOST: &str = "deny 10.12.34.13/32";
const SSH: &str = "deny 10.12.34.0/24 tcp/22";

#[test]
fn each_entry_counts_what_it_decides_in_either_direction() {
    let (node, row) = node(&zone("zone"));
    let cases: [(std::net::Ipv4Addr, Carried, bool, &str); 9] = [
        (NEAR4, udp(7, 7), true, LOCAL),
        (NEAR4, tcp(22, 22), false, SSH),
        (DENIED4, udp(7, 7), false, HOST),
        // Closed as a whole: the ports that are denied there decide nothing.
        (DENIED4, tcp(22, 22), false, HOST),
        (REMOTE4, tcp(443, 443), true, ALLOW),
        (REMOTE4, udp(53, 53), true, ALLOW),
        (REMOTE4, tcp(80, 80), false, "nobody"),
        (REMOTE4, icmp(8, &[]), false, "nobody"),
        (FAR4, udp(7, 7), false, "nobody"),
    ];
    for (other, carried, passes, who) in cases {
        let out = v4(POD4, other, carried.clone()).frame();
        let inward = between(&v4(other, POD4, carried).frame(), PEER_MAC, POD_MAC);
        for (hook, frame, sent) in
            [(Hook::Egress, &out, true), (Hook::Ingress, &inward, false), (Hook::Xdp, &inward, false)]
        {
            let before = node.maps.rule_counts(ZONE).expect("readable");
            // At egress the kernel says how long a frame is on the wire; a test run has to.
            let wire_length = u32::try_from(frame.len()).expect("a frame");
            let passed = match hook {
                Hook::Egress => {
                    node.passes_as(hook, frame, Context { wire_length, segments: 1, ..Context::default() })
                }
                Hook::Ingress | Hook::Xdp => node.passes(hook, frame),
            };
            assert_eq!(passed, passes, "{other} at {}", hook.name());
            let after = node.maps.rule_counts(ZONE).expect("readable");
            let length = frame.len() as u64;
            for (before, after) in before.iter().zip(&after) {
                let mut expected = before.counters;
                if name(after) == who && sent {
                    expected.tx_packets += 1;
                    expected.tx_bytes += length;
                } else if name(after) == who {
                    expected.rx_packets += 1;
                    expected.rx_bytes += length;
                }
                assert_eq!(after.counters, expected, "{}: {other} at {}", name(after), hook.name());
            }
        }
    }
    assert!(node.passes(Hook::Egress, &v6(POD6, NEAR6, udp(7, 7)).frame()));
    assert!(!node.passes(Hook::Egress, &v6(POD6, FAR6, udp(7, 7)).frame()));
    // What the zone denied is what its rules denied, no more and no less.
    let denied = node.drops(row.id).tx_dropped[slot(DropReason::ZoneDeny)];
    let counts = packets(&node, ZONE);
    let by_rules: u64 = counts
        .iter()
        .filter(|(name, ..)| !name.starts_with("local") && !name.starts_with("allow"))
        .map(|c| c.1)
        .sum();
    assert_eq!(denied, by_rules);
    assert_eq!(
        counts,
        of(&[("nobody", 4, 6), (LOCAL, 1, 2), (LOCAL6, 1, 0), (ALLOW, 2, 4), (SSH, 1, 2), (HOST, 2, 4),])
    );
}

#[test]
fn what_no_entry_was_asked_about_is_not_theirs() {
    let (node, _) = node(&zone("zone"));
    for frame in [
        // A broadcast, a later fragment where ports decide, a foreign address, a question for who is open by ports.
        v4(POD4, std::net::Ipv4Addr::BROADCAST, udp(7, 7)).frame(),
        v4(POD4, REMOTE4, raw(17, &[0; 16])).fragment(2).frame(),
        v4(FAR4, NEAR4, udp(7, 7)).frame(),
        arp(1, POD_MAC, POD4, REMOTE4),
    ] {
        let _ = node.passes(Hook::Egress, &frame);
    }
    assert_eq!(packets(&node, ZONE), of(&[]));
    assert!(node.passes(Hook::Egress, &arp(1, POD_MAC, POD4, NEAR4)));
    assert!(!node.passes(Hook::Egress, &arp(1, POD_MAC, POD4, DENIED4)));
    assert_eq!(packets(&node, ZONE), of(&[(LOCAL, 1, 0), (HOST, 1, 0)]));
}

#[test]
fn who_decides_what_comes_in_is_a_question_of_its_own() {
    let from = |other, carried| between(&v4(other, POD4, carried).frame(), PEER_MAC, POD_MAC);
    let (node, _) = node(&zone("local"));
    assert!(!node.passes(Hook::Ingress, &from(REMOTE4, tcp(443, 7))));
    assert!(node.passes(Hook::Egress, &v4(POD4, REMOTE4, tcp(7, 443)).frame()));
    assert!(node.passes(Hook::Ingress, &from(NEAR4, udp(7, 7))));
    assert!(!node.passes(Hook::Ingress, &from(NEAR4, tcp(22, 7))));
    assert_eq!(packets(&node, ZONE), of(&[("nobody", 0, 1), (LOCAL, 0, 1), (ALLOW, 1, 0), (SSH, 0, 1)]));
    let (node, _) = self::node(&zone("any"));
    assert!(node.passes(Hook::Ingress, &from(FAR4, udp(7, 7))));
    assert!(node.passes(Hook::Ingress, &from(NEAR4, tcp(22, 7))));
    assert_eq!(packets(&node, ZONE), of(&[]), "no entry is asked");
}

#[test]
fn segments_count_one_by_one_and_audited_packets_as_well() {
    let (mut node, row) = node(&zone("zone"));
    let context = Context { wire_length: 60_000, segments: 50_000, ..Context::default() };
    let (out, far) = (v4(POD4, NEAR4, udp(1, 2)).frame(), v4(POD4, FAR4, udp(1, 2)).frame());
    let inward = between(&v4(NEAR4, POD4, udp(1, 2)).frame(), PEER_MAC, POD_MAC);
    assert!(node.passes_as(Hook::Egress, &out, context));
    assert!(node.passes_as(Hook::Ingress, &inward, context));
    node.set(POD_MAC, &Endpoint { mode: mode::AUDIT, ..row });
    assert!(node.passes_as(Hook::Egress, &far, context));
    node.set(POD_MAC, &Endpoint { mode: mode::OFF, ..row });
    assert!(node.passes_as(Hook::Egress, &far, context));
    let counts = node.maps.rule_counts(ZONE).expect("readable");
    let found = |who: &str| counts.iter().find(|count| name(count) == who).expect("a rule").counters;
    let bytes = inward.len() as u64 + 49_999 * 42;
    let expected = RuleCounters { tx_packets: 50_000, tx_bytes: 60_000, rx_packets: 50_000, rx_bytes: bytes };
    assert_eq!(found(LOCAL), expected);
    let expected = RuleCounters { tx_packets: 50_000, tx_bytes: 60_000, ..Default::default() };
    assert_eq!(found("nobody"), expected);
}

#[test]
fn what_siblings_send_each_other_counts_in_both_zones() {
    let (mut node, _) = node(&zone("zone"));
    let other = json!({ "local": [], "allow": ["10.12.34.0/24"] });
    let id = ZONE + 1;
    write(&mut node.maps, id, &other);
    let (pod, _) = Setup::Dual.world();
    let sibling = Pod { v4: vec![NEAR4], v6: vec![NEAR6], ..pod };
    let row = Endpoint { zone: id, ..endpoint(&sibling) };
    node.maps.add_endpoint(EndpointKey::new(MASTER, SIBLING_MAC), row).expect("endpoint row");
    let frame = between(&v4(POD4, NEAR4, udp(1, 2)).frame(), POD_MAC, SIBLING_MAC);
    assert!(node.passes_as(
        Hook::Ingress,
        &frame,
        Context { wire_length: 1000, segments: 5, ..Context::default() }
    ));
    assert_eq!(packets(&node, ZONE), of(&[(LOCAL, 5, 0)]));
    assert_eq!(packets(&node, id), of(&[("allow 10.12.34.0/24", 0, 5)]));
}

#[test]
fn entries_that_stay_keep_their_counts_and_others_begin_anew() {
    let (mut node, _) = node(&zone("zone"));
    let near = v4(POD4, NEAR4, udp(1, 2)).frame();
    let (remote, far) = (v4(POD4, REMOTE4, tcp(1, 443)).frame(), v4(POD4, FAR4, udp(1, 2)).frame());
    let run = |node: &Node| [&near, &remote, &far].map(|frame| node.passes(Hook::Egress, frame));
    assert_eq!(run(&node), [true, true, false]);
    let others: Vec<String> = (0..20).map(|i| format!("198.18.{i}.0/24")).collect();
    let with = |more: &[String], allow: Value| {
        let mut allow = vec![allow];
        allow.extend(more.iter().map(|prefix| json!(prefix)));
        json!({ "local": ["10.12.34.0/24"], "allow": allow, "deny": ["8.0.0.0/8"] })
    };
    // The entry for the remote net is another one now; those beside it come and go, and take other numbers.
    write(&mut node.maps, ZONE, &with(&others, json!("172.16.0.0/16")));
    assert_eq!(packets(&node, ZONE), of(&[("nobody", 1, 0), (LOCAL, 1, 0)]));
    assert_eq!(run(&node), [true, true, false]);
    let counted =
        of(&[("nobody", 1, 0), (LOCAL, 2, 0), ("allow 172.16.0.0/16", 1, 0), ("deny 8.0.0.0/8", 1, 0)]);
    let sorted = |mut list: Vec<(String, u64, u64)>| {
        list.sort();
        list
    };
    assert_eq!(sorted(packets(&node, ZONE)), sorted(counted.clone()));
    for round in 0..5 {
        write(&mut node.maps, ZONE, &with(&others[round..], json!("172.16.0.0/16")));
        assert_eq!(sorted(packets(&node, ZONE)), sorted(counted.clone()), "round {round}");
    }
    // An entry that was away is a new one.
    write(&mut node.maps, ZONE, &with(&[], json!("192.0.2.0/24")));
    write(&mut node.maps, ZONE, &with(&[], json!("172.16.0.0/16")));
    let counted = of(&[("nobody", 1, 0), (LOCAL, 2, 0), ("deny 8.0.0.0/8", 1, 0)]);
    assert_eq!(sorted(packets(&node, ZONE)), sorted(counted));
}

/// A row whose entry is gone rests for one generation: until then its successors are counted together.
#[test]
fn a_zone_that_is_another_one_as_a_whole_has_room_again_with_the_next_change() {
    let prefixes = |net: u8| -> Vec<String> { (0..20).map(|i| format!("{net}.0.{i}.0/24")).collect() };
    let (mut node, _) = node(&json!({ "local": prefixes(11) }));
    write(&mut node.maps, ZONE, &json!({ "local": prefixes(12) }));
    let to = |node: &Node, last: u8| {
        node.passes(Hook::Egress, &v4(POD4, [12, 0, last, 1].into(), udp(1, 2)).frame())
    };
    assert!(to(&node, 0) && to(&node, 8) && to(&node, 9) && to(&node, 19));
    let expected = of(&[("rest, allow", 2, 0), ("local 12.0.0.0/24", 1, 0), ("local 12.0.8.0/24", 1, 0)]);
    let mut found = packets(&node, ZONE);
    found.sort_by_key(|(name, ..)| (name != "rest, allow", name.clone()));
    assert_eq!(found, expected);
    write(&mut node.maps, ZONE, &json!({ "local": prefixes(12), "deny": ["12.0.0.9"] }));
    assert!(to(&node, 19));
    assert!(packets(&node, ZONE).contains(&("local 12.0.19.0/24".to_owned(), 1, 0)));
}

#[test]
fn more_entries_than_rows_are_counted_together() {
    let allow: Vec<String> = (0..40).map(|i| format!("12.0.{i}.0/24")).collect();
    let (node, _) = node(&json!({ "local": [], "allow": allow, "deny": ["12.0.39.1", "12.0.39.2"] }));
    let to = |a: u8, b: u8| node.passes(Hook::Egress, &v4(POD4, [12, 0, a, b].into(), udp(1, 2)).frame());
    assert!(to(0, 1) && to(28, 1) && to(29, 1) && to(39, 3));
    assert!(!to(39, 1) && !to(39, 2) && !to(40, 1));
    assert_eq!(
        packets(&node, ZONE),
        of(&[
            ("nobody", 1, 0),
            ("rest, allow", 2, 0),
            ("rest, deny", 2, 0),
            ("allow 12.0.0.0/24", 1, 0),
            ("allow 12.0.28.0/24", 1, 0),
        ])
    );
}

#[test]
fn a_row_that_another_zone_had_counts_from_zero() {
    let (mut node, row) = node(&zone("zone"));
    let image = |i: u8| {
        let zone = json!({ "local": ["10.12.34.0/24"], "allow": [format!("198.18.{i}.0/24")] });
        compile(&Zone::from_json(&zone).expect("a zone")).expect("fits")
    };
    // Eight rows, one of which is the pod's.
    let mut seen = Vec::new();
    for i in 0..20 {
        let image = image(i);
        let id = node.maps.ensure_zone("lan", image.digest("lan"), &police::content(&image)).expect("a row");
        assert_eq!(packets(&node, id), of(&[]), "zone {i} in row {id}");
        node.set(POD_MAC, &Endpoint { zone: id, ..row });
        assert!(node.passes(Hook::Egress, &v4(POD4, NEAR4, udp(1, 2)).frame()));
        assert!(!node.passes(Hook::Egress, &v4(POD4, FAR4, udp(1, 2)).frame()));
        assert_eq!(packets(&node, id), of(&[("nobody", 1, 0), (LOCAL, 1, 0)]));
        seen.push(id);
    }
    assert!(
        seen.iter().any(|id| 1 < seen.iter().filter(|other| *other == id).count()),
        "rows were used again"
    );
}

#[test]
fn a_zone_is_read_as_it_was_written_whatever_its_rows() {
    let (mut node, _) = node(&zone("zone"));
    for zone in [zone("local"), json!({ "local": ["10.0.0.0/8"] }), zone("any"), zone("zone")] {
        let image = compile(&Zone::from_json(&zone).expect("a zone")).expect("fits");
        write(&mut node.maps, ZONE, &zone);
        let content = node.maps.zone_content(ZONE).expect("readable").expect("loaded");
        assert_eq!(police::image(&content), Ok(image));
    }
}
