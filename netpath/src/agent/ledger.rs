//! Counters of pods as somebody who scrapes them sees them: they go on over the restart of a sandbox, of the agent and
//! of the programs, and end with the pod.
//!
//! The kernel counts by attachment. A pod whose sandbox is made again gets a new one, and what the old one counted has
//! to be added. The maps keep that until the id is used again, after all others were.

use std::collections::BTreeMap;

use netpath_ebpf::abi::{Counters, DropCounters, REASON_SLOTS};
use serde::{Deserialize, Serialize};

use super::exposition::Labels;

/// An interface of a pod: of this very one, and not of a later pod of its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Name {
    /// Namespace of the pod; empty where the runtime named no pod.
    pub(super) namespace: String,
    /// Its name, or the container.
    pub(super) pod: String,
    /// Its UID; empty where the runtime named none.
    pub(super) uid: String,
    /// Name of the interface in the pod.
    pub(super) interface: String,
}

/// A use of an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Id {
    pub(super) id: u32,
    pub(super) generation: u32,
}

/// What was counted of one interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Totals {
    /// Packets and bytes sent, packets and bytes received, packets dropped and audited each way, in the order of
    /// [`Counters`].
    pub(super) counters: [u64; 8],
    /// By direction, then whether it was dropped or audited, then reason: tx dropped, rx dropped, tx audited, rx audited. None
    /// at all of most interfaces, of which nothing ever was.
    pub(super) reasons: Vec<[u64; REASON_SLOTS]>,
}

impl Totals {
    pub(super) fn new(counters: &Counters, drops: Option<&DropCounters>) -> Self {
        let Counters { tx_packets, tx_bytes, rx_packets, rx_bytes, .. } = *counters;
        let Counters { tx_dropped, rx_dropped, tx_audited, rx_audited, .. } = *counters;
        Self {
            counters: [
                tx_packets, tx_bytes, rx_packets, rx_bytes, tx_dropped, rx_dropped, tx_audited, rx_audited,
            ],
            reasons: drops.map_or_else(Vec::new, |drops| {
                vec![drops.tx_dropped, drops.rx_dropped, drops.tx_audited, drops.rx_audited]
            }),
        }
    }

    /// Adds what was counted before.
    pub(super) fn add(&mut self, other: &Self) {
        if self.reasons.len() < other.reasons.len() {
            self.reasons.resize(other.reasons.len(), [0; REASON_SLOTS]);
        }
        let own = self.counters.iter_mut().chain(self.reasons.iter_mut().flatten());
        for (sum, more) in own.zip(other.counters.iter().chain(other.reasons.iter().flatten())) {
            *sum = sum.saturating_add(*more);
        }
    }
}

/// An attachment that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Live {
    pub(super) name: Name,
    pub(super) id: Id,
    pub(super) network: String,
    pub(super) master: String,
    /// Seconds since 1970 when it was made.
    pub(super) created: u64,
}

/// One interface of one pod, for as long as there is the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Series {
    pub(super) id: Id,
    pub(super) network: String,
    pub(super) master: String,
    /// What earlier attachments of it counted.
    pub(super) carried: Totals,
    /// How often others claimed an address of it.
    #[serde(default)]
    pub(super) conflicts: u64,
    /// Seconds since 1970 when its first attachment was made, and when one was seen in the kernel last.
    pub(super) since: u64,
    seen: u64,
    /// What the numbers of this one are shown with.
    #[serde(skip)]
    pub(super) labels: Labels,
    /// Whether it was live when the ledger was told last.
    #[serde(skip)]
    pub(super) is_live: bool,
}

impl Series {
    fn labelled(mut self, name: &Name) -> Self {
        self.labels = Labels::of(&[
            ("namespace", &name.namespace),
            ("pod", &name.pod),
            ("interface", &name.interface),
            ("network", &self.network),
            ("master", &self.master),
        ]);
        self
    }
}

/// How long an interface may be away before it is taken for gone, where nobody says whether its pod is.
const AWAY: u64 = 300;

/// Every interface that has, or had a moment ago, a row.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ledger {
    #[serde(with = "as_list")]
    series: BTreeMap<Name, Series>,
}

