//! Debian's kernels: which, from where, and their modules in the order of loading.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::{
    apt::Apt,
    elf, packages,
    process::{self, find_program, say},
    workspace,
};

/// A line of kernels that Debian keeps up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Series {
    /// Debian 11: older than what netpath polices on; what is tried there is the refusal.
    #[value(name = "5.10")]
    V5_10,
    /// Debian 12: attaches by clsact, has no TCX.
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13 and backports: attaches by TCX.
    #[value(name = "6.12")]
    V6_12,
}

/// A kernel, unpacked.
pub(super) struct Kernel {
    /// What `uname -r` says in it.
    pub(super) release: String,
    pub(super) image: PathBuf,
    /// What its package has, as below `/`.
    root: PathBuf,
}

/// A module of a kernel.
pub(super) struct Module {
    /// Its file's name, without compression.
    pub(super) name: String,
    /// Parameters, such as that `dummy` is to make no interface by itself.
    pub(super) options: String,
    path: PathBuf,
}

impl Series {
    /// Every kernel that is tested.
    pub(crate) const ALL: [Self; 3] = [Self::V5_10, Self::V6_1, Self::V6_12];

    pub(super) fn number(self) -> &'static str {
        match self {
            Self::V5_10 => "5.10",
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }

    /// Where Debian has it, for a machine whose own sources have not: which of its archives, and which suite.
    fn suite(self) -> (&'static str, &'static str) {
        match self {
            Self::V5_10 => ("Debian-Security", "bullseye-security"),
            Self::V6_1 => ("Debian", "bookworm"),
            Self::V6_12 => ("Debian", "bookworm-backports"),
        }
    }

    /// Whether netpath polices masters on it.
    pub(super) fn is_supported(self) -> bool {
        match self {
            Self::V5_10 => false,
            Self::V6_1 | Self::V6_12 => true,
        }
    }

    /// Whether TC programs are attached by TCX where masters.json does not say otherwise.
    pub(super) fn has_tcx(self) -> bool {
        match self {
            Self::V5_10 | Self::V6_1 => false,
            Self::V6_12 => true,
        }
    }

    /// Whether a run may do without it where its suite cannot be reached: Debian ends what it was made for.
    fn may_be_out_of_reach(self) -> bool {
        !self.is_supported()
    }
}

/// What became of the search for a kernel.
pub(super) enum Found {
    Kernel(Kernel),
    /// Its suite cannot be reached from here, and the run may go on without it.
    OutOfReach(anyhow::Error),
}

/// The newest kernel of a series: the one in the cache, else the one that apt has.
pub(super) fn get(series: Series) -> Result<Found> {
    let cache = cache()?;
    if let Some(package) = newest(series, cached(&cache)) {
        say(format_args!("{package}: from {}; remove it for a newer one", cache.display()));
        return unpacked(&cache, &package).map(Found::Kernel);
    }
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    match offered(series, &cache) {
        Ok((apt, package)) => {
            unpack(&apt, &package, &cache)?;
            unpacked(&cache, &package).map(Found::Kernel)
        }
        Err(error) if series.may_be_out_of_reach() => Ok(Found::OutOfReach(error)),
        Err(error) => Err(error),
    }
}

/// The newest kernel of a series that can be downloaded, and by which apt.
fn offered(series: Series, cache: &Path) -> Result<(Apt, String)> {
    if !packages::has_apt() {
        bail!("kernels are Debian's packages: this needs a machine with apt");
    }
    let own = Apt::of_the_machine();
    if let Some(package) = newest(series, own.names(PREFIX)?) {
        return Ok((own, package));
    }
    let (archive, suite) = series.suite();
    let apt = Apt::of_suite(archive, suite, cache)?;
    let package = newest(series, apt.names(PREFIX)?)
        .with_context(|| format!("apt has no Linux {} in suite {suite}", series.number()))?;
    Ok((apt, package))
}

/// busybox, which must be static: the machine has its libraries for other programs only by chance.
pub(super) fn busybox() -> Result<PathBuf> {
    let path = find_program("busybox").context("no program `busybox`; `cargo xtask setup` installs it")?;
    let program = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    if !elf::dynamic_needs(&program)?.is_empty() {
        bail!("{} is not static: install Debian's package busybox-static", path.display());
    }
    Ok(path)
}

fn cache() -> Result<PathBuf> {
    Ok(workspace::cache()?.join("kernels"))
}

fn cached(cache: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(cache) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect()
}

fn unpacked(cache: &Path, package: &str) -> Result<Kernel> {
    let root = cache.join(package);
    let release = package.strip_prefix(PREFIX).context("kernel packages are named by release")?.to_owned();
    let image = root.join("boot").join(format!("vmlinuz-{release}"));
    if !image.is_file() {
        bail!("{} is not there: remove {} to download it again", image.display(), root.display());
    }
    Ok(Kernel { release, image, root })
}

const PREFIX: &str = "linux-image-";
const SUFFIX: &str = "-cloud-amd64";

