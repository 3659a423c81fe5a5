//! What the cluster asks of this node: networks, pods, and the administrator's word on masters.

use std::{collections::BTreeMap, path::Path};

use serde_json::Value;

use crate::{
    cluster::{ClusterError, Directory},
    root::Root,
    spec::annotation::{DEFAULT_NETWORK, NETWORKS},
};

/// A NetworkAttachmentDefinition as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Definition {
    pub(super) uid: String,
    /// `spec.config`
    pub(super) config: Option<String>,
}

/// A pod of this node, as far as networks go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) uid: String,
    /// The annotation that asks for networks.
    pub(super) networks: Option<String>,
    pub(super) default_network: Option<String>,
    /// Whether its sandbox has to be there: it runs, has a network namespace of its own, and does not end.
    pub(super) has_sandbox: bool,
    /// Whether a manifest on the node made it: the runtime knows it by another UID.
    pub(super) is_mirror: bool,
}

/// All of it. A map that is `None` was never listed completely, so nothing follows from what is not in it.
#[derive(Debug, Default)]
pub(super) struct Wish {
    /// By `namespace/name`.
    pub(super) definitions: Option<BTreeMap<String, Definition>>,
    /// By `namespace/name`.
    pub(super) pods: Option<BTreeMap<String, Pod>>,
    /// Text of `masters.json` as the cluster has it; inside it `None` where the cluster has none.
    pub(super) masters: Option<Option<String>>,
}

/// The networks of a directory that stands in for the API.
pub(super) fn in_directory(root: &Root, dir: &Path) -> Result<BTreeMap<String, Definition>, ClusterError> {
    let all = Directory::new(root, dir.to_owned()).nads()?.into_iter();
    Ok(all
        .map(|((namespace, name), nad)| {
            (format!("{namespace}/{name}"), Definition { config: nad.config, ..Definition::default() })
        })
        .collect())
}

impl Definition {
    /// Reads an object of the API.
    pub(super) fn from_json(object: &Value) -> Self {
        let text = |path: &str| object.pointer(path).and_then(Value::as_str);
        Self {
            uid: text("/metadata/uid").unwrap_or_default().to_owned(),
            config: text("/spec/config").map(str::to_owned),
        }
    }
}

impl Pod {
    /// Reads an object of the API.
    pub(super) fn from_json(object: &Value) -> Self {
        let text = |path: &str| object.pointer(path).and_then(Value::as_str);
        let annotation = |key: &str| {
            let annotations = object.pointer("/metadata/annotations")?;
            annotations.get(key)?.as_str().filter(|value| !value.trim().is_empty()).map(str::to_owned)
        };
        let on_host = object.pointer("/spec/hostNetwork").and_then(Value::as_bool).unwrap_or(false);
        Self {
            uid: text("/metadata/uid").unwrap_or_default().to_owned(),
            networks: annotation(NETWORKS),
            default_network: annotation(DEFAULT_NETWORK),
            has_sandbox: text("/status/phase") == Some("Running")
                && text("/metadata/deletionTimestamp").is_none()
                && !on_host,
            is_mirror: annotation("kubernetes.io/config.mirror").is_some(),
        }
    }

    /// Whether it asks for more than its first network, or for another first one.
    pub(super) fn asks(&self) -> bool {
        self.networks.is_some() || self.default_network.is_some()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_an_object_what_matters_is_kept() {
        let pod = json!({
            "metadata": {"uid": "u", "annotations": {"k8s.v1.cni.cncf.io/networks": "a", "other": "b"}},
            "spec": {}, "status": {"phase": "Running"},
        });
        let read = Pod::from_json(&pod);
        assert!(read.has_sandbox && read.asks() && !read.is_mirror);
        assert_eq!((read.uid.as_str(), read.networks.as_deref()), ("u", Some("a")));
        let host = json!({"spec": {"hostNetwork": true}, "status": {"phase": "Running"}});
        assert!(!Pod::from_json(&host).has_sandbox);
        let ending = json!({"metadata": {"deletionTimestamp": "now"}, "status": {"phase": "Running"}});
        assert!(!Pod::from_json(&ending).has_sandbox && !Pod::from_json(&ending).asks());
        let nad = json!({"metadata": {"uid": "n"}, "spec": {"config": "{}"}});
        assert_eq!(Definition::from_json(&nad), Definition { uid: "n".into(), config: Some("{}".into()) });
        assert_eq!(Definition::from_json(&json!({})), Definition::default());
    }
}
