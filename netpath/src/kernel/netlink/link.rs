use std::ffi::CString;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use rtnetlink::packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoMacVlan, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
    MacVlanMode,
};
use rtnetlink::packet_route::neighbour::{NeighbourAttribute, NeighbourMessage};
use rtnetlink::packet_route::nsid::{NsidAttribute, NsidMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::super::netns::Netns;
use super::{Netlink, NetlinkError, Op, decode};
use crate::spec::{Mac, MacvlanMode};

/// Somebody on the network of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// An address of theirs.
    pub address: IpAddr,
    /// The MAC behind it.
    pub mac: Mac,
    /// Whether they said that they are a router (IPv6 only: RFC 4861 section 4.4).
    pub router: bool,
    /// Whether somebody wrote this down, or it was confirmed not long ago; else it is only not known to be wrong.
    pub current: bool,
    /// Whether somebody wrote this down.
    pub permanent: bool,
}

/// A link as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Number of the link in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Other names it can be found by.
    pub alt_names: Vec<String>,
    /// `IFF_*` flags.
    pub flags: u32,
    /// Hardware address, where it has one of six bytes.
    pub mac: Option<Mac>,
    /// The address burnt into the device; kernels before 5.6 do not tell.
    pub permanent_mac: Option<Mac>,
    /// Largest packet it sends.
    pub mtu: u32,
    /// Kind of a virtual link: `macvlan`, `veth`, …
    pub kind: Option<String>,
    /// Index of the link below, the master of a macvlan.
    pub link: Option<u32>,
    /// Id, in this namespace, of the namespace `link` is in; `None` where it is this one.
    pub link_netnsid: Option<i32>,
    /// Index of the bridge or bond this link is a port of.
    pub controller: Option<u32>,
    /// How many want it to be promiscuous; not only those who asked through the flag.
    pub promiscuity: u32,
    /// Mode of a macvlan or macvtap.
    pub macvlan_mode: Option<MacVlanMode>,
    /// VLAN id of a VLAN interface.
    pub vlan_id: Option<u16>,
    /// Id of the XDP program that runs on it in generic mode.
    pub generic_xdp: Option<u32>,
}

impl Link {
    /// All its names: that of the interface, then the alternative ones.
    pub fn names(&self) -> Vec<&str> {
        std::iter::once(self.name.as_str()).chain(self.alt_names.iter().map(String::as_str)).collect()
    }

    /// Whether it was set up.
    pub fn is_up(&self) -> bool {
        self.has(libc::IFF_UP)
    }

    /// Whether it stands on link `master` of this namespace: a macvlan, macvtap, VLAN or the like.
    ///
    /// Those in other namespaces do not show here; [`Netlink::unicast_list`] has the addresses of most. A bridge
    /// or bond that `master` is a port of is its `controller`.
    pub fn is_upper_of(&self, master: u32) -> bool {
        // For a veth the link "below" is its peer.
        self.link == Some(master)
            && self.link_netnsid.is_none()
            && self.index != master
            && self.kind.as_deref() != Some("veth")
    }

    /// Whether it has a carrier and so can send.
    pub fn has_carrier(&self) -> bool {
        self.has(libc::IFF_LOWER_UP)
    }

    /// Whether somebody switched promiscuous mode on by the flag that [`Netlink::set_promisc`] sets.
    ///
    /// The kernel's own references, as a macvlan on a NIC without filters takes, count in `promiscuity` alone.
    pub fn is_promisc(&self) -> bool {
        self.has(libc::IFF_PROMISC)
    }

    /// Whether the kernel makes a macvlan on this link stand on the link below it instead.
    pub fn is_macvlan(&self) -> bool {
        matches!(self.kind.as_deref(), Some("macvlan" | "macvtap"))
    }

    fn has(&self, flag: i32) -> bool {
        self.flags & flag.cast_unsigned() != 0
    }
}

/// A macvlan to be created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Macvlan {
    /// Its name.
    pub ifname: String,
    /// Index of its master in the namespace of the [`Netlink`] that creates it.
    pub master: u32,
    /// What it may talk to on the same master.
    pub mode: MacvlanMode,
    /// Its hardware address; the kernel's choice otherwise.
    pub mac: Option<Mac>,
    /// Its MTU; the master's otherwise.
    pub mtu: Option<u32>,
    /// Length of the queue of broadcasts.
    pub bc_queue_len: Option<u32>,
}

