//! Interfaces on the master that netpath did not make go on while it comes and goes: macvlans as Multus or docker
//! make them, macvtaps as libvirt or KubeVirt do. Every numbered frame between them and a host outside arrives,
//! once and in turn, while programs are attached, replaced and removed; and `netpath pods` says who they are.

mod common;

use std::net::Ipv4Addr;

use common::enforce::{all_live, is_enforced, policed, private, status};
use common::flood::{Stranger, among_strangers};
use common::node::{INTERNET, MASTER, Node, Pod, conf, text, usual_via};
use common::wire::{Mac, RawSocket, Tap};
use common::{NetNs, times};
use netpath::kernel::bpf::attach::Via;
use netpath::state::{CachedResult, ResultCache};
use netpath_ebpf::abi::{EndpointKey, kind};
use serde_json::{Map, Value, json};

/// Where one of them is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// A namespace of its own, as a container has it.
    Container,
    /// The node's, as a virtual machine's interface is.
    Node,
}

/// Kind, mode and place of each.
const KINDS: [(&str, &str, &str, Place); 5] = [
    ("a macvlan as of Multus", "macvlan", "bridge", Place::Container),
    ("a macvlan as of docker", "macvlan", "private", Place::Container),
    ("a macvtap as of KubeVirt", "macvtap", "bridge", Place::Container),
    ("a macvtap as of libvirt", "macvtap", "vepa", Place::Node),
    ("a macvlan of the host", "macvlan", "bridge", Place::Node),
];

/// What was on the master before netpath; the namespaces go when it does.
struct Others {
    strangers: Vec<Stranger>,
    _namespaces: Vec<NetNs>,
}

impl Others {
    fn new(node: &Node) -> Self {
        let (mut strangers, mut namespaces) = (Vec::new(), Vec::new());
        for (number, (what, kind, mode, place)) in (1..).zip(KINDS) {
            let mac: Mac = [2, 0xf0, 0, 0, 0, number];
            let (name, address) = (format!("other{number}"), Ipv4Addr::new(10, 12, 34, 30 + number));
            let own = (place == Place::Container).then(|| NetNs::new("other"));
            let netns = own.as_ref().unwrap_or(&node.netns);
            netns.set_sysctl("net/ipv6/conf/default/disable_ipv6", "1");
            node.netns.ip(&format!(
                "link add {name} link {MASTER} netns {} address {} type {kind} mode {mode}",
                netns.name(),
                text(mac)
            ));
            netns.ip(&format!("link set {name} up"));
            netns.ip(&format!("addr add {address}/24 dev {name}"));
            let stranger = match kind {
                "macvtap" => {
                    // One queue: the process that reads it is the one that writes to it.
                    let tap = std::sync::Arc::new(Tap::open(netns, &name, node.root.path()));
                    Stranger { what, mac, address, out: Box::new(tap.clone()), inner: Box::new(tap) }
                }
                _ => {
                    let socket = || Box::new(RawSocket::open(netns, &name));
                    Stranger { what, mac, address, out: socket(), inner: socket() }
                }
            };
            strangers.push(stranger);
            namespaces.extend(own);
        }
        Self { strangers, _namespaces: namespaces }
    }

    /// Each is known for what it is: who lives in the node's namespace as the host, the others as foreign.
    #[track_caller]
    fn are_told_apart(&self, node: &Node) {
        let (foreign, host): (Vec<_>, Vec<_>) =
            KINDS.iter().zip(&self.strangers).partition(|((.., place), _)| *place == Place::Container);
        let rows = node.maps().endpoints().expect("readable");
        let mut found: Vec<_> =
            rows.iter().filter(|(_, row)| row.kind == kind::FOREIGN).map(|(key, _)| key.mac).collect();
        found.sort_unstable();
        assert_eq!(found, foreign.iter().map(|(_, stranger)| stranger.mac).collect::<Vec<_>>());
        let shown = node.netpath(&["pods"]);
        for (_, stranger) in &foreign {
            let line = shown.lines().find(|line| line.contains(&text(stranger.mac)));
            assert!(line.is_some_and(|line| line.starts_with("(foreign)")), "{}\n{shown}", stranger.what);
        }
        let master = node.maps().masters().expect("readable")[0].1;
        for (_, stranger) in host {
            assert!(
                master.host_macs.iter().any(|mac| mac[..6] == stranger.mac),
                "{} is the host's",
                stranger.what
            );
        }
    }
}

/// Netpath comes to the master, works, and goes, again and again, while everybody else's frames flow.
#[track_caller]
fn comes_and_goes(node: &Node, entry: &Value) {
    let others = Others::new(node);
    among_strangers(node, &others.strangers, || {
        for round in 0..times(2) {
            let pod = policed(node);
            all_live(node, entry);
            others.are_told_apart(node);
            assert!(is_enforced(node, &pod), "round {round}");
            let second = node.pod(&["10.12.34.201/24"], Some(&private()));
            let said = node.netpath(&["attach"]);
            assert!(said.contains("replaced") && !said.contains("attached"), "{said}");
            node.delete(&second);
            let (said, attention) = status(node);
            assert!(!attention, "{said}");
            node.delete(&pod);
            node.netpath(&["uninstall", "--yes"]);
            assert!(!node.root.pins().exists(), "pins are left");
        }
    });
}

#[test]
fn running_macvlans_and_macvtaps_lose_nothing_while_programs_come_and_go() {
    for entry in [json!({}), json!({ "unknownSource": "drop" })] {
        let node = Node::new(&entry);
        ready(&node, usual_via());
        comes_and_goes(&node, &entry);
    }
}

