//! Events: what they say, how many, and who may read them.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use netpath::kernel::bpf::{
    Hook,
    events::{Consumer, EventsError},
    maps::EVENT_BURST,
    object::Settings,
};
use netpath::observe::{Direction, Event};
use netpath_ebpf::{
    abi::{DropEvent, Endpoint, direction, mode, unknown_source},
    drop_reason::DropReason,
};

use crate::{
    node::{MASTER, Node, master, slot},
    verdict::{
        frames::{
            PEER_MAC, POD_MAC, arp, between, error6, ethernet, icmp6, link_layer, neighbour, tcp, udp, v4, v6,
        },
        image::Layout,
        model::{ALL_NODES, FAR4, FAR6, NEAR4, NEAR6, POD4, POD6, Setup},
    },
};

/// The bytes of an event as the ABI has them.
fn decode(bytes: &[u8]) -> DropEvent {
    assert_eq!(bytes.len(), size_of::<DropEvent>());
    let u16_at = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
    let u32_at = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    DropEvent {
        endpoint: u32_at(0),
        generation: u32_at(4),
        master: u16_at(8),
        ethertype: u16_at(10),
        reason: bytes[12],
        direction: bytes[13],
        audited: bytes[14],
        protocol: bytes[15],
        source: bytes[16..32].try_into().expect("sixteen bytes"),
        destination: bytes[32..48].try_into().expect("sixteen bytes"),
        source_port: u16_at(48),
        destination_port: u16_at(50),
        length: u32_at(52),
        source_mac: bytes[56..62].try_into().expect("six bytes"),
        destination_mac: bytes[62..68].try_into().expect("six bytes"),
        rule: bytes[68],
        pad: bytes[69..72].try_into().expect("three bytes"),
    }
}

fn consumer(node: &Node) -> Consumer {
    Consumer::new(&node.pins(), &node.root().events_lock()).expect("the only consumer")
}

fn read(consumer: &mut Consumer) -> Vec<DropEvent> {
    let mut events = Vec::new();
    let handle = |bytes: &[u8]| {
        let event = decode(bytes);
        agrees_with_the_library(&event, bytes);
        events.push(event);
    };
    consumer.read(Duration::ZERO, handle).expect("events");
    events
}

/// What people are shown is what the program wrote.
fn agrees_with_the_library(event: &DropEvent, bytes: &[u8]) {
    let shown = Event::decode(bytes).expect("an event");
    assert_eq!(
        [shown.endpoint, shown.generation, shown.length],
        [event.endpoint, event.generation, event.length]
    );
    assert_eq!(shown.reason.number(), event.reason);
    assert_eq!(shown.direction == Direction::Tx, event.direction == direction::TX);
    assert_eq!(shown.audited, event.audited == 1);
    assert_eq!([shown.source_port, shown.destination_port], [event.source_port, event.destination_port]);
    assert_eq!([shown.source_mac, shown.destination_mac], [event.source_mac, event.destination_mac]);
    let address = |bytes: [u8; 16]| Ipv6Addr::from(bytes).to_canonical();
    let nothing = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    assert_eq!(shown.source.unwrap_or(nothing), address(event.source));
    assert_eq!(shown.destination.unwrap_or(nothing), address(event.destination));
}

fn mapped(address: Ipv4Addr) -> [u8; 16] {
    address.to_ipv6_mapped().octets()
}

