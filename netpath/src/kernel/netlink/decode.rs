//! Reads the kernel's answers: the attributes that are needed, and no others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use rtnetlink::packet_core::{NLM_F_ACK_TLVS, NLM_F_CAPPED, NlaBuffer, NlasIterator};
use rtnetlink::packet_route::link::MacVlanMode;

use super::error::Refusal;
use super::filter::{BPF, FILTER_QDISC};
use super::{Address, Filter, FilterPlace, Link, Neighbour, Route};
use crate::spec::Mac;

/// `RTNH_F_ONLINK` among the flags of a route.
const ONLINK: u32 = 4;
/// `IFLA_INFO_KIND` and `IFLA_INFO_DATA` inside `IFLA_LINKINFO`.
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
/// `IFLA_MACVLAN_MODE` inside the data of a macvlan.
const MACVLAN_MODE: u16 = 1;
/// `IFLA_VLAN_ID` inside the data of a VLAN.
const VLAN_ID: u16 = 1;
/// `IFLA_XDP_SKB_PROG_ID` inside `IFLA_XDP`.
const XDP_GENERIC_PROGRAM: u16 = 6;
/// `NLMSGERR_ATTR_MSG`.
const ERROR_TEXT: u16 = 1;
/// `NETNSA_NSID`.
const NSID: u16 = 1;
/// `RTAX_MTU` and `RTAX_ADVMSS` inside `RTA_METRICS`.
const METRIC_MTU: u16 = 2;
const METRIC_ADVMSS: u16 = 8;

/// `TCA_KIND` and `TCA_OPTIONS` of a qdisc or a filter.
const TC_KIND: u16 = 1;
const TC_OPTIONS: u16 = 2;
/// `TCA_CHAIN` of a filter.
const TC_CHAIN: u16 = 11;
/// `TCA_BPF_NAME`, `TCA_BPF_FLAGS` and `TCA_BPF_ID` inside the options of a BPF filter.
const BPF_NAME: u16 = 7;
const BPF_FLAGS: u16 = 8;
const BPF_ID: u16 = 11;
/// `TCA_BPF_FLAG_ACT_DIRECT`.
const DIRECT_ACTION: u32 = 1;

const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
const ROUTE_HEADER: usize = 12;
const NEIGHBOUR_HEADER: usize = 12;
const TC_HEADER: usize = 20;
const NEXTHOP_HEADER: usize = 8;
const ERROR_CODE: usize = 4;
const NETLINK_HEADER: usize = 16;

/// The length of a message with its padding.
pub(super) fn aligned(length: u32) -> usize {
    usize::try_from(length).map_or(usize::MAX, |length| length.next_multiple_of(4))
}

/// What the end of an answer says; `None` for success.
pub(super) fn refusal(flags: u16, payload: &[u8]) -> Option<Refusal> {
    let code = i32_at(payload, 0).filter(|code| *code < 0)?;
    let mut reason = None;
    if flags & NLM_F_ACK_TLVS != 0 {
        // The request stands between the number and the attributes: its header alone where it is capped.
        let request = match flags & NLM_F_CAPPED {
            0 => u32_at(payload, ERROR_CODE).map_or(usize::MAX, aligned),
            _ => NETLINK_HEADER,
        };
        let rest = payload.get(ERROR_CODE.saturating_add(request)..).unwrap_or_default();
        reason = attributes(rest).find(|nla| nla.kind() == ERROR_TEXT).map(|nla| text(nla.value()));
    }
    Some(Refusal { errno: -code, reason })
}

