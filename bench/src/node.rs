//! A node to measure on: maps, one master, endpoints and a zone, all made by the library that ships.

use std::{
    fs,
    os::fd::OwnedFd,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    maps::{Array, MapData},
    programs::{Program, SchedClassifier, Xdp},
};
use aya_obj::programs::XdpAttachType;
use netpath::{
    kernel::bpf::{
        Hook, bpffs,
        maps::{Maps, pin_of},
        object::{self, Settings},
        sys,
    },
    police,
    root::Root,
    zone::{self, ZoneConf},
};
use netpath_ebpf::abi::{
    Endpoint, EndpointKey, HOST_MACS, Master, Owner, REASON_SLOTS, kind, mode, unknown_source,
};
use serde_json::json;

use crate::{
    frames::{HOST_MAC, POD4, POD6, pod_mac, prefix4, prefix6},
    root::Directory,
};

/// Dense id of the one master.
const MASTER: u16 = 1;

/// How large a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Shape {
    /// Endpoints, all in one zone.
    pub(crate) endpoints: u32,
    /// Prefixes of each family in the zone.
    pub(crate) prefixes: u32,
}

/// A directory with a BPF file system of its own.
fn scene() -> Result<Directory> {
    let directory = Directory::new("maps")?;
    let path = directory.root().bpffs();
    bpffs::ensure(&path).with_context(|| format!("no BPF file system at {}", path.display()))?;
    Ok(directory)
}

/// A program of that hook as the library has it, which opens what is pinned.
fn opened(program: &OwnedFd, hook: Hook, path: &Path) -> Result<Program> {
    sys::pin(program, path)?;
    let opened = match hook {
        Hook::Xdp => Program::Xdp(Xdp::from_pin(path, XdpAttachType::Interface)?),
        _ => Program::SchedClassifier(SchedClassifier::from_pin(path)?),
    };
    fs::remove_file(path)?;
    Ok(opened)
}

/// A node with its programs in the kernel.
pub(crate) struct Node {
    /// Id and generation of each endpoint, in the order of their MACs.
    rows: Vec<(u32, u32)>,
    /// How long it took to write them.
    filling: Duration,
    maps: Maps,
    loaded: Vec<(Hook, Program)>,
    scene: Directory,
}

impl Node {
    /// Makes the maps, fills them, loads the three programs, each `copies` times.
    pub(crate) fn new(shape: Shape, copies: usize) -> Result<Self> {
        let mut node = Self::filled(shape)?;
        node.load(copies)?;
        Ok(node)
    }

    /// The same with programs that find no budget for events: a drop is counted, and that is all.
    pub(crate) fn without_budgets(shape: Shape, copies: usize) -> Result<Self> {
        let mut node = Self::filled(shape)?;
        fs::remove_file(pin_of(&node.scene.root().pins(), "budgets"))?;
        // As it is, with no row but the one that is nobody's.
        Array::<MapData, [i32; 2 * REASON_SLOTS]>::create(1, 0)?
            .pin(pin_of(&node.scene.root().pins(), "budgets"))?;
        node.load(copies)?;
        Ok(node)
    }

    /// Maps and rows.
    fn filled(shape: Shape) -> Result<Self> {
        let scene = scene()?;
        let pins = scene.root().pins();
        // The same sizes on every node: what differs is how much is in the maps.
        let settings = Settings { endpoints: shape.endpoints.max(4096), ..Settings::default() };
        let mut maps = object::maps(&pins, &settings)?;
        maps.set_master(MASTER, &master())?;
        let zone = zone(&mut maps, shape.prefixes)?;
        let mut rows = Vec::new();
        let begun = Instant::now();
        for number in 0..shape.endpoints {
            let mac = pod_mac(number);
            let row = maps.add_endpoint(EndpointKey::new(MASTER, mac), endpoint(zone))?;
            rows.push((row.id, row.generation));
        }
        let filling = begun.elapsed();
        Ok(Self { rows, filling, maps, loaded: Vec::new(), scene })
    }

    /// Loads the three programs, each `copies` times.
    fn load(&mut self, copies: usize) -> Result<()> {
        let pins = self.scene.root().pins();
        for _ in 0..copies {
            let bound = object::bind(&pins, MASTER, object::cpus())?;
            for hook in Hook::ALL {
                self.loaded.push((hook, opened(&bound.load(hook)?, hook, &pins.join("loaded"))?));
            }
        }
        Ok(())
    }

    /// Where all of it is.
    pub(crate) fn root(&self) -> &Root {
        self.scene.root()
    }

    /// Id and generation of each endpoint, in the order of their MACs.
    pub(crate) fn rows(&self) -> &[(u32, u32)] {
        &self.rows
    }

    /// How long it took to write their rows.
    pub(crate) fn filling(&self) -> Duration {
        self.filling
    }

