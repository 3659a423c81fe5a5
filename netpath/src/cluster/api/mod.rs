//! The Kubernetes API, asked as seldom as can be: nothing for a pod that asks for nothing, each network once, one
//! write.
//!
//! Every call shares one budget of time. Trouble that passes is tried again within it; what a second try cannot mend
//! fails at once.

mod client;
mod event;
mod kubeconfig;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use ureq::http::Method;

use super::{Cluster, ClusterError, Pod, Which};
use crate::root::Root;
use crate::spec::network_status::NETWORK_STATUS;
use crate::spec::{ContainerId, Event, Nad, PodRef};
use client::{Answer, Client, Request, said};
pub use event::Subject;

const JSON: &str = "application/json";
/// Of a pod only its metadata matters, and the rest of it is the larger part.
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json;q=0.9";
const MERGE_PATCH: &str = "application/merge-patch+json";
/// By which annotation a mirror says of which static pod it is one.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// The API server that a kubeconfig names.
pub struct Api {
    client: Client,
    /// Networks that were asked for.
    nads: RefCell<HashMap<(String, String), Nad>>,
    events: RefCell<Vec<Event>>,
}

impl Api {
    /// `until` is when the ADD has to be over. Neither file nor server is touched before somebody asks for something.
    pub fn new(root: &Root, kubeconfig: PathBuf, until: Instant) -> Self {
        Self {
            client: Client::new(root, kubeconfig, until),
            nads: RefCell::default(),
            events: RefCell::default(),
        }
    }

    /// An object; `None` if there is none of that name.
    fn get(&self, path: &str, accept: &'static str, what: String) -> Result<Option<Value>, ClusterError> {
        let request =
            Request { method: Method::GET, path, accept, content_type: JSON, body: Vec::new(), what };
        let answer = self.client.ask(&request)?;
        match answer.status {
            200 => self.object(&request, &answer).map(Some),
            404 => Ok(None),
            _ => Err(self.refused(&request, &answer)),
        }
    }

    fn object(&self, request: &Request<'_>, answer: &Answer) -> Result<Value, ClusterError> {
        serde_json::from_slice(&answer.body).map_err(|source| ClusterError::Garbled {
            server: self.client.server(),
            request: request.what.clone(),
            expected: "JSON",
            source: Box::new(source),
        })
    }

    fn refused(&self, request: &Request<'_>, answer: &Answer) -> ClusterError {
        let (server, kubeconfig) = (self.client.server(), self.client.kubeconfig().to_owned());
        let (request, status, said) = (request.what.clone(), answer.status, said(&answer.body));
        match status {
            401 => ClusterError::Credentials { server, request, status, said, kubeconfig },
            403 => ClusterError::Forbidden { server, request, status, said, kubeconfig },
            _ => ClusterError::Refused { server, request, status, said },
        }
    }

    /// Posts events about an object within this time, and returns how many were not.
    pub fn deliver_about(
        &self,
        subject: Subject,
        object: &PodRef,
        events: &[Event],
        within: Duration,
    ) -> usize {
        if !is_object_name(&object.namespace) || !is_object_name(&object.name) {
            return events.len();
        }
        let until = Instant::now() + within;
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let mut lost = 0;
        for event in events {
            if let Err(error) = self.post_now(subject, object, event, host.trim(), until) {
                tracing::debug!(reason = event.reason, error = ?error, "an event is lost");
                lost += 1;
            }
        }
        lost
    }

