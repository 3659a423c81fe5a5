//! Effects on the kernel: namespaces, netlink, packet sockets, ARP, sysctls and BPF.

use std::{fs, io, path::Path};

pub mod allocator;
pub mod arp;
pub mod bpf;
pub mod ethtool;
pub mod mounts;
pub mod netlink;
pub mod netns;
pub mod packet;
pub mod pdeathsig;
pub mod sysctl;

/// Whether this is the first process namespace (`PROC_PID_INIT_INO` of `include/linux/proc_ns.h`).
pub fn sees_all_processes() -> io::Result<bool> {
    Ok(fs::read_link("/proc/self/ns/pid")? == Path::new("pid:[4026531836]"))
}
