//! `netpath pods`

use std::process::ExitCode;

use netpath_ebpf::abi::{Counters, Reject};
use serde_json::{Value, json};

use super::{
    say,
    table::{
        Align::{self, Left, Right},
        Table,
    },
    view::{self, Format, Output, Row, View},
};
use crate::{kernel::bpf::maps::MapsError, root::Root};

/// Arguments of `netpath pods`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Show MACs, all addresses, zones, ids and bytes as well.
    #[arg(short, long)]
    wide: bool,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(root: &Root, args: &Args) -> anyhow::Result<ExitCode> {
    let Some(maps) = view::open(root)? else {
        let empty = json!({ "loaded": false, "pods": [], "unpoliced": [] });
        return Ok(view::nothing_loaded(root, args.output, &empty));
    };
    let view = View::read(root, &maps)?;
    let counters = maps.counters()?;
    let rows: Vec<(&Row, Counters)> =
        view.endpoints.iter().map(|row| (row, counters.endpoint(row.row.id))).collect();
    match args.output.output {
        Format::Json => {
            let pods = rows
                .iter()
                .map(|(row, counters)| Ok(to_json(row, counters, maps.rejects(row.row.id)?)))
                .collect::<Result<Vec<Value>, MapsError>>()?;
            let unpoliced: Vec<Value> = view
                .rowless
                .iter()
                .map(|record| {
                    json!({
                        "namespace": record.pod.as_ref().map(|pod| &pod.namespace),
                        "name": record.pod.as_ref().map(|pod| &pod.name),
                        "container_id": record.container_id.to_string(),
                        "ifname": record.ifname.to_string(),
                        "network": record.network.to_string(),
                        "master": record.master.as_ref().map(|master| &master.name),
                    })
                })
                .collect();
            let answer = json!({ "loaded": true, "pods": pods, "unpoliced": unpoliced });
            say(crate::spec::json::to_text(&answer));
        }
        Format::Table => {
            match rows.is_empty() {
                true => say("no attachment is policed"),
                false => say(table(&rows, args.wide)),
            }
            for record in &view.rowless {
                let (pod, ifname, network) = (record.pod_name(), &record.ifname, &record.network);
                say(format_args!("{pod} {ifname} ({network}) has no row: it is neither policed nor counted"));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

const NARROW: &[(&str, Align)] = &[
    ("POD", Left),
    ("IF", Left),
    ("NETWORK", Left),
    ("MASTER", Left),
    ("IP", Left),
    ("MODE", Left),
    ("TX", Right),
    ("RX", Right),
    ("DROPPED", Right),
    ("AUDITED", Right),
];
const WIDE: &[(&str, Align)] = &[
    ("POD", Left),
    ("IF", Left),
    ("NETWORK", Left),
    ("MASTER", Left),
    ("MAC", Left),
    ("IPS", Left),
    ("ZONE", Left),
    ("MODE", Left),
    ("ID", Right),
    ("TX", Right),
    ("TX BYTES", Right),
    ("RX", Right),
    ("RX BYTES", Right),
    ("DROPPED", Right),
    ("AUDITED", Right),
];

fn table(rows: &[(&Row, Counters)], wide: bool) -> Table {
    let mut table = Table::new(if wide { WIDE } else { NARROW });
    for (row, c) in rows {
        let pod = if row.is_foreign() { "(foreign)".to_owned() } else { row.pod() };
        let ips = row.ips();
        let (dropped, audited) = (c.tx_dropped + c.rx_dropped, c.tx_audited + c.rx_audited);
        let mut cells = vec![pod, row.ifname(), row.network(), row.master.clone()];
        if wide {
            let zone =
                if row.zone.is_empty() { String::new() } else { format!("{}:{}", row.row.zone, row.zone) };
            cells.extend([row.mac(), ips.join(","), zone, row.mode().to_owned(), row.row.id.to_string()]);
            cells.extend([c.tx_packets, c.tx_bytes, c.rx_packets, c.rx_bytes].map(|count| count.to_string()));
        } else {
            // Somebody else's device has no address that we know, and only its MAC tells who it is.
            let ip = if row.is_foreign() { row.mac() } else { first_of(&ips) };
            cells.extend([ip, row.mode().to_owned()]);
            cells.extend([c.tx_packets, c.rx_packets].map(|count| count.to_string()));
        }
        cells.extend([dropped, audited].map(|count| count.to_string()));
        table.row(cells);
    }
    table
}

/// The first of several, and how many more there are.
fn first_of(ips: &[String]) -> String {
    match ips {
        [] => String::new(),
        [only] => only.clone(),
        [first, more @ ..] => format!("{first} +{}", more.len()),
    }
}

fn to_json(row: &Row, c: &Counters, answers: Reject) -> Value {
    let record = row.record.as_ref();
    let pod = record.and_then(|record| record.pod.as_ref());
    json!({
        "kind": if row.is_foreign() { "foreign" } else { "endpoint" },
        "namespace": pod.map(|pod| &pod.namespace),
        "name": pod.map(|pod| &pod.name),
        "container_id": record.map(|record| record.container_id.to_string()),
        "ifname": record.map(|record| record.ifname.to_string()),
        "network": record.map(|record| record.network.to_string()),
        "master": row.master,
        "mac": row.mac(),
        "ips": row.ips(),
        "zone": (!row.zone.is_empty()).then_some(&row.zone),
        "zone_id": (row.row.zone != 0).then_some(row.row.zone),
        "mode": row.mode(),
        "endpoint_id": row.row.id,
        "generation": row.row.generation,
        "tx_packets": c.tx_packets,
        "tx_bytes": c.tx_bytes,
        "rx_packets": c.rx_packets,
        "rx_bytes": c.rx_bytes,
        "tx_dropped": c.tx_dropped,
        "rx_dropped": c.rx_dropped,
        "tx_audited": c.tx_audited,
        "rx_audited": c.rx_audited,
        "rejects_sent": answers.sent,
        "rejects_limited": answers.limited,
    })
}

#[cfg(test)]
mod tests {
    use netpath_ebpf::abi::{Endpoint, EndpointKey, kind, mode};

    use super::*;

    fn row(kind: u8) -> Row {
        let row = Endpoint {
            id: 7,
            generation: 1,
            zone: if kind == kind::ENDPOINT { 3 } else { 0 },
            mode: if kind == kind::ENDPOINT { mode::ENFORCE } else { mode::OFF },
            kind,
            flags: 0,
            cookie: 0,
            v4: if kind == kind::ENDPOINT {
                [[10, 12, 34, 200], [10, 12, 34, 201], [0; 4], [0; 4]]
            } else {
                [[0; 4]; 4]
            },
            gateway_v4: [0; 4],
            pad: [0; 4],
            v6: [[0; 16]; 4],
            link_local: [0; 16],
            gateway_v6: [0; 16],
        };
        Row {
            key: EndpointKey::new(1, [2, 0, 0, 0, 0, 0x0a]),
            row,
            record: None,
            master: "enp0s8".to_owned(),
            zone: if kind == kind::ENDPOINT { "private".to_owned() } else { String::new() },
        }
    }

    #[test]
    fn a_foreign_row_is_shown_as_such() {
        let counters = Counters {
            tx_packets: 5,
            rx_packets: 6,
            tx_dropped: 1,
            rx_dropped: 2,
            rx_audited: 4,
            ..Counters::default()
        };
        let (own, foreign) = (row(kind::ENDPOINT), row(kind::FOREIGN));
        let shown = table(&[(&own, counters), (&foreign, Counters::default())], false).to_string();
        let expected = "\
POD        IF  NETWORK  MASTER  IP                 MODE     TX  RX  DROPPED  AUDITED
-          -   -        enp0s8  10.12.34.200 +1    enforce   5   6        3        4
(foreign)  -   -        enp0s8  02:00:00:00:00:0a  off       0   0        0        0";
        assert_eq!(shown, expected);
    }

    #[test]
    fn wide_shows_all_addresses_and_bytes() {
        let counters = Counters { tx_packets: 5, tx_bytes: 490, ..Counters::default() };
        let shown = table(&[(&row(kind::ENDPOINT), counters)], true).to_string();
        let line = shown.lines().nth(1).expect("a row");
        assert_eq!(
            line.split_whitespace().collect::<Vec<_>>(),
            [
                "-",
                "-",
                "-",
                "enp0s8",
                "02:00:00:00:00:0a",
                "10.12.34.200,10.12.34.201",
                "3:private",
                "enforce",
                "7",
                "5",
                "490",
                "0",
                "0",
                "0",
                "0"
            ]
        );
    }
}
