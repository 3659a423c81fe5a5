//! The floor: what the kernel takes for the same interface, asked by netlink from a process that is there already.

use anyhow::{Context as _, Result};
use netpath::{
    kernel::netlink::{Macvlan, Netlink, Route},
    spec::MacvlanMode,
};

use super::lab::{BEYOND, GATEWAY, IFNAME, MASTER, Pod};

/// A socket on the node that stays open, and what is asked of it. The pod has one of its own.
pub(super) struct Raw {
    node: Netlink,
    macvlan: Macvlan,
    address: String,
}

impl Raw {
    /// For pods one after the other with this number, which only tells their addresses apart.
    pub(super) fn new(number: usize) -> Result<Self> {
        let mut node = Netlink::open()?;
        let master = node.find_link(MASTER)?.context("the node has no master")?.index;
        let mode = MacvlanMode::Bridge;
        let macvlan =
            Macvlan { ifname: IFNAME.to_owned(), master, mode, mac: None, mtu: None, bc_queue_len: None };
        Ok(Self { node, macvlan, address: format!("10.96.200.{}/16", number + 1) })
    }

    /// Created where it belongs, with its name; its index read; address, up, route: five requests.
    pub(super) fn add(&mut self, pod: &mut Pod) -> Result<()> {
        self.node.add_macvlan(&self.macvlan, Some(&pod.open))?;
        let index = pod.netlink.link_by_name(IFNAME)?.index;
        pod.netlink.add_address(index, self.address.parse()?)?;
        pod.netlink.set_up(index)?;
        let route = Route::new(BEYOND.parse()?, Some(GATEWAY.parse()?), index);
        Ok(pod.netlink.add_route(&route)?)
    }

    /// One request for the index, one for the deed.
    pub(super) fn del(pod: &mut Pod) -> Result<()> {
        let index = pod.netlink.link_by_name(IFNAME)?.index;
        Ok(pod.netlink.delete_link(index)?)
    }
}
