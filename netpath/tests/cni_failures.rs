//! ADD under each step that can fail: links, addresses, routes, hooks, files, maps and records stay as they were.

#[path = "common/cni.rs"]
mod cni;
mod common;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use cni::{Call, OURS, Site, assert_same, conf, pool, zoned};
use common::{NetNs, run};
use netpath::root::Root;
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};

/// The call must fail, and nothing of the site may be different afterwards.
#[track_caller]
fn leaves_nothing(site: &Site, call: &Call, code: u32, text: &str) {
    let before = site.snapshot();
    let said = call.fails(code, text);
    assert_same(&said, &before, &site.snapshot());
}

/// A site whose master is under police already, by an attachment that stays.
fn policed() -> (Site, NetNs) {
    let (site, pod) = (Site::new(), NetNs::new("first"));
    site.ours("ADD", &zoned(json!({}))).id("first").netns(&pod.path()).ok();
    (site, pod)
}

fn fixed(addresses: &[&str]) -> Value {
    let addresses: Vec<_> = addresses.iter().map(|address| json!({"address": address})).collect();
    json!({"type": "static", "addresses": addresses})
}

/// Each on a node that has loaded nothing yet, and on one that has.
#[track_caller]
fn both_ways(conf: &Value, args: &str, code: u32, text: &str) {
    let fresh = Site::new();
    leaves_nothing(&fresh, &fresh.ours("ADD", conf).args(args), code, text);
    assert!(fresh.maps().is_none());
    let (site, _first) = policed();
    leaves_nothing(&site, &site.ours("ADD", conf).args(args), code, text);
}

#[test]
fn the_link() {
    let site = Site::new();
    site.pod.ip("link add net1 type bridge");
    leaves_nothing(&site, &site.ours("ADD", &zoned(json!({}))), 102, "already exists");
    both_ways(&zoned(json!({"master": "eno9"})), "", 101, "no link `eno9`");
    both_ways(&zoned(json!({"mtu": 9000})), "", 7, "9000");
    let (site, _first) = policed();
    // There can be no passthru beside another macvlan.
    site.node.ip("addr flush dev eno1");
    leaves_nothing(&site, &site.ours("ADD", &zoned(json!({"mode": "passthru"}))), 102, "passthru");
}

#[test]
fn the_addresses() {
    let mut small = pool();
    small["rangeEnd"] = json!("10.9.0.100");
    let (site, _first) = policed();
    leaves_nothing(
        &site,
        &site.ours("ADD", &zoned(json!({"ipam": small}))),
        120,
        "no IP addresses available",
    );
    both_ways(
        &zoned(json!({"ipam": {"type": "nonesuch"}, "zone": {"local": ["10.9.0.0/24"]}})),
        "",
        123,
        "nonesuch",
    );
    both_ways(
        &zoned(json!({"ipam": fixed(&[]), "zone": {"local": ["10.9.0.0/24"]}})),
        "",
        120,
        "missing IP config",
    );
    let many = ["10.9.0.71/24", "10.9.0.72/24", "10.9.0.73/24", "10.9.0.74/24", "10.9.0.75/24"];
    both_ways(&zoned(json!({"ipam": fixed(&many)})), "", 131, "5 IPv4 addresses");
    for (address, text) in [
        ("10.9.0.5/24", "the node's own, on `eno1`"),
        ("10.9.0.0/24", "the address of the network itself"),
        ("10.9.0.255/24", "the broadcast address of the network"),
        ("224.0.0.7/24", "a multicast address"),
    ] {
        both_ways(&zoned(json!({"ipam": fixed(&[address])})), "", 121, text);
    }
    let mut gateway = fixed(&["10.9.0.1/24"]);
    gateway["addresses"][0]["gateway"] = json!("10.9.0.1");
    both_ways(&zoned(json!({"ipam": gateway})), "", 121, "is its own gateway");
    let subnet = json!({"type": "host-local", "subnet": "10.9.0.0/24"});
    both_ways(&zoned(json!({"ipam": subnet})), "IP=10.9.0.1", 121, "gateway");
    both_ways(&zoned(json!({})), "IP=10.9.0.9", 120, "10.9.0.9");
    // IPv6 on a link that is too small for it, a route nobody can reach: found when the address is there already.
    both_ways(&zoned(json!({"mtu": 1000, "ipam": fixed(&["fd09::7/64"])})), "", 7, "1280");
    let mut far = fixed(&["10.9.0.7/24"]);
    far["routes"] = json!([{"dst": "10.50.0.0/16", "gw": "10.77.0.1"}]);
    let (site, _first) = policed();
    leaves_nothing(
        &site,
        &site.ours("ADD", &zoned(json!({"ipam": far}))),
        102,
        "has the gateway in its network",
    );
    far["routes"] = json!([{"dst": "10.50.0.0/16", "gw": "fd09::1"}]);
    leaves_nothing(&site, &site.ours("ADD", &zoned(json!({"ipam": far}))), 7, "other address family");
}

