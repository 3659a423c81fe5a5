//! NetworkAttachmentDefinitions, and the plugins that a network's configuration consists of.

use serde_json::{Map, Value};

use super::conf::plugin_name;
use super::error::ConfError;
use super::ipam::{WELL_KNOWN, check_kind};
use super::json::{View, check_depth, is_same_key, keep_last, parse_object};
use super::names::NetworkName;
use super::version::CniVersion;

/// Annotation of a NAD: the resource whose devices its attachments are given.
pub const RESOURCE_NAME: &str = "k8s.v1.cni.cncf.io/resourceName";

/// A NetworkAttachmentDefinition, as far as an attachment has a use for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nad {
    /// `metadata.namespace`
    pub namespace: String,
    /// `metadata.name`
    pub name: String,
    /// `spec.config`; without one the configuration lies in a file of that name.
    pub config: Option<String>,
    /// The annotation [`RESOURCE_NAME`].
    pub resource_name: Option<String>,
}

impl Nad {
    /// Reads the object. One without a namespace is of `default`.
    pub fn from_json(value: &Value) -> Result<Self, ConfError> {
        let view = View::at("NetworkAttachmentDefinition", value)?;
        let missing = || ConfError::Missing {
            field: view.path_of("metadata.name"),
            fix: "give the NetworkAttachmentDefinition a name",
        };
        let metadata = view.object("metadata")?.ok_or_else(missing)?;
        let config = view.object("spec")?.map(|spec| spec.owned("config")).transpose()?.flatten();
        let annotations = metadata.object("annotations")?;
        Ok(Self {
            namespace: metadata.owned("namespace")?.unwrap_or_else(|| "default".to_owned()),
            name: metadata.owned("name")?.ok_or_else(missing)?,
            config: config.filter(|config| !config.trim().is_empty()),
            resource_name: match annotations {
                Some(annotations) => annotations.owned(RESOURCE_NAME)?,
                None => None,
            },
        })
    }
}

/// A network's configuration: one plugin, or a list of them.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkConf {
    /// `name`
    pub name: NetworkName,
    /// The version in which its plugins are called: the highest that it names and we speak.
    pub version: CniVersion,
    /// Whether it is a list.
    pub is_list: bool,
    /// The plugins in their order; there is at least one.
    pub plugins: Vec<Plugin>,
    /// `disableCheck`
    pub disable_check: bool,
    /// `disableGC`
    pub disable_gc: bool,
    /// The whole configuration, with its name.
    raw: Map<String, Value>,
}

/// One plugin of a network.
#[derive(Clone, Debug, PartialEq)]
pub struct Plugin {
    /// `type`: the file name of a program.
    pub kind: String,
    /// The whole configuration as written.
    raw: Map<String, Value>,
}

impl NetworkConf {
    /// Reads a configuration; without a name of its own it takes `name`.
    pub fn parse(text: &[u8], name: Option<&str>) -> Result<Self, ConfError> {
        let raw = parse_object(text)?;
        Self::from_view(&View::root(&raw), name)
    }

    /// The same for one that its author may change: what is read must be readable again once it is written down.
    pub fn parse_new(text: &[u8], name: Option<&str>) -> Result<Self, ConfError> {
        let conf = Self::parse(text, name)?;
        conf.raw.iter().try_for_each(|(key, value)| check_depth(key, value, 1))?;
        Ok(conf)
    }

    /// The same for one that is part of another.
    pub fn from_view(view: &View<'_>, name: Option<&str>) -> Result<Self, ConfError> {
        let mut raw = view.map().clone();
        keep_last(&mut raw);
        if view.text("name")?.is_none()
            && let Some(name) = name
        {
            // An empty one in another case would win over ours for a plugin that takes the last.
            raw.retain(|key, _| !is_same_key(key, "name"));
            raw.insert("name".to_owned(), name.into());
        }
        let name = view.text("name")?.or(name).ok_or_else(|| ConfError::Missing {
            field: view.path_of("name"),
            fix: "give the network a name",
        })?;
        let is_list = view.text("type")?.is_none();
        let plugins = match is_list {
            false => vec![Plugin::read(&View::root(&raw))?],
            true => view.objects("plugins")?.iter().map(Plugin::read).collect::<Result<_, _>>()?,
        };
        if plugins.is_empty() {
            return Err(ConfError::Missing {
                field: view.path_of("type"),
                fix: "name the plugin, such as macvlan, or a list of them in `plugins`",
            });
        }
        Ok(Self {
            name: NetworkName::parse(&view.path_of("name"), name)?,
            version: version(view)?,
            is_list,
            plugins,
            disable_check: view.bool("disableCheck")?,
            disable_gc: view.bool("disableGC")?,
            raw,
        })
    }

    /// The whole configuration, as caches have it.
    pub fn raw(&self) -> &Map<String, Value> {
        &self.raw
    }

    /// Whether one of the plugins declares the capability.
    pub fn declares(&self, capability: &str) -> bool {
        self.plugins.iter().any(|plugin| plugin.declares(capability))
    }

