//! Masters that the ordinary kernel of a development machine may lack the drivers for: VLAN interfaces, bonds, and
//! NICs that carry ipvlans. Runs in emulated machines alone, whose kernels have them all.

#[path = "common/agent.rs"]
mod agent;
#[path = "common/api.rs"]
mod api;
mod common;
#[path = "common/http.rs"]
mod http;

use std::net::Ipv4Addr;

use agent::Agent;
use common::node::{GATEWAY, INTERNET, MASTER, NODE, Node, OUTSIDE_MAC, Pod, WIRE, conf, crosses, text};
use common::wire::{BROADCAST, Mac, RawSocket, arp, ethernet, ethertype, marker, udp_frame};
use common::{NetNs, PATIENCE, eventually, veth};
use netpath_ebpf::drop_reason::DropReason;
use serde_json::{Value, json};

/// The pod on the NIC itself, or on what replaces it.
const POD: Ipv4Addr = Ipv4Addr::new(10, 12, 34, 200);
/// The VLAN interface on the NIC, and the network behind it.
const VLAN: &str = "enp0s8.100";
const VLAN_POD: Ipv4Addr = Ipv4Addr::new(10, 12, 35, 200);
const VLAN_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 12, 35, 254);
/// The other end of that VLAN.
const VLAN_WIRE: &str = "wire.100";
const BOND: &str = "bond0";
/// The switch behind a bond.
const SWITCH: &str = "sw";

fn private() -> Value {
    json!({ "policy": "private" })
}

fn strict() -> Value {
    json!({ "unknownSource": "drop" })
}

/// A pod on another master than the usual.
fn pod_on(node: &Node, master: &str, address: &str) -> Pod {
    let mut conf = conf(&[address], Some(&private()));
    conf["master"] = json!(master);
    let mut pod = node.pod_with(conf);
    let rows = node.maps().endpoints().expect("readable");
    pod.key = rows.iter().find(|(key, _)| key.mac == pod.mac).expect("the pod has a row").0;
    pod
}

/// A private zone is in force for a pod, in both directions, and every frame is counted once.
#[track_caller]
fn is_policed(node: &Node, pod: &Pod, own: Ipv4Addr, gateway: Ipv4Addr, far: &RawSocket, when: &str) {
    let (inside, before, drops) = (pod.socket(), node.counters(pod), node.drops(pod));
    let out = |to, mark: &[u8]| udp_frame((pod.mac, OUTSIDE_MAC), own, to, (1, 2), mark);
    let into = |from, mark: &[u8]| udp_frame((OUTSIDE_MAC, pod.mac), from, own, (1, 2), mark);
    for (peer, allowed) in [(gateway, true), (INTERNET, false)] {
        let mark = marker();
        let left = crosses(&inside, far, &out(peer, &mark), &mark, |mark| out(gateway, mark));
        assert_eq!(left, allowed, "{when}: to {peer}");
        let mark = marker();
        let entered = crosses(far, &inside, &into(peer, &mark), &mark, |mark| into(gateway, mark));
        assert_eq!(entered, allowed, "{when}: from {peer}");
    }
    let now = node.counters(pod);
    let counted = [
        now.tx_packets - before.tx_packets,
        now.tx_dropped - before.tx_dropped,
        now.rx_packets - before.rx_packets,
        now.rx_dropped - before.rx_dropped,
    ];
    assert_eq!(counted, [3, 1, 3, 1], "{when}: one frame and two fences each way, one drop each way");
    let length = out(gateway, &marker()).len() as u64;
    let bytes = [now.tx_bytes - before.tx_bytes, now.rx_bytes - before.rx_bytes];
    assert_eq!(bytes, [3 * length; 2], "{when}: bytes of the frames as the pod has them");
    let (zone, after) = (common::node::at(DropReason::ZoneDeny), node.drops(pod));
    let by_zone =
        [after.tx_dropped[zone] - drops.tx_dropped[zone], after.rx_dropped[zone] - drops.rx_dropped[zone]];
    assert_eq!(by_zone, [1, 1], "{when}");
}

/// VLAN 100 on both ends of the wire.
fn tagged(node: &Node) {
    node.netns.ip(&format!("link add link {MASTER} name {VLAN} type vlan id 100"));
    node.netns.ip(&format!("link set {VLAN} up"));
    node.netns.ip(&format!("addr add 10.12.35.101/24 dev {VLAN}"));
    node.outside.ip(&format!("link add link {WIRE} name {VLAN_WIRE} type vlan id 100"));
    node.outside.ip(&format!("link set {VLAN_WIRE} up"));
    node.outside.ip(&format!("addr add {VLAN_GATEWAY}/24 dev {VLAN_WIRE}"));
}

