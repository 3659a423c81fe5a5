//! What the agent says in numbers. Names and labels are an interface: docs/metrics.md lists them.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use netpath_ebpf::abi::{ABI_VERSION, Endpoint, EndpointKey, Master, REASON_SLOTS, kind};

use super::{
    Shared,
    exposition::{Family, Labels, Text},
    ledger::{Id, Ledger, Live, Name, Series, Totals},
    listing::{Outlines, id_of, id_of_row},
    watch::What,
};
use crate::{
    causes::full,
    kernel::{
        bpf::{
            Hook, attach,
            maps::{Maps, text},
        },
        netns,
    },
    observe::Reason,
    police::{self, PoliceError},
    root::Root,
    state::Outline,
    whole,
};

/// What stays from one scrape to the next.
#[derive(Default)]
pub(super) struct Scraper {
    maps: Option<Maps>,
    ledger: Option<Ledger>,
    /// What the ledger was told last: which ids there are, and the records that say whose.
    told: Option<(Vec<Id>, Outlines)>,
    /// Bytes of the last answer: the next one will hardly be longer.
    length: usize,
}

/// What is shown of a pod's interface.
struct Shown<'a> {
    series: &'a Series,
    totals: Totals,
}

impl Scraper {
    /// The text of all metrics, as OpenMetrics.
    pub(super) fn text(&mut self, shared: &Shared) -> String {
        let begun = Instant::now();
        let mut text = Text::with_capacity(self.length + ROOM);
        if let Err(error) = self.kernel(shared, &mut text) {
            let error = full(&error);
            tracing::warn!(error, "what is in the kernel cannot be read");
            shared.report().errors.insert("read", error);
        } else {
            shared.report().errors.remove("read");
        }
        own(shared, begun, &mut text);
        let text = text.finish();
        self.length = text.len();
        text
    }

    fn kernel(&mut self, shared: &Shared, out: &mut Text) -> Result<(), PoliceError> {
        let root = &shared.root;
        let maps = match self.maps.take().filter(|maps| maps.is_in_force().unwrap_or(false)) {
            Some(maps) => maps,
            None => match police::maps(root)? {
                Some(maps) => maps,
                None => return Ok(()),
            },
        };
        let result = self.loaded(shared, &maps, out);
        self.maps = Some(maps);
        result
    }

