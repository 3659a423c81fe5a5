//! Directories that netpath is told are `/`, and what is mounted in them.

use std::{
    fs,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, ensure};
use netpath::{
    kernel::bpf::{Hook, attach},
    root::Root,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::{guard, netns::Namespace};

/// Dense id of the one master of a root.
pub(crate) const MASTER: u16 = 1;

/// A directory with everything that netpath keeps; unmounted and removed with us.
pub(crate) struct Directory(Root);

impl Directory {
    /// Makes one; `role` is for people who look at a run that is under way.
    pub(crate) fn new(role: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let path = guard::directory().join(format!("{role}{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        let made = fs::DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(Root::new(path)))
    }

    /// The same with memory at `/run`, as on a node: cutting a file short costs a disk much more.
    pub(crate) fn with_memory(role: &str) -> Result<Self> {
        let directory = Self::new(role)?;
        let run = directory.run();
        fs::create_dir(&run)?;
        mount(Some("npbench"), &run, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
            .with_context(|| format!("cannot mount a tmpfs at {}", run.display()))?;
        Ok(directory)
    }

    /// Fails unless the one master, in `netns`, has all three programs.
    pub(crate) fn must_be_attached(&self, netns: &Namespace, master: &str) -> Result<()> {
        let states = netns.within(|| -> Result<_> {
            let ifindex = nix::net::if_::if_nametoindex(master)?;
            Ok(attach::inspect(&self.0.pins(), MASTER, ifindex)?)
        })??;
        for hook in Hook::ALL {
            let live = states.iter().any(|state| state.hook == hook && state.live);
            ensure!(live, "{} is not attached to the master: {states:?}", hook.name());
        }
        Ok(())
    }

    /// As the library has it.
    pub(crate) fn root(&self) -> &Root {
        &self.0
    }

    /// As `NETPATH_ROOT` has it.
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file below it.
    pub(crate) fn write(&self, path: &str, text: &str) -> Result<()> {
        write(&self.0.join(path), text)
    }

    fn run(&self) -> PathBuf {
        self.0.join("run")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Either need not be mounted. What stays is for the guard.
        for mount in [self.0.bpffs(), self.run()] {
            let _ = umount2(&mount, MntFlags::MNT_DETACH);
        }
        let _ = fs::remove_dir_all(self.path());
    }
}

/// Writes a file, and the directories that it lies in.
pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    fs::create_dir_all(path.parent().context("is in a directory")?)?;
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
