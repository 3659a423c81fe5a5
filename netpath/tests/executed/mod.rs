//! IPAM plugins of others, found on CNI_PATH.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::standard::{Call, STANDARD, files, ours, standard_plugin};

/// A plugin `fake` that notes what it got, and then does what `then` says (a shell script; `$CNI_COMMAND` is the command).
struct Fake {
    dir: tempfile::TempDir,
}

impl Fake {
    fn new(then: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display();
        let script = format!(
            "#!/bin/sh\n\
             echo $CNI_COMMAND >> {at}/commands\n\
             env | grep ^CNI_ | sort > {at}/env.$CNI_COMMAND\n\
             cat > {at}/stdin.$CNI_COMMAND\n\
             {then}\n"
        );
        let file = dir.path().join("fake");
        fs::write(&file, script).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir }
    }

    fn call(&self, command: &str, version: &str) -> Call {
        let conf = json!({
            "cniVersion": version, "name": "priv", "type": "macvlan", "master": "eno1", "Unknown": {"kept": [1, null]},
            "ipam": {"type": "fake", "range": "10.9.0.0/24"}
        });
        Call::new(command, "c1", "net1", "IgnoreUnknown=1;K8S_POD_NAME=web", conf).path(self.dir.path())
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.path(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }
}

const RESULT: &str = r#"echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.9.0.7/24", "gateway": "10.9.0.1", "interface": 0}], "routes": [{"dst": "10.0.0.0/8"}], "dns": {"domain": "a.b"}}'"#;

#[test]
fn gets_the_call_as_it_came() {
    let fake = Fake::new(RESULT);
    let call = fake.call("ADD", "1.0.0");
    let outcome = ours(&call);
    let want = json!({
        "cniVersion": "1.0.0",
        "ips": [{"address": "10.9.0.7/24", "gateway": "10.9.0.1"}],
        "routes": [{"dst": "10.0.0.0/8"}],
        "dns": {"domain": "a.b"}
    });
    assert_eq!(outcome.json, want);
    assert_eq!(serde_json::from_str::<Value>(&fake.read("stdin.ADD")).unwrap(), call.conf);
    let mut env: Vec<_> = call.env.iter().map(|(key, value)| format!("{key}={value}")).collect();
    env.sort();
    assert_eq!(fake.read("env.ADD").lines().collect::<Vec<_>>(), env);

    assert!(ours(&fake.call("CHECK", "1.0.0")).ok());
    assert!(ours(&fake.call("DEL", "1.0.0").netns("")).ok());
    assert!(fake.read("env.DEL").contains("CNI_NETNS=\n"), "{}", fake.read("env.DEL"));
    assert_eq!(fake.read("commands"), "ADD\nCHECK\nDEL\n");
}

