//! `masters.json`: the cluster administrator's word on each master.

use std::path::{Path, PathBuf};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::{MasterEntry, ZoneError};

/// Why `masters.json` cannot be used. An unusable file bounds nothing, so that no policed ADD may go on.
#[derive(Debug, thiserror::Error)]
pub enum MastersError {
    /// Not JSON, not an object, or one master twice.
    #[error("{} is not a JSON object of masters", file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// A wrong key or value.
    #[error("the entry of master `{master}` in {} is not valid", file.display())]
    Entry {
        /// The file.
        file: PathBuf,
        /// Name of the entry.
        master: String,
        /// Which key, which value, what to write.
        source: Box<ZoneError>,
    },
    /// Two entries for one link, which has several names.
    #[error(
        "{} has the entries `{first}` and `{second}`, which are two names of one link: keep one",
        file.display()
    )]
    Ambiguous {
        /// The file.
        file: PathBuf,
        /// One entry.
        first: String,
        /// The other.
        second: String,
    },
}

/// All entries of `masters.json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masters {
    file: PathBuf,
    entries: Vec<MasterEntry>,
}

impl Masters {
    /// What holds where there is no file: every zone is advice.
    pub fn none(file: &Path) -> Self {
        Self { file: file.to_owned(), entries: Vec::new() }
    }

    /// Parses the bytes of `file`. One wrong entry makes the whole file unusable: a bound that silently
    /// does not hold is worse than an ADD that fails.
    pub fn parse(file: &Path, bytes: &[u8]) -> Result<Self, MastersError> {
        let json = |source| MastersError::Json { file: file.to_owned(), source };
        let EntriesWire(wire) = serde_json::from_slice(bytes).map_err(json)?;
        let entries = wire.into_iter().map(|(name, value)| {
            MasterEntry::parse(&name, &value).map_err(|source| MastersError::Entry {
                file: file.to_owned(),
                master: name.clone(),
                source: Box::new(source),
            })
        });
        Ok(Self { file: file.to_owned(), entries: entries.collect::<Result<_, _>>()? })
    }

    /// Every entry, in the order of the file.
    pub fn entries(&self) -> &[MasterEntry] {
        &self.entries
    }

    /// The entry of a link, given all its names: that of the interface and the alternative ones. Names are
    /// those of the link that was resolved, never the string that a network wrote.
    pub fn find(&self, names: &[&str]) -> Result<Option<&MasterEntry>, MastersError> {
        let mut found = self.entries.iter().filter(|entry| names.contains(&entry.name()));
        match (found.next(), found.next()) {
            (Some(first), Some(second)) => Err(MastersError::Ambiguous {
                file: self.file.clone(),
                first: first.name().to_owned(),
                second: second.name().to_owned(),
            }),
            (entry, _) => Ok(entry),
        }
    }
}

