//! What CAP_NET_ADMIN in a pod adds: interfaces of the pod's own making on the real master. Most of it is stopped;
//! what is not is shown here, with how it is noticed.

use netpath_ebpf::drop_reason::DropReason::{SourceMac, UnknownSource, ZoneDeny};

use crate::arena::{A, Arena, B, Fate, Way, Who, both_hooks, kernel_tells_cookies, mute, silent, strict};
use crate::common::node::{GATEWAY, INTERNET, OUTSIDE_MAC, text};
use crate::common::wire::{Mac, RawSocket, carries, marker, udp_frame};
use crate::common::{PATIENCE, eventually};

/// MAC of an interface that a pod makes.
const NESTED: Mac = [2, 0xba, 0xd0, 0, 0, 0x18];

/// What becomes of a frame with a MAC that the pod was not given.
fn stranger() -> Fate {
    match kernel_tells_cookies() {
        true => Fate::dropped(Who::A, "tx", SourceMac),
        false => Fate::dropped(Who::Nobody, "tx", UnknownSource),
    }
}

#[test]
fn row_18_a_nested_macvlan_gets_nothing_out() {
    for entry in both_hooks() {
        let arena = Arena::new(&entry);
        let pod = &arena.a.netns;
        mute(pod);
        pod.ip(&format!("link add nested link net1 address {} type macvlan mode bridge", text(NESTED)));
        pod.ip("link set nested up");
        let nested = RawSocket::open(pod, "nested");
        let far = arena.node.far_end();
        for destination in [INTERNET, GATEWAY] {
            let mark = marker();
            let frame = udp_frame((NESTED, OUTSIDE_MAC), A, destination, (1, 2), &mark);
            assert_eq!(arena.one_fate(Way::Out, &nested, &far, &frame, &mark), stranger(), "{entry}");
        }
        // With the pod's own MAC and address it is the pod, in its zone.
        let mark = marker();
        let frame = udp_frame((arena.a.mac, OUTSIDE_MAC), A, INTERNET, (1, 2), &mark);
        assert_eq!(
            arena.one_fate(Way::Out, &nested, &far, &frame, &mark),
            Fate::refused(ZoneDeny),
            "{entry}"
        );
        let mark = marker();
        let frame = udp_frame((arena.a.mac, OUTSIDE_MAC), A, GATEWAY, (1, 2), &mark);
        assert_eq!(arena.one_fate(Way::Out, &nested, &far, &frame, &mark), Fate::passed(), "{entry}");
    }
}

#[test]
fn row_18_nor_does_one_that_was_moved_to_a_namespace_nobody_knows() {
    for entry in both_hooks() {
        let arena = Arena::new(&entry);
        let hidden = silent("hidden");
        mute(&arena.a.netns);
        let (pod, name) = (&arena.a.netns, hidden.name().to_owned());
        pod.ip(&format!("link add nested link net1 address {} type macvlan mode bridge", text(NESTED)));
        pod.ip(&format!("link set nested netns {name}"));
        hidden.ip("link set nested up");
        let nested = RawSocket::open(&hidden, "nested");
        let mark = marker();
        let frame = udp_frame((NESTED, OUTSIDE_MAC), A, GATEWAY, (1, 2), &mark);
        let fate = arena.one_fate(Way::Out, &nested, &arena.node.far_end(), &frame, &mark);
        assert_eq!(fate, Fate::dropped(Who::Nobody, "tx", UnknownSource), "{entry}");
    }
}

#[test]
fn row_20_another_mac_another_mode_and_flushed_rules_change_nothing_for_the_better() {
    for entry in both_hooks() {
        let arena = Arena::new(&entry);
        let pod = &arena.a.netns;
        // What the kernel says by itself with the new MAC would be counted as well.
        pod.set_sysctl("net/ipv6/conf/net1/disable_ipv6", "1");
        // Rules and queueing disciplines of the pod are the pod's; nothing of ours is there to be flushed.
        pod.exec("tc qdisc add dev net1 clsact");
        pod.exec("tc qdisc del dev net1 clsact");
        for mode in ["private", "vepa", "bridge"] {
            pod.ip(&format!("link set net1 type macvlan mode {mode}"));
            let mark = marker();
            assert_eq!(
                arena.fate(Way::Out, &arena.udp(INTERNET, &mark), &mark),
                Fate::refused(ZoneDeny),
                "{mode}"
            );
            let mark = marker();
            assert_eq!(arena.fate(Way::Out, &arena.udp(GATEWAY, &mark), &mark), Fate::passed(), "{mode}");
        }
        pod.ip(&format!("link set net1 address {}", text(NESTED)));
        let mark = marker();
        let frame = udp_frame((NESTED, OUTSIDE_MAC), A, GATEWAY, (1, 2), &mark);
        assert_eq!(arena.fate(Way::Out, &frame, &mark), stranger(), "{entry}");
    }
}