    fn loaded(&mut self, shared: &Shared, maps: &Maps, out: &mut Text) -> Result<(), PoliceError> {
        let (masters, rows, zones) = (maps.masters()?, maps.endpoints()?, maps.zones()?);
        self.pods(shared, maps, &masters, &rows, out)?;
        of_masters(&shared.root, maps, &masters, out)?;
        of_nobody(maps, out)?;
        let mut generations = out.gauge(
            "netpath_zone_generation",
            "Generation of a zone: how often it was changed since it was loaded",
        );
        for zone in &zones {
            let labels = Labels::of(&[("network", &text(&zone.info.name)), ("zone", &zone.id.to_string())]);
            generations.row(&labels, &[], zone.slot.generation);
        }
        let rows_of = |mut family: Family<'_>, endpoints: usize, zones: usize| {
            for (map, count) in [("endpoints", endpoints), ("zones", zones)] {
                family.row(&Labels::default(), &[("map", map)], count_of(count));
            }
        };
        rows_of(out.gauge("netpath_map_entries", "Rows in use"), rows.len(), zones.len());
        let most = out.gauge("netpath_map_max_entries", "Rows there are");
        rows_of(most, maps.endpoint_rows(), maps.zone_rows());
        Ok(())
    }

    fn pods(
        &mut self,
        shared: &Shared,
        maps: &Maps,
        masters: &[(u16, Master)],
        rows: &[(EndpointKey, Endpoint)],
        out: &mut Text,
    ) -> Result<(), PoliceError> {
        let own = || rows.iter().filter(|(_, row)| row.kind == kind::ENDPOINT);
        let ids: Vec<Id> = own().map(|(_, row)| Id { id: row.id, generation: row.generation }).collect();
        let endpoints = ids.len();
        let counters = maps.counters()?;
        let count = |id: Id| -> Option<Totals> {
            let counted = counters.endpoint(id.id);
            let drops = match [counted.tx_dropped, counted.rx_dropped, counted.tx_audited, counted.rx_audited]
            {
                // Most pods have nothing dropped, and asking costs a system call each.
                [0, 0, 0, 0] => None,
                _ => maps.drops(id.id).ok(),
            };
            Some(Totals::new(&counted, drops.as_ref()))
        };
        let last = |id: Id| count(id).filter(|_| maps.is_last_use(id.id, id.generation).unwrap_or(false));
        let path = shared.root.join(LEDGER);
        let ledger = self.ledger.get_or_insert_with(|| {
            let kept = whole::bytes_up_to(&path, LARGEST).ok();
            let kept: Option<Ledger> = kept.and_then(|bytes| serde_json::from_slice(&bytes).ok());
            kept.unwrap_or_default().until(seconds())
        });
        let records = shared.records()?;
        let mut changed = {
            let wish = shared.wish();
            let is_there = wish.pods.as_ref().map(|pods| |uid: &str| pods.values().any(|pod| pod.uid == uid));
            let is_there = is_there.as_ref().map(|is_there| is_there as &dyn Fn(&str) -> bool);
            match &self.told {
                Some((told, of)) if *told == ids && Arc::ptr_eq(of, &records) => {
                    ledger.pass(seconds(), is_there)
                }
                _ => {
                    let named: HashMap<_, _> = records.iter().map(|record| (id_of(record), record)).collect();
                    let live = own().filter_map(|(key, row)| {
                        let record = named.get(&id_of_row(key, row))?;
                        let master = masters.iter().find(|(id, _)| *id == key.master);
                        let master = master.map_or_else(String::new, |(_, row)| text(&row.name));
                        let id = Id { id: row.id, generation: row.generation };
                        let (name, network) = (name_of(record), network_of(record));
                        Some(Live { name, id, network, master, created: record.created })
                    });
                    let changed = ledger.update(seconds(), live, last, is_there);
                    self.told = Some((ids, records));
                    changed
                }
            }
        };
        // What was shown is written down, so it does not go back.
        shared.report().conflicts.retain(|name, count| {
            let is_known = ledger.add_conflicts(name, *count);
            changed |= is_known;
            !is_known
        });
        if changed {
            let written = serde_json::to_vec(ledger).map_err(std::io::Error::from);
            let written = written.map(|bytes| whole::replace(&path, &bytes));
            if let Ok(Err(error)) = written {
                tracing::warn!(
                    error = full(&error),
                    "counters of earlier sandboxes would not survive a restart"
                );
            }
        }
        let shown = ledger.shown().into_iter().map(|(_, series)| {
            // Between two sandboxes what the last one counted is in the maps still.
            let counted = if series.is_live { count(series.id) } else { last(series.id) };
            let mut totals = counted.unwrap_or_default();
            totals.add(&series.carried);
            Shown { series, totals }
        });
        of_pods(&shown.collect::<Vec<_>>(), out);
        out.gauge("netpath_endpoints", "Interfaces that are counted and judged").value(count_of(endpoints));
        Ok(())
    }
}

/// Room for what an answer may be longer than the last one.
const ROOM: usize = 4096;
/// Where the ledger is kept: with the maps, whose counters a reboot ends.
const LEDGER: &str = "run/netpath/agent/ledger.json";
/// A ledger of more bytes is none: ten thousand pods have six million.
const LARGEST: u64 = 64 << 20;

/// The numbers of pods.
fn of_pods(shown: &[Shown<'_>], out: &mut Text) {
    let counted = |mut family: Family<'_>, number: fn(&Totals) -> u64| {
        for Shown { series, totals } in shown {
            family.row_since(&series.labels, &[], number(totals), series.since);
        }
    };
    counted(out.counter("netpath_pod_receive_packets", "Packets that a pod received"), |it| it.counters[2]);
    counted(
        out.counter("netpath_pod_receive_bytes", "Bytes that a pod received, with Ethernet headers"),
        |it| it.counters[3],
    );
    counted(out.counter("netpath_pod_transmit_packets", "Packets that a pod sent"), |it| it.counters[0]);
    counted(
        out.counter("netpath_pod_transmit_bytes", "Bytes that a pod sent, with Ethernet headers"),
        |it| it.counters[1],
    );
    // By the place of the directions among the reasons.
    let by_reason = |mut family: Family<'_>, tx: usize, rx: usize| {
        for Shown { series, totals } in shown.iter().filter(|shown| !shown.totals.reasons.is_empty()) {
            for (direction, place) in [("tx", tx), ("rx", rx)] {
                for (reason, count) in counted_reasons(&totals.reasons[place]) {
                    let own = [("direction", direction), ("reason", reason)];
                    family.row_since(&series.labels, &own, count, series.since);
                }
            }
        }
    };
    by_reason(
        out.counter("netpath_pod_dropped_packets", "Packets from and to a pod that were dropped"),
        0,
        1,
    );
    by_reason(
        out.counter(
            "netpath_pod_audited_packets",
            "Packets that would have been dropped if the zone's mode were enforce",
        ),
        2,
        3,
    );
    let mut conflicts =
        out.counter("netpath_pod_address_conflicts", "How often somebody else claimed an address of a pod");
    for Shown { series, .. } in shown.iter().filter(|shown| shown.series.conflicts != 0) {
        conflicts.row_since(&series.labels, &[], series.conflicts, series.since);
    }
}

