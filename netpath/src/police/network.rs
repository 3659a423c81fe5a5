//! A network as its definition has it now: what it says, what it comes to on this node, and putting that in force
//! for attachments that run.

use std::sync::Arc;

use netpath_ebpf::abi::Master;
use serde_json::{Map, Value};

use super::{Applied, PoliceError, Running, apply, is_unfinished, resolve_master, running};
use crate::{
    exec::{self, Effects, StepError, UndoStack},
    kernel::{
        bpf::maps::Maps,
        netlink::{Link, Netlink, NetlinkError},
        netns::{self, Netns, NetnsError},
    },
    plan::{self, Guard, PlanError, Step},
    plugin::{CHAINED, MACVLAN},
    root::Root,
    spec::{
        Acd, ConfError, NetConf,
        json::{View, is_same_key},
    },
    state::{Lock, Outline, StateError},
    zone::{Masters, MastersError, Refusal, Zone, ZoneConf, ZoneError, resolve},
};

/// A network that netpath polices.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// The configuration whose zone counts.
    pub conf: NetConf,
    /// The master as written; `None` where the configuration leaves it to the default route.
    pub master: Option<String>,
    /// Whether it is a link of the pod (`linkInContainer`): then that says nothing of where its attachments are policed.
    pub is_in_pod: bool,
    /// `namespace/name` of its NetworkAttachmentDefinition, where it is known.
    pub nad: Option<String>,
}

/// What a network says, held against the master that it resolves to.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The master.
    pub link: Link,
    /// The zone; `None` where nobody asks for one.
    pub zone: Option<Zone>,
}

/// What became of a network that was put in force.
#[derive(Debug)]
pub struct InForce {
    /// What was changed.
    pub applied: Applied,
    /// Its attachments on the master, which have it now.
    pub running: Vec<Running>,
}

/// Why a network cannot be put in force.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A definition without a configuration.
    #[error("NetworkAttachmentDefinition `{name}` has no `spec.config`: write the CNI configuration there")]
    NoConfig {
        /// Its name.
        name: String,
    },
    /// The configuration is no JSON.
    #[error("`spec.config` is not valid JSON")]
    Json(#[source] serde_json::Error),
    /// A configuration of plugins that netpath has nothing to do with.
    #[error(
        "network `{name}` is of type {}: only `macvlan`, or `netpath` behind another plugin, has a zone",
        types.iter().map(|kind| format!("`{kind}`")).collect::<Vec<_>>().join(", ")
    )]
    NotPoliced {
        /// Its name.
        name: String,
        /// The types it names.
        types: Vec<String>,
    },
    /// A configuration that no ADD would take.
    #[error("network `{name}` is not valid")]
    Conf {
        /// Its name.
        name: String,
        /// Which key.
        source: ConfError,
    },
    /// Its master is not here.
    #[error("no link `{master}` on this node, which `master` names")]
    NoMaster {
        /// The name.
        master: String,
    },
    /// It leaves the master to the default route, and there is none.
    #[error("it names no `master`, and this node has no default route whose interface it could be")]
    NoDefault,
    /// `masters.json`.
    #[error(transparent)]
    Masters(#[from] MastersError),
    /// Its zone, or what `masters.json` says of it.
    #[error(transparent)]
    Zone(#[from] ZoneError),
    /// `masters.json` keeps this kind of plugin off the master.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Netlink.
    #[error("the master cannot be looked up")]
    Netlink(#[from] NetlinkError),
    /// The maps.
    #[error(transparent)]
    Police(#[from] PoliceError),
    /// Other maps took the place of those that were read.
    #[error("other maps took the place of those that were read: apply it again")]
    Replaced,
    /// Some hooks would not know of it.
    #[error(
        "an upgrade was ended half-way, and some hooks would not know of what is applied now: run `netpath upgrade`"
    )]
    Unfinished,
    /// Its definition was given another master while attachments ran, and an interface stays where it was made.
    #[error(
        "attachments of it run on {}, which it does not name any more, and keep what was in force there: the zone that it has now is \
         one for `{master}`. Delete the pods, and those that take their place lie there",
        on.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
    )]
    LeftBehind {
        /// Masters of those that have something else in force than the definition says.
        on: Vec<String>,
        /// The one that the definition names.
        master: String,
    },
    /// The zone is in force for a pod, and what protects the pod in its own namespace is not.
    #[error("the zone is in force for {attachment}, and its settings are not")]
    Guard {
        /// Container and interface.
        attachment: String,
        /// Why.
        source: GuardError,
    },
}

