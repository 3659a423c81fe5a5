//! ADD of a macvlan, stage by stage, and what happens when a stage fails.

use std::time::{Duration, Instant};

use netpath::exec::{self, UndoStack};
use netpath::plan::{self, Guard, Setting, Step};
use netpath::spec::{Acd, MacvlanConf, MacvlanMode, Route};

use crate::common::{NetNs, chain, veth};
use crate::{Site, add, bridge, ip, mac, master, net1, route, talk};

fn json(text: &str) -> serde_json::Value {
    let list: serde_json::Value = serde_json::from_str(text).expect("`ip -j` prints JSON");
    list.as_array().and_then(|list| list.first().cloned()).unwrap_or_default()
}

#[test]
fn an_add_does_all_that_was_asked_for() {
    let site = Site::new();
    site.outside.ip("addr add 10.1.1.254/24 dev wire");
    let conf = MacvlanConf {
        mtu: Some(1400),
        mac: Some(mac("02:00:5e:00:00:11")),
        bc_queue_len: Some(777),
        ..bridge()
    };
    let ips = [ip("10.1.1.11/24", Some("10.1.1.254")), ip("fd00:1::11/64", Some("fd00:1::1"))];
    let extra = Route { mtu: Some(1300), priority: Some(50), ..route("10.77.0.0/16") };
    let routes = [extra, route("fd77::/48"), Route { table: Some(1000), ..route("10.78.0.0/16") }];

    add(&site, &site.pod, &conf, &ips, &routes).expect("ADD");

    let link = json(&site.pod.ip("-d -j link show net1"));
    assert_eq!(link["address"], "02:00:5e:00:00:11");
    assert_eq!(link["mtu"], 1400);
    assert_eq!(link["linkinfo"]["info_kind"], "macvlan");
    assert_eq!(link["linkinfo"]["info_data"]["mode"], "bridge");
    assert_eq!(link["linkinfo"]["info_data"]["bcqueuelen"], 777);
    assert!(link["flags"].to_string().contains("\"UP\""), "{link}");
    let addresses = site.pod.ip("addr show net1");
    assert!(addresses.contains("inet 10.1.1.11/24 brd 10.1.1.255 scope global net1"), "{addresses}");
    assert!(addresses.contains("inet6 fd00:1::11/64 scope global"), "{addresses}");
    assert!(!addresses.contains("tentative"), "DAD was waited for: {addresses}");
    let routes = site.pod.ip("route show");
    assert!(routes.contains("10.77.0.0/16 via 10.1.1.254 dev net1 metric 50 mtu 1300"), "{routes}");
    let routes = site.pod.ip("route show table 1000");
    assert!(routes.contains("10.78.0.0/16 via 10.1.1.254 dev net1"), "{routes}");
    let routes = site.pod.ip("-6 route show");
    assert!(routes.contains("fd77::/48 via fd00:1::1 dev net1 metric 1024"), "{routes}");
    talk(&site.outside, &site.pod, "10.1.1.11:80");
}

#[test]
fn settings_are_in_force_before_the_link_is_up() {
    let site = Site::new();
    site.pod.set_sysctl("net/ipv6/conf/default/disable_ipv6", "1");
    site.pod.set_sysctl("net/ipv6/conf/default/addr_gen_mode", "1");
    let mut fx = site.effects(&site.pod);
    let mut undo = UndoStack::default();
    let steps = plan::create(&bridge(), &net1(), &site.master()).expect("a plan");
    exec::run(&mut fx, &steps, &mut undo).expect("created");
    let steps =
        plan::prepare(&net1(), 1500, &[ip("fd00::1/64", None)], Guard::Policed, Acd::Off).expect("a plan");
    exec::run(&mut fx, &steps, &mut undo).expect("prepared");

    assert!(!site.pod.ip("link show net1").contains(",UP"));
    let value = |setting: Setting| site.pod.sysctl(&setting.key("net1"));
    assert_eq!(value(Setting::DropUnicastInMulticastV4), "1");
    assert_eq!(value(Setting::DropUnicastInMulticastV6), "1");
    assert_eq!(value(Setting::AddrGenMode), "0");
    assert_eq!(value(Setting::AcceptRa), "0");
    assert_eq!(value(Setting::Autoconf), "0");
    assert_eq!(value(Setting::ArpNotify), "1");
    assert_eq!(value(Setting::NdiscNotify), "1");
    assert_eq!(value(Setting::DisableIpv6), "0");
    assert_eq!(value(Setting::KeepAddrOnDown), "1");
}