#[test]
fn row_19_out_of_reach_a_source_mode_macvlan_steals_from_siblings_and_status_names_it() {
    let arena = Arena::new(&strict());
    let status = || arena.node.try_netpath(&["status"]);
    let quiet = status();
    assert!(quiet.status.success(), "{}", String::from_utf8_lossy(&quiet.stdout));
    let (far, victim) = (arena.node.far_end(), arena.b.socket());
    let answer = |mark: &[u8]| udp_frame((OUTSIDE_MAC, arena.b.mac), GATEWAY, B, (1, 2), mark);
    let honest = marker();
    far.send(&answer(&honest)).expect("sent");
    victim.until(&honest);

    let pod = &arena.a.netns;
    pod.ip("link add steal link net1 type macvlan mode source nodst");
    pod.ip(&format!("link set steal type macvlan macaddr add {}", text(OUTSIDE_MAC)));
    pod.ip("link set steal up");
    let thief = RawSocket::open(pod, "steal");
    let stolen = marker();
    far.send(&answer(&stolen)).expect("sent");
    thief.until(&stolen);
    // Nothing on the master runs behind the point where the frame changes hands.
    let said = status();
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    assert_eq!(said.status.code(), Some(4), "{text}");
    assert!(text.contains("ALERT: ") && text.contains("`steal`") && text.contains("source mode"), "{text}");

    // What an administrator does: the interface goes, with the pod, and the siblings have their frames again.
    pod.ip("link del steal");
    let last = marker();
    far.send(&answer(&last)).expect("sent");
    assert!(
        !victim.until(&last).iter().any(|seen| carries(seen, &stolen)),
        "the frame was lost to its owner"
    );
    eventually(PATIENCE, "status is content again", || status().status.success().then_some(()));
}

/// What `netpath status` says, and whether it asks for attention.
fn status(arena: &Arena) -> (bool, String) {
    let output = arena.node.try_netpath(&["status"]);
    let said = String::from_utf8(output.stdout).expect("text");
    match output.status.code() {
        Some(0) => (false, said),
        Some(4) => (true, said),
        code => panic!("{code:?}: {said}"),
    }
}

#[test]
fn row_20_a_changed_interface_is_named() {
    let arena = Arena::new(&strict());
    let pod = &arena.a.netns;
    assert!(!status(&arena).0);
    pod.ip("link set net1 type macvlan mode private");
    let (alert, said) = status(&arena);
    assert!(
        alert && said.contains("`net1`") && said.contains("private mode") && said.contains("bridge"),
        "{said}"
    );
    pod.ip("link set net1 type macvlan mode bridge");
    assert!(!status(&arena).0);
    pod.ip(&format!("link set net1 address {}", text(NESTED)));
    let (alert, said) = status(&arena);
    assert!(alert && said.contains(&format!("has MAC {} and was given", text(NESTED))), "{said}");
    pod.ip(&format!("link set net1 address {}", text(arena.a.mac)));
    assert!(!status(&arena).0);
}

#[test]
fn row_18_and_19_an_interface_in_a_namespace_that_nobody_knows_is_named_by_its_mac() {
    for word in ["drop", "auto"] {
        let arena = Arena::new(&serde_json::json!({ "unknownSource": word }));
        let hidden = silent("hidden");
        let (pod, name) = (&arena.a.netns, hidden.name().to_owned());
        pod.ip(&format!("link add steal link net1 address {} type macvlan mode source nodst", text(NESTED)));
        pod.ip(&format!("link set steal netns {name}"));
        assert!(!status(&arena).0, "one that is down takes nothing");
        hidden.ip("link set steal up");
        let (alert, said) = status(&arena);
        assert!(
            alert && said.contains(&format!("a device with MAC {} receives on it", text(NESTED))),
            "{said}"
        );
        // What the node itself puts on the master is its own, once the next attach has seen it.
        hidden.ip("link del steal");
        arena.node.netns.ip("link add host0 link enp0s8 type macvlan mode bridge");
        arena.node.netns.ip("link set host0 up");
        arena.node.netpath(&["attach"]);
        let (alert, said) = status(&arena);
        assert!(!alert, "{said}");
    }
}
