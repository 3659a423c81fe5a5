//! Frames by hand: built byte by byte, sent and received by AF_PACKET sockets.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{NetNs, PATIENCE};

/// A MAC address as it stands in a frame.
pub(crate) type Mac = [u8; 6];

/// Every station.
pub(crate) const BROADCAST: Mac = [0xff; 6];

/// Ethertypes.
pub(crate) mod ethertype {
    pub(crate) const IPV4: u16 = 0x0800;
    pub(crate) const ARP: u16 = 0x0806;
    pub(crate) const VLAN: u16 = 0x8100;
    pub(crate) const IPV6: u16 = 0x86dd;
    pub(crate) const QINQ: u16 = 0x88a8;
}

/// IP protocols.
pub(crate) mod protocol {
    pub(crate) const ICMP: u8 = 1;
    pub(crate) const TCP: u8 = 6;
    pub(crate) const UDP: u8 = 17;
    pub(crate) const ICMPV6: u8 = 58;
}

/// An Ethernet frame.
pub(crate) fn ethernet(destination: Mac, source: Mac, ethertype: u16, body: &[u8]) -> Vec<u8> {
    [&destination[..], &source, &ethertype.to_be_bytes(), body].concat()
}

/// An IPv4 packet.
pub(crate) fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, body: &[u8]) -> Vec<u8> {
    let total = u16::try_from(20 + body.len()).expect("a packet").to_be_bytes();
    let mut header = vec![0x45, 0, total[0], total[1], 0, 1, 0, 0, 64, protocol, 0, 0];
    header.extend(source.octets());
    header.extend(destination.octets());
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header.extend(body);
    header
}

/// An IPv6 packet.
pub(crate) fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, next: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).expect("a packet").to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0, length[0], length[1], next, 255];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(body);
    packet
}

/// A UDP datagram whose checksum is wrong: its receiver throws it away without an ICMP error, so that
/// nothing is on the wire but what a test sends.
pub(crate) fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).expect("a datagram");
    let words = [source, destination, length, 0x0bad].map(u16::to_be_bytes).concat();
    [&words[..], payload].concat()
}

/// An ARP body: operation 1 asks, 2 answers.
pub(crate) fn arp(operation: u8, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, operation];
    body.extend(sender.0);
    body.extend(sender.1.octets());
    body.extend(target.0);
    body.extend(target.1.octets());
    body
}

/// An ICMP error of `kind` and `code` that quotes `packet`.
pub(crate) fn icmp_error(kind: u8, code: u8, packet: &[u8]) -> Vec<u8> {
    let mut body = vec![kind, code, 0, 0, 0, 0, 0, 0];
    body.extend(packet);
    let sum = checksum(&body);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    body
}

/// A neighbour advertisement for `target` with the option that names `mac`.
pub(crate) fn advertisement(target: Ipv6Addr, mac: Mac) -> Vec<u8> {
    let mut body = vec![136, 0, 0, 0, 0x60, 0, 0, 0];
    body.extend(target.octets());
    body.extend([2, 1]);
    body.extend(mac);
    body
}

/// A UDP datagram in IPv4 in Ethernet.
pub(crate) fn udp_frame(
    macs: (Mac, Mac),
    source: Ipv4Addr,
    destination: Ipv4Addr,
    ports: (u16, u16),
    payload: &[u8],
) -> Vec<u8> {
    let packet = ipv4(source, destination, protocol::UDP, &udp(ports.0, ports.1, payload));
    ethernet(macs.1, macs.0, ethertype::IPV4, &packet)
}

/// The same in IPv6.
pub(crate) fn udp6_frame(
    macs: (Mac, Mac),
    source: Ipv6Addr,
    destination: Ipv6Addr,
    ports: (u16, u16),
    payload: &[u8],
) -> Vec<u8> {
    let packet = ipv6(source, destination, protocol::UDP, &udp(ports.0, ports.1, payload));
    ethernet(macs.1, macs.0, ethertype::IPV6, &packet)
}

fn checksum(bytes: &[u8]) -> u16 {
    let words =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |b| u32::from(*b)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}

/// A marker no other frame of this run carries.
pub(crate) fn marker() -> Vec<u8> {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("netpath-test-{}-{number:08}.", std::process::id()).into_bytes()
}

/// Whether a frame carries `marker`.
pub(crate) fn carries(frame: &[u8], marker: &[u8]) -> bool {
    frame.windows(marker.len()).any(|window| window == marker)
}

/// A packet socket on one device: sends any bytes, sees what the device receives.
pub(crate) struct RawSocket {
    fd: OwnedFd,
    address: libc::sockaddr_ll,
}

impl RawSocket {
    /// Opens one on `device` of `netns`.
    #[track_caller]
    pub(crate) fn open(netns: &NetNs, device: &str) -> Self {
        let opened = netns.within(|| Self::open_here(device));
        opened.unwrap_or_else(|error| panic!("a packet socket on {device} of {}: {error}", netns.name()))
    }

