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
#[path = "../common/loaded.rs"]
mod loaded;
mod node;
mod reject;
mod rules;
mod sender;
mod verdicts;
mod zones;

use netpath::kernel::bpf::told;

/// Whoever loads them leaves them as they are (`bpf/loader.rs`).
#[test]
fn programs_have_nothing_to_be_relocated_by_types_of_the_kernel() {
    let has = told::with_what_is_known(|object, _| Ok(object.has_btf_relocations()));
    assert!(!has.expect("it can be parsed"));
}

#[path = "../../../netpath-ebpf/tests/verdict/mod.rs"]
mod verdict;
