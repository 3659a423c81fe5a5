//! The least that an agent takes for an API server: one network, the pods of its node, and a word when the network changes.

use std::{
    io::Write as _,
    net::{SocketAddr, TcpStream},
    sync::{Arc, Condvar, Mutex, PoisonError},
};

use anyhow::Result;
use serde_json::{Value, json};

use crate::http;

/// What it tells, and how often the network was changed: its version.
#[derive(Default)]
struct Told {
    config: String,
    version: u64,
}

/// The server.
pub(super) struct Api {
    pub(super) address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    told: Mutex<Told>,
    changed: Condvar,
    pods: u32,
}

impl Api {
    /// Listens on the loopback of the network namespace that the caller is in.
    pub(super) fn start(config: &Value, pods: u32) -> Result<Self> {
        let told = Mutex::new(Told { config: config.to_string(), version: 1 });
        let shared = Arc::new(Shared { told, changed: Condvar::new(), pods });
        let of_threads = Arc::clone(&shared);
        let address = http::serve(move |request, socket| {
            let networks = request.contains("network-attachment-definitions");
            if request.contains("watch=true") {
                return watch(socket, &of_threads, networks, version(request)).map(|()| None);
            }
            Ok(Some(match request.starts_with("GET") {
                true => (200, list(&of_threads, networks, request.contains("/pods"))),
                false => (
                    201,
                    json!({"kind": "Event", "apiVersion": "v1", "metadata": {"name": "x", "namespace": "x"}}),
                ),
            }))
        })?;
        Ok(Self { address, shared })
    }

    /// Changes the network; who watches is told at once.
    pub(super) fn edit(&self, config: &Value) {
        let mut told = self.shared.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.config = config.to_string();
        told.version += 1;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn nad(told: &Told) -> Value {
        json!({"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
            "metadata": {"namespace": super::fleet::NAMESPACE, "name": super::fleet::NETWORK, "uid": "bench",
                "resourceVersion": told.version.to_string()},
            "spec": {"config": told.config}})
    }

    fn pod(number: u32) -> Value {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": super::fleet::NAMESPACE,
            "name": format!("pod{number}"), "uid": format!("uid{number}"), "resourceVersion": "1"},
            "spec": {"nodeName": "bench"}, "status": {"phase": "Running"}})
    }
}

fn list(shared: &Shared, networks: bool, pods: bool) -> Value {
    let told = shared.told.lock().unwrap_or_else(PoisonError::into_inner);
    let items: Vec<Value> = match (networks, pods) {
        (true, _) => vec![Shared::nad(&told)],
        (false, true) => (0..shared.pods).map(Shared::pod).collect(),
        (false, false) => Vec::new(),
    };
    json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": told.version.to_string()}, "items": items})
}

/// From which version on somebody wants to be told: an edit may come between a list and its watch.
fn version(request: &str) -> u64 {
    let mut parameters = request.split(['?', '&', ' ']);
    parameters.find_map(|it| it.strip_prefix("resourceVersion=")?.parse().ok()).unwrap_or(0)
}

/// Tells of each change of the network since the version that was seen, for as long as somebody listens.
fn watch(socket: &mut TcpStream, shared: &Shared, networks: bool, mut seen: u64) -> std::io::Result<()> {
    socket.write_all(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
    )?;
    loop {
        let told = shared.told.lock().unwrap_or_else(PoisonError::into_inner);
        let told = shared.changed.wait_while(told, |told| told.version == seen || !networks);
        let told = told.unwrap_or_else(PoisonError::into_inner);
        seen = told.version;
        let line = format!("{}\n", json!({"type": "MODIFIED", "object": Shared::nad(&told)}));
        drop(told);
        socket.write_all(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes())?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_says_from_which_version_on() {
        assert_eq!(version("GET /apis/x?&watch=true&resourceVersion=17&timeoutSeconds=290 HTTP/1.1"), 17);
        assert_eq!(version("GET /apis/x?watch=true&resourceVersionMatch=Exact HTTP/1.1"), 0);
    }
}
