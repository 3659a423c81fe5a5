//! Configurations of type `netpath` that name other networks: the meta-plugin. Keys are Multus's where it has them.

use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};

use super::conf::NetConf;
use super::error::ConfError;
use super::json::View;
use super::nad::{NetworkConf, Plugin};

/// Capability by which a runtime passes the pod's annotations.
pub const POD_ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";

/// `binDir` where none is written.
pub const BIN_DIR: &str = "/opt/cni/bin";
/// `cniDir` where none is written.
pub const CNI_DIR: &str = "/var/lib/cni/multus";

/// What the meta-plugin is configured to do.
#[derive(Clone, Debug, PartialEq)]
pub struct MetaConf {
    /// The network that every pod gets as its first.
    pub cluster: ClusterNetwork,
    /// `defaultNetworks`: further networks of every pod outside [`Self::system_namespaces`].
    pub default_networks: Vec<String>,
    /// `systemNamespaces`; `kube-system` where none is written.
    pub system_namespaces: Vec<String>,
    /// `namespaceIsolation`: a pod may use NADs of its own namespace and of [`Self::global_namespaces`] only.
    pub namespace_isolation: bool,
    /// `globalNamespaces`; `default` where none is written.
    pub global_namespaces: Vec<String>,
    /// `multusNamespace`: where cluster-wide networks are looked for.
    pub multus_namespace: String,
    /// `confDir`: configurations for NADs that have none.
    pub conf_dir: PathBuf,
    /// `binDir`: where plugins are looked for before `CNI_PATH`.
    pub bin_dir: PathBuf,
    /// `cniDir`: caches, in the format of Multus.
    pub cni_dir: PathBuf,
    /// `kubeconfig`
    pub kubeconfig: Option<PathBuf>,
    /// `networks`: a directory of manifests that stands in for the Kubernetes API.
    pub networks: Option<PathBuf>,
    /// `allowedTypes`: plugins that a NAD may have executed, as its IPAM too; without it all.
    pub allowed_types: Option<Vec<String>>,
    /// `allowedDataDirs`: directories in which a NAD may have addresses kept, besides `/var/lib/cni` and `/run/cni`.
    pub data_dirs: Vec<PathBuf>,
    /// `strictCapabilities`: what a pod asks for and no plugin of the network declares fails the ADD.
    pub strict_capabilities: bool,
    /// `ignoreInvalidAnnotation`: an annotation that cannot be read asks for nothing instead of failing the pod.
    pub ignore_invalid_annotation: bool,
    /// `readinessindicatorfile`: nothing is attached while it does not exist.
    pub readiness_indicator_file: Option<PathBuf>,
    /// `nodeName`: what this node is called in the cluster; else its host name is taken.
    pub node_name: Option<String>,
    /// The pod's annotations, where the runtime passes them.
    pub annotations: Option<Map<String, Value>>,
    /// All of `runtimeConfig`: meant for the first network.
    pub runtime: Map<String, Value>,
    /// `prevResult` as it came.
    pub prev_result: Option<Value>,
}

/// Where the first network of every pod is found.
#[derive(Clone, Debug, PartialEq)]
pub enum ClusterNetwork {
    /// `clusterNetwork`: an absolute path of a file or directory, or the name of a NAD or of a configuration.
    Named(String),
    /// `delegates`: the networks themselves; the first is the pod's first.
    Delegates(Vec<NetworkConf>),
}

impl MetaConf {
    /// Reads the part of `conf` that is about other networks; `None` where it names none, and so polices what the
    /// plugin before it in a list made.
    pub fn from_conf(conf: &NetConf) -> Result<Option<Self>, ConfError> {
        let view = View::root(&conf.raw);
        let cluster = match view.owned("clusterNetwork")? {
            Some(name) => ClusterNetwork::Named(name),
            None => {
                let delegates = view.objects("delegates")?.into_iter();
                let delegates: Vec<_> =
                    delegates.map(|it| NetworkConf::from_view(&it, None)).collect::<Result<_, _>>()?;
                if delegates.is_empty() {
                    return Ok(None);
                }
                ClusterNetwork::Delegates(delegates)
            }
        };
        let path = |key: &str, default: &str| -> Result<PathBuf, ConfError> {
            Ok(PathBuf::from(view.text(key)?.unwrap_or(default)))
        };
        let runtime = view.object("runtimeConfig")?;
        let annotations = match &runtime {
            Some(runtime) => runtime.object(POD_ANNOTATIONS)?.map(|annotations| annotations.map().clone()),
            None => None,
        };
        let runtime = runtime.map(|runtime| runtime.map().clone()).unwrap_or_default();
        Ok(Some(Self {
            cluster,
            default_networks: texts(&view, "defaultNetworks")?,
            system_namespaces: or(texts(&view, "systemNamespaces")?, "kube-system"),
            namespace_isolation: view.bool("namespaceIsolation")?,
            global_namespaces: match view.text("globalNamespaces")? {
                Some(list) => list.split(',').map(|item| item.trim().to_owned()).collect(),
                None => vec!["default".to_owned()],
            },
            multus_namespace: view.owned("multusNamespace")?.unwrap_or_else(|| "kube-system".to_owned()),
            conf_dir: path("confDir", "/etc/cni/multus/net.d")?,
            bin_dir: path("binDir", BIN_DIR)?,
            cni_dir: path("cniDir", CNI_DIR)?,
            kubeconfig: view.parsed("kubeconfig", absolute)?,
            networks: view.parsed("networks", absolute)?,
            allowed_types: view.get("allowedTypes").map(|_| texts(&view, "allowedTypes")).transpose()?,
            data_dirs: {
                let own = ["/var/lib/cni", "/run/cni"].into_iter().map(PathBuf::from);
                own.chain(texts(&view, "allowedDataDirs")?.into_iter().map(PathBuf::from)).collect()
            },
            strict_capabilities: view.bool("strictCapabilities")?,
            ignore_invalid_annotation: view.bool("ignoreInvalidAnnotation")?,
            readiness_indicator_file: view.parsed("readinessindicatorfile", absolute)?,
            node_name: view.owned("nodeName")?,
            annotations,
            runtime,
            prev_result: view.get("prevResult").cloned(),
        }))
    }

