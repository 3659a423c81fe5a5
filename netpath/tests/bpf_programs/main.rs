//! The compiled programs in the running kernel, by `BPF_PROG_TEST_RUN`: the same case table as on the host, and
//! what only programs do: count, report, stamp, and let the host alone.
//!
//! Needs root, the eBPF object and `bpftool`, and fails without. What a test run cannot show (frames below 14
//! bytes, tags beside the frame, non-linear frames, XDP's stamp arriving at TC) is shown on real interfaces
//! elsewhere.

mod bpftool;
mod counting;
mod events;
mod flows;
mod host;
mod node;
mod reject;
mod rules;
mod sender;
mod verdicts;
mod zones;

#[path = "../../../netpath-ebpf/tests/verdict/mod.rs"]
mod verdict;
