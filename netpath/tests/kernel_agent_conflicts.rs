//! Addresses of pods that others have as well: heard on the wire by the agent, or seen in the rows of its node.

#[path = "common/agent.rs"]
mod agent;
#[path = "common/api.rs"]
mod api;
mod common;
#[path = "common/http.rs"]
mod http;

use std::net::{Ipv4Addr, Ipv6Addr};

use agent::Agent;
use api::FakeApi;
use common::enforce::{POD, is_enforced, policed, private};
use common::node::{GATEWAY, MASTER, NODE, NODE_MAC, Node, Pod, WIRE};
use common::wire::{BROADCAST, Mac, advertisement, arp, ethernet, ethertype, ipv6, protocol};
use common::{pace, times};
use serde_json::{Value, json};

/// `CAP_NET_RAW`
const NET_RAW: libc::c_ulong = 13;
const PODS: [&str; 2] = ["10.12.34.200/24", "10.12.34.201/24"];
/// The second pod.
const FENCE: Ipv4Addr = Ipv4Addr::new(10, 12, 34, 201);
/// MAC of a host that has an address of a pod.
const RIVAL: Mac = [2, 0x0f, 0, 0, 0, 0xaa];
const POD6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x34, 0, 0, 0, 0, 0, 0x200);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Where frames to [`ALL_NODES`] go.
const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];

fn drop_unknown() -> Value {
    json!({ "unknownSource": "drop" })
}

/// Has the pods that are added from now on be of this name.
fn name(node: &Node, pod: &str) {
    *node.args.lock().expect("ours") =
        format!("K8S_POD_NAMESPACE=web;K8S_POD_NAME={pod};K8S_POD_UID={pod}-uid");
}

/// Two pods: the one that it is about, and one whose address is claimed only to show that all before it has been read.
fn pods(node: &Node, addresses: [&str; 2]) -> [Pod; 2] {
    [("net-pod", addresses[0]), ("fence", addresses[1])].map(|(pod, address)| {
        name(node, pod);
        node.pod(&[address], Some(&private()))
    })
}

/// What was counted of a pod.
fn count_of(agent: &Agent<'_>, pod: &str) -> u64 {
    let labels = ["namespace=\"web\"", "interface=\"net1\"", &format!("pod=\"{pod}\"")];
    agent.value("netpath_pod_address_conflicts_total", &labels).unwrap_or(0)
}

fn count(agent: &Agent<'_>) -> u64 {
    count_of(agent, "net-pod")
}

/// Packets that were looked at, and those that found no room.
fn heard(agent: &Agent<'_>) -> [u64; 2] {
    ["fate=\"read\"", "fate=\"lost\""]
        .map(|fate| agent.value("netpath_neighbour_packets_total", &[fate]).expect("always served"))
}

/// Kinds of what the node's packet sockets hear on the master: an ethertype each, as /proc/net/packet has it.
fn kinds(node: &Node) -> Vec<String> {
    let index = common::enforce::ifindex(node).to_string();
    let table =
        node.netns.within(|| std::fs::read_to_string("/proc/thread-self/net/packet")).expect("procfs");
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut kinds: Vec<_> = rows.filter(|row| row[4] == index).map(|row| row[3].to_owned()).collect();
    kinds.sort_unstable();
    kinds
}

/// Waits until this is heard, which is when the agent knows the pods' addresses.
#[track_caller]
fn listens(agent: &Agent<'_>, expected: &[&str]) {
    agent.eventually(&format!("it hears {expected:?}"), || (kinds(agent.node) == expected).then_some(()));
}

/// A gratuitous ARP: `mac` tells everybody that `address` is its own.
fn announcement(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    ethernet(BROADCAST, mac, ethertype::ARP, &arp(1, (mac, address), ([0; 6], address)))
}

/// An unsolicited neighbour advertisement for everybody.
fn advertised(mac: Mac, address: Ipv6Addr) -> Vec<u8> {
    let packet = ipv6(address, ALL_NODES, protocol::ICMPV6, &advertisement(address, mac));
    ethernet(ALL_NODES_MAC, mac, ethertype::IPV6, &packet)
}

/// A neighbour solicitation for `target`, from `sender`.
fn solicitation(mac: Mac, sender: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let body = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target.octets()].concat();
    ethernet(ALL_NODES_MAC, mac, ethertype::IPV6, &ipv6(sender, ALL_NODES, protocol::ICMPV6, &body))
}

