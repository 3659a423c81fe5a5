//! `acd`: an address that another interface on the network has, or is about to take, is not used.
//!
//! The far end of the master's cable is the other machine: what it hears is what stands on the wire.

#[path = "common/cni.rs"]
mod cni;
mod common;
#[path = "common/meta.rs"]
mod meta;
#[path = "common/trace.rs"]
mod trace;

use std::fs;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use cni::{Call, Site, assert_same, conf, mac_of, pool, zoned};
use common::wire::{BROADCAST, Mac, RawSocket, arp, ethernet, ethertype, marker};
use common::{NetNs, PATIENCE, eventually, veth};
use meta::MetaSite;
use serde_json::{Value, json};
use trace::{End, killed_at};

const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 100);
/// Another machine's MAC.
const THEIRS: Mac = [2, 0, 0, 0, 0, 0xbb];

/// A configuration with `acd`, with a zone in force or without one.
fn acd(policed: bool, keys: Value) -> Value {
    let mut keys = keys;
    keys.as_object_mut().unwrap().entry("acd").or_insert(json!(true));
    if policed { zoned(keys) } else { conf(keys) }
}

/// A site whose master is under police already, by an attachment that stays and has the address 10.9.0.99.
fn policed() -> (Site, NetNs) {
    let (site, pod) = (Site::new(), NetNs::new("first"));
    let conf = zoned(json!({"name": "first", "ipam": fixed(&["10.9.0.99/24"])}));
    site.ours("ADD", &conf).id("first").netns(&pod.path()).ok();
    (site, pod)
}

fn fixed(addresses: &[&str]) -> Value {
    let addresses: Vec<_> = addresses.iter().map(|address| json!({"address": address})).collect();
    json!({"type": "static", "addresses": addresses})
}

/// Has the zone of a network loaded, which stays: what an ADD changes is to be seen by itself.
fn load(site: &Site, conf: &Value) {
    site.ours("ADD", conf).ok();
    site.ours("DEL", conf).ok();
}

fn mac_on(netns: &NetNs, link: &str) -> String {
    let links: Value = serde_json::from_str(&netns.ip(&format!("-j link show {link}"))).unwrap();
    links[0]["address"].as_str().unwrap().to_owned()
}

/// The call must fail as a conflict, name what is to be known, and change nothing.
#[track_caller]
fn is_a_conflict(site: &Site, call: &Call, address: &str, mac: &str) {
    let before = site.snapshot();
    let said = call.fails(121, &format!("{address} is in use by {mac} on this network"));
    assert!(said.contains("(`ipam.perNode`)") && said.contains("out of the range"), "{said}");
    assert_same(&said, &before, &site.snapshot());
}

/// An ARP packet that was heard: operation, sender and target.
type Heard = (u8, Ipv4Addr, Ipv4Addr);

/// The far end of the cable.
struct Far<'a> {
    site: &'a Site,
    socket: RawSocket,
}

impl<'a> Far<'a> {
    fn new(site: &'a Site) -> Self {
        Self { site, socket: RawSocket::open(&site.outside, "wire") }
    }

    /// What came since the last look, by ARP and by whomever but the node itself.
    #[track_caller]
    fn heard(&self) -> Vec<Heard> {
        let node = RawSocket::open(&self.site.node, "eno1");
        let own = netpath::spec::Mac::parse("mac", &mac_on(&self.site.node, "eno1")).unwrap().bytes();
        let mark = marker();
        node.send(&ethernet(BROADCAST, own, 0x88b5, &mark)).unwrap();
        let mut found = Vec::new();
        for frame in self.socket.until(&mark) {
            if frame[12..14] != ethertype::ARP.to_be_bytes() || frame[6..12] == own {
                continue;
            }
            assert_eq!(frame[6..12], frame[22..28], "the MAC of the frame is that of the packet");
            let four = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&frame[at..at + 4]).unwrap());
            let (sender, target) = (four(28), four(38));
            if sender == NOBODY || sender == target {
                assert_eq!(frame[..6], BROADCAST, "{frame:?}");
            }
            found.push((frame[21], sender, target));
        }
        found
    }
}

