//! A flow that passes is known, and its packets are not judged anew: what else goes by its addresses and ports is.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use netpath_ebpf::drop_reason::DropReason;
use serde_json::{Value, json};

use super::arena::{A, A6, Arena, B, Fate, Way, Who, both_hooks, kernel_tells_cookies, private};
use super::common::node::{GATEWAY, INTERNET, OUTSIDE_MAC, conf, stay_on_this_cpu};
use super::common::wire::{RawSocket, marker, udp_frame};

/// Ports of the flow that is known.
const PORTS: (u16, u16) = (4000, 53);

/// The zone of [`private`], and one port outside it.
fn one_port() -> Value {
    let mut zone = private();
    zone["allow"] = json!([{ "cidr": format!("{INTERNET}/32"), "ports": ["udp/53"] }]);
    zone
}

/// Sends the flow that `make` makes packets of, until it is known.
#[track_caller]
fn become_known(from: &RawSocket, to: &RawSocket, make: &dyn Fn(&[u8]) -> Vec<u8>) {
    stay_on_this_cpu();
    for _ in 0..3 {
        let mark = marker();
        from.send(&make(&mark)).expect("it is allowed");
        // It waits for the frame with the mark.
        drop(to.until(&mark));
    }
}

#[test]
fn row_30_a_known_flow_is_its_senders_alone() {
    for entry in both_hooks() {
        let arena = Arena::new(&entry);
        for (way, destination, mac) in [(Way::Out, GATEWAY, OUTSIDE_MAC), (Way::Sibling, A, arena.a.mac)] {
            let make = |mark: &[u8]| udp_frame((arena.b.mac, mac), B, destination, PORTS, mark);
            let (sibling, far) = (arena.b.socket(), arena.node.far_end());
            let receiver = if way == Way::Out { far } else { arena.a.socket() };
            become_known(&sibling, &receiver, &make);
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
    }
}

#[test]
fn row_30_a_known_flow_lets_nothing_else_pass() {
    for entry in both_hooks() {
        let arena = Arena::zones(&entry, &one_port(), &private());
        let make =
            |to: Ipv4Addr, ports, mark: &[u8]| udp_frame((arena.a.mac, OUTSIDE_MAC), A, to, ports, mark);
        become_known(&arena.a.socket(), &arena.node.far_end(), &|mark| make(INTERNET, PORTS, mark));
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
        become_known(&arena.a.socket(), &arena.node.far_end(), &outwards);
        become_known(&arena.node.far_end(), &arena.a.socket(), &inwards);
        let path = arena.node.root.join("network.json");
        let zone = json!({ "policy": "private", "local": [format!("{B}/32")] });
        arena.node.write(&path, &conf(&[&format!("{A}/24"), &format!("{A6}/64")], Some(&zone)));
        arena.node.netpath(&["apply", path.to_str().expect("text")]);
        let (pod, far) = (arena.a.socket(), arena.node.far_end());
        for (socket, frame, what) in [(&pod, outwards(b"out"), "tx"), (&far, inwards(b"in"), "rx")] {
            let before = arena.drops();
            let _ = socket.send(&frame);
            let end = Instant::now() + Duration::from_secs(10);
            while arena.grown(&before).is_empty() && Instant::now() < end {
                std::thread::yield_now();
            }
            let refused = Fate::dropped(Who::A, what, DropReason::ZoneDeny);
            assert_eq!(arena.grown(&before), refused.grown, "{entry}: {what}");
        }
    }
}
