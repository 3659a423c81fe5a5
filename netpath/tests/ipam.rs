//! Our address management beside the standard plugins of Debian's package `containernetworking-plugins`: same
//! input to both, same result and files; each in place of the other; both at the same time on one directory.

mod executed;
mod standard;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Value, json};

use standard::{
    Call, Outcome, Running, endless_worker, files, ours, ours_in_a_process, spawn, standard_plugin,
};

/// A network configuration with `ipam`; its reservations, if any, are in `dir`.
fn conf(version: &str, dir: &Path, ipam: &Value) -> Value {
    let mut conf = json!({"cniVersion": version, "name": "priv", "type": "macvlan", "ipam": ipam});
    if conf["ipam"]["type"] == "host-local" {
        conf["ipam"]["dataDir"] = json!(dir);
    }
    conf
}

fn subnet(subnet: &str, start: &str, end: &str) -> Value {
    json!([{"subnet": subnet, "rangeStart": start, "rangeEnd": end}])
}

/// Four addresses and the gateway.
fn small() -> Value {
    json!({"type": "host-local", "ranges": [subnet("10.0.0.0/24", "10.0.0.1", "10.0.0.5")]})
}

fn dual() -> Value {
    json!({
        "type": "host-local",
        "ranges": [
            [
                {"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.2", "rangeEnd": "10.0.0.4"},
                {"subnet": "10.0.1.0/24", "rangeStart": "10.0.1.9", "rangeEnd": "10.0.1.10", "gateway": "10.0.1.9"}
            ],
            [{"subnet": "fd00::/64"}]
        ],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "fd00:1::/64", "gw": "fd00::9"}]
    })
}

/// Command, container, interface, CNI_ARGS, change of the configuration.
type Step<'a> = (&'a str, &'a str, &'a str, &'a str, Value);

/// Takes `steps` one after the other with both, each in a directory of its own, and compares after each what
/// they said and what is on disk.
#[track_caller]
fn same(version: &str, ipam: &Value, steps: &[Step<'_>]) -> Vec<Outcome> {
    let (theirs, mine) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let plugin = ipam["type"].as_str().unwrap();
    let mut outcomes = Vec::new();
    for (number, (command, id, ifname, args, change)) in steps.iter().enumerate() {
        let call = |dir: &Path| {
            let mut conf = conf(version, dir, ipam);
            for (key, value) in change.as_object().unwrap() {
                conf[key] = value.clone();
            }
            Call::new(command, id, ifname, args, conf)
        };
        let what = format!("{version}, step {number}: {command} {id} {ifname} {args} {change} of {ipam}");
        let (want, got) = (standard_plugin(plugin, &call(theirs.path())), ours(&call(mine.path())));
        assert_eq!(got, want, "{what}");
        assert_eq!(files(mine.path()), files(theirs.path()), "{what}");
        outcomes.push(got);
    }
    outcomes
}

fn add(id: &str) -> Step<'_> {
    ("ADD", id, "net1", "", json!({}))
}

fn del(id: &str) -> Step<'_> {
    ("DEL", id, "net1", "", json!({}))
}

#[test]
fn host_local_in_every_version() {
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
        let mut steps = vec![add("c1"), add("c2"), del("c1"), add("c3"), del("c3"), del("c3"), del("never")];
        if version >= "0.4.0" {
            steps.extend([("CHECK", "c2", "net1", "", json!({})), ("CHECK", "c1", "net1", "", json!({}))]);
        }
        let outcomes = same(version, &dual(), &steps);
        assert!(outcomes[0].ok() && outcomes[1].ok(), "{outcomes:?}");
    }
}

#[test]
fn host_local_goes_round_and_ends() {
    let steps = [
        add("c1"),
        add("c2"),
        del("c1"),
        add("c3"),
        add("c4"),
        add("c5"),
        add("c6"),
        del("c4"),
        del("c2"),
        add("c7"),
        add("c7"),
        ("ADD", "c7", "net2", "", json!({})),
        add("c8"),
        ("DEL", "c7", "net2", "", json!({})),
        add("c8"),
    ];
    let outcomes = same("1.0.0", &small(), &steps);
    let exhausted =
        "failed to allocate for range 0: no IP addresses available in range set: 10.0.0.1-10.0.0.5";
    assert_eq!(outcomes[6].msg(), exhausted);
    assert!(outcomes[10].msg().ends_with("has been allocated to c7, duplicate allocation is not allowed"));
    assert_eq!(outcomes[12].msg(), exhausted);
    assert!(outcomes[14].ok());
}

