//! The programs netpath attaches to a master: TC egress, TC ingress and native XDP.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod programs;

/// The host has nothing to run: the library half of this package is what tests and tools use.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
