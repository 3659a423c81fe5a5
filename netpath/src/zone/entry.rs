//! One entry of `masters.json`: what the administrator says of a master.

use ipnetwork::IpNetwork;
use serde_json::Value;

use super::fields::Fields;
use super::prefix::{Listed, covered_by, parse_list};
use super::resolve::check_subnets;
use super::{ValueError, Zone, ZoneConf, ZoneError};

/// Whether frames are dropped whose source MAC belongs to nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownSource {
    /// Dropped only where every upper device of the master is netpath's.
    Auto,
    /// Dropped.
    Drop,
    /// Reported, and passed.
    Audit,
}

/// Whether the XDP program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Xdp {
    /// No: attaching resets some NICs.
    Off,
    /// Yes, in native mode.
    Native,
}

/// Whether the master is made promiscuous.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promisc {
    /// Only where it is known to be needed.
    Auto,
    /// Yes, and kept so.
    On,
    /// No.
    Off,
}

/// How the TC programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tc {
    /// TCX where the kernel has it, else clsact.
    Auto,
    /// TCX or not at all.
    Tcx,
    /// clsact, even where the kernel has TCX.
    Clsact,
}

/// What becomes of ipvlans on a master. Their frames carry the master's own MAC: no zone can hold for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipvlan {
    /// They are not attached.
    Refused,
    /// They are attached, and pass as the node's own frames do.
    Unpoliced,
}

/// Why an attachment may not use a master.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A plugin type that is not listed.
    #[error("masters.json allows no attachment of type `{kind}` on `{master}`: its `types` is {}", Listed(.types))]
    Type {
        /// Name of the entry.
        master: String,
        /// The network's type.
        kind: String,
        /// The types that are allowed.
        types: Vec<String>,
    },
    /// An ipvlan without leave.
    #[error(
        "`{ifname}` is an ipvlan and sends with the MAC of `{master}`, so that its frames cannot be told from the \
         node's and no zone can hold for them: use macvlan, or let the administrator write \
         `\"ipvlan\": \"unpoliced\"` for `{master}` in masters.json"
    )]
    Ipvlan {
        /// Name of the master.
        master: String,
        /// The interface.
        ifname: String,
    },
    /// An ipvlan whose network asks for a zone.
    #[error(
        "`{ifname}` is an ipvlan and sends with the MAC of `{master}`, so that no zone can hold for it: remove `zone` \
         from the network, or use macvlan"
    )]
    IpvlanZone {
        /// Name of the master.
        master: String,
        /// The interface.
        ifname: String,
    },
    /// The network's namespace is not listed.
    #[error(
        "masters.json allows no network of {} on `{master}`: its `nadNamespaces` is {}",
        namespace_text(.namespace), Listed(.namespaces)
    )]
    NadNamespace {
        /// Name of the entry.
        master: String,
        /// The network's namespace, where it is known.
        namespace: Option<String>,
        /// The namespaces that are allowed.
        namespaces: Vec<String>,
    },
    /// The pod's namespace is not listed.
    #[error(
        "masters.json allows no pod of {} on `{master}`: its `podNamespaces` is {}",
        namespace_text(.namespace), Listed(.namespaces)
    )]
    PodNamespace {
        /// Name of the entry.
        master: String,
        /// The pod's namespace, where it is known.
        namespace: Option<String>,
        /// The namespaces that are allowed.
        namespaces: Vec<String>,
    },
    /// A network of another namespace than the pod's, without leave.
    #[error(
        "a pod of namespace `{pod}` may not use a network of namespace `{nad}` on `{master}`: masters.json has no \
         `podNamespaces` there that names `{pod}`"
    )]
    OtherNamespace {
        /// Name of the entry.
        master: String,
        /// The pod's namespace.
        pod: String,
        /// The network's.
        nad: String,
    },
}

fn namespace_text(namespace: &Option<String>) -> String {
    match namespace {
        Some(namespace) => format!("namespace `{namespace}`"),
        None => "an unknown namespace".to_owned(),
    }
}

