//! `netpath programs`

use std::process::ExitCode;

use super::say;
use crate::kernel::bpf::{Hook, object};

/// Loads each program without attaching it, into maps that go with this process.
pub(super) fn run() -> anyhow::Result<ExitCode> {
    for program in object::verify()? {
        say(serde_json::json!({
            "name": program.hook.name(),
            "verified_instructions": program.verified,
            "translated_bytes": program.translated,
            "tc_or_xdp": if program.hook == Hook::Xdp { "xdp" } else { "tc" },
        }));
    }
    Ok(ExitCode::SUCCESS)
}