/// How much of these frames from the wire is counted as claims of the first pod's address.
///
/// The fence shows that what was not counted is no matter of time: what came before it has been read.
#[track_caller]
fn counted(agent: &Agent<'_>, frames: &[Vec<u8>], fence: &[u8]) -> u64 {
    common::node::stay_on_this_cpu();
    let (wire, before, fences) = (agent.node.far_end(), count(agent), count_of(agent, "fence"));
    for frame in frames {
        wire.send(frame).expect("the wire takes it");
    }
    wire.send(fence).expect("the wire takes it");
    agent.eventually("the fence is counted", || (fences < count_of(agent, "fence")).then_some(()));
    assert_eq!(count_of(agent, "fence"), fences + 1);
    count(agent) - before
}

#[test]
fn an_address_that_a_host_takes_is_counted_logged_and_told() {
    let node = Node::new(&drop_unknown());
    node.netns.ip("link set lo up");
    let api = FakeApi::new(&node.netns);
    api.pod("web", "net-pod", "net-pod-uid", json!({ "k8s.v1.cni.cncf.io/networks": "privatezone" }));
    let agent = Agent::with_api(&node, &api).ready();
    name(&node, "net-pod");
    let _pod = policed(&node);
    listens(&agent, &["0806"]);
    assert_eq!(
        agent.value("netpath_pod_address_conflicts_total", &[]),
        None,
        "a series once there is something"
    );
    // As on another node that hands out the same range: a kernel that has the address asks for others with it.
    node.outside.ip(&format!("addr add {POD}/24 dev {WIRE}"));
    node.outside.ip(&format!("neigh flush dev {WIRE}"));
    node.outside.exec(&format!("ping -c 1 -W 5 -I {POD} {NODE}"));
    let labels = ["namespace=\"web\"", "pod=\"net-pod\"", "interface=\"net1\"", "master=\"enp0s8\""];
    let number = || agent.value("netpath_pod_address_conflicts_total", &labels).filter(|it| *it != 0);
    agent.eventually("it is counted", number);
    let event = agent.eventually("its owner is told", || {
        api.events().into_iter().find(|event| event["reason"] == "AddressConflict")
    });
    assert_eq!((&event["involvedObject"]["name"], &event["type"]), (&json!("net-pod"), &json!("Warning")));
    let expected = "net1: 10.12.34.200 is claimed by 02:0f:00:00:00:fe as well, seen on enp0s8: give each node a range \
                    of its own (ipam.perNode), or take the address out of the range";
    assert_eq!(event["message"], expected);
    agent.says(&["WARN", "web/net-pod", expected]);
    // Said once, however often it is seen.
    let wire = node.far_end();
    let before = number();
    for _ in 0..20 {
        wire.send(&announcement(RIVAL, POD)).expect("the wire takes it");
    }
    agent.eventually("more are counted", || number().filter(|now| before.map(|it| it + 20) <= Some(*now)));
    agent.passes();
    let said = agent.log.lock().expect("nobody panicked with it").matches("as well, seen on").count();
    assert_eq!(said, 1);
    assert_eq!(api.events().iter().filter(|event| event["reason"] == "AddressConflict").count(), 1);
    assert_eq!(agent.get("/readyz").expect("an answer").0, 200, "it is no fault of the node");
}

#[test]
fn what_claims_no_address_of_a_pod_is_not_counted() {
    let mut entry = drop_unknown();
    entry["promisc"] = json!("on");
    let node = Node::new(&entry);
    let [pod, _fence] = pods(&node, PODS);
    let agent = Agent::start(&node);
    listens(&agent, &["0806"]);
    let (claim, fence) = (announcement(RIVAL, POD), announcement(RIVAL, FENCE));
    let body = arp(1, (RIVAL, POD), ([0; 6], POD));
    let tagged =
        |vid: u8| ethernet(BROADCAST, RIVAL, ethertype::VLAN, &[&[0, vid, 8, 6][..], &body].concat());
    let answer = |to: Mac| ethernet(to, RIVAL, ethertype::ARP, &arp(2, (RIVAL, POD), (to, GATEWAY)));
    let frames = [
        // A probe: may I?
        ethernet(BROADCAST, RIVAL, ethertype::ARP, &arp(1, (RIVAL, Ipv4Addr::UNSPECIFIED), ([0; 6], POD))),
        // A question about it.
        ethernet(BROADCAST, RIVAL, ethertype::ARP, &arp(1, (RIVAL, GATEWAY), ([0; 6], POD))),
        // The pod's own word, as a switch may bring it back.
        announcement(pod.mac, POD),
        // An address of nobody here.
        announcement(RIVAL, Ipv4Addr::new(10, 12, 34, 77)),
        // Another VLAN's.
        tagged(7),
        // What a promiscuous master hears beside its own, and what the pod hears alone.
        answer([2, 0, 0, 0, 0, 1]),
        answer(pod.mac),
        // Not whole, and nonsense.
        claim[..claim.len() - 1].to_vec(),
        claim[..20].to_vec(),
        ethernet(BROADCAST, RIVAL, ethertype::ARP, &[0xff; 46]),
    ];
    assert_eq!(counted(&agent, &frames, &fence), 0);
    // The pod itself, through the node.
    pod.socket().send(&announcement(pod.mac, POD)).expect("allowed");
    // A tag that only bears a priority, an answer to the node, and a question are claims.
    let frames = [
        tagged(0),
        answer(NODE_MAC),
        ethernet(BROADCAST, RIVAL, ethertype::ARP, &arp(1, (RIVAL, POD), ([0; 6], GATEWAY))),
    ];
    assert_eq!(counted(&agent, &frames, &fence), 3);
    assert!(is_enforced(&node, &pod));
}

