//! What the maps should hold for a zone: its digest, its text and the difference between two.

use std::cmp::Reverse;
use std::fmt::{Display, Formatter, Result as FmtResult};
use std::net::IpAddr;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use netpath_ebpf::abi::{zone_flags, zone_verdict};
use sha2::{Digest, Sha256};

/// Map content of one zone: prefixes of each family, the longest first, each once. The first that holds
/// an address decides, and one that none holds is denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneImage {
    pub(super) flags: u32,
    pub(super) v4: Vec<(Ipv4Network, u32)>,
    pub(super) v6: Vec<(Ipv6Network, u32)>,
}

impl ZoneImage {
    /// Bits of [`zone_flags`].
    pub fn flags(&self) -> u32 {
        self.flags
    }

    /// IPv4 prefixes with bits of [`zone_verdict`].
    pub fn v4(&self) -> &[(Ipv4Network, u32)] {
        &self.v4
    }

    /// IPv6 prefixes with bits of [`zone_verdict`].
    pub fn v6(&self) -> &[(Ipv6Network, u32)] {
        &self.v6
    }

    /// Both families.
    pub fn prefixes(&self) -> impl Iterator<Item = (IpNetwork, u32)> {
        let v4 = self.v4.iter().map(|&(prefix, verdicts)| (IpNetwork::V4(prefix), verdicts));
        v4.chain(self.v6.iter().map(|&(prefix, verdicts)| (IpNetwork::V6(prefix), verdicts)))
    }

    /// What the prefixes say of `address`: bits of [`zone_verdict`]. The flags are not asked.
    pub fn verdicts(&self, address: IpAddr) -> u32 {
        let found = match address {
            IpAddr::V4(v4) => self.v4.iter().find(|(prefix, _)| prefix.contains(v4)).map(|(_, v)| *v),
            IpAddr::V6(v6) => self.v6.iter().find(|(prefix, _)| prefix.contains(v6)).map(|(_, v)| *v),
        };
        found.unwrap_or(0)
    }

    /// Names the zone of network `name` with this content: equal only for the same name and content.
    ///
    /// An attachment is given the row with its zone's digest, so it must not be possible to make two zones
    /// meet on purpose: hence a cryptographic hash. It is kept in pins, so it must not change within an ABI.
    pub fn digest(&self, name: &str) -> [u8; 16] {
        let mut hash = Sha256::new();
        hash.update(b"netpath zone 1\0");
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

    /// What must be told to somebody who knows `old` to know `new`.
    pub fn difference(old: &Self, new: &Self) -> Difference {
        let of = |image: &Self, prefix| image.prefixes().find(|(p, _)| *p == prefix).map(|(_, v)| v);
        let mut changes: Vec<_> = old
            .prefixes()
            .filter_map(|(prefix, before)| {
                let after = of(new, prefix);
                (after != Some(before)).then_some((prefix, Some(before), after))
            })
            .collect();
        let fresh = new.prefixes().filter(|(prefix, _)| of(old, *prefix).is_none());
        changes.extend(fresh.map(|(prefix, after)| (prefix, None, Some(after))));
        Difference { flags: (old.flags != new.flags).then_some((old.flags, new.flags)), changes }
    }
}

/// One prefix a line, in the order in which they are tried, then what the flags add.
impl Display for ZoneImage {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        let width = self.prefixes().map(|(prefix, _)| prefix.to_string().len()).max().unwrap_or(0);
        for (prefix, verdicts) in self.prefixes() {
            writeln!(f, "{:width$}  {}", prefix.to_string(), verdict_text(verdicts))?;
        }
        for text in flag_texts(self.flags) {
            writeln!(f, "{text}")?;
        }
        f.write_str("everything else is denied\n")
    }
}

/// How two images differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Flags before and after, where they differ.
    pub flags: Option<(u32, u32)>,
    /// Prefixes with their verdicts before and after; `None` where the prefix is not listed.
    pub changes: Vec<(IpNetwork, Option<u32>, Option<u32>)>,
}

impl Difference {
    /// Whether the images are the same.
    pub fn is_empty(&self) -> bool {
        self.flags.is_none() && self.changes.is_empty()
    }
}

/// One change a line, `-` before what is gone and `+` before what is new; nothing where nothing changed.
impl Display for Difference {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        for (prefix, before, after) in &self.changes {
            if let Some(before) = before {
                writeln!(f, "- {prefix}  {}", verdict_text(*before))?;
            }
            if let Some(after) = after {
                writeln!(f, "+ {prefix}  {}", verdict_text(*after))?;
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
        compile(&Zone::from_json(&zone).expect("valid zone"))
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
        assert_eq!(hex, "4a66fccbb58e734b3fc639310a8236c6");
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
