//! The least that an agent takes for an API server: one network, the pods of its node, and a word when the network changes.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
};

use anyhow::Result;
use serde_json::{Value, json};

/// What it tells, and how often the network was changed: its version.
#[derive(Default)]
struct Told {
    config: String,
    version: u64,
}

/// The server. Its threads end with the process.
pub(super) struct Api {
    address: SocketAddr,
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
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let told = Mutex::new(Told { config: config.to_string(), version: 1 });
        let shared = Arc::new(Shared { told, changed: Condvar::new(), pods });
        let threads = Arc::clone(&shared);
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let shared = Arc::clone(&threads);
                // Who has gone away needs no answer.
                thread::spawn(move || serve(socket, &shared).ok());
            }
        });
        Ok(Self { address, shared })
    }

    /// How it is found, as a kubeconfig.
    pub(super) fn kubeconfig(&self) -> String {
        json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{}", self.address)}}],
            "users": [{"name": "u", "user": {"token": "x"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]})
        .to_string()
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

fn serve(mut socket: TcpStream, shared: &Shared) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let (mut bytes, mut chunk) = (Vec::new(), [0; 16 << 10]);
    loop {
        let got = socket.read(&mut chunk)?;
        if got == 0 {
            return Ok(());
        }
        bytes.extend_from_slice(&chunk[..got]);
        let Some(end) = bytes.windows(4).position(|it| it == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let length = head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
        });
        if bytes.len() < end + 4 + length.unwrap_or(0) {
            continue;
        }
        bytes.clear();
        let request = head.lines().next().unwrap_or_default();
        let networks = request.contains("network-attachment-definitions");
        if request.contains("watch=true") {
            return watch(&mut socket, shared, networks);
        }
        let (status, body) = match request.starts_with("GET") {
            true => (200, list(shared, networks, request.contains("/pods"))),
            false => (
                201,
                json!({"kind": "Event", "apiVersion": "v1", "metadata": {"name": "x", "namespace": "x"}}),
            ),
        };
        let body = body.to_string();
        // One write: the second would wait for a delayed acknowledgement.
        let head = format!(
            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        socket.write_all((head + &body).as_bytes())?;
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

/// Tells of each change of the network, for as long as somebody listens.
fn watch(socket: &mut TcpStream, shared: &Shared, networks: bool) -> std::io::Result<()> {
    socket.write_all(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
    )?;
    let mut seen = shared.told.lock().unwrap_or_else(PoisonError::into_inner).version;
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
