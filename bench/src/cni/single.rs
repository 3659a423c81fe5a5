//! One pod at a time: every case once a round.

use std::{fs, io::Write as _, os::unix::fs::MetadataExt as _, path::Path, process::Command};

use anyhow::{Context as _, Result};
use nix::sys::stat::{major, minor};

use super::{
    call::{Call, timed},
    lab::{BEYOND, GATEWAY, IFNAME, Lab, MASTER, Pod, Who},
    ratio,
    raw::Raw,
};
use crate::{
    Effort,
    figures::{Figures, Unit},
    order::order,
    samples::Samples,
    say,
};

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    /// `/bin/true`: loads libc and does nothing.
    Exec,
    /// The standard macvlan asked for its version: what a plugin in Go takes to do nothing.
    Go,
    /// netpath asked for its version: what of an ADD is its start.
    Version,
    /// Netlink alone, in process.
    Raw,
    /// `ip -batch` on the node, then in the pod.
    IpBatch,
    /// A plugin.
    Plugin(Who),
    /// A file like host-local's, written and synced to disk.
    Fsync,
}

const ALL: [Case; 10] = [
    Case::Exec,
    Case::Go,
    Case::Version,
    Case::Raw,
    Case::IpBatch,
    Case::Plugin(Who::Loopback),
    Case::Plugin(Who::Whole),
    Case::Plugin(Who::Plain),
    Case::Plugin(Who::Standard),
    Case::Fsync,
];

/// What a case took, in microseconds. Those that make no interface have no DEL.
#[derive(Clone, Copy)]
struct Took {
    add: f64,
    del: Option<f64>,
}

/// Samples of a case.
#[derive(Clone, Default)]
struct Found {
    add: Samples,
    del: Samples,
}

struct Single<'a> {
    lab: &'a Lab,
    pod: Pod,
    raw: Raw,
    /// Of sandboxes so far: each is another one.
    count: u32,
}

/// Runs the cases; the calling thread stands on the node.
pub(super) fn run(lab: &Lab, effort: Effort, figures: &mut Figures) -> Result<()> {
    let rounds = match effort {
        Effort::Quick => 5,
        Effort::Usual => 150,
        Effort::Full => 400,
    };
    let mut single = Single { lab, pod: Pod::new()?, raw: Raw::new(0)?, count: 0 };
    // Programs are attached and files read for the first time.
    for case in ALL {
        single.time(case)?;
    }
    let mut found: Vec<Found> = vec![Found::default(); ALL.len()];
    for round in 0..rounds {
        for at in order(round, ALL.len()) {
            let took = single.time(ALL[at])?;
            found[at].add.push(took.add);
            took.del.into_iter().for_each(|del| found[at].del.push(del));
        }
    }
    lab.check_nothing_left()?;
    record(lab, &found, figures)
}

impl Single<'_> {
    fn time(&mut self, case: Case) -> Result<Took> {
        self.count += 1;
        let took = match case {
            Case::Exec => Call::from(Command::new("/bin/true")).time().map(alone),
            Case::Go => self.version(Who::Standard),
            Case::Version => self.version(Who::Plain),
            Case::Raw => self.raw(),
            Case::IpBatch => self.ip_batch(),
            Case::Plugin(who) => self.plugin(who),
            Case::Fsync => fsync(&self.lab.addresses()).map(alone),
        };
        took.with_context(|| format!("case {case:?}"))
    }

    fn version(&self, who: Who) -> Result<Took> {
        self.lab.call(who, "VERSION", &self.pod.netns, "single").time().map(alone)
    }

    fn raw(&mut self) -> Result<Took> {
        let Self { pod, raw, .. } = self;
        let add = timed(|| raw.add(pod))?;
        pod.attached()?;
        let del = timed(|| Raw::del(pod))?;
        pod.is_bare()?;
        Ok(Took { add, del: Some(del) })
    }

    /// What it makes is taken away by netlink, untimed.
    fn ip_batch(&mut self) -> Result<Took> {
        let name = self.pod.netns.name();
        let (mut node, mut pod) = (Command::new("ip"), Command::new("ip"));
        node.args(["-batch", "-"]);
        pod.args(["-n", name, "-batch", "-"]);
        let made = format!("link add link {MASTER} name {IFNAME} netns {name} type macvlan mode bridge\n");
        let set = format!(
            "addr add 10.96.201.1/16 dev {IFNAME}\nlink set {IFNAME} up\nroute add {BEYOND} via {GATEWAY} dev {IFNAME}\n"
        );
        let mut calls = [Call { command: node, stdin: made }, Call { command: pod, stdin: set }];
        let add = timed(|| calls.iter_mut().try_for_each(Call::run))?;
        self.pod.attached()?;
        Raw::del(&mut self.pod)?;
        Ok(alone(add))
    }

    fn plugin(&mut self, who: Who) -> Result<Took> {
        let Self { lab, pod, count, .. } = self;
        let id = format!("single-{count}");
        let add = lab.call(who, "ADD", &pod.netns, &id).time()?;
        lab.check_added(who, pod)?;
        let del = lab.call(who, "DEL", &pod.netns, &id).time()?;
        lab.check_deleted(who, pod)?;
        Ok(Took { add, del: Some(del) })
    }
}

