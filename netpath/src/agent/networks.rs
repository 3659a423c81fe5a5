//! Networks as they are defined, and what of them is in force. What was found is kept for as long as nothing it follows from
//! changes: there may be many networks, and all are looked at each time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use netpath_ebpf::abi::mode;

use super::{
    Shared,
    listing::{Zones, id_of},
    wish::Definition,
};
use crate::{
    causes::full,
    kernel::{
        bpf::maps::Maps,
        netlink::{Link, Netlink},
    },
    police::{self, InForce, Network, NetworkError, PoliceError, recorded_zone},
    state::{self, Fingerprint, Outline},
    zone::{Masters, compile},
};

/// A definition as it was read: nothing where it is another plugin's, or why it cannot be read.
type Read = Result<Option<Arc<Network>>, String>;

/// What a network comes to: its master, its zone, digest and mode of it.
#[derive(Clone, Debug)]
struct Outcome {
    /// Index of the master.
    master: u32,
    /// Its name.
    master_name: String,
    digest: Option<[u8; 16]>,
    mode: u8,
    /// As records have it.
    recorded: Option<(Fingerprint, Arc<state::Zone>)>,
}

impl Outcome {
    /// Whether an attachment has it in force, or something else; `None` of one without a row.
    fn is_in_force(&self, zones: &Zones, record: &Outline) -> Option<bool> {
        let row = zones.rows.get(&id_of(record))?;
        Some(row.mode == self.mode && zones.digests.get(&row.zone) == self.digest.as_ref())
    }

    /// Whether an attachment lies on the network's master: an interface stays where it was made.
    fn is_here(&self, zones: &Zones, record: &Outline) -> bool {
        let master = zones.masters.get(&self.master).copied();
        zones.rows.get(&id_of(record)).is_some_and(|row| Some(row.master) == master)
    }

    /// Those of a network that have something else in force, and lie on the network's master or not.
    fn differing<'a>(&self, zones: &Zones, own: &[&'a Arc<Outline>], is_here: bool) -> Vec<&'a Arc<Outline>> {
        let differs = |record: &&&Arc<Outline>| {
            self.is_in_force(zones, record) == Some(false) && self.is_here(zones, record) == is_here
        };
        own.iter().filter(differs).copied().collect()
    }

    /// Where attachments keep what was in force on a master that the network does not name any more; nothing of one that names none.
    fn left_behind(&self, zones: &Zones, network: &Network, own: &[&Arc<Outline>]) -> Option<NetworkError> {
        network.master.as_ref()?;
        let left = self.differing(zones, own, false);
        // Where the master is gone, its rows only wait for their DEL.
        let master = |record: &Arc<Outline>| {
            let row = zones.rows.get(&id_of(record))?;
            zones.names.get(&row.master).cloned()
        };
        let on: BTreeSet<String> = left.into_iter().filter_map(master).collect();
        (!on.is_empty()).then(|| NetworkError::LeftBehind {
            on: on.into_iter().collect(),
            master: self.master_name.clone(),
        })
    }

    /// Whether that is what the record says.
    fn is_recorded(&self, record: &Outline) -> bool {
        record.zone.as_ref().map(|zone| zone.compiled) == self.recorded.as_ref().map(|(content, _)| *content)
    }
}

/// What a network lacks.
pub(super) enum Lack {
    /// It cannot be put in force, and why.
    Refused(String),
    /// It is in force, but for attachments that stay where they are.
    LeftBehind(String),
}

impl Lack {
    /// In words.
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Refused(text) | Self::LeftBehind(text) => text,
        }
    }
}

/// What became of a network.
pub(super) struct Put {
    /// The master on which something else is in force now, and for how many attachments; `None` where nothing changed.
    pub(super) changed: Option<(String, usize)>,
    /// That it is not in force for all.
    pub(super) left: Option<NetworkError>,
}

/// A record that does not have the zone that is in force, and the zone.
pub(super) type Unwritten = (Arc<Outline>, Option<Arc<state::Zone>>);

/// What was found, by name.
#[derive(Default)]
pub(super) struct Networks {
    read: BTreeMap<String, (Definition, Read)>,
    /// Also follows from the administrator's word and the node's links.
    outcomes: BTreeMap<String, (Definition, Outcome)>,
    masters: Option<Masters>,
    /// Index and names of each link, and the one of the default route: a network without a master takes it.
    links: (Vec<(u32, String)>, Option<u32>),
}

impl Networks {
    /// Forgets what no longer holds.
    pub(super) fn begin(
        &mut self,
        definitions: &BTreeMap<String, Definition>,
        masters: &Masters,
        links: &[Link],
        default: Option<u32>,
    ) {
        let links: Vec<_> = links.iter().map(|link| (link.index, link.names().join(" "))).collect();
        let links = (links, default);
        if self.masters.as_ref() != Some(masters) || self.links != links {
            self.outcomes.clear();
            (self.masters, self.links) = (Some(masters.clone()), links);
        }
        self.read.retain(|name, (definition, _)| definitions.get(name) == Some(definition));
        self.outcomes.retain(|name, (definition, _)| definitions.get(name) == Some(definition));
    }

