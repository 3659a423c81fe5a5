//! Pods of one master among themselves: what they send each other does not touch the wire, and is judged all the same.

use netpath_ebpf::drop_reason::DropReason::{SourceV4, SourceV6, ZoneDeny};
use serde_json::{Value, json};

use crate::arena::{A, A6, Arena, B, B6, Fate, Way, Who, both_hooks, private, strict};
use crate::common::node::{GATEWAY, GATEWAY6, INTERNET, OUTSIDE_MAC};
use crate::common::wire::{
    carries, ethernet, ethertype, ipv4, ipv6, marker, protocol, udp, udp_frame, udp6_frame,
};

fn hooks_and_xdp() -> Vec<Value> {
    let mut all = both_hooks();
    all.push(json!({ "unknownSource": "drop", "xdp": "native" }));
    all
}

/// Nobody but the gateway.
fn alone() -> Value {
    json!({ "policy": "private", "deny": ["10.12.34.201", "fd00:34::201"] })
}

#[test]
fn row_16_a_sibling_of_another_zone_is_no_relay() {
    for entry in hooks_and_xdp() {
        // What `a` may not send: its own zone says no.
        let arena = Arena::zones(&entry, &alone(), &private());
        let [v4, v6] = datagrams(&arena);
        for (frame, mark) in [v4, v6] {
            assert_eq!(arena.one_way(&frame, &mark), Fate::refused(ZoneDeny), "{entry}: as sender");
        }
        drop(arena);
        // What `b` may not receive: the zone of the other end says no.
        let strict = json!({ "policy": "private", "deny": ["10.12.34.200", "fd00:34::200"] });
        let arena = Arena::zones(&entry, &private(), &strict);
        let [v4, v6] = datagrams(&arena);
        for (frame, mark) in [v4, v6] {
            let refused = Fate::dropped(Who::B, "rx", ZoneDeny);
            assert_eq!(arena.one_way(&frame, &mark), refused, "{entry}: as receiver");
        }
        drop(arena);
        // The honest twin: one zone.
        let arena = Arena::new(&entry);
        let [v4, v6] = datagrams(&arena);
        let before = (arena.node.counters(&arena.a), arena.node.counters(&arena.b));
        for (frame, mark) in [v4, v6] {
            assert_eq!(arena.one_way(&frame, &mark), Fate::passed(), "{entry}");
        }
        let after = (arena.node.counters(&arena.a), arena.node.counters(&arena.b));
        let sent = after.0.tx_packets - before.0.tx_packets;
        let received = after.1.rx_packets - before.1.rx_packets;
        // The sender's neighbour discovery may say a word in between; the receiver counts what is for it alone.
        assert!(
            sent >= 4 && received == 4,
            "{entry}: two datagrams and their fences, for both: {sent}, {received}"
        );
    }
}

impl Arena {
    /// Fate of a frame to the sibling, with a fence that both zones of these tests let through.
    #[track_caller]
    fn one_way(&self, frame: &[u8], mark: &[u8]) -> Fate {
        use crate::common::wire::RawSocket;
        crate::common::node::stay_on_this_cpu();
        let before = self.drops();
        let (from, to): (RawSocket, RawSocket) = (self.a.socket(), self.b.socket());
        let _ = from.send(frame);
        // ARP is judged as the sender's alone, and only by the address that is asked for.
        let last = marker();
        let body = crate::common::wire::arp(2, (self.a.mac, A), (self.b.mac, A));
        let fence = ethernet(self.b.mac, self.a.mac, ethertype::ARP, &[body, last.clone()].concat());
        from.send(&fence).expect("the fence is allowed");
        let arrived = to.until(&last).iter().any(|seen| carries(seen, mark));
        Fate { arrived, grown: self.grown(&before) }
    }
}

/// A datagram from `a` to `b` in each family.
fn datagrams(arena: &Arena) -> [(Vec<u8>, Vec<u8>); 2] {
    let (four, six) = (marker(), marker());
    let macs = (arena.a.mac, arena.b.mac);
    [
        (udp_frame(macs, A, B, (1, 2), &four), four.clone()),
        (udp6_frame(macs, A6, B6, (1, 2), &six), six.clone()),
    ]
}

