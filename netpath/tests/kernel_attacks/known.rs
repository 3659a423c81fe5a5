//! A flow that passes is known, and its packets are not judged anew: what else goes by its addresses and ports is.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use aya::maps::{Array, Map, MapData};
use netpath::kernel::bpf::maps::pin_of;
use netpath_ebpf::{abi::flow_hook, drop_reason::DropReason};
use serde_json::{Value, json};

use super::arena::{A, A6, Arena, B, Fate, Grown, Way, Who, both_hooks, kernel_tells_cookies, private};
use super::common::node::{GATEWAY, INTERNET, OUTSIDE_MAC, WIRE, conf, stay_on_this_cpu, text};
use super::common::wire::{RawSocket, marker, udp_frame};

/// Ports of the flow that is known.
const PORTS: (u16, u16) = (4000, 53);

/// The zone of [`private`], and one port outside it.
fn one_port() -> Value {
    let mut zone = private();
    zone["allow"] = json!([{ "cidr": format!("{INTERNET}/32"), "ports": ["udp/53"] }]);
    zone
}

/// Rows of `flows` in the present epoch that are of an endpoint with this MAC.
fn remembered(arena: &Arena, mac: [u8; 6]) -> usize {
    rows_of(arena, mac).len()
}

/// Those of one of [`flow_hook`].
fn known(arena: &Arena, hook: u64, mac: [u8; 6]) -> usize {
    rows_of(arena, mac).iter().filter(|row| row[0] >> 54 & 7 == hook).count()
}

fn rows_of(arena: &Arena, mac: [u8; 6]) -> Vec<[u64; 8]> {
    let open = |map| MapData::from_pin(pin_of(&arena.node.root.pins(), map)).expect("pinned");
    let epoch: Array<_, u32> = Map::Array(open("epoch")).try_into().expect("one number");
    let epoch = epoch.get(&0, 0).expect("readable");
    let rows: Array<_, [u64; 8]> = Map::Array(open("flows")).try_into().expect("eight words");
    let rows = rows.iter().map(|row| row.expect("readable"));
    let is_its = |row: &[u64; 8]| row[0].to_le_bytes()[..6] == mac && row[6] >> 32 == u64::from(epoch);
    rows.filter(is_its).collect()
}

/// What `send` has held against somebody, as soon as it is counted.
fn counted(arena: &Arena, send: impl FnOnce()) -> Vec<Grown> {
    let before = arena.drops();
    send();
    let end = Instant::now() + Duration::from_secs(10);
    while arena.grown(&before).is_empty() && Instant::now() < end {
        std::thread::yield_now();
    }
    arena.grown(&before)
}

/// Sends the flow that `make` makes packets of, until it is known.
#[track_caller]
fn become_known(
    arena: &Arena,
    (from, to): (&RawSocket, &RawSocket),
    mac: [u8; 6],
    make: &dyn Fn(&[u8]) -> Vec<u8>,
) {
    stay_on_this_cpu();
    let before = remembered(arena, mac);
    for _ in 0..3 {
        let mark = marker();
        from.send(&make(&mark)).expect("it is allowed");
        // It waits for the frame with the mark.
        drop(to.until(&mark));
    }
    // What the master receives from a sibling is remembered where the kernel tells cookies.
    let source = &make(&marker())[6..12];
    let is_siblings = *source != mac && *source != OUTSIDE_MAC;
    let is_told = kernel_tells_cookies() || !is_siblings;
    assert_eq!(before < remembered(arena, mac), is_told, "whether it is known");
}

#[test]
fn row_30_a_known_flow_is_its_senders_alone() {
    for entry in both_hooks() {
        let arena = Arena::new(&entry);
        for (way, destination, mac) in [(Way::Out, GATEWAY, OUTSIDE_MAC), (Way::Sibling, A, arena.a.mac)] {
            let make = |mark: &[u8]| udp_frame((arena.b.mac, mac), B, destination, PORTS, mark);
            let (sibling, far) = (arena.b.socket(), arena.node.far_end());
            let receiver = if way == Way::Out { far } else { arena.a.socket() };
            // At TC ingress it is known for who is to have it.
            let whose = if way == Way::Out { arena.b.mac } else { arena.a.mac };
            become_known(&arena, (&sibling, &receiver), whose, &make);
        }
        let mark = marker();
        let frame = udp_frame((arena.b.mac, OUTSIDE_MAC), B, GATEWAY, PORTS, &mark);
        let expected = match kernel_tells_cookies() {
            true => Fate::refused(DropReason::SourceMac),
            // In all that can be seen it is the sibling.
            false => Fate::passed(),
        };
        assert_eq!(arena.fate(Way::Out, &frame, &mark), expected, "{entry}: another pod's flow");
        let mark = marker();
        let frame = udp_frame((arena.a.mac, OUTSIDE_MAC), B, GATEWAY, PORTS, &mark);
        let refused = Fate::refused(DropReason::SourceV4);
        assert_eq!(arena.fate(Way::Out, &frame, &mark), refused, "{entry}: by one's own MAC");
        // What a sibling sends another one.
        let third = arena.node.pod(&["10.12.34.202/24"], Some(&private()));
        let make =
            |mark: &[u8]| udp_frame((arena.b.mac, third.mac), B, Ipv4Addr::new(10, 12, 34, 202), PORTS, mark);
        let (sibling, receiver) = (arena.b.socket(), third.socket());
        become_known(&arena, (&sibling, &receiver), third.mac, &make);
        let (mark, attacker) = (marker(), arena.a.socket());
        if kernel_tells_cookies() {
            let grown = counted(&arena, || drop(attacker.send(&make(&mark))));
            assert_eq!(grown, Fate::refused(DropReason::SourceMac).grown, "{entry}: towards a sibling");
        } else {
            attacker.send(&make(&mark)).expect("it is the sibling's, in all that can be seen");
            drop(receiver.until(&mark));
        }
    }
}

