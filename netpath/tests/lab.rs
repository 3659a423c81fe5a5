//! `netpath lab` as a newcomer runs it: that it is right, that it can be wrong, and that nothing of it is left.

mod common;

use std::{
    fs::{self, Permissions},
    io::{BufRead as _, BufReader, Read as _},
    os::unix::{
        fs::PermissionsExt as _,
        process::{CommandExt as _, ExitStatusExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
};

use common::{PATIENCE, eventually, run};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

fn netpath() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_netpath"));
    command.stdin(Stdio::null());
    command
}

fn lab(args: &[&str]) -> Output {
    netpath().arg("lab").args(args).output().expect("the binary under test runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What exists of a lab: namespaces, its directory, mounts.
fn remains(id: &str) -> Vec<String> {
    assert_eq!(id.len(), 6, "not an id: {id}");
    let names = |dir: &str| -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{dir}: {error}"));
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
    };
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts are readable");
    let all = names("/run").into_iter().chain(names("/run/netns")).chain(mounts.lines().map(str::to_owned));
    all.filter(|name| name.contains(&format!("netpath-lab-{id}"))).collect()
}

#[track_caller]
fn assert_nothing_is_left(id: &str) {
    assert_eq!(remains(id), Vec::<String>::new());
}

/// The id in `Lab aB3xYz: …`.
#[track_caller]
fn id_of(text: &str) -> String {
    let id = text.strip_prefix("Lab ").and_then(|rest| rest.split(':').next());
    id.unwrap_or_else(|| panic!("no id in {text:?}")).to_owned()
}

/// A lab that has just begun, and its id.
fn begun() -> (Child, BufReader<std::process::ChildStdout>, String) {
    let mut child = netpath().arg("lab").stdout(Stdio::piped()).spawn().expect("the binary under test runs");
    let mut reader = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    reader.read_line(&mut line).expect("a first line");
    (child, reader, id_of(&line))
}

/// A lab that stands; a test that fails does not leave it.
struct Standing(String);

impl Drop for Standing {
    fn drop(&mut self) {
        // Not asserted: the test may be unwinding, and may have removed it.
        let _ = lab(&["--remove", &self.0]);
    }
}

fn send(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id()).expect("a process id");
    kill(Pid::from_raw(pid), signal).expect("it is running");
}

/// The row from `from` to `address` by `interface`.
#[track_caller]
fn row<'a>(report: &'a Value, [from, address, interface]: [&str; 3]) -> &'a Value {
    let rows = report["rows"].as_array().expect("rows");
    let mut found = rows
        .iter()
        .filter(|row| [&row["from"], &row["address"], &row["interface"]] == [from, address, interface]);
    let row = found.next().unwrap_or_else(|| panic!("no row from {from} to {address} by {interface}"));
    assert!(found.next().is_none(), "two rows from {from} to {address} by {interface}");
    row
}

