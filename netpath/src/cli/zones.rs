//! `netpath zones`

use std::process::ExitCode;

use anyhow::Context;
use netpath_ebpf::abi::{REST_ALLOW, REST_DENY, zone_flags, zone_verdict};
use serde_json::{Value, json};

use super::{
    say,
    table::{
        Align::{Left, Right},
        Table,
    },
    view::{self, Format, Output, View},
};
use crate::{
    kernel::bpf::{
        maps::{Maps, text},
        rules::RuleCount,
    },
    police,
    root::Root,
    zone::{List, ZoneImage, ZoneRule, range_text},
};

/// Arguments of `netpath zones`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    output: Output,
}

/// A zone as the kernel holds it, and who has it.
struct Shown {
    id: u32,
    name: String,
    generation: u64,
    digest: String,
    image: ZoneImage,
    /// Modes of the attachments that have it, each once.
    modes: Vec<&'static str>,
    attachments: Vec<String>,
    /// What each entry has decided.
    counts: Vec<RuleCount>,
}

pub(super) fn run(root: &Root, args: &Args) -> anyhow::Result<ExitCode> {
    let Some(maps) = view::open(root)? else {
        return Ok(view::nothing_loaded(root, args.output, &json!({ "loaded": false, "zones": [] })));
    };
    let zones = read(root, &maps)?;
    match args.output.output {
        Format::Json => {
            let zones: Vec<Value> = zones.iter().map(to_json).collect();
            say(crate::spec::json::to_text(&json!({ "loaded": true, "zones": zones })));
        }
        Format::Table if zones.is_empty() => say("no zone is loaded"),
        Format::Table => say(zones.iter().map(paragraph).collect::<Vec<_>>().join("\n").trim_end()),
    }
    Ok(ExitCode::SUCCESS)
}

fn read(root: &Root, maps: &Maps) -> anyhow::Result<Vec<Shown>> {
    let view = View::read(root, maps)?;
    let mut zones = Vec::new();
    for zone in &view.zones {
        // Taken out of force since they were listed.
        let Some(content) = maps.zone_content(zone.id)? else { continue };
        let image = police::image(&content).with_context(|| format!("cannot read zone {}", zone.id))?;
        let counts = maps.rule_counts(zone.id)?;
        let having: Vec<_> = view.endpoints.iter().filter(|row| row.row.zone == zone.id).collect();
        let mut modes: Vec<_> = having.iter().map(|row| row.mode()).collect();
        modes.sort_unstable();
        modes.dedup();
        zones.push(Shown {
            id: zone.id,
            name: text(&zone.info.name),
            generation: content.slot.generation,
            digest: zone.info.digest.iter().map(|byte| format!("{byte:02x}")).collect(),
            image,
            modes,
            attachments: having
                .iter()
                .filter_map(|row| view.attachment(row.row.id, row.row.generation))
                .collect(),
            counts,
        });
    }
    zones.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
    Ok(zones)
}

/// Who a row of counters is: text for people, and whether it allows.
enum Decider {
    Entry(ZoneRule),
    Nobody,
    Rest {
        allows: bool,
    },
    /// A row that this program did not write.
    Unknown,
}

impl Decider {
    fn of(count: &RuleCount) -> Self {
        match count.number {
            0 => Self::Nobody,
            REST_ALLOW => Self::Rest { allows: true },
            REST_DENY => Self::Rest { allows: false },
            _ => ZoneRule::from_maps(&count.rule).map_or(Self::Unknown, Self::Entry),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Entry(rule) => rule.to_string(),
            Self::Nobody => "no entry".to_owned(),
            Self::Rest { allows: true } => "further entries of local and allow".to_owned(),
            Self::Rest { allows: false } => "further entries of deny".to_owned(),
            Self::Unknown => "an entry that cannot be read".to_owned(),
        }
    }

    fn allows(&self) -> bool {
        match self {
            Self::Entry(rule) => rule.list != List::Deny,
            Self::Rest { allows } => *allows,
            Self::Nobody | Self::Unknown => false,
        }
    }
}

impl Shown {
    /// The entries, those that allow first as they are numbered, then "no entry". Rows that stand for several are
    /// shown where they have counted.
    fn deciders(&self) -> Vec<(Decider, &RuleCount)> {
        let all = self.counts.iter().map(|count| (Decider::of(count), count));
        let used = |decider: &Decider, count: &RuleCount| {
            !matches!(decider, Decider::Rest { .. }) || count.counters != Default::default()
        };
        let mut shown: Vec<_> = all.filter(|(decider, count)| used(decider, count)).collect();
        shown.sort_by_key(|(decider, count)| match decider {
            Decider::Entry(rule) => (0, rule.list, count.number),
            Decider::Unknown => (1, List::Deny, count.number),
            Decider::Rest { allows: true } => (2, List::Deny, 0),
            Decider::Rest { allows: false } => (2, List::Deny, 1),
            Decider::Nobody => (3, List::Deny, 0),
        });
        shown
    }
}

/// What each entry decided.
fn counts(zone: &Shown) -> Table {
    let mut table = Table::new(&[
        ("ENTRY", Left),
        ("VERDICT", Left),
        ("SENT", Right),
        ("BYTES", Right),
        ("RECEIVED", Right),
        ("BYTES", Right),
    ]);
    for (decider, RuleCount { counters, .. }) in zone.deciders() {
        table.row(vec![
            decider.text(),
            if decider.allows() { "allowed" } else { "denied" }.to_owned(),
            counters.tx_packets.to_string(),
            counters.tx_bytes.to_string(),
            counters.rx_packets.to_string(),
            counters.rx_bytes.to_string(),
        ]);
    }
    table
}

