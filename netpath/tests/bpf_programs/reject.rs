//! `onDeny: reject`: the bytes of the answers, which frames get none, and how many are given.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    thread,
    time::{Duration, Instant},
};

use netpath::kernel::bpf::{Hook, object::reject_mark, selftest::NEXT};
use netpath::kernel::netns;
use netpath_ebpf::{
    abi::{Endpoint, REJECT_BURST, REJECT_INTERVAL_NS, Reject, mode, zone_flags},
    drop_reason::DropReason,
};

use crate::{
    node::{HOST_MAC, Node, STAMP, content, slot},
    verdict::{
        frames::{
            Carried, PEER_MAC, POD_MAC, arp, between, error4, error6, icmp, icmp6, igmp, neighbour, padded,
            raw, tcp, udp, v4, v6, with,
        },
        image::{Image, Layout, ZONE},
        model::{BROADCAST4, DENIED4, DENIED6, FAR4, FAR6, NEAR4, NEAR6, POD4, POD6, Setup},
    },
};

const SHOT: i32 = 2;
const REDIRECT: i32 = 7;
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const PUSH: u8 = 8;
const ACK: u8 = 16;

/// A node whose zone answers, and a pod of this process: a test run's frame comes from a socket of it.
fn rejecting() -> (Node, Endpoint) {
    let (mut node, row) = Node::in_setup(Setup::Dual, Layout::Fit);
    let row = Endpoint { cookie: netns::cookie().expect("Linux 5.14"), ..row };
    node.set(POD_MAC, &row);
    let (_, zone) = Setup::Dual.world();
    let mut image = Image::new(&zone.expect("a zone"), Layout::Fit);
    image.slot.flags |= zone_flags::REJECT;
    node.maps.write_zone(ZONE, "lan", [8; 16], &content(&image)).expect("zone");
    (node, row)
}

/// A TCP segment: sequence and acknowledgement number, flags, options and payload.
fn segment(sequence: u32, acknowledged: u32, flags: u8, options: &[u8], payload: &[u8]) -> Carried {
    let offset = u8::try_from(5 + options.len() / 4).expect("fits") << 4;
    let bytes = [
        &[0x9c, 0x40, 0, 80][..],
        &sequence.to_be_bytes(),
        &acknowledged.to_be_bytes(),
        &[offset, flags, 0xff, 0xff, 0x12, 0x34, 0, 0],
        options,
        payload,
    ];
    raw(6, &bytes.concat())
}

/// The Internet checksum, as RFC 1071 words it.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) * 256 + u32::from(*pair.get(1).unwrap_or(&0));
        if sum > 0xffff {
            sum -= 0xffff;
        }
    }
    !u16::try_from(sum).expect("at most sixteen bits")
}

/// What comes back for `frame`: `body` of `protocol` in IP in Ethernet, its checksum at `at` filled in.
fn back(frame: &[u8], protocol: u8, ttl: u8, mut body: Vec<u8>, at: usize) -> Vec<u8> {
    let ethernet = [&frame[6..12], &frame[..6], &frame[12..14]].concat();
    let length = u16::try_from(body.len()).expect("short");
    let is_v4 = frame[12..14] == [8, 0];
    let (source, destination) =
        if is_v4 { (&frame[30..34], &frame[26..30]) } else { (&frame[38..54], &frame[22..38]) };
    let pseudo = [source, destination, &[0, protocol], &length.to_be_bytes()].concat();
    // ICMP of IPv4 alone has no pseudo header.
    let covered = if protocol == 1 { body.clone() } else { [pseudo, body.clone()].concat() };
    body[at..at + 2].copy_from_slice(&checksum(&covered).to_be_bytes());
    let header = if is_v4 {
        let total = (length + 20).to_be_bytes();
        let head = [0x45, 0, total[0], total[1], 0, 0, 0x40, 0, ttl, protocol];
        let sum = checksum(&[&head[..], source, destination].concat()).to_be_bytes();
        [&head[..], &sum, source, destination].concat()
    } else {
        let length = length.to_be_bytes();
        [&[0x60, 0, 0, 0, length[0], length[1], protocol, ttl][..], source, destination].concat()
    };
    [ethernet, header, body].concat()
}