fn masters(node: &Node, entries: &Value) {
    node.write(&node.root.masters(), entries);
}

#[test]
fn a_vlan_interface_is_a_master_like_any_other() {
    let node = Node::new(&strict());
    tagged(&node);
    for tc in ["auto", "clsact"] {
        masters(&node, &json!({ VLAN: { "unknownSource": "drop", "tc": tc } }));
        let pod = pod_on(&node, VLAN, "10.12.35.200/24");
        let far = RawSocket::open(&node.outside, VLAN_WIRE);
        is_policed(&node, &pod, VLAN_POD, VLAN_GATEWAY, &far, tc);
        // The node's own traffic on the VLAN, and on the NIC below it, which nobody asked to police.
        node.netns.exec(&format!("ping -q -c 2 -i 0.01 -W 5 {VLAN_GATEWAY}"));
        node.netns.exec(&format!("ping -q -c 2 -i 0.01 -W 5 {GATEWAY}"));
        assert_eq!((node.totals().host_dropped, node.totals().unknown_dropped), (0, 0), "{tc}");
        node.delete(&pod);
        node.uninstall();
    }
}

#[test]
fn a_claim_on_a_vlan_is_none_below_it() {
    let node = Node::new(&strict());
    tagged(&node);
    masters(&node, &json!({ MASTER: strict(), VLAN: strict() }));
    // The same address on both, which two networks that do not meet may well have.
    let pods = [MASTER, VLAN].map(|master| {
        *node.args.lock().expect("ours") =
            format!("K8S_POD_NAMESPACE=web;K8S_POD_NAME={master};K8S_POD_UID={master}");
        pod_on(&node, master, "10.12.34.200/24")
    });
    let agent = Agent::start(&node);
    let rival: Mac = [2, 0x0f, 0, 0, 0, 0xaa];
    let claim = ethernet(BROADCAST, rival, ethertype::ARP, &arp(1, (rival, POD), ([0; 6], POD)));
    let count = |master: &str| {
        let name = "netpath_pod_address_conflicts_total";
        agent.value(name, &[&format!("master=\"{master}\"")]).unwrap_or(0)
    };
    let [below, above] = [WIRE, VLAN_WIRE].map(|device| RawSocket::open(&node.outside, device));
    agent.eventually("it is heard on the NIC", || {
        below.send(&claim).expect("the wire takes it");
        (0 < count(MASTER)).then_some(())
    });
    assert_eq!(count(VLAN), 0);
    for round in 1..=20 {
        above.send(&claim).expect("the wire takes it");
        agent.eventually("it is heard on the VLAN", || (round <= count(VLAN)).then_some(()));
    }
    let before = count(MASTER);
    below.send(&claim).expect("the wire takes it");
    agent.eventually("and on the NIC again", || (before < count(MASTER)).then_some(()));
    assert_eq!((count(MASTER), count(VLAN)), (before + 1, 20));
    drop(pods);
}

#[test]
fn native_xdp_on_a_vlan_interface_is_refused_with_what_to_write() {
    let node = Node::new(&strict());
    tagged(&node);
    masters(&node, &json!({ VLAN: { "xdp": "native" } }));
    let mut conf = conf(&["10.12.35.200/24"], Some(&private()));
    conf["master"] = json!(VLAN);
    let pod = NetNs::new("pod");
    let output = node.call("ADD", &pod, &conf);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!output.status.success(), "{said}");
    assert!(said.contains(VLAN) && said.contains("set `xdp` to `off`"), "{said}");
    assert!(!pod.ip("link").contains("net1"), "a refused ADD leaves nothing behind");
}

