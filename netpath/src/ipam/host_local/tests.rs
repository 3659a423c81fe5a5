use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;

use super::*;
use crate::kernel::pdeathsig::lead_group;
use crate::root::Root;
use crate::spec::{CniArgs, CniEnv, CniVersion, Command, IpamConf, NetworkName, Range};

/// A network `priv` with the addresses .2 to .4, and fd00::2 and on.
struct Node {
    dir: tempfile::TempDir,
    root: Root,
    name: NetworkName,
    conf: IpamConf,
    env: CniEnv,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let range = |subnet: &str, start: &str, end: &str| {
            let ip = |text: &str| text.parse().unwrap();
            RangeSet(vec![Range {
                subnet: subnet.parse().unwrap(),
                start: ip(start),
                end: ip(end),
                gateway: ip(start),
            }])
        };
        let conf = HostLocalConf {
            ranges: vec![
                range("10.0.0.0/24", "10.0.0.1", "10.0.0.4"),
                range("fd00::/64", "fd00::1", "fd00::ffff"),
            ],
            routes: vec![],
            data_dir: None,
            resolv_conf: None,
            requested: vec![],
            nad_subnets: vec![],
        };
        let env = CniEnv {
            command: Command::Add,
            container_id: None,
            netns: None,
            ifname: None,
            args: CniArgs::default(),
            path: vec![],
            netns_override: false,
        };
        let name = NetworkName::parse("name", "priv").unwrap();
        Self { root: Root::new(dir.path()), dir, name, conf: IpamConf::HostLocal(conf), env }
    }

    fn edit(&mut self, edit: impl FnOnce(&mut HostLocalConf)) {
        match &mut self.conf {
            IpamConf::HostLocal(conf) => edit(conf),
            other => panic!("{other:?}"),
        }
    }

    fn network(&self) -> Network<'_> {
        Network {
            name: &self.name,
            cni_version: CniVersion::LATEST,
            conf: &self.conf,
            stdin: b"",
            env: &self.env,
            root: &self.root,
            within: Duration::from_secs(20),
            lead: lead_group,
        }
    }

    fn ask<T>(
        &self,
        id: &str,
        ifname: &str,
        ask: impl FnOnce(&Request<'_>) -> Result<T, crate::ipam::IpamError>,
    ) -> Result<T, String> {
        let (container_id, ifname) =
            (ContainerId::parse("id", id).unwrap(), IfName::parse("ifname", ifname).unwrap());
        ask(&Request { network: self.network(), container_id: &container_id, ifname: &ifname })
            .map_err(|error| error.to_string())
    }

    fn add(&self, id: &str) -> Result<Vec<String>, String> {
        let result = self.ask(id, "net1", |request| crate::ipam::add(request, &|_| None))?;
        Ok(result.ips.iter().map(|ip| ip.address.to_string()).collect())
    }

    fn del(&self, id: &str) {
        self.ask(id, "net1", crate::ipam::del).unwrap();
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join("var/lib/cni/networks/priv").join(file)
    }

    /// Names and contents, without the lock.
    fn files(&self) -> Vec<(String, String)> {
        let mut files: Vec<_> = fs::read_dir(self.path(""))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "lock")
            .map(|name| (name.clone(), fs::read_to_string(self.path(&name)).unwrap()))
            .collect();
        files.sort();
        files
    }
}

#[test]
fn files_are_the_standard_plugins() {
    let node = Node::new();
    assert_eq!(node.add("c1").unwrap(), ["10.0.0.2/24", "fd00::2/64"]);
    let want = [
        ("10.0.0.2", "c1\r\nnet1"),
        ("fd00::2", "c1\r\nnet1"),
        ("last_reserved_ip.0", "10.0.0.2"),
        ("last_reserved_ip.1", "fd00::2"),
    ];
    assert_eq!(node.files(), want.map(|(name, content)| (name.to_owned(), content.to_owned())));
    let mode = |file: &str| fs::metadata(node.path(file)).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode(""), mode("lock"), mode("10.0.0.2"), mode("last_reserved_ip.0")),
        (0o755, 0o750, 0o600, 0o600)
    );

    node.del("c1");
    node.del("c1");
    assert_eq!(node.files().len(), 2, "the last ones stay");
    assert_eq!(node.add("c1").unwrap(), ["10.0.0.3/24", "fd00::3/64"]);
}

