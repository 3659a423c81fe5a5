//! A node of its own for each test: a BPF file system, maps and the three programs of one master.

use std::{
    collections::BTreeMap,
    fs,
    ops::Range,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use aya::{
    Pod,
    maps::{Array, Map, MapData, PerCpuArray},
    programs::{Program, TestRun, TestRunOptions},
};
use netpath::{
    kernel::bpf::{
        Hook, bpffs,
        maps::{Maps, pin_of},
        object::{self, Settings},
        selftest::{NEXT, XDP_PASS},
        zones::ZoneContent,
    },
    root::Root,
};
use netpath_ebpf::{
    abi::{
        Counters, DropCounters, Endpoint, EndpointKey, HOST_MACS, Master, MasterCounters, Reject,
        unknown_source,
    },
    drop_reason::DropReason,
};

use crate::loaded::programs;
use crate::verdict::{
    cases::Case,
    frames::POD_MAC,
    image::{self, Image, Layout, ZONE},
    model::Setup,
    reference::Way,
};

/// The dense id of the master in every test.
pub(crate) const MASTER: u16 = 1;
/// What the host sends with.
pub(crate) const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Another, the first of its list: that of the NIC.
pub(crate) const FIRST_HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// What XDP writes in front of what it has counted.
pub(crate) const STAMP: u64 = 0x1122_3344_5566_7788;

/// A root below the temporary directory; unmounted and removed however the test ends.
struct Scene {
    root: Root,
}

impl Scene {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("netpath-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let scene = Self { root: Root::new(std::env::temp_dir().join(name)) };
        assert!(nix::unistd::geteuid().is_root(), "these tests load programs: run them as root");
        bpffs::ensure(&scene.root.bpffs()).expect("a BPF file system");
        scene
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // Both may fail where `new` did; then there is nothing to undo.
        let unmounted = nix::mount::umount2(&self.root.bpffs(), nix::mount::MntFlags::MNT_DETACH);
        let removed = fs::remove_dir_all(self.root.path());
        if !std::thread::panicking() {
            unmounted.expect("unmount the BPF file system");
            removed.expect("remove the root");
        }
    }
}

/// What a program is told beside the frame (`struct __sk_buff`).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Context {
    /// Bytes on the wire.
    pub(crate) wire_length: u32,
    /// Packets on the wire.
    pub(crate) segments: u32,
    /// What each of them carries; 0: it is not to be cut.
    pub(crate) gso_size: u32,
}

impl Context {
    fn bytes(self) -> [u8; 192] {
        let mut bytes = [0; 192];
        bytes[160..164].copy_from_slice(&self.wire_length.to_ne_bytes());
        bytes[164..168].copy_from_slice(&self.segments.to_ne_bytes());
        bytes[176..180].copy_from_slice(&self.gso_size.to_ne_bytes());
        bytes
    }
}

/// A node with one master.
pub(crate) struct Node {
    pub(crate) maps: Maps,
    programs: BTreeMap<Hook, Program>,
    scene: Scene,
}

impl Node {
    /// Maps, a master that the host sends on, and the programs; no endpoint, no zone.
    pub(crate) fn new() -> Self {
        Self::with(Settings { endpoints: 32, zones: 8, prefixes: 256, event_bytes: 64 * 1024 })
    }

    pub(crate) fn with(settings: Settings) -> Self {
        let scene = Scene::new();
        let pins = scene.root.pins();
        let mut maps = object::maps(&pins, &settings).expect("maps");
        maps.set_master(MASTER, &master(unknown_source::AUDIT)).expect("master row");
        let programs = programs(&pins, MASTER, &Hook::ALL);
        Self { maps, programs, scene }
    }

    /// A node with the pod of `setup` and its zone.
    pub(crate) fn in_setup(setup: Setup, layout: Layout) -> (Self, Endpoint) {
        let mut node = Self::new();
        let row = node.add(POD_MAC, setup, layout);
        (node, row)
    }

    /// Writes the zone of `setup` to row 1 and adds its pod under `mac`.
    pub(crate) fn add(&mut self, mac: [u8; 6], setup: Setup, layout: Layout) -> Endpoint {
        let (pod, zone) = setup.world();
        match zone {
            Some(zone) => {
                let content = content(&Image::new(&zone, layout));
                self.maps.write_zone(ZONE, "lan", [7; 16], &content).expect("zone");
            }
            None => self.maps.remove_zone(ZONE).expect("no zone"),
        }
        self.maps.add_endpoint(EndpointKey::new(MASTER, mac), image::endpoint(&pod)).expect("endpoint row")
    }