#[test]
fn a_pod_on_a_vlan_of_a_policed_master_passes_it_and_is_counted_once() {
    // Whichever is under police first, and with either way of attaching.
    for (nic_first, tc) in [(true, "auto"), (false, "auto"), (true, "clsact")] {
        let when = format!("NIC first {nic_first}, {tc}");
        let node = Node::new(&strict());
        tagged(&node);
        let entry = json!({ "unknownSource": "drop", "tc": tc });
        masters(&node, &json!({ MASTER: entry, VLAN: entry }));
        let on_nic = || pod_on(&node, MASTER, "10.12.34.200/24");
        let on_vlan = || pod_on(&node, VLAN, "10.12.35.200/24");
        let (nic, vlan) = match nic_first {
            true => {
                let nic = on_nic();
                (nic, on_vlan())
            }
            false => {
                let vlan = on_vlan();
                (on_nic(), vlan)
            }
        };
        assert_ne!(nic.key.master, vlan.key.master, "{when}");
        let before = (node.counters(&nic), node.counters(&vlan));
        let far = RawSocket::open(&node.outside, VLAN_WIRE);
        is_policed(&node, &vlan, VLAN_POD, VLAN_GATEWAY, &far, &format!("{when}, the VLAN's"));
        assert_eq!(node.counters(&nic), before.0, "{when}: nothing of it is the other pod's");
        let before = node.counters(&vlan);
        is_policed(&node, &nic, POD, GATEWAY, &node.far_end(), &format!("{when}, the NIC's"));
        assert_eq!(node.counters(&vlan), before, "{when}: nothing of it is the other pod's");
        // The node's own traffic on both.
        node.netns.exec(&format!("ping -q -c 2 -i 0.01 -W 5 {VLAN_GATEWAY}"));
        node.netns.exec(&format!("ping -q -c 2 -i 0.01 -W 5 {GATEWAY}"));
        // A tag that no VLAN interface of the NIC has, and a MAC that nobody has, do not pass for the VLAN's.
        let inside = nic.socket();
        for (what, mac, vid) in
            [("another tag", vlan.mac, 200), ("a stranger's MAC", [2, 0xba, 0xd0, 0, 0, 1], 100_u8)]
        {
            let mark = marker();
            let mut frame = udp_frame((mac, OUTSIDE_MAC), VLAN_POD, VLAN_GATEWAY, (1, 2), &mark);
            frame.splice(12..12, [0x81, 0, 0, vid]);
            let fence = |mark: &[u8]| udp_frame((nic.mac, OUTSIDE_MAC), POD, GATEWAY, (9, 9), mark);
            assert!(!crosses(&inside, &node.far_end(), &frame, &mark, fence), "{when}: {what}");
        }
    }
}

/// A bond of two cables to one switch, which is `outside`: active-backup, with the node's address.
struct Bonded {
    node: Node,
    ports: [(&'static str, &'static str, Mac); 2],
}

impl Bonded {
    fn new(fail_over_mac: &str, entry: &Value) -> Self {
        let node = Node::new(&strict());
        veth(&node.netns, "enp0s9", &node.outside, "wire2");
        let ports = [(MASTER, WIRE, [2, 0x0f, 0, 0, 0, 0x71]), ("enp0s9", "wire2", [2, 0x0f, 0, 0, 0, 0x72])];
        node.outside.ip(&format!("addr flush dev {WIRE}"));
        node.outside.ip(&format!("link set {WIRE} address 02:0f:00:00:00:f1"));
        node.outside.ip(&format!("link add {SWITCH} address {} type bridge", text(OUTSIDE_MAC)));
        node.netns.ip(&format!("addr flush dev {MASTER}"));
        node.netns.ip(&format!("link add {BOND} type bond mode active-backup fail_over_mac {fail_over_mac}"));
        for (port, wire, mac) in ports {
            node.outside.ip(&format!("link set {wire} master {SWITCH}"));
            node.netns.ip(&format!("link set {port} down address {}", text(mac)));
            node.netns.ip(&format!("link set {port} master {BOND}"));
        }
        node.outside.ip(&format!("link set {SWITCH} up"));
        node.netns.ip(&format!("link set {BOND} up"));
        for (address, netns, device) in [
            (format!("{NODE}/24"), &node.netns, BOND),
            (format!("{GATEWAY}/24"), &node.outside, SWITCH),
            (format!("{INTERNET}/32"), &node.outside, SWITCH),
        ] {
            netns.ip(&format!("addr add {address} dev {device}"));
        }
        masters(&node, &json!({ BOND: entry }));
        let bonded = Self { node, ports };
        bonded.reaches_its_gateway();
        bonded
    }

    /// The port that carries the traffic.
    fn active(&self) -> String {
        self.node.netns.exec(&format!("cat /sys/class/net/{BOND}/bonding/active_slave")).trim().to_owned()
    }

    fn mac(&self) -> String {
        self.node.netns.exec(&format!("cat /sys/class/net/{BOND}/address")).trim().to_owned()
    }

    /// Makes the other port the active one, as a lost carrier would.
    fn fail_over(&self) {
        let before = self.active();
        let (other, ..) = self.ports.iter().find(|(port, ..)| *port != before).expect("two ports");
        self.node.netns.ip(&format!("link set {BOND} type bond active_slave {other}"));
        eventually(PATIENCE, "the other port is active", || (self.active() == *other).then_some(()));
        // The switch learns where everybody is from what they send next.
        self.node.outside.ip(&format!("link set {SWITCH} type bridge fdb_flush"));
    }

