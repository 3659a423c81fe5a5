//! A kubelet that only says which devices pods have. It shares no code with the client.

use std::fs;
use std::path::Path;

use crate::grpc::{Reply, Server, field, framed};

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
    server: Server,
}

impl Kubelet {
    /// Serves below `root`, where a kubelet of the node would.
    pub(crate) fn new(root: &Path, manner: Manner, pods: Pods) -> Self {
        let directory = root.join("var/lib/kubelet/pod-resources");
        fs::create_dir_all(&directory).unwrap();
        let answer = move |path: &str, question: &[u8]| answer(manner, path, question, &pods);
        Self { server: Server::new(&directory.join("kubelet.sock"), answer) }
    }

    /// Which calls came, and forgets them.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.server.calls()
    }
}

fn answer(manner: Manner, path: &str, question: &[u8], pods: &Pods) -> Reply {
    let all: Vec<(Vec<u8>, Vec<u8>)> =
        pods.iter().map(|pod| (question_for(pod.1, pod.0), message(pod))).collect();
    match (path, manner) {
        (_, Manner::Hangs) => Reply::Nothing,
        (_, Manner::Refuses) => Reply::Refusal("7", "not for you"),
        ("/v1.PodResourcesLister/List", _) => {
            Reply::Message(all.iter().flat_map(|(_, pod)| field(1, pod)).collect())
        }
        ("/v1.PodResourcesLister/Get", Manner::Current) => {
            match all.iter().find(|(asked, _)| framed(asked) == question) {
                Some((_, pod)) => Reply::Message(field(1, pod)),
                None => Reply::Refusal("2", "pod not found"),
            }
        }
        ("/v1.PodResourcesLister/Get", Manner::SwitchedOff) => {
            Reply::Refusal("2", "PodResources API Get method disabled")
        }
        _ => Reply::Refusal("12", "unknown method"),
    }
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
