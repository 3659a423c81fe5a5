//! `onDeny: reject` as applications see it: they fail at once, and nothing reaches the wire.

mod common;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::{Duration, Instant};

use common::node::{
    GATEWAY, GATEWAY6, INTERNET, INTERNET6, MASTER, Node, OUTSIDE_MAC, Pod, WIRE, at, conf, crosses,
    kernel_release, pod_fence, stay_on_this_cpu,
};
use common::wire::{RawSocket, carries, marker, udp_frame};
use common::{PATIENCE, eventually};
use netpath::kernel::bpf::object::reject_mark;
use netpath_ebpf::abi::{REJECT_BURST, Reject};
use netpath_ebpf::drop_reason::DropReason;
use serde_json::{Value, json};

const A: Ipv4Addr = Ipv4Addr::new(10, 12, 34, 200);
const B: Ipv4Addr = Ipv4Addr::new(10, 12, 34, 201);
const B6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x34, 0, 0, 0, 0, 0, 0x201);

/// A zone that answers and does not hold the sibling.
fn rejecting() -> Value {
    json!({ "policy": "private", "deny": [B.to_string(), B6.to_string()], "onDeny": "reject" })
}

/// How the programs can be attached.
fn entries() -> Vec<Value> {
    common::enforce::ways()
}

/// A pod whose default routes lead through `net1`, and which filters strictly by them.
fn pod(node: &Node) -> Pod {
    let pod = node.pod(&["10.12.34.200/24", "fd00:34::200/64"], Some(&rejecting()));
    pod.netns.ip(&format!("route add default via {GATEWAY}"));
    pod.netns.ip(&format!("-6 route add default via {GATEWAY6}"));
    for key in ["all", "net1"] {
        pod.netns.set_sysctl(&format!("net/ipv4/conf/{key}/rp_filter"), "1");
    }
    pod
}

/// A sibling that the pod finds without asking for it.
fn sibling(node: &Node, pod: &Pod) -> Pod {
    let sibling = node.pod(
        &["10.12.34.201/24", "fd00:34::201/64"],
        Some(&json!({ "policy": "private", "ingress": "any" })),
    );
    pod.knows(B, sibling.mac);
    pod.knows(B6, sibling.mac);
    sibling
}

/// What the pod may not reach: on the wire and beside it.
const DENIED: [IpAddr; 4] = [IpAddr::V4(INTERNET), IpAddr::V6(INTERNET6), IpAddr::V4(B), IpAddr::V6(B6)];

fn rejects(node: &Node, pod: &Pod) -> Reject {
    node.maps().rejects(node.row(pod).id).expect("readable")
}

/// Frames at `witness` that were sent to one of the denied addresses before a fence of the pod's.
fn escaped(pod: &Pod, witness: &RawSocket) -> Vec<Vec<u8>> {
    stay_on_this_cpu();
    let mark = marker();
    pod.socket().send(&pod_fence(pod, A)(&mark)).expect("the fence is allowed");
    let denied = DENIED.map(|address| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    });
    let mut frames = witness.until(&mark);
    // As source or destination of IP: answers come from there, and must not be heard here either.
    frames.retain(|frame| {
        frame[6..12] == pod.mac
            && denied.iter().any(|address| carries(&frame[14..frame.len().min(54)], address))
    });
    frames
}

