//! Links, addresses, routes and plans on the real kernel, in namespaces of each test's own.
//!
//! Needs root, and fails without it.

mod common;
#[path = "kernel_link/ethtool.rs"]
mod ethtool;
#[path = "kernel_link/netlink.rs"]
mod netlink;
#[path = "kernel_link/netns.rs"]
mod netns;
#[path = "kernel_link/plan.rs"]
mod plan;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use common::{NetNs, PATIENCE, veth};
use netpath::exec::{self, Effects, UndoStack};
use netpath::kernel::netlink::Netlink;
use netpath::kernel::netns::Netns;
use netpath::plan::{Guard, Master};
use netpath::spec::{Acd, IfName, IpConfig, Mac, MacvlanConf, MacvlanMode, Route};

/// A node with master `eno1`, the wire's other end in `outside`, and a pod.
struct Site {
    node: NetNs,
    outside: NetNs,
    pod: NetNs,
}

impl Site {
    fn new() -> Self {
        let site = Self { node: NetNs::new("node"), outside: NetNs::new("out"), pod: NetNs::new("pod") };
        veth(&site.node, "eno1", &site.outside, "wire");
        site
    }

    /// What a plugin that runs on the node would open.
    fn effects(&self, pod: &NetNs) -> Effects {
        let netns = Netns::open(&pod.path()).expect("just made");
        self.node.within(|| Effects::open(netns)).expect("sockets")
    }

    fn master(&self) -> Master {
        master(&mut self.netlink(), "eno1")
    }

    fn netlink(&self) -> Netlink {
        self.node.within(Netlink::open).expect("a socket")
    }
}

fn master(netlink: &mut Netlink, name: &str) -> Master {
    let link = netlink.link_by_name(name).expect("the master");
    Master { name: link.name, index: link.index, mtu: link.mtu }
}

fn net1() -> IfName {
    IfName::parse("CNI_IFNAME", "net1").expect("a name")
}

fn mac(text: &str) -> Mac {
    Mac::parse("mac", text).expect("a MAC")
}

fn bridge() -> MacvlanConf {
    MacvlanConf {
        master: None,
        mode: MacvlanMode::Bridge,
        mtu: None,
        mac: None,
        link_in_container: false,
        bc_queue_len: None,
    }
}

fn ip(address: &str, gateway: Option<&str>) -> IpConfig {
    let gateway = gateway.map(|gateway| gateway.parse().expect("an address"));
    IpConfig { address: address.parse().expect("a network"), gateway, interface: Some(0) }
}

fn route(dst: &str) -> Route {
    let dst = dst.parse().expect("a network");
    Route { dst, gw: None, mtu: None, advmss: None, priority: None, table: None, scope: None }
}

/// All stages of an ADD, as the plugin takes them.
fn add(
    site: &Site,
    pod: &NetNs,
    conf: &MacvlanConf,
    ips: &[IpConfig],
    routes: &[Route],
) -> Result<Effects, exec::ExecError> {
    let mut fx = site.effects(pod);
    let mut undo = UndoStack::default();
    let stages = |fx: &mut Effects, undo: &mut UndoStack| {
        let steps = netpath::plan::create(conf, &net1(), &site.master()).expect("a plan");
        exec::run(fx, &steps, undo)?;
        let mtu = fx.link("net1").expect("just made").mtu;
        exec::run(
            fx,
            &netpath::plan::prepare(&net1(), mtu, ips, Guard::Policed, Acd::Off).expect("a plan"),
            undo,
        )?;
        let existing = fx.other_routes("net1", routes).expect("routes");
        exec::run(
            fx,
            &netpath::plan::activate(&net1(), ips, routes, &existing, Acd::Off).expect("a plan"),
            undo,
        )
    };
    match stages(&mut fx, &mut undo) {
        Ok(()) => Ok(fx),
        Err(failed) => Err(exec::abort(&mut fx, undo, failed)),
    }
}

/// Opens a connection and sends a word.
#[track_caller]
fn talk(from: &NetNs, to: &NetNs, address: &str) {
    let address: SocketAddr = address.parse().expect("an address");
    let listener = to.within(|| TcpListener::bind(address)).expect("the address is there");
    let stream = from.within(|| TcpStream::connect_timeout(&address, PATIENCE));
    stream.expect("the way there").write_all(b"hello").expect("sent");
    let mut word = String::new();
    listener.accept().expect("the connection").0.read_to_string(&mut word).expect("received");
    assert_eq!(word, "hello");
}
