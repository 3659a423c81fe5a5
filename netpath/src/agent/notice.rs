//! When a pod's owner is told of what happens to it: often enough to be of use, and never more than a cluster can bear.

use std::{collections::BTreeMap, time::Duration};

/// What an owner is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Topic {
    /// Drops for the reason of this number.
    Drops(u8),
    /// That somebody else has its address.
    Conflict,
}

/// One pod is told of one topic so often.
const PAUSE: Duration = Duration::from_secs(300);
/// A node tells so many in [`MINUTE`], of drops and of conflicts each: who provokes the one hides nothing of the other.
const PER_MINUTE: usize = 20;
const MINUTE: Duration = Duration::from_secs(60);
/// What is remembered: a pod that ends leaves its place to others.
const REMEMBERED: usize = 4096;

/// What was told when. Times are of any clock that does not go back.
#[derive(Debug, Default)]
pub(super) struct Notices {
    told: BTreeMap<(u32, u32, Topic), Duration>,
    lately: Vec<(bool, Duration)>,
}

impl Notices {
    /// Whether the owner of this use of an id may be told of this now; if so it counts as told.
    pub(super) fn allow(&mut self, (id, generation): (u32, u32), topic: Topic, now: Duration) -> bool {
        self.lately.retain(|(_, then)| now.saturating_sub(*then) < MINUTE);
        self.told.retain(|_, then| now.saturating_sub(*then) < PAUSE);
        let (key, is_conflict) = ((id, generation, topic), topic == Topic::Conflict);
        let lately = self.lately.iter().filter(|(other, _)| *other == is_conflict).count();
        if self.told.contains_key(&key) || PER_MINUTE <= lately || REMEMBERED <= self.told.len() {
            return false;
        }
        self.told.insert(key, now);
        self.lately.push((is_conflict, now));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_in_five_minutes_each_and_twenty_a_minute_in_all() {
        let mut notices = Notices::default();
        let at = Duration::from_secs;
        let drops = Topic::Drops(14);
        assert!(notices.allow((1, 1), drops, at(0)) && !notices.allow((1, 1), drops, at(299)));
        assert!(notices.allow((1, 1), Topic::Drops(15), at(1)), "another reason");
        assert!(notices.allow((1, 1), Topic::Conflict, at(1)), "no drop at all");
        assert!(notices.allow((1, 2), drops, at(2)), "another use of the id");
        assert!(notices.allow((1, 1), drops, at(300)));
        let mut notices = Notices::default();
        let told = (1..100).filter(|id| notices.allow((*id, 1), drops, at(0))).count();
        assert_eq!(told, PER_MINUTE);
        assert!(!notices.allow((200, 1), drops, at(59)) && notices.allow((200, 1), drops, at(60)));
    }
}