#[test]
fn a_connection_is_refused_at_once() {
    for entry in entries() {
        let node = Node::dual(&entry);
        let pod = pod(&node);
        let beside = sibling(&node, &pod);
        let (far, near) = (node.far_end(), beside.socket());
        let before = (node.counters(&pod), node.totals());
        for (address, done) in DENIED.into_iter().zip(1..) {
            let error = pod.netns.within(|| TcpStream::connect_timeout(&(address, 80).into(), PATIENCE));
            let error = error.expect_err("outside the zone");
            let drops = || node.netpath(&["drops"]);
            assert_eq!(
                error.kind(),
                ErrorKind::ConnectionRefused,
                "{entry}: {address}: {error}\n{}",
                drops()
            );
            // The first SYN was answered: none was sent again.
            let counted = rejects(&node, &pod);
            assert_eq!((counted.sent, counted.limited), (done, 0), "{entry}: {address}");
        }
        let denied = at(DropReason::ZoneDeny);
        assert_eq!(node.drops(&pod).tx_dropped[denied], 4, "{entry}");
        let now = node.counters(&pod);
        assert_eq!(now.tx_dropped - before.0.tx_dropped, 4, "{entry}");
        assert_eq!(now.rx_dropped, before.0.rx_dropped, "{entry}: no answer is judged");
        assert_eq!(node.drops(&beside).rx_dropped, [0; 32], "{entry}: nothing came to the sibling");
        let left = escaped(&pod, &far);
        assert!(left.is_empty(), "{entry}: on the wire: {left:02x?}");
        let mark = marker();
        let fence = udp_frame((OUTSIDE_MAC, beside.mac), GATEWAY, B, (9, 9), &mark);
        far.send(&fence).expect("sent");
        let heard = near.until(&mark);
        let heard: Vec<_> = heard.iter().filter(|frame| frame[..6] == beside.mac).collect();
        assert!(heard.is_empty(), "{entry}: at the sibling: {heard:02x?}");
    }
}

#[test]
fn answers_are_the_interfaces_and_not_the_zones_traffic() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    let pod = node.pod(&["10.12.34.200/24"], Some(&rejecting()));
    let inside = pod.socket();
    let before = (node.counters(&pod), pod.link_counters(), node.totals());
    let mark = marker();
    let _ = inside.send(&udp_frame((pod.mac, OUTSIDE_MAC), A, INTERNET, (7, 53), &mark));
    let answer = inside.receive(PATIENCE).expect("an answer");
    assert_eq!((&answer[..6], &answer[6..12]), (&pod.mac[..], &OUTSIDE_MAC[..]));
    assert_eq!((answer.len(), &answer[26..30], &answer[34..36]), (70, &INTERNET.octets()[..], &[3, 13][..]));
    let now = (node.counters(&pod), pod.link_counters(), node.totals());
    assert_eq!((now.0.rx_packets, now.0.rx_dropped), (before.0.rx_packets, before.0.rx_dropped));
    assert_eq!(now.1[0] - before.1[0], 1, "`ip -s link` in the pod has it");
    assert_eq!((now.2.host_packets, now.2.unknown_passed), (before.2.host_packets, before.2.unknown_passed));
}

#[test]
fn a_datagram_is_an_error_on_the_next_call() {
    for entry in entries() {
        let node = Node::dual(&entry);
        let pod = pod(&node);
        let _beside = sibling(&node, &pod);
        for address in DENIED {
            let socket = pod.netns.within(|| {
                let any: IpAddr = match address {
                    IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                    IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
                };
                let socket = UdpSocket::bind((any, 0))?;
                socket.connect((address, 53))?;
                socket.set_read_timeout(Some(PATIENCE))?;
                socket.send(b"question")?;
                io::Result::Ok(socket)
            });
            let error = socket.expect("the first call knows nothing").recv(&mut [0]).expect_err("denied");
            // As Linux maps the two errors.
            let expected = if address.is_ipv4() { libc::EHOSTUNREACH } else { libc::EACCES };
            assert_eq!(error.raw_os_error(), Some(expected), "{entry}: {address}: {error}");
        }
        let left = escaped(&pod, &node.far_end());
        assert!(left.is_empty(), "{entry}: on the wire: {left:02x?}");
    }
}

