//! The goals: what a figure may be of another one, read from `goals.toml` and held against what a run took.

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::{
    figures::{Figure, Figures},
    samples::Samples,
};

/// What is to be reached, as it was decided; a run does not move it.
const TEXT: &str = include_str!("../goals.toml");

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    goal: Vec<Goal>,
}

/// One line of the table. Several lines may share an id.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Goal {
    /// `P1` to `P20`.
    pub(crate) id: String,
    /// What is claimed.
    pub(crate) what: String,
    /// The figure that is held against the goal.
    pub(crate) ours: String,
    /// What it is held against: the sum of these figures of the same run. None: the limit is in the unit of `ours`.
    #[serde(default)]
    pub(crate) peer: Vec<String>,
    /// `ours / peer`, or `ours`, is to be no more.
    pub(crate) at_most: Option<f64>,
    /// `peer / ours` is to be no less: how many times cheaper we are.
    pub(crate) cheaper: Option<f64>,
}

/// What came of a goal.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Outcome {
    /// What was found, and whether it is enough.
    Held { ours: Samples, peer: Option<Samples>, value: Samples, reached: bool },
    /// This machine cannot say.
    Missing(String),
    /// This run did not take a figure that the goal needs.
    NotTaken,
}

/// All of them.
pub(crate) fn all() -> Result<Vec<Goal>> {
    parse(TEXT)
}

fn parse(text: &str) -> Result<Vec<Goal>> {
    let file: File = toml::from_str(text).context("goals.toml")?;
    for goal in &file.goal {
        let Goal { id, at_most, cheaper, peer, .. } = goal;
        ensure!(at_most.is_some() != cheaper.is_some(), "{id}: either `at_most` or `cheaper`");
        ensure!(cheaper.is_none() || !peer.is_empty(), "{id}: `cheaper` than what? `peer` is missing");
    }
    Ok(file.goal)
}

/// Those with one of these ids; all where none is named.
pub(crate) fn select(goals: Vec<Goal>, only: &[String]) -> Result<Vec<Goal>> {
    let mut known: Vec<&str> = goals.iter().map(|goal| goal.id.as_str()).collect();
    known.dedup();
    for id in only {
        ensure!(known.contains(&id.as_str()), "--only {id}: no such goal; there are {}", known.join(", "));
    }
    Ok(goals.into_iter().filter(|goal| only.is_empty() || only.contains(&goal.id)).collect())
}

impl Goal {
    /// Names of the suites whose figures it needs.
    pub(crate) fn suites(&self) -> impl Iterator<Item = &str> {
        self.figures().filter_map(|figure| figure.split('/').next())
    }

    fn figures(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.ours.as_str()).chain(self.peer.iter().map(String::as_str))
    }

    /// Whether the value is a ratio of two figures; else it has the unit of `ours`.
    pub(crate) fn is_ratio(&self) -> bool {
        !self.peer.is_empty()
    }

    /// The limit, as it is written in the table.
    pub(crate) fn limit(&self) -> String {
        match (self.at_most, self.cheaper) {
            (Some(limit), _) => format!("≤ {limit}"),
            (None, Some(limit)) => format!("≥ {limit} × cheaper"),
            (None, None) => String::new(),
        }
    }

    /// What came of it, where `slack` times the limit is enough: 1, or more where other work disturbs a run.
    pub(crate) fn held(&self, figures: &Figures, slack: f64) -> Outcome {
        for name in self.figures() {
            match figures.get(name) {
                Some(Figure::Taken { .. }) => (),
                Some(Figure::Missing(why)) => return Outcome::Missing(why.clone()),
                None => return Outcome::NotTaken,
            }
        }
        self.value(figures).map_or(Outcome::NotTaken, |(ours, peer, value)| {
            let reached = self.is_reached(value.median(), slack);
            Outcome::Held { ours, peer, value, reached }
        })
    }

    /// Ours, the peers' sum, and what is held against the limit, round by round. None where they are not of the same rounds.
    fn value(&self, figures: &Figures) -> Option<(Samples, Option<Samples>, Samples)> {
        let ours = figures.samples(&self.ours)?.clone();
        let mut peer: Option<Samples> = None;
        for name in &self.peer {
            let more = figures.samples(name)?;
            peer = Some(match peer {
                Some(sum) => sum.paired(more, |a, b| a + b)?,
                None => more.clone(),
            });
        }
        let value = match (&peer, self.cheaper) {
            (None, _) => ours.clone(),
            (Some(peer), None) => ours.paired(peer, quotient)?,
            (Some(peer), Some(_)) => peer.paired(&ours, quotient)?,
        };
        Some((ours, peer, value))
    }

    fn is_reached(&self, found: f64, slack: f64) -> bool {
        match (self.at_most, self.cheaper) {
            (Some(limit), _) => found <= limit * slack,
            (None, Some(limit)) => limit / slack <= found,
            (None, None) => false,
        }
    }
}

