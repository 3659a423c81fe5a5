//! netpath's files in the directories of a node's runtime: the plugin, its configuration, and what stood there before.

use std::{
    fs::{self, File, Permissions},
    io::{self, BufReader, Read, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};

use crate::{
    root::Root,
    spec::install::{
        CONF, ChoiceError, SAVED, Source, check, choose, cluster_network, is_conf, is_multus, is_ours, source,
    },
    whole::{self, WholeError},
};

/// The plugin's file: the type in configurations.
pub const PLUGIN: &str = "netpath";

/// Where things are to be, as the node has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Directory of the runtime's network configurations.
    pub conf_dir: PathBuf,
    /// Directory of its plugins.
    pub bin_dir: PathBuf,
    /// The file of the cluster network, where the administrator names it.
    pub cluster_network: Option<PathBuf>,
    /// Where the plugin finds what networks are.
    pub source: Source,
    /// What the node is called in the cluster.
    pub node: String,
}

/// Why something could not be installed or taken back.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file.
    #[error(transparent)]
    File(#[from] WholeError),
    /// A file of others, or a directory.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The record of what was installed.
    #[error("{} is not what was written there: remove it, and what it names by hand", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// No network to stand before.
    #[error(transparent)]
    Choice(#[from] ChoiceError),
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    move |source| InstallError::Io { what, path: path.to_owned(), source }
}

/// Written before the first effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Installed {
    conf: PathBuf,
    /// Its text, once it was chosen: what is put back is what was there.
    text: Option<String>,
    /// Files of Multus, by the names that they had.
    saved: Vec<PathBuf>,
    plugin: PathBuf,
    kubeconfig: Option<PathBuf>,
}

/// How the configuration stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Ours is the first.
    Stands,
    /// There was never one.
    Absent,
    /// It was there, and is not, or Multus's comes before it: this is what was found.
    Displaced(String),
    /// A file of somebody else comes before it, so that runtimes do not read ours.
    Preceded(PathBuf),
    /// The cluster network's file is gone, so that no pod can start.
    Without(PathBuf),
    /// It names another cluster network than the administrator does now.
    Other(PathBuf),
}

/// Notes what is to be taken back one day, before anything is done; of a site that was another one everything is
/// taken back first. Says what that was.
pub fn begin(root: &Root, site: &Site) -> Result<Vec<String>, InstallError> {
    let conf = site.conf_dir.join(CONF);
    let known = record(root)?;
    let (text, saved, done) = match known {
        Some(known)
            if known.conf == conf
                && known
                    .text
                    .as_ref()
                    .is_none_or(|text| source(text.as_bytes()).as_ref() == Some(&site.source)) =>
        {
            (known.text, known.saved, Vec::new())
        }
        Some(_) => (None, Vec::new(), restore(root)?),
        None => (None, Vec::new(), Vec::new()),
    };
    let installed = Installed {
        conf,
        text,
        saved,
        plugin: site.bin_dir.join(PLUGIN),
        kubeconfig: match &site.source {
            Source::Api(kubeconfig) => Some(kubeconfig.clone()),
            Source::Directory(_) => None,
        },
    };
    remember(root, &installed)?;
    Ok(done)
}

/// Copies this program to the directory of plugins, where it is not there already; whether it did.
///
/// A plugin that runs meanwhile goes on in the old file.
pub fn plugin(root: &Root, site: &Site) -> Result<bool, InstallError> {
    let dir = below(root, &site.bin_dir);
    make(&dir)?;
    let path = dir.join(PLUGIN);
    let own = Path::new("/proc/self/exe");
    if is_same(own, &path).map_err(io_error("read", &path))? {
        return Ok(false);
    }
    whole::publish(&path, 0o755, |file| {
        io::copy(&mut File::open(own)?, file)?;
        Ok(())
    })?;
    Ok(true)
}

