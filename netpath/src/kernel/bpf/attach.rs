//! Attaching, checking, replacing and removing the programs of one master.
//!
//! A TCX or XDP program is attached by a `bpf_link` pinned below `links/<master id>/`: it stays in force
//! when nothing of netpath runs. A clsact filter stays by itself; its program is pinned below
//! `progs/<master id>/` to be recognized again. The caller holds the lock and is in the master's namespace.

use std::{
    fs, io, iter,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType};

use super::{
    BpfError, Hook, TcHook,
    beside::beside,
    clsact::{self, is_at_our_place},
    links::{self, Links},
    loader::Bound,
    maps::{Maps, UNOPENED},
    object,
    pins::{self, fresh_pin, link_pin, make_parent, program_pin, remove_file, unpin},
    selftest, swap, sys, told,
};
use crate::kernel::netlink::{Filter, NetlinkError};

/// A master and how its programs shall be attached.
#[derive(Clone, Debug)]
pub struct Target<'a> {
    /// Directory of the pins.
    pub pins: &'a Path,
    /// CPUs that counters are laid out for.
    pub cpus: u32,
    /// Dense id of the master.
    pub id: u16,
    /// Its interface index in the current namespace.
    pub ifindex: u32,
    /// Its name.
    pub name: &'a str,
    /// Whether native XDP is wanted.
    pub xdp: bool,
    /// How TC programs are attached.
    pub tc: TcHook,
    /// MACs the host sends with, for the self-test.
    pub host_macs: &'a [[u8; 6]],
}

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// A pinned TCX link.
    Tcx,
    /// A filter on a clsact qdisc.
    Clsact,
    /// A pinned XDP link, native mode.
    XdpNative,
}

impl Via {
    /// The word for it in output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
            Self::XdpNative => "native",
        }
    }
}

/// One hook of a master as found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HookState {
    /// Which hook.
    pub hook: Hook,
    /// How.
    pub via: Via,
    /// Id of the program.
    pub program: u32,
    /// It is attached to the master that stands there now: a NIC that was deleted leaves a dead pin.
    pub live: bool,
    /// It works on the maps that are pinned: one whose pin was lost may have been made again.
    pub bound: bool,
}

/// What [`ensure`] did to a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was not attached, or to a NIC that is gone.
    Attached(Hook, Via),
    /// The program was replaced without a gap.
    Replaced(Hook, Via),
    /// It was not wanted any more.
    Detached(Hook),
}

/// What is attached to master `id`, whose interface index is now `ifindex`.
pub fn inspect(pins: &Path, id: u16, ifindex: u32) -> Result<Vec<HookState>, BpfError> {
    states(pins, &pins::map_ids(pins), id, ifindex)
}

/// The same by whoever has the maps open, without a look at each of their pins.
pub fn inspect_beside(maps: &Maps, id: u16, ifindex: u32) -> Result<Vec<HookState>, BpfError> {
    let mut ids = maps.ids().to_vec();
    ids.extend(UNOPENED.iter().filter_map(|name| pins::map_id(maps.pins(), name)));
    states(maps.pins(), &ids, id, ifindex)
}

