use super::*;
use crate::plan::unwind;
use crate::spec::{Acd, MacvlanMode};

fn net1() -> IfName {
    IfName::parse("CNI_IFNAME", "net1").unwrap()
}

fn conf() -> MacvlanConf {
    MacvlanConf {
        master: None,
        mode: MacvlanMode::Bridge,
        mtu: None,
        mac: None,
        link_in_container: false,
        bc_queue_len: None,
    }
}

fn eno1() -> Master {
    Master { name: "eno1".to_owned(), index: 2, mtu: 1500 }
}

fn ip(address: &str, gateway: Option<&str>) -> IpConfig {
    IpConfig {
        address: address.parse().unwrap(),
        gateway: gateway.map(|gateway| gateway.parse().unwrap()),
        interface: None,
    }
}

fn route(dst: &str) -> Route {
    let dst = dst.parse().unwrap();
    Route { dst, gw: None, mtu: None, advmss: None, priority: None, table: None, scope: None }
}

fn existing(dst: &str, priority: Option<u32>, table: Option<u32>) -> RouteVia {
    let (dst, gateway) = (dst.parse().unwrap(), None);
    RouteVia { dst, gateway, priority, table, scope: None, mtu: None, advmss: None, protocol: None }
}

/// Compares steps with their text, one a line.
#[track_caller]
fn check(steps: &[Step], expected: &[&str]) {
    let steps: Vec<_> = steps.iter().map(ToString::to_string).collect();
    assert_eq!(steps, expected);
}

#[test]
fn creation() {
    let steps = create(&conf(), &net1(), &eno1()).unwrap();
    check(&steps, &["create macvlan `net1` on master `eno1`"]);
    let Step::CreateMacvlan(macvlan) = &steps[0] else { panic!("{steps:?}") };
    assert_eq!((macvlan.place, macvlan.mtu), (Place::Node, None));
    let inside = MacvlanConf { link_in_container: true, mtu: Some(0), ..conf() };
    let steps = create(&inside, &net1(), &eno1()).unwrap();
    let Step::CreateMacvlan(macvlan) = &steps[0] else { panic!("{steps:?}") };
    assert_eq!((macvlan.place, macvlan.mtu), (Place::Sandbox, None), "0 is the default");
}

#[test]
fn an_mtu_above_the_master_s_is_refused() {
    let with = |mtu| create(&MacvlanConf { mtu: Some(mtu), ..conf() }, &net1(), &eno1());
    assert!(with(1500).is_ok());
    assert_eq!(
        with(1501).unwrap_err().to_string(),
        "`mtu`: 1501: master `eno1` has only 1500; lower `mtu`, leave it out, or raise the master's"
    );
}

#[test]
fn preparation_of_a_policed_link() {
    let ips = [ip("10.1.1.5/24", None), ip("fd00::5/64", None)];
    check(
        &prepare(&net1(), 1500, &ips, Guard::Policed, Acd::Off).unwrap(),
        &[
            "set sysctl `net/ipv4/conf/net1/drop_unicast_in_l2_multicast` to 1",
            "set sysctl `net/ipv6/conf/net1/drop_unicast_in_l2_multicast` to 1",
            "set sysctl `net/ipv6/conf/net1/addr_gen_mode` to 0",
            "set sysctl `net/ipv6/conf/net1/accept_ra` to 0",
            "set sysctl `net/ipv6/conf/net1/autoconf` to 0",
            "set sysctl `net/ipv4/conf/net1/arp_notify` to 1",
            "set sysctl `net/ipv6/conf/net1/ndisc_notify` to 1",
            "set sysctl `net/ipv6/conf/lo/disable_ipv6` to 0",
            "set sysctl `net/ipv6/conf/net1/disable_ipv6` to 0",
            "set sysctl `net/ipv6/conf/net1/keep_addr_on_down` to 1",
            "add address 10.1.1.5/24 to `net1`",
            "add address fd00::5/64 to `net1`",
        ],
    );
}

#[test]
fn preparation_with_autoconf_or_without_police() {
    check(
        &prepare(&net1(), 1500, &[], Guard::PolicedAutoconf, Acd::Off).unwrap(),
        &[
            "set sysctl `net/ipv4/conf/net1/drop_unicast_in_l2_multicast` to 1",
            "set sysctl `net/ipv6/conf/net1/drop_unicast_in_l2_multicast` to 1",
            "set sysctl `net/ipv6/conf/net1/addr_gen_mode` to 0",
            "set sysctl `net/ipv4/conf/net1/arp_notify` to 1",
            "set sysctl `net/ipv6/conf/net1/ndisc_notify` to 1",
        ],
    );
    check(
        &prepare(&net1(), 1500, &[], Guard::None, Acd::Off).unwrap(),
        &[
            "set sysctl `net/ipv4/conf/net1/arp_notify` to 1",
            "set sysctl `net/ipv6/conf/net1/ndisc_notify` to 1",
        ],
    );
}

#[test]
fn an_ipv6_address_needs_an_mtu_that_carries_it() {
    let ips = [ip("fd00::5/64", None)];
    assert!(prepare(&net1(), 1280, &ips, Guard::None, Acd::Off).is_ok());
    assert_eq!(
        prepare(&net1(), 1279, &ips, Guard::None, Acd::Off).unwrap_err().to_string(),
        "fd00::5 needs IPv6, which a link with an MTU of 1279 has not; raise `mtu` to 1280 or more"
    );
}

