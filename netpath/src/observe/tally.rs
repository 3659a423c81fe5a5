//! Keeps a flood of drop events readable: like events are one, and there are only so many lines.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::{Direction, Event, Reason};

/// How much is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long events are gathered before they are told.
    pub interval: Duration,
    /// Groups told after each interval.
    pub lines: usize,
    /// Groups remembered in one interval; events of others are counted as withheld. A pod chooses its
    /// destinations, so that without a bound it would choose how much memory this takes.
    pub groups: usize,
}

/// What makes events alike.
type Key = (u32, u32, Reason, Direction, Option<IpAddr>);

/// The events of one interval.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// When the first event of this interval came; none has come while it is `None`.
    began: Option<Duration>,
    groups: BTreeMap<Key, (usize, Group)>,
    withheld: u64,
    /// What was told last, so that it makes way for what was not.
    told: BTreeSet<Key>,
}

/// Like events of one interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// The first of them.
    pub first: Event,
    /// How many there were.
    pub count: u64,
}

/// What is told of one interval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// At most [`Limits::lines`] groups: those not told in the interval before, then the larger ones.
    pub groups: Vec<Group>,
    /// Events that are in no group of this report.
    pub withheld: u64,
}

impl Window {
    /// When [`tally`] must be called for the report of what has been gathered; `None` while that is nothing.
    pub fn due(&self, limits: &Limits) -> Option<Duration> {
        self.began.map(|began| began.saturating_add(limits.interval))
    }
}

/// Adds `events`, which were read at `now`, and returns the report of the interval that ended before them,
/// if one did. `now` is of any clock that does not go back.
pub fn tally(
    now: Duration,
    limits: &Limits,
    window: &mut Window,
    events: impl IntoIterator<Item = Event>,
) -> Option<Report> {
    let report = window.due(limits).filter(|due| *due <= now).map(|_| close(limits, window));
    for event in events {
        window.began.get_or_insert(now);
        let key = (event.endpoint, event.generation, event.reason, event.direction, event.destination);
        let known = window.groups.len();
        match window.groups.get_mut(&key) {
            Some((_, group)) => group.count += 1,
            None if known < limits.groups => {
                window.groups.insert(key, (known, Group { first: event, count: 1 }));
            }
            None => window.withheld += 1,
        }
    }
    report
}

fn close(limits: &Limits, window: &mut Window) -> Report {
    let last = std::mem::take(window);
    let mut groups: Vec<_> = last.groups.into_iter().collect();
    groups.sort_by_key(|(key, (arrival, group))| (last.told.contains(key), Reverse(group.count), *arrival));
    let untold = groups.split_off(limits.lines.min(groups.len()));
    window.told = groups.iter().map(|(key, _)| *key).collect();
    Report {
        groups: groups.into_iter().map(|(_, (_, group))| group).collect(),
        withheld: last.withheld + untold.iter().map(|(_, (_, group))| group.count).sum::<u64>(),
    }
}

#[cfg(test)]
mod tests {
    use netpath_ebpf::drop_reason::DropReason;
    use proptest::prelude::*;

    use super::super::event::tests::syn;
    use super::*;

    const LIMITS: Limits = Limits { interval: Duration::from_secs(1), lines: 2, groups: 4 };

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// An event to 10.0.0.`host`.
    fn to(host: u8) -> Event {
        Event { destination: Some(IpAddr::from([10, 0, 0, host])), ..syn() }
    }

    fn hosts(report: &Report) -> Vec<(IpAddr, u64)> {
        report.groups.iter().map(|g| (g.first.destination.expect("set"), g.count)).collect()
    }

    fn host(host: u8, count: u64) -> (IpAddr, u64) {
        (IpAddr::from([10, 0, 0, host]), count)
    }

