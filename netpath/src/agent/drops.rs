//! Reads drop events: a line of the log for each group, and now and then an event on the pod.

use std::{
    collections::HashMap,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use super::{Shared, listing::id_of, notice::Topic};
use crate::{
    causes::full,
    kernel::bpf::{
        events::{Consumer, EventsError},
        maps::Maps,
    },
    observe::{Direction, Event, Group, Limits, Report, Window, tally},
    police::{self, PoliceError},
    spec::{self, Severity},
    state::Outline,
};

/// How often endpoints whose events were read are granted new ones: the kernel's side of the limit.
const GRANT: Duration = Duration::from_millis(500);
/// How often it is looked whether what is read is still what is loaded.
const LOOK: Duration = Duration::from_secs(1);
/// How long to wait where there is nothing to read, or somebody else reads it.
const AGAIN: Duration = Duration::from_secs(2);
/// What a log can bear.
const LIMITS: Limits = Limits { interval: Duration::from_secs(10), lines: 20, groups: 1024 };

/// Why events are not read now.
#[derive(Debug, thiserror::Error)]
enum DropsError {
    #[error(transparent)]
    Police(#[from] PoliceError),
    #[error(transparent)]
    Events(#[from] EventsError),
}

/// Reads for as long as the process lives.
pub(super) fn run(shared: &Shared) {
    let mut known = None;
    loop {
        let result = read(shared);
        // `netpath drops --follow` takes turns with us: who reads the events of a node is one.
        let text = result.err().map(|error| full(&error));
        if text != known {
            match &text {
                Some(error) => tracing::info!(error, "drop events are not read by the agent"),
                None => tracing::debug!("nothing is loaded whose events could be read"),
            }
            known = text;
        }
        thread::park_timeout(AGAIN);
    }
}

/// Reads until what is loaded is another one.
fn read(shared: &Shared) -> Result<(), DropsError> {
    let root = &shared.root;
    let Some(mut maps) = police::maps(root)? else { return Ok(()) };
    let mut consumer = Consumer::new(maps.pins(), &root.events_lock())?;
    consumer.grant_all(&mut maps)?;
    let mut names = Names::default();
    let mut window = Window::default();
    let began = Instant::now();
    let (mut granted, mut looked) = (began, began);
    loop {
        let events = consumer.events(GRANT)?;
        let now = Instant::now();
        names.learn(shared, &maps, &events)?;
        shared.report().drops_read += u64::try_from(events.len()).unwrap_or(u64::MAX);
        if let Some(report) = tally(now.duration_since(began), &LIMITS, &mut window, events) {
            tell(shared, &maps, &report, &names);
        }
        if GRANT <= now.duration_since(granted) {
            granted = now;
            consumer.grant_spent(&mut maps)?;
        }
        if LOOK <= now.duration_since(looked) {
            looked = now;
            if !consumer.is_pinned() || !maps.is_in_force().map_err(PoliceError::from)? {
                return Ok(());
            }
        }
    }
}

/// Whose drops they are.
#[derive(Default)]
struct Names(HashMap<(u32, u32), Arc<Outline>>);

impl Names {
    /// Looks at the records again where an event is of an attachment that is not known.
    fn learn(&mut self, shared: &Shared, maps: &Maps, events: &[Event]) -> Result<(), PoliceError> {
        let is_new =
            |event: &Event| event.endpoint != 0 && !self.0.contains_key(&(event.endpoint, event.generation));
        if events.iter().any(is_new) {
            let records = shared.records()?;
            let named = records.iter().filter_map(|record| {
                let (id, generation, mac) = id_of(record);
                record.endpoint?;
                // An event outlives its row, so what is not known to be another's is its own.
                let is_anothers = maps.owner(id, generation).ok().flatten().is_some_and(|key| key.mac != mac);
                (!is_anothers).then(|| ((id, generation), Arc::clone(record)))
            });
            self.0 = named.collect();
        }
        Ok(())
    }

    fn of(&self, event: &Event) -> Option<&Outline> {
        self.0.get(&(event.endpoint, event.generation)).map(AsRef::as_ref)
    }
}

fn tell(shared: &Shared, maps: &Maps, report: &Report, names: &Names) {
    shared.report().drops_withheld += report.withheld;
    for group in &report.groups {
        let event = &group.first;
        let record = names.of(event);
        let name = record.map(|record| format!("{}/{}", record.pod_name(), record.ifname));
        // What a pod sends decides what stands here, and it is quoted as text that it cannot choose freely.
        tracing::info!(
            target: "netpath::drops",
            attachment = name.as_deref().unwrap_or_default(),
            direction = event.direction.label(),
            reason = event.reason.label(),
            audited = event.audited,
            count = group.count,
            "{}",
            group.line(|_, _| name.clone())
        );
        if let Some(record) = record
            && !event.audited
            && shared.may_tell((event.endpoint, event.generation), Topic::Drops(event.reason.number()))
        {
            shared.tell_pod(record, notice(maps, record, group));
        }
    }
}

/// What the owner of a pod reads: how many there were in all, where the last of them went, why, and of which network.
fn notice(maps: &Maps, record: &Outline, group: &Group) -> spec::Event {
    let event = &group.first;
    let reasons = maps.drops(event.endpoint).map(|drops| match event.direction {
        Direction::Tx => drops.tx_dropped,
        Direction::Rx => drops.rx_dropped,
    });
    let number = usize::from(event.reason.number());
    let count = reasons.ok().and_then(|reasons| reasons.get(number).copied()).unwrap_or(group.count);
    let (verb, other) = match event.direction {
        Direction::Tx => ("to", event.destination),
        Direction::Rx => ("from", event.source),
    };
    let other = other.map_or_else(String::new, |other| format!(", the last {verb} {other}"));
    let packets = if count.max(group.count) == 1 { "packet" } else { "packets" };
    spec::Event {
        severity: Severity::Warning,
        reason: "PacketsDropped".to_owned(),
        message: format!(
            "{}: {} {packets} dropped{other}: {} (network {}: {})",
            record.ifname,
            count.max(group.count),
            event.reason,
            super::metrics::network_of(record),
            event.reason.sentence(),
        ),
    }
}