#[test]
fn activation_waits_for_dad_only_where_ipv6_is_routed() {
    let ips = [ip("10.1.1.5/24", Some("10.1.1.1")), ip("fd00::5/64", None)];
    let full = Route {
        gw: "10.1.1.9".parse().ok(),
        mtu: Some(1300),
        advmss: Some(1200),
        priority: Some(7),
        table: Some(9),
        scope: Some(0),
        ..route("10.9.0.0/16")
    };
    check(
        &activate(&net1(), &ips, &[route("0.0.0.0/0"), full, route("fd09::/48")], &[], Acd::Off).unwrap(),
        &[
            "set `net1` up",
            "add route 0.0.0.0/0 via 10.1.1.1 to `net1`",
            "add route 10.9.0.0/16 via 10.1.1.9 metric 7 table 9 scope 0 mtu 1300 advmss 1200 to `net1`",
            "add route fd09::/48 to `net1`",
        ],
    );
    let ips = [ip("fd00::5/64", None), ip("fd00::6/64", Some("fd00::1")), ip("fd00::7/64", Some("fd00::2"))];
    check(
        &activate(&net1(), &ips, &[route("fd09::/48")], &[], Acd::Off).unwrap(),
        &[
            "set `net1` up",
            "use the IPv6 addresses of `net1` within 5 s",
            "add route fd09::/48 via fd00::1 to `net1`",
        ],
    );
}

#[test]
fn addresses_that_are_probed_for_come_when_the_link_is_up() {
    let ips =
        [ip("10.1.1.5/24", Some("10.1.1.1")), ip("fd00::5/64", Some("fd00::1")), ip("10.1.2.6/24", None)];
    let prepared = prepare(&net1(), 1500, &ips, Guard::None, Acd::On).unwrap();
    let is_address = |step: &&Step| matches!(step, Step::AddAddress { .. });
    check(
        &prepared.iter().filter(is_address).cloned().collect::<Vec<_>>(),
        &["add address fd00::5/64 to `net1`"],
    );
    check(
        &activate(&net1(), &ips, &[route("10.9.0.0/16")], &[], Acd::On).unwrap(),
        &[
            "set `net1` up",
            "use 10.1.1.5, 10.1.2.6 on `net1`, for which ARP probes are sent within 200 ms",
            "add address 10.1.1.5/24 to `net1`",
            "add address 10.1.2.6/24 to `net1`",
            "announce 10.1.1.5, 10.1.2.6 on `net1`",
            "use the IPv6 addresses of `net1` within 5 s",
            "add route 10.9.0.0/16 via 10.1.1.1 to `net1`",
        ],
    );
    let v6 = [ip("fd00::5/64", None)];
    check(&activate(&net1(), &v6, &[], &[], Acd::On).unwrap(), &["set `net1` up"]);
}

#[test]
fn a_gateway_of_the_other_family_is_refused() {
    let wrong = Route { gw: "fd00::1".parse().ok(), ..route("10.9.0.0/16") };
    assert_eq!(
        routes(&[], &[wrong], &[]).unwrap_err().to_string(),
        "route 10.9.0.0/16: fd00::1 is of the other address family; give a gateway of the destination's"
    );
}

#[test]
fn a_route_goes_behind_those_there_are() {
    let metric = |wanted: Route, existing: &[RouteVia]| routes(&[], &[wanted], existing).unwrap()[0].priority;
    let default = || route("0.0.0.0/0");
    assert_eq!(metric(default(), &[]), None);
    assert_eq!(metric(default(), &[existing("0.0.0.0/0", None, None)]), Some(1));
    assert_eq!(metric(default(), &[existing("0.0.0.0/0", Some(100), Some(254))]), Some(101));
    let two = [existing("0.0.0.0/0", None, None), existing("0.0.0.0/0", Some(600), None)];
    assert_eq!(metric(default(), &two), Some(601));
    assert_eq!(metric(default(), &[existing("0.0.0.0/0", None, Some(9))]), None, "another table");
    assert_eq!(metric(default(), &[existing("10.0.0.0/8", None, None)]), None, "another destination");
    assert_eq!(metric(route("::/0"), &[existing("0.0.0.0/0", None, None)]), None, "another family");
    assert_eq!(metric(route("::/0"), &[existing("::/0", None, None)]), Some(1025));
    assert_eq!(metric(route("::/0"), &[existing("::/0", Some(20), None)]), Some(1024), "never in front");
    let asked = Route { priority: Some(0), ..default() };
    assert_eq!(metric(asked, &[existing("0.0.0.0/0", None, None)]), Some(0), "whoever asks gets it");
    let full = [existing("0.0.0.0/0", Some(u32::MAX), None)];
    assert_eq!(metric(default(), &full), Some(u32::MAX));
}

#[test]
fn routes_are_not_repeated() {
    let twice = [route("10.9.0.0/16"), route("10.9.0.0/16"), route("10.8.0.0/16")];
    assert_eq!(routes(&[], &twice, &[]).unwrap().len(), 2);
}

#[test]
fn undo_is_in_reverse_and_a_link_takes_its_own_with_it() {
    let ips = [ip("10.1.1.5/24", None)];
    let mut steps = prepare(&net1(), 1500, &ips, Guard::None, Acd::Off).unwrap();
    steps.extend(activate(&net1(), &ips, &[route("10.9.0.0/16")], &[], Acd::Off).unwrap());
    let undos = |steps: &[Step]| unwind(steps.iter().filter_map(Step::undo).collect());
    check(
        &undos(&steps),
        &[
            "remove route 10.9.0.0/16 from `net1`",
            "set `net1` down",
            "remove address 10.1.1.5/24 from `net1`",
        ],
    );
    steps.splice(0..0, create(&conf(), &net1(), &eno1()).unwrap());
    steps.push(Step::SetUp { ifname: "other".to_owned() });
    check(&undos(&steps), &["set `other` down", "delete link `net1`"]);
}
