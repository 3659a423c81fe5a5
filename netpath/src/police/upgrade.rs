//! Putting this version, or other sizes of the maps, in the place of what is in force, without a gap.
//!
//! A second tree of maps is filled while the first one is in force. Then each hook is given a program that works on
//! the second: every frame meets one of two complete sets, which say the same. When no old program runs any more what
//! they counted becomes the base of the new counters, and the maps change places in one step.
//!
//! Whoever is ended on the way leaves hooks of which each enforces, by one set or the other, and a directory that the
//! next run knows: it begins again, and adds up what was counted in all of them.

use std::path::{Path, PathBuf};

use netpath_ebpf::abi::{ABI_VERSION, Endpoint, EndpointKey, Master, Owner, kind};

use super::{MasterLink, PoliceError, attach, carry, masters, settings};
use crate::{
    kernel::{
        bpf::{
            BpfError, Hook,
            attach::{Change, HookState, Programs, Target, Via},
            maps::{self, Maps, MapsError},
            object::{self, Settings},
            pins, support,
            swap::{self, Kept},
            tree::{self, Tree},
            trees::{self, Trees},
        },
        netlink::{Link, Netlink},
        netns,
    },
    root::Root,
    state::Record,
};

/// What became of an upgrade.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing is loaded: the first attach makes what this version and the settings ask for.
    NothingLoaded,
    /// What is in force is of this build and has these sizes.
    UpToDate,
    /// The maps stayed, programs of another build were replaced: master, and what was done.
    Replaced(Vec<(String, Change)>),
    /// Other maps are in force.
    Upgraded(Upgraded),
}

/// Maps that took the place of others.
#[derive(Debug)]
pub struct Upgraded {
    /// ABI version that was in force.
    pub from: u32,
    /// Maps whose size is another one.
    pub resized: Vec<&'static str>,
    /// Somebody had begun before, and was ended.
    pub finished: bool,
    /// Hooks that were given another program, by master.
    pub hooks: Vec<(String, Hook, Via)>,
    /// Endpoint and foreign rows that were carried over.
    pub rows: usize,
    /// Rows that nobody has any more.
    pub swept: usize,
    /// Attachments whose zone nobody can tell: nothing reaches them, or leaves them, until they are made again.
    pub closed: Vec<(EndpointKey, Option<Record>)>,
}

/// A moment of an upgrade. What is in force changes with the hooks and not with the moments after them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The new maps say what the old ones said.
    Filled,
    /// The new programs are in the kernel and passed what they were tried with.
    Loaded,
    /// This hook of the master with this id has its new program.
    Replaced(u16, Hook),
    /// No old program runs any more.
    Settled,
    /// What they counted is in the bases.
    Carried,
    /// The new maps are pinned where the old ones were.
    Switched,
    /// The directory has the name of this version.
    Named,
    /// What was there before is gone.
    Removed,
}

/// Told of every step; an error ends the upgrade as a failure of that step would.
pub type Watch<'a> = &'a mut dyn FnMut(Step) -> Result<(), PoliceError>;