    /// The same network with further keys for each of its plugins.
    pub fn map_plugins(mut self, mut change: impl FnMut(&mut Map<String, Value>)) -> Self {
        for plugin in &mut self.plugins {
            change(&mut plugin.raw);
        }
        if let Some(only) = self.plugins.first().filter(|_| !self.is_list) {
            self.raw = only.raw.clone();
            self.raw.insert("name".to_owned(), self.name.as_str().into());
        } else {
            let plugins: Vec<Value> = self.plugins.iter().map(|it| Value::Object(it.raw.clone())).collect();
            self.raw.retain(|key, _| !is_same_key(key, "plugins"));
            self.raw.insert("plugins".to_owned(), plugins.into());
        }
        self
    }

    /// What plugin `index` reads on stdin: its configuration with the network's name and version, the part of
    /// `capabilities` that it declares, and the result of those before it.
    pub fn stdin(
        &self,
        index: usize,
        capabilities: &Map<String, Value>,
        prev: Option<&Value>,
    ) -> Map<String, Value> {
        let plugin = &self.plugins[index];
        let mut conf = plugin.raw.clone();
        let mut set = |key: &str, value: Value| {
            conf.retain(|other, _| !is_same_key(other, key));
            conf.insert(key.to_owned(), value);
        };
        set("name", self.name.as_str().into());
        set("cniVersion", self.version.as_str().into());
        let declared = capabilities.iter().filter(|(key, _)| plugin.declares(key));
        let declared: Map<_, _> = declared.map(|(key, value)| (key.clone(), value.clone())).collect();
        if !declared.is_empty() {
            set("runtimeConfig", Value::Object(declared));
        }
        if let Some(prev) = prev {
            set("prevResult", prev.clone());
        }
        conf
    }
}

impl Plugin {
    fn read(view: &View<'_>) -> Result<Self, ConfError> {
        let kind = view.parsed("type", plugin_name)?.ok_or_else(|| ConfError::Missing {
            field: view.path_of("type"),
            fix: "name the plugin, such as macvlan",
        })?;
        if let Some(ipam) = view.object("ipam")? {
            // It is executed by others, but from wherever the network's author likes all the same.
            ipam.parsed("type", plugin_name)?;
        }
        // What was looked at is what is executed.
        let mut raw = view.map().clone();
        keep_last(&mut raw);
        for (_, ipam) in raw.iter_mut().filter(|(key, _)| is_same_key(key, "ipam")) {
            if let Some(ipam) = ipam.as_object_mut() {
                keep_last(ipam);
            }
        }
        Ok(Self { kind, raw })
    }

    /// The configuration as written.
    pub fn raw(&self) -> &Map<String, Value> {
        &self.raw
    }

    /// `ipam.type`
    pub fn ipam_kind(&self) -> Option<&str> {
        View::root(&self.raw).object("ipam").ok()??.text("type").ok()?
    }

    /// [`Self::ipam_kind`], unless everybody knows that it gives addresses and does nothing else.
    pub fn unknown_ipam(&self) -> Option<&str> {
        self.ipam_kind().filter(|kind| !WELL_KNOWN.contains(kind))
    }

    /// Refuses an `ipam` that is none, however deep it stands: plugins execute plugins with a part of what they read.
    pub fn check_ipam(&self) -> Result<(), ConfError> {
        self.raw.iter().try_for_each(|(key, value)| check_ipams(key, key, value))
    }

    /// Whether the plugin wants to be told of this in `runtimeConfig`.
    pub fn declares(&self, capability: &str) -> bool {
        let capabilities = View::root(&self.raw).get("capabilities").and_then(Value::as_object);
        capabilities.and_then(|all| all.get(capability)).and_then(Value::as_bool).unwrap_or(false)
    }
}

