use proptest::prelude::*;
use serde_json::json;

use super::*;

/// The IPAM of a configuration with these keys, and `CNI_ARGS`.
fn read_conf(keys: Value, args: &str) -> Result<IpamConf, ConfError> {
    let mut conf = json!({"cniVersion": "1.1.0", "name": "mv", "type": "macvlan"});
    for (key, value) in keys.as_object().expect("keys are an object") {
        conf[key] = value.clone();
    }
    let args = CniArgs::parse(args).expect("is valid");
    IpamConf::from_conf(&NetConf::parse(conf.to_string().as_bytes())?, &args)
}

fn host_local(keys: Value) -> Result<HostLocalConf, ConfError> {
    host_local_asked(keys, json!({}), "")
}

fn host_local_asked(keys: Value, runtime: Value, args: &str) -> Result<HostLocalConf, ConfError> {
    let mut ipam = json!({"type": "host-local"});
    for (key, value) in keys.as_object().expect("keys are an object") {
        ipam[key] = value.clone();
    }
    match read_conf(json!({"ipam": ipam, "runtimeConfig": runtime}), args)? {
        IpamConf::HostLocal(conf) => Ok(conf),
        other => panic!("{other:?} is not host-local"),
    }
}

fn static_asked(addresses: Value, keys: Value, args: &str) -> Result<StaticConf, ConfError> {
    let mut conf = keys;
    conf["ipam"] = json!({"type": "static", "addresses": addresses});
    match read_conf(conf, args)? {
        IpamConf::Static(conf) => Ok(conf),
        other => panic!("{other:?} is not static"),
    }
}

fn texts<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

/// Addresses with their gateways, as text.
fn addresses(conf: &StaticConf) -> Vec<String> {
    let text = |(address, gateway): &(IpNetwork, Option<IpAddr>)| match gateway {
        Some(gateway) => format!("{address} via {gateway}"),
        None => address.to_string(),
    };
    conf.addresses.iter().map(text).collect()
}

#[test]
fn none_is_no_ipam_or_one_without_a_type() {
    for keys in [json!({}), json!({"ipam": null}), json!({"ipam": {}}), json!({"ipam": {"type": ""}})] {
        let ipam = read_conf(keys, "").expect("is valid");
        assert_eq!((ipam.local_subnets(), ipam), (None, IpamConf::None));
    }
}

#[test]
fn a_range_is_completed_as_host_local_completes_it() {
    for (range, expected) in [
        (json!({"subnet": "10.1.2.0/24"}), "10.1.2.1-10.1.2.254 via 10.1.2.1"),
        (json!({"subnet": "10.1.2.0/30"}), "10.1.2.1-10.1.2.2 via 10.1.2.1"),
        (json!({"subnet": "fd00::/64"}), "fd00::1-fd00::ffff:ffff:ffff:ffff via fd00::1"),
        (json!({"subnet": "fd00::/126"}), "fd00::1-fd00::3 via fd00::1"),
        (json!({"subnet": "255.255.255.252/30"}), "255.255.255.253-255.255.255.254 via 255.255.255.253"),
        (json!({"subnet": "0.0.0.0/0"}), "0.0.0.1-255.255.255.254 via 0.0.0.1"),
        (
            json!({"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.9", "rangeEnd": "10.1.2.9", "gateway": "10.1.2.254"}),
            "10.1.2.9-10.1.2.9 via 10.1.2.254",
        ),
        // The standard plugin takes these too; the allocator is what keeps off them.
        (
            json!({"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.255", "rangeEnd": "10.1.2.255"}),
            "10.1.2.255-10.1.2.255 via 10.1.2.1",
        ),
        (json!({"subnet": "10.1.2.0/24", "gateway": "10.9.9.9"}), "10.1.2.1-10.1.2.254 via 10.9.9.9"),
        (
            json!({"subnet": "10.1.2.0/24", "rangeStart": "::ffff:10.1.2.7"}),
            "10.1.2.7-10.1.2.254 via 10.1.2.1",
        ),
    ] {
        let conf = host_local(json!({"ranges": [[range]]})).expect(expected);
        let range = conf.ranges[0].0[0];
        assert_eq!(format!("{range} via {}", range.gateway), expected);
    }
}

