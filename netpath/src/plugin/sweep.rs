//! Ends what no runtime will send a DEL for any more.
//!
//! Runtimes lose sandboxes: a node that was reset, a record of theirs that was torn. Hardly one of them calls GC. What
//! is dead is found by two witnesses, the kernel and the runtime, and by nobody's opinion; only what our own records
//! name is touched.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::{CHAINED, MetaError, Origin, PluginError, serve};
use crate::{
    cluster::{Cluster as _, Directory},
    delegate::{self, DelegateError},
    ipam, police,
    root::Root,
    spec::{CniEnv, ContainerId, Delegate, IfName, json::View},
    state::{
        DelegateCache, DeviceInfos, FirstNetwork, Record, Records, ResultCache, Sandbox, Sandboxes, boot_id,
    },
};

/// What was made a moment ago may not be known to everybody yet.
const YOUNG: Duration = Duration::from_secs(600);

/// How long a reservation directory is waited for that is only looked at.
const LOOK: Duration = Duration::from_secs(2);

/// IPAMs that this binary has itself.
const HOST_LOCAL: &str = "host-local";
const STATIC: &str = "static";

/// Something that our records say was made.
#[derive(Clone, Debug)]
pub struct Known {
    /// What it is.
    pub what: What,
    /// Its sandbox.
    pub container_id: ContainerId,
    /// What was made in this process, and is policed perhaps.
    pub records: Vec<Record>,
}

/// What is known.
#[derive(Clone, Debug)]
pub enum What {
    /// All networks of a sandbox.
    Sandbox(Sandbox),
    /// The same, ended but for a part.
    SetAside(Sandbox),
    /// One of which the record cannot be read.
    Torn(Torn),
    /// One attachment, made by a runtime or another meta-plugin that called us for it alone.
    Attachment,
}

/// A record that cannot be read, with what Multus's cache has instead.
#[derive(Clone, Debug)]
pub struct Torn {
    /// The file.
    path: PathBuf,
    /// The interface, where it is the record of one attachment.
    ifname: Option<IfName>,
    /// The networks, each with the path of its namespace.
    delegates: Vec<(Delegate, Option<PathBuf>)>,
}

/// Whether it is still needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// The runtime lists its sandbox.
    Listed,
    /// Its network namespace stands.
    Stands,
    /// Nobody knows it, but it is not ten minutes old.
    Young,
    /// Nobody will ask for its end.
    Dead,
}

/// How an end came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Nothing is left.
    Whole,
    /// A part is still set aside: what could end it is gone.
    SetAside,
    /// It was not ended: its container id is in use again, or somebody else has ended it.
    Changed,
}

/// All that is known, those that were set aside last. To be read before a runtime is asked.
pub fn known(root: &Root) -> Result<Vec<Known>, PluginError> {
    let sandboxes = Sandboxes::new(root);
    let listing = Records::new(root).all()?;
    let mut records = listing.records;
    let mut known = Vec::new();
    for sandbox in sandboxes.all()? {
        let container_id = ContainerId::parse("container_id", &sandbox.container_id)?;
        let (own, others) = records.into_iter().partition(|record| record.container_id == container_id);
        records = others;
        known.push(Known { what: What::Sandbox(sandbox), container_id, records: own });
    }
    for (container_id, path) in sandboxes.torn()? {
        let (own, others) = records.into_iter().partition(|record| record.container_id == container_id);
        records = others;
        let delegates = Torn::delegates(root, &container_id)?;
        known.push(Known {
            what: What::Torn(Torn { path, ifname: None, delegates }),
            container_id,
            records: own,
        });
    }
    known.extend(records.into_iter().map(|record| Known {
        what: What::Attachment,
        container_id: record.container_id.clone(),
        records: vec![record],
    }));
    for sandbox in sandboxes.set_aside_before()? {
        let container_id = ContainerId::parse("container_id", &sandbox.container_id)?;
        if !known.iter().any(|it| it.container_id == container_id) {
            known.push(Known { what: What::SetAside(sandbox), container_id, records: Vec::new() });
        }
    }
    for torn in listing.torn {
        let Some((container_id, ifname)) = Records::attachment_of(&torn.path) else { continue };
        // One of a sandbox that is known ends with it.
        let is_part = |it: &Known| it.container_id == container_id && !matches!(it.what, What::Attachment);
        if !known.iter().any(is_part) {
            let delegates = Torn::delegates(root, &container_id)?;
            let torn = Torn { path: torn.path, ifname: Some(ifname), delegates };
            known.push(Known { what: What::Torn(torn), container_id, records: Vec::new() });
        }
    }
    Ok(known)
}

