//! An agent beside many pods that come and go while their networks change: what is in force at the end is what was
//! wished last, and the agent has not grown.

#[path = "common/agent.rs"]
mod agent;
#[path = "common/api.rs"]
mod api;
mod common;
#[path = "common/http.rs"]
mod http;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use agent::Agent;
use api::FakeApi;
use common::enforce::private;
use common::node::{Node, Pod, conf};
use serde_json::{Value, json};

const NETWORKS: usize = 50;
const PODS: usize = 250;

/// A pod of a cluster, with the number that all of it is made of.
struct Member {
    number: usize,
    pod: Pod,
}

fn network(number: usize, is_open: bool) -> Value {
    let mut zone = private();
    if is_open {
        zone["allow"] = json!(["8.0.0.0/8"]);
    }
    let address = format!("10.12.{}.{}/16", 100 + number / 250, 1 + number % 250);
    let mut conf = conf(&[&address], Some(&zone));
    conf["name"] = json!(format!("net{}", number % NETWORKS));
    conf
}

fn start(node: &Node, api: &FakeApi, number: usize, is_open: bool) -> Member {
    let (name, uid) = (format!("pod{number}"), format!("uid{number}"));
    api.pod("web", &name, &uid, json!({}));
    *node.args.lock().unwrap() = format!("K8S_POD_NAMESPACE=web;K8S_POD_NAME={name};K8S_POD_UID={uid}");
    let pod = node.pod_with(network(number, is_open));
    api.runs("web", &name);
    Member { number, pod }
}

fn end(node: &Node, api: &FakeApi, member: &Member) {
    node.delete(&member.pod);
    api.remove(&format!("pods/web/pod{}", member.number));
}

/// Zones in force, by the network's name: whether the internet is in them.
fn zones(node: &Node) -> BTreeMap<String, bool> {
    let told: Value = serde_json::from_str(&node.netpath(&["zones", "-o", "json"])).unwrap();
    let zones = told["zones"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|zone| zone["attachments"].as_array().is_some_and(|attachments| !attachments.is_empty()));
    zones
        .map(|zone| {
            let prefixes = zone["prefixes"].to_string();
            (zone["name"].as_str().unwrap().to_owned(), prefixes.contains("8.0.0.0/8"))
        })
        .collect()
}

#[test]
fn pods_come_and_go_while_networks_change() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    let api = FakeApi::new(&node.netns);
    let mut open = [false; NETWORKS];
    for number in 0..NETWORKS {
        api.nad("web", &format!("net{number}"), &network(number, false));
    }
    let agent = Agent::with_api(&node, &api).ready();
    let resident = || agent.value("process_resident_memory_bytes", &[]).unwrap() / 1024;
    let cpu = || agent.value("process_cpu_seconds_total", &[]).unwrap();
    let idle = resident();
    let mut members: Vec<Member> = (0..PODS).map(|number| start(&node, &api, number, false)).collect();
    agent.passes();
    let full = resident();

    // For whoever wants to know what it costs where nothing happens: with a scrape every five seconds.
    if std::env::var_os("NETPATH_TEST_MEASURE").is_some() {
        let ticks = || -> u64 {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", agent.process.id())).unwrap();
            let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
            fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
        };
        let before = ticks();
        for _ in 0..12 {
            std::thread::park_timeout(Duration::from_secs(5));
            agent.metrics();
        }
        eprintln!("{} hundredths of a second of CPU in 60 s with {PODS} pods", ticks() - before);
    }

    // How long an edit takes until it is in force.
    let mut latencies: Vec<Duration> = (0..20)
        .map(|round| {
            open[0] = round % 2 == 0;
            let generation =
                || node.maps().zones().unwrap().iter().map(|zone| zone.slot.generation).sum::<u64>();
            let before = generation();
            api.nad("web", "net0", &network(0, open[0]));
            let begun = Instant::now();
            agent.eventually("the edit is in force", || (generation() != before).then_some(()));
            begun.elapsed()
        })
        .collect();
    latencies.sort();

    // Somebody scrapes all the time.
    let is_over = AtomicBool::new(false);
    let (mut churned, mut edits) = (0, 0);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                agent.metrics();
                std::thread::park_timeout(Duration::from_millis(500));
            }
        });
        while begun.elapsed() < Duration::from_secs(12) {
            let pace = Duration::from_millis(50) * (churned + 1);
            let member = members.swap_remove(usize::try_from(churned).unwrap() * 7 % PODS);
            end(&node, &api, &member);
            let number = PODS + usize::try_from(churned).unwrap();
            members.push(start(&node, &api, number, open[number % NETWORKS]));
            churned += 1;
            if churned % 2 == 0 {
                let network_number = usize::try_from(edits).unwrap() * 11 % NETWORKS;
                open[network_number] = !open[network_number];
                let config = network(network_number, open[network_number]);
                api.nad("web", &format!("net{network_number}"), &config);
                edits += 1;
            }
            std::thread::park_timeout(pace.saturating_sub(begun.elapsed()));
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let wished: BTreeMap<String, bool> =
        open.iter().enumerate().map(|(number, is_open)| (format!("net{number}"), *is_open)).collect();
    agent.eventually("zones are as they were wished last", || (zones(&node) == wished).then_some(()));
    let told: Value = serde_json::from_str(&node.netpath(&["pods", "-o", "json"])).unwrap();
    let mut rows: Vec<_> =
        told["pods"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap().to_owned()).collect();
    let mut names: Vec<_> = members.iter().map(|member| format!("pod{}", member.number)).collect();
    rows.sort();
    names.sort();
    assert_eq!(rows, names);
    assert_eq!(told["unpoliced"], json!([]));
    // Series end with their pods.
    let series = || {
        agent.metrics().lines().filter(|line| line.starts_with("netpath_pod_transmit_packets_total{")).count()
    };
    agent.eventually("one series a pod", || (series() == PODS).then_some(()));
    assert_eq!(agent.value("netpath_endpoints", &[]), Some(u64::try_from(PODS).unwrap()));
    let after = resident();
    eprintln!(
        "{churned} pods and {edits} edits in {:?}; an edit is in force after {:?} (median), {:?} (longest); resident KiB: \
         {idle} idle, {full} with {PODS} pods, {after} at the end; {} s of CPU; a scrape takes {} us",
        begun.elapsed(),
        latencies[latencies.len() / 2],
        latencies[latencies.len() - 1],
        cpu(),
        agent.value("netpath_scrape_microseconds", &[]).unwrap()
    );
    if std::env::var_os("NETPATH_LOG").is_some() {
        eprintln!("{}", agent.log.lock().unwrap());
    }
    // It is an allocator's business how much; what leaks with each pod or edit would be more.
    assert!(after < full + full / 4, "{full} KiB, then {after} KiB");
}