#[test]
fn host_local_requested_addresses() {
    let capability = |ips: &[&str]| json!({"runtimeConfig": {"ips": ips}});
    let args = |ips: &[&str]| json!({"args": {"cni": {"ips": ips}}});
    let steps = [
        ("ADD", "c1", "net1", "IP=10.0.1.10", json!({})),
        ("ADD", "c2", "net1", "IgnoreUnknown=1;IP=10.0.1.10;K8S_POD_NAME=x", json!({})),
        ("ADD", "c3", "net1", "", capability(&["10.0.0.3/24", "fd00::77"])),
        // The same address by two ways counts once.
        ("ADD", "c6", "net1", "IP=10.0.0.2", capability(&["10.0.0.2/24"])),
        ("ADD", "c4", "net1", "", args(&["fd00::88"])),
        del("c4"),
        ("ADD", "c5", "net1", "IP=fd00::99", args(&["fd00::99"])),
        ("ADD", "c7", "net1", "", capability(&["10.0.1.9"])),
    ];
    let outcomes = same("1.0.0", &dual(), &steps);
    let failures: Vec<_> = outcomes.iter().filter(|outcome| !outcome.ok()).map(Outcome::msg).collect();
    let range_set = "10.0.0.2-10.0.0.4,10.0.1.9-10.0.1.10";
    let want = [
        format!(
            "failed to allocate for range 0: requested IP address 10.0.1.10 is not available in range set {range_set}"
        ),
        "failed to allocate for range 0: requested ip 10.0.1.9 is subnet's gateway".to_owned(),
    ];
    assert_eq!(failures, want);
}

/// The standard plugin first reserves, then finds that it cannot, then releases, and its turn has advanced.
/// Ours decides on all addresses before it takes the first.
#[test]
fn host_local_adds_that_fail_late_leave_nothing() {
    for (args, text) in [
        ("IP=fd00::1", "failed to allocate for range 1: requested ip fd00::1 is subnet's gateway"),
        ("IP=192.168.0.1", "failed to allocate all requested IPs: 192.168.0.1"),
        ("IP=10.0.0.200", "failed to allocate all requested IPs: 10.0.0.200"),
    ] {
        let (theirs, mine) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let call = |dir: &Path| Call::new("ADD", "c1", "net1", args, conf("1.0.0", dir, &dual()));
        let (want, got) = (standard_plugin("host-local", &call(theirs.path())), ours(&call(mine.path())));
        assert_eq!(got, want);
        assert_eq!(got.msg(), text);
        assert_eq!(files(theirs.path())["last_reserved_ip.0"], "10.0.0.2");
        assert_eq!(files(mine.path()), BTreeMap::new());
    }
}

#[test]
fn host_local_forms_of_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let resolv_conf = dir.path().join("resolv.conf");
    fs::write(&resolv_conf, "nameserver 10.0.0.53\nsearch a.b c\ndomain a.b\noptions ndots:2\n#x\n").unwrap();
    let ipams = [
        json!({"type": "host-local", "subnet": "10.1.0.0/16"}),
        json!({"type": "host-local", "subnet": "10.1.0.0/30", "gateway": "10.1.0.2"}),
        json!({"type": "host-local", "subnet": "fd00::/126"}),
        json!({"type": "host-local", "subnet": "10.1.0.0/24", "gateway": "10.2.0.1"}),
        json!({
            "type": "host-local", "SUBNET": "10.1.0.0/24", "rangestart": "10.1.0.77",
            "Routes": [{"dst": "10.9.0.0/16", "gw": "10.1.0.9"}]
        }),
        json!({"type": "host-local", "subnet": "10.1.0.0/24", "ranges": [[{"subnet": "10.2.0.0/24"}]]}),
        json!({"type": "host-local", "subnet": "10.1.0.0/24", "resolvConf": resolv_conf}),
        json!({"type": "host-local", "subnet": "10.1.0.0/24", "rangeStart": null, "routes": null}),
    ];
    for ipam in ipams {
        let outcomes = same("1.0.0", &ipam, &[add("c1"), add("c2"), del("c1"), add("c3"), del("c2")]);
        assert!(outcomes[0].ok(), "{outcomes:?}");
        same("0.4.0", &ipam, &[add("c1")]);
    }
    let ranges = json!({"runtimeConfig": {"ipRanges": [[{"subnet": "10.7.0.0/24"}]]}});
    let steps = [("ADD", "c1", "net1", "", ranges.clone()), ("DEL", "c1", "net1", "", ranges)];
    assert!(same("1.0.0", &small(), &steps)[0].ok());
}

