//! What runs in the machines: which tests on which kernel, in which company, and which not.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use super::Series;
use crate::{
    process::{self, say},
    test, workspace,
};

/// The one file of tests for kernels that netpath refuses, which runs nowhere else.
const REFUSAL: &str = "vm_refusal";

/// What runs a second time with the administrator's word for clsact where a kernel has TCX: which hook sees what.
/// All the rest runs by clsact on the kernel that has nothing else, and by both ways on the machine's own.
const BOTH_WAYS: &[&str] = &["kernel_hooks"];

/// The variable by which the tests' nodes get a word for `tc` into masters.json, and by which a test that would
/// attach by both ways does it by one.
const AS_USUAL: &str = "NETPATH_TEST_TC=auto";
const BY_CLSACT: &str = "NETPATH_TEST_TC=clsact";

/// What runs on one of the kernels that police, since it has little to do with how programs are attached or shows
/// what the other has not. All the rest runs on each.
const ON_ONE: &[(&str, Series)] = &[
    ("kernel_agent", Series::V6_1),
    ("kernel_agent_conflicts", Series::V6_1),
    ("kernel_attach_beside", Series::V6_12),
    ("kernel_attach_bpffs", Series::V6_1),
    ("kernel_attach_lost", Series::V6_1),
    ("kernel_attach_nic", Series::V6_1),
    ("kernel_attach_others", Series::V6_12),
    ("kernel_attach_races", Series::V6_12),
    ("kernel_cli", Series::V6_12),
    ("kernel_counters", Series::V6_1),
    ("kernel_host", Series::V6_1),
    ("kernel_link", Series::V6_1),
    ("kernel_ports", Series::V6_12),
    ("kernel_upgrade_abi", Series::V6_1),
    ("kernel_zone", Series::V6_1),
];

/// What every test has in its environment: an emulated CPU is some thirty times slower than this one, so what is
/// repeated often is repeated a thirtieth as often. The full number runs on the machine's own kernel.
const ENVIRONMENT: &str = "NETPATH_TEST_PART=30";

/// Seconds of its CPU that files of tests take in a machine, of those that take more than [`USUAL`]:
/// by these they are spread over machines. What is wrong here costs time and nothing else.
const SECONDS: &[(&str, u32)] = &[
    ("bpf_programs", 100),
    ("kernel_agent", 90),
    ("kernel_agent_conflicts", 90),
    ("kernel_attach", 50),
    ("kernel_attach_beside", 60),
    ("kernel_attach_bpffs", 50),
    ("kernel_attach_lost", 100),
    ("kernel_attach_nic", 40),
    ("kernel_attach_others", 40),
    ("kernel_attach_races", 70),
    ("kernel_attacks", 150),
    ("kernel_cli", 50),
    ("kernel_counters", 45),
    ("kernel_host", 40),
    ("kernel_hooks", 20),
    ("kernel_link", 25),
    ("kernel_reject", 40),
    ("kernel_upgrade", 100),
    ("kernel_upgrade_abi", 250),
    ("kernel_zone", 25),
    ("vm_masters", 40),
];
const USUAL: u32 = 10;

/// Seconds that one machine is given to do: enough that starting it does not count, and so few that the last one
/// does not run alone for long.
const SHARE: u32 = 75;

