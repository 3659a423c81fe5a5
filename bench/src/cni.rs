//! Suite `cni`: how long a runtime waits for ADD and DEL.
//!
//! Two questions. What the meta-plugin adds to the plugins that it executes (`meta`), and what one macvlan with an address,
//! a route and a zone costs beside starting a program that does nothing, asking the kernel for the same by netlink alone, and the
//! standard plugins (`single`, `moves`, `burst`). All of the second runs on one thread that stands in a network namespace of the
//! run's own, the node: whatever it starts is in that namespace as well, without being told.

mod burst;
mod call;
mod lab;
mod meta;
mod moves;
mod raw;
mod server;
mod single;

use std::{
    hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher},
    path::Path,
};

use anyhow::{Result, ensure};

use self::lab::Lab;
use crate::{
    Effort, binary,
    figures::Figures,
    samples::{Samples, decimals},
};

/// Where Debian has the standard plugins.
const STANDARD: &str = "/usr/lib/cni";
/// A plugin that is real and does least, so that its own time spreads least: a pod's first network.
const PLUGIN: &str = "loopback";

/// Runs the suite.
pub(crate) fn run(effort: Effort, figures: &mut Figures) -> Result<()> {
    let binary = binary()?;
    for plugin in [PLUGIN, lab::MACVLAN, "host-local"] {
        ensure!(
            Path::new(STANDARD).join(plugin).exists(),
            "{STANDARD}/{plugin} is missing: cargo xtask setup"
        );
    }
    meta::run(effort, figures, &binary)?;
    let lab = Lab::new(binary)?;
    lab.on_the_node(|| {
        single::run(&lab, effort, figures)?;
        moves::run(&lab, effort, figures)?;
        burst::run(&lab, effort, figures)
    })?
}

/// In which order a round goes through `count` cases: another one each time, and the same in every run.
///
/// What a DEL leaves to be done behind it costs whoever comes next a fifth of a millisecond: that must not always be the same one.
fn order(round: usize, count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by_cached_key(|at| BuildHasherDefault::<DefaultHasher>::default().hash_one((round, at)));
    order
}

/// Median of the rounds' ratios, as it is written in tables; nothing where they are not of the same rounds.
fn ratio(a: &Samples, b: &Samples) -> String {
    a.paired(b, |a, b| a / b).map_or_else(String::new, |ratio| {
        let median = ratio.median();
        format!("{median:.*}", decimals(median))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_case_follows_every_other_one() {
        let count = 10;
        let mut followed = BTreeSet::new();
        for round in 0..200 {
            let order = order(round, count);
            assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), count, "{order:?}");
            followed.extend(order.windows(2).map(|pair| (pair[0], pair[1])));
        }
        assert_eq!(followed.len(), count * (count - 1));
    }
}
