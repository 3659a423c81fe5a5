//! What netpath's own configuration says on a node, and which network of others it stands before.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::error::ConfError;
use super::meta::POD_ANNOTATIONS;
use super::nad::NetworkConf;

/// File of the configuration: runtimes take the first by name.
pub const CONF: &str = "00-netpath.conflist";
/// Appended to the name of what stood there before; no runtime reads such a file.
pub const SAVED: &str = ".netpath-saved";
/// The network's name.
pub const NETWORK: &str = "netpath";

const NETPATH: &str = "netpath";
const MULTUS: [&str; 2] = ["multus", "multus-shim"];
/// Capabilities are always declared, and filtered for those whom netpath executes: the file is written once.
const CAPABILITIES: [&str; 7] = ["bandwidth", "cgroupPath", "dns", "ipRanges", "ips", "mac", "portMappings"];
/// What an administrator told Multus and netpath understands.
const CARRIED: [&str; 9] = [
    "namespaceIsolation",
    "globalNamespaces",
    "systemNamespaces",
    "defaultNetworks",
    "multusNamespace",
    "confDir",
    "binDir",
    "cniDir",
    "readinessindicatorfile",
];
/// Where Multus's container has the node's directories.
const HOST: &str = "/host/";

/// Why no configuration can be written.
#[derive(Debug, thiserror::Error)]
pub enum ChoiceError {
    /// The cluster's network plugin has not written its own yet, or there is none.
    #[error(
        "there is no configuration of a cluster network in {}: netpath waits for that of the cluster's network plugin",
        directory.display()
    )]
    None {
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// A runtime that meets such a file starts no pod.
    #[error("{} cannot be read: mend it, or name the cluster network's file by --cluster-network", file.display())]
    Broken {
        /// The file.
        file: PathBuf,
        /// Why.
        source: ConfError,
    },
    /// Two meta-plugins that call each other never end.
    #[error(
        "the cluster network {} is a configuration of type `{kind}`: name that of the cluster's network plugin by \
         --cluster-network",
        file.display()
    )]
    Meta {
        /// The file.
        file: PathBuf,
        /// Whose it is.
        kind: String,
    },
    /// The file that was named is not there.
    #[error("the cluster network {} is no path of a file that is there, from the root on: name one by --cluster-network", file.display())]
    Missing {
        /// The file.
        file: PathBuf,
    },
}

/// Which network of others netpath stands before.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// `clusterNetwork` or `delegates`, with what was carried over from Multus.
    keys: Map<String, Value>,
    /// Files of Multus that would come before ours.
    pub multus: Vec<String>,
}

/// Where the networks of pods are defined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The API, by this kubeconfig.
    Api(PathBuf),
    /// A directory of manifests.
    Directory(PathBuf),
}

