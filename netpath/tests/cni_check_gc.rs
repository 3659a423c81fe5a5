//! CHECK finds whatever was broken, GC removes what is dead and nothing else, and the protocol around them.

#[path = "common/cni.rs"]
mod cni;
mod common;

use std::fs;

use cni::{Site, conf, mac_of, pool, zoned};
use common::NetNs;
use netpath_ebpf::abi::EndpointKey;
use serde_json::{Value, json};

fn with_routes() -> Value {
    let mut ipam = pool();
    ipam["ranges"] = json!([[{"subnet": "fd09::/64", "rangeStart": "fd09::100", "gateway": "fd09::1"}]]);
    ipam["routes"] = json!([{"dst": "10.50.0.0/16"}, {"dst": "10.60.0.0/16", "gw": "10.9.0.9"},
        {"dst": "10.70.0.0/16", "gw": "0.0.0.0"}, {"dst": "fd50::/64"}, {"dst": "0.0.0.0/0"}]);
    ipam
}

fn checked(conf: &Value, result: &Value) -> Value {
    let mut conf = conf.clone();
    conf["prevResult"] = result.clone();
    conf
}

#[test]
fn check_finds_what_was_broken() {
    type Break = fn(&Site);
    let breaks: [(&str, u32, &str, Break); 15] = [
        ("v4 address", 104, "address 10.9.0.100/24", |site| {
            drop(site.pod.ip("addr del 10.9.0.100/24 dev net1"));
        }),
        ("v6 address", 104, "address fd09::100/64", |site| {
            drop(site.pod.ip("addr del fd09::100/64 dev net1"));
        }),
        ("route", 104, "route to 10.50.0.0/16", |site| drop(site.pod.ip("route del 10.50.0.0/16"))),
        ("gateway", 104, "route to 10.60.0.0/16", |site| {
            site.pod.ip("route replace 10.60.0.0/16 via 10.9.0.8 dev net1");
        }),
        ("v6 route", 104, "route to fd50::/64", |site| drop(site.pod.ip("-6 route del fd50::/64"))),
        ("default route", 104, "route to 0.0.0.0/0", |site| drop(site.pod.ip("route del default"))),
        ("link gone", 102, "net1", |site| drop(site.pod.ip("link del net1"))),
        ("link of another kind", 104, "kind of `net1`", |site| {
            site.pod.ip("link del net1");
            site.pod.ip("link add net1 type bridge");
        }),
        ("mac", 104, "MAC of `net1`", |site| {
            site.pod.ip("link set net1 address 02:00:00:00:00:99");
        }),
        ("mode", 104, "mode of `net1`", |site| drop(site.pod.ip("link set net1 type macvlan mode private"))),
        ("reservation", 122, "10.9.0.100", |site| {
            fs::remove_file(site.root.host_local().join("priv/10.9.0.100")).unwrap();
        }),
        ("row", 132, "its row is missing", |site| {
            let mut maps = site.maps().unwrap();
            let (key, row) = site.rows()[0];
            maps.remove_endpoint(EndpointKey::new(key.master, key.mac), row.id).unwrap();
        }),
        ("zone", 132, "its zone is not loaded", |site| {
            site.maps().unwrap().remove_zone(site.rows()[0].1.zone).unwrap();
        }),
        ("program", 132, "a program is not attached", |site| {
            fs::remove_file(site.root.pins().join("links/1/egress")).unwrap();
        }),
        ("record", 104, "record of `net1`", |site| {
            fs::remove_file(site.root.state().join("c1-net1.json")).unwrap();
        }),
    ];
    for (name, code, text, spoil) in breaks {
        let site = Site::new();
        let conf = zoned(json!({"ipam": with_routes()}));
        let check = checked(&conf, &site.ours("ADD", &conf).ok());
        site.ours("CHECK", &check).ok();
        spoil(&site);
        let outcome = site.ours("CHECK", &check).run();
        let said = outcome.said();
        assert_eq!((outcome.exit, outcome.json["code"].as_u64()), (1, Some(code.into())), "{name}: {said}");
        assert!(said.contains(text), "{name}: `{text}` is not in: {said}");
    }
}