/// Tests that a kernel, or any of these machines, cannot run. Whatever is not named here runs.
const LEFT_OUT: &[LeftOut] = &[
    LeftOut {
        test: "zones::a_zone_that_is_replaced_under_load_is_never_half_written",
        on: &Series::ALL,
        why: "a race of two CPUs over 100,000 packets; the machine has one CPU, which is emulated",
    },
    LeftOut {
        test: "networks_follow_the_api_through_all_that_a_watch_meets",
        on: &Series::ALL,
        why: "agent, API server and pods would share one emulated CPU; nothing of it depends on the kernel",
    },
    LeftOut {
        test: "owners_are_told_of_drops_and_of_what_is_missing",
        on: &Series::ALL,
        why: "agent, API server and pods would share one emulated CPU; nothing of it depends on the kernel",
    },
    LeftOut {
        test: "an_address_that_a_host_takes_is_counted_logged_and_told",
        on: &Series::ALL,
        why: "agent, API server and pods would share one emulated CPU; nothing of it depends on the kernel",
    },
    LeftOut {
        test: "the_administrators_word_comes_from_the_cluster",
        on: &Series::ALL,
        why: "agent, API server and pods would share one emulated CPU; nothing of it depends on the kernel",
    },
    LeftOut {
        test: "ours_comes_first_and_others_still_see_what_may_pass",
        on: &[Series::V6_1],
        why: "a chain of programs at one hook is TCX's; a second netpath would replace the filter of the first",
    },
    LeftOut {
        test: "status_names_the_program_that_comes_before_ours_at_a_tcx_hook",
        on: &[Series::V6_1],
        why: "a chain of programs at one hook is TCX's",
    },
    LeftOut {
        test: "attachment::row_24_tcx_does_not_mind_qdiscs",
        on: &[Series::V6_1],
        why: "it asks for TCX, which this kernel lacks",
    },
    LeftOut {
        test: "attachment::row_24_a_program_that_stands_in_front_and_accepts_is_named",
        on: &[Series::V6_1],
        why: "it asks for TCX, which this kernel lacks",
    },
];

/// A test that does not run.
struct LeftOut {
    test: &'static str,
    on: &'static [Series],
    why: &'static str,
}

/// A test binary.
pub(super) struct TestBinary {
    pub(super) name: String,
    pub(super) path: PathBuf,
}

/// A run of a test binary in a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) name: String,
    pub(super) test: String,
    environment: &'static str,
}

impl Step {
    /// As the machine's shell runs it.
    pub(super) fn line(&self, series: Series) -> String {
        let Self { name, test, environment } = self;
        let skipped: String = left_out(series).map(|left_out| format!(" --skip {}", left_out.test)).collect();
        format!("step {name} env {ENVIRONMENT} {environment} /tests/{test} --exact{skipped}\n")
    }

    fn seconds(&self) -> u32 {
        SECONDS.iter().find(|(test, _)| *test == self.test).map_or(USUAL, |(_, seconds)| *seconds)
    }
}

fn left_out(series: Series) -> impl Iterator<Item = &'static LeftOut> {
    LEFT_OUT.iter().filter(move |left_out| left_out.on.contains(&series))
}

/// Says what is left out, and fails if there is no such test.
pub(super) fn say_left_out(tests: &[TestBinary], whole: bool) -> Result<()> {
    let mut known = String::new();
    for TestBinary { path, .. } in tests {
        known.push_str(&process::output(std::process::Command::new(path).arg("--list"))?);
    }
    for LeftOut { test, on, why } in LEFT_OUT {
        let there = known.lines().any(|line| line.strip_suffix(": test") == Some(test));
        if whole && !there {
            bail!("`{test}` is left out in LEFT_OUT of xtask/src/vm/steps.rs, and no test has that name");
        }
        if there {
            let on: Vec<_> = on.iter().map(|series| series.number()).collect();
            say(format_args!("left out on {}: {test}: {why}", on.join(", ")));
        }
    }
    Ok(())
}

/// What runs on a kernel, by machine.
pub(super) fn shares(series: Series, tests: &[TestBinary]) -> Vec<Vec<Step>> {
    spread(steps(series, tests))
}

fn steps(series: Series, tests: &[TestBinary]) -> Vec<Step> {
    let mut steps = Vec::new();
    for TestBinary { name, .. } in tests {
        let elsewhere = ON_ONE.iter().any(|(file, only)| file == name && *only != series);
        if (name == REFUSAL) == series.is_supported() || elsewhere {
            continue;
        }
        steps.push(Step { name: name.clone(), test: name.clone(), environment: AS_USUAL });
        if series.has_tcx() && BOTH_WAYS.contains(&name.as_str()) {
            let again = format!("{name}-clsact");
            steps.push(Step { name: again, test: name.clone(), environment: BY_CLSACT });
        }
    }
    steps
}

