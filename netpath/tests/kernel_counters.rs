//! Counters of an endpoint against what the kernel counted at both ends of the wire, for single packets and
//! for megabytes of TCP, with native XDP, without, and switched meanwhile.
//!
//! `ip -s link` counts what it is handed: with offloads on that is merged packets. It is compared with
//! offloads off; with offloads on the witness is the receiver's IP layer, which knows of how many segments a
//! packet was merged, and counts what TCP sends twice as often as it is sent.

mod common;

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::node::{GATEWAY, GATEWAY6, MASTER, Node, OUTSIDE_MAC, Pod, WIRE, text};
use common::{NetNs, PATIENCE, eventually};
use netpath_ebpf::abi::Counters;
use serde_json::{Value, json};

const POD: Ipv4Addr = Ipv4Addr::new(10, 12, 34, 200);
const MEGABYTES: usize = 8 << 20;

fn entry(xdp: &str) -> Value {
    json!({ "xdp": xdp, "unknownSource": "drop" })
}

/// A pod that need not ask for its gateway, nor the gateway for it.
fn neighbours(node: &Node, addresses: &[&str]) -> Pod {
    let pod = node.pod(addresses, Some(&json!({ "policy": "private" })));
    for address in addresses {
        let address: IpAddr = address.split('/').next().expect("an address").parse().expect("an address");
        let gateway = if address.is_ipv4() { IpAddr::V4(GATEWAY) } else { IpAddr::V6(GATEWAY6) };
        pod.knows(gateway, OUTSIDE_MAC);
        node.outside
            .ip(&format!("neigh replace {address} lladdr {} dev {WIRE} nud permanent", text(pod.mac)));
    }
    pod
}

/// One packet a frame, everywhere on the way.
fn without_offloads(node: &Node, pod: &Pod) {
    for (netns, device) in [(&node.netns, MASTER), (&node.outside, WIRE), (&pod.netns, "net1")] {
        netns.exec(&format!("ethtool -K {device} tso off gso off gro off"));
        // Native XDP on a veth switches GRO on whatever was asked for; nothing fits this size.
        netns.ip(&format!("link set {device} gro_max_size 1000 gso_max_segs 1"));
    }
}

/// Sends `bytes` by TCP; both ends have closed when this returns.
fn transfer(from: &NetNs, to: &NetNs, address: IpAddr, bytes: usize) {
    let listener = to.within(|| TcpListener::bind(SocketAddr::new(address, 0))).expect("free");
    let address = listener.local_addr().expect("bound");
    let got = thread::scope(|scope| {
        let receiver = scope.spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            std::io::copy(&mut stream, &mut std::io::sink()).expect("the connection holds")
        });
        let mut stream = from.within(|| TcpStream::connect(address)).expect("connected");
        std::io::copy(&mut std::io::repeat(0x5a).take(bytes as u64), &mut stream)
            .expect("the connection holds");
        drop(stream);
        receiver.join().expect("no panic")
    });
    assert_eq!(got, bytes as u64);
}

/// Packets and bytes received and sent, as `ip -s link` of the wire's far end shows them.
fn far_counters(node: &Node) -> [u64; 4] {
    let shown: Value =
        serde_json::from_str(&node.outside.ip(&format!("-s -j link show {WIRE}"))).expect("JSON");
    let stats = &shown[0]["stats64"];
    [("tx", "packets"), ("tx", "bytes"), ("rx", "packets"), ("rx", "bytes")]
        .map(|(way, what)| stats[way][what].as_u64().expect("a number"))
}

/// Counters as the pod's link has them: packets and bytes received, packets and bytes sent.
fn as_link(counters: &Counters) -> [u64; 4] {
    [counters.rx_packets, counters.rx_bytes, counters.tx_packets, counters.tx_bytes]
}

fn minus(now: [u64; 4], before: [u64; 4]) -> [u64; 4] {
    std::array::from_fn(|i| now[i] - before[i])
}

