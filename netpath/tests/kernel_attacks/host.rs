//! The node's own side of the master: what the cluster network sends there for pods passes, and who has the node
//! needs no way out.

use std::net::{Ipv4Addr, UdpSocket};

use serde_json::json;

use crate::arena::{A, Arena, kernel_tells_cookies, private, strict};
use crate::common::node::{
    GATEWAY, INTERNET, MASTER, NODE, NODE_MAC, Node, OUTSIDE_MAC, crosses, pod_fence, text,
};
use crate::common::wire::{RawSocket, carries, marker, udp_frame};
use crate::tc;

/// Address of the pod on the cluster network.
const ETH0: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 2);

/// Gives a pod an `eth0` whose traffic the node sends on by eBPF.
fn cluster_network(node: &Node, pod: &crate::common::node::Pod) {
    let place = pod.netns.name();
    node.netns.ip(&format!("link add lxc0 type veth peer name eth0 netns {place}"));
    node.netns.ip("link set lxc0 up");
    pod.netns.ip("link set eth0 up");
    pod.netns.ip(&format!("addr add {ETH0}/24 dev eth0"));
    pod.netns.ip(&format!("route replace {INTERNET}/32 via 10.244.0.1 dev eth0"));
    pod.netns.ip("neigh replace 10.244.0.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent");
    node.netns
        .ip(&format!("neigh replace {GATEWAY} lladdr {} dev {MASTER} nud permanent", text(OUTSIDE_MAC)));
    let index =
        node.netns.exec(&format!("cat /sys/class/net/{MASTER}/ifindex")).trim().parse().expect("an index");
    let pin = tc::redirect_neigh(node, index);
    node.netns.exec("tc qdisc add dev lxc0 clsact");
    node.netns.exec(&format!("tc filter add dev lxc0 ingress bpf da object-pinned {}", pin.display()));
}

#[test]
fn row_02_what_the_cluster_network_moves_to_the_master_for_a_pod_passes() {
    for (dedicated, passes) in [(false, true), (true, !kernel_tells_cookies())] {
        let node = Node::new(&json!({ "unknownSource": "drop", "dedicatedMaster": dedicated }));
        let pod = node.pod(&["10.12.34.200/24"], Some(&private()));
        cluster_network(&node, &pod);
        let socket = pod.netns.within(|| UdpSocket::bind((ETH0, 0))).expect("free");
        let far = node.far_end();
        crate::common::node::stay_on_this_cpu();
        let mark = marker();
        socket.send_to(&mark, (INTERNET, 4000)).expect("sent");
        let last = marker();
        RawSocket::open(&node.netns, MASTER)
            .send(&udp_frame((NODE_MAC, OUTSIDE_MAC), NODE, GATEWAY, (9, 9), &last))
            .expect("the host's own");
        let seen = far.until(&last);
        let moved = seen.iter().find(|frame| carries(frame, &mark));
        assert_eq!(moved.is_some(), passes, "dedicated {dedicated}");
        if let Some(frame) = moved {
            assert_eq!((&frame[6..12], &frame[26..30]), (&NODE_MAC[..], &ETH0.octets()[..]));
        }
        assert_eq!(node.totals().host_dropped, 0, "dedicated {dedicated}");
    }
}

#[test]
fn row_22_out_of_reach_who_is_on_the_node_goes_past_tc() {
    let arena = Arena::new(&strict());
    let (node, far) = (&arena.node, arena.node.far_end());
    let host = RawSocket::open(&node.netns, MASTER);
    let frame = |mark: &[u8]| udp_frame((arena.a.mac, OUTSIDE_MAC), A, INTERNET, (1, 2), mark);
    let fence = pod_fence(&arena.a, A);
    // In the ordinary way even the node is judged by the MAC it uses.
    let mark = marker();
    assert!(!crosses(&host, &far, &frame(&mark), &mark, &fence));
    // Past the queueing disciplines of the master itself nothing is asked. From a pod that is another matter: its
    // frames come to the master by the front door, as the other tests show.
    let before = node.counters(&arena.a);
    host.bypass_qdisc();
    let mark = marker();
    assert!(crosses(&host, &far, &frame(&mark), &mark, &fence));
    assert_eq!(node.counters(&arena.a), before, "neither judged nor counted");
}

#[test]
fn row_27_offloads_that_go_past_the_hooks_are_read_from_the_master() {
    let node = Node::new(&strict());
    let _pod = node.pod(&["10.12.34.200/24"], Some(&private()));
    // A virtual cable has none, and says so to both.
    let shown = node.netns.exec(&format!("ethtool -k {MASTER}"));
    assert!(shown.contains("l2-fwd-offload: off [fixed]"), "{shown}");
    let status = node.netpath(&["status"]);
    assert!(!status.contains("offload"), "{status}");
}
