//! What a machine says on its serial console, and whether that is a success.

use std::{
    collections::BTreeMap,
    fmt, fs,
    io::{BufRead as _, BufReader},
    process::Command,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::{
    ebpf::VERIFIED_LIMIT,
    excerpt::Excerpts,
    process::{self, say},
    test::{Tally, parse_result},
};

/// Begins the lines that the machine's first process says itself.
const MARK: &str = "netpath-vm: ";
/// Seconds of the machine's CPU from which on a test that passes is shown.
const SLOW: u64 = 10;
/// The step that has the verifier's counts.
const PROGRAMS: &str = "programs";

/// What is known of a machine's run.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    /// Instructions the verifier walked, by program.
    verified: BTreeMap<String, u64>,
    /// Steps that ended: exit status and, of tests, the summary.
    steps: BTreeMap<String, (i32, Option<Tally>)>,
    /// The step that runs.
    current: Option<(String, Option<Tally>)>,
    /// What its tests that failed said.
    said: Excerpts,
    /// The machine did not switch itself off.
    hung: bool,
}

/// Runs a machine until it switches itself off, at most for `patience`. Machines run beside each other: what one
/// says is told by `name`.
pub(super) fn follow(qemu: &mut Command, name: &str, patience: Duration) -> Result<Report> {
    let line = process::line(qemu);
    let mut child = qemu.spawn().with_context(|| format!("cannot start: {line}"))?;
    let console = child.stdout.take().with_context(|| format!("no output of: {line}"))?;
    let (sender, lines) = mpsc::channel();
    let reader = thread::spawn(move || {
        for text in BufReader::new(console).split(b'\n') {
            let Ok(text) = text else { return };
            if sender.send(String::from_utf8_lossy(&text).trim_end().to_owned()).is_err() {
                return;
            }
        }
    });
    let deadline = Instant::now() + patience;
    let mut report = Report::default();
    let mut last = 0;
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(text) => {
                // With one CPU tests run one after the other: what took long is shown as well.
                let now = cpu_seconds(child.id());
                let seconds = now.saturating_sub(last);
                last = now;
                match report.take(&text) {
                    true => say(format_args!("{name} [{now} s]: {text}")),
                    false if SLOW <= seconds => say(format_args!("{name} [{now} s]: {text}, {seconds} s")),
                    false => {}
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                report.hung = true;
                child.kill().with_context(|| format!("cannot kill: {line}"))?;
                break;
            }
        }
    }
    child.wait().with_context(|| format!("cannot wait for: {line}"))?;
    // It ends with its pipe.
    let _ = reader.join();
    Ok(report)
}

/// Seconds of CPU that a process has used: other than those of a clock they do not depend on what else runs.
fn cpu_seconds(process: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // What is in parentheses may have spaces; the fourteenth field and the next are ticks of a hundredth second.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum::<u64>() / 100
}

impl Report {
    /// Takes a line of the console in; whether people are to see it.
    fn take(&mut self, line: &str) -> bool {
        if let Some(mark) = line.strip_prefix(MARK) {
            return self.mark(mark);
        }
        self.said.take(line);
        let Some((step, tally)) = &mut self.current else { return !line.is_empty() };
        if step == PROGRAMS
            && let Some((name, count)) = verified(line)
        {
            self.verified.insert(name, count);
        } else if let Some(result) = parse_result(line) {
            *tally = Some(result);
        } else if line.is_empty() || line.ends_with(" ... ok") {
            return false;
        }
        true
    }

    fn mark(&mut self, mark: &str) -> bool {
        match mark.split(' ').collect::<Vec<_>>()[..] {
            ["begin", step] => self.current = Some((step.to_owned(), None)),
            ["end", step, status] => {
                let tally = self.current.take().and_then(|(_, tally)| tally);
                self.steps.insert(step.to_owned(), (status.parse().unwrap_or(-1), tally));
                return status != "0";
            }
            _ => {}
        }
        true
    }

    /// Takes in what another machine of the same kernel did.
    pub(super) fn add(&mut self, other: &Self) {
        self.verified.extend(other.verified.clone());
        self.steps.extend(other.steps.clone());
    }

    /// What its tests that failed said, one text each.
    pub(super) fn excerpts(&self) -> Vec<String> {
        self.said.clone().into_texts()
    }

    /// What the summaries of its tests add up to.
    pub(super) fn tally(&self) -> Tally {
        self.steps.values().filter_map(|(_, tally)| *tally).fold(Tally::default(), Tally::and)
    }