/// A number of `/proc/net/snmp` or `/proc/net/netstat`: a line of names, a line of values.
fn statistic(netns: &NetNs, file: &str, table: &str, name: &str) -> u64 {
    let text = netns.exec(&format!("cat /proc/net/{file}"));
    let mut lines = text.lines().filter(|line| line.split(':').next() == Some(table));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let column = names.split(' ').position(|column| column == name).expect("such a number");
    values.split(' ').nth(column).expect("as many").parse().expect("a number")
}

/// IP packets that a namespace received, segments counted one by one.
fn segments(netns: &NetNs) -> u64 {
    statistic(netns, "netstat", "IpExt", "InNoECTPkts")
}

/// The same, and their bytes on the wire: those of merged packets, and a header for each segment but the first.
/// Only segments with data are merged, and all of their headers are alike.
fn segments_and_bytes(netns: &NetNs) -> [u64; 2] {
    const ETHERNET: u64 = 14;
    /// IPv4, TCP with timestamps.
    const MERGED: u64 = 20 + 32;
    let (segments, packets) = (segments(netns), statistic(netns, "snmp", "Ip", "InReceives"));
    let bytes = statistic(netns, "netstat", "IpExt", "InOctets");
    [segments, bytes + (segments - packets) * MERGED + segments * ETHERNET]
}

#[test]
fn unicast_counters_equal_those_of_the_link_and_of_the_far_end() {
    for xdp in ["off", "native"] {
        let node = Node::new(&entry(xdp));
        let pod = neighbours(&node, &["10.12.34.200/24"]);
        without_offloads(&node, &pod);
        // In front of native XDP a veth counts what it sent without the Ethernet header.
        let uncounted = if xdp == "native" { 14 } else { 0 };
        let far = || {
            let [sent, bytes, rest @ ..] = far_counters(&node);
            [sent, bytes + sent * uncounted, rest[0], rest[1]]
        };
        let read = || (as_link(&node.counters(&pod)), pod.link_counters(), far());
        // Packets from before XDP was attached were counted with it.
        let before = read();
        let equal = |what: &str| {
            let mut last = Default::default();
            let same = eventually_equal(|| {
                let now = read();
                last = (minus(now.0, before.0), minus(now.1, before.1), minus(now.2, before.2));
                last.0 == last.1 && last.1 == last.2
            });
            assert!(same, "xdp {xdp}, after {what}: ours, the link's, the far end's: {last:?}");
            last.0
        };
        // Single packets: small, full, and in three fragments.
        for size in [0, 56, 1472, 4000] {
            pod.netns.exec(&format!("ping -q -c 2 -i 0.01 -W 2 -s {size} {GATEWAY}"));
            node.outside.exec(&format!("ping -q -c 2 -i 0.01 -W 2 -s {size} {POD}"));
        }
        assert_eq!(equal("pings")[0], 3 * 4 + 3 * 4, "four of each size and three fragments");
        transfer(&pod.netns, &node.outside, GATEWAY.into(), MEGABYTES);
        let sent = equal("TCP from the pod");
        assert!(sent[3] > MEGABYTES as u64, "{sent:?}");
        transfer(&node.outside, &pod.netns, POD.into(), MEGABYTES);
        let received = equal("TCP to the pod");
        assert!(received[1] > MEGABYTES as u64, "{received:?}");
        assert_eq!((node.counters(&pod).tx_dropped, node.counters(&pod).rx_dropped), (0, 0));
        assert_eq!(node.totals().host_dropped, 0);
    }
}

/// Waits until both sides agree: the last frames of a connection are still on their way.
fn eventually_equal(mut same: impl FnMut() -> bool) -> bool {
    (0..200).any(|_| {
        thread::park_timeout(std::time::Duration::from_millis(5));
        same()
    })
}