/// A heading, then the zone's own text and what its entries decided, indented.
fn paragraph(zone: &Shown) -> String {
    let Shown { id, name, generation, .. } = zone;
    let mode = if zone.modes.is_empty() { "no mode".to_owned() } else { zone.modes.join(" and ") };
    let used = match &zone.attachments[..] {
        [] => "used by nobody".to_owned(),
        all => format!("used by {}", all.join(", ")),
    };
    let mut text = format!("{name} (row {id}, generation {generation}, {mode}, {used})\n");
    for line in zone.image.to_string().lines().chain([""]).chain(counts(zone).to_string().lines()) {
        text += format!("    {line}").trim_end();
        text.push('\n');
    }
    text
}

fn to_json(zone: &Shown) -> Value {
    let prefixes: Vec<Value> = zone
        .image
        .prefixes()
        .map(|(prefix, word)| {
            let ruling = zone.image.ruling(word);
            let ports: Vec<Value> = ruling
                .ranges
                .iter()
                .map(|range| {
                    let verdicts = u32::from(range.verdicts);
                    json!({
                        "ports": range_text(range),
                        "egress": verdicts & zone_verdict::EGRESS != 0,
                        "ingress": verdicts & zone_verdict::INGRESS != 0,
                    })
                })
                .collect();
            json!({
                "prefix": prefix.to_string(),
                "egress": word & zone_verdict::EGRESS != 0,
                "ingress": word & zone_verdict::INGRESS != 0,
                "ports": ports,
            })
        })
        .collect();
    let entries: Vec<Value> = zone.deciders().iter().map(entry_json).collect();
    let flag = |bit: u32| zone.image.flags() & bit != 0;
    json!({
        "id": zone.id,
        "name": zone.name,
        "generation": zone.generation,
        "digest": zone.digest,
        "modes": zone.modes,
        "prefixes": prefixes,
        "ingress_any": flag(zone_flags::INGRESS_ANY),
        "on_deny": if flag(zone_flags::REJECT) { "reject" } else { "drop" },
        "has_v6": flag(zone_flags::HAS_V6),
        "trie_v4": flag(zone_flags::TRIE_V4),
        "trie_v6": flag(zone_flags::TRIE_V6),
        "attachments": zone.attachments,
        "entries": entries,
    })
}

fn entry_json((decider, count): &(Decider, &RuleCount)) -> Value {
    let entry = match decider {
        Decider::Entry(rule) => Some(rule),
        _ => None,
    };
    let ports = entry.map(|rule| rule.entry.ports().iter().map(ToString::to_string).collect::<Vec<_>>());
    json!({
        "rule": count.number,
        "kind": match decider {
            Decider::Entry(rule) => rule.list.name(),
            Decider::Nobody => "none",
            Decider::Rest { .. } => "rest",
            Decider::Unknown => "unknown",
        },
        "prefix": entry.map(|rule| rule.entry.prefix().to_string()),
        "ports": ports,
        "allows": decider.allows(),
        "tx_packets": count.counters.tx_packets,
        "tx_bytes": count.counters.tx_bytes,
        "rx_packets": count.counters.rx_packets,
        "rx_bytes": count.counters.rx_bytes,
    })
}

#[cfg(test)]
mod tests {
    use netpath_ebpf::abi::{Rule, RuleCounters};
    use serde_json::json;

    use super::*;
    use crate::zone::{Zone, compile};

    #[test]
    fn a_zone_is_a_heading_and_its_prefixes() {
        let zone =
            Zone::from_json(&json!({ "local": ["10.12.34.0/24"], "deny": ["10.12.34.13"] })).expect("valid");
        let image = compile(&zone).expect("fits");
        let none = RuleCount { number: 0, rule: Rule::default(), counters: RuleCounters::default() };
        let sent =
            |packets| RuleCounters { tx_packets: packets, tx_bytes: 100 * packets, ..Default::default() };
        let mut counts = vec![
            RuleCount { counters: sent(3), ..none },
            RuleCount { number: REST_ALLOW, ..none },
            RuleCount { number: REST_DENY, counters: sent(1), ..none },
        ];
        for (number, rule) in (1..).zip(image.rules()) {
            counts.push(RuleCount { number, rule: *rule, counters: sent(10 * u64::from(number)) });
        }
        let mut shown = Shown {
            id: 3,
            name: "private".to_owned(),
            generation: 2,
            digest: String::new(),
            image,
            modes: vec!["enforce"],
            attachments: vec!["default/net-pod/net1".to_owned()],
            counts,
        };
        let expected = "\
private (row 3, generation 2, enforce, used by default/net-pod/net1)
    10.12.34.13/32  denied
    10.12.34.0/24   to and from
    everything else is denied

    ENTRY                    VERDICT  SENT  BYTES  RECEIVED  BYTES
    local 10.12.34.0/24      allowed    10   1000         0      0
    deny 10.12.34.13/32      denied     20   2000         0      0
    further entries of deny  denied      1    100         0      0
    no entry                 denied      3    300         0      0
";
        assert_eq!(paragraph(&shown), expected);
        assert_eq!(
            to_json(&shown)["entries"][1],
            json!({
                "rule": 2, "kind": "deny", "prefix": "10.12.34.13/32", "ports": [], "allows": false,
                "tx_packets": 20, "tx_bytes": 2000, "rx_packets": 0, "rx_bytes": 0,
            })
        );
        shown.modes.clear();
        shown.attachments.clear();
        assert!(paragraph(&shown).starts_with("private (row 3, generation 2, no mode, used by nobody)\n"));
    }
}