/// The reset that shall answer `frame`.
fn reset(frame: &[u8], sequence: u32, acknowledged: u32, flags: u8) -> Vec<u8> {
    let body = [
        &[0, 80, 0x9c, 0x40][..],
        &sequence.to_be_bytes(),
        &acknowledged.to_be_bytes(),
        &[0x50, flags, 0, 0, 0, 0, 0, 0],
    ];
    back(frame, 6, 64, body.concat(), 16)
}

/// The error that shall answer `frame`.
fn prohibited(frame: &[u8]) -> Vec<u8> {
    match frame[12..14] {
        [8, 0] => back(frame, 1, 64, [&[3, 13, 0, 0, 0, 0, 0, 0][..], &frame[14..42]].concat(), 2),
        _ => back(frame, 58, 255, [&[1, 1, 0, 0, 0, 0, 0, 0][..], &frame[14..62]].concat(), 2),
    }
}

/// Where the pod's own denial is found: on its way out, and on its way to a sibling.
const WAYS: [Hook; 2] = [Hook::Egress, Hook::Ingress];

#[track_caller]
fn answered(node: &mut Node, row: &Endpoint, what: &str, frame: &[u8], expected: &[u8]) {
    for hook in WAYS {
        let before = (node.rejects(row).sent, node.drops(row.id), node.counters(row.id));
        let (verdict, bytes, mark) = node.tc_output(hook, frame, 0);
        assert_eq!(verdict, REDIRECT, "{what} at {}", hook.name());
        assert_eq!(bytes, expected, "{what} at {}", hook.name());
        assert_eq!(mark, reject_mark(STAMP), "{what} at {}", hook.name());
        let denied = slot(DropReason::ZoneDeny);
        assert_eq!(node.rejects(row).sent - before.0, 1, "{what}");
        assert_eq!(node.drops(row.id).tx_dropped[denied] - before.1.tx_dropped[denied], 1, "{what}");
        let counters = node.counters(row.id);
        assert_eq!(counters.tx_dropped - before.2.tx_dropped, 1, "{what}");

        // What is marked so comes in unread, uncounted and without its mark; with any other mark it does not.
        let before = (node.drops(row.id), node.master_counters());
        assert_eq!(node.tc_output(Hook::Ingress, &bytes, mark), (NEXT, bytes.clone(), 0), "{what}");
        let now = (node.drops(row.id), node.counters(row.id), node.master_counters());
        assert_eq!(now, (before.0, counters, before.1), "{what}");
        for other in [0, mark ^ 1, !mark, mark.swap_bytes() ^ 1] {
            let (verdict, _, left) = node.tc_output(Hook::Ingress, &bytes, other);
            assert_eq!((verdict, left), (SHOT, other), "{what}: mark {other:#x}");
        }
        // Both hooks share a bucket, and this test is about bytes.
        node.fill_bucket(row);
    }
}

#[track_caller]
fn silent(node: &mut Node, row: &Endpoint, what: &str, frame: &[u8], reason: DropReason) {
    let before = (node.rejects(row), node.drops(row.id));
    let (verdict, bytes, mark) = node.tc_output(Hook::Egress, frame, 0);
    assert_eq!((verdict, mark), (SHOT, 0), "{what}");
    assert_eq!(bytes, frame, "{what}");
    let at = slot(reason);
    assert_eq!(node.drops(row.id).tx_dropped[at] - before.1.tx_dropped[at], 1, "{what}");
    assert_eq!(node.rejects(row), before.0, "{what}: no token is spent");
}

