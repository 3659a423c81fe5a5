//! `netpath apply`: a changed network for the pods that run.

use std::{cell::RefCell, path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::Context;

use super::{
    manifest, say,
    view::{self, NOTHING_LOADED},
};
use crate::{
    kernel::{
        bpf::maps::{Maps, text},
        netlink::Netlink,
    },
    police::{self, Applied, InForce, Network, NetworkError, PoliceError, Resolved, recorded_zone},
    root::Root,
    state::{Known, Records},
    zone::{Masters, Zone},
};

/// Arguments of `netpath apply`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// NetworkAttachmentDefinitions (YAML, or what `kubectl get -o json` prints) or CNI configurations.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// Applies each network by itself: one that is refused keeps its last good zone and stops no other.
pub(super) fn run(root: &Root, args: &Args) -> anyhow::Result<ExitCode> {
    let mut maps = view::open(root)?;
    if police::is_unfinished(root)? {
        return Err(NetworkError::Unfinished.into());
    }
    let masters = police::masters(root)?;
    let mut node = Netlink::open()?;
    let mut networks = Vec::new();
    for file in &args.files {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        networks.extend(
            manifest::networks(&text).with_context(|| format!("{} cannot be applied", file.display()))?,
        );
    }
    let mut refused = false;
    for network in &networks {
        let name = network.conf.name.as_str();
        let result = resolve(&masters, &mut node, network).and_then(|resolved| match &mut maps {
            Some(maps) => apply(root, maps, network, &resolved),
            None => Ok(()),
        });
        if let Err(error) = result.map_err(anyhow::Error::from) {
            refused = true;
            let kept = kept(maps.as_ref(), name)?;
            eprintln!("netpath: {name} is refused, {kept}: {error:#}");
        }
    }
    match (refused, &maps) {
        (true, _) => Ok(ExitCode::FAILURE),
        (false, Some(_)) => Ok(ExitCode::SUCCESS),
        (false, None) => {
            say(format_args!(
                "{} valid, and nothing is loaded below {}: no pod runs that it could be applied to",
                if networks.len() == 1 { "the network is" } else { "the networks are" },
                root.pins().display()
            ));
            Ok(ExitCode::from(NOTHING_LOADED))
        }
    }
}

fn resolve(masters: &Masters, node: &mut Netlink, network: &Network) -> Result<Resolved, NetworkError> {
    let resolved = network.resolve(masters, node)?;
    for warning in resolved.zone.iter().flat_map(Zone::warnings) {
        eprintln!("netpath: {}: {warning}", network.conf.name);
    }
    Ok(resolved)
}

fn apply(root: &Root, maps: &mut Maps, network: &Network, resolved: &Resolved) -> Result<(), NetworkError> {
    let (name, master) = (network.conf.name.as_str(), resolved.link.name.as_str());
    // They are looked at again under the lock, where only those that are other ones now are read.
    let known = RefCell::new(Known::default());
    let records = || Ok(Records::new(root).outlines(&mut known.borrow_mut())?.into());
    match network.put_in_force(root, maps, resolved, records, |_| true)? {
        Some(InForce { applied, running }) => {
            let zone = resolved.zone.as_ref().map(|zone| recorded_zone(name, zone)).transpose()?;
            police::guard_new(resolved, &running)?;
            for (record, _, _) in &running {
                police::remember(root, record, zone.as_ref())?;
            }
            say(summary(name, master, resolved.zone.as_ref(), &applied));
        }
        None => say(format_args!(
            "{name}: valid, and {master} is not under police yet: no pod runs that it applies to"
        )),
    }
    let elsewhere = records().map_err(PoliceError::from).map_err(NetworkError::from);
    match elsewhere.and_then(|records: Arc<[_]>| network.count_elsewhere(maps, resolved, &records)) {
        Ok(0) => {}
        Ok(1) => say(format_args!(
            "    1 attachment of a network of this name lies on another master, and is left alone"
        )),
        Ok(count) => {
            say(format_args!(
                "    {count} attachments of networks of this name lie on other masters, and are left alone"
            ));
        }
        // What was asked for is done by now.
        Err(error) => eprintln!("netpath: {name}: {:#}", anyhow::Error::from(error)),
    }
    Ok(())
}

/// What was done, and how the zone differs from the one before.
fn summary(name: &str, master: &str, zone: Option<&Zone>, applied: &Applied) -> String {
    let count = applied.endpoints;
    let pods = if count == 1 { "1 attachment".to_owned() } else { format!("{count} attachments") };
    if count == 0 {
        return format!("{name} on {master}: valid; no attachment of it runs there, the next one gets it");
    }
    let Some(zone) = zone else {
        return format!("{name} on {master}: no zone; {pods} counted and not policed from now on");
    };
    let mode = zone.mode().name();
    let generation = applied.generation.unwrap_or(0);
    if applied.rewritten.is_empty() {
        return match applied.modes {
            0 => {
                format!("{name} on {master}: generation {generation} was in force already for {pods}, {mode}")
            }
            _ => format!("{name} on {master}: {mode} for {pods}, generation {generation} as before"),
        };
    }
    let mut text = format!("{name} on {master}: generation {generation} in force for {pods}, {mode}");
    let differences: Vec<String> =
        applied.rewritten.iter().filter_map(|row| row.difference.as_ref()).map(ToString::to_string).collect();
    // Rows that pods of different age had can differ in different ways.
    for (at, difference) in differences.iter().enumerate() {
        if !differences[..at].contains(difference) {
            for line in difference.lines() {
                text += &format!("\n    {line}");
            }
        }
    }
    text
}

/// What stays in force of a network that is refused.
fn kept(maps: Option<&Maps>, network: &str) -> anyhow::Result<String> {
    let Some(maps) = maps else { return Ok("nothing is loaded".to_owned()) };
    let zones = maps.zones()?;
    let own = zones.iter().filter(|row| text(&row.info.name) == network);
    Ok(match own.map(|row| row.slot.generation).max() {
        Some(generation) => format!("generation {generation} of its zone stays in force"),
        None => "no zone of it is in force".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        police::Rewritten,
        zone::{ZoneImage, compile},
    };

    fn zone(local: &str) -> Zone {
        Zone::from_json(&json!({ "local": [local] })).expect("valid")
    }

    #[test]
    fn a_summary_says_what_changed_and_for_how_many() {
        let (old, new) = (zone("10.0.0.0/24"), zone("10.0.1.0/24"));
        let image = |zone| compile(zone).expect("fits");
        let difference = Some(ZoneImage::difference(&image(&old), &image(&new)));
        let row = Rewritten { id: 1, generation: 2, difference };
        let mut applied = Applied {
            endpoints: 2,
            changed: 0,
            rewritten: vec![row.clone(), row],
            modes: 0,
            generation: Some(2),
        };
        assert_eq!(
            summary("net", "enp0s8", Some(&new), &applied),
            "net on enp0s8: generation 2 in force for 2 attachments, enforce\n    - 10.0.0.0/24  to and from\n    \
             + 10.0.1.0/24  to and from"
        );
        applied.rewritten.clear();
        applied.endpoints = 1;
        assert_eq!(
            summary("net", "enp0s8", Some(&new), &applied),
            "net on enp0s8: generation 2 was in force already for 1 attachment, enforce"
        );
        assert_eq!(
            summary("net", "enp0s8", None, &applied),
            "net on enp0s8: no zone; 1 attachment counted and not policed from now on"
        );
        assert_eq!(
            summary("net", "enp0s8", Some(&new), &Applied::default()),
            "net on enp0s8: valid; no attachment of it runs there, the next one gets it"
        );
    }
}