/// A number for each reason that ever was one. Those that only a newer version knows have one label, and so are one number: a
/// series that stands in the text twice makes all of it invalid.
fn counted_reasons(reasons: &[u64; REASON_SLOTS]) -> impl Iterator<Item = (&'static str, u64)> {
    let reasons = (0u8..).zip(*reasons).map(|(number, count)| (Reason::from_number(number), count));
    let (known, newer): (Vec<_>, Vec<_>) = reasons
        .filter(|(_, count)| *count != 0)
        .map(|(reason, count)| (reason.label(), count))
        .partition(|(label, _)| *label != Reason::NEWER);
    let sum = newer.into_iter().map(|(_, count)| count).reduce(u64::saturating_add);
    known.into_iter().chain(sum.map(|sum| (Reason::NEWER, sum)))
}

/// The pod's interface.
pub(super) fn name_of(record: &Outline) -> Name {
    let interface = record.ifname.to_string();
    match &record.pod {
        Some(pod) => Name {
            namespace: pod.namespace.clone(),
            pod: pod.name.clone(),
            uid: pod.uid.clone().unwrap_or_default(),
            interface,
        },
        None => Name {
            namespace: String::new(),
            pod: record.container_id.to_string(),
            uid: String::new(),
            interface,
        },
    }
}

/// How people know its network.
pub(super) fn network_of(record: &Outline) -> String {
    record.nad.clone().unwrap_or_else(|| record.network.to_string())
}

fn of_masters(
    root: &Root,
    maps: &Maps,
    masters: &[(u16, Master)],
    out: &mut Text,
) -> Result<(), PoliceError> {
    let counters = maps.counters()?;
    let cookie = netns::cookie().unwrap_or(0);
    let all = masters.iter().map(|(id, master)| {
        let states = match master.netns_cookie == cookie {
            true => Some(attach::inspect(&root.pins(), *id, master.ifindex)?),
            false => None,
        };
        Ok((Labels::of(&[("master", &text(&master.name))]), states, counters.master(*id)))
    });
    let all = all.collect::<Result<Vec<_>, PoliceError>>()?;
    let mut attached = out.gauge(
        "netpath_attach_status",
        "1 where the program of a hook is attached and works on the maps that are pinned",
    );
    for (labels, states) in all.iter().filter_map(|(labels, states, _)| Some((labels, states.as_ref()?))) {
        for hook in Hook::ALL {
            let state = states.iter().find(|state| state.hook == hook);
            // XDP is nobody's business where it was never asked for.
            if state.is_none() && hook == Hook::Xdp {
                continue;
            }
            let works = state.is_some_and(|state| state.live && state.bound);
            let own = [("hook", hook.name()), ("via", state.map_or("none", |state| state.via.name()))];
            attached.row(labels, &own, works.into());
        }
    }
    let mut packets = out.counter("netpath_master_packets", "Packets of a master that are no pod's, by kind");
    for (labels, _, c) in &all {
        for (kind, count) in [
            ("host", c.host_packets),
            ("host-with-pod-address", c.host_dropped),
            ("unknown-passed", c.unknown_passed),
            ("unknown-dropped", c.unknown_dropped),
            ("group", c.group_packets),
        ] {
            packets.row(labels, &[("kind", kind)], count);
        }
    }
    let mut events =
        out.counter("netpath_drop_events", "Events of drops, by what became of them in the kernel");
    for (labels, _, c) in &all {
        for (fate, count) in
            [("emitted", c.events_emitted), ("limited", c.events_limited), ("lost", c.events_lost)]
        {
            events.row(labels, &[("fate", fate)], count);
        }
    }
    Ok(())
}

fn of_nobody(maps: &Maps, out: &mut Text) -> Result<(), PoliceError> {
    let drops = maps.drops(0)?;
    let mut family =
        out.counter("netpath_unattributed_dropped_packets", "Packets that were dropped and belong to nobody");
    for (direction, reasons) in [("tx", &drops.tx_dropped), ("rx", &drops.rx_dropped)] {
        for (reason, count) in counted_reasons(reasons) {
            family.row(&Labels::default(), &[("direction", direction), ("reason", reason)], count);
        }
    }
    Ok(())
}

