//! The eBPF programs of netpath: their ABI, their verdict and what both are made of.
//!
//! The library part has no maps and no pointers. It builds for the BPF target, where `src/bin/netpath.rs`
//! wraps it in programs, and for the host, where tests and tools call the same functions.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod abi;
pub mod bits;
pub mod checksum;
pub mod drop_reason;
pub mod flow;
pub mod packet;
pub mod reply;
pub mod verdict;
