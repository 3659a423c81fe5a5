//! How often what others undo is done again: two programs must not chase each other for ever.

use std::{collections::BTreeMap, time::Duration};

use crate::kernel::bpf::{Hook, attach::HookState};

/// Repairs of one thing within [`WINDOW`].
const TIMES: usize = 3;
const WINDOW: Duration = Duration::from_secs(600);

/// What was repaired when. Times are of any clock that does not go back.
#[derive(Debug, Default)]
pub(super) struct Repairs {
    done: BTreeMap<String, Vec<Duration>>,
}

impl Repairs {
    /// Whether `what` may be repaired once more at `now`; if so it counts as done.
    pub(super) fn allow(&mut self, what: &str, now: Duration) -> bool {
        let times = self.done.entry(what.to_owned()).or_default();
        times.retain(|then| now.saturating_sub(*then) < WINDOW);
        if TIMES <= times.len() {
            return false;
        }
        times.push(now);
        true
    }
}

/// The hooks that should work and do not.
pub(super) fn missing(states: &[HookState], wants_xdp: bool) -> Vec<Hook> {
    let works = |hook: Hook| states.iter().any(|state| state.hook == hook && state.live && state.bound);
    Hook::ALL.into_iter().filter(|hook| (*hook != Hook::Xdp || wants_xdp) && !works(*hook)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_times_in_ten_minutes_each() {
        let mut repairs = Repairs::default();
        let at = Duration::from_secs;
        assert!([0, 1, 2].iter().all(|second| repairs.allow("a", at(*second))));
        assert!(!repairs.allow("a", at(3)) && repairs.allow("b", at(3)));
        assert!(!repairs.allow("a", at(599)));
        assert!(repairs.allow("a", at(600)), "the first is forgotten");
        assert!(!repairs.allow("a", at(600)));
    }
}