fn check_ipams(path: &str, key: &str, value: &Value) -> Result<(), ConfError> {
    match value {
        Value::Object(map) => map.iter().try_for_each(|(inner, value)| {
            let path = format!("{path}.{inner}");
            match value {
                Value::String(kind) if is_same_key(key, "ipam") && is_same_key(inner, "type") => {
                    check_kind(&path, kind)
                }
                value => check_ipams(&path, inner, value),
            }
        }),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .try_for_each(|(index, item)| check_ipams(&format!("{path}[{index}]"), key, item)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
    }
}

/// `cniVersion`, or the highest of `cniVersions` that we speak.
fn version(view: &View<'_>) -> Result<CniVersion, ConfError> {
    let listed = view.texts("cniVersions")?;
    let best = listed.iter().filter_map(|(_, text)| CniVersion::parse(text).ok()).max();
    match (view.text("cniVersion")?, best) {
        (None, Some(best)) => Ok(best),
        (text, best) => {
            let own = CniVersion::parse(text.unwrap_or_default());
            match (own, best) {
                (Ok(own), Some(best)) => Ok(own.max(best)),
                (Err(_), Some(best)) => Ok(best),
                (own, None) => own,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(conf: Value) -> Result<NetworkConf, ConfError> {
        NetworkConf::parse(conf.to_string().as_bytes(), Some("nad"))
    }

    #[test]
    fn a_definition_is_read_from_its_object() {
        let nad = |value| Nad::from_json(&value);
        let full = nad(json!({"metadata": {"name": "mv", "namespace": "infra",
            "annotations": {RESOURCE_NAME: "intel.com/sriov"}}, "spec": {"config": "{}"}}));
        assert_eq!(
            full.expect("is valid"),
            Nad {
                namespace: "infra".into(),
                name: "mv".into(),
                config: Some("{}".into()),
                resource_name: Some("intel.com/sriov".into()),
            }
        );
        let bare = nad(json!({"metadata": {"name": "mv"}})).expect("is valid");
        assert_eq!((bare.namespace.as_str(), bare.config), ("default", None));
        assert!(nad(json!({"metadata": {}})).is_err());
    }

    #[test]
    fn the_definitions_name_is_that_of_a_configuration_without_one() {
        let conf = parse(json!({"cniVersion": "0.4.0", "type": "bridge", "NAME": ""})).expect("is valid");
        assert_eq!((conf.name.as_str(), conf.version, conf.is_list), ("nad", CniVersion::V0_4_0, false));
        assert_eq!(conf.raw()["name"], "nad");
        let own = parse(json!({"name": "own", "plugins": [{"type": "bridge"}, {"type": "tuning"}]}));
        let own = own.expect("is valid");
        assert_eq!((own.name.as_str(), own.is_list, own.plugins.len()), ("own", true, 2));
    }

    #[test]
    fn each_plugin_gets_what_the_runtime_would_give_it() {
        let conf = parse(json!({"cniVersion": "1.0.0", "name": "l", "plugins": [
            {"type": "bridge", "capabilities": {"mac": true, "ips": false}, "own": [1]},
            {"type": "tuning", "Name": "x", "capabilities": {"ips": true}, "prevResult": 1}]}));
        let conf = conf.expect("is valid");
        let capabilities = json!({"mac": "m", "ips": ["i"], "bandwidth": 1});
        let capabilities = capabilities.as_object().expect("is an object");
        assert_eq!(
            Value::Object(conf.stdin(0, capabilities, None)),
            json!({"type": "bridge", "own": [1],
            "capabilities": {"mac": true, "ips": false}, "name": "l", "cniVersion": "1.0.0",
            "runtimeConfig": {"mac": "m"}})
        );
        assert_eq!(
            Value::Object(conf.stdin(1, capabilities, Some(&json!({"a": 1})))),
            json!({"type": "tuning",
            "capabilities": {"ips": true}, "name": "l", "cniVersion": "1.0.0", "runtimeConfig": {"ips": ["i"]},
            "prevResult": {"a": 1}})
        );
    }

    #[test]
    fn the_highest_version_that_both_know_is_used() {
        let of = |keys: Value| {
            let mut conf = json!({"type": "bridge"});
            for (key, value) in keys.as_object().expect("keys are an object") {
                conf[key] = value.clone();
            }
            parse(conf).map(|conf| conf.version.as_str()).map_err(|error| error.to_string())
        };
        assert_eq!(of(json!({"cniVersion": "0.3.1"})), Ok("0.3.1"));
        assert_eq!(
            of(json!({"cniVersion": "0.4.0", "cniVersions": ["0.3.1", "1.1.0", "9.0.0"]})),
            Ok("1.1.0")
        );
        assert_eq!(of(json!({"cniVersions": ["0.3.1", "1.0.0"]})), Ok("1.0.0"));
        assert_eq!(of(json!({})), Ok("0.1.0"));
        assert!(of(json!({"cniVersion": "9.0.0"})).is_err());
    }

    #[test]
    fn programs_are_named_without_a_directory() {
        for wrong in [json!({"type": "../sh"}), json!({"type": "bridge", "ipam": {"type": "/bin/sh"}})] {
            let error = parse(wrong).expect_err("leads elsewhere").to_string();
            assert!(error.contains("without a directory"), "{error}");
        }
        assert!(parse(json!({})).expect_err("names none").to_string().starts_with("type is missing"));
        assert!(
            parse(json!({"plugins": [{}]}))
                .expect_err("names none")
                .to_string()
                .starts_with("plugins[0].type")
        );
    }

    #[test]
    fn changed_plugins_are_part_of_the_whole() {
        let change = |map: &mut Map<String, Value>| drop(map.insert("deviceID".into(), "d".into()));
        let list = parse(json!({"name": "l", "plugins": [{"type": "a"}, {"type": "b"}]})).expect("is valid");
        let list = list.map_plugins(change);
        assert_eq!(
            list.raw()["plugins"],
            json!([{"type": "a", "deviceID": "d"}, {"type": "b", "deviceID": "d"}])
        );
        let one = parse(json!({"type": "a"})).expect("is valid").map_plugins(change);
        assert_eq!(Value::Object(one.raw().clone()), json!({"type": "a", "deviceID": "d", "name": "nad"}));
    }
}
