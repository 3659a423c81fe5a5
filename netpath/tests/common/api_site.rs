//! A node with the meta-plugin and an API server.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::fs;

use serde_json::{Value, json};

use crate::api::FakeApi;
use crate::meta::MetaSite;

/// A node whose meta-plugin has a kubeconfig, and the server that it names.
pub(crate) struct ApiSite {
    pub(crate) meta: MetaSite,
    pub(crate) api: FakeApi,
}

impl ApiSite {
    /// Namespace `web` has pod `p`, which asks for network `a`: plugin `one`.
    #[track_caller]
    pub(crate) fn new() -> Self {
        let meta = MetaSite::new();
        let api = FakeApi::new(&meta.site.node);
        api.demand("Bearer secret");
        let site = Self { meta, api };
        site.kubeconfig(&site.api.kubeconfig());
        site.api.pod("web", "p", "u1", json!({"k8s.v1.cni.cncf.io/networks": "a", "kept": "x"}));
        site.api.nad("web", "a", &plugin("one"));
        site
    }

    pub(crate) fn kubeconfig(&self, text: &str) {
        self.meta.site.write(&self.meta.site.root.join("etc/kubeconfig"), text);
    }

    /// The configuration of a runtime that passes annotations.
    pub(crate) fn conf(&self, annotation: &str) -> Value {
        let mut conf = self.meta.conf(annotation, json!({"networks": "", "kubeconfig": "/etc/kubeconfig"}));
        conf["runtimeConfig"]["io.kubernetes.cri.pod-annotations"]["kubernetes.io/config.source"] =
            json!("api");
        conf
    }

    /// That of one that does not.
    pub(crate) fn mute(&self) -> Value {
        let mut conf = self.conf("");
        conf.as_object_mut().unwrap().remove("runtimeConfig");
        conf
    }

    /// What is remembered of the sandbox.
    #[track_caller]
    pub(crate) fn record(&self) -> Value {
        let path = self.meta.site.root.state().join("sandboxes/c1.json");
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    }
}

/// A network of one plugin.
pub(crate) fn plugin(kind: &str) -> Value {
    json!({"cniVersion": "1.0.0", "type": kind})
}
