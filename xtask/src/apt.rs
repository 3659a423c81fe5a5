//! apt, with the machine's sources or with a suite that the machine itself does not use.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::process;

/// Debian's keys; apt does not tell which one a source names, and without any it takes those it trusts for all.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// apt, with options that say which sources it reads and where it keeps their lists.
pub(crate) struct Apt {
    options: Vec<String>,
}

impl Apt {
    /// As anybody would call it.
    pub(crate) fn of_the_machine() -> Self {
        Self { options: Vec::new() }
    }

    /// With this suite alone, of the mirror that the machine uses for Debian's `archive`. Its lists are fetched, to
    /// below `cache`.
    pub(crate) fn of_suite(archive: &str, suite: &str, cache: &Path) -> Result<Self> {
        let sources = source("deb", &mirrors(archive)?, Path::new(KEYRING).exists(), suite)
            .with_context(|| no_mirror(archive))?;
        let mut apt = Self::with_list(&sources, &cache.join("apt").join(suite))?;
        apt.options.push("Dir::Etc::sourceparts=/dev/null".to_owned());
        apt.update()?;
        Ok(apt)
    }

    /// With the source packages of this suite alone, of the same mirror.
    pub(crate) fn of_sources(archive: &str, suite: &str, cache: &Path) -> Result<Self> {
        let sources = source("deb-src", &mirrors(archive)?, Path::new(KEYRING).exists(), suite)
            .with_context(|| no_mirror(archive))?;
        let mut apt = Self::with_list(&sources, &cache.join("apt").join(format!("{suite}-sources")))?;
        apt.options.push("Dir::Etc::sourceparts=/dev/null".to_owned());
        apt.update()?;
        Ok(apt)
    }

    /// With this suite besides the machine's own sources. Its packages are taken where one is asked for, and for what
    /// only they can satisfy.
    pub(crate) fn beside_suite(archive: &str, suite: &str, cache: &Path) -> Result<Self> {
        let source = source("deb", &mirrors(archive)?, Path::new(KEYRING).exists(), suite)
            .with_context(|| no_mirror(archive))?;
        let own = fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
        let apt =
            Self::with_list(&format!("{own}\n{source}"), &cache.join("apt").join(format!("with-{suite}")))?;
        apt.update()?;
        Ok(apt)
    }

    fn with_list(sources: &str, dir: &Path) -> Result<Self> {
        for part in ["lists/partial", "archives/partial"] {
            let part = dir.join(part);
            fs::create_dir_all(&part).with_context(|| format!("cannot create {}", part.display()))?;
        }
        let list = dir.join("sources.list");
        fs::write(&list, sources).with_context(|| format!("cannot write {}", list.display()))?;
        let options = [
            format!("Dir::Etc::sourcelist={}", list.display()),
            format!("Dir::State::lists={}", dir.join("lists").display()),
            format!("Dir::Cache={}", dir.display()),
            // Root's apt reads as another user, who cannot see a cache in root's home.
            "APT::Sandbox::User=root".to_owned(),
        ];
        Ok(Self { options: options.into() })
    }

    /// A program of apt, with these sources.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        // Another apt may run at the same time on a machine that has just started.
        command.env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive").args([
            "-o",
            "DPkg::Lock::Timeout=300",
            "-o",
            "Dpkg::Use-Pty=0",
        ]);
        for option in &self.options {
            command.args(["-o", option]);
        }
        command
    }

    /// Fetches the lists of packages.
    pub(crate) fn update(&self) -> Result<()> {
        process::run(self.command("apt-get").args(["update", "--quiet=2"]))
    }

    /// The names of all packages that begin so.
    pub(crate) fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let names = process::output(self.command("apt-cache").args(["pkgnames", prefix]))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// `apt-get install` of packages and nothing that they merely recommend; never removes one.
    pub(crate) fn install(&self) -> Command {
        let mut command = self.command("apt-get");
        command.args(["install", "--quiet=2", "--yes", "--no-install-recommends", "--no-remove"]);
        command
    }

    /// Downloads packages and puts what is in them below `root`, which is made; nothing is installed.
    pub(crate) fn unpack(&self, packages: &[&str], root: &Path) -> Result<()> {
        let downloads = PathBuf::from(format!("{}.debs", root.display()));
        for dir in [root, &downloads] {
            fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        let mut download = self.command("apt-get");
        download.args(["-o", "APT::Sandbox::User=root", "download", "--quiet=2"]).args(packages);
        process::run(download.current_dir(&downloads))?;
        let entries =
            fs::read_dir(&downloads).with_context(|| format!("cannot list {}", downloads.display()))?;
        for entry in entries {
            let deb = entry.with_context(|| format!("cannot list {}", downloads.display()))?.path();
            process::run(Command::new("dpkg-deb").arg("--extract").arg(&deb).arg(root))?;
        }
        fs::remove_dir_all(&downloads).with_context(|| format!("cannot remove {}", downloads.display()))
    }
}

/// Name of this machine's release of Debian, as suites are named after it.
pub(crate) fn codename() -> Result<String> {
    let path = "/etc/os-release";
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    text.lines()
        .find_map(|line| Some(line.strip_prefix("VERSION_CODENAME=")?.trim_matches('"').to_owned()))
        .with_context(|| format!("{path} has no VERSION_CODENAME"))
}

/// The mirrors that the machine uses for an archive of Debian, a line each.
fn mirrors(archive: &str) -> Result<String> {
    process::output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
        "Origin: Debian",
        &format!("Label: {archive}"),
    ]))
}

fn no_mirror(archive: &str) -> String {
    format!("no source of apt on this machine is labelled {archive}: nothing can be downloaded from there")
}

/// A line for a list of sources, from what apt says of the sources there are.
fn source(kind: &str, mirrors: &str, keyring: bool, suite: &str) -> Option<String> {
    let uri = mirrors.lines().find(|line| !line.is_empty())?;
    let options = if keyring { format!("[signed-by={KEYRING}] ") } else { String::new() };
    Some(format!("{kind} {options}{uri} {suite} main\n"))
}

#[test]
fn a_private_source_keeps_the_mirror() {
    let mirrors = "http://mirror.example/debian/\nhttp://other.example/debian/\n";
    let line = format!("deb [signed-by={KEYRING}] http://mirror.example/debian/ bookworm-backports main\n");
    assert_eq!(source("deb", mirrors, true, "bookworm-backports"), Some(line));
    assert_eq!(
        source("deb-src", "http://m.example/debian/\n", false, "x").as_deref(),
        Some("deb-src http://m.example/debian/ x main\n")
    );
    assert_eq!(source("deb", "", true, "x"), None);
}
