//! What is remembered of a sandbox as a whole: the networks that it was given, and by which call.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::StateError;
use super::record::{Netns, Phase, Pod};
use crate::root::Root;
use crate::spec::{ContainerId, Event};
use crate::whole;

/// One sandbox, identified by its container id.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sandbox {
    /// Its container id.
    pub container_id: String,
    /// Name of its first interface.
    pub ifname: String,
    /// How far the ADD came.
    pub phase: Phase,
    /// Seconds since 1970 when the ADD began.
    pub created: u64,
    /// The boot in which it was made.
    pub boot_id: String,
    /// Its network namespace, where it has one of its own.
    pub netns: Option<Netns>,
    /// `name` of the meta-plugin's configuration.
    pub network: String,
    /// The pod, where the runtime named one.
    pub pod: Option<Pod>,
    /// The annotation by which its networks were chosen: the pod's may have been edited since.
    pub annotation: Option<String>,
    /// The networks, in the order in which they were attached, as Multus's delegate cache has them.
    pub delegates: Vec<Value>,
    /// CNI_ARGS of the ADD.
    pub args: String,
    /// What the runtime passed for capabilities, without the pod's annotations.
    pub runtime: Map<String, Value>,
    /// Directories of plugins of the ADD.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub path: Vec<PathBuf>,
    /// Where Multus's caches of it lie, if not where they usually do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cni_dir: Option<PathBuf>,
    /// network-status that could not be written: the agent does it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending_status: Option<String>,
    /// What the pod's owner has not been told yet: the agent does it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending_events: Vec<Event>,
}

/// A record that cannot be read: whose it is, and the file.
type TornFile = (ContainerId, PathBuf);

/// The sandboxes of a node.
#[derive(Clone, Debug)]
pub struct Sandboxes {
    dir: PathBuf,
    pending: PathBuf,
}

impl Sandboxes {
    /// Those of `root`. Nothing is created before the first write.
    pub fn new(root: &Root) -> Self {
        Self { dir: root.state().join("sandboxes"), pending: root.state().join("pending") }
    }

    /// The record of a sandbox. An empty or torn one is none, and says so in the log.
    pub fn read(&self, id: &ContainerId) -> Result<Option<Sandbox>, StateError> {
        let path = self.path(id);
        let found = load(&path, id)?;
        if let Some(Err(NotIts)) = found {
            ignored(&path);
        }
        Ok(found.and_then(Result::ok))
    }

    /// Writes it.
    pub fn write(&self, sandbox: &Sandbox, id: &ContainerId) -> Result<(), StateError> {
        Ok(whole::replace(&self.path(id), &json(sandbox))?)
    }

    /// Writes it where there is one: one that was ended meanwhile stays ended.
    pub fn update(&self, sandbox: &Sandbox, id: &ContainerId) -> Result<bool, StateError> {
        Ok(whole::update(&self.path(id), &json(sandbox))?)
    }

    /// Removes it.
    pub fn remove(&self, id: &ContainerId) -> Result<bool, StateError> {
        Ok(whole::remove(&self.path(id))?)
    }

    /// Removes what writers that were killed have left.
    pub fn sweep(&self) -> Result<usize, StateError> {
        Ok(whole::sweep(&self.dir)? + whole::sweep(&self.pending)?)
    }

    /// Puts a sandbox that could not be ended in full, and never will be by another DEL, aside for the sweep.
    pub fn set_aside(&self, sandbox: &Sandbox, id: &ContainerId) -> Result<(), StateError> {
        whole::replace(&file(&self.pending, id), &json(sandbox))?;
        self.remove(id).map(drop)
    }

    /// Takes a sandbox that was set aside up again, to be ended like any other. One that has a record is left aside.
    pub fn take_up(&self, sandbox: &Sandbox, id: &ContainerId) -> Result<bool, StateError> {
        if self.path(id).exists() {
            return Ok(false);
        }
        self.write(sandbox, id)?;
        whole::remove(&file(&self.pending, id))?;
        Ok(true)
    }

    /// All that can be read. One that comes or goes meanwhile is listed or not; one that cannot be read is said in the log.
    pub fn all(&self) -> Result<Vec<Sandbox>, StateError> {
        Self::readable(&self.dir)
    }

    /// The same for who looks again and again: of a file that is in `torn` already the log is told no more. Afterwards `torn` has
    /// those that cannot be read now.
    pub fn all_again(&self, torn: &mut BTreeSet<PathBuf>) -> Result<Vec<Sandbox>, StateError> {
        let (all, found) = Self::all_in(&self.dir)?;
        let found: BTreeSet<PathBuf> = found.into_iter().map(|(_, path)| path).collect();
        found.difference(torn).for_each(|path| ignored(path));
        *torn = found;
        Ok(all)
    }

    /// Those whose record cannot be read, each with its file.
    pub fn torn(&self) -> Result<Vec<TornFile>, StateError> {
        Self::all_in(&self.dir).map(|(_, torn)| torn)
    }

