//! The netlink facade against `ip`.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use netpath::exec::{self, Effects};
use netpath::kernel::netlink::{MacVlanMode, Macvlan, Netlink, NetlinkError, Route};
use netpath::kernel::netns::Netns;
use netpath::plan::{self, Step};
use netpath::spec::{MacvlanConf, MacvlanMode};

use crate::common::{PATIENCE, eventually, veth};
use crate::{Site, add, bridge, mac, net1};

#[test]
fn a_link_is_renamed() {
    let site = Site::new();
    let mut sandbox = Netlink::in_netns(&Netns::open(&site.pod.path()).expect("open")).expect("a socket");
    site.pod.ip("link add one type bridge");
    site.pod.ip("link add two type bridge");
    sandbox.rename("one", "three").expect("renamed");
    site.pod.ip("link show three");
    let error = sandbox.rename("two", "three").expect_err("taken");
    assert_eq!(error.errno(), Some(libc::EEXIST), "{error}");
}

#[test]
fn the_master_of_a_pod_s_macvlan_is_told_from_a_link_of_the_same_number() {
    let site = Site::new();
    let mut fx = add(&site, &site.pod, &bridge(), &[], &[]).expect("ADD");
    let link = fx.link("net1").expect("the link");
    let node = Netns::open(&site.node.path()).expect("open");
    let outside = Netns::open(&site.outside.path()).expect("open");
    assert_eq!(link.link, Some(site.master().index));
    assert!(link.link_netnsid.is_some());
    assert_eq!(fx.sandbox().namespace_id(&node).expect("an id"), link.link_netnsid);
    assert_ne!(fx.sandbox().namespace_id(&outside).expect("an answer"), link.link_netnsid);
}

#[test]
fn dad_that_does_not_end_is_an_error_after_the_deadline() {
    let site = Site::new();
    add(&site, &site.pod, &bridge(), &[], &[]).expect("ADD");
    // The first probe waits for a random part of a second, and this address for many of them.
    site.pod.set_sysctl("net/ipv6/conf/net1/dad_transmits", "1000");
    site.pod.ip("addr add fd00::1/64 dev net1");
    let netns = Netns::open(&site.pod.path()).expect("open");
    let mut sandbox = Netlink::in_netns(&netns).expect("a socket");
    let index = sandbox.link_by_name("net1").expect("the link").index;
    let start = Instant::now();
    let error = sandbox.wait_dad(&netns, index, Duration::from_secs(1)).expect_err("tentative");
    assert!(matches!(error, NetlinkError::Tentative { .. }), "{error}");
    assert!(Duration::from_secs(1) <= start.elapsed(), "{:?}", start.elapsed());
}

#[test]
fn the_default_route_names_a_master() {
    let site = Site::new();
    let mut node = site.netlink();
    assert_eq!(node.default_route_link().expect("an answer"), None);

    veth(&site.node, "v6", &site.outside, "v6-peer");
    site.node.ip("-6 route add default dev v6");
    let name = |node: &mut Netlink| {
        let index = node.default_route_link().expect("an answer").expect("a route");
        node.link_by_index(index).expect("a link").name
    };
    assert_eq!(name(&mut node), "v6");

    veth(&site.node, "worse", &site.outside, "worse-peer");
    site.node.ip("addr add 10.5.0.2/24 dev worse");
    site.node.ip("route add default via 10.5.0.1 metric 500");
    assert_eq!(name(&mut node), "worse", "IPv4 comes first");

    site.node.ip("route add default dev eno1 metric 100 table 77");
    assert_eq!(name(&mut node), "worse", "other tables do not count");

    site.node.ip("addr add 10.6.0.2/24 dev eno1");
    site.node.ip("route add default metric 10 nexthop via 10.6.0.1 dev eno1 nexthop via 10.5.0.1 dev worse");
    assert_eq!(name(&mut node), "eno1", "the first of several next hops");
}