#[test]
fn ping_says_who_forbids_it() {
    let node = Node::dual(&json!({ "unknownSource": "drop" }));
    let pod = pod(&node);
    let _beside = sibling(&node, &pod);
    for address in DENIED {
        let words = ["netns", "exec", pod.netns.name(), "ping", "-c", "1", "-W", "10", &address.to_string()];
        let output = Command::new("ip").args(words).output().expect("ping can be run");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let expected = if address.is_ipv4() {
            "Packet filtered"
        } else {
            "Destination unreachable: Administratively prohibited"
        };
        assert!(said.contains(&format!("From {address} icmp_seq=1 {expected}")), "{address}: {said}");
        assert!(!output.status.success(), "{address}: {said}");
    }
}

#[test]
fn a_connection_that_runs_is_reset_when_the_zone_is_narrowed() {
    for (entry, server, address) in [
        (json!({ "unknownSource": "drop" }), INTERNET.into(), "10.12.34.200/24"),
        (json!({ "unknownSource": "drop", "tc": "clsact" }), IpAddr::V4(INTERNET), "10.12.34.200/24"),
        (json!({ "unknownSource": "drop" }), INTERNET6.into(), "fd00:34::200/64"),
    ] {
        let node = Node::dual(&entry);
        let wide = json!({ "policy": "private", "allow": [server.to_string()], "onDeny": "reject" });
        let pod = node.pod(&["10.12.34.200/24", "fd00:34::200/64"], Some(&wide));
        pod.netns.ip(&format!("route add default via {GATEWAY}"));
        pod.netns.ip(&format!("-6 route add default via {GATEWAY6}"));
        let listener = node.outside.within(|| TcpListener::bind((server, 80))).expect("free");
        let connected = pod.netns.within(|| TcpStream::connect_timeout(&(server, 80).into(), PATIENCE));
        let mut client = connected.expect("inside the zone");
        client.set_write_timeout(Some(PATIENCE)).expect("set");
        let (mut accepted, _) = listener.accept().expect("a connection");
        accepted.set_read_timeout(Some(Duration::from_millis(100))).expect("set");
        let far = node.far_end();
        let error = std::thread::scope(|scope| {
            // Ends when nothing comes any more.
            scope.spawn(move || while accepted.read(&mut [0; 1 << 16]).is_ok_and(|length| 0 < length) {});
            let writing = scope.spawn(move || {
                loop {
                    if let Err(error) = client.write_all(&[0x5a; 1 << 18]) {
                        return error;
                    }
                }
            });
            // The kernel hands over more than a packet on the wire could hold: it is to be segmented yet.
            let deadline = Instant::now() + PATIENCE;
            while far.receive(PATIENCE).expect("traffic flows").len() < 10_000 {
                assert!(Instant::now() < deadline, "nothing is left for the NIC to segment");
            }
            let narrow = conf(&[address], Some(&json!({ "policy": "private", "onDeny": "reject" })));
            let file = node.root.join("network.json");
            node.write(&file, &with_addresses(&narrow));
            node.netpath(&["apply", file.to_str().expect("text")]);
            writing.join().expect("the writer ends")
        });
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{entry}: {server}: {error}");
        assert!(1 <= rejects(&node, &pod).sent, "{entry}: {server}");
    }
}

/// The network of these pods with its zone changed: what is local comes from its addresses.
fn with_addresses(conf: &Value) -> Value {
    let mut conf = conf.clone();
    conf["ipam"]["addresses"] = json!([{ "address": "10.12.34.200/24" }, { "address": "fd00:34::200/64" }]);
    conf
}

