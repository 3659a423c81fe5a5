//! The row of one attachment.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use netpath_ebpf::abi::{
    ENDPOINT_ADDRS, Endpoint, EndpointKey, TrieKey4, TrieKey6, endpoint_flags, kind, mode,
};

use super::{Attached, PoliceError, identity, neighbours};
use crate::{
    kernel::{
        bpf::{attach, maps::Maps, zones::ZoneContent},
        netlink::{Link, Neighbour, Netlink},
    },
    root::Root,
    spec::{ContainerId, IfName, IpConfig, Mac},
    state,
    zone::{SlotError, TrieEntry, Zone, ZoneImage, compile},
};

/// How an attachment shall be policed.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// Its sandbox.
    pub container_id: &'a ContainerId,
    /// Its interface.
    pub ifname: &'a IfName,
    /// Name of its network.
    pub network: &'a str,
    /// Its zone; `None` = counted only.
    pub zone: Option<&'a Zone>,
    /// MAC of its interface.
    pub mac: Mac,
    /// Its addresses and gateways.
    pub ips: &'a [IpConfig],
    /// Cookie of its network namespace.
    pub cookie: Option<u64>,
    /// Its addresses come from DHCP.
    pub dhcp: bool,
    /// It shares the master's MAC.
    pub passthru: bool,
}

impl Wanted<'_> {
    /// Whether it fits a row.
    pub fn check(&self) -> Result<(), PoliceError> {
        self.row().map(drop)
    }

    /// The row, without id, generation and zone.
    pub(super) fn row(&self) -> Result<Endpoint, PoliceError> {
        let (mut v4, mut v6): (Vec<Ipv4Addr>, Vec<Ipv6Addr>) = (Vec::new(), Vec::new());
        for ip in self.ips {
            match ip.address.ip() {
                IpAddr::V4(address) => v4.push(address),
                IpAddr::V6(address) => v6.push(address),
            }
        }
        for (family, count) in [("IPv4", v4.len()), ("IPv6", v6.len())] {
            if count > ENDPOINT_ADDRS {
                return Err(PoliceError::Addresses { family, count, limit: ENDPOINT_ADDRS });
            }
        }
        let gateways = || self.ips.iter().filter_map(|ip| ip.gateway);
        let flag = |set: bool, bit: u16| if set { bit } else { 0 };
        let mut row = Endpoint {
            id: 0,
            generation: 0,
            zone: 0,
            mode: self.zone.map_or(mode::OFF, |zone| zone.mode().abi()),
            kind: kind::ENDPOINT,
            flags: flag(self.dhcp, endpoint_flags::DHCP) | flag(self.passthru, endpoint_flags::PASSTHRU),
            cookie: self.cookie.unwrap_or(0),
            v4: Default::default(),
            gateway_v4: gateways()
                .find_map(|ip| if let IpAddr::V4(ip) = ip { Some(ip.octets()) } else { None })
                .unwrap_or_default(),
            pad: [0; 4],
            v6: Default::default(),
            link_local: self.mac.link_local_eui64().octets(),
            gateway_v6: gateways()
                .find_map(|ip| if let IpAddr::V6(ip) = ip { Some(ip.octets()) } else { None })
                .unwrap_or_default(),
        };
        for (slot, address) in row.v4.iter_mut().zip(v4) {
            *slot = address.octets();
        }
        for (slot, address) in row.v6.iter_mut().zip(v6) {
            *slot = address.octets();
        }
        Ok(row)
    }
}

/// A compiled zone as the maps take it.
pub fn content(image: &ZoneImage) -> ZoneContent {
    let slot = image.slot(0);
    let inline = |flag: u32| slot.flags & flag == 0;
    let trie_v4 = match inline(netpath_ebpf::abi::zone_flags::TRIE_V4) {
        true => Vec::new(),
        false => {
            image.v4().iter().map(|(net, v)| (u32::from(net.prefix()), net.network().octets(), *v)).collect()
        }
    };
    let trie_v6 = match inline(netpath_ebpf::abi::zone_flags::TRIE_V6) {
        true => Vec::new(),
        false => {
            image.v6().iter().map(|(net, v)| (u32::from(net.prefix()), net.network().octets(), *v)).collect()
        }
    };
    ZoneContent { slot, trie_v4, trie_v6, ports: image.ports().to_vec(), rules: image.rules().to_vec() }
}

