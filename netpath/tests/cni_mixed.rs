//! The plugin and the standard one in turn for one attachment, the plugin behind the standard one in a list, and
//! DEL in all the circumstances in which a runtime calls it.

#[path = "common/cni.rs"]
mod cni;
mod common;

use std::fs;
use std::net::Ipv4Addr;

use cni::{Site, Whose, conf, mac_of, pool, zoned};
use common::{NetNs, run};
use netpath::kernel::bpf::maps::Maps;
use netpath_ebpf::abi::{endpoint_flags, kind, mode};
use serde_json::{Value, json};

#[track_caller]
fn has_no_net1(pod: &NetNs) {
    let links = pod.ip("-j link show");
    assert!(!links.contains("net1"), "{links}");
}

#[test]
fn one_adds_and_the_other_deletes() {
    for (adds, deletes) in [(Whose::Ours, Whose::Standard), (Whose::Standard, Whose::Ours)] {
        let site = Site::new();
        let first = site.call(adds, "ADD", &conf(json!({}))).ok();
        assert_eq!(first["ips"][0]["address"], "10.9.0.100/24");
        let busy = site.pod.path();
        // One directory for both: the second one sees what the first reserved.
        let other = NetNs::new("other");
        let second = site.call(deletes, "ADD", &conf(json!({}))).id("c2").netns(&other.path()).ok();
        assert_eq!(second["ips"][0]["address"], "10.9.0.101/24", "{adds:?}");
        let mut check = conf(json!({}));
        check["prevResult"] = first;
        site.call(deletes, "CHECK", &check).ok();
        site.call(deletes, "DEL", &conf(json!({}))).netns(&busy).ok();
        site.call(adds, "DEL", &conf(json!({}))).id("c2").netns(&other.path()).ok();
        has_no_net1(&site.pod);
        has_no_net1(&other);
        // A record that the standard plugin does not know of is ended by the next DEL or GC.
        for id in ["c1", "c2"] {
            site.ours("DEL", &conf(json!({}))).id(id).ok();
        }
        assert!(site.leftovers().is_empty(), "{adds:?}: {:?}", site.leftovers());
    }
}

#[test]
fn del_comes_again_without_a_namespace() {
    let site = Site::new();
    let conf = zoned(json!({}));
    site.ours("ADD", &conf).ok();
    assert_eq!(site.rows().len(), 1);
    site.ours("DEL", &conf).ok();
    has_no_net1(&site.pod);
    assert!(site.rows().is_empty());
    for _ in 0..3 {
        assert_eq!(site.ours("DEL", &conf).env("CNI_NETNS", "").run().stdout, "");
        site.ours("DEL", &conf).env("CNI_NETNS", "").ok();
        site.ours("DEL", &conf).without("CNI_NETNS").ok();
        site.ours("DEL", &conf).ok();
    }
    assert!(site.leftovers().is_empty(), "{:?}", site.leftovers());
}

#[test]
fn del_after_the_namespace_went() {
    let site = Site::new();
    let conf = zoned(json!({}));
    for forget in [false, true] {
        let pod = NetNs::new("short");
        site.ours("ADD", &conf).netns(&pod.path()).ok();
        let path = pod.path();
        drop(pod);
        let del = site.ours("DEL", &conf).netns(&path);
        if forget {
            del.env("CNI_NETNS", "").ok()
        } else {
            del.ok()
        };
        assert!(site.rows().is_empty());
        assert!(site.leftovers().is_empty(), "{:?}", site.leftovers());
    }
}

#[test]
fn another_namespace_at_the_same_path_keeps_its_link() {
    let site = Site::new();
    let conf = conf(json!({}));
    site.ours("ADD", &conf).ok();
    let name = site.pod.name();
    run(&["ip", "netns", "del", name]);
    run(&["ip", "netns", "add", name]);
    site.pod.ip("link add net1 type bridge");
    site.ours("DEL", &conf).ok();
    assert!(site.pod.ip("link show").contains("net1"));
    assert!(site.leftovers().is_empty(), "{:?}", site.leftovers());
}

