//! Who may send what on a master, as the programs need it to tell a borrowed MAC: cookies, addresses, VLANs.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnetwork::IpNetwork;
use netpath_ebpf::abi::{
    CookieOwner, Endpoint, Master, VlanKey, claim, kind, master_flags, mode, unknown_source, zone_verdict,
};

use super::{PoliceError, image, neighbours};
use crate::{
    kernel::{
        bpf::maps::{Maps, MapsError},
        netlink::{Link, Netlink},
    },
    spec::Mac,
    zone::{MasterEntry, UnknownSource, ZoneImage},
};

/// The addresses that are bound to a row, its link-local one included.
fn addresses(row: &Endpoint) -> impl Iterator<Item = IpNetwork> {
    let v4 = row.v4.iter().map(|address| IpAddr::V4(Ipv4Addr::from(*address)));
    let v6 = row.v6.iter().chain([&row.link_local]).map(|address| IpAddr::V6(Ipv6Addr::from(*address)));
    v4.chain(v6).filter(|address| !address.is_unspecified()).map(IpNetwork::from)
}

/// The local prefixes of a zone that is loaded.
fn local(maps: &Maps, zone: u32) -> Result<Vec<IpNetwork>, MapsError> {
    let content = if zone == 0 { None } else { maps.zone_content(zone)? };
    // A zone that cannot be read claims nothing: its endpoints are closed, and their addresses claimed.
    let image = content.and_then(|content| image(&content).ok());
    Ok(image.as_ref().map(local_of).unwrap_or_default())
}

fn local_of(image: &ZoneImage) -> Vec<IpNetwork> {
    let prefixes = image.prefixes();
    prefixes.filter(|(_, word)| word & zone_verdict::LOCAL != 0).map(|(prefix, _)| prefix).collect()
}

/// Whether a row's pod can be told by its cookie. A pod whose interface is not policed may send as it likes.
fn is_told(row: &Endpoint) -> bool {
    row.kind == kind::ENDPOINT && row.mode != mode::OFF && row.cookie != 0
}

fn answers(row: &Endpoint) -> CookieOwner {
    CookieOwner { endpoint: row.id, generation: row.generation, mode: row.mode, pad: [0; 7] }
}

/// Enters what a new row says of its pod. `zone` is what the row's zone says, where the caller has it: to read it again takes
/// a hundred calls. The caller holds the lock.
pub(super) fn enter(
    maps: &mut Maps,
    master: u16,
    row: &Endpoint,
    zone: Option<&ZoneImage>,
) -> Result<(), MapsError> {
    maps.change(|maps| enter_all(maps, master, row, zone))
}

fn enter_all(
    maps: &mut Maps,
    master: u16,
    row: &Endpoint,
    zone: Option<&ZoneImage>,
) -> Result<(), MapsError> {
    if is_told(row) {
        let old = maps.cookie_owner(master, row.cookie)?;
        if old.is_none_or(|old| old.mode <= row.mode) {
            maps.set_cookie_owner(master, row.cookie, Some(answers(row)))?;
        }
    }
    for address in addresses(row) {
        let claim = maps.claim(master, address.ip())? & claim::LOCAL | claim::BOUND;
        maps.set_claim(master, address, claim)?;
    }
    for prefix in zone.map_or_else(|| local(maps, row.zone), |zone| Ok(local_of(zone)))? {
        let own = claim::BOUND | claim::HOST;
        let old = if is_host(prefix) { maps.claim(master, prefix.ip())? & own } else { 0 };
        maps.set_claim(master, prefix, old | claim::LOCAL)?;
    }
    Ok(())
}

fn is_host(prefix: IpNetwork) -> bool {
    match prefix {
        IpNetwork::V4(prefix) => prefix.prefix() == 32,
        IpNetwork::V6(prefix) => prefix.prefix() == 128,
    }
}

/// Makes cookies and claims of a master what its rows say. The caller holds the lock.
pub(super) fn refresh(maps: &mut Maps, master: u16) -> Result<(), MapsError> {
    let rows = neighbours::of_master(maps, master)?;
    let mut cookies: BTreeMap<u64, CookieOwner> = BTreeMap::new();
    let mut claims: BTreeMap<IpNetwork, u32> = BTreeMap::new();
    let mut zones: Vec<u32> = Vec::new();
    for (_, row) in &rows {
        if is_told(row) && cookies.get(&row.cookie).is_none_or(|old| old.mode < row.mode) {
            cookies.insert(row.cookie, answers(row));
        }
        for address in addresses(row) {
            *claims.entry(address).or_default() |= claim::BOUND;
        }
        zones.push(row.zone);
    }
    zones.sort_unstable();
    zones.dedup();
    for zone in zones {
        for prefix in local(maps, zone)? {
            *claims.entry(prefix).or_default() |= claim::LOCAL;
        }
    }
    maps.change(|maps| {
        for (key, _) in maps.cookie_owners()? {
            if key.master == u32::from(master) && !cookies.contains_key(&key.cookie) {
                maps.set_cookie_owner(master, key.cookie, None)?;
            }
        }
        for (cookie, owner) in cookies {
            maps.set_cookie_owner(master, cookie, Some(owner))?;
        }
        for (prefix, old) in maps.claims(master)? {
            let claim = claims.remove(&prefix).unwrap_or(0) | old & claim::HOST;
            if claim != old {
                maps.set_claim(master, prefix, claim)?;
            }
        }
        for (prefix, claim) in claims {
            maps.set_claim(master, prefix, claim)?;
        }
        Ok(())
    })
}

