//! A zone's lists to the one sorted list per family that programs can walk.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;
use netpath_ebpf::abi::{ZONE_INLINE, zone_flags, zone_verdict};

use super::prefix::{canonical, covers};
use super::{Ingress, OnDeny, Zone, ZoneImage};

/// The image of `zone`. It cannot fail: a zone is valid, and a family of any length has a place.
///
/// The mode is not part of it: it stands in the endpoint's row, where it outlives a lost zone.
pub fn compile(zone: &Zone) -> ZoneImage {
    // One entry a prefix: `deny` is entered last, and so wins a tie.
    let mut entries: BTreeMap<IpNetwork, (bool, u32)> = BTreeMap::new();
    entries.extend(zone.allow.iter().map(|&prefix| (canonical(prefix), (true, 0))));
    entries.extend(zone.local.iter().map(|&prefix| (canonical(prefix), (true, zone_verdict::LOCAL))));
    entries.extend(zone.deny.iter().map(|&prefix| (canonical(prefix), (false, 0))));

    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for (&prefix, &(egress, local)) in &entries {
        let ingress = match zone.ingress {
            Ingress::Zone => egress,
            Ingress::Any => true,
            Ingress::Local => is_local(zone, prefix),
        };
        let verdicts = local
            | if egress { zone_verdict::EGRESS } else { 0 }
            | if ingress { zone_verdict::INGRESS } else { 0 };
        match prefix {
            IpNetwork::V4(prefix) => v4.push((prefix, verdicts)),
            IpNetwork::V6(prefix) => v6.push((prefix, verdicts)),
        }
    }
    let mut flags = 0;
    for (bit, set) in [
        (zone_flags::TRIE_V4, ZONE_INLINE < v4.len()),
        (zone_flags::TRIE_V6, ZONE_INLINE < v6.len()),
        (zone_flags::REJECT, zone.on_deny == OnDeny::Reject),
        (zone_flags::INGRESS_ANY, zone.ingress == Ingress::Any),
        // A prefix that is only denied names no IPv6 that the pod could use.
        (zone_flags::HAS_V6, v6.iter().any(|&(_, verdicts)| verdicts & zone_verdict::EGRESS != 0)),
    ] {
        if set {
            flags |= bit;
        }
    }
    let mut image = ZoneImage { flags, v4, v6 };
    image.sort();
    image
}

/// Whether an address for which `prefix` decides is local: of `local` and `deny` the longest prefix around
/// it says so. A shorter one of the zone cannot lie between it and the address, so this holds for each of them.
fn is_local(zone: &Zone, prefix: IpNetwork) -> bool {
    let longest =
        |list: &[IpNetwork]| list.iter().filter(|&&outer| covers(outer, prefix)).map(IpNetwork::prefix).max();
    // `None` is less than any length.
    longest(&zone.deny) < longest(&zone.local)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn check(zone: Value, expected: &str) {
        let image = compile(&Zone::from_json(&zone).expect("valid zone"));
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
            compile(&zone).flags()
        };
        assert_eq!(flags(prefixes(8)), 0);
        assert_eq!(flags(prefixes(9)), zone_flags::TRIE_V4);
        let v6 = (0..9).map(|i| format!("fd00:{i}::/32")).collect();
        assert_eq!(flags(v6), zone_flags::TRIE_V6 | zone_flags::HAS_V6);
    }
}
