//! Network configurations out of NetworkAttachmentDefinitions, as Multus would hand them to a plugin.

use serde_json::{Map, Value};

use super::error::LabError;
use crate::cli::manifest::{ManifestError, networks};

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
    pub(super) fn from_manifest(manifest: Manifest) -> Result<Self, LabError> {
        let failed =
            |source: ManifestError| LabError::Manifest { file: manifest.file, source: source.into() };
        let network = networks(manifest.text).map_err(failed)?.into_iter().next();
        Ok(Self(network.ok_or_else(|| failed(ManifestError::NoNetwork))?.conf.raw))
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
        let pod: Value = serde_saphyr::from_str(POD.text).expect("YAML");
        assert_eq!(pod["metadata"]["name"], Host::NetPod.name());
        let asked = &pod["metadata"]["annotations"]["k8s.v1.cni.cncf.io/networks"];
        assert_eq!(asked, network(POLICED).name());
    }

    #[test]
    fn no_ipv4_route_leads_over_the_network_of_the_riddle() {
        let conf = network(DUALSTACK).0;
        assert_eq!(conf["ipam"]["routes"], serde_json::json!([{ "dst": "::/0" }]));
    }
}
