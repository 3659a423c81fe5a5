//! The table of goals, and which ratios are beyond theirs.

use std::fmt::Write as _;

use crate::{
    figures::{Figure, Figures, Unit},
    goals::{Goal, Outcome},
    samples::{Samples, decimals},
};

/// The table, as Markdown; only goals of which this run took something.
pub(crate) fn table(goals: &[Goal], figures: &Figures) -> String {
    let mut text = String::from(
        "\n## Goals\n\n| goal | what | ours | peer | found | limit | reached |\n|---|---|---:|---:|---:|---:|---|\n",
    );
    for goal in goals {
        let Goal { id, what, ours, .. } = goal;
        let unit = match figures.get(ours) {
            Some(Figure::Taken { unit, .. }) => unit.symbol(),
            Some(Figure::Missing(_)) | None => "",
        };
        let limit = goal.limit();
        // Writing into a `String` cannot fail.
        let _ = match goal.held(figures, 1.0) {
            Outcome::NotTaken if was_due(goal, figures) => {
                writeln!(text, "| {id} | {what} | | | | {limit} | **not taken** |")
            }
            Outcome::NotTaken => Ok(()),
            Outcome::Missing(why) => writeln!(text, "| {id} | {what} | | | | {limit} | {why} |"),
            Outcome::Held { ours, peer, value, reached } => {
                let amount = |samples: &Samples| {
                    let median = samples.median();
                    format!("{median:.*} {unit}", decimals(median)).trim_end().to_owned()
                };
                let found = match goal.is_ratio() {
                    true => format!("{:.2}", value.median()),
                    false => amount(&value),
                };
                let (ours, peer) = (amount(&ours), peer.as_ref().map(amount).unwrap_or_default());
                let reached = if reached { "yes" } else { "**no**" };
                writeln!(text, "| {id} | {what} | {ours} | {peer} | {found} | {limit} | {reached} |")
            }
        };
    }
    text
}

/// A line for each ratio, share or size beyond its goal, and for each goal without a figure. A time is never a failure: it says more of
/// the machine than of us.
pub(crate) fn beyond(goals: &[Goal], figures: &Figures, slack: f64) -> Vec<String> {
    goals
        .iter()
        .filter_map(|goal| match goal.held(figures, slack) {
            Outcome::Held { value, reached: false, .. } if says_of_us(goal, figures) => {
                let Goal { id, what, .. } = goal;
                Some(format!("{id}: {:.2}, not {}: {what}", value.median(), goal.limit()))
            }
            Outcome::NotTaken if was_due(goal, figures) => {
                Some(format!("{}: not taken: {}", goal.id, goal.what))
            }
            Outcome::Held { .. } | Outcome::Missing(_) | Outcome::NotTaken => None,
        })
        .collect()
}

/// Whether it says something of us on any machine: a ratio, a share of a CPU, an amount of memory. Counts are [`miscounted`].
fn says_of_us(goal: &Goal, figures: &Figures) -> bool {
    let is_amount =
        |figure: &Figure| matches!(figure, Figure::Taken { unit: Unit::Percent | Unit::Mebibytes, .. });
    goal.is_ratio() || figures.get(&goal.ours).is_some_and(is_amount)
}

/// A line for each count beyond its goal: whatever the machine is like, packets and devices can be counted.
pub(crate) fn miscounted(goals: &[Goal], figures: &Figures) -> Vec<String> {
    let is_count =
        |goal: &Goal| matches!(figures.get(&goal.ours), Some(Figure::Taken { unit: Unit::Number, .. }));
    let counts = goals.iter().filter(|goal| is_count(goal));
    counts
        .filter_map(|goal| match goal.held(figures, 1.0) {
            Outcome::Held { value, reached: false, .. } => {
                Some(format!("{}: {}, not {}: {}", goal.id, value.median(), goal.limit(), goal.what))
            }
            _ => None,
        })
        .collect()
}

/// Whether all suites that a goal needs have run: then a figure that is not there is a mistake, and not somebody's choice.
fn was_due(goal: &Goal, figures: &Figures) -> bool {
    let ran = |suite: &str| figures.iter().any(|(name, _)| name.split('/').next() == Some(suite));
    goal.suites().all(ran)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goals;

    fn goal(id: &str) -> Goal {
        goals::all().expect("goals").into_iter().find(|goal| goal.id == id).expect("such a goal")
    }

    #[test]
    fn a_goal_has_a_line_where_something_was_taken_and_none_elsewhere() {
        let mut figures = Figures::default();
        figures.put("live/ingress/denied/netpath/100", Unit::Nanoseconds, [300.0].into_iter().collect());
        figures.put("live/ingress/denied/xdp-empty", Unit::Nanoseconds, [200.0].into_iter().collect());
        let goals = [goal("P5"), goal("P12")];
        let text = table(&goals, &figures);
        assert!(text.contains("| 300 ns | 200 ns | 1.50 | ≤ 1.35 | **no** |"), "{text}");
        assert!(!text.contains("P12"), "{text}");
        let text = table(&[goal("P9")], &figures);
        assert!(text.contains("**not taken**"), "{text}");
        assert_eq!(beyond(&[goal("P9"), goal("P12")], &figures, 1.0).len(), 1);
        assert_eq!(beyond(&goals, &figures, 1.0).len(), 1);
        assert!(beyond(&goals, &figures, 1.15).is_empty());
    }

    #[test]
    fn a_time_is_shown_and_never_a_failure() {
        let goal = Goal { ours: "sync/fill/10000".to_owned(), ..goal("P14") };
        let mut figures = Figures::default();
        figures.put("sync/fill/10000", Unit::Milliseconds, [129.0].into_iter().collect());
        assert!(
            table(std::slice::from_ref(&goal), &figures).contains("| 129 ms |  | 129 ms | ≤ 15 | **no** |")
        );
        assert!(beyond(std::slice::from_ref(&goal), &figures, 1.0).is_empty());
        // Unless there is none.
        let goal = Goal { ours: "sync/fill/1".to_owned(), ..goal };
        assert_eq!(beyond(&[goal], &figures, 1.0).len(), 1);
    }

    #[test]
    fn a_count_beyond_its_goal_is_a_failure_and_a_time_is_none() {
        let mut figures = Figures::default();
        figures.put("live/flood/uncounted", Unit::Number, [1.0].into_iter().collect());
        figures.put("live/flood/agent", Unit::Percent, [99.0].into_iter().collect());
        let goals = goals::all().expect("goals");
        let agents: Vec<Goal> =
            goals.iter().filter(|goal| goal.ours == "live/flood/agent").cloned().collect();
        assert_eq!(beyond(&agents, &figures, 1.0).len(), 1, "a share is no time");
        let lines = miscounted(&goals, &figures);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].starts_with("P10: 1, not ≤ 0"), "{lines:?}");
    }
}
