//! From what was written to the zone that is in force: defaults and the administrator's bound.

use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use super::bound;
use super::conf::ALLOW;
use super::prefix::{canonical, covered_by, covers, shortest};
use super::{BoundError, Ingress, MasterEntry, Mode, OnDeny, ZoneConf, ZoneEntry, ZoneError, compile};

/// Where a prefix was written, as errors show it.
const LOCAL: &str = "zone.local";
const IPAM: &str = "ipam";

/// The zone of one network: complete, without host bits, within the bound of its master and the limits of the
/// maps.
///
/// An attachment may send to what `local` and `allow` cover and `deny` does not; of the entries that a packet
/// matches the longest decides, and `deny` wins a tie. A `deny` with ports holds whatever a longer entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    pub(super) mode: Mode,
    pub(super) local: Vec<IpNetwork>,
    pub(super) allow: Vec<ZoneEntry>,
    pub(super) deny: Vec<ZoneEntry>,
    pub(super) ingress: Ingress,
    pub(super) on_deny: OnDeny,
}

/// What a zone is allowed to say and yet is seldom meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ZoneWarning {
    /// `ingress: local` beside `allow`: the zone is stateless, so replies are not let in.
    #[error(
        "`zone.ingress` is `local`, so no answer from a prefix of `zone.allow` reaches the pod: write `zone` if it \
         should talk to them"
    )]
    AllowWithoutAnswers,
    /// An `allow` with ports in a prefix that is open as a whole. It reads like a restriction.
    #[error(
        "`zone.allow` has `{entry}`, and `{open}` allows all of it already: `allow` opens and never narrows; close the \
         rest by `zone.deny`, or take it out of `zone.local` or `zone.allow`"
    )]
    OpenAlready {
        /// The entry.
        entry: ZoneEntry,
        /// What opens it as a whole.
        open: IpNetwork,
    },
    /// No prefix allows anything.
    #[error("`zone.local` and `zone.allow` are empty, so the pod reaches nobody")]
    Empty,
}

impl Zone {
    /// What happens to what the zone denies.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Who may send to the attachment.
    pub fn ingress(&self) -> Ingress {
        self.ingress
    }

    /// How a packet is denied.
    pub fn on_deny(&self) -> OnDeny {
        self.on_deny
    }

    /// The network's own prefixes.
    pub fn local(&self) -> &[IpNetwork] {
        &self.local
    }

    /// What is open beyond the network's own prefixes.
    pub fn allow(&self) -> &[ZoneEntry] {
        &self.allow
    }

    /// What is taken out again.
    pub fn deny(&self) -> &[ZoneEntry] {
        &self.deny
    }

    /// What the user of this zone should hear.
    pub fn warnings(&self) -> Vec<ZoneWarning> {
        let mut warnings = Vec::new();
        if self.ingress == Ingress::Local && !self.allow.is_empty() {
            warnings.push(ZoneWarning::AllowWithoutAnswers);
        }
        if self.local.is_empty() && self.allow.is_empty() {
            warnings.push(ZoneWarning::Empty);
        }
        warnings.extend(self.allow.iter().filter_map(|entry| self.opened_already(entry)));
        warnings
    }

    /// Whether an `allow` with ports says nothing that a prefix around it does not say.
    fn opened_already(&self, entry: &ZoneEntry) -> Option<ZoneWarning> {
        if entry.is_whole() {
            return None;
        }
        let longest = |prefixes: &mut dyn Iterator<Item = IpNetwork>| {
            prefixes.filter(|outer| covers(*outer, entry.prefix())).max_by_key(IpNetwork::prefix)
        };
        let whole = |list: &[ZoneEntry]| -> Vec<IpNetwork> {
            list.iter().filter(|entry| entry.is_whole()).map(ZoneEntry::prefix).collect()
        };
        let open = longest(&mut self.local.iter().copied().chain(whole(&self.allow)))?;
        let closed = longest(&mut whole(&self.deny).into_iter());
        let wins = closed.is_none_or(|closed| closed.prefix() < open.prefix());
        wins.then(|| ZoneWarning::OpenAlready { entry: entry.clone(), open })
    }

    /// The zone as a `zone` key that says everything: for records and for `-o json`.
    pub fn to_json(&self) -> Value {
        let entries = |list: &[ZoneEntry]| list.iter().map(ZoneEntry::to_json).collect::<Value>();
        json!({
            "policy": "private",
            "mode": self.mode.name(),
            "local": self.local,
            "allow": entries(&self.allow),
            "deny": entries(&self.deny),
            "ingress": self.ingress.name(),
            "onDeny": self.on_deny.name(),
        })
    }