/// Brings what is in force to this version and to `settings.json`.
///
/// With `roll_back` also from a newer version that says that this one can read it. The caller holds the lock and is in
/// the masters' namespace.
pub fn upgrade(
    root: &Root,
    node: &mut Netlink,
    roll_back: bool,
    watch: Watch<'_>,
) -> Result<Outcome, PoliceError> {
    if let Some(path) = root.disabled() {
        return Err(BpfError::Disabled { path }.into());
    }
    support::check()?;
    super::check_bpffs(root)?;
    let own = root.pins();
    let trees = Trees::list(&own)?;
    let Some((version, path)) = trees.in_force()?.cloned() else {
        remove_staged(&trees)?;
        return Ok(Outcome::NothingLoaded);
    };
    super::master::leave_mark(root)?;
    // Beside maps that were never finished nothing is to be found again: see `object::maps`.
    if version == ABI_VERSION && tree::meta(&path)?.is_some() {
        pins::recover_maps(&path)?;
    }
    let meta = match tree::meta(&path)? {
        Some(meta) => meta,
        None if trees::has_programs(&path)? => return Err(maps::without_meta(&path).into()),
        // Somebody was ended while he made maps: nothing works on them.
        None => {
            pins::remove_pins(&path)?;
            return Ok(Outcome::NothingLoaded);
        }
    };
    if meta.abi_version == ABI_VERSION && version != ABI_VERSION {
        // Whoever was ended between the last steps: the maps are ours, the name is not yet.
        trees::rename(&path, &own)?;
        remove_staged(&Trees::list(&own)?)?;
        let outcome = upgrade(root, node, roll_back, watch)?;
        return Ok(match outcome {
            Outcome::UpToDate => Outcome::Upgraded(Upgraded::of(version, Vec::new(), true)),
            outcome => outcome,
        });
    }
    if ABI_VERSION < meta.abi_version && !roll_back {
        return Err(BpfError::NewerAbi { path, version: meta.abi_version }.into());
    }
    let settings = settings(root)?;
    let resized = match meta.abi_version {
        ABI_VERSION => object::resized(&path, &settings)?,
        _ => Vec::new(),
    };
    let begun = !trees.unfinished(&path)?.is_empty();
    if meta.abi_version == ABI_VERSION && resized.is_empty() && !begun {
        remove_staged(&trees)?;
        return in_place(root, node);
    }
    let tree = Tree::open(&path)?.ok_or_else(|| maps::without_meta(&path))?;
    let old = Old::read(node, &trees, path, tree, &settings)?;
    let mut done = Upgraded::of(meta.abi_version, resized, begun);
    replace(root, node, &trees, &settings, &old, &mut done, watch)?;
    Ok(Outcome::Upgraded(done))
}

impl Upgraded {
    fn of(from: u32, resized: Vec<&'static str>, finished: bool) -> Self {
        Self { from, resized, finished, hooks: Vec::new(), rows: 0, swept: 0, closed: Vec::new() }
    }
}

fn remove_staged(trees: &Trees) -> Result<(), PoliceError> {
    Ok(trees.staged().try_for_each(pins::remove_pins)?)
}

/// Replaces programs of another build, on the maps that are there.
fn in_place(root: &Root, node: &mut Netlink) -> Result<Outcome, PoliceError> {
    let Some(maps) = Maps::open(&root.pins())? else { return Ok(Outcome::NothingLoaded) };
    let (entries, cookie) = (masters(root)?, netns::cookie().unwrap_or(0));
    let links = node.links()?;
    let mut changes = Vec::new();
    for (_, row) in maps.masters()? {
        let here = links.iter().find(|link| link.index == row.ifindex && row.netns_cookie == cookie);
        let Some(link) = here.filter(|_| row.object != object::digest()) else { continue };
        let names = link.names();
        let master = MasterLink { link: link.clone(), entry: entries.find(&names)?.cloned() };
        let attached = attach(root, node, &master, true)?;
        changes.extend(attached.changes.into_iter().map(|change| (link.name.clone(), change)));
    }
    Ok(if changes.is_empty() { Outcome::UpToDate } else { Outcome::Replaced(changes) })
}

/// A tree in force, and all that is to be carried over.
pub(super) struct Old {
    pub(super) pins: PathBuf,
    pub(super) tree: Tree,
    /// Trees in which hooks counted when somebody was ended.
    pub(super) begun: Vec<Tree>,
    pub(super) masters: Vec<(u16, Master)>,
    pub(super) owners: Vec<(u32, Owner)>,
    pub(super) rows: Vec<(EndpointKey, Endpoint)>,
    /// Masters of this namespace whose NIC is there.
    pub(super) here: Vec<Here>,
}

/// A master of this namespace and what is attached to it.
pub(super) struct Here {
    pub(super) id: u16,
    pub(super) link: Link,
    pub(super) states: Vec<HookState>,
}