/// What a frame of the pod, or for it, says of itself in its event.
#[test]
fn events_say_what_the_frame_was() {
    let (mut node, row) = Node::in_setup(Setup::Dual, Layout::Fit);
    let mut consumer = consumer(&node);
    let basis = DropEvent {
        endpoint: row.id,
        generation: row.generation,
        master: MASTER,
        ethertype: 0x0800,
        reason: DropReason::ZoneDeny as u8,
        direction: direction::TX,
        audited: 0,
        protocol: 0,
        source: [0; 16],
        destination: [0; 16],
        source_port: 0,
        destination_port: 0,
        length: 0,
        source_mac: POD_MAC,
        destination_mac: PEER_MAC,
        rule: 0,
        pad: [0; 3],
    };
    let ip4 = DropEvent { source: mapped(POD4), destination: mapped(FAR4), ..basis };
    let ip6 = DropEvent { ethertype: 0x86dd, source: POD6.octets(), destination: FAR6.octets(), ..basis };
    let solicitation = v6(POD6, ALL_NODES, neighbour(135, FAR6, &link_layer(1, POD_MAC)));
    let own = v6(POD6, FAR6, udp(1, 2)).frame();
    let cases = [
        (
            "UDP",
            Hook::Egress,
            v4(POD4, FAR4, udp(1000, 53)).frame(),
            DropEvent { protocol: 17, source_port: 1000, destination_port: 53, ..ip4 },
        ),
        (
            "TCP by IPv6",
            Hook::Egress,
            v6(POD6, FAR6, tcp(1000, 443)).frame(),
            DropEvent { protocol: 6, source_port: 1000, destination_port: 443, ..ip6 },
        ),
        (
            "behind options",
            Hook::Egress,
            v6(POD6, FAR6, udp(1000, 53)).options(1).frame(),
            DropEvent { protocol: 17, source_port: 1000, destination_port: 53, ..ip6 },
        ),
        (
            "later fragment",
            Hook::Egress,
            v4(POD4, FAR4, udp(1000, 53)).fragment(185).frame(),
            DropEvent { protocol: 17, ..ip4 },
        ),
        ("ARP", Hook::Egress, arp(1, POD_MAC, POD4, FAR4), DropEvent { ethertype: 0x0806, ..ip4 }),
        (
            "solicitation: the target",
            Hook::Egress,
            solicitation.frame(),
            DropEvent { protocol: 58, source_port: 135, ..ip6 },
        ),
        (
            "advertisement of another: the target",
            Hook::Egress,
            v6(POD6, ALL_NODES, neighbour(136, FAR6, &[])).frame(),
            DropEvent { protocol: 58, source_port: 136, reason: DropReason::SourceNd as u8, ..ip6 },
        ),
        (
            "LLDP",
            Hook::Egress,
            ethernet(0x88cc, &[2, 7, 4]),
            DropEvent { ethertype: 0x88cc, reason: DropReason::Ethertype as u8, ..basis },
        ),
        (
            "tag",
            Hook::Egress,
            ethernet(0x8100, &[0, 100, 8, 0]),
            DropEvent { ethertype: 0x8100, reason: DropReason::Vlan as u8, ..basis },
        ),
        (
            "UDP from outside",
            Hook::Ingress,
            v4(FAR4, POD4, udp(53, 1000)).frame(),
            DropEvent {
                protocol: 17,
                source: mapped(FAR4),
                destination: mapped(POD4),
                source_port: 53,
                destination_port: 1000,
                ..basis
            },
        ),
        (
            "error from outside: where it goes, not what it quotes",
            Hook::Ingress,
            v6(FAR6, POD6, error6(1, &own, 48)).frame(),
            DropEvent {
                protocol: 58,
                source_port: 1,
                source: FAR6.octets(),
                destination: POD6.octets(),
                ..ip6
            },
        ),
        (
            "echo from outside",
            Hook::Xdp,
            v6(FAR6, POD6, icmp6(128, &[0; 8])).frame(),
            DropEvent {
                protocol: 58,
                source_port: 128,
                source: FAR6.octets(),
                destination: POD6.octets(),
                ..ip6
            },
        ),
    ];
    // What the frame before had is not this one's. Only XDP is asked: see `Case::has_header`.
    let nowhere = mapped(Ipv4Addr::UNSPECIFIED);
    let cut =
        DropEvent { reason: DropReason::Malformed as u8, source: nowhere, destination: nowhere, ..basis };
    let cut6 = DropEvent { ethertype: 0x86dd, source: [0; 16], destination: [0; 16], ..cut };
    let whole = v6(FAR6, POD6, icmp6(128, &[0; 8])).frame();
    let of_before = DropEvent {
        protocol: 58,
        source_port: 128,
        source: FAR6.octets(),
        destination: POD6.octets(),
        ..ip6
    };
    let cases = cases.into_iter().chain([
        ("IPv4 that is cut off", Hook::Xdp, ethernet(0x0800, &[0x45; 4]), cut),
        ("ARP that is cut off", Hook::Xdp, ethernet(0x0806, &[0; 8]), DropEvent { ethertype: 0x0806, ..cut }),
        ("echo before", Hook::Xdp, whole, of_before),
        ("IPv6 that is cut off", Hook::Xdp, ethernet(0x86dd, &[0x60; 4]), cut6),
    ]);
    for (name, hook, frame, expected) in cases {
        node.maps.grant(row.id, 1).expect("grant");
        let inward = hook != Hook::Egress;
        let frame = if inward { between(&frame, PEER_MAC, POD_MAC) } else { frame };
        assert!(!node.passes(hook, &frame), "{name}");
        let length = u32::try_from(frame.len()).expect("a frame");
        let expected = match inward {
            true => DropEvent {
                direction: direction::RX,
                source_mac: PEER_MAC,
                destination_mac: POD_MAC,
                length,
                ..expected
            },
            false => DropEvent { length, ..expected },
        };
        assert_eq!(read(&mut consumer), [expected], "{name}");
    }
}

