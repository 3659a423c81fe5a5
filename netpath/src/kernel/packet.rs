//! Packet sockets that hear who says what of addresses: ARP and neighbour discovery, as a device receives them.
//!
//! Each is bound to one protocol and one device, so no frame of another kind, or of another device, passes by it.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
};

use nix::{
    getsockopt_impl, setsockopt_impl, sockopt_impl,
    sys::socket::{
        AddressFamily, LinkAddr, SockFlag, SockType, SockaddrLike as _, bind, getsockopt, recvfrom,
        setsockopt, socket,
    },
};

use crate::spec::Mac;

/// What a socket hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Heard {
    /// ARP whose sender has an address.
    Arp,
    /// Neighbour solicitations and advertisements of IPv6.
    NeighbourDiscovery,
}

/// Bytes of a packet that are kept. None that anybody sends is longer; one that is counts as cut off.
pub const ROOM: usize = 2048;

/// One socket on one device.
#[derive(Debug)]
pub struct Ear {
    fd: OwnedFd,
}

sockopt_impl!(
    /// A classic BPF program that says what is handed to the socket.
    AttachFilter,
    SetOnly,
    libc::SOL_SOCKET,
    libc::SO_ATTACH_FILTER,
    libc::sock_fprog
);

sockopt_impl!(
    /// What was for the socket since this was asked for last, and how much of it found no room.
    Statistics,
    GetOnly,
    libc::SOL_PACKET,
    libc::PACKET_STATISTICS,
    libc::tpacket_stats
);

impl Ear {
    /// Hears what the device `ifindex` of the calling thread's namespace receives from now on. Needs CAP_NET_RAW.
    ///
    /// The room in the kernel is the usual one: what comes faster than it is read is lost, and counted ([`Self::lost`]).
    pub fn open(ifindex: u32, heard: Heard) -> io::Result<Self> {
        let protocol = match heard {
            Heard::Arp => libc::ETH_P_ARP,
            Heard::NeighbourDiscovery => libc::ETH_P_IPV6,
        };
        // Without a protocol, so that nothing comes before the filter is there. By datagrams: behind the link's header.
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Packet, SockType::Datagram, flags, None)?;
        attach(&fd, &mut filter(ifindex, heard))?;
        bind_to(&fd, protocol, ifindex)?;
        Ok(Self { fd })
    }

    /// The next packet, behind the link's header, and who sent it; `None` where none waits. A device that was taken down
    /// or is gone is an error.
    pub fn receive<'a>(&self, room: &'a mut [u8; ROOM]) -> io::Result<Option<(Mac, &'a [u8])>> {
        loop {
            let (length, source) = match recvfrom::<LinkAddr>(self.fd.as_raw_fd(), room) {
                Ok(got) => got,
                Err(nix::Error::EAGAIN) => return Ok(None),
                Err(nix::Error::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            // A device without Ethernet addresses is no master.
            if let Some(source) = source.and_then(|source| source.addr()) {
                return Ok(Some((Mac::new(source), room.get(..length).unwrap_or_default())));
            }
        }
    }

    /// How many packets found no room since this was asked last.
    pub fn lost(&self) -> io::Result<u64> {
        lost(&self.fd)
    }
}

impl AsFd for Ear {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Has a socket be handed only what this classic BPF program lets through.
pub(super) fn attach(socket: &OwnedFd, program: &mut [libc::sock_filter]) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(io::Error::other)?;
    Ok(setsockopt(socket, AttachFilter, &libc::sock_fprog { len: length, filter: program.as_mut_ptr() })?)
}

/// How many packets found no room at a packet socket since this was asked last.
pub(super) fn lost(socket: &OwnedFd) -> io::Result<u64> {
    Ok(getsockopt(socket, Statistics)?.tp_drops.into())
}

/// Has a packet socket hear one protocol (`ETH_P_*`) on one device, where it had none.
pub(super) fn bind_to(socket: &OwnedFd, protocol: libc::c_int, ifindex: u32) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?,
        sll_protocol: u16::try_from(protocol).map_err(io::Error::other)?.to_be(),
        sll_ifindex: i32::try_from(ifindex).map_err(io::Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
    // SAFETY: `address` is a `sockaddr_ll` of `length` bytes and lives through the call, which copies it.
    let address = unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(length)) };
    bind(socket.as_raw_fd(), &address.ok_or(io::ErrorKind::InvalidInput)?)?;
    Ok(())
}

/// `BPF_LD | BPF_W | BPF_ABS` of `linux/bpf_common.h`.
pub(super) const LOAD_WORD: u16 = 0x20;
/// `BPF_JMP | BPF_JEQ | BPF_K`.
pub(super) const EQUAL: u16 = 0x15;
/// `BPF_RET | BPF_K`.
pub(super) const RETURN: u16 = 0x06;

/// An instruction, with how many are skipped where it holds, and where it does not.
pub(super) fn step(code: u16, k: u32, holds: u8, fails: u8) -> libc::sock_filter {
    libc::sock_filter { code, jt: holds, jf: fails, k }
}

/// Hands on what is meant for this device and can be a claim.
///
/// A frame with the tag of a VLAN that has a device here arrives as that device's, one of any other VLAN as if it were for
/// another host, like what a promiscuous device hears beside its own. None of these is the device's own business.
fn filter(ifindex: u32, heard: Heard) -> Vec<libc::sock_filter> {
    // `BPF_LD | BPF_B | BPF_ABS` and so on, of `linux/bpf_common.h`.
    const LOAD_BYTE: u16 = 0x30;
    const LOAD_HALF: u16 = 0x28;
    const GREATER: u16 = 0x25;
    /// Next header and hop limit of neighbour discovery.
    const DISCOVERY: u32 = 0x3aff;
    const ALL: u32 = u32::MAX;
    // Of what the kernel knows of the packet beside its bytes.
    let known = |what: i32| (libc::SKF_AD_OFF + what).cast_unsigned();
    let mut program = vec![
        step(LOAD_WORD, known(libc::SKF_AD_PKTTYPE), 0, 0),
        // For this host, for all, for a group; greater is another's, or our own.
        step(GREATER, libc::PACKET_MULTICAST.into(), 0, 1),
        step(RETURN, 0, 0, 0),
        step(LOAD_WORD, known(libc::SKF_AD_IFINDEX), 0, 0),
        step(EQUAL, ifindex, 1, 0),
        step(RETURN, 0, 0, 0),
    ];
    program.extend(match heard {
        Heard::Arp => vec![
            // The sender's address: a probe has none.
            step(LOAD_WORD, 14, 0, 0),
            step(EQUAL, 0, 1, 0),
        ],
        Heard::NeighbourDiscovery => vec![
            step(LOAD_HALF, 6, 0, 0),
            step(EQUAL, DISCOVERY, 0, 4),
            step(LOAD_BYTE, 40, 0, 0),
            step(EQUAL, 135, 1, 0),
            step(EQUAL, 136, 0, 1),
        ],
    });
    program.extend([step(RETURN, ALL, 0, 0), step(RETURN, 0, 0, 0)]);
    program
}
