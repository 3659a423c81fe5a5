//! Lists with the standard plugins tuning, sbr, bandwidth and portmap: executed by the meta-plugin they leave what they
//! leave when a runtime goes through them one by one.

#[path = "common/cni.rs"]
mod cni;
mod common;
#[path = "common/meta.rs"]
mod meta;

use std::collections::BTreeMap;
use std::fs;

use common::NetNs;
use meta::{MetaSite, NOTHING};
use serde_json::{Value, json};

/// A list, its plugins in their order, and what the pod asks for by capability.
struct List {
    name: &'static str,
    plugins: Vec<Value>,
    asks: Value,
}

fn bridge(routes: &Value) -> Value {
    json!({"type": "bridge", "bridge": "br1", "isGateway": true, "ipam": {"type": "static",
        "addresses": [{"address": "10.245.0.7/24", "gateway": "10.245.0.1"}], "routes": routes}})
}

fn lists() -> Vec<List> {
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}, {"hostPort": 5353, "containerPort": 53, "protocol": "udp"}]);
    let rates = json!({"ingressRate": 1_000_000, "ingressBurst": 800_000, "egressRate": 2_000_000, "egressBurst": 1_600_000});
    let tuning = json!({"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}, "mtu": 1400, "promisc": true,
        "capabilities": {"mac": true}});
    let sbr = json!({"type": "sbr"});
    let bandwidth = json!({"type": "bandwidth", "capabilities": {"bandwidth": true}});
    let portmap = json!({"type": "portmap", "snat": true, "capabilities": {"portMappings": true}});
    let route = json!([{"dst": "10.99.0.0/16", "gw": "10.245.0.1"}]);
    let default = json!([{"dst": "0.0.0.0/0", "gw": "10.245.0.1"}]);
    let mac = json!({"mac": "02:00:00:00:00:77"});
    vec![
        List { name: "tuned", plugins: vec![bridge(&route), tuning.clone()], asks: mac.clone() },
        List { name: "based", plugins: vec![bridge(&default), sbr.clone()], asks: json!({}) },
        List {
            name: "shaped",
            plugins: vec![bridge(&route), bandwidth.clone()],
            asks: json!({"bandwidth": rates}),
        },
        List {
            name: "mapped",
            plugins: vec![bridge(&route), portmap.clone()],
            asks: json!({"portMappings": ports}),
        },
        List {
            name: "all",
            plugins: vec![bridge(&default), tuning, sbr, bandwidth, portmap],
            asks: json!({"mac": mac["mac"], "bandwidth": rates, "portMappings": ports}),
        },
    ]
}

const ARGS: &str =
    "IgnoreUnknown=true;K8S_POD_NAMESPACE=web;K8S_POD_NAME=p;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u1";

impl List {
    /// As a runtime calls the plugins, with what each declares to want. The result is the last one's.
    fn by_hand(&self, meta: &MetaSite, command: &str, result: Option<&Value>) -> Value {
        let mut previous = result.cloned();
        let mut order: Vec<&Value> = self.plugins.iter().collect();
        if command == "DEL" {
            order.reverse();
        }
        for plugin in order {
            let mut conf = plugin.clone();
            conf["cniVersion"] = json!("1.0.0");
            conf["name"] = json!(self.name);
            let declared = plugin["capabilities"].as_object().cloned().unwrap_or_default();
            for capability in declared.keys() {
                if let Some(value) = self.asks.get(capability) {
                    conf["runtimeConfig"][capability] = value.clone();
                }
            }
            if let Some(previous) = &previous {
                conf["prevResult"] = previous.clone();
            }
            let args = match self.asks["mac"].as_str() {
                Some(mac) => format!("{ARGS};MAC={mac}"),
                None => ARGS.to_owned(),
            };
            let printed = meta.site.standard(command, &conf).args(&args).ok();
            if command == "ADD" {
                previous = Some(printed);
            }
        }
        previous.unwrap_or_default()
    }
}

/// What differs between two nodes, by chance alone.
fn settled(text: &str) -> String {
    let mut out = String::new();
    for word in text.split_inclusive(|c: char| !c.is_ascii_alphanumeric() && c != ':') {
        let end = word.find(|c: char| !c.is_ascii_alphanumeric() && c != ':').unwrap_or(word.len());
        let (name, rest) = word.split_at(end);
        let is_veth = name.strip_prefix("veth").is_some_and(|it| it.len() == 8);
        let is_mac = name.len() == 17 && name.matches(':').count() == 5 && !name.starts_with("02:00:00");
        out.push_str(match (is_veth, is_mac) {
            (true, _) => "VETH",
            (_, true) => "MAC",
            _ => name,
        });
        out.push_str(rest);
    }
    out
}

fn without(value: &mut Value, keys: &[&str]) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| without(item, keys)),
        Value::Object(map) => {
            map.retain(|key, _| !keys.contains(&key.as_str()));
            map.values_mut().for_each(|item| without(item, keys));
        }
        _ => {}
    }
}