/// No number where there is nothing to divide by: a difference may come out as nothing, or less, and reaches no goal then.
fn quotient(a: f64, b: f64) -> f64 {
    if 0.0 < b { a / b } else { f64::NAN }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::figures::Unit;

    fn goal(text: &str) -> Goal {
        parse(&format!("[[goal]]\nid = \"P1\"\nwhat = \"it\"\nours = \"live/a\"\n{text}"))
            .expect("a goal")
            .remove(0)
    }

    fn figures(all: &[(&str, &[f64])]) -> Figures {
        let mut figures = Figures::default();
        for (name, values) in all {
            figures.put(*name, Unit::Nanoseconds, values.iter().copied().collect());
        }
        figures
    }

    fn reached(goal: &Goal, all: &[(&str, &[f64])], slack: f64) -> Option<(f64, bool)> {
        match goal.held(&figures(all), slack) {
            Outcome::Held { value, reached, .. } => Some((value.median(), reached)),
            Outcome::Missing(_) | Outcome::NotTaken => None,
        }
    }

    #[test]
    fn every_goal_of_the_file_is_well_formed() {
        let goals = all().expect("goals.toml");
        let ids: BTreeSet<&str> = goals.iter().map(|goal| goal.id.as_str()).collect();
        for number in (1..=20).filter(|number| *number != 19) {
            assert!(ids.contains(format!("P{number}").as_str()), "P{number}");
        }
        let suites: BTreeSet<&str> = goals.iter().flat_map(Goal::suites).collect();
        assert_eq!(suites, BTreeSet::from(["cni", "live", "micro", "sync"]));
    }

    #[test]
    fn a_ratio_is_the_middle_of_the_rounds_and_not_of_their_middles() {
        let goal = goal("peer = [\"live/b\"]\nat_most = 1.1");
        assert_eq!(
            reached(&goal, &[("live/a", &[1.0, 20.0, 3.0]), ("live/b", &[1.0, 10.0, 3.0])], 1.0),
            Some((1.0, true))
        );
        assert_eq!(reached(&goal, &[("live/a", &[3.0, 5.0]), ("live/b", &[2.0])], 1.0), None);
    }

    #[test]
    fn nothing_to_divide_by_reaches_no_goal() {
        for text in ["at_most = 2.0", "cheaper = 2.0"] {
            let goal = goal(&format!("peer = [\"live/b\"]\n{text}"));
            let (ours, peer): (&[f64], &[f64]) =
                if text.starts_with("at") { (&[1.0], &[-1.0]) } else { (&[0.0], &[1.0]) };
            let held = reached(&goal, &[("live/a", ours), ("live/b", peer)], 1.0);
            assert!(held.is_some_and(|(value, reached)| value.is_nan() && !reached), "{text}");
        }
    }

    #[test]
    fn limits_are_included_and_slack_widens_them_on_the_right_side() {
        let most = goal("peer = [\"live/b\"]\nat_most = 2.0");
        let at = |value: f64, slack| reached(&most, &[("live/a", &[value]), ("live/b", &[1.0])], slack);
        assert_eq!(at(2.0, 1.0), Some((2.0, true)));
        assert_eq!(at(2.25, 1.0), Some((2.25, false)));
        assert_eq!(at(2.25, 1.15), Some((2.25, true)));
        let cheaper = goal("peer = [\"live/b\"]\ncheaper = 4.0");
        let at = |value: f64, slack| reached(&cheaper, &[("live/a", &[1.0]), ("live/b", &[value])], slack);
        assert_eq!(at(4.0, 1.0), Some((4.0, true)));
        assert_eq!(at(3.5, 1.0), Some((3.5, false)));
        assert_eq!(at(3.5, 1.15), Some((3.5, true)));
    }

    #[test]
    fn several_peers_are_added() {
        let goal = goal("peer = [\"live/b\", \"live/c\"]\nat_most = 1.0");
        assert_eq!(
            reached(&goal, &[("live/a", &[3.0]), ("live/b", &[1.0]), ("live/c", &[3.0])], 1.0),
            Some((0.75, true))
        );
    }

    #[test]
    fn a_goal_without_peer_has_the_unit_of_its_figure() {
        let goal = goal("at_most = 15.0");
        assert_eq!(reached(&goal, &[("live/a", &[14.0, 16.0, 13.0])], 1.0), Some((14.0, true)));
        assert!(!goal.is_ratio());
    }

    #[test]
    fn what_a_kernel_lacks_is_neither_won_nor_lost() {
        let goal = goal("peer = [\"live/b\"]\nat_most = 1.0");
        let mut found = figures(&[("live/a", &[1.0])]);
        assert_eq!(goal.held(&found, 1.0), Outcome::NotTaken);
        found.miss("live/b", "not in this kernel");
        assert_eq!(goal.held(&found, 1.0), Outcome::Missing("not in this kernel".to_owned()));
    }

    #[test]
    fn mistakes_in_the_file_are_named() {
        let of = |text: &str| {
            let head = "[[goal]]\nid = \"P1\"\nwhat = \"it\"\nours = \"a\"\n";
            format!("{:#}", parse(&format!("{head}{text}")).expect_err("a mistake"))
        };
        assert!(of("").contains("P1: either"), "{}", of(""));
        assert!(of("at_most = 1.0\ncheaper = 2.0").contains("P1: either"));
        assert!(of("cheaper = 2.0").contains("`peer` is missing"));
        assert!(of("at_least = 2.0").contains("at_least"));
        let unknown = select(all().expect("goals"), &["P99".to_owned()]).expect_err("no such goal");
        assert!(unknown.to_string().contains("P99"), "{unknown}");
    }
}
