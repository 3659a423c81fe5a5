//! `cargo xtask fuzz host_local`
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| netpath_fuzz::host_local::check(data));

/// Without a fuzzer there is nothing to run: the tests of this package check named inputs.
#[cfg(not(fuzzing))]
fn main() {}