/// What the administrator says of one master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MasterEntry {
    name: String,
    zone: Option<Zone>,
    subnets: Option<Vec<IpNetwork>>,
    nad_namespaces: Option<Vec<String>>,
    pod_namespaces: Option<Vec<String>>,
    types: Option<Vec<String>>,
    unknown_source: UnknownSource,
    dedicated: bool,
    xdp: Xdp,
    promisc: Promisc,
    tc: Tc,
    ipvlan: Ipvlan,
    wide_prefixes: bool,
}

impl MasterEntry {
    /// Name of the entry: that of the master.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Default for networks without a zone, bound of those with one.
    pub fn zone(&self) -> Option<&Zone> {
        self.zone.as_ref()
    }

    /// What local prefixes and addresses must lie in: `subnets`, else the zone's own `local`.
    pub fn subnets(&self) -> Option<&[IpNetwork]> {
        self.subnets.as_deref()
    }

    /// Whether frames of unknown source are dropped.
    pub fn unknown_source(&self) -> UnknownSource {
        self.unknown_source
    }

    /// Whether the NIC serves attachments alone: then even a host's MAC is no excuse for a pod's frame.
    pub fn dedicated(&self) -> bool {
        self.dedicated
    }

    /// Whether XDP is attached.
    pub fn xdp(&self) -> Xdp {
        self.xdp
    }

    /// Whether the master is made promiscuous.
    pub fn promisc(&self) -> Promisc {
        self.promisc
    }

    /// How the TC programs are attached.
    pub fn tc(&self) -> Tc {
        self.tc
    }

    /// What becomes of ipvlans.
    pub fn ipvlan(&self) -> Ipvlan {
        self.ipvlan
    }

    /// Whether prefixes shorter than /8 (IPv4) or /32 (IPv6) may be in a zone.
    pub fn wide_prefixes(&self) -> bool {
        self.wide_prefixes
    }

    /// Refuses addresses outside the master's subnets. `key` says where they came from, as the user knows
    /// it: `ipam` or `args.cni.ips`.
    pub fn check_addresses(&self, key: &'static str, addresses: &[IpNetwork]) -> Result<(), ZoneError> {
        // The address counts, not the network that it is configured with.
        let hosts: Vec<_> = addresses.iter().map(|address| IpNetwork::from(address.ip())).collect();
        check_subnets(key, &hosts, Some(self))
    }

