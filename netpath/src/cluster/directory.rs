//! A directory of manifests, for runtimes without Kubernetes: NetworkAttachmentDefinitions, and pods if need be.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Cluster, ClusterError, Pod, Which};
use crate::root::Root;
use crate::spec::annotation::NETWORKS;
use crate::spec::network_status::NETWORK_STATUS;
use crate::spec::{ContainerId, Event, Nad, PodRef};
use crate::whole;

/// Where the networks of containers without manifests are written, one file each.
const CONTAINERS: &str = "containers";

/// Manifests in one directory, and beside the runtime's state what became of the sandboxes.
#[derive(Clone, Debug)]
pub struct Directory {
    manifests: PathBuf,
    sandboxes: PathBuf,
}

impl Directory {
    /// `manifests` is the directory of `*.yaml`, `*.yml` and `*.json`, as `kubectl get -o yaml` writes them.
    pub fn new(root: &Root, manifests: PathBuf) -> Self {
        Self { manifests, sandboxes: root.join("run/netpath/sandboxes") }
    }

    /// The file that holds status and events of a sandbox.
    pub fn file(&self, sandbox: &ContainerId) -> PathBuf {
        self.sandboxes.join(format!("{sandbox}.json"))
    }

    /// The files of manifests, by name.
    fn files(&self) -> Result<Vec<PathBuf>, ClusterError> {
        let mut paths = Vec::new();
        for entry in fs::read_dir(&self.manifests)
            .map_err(ClusterError::io("list the networks in", &self.manifests))?
        {
            let entry = entry.map_err(ClusterError::io("list the networks in", &self.manifests))?;
            paths.push(entry.path());
        }
        paths.retain(|path| {
            path.extension().is_some_and(|it| it == "yaml" || it == "yml" || it == "json")
                && path.file_name().is_some_and(|name| !name.as_encoded_bytes().starts_with(b"."))
        });
        paths.sort();
        Ok(paths)
    }

    /// The object of this kind and name, in the file that comes first by name.
    fn find(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<(PathBuf, Value)>, ClusterError> {
        for path in self.files()? {
            let text = match whole::text(&path) {
                Ok(text) => text,
                // Removed meanwhile.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(ClusterError::io("read", &path)(error)),
            };
            // Most files are about other networks, and parsing takes the longest.
            if !text.contains(name) || !text.contains(kind) {
                continue;
            }
            let documents = documents(&path, &text)?;
            if let Some(found) = documents.into_iter().find_map(|it| pick(it, kind, namespace, name)) {
                return Ok(Some((path, found)));
            }
        }
        Ok(None)
    }

    /// All networks, by namespace and name; of two of one name the one in the file that comes first by name. A file that
    /// cannot be read is passed over, and said to be.
    pub fn nads(&self) -> Result<BTreeMap<(String, String), Nad>, ClusterError> {
        let mut all = BTreeMap::new();
        for path in self.files()? {
            let read = whole::text(&path).map_err(ClusterError::io("read", &path));
            match read.and_then(|text| documents(&path, &text)) {
                Ok(documents) => documents.into_iter().for_each(|document| collect(document, &mut all)),
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "a file of networks is passed over"
                    );
                }
            }
        }
        Ok(all)
    }

    /// What the file of a container says, where people without manifests write what it gets.
    fn asked_for(&self, name: &str) -> Result<Option<String>, ClusterError> {
        if name.starts_with('.') || name.contains('/') {
            return Ok(None);
        }
        let path = self.manifests.join(CONTAINERS).join(name);
        match whole::text(&path) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(ClusterError::io("read", &path)(error)),
        }
    }

    /// Removes what writers that were killed have left.
    pub fn sweep(&self) -> Result<(), ClusterError> {
        whole::sweep(&self.sandboxes)?;
        Ok(())
    }

    fn update(
        &self,
        pod: &PodRef,
        sandbox: &ContainerId,
        change: impl FnOnce(&mut Value),
    ) -> Result<(), ClusterError> {
        let path = self.file(sandbox);
        let mut value = whole::bytes(&path)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_else(|| {
                json!({"namespace": pod.namespace, "name": pod.name, "uid": pod.uid, "annotations": {}, "events": []})
            });
        change(&mut value);
        Ok(whole::replace(&path, format!("{value:#}\n").as_bytes())?)
    }
}

fn push(value: &mut Value, event: &Event) {
    let event = json!({"type": event.severity.as_str(), "reason": event.reason, "message": event.message});
    match value["events"].as_array_mut() {
        Some(events) => events.push(event),
        None => value["events"] = vec![event].into(),
    }
}