#[test]
fn a_flood_is_answered_no_more_than_the_limit_says() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    let pod = node.pod(&["10.12.34.200/24"], Some(&rejecting()));
    let inside = pod.socket();
    let far = node.far_end();
    let frame = udp_frame((pod.mac, OUTSIDE_MAC), A, INTERNET, (7, 53), b"a flood");
    let started = Instant::now();
    for _ in 0..5000 {
        let _ = inside.send(&frame);
    }
    let counted = rejects(&node, &pod);
    let earned = u64::try_from(started.elapsed().as_millis()).expect("short") / 10 + 1;
    assert_eq!(counted.sent + counted.limited, 5000);
    let full = u64::try_from(REJECT_BURST).expect("positive");
    assert!(full <= counted.sent && counted.sent <= full + earned, "{counted:?}, {earned} earned meanwhile");
    // Each of them arrives, and none of the frames they are for.
    let mut answers = 0;
    eventually(PATIENCE, "every answer comes in", || {
        while let Some(frame) = inside.receive(Duration::ZERO) {
            answers += u64::from(frame.len() == 70 && frame[34..36] == [3, 13]);
        }
        (answers == counted.sent).then_some(())
    });
    assert_eq!(node.drops(&pod).tx_dropped[at(DropReason::ZoneDeny)], 5000);
    assert!(escaped(&pod, &far).is_empty());
    let pods: Value = serde_json::from_str(&node.netpath(&["pods", "-o", "json"])).expect("JSON");
    let shown = &pods["pods"][0];
    assert_eq!(
        (&shown["rejects_sent"], &shown["rejects_limited"]),
        (&json!(counted.sent), &json!(counted.limited))
    );
}

/// The mark is on the frame when the pod sends it, and off when the sibling's half of the way begins.
#[test]
fn a_mark_that_a_pod_or_the_wire_sets_opens_nothing() {
    for entry in entries() {
        let node = Node::new(&entry);
        let a = node.pod(&["10.12.34.200/24"], Some(&rejecting()));
        let b = node.pod(&["10.12.34.201/24"], Some(&json!({ "policy": "private" })));
        let (_, row) = node.maps().masters().expect("readable")[0];
        let mark = reject_mark(row.stamp);
        assert_ne!(mark, 0);
        let (from_a, from_outside, at_b) = (a.socket(), node.far_end(), b.socket());
        for mark in [mark, !mark, mark.swap_bytes(), 0, u32::MAX] {
            from_a.mark(mark);
            from_outside.mark(mark);
            // A's own zone denies B; B's denies the internet.
            let text = marker();
            let frame = udp_frame((a.mac, b.mac), A, B, (1, 2), &text);
            let fence = |mark: &[u8]| udp_frame((OUTSIDE_MAC, b.mac), GATEWAY, B, (9, 9), mark);
            stay_on_this_cpu();
            let _ = from_a.send(&frame);
            assert!(!crosses(&from_outside, &at_b, &[], &text, fence), "{entry}: a pod, {mark:#x}");
            let text = marker();
            let frame = udp_frame((OUTSIDE_MAC, b.mac), INTERNET, B, (1, 2), &text);
            assert!(!crosses(&from_outside, &at_b, &frame, &text, fence), "{entry}: the wire, {mark:#x}");
            let text = marker();
            let frame = udp_frame((a.mac, OUTSIDE_MAC), A, INTERNET, (1, 2), &text);
            let left = crosses(&from_a, &from_outside, &frame, &text, pod_fence(&a, A));
            assert!(!left, "{entry}: to the wire, {mark:#x}");
        }
        let denied = at(DropReason::ZoneDeny);
        assert_eq!(node.drops(&a).tx_dropped[denied], 10, "{entry}: each of them was judged");
        assert_eq!(node.drops(&b).rx_dropped[denied], 5, "{entry}: each of them was judged");
    }
}