/// What the maps hold of a zone, as an image.
pub fn image(content: &ZoneContent) -> Result<ZoneImage, SlotError> {
    // The entries were read as those of one slot; which one it was says nothing of the zone.
    let v4 = content.trie_v4.iter().map(|&(length, addr, verdicts)| TrieEntry {
        prefix_len: 32 + length,
        key: TrieKey4 { slot: 0, addr },
        verdicts,
    });
    let v6 = content.trie_v6.iter().map(|&(length, addr, verdicts)| TrieEntry {
        prefix_len: 32 + length,
        key: TrieKey6 { slot: 0, addr },
        verdicts,
    });
    ZoneImage::from_maps(
        &content.slot,
        &v4.collect::<Vec<_>>(),
        &v6.collect::<Vec<_>>(),
        &content.ports,
        &content.rules,
    )
}

/// Puts the attachment's zone and row in force. The caller holds the lock, and the master is attached.
pub fn enter(
    root: &Root,
    node: &mut Netlink,
    attached: &mut Attached,
    master: &Link,
    wanted: &Wanted<'_>,
) -> Result<Endpoint, PoliceError> {
    let taken = |owner: String| PoliceError::MacTaken { mac: wanted.mac, owner, master: master.name.clone() };
    // A row for one of the host's addresses would judge the host's own frames, until the kernel refuses the
    // link and the row is gone again.
    if !wanted.passthru && attached.host_macs.contains(&wanted.mac) {
        return Err(taken("the node itself".to_owned()));
    }
    let own = (wanted.container_id, wanted.ifname);
    let maps = &mut attached.maps;
    let key = EndpointKey::new(attached.id, wanted.mac.bytes());
    let mut row = wanted.row()?;
    match maps.endpoint(key)? {
        Some(old) if old.kind == kind::ENDPOINT => {
            if let Some(owner) = neighbours::holder(root, own, &key, &old)? {
                return Err(taken(owner));
            }
        }
        // Our own link is still down, so if the master listens to this address it is for somebody else.
        Some(_) if node.unicast_list(master.index)?.contains(&wanted.mac) => {
            return Err(taken("another interface of this node".to_owned()));
        }
        Some(_) | None => {}
    }
    refuse_impersonation(node, master, wanted)?;
    refuse_addresses(root, maps, key, wanted)?;
    let image = wanted.zone.map(compile).transpose()?;
    if let Some(image) = &image {
        row.zone = maps.ensure_zone(wanted.network, image.digest(wanted.network), &content(image))?;
    }
    let row = maps.add_endpoint(key, row)?;
    identity::enter(maps, attached.id, &row, image.as_ref())?;
    Ok(row)
}

/// Refuses the MAC of a host that this node has met on the master.
fn refuse_impersonation(node: &mut Netlink, master: &Link, wanted: &Wanted<'_>) -> Result<(), PoliceError> {
    let mut neighbours = node.neighbours(master.index)?;
    neighbours.retain(|neighbour| neighbour.mac == wanted.mac);
    if wanted.passthru || neighbours.is_empty() {
        return Ok(());
    }
    let routes = node.routes(Some(master.index))?;
    let next_hops = routes.iter().filter_map(|route| route.gateway);
    let gateways: Vec<IpAddr> = next_hops.chain(wanted.ips.iter().filter_map(|ip| ip.gateway)).collect();
    match impersonated(&neighbours, &gateways, wanted) {
        Some(Neighbour { address, .. }) => Err(PoliceError::MacOfNeighbour {
            mac: wanted.mac,
            address: *address,
            master: master.name.clone(),
        }),
        None => Ok(()),
    }
}