#[test]
fn del_without_or_with_a_spoilt_record() {
    type Spoil = fn(&str) -> Option<String>;
    let spoils: [(&str, Spoil); 5] = [
        ("removed", |_| None),
        ("empty", |_| Some(String::new())),
        ("torn", |text| Some(text[..text.len() / 2].to_owned())),
        ("no configuration", |text| Some(text.replace("\"host-local\"", "[]"))),
        ("no record", |_| Some("{}".to_owned())),
    ];
    for (name, spoil) in spoils {
        let site = Site::new();
        let conf = zoned(json!({}));
        site.ours("ADD", &conf).ok();
        let record = site.root.state().join("c1-net1.json");
        match spoil(&fs::read_to_string(&record).unwrap()) {
            Some(text) => fs::write(&record, text).unwrap(),
            None => fs::remove_file(&record).unwrap(),
        }
        site.ours("DEL", &conf).ok();
        has_no_net1(&site.pod);
        assert!(site.rows().is_empty(), "{name}: {:?}", site.rows());
        assert!(site.leftovers().is_empty(), "{name}: {:?}", site.leftovers());
    }
}

#[test]
fn del_with_a_configuration_that_was_broken_since() {
    let site = Site::new();
    let conf = zoned(json!({}));
    site.ours("ADD", &conf).ok();
    let mut broken = conf;
    broken["ipam"]["subnet"] = json!("10.9.0.0/33");
    let outcome = site.ours("DEL", &broken).run();
    assert_eq!(outcome.exit, 0, "{outcome:?}");
    has_no_net1(&site.pod);
    assert!(site.leftovers().is_empty(), "{:?}", site.leftovers());
}

#[test]
fn the_same_attachment_twice() {
    let site = Site::new();
    let conf = zoned(json!({}));
    site.ours("ADD", &conf).ok();
    let before = site.snapshot();
    site.ours("ADD", &conf).fails(102, "already exists");
    cni::assert_same("second ADD", &before, &site.snapshot());

    // The sandbox was made anew, and nobody called DEL for the old one.
    let name = site.pod.name();
    run(&["ip", "netns", "del", name]);
    run(&["ip", "netns", "add", name]);
    site.ours("ADD", &conf).fails(120, "duplicate allocation");
    assert!(site.root.state().join("c1-net1.json").exists());
    assert!(site.rows().is_empty());
    site.ours("DEL", &conf).ok();
    site.ours("ADD", &conf).ok();
    assert_eq!(site.rows().len(), 1);
    site.ours("DEL", &conf).ok();
    assert!(site.leftovers().is_empty() && site.rows().is_empty());
}

#[test]
fn a_macvlan_on_a_macvlan_is_policed_where_it_sends() {
    let site = Site::new();
    site.node.ip("link add mv0 link eno1 type macvlan mode bridge");
    site.node.ip("link set mv0 up");
    let result = site.ours("ADD", &zoned(json!({"master": "mv0"}))).ok();
    let masters = site.maps().unwrap().masters().unwrap();
    let eno1: Value = serde_json::from_str(&site.node.ip("-j link show eno1")).unwrap();
    assert_eq!(masters.len(), 1);
    assert_eq!(json!(masters[0].1.ifindex), eno1[0]["ifindex"]);
    assert_eq!(site.row_of(mac_of(&result)).mode, mode::ENFORCE);
    let mut check = zoned(json!({"master": "mv0"}));
    check["prevResult"] = result;
    site.ours("CHECK", &check).ok();
    let file = site.root.join("changed.json");
    site.write(&file, &zoned(json!({"master": "mv0", "zone": {"mode": "audit"}})).to_string());
    let said = site.tool(&format!("apply {}", file.display()));
    assert!(said.contains("priv on eno1: audit for 1 attachment"), "{said}");
    site.ours("DEL", &zoned(json!({"master": "mv0"}))).ok();
    assert!(site.rows().is_empty() && site.leftovers().is_empty());
}

#[test]
fn passthru_has_the_masters_address_in_its_row() {
    let site = Site::new();
    // What it asks for is not what it gets.
    let conf = zoned(json!({"mode": "passthru", "mac": "02:00:00:00:00:06"}));
    // The node sends with the same MAC, so its own frames would be judged.
    site.ours("ADD", &conf).fails(7, "from the node");
    site.node.ip("addr flush dev eno1");
    let result = site.ours("ADD", &conf).ok();
    let row = site.row_of(mac_of(&result));
    assert_ne!(row.flags & endpoint_flags::PASSTHRU, 0);
    assert_ne!(mac_of(&result).to_string(), "02:00:00:00:00:06");
    site.ours("DEL", &conf).ok();
    assert!(site.rows().is_empty() && site.leftovers().is_empty());
}

