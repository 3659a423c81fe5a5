//! The macvlan plugin beside the standard one of Debian's `containernetworking-plugins`: the same call to both, in
//! equal fresh namespaces, must leave the same behind. Where ours is better on purpose, [`Differs`] says why.

#[path = "common/cni.rs"]
mod cni;
mod common;

use std::collections::BTreeMap;
use std::fs;

use cni::{Call, Site, Whose, conf, pool};
use serde_json::{Value, json};

/// All differences there are, each with its reason. A case that names one must show it, or it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Differs {
    /// The standard plugin puts a network's default route in front of the pod's own, which takes all of the pod's
    /// traffic over. Ours goes behind it, by a worse metric, unless the network asks by `priority`.
    DefaultRouteBehind,
    /// The standard plugin leaves its link when IPAM, a route or the conversion of the result fails.
    NothingLeft,
    /// The standard plugin hands out, and configures, addresses that cannot work: the network's, the broadcast
    /// address, the node's own.
    AddressRefused,
    /// CNI_ARGS with two addresses, which Multus sends for a dual-stack pod, the standard plugins cannot parse.
    DualStackArgs,
}

/// Keys of `ip -j` that are left out: indexes, which count up; what changes by itself; and the length of the queue,
/// which the standard plugin of Debian sets to 0 where later ones, like ours, leave it to the kernel.
const LEFT_OUT: &[&str] =
    &["ifindex", "link_index", "link_netnsid", "tentative", "pref", "valid_life_time", "txqlen"];

/// What a call left.
#[derive(Debug, PartialEq)]
struct Seen {
    exit: i32,
    /// Of a failure only that it is an error object: the standard plugin has code 999 for nearly everything.
    json: Value,
    links: Value,
    addresses: Value,
    routes: Value,
    /// `arp_notify` alone: later standard plugins set `ndisc_notify` as ours does, Debian's does not yet.
    arp_notify: Option<String>,
    reservations: BTreeMap<String, String>,
}

type Change = fn(Call) -> Call;

/// One call to both.
struct Case {
    name: &'static str,
    conf: Value,
    args: &'static str,
    prepare: fn(&Site),
    change: Change,
    differs: Option<Differs>,
}

fn case(name: &'static str, conf: Value) -> Case {
    Case { name, conf, args: "", prepare: |_| {}, change: |call| call, differs: None }
}

fn replaced(value: &Value, texts: &[(String, &str)]) -> Value {
    let mut text = value.to_string();
    for (from, to) in texts.iter().filter(|(from, _)| !from.is_empty()) {
        text = text.replace(from.as_str(), to);
    }
    serde_json::from_str(&text).unwrap()
}

/// Names the leaves that are not equal.
fn difference(path: String, ours: &Value, theirs: &Value, found: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (ours, theirs)) in a.iter().zip(b).enumerate() {
                difference(format!("{path}.{i}"), ours, theirs, found);
            }
        }
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
            for key in keys {
                difference(format!("{path}.{key}"), &ours[key], &theirs[key], found);
            }
        }
        (ours, theirs) if ours == theirs => {}
        (ours, theirs) => found.push(format!("  {path}: {ours}, the standard plugin: {theirs}")),
    }
}

/// Sorted, without indexes and whatever the kernel counts up.
fn listed(text: &str) -> Value {
    let mut value: Value = serde_json::from_str(text).unwrap();
    for item in value.as_array_mut().unwrap() {
        strip(item);
    }
    value.as_array_mut().unwrap().sort_by_key(Value::to_string);
    value
}

fn strip(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(strip),
        Value::Object(map) => {
            LEFT_OUT.iter().for_each(|key| drop(map.remove(*key)));
            map.values_mut().for_each(strip);
        }
        _ => {}
    }
}

fn observe(site: &Site, whose: Whose, command: &str, case: &Case) -> Seen {
    let mut call = site.call(whose, command, &case.conf);
    if !case.args.is_empty() {
        call = call.args(case.args);
    }
    let outcome = (case.change)(call).run();
    look(site, outcome.exit, outcome.json, &outcome.stdout)
}