    /// Reads back what [`Zone::to_json`] wrote. It was held against its bound when it was resolved, and
    /// keeps what was allowed then.
    pub fn from_json(value: &Value) -> Result<Self, ZoneError> {
        let conf = ZoneConf::parse(value)?;
        let local = conf.local.clone().ok_or(ZoneError::NoLocal)?;
        Self::complete(&conf, local, None)
    }

    /// Fills in what `conf` leaves out: the bound's denials are inherited, and the narrower `ingress`. Refuses
    /// what has no room in the maps.
    pub(super) fn complete(
        conf: &ZoneConf,
        local: Vec<IpNetwork>,
        bound: Option<&Self>,
    ) -> Result<Self, ZoneError> {
        let widest = bound.map_or(Ingress::Zone, |bound| bound.ingress);
        let inherited = || bound.map(|bound| bound.deny.clone()).unwrap_or_default();
        let zone = Self {
            mode: conf.mode.unwrap_or(Mode::Enforce),
            local,
            allow: conf.allow.clone(),
            deny: conf.deny.clone().unwrap_or_else(inherited),
            ingress: conf.ingress.unwrap_or(Ingress::Zone.min(widest)),
            on_deny: conf.on_deny,
        };
        compile(&zone).map(|_| zone)
    }

    /// Refuses prefixes so wide that they are likely a mistake. A wide `deny` only narrows.
    pub(super) fn check_width(&self, local_key: &'static str) -> Result<(), ZoneError> {
        let local = self.local.iter().map(|&prefix| (local_key, prefix));
        let allow = self.allow.iter().map(|entry| (ALLOW, entry.prefix()));
        match local.chain(allow).find(|(_, prefix)| prefix.prefix() < shortest(*prefix)) {
            None => Ok(()),
            Some((key, prefix)) => Err(ZoneError::Wide { key, prefix, shortest: shortest(prefix) }),
        }
    }
}

/// The zone of a network, or `None` where nobody asks for one.
///
/// `conf` is the network's `zone` key, `nad_local` the subnets that its IPAM configuration names (never
/// those of a result, a lease or an annotation), `bound` the administrator's word on the master. Without a
/// `conf` the master's zone is taken as it is; a `conf` may only narrow it.
pub fn resolve(
    conf: Option<&ZoneConf>,
    nad_local: Option<&[IpNetwork]>,
    bound: Option<&MasterEntry>,
) -> Result<Option<Zone>, ZoneError> {
    let nad_local: Vec<_> = nad_local.unwrap_or_default().iter().copied().map(canonical).collect();
    check_subnets(IPAM, &nad_local, bound)?;
    let ceiling = bound.and_then(MasterEntry::zone);
    let Some(conf) = conf else { return Ok(ceiling.cloned()) };

    let (local_key, local) = match &conf.local {
        Some(local) => (LOCAL, local.clone()),
        None if nad_local.is_empty() => return Err(ZoneError::NoLocal),
        None => (IPAM, nad_local),
    };
    check_subnets(local_key, &local, bound)?;
    let zone = Zone::complete(conf, local, ceiling)?;
    if !bound.is_some_and(MasterEntry::wide_prefixes) {
        zone.check_width(local_key)?;
    }
    if let (Some(ceiling), Some(bound)) = (ceiling, bound)
        && let Some(error) = bound::check(&zone, local_key, ceiling)?
    {
        return Err(ZoneError::Bound { master: bound.name().to_owned(), error: Box::new(error) });
    }
    Ok(Some(zone))
}

