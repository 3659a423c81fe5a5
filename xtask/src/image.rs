//! `cargo xtask image`: the release binary as a container image, and nothing besides it.
//!
//! buildah makes it, without a daemon, a registry or rights. All that it keeps lies below the target directory and is
//! removed. What goes into the image depends on the tree alone, so that whoever builds a tree again gets the same bytes.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{
    build::{self, Profile},
    elf,
    process::{self, find_program, say},
    workspace,
};

/// The image's name, as manifests have it.
pub(crate) const NAME: &str = concat!("localhost/netpath:", env!("CARGO_PKG_VERSION"));

/// Largest archive, in bytes: every node pulls it.
const SIZE_LIMIT: u64 = 15_000_000;

/// The archive's name until it is whole.
const DRAFT: &str = "netpath.tar";

/// How the image is made.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Name of the image.
    #[arg(long, default_value = NAME)]
    tag: String,
    /// This netpath; otherwise the release binary is built.
    #[arg(long)]
    netpath: Option<PathBuf>,
}

/// An image in an archive, in the format of `docker save`.
pub(crate) struct Image {
    pub(crate) archive: PathBuf,
    /// As the archive has it.
    name: String,
    /// The digest of its configuration, by which runtimes know an image.
    id: String,
}

/// Builds the image and says what it is.
pub(crate) fn run(options: &Options) -> Result<()> {
    let netpath = match &options.netpath {
        Some(netpath) => fs::canonicalize(netpath).with_context(|| format!("no {}", netpath.display()))?,
        None => build::run(Profile::Release)?,
    };
    let image = archive(&netpath, &options.tag)?;
    let size = size(&image.archive)?;
    say(format_args!("image:   {}", image.name));
    say(format_args!("digest:  sha256:{} (the image's ID)", image.id));
    say(format_args!("archive: {}", image.archive.display()));
    say(format_args!("size:    {size} bytes, compressed {}", compressed(&image.archive)?));
    Ok(())
}

/// Puts a binary into an image of this name.
pub(crate) fn archive(netpath: &Path, name: &str) -> Result<Image> {
    must_be_static(netpath)?;
    let dir = workspace::target_directory()?.join("image");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    // Two at once would remove each other's storage. The lock goes with this process.
    let lock = dir.join("lock");
    let lock = File::create(&lock).with_context(|| format!("cannot create {}", lock.display()))?;
    lock.lock().context("cannot wait for another build of the image")?;
    let storage = Storage::new(&dir.join("storage"))?;
    let archive = dir.join("netpath.tar");
    let (revision, time) = source();
    storage.buildah(&["from", "--isolation", "chroot", "--name", "netpath", "scratch"])?;
    let (binary, entry) = (netpath.to_string_lossy(), "/netpath");
    storage.buildah(&["copy", "--quiet", "--chmod", "0755", "--chown", "0:0", "netpath", &binary, entry])?;
    storage.buildah(&["copy", "--quiet", "--chown", "0:0", "netpath", Storage::LINKS, "/"])?;
    let mut labels = vec![
        "title=netpath".to_owned(),
        concat!("version=", env!("CARGO_PKG_VERSION")).to_owned(),
        concat!("licenses=", env!("CARGO_PKG_LICENSE")).to_owned(),
    ];
    labels.extend(revision.map(|revision| format!("revision={revision}")));
    for label in &mut labels {
        label.insert_str(0, "org.opencontainers.image.");
    }
    let mut words = vec!["config", "--entrypoint", "[\"/netpath\"]", "--created-by", "cargo xtask image"];
    words.extend(labels.iter().flat_map(|label| ["--label", label]));
    words.push("netpath");
    storage.buildah(&words)?;
    // Without a directory, of which a colon would end the path.
    let destination = format!("docker-archive:{DRAFT}:{name}");
    // buildah's own label is the version of what is installed here.
    let same = ["--identity-label=false", "--timestamp", &time];
    storage.buildah(&[&["commit", "--quiet", "--rm"][..], &same, &["netpath", &destination]].concat())?;
    let draft = storage.dir.join(DRAFT);
    let (name, id) = described(&draft)?;
    let size = size(&draft)?;
    if SIZE_LIMIT <= size {
        bail!(
            "the image {name} has {size} bytes, it must have less than {SIZE_LIMIT}: what made the binary grow?"
        );
    }
    fs::rename(&draft, &archive).with_context(|| format!("cannot create {}", archive.display()))?;
    Ok(Image { archive, name, id })
}

/// There is no loader and no library in the image.
fn must_be_static(netpath: &Path) -> Result<()> {
    let program = fs::read(netpath).with_context(|| format!("cannot read {}", netpath.display()))?;
    let needs = elf::dynamic_needs(&program)
        .with_context(|| format!("{} cannot be the one program of an image", netpath.display()))?;
    if !needs.is_empty() {
        bail!(
            "{} is not static, and nothing that it needs is in the image ({}): take what `cargo xtask build --release` makes",
            netpath.display(),
            needs.join(", ")
        );
    }
    Ok(())
}