impl Ledger {
    /// What was read of a file, in which nothing was seen later than `now`.
    pub(super) fn until(mut self, now: u64) -> Self {
        self.series.values_mut().for_each(|series| series.seen = series.seen.min(now));
        self
    }

    /// Brings it up to date with what is `live` at `now`. `last` is what the kernel still has of an id that was
    /// replaced; `is_there` says of a UID whether the node has such a pod, where that is known. Returns whether anything is to
    /// be kept.
    pub(super) fn update(
        &mut self,
        now: u64,
        live: impl IntoIterator<Item = Live>,
        last: impl Fn(Id) -> Option<Totals>,
        is_there: Option<&dyn Fn(&str) -> bool>,
    ) -> bool {
        let mut changed = false;
        self.series.values_mut().for_each(|series| series.is_live = false);
        for Live { name, id, network, master, created } in live {
            let (carried, conflicts, since) = match self.series.get_mut(&name) {
                Some(series) if series.id == id => {
                    series.is_live = true;
                    continue;
                }
                Some(series) => {
                    let carried = last(series.id).map(|last| {
                        series.carried.add(&last);
                        std::mem::take(&mut series.carried)
                    });
                    // Where what it counted is lost the sum begins anew.
                    let (carried, since) = carried
                        .map_or_else(|| (Totals::default(), created), |carried| (carried, series.since));
                    (carried, series.conflicts, since)
                }
                None => (Totals::default(), 0, created),
            };
            let series = Series {
                id,
                network,
                master,
                carried,
                conflicts,
                since,
                seen: now,
                labels: Labels::default(),
                is_live: true,
            };
            self.series.insert(name.clone(), series.labelled(&name));
            changed = true;
        }
        self.pass(now, is_there) || changed
    }

    /// The same where those that are live are those of before.
    pub(super) fn pass(&mut self, now: u64, is_there: Option<&dyn Fn(&str) -> bool>) -> bool {
        let before = self.series.len();
        self.series.retain(|name, series| {
            if series.is_live {
                series.seen = now;
                return true;
            }
            match is_there.filter(|_| !name.uid.is_empty()) {
                // Between two sandboxes of one pod.
                Some(is_there) => is_there(&name.uid),
                None => now.saturating_sub(series.seen) < AWAY,
            }
        });
        self.series.len() != before
    }

    /// Adds what was counted of claims by others. Returns whether the interface is known.
    pub(super) fn add_conflicts(&mut self, name: &Name, count: u64) -> bool {
        let series = self.series.get_mut(name);
        series.map(|it| it.conflicts = it.conflicts.saturating_add(count)).is_some()
    }

    /// One series for each name that people know: of a pod that ends and one that takes its name the later one.
    pub(super) fn shown(&self) -> Vec<(&Name, &Series)> {
        let order = |series: &Series| (series.seen, series.since, series.id.id);
        let mut shown = Vec::with_capacity(self.series.len());
        // Those of one pod's name stand together, and mostly are of one pod.
        let all: Vec<_> = self.series.iter().collect();
        for same in all.chunk_by(|(a, _), (b, _)| (&a.namespace, &a.pod) == (&b.namespace, &b.pod)) {
            if same.iter().all(|(name, _)| name.uid == same[0].0.uid) {
                shown.extend(same);
                continue;
            }
            let mut latest: BTreeMap<&str, (&Name, &Series)> = BTreeMap::new();
            for &(name, series) in same {
                match latest.get(name.interface.as_str()) {
                    Some((_, other)) if order(series) < order(other) => {}
                    _ => drop(latest.insert(&name.interface, (name, series))),
                }
            }
            shown.extend(latest.into_values());
        }
        shown
    }
}

/// JSON has no keys that are more than text.
mod as_list {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{Name, Series};