/// Holds prefixes against the subnets of the master, where it has some.
pub(super) fn check_subnets(
    key: &'static str,
    prefixes: &[IpNetwork],
    bound: Option<&MasterEntry>,
) -> Result<(), ZoneError> {
    let Some((bound, subnets)) = bound.and_then(|bound| Some((bound, bound.subnets()?))) else {
        return Ok(());
    };
    match prefixes.iter().find(|&&prefix| !covered_by(subnets, prefix)) {
        None => Ok(()),
        Some(&prefix) => Err(ZoneError::Bound {
            master: bound.name().to_owned(),
            error: Box::new(BoundError::Subnets { key, prefix, subnets: subnets.to_vec() }),
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::entry::tests::entry;
    use super::*;

    fn conf(zone: &Value) -> ZoneConf {
        ZoneConf::parse(zone).expect("valid zone")
    }

    fn nets(texts: &[&str]) -> Vec<IpNetwork> {
        texts.iter().map(|text| text.parse().expect("prefix")).collect()
    }

    /// Resolves a zone on a master; `null` stands for what is absent.
    fn outcome(zone: &Value, subnets: &[&str], master: &Value) -> Result<Option<Value>, String> {
        let conf = (!zone.is_null()).then(|| conf(zone));
        let master = (!master.is_null()).then(|| entry(master));
        resolve(conf.as_ref(), Some(&nets(subnets)), master.as_ref())
            .map(|zone| zone.map(|zone| zone.to_json()))
            .map_err(|error| error.to_string())
    }

    #[track_caller]
    fn refused(zone: Value, subnets: &[&str], master: Value, expected: &str) {
        assert_eq!(outcome(&zone, subnets, &master).expect_err("must be refused"), expected);
    }

    #[track_caller]
    fn accepted(zone: Value, subnets: &[&str], master: Value, expected: Value) {
        assert_eq!(outcome(&zone, subnets, &master), Ok(Some(expected)));
    }

    #[test]
    fn without_anybody_asking_there_is_no_zone() {
        assert_eq!(outcome(&json!(null), &["10.12.34.0/24"], &json!(null)), Ok(None));
        assert_eq!(
            outcome(&json!(null), &["10.12.34.0/24"], &json!({ "subnets": ["10.12.0.0/16"] })),
            Ok(None)
        );
    }

    #[test]
    fn defaults() {
        accepted(
            json!({ "policy": "private" }),
            &["10.12.34.7/24"],
            json!(null),
            json!({
                "policy": "private", "mode": "enforce", "local": ["10.12.34.0/24"], "allow": [], "deny": [],
                "ingress": "zone", "onDeny": "drop",
            }),
        );
        refused(
            json!({ "policy": "private" }),
            &[],
            json!(null),
            "`zone.local` is missing, and the network's IPAM names no subnet to take it from: write the zone's own \
             prefixes, like `\"local\": [\"10.12.34.0/24\"]`",
        );
    }

    #[test]
    fn wide_prefixes_need_leave() {
        let zone =
            json!({ "local": ["10.0.0.0/8"], "allow": ["128.0.0.0/7"], "deny": ["0.0.0.0/0", "::/0"] });
        let wide = "`zone.allow` has `128.0.0.0/7`: a prefix shorter than /8 needs `\"widePrefixes\": true` for this \
                    master in masters.json";
        refused(zone.clone(), &[], json!(null), wide);
        refused(zone.clone(), &[], json!({}), wide);
        assert!(outcome(&zone, &[], &json!({ "widePrefixes": true })).is_ok());
        refused(
            json!({}),
            &["0.0.0.0/1"],
            json!(null),
            "`ipam` has `0.0.0.0/1`: a prefix shorter than /8 needs `\"widePrefixes\": true` for this master in \
             masters.json",
        );
        refused(
            json!({ "local": ["fd00::/31"] }),
            &[],
            json!(null),
            "`zone.local` has `fd00::/31`: a prefix shorter than /32 needs `\"widePrefixes\": true` for this master in \
             masters.json",
        );
        assert!(outcome(&json!({ "local": ["fd00::/32", "11.0.0.0/8"] }), &[], &json!(null)).is_ok());
    }

    /// The master of the tests below.
    fn bounded() -> Value {
        json!({
            "subnets": ["10.12.34.0/24"],
            "zone": { "mode": "audit", "allow": ["172.16.5.0/24"], "deny": ["10.12.34.13"], "ingress": "zone" },
        })
    }

    #[test]
    fn a_network_without_a_zone_gets_the_masters() {
        accepted(
            json!(null),
            &["10.12.34.0/25"],
            bounded(),
            json!({
                "policy": "private", "mode": "audit", "local": ["10.12.34.0/24"], "allow": ["172.16.5.0/24"],
                "deny": ["10.12.34.13/32"], "ingress": "zone", "onDeny": "drop",
            }),
        );
        refused(
            json!(null),
            &["10.12.0.0/16"],
            bounded(),
            "the network goes beyond what masters.json allows on `enp0s8`: `ipam` has `10.12.0.0/16`, the bound \
             `subnets` is `10.12.34.0/24`",
        );
    }

    #[test]
    fn a_network_may_narrow() {
        accepted(
            json!({ "allow": ["172.16.5.128/25"], "ingress": "local" }),
            &["10.12.34.0/24"],
            bounded(),
            json!({
                "policy": "private", "mode": "enforce", "local": ["10.12.34.0/24"], "allow": ["172.16.5.128/25"],
                "deny": ["10.12.34.13/32"], "ingress": "local", "onDeny": "drop",
            }),
        );
        // A wider denial holds the bound's, and a zone that does not reach what is denied need not repeat it.
        for zone in [
            json!({ "deny": ["10.12.34.8/29"] }),
            json!({ "local": ["10.12.34.128/25"], "deny": [] }),
            json!({ "local": ["10.12.34.0/25", "10.12.34.128/25"], "deny": ["10.12.34.12/31"] }),
        ] {
            assert!(outcome(&zone, &["10.12.34.0/24"], &bounded()).is_ok(), "{zone}");
        }
    }

    #[test]
    fn a_network_may_not_widen() {
        let check = |zone: Value, expected: &str| {
            let expected =
                format!("the network goes beyond what masters.json allows on `enp0s8`: {expected}");
            refused(zone, &["10.12.34.0/24"], bounded(), &expected);
        };
        check(
            json!({ "mode": "off" }),
            "`zone.mode` is `off`, the bound is `audit`; write `audit` or leave it out",
        );
        check(
            json!({ "ingress": "any" }),
            "`zone.ingress` is `any`, the bound is `zone`; write `zone` or leave it out",
        );
        check(
            json!({ "local": ["10.12.0.0/16"] }),
            "`zone.local` has `10.12.0.0/16`, the bound `subnets` is `10.12.34.0/24`",
        );
        check(
            json!({ "allow": ["172.16.5.0/25", "172.16.4.0/23"] }),
            "`zone.allow` has `172.16.4.0/23`, the bound `zone` allows `10.12.34.0/24`, `172.16.5.0/24`",
        );
        check(
            json!({ "deny": [] }),
            "`zone.deny` lacks `10.12.34.13/32`, which the bound `zone.deny` has; add it, or leave `zone.deny` out to \
             inherit it",
        );
        check(
            json!({ "allow": ["10.12.34.13"], "deny": ["10.12.34.0/28"] }),
            "`zone.allow` has `10.12.34.13/32`, the bound `zone.deny` has `10.12.34.13/32`",
        );
        check(
            json!({ "allow": ["fd00::/64"] }),
            "`zone.allow` has `fd00::/64`, the bound `zone` allows `10.12.34.0/24`, `172.16.5.0/24`",
        );
        // Denied as a whole, so that it allows no address; it would still open TCP to link-local ones.
        check(
            json!({
                "allow": ["fd00::/64"], "deny": ["fd00::/65", "fd00::8000:0:0:0/65", "10.12.34.13"],
            }),
            "`zone.allow` has `fd00::/64`, the bound `zone` allows `10.12.34.0/24`, `172.16.5.0/24`",
        );
    }

    #[test]
    fn a_network_may_open_no_port_that_the_master_does_not() {
        let master = json!({
            "subnets": ["10.12.34.0/24"],
            "zone": {
                "local": ["10.12.34.0/24"],
                "allow": [{ "cidr": "172.16.0.0/16", "ports": ["tcp/443", "tcp/8000-9000"] }],
                "deny": [{ "cidr": "10.12.34.0/24", "ports": ["tcp/22"] }],
            },
        });
        let entry = |cidr: &str, ports: &[&str]| json!({ "cidr": cidr, "ports": ports });
        for zone in [
            json!({}),
            json!({ "allow": [entry("172.16.5.0/24", &["tcp/443", "tcp/8080"])] }),
            json!({ "local": [], "deny": [] }),
            json!({ "deny": [entry("10.12.34.0/24", &["tcp/1-100"])] }),
            json!({ "local": [], "allow": [entry("10.12.34.9", &["tcp/80"])], "deny": [] }),
        ] {
            let result = outcome(&zone, &["10.12.34.0/24"], &master);
            assert!(result.is_ok(), "{zone}: {result:?}");
        }
        let check = |zone: Value, expected: &str| {
            let expected =
                format!("the network goes beyond what masters.json allows on `enp0s8`: {expected}");
            refused(zone, &["10.12.34.0/24"], master.clone(), &expected);
        };
        let allows = "the bound `zone` allows `10.12.34.0/24`, `172.16.0.0/16 tcp/443,tcp/8000-9000`";
        check(
            json!({ "allow": [entry("172.16.5.0/24", &["tcp/443-444"])] }),
            &format!("`zone.allow` has `172.16.5.0/24 tcp/443-444`, {allows}"),
        );
        check(json!({ "allow": ["172.16.5.1"] }), &format!("`zone.allow` has `172.16.5.1/32`, {allows}"));
        check(
            json!({ "allow": [entry("172.16.5.0/24", &["udp/443"])] }),
            &format!("`zone.allow` has `172.16.5.0/24 udp/443`, {allows}"),
        );
        check(
            json!({ "deny": [] }),
            "`zone.deny` lacks `10.12.34.0/24 tcp/22`, which the bound `zone.deny` has; add it, or leave `zone.deny` out \
             to inherit it",
        );
        check(
            json!({ "deny": [entry("10.12.34.0/24", &["udp/22", "tcp/23"])] }),
            "`zone.deny` lacks `10.12.34.0/24 tcp/22`, which the bound `zone.deny` has; add it, or leave `zone.deny` out \
             to inherit it",
        );
    }

    #[test]
    fn ingress_is_inherited_where_the_bound_is_narrower() {
        let master = json!({
            "subnets": ["10.12.0.0/16"],
            "zone": { "local": ["10.12.34.0/24"], "allow": ["10.12.35.0/24"], "ingress": "local" },
        });
        let zone = outcome(&json!({}), &["10.12.34.0/24"], &master).expect("accepted").expect("zone");
        assert_eq!(zone["ingress"], "local");
        refused(
            json!({ "ingress": "zone" }),
            &["10.12.34.0/24"],
            master.clone(),
            "the network goes beyond what masters.json allows on `enp0s8`: `zone.ingress` is `zone`, the bound is \
             `local`; write `local` or leave it out",
        );
        refused(
            json!({ "local": ["10.12.34.0/24", "10.12.35.0/24"] }),
            &["10.12.34.0/24"],
            master,
            "the network goes beyond what masters.json allows on `enp0s8`: `zone.local` has `10.12.35.0/24`, from which \
             the bound `zone` with `ingress: local` lets nothing in; write it in `zone.allow`",
        );
        // The default stays narrow where the bound is wide.
        let any = json!({ "subnets": ["10.12.0.0/16"], "zone": { "ingress": "any" } });
        let zone = outcome(&json!({}), &["10.12.34.0/24"], &any).expect("accepted").expect("zone");
        assert_eq!(zone["ingress"], "zone");
    }

    #[test]
    fn a_zone_survives_its_record() {
        let written =
            conf(&json!({ "local": ["0.0.0.0/1"], "deny": ["10.0.0.1"], "ingress": "any", "mode": "off" }));
        let zone = resolve(Some(&written), None, Some(&entry(&json!({ "widePrefixes": true }))));
        let zone = zone.expect("accepted").expect("zone");
        assert_eq!(Zone::from_json(&zone.to_json()), Ok(zone));
    }

    #[test]
    fn what_is_seldom_meant_is_said() {
        let warnings = |zone: Value| Zone::from_json(&zone).expect("valid").warnings();
        let without_answers =
            json!({ "local": ["10.0.0.0/8"], "allow": ["172.16.5.0/24"], "ingress": "local" });
        assert_eq!(warnings(without_answers), [ZoneWarning::AllowWithoutAnswers]);
        assert_eq!(warnings(json!({ "local": [] })), [ZoneWarning::Empty]);
        let port = json!({ "cidr": "10.0.0.9", "ports": ["tcp/443"] });
        let said = warnings(json!({ "local": ["10.0.0.0/8"], "allow": [port, "10.1.0.0/16"] }));
        let said: Vec<String> = said.iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "`zone.allow` has `10.0.0.9/32 tcp/443`, and `10.0.0.0/8` allows all of it already: `allow` opens and never \
                 narrows; close the rest by `zone.deny`, or take it out of `zone.local` or `zone.allow`"
            ]
        );
        assert_eq!(
            warnings(json!({ "local": ["10.0.0.0/8"], "allow": [port], "deny": ["10.0.0.0/24"] })),
            [],
            "what is closed around it makes it mean something"
        );
        assert_eq!(warnings(json!({ "local": ["10.0.0.0/8"], "allow": ["172.16.5.0/24"] })), []);
    }
}