const PROBE: Heard = (1, NOBODY, FIRST);
const ANNOUNCEMENT: Heard = (1, FIRST, FIRST);

#[test]
fn an_address_of_another_machine_is_not_used() {
    for zone in [true, false] {
        let (site, _first) = policed();
        let conf = acd(zone, json!({}));
        load(&site, &conf);
        site.outside.ip("addr add 10.9.0.101/24 dev wire");
        let wire = mac_on(&site.outside, "wire");
        is_a_conflict(&site, &site.ours("ADD", &conf), "10.9.0.101", &wire);
        assert_eq!(site.rows().len(), 1, "that of the first alone");
        // The runtime tries again, and host-local goes on to the next address.
        let result = site.ours("ADD", &conf).ok();
        assert_eq!(result["ips"][0]["address"], "10.9.0.102/24", "{zone}");
        site.pod.exec("ping -c1 -W2 10.9.0.1");
        let mut check = conf.clone();
        check["prevResult"] = result;
        let far = Far::new(&site);
        site.ours("CHECK", &check).ok();
        assert_eq!(far.heard(), [], "CHECK asks nobody");
        site.ours("DEL", &conf).ok();
        assert_eq!(site.rows().len(), 1);
    }
}

#[test]
fn in_every_mode_and_in_the_pod_itself() {
    for mode in ["bridge", "private", "vepa", "passthru"] {
        for zone in [true, false] {
            let site = Site::new();
            // A passthru interface takes the master from the node, and tolerates no other beside it.
            site.node.ip("addr flush dev eno1");
            let conf = acd(zone, json!({"mode": mode}));
            load(&site, &conf);
            site.outside.ip("addr add 10.9.0.101/24 dev wire");
            is_a_conflict(&site, &site.ours("ADD", &conf), "10.9.0.101", &mac_on(&site.outside, "wire"));
            site.ours("ADD", &conf).ok();
        }
    }
    let site = Site::new();
    veth(&site.pod, "eno9", &site.outside, "wire9");
    site.outside.ip("addr add 10.9.0.100/24 dev wire9");
    let conf = acd(false, json!({"master": "eno9", "linkInContainer": true}));
    site.ours("ADD", &conf).fails(121, &format!("in use by {}", mac_on(&site.outside, "wire9")));
    assert!(!site.pod.ip("link show").contains("net1"));
    site.ours("ADD", &conf).ok();
}

#[test]
fn an_address_that_is_free_is_probed_for_and_then_announced() {
    for zone in [true, false] {
        let (site, _first) = policed();
        let far = Far::new(&site);
        let result = site.ours("ADD", &acd(zone, json!({}))).ok();
        assert_eq!(far.heard(), [PROBE, PROBE, PROBE, ANNOUNCEMENT], "{zone}");
        assert_eq!(result["ips"][0]["address"], "10.9.0.100/24");
        if zone {
            let row = site.row_of(mac_of(&result));
            assert_eq!(row.v4[0], FIRST.octets());
        }
        site.pod.exec("ping -c1 -W2 10.9.0.1");
    }
}

#[test]
fn without_it_nobody_is_asked() {
    for keys in [json!({}), json!({"acd": false}), json!({"acd": null})] {
        let site = Site::new();
        site.outside.ip("addr add 10.9.0.100/24 dev wire");
        let far = Far::new(&site);
        site.ours("ADD", &conf(keys)).ok();
        let heard = far.heard();
        // The kernel announces what a link has when it goes up.
        assert_eq!(heard, [ANNOUNCEMENT]);
    }
}

#[test]
fn who_probes_at_the_same_time_is_heard() {
    let (site, _first) = policed();
    let far = RawSocket::open(&site.outside, "wire");
    let probe = ethernet(BROADCAST, THEIRS, ethertype::ARP, &arp(1, (THEIRS, NOBODY), ([0; 6], FIRST)));
    load(&site, &acd(true, json!({"ipam": fixed(&["10.9.0.100/24"])})));
    let before = site.snapshot();
    let done = AtomicBool::new(false);
    let said = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                far.send(&probe).unwrap();
                thread::park_timeout(Duration::from_millis(1));
            }
        });
        let outcome = site.ours("ADD", &acd(true, json!({"ipam": fixed(&["10.9.0.100/24"])}))).run();
        done.store(true, Ordering::Relaxed);
        assert_eq!((outcome.exit, &outcome.json["code"]), (1, &json!(121)), "{outcome:?}");
        outcome.said()
    });
    assert!(said.contains("10.9.0.100 is about to be taken by 02:00:00:00:00:bb too"), "{said}");
    assert_same(&said, &before, &site.snapshot());
}

