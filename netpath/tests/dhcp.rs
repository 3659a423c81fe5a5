//! `ipam.type: dhcp`: the standard plugin and daemon, executed by us, and a real DHCP server, in network namespaces.
//!
//! Needs root, and Debian's packages `containernetworking-plugins`, `dnsmasq-base` and `iproute2`.

#[expect(dead_code, reason = "shared with the tests in ipam.rs, which use the rest")]
mod standard;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use standard::{Call, Outcome, STANDARD, ours};

const PATIENCE: Duration = Duration::from_secs(20);

#[track_caller]
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

#[track_caller]
fn ip(args: &str) -> String {
    let out = Command::new("ip").args(args.split(' ')).output().expect("`ip` is installed");
    assert!(out.status.success(), "ip {args} (as root?): {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// A process that ends with the test.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        self.0.kill().expect("it is our child");
        self.0.wait().expect("it is our child");
    }
}

/// A pod's namespace with a link `net1` (down), and at its other end a namespace with a DHCP server.
struct Wire {
    dir: tempfile::TempDir,
    pod: String,
    server: String,
    _dnsmasq: Daemon,
}

impl Wire {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tag = dir.path().file_name().unwrap().to_str().unwrap().trim_start_matches(".tmp").to_owned();
        let (pod, server) = (format!("np-pod-{tag}"), format!("np-dhcp-{tag}"));
        ip(&format!("netns add {pod}"));
        ip(&format!("netns add {server}"));
        ip(&format!("-n {pod} link add net1 type veth peer name srv netns {server}"));
        ip(&format!("-n {server} addr add 10.55.0.1/24 dev srv"));
        ip(&format!("-n {server} link set srv up"));
        let at = |file: &str| dir.path().join(file).display().to_string();
        let dnsmasq = Command::new("ip")
            .args([
                "netns",
                "exec",
                &server,
                "dnsmasq",
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--port=0",
            ])
            .args([
                "--user=root",
                "--log-facility=-",
                "--interface=srv",
                "--bind-interfaces",
                "--dhcp-authoritative",
            ])
            .args([
                "--dhcp-range=10.55.0.10,10.55.0.12,255.255.255.0,10m",
                "--dhcp-option=option:router,10.55.0.1",
            ])
            .arg(format!("--dhcp-leasefile={}", at("leases")))
            .arg(format!("--pid-file={}", at("dnsmasq.pid")))
            .stdin(Stdio::null())
            .stderr(fs::File::create(dir.path().join("dnsmasq.log")).unwrap())
            .spawn()
            .expect("`ip` is installed");
        let wire = Self { dir, pod, server, _dnsmasq: Daemon(dnsmasq) };
        eventually("dnsmasq (package dnsmasq-base) serves", || wire.path("dnsmasq.pid").exists());
        wire
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    /// The standard daemon, which keeps the leases.
    fn daemon(&self) -> Daemon {
        let file = Path::new(STANDARD).join("dhcp");
        assert!(file.exists(), "{} is missing: apt-get install containernetworking-plugins", file.display());
        let child = Command::new(file)
            .args(["daemon", "-timeout", "5s", "-socketpath"])
            .arg(self.path("dhcp.sock"))
            .stdin(Stdio::null())
            .stderr(fs::File::create(self.path("daemon.log")).unwrap())
            .spawn()
            .unwrap();
        let daemon = Daemon(child);
        eventually("the daemon listens", || self.path("dhcp.sock").exists());
        daemon
    }

    fn call(&self, command: &str) -> Call {
        let ipam = json!({"type": "dhcp", "daemonSocketPath": self.path("dhcp.sock")});
        let conf = json!({"cniVersion": "1.0.0", "name": "priv", "type": "macvlan", "ipam": ipam});
        Call::new(command, "c1", "net1", "", conf).netns(&format!("/run/netns/{}", self.pod))
    }

    /// What the server has given away.
    fn leases(&self) -> String {
        fs::read_to_string(self.path("leases")).unwrap_or_default()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for netns in [&self.pod, &self.server] {
            ip(&format!("netns del {netns}"));
        }
    }
}

fn address(outcome: &Outcome) -> String {
    assert!(outcome.ok(), "{outcome:?}");
    outcome.json["ips"][0]["address"].as_str().unwrap().to_owned()
}

#[test]
fn a_lease_is_had_checked_and_given_back() {
    let wire = Wire::new();
    let _daemon = wire.daemon();
    let added = ours(&wire.call("ADD"));
    let address = address(&added);
    let bare = address.strip_suffix("/24").expect("the server's mask");
    assert!(["10.55.0.10", "10.55.0.11", "10.55.0.12"].contains(&bare), "{address}");
    assert_eq!(added.json["ips"][0]["gateway"], "10.55.0.1");
    assert_eq!(added.json["routes"], json!([{"dst": "0.0.0.0/0", "gw": "10.55.0.1"}]));
    eventually("the server knows the lease", || wire.leases().contains(bare));

    assert!(ours(&wire.call("CHECK")).ok());
    assert!(ours(&wire.call("DEL")).ok());
    eventually("the server has the address back", || !wire.leases().contains(bare));
    // Once more, as runtimes do, and with the namespace gone.
    assert!(ours(&wire.call("DEL")).ok());
    assert!(ours(&wire.call("DEL").netns("")).ok());
}

#[test]
fn a_lease_of_an_address_that_no_pod_may_have_is_given_back() {
    let wire = Wire::new();
    let _daemon = wire.daemon();
    let first = address(&ours(&wire.call("ADD")));
    assert!(ours(&wire.call("DEL")).ok());
    // The server gives a client that it knows the address it had.
    let refused = ours(&wire.call("ADD").refusing(first.trim_end_matches("/24")));
    assert!(refused.msg().contains("is the node's own"), "{refused:?}");
    eventually("the server has the address back", || !wire.leases().contains("10.55.0."));
}

#[test]
fn without_its_daemon_the_plugins_own_words_are_forwarded() {
    let wire = Wire::new();
    let outcome = ours(&wire.call("ADD"));
    assert!(outcome.msg().starts_with("error dialing DHCP daemon: dial unix "), "{outcome:?}");
}
