//! The answers, as a table for people and as JSON for programs.

use serde_json::{Value, json};

use super::{
    judge::Seen,
    rows::{Outcome, Row},
};

/// The answers to one question.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) row: Row,
    /// Without the zone, and with it.
    pub(super) asked: [Asked; 2],
}

/// One answer.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) seen: Seen,
    /// What differs from what was expected.
    pub(super) faults: Vec<String>,
}

/// All that is said in the end.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub(super) id: String,
    pub(super) answers: Vec<Answer>,
    /// `egress tcx`, …: what is attached to the master while the zone is in force.
    pub(super) hooks: Vec<String>,
    /// The pods' interfaces while the zone is in force.
    pub(super) pods: Vec<String>,
    /// The master was promiscuous whenever it was looked at.
    pub(super) promisc: bool,
    pub(super) seconds: f64,
}

/// The lab, for people who have not read anything yet.
pub(super) const PICTURE: &str = "  internet ─── gateway ──────────────────┐
  8.8.8.8      10.12.34.254, source NAT  │ private zone, 10.12.34.0/24
     │                                   ├─ master01 10.12.34.10
     │                                   ├─ worker02 10.12.34.102
     └─ enp0s3 ─ worker01 ─ enp0s8 ──────┘
        eth0 of the pods │ net1 of the pods";

const WITH: usize = 1;
const HEADER: [&str; 10] =
    ["FROM", "TO", "BY", "ZONE", "EXPECTED", "HAPPENED", "SENT", "RCVD", "DROPPED", "DROP REASON"];
/// Columns of numbers, which stand to the right.
const NUMBERS: std::ops::Range<usize> = 6..9;
const WIDTH: usize = 110;

impl Report {
    /// Whether everything was as expected.
    pub(super) fn is_good(&self) -> bool {
        self.promisc
            && self.answers.iter().flat_map(|answer| &answer.asked).all(|asked| asked.faults.is_empty())
    }

    /// For people.
    pub(super) fn table(&self) -> String {
        let mut lines = align(&self.cells());
        lines.push(String::new());
        for (mark, why) in self.notes() {
            lines.extend(wrap(&format!("{mark} "), why));
        }
        lines.push(String::new());
        lines.push("What netpath told of the packets that it dropped:".to_owned());
        lines.extend(self.events());
        lines.push(String::new());
        lines.extend(self.pods.iter().cloned());
        lines.push(format!("enp0s8 while the zone is in force: {}.", self.hooks.join(", ")));
        lines.push(match self.promisc {
            true => {
                "enp0s8 is promiscuous by `promisc: on` in masters.json, and stays so when the pods are gone."
                    .to_owned()
            }
            false => "WRONG: enp0s8 is not promiscuous, although masters.json says `promisc: on`.".to_owned(),
        });
        lines.push(
            "SENT and RCVD are netpath's counters of net1; each equals what a sniffer heard on the switch."
                .to_owned(),
        );
        lines.push(String::new());
        lines.extend(self.wrong());
        lines.push(self.summary());
        lines.join("\n")
    }

    /// For programs.
    pub(super) fn json(&self, kept: bool) -> Value {
        json!({
            "lab": self.id,
            "ok": self.is_good(),
            "seconds": (self.seconds * 10.0).round() / 10.0,
            "kept": kept,
            "promiscuous": self.promisc,
            "programs": self.hooks,
            "pods": self.pods,
            "rows": self.answers.iter().map(Answer::json).collect::<Vec<_>>(),
        })
    }