fn look(site: &Site, exit: i32, json: Value, stdout: &str) -> Seen {
    let links: Value = serde_json::from_str(&site.pod.ip("-d -j link show")).unwrap();
    let net1 = links.as_array().unwrap().iter().find(|link| link["ifname"] == "net1");
    let mac = net1.map(|link| link["address"].as_str().unwrap().to_owned()).unwrap_or_default();
    let link_local = netpath::spec::Mac::parse("mac", &mac).map(|mac| mac.link_local_eui64().to_string());
    let texts = [
        (mac, "MAC"),
        (link_local.unwrap_or_default(), "LINKLOCAL"),
        (site.pod.path().to_str().unwrap().to_owned(), "SANDBOX"),
        (site.pod.name().to_owned(), "POD"),
        (site.node.name().to_owned(), "NODE"),
    ];
    let mut json = replaced(&json, &texts);
    if exit != 0 {
        assert!(json["code"].is_u64() && json["msg"].is_string(), "no error object: {stdout}");
        json = json!("an error object");
    } else if json["dns"] == json!({}) {
        // Plugins before 1.2 print it, later ones do not.
        json.as_object_mut().unwrap().remove("dns");
    }
    let routes =
        ["-4", "-6"].map(|family| listed(&site.pod.ip(&format!("-j {family} route show table all"))));
    let mut routes = replaced(&json!(routes), &texts);
    for routes in routes.as_array_mut().unwrap() {
        // The kernel makes it a second after the link is up: on a busy machine the one look is before, the other after.
        routes.as_array_mut().unwrap().retain(|route| route["dst"] != "LINKLOCAL");
    }
    Seen {
        exit,
        json,
        links: replaced(&listed(&links.to_string()), &texts),
        addresses: replaced(&listed(&site.pod.ip("-j addr show")), &texts),
        routes,
        arp_notify: net1.map(|_| site.pod.sysctl("net/ipv4/conf/net1/arp_notify")),
        reservations: reservations(site),
    }
}

fn reservations(site: &Site) -> BTreeMap<String, String> {
    let dir = site.root.host_local().join("priv");
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        found.insert(entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap());
    }
    found
}

/// What is different, if anything.
fn compare(case: &Case) -> Result<(), String> {
    let sites = [Site::new(), Site::new()];
    let [ours, standard] = &sites;
    sites.iter().for_each(case.prepare);
    for (site, whose) in [(ours, Whose::Ours), (standard, Whose::Standard)] {
        // Whose cable comes up a moment later must not make a difference.
        site.node.ip("-j link show eno1");
        assert!(site.call(whose, "VERSION", &case.conf).run().exit == 0);
    }
    let mut expected = observe(standard, Whose::Standard, "ADD", case);
    let seen = observe(ours, Whose::Ours, "ADD", case);
    let name = case.name;
    if let Some(differs) = case.differs {
        if seen == expected {
            return Err(format!("{name}: there is no {differs:?} any more: {seen:?}"));
        }
        expected = match differs {
            Differs::NothingLeft | Differs::AddressRefused => {
                Seen { ..look(&Site::new(), 1, json!({"code": 1, "msg": ""}), "") }.with_lock(&seen)
            }
            Differs::DefaultRouteBehind => behind(expected),
            Differs::DualStackArgs => {
                return match seen.exit {
                    0 => Ok(()),
                    _ => Err(format!("{name}: fails here too")),
                };
            }
        };
    }
    seen.same(&expected).map_err(|text| format!("{name}: {text}"))?;
    if seen.exit == 0 {
        let deleted = observe(ours, Whose::Ours, "DEL", case);
        let expected = observe(standard, Whose::Standard, "DEL", case);
        deleted.same(&expected).map_err(|text| format!("{name}: DEL: {text}"))?;
        if !ours.leftovers().is_empty() {
            return Err(format!("{name}: DEL leaves {:?}", ours.leftovers()));
        }
    }
    Ok(())
}

