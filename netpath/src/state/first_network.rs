//! The network that every pod gets first, where the API alone knows it: as the last ADD found it, since no DEL may
//! depend on the API.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::StateError;
use crate::root::Root;
use crate::spec::json::parse_value;
use crate::spec::{NetworkConf, NetworkName};
use crate::whole;

/// The kept network of one configuration of the meta-plugin.
#[derive(Clone, Debug)]
pub struct FirstNetwork {
    path: PathBuf,
}

impl FirstNetwork {
    /// That of the configuration `name` of the meta-plugin. Nothing is created before the first write.
    pub fn new(root: &Root, name: &NetworkName) -> Self {
        Self { path: directory(root).join(format!("{name}.json")) }
    }

    /// What is kept for `asked`, with what it is called. A file that is torn is none, and says so in the log.
    pub fn read(&self, asked: &str) -> Result<Option<(String, NetworkConf)>, StateError> {
        let Some(bytes) = whole::read(&self.path)? else { return Ok(None) };
        let kept = decode(&bytes);
        if kept.is_none() {
            tracing::warn!(path = %self.path.display(), "a kept network is ignored: it is not one");
        }
        Ok(kept.filter(|(name, _, _)| name == asked).map(|(_, label, conf)| (label, conf)))
    }

    /// Keeps it, if it is another than before.
    pub fn keep(&self, asked: &str, label: &str, conf: &NetworkConf) -> Result<(), StateError> {
        let text = json!({"clusterNetwork": asked, "label": label, "conf": conf.raw()}).to_string();
        if whole::read(&self.path)?.is_none_or(|kept| kept != text.as_bytes()) {
            whole::replace(&self.path, text.as_bytes())?;
        }
        Ok(())
    }

    /// Removes what writers that were killed have left, whatever the configuration.
    pub fn sweep(root: &Root) -> Result<usize, StateError> {
        Ok(whole::sweep(&directory(root))?)
    }
}

fn directory(root: &Root) -> PathBuf {
    root.state().join("first-networks")
}

fn decode(bytes: &[u8]) -> Option<(String, String, NetworkConf)> {
    let value = parse_value(bytes).ok()?;
    let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let conf = NetworkConf::parse(value.get("conf")?.to_string().as_bytes(), None).ok()?;
    Some((text("clusterNetwork")?, text("label")?, conf))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn it_is_kept_for_the_name_it_was_asked_by() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        let kept = FirstNetwork::new(&root, &NetworkName::parse("x", "cluster").unwrap());
        let conf = NetworkConf::parse(br#"{"cniVersion": "1.0.0", "type": "bridge"}"#, Some("cni0")).unwrap();
        assert_eq!(kept.read("infra/first").unwrap(), None);
        kept.keep("infra/first", "infra/first", &conf).unwrap();
        let again = kept.read("infra/first").unwrap().unwrap();
        assert_eq!((again.0.as_str(), &again.1), ("infra/first", &conf));
        assert_eq!(kept.read("infra/other").unwrap(), None);
        // What is the same is not written again.
        let written = fs::metadata(&kept.path).unwrap().modified().unwrap();
        kept.keep("infra/first", "infra/first", &conf).unwrap();
        assert_eq!(fs::metadata(&kept.path).unwrap().modified().unwrap(), written);
        fs::write(&kept.path, "{").unwrap();
        assert_eq!(kept.read("infra/first").unwrap(), None);
    }
}
