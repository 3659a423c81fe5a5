//! `netpath drops`: totals from the maps.

use std::process::ExitCode;

use netpath_ebpf::abi::DropCounters;
use serde_json::{Value, json};

use super::{
    follow, say,
    table::{
        Align::{Left, Right},
        Table,
    },
    view::{self, Format, Output, Row, View},
};
use crate::{
    kernel::bpf::maps::Maps,
    observe::{Direction, Reason},
    root::Root,
};

/// Arguments of `netpath drops`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print drops as they happen, until interrupted. One process a node can do so.
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(root: &Root, args: &Args) -> anyhow::Result<ExitCode> {
    let Some(maps) = view::open(root)? else {
        return Ok(view::nothing_loaded(root, args.output, &json!({ "loaded": false, "drops": [] })));
    };
    if args.follow {
        return follow::run(root, maps, args.output.output);
    }
    let view = View::read(root, &maps)?;
    let lines = lines(&maps, &view)?;
    match args.output.output {
        Format::Json => {
            let drops: Vec<Value> = lines.iter().map(to_json).collect();
            say(crate::spec::json::to_text(&json!({ "loaded": true, "drops": drops })));
        }
        Format::Table if lines.is_empty() => say("nothing was dropped"),
        Format::Table => print(&lines),
    }
    Ok(ExitCode::SUCCESS)
}

/// What one reason dropped of one endpoint in one direction. Without a row the frames were nobody's.
struct Line<'a> {
    row: Option<&'a Row>,
    direction: Direction,
    reason: Reason,
    dropped: u64,
    audited: u64,
}

fn lines<'a>(maps: &Maps, view: &'a View) -> anyhow::Result<Vec<Line<'a>>> {
    let mut lines = Vec::new();
    for row in &view.endpoints {
        lines.extend(split(Some(row), &maps.drops(row.row.id)?));
    }
    lines.extend(split(None, &maps.drops(0)?));
    Ok(lines)
}

/// The reasons of one endpoint that are not zero.
fn split<'a>(row: Option<&'a Row>, counters: &DropCounters) -> Vec<Line<'a>> {
    let directions = [
        (Direction::Tx, &counters.tx_dropped, &counters.tx_audited),
        (Direction::Rx, &counters.rx_dropped, &counters.rx_audited),
    ];
    let mut lines = Vec::new();
    for (direction, dropped, audited) in directions {
        for (number, (dropped, audited)) in (0u8..).zip(dropped.iter().zip(audited)) {
            if (*dropped, *audited) != (0, 0) {
                let reason = Reason::from_number(number);
                lines.push(Line { row, direction, reason, dropped: *dropped, audited: *audited });
            }
        }
    }
    lines
}

/// The table, then one sentence for each reason in it.
fn print(lines: &[Line<'_>]) {
    let mut table = Table::new(&[
        ("POD", Left),
        ("IF", Left),
        ("DIRECTION", Left),
        ("REASON", Left),
        ("DROPPED", Right),
        ("AUDITED", Right),
    ]);
    for line in lines {
        table.row(vec![
            line.row.map_or_else(|| "(nobody's)".to_owned(), who),
            line.row.map(Row::ifname).unwrap_or_default(),
            direction(line.direction).to_owned(),
            line.reason.to_string(),
            line.dropped.to_string(),
            line.audited.to_string(),
        ]);
    }
    say(format_args!("{table}\n"));
    let mut reasons: Vec<Reason> = lines.iter().map(|line| line.reason).collect();
    reasons.sort_unstable();
    reasons.dedup();
    for reason in reasons {
        say(format_args!("{reason}: {}", reason.sentence()));
    }
}

fn who(row: &Row) -> String {
    match &row.record {
        Some(_) => row.pod(),
        None => format!("endpoint {} ({})", row.row.id, row.mac()),
    }
}

/// Which way, seen from the pod.
fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::Tx => "sent",
        Direction::Rx => "received",
    }
}

fn to_json(line: &Line<'_>) -> Value {
    let record = line.row.and_then(|row| row.record.as_ref());
    let pod = record.and_then(|record| record.pod.as_ref());
    json!({
        "namespace": pod.map(|pod| &pod.namespace),
        "name": pod.map(|pod| &pod.name),
        "container_id": record.map(|record| record.container_id.to_string()),
        "ifname": record.map(|record| record.ifname.to_string()),
        "endpoint_id": line.row.map_or(0, |row| row.row.id),
        "master": line.row.map(|row| &row.master),
        "mac": line.row.map(Row::mac),
        "direction": line.direction.label(),
        "reason": line.reason.to_string(),
        "reason_number": line.reason.number(),
        "dropped": line.dropped,
        "audited": line.audited,
        "sentence": line.reason.sentence(),
    })
}

#[cfg(test)]
mod tests {
    use netpath_ebpf::{abi::REASON_SLOTS, drop_reason::DropReason};

    use super::*;

    #[test]
    fn only_reasons_that_happened_are_listed_and_newer_ones_too() {
        let mut counters = DropCounters {
            tx_dropped: [0; REASON_SLOTS],
            rx_dropped: [0; REASON_SLOTS],
            tx_audited: [0; REASON_SLOTS],
            rx_audited: [0; REASON_SLOTS],
        };
        assert!(split(None, &counters).is_empty());
        counters.tx_dropped[DropReason::ZoneDeny as usize] = 3;
        counters.rx_audited[DropReason::ZoneDeny as usize] = 4;
        counters.rx_dropped[31] = 1;
        let found: Vec<_> = split(None, &counters)
            .iter()
            .map(|line| (line.direction.label(), line.reason.to_string(), line.dropped, line.audited))
            .collect();
        let zone_deny = || "zone-deny".to_owned();
        assert_eq!(
            found,
            [("tx", zone_deny(), 3, 0), ("rx", zone_deny(), 0, 4), ("rx", "reason-31".to_owned(), 1, 0)]
        );
    }
}
