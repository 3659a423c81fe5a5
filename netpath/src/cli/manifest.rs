//! Networks as people keep them: NetworkAttachmentDefinitions in YAML or JSON, or bare CNI configurations.

use serde_json::Value;

use crate::{
    police::{Network, NetworkError},
    spec::json::View,
};

/// Why a file names no network.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    /// Neither JSON nor YAML.
    #[error("it is not valid YAML")]
    Yaml(#[source] Box<serde_saphyr::Error>),
    /// It begins like JSON.
    #[error("the file is not valid JSON")]
    Json(#[source] serde_json::Error),
    /// Nothing of ours in it.
    #[error(
        "it holds neither a NetworkAttachmentDefinition nor a CNI configuration with a `type` or `plugins`"
    )]
    NoNetwork,
    /// A network of it.
    #[error(transparent)]
    Network(#[from] NetworkError),
}

/// The networks of a file. Objects of other kinds in a manifest are passed over.
pub(crate) fn networks(text: &str) -> Result<Vec<Network>, ManifestError> {
    let documents = match text.trim_start().starts_with('{') {
        true => vec![serde_json::from_str(text).map_err(ManifestError::Json)?],
        false => serde_saphyr::from_multiple::<Value>(text)
            .map_err(|error| ManifestError::Yaml(Box::new(error)))?,
    };
    let mut found = Vec::new();
    for document in documents {
        collect(document, &mut found)?;
    }
    if found.is_empty() { Err(ManifestError::NoNetwork) } else { Ok(found) }
}

fn collect(document: Value, found: &mut Vec<Network>) -> Result<(), ManifestError> {
    let Value::Object(mut document) = document else { return Ok(()) };
    match document.get("kind").and_then(Value::as_str) {
        Some("NetworkAttachmentDefinition") => {
            let meta = |key: &str| document.get("metadata").and_then(|meta| meta[key].as_str());
            let name = meta("name").unwrap_or_default();
            // One that does not say it is put where kubectl is told.
            let nad = meta("namespace").map(|namespace| format!("{namespace}/{name}"));
            let config = document.get("spec").and_then(|spec| spec["config"].as_str());
            found.push(Network::of_definition(name, config, nad)?);
        }
        Some("List" | "NetworkAttachmentDefinitionList") => {
            if let Some(Value::Array(items)) = document.remove("items") {
                for item in items {
                    collect(item, found)?;
                }
            }
        }
        Some(_) => {}
        None if ["type", "plugins"].iter().any(|key| View::root(&document).get(key).is_some()) => {
            found.push(Network::of_conf(&document, None)?);
        }
        None => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;
    use crate::plugin::CHAINED;

    const NAD: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: net-pod }
---
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata:
  name: privatezone
spec:
  config: '{
      "cniVersion": "0.3.0", "type": "macvlan", "master": "enp0s8",
      "zone": { "policy": "private" },
      "ipam": { "type": "host-local", "subnet": "10.12.34.0/24" }
    }'
"#;

    fn one(text: &str) -> Network {
        let mut found = networks(text).expect("valid");
        assert_eq!(found.len(), 1);
        found.remove(0)
    }

    fn refused(text: &str) -> String {
        let error = networks(text).expect_err("must be refused");
        match error.source() {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        }
    }

    #[test]
    fn a_definition_gives_its_configuration_a_name() {
        let network = one(NAD);
        assert_eq!((network.conf.name.as_str(), network.master.as_deref()), ("privatezone", Some("enp0s8")));
        assert_eq!(network.conf.raw["zone"]["policy"], "private");
        assert!(network.conf.ipam.local_subnets().is_some());
    }

    #[test]
    fn what_kubectl_prints_is_read_too() {
        let item = serde_json::json!({
            "kind": "NetworkAttachmentDefinition", "metadata": { "name": "a" },
            "spec": { "config": r#"{"cniVersion": "1.0.0", "name": "b", "type": "macvlan"}"# },
        });
        let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": [item, item] });
        let found = networks(&list.to_string()).expect("valid");
        let names: Vec<_> =
            found.iter().map(|network| (network.conf.name.as_str(), &network.master)).collect();
        assert_eq!(names, [("b", &None), ("b", &None)]);
    }

    #[test]
    fn of_a_list_the_plugin_that_polices_counts() {
        let network = one(r#"{"cniVersion": "1.0.0", "name": "listed", "plugins": [
                {"type": "macvlan", "master": "enp0s8", "zone": {"mode": "off"}},
                {"type": "netpath", "zone": {"mode": "audit", "local": ["10.0.0.0/8"]}}]}"#);
        assert_eq!((network.conf.kind.as_str(), network.conf.name.as_str()), (CHAINED, "listed"));
        assert_eq!(network.master.as_deref(), Some("enp0s8"));
        assert_eq!(network.conf.raw["zone"]["mode"], "audit");
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(
            refused("a: [1\nb: 2\n").starts_with("it is not valid YAML: "),
            "{}",
            refused("a: [1\nb: 2\n")
        );
        assert!(refused("{").starts_with("the file is not valid JSON: "));
        let none = "it holds neither a NetworkAttachmentDefinition nor a CNI configuration with a `type` or `plugins`";
        assert_eq!(refused("kind: Pod\n"), none);
        assert_eq!(refused(""), none);
        assert_eq!(
            refused(r#"{"cniVersion": "1.0.0", "name": "x", "type": "bridge"}"#),
            "network `x` is of type `bridge`: only `macvlan`, or `netpath` behind another plugin, has a zone"
        );
        assert_eq!(
            refused("kind: NetworkAttachmentDefinition\nmetadata: {name: x}\nspec: {}\n"),
            "NetworkAttachmentDefinition `x` has no `spec.config`: write the CNI configuration there"
        );
        let config = "kind: NetworkAttachmentDefinition\nmetadata: {name: x}\nspec: {config: '{'}\n";
        assert!(refused(config).starts_with("`spec.config` is not valid JSON: "));
        let version = r#"{"cniVersion": "9.9.9", "name": "x", "type": "macvlan"}"#;
        assert!(refused(version).starts_with("network `x` is not valid: "), "{}", refused(version));
    }
}