#[test]
fn a_link_that_is_not_policed_keeps_its_settings() {
    let site = Site::new();
    site.pod.set_sysctl("net/ipv6/conf/default/accept_ra", "2");
    let mut fx = site.effects(&site.pod);
    let mut steps = plan::create(&bridge(), &net1(), &site.master()).expect("a plan");
    steps.extend(plan::prepare(&net1(), 1500, &[], Guard::None, Acd::Off).expect("a plan"));
    exec::run_or_undo(&mut fx, &steps).expect("done");
    assert_eq!(site.pod.sysctl("net/ipv4/conf/net1/drop_unicast_in_l2_multicast"), "0");
    assert_eq!(site.pod.sysctl("net/ipv6/conf/net1/accept_ra"), "2");
    assert_eq!(site.pod.sysctl("net/ipv4/conf/net1/arp_notify"), "1");
}

#[test]
fn every_mode_is_what_it_is_called() {
    for mode in [MacvlanMode::Bridge, MacvlanMode::Private, MacvlanMode::Vepa, MacvlanMode::Passthru] {
        let site = Site::new();
        add(&site, &site.pod, &MacvlanConf { mode, ..bridge() }, &[], &[]).expect("ADD");
        let link = json(&site.pod.ip("-d -j link show net1"));
        assert_eq!(link["linkinfo"]["info_data"]["mode"], mode.as_str());
        let read = site.effects(&site.pod).link("net1").expect("the link");
        assert_eq!(read.macvlan_mode.map(|mode| mode.to_string()).as_deref(), Some(mode.as_str()));
        let same = read.mac == site.netlink().link_by_name("eno1").expect("the master").mac;
        assert_eq!(same, mode == MacvlanMode::Passthru, "passthru has its master's address");
    }
}

#[test]
fn a_second_passthru_is_refused_with_a_hint() {
    let site = Site::new();
    let passthru = MacvlanConf { mode: MacvlanMode::Passthru, ..bridge() };
    add(&site, &site.pod, &passthru, &[], &[]).expect("the first");
    let other = NetNs::new("pod2");
    let error = add(&site, &other, &passthru, &[], &[]).expect_err("the second");
    assert_eq!(error.failed.errno(), Some(libc::EINVAL));
    assert!(error.to_string().contains("is there a passthru macvlan on the master"), "{error}");
}

#[test]
fn a_master_that_is_a_bridge_port_is_refused_with_a_hint() {
    let site = Site::new();
    site.node.ip("link add br0 type bridge");
    site.node.ip("link set eno1 master br0");
    let error = add(&site, &site.pod, &bridge(), &[], &[]).expect_err("busy");
    assert!(error.to_string().contains("the master is a port of a bridge"), "{error}");
    let port = site.netlink().link_by_name("eno1").expect("the master");
    let bridge = site.netlink().link_by_name("br0").expect("the bridge");
    assert_eq!(port.controller, Some(bridge.index));
}

#[test]
fn a_second_add_fails_and_changes_nothing() {
    let site = Site::new();
    add(&site, &site.pod, &bridge(), &[ip("10.1.1.11/24", None)], &[]).expect("the first");
    // The kernel finds out in its own time whether a carrier and an address are what they seem.
    let look = || {
        let mut links: serde_json::Value =
            serde_json::from_str(&site.pod.ip("-d -j addr show")).expect("JSON");
        for link in links.as_array_mut().expect("a list") {
            link.as_object_mut().expect("a link").remove("operstate");
            for address in link["addr_info"].as_array_mut().into_iter().flatten() {
                address.as_object_mut().expect("an address").remove("tentative");
            }
        }
        links
    };
    let before = look();
    let error = add(&site, &site.pod, &bridge(), &[ip("10.1.1.12/24", None)], &[]).expect_err("taken");
    assert_eq!(
        chain(&error),
        "cannot create macvlan `net1` on master `eno1`: interface name `net1` is taken"
    );
    assert_eq!(look(), before);
    assert!(error.undo.is_empty());
}

#[test]
fn a_link_of_the_node_with_the_same_name_is_no_obstacle() {
    let site = Site::new();
    site.node.ip("link add net1 type bridge");
    add(&site, &site.pod, &bridge(), &[ip("10.1.1.11/24", None)], &[]).expect("ADD");
    assert!(site.pod.ip("-d link show net1").contains("macvlan"));
    assert!(site.node.ip("-d link show net1").contains("bridge"));
}