#[test]
fn del_and_check_create_nothing() {
    let node = Node::new();
    node.del("c1");
    let check = node.ask("c1", "net1", |request| crate::ipam::check(request, None));
    assert_eq!(check.unwrap_err(), "host-local: Failed to find address added by container c1");
    assert!(reservations(&node.path(""), Duration::ZERO).unwrap().is_empty());
    assert_eq!(fs::read_dir(node.dir.path()).unwrap().count(), 0);
}

#[test]
fn a_failed_add_changes_nothing() {
    let mut node = Node::new();
    node.add("c1").unwrap();
    let before = node.files();
    // The second set fails after the first was decided.
    node.edit(|conf| conf.requested = vec!["fd00::2".parse().unwrap()]);
    let error = node.add("c2").unwrap_err();
    assert!(error.contains("requested IP address fd00::2 is not available"), "{error}");
    assert_eq!(node.files(), before);

    // Nor does one that fails on disk after the first address was reserved.
    node.edit(|conf| conf.requested.clear());
    fs::remove_file(node.path("last_reserved_ip.1")).unwrap();
    fs::create_dir(node.path("last_reserved_ip.1")).unwrap();
    let error = node.add("c2").unwrap_err();
    assert!(error.contains("cannot write") && error.contains("last_reserved_ip.1"), "{error}");
    let held: Vec<_> =
        reservations(&node.path(""), Duration::ZERO).unwrap().into_iter().map(|r| r.container_id).collect();
    assert_eq!(held, ["c1", "c1"]);
}

#[test]
fn an_add_that_is_a_duplicate_keeps_what_is_there() {
    let node = Node::new();
    node.add("c1").unwrap();
    let error = node.add("c1").unwrap_err();
    assert!(
        error.contains("10.0.0.2 has been allocated to c1, duplicate allocation is not allowed"),
        "{error}"
    );
    assert_eq!(reservations(&node.path(""), Duration::ZERO).unwrap().len(), 2);
    let other = node.ask("c1", "net2", |request| crate::ipam::add(request, &|_| None)).unwrap();
    assert_eq!(other.ips[0].address.to_string(), "10.0.0.3/24");
}

/// Every state in which kill -9 can leave an ADD of two addresses.
#[test]
fn an_add_that_was_killed_blocks_nobody() {
    let states: [&[(&str, &str)]; 7] = [
        &[("10.0.0.2", "")],
        &[("10.0.0.2", "dead\r\nnet1")],
        &[("10.0.0.2", "dead\r\nnet1"), ("last_reserved_ip.0", "")],
        &[("10.0.0.2", "dead\r\nnet1"), ("last_reserved_ip.0", "10.0.0.2")],
        &[("10.0.0.2", "dead\r\nnet1"), ("last_reserved_ip.0", "10.0.0.2"), ("fd00::2", "")],
        &[("10.0.0.2", "dead\r\nnet1"), ("last_reserved_ip.0", "10.0.0.2"), ("fd00::2", "dead\r\nnet1")],
        &[("10.0.0.2", "dead\r\nnet1"), ("fd00::2", "dead\r\nnet1"), ("last_reserved_ip.1", "")],
    ];
    for state in states {
        let node = Node::new();
        fs::create_dir_all(node.path("")).unwrap();
        for (name, content) in state.iter().chain(&[("lock", "")]) {
            fs::write(node.path(name), content).unwrap();
        }
        node.add("c1").unwrap_or_else(|error| panic!("{state:?}: {error}"));
        // What a runtime does with a sandbox whose ADD did not end.
        node.del("dead");
        for id in ["c2", "c3"] {
            node.add(id).unwrap_or_else(|error| panic!("{state:?}: {error}"));
        }
        assert!(node.add("c4").unwrap_err().contains("no IP addresses available"), "{state:?}");
        assert!(node.files().iter().all(|(_, content)| !content.is_empty()), "{state:?}");
    }
}