#[test]
fn an_address_that_a_neighbour_has() {
    let (site, first) = policed();
    let conf = zoned(json!({"name": "other", "ipam": fixed(&["10.9.0.100/24"])}));
    leaves_nothing(&site, &site.ours("ADD", &conf), 121, "is that of container first (net1)");
    // From a pool another one is taken.
    let result = site.ours("ADD", &zoned(json!({"name": "other"}))).ok();
    assert_eq!(result["ips"][0]["address"], "10.9.0.101/24");
    site.ours("DEL", &zoned(json!({"name": "other"}))).ok();
    // Its sandbox is gone, its DEL comes later: the address is free, and that DEL takes nothing away.
    let path = first.path();
    drop(first);
    site.ours("ADD", &conf).ok();
    site.ours("DEL", &zoned(json!({}))).id("first").netns(&path).ok();
    assert_eq!(site.rows().len(), 1);
}

#[test]
fn a_mac_that_somebody_has() {
    let (site, first) = policed();
    let eno1: Value = serde_json::from_str(&site.node.ip("-j link show eno1")).unwrap();
    let own = eno1[0]["address"].as_str().unwrap().to_owned();
    let with = |mac: &str| zoned(json!({"mac": mac}));
    // Its row would judge the node's own frames.
    leaves_nothing(&site, &site.ours("ADD", &with(&own)), 131, "that of the node itself");
    let links: Value = serde_json::from_str(&first.ip("-j link show net1")).unwrap();
    let taken = links[0]["address"].as_str().unwrap();
    leaves_nothing(&site, &site.ours("ADD", &with(taken)), 131, "that of container first (net1)");

    // Somebody else's macvlan, which was there before the programs and has a row that lets it pass.
    let (site, vm) = (Site::new(), NetNs::new("vm"));
    site.node.ip(&format!(
        "link add vm0 link eno1 netns {} address 02:00:00:00:00:aa type macvlan mode bridge",
        vm.name()
    ));
    vm.ip("link set vm0 up");
    site.ours("ADD", &zoned(json!({}))).id("first").ifname("net9").ok();
    assert_eq!(site.maps().unwrap().endpoints().unwrap().len(), 2);
    leaves_nothing(
        &site,
        &site.ours("ADD", &with("02:00:00:00:00:aa")),
        131,
        "another interface of this node",
    );
}

#[test]
fn a_mac_that_a_host_of_the_network_has() {
    let (site, _first) = policed();
    for neighbour in [
        "10.9.0.1 lladdr 02:00:00:00:00:fe nud stale",
        "10.9.0.77 lladdr 02:00:00:00:00:77 nud reachable",
        "fe80::77 lladdr 02:00:00:00:00:77 nud reachable",
        "10.9.0.80 lladdr 02:00:00:00:00:80 nud permanent",
        "10.9.0.78 lladdr 02:00:00:00:00:78 nud stale",
        "fe80::fd lladdr 02:00:00:00:00:fd router",
    ] {
        site.node.ip(&format!("neigh add {neighbour} dev eno1"));
    }
    let with = |mac: &str, ip: &str| zoned(json!({"name": "other", "mac": mac, "ipam": fixed(&[ip])}));
    // Siblings would send it what is for the gateway.
    let gateway = with("02:00:00:00:00:fe", "10.9.0.70/24");
    leaves_nothing(&site, &site.ours("ADD", &gateway), 131, "is that of 10.9.0.1 on `eno1`");
    let router = with("02:00:00:00:00:fd", "10.9.0.70/24");
    leaves_nothing(&site, &site.ours("ADD", &router), 131, "is that of fe80::fd on `eno1`");
    // Another pod's, or its own of another address.
    let other = with("02:00:00:00:00:77", "10.9.0.70/24");
    leaves_nothing(&site, &site.ours("ADD", &other), 131, "ip neighbour del 10.9.0.77 dev eno1");
    // With the gateway's address it is no better.
    let both = with("02:00:00:00:00:fe", "10.9.0.1/24");
    leaves_nothing(&site, &site.ours("ADD", &both), 131, "is that of 10.9.0.1 on `eno1`");
    // Whom an administrator wrote down is not to be had by asking for the address as well.
    for ip in ["10.9.0.70/24", "10.9.0.80/24"] {
        let written = with("02:00:00:00:00:80", ip);
        leaves_nothing(&site, &site.ours("ADD", &written), 131, "ip neighbour del 10.9.0.80 dev eno1");
    }
    // The pod itself was met when it ran elsewhere, with this address or, long ago, with another one.
    for (mac, ip) in [("02:00:00:00:00:77", "10.9.0.77/24"), ("02:00:00:00:00:78", "10.9.0.79/24")] {
        site.ours("ADD", &with(mac, ip)).ok();
        site.ours("DEL", &with(mac, ip)).ok();
    }
}

