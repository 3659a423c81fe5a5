//! What is known of a device that a pod was given, in the format that device plugins, CNI plugins and
//! network-status share.

use serde_json::{Map, Value};

use super::error::ConfError;
use super::json::{View, parse_object};

/// Where the files are, each in a directory of those who write it.
pub const DIRECTORY: &str = "/var/run/k8s.cni.cncf.io/devinfo";

/// The texts at the top, in the order in which they are written.
const TOP: [&str; 2] = ["type", "version"];

/// Kinds of devices and what is said of each, in the order in which they are written.
const KINDS: [(&str, &[&str]); 4] = [
    ("pci", &["pci-address", "vhost-net", "rdma-device", "pf-pci-address", "representor-device"]),
    ("vdpa", &["parent-device", "driver", "path", "pci-address", "pf-pci-address", "representor-device"]),
    ("vhost-user", &["mode", "path"]),
    ("memif", &["role", "path", "mode"]),
];

/// A device as it is published. What nobody knows is left out, and so is what is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo(Map<String, Value>);

impl DeviceInfo {
    /// Reads a file.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfError> {
        let raw = parse_object(bytes)?;
        let view = View::root(&raw);
        let mut all = texts(&view, &TOP)?;
        for (kind, keys) in KINDS {
            if let Some(device) = view.object(kind)? {
                all.insert(kind.to_owned(), Value::Object(texts(&device, keys)?));
            }
        }
        Ok(Self(all))
    }

    /// The object.
    pub fn to_json(&self) -> Value {
        Value::Object(self.0.clone())
    }

    /// Name of the file of a device plugin: it and we know it by resource and device alone.
    pub fn plugin_file(resource: &str, device: &str) -> String {
        format!("{}-{}-device.json", resource.replace('/', "-"), device.replace('/', "-"))
    }
}

fn texts(view: &View<'_>, keys: &[&str]) -> Result<Map<String, Value>, ConfError> {
    let mut found = Map::new();
    for key in keys {
        if let Some(text) = view.text(key)?.filter(|text| !text.is_empty()) {
            found.insert((*key).to_owned(), text.into());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_written_in_the_order_of_the_format() {
        let text = r#"{"memif": {"mode": "ip", "path": "/m", "role": "master"}, "other": 1, "version": "1.1.0",
            "pci": {"rdma-device": "mlx5_3", "vhost-net": "", "pci-address": "0000:03:02.0", "new": "x"}, "type": "pci",
            "vdpa": {}, "VHOST-USER": {"path": "/v", "mode": "server"}}"#;
        let info = DeviceInfo::parse(text.as_bytes()).unwrap();
        assert_eq!(
            info.to_json().to_string(),
            r#"{"type":"pci","version":"1.1.0","pci":{"pci-address":"0000:03:02.0","rdma-device":"mlx5_3"},"vdpa":{},"vhost-user":{"mode":"server","path":"/v"},"memif":{"role":"master","path":"/m","mode":"ip"}}"#
        );
    }

    #[test]
    fn what_has_another_form_is_refused() {
        for text in ["", "[]", "{", r#"{"type": 1}"#, r#"{"pci": []}"#, r#"{"pci": {"pci-address": {}}}"#] {
            assert!(DeviceInfo::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn files_of_device_plugins_lie_in_one_directory() {
        assert_eq!(
            DeviceInfo::plugin_file("intel.com/sriov", "0000:03:02.0"),
            "intel.com-sriov-0000:03:02.0-device.json"
        );
        assert_eq!(DeviceInfo::plugin_file("a", "../../b"), "a-..-..-b-device.json");
    }
}
