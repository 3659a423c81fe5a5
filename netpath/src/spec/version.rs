//! Versions of the CNI protocol.

use std::fmt;

use super::env::Command;
use super::error::ConfError;

/// A version of the CNI protocol, older ones first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum CniVersion {
    V0_1_0,
    V0_2_0,
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl CniVersion {
    /// Every version we speak, oldest first.
    pub const ALL: [Self; 7] =
        [Self::V0_1_0, Self::V0_2_0, Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// The newest version we speak.
    pub const LATEST: Self = Self::V1_1_0;

    /// Parses a `cniVersion`. A configuration without one is of 0.1.0, which had no such key.
    pub fn parse(value: &str) -> Result<Self, ConfError> {
        if value.is_empty() {
            return Ok(Self::V0_1_0);
        }
        Self::ALL
            .into_iter()
            .find(|version| version.as_str() == value)
            .ok_or_else(|| ConfError::Version { value: value.to_owned() })
    }

    /// As it is written in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Whether a configuration of this version may be used with `command`.
    pub fn allows(self, command: Command) -> Result<(), ConfError> {
        let since = match command {
            Command::Add | Command::Del | Command::Version => Self::V0_1_0,
            Command::Check => Self::V0_4_0,
            Command::Gc | Command::Status => Self::V1_1_0,
        };
        if self < since {
            return Err(ConfError::Command { version: self, command: command.as_str(), since });
        }
        Ok(())
    }
}

impl fmt::Display for CniVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::error::code;

    #[test]
    fn every_version_is_read_as_it_is_written() {
        for version in CniVersion::ALL {
            assert_eq!(CniVersion::parse(version.as_str()).expect("is ours"), version);
        }
        assert!(CniVersion::ALL.is_sorted());
        assert_eq!(CniVersion::ALL.last(), Some(&CniVersion::LATEST));
    }

    #[test]
    fn no_version_is_the_oldest() {
        assert_eq!(CniVersion::parse("").expect("is valid"), CniVersion::V0_1_0);
    }

    #[test]
    fn foreign_versions_are_refused_with_code_1() {
        for value in ["1.2.0", "0.3.2", "1.0", " 1.0.0", "v1.0.0", "latest"] {
            let error = CniVersion::parse(value).expect_err("is not ours");
            assert_eq!(error.cni_code(), code::VERSION);
            assert!(
                error.to_string().starts_with(&format!("cniVersion `{value}` is not supported")),
                "{error}"
            );
        }
    }

    #[test]
    fn commands_begin_with_their_version() {
        let first = |command| CniVersion::ALL.into_iter().find(|it| it.allows(command).is_ok());
        assert_eq!(first(Command::Add), Some(CniVersion::V0_1_0));
        assert_eq!(first(Command::Del), Some(CniVersion::V0_1_0));
        assert_eq!(first(Command::Version), Some(CniVersion::V0_1_0));
        assert_eq!(first(Command::Check), Some(CniVersion::V0_4_0));
        assert_eq!(first(Command::Gc), Some(CniVersion::V1_1_0));
        assert_eq!(first(Command::Status), Some(CniVersion::V1_1_0));

        let error = CniVersion::V0_3_1.allows(Command::Check).expect_err("CHECK is younger");
        assert_eq!(error.cni_code(), code::VERSION);
        assert_eq!(error.to_string(), "cniVersion `0.3.1` does not allow CHECK: use 0.4.0 or later");
    }
}
