//! The tool on real attachments: made by the plugin, in namespaces, below a root of their own.

mod common;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
};

use aya::{
    Ebpf,
    programs::{LinkOrder, SchedClassifier, TcAttachType, tc::TcAttachOptions},
};
use common::{NetNs, PATIENCE, eventually, veth};
use netpath::{
    kernel::bpf::{
        maps::NAMES,
        object::{self, Settings},
    },
    root::Root,
    state::Lock,
};
use serde_json::{Value, json};

const NETWORK: &str = "privatezone";
const OUTSIDE: &str = "8.8.8.8";
const GATEWAY: &str = "10.12.34.254";
/// Exit code where nothing is loaded.
const NOTHING_LOADED: i32 = 3;
/// Exit code of `status` where something needs attention.
const ATTENTION: i32 = 4;

/// A node with master `enp0s8`, a gateway that also is the internet, and a pod.
struct Lab {
    root: tempfile::TempDir,
    node: NetNs,
    _gateway: NetNs,
    pod: NetNs,
}

impl Lab {
    fn new(masters: Option<Value>) -> Self {
        let root = tempfile::tempdir().expect("a directory for the node's root");
        let (node, gateway, pod) = (NetNs::new("node"), NetNs::new("gw"), NetNs::new("pod"));
        veth(&node, "enp0s8", &gateway, "sw");
        node.ip("addr add 10.12.34.101/24 dev enp0s8");
        gateway.ip("addr add 10.12.34.254/24 dev sw");
        gateway.ip("addr add 8.8.8.8/32 dev lo");
        if let Some(masters) = masters {
            let directory = root.path().join("etc/cni/net.d/netpath.d");
            fs::create_dir_all(&directory).expect("directory of masters.json");
            fs::write(directory.join("masters.json"), masters.to_string()).expect("masters.json");
        }
        Self { root, node, _gateway: gateway, pod }
    }

    /// The program in the node's namespace. Not by `ip netns exec`, which hides mounts.
    fn spawn(&self, command: &mut Command) -> Child {
        command.env("NETPATH_ROOT", self.root.path());
        self.node.within(|| command.spawn()).expect("the program can be started")
    }

    fn netpath(&self, words: &[&str]) -> Answer {
        let mut command = Command::new(env!("CARGO_BIN_EXE_netpath"));
        command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Answer::of(self.spawn(&mut command).wait_with_output().expect("output"))
    }

    /// The answer of a command that must succeed, as JSON.
    #[track_caller]
    fn json(&self, command: &str) -> Value {
        let answer = self.netpath(&[command, "-o", "json"]);
        assert_eq!(answer.code, 0, "{answer:?}");
        serde_json::from_str(&answer.stdout).expect("JSON")
    }

    /// Calls the plugin as a runtime does.
    #[track_caller]
    fn cni(&self, verb: &str, conf: &Value) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_netpath"));
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", "c1")
            .env("CNI_NETNS", self.pod.path())
            .env("CNI_IFNAME", "net1")
            .env("CNI_PATH", "/usr/lib/cni")
            .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=net-pod")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = self.spawn(&mut command);
        let mut stdin = child.stdin.take().expect("piped");
        std::io::Write::write_all(&mut stdin, conf.to_string().as_bytes()).expect("the plugin reads");
        drop(stdin);
        let answer = Answer::of(child.wait_with_output().expect("output"));
        assert_eq!(answer.code, 0, "{verb}: {answer:?}");
    }

    /// One echo request over net1; whether it was answered.
    fn ping(&self, target: &str) -> bool {
        let mut command = Command::new("ping");
        command
            .args(["-c", "1", "-W", "1", "-I", "net1", target])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.pod.within(|| command.status()).expect("ping is installed").success()
    }

    fn pins(&self) -> PathBuf {
        self.root.path().join("sys/fs/bpf/netpath/v1")
    }

    /// Applies a manifest with this zone.
    fn apply(&self, zone: &Value) -> Answer {
        let config = conf(zone).to_string();
        let manifest = format!(
            "kind: NetworkAttachmentDefinition\nmetadata:\n  name: {NETWORK}\nspec:\n  config: '{config}'\n"
        );
        let file = self.root.path().join("nad.yaml");
        fs::write(&file, manifest).expect("manifest");
        self.netpath(&["apply", file.to_str().expect("UTF-8")])
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Not asserted: a panic while another unwinds would hide it.
        let _ =
            Command::new("umount").arg(self.root.path().join("sys/fs/bpf")).stderr(Stdio::null()).status();
    }
}

