//! Many pods at once, as when a node boots: all begin together, and the last end counts.

use std::{process::Command, sync::Barrier, thread, time::Instant};

use anyhow::{Context as _, Result, anyhow};

use super::{
    call::Call,
    lab::{Lab, Pod, Who},
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

/// Who is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    /// Threads of this process, by netlink, each with sockets that are open already.
    Raw,
    /// A process a pod.
    Plugin(Who),
}

const ALL: [(Case, &str, &str); 5] = [
    (Case::Raw, "netlink alone, a thread each", "cni/burst/raw"),
    (Case::Plugin(Who::Plain), "netpath as the plugin `macvlan`, a process each", "cni/burst/netpath"),
    (Case::Plugin(Who::Whole), "netpath as meta-plugin, with its first network", "cni/burst/netpath/whole"),
    (Case::Plugin(Who::Loopback), "that network's plugin (loopback) alone", "cni/burst/loopback"),
    (Case::Plugin(Who::Standard), "standard macvlan and host-local", "cni/burst/standard"),
];

/// How much is done.
struct Size {
    /// ADDs at once.
    adds: usize,
    /// DELs at once.
    dels: usize,
    rounds: usize,
}

/// Runs the cases; the calling thread stands on the node, and so do the threads that it starts.
pub(super) fn run(lab: &Lab, effort: Effort, figures: &mut Figures) -> Result<()> {
    let Size { adds, dels, rounds } = match effort {
        Effort::Quick => Size { adds: 8, dels: 8, rounds: 1 },
        Effort::Usual => Size { adds: 100, dels: 48, rounds: 7 },
        Effort::Full => Size { adds: 100, dels: 48, rounds: 15 },
    };
    let mut pods =
        (0..adds).map(|number| Ok((Pod::new()?, Raw::new(number)?))).collect::<Result<Vec<(Pod, Raw)>>>()?;
    let mut found = vec![(Samples::default(), Samples::default()); ALL.len()];
    let mut nothing = Samples::default();
    for round in 0..rounds {
        let programs = (0..adds).map(|_| Call::from(Command::new("/bin/true")));
        nothing.push(at_once(programs, |mut call| call.run()).context("many at once, /bin/true")?);
        for at in order(round, ALL.len()) {
            let case = ALL[at].0;
            let of = |verb: &str| format!("{verb}, many at once, case {case:?}");
            let took = add(lab, case, &mut pods, round).with_context(|| of("ADD"))?;
            found[at].0.push(took);
            let (some, others) = pods.split_at_mut(dels);
            let took = del(lab, case, some, 0, round).with_context(|| of("DEL"))?;
            // Each: the whole, by their number.
            found[at].1.push(took / f64::from(u32::try_from(dels)?));
            del(lab, case, others, dels, round).with_context(|| of("DEL"))?;
        }
    }
    lab.check_nothing_left()?;
    say(format_args!("\n## cni: {adds} pods at once, milliseconds, {rounds} rounds\n"));
    say(format_args!(
        "| who | {adds} ADDs, in all | of netlink alone | {dels} DELs, each | of netlink alone |"
    ));
    say("|---|---|---:|---|---:|");
    let (raw_add, raw_del) = found[0].clone();
    let of_raw = ratio(&nothing, &raw_add);
    say(format_args!(
        "| a program that does nothing (/bin/true), a process each | {nothing} | {of_raw} | | |"
    ));
    figures.put("cni/burst/exec", Unit::Milliseconds, nothing);
    for ((_, what, name), (add, del)) in ALL.into_iter().zip(found) {
        say(format_args!(
            "| {what} | {add} | {} | {del} | {} |",
            ratio(&add, &raw_add),
            ratio(&del, &raw_del)
        ));
        figures.put(format!("{name}/add"), Unit::Milliseconds, add);
        figures.put(format!("{name}/del"), Unit::Milliseconds, del);
    }
    Ok(())
}

/// Attaches all of them at once; milliseconds from the first beginning to the last end.
fn add(lab: &Lab, case: Case, pods: &mut [(Pod, Raw)], round: usize) -> Result<f64> {
    let took = match case {
        Case::Raw => at_once(pods.iter_mut(), |(pod, raw)| raw.add(pod))?,
        Case::Plugin(who) => at_once(calls(lab, who, "ADD", pods, 0, round), |mut call| call.run())?,
    };
    for (pod, _) in pods {
        match case {
            Case::Raw => pod.attached().map(drop)?,
            Case::Plugin(who) => lab.check_added(who, pod)?,
        }
    }
    Ok(took)
}

/// Ends all of them at once, of which the first one has the number `first`.
fn del(lab: &Lab, case: Case, pods: &mut [(Pod, Raw)], first: usize, round: usize) -> Result<f64> {
    let took = match case {
        Case::Raw => at_once(pods.iter_mut(), |(pod, _)| Raw::del(pod))?,
        Case::Plugin(who) => at_once(calls(lab, who, "DEL", pods, first, round), |mut call| call.run())?,
    };
    for (pod, _) in pods {
        match case {
            Case::Raw => pod.is_bare()?,
            Case::Plugin(who) => lab.check_deleted(who, pod)?,
        }
    }
    Ok(took)
}

fn calls(
    lab: &Lab,
    who: Who,
    verb: &str,
    pods: &[(Pod, Raw)],
    first: usize,
    round: usize,
) -> impl Iterator<Item = Call> {
    pods.iter()
        .enumerate()
        .map(move |(at, (pod, _))| lab.call(who, verb, &pod.netns, &format!("burst-{round}-{}", first + at)))
}

/// Does `work` on each at once, a thread each; milliseconds from the first beginning to the last end.
fn at_once<T: Send>(items: impl Iterator<Item = T>, work: impl Fn(T) -> Result<()> + Sync) -> Result<f64> {
    let items: Vec<T> = items.collect();
    let (all_there, work) = (Barrier::new(items.len()), &work);
    let times = thread::scope(|scope| {
        let all_there = &all_there;
        let run = |item| {
            move || -> Result<(Instant, Instant)> {
                all_there.wait();
                let begun = Instant::now();
                work(item)?;
                Ok((begun, Instant::now()))
            }
        };
        let threads: Vec<_> = items.into_iter().map(|item| scope.spawn(run(item))).collect();
        let ended =
            threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?);
        ended.collect::<Result<Vec<_>>>()
    })?;
    let first = times.iter().map(|(begun, _)| *begun).min();
    let last = times.iter().map(|(_, ended)| *ended).max();
    Ok(first.zip(last).map_or(0.0, |(first, last)| (last - first).as_secs_f64() * 1e3))
}
