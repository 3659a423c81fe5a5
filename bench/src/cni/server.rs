//! The least that answers like an API server: one network, one pod, and every event is new.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use anyhow::Result;
use serde_json::json;

use super::PLUGIN;

/// How often it was asked for what.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Calls {
    pub(super) gets: u32,
    pub(super) patches: u32,
    pub(super) posts: u32,
}

/// The server. Its threads end with the process.
pub(super) struct Server {
    address: SocketAddr,
    counts: Arc<[AtomicU32; 3]>,
}

impl Server {
    pub(super) fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let counts = Arc::new([AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0)]);
        let shared = counts.clone();
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let counts = shared.clone();
                thread::spawn(move || serve(socket, &counts));
            }
        });
        Ok(Self { address, counts })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn calls(&self) -> Calls {
        let [gets, patches, posts] = [0, 1, 2].map(|at| self.counts[at].load(Ordering::Relaxed));
        Calls { gets, patches, posts }
    }
}

/// One answer is one write.
fn serve(mut socket: TcpStream, counts: &[AtomicU32; 3]) {
    let config = json!({"cniVersion": "1.0.0", "name": "a", "type": PLUGIN}).to_string();
    let nad = json!({"kind": "NetworkAttachmentDefinition", "metadata": {"namespace": "web", "name": "a"},
        "spec": {"config": config}});
    let pod =
        json!({"kind": "PartialObjectMetadata", "metadata": {"namespace": "web", "name": "p", "uid": "u1"}});
    let (mut bytes, mut chunk) = (Vec::new(), [0; 16 << 10]);
    loop {
        let Ok(got @ 1..) = socket.read(&mut chunk) else { return };
        bytes.extend_from_slice(&chunk[..got]);
        let Some(end) = bytes.windows(4).position(|it| it == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        let length = length.and_then(|it| it.trim().parse::<usize>().ok()).unwrap_or_default();
        if bytes.len() < end + 4 + length {
            continue;
        }
        let (at, status, body) = match head.split(' ').next() {
            Some("get") => (0, 200, &nad),
            Some("patch") => (1, 200, &pod),
            _ => (2, 201, &pod),
        };
        counts[at].fetch_add(1, Ordering::Relaxed);
        bytes.clear();
        let body = body.to_string();
        let head = format!(
            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        if socket.write_all((head + &body).as_bytes()).is_err() {
            return;
        }
    }
}
