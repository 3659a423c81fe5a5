//! A fake API server. It stands in for what a real one does not do on demand: fail in a chosen way at a chosen moment,
//! and say afterwards how often it was asked for what. What a real one does is tested on a real one.
//!
//! Every answer is one write: one that is split costs the client a delayed acknowledgement of 40 ms.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{Value, json};

use crate::common::NetNs;

/// A request that came.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Value,
}

impl Asked {
    /// `GET nads/mv`: the method with the kind and the name.
    pub(crate) fn text(&self) -> String {
        let parts: Vec<&str> = self.path.split('/').filter(|it| !it.is_empty()).collect();
        let at = parts.iter().position(|it| *it == "namespaces").map_or(0, |at| at + 2);
        let tail = parts[at..].join("/").replace("network-attachment-definitions", "nads");
        let cached = if self.query.contains("resourceVersion=0") { " cached" } else { "" };
        format!("{} {tail}{cached}", self.method)
    }
}

/// What goes wrong.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// This status, with a `Status` object.
    Status(u16),
    /// The same with `Retry-After`.
    RetryAfter(u16, u64),
    /// The connection is reset before anything is answered.
    Reset,
    /// The answer comes after this time.
    Slow(Duration),
    /// The connection is closed in the middle of the body.
    CutOff,
    /// The answer is whole, and its JSON is not.
    HalfJson,
    /// A body of this size.
    Huge(usize),
    /// Another object of the kind.
    Instead,
}

/// How often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Times {
    Once,
    Always,
}

#[derive(Default)]
struct State {
    asked: Vec<Asked>,
    /// By `pods/<namespace>/<name>` and so on.
    objects: BTreeMap<String, Value>,
    /// Keys of objects that the server's cache does not have yet.
    uncached: Vec<String>,
    /// What a request begins with, what goes wrong then, and how often.
    faults: Vec<(String, Fault, Times)>,
    /// What `Authorization` has to be.
    authorization: Option<String>,
    /// What watches are told, by kind; the version of an answer is how many there were.
    changes: Vec<(String, Value)>,
    /// Watches of versions before this one are told that it is gone.
    forgotten: usize,
    /// Whether tokens can be bound to nodes, as from Kubernetes 1.31 on.
    binds_to_nodes: bool,
    /// Tokens that were given.
    tokens: usize,
}

impl State {
    /// Puts an object there, and tells watches.
    fn put(&mut self, key: String, object: Value) {
        let kind = if self.objects.contains_key(&key) { "MODIFIED" } else { "ADDED" };
        self.tell(&key, kind, &object);
        self.objects.insert(key, object);
    }

    fn tell(&mut self, key: &str, kind: &str, object: &Value) {
        let of = key.split('/').next().unwrap().to_owned();
        let mut object = object.clone();
        object["metadata"]["resourceVersion"] = json!((self.changes.len() + 1).to_string());
        self.changes.push((of, json!({"type": kind, "object": object})));
    }
}

/// The server; it ends when this is dropped.
pub(crate) struct FakeApi {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
    listener: Option<thread::JoinHandle<()>>,
}

impl FakeApi {
    /// Listens on the loopback of a namespace.
    #[track_caller]
    pub(crate) fn new(netns: &NetNs) -> Self {
        Self::with_tls(netns, None)
    }

    #[track_caller]
    pub(crate) fn with_tls(netns: &NetNs, tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let listener = netns.within(|| TcpListener::bind("127.0.0.1:0").unwrap());
        Self::on(listener, tls)
    }