/// Chooses from the configurations of a directory, sorted by name. `wanted` is the administrator's word.
///
/// The file is named by its path: a name or a directory could lead back to netpath one day.
pub fn choose(
    directory: &Path,
    files: &[(String, Vec<u8>)],
    wanted: Option<&Path>,
) -> Result<Choice, ChoiceError> {
    let mut multus: Vec<(&str, Map<String, Value>)> = Vec::new();
    let mut clusters = Vec::new();
    let mut broken = None;
    for (name, text) in files {
        let path = directory.join(name);
        match NetworkConf::parse(text, None) {
            Ok(conf) => match kind(&conf) {
                Some(NETPATH) => {}
                Some(_) => multus.extend(plugin(text).map(|keys| (name.as_str(), keys))),
                None => clusters.push((path, conf)),
            },
            // What comes after the first good one is nobody's concern.
            Err(source) if clusters.is_empty() && broken.is_none() => {
                broken = Some(ChoiceError::Broken { file: path, source });
            }
            Err(_) => {}
        }
    }
    let mut keys = Map::new();
    if let Some((_, theirs)) = multus.first() {
        for key in CARRIED {
            keys.extend(theirs.get(key).map(|value| (key.to_owned(), on_node(value))));
        }
    }
    let found = match wanted {
        Some(file) if file.is_absolute() => Some(("clusterNetwork", text(file))),
        Some(file) => return Err(ChoiceError::Missing { file: file.to_owned() }),
        None => multus.first().and_then(|(_, theirs)| of_multus(theirs, &clusters)).filter(|(_, network)| {
            // Beside us it takes ours for the cluster's.
            let name =
                network.as_str().and_then(|path| Path::new(path).strip_prefix(directory).ok()?.to_str());
            !files
                .iter()
                .any(|(file, text)| Some(file.as_str()) == name && (is_ours(text) || is_multus(text)))
        }),
    };
    let (key, value) = match (found, clusters.first()) {
        (Some(found), _) => found,
        (None, Some((path, _))) if broken.is_none() => ("clusterNetwork", text(path)),
        (None, _) => {
            return Err(broken.unwrap_or(ChoiceError::None { directory: directory.to_owned() }));
        }
    };
    keys.insert(key.to_owned(), value);
    Ok(Choice { keys, multus: multus.into_iter().map(|(name, _)| name.to_owned()).collect() })
}

impl Choice {
    /// The text of [`CONF`].
    ///
    /// Version 1.1.0 alone loads under containerd 1.6 and then fails each ADD; with the list each runtime finds its own.
    pub fn conflist(&self, source: &Source, node: &str) -> String {
        let mut capabilities: Map<String, Value> =
            CAPABILITIES.iter().map(|name| ((*name).to_owned(), true.into())).collect();
        capabilities.insert(POD_ANNOTATIONS.to_owned(), true.into());
        let mut plugin = Map::new();
        plugin.insert("type".to_owned(), NETPATH.into());
        plugin.extend(self.keys.clone());
        match source {
            Source::Api(kubeconfig) => plugin.insert("kubeconfig".to_owned(), text(kubeconfig)),
            Source::Directory(networks) => plugin.insert("networks".to_owned(), text(networks)),
        };
        plugin.insert("nodeName".to_owned(), node.into());
        plugin.insert("capabilities".to_owned(), capabilities.into());
        let list = json!({
            "cniVersion": "1.0.0",
            "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
            "name": NETWORK,
            "plugins": [plugin],
        });
        format!("{list:#}\n")
    }
}

/// Refuses a cluster network that no pod could be given: `bytes` is what is in its file.
pub fn check(file: &Path, bytes: Option<&[u8]>) -> Result<(), ChoiceError> {
    let bytes = bytes.ok_or_else(|| ChoiceError::Missing { file: file.to_owned() })?;
    let broken = |source| ChoiceError::Broken { file: file.to_owned(), source };
    match kind(&NetworkConf::parse(bytes, None).map_err(broken)?) {
        Some(kind) => Err(ChoiceError::Meta { file: file.to_owned(), kind: kind.to_owned() }),
        None => Ok(()),
    }
}

/// Where a configuration of netpath finds what networks are.
pub fn source(text: &[u8]) -> Option<Source> {
    let keys = plugin(text)?;
    let path = |key: &str| keys.get(key).and_then(Value::as_str).map(PathBuf::from);
    path("kubeconfig").map(Source::Api).or_else(|| path("networks").map(Source::Directory))
}

/// Whether runtimes read a file of this name.
pub fn is_conf(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|it| it.to_str());
    matches!(extension, Some("conf" | "conflist" | "json"))
}

/// Whether this is a configuration of netpath.
pub fn is_ours(text: &[u8]) -> bool {
    NetworkConf::parse(text, None).is_ok_and(|conf| kind(&conf) == Some(NETPATH))
}

/// Whether this is a configuration of Multus.
pub fn is_multus(text: &[u8]) -> bool {
    NetworkConf::parse(text, None).is_ok_and(|conf| kind(&conf).is_some_and(|it| it != NETPATH))
}