    #[test]
    fn like_events_are_one_line_when_the_interval_is_over() {
        let mut window = Window::default();
        assert_eq!(window.due(&LIMITS), None);
        assert_eq!(tally(at(0), &LIMITS, &mut window, []), None);
        assert_eq!(tally(at(100), &LIMITS, &mut window, [to(1), to(2), to(1)]), None);
        assert_eq!(window.due(&LIMITS), Some(at(1100)));
        assert_eq!(tally(at(1099), &LIMITS, &mut window, [to(1)]), None);
        let report = tally(at(1100), &LIMITS, &mut window, [to(3)]).expect("due");
        assert_eq!((hosts(&report), report.withheld), (vec![host(1, 3), host(2, 1)], 0));
        // The event that came with the report belongs to the next one.
        assert_eq!(window.due(&LIMITS), Some(at(2100)));
        let report = tally(at(9000), &LIMITS, &mut window, []).expect("due");
        assert_eq!(hosts(&report), [host(3, 1)]);
        assert_eq!((window.due(&LIMITS), tally(at(10_000), &LIMITS, &mut window, [])), (None, None));
    }

    #[test]
    fn each_part_of_the_key_makes_another_group() {
        let mut window = Window::default();
        let limits = Limits { lines: 100, groups: 100, ..LIMITS };
        let (base, address) = (syn(), Some(IpAddr::from([1, 1, 1, 1])));
        let others = [
            Event { endpoint: 8, ..base },
            Event { generation: 4, ..base },
            Event { reason: Reason::Known(DropReason::SourceV4), ..base },
            Event { direction: Direction::Rx, ..base },
            Event { destination: address, ..base },
            Event { destination: None, ..base },
        ];
        let same =
            [Event { source_port: 1, length: 1, ..base }, Event { source: address, protocol: 17, ..base }];
        tally(at(0), &limits, &mut window, [base].into_iter().chain(others).chain(same));
        let report = tally(at(1000), &limits, &mut window, []).expect("due");
        let expected: Vec<_> = std::iter::once(Group { first: base, count: 3 })
            .chain(others.map(|first| Group { first, count: 1 }))
            .collect();
        assert_eq!((report.groups, report.withheld), (expected, 0));
    }

    #[test]
    fn what_is_withheld_is_counted() {
        let mut window = Window::default();
        // Two lines of four groups, and a fifth and sixth that are not remembered.
        let events = [to(1), to(2), to(3), to(4), to(5), to(6), to(5), to(4), to(3), to(3)];
        tally(at(0), &LIMITS, &mut window, events);
        let report = tally(at(1000), &LIMITS, &mut window, []).expect("due");
        assert_eq!((hosts(&report), report.withheld), (vec![host(3, 3), host(4, 2)], 5));
    }

    #[test]
    fn a_flood_does_not_hide_the_rest_for_ever() {
        let mut window = Window::default();
        let flood = || [to(1), to(1), to(1), to(2), to(2), to(2), to(9)];
        tally(at(0), &LIMITS, &mut window, flood());
        let report = tally(at(1000), &LIMITS, &mut window, flood()).expect("due");
        assert_eq!((hosts(&report), report.withheld), (vec![host(1, 3), host(2, 3)], 1));
        let report = tally(at(2000), &LIMITS, &mut window, flood()).expect("due");
        assert_eq!((hosts(&report), report.withheld), (vec![host(9, 1), host(1, 3)], 3));
    }

    proptest! {
        #[test]
        fn every_event_is_told_or_counted(
            batches in prop::collection::vec((0..700_u64, prop::collection::vec(0..9_u8, 0..20)), 0..30),
            lines in 0..4_usize,
            groups in 0..6_usize,
        ) {
            let limits = Limits { lines, groups, ..LIMITS };
            let (mut window, mut now, mut told, mut reports) = (Window::default(), 0, 0, 0);
            let mut sum = |report: Option<Report>| {
                if let Some(report) = report {
                    assert!(report.groups.len() <= lines);
                    told += report.withheld + report.groups.iter().map(|group| group.count).sum::<u64>();
                    reports += 1;
                }
            };
            let mut sent = 0;
            for (pause, events) in batches {
                now += pause;
                sent += events.len() as u64;
                sum(tally(at(now), &limits, &mut window, events.into_iter().map(to)));
            }
            sum(tally(at(now + 1000), &limits, &mut window, []));
            prop_assert_eq!(told, sent);
            prop_assert!(reports <= now / 1000 + 1, "{} reports in {} ms", reports, now);
        }
    }
}