    /// All that were set aside.
    pub fn set_aside_before(&self) -> Result<Vec<Sandbox>, StateError> {
        Self::readable(&self.pending)
    }

    fn readable(dir: &Path) -> Result<Vec<Sandbox>, StateError> {
        let (all, torn) = Self::all_in(dir)?;
        torn.iter().for_each(|(_, path)| ignored(path));
        Ok(all)
    }

    fn all_in(dir: &Path) -> Result<(Vec<Sandbox>, Vec<TornFile>), StateError> {
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok((Vec::new(), Vec::new())),
            Err(error) => return Err(StateError::io("list the directory", dir)(error)),
        };
        let (mut all, mut torn) = (Vec::new(), Vec::new());
        for entry in entries {
            let path = entry.map_err(StateError::io("list the directory", dir))?.path();
            let id =
                path.file_stem().and_then(OsStr::to_str).and_then(|id| ContainerId::parse("file", id).ok());
            if let Some(id) = id.filter(|_| path.extension() == Some(OsStr::new("json"))) {
                match load(&path, &id)? {
                    Some(Ok(sandbox)) => all.push(sandbox),
                    Some(Err(NotIts)) => torn.push((id, path)),
                    // It has gone meanwhile.
                    None => {}
                }
            }
        }
        all.sort_by(|a, b| a.container_id.cmp(&b.container_id));
        torn.sort();
        Ok((all, torn))
    }

    fn path(&self, id: &ContainerId) -> PathBuf {
        file(&self.dir, id)
    }
}

fn file(dir: &Path, id: &ContainerId) -> PathBuf {
    dir.join(format!("{id}.json"))
}

/// A file that is not the record of the sandbox after which it is named.
struct NotIts;

fn load(path: &Path, id: &ContainerId) -> Result<Option<Result<Sandbox, NotIts>>, StateError> {
    let bytes = match whole::read(path) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Ok(None),
        Err(error) if whole::Unfit::of(&error.source).is_some() => return Ok(Some(Err(NotIts))),
        Err(error) => return Err(error.into()),
    };
    let sandbox = serde_json::from_slice::<Sandbox>(&bytes).ok();
    Ok(Some(sandbox.filter(|sandbox| sandbox.container_id == id.as_str()).ok_or(NotIts)))
}

fn ignored(path: &Path) {
    tracing::warn!(path = %path.display(), "a record is ignored: it is not that of the sandbox");
}

fn json(sandbox: &Sandbox) -> Vec<u8> {
    let mut bytes =
        serde_json::to_vec_pretty(sandbox).expect("text and numbers are written to memory without fail");
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(id: &str) -> Sandbox {
        Sandbox {
            container_id: id.into(),
            ifname: "eth0".into(),
            phase: Phase::Adding,
            created: 1,
            boot_id: "b".into(),
            netns: None,
            network: "cluster".into(),
            pod: None,
            annotation: Some("mv".into()),
            delegates: vec![serde_json::json!({"Name": "a"})],
            args: "IgnoreUnknown=1".into(),
            runtime: Map::new(),
            path: Vec::new(),
            cni_dir: None,
            pending_status: None,
            pending_events: Vec::new(),
        }
    }

    #[test]
    fn sandboxes_are_kept_apart_from_attachments() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        let sandboxes = Sandboxes::new(&root);
        let id = |text| ContainerId::parse("x", text).unwrap();
        assert!(sandboxes.all().unwrap().is_empty());
        for name in ["c2", "c1"] {
            sandboxes.write(&sandbox(name), &id(name)).unwrap();
        }
        assert_eq!(sandboxes.all().unwrap(), [sandbox("c1"), sandbox("c2")]);
        assert_eq!(sandboxes.read(&id("c1")).unwrap(), Some(sandbox("c1")));
        let records = crate::state::Records::new(&root).all().unwrap();
        assert!(records.records.is_empty() && records.torn.is_empty());
        sandboxes.set_aside(&sandbox("c1"), &id("c1")).unwrap();
        assert_eq!(sandboxes.all().unwrap(), [sandbox("c2")]);
        assert_eq!(sandboxes.set_aside_before().unwrap(), [sandbox("c1")]);
        assert!(sandboxes.take_up(&sandbox("c1"), &id("c1")).unwrap());
        assert_eq!(sandboxes.all().unwrap(), [sandbox("c1"), sandbox("c2")]);
        assert!(sandboxes.set_aside_before().unwrap().is_empty());
        assert!(!sandboxes.take_up(&sandbox("c1"), &id("c1")).unwrap(), "what has a record is not pending");
        assert!(sandboxes.remove(&id("c1")).unwrap());
        fs::write(root.state().join("sandboxes/c2.json"), "{").unwrap();
        assert_eq!(sandboxes.read(&id("c2")).unwrap(), None);
        assert!(sandboxes.remove(&id("c2")).unwrap());
    }
}