#[test]
fn check_finds_settings_that_were_changed() {
    let site = Site::new();
    let conf = zoned(json!({}));
    let check = checked(&conf, &site.ours("ADD", &conf).ok());
    for (key, good, bad) in [
        ("net/ipv4/conf/net1/drop_unicast_in_l2_multicast", "1", "0"),
        ("net/ipv6/conf/net1/drop_unicast_in_l2_multicast", "1", "0"),
        ("net/ipv6/conf/net1/accept_ra", "0", "1"),
        ("net/ipv6/conf/net1/autoconf", "0", "1"),
        ("net/ipv6/conf/net1/addr_gen_mode", "0", "1"),
    ] {
        site.pod.set_sysctl(key, bad);
        site.ours("CHECK", &check).fails(104, &format!("sysctl {key}: expected {good}, found {bad}"));
        site.pod.set_sysctl(key, good);
        site.ours("CHECK", &check).ok();
    }
}

/// A link's index says nothing without the namespace it is of.
#[test]
fn check_finds_a_master_in_another_namespace() {
    let site = Site::new();
    let conf = conf(json!({"ipam": {}, "mac": "02:00:00:00:00:07"}));
    let check = checked(&conf, &site.ours("ADD", &conf).ok());
    site.ours("CHECK", &check).ok();
    let eno1: Value = serde_json::from_str(&site.node.ip("-j link show eno1")).unwrap();
    site.pod.ip("link del net1");
    site.pod.ip(&format!("link add eth7 index {} type veth peer name eth7x", eno1[0]["ifindex"]));
    site.pod.ip("link add net1 link eth7 address 02:00:00:00:00:07 type macvlan mode bridge");
    site.ours("CHECK", &check).fails(104, "a link in another namespace");
}

#[test]
fn link_in_container() {
    let site = Site::new();
    site.pod.ip("link add eth7 type veth peer name eth7x");
    site.pod.ip("link set eth7 up");
    let conf = conf(json!({"master": "eth7", "linkInContainer": true, "bcqueuelen": 77}));
    let result = site.ours("ADD", &conf).ok();
    let link = site.pod.ip("-d link show net1");
    assert!(link.contains("net1@eth7") && link.contains("bcqueuelen 77"), "{link}");
    site.ours("CHECK", &checked(&conf, &result)).ok();
    site.ours("DEL", &conf).ok();
    assert!(site.leftovers().is_empty());
    // The same master is not on the node.
    let mut there = conf.clone();
    there["linkInContainer"] = json!(false);
    site.ours("ADD", &there).fails(101, "no link `eth7` on the node");
    let mut elsewhere = conf;
    elsewhere["master"] = json!("eno1");
    site.ours("ADD", &elsewhere).fails(101, "no link `eno1` in the pod");
}

#[test]
fn check_needs_a_result_and_a_version_that_has_it() {
    let site = Site::new();
    site.ours("ADD", &conf(json!({}))).ok();
    site.ours("CHECK", &conf(json!({}))).fails(7, "required prevResult missing");
    site.ours("CHECK", &conf(json!({"cniVersion": "0.3.1"}))).fails(1, "does not allow CHECK");
    site.ours("GC", &conf(json!({}))).fails(1, "does not allow GC");
    site.ours("STATUS", &conf(json!({}))).fails(1, "does not allow STATUS");
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let site = Site::new();
        let conf = conf(json!({"cniVersion": version, "ipam": with_routes()}));
        site.ours("CHECK", &checked(&conf, &site.ours("ADD", &conf).ok())).ok();
    }
}

fn gc(valid: &[(&str, &str)]) -> Value {
    let valid: Vec<_> =
        valid.iter().map(|(id, ifname)| json!({"containerID": id, "ifname": ifname})).collect();
    zoned(json!({"cniVersion": "1.1.0", "cni.dev/valid-attachments": valid}))
}

