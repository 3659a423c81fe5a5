//! What users and administrators write about zones, down to the bytes of the maps.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use ipnetwork::IpNetwork;
use netpath::zone::{self, Ingress, MasterEntry, Masters, Protocol, Zone, ZoneConf, ZoneEntry, ZoneImage};
use netpath_ebpf::abi::{zone_flags, zone_verdict};
use serde_json::Value;

use crate::{cursor::Cursor, file_name};

/// A `zone`, a `masters.json` and the subnets of an IPAM, with zero bytes between them.
pub fn check(data: &[u8]) {
    let mut cursor = Cursor::new(data);
    let conf = serde_json::from_slice::<Value>(cursor.until(0)).ok();
    let masters = cursor.until(0);
    let subnets: Vec<IpNetwork> =
        String::from_utf8_lossy(cursor.rest()).split(',').filter_map(|text| text.parse().ok()).collect();
    let conf = match conf.as_ref().map(ZoneConf::parse) {
        None => None,
        Some(Ok(conf)) => Some(conf),
        Some(Err(error)) => return says_something(&error),
    };
    let entries = match Masters::parse(Path::new("/masters.json"), masters) {
        Ok(masters) => masters.entries().to_vec(),
        Err(error) => {
            says_something(&error);
            Vec::new()
        }
    };
    for entry in entries.iter().map(Some).chain([None]) {
        match zone::resolve(conf.as_ref(), Some(&subnets), entry) {
            Ok(Some(zone)) => whole(&zone, entry),
            Ok(None) => assert!(conf.is_none(), "a zone was asked for, and there is none"),
            Err(error) => says_something(&error),
        }
    }
}

fn whole(zone: &Zone, entry: Option<&MasterEntry>) {
    let written = zone.to_json();
    assert_eq!(Zone::from_json(&written).ok().as_ref(), Some(zone), "a zone is read as it was written");
    let image = zone::compile(zone).expect("a zone that was resolved fits the maps");
    let bound = entry.and_then(MasterEntry::zone);
    let ports = ports(zone, bound);
    let entries = zone.allow().iter().chain(zone.deny()).map(ZoneEntry::prefix);
    for address in edges(zone.local().iter().copied().chain(entries)) {
        for &(protocol, port) in &ports {
            let end = End { address, protocol, port };
            let (egress, ingress) = means(zone, end);
            let verdicts = image.verdicts(address, protocol, port);
            assert_eq!(verdicts & zone_verdict::EGRESS != 0, egress, "{end:?}: may it be sent to?");
            let any = image.flags() & zone_flags::INGRESS_ANY != 0;
            assert_eq!(any || verdicts & zone_verdict::INGRESS != 0, ingress, "{end:?}: may it send?");
            if let Some(bound) = bound {
                let (widest_egress, widest_ingress) = means(bound, end);
                assert!(!egress || widest_egress, "{end:?} may be sent to, beyond the master's zone");
                assert!(!ingress || widest_ingress, "{end:?} may send, beyond the master's zone");
            }
        }
    }
    let again =
        ZoneImage::from_maps(&image.slot(1), &image.trie4(2), &image.trie6(2), image.ports(), image.rules());
    assert_eq!(again.as_ref(), Ok(&image), "an image is read from the maps as it was written");
    let twin = zone::compile(zone).expect("as before");
    assert_eq!(image.digest("lan"), twin.digest("lan"), "one zone, one digest");
    assert_ne!(image.digest("lan"), image.digest("lan2"), "the name is part of it");
    assert!(ZoneImage::difference(&image, &image).is_empty() && !image.to_string().is_empty());
}

/// The other end of a packet.
#[derive(Clone, Copy, Debug)]
struct End {
    address: IpAddr,
    protocol: u8,
    port: u16,
}

