//! Ports in a zone as applications see them: connections, datagrams, fragments, neighbours, changes while pods run;
//! and what each entry of a zone counts, against what arrives.

mod common;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use common::PATIENCE;
use common::node::{
    GATEWAY, GATEWAY6, INTERNET, INTERNET6, MASTER, Node, OUTSIDE_MAC, Pod, WIRE, at, stay_on_this_cpu, text,
};
use common::wire::{carries, marker, udp_frame};
use netpath_ebpf::drop_reason::DropReason;
use serde_json::{Value, json};

const ADDRESSES: &[&str] = &["10.12.34.200/24", "fd00:34::200/64"];
const HTTPS: u16 = 443;
const OTHER: u16 = 8080;

fn entry() -> Value {
    json!({ "unknownSource": "drop" })
}

/// The gateway by its HTTPS port and nothing else.
fn by_https(on_deny: &str) -> Value {
    let only = |address: IpAddr| json!({ "cidr": address, "ports": ["tcp/443"] });
    json!({
        "policy": "private", "local": [], "allow": [only(GATEWAY.into()), only(GATEWAY6.into())], "onDeny": on_deny,
    })
}

/// Servers at the far end that say who asked.
fn listen(node: &Node, address: IpAddr, port: u16) -> TcpListener {
    node.outside.within(|| TcpListener::bind((address, port))).expect("free")
}

fn connect(pod: &Pod, address: IpAddr, port: u16, patience: Duration) -> std::io::Result<TcpStream> {
    pod.netns.within(|| TcpStream::connect_timeout(&SocketAddr::new(address, port), patience))
}

/// Whether the pod gets through to `listener`, there and back.
#[track_caller]
fn talks(pod: &Pod, listener: &TcpListener) {
    let server = listener.local_addr().expect("bound");
    let mut client = connect(pod, server.ip(), server.port(), PATIENCE).expect("an allowed port");
    client.set_read_timeout(Some(PATIENCE)).expect("set");
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut served, _) = listener.accept().expect("a connection");
            let mut question = [0; 8];
            served.read_exact(&mut question).expect("the question");
            served.write_all(&question).expect("the answer");
        });
        client.write_all(b"question").expect("sent");
        let mut answer = [0; 8];
        client.read_exact(&mut answer).expect("the answer");
        assert_eq!(&answer, b"question");
    });
}

#[test]
fn a_connection_to_the_allowed_port_works_and_to_another_it_does_not() {
    for (on_deny, xdp) in [("drop", "off"), ("reject", "off"), ("reject", "native")] {
        let node = Node::dual(&json!({ "unknownSource": "drop", "xdp": xdp }));
        let pod = node.pod(ADDRESSES, Some(&by_https(on_deny)));
        for address in [IpAddr::V4(GATEWAY), IpAddr::V6(GATEWAY6)] {
            let (https, other) = (listen(&node, address, HTTPS), listen(&node, address, OTHER));
            // The pod asks for the gateway's MAC first, and the gateway for the pod's: neither has been told.
            talks(&pod, &https);
            let before = node.drops(&pod).tx_dropped[at(DropReason::ZoneDeny)];
            let patience = if on_deny == "drop" { Duration::from_millis(200) } else { PATIENCE };
            let error = connect(&pod, address, OTHER, patience).expect_err("another port");
            let expected = if on_deny == "drop" { ErrorKind::TimedOut } else { ErrorKind::ConnectionRefused };
            assert_eq!(error.kind(), expected, "{on_deny}: {address}: {error}");
            let denied = node.drops(&pod).tx_dropped[at(DropReason::ZoneDeny)] - before;
            assert!(denied == 1 || on_deny == "drop" && denied != 0, "{on_deny}: {denied} denied");
            other.set_nonblocking(true).expect("set");
            let nobody = other.accept().expect_err("nobody got through");
            assert_eq!(nobody.kind(), ErrorKind::WouldBlock);
        }
        assert_eq!(node.drops(&pod).rx_dropped, [0; 32], "answers and neighbours are let in");
    }
}

