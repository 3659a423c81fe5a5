//! Packets larger than the wire carries: cut up by IP, by the card, or not at all.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use netpath_ebpf::drop_reason::DropReason::ZoneDeny;
use serde_json::json;

use crate::arena::{A, A6, Arena, Fate, Way, Who, both_hooks, kernel, private, strict};
use crate::common::node::{
    GATEWAY, GATEWAY6, INTERNET, INTERNET6, MASTER, Node, OUTSIDE_MAC, WIRE, at, conf, pod_fence,
    stay_on_this_cpu, text,
};
use crate::common::wire::{carries, marker, protocol, udp_frame};
use crate::common::{NetNs, PATIENCE, eventually};

/// Sends a frame of many segments from a packet socket, with the header that tells the kernel how to cut it
/// (`struct virtio_net_hdr`).
fn send_segments(netns: &NetNs, device: &str, frame: &[u8], v6: bool, segment: u16) -> io::Result<()> {
    const PACKET_VNET_HDR: i32 = 15;
    let (kind, transport) = if v6 { (4, 54_u16) } else { (1, 34) };
    let mut message = vec![1, kind];
    message.extend((transport + 20).to_ne_bytes());
    message.extend(segment.to_ne_bytes());
    message.extend(transport.to_ne_bytes());
    message.extend(16_u16.to_ne_bytes());
    message.extend(frame);
    netns.within(|| {
        let index = nix::net::if_::if_nametoindex(device)?;
        // SAFETY: No memory is passed.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: The kernel just gave us this descriptor.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let on = 1_i32;
        // SAFETY: `on` is an int of the length that is passed.
        let set = unsafe {
            libc::setsockopt(fd.as_raw_fd(), libc::SOL_PACKET, PACKET_VNET_HDR, (&raw const on).cast(), 4)
        };
        assert_eq!(set, 0, "PACKET_VNET_HDR: {}", io::Error::last_os_error());
        // SAFETY: All zero is a valid `sockaddr_ll`.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET).expect("small");
        address.sll_ifindex = i32::try_from(index).expect("an index");
        let length = libc::socklen_t::try_from(size_of_val(&address)).expect("small");
        // SAFETY: Message and address are readable for the lengths that are passed.
        let sent = unsafe {
            libc::sendto(
                fd.as_raw_fd(),
                message.as_ptr().cast(),
                message.len(),
                0,
                (&raw const address).cast(),
                length,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    })
}

/// A TCP segment of `payload`.
fn tcp(payload: &[u8]) -> Vec<u8> {
    let mut segment = vec![0, 1, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0];
    segment.extend(payload);
    segment
}

#[test]
fn row_23_a_packet_of_many_segments_is_judged_as_one_and_its_bytes_counted_as_on_the_wire() {
    for entry in both_hooks() {
        let arena = Arena::new(&entry);
        let far = arena.node.far_end();
        for (v6, passes) in [(false, true), (false, false), (true, true), (true, false)] {
            let mark = marker();
            let body = tcp(&mark.repeat(60_000 / mark.len()));
            let frame = match (v6, passes) {
                (false, true) => arena.v4(GATEWAY, protocol::TCP, &body),
                (false, false) => arena.v4(INTERNET, protocol::TCP, &body),
                (true, true) => arena.v6(GATEWAY6, protocol::TCP, &body),
                (true, false) => arena.v6(INTERNET6, protocol::TCP, &body),
            };
            stay_on_this_cpu();
            let before = (arena.drops(), arena.node.counters(&arena.a));
            let _ = send_segments(&arena.a.netns, "net1", &frame, v6, 1000);
            let last = marker();
            arena.a.socket().send(&arena.fence(Way::Out, &last)).expect("the fence is allowed");
            let arrived = far.until(&last).iter().any(|seen| carries(seen, &mark));
            let segments = (body.len() - 20).div_ceil(1000);
            // Each segment has headers of its own on the wire. A raw socket does not say how many segments there
            // are, so as a packet it counts once.
            let headers = if v6 { 74 } else { 54 };
            let wire = frame.len() + (segments - 1) * headers;
            let now = arena.node.counters(&arena.a);
            let fence = arena.fence(Way::Out, &last).len();
            let bytes = usize::try_from(now.tx_bytes - before.1.tx_bytes).expect("small") - fence;
            // Neighbour discovery may say a word in between.
            let expected = if passes { wire..wire + 500 } else { 0..500 };
            assert!(expected.contains(&bytes), "{entry}: IPv6 {v6}: {bytes} bytes, {expected:?}");
            assert_eq!(arrived, passes, "{entry}: IPv6 {v6}");
            let expected = if passes { Vec::new() } else { Fate::refused(ZoneDeny).grown };
            assert_eq!(arena.grown(&before.0), expected, "{entry}: IPv6 {v6}");
        }
    }
}

#[test]
fn row_23_datagrams_cut_up_by_ip_are_judged_piece_by_piece() {
    let arena = Arena::new(&strict());
    let (node, pod) = (&arena.node, &arena.a);
    // The internet on the link, so that nothing has to be asked.
    pod.netns.ip(&format!("route add {INTERNET} dev net1"));
    pod.knows(INTERNET, OUTSIDE_MAC);
    let far = node.far_end();
    let socket = pod.netns.within(|| UdpSocket::bind((A, 0))).expect("free");
    let payload = marker().repeat(1500);
    // The UDP header is in the first; 1,480 bytes fit behind the header of IP.
    let fragments = (payload.len() as u64 + 8).div_ceil(1480);
    for (destination, allowed) in [(GATEWAY, true), (INTERNET, false)] {
        let before = node.counters(pod);
        let _ = socket.send_to(&payload, (destination, 4001));
        let now = eventually(PATIENCE, "all fragments are counted", || {
            let now = node.counters(pod);
            let counted = now.tx_packets + now.tx_dropped - before.tx_packets - before.tx_dropped;
            // The kernel sends no further fragment once one was refused.
            (counted >= if allowed { fragments } else { 1 }).then_some(now)
        });
        let passed = now.tx_packets > before.tx_packets;
        assert_eq!((passed, now.tx_dropped > before.tx_dropped), (allowed, !allowed), "{destination}");
    }
    let mark = marker();
    pod.socket().send(&pod_fence(pod, A)(&mark)).expect("the fence is allowed");
    let left = far.until(&mark);
    let to_internet =
        |frame: &Vec<u8>| frame.len() >= 34 && frame[12..14] == [8, 0] && frame[30..34] == INTERNET.octets();
    assert!(!left.iter().any(to_internet));
    assert!(left.iter().any(|frame| carries(frame, &payload[..20])), "the allowed one has left");
}

#[test]
fn row_23_jumbo_frames_meet_the_same_verdict_with_xdp_and_without() {
    for xdp in ["off", "native"] {
        let node = Node::new(&json!({ "unknownSource": "drop", "xdp": xdp }));
        // XDP on a veth wants room for its peer's largest packet: 3,498 bytes without fragments, any with.
        for (netns, device) in [(&node.netns, MASTER), (&node.outside, WIRE)] {
            netns.ip(&format!("link set {device} mtu 9000"));
        }
        let mut conf = conf(&["10.12.34.200/24"], Some(&private()));
        conf["mtu"] = json!(9000);
        let pod = node.pod_with(conf);
        let (inside, far) = (pod.socket(), node.far_end());
        for (peer, passes) in [(GATEWAY, true), (INTERNET, false)] {
            let payload = |mark: &[u8]| [mark, &[0x4a; 8800]].concat();
            let mark = marker();
            let frame = udp_frame((pod.mac, OUTSIDE_MAC), A, peer, (1, 2), &payload(&mark));
            let out = crate::common::node::crosses(&inside, &far, &frame, &mark, pod_fence(&pod, A));
            assert_eq!(out, passes, "xdp {xdp}: to {peer}");
            let mark = marker();
            let frame = udp_frame((OUTSIDE_MAC, pod.mac), peer, A, (1, 2), &payload(&mark));
            let fence = |mark: &[u8]| udp_frame((OUTSIDE_MAC, pod.mac), GATEWAY, A, (9, 9), mark);
            let into = crate::common::node::crosses(&far, &inside, &frame, &mark, fence);
            assert_eq!(into, passes, "xdp {xdp}: from {peer}");
        }
        let drops = node.drops(&pod);
        assert_eq!((drops.tx_dropped[at(ZoneDeny)], drops.rx_dropped[at(ZoneDeny)]), (1, 1), "xdp {xdp}");
    }
}

/// Lets a link hand on packets of more than 64 KiB; `iproute2` of this age knows no word for IPv4's.
fn big(netns: &NetNs, device: &str) {
    const IFLA_GSO_MAX_SIZE: u16 = 41;
    const IFLA_GSO_IPV4_MAX_SIZE: u16 = 63;
    netns.within(|| {
        let index = i32::try_from(nix::net::if_::if_nametoindex(device).expect("there")).expect("small");
        let mut body = vec![0, 0, 0, 0];
        body.extend(index.to_ne_bytes());
        body.extend([0; 8]);
        for kind in [IFLA_GSO_MAX_SIZE, IFLA_GSO_IPV4_MAX_SIZE] {
            body.extend(8_u16.to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(180_000_u32.to_ne_bytes());
        }
        let mut message = u32::try_from(16 + body.len()).expect("short").to_ne_bytes().to_vec();
        message.extend(libc::RTM_NEWLINK.to_ne_bytes());
        message.extend(5_u16.to_ne_bytes());
        message.extend([1, 0, 0, 0, 0, 0, 0, 0]);
        message.extend(body);
        // SAFETY: No memory is passed.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: The kernel just gave us this descriptor.
        let mut socket = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        socket.write_all(&message).expect("sent");
        let mut answer = [0; 256];
        let length = socket.read(&mut answer).expect("answered");
        assert!(length >= 20);
        let code = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
        assert_eq!(code, 0, "{device}: {}", io::Error::from_raw_os_error(-code));
    });
}

#[test]
fn row_23_big_tcp_passes_inside_the_zone_and_not_beyond() {
    let arena = Arena::new(&strict());
    let (node, pod) = (&arena.node, &arena.a);
    for address in [IpAddr::V4(A), IpAddr::V6(A6)] {
        node.outside
            .ip(&format!("neigh replace {address} lladdr {} dev {WIRE} nud permanent", text(pod.mac)));
    }
    big(&node.netns, MASTER);
    big(&pod.netns, "net1");
    for (own, gateway) in [(IpAddr::V4(A), IpAddr::V4(GATEWAY)), (IpAddr::V6(A6), IpAddr::V6(GATEWAY6))] {
        let listener = node.outside.within(|| TcpListener::bind(SocketAddr::new(gateway, 0))).expect("free");
        let to = listener.local_addr().expect("bound");
        let tap = node.far_end();
        let before = arena.drops();
        const BYTES: usize = 64 << 20;
        let done = AtomicBool::new(false);
        let largest = thread::scope(|scope| {
            // Read while they come: the first ones of a connection are small, and the socket's memory is not endless.
            let watcher = scope.spawn(|| {
                let mut largest = 0;
                while !done.load(Ordering::Relaxed) {
                    largest =
                        largest.max(tap.receive(Duration::from_millis(20)).map_or(0, |frame| frame.len()));
                }
                largest
            });
            let receiver = scope.spawn(|| {
                let (mut stream, from) = listener.accept().expect("the pod");
                assert_eq!(from.ip(), own);
                io::copy(&mut stream, &mut io::sink()).expect("read")
            });
            let mut stream = pod.netns.within(|| TcpStream::connect(to)).expect("inside the zone");
            stream.write_all(&vec![0x42; BYTES]).expect("written");
            drop(stream);
            let received = receiver.join().expect("no panic");
            done.store(true, Ordering::Relaxed);
            assert_eq!(received, BYTES as u64);
            watcher.join().expect("no panic")
        });
        // IPv4's came later (IFLA_GSO_IPV4_MAX_SIZE: 6.3); before, its packets stay small, and pass as well.
        let big = own.is_ipv6() || kernel() >= (6, 3);
        assert!(!big || largest > 65_600, "{own}: no packet was big, the largest has {largest} bytes");
        assert_eq!(arena.grown(&before), [], "{own}: nothing of it was dropped");
    }
    // The same pod, a denied peer: not even the handshake leaves.
    pod.netns.ip(&format!("route add {INTERNET} dev net1"));
    pod.knows(INTERNET, OUTSIDE_MAC);
    let before = arena.drops();
    let to = SocketAddr::new(IpAddr::V4(INTERNET), 9);
    let patience = Duration::from_millis(50);
    pod.netns.within(|| TcpStream::connect_timeout(&to, patience)).expect_err("outside the zone");
    let grown = arena.grown(&before);
    assert!(grown.iter().all(|grown| (grown.who, grown.reason) == (Who::A, ZoneDeny.label())), "{grown:?}");
    assert!(!grown.is_empty());
}