#[test]
fn advertisements_of_a_pods_ipv6_address_are_claims() {
    let node = Node::dual(&drop_unknown());
    let [pod, _fence] = pods(&node, ["fd00:34::200/64", "fd00:34::201/64"]);
    let agent = Agent::start(&node);
    listens(&agent, &["86dd"]);
    let claim = advertised(RIVAL, POD6);
    let fence = advertised(RIVAL, "fd00:34::201".parse().expect("an address"));
    let routed = {
        let mut frame = claim.clone();
        frame[14 + 7] = 64;
        frame
    };
    let frames = [
        // Duplicate address detection, another's address, the pod's own word, a router's.
        solicitation(RIVAL, Ipv6Addr::UNSPECIFIED, POD6),
        advertised(RIVAL, "fd00:34::77".parse().expect("an address")),
        advertised(pod.mac, POD6),
        routed,
        claim[..claim.len() - 3].to_vec(),
    ];
    assert_eq!(counted(&agent, &frames, &fence), 0);
    let frames = [solicitation(RIVAL, POD6, "fd00:34::77".parse().expect("an address")), claim.clone()];
    assert_eq!(counted(&agent, &frames, &fence), 2);
    agent.says(&["net1: fd00:34::200 is claimed by 02:0f:00:00:00:aa as well, seen on enp0s8"]);
}

#[test]
fn two_pods_of_a_node_with_one_address_are_told_of_each_other() {
    let node = Node::new(&drop_unknown());
    name(&node, "one");
    let _one = policed(&node);
    let agent = Agent::start(&node);
    listens(&agent, &["0806"]);
    agent.passes();
    assert_eq!(agent.value("netpath_pod_address_conflicts_total", &[]), None);
    // By a network without a zone, which nothing is refused for.
    name(&node, "two");
    let two = node.pod(&["10.12.34.200/24"], None);
    let of = |pod: &str| Some(count_of(&agent, pod)).filter(|it| 1 < *it);
    agent.eventually("it is counted for both, again and again", || of("one").zip(of("two")));
    let ranges = "give the networks ranges that do not overlap";
    agent.says(&["net1: 10.12.34.200 is also that of web/two (net1) on this node and enp0s8", ranges]);
    agent.says(&["net1: 10.12.34.200 is also that of web/one (net1) on this node and enp0s8", ranges]);
    node.delete(&two);
    agent.eventually("it is over", || {
        let before = count_of(&agent, "one");
        agent.passes();
        (count_of(&agent, "one") == before).then_some(())
    });
}

#[test]
fn a_count_outlives_agents_and_sandboxes_and_is_gone_with_the_pod() {
    let node = Node::new(&drop_unknown());
    let pods = pods(&node, PODS);
    let agent = Agent::start(&node);
    listens(&agent, &["0806"]);
    let (claim, fence) = (announcement(RIVAL, POD), announcement(RIVAL, FENCE));
    assert_eq!(counted(&agent, &[claim.clone(), claim.clone()], &fence), 2);
    agent.kill();
    let agent = Agent::start(&node);
    assert_eq!(count(&agent), 2);
    listens(&agent, &["0806"]);
    assert_eq!(counted(&agent, std::slice::from_ref(&claim), &fence), 1);
    assert_eq!(count(&agent), 3);
    // Its sandbox is made anew.
    node.delete(&pods[0]);
    name(&node, "net-pod");
    let again = policed(&node);
    assert_eq!(count(&agent), 3);
    for pod in [&again, &pods[1]] {
        node.delete(pod);
    }
    listens(&agent, &[]);
    // A later pod of the name.
    *node.args.lock().expect("ours") =
        "K8S_POD_NAMESPACE=web;K8S_POD_NAME=net-pod;K8S_POD_UID=later".to_owned();
    let _later = policed(&node);
    assert_eq!(count(&agent), 0);
}

