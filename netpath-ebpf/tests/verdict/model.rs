//! An attachment and its zone in the words of the rules, not of the maps; and those that the cases play in.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An attachment.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    /// IPv4 addresses given to it.
    pub(crate) v4: Vec<Ipv4Addr>,
    /// IPv6 addresses given to it.
    pub(crate) v6: Vec<Ipv6Addr>,
    /// Its EUI-64 link-local address.
    pub(crate) link_local: Ipv6Addr,
    /// IPv4 gateway.
    pub(crate) gateway4: Option<Ipv4Addr>,
    /// IPv6 gateway.
    pub(crate) gateway6: Option<Ipv6Addr>,
    /// Whether its addresses come from DHCP.
    pub(crate) dhcp: bool,
}

/// Ports of one protocol, and what they may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    /// IP protocol.
    pub(crate) protocol: u8,
    /// First port of the other end.
    pub(crate) first: u16,
    /// Last port of the other end.
    pub(crate) last: u16,
    /// The pod may send to them.
    pub(crate) egress: bool,
    /// They may send to the pod.
    pub(crate) ingress: bool,
}

/// What a prefix of a zone may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// Network address.
    pub(crate) net: IpAddr,
    /// Prefix length.
    pub(crate) length: u8,
    /// The pod may send to it.
    pub(crate) egress: bool,
    /// It may send to the pod.
    pub(crate) ingress: bool,
    /// The first that holds a packet decides; the two above hold for what none does.
    pub(crate) ports: Vec<Range>,
}

/// A private zone. Of the rules around an address the longest decides; none denies.
#[derive(Clone, Debug, Default)]
pub(crate) struct Zone {
    /// At most one for each prefix.
    pub(crate) rules: Vec<Rule>,
    /// `ingress: any`.
    pub(crate) any: bool,
}

impl Zone {
    /// Without the rules that name a prefix again.
    pub(crate) fn of(rules: impl IntoIterator<Item = Rule>, any: bool) -> Self {
        let mut zone = Self { rules: Vec::new(), any };
        for rule in rules {
            if zone.rules.iter().all(|known| (known.net, known.length) != (rule.net, rule.length)) {
                zone.rules.push(rule);
            }
        }
        zone
    }
}

pub(crate) const POD4: Ipv4Addr = Ipv4Addr::new(10, 12, 34, 5);
pub(crate) const POD4_SECOND: Ipv4Addr = Ipv4Addr::new(10, 12, 34, 6);
/// In the zone.
pub(crate) const NEAR4: Ipv4Addr = Ipv4Addr::new(10, 12, 34, 77);
/// Denied inside an allowed prefix.
pub(crate) const DENIED4: Ipv4Addr = Ipv4Addr::new(10, 12, 34, 13);
/// May be sent to, may not send.
pub(crate) const ONE_WAY4: Ipv4Addr = Ipv4Addr::new(172, 16, 6, 9);
pub(crate) const FAR4: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);
/// Outside the zone, but the gateway.
pub(crate) const GATEWAY4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(crate) const BROADCAST4: Ipv4Addr = Ipv4Addr::BROADCAST;
pub(crate) const NOBODY4: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

pub(crate) const POD6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x12, 0, 0, 0, 0, 0, 5);
pub(crate) const POD6_LINK: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 0x11);
pub(crate) const NEAR6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x12, 0, 0, 0, 0, 0, 0x77);
pub(crate) const NEAR6_LINK: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x77);
pub(crate) const DENIED6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x12, 0, 0, 0, 0, 0, 0x13);
pub(crate) const ONE_WAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 6, 0, 0, 0, 0, 0, 9);
pub(crate) const FAR6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 8);
pub(crate) const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, 1);
pub(crate) const NOBODY6: Ipv6Addr = Ipv6Addr::UNSPECIFIED;
/// All nodes of the link.
pub(crate) const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Where a case plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setup {
    /// A zone with prefixes of both families.
    Dual,
    /// A zone without IPv6.
    V4Only,
    /// As `Dual`, and `ingress: any`.
    Any,
    /// As `Dual`; the addresses come from DHCP.
    Dhcp,
    /// DHCP has not answered yet; there is no gateway either.
    Nameless,
    /// The zone's row is missing.
    NotLoaded,
    /// A zone in which ports decide.
    Ports,
}

impl Setup {
    pub(crate) const ALL: [Self; 7] =
        [Self::Dual, Self::V4Only, Self::Any, Self::Dhcp, Self::Nameless, Self::NotLoaded, Self::Ports];

    /// The attachment and its zone.
    pub(crate) fn world(self) -> (Pod, Option<Zone>) {
        let named = Pod {
            v4: vec![POD4, POD4_SECOND],
            v6: vec![POD6],
            link_local: POD6_LINK,
            gateway4: Some(GATEWAY4),
            gateway6: Some(GATEWAY6),
            dhcp: matches!(self, Self::Dhcp | Self::Nameless),
        };
        let pod = match self {
            Self::Nameless => Pod { v4: vec![], v6: vec![], gateway4: None, gateway6: None, ..named },
            _ => named,
        };
        let mut rules = vec![
            both("10.12.34.0", 24, true),
            both("10.12.34.13", 32, false),
            both("172.16.5.0", 24, true),
            Rule { ingress: false, ..both("172.16.6.0", 24, true) },
            both("239.1.0.0", 16, true),
        ];
        if self != Self::V4Only {
            rules.extend([
                both("fd00:12::", 64, true),
                both("fd00:12::13", 128, false),
                both("fd00:5::", 48, true),
                Rule { ingress: false, ..both("fd00:6::", 64, true) },
                both("ff05::1:3", 128, true),
            ]);
        }
        if self == Self::Ports {
            rules = ports();
        }
        let zone = Zone::of(rules, self == Self::Any);
        (pod, (self != Self::NotLoaded).then_some(zone))
    }
}

/// A rule for both directions.
pub(crate) fn both(net: &str, length: u8, allowed: bool) -> Rule {
    Rule { net: net.parse().expect("an address"), length, egress: allowed, ingress: allowed, ports: vec![] }
}

/// The rules of [`Setup::Ports`], as a compiler would flatten them: a longer prefix repeats what holds around it.
fn ports() -> Vec<Rule> {
    let range =
        |allowed, protocol, first, last| Range { protocol, first, last, egress: allowed, ingress: allowed };
    let of = |rule: Rule, ports: &[Range]| Rule { ports: ports.to_vec(), ..rule };
    let https = range(true, 6, 443, 443);
    vec![
        // Local, without SSH.
        of(both("10.12.34.0", 24, true), &[range(false, 6, 22, 22)]),
        both("10.12.34.13", 32, false),
        // Ports alone; a denial stands before the range that holds it.
        of(
            both("172.16.0.0", 16, false),
            &[range(false, 17, 1500, 1500), https, range(true, 17, 1000, 2000)],
        ),
        of(both("172.16.5.0", 24, false), &[https, range(true, 17, 53, 53), range(true, 132, 3868, 3868)]),
        of(both("172.16.6.0", 24, false), &[range(true, 1, 0, u16::MAX)]),
        of(both("172.16.7.0", 24, false), &[range(true, 6, 0, u16::MAX)]),
        both("172.16.5.66", 32, false),
        of(both("fd00:12::", 64, true), &[range(false, 6, 22, 22)]),
        of(both("fd00:5::", 48, false), &[https, range(true, 58, 0, u16::MAX), range(true, 132, 3868, 3868)]),
        of(both("fd00:6::", 64, false), &[range(true, 17, 53, 53)]),
    ]
}