    pub(crate) fn on(listener: TcpListener, tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let listener = thread::spawn({
            let (state, stop) = (state.clone(), stop.clone());
            move || listen(&listener, &state, &stop, tls)
        });
        Self { address, state, stop, listener: Some(listener) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Defines a pod.
    pub(crate) fn pod(&self, namespace: &str, name: &str, uid: &str, annotations: Value) {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": namespace, "name": name,
            "uid": uid, "annotations": annotations}, "spec": {"nodeName": "worker01"}});
        self.state().put(format!("pods/{namespace}/{name}"), pod);
    }

    /// Defines a network.
    pub(crate) fn nad(&self, namespace: &str, name: &str, config: &Value) {
        let nad = json!({"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
            "metadata": {"namespace": namespace, "name": name, "uid": format!("{namespace}-{name}")},
            "spec": {"config": config.to_string()}});
        self.state().put(format!("nads/{namespace}/{name}"), nad);
    }

    /// Writes a ConfigMap.
    pub(crate) fn configmap(&self, namespace: &str, name: &str, data: &Value) {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": data,
            "metadata": {"namespace": namespace, "name": name}});
        self.state().put(format!("configmaps/{namespace}/{name}"), map);
    }

    /// Says that a pod runs.
    pub(crate) fn runs(&self, namespace: &str, name: &str) {
        let key = format!("pods/{namespace}/{name}");
        let mut pod = self.object(&key).unwrap();
        pod["status"] = json!({"phase": "Running"});
        self.state().put(key, pod);
    }

    /// Removes an object.
    pub(crate) fn remove(&self, key: &str) {
        let mut state = self.state();
        let object = state.objects.remove(key).unwrap();
        state.tell(key, "DELETED", &object);
    }

    /// Forgets what was before, as a server does in time, and with a word where it was not there to be told.
    pub(crate) fn forget(&self) {
        let mut state = self.state();
        state.forgotten = state.changes.len() + 1;
        let last = state.changes.last().cloned().unwrap_or_default();
        state.changes.push(last);
    }

    /// Makes a network one that the server's cache has not heard of.
    pub(crate) fn uncached(&self, namespace: &str, name: &str) {
        self.state().uncached.push(format!("nads/{namespace}/{name}"));
    }

    /// `GET nads` fails in this way from now on.
    pub(crate) fn fault(&self, request: &str, fault: Fault, times: Times) {
        self.state().faults.push((request.to_owned(), fault, times));
    }

    pub(crate) fn heal(&self) {
        self.state().faults.clear();
    }

    pub(crate) fn demand(&self, authorization: &str) {
        self.state().authorization = Some(authorization.to_owned());
    }

    pub(crate) fn object(&self, key: &str) -> Option<Value> {
        self.state().objects.get(key).cloned()
    }

    /// Binds tokens to nodes from now on.
    pub(crate) fn bind_to_nodes(&self) {
        self.state().binds_to_nodes = true;
    }

    /// Annotation network-status of a pod, as it is there.
    pub(crate) fn status_text(&self, namespace: &str, name: &str) -> Option<String> {
        let pod = self.object(&format!("pods/{namespace}/{name}"))?;
        pod["metadata"]["annotations"]["k8s.v1.cni.cncf.io/network-status"].as_str().map(str::to_owned)
    }

    pub(crate) fn events(&self) -> Vec<Value> {
        let state = self.state();
        state.objects.iter().filter(|(key, _)| key.starts_with("events/")).map(|(_, it)| it.clone()).collect()
    }

    /// What was asked so far, without events, which are not part of the budget; and forgets it.
    pub(crate) fn said(&self) -> Vec<String> {
        let asked = std::mem::take(&mut self.state().asked);
        asked.iter().map(Asked::text).filter(|text| !text.contains(" events")).collect()
    }

    /// The same, all of it.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state().asked)
    }

    /// A kubeconfig as Multus writes it, with a token.
    pub(crate) fn kubeconfig(&self) -> String {
        kubeconfig(&format!("server: http://{}", self.address), "token: secret")
    }
}

impl Drop for FakeApi {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

/// A kubeconfig with these lines about cluster and user.
pub(crate) fn kubeconfig(cluster: &str, user: &str) -> String {
    let indented = |text: &str| text.lines().map(|line| format!("    {line}\n")).collect::<String>();
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: local\n  cluster:\n{}users:\n- name: netpath\n  user:\n{}contexts:\n\
         - name: c\n  context:\n    cluster: local\n    user: netpath\ncurrent-context: c\n",
        indented(cluster),
        indented(user)
    )
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

fn listen(
    listener: &TcpListener,
    state: &Arc<Mutex<State>>,
    stop: &Arc<AtomicBool>,
    tls: Option<Arc<rustls::ServerConfig>>,
) {
    let ready = |listener: &TcpListener| {
        let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(20_u8)).is_ok_and(|count| 0 < count)
    };
    while !stop.load(Ordering::Relaxed) {
        if !ready(listener) {
            continue;
        }
        let Ok((socket, _)) = listener.accept() else { continue };
        let (state, stop, tls) = (state.clone(), stop.clone(), tls.clone());
        thread::spawn(move || {
            socket.set_nodelay(true).unwrap();
            let raw = socket.try_clone().unwrap();
            match tls {
                Some(tls) => {
                    let connection = rustls::ServerConnection::new(tls).unwrap();
                    serve(&mut rustls::StreamOwned::new(connection, socket), &raw, &state, &stop);
                }
                None => serve(&mut { socket }, &raw, &state, &stop),
            }
        });
    }
}

