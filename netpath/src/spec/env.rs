//! The environment variables of a CNI call.

use std::path::PathBuf;

use super::args::CniArgs;
use super::error::{ConfError, code};
use super::names::{ContainerId, IfName};

/// What the caller wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the protocol's")]
pub enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Command {
    /// Every command.
    pub const ALL: [Self; 6] = [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version];

    /// As it stands in `CNI_COMMAND`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    /// The variables that the command cannot do without, in the order in which they are reported.
    const fn required(self) -> &'static [&'static str] {
        match self {
            Self::Add | Self::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
            Self::Del => &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"],
            Self::Gc | Self::Status => &["CNI_PATH"],
            Self::Version => &[],
        }
    }

    /// Whether the command is about one attachment.
    const fn is_about_an_attachment(self) -> bool {
        matches!(self, Self::Add | Self::Del | Self::Check)
    }
}

/// The environment of a call, as far as its command has a use for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniEnv {
    /// `CNI_COMMAND`
    pub command: Command,
    /// `CNI_CONTAINERID`: there for ADD, DEL and CHECK, and only for them.
    pub container_id: Option<ContainerId>,
    /// `CNI_NETNS`: there for ADD and CHECK; for DEL, where the sandbox may be gone, it may be absent.
    pub netns: Option<PathBuf>,
    /// `CNI_IFNAME`: there for ADD, DEL and CHECK, and only for them.
    pub ifname: Option<IfName>,
    /// `CNI_ARGS`
    pub args: CniArgs,
    /// The directories of `CNI_PATH`.
    pub path: Vec<PathBuf>,
    /// `CNI_NETNS_OVERRIDE`: the sandbox may be the caller's own network namespace.
    pub netns_override: bool,
}

/// Why the environment cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EnvError {
    /// Variables that are empty or not set.
    #[error("required env variables [{}] missing", names.join(","))]
    Missing {
        /// Their names.
        names: Vec<&'static str>,
    },
    /// No command of CNI.
    #[error("unknown CNI_COMMAND: {value}")]
    UnknownCommand {
        /// The value.
        value: String,
    },
    /// A variable with a wrong value.
    #[error(transparent)]
    Invalid(#[from] ConfError),
}

impl EnvError {
    /// Code of the CNI error object.
    pub fn cni_code(&self) -> u32 {
        code::ENV
    }
}

impl CniEnv {
    /// Reads the environment through `get`, which returns the value of a variable.
    pub fn parse(get: impl Fn(&str) -> Option<String>) -> Result<Self, EnvError> {
        let get = |name: &str| get(name).filter(|value| !value.is_empty());
        let value = get("CNI_COMMAND").ok_or(EnvError::Missing { names: vec!["CNI_COMMAND"] })?;
        let command = Command::ALL
            .into_iter()
            .find(|command| command.as_str() == value)
            .ok_or(EnvError::UnknownCommand { value })?;

        let names: Vec<_> = command.required().iter().copied().filter(|name| get(name).is_none()).collect();
        if !names.is_empty() {
            return Err(EnvError::Missing { names });
        }

        let about = |name: &str| get(name).filter(|_| command.is_about_an_attachment());
        let parse_id = |value: String| ContainerId::parse("CNI_CONTAINERID", &value);
        let parse_ifname = |value: String| IfName::parse("CNI_IFNAME", &value);
        let args = get("CNI_ARGS").unwrap_or_default();
        Ok(Self {
            command,
            container_id: about("CNI_CONTAINERID").map(parse_id).transpose()?,
            netns: about("CNI_NETNS").map(PathBuf::from),
            ifname: about("CNI_IFNAME").map(parse_ifname).transpose()?,
            args: match command {
                Command::Add | Command::Check => CniArgs::parse(&args)?,
                // Trying again would not mend them, and what has to be removed has to be removed.
                Command::Del | Command::Gc | Command::Status | Command::Version => {
                    CniArgs::parse_leniently(&args)
                }
            },
            path: get("CNI_PATH").map(|value| directories(&value)).unwrap_or_default(),
            netns_override: get("CNI_NETNS_OVERRIDE")
                .is_some_and(|value| value == "1" || value.eq_ignore_ascii_case("true")),
        })
    }
}