/// The file of the cluster network that a configuration of netpath names.
pub fn cluster_network(text: &[u8]) -> Option<PathBuf> {
    let keys = plugin(text)?;
    keys.get("clusterNetwork")?.as_str().filter(|it| it.starts_with('/')).map(PathBuf::from)
}

/// The meta-plugin that a configuration is of.
fn kind(conf: &NetworkConf) -> Option<&'static str> {
    let is = |name: &str| conf.plugins.iter().any(|plugin| plugin.kind == name);
    [NETPATH, MULTUS[0], MULTUS[1]].into_iter().find(|name| is(name))
}

/// The keys of the one plugin of a configuration, or of the first of a list.
fn plugin(text: &[u8]) -> Option<Map<String, Value>> {
    let conf: Value = serde_json::from_slice(text).ok()?;
    let plugin = conf.get("plugins").and_then(|all| all.get(0)).unwrap_or(&conf);
    plugin.as_object().cloned()
}

/// What Multus stood before.
fn of_multus(
    theirs: &Map<String, Value>,
    clusters: &[(PathBuf, NetworkConf)],
) -> Option<(&'static str, Value)> {
    if let Some(network) =
        theirs.get("clusterNetwork").filter(|it| it.as_str().is_some_and(|it| !it.is_empty()))
    {
        return Some(("clusterNetwork", on_node(network)));
    }
    let delegates = theirs.get("delegates")?.as_array().filter(|all| !all.is_empty())?;
    let name = delegates[0].get("name").and_then(Value::as_str);
    // It copied the file's text; the file is what its author keeps up to date.
    let file = clusters.iter().find(|(_, conf)| Some(conf.name.as_str()) == name);
    Some(match file {
        Some((path, _)) if delegates.len() == 1 => ("clusterNetwork", text(path)),
        _ => ("delegates", delegates.clone().into()),
    })
}

/// A path that Multus has in its container, as the node has it.
fn on_node(value: &Value) -> Value {
    match value.as_str().and_then(|text| text.strip_prefix(HOST)) {
        Some(rest) => format!("/{rest}").into(),
        None => value.clone(),
    }
}

