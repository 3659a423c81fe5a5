//! The `zone` key of a network's configuration.

use ipnetwork::IpNetwork;
use netpath_ebpf::abi;
use serde_json::{Map, Value};

use super::fields::Fields;
use super::prefix::parse_list;
use super::{ValueError, ZoneEntry, ZoneError};

/// Where an entry was written, as errors show it.
pub(super) const ALLOW: &str = "zone.allow";
const DENY: &str = "zone.deny";

/// What happens to what the zone denies. Ordered, the weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Counted only.
    Off,
    /// Reported, and passed.
    Audit,
    /// Dropped.
    Enforce,
}

impl Mode {
    const CHOICES: [(&'static str, Self); 3] =
        [("enforce", Self::Enforce), ("audit", Self::Audit), ("off", Self::Off)];

    /// The word in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Audit => "audit",
            Self::Enforce => "enforce",
        }
    }

    /// The value in an endpoint's row.
    pub const fn abi(self) -> u8 {
        match self {
            Self::Off => abi::mode::OFF,
            Self::Audit => abi::mode::AUDIT,
            Self::Enforce => abi::mode::ENFORCE,
        }
    }
}

/// Who may send to the attachment. Ordered, the narrowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ingress {
    /// What `local` covers and `deny` does not.
    Local,
    /// The same list as for what the attachment sends.
    Zone,
    /// Anybody.
    Any,
}

impl Ingress {
    const CHOICES: [(&'static str, Self); 3] =
        [("zone", Self::Zone), ("local", Self::Local), ("any", Self::Any)];

    /// The word in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Zone => "zone",
            Self::Any => "any",
        }
    }
}

/// How a packet is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDeny {
    /// In silence.
    Drop,
    /// With an answer to the sender.
    Reject,
}

impl OnDeny {
    const CHOICES: [(&'static str, Self); 2] = [("drop", Self::Drop), ("reject", Self::Reject)];

    /// The word in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Reject => "reject",
        }
    }
}

/// A zone as it was written: what is absent is not yet filled in, nothing is yet held against a bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneConf {
    pub(super) mode: Option<Mode>,
    pub(super) local: Option<Vec<IpNetwork>>,
    pub(super) allow: Vec<ZoneEntry>,
    pub(super) deny: Option<Vec<ZoneEntry>>,
    pub(super) ingress: Option<Ingress>,
    pub(super) on_deny: OnDeny,
}

impl ZoneConf {
    /// Finds and parses the `zone` key of a plugin's configuration. No key, or `null`, is no zone.
    pub fn from_conf(conf: &Map<String, Value>) -> Result<Option<Self>, ZoneError> {
        let mut found =
            conf.iter().filter(|(key, value)| key.eq_ignore_ascii_case("zone") && !value.is_null());
        match (found.next(), found.next()) {
            (None, _) => Ok(None),
            (Some((_, zone)), None) => Self::parse(zone).map(Some),
            (Some(_), Some((key, _))) => Err(ValueError::SameKey { key: key.clone() }.into()),
        }
    }

    /// Parses the value of a `zone` key.
    pub fn parse(zone: &Value) -> Result<Self, ZoneError> {
        const KEYS: &[&str] = &["policy", "mode", "local", "allow", "deny", "ingress", "onDeny"];
        let Value::Object(zone) = zone else {
            return Err(ValueError::Type {
                key: "zone".to_owned(),
                value: zone.to_string(),
                expected: "an object like `{\"policy\": \"private\"}`",
            }
            .into());
        };
        let fields = Fields::read("zone", KEYS, zone)?;
        // There is one policy, so that it need not be written; when there are more, this stays the default.
        fields.choice("policy", &[("private", ())])?;
        let entries = |key, path| match fields.list(key, "a list of prefixes")? {
            None => Ok(None),
            Some((_, items)) => {
                items.iter().map(|item| ZoneEntry::parse(path, item)).collect::<Result<_, _>>().map(Some)
            }
        };
        Ok(Self {
            mode: fields.choice("mode", &Mode::CHOICES)?,
            local: local(&fields)?,
            allow: entries("allow", ALLOW)?.unwrap_or_default(),
            deny: entries("deny", DENY)?,
            ingress: fields.choice("ingress", &Ingress::CHOICES)?,
            on_deny: fields.choice("onDeny", &OnDeny::CHOICES)?.unwrap_or(OnDeny::Drop),
        })
    }
}