/// Whether the sandbox is provably gone: another boot, no such namespace, or another one at its path.
pub(super) fn is_sandbox_gone(sandbox: &Sandbox, boot: &str) -> bool {
    sandbox.boot_id != boot || sandbox.netns.as_ref().is_some_and(police::is_netns_gone)
}

impl Known {
    /// Whether it is still needed, by what the runtimes list, where there is one that can be asked.
    pub fn life(&self, listed: Option<&BTreeSet<String>>, boot: &str, now: u64) -> Life {
        // Seconds ago; what is said to come from later than that, or from another boot, is not young for ever.
        let is_young =
            |created: u64, boot_id: &str| boot_id == boot && now.abs_diff(created) < YOUNG.as_secs();
        let (is_gone, is_young) = match &self.what {
            // The records of its attachments tell; without them the runtime has to, and what is at its path.
            What::Torn(torn) if self.records.is_empty() => {
                let mut paths = torn.delegates.iter().filter_map(|(_, netns)| netns.as_deref());
                (listed.is_some() && !paths.any(Path::exists), torn.is_young(now))
            }
            What::Torn(torn) => (self.records.iter().all(|it| police::is_gone(it, boot)), torn.is_young(now)),
            What::Sandbox(sandbox) => {
                (is_sandbox_gone(sandbox, boot), is_young(sandbox.created, &sandbox.boot_id))
            }
            // Its DEL has come, so where no namespace is known the runtime alone has to tell.
            What::SetAside(sandbox) => {
                let is_told = sandbox.netns.is_none() && listed.is_some();
                (is_told || is_sandbox_gone(sandbox, boot), is_young(sandbox.created, &sandbox.boot_id))
            }
            What::Attachment => {
                let is_young = self.records.iter().any(|it| is_young(it.created, &it.boot_id));
                (self.records.iter().all(|it| police::is_gone(it, boot)), is_young)
            }
        };
        match () {
            () if listed.is_some_and(|listed| listed.contains(self.container_id.as_str())) => Life::Listed,
            () if !is_gone => Life::Stands,
            () if is_young => Life::Young,
            () => Life::Dead,
        }
    }

    /// Names of its interfaces.
    pub fn interfaces(&self) -> Vec<String> {
        match &self.what {
            What::Sandbox(it) | What::SetAside(it) => {
                self.delegates(it).into_iter().map(|delegate| delegate.ifname.to_string()).collect()
            }
            What::Attachment => self.records.iter().map(|record| record.ifname.to_string()).collect(),
            What::Torn(torn) => match &torn.ifname {
                Some(ifname) => vec![ifname.to_string()],
                None => torn.delegates.iter().map(|(delegate, _)| delegate.ifname.to_string()).collect(),
            },
        }
    }

    /// Namespace and name of its pod, where the runtime named one.
    pub fn pod(&self) -> Option<String> {
        let pod = match &self.what {
            What::Sandbox(it) | What::SetAside(it) => it.pod.as_ref(),
            What::Attachment => self.records.iter().find_map(|record| record.pod.as_ref()),
            What::Torn(_) => None,
        };
        pod.map(|pod| format!("{}/{}", pod.namespace, pod.name))
    }

