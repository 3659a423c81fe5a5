//! `PACKET_TX_RING`: frames whose packet has 14 linear bytes, the rest in fragments.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::NetNs;

/// Sends one frame by a transmit ring of its own (`tpacket_hdr`, version 1).
#[track_caller]
pub(crate) fn send(netns: &NetNs, device: &str, frame: &[u8]) {
    let sent = netns.within(|| send_here(device, frame));
    sent.unwrap_or_else(|error| panic!("a transmit ring on {device} of {}: {error}", netns.name()));
}

fn send_here(device: &str, frame: &[u8]) -> io::Result<()> {
    const BLOCK: usize = 4096;
    /// `TPACKET_HDRLEN - sizeof(struct sockaddr_ll)`: where the kernel looks for the frame.
    const AT: usize = 32;
    #[repr(C)]
    struct Request {
        block_size: u32,
        blocks: u32,
        frame_size: u32,
        frames: u32,
    }
    let index = i32::try_from(nix::net::if_::if_nametoindex(device)?).expect("an index");
    // SAFETY: No memory is passed.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: The kernel just gave us this descriptor.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let block = u32::try_from(BLOCK).expect("small");
    let request = Request { block_size: block, blocks: 1, frame_size: block, frames: 1 };
    let length = libc::socklen_t::try_from(size_of::<Request>()).expect("small");
    let value = (&raw const request).cast();
    // SAFETY: `request` has the layout of `struct tpacket_req` and lives through the call.
    check(unsafe {
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_TX_RING, value, length)
    })?;
    // SAFETY: All zero is a valid `sockaddr_ll`.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).expect("small");
    address.sll_ifindex = index;
    let length = libc::socklen_t::try_from(size_of_val(&address)).expect("small");
    // SAFETY: `address` is a `sockaddr_ll` of `length` bytes and lives through the call.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) })?;
    let (access, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: A fresh mapping of the ring, as long as was asked for above.
    let ring = unsafe { libc::mmap(std::ptr::null_mut(), BLOCK, access, shared, fd.as_raw_fd(), 0) };
    if ring == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    assert!(AT + frame.len() <= BLOCK, "one block is the ring");
    // SAFETY: The ring is one block; header and frame lie within it, and nothing else refers to it.
    unsafe {
        std::ptr::copy_nonoverlapping(frame.as_ptr(), ring.cast::<u8>().add(AT), frame.len());
        let header = ring.cast::<libc::tpacket_hdr>();
        (*header).tp_len = u32::try_from(frame.len()).expect("short");
        (*header).tp_status = libc::TP_STATUS_SEND_REQUEST.into();
    }
    // SAFETY: No memory is passed: the frame lies in the ring. A drop says ENOBUFS, which is no failure here.
    unsafe { libc::send(fd.as_raw_fd(), std::ptr::null(), 0, 0) };
    // SAFETY: Mapped above, and not used any more.
    check(unsafe { libc::munmap(ring, BLOCK) })
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