/// What the agent knows of itself.
fn own(shared: &Shared, begun: Instant, out: &mut Text) {
    let report = shared.report();
    let networks = shared.wish().definitions.as_ref().map_or(0, BTreeMap::len);
    let none = Labels::default();
    let build = [("version", env!("CARGO_PKG_VERSION")), ("abi", &ABI_VERSION.to_string())];
    out.gauge("netpath_build_info", "Which netpath this is").row(&none, &build, 1);
    let mut repairs = out.counter("netpath_repairs", "What others undid and the agent did again");
    for ((master, what), count) in &report.repairs {
        repairs.row(&none, &[("master", master), ("what", what)], *count);
    }
    let mut refused = out.gauge(
        "netpath_network_refused",
        "1 for each network that cannot be put in force, or not for all of its pods: what was in force stays",
    );
    for name in report.refused.keys() {
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        refused.row(&none, &[("namespace", namespace), ("name", name)], 1);
    }
    let mut failing = out.gauge("netpath_agent_failing", "1 for each thing that the agent cannot do now");
    report.errors.keys().for_each(|what| failing.row(&none, &[("what", what)], 1));
    let mut watches = out.counter("netpath_agent_watch_errors", "How often a watch broke and was made again");
    for what in What::ALL {
        let count = report.watch_errors.get(&what).copied().unwrap_or(0);
        watches.row(&none, &[("what", what.label())], count);
    }
    out.gauge("netpath_networks", "Networks that the agent knows").value(count_of(networks));
    out.gauge("netpath_pods_bare", "Pods that run without an interface or a zone that they asked for")
        .value(count_of(report.bare.len()));
    out.gauge("netpath_pods_pending", "Pods whose annotation was changed since their networks were made")
        .value(count_of(report.pending));
    out.counter("netpath_agent_passes", "How often everything was looked at").value(report.passes);
    out.counter("netpath_zone_changes", "Zones that were put in force for pods that run")
        .value(report.zone_changes);
    out.counter("netpath_swept", "What was ended because no runtime would have").value(report.swept);
    out.counter("netpath_events_posted", "Kubernetes events that were posted").value(report.events_posted);
    out.counter("netpath_events_lost", "Kubernetes events that could not be posted")
        .value(report.events_lost);
    out.counter("netpath_drop_events_read", "Events of drops that the agent read").value(report.drops_read);
    out.counter("netpath_drop_events_withheld", "Events of drops that are in no line of its log")
        .value(report.drops_withheld);
    let mut neighbours = out.counter(
        "netpath_neighbour_packets",
        "ARP and neighbour discovery on masters in which claims are looked for",
    );
    neighbours.row(&none, &[("fate", "read")], report.claims_read);
    neighbours.row(&none, &[("fate", "lost")], report.claims_lost);
    if let Some(seconds) = report.token_expires {
        out.gauge(
            "netpath_agent_token_expiry_timestamp_seconds",
            "When the token that the plugin was given ends",
        )
        .value(seconds);
    }
    if let Some((resident, cpu)) = process() {
        out.gauge("process_resident_memory_bytes", "Resident memory").value(resident);
        out.counter("process_cpu_seconds", "CPU time, in whole seconds").value(cpu);
    }
    let took = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    out.gauge("netpath_scrape_microseconds", "How long this scrape took until it was written").value(took);
}

/// Resident bytes and seconds of CPU time of this process.
fn process() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/self/stat").ok()?;
    // After the name, which may have spaces and parentheses.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    // Clock ticks are hundredths on every platform Linux has BPF for, pages as large as the kernel says.
    let page = u64::try_from(nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??).ok()?;
    Some((number(21)? * page, (number(11)? + number(12)?) / 100))
}

fn count_of(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use netpath_ebpf::drop_reason::DropReason;

    use super::*;

    #[test]
    fn reasons_of_a_newer_version_are_one_number() {
        let known = usize::from(DropReason::Malformed as u8);
        let mut reasons = [0; REASON_SLOTS];
        reasons[known] = 5;
        (reasons[REASON_SLOTS - 2], reasons[REASON_SLOTS - 1]) = (2, 3);
        let counted: Vec<_> = counted_reasons(&reasons).collect();
        assert_eq!(counted, [(DropReason::Malformed.label(), 5), ("newer", 5)]);
        reasons[REASON_SLOTS - 1] = u64::MAX;
        assert_eq!(counted_reasons(&reasons).last(), Some(("newer", u64::MAX)), "a sum does not go round");
        assert_eq!(counted_reasons(&[0; REASON_SLOTS]).next(), None);
    }
}