    fn cells(&self) -> Vec<[String; 10]> {
        let mut rows = vec![HEADER.map(str::to_owned)];
        let mut marks = 0..;
        for answer in &self.answers {
            let Row { from, to, why, .. } = answer.row;
            let mark = why.and_then(|_| marks.next()).map(|at| format!(" {}", mark(at))).unwrap_or_default();
            for (at, asked) in answer.asked.iter().enumerate() {
                let first = |text: String| if at == WITH { String::new() } else { text };
                let seen = &asked.seen;
                rows.push([
                    first(from.name().to_owned()),
                    first(format!("{to}, {}{mark}", answer.row.target())),
                    first(answer.row.by().to_owned()),
                    if at == WITH { "with" } else { "without" }.to_owned(),
                    word(answer.row.expected[at]).to_owned(),
                    word(seen.outcome()).to_owned(),
                    seen.sent.to_string(),
                    seen.received.to_string(),
                    (seen.sent_dropped + seen.received_dropped).to_string(),
                    reasons(seen).join(", "),
                ]);
            }
        }
        rows
    }

    fn notes(&self) -> Vec<(String, &'static str)> {
        let whys = self.answers.iter().filter_map(|answer| answer.row.why);
        whys.enumerate().map(|(at, why)| (mark(at), why)).collect()
    }

    /// The first event of each row that has one; the others repeat it.
    fn events(&self) -> Vec<String> {
        let firsts = self.answers.iter().filter_map(|answer| {
            let name = answer.row.from.name();
            let event = answer.asked[WITH].seen.events.first()?;
            Some(wrap("  ", &event.line(|_, _| Some(format!("{name}/net1")))))
        });
        firsts.flatten().collect()
    }

    fn wrong(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for answer in &self.answers {
            for (at, asked) in answer.asked.iter().enumerate() {
                let zone = if at == WITH { "with" } else { "without" };
                let Row { from, to, .. } = answer.row;
                lines.extend(asked.faults.iter().map(|fault| {
                    format!("WRONG: {} to {to} by {}, {zone} the zone: {fault}", from.name(), answer.row.by())
                }));
            }
        }
        lines
    }

    fn summary(&self) -> String {
        let asked = self.answers.len() * 2;
        let wrong =
            self.answers.iter().flat_map(|a| &a.asked).filter(|asked| !asked.faults.is_empty()).count();
        match self.is_good() {
            true => format!("{asked} questions, all answered as expected, in {:.1} s.", self.seconds),
            false => {
                format!("{asked} questions, {wrong} not answered as expected, in {:.1} s.", self.seconds)
            }
        }
    }
}

impl Answer {
    fn json(&self) -> Value {
        let mut row = json!({
            "from": self.row.from.name(),
            "to": self.row.to,
            "address": self.row.target(),
            "interface": self.row.by(),
            "why": self.row.why,
        });
        for (at, key) in ["withoutZone", "withZone"].into_iter().enumerate() {
            let Asked { seen, faults } = &self.asked[at];
            row[key] = json!({
                "expected": word(self.row.expected[at]),
                "expectedReason": reason(self.row.expected[at]),
                "happened": word(seen.outcome()),
                "reason": reason(seen.outcome()),
                "counted": {
                    "sent": seen.sent,
                    "received": seen.received,
                    "sentDropped": seen.sent_dropped,
                    "receivedDropped": seen.received_dropped,
                },
                "heardOnTheWire": { "sent": seen.heard_from, "received": seen.heard_to, "arpForTarget": seen.heard_asking },
                "events": seen.events.iter().map(|event| event.to_json(None)).collect::<Vec<_>>(),
                "faults": faults,
            });
        }
        row
    }
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Reached => "reached",
        Outcome::Unanswered => "unanswered",
        Outcome::Dropped(_) => "dropped",
    }
}

fn reason(outcome: Outcome) -> Option<&'static str> {
    match outcome {
        Outcome::Dropped(reason) => Some(reason.label()),
        Outcome::Reached | Outcome::Unanswered => None,
    }
}

fn reasons(seen: &Seen) -> Vec<String> {
    let mut reasons: Vec<String> = seen.reasons.iter().map(|(reason, _)| reason.label().to_owned()).collect();
    if reasons.is_empty() && 0 < seen.heard_asking {
        // Nothing was dropped, and still there is a reason.
        reasons.push(format!("none, {} ARP heard", seen.heard_asking));
    }
    reasons
}