pub(super) fn link(kind: u16, payload: &[u8]) -> Option<Link> {
    if kind != libc::RTM_NEWLINK {
        return None;
    }
    let mut link = Link {
        index: u32_at(payload, 4)?,
        name: String::new(),
        alt_names: Vec::new(),
        flags: u32_at(payload, 8)?,
        mac: None,
        permanent_mac: None,
        mtu: 0,
        kind: None,
        link: None,
        link_netnsid: None,
        controller: None,
        promiscuity: 0,
        macvlan_mode: None,
        vlan_id: None,
        generic_xdp: None,
    };
    for nla in attributes(&payload[LINK_HEADER.min(payload.len())..]) {
        let value = nla.value();
        match nla.kind() {
            libc::IFLA_IFNAME => link.name = text(value),
            libc::IFLA_ADDRESS => link.mac = mac(value),
            libc::IFLA_PERM_ADDRESS => link.permanent_mac = mac(value),
            libc::IFLA_MTU => link.mtu = u32_at(value, 0)?,
            libc::IFLA_LINK => link.link = u32_at(value, 0),
            libc::IFLA_LINK_NETNSID => link.link_netnsid = i32_at(value, 0),
            libc::IFLA_MASTER => link.controller = u32_at(value, 0),
            libc::IFLA_PROMISCUITY => link.promiscuity = u32_at(value, 0)?,
            libc::IFLA_PROP_LIST => {
                let names = attributes(value).filter(|nla| nla.kind() == libc::IFLA_ALT_IFNAME);
                link.alt_names = names.map(|nla| text(nla.value())).collect();
            }
            libc::IFLA_XDP => {
                let program = attributes(value).find(|nla| nla.kind() == XDP_GENERIC_PROGRAM);
                link.generic_xdp = program.and_then(|nla| u32_at(nla.value(), 0));
            }
            libc::IFLA_LINKINFO => link_info(value, &mut link),
            _ => {}
        }
    }
    Some(link)
}

fn link_info(value: &[u8], link: &mut Link) {
    for nla in attributes(value) {
        match nla.kind() {
            INFO_KIND => link.kind = Some(text(nla.value())),
            // The kernel writes the kind first.
            INFO_DATA if matches!(link.kind.as_deref(), Some("macvlan" | "macvtap")) => {
                let mode = attributes(nla.value()).find(|nla| nla.kind() == MACVLAN_MODE);
                link.macvlan_mode = mode.and_then(|nla| u32_at(nla.value(), 0)).map(MacVlanMode::from);
            }
            INFO_DATA if link.kind.as_deref() == Some("vlan") => {
                let id = attributes(nla.value()).find(|nla| nla.kind() == VLAN_ID);
                link.vlan_id = id.and_then(|nla| u16_at(nla.value(), 0));
            }
            _ => {}
        }
    }
}

pub(super) fn address(kind: u16, payload: &[u8]) -> Option<Address> {
    if kind != libc::RTM_NEWADDR {
        return None;
    }
    let prefix = *payload.get(1)?;
    let mut flags = u32::from(*payload.get(2)?);
    let index = u32_at(payload, 4)?;
    let (mut address, mut local) = (None, None);
    for nla in attributes(payload.get(ADDRESS_HEADER..)?) {
        match nla.kind() {
            libc::IFA_ADDRESS => address = ip(nla.value()),
            libc::IFA_LOCAL => local = ip(nla.value()),
            libc::IFA_FLAGS => flags = u32_at(nla.value(), 0)?,
            _ => {}
        }
    }
    // On a point-to-point link IFA_ADDRESS is the other end, and IFA_LOCAL ours.
    let address = IpNetwork::new(local.or(address)?, prefix).ok()?;
    Some(Address { index, address, flags })
}

/// The route, once for each of its next hops.
pub(super) fn routes(kind: u16, payload: &[u8]) -> Vec<Route> {
    route(kind, payload).unwrap_or_default()
}

