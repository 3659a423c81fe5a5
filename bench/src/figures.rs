//! Everything that a run measured, by name, and where it goes: goals, history and plots read it here.

use std::collections::BTreeMap;

use crate::samples::Samples;

/// Unit of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Nanoseconds,
    Microseconds,
    Milliseconds,
    Mebibytes,
    /// Of one CPU.
    Percent,
    /// Things that were counted.
    Number,
}

impl Unit {
    /// As it is written behind a value.
    pub(crate) fn symbol(self) -> &'static str {
        match self {
            Self::Nanoseconds => "ns",
            Self::Microseconds => "us",
            Self::Milliseconds => "ms",
            Self::Mebibytes => "MiB",
            Self::Percent => "%",
            Self::Number => "",
        }
    }
}

/// What is known of a figure.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Figure {
    Taken {
        unit: Unit,
        samples: Samples,
    },
    /// This machine cannot take it, and why: neither a win nor a loss.
    Missing(String),
}

/// Figures by name: `SUITE/what/of what`, such as `live/egress/allowed/nft-list/10`.
#[derive(Debug, Default)]
pub(crate) struct Figures(BTreeMap<String, Figure>);

impl Figures {
    /// Sets a figure down. Samples of the same rounds are to have the same length, so that goals can pair them.
    pub(crate) fn put(&mut self, name: impl Into<String>, unit: Unit, samples: Samples) {
        self.insert(name.into(), Figure::Taken { unit, samples });
    }

    /// Sets down that a figure cannot be taken on this machine.
    pub(crate) fn miss(&mut self, name: impl Into<String>, why: impl Into<String>) {
        self.insert(name.into(), Figure::Missing(why.into()));
    }

    /// A figure, where it was taken or tried.
    pub(crate) fn get(&self, name: &str) -> Option<&Figure> {
        self.0.get(name)
    }

    /// Samples of a figure that was taken.
    pub(crate) fn samples(&self, name: &str) -> Option<&Samples> {
        match self.get(name) {
            Some(Figure::Taken { samples, .. }) => Some(samples),
            Some(Figure::Missing(_)) | None => None,
        }
    }

    /// All of them, by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Figure)> {
        self.0.iter().map(|(name, figure)| (name.as_str(), figure))
    }

    fn insert(&mut self, name: String, figure: Figure) {
        let before = self.0.insert(name, figure);
        debug_assert!(before.is_none(), "a name is of one figure: {before:?}");
    }
}
