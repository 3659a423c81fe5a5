//! IPAM plugins of others: found on CNI_PATH, executed with our environment and the complete configuration.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process;
use std::time::Duration;

use super::{IpamResult, Network, Request, code};
use crate::child::{self, ChildError, Output};
use crate::spec::ipam::check_kind;
use crate::spec::outcome::{Failure, excerpt};
use crate::spec::{self, CniResult, Command, ConfError};

/// Executes `command`, for an attachment where it is about one.
pub(super) fn run(
    network: &Network<'_>,
    kind: &str,
    command: Command,
    request: Option<&Request<'_>>,
) -> Result<Output, DelegateError> {
    let plugin = find(kind, &network.env.path)?;
    let mut child = process::Command::new(&plugin);
    child
        .env("CNI_COMMAND", command.as_str())
        .env("CNI_ARGS", args(network))
        .env("CNI_PATH", std::env::join_paths(&network.env.path).unwrap_or_default())
        .env(super::AS_IPAM, kind);
    for variable in ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"] {
        child.env_remove(variable);
    }
    if let Some(request) = request {
        child
            .env("CNI_CONTAINERID", request.container_id.as_str())
            .env("CNI_IFNAME", request.ifname.as_str())
            .env("CNI_NETNS", network.env.netns.as_deref().unwrap_or(Path::new("")));
    }
    let output = child::run(child, network.stdin, network.within, network.lead)
        .map_err(|source| DelegateError::of_child(kind, network.within, source))?;
    if output.status.success() { Ok(output) } else { Err(failure(network, kind, &output)) }
}

/// Reads what an ADD printed.
pub(super) fn parse_result(
    network: &Network<'_>,
    kind: &str,
    output: &Output,
) -> Result<IpamResult, DelegateError> {
    let value = serde_json::from_slice(&output.stdout).map_err(|source| DelegateError::Output {
        plugin: kind.to_owned(),
        stdout: excerpt(&output.stdout),
        source,
    })?;
    let result = CniResult::parse(network.cni_version, &value)
        .map_err(|source| DelegateError::Result { plugin: kind.to_owned(), source })?;
    // An IPAM plugin knows no interfaces, so an index of its making points at nothing.
    let ips = result.ips.into_iter().map(|ip| spec::IpConfig { interface: None, ..ip }).collect();
    Ok(IpamResult { ips, routes: result.routes, dns: result.dns })
}

fn find(kind: &str, path: &[PathBuf]) -> Result<PathBuf, DelegateError> {
    // A name with a slash would be executed from wherever the network's author likes.
    if kind.is_empty() || kind.contains('/') {
        return Err(DelegateError::Name { plugin: kind.to_owned() });
    }
    if check_kind("ipam.type", kind).is_err() {
        return Err(DelegateError::Name { plugin: kind.to_owned() });
    }
    child::find(kind, path)
        .ok_or_else(|| DelegateError::NotFound { plugin: kind.to_owned(), path: path.to_vec() })
}

fn args(network: &Network<'_>) -> String {
    let pairs: Vec<_> = network.env.args.pairs.iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.join(";")
}

fn failure(network: &Network<'_>, kind: &str, output: &Output) -> DelegateError {
    let plugin = kind.to_owned();
    match Failure::read(
        network.cni_version,
        (output.status.code(), output.status.signal()),
        &output.stdout,
        &output.stderr,
    ) {
        Failure::Said(object) => DelegateError::Failed {
            plugin,
            code: object.code,
            msg: object.msg,
            details: Some(object.details).filter(|details| !details.is_empty()).map(Details),
        },
        Failure::Mute { how, said } => DelegateError::Mute { plugin, how, said },
    }
}

/// `details` of an error object, passed on as they are.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Details(String);

/// Why an executed plugin failed.
#[derive(Debug, thiserror::Error)]
pub enum DelegateError {
    /// `ipam.type` is not a file name, or that of a plugin that must not be executed for addresses.
    #[error("ipam.type `{plugin}` is not the name of an IPAM plugin: write one, a file name without a `/`")]
    Name {
        /// `ipam.type`
        plugin: String,
    },
    /// There is no such plugin.
    #[error(
        "failed to find plugin \"{plugin}\" in path [{}]: install it there",
        path.iter().map(|dir| dir.to_string_lossy()).collect::<Vec<_>>().join(" ")
    )]
    NotFound {
        /// `ipam.type`
        plugin: String,
        /// CNI_PATH
        path: Vec<PathBuf>,
    },
    /// It could not be executed or talked to.
    #[error("cannot run the IPAM plugin {plugin}")]
    Run {
        /// `ipam.type`
        plugin: String,
        /// The cause.
        source: ChildError,
    },
    /// It was killed because it took too long.
    #[error("the IPAM plugin {plugin} did not end within {within:?} and was killed")]
    Deadline {
        /// `ipam.type`
        plugin: String,
        /// The time it had.
        within: Duration,
    },
    /// It failed and said why.
    #[error("{msg}")]
    Failed {
        /// `ipam.type`
        plugin: String,
        /// Its code.
        code: u32,
        /// Its message.
        msg: String,
        /// Its details.
        #[source]
        details: Option<Details>,
    },
    /// It failed and did not print an error object.
    #[error("the IPAM plugin {plugin} ended {how} without an error object; it said: {said:?}")]
    Mute {
        /// `ipam.type`
        plugin: String,
        /// How it ended.
        how: String,
        /// The end of its output, else of its stderr.
        said: String,
    },
    /// It succeeded, but what it printed is no JSON.
    #[error("the IPAM plugin {plugin} printed no JSON but {stdout:?}")]
    Output {
        /// `ipam.type`
        plugin: String,
        /// The end of what it printed.
        stdout: String,
        /// The cause.
        source: serde_json::Error,
    },
    /// It succeeded, but what it printed is no result.
    #[error("the IPAM plugin {plugin} printed an invalid result")]
    Result {
        /// `ipam.type`
        plugin: String,
        /// The cause.
        source: ConfError,
    },
}

impl DelegateError {
    fn of_child(kind: &str, within: Duration, source: ChildError) -> Self {
        let plugin = kind.to_owned();
        match source {
            ChildError::Deadline { .. } => Self::Deadline { plugin, within },
            source => Self::Run { plugin, source },
        }
    }

    /// Code of the CNI error object: the plugin's own where it named one.
    pub fn cni_code(&self) -> u32 {
        match self {
            Self::Failed { code, .. } => *code,
            Self::Name { .. } => spec::code::CONF,
            Self::Deadline { .. } => spec::code::TRY_AGAIN,
            Self::NotFound { .. } | Self::Run { .. } | Self::Mute { .. } => code::PLUGIN,
            Self::Output { .. } | Self::Result { .. } => spec::code::DECODE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_file_names_on_the_path_are_found() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = [first.path().to_owned(), second.path().to_owned()];
        std::fs::create_dir(first.path().join("dhcp")).unwrap();
        std::fs::write(second.path().join("dhcp"), "").unwrap();
        assert_eq!(find("dhcp", &path).unwrap(), second.path().join("dhcp"));
        for kind in ["", "/bin/true", "../dhcp", "a/dhcp"] {
            assert!(matches!(find(kind, &path), Err(DelegateError::Name { .. })), "{kind}");
        }
        assert!(matches!(find("whereabouts", &path), Err(DelegateError::NotFound { .. })));
    }
}