#[test]
fn pools_come_from_the_runtime_then_from_the_old_keys_then_from_ranges() {
    let keys = json!({"subnet": "10.5.0.0/24", "rangeStart": "10.5.0.9",
        "ranges": [[{"subnet": "10.6.0.0/24"}, {"subnet": "10.6.1.0/24"}], [{"subnet": "fd00::/64"}]]});
    let conf =
        host_local_asked(keys, json!({"ipRanges": [[{"subnet": "10.7.0.0/24"}]]}), "").expect("is valid");
    assert_eq!(
        texts(&conf.ranges),
        [
            "10.7.0.1-10.7.0.254",
            "10.5.0.9-10.5.0.254",
            "10.6.0.1-10.6.0.254,10.6.1.1-10.6.1.254",
            "fd00::1-fd00::ffff:ffff:ffff:ffff",
        ]
    );
    assert_eq!(texts(&conf.nad_subnets), ["10.5.0.0/24", "10.6.0.0/24", "10.6.1.0/24", "fd00::/64"]);
}

#[test]
fn other_keys_of_host_local() {
    let keys = json!({"subnet": "10.5.0.0/24", "dataDir": "/d", "resolvConf": "/r",
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "fd00::5/64", "gw": "fd00::1", "priority": 7}]});
    let conf = host_local(keys).expect("is valid");
    assert_eq!((conf.data_dir, conf.resolv_conf), (Some("/d".into()), Some("/r".into())));
    assert_eq!(conf.routes[0], Route::new("0.0.0.0/0".parse().expect("is valid"), None));
    assert_eq!((conf.routes[1].dst.to_string().as_str(), conf.routes[1].priority), ("fd00::5/64", Some(7)));
    let plain = host_local(json!({"subnet": "10.5.0.0/24"})).expect("is valid");
    assert_eq!((plain.data_dir, plain.resolv_conf, plain.routes.len()), (None, None, 0));
}

#[test]
fn requests_come_from_three_places_and_count_once() {
    let keys = json!({
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.5.0.0/24"}], [{"subnet": "fd00::/64"}]]},
        "args": {"cni": {"ips": ["10.5.0.8", "10.5.0.7/24"]}},
        "runtimeConfig": {"ips": ["10.5.0.7", "10.5.0.6/24"]},
    });
    let IpamConf::HostLocal(conf) = read_conf(keys, "IP=10.5.0.7/24,fd00::7/64").expect("is valid") else {
        panic!("is host-local");
    };
    assert_eq!(texts(&conf.requested), ["10.5.0.7", "fd00::7", "10.5.0.8", "10.5.0.6"]);
}