/// What becomes of frames whose source MAC nobody owns.
///
/// `auto` drops only where every upper device is an endpoint that is policed or the host's own, and even then only
/// what claims an address of theirs: a MAC that the node takes on later must not cut it off.
pub(super) fn unknown(
    maps: &Maps,
    node: &mut Netlink,
    master: &Link,
    id: u16,
    host: &[Mac],
    entry: Option<&MasterEntry>,
) -> Result<u8, PoliceError> {
    let dedicated = entry.is_some_and(MasterEntry::dedicated);
    match entry.map_or(UnknownSource::Auto, MasterEntry::unknown_source) {
        UnknownSource::Drop => return Ok(unknown_source::DROP),
        UnknownSource::Audit => return Ok(unknown_source::AUDIT),
        UnknownSource::Auto if dedicated => return Ok(unknown_source::DROP),
        UnknownSource::Auto => {}
    }
    let known = unexplained(maps, node, master.index, id, host)?.is_empty();
    Ok(if known { unknown_source::CLAIMED } else { unknown_source::AUDIT })
}

/// The MACs of upper devices of a master that are neither the host's nor those of policed attachments.
pub fn unexplained(
    maps: &Maps,
    node: &mut Netlink,
    ifindex: u32,
    id: u16,
    host: &[Mac],
) -> Result<Vec<Mac>, PoliceError> {
    let rows = maps.endpoints()?;
    let above = above(maps, id)?;
    let policed = |mac: &Mac| {
        rows.iter().any(|(key, row)| {
            key.mac == mac.bytes()
                && (key.master == id || above.contains(&key.master))
                && row.kind == kind::ENDPOINT
                && row.mode != mode::OFF
        })
    };
    let mut macs = node.unicast_list(ifindex)?;
    macs.retain(|mac| !host.contains(mac) && !policed(mac));
    Ok(macs)
}

/// The masters that are VLAN interfaces on a master.
pub(super) fn above(maps: &Maps, id: u16) -> Result<Vec<u16>, MapsError> {
    let vlans = maps.vlans()?.into_iter().filter(|(key, _)| key.master == id);
    Ok(vlans.filter_map(|(_, upper)| u16::try_from(upper).ok()).collect())
}

/// The addresses of a row, as people write them.
pub fn bound(row: &Endpoint) -> impl Iterator<Item = IpAddr> {
    addresses(row).map(|address| address.ip())
}

/// Writes down the addresses that the node has on a master, so that `auto` does not cut it off when its MAC changes
/// while nothing of netpath runs. The caller holds the lock.
pub(super) fn host_addresses(
    maps: &mut Maps,
    node: &mut Netlink,
    master: &Link,
    id: u16,
) -> Result<(), PoliceError> {
    for own in node.addresses(Some(master.index))? {
        let address = own.address.ip();
        let claim = maps.claim(id, address)?;
        if claim & (claim::HOST | claim::BOUND) == 0 {
            maps.set_claim(id, IpNetwork::from(address), claim | claim::HOST)?;
        }
    }
    Ok(())
}

/// Writes down which VLAN interfaces of this namespace sit on which masters, and which of them are masters.
/// The caller holds the lock.
pub(super) fn refresh_vlans(maps: &mut Maps, cookie: u64, links: &[Link]) -> Result<(), MapsError> {
    let masters: Vec<(u16, Master)> =
        maps.masters()?.into_iter().filter(|(_, row)| row.netns_cookie == cookie).collect();
    let id_of = |ifindex: u32| masters.iter().find(|(_, row)| row.ifindex == ifindex).map(|(id, _)| *id);
    let mut wish: BTreeMap<(u16, u16), u32> = BTreeMap::new();
    for link in links {
        if let (Some(vid), Some(below), None) = (link.vlan_id, link.link, link.link_netnsid)
            && let Some(lower) = id_of(below)
        {
            wish.insert((lower, vid), id_of(link.index).map_or(0, u32::from));
        }
    }
    for (key, _) in maps.vlans()? {
        let ours = masters.iter().any(|(id, _)| *id == key.master);
        if ours && !wish.contains_key(&(key.master, key.vid)) {
            maps.set_vlan(key, None)?;
        }
    }
    for (&(master, vid), &upper) in &wish {
        maps.set_vlan(VlanKey { master, vid }, Some(upper))?;
    }
    for (id, row) in masters {
        let has = wish.keys().any(|(master, _)| *master == id);
        let flags = if has { row.flags | master_flags::VLANS } else { row.flags & !master_flags::VLANS };
        if flags != row.flags {
            maps.set_master(id, &Master { flags, ..row })?;
        }
    }
    Ok(())
}