fn alone(add: f64) -> Took {
    Took { add, del: None }
}

/// A file as host-local writes one for an address, with the sync that neither it nor we ask for.
fn fsync(directory: &Path) -> Result<f64> {
    let path = directory.join("fsync");
    let took = timed(|| {
        let mut file = fs::File::create_new(&path)?;
        file.write_all(b"single-1\r\nnet1")?;
        Ok(file.sync_all()?)
    });
    fs::remove_file(&path)?;
    took
}

fn record(lab: &Lab, found: &[Found], figures: &mut Figures) -> Result<()> {
    let of = |case: Case| {
        let at = ALL.iter().position(|it| *it == case).context("every case was taken")?;
        Ok::<_, anyhow::Error>(found[at].clone())
    };
    let both = |a: &Samples, b: &Samples, f: fn(f64, f64) -> f64| a.paired(b, f).context("rounds are whole");
    let (exec, go, raw) = (of(Case::Exec)?.add, of(Case::Go)?.add, of(Case::Raw)?);
    let (whole, first) = (of(Case::Plugin(Who::Whole))?, of(Case::Plugin(Who::Loopback))?);
    let without = Found {
        add: both(&whole.add, &first.add, |all, first| all - first)?,
        del: both(&whole.del, &first.del, |all, first| all - first)?,
    };
    let fsync = of(Case::Fsync)?.add;
    let floor = Found { add: both(&exec, &raw.add, |a, b| a + b)?, del: raw.del.clone() };
    let standard = of(Case::Plugin(Who::Standard))?;
    let rows = [
        ("a program that does nothing (/bin/true)", "cni/exec", Found { add: exec, ..Found::default() }),
        (
            "a Go plugin that does nothing (macvlan VERSION)",
            "cni/go/version",
            Found { add: go, ..Found::default() },
        ),
        (
            "netpath that does nothing (VERSION)",
            "cni/netpath/version",
            Found { add: of(Case::Version)?.add, ..Found::default() },
        ),
        ("netlink alone, in process", "cni/raw", raw),
        ("`ip -batch` twice", "cni/ip-batch", of(Case::IpBatch)?),
        ("netpath, less its first network's plugin", "cni/netpath", without.clone()),
        ("netpath as meta-plugin, with its first network", "cni/netpath/whole", whole),
        ("that network's plugin (loopback) alone", "cni/loopback", first),
        ("netpath as the plugin `macvlan`", "cni/netpath/plain", of(Case::Plugin(Who::Plain))?),
        ("standard macvlan and host-local", "cni/standard", standard.clone()),
    ];
    say("\n## cni: one pod, one macvlan with an address, a route and a zone, microseconds\n");
    say("| what | ADD | of the floor | the standard plugins, of it | DEL | of netlink's |");
    say("|---|---|---:|---:|---|---:|");
    for (what, name, it) in rows {
        let (mut del, mut above) = (String::new(), String::new());
        if it.del.len() != 0 {
            del = it.del.to_string();
            above = ratio(&it.del, &floor.del);
        }
        let (of_floor, of_it) = (ratio(&it.add, &floor.add), ratio(&standard.add, &it.add));
        say(format_args!("| {what} | {} | {of_floor} | {of_it} | {del} | {above} |", it.add));
        let verbs = it.del.len() != 0 || name == "cni/ip-batch";
        figures.put(if verbs { format!("{name}/add") } else { name.to_owned() }, Unit::Microseconds, it.add);
        if it.del.len() != 0 {
            figures.put(format!("{name}/del"), Unit::Microseconds, it.del);
        }
    }
    say(format_args!(
        "\nThe floor of ADD is starting nothing and netlink alone, one after the other. host-local's file is synced by nobody: \
         with a sync each took {fsync} us to write, on {}, {} of an ADD of netpath.",
        file_system(&lab.addresses())?,
        ratio(&fsync, &without.add)
    ));
    figures.put("cni/fsync", Unit::Microseconds, fsync);
    Ok(())
}

/// The file system that a directory is on. ext4 without a journal reads all that was deleted within a minute to make a file.
fn file_system(directory: &Path) -> Result<String> {
    let mut command = Command::new("findmnt");
    command.args(["--noheadings", "--output", "FSTYPE", "--target"]).arg(directory);
    let output = command.output().context("cannot start findmnt")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let kind = text.lines().next_back().context("findmnt knows no mount of the bench's directory")?.trim();
    // By what the kernel calls the device: a mount may name it by a path of its own.
    let device = fs::metadata(directory)?.dev();
    let device = fs::canonicalize(format!("/sys/dev/block/{}:{}", major(device), minor(device)));
    let (Ok(device), Ok(journals)) = (device, fs::read_dir("/proc/fs/jbd2")) else {
        return Ok(kind.to_owned());
    };
    let journal = format!("{}-", device.file_name().unwrap_or_default().to_string_lossy());
    let is_journaled = journals.flatten().any(|it| it.file_name().to_string_lossy().starts_with(&journal));
    Ok(format!("{kind}{}", if kind == "ext4" && !is_journaled { " without a journal" } else { "" }))
}
