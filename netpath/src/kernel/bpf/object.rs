//! The object file: sizes, constants, loading.

use std::{
    hash::{DefaultHasher, Hasher},
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use aya::{
    maps::{MapData, MapInfo},
    programs::ProgramError,
};
use aya_obj::{Map, Object};
use netpath_ebpf::abi::{ABI_VERSION, MAX_MASTERS, ZONE_PORT_SETS, ZONE_RULES, flow_bits};
use serde::Deserialize;

use super::{
    BpfError, Hook,
    loader::{Bound, Constants, load_types, unloaded},
    maps::{self, EVENTS, Maps, NAMES, UNOPENED, pin_of},
    pins::{recover_maps, remove_maps, remove_pins},
    support, sys,
    told::{self, Told},
    tree,
    trees::{self, Trees},
};

#[cfg(not(no_bpf_object))]
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("NETPATH_BPF_OBJECT"));
#[cfg(no_bpf_object)]
static OBJECT: &[u8] = &[];

/// Sizes of the maps, from `settings.json`; they hold when maps are made: by the first attach, or an upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Endpoints a node may have.
    pub endpoints: u32,
    /// Zones a node may have.
    pub zones: u32,
    /// Prefixes of one family that zones with long lists may have together, both generations counted.
    pub prefixes: u32,
    /// Bytes of the ring buffer for drop events; a power of two, at least a page.
    pub event_bytes: u32,
}

/// The smallest and largest node that the sizes are tested for.
impl Default for Settings {
    fn default() -> Self {
        Self { endpoints: 1024, zones: 256, prefixes: 16_384, event_bytes: 256 * 1024 }
    }
}

/// Parses the object this binary carries; an error if it was built without.
pub(super) fn parse() -> Result<Object, BpfError> {
    match OBJECT {
        [] => Err(BpfError::NoObject),
        bytes => Object::parse(bytes).map_err(unloaded),
    }
}

/// Digest of the object this binary carries: tells an older build's programs from ours. 0 = no object.
pub fn digest() -> u64 {
    option_env!("NETPATH_BPF_DIGEST").and_then(|digest| digest.parse().ok()).unwrap_or(0)
}

/// Opens the maps below `pins`, making those that are not there.
pub fn maps(pins: &Path, settings: &Settings) -> Result<Maps, BpfError> {
    // As a rule all of them are there; why they cannot be opened is found out below.
    if let Ok(Some(maps)) = Maps::open(pins)
        && UNOPENED.iter().all(|name| pin_of(pins, name).exists())
    {
        return Ok(maps);
    }
    // A map that lost its pin is still with the programs. One that no program uses is gone with its pin, and the others
    // say what it does not know of: all are made anew, and who has a row comes from the records again.
    // Nor do those of the programs come back beside some that were never finished: those know of nobody.
    let meta = tree::meta(pins)?;
    let is_ours = meta.is_some_and(|meta| meta.abi_version == ABI_VERSION);
    if meta.is_none() || is_ours && !recover_maps(pins)?.is_empty() {
        remove_maps(pins)?;
    }
    if let Some(maps) = Maps::open(pins)? {
        return Ok(maps);
    }
    let trees = Trees::list(pins)?;
    if trees::has_programs(pins)? {
        // They judge by maps without a pin until others take their place.
        return finish(pins, settings);
    }
    // What somebody left who was ended half-way may have other sizes.
    for path in trees.staged().chain([pins]) {
        remove_pins(path)?;
    }
    let stage = trees.stage(pins)?;
    drop(finish(&stage, settings)?);
    create_directory(pins)?;
    trees::rename(&stage.join("maps"), &pins.join("maps"))?;
    remove_pins(&stage)?;
    Ok(Maps::open(pins)?.ok_or_else(|| maps::without_meta(pins))?)
}

/// Makes the maps that are missing below `pins`, and writes down what they are.
pub fn finish(pins: &Path, settings: &Settings) -> Result<Maps, BpfError> {
    create_directory(&pins.join("maps"))?;
    let cpus = cpus();
    make_maps(pins, settings, cpus)?;
    Ok(Maps::initialize(pins, cpus)?)
}

