//! The meta-plugin with plugins that make interfaces: the standard ones as they are, macvlan in its own process.

#[path = "common/cni.rs"]
mod cni;
mod common;
#[path = "common/meta.rs"]
mod meta;

use std::time::Duration;

use cni::{Outcome, zoned};
use common::NetNs;
use meta::{MetaSite, NOTHING};
use serde_json::{Value, json};

/// The standard bridge plugin as the cluster network, with a default route.
fn bridge(meta: &MetaSite) -> Value {
    let data = meta.site.root.join("bridge-addresses");
    json!({"cniVersion": "1.0.0", "name": "cbr0", "plugins": [{"type": "bridge", "bridge": "cbr0", "isGateway": true,
        "ipam": {"type": "host-local", "dataDir": data, "ranges": [[{"subnet": "10.244.0.0/24"}], [{"subnet": "fd44::/64"}]],
                 "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}}]})
}

#[track_caller]
fn host() -> MetaSite {
    let meta = MetaSite::new();
    meta.cluster(bridge(&meta));
    meta
}

/// The default routes of the pod as `interface gateway metric`, the best first.
fn defaults(pod: &NetNs, family: &str) -> Vec<String> {
    let routes: Value = serde_json::from_str(&pod.ip(&format!("-j {family} route show default"))).unwrap();
    let metric = |route: &Value| route["metric"].as_u64().unwrap_or(0);
    let mut routes: Vec<Value> = routes.as_array().unwrap().clone();
    routes.sort_by_key(metric);
    let text = |it: &Value| {
        format!("{} {} {}", it["dev"].as_str().unwrap(), it["gateway"].as_str().unwrap_or("-"), metric(it))
    };
    routes.iter().map(text).collect()
}

#[test]
fn a_policed_macvlan_beside_the_cluster_network() {
    let meta = host();
    meta.nad("priv", zoned(json!({})));
    let conf = meta.conf("priv", json!({}));
    let before = meta.links();
    let result = meta.call("ADD", &conf).ok();
    assert_eq!(result["ips"][0]["address"], "10.244.0.2/24");
    assert_eq!(meta.links(), ["lo", "eth0", "net1"]);
    assert_eq!(meta.site.rows().len(), 1, "net1 is policed, though nobody executed anything for it");
    let status = meta.status();
    assert_eq!((&status[1]["name"], &status[1]["ips"]), (&json!("web/priv"), &json!(["10.9.0.100"])));
    meta.call("CHECK", &conf).ok();

    meta.site.pod.ip("link del net1");
    let said = meta.call("CHECK", &conf).fails(102, "net1");
    assert!(said.contains("[web/p/u1:web/priv]: error checking container"), "{said}");
    meta.call("DEL", &conf).ok();
    assert_eq!(meta.links(), before);
    assert!(meta.site.rows().is_empty());
    let kept: Vec<_> =
        meta.remembered().into_iter().filter(|it| !it.starts_with("var/lib/netpath/promisc")).collect();
    assert_eq!(kept, NOTHING);
}

#[test]
fn a_macvlan_that_cannot_be_policed_leaves_no_pod() {
    let meta = host();
    meta.nad("priv", zoned(json!({})));
    meta.site.masters(r#"{"eno1": {"nadNamespaces": ["infra"]}}"#);
    let said = meta.call("ADD", &meta.conf("priv", json!({}))).fails(105, "masters.json does not allow");
    assert!(said.contains("web/priv"), "{said}");
    assert_eq!(meta.links(), ["lo"]);
    assert!(meta.site.rows().is_empty());
    // The same network from a namespace that the administrator lists, for pods of it.
    meta.nad_in("infra", "priv", zoned(json!({})));
    meta.site.masters(r#"{"eno1": {"nadNamespaces": ["infra"], "podNamespaces": ["web"]}}"#);
    meta.call("ADD", &meta.conf("infra/priv", json!({}))).ok();
    assert_eq!(meta.links(), ["lo", "eth0", "net1"]);
    // No other plugin gets past that word.
    meta.nad_in(
        "infra",
        "ip",
        json!({"cniVersion": "1.0.0", "type": "ipvlan", "master": "eno1", "ipam": {}}),
    );
    meta.nad("ip", json!({"cniVersion": "1.0.0", "type": "ipvlan", "master": "eno1", "ipam": {}}));
    meta.call("ADD", &meta.conf("ip@net2", json!({})))
        .id("c2")
        .ifname("eth1")
        .fails(105, "masters.json does not allow");
    meta.call("ADD", &meta.conf("infra/ip@net2", json!({})))
        .id("c3")
        .ifname("eth1")
        .fails(105, "its frames have the master's hardware address");
}

#[test]
fn a_default_route_that_is_asked_for_moves() {
    let meta = host();
    meta.nad(
        "mv",
        cni::conf(json!({"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/24",
        "rangeStart": "10.9.0.100", "gateway": "10.9.0.1"}], [{"subnet": "fd09::/64"}]]}})),
    );
    meta.call("ADD", &meta.conf("mv", json!({}))).ok();
    assert_eq!(defaults(&meta.site.pod, "-4"), ["eth0 10.244.0.1 0"]);
    meta.call("DEL", &meta.conf("mv", json!({}))).ok();

    let asks = meta.conf(r#"[{"name": "mv", "default-route": ["10.9.0.1"]}]"#, json!({}));
    let result = meta.call("ADD", &asks).ok();
    assert_eq!(defaults(&meta.site.pod, "-4"), ["net1 10.9.0.1 0"]);
    assert_eq!(defaults(&meta.site.pod, "-6")[0].split(' ').next(), Some("eth0"), "the other family stays");
    assert_eq!(result["routes"], json!([{"dst": "::/0"}]), "the runtime is told");
    let status = meta.status();
    assert_eq!((&status[0]["gateway"], &status[1]["gateway"]), (&json!(["fd44::1"]), &json!(["10.9.0.1"])));
    meta.call("CHECK", &asks).ok();
    meta.call("DEL", &asks).ok();

    let both = meta.conf(r#"[{"name": "mv", "default-route": ["10.9.0.1", "fd09::1"]}]"#, json!({}));
    meta.call("ADD", &both).ok();
    assert_eq!(defaults(&meta.site.pod, "-4"), ["net1 10.9.0.1 0"]);
    assert_eq!(defaults(&meta.site.pod, "-6"), ["net1 fd09::1 1024"]);
    meta.call("CHECK", &both).ok();
    meta.call("DEL", &both).ok();
}

#[test]
fn a_network_with_a_default_route_does_not_take_over_the_pods() {
    let meta = host();
    let routed = |kind: &str, name: &str| {
        json!({"cniVersion": "1.0.0", "name": name, "type": kind, "master": "eno1", "bridge": "br1", "isGateway": true,
            "ipam": {"type": "host-local", "dataDir": meta.site.root.join("more"), "subnet": "10.77.0.0/24",
                     "gateway": "10.77.0.1", "routes": [{"dst": "0.0.0.0/0"}]}})
    };
    meta.nad("executed", routed("bridge", "executed"));
    let mut made = cni::conf(json!({}));
    made["ipam"]["routes"] = json!([{"dst": "0.0.0.0/0"}]);
    meta.nad("made", made);
    let mut over = routed("bridge", "over");
    over["overrideDefaultRoute"] = json!(true);
    meta.nad("over", over);
    for (name, expected) in [
        ("executed", ["eth0 10.244.0.1 0", "net1 10.77.0.1 100"]),
        ("made", ["eth0 10.244.0.1 0", "net1 10.9.0.1 1"]),
        ("over", ["net1 10.77.0.1 0", "eth0 10.244.0.1 100"]),
    ] {
        let conf = meta.conf(name, json!({}));
        meta.call("ADD", &conf).ok();
        assert_eq!(defaults(&meta.site.pod, "-4"), expected, "{name}");
        meta.call("CHECK", &conf).ok();
        meta.call("DEL", &conf).ok();
    }
}

#[test]
fn both_families_can_be_asked_of_host_local() {
    let meta = host();
    let data = meta.site.root.join("two");
    meta.nad(
        "two",
        json!({"cniVersion": "1.0.0", "type": "bridge", "bridge": "br2", "ipam": {"type": "host-local",
        "dataDir": data, "ranges": [[{"subnet": "10.78.0.0/24"}], [{"subnet": "fd78::/64"}]]}}),
    );
    let conf = meta.conf(r#"[{"name": "two", "ips": ["10.78.0.9/24", "fd78::9/64"]}]"#, json!({}));
    meta.call("ADD", &conf).ok();
    assert_eq!(meta.status()[1]["ips"], json!(["10.78.0.9", "fd78::9"]));
    meta.call("DEL", &conf).ok();
}

#[test]
fn lists_mix_plugins_of_ours_and_of_others() {
    let meta = host();
    let mut made = zoned(json!({}));
    let made = made.as_object_mut().unwrap();
    let (name, version) = (made.remove("name"), made.remove("cniVersion"));
    let tuning = json!({"type": "tuning", "sysctl": {"net.ipv4.conf.net1.arp_filter": "1"}, "mtu": 1300});
    meta.nad(
        "mixed",
        json!({"cniVersion": version, "name": name, "plugins": [made, {"type": "netpath"}, tuning]}),
    );
    let conf = meta.conf("mixed", json!({}));
    meta.call("ADD", &conf).ok();
    assert_eq!(meta.site.pod.sysctl("net/ipv4/conf/net1/arp_filter"), "1");
    let link: Value = serde_json::from_str(&meta.site.pod.ip("-d -j link show net1")).unwrap();
    assert_eq!((&link[0]["mtu"], &link[0]["linkinfo"]["info_kind"]), (&json!(1300), &json!("macvlan")));
    assert_eq!(meta.site.rows().len(), 1);
    meta.call("CHECK", &conf).ok();
    meta.site.pod.ip("link set net1 mtu 1400");
    meta.call("CHECK", &conf).fails(999, "MTU");
    meta.call("DEL", &conf).ok();
    assert_eq!(meta.links(), ["lo"]);
    assert_eq!(meta.remembered(), NOTHING);
    assert!(meta.site.rows().is_empty());
}

#[test]
fn the_standard_macvlan_and_ours_leave_the_same_pod() {
    let meta = host();
    meta.nad("ours", cni::conf(json!({})));
    let standard =
        cni::conf(json!({"ipam": {"type": "host-local", "subnet": "10.9.0.0/24", "rangeStart": "10.9.0.100",
        "gateway": "10.9.0.1", "dataDir": meta.site.root.join("standard")}}));
    // Under another name it is executed like any other plugin.
    std::os::unix::fs::symlink("/usr/lib/cni/macvlan", meta.site.root.join("fake/bin/other")).unwrap();
    let mut other = standard;
    other["type"] = json!("other");
    meta.nad("theirs", other);
    let seen = |name: &str| {
        let conf = meta.conf(&format!(r#"[{{"name": "{name}", "mac": "02:00:00:00:00:77"}}]"#), json!({}));
        meta.call("ADD", &conf).ok();
        let mut status = meta.status()[1].clone();
        status["name"] = json!("");
        let link: Value = serde_json::from_str(&meta.site.pod.ip("-d -j link show net1")).unwrap();
        let link = json!([
            link[0]["address"],
            link[0]["mtu"],
            link[0]["flags"],
            link[0]["linkinfo"]["info_data"]["mode"]
        ]);
        let routes = meta.site.pod.ip("route show dev net1");
        meta.call("CHECK", &conf).ok();
        meta.call("DEL", &conf).ok();
        assert_eq!(meta.links(), ["lo"], "{name}");
        (status, link, routes)
    };
    assert_eq!(seen("ours"), seen("theirs"));
}

#[test]
fn a_name_that_is_taken_is_refused_and_what_has_it_stays() {
    let meta = host();
    // The bridge plugin's DEL deletes whatever has the name.
    meta.nad("bridged", json!({"cniVersion": "1.0.0", "type": "bridge", "bridge": "br2", "ipam": {}}));
    meta.site.pod.ip("link add net1 type veth peer name other");
    let conf = meta.conf("bridged", json!({}));
    meta.call("ADD", &conf).fails(102, "interface `net1` already exists in the pod");
    assert_eq!(
        meta.links(),
        ["lo", "other", "net1"],
        "what was there before is still there, and nothing else"
    );
    meta.site.pod.ip("link del net1");

    // An ADD that is asked for again finds the first one's interfaces, and does not forget them.
    meta.call("ADD", &conf).ok();
    let remembered = meta.remembered();
    meta.call("ADD", &conf).fails(102, "interface `eth0` already exists in the pod");
    assert_eq!(
        (meta.links(), meta.remembered()),
        (vec!["lo".into(), "eth0".into(), "net1".into()], remembered)
    );
    meta.call("DEL", &conf).ok();
    assert_eq!(meta.links(), ["lo"]);

    // A plugin that makes more than it was asked for.
    meta.nad("fake", json!({"cniVersion": "1.0.0", "type": "greedy"}));
    let greedy = "#!/bin/sh\ncat > /dev/null\n[ \"$CNI_COMMAND\" = ADD ] || exit 0\n\
                  ip -n \"${CNI_NETNS##*/}\" link add net2 type veth peer name other\necho '{\"cniVersion\": \"1.0.0\"}'\n";
    let program = meta.site.root.join("fake/bin/greedy");
    meta.site.write(&program, greedy);
    common::run(&["chmod", "+x", program.to_str().unwrap()]);
    meta.call("ADD", &meta.conf("fake,bridged", json!({})))
        .fails(102, "interface `net2` already exists in the pod");
    assert_eq!(meta.links(), ["lo", "other", "net2"], "it is not the bridge's to delete");
}

#[test]
fn status_speaks_for_the_cluster_network_alone() {
    let meta = host();
    let mut cluster = bridge(&meta);
    cluster["cniVersion"] = json!("1.1.0");
    cluster["plugins"][0] = json!({"type": "first"});
    meta.cluster(cluster);
    let conf = meta.conf("", json!({"cniVersion": "1.1.0"}));
    let status = || meta.call("STATUS", &conf);
    // Whatever is wrong with networks that a pod may ask for.
    meta.site.masters("{");
    meta.site.node.ip("link del eno1");
    status().ok();
    assert_eq!(meta.said(), ["STATUS first "]);
    meta.answer("first", "STATUS.fail", r#"{"code": 51, "msg": "limited"}"#);
    status().fails(51, "limited");
    meta.no_answer("first", "STATUS.fail");
    std::fs::remove_file(meta.site.root.join("fake/bin/first")).unwrap();
    status().fails(50, "failed to find plugin \"first\"");
    std::fs::remove_file(meta.site.root.join("etc/cni/net.d/10-first.conflist")).unwrap();
    status().fails(50, "10-first.conflist");
}

#[test]
fn gc_ends_what_is_gone_and_nothing_else() {
    let meta = MetaSite::new();
    meta.nad("priv", zoned(json!({})));
    let conf = meta.conf("priv", json!({"cniVersion": "1.1.0"}));
    let gone = NetNs::new("gone");
    meta.call("ADD", &conf).ok();
    meta.call("ADD", &conf).id("c2").netns(&gone.path()).ok();
    assert_eq!(meta.site.rows().len(), 2);
    drop(gone);
    meta.said();
    let mut gc = meta.conf("", json!({"cniVersion": "1.1.0", "cni.dev/valid-attachments": []}));
    gc.as_object_mut().unwrap().remove("runtimeConfig");
    meta.call("GC", &gc).ok();
    assert_eq!(meta.said(), ["DEL first eth0"], "the one whose namespace still stands is somebody's");
    assert_eq!(meta.site.rows().len(), 1);
    assert!(meta.site.root.state().join("sandboxes/c1.json").exists());
    assert!(!meta.site.root.state().join("sandboxes/c2.json").exists());
    meta.call("DEL", &conf).ok();
}

#[test]
fn many_pods_at_once_do_not_meet() {
    let meta = host();
    meta.nad(
        "priv",
        zoned(json!({"ipam": {"type": "host-local", "subnet": "10.9.0.0/24", "rangeStart": "10.9.0.100",
        "gateway": "10.9.0.1"}})),
    );
    let conf = meta.conf("priv", json!({}));
    let pods: Vec<NetNs> = (0..16).map(|_| NetNs::new("many")).collect();
    let call = |command: &str, at: usize| {
        let (id, pod) = (format!("c{at}"), format!("K8S_POD_NAMESPACE=web;K8S_POD_NAME=p{at}"));
        meta.call(command, &conf).id(&id).netns(&pods[at].path()).args(&pod)
    };
    let children: Vec<_> = (0..pods.len()).map(|at| call("ADD", at).spawn(&[])).collect();
    for child in children {
        let outcome = Outcome::of(child);
        assert_eq!(outcome.exit, 0, "{outcome:?}");
    }
    let mut addresses: Vec<String> = pods.iter().map(|pod| pod.ip("-4 -o addr show net1")).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!((addresses.len(), meta.site.rows().len()), (pods.len(), pods.len()));
    for at in 0..pods.len() {
        call("CHECK", at).ok();
    }
    let children: Vec<_> = (0..pods.len()).map(|at| call("DEL", at).spawn(&[])).collect();
    for child in children {
        let outcome = Outcome::of(child);
        assert_eq!(outcome.exit, 0, "{outcome:?}");
    }
    assert!(meta.site.rows().is_empty());
    assert_eq!(meta.remembered(), NOTHING);
}

/// Nothing of the pod is left, on the node or on disk. Drafts of records that were never finished are swept by age.
#[track_caller]
fn nothing_is_left(meta: &MetaSite, what: &str) {
    assert_eq!(meta.links(), ["lo"], "{what}");
    assert!(meta.site.rows().is_empty(), "{what}: {:?}", meta.site.rows());
    let mut kept = meta.remembered();
    kept.retain(|path| !path.rsplit('/').next().unwrap_or_default().starts_with('.'));
    assert_eq!(kept, NOTHING, "{what}");
}

#[test]
fn killed_at_any_moment_nothing_is_left_after_del() {
    let meta = host();
    meta.nad("priv", zoned(json!({})));
    meta.nad("bridged", json!({"cniVersion": "1.0.0", "type": "bridge", "bridge": "br2",
        "ipam": {"type": "host-local", "dataDir": meta.site.root.join("var/lib/bridged"), "subnet": "10.78.0.0/24"}}));
    let conf = meta.conf("priv,bridged", json!({}));
    let timed = |command: &str| {
        let started = std::time::Instant::now();
        meta.call(command, &conf).ok();
        started.elapsed()
    };
    // The first one loads the programs, which takes longer than all that comes after.
    timed("ADD");
    timed("DEL");
    let (add, del) = (timed("ADD"), timed("DEL"));
    let killed = |command: &str, after: Duration| {
        let limit = format!("{:.4}", after.as_secs_f64());
        let outcome = Outcome::of(meta.call(command, &conf).spawn(&["timeout", "-s", "KILL", &limit]));
        outcome.exit != 0
    };
    let rounds = 20;
    let (mut adds, mut dels) = (0, 0);
    for round in 1..=rounds {
        let died = killed("ADD", add * round / rounds);
        adds += u32::from(died);
        meta.call("DEL", &conf).ok();
        nothing_is_left(&meta, &format!("ADD, round {round}, killed: {died}"));

        meta.call("ADD", &conf).ok();
        let died = killed("DEL", del * round / rounds);
        dels += u32::from(died);
        meta.call("DEL", &conf).ok();
        nothing_is_left(&meta, &format!("DEL, round {round}, killed: {died}"));
    }
    assert!(rounds / 8 < adds && rounds / 8 < dels, "only {adds} and {dels} of {rounds} were killed in time");
}