impl Old {
    fn read(
        node: &mut Netlink,
        trees: &Trees,
        pins: PathBuf,
        tree: Tree,
        settings: &Settings,
    ) -> Result<Self, PoliceError> {
        let (links, cookie) = (node.links()?, netns::cookie().unwrap_or(0));
        let masters = tree.masters()?;
        let mut here = Vec::new();
        for (id, row) in masters.iter().filter(|(_, row)| row.ifindex != 0) {
            let link = links.iter().find(|link| link.index == row.ifindex);
            match link.filter(|_| row.netns_cookie == cookie) {
                Some(link) => {
                    let states = swap::hooks(&pins, *id, link.index)?;
                    here.push(Here { id: *id, link: link.clone(), states });
                }
                None if row.netns_cookie != cookie && swap::may_be_attached(&pins, *id)? => {
                    return Err(PoliceError::Elsewhere { master: maps::text(&row.name) });
                }
                None => {}
            }
        }
        let rows = tree.endpoints()?;
        if let Some(id) = rows.iter().map(|(_, row)| row.id).max().filter(|id| settings.endpoints < *id) {
            let asked = settings.endpoints;
            return Err(PoliceError::TooSmall { setting: "endpoints", asked, needed: id });
        }
        let mut begun = Vec::new();
        for path in trees.unfinished(&pins)? {
            match Tree::open(path) {
                Ok(tree) => begun.extend(tree),
                // Begun by a version that this one knows nothing of: what its programs counted is lost.
                Err(error @ MapsError::Unknown { .. }) => tracing::warn!(%error, "counters are lost"),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Self { owners: tree.owners()?, pins, tree, begun, masters, rows, here })
    }
}

fn replace(
    root: &Root,
    node: &mut Netlink,
    trees: &Trees,
    settings: &Settings,
    old: &Old,
    done: &mut Upgraded,
    watch: Watch<'_>,
) -> Result<(), PoliceError> {
    let stage = trees.stage(&old.pins)?;
    let sets = match prepare(root, node, settings, old, &stage, done, watch) {
        Ok(sets) => sets,
        // Nothing of it was in force.
        Err(failed) => return Err(undone(failed, pins::remove_pins(&stage).map_err(Into::into))),
    };
    let mut kept = Vec::new();
    if let Err(failed) = switch(old, &stage, sets, &mut kept, done, watch) {
        let back = put_back(old, &stage, &kept);
        return Err(undone(failed, back));
    }
    let own = root.pins();
    tidy(&own, old, watch).map_err(|source| PoliceError::Untidy { source: Box::new(source) })
}

fn undone(failed: PoliceError, back: Result<(), PoliceError>) -> PoliceError {
    match back {
        Ok(()) => failed,
        Err(error) => PoliceError::Undo { failed: Box::new(failed), source: Box::new(error) },
    }
}

/// New programs of a master, tried and not attached.
type Set<'a> = (&'a Here, Programs);

/// Everything that can fail before a frame meets anything new.
fn prepare<'a>(
    root: &Root,
    node: &mut Netlink,
    settings: &Settings,
    old: &'a Old,
    stage: &Path,
    done: &mut Upgraded,
    watch: Watch<'_>,
) -> Result<Vec<Set<'a>>, PoliceError> {
    let mut maps = carry::fill(root, node, settings, old, stage, done)?;
    watch(Step::Filled)?;
    let mut sets = Vec::new();
    for here in old.here.iter().filter(|here| !here.states.is_empty()) {
        let row = maps.master(here.id)?;
        let macs = host_macs(&row);
        let target = target(stage, here, &macs);
        sets.push((here, swap::load(&target, &here.states)?));
        // Trying them was counted as well.
        maps.forget_master(here.id)?;
        maps.set_master(here.id, &Master { object: object::digest(), ..row })?;
    }
    watch(Step::Loaded)?;
    Ok(sets)
}

fn host_macs(row: &Master) -> Vec<[u8; 6]> {
    let used = row.host_macs.iter().take(row.host_mac_count.into());
    used.map(|mac| [mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]]).collect()
}

fn target<'a>(pins: &'a Path, here: &'a Here, host_macs: &'a [[u8; 6]]) -> Target<'a> {
    Target {
        pins,
        cpus: object::cpus(),
        id: here.id,
        ifindex: here.link.index,
        name: &here.link.name,
        xdp: here.states.iter().any(|state| state.hook == Hook::Xdp),
        // Each hook stays attached the way it is.
        tc: crate::kernel::bpf::TcHook::Auto,
        host_macs,
    }
}

