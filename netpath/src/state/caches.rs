//! Multus's caches, in its own formats: what Multus built netpath can tear down, and the other way round.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::StateError;
use crate::spec::base64;
use crate::spec::json::parse_value;
use crate::spec::{ContainerId, IfName, NetworkName};
use crate::whole;

/// The networks that were executed for each sandbox: one file each, a JSON list.
#[derive(Clone, Debug)]
pub struct DelegateCache {
    dir: PathBuf,
}

impl DelegateCache {
    /// `dir` is Multus's `cniDir`.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The networks of a sandbox. A file that is torn is none, and says so in the log.
    pub fn read(&self, sandbox: &ContainerId) -> Result<Option<Vec<Value>>, StateError> {
        let path = self.path(sandbox);
        let Some(bytes) = whole::read(&path)? else { return Ok(None) };
        match parse_value(&bytes) {
            Ok(Value::Array(delegates)) if !delegates.is_empty() => Ok(Some(delegates)),
            Ok(_) | Err(_) => {
                tracing::warn!(path = %path.display(), "a delegate cache is ignored: it is no list of networks");
                Ok(None)
            }
        }
    }

    /// Writes them.
    pub fn write(&self, sandbox: &ContainerId, delegates: &[Value]) -> Result<(), StateError> {
        Ok(whole::replace(&self.path(sandbox), Value::from(delegates).to_string().as_bytes())?)
    }

    /// Removes them.
    pub fn remove(&self, sandbox: &ContainerId) -> Result<bool, StateError> {
        Ok(whole::remove(&self.path(sandbox))?)
    }

    /// Removes what writers that were killed have left.
    pub fn sweep(&self) -> Result<usize, StateError> {
        Ok(whole::sweep(&self.dir)?)
    }

    fn path(&self, sandbox: &ContainerId) -> PathBuf {
        self.dir.join(sandbox.as_str())
    }
}

/// The results of networks, as libcni keeps them: one file per network, sandbox and interface.
#[derive(Clone, Debug)]
pub struct ResultCache {
    dir: PathBuf,
}

/// A result with what it was had by.
#[derive(Clone, Debug, PartialEq)]
pub struct CachedResult {
    /// The configuration as executed.
    pub config: Vec<u8>,
    /// CNI_NETNS.
    pub netns: String,
    /// CNI_ARGS.
    pub args: Vec<(String, String)>,
    /// What was passed for capabilities.
    pub capabilities: Map<String, Value>,
    /// The result, in the version of the network.
    pub result: Option<Value>,
}

impl ResultCache {
    /// `dir` is that above `results`: Multus's `cniDir`, or libcni's own `/var/lib/cni`.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.join("results") }
    }

    /// The result of a network. A file that is torn is none, and says so in the log.
    pub fn read(
        &self,
        network: &NetworkName,
        sandbox: &ContainerId,
        ifname: &IfName,
    ) -> Result<Option<CachedResult>, StateError> {
        let path = self.path(network, sandbox, ifname);
        let Some(bytes) = whole::read(&path)? else { return Ok(None) };
        let cached = parse_value(&bytes).ok().as_ref().and_then(decode);
        if cached.is_none() {
            tracing::warn!(path = %path.display(), "a cached result is ignored: it is not of kind cniCacheV1");
        }
        Ok(cached)
    }

    /// All that can be read, each with the sandbox and the interface that it is of.
    pub fn all(&self) -> Result<Vec<(ContainerId, IfName, CachedResult)>, StateError> {
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(StateError::io("list the directory", &self.dir)(error)),
        };
        let mut all = Vec::new();
        for entry in entries {
            let path = entry.map_err(StateError::io("list the directory", &self.dir))?.path();
            // Whatever else lies there is nobody's result.
            let Ok(Some(bytes)) = whole::read(&path) else { continue };
            let Ok(value) = parse_value(&bytes) else { continue };
            let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
            let sandbox = ContainerId::parse("containerId", text("containerId"));
            let ifname = IfName::parse("ifName", text("ifName"));
            if let (Ok(sandbox), Ok(ifname), Some(cached)) = (sandbox, ifname, decode(&value)) {
                all.push((sandbox, ifname, cached));
            }
        }
        Ok(all)
    }

    /// Writes it.
    pub fn write(
        &self,
        network: &NetworkName,
        sandbox: &ContainerId,
        ifname: &IfName,
        cached: &CachedResult,
    ) -> Result<(), StateError> {
        let args: Vec<Value> = cached.args.iter().map(|(key, value)| json!([key, value])).collect();
        let mut value = json!({
            "kind": "cniCacheV1",
            "containerId": sandbox.as_str(),
            "config": base64::encode(&cached.config),
            "ifName": ifname.as_str(),
            "networkName": network.as_str(),
            "netns": cached.netns,
            "cniArgs": args,
            "capabilityArgs": cached.capabilities,
            "result": cached.result,
        });
        if let Value::Object(map) = &mut value {
            map.retain(|_, value| match value {
                Value::String(text) => !text.is_empty(),
                Value::Array(items) => !items.is_empty(),
                Value::Object(map) => !map.is_empty(),
                other => !other.is_null(),
            });
        }
        Ok(whole::replace(&self.path(network, sandbox, ifname), value.to_string().as_bytes())?)
    }

    /// Removes it.
    pub fn remove(
        &self,
        network: &NetworkName,
        sandbox: &ContainerId,
        ifname: &IfName,
    ) -> Result<bool, StateError> {
        Ok(whole::remove(&self.path(network, sandbox, ifname))?)
    }

    /// Removes what writers that were killed have left.
    pub fn sweep(&self) -> Result<usize, StateError> {
        Ok(whole::sweep(&self.dir)?)
    }

    fn path(&self, network: &NetworkName, sandbox: &ContainerId, ifname: &IfName) -> PathBuf {
        self.dir.join(Self::file_name(network, sandbox, ifname))
    }

    /// Name of the file of a result; the same as libcni's.
    pub fn file_name(network: &NetworkName, sandbox: &ContainerId, ifname: &IfName) -> String {
        format!("{network}-{sandbox}-{ifname}")
    }
}