/// Makes the maps that are not pinned.
fn make_maps(pins: &Path, settings: &Settings, cpus: u32) -> Result<(), BpfError> {
    let mut object = parse()?;
    let types = load_types(&mut object)?;
    let sizes = sizes(settings, cpus);
    for name in NAMES {
        let path = pin_of(pins, name);
        let Some(mut map) = object.maps.remove(*name).filter(|_| !path.exists()) else { continue };
        if let Some((_, rows)) = sizes.iter().find(|(sized, _)| sized == name) {
            map.set_max_entries(rounded(name, *rows));
        }
        let made = MapData::create(map, name, types.as_ref().map(AsFd::as_fd)).map_err(unloaded)?;
        made.pin(&path).map_err(|source| BpfError::Pin { op: "make", path, source: source.into() })?;
    }
    Ok(())
}

/// Rows of a map as the kernel takes them: of a ring buffer a power of two, and at least a page.
fn rounded(name: &str, rows: u32) -> u32 {
    if name == EVENTS { rows.next_power_of_two().max(page()) } else { rows }
}

fn create_directory(path: &Path) -> Result<(), BpfError> {
    std::fs::create_dir_all(path).map_err(|source| BpfError::Pin {
        op: "make the directory of",
        path: path.to_owned(),
        source: source.into(),
    })
}

/// Rows of each map whose size the settings decide.
fn sizes(settings: &Settings, cpus: u32) -> [(&'static str, u32); 20] {
    // Row 0 of each table is nobody's.
    let endpoints = settings.endpoints + 1;
    let zones = settings.zones + 1;
    let masters = MAX_MASTERS;
    [
        ("endpoints", settings.endpoints),
        ("owners", endpoints),
        ("drops", endpoints),
        ("budgets", endpoints),
        ("flows", cpus << flow_bits(cpus)),
        ("counters", endpoints * cpus),
        ("master_counters", masters * cpus),
        ("zone_words", zones),
        ("zone_info", zones),
        ("zone_slots", 2 * zones),
        ("zone_trie_v4", settings.prefixes),
        ("zone_trie_v6", settings.prefixes),
        ("ports", 2 * zones * ZONE_PORT_SETS),
        ("rules", zones * ZONE_RULES),
        ("rule_counters", zones * ZONE_RULES),
        ("cookies", settings.endpoints),
        ("claims_v4", settings.prefixes),
        ("claims_v6", settings.prefixes),
        ("rejects", endpoints),
        (EVENTS, settings.event_bytes),
    ]
}

/// Names of the pinned maps that have other sizes than these settings ask for.
pub fn resized(pins: &Path, settings: &Settings) -> Result<Vec<&'static str>, BpfError> {
    let mut found = Vec::new();
    for (name, rows) in sizes(settings, cpus()) {
        let path = pin_of(pins, name);
        let info = MapInfo::from_pin(&path).map_err(|source| BpfError::Pin {
            op: "read",
            path,
            source: source.into(),
        })?;
        if info.max_entries() != rounded(name, rows) {
            found.push(name);
        }
    }
    Ok(found)
}

