//! The administrator's word on masters, and what reaches an executed IPAM plugin.

#[path = "common/cni.rs"]
mod cni;
mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use cni::{Site, conf, mac_of, zoned};
use netpath_ebpf::abi::{endpoint_flags, mode};
use serde_json::{Value, json};

const BOUND: &str =
    r#"{"eno1": {"zone": {"policy": "private", "deny": ["10.9.0.66/32"]}, "subnets": ["10.9.0.0/24"]}}"#;

#[test]
fn the_masters_zone_is_the_default() {
    let site = Site::new();
    site.masters(BOUND);
    let row = site.row_of(mac_of(&site.ours("ADD", &conf(json!({}))).ok()));
    assert_eq!(row.mode, mode::ENFORCE);
    let zone = site.maps().unwrap().zone(row.zone).unwrap().expect("loaded");
    let record: Value =
        serde_json::from_str(&fs::read_to_string(site.root.state().join("c1-net1.json")).unwrap()).unwrap();
    assert!(record["zone"]["compiled"].to_string().contains("10.9.0.66/32"), "{record}");
    assert!(zone.info.name.starts_with(b"priv"));
    site.ours("DEL", &conf(json!({}))).ok();
    assert!(site.rows().is_empty());
}

#[test]
fn what_goes_beyond_the_bound_is_refused() {
    let site = Site::new();
    site.masters(BOUND);
    let before = site.snapshot();
    let zone = |zone: Value| zoned(json!({"zone": zone}));
    let deny = json!(["10.9.0.66/32"]);
    for (conf, text) in [
        (zone(json!({"policy": "private", "deny": deny, "allow": ["10.0.0.0/8"]})), "zone.allow"),
        (zone(json!({"policy": "private", "deny": deny, "mode": "audit"})), "zone.mode"),
        (zone(json!({"policy": "private", "deny": deny, "mode": "off"})), "zone.mode"),
        (zone(json!({"policy": "private", "deny": deny, "local": ["10.8.0.0/24"]})), "zone.local"),
        (zone(json!({"policy": "private", "deny": deny, "alow": ["10.9.0.0/24"]})), "alow"),
    ] {
        let said = site.ours("ADD", &conf).fails(7, text);
        assert!(said.contains("eno1") || text == "alow", "{said}");
        cni::assert_same(text, &before, &site.snapshot());
    }
    // An address beyond `subnets`, by whatever way it is asked for.
    let ipam = json!({"type": "static", "addresses": [{"address": "10.8.0.7/24"}]});
    site.ours("ADD", &zoned(json!({"ipam": ipam}))).fails(7, "10.8.0.");
    cni::assert_same("address", &before, &site.snapshot());
    // No other name of the master, and no macvlan in between, leads around it.
    site.node.ip("link property add dev eno1 altname uplink");
    site.node.ip("link add mv0 link eno1 type macvlan mode bridge");
    for master in ["uplink", "mv0", ""] {
        let conf = zone(json!({"policy": "private", "deny": deny, "mode": "off"}));
        let mut conf = conf;
        conf["master"] = json!(master);
        site.ours("ADD", &conf).fails(7, "zone.mode");
        let mut plain = cni::conf(json!({"master": master}));
        plain["name"] = json!("plain");
        let row = site.row_of(mac_of(&site.ours("ADD", &plain).ok()));
        assert_eq!(row.mode, mode::ENFORCE, "{master}");
        site.ours("DEL", &plain).ok();
    }
}

/// In the pod a master of the node's name is not the node's, and the pod's own macvlan is no way around the zone.
#[test]
fn masters_in_the_pod() {
    let site = Site::new();
    site.masters(BOUND);
    site.pod.ip("link add eno1 type veth peer name eno1x");
    let inside = |master: &str| conf(json!({"name": "inside", "master": master, "linkInContainer": true}));
    site.ours("ADD", &inside("eno1")).ifname("net0").ok();
    assert!(site.rows().is_empty() && site.maps().is_none());

    site.ours("ADD", &conf(json!({}))).ok();
    let mut second = inside("net1");
    let result = site.ours("ADD", &second).ifname("net2").ok();
    let row = site.row_of(mac_of(&result));
    assert_eq!(row.mode, mode::ENFORCE);
    second["prevResult"] = result;
    site.ours("CHECK", &second).ifname("net2").ok();
    for ifname in ["net0", "net1", "net2"] {
        site.ours("DEL", &inside("net1")).ifname(ifname).ok();
    }
    assert!(site.rows().is_empty() && site.leftovers().is_empty());
}