    /// How long it takes to write the same rows into maps of their own, as an upgrade does.
    pub(crate) fn carried(&self) -> Result<Duration> {
        let scene = scene()?;
        let settings =
            Settings { endpoints: u32::try_from(self.rows.len())?.max(4096), ..Settings::default() };
        let mut maps = object::finish(&scene.root().pins(), &settings)?;
        let (meta, rows) = (self.maps.meta()?, self.maps.endpoints()?);
        let owner = |(key, row): &(EndpointKey, Endpoint)| {
            (row.id, Owner { key: *key, generation: row.generation, pad: 0 })
        };
        let owners: Vec<(u32, Owner)> = rows.iter().map(owner).collect();
        let begun = Instant::now();
        maps.restore(&meta, &[(MASTER, master())], &owners)?;
        maps.set_endpoints(&rows)?;
        let took = begun.elapsed();
        ensure!(maps.endpoints()?.len() == rows.len(), "all are there");
        Ok(took)
    }

    /// Every copy of a loaded program.
    pub(crate) fn programs(&self, hook: Hook) -> Vec<&Program> {
        self.loaded.iter().filter(|(own, _)| *own == hook).map(|(_, program)| program).collect()
    }

    /// Events held back so far.
    pub(crate) fn events_limited(&self) -> Result<u64> {
        Ok(self.maps.counters()?.master(MASTER).events_limited)
    }

    /// What was counted so far, of all endpoints together and of the master.
    pub(crate) fn counted(&self) -> Result<Counted> {
        let view = self.maps.counters()?;
        let master = view.master(MASTER);
        let mut sum =
            Counted { host: master.host_packets, unknown: master.unknown_passed, ..Counted::default() };
        for (id, _) in &self.rows {
            let one = view.endpoint(*id);
            sum.sent += one.tx_packets;
            sum.received += one.rx_packets;
            sum.sent_dropped += one.tx_dropped;
            sum.received_dropped += one.rx_dropped;
        }
        Ok(sum)
    }
}

/// Packets by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) sent_dropped: u64,
    pub(crate) received_dropped: u64,
    pub(crate) unknown: u64,
    pub(crate) host: u64,
}

impl Counted {
    /// What came since `before`, if it is `count` times `each`; else what came.
    pub(crate) fn since(self, before: Self, each: Self, count: u64) -> Result<(), Self> {
        let difference = self.with(before, |now, before| now.wrapping_sub(before));
        let expected = each.with(each, |each, _| each * count);
        if difference == expected { Ok(()) } else { Err(difference) }
    }

    fn with(self, other: Self, f: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            sent: f(self.sent, other.sent),
            received: f(self.received, other.received),
            sent_dropped: f(self.sent_dropped, other.sent_dropped),
            received_dropped: f(self.received_dropped, other.received_dropped),
            unknown: f(self.unknown, other.unknown),
            host: f(self.host, other.host),
        }
    }
}

/// A zone of `count` prefixes of each family, as a network's configuration has it.
fn zone(maps: &mut Maps, count: u32) -> Result<u32> {
    let v4 = (0..count).map(|number| format!("{}/24", prefix4(number)));
    let prefixes: Vec<String> =
        v4.chain((0..count).map(|number| format!("{}/48", prefix6(number)))).collect();
    let conf = ZoneConf::parse(&json!({ "policy": "private", "local": prefixes }))?;
    let zone = zone::resolve(Some(&conf), None, None)?.context("a zone")?;
    let image = zone::compile(&zone)?;
    let (v4, v6) = (image.v4().len(), image.v6().len());
    ensure!(v4 == v6 && v4 == count as usize, "{count} prefixes were asked for, {v4} and {v6} compiled");
    Ok(maps.ensure_zone("bench", image.digest("bench"), &police::content(&image))?)
}

/// The row of every endpoint.
fn endpoint(zone: u32) -> Endpoint {
    Endpoint {
        id: 0,
        generation: 0,
        zone,
        mode: mode::ENFORCE,
        kind: kind::ENDPOINT,
        flags: 0,
        cookie: 0,
        v4: [POD4.octets(), [0; 4], [0; 4], [0; 4]],
        gateway_v4: [10, 0, 0, 254],
        pad: [0; 4],
        v6: [POD6.octets(), [0; 16], [0; 16], [0; 16]],
        link_local: [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0x70, 0, 0xff, 0xfe, 0, 0, 1],
        gateway_v6: [0; 16],
    }
}

fn master() -> Master {
    let mut host_macs = [[0; 8]; HOST_MACS];
    host_macs[0][..6].copy_from_slice(&HOST_MAC);
    Master {
        netns_cookie: 1,
        stamp: 0x1122_3344_5566_7788,
        ifindex: 7,
        unknown_source: unknown_source::AUDIT,
        host_mac_count: 1,
        mtu: 1500,
        host_macs,
        name: *b"bench0\0\0\0\0\0\0\0\0\0\0",
        object: 1,
        flags: 0,
        pad: 0,
    }
}
