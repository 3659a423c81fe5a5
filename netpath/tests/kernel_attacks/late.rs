//! What is judged is not what leaves: bytes that change between the verdict and the wire.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use netpath_ebpf::drop_reason::DropReason;

use super::arena::{A, A6, Arena, Fate, both_hooks};
use super::common::node::{GATEWAY, GATEWAY6, INTERNET, MASTER, OUTSIDE_MAC};
use super::common::ring::Ring;
use super::common::times;
use super::common::wire::{
    RawSocket, advertisement, arp, carries, ethernet, ethertype, ipv4, ipv6, marker, protocol, udp, udp_frame,
};

/// Where checksum and addresses stand in a frame of IPv4.
const CHANGES: std::ops::Range<usize> = 24..34;

#[test]
fn row_28_what_is_written_after_the_verdict_does_not_leave() {
    const SLOTS: usize = 32;
    for entry in both_hooks() {
        let arena = Arena::new(&entry);
        let (far, mark) = (arena.node.far_end(), marker());
        let frame = |to: Ipv4Addr| udp_frame((arena.a.mac, OUTSIDE_MAC), A, to, (9, 9), &mark);
        let (inside, outside) = (frame(GATEWAY), frame(INTERNET));
        let ring = Ring::open(&arena.a.netns, "net1", SLOTS);
        (0..SLOTS).for_each(|slot| ring.write(slot, 0, &inside));
        let (done, mut arrived) = (AtomicBool::new(false), 0);
        std::thread::scope(|scope| {
            let _done = Done(&done);
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    for frame in [&outside, &inside] {
                        (0..SLOTS).for_each(|slot| ring.write(slot, CHANGES.start, &frame[CHANGES]));
                    }
                }
            });
            let end = Instant::now() + Duration::from_secs(20);
            for _ in 0..times(3000) {
                // An emulated CPU does not come far.
                if end < Instant::now() {
                    break;
                }
                ring.submit(SLOTS, inside.len());
                while let Some(frame) = far.receive(Duration::ZERO) {
                    if carries(&frame, &mark) {
                        // Of an address that is half written another one of the zone may come.
                        assert_eq!(frame[30..33], inside[30..33], "it went elsewhere than it was judged for");
                        arrived += 1;
                    }
                }
            }
        });
        assert_ne!(arrived, 0, "nothing was tried");
    }
}

/// Says so when it goes, also by a failed assertion.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A frame with a header that leaves two bytes of it to whoever sends it on: the checksum of all behind `start`, at
/// `offset` behind it (`struct virtio_net_hdr`).
fn unfinished(frame: &[u8], start: u16, offset: u16) -> Vec<u8> {
    const NEEDS_CSUM: u8 = 1;
    let mut sent = vec![NEEDS_CSUM, 0, 0, 0, 0, 0];
    sent.extend(start.to_ne_bytes());
    sent.extend(offset.to_ne_bytes());
    sent.extend(frame);
    sent
}

#[test]
fn row_29_no_checksum_is_written_over_what_was_judged() {
    for entry in both_hooks() {
        let arena = Arena::new(&entry);
        // The node fills checksums in itself, behind the programs.
        arena.node.netns.exec(&format!("ethtool -K {MASTER} tx off"));
        let (far, socket, honest) =
            (arena.node.far_end(), RawSocket::open(&arena.a.netns, "net1"), arena.a.socket());
        socket.leave_checksums();
        let body = |mark: &[u8]| udp(9, 9, &[&b"room"[..], mark].concat());
        let v4 = |mark: &[u8]| arena.frame(ethertype::IPV4, &ipv4(A, GATEWAY, protocol::UDP, &body(mark)));
        let v6 = |mark: &[u8]| arena.frame(ethertype::IPV6, &ipv6(A6, GATEWAY6, protocol::UDP, &body(mark)));
        let walked = |mark: &[u8]| {
            let options = [protocol::UDP, 0, 1, 4, 0, 0, 0, 0];
            arena.v6(GATEWAY6, 60, &[&options[..], &body(mark)].concat())
        };
        let claim = |mark: &[u8]| {
            let packet = arp(2, (arena.a.mac, A), (OUTSIDE_MAC, GATEWAY));
            [&ethernet(OUTSIDE_MAC, arena.a.mac, ethertype::ARP, &packet)[..], mark].concat()
        };
        let neighbour = |mark: &[u8]| {
            let frame = arena.v6(GATEWAY6, 58, &advertisement(A6, arena.a.mac));
            [&frame[..], mark].concat()
        };
        type Make<'a> = &'a dyn Fn(&[u8]) -> Vec<u8>;
        let (passes, refused) = (Fate::passed(), Fate::refused(DropReason::Malformed));
        let cases: [(&str, Make<'_>, u16, u16, &Fate); 15] = [
            ("IPv4: its own", &v4, 34, 6, &passes),
            ("IPv4: in the payload", &v4, 34, 8, &passes),
            ("IPv4: source", &v4, 26, 0, &refused),
            ("IPv4: destination", &v4, 30, 0, &refused),
            ("IPv4: source port", &v4, 34, 0, &refused),
            ("IPv4: destination port", &v4, 34, 2, &refused),
            ("IPv4: half of the destination port", &v4, 34, 3, &refused),
            ("IPv6: its own", &v6, 54, 6, &passes),
            ("IPv6: destination", &v6, 38, 0, &refused),
            ("IPv6: destination port", &v6, 54, 2, &refused),
            ("behind options: its own", &walked, 62, 6, &passes),
            ("behind options: destination port", &walked, 62, 2, &refused),
            ("behind options: the options", &walked, 54, 6, &refused),
            ("ARP: sender", &claim, 28, 0, &refused),
            ("neighbour advertisement: target", &neighbour, 54, 10, &refused),
        ];
        for (name, make, start, offset, expected) in cases {
            let (mark, end, before) = (marker(), marker(), arena.drops());
            // A drop says ENOBUFS here.
            let _ = socket.send(&unfinished(&make(&mark), start, offset));
            honest
                .send(&udp_frame((arena.a.mac, OUTSIDE_MAC), A, GATEWAY, (9, 9), &end))
                .expect("inside the zone");
            let arrived = far.until(&end).iter().any(|frame| carries(frame, &mark));
            assert_eq!(Fate { arrived, grown: arena.grown(&before) }, *expected, "{name}");
        }
    }
}