    /// Puts `row` in force for `mac`.
    pub(crate) fn set(&mut self, mac: [u8; 6], row: &Endpoint) {
        self.maps.set_endpoint(EndpointKey::new(MASTER, mac), row).expect("endpoint row");
    }

    pub(crate) fn root(&self) -> &Root {
        &self.scene.root
    }

    pub(crate) fn pins(&self) -> PathBuf {
        self.scene.root.pins()
    }

    pub(crate) fn pin(&self, map: &str) -> PathBuf {
        pin_of(&self.pins(), map)
    }

    pub(crate) fn program(&mut self, hook: Hook) -> &mut Program {
        self.programs.get_mut(&hook).expect("program")
    }

    fn test_run(&self, hook: Hook, options: TestRunOptions<'_>) -> (i32, usize) {
        let result = match &self.programs[&hook] {
            Program::SchedClassifier(program) => program.test_run(options),
            Program::Xdp(program) => program.test_run(options),
            other => panic!("{} is {other:?}", hook.name()),
        };
        let result = result.unwrap_or_else(|error| panic!("a test run at {}: {error:?}", hook.name()));
        (result.return_value.cast_signed(), result.data_size_out as usize)
    }

    /// Runs a program on `frame`; true: it passes. Any verdict but pass and drop is a failure.
    #[track_caller]
    pub(crate) fn passes(&self, hook: Hook, frame: &[u8]) -> bool {
        let (verdict, _) =
            self.test_run(hook, TestRunOptions { data_in: Some(frame), ..TestRunOptions::default() });
        passed(hook, verdict)
    }

    /// As [`Node::passes`], `repeat` times in a row; the verdict is the last one's.
    #[track_caller]
    pub(crate) fn passes_times(&self, hook: Hook, frame: &[u8], repeat: u32) -> bool {
        let options = TestRunOptions { data_in: Some(frame), repeat, ..TestRunOptions::default() };
        passed(hook, self.test_run(hook, options).0)
    }

    /// As [`Node::passes`], for a frame that stands for several on the wire.
    #[track_caller]
    pub(crate) fn passes_as(&self, hook: Hook, frame: &[u8], context: Context) -> bool {
        let context = context.bytes();
        let options =
            TestRunOptions { data_in: Some(frame), ctx_in: Some(&context), ..TestRunOptions::default() };
        passed(hook, self.test_run(hook, options).0)
    }

    /// Runs a TC program on `frame` with `mark`: its verdict, the frame and the mark as they are then.
    #[track_caller]
    pub(crate) fn tc_output(&self, hook: Hook, frame: &[u8], mark: u32) -> (i32, Vec<u8>, u32) {
        let mut out = vec![0; frame.len() + 256];
        let (mut context, mut context_out) = ([0u8; 192], [0u8; 192]);
        context[8..12].copy_from_slice(&mark.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ctx_out: Some(&mut context_out),
            ..TestRunOptions::default()
        };
        let (verdict, size) = self.test_run(hook, options);
        out.truncate(size);
        let [.., a, b, c, d] = context_out[..12] else { unreachable!("twelve bytes") };
        (verdict, out, u32::from_ne_bytes([a, b, c, d]))
    }

