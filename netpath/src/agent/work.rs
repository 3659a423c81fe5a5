//! Brings wish and reality together: everything is looked at anew each time, and what differs is changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{
    Shared,
    guards::Guards,
    installer::Installer,
    listing::{SandboxListing, Zones, id_of},
    networks::{Lack, Networks, Put, Unwritten, is_elsewhere},
    repair::{Repairs, missing},
    wish::Definition,
};
use crate::{
    causes::full,
    cluster::{Api, Cluster as _, Subject, Which},
    cri,
    kernel::{
        allocator,
        bpf::attach::{self, Change},
        netlink::{Link, Netlink},
        netns,
    },
    plugin::sweep::{self, Life},
    police::{self, MasterLink, Network},
    root::Root,
    spec::{ContainerId, Event, PodRef, Severity, meta::BIN_DIR},
    state::{self, Lock, Outline, Phase, Sandbox, Sandboxes},
    whole,
    zone::{MasterEntry, Masters, Xdp},
};

/// How often all is looked at where nobody tells of a change.
const PACE: Duration = Duration::from_secs(5);
/// Changes that come within this time are looked at together.
const GATHER: Duration = Duration::from_millis(5);
/// How often it is looked for what nobody will end.
const SWEEP: Duration = Duration::from_secs(300);
/// How often it is told of the node that one thing fails.
const NODE_PAUSE: Duration = Duration::from_secs(300);
/// How long the lock is waited for by who has time.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long one pass may take for calls of the API that nobody waits for.
const API: Duration = Duration::from_secs(10);

type Failed = Box<dyn std::error::Error + Send + Sync>;
type Done = Result<(), Failed>;

