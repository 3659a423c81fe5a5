//! The wire itself, read and written without any part of netpath: the oracle that its counters are held against.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    net::if_::if_nametoindex,
    sys::socket::{
        AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvfrom, sendto, socket,
    },
};

use super::error::LabError;
use super::world::{Host, World};
use crate::{kernel::netns, spec::Mac};

/// `ARPHRD`-independent type of a frame that this side sends (`PACKET_OUTGOING`).
const OUTGOING: u8 = 4;
const ARP: [u8; 2] = [0x08, 0x06];

/// Hears every frame on one interface.
pub(super) struct Tap {
    socket: OwnedFd,
    ifindex: usize,
    netns: String,
}

/// What a frame is, as far as the lab asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// Seen from the interface: it came in.
    pub(super) incoming: bool,
    pub(super) destination: [u8; 6],
    pub(super) source: [u8; 6],
    /// The address an ARP request asks for.
    pub(super) arp_asks: Option<Ipv4Addr>,
}

impl Tap {
    /// Listens on `ifname` of `host` from now on.
    pub(super) fn open(world: &World, host: Host, ifname: &'static str) -> Result<Self, LabError> {
        let name = world.netns_name(host);
        let open = || -> io::Result<_> {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
            Ok((socket, if_nametoindex(ifname)? as usize))
        };
        let (socket, ifindex) = netns::within(&world.netns(host), open)?
            .map_err(|source| LabError::Wire { what: "listen", netns: name.clone(), source })?;
        Ok(Self { socket, ifindex, netns: name })
    }

    /// The frames since the last call.
    pub(super) fn drain(&self) -> Result<Vec<Frame>, LabError> {
        let mut frames = Vec::new();
        let mut buffer = [0; 64];
        loop {
            match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut buffer) {
                Ok((length, Some(from))) if from.ifindex() == self.ifindex => {
                    frames
                        .extend(Frame::read(from.pkttype() != OUTGOING, &buffer[..length.min(buffer.len())]));
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(frames),
                Err(errno) => {
                    return Err(LabError::Wire {
                        what: "listen",
                        netns: self.netns.clone(),
                        source: errno.into(),
                    });
                }
            }
        }
    }
}

impl Frame {
    /// `None` for less than an Ethernet header.
    fn read(incoming: bool, bytes: &[u8]) -> Option<Self> {
        let (destination, rest) = bytes.split_first_chunk::<6>()?;
        let (source, rest) = rest.split_first_chunk::<6>()?;
        let (ethertype, arp) = rest.split_first_chunk::<2>()?;
        // Ethernet and IPv4 addresses, a request; the target stands behind the sender's and its own MAC.
        let asks = *ethertype == ARP && arp.starts_with(&[0, 1, 8, 0, 6, 4, 0, 1]);
        let target = arp.get(24..28).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
        let arp_asks = target.filter(|_| asks).map(Ipv4Addr::from);
        Some(Self { incoming, destination: *destination, source: *source, arp_asks })
    }
}

/// Sends one frame on `ifname` of `host`, with whatever source it says.
pub(super) fn send(world: &World, host: Host, ifname: &'static str, frame: &[u8]) -> Result<(), LabError> {
    let name = world.netns_name(host);
    let send = || -> io::Result<Option<usize>> {
        let mut addresses = getifaddrs()?.filter(|entry| entry.interface_name == ifname);
        let Some(to) = addresses.find_map(|entry| entry.address?.as_link_addr().copied()) else {
            return Ok(None);
        };
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
        match sendto(socket.as_raw_fd(), frame, &to, MsgFlags::empty()) {
            // This is how a drop on the master looks to a sender.
            Err(Errno::ENOBUFS) => Ok(Some(0)),
            sent => Ok(Some(sent?)),
        }
    };
    match netns::within(&world.netns(host), send)? {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(LabError::NoLink { ifname, netns: name }),
        Err(source) => Err(LabError::Wire { what: "send a frame", netns: name, source }),
    }
}

/// A frame from `source` that no stack answers: its ethertype is the one for experiments (IEEE 802, 0x88b5).
pub(super) fn experiment(source: Mac, destination: Mac) -> Vec<u8> {
    let mut frame = [destination.bytes(), source.bytes()].concat();
    frame.extend([0x88, 0xb5]);
    frame.extend(b"netpath lab");
    frame.resize(60, 0);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arp_request_says_whom_it_asks_for() {
        let mut bytes = vec![0xff; 6];
        bytes.extend([2, 0, 0, 0, 0, 1]);
        bytes.extend([
            8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 12, 34, 221, 0, 0, 0, 0, 0, 0, 8, 8, 8, 8,
        ]);
        let frame = Frame {
            incoming: true,
            destination: [0xff; 6],
            source: [2, 0, 0, 0, 0, 1],
            arp_asks: Some(Ipv4Addr::new(8, 8, 8, 8)),
        };
        assert_eq!(Frame::read(true, &bytes), Some(frame));
        bytes[21] = 2;
        assert_eq!(
            Frame::read(true, &bytes),
            Some(Frame { arp_asks: None, ..frame }),
            "an answer asks for nothing"
        );
        assert_eq!(Frame::read(true, &bytes[..30]), Some(Frame { arp_asks: None, ..frame }));
        assert_eq!(Frame::read(true, &bytes[..13]), None);
    }

    #[test]
    fn the_experiment_is_a_whole_frame() {
        let mac = |text| Mac::parse("mac", text).expect("a MAC");
        let frame = experiment(mac("02:00:5e:10:00:01"), mac("02:00:00:00:00:02"));
        assert_eq!(frame.len(), 60);
        assert_eq!(frame[..14], [2, 0, 0, 0, 0, 2, 2, 0, 0x5e, 0x10, 0, 1, 0x88, 0xb5]);
    }
}