/// What both refuse, though not in the same words: ours name the field and the fix.
#[test]
fn host_local_configurations_that_both_refuse() {
    let ranges = |ranges: Value| json!({"type": "host-local", "ranges": ranges});
    for (version, ipam) in [
        ("1.0.0", json!({"type": "host-local"})),
        ("1.0.0", ranges(json!([[{"subnet": "10.1.0.0/31"}]]))),
        ("1.0.0", ranges(json!([[{"subnet": "nonsense"}]]))),
        ("1.0.0", ranges(json!([[{"subnet": "10.1.0.0/24", "rangeStart": "10.2.0.1"}]]))),
        (
            "1.0.0",
            ranges(json!([[{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.8"}]])),
        ),
        ("1.0.0", ranges(json!([[{"subnet": "10.1.0.0/24"}, {"subnet": "fd00::/64"}]]))),
        ("1.0.0", ranges(json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.1.0.0/16"}]]))),
        ("1.0.0", ranges(json!([[]]))),
        ("0.2.0", ranges(json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}]]))),
        ("1.0.0", json!({"type": "host-local", "subnet": "10.1.0.0/24", "resolvConf": "/nonexistent"})),
    ] {
        let (theirs, mine) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let call = |dir: &Path| Call::new("ADD", "c1", "net1", "", conf(version, dir, &ipam));
        let (want, got) = (standard_plugin("host-local", &call(theirs.path())), ours(&call(mine.path())));
        assert!(!want.ok(), "{ipam}: the standard plugin says {want:?}");
        assert!(!got.ok(), "{ipam}: we say {got:?}");
        assert!(files(mine.path()).is_empty(), "{ipam}");
    }
}

#[test]
fn addresses_that_only_we_refuse() {
    let dir = tempfile::tempdir().unwrap();
    let ends = json!({"type": "host-local", "ranges": [subnet("10.0.0.0/29", "10.0.0.0", "10.0.0.7")]});
    let call = |args: &str| Call::new("ADD", "c1", "net1", args, conf("1.0.0", dir.path(), &ends));
    assert!(
        ours(&call("IP=10.0.0.0")).msg().contains("address 10.0.0.0 is the address of the network itself")
    );
    assert!(
        ours(&call("IP=10.0.0.7")).msg().contains("address 10.0.0.7 is the broadcast address of the network")
    );
    let node = ours(&call("IP=10.0.0.5").refusing("10.0.0.5"));
    assert!(node.msg().contains("address 10.0.0.5 is the node's own"), "{node:?}");
    let next = ours(&call("").refusing("10.0.0.2"));
    assert_eq!(next.json["ips"][0]["address"], "10.0.0.3/29");

    let fixed = json!({"type": "static", "addresses": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}]});
    let call = |args: &str| Call::new("ADD", "c1", "net1", args, conf("1.0.0", dir.path(), &fixed));
    assert!(ours(&call("")).ok());
    assert!(ours(&call("").refusing("10.1.0.5")).msg().contains("address 10.1.0.5 is the node's own"));
    assert!(ours(&call("IP=10.2.0.255/24")).msg().contains("address 10.2.0.255 is the broadcast address"));
}

#[test]
fn static_addresses() {
    let ipam = json!({
        "type": "static",
        "addresses": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}, {"address": "fd00::5/64"}],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.1.0.9"}],
        "dns": {"nameservers": ["10.1.0.53"], "domain": "a.b", "search": ["a.b"], "options": ["ndots:2"]}
    });
    for version in ["0.1.0", "0.2.0", "0.3.1", "0.4.0", "1.0.0"] {
        assert!(same(version, &ipam, &[add("c1"), add("c1"), del("c1"), del("c1")])[0].ok());
    }
    // Added to what the configuration names.
    same("1.0.0", &ipam, &[("ADD", "c1", "net1", "IP=10.2.0.7/24", json!({}))]);

    let none = json!({"type": "static"});
    let args = json!({"args": {"cni": {"ips": ["10.1.0.8/24"]}}});
    let mut capability = args.clone();
    capability["runtimeConfig"] = json!({"ips": ["10.1.0.9/24", "fd00::9/64"]});
    let steps = [
        ("ADD", "c1", "net1", "IP=10.1.0.7/24", json!({})),
        ("ADD", "c1", "net1", "IP=10.1.0.7/24,fd00::7/64;GATEWAY=10.1.0.1,fd00::1", json!({})),
        ("ADD", "c1", "net1", "IP=10.1.0.7/24", args),
        ("ADD", "c1", "net1", "IP=10.1.0.7/24", capability),
        ("ADD", "c1", "net1", "", json!({})),
    ];
    let outcomes = same("1.0.0", &none, &steps);
    assert!(outcomes.iter().all(Outcome::ok), "{outcomes:?}");

    for args in ["IP=10.1.0.7", "IP=x", "IP=10.1.0.7/24;GATEWAY=x"] {
        let call = Call::new("ADD", "c1", "net1", args, conf("1.0.0", Path::new("/"), &none));
        assert!(!standard_plugin("static", &call).ok(), "{args}");
        assert!(!ours(&call).ok(), "{args}");
    }
}