    /// Addresses that are reserved for it in directories of `host-local`, whoever reserved them.
    pub fn reserved(&self, root: &Root) -> Vec<(PathBuf, IpAddr)> {
        let mut directories: BTreeSet<PathBuf> =
            self.records.iter().filter_map(|record| record.host_local_dir.clone()).collect();
        if let What::Sandbox(it) | What::SetAside(it) = &self.what {
            for delegate in self.delegates(it) {
                let ipams = delegate.conf.plugins.iter().filter_map(|plugin| plugin.raw().get("ipam"));
                let host_local = ipams.filter(|ipam| ipam["type"] == HOST_LOCAL);
                directories.extend(host_local.map(|ipam| {
                    let parent = ipam["dataDir"].as_str().map(|dir| root.join(dir));
                    parent.unwrap_or_else(|| root.host_local()).join(delegate.conf.name.as_str())
                }));
            }
        }
        let mut reserved = Vec::new();
        for directory in directories {
            match ipam::reservations(&directory, LOOK) {
                Ok(all) => {
                    let own = all.into_iter().filter(|it| it.container_id == self.container_id.as_str());
                    reserved.extend(own.map(|it| (directory.clone(), it.address)));
                }
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "reservations are not shown");
                }
            }
        }
        reserved
    }

    fn delegates(&self, sandbox: &Sandbox) -> Vec<Delegate> {
        let Ok(first) = IfName::parse("ifname", &sandbox.ifname) else { return Vec::new() };
        let all = sandbox.delegates.iter().enumerate();
        all.filter_map(|(index, value)| Delegate::from_cached(index, &first, value).ok()).collect()
    }

    /// Ends it as its DEL would, by what was recorded alone. Plugins are looked for where its ADD found them, then in
    /// `plugins`.
    pub fn end(&self, root: &Root, plugins: &[PathBuf]) -> Result<End, PluginError> {
        if !self.is_as_judged(root)? {
            return Ok(End::Changed);
        }
        match &self.what {
            What::Sandbox(sandbox) => self.end_sandbox(root, sandbox, plugins),
            What::SetAside(sandbox) => match Sandboxes::new(root).take_up(sandbox, &self.container_id)? {
                true => {
                    let ended = self.end_sandbox(root, sandbox, plugins);
                    let sandboxes = Sandboxes::new(root);
                    if ended.is_err() && sandboxes.read(&self.container_id)?.as_ref() == Some(sandbox) {
                        // As any other record it would be taken for that of a sandbox which stands.
                        sandboxes.set_aside(sandbox, &self.container_id)?;
                    }
                    ended
                }
                // Somebody else has.
                false => Ok(End::SetAside),
            },
            What::Torn(torn) => torn.end(root, &self.container_id, plugins),
            What::Attachment => {
                for record in &self.records {
                    refuse_without_ipam(record, plugins)?;
                    del(root, &self.container_id, &record.ifname, plugins.to_vec(), record.conf.clone())?;
                }
                Ok(End::Whole)
            }
        }
    }

    /// Whether it is still what was looked at, and still gone. A runtime may use an id again at any time.
    fn is_as_judged(&self, root: &Root) -> Result<bool, PluginError> {
        let (sandboxes, boot) = (Sandboxes::new(root), boot_id()?);
        Ok(match &self.what {
            What::Sandbox(it) => {
                sandboxes.read(&self.container_id)?.as_ref() == Some(it) && is_sandbox_gone(it, &boot)
            }
            // A record in its place is looked for when it is taken up.
            What::SetAside(_) => true,
            What::Torn(torn) => match &torn.ifname {
                Some(ifname) => Records::new(root).read(&self.container_id, ifname)?.is_none(),
                None => sandboxes.read(&self.container_id)?.is_none(),
            },
            What::Attachment => {
                let records = Records::new(root);
                let mut is_same = true;
                for record in &self.records {
                    let now = records.read(&record.container_id, &record.ifname)?;
                    is_same &= now.as_ref() == Some(record) && police::is_gone(record, &boot);
                }
                is_same
            }
        })
    }

    fn end_sandbox(&self, root: &Root, sandbox: &Sandbox, plugins: &[PathBuf]) -> Result<End, PluginError> {
        let sandboxes = Sandboxes::new(root);
        let conf = conf_of(root, sandbox);
        let path = sandbox.path.iter().chain(plugins).cloned().collect();
        let ifname = IfName::parse("ifname", &sandbox.ifname)?;
        match del(root, &self.container_id, &ifname, path, conf) {
            // Its own DEL came in between.
            Err(_) if sandboxes.read(&self.container_id)?.is_none() => {}
            result => result?,
        }
        Directory::new(root, PathBuf::new()).forget(&self.container_id).map_err(MetaError::from)?;
        let is_left = sandboxes.set_aside_before()?.iter().any(|it| it.container_id == sandbox.container_id);
        Ok(if is_left { End::SetAside } else { End::Whole })
    }
}