fn text(path: &Path) -> Value {
    path.to_string_lossy().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIR: &str = "/etc/cni/net.d";

    fn file(name: &str, conf: Value) -> (String, Vec<u8>) {
        (name.to_owned(), conf.to_string().into_bytes())
    }

    fn calico() -> (String, Vec<u8>) {
        file("10-calico.conflist", json!({"name": "k8s-pod-network", "plugins": [{"type": "calico"}]}))
    }

    fn conf(files: &[(String, Vec<u8>)], wanted: Option<&str>) -> Value {
        let choice = choose(Path::new(DIR), files, wanted.map(Path::new)).expect("chosen");
        let text = choice.conflist(&Source::Api("/k".into()), "worker01");
        assert!(is_ours(text.as_bytes()) && !is_multus(text.as_bytes()));
        serde_json::from_str::<Value>(&text).expect("JSON")["plugins"][0].clone()
    }

    #[test]
    fn the_first_network_of_others_is_stood_before() {
        let ours =
            file(CONF, json!({"name": "netpath", "plugins": [{"type": "netpath", "clusterNetwork": "x"}]}));
        let other = file("87-podman.conflist", json!({"name": "podman", "plugins": [{"type": "bridge"}]}));
        let plugin = conf(&[ours, calico(), other], None);
        assert_eq!(plugin["clusterNetwork"], "/etc/cni/net.d/10-calico.conflist");
        assert_eq!(
            (&plugin["kubeconfig"], &plugin["capabilities"]["portMappings"]),
            (&json!("/k"), &json!(true))
        );
        let text = json!({"plugins": [plugin]}).to_string();
        assert_eq!(cluster_network(text.as_bytes()), Some("/etc/cni/net.d/10-calico.conflist".into()));
    }

    #[test]
    fn multus_hands_over_what_it_was_told() {
        let multus = |keys: Value| {
            let mut conf = json!({"cniVersion": "0.3.1", "name": "multus-cni-network", "type": "multus"});
            conf.as_object_mut().expect("object").extend(keys.as_object().expect("object").clone());
            file("00-multus.conf", conf)
        };
        let thick =
            multus(json!({"type": "multus-shim", "clusterNetwork": "/host/etc/cni/net.d/10-calico.conflist",
            "namespaceIsolation": true, "logLevel": "debug"}));
        let plugin = conf(&[thick.clone(), calico()], None);
        assert_eq!(plugin["clusterNetwork"], "/etc/cni/net.d/10-calico.conflist");
        assert_eq!((&plugin["namespaceIsolation"], plugin.get("logLevel")), (&json!(true), None));
        let choice = choose(Path::new(DIR), &[thick, calico()], None).expect("chosen");
        assert_eq!(choice.multus, ["00-multus.conf"]);
        let copy =
            multus(json!({"delegates": [{"name": "k8s-pod-network", "plugins": [{"type": "calico"}]}]}));
        assert_eq!(conf(&[copy, calico()], None)["clusterNetwork"], "/etc/cni/net.d/10-calico.conflist");
        let ours =
            file(CONF, json!({"name": "netpath", "plugins": [{"type": "netpath", "clusterNetwork": "x"}]}));
        let looped = multus(json!({"clusterNetwork": "/host/etc/cni/net.d/00-netpath.conflist"}));
        assert_eq!(
            conf(&[looped, ours, calico()], None)["clusterNetwork"],
            "/etc/cni/net.d/10-calico.conflist"
        );
        let only = multus(json!({"delegates": [{"name": "own", "type": "bridge"}]}));
        let plugin = conf(&[only, calico()], None);
        assert_eq!((&plugin["delegates"][0]["name"], plugin.get("clusterNetwork")), (&json!("own"), None));
    }

    #[test]
    fn what_cannot_be_chosen_says_why() {
        let dir = Path::new(DIR);
        let error = |files: &[(String, Vec<u8>)], wanted: Option<&str>| {
            choose(dir, files, wanted.map(Path::new)).expect_err("refused")
        };
        assert!(matches!(error(&[], None), ChoiceError::None { .. }));
        let broken = ("05-broken.conf".to_owned(), b"{".to_vec());
        assert!(matches!(error(&[broken.clone(), calico()], None), ChoiceError::Broken { .. }));
        assert_eq!(
            conf(&[broken, calico()], Some("/etc/cni/net.d/10-calico.conflist"))["clusterNetwork"],
            "/etc/cni/net.d/10-calico.conflist"
        );
        let late = ("20-broken.conf".to_owned(), b"{".to_vec());
        assert_eq!(conf(&[calico(), late], None)["clusterNetwork"], "/etc/cni/net.d/10-calico.conflist");
        let multus = file("00-multus.conf", json!({"name": "m", "type": "multus", "clusterNetwork": "x"}));
        let path = Path::new("/x");
        assert!(matches!(check(path, Some(&multus.1)), Err(ChoiceError::Meta { .. })));
        assert!(matches!(check(path, None), Err(ChoiceError::Missing { .. })));
        assert!(matches!(check(path, Some(b"{")), Err(ChoiceError::Broken { .. })));
        assert!(check(path, Some(&calico().1)).is_ok());
        assert!(matches!(error(&[calico()], Some("10-calico.conflist")), ChoiceError::Missing { .. }));
    }

    #[test]
    fn runtimes_read_three_kinds_of_files() {
        for (name, is) in [
            ("a.conf", true),
            ("a.conflist", true),
            ("a.json", true),
            ("a.conf.netpath-saved", false),
            (".a", false),
            ("masters", false),
        ] {
            assert_eq!(is_conf(name), is, "{name}");
        }
    }
}
