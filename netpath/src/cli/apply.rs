//! `netpath apply`: a changed network for the pods that run.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, anyhow, bail};

use super::{
    manifest::{self, Network},
    say,
    view::{self, NOTHING_LOADED, text},
};
use crate::{
    exec::{self, Effects, UndoStack},
    kernel::{
        bpf::maps::Maps,
        netlink::{Link, Netlink},
        netns::{self, Netns},
    },
    plan::{self, Guard, Step},
    police::{self, Applied},
    root::Root,
    state::{Lock, Record},
    zone::{Masters, Zone, ZoneConf, resolve},
};

/// Arguments of `netpath apply`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// NetworkAttachmentDefinitions (YAML, or what `kubectl get -o json` prints) or CNI configurations.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// What a network says, held against the master that it resolves to.
struct Resolved {
    link: Link,
    zone: Option<Zone>,
}

/// Applies each network by itself: one that is refused keeps its last good zone and stops no other.
pub(super) fn run(root: &Root, args: &Args) -> anyhow::Result<ExitCode> {
    let mut maps = view::open(root)?;
    refuse_unfinished(root)?;
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
        let result = read(&masters, &mut node, network).and_then(|resolved| match &mut maps {
            Some(maps) => apply(root, maps, network, &resolved),
            None => Ok(()),
        });
        if let Err(error) = result {
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

/// Some hooks would not know of what is applied now.
fn refuse_unfinished(root: &Root) -> anyhow::Result<()> {
    if police::is_unfinished(root)? {
        bail!(
            "an upgrade was ended half-way, and some hooks would not know of what is applied now: run `netpath upgrade`"
        );
    }
    Ok(())
}

fn read(masters: &Masters, node: &mut Netlink, network: &Network) -> anyhow::Result<Resolved> {
    let link =
        police::resolve_master(node, network.master.as_deref())?.ok_or_else(|| match &network.master {
            Some(master) => anyhow!("no link `{master}` on this node, which `master` names"),
            None => anyhow!(
                "it names no `master`, and this node has no default route whose interface it could be"
            ),
        })?;
    let names: Vec<&str> =
        std::iter::once(link.name.as_str()).chain(link.alt_names.iter().map(String::as_str)).collect();
    let entry = masters.find(&names)?;
    if let Some(entry) = entry {
        entry.check_type(&network.conf.kind)?;
    }
    let conf = ZoneConf::from_conf(&network.conf.raw)?;
    let zone = resolve(conf.as_ref(), network.conf.ipam.local_subnets().as_deref(), entry)?;
    for warning in zone.iter().flat_map(Zone::warnings) {
        eprintln!("netpath: {}: {warning}", network.conf.name);
    }
    Ok(Resolved { link, zone })
}

fn apply(root: &Root, maps: &mut Maps, network: &Network, resolved: &Resolved) -> anyhow::Result<()> {
    let (name, master) = (network.conf.name.as_str(), resolved.link.name.as_str());
    let cookie = netns::cookie().unwrap_or(0);
    let found = maps.masters()?;
    let found =
        found.iter().find(|(_, row)| row.ifindex == resolved.link.index && row.netns_cookie == cookie);
    let Some((id, _)) = found else {
        say(format_args!(
            "{name}: valid, and {master} is not under police yet: no pod runs that it applies to"
        ));
        return Ok(());
    };
    let zones: Vec<u32> = police::running(root, maps, *id, name)?
        .iter()
        .map(|(_, _, row)| row.zone)
        .filter(|id| *id != 0)
        .collect();
    maps.settle(&zones)?;
    let (running, applied) = {
        let _lock = Lock::acquire(root)?;
        if !maps.is_in_force() {
            bail!("other maps took the place of those that were read: apply it again");
        }
        // Whoever held the lock may have been ended in the middle of one.
        refuse_unfinished(root)?;
        let running = police::running(root, maps, *id, name)?;
        let applied = police::apply(maps, &running, name, resolved.zone.as_ref())?;
        (running, applied)
    };
    police::remember(root, &running, resolved.zone.as_ref())?;
    say(summary(name, master, resolved.zone.as_ref(), &applied));
    if resolved.zone.is_some() {
        for (record, _, _) in running.iter().filter(|(record, _, _)| record.zone.is_none()) {
            let pod = view::pod_of(record);
            guard(record)
                .with_context(|| format!("the zone is in force for {pod}, and its settings are not"))?;
        }
    }
    Ok(())
}

/// Sets what a policed interface needs set in its own namespace, as ADD does from the beginning.
fn guard(record: &Record) -> anyhow::Result<()> {
    let netns = Netns::open(&record.netns.path)?;
    let identity = netns.identity()?;
    if (identity.dev, identity.ino) != (record.netns.dev, record.netns.inode) {
        // Another sandbox at the same path: the pod has ended.
        return Ok(());
    }
    let mut effects = Effects::open(netns)?;
    let link = effects.link(record.ifname.as_str())?;
    let mut steps = plan::prepare(&record.ifname, link.mtu, &[], Guard::Policed)?;
    steps.retain(|step| matches!(step, Step::SetSysctl { .. }));
    Ok(exec::run(&mut effects, &steps, &mut UndoStack::default())?)
}

/// What was done, and how the zone differs from the one before.
fn summary(name: &str, master: &str, zone: Option<&Zone>, applied: &Applied) -> String {
    let count = applied.endpoints;
    let pods = if count == 1 { "1 attachment".to_owned() } else { format!("{count} attachments") };
    if count == 0 {
        return format!("{name} on {master}: valid; no attachment of it runs, the next one gets it");
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
        let mut applied =
            Applied { endpoints: 2, rewritten: vec![row.clone(), row], modes: 0, generation: Some(2) };
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
            "net on enp0s8: valid; no attachment of it runs, the next one gets it"
        );
    }
}