#[test]
fn tcp_is_answered_with_a_reset_that_its_connection_accepts() {
    let (mut node, row) = rejecting();
    // Sequence, acknowledgement, flags, options, payload; then what comes back.
    let options = [2, 4, 5, 0xb4, 1, 3, 3, 7];
    for (what, sequence, acknowledged, flags, options, payload, answer) in [
        ("a SYN", 1000, 0, SYN, &options[..], &b""[..], (0, 1001, RST | ACK)),
        ("a SYN at the end of the numbers", u32::MAX, 0, SYN, &[], b"", (0, 0, RST | ACK)),
        ("a SYN with data", 1000, 0, SYN, &options, b"hello", (0, 1006, RST | ACK)),
        ("data", 5000, 77, ACK | PUSH, &[], b"odd bytes", (77, 0, RST)),
        ("a bare acknowledgement", 5000, 0xffff_0001, ACK, &[], b"", (0xffff_0001, 0, RST)),
        ("an end", 5000, 77, FIN | ACK, &[], b"", (77, 0, RST)),
        ("an end without acknowledgement", 5000, 77, FIN, &[], b"xy", (0, 5003, RST | ACK)),
        ("no flag", 5000, 77, 0, &[], b"xyz", (0, 5003, RST | ACK)),
    ] {
        let carried = segment(sequence, acknowledged, flags, options, payload);
        for (family, frame) in [
            ("IPv4", v4(POD4, FAR4, carried.clone()).frame()),
            ("IPv4, on the link", v4(POD4, DENIED4, carried.clone()).frame()),
            ("IPv6", v6(POD6, FAR6, carried.clone()).frame()),
            ("IPv6, on the link", v6(POD6, DENIED6, carried.clone()).frame()),
            // Behind the packet's own end is nothing that was sent.
            ("IPv4, padded", padded(v4(POD4, FAR4, carried.clone()).frame(), &[0xaa; 7])),
        ] {
            let expected = reset(&frame, answer.0, answer.1, answer.2);
            answered(&mut node, &row, &format!("{what}, {family}"), &frame, &expected);
        }
    }
}

#[test]
fn everything_else_is_answered_with_an_error_that_quotes_it() {
    let (mut node, row) = rejecting();
    let many = vec![0x5a; 1400];
    for (what, frame) in [
        ("UDP", v4(POD4, FAR4, udp(4000, 53)).frame()),
        ("UDP on the link", v4(POD4, DENIED4, udp(4000, 53)).frame()),
        ("a large datagram", v4(POD4, FAR4, raw(17, &many)).frame()),
        ("the first fragment", v4(POD4, FAR4, udp(4000, 53)).fragment(0x2000).frame()),
        ("an echo request", v4(POD4, FAR4, icmp(8, b"payload of a ping")).frame()),
        ("GRE", v4(POD4, FAR4, raw(47, &[0, 0, 8, 0, 0x45, 0, 0, 20])).frame()),
        ("UDP in IPv6", v6(POD6, FAR6, udp(4000, 53)).frame()),
        ("UDP in IPv6 on the link", v6(POD6, DENIED6, udp(4000, 53)).frame()),
        ("a large datagram in IPv6", v6(POD6, FAR6, raw(17, &many)).frame()),
        ("an echo request in IPv6", v6(POD6, FAR6, icmp6(128, &[0, 1, 0, 1, 9, 9])).frame()),
        ("GRE in IPv6", v6(POD6, FAR6, raw(47, &[0, 0, 8, 0, 0x45, 0, 0, 20])).frame()),
    ] {
        answered(&mut node, &row, what, &frame, &prohibited(&frame));
    }
}

