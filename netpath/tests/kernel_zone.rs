//! The private zone on a real macvlan: modes, families, inline lists and tries, directions, what is let in
//! besides, and changes while traffic flows. What arrives at the other end of the wire decides.

mod common;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt;

use common::node::{GATEWAY, GATEWAY6, INTERNET, INTERNET6, Node, OUTSIDE_MAC, Pod, at, crosses, pod_fence};
use common::traffic::under_traffic;
use common::wire::{
    RawSocket, ethernet, ethertype, icmp_error, ipv4, marker, protocol, udp, udp_frame, udp6_frame,
};
use netpath::kernel::bpf::zones::ZoneContent;
use netpath::police;
use netpath::state::Lock;
use netpath::zone::{ZoneConf, compile, resolve};
use netpath_ebpf::drop_reason::DropReason;
use serde_json::{Value, json};

const POD: Ipv4Addr = Ipv4Addr::new(10, 12, 34, 200);
const POD6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x34, 0, 0, 0, 0, 0, 0x200);
const BOTH: &[&str] = &["10.12.34.200/24", "fd00:34::200/64"];

fn entry() -> Value {
    json!({ "unknownSource": "drop" })
}

/// A datagram from the pod to `address`, marked.
fn to(pod: &Pod, address: IpAddr, marker: &[u8]) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => udp_frame((pod.mac, OUTSIDE_MAC), POD, address, (1, 2), marker),
        IpAddr::V6(address) => udp6_frame((pod.mac, OUTSIDE_MAC), POD6, address, (1, 2), marker),
    }
}

/// A datagram from `address` to the pod, marked.
fn from(pod: &Pod, address: IpAddr, marker: &[u8]) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => udp_frame((OUTSIDE_MAC, pod.mac), address, POD, (1, 2), marker),
        IpAddr::V6(address) => udp6_frame((OUTSIDE_MAC, pod.mac), address, POD6, (1, 2), marker),
    }
}

/// Both ends of the wire as a pod sees it.
struct Ends<'a> {
    pod: &'a Pod,
    inside: RawSocket,
    outside: RawSocket,
}

impl<'a> Ends<'a> {
    fn new(node: &Node, pod: &'a Pod) -> Self {
        Self { pod, inside: pod.socket(), outside: node.far_end() }
    }

    #[track_caller]
    fn leaves(&self, address: IpAddr) -> bool {
        let mark = marker();
        crosses(&self.inside, &self.outside, &to(self.pod, address, &mark), &mark, pod_fence(self.pod, POD))
    }

    #[track_caller]
    fn enters(&self, address: IpAddr) -> bool {
        let mark = marker();
        self.lets_in(&from(self.pod, address, &mark), &mark)
    }

    #[track_caller]
    fn lets_in(&self, frame: &[u8], mark: &[u8]) -> bool {
        let fence = |mark: &[u8]| from(self.pod, GATEWAY.into(), mark);
        crosses(&self.outside, &self.inside, frame, mark, fence)
    }
}

#[test]
fn each_mode_does_what_it_says_in_both_families_and_directions() {
    for mode in ["enforce", "audit", "off"] {
        let node = Node::dual(&entry());
        let pod = node.pod(BOTH, Some(&json!({ "policy": "private", "mode": mode })));
        let ends = Ends::new(&node, &pod);
        let (before, drops) = (node.counters(&pod), node.drops(&pod));
        assert!(ends.leaves(GATEWAY.into()) && ends.leaves(GATEWAY6.into()), "{mode}");
        assert!(ends.enters(GATEWAY.into()) && ends.enters(GATEWAY6.into()), "{mode}");
        for address in [IpAddr::V4(INTERNET), IpAddr::V6(INTERNET6)] {
            assert_eq!(ends.leaves(address), mode != "enforce", "{mode}: to {address}");
            assert_eq!(ends.enters(address), mode != "enforce", "{mode}: from {address}");
        }
        let (now, after) = (node.counters(&pod), node.drops(&pod));
        let zone = at(DropReason::ZoneDeny);
        let dropped = [now.tx_dropped - before.tx_dropped, now.rx_dropped - before.rx_dropped];
        let audited = [now.tx_audited - before.tx_audited, now.rx_audited - before.rx_audited];
        let by_reason = [
            after.tx_dropped[zone] - drops.tx_dropped[zone],
            after.rx_dropped[zone] - drops.rx_dropped[zone],
        ];
        let would = [
            after.tx_audited[zone] - drops.tx_audited[zone],
            after.rx_audited[zone] - drops.rx_audited[zone],
        ];
        let expected = match mode {
            "enforce" => ([2, 2], [0, 0]),
            "audit" => ([0, 0], [2, 2]),
            _ => ([0, 0], [0, 0]),
        };
        assert_eq!((dropped, audited), expected, "{mode}");
        assert_eq!((by_reason, would), expected, "{mode}");
    }
}