#[test]
fn gc_ends_the_dead_alone() {
    let site = Site::new();
    let conf = zoned(json!({"cniVersion": "1.1.0"}));
    let pods: Vec<_> = ["dead", "listed", "live"].map(NetNs::new).into();
    for (pod, id) in pods.iter().zip(["dead", "listed", "live"]) {
        site.ours("ADD", &conf).id(id).netns(&pod.path()).ok();
    }
    // Another network on the same directory's parent, dead too, and another runtime's address in ours.
    let other = NetNs::new("other");
    let mut plain = conf.clone();
    plain["name"] = json!("other");
    plain["ipam"]["rangeStart"] = json!("10.9.0.105");
    site.ours("ADD", &plain).id("other").netns(&other.path()).ok();
    site.write(&site.root.host_local().join("priv/10.9.0.109"), "theirs\r\nnet1");
    let mut pods = pods.into_iter();
    drop((pods.next(), pods.next(), other));

    let names = || {
        let mut names: Vec<_> = site
            .leftovers()
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    };
    let all = [
        "10.9.0.100",
        "10.9.0.101",
        "10.9.0.102",
        "10.9.0.105",
        "10.9.0.109",
        "dead-net1.json",
        "listed-net1.json",
        "live-net1.json",
        "other-net1.json",
    ];
    assert_eq!(names(), all);

    // Without a list nothing follows; with `disableGC` nothing is done.
    site.ours("GC", &conf).without("CNI_CONTAINERID").without("CNI_IFNAME").without("CNI_NETNS").ok();
    let mut disabled = gc(&[]);
    disabled["disableGC"] = json!(true);
    site.ours("GC", &disabled).ok();
    assert_eq!(names(), all);
    assert_eq!(site.rows().len(), 4);

    assert_eq!(site.ours("GC", &gc(&[("listed", "net1")])).run().stdout, "");
    let left: Vec<_> =
        all.into_iter().filter(|name| !["10.9.0.100", "dead-net1.json"].contains(name)).collect();
    assert_eq!(names(), left);
    assert_eq!(site.rows().len(), 3);
    // The other name of the list counts too.
    let mut older = gc(&[]);
    older["cni.dev/attachments"] = json!([{"containerID": "listed", "ifname": "net1"}]);
    site.ours("GC", &older).ok();
    assert_eq!(names(), left);
    // Not in the list, but its sandbox stands.
    site.ours("GC", &gc(&[])).ok();
    assert_eq!(names(), ["10.9.0.102", "10.9.0.105", "10.9.0.109", "live-net1.json", "other-net1.json"]);
    assert_eq!(site.rows().len(), 2);
}

/// A writer that was killed leaves a draft of its record; one that is at work is left alone.
#[test]
fn gc_sweeps_drafts_of_killed_writers() {
    let site = Site::new();
    let draft = |count: u32| site.root.state().join(format!(".0123456789abcdef-1-{count}"));
    for count in [1, 2] {
        site.write(&draft(count), "{");
    }
    // One is still being written.
    let file = fs::File::options().write(true).open(draft(2)).unwrap();
    let lock = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).unwrap();
    site.ours("GC", &gc(&[])).ok();
    assert_eq!(site.leftovers(), [std::path::PathBuf::from("var/lib/netpath/v1/.0123456789abcdef-1-2")]);
    drop(lock);
    site.ours("GC", &gc(&[])).ok();
    assert!(site.leftovers().is_empty(), "{:?}", site.leftovers());
}

#[test]
fn gc_ends_attachments_of_an_earlier_boot() {
    let site = Site::new();
    let conf = zoned(json!({"cniVersion": "1.1.0"}));
    site.ours("ADD", &conf).ok();
    let path = site.root.state().join("c1-net1.json");
    let mut record: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    record["boot_id"] = json!("00000000-0000-0000-0000-000000000000");
    fs::write(&path, record.to_string()).unwrap();
    site.ours("GC", &gc(&[])).ok();
    assert!(site.leftovers().is_empty(), "{:?}", site.leftovers());
}

