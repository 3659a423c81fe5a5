//! A kubelet that only says which devices pods have, over HTTP/2 frames and protobuf bytes that are put together here:
//! it shares no code with the client.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Response};
use tokio::sync::oneshot;

/// What it does when it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Answers both calls.
    Current,
    /// Knows only the call for all pods, as before 1.27.
    Old,
    /// Has the call for one pod switched off, as before 1.34, and says so as the kubelet does.
    SwitchedOff,
    /// Refuses everything.
    Refuses,
    /// Answers nothing.
    Hangs,
}

/// Devices by namespace, pod, and resource.
pub(crate) type Pods = Vec<(&'static str, &'static str, Vec<(&'static str, Vec<&'static str>)>)>;

/// Serves until it is dropped.
pub(crate) struct Kubelet {
    calls: Arc<Mutex<Vec<String>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Kubelet {
    /// Serves below `root`, where a kubelet of the node would.
    pub(crate) fn new(root: &Path, manner: Manner, pods: Pods) -> Self {
        let directory = root.join("var/lib/kubelet/pod-resources");
        fs::create_dir_all(&directory).unwrap();
        let socket = directory.join("kubelet.sock");
        if socket.exists() {
            fs::remove_file(&socket).unwrap();
        }
        let listener = UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = oneshot::channel();
        let noted = Arc::clone(&calls);
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::UnixListener::from_std(listener).unwrap();
                let serve = async {
                    loop {
                        let (stream, _) = listener.accept().await.unwrap();
                        let (noted, pods) = (Arc::clone(&noted), pods.clone());
                        let mut connection = h2::server::handshake(stream).await.unwrap();
                        // One caller at a time is all that the tests have. Its bodies come while it is waited for.
                        let mut held = Vec::new();
                        while let Some(Ok((request, respond))) = connection.accept().await {
                            let path = request.uri().path().to_owned();
                            noted.lock().unwrap().push(path.clone());
                            if manner == Manner::Hangs {
                                held.push((request, respond));
                                continue;
                            }
                            let pods = pods.clone();
                            tokio::spawn(async move {
                                let mut body = request.into_body();
                                let mut question = Vec::new();
                                while let Some(Ok(data)) = body.data().await {
                                    question.extend_from_slice(&data);
                                }
                                answer(respond, manner, &path, &question, &pods);
                            });
                        }
                    }
                };
                tokio::select! {
                    () = serve => {}
                    _ = stopped => {}
                }
            });
        });
        Self { calls, stop: Some(stop), thread: Some(thread) }
    }

    /// Which calls came, and forgets them.
    pub(crate) fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(mut respond: SendResponse<Bytes>, manner: Manner, path: &str, question: &[u8], pods: &Pods) {
    let status = |code: &'static str, text: &'static str| {
        let response = Response::builder().header("content-type", "application/grpc");
        response.header("grpc-status", code).header("grpc-message", text).body(()).unwrap()
    };
    let all: Vec<(Vec<u8>, Vec<u8>)> =
        pods.iter().map(|pod| (question_for(pod.1, pod.0), message(pod))).collect();
    let body = match (path, manner) {
        (_, Manner::Refuses) => Err(status("7", "not for you")),
        ("/v1.PodResourcesLister/List", _) => {
            Ok(all.iter().flat_map(|(_, pod)| field(1, pod)).collect::<Vec<u8>>())
        }
        ("/v1.PodResourcesLister/Get", Manner::Current) => {
            match all.iter().find(|(asked, _)| framed(asked) == question) {
                Some((_, pod)) => Ok(field(1, pod)),
                None => Err(status("2", "pod not found")),
            }
        }
        ("/v1.PodResourcesLister/Get", Manner::SwitchedOff) => {
            Err(status("2", "PodResources API Get method disabled"))
        }
        _ => Err(status("12", "unknown method")),
    };
    match body {
        Err(refusal) => drop(respond.send_response(refusal, true).unwrap()),
        Ok(body) => {
            let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            let mut stream = respond.send_response(head, false).unwrap();
            stream.send_data(Bytes::from(framed(&body)), false).unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            stream.send_trailers(trailers).unwrap();
        }
    }
}

/// A gRPC message: not compressed, then its length.
fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0][..], &length, message].concat()
}

/// A field with a length, of which a length in two bytes is the longest that is needed here.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap();
    let low = u8::try_from(length & 0x7f).unwrap();
    let high = u8::try_from(length >> 7).unwrap();
    let length = if high == 0 { vec![low] } else { vec![low | 0x80, high] };
    [&[number << 3 | 2][..], &length, content].concat()
}

fn question_for(name: &str, namespace: &str) -> Vec<u8> {
    [field(1, name.as_bytes()), field(2, namespace.as_bytes())].concat()
}

/// A pod with one container, which has all devices; beside them is what the client has no use for.
fn message((namespace, name, devices): &(&str, &str, Vec<(&str, Vec<&str>)>)) -> Vec<u8> {
    let mut container = field(1, b"app");
    for (resource, ids) in devices {
        let ids: Vec<u8> = ids.iter().flat_map(|id| field(2, id.as_bytes())).collect();
        let topology = field(3, &[]);
        container.extend(field(2, &[field(1, resource.as_bytes()), ids, topology].concat()));
    }
    // Numbers of CPUs, packed.
    container.extend(field(3, &[0, 1]));
    [field(1, name.as_bytes()), field(2, namespace.as_bytes()), field(3, &container)].concat()
}
