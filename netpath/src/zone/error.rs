//! What can be wrong with a zone.

use ipnetwork::IpNetwork;

use super::prefix::Listed;
use super::{Ingress, Mode, ZoneEntry};

/// What is wrong with one key or value of `zone` or of an entry of `masters.json`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Nobody would act on the key.
    #[error("`{key}` is not a known key: remove it, or write one of {}", Listed(.known))]
    UnknownKey {
        /// The key as it was written.
        key: String,
        /// What could have been meant.
        known: &'static [&'static str],
    },
    /// Two keys that differ in upper and lower case only.
    #[error("`{key}` is given twice, in different case: keep one")]
    SameKey {
        /// The second of the two.
        key: String,
    },
    /// A value of another JSON type.
    #[error("`{key}` is {value}: write {expected}")]
    Type {
        /// The key.
        key: String,
        /// Its value, as JSON.
        value: String,
        /// What belongs there.
        expected: &'static str,
    },
    /// A word that has no meaning here.
    #[error("`{key}` is `{value}`: write one of {}", Listed(.choices))]
    Choice {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// The words that have a meaning.
        choices: Vec<&'static str>,
    },
    /// Neither an address nor a prefix.
    #[error("`{key}` has `{value}`: write an address like `10.12.34.13` or a prefix like `10.12.34.0/24`")]
    NotAPrefix {
        /// The key.
        key: String,
        /// The list's item.
        value: String,
    },
    /// A prefix with host bits.
    #[error(
        "`{key}` has `{value}`, whose host bits are set: write `{network}` for the network, or the bare address for \
         the host"
    )]
    HostBits {
        /// The key.
        key: String,
        /// The list's item.
        value: String,
        /// It without host bits.
        network: IpNetwork,
    },
    /// An IPv4-mapped IPv6 prefix; no such packets exist on the wire.
    #[error("`{key}` has `{value}`: write it as IPv4, `{meant}`")]
    Mapped {
        /// The key.
        key: String,
        /// The list's item.
        value: String,
        /// The IPv4 prefix in it.
        meant: IpNetwork,
    },
    /// A prefix that the zone has no say in.
    #[error("`{key}` has `{value}`: {rule}; leave it out")]
    NotJudged {
        /// The key.
        key: String,
        /// The list's item.
        value: String,
        /// What decides instead.
        rule: &'static str,
    },
    /// `local` with ports.
    #[error("`{key}` has {value}: it takes prefixes alone; write ports in `zone.allow` or `zone.deny`")]
    LocalPorts {
        /// The key.
        key: String,
        /// The list's item, as JSON.
        value: String,
    },
    /// An entry that is an object and names no ports.
    #[error(
        "`{key}` has {value}, without ports: name some, like `\"ports\": [\"tcp/443\"]`, or write `\"{prefix}\"` \
         for whatever is sent"
    )]
    NoPorts {
        /// The key.
        key: String,
        /// The list's item, as JSON.
        value: String,
        /// Its prefix.
        prefix: IpNetwork,
    },
    /// An item of `ports` that names none.
    #[error(
        "`{key}` has `{value}`: write a port like `tcp/443`, a range like `udp/1000-2000`, or all that a protocol has \
         as `tcp`, `udp`, `sctp` or `icmp`"
    )]
    NotPorts {
        /// The key.
        key: String,
        /// The list's item.
        value: String,
    },
    /// A list that would forbid everything.
    #[error("`{key}` is empty: leave it out, or name what is allowed")]
    Empty {
        /// The key.
        key: String,
    },
}

