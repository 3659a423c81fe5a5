//! The tool on real attachments: made by the plugin, in namespaces, below a root of their own.

#[path = "kernel_cli/apply.rs"]
mod apply;
mod common;
#[path = "kernel_cli/lab.rs"]
mod lab;

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
};

use aya::programs::{LinkOrder, Program, SchedClassifier, TcAttachType, tc::TcAttachOptions};
use common::loaded;
use common::node::usual_via;
use common::{NetNs, PATIENCE, eventually};
use lab::{ATTENTION, Answer, GATEWAY, Lab, NETWORK, NOTHING_LOADED, OUTSIDE, conf, private};
use netpath::{
    kernel::bpf::{Hook, attach::Via, maps::NAMES},
    root::Root,
    state::Lock,
};
use serde_json::{Value, json};

#[test]
fn where_nothing_is_loaded_one_sentence_says_so() {
    let lab = Lab::new(None);
    let sentence = format!(
        "nothing is loaded below {}: no attachment has been policed yet on this node, or netpath was uninstalled",
        lab.pins().display()
    );
    for command in ["status", "pods", "zones", "drops"] {
        let answer = lab.netpath(&[command]);
        assert_eq!((answer.code, answer.stdout.trim_end()), (NOTHING_LOADED, sentence.as_str()), "{command}");
        let answer = lab.netpath(&[command, "-o", "json"]);
        let value: Value = serde_json::from_str(&answer.stdout).expect("JSON");
        assert_eq!((answer.code, &value["loaded"]), (NOTHING_LOADED, &json!(false)), "{command}");
    }
    let answer = lab.netpath(&["uninstall"]);
    assert_eq!(answer.code, 0, "{answer:?}");
    answer.says("nothing is loaded below");
    let answer = lab.apply(&private());
    assert_eq!(answer.code, NOTHING_LOADED, "{answer:?}");
    answer.says("the network is valid, and nothing is loaded");
    assert!(!lab.pins().exists(), "looking makes nothing");
}

#[test]
fn where_rights_are_missing_one_sentence_says_so() {
    let lab = Lab::new(None);
    for command in ["status", "pods", "zones", "drops", "attach", "uninstall"] {
        let mut powerless = Command::new("setpriv");
        powerless
            .args(["--bounding-set=-all", env!("CARGO_BIN_EXE_netpath"), command])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let answer = Answer::of(lab.spawn(&mut powerless).wait_with_output().expect("output"));
        assert_eq!((answer.code, answer.stdout.as_str()), (1, ""), "{command}: {answer:?}");
        answer.complains("no right to use BPF maps: run this as root");
    }
}

/// Every key of a JSON answer, at any depth.
fn keys(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                found.push(key.clone());
                keys(value, found);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| keys(value, found)),
        _ => {}
    }
}

/// Programs rely on the keys, so each of them is documented.
#[track_caller]
fn is_documented(answer: &Value) {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cli.md");
    let page = fs::read_to_string(page).expect("docs/cli.md");
    let words: Vec<&str> = page.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    let mut found = Vec::new();
    keys(answer, &mut found);
    let missing: Vec<_> = found.iter().filter(|key| !words.contains(&key.as_str())).collect();
    assert!(missing.is_empty(), "docs/cli.md does not name {missing:?}");
}

