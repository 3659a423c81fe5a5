//! `netpath upgrade`

use std::{process::ExitCode, time::Duration};

use anyhow::Context;
use netpath_ebpf::abi::ABI_VERSION;

use super::{
    say,
    view::{self, ATTENTION, NOTHING_LOADED},
};
use crate::{
    kernel::{bpf::attach::Change, netlink::Netlink},
    police::{self, Outcome, Upgraded},
    root::Root,
    spec::Mac,
    state::Lock,
};

/// How long it waits for pods that start: they come one after another.
const PATIENCE: Duration = Duration::from_secs(10);

/// Arguments of `netpath upgrade`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Go back: also take the place of a newer netpath, if that one left word that this one can.
    #[arg(long)]
    roll_back: bool,
}

pub(super) fn run(root: &Root, args: &Args) -> anyhow::Result<ExitCode> {
    view::check_rights(root)?;
    let mut node = Netlink::open()?;
    let outcome = {
        let _lock = Lock::acquire_within(root, PATIENCE)?;
        police::upgrade(root, &mut node, args.roll_back, &mut |step| {
            tracing::debug!(?step, "upgrade");
            Ok(())
        })
        .context("cannot upgrade what is in force")?
    };
    match outcome {
        Outcome::NothingLoaded => {
            say(format_args!(
                "nothing is loaded below {}: the first attachment, or `netpath attach`, makes what this version needs",
                root.pins().display()
            ));
            Ok(ExitCode::from(NOTHING_LOADED))
        }
        Outcome::UpToDate => {
            say("what is in force is of this build, and the maps have the sizes of settings.json");
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Replaced(changes) => {
            for (master, change) in changes {
                say(view::change(&master, &change));
            }
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Upgraded(done) => Ok(report(&done)),
    }
}

fn report(done: &Upgraded) -> ExitCode {
    for (master, hook, via) in &done.hooks {
        say(view::change(master, &Change::Replaced(*hook, *via)));
    }
    say(summary(done));
    for (key, record) in &done.closed {
        let who = match record {
            Some(record) => format!("{} ({})", record.pod_name(), record.ifname),
            None => format!("the attachment with MAC {}", Mac::new(key.mac)),
        };
        say(format_args!(
            "ALERT: {who} has a zone that this version cannot read from its record, so nothing passes: apply its network \
             with `netpath apply`, or delete the pod"
        ));
    }
    if done.closed.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(ATTENTION) }
}

/// What is in force now, and what it took over.
fn summary(done: &Upgraded) -> String {
    let what = match (done.from == ABI_VERSION, done.resized.is_empty()) {
        (false, _) => format!("ABI {ABI_VERSION} is in force instead of ABI {}", done.from),
        (true, false) => "the maps have the sizes of settings.json".to_owned(),
        (true, true) => "an upgrade that was ended half-way is finished".to_owned(),
    };
    let rows = if done.rows == 1 { "1 attachment".to_owned() } else { format!("{} attachments", done.rows) };
    let swept = match done.swept {
        0 => String::new(),
        1 => "; 1 row that nobody has was left behind".to_owned(),
        count => format!("; {count} rows that nobody has were left behind"),
    };
    if done.hooks.is_empty() && done.rows == 0 {
        return format!("{what}{swept}");
    }
    format!("{what}: {rows} carried over, with zones and counters{swept}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_says_what_is_in_force_and_what_was_carried_over() {
        let mut done = Upgraded {
            from: ABI_VERSION - 1,
            resized: Vec::new(),
            finished: false,
            hooks: Vec::new(),
            rows: 2,
            swept: 0,
            closed: Vec::new(),
        };
        let instead = format!("ABI {ABI_VERSION} is in force instead of ABI {}", ABI_VERSION - 1);
        assert_eq!(summary(&done), format!("{instead}: 2 attachments carried over, with zones and counters"));
        done.from = ABI_VERSION;
        done.resized.push("endpoints");
        (done.rows, done.swept) = (1, 1);
        assert_eq!(
            summary(&done),
            "the maps have the sizes of settings.json: 1 attachment carried over, with zones and counters; 1 row that \
             nobody has was left behind"
        );
        done.resized.clear();
        (done.rows, done.swept) = (0, 0);
        assert_eq!(summary(&done), "an upgrade that was ended half-way is finished");
    }
}
