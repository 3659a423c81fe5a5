use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::spec::address::network_of;
use crate::spec::json::to_text;

fn network(text: &str) -> IpNetwork {
    text.parse().expect("is a network")
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("is an address")
}

/// A result that uses everything 1.1.0 knows.
fn full() -> CniResult {
    CniResult {
        interfaces: vec![
            Interface {
                name: "net1".into(),
                mac: Some("0a:58:0a:01:01:05".into()),
                mtu: Some(1400),
                sandbox: Some("/run/netns/x".into()),
                socket_path: Some("/run/s".into()),
                pci_id: Some("0000:00:08.0".into()),
            },
            Interface { name: "host0".into(), ..Interface::default() },
        ],
        ips: vec![
            IpConfig {
                address: network("10.1.1.5/24"),
                gateway: Some(address("10.1.1.1")),
                interface: Some(0),
            },
            IpConfig { address: network("10.2.2.5/24"), gateway: None, interface: None },
            IpConfig { address: network("fd00::5/64"), gateway: None, interface: Some(0) },
        ],
        routes: vec![
            Route::new(network("0.0.0.0/0"), None),
            Route {
                dst: network("10.9.0.0/16"),
                gw: Some(address("10.1.1.9")),
                mtu: Some(1300),
                advmss: Some(1200),
                priority: Some(5),
                table: Some(0),
                scope: Some(253),
            },
            Route::new(network("fd01::/16"), None),
        ],
        dns: Dns {
            nameservers: vec!["1.1.1.1".into()],
            domain: Some("x".into()),
            search: vec!["y".into(), "z".into()],
            options: vec!["ndots:2".into()],
        },
    }
}

fn as_json(version: CniVersion) -> Value {
    full().to_json(version).expect("has an address")
}

/// `serde_json` compares objects whatever the order of their keys; their text has the order.
#[track_caller]
fn check_text(actual: &Value, expected: &Value) {
    assert_eq!(to_text(actual), to_text(expected));
}

#[test]
fn newest_shape_has_everything() {
    let expected = |version: &str| {
        json!({
            "cniVersion": version,
            "interfaces": [
                {"name": "net1", "mac": "0a:58:0a:01:01:05", "mtu": 1400, "sandbox": "/run/netns/x",
                 "socketPath": "/run/s", "pciID": "0000:00:08.0"},
                {"name": "host0"},
            ],
            "ips": [
                {"interface": 0, "address": "10.1.1.5/24", "gateway": "10.1.1.1"},
                {"address": "10.2.2.5/24"},
                {"interface": 0, "address": "fd00::5/64"},
            ],
            "routes": [
                {"dst": "0.0.0.0/0"},
                {"dst": "10.9.0.0/16", "gw": "10.1.1.9", "mtu": 1300, "advmss": 1200, "priority": 5, "table": 0,
                 "scope": 253},
                {"dst": "fd01::/16"},
            ],
            "dns": {"nameservers": ["1.1.1.1"], "domain": "x", "search": ["y", "z"], "options": ["ndots:2"]},
        })
    };
    check_text(&as_json(CniVersion::V1_1_0), &expected("1.1.0"));
    check_text(&as_json(CniVersion::V1_0_0), &expected("1.0.0"));
}

#[test]
fn shape_of_0_3_and_0_4_has_a_family_and_a_plainer_interface() {
    for version in [CniVersion::V0_3_0, CniVersion::V0_3_1, CniVersion::V0_4_0] {
        let expected = json!({
            "cniVersion": version.as_str(),
            "interfaces": [
                {"name": "net1", "mac": "0a:58:0a:01:01:05", "sandbox": "/run/netns/x"},
                {"name": "host0"},
            ],
            "ips": [
                {"version": "4", "interface": 0, "address": "10.1.1.5/24", "gateway": "10.1.1.1"},
                {"version": "4", "address": "10.2.2.5/24"},
                {"version": "6", "interface": 0, "address": "fd00::5/64"},
            ],
            "routes": [
                {"dst": "0.0.0.0/0"},
                {"dst": "10.9.0.0/16", "gw": "10.1.1.9", "mtu": 1300, "advmss": 1200, "priority": 5, "table": 0,
                 "scope": 253},
                {"dst": "fd01::/16"},
            ],
            "dns": {"nameservers": ["1.1.1.1"], "domain": "x", "search": ["y", "z"], "options": ["ndots:2"]},
        });
        check_text(&as_json(version), &expected);
    }
}

