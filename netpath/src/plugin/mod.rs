//! The CNI plugin: environment and standard input in, one JSON value out.
//!
//! One binary is two plugins for one attachment: type `macvlan` makes the interface, type `netpath` stands
//! behind another plugin in a list and polices what that one made. A configuration of type `netpath` that names
//! other networks is that of the meta-plugin, which gives a pod all of its networks. Which of the three is called
//! follows from the configuration alone.

mod add;
mod chained;
mod check;
mod del;
mod error;
mod gc;
mod meta;
mod police;
pub mod sweep;

use std::time::{Duration, Instant};

use serde_json::Value;

pub use error::PluginError;
pub use meta::MetaError;

use crate::{
    delegate, ipam,
    kernel::{netns, pdeathsig},
    root::Root,
    spec::{
        self, CniEnv, CniVersion, Command, ConfError, ContainerId, ErrorObject, IfName, IpamConf, MetaConf,
        NetConf, error::supported_versions_json,
    },
};

/// Type that makes macvlan interfaces.
pub const MACVLAN: &str = "macvlan";
/// Type that polices the interface of a plugin before it in the list.
pub const CHAINED: &str = "netpath";

/// What the runtime gets: a value for standard output, if any, and the exit code.
#[derive(Debug)]
pub struct Answer {
    /// The result or the error object.
    pub stdout: Option<Value>,
    /// 0, or 1 with an error object.
    pub exit: u8,
}

/// One call of the plugin, parsed.
struct Call<'a> {
    root: &'a Root,
    env: CniEnv,
    conf: NetConf,
    stdin: &'a [u8],
    ipam: IpamConf,
    role: Role,
    /// `namespace/name` of the NAD, where there is one.
    nad: Option<&'a str>,
    /// When its time is over, where somebody has set one.
    deadline: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Macvlan,
    Chained,
}

/// Runs the plugin once. `get` reads the environment; `stdin` is the network configuration.
pub fn run(root: &Root, get: impl Fn(&str) -> Option<String>, stdin: &[u8]) -> Answer {
    let version = NetConf::parse_version(stdin);
    match dispatch(root, get, stdin) {
        Ok(stdout) => Answer { stdout, exit: 0 },
        Err(error) => {
            tracing::debug!(error = ?error, "call failed");
            let object = ErrorObject::from_error(version, error.cni_code(), &error);
            Answer { stdout: Some(object.to_json()), exit: 1 }
        }
    }
}

fn dispatch(
    root: &Root,
    get: impl Fn(&str) -> Option<String>,
    stdin: &[u8],
) -> Result<Option<Value>, PluginError> {
    let as_ipam = get(ipam::AS_IPAM);
    let depth = get(delegate::DEPTH).and_then(|depth| depth.parse().ok()).unwrap_or_default();
    let env = CniEnv::parse(get)?;
    match (as_ipam, env.command) {
        (None, _) | (_, Command::Version) => {}
        // There is nothing to give back, and an error would be asked for again for ever.
        (Some(_), Command::Del | Command::Gc) => return Ok(None),
        (Some(kind), _) => return Err(PluginError::AsIpam { kind }),
    }
    if env.command == Command::Version {
        return Ok(Some(supported_versions_json(NetConf::parse_version(stdin))));
    }
    serve(root, env, stdin, &Origin { depth, nad: None, deadline: None })
}

/// Where a call comes from.
struct Origin<'a> {
    /// How many meta-plugins have executed each other already.
    depth: u32,
    /// `namespace/name` of the NAD, where there is one.
    nad: Option<&'a str>,
    /// When its time is over, where somebody has set one.
    deadline: Option<Instant>,
}