#[test]
fn two_labs_at_once_are_green_and_leave_nothing() {
    let table = thread::spawn(|| lab(&[]));
    let json = lab(&["-o", "json"]);
    let table = table.join().expect("the other lab");

    assert!(table.status.success(), "{}{}", stdout(&table), stderr(&table));
    let text = stdout(&table);
    assert!(text.contains("20 questions, all answered as expected"), "{text}");
    assert!(text.contains("ARP 10.12.34.222 to 8.8.8.8, 42 bytes, dropped, zone-deny"), "{text}");
    assert!(!text.contains("WRONG"), "{text}");

    assert!(json.status.success(), "{}{}", stdout(&json), stderr(&json));
    let report: Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!((&report["ok"], &report["promiscuous"]), (&true.into(), &true.into()));
    let programs = report["programs"].as_array().expect("programs");
    assert!(programs.contains(&"xdp native".into()) && programs.len() == 3, "{programs:?}");

    let happened = |key: [&str; 3]| {
        let row = row(&report, key);
        let half = |half: &str| format!("{} {}", row[half]["happened"], row[half]["reason"]).replace('"', "");
        [half("withoutZone"), half("withZone")]
    };
    let reached = "reached null";
    for address in ["10.12.34.254", "10.12.34.102", "10.12.34.10"] {
        assert_eq!(happened(["net-pod", address, "net1"]), [reached; 2], "{address}");
    }
    assert_eq!(happened(["net-pod", "10.12.34.101", "net1"]), ["unanswered null"; 2]);
    assert_eq!(happened(["net-pod", "8.8.8.8", "eth0"]), [reached; 2]);
    assert_eq!(happened(["net-pod", "8.8.8.8", "net1"]), [reached, "dropped zone-deny"]);
    assert_eq!(happened(["net-pod", "from a foreign MAC", "net1"]), [reached, "dropped source-mac"]);
    assert_eq!(happened(["riddle-pod", "2001:db8:12:34::fe", "net1"]), [reached; 2]);
    assert_eq!(happened(["riddle-pod", "2001:4860:4860::8888", "net1"]), [reached, "dropped zone-deny"]);

    // The riddle by its reason: an ARP request that is heard, and with the zone one that is told of.
    let riddle = row(&report, ["riddle-pod", "8.8.8.8", "net1"]);
    assert_eq!(happened(["riddle-pod", "8.8.8.8", "net1"]), ["unanswered null", "dropped zone-deny"]);
    let heard = &riddle["withoutZone"]["heardOnTheWire"];
    assert!(heard["arpForTarget"].as_u64() > Some(0) && heard["arpForTarget"] == heard["sent"], "{heard}");
    assert_eq!(riddle["withZone"]["heardOnTheWire"]["sent"], 0, "{riddle}");
    let event = &riddle["withZone"]["events"][0];
    assert_eq!((&event["ethertype"], &event["destination"]), (&0x0806.into(), &"8.8.8.8".into()), "{event}");

    let ids = [id_of(&text), report["lab"].as_str().expect("an id").to_owned()];
    assert_ne!(ids[0], ids[1]);
    ids.iter().for_each(|id| assert_nothing_is_left(id));
}

#[test]
fn a_kept_lab_stands_until_it_is_removed() {
    let output = lab(&["--keep"]);
    let text = stdout(&output);
    let standing = Standing(id_of(&text));
    assert!(output.status.success(), "{text}{}", stderr(&output));
    let id = &standing.0;
    let netns = |host: &str| format!("/run/netns/netpath-lab-{id}-{host}");
    for host in ["switch", "internet", "gateway", "master01", "worker01", "worker02", "net-pod", "riddle-pod"]
    {
        assert!(text.contains(&format!("nsenter --net={} bash", netns(host))), "{host}: {text}");
    }
    assert!(text.contains(&format!("lab --remove {id}")), "{text}");

    // Enforcement stands with nothing of netpath running, and the master as promiscuous as it was made.
    let pod = |words: &[&str]| {
        let net = format!("--net={}", netns("net-pod"));
        Command::new("nsenter").arg(net).args(words).output().expect("nsenter is installed")
    };
    let ping = |by: &str, to: &str| pod(&["ping", "-c", "1", "-w", "1", "-I", by, to]).status.success();
    assert!(ping("net1", "10.12.34.254") && ping("eth0", "8.8.8.8") && !ping("net1", "8.8.8.8"));
    let link = run(&["ip", "-n", &format!("netpath-lab-{id}-worker01"), "link", "show", "enp0s8"]);
    assert!(link.contains(",PROMISC,"), "{link}");

    let removed = lab(&["--remove", id]);
    assert!(removed.status.success(), "{}", stderr(&removed));
    assert_nothing_is_left(id);
    let again = lab(&["--remove", id]);
    assert!(!again.status.success());
    let expected = format!(
        "netpath: there is no lab `{id}`: neither /run/netpath-lab-{id} nor a namespace of that name exists\n"
    );
    assert_eq!(stderr(&again), expected);
}

#[test]
fn a_signal_ends_it_and_nothing_is_left() {
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130)] {
        let (mut child, mut reader, id) = begun();
        assert!(!remains(&id).is_empty(), "it has begun");
        send(&child, signal);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).expect("text");
        assert_eq!(child.wait().expect("it ends").code(), Some(code), "{rest}");
        assert!(!rest.contains("answered"), "it ended early: {rest}");
        assert_nothing_is_left(&id);
    }
}

