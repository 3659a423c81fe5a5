//! Counters: 64 bit, packets and bytes of the wire, once per endpoint and direction.

use netpath::kernel::bpf::{Hook, object::Settings};
use netpath_ebpf::{
    abi::{Counters, Endpoint, EndpointKey, MasterCounters, REASON_SLOTS, mode},
    drop_reason::DropReason,
};

use crate::{
    node::{Context, MASTER, Node, STAMP, slot},
    verdict::{
        frames::{PEER_MAC, POD_MAC, arp, between, ethernet, tcp, udp, v4, v6},
        image::{Layout, endpoint},
        model::{FAR4, NEAR4, NEAR6, POD4, POD6, Pod, Setup},
    },
};

const SIBLING_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x22];

/// A second pod of the same zone: the address of a neighbour.
fn add_sibling(node: &mut Node) -> Endpoint {
    let (pod, _) = Setup::Dual.world();
    let sibling = Pod { v4: vec![NEAR4], v6: vec![NEAR6], ..pod };
    let key = EndpointKey::new(MASTER, SIBLING_MAC);
    node.maps.add_endpoint(key, endpoint(&sibling)).expect("endpoint row")
}

/// Two frames short of 2^32 on every CPU, in every counter.
const NEARLY_32_BIT: u64 = u32::MAX as u64 - 1;

fn preset(node: &Node, id: u32) -> u64 {
    let cpus = node.maps.meta().expect("meta").cpus;
    let mut counters = node.raw::<[u64; 8]>("counters");
    for cpu in 0..cpus {
        counters.set(id * cpus + cpu, [NEARLY_32_BIT; 8], 0).expect("preset");
    }
    let mut masters = node.raw::<[u64; 8]>("master_counters");
    for cpu in 0..cpus {
        masters.set(u32::from(MASTER) * cpus + cpu, [NEARLY_32_BIT; 8], 0).expect("preset");
    }
    let mut drops = node.raw::<[u64; 4 * REASON_SLOTS]>("drops");
    drops.set(id, [NEARLY_32_BIT; 4 * REASON_SLOTS], 0).expect("preset");
    drops.set(0, [NEARLY_32_BIT; 4 * REASON_SLOTS], 0).expect("preset");
    NEARLY_32_BIT * u64::from(cpus)
}

#[test]
fn counters_go_past_32_bits() {
    let (mut node, row) = Node::in_setup(Setup::Dual, Layout::Fit);
    let base = preset(&node, row.id);
    let context = Context { wire_length: 60_000, segments: 50_000, ..Context::default() };
    let sent = |destination| v4(POD4, destination, udp(1, 2)).frame();
    let received = |source| between(&v4(source, POD4, udp(1, 2)).frame(), PEER_MAC, POD_MAC);
    let reason = slot(DropReason::ZoneDeny);

    for _ in 0..3 {
        assert!(node.passes_as(Hook::Egress, &sent(NEAR4), context));
        assert!(!node.passes_as(Hook::Egress, &sent(FAR4), context));
        assert!(node.passes_as(Hook::Ingress, &received(NEAR4), context));
        assert!(!node.passes_as(Hook::Ingress, &received(FAR4), context));
    }
    node.set(POD_MAC, &Endpoint { mode: mode::AUDIT, ..row });
    for _ in 0..3 {
        assert!(node.passes_as(Hook::Egress, &sent(FAR4), context));
        assert!(node.passes_as(Hook::Ingress, &received(FAR4), context));
    }
    let n = 3 * 50_000;
    // Merged packets had a header each on the wire: Ethernet, IPv4, UDP.
    let received_bytes = received(NEAR4).len() as u64 + 49_999 * 42;
    let expected = Counters {
        tx_packets: base + 2 * n,
        tx_bytes: base + 6 * 60_000,
        rx_packets: base + 2 * n,
        rx_bytes: base + 6 * received_bytes,
        tx_dropped: base + n,
        rx_dropped: base + n,
        tx_audited: base + n,
        rx_audited: base + n,
    };
    assert_eq!(node.counters(row.id), expected);
    let drops = node.drops(row.id);
    let by_reason = [&drops.tx_dropped, &drops.rx_dropped, &drops.tx_audited, &drops.rx_audited];
    for list in by_reason {
        assert_eq!(list[reason], NEARLY_32_BIT + n);
        assert_eq!(list.iter().filter(|count| **count != NEARLY_32_BIT).count(), 1, "no other reason");
    }
}