/// Spreads steps over as many machines as they need: the longest first, each to the machine that has least to do.
fn spread(mut steps: Vec<Step>) -> Vec<Vec<Step>> {
    let total: u32 = steps.iter().map(Step::seconds).sum();
    let count = usize::try_from(total.div_ceil(SHARE)).unwrap_or(1);
    let mut shares: Vec<(u32, Vec<Step>)> = vec![Default::default(); count];
    steps.sort_by_key(|step| std::cmp::Reverse(step.seconds()));
    for step in steps {
        if let Some((seconds, share)) = shares.iter_mut().min_by_key(|(seconds, _)| *seconds) {
            *seconds += step.seconds();
            share.push(step);
        }
    }
    // Whatever takes longest begins first.
    shares.sort_by_key(|(seconds, _)| std::cmp::Reverse(*seconds));
    shares.into_iter().map(|(_, share)| share).filter(|share| !share.is_empty()).collect()
}

/// Builds the tests that need a kernel and nothing that these machines lack: the very ones that run on this kernel,
/// so that where those were built nothing is built here.
pub(super) fn binaries(only: &[String]) -> Result<Vec<TestBinary>> {
    let mut command = workspace::cargo()?;
    command.args(["test", "--quiet", "--locked", "--no-run", "--message-format=json", workspace::MEMBERS]);
    let targets = test::kernel_targets()?;
    if let Some(unknown) = only.iter().find(|name| !targets.contains(name)) {
        bail!("no file of tests for these machines is called `{unknown}`: {}", targets.join(", "));
    }
    for target in targets.into_iter().filter(|target| only.is_empty() || only.contains(target)) {
        command.args(["--test", &target]);
    }
    say(format_args!("$ {}", process::line(&command)));
    let messages = process::output(&mut command)?;
    let mut tests = Vec::new();
    for line in messages.lines() {
        let message: serde_json::Value =
            serde_json::from_str(line).with_context(|| format!("cargo did not print JSON: {line}"))?;
        if let (Some(path), Some(true)) =
            (message["executable"].as_str(), message["profile"]["test"].as_bool())
        {
            let name = message["target"]["name"].as_str().with_context(|| format!("no name in {line}"))?;
            tests.push(TestBinary { name: name.to_owned(), path: PathBuf::from(path) });
        }
    }
    if tests.is_empty() {
        bail!("cargo built no test");
    }
    tests.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tests)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_is_in_one_share_and_no_share_is_empty() {
        for count in 0..40 {
            let step = |number| Step { name: format!("{number}"), test: "x".to_owned(), environment: "" };
            let steps: Vec<Step> = (0..count).map(step).collect();
            let shares = spread(steps.clone());
            assert!(shares.iter().all(|share| !share.is_empty()), "{count}");
            let mut all: Vec<Step> = shares.concat();
            all.sort_by_key(|step| step.name.parse::<u32>().ok());
            assert_eq!(all, steps);
            assert_eq!(u32::try_from(shares.len()), Ok((count * USUAL).div_ceil(SHARE)), "{count}");
        }
    }

    #[test]
    fn where_there_is_tcx_hooks_are_shown_by_both_ways() {
        let tests = ["kernel_attacks", "kernel_hooks", "kernel_zone", REFUSAL]
            .map(|name| TestBinary { name: name.to_owned(), path: PathBuf::new() });
        let names =
            |series| -> Vec<String> { steps(series, &tests).into_iter().map(|step| step.name).collect() };
        assert_eq!(names(Series::V6_12), ["kernel_attacks", "kernel_hooks", "kernel_hooks-clsact"]);
        assert_eq!(names(Series::V6_1), ["kernel_attacks", "kernel_hooks", "kernel_zone"]);
        assert_eq!(names(Series::V5_10), [REFUSAL]);
    }
}
