//! `netpath attach`

use std::process::ExitCode;

use anyhow::{Context, bail};

use super::{
    say,
    view::{self, ATTENTION},
};
use crate::{
    kernel::{
        bpf::{attach::inspect, bpffs},
        netlink::Netlink,
    },
    police::{self, MasterLink},
    root::Root,
    state::Lock,
};

/// Arguments of `netpath attach`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Names of the masters; without any, all that masters.json names and that exist.
    #[arg(value_name = "MASTER")]
    masters: Vec<String>,
}

pub(super) fn run(root: &Root, args: &Args) -> anyhow::Result<ExitCode> {
    view::check_rights(root)?;
    let masters = police::masters(root)?;
    let mut node = Netlink::open()?;
    let names = match args.masters.is_empty() {
        true => masters.entries().iter().map(|entry| entry.name().to_owned()).collect(),
        false => args.masters.clone(),
    };
    if names.is_empty() {
        bail!("no master to attach to: name one, or write {}", root.masters().display());
    }
    bpffs::must_be_mounted(&root.bpffs())?;
    let mut alerts = Vec::new();
    for name in names {
        let Some(link) = node.find_link(&name)? else {
            if args.masters.is_empty() {
                say(format_args!("{name}: no such link, skipped"));
                continue;
            }
            bail!("no link `{name}` on this node");
        };
        let all = link.names();
        let entry = masters.find(&all)?.cloned();
        let (index, current) = (link.index, link.name.clone());
        let _lock = Lock::acquire(root)?;
        let attached = police::attach(root, &mut node, &MasterLink { link, entry }, true)
            .with_context(|| format!("cannot attach to `{name}`"))?;
        for change in attached.changes {
            say(view::change(&name, &change));
        }
        // Who stands before us there was attached after us, and stays: only its owner can move it.
        let states = inspect(&root.pins(), attached.id, index)?;
        let ahead = police::ahead(&current, index, &states)?;
        alerts.extend(ahead.iter().map(|(hook, programs)| view::ahead(&name, *hook, programs)));
    }
    for alert in &alerts {
        say(format_args!("ALERT: {alert}"));
    }
    Ok(if alerts.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(ATTENTION) })
}