/// Protocols and ports at which two zones can change their minds; not all of them, where they have very many.
fn ports(zone: &Zone, bound: Option<&Zone>) -> Vec<(u8, u16)> {
    const PROTOCOLS: [u8; 6] = [1, 6, 17, 47, 58, 132];
    let mut ports = vec![0];
    let zones = std::iter::once(zone).chain(bound);
    for named in zones.flat_map(|zone| zone.allow().iter().chain(zone.deny())).flat_map(ZoneEntry::ports) {
        ports.extend([named.first, named.last, named.last.saturating_add(1)]);
    }
    ports.sort_unstable();
    ports.dedup();
    ports.truncate(64);
    PROTOCOLS.into_iter().flat_map(|protocol| ports.iter().map(move |port| (protocol, *port))).collect()
}

/// Whether `entry` is about packets to or from `end`.
fn is_about(entry: &ZoneEntry, end: End) -> bool {
    let named = |ports: &zone::Ports| {
        let protocol = match (ports.protocol, end.address) {
            (Protocol::Icmp, IpAddr::V4(_)) => 1,
            (Protocol::Icmp, IpAddr::V6(_)) => 58,
            (Protocol::Tcp, _) => 6,
            (Protocol::Udp, _) => 17,
            (Protocol::Sctp, _) => 132,
        };
        protocol == end.protocol && (ports.first..=ports.last).contains(&end.port)
    };
    is_around(&entry.prefix(), end.address) && (entry.ports().is_empty() || entry.ports().iter().any(named))
}

/// What a zone means for a packet: (may be sent, may come in). A `deny` with ports holds; of the other entries that
/// are about the packet the longest decides, and `deny` wins a tie.
fn means(zone: &Zone, end: End) -> (bool, bool) {
    let about = |list: &[ZoneEntry]| -> Vec<ZoneEntry> {
        list.iter().filter(|entry| is_about(entry, end)).cloned().collect()
    };
    let longest =
        |list: &[ZoneEntry]| list.iter().map(|entry| i16::from(entry.prefix().prefix())).max().unwrap_or(-1);
    let denials = about(zone.deny());
    let held = denials.iter().any(|entry| !entry.ports().is_empty());
    let denied = longest(&denials);
    let local = zone.local().iter().filter(|prefix| is_around(prefix, end.address));
    let local = local.map(|prefix| i16::from(prefix.prefix())).max().unwrap_or(-1);
    let egress = !held && local.max(longest(&about(zone.allow()))) > denied;
    let ingress = match zone.ingress() {
        Ingress::Zone => egress,
        Ingress::Local => !held && local > denied,
        Ingress::Any => true,
    };
    (egress, ingress)
}

fn is_around(prefix: &IpNetwork, address: IpAddr) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)) << 96,
        IpAddr::V6(v6) => u128::from(v6),
    };
    let length = u32::from(prefix.prefix());
    let head = |address| bits(address).checked_shr(128 - length).unwrap_or(0);
    prefix.is_ipv4() == address.is_ipv4() && head(prefix.ip()) == head(address)
}

/// Addresses at both ends of each prefix and beside them.
fn edges(prefixes: impl Iterator<Item = IpNetwork>) -> Vec<IpAddr> {
    let mut edges = Vec::new();
    for prefix in prefixes {
        for end in [prefix.network(), prefix.broadcast()] {
            let beside = |by: i8| match end {
                IpAddr::V4(v4) => IpAddr::from(Ipv4Addr::from(u32::from(v4).wrapping_add_signed(by.into()))),
                IpAddr::V6(v6) => IpAddr::from(Ipv6Addr::from(u128::from(v6).wrapping_add_signed(by.into()))),
            };
            edges.extend([beside(-1), end, beside(1)]);
        }
    }
    edges
}

/// An error is read by whoever wrote the zone.
fn says_something(error: &dyn std::error::Error) {
    assert!(!error.to_string().trim().is_empty(), "{error:?}");
}

