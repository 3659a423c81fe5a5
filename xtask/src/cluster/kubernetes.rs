//! Kubernetes itself, built once from Debian's source package: its binaries are in no registry that a machine which
//! reaches its own mirror alone can use.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    apt::Apt,
    process::{self, say},
    workspace,
};

/// The release of Debian whose source package is built, whatever this machine runs.
const SUITE: &str = "bookworm";

/// Counts up when this file builds in another way: what was built before is no longer taken.
const RECIPE: u32 = 1;

/// What is built, and kept.
pub(crate) const PROGRAMS: [&str; 5] =
    ["kube-apiserver", "kubelet", "kube-controller-manager", "kube-scheduler", "kubectl"];

/// Debian's Go that this release of Kubernetes builds with.
pub(crate) const GO: &str = "/usr/lib/go-1.19/bin";

/// Debian's reflect2. The one in the source package crashes the API server at the first custom resource when it is
/// built with a Go from 1.18 on.
pub(crate) const REFLECT2: &str = "/usr/share/gocode/src/github.com/modern-go/reflect2";

const VENDORED: &str = "vendor/github.com/modern-go/reflect2";

/// The directory of the programs, from the cache or built now.
pub(crate) fn get() -> Result<PathBuf> {
    let cache = workspace::cache()?;
    let finished = cache.join(format!("kubernetes-{SUITE}-{RECIPE}"));
    if PROGRAMS.iter().all(|program| process::is_executable(&finished.join(program))) {
        return Ok(finished);
    }
    // Of its own process: two that build at once do not meet, and the first that is finished wins.
    let work = cache.join(format!("kubernetes-build-{}", std::process::id()));
    let built = build(&work).and_then(|built| keep(&built, &work.join("finished"), &finished));
    // Gigabytes, also where it failed.
    let removed = fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()));
    built.and(removed)?;
    Ok(finished)
}

/// Builds the programs; returns their directory.
fn build(work: &Path) -> Result<PathBuf> {
    say("Kubernetes is built from Debian's source package, once: five to ten minutes, 3 GB meanwhile");
    fs::create_dir_all(work).with_context(|| format!("cannot create {}", work.display()))?;
    let apt = Apt::of_sources("Debian", SUITE, work)?;
    process::run(apt.command("apt-get").args(["source", "--quiet=2", "kubernetes"]).current_dir(work))?;
    let source = unpacked(work)?;
    for entry in entries(&source.join(VENDORED))? {
        if is_code(&entry) {
            fs::remove_file(&entry).with_context(|| format!("cannot remove {}", entry.display()))?;
        }
    }
    for entry in entries(Path::new(REFLECT2))? {
        let name = entry.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if is_code(&entry) && !name.ends_with("_test.go") {
            let to = source.join(VENDORED).join(&name);
            fs::copy(&entry, &to).with_context(|| format!("cannot copy {}", entry.display()))?;
        }
    }
    // The scripts look for the repository below a GOPATH.
    let gopath = source.join(".go");
    let link = gopath.join("src/k8s.io/kubernetes");
    fs::create_dir_all(gopath.join("src/k8s.io")).context("cannot create a GOPATH")?;
    std::os::unix::fs::symlink("../../..", &link)
        .with_context(|| format!("cannot link {}", link.display()))?;

    let what: Vec<_> = PROGRAMS.iter().map(|program| format!("cmd/{program}")).collect();
    let mut make = Command::new("make");
    make.arg(format!("WHAT={}", what.join(" "))).arg("GOLDFLAGS=-s -w").current_dir(&source);
    let path = std::env::var("PATH").unwrap_or_default();
    make.env("PATH", format!("{GO}:{path}")).env("GOPATH", &gopath).env("GOCACHE", work.join("go-cache"));
    // All in one pass: by itself the kubelet would have every package compiled once more.
    make.env("KUBE_STATIC_OVERRIDES", "kubelet");
    make.env("CGO_ENABLED", "0").env("GOPROXY", "off").env("GO111MODULE", "auto");
    process::run(&mut make)?;
    Ok(source.join("_output/bin"))
}

/// Puts the programs where they are looked for, all at once.
fn keep(built: &Path, draft: &Path, finished: &Path) -> Result<()> {
    fs::create_dir_all(draft).with_context(|| format!("cannot create {}", draft.display()))?;
    for program in PROGRAMS {
        let from = built.join(program);
        fs::copy(&from, draft.join(program)).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    if finished.exists() {
        // Incomplete, else it would have been taken; or of somebody who was faster.
        fs::remove_dir_all(finished).with_context(|| format!("cannot remove {}", finished.display()))?;
    }
    fs::rename(draft, finished).with_context(|| format!("cannot create {}", finished.display()))
}

fn unpacked(work: &Path) -> Result<PathBuf> {
    let is_source = |path: &PathBuf| {
        path.is_dir()
            && path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("kubernetes-"))
    };
    entries(work)?.into_iter().find(is_source).context("`apt-get source kubernetes` unpacked nothing")
}

fn is_code(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "go" || extension == "s")
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let context = || format!("cannot list {}", dir.display());
    fs::read_dir(dir).with_context(context)?.map(|entry| Ok(entry.with_context(context)?.path())).collect()
}