#[test]
fn what_a_killed_lab_leaves_can_be_removed() {
    let (mut child, _reader, id) = begun();
    let _standing = Standing(id.clone());
    let mounted = || remains(&id).iter().any(|what| what.contains(" bpf ")).then_some(());
    eventually(PATIENCE, "the first ADD mounts the BPF file system", mounted);
    send(&child, Signal::SIGKILL);
    assert_eq!(child.wait().expect("it ends").signal(), Some(9));
    assert!(!remains(&id).is_empty(), "nobody cleaned up after it");
    // A plugin that was just running dies with it, but not in the same instant.
    eventually(PATIENCE, "all of it is removed", || {
        lab(&["--remove", &id]);
        remains(&id).is_empty().then_some(())
    });
}

/// A directory with the lab's programs, to be PATH: `ip` is the real one and writes down what it is told, `nft` is
/// a script.
struct Programs(tempfile::TempDir);

impl Programs {
    fn new(nft: &str) -> Self {
        let dir = Self(tempfile::tempdir().expect("a directory"));
        let real = |name: &str| run(&["sh", "-c", "command -v \"$0\"", name]).trim().to_owned();
        let log = dir.log().display().to_string();
        dir.script("ip", &format!("echo \"$@\" >> {log}\nexec {} \"$@\"\n", real("ip")));
        dir.script("nft", &nft.replace("{nft}", &real("nft")));
        dir.script("ping", &format!("exec {} \"$@\"\n", real("ping")));
        dir
    }

    fn log(&self) -> PathBuf {
        self.0.path().join("log")
    }

    fn script(&self, name: &str, text: &str) {
        let path = self.0.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}")).expect("a script");
        fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("a script that may be run");
    }

    /// Runs a lab with these programs; returns its id as well.
    fn lab(&self) -> (Output, String) {
        let output =
            netpath().arg("lab").env("PATH", self.0.path()).output().expect("the binary under test runs");
        let log = fs::read_to_string(self.log()).expect("`ip` was called");
        let (_, rest) = log.split_once("netpath-lab-").expect("a namespace was made");
        (output, rest[..6].to_owned())
    }
}

#[test]
fn a_firewall_that_behaves_otherwise_is_noticed() {
    // The gateway does not source-NAT after all: then the internet is out of reach for another reason than the zone.
    let programs = Programs::new(
        "rules=\nwhile read -r line; do rules=\"$rules$line\n\"; done\n\
         case $rules in *wan*) ;; *) printf '%s' \"$rules\" | {nft} -f - ;; esac\n",
    );
    let (output, id) = programs.lab();
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(1), "{text}{}", stderr(&output));
    let wrong: Vec<_> = text.lines().filter(|line| line.starts_with("WRONG")).collect();
    assert_eq!(
        wrong,
        ["WRONG: net-pod to internet by net1, without the zone: unanswered instead of reached"],
        "{text}"
    );
    assert!(text.contains("20 questions, 1 not answered as expected"), "{text}");
    assert_nothing_is_left(&id);
}

#[test]
fn a_lab_that_cannot_be_built_leaves_nothing() {
    let programs = Programs::new("echo no such table >&2; exit 1\n");
    let (output, id) = programs.lab();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output), "netpath: `nft -f -` failed (exit status: 1): no such table\n");
    assert_nothing_is_left(&id);
}

#[test]
fn a_missing_program_is_one_sentence() {
    let empty = tempfile::tempdir().expect("a directory");
    let output = netpath().arg("lab").env("PATH", empty.path()).output().expect("the binary under test runs");
    assert_eq!(output.status.code(), Some(1));
    let expected =
        "netpath: the lab needs `ip`, which is not in PATH: install it (Debian: `apt install iproute2`)\n";
    assert_eq!(stderr(&output), expected);
}

#[test]
fn missing_rights_are_one_sentence() {
    const NOBODY: u32 = 65534;
    // Where the binary under test lies, others may have no access.
    let dir = tempfile::tempdir_in("/tmp").expect("a directory");
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("a directory for all");
    let binary = dir.path().join("netpath");
    fs::copy(Path::new(env!("CARGO_BIN_EXE_netpath")), &binary).expect("a copy");
    let mut command = Command::new(&binary);
    command.arg("lab").current_dir("/").uid(NOBODY).gid(NOBODY);
    let output = eventually(PATIENCE, "a copy that nobody writes any more", || command.output().ok());
    assert_eq!(output.status.code(), Some(1));
    let expected = "netpath: the lab makes network namespaces and loads programs, which takes root: run `sudo netpath lab` \
                    (user id 65534 may not)\n";
    assert_eq!(stderr(&output), expected);
}
