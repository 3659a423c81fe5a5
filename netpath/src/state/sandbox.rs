//! What is remembered of a sandbox as a whole: the networks that it was given, and by which call.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

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
    /// network-status that could not be written: the agent does it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending_status: Option<String>,
    /// What the pod's owner has not been told yet: the agent does it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending_events: Vec<Event>,
}

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
        let Some(bytes) = whole::read(&path)? else { return Ok(None) };
        match serde_json::from_slice::<Sandbox>(&bytes) {
            Ok(sandbox) if sandbox.container_id == id.as_str() => Ok(Some(sandbox)),
            Ok(_) | Err(_) => {
                tracing::warn!(path = %path.display(), "a record is ignored: it is not that of the sandbox");
                Ok(None)
            }
        }
    }

    /// Writes it.
    pub fn write(&self, sandbox: &Sandbox, id: &ContainerId) -> Result<(), StateError> {
        Ok(whole::replace(&self.path(id), &json(sandbox))?)
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
        whole::replace(&self.pending.join(format!("{id}.json")), &json(sandbox))?;
        self.remove(id).map(drop)
    }

    /// All that can be read. One that comes or goes meanwhile is listed or not.
    pub fn all(&self) -> Result<Vec<Sandbox>, StateError> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(StateError::io("list the directory", &self.dir)(error)),
        };
        let mut all = Vec::new();
        for entry in entries {
            let path = entry.map_err(StateError::io("list the directory", &self.dir))?.path();
            let id =
                path.file_stem().and_then(OsStr::to_str).and_then(|id| ContainerId::parse("file", id).ok());
            if let Some(id) = id.filter(|_| path.extension() == Some(OsStr::new("json"))) {
                all.extend(self.read(&id)?);
            }
        }
        all.sort_by(|a, b| a.container_id.cmp(&b.container_id));
        Ok(all)
    }

    fn path(&self, id: &ContainerId) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }
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
        fs::write(root.state().join("sandboxes/c2.json"), "{").unwrap();
        assert_eq!(sandboxes.read(&id("c2")).unwrap(), None);
        assert!(sandboxes.remove(&id("c2")).unwrap());
    }
}