#[test]
fn a_list_that_fits_inline_and_one_that_needs_a_trie_decide_alike() {
    let allow = [
        "172.16.5.0/24",
        "192.0.2.0/25",
        "192.0.2.9/32",
        "2001:db8:5::/48",
        "2001:db8:9::/64",
        "2001:db8:9::7",
    ];
    let deny = ["192.0.2.0/28", "10.12.34.13/32", "2001:db8:5:1::/64"];
    // More prefixes than eight of each family, all far from what is asked.
    let many: Vec<String> =
        (0..10).flat_map(|i| [format!("198.18.{i}.0/24"), format!("2001:db8:100:{i:x}::/64")]).collect();
    let cases: &[(&str, bool)] = &[
        ("10.12.34.254", true),
        ("10.12.34.13", false),
        ("172.16.5.77", true),
        ("172.16.6.77", false),
        ("192.0.2.100", true),
        ("192.0.2.200", false),
        ("192.0.2.3", false),
        ("192.0.2.9", true),
        ("8.8.8.8", false),
        ("fd00:34::fe", true),
        ("fd00:35::fe", false),
        ("2001:db8:5::1", true),
        ("2001:db8:5:1::1", false),
        ("2001:db8:9::1", true),
        ("2001:db8:9:1::1", false),
        ("2001:db8:8::8", false),
    ];
    for wide in [false, true] {
        let more = if wide { &many[..] } else { &[] };
        let allow: Vec<&str> = allow.iter().copied().chain(more.iter().map(String::as_str)).collect();
        let node = Node::dual(&entry());
        let pod = node.pod(BOTH, Some(&json!({ "policy": "private", "allow": allow, "deny": deny })));
        let slot = node.maps().zone(node.row(&pod).zone).expect("readable").expect("loaded").slot;
        assert_eq!(slot.flags & 3, if wide { 3 } else { 0 }, "both tries are used, or none");
        let ends = Ends::new(&node, &pod);
        for (address, allowed) in cases {
            let address = address.parse().expect("an address");
            assert_eq!(ends.leaves(address), *allowed, "wide {wide}: to {address}");
            assert_eq!(ends.enters(address), *allowed, "wide {wide}: from {address}");
        }
        if wide {
            assert!(ends.leaves("198.18.7.1".parse().expect("an address")));
            assert!(ends.leaves("2001:db8:100:7::1".parse().expect("an address")));
        }
    }
}

#[test]
fn ingress_is_judged_by_its_own_word() {
    let remote: IpAddr = "172.16.5.1".parse().expect("an address");
    for (ingress, from_remote, from_anywhere) in
        [("zone", true, false), ("local", false, false), ("any", true, true)]
    {
        let node = Node::new(&entry());
        let zone = json!({ "policy": "private", "allow": ["172.16.5.0/24"], "ingress": ingress });
        let pod = node.pod(&["10.12.34.200/24"], Some(&zone));
        let ends = Ends::new(&node, &pod);
        assert!(ends.enters(GATEWAY.into()), "{ingress}");
        assert_eq!(ends.enters(remote), from_remote, "{ingress}");
        assert_eq!(ends.enters(INTERNET.into()), from_anywhere, "{ingress}");
        // The way out is the same for all.
        assert!(ends.leaves(remote), "{ingress}");
        assert!(!ends.leaves(INTERNET.into()), "{ingress}");
    }
}

#[test]
fn errors_about_ones_own_allowed_packets_come_in_from_any_router() {
    let node = Node::new(&entry());
    let zone = json!({ "policy": "private", "allow": ["172.16.5.0/24"] });
    let pod = node.pod(&["10.12.34.200/24"], Some(&zone));
    let ends = Ends::new(&node, &pod);
    let router = Ipv4Addr::new(198, 51, 100, 1);
    let remote = Ipv4Addr::new(172, 16, 5, 1);
    let error = |kind: u8, code: u8, quoted: &[u8], mark: &[u8]| {
        let quote = [quoted, mark].concat();
        ethernet(
            pod.mac,
            OUTSIDE_MAC,
            ethertype::IPV4,
            &ipv4(router, POD, protocol::ICMP, &icmp_error(kind, code, &quote)),
        )
    };
    let sent = |source, destination| ipv4(source, destination, protocol::UDP, &udp(1, 2, &[]));
    let mut later_fragment = sent(POD, remote);
    later_fragment[7] = 99;
    for (what, kind, code, quoted, expected) in [
        ("fragmentation needed", 3, 4, sent(POD, remote), true),
        ("time exceeded", 11, 0, sent(POD, remote), true),
        ("parameter problem", 12, 0, sent(POD, remote), true),
        ("a redirect", 5, 1, sent(POD, remote), false),
        ("an echo request", 8, 0, sent(POD, remote), false),
        ("about a packet to elsewhere", 3, 4, sent(POD, INTERNET), false),
        ("about somebody else's packet", 3, 4, sent(GATEWAY, remote), false),
        ("about a later fragment", 3, 4, later_fragment, false),
    ] {
        let mark = marker();
        assert_eq!(ends.lets_in(&error(kind, code, &quoted, &mark), &mark), expected, "{what}");
    }
}