/// How the configuration stands now.
pub fn look(root: &Root, site: &Site) -> Result<State, InstallError> {
    let files = files(&below(root, &site.conf_dir))?;
    let ours = files.iter().find(|(name, text)| name == CONF && is_ours(text));
    let Some((_, text)) = ours else {
        return Ok(match record(root)?.and_then(|installed| installed.text) {
            None => State::Absent,
            Some(_) => State::Displaced(traces(root, site)?),
        });
    };
    if let Some((name, text)) = files.first().filter(|(name, _)| name != CONF) {
        let path = site.conf_dir.join(name);
        return Ok(match is_multus(text) {
            true => State::Displaced(path.display().to_string()),
            false => State::Preceded(path),
        });
    }
    let network = cluster_network(text);
    if let (Some(network), Some(wanted)) = (&network, &site.cluster_network)
        && network != wanted
    {
        return Ok(State::Other(network.clone()));
    }
    let gone = network.filter(|path| !below(root, path).exists());
    Ok(gone.map_or(State::Stands, State::Without))
}

/// Writes the configuration for the first time, or puts back what was written then. Files of Multus that come before
/// it are set aside, after ours is there: the node is never without one.
pub fn configure(root: &Root, site: &Site) -> Result<(), InstallError> {
    let dir = below(root, &site.conf_dir);
    make(&dir)?;
    let files = files(&dir)?;
    begin(root, site)?;
    let Some(mut installed) = record(root)? else { return Ok(()) };
    let text = match installed.text.take() {
        Some(text) => text,
        None => {
            let choice = choose(&site.conf_dir, &files, site.cluster_network.as_deref())?;
            let text = choice.conflist(&site.source, &site.node);
            if let Some(network) = cluster_network(text.as_bytes()) {
                check(&network, whole::read(&below(root, &network))?.as_deref())?;
            }
            text
        }
    };
    installed.text = Some(text.clone());
    let before = installed.saved.clone();
    for (name, text) in &files {
        let path = site.conf_dir.join(name);
        if is_multus(text) && !installed.saved.contains(&path) {
            installed.saved.push(path);
        }
    }
    remember(root, &installed)?;
    let conf = below(root, &installed.conf);
    if !whole::read(&conf)?.is_some_and(|text| is_ours(&text)) {
        whole::publish(&conf, 0o600, |file| file.write_all(text.as_bytes()))?;
    }
    for path in &installed.saved {
        let path = below(root, path);
        let aside = saved(&path);
        // Beside ours Multus takes ours for the cluster's, so what it wrote first is what is kept, if it is of this time.
        let is_again = before.iter().any(|known| below(root, known) == path) && aside.exists();
        let done = match (path.exists(), is_again) {
            (false, _) => Ok(()),
            (true, false) => fs::rename(&path, &aside),
            (true, true) => fs::remove_file(&path),
        };
        done.map_err(io_error("set aside", &path))?;
    }
    Ok(())
}

/// Takes the configuration back: what stood there before stands there again. The plugin stays, for runtimes that
/// remember what a pod was made with. Says what it did.
pub fn restore(root: &Root) -> Result<Vec<String>, InstallError> {
    let Some(installed) = record(root)? else { return Ok(Vec::new()) };
    let mut done = Vec::new();
    for path in &installed.saved {
        let (path, aside) = (below(root, path), saved(&below(root, path)));
        match (path.exists(), aside.exists()) {
            (_, false) => {}
            // Somebody has written it anew; two of one name cannot be told apart by us.
            (true, true) => done.push(format!(
                "{} is there, and {} is from before: one of them is to be removed",
                path.display(),
                aside.display()
            )),
            (false, true) => {
                fs::rename(&aside, &path).map_err(io_error("put back", &path))?;
                done.push(format!("{} is back", path.display()));
            }
        }
    }
    let conf = below(root, &installed.conf);
    if whole::read(&conf)?.is_some_and(|text| is_ours(&text)) {
        whole::remove(&conf)?;
        done.push(format!("{} is removed: pods get the cluster network alone", conf.display()));
    }
    if let Some(kubeconfig) = &installed.kubeconfig {
        let kubeconfig = below(root, kubeconfig);
        for path in [token(&kubeconfig), kubeconfig] {
            if whole::remove(&path)? {
                done.push(format!("{} is removed", path.display()));
            }
        }
    }
    let plugin = below(root, &installed.plugin);
    if plugin.exists() {
        done.push(format!(
            "{} stays, for runtimes that call it when a pod ends that was made with it",
            plugin.display()
        ));
    }
    whole::remove(&root.installed())?;
    // What writers left that were killed: the largest is the plugin's.
    for file in
        [Some(&installed.plugin), Some(&installed.conf), installed.kubeconfig.as_ref()].into_iter().flatten()
    {
        if let Some(dir) = below(root, file).parent() {
            whole::sweep(dir)?;
        }
    }
    Ok(done)
}

