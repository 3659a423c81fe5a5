//! A zone's lists to the one sorted list per family that programs can walk.

use ipnetwork::IpNetwork;
use netpath_ebpf::abi::{PortRange, PortSet, ZONE_INLINE, ZONE_PORT_SETS, zone_flags, zone_verdict};

use super::flatten::{Flat, flatten};
use super::rules::Numbered;
use super::{Ingress, List, OnDeny, Zone, ZoneError, ZoneImage};

/// The image of `zone`. A family of any length has a place; ports have limits, which a zone was held against
/// when it was resolved.
///
/// The mode is not part of it: it stands in the endpoint's row, where it outlives a lost zone.
pub fn compile(zone: &Zone) -> Result<ZoneImage, ZoneError> {
    let rules = Numbered::new(zone)?;
    let mut flat = flatten(zone, &rules)?;
    let (numbers, ports) = match port_sets(&flat) {
        Ok(sets) => sets,
        // Too many because each rule has its own: what they decide is told together.
        Err(_) => {
            flat.iter_mut().flat_map(|flat| &mut flat.ranges).for_each(rest);
            port_sets(&flat)?
        }
    };
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for (flat, number) in flat.iter().zip(numbers) {
        let set = number.map(|number| zone_verdict::PORTS | number << zone_verdict::PORT_SET_SHIFT);
        let word = flat.word | set.unwrap_or(0);
        match flat.prefix {
            IpNetwork::V4(prefix) => v4.push((prefix, word)),
            IpNetwork::V6(prefix) => v6.push((prefix, word)),
        }
    }
    let mut flags = 0;
    for (bit, set) in [
        (zone_flags::TRIE_V4, ZONE_INLINE < v4.len()),
        (zone_flags::TRIE_V6, ZONE_INLINE < v6.len()),
        (zone_flags::REJECT, zone.on_deny == OnDeny::Reject),
        (zone_flags::INGRESS_ANY, zone.ingress == Ingress::Any),
        // A prefix that is denied, or open by ports alone, names no IPv6 that the pod could use as it likes.
        (zone_flags::HAS_V6, v6.iter().any(|&(_, word)| word & zone_verdict::EGRESS != 0)),
    ] {
        if set {
            flags |= bit;
        }
    }
    let mut image = ZoneImage { flags, v4, v6, ports, rules: rules.rules };
    image.sort();
    Ok(image)
}

/// The port set of each prefix, if it has one, and the sets.
type Sets = (Vec<Option<u32>>, Vec<PortSet>);

/// The different lists of ranges that `flat` has.
fn port_sets(flat: &[Flat]) -> Result<Sets, ZoneError> {
    let mut sets: Vec<PortSet> = Vec::new();
    let mut numbers = Vec::with_capacity(flat.len());
    for one in flat {
        if one.ranges.is_empty() {
            numbers.push(None);
            continue;
        }
        let mut set = PortSet::default();
        for (place, range) in set.iter_mut().zip(&one.ranges) {
            *place = *range;
        }
        let found = sets.iter().position(|other| *other == set).unwrap_or_else(|| {
            sets.push(set);
            sets.len() - 1
        });
        match u32::try_from(found) {
            Ok(number) if number < ZONE_PORT_SETS => numbers.push(Some(number)),
            _ => return Err(ZoneError::PortSets { prefix: one.prefix, limit: ZONE_PORT_SETS }),
        }
    }
    Ok((numbers, sets))
}