#[test]
fn a_failure_undoes_everything_and_says_why() {
    let site = Site::new();
    let before = site.pod.ip("-j addr show");
    let ips = [ip("10.1.1.11/24", Some("10.9.9.9"))];
    let error = add(&site, &site.pod, &bridge(), &ips, &[route("0.0.0.0/0")]).expect_err("no way there");
    let text = chain(&error);
    assert!(
        text.starts_with("cannot add route 0.0.0.0/0 via 10.9.9.9 to `net1` (no address of the"),
        "{text}"
    );
    assert!(text.contains("Nexthop has invalid gateway"), "the kernel's own words: {text}");
    assert!(error.undo.is_empty(), "{error}");
    assert_eq!(site.pod.ip("-j addr show"), before);
}

#[test]
fn what_cannot_be_undone_is_reported_beside_the_failure() {
    let site = Site::new();
    let conf = MacvlanConf { mac: Some(mac("02:00:5e:00:00:11")), ..bridge() };
    let mut fx = add(&site, &site.pod, &conf, &[], &[]).expect("ADD");
    let mut undo = UndoStack::default();
    let down = Step::SetDown { ifname: "net1".to_owned() };
    exec::run(&mut fx, &[down], &mut undo).expect("down");
    // Somebody takes the address meanwhile.
    site.node.ip("link add rival link eno1 address 02:00:5e:00:00:11 type macvlan mode bridge");
    site.node.ip("link set rival up");
    let address = Step::AddAddress { ifname: "absent".to_owned(), address: "10.0.0.1/8".parse().unwrap() };
    let failed = exec::run(&mut fx, &[address], &mut undo).expect_err("no such link");
    let error = exec::abort(&mut fx, undo, failed);
    assert_eq!(error.undo.len(), 1);
    let text = chain(&error);
    assert!(
        text.starts_with("cannot add address 10.0.0.1/8 to `absent`; nor undo it: cannot set `net1` up"),
        "{text}"
    );
    assert!(text.contains("its MAC is in use"), "{text}");
    assert!(text.ends_with("there is no link `absent`"), "{text}");
}