#[test]
fn routes_are_read_as_they_are() {
    let site = Site::new();
    site.node.ip("addr add 10.6.0.2/24 dev eno1");
    site.node.ip("route add 10.9.0.0/16 via 10.6.0.1 metric 7 mtu 1300 advmss 1200 table 1000");
    site.node.ip("route add 10.8.0.0/16 via 10.7.7.7 dev eno1 onlink");
    site.node.ip("route add blackhole 10.10.0.0/16");
    let mut node = site.netlink();
    let eno1 = node.link_by_name("eno1").expect("the master").index;
    let routes = node.routes(Some(eno1)).expect("routes");
    let find = |dst: &str| {
        let dst = dst.parse().expect("a network");
        routes.iter().find(|route| route.dst == dst).unwrap_or_else(|| panic!("{dst} is not in {routes:?}"))
    };
    let full = find("10.9.0.0/16");
    assert_eq!(full.gateway, Some("10.6.0.1".parse::<IpAddr>().unwrap()));
    assert_eq!((full.priority, full.table, full.mtu, full.advmss), (Some(7), 1000, Some(1300), Some(1200)));
    assert!(find("10.8.0.0/16").onlink);
    assert!(!full.onlink);
    assert_eq!(find("10.6.0.0/24").gateway, None);
    assert_eq!(find("10.6.0.0/24").protocol, libc::RTPROT_KERNEL);
    assert!(!node.routes(None).expect("routes").iter().any(|route| route.dst.to_string() == "10.10.0.0/16"));

    let onlink =
        Route { onlink: true, ..Route::new("10.11.0.0/16".parse().unwrap(), "10.7.7.8".parse().ok(), eno1) };
    node.add_route(&onlink).expect("added");
    let shown = site.node.ip("route show 10.11.0.0/16");
    assert!(shown.contains("via 10.7.7.8 dev eno1 onlink"), "{shown}");
    node.delete_route(&onlink).expect("removed");
    assert_eq!(site.node.ip("route show 10.11.0.0/16"), "");
    let error = node.delete_route(&onlink).expect_err("gone");
    assert!(error.is_absent(), "{error}");

    let via_v6 = Route::new("10.12.0.0/16".parse().unwrap(), "fe80::1".parse().ok(), eno1);
    node.add_route(&via_v6).expect("added");
    assert!(node.routes(Some(eno1)).expect("routes").contains(&Route { priority: None, scope: 0, ..via_v6 }));
}

#[test]
fn addresses_are_added_listed_and_removed() {
    let site = Site::new();
    let mut node = site.netlink();
    let eno1 = node.link_by_name("eno1").expect("the master").index;
    let (v4, v6) = ("10.1.1.5/24".parse().unwrap(), "fd00::5/64".parse().unwrap());
    node.add_address(eno1, v4).expect("added");
    node.add_address(eno1, v6).expect("added");
    site.node.ip("addr add 10.3.3.3 peer 10.3.3.4/32 dev eno1");
    assert!(site.node.ip("addr show eno1").contains("inet 10.1.1.5/24 brd 10.1.1.255"));
    let all = node.addresses(None).expect("addresses");
    let has = |text: &str| all.iter().any(|address| address.address.to_string() == text);
    assert!(has("127.0.0.1/8") && has("10.1.1.5/24") && has("fd00::5/64"), "{all:?}");
    assert!(has("10.3.3.3/32"), "ours, not the other end's: {all:?}");
    let some = node.addresses(Some(eno1)).expect("addresses");
    assert!(some.iter().all(|address| address.index == eno1), "{some:?}");
    assert_eq!(node.add_address(eno1, v4).expect_err("twice").errno(), Some(libc::EEXIST));
    node.delete_address(eno1, v4).expect("removed");
    assert!(!site.node.ip("addr show eno1").contains("10.1.1.5"));
    assert!(node.delete_address(eno1, v4).expect_err("gone").is_absent());
}

#[test]
fn the_unicast_list_shows_macvlans_of_every_namespace() {
    let site = Site::new();
    let mut fx = site.effects(&site.pod);
    let conf = MacvlanConf { mac: Some(mac("02:00:5e:00:00:11")), ..bridge() };
    let master = site.master();
    let steps = plan::create(&conf, &net1(), &master).expect("a plan");
    exec::run_or_undo(&mut fx, &steps).expect("created");
    let list = |fx: &mut Effects| fx.node().unicast_list(master.index).expect("a list");
    assert_eq!(list(&mut fx), [], "a macvlan that is down is not there");
    exec::run_or_undo(&mut fx, &[Step::SetUp { ifname: "net1".to_owned() }]).expect("up");
    assert_eq!(list(&mut fx), [mac("02:00:5e:00:00:11")]);
    // Of another link nothing is shown.
    veth(&site.node, "eno2", &site.outside, "wire2");
    let eno2 = fx.node().link_by_name("eno2").expect("a link").index;
    assert_eq!(fx.node().unicast_list(eno2).expect("a list"), []);
}

