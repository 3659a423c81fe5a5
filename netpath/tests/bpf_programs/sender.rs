//! Who really sent a frame. A test run's frame comes from a socket of this process, so its cookie is that of
//! the namespace the test runs in: rows make it the pod's, another pod's, or the node's.

use std::net::{IpAddr, Ipv4Addr};

use netpath::kernel::{
    bpf::{Hook, told},
    netns,
};
use netpath_ebpf::{
    abi::{
        CookieOwner, Endpoint, EndpointKey, Master, VlanKey, claim, kind, master_flags, mode, unknown_source,
    },
    drop_reason::DropReason,
};

use crate::{
    node::{HOST_MAC, MASTER, Node, master, slot},
    verdict::{
        frames::{PEER_MAC, POD_MAC, arp, between, tcp, udp, v4},
        image::Layout,
        model::{FAR4, NEAR4, POD4, Setup},
    },
};

const SIBLING_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x22];
const STRANGER_MAC: [u8; 6] = [2, 9, 9, 9, 9, 9];
const SIBLING: Ipv4Addr = Ipv4Addr::new(10, 12, 34, 60);

/// A pod whose cookie is this process's, a sibling with another one, and what a kernel without the helper says.
struct Scene {
    node: Node,
    pod: Endpoint,
    sibling: Endpoint,
    cookie: u64,
    /// Whether the kernel tells programs whose socket a frame is from.
    told: bool,
}

fn scene(pod_mode: u8) -> Scene {
    let (mut node, pod) = Node::in_setup(Setup::Dual, Layout::Fit);
    let cookie = netns::cookie().expect("Linux 5.14");
    let pod = Endpoint { cookie, mode: pod_mode, ..pod };
    node.set(POD_MAC, &pod);
    let sibling = node.add(SIBLING_MAC, Setup::Dual, Layout::Fit);
    let mut addresses = sibling.v4;
    addresses[0] = SIBLING.octets();
    let sibling = Endpoint { cookie: cookie + 1, v4: addresses, ..sibling };
    node.set(SIBLING_MAC, &sibling);
    for row in [pod, sibling] {
        let owner = CookieOwner { endpoint: row.id, generation: row.generation, mode: row.mode, pad: [0; 7] };
        node.maps.set_cookie_owner(MASTER, row.cookie, Some(owner)).expect("cookie");
        node.maps
            .set_claim(MASTER, IpAddr::from(row.v4[0]).into(), claim::BOUND | claim::LOCAL)
            .expect("claim");
    }
    node.maps.set_claim(MASTER, "10.12.34.0/24".parse().expect("prefix"), claim::LOCAL).expect("claim");
    Scene { node, pod, sibling, cookie, told: told::has_netns_cookie().expect("a probe") }
}

impl Scene {
    fn set_master(&mut self, unknown: u8, flags: u32) {
        let row = Master { flags, ..master(unknown) };
        self.node.maps.set_master(MASTER, &row).expect("master row");
    }

    /// The frame is dropped as the pod's, with a borrowed MAC; where cookies are not told it is `otherwise`.
    #[track_caller]
    fn is_the_pods(&self, frame: &[u8], otherwise: bool) {
        let before = self.node.drops(self.pod.id);
        let counted = self.node.counters(self.pod.id);
        let passed = self.node.passes(Hook::Egress, frame);
        if !self.told {
            assert_eq!(passed, otherwise);
            return;
        }
        let reason = slot(DropReason::SourceMac);
        let (drops, count) = (self.node.drops(self.pod.id), self.node.counters(self.pod.id));
        match self.pod.mode {
            mode::ENFORCE => {
                assert!(!passed);
                assert_eq!(drops.tx_dropped[reason], before.tx_dropped[reason] + 1);
                assert_eq!(count.tx_dropped, counted.tx_dropped + 1);
            }
            _ => {
                assert!(passed);
                assert_eq!(drops.tx_audited[reason], before.tx_audited[reason] + 1);
                assert_eq!(
                    (count.tx_audited, count.tx_packets),
                    (counted.tx_audited + 1, counted.tx_packets + 1)
                );
            }
        }
    }
}

fn from(mac: [u8; 6], address: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    between(&v4(address, to, udp(4000, 5000)).frame(), mac, PEER_MAC)
}