#[test]
fn wrong_pools_are_refused_with_field_value_and_fix() {
    let range = "ipam.ranges[0][0]";
    for (keys, expected) in [
        (json!({"subnet": "10.1.1.5/24"}), "ipam.subnet `10.1.1.5/24`: has host bits: write 10.1.1.0/24".to_owned()),
        (json!({"subnet": "10.1.1.0/31"}), "ipam.subnet `10.1.1.0/31`: is too small to allocate from: write a prefix length of at most 30".into()),
        (json!({"subnet": "fd00::/127"}), "ipam.subnet `fd00::/127`: is too small to allocate from: write a prefix length of at most 126".into()),
        (json!({"subnet": "::ffff:10.1.1.0/120"}), "ipam.subnet `::ffff:10.1.1.0/120`: write an address with its prefix length, such as 10.12.34.5/24".into()),
        (json!({"ranges": [[{"subnet": "10.1.1.0/24", "rangeStart": "10.1.2.1"}]]}), format!("{range}.rangeStart `10.1.2.1`: is not in 10.1.1.0/24")),
        (json!({"ranges": [[{"subnet": "fd00::/64", "rangeEnd": "10.1.2.1"}]]}), format!("{range}.rangeEnd `10.1.2.1`: is not in fd00::/64")),
        (json!({"ranges": [[{"subnet": "10.1.1.0/24", "rangeStart": "10.1.1.9", "rangeEnd": "10.1.1.8"}]]}), format!("{range}.rangeEnd `10.1.1.8`: lies before the start of the range, 10.1.1.9")),
        (json!({"ranges": [[{"subnet": "10.1.1.0/24", "rangeEnd": "10.1.1.0"}]]}), format!("{range}.rangeEnd `10.1.1.0`: lies before the start of the range, 10.1.1.1")),
        (json!({"ranges": [[{"subnet": "10.1.1.0/24", "gateway": "fd00::1"}]]}), format!("{range}.gateway `fd00::1`: is of another family than 10.1.1.0/24")),
        (json!({"ranges": [[{"rangeStart": "10.1.1.1"}]]}), format!("{range}.subnet is missing: write the subnet of the range, such as 10.12.34.0/24")),
        (json!({"ranges": [[]]}), "ipam.ranges[0] `[]`: a pool needs a range, such as {\"subnet\": \"10.12.34.0/24\"}".into()),
        (json!({"ranges": [{"subnet": "10.1.1.0/24"}]}), "ipam.ranges[0] `{\"subnet\":\"10.1.1.0/24\"}` is not a list".into()),
        (json!({"ranges": [[{"subnet": "10.1.1.0/24"}, {"subnet": "fd00::/64"}]]}), "ipam.ranges[0] `fd00::1-fd00::ffff:ffff:ffff:ffff`: is of another family than 10.1.1.1-10.1.1.254: write a pool for each family".into()),
        (json!({"ranges": [[{"subnet": "10.1.1.0/24"}, {"subnet": "10.1.1.0/25"}]]}), "ipam.ranges[0] `10.1.1.1-10.1.1.126`: overlaps with 10.1.1.1-10.1.1.254 of the same pool".into()),
        (json!({"ranges": [[{"subnet": "10.1.1.0/24"}], [{"subnet": "10.1.1.0/25"}]]}), "ipam.ranges `10.1.1.1-10.1.1.126`: overlaps with the pool 10.1.1.1-10.1.1.254: one address comes from each pool".into()),
        (json!({"ranges": []}), "ipam.ranges is missing: give host-local a pool, such as [[{\"subnet\": \"10.12.34.0/24\"}]]".into()),
        (json!({"subnet": "10.1.1.0/24", "routes": [{"dst": "::/0"}, {"dst": "10.9.9.9/16"}]}), "ipam.routes[1].dst `10.9.9.9/16`: has host bits: write 10.9.0.0/16".into()),
        (json!({"subnet": "10.1.1.0/24", "routes": [{}]}), "ipam.routes[0].dst is missing: write an address with its prefix length, such as 10.12.34.5/24".into()),
    ] {
        assert_eq!(host_local(keys).expect_err(&expected).to_string(), expected);
    }
}

#[test]
fn ranges_of_one_subnet_may_lie_side_by_side() {
    let keys = json!({"ranges": [[
        {"subnet": "10.1.1.0/24", "rangeEnd": "10.1.1.9"}, {"subnet": "10.1.1.0/24", "rangeStart": "10.1.1.10"},
    ]]});
    let conf = host_local(keys).expect("is valid");
    assert_eq!(texts(&conf.nad_subnets), ["10.1.1.0/24"]);
}

#[test]
fn a_configuration_without_pools_is_parsed_for_gc_and_refused_for_add() {
    let stdin =
        br#"{"cniVersion": "1.1.0", "name": "mv", "type": "macvlan", "ipam": {"type": "host-local"}}"#;
    let conf = NetConf::parse(stdin).expect("is valid as far as it goes");
    assert!(matches!(&conf.ipam, IpamConf::HostLocal(it) if it.ranges.is_empty()));
    assert!(IpamConf::from_conf(&conf, &CniArgs::default()).is_err());
}