#[test]
fn running_macvlans_and_macvtaps_lose_nothing_while_filters_come_and_go() {
    let entry = json!({ "unknownSource": "drop", "tc": "clsact" });
    let node = Node::new(&entry);
    ready(&node, Via::Clsact);
    comes_and_goes(&node, &entry);
    let qdiscs = node.netns.exec(&format!("tc qdisc show dev {MASTER}"));
    assert!(qdiscs.contains("clsact"), "the administrator's qdisc stays: {qdiscs}");
}

/// The qdisc that filters need is there before the flood, as the README advises: when one is added the kernel stops
/// the device's queues for a moment and loses what it is handed meanwhile, whoever adds it.
fn ready(node: &Node, via: Via) {
    if via == Via::Clsact {
        node.netns.exec(&format!("tc qdisc add dev {MASTER} clsact"));
    }
}

#[test]
fn running_macvlans_and_macvtaps_lose_nothing_while_xdp_comes_and_goes() {
    let entry = json!({ "unknownSource": "drop", "xdp": "native" });
    let node = Node::new(&entry);
    ready(&node, usual_via());
    comes_and_goes(&node, &entry);
}

/// An interface as the standard plugin makes it for Multus, with what libcni remembers of it.
fn made_by_multus(node: &Node, number: u8, zone: Option<&Value>, cached_mac: Option<&str>) -> Pod {
    let netns = NetNs::new("multus");
    netns.set_sysctl("net/ipv6/conf/default/disable_ipv6", "1");
    let mac: Mac = [2, 0xf1, 0, 0, 0, number];
    node.netns.ip(&format!(
        "link add net1 link {MASTER} netns {} address {} type macvlan mode bridge",
        netns.name(),
        text(mac)
    ));
    netns.ip(&format!("addr add 10.12.34.{number}/24 dev net1"));
    netns.ip("link set net1 up");
    let address = format!("10.12.34.{number}/24");
    let conf = conf(&[&address], zone);
    let id = |text: &str| netpath::spec::ContainerId::parse("id", text).expect("valid");
    let cached = CachedResult {
        config: conf.to_string().into_bytes(),
        netns: netns.path().display().to_string(),
        args: [("K8S_POD_NAMESPACE", "web"), ("K8S_POD_NAME", "old-pod"), ("K8S_POD_UID", "u1")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .to_vec(),
        capabilities: Map::new(),
        result: Some(json!({
            "cniVersion": "1.0.0",
            "interfaces": [{ "name": "net1", "mac": cached_mac.unwrap_or(&text(mac)),
                "sandbox": netns.path().display().to_string() }],
            "ips": [{ "address": address, "interface": 0 }],
        })),
    };
    let name = netpath::spec::NetworkName::parse("name", "privatezone").expect("valid");
    let ifname = netpath::spec::IfName::parse("ifname", "net1").expect("valid");
    ResultCache::new(&node.root.join("var/lib/cni/multus"))
        .write(&name, &id(netns.name()), &ifname, &cached)
        .expect("written");
    Pod { netns, mac, key: EndpointKey::new(1, mac), conf }
}

#[test]
fn what_multus_has_made_is_policed_by_its_networks_zone_from_the_first_attach_on() {
    for entry in common::enforce::ways() {
        let node = Node::new(&entry);
        let pod = made_by_multus(&node, 200, Some(&private()), None);
        let open = made_by_multus(&node, 201, None, None);
        // A cache that stayed behind, of another interface; what is there now is nobody's.
        let other = made_by_multus(&node, 202, Some(&private()), Some("02:00:00:00:00:09"));
        node.netpath(&["attach", MASTER]);
        assert!(is_enforced(&node, &pod), "{entry}");
        assert!(common::enforce::leaves(&node, &open, Ipv4Addr::new(10, 12, 34, 201), INTERNET));
        assert!(common::enforce::leaves(&node, &other, Ipv4Addr::new(10, 12, 34, 202), INTERNET));
        let kinds = [&pod, &open, &other].map(|pod| node.row(pod).kind);
        assert_eq!(kinds, [kind::ENDPOINT, kind::ENDPOINT, kind::FOREIGN]);
        assert!(node.netpath(&["pods"]).contains("web/old-pod"));
        // It ends as one of ours.
        node.delete(&pod);
        assert!(!pod.netns.ip("link").contains("net1"));
        assert!(node.maps().endpoint(pod.key).expect("readable").is_none());
    }
}

#[test]
fn a_stranger_without_room_for_a_row_keeps_no_zone_from_coming_back() {
    let node = Node::new(&json!({ "unknownSource": "audit", "tc": "clsact" }));
    node.write(&node.root.settings(), &json!({ "endpoints": 1 }));
    let pod = policed(&node);
    let stranger = NetNs::new("stranger");
    node.netns.ip(&format!("link add s0 link {MASTER} netns {} type macvlan mode bridge", stranger.name()));
    stranger.ip("link set s0 up");
    node.netns.exec(&format!("tc qdisc del dev {MASTER} clsact"));
    assert!(common::enforce::leaves(&node, &pod, common::enforce::POD, INTERNET), "nothing is enforced now");
    node.netpath(&["attach", MASTER]);
    assert!(is_enforced(&node, &pod));
    assert_eq!(node.maps().fill().expect("readable").endpoints, 1);
}
