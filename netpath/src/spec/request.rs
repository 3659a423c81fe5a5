//! One network of one pod: what is executed for it, and what its plugins are told of the pod's wishes.

use serde_json::{Map, Value, json};

use super::address::RequestedIp;
use super::annotation::Selection;
use super::args::CniArgs;
use super::base64;
use super::error::ConfError;
use super::json::{View, is_same_key};
use super::nad::NetworkConf;
use super::names::{ContainerId, IfName, Mac};

/// A pod, as the runtime names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRef {
    /// K8S_POD_NAMESPACE
    pub namespace: String,
    /// K8S_POD_NAME
    pub name: String,
    /// K8S_POD_UID; of a static pod this is not the API's.
    pub uid: Option<String>,
}

/// One network of one pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Delegate {
    /// As network-status names it: `namespace/name` of the NAD, else the configuration's name.
    pub label: String,
    /// Namespace of the NAD, where there is one.
    pub nad_namespace: Option<String>,
    /// What is executed, with `cni-args` and `deviceID` already in it.
    pub conf: NetworkConf,
    /// The interface in the pod.
    pub ifname: IfName,
    /// What the pod asks for.
    pub selection: Selection,
    /// Whether it is the pod's first network.
    pub is_first: bool,
    /// The resource that its device is one of, where its NAD names one.
    pub resource: Option<String>,
}

/// Key and capability for the device that was given to the pod.
const DEVICE: &str = "deviceID";