/// The token of a kubeconfig that netpath writes, which names it.
pub fn token(kubeconfig: &Path) -> PathBuf {
    kubeconfig.with_extension("token")
}

fn record(root: &Root) -> Result<Option<Installed>, InstallError> {
    let path = root.installed();
    let Some(bytes) = whole::read(&path)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|source| InstallError::Record { path, source })
}

fn remember(root: &Root, installed: &Installed) -> Result<(), InstallError> {
    let path = root.installed();
    let bytes = serde_json::to_vec_pretty(installed)
        .map_err(|source| InstallError::Record { path: path.clone(), source })?;
    if whole::read(&path)?.as_deref() == Some(&bytes[..]) {
        return Ok(());
    }
    make(path.parent().unwrap_or(Path::new("/")))?;
    Ok(whole::publish(&path, 0o600, |file| file.write_all(&bytes))?)
}

/// What runtimes read of a directory, in their order.
fn files(dir: &Path) -> Result<Vec<(String, Vec<u8>)>, InstallError> {
    let mut files = Vec::new();
    for name in names(dir)?.into_iter().filter(|name| is_conf(name)) {
        let path = dir.join(&name);
        // One that goes meanwhile was never there; a directory of such a name is none.
        match whole::bytes(&path) {
            Ok(text) => files.push((name, text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound || path.is_dir() => {}
            // No configuration, as one that is not JSON.
            Err(error) if whole::Unfit::of(&error).is_some() => files.push((name, Vec::new())),
            Err(error) => return Err(io_error("read", &path)(error)),
        }
    }
    files.sort();
    Ok(files)
}

fn names(dir: &Path) -> Result<Vec<String>, InstallError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_error("list", dir)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(io_error("list", dir))?.file_name();
        names.push(name.to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// What is left of a configuration that somebody took away.
fn traces(root: &Root, site: &Site) -> Result<String, InstallError> {
    let path = site.conf_dir.join(CONF);
    let names = names(&below(root, &site.conf_dir))?;
    Ok(match names.iter().find(|name| name.starts_with(CONF) && *name != CONF) {
        Some(name) if name.ends_with(".cilium_bak") => {
            format!("{} was renamed to {name}: set `cni.exclusive` of Cilium to false", path.display())
        }
        Some(name) => format!("{} was renamed to {name}", path.display()),
        None if names.iter().any(|name| name == CONF) => {
            format!("{} was overwritten", path.display())
        }
        None => format!("{} was removed", path.display()),
    })
}

fn saved(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(SAVED);
    name.into()
}

fn below(root: &Root, path: &Path) -> PathBuf {
    root.join(&path.to_string_lossy())
}

/// Directories of the runtime are for everybody to read.
fn make(dir: &Path) -> Result<(), InstallError> {
    if dir.exists() {
        return Ok(());
    }
    // Whatever this process's mask is.
    let made = fs::create_dir_all(dir).and_then(|()| fs::set_permissions(dir, Permissions::from_mode(0o755)));
    made.map_err(io_error("create", dir))
}

/// Whether there is a program at `path` with the bytes of `one`.
fn is_same(one: &Path, path: &Path) -> io::Result<bool> {
    let open = |path: &Path| {
        // A pipe would be waited for.
        let file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path);
        file.map(|file| (file.metadata().map(|it| (it.len(), it.is_file())), BufReader::new(file)))
    };
    let mut other = match open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    let mut one = open(one)?;
    let mode = fs::metadata(path)?.permissions().mode();
    if one.0? != other.0? || mode & 0o111 != 0o111 {
        return Ok(false);
    }
    let (mut a, mut b) = ([0; 8192], [0; 8192]);
    loop {
        let length = one.1.read(&mut a)?;
        if length == 0 {
            return Ok(true);
        }
        other.1.read_exact(&mut b[..length])?;
        if a[..length] != b[..length] {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    struct Node {
        _dir: tempfile::TempDir,
        root: Root,
        site: Site,
    }

    impl Node {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let root = Root::new(dir.path());
            let site = Site {
                conf_dir: "/etc/cni/net.d".into(),
                bin_dir: "/opt/cni/bin".into(),
                cluster_network: None,
                source: Source::Api("/etc/cni/net.d/netpath.d/netpath.kubeconfig".into()),
                node: "worker01".to_owned(),
            };
            fs::create_dir_all(root.join("/etc/cni/net.d/netpath.d")).unwrap();
            let node = Self { _dir: dir, root, site };
            node.write("10-calico.conflist", &json!({"name": "calico", "plugins": [{"type": "calico"}]}));
            node
        }

        fn path(&self, name: &str) -> PathBuf {
            self.root.join("/etc/cni/net.d").join(name)
        }

        fn write(&self, name: &str, conf: &serde_json::Value) {
            fs::write(self.path(name), conf.to_string()).unwrap();
        }

        fn names(&self) -> Vec<String> {
            names(&self.root.join("/etc/cni/net.d")).unwrap()
        }

        fn state(&self) -> State {
            look(&self.root, &self.site).unwrap()
        }

        fn multus(&self) {
            let conf = json!({"name": "m", "type": "multus", "clusterNetwork": "/host/etc/cni/net.d/10-calico.conflist"});
            self.write("00-multus.conf", &conf);
        }
    }

    #[test]
    fn a_node_is_configured_and_given_back() {
        let node = Node::new();
        assert_eq!(node.state(), State::Absent);
        configure(&node.root, &node.site).unwrap();
        assert_eq!(node.state(), State::Stands);
        let text = fs::read(node.path(CONF)).unwrap();
        // Nothing is written again, whatever the cluster network becomes.
        node.write("05-other.conf", &json!({"name": "other", "type": "bridge"}));
        configure(&node.root, &node.site).unwrap();
        assert_eq!((fs::read(node.path(CONF)).unwrap(), node.state()), (text, State::Stands));
        fs::remove_file(node.path("05-other.conf")).unwrap();
        fs::write(node.path("netpath.d/netpath.kubeconfig"), "").unwrap();
        fs::write(node.path("netpath.d/netpath.token"), "").unwrap();
        assert_eq!(restore(&node.root).unwrap().len(), 3);
        assert_eq!(node.names(), ["10-calico.conflist", "netpath.d"]);
        assert_eq!(names(&node.path("netpath.d")).unwrap(), [""; 0]);
        assert!(restore(&node.root).unwrap().is_empty());
        assert_eq!(node.state(), State::Absent);
    }

    #[test]
    fn multus_gives_its_place_and_gets_it_back() {
        let node = Node::new();
        node.multus();
        configure(&node.root, &node.site).unwrap();
        let aside = "00-multus.conf.netpath-saved";
        assert_eq!(node.names(), [aside, CONF, "10-calico.conflist", "netpath.d"]);
        let text = fs::read_to_string(node.path(CONF)).unwrap();
        assert!(text.contains("\"/etc/cni/net.d/10-calico.conflist\""), "{text}");
        // Its DaemonSet still runs.
        node.multus();
        let State::Displaced(what) = node.state() else { panic!("{:?}", node.state()) };
        assert_eq!(what, "/etc/cni/net.d/00-multus.conf");
        configure(&node.root, &node.site).unwrap();
        assert_eq!(node.state(), State::Stands);
        node.multus();
        let text = fs::read_to_string(node.path(aside)).unwrap();
        node.write(
            "00-multus.conf",
            &json!({"name": "m", "type": "multus", "clusterNetwork": "/etc/cni/net.d/00-netpath.conflist"}),
        );
        configure(&node.root, &node.site).unwrap();
        assert_eq!(
            fs::read_to_string(node.path(aside)).unwrap(),
            text,
            "what it wrote beside ours is not kept"
        );
        restore(&node.root).unwrap();
        assert_eq!(node.names(), ["00-multus.conf", "10-calico.conflist", "netpath.d"]);
        // Written anew after ours: both stay, and it is said.
        configure(&node.root, &node.site).unwrap();
        node.multus();
        let done = restore(&node.root).unwrap();
        assert!(done[0].ends_with("one of them is to be removed"), "{done:?}");
        assert_eq!(node.names(), ["00-multus.conf", aside, "10-calico.conflist", "netpath.d"]);
    }

    #[test]
    fn what_was_there_and_where_is_known_before_it_is() {
        let mut node = Node::new();
        // Written by hand, it is taken back all the same.
        let ours = json!({"name": "n", "plugins": [{"type": "netpath", "clusterNetwork": "/etc/cni/net.d/10-calico.conflist"}]});
        node.write(CONF, &ours);
        begin(&node.root, &node.site).unwrap();
        assert_eq!(node.state(), State::Stands);
        node.site.cluster_network = Some("/etc/cni/net.d/11-other.conf".into());
        assert_eq!(node.state(), State::Other("/etc/cni/net.d/10-calico.conflist".into()));
        node.site.cluster_network = None;
        // In another directory nothing of the first one stays.
        let dir = node.root.join("/var/cni");
        fs::create_dir_all(&dir).unwrap();
        fs::copy(node.path("10-calico.conflist"), dir.join("10-calico.conflist")).unwrap();
        node.site.conf_dir = "/var/cni".into();
        assert_eq!(begin(&node.root, &node.site).unwrap().len(), 1);
        assert_eq!(
            (node.names(), node.state()),
            (vec!["10-calico.conflist".into(), "netpath.d".into()], State::Absent)
        );
        configure(&node.root, &node.site).unwrap();
        assert_eq!(node.state(), State::Stands);
        restore(&node.root).unwrap();
        assert_eq!(names(&dir).unwrap(), ["10-calico.conflist"]);
    }

    #[test]
    fn what_others_do_to_it_is_named() {
        let node = Node::new();
        configure(&node.root, &node.site).unwrap();
        node.write("00-first.conf", &json!({"name": "first", "type": "bridge"}));
        assert_eq!(node.state(), State::Preceded("/etc/cni/net.d/00-first.conf".into()));
        fs::remove_file(node.path("00-first.conf")).unwrap();
        fs::rename(node.path("10-calico.conflist"), node.path("10-calico.conflist.bak")).unwrap();
        assert_eq!(node.state(), State::Without("/etc/cni/net.d/10-calico.conflist".into()));
        let displaced = || match node.state() {
            State::Displaced(what) => what,
            other => panic!("{other:?}"),
        };
        fs::rename(node.path(CONF), node.path("00-netpath.conflist.cilium_bak")).unwrap();
        assert!(displaced().contains("cni.exclusive"));
        node.write(CONF, &json!({"name": "x", "type": "bridge"}));
        fs::remove_file(node.path("00-netpath.conflist.cilium_bak")).unwrap();
        assert!(displaced().ends_with("was overwritten"));
        fs::remove_file(node.path(CONF)).unwrap();
        assert!(displaced().ends_with("was removed"));
        configure(&node.root, &node.site).unwrap();
        assert!(is_ours(&fs::read(node.path(CONF)).unwrap()));
    }

    #[test]
    fn the_plugin_is_this_program() {
        let node = Node::new();
        assert!(plugin(&node.root, &node.site).unwrap());
        assert!(!plugin(&node.root, &node.site).unwrap());
        let path = node.root.join("/opt/cni/bin/netpath");
        assert!(is_same(&path, Path::new("/proc/self/exe")).unwrap());
        File::options().write(true).open(&path).unwrap().write_all(b"x").unwrap();
        assert!(plugin(&node.root, &node.site).unwrap());
        assert_eq!(names(&node.root.join("/opt/cni/bin")).unwrap(), [PLUGIN]);
    }
}