/// Serves one call, be it the runtime's or that of the meta-plugin for one of its networks.
fn serve(root: &Root, env: CniEnv, stdin: &[u8], origin: &Origin<'_>) -> Result<Option<Value>, PluginError> {
    let (conf, ipam) = read(root, &env, stdin)?;
    conf.cni_version.allows(env.command)?;
    if conf.kind == CHAINED
        && let Some(meta) = MetaConf::from_conf(&conf)?
    {
        return meta::run(root, &env, &conf, &meta, origin);
    }
    if env.command == Command::Add {
        spec::per_node::refuse(&conf.raw)?;
    }
    let role = match conf.kind.as_str() {
        MACVLAN => Role::Macvlan,
        CHAINED => Role::Chained,
        other => return Err(PluginError::Type { kind: other.to_owned() }),
    };
    let call = Call { root, env, conf, stdin, ipam, role, nad: origin.nad, deadline: origin.deadline };
    match (call.env.command, call.role) {
        (Command::Add, Role::Macvlan) => call.in_other_netns(|call| add::add(call)).map(Some),
        (Command::Add, Role::Chained) => call.in_other_netns(|call| chained::add(call)).map(Some),
        (Command::Del, _) => del::del(&call).map(|()| None),
        (Command::Check, _) => call.in_other_netns(|call| check::check(call)).map(|()| None),
        (Command::Gc, _) => gc::gc(&call).map(|()| None),
        (Command::Status, _) => status(&call).map(|()| None),
        (Command::Version, _) => Ok(None),
    }
}

/// Reads the configuration. One that was broken since its ADD must not keep a pod from ending: DEL then takes the
/// recorded one.
fn read(root: &Root, env: &CniEnv, stdin: &[u8]) -> Result<(NetConf, IpamConf), ConfError> {
    let parse = |stdin: &[u8]| {
        let conf = NetConf::parse(stdin)?;
        let ipam = IpamConf::from_conf(&conf, &env.args)?;
        if conf.kind == CHAINED {
            MetaConf::from_conf(&conf)?;
        }
        Ok((conf, ipam))
    };
    match parse(stdin) {
        Err(error) if env.command == Command::Del => match del::recorded_conf(root, env) {
            Some(recorded) => parse(&recorded).map_err(|_| error),
            None => Err(error),
        },
        result => result,
    }
}

/// STATUS speaks for what every pod needs. A master that is down or a data path that cannot be loaded is
/// an error of the ADD that needs it: said here, it would take the whole node out of service.
fn status(call: &Call<'_>) -> Result<(), PluginError> {
    Ok(ipam::status(&call.network())?)
}

impl Call<'_> {
    fn version(&self) -> CniVersion {
        self.conf.cni_version
    }

    /// Refuses the namespace the plugin itself runs in, where the runtime did not say that it means it.
    fn in_other_netns<T>(&self, f: impl FnOnce(&Self) -> Result<T, PluginError>) -> Result<T, PluginError> {
        if let Some(path) = &self.env.netns
            && !self.env.netns_override
            && netns::is_same_as_current(path)?
        {
            return Err(PluginError::OwnNetns { path: path.clone() });
        }
        f(self)
    }

    /// The sandbox and the interface; `CniEnv::parse` demands both for the commands that ask here.
    fn attachment(&self) -> Result<(&ContainerId, &IfName), PluginError> {
        match (&self.env.container_id, &self.env.ifname) {
            (Some(container_id), Some(ifname)) => Ok((container_id, ifname)),
            _ => Err(PluginError::NoAttachment),
        }
    }

    fn has_dhcp(&self) -> bool {
        matches!(&self.ipam, IpamConf::Delegated { kind, .. } if kind == "dhcp")
    }

    /// Whether somebody, the pod's author among them, says which addresses the interface is to have.
    fn asks_for_addresses(&self) -> bool {
        let runtime = &self.conf.runtime;
        let asked = [&self.env.args.ips, &self.conf.args_cni.ips, &runtime.ips];
        asked.iter().any(|ips| !ips.is_empty()) || !runtime.ip_ranges.is_empty()
    }

    /// What is left of the time for one executed plugin. An IPAM whose ADD fails is executed once more.
    fn left(&self) -> Option<Duration> {
        let left = self.deadline?.saturating_duration_since(Instant::now());
        Some(if self.env.command == Command::Add { left / 2 } else { left })
    }

    fn network(&self) -> ipam::Network<'_> {
        // Runtimes ask for STATUS every five seconds, and give a node up that hangs in it.
        let usual = if self.env.command == Command::Status { ipam::STATUS_WITHIN } else { ipam::WITHIN };
        ipam::Network {
            name: &self.conf.name,
            cni_version: self.conf.cni_version,
            conf: &self.ipam,
            stdin: self.stdin,
            env: &self.env,
            root: self.root,
            within: self.left().map_or(usual, |left| left.min(usual)),
            lead: pdeathsig::lead_group,
        }
    }
}