/// A wish, the capability by which plugins are told of it, and the value.
type Wish = (&'static str, Value);

impl Delegate {
    /// `namespace/name` of the NAD, where there is one.
    pub fn nad(&self) -> Option<&str> {
        self.nad_namespace.as_ref().map(|_| self.label.as_str())
    }

    /// The network `index` of a pod. `first` is the name of the first interface.
    ///
    /// An interface that the pod names counts all the same: the second network is `net1` whatever the first is.
    pub fn new(
        index: usize,
        first: &IfName,
        label: String,
        nad_namespace: Option<String>,
        conf: NetworkConf,
        selection: Selection,
    ) -> Result<Self, ConfError> {
        let ifname = match &selection.ifname {
            Some(ifname) => ifname.clone(),
            None if index == 0 => first.clone(),
            None => IfName::parse("interface", &format!("net{index}"))?,
        };
        let conf = match &selection.cni_args {
            Some(args) => conf.map_plugins(|plugin| merge_cni_args(plugin, args)),
            None => conf,
        };
        let conf = match &selection.device_id {
            Some(device) => conf.map_plugins(|plugin| {
                for key in [DEVICE, "pciBusID"] {
                    plugin.retain(|other, _| !is_same_key(other, key));
                    plugin.insert(key.to_owned(), device.as_str().into());
                }
            }),
            None => conf,
        };
        let several = 1 < selection.ips.len() && !conf.declares("ips");
        let ips: Vec<Value> = selection.ips.iter().map(|ip| ip.to_string().into()).collect();
        let conf = match several {
            // By CNI_ARGS, host-local takes one address only, and fails on two.
            true => conf.map_plugins(|plugin| {
                if is_host_local(plugin) {
                    merge_cni_args(plugin, &Map::from_iter([("ips".to_owned(), ips.clone().into())]));
                }
            }),
            false => conf,
        };
        Ok(Self { label, nad_namespace, conf, ifname, selection, is_first: index == 0, resource: None })
    }

    /// What a plugin that declares the capability is told in `runtimeConfig`.
    ///
    /// What the runtime itself passes (the pod's port mappings, its bandwidth) is about the first network; the
    /// others have what the pod asks for in its annotation.
    pub fn capabilities(&self, runtime: &Map<String, Value>) -> Map<String, Value> {
        let mut all = Map::new();
        if self.is_first {
            all.extend(runtime.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
        all.extend(self.wishes().into_iter().map(|(key, value)| (key.to_owned(), value)));
        all
    }

    /// The wishes that no plugin of the network declares to be told of. A device is told to all of them.
    pub fn unheard(&self) -> Vec<&'static str> {
        let wishes = self.wishes().into_iter().map(|(key, _)| key);
        wishes.filter(|key| *key != DEVICE && !self.conf.declares(key)).collect()
    }

    /// `CNI_ARGS` of its plugins: what is known of the pod, what the runtime passed besides, and address and MAC for
    /// plugins that look for them there.
    pub fn args(&self, call: &CniArgs) -> Vec<(String, String)> {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let mut pairs: Vec<(String, String)> = [
            ("IgnoreUnknown", "true".to_owned()),
            ("K8S_POD_NAMESPACE", text(&call.k8s_pod_namespace)),
            ("K8S_POD_NAME", text(&call.k8s_pod_name)),
            ("K8S_POD_INFRA_CONTAINER_ID", text(&call.k8s_pod_infra_container_id)),
            ("K8S_POD_UID", text(&call.k8s_pod_uid)),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .to_vec();
        for (key, value) in &call.pairs {
            // What is asked of one interface is not asked of the next.
            let is_of_first = matches!(key.as_str(), "IP" | "MAC" | "GATEWAY");
            if !pairs.iter().any(|(own, _)| own == key) && (self.is_first || !is_of_first) {
                pairs.push((key.clone(), value.clone()));
            }
        }
        let mut set = |key: &str, value: String| {
            pairs.retain(|(own, _)| own != key);
            pairs.push((key.to_owned(), value));
        };
        if let Some(mac) = self.selection.mac {
            set("MAC", mac.to_string());
        }
        let ips: Vec<String> = self.selection.ips.iter().map(RequestedIp::to_string).collect();
        let takes_one = self.conf.plugins.iter().any(|plugin| is_host_local(plugin.raw()));
        if ips.len() == 1 || (!ips.is_empty() && !takes_one) {
            set("IP", ips.join(","));
        }
        pairs
    }

    /// The element of Multus's delegate cache for this network.
    pub fn to_cached(&self) -> Value {
        let raw = Value::Object(self.conf.raw().clone());
        let bytes = base64::encode(raw.to_string().as_bytes());
        let empty = json!({"dns": {}, "ipam": {}});
        let (conf, list) = if self.conf.is_list { (empty, raw) } else { (raw, json!({"plugins": null})) };
        let selection = &self.selection;
        let mut cached = Map::new();
        cached.insert("Conf".into(), conf);
        cached.insert("ConfList".into(), list);
        cached.insert("Name".into(), self.label.as_str().into());
        let mut put = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                cached.insert(key.to_owned(), value);
            }
        };
        put("ifnameRequest", selection.ifname.as_ref().map(|ifname| ifname.as_str().into()));
        put("macRequest", selection.mac.map(|mac| mac.to_string().into()));
        put("infinibandGUIDRequest", selection.infiniband_guid.as_deref().map(Value::from));
        let ips: Vec<Value> = selection.ips.iter().map(|ip| ip.to_string().into()).collect();
        put("ipRequest", Some(ips).filter(|ips| !ips.is_empty()).map(Value::from));
        put(
            "default-route",
            selection.default_route.as_ref().map(|all| all.iter().map(ToString::to_string).collect()),
        );
        put("IsFilterV4Gateway", Some(false.into()));
        put("IsFilterV6Gateway", Some(false.into()));
        put("deviceID", selection.device_id.as_deref().map(Value::from));
        put("resourceName", self.resource.as_deref().map(Value::from));
        put("Bytes", Some(bytes.into()));
        Value::Object(cached)
    }

    /// Reads element `index` of a delegate cache, be it Multus's or ours.
    pub fn from_cached(index: usize, first: &IfName, value: &Value) -> Result<Self, ConfError> {
        let view = View::at(format!("delegates[{index}]"), value)?;
        let bytes = view.parsed("Bytes", |field, text| {
            base64::decode(text).ok_or_else(|| ConfError::field(field, text, "must be base64"))
        })?;
        let bytes = bytes.ok_or_else(|| ConfError::Missing {
            field: view.path_of("Bytes"),
            fix: "this is no delegate cache of Multus 3.2 or later",
        })?;
        let name = view.text("Name")?.and_then(|name| name.rsplit('/').next());
        let conf = NetworkConf::parse(&bytes, name)?;
        let label = view.owned("Name")?.unwrap_or_else(|| conf.name.to_string());
        let ips = view.texts("ipRequest")?;
        let selection = Selection {
            ifname: view.parsed("ifnameRequest", IfName::parse)?,
            mac: view.parsed("macRequest", Mac::parse)?,
            ips: ips.into_iter().map(|(path, ip)| RequestedIp::parse(&path, ip)).collect::<Result<_, _>>()?,
            infiniband_guid: view.owned("infinibandGUIDRequest")?,
            ..Selection::default()
        };
        let nad_namespace = label.split_once('/').map(|(namespace, _)| namespace.to_owned());
        // `cni-args` and device are in the configuration already, as it was executed.
        let mut delegate = Self::new(index, first, label, nad_namespace, conf, selection)?;
        delegate.selection.device_id = view.owned("deviceID")?;
        delegate.resource = view.owned("resourceName")?;
        Ok(delegate)
    }

    /// Name of the file that says what its device is, for plugins that read or write it; the same as Multus's.
    pub fn device_file(&self, container_id: &ContainerId) -> Option<String> {
        self.selection.device_id.as_ref()?;
        Some(format!("{}-{container_id}_{}", self.label, self.ifname).replace('/', "-"))
    }

    fn wishes(&self) -> Vec<Wish> {
        let selection = &self.selection;
        let ips: Vec<Value> = selection.ips.iter().map(|ip| ip.to_string().into()).collect();
        let wishes = [
            ("ips", Some(Value::from(ips)).filter(|_| !selection.ips.is_empty())),
            ("mac", selection.mac.map(|mac| mac.to_string().into())),
            ("infinibandGUID", selection.infiniband_guid.as_deref().map(Value::from)),
            ("portMappings", selection.port_mappings.clone()),
            ("bandwidth", selection.bandwidth.clone()),
            (DEVICE, selection.device_id.as_deref().map(Value::from)),
            ("ipam-claim-reference", selection.ipam_claim.as_deref().map(Value::from)),
        ];
        wishes.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
    }
}

fn is_host_local(plugin: &Map<String, Value>) -> bool {
    let ipam = View::root(plugin).object("ipam").ok().flatten();
    ipam.is_some_and(|ipam| ipam.text("type").ok().flatten() == Some("host-local"))
}

/// Merges `cni-args` into `args.cni`; they win over what is there.
fn merge_cni_args(plugin: &mut Map<String, Value>, cni_args: &Map<String, Value>) {
    fn object<'a>(map: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
        let found = map.keys().rev().find(|other| is_same_key(other, key)).cloned();
        let value = map.entry(found.unwrap_or_else(|| key.to_owned())).or_insert_with(|| json!({}));
        if !value.is_object() {
            *value = json!({});
        }
        value.as_object_mut().expect("was made an object")
    }
    let cni = object(object(plugin, "args"), "cni");
    cni.extend(cni_args.iter().map(|(key, value)| (key.clone(), value.clone())));
}

#[cfg(test)]
#[path = "request/tests.rs"]
mod tests;
