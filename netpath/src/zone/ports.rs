//! Entries of `allow` and `deny`: a prefix, or a prefix and the ports that are meant.

use std::fmt::{Display, Formatter, Result as FmtResult};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netpath_ebpf::abi::PortRange;
use serde_json::{Value, json};

use super::ValueError;
use super::fields::Fields;
use super::prefix::{covers, parse};

/// A protocol that can be named beside a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// ICMP, or ICMPv6 beside an IPv6 prefix. It has no ports.
    Icmp,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    const ALL: [Self; 4] = [Self::Icmp, Self::Tcp, Self::Udp, Self::Sctp];

    /// The word in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Icmp => "icmp",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    /// Its number in packets of the family of `prefix`.
    pub const fn number(self, prefix: IpNetwork) -> u8 {
        match (self, prefix) {
            (Self::Icmp, IpNetwork::V4(_)) => 1,
            (Self::Icmp, IpNetwork::V6(_)) => 58,
            (Self::Tcp, _) => 6,
            (Self::Udp, _) => 17,
            (Self::Sctp, _) => 132,
        }
    }

    /// The protocol with a number of either family.
    const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 | 58 => Some(Self::Icmp),
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }
}

/// One item of `ports`: `tcp/443`, `udp/1000-2000`, `sctp`, `icmp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ports {
    /// Their protocol.
    pub protocol: Protocol,
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

impl Ports {
    /// The ports of a range in the maps.
    pub(super) fn from_range(range: &PortRange) -> Option<Self> {
        let protocol = Protocol::from_number(range.protocol)?;
        Some(Self { protocol, first: range.first, last: range.last })
    }

    /// Whatever packets the protocol has.
    const fn all(protocol: Protocol) -> Self {
        Self { protocol, first: 0, last: u16::MAX }
    }

    /// Parses one item. Words are lower case, numbers decimal, and a range goes upwards.
    fn parse(text: &str) -> Option<Self> {
        let (word, ports) = match text.split_once('/') {
            None => (text, None),
            Some((word, ports)) => (word, Some(ports)),
        };
        let protocol = Protocol::ALL.into_iter().find(|protocol| protocol.name() == word)?;
        let Some(ports) = ports else { return Some(Self::all(protocol)) };
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let (first, last) = (port(first)?, port(last)?);
        (protocol != Protocol::Icmp && first <= last).then_some(Self { protocol, first, last })
    }

    /// Whether all of `other` is part of it.
    pub(super) fn holds(self, other: Self) -> bool {
        self.protocol == other.protocol && self.first <= other.first && other.last <= self.last
    }
}

/// A port as people write it: from 1, without a sign or zeros in front.
fn port(digits: &str) -> Option<u16> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.starts_with('0');
    digits.parse().ok().filter(|_| plain)
}

impl Display for Ports {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.write_str(self.protocol.name())?;
        match (self.first, self.last) {
            (0, u16::MAX) => Ok(()),
            (first, last) if first == last => write!(f, "/{first}"),
            (first, last) => write!(f, "/{first}-{last}"),
        }
    }
}

/// The ports of a range in the maps, as the configuration writes them.
pub fn range_text(range: &PortRange) -> String {
    match Ports::from_range(range) {
        Some(ports) => ports.to_string(),
        None => format!("protocol {} from {} to {}", range.protocol, range.first, range.last),
    }
}

/// An entry of `allow` or `deny`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneEntry {
    prefix: IpNetwork,
    /// Each once, in order; empty: the entry is about whatever is sent.
    ports: Vec<Ports>,
}

impl ZoneEntry {
    /// An entry about `ports`, or about whatever is sent if there are none.
    pub(super) fn new(prefix: IpNetwork, ports: Vec<Ports>) -> Self {
        Self { prefix, ports: merged(ports) }
    }

    /// An entry about whatever is sent to or from `prefix`.
    pub fn whole(prefix: IpNetwork) -> Self {
        Self { prefix, ports: Vec::new() }
    }

