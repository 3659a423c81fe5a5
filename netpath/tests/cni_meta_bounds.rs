//! What many calls cost together: ADDs that fail leave nothing, and ADDs at once fit into the memory of a node.

#[path = "common/cni.rs"]
mod cni;
mod common;
#[path = "common/meta.rs"]
mod meta;

use std::fs;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use cni::{Outcome, pool, zoned};
use common::NetNs;
use meta::{MetaSite, NOTHING};
use serde_json::{Value, json};

/// Says how many calls are made, where the usual number is not the one that is to be measured.
const COUNT: &str = "NETPATH_TEST_CALLS";

/// What 250 ADDs at once may have in all.
const MEMORY: u64 = 1 << 30;

fn count(usual: usize) -> usize {
    std::env::var(COUNT).map_or(usual, |text| text.parse().expect(COUNT))
}

/// The standard bridge plugin as the cluster network.
fn bridge(meta: &MetaSite) -> Value {
    let data = meta.site.root.join("var/lib/cni/bridge");
    json!({"cniVersion": "1.0.0", "name": "cbr0", "plugins": [{"type": "bridge", "bridge": "cbr0",
        "ipam": {"type": "host-local", "dataDir": data, "subnet": "10.244.0.0/16"}}]})
}

#[test]
fn adds_that_fail_leave_nothing() {
    let meta = MetaSite::new();
    meta.cluster(bridge(&meta));
    meta.nad("priv", zoned(json!({})));
    meta.nad("fails", json!({"cniVersion": "1.0.0", "plugins": [{"type": "one"}, {"type": "two"}]}));
    meta.nad("gone", json!({"cniVersion": "1.0.0", "type": "not-installed"}));
    meta.nad(
        "routed",
        zoned(
            json!({"name": "routed", "ipam": {"type": "static", "addresses": [{"address": "10.9.0.77/24"}],
        "routes": [{"dst": "10.99.0.0/16", "gw": "192.0.2.1"}]}}),
        ),
    );
    meta.answer("two", "ADD.fail", r#"{"code": 113, "msg": "no devices left"}"#);
    let kinds = [("priv,fails", 113), ("priv,gone", 140), ("priv,routed", 102)];
    let add = |round: usize| {
        let (networks, code) = kinds[round % kinds.len()];
        meta.call("ADD", &meta.conf(networks, json!({}))).id(&format!("c{round}")).fails(code, "");
    };
    // Bridge, maps, programs and zones stay, and so does what was said to the pods' owners until their DEL.
    (0..kinds.len()).for_each(add);
    let look = || {
        let mut all = meta.site.snapshot();
        all.retain(|key, _| {
            !key.starts_with("file run/netpath/sandboxes/") && !key.starts_with("file fake/")
        });
        // The bridge goes up and down with its ports, and has the hardware address of one.
        all.retain(|key, _| !key.starts_with("node: ") || key == "node: tcx");
        all.insert("addresses".to_owned(), meta.site.node.ip("-o -4 addr show"));
        all.insert("links".to_owned(), format!("{:?}", names(&meta.site.node)));
        all
    };
    let before = look();
    for round in 1..=count(45) {
        add(round);
        cni::assert_same(&format!("round {round}"), &before, &look());
        meta.said();
    }
}

fn names(netns: &NetNs) -> Vec<String> {
    let links: Value = serde_json::from_str(&netns.ip("-j link show")).unwrap();
    links.as_array().unwrap().iter().map(|link| link["ifname"].to_string()).collect()
}

/// Bytes of memory that the processes of this node have: what they share is counted once. Before it their number.
fn memory(environment: &str) -> (usize, u64) {
    let mut all = (0, 0);
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
        if !environ.split(|byte| *byte == 0).any(|it| it == environment.as_bytes()) {
            continue;
        }
        let rollup = fs::read_to_string(entry.path().join("smaps_rollup")).unwrap_or_default();
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
        let kib: u64 = line.and_then(|text| text.split_whitespace().next()?.parse().ok()).unwrap_or(0);
        all = (all.0 + 1, all.1 + kib * 1024);
    }
    all
}

#[test]
fn adds_at_once_fit_into_memory() {
    let meta = MetaSite::new();
    meta.cluster(bridge(&meta));
    let mut ipam = pool();
    ipam["subnet"] = json!("10.9.0.0/16");
    ipam["rangeStart"] = json!("10.9.1.0");
    ipam["rangeEnd"] = json!("10.9.3.0");
    meta.nad("priv", zoned(json!({"ipam": ipam})));
    let conf = meta.conf("priv", json!({}));
    let pods: Vec<NetNs> = (0..count(60)).map(|_| NetNs::new("many")).collect();
    let environment = format!("NETPATH_ROOT={}", meta.site.root.path().display());
    let is_over = AtomicBool::new(false);
    let (most, peak) = thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut peak = (0, 0);
            while !is_over.load(Ordering::Relaxed) {
                let now = memory(&environment);
                peak = (now.0.max(peak.0), now.1.max(peak.1));
                thread::park_timeout(Duration::from_millis(5));
            }
            peak
        });
        let call = |command: &str, i: usize, pod: &NetNs| {
            meta.call(command, &conf).id(&format!("many{i}")).netns(&pod.path())
        };
        let running: Vec<Child> =
            pods.iter().enumerate().map(|(i, pod)| call("ADD", i, pod).spawn(&[])).collect();
        let outcomes: Vec<Outcome> = running.into_iter().map(Outcome::of).collect();
        is_over.store(true, Ordering::Relaxed);
        let peak = watch.join().unwrap();
        for (i, (outcome, pod)) in outcomes.into_iter().zip(&pods).enumerate() {
            // The lock on the maps is waited for 2 s: one that gives up is called again, as a runtime would.
            if outcome.json["code"] == 11 {
                call("ADD", i, pod).ok();
            } else {
                assert_eq!(outcome.exit, 0, "{outcome:?}");
            }
        }
        for (i, pod) in pods.iter().enumerate() {
            call("DEL", i, pod).ok();
        }
        peak
    });
    eprintln!("{} ADDs at once: at most {most} processes, {} MiB", pods.len(), peak >> 20);
    assert!(peak < MEMORY, "{} MiB in {most} processes", peak >> 20);
    assert!(pods.len() <= most, "only {most} of them were seen at once");
    assert!(meta.site.rows().is_empty());
    assert_eq!(meta.remembered(), NOTHING);
}