#[test]
fn row_16_a_sibling_that_forwards_is_no_way_out() {
    for entry in both_hooks() {
        let arena = Arena::new(&entry);
        for key in ["net/ipv4/ip_forward", "net/ipv4/conf/all/forwarding", "net/ipv6/conf/all/forwarding"] {
            arena.b.netns.set_sysctl(key, "1");
        }
        arena.b.netns.set_sysctl("net/ipv4/conf/net1/send_redirects", "0");
        arena.b.netns.ip(&format!("route add {INTERNET} via {GATEWAY} dev net1"));
        // To the sibling's MAC, but for somebody else: the first leg is judged by the address.
        let mark = marker();
        let frame = udp_frame((arena.a.mac, arena.b.mac), A, INTERNET, (1, 2), &mark);
        assert_eq!(arena.fate(Way::Sibling, &frame, &mark), Fate::refused(ZoneDeny), "{entry}");
        // To a host of the zone the first leg passes; what the sibling sends on is not the sibling's.
        for v6 in [false, true] {
            let mark = marker();
            let packet = match v6 {
                false => ipv4(A, GATEWAY, protocol::UDP, &udp(1, 2, &mark)),
                true => ipv6(A6, GATEWAY6, protocol::UDP, &udp(1, 2, &mark)),
            };
            let kind = if v6 { ethertype::IPV6 } else { ethertype::IPV4 };
            let frame = ethernet(arena.b.mac, arena.a.mac, kind, &packet);
            let before = arena.drops();
            let far = arena.node.far_end();
            arena.a.socket().send(&frame).expect("the first leg is allowed");
            let reason = if v6 { SourceV6 } else { SourceV4 };
            let refused = Fate::dropped(Who::B, "tx", reason).grown[0];
            crate::common::eventually(crate::common::PATIENCE, "the second leg is refused", || {
                arena.grown(&before).contains(&refused).then_some(())
            });
            let last = marker();
            arena.a.socket().send(&arena.fence(Way::Out, &last)).expect("the fence is allowed");
            assert!(!far.until(&last).iter().any(|seen| carries(seen, &mark)), "{entry}");
        }
    }
}

/// What XDP has judged and marked for one pod is judged anew for the next: the mark stays with a frame that is sent on.
///
/// No packet socket is open at the master or the pod that forwards: the kernel would make it a frame of its own, without the mark.
#[test]
fn row_16_a_sibling_that_forwards_is_no_way_in() {
    for entry in hooks_and_xdp() {
        let strict = json!({ "policy": "private", "deny": [GATEWAY.to_string()] });
        let arena = Arena::zones(&entry, &private(), &strict);
        for key in ["net/ipv4/ip_forward", "net/ipv4/conf/all/forwarding"] {
            arena.a.netns.set_sysctl(key, "1");
        }
        arena.a.netns.set_sysctl("net/ipv4/conf/net1/send_redirects", "0");
        let mac = arena.b.mac.map(|byte| format!("{byte:02x}")).join(":");
        // Of a neighbour that is not confirmed the kernel does not copy a header that it keeps, which overwrites the mark.
        arena.a.netns.ip(&format!("neigh replace {B} lladdr {mac} nud stale dev net1"));
        let far = arena.node.far_end();
        let (drops, before) = (arena.drops(), arena.node.counters(&arena.b));
        let refused = Fate::refused(SourceV4).grown[0];
        far.send(&udp_frame((OUTSIDE_MAC, arena.a.mac), GATEWAY, B, (1, 2), &marker())).expect("sent");
        crate::common::eventually(
            crate::common::PATIENCE,
            &format!("{entry}: the second leg is refused"),
            || arena.grown(&drops).contains(&refused).then_some(()),
        );
        assert_eq!(arena.node.counters(&arena.b).rx_packets, before.rx_packets, "{entry}");
    }
}

#[test]
fn row_17_redirected_frames_are_judged_at_the_master_all_the_same() {
    // A pod with NET_ADMIN sends its frames in a circle, which marks them as redirected: generic XDP would not see
    // them any more, TC does.
    let arena = Arena::new(&strict());
    let pod = &arena.a.netns;
    pod.ip("link add ifb0 type ifb");
    pod.ip("link set ifb0 up");
    pod.exec("tc qdisc add dev net1 clsact");
    pod.exec(
        "tc filter add dev net1 egress protocol all u32 match u32 0 0 action mirred egress redirect dev ifb0",
    );
    let mark = marker();
    let (from, far, sibling) = (arena.a.socket(), arena.node.far_end(), arena.b.socket());
    let before = arena.drops();
    for (destination, passes) in [(INTERNET, false), (GATEWAY, true)] {
        let _ = from.send(&udp_frame((arena.a.mac, OUTSIDE_MAC), A, destination, (1, 2), &mark));
        let last = marker();
        // The queue of the IFB is one: what comes behind has come later.
        from.send(&arena.fence(Way::Out, &last)).expect("sent");
        let seen = far.until(&last);
        assert_eq!(seen.iter().any(|frame| carries(frame, &mark)), passes, "to {destination}");
    }
    assert_eq!(arena.grown(&before), Fate::refused(ZoneDeny).grown);
    // Aside it passes TC ingress, as any other.
    let before = arena.drops();
    let mark = marker();
    from.send(&udp_frame((arena.a.mac, arena.b.mac), INTERNET, B, (1, 2), &mark))
        .expect("the circle takes it");
    let last = marker();
    from.send(&arena.fence(Way::Sibling, &last)).expect("the circle takes it");
    assert!(!sibling.until(&last).iter().any(|frame| carries(frame, &mark)));
    assert_eq!(arena.grown(&before), Fate::refused(SourceV4).grown);
}