#[test]
fn counters_of_the_master_go_past_32_bits() {
    use crate::node::{HOST_MAC, master};
    use netpath_ebpf::abi::unknown_source;
    let (mut node, row) = Node::in_setup(Setup::Dual, Layout::Fit);
    let base = preset(&node, row.id);
    let context = Context { wire_length: 1000, segments: 50_000, ..Context::default() };
    let frame = ethernet(0x0800, &[0; 40]);
    let stranger = between(&frame, [2, 9, 9, 9, 9, 9], PEER_MAC);
    let hosts = between(&frame, HOST_MAC, PEER_MAC);
    for _ in 0..3 {
        assert!(node.passes_as(Hook::Egress, &hosts, context));
        assert!(node.passes_as(Hook::Egress, &stranger, context));
        node.maps.set_master(MASTER, &master(unknown_source::DROP)).expect("master row");
        assert!(!node.passes_as(Hook::Egress, &stranger, context));
        node.maps.set_master(MASTER, &master(unknown_source::AUDIT)).expect("master row");
        assert!(node.passes(Hook::Ingress, &between(&frame, PEER_MAC, [0xff; 6])));
    }
    node.set(HOST_MAC, &row);
    for _ in 0..3 {
        assert!(node.passes_as(Hook::Egress, &hosts, context));
    }
    let n = 3 * 50_000;
    let totals = node.master_counters();
    let expected = MasterCounters {
        host_packets: base + n,
        host_dropped: base + 3,
        unknown_passed: base + n,
        unknown_dropped: base + n,
        group_packets: base + 3,
        events_emitted: base + 6,
        events_limited: base,
        events_lost: base,
    };
    assert_eq!(totals, expected);
    let drops = node.drops(0);
    let reason = slot(DropReason::UnknownSource);
    assert_eq!([drops.tx_dropped[reason], drops.tx_audited[reason]], [NEARLY_32_BIT + n; 2]);
}

#[test]
fn a_frame_that_is_not_merged_counts_as_it_is() {
    let (node, row) = Node::in_setup(Setup::Dual, Layout::Fit);
    let out = v4(POD4, NEAR4, udp(1, 2)).frame();
    let length = u32::try_from(out.len()).expect("a frame");
    let inward = between(&out, PEER_MAC, POD_MAC);
    for segments in [0, 1] {
        let context = Context { wire_length: length, segments, ..Context::default() };
        assert!(node.passes_as(Hook::Egress, &out, context));
        assert!(node.passes_as(Hook::Ingress, &inward, context));
    }
    assert!(node.passes(Hook::Xdp, &inward));
    let bytes = u64::from(length);
    let expected = Counters {
        tx_packets: 2,
        tx_bytes: 2 * bytes,
        rx_packets: 3,
        rx_bytes: 3 * bytes,
        ..Default::default()
    };
    assert_eq!(node.counters(row.id), expected);
}