    /// Runs XDP and returns whether the frame passed, and it as it then is, metadata in front.
    pub(crate) fn xdp_output(&self, frame: &[u8]) -> (bool, Vec<u8>) {
        let mut out = vec![0; frame.len() + 64];
        // Metadata is part of the output only of a run that was given a context (`struct xdp_md`).
        let mut context = [0u8; 24];
        let length = u32::try_from(frame.len()).expect("a frame");
        context[4..8].copy_from_slice(&length.to_ne_bytes());
        let mut context_out = [0u8; 24];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ctx_out: Some(&mut context_out),
            ..TestRunOptions::default()
        };
        let (verdict, size) = self.test_run(Hook::Xdp, options);
        out.truncate(size);
        (passed(Hook::Xdp, verdict), out)
    }

    pub(crate) fn counters(&self, id: u32) -> Counters {
        self.maps.counters().expect("counters").endpoint(id)
    }

    pub(crate) fn master_counters(&self) -> MasterCounters {
        self.maps.counters().expect("counters").master(MASTER)
    }

    pub(crate) fn rejects(&self, row: &Endpoint) -> Reject {
        self.maps.rejects(row.id).expect("rejects")
    }

    /// As if no answer had been given for long.
    pub(crate) fn fill_bucket(&self, row: &Endpoint) {
        self.raw::<[u64; 4]>("rejects").set(row.id, [0; 4], 0).expect("a bucket");
    }

    pub(crate) fn drops(&self, id: u32) -> DropCounters {
        self.maps.drops(id).expect("drops")
    }

    /// Opens an array map past the library, to put it in a state that takes hours to reach.
    pub(crate) fn raw<T: Pod>(&self, map: &str) -> Array<MapData, T> {
        let data = MapData::from_pin(self.pin(map)).expect("a pinned map");
        Array::try_from(Map::Array(data)).expect("an array of such values")
    }

    /// Every row of an array of 64-bit words.
    pub(crate) fn raw_rows<const WORDS: usize>(&self, map: &str) -> Vec<[u64; WORDS]> {
        let rows = self.raw::<[u64; WORDS]>(map);
        rows.iter().map(|row| row.expect("a row")).collect()
    }

    /// Rows of the counters of rules, all CPUs together.
    pub(crate) fn rule_rows(&self, rows: Range<u32>) -> Vec<[u64; 4]> {
        let data = MapData::from_pin(self.pin("rule_counters")).expect("a pinned map");
        let map: PerCpuArray<_, [u64; 4]> = Map::PerCpuArray(data).try_into().expect("an array for each CPU");
        let sum = |row: u32| {
            let each = map.get(&row, 0).expect("a row");
            each.iter().fold([0; 4], |sum: [u64; 4], cpu| std::array::from_fn(|i| sum[i] + cpu[i]))
        };
        rows.map(sum).collect()
    }
}

#[track_caller]
fn passed(hook: Hook, verdict: i32) -> bool {
    const SHOT: i32 = 2;
    const XDP_DROP: i32 = 1;
    match (hook, verdict) {
        (Hook::Xdp, XDP_PASS) | (Hook::Ingress | Hook::Egress, NEXT) => true,
        (Hook::Xdp, XDP_DROP) | (Hook::Ingress | Hook::Egress, SHOT) => false,
        _ => panic!("{} returned {verdict}", hook.name()),
    }
}

/// The row of the master.
pub(crate) fn master(unknown_source: u8) -> Master {
    let mut host_macs = [[0; 8]; HOST_MACS];
    // Not the first of the list: all are looked at.
    host_macs[2][..6].copy_from_slice(&HOST_MAC);
    host_macs[0][..6].copy_from_slice(&FIRST_HOST_MAC);
    Master {
        // No namespace has it: that of a machine that does nothing else has 1.
        netns_cookie: u64::MAX,
        stamp: STAMP,
        ifindex: 7,
        unknown_source,
        host_mac_count: 3,
        mtu: 1500,
        host_macs,
        name: *b"eno1\0\0\0\0\0\0\0\0\0\0\0\0",
        object: 1,
        flags: 0,
        pad: 0,
    }
}

/// A zone's image as the library writes it.
pub(crate) fn content(image: &Image) -> ZoneContent {
    ZoneContent {
        slot: image.slot,
        trie_v4: image.trie_v4.clone(),
        trie_v6: image.trie_v6.clone(),
        ports: image.ports.clone(),
        rules: Vec::new(),
    }
}

/// Whether `hook` can be shown `case` by a test run; what cannot is shown on real interfaces.
pub(crate) fn runs(hook: Hook, case: &Case) -> bool {
    case.is_small() && (hook == Hook::Xdp || case.has_header())
}

/// Which direction a hook judges when the other end is on the wire.
pub(crate) fn way(hook: Hook) -> Way {
    match hook {
        Hook::Egress => Way::Egress,
        Hook::Ingress | Hook::Xdp => Way::Ingress,
    }
}

/// The index of a reason in [`DropCounters`].
pub(crate) fn slot(reason: DropReason) -> usize {
    usize::from(reason as u8)
}
