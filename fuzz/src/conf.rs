//! What runtimes, pods and other plugins write: configurations, results, `CNI_ARGS`.

use netpath::spec::{CniArgs, CniResult, CniVersion, ConfError, IpamConf, MacvlanConf, NetConf};
use serde_json::Value;

use crate::{cursor::Cursor, file_name};

/// `CNI_ARGS` up to a zero byte, then a configuration, or a result, or anything.
pub fn check(data: &[u8]) {
    let mut cursor = Cursor::new(data);
    let args = String::from_utf8_lossy(cursor.until(0)).into_owned();
    let stdin = cursor.rest();
    let lenient = CniArgs::parse_leniently(&args);
    let args = match CniArgs::parse(&args) {
        Ok(args) => {
            assert_eq!(args, lenient, "removal reads what adding reads");
            args
        }
        Err(error) => {
            says_something(&error);
            lenient
        }
    };
    let version = NetConf::parse_version(stdin);
    match NetConf::parse(stdin) {
        Ok(conf) => {
            // What names no version is of the oldest, and whoever wrote it may know the newest.
            let unnamed = (CniVersion::V0_1_0, CniVersion::LATEST);
            let both = (conf.cni_version, version);
            assert!(both.0 == both.1 || both == unnamed, "{both:?}: one configuration has one version");
            whole(&conf, &args);
            if let Some(previous) = &conf.prev_result {
                round_trip(previous, version);
            }
        }
        Err(error) => says_something(&error),
    }
    let Ok(value) = serde_json::from_slice::<Value>(stdin) else { return };
    for version in CniVersion::ALL {
        match CniResult::parse(version, &value) {
            Ok(result) => round_trip(&result, version),
            Err(error) => says_something(&error),
        }
    }
}

fn whole(conf: &NetConf, args: &CniArgs) {
    match MacvlanConf::from_conf(conf, args) {
        Ok(macvlan) => {
            assert!(macvlan.mac.is_none_or(|mac| mac.is_usable()), "no interface has {:?}", macvlan.mac);
        }
        Err(error) => says_something(&error),
    }
    if let Err(error) = conf.acd() {
        says_something(&error);
    }
    let ipam = match IpamConf::from_conf(conf, args) {
        Ok(ipam) => ipam,
        Err(error) => return says_something(&error),
    };
    for subnet in ipam.local_subnets().unwrap_or_default() {
        assert_eq!(subnet.ip(), subnet.network(), "a subnet has no host bits");
    }
    if let IpamConf::HostLocal(pool) = &ipam {
        assert!(!pool.ranges.is_empty(), "a pool without a range is an error");
        for range in pool.ranges.iter().flat_map(|set| &set.0) {
            assert!(
                range.start <= range.end && range.contains(range.start) && range.contains(range.end),
                "{range:?}"
            );
            assert!(range.subnet.contains(range.start) && range.subnet.contains(range.end), "{range:?}");
        }
    }
}

/// What is written in a version is read as it was written. Versions before 0.3 hold less, so they are read twice.
fn round_trip(result: &CniResult, version: CniVersion) {
    let json = match result.to_json(version) {
        Ok(json) => json,
        Err(error) => return says_something(&error),
    };
    let text = json.to_string();
    let value: Value = serde_json::from_str(&text).expect("what is printed is JSON");
    let again = CniResult::parse(version, &value).expect("what we write, we read");
    assert_eq!(again.to_json(version).expect("it was written before"), json, "the second time as the first");
}

/// An error becomes a CNI error object: it needs a code, and something to say.
fn says_something(error: &ConfError) {
    assert!(error.cni_code() != 0 && !error.to_string().trim().is_empty(), "{error:?}");
}

/// Configurations of every kind and results of every version.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    const ARGS: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=team-a;K8S_POD_NAME=web-0;IP=10.12.34.200/24;MAC=0a:58:0a:01:02:03\0";
    let of = |name: &str, args: &str, json: &str| (file_name(name), [args, json].concat().into_bytes());
    let mut seeds = vec![
        of(
            "host-local",
            ARGS,
            r#"{"cniVersion":"1.0.0","name":"lan","type":"macvlan","master":"enp0s8","mode":"bridge","mtu":1400,"ipam":{"type":"host-local","dataDir":"/hl","ranges":[[{"subnet":"10.12.34.0/24","rangeStart":"10.12.34.100","rangeEnd":"10.12.34.150","gateway":"10.12.34.254"}],[{"subnet":"fd00::/64"}]],"routes":[{"dst":"0.0.0.0/0","gw":"10.12.34.254","mtu":1300,"priority":7}]},"zone":{"policy":"private"}}"#,
        ),
        of(
            "static",
            "\0",
            r#"{"cniVersion":"0.4.0","name":"lan","type":"macvlan","ipam":{"type":"static","addresses":[{"address":"10.12.34.5/24","gateway":"10.12.34.254"},{"address":"fd00::5/64"}],"dns":{"nameservers":["10.0.0.1"],"search":["a.b"]}}}"#,
        ),
        of(
            "older host-local",
            "\0",
            r#"{"name":"lan","type":"macvlan","ipam":{"type":"host-local","subnet":"10.1.0.0/16"}}"#,
        ),
        of(
            "runtime config",
            "MAC=;\0",
            r#"{"cniVersion":"1.1.0","name":"l","type":"macvlan","runtimeConfig":{"mac":"0A:58:0a:01:02:03","ips":["10.0.0.9/24"],"ipRanges":[[{"subnet":"10.0.0.0/8"}]]},"args":{"cni":{"ips":["fd00::1"]}},"linkInContainer":true,"bcqueuelen":9,"cni.dev/valid-attachments":[{"containerID":"a","ifname":"net1"}],"disableGC":true}"#,
        ),
        of(
            "whereabouts and previous result",
            "\0",
            r#"{"cniVersion":"1.0.0","name":"l","type":"macvlan","ipam":{"type":"whereabouts","range":"10.5.0.0/16"},"prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"net1","mac":"02:00:00:00:00:01","sandbox":"/ns"}],"ips":[{"interface":0,"address":"10.5.0.1/16","gateway":"10.5.0.254"}],"routes":[{"dst":"0.0.0.0/0"}],"dns":{}}}"#,
        ),
        of("not an object", "A=b=c\0", "[]"),
    ];
    for version in CniVersion::ALL {
        let body = match version < CniVersion::V0_3_0 {
            true => {
                r#""ip4":{"ip":"10.0.0.5/24","gateway":"10.0.0.1","routes":[{"dst":"0.0.0.0/0"}]},"ip6":{"ip":"fd00::5/64"},"dns":{"nameservers":["1.1.1.1"]}"#
            }
            false => {
                r#""interfaces":[{"name":"net1","mac":"02:00:00:00:00:01","mtu":1400,"sandbox":"/ns","socketPath":"/s","pciID":"0"}],"ips":[{"version":"4","interface":0,"address":"10.0.0.5/24","gateway":"10.0.0.1"}],"routes":[{"dst":"::/0","gw":"fd00::1","mtu":1,"advmss":2,"priority":3,"table":4,"scope":5}],"dns":{"domain":"d","options":["o"]}"#
            }
        };
        let json = format!(r#"{{"cniVersion":"{version}",{body}}}"#);
        seeds.push(of(&format!("result {version}"), "\0", &json));
    }
    seeds
}
