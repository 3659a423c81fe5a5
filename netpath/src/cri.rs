//! The container runtime's word on which sandboxes there are, and by which configuration it makes networks, by the
//! interface that the kubelet uses (CRI).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tonic::{Code, Status};

use crate::grpc;
use crate::root::Root;

/// Where runtimes serve: containerd, CRI-O, and the containerd of k3s and RKE2.
const SOCKETS: [&str; 3] =
    ["run/containerd/containerd.sock", "run/crio/crio.sock", "run/k3s/containerd/containerd.sock"];

/// The time that one runtime has to answer.
const WITHIN: Duration = Duration::from_secs(20);

/// Current runtimes.
const LIST: &str = "/runtime.v1.RuntimeService/ListPodSandbox";
/// Those before containerd 1.6 and CRI-O 1.23.
const OLD_LIST: &str = "/runtime.v1alpha2.RuntimeService/ListPodSandbox";

const STATUS: &str = "/runtime.v1.RuntimeService/Status";
const OLD_STATUS: &str = "/runtime.v1alpha2.RuntimeService/Status";

/// Why a runtime could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum CriError {
    /// Nothing can be asked at all.
    #[error("cannot start asking the container runtime")]
    Runtime {
        /// The cause.
        source: io::Error,
    },
    /// Nobody serves the socket.
    #[error("cannot connect to the container runtime's socket {}: is it running?", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// The cause.
        source: tonic::transport::Error,
    },
    /// It refused, or answered what cannot be understood.
    #[error("the container runtime at {} does not say what it is asked", socket.display())]
    Refused {
        /// The socket.
        socket: PathBuf,
        /// The cause.
        source: Box<Status>,
    },
    /// It did not answer in time.
    #[error("the container runtime at {} did not answer within {WITHIN:?}", socket.display())]
    Late {
        /// The socket.
        socket: PathBuf,
    },
}

/// Sockets of runtimes that are there, where runtimes usually serve.
pub fn sockets(root: &Root) -> Vec<PathBuf> {
    SOCKETS.iter().map(|socket| root.join(socket)).filter(|socket| socket.exists()).collect()
}

/// The container ids of all sandboxes that a runtime has, ready or not.
pub fn sandboxes(socket: &Path) -> Result<BTreeSet<String>, CriError> {
    let answer: List = ask(socket, [LIST, OLD_LIST], All {})?;
    Ok(answer.items.into_iter().map(|item| item.id).collect())
}

/// By which configuration a runtime makes networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cni {
    /// Where it reads configurations.
    pub conf_dir: PathBuf,
    /// Where it looks for plugins.
    pub bin_dirs: Vec<PathBuf>,
    /// Names of the networks that a pod gets.
    pub networks: Vec<String>,
    /// What was wrong when it last read them.
    pub error: Option<String>,
}

/// What a runtime says of its configuration; `None` from one that does not say it, as CRI-O.
pub fn cni(socket: &Path) -> Result<Option<Cni>, CriError> {
    match ask::<_, About>(socket, [STATUS, OLD_STATUS], Verbose { verbose: true }) {
        Ok(answer) => Ok(read(&answer.info)),
        // A containerd that serves docker alone.
        Err(CriError::Refused { source, .. }) if source.code() == Code::Unimplemented => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads what containerd (1.3 or newer) says: the text of its `cniconfig`.
fn read(info: &BTreeMap<String, String>) -> Option<Cni> {
    let conf: Value = serde_json::from_str(info.get("cniconfig")?).ok()?;
    let path = |value: &Value| value.as_str().map(PathBuf::from);
    let all = |key: &str| conf.get(key).and_then(Value::as_array).into_iter().flatten();
    Some(Cni {
        conf_dir: path(conf.get("PluginConfDir")?)?,
        bin_dirs: all("PluginDirs").filter_map(path).collect(),
        networks: all("Networks")
            .filter_map(|network| network.pointer("/Config/Name")?.as_str().map(str::to_owned))
            .collect(),
        error: info.get("lastCNILoadStatus").filter(|status| *status != "OK").cloned(),
    })
}

fn ask<Q, A>(socket: &Path, methods: [&'static str; 2], question: Q) -> Result<A, CriError>
where
    Q: prost::Message + Clone + 'static,
    A: prost::Message + Default + 'static,
{
    let asked = async {
        let connect = |source| CriError::Connect { socket: socket.to_owned(), source };
        let mut client = grpc::connect(socket).await.map_err(connect)?;
        let refused = |source| CriError::Refused { socket: socket.to_owned(), source: Box::new(source) };
        match grpc::unary(&mut client, methods[0], question.clone()).await {
            Err(status) if status.code() == Code::Unimplemented => {
                grpc::unary(&mut client, methods[1], question).await.map_err(refused)
            }
            answer => answer.map_err(refused),
        }
    };
    let answer = grpc::within(WITHIN, asked).map_err(|source| CriError::Runtime { source })?;
    answer.ok_or_else(|| CriError::Late { socket: socket.to_owned() })?
}

// The parts of the packages `runtime.v1` and `runtime.v1alpha2` that are of use here, which are the same in both.

#[derive(Clone, PartialEq, prost::Message)]
struct All {}

#[derive(Clone, PartialEq, prost::Message)]
struct List {
    #[prost(message, repeated, tag = "1")]
    items: Vec<Item>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Item {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Verbose {
    #[prost(bool, tag = "1")]
    verbose: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct About {
    #[prost(btree_map = "string, string", tag = "2")]
    info: BTreeMap<String, String>,
}

#[test]
fn what_containerd_says_of_its_configuration() {
    let conf = serde_json::json!({"PluginDirs": ["/opt/cni/bin"], "PluginConfDir": "/etc/cni/net.d", "PluginMaxConfNum": 1,
        "Prefix": "eth", "Networks": [{"Config": {"Name": "cni-loopback", "CNIVersion": "0.3.1"}, "IFName": "lo"},
        {"Config": {"Name": "netpath", "Source": "{}"}, "IFName": "eth0"}]});
    let mut info = BTreeMap::from([("cniconfig".to_owned(), conf.to_string())]);
    info.insert("lastCNILoadStatus".to_owned(), "OK".to_owned());
    let cni = Cni {
        conf_dir: "/etc/cni/net.d".into(),
        bin_dirs: vec!["/opt/cni/bin".into()],
        networks: vec!["cni-loopback".into(), "netpath".into()],
        error: None,
    };
    assert_eq!(read(&info), Some(cni));
    let broken = "cni config load failed".to_owned();
    info.insert("lastCNILoadStatus".to_owned(), broken.clone());
    assert_eq!(read(&info).and_then(|cni| cni.error), Some(broken));
    assert_eq!(read(&BTreeMap::new()), None);
}