/// Runs all cases before it fails.
#[track_caller]
fn check(cases: Vec<Case>) {
    let wrong: Vec<String> = cases.iter().filter_map(|case| compare(case).err()).collect();
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

impl Seen {
    fn same(&self, expected: &Self) -> Result<(), String> {
        let fields = |seen: &Self| {
            [
                ("exit", json!(seen.exit)),
                ("result", seen.json.clone()),
                ("links", seen.links.clone()),
                ("addresses", seen.addresses.clone()),
                ("routes", seen.routes.clone()),
                ("arp_notify", json!(seen.arp_notify)),
                ("reservations", json!(seen.reservations)),
            ]
        };
        let mut differs = Vec::new();
        for ((name, ours), (_, theirs)) in fields(self).into_iter().zip(fields(expected)) {
            difference(name.to_owned(), &ours, &theirs, &mut differs);
        }
        if differs.is_empty() { Ok(()) } else { Err(differs.join("\n")) }
    }

    /// The lock and the memory of the last address stay, as they do after an ADD and a DEL.
    fn with_lock(mut self, of: &Self) -> Self {
        let stays = |name: &&String| *name == "lock" || name.starts_with("last_reserved_ip.");
        let names = of.reservations.iter().filter(|(name, _)| stays(name));
        self.reservations = names.map(|(name, text)| (name.clone(), text.clone())).collect();
        self
    }
}

/// The network's default route gets the metric after that of the pod's own.
fn behind(mut seen: Seen) -> Seen {
    for family in seen.routes.as_array_mut().unwrap() {
        let routes = family.as_array_mut().unwrap();
        for route in routes.iter_mut().filter(|route| route["dst"] == "default" && route["dev"] == "net1") {
            let metric = route["metric"].as_u64().unwrap_or(0);
            route["metric"] = json!(metric + 1);
        }
        routes.sort_by_key(Value::to_string);
    }
    seen
}

fn dual() -> Value {
    json!({"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/24", "rangeStart": "10.9.0.100", "gateway": "10.9.0.1"}],
        [{"subnet": "fd09::/64", "rangeStart": "fd09::100", "gateway": "fd09::1"}]]})
}

fn with_routes(mut ipam: Value, routes: Value) -> Value {
    ipam["routes"] = routes;
    ipam
}

/// A pod whose own network has the default route.
fn default_route(site: &Site) {
    site.pod
        .ip("link add eth0 address 02:00:00:00:01:01 type veth peer name eth0x address 02:00:00:00:01:02");
    site.pod.ip("link set eth0 up");
    site.pod.ip("link set eth0x up");
    site.pod.ip("addr add 10.244.1.5/24 dev eth0");
    site.pod.ip("route add default via 10.244.1.1 dev eth0");
}

#[test]
fn modes_and_sizes() {
    let mut cases = Vec::new();
    for mode in ["", "bridge", "private", "vepa", "passthru"] {
        cases.push(case("mode", conf(json!({"mode": mode}))));
    }
    for mtu in [0, 1400, 1500] {
        cases.push(case("mtu", conf(json!({"mtu": mtu}))));
    }
    cases.push(case("mtu below IPv6", conf(json!({"mtu": 1000}))));
    check(cases);
}

#[test]
fn macs_of_all_sources() {
    let mut cases = Vec::new();
    cases.push(case("mac", conf(json!({"mac": "02:00:00:00:00:01"}))));
    cases.push(Case {
        args: "IgnoreUnknown=1;MAC=02:00:00:00:00:02",
        ..case("CNI_ARGS", conf(json!({"mac": "02:00:00:00:00:01"})))
    });
    let runtime = json!({"mac": "02:00:00:00:00:01", "capabilities": {"mac": true}, "runtimeConfig": {"mac": "0A:00:00:00:00:03"}});
    cases
        .push(Case { args: "IgnoreUnknown=1;MAC=02:00:00:00:00:02", ..case("runtimeConfig", conf(runtime)) });
    // As upstream's own test writes it.
    cases.push(case(
        "case",
        conf(json!({"MAC": "02:00:00:00:00:04", "RuntimeConfig": {"Mac": "02:00:00:00:00:05"}})),
    ));
    cases.push(case("passthru ignores it", conf(json!({"mode": "passthru", "mac": "02:00:00:00:00:06"}))));
    check(cases);
}