/// Answers one request after the other, until the client has enough or something goes wrong on purpose.
fn serve(stream: &mut dyn Stream, raw: &TcpStream, state: &Mutex<State>, stop: &AtomicBool) {
    while let Some(asked) = read(stream) {
        let (fault, allowed) = {
            let mut state = state.lock().unwrap();
            state.asked.push(asked.clone());
            let text = asked.text();
            let at = state.faults.iter().position(|(begin, _, _)| text.starts_with(begin.as_str()));
            let fault = at.map(|at| match state.faults[at].2 {
                Times::Once => state.faults.remove(at).1,
                Times::Always => state.faults[at].1.clone(),
            });
            let given = asked.headers.get("authorization");
            (fault, state.authorization.as_ref().is_none_or(|expected| given == Some(expected)))
        };
        if allowed && fault.is_none() && asked.query.contains("watch=true") {
            watch(stream, &asked, state, stop);
            return;
        }
        if let Some(Fault::Slow(time)) = &fault {
            wait(*time, stop);
        }
        let (status, body) = match allowed {
            false => (401, failure(401, "Unauthorized", "Unauthorized")),
            true => match &fault {
                Some(Fault::Status(status) | Fault::RetryAfter(status, _)) => {
                    (*status, failure(*status, "InternalError", "on purpose"))
                }
                Some(Fault::Huge(size)) => (200, json!({"x": "y".repeat(*size)})),
                Some(Fault::Instead) => {
                    let (status, mut body) = answer(&asked, &mut state.lock().unwrap());
                    body["metadata"]["namespace"] = json!("kube-system");
                    (status, body)
                }
                _ => answer(&asked, &mut state.lock().unwrap()),
            },
        };
        let mut text = body.to_string();
        if let Some(Fault::HalfJson) = fault {
            text.truncate(text.len() / 2);
        }
        let retry = match fault {
            Some(Fault::RetryAfter(_, seconds)) => format!("Retry-After: {seconds}\r\n"),
            _ => String::new(),
        };
        let mut response = format!(
            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{retry}Content-Length: {}\r\n\r\n{text}",
            text.len()
        );
        match fault {
            Some(Fault::Reset) => {
                // Closed with a linger of zero, a connection is reset.
                let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
                setsockopt(raw, sockopt::Linger, &linger).unwrap();
                return;
            }
            Some(Fault::CutOff) => response.truncate(response.len() - text.len() / 2),
            _ => {}
        }
        // A client that gave up is one of the things that are tested.
        if stream.write_all(response.as_bytes()).and_then(|()| stream.flush()).is_err()
            || matches!(fault, Some(Fault::CutOff))
        {
            return;
        }
    }
}

/// Tells of each change until somebody has enough.
fn watch(stream: &mut dyn Stream, asked: &Asked, state: &Mutex<State>, stop: &AtomicBool) {
    const HEAD: &str =
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    let version = asked.query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion="));
    let (mut seen, kind) = (version.and_then(|it| it.parse().ok()).unwrap_or(0), kind_of(asked));
    let mut write = |text: &str| stream.write_all(text.as_bytes()).and_then(|()| stream.flush()).is_ok();
    let mut goes_on = write(HEAD);
    while goes_on && !stop.load(Ordering::Relaxed) {
        let (news, is_gone) = {
            let state = state.lock().unwrap();
            let news: Vec<_> = state.changes.iter().skip(seen).cloned().collect();
            let is_gone = seen < state.forgotten;
            seen = state.changes.len();
            (news, is_gone)
        };
        let gone = json!({"type": "ERROR", "object": failure(410, "Expired", "too old resource version")});
        let told: Vec<Value> = match is_gone {
            true => vec![gone],
            false => news.into_iter().filter(|(of, _)| *of == kind).map(|(_, event)| event).collect(),
        };
        for event in told {
            let line = format!("{event}\n");
            goes_on &= write(&format!("{:x}\r\n{line}\r\n", line.len()));
        }
        if is_gone {
            write("0\r\n\r\n");
            return;
        }
        thread::park_timeout(Duration::from_millis(5));
    }
}

/// Kind of the objects that a list or a watch is of.
fn kind_of(asked: &Asked) -> String {
    let last = asked.path.rsplit('/').next().unwrap_or_default();
    last.replace("network-attachment-definitions", "nads")
}

fn wait(time: Duration, stop: &AtomicBool) {
    let until = Instant::now() + time;
    while Instant::now() < until && !stop.load(Ordering::Relaxed) {
        thread::park_timeout(Duration::from_millis(10));
    }
}

