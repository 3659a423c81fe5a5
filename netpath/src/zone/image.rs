//! What the maps should hold for a zone: its digest, its text and the difference between two.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt::{Display, Formatter, Result as FmtResult};
use std::net::IpAddr;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use netpath_ebpf::abi::{PortRange, PortSet, Rule, zone_flags, zone_verdict};
use sha2::{Digest, Sha256};

use super::ports::range_text;

/// Map content of one zone: prefixes of each family, the longest first, each once. The first that holds
/// an address decides, and one that none holds is denied. Where its word names a port set, the first range
/// of the set that holds a packet decides before the word does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneImage {
    pub(super) flags: u32,
    pub(super) v4: Vec<(Ipv4Network, u32)>,
    pub(super) v6: Vec<(Ipv6Network, u32)>,
    /// Each once and not empty; all of them are named by a word.
    pub(super) ports: Vec<PortSet>,
    /// The entries that have a number of their own: their place, counted from 1. Words and ranges name them.
    pub(super) rules: Vec<Rule>,
}

impl ZoneImage {
    /// Bits of [`zone_flags`].
    pub fn flags(&self) -> u32 {
        self.flags
    }

    /// IPv4 prefixes with words of [`zone_verdict`].
    pub fn v4(&self) -> &[(Ipv4Network, u32)] {
        &self.v4
    }

    /// IPv6 prefixes with words of [`zone_verdict`].
    pub fn v6(&self) -> &[(Ipv6Network, u32)] {
        &self.v6
    }

    /// The port sets that words name, by number.
    pub fn ports(&self) -> &[PortSet] {
        &self.ports
    }

    /// The zone's entries as far as they are counted one by one; the number of each is its place, counted from 1.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Both families.
    pub fn prefixes(&self) -> impl Iterator<Item = (IpNetwork, u32)> {
        let v4 = self.v4.iter().map(|&(prefix, word)| (IpNetwork::V4(prefix), word));
        v4.chain(self.v6.iter().map(|&(prefix, word)| (IpNetwork::V6(prefix), word)))
    }

    /// What `word` says, which is one of this image's.
    pub fn ruling(&self, word: u32) -> Ruling {
        let verdicts = word & (zone_verdict::EGRESS | zone_verdict::INGRESS | zone_verdict::LOCAL);
        let range = |range: &PortRange| PortRange { egress_rule: 0, ingress_rule: 0, ..*range };
        Ruling { verdicts, ranges: self.ranges(word).map(range).collect() }
    }

    /// The ranges of the port set that `word` names; none where it names none.
    pub(super) fn ranges(&self, word: u32) -> impl Iterator<Item = &PortRange> {
        let number = (word & zone_verdict::PORTS != 0).then(|| zone_verdict::port_set(word));
        let set = number.and_then(|number| self.ports.get(usize::try_from(number).ok()?));
        set.into_iter().flatten().filter(|range| range.protocol != 0)
    }

    /// What `word` says of a packet: bits of [`zone_verdict`].
    pub(super) fn decide(&self, word: u32, protocol: u8, port: u16) -> u32 {
        let holds =
            |range: &&PortRange| range.protocol == protocol && (range.first..=range.last).contains(&port);
        self.ranges(word).find(holds).map_or(word, |range| range.verdicts.into())
            & (zone_verdict::EGRESS | zone_verdict::INGRESS)
    }

    /// Where among the packets of an address the mind of `word` can change: a protocol and a first port each.
    pub(super) fn port_edges(&self, word: u32) -> impl Iterator<Item = (u8, u16)> {
        self.ranges(word).flat_map(|range| {
            let edges = [Some(0), Some(range.first), range.last.checked_add(1)];
            edges.into_iter().flatten().map(|port| (range.protocol, port))
        })
    }

    /// What is said of packets to or from `address` and its `port`: bits of [`zone_verdict`]. The flags are not
    /// asked.
    pub fn verdicts(&self, address: IpAddr, protocol: u8, port: u16) -> u32 {
        let found = match address {
            IpAddr::V4(v4) => self.v4.iter().find(|(prefix, _)| prefix.contains(v4)).map(|(_, word)| *word),
            IpAddr::V6(v6) => self.v6.iter().find(|(prefix, _)| prefix.contains(v6)).map(|(_, word)| *word),
        };
        found.map_or(0, |word| self.decide(word, protocol, port))
    }

