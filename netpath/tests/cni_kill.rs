//! ADD ended by SIGKILL at any moment, and many at once: DEL leaves nothing, and nobody has what another has.

#[path = "common/cni.rs"]
mod cni;
mod common;

use std::collections::BTreeSet;
use std::process::Child;
use std::time::Duration;

use cni::{Call, Outcome, Site, conf, mac_of, pool, zoned};
use common::{NetNs, PATIENCE, eventually};
use serde_json::{Value, json};

/// How an ADD with a time limit ended: `timeout -s KILL` kills itself the same way.
fn was_killed(call: &Call, after: Duration) -> bool {
    let limit = format!("{:.4}", after.as_secs_f64());
    let outcome = Outcome::of(call.spawn(&["timeout", "-s", "KILL", &limit]));
    assert!(matches!(outcome.exit, -1 | 0 | 137), "{outcome:?}");
    outcome.exit != 0
}

#[track_caller]
fn nothing_is_left(site: &Site, pod: &NetNs, what: &str) {
    let links: Value = serde_json::from_str(&pod.ip("-j link show")).unwrap();
    let names: Vec<_> = links.as_array().unwrap().iter().map(|link| &link["ifname"]).collect();
    assert_eq!(names, ["lo"], "{what}");
    assert!(site.rows().is_empty(), "{what}: {:?}", site.rows());
    // Drafts of records that were never finished are swept by age.
    let files: Vec<_> = site
        .leftovers()
        .into_iter()
        .filter(|path| !path.file_name().unwrap().as_encoded_bytes().starts_with(b"."))
        .collect();
    assert!(files.is_empty(), "{what}: {files:?}");
    // On the node there is the master alone, and no link of a name that was to be temporary.
    let links: Value = serde_json::from_str(&site.node.ip("-j link show")).unwrap();
    assert_eq!(links.as_array().unwrap().len(), 2, "{what}: {links}");
}

/// Kills ADDs at moments spread over the time that one takes, each followed by DEL.
fn kill(site: &Site, conf: &Value, rounds: u32, whole: Duration) {
    let mut killed = 0;
    for round in 0..rounds {
        let after = whole * (round + 1) / rounds;
        let call = site.ours("ADD", conf);
        let died = was_killed(&call, after);
        killed += u32::from(died);
        let what = format!("round {round}, {after:?}, killed: {died}");
        // A killed process may hold locks for a moment longer; DEL waits for them.
        let del = site.ours("DEL", conf).run();
        assert_eq!(del.exit, 0, "{what}: {del:?}");
        nothing_is_left(site, &site.pod, &what);
    }
    assert!(rounds / 8 < killed, "only {killed} of {rounds} were killed in time");
    // And all of it still works.
    site.ours("ADD", conf).ok();
    site.ours("DEL", conf).ok();
    nothing_is_left(site, &site.pod, "in the end");
}

fn dual() -> Value {
    let mut ipam = pool();
    ipam["ranges"] = json!([[{"subnet": "fd09::/64"}]]);
    ipam["routes"] = json!([{"dst": "10.50.0.0/16"}, {"dst": "0.0.0.0/0"}]);
    ipam
}

/// How long an ADD takes now, with what else the machine does.
fn time_of(site: &Site, conf: &Value) -> Duration {
    let start = std::time::Instant::now();
    site.ours("ADD", conf).ok();
    let took = start.elapsed();
    site.ours("DEL", conf).ok();
    took
}

#[test]
fn killed_at_any_moment() {
    let site = Site::new();
    // Else most of the time would be spent, and most of the kills fall, in the wait for duplicate addresses.
    for which in ["all", "default"] {
        site.pod.set_sysctl(&format!("net/ipv6/conf/{which}/accept_dad"), "0");
    }
    let conf = zoned(json!({"ipam": dual()}));
    time_of(&site, &conf);
    let whole = time_of(&site, &conf);
    kill(&site, &conf, 80, whole);
}

/// The first ADD of a node makes the maps and attaches the programs.
#[test]
fn killed_while_everything_is_made() {
    let conf = zoned(json!({}));
    let mut killed = 0;
    let whole = time_of(&Site::new(), &conf);
    let rounds = 24;
    for round in 0..rounds {
        let site = Site::new();
        killed += u32::from(was_killed(&site.ours("ADD", &conf), whole * (round + 1) / rounds));
        site.ours("DEL", &conf).ok();
        nothing_is_left(&site, &site.pod, &format!("round {round}"));
        let result = site.ours("ADD", &conf).ok();
        let mut check = conf.clone();
        check["prevResult"] = result;
        site.ours("CHECK", &check).ok();
        site.ours("DEL", &conf).ok();
        nothing_is_left(&site, &site.pod, &format!("round {round}, afterwards"));
    }
    assert!(rounds / 8 < killed, "only {killed} of {rounds} were killed in time");
}