/// The objects of a file. JSON is YAML, but is read in a tenth of the time; to find
/// that it is none took 80 us, since for the place of an error the CPU is asked what it can do.
fn documents(path: &Path, text: &str) -> Result<Vec<Value>, ClusterError> {
    if text.trim_start().starts_with('{')
        && let Ok(one) = serde_json::from_str(text)
    {
        return Ok(vec![one]);
    }
    serde_saphyr::from_multiple(text)
        .map_err(|source| ClusterError::Yaml { path: path.to_owned(), source: Box::new(source) })
}

/// The networks of a document.
fn collect(document: Value, all: &mut BTreeMap<(String, String), Nad>) {
    match document.get("kind").and_then(Value::as_str) {
        Some("List" | "NetworkAttachmentDefinitionList") => {
            let items = document.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
            items.into_iter().for_each(|item| collect(item, all));
        }
        Some("NetworkAttachmentDefinition") => match Nad::from_json(&document) {
            Ok(nad) => drop(all.entry((nad.namespace.clone(), nad.name.clone())).or_insert(nad)),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "a network is passed over");
            }
        },
        _ => {}
    }
}

/// The object itself, or that in a list.
fn pick(document: Value, kind: &str, namespace: &str, name: &str) -> Option<Value> {
    let text = |path: &str| document.pointer(path).and_then(Value::as_str);
    if text("/kind").is_some_and(|it| it == "List" || it == format!("{kind}List")) {
        let items = document.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
        return items.into_iter().find_map(|item| pick(item, kind, namespace, name));
    }
    let is_it = text("/kind") == Some(kind)
        && text("/metadata/name") == Some(name)
        && text("/metadata/namespace").unwrap_or("default") == namespace;
    is_it.then_some(document)
}

impl Cluster for Directory {
    /// A directory is not the list of all pods: one without a manifest asks for what the file of its name says, else
    /// for nothing.
    fn pod(&self, pod: &PodRef) -> Result<Option<Pod>, ClusterError> {
        if let Some(text) = self.asked_for(&pod.name)? {
            return Ok(Some(Pod { uid: None, annotations: [(NETWORKS.to_owned(), text)].into() }));
        }
        let Some((_, value)) = self.find("Pod", &pod.namespace, &pod.name)? else {
            return Ok(Some(Pod::default()));
        };
        let annotations = value.pointer("/metadata/annotations").and_then(Value::as_object);
        let annotations = annotations.into_iter().flatten();
        let annotations: BTreeMap<String, String> =
            annotations.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect();
        let uid = value.pointer("/metadata/uid").and_then(Value::as_str).map(str::to_owned);
        Ok(Some(Pod { uid, annotations }))
    }

    fn nad(&self, namespace: &str, name: &str) -> Result<Nad, ClusterError> {
        match self.find("NetworkAttachmentDefinition", namespace, name)? {
            Some((path, value)) => {
                Nad::from_json(&value).map_err(|source| ClusterError::Object { path, source })
            }
            None => Err(ClusterError::NoNad { namespace: namespace.to_owned(), name: name.to_owned() }),
        }
    }

    fn set_network_status(
        &self,
        pod: &PodRef,
        _which: &Which,
        sandbox: &ContainerId,
        text: &str,
    ) -> Result<(), ClusterError> {
        self.update(pod, sandbox, |value| value["annotations"][NETWORK_STATUS] = text.into())
    }

    fn post(&self, pod: &PodRef, sandbox: &ContainerId, event: &Event) -> Result<(), ClusterError> {
        self.update(pod, sandbox, |value| push(value, event))
    }

    /// In one file, which is written once.
    fn publish(
        &self,
        pod: &PodRef,
        _which: &Which,
        sandbox: &ContainerId,
        text: &str,
        events: &[Event],
    ) -> Result<(), ClusterError> {
        self.update(pod, sandbox, |value| {
            value["annotations"][NETWORK_STATUS] = text.into();
            events.iter().for_each(|event| push(value, event));
        })
    }