#[test]
fn files_of_old_versions_and_strangers() {
    let node = Node::new();
    fs::create_dir_all(node.path("")).unwrap();
    fs::write(node.path("10.0.0.2"), "c1").unwrap();
    fs::write(node.path("10.0.0.3"), "c2\r\nnet1\n").unwrap();
    fs::write(node.path("README"), "c1").unwrap();
    fs::create_dir(node.path("10.0.0.4")).unwrap();

    assert!(
        node.add("c3").unwrap_err().contains("no IP addresses available in range set: 10.0.0.1-10.0.0.4")
    );
    node.ask("c1", "net1", |request| crate::ipam::check(request, None)).unwrap();
    assert!(node.add("c1").unwrap_err().contains("duplicate"));
    node.del("c1");
    node.del("c2");
    assert!(!node.path("10.0.0.2").exists() && !node.path("10.0.0.3").exists());
    assert!(node.path("README").exists() && node.path("10.0.0.4").exists());
}

#[test]
fn a_file_longer_than_the_buffer_is_read_whole() {
    let node = Node::new();
    fs::create_dir_all(node.path("")).unwrap();
    for length in [511, 512, 513, 5000] {
        fs::write(node.path("10.0.0.2"), "x".repeat(length)).unwrap();
        let reservation = reservations(&node.path(""), Duration::ZERO).unwrap().remove(0);
        assert_eq!(reservation.container_id.len(), length);
    }
}

#[test]
fn check_compares_with_the_result() {
    let node = Node::new();
    node.add("c1").unwrap();
    node.add("c2").unwrap();
    let check = |addresses: &[&str]| {
        let ip = |text: &&str| IpConfig { address: text.parse().unwrap(), gateway: None, interface: None };
        let prev = crate::spec::CniResult { ips: addresses.iter().map(ip).collect(), ..Default::default() };
        node.ask("c1", "net1", |request| crate::ipam::check(request, Some(&prev)))
    };
    // An address that is not from our ranges is another plugin's.
    assert_eq!(check(&["10.0.0.2/24", "fd00::2/64", "192.168.9.9/24"]), Ok(()));
    let error = check(&["10.0.0.3/24"]).unwrap_err();
    assert_eq!(error, "host-local: address 10.0.0.3 is not reserved for container c1");
}

#[test]
fn gc_releases_what_is_known_dead_and_nothing_else() {
    let node = Node::new();
    for id in ["c1", "c2"] {
        node.add(id).unwrap();
    }
    fs::write(node.path("10.0.0.99"), "c1").unwrap();
    fs::write(node.path("10.0.0.98"), "").unwrap();
    let asked = Mutex::new(Vec::new());
    let released = crate::ipam::gc(&node.network(), &|id, ifname| {
        asked.lock().unwrap().push(format!("{id} {ifname}"));
        id.as_str() == "c1"
    })
    .unwrap();
    let mut released: Vec<_> =
        released.iter().map(|r| (r.address.to_string(), r.container_id.clone())).collect();
    released.sort();
    assert_eq!(released, [("10.0.0.2".to_owned(), "c1".to_owned()), ("fd00::2".to_owned(), "c1".to_owned())]);
    asked.lock().unwrap().sort();
    assert_eq!(*asked.lock().unwrap(), ["c1 net1", "c1 net1", "c2 net1", "c2 net1"]);
    let held: Vec<_> =
        reservations(&node.path(""), Duration::ZERO).unwrap().iter().map(|r| r.address.to_string()).collect();
    assert_eq!(held, ["10.0.0.3", "10.0.0.99", "fd00::3"]);
}