    /// What a definition says.
    pub(super) fn read(&mut self, name: &str, definition: &Definition) -> Read {
        let read = || (definition.clone(), read(name, definition).map(|network| network.map(Arc::new)));
        self.read.entry(name.to_owned()).or_insert_with(read).1.clone()
    }

    /// Puts a network in force where it is not, on its master.
    #[expect(clippy::too_many_arguments, reason = "what it looks at is read once for all networks")]
    pub(super) fn put(
        &mut self,
        shared: &Shared,
        masters: &Masters,
        node: &mut Netlink,
        maps: Option<&mut Maps>,
        zones: &Zones,
        (name, definition): (&str, &Definition),
        network: &Network,
        own: &[&Arc<Outline>],
    ) -> Result<Put, NetworkError> {
        let differs = |outcome: &Outcome| !outcome.differing(zones, own, true).is_empty();
        if let Some((_, outcome)) = self.outcomes.get(name)
            && !differs(outcome)
        {
            return Ok(Put { changed: None, left: outcome.left_behind(zones, network, own) });
        }
        let resolved = network.resolve(masters, node)?;
        let name_of_zone = network.conf.name.as_str();
        let compiled = resolved.zone.as_ref().map(compile).transpose().map_err(PoliceError::from)?;
        let digest = compiled.map(|image| image.digest(name_of_zone));
        let mode = resolved.zone.as_ref().map_or(mode::OFF, |zone| zone.mode().abi());
        let recorded = resolved.zone.as_ref().map(|zone| recorded_zone(name_of_zone, zone)).transpose()?;
        let recorded = recorded.map(|zone| (Fingerprint::of(&zone.compiled), Arc::new(zone)));
        let zone = recorded.as_ref().map(|(_, zone)| Arc::clone(zone));
        let (master, master_name) = (resolved.link.index, resolved.link.name.clone());
        let outcome = Outcome { master, master_name: master_name.clone(), digest, mode, recorded };
        let (differs, left) = (differs(&outcome), outcome.left_behind(zones, network, own));
        self.outcomes.insert(name.to_owned(), (definition.clone(), outcome));
        let Some(maps) = maps.filter(|_| differs) else { return Ok(Put { changed: None, left }) };
        // What a record does not say of itself was decided before, by all definitions.
        let own: BTreeSet<_> = own.iter().map(|record| (&record.container_id, &record.ifname)).collect();
        let is_meant = |record: &Outline| own.contains(&(&record.container_id, &record.ifname));
        let in_force = network.put_in_force(&shared.root, maps, &resolved, || shared.records(), is_meant)?;
        let Some(InForce { applied, running, .. }) = in_force else { return Ok(Put { changed: None, left }) };
        police::guard_new(&resolved, &running)?;
        let had_none = running.iter().map(|(record, _, _)| record).filter(|record| record.zone.is_none());
        had_none
            .into_iter()
            .try_for_each(|record| police::remember(&shared.root, record, zone.as_deref()))?;
        let is_changed = applied.changed != 0 || !applied.rewritten.is_empty();
        Ok(Put { changed: is_changed.then_some((master_name, applied.endpoints)), left })
    }

    /// Those of its attachments whose records do not have what is in force.
    pub(super) fn unwritten(
        &self,
        name: &str,
        zones: &Zones,
        own: &[&Arc<Outline>],
    ) -> impl Iterator<Item = Unwritten> {
        let outcome = self.outcomes.get(name).map(|(_, outcome)| outcome);
        outcome.into_iter().flat_map(move |outcome| {
            let is_stale = |record: &&&Arc<Outline>| {
                outcome.is_in_force(zones, record) == Some(true) && !outcome.is_recorded(record)
            };
            let zone = outcome.recorded.as_ref().map(|(_, zone)| zone);
            own.iter().filter(is_stale).map(move |record| (Arc::clone(record), zone.cloned()))
        })
    }
}

/// One of other plugins is none of ours.
fn read(name: &str, definition: &Definition) -> Result<Option<Network>, String> {
    let short = name.split_once('/').map_or(name, |(_, name)| name);
    match Network::of_definition(short, definition.config.as_deref(), Some(name.to_owned())) {
        Ok(network) => Ok(Some(network)),
        // Without one it stands in a file of that name, and is the plugin's to read.
        Err(NetworkError::NoConfig { .. } | NetworkError::NotPoliced { .. }) => Ok(None),
        Err(error) => Err(full(&error)),
    }
}

/// Whether it is a network of other nodes: their masters are not here, and none of its attachments is. What the default route
/// leads to comes and goes.
pub(super) fn is_elsewhere(error: &NetworkError, zones: &Zones, own: &[&Arc<Outline>]) -> bool {
    match error {
        NetworkError::NoDefault => true,
        NetworkError::NoMaster { .. } => !own.iter().any(|record| zones.rows.contains_key(&id_of(record))),
        _ => false,
    }
}