#[test]
fn a_siblings_mac_is_the_siblings() {
    for pod_mode in [mode::ENFORCE, mode::AUDIT] {
        let scene = scene(pod_mode);
        scene.is_the_pods(&from(SIBLING_MAC, SIBLING, NEAR4), true);
        // Told or not, the sibling has done nothing.
        assert_eq!(scene.node.drops(scene.sibling.id).tx_dropped, [0; 32]);
        assert!(scene.node.passes(Hook::Egress, &from(POD_MAC, POD4, NEAR4)), "its own");
    }
}

/// What forwards for others, or was adopted without a cookie, is not proven to be anybody's.
#[test]
fn without_a_recorded_cookie_nothing_is_proven() {
    let mut scene = scene(mode::ENFORCE);
    for row in [
        Endpoint { cookie: 0, ..scene.sibling },
        Endpoint { cookie: 0, kind: kind::FOREIGN, mode: mode::OFF, ..scene.sibling },
    ] {
        scene.node.set(SIBLING_MAC, &row);
        assert!(scene.node.passes(Hook::Egress, &from(SIBLING_MAC, SIBLING, NEAR4)));
    }
    // On a NIC that serves attachments alone, a stranger's MAC is no excuse.
    scene.set_master(unknown_source::AUDIT, master_flags::DEDICATED);
    scene.is_the_pods(&from(SIBLING_MAC, SIBLING, NEAR4), true);
    scene.set_master(unknown_source::AUDIT, 0);
    scene.node.set(SIBLING_MAC, &scene.sibling.clone());
    scene.node.maps.set_cookie_owner(MASTER, scene.cookie, None).expect("no row");
    assert!(scene.node.passes(Hook::Egress, &from(SIBLING_MAC, SIBLING, NEAR4)), "nobody's cookie");
}

#[test]
fn a_pods_unknown_mac_is_dropped_whatever_the_master_says() {
    for unknown in [unknown_source::AUDIT, unknown_source::CLAIMED, unknown_source::DROP] {
        let mut scene = scene(mode::ENFORCE);
        scene.set_master(unknown, 0);
        scene.is_the_pods(&from(STRANGER_MAC, FAR4, FAR4), unknown != unknown_source::DROP);
        // Counted as the pod's, not as nobody's.
        if scene.told {
            assert_eq!(scene.node.master_counters().unknown_dropped, 0);
        }
    }
    let mut scene = scene(mode::AUDIT);
    scene.set_master(unknown_source::DROP, 0);
    scene.is_the_pods(&from(STRANGER_MAC, FAR4, FAR4), false);
}

#[test]
fn claimed_addresses_of_unknown_macs_are_dropped_and_others_pass() {
    let mut scene = scene(mode::ENFORCE);
    scene.set_master(unknown_source::CLAIMED, 0);
    scene.node.maps.set_cookie_owner(MASTER, scene.cookie, None).expect("no row");
    let reason = slot(DropReason::UnknownSource);
    let node_has = Ipv4Addr::new(10, 12, 34, 61);
    let claimed = claim::LOCAL | claim::HOST;
    scene.node.maps.set_claim(MASTER, IpAddr::from(node_has).into(), claimed).expect("claim");
    for (source, passes) in [(POD4, false), (NEAR4, false), (FAR4, true), (node_has, true)] {
        assert_eq!(scene.node.passes(Hook::Egress, &from(STRANGER_MAC, source, NEAR4)), passes, "{source}");
        let asks = arp(1, STRANGER_MAC, source, NEAR4);
        assert_eq!(scene.node.passes(Hook::Egress, &between(&asks, STRANGER_MAC, [0xff; 6])), passes);
    }
    let drops = scene.node.drops(0);
    assert_eq!((drops.tx_dropped[reason], drops.tx_audited[reason]), (4, 4));
    let totals = scene.node.master_counters();
    assert_eq!((totals.unknown_dropped, totals.unknown_passed), (4, 4));
}

/// A primary CNI moves a pod's frames to the NIC: the node's MAC, the pod's cookie, an address of another network.
#[test]
fn the_hosts_mac_with_a_pods_cookie_passes_unless_the_address_is_bound() {
    let mut scene = scene(mode::ENFORCE);
    assert!(scene.node.passes(Hook::Egress, &from(HOST_MAC, FAR4, FAR4)));
    assert!(scene.node.passes(Hook::Egress, &from(HOST_MAC, NEAR4, FAR4)), "an address that is nobody's");
    scene.is_the_pods(&from(HOST_MAC, POD4, FAR4), true);
    scene.is_the_pods(&from(HOST_MAC, SIBLING, FAR4), true);
    // With the node's own cookie the node wins: it may have got the address later.
    let row = Master { netns_cookie: scene.cookie, ..master(unknown_source::DROP) };
    scene.node.maps.set_master(MASTER, &row).expect("master row");
    assert!(scene.node.passes(Hook::Egress, &from(HOST_MAC, POD4, FAR4)));
    assert_eq!(scene.node.master_counters().host_dropped, 0);
}