#[test]
fn data_dir_and_resolv_conf_hang_off_the_root() {
    let mut node = Node::new();
    fs::create_dir(node.dir.path().join("etc")).unwrap();
    let text = "# by hand\n;old\nnameserver 10.0.0.53\n nameserver  10.0.0.54 x\ndomain a.b\nsearch a.b c\nsearch d\noptions x:1 y\nnameserver\n";
    fs::write(node.dir.path().join("etc/resolv.conf"), text).unwrap();
    node.edit(|conf| {
        conf.data_dir = Some("/run/addresses".into());
        conf.resolv_conf = Some("/etc/resolv.conf".into());
    });
    let result = node.ask("c1", "net1", |request| crate::ipam::add(request, &|_| None)).unwrap();
    assert!(node.dir.path().join("run/addresses/priv/10.0.0.2").exists());
    assert_eq!(
        crate::ipam::host_local_dir(&node.network()),
        Some(node.dir.path().join("run/addresses/priv"))
    );
    let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
    let want = Dns {
        nameservers: texts(&["10.0.0.53", "10.0.0.54"]),
        domain: Some("a.b".to_owned()),
        search: texts(&["a.b", "c", "d"]),
        options: texts(&["x:1", "y"]),
    };
    assert_eq!(result.dns, want);

    nix::unistd::mkfifo(&node.dir.path().join("etc/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    node.edit(|conf| conf.resolv_conf = Some("/etc/pipe".into()));
    assert!(node.add("c9").unwrap_err().to_string().ends_with("/etc/pipe"));
    node.edit(|conf| conf.resolv_conf = Some("/etc/none".into()));
    let error = node.add("c2").unwrap_err();
    assert!(error.starts_with("cannot read ipam.resolvConf ") && error.ends_with("/etc/none"), "{error}");
    assert!(!node.dir.path().join("run/addresses/priv/10.0.0.3").exists());
}

#[test]
fn a_lock_that_is_never_given_back_is_named() {
    let node = Node::new();
    node.add("c1").unwrap();
    let _held = Store::open(&node.path(""), Duration::ZERO).unwrap().unwrap();
    let error = reservations(&node.path(""), Duration::from_millis(20)).expect_err("it is locked");
    assert_eq!(error.cni_code(), spec::code::TRY_AGAIN);
    assert!(error.to_string().contains(&node.path("lock").display().to_string()), "{error}");
}

#[test]
fn who_ignores_the_lock_is_not_overwritten() {
    let node = Node::new();
    let store = Store::create(&node.path(""), Duration::ZERO).unwrap();
    fs::write(node.path("fd00::2"), "stranger\r\neth0").unwrap();
    let choices = |v6: &str| {
        let choice = |set, address: &str, gateway: &str| pool::Choice {
            set,
            address: address.parse().unwrap(),
            gateway: gateway.parse().unwrap(),
        };
        [choice(0, "10.0.0.2/24", "10.0.0.1"), choice(1, v6, "fd00::1")]
    };
    let (container_id, ifname) =
        (ContainerId::parse("id", "c1").unwrap(), IfName::parse("ifname", "net1").unwrap());
    let owner = Owner { container_id: &container_id, ifname: &ifname };
    let taken = reserve_all(&store, &choices("fd00::2/64"), owner).unwrap();
    assert_eq!(taken, Some("fd00::2".parse().unwrap()));
    assert!(!node.path("10.0.0.2").exists(), "all or nothing");
    assert_eq!(fs::read_to_string(node.path("fd00::2")).unwrap(), "stranger\r\neth0");
    assert_eq!(reserve_all(&store, &choices("fd00::3/64"), owner).unwrap(), None);
}