/// Zones and masters of every kind.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    const MASTERS: &str = r#"{"enp0s8":{"zone":{"policy":"private","deny":["10.12.34.13"]},"subnets":["10.12.0.0/16","fd00::/48"],"unknownSource":"drop","types":["macvlan"],"nadNamespaces":["infra"]},"lan":{"widePrefixes":true,"xdp":"native"}}"#;
    let of = |name: &str, zone: &str, masters: &str, subnets: &str| {
        (file_name(name), [zone, masters, subnets].join("\0").into_bytes())
    };
    let many = |count: u32| {
        let prefixes: Vec<String> =
            (0..count).map(|i| format!("\"10.12.{i}.0/24\",\"fd00:0:0:{i}::/64\"")).collect();
        format!("{{\"local\":[{}]}}", prefixes.join(","))
    };
    let odd = |count: u32| -> String {
        (0..count).map(|i| format!("\"tcp/{}\"", 2 * i + 1)).collect::<Vec<_>>().join(",")
    };
    vec![
        of("defaults", r#"{"policy":"private"}"#, MASTERS, "10.12.34.0/24,fd00::/64"),
        of(
            "every key",
            r#"{"policy":"private","mode":"audit","local":["10.12.34.0/24"],"allow":["172.16.5.0/24","fd00::/48"],"deny":["10.12.34.13","10.12.34.0/28"],"ingress":"local","onDeny":"drop"}"#,
            "{}",
            "",
        ),
        of("no zone of its own", "", MASTERS, "10.12.34.0/24"),
        of("ingress any", r#"{"local":["10.12.34.0/24"],"ingress":"any"}"#, MASTERS, ""),
        of("wide", r#"{"local":["0.0.0.0/0","::/0"]}"#, MASTERS, ""),
        of(
            "deny wins a tie",
            r#"{"local":["10.0.0.0/8"],"allow":["10.0.0.0/8","10.1.0.0/16"],"deny":["10.1.0.0/16"]}"#,
            "{}",
            "",
        ),
        of("eight prefixes", &many(8), MASTERS, ""),
        of("nine prefixes", &many(9), MASTERS, ""),
        of(
            "ports",
            r#"{"local":["10.12.34.0/24"],"allow":[{"cidr":"172.16.0.0/16","ports":["tcp/443","udp/1000-2000","icmp"]},{"cidr":"172.16.5.0/24","ports":["sctp"]},{"cidr":"fd00:5::/48","ports":["icmp","tcp/22"]}],"deny":[{"cidr":"172.16.0.0/16","ports":["udp/1500"]},{"cidr":"10.12.34.0/24","ports":["tcp/22"]},"172.16.5.66"],"ingress":"local"}"#,
            "{}",
            "",
        ),
        of(
            "ports within those of the master",
            r#"{"local":[],"allow":[{"cidr":"10.12.34.254","ports":["tcp/443"]}]}"#,
            r#"{"enp0s8":{"zone":{"allow":[{"cidr":"10.12.34.0/24","ports":["tcp/400-500"]}],"deny":[{"cidr":"10.12.34.0/24","ports":["tcp/444"]}]},"subnets":["10.13.0.0/16"]}}"#,
            "",
        ),
        of(
            "too many ports",
            &format!(r#"{{"local":[],"allow":[{{"cidr":"10.0.0.1","ports":[{}]}}]}}"#, odd(9)),
            "{}",
            "",
        ),
        of(
            "ports that join",
            &format!(r#"{{"local":[],"allow":[{{"cidr":"10.0.0.1","ports":[{},"tcp/1-17"]}}]}}"#, odd(9)),
            "{}",
            "",
        ),
        of("local ports", r#"{"local":[{"cidr":"10.0.0.1","ports":["tcp/443"]}]}"#, "{}", ""),
        of("host bits", r#"{"local":["10.12.34.1/24"]}"#, "{}", ""),
        of("masters twice", "{}", r#"{"a":{},"a":{}}"#, "10.0.0.0/8"),
        of("mapped", r#"{"local":["::ffff:10.0.0.0/104"],"allow":["::ffff:10.0.0.1"]}"#, "{}", ""),
    ]
}