/// Headers of merged packets: Ethernet 14, IP 20 or 40, UDP 8, TCP as it says.
#[test]
fn bytes_of_merged_packets_have_a_header_each() {
    let (node, row) = Node::in_setup(Setup::Dual, Layout::Fit);
    let with_options = {
        let mut frame = v4(NEAR4, POD4, tcp(1, 2)).frame();
        frame[46] = 0x80;
        frame.extend([1; 12]);
        frame[17] += 12;
        frame
    };
    for (frame, header) in [
        (v4(NEAR4, POD4, tcp(1, 2)).frame(), 54),
        (with_options, 66),
        (v4(NEAR4, POD4, udp(1, 2)).frame(), 42),
        (v6(NEAR6, POD6, tcp(1, 2)).frame(), 74),
        (v6(NEAR6, POD6, udp(1, 2)).frame(), 62),
    ] {
        let frame = between(&frame, PEER_MAC, POD_MAC);
        let before = node.counters(row.id);
        assert!(node.passes_as(
            Hook::Ingress,
            &frame,
            Context { wire_length: 1000, segments: 5, ..Context::default() }
        ));
        let after = node.counters(row.id);
        assert_eq!(after.rx_packets - before.rx_packets, 5);
        assert_eq!(after.rx_bytes - before.rx_bytes, frame.len() as u64 + 4 * header, "header of {header}");
    }
}

#[test]
fn siblings_count_for_both_ends_at_ingress() {
    let (mut node, pod) = Node::in_setup(Setup::Dual, Layout::Fit);
    let sibling = add_sibling(&mut node);
    let frame = between(&v4(POD4, NEAR4, udp(1, 2)).frame(), POD_MAC, SIBLING_MAC);
    assert!(node.passes_as(
        Hook::Ingress,
        &frame,
        Context { wire_length: 1000, segments: 5, ..Context::default() }
    ));
    let bytes = frame.len() as u64 + 4 * 42;
    let sent = Counters { tx_packets: 5, tx_bytes: bytes, ..Default::default() };
    let received = Counters { rx_packets: 5, rx_bytes: bytes, ..Default::default() };
    assert_eq!([node.counters(pod.id), node.counters(sibling.id)], [sent, received]);
    assert_eq!(node.master_counters(), MasterCounters::default());
}

#[test]
fn what_a_sibling_sends_is_judged_at_ingress() {
    let (mut node, pod) = Node::in_setup(Setup::Dual, Layout::Fit);
    let sibling = add_sibling(&mut node);
    // As the gateway, as the sibling, outside the zone, and with another's MAC.
    for frame in [
        v4(FAR4, NEAR4, udp(1, 2)).frame(),
        v4(NEAR4, NEAR4, udp(1, 2)).frame(),
        v4(POD4, FAR4, udp(1, 2)).frame(),
        arp(2, PEER_MAC, POD4, NEAR4),
    ] {
        assert!(!node.passes(Hook::Ingress, &between(&frame, POD_MAC, SIBLING_MAC)));
    }
    let dropped = Counters { tx_dropped: 4, ..Default::default() };
    assert_eq!([node.counters(pod.id), node.counters(sibling.id)], [dropped, Counters::default()]);
}

#[test]
fn what_a_sibling_may_send_the_receiver_may_refuse() {
    let (mut node, pod) = Node::in_setup(Setup::Dual, Layout::Fit);
    let sibling = add_sibling(&mut node);
    node.set(POD_MAC, &Endpoint { mode: mode::OFF, ..pod });
    let frame = between(&v4(FAR4, NEAR4, udp(1, 2)).frame(), POD_MAC, SIBLING_MAC);
    assert!(!node.passes(Hook::Ingress, &frame));
    let sent = Counters { tx_packets: 1, tx_bytes: frame.len() as u64, ..Default::default() };
    let refused = Counters { rx_dropped: 1, ..Default::default() };
    assert_eq!([node.counters(pod.id), node.counters(sibling.id)], [sent, refused]);
    // And where nobody judges the sibling, all of it arrives.
    node.set(SIBLING_MAC, &Endpoint { mode: mode::OFF, ..sibling });
    assert!(node.passes(Hook::Ingress, &frame));
    assert_eq!(node.counters(sibling.id).rx_packets, 1);
}