impl Torn {
    fn delegates(
        root: &Root,
        container_id: &ContainerId,
    ) -> Result<Vec<(Delegate, Option<PathBuf>)>, PluginError> {
        let directory = root.multus_cache();
        let cached = DelegateCache::new(directory.clone()).read(container_id)?.unwrap_or_default();
        let results = ResultCache::new(&directory);
        let first = IfName::parse("ifname", "eth0")?;
        let all = cached.iter().enumerate();
        let delegates = all.filter_map(|(index, value)| Delegate::from_cached(index, &first, value).ok());
        let with_netns = delegates.map(|delegate| {
            let result = results.read(&delegate.conf.name, container_id, &delegate.ifname).ok().flatten();
            let netns = result.map(|result| PathBuf::from(result.netns));
            (delegate, netns.filter(|path| path.is_absolute()))
        });
        Ok(with_netns.collect())
    }

    /// By the time of its file.
    fn is_young(&self, now: u64) -> bool {
        let modified = fs::metadata(&self.path).and_then(|file| file.modified());
        let seconds = modified.ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        seconds.is_some_and(|then| now.abs_diff(then.as_secs()) < YOUNG.as_secs())
    }

    /// Ends by Multus's cache what the record cannot say any more.
    fn end(&self, root: &Root, container_id: &ContainerId, plugins: &[PathBuf]) -> Result<End, PluginError> {
        let unknown = || PluginError::from(MetaError::Torn { path: self.path.clone() });
        for plugin in self.delegates.iter().flat_map(|(delegate, _)| &delegate.conf.plugins) {
            let is_ours = [super::MACVLAN, CHAINED].contains(&plugin.kind.as_str());
            if !is_ours && !delegate::exists(&plugin.kind, plugins) {
                let missing = DelegateError::NotFound { plugin: plugin.kind.clone(), path: plugins.to_vec() };
                return Err(MetaError::from(missing).into());
            }
        }
        let (ifname, conf) = match &self.ifname {
            None => {
                let (first, _) = self.delegates.first().ok_or_else(unknown)?;
                let name = first.conf.name.as_str();
                let conf =
                    json!({"cniVersion": "1.0.0", "name": name, "type": CHAINED, "clusterNetwork": name});
                (first.ifname.clone(), conf.as_object().cloned().unwrap_or_default())
            }
            Some(ifname) => {
                let found = self.delegates.iter().find(|(delegate, _)| delegate.ifname == *ifname);
                let conf = &found.ok_or_else(unknown)?.0.conf;
                let own = conf.plugins.iter().position(|plugin| plugin.kind == super::MACVLAN);
                (ifname.clone(), conf.stdin(own.ok_or_else(unknown)?, &Map::new(), None))
            }
        };
        del(root, container_id, &ifname, plugins.to_vec(), conf).map(|()| End::Whole)
    }
}

/// A configuration of the meta-plugin for the DEL of a sandbox: it is the record that says what is to be ended.
pub(super) fn conf_of(root: &Root, sandbox: &Sandbox) -> Map<String, Value> {
    let mut conf = json!({"cniVersion": "1.0.0", "name": sandbox.network, "type": CHAINED,
        "clusterNetwork": sandbox.network});
    if let Some(dir) = &sandbox.cni_dir {
        conf["cniDir"] = dir.display().to_string().into();
    }
    let own = sandbox.path.first().and_then(|dir| dir.strip_prefix(root.path()).ok());
    if let Some(dir) = own {
        conf["binDir"] = Path::new("/").join(dir).display().to_string().into();
    }
    conf.as_object().cloned().unwrap_or_default()
}

