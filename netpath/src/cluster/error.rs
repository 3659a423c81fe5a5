//! Why a source could not be asked or told.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::spec::{ConfError, code};
use crate::whole::WholeError;

/// Why a source could not be asked or told.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// There is no such network. The text is the one that people search for.
    #[error("cannot find a network-attachment-definition ({name}) in namespace ({namespace})")]
    NoNad {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// A file operation failed.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A manifest, or a kubeconfig, is neither JSON nor YAML.
    #[error("{} is not valid YAML", path.display())]
    Yaml {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Box<serde_saphyr::Error>,
    },
    /// A manifest's object is not what it should be.
    #[error("{} holds an invalid object", path.display())]
    Object {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: ConfError,
    },
    /// A kubeconfig does not say how to reach the API server.
    #[error("kubeconfig {}: {field}: {fix}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// The field that is wrong or missing.
        field: String,
        /// What to write.
        fix: &'static str,
        /// The cause, where there is one.
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// Nobody answered in time.
    #[error("the API server {server} does not answer {request}, tried {tries} times within {within:?}")]
    Unreachable {
        /// Its address.
        server: String,
        /// What was asked.
        request: String,
        /// How often.
        tries: u32,
        /// For how long.
        within: Duration,
        /// Why the last try failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server answers, and that it cannot serve now.
    #[error(
        "the API server {server} answers {request} with {status} ({said}), tried {tries} times within {within:?}"
    )]
    Overloaded {
        /// Its address.
        server: String,
        /// What was asked.
        request: String,
        /// The last answer's status.
        status: u16,
        /// What the last answer said.
        said: String,
        /// How often.
        tries: u32,
        /// For how long.
        within: Duration,
    },
    /// The time that one ADD may spend on the API was used up before.
    #[error("no time is left to ask the API server {server} for {request}: other calls took {within:?}")]
    Late {
        /// Its address.
        server: String,
        /// What was to be asked.
        request: String,
        /// The time for all calls.
        within: Duration,
    },
    /// The server has another certificate than the one we are told to trust.
    #[error(
        "the certificate of the API server {server} is not trusted: is `certificate-authority` in {} that of this cluster?",
        kubeconfig.display()
    )]
    Untrusted {
        /// Its address.
        server: String,
        /// Where the certificate authority is named.
        kubeconfig: PathBuf,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// 401: the token or certificate is not accepted.
    #[error(
        "the API server {server} refuses netpath's credentials ({status} for {request}: {said}): they have expired, or \
         netpath was uninstalled: renew {} or take netpath's configuration off this node; pods without a network annotation still start",
        kubeconfig.display()
    )]
    Credentials {
        /// Its address.
        server: String,
        /// What was asked.
        request: String,
        /// 401.
        status: u16,
        /// The server's reason.
        said: String,
        /// Where the credentials are.
        kubeconfig: PathBuf,
    },
    /// 403: whoever we are may not do this.
    #[error(
        "the API server {server} does not allow netpath's credentials {request} ({status}: {said}): give the identity in {} \
         that right, or renew the file where netpath was installed anew; pods without a network annotation still start",
        kubeconfig.display()
    )]
    Forbidden {
        /// Its address.
        server: String,
        /// What was asked.
        request: String,
        /// 403.
        status: u16,
        /// The server's reason.
        said: String,
        /// Where the credentials are.
        kubeconfig: PathBuf,
    },
    /// The pod is gone, or another has its name.
    #[error("pod {namespace}/{name} is gone from the cluster, or was replaced meanwhile: {said}")]
    PodGone {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The server's reason.
        said: String,
    },
    /// Any other refusal.
    #[error("the API server {server} refuses {request} ({status}: {said})")]
    Refused {
        /// Its address.
        server: String,
        /// What was asked.
        request: String,
        /// The answer's status.
        status: u16,
        /// The server's reason.
        said: String,
    },
    /// An answer that cannot be read.
    #[error("the API server {server} answers {request} with something that is no {expected}")]
    Garbled {
        /// Its address.
        server: String,
        /// What was asked.
        request: String,
        /// What it should be.
        expected: &'static str,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl From<WholeError> for ClusterError {
    fn from(WholeError { what, path, source }: WholeError) -> Self {
        Self::Io { what, path, source }
    }
}

impl ClusterError {
    /// Own code of CNI error objects: the API server can be reached, and does not let us.
    pub const CODE: u32 = 142;

    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, path: path.to_owned(), source }
    }

    /// Code of the CNI error object.
    pub fn cni_code(&self) -> u32 {
        match self {
            Self::NoNad { .. } | Self::Kubeconfig { .. } => code::CONF,
            Self::Io { .. } => code::IO,
            Self::Yaml { .. } | Self::Object { .. } => code::DECODE,
            Self::Unreachable { .. } | Self::Overloaded { .. } | Self::Late { .. } | Self::Garbled { .. } => {
                code::TRY_AGAIN
            }
            Self::Untrusted { .. }
            | Self::Credentials { .. }
            | Self::Forbidden { .. }
            | Self::Refused { .. } => Self::CODE,
            Self::PodGone { .. } => 141,
        }
    }
}
