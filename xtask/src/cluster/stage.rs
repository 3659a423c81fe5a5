//! What tests run on: a cluster for all tests of a tier, or what they need to make nodes of their own.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{Parts, down, kubernetes, place, runtime, stand_up, stop};
use crate::{
    build::{self, Profile},
    image,
    process::say,
};

/// Names this program to tests, which make nodes by it.
const XTASK: &str = "NETPATH_XTASK";
/// Names the directory of the cluster.
const CLUSTER: &str = "NETPATH_CLUSTER";
/// Names the directory of a containerd that speaks CNI 1.1.
const NEWER: &str = "NETPATH_NEWER_CONTAINERD";

/// Names netpath's image, and the archive that it is in.
const IMAGE: &str = "NETPATH_IMAGE";
const ARCHIVE: &str = "NETPATH_IMAGE_ARCHIVE";

/// The one file of tests for a containerd that Debian's release of this machine may not have.
const NEEDS_NEWER: &str = "runtime_newer";

/// What is there while a tier's tests run. Dropped, it is removed.
pub(crate) struct Stage {
    /// The files of tests that can run.
    pub(crate) targets: Vec<String>,
    pub(crate) environment: Vec<(&'static str, OsString)>,
    /// What could not be tried.
    pub(crate) note: Option<String>,
    /// A cluster, or a directory of clusters.
    stands: Option<Stands>,
}

enum Stands {
    Cluster(PathBuf),
    ClustersIn(PathBuf),
}

impl Stage {
    /// Nothing.
    pub(crate) fn bare(targets: &[String]) -> Self {
        Self { targets: targets.to_vec(), environment: Vec::new(), note: None, stands: None }
    }

    /// What tests need to make nodes with a container runtime.
    pub(crate) fn of_runtimes(targets: &[String]) -> Result<Self> {
        let mut stage = Self::bare(targets);
        stage.environment.push((XTASK, xtask()?.into()));
        stage.image()?;
        match runtime::newer() {
            Ok(dir) => stage.environment.push((NEWER, dir.into())),
            Err(error) => {
                let note =
                    format!("SKIPPED: CNI 1.1 and STATUS: a newer containerd cannot be had here: {error:#}");
                say(&note);
                stage.note = Some(note);
                stage.targets.retain(|target| target != NEEDS_NEWER);
            }
        }
        let dir = place("test")?;
        remove_dead(&dir)?;
        stage.stands = Some(Stands::ClustersIn(dir));
        Ok(stage)
    }

    /// A cluster for all tests.
    pub(crate) fn of_kubernetes(targets: &[String]) -> Result<Self> {
        let mut stage = Self::bare(targets);
        let image = stage.image()?;
        stage.stand_up("kubernetes", Profile::Debug, Some(&image))?;
        Ok(stage)
    }

    /// A cluster with what is shipped. The kubelet of its first node is stopped: it would end pods that it does not
    /// know.
    pub(crate) fn of_benchmark() -> Result<Self> {
        let mut stage = Self::bare(&[]);
        let dir = stage.stand_up("bench", Profile::Release, None)?;
        stop(&dir, "worker01", "kubelet")?;
        Ok(stage)
    }

    /// Makes the image of what is shipped, around the object that is there.
    fn image(&mut self) -> Result<PathBuf> {
        let image = image::archive(&build::binary(Profile::Release)?, image::NAME)?;
        self.environment.extend([(IMAGE, image::NAME.into()), (ARCHIVE, image.archive.clone().into())]);
        Ok(image.archive)
    }

    fn stand_up(&mut self, name: &str, profile: Profile, image: Option<&Path>) -> Result<PathBuf> {
        let netpath = build::run(profile)?;
        let dir = place(name)?;
        let parts = Parts { kubernetes: Some(&kubernetes::get()?), image, ..Parts::of(&netpath) };
        stand_up(&dir, &parts)?;
        self.environment.extend([(XTASK, xtask()?.into()), (CLUSTER, dir.clone().into())]);
        self.stands = Some(Stands::Cluster(dir.clone()));
        Ok(dir)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let removed = match &self.stands {
            Some(Stands::Cluster(dir)) => down(dir),
            Some(Stands::ClustersIn(dir)) => remove_dead(dir),
            None => Ok(()),
        };
        if let Err(error) = removed {
            say(format_args!("a cluster of the tests is left: {error:#}"));
        }
    }
}

/// Removes the clusters of test processes that were killed.
fn remove_dead(dir: &Path) -> Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("cannot list {}", dir.display()))?,
    };
    for entry in entries {
        let path = entry.with_context(|| format!("cannot list {}", dir.display()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let lives = name.split_once('-').is_some_and(|(pid, _)| {
            let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            command.starts_with("runtime_")
        });
        if !lives {
            down(&path)?;
        }
    }
    Ok(())
}

/// This program.
fn xtask() -> Result<PathBuf> {
    std::env::current_exe().context("cannot tell the path of this program")
}