#[test]
fn row_30_a_known_flow_lets_nothing_else_pass() {
    for entry in both_hooks() {
        let arena = Arena::zones(&entry, &one_port(), &private());
        let make =
            |to: Ipv4Addr, ports, mark: &[u8]| udp_frame((arena.a.mac, OUTSIDE_MAC), A, to, ports, mark);
        let ends = arena.ends(Way::Out);
        become_known(&arena, (&ends.0, &ends.1), arena.a.mac, &|mark| make(INTERNET, PORTS, mark));
        let usual = |mark: &[u8]| make(INTERNET, PORTS, mark);
        let set = |mut frame: Vec<u8>, at: usize, bytes: &[u8]| {
            frame[at..at + bytes.len()].copy_from_slice(bytes);
            frame
        };
        let tagged = |frame: Vec<u8>| [&frame[..12], &[0x81, 0, 0, 5], &frame[12..]].concat();
        let mark = marker();
        let cases: [(&str, Vec<u8>, Option<DropReason>); 9] = [
            ("itself", usual(&mark), None),
            (
                "a later fragment, whose payload says the ports",
                set(usual(&mark), 20, &[0, 4]),
                Some(DropReason::Fragment),
            ),
            ("the first of several fragments", set(usual(&mark), 20, &[0x20, 0]), None),
            ("another port", make(INTERNET, (4000, 54), &mark), Some(DropReason::ZoneDeny)),
            ("another protocol", set(usual(&mark), 23, &[6]), Some(DropReason::ZoneDeny)),
            ("another address", make(Ipv4Addr::new(8, 8, 8, 9), PORTS, &mark), Some(DropReason::ZoneDeny)),
            ("options where the ports are", set(usual(&mark), 14, &[0x46]), Some(DropReason::IpOptions)),
            (
                "a length that ends before the ports",
                set(usual(&mark), 16, &[0, 22]),
                Some(DropReason::Malformed),
            ),
            ("a tag", tagged(usual(&mark)), Some(DropReason::Vlan)),
        ];
        for (what, frame, reason) in cases {
            let expected = reason.map_or_else(Fate::passed, Fate::refused);
            assert_eq!(arena.fate(Way::Out, &frame, &mark), expected, "{entry}: {what}");
        }
    }
}

#[test]
fn row_30_a_known_flow_ends_with_its_zone() {
    for entry in both_hooks() {
        let arena = Arena::new(&entry);
        let outwards = |mark: &[u8]| udp_frame((arena.a.mac, OUTSIDE_MAC), A, GATEWAY, PORTS, mark);
        let inwards = |mark: &[u8]| udp_frame((OUTSIDE_MAC, arena.a.mac), GATEWAY, A, PORTS, mark);
        let (pod, far) = arena.ends(Way::Out);
        become_known(&arena, (&pod, &far), arena.a.mac, &outwards);
        become_known(&arena, (&far, &pod), arena.a.mac, &inwards);
        let path = arena.node.root.join("network.json");
        let zone = json!({ "policy": "private", "local": [format!("{B}/32")] });
        arena.node.write(&path, &conf(&[&format!("{A}/24"), &format!("{A6}/64")], Some(&zone)));
        arena.node.netpath(&["apply", path.to_str().expect("text")]);
        for (socket, frame, what) in [(&pod, outwards(b"out"), "tx"), (&far, inwards(b"in"), "rx")] {
            let grown = counted(&arena, || drop(socket.send(&frame)));
            let refused = Fate::dropped(Who::A, what, DropReason::ZoneDeny);
            assert_eq!(grown, refused.grown, "{entry}: {what}");
        }
    }
}

/// What a router sends on has no socket any more, as what comes by a real wire.
#[test]
fn row_30_what_comes_from_outside_ends_with_the_zone_too() {
    for entry in both_hooks() {
        let arena = Arena::new(&entry);
        stay_on_this_cpu();
        let router = &arena.node.outside;
        for (key, value) in [("forwarding", "1"), ("send_redirects", "0")] {
            for interface in ["all", WIRE] {
                router.set_sysctl(&format!("net/ipv4/conf/{interface}/{key}"), value);
            }
        }
        router.ip(&format!("neigh replace {A} lladdr {} dev {WIRE} nud permanent", text(arena.a.mac)));
        let (sibling, pod) = (arena.b.socket(), arena.a.socket());
        let send = |mark: &[u8]| {
            sibling.send(&udp_frame((arena.b.mac, OUTSIDE_MAC), B, A, PORTS, mark)).expect("it is allowed");
        };
        for _ in 0..3 {
            let mark = marker();
            send(&mark);
            drop(pod.until(&mark));
        }
        assert_eq!(known(&arena, flow_hook::OUTSIDE, arena.a.mac), 1, "{entry}: it is remembered");
        let path = arena.node.root.join("network.json");
        let zone = json!({ "policy": "private", "local": [format!("{A}/32")] });
        arena.node.write(&path, &conf(&[&format!("{A}/24"), &format!("{A6}/64")], Some(&zone)));
        arena.node.netpath(&["apply", path.to_str().expect("text")]);
        let grown = counted(&arena, || send(b"routed"));
        let refused = Fate::dropped(Who::A, "rx", DropReason::ZoneDeny);
        assert_eq!(grown, refused.grown, "{entry}: from a sibling, by the router");
    }
}