/// Works for as long as the process lives.
pub(super) fn run(shared: &Shared, kicked: &Receiver<()>) {
    let mut work = Work::new(shared);
    loop {
        work.pass();
        let until = Instant::now() + PACE;
        let woken = work.remember(kicked, until).unwrap_or_else(|| {
            allocator::give_back();
            kicked.recv_timeout(until.saturating_duration_since(Instant::now()))
        });
        match woken {
            // More of the same may be on its way.
            Ok(()) => drop(kicked.recv_timeout(GATHER)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        while kicked.try_recv().is_ok() {}
    }
}

struct Work<'a> {
    shared: &'a Shared,
    root: &'a Root,
    began: Instant,
    is_upgraded: bool,
    installer: Installer,
    repairs: Repairs,
    /// Masters, by name and index, whose hooks were complete once: what is missing since was taken.
    complete: BTreeSet<(String, u32)>,
    sandboxes: SandboxListing,
    /// What was found of definitions without attachments, by name: looked at again when they change.
    checked: BTreeMap<String, (Definition, Masters, Option<String>)>,
    /// What the owners of networks were told, by name.
    told: BTreeMap<String, String>,
    guards: Guards,
    networks: Networks,
    /// Records that are to be written when nobody waits for anything.
    unwritten: Vec<Unwritten>,
    /// Pods whose owners were told, by UID.
    bare: BTreeSet<String>,
    swept: Option<Instant>,
    /// When it was told of the node that something fails.
    node_told: BTreeMap<&'static str, Instant>,
}

impl<'a> Work<'a> {
    fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            root: &shared.root,
            began: Instant::now(),
            is_upgraded: false,
            installer: Installer::default(),
            repairs: Repairs::default(),
            complete: BTreeSet::new(),
            sandboxes: SandboxListing::default(),
            checked: BTreeMap::new(),
            told: BTreeMap::new(),
            guards: Guards::default(),
            networks: Networks::default(),
            unwritten: Vec::new(),
            bare: BTreeSet::new(),
            swept: None,
            node_told: BTreeMap::new(),
        }
    }

    fn pass(&mut self) {
        self.unwritten.clear();
        let disabled = self.root.disabled();
        let (is_disabled, is_uninstalled) = (disabled.is_some(), self.root.uninstalled().exists());
        if is_disabled {
            self.shared.report().disabled = disabled;
            // What is missing afterwards nobody took from the agent.
            self.complete.clear();
            self.installer = Installer::default();
        }
        // Whoever uninstalled netpath must not have it come back; who only has nothing attached keeps the rest.
        if !is_uninstalled {
            let is_upgraded = !is_disabled && self.step("upgrade", Self::upgrade);
            self.step("masters.json", Self::render);
            if is_upgraded {
                // A change of a network waits for nothing but what has to be there before it.
                let has_begun = self.shared.report().passes != 0;
                if has_begun {
                    self.step("networks", Self::networks);
                }
                self.step("masters", Self::masters);
                if !has_begun {
                    self.step("networks", Self::networks);
                }
                self.step("guards", Self::guards);
                self.step("install", Self::install);
            }
            self.step("pods", Self::pods);
            self.step("sandboxes", Self::sandboxes);
            self.step("sweep", Self::sweep);
        }
        self.shared.post();
        let mut report = self.shared.report();
        report.passes += 1;
        if !is_disabled {
            // It is ready again when all has been done.
            report.disabled = None;
        }
    }

    /// Does one thing; that it failed stops no other.
    fn step(&mut self, what: &'static str, does: fn(&mut Self) -> Done) -> bool {
        let begun = Instant::now();
        let result = does(self);
        tracing::debug!(what, took = ?begun.elapsed(), "done");
        self.say(what, result)
    }

    /// Says that something fails, or works again, once; whether it works.
    fn say(&mut self, what: &'static str, result: Done) -> bool {
        match result {
            Ok(()) => {
                if self.shared.report().errors.remove(what).is_some() {
                    tracing::info!(what, "works again");
                    if self.node_told.remove(what).is_some() {
                        self.shared.tell_node(
                            Severity::Normal,
                            "NetpathWorks",
                            format!("{what}: works again"),
                        );
                    }
                }
                true
            }
            Err(error) => {
                let error = full(&*error);
                if self.shared.report().errors.insert(what, error.clone()).as_ref() != Some(&error) {
                    tracing::error!(what, error, "cannot be done now");
                }
                // What ends within a pass or two, as at the start, is nobody's concern.
                let is_due = self.node_told.get(what).is_none_or(|then| NODE_PAUSE <= then.elapsed());
                if is_due && 1 < self.shared.report().passes {
                    self.node_told.insert(what, Instant::now());
                    self.shared.tell_node(Severity::Warning, "NetpathFailing", format!("{what}: {error}"));
                }
                false
            }
        }
    }

    /// Writes what is in force into the records that do not have it, until somebody wakes us, which is returned. What is left
    /// is found again.
    fn remember(&mut self, kicked: &Receiver<()>, until: Instant) -> Option<Result<(), RecvTimeoutError>> {
        let (mut failed, mut woken) = (None, None);
        let is_whole = !self.shared.report().errors.contains_key("networks");
        while woken.is_none() && Instant::now() < until {
            let Some((record, zone)) = self.unwritten.pop() else { break };
            if let Err(error) = police::remember(self.root, &record, zone.as_deref()) {
                let error = format!("{} ({}): {}", record.pod_name(), record.ifname, full(&error));
                failed = failed.or(Some(error.into()));
            }
            let heard = kicked.recv_timeout(Duration::ZERO);
            woken = (heard != Err(RecvTimeoutError::Timeout)).then_some(heard);
        }
        // Of those that were not reached nothing is known.
        if failed.is_some() || is_whole && self.unwritten.is_empty() {
            self.say("records", failed.map_or(Ok(()), Err));
        }
        woken
    }

    /// What is in force is brought to this version, before a plugin of this version meets it: forth, and back where the newer
    /// one left word that this one can.
    fn upgrade(&mut self) -> Done {
        if !self.is_upgraded {
            let mut node = Netlink::open()?;
            let _lock = Lock::acquire_within(self.root, PATIENCE)?;
            let outcome = police::upgrade(self.root, &mut node, true, &mut |_| Ok(()))?;
            tracing::info!(?outcome, "what is in force is of this version");
            self.is_upgraded = true;
        }
        Ok(())
    }

    /// The administrator's word as the cluster has it. Where the cluster has none the file is somebody else's.
    fn render(&mut self) -> Done {
        let Some(Some(wanted)) = self.shared.wish().masters.clone() else { return Ok(()) };
        let path = self.root.masters();
        if whole::bytes(&path).is_ok_and(|bytes| bytes == wanted.as_bytes()) {
            return Ok(());
        }
        // One wrong entry would stop every policed ADD: what was good stays.
        Masters::parse(&path, wanted.as_bytes())?;
        whole::replace(&path, wanted.as_bytes())?;
        tracing::info!(path = %path.display(), "written as the cluster has it");
        Ok(())
    }

    /// Every master that the administrator names, or that pods are on, is under police, and stays so.
    fn masters(&mut self) -> Done {
        let entries = police::masters(self.root)?;
        let mut node = Netlink::open()?;
        let links = node.links()?;
        let rows = match police::maps(self.root)? {
            Some(maps) => maps.masters()?,
            None => Vec::new(),
        };
        let cookie = netns::cookie().unwrap_or(0);
        let mut failed = None;
        for link in links {
            let entry = entries.find(&link.names())?.cloned();
            let row = rows.iter().find(|(_, row)| row.ifindex == link.index && row.netns_cookie == cookie);
            if entry.is_none() && row.is_none() {
                continue;
            }
            let name = link.name.clone();
            if let Err(error) = self.keep(&mut node, link, entry, row.map(|(id, _)| *id)) {
                failed = failed.or(Some(format!("{name}: {}", full(&*error))));
            }
        }
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Attaches what is missing of one master, unless somebody takes it away again and again.
    fn keep(&mut self, node: &mut Netlink, link: Link, entry: Option<MasterEntry>, id: Option<u16>) -> Done {
        let key = (link.name.clone(), link.index);
        let wants_xdp = entry.as_ref().is_some_and(|entry| entry.xdp() == Xdp::Native);
        let missing = match id {
            Some(id) => missing(&attach::inspect(&self.root.pins(), id, link.index)?, wants_xdp),
            None => Vec::new(),
        };
        if self.complete.contains(&key) && !missing.is_empty() {
            let now = self.began.elapsed();
            if !self.repairs.allow(&link.name, now) {
                let hooks: Vec<_> = missing.iter().map(|hook| hook.name()).collect();
                return Err(format!(
                    "{} is taken off again and again, and was attached three times within ten minutes: find out \
                     who does it (`bpftool net show dev {}`); pods on it are not policed there",
                    hooks.join(", "),
                    link.name
                )
                .into());
            }
        }
        let attached = {
            let _lock = Lock::acquire(self.root)?;
            police::attach(self.root, node, &MasterLink { link, entry }, false)?
        };
        let is_repair = self.complete.contains(&key);
        for change in attached.changes {
            let (Change::Attached(hook, _) | Change::Replaced(hook, _) | Change::Detached(hook)) = change;
            if is_repair {
                tracing::warn!(
                    master = key.0,
                    hook = hook.name(),
                    "was taken off by somebody and is attached again"
                );
                *self.shared.report().repairs.entry((key.0.clone(), hook.name())).or_default() += 1;
            } else {
                tracing::info!(master = key.0, hook = hook.name(), "attached");
            }
        }
        self.complete.insert(key);
        Ok(())
    }

    /// What a zone takes is set in the namespaces of all that have one.
    fn guards(&mut self) -> Done {
        self.guards.keep(&self.shared.records()?)
    }

    /// The plugin and its configuration are where the runtime looks, where it is the agent that sees to it.
    fn install(&mut self) -> Done {
        let Some(site) = &self.shared.options.install else { return Ok(()) };
        self.installer.install(self.shared, site, &mut self.repairs, self.began.elapsed())
    }

    /// Every network that has attachments is in force for them as it is defined now.
    fn networks(&mut self) -> Done {
        let definitions = self.definitions()?;
        let Some(definitions) = definitions else { return Ok(()) };
        let masters = police::masters(self.root)?;
        let mut node = Netlink::open()?;
        let mut maps = police::maps(self.root)?;
        let records = self.shared.records()?;
        let zones = match &maps {
            Some(maps) => Zones::read(maps)?,
            None => Zones::default(),
        };
        let mut refused = BTreeMap::new();
        let mut networks = Vec::new();
        self.networks.begin(&definitions, &masters, &node.links()?, node.default_route_link()?);
        for (name, definition) in &definitions {
            match self.networks.read(name, definition) {
                Ok(Some(network)) => networks.push((name, definition, network)),
                Ok(None) => {}
                Err(error) => drop(refused.insert(name.clone(), (definition, Lack::Refused(error)))),
            }
        }
        let mut names: BTreeMap<&str, usize> = BTreeMap::new();
        for (_, _, network) in &networks {
            *names.entry(network.conf.name.as_str()).or_default() += 1;
        }
        self.checked.retain(|name, _| definitions.contains_key(name));
        // What is a link of the pod is none that could be looked for here.
        for (name, definition, network) in networks.iter().filter(|(_, _, network)| !network.is_in_pod) {
            // A record that does not say where it comes from is nobody's where two definitions could have made it.
            let is_alone = names.get(network.conf.name.as_str()) == Some(&1);
            let own: Vec<&Arc<Outline>> = records
                .iter()
                .filter(|record| network.is_of(record) && (record.nad.is_some() || is_alone))
                .collect();
            let (shared, what) = (self.shared, (name.as_str(), *definition));
            let result = match own.is_empty() {
                true => self.check(name, definition, network, &masters, &mut node),
                false => self
                    .networks
                    .put(shared, &masters, &mut node, maps.as_mut(), &zones, what, network, &own)
                    .map_err(|error| (!is_elsewhere(&error, &zones, &own)).then(|| full(&error))),
            };
            self.unwritten.extend(self.networks.unwritten(name, &zones, &own));
            let error = match result {
                Ok(Put { changed, left }) => {
                    if let Some((master, attachments)) = changed {
                        tracing::info!(network = name, master, attachments, "its zone is in force");
                        self.shared.report().zone_changes += 1;
                        // Whose records do not have it yet is seen when it is there.
                        self.shared.wake();
                    }
                    left.map(|error| Lack::LeftBehind(full(&error)))
                }
                Err(error) => error.map(Lack::Refused),
            };
            refused.extend(error.map(|error| ((*name).clone(), (*definition, error))));
        }
        self.told.retain(|name, _| refused.contains_key(name));
        for (name, (definition, lack)) in &refused {
            self.refuse(name, definition, lack);
        }
        self.shared.report().refused =
            refused.into_iter().map(|(name, (_, lack))| (name, lack.text().to_owned())).collect();
        Ok(())
    }

    /// What the cluster has, or the directory that stands in for it; `None` while that is not known.
    fn definitions(&self) -> Result<Option<BTreeMap<String, Definition>>, Failed> {
        match &self.shared.options.networks {
            None => Ok(self.shared.wish().definitions.clone()),
            Some(dir) => {
                Ok(Some(super::wish::in_directory(self.root, &self.root.join(&dir.to_string_lossy()))?))
            }
        }
    }

    /// Whether a network could be put in force that has no attachments here. Looked at once for each state of it.
    fn check(
        &mut self,
        name: &str,
        definition: &Definition,
        network: &Network,
        masters: &Masters,
        node: &mut Netlink,
    ) -> Result<Put, Option<String>> {
        let known = self.checked.get(name).filter(|(its, word, _)| its == definition && word == masters);
        let error = match known {
            Some((_, _, error)) => error.clone(),
            None => {
                let result = network.resolve(masters, node);
                let error = result.err().filter(|error| !is_elsewhere(error, &Zones::default(), &[]));
                let error = error.map(|error| full(&error));
                self.checked.insert(name.to_owned(), (definition.clone(), masters.clone(), error.clone()));
                error
            }
        };
        error.map_or(Ok(Put { changed: None, left: None }), |error| Err(Some(error)))
    }

    /// Says of a network that its last good zone stays, or for whom, once for each mistake.
    fn refuse(&mut self, name: &str, definition: &Definition, lack: &Lack) {
        let why = lack.text();
        if self.told.insert(name.to_owned(), why.to_owned()).as_deref() == Some(why) {
            return;
        }
        let what = match lack {
            Lack::Refused(_) => "cannot be put in force; its last good zone stays",
            Lack::LeftBehind(_) => "is not in force for all of its pods",
        };
        tracing::warn!(network = name, error = why, "{what}");
        let (namespace, short) = name.split_once('/').unwrap_or(("default", name));
        let object = PodRef {
            namespace: namespace.to_owned(),
            name: short.to_owned(),
            uid: Some(definition.uid.clone()).filter(|uid| !uid.is_empty()),
        };
        self.shared.tell_network(object, lack);
    }

    /// Pods that run without what they asked for.
    fn pods(&mut self) -> Done {
        let Some(pods) = self.shared.wish().pods.clone() else { return Ok(()) };
        let records = self.shared.records()?;
        let boot = state::boot_id()?;
        self.sandboxes.read(self.root)?;
        let zones = match police::maps(self.root)? {
            Some(maps) => Zones::read(&maps)?,
            None => Zones::default(),
        };
        // By the pod's name: each pod would look at all of them otherwise.
        let (mut sandboxes, mut unpoliced) = (BTreeMap::<_, Vec<_>>::new(), BTreeMap::<_, Vec<_>>::new());
        let of_this_boot = self.sandboxes.all.iter().filter(|sandbox| sandbox.boot_id == boot);
        for (own, sandbox) in of_this_boot.filter_map(|sandbox| Some((sandbox.pod.as_ref()?, sandbox))) {
            sandboxes.entry(format!("{}/{}", own.namespace, own.name)).or_default().push((own, sandbox));
        }
        let is_unpoliced = |record: &Outline| {
            let has_zone = record.phase == Phase::Ready && record.zone.is_some();
            has_zone && !zones.rows.contains_key(&id_of(record))
        };
        let records = records.iter().filter(|record| is_unpoliced(record));
        for (own, record) in records.filter_map(|record| Some((record.pod.as_ref()?, record))) {
            unpoliced.entry(format!("{}/{}", own.namespace, own.name)).or_default().push((own, record));
        }
        let mut bare = BTreeMap::new();
        let mut pending = 0;
        for (name, pod) in pods.iter().filter(|(_, pod)| pod.has_sandbox) {
            let is_its = |it: &state::Pod| pod.is_mirror || it.uid.as_ref().is_none_or(|uid| *uid == pod.uid);
            let own = sandboxes.get(name).into_iter().flatten().filter(|(own, _)| is_its(own));
            let sandbox = own.max_by_key(|(_, sandbox)| sandbox.created);
            match sandbox.map(|(_, sandbox)| sandbox) {
                None if pod.asks() => {
                    bare.insert(
                        name,
                        (pod, "it was not started by netpath, so the networks that it asks for are not known to be there: delete the pod".to_owned()),
                    );
                }
                Some(sandbox) if sandbox.annotation != pod.networks => pending += 1,
                _ => {}
            }
            let record = unpoliced.get(name).into_iter().flatten().find(|(own, _)| is_its(own));
            if let Some((_, record)) = record {
                let what =
                    format!("{} was made with a zone and is not policed: delete the pod", record.ifname);
                bare.insert(name, (pod, what));
            }
        }
        for (name, (pod, what)) in &bare {
            if self.bare.insert(pod.uid.clone()) {
                tracing::warn!(pod = *name, what, "runs without what it asked for");
                let (namespace, short) = name.split_once('/').unwrap_or(("default", name));
                let object = PodRef {
                    namespace: namespace.to_owned(),
                    name: short.to_owned(),
                    uid: Some(pod.uid.clone()),
                };
                let event = Event {
                    severity: Severity::Warning,
                    reason: "NetworkMissing".to_owned(),
                    message: what.clone(),
                };
                self.shared.tell(Subject::Pod, object, event);
            }
        }
        self.bare.retain(|uid| bare.values().any(|(pod, _)| pod.uid == *uid));
        let mut report = self.shared.report();
        report.bare = bare.into_iter().map(|(name, (_, what))| (name.clone(), what)).collect();
        report.pending = pending;
        Ok(())
    }

    /// What the plugin left to be told and written.
    fn sandboxes(&mut self) -> Done {
        let Some(kubeconfig) = &self.shared.options.plugin_kubeconfig else { return Ok(()) };
        let sandboxes = Sandboxes::new(self.root);
        self.sandboxes.read(self.root)?;
        // All together: zones must not wait for a server that is away.
        let until = Instant::now() + API;
        for sandbox in self.sandboxes.all.iter().take_while(|_| Instant::now() < until) {
            let waits = sandbox.pending_status.is_some() || !sandbox.pending_events.is_empty();
            if !waits || sandbox.phase != Phase::Ready {
                continue;
            }
            let Some(pod) = &sandbox.pod else { continue };
            let id = ContainerId::parse("container_id", &sandbox.container_id)?;
            let object = pod.to_ref();
            let api = Api::new(self.root, kubeconfig.clone(), until);
            let mut status = sandbox.pending_status.clone();
            if let Some(text) = &status {
                let which = pod.uid.clone().map_or(Which::Any, Which::Uid);
                match api.set_network_status(&object, &which, &id, text) {
                    Ok(()) | Err(crate::cluster::ClusterError::PodGone { .. }) => status = None,
                    // Tried again in the next pass.
                    Err(error) => tracing::debug!(error = full(&error), "network-status waits"),
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            let lost = api.deliver(&object, &sandbox.pending_events, left);
            {
                let mut report = self.shared.report();
                let all = sandbox.pending_events.len();
                report.events_posted += u64::try_from(all - lost.min(all)).unwrap_or_default();
                report.events_lost += u64::try_from(lost).unwrap_or_default();
            }
            let told = Sandbox { pending_status: status, pending_events: Vec::new(), ..sandbox.clone() };
            if told != *sandbox {
                sandboxes.update(&told, &id)?;
            }
        }
        Ok(())
    }

    /// Ends what two witnesses say is dead.
    fn sweep(&mut self) -> Done {
        if self.swept.is_some_and(|then| then.elapsed() < SWEEP) {
            return Ok(());
        }
        // Without a runtime's word nothing is ended.
        let sockets = cri::sockets(self.root);
        if sockets.is_empty() {
            return Ok(());
        }
        // First what is known, then who lists it: what comes in between is no candidate.
        let known = sweep::known(self.root)?;
        let mut listed = BTreeSet::new();
        for socket in sockets {
            listed.extend(cri::sandboxes(&socket)?);
        }
        let boot = state::boot_id()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let plugins = [PathBuf::from(BIN_DIR)];
        for it in known.into_iter().filter(|it| it.life(Some(&listed), &boot, now) == Life::Dead) {
            let id = it.container_id.to_string();
            match it.end(self.root, &plugins) {
                Ok(sweep::End::Whole) => {
                    tracing::info!(container = id, pod = it.pod(), "was dead and is ended");
                    self.shared.report().swept += 1;
                }
                Ok(sweep::End::SetAside | sweep::End::Changed) => {}
                Err(error) => {
                    tracing::warn!(container = id, error = full(&error), "is dead and cannot be ended");
                }
            }
        }
        self.swept = Some(Instant::now());
        Ok(())
    }
}