#[test]
fn the_zone() {
    for (zone, text) in [
        (json!({"policy": "private", "allw": []}), "allw"),
        (json!({"policy": "private", "local": ["10.9.0.0/33"]}), "zone.local"),
        (json!({"policy": "public"}), "zone.policy"),
    ] {
        both_ways(&zoned(json!({"zone": zone})), "", 7, text);
    }
    both_ways(&zoned(json!({"ipam": {}})), "", 7, "zone.local");
    let site = Site::new();
    site.pod.ip("link add eth7 type veth peer name eth7x");
    let inside = zoned(json!({"master": "eth7", "linkInContainer": true}));
    leaves_nothing(&site, &site.ours("ADD", &inside), 7, "linkInContainer");
    both_ways(
        &zoned(json!({"cniVersion": "0.2.0", "ipam": {}, "zone": {"local": ["10.9.0.0/24"]}})),
        "",
        1,
        "0.2.0",
    );
}

#[test]
fn the_node_forbids_or_cannot() {
    type Spoil = fn(&Site);
    let spoilt: [(&str, u32, &str, Spoil); 5] = [
        ("disabled", 130, "disable", |site| site.write(&site.root.disable(), "")),
        ("masters.json", 7, "masters.json", |site| site.masters("{")),
        ("settings.json", 7, "settings.json", |site| site.write(&site.root.settings(), r#"{"endpoint": 1}"#)),
        ("no bpffs", 130, "sys/fs/bpf", |site| site.write(&site.root.bpffs(), "a file")),
        ("no state", 5, "netpath", |site| site.write(&site.root.join("var/lib/netpath"), "a file")),
    ];
    for (name, code, text, spoil) in spoilt {
        let site = Site::new();
        spoil(&site);
        let before = site.snapshot();
        let said = site.ours("ADD", &zoned(json!({}))).fails(code, text);
        assert_same(&format!("{name}: {said}"), &before, &site.snapshot());
    }
    // Without a zone a disabled data path is nobody's business.
    let site = Site::new();
    site.write(&site.root.disable(), "");
    site.ours("ADD", &conf(json!({}))).ok();
}

#[test]
fn a_map_that_is_full() {
    let site = Site::new();
    site.write(&site.root.settings(), r#"{"endpoints": 1}"#);
    let first = NetNs::new("first");
    site.ours("ADD", &zoned(json!({}))).id("first").netns(&first.path()).ok();
    leaves_nothing(&site, &site.ours("ADD", &zoned(json!({}))), 130, "raise `endpoints`");
    site.ours("DEL", &zoned(json!({}))).id("first").netns(&first.path()).ok();
    let maps = site.maps().unwrap();
    assert!(maps.cookie_owners().unwrap().is_empty(), "what told the pod's frames from others' went with it");
    site.ours("ADD", &zoned(json!({}))).ok();
}

/// The file system of a second root's pins; its programs are gone with it.
struct Mounted<'a>(&'a Root);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        // Not asserted: a panic while another unwinds would hide it.
        let _ = std::process::Command::new("umount").arg(self.0.bpffs()).status();
    }
}

/// Another root on the same node is somebody else: it has its programs on the NIC, XDP too.
#[test]
fn another_xdp_program() {
    let site = Site::new();
    let other = Root::new(site.root.join("other"));
    let masters = r#"{"eno1": {"xdp": "native"}}"#;
    site.write(&other.masters(), masters);
    let net = format!("--net={}", site.node.path().display());
    run(&["nsenter", &net, OURS, "--root", other.path().to_str().unwrap(), "attach", "eno1"]);
    let mounted = Mounted(&other);

    site.masters(masters);
    // The file system of the other root's pins is no place to look for files in.
    let mut before = site.snapshot();
    let said = site.ours("ADD", &zoned(json!({}))).fails(130, "another XDP program is attached");
    let mut after = site.snapshot();
    for look in [&mut before, &mut after] {
        look.retain(|key, _| !key.starts_with("file other"));
    }
    assert_same(&said, &before, &after);
    assert!(site.maps().is_none());
    drop(mounted);
    site.ours("ADD", &zoned(json!({}))).ok();
    assert!(site.node.ip("link show eno1").contains("xdp"));
}