/// Why the settings of an interface could not be made.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The pod's namespace.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The interface.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A setting.
    #[error(transparent)]
    Step(#[from] StepError),
    /// What there would be to do.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

impl Network {
    /// Reads the text of a definition's `spec.config`. A configuration without a name is given its definition's, as
    /// Multus does it.
    pub fn of_definition(
        name: &str,
        config: Option<&str>,
        nad: Option<String>,
    ) -> Result<Self, NetworkError> {
        let Some(config) = config.filter(|config| !config.trim().is_empty()) else {
            return Err(NetworkError::NoConfig { name: name.to_owned() });
        };
        let mut conf: Map<String, Value> = serde_json::from_str(config).map_err(NetworkError::Json)?;
        if key(&conf, "name").and_then(Value::as_str).is_none_or(str::is_empty) {
            conf.insert("name".to_owned(), name.into());
        }
        Self::of_conf(&conf, nad)
    }

    /// Finds the part of a configuration whose zone counts: of a list the plugin that polices.
    pub fn of_conf(conf: &Map<String, Value>, nad: Option<String>) -> Result<Self, NetworkError> {
        let name = key(conf, "name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let kind = |plugin: &Map<String, Value>| {
            key(plugin, "type").and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let plugins: Vec<Map<String, Value>> = match key(conf, "plugins") {
            Some(Value::Array(plugins)) => {
                plugins.iter().filter_map(Value::as_object).map(|plugin| inherit(plugin, conf)).collect()
            }
            _ => vec![conf.clone()],
        };
        let of = |wanted: &str| plugins.iter().rfind(|plugin| kind(plugin) == wanted);
        let Some(policing) = of(CHAINED).or_else(|| of(MACVLAN)) else {
            return Err(NetworkError::NotPoliced { name, types: plugins.iter().map(kind).collect() });
        };
        let macvlan = |name| of(MACVLAN).and_then(|plugin| key(plugin, name));
        let (master, is_in_pod) = (macvlan("master"), macvlan("linkInContainer"));
        let bytes = Value::Object(policing.clone()).to_string();
        let conf = NetConf::parse(bytes.as_bytes()).map_err(|source| NetworkError::Conf { name, source })?;
        let master = master.and_then(Value::as_str).filter(|master| !master.is_empty()).map(str::to_owned);
        let is_in_pod = is_in_pod.and_then(Value::as_bool) == Some(true);
        Ok(Self { conf, master, is_in_pod, nad })
    }

    /// Holds it against this node and the administrator's word, as an ADD would.
    pub fn resolve(&self, masters: &Masters, node: &mut Netlink) -> Result<Resolved, NetworkError> {
        let link = resolve_master(node, self.master.as_deref())?.ok_or_else(|| match &self.master {
            Some(master) => NetworkError::NoMaster { master: master.clone() },
            None => NetworkError::NoDefault,
        })?;
        let names = link.names();
        let entry = masters.find(&names)?;
        if let Some(entry) = entry {
            entry.check_type(&self.conf.kind)?;
        }
        let conf = ZoneConf::from_conf(&self.conf.raw)?;
        let zone = resolve(conf.as_ref(), self.conf.ipam.local_subnets().as_deref(), entry)?;
        Ok(Resolved { link, zone })
    }

    /// Whether an attachment is one of this network. A configuration's name is not its own: two definitions may have
    /// the same. Without a word on where it comes from the name has to do.
    pub fn is_of(&self, record: &Outline) -> bool {
        match (&self.nad, &record.nad) {
            (Some(own), Some(its)) => own == its,
            _ => record.network == self.conf.name,
        }
    }

    /// Puts it in force for those of its attachments on the master that run, and that `is_meant` picks; `None` if the
    /// master is not under police. What is in force has to be remembered, and guarded where there was no zone.
    pub fn put_in_force(
        &self,
        root: &Root,
        maps: &mut Maps,
        resolved: &Resolved,
        records: impl Fn() -> Result<Arc<[Arc<Outline>]>, StateError>,
        is_meant: impl Fn(&Outline) -> bool,
    ) -> Result<Option<InForce>, NetworkError> {
        let Some(id) = master_id(maps, resolved)? else { return Ok(None) };
        let own = |maps: &Maps| -> Result<Vec<Running>, PoliceError> {
            let mut own = running(maps, &records()?, |record| self.is_of(record) && is_meant(record))?;
            own.retain(|(_, key, _)| key.master == id);
            Ok(own)
        };
        let zones: Vec<u32> =
            own(maps)?.iter().map(|(_, _, row)| row.zone).filter(|zone| *zone != 0).collect();
        // What is waited for before a slot is written again is waited for without the lock.
        maps.settle(&zones).map_err(PoliceError::from)?;
        let _lock = Lock::acquire(root).map_err(PoliceError::from)?;
        if !maps.is_in_force().map_err(PoliceError::from)? {
            return Err(NetworkError::Replaced);
        }
        // Whoever held the lock may have been ended in the middle of one.
        if is_unfinished(root)? {
            return Err(NetworkError::Unfinished);
        }
        let running = own(maps)?;
        let applied = apply(maps, &running, self.conf.name.as_str(), resolved.zone.as_ref())?;
        Ok(Some(InForce { applied, running }))
    }

    /// How many attachments of networks of its name run elsewhere than on its master.
    pub fn count_elsewhere(
        &self,
        maps: &Maps,
        resolved: &Resolved,
        records: &[Arc<Outline>],
    ) -> Result<usize, NetworkError> {
        let id = master_id(maps, resolved)?;
        let own = running(maps, records, |record| self.is_of(record))?;
        Ok(own.iter().filter(|(_, key, _)| Some(key.master) != id).count())
    }
}

/// Dense id of the master, if it is under police.
fn master_id(maps: &Maps, resolved: &Resolved) -> Result<Option<u16>, PoliceError> {
    let cookie = netns::cookie().unwrap_or(0);
    let is_it = |row: &Master| row.ifindex == resolved.link.index && row.netns_cookie == cookie;
    Ok(maps.masters()?.iter().find(|(_, row)| is_it(row)).map(|(id, _)| *id))
}

/// Guards the attachments that got a zone by `resolved` and had none.
pub fn guard_new(resolved: &Resolved, running: &[Running]) -> Result<(), NetworkError> {
    let is_new = |(record, _, _): &&Running| resolved.zone.is_some() && record.zone.is_none();
    running.iter().filter(is_new).try_for_each(|(record, _, _)| {
        guard(record).map_err(|source| NetworkError::Guard {
            attachment: format!("{} ({})", record.container_id, record.ifname),
            source,
        })
    })
}

/// Sets what a policed interface needs set in its own namespace, as ADD does from the beginning.
pub fn guard(record: &Outline) -> Result<(), GuardError> {
    let netns = Netns::open(&record.netns.path)?;
    let identity = netns.identity()?;
    if (identity.dev, identity.ino) != (record.netns.dev, record.netns.inode) {
        // Another sandbox at the same path: the pod has ended.
        return Ok(());
    }
    let mut effects = Effects::open(netns)?;
    let link = match effects.link(record.ifname.as_str()) {
        // Its owner may rename and remove it, and has no setting to be protected by then.
        Err(error) if error.is_absent() => return Ok(()),
        link => link?,
    };
    let mut steps = plan::prepare(&record.ifname, link.mtu, &[], Guard::Policed, Acd::Off)?;
    steps.retain(|step| matches!(step, Step::SetSysctl { .. }));
    Ok(exec::run(&mut effects, &steps, &mut UndoStack::default())?)
}

/// A plugin of a list as it is called: with the list's name and version.
fn inherit(plugin: &Map<String, Value>, list: &Map<String, Value>) -> Map<String, Value> {
    let mut plugin = plugin.clone();
    for inherited in ["name", "cniVersion"] {
        if let Some(value) = key(list, inherited) {
            plugin.retain(|other, _| !is_same_key(other, inherited));
            plugin.insert(inherited.to_owned(), value.clone());
        }
    }
    plugin
}

/// A key as the plugin reads it: in any case, and of several the last.
fn key<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    View::root(object).get(name)
}