    /// Names the zone of network `name` with this content: equal only for the same name and content.
    ///
    /// An attachment is given the row with its zone's digest, so it must not be possible to make two zones
    /// meet on purpose: hence a cryptographic hash. It is kept in pins, so it must not change within an ABI.
    pub fn digest(&self, name: &str) -> [u8; 16] {
        let mut hash = Sha256::new();
        hash.update(b"netpath zone 3\0");
        // Every part has a fixed length or its length before it, so that no two inputs read the same.
        hash.update((name.len() as u64).to_be_bytes());
        hash.update(name);
        hash.update(self.flags.to_be_bytes());
        hash.update((self.v4.len() as u64).to_be_bytes());
        for (prefix, verdicts) in &self.v4 {
            hash.update(prefix.network().octets());
            hash.update([prefix.prefix()]);
            hash.update(verdicts.to_be_bytes());
        }
        hash.update((self.v6.len() as u64).to_be_bytes());
        for (prefix, verdicts) in &self.v6 {
            hash.update(prefix.network().octets());
            hash.update([prefix.prefix()]);
            hash.update(verdicts.to_be_bytes());
        }
        hash.update((self.ports.len() as u64).to_be_bytes());
        self.ports.iter().flatten().for_each(|range| hash_range(&mut hash, range));
        // What is counted belongs to it: an entry that changes no verdict is one to be told about.
        hash.update((self.rules.len() as u64).to_be_bytes());
        for rule in &self.rules {
            hash.update(rule.addr);
            hash.update([rule.prefix_len, rule.family, rule.kind]);
            rule.ports.iter().for_each(|range| hash_range(&mut hash, range));
        }
        let mut digest = [0; 16];
        digest.copy_from_slice(&hash.finalize()[..16]);
        digest
    }

    /// Puts the lists into the order of the maps: the longest first, of equal ones a denial first.
    pub(super) fn sort(&mut self) {
        let allows = |verdicts: u32| verdicts & zone_verdict::EGRESS != 0;
        self.v4.sort_by_key(|&(prefix, verdicts)| (Reverse(prefix.prefix()), allows(verdicts), prefix));
        self.v6.sort_by_key(|&(prefix, verdicts)| (Reverse(prefix.prefix()), allows(verdicts), prefix));
    }

    /// What must be told to somebody who knows what `old` lets through to know it of `new`.
    pub fn difference(old: &Self, new: &Self) -> Difference {
        let (were, are): (HashMap<_, _>, HashMap<_, _>) =
            (old.prefixes().collect(), new.prefixes().collect());
        let mut changes: Vec<_> = old
            .prefixes()
            .filter_map(|(prefix, word)| {
                let (before, after) =
                    (Some(old.ruling(word)), are.get(&prefix).map(|word| new.ruling(*word)));
                (after != before).then_some((prefix, before, after))
            })
            .collect();
        let fresh = new.prefixes().filter(|(prefix, _)| !were.contains_key(prefix));
        changes.extend(fresh.map(|(prefix, word)| (prefix, None, Some(new.ruling(word)))));
        Difference { flags: (old.flags != new.flags).then_some((old.flags, new.flags)), changes }
    }
}

fn hash_range(hash: &mut Sha256, range: &PortRange) {
    hash.update([range.protocol, range.verdicts, range.egress_rule, range.ingress_rule]);
    hash.update(range.first.to_be_bytes());
    hash.update(range.last.to_be_bytes());
}

/// One prefix a line, in the order in which they are tried, then what the flags add.
impl Display for ZoneImage {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        let width = self.prefixes().map(|(prefix, _)| prefix.to_string().len()).max().unwrap_or(0);
        for (prefix, word) in self.prefixes() {
            writeln!(f, "{:width$}  {}", prefix.to_string(), self.ruling(word))?;
        }
        for text in flag_texts(self.flags) {
            writeln!(f, "{text}")?;
        }
        f.write_str("everything else is denied\n")
    }
}

/// What a zone says of a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// Bits of [`zone_verdict`] for what no range holds.
    pub verdicts: u32,
    /// The first that holds a packet decides.
    pub ranges: Vec<PortRange>,
}

/// `to and from`, or in the order in which they are tried `tcp/22 denied; else to and from`.
impl Display for Ruling {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        for alike in self.ranges.chunk_by(|a, b| a.verdicts == b.verdicts) {
            let ports: Vec<String> = alike.iter().map(range_text).collect();
            let verdicts = alike.first().map_or(0, |range| range.verdicts.into());
            write!(f, "{} {}; ", ports.join(", "), verdict_text(verdicts))?;
        }
        let other = if self.ranges.is_empty() { "" } else { "else " };
        write!(f, "{other}{}", verdict_text(self.verdicts))
    }
}

/// How two images differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Flags before and after, where they differ.
    pub flags: Option<(u32, u32)>,
    /// Prefixes with what is said of them before and after; `None` where the prefix is not listed.
    pub changes: Vec<(IpNetwork, Option<Ruling>, Option<Ruling>)>,
}

impl Difference {
    /// Whether the images let the same through.
    pub fn is_empty(&self) -> bool {
        self.flags.is_none() && self.changes.is_empty()
    }
}

/// One change a line, `-` before what is gone and `+` before what is new; nothing where nothing changed.
impl Display for Difference {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        for (prefix, before, after) in &self.changes {
            if let Some(before) = before {
                writeln!(f, "- {prefix}  {before}")?;
            }
            if let Some(after) = after {
                writeln!(f, "+ {prefix}  {after}")?;
            }
        }
        if let Some((before, after)) = self.flags {
            for text in flag_texts(before & !after) {
                writeln!(f, "- {text}")?;
            }
            for text in flag_texts(after & !before) {
                writeln!(f, "+ {text}")?;
            }
        }
        Ok(())
    }
}