#[test]
fn what_must_not_be_answered_is_dropped_as_it_is() {
    let (mut node, row) = rejecting();
    let udp4 = v4(POD4, FAR4, udp(1, 2)).frame();
    let udp6 = v6(POD6, FAR6, udp(1, 2)).frame();
    let group: [u8; 6] = [1, 0, 0x5e, 1, 1, 1];
    let far_group = Ipv4Addr::new(238, 1, 1, 1);
    let far_group6 = Ipv6Addr::new(0xff0e, 0, 0, 0, 0, 0, 0, 9);
    let inward = |source, destination| v4(source, destination, udp(1, 2)).frame();
    for (what, frame) in [
        ("a reset", v4(POD4, FAR4, segment(1, 2, RST, &[], b"")).frame()),
        ("a reset that acknowledges", v4(POD4, FAR4, segment(1, 2, RST | ACK, &[], b"")).frame()),
        ("a reset in IPv6", v6(POD6, FAR6, segment(1, 2, RST, &[], b"")).frame()),
        ("destination unreachable", v4(POD4, FAR4, error4(3, &inward(FAR4, POD4), 28)).frame()),
        ("source quench", v4(POD4, FAR4, error4(4, &inward(FAR4, POD4), 28)).frame()),
        ("redirect", v4(POD4, FAR4, error4(5, &inward(FAR4, POD4), 28)).frame()),
        ("time exceeded", v4(POD4, FAR4, error4(11, &inward(FAR4, POD4), 28)).frame()),
        ("packet too big", v6(POD6, FAR6, error6(2, &udp6, 48)).frame()),
        ("an unknown error of ICMPv6", v6(POD6, FAR6, error6(100, &udp6, 48)).frame()),
        ("a later fragment", v4(POD4, FAR4, udp(1, 2)).fragment(0x2003).frame()),
        ("the last fragment", v4(POD4, FAR4, udp(1, 2)).fragment(9).frame()),
        ("the first fragment of IPv6", v6(POD6, FAR6, udp(1, 2)).fragment(1).frame()),
        ("a later fragment of IPv6", v6(POD6, FAR6, udp(1, 2)).fragment(8).frame()),
        ("an extension header", v6(POD6, FAR6, udp(1, 2)).options(1).frame()),
        ("a broadcast frame", between(&udp4, POD_MAC, [0xff; 6])),
        ("a group frame", between(&udp4, POD_MAC, group)),
        ("a group frame with IPv6", between(&udp6, POD_MAC, [0x33, 0x33, 0, 0, 0, 1])),
        ("a group address", v4(POD4, far_group, udp(1, 2)).frame()),
        ("a group address in IPv6", v6(POD6, far_group6, udp(1, 2)).frame()),
        ("a class E address", v4(POD4, Ipv4Addr::new(250, 0, 0, 1), udp(1, 2)).frame()),
        ("this host", v4(POD4, Ipv4Addr::LOCALHOST, udp(1, 2)).frame()),
        ("this network", v4(POD4, Ipv4Addr::new(0, 1, 2, 3), udp(1, 2)).frame()),
        ("IGMP", v4(POD4, FAR4, igmp(0x16, far_group)).frame()),
        ("an ARP request", arp(1, POD_MAC, POD4, FAR4)),
        ("four bytes of GRE", v4(POD4, FAR4, raw(47, &[1, 2, 3, 4])).frame()),
        ("a TCP header that claims too little", with(v4(POD4, FAR4, tcp(1, 2)).frame(), 46, &[0x40])),
        ("a TCP header that claims too much", with(v4(POD4, FAR4, tcp(1, 2)).frame(), 46, &[0xf0])),
        ("the same in IPv6", with(v6(POD6, FAR6, tcp(1, 2)).frame(), 66, &[0xf0])),
        ("a solicitation", v6(POD6, FAR6, neighbour(135, FAR6, &[])).frame()),
        ("an advertisement", v6(POD6, FAR6, neighbour(136, POD6, &[])).frame()),
    ] {
        silent(&mut node, &row, what, &frame, DropReason::ZoneDeny);
    }
}

#[test]
fn nobody_is_told_but_the_sender_of_what_its_own_zone_denies() {
    let (mut node, row) = rejecting();
    for (what, frame, reason) in [
        ("a foreign address", v4(NEAR4, FAR4, udp(1, 2)).frame(), DropReason::SourceV4),
        ("a foreign address in IPv6", v6(NEAR6, FAR6, udp(1, 2)).frame(), DropReason::SourceV6),
        ("options", v4(POD4, FAR4, udp(1, 2)).options(&[1; 4]).frame(), DropReason::IpOptions),
        ("a DHCP server", v4(POD4, FAR4, udp(67, 68)).frame(), DropReason::DhcpServer),
        ("what is no packet", v4(POD4, FAR4, tcp(1, 2)).total(25).frame(), DropReason::Malformed),
    ] {
        silent(&mut node, &row, what, &frame, reason);
    }
    // What comes from outside the zone: whoever sent it is told nothing, at either hook.
    let inward = between(&v4(FAR4, POD4, tcp(1, 2)).frame(), PEER_MAC, POD_MAC);
    assert_eq!(node.tc_output(Hook::Ingress, &inward, 0), (SHOT, inward.clone(), 0));
    assert!(!node.passes(Hook::Xdp, &inward));
    // A zone that does not answer, one that only audits, and the host.
    let denied = v4(POD4, FAR4, udp(1, 2)).frame();
    node.set(POD_MAC, &Endpoint { mode: mode::AUDIT, ..row });
    assert_eq!(node.tc_output(Hook::Egress, &denied, 0), (NEXT, denied.clone(), 0));
    node.set(POD_MAC, &Endpoint { mode: mode::OFF, ..row });
    assert_eq!(node.tc_output(Hook::Egress, &denied, 0), (NEXT, denied.clone(), 0));
    let hosts = between(&denied, HOST_MAC, PEER_MAC);
    assert_eq!(node.tc_output(Hook::Egress, &hosts, 0), (NEXT, hosts.clone(), 0));
    node.set(POD_MAC, &row);
    let (_, zone) = Setup::Dual.world();
    let quiet = Image::new(&zone.expect("a zone"), Layout::Fit);
    node.maps.write_zone(ZONE, "lan", [9; 16], &content(&quiet)).expect("zone");
    assert_eq!(node.tc_output(Hook::Egress, &denied, 0), (SHOT, denied.clone(), 0));
    assert_eq!(node.rejects(&row), Reject::default(), "not one token was touched");
    assert_eq!(node.tc_output(Hook::Egress, &v4(POD4, BROADCAST4, udp(1, 2)).frame(), 0).0, NEXT);
}