    fn find_nad(&self, namespace: &str, name: &str) -> Result<Nad, ClusterError> {
        let missing = || ClusterError::NoNad { namespace: namespace.to_owned(), name: name.to_owned() };
        if !is_object_name(namespace) || !is_object_name(name) {
            return Err(missing());
        }
        let path =
            format!("/apis/k8s.cni.cncf.io/v1/namespaces/{namespace}/network-attachment-definitions/{name}");
        let what = format!("GET network-attachment-definition {namespace}/{name}");
        // The server's cache costs etcd nothing. What is new may not be in it yet.
        let value = match self.get(&format!("{path}?resourceVersion=0"), JSON, what.clone()) {
            Ok(Some(value)) => Some(value),
            Ok(None) | Err(ClusterError::Refused { status: 410, .. }) => {
                self.get(&path, JSON, what.clone())?
            }
            Err(error) => return Err(error),
        };
        let value = value.ok_or_else(missing)?;
        let garbled = |source| ClusterError::Garbled {
            server: self.client.server(),
            request: what.clone(),
            expected: "NetworkAttachmentDefinition of that name",
            source,
        };
        let nad = Nad::from_json(&value).map_err(|source| garbled(Box::new(source)))?;
        // What a namespace may use is held against what the object says of itself.
        if (nad.namespace.as_str(), nad.name.as_str()) != (namespace, name) {
            return Err(garbled(format!("it is {}/{}", nad.namespace, nad.name).into()));
        }
        Ok(nad)
    }

    /// Posts an event, or counts up the one that is there.
    fn post_now(
        &self,
        subject: Subject,
        pod: &PodRef,
        event: &Event,
        host: &str,
        until: Instant,
    ) -> Result<(), ClusterError> {
        let now = SystemTime::now();
        let events = format!("/api/v1/namespaces/{}/events", pod.namespace);
        let one = format!("{events}/{}", event::name(pod, event));
        let what = format!("POST event {} of pod {}/{}", event.reason, pod.namespace, pod.name);
        let ask = |method: Method, path: &str, content_type, body: &Value, expected| {
            let body = body.to_string().into_bytes();
            let request = Request { method, path, accept: JSON, content_type, body, what: what.clone() };
            let answer = self.client.ask_once(&request, until.saturating_duration_since(Instant::now()))?;
            match answer.status {
                409 if expected == 201 => Ok(None),
                200..300 => self.object(&request, &answer).map(Some),
                _ => Err(self.refused(&request, &answer)),
            }
        };
        let first = event::object(subject, pod, event, host, now);
        if ask(Method::POST, &events, JSON, &first, 201)?.is_some() {
            return Ok(());
        }
        let Some(known) = ask(Method::PATCH, &one, MERGE_PATCH, &event::again(now), 200)? else {
            return Ok(());
        };
        ask(Method::PATCH, &one, MERGE_PATCH, &event::counted(&known), 200).map(drop)
    }
}

impl Cluster for Api {
    fn pod(&self, pod: &PodRef) -> Result<Option<Pod>, ClusterError> {
        let (namespace, name) = (&pod.namespace, &pod.name);
        if !is_object_name(namespace) || !is_object_name(name) {
            return Ok(None);
        }
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
        let Some(value) = self.get(&path, METADATA, format!("GET pod {namespace}/{name}"))? else {
            return Ok(None);
        };
        let annotations = value.pointer("/metadata/annotations").and_then(Value::as_object);
        let text = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
        let annotations: BTreeMap<String, String> =
            annotations.into_iter().flatten().filter_map(text).collect();
        let uid = value.pointer("/metadata/uid").and_then(Value::as_str).map(str::to_owned);
        Ok(Some(Pod { uid, annotations }))
    }

    /// Each network is asked for once.
    fn nad(&self, namespace: &str, name: &str) -> Result<Nad, ClusterError> {
        let key = (namespace.to_owned(), name.to_owned());
        if let Some(known) = self.nads.borrow().get(&key) {
            return Ok(known.clone());
        }
        let nad = self.find_nad(namespace, name)?;
        self.nads.borrow_mut().insert(key, nad.clone());
        Ok(nad)
    }