#[test]
fn an_attachment_is_shown_with_what_happened_to_it() {
    let lab = Lab::new(None);
    // A macvlan that was there before netpath: it has to be up to be in the master's list.
    let other = NetNs::new("other");
    lab.node.ip(&format!("link add up0 link enp0s8 netns {} type macvlan mode bridge", other.name()));
    other.ip("link set up0 up");
    lab.cni("ADD", &conf(&private()));
    assert!(lab.ping(GATEWAY));
    assert!(!lab.ping(OUTSIDE));

    let status = lab.json("status");
    let master = &status["masters"][0];
    assert_eq!(
        (&master["name"], &master["id"], &master["build"], &master["bounded"], &master["present"]),
        (&json!("enp0s8"), &json!(1), &json!("this"), &json!(false), &json!(true)),
        "{status}"
    );
    let hooks: Vec<_> = master["hooks"].as_array().expect("hooks").iter().collect();
    assert_eq!(hooks.len(), 2, "{status}");
    for (hook, name) in hooks.into_iter().zip(["ingress", "egress"]) {
        assert_eq!(
            (&hook["hook"], &hook["state"], &hook["ahead"]),
            (&json!(name), &json!("live"), &json!([]))
        );
        assert!(hook["program_id"].as_u64().is_some_and(|id| id != 0), "{hook}");
    }
    assert_eq!(status["maps"]["endpoints"]["used"], 2, "{status}");
    assert_eq!((&status["alerts"], &status["abi_version"]), (&json!([]), &json!(4)));
    let answer = lab.netpath(&["status"]);
    answer.says("zones on enp0s8 are advice: any NAD may use it without one");
    answer.says("MASTER  ID  HOOK     VIA");

    let pods = lab.json("pods");
    let pod = &pods["pods"][0];
    for (key, value) in [
        ("namespace", json!("default")),
        ("name", json!("net-pod")),
        ("ifname", json!("net1")),
        ("network", json!(NETWORK)),
        ("zone", json!(NETWORK)),
        ("master", json!("enp0s8")),
        ("ips", json!(["10.12.34.200"])),
        ("mode", json!("enforce")),
        ("kind", json!("endpoint")),
    ] {
        assert_eq!(pod[key], value, "{key} in {pods}");
    }
    assert!(pod["rx_packets"].as_u64().is_some_and(|count| 1 <= count), "{pods}");
    assert!(pod["tx_dropped"].as_u64().is_some_and(|count| 1 <= count), "{pods}");
    assert!(lab.pod.ip("link show net1").contains(pod["mac"].as_str().expect("a MAC")), "{pods}");
    assert_eq!(pods["pods"][1]["kind"], "foreign", "{pods}");
    let answer = lab.netpath(&["pods"]);
    answer.says("default/net-pod  net1  privatezone  enp0s8  10.12.34.200");
    answer.says("(foreign)");
    lab.netpath(&["pods", "--wide"]).says("1:privatezone");

    let zones = lab.json("zones");
    assert_eq!(
        zones["zones"][0]["prefixes"],
        json!([{ "prefix": "10.12.34.0/24", "egress": true, "ingress": true, "ports": [] }])
    );
    assert_eq!(zones["zones"][0]["attachments"], json!(["default/net-pod/net1"]));
    lab.netpath(&["zones"]).says("privatezone (row 1, generation 1, enforce, used by default/net-pod/net1)");

    let drops = lab.json("drops");
    let drop = &drops["drops"][0];
    assert_eq!(
        (&drop["name"], &drop["direction"], &drop["reason"]),
        (&json!("net-pod"), &json!("tx"), &json!("zone-deny")),
        "{drops}"
    );
    assert_eq!(drop["dropped"], pod["tx_dropped"], "{drops}");
    [&status, &pods, &zones, &drops].into_iter().for_each(is_documented);
    lab.netpath(&["drops"]).says("zone-deny: The other end is outside the private zone of this network.");
}

/// Somebody else's program at the head of the chain at egress, for as long as it lives.
fn attach_ahead(lab: &Lab) -> Program {
    let (_, mut theirs) = loaded::programs(&lab.pins(), 1, &[Hook::Egress]).pop_first().expect("a program");
    let program: &mut SchedClassifier = (&mut theirs).try_into().expect("a classifier");
    let first = TcAttachOptions::TcxOrder(LinkOrder::first());
    let attached = lab.node.within(|| program.attach_with_options("enp0s8", TcAttachType::Egress, first));
    attached.expect("it can be attached");
    theirs
}