#[test]
fn static_check() {
    let ipam = json!({"type": "static", "addresses": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}]});
    let prev = |address: &str, gateway: &str| json!({"prevResult": {"cniVersion": "1.0.0", "ips": [{"address": address, "gateway": gateway}]}});
    let check = |change: Value| ("CHECK", "c1", "net1", "", change);
    let steps =
        [check(prev("10.1.0.5/24", "10.1.0.1")), check(prev("10.1.0.5/24", "10.1.0.2")), check(json!({}))];
    let outcomes = same("1.0.0", &ipam, &steps);
    assert_eq!(outcomes.iter().map(Outcome::ok).collect::<Vec<_>>(), [true, false, false]);
    // The standard plugin does not miss an address that is not there at all.
    let mut conf = conf("1.0.0", Path::new("/"), &ipam);
    conf["prevResult"] = prev("10.1.0.6/24", "10.1.0.1")["prevResult"].clone();
    let call = Call::new("CHECK", "c1", "net1", "", conf);
    assert!(standard_plugin("static", &call).ok());
    assert_eq!(ours(&call).msg(), "static: Failed to match addr 10.1.0.5 on interface net1");
}

#[derive(Clone, Debug)]
struct AnyStep {
    command: &'static str,
    id: u8,
    ifname: u8,
    request: Option<u8>,
    /// Who does it in the mixed directory.
    ours: bool,
}

fn any_step() -> impl Strategy<Value = AnyStep> {
    let command = prop_oneof![4 => Just("ADD"), 3 => Just("DEL"), 1 => Just("CHECK")];
    (command, 0..6u8, 1..=2u8, prop::option::weighted(0.3, 1..9u8), any::<bool>())
        .prop_map(|(command, id, ifname, request, ours)| AnyStep { command, id, ifname, request, ours })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// Three directories: the standard plugin's, ours, and one where any of the two takes the next step.
    #[test]
    fn any_history_is_the_same_whoever_writes_it(steps in prop::collection::vec(any_step(), 1..40)) {
        let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        for step in &steps {
            // One that is in no range set is another test's: there the standard plugin leaves more behind.
            let args = step.request.map(|last| format!("IP=10.0.0.{}", last.min(5))).unwrap_or_default();
            let call = |dir: usize| {
                let conf = conf("1.0.0", dirs[dir].path(), &small());
                Call::new(step.command, &format!("c{}", step.id), &format!("net{}", step.ifname), &args, conf)
            };
            let want = standard_plugin("host-local", &call(0));
            prop_assert_eq!(&ours(&call(1)), &want, "{:?}", step);
            let mixed = if step.ours { ours(&call(2)) } else { standard_plugin("host-local", &call(2)) };
            prop_assert_eq!(&mixed, &want, "{:?}", step);
            let mut on_disk = files(dirs[0].path());
            prop_assert_eq!(&files(dirs[2].path()), &on_disk, "{:?}", step);
            prop_assert_eq!(&files(dirs[1].path()), &on_disk, "{:?}", step);
            on_disk.remove("last_reserved_ip.0");
            prop_assert!(on_disk.len() <= 4);
        }
    }
}

