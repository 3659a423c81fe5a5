//! Effects on the kernel: namespaces, netlink, sysctls and BPF.

pub mod bpf;
pub mod ethtool;
pub mod netlink;
pub mod netns;
pub mod pdeathsig;
pub mod sysctl;
