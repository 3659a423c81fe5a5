//! `netpath uninstall`

use std::{
    fs,
    io::{self, IsTerminal, Write},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::{SigSet, Signal},
};

use super::{
    printable, say,
    sweep::{Witness, sweep},
    view,
};
use crate::{
    flock, install,
    kernel::{
        bpf::{
            attach::strays,
            maps::{Maps, text},
        },
        netlink::Netlink,
    },
    plugin::sweep::known,
    police,
    root::Root,
    state::{self, Lock, Record, Records},
    whole,
};

/// How long it waits for pods that start.
const PATIENCE: Duration = Duration::from_secs(10);

/// Arguments of `netpath uninstall`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
    /// End what is dead first, as `netpath sweep` does, and refuse while anything lives.
    #[arg(long)]
    drained: bool,
    /// Stay afterwards until the process is told to end, and have nothing attached meanwhile: for deploy/uninstall.
    #[arg(long, requires = "yes")]
    stay: bool,
    #[command(flatten)]
    witness: Witness,
}

/// Detaches everything and removes every pin. Needs neither records nor `masters.json` nor readable maps, unless the
/// node is to be drained.
pub(super) fn run(root: &Root, args: &Args) -> anyhow::Result<ExitCode> {
    view::check_rights(root)?;
    let pins = root.pins();
    let count = count(&pins).with_context(|| format!("cannot list {}", pins.display()))?;
    // Maps of another ABI cannot be read, and their pins are removed all the same.
    let masters = Maps::open(&pins).ok().flatten().and_then(|maps| maps.masters().ok()).unwrap_or_default();
    let masters: Vec<String> = masters.iter().map(|(_, row)| text(&row.name)).collect();
    if args.drained && !is_drained(root, &args.witness)? {
        return Ok(ExitCode::FAILURE);
    }
    let running = running(root);
    match count {
        0 => say(format_args!("nothing is loaded below {}", pins.display())),
        _ => say(format_args!(
            "uninstall detaches netpath from {} and removes {count} pins below {}",
            if masters.is_empty() { "every master".to_owned() } else { masters.join(", ") },
            pins.display()
        )),
    }
    let is_installed = root.installed().exists();
    if is_installed {
        say(
            "it takes netpath's CNI configuration and credentials off this node; what stood there before stands there again",
        );
    }
    for record in &running {
        let (pod, ifname) = (record.pod_name(), &record.ifname);
        let policed =
            if record.zone.is_some() { "loses its zone and keeps running" } else { "keeps running" };
        say(format_args!("{pod} ({ifname}) {policed}; its DEL works from {}", root.state().display()));
    }
    tell_of_addresses(root);
    if (count != 0 || is_installed) && !args.yes && !confirmed()? {
        say("nothing was changed");
        return Ok(ExitCode::FAILURE);
    }
    let mut node = Netlink::open()?;
    let mark = root.uninstalled();
    // First of all: an agent must not bring it back. One that cannot be looked for may be there.
    if args.stay || flock::is_held(&root.agent_lock()).unwrap_or(true) {
        whole::replace(&mark, b"")?;
    }
    let undone = || match mark.exists() {
        true => format!("not done: until it is, {} keeps agents and plugins from attaching", mark.display()),
        false => "not done".to_owned(),
    };
    let lock = Lock::acquire_within(root, PATIENCE).with_context(undone)?;
    let detached = police::uninstall(root, &mut node).with_context(undone)?;
    // The directory of all versions goes with the last of them; another version's pins keep it.
    if let Some(parent) = pins.parent() {
        match fs::remove_dir(parent) {
            Ok(()) => {}
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot remove {}", parent.display())),
        }
    }
    if count != 0 {
        let from = if detached.is_empty() { String::new() } else { format!(" from {}", detached.join(", ")) };
        say(format_args!(
            "detached{from}, {count} pins removed; nothing of netpath is in the kernel any more"
        ));
    }
    // Programs first: under Multus again, pods would be strangers to them.
    let restored = install::restore(root).with_context(undone)?;
    restored.iter().for_each(say);
    // Nothing tells such a filter from that of a netpath with another root: it is named, not removed.
    let mut left = false;
    for link in node.links()? {
        for hook in strays(link.index).with_context(|| format!("cannot list the filters of {}", link.name))? {
            left = true;
            let (name, hook) = (&link.name, hook.name());
            eprintln!(
                "netpath: {name} has a filter of a netpath whose pins are gone, or of one with another root, at {hook}: \
                 `netpath attach {name}` takes it over, `tc filter del dev {name} {hook} prio 1` removes it"
            );
        }
    }
    drop(lock);
    if args.stay {
        // Another one that ends meanwhile leaves the mark to this one.
        let file = fs::File::open(&mark).with_context(|| format!("cannot open {}", mark.display()))?;
        let held = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno);
        let _held = held.with_context(|| format!("cannot lock {}", mark.display()))?;
        say("done; waiting to be told to end");
        wait_for_end().context("cannot wait for a signal")?;
    }
    // One that cannot be looked at may be held.
    let is_held = |path: &Path| flock::is_held(path).unwrap_or(true);
    if is_held(&mark) {
        say(format_args!("`netpath uninstall --stay` runs on this node, and keeps {}", mark.display()));
    } else if is_held(&root.agent_lock()) {
        say(format_args!(
            "an agent runs on this node: it attaches and installs nothing while {} is there; remove that file to have it \
             install netpath again",
            mark.display()
        ));
    } else {
        whole::remove(&mark)?;
    }
    Ok(if left { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Waits for a signal that asks the process to end; the first process of a container gets no other that it does not
/// wait for.
fn wait_for_end() -> nix::Result<()> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block()?;
    signals.wait().map(drop)
}

/// Ends what is dead; names what lives.
fn is_drained(root: &Root, witness: &Witness) -> anyhow::Result<bool> {
    let all = sweep(root, witness, false)?;
    let living: Vec<_> = all.iter().filter(|it| it.lives()).collect();
    for it in &living {
        let (name, interfaces) = (it.name(), it.known.interfaces().join(", "));
        eprintln!("netpath: {}", printable(&format!("{name} ({interfaces}) lives: {}", it.why())));
    }
    if !living.is_empty() {
        eprintln!(
            "netpath: nothing was changed but for what is dead: move {} pods off this node",
            living.len()
        );
    }
    Ok(living.is_empty())
}

/// Addresses that stay reserved for ever where DELs go to another plugin from now on.
fn tell_of_addresses(root: &Root) {
    let known = match known(root) {
        Ok(known) => known,
        Err(error) => {
            eprintln!("netpath: {:#}", anyhow::Error::from(error).context("addresses are not shown"));
            return;
        }
    };
    for it in known {
        for (directory, address) in it.reserved(root) {
            let of = it.pod().unwrap_or_else(|| format!("container {}", it.container_id));
            let directory = directory.display();
            say(format_args!(
                "{of}: {address} stays reserved in {directory} unless its DEL comes to netpath"
            ));
        }
    }
}

/// Attachments of this boot. Records that cannot be read are no reason to stay installed.
fn running(root: &Root) -> Vec<Record> {
    let listing = state::boot_id().and_then(|boot| Ok((boot, Records::new(root).all()?)));
    match listing {
        Ok((boot, listing)) => listing.records.into_iter().filter(|record| record.boot_id == boot).collect(),
        Err(error) => {
            eprintln!("netpath: {:#}", anyhow::Error::from(error).context("the records are not shown"));
            Vec::new()
        }
    }
}

fn confirmed() -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() {
        bail!("uninstall asks first, and standard input is no terminal: give --yes");
    }
    let mut err = io::stderr();
    write!(err, "Go on? [y/N] ").and_then(|()| err.flush()).context("cannot ask")?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).context("cannot read the answer")?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// How many files there are below a directory; none if it does not exist.
fn count(directory: &Path) -> io::Result<usize> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut files = 0;
    for entry in entries {
        let entry = entry?;
        files += if entry.file_type()?.is_dir() { count(&entry.path())? } else { 1 };
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_counted_in_depth() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(count(&dir.path().join("absent")).expect("absence is an answer"), 0);
        fs::create_dir_all(dir.path().join("links/1")).expect("directory");
        fs::write(dir.path().join("links/1/egress"), "").expect("file");
        fs::write(dir.path().join("meta"), "").expect("file");
        assert_eq!(count(dir.path()).expect("readable"), 2);
    }
}
