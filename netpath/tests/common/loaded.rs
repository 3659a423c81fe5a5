//! This build's programs in the kernel, attached to nothing.

use std::{collections::BTreeMap, fs, path::Path};

use aya::programs::{Program, SchedClassifier, Xdp};
use aya_obj::programs::XdpAttachType;
use netpath::kernel::bpf::{Hook, object, sys};

/// Loads the programs of these hooks on the maps below `pins`.
#[track_caller]
pub(crate) fn programs(pins: &Path, master: u16, hooks: &[Hook]) -> BTreeMap<Hook, Program> {
    let bound = object::bind(pins, master, object::cpus()).expect("the object binds");
    let opened = |hook: Hook| {
        let program = bound.load(hook).expect("the verifier accepts it");
        // The library opens what is pinned.
        let path = pins.join(format!("loaded-{}", hook.name()));
        sys::pin(&program, &path).expect("it can be pinned");
        let opened = match hook {
            Hook::Xdp => Program::Xdp(Xdp::from_pin(&path, XdpAttachType::Interface).expect("it is XDP")),
            _ => Program::SchedClassifier(SchedClassifier::from_pin(&path).expect("it is a classifier")),
        };
        fs::remove_file(&path).expect("the pin is there");
        opened
    };
    hooks.iter().map(|hook| (*hook, opened(*hook))).collect()
}