impl Netlink {
    /// The link of this name, or of this alternative name.
    pub fn link_by_name(&mut self, name: &str) -> Result<Link, NetlinkError> {
        match self.find_link(name)? {
            Some(link) => Ok(link),
            None => Err(NetlinkError::NoLink { name: name.to_owned() }),
        }
    }

    /// The link of this name, if there is one.
    pub fn find_link(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        // The attribute for names refuses the length an alternative name may have.
        let attribute = match name.len() < libc::IFNAMSIZ {
            true => LinkAttribute::IfName(name.to_owned()),
            false => {
                let bytes = CString::new(name).map(CString::into_bytes_with_nul).unwrap_or_default();
                LinkAttribute::Other(DefaultNla::new(libc::IFLA_ALT_IFNAME, bytes))
            }
        };
        let found = self.get_link(Op::ReadLink(name.to_owned()), 0, vec![attribute]);
        match found {
            Ok(link) => Ok(Some(link)),
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The link of this index.
    pub fn link_by_index(&mut self, index: u32) -> Result<Link, NetlinkError> {
        self.get_link(Op::ReadLinkIndex(index), index, vec![])
    }

    /// All links of this namespace.
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let request = || RouteNetlinkMessage::GetLink(message(0, vec![without_statistics()]));
        self.channel.dump(Op::ListLinks, request, decode::link)
    }

    /// The unicast addresses link `index` receives beside its own.
    ///
    /// There is one for each macvlan that is up, in whatever namespace; none for a passthru macvlan, which has
    /// its master's address, nor for a macvlan that is down.
    pub fn unicast_list(&mut self, index: u32) -> Result<Vec<Mac>, NetlinkError> {
        let request = || {
            let mut message = NeighbourMessage::default();
            message.header.family = AddressFamily::Bridge;
            message.header.ifindex = index;
            RouteNetlinkMessage::GetNeighbour(message)
        };
        let read = |kind, payload: &[u8]| decode::forwarding(kind, payload, index);
        let mut macs = self.channel.dump(Op::UnicastList(index), request, read)?;
        macs.retain(|mac| !mac.is_multicast());
        Ok(macs)
    }

    /// Whom this namespace has met on link `index`, by ARP or neighbour discovery: address and MAC of each.
    pub fn neighbours(&mut self, index: u32) -> Result<Vec<Neighbour>, NetlinkError> {
        let mut all = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let request = || {
                let mut message = NeighbourMessage::default();
                message.header.family = family;
                // The kernel goes by the attribute, not by the header (`neigh_valid_dump_req`).
                message.attributes.push(NeighbourAttribute::IfIndex(index));
                RouteNetlinkMessage::GetNeighbour(message)
            };
            let read = |kind, payload: &[u8]| decode::neighbour(kind, payload, index);
            all.extend(self.channel.dump(Op::ListNeighbours(index), request, read)?);
        }
        Ok(all)
    }

    /// Creates a macvlan in `target`, or in this namespace; it is down.
    ///
    /// It is made where it belongs, with its final name, so nobody ever sees it elsewhere or half-made.
    pub fn add_macvlan(&mut self, macvlan: &Macvlan, target: Option<&Netns>) -> Result<(), NetlinkError> {
        match self.create(macvlan, &macvlan.ifname, target) {
            Err(error) if error.errno() == Some(libc::EEXIST) => {}
            result => return result,
        }
        let taken = || NetlinkError::NameTaken { name: macvlan.ifname.clone() };
        let Some(target) = target else { return Err(taken()) };
        // Before 6.15 the kernel looks for the name in the namespace of the master instead of the target, so a
        // pod's `eth0` collides with the node's.
        let mut there = Netlink::in_netns(target)?;
        if there.find_link(&macvlan.ifname)?.is_some() {
            return Err(taken());
        }
        let temporary = temporary_name();
        self.create(macvlan, &temporary, Some(target))?;
        let renamed = there.rename(&temporary, &macvlan.ifname);
        if let Err(error) = renamed {
            let link = there.link_by_name(&temporary)?;
            there.delete_link(link.index)?;
            return Err(if error.errno() == Some(libc::EEXIST) { taken() } else { error });
        }
        Ok(())
    }

