//! The programs that netpath's are measured beside, and the stage that each of them is called from.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod programs;
#[cfg(target_arch = "bpf")]
mod traffic;

/// The host has nothing to run.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