/// `[a]`, `[b]`, …
fn mark(at: usize) -> String {
    let letter = u8::try_from(at).ok().and_then(|at| b'a'.checked_add(at)).map_or('?', char::from);
    format!("[{letter}]")
}

fn align(rows: &[[String; 10]]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 10] = std::array::from_fn(width);
    let line = |row: &[String; 10]| {
        let cells = row.iter().zip(widths).enumerate().map(|(column, (cell, width))| {
            if NUMBERS.contains(&column) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// Lines of at most [`WIDTH`] characters; those after the first are indented as deep as `first` is long.
fn wrap(first: &str, text: &str) -> Vec<String> {
    let indent = " ".repeat(first.chars().count());
    let mut lines = vec![first.to_owned()];
    for word in text.split_whitespace() {
        let fits = lines.last().is_some_and(|line| line.chars().count() + 1 + word.chars().count() <= WIDTH);
        match lines.last_mut() {
            Some(line) if fits || line.trim().is_empty() => {
                if !line.ends_with(' ') {
                    line.push(' ');
                }
                line.push_str(word);
            }
            _ => lines.push(format!("{indent}{word}")),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use netpath_ebpf::drop_reason::DropReason;

    use super::super::rows::ROWS;
    use super::*;

    fn report() -> Report {
        let answer = |row: &Row| {
            let asked = row.expected.map(|expected| Asked {
                seen: match expected {
                    Outcome::Reached => Seen { reached: true, ..Seen::default() },
                    Outcome::Unanswered => Seen::default(),
                    Outcome::Dropped(reason) => {
                        Seen { sent_dropped: 2, reasons: vec![(reason, 2)], ..Seen::default() }
                    }
                },
                faults: Vec::new(),
            });
            Answer { row: *row, asked }
        };
        Report {
            id: "aB3xYz".to_owned(),
            answers: ROWS.iter().map(answer).collect(),
            hooks: vec!["egress tcx".to_owned()],
            pods: vec![],
            promisc: true,
            seconds: 8.04,
        }
    }

    #[test]
    fn a_fault_is_told_and_makes_the_report_bad() {
        let mut report = report();
        assert!(report.is_good());
        assert!(report.table().ends_with("20 questions, all answered as expected, in 8.0 s."));
        report.answers[5].asked[WITH].faults.push("reached instead of dropped (zone-deny)".to_owned());
        assert!(!report.is_good());
        let table = report.table();
        let wrong =
            "WRONG: net-pod to internet by net1, with the zone: reached instead of dropped (zone-deny)";
        assert!(table.contains(wrong), "{table}");
        assert!(table.ends_with("20 questions, 1 not answered as expected, in 8.0 s."), "{table}");
        assert_eq!(report.json(false)["ok"], false);
    }

    #[test]
    fn a_master_that_is_not_promiscuous_makes_the_report_bad() {
        let report = Report { promisc: false, ..report() };
        assert!(!report.is_good());
        assert!(report.table().contains("WRONG: enp0s8 is not promiscuous"));
    }

    #[test]
    fn each_question_has_two_lines_and_its_reason() {
        let table = report().table();
        let lines: Vec<_> = table.lines().collect();
        assert!(lines[0].starts_with("FROM "), "{table}");
        assert!(
            lines[11].starts_with("net-pod ") && lines[11].contains(" net1  without  reached "),
            "{table}"
        );
        assert!(lines[12].starts_with("  ") && lines[12].ends_with("  zone-deny"), "{table}");
        let json = report().json(true);
        assert_eq!(json["rows"][5]["withZone"]["reason"], DropReason::ZoneDeny.label());
        assert_eq!(json["rows"][5]["withoutZone"]["reason"], Value::Null);
    }

    #[test]
    fn long_text_is_wrapped_under_its_mark() {
        let text = "word ".repeat(40);
        let lines = wrap("[a] ", &text);
        assert!(lines.len() == 2 && lines.iter().all(|line| line.chars().count() <= WIDTH), "{lines:?}");
        assert!(lines[0].starts_with("[a] word") && lines[1].starts_with("    word"), "{lines:?}");
    }
}