#[test]
fn shape_of_0_1_and_0_2_has_one_address_per_family() {
    for version in [CniVersion::V0_1_0, CniVersion::V0_2_0] {
        let expected = json!({
            "cniVersion": version.as_str(),
            "ip4": {
                "ip": "10.1.1.5/24",
                "gateway": "10.1.1.1",
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.1.1.9"}],
            },
            "ip6": {"ip": "fd00::5/64", "routes": [{"dst": "fd01::/16"}]},
            "dns": {"nameservers": ["1.1.1.1"], "domain": "x", "search": ["y", "z"], "options": ["ndots:2"]},
        });
        check_text(&as_json(version), &expected);
    }
}

#[test]
fn text_is_that_of_the_standard_plugins() {
    let result = CniResult { dns: Dns::default(), interfaces: vec![], routes: vec![], ..full() };
    let json = result.to_json(CniVersion::V0_2_0).expect("has an address");
    assert_eq!(
        to_text(&json),
        "{\n    \"cniVersion\": \"0.2.0\",\n    \"ip4\": {\n        \"ip\": \"10.1.1.5/24\",\n        \
         \"gateway\": \"10.1.1.1\"\n    },\n    \"ip6\": {\n        \"ip\": \"fd00::5/64\"\n    }\n}"
    );
}

#[test]
fn what_is_empty_is_left_out() {
    let empty = CniResult::default();
    for version in CniVersion::ALL {
        match empty.to_json(version) {
            Ok(json) => assert_eq!(json, json!({"cniVersion": version.as_str()})),
            Err(error) => {
                assert!(version < CniVersion::V0_3_0, "{error}");
                assert_eq!(error.cni_code(), 1);
                let fix = "cannot express an interface without an address: use 0.3.0 or later, or an IPAM";
                assert_eq!(error.to_string(), format!("cniVersion `{version}` {fix}"));
            }
        }
    }
    assert!(empty.to_json(CniVersion::V0_2_0).is_err());
}

#[test]
fn a_result_without_a_version_is_of_the_configurations() {
    let value = json!({"ip4": {"ip": "10.1.1.5/24", "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.1.1"}]},
        "ips": [{"address": "fd00::5/64"}]});
    let old = CniResult::parse(CniVersion::V0_2_0, &value).expect("is valid");
    assert_eq!(old.ips[0].address, network("10.1.1.5/24"));
    assert_eq!(old.routes, [Route::new(network("0.0.0.0/0"), Some(address("10.1.1.1")))]);
    let new = CniResult::parse(CniVersion::V0_3_0, &value).expect("is valid");
    assert_eq!(new.ips[0].address, network("fd00::5/64"));
    assert_eq!((new.ips.len(), new.routes.len()), (1, 0));
}

#[test]
fn a_results_own_version_wins() {
    let value = json!({"cniVersion": "0.2.0", "ip6": {"ip": "fd00::5/64"}});
    let result = CniResult::parse(CniVersion::V1_1_0, &value).expect("is valid");
    assert_eq!(result.ips[0].address, network("fd00::5/64"));
}

#[test]
fn what_the_standard_plugins_print_is_read() {
    // Printed by version 1.1.1 of them.
    let value = json!({"cniVersion": "0.3.1", "ips": [{"version": "4", "address": "10.1.1.5/24",
        "gateway": "10.1.1.1"}, {"version": "6", "address": "fd00::5/64"}], "routes": null, "dns": {}});
    let result = CniResult::parse(CniVersion::V0_3_1, &value).expect("is valid");
    assert_eq!(result.ips.len(), 2);
    assert!(result.dns.is_empty());
}

#[test]
fn errors_name_the_place() {
    for (value, expected) in [
        (json!([]), "result `[]` is not a JSON object"),
        (
            json!({"cniVersion": "9"}),
            "cniVersion `9` is not supported: use one of 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0",
        ),
        (
            json!({"ips": [{}]}),
            "result.ips[0].address is missing: write an address with its prefix length, such as 10.12.34.5/24",
        ),
        (json!({"ips": [null]}), "result.ips[0] `null` is not a JSON object"),
        (json!({"ips": {}}), "result.ips `{}` is not a list"),
        (
            json!({"ips": [{"address": "10.0.0.1"}]}),
            "result.ips[0].address `10.0.0.1`: write an address with its prefix length, such as 10.12.34.5/24",
        ),
        (
            json!({"ips": [{"address": "10.0.0.1/8", "interface": "0"}]}),
            "result.ips[0].interface `\"0\"` is not a number",
        ),
        (
            json!({"routes": [{"dst": "10.0.0.0/8"}, {"dst": "10.0.0.0/8", "gw": "x"}]}),
            "result.routes[1].gw `x`: write an address without prefix length, such as 10.12.34.5",
        ),
        (
            json!({"routes": [{"dst": "10.0.0.0/8", "scope": 256}]}),
            "result.routes[0].scope `256`: must lie between 0 and 255",
        ),
        (json!({"dns": {"search": ["a", 1]}}), "result.dns.search[1] `1` is not a string"),
        (json!({"interfaces": [{"name": 1}]}), "result.interfaces[0].name `1` is not a string"),
    ] {
        let error = CniResult::parse(CniVersion::V1_0_0, &value).expect_err(expected);
        assert_eq!(error.to_string(), expected);
    }
}