    /// A merge patch has the pod's UID in it: the server refuses to change that of another one.
    fn set_network_status(
        &self,
        pod: &PodRef,
        which: &Which,
        _sandbox: &ContainerId,
        text: &str,
    ) -> Result<(), ClusterError> {
        let (namespace, name) = (&pod.namespace, &pod.name);
        let gone = |said| ClusterError::PodGone { namespace: namespace.clone(), name: name.clone(), said };
        if !is_object_name(namespace) || !is_object_name(name) {
            return Err(gone("no pod can have that name".to_owned()));
        }
        let mut metadata = json!({"annotations": {NETWORK_STATUS: text}});
        match which {
            Which::Uid(uid) => metadata["uid"] = uid.as_str().into(),
            // That of a mirror cannot be changed either.
            Which::MirrorOf(hash) => metadata["annotations"][MIRROR] = hash.as_str().into(),
            Which::Any => {}
        }
        let request = Request {
            method: Method::PATCH,
            path: &format!("/api/v1/namespaces/{namespace}/pods/{name}/status?fieldManager=netpath"),
            accept: METADATA,
            content_type: MERGE_PATCH,
            body: json!({"metadata": metadata}).to_string().into_bytes(),
            what: format!("PATCH status of pod {namespace}/{name}"),
        };
        let answer = self.client.ask(&request)?;
        match answer.status {
            200..300 => Ok(()),
            404 => Err(gone(said(&answer.body))),
            422 if is_about_identity(&answer.body) => Err(gone(said(&answer.body))),
            _ => Err(self.refused(&request, &answer)),
        }
    }

    /// It waits for [`Cluster::deliver`]: nobody waits for an event.
    fn post(&self, _pod: &PodRef, _sandbox: &ContainerId, event: &Event) -> Result<(), ClusterError> {
        self.events.borrow_mut().push(event.clone());
        Ok(())
    }

    fn take_undelivered(&self) -> Vec<Event> {
        self.events.take()
    }

    fn deliver(&self, pod: &PodRef, events: &[Event], within: Duration) -> usize {
        self.deliver_about(Subject::Pod, pod, events, within)
    }

    fn forget(&self, _sandbox: &ContainerId) -> Result<(), ClusterError> {
        Ok(())
    }
}

/// Whether an object can have this name. Others never become part of a path.
fn is_object_name(text: &str) -> bool {
    let is_good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_whole = |label: &str| {
        let bytes = label.as_bytes();
        bytes.iter().all(|byte| is_good(*byte) || *byte == b'-')
            && bytes.first().is_some_and(|byte| is_good(*byte))
            && bytes.last().is_some_and(|byte| is_good(*byte))
    };
    text.len() <= 253 && text.split('.').all(is_whole)
}

/// Whether a refusal is about what tells the pod from another of its name.
fn is_about_identity(body: &[u8]) -> bool {
    let status: Value = serde_json::from_slice(body).unwrap_or_default();
    let causes = status.pointer("/details/causes").and_then(Value::as_array);
    let fields = ["metadata.uid".to_owned(), format!("metadata.annotations[{MIRROR}]")];
    causes.into_iter().flatten().any(|cause| fields.iter().any(|field| cause["field"] == field.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_objects_become_paths() {
        for good in ["a", "mv-1", "a.b-c.d0", &"a".repeat(253)] {
            assert!(is_object_name(good), "{good}");
        }
        for bad in
            ["", "..", "a/b", "../secrets/x", "A", "-a", "a-", "a..b", "a b", "a?x", "ä", &"a".repeat(254)]
        {
            assert!(!is_object_name(bad), "{bad}");
        }
    }

    #[test]
    fn what_is_immutable_tells_pods_apart() {
        let refusal = |field: &str| {
            json!({"kind": "Status", "code": 422, "details": {"causes": [{"field": field, "message": "field is immutable"}]}})
                .to_string()
        };
        assert!(is_about_identity(refusal("metadata.uid").as_bytes()));
        assert!(is_about_identity(refusal("metadata.annotations[kubernetes.io/config.mirror]").as_bytes()));
        assert!(!is_about_identity(refusal("metadata.annotations").as_bytes()));
        assert!(!is_about_identity(b"no JSON"));
    }
}
