//! A cgroup for each node: two kubelets below one end each other's pods.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::machine::eventually;

const ROOT: &str = "/sys/fs/cgroup";

/// Controllers that kubelet and runc use, where one hierarchy has all.
const CONTROLLERS: &[&str] = &["cpuset", "cpu", "io", "memory", "hugetlb", "pids"];

/// Makes `/<top>/<node>` in every hierarchy.
pub(crate) fn make(top: &str, node: &str) -> Result<()> {
    let root = Path::new(ROOT);
    if root.join("cgroup.controllers").exists() {
        return make_unified(root, top, node);
    }
    for hierarchy in hierarchies()? {
        let mut parent = hierarchy;
        for name in [top, node] {
            let dir = parent.join(name);
            fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
            for file in ["cpuset.cpus", "cpuset.mems"] {
                // A new group of this controller is empty, and nothing can run in it.
                if parent.join(file).exists() {
                    copy(&parent.join(file), &dir.join(file))?;
                }
            }
            parent = dir;
        }
    }
    Ok(())
}

fn make_unified(root: &Path, top: &str, node: &str) -> Result<()> {
    let mut parent = root.to_owned();
    for name in [top, node] {
        let offered = fs::read_to_string(parent.join("cgroup.controllers")).unwrap_or_default();
        for controller in CONTROLLERS.iter().filter(|name| offered.split_whitespace().any(|it| it == **name))
        {
            let file = parent.join("cgroup.subtree_control");
            fs::write(&file, format!("+{controller}"))
                .with_context(|| format!("cannot enable {controller} in {}", file.display()))?;
        }
        parent = parent.join(name);
        fs::create_dir_all(&parent).with_context(|| format!("cannot create {}", parent.display()))?;
    }
    Ok(())
}

/// Removes `/<top>` and all below it from every hierarchy. No process may be left in them.
pub(crate) fn remove(top: &str) -> Result<()> {
    let mut tops: Vec<PathBuf> = hierarchies()?.iter().map(|hierarchy| hierarchy.join(top)).collect();
    tops.push(Path::new(ROOT).join(top));
    tops.push(Path::new(ROOT).join("unified").join(top));
    for top in tops {
        // A group is busy for a moment after its last process.
        eventually(&format!("{} is removed", top.display()), || {
            Ok((!top.exists() || remove_below(&top)).then_some(()))
        })?;
    }
    Ok(())
}

/// Whether the group is gone, with all groups in it.
fn remove_below(dir: &Path) -> bool {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_below(&entry.path());
        }
    }
    fs::remove_dir(dir).is_ok()
}

/// Mount points of the hierarchies of version 1.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(ROOT).with_context(|| format!("cannot list {ROOT}"))? {
        let path = entry.with_context(|| format!("cannot list {ROOT}"))?.path();
        // Names such as `cpu,cpuacct` have links beside them.
        if path.join("tasks").exists() && !path.is_symlink() {
            found.push(path);
        }
    }
    Ok(found)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let text = fs::read_to_string(from).with_context(|| format!("cannot read {}", from.display()))?;
    fs::write(to, text).with_context(|| format!("cannot write {}", to.display()))
}