#[test]
fn a_master_that_goes_down_or_is_made_anew_is_listened_to_again() {
    let node = Node::new(&drop_unknown());
    name(&node, "net-pod");
    let pod = policed(&node);
    let agent = Agent::start(&node);
    listens(&agent, &["0806"]);
    let claim = announcement(RIVAL, POD);
    let heard_again = |what: &str| {
        let (wire, before) = (node.far_end(), count(&agent));
        agent.eventually(what, || {
            // A cable that was just plugged in may not carry anything yet.
            let _ = wire.send(&claim);
            (before < count(&agent)).then_some(())
        });
    };
    heard_again("it hears");
    node.netns.ip(&format!("link set {MASTER} down"));
    agent.passes();
    node.netns.ip(&format!("link set {MASTER} up"));
    heard_again("it hears after it was down");
    // With the index of the one before it there is no other sign of the change than the end of the old socket.
    let pod = cut(&node, pod, true);
    heard_again("it hears on the new one");
    let pod = cut(&node, pod, false);
    heard_again("and on the next");
    assert!(is_enforced(&node, &pod));
    assert_eq!(agent.value("netpath_agent_failing", &["what=\"conflicts\""]), None);
}

/// Has the wire and the pod made anew.
fn cut(node: &Node, pod: Pod, same_index: bool) -> Pod {
    let index = common::enforce::ifindex(node);
    node.netns.ip(&format!("link del {MASTER}"));
    node.delete(&pod);
    drop(pod);
    // Else the kernel may well give the number again.
    let number = if same_index { index } else { index + 100 };
    let other = node.outside.name();
    node.netns.ip(&format!("link add {MASTER} index {number} type veth peer name {WIRE} netns {other}"));
    node.netns.ip(&format!("link set {MASTER} up"));
    node.outside.ip(&format!("link set {WIRE} up"));
    node.address();
    policed(node)
}

#[test]
fn a_flood_of_claims_is_read_as_far_as_the_limit_goes_and_all_of_it_is_accounted_for() {
    let node = Node::new(&drop_unknown());
    name(&node, "net-pod");
    let pod = policed(&node);
    let agent = Agent::start(&node);
    listens(&agent, &["0806"]);
    let (wire, frames) = (node.far_end(), u64::from(times(10_000)));
    let (claim, others) = (announcement(RIVAL, POD), heard(&agent));
    for _ in 0..frames {
        wire.send(&claim).expect("the wire takes it");
        pace().inspect(|pause| std::thread::park_timeout(*pause));
    }
    let fates = agent.eventually("all is read, or known to be lost", || {
        let now = heard(&agent);
        Some([now[0] - others[0], now[1] - others[1]]).filter(|[read, lost]| frames <= read + lost)
    });
    let counted = agent.eventually("all that was read is counted", || {
        Some(count(&agent)).filter(|it| frames <= it + fates[1])
    });
    assert!(0 < counted && counted <= frames, "{counted} of {frames}: {fates:?}");
    // It goes on with everything else, and hears what comes then.
    agent.passes();
    let before = count(&agent);
    agent.eventually("it hears again", || {
        wire.send(&claim).expect("the wire takes it");
        (before < count(&agent)).then_some(())
    });
    assert!(is_enforced(&node, &pod));
}

#[test]
fn an_agent_that_may_not_listen_says_so_and_does_all_else() {
    let node = Node::new(&drop_unknown());
    let pod = policed(&node);
    let agent = Agent::begin_without(&node, NET_RAW);
    let (_, why) = agent
        .eventually("it says so", || agent.get("/readyz").filter(|(_, why)| why.starts_with("conflicts: ")));
    assert_eq!(
        why,
        "conflicts: enp0s8 cannot be listened to: Operation not permitted (os error 1): give the agent CAP_NET_RAW\n"
    );
    agent.passes();
    assert_eq!(agent.value("netpath_agent_failing", &["what=\"conflicts\""]), Some(1));
    assert!(agent.value("netpath_pod_transmit_packets_total", &["interface=\"net1\""]).is_some());
    let said = agent.log.lock().expect("nobody panicked with it").matches("CAP_NET_RAW").count();
    assert_eq!(said, 1, "once");
    assert!(is_enforced(&node, &pod));
    // Nothing is left to be heard, so nothing fails.
    node.delete(&pod);
    agent.eventually("it is well", || agent.get("/readyz").filter(|(status, _)| *status == 200));
}
