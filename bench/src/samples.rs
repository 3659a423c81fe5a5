//! What a row of figures says of itself: the middle, and how far it spreads.

use std::fmt::{Display, Formatter, Result};

/// Measurements of one thing.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// Adds one.
    pub(crate) fn push(&mut self, value: f64) {
        let at = self.0.partition_point(|other| *other < value);
        self.0.insert(at, value);
    }

    /// The one in the middle; the mean of two where there is no middle.
    pub(crate) fn median(&self) -> f64 {
        let middle = self.0.len() / 2;
        match (self.0.get(middle), self.0.len() % 2) {
            (Some(value), 1) => *value,
            (Some(value), _) => (value + self.0[middle - 1]) / 2.0,
            (None, _) => f64::NAN,
        }
    }

    /// Between what values eight in ten lie.
    pub(crate) fn spread(&self) -> (f64, f64) {
        let at = |tenths: usize| {
            let index = (self.0.len().saturating_sub(1) * tenths + 5) / 10;
            self.0.get(index).copied().unwrap_or(f64::NAN)
        };
        (at(1), at(9))
    }
}

/// `87 (85 to 91)`.
impl Display for Samples {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let (low, high) = self.spread();
        write!(f, "{:.0} ({low:.0} to {high:.0})", self.median())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[f64]) -> Samples {
        let mut samples = Samples::default();
        values.iter().for_each(|value| samples.push(*value));
        samples
    }

    #[test]
    fn the_middle_is_the_middle_whatever_the_order() {
        assert_eq!(of(&[3.0, 1.0, 2.0]).median(), 2.0);
        assert_eq!(of(&[4.0, 1.0, 3.0, 2.0]).median(), 2.5);
        assert!(of(&[]).median().is_nan());
    }

    #[test]
    fn two_in_ten_lie_outside_the_spread() {
        let values: Vec<f64> = (0..=10).map(f64::from).collect();
        assert_eq!(of(&values).spread(), (1.0, 9.0));
        assert_eq!(of(&[7.0]).to_string(), "7 (7 to 7)");
    }
}