#[test]
fn with_offloads_every_segment_and_every_header_is_counted_once() {
    for xdp in ["off", "native"] {
        let node = Node::new(&entry(xdp));
        let pod = neighbours(&node, &["10.12.34.200/24"]);
        for (way, from, to, address) in [
            ("from the pod", &pod.netns, &node.outside, GATEWAY),
            ("to the pod", &node.outside, &pod.netns, POD),
        ] {
            let before = (node.counters(&pod), segments_and_bytes(to));
            transfer(from, to, address.into(), MEGABYTES);
            let mut last = Default::default();
            let same = eventually_equal(|| {
                let counted = minus(as_link(&node.counters(&pod)), as_link(&before.0));
                let ours =
                    if way == "to the pod" { [counted[0], counted[1]] } else { [counted[2], counted[3]] };
                let now = segments_and_bytes(to);
                last = (ours, [now[0] - before.1[0], now[1] - before.1[1]]);
                last.0 == last.1
            });
            assert!(same, "xdp {xdp}, {way}: packets and bytes counted, expected: {last:?}");
            assert!(last.0[1] > MEGABYTES as u64, "xdp {xdp}, {way}: {last:?}");
        }
    }
}

#[test]
fn xdp_comes_and_goes_during_a_transfer_and_no_packet_is_counted_twice_or_never() {
    let node = Node::new(&entry("off"));
    let pod = neighbours(&node, &["10.12.34.200/24"]);
    let before = (node.counters(&pod), segments(&node.outside), segments(&pod.netns));
    let running = AtomicBool::new(true);
    let transfers = thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            let mut transfers = 0;
            while running.load(Ordering::Relaxed) || transfers == 0 {
                transfer(&node.outside, &pod.netns, POD.into(), MEGABYTES / 2);
                transfers += 1;
            }
            transfers
        });
        for xdp in ["native", "off", "native", "off", "native"] {
            node.set_master(&entry(xdp));
            let done = node.netpath(&["attach", MASTER]);
            let expected = if xdp == "off" { "xdp detached" } else { "xdp attached (native)" };
            assert!(done.contains(expected), "{done}");
        }
        running.store(false, Ordering::Relaxed);
        traffic.join().expect("every byte arrived")
    });
    let mut last = Default::default();
    let same = eventually_equal(|| {
        let now = node.counters(&pod);
        let ours = [now.tx_packets - before.0.tx_packets, now.rx_packets - before.0.rx_packets];
        last = (ours, [segments(&node.outside) - before.1, segments(&pod.netns) - before.2]);
        last.0 == last.1
    });
    assert!(same, "after {transfers} transfers: sent and received, counted and witnessed: {last:?}");
    assert_eq!(node.totals().host_dropped, 0);
}

#[test]
fn ipv6_is_counted_like_ipv4() {
    let node = Node::dual(&entry("native"));
    let pod = neighbours(&node, &["fd00:34::200/64"]);
    without_offloads(&node, &pod);
    // Group frames are copied to everybody and belong to nobody: they are taken off.
    let read = || {
        let shown: Value = serde_json::from_str(&pod.netns.ip("-s -j link show net1")).expect("JSON");
        let stats = &shown[0]["stats64"];
        let number = |way: &str, what: &str| stats[way][what].as_u64().expect("a number");
        let link = [number("rx", "packets") - number("rx", "multicast"), number("tx", "packets")];
        let ours = node.counters(&pod);
        (link, [ours.rx_packets, ours.tx_packets], ours.tx_bytes, number("tx", "bytes"))
    };
    // Nobody asked for the reports of groups that go out meanwhile; none may fall between the two readings.
    let before = eventually(PATIENCE, "two readings alike", || {
        let first = read();
        (first == read()).then_some(first)
    });
    pod.netns.exec(&format!("ping -q -c 3 -i 0.01 -W 2 {GATEWAY6}"));
    transfer(&pod.netns, &node.outside, GATEWAY6.into(), MEGABYTES / 4);
    transfer(&node.outside, &pod.netns, "fd00:34::200".parse().expect("an address"), MEGABYTES / 4);
    let mut last = Default::default();
    let same = eventually_equal(|| {
        let now = read();
        let link = [now.0[0] - before.0[0], now.0[1] - before.0[1], now.3 - before.3];
        let ours = [now.1[0] - before.1[0], now.1[1] - before.1[1], now.2 - before.2];
        last = (ours, link);
        ours == link
    });
    assert!(same, "received, sent and bytes of it, ours and the link's: {last:?}");
    assert!(last.0.iter().all(|counted| *counted > 1000), "{last:?}");
}