fn verdict_text(verdicts: u32) -> &'static str {
    match (verdicts & zone_verdict::EGRESS != 0, verdicts & zone_verdict::INGRESS != 0) {
        (true, true) => "to and from",
        (true, false) => "to only",
        (false, true) => "from only",
        (false, false) => "denied",
    }
}

fn flag_texts(flags: u32) -> impl Iterator<Item = &'static str> {
    let texts = [
        (zone_flags::INGRESS_ANY, "any source may send"),
        (zone_flags::HAS_V6, "link-local IPv6 beyond ICMPv6"),
        (zone_flags::REJECT, "what the pod may not send is answered"),
        (zone_flags::TRIE_V4, "IPv4 prefixes in the trie"),
        (zone_flags::TRIE_V6, "IPv6 prefixes in the trie"),
    ];
    texts.into_iter().filter(move |(bit, _)| flags & bit != 0).map(|(_, text)| text)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::{Zone, compile};
    use super::*;

    fn image(zone: Value) -> ZoneImage {
        compile(&Zone::from_json(&zone).expect("valid zone")).expect("fits")
    }

    fn lab() -> ZoneImage {
        image(json!({
            "local": ["10.12.34.0/24"], "allow": ["172.16.5.0/24", "fd00:12::/48"], "deny": ["10.12.34.13"],
            "ingress": "local",
        }))
    }

    #[test]
    fn people_can_read_it() {
        let expected = "\
10.12.34.13/32  denied
10.12.34.0/24   to and from
172.16.5.0/24   to only
fd00:12::/48    to only
link-local IPv6 beyond ICMPv6
everything else is denied
";
        assert_eq!(lab().to_string(), expected);
    }

    /// Pins hold digests, so this value may change only with the ABI.
    #[test]
    fn the_digest_is_stable() {
        let hex: String = lab().digest("privatezone").iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "9f0149a72edc157f59eee5ca4b04637c");
    }

    #[test]
    fn the_digest_is_of_name_and_content() {
        let other = image(json!({ "local": ["10.12.34.0/25"] }));
        let same = image(json!({ "local": ["10.12.34.0/25", "10.12.34.0/25"], "mode": "audit" }));
        assert_eq!(other.digest("a"), same.digest("a"));
        assert_ne!(other.digest("a"), other.digest("b"));
        assert_ne!(other.digest("a"), lab().digest("a"));
        assert_ne!(
            image(json!({ "local": [] })).digest(""),
            image(json!({ "local": [], "ingress": "any" })).digest("")
        );
    }

    #[test]
    fn ports_can_be_read_too() {
        let (before, after) = (
            image(
                json!({ "local": ["10.12.34.0/24"], "deny": [{ "cidr": "10.12.34.0/24", "ports": ["tcp/22"] }] }),
            ),
            image(json!({
                "local": ["10.12.34.0/24"],
                "allow": [{ "cidr": "172.16.0.0/16", "ports": ["tcp/443", "udp/1000-2000", "icmp"] }],
                "deny": [{ "cidr": "172.16.0.0/16", "ports": ["udp/1500"] }],
                "ingress": "local",
            })),
        );
        assert_eq!(
            before.to_string(),
            "10.12.34.0/24  tcp/22 denied; else to and from\neverything else is denied\n"
        );
        assert_eq!(
            ZoneImage::difference(&before, &after).to_string(),
            "- 10.12.34.0/24  tcp/22 denied; else to and from\n+ 10.12.34.0/24  to and from\n\
             + 172.16.0.0/16  udp/1500 denied; icmp, tcp/443, udp/1000-2000 to only; else denied\n"
        );
        assert!(ZoneImage::difference(&after, &after).is_empty());
        let port = |port: u16| {
            let text = format!("tcp/{port}");
            image(json!({ "local": [], "allow": [{ "cidr": "10.0.0.1", "ports": [text] }] })).digest("net")
        };
        assert_ne!(port(443), port(444), "ports are part of the digest");
    }

    #[test]
    fn differences() {
        let new = image(json!({
            "local": ["10.12.34.0/24"], "allow": ["172.16.5.0/24", "192.168.0.0/16"], "ingress": "any",
        }));
        let difference = ZoneImage::difference(&lab(), &new);
        let expected = "\
- 10.12.34.13/32  denied
- 172.16.5.0/24  to only
+ 172.16.5.0/24  to and from
- fd00:12::/48  to only
+ 192.168.0.0/16  to and from
- link-local IPv6 beyond ICMPv6
+ any source may send
";
        assert_eq!(difference.to_string(), expected);
        assert!(!difference.is_empty());
        let none = ZoneImage::difference(&new, &new);
        assert_eq!((none.is_empty(), none.to_string()), (true, String::new()));
    }
}