/// Which of those with its MAC the interface would stand in for. In mode `bridge` it would get what siblings send that host.
///
/// A router counts in any case, and so does whom an administrator wrote down. Of others, the same pod may have been met when it ran on another node: by an address
/// that it has here as well, by a link-local one, or by another one that nobody has confirmed since. With DHCP its
/// address is not known yet.
fn impersonated<'a>(
    neighbours: &'a [Neighbour],
    gateways: &[IpAddr],
    wanted: &Wanted<'_>,
) -> Option<&'a Neighbour> {
    let is_link_local = |address| matches!(address, IpAddr::V6(it) if it.is_unicast_link_local());
    let is_own = |address| wanted.ips.iter().any(|ip| ip.address.ip() == address);
    let counts = |Neighbour { address, router, current, permanent, .. }: &Neighbour| {
        let is_other = !wanted.dhcp && *current && !is_link_local(*address) && !is_own(*address);
        *router || *permanent || gateways.contains(address) || is_other
    };
    neighbours.iter().find(|neighbour| counts(neighbour))
}

/// Refuses addresses of a policed interface that a living attachment has. IPAM was told of them too, but
/// two at a time may have asked.
fn refuse_addresses(
    root: &Root,
    maps: &Maps,
    key: EndpointKey,
    wanted: &Wanted<'_>,
) -> Result<(), PoliceError> {
    if wanted.zone.is_none() || wanted.ips.is_empty() {
        return Ok(());
    }
    for (other, row) in neighbours::of_master(maps, key.master)? {
        let both = wanted.ips.iter().map(|ip| ip.address.ip()).find(|ip| neighbours::has(&row, *ip));
        if let Some(address) = both
            && other.mac != key.mac
            && let Some(owner) = neighbours::holder(root, (wanted.container_id, wanted.ifname), &other, &row)?
        {
            return Err(PoliceError::AddressTaken { address, owner });
        }
    }
    Ok(())
}

/// Gives row `id`, which is in force, the addresses of `wanted`. The caller holds the lock.
pub fn readdress(root: &Root, master: u16, id: u32, wanted: &Wanted<'_>) -> Result<(), PoliceError> {
    let Some(mut maps) = super::maps(root)? else {
        return Err(unpoliced("nothing is loaded", "delete the pod"));
    };
    let key = EndpointKey::new(master, wanted.mac.bytes());
    let Some(old) = maps.endpoint(key)?.filter(|row| row.id == id) else {
        return Err(unpoliced("its row is missing from the map `endpoints`", "delete the pod"));
    };
    refuse_addresses(root, &maps, key, wanted)?;
    let row = Endpoint { id, generation: old.generation, zone: old.zone, ..wanted.row()? };
    maps.set_endpoint(key, &row)?;
    Ok(identity::refresh(&mut maps, master)?)
}

/// Takes the row of an attachment out of force. The caller holds the lock.
pub fn leave(maps: &mut Maps, master: u16, mac: Mac, id: u32) -> Result<(), PoliceError> {
    maps.remove_endpoint(EndpointKey::new(master, mac.bytes()), id)?;
    Ok(identity::refresh(maps, master)?)
}

/// Checks that an attachment is policed: programs attached, row and zone in force.
pub fn check(
    root: &Root,
    id: u16,
    ifindex: u32,
    mac: Mac,
    endpoint: state::Endpoint,
    ips: &[IpNetwork],
) -> Result<(), PoliceError> {
    let Some(maps) = super::maps(root)? else {
        return Err(unpoliced("nothing is loaded", "delete the pod"));
    };
    let states = attach::inspect_beside(&maps, id, ifindex)?;
    for hook in [crate::kernel::bpf::Hook::Egress, crate::kernel::bpf::Hook::Ingress] {
        if !states.iter().any(|state| state.hook == hook && state.live) {
            return Err(unpoliced("a program is not attached to the master", "run `netpath attach`"));
        }
    }
    let Some(row) = maps.endpoint(EndpointKey::new(id, mac.bytes()))? else {
        return Err(unpoliced("its row is missing from the map `endpoints`", "delete the pod"));
    };
    if (row.id, row.generation) != (endpoint.id, endpoint.generation) {
        return Err(unpoliced("its row is that of another attachment", "delete the pod"));
    }
    if row.mode != mode::OFF && maps.zone(row.zone)?.is_none() {
        return Err(unpoliced("its zone is not loaded", "apply the network again with `netpath apply`"));
    }
    if !ips.iter().all(|ip| neighbours::has(&row, ip.ip())) {
        return Err(unpoliced("its row does not hold its addresses", "delete the pod"));
    }
    Ok(())
}

fn unpoliced(what: &'static str, fix: &'static str) -> PoliceError {
    PoliceError::Unpoliced { what, fix }
}
