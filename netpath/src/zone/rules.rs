//! The entries of a zone, each with its number, under which the maps count what it decides.

use std::collections::BTreeMap;
use std::fmt::{Display, Formatter, Result as FmtResult};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use netpath_ebpf::abi::{PORT_RANGES, PortRange, PortSet, REST_ALLOW, REST_DENY, Rule, rule_kind};

use super::{Ports, Zone, ZoneEntry, ZoneError};

/// The list that an entry stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum List {
    /// The network's own prefixes.
    Local,
    /// What is open beyond them.
    Allow,
    /// What is taken out again.
    Deny,
}

impl List {
    /// The key in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }

    const fn kind(self) -> u8 {
        match self {
            Self::Local => rule_kind::LOCAL,
            Self::Allow => rule_kind::ALLOW,
            Self::Deny => rule_kind::DENY,
        }
    }

    const fn from_kind(kind: u8) -> Option<Self> {
        match kind {
            rule_kind::LOCAL => Some(Self::Local),
            rule_kind::ALLOW => Some(Self::Allow),
            rule_kind::DENY => Some(Self::Deny),
            _ => None,
        }
    }

    /// The number of entries without one of their own.
    pub(super) const fn rest(self) -> u8 {
        match self {
            Self::Local | Self::Allow => REST_ALLOW,
            Self::Deny => REST_DENY,
        }
    }
}

/// An entry and its list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneRule {
    /// The list.
    pub list: List,
    /// The entry.
    pub entry: ZoneEntry,
}

impl ZoneRule {
    /// The entry that a row of the maps is; `None` if the row is none that this program wrote.
    pub fn from_maps(rule: &Rule) -> Option<Self> {
        let [a, b, c, d, ..] = rule.addr;
        let address = match rule.family {
            4 => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
            6 => IpAddr::V6(Ipv6Addr::from(rule.addr)),
            _ => return None,
        };
        let prefix = IpNetwork::new(address, rule.prefix_len).ok()?;
        let used = rule.ports.iter().filter(|range| range.protocol != 0);
        let ports = used.map(Ports::from_range).collect::<Option<Vec<_>>>()?;
        Some(Self { list: List::from_kind(rule.kind)?, entry: ZoneEntry::new(prefix, ports) })
    }

    fn to_maps(&self) -> Result<Rule, ZoneError> {
        let prefix = self.entry.prefix();
        let mut rule = Rule {
            prefix_len: prefix.prefix(),
            family: if prefix.is_ipv4() { 4 } else { 6 },
            kind: self.list.kind(),
            ..Rule::default()
        };
        match prefix.network() {
            IpAddr::V4(v4) => rule.addr[..4].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => rule.addr = v6.octets(),
        }
        let mut ports = PortSet::default();
        if PORT_RANGES < self.entry.ports().len() {
            return Err(ZoneError::PortRanges { prefix, limit: PORT_RANGES });
        }
        for (place, named) in ports.iter_mut().zip(self.entry.ports()) {
            let (protocol, first, last) = (named.protocol.number(prefix), named.first, named.last);
            *place = PortRange { protocol, first, last, ..PortRange::default() };
        }
        Ok(Rule { ports, ..rule })
    }
}

/// `allow 172.16.5.0/24 tcp/443`
impl Display for ZoneRule {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        write!(f, "{} {}", self.list.name(), self.entry)
    }
}

/// The key by which a row of the maps is in its place: maps keep no order of their own.
type Order = (u8, u8, [u8; 16], u8, Vec<(u8, u16, u16)>);

fn order(rule: &Rule) -> Order {
    let ports = rule.ports.iter().map(|range| (range.protocol, range.first, range.last)).collect();
    (rule.kind, rule.family, rule.addr, rule.prefix_len, ports)
}

/// The numbers of a zone's entries, each of which counts once however often it was written.
pub(super) struct Numbered {
    numbers: BTreeMap<Order, u8>,
    /// Those with a number of their own, which is their place counted from 1.
    pub(super) rules: Vec<Rule>,
}

impl Numbered {
    /// Numbers the entries of `zone`.
    pub(super) fn new(zone: &Zone) -> Result<Self, ZoneError> {
        let local = zone.local.iter().map(|prefix| (List::Local, ZoneEntry::whole(*prefix)));
        let allow = zone.allow.iter().map(|entry| (List::Allow, entry.clone()));
        let deny = zone.deny.iter().map(|entry| (List::Deny, entry.clone()));
        let mut all: BTreeMap<Order, (List, Rule)> = BTreeMap::new();
        for (list, entry) in local.chain(allow).chain(deny) {
            let rule = ZoneRule { list, entry }.to_maps()?;
            all.insert(order(&rule), (list, rule));
        }
        let mut rules = Vec::new();
        let own = (1..REST_ALLOW).map(Some).chain(std::iter::repeat(None));
        let numbers = all.into_iter().zip(own).map(|((order, (list, rule)), own)| {
            if own.is_some() {
                rules.push(rule);
            }
            (order, own.unwrap_or_else(|| list.rest()))
        });
        let numbers = numbers.collect();
        Ok(Self { numbers, rules })
    }

    /// The number of an entry of the zone.
    pub(super) fn number(&self, list: List, entry: &ZoneEntry) -> Result<u8, ZoneError> {
        let rule = ZoneRule { list, entry: entry.clone() }.to_maps()?;
        Ok(self.numbers.get(&order(&rule)).copied().unwrap_or_else(|| list.rest()))
    }
}