fn decode(value: &Value) -> Option<CachedResult> {
    if value.get("kind")?.as_str()? != "cniCacheV1" {
        return None;
    }
    let pair = |it: &Value| Some((it.get(0)?.as_str()?.to_owned(), it.get(1)?.as_str()?.to_owned()));
    let args = value.get("cniArgs").and_then(Value::as_array);
    Some(CachedResult {
        config: base64::decode(value.get("config")?.as_str()?)?,
        netns: value.get("netns").and_then(Value::as_str).unwrap_or_default().to_owned(),
        args: args.into_iter().flatten().filter_map(pair).collect(),
        capabilities: value.get("capabilityArgs").and_then(Value::as_object).cloned().unwrap_or_default(),
        result: value.get("result").filter(|it| it.is_object()).cloned(),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn names() -> (NetworkName, ContainerId, IfName) {
        (
            NetworkName::parse("x", "mv").unwrap(),
            ContainerId::parse("x", "c1").unwrap(),
            IfName::parse("x", "net1").unwrap(),
        )
    }

    #[test]
    fn delegates_are_one_list_in_a_file_of_the_sandbox() {
        let dir = tempfile::tempdir().unwrap();
        let (_, sandbox, _) = names();
        let cache = DelegateCache::new(dir.path().to_owned());
        assert_eq!(cache.read(&sandbox).unwrap(), None);
        cache.write(&sandbox, &[json!({"Name": "a"})]).unwrap();
        let path = dir.path().join("c1");
        assert_eq!(fs::read_to_string(&path).unwrap(), r#"[{"Name":"a"}]"#);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(cache.read(&sandbox).unwrap(), Some(vec![json!({"Name": "a"})]));
        for torn in ["", "[", "[]", "{}"] {
            fs::write(&path, torn).unwrap();
            assert_eq!(cache.read(&sandbox).unwrap(), None, "{torn}");
        }
        assert!(cache.remove(&sandbox).unwrap() && !cache.remove(&sandbox).unwrap());
    }

    #[test]
    fn results_are_what_libcni_writes() {
        let dir = tempfile::tempdir().unwrap();
        let (network, sandbox, ifname) = names();
        let cache = ResultCache::new(dir.path());
        let mut cached = CachedResult {
            config: b"{}".to_vec(),
            netns: "/run/netns/p".into(),
            args: vec![("IgnoreUnknown".into(), "true".into())],
            capabilities: Map::from_iter([("mac".to_owned(), json!("m"))]),
            result: Some(json!({"cniVersion": "1.0.0"})),
        };
        cache.write(&network, &sandbox, &ifname, &cached).unwrap();
        let path = dir.path().join("results/mv-c1-net1");
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            r#"{"kind":"cniCacheV1","containerId":"c1","config":"e30=","ifName":"net1","networkName":"mv","netns":"/run/netns/p","cniArgs":[["IgnoreUnknown","true"]],"capabilityArgs":{"mac":"m"},"result":{"cniVersion":"1.0.0"}}"#
        );
        assert_eq!(cache.read(&network, &sandbox, &ifname).unwrap(), Some(cached.clone()));
        cached = CachedResult {
            netns: String::new(),
            args: vec![],
            capabilities: Map::new(),
            result: None,
            ..cached
        };
        cache.write(&network, &sandbox, &ifname, &cached).unwrap();
        assert_eq!(cache.read(&network, &sandbox, &ifname).unwrap(), Some(cached));
        fs::write(&path, r#"{"kind": "other"}"#).unwrap();
        assert_eq!(cache.read(&network, &sandbox, &ifname).unwrap(), None);
        assert!(cache.remove(&network, &sandbox, &ifname).unwrap());
    }
}
