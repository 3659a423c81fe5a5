//! The least that answers like an API server: one network, one pod, and every event is new.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::Result;
use serde_json::json;

use super::PLUGIN;
use crate::http;

/// How often it was asked for what.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Calls {
    pub(super) gets: u32,
    pub(super) patches: u32,
    pub(super) posts: u32,
}

/// The server.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    counts: Arc<[AtomicU32; 3]>,
}

impl Server {
    pub(super) fn start() -> Result<Self> {
        let counts = Arc::new([const { AtomicU32::new(0) }; 3]);
        let config = json!({"cniVersion": "1.0.0", "name": "a", "type": PLUGIN}).to_string();
        let nad = json!({"kind": "NetworkAttachmentDefinition", "metadata": {"namespace": "web", "name": "a"},
            "spec": {"config": config}});
        let pod = json!({"kind": "PartialObjectMetadata",
            "metadata": {"namespace": "web", "name": "p", "uid": "u1"}});
        let shared = Arc::clone(&counts);
        let address = http::serve(move |request, _| {
            let (at, status, body) = match request.split(' ').next() {
                Some("GET") => (0, 200, &nad),
                Some("PATCH") => (1, 200, &pod),
                _ => (2, 201, &pod),
            };
            shared[at].fetch_add(1, Ordering::Relaxed);
            Ok(Some((status, body.clone())))
        })?;
        Ok(Self { address, counts })
    }

    pub(super) fn calls(&self) -> Calls {
        let [gets, patches, posts] = [0, 1, 2].map(|at| self.counts[at].load(Ordering::Relaxed));
        Calls { gets, patches, posts }
    }
}