/// The package of the newest kernel of a series among `packages`.
fn newest(series: Series, packages: Vec<String>) -> Option<String> {
    let version = |package: &String| -> Option<Vec<u32>> {
        let version = package.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.strip_prefix(series.number())?;
        // What only depends on the newest has no further number.
        version
            .strip_prefix('.')?
            .split(|c: char| !c.is_ascii_digit())
            .map(|part| part.parse().ok().or((part.is_empty()).then_some(0)))
            .collect()
    };
    packages
        .into_iter()
        .filter_map(|package| Some((version(&package)?, package)))
        .max()
        .map(|(_, package)| package)
}

/// Downloads a kernel and puts it into the cache, whole or not at all.
fn unpack(apt: &Apt, package: &str, cache: &Path) -> Result<()> {
    let work = cache.join(format!("new-{}", std::process::id()));
    let root = work.join("root");
    apt.unpack(&[package], &root)?;
    if !root.join("lib").exists() {
        // Newer packages have everything below /usr; modprobe looks for /lib.
        std::os::unix::fs::symlink("usr/lib", root.join("lib"))
            .with_context(|| format!("cannot make {}/lib", root.display()))?;
    }
    let release = package.trim_start_matches(PREFIX);
    process::run(program("depmod")?.arg("-b").arg(&root).arg(release))?;
    let to = cache.join(package);
    fs::rename(&root, &to)
        .with_context(|| format!("cannot rename {} to {}", root.display(), to.display()))?;
    fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))
}

impl Kernel {
    /// These modules and what they need, in the order of loading; what is built in is left out.
    pub(super) fn modules(&self, names: &[&str]) -> Result<Vec<Module>> {
        let mut modules: Vec<Module> = Vec::new();
        for name in names {
            let mut modprobe = program("modprobe")?;
            modprobe.arg("-d").arg(&self.root).args(["-S", &self.release, "--show-depends", name]);
            let shown = process::output(&mut modprobe)?;
            for module in shown.lines().filter_map(Module::parse) {
                if modules.iter().all(|known| known.path != module.path) {
                    modules.push(module);
                }
            }
        }
        Ok(modules)
    }
}

impl Module {
    /// Reads a line of `modprobe --show-depends`; none for what is built in.
    fn parse(line: &str) -> Option<Self> {
        let line = line.trim().strip_prefix("insmod ")?;
        // The path may have spaces; its directories do not end in `.ko`.
        let (file, extension) = [".ko.xz", ".ko"].into_iter().find_map(|extension| {
            let end = line
                .find(&format!("{extension} "))
                .or_else(|| line.ends_with(extension).then(|| line.len() - extension.len()))?;
            Some((&line[..end], extension))
        })?;
        let options = line[file.len() + extension.len()..].trim().to_owned();
        let name = format!("{}.ko", file.rsplit('/').next()?);
        Some(Self { name, options, path: PathBuf::from(format!("{file}{extension}")) })
    }

    /// What is in it, as the kernel takes it.
    pub(super) fn read(&self) -> Result<Vec<u8>> {
        if self.path.extension().is_none_or(|extension| extension != "xz") {
            return fs::read(&self.path).with_context(|| format!("cannot read {}", self.path.display()));
        }
        let mut unxz = Command::new(busybox()?);
        unxz.args(["unxz", "-c"]).arg(&self.path).stdin(Stdio::null()).stderr(Stdio::inherit());
        let line = process::line(&unxz);
        let out = unxz.output().with_context(|| format!("cannot start: {line}"))?;
        if !out.status.success() {
            bail!("failed ({}): {line}", out.status);
        }
        Ok(out.stdout)
    }
}

/// A program that only root's `PATH` has.
fn program(name: &str) -> Result<Command> {
    let found = find_program(name)
        .with_context(|| format!("no program `{name}`; `cargo xtask setup` installs it"))?;
    Ok(Command::new(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_told_by_numbers() {
        let packages = [
            "linux-image-6.12-cloud-amd64",
            "linux-image-6.12.101+deb12-cloud-amd64",
            "linux-image-6.12.99+deb12-cloud-amd64",
            "linux-image-6.12.101+deb12-cloud-amd64-dbg",
            "linux-image-6.1.0-47-cloud-amd64",
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-9-amd64",
            "linux-image-5.10.0-46-cloud-amd64",
            "linux-image-5.10.0-46-cloud-amd64-unsigned",
        ]
        .map(str::to_owned);
        let found = |series| newest(series, packages.to_vec());
        assert_eq!(found(Series::V6_12).as_deref(), Some("linux-image-6.12.101+deb12-cloud-amd64"));
        assert_eq!(found(Series::V6_1).as_deref(), Some("linux-image-6.1.0-47-cloud-amd64"));
        assert_eq!(found(Series::V5_10).as_deref(), Some("linux-image-5.10.0-46-cloud-amd64"));
        assert_eq!(newest(Series::V6_1, Vec::new()), None);
    }

    #[test]
    fn modules_are_read_from_modprobe() {
        let read = |line| Module::parse(line).map(|module| (module.name, module.options, module.path));
        let module =
            |name: &str, options: &str, path: &str| Some((name.to_owned(), options.to_owned(), path.into()));
        assert_eq!(read("insmod /a b/veth.ko "), module("veth.ko", "", "/a b/veth.ko"));
        assert_eq!(
            read("insmod /x/dummy.ko.xz numdummies=0"),
            module("dummy.ko", "numdummies=0", "/x/dummy.ko.xz")
        );
        assert_eq!(read("builtin unix"), None);
    }
}