#[test]
fn masters() {
    let mut cases = Vec::new();
    cases.push(case("of the default route", conf(json!({"master": null}))));
    cases.push(case("empty", conf(json!({"master": ""}))));
    let v6 = |site: &Site| {
        site.node.ip("route del default");
        site.node.ip("addr add fd09::5/64 dev eno1 nodad");
        site.node.ip("-6 route add default via fd09::1 dev eno1");
    };
    cases.push(Case { prepare: v6, ..case("of the IPv6 default route", conf(json!({"master": null}))) });
    let none = |site: &Site| {
        site.node.ip("route del default");
    };
    cases.push(Case { prepare: none, ..case("no default route", conf(json!({"master": null}))) });
    cases.push(case("not there", conf(json!({"master": "eno9"}))));
    let stacked = |site: &Site| {
        site.node.ip("link add mv0 link eno1 type macvlan mode bridge");
        site.node.ip("link set mv0 up");
    };
    cases.push(Case { prepare: stacked, ..case("a macvlan", conf(json!({"master": "mv0"}))) });
    let down = |site: &Site| {
        site.node.ip("link set eno1 down");
    };
    cases.push(Case { prepare: down, ..case("down", conf(json!({}))) });
    check(cases);
}

#[test]
fn addresses_and_routes() {
    let mut cases = Vec::new();
    cases.push(case("no ipam", conf(json!({"ipam": {}}))));
    cases.push(case("ipam absent", conf(json!({"ipam": null}))));
    cases.push(case("dual stack", conf(json!({"ipam": dual()}))));
    let fixed = json!({"type": "static", "addresses": [{"address": "10.9.0.77/24", "gateway": "10.9.0.1"},
        {"address": "fd09::77/64"}], "routes": [{"dst": "10.50.0.0/16"}], "dns": {"domain": "a.b"}});
    cases.push(case(
        "static",
        conf(json!({"ipam": fixed, "dns": {"nameservers": ["10.9.0.1"], "search": ["x.y"]}})),
    ));
    cases.push(
        case("static without addresses", conf(json!({"ipam": {"type": "static", "addresses": []}})))
            .differing(Differs::NothingLeft),
    );
    let routes =
        json!([{"dst": "10.50.0.0/16"}, {"dst": "10.60.0.0/16", "gw": "10.9.0.9"}, {"dst": "fd50::/64"}]);
    cases.push(case("routes", conf(json!({"ipam": with_routes(dual(), routes)}))));
    let own = json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]);
    cases.push(case("default routes", conf(json!({"ipam": with_routes(dual(), own.clone())}))));
    cases.push(Case {
        prepare: default_route,
        differs: Some(Differs::DefaultRouteBehind),
        ..case(
            "default route beside the pod's",
            conf(json!({"ipam": with_routes(pool(), json!([{"dst": "0.0.0.0/0"}]))})),
        )
    });
    let far = json!([{"dst": "10.50.0.0/16", "gw": "10.77.0.1"}]);
    cases.push(
        case("unreachable gateway", conf(json!({"ipam": with_routes(pool(), far)})))
            .differing(Differs::NothingLeft),
    );
    let none = json!([{"dst": "10.50.0.0/16", "gw": "0.0.0.0"}]);
    cases.push(case("no gateway", conf(json!({"ipam": with_routes(pool(), none)}))));
    cases.push(Case { args: "IgnoreUnknown=1;IP=10.9.0.105", ..case("asked for", conf(json!({}))) });
    cases.push(
        Case { args: "IgnoreUnknown=1;IP=10.9.0.7", ..case("outside", conf(json!({}))) }
            .differing(Differs::NothingLeft),
    );
    cases.push(
        Case {
            args: "IgnoreUnknown=1;IP=10.9.0.105,fd09::105",
            ..case("two asked for", conf(json!({"ipam": dual()})))
        }
        .differing(Differs::DualStackArgs),
    );
    for address in ["10.9.0.5/24", "10.9.0.0/24", "10.9.0.255/24"] {
        let fixed = json!({"type": "static", "addresses": [{"address": address, "gateway": "10.9.0.1"}]});
        cases.push(case(address, conf(json!({"ipam": fixed}))).differing(Differs::AddressRefused));
    }
    check(cases);
}