#[test]
fn what_a_row_says() {
    let site = Site::new();
    let ipam = json!({"type": "static", "addresses": [{"address": "10.9.0.77/24", "gateway": "10.9.0.1"},
        {"address": "fd09::77/64", "gateway": "fd09::1"}, {"address": "10.9.0.78/24", "gateway": "0.0.0.0"}]});
    let conf = zoned(json!({"ipam": ipam, "zone": {"policy": "private", "mode": "audit"}}));
    let result = site.ours("ADD", &conf).ok();
    let mac = mac_of(&result);
    let row = site.row_of(mac);
    assert_eq!(row.mode, mode::AUDIT);
    assert_eq!(row.v4[..2], [Ipv4Addr::new(10, 9, 0, 77).octets(), Ipv4Addr::new(10, 9, 0, 78).octets()]);
    assert_eq!((row.gateway_v4, row.flags), ([10, 9, 0, 1], 0));
    assert_eq!(row.link_local, mac.link_local_eui64().octets());
    let zone = site.maps().unwrap().zone(row.zone).unwrap().expect("its zone is loaded");
    assert!(zone.info.name.starts_with(b"priv"));
    site.ours("DEL", &conf).ok();
}

/// A list of the standard macvlan and `netpath`, as a runtime goes through it.
fn chained(zone: &Value) -> (Value, Value) {
    let mut ipam = pool();
    ipam["ranges"] = json!([[{"subnet": "fd09::/64", "rangeStart": "fd09::100", "gateway": "fd09::1"}]]);
    ipam["routes"] =
        json!([{"dst": "10.50.0.0/16"}, {"dst": "10.60.0.0/16", "gw": "10.9.0.9"}, {"dst": "fd50::/64"}]);
    let macvlan = conf(json!({"ipam": ipam}));
    let mut netpath = json!({"cniVersion": "1.0.0", "name": "priv", "type": "netpath"});
    if !zone.is_null() {
        netpath["zone"] = zone.clone();
    }
    (macvlan, netpath)
}

fn routes(site: &Site) -> (Value, Value) {
    let list = |words: &str| -> Value {
        let mut routes: Value = serde_json::from_str(&site.pod.ip(words)).unwrap();
        for route in routes.as_array_mut().unwrap() {
            // Of a default route the kernel says how it came to be known to be reachable.
            route.as_object_mut().unwrap().retain(|key, _| key != "pref" && key != "flags");
        }
        routes.as_array_mut().unwrap().sort_by_key(Value::to_string);
        routes
    };
    (list("-j -4 route show table all"), list("-j -6 route show table all"))
}

