//! Whether what was seen is what had to be.

use std::net::IpAddr;

use netpath_ebpf::drop_reason::DropReason;

use super::rows::{Outcome, Probe, Row};
use crate::observe::{Event, Reason};

const ETHERTYPE_ARP: u16 = 0x0806;

/// Everything that was seen while one question was asked.
///
/// Counted is what netpath's maps say of the sender's net1; heard is what passed the switch's port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) reached: bool,
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) sent_dropped: u64,
    pub(super) received_dropped: u64,
    /// Dropped packets by reason.
    pub(super) reasons: Vec<(DropReason, u64)>,
    pub(super) events: Vec<Event>,
    pub(super) heard_from: u64,
    pub(super) heard_to: u64,
    /// ARP requests for the target among them.
    pub(super) heard_asking: u64,
}

impl Seen {
    /// What came of the question.
    pub(super) fn outcome(&self) -> Outcome {
        match self.reasons.iter().max_by_key(|(_, count)| *count) {
            _ if self.reached => Outcome::Reached,
            Some((reason, _)) => Outcome::Dropped(*reason),
            None => Outcome::Unanswered,
        }
    }

    /// Whether what is counted is what passed the port: both are read while packets are on their way.
    pub(super) fn is_settled(&self) -> bool {
        self.sent == self.heard_from && self.received + self.received_dropped == self.heard_to
    }
}

/// What is wrong with an answer; nothing if it is as expected, down to the counters.
pub(super) fn faults(row: &Row, zone: bool, seen: &Seen) -> Vec<String> {
    let expected = row.expected[usize::from(zone)];
    let mut faults = Vec::new();
    if seen.outcome() != expected {
        faults.push(format!("{} instead of {}", told(seen.outcome()), told(expected)));
    }
    if seen.sent != seen.heard_from {
        faults.push(format!("{} counted as sent, {} heard on the wire", seen.sent, seen.heard_from));
    }
    let received = seen.received + seen.received_dropped;
    if received != seen.heard_to {
        faults.push(format!("{received} counted as received, {} heard on the wire", seen.heard_to));
    }
    let by_reason: u64 = seen.reasons.iter().map(|(_, count)| count).sum();
    let dropped = seen.sent_dropped + seen.received_dropped;
    if by_reason != dropped {
        faults.push(format!("{dropped} dropped, but {by_reason} have a reason"));
    }
    let wanted = if let Outcome::Dropped(reason) = expected { Some(reason) } else { None };
    for (reason, count) in seen.reasons.iter().filter(|(reason, _)| Some(*reason) != wanted) {
        faults.push(format!("{count} dropped as {} besides", reason.label()));
    }
    if let Some(reason) = wanted
        && !seen.events.iter().any(|event| event.reason == Reason::Known(reason))
    {
        faults.push(format!("no event says {}", reason.label()));
    }
    faults.extend(riddle(row, zone, seen));
    faults
}

/// The riddle's reason must be seen, not only its outcome: an ARP request for the target.
fn riddle(row: &Row, zone: bool, seen: &Seen) -> Option<String> {
    let Probe::Riddle { target } = row.probe else { return None };
    let told_of = seen
        .events
        .iter()
        .any(|event| event.ethertype == ETHERTYPE_ARP && event.destination == Some(IpAddr::V4(target)));
    match (zone, seen.heard_asking) {
        (false, 0) => Some(format!("nobody was heard asking for {target} by ARP")),
        (true, 0) if !told_of => Some(format!("no event tells of an ARP request for {target}")),
        (true, 1..) => Some(format!("an ARP request for {target} left the node")),
        _ => None,
    }
}