/// A denied neighbour on the wire cannot be asked for, so there is no packet that could be answered: the
/// application waits for the neighbour table to give up. A sibling hears the question, as every group frame.
#[test]
fn a_denied_neighbour_on_the_wire_is_unreachable_once_nobody_answers_for_it() {
    let node = Node::dual(&json!({ "unknownSource": "drop" }));
    let (near, near6) = (Ipv4Addr::new(10, 12, 34, 13), Ipv6Addr::new(0xfd00, 0x34, 0, 0, 0, 0, 0, 0x13));
    node.outside.ip(&format!("addr add {near}/24 dev {WIRE}"));
    node.outside.ip(&format!("addr add {near6}/64 dev {WIRE} nodad"));
    let deny = [near.to_string(), near6.to_string(), B.to_string(), B6.to_string()];
    let zone = json!({ "policy": "private", "deny": deny, "onDeny": "reject" });
    let pod = node.pod(&["10.12.34.200/24", "fd00:34::200/64"], Some(&zone));
    for family in ["ipv4", "ipv6"] {
        // Once instead of three times.
        pod.netns.set_sysctl(&format!("net/{family}/neigh/net1/mcast_solicit"), "1");
    }
    let _beside = node.pod(&["10.12.34.201/24", "fd00:34::201/64"], Some(&json!({ "policy": "private" })));
    for address in [SocketAddr::from((near, 80)), SocketAddr::from((near6, 80))] {
        let before = node.drops(&pod).tx_dropped[at(DropReason::ZoneDeny)];
        let error = pod.netns.within(|| TcpStream::connect_timeout(&address, PATIENCE)).expect_err("denied");
        assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{address}: {error}");
        assert!(before < node.drops(&pod).tx_dropped[at(DropReason::ZoneDeny)], "{address}");
    }
    assert_eq!(rejects(&node, &pod), Reject::default());
    // Its answer to an ARP request is let in, and to a solicitation it is not.
    for (address, expected) in [
        (SocketAddr::from((B, 80)), ErrorKind::ConnectionRefused),
        (SocketAddr::from((B6, 80)), ErrorKind::HostUnreachable),
    ] {
        let error = pod.netns.within(|| TcpStream::connect_timeout(&address, PATIENCE)).expect_err("denied");
        assert_eq!(error.kind(), expected, "{address}: {error}");
    }
}

/// The answer comes from where the packet was sent to, so it is filtered as an answer from there would be: a pod
/// whose better route to it leads elsewhere must not filter strictly.
#[test]
fn only_a_strict_filter_with_a_better_route_elsewhere_keeps_answers_out() {
    for (filter, heard) in [("0", true), ("2", true), ("1", false)] {
        let node = Node::new(&json!({ "unknownSource": "drop" }));
        let pod = node.pod(&["10.12.34.200/24"], Some(&rejecting()));
        pod.netns.ip("link add eth0 type veth peer name other");
        pod.netns.ip("link set other up");
        pod.netns.ip("addr add 192.0.2.2/24 dev eth0");
        pod.netns.ip("link set eth0 up");
        pod.netns.ip("route add default via 192.0.2.1");
        pod.netns.ip(&format!("route add default via {GATEWAY} dev net1 metric 100"));
        pod.netns.set_sysctl("net/ipv4/conf/all/rp_filter", "0");
        pod.netns.set_sysctl("net/ipv4/conf/net1/rp_filter", filter);
        let socket = pod.netns.within(|| {
            let socket = UdpSocket::bind((A, 0))?;
            bind_to_device(&socket, "net1")?;
            socket.connect((INTERNET, 53))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.send(b"question")?;
            io::Result::Ok(socket)
        });
        let socket = socket.expect("the first call knows nothing");
        if heard {
            let error = socket.recv(&mut [0]).expect_err("denied");
            assert_eq!(error.raw_os_error(), Some(libc::EHOSTUNREACH), "rp_filter {filter}: {error}");
        }
        eventually(PATIENCE, "the answer was let in or filtered", || {
            (heard || 0 < filtered(&pod)).then_some(())
        });
        assert_eq!((filtered(&pod), rejects(&node, &pod).sent), (u64::from(!heard), 1), "rp_filter {filter}");
    }
}

fn bind_to_device(socket: &UdpSocket, device: &str) -> io::Result<()> {
    let length = libc::socklen_t::try_from(device.len()).expect("short");
    // SAFETY: `device` is readable for its length.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            device.as_ptr().cast(),
            length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Packets that the reverse path filter of a pod has dropped.
fn filtered(pod: &Pod) -> u64 {
    let text = pod.netns.exec("cat /proc/net/netstat");
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("TcpExt:")).collect();
    let at = lines[0].split(' ').position(|name| name == "IPReversePathFilter").expect("is counted");
    lines[1].split(' ').nth(at).and_then(|number| number.parse().ok()).expect("a number")
}