/// The entries as they stand in the file: an object, whose keys serde would merge if they repeat.
struct EntriesWire(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for EntriesWire {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = EntriesWire;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object with one key for each master")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<EntriesWire, A::Error> {
                let mut entries: Vec<(String, Value)> = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    if entries.iter().any(|(other, _)| *other == name) {
                        return Err(serde::de::Error::custom(format_args!("master `{name}` is given twice")));
                    }
                    entries.push((name, value));
                }
                Ok(EntriesWire(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use serde_json::json;

    use super::super::{Ingress, Mode, Promisc, Tc, UnknownSource, Xdp};
    use super::*;

    fn parse(text: &str) -> Result<Masters, String> {
        Masters::parse(Path::new("/etc/masters.json"), text.as_bytes()).map_err(|error| {
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                text += &format!(": {error}");
                cause = error.source();
            }
            text
        })
    }

    #[track_caller]
    fn refused(entry: Value, expected: &str) {
        let error = parse(&json!({ "eth1": {}, "enp0s8": entry }).to_string()).expect_err("must be refused");
        let place = "the entry of master `enp0s8` in /etc/masters.json is not valid: ";
        assert_eq!(error.strip_prefix(place), Some(expected), "{error}");
    }

    #[test]
    fn every_key_is_read() {
        let masters = parse(
            r#"{"enp0s8": {"zone": {"policy": "private", "mode": "audit"}, "subnets": ["10.12.34.0/24"],
                "nadNamespaces": ["infra"], "podNamespaces": ["team-a"], "types": ["macvlan"],
                "unknownSource": "drop", "XDP": "native", "promisc": "on", "tc": "clsact", "widePrefixes": true}}"#,
        );
        let masters = masters.expect("valid");
        let [entry] = masters.entries() else { panic!("one entry: {masters:?}") };
        assert_eq!(entry.name(), "enp0s8");
        assert_eq!(entry.subnets(), Some(&["10.12.34.0/24".parse().expect("prefix")][..]));
        assert_eq!(entry.unknown_source(), UnknownSource::Drop);
        assert_eq!((entry.xdp(), entry.promisc(), entry.tc()), (Xdp::Native, Promisc::On, Tc::Clsact));
        assert!(entry.wide_prefixes());
        let zone = entry.zone().expect("zone");
        assert_eq!(
            (zone.mode(), zone.ingress(), zone.local()),
            (Mode::Audit, Ingress::Zone, entry.subnets().expect("set"))
        );
        assert_eq!((entry.check_type("macvlan"), entry.check_type("ipvlan").is_err()), (Ok(()), true));
        assert_eq!(entry.check_namespaces(Some("infra"), Some("team-a")), Ok(()));
        assert!(entry.check_namespaces(Some("team-a"), Some("team-a")).is_err());
        assert!(entry.check_namespaces(Some("infra"), Some("infra")).is_err());
    }

    #[test]
    fn nothing_said_bounds_nothing() {
        assert_eq!(parse("{}").expect("valid").entries(), []);
        assert_eq!(Masters::none(Path::new("/x")).entries(), []);
    }

    #[test]
    fn every_mistake_names_file_master_and_key() {
        refused(
            json!({ "unknown_source": "drop" }),
            "`unknown_source` is not a known key: remove it, or write one of `zone`, `subnets`, `nadNamespaces`, \
             `podNamespaces`, `types`, `unknownSource`, `dedicatedMaster`, `xdp`, `promisc`, `tc`, `ipvlan`, `widePrefixes`",
        );
        refused(
            json!({ "zone": { "denny": [] } }),
            "`zone.denny` is not a known key: remove it, or write one of \
             `policy`, `mode`, `local`, `allow`, `deny`, `ingress`, `onDeny`",
        );
        refused(json!({ "xdp": "generic" }), "`xdp` is `generic`: write one of `off`, `native`");
        refused(json!({ "ipvlan": "off" }), "`ipvlan` is `off`: write one of `refused`, `unpoliced`");
        refused(json!({ "promisc": true }), "`promisc` is true: write a string");
        refused(json!({ "tc": "bpf" }), "`tc` is `bpf`: write one of `auto`, `tcx`, `clsact`");
        refused(
            json!({ "unknownSource": "pass" }),
            "`unknownSource` is `pass`: write one of `auto`, `drop`, `audit`",
        );
        refused(json!({ "widePrefixes": "yes" }), "`widePrefixes` is \"yes\": write `true` or `false`");
        refused(json!({ "types": "macvlan" }), "`types` is \"macvlan\": write a list of strings");
        refused(json!({ "subnets": [] }), "`subnets` is empty: leave it out, or name what is allowed");
        refused(
            json!({ "subnets": ["10.12.34.1/24"] }),
            "`subnets` has `10.12.34.1/24`, whose host bits are set: write `10.12.34.0/24` for the network, or the bare \
             address for the host",
        );
        refused(json!([]), "`enp0s8` is []: write an object");
        refused(json!(null), "`enp0s8` is null: write an object");
    }

    #[test]
    fn the_file_itself_can_be_wrong() {
        let place = "/etc/masters.json is not a JSON object of masters: ";
        for (text, expected) in [
            ("", "EOF while parsing a value at line 1 column 0"),
            (
                "[]",
                "invalid type: sequence, expected an object with one key for each master at line 1 column 0",
            ),
            (r#"{"a": {}, "a": {}}"#, "master `a` is given twice at line 1 column 18"),
            ("{} x", "trailing characters at line 1 column 4"),
        ] {
            let error = parse(text).expect_err("must be refused");
            assert_eq!(error, format!("{place}{expected}"));
        }
    }

    #[test]
    fn the_masters_zone_must_bound() {
        refused(
            json!({ "zone": { "policy": "private" } }),
            "`zone.local` is missing, and so is `subnets`: say by one of them what is local on this master",
        );
        refused(
            json!({ "zone": { "local": ["10.12.0.0/16"] }, "subnets": ["10.12.34.0/24"] }),
            "`zone.local` has `10.12.0.0/16`, which is not in `subnets`, `10.12.34.0/24`: widen one or narrow the other",
        );
        let wide = "has `0.0.0.0/0`: a prefix shorter than /8 needs `\"widePrefixes\": true` for this master in masters.json";
        refused(json!({ "zone": {}, "subnets": ["0.0.0.0/0"] }), &format!("`subnets` {wide}"));
        refused(json!({ "zone": { "local": [], "allow": ["0.0.0.0/0"] } }), &format!("`zone.allow` {wide}"));
    }

    #[test]
    fn an_entry_is_found_by_any_name_of_its_link() {
        let masters = parse(r#"{"enp0s8": {}, "lan": {}}"#).expect("valid");
        let name =
            |names: &[&str]| masters.find(names).map(|entry| entry.map(|entry| entry.name().to_owned()));
        assert_eq!(name(&["eth0"]).expect("one"), None);
        assert_eq!(name(&["eth0", "lan"]).expect("one"), Some("lan".to_owned()));
        assert_eq!(
            name(&["lan", "enp0s8"]).expect_err("two").to_string(),
            "/etc/masters.json has the entries `enp0s8` and `lan`, which are two names of one link: keep one",
        );
    }
}