/// Has `range` counted with all others that say the same.
fn rest(range: &mut PortRange) {
    let rule = |bit: u32| match u32::from(range.verdicts) & bit {
        0 => List::Deny.rest(),
        _ => List::Allow.rest(),
    };
    (range.egress_rule, range.ingress_rule) = (rule(zone_verdict::EGRESS), rule(zone_verdict::INGRESS));
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn check(zone: Value, expected: &str) {
        let image = compile(&Zone::from_json(&zone).expect("valid zone")).expect("fits");
        let lines: Vec<_> = image
            .prefixes()
            .map(|(prefix, word)| format!("{prefix}={}", image.ruling(word).verdicts))
            .collect();
        assert_eq!(format!("{} {}", image.flags(), lines.join(" ")), expected);
    }

    #[test]
    fn longest_first_and_deny_before_allow() {
        check(
            json!({
                "local": ["10.12.34.0/24", "fd00::/64"], "allow": ["172.16.5.0/24", "10.12.34.13", "10.0.0.1"],
                "deny": ["10.12.34.0/28", "10.12.34.13", "172.16.4.0/24"],
            }),
            "8 10.12.34.13/32=0 10.0.0.1/32=3 10.12.34.0/28=0 172.16.4.0/24=0 10.12.34.0/24=11 172.16.5.0/24=3 \
             fd00::/64=11",
        );
    }

    #[test]
    fn duplicates_are_merged() {
        check(json!({ "local": ["10.0.0.0/8"], "allow": ["10.0.0.0/8", "10.0.0.0/8"] }), "0 10.0.0.0/8=11");
        check(json!({ "local": ["10.0.0.0/8"], "deny": ["10.0.0.0/8"] }), "0 10.0.0.0/8=0");
    }

    #[test]
    fn local_ingress_is_decided_by_local_and_deny_alone() {
        check(
            json!({
                "local": ["10.12.34.0/24"],
                "allow": ["10.12.34.128/25", "10.12.34.5", "172.16.5.0/24"],
                "deny": ["10.12.34.0/28", "10.12.34.200"],
                "ingress": "local",
            }),
            "0 10.12.34.200/32=0 10.12.34.5/32=1 10.12.34.0/28=0 10.12.34.128/25=3 10.12.34.0/24=11 172.16.5.0/24=1",
        );
    }

    #[test]
    fn any_ingress_is_a_flag() {
        check(
            json!({ "local": ["10.0.0.0/8"], "deny": ["10.0.0.1"], "ingress": "any" }),
            "4 10.0.0.1/32=2 10.0.0.0/8=11",
        );
    }

    #[test]
    fn a_denied_ipv6_prefix_does_not_open_link_local_addresses() {
        check(
            json!({ "local": ["10.0.0.0/8"], "deny": ["fd00::/8"], "ingress": "any" }),
            "4 10.0.0.0/8=11 fd00::/8=2",
        );
    }

    /// The rules that decide about each prefix, sent and received, by their text.
    #[track_caller]
    fn decided(zone: Value, expected: &[&str]) {
        let image = compile(&Zone::from_json(&zone).expect("valid zone")).expect("fits");
        let text = |number: u8| match number {
            0 => "nobody".to_owned(),
            30 | 31 => format!("rest {number}"),
            number => {
                let rule = &image.rules()[usize::from(number) - 1];
                super::super::ZoneRule::from_maps(rule).expect("an entry").to_string()
            }
        };
        let mut lines = Vec::new();
        for (prefix, word) in image.prefixes() {
            let [_, egress, _, ingress] = word.to_le_bytes();
            let mut line = format!("{prefix}: ");
            for range in image.ranges(word) {
                let (sent, received) = (text(range.egress_rule), text(range.ingress_rule));
                line += &format!("{} by {sent} and {received}; ", super::super::range_text(range));
            }
            lines.push(line + &format!("by {} and {}", text(egress), text(ingress)));
        }
        assert_eq!(lines, expected);
    }

    #[test]
    fn each_prefix_knows_who_decides() {
        decided(
            json!({
                "local": ["10.0.0.0/24"], "allow": ["10.0.0.0/24", "10.0.0.128/25", "172.16.0.0/24"],
                "deny": ["10.0.0.9", "10.0.0.0/8"],
            }),
            &[
                "10.0.0.9/32: by deny 10.0.0.9/32 and deny 10.0.0.9/32",
                "10.0.0.128/25: by allow 10.0.0.128/25 and allow 10.0.0.128/25",
                "10.0.0.0/24: by local 10.0.0.0/24 and local 10.0.0.0/24",
                "172.16.0.0/24: by allow 172.16.0.0/24 and allow 172.16.0.0/24",
                "10.0.0.0/8: by deny 10.0.0.0/8 and deny 10.0.0.0/8",
            ],
        );
        decided(
            json!({
                "local": ["10.0.0.0/24"], "allow": ["10.0.0.128/25", "172.16.0.0/24"], "deny": ["172.16.0.0/16"],
                "ingress": "local",
            }),
            &[
                "10.0.0.128/25: by allow 10.0.0.128/25 and local 10.0.0.0/24",
                "10.0.0.0/24: by local 10.0.0.0/24 and local 10.0.0.0/24",
                "172.16.0.0/24: by allow 172.16.0.0/24 and deny 172.16.0.0/16",
                "172.16.0.0/16: by deny 172.16.0.0/16 and deny 172.16.0.0/16",
            ],
        );
    }

    #[test]
    fn each_range_knows_whose_it_is() {
        let zone = |ingress: &str| {
            json!({
                "local": ["10.0.0.0/24"], "ingress": ingress,
                "allow": [
                    { "cidr": "172.16.0.0/16", "ports": ["tcp/443", "udp/53"] },
                    { "cidr": "172.16.5.0/24", "ports": ["tcp/400-500"] },
                ],
                "deny": [{ "cidr": "10.0.0.0/8", "ports": ["tcp/22"] }],
            })
        };
        let (ssh, wide, narrow) = (
            "deny 10.0.0.0/8 tcp/22",
            "allow 172.16.0.0/16 tcp/443,udp/53",
            "allow 172.16.5.0/24 tcp/400-500",
        );
        decided(
            zone("zone"),
            &[
                &format!(
                    "172.16.5.0/24: tcp/400-500 by {narrow} and {narrow}; udp/53 by {wide} and {wide}; by nobody and nobody"
                ),
                &format!(
                    "10.0.0.0/24: tcp/22 by {ssh} and {ssh}; by local 10.0.0.0/24 and local 10.0.0.0/24"
                ),
                &format!(
                    "172.16.0.0/16: tcp/443 by {wide} and {wide}; udp/53 by {wide} and {wide}; by nobody and nobody"
                ),
                "10.0.0.0/8: by nobody and nobody",
            ],
        );
        decided(
            zone("local"),
            &[
                &format!(
                    "172.16.5.0/24: tcp/400-500 by {narrow} and nobody; udp/53 by {wide} and nobody; by nobody and nobody"
                ),
                &format!(
                    "10.0.0.0/24: tcp/22 by {ssh} and {ssh}; by local 10.0.0.0/24 and local 10.0.0.0/24"
                ),
                &format!(
                    "172.16.0.0/16: tcp/443 by {wide} and nobody; udp/53 by {wide} and nobody; by nobody and nobody"
                ),
                "10.0.0.0/8: by nobody and nobody",
            ],
        );
    }

    /// Which entries have rows of their own must never decide whether a zone fits.
    #[test]
    fn entries_beyond_the_rows_are_counted_together() {
        let allow: Vec<String> = (0..40).map(|i| format!("10.0.{i}.0/24")).collect();
        let zone = json!({ "local": [], "allow": allow, "deny": ["10.0.0.1"] });
        let image = compile(&Zone::from_json(&zone).expect("valid zone")).expect("fits");
        assert_eq!(image.rules().len(), 29);
        let of = |prefix: &str| {
            let found = image.prefixes().find(|(known, _)| known.to_string() == prefix);
            found.expect("listed").1.to_le_bytes()[1]
        };
        assert_eq!((of("10.0.0.0/24"), of("10.0.28.0/24")), (1, 29));
        assert_eq!((of("10.0.29.0/24"), of("10.0.0.1/32")), (30, 31));
        // More lists of ranges than there is room for, were each rule told apart: four without.
        let entry = |cidr: String, ports: &str| json!({ "cidr": cidr, "ports": [ports] });
        let wide = (0..10).map(|a| entry(format!("10.{a}.0.0/16"), "udp/53"));
        let narrow = (0..20).map(|i| entry(format!("10.{}.{}.0/24", i / 2, i % 2), "tcp/440-450"));
        let shut = (0..40).map(|i| {
            let port = if i % 2 == 0 { "tcp/443" } else { "tcp/444" };
            entry(format!("10.{}.{}.{}/25", i / 4, i / 2 % 2, 128 * (i % 2)), port)
        });
        let allow: Vec<Value> = wide.chain(narrow).collect();
        let zone = json!({ "local": [], "allow": allow, "deny": shut.collect::<Vec<_>>() });
        let image = compile(&Zone::from_json(&zone).expect("valid zone")).expect("fits");
        assert_eq!(image.ports().len(), 4);
        let rules = |range: &PortRange| (range.verdicts, range.egress_rule, range.ingress_rule);
        let used = image.ports().iter().flatten().filter(|range| range.protocol != 0).map(rules);
        assert!(
            used.clone().all(|range| range == (3, 30, 30) || range == (0, 31, 31)),
            "{:?}",
            used.collect::<Vec<_>>()
        );
    }

    #[test]
    fn nine_prefixes_are_a_trie() {
        let prefixes = |count: u8| -> Vec<String> { (0..count).map(|i| format!("10.0.{i}.0/24")).collect() };
        let flags = |local: Vec<String>| {
            let zone = Zone::from_json(&json!({ "local": local })).expect("valid zone");
            compile(&zone).expect("fits").flags()
        };
        assert_eq!(flags(prefixes(8)), 0);
        assert_eq!(flags(prefixes(9)), zone_flags::TRIE_V4);
        let v6 = (0..9).map(|i| format!("fd00:{i}::/32")).collect();
        assert_eq!(flags(v6), zone_flags::TRIE_V6 | zone_flags::HAS_V6);
    }
}
