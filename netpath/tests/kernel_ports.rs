//! Ports in a zone as applications see them: connections, datagrams, fragments, neighbours, changes while pods run.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use common::PATIENCE;
use common::node::{GATEWAY, GATEWAY6, INTERNET, INTERNET6, MASTER, Node, Pod, WIRE, at, text};
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