/// 60 ADDs at once, half by each, for 60 addresses; then 60 DELs at once, each by the other one.
#[test]
fn both_at_once_never_give_an_address_twice() {
    const ALL: usize = 60;
    let dir = tempfile::tempdir().unwrap();
    let ipam = json!({"type": "host-local", "ranges": [subnet("10.0.0.0/24", "10.0.0.1", "10.0.0.61")]});
    let call = |command: &str, number: usize| {
        Call::new(command, &format!("c{number}"), "net1", "", conf("1.0.0", dir.path(), &ipam))
    };
    let all_at_once = |command: &str, is_ours: fn(usize) -> bool| -> Vec<Outcome> {
        let running: Vec<_> = (0..ALL)
            .map(|number| {
                let call = call(command, number);
                if is_ours(number) { ours_in_a_process(&call) } else { spawn("host-local", &call) }
            })
            .collect();
        running.into_iter().map(Running::outcome).collect()
    };

    let outcomes = all_at_once("ADD", |number| number % 2 == 0);
    assert!(outcomes.iter().all(Outcome::ok), "{outcomes:?}");
    let address = |outcome: &Outcome| outcome.json["ips"][0]["address"].as_str().unwrap().replace("/24", "");
    assert_eq!(outcomes.iter().map(address).collect::<BTreeSet<_>>().len(), ALL, "{outcomes:?}");
    let reserved = files(dir.path());
    assert_eq!(reserved.len(), ALL + 1, "with last_reserved_ip.0");
    for (number, outcome) in outcomes.iter().enumerate() {
        assert_eq!(reserved[&address(outcome)], format!("c{number}\r\nnet1"));
    }
    assert!(ours(&call("ADD", 1000)).msg().contains("no IP addresses available"));
    assert!(standard_plugin("host-local", &call("ADD", 1000)).msg().contains("no IP addresses available"));

    let outcomes = all_at_once("DEL", |number| number % 2 == 1);
    assert!(outcomes.iter().all(Outcome::ok), "{outcomes:?}");
    assert_eq!(files(dir.path()).keys().collect::<Vec<_>>(), ["last_reserved_ip.0"]);
}

/// Our process adds and deletes without end and is killed at any moment; then every address can be had again, by both.
#[test]
fn killed_at_any_moment_it_leaves_nothing_that_blocks() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..25_u32 {
        let name = format!("n{round}");
        let call = |command: &str, id: &str| {
            let mut conf = conf("1.0.0", dir.path(), &dual());
            conf["name"] = json!(name);
            Call::new(command, id, "net1", "", conf)
        };
        let mut worker = endless_worker(&call("ADD", "dead"));
        let begun = Instant::now();
        while !dir.path().join(&name).join("last_reserved_ip.1").exists() {
            assert!(begun.elapsed() < Duration::from_secs(20), "the worker does nothing");
            std::thread::yield_now();
        }
        // Another moment each time, over several ADDs and DELs.
        let moment = begun.elapsed() + Duration::from_micros(137) * round;
        while begun.elapsed() < moment {
            std::hint::spin_loop();
        }
        worker.kill().unwrap();
        worker.wait().unwrap();

        // What a runtime does with a sandbox whose ADD did not end.
        assert!(ours(&call("DEL", "dead")).ok());
        for (number, id) in ["c1", "c2", "c3", "c4"].iter().enumerate() {
            let call = call("ADD", id);
            let outcome = if number % 2 == 0 { ours(&call) } else { standard_plugin("host-local", &call) };
            assert!(outcome.ok(), "round {round}, {id}: {outcome:?}");
        }
        assert!(ours(&call("ADD", "c5")).msg().contains("no IP addresses available"));
    }
}

/// The worker of the tests above: this very program in a process of its own. Run beside them it has no work.
#[test]
fn worker() {
    if standard::is_worker() {
        standard::work();
    }
}