    fn open_here(device: &str) -> io::Result<Self> {
        let index = nix::net::if_::if_nametoindex(device)?;
        let protocol = u16::try_from(libc::ETH_P_ALL).expect("small").to_be();
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: No memory is passed.
        let fd = check(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
        // SAFETY: The kernel just gave us this descriptor.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        set(&fd, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
        set(&fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 8 << 20)?;
        // SAFETY: All zero is a valid `sockaddr_ll`.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET).expect("small");
        address.sll_protocol = protocol;
        address.sll_ifindex = i32::try_from(index).expect("an index");
        let length = libc::socklen_t::try_from(size_of_val(&address)).expect("small");
        // SAFETY: `address` is a `sockaddr_ll` of `length` bytes and lives through the call.
        check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) })?;
        Ok(Self { fd, address })
    }

    /// Makes the qdisc of the device, and with it nothing else, see what is sent here no more.
    #[track_caller]
    pub(crate) fn bypass_qdisc(&self) {
        set(&self.fd, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1).expect("PACKET_QDISC_BYPASS");
    }

    /// Has a header before each frame that says which checksum is left to others (`PACKET_VNET_HDR`).
    #[track_caller]
    pub(crate) fn leave_checksums(&self) {
        set(&self.fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1).expect("PACKET_VNET_HDR");
    }

    /// Marks what is sent from here on (`SO_MARK`).
    #[track_caller]
    pub(crate) fn mark(&self, mark: u32) {
        set(&self.fd, libc::SOL_SOCKET, libc::SO_MARK, mark.cast_signed()).expect("SO_MARK");
    }

    /// Sends a frame; a device that drops it says so here (ENOBUFS).
    pub(crate) fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: `frame` is readable for its length.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Sends a frame of which the kernel is told that it has this ethertype, whatever it has.
    pub(crate) fn send_as(&self, ethertype: u16, frame: &[u8]) -> io::Result<()> {
        let address = libc::sockaddr_ll { sll_protocol: ethertype.to_be(), ..self.address };
        let length = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
        let (fd, address) = (self.fd.as_raw_fd(), (&raw const address).cast());
        // SAFETY: `frame` is readable for its length, and `address` is a `sockaddr_ll` of `length` bytes.
        let sent = unsafe { libc::sendto(fd, frame.as_ptr().cast(), frame.len(), 0, address, length) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The next frame, if one comes within `patience`.
    pub(crate) fn receive(&self, patience: Duration) -> Option<Vec<u8>> {
        // Floods receive a hundred thousand frames: room for the largest is not made for each.
        thread_local!(static ROOM: RefCell<Vec<u8>> = RefCell::new(vec![0; 1 << 17]));
        readable(&self.fd, patience)?;
        ROOM.with_borrow_mut(|room| {
            // SAFETY: `room` is writable for its length.
            let got = unsafe { libc::recv(self.fd.as_raw_fd(), room.as_mut_ptr().cast(), room.len(), 0) };
            Some(room.get(..usize::try_from(got).ok()?)?.to_vec())
        })
    }

    /// Everything that was received until a frame with `marker` came, that frame excluded.
    #[track_caller]
    pub(crate) fn until(&self, marker: &[u8]) -> Vec<Vec<u8>> {
        let deadline = Instant::now() + PATIENCE;
        let mut frames = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.receive(left) {
                Some(frame) if carries(&frame, marker) => return frames,
                Some(frame) => frames.push(frame),
                None => panic!("no frame with {:?} within {PATIENCE:?}", String::from_utf8_lossy(marker)),
            }
        }
    }
}

/// What takes frames and hands frames out.
pub(crate) trait Port: Send + Sync {
    /// Sends a frame.
    fn send(&self, frame: &[u8]) -> io::Result<()>;
    /// The next frame, if one comes within `patience`.
    fn receive(&self, patience: Duration) -> Option<Vec<u8>>;
}

impl Port for RawSocket {
    fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.send(frame)
    }

    fn receive(&self, patience: Duration) -> Option<Vec<u8>> {
        self.receive(patience)
    }
}

/// The character device of a macvtap, as the process of a virtual machine has it open.
pub(crate) struct Tap {
    device: File,
}

/// What comes before every frame of a tap unless it is told otherwise: `struct virtio_net_hdr`.
const TAP_HEADER: usize = 10;

impl Tap {
    /// Opens the device of the macvtap `name`. The node in /dev may be another namespace's of the same number, so
    /// one is made in `directory` for the moment.
    #[track_caller]
    pub(crate) fn open(netns: &NetNs, name: &str, directory: &Path) -> Self {
        let number = netns.exec(&format!("cat /sys/class/net/{name}/ifindex"));
        let number = netns.exec(&format!("cat /sys/class/net/{name}/tap{}/dev", number.trim()));
        let (major, minor) = number.trim().split_once(':').expect("major:minor");
        let node = directory.join(name);
        super::run(&["mknod", node.to_str().expect("text"), "c", major, minor]);
        let options = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&node);
        let device = options.unwrap_or_else(|error| panic!("{}: {error}", node.display()));
        std::fs::remove_file(&node).expect("it was just made");
        Self { device }
    }
}

impl Port for Tap {
    fn send(&self, frame: &[u8]) -> io::Result<()> {
        (&self.device).write_all(&[&[0; TAP_HEADER][..], frame].concat())
    }

    fn receive(&self, patience: Duration) -> Option<Vec<u8>> {
        readable(&self.device, patience)?;
        let mut frame = vec![0; 1 << 16];
        let got = (&self.device).read(&mut frame).ok()?;
        Some(frame.get(TAP_HEADER..got)?.to_vec())
    }
}

impl<T: Port> Port for Arc<T> {
    fn send(&self, frame: &[u8]) -> io::Result<()> {
        (**self).send(frame)
    }

    fn receive(&self, patience: Duration) -> Option<Vec<u8>> {
        (**self).receive(patience)
    }
}

/// Waits until there is something to be read.
fn readable(file: &impl AsRawFd, patience: Duration) -> Option<()> {
    let mut ready = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let wait = i32::try_from(patience.as_millis()).expect("short");
    // SAFETY: One `pollfd` that lives through the call.
    (unsafe { libc::poll(&raw mut ready, 1, wait) } > 0).then_some(())
}

fn set(fd: &OwnedFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of_val(&value)).expect("small");
    // SAFETY: `value` is an int of `length` bytes.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const value).cast(), length) })?;
    Ok(())
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
