//! What a row of figures says of itself: the middle, and how far it spreads.

use std::fmt::{Display, Formatter, Result};

/// Measurements of one thing, in the order in which they were taken: rounds of two things can be held side by side.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// Adds one.
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The one in the middle; the mean of two where there is no middle.
    pub(crate) fn median(&self) -> f64 {
        let sorted = self.sorted();
        let middle = sorted.len() / 2;
        match (sorted.get(middle), sorted.len() % 2) {
            (Some(value), 1) => *value,
            (Some(value), _) => (value + sorted[middle - 1]) / 2.0,
            (None, _) => f64::NAN,
        }
    }

    /// Between what values eight in ten lie.
    pub(crate) fn spread(&self) -> (f64, f64) {
        let sorted = self.sorted();
        let at = |tenths: usize| {
            let index = (sorted.len().saturating_sub(1) * tenths + 5) / 10;
            sorted.get(index).copied().unwrap_or(f64::NAN)
        };
        (at(1), at(9))
    }

    /// Round by round; `None` where they are not of the same rounds.
    pub(crate) fn paired(&self, other: &Self, f: impl Fn(f64, f64) -> f64) -> Option<Self> {
        let pairs = || self.0.iter().zip(&other.0).map(|(a, b)| f(*a, *b));
        (self.len() == other.len()).then(|| Self(pairs().collect()))
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

/// `87 (85 to 91)`, with decimals where the middle has few digits before them.
impl Display for Samples {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let ((low, high), median) = (self.spread(), self.median());
        let decimals = decimals(median);
        write!(f, "{median:.decimals$} ({low:.decimals$} to {high:.decimals$})")
    }
}

/// How many decimals a value has that is to have three digits in all.
pub(crate) fn decimals(value: f64) -> usize {
    match value.abs() {
        small if small < 10.0 => 2,
        middling if middling < 100.0 => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[f64]) -> Samples {
        values.iter().copied().collect()
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
        assert_eq!(of(&[7.0]).to_string(), "7.00 (7.00 to 7.00)");
        assert_eq!(of(&[107.4, 99.6]).to_string(), "104 (100 to 107)");
    }

    #[test]
    fn rounds_are_held_side_by_side_in_their_order() {
        let ratio = of(&[6.0, 2.0, 9.0]).paired(&of(&[3.0, 2.0, 1.0]), |a, b| a / b);
        assert_eq!(ratio, Some(of(&[2.0, 1.0, 9.0])));
        assert_eq!(of(&[1.0]).paired(&of(&[1.0, 2.0]), |a, b| a / b), None);
    }
}
