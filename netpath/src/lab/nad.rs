//! Network configurations out of NetworkAttachmentDefinitions, as Multus would hand them to a plugin.

use serde_json::{Map, Value};

/// Why a manifest could not be used.
#[derive(Debug, thiserror::Error)]
pub enum NadError {
    /// A field is not where these manifests have it.
    #[error("{file} has no `{field}`")]
    Missing {
        /// The manifest.
        file: &'static str,
        /// The field.
        field: &'static str,
    },
    /// `spec.config` is no JSON object.
    #[error("`spec.config` of {file} is not a JSON object")]
    Config {
        /// The manifest.
        file: &'static str,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
}

/// A manifest of `deploy/examples`, embedded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manifest {
    pub(super) file: &'static str,
    pub(super) text: &'static str,
}

macro_rules! example {
    ($file:literal) => {
        Manifest { file: $file, text: include_str!(concat!("../../../deploy/examples/", $file)) }
    };
}

pub(super) const UNPOLICED: Manifest = example!("nad-privatezone.yaml");
pub(super) const POLICED: Manifest = example!("nad-privatezone-policed.yaml");
pub(super) const DUALSTACK: Manifest = example!("nad-privatezone-dualstack.yaml");
/// The administrator's word on the master while the zone is in force.
pub(super) const MASTERS: Manifest = example!("masters.json");

/// A network configuration, as a plugin reads it from standard input.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Network(Map<String, Value>);

impl Network {
    /// The configuration in `manifest`, with the name of the definition as its name.
    pub(super) fn from_manifest(manifest: Manifest) -> Result<Self, NadError> {
        let Manifest { file, .. } = manifest;
        let text = config(manifest).ok_or(NadError::Missing { file, field: "spec.config" })?;
        let conf: Map<String, Value> =
            serde_json::from_str(&text).map_err(|source| NadError::Config { file, source })?;
        let mut named = Map::new();
        named.insert("name".to_owned(), name(manifest)?.into());
        named.extend(conf);
        Ok(Self(named))
    }

    /// The same without a word of a zone.
    pub(super) fn without_zone(mut self) -> Self {
        self.0.shift_remove("zone");
        self
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        self.0.get("name").and_then(Value::as_str).unwrap_or_default()
    }

    /// What goes to the plugin's standard input.
    pub(super) fn to_stdin(&self) -> String {
        Value::Object(self.0.clone()).to_string()
    }
}

/// `metadata.name`.
pub(super) fn name(manifest: Manifest) -> Result<&'static str, NadError> {
    let missing = NadError::Missing { file: manifest.file, field: "metadata.name" };
    let (_, metadata) = manifest.text.split_once("metadata:\n").ok_or(missing)?;
    let name = metadata.lines().find_map(|line| line.strip_prefix("  name: "));
    name.map(str::trim).ok_or(NadError::Missing { file: manifest.file, field: "metadata.name" })
}

/// `spec.config`, a single-quoted YAML scalar: two quotes are one, line breaks are blanks.
fn config(manifest: Manifest) -> Option<String> {
    let (_, spec) = manifest.text.split_once("spec:\n")?;
    let (_, mut rest) = spec.split_once("config: '")?;
    let mut config = String::new();
    loop {
        let (part, behind) = rest.split_once('\'')?;
        config.push_str(part);
        match behind.strip_prefix('\'') {
            Some(behind) => {
                config.push('\'');
                rest = behind;
            }
            None => return Some(config),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::world::Host;
    use super::*;

    const POD: Manifest = example!("pod-net.yaml");

    fn network(manifest: Manifest) -> Network {
        Network::from_manifest(manifest).expect("an example")
    }

    #[test]
    fn the_name_is_the_definitions() {
        for manifest in [UNPOLICED, POLICED] {
            let conf = network(manifest).0;
            assert_eq!(conf["name"], "privatezone-macvlan-conf");
            assert_eq!(conf["ipam"]["routes"][0]["dst"], "0.0.0.0/0");
        }
    }

    #[test]
    fn the_zone_is_all_that_tells_the_two_apart() {
        assert_ne!(network(POLICED), network(UNPOLICED));
        assert_eq!(network(POLICED).without_zone(), network(UNPOLICED));
    }

    #[test]
    fn the_pod_asks_for_this_network() {
        assert_eq!(name(POD).expect("an example"), Host::NetPod.name());
        let annotation = format!("k8s.v1.cni.cncf.io/networks: {}\n", network(POLICED).name());
        assert!(POD.text.contains(&annotation), "{annotation}");
    }

    #[test]
    fn no_ipv4_route_leads_over_the_network_of_the_riddle() {
        let conf = network(DUALSTACK).0;
        assert_eq!(conf["ipam"]["routes"], serde_json::json!([{ "dst": "::/0" }]));
    }

    #[test]
    fn what_is_missing_is_named() {
        let check = |text: &'static str, expected: &str| {
            let error = Network::from_manifest(Manifest { file: "a.yaml", text }).expect_err("not usable");
            assert_eq!(error.to_string(), expected);
        };
        check("metadata:\n  name: a\n", "a.yaml has no `spec.config`");
        check("spec:\n  config: '{}'\n", "a.yaml has no `metadata.name`");
        check("metadata:\n  name: a\nspec:\n  config: '{'\n", "`spec.config` of a.yaml is not a JSON object");
        check("metadata:\n  name: a\nspec:\n  config: '{\n", "a.yaml has no `spec.config`");
    }

    #[test]
    fn quotes_inside_are_doubled() {
        let text = "metadata:\n  name: a\nspec:\n  config: '{ \"b\": \"it''s\" }'\n";
        assert_eq!(network(Manifest { file: "a.yaml", text }).0["b"], "it's");
    }
}
