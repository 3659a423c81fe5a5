//! What the threads of the agent tell those who ask: for metrics and health.

use std::{collections::BTreeMap, path::PathBuf};

use super::{ledger::Name, watch::What};

/// What the threads have to say, beside what is in the kernel.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// Each watch that has answered, and what is wrong with it.
    pub(super) watches: BTreeMap<What, Option<String>>,
    pub(super) watch_errors: BTreeMap<What, u64>,
    /// What could not be done, by what it was.
    pub(super) errors: BTreeMap<&'static str, String>,
    /// How often all was looked at.
    pub(super) passes: u64,
    /// The file that says that nothing is to be attached.
    pub(super) disabled: Option<PathBuf>,
    /// When the plugin's token ends, in seconds since 1970.
    pub(super) token_expires: Option<u64>,
    /// What others undid and the agent did again, by master and hook.
    pub(super) repairs: BTreeMap<(String, &'static str), u64>,
    /// Networks that cannot be put in force, and why.
    pub(super) refused: BTreeMap<String, String>,
    /// Zones that were put in force for attachments that run.
    pub(super) zone_changes: u64,
    /// Pods that run without what they asked for, and what is missing.
    pub(super) bare: BTreeMap<String, String>,
    /// Attachments whose pod was given another annotation since.
    pub(super) pending: usize,
    /// Sandboxes and attachments that were ended because nobody else would have.
    pub(super) swept: u64,
    pub(super) events_posted: u64,
    pub(super) events_lost: u64,
    /// Drop events that were read, and those that are in no line of the log.
    pub(super) drops_read: u64,
    pub(super) drops_withheld: u64,
    /// What was counted of addresses that others claim, by interface, until a scrape adds it to the ledger.
    pub(super) conflicts: BTreeMap<Name, u64>,
    /// ARP and neighbour discovery that was read, and what found no room before it could be.
    pub(super) claims_read: u64,
    pub(super) claims_lost: u64,
}