fn networks() -> impl Strategy<Value = IpNetwork> {
    prop_oneof![
        (any::<[u8; 4]>(), 0u8..=32).prop_map(|(ip, prefix)| IpNetwork::new(ip.into(), prefix)),
        (any::<[u8; 16]>(), 0u8..=128)
            .prop_filter("IPv4 in IPv6 notation is refused", |(ip, _)| {
                IpAddr::from(*ip).to_canonical() == IpAddr::from(*ip)
            })
            .prop_map(|(ip, prefix)| IpNetwork::new(ip.into(), prefix)),
    ]
    .prop_map(|network| network.expect("the prefix length is in range"))
}

fn text() -> impl Strategy<Value = Option<String>> {
    prop::option::of("[a-z0-9/:.]{1,12}")
}

fn results() -> impl Strategy<Value = CniResult> {
    let nonzero = || prop::option::of(1..u32::MAX);
    let interface = ("[a-z0-9]{1,15}", text(), nonzero(), text(), text(), text()).prop_map(
        |(name, mac, mtu, sandbox, socket_path, pci_id)| Interface {
            name,
            mac,
            mtu,
            sandbox,
            socket_path,
            pci_id,
        },
    );
    let gateway = || prop::option::of(networks().prop_map(|network| network.ip()));
    let ip = (networks(), gateway(), prop::option::of(0usize..4))
        .prop_map(|(address, gateway, interface)| IpConfig { address, gateway, interface });
    let route = (
        (networks().prop_map(network_of), gateway(), nonzero(), nonzero(), nonzero()),
        (prop::option::of(any::<u32>()), prop::option::of(any::<u8>())),
    )
        .prop_map(|((dst, gw, mtu, advmss, priority), (table, scope))| Route {
            dst,
            gw,
            mtu,
            advmss,
            priority,
            table,
            scope,
        });
    let texts = || prop::collection::vec("[a-z.]{1,9}", 0..3);
    let dns = (texts(), text(), texts(), texts()).prop_map(|(nameservers, domain, search, options)| Dns {
        nameservers,
        domain,
        search,
        options,
    });
    (
        prop::collection::vec(interface, 0..3),
        prop::collection::vec(ip, 0..4),
        prop::collection::vec(route, 0..4),
        dns,
    )
        .prop_map(|(interfaces, ips, routes, dns)| CniResult { interfaces, ips, routes, dns })
}

proptest! {
    #[test]
    fn a_result_survives_the_newest_versions(result in results()) {
        for version in [CniVersion::V1_0_0, CniVersion::V1_1_0] {
            let json = result.to_json(version).expect("every result has this shape");
            prop_assert_eq!(&CniResult::parse(version, &json).expect("our own text"), &result);
        }
    }

    #[test]
    fn versions_0_3_and_0_4_lose_only_what_an_interface_has_since_1_0(result in results()) {
        for version in [CniVersion::V0_3_0, CniVersion::V0_3_1, CniVersion::V0_4_0] {
            let json = result.to_json(version).expect("every result has this shape");
            let mut expected = result.clone();
            for interface in &mut expected.interfaces {
                (interface.mtu, interface.socket_path, interface.pci_id) = (None, None, None);
            }
            prop_assert_eq!(CniResult::parse(version, &json).expect("our own text"), expected);
        }
    }

    #[test]
    fn an_old_shape_loses_nothing_the_second_time(result in results()) {
        for version in [CniVersion::V0_1_0, CniVersion::V0_2_0] {
            let Ok(json) = result.to_json(version) else {
                prop_assert!(result.ips.is_empty());
                continue;
            };
            let old = CniResult::parse(version, &json).expect("our own text");
            prop_assert!(old.ips.iter().all(|ip| result.ips.iter().any(|it| it.address == ip.address)));
            prop_assert_eq!(old.to_json(version).expect("still has an address"), json);
        }
    }
}