#[test]
fn every_address_of_an_interface_is_probed_for() {
    for zone in [true, false] {
        let (site, _first) = policed();
        let ipam = fixed(&["10.9.0.70/24", "fd09::70/64", "10.9.0.71/24"]);
        let conf = acd(zone, json!({"ipam": ipam}));
        load(&site, &conf);
        site.outside.ip("addr add 10.9.0.71/24 dev wire");
        is_a_conflict(&site, &site.ours("ADD", &conf), "10.9.0.71", &mac_on(&site.outside, "wire"));
        site.outside.ip("addr del 10.9.0.71/24 dev wire");
        let far = Far::new(&site);
        site.ours("ADD", &conf).ok();
        let ends = [Ipv4Addr::new(10, 9, 0, 70), Ipv4Addr::new(10, 9, 0, 71)];
        let round = ends.map(|address| (1, NOBODY, address));
        let last = ends.map(|address| (1, address, address));
        assert_eq!(far.heard(), [round, round, round, last].concat());
        for address in ["10.9.0.70", "10.9.0.71", "fd09::70"] {
            assert!(site.pod.ip("addr show net1").contains(&format!("{address}/")));
        }
    }
}

/// Two nodes on one network, whose host-local gives the same addresses. The pod that has one is policed, and so is
/// the one that is to be told.
#[test]
fn two_nodes_with_one_range() {
    let (one, two) = (Site::new(), Site::new());
    for site in [&one, &two] {
        // The far ends become ports of switches.
        site.outside.ip("addr flush dev wire");
        site.outside.ip("link add br0 type bridge");
        site.outside.ip("link set wire master br0 up");
        site.outside.ip("link set br0 up");
    }
    veth(&one.outside, "trunk", &two.outside, "trunk");
    for site in [&one, &two] {
        site.outside.ip("link set trunk master br0");
    }
    two.node.ip("addr flush dev eno1");
    two.node.ip("addr add 10.9.0.6/24 dev eno1");
    let strict = json!({"zone": {"policy": "private", "mode": "enforce"}});
    let conf = acd(true, strict);
    let has = one.ours("ADD", &conf).ok();
    assert_eq!(has["ips"][0]["address"], "10.9.0.100/24");
    two.ours("ADD", &conf).fails(121, &format!("10.9.0.100 is in use by {} on this network", mac_of(&has)));
    assert!(two.leftovers().is_empty() && two.rows().is_empty(), "{:?}", two.leftovers());
    let next = two.ours("ADD", &conf).ok();
    assert_eq!(next["ips"][0]["address"], "10.9.0.101/24");
    one.pod.exec("ping -c1 -W2 10.9.0.101");
}

#[test]
fn whoever_could_answer_must_be_within_reach() {
    for zone in [true, false] {
        let (site, _first) = policed();
        let conf = acd(zone, json!({}));
        load(&site, &conf);
        site.outside.ip("link set wire down");
        eventually(PATIENCE, "the master has no carrier", || {
            site.node.ip("link show eno1").contains("state DOWN").then_some(())
        });
        let before = site.snapshot();
        let said = site.ours("ADD", &conf).fails(102, "`net1` has no carrier");
        assert!(said.contains("set its master up, connect it, or remove `acd`"), "{said}");
        assert_same(&said, &before, &site.snapshot());
        site.outside.ip("link set wire up");
        eventually(PATIENCE, "the carrier is back", || {
            site.node.ip("link show eno1").contains("state UP").then_some(())
        });
        site.ours("ADD", &conf).ok();
    }
}