#[test]
fn gc_and_status_only_where_the_version_has_them() {
    let fake = Fake::new("");
    for command in ["GC", "STATUS"] {
        assert!(ours(&fake.call(command, "1.0.0")).ok());
        assert!(!fake.path("commands").exists());
        assert!(ours(&fake.call(command, "1.1.0")).ok());
        assert_eq!(fake.read("commands"), format!("{command}\n"));
        assert!(!fake.read(&format!("env.{command}")).contains("CNI_CONTAINERID"));
        fs::remove_file(fake.path("commands")).unwrap();
    }
    // What a plugin of before 1.1 says.
    let old = Fake::new(r#"echo '{"code": 4, "msg": "unknown CNI_COMMAND"}'; exit 1"#);
    assert!(ours(&old.call("GC", "1.1.0")).ok() && ours(&old.call("STATUS", "1.1.0")).ok());
    let sick = Fake::new(r#"echo '{"code": 50, "msg": "no server"}'; exit 1"#);
    assert_eq!(ours(&sick.call("STATUS", "1.1.0")).msg(), "no server");
}

#[test]
fn a_failed_add_is_forwarded_and_deleted() {
    let fake = Fake::new(
        r#"[ $CNI_COMMAND = DEL ] || { echo '{"cniVersion": "1.0.0", "code": 142, "msg": "no lease", "details": "timeout"}'; exit 1; }"#,
    );
    assert_eq!(ours(&fake.call("ADD", "1.0.0")).msg(), "no lease");
    assert_eq!(fake.read("commands"), "ADD\nDEL\n");

    let both = Fake::new(r#"echo "{\"code\": 142, \"msg\": \"$CNI_COMMAND fails\"}"; exit 1"#);
    assert_eq!(ours(&both.call("ADD", "1.0.0")).msg(), "ADD fails; its DEL failed too");
}

#[test]
fn what_it_says_otherwise_is_quoted() {
    let check = |then: &str, want: &str| {
        let fake = Fake::new(&format!("[ $CNI_COMMAND = DEL ] || {{ {then}; }}"));
        let got = ours(&fake.call("ADD", "1.0.0"));
        assert!(got.msg().contains(want), "{got:?}");
        assert_eq!(fake.read("commands"), "ADD\nDEL\n", "{then}");
    };
    check(
        "echo broken >&2; exit 3",
        "the IPAM plugin fake ended with status 3 without an error object; it said: \"broken\"",
    );
    check("echo broken; exit 1", "ended with status 1 without an error object; it said: \"broken\"");
    check("kill -9 $$", "ended by signal 9");
    check("echo hello", "the IPAM plugin fake printed no JSON but \"hello\"");
    check("true", "the IPAM plugin fake printed no JSON but \"\"");
    check(
        r#"echo '{"cniVersion": "1.0.0", "ips": [{"address": "x"}]}'"#,
        "the IPAM plugin fake printed an invalid result",
    );
}

#[test]
fn an_address_that_no_pod_may_have_is_given_back() {
    let fake = Fake::new(RESULT);
    let outcome = ours(&fake.call("ADD", "1.0.0").refusing("10.9.0.7"));
    assert!(outcome.msg().starts_with("address 10.9.0.7 is the node's own: "), "{outcome:?}");
    assert_eq!(fake.read("commands"), "ADD\nDEL\n");
}

#[test]
fn what_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("whereabouts")).unwrap();
    let call = |kind: &str| {
        let conf = json!({"cniVersion": "1.0.0", "name": "priv", "type": "macvlan", "ipam": {"type": kind}});
        Call::new("ADD", "c1", "net1", "", conf).path(dir.path())
    };
    let text = ours(&call("whereabouts")).msg().to_owned();
    assert_eq!(
        text,
        format!("failed to find plugin \"whereabouts\" in path [{}]: install it there", dir.path().display())
    );
    let text = ours(&call("../../bin/true")).msg().to_owned();
    assert!(text.contains("ipam.type `../../bin/true`"), "{text}");
}

/// Whether a process exists that is not just waiting to be collected.
fn alive(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
        .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z")))
}

#[test]
fn one_that_hangs_and_forks_is_killed_and_deleted() {
    let fake = Fake::new("[ $CNI_COMMAND = DEL ] && exit 0; sleep 1000 & echo $! > $(dirname $0)/pid; wait");
    let mut call = fake.call("ADD", "1.0.0");
    call.within = Duration::from_millis(500);
    let start = Instant::now();
    let outcome = ours(&call);
    assert_eq!(outcome.msg(), "the IPAM plugin fake did not end within 500ms and was killed");
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert_eq!(fake.read("commands"), "ADD\nDEL\n");
    let pid = fake.read("pid");
    assert!(!pid.trim().is_empty());
    while alive(&pid) {
        assert!(start.elapsed() < Duration::from_secs(20), "process {pid} survives");
        std::thread::yield_now();
    }
}

/// The standard `host-local` under another name is a plugin like any other.
#[test]
fn a_real_one() {
    let (bin, theirs, mine) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let real = Path::new(STANDARD).join("host-local");
    assert!(real.exists(), "{} is missing: apt-get install containernetworking-plugins", real.display());
    std::os::unix::fs::symlink(&real, bin.path().join("pool")).unwrap();
    let call = |command: &str, dir: &Path, args: &str| {
        let ipam = json!({"type": "pool", "subnet": "10.0.0.0/30", "dataDir": dir});
        let conf = json!({"cniVersion": "1.0.0", "name": "priv", "type": "macvlan", "ipam": ipam});
        Call::new(command, "c1", "net1", args, conf).path(bin.path())
    };
    for (command, args) in
        [("ADD", ""), ("CHECK", ""), ("ADD", ""), ("DEL", ""), ("ADD", "IP=10.9.9.9"), ("ADD", "IP=10.0.0.2")]
    {
        let want = standard_plugin("host-local", &call(command, theirs.path(), args));
        assert_eq!(ours(&call(command, mine.path(), args)), want, "{command} {args}");
        if want.ok() {
            assert_eq!(files(mine.path()), files(theirs.path()), "{command} {args}");
        }
    }
}
