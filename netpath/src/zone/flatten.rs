//! What a zone says of each of its prefixes, with all that the prefixes around it say.
//!
//! Programs find the longest prefix and look no further, so each carries the rules of those around it:
//!
//! 1. a `deny` with ports denies them in all of its prefix, whatever a longer one allows;
//! 2. of what is left the longest entry that a packet matches decides, and `deny` wins a tie. An entry without
//!    ports is matched by every packet.
//!
//! So an `allow` with ports opens them inside every longer prefix but one that a `deny` without ports closes.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::IpNetwork;
use netpath_ebpf::abi::{PORT_RANGES, PortRange, zone_verdict};

use super::ports::merged;
use super::prefix::{canonical, covers};
use super::rules::Numbered;
use super::{Ingress, List, Ports, Zone, ZoneEntry, ZoneError};

/// Ports and the rule that they are of.
type Ruled = (Ports, u8);

/// Port ranges that may be written about one prefix and those around it, whether they change something or not: each
/// prefix is held against all of them, while others wait for the lock.
const WRITTEN_RANGES: usize = 128;

/// What is written about one prefix: which rules, and ports of rules.
#[derive(Default)]
struct Written {
    local: Option<u8>,
    allow: Option<u8>,
    deny: Option<u8>,
    allow_ports: BTreeSet<Ruled>,
    deny_ports: BTreeSet<Ruled>,
}

/// One prefix of the zone, as a program has to find it.
pub(super) struct Flat {
    pub(super) prefix: IpNetwork,
    /// Word of [`zone_verdict`] for what no range holds.
    pub(super) word: u32,
    /// The first that holds a packet decides. Each changes something.
    pub(super) ranges: Vec<PortRange>,
}

/// The longest entry of a kind around a prefix.
#[derive(Clone, Copy)]
struct Longest {
    length: u8,
    rule: u8,
}

/// A prefix around the one that is looked at, and the longest of each kind from it outwards.
struct Outer<'a> {
    prefix: IpNetwork,
    written: &'a Written,
    local: Option<Longest>,
    open: Option<Longest>,
    closed: Option<Longest>,
    /// Port ranges that are written from it outwards.
    ranges: usize,
}

/// Every prefix of `zone`, once, with the numbers that `rules` gives its entries.
pub(super) fn flatten(zone: &Zone, rules: &Numbered) -> Result<Vec<Flat>, ZoneError> {
    let mut all: BTreeMap<IpNetwork, Written> = BTreeMap::new();
    for prefix in &zone.local {
        let number = rules.number(List::Local, &ZoneEntry::whole(*prefix))?;
        all.entry(canonical(*prefix)).or_default().local = Some(number);
    }
    for (list, entries) in [(List::Allow, &zone.allow), (List::Deny, &zone.deny)] {
        for entry in entries {
            let number = rules.number(list, entry)?;
            let written = all.entry(canonical(entry.prefix())).or_default();
            let (whole, ports) = match list {
                List::Deny => (&mut written.deny, &mut written.deny_ports),
                List::Local | List::Allow => (&mut written.allow, &mut written.allow_ports),
            };
            match entry.is_whole() {
                true => *whole = Some(number),
                false => ports.extend(entry.ports().iter().map(|ports| (*ports, number))),
            }
        }
    }
    // By address, the shorter first: what is around a prefix stands before it, and nothing between is not.
    let mut around: Vec<Outer<'_>> = Vec::new();
    let mut flat = Vec::with_capacity(all.len());
    for (&prefix, written) in &all {
        while around.last().is_some_and(|outer| !covers(outer.prefix, prefix)) {
            around.pop();
        }
        let outer = around.last();
        let longest = |here: Option<u8>, outer: Option<Longest>| {
            here.map(|rule| Longest { length: prefix.prefix(), rule }).or(outer)
        };
        let ranges =
            outer.map_or(0, |outer| outer.ranges) + written.allow_ports.len() + written.deny_ports.len();
        if WRITTEN_RANGES < ranges {
            return Err(ZoneError::PortRanges { prefix, limit: WRITTEN_RANGES });
        }
        around.push(Outer {
            prefix,
            written,
            ranges,
            local: longest(written.local, outer.and_then(|outer| outer.local)),
            open: longest(written.local.or(written.allow), outer.and_then(|outer| outer.open)),
            closed: longest(written.deny, outer.and_then(|outer| outer.closed)),
        });
        flat.push(one(zone.ingress, prefix, &around)?);
    }
    Ok(flat)
}