#[test]
fn who_is_allowed_by_a_port_comes_in_from_that_port_alone() {
    let node = Node::new(&entry());
    let zone =
        json!({ "policy": "private", "local": [], "allow": [{ "cidr": GATEWAY, "ports": ["udp/53"] }] });
    let pod = node.pod(&["10.12.34.200/24"], Some(&zone));
    let own = Ipv4Addr::new(10, 12, 34, 200);
    node.outside.ip(&format!("neigh replace {own} lladdr {} dev {WIRE} nud permanent", text(pod.mac)));
    let inside = pod.netns.within(|| UdpSocket::bind((own, 7000))).expect("free");
    inside.set_read_timeout(Some(PATIENCE)).expect("set");
    let from = |port: u16| node.outside.within(|| UdpSocket::bind((GATEWAY, port))).expect("free");
    let (dns, other) = (from(53), from(5353));
    other.send_to(b"unasked", (own, 7000)).expect("sent");
    dns.send_to(b"answer", (own, 7000)).expect("sent");
    let mut buffer = [0; 64];
    let (length, sender) = inside.recv_from(&mut buffer).expect("the datagram behind the denied one");
    assert_eq!((&buffer[..length], sender.port()), (&b"answer"[..], 53));
    assert_eq!(node.drops(&pod).rx_dropped[at(DropReason::ZoneDeny)], 1);
}

#[test]
fn a_datagram_in_fragments_needs_a_prefix_without_ports() {
    let node = Node::dual(&entry());
    let zone = json!({
        "policy": "private", "local": [],
        "allow": [
            { "cidr": GATEWAY, "ports": ["udp/53"] }, INTERNET,
            { "cidr": GATEWAY6, "ports": ["udp/53"] }, INTERNET6,
        ],
    });
    let pod = node.pod(ADDRESSES, Some(&zone));
    pod.netns.ip(&format!("route add {INTERNET} dev net1"));
    pod.netns.ip(&format!("-6 route add {INTERNET6} dev net1"));
    let large = [7; 4000];
    for (by_port, whole) in
        [(IpAddr::V4(GATEWAY), IpAddr::V4(INTERNET)), (IpAddr::V6(GATEWAY6), IpAddr::V6(INTERNET6))]
    {
        let fragment = at(DropReason::Fragment);
        let before = node.drops(&pod).tx_dropped[fragment];
        let bind = |address: IpAddr| {
            let socket = node.outside.within(|| UdpSocket::bind((address, 53))).expect("free");
            socket.set_read_timeout(Some(PATIENCE)).expect("set");
            socket
        };
        let (dns, free) = (bind(by_port), bind(whole));
        let any = if by_port.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let client = pod.netns.within(|| UdpSocket::bind(any)).expect("free");
        let mut buffer = [0; 5000];
        // The drop of a later fragment is told to whoever sends.
        let _ = client.send_to(&large, (by_port, 53));
        client.send_to(b"small", (by_port, 53)).expect("sent");
        let length = dns.recv(&mut buffer).expect("what fits in one packet");
        assert_eq!(&buffer[..length], b"small", "{by_port}");
        assert_ne!(node.drops(&pod).tx_dropped[fragment], before, "{by_port}: fragments are told apart");
        let dropped = node.drops(&pod).tx_dropped[fragment];
        client.send_to(&large, (whole, 53)).expect("sent");
        assert_eq!(free.recv(&mut buffer).expect("all of it"), large.len(), "{whole}");
        assert_eq!(node.drops(&pod).tx_dropped[fragment], dropped, "{whole}");
    }
}

/// The network as a file.
fn apply(node: &Node, pod: &Pod, zone: &Value) -> String {
    let mut conf = pod.conf.clone();
    conf["zone"] = zone.clone();
    let file = node.root.join("network.json");
    node.write(&file, &conf);
    node.netpath(&["apply", &file.to_string_lossy()])
}