/// The smallest ring buffer.
fn page() -> u32 {
    // SAFETY: It reads no memory of ours.
    u32::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// Binds the programs for the master with dense id `master` to the pinned maps, by what is believed of this kernel; none of them is in
/// it yet.
pub fn bind(pins: &Path, master: u16, cpus: u32) -> Result<Bound, BpfError> {
    told::with_what_is_known(|object, told| bind_by(object, told, pins, master, cpus))
}

/// The same by what is known of this kernel.
pub(super) fn bind_by(
    object: Object,
    told: &Told,
    pins: &Path,
    master: u16,
    cpus: u32,
) -> Result<Bound, BpfError> {
    let row = maps::master(pins, master)?;
    let mut constants = Constants::default();
    constants
        .set("FLOW_BITS", pinned_flow_bits(pins, cpus)?)
        .set("REJECT_MARK", row.map_or(0, |row| reject_mark(row.stamp)))
        .set_long("HOST_MAC", row.map_or(0, |row| u64::from_ne_bytes(row.host_macs[0])))
        .set("MASTER", u32::from(master))
        .set("CPUS", cpus);
    told.to(&mut constants);
    Bound::new(object, told.cast(), &constants, |name, map, types| {
        if !NAMES.contains(&name) {
            return private(name, map.clone(), types);
        }
        let path = pin_of(pins, name);
        let opened = MapData::from_pin(&path);
        opened.map_err(|source| BpfError::Pin { op: "open", path, source: source.into() })
    })
}

/// A map of this process's alone.
fn private(name: &str, mut map: Map, types: Option<&OwnedFd>) -> Result<MapData, BpfError> {
    map.set_max_entries(rounded(name, map.max_entries()));
    MapData::create(map, name, types.map(AsFd::as_fd)).map_err(unloaded)
}

/// How many rows each CPU has of the pinned `flows`, as a power of two: an older build may have made it.
fn pinned_flow_bits(pins: &Path, cpus: u32) -> Result<u32, BpfError> {
    let path = pin_of(pins, "flows");
    let info = MapInfo::from_pin(&path).map_err(|source| BpfError::Pin {
        op: "read",
        path,
        source: source.into(),
    })?;
    Ok((info.max_entries() / cpus.max(1)).max(2).ilog2())
}

/// The mark of answers to denied packets on a master whose row has `stamp`; 0, and so no answers, without one.
///
/// Of the row's random number and not drawn at each load: a hook that is repaired alone must know what the other
/// one marks with.
pub fn reject_mark(stamp: u64) -> u32 {
    if stamp == 0 {
        return 0;
    }
    let mut hasher = DefaultHasher::new();
    hasher.write(b"reject");
    hasher.write_u64(stamp);
    let [a, b, c, d, ..] = hasher.finish().to_be_bytes();
    // Never what packets without a mark have.
    u32::from_be_bytes([a, b, c, d]).max(1)
}

/// What the kernel's verifier said of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Where it is attached.
    pub hook: Hook,
    /// Instructions the verifier walked; 0 where the kernel does not tell (before Linux 5.16).
    pub verified: u32,
    /// Bytes of the translated program.
    pub translated: u32,
    /// By what TC programs learn from which network namespace a frame was sent: `helper`, `types` or `nothing`.
    pub netns_cookie: &'static str,
}

/// Loads every program into maps of this process alone and says what the verifier made of it.
pub fn verify() -> Result<Vec<Verified>, BpfError> {
    support::check()?;
    told::with_what_is_known(verify_by)
}

/// The same by what is known of this kernel.
pub fn verify_by(object: Object, told: &Told) -> Result<Vec<Verified>, BpfError> {
    let mut constants = Constants::default();
    told.to(&mut constants);
    // Any mark: with none the verifier would not look at what answers denied packets.
    constants.set("REJECT_MARK", 1);
    let bound =
        Bound::new(object, told.cast(), &constants, |name, map, types| private(name, map.clone(), types))?;
    Hook::ALL.into_iter().map(|hook| verified(&bound, hook, told)).collect()
}

fn verified(bound: &Bound, hook: Hook, told: &Told) -> Result<Verified, BpfError> {
    let info = sys::program_info(&bound.load(hook)?);
    let refused = |source| BpfError::Program { program: hook.name(), source: Box::new(source) };
    let info = info.map_err(|error| refused(ProgramError::IOError(error)))?;
    let (verified, translated) = (info.verified_insns, info.xlated_prog_len);
    Ok(Verified { hook, verified, translated, netns_cookie: told.netns_cookie() })
}

/// CPUs the kernel may ever bring up: the index of per-CPU slots stays below it.
pub fn cpus() -> u32 {
    aya::util::nr_cpus().ok().and_then(|cpus| u32::try_from(cpus).ok()).unwrap_or(1).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_name_a_misspelt_key() {
        let error = serde_json::from_str::<Settings>(r#"{"endpoint": 5}"#).expect_err("misspelt");
        assert!(error.to_string().contains("unknown field `endpoint`"), "{error}");
        let settings: Settings = serde_json::from_str(r#"{"endpoints": 4096}"#).expect("good");
        assert_eq!(settings, Settings { endpoints: 4096, ..Settings::default() });
    }
}