#[derive(Debug)]
struct Answer {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Answer {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code().expect("it exits by itself"),
            stdout: String::from_utf8(output.stdout).expect("UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }

    #[track_caller]
    fn says(&self, sentence: &str) {
        assert!(self.stdout.contains(sentence), "`{sentence}` is not in {self:?}");
    }

    #[track_caller]
    fn complains(&self, sentence: &str) {
        assert!(self.stderr.contains(sentence), "`{sentence}` is not in {self:?}");
    }
}

/// The lab's network with this zone; `null` leaves it out.
fn conf(zone: &Value) -> Value {
    let mut conf = json!({
        "cniVersion": "1.0.0", "name": NETWORK, "type": "macvlan", "master": "enp0s8", "mode": "bridge",
        "ipam": {
            "type": "host-local", "subnet": "10.12.34.0/24", "rangeStart": "10.12.34.200",
            "rangeEnd": "10.12.34.220", "gateway": GATEWAY, "routes": [{ "dst": "0.0.0.0/0" }],
        },
    });
    if !zone.is_null() {
        conf["zone"] = zone.clone();
    }
    conf
}

fn private() -> Value {
    json!({ "policy": "private" })
}

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
    assert_eq!((&status["alerts"], &status["abi_version"]), (&json!([]), &json!(1)));
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
        json!([{ "prefix": "10.12.34.0/24", "egress": true, "ingress": true }])
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
    lab.netpath(&["drops"]).says("zone-deny: The other end is outside the private zone of this network.");
}

/// Somebody else's program at the head of the chain at egress, for as long as the object lives.
fn attach_ahead(lab: &Lab) -> Ebpf {
    let mut object =
        object::load(&lab.pins(), &Settings::default(), 1, object::cpus()).expect("the object loads");
    let program = object.program_mut("egress").expect("a program");
    let program: &mut SchedClassifier = program.try_into().expect("a classifier");
    program.load().expect("it passes the verifier");
    let first = TcAttachOptions::TcxOrder(LinkOrder::first());
    let attached = lab.node.within(|| program.attach_with_options("enp0s8", TcAttachType::Egress, first));
    attached.expect("it can be attached");
    object
}

#[test]
fn status_says_what_needs_attention() {
    let lab = Lab::new(Some(json!({ "enp0s8": {} })));
    lab.cni("ADD", &conf(&private()));
    let answer = lab.netpath(&["status"]);
    assert_eq!(answer.code, 0, "{answer:?}");
    assert!(!answer.stdout.contains("advice"), "{answer:?}");

    fs::remove_file(lab.pins().join("links/1/egress")).expect("the pin of the link");
    let answer = lab.netpath(&["status"]);
    assert_eq!(answer.code, ATTENTION, "{answer:?}");
    answer.says(
        "ALERT: enp0s8: egress is not attached, so nothing is enforced there: run `netpath attach enp0s8`",
    );
    assert_eq!(lab.netpath(&["attach", "enp0s8"]).code, 0);
    assert_eq!(lab.netpath(&["status"]).code, 0);

    let intruder = attach_ahead(&lab);
    let answer = lab.netpath(&["status"]);
    assert_eq!(answer.code, ATTENTION, "{answer:?}");
    answer.says("ALERT: enp0s8: egress runs before netpath at egress and may decide alone");
    drop(intruder);
    assert_eq!(lab.netpath(&["status"]).code, 0);

    fs::create_dir_all(lab.root.path().join("etc/netpath")).expect("directory");
    fs::write(lab.root.path().join("etc/netpath/disable"), "").expect("the file that switches netpath off");
    let answer = lab.netpath(&["status"]);
    assert_eq!(answer.code, ATTENTION, "{answer:?}");
    answer.says("etc/netpath/disable exists, so nothing is attached");
}

#[test]
fn a_changed_network_reaches_a_pod_that_runs() {
    let lab = Lab::new(Some(json!({ "enp0s8": {
        "zone": { "local": ["10.12.34.0/24"], "allow": ["8.8.8.8/32", "10.0.0.0/8"], "mode": "audit" },
    } })));
    lab.cni("ADD", &conf(&private()));
    assert!(!lab.ping(OUTSIDE));

    let answer = lab.apply(&json!({ "policy": "private", "allow": ["8.8.8.8/32"] }));
    assert_eq!(answer.code, 0, "{answer:?}");
    answer.says("privatezone on enp0s8: generation 2 in force for 1 attachment, enforce\n    + 8.8.8.8/32");
    assert!(lab.ping(OUTSIDE));
    lab.apply(&json!({ "policy": "private", "allow": ["8.8.8.8/32"] }))
        .says("generation 2 was in force already for 1 attachment, enforce");

    // The record has it as the last good one.
    let record = fs::read_to_string(lab.root.path().join("var/lib/netpath/v1/c1-net1.json")).expect("record");
    let record: Value = serde_json::from_str(&record).expect("JSON");
    assert_eq!(record["zone"]["compiled"]["allow"], json!(["8.8.8.8/32"]));
    assert_eq!(record["zone"]["digest"], lab.json("zones")["zones"][0]["digest"]);
    assert_eq!(record["conf"]["zone"], private(), "how it ends does not change");

    for (zone, why) in [
        (json!({ "policy": "private", "alow": ["8.8.8.8/32"] }), "`zone.alow` is not a known key"),
        (json!({ "policy": "private", "allow": ["9.9.9.9/32"] }), "`zone.allow` has `9.9.9.9/32`, the bound"),
    ] {
        let answer = lab.apply(&zone);
        assert_eq!(answer.code, 1, "{answer:?}");
        answer.complains("privatezone is refused, generation 2 of its zone stays in force: ");
        answer.complains(why);
        assert!(lab.ping(OUTSIDE), "the last good zone stays");
    }

    lab.apply(&json!({ "policy": "private", "mode": "audit" }))
        .says("generation 3 in force for 1 attachment, audit");
    assert!(lab.ping(OUTSIDE), "audit lets it pass");
    let pods = lab.json("pods");
    assert_eq!(pods["pods"][0]["mode"], "audit");
    assert!(pods["pods"][0]["tx_audited"].as_u64().is_some_and(|count| 1 <= count), "{pods}");
    lab.apply(&private()).says("enforce for 1 attachment, generation 3 as before");
    assert!(!lab.ping(OUTSIDE));

    // More prefixes than a slot holds go into the trie, and are read back from it.
    let many: Vec<String> = (0..12).map(|n| format!("10.99.{n}.0/24")).collect();
    let answer = lab.apply(&json!({ "policy": "private", "allow": many }));
    assert_eq!(answer.code, 0, "{answer:?}");
    let zones = lab.json("zones");
    assert_eq!(zones["zones"][0]["trie_v4"], true, "{zones}");
    assert_eq!(zones["zones"][0]["prefixes"].as_array().map(Vec::len), Some(13), "{zones}");
    assert!(lab.ping(GATEWAY));
}

#[test]
fn a_zone_comes_to_a_pod_without_one_and_leaves_it() {
    let lab = Lab::new(Some(json!({ "enp0s8": {} })));
    lab.cni("ADD", &conf(&Value::Null));
    let key = "net/ipv4/conf/net1/drop_unicast_in_l2_multicast";
    assert!(lab.ping(OUTSIDE));
    assert_eq!(lab.pod.sysctl(key), "0");
    lab.apply(&private()).says("generation 1 in force for 1 attachment, enforce");
    assert!(!lab.ping(OUTSIDE));
    assert_eq!(lab.pod.sysctl(key), "1");
    lab.apply(&Value::Null).says("no zone; 1 attachment counted and not policed from now on");
    assert!(lab.ping(OUTSIDE));
    assert_eq!(lab.json("pods")["pods"][0]["zone"], Value::Null);
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