#[test]
fn ports_come_to_pods_that_run_are_shown_and_outlive_the_maps() {
    let node = Node::new(&entry());
    let pod = node.pod(&["10.12.34.200/24"], Some(&json!({ "policy": "private" })));
    let (https, other) = (listen(&node, GATEWAY.into(), HTTPS), listen(&node, GATEWAY.into(), OTHER));
    talks(&pod, &other);
    let zone = json!({
        "policy": "private", "local": ["10.12.34.0/24"],
        "deny": [{ "cidr": "10.12.34.0/24", "ports": ["tcp/8000-9000"] }], "onDeny": "reject",
    });
    let said = apply(&node, &pod, &zone);
    let line = "10.12.34.0/24  tcp/8000-9000 denied; else to and from";
    assert!(said.contains(&format!("+ {line}")), "{said}");
    let refused = || {
        let error = connect(&pod, GATEWAY.into(), OTHER, PATIENCE).expect_err("denied now");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
        talks(&pod, &https);
    };
    refused();
    let zones = node.netpath(&["zones"]);
    assert!(zones.contains(line), "{zones}");
    let shown: Value = serde_json::from_str(&node.netpath(&["zones", "-o", "json"])).expect("JSON");
    assert_eq!(
        shown["zones"][0]["prefixes"],
        json!([{
            "prefix": "10.12.34.0/24", "egress": true, "ingress": true,
            "ports": [{ "ports": "tcp/8000-9000", "egress": false, "ingress": false }],
        }])
    );
    // The zone is in the record: an attachment that lost its row gets it back with the ports.
    node.netpath(&["uninstall", "--yes"]);
    talks(&pod, &other);
    node.netpath(&["attach", MASTER]);
    let again: Value = serde_json::from_str(&node.netpath(&["zones", "-o", "json"])).expect("JSON");
    assert_eq!(again["zones"][0]["digest"], shown["zones"][0]["digest"]);
    refused();
}

#[test]
fn a_network_may_not_open_a_port_that_the_masters_entry_does_not() {
    let mut master = entry();
    master["zone"] = json!({
        "local": [], "allow": [{ "cidr": "10.12.34.0/24", "ports": ["tcp/443", "tcp/8000-9000"] }],
    });
    master["subnets"] = json!(["10.12.34.0/24"]);
    let node = Node::new(&master);
    let asked = |ports: &[&str]| json!({ "policy": "private", "local": [], "allow": [{ "cidr": GATEWAY, "ports": ports }] });
    let pod = node.pod(&["10.12.34.200/24"], Some(&asked(&["tcp/8080"])));
    talks(&pod, &listen(&node, GATEWAY.into(), OTHER));
    for (zone, shown) in [
        (asked(&["tcp/8080", "tcp/80"]), "10.12.34.254/32 tcp/80,tcp/8080"),
        (asked(&["udp/443"]), "10.12.34.254/32 udp/443"),
        (asked(&["tcp/7999-8000"]), "10.12.34.254/32 tcp/7999-8000"),
        (json!({ "policy": "private", "local": [], "allow": [GATEWAY] }), "10.12.34.254/32"),
    ] {
        let mut conf = common::node::conf(&["10.12.34.201/24"], Some(&zone));
        conf["name"] = json!("wider");
        let file = node.root.join("wider.json");
        node.write(&file, &conf);
        let output = node.try_netpath(&["apply", &file.to_string_lossy()]);
        let error = String::from_utf8_lossy(&output.stderr);
        let expected = format!(
            "`zone.allow` has `{shown}`, the bound `zone` allows `10.12.34.0/24 tcp/443,tcp/8000-9000`"
        );
        assert!(!output.status.success() && error.contains(&expected), "{error}");
    }
}

/// What each entry of the only zone counted: packets and bytes sent, packets and bytes received.
fn entries(node: &Node) -> BTreeMap<String, [u64; 4]> {
    let shown: Value = serde_json::from_str(&node.netpath(&["zones", "-o", "json"])).expect("JSON");
    let entries = shown["zones"][0]["entries"].as_array().expect("entries").clone();
    let count = |entry: &Value| {
        ["tx_packets", "tx_bytes", "rx_packets", "rx_bytes"].map(|key| entry[key].as_u64().expect("a number"))
    };
    let name = |entry: &Value| {
        let kind = entry["kind"].as_str().expect("text");
        format!("{kind} {}", entry["prefix"].as_str().unwrap_or("-"))
    };
    entries.iter().map(|entry| (name(entry), count(entry))).collect()
}

