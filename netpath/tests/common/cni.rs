//! Calls of a CNI plugin as a runtime makes them, ours and the standard one, and what they leave behind.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use netpath::kernel::bpf::maps::Maps;
use netpath::root::Root;
use netpath::spec::Mac;
use netpath_ebpf::abi::{Endpoint, EndpointKey, kind};
use serde_json::{Value, json};

use crate::common::{NetNs, run, veth};

/// Where Debian's package `containernetworking-plugins` puts the standard plugins.
pub(crate) const STANDARD: &str = "/usr/lib/cni";
/// Our plugin and tool.
pub(crate) const OURS: &str = env!("CARGO_BIN_EXE_netpath");

/// Whose plugin is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    Ours,
    Standard,
}

/// A node with master `eno1`, which has 10.9.0.5/24 and the default route, the wire's other end in `outside`
/// (10.9.0.1), a pod, and a root of its own.
pub(crate) struct Site {
    pub(crate) node: NetNs,
    pub(crate) outside: NetNs,
    pub(crate) pod: NetNs,
    pub(crate) root: Root,
    dir: tempfile::TempDir,
}

impl Site {
    #[track_caller]
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        let site =
            Self { node: NetNs::new("node"), outside: NetNs::new("out"), pod: NetNs::new("pod"), root, dir };
        for netns in [&site.node, &site.outside] {
            // Link-local addresses come into being by themselves, at any moment of a test.
            netns.set_sysctl("net/ipv6/conf/default/addr_gen_mode", "1");
        }
        veth(&site.node, "eno1", &site.outside, "wire");
        for (netns, word) in [(&site.node, "10.9.0.5/24 dev eno1"), (&site.outside, "10.9.0.1/24 dev wire")] {
            netns.ip(&format!("addr add {word}"));
        }
        site.node.ip("route add default via 10.9.0.1 dev eno1");
        site
    }

    /// A master of another pair of namespaces is not needed: a second cable to the same outside.
    #[track_caller]
    pub(crate) fn second_master(&self) {
        veth(&self.node, "eno2", &self.outside, "wire2");
    }

    /// Writes the administrator's file.
    pub(crate) fn masters(&self, text: &str) {
        self.write(&self.root.masters(), text);
    }

    pub(crate) fn write(&self, path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A call for container `c1`, interface `net1` and the site's pod.
    pub(crate) fn call(&self, whose: Whose, command: &str, conf: &Value) -> Call {
        let mut conf = conf.clone();
        if whose == Whose::Standard && conf["ipam"]["type"] == "host-local" {
            // The standard plugin knows no root.
            conf["ipam"]["dataDir"] = json!(self.root.host_local());
        }
        let pod = self.pod.path().to_str().unwrap().to_owned();
        let env = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", &pod),
            ("CNI_IFNAME", "net1"),
            ("CNI_PATH", STANDARD),
            ("NETPATH_ROOT", self.dir.path().to_str().unwrap()),
        ];
        Call {
            env: env.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            stdin: conf.to_string(),
            program: match whose {
                Whose::Ours => OURS.into(),
                Whose::Standard => Path::new(STANDARD).join(conf["type"].as_str().unwrap_or("macvlan")),
            },
            node: self.node.path(),
        }
    }

    pub(crate) fn ours(&self, command: &str, conf: &Value) -> Call {
        self.call(Whose::Ours, command, conf)
    }

    pub(crate) fn standard(&self, command: &str, conf: &Value) -> Call {
        self.call(Whose::Standard, command, conf)
    }

    /// The tool, in the node's namespace; it must succeed.
    #[track_caller]
    pub(crate) fn tool(&self, words: &str) -> String {
        let net = format!("--net={}", self.node.path().display());
        let root = self.dir.path().to_str().unwrap();
        let words: Vec<_> = words.split_whitespace().collect();
        run(&[&["nsenter", &net, OURS, "--root", root][..], &words].concat())
    }

    /// The maps, if any are loaded.
    pub(crate) fn maps(&self) -> Option<Maps> {
        Maps::open(&self.root.pins()).unwrap()
    }

    /// The rows of attachments.
    pub(crate) fn rows(&self) -> Vec<(EndpointKey, Endpoint)> {
        let rows = self.maps().map(|maps| maps.endpoints().unwrap()).unwrap_or_default();
        rows.into_iter().filter(|(_, row)| row.kind == kind::ENDPOINT).collect()
    }

    /// The row of an interface's MAC.
    #[track_caller]
    pub(crate) fn row_of(&self, mac: Mac) -> Endpoint {
        let rows = self.rows();
        let row = rows.iter().find(|(key, _)| key.mac == mac.bytes());
        row.unwrap_or_else(|| panic!("no row of {mac} in {rows:?}")).1
    }

    /// Reservations, records and all other files below the root by path, without locks and without the memory of
    /// where an address pool was last, which only ever goes forward.
    pub(crate) fn files(&self) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        walk(self.dir.path(), self.dir.path(), &mut found);
        found
    }

    /// Names of the files of reservations and records: what DEL has to remove.
    pub(crate) fn leftovers(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> = self.files().into_keys().filter(|path| path.starts_with("var/lib")).collect();
        files.retain(|path| !path.starts_with("var/lib/netpath/promisc"));
        files
    }

    /// Everything that an ADD can change, for comparison with a later look.
    pub(crate) fn snapshot(&self) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        for (name, netns) in [("node", &self.node), ("pod", &self.pod)] {
            for (what, words) in [
                ("links", "-d -j link show"),
                ("addresses", "-j addr show"),
                ("v4 routes", "-j -4 route show table all"),
                ("v6 routes", "-j -6 route show table all"),
            ] {
                all.insert(format!("{name}: {what}"), settled(&netns.ip(words)));
            }
            all.insert(format!("{name}: lo"), netns.sysctl("net/ipv6/conf/lo/disable_ipv6"));
            all.insert(format!("{name}: tcx"), hooks(netns));
        }
        for (path, content) in self.files() {
            all.insert(format!("file {}", path.display()), content);
        }
        if self.root.pins().exists() {
            let mut pins = Vec::new();
            names(&self.root.pins(), &mut pins);
            pins.sort();
            all.insert("pins".to_owned(), format!("{pins:?}"));
        }
        if let Some(maps) = self.maps() {
            let mut rows: Vec<_> = maps.endpoints().unwrap().iter().map(|row| format!("{row:?}")).collect();
            rows.sort();
            all.insert("rows".to_owned(), rows.join("\n"));
            all.insert("masters".to_owned(), format!("{:?}", maps.masters().unwrap()));
            let zones: Vec<_> =
                maps.zones().unwrap().iter().map(|zone| (zone.id, zone.info.digest)).collect();
            all.insert("zones".to_owned(), format!("{zones:?}"));
        }
        all
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // Not asserted: most sites load nothing.
        let _ = Command::new("umount").arg(self.root.bpffs()).stderr(Stdio::null()).status();
    }
}

