//! The reference programs that live traffic begins with, ends at, or is dropped by.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf,
    maps::{Array, MapData, PerCpuArray},
    programs::{
        Program, SchedClassifier, TcAttachType, TestRun as _, TestRunAttrs, TestRunOptions, Xdp, XdpMode, tc,
    },
};

use crate::netns::Namespace;

/// Frames that the generator makes before it lets the receiver have the CPU; the ring of a veth has room for 256.
const BATCH: u32 = 64;

/// The programs of one object, and where they are attached. All are detached when this is dropped.
pub(super) struct Programs {
    object: Ebpf,
    target: Array<MapData, u32>,
    sunk: PerCpuArray<MapData, u64>,
}

impl Programs {
    /// Loads them.
    pub(super) fn load(path: &Path) -> Result<Self> {
        let failed = || format!("cannot load {}", path.display());
        let bytes = fs::read(path).with_context(failed)?;
        let mut object = Ebpf::load(&bytes).with_context(failed)?;
        for name in ["tc_sink", "tc_empty", "tc_drop"] {
            classifier(&mut object, name)?.load().with_context(|| name.to_owned())?;
        }
        for name in ["xdp_send", "xdp_drop", "xdp_empty"] {
            xdp(&mut object, name)?.load().with_context(|| name.to_owned())?;
        }
        let mut take = |map: &str| {
            object.take_map(map).with_context(|| format!("the reference object has no map {map}"))
        };
        let (target, sunk) = (Array::try_from(take("target")?)?, PerCpuArray::try_from(take("sunk")?)?);
        Ok(Self { object, target, sunk })
    }

    /// Attaches a TC program to `device` of `namespace`.
    pub(super) fn attach_tc(
        &mut self,
        name: &str,
        namespace: &Namespace,
        device: &str,
        way: TcAttachType,
    ) -> Result<()> {
        let program = classifier(&mut self.object, name)?;
        namespace.within(|| -> Result<()> {
            // By TCX, or before Linux 6.6 by a filter, which needs a qdisc to sit on.
            if program.attach(device, way).is_err() {
                tc::qdisc_add_clsact(device)?;
                program.attach(device, way)?;
            }
            Ok(())
        })?
    }

    /// Attaches an XDP program to `device` of `namespace`.
    pub(super) fn attach_xdp(&mut self, name: &str, namespace: &Namespace, device: &str) -> Result<()> {
        let program = xdp(&mut self.object, name)?;
        namespace.within(|| program.attach(device, XdpMode::Driver).map(drop))??;
        Ok(())
    }

    /// Frames that have come to the far ends of all wires.
    pub(super) fn sunk(&self) -> Result<u64> {
        Ok(self.sunk.get(&0, 0)?.iter().sum())
    }

    /// Hands `count` frames to the interface `wire` of the namespace that the calling thread is in. How long each took, as
    /// the kernel says.
    pub(super) fn send(&mut self, wire: u32, frame: &[u8], count: u32) -> Result<Duration> {
        self.target.set(0, wire, 0)?;
        self.live("xdp_send", frame, count)
    }

    /// Makes `count` frames and takes them back.
    pub(super) fn send_nowhere(&mut self, frame: &[u8], count: u32) -> Result<Duration> {
        self.live("xdp_drop", frame, count)
    }

    fn live(&mut self, name: &str, frame: &[u8], count: u32) -> Result<Duration> {
        let attrs = TestRunAttrs::new().xdp_live_frames(BATCH);
        let options =
            TestRunOptions { data_in: Some(frame), repeat: count, attrs, ..TestRunOptions::default() };
        let run = xdp(&mut self.object, name)?.test_run(options);
        Ok(run.context("no XDP live frames (Linux 5.18 has them)")?.duration)
    }
}

fn classifier<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    match object.program_mut(name) {
        Some(Program::SchedClassifier(program)) => Ok(program),
        _ => bail!("the reference object has no TC program {name}"),
    }
}

fn xdp<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    match object.program_mut(name) {
        Some(Program::Xdp(program)) => Ok(program),
        _ => bail!("the reference object has no XDP program {name}"),
    }
}