    /// Whether a pod of `pod_namespace` may use NADs of `nad_namespace`.
    pub fn may_use(&self, pod_namespace: &str, nad_namespace: &str) -> bool {
        !self.namespace_isolation
            || pod_namespace == nad_namespace
            || self.global_namespaces.iter().any(|global| global == nad_namespace)
    }

    /// The networks beside the first that a pod of this namespace gets without asking.
    pub fn defaults_for(&self, pod_namespace: &str) -> &[String] {
        match self.system_namespaces.iter().any(|system| system == pod_namespace) {
            true => &[],
            false => &self.default_networks,
        }
    }

    /// Refuses a plugin that the administrator does not list.
    pub fn check_type(&self, field: &str, kind: &str) -> Result<(), ConfError> {
        match &self.allowed_types {
            Some(allowed) if !allowed.iter().any(|it| it == kind) => Err(ConfError::field(
                field,
                kind,
                format!("`allowedTypes` of the cluster's configuration has {} only", allowed.join(", ")),
            )),
            _ => Ok(()),
        }
    }
}

impl MetaConf {
    /// Refuses an IPAM that the administrator does not list: it is executed as well, with the whole configuration.
    pub fn check_ipam(&self, plugin: &Plugin) -> Result<(), ConfError> {
        plugin.unknown_ipam().map_or(Ok(()), |kind| self.check_type("ipam.type", kind))
    }

    /// Refuses a directory of addresses outside of those that are for it: whoever may write a NAD could have files
    /// written anywhere on the node.
    pub fn check_data_dir(&self, plugin: &Plugin) -> Result<(), ConfError> {
        let raw = View::root(plugin.raw());
        let Some(ipam) = raw.object("ipam")? else { return Ok(()) };
        let Some(text) = ipam.text("dataDir")? else { return Ok(()) };
        let path = Path::new(text);
        let leads_upwards = path.components().any(|part| part == Component::ParentDir);
        if !leads_upwards && self.data_dirs.iter().any(|dir| path.starts_with(dir)) {
            return Ok(());
        }
        let listed: Vec<_> = self.data_dirs.iter().map(|dir| dir.to_string_lossy()).collect();
        let rule =
            format!("it must lie in {}: leave it out, or list it in `allowedDataDirs`", listed.join(" or "));
        Err(ConfError::field(ipam.path_of("dataDir"), text, rule))
    }
}

fn texts(view: &View<'_>, key: &str) -> Result<Vec<String>, ConfError> {
    Ok(view.texts(key)?.into_iter().map(|(_, text)| text.to_owned()).collect())
}

fn or(texts: Vec<String>, default: &str) -> Vec<String> {
    if texts.is_empty() { vec![default.to_owned()] } else { texts }
}

