//! A zone's lists to the one sorted list per family that programs can walk.

use ipnetwork::IpNetwork;
use netpath_ebpf::abi::{
    PORT_RANGES, PortRange, PortSet, ZONE_INLINE, ZONE_PORT_SETS, zone_flags, zone_verdict,
};

use super::flatten::{Flat, flatten};
use super::{Ingress, OnDeny, Zone, ZoneError, ZoneImage};

/// The image of `zone`. A family of any length has a place; ports have limits, which a zone was held against
/// when it was resolved.
///
/// The mode is not part of it: it stands in the endpoint's row, where it outlives a lost zone.
pub fn compile(zone: &Zone) -> Result<ZoneImage, ZoneError> {
    let (mut v4, mut v6, mut ports) = (Vec::new(), Vec::new(), Vec::new());
    for flat in flatten(zone)? {
        let word = flat.word | port_word(&flat, &mut ports)?;
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
    let mut image = ZoneImage { flags, v4, v6, ports };
    image.sort();
    Ok(image)
}

/// The bits that lead to the ranges of `flat`, which are entered into `sets` unless they are there.
fn port_word(flat: &Flat, sets: &mut Vec<PortSet>) -> Result<u32, ZoneError> {
    if flat.ranges.is_empty() {
        return Ok(0);
    }
    let mut set = [PortRange::default(); PORT_RANGES];
    for (place, range) in set.iter_mut().zip(&flat.ranges) {
        *place = *range;
    }
    let found = sets.iter().position(|other| *other == set).unwrap_or_else(|| {
        sets.push(set);
        sets.len() - 1
    });
    match u32::try_from(found) {
        Ok(number) if number < ZONE_PORT_SETS => {
            Ok(zone_verdict::PORTS | number << zone_verdict::PORT_SET_SHIFT)
        }
        _ => Err(ZoneError::PortSets { prefix: flat.prefix, limit: ZONE_PORT_SETS }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn check(zone: Value, expected: &str) {
        let image = compile(&Zone::from_json(&zone).expect("valid zone")).expect("fits");
        let lines: Vec<_> =
            image.prefixes().map(|(prefix, verdicts)| format!("{prefix}={verdicts}")).collect();
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