#[test]
fn promiscuous_mode_is_a_flag() {
    let site = Site::new();
    let mut node = site.netlink();
    let eno1 = node.link_by_name("eno1").expect("the master");
    assert!(!eno1.is_promisc());
    node.set_promisc(eno1.index, true).expect("on");
    assert!(site.node.ip("link show eno1").contains("PROMISC"));
    let read = node.link_by_index(eno1.index).expect("the master");
    assert!(read.is_promisc() && read.is_up() && 0 < read.promiscuity, "{read:?}");
    node.set_promisc(eno1.index, false).expect("off");
    assert!(!site.node.ip("link show eno1").contains("PROMISC"));
}

#[test]
fn uppers_are_those_of_this_namespace() {
    let site = Site::new();
    add(&site, &site.pod, &bridge(), &[], &[]).expect("ADD");
    // A veth pair within one namespace: each end's "link" is the other.
    site.node.ip("link add pa type veth peer name pb");
    site.node.ip("link add shim link eno1 type macvlan mode bridge");
    let mut node = site.netlink();
    let names = |node: &mut Netlink, name: &str| {
        let index = node.link_by_name(name).expect("a link").index;
        let links = node.links().expect("links").into_iter().filter(|link| link.is_upper_of(index));
        links.map(|link| link.name).collect::<Vec<_>>()
    };
    assert_eq!(names(&mut node, "eno1"), ["shim"]);
    assert_eq!(names(&mut node, "pa"), Vec::<String>::new());
    let shim = node.link_by_name("shim").expect("a link");
    assert_eq!(shim.kind.as_deref(), Some("macvlan"));
    assert_eq!(shim.macvlan_mode, Some(MacVlanMode::Bridge));
}

#[test]
fn links_are_found_by_every_name_they_have() {
    let site = Site::new();
    let long = "a-name-that-is-longer-than-fifteen-bytes";
    site.node.ip(&format!("link property add dev eno1 altname {long}"));
    site.node.ip("link property add dev eno1 altname short");
    let mut node = site.netlink();
    let eno1 = node.link_by_name("eno1").expect("by name");
    assert_eq!(eno1.alt_names, [long, "short"]);
    assert_eq!(node.link_by_name(long).expect("by its long name"), eno1);
    assert_eq!(node.link_by_name("short").expect("by its short name"), eno1);
    assert_eq!(node.find_link("eno9").expect("an answer"), None);
    let error = node.link_by_name("eno9").expect_err("absent");
    assert_eq!(error.to_string(), "there is no link `eno9`");
    assert!(error.is_absent());
}

#[test]
fn a_long_list_is_complete() {
    let site = Site::new();
    let mut node = site.netlink();
    let master = site.master().index;
    for number in 0..150 {
        let macvlan = Macvlan {
            ifname: format!("m{number}"),
            master,
            mode: MacvlanMode::Bridge,
            mac: None,
            mtu: None,
            bc_queue_len: None,
        };
        node.add_macvlan(&macvlan, None).expect("created");
    }
    let count = |node: &mut Netlink| {
        node.links().expect("a list").iter().filter(|link| link.is_upper_of(master)).count()
    };
    assert_eq!(count(&mut node), 150);
    let link = node.link_by_name("m149").expect("the last");
    node.delete_link(link.index).expect("deleted");
    assert_eq!(count(&mut node), 149);
}

#[test]
fn a_link_that_comes_up_is_seen() {
    let site = Site::new();
    let mut node = site.netlink();
    let eno1 = node.link_by_name("eno1").expect("the master").index;
    site.outside.ip("link set wire down");
    eventually(PATIENCE, "no carrier", || {
        (!node.link_by_index(eno1).expect("the master").has_carrier()).then_some(())
    });
    site.outside.ip("link set wire up");
    eventually(PATIENCE, "a carrier", || {
        node.link_by_index(eno1).expect("the master").has_carrier().then_some(())
    });
}