#[test]
fn a_frame_that_is_not_sent_is_an_error() {
    let site = Site::new();
    // The master throws away whatever it is to send.
    let net = format!("--net={}", site.node.path().display());
    common::run(
        &[
            &["nsenter", &net, "tc"][..],
            &"qdisc add dev eno1 root pfifo limit 0".split(' ').collect::<Vec<_>>(),
        ]
        .concat(),
    );
    let before = site.snapshot();
    let said = site.ours("ADD", &acd(false, json!({}))).fails(102, "no ARP request for 10.9.0.100 leaves");
    assert!(said.contains("No buffer space"), "{said}");
    assert_same(&said, &before, &site.snapshot());
}

#[test]
fn of_ipv6_the_kernel_finds_duplicates() {
    let site = Site::new();
    site.outside.ip("addr add fd09::77/64 dev wire nodad");
    let ipam = json!({"type": "static", "addresses": [
        {"address": "10.9.0.77/24"}, {"address": "fd09::77/64", "gateway": "fd09::1"}]});
    for conf in [acd(false, json!({"ipam": ipam})), conf(json!({"ipam": ipam}))] {
        site.ours("ADD", &conf).fails(121, "address fd09::77 on `net1` is in use by another host");
        assert!(site.leftovers().is_empty() && !site.pod.ip("link show").contains("net1"));
    }
}

#[test]
fn it_is_true_or_false() {
    let site = Site::new();
    for (value, text) in
        [(json!("yes"), "acd `\"yes\"` is not true or false"), (json!(1), "acd `1` is not true")]
    {
        for mut conf in [conf(json!({})), zoned(json!({})), behind(&json!({}), &Value::Null)] {
            conf["acd"] = value.clone();
            let before = site.snapshot();
            let said = site.ours("ADD", &conf).fails(6, text);
            assert_same(&said, &before, &site.snapshot());
        }
    }
    // A configuration that was spoilt since keeps no pod from ending.
    site.ours("ADD", &acd(false, json!({}))).ok();
    site.ours("DEL", &conf(json!({"acd": "yes"}))).ok();
    assert!(site.leftovers().is_empty());
}

/// The `netpath` of a list behind the standard macvlan.
fn behind(result: &Value, zone: &Value) -> Value {
    let mut conf = json!({"cniVersion": "1.0.0", "name": "priv", "type": "netpath", "acd": true,
        "prevResult": result});
    if !zone.is_null() {
        conf["zone"] = zone.clone();
    }
    conf
}

#[test]
fn behind_the_standard_plugin_it_is_asked_before_netpath_lets_it_speak() {
    let mut ipam = pool();
    ipam["routes"] = json!([{"dst": "10.50.0.0/16"}]);
    let macvlan = conf(json!({"ipam": ipam}));
    for zone in [json!({"policy": "private", "local": ["10.9.0.0/24"]}), Value::Null] {
        let site = Site::new();
        let far = Far::new(&site);
        let result = site.standard("ADD", &macvlan).ok();
        let routes = site.pod.ip("-4 route show table all");
        assert_eq!(far.heard(), [ANNOUNCEMENT], "the standard plugin asks nobody");
        site.ours("ADD", &behind(&result, &zone)).ok();
        assert_eq!(far.heard(), [PROBE, PROBE, PROBE, ANNOUNCEMENT], "{zone}");
        assert_eq!(site.pod.ip("-4 route show table all"), routes);
        assert_eq!(site.pod.sysctl("net/ipv4/conf/net1/arp_notify"), "1");
        site.pod.exec("ping -c1 -W2 10.9.0.1");
        site.ours("DEL", &behind(&result, &zone)).ok();
        site.standard("DEL", &macvlan).ok();

        site.outside.ip("addr add 10.9.0.101/24 dev wire");
        let result = site.standard("ADD", &macvlan).ok();
        assert_eq!(result["ips"][0]["address"], "10.9.0.101/24");
        far.heard();
        let conf = behind(&result, &zone);
        let wire = mac_on(&site.outside, "wire");
        site.ours("ADD", &conf).fails(121, &format!("10.9.0.101 is in use by {wire} on this network"));
        assert!(far.heard().iter().all(|(_, sender, _)| *sender == NOBODY), "it is not announced");
        // It stays down until the runtime ends the list.
        assert!(site.pod.ip("link show net1").contains("state DOWN"));
        assert!(site.rows().is_empty());
        assert!(!site.leftovers().iter().any(|path| path.ends_with("c1-net1.json")), "no record");
        site.ours("DEL", &conf).ok();
        site.standard("DEL", &macvlan).ok();
        assert!(site.leftovers().is_empty(), "{:?}", site.leftovers());
    }
}