    /// Everything that is not as it must be; `tests` are the names of all that were to run, `verifier` whether
    /// the programs were to be loaded.
    pub(super) fn problems<'a>(&self, verifier: bool, tests: impl Iterator<Item = &'a str>) -> Vec<String> {
        let mut problems = Vec::new();
        if self.hung {
            let during = self.current.as_ref().map_or("no step", |(step, _)| step);
            problems.push(format!("the machine did not switch itself off in time; it was at: {during}"));
        }
        match self.steps.get(PROGRAMS) {
            _ if !verifier => {}
            Some((0, _)) if !self.verified.is_empty() => {}
            Some((status, _)) => problems.push(format!("`netpath programs` ended with status {status}")),
            None => problems.push("`netpath programs` did not run to its end".to_owned()),
        }
        for (program, count) in self.verified.iter().filter(|(_, count)| VERIFIED_LIMIT < **count) {
            problems.push(format!(
                "the verifier walks {count} instructions of program {program}; the limit is {VERIFIED_LIMIT}"
            ));
        }
        for test in tests {
            match self.steps.get(test) {
                Some((0, Some(Tally { passed: 1.., failed: 0, ignored: 0 }))) => {}
                Some((status, Some(Tally { passed, failed, ignored }))) => problems.push(format!(
                    "{test}: {passed} passed, {failed} failed, {ignored} ignored, status {status}"
                )),
                Some((status, None)) => problems.push(format!("{test}: no summary, status {status}")),
                None => problems.push(format!("{test}: did not run to its end")),
            }
        }
        for (step, (status, _)) in self.steps.iter().filter(|(step, _)| step.starts_with("load-")) {
            problems.push(format!("{step}: status {status}"));
        }
        problems
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { passed, failed, .. } = self.tally();
        for (program, count) in &self.verified {
            write!(f, "{program} {count} verified, ")?;
        }
        write!(f, "{passed} passed, {failed} failed")
    }
}

/// Reads a line of `netpath programs`.
fn verified(line: &str) -> Option<(String, u64)> {
    let row: serde_json::Value = serde_json::from_str(line).ok()?;
    Some((row["name"].as_str()?.to_owned(), row["verified_instructions"].as_u64()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "netpath-vm: begin programs
{\"name\":\"egress\",\"verified_instructions\":7512}

netpath-vm: end programs 0
netpath-vm: begin bpf_programs
test a ... ok
test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s

netpath-vm: end bpf_programs 0";

    fn report(console: &str) -> Report {
        let mut report = Report::default();
        for line in console.lines() {
            report.take(line);
        }
        report
    }

    fn problems(console: &str) -> Vec<String> {
        report(console).problems(true, ["bpf_programs"].into_iter())
    }

    #[test]
    fn a_good_run_has_no_problem() {
        assert_eq!(problems(GOOD), [""; 0]);
        assert_eq!(report(GOOD).to_string(), "egress 7512 verified, 2 passed, 0 failed");
        assert_eq!(report(GOOD).tally(), Tally { passed: 2, failed: 0, ignored: 0 });
    }

    #[test]
    fn whatever_is_missing_is_a_problem() {
        let lines: Vec<&str> = GOOD.lines().collect();
        for cut in 0..lines.len() {
            assert!(!problems(&lines[..cut].join("\n")).is_empty(), "cut after {cut} lines");
        }
        for missing in ["test result", "{\"name\"", "netpath-vm: end programs"] {
            let rest: Vec<&str> = lines.iter().copied().filter(|line| !line.starts_with(missing)).collect();
            assert!(!problems(&rest.join("\n")).is_empty(), "without {missing}");
        }
    }

    #[test]
    fn where_the_programs_are_refused_nothing_is_asked_of_the_verifier() {
        let tests: Vec<&str> = GOOD.lines().skip(4).collect();
        assert_eq!(report(&tests.join("\n")).problems(false, ["bpf_programs"].into_iter()), [""; 0]);
    }

    #[test]
    fn failures_are_problems() {
        for (from, to, problem) in [
            ("0 failed", "1 failed", "bpf_programs: 2 passed, 1 failed, 0 ignored, status 0"),
            ("0 ignored", "1 ignored", "bpf_programs: 2 passed, 0 failed, 1 ignored, status 0"),
            ("2 passed", "0 passed", "bpf_programs: 0 passed, 0 failed, 0 ignored, status 0"),
            (
                "end bpf_programs 0",
                "end bpf_programs 101",
                "bpf_programs: 2 passed, 0 failed, 0 ignored, status 101",
            ),
            (
                "7512",
                "200001",
                "the verifier walks 200001 instructions of program egress; the limit is 200000",
            ),
            ("end programs 0", "end programs 1", "`netpath programs` ended with status 1"),
        ] {
            assert_eq!(problems(&GOOD.replace(from, to)), [problem]);
        }
    }
}
