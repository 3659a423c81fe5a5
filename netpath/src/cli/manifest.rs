//! Networks as people keep them: NetworkAttachmentDefinitions in YAML or JSON, or bare CNI configurations.

use serde_json::{Map, Value};

use crate::{
    plugin::{CHAINED, MACVLAN},
    spec::{
        ConfError, NetConf,
        json::{View, is_same_key},
    },
};

/// A network that netpath polices.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Network {
    /// The configuration whose zone counts.
    pub(crate) conf: NetConf,
    /// The master as written; `None` where the configuration leaves it to the default route.
    pub(crate) master: Option<String>,
}

/// Why a file names no network.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    /// Neither JSON nor YAML.
    #[error("it is not valid YAML")]
    Yaml(#[source] Box<serde_saphyr::Error>),
    /// `config` of a manifest, or a whole file that begins like JSON.
    #[error("{what} is not valid JSON")]
    Json {
        /// The manifest's `spec.config`, or the file.
        what: &'static str,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// Nothing of ours in it.
    #[error(
        "it holds neither a NetworkAttachmentDefinition nor a CNI configuration with a `type` or `plugins`"
    )]
    NoNetwork,
    /// A definition without a configuration.
    #[error("NetworkAttachmentDefinition `{name}` has no `spec.config`: write the CNI configuration there")]
    NoConfig {
        /// Its name.
        name: String,
    },
    /// A configuration of plugins that netpath has nothing to do with.
    #[error(
        "network `{name}` is of type {}: only `macvlan`, or `netpath` behind another plugin, has a zone",
        types.iter().map(|kind| format!("`{kind}`")).collect::<Vec<_>>().join(", ")
    )]
    NotPoliced {
        /// Its name.
        name: String,
        /// The types it names.
        types: Vec<String>,
    },
    /// A configuration that no ADD would take.
    #[error("network `{name}` is not valid")]
    Conf {
        /// Its name.
        name: String,
        /// Which key.
        source: ConfError,
    },
}

/// The networks of a file. Objects of other kinds in a manifest are passed over.
pub(crate) fn networks(text: &str) -> Result<Vec<Network>, ManifestError> {
    let documents = match text.trim_start().starts_with('{') {
        true => vec![
            serde_json::from_str(text).map_err(|source| ManifestError::Json { what: "the file", source })?,
        ],
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
            let name = document.get("metadata").and_then(|meta| meta["name"].as_str()).unwrap_or_default();
            let config = document.get("spec").and_then(|spec| spec["config"].as_str());
            let Some(config) = config.filter(|config| !config.trim().is_empty()) else {
                return Err(ManifestError::NoConfig { name: name.to_owned() });
            };
            let mut conf: Map<String, Value> = serde_json::from_str(config)
                .map_err(|source| ManifestError::Json { what: "`spec.config`", source })?;
            // A configuration without a name is given its definition's, as Multus does it.
            if key(&conf, "name").and_then(Value::as_str).is_none_or(str::is_empty) {
                conf.insert("name".to_owned(), name.into());
            }
            found.push(network(&conf)?);
        }
        Some("List" | "NetworkAttachmentDefinitionList") => {
            if let Some(Value::Array(items)) = document.remove("items") {
                for item in items {
                    collect(item, found)?;
                }
            }
        }
        Some(_) => {}
        None if key(&document, "type").is_some() || key(&document, "plugins").is_some() => {
            found.push(network(&document)?);
        }
        None => {}
    }
    Ok(())
}

/// The part of a configuration whose zone counts: of a list the plugin that polices.
fn network(conf: &Map<String, Value>) -> Result<Network, ManifestError> {
    let name = key(conf, "name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let kind = |plugin: &Map<String, Value>| {
        key(plugin, "type").and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let plugins: Vec<Map<String, Value>> = match key(conf, "plugins") {
        Some(Value::Array(plugins)) => {
            plugins.iter().filter_map(Value::as_object).map(|plugin| inherit(plugin, conf)).collect()
        }
        _ => vec![conf.clone()],
    };
    let of = |wanted: &str| plugins.iter().rfind(|plugin| kind(plugin) == wanted);
    let Some(policing) = of(CHAINED).or_else(|| of(MACVLAN)) else {
        return Err(ManifestError::NotPoliced { name, types: plugins.iter().map(kind).collect() });
    };
    let master = of(MACVLAN).and_then(|plugin| key(plugin, "master")?.as_str());
    let bytes = Value::Object(policing.clone()).to_string();
    let conf = NetConf::parse(bytes.as_bytes()).map_err(|source| ManifestError::Conf { name, source })?;
    Ok(Network { conf, master: master.filter(|master| !master.is_empty()).map(str::to_owned) })
}

/// A plugin of a list as it is called: with the list's name and version.
fn inherit(plugin: &Map<String, Value>, list: &Map<String, Value>) -> Map<String, Value> {
    let mut plugin = plugin.clone();
    for inherited in ["name", "cniVersion"] {
        if let Some(value) = key(list, inherited) {
            plugin.retain(|other, _| !is_same_key(other, inherited));
            plugin.insert(inherited.to_owned(), value.clone());
        }
    }
    plugin
}

/// A key as the plugin reads it: in any case, and of several the last.
fn key<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    View::root(object).get(name)
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

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
