//! ADD and DEL of the meta-plugin ended by SIGKILL before each of their effects in turn: a macvlan with a zone in this
//! process, an executed plugin, and a list of plugins. DEL, or GC once the pod is gone, leaves nothing.

#[path = "common/cni.rs"]
mod cni;
mod common;
#[path = "common/meta.rs"]
mod meta;
#[path = "common/trace.rs"]
mod trace;

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use cni::zoned;
use common::{PATIENCE, eventually, run};
use meta::MetaSite;
use serde_json::{Value, json};
use trace::{End, killed_at};

/// More effects than that no call has: what goes on for ever is found.
const LIMIT: u32 = 2_000;

/// A pod with the standard bridge plugin as its cluster network, a policed macvlan, and a list of plugins.
struct Pod {
    meta: MetaSite,
    conf: Value,
}

impl Pod {
    fn new() -> Self {
        let meta = MetaSite::new();
        for netns in [&meta.site.node, &meta.site.pod] {
            // Bridges take the lowest hardware address of their ports, and with it their link-local one.
            for which in ["all", "default"] {
                netns.set_sysctl(&format!("net/ipv6/conf/{which}/disable_ipv6"), "1");
            }
        }
        let addresses = |subnet: &str| {
            let data = meta.site.root.join("var/lib/cni/bridges");
            json!({"type": "host-local", "dataDir": data, "subnet": subnet, "routes": [{"dst": "10.200.0.0/16"}]})
        };
        meta.cluster(json!({"cniVersion": "1.0.0", "name": "cbr0", "plugins": [
            {"type": "bridge", "bridge": "cbr0", "isGateway": true, "ipam": addresses("10.244.0.0/24")}]}));
        meta.nad("priv", zoned(json!({})));
        let list = json!({"cniVersion": "1.0.0", "name": "list", "plugins": [
            {"type": "bridge", "bridge": "br1", "ipam": addresses("10.245.0.0/24")},
            {"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}}]});
        let nad = json!({"kind": "NetworkAttachmentDefinition", "spec": {"config": list.to_string()},
            "metadata": {"name": "list", "namespace": "web", "annotations": {"k8s.v1.cni.cncf.io/resourceName": "a/x"}}});
        meta.site.write(&meta.site.root.join("nads/web-list.json"), &nad.to_string());
        let known = meta.site.root.join("var/run/k8s.cni.cncf.io/devinfo/dp/a-x-d1-device.json");
        meta.site.write(&known, r#"{"type": "pci"}"#);
        let conf = meta.conf(r#"[{"name": "priv"}, {"name": "list", "deviceID": "d1"}]"#, json!({}));
        let pod = Self { meta, conf };
        // Bridges, maps and programs stay.
        pod.call("ADD").ok();
        pod.call("DEL").ok();
        pod
    }

    fn call(&self, command: &str) -> cni::Call {
        self.meta.call(command, &self.conf)
    }

    /// GC of a runtime that knows of no pod.
    fn gc(&self) -> cni::Call {
        let mut conf = self.conf.clone();
        conf["cniVersion"] = json!("1.1.0");
        conf["cni.dev/valid-attachments"] = json!([]);
        self.meta.call("GC", &conf)
    }

    /// The pod's namespace goes, and a new one comes to its path.
    fn replace(&self) {
        let name = self.meta.site.pod.name();
        run(&["ip", "netns", "del", name]);
        run(&["ip", "netns", "add", name]);
        self.meta.site.pod.ip("link set lo up");
    }

    /// Links, addresses, routes, files, rows, and processes of this node.
    fn look(&self) -> BTreeMap<String, String> {
        let site = &self.meta.site;
        let mut all = BTreeMap::new();
        for netns in [&site.node, &site.pod] {
            let links: Value = serde_json::from_str(&netns.ip("-j link show")).unwrap();
            let names: Vec<_> = links.as_array().unwrap().iter().map(|it| it["ifname"].to_string()).collect();
            all.insert(format!("links of {}", netns.name()), names.join(" "));
            all.insert(format!("addresses of {}", netns.name()), netns.ip("-o -4 addr show"));
        }
        let maps = site.maps().expect("they stay");
        let rows: Vec<_> = maps.endpoints().unwrap().iter().map(|row| format!("{row:?}")).collect();
        all.insert("rows".to_owned(), rows.join("\n"));
        for (path, content) in site.files() {
            let path = path.display().to_string();
            if path.starts_with("var/") || path.starts_with("run/") {
                all.insert(path, content);
            }
        }
        let environment = format!("NETPATH_ROOT={}", site.root.path().display());
        let left = eventually(PATIENCE, "no process of the node is left", || {
            let left = processes(&environment);
            left.is_empty().then_some(left)
        });
        assert!(left.is_empty());
        all
    }
}

/// The command lines of the processes with this variable in their environment.
fn processes(variable: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|it| it == variable.as_bytes()) {
            found.push(fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default());
        }
    }
    found
}

/// Runs `victim` once for each of its effects and kills it there; `afterwards` must leave what was before.
fn at_every_effect(pod: &Pod, prepare: fn(&Pod), victim: &str, afterwards: fn(&Pod)) {
    let before = pod.look();
    for n in 1..LIMIT {
        prepare(pod);
        let end = killed_at(&pod.call(victim), n);
        afterwards(pod);
        let what = format!("{victim} at {n}: {end:?}");
        // What goes with a namespace goes a moment later.
        let deadline = Instant::now() + PATIENCE;
        let mut now = pod.look();
        while now != before && Instant::now() < deadline {
            now = pod.look();
        }
        cni::assert_same(&what, &before, &now);
        if let End::Exited { status, stdout, effects } = end {
            assert_eq!(status, 0, "{stdout}");
            assert_eq!(effects, n - 1);
            // Each network has at least a link, an address and a result of its own.
            assert!(20 < effects, "only {effects} effects were seen");
            return;
        }
    }
    panic!("{victim} has more than {LIMIT} effects");
}

fn nothing(_: &Pod) {}

fn add(pod: &Pod) {
    pod.call("ADD").ok();
}

fn del(pod: &Pod) {
    pod.call("DEL").ok();
}

fn gc(pod: &Pod) {
    pod.replace();
    pod.gc().ok();
}

#[test]
fn an_add_that_is_killed_is_ended_by_del() {
    at_every_effect(&Pod::new(), nothing, "ADD", del);
}

#[test]
fn an_add_that_is_killed_is_ended_by_gc_once_the_pod_is_gone() {
    at_every_effect(&Pod::new(), nothing, "ADD", gc);
}

#[test]
fn a_del_that_is_killed_is_ended_by_the_next() {
    at_every_effect(&Pod::new(), add, "DEL", del);
}

#[test]
fn a_del_that_is_killed_is_ended_by_gc_once_the_pod_is_gone() {
    at_every_effect(&Pod::new(), add, "DEL", gc);
}