#[test]
fn an_entry_by_alternative_name_binds_too() {
    let site = Site::new();
    site.node.ip("link property add dev eno1 altname uplink");
    site.masters(&BOUND.replace("eno1", "uplink"));
    let row = site.row_of(mac_of(&site.ours("ADD", &conf(json!({}))).ok()));
    assert_eq!(row.mode, mode::ENFORCE);
    site.ours("DEL", &conf(json!({}))).ok();
    site.masters(r#"{"eno1": {}, "uplink": {}}"#);
    site.ours("ADD", &conf(json!({}))).fails(7, "masters.json cannot be used");
}

#[test]
fn types_and_namespaces() {
    let site = Site::new();
    site.masters(r#"{"eno1": {"types": ["netpath"], "podNamespaces": ["team-a"]}}"#);
    let before = site.snapshot();
    let add = |namespace: &str| site.ours("ADD", &conf(json!({}))).args(namespace);
    add("K8S_POD_NAMESPACE=team-a;K8S_POD_NAME=web").fails(105, "allows no attachment of type `macvlan`");
    site.masters(r#"{"eno1": {"types": ["macvlan"], "podNamespaces": ["team-a"]}}"#);
    add("K8S_POD_NAMESPACE=team-b;K8S_POD_NAME=web").fails(105, "namespace `team-b`");
    add("").fails(105, "an unknown namespace");
    site.masters(r#"{"eno1": {"types": ["netpath"], "podNamespaces": ["team-a"]}}"#);
    cni::assert_same("refusals", &before, &site.snapshot());
    site.masters(r#"{"eno1": {"types": ["macvlan"], "podNamespaces": ["team-a"]}}"#);
    add("K8S_POD_NAMESPACE=team-a;K8S_POD_NAME=web").ok();
    site.ours("DEL", &conf(json!({}))).ok();
}

/// What stands chained behind a macvlan may be where macvlans may; a list may also name it alone.
#[test]
fn types_of_a_list() {
    for (types, is_allowed) in [("macvlan", true), ("netpath", true), ("ipvlan", false)] {
        let site = Site::new();
        let entry = json!({"eno1": {"zone": {"local": ["10.9.0.0/24"]}, "types": [types]}});
        site.masters(&entry.to_string());
        let mut netpath = json!({"cniVersion": "1.0.0", "name": "priv", "type": "netpath"});
        netpath["prevResult"] = site.standard("ADD", &conf(json!({}))).ok();
        let add = site.ours("ADD", &netpath);
        match is_allowed {
            true => assert_eq!(site.row_of(mac_of(&add.ok())).mode, mode::ENFORCE),
            false => drop(add.fails(105, "its `types` is `ipvlan`")),
        }
    }
}

/// On a policed network nobody gets out of the network's own ranges by asking.
#[test]
fn addresses_that_were_asked_for() {
    let site = Site::new();
    let before = site.snapshot();
    let own = json!({"type": "static", "addresses": [{"address": "10.9.0.70/24", "gateway": "10.9.0.1"}]});
    let none = json!({"type": "static"});
    let fake = Fake::new("fake", &ANSWER.replace("10.9.0.60", "10.9.1.60"));
    let local = json!({"policy": "private", "local": ["10.9.0.0/24"]});
    let outside = "is not in what the network itself names, `10.9.0.0/24`";
    for (ipam, asked, text) in [
        (&own, "10.8.0.7/24", outside),
        (&own, "10.9.1.7/16", outside),
        (&own, "fd09::7/64", outside),
        (&own, "10.9.0.1/24", "is the gateway of the network"),
        (&own, "10.9.0.255/16", "is the broadcast address of the network"),
        (&none, "10.8.0.7/24", outside),
        (&json!({"type": "fake"}), "10.9.1.60/24", outside),
    ] {
        let conf = zoned(json!({"ipam": ipam, "zone": local}));
        let mut annotated = conf.clone();
        annotated["runtimeConfig"] = json!({"ips": [asked]});
        let mut argued = conf.clone();
        argued["args"] = json!({"cni": {"ips": [asked]}});
        let add = |conf: &Value| site.ours("ADD", conf).env("CNI_PATH", fake.path());
        add(&annotated).fails(121, text);
        add(&argued).fails(121, text);
        add(&conf).args(&format!("IP={asked}")).fails(121, text);
        cni::assert_same(asked, &before, &site.snapshot());
    }
    // Ranges that the runtime adds are not the network's.
    let ranges = json!({"ipRanges": [[{"subnet": "10.8.0.0/24"}]]});
    site.ours("ADD", &zoned(json!({"runtimeConfig": ranges}))).fails(121, outside);
    // What lies in them is got, and where nothing is policed, so is everything else.
    let inside = zoned(json!({"ipam": own, "runtimeConfig": {"ips": ["10.9.0.71/24"]}}));
    assert_eq!(site.row_of(mac_of(&site.ours("ADD", &inside).ok())).v4[0], [10, 9, 0, 71]);
    site.ours("DEL", &inside).ok();
    let plain = conf(json!({"ipam": own, "runtimeConfig": {"ips": ["10.8.0.7/24"]}}));
    site.ours("ADD", &plain).ok();
}

#[test]
fn promiscuous_mode_is_switched_on_and_remembered() {
    let site = Site::new();
    site.masters(r#"{"eno1": {"promisc": "on"}}"#);
    site.ours("ADD", &zoned(json!({}))).ok();
    assert!(site.node.ip("link show eno1").contains("PROMISC"));
    assert!(site.root.join("var/lib/netpath/promisc/eno1").exists());
    site.ours("DEL", &zoned(json!({}))).ok();
    assert!(site.node.ip("link show eno1").contains("PROMISC"));
}

#[test]
fn without_zone_and_entry_nothing_of_the_node_is_touched() {
    let site = Site::new();
    site.ours("ADD", &conf(json!({}))).ok();
    assert!(site.maps().is_none() && !site.root.bpffs().exists());
    site.ours("DEL", &conf(json!({}))).ok();
    // Once the master is under police, what has no zone is counted.
    site.ours("ADD", &zoned(json!({}))).id("policed").ifname("net9").ok();
    let mut plain = conf(json!({"name": "plain"}));
    plain["ipam"] = json!({"type": "static", "addresses": [{"address": "10.9.0.77/24"}]});
    let row = site.row_of(mac_of(&site.ours("ADD", &plain).ok()));
    assert_eq!((row.mode, row.v4[0]), (mode::OFF, [10, 9, 0, 77]));
}

#[test]
fn a_del_without_namespace_leaves_no_link_without_its_row() {
    let site = Site::new();
    site.ours("ADD", &zoned(json!({}))).ok();
    site.ours("DEL", &zoned(json!({}))).env("CNI_NETNS", "").ok();
    assert!(site.rows().is_empty() && !site.pod.ip("link show").contains("net1"));
}

/// After a boot the numbers of namespaces are given anew, and the link in one is somebody else's.
#[test]
fn a_record_of_an_earlier_boot_leads_to_no_link() {
    let site = Site::new();
    site.ours("ADD", &conf(json!({}))).ok();
    let file = site.root.state().join("c1-net1.json");
    let mut record: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    record["boot_id"] = json!("earlier");
    fs::write(&file, record.to_string()).unwrap();
    site.ours("DEL", &conf(json!({}))).env("CNI_NETNS", "").ok();
    assert!(site.pod.ip("link show").contains("net1") && !file.exists());
}

/// What a network makes there would be the administrator's word: nothing would be attached any more.
#[test]
fn a_networks_data_directory_is_none_of_ours() {
    let site = Site::new();
    for dir in ["etc", "mnt"] {
        fs::create_dir_all(site.root.join(dir)).unwrap();
    }
    std::os::unix::fs::symlink(site.root.join("etc"), site.root.join("mnt/link")).unwrap();
    for (dir, name) in [
        ("/etc/netpath", "disable"),
        ("/mnt/link/netpath", "disable"),
        ("/run", "netpath"),
        ("/x/../etc/netpath", "x"),
    ] {
        let ipam = json!({"type": "host-local", "subnet": "10.9.0.0/24", "dataDir": dir});
        site.ours("ADD", &zoned(json!({"name": name, "ipam": ipam}))).fails(7, "ipam.dataDir");
        assert!(!site.root.disable().exists(), "{dir}");
    }
    fs::remove_file(site.root.join("mnt/link")).unwrap();
    assert!(site.rows().is_empty() && site.leftovers().is_empty());
}

#[test]
fn a_long_list_is_held_against_its_bound_at_once() {
    let site = Site::new();
    site.masters(r#"{"eno1": {"zone": {"policy": "private"}, "subnets": ["10.9.0.0/24", "10.128.0.0/9"]}}"#);
    let deny: Vec<_> = (0..10_000).map(|i| format!("10.{}.{}.0/25", 128 + i / 256, i % 256)).collect();
    let begun = std::time::Instant::now();
    let zone = json!({"policy": "private", "local": ["10.9.0.0/24"], "deny": deny});
    site.ours("ADD", &zoned(json!({"zone": zone}))).ok();
    assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[test]
fn ipam_that_is_ourselves_ends() {
    let site = Site::new();
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(cni::OURS, dir.path().join("ours")).unwrap();
    let path = dir.path().to_str().unwrap();
    let before = site.snapshot();
    let conf = conf(json!({"ipam": {"type": "ours"}}));
    site.ours("ADD", &conf).env("CNI_PATH", path).fails(7, "is netpath itself");
    cni::assert_same("ourselves", &before, &site.snapshot());
    site.ours("DEL", &conf).env("CNI_PATH", path).ok();
}

/// Each of them is a script that would say so if it were executed.
#[test]
fn a_plugin_for_interfaces_is_no_ipam() {
    let site = Site::new();
    let before = site.snapshot();
    for kind in ["macvlan", "host-device", "netpath", "multus", "vlan"] {
        let fake = Fake::new(kind, ANSWER);
        let conf = conf(json!({"ipam": {"type": kind}}));
        let call = |command: &str| site.ours(command, &conf).env("CNI_PATH", fake.path());
        call("ADD").fails(7, "is a plugin for interfaces and gives no addresses");
        cni::assert_same(kind, &before, &site.snapshot());
        call("DEL").ok();
        assert!(!fake.0.path().join("commands").exists(), "{kind} was executed");
    }
}

/// It is given the whole configuration, and may be an interface plugin by another name.
#[test]
fn an_executed_ipam_is_held_against_the_types_of_the_masters_that_are_named() {
    let site = Site::new();
    site.second_master();
    site.masters(r#"{"eno1": {"zone": {"local": ["10.9.0.0/24"]}, "types": ["macvlan", "listed"]}}"#);
    let before = site.snapshot();
    let fake = Fake::new("fake", ANSWER);
    let listed = Fake::new("listed", ANSWER);
    let conf = |kind: &str, keys: Value| {
        let mut conf = conf(keys);
        conf["ipam"] = json!({"type": kind});
        conf
    };
    for keys in
        [json!({}), json!({"master": "eno2", "device": "eno1"}), json!({"master": "eno2", "x": ["eno1"]})]
    {
        let call = site.ours("ADD", &conf("fake", keys)).env("CNI_PATH", fake.path());
        call.fails(105, "no attachment of type `fake` on `eno1`");
        cni::assert_same("fake", &before, &site.snapshot());
    }
    site.ours("DEL", &conf("fake", json!({}))).env("CNI_PATH", fake.path()).ok();
    assert!(!fake.0.path().join("commands").exists(), "its ADD was refused, and its DEL executed it");
    let conf = conf("listed", json!({}));
    site.ours("ADD", &conf).env("CNI_PATH", listed.path()).ok();
    site.ours("DEL", &conf).env("CNI_PATH", listed.path()).ok();
}

#[test]
fn what_is_left_of_an_unmounted_namespace_stops_no_del() {
    let site = Site::new();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("netns");
    fs::write(&file, "").unwrap();
    site.ours("DEL", &zoned(json!({}))).env("CNI_NETNS", file.to_str().unwrap()).ok();
}

/// A plugin on a `CNI_PATH` of its own that notes what it gets.
struct Fake(tempfile::TempDir);

impl Fake {
    fn new(kind: &str, then: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display();
        let script = format!(
            "#!/bin/sh\nenv | grep ^CNI_ | sort > {at}/env.$CNI_COMMAND\ncat > {at}/stdin.$CNI_COMMAND\n\
             echo $CNI_COMMAND >> {at}/commands\n{then}\n"
        );
        let file = dir.path().join(kind);
        fs::write(&file, script).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        Self(dir)
    }

    fn path(&self) -> &str {
        self.0.path().to_str().unwrap()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.0.path().join(name)).unwrap_or_default()
    }
}

const ANSWER: &str = r#"[ $CNI_COMMAND = ADD ] && echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.9.0.60/24", "gateway": "10.9.0.1"}]}' || true"#;

#[test]
fn everything_reaches_an_executed_ipam_plugin() {
    let site = Site::new();
    let fake = Fake::new("fake", ANSWER);
    let conf = json!({
        "CNIVERSION": "1.0.0", "Name": "priv", "TYPE": "macvlan", "Master": "eno1", "Mtu": 1400, "MODE": "private",
        "unknown": {"Kept": [1, 2.5, null, "ä\u{1F600}"], "big": 12345678901234567890_u64}, "promisc": true,
        "runtimeConfig": {"Mac": "02:00:00:00:00:09", "portMappings": [{"hostPort": 80}]},
        "Zone": {"policy": "private", "local": ["10.9.0.0/24"]},
        "IPAM": {"Type": "fake", "pool": "x", "Range": {"a": []}}
    });
    let call = |command: &str| {
        site.ours(command, &conf).env("CNI_PATH", fake.path()).args("IgnoreUnknown=1;K8S_POD_NAME=web;FOO=x")
    };
    let result = call("ADD").ok();
    assert_eq!(mac_of(&result).to_string(), "02:00:00:00:00:09");
    assert!(site.pod.ip("-d link show net1").contains("mtu 1400"));
    assert!(site.pod.ip("-d link show net1").contains("mode private"));
    assert_eq!(site.row_of(mac_of(&result)).v4[0], [10, 9, 0, 60]);
    assert_eq!(serde_json::from_str::<Value>(&fake.read("stdin.ADD")).unwrap(), conf);
    let env = fake.read("env.ADD");
    for line in [
        "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME=web;FOO=x".to_owned(),
        "CNI_COMMAND=ADD".to_owned(),
        "CNI_CONTAINERID=c1".to_owned(),
        "CNI_IFNAME=net1".to_owned(),
        format!("CNI_NETNS={}", site.pod.path().display()),
        format!("CNI_PATH={}", fake.path()),
    ] {
        assert!(env.lines().any(|it| it == line), "{line} is not in {env}");
    }
    // DEL gets the configuration of ADD, whatever this call says.
    let mut later = conf.clone();
    later["IPAM"]["pool"] = json!("y");
    site.ours("DEL", &later).env("CNI_PATH", fake.path()).ok();
    assert_eq!(serde_json::from_str::<Value>(&fake.read("stdin.DEL")).unwrap(), conf);
    assert_eq!(fake.read("commands"), "ADD\nDEL\n");
    assert!(site.rows().is_empty() && site.leftovers().is_empty());
}

/// The client raises the link itself: from the first packet on there must be a row, and its guards.
#[test]
fn dhcp_is_policed_before_it_has_an_address() {
    let site = Site::new();
    site.masters(r#"{"eno1": {"unknownSource": "drop"}}"#);
    let fake = Fake::new("dhcp", "");
    let at = fake.path();
    let pins = site.root.pins();
    let script = format!(
        "#!/bin/sh\necho $CNI_COMMAND >> {at}/commands\ncat > /dev/null\n\
         bpftool -j map dump pinned {}/maps/endpoints > {at}/rows.$CNI_COMMAND\n\
         nsenter --net=$CNI_NETNS cat /proc/sys/net/ipv4/conf/net1/drop_unicast_in_l2_multicast > {at}/guard.$CNI_COMMAND\n\
         {ANSWER}\n",
        pins.display()
    );
    fs::write(fake.0.path().join("dhcp"), script).unwrap();
    let conf =
        zoned(json!({"ipam": {"type": "dhcp"}, "zone": {"policy": "private", "local": ["10.9.0.0/24"]}}));
    let result = site.ours("ADD", &conf).env("CNI_PATH", at).ok();
    let rows: Value = serde_json::from_str(&fake.read("rows.ADD")).unwrap();
    assert_eq!(rows.as_array().map(Vec::len), Some(1), "{rows}");
    assert_eq!(fake.read("guard.ADD"), "1\n");
    let row = site.row_of(mac_of(&result));
    assert_ne!(row.flags & endpoint_flags::DHCP, 0);
    assert_eq!((row.v4[0], row.gateway_v4, row.mode), ([10, 9, 0, 60], [10, 9, 0, 1], mode::ENFORCE));
    assert_ne!(row.zone, 0);
    site.ours("DEL", &conf).env("CNI_PATH", at).ok();
    // The lease is given back over the interface, which therefore still stands.
    assert_eq!(fake.read("guard.DEL"), "1\n");
    assert!(site.rows().is_empty() && site.leftovers().is_empty());
}
