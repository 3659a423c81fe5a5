//! Requests to the API server: one connection, one budget of time, and tries until it is used up.

use std::cell::{Cell, OnceCell};
use std::error::Error;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use serde_json::Value;
use ureq::config::Config;
use ureq::http::{Method, Request as HttpRequest, Uri, header};
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, Proxy};

use super::super::ClusterError;
use super::kubeconfig::Kubeconfig;
use crate::root::Root;

/// The time that all calls of one ADD may take together.
pub(super) const BUDGET: Duration = Duration::from_secs(10);
/// The time of one try: a connection that died must not take all of it.
const TRY: Duration = Duration::from_secs(4);
/// The pause after a first failed try; it doubles.
const PAUSE: Duration = Duration::from_millis(100);
/// The longest pause that we choose ourselves.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// What is read of an answer at most: etcd takes no object that is half as large.
const LIMIT: u64 = 4 << 20;

/// One request.
pub(super) struct Request<'a> {
    pub(super) method: Method,
    /// Path and query, as they stand behind the server's address.
    pub(super) path: &'a str,
    /// What the answer may be, where it matters.
    pub(super) accept: &'static str,
    /// What the body is.
    pub(super) content_type: &'static str,
    pub(super) body: Vec<u8>,
    /// What is asked, for people.
    pub(super) what: String,
}

/// An answer that is not one of trouble that passes.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

/// How a single try failed.
enum Trouble {
    /// Nothing, or nothing whole, came back.
    Lost(Box<dyn Error + Send + Sync>),
    /// The server has not the certificate that it should have.
    Untrusted(Box<dyn Error + Send + Sync>),
    /// More came than anybody sends.
    TooLong,
}

/// The API server of one kubeconfig. Nothing is read before the first request.
pub(super) struct Client {
    root: Root,
    kubeconfig: PathBuf,
    connection: OnceCell<Connection>,
    /// When the ADD has to be over.
    until: Instant,
    left: Cell<Duration>,
}

struct Connection {
    agent: Agent,
    server: String,
    authorization: Option<String>,
}

impl Client {
    pub(super) fn new(root: &Root, kubeconfig: PathBuf, until: Instant) -> Self {
        Self { root: root.clone(), kubeconfig, connection: OnceCell::new(), until, left: Cell::new(BUDGET) }
    }

    pub(super) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The server's address, for people.
    pub(super) fn server(&self) -> String {
        self.connection.get().map(|it| it.server.clone()).unwrap_or_default()
    }

    /// Asks until there is an answer, or no time is left for all calls together.
    pub(super) fn ask(&self, request: &Request<'_>) -> Result<Answer, ClusterError> {
        let connection = self.connection()?;
        let start = Instant::now();
        let deadline = self.until.min(start + self.left.get());
        let answer = self.ask_until(connection, request, deadline);
        self.left.set(self.left.get().saturating_sub(start.elapsed()));
        answer
    }

    /// Asks once, and gives up after `within`.
    pub(super) fn ask_once(&self, request: &Request<'_>, within: Duration) -> Result<Answer, ClusterError> {
        let connection = self.connection()?;
        let tried = connection.try_once(request, within).map(|(answer, _)| answer);
        tried.map_err(|trouble| self.failed(request, trouble, 1, within))
    }

