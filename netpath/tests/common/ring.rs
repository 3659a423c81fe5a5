//! `PACKET_TX_RING`: frames whose packet has 14 linear bytes; the rest is memory that the sender goes on sharing with
//! the kernel.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::NetNs;

/// Bytes that a frame of the ring has.
const SLOT: usize = 2048;
/// `TPACKET_HDRLEN - sizeof(struct sockaddr_ll)`: where in them the kernel looks for the frame (`tpacket_hdr`, version 1).
const AT: usize = 32;

/// A transmit ring.
pub(crate) struct Ring {
    fd: OwnedFd,
    memory: *mut u8,
    slots: usize,
}

// SAFETY: The memory is a mapping of the process; every access is volatile, and races are what it is for.
unsafe impl Sync for Ring {}

/// Sends one frame by a transmit ring of its own.
#[track_caller]
pub(crate) fn send(netns: &NetNs, device: &str, frame: &[u8]) {
    let ring = Ring::open(netns, device, 2);
    ring.write(0, 0, frame);
    ring.submit(1, frame.len());
}

impl Ring {
    /// Opens one of so many frames, an even number, on `device` of `netns`.
    #[track_caller]
    pub(crate) fn open(netns: &NetNs, device: &str, slots: usize) -> Self {
        let ring = netns.within(|| Self::open_here(device, slots).map(|(fd, memory)| (fd, memory as usize)));
        let (fd, memory) =
            ring.unwrap_or_else(|error| panic!("a transmit ring on {device} of {}: {error}", netns.name()));
        Self { fd, memory: memory as *mut u8, slots }
    }

    fn open_here(device: &str, slots: usize) -> io::Result<(OwnedFd, *mut u8)> {
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
        let number = |value: usize| u32::try_from(value).expect("small");
        let request = Request {
            block_size: number(slots * SLOT),
            blocks: 1,
            frame_size: number(SLOT),
            frames: number(slots),
        };
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
        let ring =
            unsafe { libc::mmap(std::ptr::null_mut(), slots * SLOT, access, shared, fd.as_raw_fd(), 0) };
        if ring == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok((fd, ring.cast())) }
    }

    /// Writes bytes of the frame in a slot, whatever the kernel does with it at the moment.
    pub(crate) fn write(&self, slot: usize, at: usize, bytes: &[u8]) {
        assert!(slot < self.slots && AT + at + bytes.len() <= SLOT, "within the slot");
        for (index, byte) in bytes.iter().enumerate() {
            // SAFETY: Within the mapping, as asserted.
            unsafe { self.memory.add(slot * SLOT + AT + at + index).write_volatile(*byte) };
        }
    }

    /// Has the first `count` slots sent, as frames of `length` bytes. A drop says ENOBUFS, which is no failure here.
    pub(crate) fn submit(&self, count: usize, length: usize) {
        for slot in 0..count.min(self.slots) {
            // SAFETY: The header stands at the beginning of its slot, aligned as the mapping is.
            unsafe {
                let header = self.memory.add(slot * SLOT).cast::<libc::tpacket_hdr>();
                (&raw mut (*header).tp_len).write_volatile(u32::try_from(length).expect("short"));
                (&raw mut (*header).tp_status).write_volatile(libc::TP_STATUS_SEND_REQUEST.into());
            }
        }
        // SAFETY: No memory is passed: the frames lie in the ring.
        unsafe { libc::send(self.fd.as_raw_fd(), std::ptr::null(), 0, 0) };
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: Mapped by `open_here`, and nobody has a reference into it.
        unsafe { libc::munmap(self.memory.cast(), self.slots * SLOT) };
    }
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