#[test]
fn status_says_what_needs_attention() {
    let lab = Lab::new(Some(json!({ "enp0s8": {} })));
    lab.cni("ADD", &conf(&private()));
    let answer = lab.netpath(&["status"]);
    assert_eq!(answer.code, 0, "{answer:?}");
    assert!(!answer.stdout.contains("advice"), "{answer:?}");

    // A TCX link is held by its pin, a filter by its qdisc.
    match usual_via() {
        Via::Clsact => drop(lab.node.exec("tc qdisc del dev enp0s8 clsact")),
        _ => fs::remove_file(lab.pins().join("links/1/egress")).expect("the pin of the link"),
    }
    let answer = lab.netpath(&["status"]);
    assert_eq!(answer.code, ATTENTION, "{answer:?}");
    answer.says(
        "ALERT: enp0s8: egress is not attached, so nothing is enforced there: run `netpath attach enp0s8`",
    );
    assert_eq!(lab.netpath(&["attach", "enp0s8"]).code, 0);
    assert_eq!(lab.netpath(&["status"]).code, 0);

    fs::create_dir_all(lab.root.path().join("etc/netpath")).expect("directory");
    fs::write(lab.root.path().join("etc/netpath/disable"), "").expect("the file that switches netpath off");
    let answer = lab.netpath(&["status"]);
    assert_eq!(answer.code, ATTENTION, "{answer:?}");
    answer.says("etc/netpath/disable exists, so nothing is attached");
}

/// TCX is a chain that anybody may put himself at the head of.
#[test]
fn status_names_the_program_that_comes_before_ours_at_a_tcx_hook() {
    let lab = Lab::new(Some(json!({ "enp0s8": {} })));
    lab.cni("ADD", &conf(&private()));
    let intruder = attach_ahead(&lab);
    let answer = lab.netpath(&["status"]);
    assert_eq!(answer.code, ATTENTION, "{answer:?}");
    answer.says("ALERT: enp0s8: egress runs before netpath at egress and may decide alone");
    drop(intruder);
    assert_eq!(lab.netpath(&["status"]).code, 0);
}

/// Lines of a process as they come.
fn lines(child: &mut Child) -> Receiver<String> {
    let stdout = BufReader::new(child.stdout.take().expect("piped"));
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in stdout.lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

#[test]
fn drops_are_followed_by_one_reader() {
    let lab = Lab::new(Some(json!({ "enp0s8": {} })));
    lab.cni("ADD", &conf(&private()));
    let follow = |format: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_netpath"));
        command.args(["drops", "--follow", "-o", format]).stdout(Stdio::piped()).stderr(Stdio::null());
        lab.spawn(&mut command)
    };
    let lock = lab.root.path().join("run/netpath/events.lock");
    let holder = || fs::read_to_string(&lock).ok().and_then(|text| text.trim().parse::<u32>().ok());

    let mut first = follow("json");
    eventually(PATIENCE, "the first reader has the lock", || (holder() == Some(first.id())).then_some(()));
    let answer = lab.netpath(&["drops", "--follow"]);
    assert_eq!(answer.code, 1, "{answer:?}");
    answer.complains(&format!("events are already being read by process {}", first.id()));

    let events = lines(&mut first);
    assert!(!lab.ping(OUTSIDE));
    let event: Value = serde_json::from_str(&events.recv_timeout(PATIENCE).expect("an event")).expect("JSON");
    for (key, value) in [
        ("attachment", json!("default/net-pod/net1")),
        ("reason", json!("zone-deny")),
        ("direction", json!("tx")),
        ("destination", json!(OUTSIDE)),
        ("icmp_type", json!(8)),
        ("master_name", json!("enp0s8")),
        ("count", json!(1)),
    ] {
        assert_eq!(event[key], value, "{key} in {event}");
    }
    is_documented(&event);
    first.kill().expect("it runs");
    first.wait().expect("it ended");

    // The lock went with its holder, and people get sentences.
    let mut second = follow("table");
    eventually(PATIENCE, "the second reader has the lock", || (holder() == Some(second.id())).then_some(()));
    let events = lines(&mut second);
    assert!(!lab.ping(OUTSIDE));
    let line = events.recv_timeout(PATIENCE).expect("an event");
    assert!(line.starts_with("default/net-pod/net1 → 8.8.8.8: ICMP type 8"), "{line}");
    assert!(line.ends_with("The other end is outside the private zone of this network."), "{line}");

    // Without netpath there is nothing to follow, and the reader does not wait for ever.
    assert_eq!(lab.netpath(&["uninstall", "--yes"]).code, 0);
    let ended = eventually(PATIENCE, "the reader ends", || second.try_wait().expect("a child"));
    assert_eq!(ended.code(), Some(1));
}