/// The commit that is checked out, and its time in seconds. In a tree without git there is none: the time is 0 then.
fn source() -> (Option<String>, String) {
    let git = |words: &[&str]| {
        let mut git = Command::new("git");
        let text = process::output(git.arg("-C").arg(workspace::root()?).args(words))?;
        anyhow::Ok(text.trim().to_owned())
    };
    let revision = git(&["describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]);
    match revision.and_then(|revision| Ok((revision, git(&["log", "-1", "--format=%ct"])?))) {
        Ok((revision, time)) => (Some(revision), time),
        Err(error) => {
            say(format_args!("the image does not say which commit it is of: {error:#}"));
            (None, "0".to_owned())
        }
    }
}

/// What buildah keeps while it works. Dropped, it is removed.
struct Storage {
    buildah: PathBuf,
    dir: PathBuf,
}

impl Storage {
    /// A directory with what the image has besides the binary.
    const LINKS: &str = "links";

    fn new(dir: &Path) -> Result<Self> {
        let buildah = find_program("buildah").context("buildah is missing: `cargo xtask setup`")?;
        let storage = Self { buildah, dir: dir.to_owned() };
        // One that was killed has left it.
        storage.remove()?;
        let temporary = dir.join("tmp");
        fs::create_dir_all(&temporary).with_context(|| format!("cannot create {}", temporary.display()))?;
        let var = dir.join(Self::LINKS).join("var");
        fs::create_dir_all(&var).with_context(|| format!("cannot create {}", var.display()))?;
        // Runtimes hand out namespaces as /var/run/netns/..., which on a node is the same as /run/netns/...
        std::os::unix::fs::symlink("/run", var.join("run")).context("cannot link var/run")?;
        // Whatever the umask of who builds.
        fs::set_permissions(&var, PermissionsExt::from_mode(0o755)).context("cannot open var to all")?;
        let write = |name: &str, text: String| {
            let path = dir.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        let quoted = |name: &str| Value::from(dir.join(name).to_string_lossy());
        let (root, run) = (quoted("root"), quoted("run"));
        write("storage.conf", format!("[storage]\ndriver = \"vfs\"\ngraphroot = {root}\nrunroot = {run}\n"))?;
        // Otherwise a lock is made in /etc/cni/net.d, and that directory as well.
        write("containers.conf", format!("[network]\nnetwork_config_dir = {}\n", quoted("cni")))?;
        Ok(storage)
    }

    /// Runs it with settings of its own: those of the machine may ask for what does not work in a container.
    fn buildah(&self, words: &[&str]) -> Result<()> {
        let mut buildah = Command::new(&self.buildah);
        buildah.current_dir(&self.dir);
        buildah.env("CONTAINERS_STORAGE_CONF", self.dir.join("storage.conf"));
        buildah.env("CONTAINERS_CONF", self.dir.join("containers.conf"));
        buildah.env("TMPDIR", self.dir.join("tmp"));
        for name in ["STORAGE_DRIVER", "STORAGE_OPTS", "BUILDAH_FORMAT"] {
            buildah.env_remove(name);
        }
        buildah.arg("--root").arg(self.dir.join("root")).arg("--runroot").arg(self.dir.join("run"));
        process::output(buildah.args(["--storage-driver", "vfs"]).args(words)).map(drop)
    }

    fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.dir.display()))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            say(format_args!("storage of buildah is left: {error:#}"));
        }
    }
}

/// Name and ID of the image in an archive, as those who load it will read them.
fn described(archive: &Path) -> Result<(String, String)> {
    let text = process::output(
        Command::new("tar").args(["--extract", "--to-stdout", "--file"]).arg(archive).arg("manifest.json"),
    )?;
    let manifest: Value = serde_json::from_str(&text).context("manifest.json is not JSON")?;
    let word = |pointer: &str| manifest.pointer(pointer).and_then(Value::as_str);
    let name = word("/0/RepoTags/0").context("the archive does not name the image")?;
    let config = word("/0/Config").context("the archive does not name the image's configuration")?;
    Ok((name.to_owned(), config.trim_end_matches(".json").to_owned()))
}

/// About what goes over the wire, in bytes.
fn compressed(archive: &Path) -> Result<u64> {
    let mut gzip = Command::new("gzip");
    gzip.arg("--stdout").arg(archive).stdout(Stdio::piped());
    let line = process::line(&gzip);
    let mut child = gzip.spawn().with_context(|| format!("cannot start: {line}"))?;
    let mut stdout = child.stdout.take().with_context(|| format!("no output of: {line}"))?;
    let size = std::io::copy(&mut stdout, &mut std::io::sink())
        .with_context(|| format!("cannot read the output of: {line}"))?;
    let status = child.wait().with_context(|| format!("cannot wait for: {line}"))?;
    if !status.success() {
        bail!("failed ({status}): {line}");
    }
    Ok(size)
}

fn size(path: &Path) -> Result<u64> {
    Ok(path.metadata().with_context(|| format!("cannot read {}", path.display()))?.len())
}

#[test]
fn what_needs_other_files_is_refused() {
    let this_test = std::env::current_exe().unwrap();
    let error = must_be_static(&this_test).unwrap_err().to_string();
    assert!(error.contains("libc.") && error.ends_with("`cargo xtask build --release` makes"), "{error}");
    let error = must_be_static(&workspace::root().unwrap().join("Cargo.toml")).unwrap_err();
    let text = "Cargo.toml cannot be the one program of an image: not a 64-bit ELF program: ";
    assert!(format!("{error:#}").contains(text), "{error:#}");
}

#[test]
fn manifests_name_this_image() {
    let deploy = workspace::root().unwrap().join("deploy");
    let grep = ["--recursive", "--no-filename", "--only-matching", "image: .*/netpath.*"];
    let found = process::output(Command::new("grep").args(grep).arg(deploy)).unwrap();
    assert!(found.lines().all(|line| line == format!("image: {NAME}")), "not {NAME}:\n{found}");
}
