//! What the proofs of the verdict share: on the host in `netpath-ebpf/tests/reference.rs`, in the kernel in
//! `netpath/tests/bpf_programs`.
#![allow(dead_code, reason = "each of the two proofs uses a part")]

pub(crate) mod cases;
pub(crate) mod frames;
pub(crate) mod image;
pub(crate) mod model;
pub(crate) mod reference;
mod table_ports;
mod table_v4;
mod table_v6;