#[test]
fn a_dedicated_master_takes_no_pods_frame_with_the_hosts_mac() {
    let mut scene = scene(mode::ENFORCE);
    scene.set_master(unknown_source::AUDIT, master_flags::DEDICATED);
    scene.is_the_pods(&from(HOST_MAC, FAR4, FAR4), true);
    let tcp = between(&v4(NEAR4, FAR4, tcp(1, 2)).frame(), HOST_MAC, PEER_MAC);
    scene.is_the_pods(&tcp, true);
    let row = Master { netns_cookie: scene.cookie, flags: master_flags::DEDICATED, ..master(0) };
    scene.node.maps.set_master(MASTER, &row).expect("master row");
    if scene.told {
        assert!(scene.node.passes(Hook::Egress, &from(HOST_MAC, POD4, FAR4)), "the node's own socket");
    } else {
        assert!(!scene.node.passes(Hook::Egress, &from(HOST_MAC, POD4, FAR4)), "the address tells");
        assert!(scene.node.passes(Hook::Egress, &from(HOST_MAC, FAR4, FAR4)));
    }
}

/// Behind the MACs a tag with this VLAN id.
fn tagged(frame: &[u8], vid: u16) -> Vec<u8> {
    let tag = [&[0x81, 0x00][..], &vid.to_be_bytes()].concat();
    [&frame[..12], &tag, &frame[12..]].concat()
}

#[test]
fn a_vlan_interface_on_a_master_has_its_own_endpoints() {
    const UPPER: u16 = 2;
    let mut scene = scene(mode::ENFORCE);
    let mac = [2, 0, 0, 0, 0, 0x33];
    let key = EndpointKey::new(UPPER, mac);
    let row = scene.node.maps.add_endpoint(key, Endpoint { cookie: 0, ..scene.pod }).expect("row");
    scene.node.maps.set_vlan(VlanKey { master: MASTER, vid: 100 }, Some(UPPER.into())).expect("vlan");
    scene.node.maps.set_vlan(VlanKey { master: MASTER, vid: 200 }, Some(0)).expect("vlan");
    scene.set_master(unknown_source::DROP, master_flags::VLANS);
    let good = from(mac, POD4, NEAR4);
    let passes = scene.node.passes(Hook::Egress, &tagged(&good, 200));
    assert_eq!(
        passes, !scene.told,
        "a tag that stands in the frame is the work of the pod, which has an endpoint of the master"
    );
    scene.node.maps.set_cookie_owner(MASTER, scene.cookie, None).expect("no row");
    let node = &scene.node;
    assert!(node.passes(Hook::Egress, &tagged(&good, 100)), "allowed in its own zone");
    assert_eq!(node.counters(row.id).tx_packets, 0, "it was counted at the VLAN interface");
    assert!(!node.passes(Hook::Egress, &tagged(&from(mac, POD4, FAR4), 100)), "judged again");
    assert!(!node.passes(Hook::Egress, &tagged(&from(mac, SIBLING, NEAR4), 100)), "sources too");
    assert!(!node.passes(Hook::Egress, &tagged(&tagged(&good, 5), 100)), "a second tag");
    assert_eq!(node.counters(row.id).tx_dropped, 3);
    assert!(node.passes(Hook::Egress, &tagged(&good, 200)), "nobody polices that one");
    assert!(!node.passes(Hook::Egress, &tagged(&good, 300)), "there is no such interface");
    assert!(!node.passes(Hook::Egress, &good), "nor is it an endpoint of the master itself");
    assert!(!node.passes(Hook::Egress, &tagged(&from(POD_MAC, POD4, NEAR4), 100)), "the master's own pod");
    assert_eq!(node.drops(scene.pod.id).tx_dropped[slot(DropReason::Vlan)], 1);
    // Options are read where they are: behind the tag.
    let alert = v4(POD4, Ipv4Addr::new(224, 0, 0, 22), crate::verdict::frames::igmp(0x16, NEAR4));
    let alert = between(&alert.options(&[0x94, 4, 0, 0]).frame(), mac, PEER_MAC);
    assert!(node.passes(Hook::Egress, &tagged(&alert, 100)));
}
