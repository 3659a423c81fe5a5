//! Who follows whom.

use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};

/// In which order a round goes through `count` cases: another one each time, and the same in every run.
///
/// Whoever follows a DEL waits for what that left to be done, a fifth of a millisecond, and whoever follows itself finds its caches as it
/// left them: neither may always be the same one.
pub(crate) fn order(round: usize, count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by_cached_key(|at| BuildHasherDefault::<DefaultHasher>::default().hash_one((round, at)));
    order
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_case_follows_every_other_one() {
        let count = 10;
        let mut followed = BTreeSet::new();
        for round in 0..200 {
            let order = order(round, count);
            assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), count, "{order:?}");
            followed.extend(order.windows(2).map(|pair| (pair[0], pair[1])));
        }
        assert_eq!(followed.len(), count * (count - 1));
    }
}