#[test]
fn killed_without_a_zone() {
    let site = Site::new();
    let conf = conf(json!({}));
    let whole = time_of(&site, &conf);
    kill(&site, &conf, 40, whole);
}

/// A DEL that was killed is followed by another one.
#[test]
fn dels_killed_at_any_moment() {
    let site = Site::new();
    let conf = zoned(json!({}));
    time_of(&site, &conf);
    for round in 0..30u32 {
        site.ours("ADD", &conf).ok();
        let call = site.ours("DEL", &conf);
        was_killed(&call, Duration::from_micros(500 * u64::from(round + 1)));
        site.ours("DEL", &conf).ok();
        nothing_is_left(&site, &site.pod, &format!("round {round}"));
    }
}

#[test]
fn forty_at_once() {
    let site = Site::new();
    let mut ipam = pool();
    ipam["rangeEnd"] = json!("10.9.0.250");
    let conf = zoned(json!({"ipam": ipam}));
    let pods: Vec<_> = (0..40).map(|_| NetNs::new("many")).collect();
    let all = |command: &str| -> Vec<Outcome> {
        let running: Vec<Child> = pods
            .iter()
            .enumerate()
            .map(|(i, pod)| site.ours(command, &conf).id(&format!("many{i}")).netns(&pod.path()).spawn(&[]))
            .collect();
        running.into_iter().map(Outcome::of).collect()
    };
    // The lock is waited for 2 s: one that gives up says so, and is called again as a runtime would.
    let mut added = Vec::new();
    for (i, outcome) in all("ADD").into_iter().enumerate() {
        let outcome = match outcome.json["code"].as_u64() {
            Some(11) => site.ours("ADD", &conf).id(&format!("many{i}")).netns(&pods[i].path()).run(),
            _ => outcome,
        };
        assert_eq!(outcome.exit, 0, "{outcome:?}");
        added.push(outcome.json);
    }
    let unique = |key: &dyn Fn(&Value) -> String| added.iter().map(key).collect::<BTreeSet<_>>().len();
    assert_eq!(unique(&|result| mac_of(result).to_string()), 40);
    assert_eq!(unique(&|result| result["ips"][0]["address"].to_string()), 40);
    let rows = site.rows();
    assert_eq!(rows.len(), 40);
    assert_eq!(rows.iter().map(|(_, row)| row.id).collect::<BTreeSet<_>>().len(), 40);
    for result in &added {
        let address: ipnetwork::IpNetwork = result["ips"][0]["address"].as_str().unwrap().parse().unwrap();
        let row = site.row_of(mac_of(result));
        assert_eq!(std::net::IpAddr::from(row.v4[0]), address.ip());
    }
    for (i, outcome) in all("DEL").into_iter().enumerate() {
        if outcome.json["code"] == 11 {
            site.ours("DEL", &conf).id(&format!("many{i}")).netns(&pods[i].path()).ok();
        } else {
            assert_eq!(outcome.exit, 0, "{outcome:?}");
        }
    }
    eventually(PATIENCE, "rows are gone", || site.rows().is_empty().then_some(()));
    for pod in &pods {
        nothing_is_left(&site, pod, "after all");
    }
}

/// What is killed between an id and its row leaves an id that is nobody's.
#[test]
fn an_id_that_was_left_behind_is_given_again() {
    let site = Site::new();
    site.write(&site.root.settings(), r#"{"endpoints": 2}"#);
    let add = |id: &str, ifname: &str| site.ours("ADD", &zoned(json!({}))).id(id).ifname(ifname).ok();
    add("first", "net1");
    // Id 2 is that of 02:00:00:00:00:07 on master 1, which has no row.
    let owners = site.root.pins().join("maps/owners");
    let words = "key hex 02 00 00 00 value hex 02 00 00 00 00 07 01 00 01 00 00 00 00 00 00 00";
    let words: Vec<_> = words.split(' ').collect();
    common::run(&[&["bpftool", "map", "update", "pinned", owners.to_str().unwrap()][..], &words].concat());
    add("second", "net2");
    let ids: Vec<u32> = site.rows().iter().map(|(_, row)| row.id).collect();
    assert!(ids.contains(&1) && ids.contains(&2), "{ids:?}");
    site.ours("ADD", &zoned(json!({}))).id("third").ifname("net3").fails(130, "the maps cannot be used");
}
