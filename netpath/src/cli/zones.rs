//! `netpath zones`

use std::process::ExitCode;

use anyhow::Context;
use netpath_ebpf::abi::{zone_flags, zone_verdict};
use serde_json::{Value, json};

use super::{
    say,
    view::{self, Format, Output, View, text},
};
use crate::{
    kernel::bpf::maps::Maps,
    police,
    root::Root,
    zone::{ZoneImage, range_text},
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
        });
    }
    zones.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
    Ok(zones)
}

/// A heading, then the zone's own text, indented.
fn paragraph(zone: &Shown) -> String {
    let Shown { id, name, generation, .. } = zone;
    let mode = if zone.modes.is_empty() { "no mode".to_owned() } else { zone.modes.join(" and ") };
    let used = match &zone.attachments[..] {
        [] => "used by nobody".to_owned(),
        all => format!("used by {}", all.join(", ")),
    };
    let mut text = format!("{name} (row {id}, generation {generation}, {mode}, {used})\n");
    for line in zone.image.to_string().lines() {
        text += &format!("    {line}\n");
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
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::zone::{Zone, compile};

    #[test]
    fn a_zone_is_a_heading_and_its_prefixes() {
        let zone =
            Zone::from_json(&json!({ "local": ["10.12.34.0/24"], "deny": ["10.12.34.13"] })).expect("valid");
        let mut shown = Shown {
            id: 3,
            name: "private".to_owned(),
            generation: 2,
            digest: String::new(),
            image: compile(&zone).expect("fits"),
            modes: vec!["enforce"],
            attachments: vec!["default/net-pod/net1".to_owned()],
        };
        let expected = "\
private (row 3, generation 2, enforce, used by default/net-pod/net1)
    10.12.34.13/32  denied
    10.12.34.0/24   to and from
    everything else is denied
";
        assert_eq!(paragraph(&shown), expected);
        shown.modes.clear();
        shown.attachments.clear();
        assert!(paragraph(&shown).starts_with("private (row 3, generation 2, no mode, used by nobody)\n"));
    }
}