    fn ask_until(
        &self,
        connection: &Connection,
        request: &Request<'_>,
        deadline: Instant,
    ) -> Result<Answer, ClusterError> {
        let (start, mut pause) = (Instant::now(), PAUSE);
        let mut tries = 0;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.late(request));
            }
            tries += 1;
            let (error, wish) = match connection.try_once(request, left.min(TRY)) {
                Ok((answer, wish)) if is_passing(&request.method, answer.status) => {
                    (self.overloaded(request, &answer, tries, start.elapsed()), wish)
                }
                Ok((answer, _)) => return Ok(answer),
                Err(trouble) => {
                    let is_lost = matches!(trouble, Trouble::Lost(_));
                    let error = self.failed(request, trouble, tries, start.elapsed());
                    match is_lost {
                        true => (error, None),
                        false => return Err(error),
                    }
                }
            };
            // A wish to be asked again at once is none, and all who were told the same must not come at the same time.
            let wait = wish.unwrap_or_default().saturating_add(jittered(pause));
            // The wish may be longer than there are moments.
            if deadline.saturating_duration_since(Instant::now()) <= wait {
                return Err(error);
            }
            tracing::debug!(error = ?error, "the API server is asked again");
            rest(wait);
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }

    fn overloaded(
        &self,
        request: &Request<'_>,
        answer: &Answer,
        tries: u32,
        within: Duration,
    ) -> ClusterError {
        ClusterError::Overloaded {
            server: self.server(),
            request: request.what.clone(),
            status: answer.status,
            said: said(&answer.body),
            tries,
            within,
        }
    }

    fn late(&self, request: &Request<'_>) -> ClusterError {
        ClusterError::Late { server: self.server(), request: request.what.clone(), within: BUDGET }
    }

    fn failed(&self, request: &Request<'_>, trouble: Trouble, tries: u32, within: Duration) -> ClusterError {
        let (server, what) = (self.server(), request.what.clone());
        match trouble {
            Trouble::Lost(source) => {
                ClusterError::Unreachable { server, request: what, tries, within, source }
            }
            Trouble::Untrusted(source) => {
                ClusterError::Untrusted { server, kubeconfig: self.kubeconfig.clone(), source }
            }
            Trouble::TooLong => ClusterError::Garbled {
                server,
                request: what,
                expected: "object",
                source: Box::new(ureq::Error::BodyExceedsLimit(LIMIT)),
            },
        }
    }

    fn connection(&self) -> Result<&Connection, ClusterError> {
        if let Some(connection) = self.connection.get() {
            return Ok(connection);
        }
        let connection = Connection::new(Kubeconfig::read(&self.root, &self.kubeconfig)?)?;
        Ok(self.connection.get_or_init(|| connection))
    }
}

impl Connection {
    fn new(conf: Kubeconfig) -> Result<Self, ClusterError> {
        let wrong = |field: &str, fix, source: Box<dyn Error + Send + Sync>| ClusterError::Kubeconfig {
            path: conf.path.clone(),
            field: field.to_owned(),
            fix,
            source: Some(source),
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = TlsConfig::builder().unversioned_rustls_crypto_provider(provider.clone());
        tls = match &conf.authorities {
            Some(pem) => tls.root_certs(RootCerts::from(certificates(pem))),
            None => tls.disable_verification(true),
        };
        if let Some((certificate, key)) = &conf.client {
            let fix = "certificate and key must be PEM, and belong to each other";
            let client = client_cert(certificate, key, &provider);
            tls = tls.client_cert(Some(client.map_err(|error| wrong("client-certificate", fix, error))?));
        }
        let proxy = conf.proxy.as_deref().map(Proxy::new).transpose();
        let proxy = proxy.map_err(|error| {
            wrong("proxy-url", "write the address of a proxy for HTTP, or none", Box::new(error))
        })?;
        let config = Agent::config_builder()
            .tls_config(tls.build())
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("netpath/", env!("CARGO_PKG_VERSION")))
            // What the runtime's own environment says of proxies is about images.
            .proxy(proxy)
            .build();
        Ok(Self {
            agent: Agent::with_parts(config, DefaultConnector::default(), Addresses::default()),
            server: conf.server,
            authorization: conf.authorization,
        })
    }

    /// The answer, and how long the server wants to be left alone.
    fn try_once(
        &self,
        request: &Request<'_>,
        within: Duration,
    ) -> Result<(Answer, Option<Duration>), Trouble> {
        let mut http = HttpRequest::builder()
            .method(request.method.clone())
            .uri(format!("{}{}", self.server, request.path))
            .header(header::ACCEPT, request.accept);
        if let Some(authorization) = &self.authorization {
            http = http.header(header::AUTHORIZATION, authorization);
        }
        let invalid = |error: ureq::http::Error| Trouble::Lost(Box::new(error));
        let response = match request.body.is_empty() {
            true => self.agent.run(timed(&self.agent, http.body(()).map_err(invalid)?, within)),
            false => {
                let http = http.header(header::CONTENT_TYPE, request.content_type);
                let http = http.body(request.body.clone()).map_err(invalid)?;
                self.agent.run(timed(&self.agent, http, within))
            }
        };
        let mut response = response.map_err(trouble)?;
        let after = response.headers().get(header::RETRY_AFTER).and_then(|it| it.to_str().ok());
        let after = after.and_then(|it| it.trim().parse().ok()).map(Duration::from_secs);
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(LIMIT).read_to_vec().map_err(trouble)?;
        Ok((Answer { status, body }, after))
    }
}