#[test]
fn the_lock_is_held() {
    let (site, _first) = policed();
    let file = File::options().write(true).open(site.root.lock()).unwrap();
    let held = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error).unwrap();
    fs::write(site.root.lock(), format!("{}\n", std::process::id())).unwrap();
    let start = Instant::now();
    let before = site.snapshot();
    let said =
        site.ours("ADD", &zoned(json!({}))).fails(11, &format!("process {} holds", std::process::id()));
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_same(&said, &before, &site.snapshot());
    // Who asks for nothing of the data path does not wait for it.
    site.second_master();
    let start = Instant::now();
    site.ours("ADD", &conf(json!({"master": "eno2"}))).ok();
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    drop(held);
}

fn script(dir: &Path, kind: &str, text: &str) {
    let file = dir.join(kind);
    fs::write(&file, format!("#!/bin/sh\ncat > /dev/null\n{text}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn an_executed_ipam_plugin() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().display();
    let note = format!("echo $CNI_COMMAND >> {at}/commands");
    script(
        dir.path(),
        "failing",
        &format!(
            "{note}; [ $CNI_COMMAND = DEL ] || {{ echo '{{\"code\": 142, \"msg\": \"no lease\"}}'; exit 1; }}"
        ),
    );
    script(
        dir.path(),
        "own",
        &format!(
            "{note}; [ $CNI_COMMAND = DEL ] || echo '{{\"cniVersion\": \"1.0.0\", \"ips\": [{{\"address\": \"10.9.0.5/24\"}}]}}'"
        ),
    );
    script(
        dir.path(),
        "none",
        &format!("{note}; [ $CNI_COMMAND = DEL ] || echo '{{\"cniVersion\": \"1.0.0\"}}'"),
    );
    script(
        dir.path(),
        "dhcp",
        &format!(
            "{note}; [ $CNI_COMMAND = DEL ] || {{ nsenter --net=$CNI_NETNS ip link set net1 up; exit 1; }}"
        ),
    );
    for (kind, code, text) in [
        ("failing", 142, "no lease"),
        ("own", 121, "the node's own"),
        ("none", 120, "missing IP config"),
        ("dhcp", 123, "dhcp"),
    ] {
        let zone = json!({"policy": "private", "local": ["10.9.0.0/24"]});
        let conf = zoned(json!({"ipam": {"type": kind}, "zone": zone}));
        let (site, _first) = policed();
        let call = site.ours("ADD", &conf).env("CNI_PATH", dir.path().to_str().unwrap());
        let before = site.snapshot();
        let said = call.fails(code, text);
        let mut after = site.snapshot();
        // Zones stay for the next pod of their network.
        after.insert("zones".to_owned(), before["zones"].clone());
        assert_same(&format!("{kind}: {said}"), &before, &after);
        assert_eq!(fs::read_to_string(dir.path().join("commands")).unwrap(), "ADD\nDEL\n", "{kind}");
        fs::remove_file(dir.path().join("commands")).unwrap();
    }
}

/// IPv6 was off in the sandbox: an ADD that fails afterwards switches it off again.
#[test]
fn settings_of_other_links() {
    let site = Site::new();
    site.pod.set_sysctl("net/ipv6/conf/lo/disable_ipv6", "1");
    let mut ipam = fixed(&["fd09::7/64"]);
    ipam["routes"] = json!([{"dst": "fd50::/64", "gw": "fd77::1"}]);
    leaves_nothing(&site, &site.ours("ADD", &conf(json!({"ipam": ipam}))), 102, "fd50::/64");
    site.ours("ADD", &conf(json!({"ipam": fixed(&["fd09::7/64"])}))).ok();
    assert_eq!(site.pod.sysctl("net/ipv6/conf/lo/disable_ipv6"), "0");
}

/// What stands in the pod already is not touched by an ADD that fails in the middle.
#[test]
fn the_pods_own_network() {
    let site = Site::new();
    site.pod.ip("link add eth0 type veth peer name eth0x");
    for link in ["eth0", "eth0x"] {
        site.pod.ip(&format!("link set {link} addrgenmode none"));
    }
    site.pod.ip("link set eth0 up");
    site.pod.ip("addr add 10.244.1.5/24 dev eth0");
    site.pod.ip("route add default via 10.244.1.1 dev eth0");
    run(&["ip", "-n", site.pod.name(), "link", "set", "eth0x", "up"]);
    let mut far = pool();
    far["routes"] = json!([{"dst": "0.0.0.0/0"}, {"dst": "10.50.0.0/16", "gw": "10.77.0.1"}]);
    leaves_nothing(&site, &site.ours("ADD", &conf(json!({"ipam": far}))), 102, "10.50.0.0/16");
}