#[test]
fn old_versions_have_one_address_per_family() {
    let rule = "CNI 0.2.0 has one address per family: use cniVersion 0.3.0 or later";
    let ipam = |ranges| json!({"cniVersion": "0.2.0", "ipam": {"type": "host-local", "ranges": ranges}});
    let two = json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}]]);
    let error = read_conf(ipam(two), "").expect_err("are two of IPv4");
    assert_eq!(error.to_string(), format!("ipam.ranges `10.2.0.0/24`: {rule}"));
    assert!(read_conf(ipam(json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]])), "").is_ok());

    let two = json!([{"address": "fd00::5/64"}, {"address": "fd00::6/64"}]);
    let error = static_asked(two.clone(), json!({"cniVersion": "0.2.0"}), "").expect_err("are two of IPv6");
    assert_eq!(error.to_string(), format!("ipam.addresses `fd00::6/64`: {rule}"));
    assert!(static_asked(two, json!({"cniVersion": "0.3.0"}), "").is_ok());
}

#[test]
fn static_takes_requests_in_the_order_of_the_standard_plugin() {
    let own = || json!([{"address": "10.4.4.5/24", "gateway": "10.4.4.9"}]);
    let args = "IP=10.4.4.4/24, fd00::4/64;GATEWAY=10.4.4.1";
    let asked = |keys, args| addresses(&static_asked(own(), keys, args).expect("is valid"));
    assert_eq!(asked(json!({}), ""), ["10.4.4.5/24 via 10.4.4.9"]);
    assert_eq!(
        asked(json!({}), args),
        ["10.4.4.5/24 via 10.4.4.1", "10.4.4.4/24 via 10.4.4.1", "fd00::4/64"]
    );
    let cni = json!({"args": {"cni": {"ips": ["10.4.4.6/24"]}}});
    assert_eq!(asked(cni, args), ["10.4.4.6/24"]);
    let both = json!({"args": {"cni": {"ips": ["10.4.4.6/24"]}}, "runtimeConfig": {"ips": ["10.4.4.7/24"]}});
    assert_eq!(asked(both, args), ["10.4.4.7/24"]);
}

#[test]
fn static_counts_an_address_once() {
    let own = json!([{"address": "10.4.4.5/24", "gateway": "10.4.4.9"}]);
    let conf = static_asked(own, json!({}), "IP=10.4.4.5/24").expect("is valid");
    assert_eq!(addresses(&conf), ["10.4.4.5/24 via 10.4.4.9"]);
}

#[test]
fn wrong_addresses_are_refused_with_field_value_and_fix() {
    let fix = "write an address with its prefix length, such as 10.12.34.5/24";
    let prefix = "the IPAM static needs a prefix length: write 10.12.34.5/24";
    for (own, keys, args, expected) in [
        (
            json!([{"address": "10.0.0.1"}]),
            json!({}),
            "",
            format!("ipam.addresses[0].address `10.0.0.1`: {fix}"),
        ),
        (json!([{}]), json!({}), "", format!("ipam.addresses[0].address is missing: {fix}")),
        (
            json!([{"address": "10.0.0.1/8", "gateway": "::1"}]),
            json!({}),
            "",
            "ipam.addresses[0].gateway `::1`: is of another family than 10.0.0.1/8".into(),
        ),
        (json!([]), json!({}), "IP=10.0.0.1", format!("CNI_ARGS IP `10.0.0.1`: {prefix}")),
        (
            json!([]),
            json!({"runtimeConfig": {"ips": ["10.0.0.1"]}}),
            "",
            format!("runtimeConfig.ips `10.0.0.1`: {prefix}"),
        ),
        (
            json!([]),
            json!({"args": {"cni": {"ips": ["10.0.0.1"]}}}),
            "",
            format!("args.cni.ips `10.0.0.1`: {prefix}"),
        ),
    ] {
        assert_eq!(static_asked(own, keys, args).expect_err(&expected).to_string(), expected);
    }
}

#[test]
fn a_zone_is_never_widened_by_a_request() {
    let local = |keys, args| read_conf(keys, args).expect("is valid").local_subnets().map(|it| texts(&it));
    let ips = json!({"ips": ["172.16.0.5/12"], "ipRanges": [[{"subnet": "172.16.0.0/12"}]]});
    let args = "IP=192.168.0.5/16";

    let ipam =
        json!({"type": "static", "addresses": [{"address": "10.4.4.5/24"}, {"address": "10.4.4.6/24"}]});
    assert_eq!(local(json!({"ipam": ipam, "runtimeConfig": ips}), args), Some(vec!["10.4.4.0/24".into()]));
    assert_eq!(local(json!({"ipam": {"type": "static"}, "runtimeConfig": ips}), args), None);

    let ipam = json!({"type": "host-local", "subnet": "10.5.0.0/24"});
    assert_eq!(local(json!({"ipam": ipam, "runtimeConfig": ips}), args), Some(vec!["10.5.0.0/24".into()]));
    assert_eq!(local(json!({"ipam": {"type": "host-local"}, "runtimeConfig": ips}), args), None);
}