fn route(kind: u16, payload: &[u8]) -> Option<Vec<Route>> {
    let header: &[u8; ROUTE_HEADER] = payload.first_chunk()?;
    let [family, prefix, _, _, table, protocol, scope, route_type, ..] = *header;
    if kind != libc::RTM_NEWROUTE || route_type != libc::RTN_UNICAST {
        return None;
    }
    let unspecified = match i32::from(family) {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        libc::AF_INET6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut route = Route {
        dst: IpNetwork::new(unspecified, prefix).ok()?,
        gateway: None,
        index: None,
        priority: None,
        table: u32::from(table),
        scope,
        protocol,
        mtu: None,
        advmss: None,
        onlink: u32_at(payload, 8)? & ONLINK != 0,
    };
    let mut hops = Vec::new();
    for nla in attributes(&payload[ROUTE_HEADER..]) {
        let value = nla.value();
        match nla.kind() {
            libc::RTA_DST => route.dst = IpNetwork::new(ip(value)?, prefix).ok()?,
            libc::RTA_TABLE => route.table = u32_at(value, 0)?,
            libc::RTA_PRIORITY => route.priority = u32_at(value, 0),
            libc::RTA_OIF => route.index = u32_at(value, 0),
            libc::RTA_GATEWAY => route.gateway = ip(value),
            libc::RTA_VIA => route.gateway = via(value),
            libc::RTA_MULTIPATH => hops = next_hops(value),
            libc::RTA_METRICS => {
                for metric in attributes(value) {
                    match metric.kind() {
                        METRIC_MTU => route.mtu = u32_at(metric.value(), 0),
                        METRIC_ADVMSS => route.advmss = u32_at(metric.value(), 0),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if hops.is_empty() {
        return Some(vec![route]);
    }
    let with = |(index, gateway)| Route { index: Some(index), gateway, ..route.clone() };
    Some(hops.into_iter().map(with).collect())
}

fn next_hops(mut value: &[u8]) -> Vec<(u32, Option<IpAddr>)> {
    let mut hops = Vec::new();
    while let (Some(length), Some(index)) = (u16_at(value, 0), u32_at(value, 4)) {
        let length = usize::from(length);
        if length < NEXTHOP_HEADER || value.len() < length {
            break;
        }
        let gateway = attributes(&value[NEXTHOP_HEADER..length]).find_map(|nla| match nla.kind() {
            libc::RTA_GATEWAY => ip(nla.value()),
            libc::RTA_VIA => via(nla.value()),
            _ => None,
        });
        hops.push((index, gateway));
        value = value.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    hops
}

/// A neighbour on link `index` whose MAC is known.
pub(super) fn neighbour(kind: u16, payload: &[u8], index: u32) -> Option<Neighbour> {
    if kind != libc::RTM_NEWNEIGH || u32_at(payload, 4)? != index {
        return None;
    }
    // A `struct ndmsg`. NOARP is what needs no asking, such as a group.
    let state = u16_at(payload, 8)?;
    if state & (libc::NUD_INCOMPLETE | libc::NUD_FAILED | libc::NUD_NOARP) != 0 {
        return None;
    }
    let router = payload.get(10)? & libc::NTF_ROUTER != 0;
    let (mut found, mut known) = (None, None);
    for nla in attributes(payload.get(NEIGHBOUR_HEADER..)?) {
        match nla.kind() {
            libc::NDA_DST => found = ip(nla.value()),
            libc::NDA_LLADDR => known = mac(nla.value()),
            _ => {}
        }
    }
    let current = state & libc::NUD_STALE == 0;
    let permanent = state & libc::NUD_PERMANENT != 0;
    Some(Neighbour { address: found?, mac: known?, router, current, permanent })
}

/// The hardware address of a forwarding entry of link `index`.
pub(super) fn forwarding(kind: u16, payload: &[u8], index: u32) -> Option<Mac> {
    if kind != libc::RTM_NEWNEIGH || u32_at(payload, 4)? != index {
        return None;
    }
    let mut attributes = attributes(payload.get(NEIGHBOUR_HEADER..)?);
    attributes.find(|nla| nla.kind() == libc::NDA_LLADDR).and_then(|nla| mac(nla.value()))
}

/// Kind of the qdisc `ffff:` of link `index`.
pub(super) fn filter_qdisc(kind: u16, payload: &[u8], index: u32) -> Option<String> {
    // A `struct tcmsg`.
    let is_it = u32_at(payload, 4)? == index && u32_at(payload, 8)? == FILTER_QDISC;
    if kind != libc::RTM_NEWQDISC || !is_it {
        return None;
    }
    let mut attributes = attributes(payload.get(TC_HEADER..)?);
    attributes.find(|nla| nla.kind() == TC_KIND).map(|nla| text(nla.value()))
}

/// A filter that runs a program, of chain 0: not one that only stands for others, nor one in a NIC.
pub(super) fn filter(kind: u16, payload: &[u8]) -> Option<Filter> {
    if kind != libc::RTM_NEWTFILTER {
        return None;
    }
    // A `struct tcmsg`. The priority is the upper half of its last word, the protocol the lower.
    let (handle, info) = (u32_at(payload, 8)?, u32_at(payload, 16)?);
    let (mut name, mut program, mut flags, mut is_bpf) = (None, None, 0, false);
    for nla in attributes(payload.get(TC_HEADER..)?) {
        match nla.kind() {
            // Others are met by whom a filter sends there.
            TC_CHAIN if u32_at(nla.value(), 0) != Some(0) => return None,
            TC_KIND => is_bpf = text(nla.value()) == BPF,
            // The kernel writes the kind first; others have other options of these numbers.
            TC_OPTIONS if is_bpf => {
                for option in attributes(nla.value()) {
                    match option.kind() {
                        BPF_NAME => name = Some(text(option.value())),
                        BPF_FLAGS => flags = u32_at(option.value(), 0)?,
                        BPF_ID => program = u32_at(option.value(), 0),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let [priority, protocol] =
        [info >> 16, info & 0xffff].map(|half| u16::try_from(half).unwrap_or_default());
    let name = name.unwrap_or_else(|| "unnamed".to_owned());
    let decides = flags & DIRECT_ACTION != 0;
    Some(Filter { place: FilterPlace { priority, handle }, protocol, decides, program: program?, name })
}

pub(super) fn nsid(kind: u16, payload: &[u8]) -> Option<i32> {
    if kind != libc::RTM_NEWNSID {
        return None;
    }
    // A `struct rtgenmsg`, padded to four bytes.
    let mut attributes = attributes(payload.get(4..)?);
    attributes.find(|nla| nla.kind() == NSID).and_then(|nla| i32_at(nla.value(), 0))
}

/// The attributes up to the first that is broken.
fn attributes(bytes: &[u8]) -> impl Iterator<Item = NlaBuffer<&[u8]>> {
    NlasIterator::new(bytes).map_while(Result::ok)
}

fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

fn mac(value: &[u8]) -> Option<Mac> {
    <[u8; 6]>::try_from(value).ok().map(Mac::new)
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => value.first_chunk::<4>().map(|octets| IpAddr::from(*octets)),
        16 => value.first_chunk::<16>().map(|octets| IpAddr::from(*octets)),
        _ => None,
    }
}

/// A `struct rtvia`: the family, then the address.
fn via(value: &[u8]) -> Option<IpAddr> {
    ip(value.get(2..)?)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|chunk| u16::from_ne_bytes(*chunk))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|chunk| u32::from_ne_bytes(*chunk))
}

fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    bytes.get(at..)?.first_chunk().map(|chunk| i32::from_ne_bytes(*chunk))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nla(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn a_refusal_has_the_kernel_s_words() {
        let mut payload = (-22i32).to_ne_bytes().to_vec();
        // The header of the request: its length is that of the whole request, though the rest was capped.
        payload.extend([60u32.to_ne_bytes(), [0; 4], [0; 4], [0; 4]].concat());
        payload.extend(nla(ERROR_TEXT, b"MTU too large\0"));
        let said = refusal(NLM_F_ACK_TLVS | NLM_F_CAPPED, &payload).unwrap();
        assert_eq!(said.to_string(), "Invalid argument (os error 22): MTU too large");
        assert_eq!(refusal(0, &payload).unwrap().to_string(), "Invalid argument (os error 22)");
        // Not capped: the length would lead beyond the end.
        assert_eq!(refusal(NLM_F_ACK_TLVS, &payload).unwrap().reason, None);
        assert!(refusal(0, &0i32.to_ne_bytes()).is_none(), "an acknowledgement");
    }

    #[test]
    fn attributes_nobody_knows_are_stepped_over() {
        let mut payload = vec![0; LINK_HEADER];
        payload[4..8].copy_from_slice(&7u32.to_ne_bytes());
        payload.extend(nla(0x3ff0, &[1, 2, 3]));
        payload.extend(nla(libc::IFLA_IFNAME, b"eno1\0"));
        let link = link(libc::RTM_NEWLINK, &payload).unwrap();
        assert_eq!((link.index, link.name.as_str()), (7, "eno1"));
    }

    proptest! {
        /// Whatever the kernel sends, reading it ends and does not panic.
        #[test]
        fn garbage_is_survived(
            kind in prop::sample::select(vec![
                libc::RTM_NEWLINK, libc::RTM_NEWADDR, libc::RTM_NEWROUTE, libc::RTM_NEWNEIGH, libc::RTM_NEWNSID,
                libc::RTM_NEWTFILTER, libc::RTM_NEWQDISC,
            ]),
            flags: u16,
            family in prop::sample::select(vec![2u8, 10]),
            bytes: Vec<u8>,
        ) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = family;
            }
            link(kind, &bytes);
            address(kind, &bytes);
            routes(kind, &bytes);
            neighbour(kind, &bytes, 0);
            forwarding(kind, &bytes, 0);
            nsid(kind, &bytes);
            filter(kind, &bytes);
            filter_qdisc(kind, &bytes, 0);
            refusal(flags, &bytes);
            next_hops(&bytes);
        }
    }
}
