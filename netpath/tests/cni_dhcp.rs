//! A policed interface whose address comes from a real DHCP server: it gets its lease although every frame of an
//! unknown source is dropped, and gives it back when it ends.
//!
//! Needs Debian's packages `containernetworking-plugins` and `dnsmasq-base`.

#[path = "common/cni.rs"]
mod cni;
mod common;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use cni::{STANDARD, Site, mac_of, zoned};
use common::{PATIENCE, eventually};
use netpath_ebpf::abi::{endpoint_flags, mode};
use serde_json::json;

/// A process that ends with the test.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // Not asserted: a panic while another unwinds would hide it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Serves 10.9.0.150 to .152 on the wire.
fn server(site: &Site, dir: &Path) -> Daemon {
    let child = Command::new("nsenter")
        .arg(format!("--net={}", site.outside.path().display()))
        .args(["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root"])
        .args(["--log-facility=-", "--interface=wire", "--bind-interfaces", "--dhcp-authoritative"])
        .args([
            "--dhcp-range=10.9.0.150,10.9.0.152,255.255.255.0,10m",
            "--dhcp-option=option:router,10.9.0.1",
        ])
        .arg(format!("--dhcp-leasefile={}", dir.join("leases").display()))
        .arg(format!("--pid-file={}", dir.join("pid").display()))
        .stdin(Stdio::null())
        .stderr(fs::File::create(dir.join("dnsmasq.log")).unwrap())
        .spawn()
        .unwrap();
    let daemon = Daemon(child);
    eventually(PATIENCE, "dnsmasq (package dnsmasq-base) serves", || dir.join("pid").exists().then_some(()));
    daemon
}

/// The standard daemon, which keeps the leases.
fn client(socket: &Path) -> Daemon {
    let child = Command::new(Path::new(STANDARD).join("dhcp"))
        .args(["daemon", "-timeout", "5s", "-socketpath"])
        .arg(socket)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("the daemon of containernetworking-plugins: {error}"));
    let daemon = Daemon(child);
    eventually(PATIENCE, "the daemon listens", || socket.exists().then_some(()));
    daemon
}

#[test]
fn a_policed_interface_gets_a_lease_and_gives_it_back() {
    let (site, dir) = (Site::new(), tempfile::tempdir().unwrap());
    site.masters(r#"{"eno1": {"unknownSource": "drop"}}"#);
    // Beyond the zone, and reachable by the lease's default route.
    site.outside.ip("addr add 203.0.113.7/32 dev wire");
    let _server = server(&site, dir.path());
    let socket = dir.path().join("dhcp.sock");
    let _client = client(&socket);
    let conf = zoned(json!({
        "ipam": {"type": "dhcp", "daemonSocketPath": socket},
        "zone": {"policy": "private", "local": ["10.9.0.0/24"]}
    }));
    let leases = || fs::read_to_string(dir.path().join("leases")).unwrap_or_default();

    let result = site.ours("ADD", &conf).ok();
    let address: ipnetwork::Ipv4Network = result["ips"][0]["address"].as_str().unwrap().parse().unwrap();
    assert!(result["routes"].to_string().contains("0.0.0.0/0"), "{result}");
    let row = site.row_of(mac_of(&result));
    assert_eq!((row.v4[0], row.gateway_v4, row.mode), (address.ip().octets(), [10, 9, 0, 1], mode::ENFORCE));
    assert_ne!(row.flags & endpoint_flags::DHCP, 0);
    eventually(PATIENCE, "the server knows the lease", || {
        leases().contains(&address.ip().to_string()).then_some(())
    });
    site.pod.exec("ping -c1 -W2 10.9.0.1");
    let beyond = site.pod.path();
    let ping = Command::new("nsenter")
        .arg(format!("--net={}", beyond.display()))
        .args(["ping", "-c1", "-W1", "203.0.113.7"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(!ping.success(), "the zone lets traffic out");
    let mut check = conf.clone();
    check["prevResult"] = result;
    site.ours("CHECK", &check).ok();

    site.ours("DEL", &conf).ok();
    eventually(PATIENCE, "the server has the address back", || {
        (!leases().contains("10.9.0.15")).then_some(())
    });
    site.ours("DEL", &conf).env("CNI_NETNS", "").ok();
    assert!(site.rows().is_empty() && site.leftovers().is_empty());
}

/// The standard client takes whatever it is offered, and the server knows nothing of who has an address by hand.
#[test]
fn a_lease_of_an_address_that_another_machine_has_is_given_back() {
    let (site, dir) = (Site::new(), tempfile::tempdir().unwrap());
    // The server asks by ping before it offers one.
    site.outside.set_sysctl("net/ipv4/icmp_echo_ignore_all", "1");
    let _server = server(&site, dir.path());
    let socket = dir.path().join("dhcp.sock");
    let _client = client(&socket);
    let conf = zoned(json!({
        "acd": true,
        "ipam": {"type": "dhcp", "daemonSocketPath": socket},
        "zone": {"policy": "private", "local": ["10.9.0.0/24"]}
    }));
    let no_lease = || {
        let leases = || fs::read_to_string(dir.path().join("leases")).unwrap_or_default();
        eventually(PATIENCE, "the server has the address back", || {
            (!leases().contains("10.9.0.15")).then_some(())
        });
        assert!(site.rows().is_empty() && site.leftovers().is_empty(), "{:?}", site.leftovers());
    };
    let result = site.ours("ADD", &conf).ok();
    let address = result["ips"][0]["address"].as_str().unwrap().to_owned();
    assert!(site.pod.ip("addr show net1").contains(&address), "{address}");
    site.ours("DEL", &conf).ok();
    no_lease();

    for address in ["10.9.0.150/32", "10.9.0.151/32", "10.9.0.152/32"] {
        site.outside.ip(&format!("addr add {address} dev lo"));
    }
    site.ours("ADD", &conf).fails(121, "on this network: give each node a range of its own");
    assert!(!site.pod.ip("link show").contains("net1"));
    no_lease();
}