/// The network's own prefixes. Ports would say nothing here: what is local is a matter of addresses.
fn local(fields: &Fields<'_>) -> Result<Option<Vec<IpNetwork>>, ValueError> {
    if let Some((key, items)) = fields.list("local", "a list of prefixes")?
        && let Some(item) = items.iter().find(|item| item.is_object())
    {
        return Err(ValueError::LocalPorts { key, value: item.to_string() });
    }
    match fields.strings("local")? {
        None => Ok(None),
        Some((key, texts)) => parse_list(&key, &texts).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(zone: &Value) -> Result<ZoneConf, String> {
        ZoneConf::parse(zone).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn refused(zone: Value, expected: &str) {
        assert_eq!(parse(&zone).expect_err("must be refused"), expected);
    }

    fn prefixes(texts: &[&str]) -> Vec<IpNetwork> {
        texts.iter().map(|text| text.parse().expect("prefix")).collect()
    }

    fn whole(texts: &[&str]) -> Vec<ZoneEntry> {
        prefixes(texts).into_iter().map(ZoneEntry::whole).collect()
    }

    #[test]
    fn every_key_is_read() {
        let conf = parse(&json!({
            "policy": "private", "mode": "audit", "local": ["10.12.34.0/24"], "allow": ["172.16.5.0/24", "fd00::/48"],
            "deny": ["10.12.34.13"], "ingress": "local", "onDeny": "drop",
        }));
        let expected = ZoneConf {
            mode: Some(Mode::Audit),
            local: Some(prefixes(&["10.12.34.0/24"])),
            allow: whole(&["172.16.5.0/24", "fd00::/48"]),
            deny: Some(whole(&["10.12.34.13/32"])),
            ingress: Some(Ingress::Local),
            on_deny: OnDeny::Drop,
        };
        assert_eq!(conf, Ok(expected));
    }

    #[test]
    fn keys_are_matched_without_case_and_null_is_absent() {
        let bare = parse(&json!({ "policy": "private" })).expect("valid");
        assert_eq!(parse(&json!({ "POLICY": "private", "Deny": null, "LOCAL": null })), Ok(bare.clone()));
        assert_eq!(parse(&json!({})), Ok(bare.clone()));
        assert_ne!(parse(&json!({ "ALLOW": ["10.0.0.1"] })), Ok(bare));
    }

    #[test]
    fn every_mistake_names_its_key() {
        refused(
            json!({ "policy": "private", "denny": [] }),
            "`zone.denny` is not a known key: remove it, or write one of `policy`, `mode`, `local`, `allow`, `deny`, \
             `ingress`, `onDeny`",
        );
        refused(
            json!({ "allow": [], "Allow": [] }),
            "`zone.Allow` is given twice, in different case: keep one",
        );
        refused(json!({ "policy": "public" }), "`zone.policy` is `public`: write one of `private`");
        refused(
            json!({ "mode": "Enforce" }),
            "`zone.mode` is `Enforce`: write one of `enforce`, `audit`, `off`",
        );
        refused(json!({ "ingress": true }), "`zone.ingress` is true: write a string");
        refused(json!({ "ingress": "all" }), "`zone.ingress` is `all`: write one of `zone`, `local`, `any`");
        refused(json!({ "allow": "10.0.0.0/8" }), "`zone.allow` is \"10.0.0.0/8\": write a list of prefixes");
        refused(json!({ "local": [1] }), "`zone.local` is 1: write a string");
        refused(
            json!({ "deny": [1] }),
            "`zone.deny` is 1: write a prefix, or an object like `{\"cidr\": \"172.16.5.0/24\", \"ports\": [\"tcp/443\"]}`",
        );
        refused(
            json!({ "local": ["10.12.34.1/24"] }),
            "`zone.local` has `10.12.34.1/24`, whose host bits are set: write `10.12.34.0/24` for the network, or the \
             bare address for the host",
        );
        refused(json!({ "onDeny": "answer" }), "`zone.onDeny` is `answer`: write one of `drop`, `reject`");
        refused(json!("private"), "`zone` is \"private\": write an object like `{\"policy\": \"private\"}`");
        refused(json!(null), "`zone` is null: write an object like `{\"policy\": \"private\"}`");
    }

    fn texts(entries: &[ZoneEntry]) -> Vec<String> {
        entries.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn entries_may_have_ports() {
        let conf = parse(&json!({
            "allow": [
                { "cidr": "172.16.5.0/24", "ports": ["tcp/443", "udp/1000-2000"] },
                "10.0.0.1",
                { "CIDR": "fd00::/64", "Ports": ["sctp", "icmp", "tcp/80", "tcp/81-90", "tcp/85"] },
            ],
            "deny": [{ "cidr": "10.0.0.2", "ports": ["tcp/65535", "tcp/1"] }],
        }));
        let conf = conf.expect("valid");
        assert_eq!(
            texts(&conf.allow),
            ["172.16.5.0/24 tcp/443,udp/1000-2000", "10.0.0.1/32", "fd00::/64 icmp,tcp/80-90,sctp"]
        );
        assert_eq!(texts(&conf.deny.expect("written")), ["10.0.0.2/32 tcp/1,tcp/65535"]);
    }

    #[test]
    fn every_mistake_with_ports_names_its_key() {
        for value in [
            "tcp/0",
            "tcp/65536",
            "tcp/",
            "tcp/0443",
            "tcp/+443",
            "tcp/ 443",
            "tcp/443-",
            "tcp/-443",
            "tcp/2-1",
            "tcp/443-443-443",
            "TCP/443",
            "443",
            "",
            "icmp/8",
            "gre",
            "tcp:443",
            "tcp/https",
            "tcp/0-10",
            "udp/1,2",
        ] {
            refused(
                json!({ "allow": [{ "cidr": "10.0.0.1", "ports": ["tcp/443", value] }] }),
                &format!(
                    "`zone.allow.ports` has `{value}`: write a port like `tcp/443`, a range like `udp/1000-2000`, or all \
                     that a protocol has as `tcp`, `udp`, `sctp` or `icmp`"
                ),
            );
        }
        for (entry, shown) in [
            (json!({ "cidr": "10.0.0.1" }), r#"{"cidr":"10.0.0.1"}"#),
            (json!({ "cidr": "10.0.0.1", "ports": null }), r#"{"cidr":"10.0.0.1","ports":null}"#),
            (json!({ "cidr": "10.0.0.1", "ports": [] }), r#"{"cidr":"10.0.0.1","ports":[]}"#),
        ] {
            refused(
                json!({ "deny": [entry] }),
                &format!(
                    "`zone.deny` has {shown}, without ports: name some, like `\"ports\": [\"tcp/443\"]`, or write \
                     `\"10.0.0.1/32\"` for whatever is sent"
                ),
            );
        }
        refused(
            json!({ "allow": [{ "ports": ["tcp/443"] }] }),
            "`zone.allow` is {\"ports\":[\"tcp/443\"]}: write a prefix, or an object like \
             `{\"cidr\": \"172.16.5.0/24\", \"ports\": [\"tcp/443\"]}`",
        );
        refused(
            json!({ "allow": [{ "cidr": "10.0.0.1", "port": "tcp/443" }] }),
            "`zone.allow.port` is not a known key: remove it, or write one of `cidr`, `ports`",
        );
        refused(
            json!({ "allow": [{ "cidr": "10.0.0.1", "ports": "tcp/443" }] }),
            "`zone.allow.ports` is \"tcp/443\": write a list of strings",
        );
        refused(
            json!({ "deny": [{ "cidr": "10.0.0.1/8", "ports": ["tcp/443"] }] }),
            "`zone.deny.cidr` has `10.0.0.1/8`, whose host bits are set: write `10.0.0.0/8` for the network, or the bare \
             address for the host",
        );
        refused(
            json!({ "local": ["10.0.0.0/8", { "cidr": "10.0.0.1", "ports": ["tcp/443"] }] }),
            "`zone.local` has {\"cidr\":\"10.0.0.1\",\"ports\":[\"tcp/443\"]}: it takes prefixes alone; write ports in \
             `zone.allow` or `zone.deny`",
        );
    }

    #[test]
    fn silence_is_the_default_and_an_answer_can_be_asked_for() {
        for (zone, expected) in [
            (json!({}), OnDeny::Drop),
            (json!({ "onDeny": "drop" }), OnDeny::Drop),
            (json!({ "onDeny": "reject" }), OnDeny::Reject),
        ] {
            assert_eq!(parse(&zone).expect("valid").on_deny, expected, "{zone}");
        }
    }

    #[test]
    fn the_key_is_found_in_a_configuration() {
        let from =
            |conf: Value| ZoneConf::from_conf(conf.as_object().expect("object")).map_err(|e| e.to_string());
        assert_eq!(from(json!({ "type": "macvlan" })), Ok(None));
        assert_eq!(from(json!({ "zone": null })), Ok(None));
        assert!(matches!(from(json!({ "Zone": { "mode": "audit" } })), Ok(Some(_))));
        assert_eq!(
            from(json!({ "zone": {}, "ZONE": {} })),
            Err("`ZONE` is given twice, in different case: keep one".to_owned())
        );
    }
}