#[test]
fn answers_are_given_from_a_bucket_that_fills_with_time() {
    let (node, row) = rejecting();
    let frame = v4(POD4, FAR4, udp(1, 2)).frame();
    let full = u64::try_from(REJECT_BURST).expect("positive");
    let started = Instant::now();
    let mut sent = 0;
    for _ in 0..1000 {
        let (verdict, bytes, _) = node.tc_output(Hook::Egress, &frame, 0);
        match verdict {
            REDIRECT => sent += 1,
            // Over the limit the frame is dropped as without an answer.
            SHOT => assert_eq!(bytes, frame),
            other => panic!("verdict {other}"),
        }
    }
    let earned = u64::try_from(started.elapsed().as_nanos()).expect("short") / REJECT_INTERVAL_NS + 1;
    let counted = node.rejects(&row);
    assert_eq!((counted.sent, counted.limited), (sent, 1000 - sent));
    assert!(full <= sent && sent <= full + earned, "{sent} sent, {earned} earned meanwhile");
    assert_eq!(node.drops(row.id).tx_dropped[slot(DropReason::ZoneDeny)], 1000, "each is a drop");

    // An empty bucket earns a token in an interval; time that lies ahead of the clock earns nothing.
    let mut bucket = node.raw::<[u64; 4]>("rejects");
    let far = u64::MAX / 2;
    bucket.set(row.id, [0, far, 0, 0], 0).expect("written");
    assert_eq!(node.tc_output(Hook::Egress, &frame, 0).0, SHOT);
    assert_eq!(node.rejects(&row).refilled_ns, far);
    bucket.set(row.id, [0, counted.refilled_ns, 0, 0], 0).expect("written");
    let deadline = Instant::now() + Duration::from_secs(10);
    while node.tc_output(Hook::Egress, &frame, 0).0 != REDIRECT {
        assert!(Instant::now() < deadline, "the bucket stays empty");
        thread::yield_now();
    }

    // Another endpoint has its own.
    let other = node.maps.rejects(row.id + 1).expect("readable");
    assert_eq!(other, Reject::default());
}

/// An id that is given away again comes with a bucket of its own.
#[test]
fn a_new_endpoint_does_not_inherit_an_empty_bucket() {
    let (mut node, row) = rejecting();
    let mut bucket = node.raw::<[u64; 4]>("rejects");
    for id in 1..=32 {
        bucket.set(id, [0, u64::MAX / 2, 7, 9], 0).expect("written");
    }
    let fresh = node.add([2, 0, 0, 0, 0, 0x55], Setup::Dual, Layout::Fit);
    assert_ne!(fresh.id, row.id);
    assert_eq!(node.rejects(&fresh), Reject::default());
}

#[test]
fn the_mark_is_never_that_of_unmarked_packets() {
    assert_eq!(reject_mark(0), 0, "a master without a number answers nothing");
    let marks: std::collections::BTreeSet<u32> = (1..1000).map(reject_mark).collect();
    assert!(!marks.contains(&0));
    assert_eq!(marks.len(), 999, "each master has its own");
}