/// TC returns at once on a frame with the stamp, so XDP counts exactly what it stamps, and what it drops.
#[test]
fn xdp_stamps_what_it_counts_and_nothing_else() {
    let (mut node, row) = Node::in_setup(Setup::Dual, Layout::Fit);
    let to_pod = |source| between(&v4(source, POD4, udp(1, 2)).frame(), PEER_MAC, POD_MAC);
    let stamped = |frame: &[u8]| [&STAMP.to_ne_bytes()[..], &POD_MAC, &[0, 0], frame].concat();
    let good = to_pod(NEAR4);
    assert_eq!(node.xdp_output(&good), (true, stamped(&good)));
    let length = good.len() as u64;
    let passed = Counters { rx_packets: 1, rx_bytes: length, ..Default::default() };
    assert_eq!(node.counters(row.id), passed);

    let bad = to_pod(FAR4);
    assert_eq!(node.xdp_output(&bad), (false, bad.clone()));
    assert_eq!(node.counters(row.id), Counters { rx_dropped: 1, ..passed });

    node.set(POD_MAC, &Endpoint { mode: mode::AUDIT, ..row });
    assert_eq!(node.xdp_output(&bad), (true, stamped(&bad)));
    let audited = Counters { rx_packets: 2, rx_bytes: 2 * length, rx_dropped: 1, rx_audited: 1, ..passed };
    assert_eq!(node.counters(row.id), audited);

    for other in [[2, 8, 8, 8, 8, 8], [0xff; 6], crate::node::HOST_MAC] {
        let frame = between(&good, PEER_MAC, other);
        assert_eq!(node.xdp_output(&frame), (true, frame.clone()));
    }
    assert_eq!(node.counters(row.id), audited);
}

#[test]
fn a_new_endpoint_starts_at_zero_with_a_new_generation() {
    let (mut node, first) = Node::in_setup(Setup::Dual, Layout::Fit);
    assert!(node.passes(Hook::Egress, &v4(POD4, NEAR4, udp(1, 2)).frame()));
    assert!(!node.passes(Hook::Egress, &v4(POD4, FAR4, udp(1, 2)).frame()));
    let key = EndpointKey::new(MASTER, POD_MAC);
    // Ids go round: the same one comes back after all others.
    let mut row = first;
    let mut seen = vec![first.id];
    loop {
        node.maps.remove_endpoint(key, row.id).expect("removed");
        assert!(node.passes(Hook::Egress, &v4(POD4, FAR4, udp(1, 2)).frame()), "nobody's frame now");
        row = node.maps.add_endpoint(key, first).expect("endpoint row");
        if row.id == first.id {
            break;
        }
        assert!(!seen.contains(&row.id), "id {} rested too short", row.id);
        seen.push(row.id);
    }
    assert_eq!(seen.len(), 32);
    assert_eq!(row.generation, first.generation + 1);
    assert_eq!(node.counters(row.id), Counters::default());
    assert_eq!(node.drops(row.id).tx_dropped, [0; REASON_SLOTS]);
}

/// More than are read at once, and with what a removed one leaves.
#[test]
fn every_row_is_listed_once() {
    let mut node = Node::with(Settings { endpoints: 1000, ..Settings::default() });
    let row = node.add(POD_MAC, Setup::Dual, Layout::Fit);
    let key = |number: u16| {
        let [high, low] = number.to_be_bytes();
        EndpointKey::new(MASTER, [2, 1, 0, 0, high, low])
    };
    let mut expected = vec![(EndpointKey::new(MASTER, POD_MAC), row)];
    for number in 0..900 {
        let row = node.maps.add_endpoint(key(number), Endpoint { id: 0, generation: 0, ..row }).expect("row");
        match number % 3 {
            0 => node.maps.remove_endpoint(key(number), row.id).expect("removed"),
            _ => expected.push((key(number), row)),
        }
    }
    let mut listed = node.maps.endpoints().expect("readable");
    let by_id = |row: &(EndpointKey, Endpoint)| row.1.id;
    listed.sort_by_key(by_id);
    expected.sort_by_key(by_id);
    assert_eq!(listed, expected);
}
