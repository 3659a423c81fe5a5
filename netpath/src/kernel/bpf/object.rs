//! The object file: sizes, constants, loading.

use std::{
    hash::{DefaultHasher, Hasher},
    os::fd::AsFd,
    path::Path,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{MapData, MapInfo},
    programs::Program,
};
use aya_obj::Object;
use netpath_ebpf::abi::{ABI_VERSION, MAX_MASTERS, ZONE_PORT_SETS, ZONE_RULES, flow_bits};
use serde::Deserialize;

use super::{
    BpfError, Hook,
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

/// The object this binary carries; an error if it was built without.
pub fn bytes() -> Result<&'static [u8], BpfError> {
    match OBJECT {
        [] => Err(BpfError::NoObject),
        bytes => Ok(bytes),
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
///
/// Not by the library's loader, which reads all types of the kernel each time, and takes as long for it as for the rest of an
/// attach that is not the kernel's.
fn make_maps(pins: &Path, settings: &Settings, cpus: u32) -> Result<(), BpfError> {
    let failed = |source: EbpfError| BpfError::Load { source: Box::new(source) };
    let mut object = Object::parse(bytes()?).map_err(|error| failed(error.into()))?;
    let types = match aya::features().btf() {
        Some(features) => {
            let types = object
                .fixup_and_sanitize_btf(features)
                .map_err(|error| failed(EbpfError::BtfError(error)))?;
            // Each map names its types, so that none can be made without them.
            let types = types.map(|types| sys::load_types(&types.to_bytes())).transpose();
            types.map_err(|source| BpfError::TypesRefused { source })?
        }
        None => None,
    };
    let sizes = sizes(settings, cpus);
    for name in NAMES {
        let path = pin_of(pins, name);
        let Some(mut map) = object.maps.remove(*name).filter(|_| !path.exists()) else { continue };
        if let Some((_, rows)) = sizes.iter().find(|(sized, _)| sized == name) {
            map.set_max_entries(rounded(name, *rows));
        }
        let made = MapData::create(map, name, types.as_ref().map(AsFd::as_fd));
        let made = made.map_err(|error| failed(error.into()))?;
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

/// Parses the object for the master with dense id `master` and binds it to the pinned maps.
///
/// The programs are parsed, not yet in the kernel: whoever gives them to it does so once, by what it is believed to take.
pub fn load(pins: &Path, settings: &Settings, master: u16, cpus: u32) -> Result<Ebpf, BpfError> {
    told::with_what_is_known(|loader, told| load_by(loader, told, pins, settings, master, cpus))
}

/// The same by what is known of this kernel.
pub(super) fn load_by(
    loader: EbpfLoader<'_>,
    told: &Told,
    pins: &Path,
    settings: &Settings,
    master: u16,
    cpus: u32,
) -> Result<Ebpf, BpfError> {
    // It borrows what follows.
    let mut loader = loader;
    let row = maps::master(pins, master)?;
    let mark = row.map_or(0, |row| reject_mark(row.stamp));
    let host_mac = row.map_or(0, |row| u64::from_ne_bytes(row.host_macs[0]));
    let (master, flow_bits) = (u32::from(master), pinned_flow_bits(pins, cpus)?);
    loader.override_global("FLOW_BITS", &flow_bits, true);
    loader.override_global("REJECT_MARK", &mark, true).override_global("HOST_MAC", &host_mac, true);
    loader.override_global("MASTER", &master, true).override_global("CPUS", &cpus, true);
    told.to(&mut loader);
    for name in NAMES {
        loader.map_pin_path(name, pin_of(pins, name));
    }
    for (name, rows) in sizes(settings, cpus) {
        loader.map_max_entries(name, rows);
    }
    told.parse(&mut loader)
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
pub fn verify_by(loader: EbpfLoader<'_>, told: &Told) -> Result<Vec<Verified>, BpfError> {
    // It borrows what follows.
    let mut loader = loader;
    told.to(&mut loader);
    // Any mark: with none the verifier would not look at what answers denied packets.
    loader.override_global("REJECT_MARK", &1u32, true);
    let mut object = told.parse(&mut loader)?;
    Hook::ALL.into_iter().map(|hook| verified(&mut object, hook, told)).collect()
}

fn verified(object: &mut Ebpf, hook: Hook, told: &Told) -> Result<Verified, BpfError> {
    let refused = |source| BpfError::Program { program: hook.name(), source: Box::new(source) };
    let program = object.program_mut(hook.name()).ok_or(BpfError::Missing { program: hook.name() })?;
    let info = match program {
        Program::SchedClassifier(program) => program.load().and_then(|()| program.info()),
        Program::Xdp(program) => program.load().and_then(|()| program.info()),
        _ => return Err(BpfError::Missing { program: hook.name() }),
    };
    let info = info.map_err(refused)?;
    let verified = info.verified_instruction_count().unwrap_or(0);
    let translated = info.size_translated().unwrap_or(0);
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
