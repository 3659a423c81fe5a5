//! Moving hooks from one set of maps to another, and back.

use std::{io, os::fd::OwnedFd, path::Path};

use super::{
    BpfError, Hook,
    attach::{self, HookState, Target, Via, inspect, pin_program},
    clsact::{self, is_at_our_place},
    pins::{self, link_pin, program_pin},
    sys,
    trees::Trees,
};

/// What is attached to a master by the tree at `pins`, and works on whatever maps of this node.
///
/// A filter whose replacer was ended runs a program that is not the one that is pinned; it is found by its maps.
pub fn hooks(pins: &Path, id: u16, ifindex: u32) -> Result<Vec<HookState>, BpfError> {
    // What none of its states is of would stay as it is, on maps that no later change reaches.
    for hook in Hook::ALL {
        let path = link_pin(pins, id, hook);
        if sys::pinned_link(&path).is_ok_and(|link| link.hook != Some(hook)) {
            return Err(BpfError::Misplaced { path });
        }
    }
    let mut states = inspect(pins, id, ifindex)?;
    states.retain(|state| state.live);
    let maps = map_ids(pins)?;
    for hook in [Hook::Ingress, Hook::Egress] {
        if states.iter().any(|state| state.hook == hook) {
            continue;
        }
        let path = program_pin(pins, id, hook);
        let filters = clsact::filters(ifindex, hook).map_err(|source| BpfError::Pin {
            op: "compare filters with",
            path,
            source: source.into(),
        })?;
        let ours = filters.iter().find(|filter| {
            is_at_our_place(filter) && filter.name == hook.name() && pins::uses_any(filter.program, &maps)
        });
        if let Some(filter) = ours {
            let (via, program) = (Via::Clsact, filter.program);
            states.push(HookState { hook, via, program, live: true, bound: false });
        }
    }
    Ok(states)
}

/// Ids of the maps of a tree and of those that were to take its place.
pub(super) fn map_ids(pins: &Path) -> Result<Vec<(&'static str, u32)>, BpfError> {
    let mut found = pins::map_ids(pins);
    for stage in Trees::list(pins)?.staged() {
        found.extend(pins::map_ids(stage));
    }
    Ok(found)
}

/// Whether something of a master that is not in this namespace is attached, or may be.
pub fn may_be_attached(pins: &Path, id: u16) -> Result<bool, BpfError> {
    for hook in Hook::ALL {
        let path = link_pin(pins, id, hook);
        match sys::pinned_link(&path) {
            // The kernel forgets the interface of a link when it goes.
            Ok(link) if link.hook.is_some() && link.ifindex != 0 => return Ok(true),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(BpfError::Pin { op: "read", path, source: source.into() }),
        }
        // Filters are listed in their own namespace alone.
        if program_pin(pins, id, hook).exists() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The program that a hook has, to be put back if need be.
pub struct Kept {
    id: u16,
    state: HookState,
    program: OwnedFd,
}

impl Kept {
    /// Keeps what `state` of master `id` runs; `pins` are those in force.
    pub fn of(id: u16, state: &HookState, pins: &Path) -> Result<Self, BpfError> {
        let program = sys::program(state.program).map_err(|source| BpfError::Pin {
            op: "keep the program that runs, for",
            path: match state.via {
                Via::Clsact => program_pin(pins, id, state.hook),
                Via::Tcx | Via::XdpNative => link_pin(pins, id, state.hook),
            },
            source: source.into(),
        })?;
        Ok(Self { id, state: *state, program })
    }

    /// Puts it in its place again. `target` is the master, with the pins that are in force.
    pub fn put_back(&self, target: &Target<'_>) -> Result<(), BpfError> {
        if self.state.via != Via::Clsact {
            let path = link_pin(target.pins, self.id, self.state.hook);
            return sys::update_link(&path, &self.program).map_err(|source| BpfError::Pin {
                op: "put the old program back at",
                path,
                source: source.into(),
            });
        }
        clsact::put(target.ifindex, self.state.hook, &self.program).map_err(|source| BpfError::Attach {
            hook: self.state.hook,
            master: target.name.to_owned(),
            note: " (while putting the old program back)",
            source: source.into(),
        })?;
        pin_program(target, &self.program, self.state.hook)
    }

    /// Its hook.
    pub fn state(&self) -> &HookState {
        &self.state
    }

    /// The dense id of its master.
    pub fn master(&self) -> u16 {
        self.id
    }
}

/// Waits until no program that was replaced runs any more.
pub fn settle() -> Result<(), BpfError> {
    sys::grace_period().map_err(|source| BpfError::Settle { source })
}

/// Loads the programs of these hooks of a master, on the maps of `target`.
pub fn load(target: &Target<'_>, states: &[HookState]) -> Result<attach::Programs, BpfError> {
    let hooks: Vec<Hook> = states.iter().map(|state| state.hook).collect();
    attach::Programs::load(target, &hooks)
}
