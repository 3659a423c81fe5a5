//! Several processes at once, and processes that are killed at any moment: what comes of it is either enforced or
//! gone, and the next attach or ADD finds nothing it cannot mend.

mod common;

use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::enforce::{all_live, hooks, is_enforced, is_enforced_for, is_well, policed, private, ways};
use common::node::{MASTER, Node, Pod, conf, text};
use common::{NetNs, times};
use netpath_ebpf::abi::EndpointKey;
use serde_json::json;

/// The tool or the plugin on a node, begun and not waited for.
fn begin(node: &Node, before: &[&str], words: &[&str], plugin: Option<(&NetNs, serde_json::Value)>) -> Child {
    let binary = env!("CARGO_BIN_EXE_netpath");
    let line: Vec<&str> = before.iter().copied().chain([binary]).chain(words.iter().copied()).collect();
    let mut command = Command::new(line[0]);
    command
        .args(&line[1..])
        .env_clear()
        .env("NETPATH_ROOT", node.root.path())
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some((netns, _)) = &plugin {
        command.env("CNI_COMMAND", "ADD").env("CNI_CONTAINERID", netns.name()).env("CNI_NETNS", netns.path());
        command.env("CNI_IFNAME", "net1").env("CNI_PATH", node.root.join("bin"));
    }
    let mut child = node.netns.within(|| command.spawn()).expect("it can be run");
    let mut stdin = child.stdin.take().expect("piped");
    if let Some((_, conf)) = plugin {
        // One that was killed already reads nothing.
        let _ = std::io::Write::write_all(&mut stdin, conf.to_string().as_bytes());
    }
    child
}

/// Waits for a call, which must succeed; one whose patience ended while another had the lock is made again, as its
/// error asks for.
#[track_caller]
fn insist(call: Child, again: impl Fn() -> Child) {
    let mut output = call.wait_with_output().expect("it ends");
    while !output.status.success() && said(&output).contains("try again") {
        output = again().wait_with_output().expect("it ends");
    }
    assert!(output.status.success(), "{}", said(&output));
}

fn said(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].concat().iter().map(|byte| char::from(*byte)).collect()
}

/// A configuration for the `number`-th pod.
fn network(number: u8) -> serde_json::Value {
    let mut network = conf(&[&format!("10.12.34.{number}/24")], Some(&private()));
    network["mac"] = json!(text(mac(number)));
    network
}

fn mac(number: u8) -> [u8; 6] {
    [2, 0x71, 0, 0, 0, number]
}

fn pod_of(netns: NetNs, number: u8) -> Pod {
    Pod { netns, mac: mac(number), key: EndpointKey::new(1, mac(number)), conf: network(number) }
}

fn address(number: u8) -> std::net::Ipv4Addr {
    std::net::Ipv4Addr::new(10, 12, 34, number)
}

#[test]
fn the_first_adds_of_a_master_come_at_once() {
    for entry in ways() {
        let node = Node::new(&entry);
        let netnses: Vec<_> = (0..6).map(|_| NetNs::new("pod")).collect();
        let add = |netns, number| begin(&node, &[], &[], Some((netns, network(number))));
        let calls: Vec<_> = netnses.iter().zip(200..).map(|(netns, number)| add(netns, number)).collect();
        for (call, (netns, number)) in calls.into_iter().zip(netnses.iter().zip(200..)) {
            insist(call, || add(netns, number));
        }
        all_live(&node, &entry);
        assert_eq!(node.maps().masters().expect("readable").len(), 1);
        let mut ids: Vec<_> =
            node.maps().endpoints().expect("readable").iter().map(|(_, row)| row.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 6, "each has an id of its own");
        for (netns, number) in netnses.into_iter().zip(200..) {
            assert!(is_enforced_for(&node, &pod_of(netns, number), address(number)));
        }
        is_well(&node);
    }
}

#[test]
fn attach_and_uninstall_at_once_leave_all_or_nothing() {
    for entry in ways() {
        let node = Node::new(&entry);
        let pod = policed(&node);
        for _ in 0..times(5) {
            let lines: [&[&str]; 3] = [&["attach"], &["uninstall", "--yes"], &["attach"]];
            let calls = lines.map(|words| begin(&node, &[], words, None));
            for (call, words) in calls.into_iter().zip(lines) {
                insist(call, || begin(&node, &[], words, None));
            }
            match node.root.pins().exists() {
                true => {
                    all_live(&node, &entry);
                    assert!(is_enforced(&node, &pod));
                }
                false => {
                    for hook in ["ingress", "egress"] {
                        let filters = node.netns.exec(&format!("tc filter show dev {MASTER} {hook}"));
                        assert_eq!(filters.trim(), "", "{hook}");
                    }
                    assert!(!node.netns.ip(&format!("link show {MASTER}")).contains("xdp"));
                }
            }
            // Whoever was last: from here it goes on.
            node.netpath(&["attach"]);
            all_live(&node, &entry);
            assert!(is_enforced(&node, &pod));
        }
    }
}

