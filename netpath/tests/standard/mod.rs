//! Calls of an IPAM plugin: by the standard one in its process, by ours as a function or in a process.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use netpath::ipam::{self, IpamError};
use netpath::kernel::pdeathsig::lead_group;
use netpath::root::Root;
use netpath::spec::{CniEnv, CniResult, Command as CniCommand, ErrorObject, IpamConf, NetConf};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Where Debian's package `containernetworking-plugins` puts them.
pub(crate) const STANDARD: &str = "/usr/lib/cni";

/// In the environment of a worker: where it writes its outcome.
const OUTCOME: &str = "NETPATH_TEST_OUTCOME";
/// In the environment of a worker: it is to add and delete without end.
const FOREVER: &str = "NETPATH_TEST_FOREVER";
/// In the environment of a worker: the configuration.
const CONF: &str = "NETPATH_TEST_CONF";

/// One call of a plugin, as a runtime makes it.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) conf: Value,
    pub(crate) within: Duration,
    refused: Option<IpAddr>,
}

impl Call {
    pub(crate) fn new(command: &str, id: &str, ifname: &str, args: &str, conf: Value) -> Self {
        let env = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", id),
            ("CNI_NETNS", "/var/run/netns/none"),
            ("CNI_IFNAME", ifname),
            ("CNI_ARGS", args),
            ("CNI_PATH", STANDARD),
        ];
        let env = env.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        Self { env, conf, within: Duration::from_secs(30), refused: None }
    }

    /// The address is the node's own.
    pub(crate) fn refusing(mut self, address: &str) -> Self {
        self.refused = Some(address.parse().unwrap());
        self
    }

    pub(crate) fn path(mut self, path: &Path) -> Self {
        self.env.insert("CNI_PATH".to_owned(), path.to_str().unwrap().to_owned());
        self
    }

    pub(crate) fn netns(mut self, path: &str) -> Self {
        self.env.insert("CNI_NETNS".to_owned(), path.to_owned());
        self
    }
}

/// How a call ended. The code of an error is left out: the standard plugins have one for all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) exit: i32,
    /// The result; of an error the message alone.
    pub(crate) json: Value,
}

impl Outcome {
    pub(crate) fn ok(&self) -> bool {
        self.exit == 0
    }

    pub(crate) fn msg(&self) -> &str {
        self.json["msg"].as_str().unwrap_or_else(|| panic!("no error: {self:?}"))
    }

    fn new(exit: i32, stdout: &[u8]) -> Self {
        let mut json: Value =
            if stdout.is_empty() { Value::Null } else { serde_json::from_slice(stdout).unwrap() };
        if exit != 0 {
            json = json!({"msg": json["msg"]});
        } else if json["dns"] == json!({}) {
            // Plugins before 1.2 print it, later ones do not.
            json.as_object_mut().unwrap().remove("dns");
        }
        Self { exit, json }
    }
}

/// What is on disk below `dir`: names and contents, without locks.
pub(crate) fn files(dir: &Path) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            all.extend(files(&entry.path()));
        } else if entry.file_name() != "lock" {
            all.insert(entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap());
        }
    }
    all
}

/// A call under way in another process.
pub(crate) struct Running {
    child: Child,
    /// Where a worker of ours leaves its outcome.
    file: Option<tempfile::NamedTempFile>,
}

impl Running {
    pub(crate) fn outcome(self) -> Outcome {
        let output = self.child.wait_with_output().unwrap();
        match self.file {
            Some(file) => {
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
                serde_json::from_reader(file).unwrap()
            }
            None => Outcome::new(output.status.code().expect("it was not killed"), &output.stdout),
        }
    }
}

/// Starts a standard plugin.
pub(crate) fn spawn(plugin: &str, call: &Call) -> Running {
    let file = Path::new(STANDARD).join(plugin);
    assert!(file.exists(), "{} is missing: apt-get install containernetworking-plugins", file.display());
    let mut child =
        Command::new(file).envs(&call.env).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(call.conf.to_string().as_bytes()).unwrap();
    Running { child, file: None }
}

/// Runs a standard plugin.
pub(crate) fn standard_plugin(plugin: &str, call: &Call) -> Outcome {
    spawn(plugin, call).outcome()
}