#[test]
fn what_is_gone_counts_as_undone() {
    let site = Site::new();
    let mut fx = site.effects(&site.pod);
    let mut undo = UndoStack::default();
    let steps = plan::create(&bridge(), &net1(), &site.master()).expect("a plan");
    exec::run(&mut fx, &steps, &mut undo).expect("created");
    fx.link("net1").expect("its index is known");
    site.pod.ip("link del net1");
    let failed = exec::unwind(&mut fx, undo);
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn settings_of_a_link_that_stays_are_restored() {
    let site = Site::new();
    site.pod.ip("link add here type bridge");
    site.pod.set_sysctl("net/ipv6/conf/here/accept_ra", "2");
    let mut fx = site.effects(&site.pod);
    let set = |setting, value: &str| Step::SetSysctl {
        ifname: "here".to_owned(),
        setting,
        value: value.to_owned(),
    };
    let steps = [set(Setting::AcceptRa, "0"), set(Setting::ArpNotify, "1"), set(Setting::Autoconf, "x")];
    let error = exec::run_or_undo(&mut fx, &steps).expect_err("`x` is no number");
    assert_eq!(
        chain(&error),
        "cannot set sysctl `net/ipv6/conf/here/autoconf` to x: Invalid argument (os error 22)"
    );
    assert_eq!(site.pod.sysctl("net/ipv6/conf/here/accept_ra"), "2");
    assert_eq!(site.pod.sysctl("net/ipv4/conf/here/arp_notify"), "0");
}

#[test]
fn a_link_without_ipv6_is_guarded_as_far_as_there_is_something_to_guard() {
    let site = Site::new();
    let conf = MacvlanConf { mtu: Some(1000), ..bridge() };
    add(&site, &site.pod, &conf, &[ip("10.1.1.11/24", None)], &[]).expect("ADD");
    assert_eq!(site.pod.sysctl("net/ipv4/conf/net1/drop_unicast_in_l2_multicast"), "1");
}

#[test]
fn a_master_in_the_sandbox() {
    let site = Site::new();
    veth(&site.pod, "inner", &site.outside, "inner-peer");
    let mut fx = site.effects(&site.pod);
    let inner = master(fx.sandbox(), "inner");
    let conf = MacvlanConf { link_in_container: true, ..bridge() };
    let mut steps = plan::create(&conf, &net1(), &inner).expect("a plan");
    steps.extend(plan::activate(&net1(), &[], &[], &[], Acd::Off).expect("a plan"));
    exec::run_or_undo(&mut fx, &steps).expect("done");
    let link = json(&site.pod.ip("-d -j link show net1"));
    assert_eq!(link["link"], "inner");
    let read = fx.link("net1").expect("the link");
    assert_eq!((read.link, read.link_netnsid), (Some(inner.index), None));
    let error = exec::run_or_undo(&mut fx, &steps).expect_err("it exists");
    assert!(chain(&error).ends_with("interface name `net1` is taken"), "{}", chain(&error));
}

#[test]
fn a_default_route_leaves_the_pod_s_own_in_force() {
    let site = Site::new();
    veth(&site.pod, "eth0", &site.outside, "cluster");
    for setting in ["all", "default", "eth0"] {
        site.pod.set_sysctl(&format!("net/ipv6/conf/{setting}/accept_dad"), "0");
    }
    site.pod.ip("addr add 10.244.0.5/24 dev eth0");
    site.pod.ip("addr add fd24::5/64 dev eth0 nodad");
    site.pod.ip("route add default via 10.244.0.1");
    site.pod.ip("-6 route add default via fd24::1");
    let ips = [ip("10.1.1.11/24", Some("10.1.1.254")), ip("fd00:1::11/64", Some("fd00:1::1"))];
    add(&site, &site.pod, &bridge(), &ips, &[route("0.0.0.0/0"), route("::/0")]).expect("ADD");

    let used = site.pod.ip("route get 8.8.8.8");
    assert!(used.contains("dev eth0"), "{used}");
    let listed = site.pod.ip("-6 route show default");
    assert!(listed.contains("default via fd24::1 dev eth0 metric 1024"), "{listed}");
    assert!(listed.contains("default via fd00:1::1 dev net1 metric 1025"), "{listed}");
    assert!(!listed.contains("nexthop"), "half of the traffic would go each way: {listed}");
    // It is a spare, not a lost wish.
    site.pod.ip("link set eth0 down");
    let used = site.pod.ip("route get 8.8.8.8");
    assert!(used.contains("via 10.1.1.254 dev net1"), "{used}");
}

#[test]
fn a_default_route_is_in_force_where_there_is_no_other() {
    let site = Site::new();
    let ips = [ip("10.1.1.11/24", Some("10.1.1.254"))];
    add(&site, &site.pod, &bridge(), &ips, &[route("0.0.0.0/0")]).expect("ADD");
    let routes = site.pod.ip("route show default");
    assert_eq!(routes.trim(), "default via 10.1.1.254 dev net1");
}

#[test]
fn an_address_another_host_has_fails_the_add() {
    let site = Site::new();
    let ips = [ip("fd00:1::11/64", Some("fd00:1::1"))];
    add(&site, &site.pod, &bridge(), &ips, &[]).expect("the first");
    let other = NetNs::new("pod2");
    let error = add(&site, &other, &bridge(), &ips, &[]).expect_err("the second");
    assert!(
        chain(&error).ends_with("address fd00:1::11 on `net1` is in use by another host"),
        "{}",
        chain(&error)
    );
    assert!(!other.ip("link show").contains("net1"), "undone");
}

#[test]
fn without_a_carrier_nobody_waits_for_dad() {
    let site = Site::new();
    site.outside.ip("link set wire down");
    let start = Instant::now();
    let mut fx =
        add(&site, &site.pod, &bridge(), &[ip("fd00:1::11/64", Some("fd00:1::1"))], &[]).expect("ADD");
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    assert!(!fx.link("net1").expect("the link").has_carrier());
}

#[test]
fn many_adds_at_once() {
    let site = Site::new();
    let pods: Vec<_> = (0..8).map(|_| NetNs::new("pod")).collect();
    let site = &site;
    std::thread::scope(|scope| {
        for (number, pod) in pods.iter().enumerate() {
            let ips = [ip(&format!("10.1.1.{}/24", 10 + number), None)];
            scope.spawn(move || add(site, pod, &bridge(), &ips, &[]).expect("ADD"));
        }
    });
    let mut node = site.netlink();
    assert_eq!(node.unicast_list(site.master().index).expect("a list").len(), 8);
    talk(&pods[0], &pods[7], "10.1.1.17:80");
}
