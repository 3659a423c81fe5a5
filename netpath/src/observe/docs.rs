//! `docs/drop-reasons.md`, made of the table that the programs are built with.

use std::fmt::Write as _;

use netpath_ebpf::drop_reason::DropReason;

const HEAD: &str = "\
# Drop reasons

Made by `netpath docs drop-reasons` from `netpath-ebpf/src/drop_reason.rs`; edits here are lost.

Why a packet of a policed interface was dropped, or in mode `audit` would have been. The names are the same in
the tool, in metrics, in events and here. Numbers are never reused.

*Sent* is what leaves the pod, *received* what is on its way to it.

| number | name | direction | meaning |
|-------:|------|-----------|---------|
";

/// The page on drop reasons.
pub fn drop_reasons_markdown() -> String {
    let mut page = HEAD.to_owned();
    for &reason in DropReason::ALL {
        let (number, label, sentence) = (reason as u8, reason.label(), reason.sentence());
        // Writing to a `String` cannot fail.
        let _ = writeln!(page, "| {number} | `{label}` | {} | {} |", directions(reason), cell(sentence));
    }
    page
}

/// Which packets can be dropped for `reason`.
fn directions(reason: DropReason) -> &'static str {
    match reason {
        DropReason::SourceV4
        | DropReason::SourceV6
        | DropReason::SourceArp
        | DropReason::SourceNd
        | DropReason::RouterGuard
        | DropReason::SourceMac
        | DropReason::UnknownSource => "sent",
        DropReason::Malformed
        | DropReason::Ethertype
        | DropReason::Vlan
        | DropReason::DhcpServer
        | DropReason::IpOptions
        | DropReason::ExtensionHeader
        | DropReason::LinkLocal
        | DropReason::ZoneDeny
        | DropReason::Fragment
        | DropReason::ZoneNotLoaded => "sent, received",
    }
}

/// Text that does not end its cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `UPDATE_GOLDEN=1` writes the page; without, a page that is missing or different fails.
    #[test]
    fn the_page_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/drop-reasons.md");
        if std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1") {
            std::fs::write(path, drop_reasons_markdown()).expect("docs/drop-reasons.md can be written");
        }
        let page = std::fs::read_to_string(path).expect("docs/drop-reasons.md exists");
        assert_eq!(page, drop_reasons_markdown(), "run this test with UPDATE_GOLDEN=1");
    }

    #[test]
    fn every_reason_has_one_row() {
        let page = drop_reasons_markdown();
        for reason in DropReason::ALL {
            let start = format!("| {} | `{}` | ", *reason as u8, reason.label());
            assert_eq!(page.lines().filter(|line| line.starts_with(&start)).count(), 1, "{start}");
        }
        assert_eq!(page.lines().filter(|line| line.starts_with("| ")).count(), DropReason::ALL.len() + 1);
    }
}