/// DEL as a runtime would call it that does not know the sandbox any more.
fn del(
    root: &Root,
    container_id: &ContainerId,
    ifname: &IfName,
    path: Vec<PathBuf>,
    conf: Map<String, Value>,
) -> Result<(), PluginError> {
    let path = std::env::join_paths(path).map(OsString::into_string).unwrap_or_else(|_| Ok(String::new()));
    let env = CniEnv::parse(|name| match name {
        "CNI_COMMAND" => Some("DEL".to_owned()),
        "CNI_CONTAINERID" => Some(container_id.to_string()),
        "CNI_IFNAME" => Some(ifname.to_string()),
        "CNI_PATH" => path.as_ref().ok().cloned(),
        _ => None,
    })?;
    let origin = Origin { depth: 0, nad: None, deadline: None };
    serve(root, env, Value::Object(conf).to_string().as_bytes(), &origin).map(drop)
}

/// DEL takes the loss of addresses for the price of a pod that ends. Nobody waits for a sweep.
fn refuse_without_ipam(record: &Record, plugins: &[PathBuf]) -> Result<(), PluginError> {
    let view = View::root(&record.conf);
    let kind = view.object("ipam")?.map(|ipam| ipam.owned("type")).transpose()?.flatten();
    match kind {
        Some(kind) if ![HOST_LOCAL, STATIC].contains(&kind.as_str()) && !delegate::exists(&kind, plugins) => {
            let missing = DelegateError::NotFound { plugin: kind, path: plugins.to_vec() };
            Err(MetaError::from(missing).into())
        }
        _ => Ok(()),
    }
}

/// Removes the half-written files of calls that were killed.
pub fn drafts(root: &Root, cni_dir: &Path) -> Result<(), PluginError> {
    Sandboxes::new(root).sweep()?;
    DelegateCache::new(cni_dir.to_owned()).sweep()?;
    ResultCache::new(cni_dir).sweep()?;
    DeviceInfos::new(root).sweep()?;
    FirstNetwork::sweep(root)?;
    Records::new(root).sweep()?;
    Directory::new(root, PathBuf::new()).sweep().map_err(MetaError::from)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Netns, Phase};

    fn known(aside: bool, boot: &str, netns: Option<&Path>) -> Known {
        let sandbox = Sandbox {
            container_id: "c1".into(),
            ifname: "eth0".into(),
            phase: Phase::Ready,
            created: 1000,
            boot_id: boot.into(),
            netns: netns.map(|path| Netns { path: path.to_owned(), dev: 1, inode: 1, cookie: None }),
            network: "cluster".into(),
            pod: None,
            annotation: None,
            delegates: Vec::new(),
            args: String::new(),
            runtime: Map::new(),
            path: Vec::new(),
            cni_dir: None,
            pending_status: None,
            pending_events: Vec::new(),
        };
        let what = if aside { What::SetAside(sandbox) } else { What::Sandbox(sandbox) };
        Known { what, container_id: ContainerId::parse("x", "c1").unwrap(), records: Vec::new() }
    }

    #[test]
    fn two_witnesses_and_ten_minutes() {
        let (gone, unseen) = (Path::new("/dev/no-such-netns"), Path::new("/nonexistent/netns"));
        let (none, other) = (BTreeSet::new(), BTreeSet::from(["c1".to_owned()]));
        let late = 1000 + YOUNG.as_secs();
        for (it, listed, now, expected) in [
            (known(false, "b", Some(gone)), Some(&none), late, Life::Dead),
            (known(false, "b", Some(gone)), None, late, Life::Dead),
            // The node's directory is not there for us.
            (known(false, "b", Some(unseen)), Some(&none), late, Life::Stands),
            (known(false, "b", Some(gone)), Some(&none), late - 1, Life::Young),
            // A clock that was set back: a little, and far.
            (known(false, "b", Some(gone)), Some(&none), 900, Life::Young),
            (known(false, "b", Some(gone)), Some(&none), 0, Life::Dead),
            (known(false, "earlier", Some(gone)), Some(&none), 1001, Life::Dead),
            (known(false, "b", Some(gone)), Some(&other), late, Life::Listed),
            (known(false, "earlier", Some(gone)), Some(&other), late, Life::Listed),
            (known(false, "earlier", None), Some(&none), late, Life::Dead),
            (known(false, "b", None), Some(&none), late, Life::Stands),
            (known(true, "b", None), Some(&none), late, Life::Dead),
            (known(true, "b", None), None, late, Life::Stands),
        ] {
            assert_eq!(it.life(listed, "b", now), expected, "{it:?} {listed:?} {now}");
        }
    }
}