#[test]
fn answers_of_a_dhcp_server_reach_only_who_has_its_address_from_one() {
    let answer = |pod: &Pod, mark: &[u8]| udp_frame((OUTSIDE_MAC, pod.mac), GATEWAY, POD, (67, 68), mark);
    let node = Node::new(&entry());
    let fixed = node.pod(&["10.12.34.200/24"], Some(&json!({ "policy": "private" })));
    let mark = marker();
    assert!(!Ends::new(&node, &fixed).lets_in(&answer(&fixed, &mark), &mark));
    assert_eq!(node.drops(&fixed).rx_dropped[at(DropReason::DhcpServer)], 1);
    drop(fixed);

    // An IPAM plugin of this type, without the daemon behind it: what counts is that it is called `dhcp`.
    let node = Node::new(&entry());
    let plugin = node.root.join("bin/dhcp");
    std::fs::create_dir_all(plugin.parent().expect("a parent")).expect("a directory");
    let lease = json!({ "cniVersion": "1.0.0", "ips": [{ "address": "10.12.34.200/24" }] });
    std::fs::write(
        &plugin,
        format!("#!/bin/sh\ncat >/dev/null\n[ $CNI_COMMAND = ADD ] && echo '{lease}'\nexit 0\n"),
    )
    .expect("a file");
    std::fs::set_permissions(&plugin, std::fs::Permissions::from_mode(0o755)).expect("executable");
    let mut conf = common::node::conf(&[], Some(&json!({ "policy": "private", "local": ["10.12.34.0/24"] })));
    conf["ipam"] = json!({ "type": "dhcp" });
    let leased = node.pod_with(conf);
    let mark = marker();
    assert!(Ends::new(&node, &leased).lets_in(&answer(&leased, &mark), &mark));
}

/// A zone as the maps take it.
fn content(zone: &Value) -> ZoneContent {
    let conf = ZoneConf::parse(zone).expect("valid");
    let zone = resolve(Some(&conf), None, None).expect("valid").expect("a zone");
    police::content(&compile(&zone).expect("fits the maps"))
}

#[test]
fn a_zone_that_changes_while_traffic_flows_loses_nothing_inside_and_leaks_nothing_outside() {
    let node = Node::new(&entry());
    let pod = node.pod(&["10.12.34.200/24"], Some(&json!({ "policy": "private" })));
    let zone = node.row(&pod).zone;
    // Both allow the gateway and neither the internet; one is inline, the other a trie, and all else differs.
    let many: Vec<String> = (0..12).map(|i| format!("198.18.{i}.0/24")).collect();
    let images = [
        content(&json!({ "policy": "private", "local": ["10.12.34.0/24"], "deny": ["8.8.8.0/24"] })),
        content(&json!({ "policy": "private", "local": ["10.12.34.254/32"], "allow": many })),
    ];
    let mut maps = node.maps();
    let first = maps.zone(zone).expect("readable").expect("loaded").slot.generation;
    under_traffic(&node, &pod, POD, || {
        for (round, image) in (1..=60).zip(images.iter().cycle()) {
            let _lock = Lock::acquire(&node.root).expect("nobody else has the lock");
            let generation = maps.write_zone(zone, "privatezone", [0; 16], image).expect("written");
            assert_eq!(generation, first + round, "one change, one generation");
        }
    });
}

#[test]
fn a_changed_zone_holds_for_running_pods_and_a_missing_one_lets_nothing_pass() {
    for (mode, reason_drops) in [("enforce", true), ("audit", false)] {
        let node = Node::new(&entry());
        let pod = node.pod(&["10.12.34.200/24"], Some(&json!({ "policy": "private", "mode": mode })));
        let ends = Ends::new(&node, &pod);
        let zone = node.row(&pod).zone;
        let mut maps = node.maps();
        let wider =
            content(&json!({ "policy": "private", "local": ["10.12.34.0/24"], "allow": ["8.8.8.8/32"] }));
        maps.write_zone(zone, "privatezone", [1; 16], &wider).expect("written");
        assert!(ends.leaves(INTERNET.into()), "{mode}: allowed now");
        assert!(ends.enters(INTERNET.into()), "{mode}: allowed now");
        maps.remove_zone(zone).expect("removed");
        let mark = marker();
        let sent = ends.inside.send(&to(&pod, GATEWAY.into(), &mark));
        assert_eq!(sent.is_err(), reason_drops, "{mode}");
        let drops = node.drops(&pod);
        let rows = if reason_drops { drops.tx_dropped } else { drops.tx_audited };
        assert_eq!(rows[at(DropReason::ZoneNotLoaded)], 1, "{mode}");
        // Written again it is in force again.
        maps.write_zone(zone, "privatezone", [2; 16], &wider).expect("written");
        assert!(ends.leaves(GATEWAY.into()), "{mode}");
    }
}