/// The next request; `None` at the end of the connection.
fn read(stream: &mut dyn Stream) -> Option<Asked> {
    let (mut bytes, mut chunk) = (Vec::new(), [0; 16 << 10]);
    let (head, length) = loop {
        let got = stream.read(&mut chunk).ok().filter(|got| 0 < *got)?;
        bytes.extend_from_slice(&chunk[..got]);
        let Some(end) = bytes.windows(4).position(|it| it == b"\r\n\r\n") else { continue };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        bytes.drain(..end + 4);
        let headers = headers(&head);
        break (head, headers.get("content-length").map_or(0, |it| it.parse::<usize>().unwrap()));
    };
    while bytes.len() < length {
        let got = stream.read(&mut chunk).ok().filter(|got| 0 < *got)?;
        bytes.extend_from_slice(&chunk[..got]);
    }
    let mut words = head.lines().next().unwrap().split(' ');
    let (method, target) = (words.next().unwrap().to_owned(), words.next().unwrap());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    Some(Asked {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        headers: headers(&head),
        body: serde_json::from_slice(&bytes).unwrap_or_default(),
    })
}

fn headers(head: &str) -> BTreeMap<String, String> {
    let pairs = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    pairs.map(|(key, value)| (key.to_ascii_lowercase(), value.trim().to_owned())).collect()
}

fn failure(status: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message, "code": status})
}

fn answer(asked: &Asked, state: &mut State) -> (u16, Value) {
    let parts: Vec<&str> = asked.path.split('/').filter(|it| !it.is_empty()).collect();
    let at = parts.iter().position(|it| *it == "namespaces").unwrap_or(parts.len());
    if asked.method == "GET" && ["nads", "pods", "configmaps"].contains(&kind_of(asked).as_str()) {
        let prefix = kind_of(asked) + "/";
        let objects = state.objects.iter().filter(|(key, _)| key.starts_with(&prefix));
        let items: Vec<Value> = objects.map(|(_, object)| object.clone()).collect();
        let version = state.changes.len().to_string();
        return (200, json!({"kind": "List", "metadata": {"resourceVersion": version}, "items": items}));
    }
    let Some([namespace, kind, rest @ ..]) = parts.get(at + 1..) else {
        return (404, failure(404, "NotFound", "the server could not find the requested resource"));
    };
    if let ("POST", [account, "token"]) = (asked.method.as_str(), rest) {
        return token(account, asked, state);
    }
    let kind = kind.replace("network-attachment-definitions", "nads");
    let name = match asked.method.as_str() {
        "POST" => asked.body["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
        _ => rest.first().copied().unwrap_or_default().to_owned(),
    };
    let key = format!("{kind}/{namespace}/{name}");
    if asked.method == "POST" {
        return match state.objects.contains_key(&key) {
            true => (409, failure(409, "AlreadyExists", &format!("{kind} \"{name}\" already exists"))),
            false => {
                state.objects.insert(key, asked.body.clone());
                (201, asked.body.clone())
            }
        };
    }
    let is_hidden = asked.query.contains("resourceVersion=0") && state.uncached.contains(&key);
    let Some(object) = state.objects.get_mut(&key).filter(|_| !is_hidden) else {
        return (404, failure(404, "NotFound", &format!("{kind} \"{name}\" not found")));
    };
    if asked.method == "PATCH" {
        if let Some(field) = changes_identity(object, &asked.body) {
            let mut refusal = failure(
                422,
                "Invalid",
                &format!("{kind} \"{name}\" is invalid: {field}: field is immutable"),
            );
            refusal["details"] =
                json!({"name": name, "causes": [{"reason": "FieldValueInvalid", "field": field}]});
            return (422, refusal);
        }
        merge(object, &asked.body);
    }
    (200, object.clone())
}

/// Gives a token of a service account.
fn token(account: &str, asked: &Asked, state: &mut State) -> (u16, Value) {
    let spec = &asked.body["spec"];
    if spec["boundObjectRef"]["kind"] == "Node" && !state.binds_to_nodes {
        return (400, failure(400, "BadRequest", "cannot bind token to object of type /v1, Kind=Node"));
    }
    state.tokens += 1;
    let until = Timestamp::now() + Duration::from_secs(spec["expirationSeconds"].as_u64().unwrap());
    let mut answer = asked.body.clone();
    answer["status"] =
        json!({"token": format!("{account}-{}", state.tokens), "expirationTimestamp": until.to_string()});
    (201, answer)
}

fn changes_identity(object: &Value, patch: &Value) -> Option<String> {
    const MIRROR: &str = "kubernetes.io/config.mirror";
    let (old, new) = (&object["metadata"], &patch["metadata"]);
    if new.get("uid").is_some_and(|uid| *uid != old["uid"]) {
        return Some("metadata.uid".to_owned());
    }
    let mirror = new["annotations"].get(MIRROR);
    mirror
        .is_some_and(|hash| *hash != old["annotations"][MIRROR])
        .then(|| format!("metadata.annotations[{MIRROR}]"))
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else { return *target = patch.clone() };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        match value {
            Value::Null => drop(target.as_object_mut().unwrap().remove(key)),
            value => merge(&mut target[key.as_str()], value),
        }
    }
}
