//! What a zone says of each of its prefixes, with all that the prefixes around it say.
//!
//! Programs find the longest prefix and look no further, so each carries the rules of those around it:
//!
//! 1. a `deny` with ports denies them in all of its prefix, whatever a longer one allows;
//! 2. of what is left the longest entry that a packet matches decides, and `deny` wins a tie. An entry without
//!    ports is matched by every packet.
//!
//! So an `allow` with ports opens them inside every longer prefix but one that a `deny` without ports closes.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;
use netpath_ebpf::abi::{PORT_RANGES, PortRange, zone_verdict};

use super::prefix::{canonical, covers};
use super::{Ingress, Ports, Zone, ZoneError};

/// What is written about one prefix.
#[derive(Default)]
struct Written {
    local: bool,
    allow: bool,
    deny: bool,
    allow_ports: Vec<Ports>,
    deny_ports: Vec<Ports>,
}

/// One prefix of the zone, as a program has to find it.
pub(super) struct Flat {
    pub(super) prefix: IpNetwork,
    /// Bits of [`zone_verdict`] for what no range holds.
    pub(super) word: u32,
    /// The first that holds a packet decides. Each changes something.
    pub(super) ranges: Vec<PortRange>,
}

/// A prefix around the one that is looked at, and the longest of each kind from it outwards.
struct Outer<'a> {
    prefix: IpNetwork,
    written: &'a Written,
    // `None` is less than any length.
    local: Option<u8>,
    open: Option<u8>,
    closed: Option<u8>,
}

/// Every prefix of `zone`, once.
pub(super) fn flatten(zone: &Zone) -> Result<Vec<Flat>, ZoneError> {
    let mut all: BTreeMap<IpNetwork, Written> = BTreeMap::new();
    for prefix in &zone.local {
        all.entry(canonical(*prefix)).or_default().local = true;
    }
    for entry in &zone.allow {
        let written = all.entry(canonical(entry.prefix())).or_default();
        written.allow |= entry.is_whole();
        written.allow_ports.extend(entry.ports());
    }
    for entry in &zone.deny {
        let written = all.entry(canonical(entry.prefix())).or_default();
        written.deny |= entry.is_whole();
        written.deny_ports.extend(entry.ports());
    }
    // By address, the shorter first: what is around a prefix stands before it, and nothing between is not.
    let mut around: Vec<Outer<'_>> = Vec::new();
    let mut flat = Vec::with_capacity(all.len());
    for (&prefix, written) in &all {
        while around.last().is_some_and(|outer| !covers(outer.prefix, prefix)) {
            around.pop();
        }
        let length = Some(prefix.prefix());
        let outer = around.last();
        let longest = |here: bool, outer: Option<u8>| if here { length } else { outer };
        around.push(Outer {
            prefix,
            written,
            local: longest(written.local, outer.and_then(|outer| outer.local)),
            open: longest(written.local || written.allow, outer.and_then(|outer| outer.open)),
            closed: longest(written.deny, outer.and_then(|outer| outer.closed)),
        });
        flat.push(one(zone.ingress, prefix, &around)?);
    }
    Ok(flat)
}

/// What is said of `prefix`, which is the last of `around`.
fn one(ingress: Ingress, prefix: IpNetwork, around: &[Outer<'_>]) -> Result<Flat, ZoneError> {
    let Some(own) = around.last() else { return Ok(Flat { prefix, word: 0, ranges: Vec::new() }) };
    let egress = own.closed < own.open;
    let enters = match ingress {
        Ingress::Zone => egress,
        Ingress::Any => true,
        Ingress::Local => own.closed < own.local,
    };
    let bit = |set: bool, bit: u32| if set { bit } else { 0 };
    let base = bit(egress, zone_verdict::EGRESS) | bit(enters, zone_verdict::INGRESS);
    // What the prefix is, not what is around it: `LOCAL` is read prefix by prefix.
    let local = bit(own.written.local && !own.written.deny, zone_verdict::LOCAL);

    // The longest first, so that a range is its own prefix's where several hold a packet.
    let mut denied: Vec<Ports> = Vec::new();
    let mut allowed: Vec<Ports> = Vec::new();
    for outer in around.iter().rev() {
        denied.extend(sorted(&outer.written.deny_ports));
        if own.closed < Some(outer.prefix.prefix()) {
            allowed.extend(sorted(&outer.written.allow_ports));
        }
    }
    let too_many = || ZoneError::PortRanges { prefix, limit: PORT_RANGES };
    // A range that changes nothing has no place: it would cost a fragment its way.
    let (denied, allowed) = match egress {
        true => (first_of_each(denied).ok_or_else(too_many)?, Vec::new()),
        false => {
            let open = Gaps::between(&denied);
            let allowed: Vec<Ports> = allowed.into_iter().filter(|ports| open.reach(*ports)).collect();
            let allowed = first_of_each(allowed).ok_or_else(too_many)?;
            denied.retain(|ports| allowed.iter().any(|other| meet(*ports, *other)));
            (first_of_each(denied).ok_or_else(too_many)?, allowed)
        }
    };
    if PORT_RANGES < denied.len() + allowed.len() {
        return Err(too_many());
    }
    let closed = bit(ingress == Ingress::Any, zone_verdict::INGRESS);
    let open = zone_verdict::EGRESS | bit(enters || ingress == Ingress::Zone, zone_verdict::INGRESS);
    let range = |ports: &Ports, verdicts: u32| PortRange {
        protocol: ports.protocol.number(prefix),
        verdicts: verdicts.to_le_bytes()[0],
        first: ports.first,
        last: ports.last,
        ..PortRange::default()
    };
    let denied = denied.iter().map(|ports| range(ports, closed));
    let ranges = denied.chain(allowed.iter().map(|ports| range(ports, open))).collect();
    Ok(Flat { prefix, word: base | local, ranges })
}

fn sorted(ports: &[Ports]) -> Vec<Ports> {
    let mut ports = ports.to_vec();
    ports.sort_unstable();
    ports
}

/// Without those that an earlier one holds; `None` if more are left than fit.
fn first_of_each(ports: Vec<Ports>) -> Option<Vec<Ports>> {
    let mut kept: Vec<Ports> = Vec::new();
    for ports in ports {
        if !kept.iter().any(|earlier| earlier.holds(ports)) {
            kept.push(ports);
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

/// What ranges leave open: they may close another one together that none of them closes alone.
struct Gaps(Vec<Ports>);

impl Gaps {
    /// `closed` joined where they meet, in order.
    fn between(closed: &[Ports]) -> Self {
        Self(super::ports::merged(closed.to_vec()))
    }

    /// Whether some of `ports` is in none of them.
    fn reach(&self, ports: Ports) -> bool {
        !self.0.iter().any(|closed| closed.holds(ports))
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
    }
}