    #[track_caller]
    fn reaches_its_gateway(&self) {
        self.node.netns.exec(&format!("ping -q -c 3 -i 0.01 -W 5 {GATEWAY}"));
    }
}

#[test]
fn a_bond_is_a_master_and_stays_one_when_it_fails_over() {
    for entry in [
        json!({ "unknownSource": "drop" }),
        json!({ "unknownSource": "drop", "tc": "clsact" }),
        json!({ "unknownSource": "drop", "xdp": "native" }),
    ] {
        let bonded = Bonded::new("none", &entry);
        let node = &bonded.node;
        let pod = pod_on(node, BOND, "10.12.34.200/24");
        let far = RawSocket::open(&node.outside, SWITCH);
        let mac = bonded.mac();
        for round in ["first", "other", "first again"] {
            is_policed(node, &pod, POD, GATEWAY, &far, &format!("{entry}, {round} port"));
            bonded.reaches_its_gateway();
            bonded.fail_over();
        }
        assert_eq!(bonded.mac(), mac, "all ports have the bond's MAC");
        assert_eq!((node.totals().host_dropped, node.totals().unknown_dropped), (0, 0), "{entry}");
    }
}

#[test]
fn a_bond_that_takes_its_ports_mac_does_not_cut_the_node_off_when_it_fails_over() {
    let bonded = Bonded::new("active", &strict());
    let node = &bonded.node;
    let pod = pod_on(node, BOND, "10.12.34.200/24");
    let far = RawSocket::open(&node.outside, SWITCH);
    let mac = bonded.mac();
    for round in ["first", "other", "first again"] {
        // Nobody has looked at the node since: neither an attach nor an ADD.
        bonded.reaches_its_gateway();
        is_policed(node, &pod, POD, GATEWAY, &far, &format!("{round} port"));
        assert_eq!(bonded.mac() == mac, round != "other", "{round}");
        bonded.fail_over();
    }
    assert_eq!((node.totals().host_dropped, node.totals().unknown_dropped), (0, 0));
}

#[test]
fn a_vlan_of_a_bond_is_a_master_above_a_policed_one_and_stays_it_when_the_bond_fails_over() {
    for entry in [strict(), json!({ "unknownSource": "drop", "tc": "clsact" })] {
        let bonded = Bonded::new("none", &entry);
        let node = &bonded.node;
        let (upper, far_upper) = (format!("{BOND}.100"), format!("{SWITCH}.100"));
        for (netns, lower, name, address) in [
            (&node.netns, BOND, &upper, "10.12.35.101".to_owned()),
            (&node.outside, SWITCH, &far_upper, VLAN_GATEWAY.to_string()),
        ] {
            netns.ip(&format!("link add link {lower} name {name} type vlan id 100"));
            netns.ip(&format!("link set {name} up"));
            netns.ip(&format!("addr add {address}/24 dev {name}"));
        }
        masters(node, &json!({ BOND: entry, (&upper): entry }));
        let below = pod_on(node, BOND, "10.12.34.200/24");
        let above = pod_on(node, &upper, "10.12.35.200/24");
        let (far_below, far_above) =
            (RawSocket::open(&node.outside, SWITCH), RawSocket::open(&node.outside, &far_upper));
        for round in ["first", "other", "first again"] {
            let before = node.counters(&below);
            is_policed(
                node,
                &above,
                VLAN_POD,
                VLAN_GATEWAY,
                &far_above,
                &format!("{entry}, {round} port, above"),
            );
            assert_eq!(
                node.counters(&below),
                before,
                "{entry}, {round} port: nothing of it is the other pod's"
            );
            let before = node.counters(&above);
            is_policed(node, &below, POD, GATEWAY, &far_below, &format!("{entry}, {round} port, below"));
            assert_eq!(
                node.counters(&above),
                before,
                "{entry}, {round} port: nothing of it is the other pod's"
            );
            node.netns.exec(&format!("ping -q -c 2 -i 0.01 -W 5 {VLAN_GATEWAY}"));
            bonded.reaches_its_gateway();
            bonded.fail_over();
        }
        assert_eq!((node.totals().host_dropped, node.totals().unknown_dropped), (0, 0), "{entry}");
    }
}

