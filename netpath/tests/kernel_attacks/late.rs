//! What is judged is not what leaves: bytes that change between the verdict and the wire.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use netpath_ebpf::drop_reason::DropReason;

use super::arena::{A, A6, Arena, Fate, Way, both_hooks, kernel_tells_cookies};
use super::common::node::{GATEWAY, GATEWAY6, INTERNET, INTERNET6, MASTER, NODE_MAC, OUTSIDE_MAC};
use super::common::ring::Ring;
use super::common::times;
use super::common::wire::{
    RawSocket, advertisement, arp, carries, ethernet, ethertype, ipv4, ipv6, marker, protocol, udp,
    udp_frame, udp6_frame,
};

/// A frame that carries a mark.
type Make<'a> = &'a dyn Fn(&[u8]) -> Vec<u8>;

/// What the kernel is told of a frame: its ethertype, how it is to be cut, and where the checksum begins.
type Told = (u16, [u16; 3], u16);

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
            let mut rounds = 0;
            // An emulated CPU does not come far.
            while (rounds < times(3000) || arrived == 0) && Instant::now() < end {
                ring.submit(SLOTS, inside.len());
                let before = arrived;
                while let Some(frame) = far.receive(Duration::ZERO) {
                    if carries(&frame, &mark) {
                        // Of an address that is half written another one of the zone may come.
                        assert_eq!(frame[30..33], inside[30..33], "it went elsewhere than it was judged for");
                        arrived += 1;
                    }
                }
                // A drop ends the submission, and the next one begins with the same slot: where both threads share a CPU,
                // it says the same until the other one has come to write, for which to yield is not enough.
                if arrived == before {
                    #[expect(
                        clippy::disallowed_methods,
                        reason = "the CPU is given away; there is no condition"
                    )]
                    std::thread::sleep(Duration::from_micros(100));
                }
                rounds += 1;
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
    uncut(frame, [0, 0, 0], start, offset)
}