    /// Refuses a network whose type is not listed. Without a list every type may be attached.
    ///
    /// `netpath` stands behind macvlans alone and only makes them stricter: where they are listed, it is too.
    pub fn check_type(&self, kind: &str) -> Result<(), Refusal> {
        let is_listed = |allowed: &str| allowed == kind || (kind, allowed) == ("netpath", "macvlan");
        match &self.types {
            Some(types) if !types.iter().any(|allowed| is_listed(allowed)) => {
                Err(Refusal::Type { master: self.name.clone(), kind: kind.to_owned(), types: types.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Refuses networks and pods of namespaces that are not listed. Where there is a list, an unknown
    /// namespace is refused; without `podNamespaces` a pod must be of the network's own namespace, as far
    /// as both are known.
    pub fn check_namespaces(&self, nad: Option<&str>, pod: Option<&str>) -> Result<(), Refusal> {
        let master = || self.name.clone();
        let lists = |list: &[String], namespace: Option<&str>| {
            namespace.is_some_and(|namespace| list.iter().any(|allowed| allowed == namespace))
        };
        if let Some(namespaces) = &self.nad_namespaces
            && !lists(namespaces, nad)
        {
            let (namespace, namespaces) = (nad.map(str::to_owned), namespaces.clone());
            return Err(Refusal::NadNamespace { master: master(), namespace, namespaces });
        }
        match (&self.pod_namespaces, nad, pod) {
            (Some(namespaces), _, _) if !lists(namespaces, pod) => {
                let (namespace, namespaces) = (pod.map(str::to_owned), namespaces.clone());
                Err(Refusal::PodNamespace { master: master(), namespace, namespaces })
            }
            (None, Some(nad), Some(pod)) if nad != pod => {
                Err(Refusal::OtherNamespace { master: master(), pod: pod.to_owned(), nad: nad.to_owned() })
            }
            _ => Ok(()),
        }
    }

    pub(super) fn parse(name: &str, value: &Value) -> Result<Self, ZoneError> {
        const KEYS: &[&str] = &[
            "zone",
            "subnets",
            "nadNamespaces",
            "podNamespaces",
            "types",
            "unknownSource",
            "dedicatedMaster",
            "xdp",
            "promisc",
            "tc",
            "ipvlan",
            "widePrefixes",
        ];
        let Value::Object(object) = value else {
            let (key, value) = (name.to_owned(), value.to_string());
            return Err(ValueError::Type { key, value, expected: "an object" }.into());
        };
        let fields = Fields::read("", KEYS, object)?;
        let subnets = match fields.strings("subnets")? {
            None => None,
            Some((key, texts)) if texts.is_empty() => return Err(ValueError::Empty { key }.into()),
            Some((key, texts)) => Some(parse_list(&key, &texts)?),
        };
        let names = |key| -> Result<Option<Vec<String>>, ValueError> {
            Ok(fields.strings(key)?.map(|(_, names)| names.into_iter().map(str::to_owned).collect()))
        };
        let mut entry = Self {
            name: name.to_owned(),
            zone: None,
            subnets,
            nad_namespaces: names("nadNamespaces")?,
            pod_namespaces: names("podNamespaces")?,
            types: names("types")?,
            unknown_source: fields
                .choice(
                    "unknownSource",
                    &[
                        ("auto", UnknownSource::Auto),
                        ("drop", UnknownSource::Drop),
                        ("audit", UnknownSource::Audit),
                    ],
                )?
                .unwrap_or(UnknownSource::Auto),
            dedicated: fields.flag("dedicatedMaster")?.unwrap_or(false),
            xdp: fields.choice("xdp", &[("off", Xdp::Off), ("native", Xdp::Native)])?.unwrap_or(Xdp::Off),
            promisc: fields
                .choice("promisc", &[("auto", Promisc::Auto), ("on", Promisc::On), ("off", Promisc::Off)])?
                .unwrap_or(Promisc::Auto),
            tc: fields
                .choice("tc", &[("auto", Tc::Auto), ("tcx", Tc::Tcx), ("clsact", Tc::Clsact)])?
                .unwrap_or(Tc::Auto),
            ipvlan: fields
                .choice("ipvlan", &[("refused", Ipvlan::Refused), ("unpoliced", Ipvlan::Unpoliced)])?
                .unwrap_or(Ipvlan::Refused),
            wide_prefixes: fields.flag("widePrefixes")?.unwrap_or(false),
        };
        if let Some((_, zone)) = fields.get("zone") {
            entry.set_zone(&ZoneConf::parse(zone)?)?;
        }
        Ok(entry)
    }

    /// A bound must bound: what is local has to be said, since networks name their own subnets as they like.
    fn set_zone(&mut self, conf: &ZoneConf) -> Result<(), ZoneError> {
        let (key, local) = match (&conf.local, &self.subnets) {
            (Some(local), _) => ("zone.local", local.clone()),
            (None, Some(subnets)) => ("subnets", subnets.clone()),
            (None, None) => return Err(ZoneError::MasterWithoutLocal),
        };
        if let Some(subnets) = &self.subnets
            && let Some(&prefix) = local.iter().find(|&&prefix| !covered_by(subnets, prefix))
        {
            return Err(ZoneError::MasterLocal { prefix, subnets: subnets.clone() });
        }
        let zone = Zone::complete(conf, local, None)?;
        if !self.wide_prefixes {
            zone.check_width(key)?;
        }
        if self.subnets.is_none() && !zone.local.is_empty() {
            self.subnets = Some(zone.local.clone());
        }
        self.zone = Some(zone);
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    /// A valid entry named `enp0s8`.
    #[track_caller]
    pub(in super::super) fn entry(value: &Value) -> MasterEntry {
        MasterEntry::parse("enp0s8", value).expect("valid entry")
    }

    #[test]
    fn defaults_touch_nothing() {
        let entry = entry(&json!({}));
        assert_eq!(entry.unknown_source(), UnknownSource::Auto);
        assert_eq!((entry.xdp(), entry.promisc(), entry.tc()), (Xdp::Off, Promisc::Auto, Tc::Auto));
        assert_eq!(entry.ipvlan(), Ipvlan::Refused);
        assert_eq!((entry.zone(), entry.subnets(), entry.wide_prefixes()), (None, None, false));
        assert!(!entry.dedicated());
    }

    #[test]
    fn addresses_lie_in_the_subnets() {
        let addresses = |texts: &[&str]| -> Vec<IpNetwork> {
            texts.iter().map(|text| text.parse().expect("address")).collect()
        };
        for master in
            [json!({ "subnets": ["10.12.34.0/24"] }), json!({ "zone": { "local": ["10.12.34.0/24"] } })]
        {
            let master = entry(&master);
            assert_eq!(master.check_addresses("ipam", &addresses(&["10.12.34.200/16"])), Ok(()));
            let error = master.check_addresses("ipam", &addresses(&["10.12.34.200/24", "fd00::1/64"]));
            assert_eq!(
                error.expect_err("must be refused").to_string(),
                "the network goes beyond what masters.json allows on `enp0s8`: `ipam` has `fd00::1/128`, the bound \
                 `subnets` is `10.12.34.0/24`",
            );
        }
        assert_eq!(entry(&json!({})).check_addresses("ipam", &addresses(&["8.8.8.8/32"])), Ok(()));
    }

    #[test]
    fn types_and_namespaces() {
        let text = |result: Result<(), Refusal>| result.map_err(|error| error.to_string());
        let open = entry(&json!({}));
        assert_eq!(open.check_type("ipvlan"), Ok(()));
        assert_eq!(open.check_namespaces(None, None), Ok(()));
        assert_eq!(open.check_namespaces(Some("a"), Some("a")), Ok(()));
        assert_eq!(open.check_namespaces(None, Some("a")), Ok(()));
        assert_eq!(
            text(open.check_namespaces(Some("infra"), Some("a"))),
            Err("a pod of namespace `a` may not use a network of namespace `infra` on `enp0s8`: masters.json has no \
                 `podNamespaces` there that names `a`".to_owned())
        );
        let closed =
            entry(&json!({ "types": ["macvlan"], "nadNamespaces": ["infra"], "podNamespaces": ["a", "b"] }));
        assert_eq!((closed.check_type("macvlan"), closed.check_type("netpath")), (Ok(()), Ok(())));
        assert!(entry(&json!({ "types": ["netpath"] })).check_type("macvlan").is_err());
        assert_eq!(
            text(closed.check_type("ipvlan")),
            Err("masters.json allows no attachment of type `ipvlan` on `enp0s8`: its `types` is `macvlan`"
                .to_owned())
        );
        assert_eq!(closed.check_namespaces(Some("infra"), Some("b")), Ok(()));
        assert_eq!(
            text(closed.check_namespaces(None, Some("b"))),
            Err("masters.json allows no network of an unknown namespace on `enp0s8`: its `nadNamespaces` is `infra`"
                .to_owned())
        );
        assert_eq!(
            text(closed.check_namespaces(Some("infra"), Some("infra"))),
            Err("masters.json allows no pod of namespace `infra` on `enp0s8`: its `podNamespaces` is `a`, `b`"
                .to_owned())
        );
    }
}