/// What programs stand at the hooks of the links of a namespace.
fn hooks(netns: &NetNs) -> String {
    let net = format!("--net={}", netns.path().display());
    run(&["nsenter", &net, "bpftool", "net", "show"])
}

/// Without what changes by itself: duplicate address detection ends, carriers come.
fn settled(text: &str) -> String {
    let mut value: Value = serde_json::from_str(text).unwrap();
    settle(&mut value);
    value.to_string()
}

fn settle(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(settle),
        Value::Object(map) => {
            for key in ["tentative", "dadfailed", "valid_life_time", "preferred_life_time"] {
                map.remove(key);
            }
            map.values_mut().for_each(settle);
        }
        _ => {}
    }
}

fn walk(top: &Path, dir: &Path, found: &mut BTreeMap<PathBuf, String>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
        if path.ends_with("sys/fs/bpf") && path.is_dir() {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            walk(top, &path, found);
        } else if entry.file_type().unwrap().is_file()
            && name != "lock"
            && !name.starts_with("last_reserved_ip.")
        {
            found.insert(path.strip_prefix(top).unwrap().to_owned(), fs::read_to_string(&path).unwrap());
        }
    }
}

fn names(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        found.push(entry.path());
        if entry.file_type().unwrap().is_dir() {
            names(&entry.path(), found);
        }
    }
}

/// Fails if two looks differ, and says where.
#[track_caller]
pub(crate) fn assert_same(what: &str, before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) {
    let keys: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
    for key in keys {
        assert_eq!(before.get(key), after.get(key), "{what}: `{key}` changed");
    }
}