fn directories(path: &str) -> Vec<PathBuf> {
    path.split(':').filter(|directory| !directory.is_empty()).map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: [(&str, &str); 6] = [
        ("CNI_CONTAINERID", "abc"),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_IFNAME", "net1"),
        ("CNI_ARGS", "K8S_POD_NAME=web-0"),
        ("CNI_PATH", "/opt/cni/bin::/usr/lib/cni"),
        ("CNI_NETNS_OVERRIDE", "TRUE"),
    ];

    /// Parses [`FULL`] with `command`, and with `changes` made to it.
    fn parse(command: &str, changes: &[(&str, &str)]) -> Result<CniEnv, EnvError> {
        CniEnv::parse(|name| {
            let command = [("CNI_COMMAND", command)];
            let mut all = changes.iter().chain(&FULL).chain(&command);
            all.find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[track_caller]
    fn check_error(command: &str, changes: &[(&str, &str)], expected: &str) {
        let error = parse(command, changes).expect_err("is refused");
        assert_eq!(error.to_string(), expected);
        assert_eq!(error.cni_code(), 4);
    }

    #[test]
    fn add_takes_everything() {
        let env = parse("ADD", &[]).expect("is complete");
        assert_eq!(env.command, Command::Add);
        assert_eq!(env.container_id.map(|it| it.to_string()).as_deref(), Some("abc"));
        assert_eq!(env.netns, Some("/run/netns/x".into()));
        assert_eq!(env.ifname.map(|it| it.to_string()).as_deref(), Some("net1"));
        assert_eq!(env.args.k8s_pod_name.as_deref(), Some("web-0"));
        assert_eq!(env.path, [PathBuf::from("/opt/cni/bin"), PathBuf::from("/usr/lib/cni")]);
        assert!(env.netns_override);
        assert!(!parse("ADD", &[("CNI_NETNS_OVERRIDE", "no")]).expect("is complete").netns_override);
    }

    #[test]
    fn every_command_is_read_as_it_is_written() {
        for command in Command::ALL {
            assert_eq!(parse(command.as_str(), &[]).expect("is complete").command, command);
        }
        check_error("add", &[], "unknown CNI_COMMAND: add");
        check_error("", &[], "required env variables [CNI_COMMAND] missing");
    }

    #[test]
    fn what_is_missing_is_named_in_one_message() {
        let none = [
            ("CNI_CONTAINERID", ""),
            ("CNI_NETNS", ""),
            ("CNI_IFNAME", ""),
            ("CNI_ARGS", ""),
            ("CNI_PATH", ""),
        ];
        let all = "required env variables [CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH] missing";
        check_error("ADD", &none, all);
        check_error("CHECK", &none, all);
        check_error("DEL", &none, "required env variables [CNI_CONTAINERID,CNI_IFNAME,CNI_PATH] missing");
        check_error("GC", &none, "required env variables [CNI_PATH] missing");
        check_error("STATUS", &none, "required env variables [CNI_PATH] missing");
        assert!(parse("VERSION", &none).is_ok());
    }

    #[test]
    fn del_needs_no_sandbox() {
        assert_eq!(parse("DEL", &[("CNI_NETNS", "")]).expect("is complete").netns, None);
        assert_eq!(parse("DEL", &[]).expect("is complete").netns, Some("/run/netns/x".into()));
    }

    #[test]
    fn names_are_checked_with_the_code_of_the_environment() {
        let rule = "an interface name has no `/`, `:` or white space";
        check_error("ADD", &[("CNI_IFNAME", "a/b")], &format!("CNI_IFNAME `a/b`: {rule}"));
        check_error("DEL", &[("CNI_IFNAME", "a/b")], &format!("CNI_IFNAME `a/b`: {rule}"));
        let rule = "it begins with an ASCII letter or digit";
        check_error("CHECK", &[("CNI_CONTAINERID", "../x")], &format!("CNI_CONTAINERID `../x`: {rule}"));
    }

    #[test]
    fn commands_about_no_attachment_ignore_its_variables() {
        for command in ["GC", "STATUS", "VERSION"] {
            let env = parse(command, &[("CNI_IFNAME", "a/b"), ("CNI_ARGS", "junk")]).expect("is complete");
            assert_eq!((env.container_id, env.ifname, env.netns), (None, None, None));
        }
    }

    #[test]
    fn wrong_args_stop_an_add_but_no_del() {
        let changes = [("CNI_ARGS", "IP=x;K8S_POD_NAME=web-1")];
        assert!(parse("ADD", &changes).is_err());
        assert!(parse("CHECK", &changes).is_err());
        let args = parse("DEL", &changes).expect("is removed all the same").args;
        assert_eq!(args.k8s_pod_name.as_deref(), Some("web-1"));
    }
}