#[test]
fn whoever_stands_in_a_list_twice_is_asked_for_as_either_says() {
    let site = Site::new();
    let result = site.ours("ADD", &zoned(json!({}))).ok();
    let far = Far::new(&site);
    site.ours("ADD", &behind(&result, &Value::Null)).ok();
    assert_eq!(far.heard(), [PROBE; 3]);
    site.outside.ip("addr add 10.9.0.100/24 dev wire");
    let wire = mac_on(&site.outside, "wire");
    let conf = behind(&result, &Value::Null);
    site.ours("ADD", &conf).fails(121, &format!("10.9.0.100 is in use by {wire} on this network"));
    assert!(site.pod.ip("link show net1").contains("state DOWN"), "until the runtime ends the list");
}

#[test]
fn through_the_meta_plugin() {
    let meta = MetaSite::new();
    let macvlan = acd(true, json!({}));
    let mut standard = conf(json!({"ipam": pool()}));
    standard.as_object_mut().unwrap().remove("name");
    let netpath = json!({"type": "netpath", "acd": true,
        "zone": {"policy": "private", "local": ["10.9.0.0/24"]}});
    meta.nad("alone", macvlan);
    meta.nad("list", json!({"cniVersion": "1.0.0", "name": "list", "plugins": [standard, netpath]}));
    meta.site.outside.ip("addr add 10.9.0.100/24 dev wire");
    let wire = mac_on(&meta.site.outside, "wire");
    for name in ["alone", "list"] {
        let conf = meta.conf(name, json!({}));
        let said = meta.call("ADD", &conf).fails(121, &format!("10.9.0.100 is in use by {wire}"));
        assert!(said.contains(name), "{said}");
        assert!(!meta.links().contains(&"net1".to_owned()));
        assert!(meta.site.rows().is_empty());
        assert!(!meta.remembered().iter().any(|path| path.contains("10.9.0.")), "{:?}", meta.remembered());
        let far = Far::new(&meta.site);
        meta.call("ADD", &conf).ok();
        let addresses = meta.site.pod.ip("addr show net1");
        assert!(addresses.contains("10.9.0.101/24"), "{addresses}");
        let probes = far.heard().iter().filter(|(_, sender, _)| *sender == NOBODY).count();
        assert_eq!(probes, 3, "{name}");
        meta.call("DEL", &conf).ok();
        // The pool of the next one begins anew.
        fs::remove_dir_all(meta.site.root.join("var/lib/cni/networks")).unwrap();
    }
}

/// Killed before each of its effects in turn. Whatever that is, the address is on the interface only after the third
/// probe, and nothing but an announcement names it before.
#[test]
fn killed_at_any_moment() {
    for zone in [true, false] {
        let (site, _first) = policed();
        let conf = acd(zone, json!({}));
        load(&site, &conf);
        let before = site.snapshot();
        let far = Far::new(&site);
        let mut seen = Vec::new();
        for n in 1.. {
            let end = killed_at(&site.ours("ADD", &conf), n);
            let heard = far.heard();
            let links = site.pod.ip("-o -4 addr show");
            let has_address = links.contains("net1");
            let probes = heard.iter().filter(|(_, sender, _)| *sender == NOBODY).count();
            let what = format!("{n}: {end:?}: {heard:?}: {links}");
            assert!(!has_address || probes == 3, "{what}");
            assert!(heard.len() == probes || has_address, "announced: {what}");
            seen.push(probes);
            site.ours("DEL", &conf).ok();
            assert_same(&what, &before, &site.snapshot());
            if let End::Exited { status, stdout, effects } = end {
                assert_eq!((status, heard.len()), (0, 4), "{stdout}");
                assert!(20 < effects, "only {effects} effects were seen");
                break;
            }
        }
        // It was killed while it probed as well.
        for probes in 0..=3 {
            assert!(seen.contains(&probes), "{probes} of {seen:?}");
        }
    }
}