/// Looks names up, with a thread that the deadline does not wait for. An address needs none.
#[derive(Debug, Default)]
struct Addresses(DefaultResolver);

impl Resolver for Addresses {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let Some(address) = address(uri) else { return self.0.resolve(uri, config, timeout) };
        let mut one = self.empty();
        one.push(address);
        Ok(one)
    }
}

/// The address that a server is named by, if it is named by one.
fn address(uri: &Uri) -> Option<SocketAddr> {
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']');
    let port = match (uri.port_u16(), uri.scheme_str()) {
        (Some(port), _) => port,
        (None, Some("http")) => 80,
        (None, Some("https")) => 443,
        (None, _) => return None,
    };
    Some(SocketAddr::new(host.parse().ok()?, port))
}

/// The request with a deadline for all of it, from the connection to the end of the answer.
fn timed<S: ureq::AsSendBody>(agent: &Agent, http: HttpRequest<S>, within: Duration) -> HttpRequest<S> {
    agent.configure_request(http).timeout_global(Some(within)).build()
}

/// Trouble that passes: the server is overloaded, on its way up or down, or others write the same object.
fn is_passing(method: &Method, status: u16) -> bool {
    matches!(status, 429 | 500 | 502 | 503 | 504) || (status == 409 && *method == Method::PATCH)
}

fn trouble(error: ureq::Error) -> Trouble {
    if matches!(error, ureq::Error::BodyExceedsLimit(_)) {
        return Trouble::TooLong;
    }
    match is_untrusted(&error) {
        true => Trouble::Untrusted(Box::new(error)),
        false => Trouble::Lost(Box::new(error)),
    }
}

/// Whether the server's certificate is what is wrong.
fn is_untrusted(error: &ureq::Error) -> bool {
    let of_tls = |error: &rustls::Error| matches!(error, rustls::Error::InvalidCertificate(_));
    match error {
        ureq::Error::Rustls(error) => of_tls(error),
        ureq::Error::Io(error) if error.kind() == ErrorKind::InvalidData => {
            error.get_ref().and_then(|it| it.downcast_ref()).is_some_and(of_tls)
        }
        _ => false,
    }
}

fn certificates(pem: &[u8]) -> Vec<Certificate<'static>> {
    let certificate = |item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    };
    parse_pem(pem).filter_map(certificate).collect()
}

/// The client's certificate, tried out: the library takes one that does not fit for a mistake in the program.
fn client_cert(
    certificate: &[u8],
    key: &[u8],
    provider: &CryptoProvider,
) -> Result<ClientCert, Box<dyn Error + Send + Sync>> {
    let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<Vec<_>, _>>()?;
    if chain.is_empty() {
        return Err(io::Error::new(ErrorKind::InvalidData, "there is no certificate in it").into());
    }
    CertifiedKey::from_der(chain, PrivateKeyDer::from_pem_slice(key)?, provider)?;
    Ok(ClientCert::new_with_certs(&certificates(certificate), PrivateKey::from_pem(key)?))
}

/// Five hundred nodes that fail together must not try again together.
fn jittered(pause: Duration) -> Duration {
    let noise = std::process::id().wrapping_mul(2_654_435_761) >> 24;
    pause * 3 / 4 + pause * noise / 512
}

/// Waits, whoever wakes this thread.
fn rest(pause: Duration) {
    let until = Instant::now() + pause;
    while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        thread::park_timeout(left);
    }
}

/// What an answer says, in one line: the message of a `Status`, else how it begins.
pub(super) fn said(body: &[u8]) -> String {
    let status = serde_json::from_slice::<Value>(body).ok();
    let message = status.as_ref().and_then(|it| it["message"].as_str()).map(str::to_owned);
    let text = message.unwrap_or_else(|| String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned());
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_named_by_its_address_is_not_looked_up() {
        let of = |text: &str| address(&text.parse().unwrap()).map(|it| it.to_string());
        assert_eq!(of("https://10.96.0.1:6443/api"), Some("10.96.0.1:6443".to_owned()));
        assert_eq!(of("https://10.96.0.1/api"), Some("10.96.0.1:443".to_owned()));
        assert_eq!(of("http://[fd00::1]/api"), Some("[fd00::1]:80".to_owned()));
        assert_eq!(of("https://kubernetes:443/"), None);
    }
}
