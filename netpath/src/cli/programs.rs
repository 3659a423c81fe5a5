//! `netpath programs`

use std::process::ExitCode;

use super::say;
use crate::kernel::bpf::{Hook, object};

/// Loads each program without attaching it, into maps that go with this process.
pub(super) fn run() -> anyhow::Result<ExitCode> {
    for program in object::verify()? {
        let mut row = serde_json::json!({
            "name": program.hook.name(),
            "verified_instructions": program.verified,
            "translated_bytes": program.translated,
            "tc_or_xdp": if program.hook == Hook::Xdp { "xdp" } else { "tc" },
        });
        // XDP judges what came by the wire, which no namespace of this node has sent.
        if program.hook != Hook::Xdp {
            row["netns_cookie_by"] = program.netns_cookie.into();
        }
        say(row);
    }
    Ok(ExitCode::SUCCESS)
}