impl Case {
    fn differing(self, differs: Differs) -> Self {
        Self { differs: Some(differs), ..self }
    }
}

#[test]
fn versions() {
    let mut cases = Vec::new();
    for version in ["", "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
        cases.push(case("version", conf(json!({"cniVersion": version}))));
        cases.push(case("dual version", conf(json!({"cniVersion": version, "ipam": dual()}))));
    }
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
        cases.push(case("L2", conf(json!({"cniVersion": version, "ipam": {}}))));
    }
    cases.push(
        case("L2 that cannot be said", conf(json!({"cniVersion": "0.2.0", "ipam": {}})))
            .differing(Differs::NothingLeft),
    );
    cases.push(Case {
        change: |call| call.clone().stdin(&call.stdin.replace("1.0.0", "9.9.9")),
        ..case("unknown", conf(json!({})))
    });
    check(cases);
}

#[test]
fn errors() {
    let mut cases = Vec::new();
    cases.push(case("mode", conf(json!({"mode": "source"}))));
    cases.push(case("mtu", conf(json!({"mtu": 9000}))));
    cases.push(case("negative mtu", conf(json!({"mtu": -1}))));
    cases.push(case("mac", conf(json!({"mac": "x"}))));
    cases.push(case("group mac", conf(json!({"mac": "01:00:5e:00:00:01"}))));
    cases.push(case("no name", conf(json!({"name": null}))));
    cases.push(case("bad name", conf(json!({"name": "a/b"}))));
    cases.push(
        case("unknown ipam", conf(json!({"ipam": {"type": "nonesuch"}}))).differing(Differs::NothingLeft),
    );
    cases.push(
        case("subnet", conf(json!({"ipam": {"type": "host-local", "subnet": "10.9.0.0/31"}})))
            .differing(Differs::NothingLeft),
    );
    let taken = |site: &Site| {
        site.pod.ip("link add net1 type bridge");
    };
    cases.push(Case { prepare: taken, ..case("ifname exists", conf(json!({}))) });
    let change: [(&str, Change); 9] = [
        ("not JSON", |call| call.stdin("{")),
        ("empty", |call| call.stdin("")),
        ("an array", |call| call.stdin("[]")),
        ("no CNI_IFNAME", |call| call.without("CNI_IFNAME")),
        ("no CNI_CONTAINERID", |call| call.without("CNI_CONTAINERID")),
        ("no CNI_NETNS", |call| call.without("CNI_NETNS")),
        ("no CNI_PATH", |call| call.without("CNI_PATH")),
        ("CNI_IFNAME", |call| call.ifname("much-too-long-a-name")),
        ("CNI_CONTAINERID", |call| call.id("../c1")),
    ];
    for (name, change) in change {
        cases.push(Case { change, ..case(name, conf(json!({}))) });
    }
    cases.push(Case { args: "IP", ..case("CNI_ARGS", conf(json!({}))) });
    cases.push(Case { args: "FOO=1", ..case("CNI_ARGS", conf(json!({}))) });
    cases.push(Case {
        change: |call| call.env("CNI_COMMAND", "NONESUCH"),
        ..case("command", conf(json!({})))
    });
    cases.push(Case {
        change: |call| call.netns("/run/netns/none".as_ref()),
        ..case("missing netns", conf(json!({})))
    });
    cases.push(Case {
        change: |call| call.netns("/etc/hostname".as_ref()),
        ..case("no netns", conf(json!({})))
    });
    check(cases);
}