    /// The prefix.
    pub fn prefix(&self) -> IpNetwork {
        self.prefix
    }

    /// The ports of the other end that the entry is about; empty: all that is sent.
    pub fn ports(&self) -> &[Ports] {
        &self.ports
    }

    /// Whether it is about whatever is sent.
    pub fn is_whole(&self) -> bool {
        self.ports.is_empty()
    }

    /// Whether the entry is about `packet`.
    pub(super) fn holds(&self, packet: &Packet) -> bool {
        let says = |ports: &Ports| {
            ports.protocol.number(self.prefix) == packet.protocol
                && (ports.first..=ports.last).contains(&packet.port)
        };
        self.prefix.contains(packet.address) && (self.is_whole() || self.ports.iter().any(says))
    }

    /// Whether every packet that `other` is about is one of this entry's.
    pub(super) fn covers(&self, other: &Self) -> bool {
        let all = || {
            let held = |ports: &Ports| self.ports.iter().any(|own| own.holds(*ports));
            !other.is_whole() && other.ports.iter().all(held)
        };
        covers(self.prefix, other.prefix) && (self.is_whole() || all())
    }

    /// Parses an item of `key`, which is the `allow` or `deny` of a zone.
    pub(super) fn parse(key: &'static str, item: &Value) -> Result<Self, ValueError> {
        const KEYS: &[&str] = &["cidr", "ports"];
        let wrong = || ValueError::Type {
            key: key.to_owned(),
            value: item.to_string(),
            expected: "a prefix, or an object like `{\"cidr\": \"172.16.5.0/24\", \"ports\": [\"tcp/443\"]}`",
        };
        let object = match item {
            Value::String(text) => return Ok(Self::whole(parse(key, text)?)),
            Value::Object(object) => object,
            _ => return Err(wrong()),
        };
        let fields = Fields::read(key, KEYS, object)?;
        let Some((cidr, text)) = fields.string("cidr")? else { return Err(wrong()) };
        let prefix = parse(&cidr, text)?;
        let none = || ValueError::NoPorts { key: key.to_owned(), value: item.to_string(), prefix };
        let (ports_key, texts) = fields.strings("ports")?.ok_or_else(none)?;
        let parsed = texts.iter().map(|text| {
            let value = || (*text).to_owned();
            Ports::parse(text).ok_or_else(|| ValueError::NotPorts { key: ports_key.clone(), value: value() })
        });
        let ports = merged(parsed.collect::<Result<_, _>>()?);
        if ports.is_empty() { Err(none()) } else { Ok(Self { prefix, ports }) }
    }

    /// The entry as the configuration writes it.
    pub(super) fn to_json(&self) -> Value {
        match self.is_whole() {
            true => json!(self.prefix),
            false => {
                let ports: Vec<String> = self.ports.iter().map(ToString::to_string).collect();
                json!({ "cidr": self.prefix, "ports": ports })
            }
        }
    }
}

/// `10.12.34.0/24`, or `10.12.34.0/24 tcp/443,udp/53`.
impl Display for ZoneEntry {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        write!(f, "{}", self.prefix)?;
        for (index, ports) in self.ports.iter().enumerate() {
            write!(f, "{}{ports}", if index == 0 { " " } else { "," })?;
        }
        Ok(())
    }
}

/// What a zone looks at in a packet: address and port of the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) address: IpAddr,
    pub(super) protocol: u8,
    pub(super) port: u16,
}

/// The same ports in as few ranges as possible, in order.
pub(super) fn merged(mut ports: Vec<Ports>) -> Vec<Ports> {
    ports.sort_unstable();
    let mut merged: Vec<Ports> = Vec::new();
    for next in ports {
        match merged.last_mut() {
            Some(last) if last.protocol == next.protocol && next.first <= last.last.saturating_add(1) => {
                last.last = last.last.max(next.last);
            }
            _ => merged.push(next),
        }
    }
    merged
}