#[test]
fn adds_while_the_programs_are_replaced() {
    for entry in ways() {
        let node = Node::new(&entry);
        let _first = policed(&node);
        let attach = || begin(&node, &[], &["attach"], None);
        let add = |netns, number| begin(&node, &[], &[], Some((netns, network(number))));
        let attaching = [attach(), attach(), attach()];
        let netnses: Vec<_> = (0..4).map(|_| NetNs::new("pod")).collect();
        let adding: Vec<_> = netnses.iter().zip(210..).map(|(netns, number)| add(netns, number)).collect();
        for call in attaching {
            insist(call, attach);
        }
        for (call, (netns, number)) in adding.into_iter().zip(netnses.iter().zip(210..)) {
            insist(call, || add(netns, number));
        }
        all_live(&node, &entry);
        for (netns, number) in netnses.into_iter().zip(210..) {
            assert!(is_enforced_for(&node, &pod_of(netns, number), address(number)));
        }
        is_well(&node);
    }
}

/// Runs the tool and kills it after a while; whether it was killed in time.
fn killed(node: &Node, words: &[&str], after: Duration) -> bool {
    let limit = format!("{:.4}", after.as_secs_f64());
    let output =
        begin(node, &["timeout", "-s", "KILL", &limit], words, None).wait_with_output().expect("it ends");
    match output.status.code() {
        Some(0) => false,
        // `timeout` kills itself the same way, or says so.
        Some(137) | None => true,
        _ => panic!("{words:?} after {after:?}: {}", said(&output)),
    }
}

/// How long the tool takes for this now, with what else the machine does.
fn time_of(node: &Node, words: &[&str]) -> Duration {
    let start = Instant::now();
    node.netpath(words);
    start.elapsed()
}

#[test]
fn a_killed_replacement_ends_nothing_and_the_next_attach_heals() {
    for entry in ways() {
        let node = Node::new(&entry);
        let pod = policed(&node);
        let (whole, rounds) = (time_of(&node, &["attach"]), times(12).max(4));
        let mut count = 0;
        for round in 0..rounds {
            count += u32::from(killed(&node, &["attach"], whole * (round + 1) / (rounds + 1)));
            // Before anybody mends anything: replaced in place or not yet, never gone.
            assert!(is_enforced(&node, &pod), "round {round}");
        }
        assert!(0 < count, "only {count} of {rounds} were killed in time");
        node.netpath(&["attach"]);
        all_live(&node, &entry);
        is_well(&node);
        assert!(is_enforced(&node, &pod));
    }
}

#[test]
fn a_killed_first_attach_is_finished_by_the_next_or_removed_without_a_trace() {
    for entry in ways() {
        let whole = {
            let node = Node::new(&entry);
            time_of(&node, &["attach"])
        };
        let (rounds, mut count) = (times(8).max(4), 0);
        for round in 0..rounds {
            let node = Node::new(&entry);
            count += u32::from(killed(&node, &["attach"], whole * (round + 1) / (rounds + 1)));
            if round % 2 == 0 {
                node.netpath(&["uninstall", "--yes"]);
                for hook in ["ingress", "egress"] {
                    let filters = node.netns.exec(&format!("tc filter show dev {MASTER} {hook}"));
                    assert_eq!(filters.trim(), "", "round {round}: {hook}");
                }
                assert!(!node.netns.ip(&format!("link show {MASTER}")).contains("xdp"), "round {round}");
                assert!(!node.root.pins().exists(), "round {round}");
            }
            let pod = policed(&node);
            all_live(&node, &entry);
            assert!(is_enforced(&node, &pod), "round {round}");
            is_well(&node);
        }
        assert!(0 < count, "only {count} of {rounds} were killed in time");
    }
}

#[test]
fn a_killed_uninstall_is_finished_by_the_next_and_undone_by_attach() {
    for entry in ways() {
        let node = Node::new(&entry);
        let pod = policed(&node);
        let whole = time_of(&node, &["uninstall", "--yes"]);
        let (rounds, mut count) = (times(8).max(4), 0);
        for round in 0..rounds {
            node.netpath(&["attach"]);
            count += u32::from(killed(&node, &["uninstall", "--yes"], whole * (round + 1) / (rounds + 1)));
            if round % 2 == 0 {
                node.netpath(&["uninstall", "--yes"]);
                let filters = node.netns.exec(&format!("tc filter show dev {MASTER} egress"));
                assert_eq!(filters.trim(), "", "round {round}");
            }
            node.netpath(&["attach"]);
            all_live(&node, &entry);
            assert!(is_enforced(&node, &pod), "round {round}: {:?}", hooks(&node));
            is_well(&node);
        }
        assert!(0 < count, "none of {rounds} was killed in time");
    }
}
