//! Follows the API: lists once, then hears of each change. A watch that breaks is made again, with a pause that grows.

use std::collections::BTreeMap;
use std::fmt::Debug;

use futures_util::TryStreamExt as _;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use serde_json::{Value, json};

use super::{
    Shared,
    wish::{Definition, Pod, Wish},
};

/// What is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum What {
    Definitions,
    Pods,
    Masters,
}

impl What {
    pub(super) const ALL: [Self; 3] = [Self::Definitions, Self::Pods, Self::Masters];

    /// As metrics name it.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Definitions => "network-attachment-definitions",
            Self::Pods => "pods",
            Self::Masters => "configmaps",
        }
    }

    fn resource(self) -> ApiResource {
        let kind = |group, version, kind| GroupVersionKind::gvk(group, version, kind);
        let plural = self.label();
        match self {
            Self::Definitions => ApiResource::from_gvk_with_plural(
                &kind("k8s.cni.cncf.io", "v1", "NetworkAttachmentDefinition"),
                plural,
            ),
            Self::Pods => ApiResource::from_gvk_with_plural(&kind("", "v1", "Pod"), plural),
            Self::Masters => ApiResource::from_gvk_with_plural(&kind("", "v1", "ConfigMap"), plural),
        }
    }
}

/// Where the administrator's word is: key of the ConfigMap `masters`.
const MASTERS_KEY: &str = "masters.json";

/// Follows one kind of object for as long as the process lives.
pub(super) async fn follow(client: Client, what: What, node: &str, namespace: &str, shared: &Shared) {
    let resource = what.resource();
    // From the server's cache: who starts 500 agents at once must not ask etcd 500 times.
    let config = watcher::Config::default().any_semantic();
    let (api, config): (Api<DynamicObject>, _) = match what {
        What::Definitions => (Api::all_with(client, &resource), config),
        What::Pods => (Api::all_with(client, &resource), config.fields(&format!("spec.nodeName={node}"))),
        What::Masters => {
            (Api::namespaced_with(client, namespace, &resource), config.fields("metadata.name=masters"))
        }
    };
    let mut listed = BTreeMap::new();
    let mut events = std::pin::pin!(watcher(api, config).default_backoff());
    loop {
        match events.try_next().await {
            Ok(Some(event)) => shared.heard(what, take(&mut listed, what, event)),
            Ok(None) => return,
            Err(error) => shared.broken(what, &error),
        }
    }
}

/// A change of [`Wish`].
type Change = Box<dyn FnOnce(&mut Wish)>;

/// Gathers what a list brings until it is complete; a change of one object is one at once.
fn take(listed: &mut BTreeMap<String, Value>, what: What, event: Event<DynamicObject>) -> Option<Change> {
    match event {
        Event::Init => {
            listed.clear();
            None
        }
        Event::InitApply(object) => {
            let (name, value) = reduce(what, object);
            listed.insert(name, value);
            None
        }
        Event::InitDone => {
            let all = std::mem::take(listed);
            Some(Box::new(move |wish| match what {
                What::Definitions => {
                    wish.definitions = Some(all.iter().map(read(Definition::from_json)).collect());
                }
                What::Pods => wish.pods = Some(all.iter().map(read(Pod::from_json)).collect()),
                What::Masters => wish.masters = Some(all.values().next().and_then(masters)),
            }))
        }
        Event::Apply(object) => {
            let (name, value) = reduce(what, object);
            Some(Box::new(move |wish| match what {
                What::Definitions => insert(&mut wish.definitions, name, Definition::from_json(&value)),
                What::Pods => insert(&mut wish.pods, name, Pod::from_json(&value)),
                What::Masters => wish.masters = Some(masters(&value)),
            }))
        }
        Event::Delete(object) => {
            let (name, _) = reduce(what, object);
            Some(Box::new(move |wish| match what {
                What::Definitions => drop(wish.definitions.as_mut().and_then(|all| all.remove(&name))),
                What::Pods => drop(wish.pods.as_mut().and_then(|all| all.remove(&name))),
                What::Masters => wish.masters = Some(None),
            }))
        }
    }
}

fn insert<T: Debug>(all: &mut Option<BTreeMap<String, T>>, name: String, object: T) {
    all.get_or_insert_default().insert(name, object);
}

fn read<T>(from_json: fn(&Value) -> T) -> impl Fn((&String, &Value)) -> (String, T) {
    move |(name, value)| (name.clone(), from_json(value))
}

fn masters(value: &Value) -> Option<String> {
    value.get("data")?.get(MASTERS_KEY)?.as_str().map(str::to_owned)
}

/// `namespace/name`, and what is read of an object: a list of whole pods is not kept.
fn reduce(what: What, object: DynamicObject) -> (String, Value) {
    let DynamicObject { metadata, mut data, .. } = object;
    let name = format!(
        "{}/{}",
        metadata.namespace.as_deref().unwrap_or_default(),
        metadata.name.as_deref().unwrap_or_default()
    );
    let mut value = json!({
        "metadata": {
            "uid": metadata.uid,
            "annotations": metadata.annotations,
            "deletionTimestamp": metadata.deletion_timestamp,
        },
    });
    let mut part = |path: &str| data.pointer_mut(path).map(Value::take).unwrap_or_default();
    match what {
        What::Definitions => value["spec"] = json!({ "config": part("/spec/config") }),
        What::Pods => {
            value["spec"] = json!({ "hostNetwork": part("/spec/hostNetwork") });
            value["status"] = json!({ "phase": part("/status/phase") });
        }
        What::Masters => value["data"] = part("/data"),
    }
    (name, value)
}
