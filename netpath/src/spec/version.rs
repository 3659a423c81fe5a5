//! Versions of the CNI protocol.
use super::{env::Command, error::ConfError};
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CniVersion { V0_1_0, V0_2_0, V0_3_0, V0_3_1, V0_4_0, V1_0_0, V1_1_0 }
impl CniVersion {
    pub const ALL: [Self; 7] = [Self::V0_1_0, Self::V0_2_0, Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    pub const LATEST: Self = Self::V1_1_0;
    /// Empty = 0.1.0.
    pub fn parse(value: &str) -> Result<Self, ConfError> { todo!() }
    pub const fn as_str(self) -> &'static str { todo!() }
    /// CHECK needs 0.4.0; GC and STATUS need 1.1.0 (error with code 1).
    pub fn allows(self, command: Command) -> Result<(), ConfError> { todo!() }
}
impl std::fmt::Display for CniVersion { fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str(self.as_str()) } }
