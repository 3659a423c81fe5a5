//! Address conflict detection by ARP: RFC 5227 with a shorter patience.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, recvfrom, send, socket};

use super::packet;
use crate::observe::arp::{Arp, FORM, REQUEST};
use crate::spec::Mac;

/// How often each address is asked for (`PROBE_NUM`).
const PROBES: u32 = 3;
/// Packets that are looked at after the time is over: more than the kernel has room for.
const LATE: u32 = 1024;
/// Ethernet's header.
const ETHERNET: usize = 14;
/// An ARP packet behind it.
const PACKET: usize = 28;

/// Why addresses are not known to be free, or could not be announced.
#[derive(Debug, thiserror::Error)]
pub enum ArpError {
    /// Nobody could answer.
    #[error(
        "`{ifname}` has no carrier, so nobody could say that an address is in use: set its master up, connect \
         it, or remove `acd`"
    )]
    NoCarrier {
        /// The link.
        ifname: String,
    },
    /// It is no Ethernet.
    #[error("`{ifname}` has no hardware address of six bytes, which ARP needs: remove `acd`")]
    NoMac {
        /// The link.
        ifname: String,
    },
    /// No socket.
    #[error("cannot open a packet socket")]
    Open {
        /// What the system said.
        source: io::Error,
    },
    /// A frame was not sent.
    #[error("no ARP request for {address} leaves the interface or its master")]
    Send {
        /// The address it was about.
        address: Ipv4Addr,
        /// What the system said; `ENOBUFS` where the master dropped it.
        source: io::Error,
    },
    /// Nothing can be heard.
    #[error("cannot hear who answers")]
    Receive {
        /// What the system said.
        source: io::Error,
    },
    /// More was said about the addresses than could be heard.
    #[error(
        "{count} ARP packets about these addresses found no room, so it is not known whether one says that it is in use"
    )]
    Lost {
        /// How many.
        count: u64,
    },
    /// Another interface has an address.
    #[error(
        "{address} is in use by {mac} on this network: give each node a range of its own (`ipam.perNode`), or \
         take the address out of the range"
    )]
    InUse {
        /// The address.
        address: Ipv4Addr,
        /// Who has it.
        mac: Mac,
    },
    /// Another interface is about to have an address.
    #[error(
        "{address} is about to be taken by {mac} too, which probes for it: give each node a range of its own \
         (`ipam.perNode`), or take the address out of the range"
    )]
    Probed {
        /// The address.
        address: Ipv4Addr,
        /// Who asks for it.
        mac: Mac,
    },
}

impl ArpError {
    /// Whether an address is somebody else's.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::InUse { .. } | Self::Probed { .. })
    }
}

/// An interface of the calling thread's namespace.
#[derive(Clone, Copy, Debug)]
pub struct Interface {
    /// Its index; it is up.
    pub index: u32,
    /// Its hardware address.
    pub mac: Mac,
}

/// Asks three times within `within` who has `addresses`; an error names the first that somebody has or wants too.
pub fn probe(interface: Interface, addresses: &[Ipv4Addr], within: Duration) -> Result<(), ArpError> {
    let socket = open(interface.index, Some(addresses))?;
    let start = Instant::now();
    for round in 1..=PROBES {
        for address in addresses {
            // Nobody is taught anything by a question without a sender (section 1.1).
            ask(&socket, interface.mac, Ipv4Addr::UNSPECIFIED, *address)?;
        }
        listen(&socket, interface.mac, addresses, start + within * round / PROBES)?;
    }
    match packet::lost(&socket) {
        Ok(0) => Ok(()),
        Ok(count) => Err(ArpError::Lost { count }),
        Err(source) => Err(ArpError::Receive { source }),
    }
}

/// Says once who has `addresses`, as the kernel does for those of a link that goes up.
pub fn announce(interface: Interface, addresses: &[Ipv4Addr]) -> Result<(), ArpError> {
    let socket = open(interface.index, None)?;
    addresses.iter().try_for_each(|address| ask(&socket, interface.mac, *address, *address))
}

/// A socket for ARP on one interface; with `about` it hears only what names one of these as its sender's address, or asks
/// for one without a sender. Of other interfaces it never hears: until it is bound it has no protocol.
fn open(index: u32, about: Option<&[Ipv4Addr]>) -> Result<OwnedFd, ArpError> {
    let open = || -> io::Result<OwnedFd> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
        if let Some(addresses) = about {
            packet::attach(&socket, &mut filter(addresses))?;
        }
        packet::bind_to(&socket, libc::ETH_P_ARP, index)?;
        Ok(socket)
    };
    open().map_err(|source| ArpError::Open { source })
}