    fn forget(&self, sandbox: &ContainerId) -> Result<(), ClusterError> {
        whole::remove(&self.file(sandbox))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Severity;

    const NADS: &str = "apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata:
  name: mv
  namespace: infra
spec:
  config: '{\"type\": \"macvlan\"}'
---
kind: List
items:
- kind: NetworkAttachmentDefinition
  metadata: {name: mv}
- kind: Pod
  metadata: {name: p, namespace: web, uid: u, annotations: {a: b}}
";

    fn directory() -> (tempfile::TempDir, Directory) {
        let dir = tempfile::tempdir().unwrap();
        let manifests = dir.path().join("nads");
        fs::create_dir(&manifests).unwrap();
        fs::write(manifests.join("b.yaml"), NADS).unwrap();
        fs::write(manifests.join("a.json"), r#"{"kind": "Pod", "metadata": {"name": "mv"}}"#).unwrap();
        fs::write(manifests.join("notes.txt"), "kind: NetworkAttachmentDefinition\nother: [").unwrap();
        let directory = Directory::new(&Root::new(dir.path()), manifests);
        (dir, directory)
    }

    fn pod(name: &str) -> PodRef {
        PodRef { namespace: "web".into(), name: name.into(), uid: None }
    }

    #[test]
    fn networks_are_found_by_namespace_and_name_in_any_file() {
        let (_dir, directory) = directory();
        let nad = directory.nad("infra", "mv").unwrap();
        assert_eq!(nad.config.as_deref(), Some("{\"type\": \"macvlan\"}"));
        assert_eq!(directory.nad("default", "mv").unwrap().config, None);
        let error = directory.nad("web", "mv").unwrap_err().to_string();
        assert_eq!(error, "cannot find a network-attachment-definition (mv) in namespace (web)");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named_if_it_may_matter() {
        let (dir, directory) = directory();
        fs::write(dir.path().join("nads/a0.yaml"), "kind: NetworkAttachmentDefinition\nname: mv\nx: [")
            .unwrap();
        let error = directory.nad("infra", "mv").unwrap_err().to_string();
        assert!(error.ends_with("a0.yaml is not valid YAML"), "{error}");
        assert!(matches!(directory.nad("infra", "other"), Err(ClusterError::NoNad { .. })));
    }

    #[test]
    fn a_pod_without_a_manifest_has_no_annotations() {
        let (_dir, directory) = directory();
        let known = directory.pod(&pod("p")).unwrap().unwrap();
        assert_eq!((known.uid.as_deref(), known.annotations["a"].as_str()), (Some("u"), "b"));
        assert_eq!(directory.pod(&pod("q")).unwrap(), Some(Pod::default()));
    }

    #[test]
    fn a_file_of_the_containers_name_says_what_it_gets() {
        let (dir, directory) = directory();
        let containers = dir.path().join("nads/containers");
        fs::create_dir(&containers).unwrap();
        fs::write(containers.join("q"), " mv, infra/mv@lan0\n").unwrap();
        let known = directory.pod(&pod("q")).unwrap().unwrap();
        assert_eq!((known.uid, known.annotations[NETWORKS].as_str()), (None, "mv, infra/mv@lan0"));
        assert_eq!(directory.pod(&pod("../containers/q")).unwrap(), Some(Pod::default()));
    }

    #[test]
    fn status_and_events_lie_beside_each_other_until_the_sandbox_is_forgotten() {
        let (_dir, directory) = directory();
        let sandbox = ContainerId::parse("x", "c1").unwrap();
        let event =
            Event { severity: Severity::Warning, reason: "NoNetworkFound".into(), message: "m".into() };
        directory.post(&pod("p"), &sandbox, &event).unwrap();
        directory.set_network_status(&pod("p"), &Which::Any, &sandbox, "[]").unwrap();
        directory.post(&pod("p"), &sandbox, &event).unwrap();
        let value: Value = serde_json::from_slice(&fs::read(directory.file(&sandbox)).unwrap()).unwrap();
        assert_eq!((&value["name"], &value["annotations"][NETWORK_STATUS]), (&json!("p"), &json!("[]")));
        let event = json!({"type": "Warning", "reason": "NoNetworkFound", "message": "m"});
        assert_eq!(value["events"], json!([event, event]));
        let added =
            Event { severity: Severity::Normal, reason: "AddedInterface".into(), message: "n".into() };
        directory.publish(&pod("p"), &Which::Any, &sandbox, "[1]", &[added]).unwrap();
        let value: Value = serde_json::from_slice(&fs::read(directory.file(&sandbox)).unwrap()).unwrap();
        assert_eq!(
            (&value["annotations"][NETWORK_STATUS], &value["events"][2]["message"]),
            (&json!("[1]"), &json!("n"))
        );
        directory.forget(&sandbox).unwrap();
        directory.forget(&sandbox).unwrap();
        assert!(!directory.file(&sandbox).exists());
    }
}