/// Why there is no zone for an attachment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ZoneError {
    /// The configuration itself is wrong.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// Nothing says what is local.
    #[error(
        "`zone.local` is missing, and the network's IPAM names no subnet to take it from: write the zone's own \
         prefixes, like `\"local\": [\"10.12.34.0/24\"]`"
    )]
    NoLocal,
    /// A master's zone that would bound nothing: networks name their own subnets as they like.
    #[error("`zone.local` is missing, and so is `subnets`: say by one of them what is local on this master")]
    MasterWithoutLocal,
    /// A master's zone that contradicts its subnets.
    #[error("`zone.local` has `{prefix}`, which is not in `subnets`, {}: widen one or narrow the other", Listed(.subnets))]
    MasterLocal {
        /// The local prefix.
        prefix: IpNetwork,
        /// The master's subnets.
        subnets: Vec<IpNetwork>,
    },
    /// A prefix that is likely a mistake, or an attempt.
    #[error(
        "`{key}` has `{prefix}`: a prefix shorter than /{shortest} needs `\"widePrefixes\": true` for this master in \
         masters.json"
    )]
    Wide {
        /// Where it was written.
        key: &'static str,
        /// The prefix.
        prefix: IpNetwork,
        /// The shortest length that needs no leave.
        shortest: u8,
    },
    /// More port ranges than an entry of the maps holds.
    #[error(
        "`{prefix}` has more than {limit} port ranges, counting those of the entries around it: join ranges, or name \
         the prefix without ports"
    )]
    PortRanges {
        /// The prefix.
        prefix: IpNetwork,
        /// How many fit.
        limit: usize,
    },
    /// More different lists of ports than a zone holds.
    #[error(
        "`{prefix}` has ports that no other prefix has, and {limit} such lists are in the zone already: give prefixes \
         the same ports, or use fewer"
    )]
    PortSets {
        /// The prefix whose list has no room.
        prefix: IpNetwork,
        /// How many fit.
        limit: u32,
    },
    /// The network asks for more than the master's entry in `masters.json` allows.
    #[error("the network goes beyond what masters.json allows on `{master}`: {error}")]
    Bound {
        /// Name of the entry.
        master: String,
        /// What exceeds what; part of the text, since it is one statement and not a cause.
        error: Box<BoundError>,
    },
}

/// Which key of a network exceeds which bound of `masters.json`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BoundError {
    /// `mode` would enforce less.
    #[error("`zone.mode` is `{}`, the bound is `{}`; write `{}` or leave it out", .mode.name(), .bound.name(), .bound.name())]
    Mode {
        /// What the network says.
        mode: Mode,
        /// The weakest that it may say.
        bound: Mode,
    },
    /// `ingress` would let more in.
    #[error(
        "`zone.ingress` is `{}`, the bound is `{}`; write `{}` or leave it out",
        .ingress.name(), .bound.name(), .bound.name()
    )]
    Ingress {
        /// What the network says.
        ingress: Ingress,
        /// The widest that it may say.
        bound: Ingress,
    },
    /// A local prefix or an address outside the master's subnets.
    #[error("`{key}` has `{prefix}`, the bound `subnets` is {}", Listed(.subnets))]
    Subnets {
        /// Where it was written.
        key: &'static str,
        /// The prefix or address.
        prefix: IpNetwork,
        /// The master's subnets.
        subnets: Vec<IpNetwork>,
    },
    /// A prefix that is not, or not as a whole, in the master's zone.
    #[error("`{key}` has `{prefix}`, the bound `zone` allows {}", Listed(.allowed))]
    Allow {
        /// Where it was written.
        key: &'static str,
        /// The entry.
        prefix: ZoneEntry,
        /// What the master's zone allows: its `local` and `allow`.
        allowed: Vec<ZoneEntry>,
    },
    /// A prefix that reaches what the master's zone denies, although the network's `deny` names it too:
    /// the longer prefix wins.
    #[error("`{key}` has `{prefix}`, the bound `zone.deny` has `{denied}`")]
    AllowsDenied {
        /// Where it was written.
        key: &'static str,
        /// The entry.
        prefix: ZoneEntry,
        /// The master's denial.
        denied: ZoneEntry,
    },
    /// `deny` was written and does not hold what the master denies.
    #[error(
        "`zone.deny` lacks `{denied}`, which the bound `zone.deny` has; add it, or leave `zone.deny` out to inherit it"
    )]
    DenyLacks {
        /// The master's denial.
        denied: ZoneEntry,
    },
    /// A prefix is called local from which the master's zone lets nothing in.
    #[error(
        "`{key}` has `{prefix}`, from which the bound `zone` with `ingress: local` lets nothing in; write it in \
         `zone.allow`"
    )]
    Local {
        /// Where it was written.
        key: &'static str,
        /// The prefix.
        prefix: IpNetwork,
    },
}
