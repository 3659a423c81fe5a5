//! What is remembered of an attachment: enough to end it without the API, the NAD, its namespace or us.

use std::path::PathBuf;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Deserializer, Serialize, de::IgnoredAny};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use crate::spec::{ContainerId, IfName, Mac, NetworkName, PodRef};

/// One attachment, identified by container id and interface name, never by the pod: the DEL of an old sandbox
/// may come after the ADD of the new one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record<Conf = Map<String, Value>, Compiled = Value> {
    /// The sandbox.
    #[serde(with = "as_text")]
    pub container_id: ContainerId,
    /// Name of the interface in the sandbox.
    #[serde(with = "as_text")]
    pub ifname: IfName,
    /// How far the ADD came.
    pub phase: Phase,
    /// What made the interface.
    pub kind: Kind,
    /// Seconds since 1970 when the ADD began.
    pub created: u64,
    /// The boot in which the interface was made: with another one it cannot exist any more.
    pub boot_id: String,
    /// The sandbox's network namespace.
    pub netns: Netns,
    /// `name` of the network configuration.
    #[serde(with = "as_text")]
    pub network: NetworkName,
    /// `namespace/name` of the NetworkAttachmentDefinition that it came from, where whoever called knew one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nad: Option<String>,
    /// The pod, where the runtime named one.
    pub pod: Option<Pod>,
    /// The network configuration as executed: a changed NAD must not change how the attachment ends.
    pub conf: Conf,
    /// The master, once resolved.
    pub master: Option<Master>,
    /// Hardware address of the interface, once it exists.
    #[serde(with = "as_optional_text", default)]
    pub mac: Option<Mac>,
    /// Its row in the maps, once there is one.
    pub endpoint: Option<Endpoint>,
    /// The zone in force at the time, if the interface is policed.
    pub zone: Option<Zone<Compiled>>,
    /// Addresses, once assigned.
    pub ips: Vec<IpNetwork>,
    /// Directory of the `host-local` reservations, where that is the IPAM.
    pub host_local_dir: Option<PathBuf>,
}

/// A record without its configuration and its zone's content, which are most of it: for who keeps those of all attachments in
/// memory. It cannot be written.
pub type Outline = Record<IgnoredAny, Fingerprint>;

/// What tells a zone's content from another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

/// How far an ADD came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Begun: any part of the attachment may exist, or none.
    Adding,
    /// Finished.
    Ready,
}

/// What made the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// We did, so DEL removes it.
    Macvlan,
    /// A plugin before us in the list did, so it is that one's to remove.
    Chained,
}

/// A network namespace, with what tells it from a later one at the same path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Netns {
    /// CNI_NETNS.
    pub path: PathBuf,
    /// Device of the namespace's inode.
    pub dev: u64,
    /// Inode of the namespace; used again by the kernel once the namespace is gone.
    pub inode: u64,
    /// The namespace's cookie: never used again within a boot, where the kernel tells it.
    pub cookie: Option<u64>,
}

/// The pod behind a sandbox, as the runtime named it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// K8S_POD_NAMESPACE
    pub namespace: String,
    /// K8S_POD_NAME
    pub name: String,
    /// K8S_POD_UID; of a static pod this is not the API's.
    pub uid: Option<String>,
}

/// The link that the interface sits on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Master {
    /// Its name at the time.
    pub name: String,
    /// Its index at the time.
    pub ifindex: u32,
    /// Its dense id in the maps, once it has one.
    pub id: Option<u32>,
}

/// A row of the endpoints map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Index of its counters.
    pub id: u32,
    /// Tells this use of the id from earlier and later ones.
    pub generation: u32,
}

/// A zone as it was compiled: the last good one, if the NAD is gone or no longer compiles.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zone<Compiled = Value> {
    /// Digest of the compiled zone, in hexadecimal.
    pub digest: String,
    /// The compiled zone.
    pub compiled: Compiled,
}

impl Fingerprint {
    /// Of a compiled zone, in whatever order it is written.
    pub fn of(compiled: &Value) -> Self {
        let mut sorted = compiled.clone();
        sorted.sort_all_objects();
        Self(Sha256::digest(sorted.to_string()).into())
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Value::deserialize(deserializer).map(|compiled| Self::of(&compiled))
    }
}

impl Pod {
    /// As sources of pods take it.
    pub fn to_ref(&self) -> PodRef {
        PodRef { namespace: self.namespace.clone(), name: self.name.clone(), uid: self.uid.clone() }
    }
}

impl<Conf, Compiled> Record<Conf, Compiled> {
    /// `namespace/name` of its pod, or its container.
    pub fn pod_name(&self) -> String {
        match &self.pod {
            Some(pod) => format!("{}/{}", pod.namespace, pod.name),
            None => {
                let id = self.container_id.to_string();
                format!("container {}", id.get(..12).unwrap_or(&id))
            }
        }
    }

    /// Whether this is the record of `container_id` and `ifname`.
    pub fn is_of(&self, container_id: &ContainerId, ifname: &IfName) -> bool {
        self.container_id == *container_id && self.ifname == *ifname
    }
}

/// Valid types that are text on disk.
trait Text: Sized + ToString {
    fn parse_text(value: &str) -> Result<Self, crate::spec::ConfError>;
}

macro_rules! text {
    ($($name:ident $field:literal),*) => {
        $(impl Text for $name {
            fn parse_text(value: &str) -> Result<Self, crate::spec::ConfError> {
                Self::parse($field, value)
            }
        })*
    };
}

text!(ContainerId "container_id", IfName "ifname", NetworkName "network", Mac "mac");

mod as_text {
    use super::Text;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<T: Text, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&value.to_string())
    }

    pub(super) fn deserialize<'de, T: Text, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        T::parse_text(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

mod as_optional_text {
    use super::Text;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(super) fn serialize<T: Text, S: Serializer>(
        value: &Option<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.as_ref().map(ToString::to_string).serialize(serializer)
    }

    pub(super) fn deserialize<'de, T: Text, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<T>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| T::parse_text(&text).map_err(D::Error::custom)).transpose()
    }
}
