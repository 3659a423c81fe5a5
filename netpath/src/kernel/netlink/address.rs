use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::super::netns::Netns;
use super::socket::Monitor;
use super::{Netlink, NetlinkError, Op, decode};

/// An address on a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The link.
    pub index: u32,
    /// The address and its network.
    pub address: IpNetwork,
    /// `IFA_F_*` flags.
    pub flags: u32,
}

impl Address {
    /// Whether duplicate address detection has yet to end.
    pub fn is_tentative(&self) -> bool {
        self.flags & libc::IFA_F_TENTATIVE != 0 && !self.is_duplicate()
    }

    /// Whether duplicate address detection found another host that has it.
    pub fn is_duplicate(&self) -> bool {
        self.flags & libc::IFA_F_DADFAILED != 0
    }
}

impl Netlink {
    /// The addresses on link `index`, or all of this namespace.
    pub fn addresses(&mut self, index: Option<u32>) -> Result<Vec<Address>, NetlinkError> {
        let request = || {
            let mut message = AddressMessage::default();
            message.header.index = index.unwrap_or(0);
            RouteNetlinkMessage::GetAddress(message)
        };
        let mut addresses = self.channel.dump(Op::ListAddresses, request, decode::address)?;
        // Not every address family of every kernel filters for us.
        addresses.retain(|address| index.is_none_or(|index| address.index == index));
        Ok(addresses)
    }

    /// Adds an address; it is an error if the link has it.
    pub fn add_address(&mut self, index: u32, address: IpNetwork) -> Result<(), NetlinkError> {
        let mut message = message(index, address);
        if let IpNetwork::V4(network) = address
            && network.prefix() < 31
            && network.broadcast() != Ipv4Addr::BROADCAST
        {
            message.attributes.push(AddressAttribute::Broadcast(network.broadcast()));
        }
        let message = RouteNetlinkMessage::NewAddress(message);
        self.channel.acknowledged(Op::AddAddress { index, address }, message, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Removes an address.
    pub fn delete_address(&mut self, index: u32, address: IpNetwork) -> Result<(), NetlinkError> {
        let message = RouteNetlinkMessage::DelAddress(message(index, address));
        self.channel.acknowledged(Op::DeleteAddress { index, address }, message, 0)
    }

    /// Waits until duplicate address detection has ended for all IPv6 addresses of link `index` in `netns`.
    ///
    /// Without a carrier it cannot end, and is not waited for. An address found on another host is an error.
    pub fn wait_dad(&mut self, netns: &Netns, index: u32, timeout: Duration) -> Result<(), NetlinkError> {
        // Heard from before the first look, so no change falls between looking and waiting.
        let groups = (libc::RTMGRP_IPV6_IFADDR | libc::RTMGRP_LINK).cast_unsigned();
        let monitor = netns.within(|| Monitor::open(groups))??;
        let deadline = Instant::now() + timeout;
        loop {
            let addresses = self.addresses(Some(index))?;
            if let Some(duplicate) = addresses.iter().find(|address| address.is_duplicate()) {
                let address = duplicate.address.ip();
                return Err(NetlinkError::Duplicate { address, ifname: self.link_by_index(index)?.name });
            }
            if !addresses.iter().any(Address::is_tentative) {
                return Ok(());
            }
            let link = self.link_by_index(index)?;
            if !link.has_carrier() {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(NetlinkError::Tentative { ifname: link.name, seconds: timeout.as_secs() });
            }
            monitor.wait(Op::ListAddresses, left)?;
        }
    }
}

fn message(index: u32, address: IpNetwork) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = address.prefix();
    message.header.family = match address {
        IpNetwork::V4(_) => AddressFamily::Inet,
        IpNetwork::V6(_) => AddressFamily::Inet6,
    };
    let ip: IpAddr = address.ip();
    message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
    message
}