/// Ids of the programs on the masters.
fn programs(lab: &Lab) -> Vec<u64> {
    let status = lab.json("status");
    let masters = status["masters"].as_array().expect("masters").iter();
    let hooks = masters.flat_map(|master| master["hooks"].as_array().expect("hooks"));
    hooks.map(|hook| hook["program_id"].as_u64().expect("an id")).collect()
}

/// Those that the kernel still holds, as another program sees it.
fn alive(programs: &[u64]) -> Vec<u64> {
    let shows = |id: &&u64| {
        let mut bpftool = Command::new("bpftool");
        bpftool.args(["prog", "show", "id", &id.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
        bpftool.status().expect("bpftool is installed").success()
    };
    programs.iter().filter(shows).copied().collect()
}

/// Programs are freed by the kernel a little after their last user has gone.
fn all_gone(programs: &[u64]) {
    eventually(PATIENCE, "the programs are gone", || alive(programs).is_empty().then_some(()));
}

#[test]
fn uninstall_asks_first_and_leaves_nothing() {
    let lab = Lab::new(Some(json!({ "enp0s8": { "xdp": "native", "promisc": "on" } })));
    lab.cni("ADD", &conf(&private()));
    let programs = programs(&lab);
    assert_eq!((programs.len(), alive(&programs)), (3, programs.clone()));
    assert!(lab.node.ip("link show enp0s8").contains("PROMISC"));

    let answer = lab.netpath(&["uninstall"]);
    assert_eq!(answer.code, 1, "{answer:?}");
    answer.complains("standard input is no terminal: give --yes");
    assert!(!lab.ping(OUTSIDE), "nothing was changed");
    assert_eq!(alive(&programs), programs);

    // Somebody else writes maps at the moment: named, and nothing is torn out from under it.
    let busy = Lock::acquire(&Root::new(lab.root.path())).expect("the lock is free");
    let answer = lab.netpath(&["uninstall", "--yes"]);
    assert_eq!(answer.code, 1, "{answer:?}");
    answer.complains(&format!("process {} holds the lock", std::process::id()));
    drop(busy);

    let answer = lab.netpath(&["uninstall", "--yes"]);
    assert_eq!(answer.code, 0, "{answer:?}");
    answer.says("default/net-pod (net1) loses its zone and keeps running; its DEL works from");
    let pins = NAMES.len() + 3;
    answer.says(&format!(
        "detached from enp0s8, {pins} pins removed; nothing of netpath is in the kernel any more"
    ));
    all_gone(&programs);
    assert!(!lab.root.path().join("sys/fs/bpf/netpath").exists());
    assert!(!lab.node.ip("link show enp0s8").contains("PROMISC"), "promiscuous mode was netpath's");
    assert!(lab.ping(OUTSIDE), "nothing is policed any more");

    lab.cni("DEL", &conf(&private()));
    assert!(!lab.pod.ip("-o link").contains("net1"));
    assert!(!lab.root.path().join("var/lib/netpath/v1/c1-net1.json").exists());
}

#[test]
fn uninstall_works_without_records() {
    let lab = Lab::new(Some(json!({ "enp0s8": {} })));
    lab.cni("ADD", &conf(&private()));
    let programs = programs(&lab);
    assert_eq!(programs.len(), 2);
    fs::remove_dir_all(lab.root.path().join("var")).expect("the records");
    let answer = lab.netpath(&["uninstall", "--yes"]);
    assert_eq!(answer.code, 0, "{answer:?}");
    all_gone(&programs);
    assert!(lab.ping(OUTSIDE));
}