#[test]
fn audited_and_unowned_frames_say_so() {
    let (mut node, row) = Node::in_setup(Setup::Dual, Layout::Fit);
    let mut consumer = consumer(&node);
    node.set(POD_MAC, &Endpoint { mode: mode::AUDIT, generation: 9, ..row });
    let frame = v4(POD4, FAR4, udp(1, 2)).frame();
    assert!(node.passes(Hook::Egress, &frame));
    assert!(node.passes(Hook::Ingress, &between(&v4(FAR4, POD4, udp(1, 2)).frame(), PEER_MAC, POD_MAC)));
    let events = read(&mut consumer);
    let short = |e: &DropEvent| (e.endpoint, e.generation, e.direction, e.audited, e.reason);
    let deny = DropReason::ZoneDeny as u8;
    let expected = [(row.id, 9, direction::TX, 1, deny), (row.id, 9, direction::RX, 1, deny)];
    assert_eq!(events.iter().map(short).collect::<Vec<_>>(), expected);

    let stranger = [2, 9, 9, 9, 9, 9];
    for (unknown, audited) in [(unknown_source::AUDIT, 1), (unknown_source::DROP, 0)] {
        node.maps.set_master(MASTER, &master(unknown)).expect("master row");
        assert_eq!(node.passes(Hook::Egress, &between(&frame, stranger, PEER_MAC)), audited == 1);
        let events = read(&mut consumer);
        let reason = DropReason::UnknownSource as u8;
        assert_eq!(events.iter().map(short).collect::<Vec<_>>(), [(0, 0, direction::TX, audited, reason)]);
        // L3 of a stranger is not read, and not left over from the frame before.
        assert_eq!(
            (events[0].source, events[0].source_mac, events[0].ethertype),
            ([0; 16], stranger, 0x0800)
        );
    }
}

#[test]
fn events_are_limited_by_endpoint_direction_and_reason_until_granted_again() {
    let (mut node, row) = Node::in_setup(Setup::Dual, Layout::Fit);
    let mut consumer = consumer(&node);
    let burst = u64::try_from(EVENT_BURST).expect("positive");
    let outside = v4(POD4, FAR4, udp(1, 2)).frame();
    let inside = between(&v4(FAR4, POD4, udp(1, 2)).frame(), PEER_MAC, POD_MAC);
    let spoof = v4(NEAR4, NEAR4, udp(1, 2)).frame();
    let totals = |node: &Node| {
        let totals = node.master_counters();
        [totals.events_emitted, totals.events_limited, totals.events_lost]
    };
    let drop_all = |node: &Node| {
        for _ in 0..burst + 5 {
            assert!(!node.passes(Hook::Egress, &outside));
            assert!(!node.passes(Hook::Egress, &spoof));
            assert!(!node.passes(Hook::Ingress, &inside));
        }
    };
    drop_all(&node);
    assert_eq!(totals(&node), [3 * burst, 15, 0]);
    let events = read(&mut consumer);
    for (way, reason) in [
        (direction::TX, DropReason::ZoneDeny),
        (direction::TX, DropReason::SourceV4),
        (direction::RX, DropReason::ZoneDeny),
    ] {
        let of_kind = events.iter().filter(|e| (e.direction, e.reason) == (way, reason as u8));
        assert_eq!(of_kind.count() as u64, burst, "{reason:?}");
    }
    // Without a grant: counted, not reported.
    drop_all(&node);
    assert_eq!(totals(&node), [3 * burst, 15 + 3 * (burst + 5), 0]);
    assert_eq!(read(&mut consumer), []);
    let reason = slot(DropReason::ZoneDeny);
    let drops = node.drops(row.id);
    assert_eq!([drops.tx_dropped[reason], drops.rx_dropped[reason]], [2 * (burst + 5); 2]);

    // The consumer grants to whom it has read of.
    consumer.grant_spent(&mut node.maps).expect("grant");
    drop_all(&node);
    assert_eq!(totals(&node)[0], 6 * burst);
    assert_eq!(read(&mut consumer).len() as u64, 3 * burst);
    consumer.grant_all(&mut node.maps).expect("grant");
    assert!(!node.passes(Hook::Egress, &outside));
    assert_eq!(read(&mut consumer).len(), 1);
}

#[test]
fn events_that_find_no_room_are_counted_as_lost() {
    let page = 4096;
    let mut node = Node::with(Settings { endpoints: 32, zones: 8, prefixes: 256, event_bytes: page });
    let row = node.add(POD_MAC, Setup::Dual, Layout::Fit);
    node.maps.grant(row.id, 1000).expect("grant");
    let outside = v4(POD4, FAR4, udp(1, 2)).frame();
    for _ in 0..200 {
        assert!(!node.passes(Hook::Egress, &outside));
    }
    let totals = node.master_counters();
    // A record has a header of eight bytes.
    let room = u64::from(page) / (8 + size_of::<DropEvent>() as u64);
    assert!((room - 1..=room).contains(&totals.events_emitted), "{totals:?}");
    assert_eq!([totals.events_emitted + totals.events_lost, totals.events_limited], [200, 0]);
    assert_eq!(node.drops(row.id).tx_dropped[slot(DropReason::ZoneDeny)], 200);
    let mut consumer = consumer(&node);
    assert_eq!(read(&mut consumer).len() as u64, totals.events_emitted);
    assert!(!node.passes(Hook::Egress, &v6(POD6, FAR6, udp(1, 2)).frame()));
    assert_eq!(read(&mut consumer).len(), 1, "read space is free again");
    assert!(node.passes(Hook::Egress, &v6(POD6, NEAR6, udp(1, 2)).frame()));
}

#[test]
fn events_have_one_consumer() {
    let node = Node::new();
    let first = consumer(&node);
    match Consumer::new(&node.pins(), &node.root().events_lock()) {
        Err(EventsError::Taken { holder }) => assert_eq!(holder, std::process::id().to_string()),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("two consumers"),
    }
    drop(first);
    drop(consumer(&node));
}