fn absolute(field: &str, value: &str) -> Result<PathBuf, ConfError> {
    match Path::new(value).is_absolute() {
        true => Ok(value.into()),
        false => Err(ConfError::field(field, value, "write an absolute path")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(keys: Value) -> Result<Option<MetaConf>, ConfError> {
        let mut conf = json!({"cniVersion": "1.0.0", "name": "cluster", "type": "netpath"});
        for (key, value) in keys.as_object().expect("keys are an object") {
            conf[key] = value.clone();
        }
        MetaConf::from_conf(&NetConf::parse(conf.to_string().as_bytes()).expect("is valid"))
    }

    fn meta(keys: Value) -> MetaConf {
        read(keys).expect("is valid").expect("names networks")
    }

    #[test]
    fn a_configuration_that_names_no_network_is_that_of_a_chained_plugin() {
        assert_eq!(read(json!({})).expect("is valid"), None);
        assert_eq!(
            read(json!({"prevResult": {"cniVersion": "1.0.0"}, "delegates": []})).expect("is valid"),
            None
        );
    }

    #[test]
    fn defaults_are_those_of_multus() {
        let meta = meta(json!({"clusterNetwork": "/etc/cni/net.d/10-calico.conflist"}));
        assert_eq!(meta.cluster, ClusterNetwork::Named("/etc/cni/net.d/10-calico.conflist".into()));
        assert_eq!(meta.system_namespaces, ["kube-system"]);
        assert_eq!(meta.global_namespaces, ["default"]);
        assert_eq!(meta.multus_namespace, "kube-system");
        assert_eq!(meta.conf_dir, Path::new("/etc/cni/multus/net.d"));
        assert_eq!(meta.bin_dir, Path::new("/opt/cni/bin"));
        assert_eq!(meta.cni_dir, Path::new("/var/lib/cni/multus"));
        assert!(!meta.namespace_isolation && !meta.ignore_invalid_annotation);
        assert_eq!((meta.annotations, meta.allowed_types), (None, None));
    }

    #[test]
    fn of_both_keys_the_cluster_network_counts() {
        let both = meta(json!({"clusterNetwork": "cni0", "delegates": [{"type": "bridge", "name": "b"}]}));
        assert_eq!(both.cluster, ClusterNetwork::Named("cni0".into()));
        let ClusterNetwork::Delegates(delegates) =
            meta(json!({"delegates": [{"type": "bridge", "name": "b"}, {"name": "l", "plugins": [{"type": "ptp"}]}]}))
                .cluster
        else {
            panic!("are delegates");
        };
        assert_eq!(delegates.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["b", "l"]);
    }

    #[test]
    fn isolation_lets_through_the_own_and_the_global_namespaces() {
        let open = meta(json!({"clusterNetwork": "a"}));
        assert!(open.may_use("web", "infra"));
        let closed = meta(json!({"clusterNetwork": "a", "namespaceIsolation": true}));
        assert!(closed.may_use("web", "web") && closed.may_use("web", "default"));
        assert!(!closed.may_use("web", "infra"));
        let listed =
            meta(json!({"clusterNetwork": "a", "namespaceIsolation": true, "globalNamespaces": "infra, x"}));
        assert!(
            listed.may_use("web", "infra") && listed.may_use("web", "x") && !listed.may_use("web", "default")
        );
    }

    #[test]
    fn system_pods_get_no_default_networks() {
        let meta =
            meta(json!({"clusterNetwork": "a", "defaultNetworks": ["mv"], "systemNamespaces": ["sys"]}));
        assert_eq!(meta.defaults_for("web"), ["mv"]);
        assert!(meta.defaults_for("sys").is_empty());
    }

    #[test]
    fn annotations_are_taken_from_the_runtime() {
        let runtime = json!({POD_ANNOTATIONS: {"k8s.v1.cni.cncf.io/networks": "mv"}, "dns": {}});
        let meta = meta(json!({"clusterNetwork": "a", "runtimeConfig": runtime}));
        assert_eq!(meta.annotations.expect("are there")["k8s.v1.cni.cncf.io/networks"], "mv");
        assert_eq!(meta.runtime.len(), 2);
    }

    #[test]
    fn only_listed_types_are_executed() {
        let meta = meta(json!({"clusterNetwork": "a", "allowedTypes": ["macvlan", "bridge"]}));
        assert!(meta.check_type("type", "bridge").is_ok());
        let error = meta.check_type("type", "host-device").expect_err("is not listed").to_string();
        assert!(error.starts_with("type `host-device`: `allowedTypes`"), "{error}");
        let check = |ipam: &str| {
            let conf = json!({"type": "bridge", "name": "b", "ipam": {"Type": ipam}});
            let conf = NetworkConf::parse(conf.to_string().as_bytes(), None).expect("is valid");
            meta.check_ipam(&conf.plugins[0])
        };
        for good in ["", "host-local", "static", "dhcp", "whereabouts", "bridge"] {
            assert!(check(good).is_ok(), "{good}");
        }
        let error = check("other").expect_err("is not listed").to_string();
        assert!(error.starts_with("ipam.type `other`: `allowedTypes`"), "{error}");
    }

    #[test]
    fn addresses_are_kept_where_they_belong() {
        let meta = meta(json!({"clusterNetwork": "a", "allowedDataDirs": ["/mnt/shared"]}));
        let check = |dir: &str| {
            let conf = json!({"type": "bridge", "name": "b", "ipam": {"type": "host-local", "dataDir": dir}});
            let conf = NetworkConf::parse(conf.to_string().as_bytes(), None).expect("is valid");
            meta.check_data_dir(&conf.plugins[0])
        };
        for good in ["", "/var/lib/cni/networks", "/run/cni/x", "/mnt/shared"] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in ["/etc", "/var/lib/cnix", "/var/lib/cni/../../../etc", "relative", "/mnt"] {
            let error = check(bad).expect_err(bad).to_string();
            assert!(
                error.starts_with(&format!("ipam.dataDir `{bad}`: it must lie in /var/lib/cni or")),
                "{error}"
            );
        }
    }

    #[test]
    fn paths_that_depend_on_a_working_directory_are_refused() {
        let error = read(json!({"clusterNetwork": "a", "networks": "nads"})).expect_err("is relative");
        assert_eq!(error.to_string(), "networks `nads`: write an absolute path");
    }
}