/// An outcome in a sentence.
fn told(outcome: Outcome) -> String {
    match outcome {
        Outcome::Reached => "reached".to_owned(),
        Outcome::Unanswered => "unanswered".to_owned(),
        Outcome::Dropped(reason) => format!("dropped ({})", reason.label()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::rows::ROWS;
    use super::*;
    use crate::observe::Direction;

    fn row(is: impl Fn(&Probe) -> bool) -> &'static Row {
        ROWS.iter().find(|row| is(&row.probe)).expect("a row of this kind")
    }

    fn gateway() -> &'static Row {
        row(|probe| matches!(probe, Probe::Ping { .. }))
    }

    fn by_nat() -> &'static Row {
        let internet = IpAddr::from([8, 8, 8, 8]);
        row(|probe| *probe == Probe::Ping { target: internet, by: "net1" })
    }

    fn the_riddle() -> &'static Row {
        row(|probe| matches!(probe, Probe::Riddle { .. }))
    }

    fn answered() -> Seen {
        Seen { reached: true, sent: 3, received: 3, heard_from: 3, heard_to: 3, ..Seen::default() }
    }

    fn event(reason: DropReason, ethertype: u16) -> Event {
        Event {
            endpoint: 1,
            generation: 1,
            master: 1,
            reason: Reason::Known(reason),
            direction: Direction::Tx,
            audited: false,
            ethertype,
            protocol: 0,
            source: None,
            destination: Some(Ipv4Addr::new(8, 8, 8, 8).into()),
            source_port: 0,
            destination_port: 0,
            length: 42,
            source_mac: [2; 6],
            destination_mac: [0xff; 6],
            rule: 0,
        }
    }

    fn dropped(reason: DropReason, ethertype: u16) -> Seen {
        Seen {
            sent_dropped: 2,
            reasons: vec![(reason, 2)],
            events: vec![event(reason, ethertype)],
            ..Seen::default()
        }
    }

    #[track_caller]
    fn check(row: &Row, zone: bool, seen: &Seen, expected: &[&str]) {
        assert_eq!(faults(row, zone, seen), expected);
    }

    #[test]
    fn what_is_expected_has_no_fault() {
        check(gateway(), false, &answered(), &[]);
        check(gateway(), true, &answered(), &[]);
        check(by_nat(), false, &answered(), &[]);
        check(by_nat(), true, &dropped(DropReason::ZoneDeny, 0x0800), &[]);
    }

    #[test]
    fn another_outcome_is_a_fault() {
        let silence = Seen::default();
        check(gateway(), false, &silence, &["unanswered instead of reached"]);
        check(
            by_nat(),
            true,
            &answered(),
            &["reached instead of dropped (zone-deny)", "no event says zone-deny"],
        );
        check(
            by_nat(),
            false,
            &dropped(DropReason::ZoneDeny, 0x0800),
            &["dropped (zone-deny) instead of reached", "2 dropped as zone-deny besides"],
        );
    }

    #[test]
    fn a_row_with_a_wrong_expectation_has_a_fault() {
        let wrong = Row { expected: [Outcome::Unanswered; 2], ..*gateway() };
        check(&wrong, false, &answered(), &["reached instead of unanswered"]);
        let wrong = Row { expected: [Outcome::Dropped(DropReason::SourceV4); 2], ..*by_nat() };
        check(
            &wrong,
            true,
            &dropped(DropReason::ZoneDeny, 0x0800),
            &[
                "dropped (zone-deny) instead of dropped (source-v4)",
                "2 dropped as zone-deny besides",
                "no event says source-v4",
            ],
        );
    }

    #[test]
    fn counters_are_held_against_the_wire() {
        let seen = Seen { sent: 4, ..answered() };
        check(gateway(), true, &seen, &["4 counted as sent, 3 heard on the wire"]);
        let seen = Seen { heard_to: 5, ..answered() };
        check(gateway(), true, &seen, &["3 counted as received, 5 heard on the wire"]);
        let seen = Seen { sent_dropped: 3, ..dropped(DropReason::ZoneDeny, 0x0800) };
        check(by_nat(), true, &seen, &["3 dropped, but 2 have a reason"]);
        let seen = Seen { events: vec![], ..dropped(DropReason::ZoneDeny, 0x0800) };
        check(by_nat(), true, &seen, &["no event says zone-deny"]);
    }

    #[test]
    fn a_drop_that_nobody_expects_is_a_fault_of_a_reached_row() {
        let seen = Seen {
            reached: true,
            received_dropped: 1,
            heard_to: 4,
            reasons: vec![(DropReason::Malformed, 1)],
            ..answered()
        };
        check(gateway(), true, &seen, &["1 dropped as malformed besides"]);
    }

    #[test]
    fn the_riddle_is_solved_by_an_arp_request() {
        let asked = Seen { sent: 2, heard_from: 2, heard_asking: 2, ..Seen::default() };
        check(the_riddle(), false, &asked, &[]);
        check(the_riddle(), true, &dropped(DropReason::ZoneDeny, ETHERTYPE_ARP), &[]);

        let silent = Seen { heard_asking: 0, ..asked.clone() };
        check(the_riddle(), false, &silent, &["nobody was heard asking for 8.8.8.8 by ARP"]);
        let ping = dropped(DropReason::ZoneDeny, 0x0800);
        check(the_riddle(), true, &ping, &["no event tells of an ARP request for 8.8.8.8"]);
        let leaked =
            Seen { sent: 1, heard_from: 1, heard_asking: 1, ..dropped(DropReason::ZoneDeny, ETHERTYPE_ARP) };
        check(the_riddle(), true, &leaked, &["an ARP request for 8.8.8.8 left the node"]);
    }
}
