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

use std::path::Path;

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

/// Median of the rounds' ratios, as it is written in tables; nothing where they are not of the same rounds.
fn ratio(a: &Samples, b: &Samples) -> String {
    a.paired(b, |a, b| a / b).map_or_else(String::new, |ratio| {
        let median = ratio.median();
        format!("{median:.*}", decimals(median))
    })
}