fn states(
    pins: &Path,
    maps: &[(&'static str, u32)],
    id: u16,
    ifindex: u32,
) -> Result<Vec<HookState>, BpfError> {
    let (mut found, mut private) = (Vec::new(), Vec::new());
    for hook in Hook::ALL {
        let path = link_pin(pins, id, hook);
        match sys::pinned_link(&path) {
            Ok(link) if link.hook == Some(hook) => {
                let via = if hook == Hook::Xdp { Via::XdpNative } else { Via::Tcx };
                let bound = pins::is_bound(link.program, maps, &mut private);
                let live = link.ifindex == ifindex;
                found.push(HookState { hook, via, program: link.program, live, bound });
                continue;
            }
            // Somebody has put it there; whoever attaches puts ours in its place.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(BpfError::Pin { op: "read", path, source: source.into() }),
        }
        let path = program_pin(pins, id, hook);
        if !path.exists() {
            continue;
        }
        let program = ProgramInfo::from_pin(&path)
            .map_err(|source| BpfError::Pin { op: "read", path: path.clone(), source: source.into() })?
            .id();
        let bound = pins::is_bound(program, maps, &mut private);
        let filters = clsact::filters(ifindex, hook).map_err(|source| BpfError::Pin {
            op: "compare filters with",
            path,
            source: source.into(),
        })?;
        let runs_it = |filter: &Filter| filter.decides && filter.program == program;
        let live = filters.iter().any(|filter| is_at_our_place(filter) && runs_it(filter));
        found.push(HookState { hook, via: Via::Clsact, program, live, bound });
    }
    Ok(found)
}

/// Names of programs that run before ours on a TC hook: with any verdict but "next" they decide alone.
///
/// All of TCX runs before clsact, and of the filters of one priority the youngest runs first.
pub fn programs_before(name: &str, ifindex: u32, state: &HookState) -> Result<Vec<String>, BpfError> {
    // A program that is listed may be gone before it is asked for its name.
    const TRIES: usize = 5;
    let Some(attach_type) = tc_type(state.hook) else { return Ok(Vec::new()) };
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| BpfError::Before {
        hook: state.hook,
        master: name.to_owned(),
        source,
    };
    let list = || SchedClassifier::query_tcx(name, attach_type);
    let mut listed = iter::repeat_with(list).take(TRIES - 1);
    let listed = listed.find(|listed| !listed.as_ref().is_err_and(|error| is_errno(error, libc::ENOENT)));
    let tcx = match listed.unwrap_or_else(list) {
        Ok((_, programs)) => programs,
        Err(error) if errno_of(&error).is_some_and(is_of_no_tcx) => Vec::new(),
        Err(error) => return Err(failed(error.into())),
    };
    let tcx = tcx.iter().take_while(|program| program.id() != state.program);
    let mut before: Vec<String> =
        tcx.map(|program| program.name_as_str().unwrap_or("unnamed").to_owned()).collect();
    if state.via == Via::Clsact {
        let filters = clsact::filters(ifindex, state.hook).map_err(|error| failed(error.into()))?;
        let filters = filters.into_iter().take_while(|filter| filter.program != state.program);
        before.extend(filters.map(|filter| filter.name));
    }
    Ok(before)
}

/// Brings the hooks of a master from `states`, which is what [`inspect`] found, to what `target` says; with
/// `replace` also the programs of hooks that are in place.
///
/// Programs are loaded and tried on the host's frames before the first of them is attached; only links of TCX, which let
/// everything pass, are there by then. XDP that is not wanted any more goes last: until then it may be all that judges what
/// arrives.
pub fn ensure(target: &Target<'_>, states: &[HookState], replace: bool) -> Result<Vec<Change>, BpfError> {
    let mut changes = put_wanted(target, states, replace)?;
    for state in states {
        if state.hook == Hook::Xdp && !target.xdp {
            let_go(target.pins, target.id, Hook::Xdp, target.ifindex)?;
            unpin(target.pins, target.id, Hook::Xdp)?;
            changes.push(Change::Detached(Hook::Xdp));
        }
    }
    Ok(changes)
}

/// The part of [`ensure`] that attaches and replaces.
fn put_wanted(target: &Target<'_>, states: &[HookState], replace: bool) -> Result<Vec<Change>, BpfError> {
    let mut changes = Vec::new();
    let live = |hook| states.iter().find(|state| state.hook == hook && state.live);
    let wanted = Hook::ALL.into_iter().filter(|hook| *hook != Hook::Xdp || target.xdp);
    let todo: Vec<Hook> =
        wanted.filter(|hook| replace || live(*hook).is_none_or(|state| !state.bound)).collect();
    if todo.is_empty() {
        return Ok(changes);
    }
    let by_tcx = |hook: &Hook| *hook != Hook::Xdp && live(*hook).is_none() && target.tc != TcHook::Clsact;
    let new: Vec<Hook> = todo.iter().copied().filter(by_tcx).collect();
    let (links, programs) = beside(|| Links::make(&new, target.ifindex), || Programs::load(target, &todo));
    let (programs, mut links) = (programs?, links.map_err(|source| BpfError::Placeholder { source })?);
    for hook in todo {
        let change = match live(hook) {
            Some(state) => {
                programs.replace(target, state)?;
                Change::Replaced(hook, state.via)
            }
            None => {
                // A pin that is still there belongs to a NIC that is gone; its link cannot be updated.
                unpin(target.pins, target.id, hook)?;
                Change::Attached(hook, attach(target, programs.of(hook)?, hook, links.take(hook))?)
            }
        };
        changes.push(change);
    }
    Ok(changes)
}

/// Programs of this build for one master: in the kernel, tried on the host's frames, and not attached yet.
pub struct Programs(Vec<(Hook, OwnedFd)>);

impl Programs {
    /// Loads the programs of these hooks.
    pub fn load(target: &Target<'_>, hooks: &[Hook]) -> Result<Self, BpfError> {
        told::with_what_is_known(|object, told| {
            let bound = object::bind_by(object, told, target.pins, target.id, target.cpus)?;
            Self::of_bound(&bound, hooks, target.host_macs)
        })
    }

    fn of_bound(bound: &Bound, hooks: &[Hook], host_macs: &[[u8; 6]]) -> Result<Self, BpfError> {
        // The verifier takes nearly all of the time, and takes programs side by side: that of TC ingress about as long as the others
        // together, so that a third thread would only take its CPU where there are two.
        let (long, others): (Vec<_>, Vec<_>) = hooks.iter().partition(|hook| **hook == Hook::Ingress);
        let load = |hooks: Vec<Hook>| {
            let loaded = hooks.into_iter().map(|hook| load_and_test(bound, hook, host_macs));
            loaded.collect::<Result<Vec<_>, _>>()
        };
        let (others, long) = beside(|| load(others), || load(long));
        let mut all = long?;
        all.extend(others?);
        Ok(Self(all))
    }

    /// Puts the program of a hook in the place of the one that is there: each packet meets one of the two.
    pub fn replace(&self, target: &Target<'_>, state: &HookState) -> Result<(), BpfError> {
        replace_program(target, self.of(state.hook)?, state)
    }

    fn of(&self, hook: Hook) -> Result<&OwnedFd, BpfError> {
        let program = self.0.iter().find(|(own, _)| *own == hook).map(|(_, program)| program);
        program.ok_or(BpfError::Missing { program: hook.name() })
    }
}

fn load_and_test(bound: &Bound, hook: Hook, host_macs: &[[u8; 6]]) -> Result<(Hook, OwnedFd), BpfError> {
    let program = bound.load(hook)?;
    selftest::run(&program, hook, host_macs)?;
    Ok((hook, program))
}

fn tc_type(hook: Hook) -> Option<TcAttachType> {
    match hook {
        Hook::Ingress => Some(TcAttachType::Ingress),
        Hook::Egress => Some(TcAttachType::Egress),
        Hook::Xdp => None,
    }
}

fn attach(
    target: &Target<'_>,
    program: &OwnedFd,
    hook: Hook,
    link: Option<io::Result<OwnedFd>>,
) -> Result<Via, BpfError> {
    let failed = |note, source: Box<dyn std::error::Error + Send + Sync>| BpfError::Attach {
        hook,
        master: target.name.to_owned(),
        note,
        source,
    };
    if hook == Hook::Xdp {
        let link = links::create(program.as_fd(), target.ifindex, hook).map_err(|error| {
            let note = match error.raw_os_error() {
                Some(libc::EINVAL) => return BpfError::NoXdp { master: target.name.to_owned() },
                Some(libc::EBUSY | libc::EEXIST) => {
                    " (another XDP program is attached: `bpftool net show` names it; TC enforces without XDP)"
                }
                _ => " (set `xdp` to `off` for this master in masters.json; TC enforces without XDP)",
            };
            failed(note, error.into())
        })?;
        pin_link(target, hook, &link)?;
        return Ok(Via::XdpNative);
    }
    match link {
        Some(Ok(link)) => {
            links::update(link.as_fd(), program.as_fd()).map_err(|error| failed("", error.into()))?;
            pin_link(target, hook, &link)?;
            return Ok(Via::Tcx);
        }
        Some(Err(error)) if target.tc != TcHook::Auto || !is_unsupported(&error) => {
            return Err(failed("", error.into()));
        }
        _ => {}
    }
    if let Some(kind) = clsact::add(target.ifindex).map_err(|error| failed("", error.into()))? {
        return Err(BpfError::Qdisc { hook, master: target.name.to_owned(), kind });
    }
    // Pinned first: whoever is ended between the two leaves a pin without a filter, which the next attach
    // finds, never a filter that nobody knows.
    pin_program(target, program, hook)?;
    clsact::put(target.ifindex, hook, program).map_err(|error| {
        let note = match error.errno() {
            Some(libc::EEXIST | libc::EINVAL) => " (`tc filter show` says who has priority 1, which netpath needs: whoever runs first may decide alone)",
            _ => "",
        };
        failed(note, error.into())
    })?;
    Ok(Via::Clsact)
}

/// Pins a link: from then on it stays.
fn pin_link(target: &Target<'_>, hook: Hook, link: &OwnedFd) -> Result<(), BpfError> {
    let path = link_pin(target.pins, target.id, hook);
    make_parent(&path)?;
    sys::pin(link, &path).map_err(|source| BpfError::Pin { op: "make", path, source: source.into() })
}

fn replace_program(target: &Target<'_>, program: &OwnedFd, state: &HookState) -> Result<(), BpfError> {
    let hook = state.hook;
    match state.via {
        // The pin follows the update: nothing is pinned again.
        Via::Tcx | Via::XdpNative => {
            let path = link_pin(target.pins, target.id, hook);
            let updated = sys::update_link(&path, program);
            updated.map_err(|source| BpfError::Pin { op: "update", path, source: source.into() })
        }
        Via::Clsact => {
            // Whatever can fail first, and then no more than a rename.
            let (fresh, path) =
                (pin_beside(target, program, hook)?, program_pin(target.pins, target.id, hook));
            let put: Result<(), Box<dyn std::error::Error + Send + Sync>> =
                clsact::put(target.ifindex, hook, program).map_err(Into::into);
            put.and_then(|()| Ok(fs::rename(&fresh, &path)?)).map_err(|source| {
                // If it stays the next attempt removes it.
                drop(remove_file(&fresh));
                BpfError::Pin { op: "update", path, source }
            })
        }
    }
}

/// Pins the program under its final name in one step, over what was pinned there.
pub(super) fn pin_program(target: &Target<'_>, program: &OwnedFd, hook: Hook) -> Result<(), BpfError> {
    let fresh = pin_beside(target, program, hook)?;
    let path = program_pin(target.pins, target.id, hook);
    fs::rename(&fresh, &path).map_err(|source| BpfError::Pin { op: "make", path, source: source.into() })
}

/// Pins the program where it can be moved to its final name.
fn pin_beside(target: &Target<'_>, program: &OwnedFd, hook: Hook) -> Result<PathBuf, BpfError> {
    let fresh = fresh_pin(target.pins, target.id, hook);
    make_parent(&fresh)?;
    remove_file(&fresh)?;
    match sys::pin(program, &fresh) {
        Ok(()) => Ok(fresh),
        Err(source) => Err(BpfError::Pin { op: "make", path: fresh, source: source.into() }),
    }
}

/// Takes the program of the link that is pinned for a hook off whatever hook of this interface it is on; of a filter there is none, and a
/// dead link has no hook.
fn let_go(pins: &Path, id: u16, hook: Hook, ifindex: u32) -> Result<(), BpfError> {
    let path = link_pin(pins, id, hook);
    let failed = |op, path, source: io::Error| Err(BpfError::Pin { op, path, source: source.into() });
    match sys::pinned_link(&path) {
        Ok(link) if link.hook.is_some() && link.ifindex == ifindex => match sys::detach_link(&path) {
            Ok(()) => Ok(()),
            Err(source) => failed("detach", path, source),
        },
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => failed("read", path, source),
    }
}

/// Detaches everything from master `id`. `name` is its name if it still exists.
pub fn detach(pins: &Path, id: u16, name: Option<&str>, ifindex: u32) -> Result<(), BpfError> {
    let states = inspect(pins, id, ifindex)?;
    if let Some(name) = name {
        remove_filters(pins, &states, name, ifindex)?;
    }
    for hook in Hook::ALL {
        let_go(pins, id, hook, ifindex)?;
        unpin(pins, id, hook)?;
    }
    for directory in ["links", "progs"] {
        let path = pins.join(directory).join(id.to_string());
        match fs::remove_dir_all(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(BpfError::Pin { op: "remove", path, source: source.into() }),
        }
    }
    Ok(())
}

/// Removes our filters: those of pinned programs, and any on our handle that works on our maps, whose pin was
/// lost or had not been made when whoever attached it was ended.
fn remove_filters(pins: &Path, states: &[HookState], name: &str, ifindex: u32) -> Result<(), BpfError> {
    let maps = swap::map_ids(pins)?;
    for hook in [Hook::Ingress, Hook::Egress] {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| BpfError::Attach {
            hook,
            master: name.to_owned(),
            note: " (while detaching)",
            source,
        };
        let filters = clsact::filters(ifindex, hook).map_err(|error| failed(error.into()))?;
        let is_ours = |filter: &Filter| {
            is_at_our_place(filter)
                && (states.iter().any(|state| state.program == filter.program)
                    || pins::uses_any(filter.program, &maps))
        };
        if filters.iter().any(is_ours) {
            clsact::remove(ifindex, hook).map_err(|error| failed(error.into()))?;
        }
    }
    Ok(())
}

/// Hooks of a link where a filter with our priority, handle and name is left: of a netpath that lost its pins,
/// or of one with another root.
pub fn strays(ifindex: u32) -> Result<Vec<Hook>, NetlinkError> {
    let mut found = Vec::new();
    for hook in [Hook::Ingress, Hook::Egress] {
        let filters = clsact::filters(ifindex, hook)?;
        if filters.iter().any(|filter| is_at_our_place(filter) && filter.name == hook.name()) {
            found.push(hook);
        }
    }
    Ok(found)
}

fn errno_of(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return error.raw_os_error();
        }
        cause = error.source();
    }
    None
}

fn is_errno(error: &(dyn std::error::Error + 'static), errno: i32) -> bool {
    errno_of(error) == Some(errno)
}

/// Kernels before 6.6 do not know the attach type of TCX.
fn is_unsupported(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(is_of_no_tcx)
}

/// Whether a kernel without TCX says so.
fn is_of_no_tcx(errno: i32) -> bool {
    matches!(errno, libc::EINVAL | libc::EOPNOTSUPP)
}