/// Whether what opens an address wins against what closes it, and the rule that decides.
fn decides(open: Option<Longest>, closed: Option<Longest>) -> (bool, u8) {
    let length = |longest: Option<Longest>| longest.map(|longest| longest.length);
    // `None` is less than any length.
    match length(closed) < length(open) {
        true => (true, open.map_or(0, |open| open.rule)),
        false => (false, closed.map_or(0, |closed| closed.rule)),
    }
}

/// What is said of `prefix`, which is the last of `around`.
fn one(ingress: Ingress, prefix: IpNetwork, around: &[Outer<'_>]) -> Result<Flat, ZoneError> {
    let Some(own) = around.last() else { return Ok(Flat { prefix, word: 0, ranges: Vec::new() }) };
    let (egress, egress_rule) = decides(own.open, own.closed);
    let (enters, ingress_rule) = match ingress {
        Ingress::Zone => (egress, egress_rule),
        // No entry is asked.
        Ingress::Any => (true, 0),
        Ingress::Local => decides(own.local, own.closed),
    };
    let bit = |set: bool, bit: u32| if set { bit } else { 0 };
    let base = bit(egress, zone_verdict::EGRESS) | bit(enters, zone_verdict::INGRESS);
    // What the prefix is, not what is around it: `LOCAL` is read prefix by prefix.
    let local = bit(own.written.local.is_some() && own.written.deny.is_none(), zone_verdict::LOCAL);

    // The longest first, so that a range is its own prefix's where several hold a packet.
    let mut denied: Vec<Ruled> = Vec::new();
    let mut allowed: Vec<Ruled> = Vec::new();
    for outer in around.iter().rev() {
        denied.extend(&outer.written.deny_ports);
        if own.closed.is_none_or(|closed| closed.length < outer.prefix.prefix()) {
            allowed.extend(&outer.written.allow_ports);
        }
    }
    let too_many = || ZoneError::PortRanges { prefix, limit: PORT_RANGES };
    // A range that changes nothing has no place: it would cost a fragment its way.
    let (denied, allowed) = match egress {
        true => (first_of_each(denied).ok_or_else(too_many)?, Vec::new()),
        false => {
            let closed = Closed::by(&denied);
            allowed.retain(|(ports, _)| !closed.hold(*ports));
            let allowed = first_of_each(allowed).ok_or_else(too_many)?;
            denied.retain(|(ports, _)| allowed.iter().any(|(other, _)| meet(*ports, *other)));
            (first_of_each(denied).ok_or_else(too_many)?, allowed)
        }
    };
    if PORT_RANGES < denied.len() + allowed.len() {
        return Err(too_many());
    }
    let range = |(ports, rule): &Ruled, verdicts: u32, ingress_rule: u8| PortRange {
        protocol: ports.protocol.number(prefix),
        verdicts: verdicts.to_le_bytes()[0],
        egress_rule: *rule,
        ingress_rule,
        first: ports.first,
        last: ports.last,
    };
    let denied = denied.iter().map(|ruled| match ingress {
        Ingress::Any => range(ruled, zone_verdict::INGRESS, 0),
        Ingress::Zone | Ingress::Local => range(ruled, 0, ruled.1),
    });
    let allowed = allowed.iter().map(|ruled| match ingress {
        Ingress::Zone => range(ruled, zone_verdict::EGRESS | zone_verdict::INGRESS, ruled.1),
        // Who may come in is not theirs to say.
        Ingress::Local | Ingress::Any => {
            range(ruled, zone_verdict::EGRESS | bit(enters, zone_verdict::INGRESS), ingress_rule)
        }
    });
    let ranges = denied.chain(allowed).collect();
    Ok(Flat { prefix, word: base | local | zone_verdict::rules(egress_rule, ingress_rule), ranges })
}

/// Without those that an earlier one holds; `None` if more are left than fit.
fn first_of_each(all: Vec<Ruled>) -> Option<Vec<Ruled>> {
    let mut kept: Vec<Ruled> = Vec::new();
    for ruled in all {
        if !kept.iter().any(|(earlier, _)| earlier.holds(ruled.0)) {
            kept.push(ruled);
            if PORT_RANGES < kept.len() {
                return None;
            }
        }
    }
    Some(kept)
}

fn meet(a: Ports, b: Ports) -> bool {
    a.protocol == b.protocol && a.first <= b.last && b.first <= a.last
}

/// Ranges joined where they meet, in order: they may hold another one together that none of them holds alone.
struct Closed(Vec<Ports>);

impl Closed {
    fn by(denied: &[Ruled]) -> Self {
        Self(merged(denied.iter().map(|(ports, _)| *ports).collect()))
    }

    fn hold(&self, ports: Ports) -> bool {
        self.0.iter().any(|closed| closed.holds(ports))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::compile;
    use super::*;

    #[track_caller]
    fn check(zone: Value, expected: &[&str]) {
        let text = compile(&Zone::from_json(&zone).expect("valid zone")).expect("fits").to_string();
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let lines: Vec<String> = text.lines().map(words).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        assert_eq!(lines, [expected, &["everything else is denied"]].concat());
    }

    fn with(cidr: &str, ports: &[&str]) -> Value {
        json!({ "cidr": cidr, "ports": ports })
    }

    #[test]
    fn a_longer_prefix_has_the_ports_of_those_around_it() {
        check(
            json!({ "local": [], "allow": [with("10.0.0.0/16", &["tcp/443"]), with("10.0.5.0/24", &["udp/53"])] }),
            &[
                "10.0.5.0/24 udp/53, tcp/443 to and from; else denied",
                "10.0.0.0/16 tcp/443 to and from; else denied",
            ],
        );
    }

    #[test]
    fn a_denial_with_ports_reaches_into_longer_prefixes() {
        check(
            json!({ "local": [], "allow": ["10.0.5.0/24"], "deny": [with("10.0.0.0/16", &["tcp/22"])] }),
            &["10.0.5.0/24 tcp/22 denied; else to and from", "10.0.0.0/16 denied"],
        );
        check(
            json!({ "local": [], "allow": [with("10.0.5.0/24", &["tcp"])], "deny": [with("10.0.0.0/16", &["tcp/22"])] }),
            &["10.0.5.0/24 tcp/22 denied; tcp to and from; else denied", "10.0.0.0/16 denied"],
        );
    }

    #[test]
    fn a_denial_without_ports_closes_what_a_shorter_prefix_opens() {
        check(
            json!({ "local": [], "allow": [with("10.0.0.0/16", &["tcp/443"])], "deny": ["10.0.5.0/24"] }),
            &["10.0.5.0/24 denied", "10.0.0.0/16 tcp/443 to and from; else denied"],
        );
        check(
            json!({ "local": [], "allow": [with("10.0.0.9", &["tcp/443"])], "deny": ["10.0.0.9"] }),
            &["10.0.0.9/32 denied"],
        );
        check(
            json!({ "local": [], "allow": [with("10.0.5.0/24", &["tcp/443"])], "deny": ["10.0.0.0/16"] }),
            &["10.0.5.0/24 tcp/443 to and from; else denied", "10.0.0.0/16 denied"],
        );
        // Opened again behind a closed prefix it is open, and what the closed one cut off stays cut off.
        check(
            json!({
                "local": [], "allow": [with("10.0.0.0/16", &["tcp/443"]), with("10.0.5.1", &["udp/53"])],
                "deny": ["10.0.5.0/24"],
            }),
            &[
                "10.0.5.1/32 udp/53 to and from; else denied",
                "10.0.5.0/24 denied",
                "10.0.0.0/16 tcp/443 to and from; else denied",
            ],
        );
    }

    /// What changes nothing would cost a later fragment its way, and a denied host its silence to ARP.
    #[test]
    fn ranges_that_change_nothing_are_left_out() {
        check(
            json!({ "local": ["10.0.0.0/24"], "allow": [with("10.0.0.9", &["tcp/443"])] }),
            &["10.0.0.9/32 to and from", "10.0.0.0/24 to and from"],
        );
        check(json!({ "local": [], "deny": [with("10.0.0.0/24", &["tcp/443"])] }), &["10.0.0.0/24 denied"]);
        check(
            json!({
                "local": [], "allow": [with("10.0.0.9", &["tcp/300-500"])],
                "deny": [with("10.0.0.0/24", &["tcp/1-400"]), with("10.0.0.8/29", &["tcp/401-65535"])],
            }),
            &["10.0.0.9/32 denied", "10.0.0.8/29 denied", "10.0.0.0/24 denied"],
        );
    }

    #[test]
    fn icmp_is_that_of_the_family() {
        check(
            json!({ "local": [], "allow": [with("10.0.0.9", &["icmp"]), with("fd00::/64", &["icmp"])] }),
            &["10.0.0.9/32 icmp to and from; else denied", "fd00::/64 icmp to and from; else denied"],
        );
        let image = compile(
            &Zone::from_json(&json!({ "local": [], "allow": [with("fd00::/64", &["icmp"])] }))
                .expect("valid"),
        );
        assert_eq!(image.expect("fits").ports()[0][0].protocol, 58);
    }

    #[test]
    fn ingress_of_ports() {
        let zone = |ingress: &str| {
            json!({
                "local": ["10.0.0.0/24"], "allow": [with("172.16.0.0/24", &["tcp/443"])],
                "deny": [with("10.0.0.0/24", &["tcp/22"])], "ingress": ingress,
            })
        };
        check(
            zone("local"),
            &["172.16.0.0/24 tcp/443 to only; else denied", "10.0.0.0/24 tcp/22 denied; else to and from"],
        );
        let text = compile(&Zone::from_json(&zone("any")).expect("valid")).expect("fits").to_string();
        assert!(text.contains("172.16.0.0/24  tcp/443 to and from; else from only"), "{text}");
        assert!(text.contains("10.0.0.0/24    tcp/22 from only; else to and from"), "{text}");
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let refused = |zone: Value| Zone::from_json(&zone).expect_err("must be refused").to_string();
        let odd = |count: u16| -> Vec<String> { (0..count).map(|i| format!("tcp/{}", 2 * i + 1)).collect() };
        let entry = |cidr: &str, ports: &[String]| json!({ "cidr": cidr, "ports": ports });
        assert!(Zone::from_json(&json!({ "local": [], "allow": [entry("10.0.0.0/8", &odd(8))] })).is_ok());
        assert_eq!(
            refused(json!({
                "local": [], "allow": [entry("10.0.0.0/8", &odd(8)), entry("10.0.0.0/24", &["udp".to_owned()])],
            })),
            "`10.0.0.0/24` has more than 8 port ranges, counting those of the entries around it: join ranges, or name \
             the prefix without ports",
        );
        let hosts = |count: u16| -> Value {
            (0..count).map(|i| entry(&format!("10.0.{i}.1"), &[format!("tcp/{}", i + 1)])).collect()
        };
        let most = u16::try_from(netpath_ebpf::abi::ZONE_PORT_SETS).expect("few");
        assert!(Zone::from_json(&json!({ "local": [], "allow": hosts(most) })).is_ok());
        let error = refused(json!({ "local": [], "allow": hosts(most + 1) }));
        let expected = format!(
            "`10.0.{most}.1/32` has ports that no other prefix has, and {most} such lists are in the zone already: give \
             prefixes the same ports, or use fewer"
        );
        assert_eq!(error, expected);
        // The same ports for many are one list.
        let many: Value = (0..100).map(|i| entry(&format!("10.0.{i}.1"), &odd(8))).collect();
        assert!(Zone::from_json(&json!({ "local": [], "allow": many })).is_ok());
        // Also of what changes nothing there is an end, since every prefix is held against all of it.
        let closed = |entries: u16| -> Value {
            let ports = |entry: u16| -> Vec<String> {
                (0..8).map(|i| format!("tcp/{}", 16 * entry + 2 * i + 1)).collect()
            };
            (0..entries).map(|i| entry("10.0.0.0/8", &ports(i))).collect()
        };
        let zone = |entries: u16| json!({ "local": [], "allow": [entry("10.0.0.1", &odd(1))], "deny": closed(entries) });
        let most = u16::try_from(WRITTEN_RANGES / 8).expect("few");
        assert!(Zone::from_json(&zone(most - 1)).is_ok());
        let error = refused(zone(most));
        assert!(
            error.starts_with("`10.0.0.1/32` has more than 128 port ranges, counting those of"),
            "{error}"
        );
    }
}