#[test]
fn the_protocol() {
    let site = Site::new();
    let versions = json!(["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let outcome = site.ours("VERSION", &json!({"cniVersion": version})).run();
        assert_eq!(outcome.json, json!({"cniVersion": version, "supportedVersions": versions}));
    }
    // Even a caller that writes nothing is answered.
    assert_eq!(site.ours("VERSION", &json!({})).stdin("").run().json["supportedVersions"], versions);
    assert_eq!(site.ours("STATUS", &conf(json!({"cniVersion": "1.1.0"}))).run().stdout, "");
    // STATUS speaks for the node, not for a network's master.
    site.ours("STATUS", &conf(json!({"cniVersion": "1.1.0", "master": "none"}))).ok();
    site.write(&site.root.disable(), "");
    site.ours("STATUS", &zoned(json!({"cniVersion": "1.1.0"}))).ok();
    fs::remove_file(site.root.disable()).unwrap();

    let mut ipam = with_routes();
    ipam["routes"][0]["mtu"] = json!(1400);
    ipam["routes"][1]["priority"] = json!(77);
    ipam["routes"][2]["table"] = json!(1000);
    let conf = conf(json!({"cniVersion": "1.1.0", "ipam": ipam, "dns": {"domain": "a.b"}}));
    let outcome = site.ours("ADD", &conf).run();
    assert_eq!(outcome.json["cniVersion"], "1.1.0");
    assert_eq!(outcome.json["routes"][0], json!({"dst": "10.50.0.0/16", "mtu": 1400}));
    assert_eq!(outcome.json["routes"][1], json!({"dst": "10.60.0.0/16", "gw": "10.9.0.9", "priority": 77}));
    assert_eq!(outcome.json["dns"], json!({"domain": "a.b"}));
    assert!(
        outcome.stdout.starts_with("{\n    \"cniVersion\": \"1.1.0\",\n    \"interfaces\": [\n        {")
    );
    let routes = site.pod.ip("route show table all");
    assert!(routes.contains("10.50.0.0/16 via 10.9.0.1 dev net1 mtu 1400"), "{routes}");
    assert!(routes.contains("10.60.0.0/16 via 10.9.0.9 dev net1 metric 77"), "{routes}");
    assert!(routes.contains("10.70.0.0/16 dev net1 table 1000"), "{routes}");
    assert_eq!(mac_of(&outcome.json).to_string(), outcome.json["interfaces"][0]["mac"].as_str().unwrap());
    site.ours("CHECK", &checked(&conf, &outcome.json)).ok();

    // Errors go to stdout, in the version that was asked for.
    let failed = site.ours("ADD", &cni::conf(json!({"mode": "x", "cniVersion": "0.4.0"}))).run();
    assert_eq!(
        (failed.exit, &failed.json["cniVersion"], &failed.json["code"]),
        (1, &json!("0.4.0"), &json!(7))
    );
    let calls = [
        (site.ours("ADD", &conf).stdin("{"), 6, "not valid JSON"),
        (site.ours("ADD", &conf).without("CNI_IFNAME"), 4, "required env variables [CNI_IFNAME] missing"),
        (site.ours("ADD", &conf).ifname("a/b"), 4, "CNI_IFNAME"),
        (site.ours("ADD", &conf).id("../x"), 4, "CNI_CONTAINERID"),
        (site.ours("ADD", &conf).args("IP"), 4, "CNI_ARGS"),
        (site.ours("NONE", &conf), 4, "unknown CNI_COMMAND: NONE"),
        (site.ours("ADD", &cni::conf(json!({"cniVersion": "9.0.0"}))), 1, "9.0.0"),
        (site.ours("ADD", &cni::conf(json!({"name": null}))), 7, "name"),
        (site.ours("ADD", &cni::conf(json!({"type": "bridge"}))), 7, "netpath serves the types"),
        (site.ours("ADD", &conf).netns("/run/netns/none".as_ref()), 3, "/run/netns/none"),
        (site.ours("ADD", &conf).netns(&site.node.path()), 8, "the plugin itself runs in"),
        (site.ours("CHECK", &conf).netns(&site.node.path()), 8, "the plugin itself runs in"),
    ];
    for (call, code, text) in calls {
        call.fails(code, text);
    }
}