/// The same of one that is to be cut into frames: of which type (`VIRTIO_NET_HDR_GSO_*`), how long its headers are, and how
/// much each frame is to have behind them.
fn uncut(frame: &[u8], [kind, headers, each]: [u16; 3], start: u16, offset: u16) -> Vec<u8> {
    const NEEDS_CSUM: u8 = 1;
    let mut sent = vec![NEEDS_CSUM, u8::try_from(kind).expect("a type")];
    sent.extend([headers, each, start, offset].map(u16::to_ne_bytes).concat());
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

/// The node's MAC and an address that will be a sibling's when it leaves: not what it is taken for.
#[test]
fn row_29_no_checksum_is_written_over_a_borrowed_source() {
    let nobodys = Ipv4Addr::new(10, 12, 0, 0);
    for entry in both_hooks() {
        let arena = Arena::new(&entry);
        arena.node.netns.exec(&format!("ethtool -K {MASTER} tx off"));
        let (far, socket) = (arena.node.far_end(), RawSocket::open(&arena.a.netns, "net1"));
        socket.leave_checksums();
        let caught = match kernel_tells_cookies() {
            true => Fate::refused(DropReason::SourceMac),
            false => Fate::passed(),
        };
        let v4 = |mark: &[u8]| udp_frame((NODE_MAC, OUTSIDE_MAC), nobodys, GATEWAY, (9, 9), mark);
        let v6 = |mark: &[u8]| udp6_frame((NODE_MAC, OUTSIDE_MAC), INTERNET6, GATEWAY6, (9, 9), mark);
        let claim = |mark: &[u8]| {
            let packet = arp(2, (NODE_MAC, nobodys), (OUTSIDE_MAC, GATEWAY));
            [&ethernet(OUTSIDE_MAC, NODE_MAC, ethertype::ARP, &packet)[..], mark].concat()
        };
        let cases: [(&str, Make<'_>, u16, u16, &Fate); 5] = [
            // What a primary CNI moves from a pod to the NIC looks like this.
            ("IPv4: its own", &v4, 34, 6, &Fate::passed()),
            ("IPv6: its own", &v6, 54, 6, &Fate::passed()),
            ("IPv4: source", &v4, 28, 0, &caught),
            ("IPv6: source", &v6, 36, 0, &caught),
            ("ARP: sender", &claim, 30, 0, &caught),
        ];
        for (name, make, start, offset, expected) in cases {
            let mark = marker();
            let frame = unfinished(&make(&mark), start, offset);
            let fate = arena.one_fate(Way::Out, &socket, &far, &frame, &mark);
            assert_eq!(fate, *expected, "{entry}: {name}");
        }
    }
}

/// What is larger than a frame is cut behind the programs, by what the kernel was told of its headers.
#[test]
fn row_29_a_frame_is_cut_by_the_headers_that_were_judged() {
    const TCP4: [u16; 3] = [1, 54, 1000];
    const TCP6: [u16; 3] = [4, 74, 1000];
    for entry in both_hooks() {
        let arena = Arena::new(&entry);
        arena.node.netns.exec(&format!("ethtool -K {MASTER} tso off gso on tx off"));
        let (far, socket) = (arena.node.far_end(), RawSocket::open(&arena.a.netns, "net1"));
        socket.leave_checksums();
        let refused = Fate::refused(DropReason::Malformed);
        let segment = |mark: &[u8]| {
            let head = [0, 1, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0];
            [&head[..], mark, &[0; 3000]].concat()
        };
        let v4 = |mark: &[u8]| arena.v4(GATEWAY, protocol::TCP, &segment(mark));
        let v6 = |mark: &[u8]| arena.v6(GATEWAY6, protocol::TCP, &segment(mark));
        // Taken for a tagged frame it has another IPv6 header four bytes on, whose length is a part of the source.
        let shifted = |mark: &[u8]| {
            let mut frame = arena.v6(GATEWAY6, 59, &[&[0; 64][..], mark, &[0; 3000]].concat());
            frame[16..18].copy_from_slice(&[0x86, 0xdd]);
            frame[58] = protocol::TCP;
            frame[66..86].copy_from_slice(&segment(&[])[..20]);
            frame
        };
        let cases: [(&str, Make<'_>, Told, &Fate); 7] = [
            ("IPv4", &v4, (0, TCP4, 34), &Fate::passed()),
            ("IPv4, and it says so", &v4, (ethertype::IPV4, TCP4, 34), &Fate::passed()),
            ("IPv6", &v6, (0, TCP6, 54), &Fate::passed()),
            ("IPv4 that is said to be tagged", &v4, (0x8100, TCP4, 34), &refused),
            ("IPv4 that is said to be IPv6", &v4, (ethertype::IPV6, TCP4, 34), &refused),
            ("IPv6 that is said to be IPv4", &v6, (ethertype::IPV4, TCP6, 54), &refused),
            ("IPv6 with another header four bytes on", &shifted, (0x8100, [4, 86, 1300], 66), &refused),
        ];
        for (name, make, (said, cut, start), expected) in cases {
            let (mark, end, before) = (marker(), marker(), arena.drops());
            let _ = socket.send_as(said, &uncut(&make(&mark), cut, start, 16));
            arena.a.socket().send(&arena.fence(Way::Out, &end)).expect("inside the zone");
            let arrived = far.until(&end).iter().any(|frame| carries(frame, &mark));
            assert_eq!(Fate { arrived, grown: arena.grown(&before) }, *expected, "{entry}: {name}");
        }
        // A device without a header of its own has the kernel take what is sent by it for a packet from its first byte on.
        let (exec, tc) = (|line: &str| arena.a.netns.exec(line), "tc filter add dev tun0 egress");
        arena.a.netns.ip_lines(&["tuntap add tun0 mode tun".to_owned(), "link set tun0 up".to_owned()]);
        exec("tc qdisc add dev tun0 clsact");
        exec(&format!("{tc} u32 match u32 0 0 action mirred egress redirect dev net1"));
        let headless = RawSocket::open(&arena.a.netns, "tun0");
        headless.leave_checksums();
        for (name, frame, expected) in [
            (
                "in one piece",
                &(|mark: &[u8]| unfinished(&arena.udp(GATEWAY, mark), 34, 6)) as Make<'_>,
                Fate::passed(),
            ),
            ("to be cut", &|mark: &[u8]| uncut(&v4(mark), TCP4, 34, 16), refused.clone()),
        ] {
            let (mark, end, before) = (marker(), marker(), arena.drops());
            let _ = headless.send_as(ethertype::IPV4, &frame(&mark));
            arena.a.socket().send(&arena.fence(Way::Out, &end)).expect("inside the zone");
            let arrived = far.until(&end).iter().any(|frame| carries(frame, &mark));
            assert_eq!(Fate { arrived, grown: arena.grown(&before) }, expected, "{entry}: {name}");
        }
    }
}
