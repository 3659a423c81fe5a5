//! Plugins of others: found in the directories of plugins, executed as the CNI specification says.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process;
use std::time::Duration;

use crate::child::{self, ChildError, Lead};
use crate::spec::outcome::{Failure, excerpt};
use crate::spec::{self, CniVersion, Command, ContainerId, IfName};

/// How often plugins that execute plugins have executed each other already.
///
/// A meta-plugin whose cluster network is another meta-plugin, and that one's is the first, would go on until the
/// node has no processes left.
pub const DEPTH: &str = "NETPATH_DEPTH";

/// One call of a plugin.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    /// The command.
    pub command: Command,
    /// Directories of plugins, those that come first first.
    pub path: &'a [PathBuf],
    /// The sandbox and the interface, where the command is about one.
    pub attachment: Option<(&'a ContainerId, &'a IfName)>,
    /// The sandbox's network namespace, where it is known.
    pub netns: Option<&'a Path>,
    /// `CNI_ARGS`
    pub args: &'a str,
    /// Version of the configuration.
    pub version: CniVersion,
    /// What [`DEPTH`] is to be.
    pub depth: u32,
    /// The time it has.
    pub within: Duration,
    /// Usually `kernel::pdeathsig::lead_group`.
    pub lead: Lead,
}

/// Whether there is such a plugin.
pub fn exists(kind: &str, path: &[PathBuf]) -> bool {
    child::find(kind, path).is_some()
}

/// Executes the plugin `kind` with `stdin`, and returns what it printed.
pub fn run(kind: &str, call: &Call<'_>, stdin: &[u8]) -> Result<Vec<u8>, DelegateError> {
    let plugin = child::find(kind, call.path)
        .ok_or_else(|| DelegateError::NotFound { plugin: kind.to_owned(), path: call.path.to_vec() })?;
    let mut command = process::Command::new(plugin);
    command
        .env("CNI_COMMAND", call.command.as_str())
        .env("CNI_PATH", std::env::join_paths(call.path).unwrap_or_default())
        .env("CNI_ARGS", call.args)
        .env(DEPTH, call.depth.to_string());
    for variable in ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"] {
        command.env_remove(variable);
    }
    if let Some((container_id, ifname)) = call.attachment {
        command
            .env("CNI_CONTAINERID", container_id.as_str())
            .env("CNI_IFNAME", ifname.as_str())
            .env("CNI_NETNS", call.netns.unwrap_or(Path::new("")));
    }
    let output = child::run(command, stdin, call.within, call.lead).map_err(|source| match source {
        ChildError::Deadline { .. } => {
            DelegateError::Deadline { plugin: kind.to_owned(), within: call.within }
        }
        source => DelegateError::Run { plugin: kind.to_owned(), source },
    })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let status = (output.status.code(), output.status.signal());
    Err(match Failure::read(call.version, status, &output.stdout, &output.stderr) {
        Failure::Said(object) => DelegateError::Failed {
            plugin: kind.to_owned(),
            code: object.code,
            msg: object.msg,
            details: Some(object.details).filter(|details| !details.is_empty()).map(Details),
        },
        Failure::Mute { how, said } => DelegateError::Mute { plugin: kind.to_owned(), how, said },
    })
}

/// Reads what an ADD printed.
pub fn result(kind: &str, stdout: &[u8]) -> Result<serde_json::Value, DelegateError> {
    let of_json = |source| DelegateError::Output { plugin: kind.to_owned(), stdout: excerpt(stdout), source };
    spec::json::parse_value(stdout).map_err(of_json)
}

/// `details` of an error object, passed on as they are.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Details(String);

/// Why an executed plugin failed.
#[derive(Debug, thiserror::Error)]
pub enum DelegateError {
    /// There is no such plugin.
    #[error(
        "failed to find plugin \"{plugin}\" in path [{}]: install it there",
        path.iter().map(|dir| dir.to_string_lossy()).collect::<Vec<_>>().join(" ")
    )]
    NotFound {
        /// `type`
        plugin: String,
        /// Where it was looked for.
        path: Vec<PathBuf>,
    },
    /// It could not be executed or talked to.
    #[error("cannot run the plugin {plugin}")]
    Run {
        /// `type`
        plugin: String,
        /// The cause.
        source: ChildError,
    },
    /// It was killed because it took too long.
    #[error("the plugin {plugin} did not end within {within:?} and was killed")]
    Deadline {
        /// `type`
        plugin: String,
        /// The time it had.
        within: Duration,
    },
    /// It failed and said why.
    #[error("{msg}")]
    Failed {
        /// `type`
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
    #[error("the plugin {plugin} ended {how} without an error object; it said: {said:?}")]
    Mute {
        /// `type`
        plugin: String,
        /// How it ended.
        how: String,
        /// The end of its output, else of its stderr.
        said: String,
    },
    /// It succeeded, but what it printed is no JSON.
    #[error("the plugin {plugin} printed no JSON but {stdout:?}")]
    Output {
        /// `type`
        plugin: String,
        /// The end of what it printed.
        stdout: String,
        /// The cause.
        source: serde_json::Error,
    },
}