#[test]
fn whereabouts_names_its_subnets_and_others_name_none() {
    let local = |ipam| {
        let ipam = read_conf(json!({ "ipam": ipam }), "").expect("is valid");
        assert!(matches!(&ipam, IpamConf::Delegated { .. }), "{ipam:?}");
        ipam.local_subnets().map(|it| texts(&it))
    };
    assert_eq!(local(json!({"type": "dhcp", "range": "10.0.0.0/24"})), None);
    assert_eq!(local(json!({"type": "whereabouts"})), None);
    assert_eq!(local(json!({"type": "whereabouts", "range": "x", "ipRanges": 5})), None);
    let ranges = json!({"type": "whereabouts", "range": "10.0.0.5-10.0.0.9/24",
        "ipRanges": [{"range": "10.0.0.0/24"}, {"range": "fd00::5/64"}, {"range": ""}]});
    assert_eq!(local(ranges), Some(vec!["10.0.0.0/24".into(), "fd00::/64".into()]));
}

/// A range in a small subnet, by its numbers: prefix length, first and last host.
fn small_ranges() -> impl Strategy<Value = (u8, u8, Option<u8>, Option<u8>)> {
    (24u8..=30, any::<u8>(), prop::option::of(any::<u8>()), prop::option::of(any::<u8>()))
}

proptest! {
    #[test]
    fn a_range_that_is_accepted_lies_in_its_subnet((prefix, base, start, end) in small_ranges()) {
        let hosts = 0xffu8 >> (prefix - 24);
        let base = base & !hosts;
        let host = |host: Option<u8>| host.map(|it| format!("10.0.0.{it}"));
        let range = json!({"subnet": format!("10.0.0.{base}/{prefix}"), "rangeStart": host(start), "rangeEnd": host(end)});
        let last = base | hosts;
        let inside = |host: &Option<u8>| host.is_none_or(|it| (base..=last).contains(&it));
        let (first_host, last_host) = (start.unwrap_or(base + 1), end.unwrap_or(last - 1));
        let valid = inside(&start) && inside(&end) && first_host <= last_host;
        match host_local(json!({"ranges": [[range]]})) {
            Ok(conf) => {
                prop_assert!(valid);
                let range = conf.ranges[0].0[0];
                prop_assert_eq!(range.start.to_string(), format!("10.0.0.{first_host}"));
                prop_assert_eq!(range.end.to_string(), format!("10.0.0.{last_host}"));
                for host in 0..=255u8 {
                    let ip = IpAddr::from([10, 0, 0, host]);
                    prop_assert_eq!(range.contains(ip), (first_host..=last_host).contains(&host));
                }
            }
            Err(error) => prop_assert!(!valid, "{}", error),
        }
    }

    #[test]
    fn ranges_overlap_exactly_if_they_share_an_address(a in any::<[u8; 2]>(), b in any::<[u8; 2]>()) {
        let range = |[x, y]: [u8; 2]| Range {
            subnet: "10.0.0.0/24".parse().expect("is valid"),
            start: IpAddr::from([10, 0, 0, x.min(y)]),
            end: IpAddr::from([10, 0, 0, x.max(y)]),
            gateway: IpAddr::from([10, 0, 0, 1]),
        };
        let (a, b) = (range(a), range(b));
        let shared = (0..=255).any(|host| {
            let ip = IpAddr::from([10, 0, 0, host]);
            a.contains(ip) && b.contains(ip)
        });
        prop_assert_eq!(a.overlaps(&b), shared);
        prop_assert_eq!(b.overlaps(&a), shared);
    }
}