    fn create(&mut self, macvlan: &Macvlan, name: &str, target: Option<&Netns>) -> Result<(), NetlinkError> {
        let mode = match macvlan.mode {
            MacvlanMode::Bridge => MacVlanMode::Bridge,
            MacvlanMode::Private => MacVlanMode::Private,
            MacvlanMode::Vepa => MacVlanMode::Vepa,
            MacvlanMode::Passthru => MacVlanMode::Passthrough,
        };
        let mut data = vec![InfoMacVlan::Mode(mode)];
        data.extend(macvlan.bc_queue_len.map(InfoMacVlan::BcQueueLen));
        let info = vec![LinkInfo::Kind(InfoKind::MacVlan), LinkInfo::Data(InfoData::MacVlan(data))];
        let mut attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Link(macvlan.master),
            LinkAttribute::LinkInfo(info),
        ];
        attributes.extend(macvlan.mac.map(|mac| LinkAttribute::Address(mac.bytes().to_vec())));
        attributes.extend(macvlan.mtu.map(LinkAttribute::Mtu));
        attributes.extend(target.map(|netns| LinkAttribute::NetNsFd(netns.as_raw_fd())));
        let op = Op::AddMacvlan { ifname: macvlan.ifname.clone(), master: macvlan.master };
        let message = RouteNetlinkMessage::NewLink(message(0, attributes));
        self.channel.acknowledged(op, message, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Renames a link, which must be down on older kernels.
    pub fn rename(&mut self, from: &str, to: &str) -> Result<(), NetlinkError> {
        let index = self.link_by_name(from)?.index;
        let op = Op::Rename { from: from.to_owned(), to: to.to_owned() };
        let message = message(index, vec![LinkAttribute::IfName(to.to_owned())]);
        self.channel.acknowledged(op, RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Sets a link up.
    pub fn set_up(&mut self, index: u32) -> Result<(), NetlinkError> {
        self.change(Op::SetUp(index), index, LinkFlags::Up, true)
    }

    /// Sets a link down; the kernel then forgets its routes, and its IPv6 addresses unless told to keep them.
    pub fn set_down(&mut self, index: u32) -> Result<(), NetlinkError> {
        self.change(Op::SetDown(index), index, LinkFlags::Up, false)
    }

    /// Switches promiscuous mode on or off, as `ip link set promisc` does.
    pub fn set_promisc(&mut self, index: u32, on: bool) -> Result<(), NetlinkError> {
        self.change(Op::SetPromisc { index, on }, index, LinkFlags::Promisc, on)
    }

    /// Deletes a link.
    pub fn delete_link(&mut self, index: u32) -> Result<(), NetlinkError> {
        let message = RouteNetlinkMessage::DelLink(message(index, vec![]));
        self.channel.acknowledged(Op::DeleteLink(index), message, 0)
    }

    /// The id of `netns` in this namespace, `None` where it has none yet: what `link_netnsid` is compared with.
    pub fn namespace_id(&mut self, netns: &Netns) -> Result<Option<i32>, NetlinkError> {
        let mut message = NsidMessage::default();
        message.attributes.push(NsidAttribute::Fd(netns.as_raw_fd().cast_unsigned()));
        let id = self.channel.get(Op::NamespaceId, RouteNetlinkMessage::GetNsId(message), decode::nsid)?;
        Ok(Some(id).filter(|id| 0 <= *id))
    }

    fn change(&mut self, op: Op, index: u32, flag: LinkFlags, on: bool) -> Result<(), NetlinkError> {
        let mut message = message(index, vec![]);
        message.header.change_mask = flag;
        message.header.flags = if on { flag } else { LinkFlags::empty() };
        self.channel.acknowledged(op, RouteNetlinkMessage::SetLink(message), 0)
    }

    fn get_link(
        &mut self,
        op: Op,
        index: u32,
        mut attributes: Vec<LinkAttribute>,
    ) -> Result<Link, NetlinkError> {
        attributes.push(without_statistics());
        let message = RouteNetlinkMessage::GetLink(message(index, attributes));
        self.channel.get(op, message, decode::link)
    }
}

fn message(index: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    message
}

/// Statistics are most of an answer, and gathering them most of its time.
fn without_statistics() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
}

/// A name no other process or thread of the node uses at the same time.
fn temporary_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("np{:x}.{:x}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed) & 0xffff)
}