/// Does the same in-process.
pub(crate) fn ours(call: &Call) -> Outcome {
    let stdin = call.conf.to_string();
    let version = NetConf::parse_version(stdin.as_bytes());
    match try_ours(call, stdin.as_bytes()) {
        Ok(None) => Outcome { exit: 0, json: Value::Null },
        Ok(Some(json)) => Outcome::new(0, json.to_string().as_bytes()),
        Err((code, error)) => {
            let object = ErrorObject::from_error(version, code, &*error);
            Outcome::new(1, object.to_json().to_string().as_bytes())
        }
    }
}

type Failure = (u32, Box<dyn std::error::Error>);

fn try_ours(call: &Call, stdin: &[u8]) -> Result<Option<Value>, Failure> {
    let conf = NetConf::parse(stdin).map_err(|error| (error.cni_code(), error.into()))?;
    let env =
        CniEnv::parse(|key| call.env.get(key).cloned()).map_err(|error| (error.cni_code(), error.into()))?;
    let ipam_conf =
        IpamConf::from_conf(&conf, &env.args).map_err(|error| (error.cni_code(), error.into()))?;
    let of_ipam = |error: IpamError| -> Failure { (error.cni_code(), error.into()) };
    let root = Root::default();
    let network = ipam::Network {
        name: &conf.name,
        cni_version: conf.cni_version,
        conf: &ipam_conf,
        stdin,
        env: &env,
        root: &root,
        within: call.within,
        lead: lead_group,
    };
    let attachment = || ipam::Request {
        network,
        container_id: env.container_id.as_ref().unwrap(),
        ifname: env.ifname.as_ref().unwrap(),
    };
    let refuse = |address| (Some(address) == call.refused).then(|| "is the node's own".to_owned());
    match env.command {
        CniCommand::Add => {
            let added = ipam::add(&attachment(), &refuse).map_err(of_ipam)?;
            let result =
                CniResult { interfaces: vec![], ips: added.ips, routes: added.routes, dns: added.dns };
            Ok(Some(result.to_json(conf.cni_version).map_err(|error| (error.cni_code(), error.into()))?))
        }
        CniCommand::Del => ipam::del(&attachment()).map(|()| None).map_err(of_ipam),
        CniCommand::Check => {
            ipam::check(&attachment(), conf.prev_result.as_ref()).map(|()| None).map_err(of_ipam)
        }
        CniCommand::Gc => ipam::gc(&network, &|_, _| false).map(|_| None).map_err(of_ipam),
        CniCommand::Status => ipam::status(&network).map(|()| None).map_err(of_ipam),
        CniCommand::Version => panic!("no IPAM's business"),
    }
}

/// Starts a process of this program that does the call, see [`work`].
pub(crate) fn ours_in_a_process(call: &Call) -> Running {
    let file = tempfile::NamedTempFile::new().unwrap();
    let child = worker_command(call).env(OUTCOME, file.path()).spawn().unwrap();
    Running { child, file: Some(file) }
}

/// Starts a process of this program that adds and deletes without end.
pub(crate) fn endless_worker(call: &Call) -> Child {
    worker_command(call).env(FOREVER, "1").spawn().unwrap()
}

fn worker_command(call: &Call) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "worker", "--nocapture"])
        .envs(&call.env)
        .env(CONF, call.conf.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}

/// Whether another test started this process to work for it.
pub(crate) fn is_worker() -> bool {
    std::env::var_os(CONF).is_some()
}

/// What the worker process does.
pub(crate) fn work() {
    let var = |name: &str| std::env::var(name).ok();
    let conf = var(CONF).expect("started by another test of this program");
    let mut call = Call::new("ADD", "", "", "", serde_json::from_str(&conf).unwrap());
    for (key, value) in &mut call.env {
        *value = var(key).unwrap();
    }
    if var(FOREVER).is_some() {
        let mut del = call.clone();
        del.env.insert("CNI_COMMAND".to_owned(), "DEL".to_owned());
        loop {
            assert!(ours(&call).ok() && ours(&del).ok());
        }
    }
    let outcome = PathBuf::from(var(OUTCOME).unwrap());
    fs::write(outcome, serde_json::to_vec(&ours(&call)).unwrap()).unwrap();
}