    pub(super) fn serialize<S: Serializer>(
        all: &BTreeMap<Name, Series>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        all.iter().collect::<Vec<_>>().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<Name, Series>, D::Error> {
        let all = Vec::<(Name, Series)>::deserialize(deserializer)?.into_iter();
        Ok(all
            .map(|(name, series)| {
                let series = series.labelled(&name);
                (name, series)
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(uid: &str) -> Name {
        Name { namespace: "default".into(), pod: "web".into(), uid: uid.into(), interface: "net1".into() }
    }

    fn live(name: &Name, id: u32) -> Live {
        let (network, master) = ("default/priv".to_owned(), "enp0s8".to_owned());
        Live { name: name.clone(), id: Id { id, generation: 1 }, network, master, created: 100 }
    }

    fn totals(count: u64) -> Totals {
        Totals { counters: [count; 8], reasons: vec![[count; REASON_SLOTS]; 4] }
    }

    #[test]
    fn a_pod_whose_sandbox_is_made_again_goes_on_counting() {
        let (mut ledger, u) = (Ledger::default(), name("u"));
        let known = |id: Id| (id.id != 9).then(|| totals(u64::from(id.id)));
        assert!(ledger.update(100, [live(&u, 5)], known, None));
        assert!(!ledger.update(101, [live(&u, 5)], known, None), "nothing new is nothing to write");
        assert!(!ledger.pass(101 + AWAY, None), "who was live last is");
        assert!(ledger.update(102, [live(&u, 6)], known, None));
        let (_, series) = ledger.shown()[0];
        assert_eq!((series.id.id, &series.carried), (6, &totals(5)));
        assert!(ledger.update(103, [live(&u, 9)], known, None));
        assert!(ledger.update(104, [live(&u, 7)], known, None), "what the kernel has forgotten is lost");
        let (_, series) = ledger.shown()[0];
        assert_eq!((&series.carried, series.since), (&Totals::default(), 100), "and it begins anew");
        let text = serde_json::to_string(&ledger).expect("plain");
        let read: Ledger = serde_json::from_str(&text).expect("the same");
        assert_eq!(serde_json::to_string(&read).expect("plain"), text);
        assert_eq!(read.shown()[0].1.labels, ledger.shown()[0].1.labels, "they are not kept, and made again");
    }

    #[test]
    fn conflicts_go_on_as_long_as_the_pod_and_are_nobody_elses() {
        let (mut ledger, u) = (Ledger::default(), name("u"));
        ledger.update(100, [live(&u, 5)], |_| None, None);
        assert!(ledger.add_conflicts(&name("u"), 2) && !ledger.add_conflicts(&name("v"), 7));
        ledger.update(101, [live(&u, 6)], |_| None, None);
        assert!(ledger.add_conflicts(&name("u"), 3));
        let text = serde_json::to_string(&ledger).expect("plain");
        let read: Ledger = serde_json::from_str(&text).expect("the same");
        assert_eq!(read.shown()[0].1.conflicts, 5);
        // What an agent wrote that knew nothing of them.
        let read: Ledger = serde_json::from_str(&text.replace("\"conflicts\":5,", "")).expect("older");
        assert_eq!(read.shown()[0].1.conflicts, 0);
    }

    #[test]
    fn a_series_ends_with_its_pod() {
        let mut ledger = Ledger::default();
        let (u, v) = (name("u"), name("v"));
        let pods: &dyn Fn(&str) -> bool = &|uid| uid == "u";
        let gone: &dyn Fn(&str) -> bool = &|_| false;
        ledger.update(100, [live(&u, 5)], |_| None, Some(pods));
        assert!(!ledger.update(10_000, [], |_| None, Some(pods)), "its sandbox is being made again");
        assert!(ledger.update(10_001, [], |_| None, Some(gone)));
        assert_eq!(ledger.shown().len(), 0);
        // A later pod of that name is another one.
        ledger.update(100, [live(&u, 5), live(&v, 6)], |_| None, Some(gone));
        assert_eq!(ledger.series.len(), 2, "what is in the kernel is there, whatever the API says");
        let shown: Vec<_> = ledger.shown().into_iter().map(|(name, _)| name.uid.as_str()).collect();
        assert_eq!(shown, ["v"], "and has one name only once");
        assert!(!ledger.update(399, [], |_| None, None));
        assert!(ledger.update(400, [], |_| None, None));
    }

    #[test]
    fn what_has_no_reasons_takes_those_of_the_other() {
        let mut sum = Totals::default();
        sum.add(&totals(5));
        sum.add(&Totals::default());
        assert_eq!(sum, totals(5));
    }

    #[test]
    fn sums_do_not_go_round() {
        let mut sum = totals(u64::MAX - 1);
        sum.add(&totals(5));
        assert_eq!(sum, totals(u64::MAX));
    }
}