/// Gives each hook its new program, and when no old one runs any more the new maps the place of the old.
fn switch(
    old: &Old,
    stage: &Path,
    sets: Vec<Set<'_>>,
    kept: &mut Vec<Kept>,
    done: &mut Upgraded,
    watch: Watch<'_>,
) -> Result<(), PoliceError> {
    for (here, programs) in sets {
        let target = target(&old.pins, here, &[]);
        for state in &here.states {
            kept.push(Kept::of(here.id, state, &old.pins)?);
            programs.replace(&target, state)?;
            done.hooks.push((here.link.name.clone(), state.hook, state.via));
            watch(Step::Replaced(here.id, state.hook))?;
        }
    }
    swap::settle()?;
    watch(Step::Settled)?;
    carry::counters(old, stage)?;
    watch(Step::Carried)?;
    Ok(trees::exchange_maps(&old.pins, stage)?)
}

/// Gives the hooks their old programs again. What the new ones counted meanwhile waits for the next upgrade.
fn put_back(old: &Old, stage: &Path, kept: &[Kept]) -> Result<(), PoliceError> {
    let mut failed = None;
    for kept in kept.iter().rev() {
        let Some(here) = old.here.iter().find(|here| here.id == kept.master()) else { continue };
        if let Err(error) = kept.put_back(&target(&old.pins, here, &[])) {
            let (master, hook) = (here.link.name.clone(), kept.state().hook.name());
            failed = failed.or(Some(PoliceError::LeftNew { master, hook, source: Box::new(error.into()) }));
        }
    }
    if let Some(error) = failed {
        return Err(error);
    }
    swap::settle()?;
    if !carry::is_counted(stage)? {
        pins::remove_pins(stage)?;
    }
    Ok(())
}

/// The names and the rest; nothing here changes what is in force.
fn tidy(own: &Path, old: &Old, watch: Watch<'_>) -> Result<(), PoliceError> {
    watch(Step::Switched)?;
    if old.pins != own {
        trees::rename(&old.pins, own)?;
    }
    watch(Step::Named)?;
    remove_staged(&Trees::list(own)?)?;
    watch(Step::Removed)
}

/// Whether somebody has a row: a record names it, or its interface is there.
pub(super) fn is_anybodys(
    node: &mut Netlink,
    old: &Old,
    record: Option<&Record>,
    key: &EndpointKey,
    row: &Endpoint,
) -> Result<bool, PoliceError> {
    let Some(here) = old.here.iter().find(|here| here.id == key.master) else { return Ok(true) };
    let listens = |node: &mut Netlink| -> Result<bool, PoliceError> {
        let own = here.link.mac.is_some_and(|mac| mac.bytes() == key.mac);
        Ok(own || node.unicast_list(here.link.index)?.iter().any(|mac| mac.bytes() == key.mac))
    };
    match row.kind {
        kind::ENDPOINT if record.is_some() => Ok(true),
        _ => listens(node),
    }
}

/// Whether the link `ifindex` of this namespace is under police, by whatever version.
pub fn is_under_police(root: &Root, ifindex: u32) -> bool {
    if super::check_bpffs(root).is_err() {
        // It is not to be seen from here.
        return true;
    }
    let cookie = netns::cookie().unwrap_or(0);
    let masters = |path: &Path| -> Result<Vec<(u16, Master)>, MapsError> {
        Ok(Tree::open(path)?.map(|tree| tree.masters()).transpose()?.unwrap_or_default())
    };
    match Trees::list(&root.pins()).as_ref().map(Trees::in_force) {
        Ok(Ok(None)) => false,
        Ok(Ok(Some((_, path)))) => masters(path).map_or(true, |rows| {
            rows.iter().any(|(_, row)| row.ifindex == ifindex && row.netns_cookie == cookie)
        }),
        // What is there cannot be read: whoever enters a row says why.
        Ok(Err(_)) | Err(_) => true,
    }
}

/// Whether an upgrade of this root was ended half-way.
pub fn is_unfinished(root: &Root) -> Result<bool, PoliceError> {
    let own = root.pins();
    let trees = Trees::list(&own)?;
    let Some((_, path)) = trees.in_force()? else { return Ok(false) };
    Ok(!trees.unfinished(path)?.is_empty())
}
