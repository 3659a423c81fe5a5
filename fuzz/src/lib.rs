//! What must hold for any bytes: one module a fuzz target, each with one function, `check`, that panics where
//! something does not hold.
//!
//! The fuzzer calls it with bytes of its own, `tests/named.rs` with every file in `seeds/` and `regressions/`. Nothing
//! here knows which of the two it is.

pub mod conf;
pub mod event;
pub mod host_local;
pub mod verdict;
pub mod zone;

mod cursor;

/// The table of cases and the reference, as the tests of the programs have them.
#[path = "../../netpath-ebpf/tests/verdict/mod.rs"]
mod table;

/// A fuzz target by its name, which is also that of its directories.
pub struct Target {
    /// As `cargo xtask fuzz` takes it.
    pub name: &'static str,
    /// Panics where something does not hold.
    pub check: fn(&[u8]),
    /// Inputs that reach far, to begin with: file name and content.
    pub seeds: fn() -> Vec<(String, Vec<u8>)>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "verdict", check: verdict::check, seeds: verdict::seeds },
    Target { name: "conf", check: conf::check, seeds: conf::seeds },
    Target { name: "zone", check: zone::check, seeds: zone::seeds },
    Target { name: "event", check: event::check, seeds: event::seeds },
    Target { name: "host_local", check: host_local::check, seeds: host_local::seeds },
];

/// `text` as the name of a file.
fn file_name(text: &str) -> String {
    let dashed: String = text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    dashed.split('-').filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-").to_lowercase()
}
