//! A program on its stage: called by a reference program, so that each test run is a stream of packets.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Ebpf,
    maps::{Array, MapData, ProgramArray},
    programs::{Program, ProgramFd, TestRun as _, TestRunOptions},
};
use netpath::kernel::bpf::{
    Hook,
    selftest::{NEXT, XDP_PASS},
};

/// What a stage writes into each packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Vary {
    /// Where.
    pub(crate) offset: u32,
    /// How many values there are; 0 = nothing is written.
    pub(crate) count: u32,
    /// From one to the next.
    pub(crate) step: u32,
    /// The first.
    pub(crate) base: u32,
}

/// One of the programs that netpath's are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reference {
    /// Does nothing.
    Empty,
    /// Reads Ethernet and IPv4.
    Parse,
    /// Looks the source MAC up as well.
    Lookup,
}

impl Reference {
    /// How it is called in the names of figures.
    pub(crate) fn slug(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Parse => "parse",
            Self::Lookup => "lookup",
        }
    }
}

/// A program that can be run.
pub(crate) struct Stage {
    hook: Hook,
    object: Ebpf,
    vary: Array<MapData, [u32; 4]>,
    // Closing it would empty it.
    _called: ProgramArray<MapData>,
}

/// What one run said.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// The program let the last packet pass.
    pub(crate) passed: bool,
    /// Kernel's time for one packet.
    pub(crate) nanoseconds: f64,
}

impl Stage {
    /// A stage for one of netpath's programs.
    pub(crate) fn of(objects: &Path, hook: Hook, program: &Program) -> Result<Self> {
        Self::new(objects, hook, |_| Ok(program.fd()?.try_clone()?))
    }

    /// A stage for a reference program of the type that `hook` takes.
    pub(crate) fn of_reference(objects: &Path, hook: Hook, reference: Reference) -> Result<Self> {
        let name = match (hook, reference) {
            (Hook::Xdp, Reference::Empty) => "xdp_empty",
            (Hook::Xdp, Reference::Parse) => "xdp_parse",
            (Hook::Xdp, Reference::Lookup) => "xdp_lookup",
            (_, Reference::Empty) => "tc_empty",
            (_, Reference::Parse) => "tc_parse",
            (_, Reference::Lookup) => "tc_lookup",
        };
        Self::new(objects, hook, |object| {
            load(object, name)?;
            Ok(program(object, name)?.fd()?.try_clone()?)
        })
    }

    fn new(objects: &Path, hook: Hook, called: impl FnOnce(&mut Ebpf) -> Result<ProgramFd>) -> Result<Self> {
        let bytes = fs::read(objects).with_context(|| format!("cannot read {}", objects.display()))?;
        let mut object = Ebpf::load(&bytes).with_context(|| format!("cannot load {}", objects.display()))?;
        let name = stage_name(hook);
        load(&mut object, name)?;
        let called = called(&mut object)?;
        let mut take = |map: &str| {
            object.take_map(map).with_context(|| format!("the reference object has no map {map}"))
        };
        let mut array =
            ProgramArray::try_from(take(if hook == Hook::Xdp { "xdp_called" } else { "tc_called" })?)?;
        array
            .set(0, &called, 0)
            .with_context(|| format!("{name} cannot call the program of {}", hook.name()))?;
        let vary = Array::try_from(take("vary")?)?;
        Ok(Self { hook, object, vary, _called: array })
    }

    /// Adds a row for `mac` to what [`Reference::Lookup`] looks it up in.
    pub(crate) fn add_row(&mut self, mac: [u8; 6]) -> Result<()> {
        let map = self.object.map_mut("rows").context("the reference object has no map rows")?;
        let mut rows = aya::maps::HashMap::<_, u64, [u8; 144]>::try_from(map)?;
        let [a, b, c, d, e, f] = mac;
        Ok(rows.insert(u64::from_ne_bytes([a, b, c, d, e, f, 0, 0]), [1; 144], 0)?)
    }

    /// Runs the program on `count` packets.
    pub(crate) fn run(&mut self, frame: &[u8], vary: Vary, count: u32) -> Result<Run> {
        self.vary.set(0, [vary.offset, vary.count, vary.step, vary.base], 0)?;
        let options = TestRunOptions { data_in: Some(frame), repeat: count, ..TestRunOptions::default() };
        let result = match program(&self.object, stage_name(self.hook))? {
            Program::Xdp(program) => program.test_run(options)?,
            Program::SchedClassifier(program) => program.test_run(options)?,
            _ => bail!("{} is of another type", stage_name(self.hook)),
        };
        let (pass, drop) = if self.hook == Hook::Xdp { (XDP_PASS, 1) } else { (NEXT, 2) };
        let verdict = result.return_value.cast_signed();
        ensure!(verdict == pass || verdict == drop, "{} returned {verdict}", self.hook.name());
        Ok(Run { passed: verdict == pass, nanoseconds: result.duration.as_secs_f64() * 1e9 })
    }
}

fn stage_name(hook: Hook) -> &'static str {
    if hook == Hook::Xdp { "xdp_stage" } else { "tc_stage" }
}

fn program<'a>(object: &'a Ebpf, name: &str) -> Result<&'a Program> {
    object.program(name).with_context(|| format!("the reference object has no program {name}"))
}

fn load(object: &mut Ebpf, name: &str) -> Result<()> {
    match object.program_mut(name) {
        Some(Program::SchedClassifier(program)) => program.load()?,
        Some(Program::Xdp(program)) => program.load()?,
        _ => bail!("the reference object has no program {name}"),
    }
    Ok(())
}