#[test]
fn behind_the_standard_plugin() {
    for zone in [json!({"policy": "private", "local": ["10.9.0.0/24", "fd09::/64"]}), Value::Null] {
        let site = Site::new();
        if zone.is_null() {
            // Without a zone it is counted where the administrator names the master.
            site.masters(r#"{"eno1": {}}"#);
        }
        let (macvlan, mut netpath) = chained(&zone);
        let mut result = site.standard("ADD", &macvlan).ok();
        // Debian's prints an empty one, later versions and ours do not.
        result.as_object_mut().unwrap().remove("dns");
        let before = (routes(&site), site.pod.ip("-j addr show net1"));
        netpath["prevResult"] = result.clone();
        assert_eq!(site.ours("ADD", &netpath).ok(), result);
        assert_eq!(routes(&site), before.0, "{zone}");
        for address in ["10.9.0.100", "fd09::100"] {
            let now = site.pod.ip("addr show net1");
            assert!(now.contains(&format!("{address}/")) && now.contains("state UP"), "{now}");
        }
        assert!(!site.pod.ip("addr show net1").contains("tentative"));
        let row = site.row_of(mac_of(&result));
        assert_eq!(row.mode, if zone.is_null() { mode::OFF } else { mode::ENFORCE });
        assert_eq!(row.v4[0], [10, 9, 0, 100]);
        site.outside.ip("addr add fd09::1/64 dev wire nodad");
        site.pod.exec("ping -c1 -W2 10.9.0.1");
        site.pod.exec("ping -c1 -W2 fd09::1");
        let rows = site.maps().unwrap().endpoints().unwrap();
        let foreign: Vec<_> = rows.into_iter().filter(|(_, row)| row.kind == kind::FOREIGN).collect();
        assert!(foreign.is_empty(), "{foreign:?}");
        site.ours("CHECK", &netpath).ok();

        site.ours("DEL", &netpath).ok();
        assert!(site.rows().is_empty());
        site.standard("DEL", &macvlan).ok();
        site.ours("DEL", &netpath).env("CNI_NETNS", "").ok();
        has_no_net1(&site.pod);
        assert!(site.leftovers().is_empty(), "{:?}", site.leftovers());
    }
}

/// Where our binary stands in the list in place of the standard one as well.
#[test]
fn behind_ourselves() {
    let zone = json!({"policy": "private", "local": ["10.9.0.0/24", "fd09::/64"]});
    for (first, second) in [(Value::Null, zone.clone()), (zone, Value::Null)] {
        let site = Site::new();
        let (mut macvlan, mut netpath) = chained(&second);
        if !first.is_null() {
            macvlan["zone"] = first;
        }
        netpath["prevResult"] = site.ours("ADD", &macvlan).ok();
        site.ours("ADD", &netpath).ok();
        assert_eq!(site.row_of(mac_of(&netpath["prevResult"])).mode, mode::ENFORCE);
        let mut check = macvlan.clone();
        check["prevResult"] = netpath["prevResult"].clone();
        site.ours("CHECK", &check).ok();
        site.ours("CHECK", &netpath).ok();
        site.ours("DEL", &netpath).ok();
        site.ours("DEL", &macvlan).ok();
        has_no_net1(&site.pod);
        assert!(site.rows().is_empty() && site.leftovers().is_empty(), "{:?}", site.leftovers());
    }
}

#[test]
fn a_policed_interface_is_silent_between_the_two_dels() {
    let site = Site::new();
    let (macvlan, mut netpath) = chained(&json!({"policy": "private", "local": ["10.9.0.0/24"]}));
    netpath["prevResult"] = site.standard("ADD", &macvlan).ok();
    site.ours("ADD", &netpath).ok();
    site.ours("DEL", &netpath).ok();
    assert!(site.pod.ip("link show net1").contains("state DOWN"), "{}", site.pod.ip("link show net1"));
}

#[test]
fn what_cannot_be_policed_behind_another_plugin() {
    let site = Site::new();
    let zone = json!({"policy": "private", "local": ["10.9.0.0/24"]});
    let (macvlan, netpath) = chained(&zone);
    site.ours("ADD", &netpath).fails(7, "without `clusterNetwork`, `delegates` or `prevResult`");
    let result = site.standard("ADD", &macvlan).ok();
    let with = |result: &Value, zone: &Value| {
        let mut conf = netpath.clone();
        conf["prevResult"] = result.clone();
        conf["zone"] = zone.clone();
        conf
    };
    site.ours("ADD", &with(&result, &json!({"policy": "private"}))).fails(7, "`zone.local` is missing");
    let mut other = result.clone();
    other["interfaces"][0]["name"] = json!("net7");
    site.ours("ADD", &with(&other, &zone)).fails(103, "names no interface `net1`");
    other["interfaces"][0]["name"] = json!("lo");
    site.ours("ADD", &with(&other, &zone)).ifname("lo").fails(103, "polices macvlan interfaces only");
    assert!(site.maps().is_none() && site.rows().is_empty());

    // A master in the pod has, by chance or intent, the index that another link has on the node.
    site.node.ip("link add eno7 index 77 type veth peer name eno7x");
    site.pod.ip("link add eth7 index 77 type veth peer name eth7x");
    site.pod.ip("link add inner link eth7 type macvlan mode bridge");
    let inner: Value = serde_json::from_str(&result.to_string().replace("\"net1\"", "\"inner\"")).unwrap();
    site.ours("ADD", &with(&inner, &zone)).ifname("inner").fails(101, "lower link of `inner`");
    assert!(Maps::open(&site.root.pins()).unwrap().is_none());
}