#[test]
fn what_an_entry_counts_is_what_arrives_or_does_not() {
    const POD: Ipv4Addr = Ipv4Addr::new(10, 12, 34, 200);
    const SHUT: Ipv4Addr = Ipv4Addr::new(10, 12, 34, 13);
    for xdp in ["off", "native"] {
        let node = Node::new(&json!({ "unknownSource": "drop", "xdp": xdp }));
        let zone = json!({
            "policy": "private", "local": ["10.12.34.0/24"], "deny": [SHUT],
            "allow": [{ "cidr": INTERNET, "ports": ["udp/53"] }],
        });
        let pod = node.pod(&["10.12.34.200/24"], Some(&zone));
        let (inside, outside) = (pod.socket(), node.far_end());
        stay_on_this_cpu();
        let before = entries(&node);
        // Entry, the other end and its port, how many packets, whether they may pass.
        let plan = [
            ("local 10.12.34.0/24", GATEWAY, 7, 3_u64, true),
            ("allow 8.8.8.8/32", INTERNET, 53, 5, true),
            ("deny 10.12.34.13/32", SHUT, 7, 4, false),
            ("none -", INTERNET, 80, 2, false),
        ];
        let mut expected = before.clone();
        let mut marks: [Vec<(Vec<u8>, &str, bool)>; 2] = [Vec::new(), Vec::new()];
        for (entry, other, port, packets, passes) in plan {
            for number in 0..packets {
                let mark = |way: usize, marks: &mut [Vec<(Vec<u8>, &'static str, bool)>; 2]| {
                    let mut mark = marker();
                    marks[way].push((mark.clone(), entry, passes));
                    // Lengths differ, so that bytes say which packets they were.
                    mark.extend(vec![0; usize::try_from(number).expect("few") * 100]);
                    mark
                };
                let out = mark(0, &mut marks);
                let frame = udp_frame((pod.mac, OUTSIDE_MAC), POD, other, (7, port), &out);
                assert_eq!(inside.send(&frame).is_ok(), passes, "{entry}");
                let inward = mark(1, &mut marks);
                let back = udp_frame((OUTSIDE_MAC, pod.mac), other, POD, (port, 7), &inward);
                outside.send(&back).expect("sent");
                if !passes {
                    let counts = expected.get_mut(entry).expect("an entry");
                    let lengths = [frame.len() as u64, back.len() as u64];
                    *counts = [counts[0] + 1, counts[1] + lengths[0], counts[2] + 1, counts[3] + lengths[1]];
                }
            }
        }
        let mut fence = |from: &common::wire::RawSocket, to: &common::wire::RawSocket, way: usize| {
            let last = marker();
            let frame = match way {
                0 => udp_frame((pod.mac, OUTSIDE_MAC), POD, GATEWAY, (7, 7), &last),
                _ => udp_frame((OUTSIDE_MAC, pod.mac), GATEWAY, POD, (7, 7), &last),
            };
            from.send(&frame).expect("the fence is allowed");
            let receiver = if way == 0 { OUTSIDE_MAC } else { pod.mac };
            let seen = to.until(&last);
            let seen: Vec<_> = seen.iter().filter(|frame| frame[..6] == receiver).collect();
            // What arrived, by the entry that let it: the fence is one of the local prefix.
            for (mark, entry, passes) in &marks[way] {
                let frames: Vec<_> = seen.iter().filter(|frame| carries(frame, mark)).collect();
                assert_eq!(frames.len(), usize::from(*passes), "xdp {xdp}: {entry}, way {way}");
                for frame in frames {
                    let counts = expected.get_mut(*entry).expect("an entry");
                    counts[2 * way] += 1;
                    counts[2 * way + 1] += frame.len() as u64;
                }
            }
            let counts = expected.get_mut("local 10.12.34.0/24").expect("an entry");
            counts[2 * way] += 1;
            counts[2 * way + 1] += frame.len() as u64;
        };
        fence(&inside, &outside, 0);
        fence(&outside, &inside, 1);
        assert_eq!(entries(&node), expected, "xdp {xdp}");
        // A zone that changes keeps what the entries that stay have counted, and shows it to people as well.
        let narrower = json!({
            "policy": "private", "local": ["10.12.34.0/24"], "deny": [SHUT, "10.12.34.14"],
        });
        apply(&node, &pod, &narrower);
        expected.remove("allow 8.8.8.8/32");
        expected.insert("deny 10.12.34.14/32".to_owned(), [0; 4]);
        assert_eq!(entries(&node), expected, "xdp {xdp}");
        let [sent, bytes, ..] = expected["deny 10.12.34.13/32"];
        let table = node.netpath(&["zones"]);
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let shown = table.lines().map(words).any(|words| {
            words.starts_with(&[
                "deny".into(),
                "10.12.34.13/32".into(),
                "denied".into(),
                sent.to_string(),
                bytes.to_string(),
            ])
        });
        assert!(shown, "{table}");
    }
}