/// One call of a plugin.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    env: BTreeMap<String, String>,
    pub(crate) stdin: String,
    program: PathBuf,
    node: PathBuf,
}

impl Call {
    pub(crate) fn env(mut self, key: &str, value: &str) -> Self {
        self.env.insert(key.to_owned(), value.to_owned());
        self
    }

    pub(crate) fn without(mut self, key: &str) -> Self {
        self.env.remove(key);
        self
    }

    pub(crate) fn args(self, value: &str) -> Self {
        self.env("CNI_ARGS", value)
    }

    pub(crate) fn id(self, value: &str) -> Self {
        self.env("CNI_CONTAINERID", value)
    }

    pub(crate) fn ifname(self, value: &str) -> Self {
        self.env("CNI_IFNAME", value)
    }

    pub(crate) fn netns(self, path: &Path) -> Self {
        self.env("CNI_NETNS", path.to_str().unwrap())
    }

    pub(crate) fn stdin(mut self, text: &str) -> Self {
        self.stdin = text.to_owned();
        self
    }

    /// Starts it; before it, in place of it, a program such as `timeout` may stand.
    pub(crate) fn spawn(&self, before: &[&str]) -> Child {
        assert!(
            self.program.exists(),
            "{} is missing: apt-get install containernetworking-plugins",
            self.program.display()
        );
        let mut child = Command::new("nsenter")
            .arg(format!("--net={}", self.node.display()))
            .args(before)
            .arg(&self.program)
            .env_remove("CNI_ARGS")
            .envs(&self.env)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // One that fails before it reads closes the pipe.
        let _ = child.stdin.take().unwrap().write_all(self.stdin.as_bytes());
        child
    }

    pub(crate) fn run(&self) -> Outcome {
        Outcome::of(self.spawn(&[]))
    }

    /// Runs it; it must succeed.
    #[track_caller]
    pub(crate) fn ok(&self) -> Value {
        let outcome = self.run();
        assert_eq!(outcome.exit, 0, "{self:?}\n{outcome:?}");
        outcome.json
    }

    /// Runs it; it must fail with this code and a text that contains `text`.
    #[track_caller]
    pub(crate) fn fails(&self, code: u32, text: &str) -> String {
        let outcome = self.run();
        assert_eq!(outcome.exit, 1, "{self:?}\n{outcome:?}");
        let said = outcome.said();
        assert!(said.contains(text), "`{text}` is not in: {said}");
        assert_eq!(outcome.json["code"], code, "{said}");
        said
    }
}

/// How a call ended.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) exit: i32,
    pub(crate) json: Value,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    pub(crate) fn of(child: Child) -> Self {
        let output = child.wait_with_output().unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        Self {
            exit: output.status.code().unwrap_or(-1),
            json: serde_json::from_str(&stdout).unwrap_or_default(),
            stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// What an error object says.
    pub(crate) fn said(&self) -> String {
        let text = |key: &str| self.json[key].as_str().unwrap_or_default();
        format!("{}: {}", text("msg"), text("details"))
    }
}

/// The MAC in a result of version 0.3 or later.
#[track_caller]
pub(crate) fn mac_of(result: &Value) -> Mac {
    Mac::parse("mac", result["interfaces"][0]["mac"].as_str().unwrap()).unwrap()
}

/// A number that no other test of this process has had.
pub(crate) fn unique() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A pool of 10.9.0.100 to .109 behind gateway .1.
pub(crate) fn pool() -> Value {
    json!({"type": "host-local", "subnet": "10.9.0.0/24", "rangeStart": "10.9.0.100", "rangeEnd": "10.9.0.109",
           "gateway": "10.9.0.1"})
}

/// A macvlan on `eno1`, with keys added or replaced.
pub(crate) fn conf(keys: Value) -> Value {
    let mut conf =
        json!({"cniVersion": "1.0.0", "name": "priv", "type": "macvlan", "master": "eno1", "ipam": pool()});
    for (key, value) in keys.as_object().unwrap() {
        match value {
            Value::Null => drop(conf.as_object_mut().unwrap().remove(key)),
            value => conf[key] = value.clone(),
        }
    }
    conf
}

/// The same with a private zone.
pub(crate) fn zoned(keys: Value) -> Value {
    let mut keys = keys;
    keys.as_object_mut().unwrap().entry("zone").or_insert(json!({"policy": "private"}));
    conf(keys)
}