impl DelegateError {
    /// Own code of CNI error objects: a plugin failed without saying a code of its own.
    pub const CODE: u32 = 140;

    /// Code of the CNI error object: the plugin's own where it named one.
    pub fn cni_code(&self) -> u32 {
        match self {
            Self::Failed { code, .. } => *code,
            Self::Deadline { .. } => spec::code::TRY_AGAIN,
            Self::NotFound { .. } | Self::Run { .. } | Self::Mute { .. } => Self::CODE,
            Self::Output { .. } => spec::code::DECODE,
        }
    }

    /// Whether asking again can help: a plugin that is gone does not come back by it.
    pub fn is_worth_retrying(&self) -> bool {
        match self {
            Self::NotFound { .. } => false,
            Self::Run { source, .. } => !source.is_no_program(),
            Self::Deadline { .. } | Self::Failed { .. } | Self::Mute { .. } | Self::Output { .. } => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Instant;

    use super::*;
    use crate::kernel::pdeathsig::lead_group;

    fn call<'a>(path: &'a [PathBuf], ids: &'a (ContainerId, IfName), within: Duration) -> Call<'a> {
        Call {
            command: Command::Add,
            path,
            attachment: Some((&ids.0, &ids.1)),
            netns: None,
            args: "IgnoreUnknown=true",
            version: CniVersion::V1_0_0,
            depth: 1,
            within,
            lead: lead_group,
        }
    }

    fn plugin(script: &str) -> (tempfile::TempDir, [PathBuf; 1], (ContainerId, IfName)) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("fake");
        fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        let path = [dir.path().to_owned()];
        let ids = (ContainerId::parse("x", "c1").unwrap(), IfName::parse("x", "net1").unwrap());
        (dir, path, ids)
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn a_plugin_is_given_the_protocols_environment() {
        let (_dir, path, ids) = plugin(
            r#"cat; echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME [$CNI_NETNS] $CNI_ARGS $NETPATH_DEPTH""#,
        );
        let stdout = run("fake", &call(&path, &ids, LONG), b"stdin ").unwrap();
        assert_eq!(String::from_utf8(stdout).unwrap(), "stdin ADD c1 net1 [] IgnoreUnknown=true 1\n");
    }

    #[test]
    fn one_that_hangs_is_killed_with_what_it_forked_and_the_runtime_may_try_again() {
        let (dir, path, ids) = plugin(r#"sleep 1000 & echo $! > "${0%/*}/pid"; sleep 1000"#);
        let error = run("fake", &call(&path, &ids, Duration::from_millis(500)), b"").unwrap_err();
        assert_eq!(error.cni_code(), 11, "{error}");
        let pid = fs::read_to_string(dir.path().join("pid")).unwrap();
        let alive = || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
            stat.is_ok_and(|stat| !stat.contains(") Z "))
        };
        let deadline = Instant::now() + LONG;
        while alive() {
            assert!(Instant::now() < deadline, "process {pid} survives");
            std::thread::yield_now();
        }
    }

    #[test]
    fn errors_are_the_plugins_own() {
        let (_dir, path, ids) = plugin(r#"echo '{"code": 113, "msg": "m", "details": "d"}'; exit 1"#);
        let error = run("fake", &call(&path, &ids, LONG), b"").unwrap_err();
        assert_eq!((error.cni_code(), error.to_string().as_str()), (113, "m"));
        let (_dir, path, ids) = plugin("echo panic >&2; exit 2");
        let error = run("fake", &call(&path, &ids, LONG), b"").unwrap_err();
        assert_eq!(error.cni_code(), 140);
        assert!(
            error.to_string().contains("with status 2 without an error object; it said: \"panic\""),
            "{error}"
        );
        let error = run("gone", &call(&path, &ids, LONG), b"").unwrap_err();
        assert!(!error.is_worth_retrying() && !exists("gone", &path) && exists("fake", &path), "{error}");
        assert!(matches!(result("fake", b"x"), Err(DelegateError::Output { .. })));
    }
}