/// Broadcasts a request for `target` that names `sender` as who asks.
fn ask(socket: &OwnedFd, mac: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Result<(), ArpError> {
    let frame = request(mac, sender, target);
    match send(socket.as_raw_fd(), &frame, MsgFlags::empty()) {
        Ok(_) => Ok(()),
        Err(errno) => Err(ArpError::Send { address: target, source: errno.into() }),
    }
}

/// What may be a conflict, so that others do not take the room of one that is.
fn filter(addresses: &[Ipv4Addr]) -> Vec<libc::sock_filter> {
    const SENDER: u32 = 28;
    const TARGET: u32 = 38;
    let any = |at: u32| {
        let each = addresses.iter().flat_map(|address| {
            [
                packet::step(packet::EQUAL, address.to_bits(), 0, 1),
                packet::step(packet::RETURN, u32::MAX, 0, 0),
            ]
        });
        std::iter::once(packet::step(packet::LOAD_WORD, at, 0, 0)).chain(each)
    };
    let mut program: Vec<_> = any(SENDER).collect();
    program.extend([packet::step(packet::EQUAL, 0, 1, 0), packet::step(packet::RETURN, 0, 0, 0)]);
    program.extend(any(TARGET));
    program.push(packet::step(packet::RETURN, 0, 0, 0));
    program
}

/// Hears what there is until `deadline`. Whatever came before it is looked at, however late this process runs, as far as the
/// kernel has room for it.
fn listen(socket: &OwnedFd, own: Mac, addresses: &[Ipv4Addr], deadline: Instant) -> Result<(), ArpError> {
    let failed = |errno: Errno| ArpError::Receive { source: errno.into() };
    let mut late = 0;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            late += 1;
        }
        // Who sends without end does not make it longer.
        if LATE < late {
            return Ok(());
        }
        let whole = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
        let timeout = if left.is_zero() { PollTimeout::ZERO } else { whole };
        match poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) if left.is_zero() => return Ok(()),
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(failed(errno)),
        }
        let mut buffer = [0; 128];
        match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) {
            // Another station's: what a NIC in promiscuous mode hears, or what is tagged for a VLAN that is not ours.
            Ok((_, Some(from))) if from.pkttype() == libc::PACKET_OTHERHOST => {}
            Ok((length, _)) => {
                let heard = buffer.get(ETHERNET..length).and_then(Arp::read);
                if let Some(conflict) = heard.and_then(|packet| conflict(packet, own, addresses)) {
                    return Err(conflict);
                }
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
}

fn request(mac: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> [u8; ETHERNET + PACKET] {
    let mut frame = [0; ETHERNET + PACKET];
    let mut rest = &mut frame[..];
    let mac = mac.bytes();
    let (sender, target) = (sender.octets(), target.octets());
    let parts: [&[u8]; 9] =
        [&[0xff; 6], &mac, &[8, 6], &FORM, &REQUEST.to_be_bytes(), &mac, &sender, &[0; 6], &target];
    for part in parts {
        let (here, behind) = rest.split_at_mut(part.len());
        here.copy_from_slice(part);
        rest = behind;
    }
    frame
}

/// What a packet says against our using one of `addresses` (section 2.1.1).
fn conflict(packet: Arp, own: Mac, addresses: &[Ipv4Addr]) -> Option<ArpError> {
    let is_probe = packet.operation == REQUEST && packet.sender.is_unspecified();
    match packet {
        // A switch may send back what is ours.
        Arp { mac, .. } if mac == own => None,
        Arp { mac, sender: address, .. } if addresses.contains(&address) => {
            Some(ArpError::InUse { address, mac })
        }
        Arp { mac, target: address, .. } if is_probe && addresses.contains(&address) => {
            Some(ArpError::Probed { address, mac })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::arp::REPLY;

    const OURS: Mac = Mac::new([2, 0, 0, 0, 0, 1]);
    const THEIRS: Mac = Mac::new([2, 0, 0, 0, 0, 2]);
    const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
    const FIRST: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 7);
    const SECOND: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 8);
    const OTHER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);

    #[test]
    fn a_probe_is_as_the_standard_has_it() {
        let frame = request(OURS, NOBODY, FIRST);
        let expected = [
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x08, 0x06][..],
            &[0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0],
            &[0, 0, 0, 0, 0, 0, 10, 9, 0, 7],
        ];
        assert_eq!(frame[..], expected.concat());
        let read = Arp { operation: REQUEST, mac: OURS, sender: NOBODY, target: FIRST };
        assert_eq!(Arp::read(&frame[ETHERNET..]), Some(read));
    }

    #[test]
    fn what_is_no_arp_of_ours_is_passed_over() {
        let good = request(THEIRS, FIRST, OTHER);
        let body = &good[ETHERNET..];
        assert!(Arp::read(body).is_some());
        assert!(Arp::read(&[body, &[0; 18]].concat()).is_some(), "padded");
        assert_eq!(Arp::read(&body[..27]), None);
        assert_eq!(Arp::read(&[]), None);
        for (at, byte) in [(0, 1), (1, 6), (2, 0x86), (3, 6), (4, 8), (5, 16), (6, 1), (7, 3), (7, 0)] {
            let mut other = body.to_vec();
            other[at] = byte;
            assert_eq!(Arp::read(&other), None, "byte {at} is {byte}");
        }
    }

    #[test]
    fn who_has_an_address_or_wants_it_is_named() {
        let said = |operation, mac, sender, target| {
            let conflict = conflict(Arp { operation, mac, sender, target }, OURS, &[FIRST, SECOND]);
            conflict.map(|it| it.to_string().split(':').next().unwrap_or_default().to_owned())
        };
        for (operation, sender, target, expected) in [
            (REPLY, FIRST, NOBODY, Some("10.9.0.7 is in use by 02")),
            (REPLY, SECOND, NOBODY, Some("10.9.0.8 is in use by 02")),
            (REQUEST, FIRST, OTHER, Some("10.9.0.7 is in use by 02")),
            (REQUEST, FIRST, FIRST, Some("10.9.0.7 is in use by 02")),
            (REQUEST, NOBODY, SECOND, Some("10.9.0.8 is about to be taken by 02")),
            // Who asks for it does not have it, nor does who is told of it.
            (REQUEST, OTHER, FIRST, None),
            (REPLY, OTHER, FIRST, None),
            (REPLY, NOBODY, FIRST, None),
            (REQUEST, NOBODY, OTHER, None),
        ] {
            let case = format!("{operation} {sender} {target}");
            assert_eq!(said(operation, THEIRS, sender, target).as_deref(), expected, "{case}");
            assert_eq!(said(operation, OURS, sender, target), None, "{case}, our own");
        }
    }
}