/// An ipvlan in a pod, as the plugin before us in the list would have made it, and the call of ours.
struct Ipvlan {
    netns: NetNs,
    conf: Value,
}

impl Ipvlan {
    fn new(node: &Node) -> Self {
        let netns = NetNs::new("pod");
        let name = netns.name();
        node.netns.ip(&format!("link add net1 link {MASTER} netns {name} type ipvlan mode l2"));
        netns.ip("link set net1 up");
        netns.ip(&format!("addr add {POD}/24 dev net1"));
        netns.ip(&format!("route add default via {GATEWAY}"));
        let sandbox = netns.path();
        let conf = json!({
            "cniVersion": "1.0.0", "name": "shared", "type": "netpath",
            "prevResult": {
                "cniVersion": "1.0.0",
                "interfaces": [{ "name": "net1", "mac": text(common::node::NODE_MAC), "sandbox": sandbox }],
                "ips": [{ "address": format!("{POD}/24"), "interface": 0 }],
            },
        });
        Self { netns, conf }
    }

    fn with_zone(&self) -> Value {
        let mut conf = self.conf.clone();
        conf["zone"] = json!({ "policy": "private", "local": ["10.12.34.0/24"] });
        conf
    }
}

#[track_caller]
fn is_refused(node: &Node, pod: &Ipvlan, conf: &Value, words: &[&str]) {
    let output = node.call("ADD", &pod.netns, conf);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!output.status.success(), "{said}");
    let error: Value = serde_json::from_str(&said).expect("an error object");
    assert_eq!(error["code"], 105, "{said}");
    for word in words {
        assert!(error["details"].as_str().expect("text").contains(word), "`{word}` is not in {said}");
    }
}

#[test]
fn an_ipvlan_on_a_policed_master_is_refused_unless_the_administrator_exempts_it() {
    let node = Node::new(&strict());
    // Under police since a pod that has gone: programs stay.
    let earlier = node.pod(&["10.12.34.201/24"], Some(&private()));
    node.delete(&earlier);
    let pod = Ipvlan::new(&node);
    is_refused(&node, &pod, &pod.conf, &["net1", MASTER, "MAC", "`\"ipvlan\": \"unpoliced\"`"]);
    is_refused(&node, &pod, &pod.with_zone(), &["net1", MASTER]);

    node.set_master(&json!({ "unknownSource": "drop", "ipvlan": "unpoliced" }));
    let output = node.call("ADD", &pod.netns, &pod.conf);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    let result: Value = serde_json::from_str(&said).expect("a result");
    assert_eq!(result["ips"], pod.conf["prevResult"]["ips"], "passed on as it came");
    // What is asked with its master's MAC is answered to whoever has the address that asked.
    let mut probed = pod.conf.clone();
    probed["acd"] = json!(true);
    let refused = node.call("ADD", &pod.netns, &probed);
    let refused: Value = serde_json::from_slice(&refused.stdout).expect("an error object");
    assert_eq!(refused["code"], 7, "{refused}");
    assert!(refused["msg"].as_str().expect("text").contains("`acd`: `net1` is an ipvlan"), "{refused}");
    // No zone holds for it, and nothing of it is dropped on any kernel.
    for address in [GATEWAY, INTERNET] {
        pod.netns.exec(&format!("ping -q -c 3 -i 0.01 -W 5 {address}"));
    }
    assert_eq!((node.totals().host_dropped, node.totals().unknown_dropped), (0, 0));
    // A network that asks for a zone does not get an interface without one, whatever the administrator says.
    is_refused(&node, &pod, &pod.with_zone(), &["net1", MASTER, "`zone`"]);
    for verb in ["CHECK", "DEL"] {
        let output = node.call(verb, &pod.netns, &pod.conf);
        assert!(output.status.success(), "{verb}: {}", String::from_utf8_lossy(&output.stdout));
    }
    pod.netns.exec(&format!("ping -q -c 1 -W 5 {GATEWAY}"));
}

#[test]
fn the_kernel_lets_no_ipvlan_onto_a_master_that_has_macvlans() {
    let node = Node::new(&strict());
    let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
    let elsewhere = NetNs::new("pod2");
    let mut ip = std::process::Command::new("ip");
    ip.args(["-n", node.netns.name(), "link", "add", "net1", "link", MASTER, "netns", elsewhere.name()]);
    let output = ip.args(["type", "ipvlan", "mode", "l2"]).output().expect("ip");
    assert!(!output.status.success(), "an ipvlan beside macvlans");
    is_policed(&node, &pod, POD, GATEWAY, &node.far_end(), "after the attempt");
}