/// What comes and goes by itself, or counts.
const PASSING: [&str; 24] = [
    "ifindex",
    "link_index",
    "link_netnsid",
    "bridge_id",
    "root_id",
    "designated_root",
    "designated_bridge",
    "hello_timer",
    "tcn_timer",
    "topology_change_timer",
    "gc_timer",
    "handle",
    "bytes",
    "packets",
    "operstate",
    "flags",
    "state",
    "root_port",
    "valid_life_time",
    "forward_delay_timer",
    "message_age_timer",
    "hold_timer",
    "no",
    "port_no",
];

fn look(meta: &MetaSite) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for (place, netns) in [("node", &meta.site.node), ("pod", &meta.site.pod)] {
        for (what, words) in [
            ("links", "-d -j link show"),
            ("addresses", "-4 -j addr show"),
            ("routes", "-4 -j route show table all"),
            ("rules", "-4 -j rule show"),
        ] {
            let mut value: Value = serde_json::from_str(&netns.ip(words)).unwrap();
            without(&mut value, &PASSING);
            if let Some(items) = value.as_array_mut() {
                items.sort_by_key(Value::to_string);
            }
            all.insert(format!("{place}: {what}"), settled(&value.to_string()));
        }
        let mut qdiscs: Value = serde_json::from_str(&tc(netns, "-j qdisc show")).unwrap();
        without(&mut qdiscs, &PASSING);
        all.insert(format!("{place}: qdiscs"), settled(&qdiscs.to_string()));
        let rules = netns.exec("iptables-save");
        let rules: Vec<&str> = rules.lines().filter(|line| !line.starts_with('#')).collect();
        // Counters of chains.
        let rules: Vec<&str> = rules.iter().map(|line| line.split(" [").next().unwrap()).collect();
        all.insert(format!("{place}: iptables"), rules.join("\n"));
    }
    let links: Value = serde_json::from_str(&meta.site.pod.ip("-j link show")).unwrap();
    if links.to_string().contains("\"net1\"") {
        all.insert("arp_filter".to_owned(), meta.site.pod.sysctl("net/ipv4/conf/net1/arp_filter"));
    }
    all
}

fn tc(netns: &NetNs, words: &str) -> String {
    common::run(&[&["tc", "-n", netns.name()][..], &words.split(' ').collect::<Vec<_>>()].concat())
}

#[test]
fn lists_leave_what_they_leave_without_us() {
    for list in lists() {
        let [theirs, ours] = [MetaSite::new(), MetaSite::new()];
        for meta in [&theirs, &ours] {
            for netns in [&meta.site.node, &meta.site.pod] {
                netns.set_sysctl("net/ipv6/conf/default/disable_ipv6", "1");
            }
        }
        let before = look(&theirs);
        cni::assert_same(list.name, &before, &look(&ours));

        let mut result = list.by_hand(&theirs, "ADD", None);
        ours.nad("list", json!({"cniVersion": "1.0.0", "name": list.name, "plugins": list.plugins}));
        let mut asks = list.asks.clone();
        asks["name"] = json!("list");
        let conf = ours.conf(&json!([asks]).to_string(), json!({}));
        ours.call("ADD", &conf).ok();

        let made = look(&theirs);
        cni::assert_same(list.name, &made, &look(&ours));
        assert_ne!(before, made, "{}: the list does something", list.name);
        let expected = match list.name {
            "tuned" => "\"mtu\":1400",
            "based" => "10.245.0.7",
            "shaped" => "tbf",
            "mapped" => "--dport 8080",
            _ => "",
        };
        assert!(made.values().any(|text| text.contains(expected)), "{}: {made:?}", list.name);

        // What plugins are given on DEL.
        let file = ours.site.root.multus_cache().join(format!("results/{}-c1-net1", list.name));
        let cached: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        let pods = [&theirs, &ours].map(|meta| meta.site.pod.path().display().to_string());
        let text = |value: &Value, pod: &str| settled(&value.to_string().replace(pod, "POD"));
        assert_eq!(text(&cached["result"], &pods[1]), text(&result, &pods[0]), "{}", list.name);

        result = list.by_hand(&theirs, "DEL", Some(&result));
        assert!(result.is_object());
        ours.call("DEL", &conf).ok();
        let after = look(&theirs);
        cni::assert_same(list.name, &after, &look(&ours));
        assert!(!after["pod: links"].contains("net1"), "{}", list.name);
        assert_eq!(after["pod: rules"], before["pod: rules"], "{}", list.name);
        assert!(!after["node: iptables"].contains("8080"), "{}: {}", list.name, after["node: iptables"]);
        assert!(!after["node: qdiscs"].contains("tbf"), "{}: {}", list.name, after["node: qdiscs"]);
        assert_eq!(ours.remembered(), NOTHING);
    }
}
