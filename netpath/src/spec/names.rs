//! Names that cannot be wrong: interfaces, networks, containers, hardware addresses.
use std::fmt;
use std::net::Ipv6Addr;
use super::error::ConfError;

/// Name of a network interface, valid for the kernel.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName(String);
/// Name of a network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkName(String);
/// The runtime's name of a container (a pod's sandbox).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(String);
/// Ethernet hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac([u8; 6]);

impl IfName {
    pub fn parse(field: &'static str, value: &str) -> Result<Self, ConfError> { todo!() }
    pub fn as_str(&self) -> &str { &self.0 }
}
impl NetworkName {
    pub fn parse(field: &'static str, value: &str) -> Result<Self, ConfError> { todo!() }
    pub fn as_str(&self) -> &str { &self.0 }
}
impl ContainerId {
    pub fn parse(field: &'static str, value: &str) -> Result<Self, ConfError> { todo!() }
    pub fn as_str(&self) -> &str { &self.0 }
}
impl Mac {
    pub const fn new(bytes: [u8; 6]) -> Self { Self(bytes) }
    /// What Go's `net.ParseMAC` accepts for 6 bytes.
    pub fn parse(field: &'static str, value: &str) -> Result<Self, ConfError> { todo!() }
    pub const fn bytes(self) -> [u8; 6] { self.0 }
    pub const fn is_multicast(self) -> bool { self.0[0] & 1 == 1 }
    pub fn link_local_eui64(self) -> Ipv6Addr { todo!() }
}
// Display for all four (Mac: lower case with colons), AsRef<str> for the three names.
impl fmt::Display for Mac { fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { todo!() } }
impl fmt::Display for IfName { fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) } }
impl fmt::Display for NetworkName { fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) } }
impl fmt::Display for ContainerId { fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) } }