#[test]
fn one_word_in_a_running_network_switches_answers_on_and_off() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    let pod = node.pod(&["10.12.34.200/24"], Some(&json!({ "policy": "private" })));
    let file = node.root.join("network.json");
    let apply = |word: &str| {
        let zone = json!({ "policy": "private", "onDeny": word });
        node.write(&file, &conf(&["10.12.34.200/24"], Some(&zone)));
        node.netpath(&["apply", file.to_str().expect("text")])
    };
    let inside = pod.socket();
    let answered = || {
        let before = rejects(&node, &pod).sent;
        let _ = inside.send(&udp_frame((pod.mac, OUTSIDE_MAC), A, INTERNET, (7, 53), b"denied"));
        rejects(&node, &pod).sent - before
    };
    let shown = || -> Value {
        let zones: Value = serde_json::from_str(&node.netpath(&["zones", "-o", "json"])).expect("JSON");
        zones["zones"][0]["on_deny"].clone()
    };
    assert_eq!((answered(), shown()), (0, json!("drop")));
    let said = apply("reject");
    assert!(said.contains("generation 2 in force for 1 attachment"), "{said}");
    assert!(said.contains("+ what the pod may not send is answered"), "{said}");
    assert_eq!((answered(), shown()), (1, json!("reject")));
    let said = node.netpath(&["zones"]);
    assert!(said.contains("what the pod may not send is answered"), "{said}");
    let said = apply("drop");
    assert!(said.contains("- what the pod may not send is answered"), "{said}");
    assert_eq!((answered(), shown()), (0, json!("drop")));
}

/// A hook that is repaired alone still knows the other one's answers.
#[test]
fn answers_come_through_a_hook_that_was_attached_again() {
    for hook in ["ingress", "egress"] {
        let node = Node::new(&json!({ "unknownSource": "drop", "tc": "clsact" }));
        let pod = node.pod(&["10.12.34.200/24"], Some(&rejecting()));
        node.netns.exec(&format!("tc filter del dev {MASTER} {hook}"));
        let said = node.netpath(&["attach"]);
        assert!(said.contains(hook), "{said}");
        let inside = pod.socket();
        let _ = inside.send(&udp_frame((pod.mac, OUTSIDE_MAC), A, INTERNET, (7, 53), b"denied"));
        let answer = inside.receive(PATIENCE).expect("an answer");
        assert_eq!(answer[34..36], [3, 13], "{hook}");
    }
}

#[test]
fn nobody_on_the_wire_has_a_pod_told_that_it_was_refused() {
    for entry in entries() {
        let node = Node::dual(&entry);
        let pod = pod(&node);
        let beside = sibling(&node, &pod);
        let (far, own) = (node.far_end(), pod.socket());
        let (mark, before) = (marker(), rejects(&node, &pod));
        // As if the pod had sent it: to the sibling, which it may not reach, and to a stranger.
        for to in [beside.mac, [2, 0, 0, 0, 0, 9]] {
            far.send(&udp_frame((pod.mac, to), A, B, (9, 9), &mark)).expect("sent");
        }
        let end = marker();
        far.send(&udp_frame((OUTSIDE_MAC, pod.mac), GATEWAY, A, (9, 9), &end)).expect("sent");
        let heard = own.until(&end);
        // Who sent it older kernels cannot tell.
        let is_told = kernel_release() < (6, 2);
        assert_eq!(heard.iter().any(|frame| carries(frame, &B.octets())), is_told, "{entry}: {heard:02x?}");
        assert_eq!(rejects(&node, &pod).sent != before.sent, is_told, "{entry}");
    }
}
