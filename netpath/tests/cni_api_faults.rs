//! An API server in trouble: what passes is waited out, what does not fails the pod, and says who is to do what.

#[path = "common/api.rs"]
mod api;
#[path = "common/api_site.rs"]
mod api_site;
#[path = "common/cni.rs"]
mod cni;
mod common;
#[path = "common/meta.rs"]
mod meta;

use std::net::TcpListener;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use api::{FakeApi, Fault, Times, kubeconfig};
use api_site::{ApiSite, plugin};
use cni::zoned;
use meta::{MetaSite, NOTHING};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use serde_json::json;

/// What comes of an ADD.
enum Outcome {
    /// It succeeds, and the pod's status is written.
    Done,
    /// It succeeds, and the status waits in the record.
    Pending,
    /// It fails with this code, saying this, and leaves nothing.
    Fails(u32, &'static str),
}

use Outcome::{Done, Fails, Pending};

/// What goes wrong, at which request, and what comes of it within how many seconds (at least, at most).
struct Case(&'static str, Fault, Times, Outcome, (u64, u64));

fn cases() -> Vec<Case> {
    use Fault::{CutOff, HalfJson, Huge, Instead, Reset, RetryAfter, Slow, Status};
    use Times::{Always, Once};
    let seconds = Duration::from_secs;
    // An ADD takes little, but the machine is shared with other tests.
    const SOON: (u64, u64) = (0, 8);
    const ALL: (u64, u64) = (8, 16);
    let (get, patch) = ("GET nads/a", "PATCH pods/p/status");
    vec![
        Case(get, Status(500), Once, Done, SOON),
        Case(get, Status(503), Once, Done, SOON),
        Case(get, RetryAfter(429, 2), Once, Done, (2, 10)),
        Case(
            get,
            RetryAfter(429, 60),
            Always,
            Fails(11, "answers GET network-attachment-definition web/a with 429"),
            SOON,
        ),
        Case(
            get,
            RetryAfter(503, u64::MAX),
            Always,
            Fails(11, "answers GET network-attachment-definition web/a with 503"),
            SOON,
        ),
        Case(get, Instead, Always, Fails(11, "is no NetworkAttachmentDefinition"), SOON),
        // To be asked again at once is no wish: it would be asked thousands of times.
        Case(get, RetryAfter(429, 0), Always, Fails(11, "with 429"), ALL),
        Case(get, Reset, Once, Done, SOON),
        Case(get, CutOff, Once, Done, SOON),
        Case(get, Status(410), Once, Done, SOON),
        Case(get, Slow(seconds(1)), Once, Done, (1, 9)),
        Case(get, HalfJson, Always, Fails(11, "is no JSON"), SOON),
        Case(get, Huge(5 << 20), Always, Fails(11, "is no object"), SOON),
        Case(get, Status(401), Always, Fails(142, "refuses netpath's credentials"), SOON),
        Case(
            get,
            Status(403),
            Always,
            Fails(142, "does not allow netpath's credentials GET network-attachment"),
            SOON,
        ),
        Case(
            get,
            Status(500),
            Always,
            Fails(11, "answers GET network-attachment-definition web/a with 500"),
            ALL,
        ),
        Case(get, Slow(seconds(60)), Always, Fails(11, "does not answer GET"), ALL),
        Case(patch, Status(500), Once, Done, SOON),
        Case(patch, Status(409), Once, Done, SOON),
        Case(patch, Reset, Once, Done, SOON),
        Case(patch, CutOff, Once, Done, SOON),
        Case(patch, RetryAfter(503, 1), Once, Done, (1, 9)),
        Case(patch, Status(409), Always, Pending, ALL),
        Case(patch, Status(500), Always, Pending, ALL),
        Case(patch, Slow(seconds(60)), Always, Pending, ALL),
        Case(patch, Status(403), Always, Pending, SOON),
        Case(patch, Status(400), Always, Pending, SOON),
        Case(patch, Status(404), Always, Fails(141, "is gone from the cluster"), SOON),
    ]
}

#[track_caller]
fn check(Case(request, fault, times, outcome, (least, most)): Case) {
    let site = ApiSite::new();
    let what = format!("{request}: {fault:?} {times:?}");
    site.api.fault(request, fault, times);
    let start = Instant::now();
    let call = site.meta.call("ADD", &site.conf("a"));
    let added = ["ADD first eth0", "ADD one net1"].map(str::to_owned).to_vec();
    match outcome {
        Done => {
            call.ok();
            assert!(site.api.status_text("web", "p").is_some(), "{what}");
            assert_eq!(site.meta.said(), added, "{what}");
            assert!(site.record().get("pending_status").is_none(), "{what}");
        }
        Pending => {
            call.ok();
            assert_eq!(site.api.status_text("web", "p"), None, "{what}");
            assert!(site.record()["pending_status"].as_str().unwrap().contains("web/a"), "{what}");
        }
        Fails(code, text) => {
            let said = call.fails(code, text);
            let asked = site.api.asked().len();
            assert!(asked < 40, "{what}: asked {asked} times");
            assert!(said.contains(&site.api.address.to_string()) || code == 141, "names the server: {said}");
            assert_eq!(site.meta.remembered(), NOTHING, "{what}");
        }
    }
    let took = start.elapsed();
    assert!((Duration::from_secs(least)..Duration::from_secs(most)).contains(&took), "{what}: took {took:?}");
}

#[test]
fn trouble_that_passes_is_waited_out_and_what_does_not_is_named() {
    // Those that wait for a deadline wait together.
    thread::scope(|scope| {
        let mut running = Vec::new();
        for case in cases() {
            running.push(scope.spawn(move || check(case)));
        }
        let failed = running.into_iter().filter_map(|it| it.join().err()).count();
        assert_eq!(failed, 0, "cases failed; what they said stands above");
    });
}

#[test]
fn where_nobody_listens_the_error_names_server_and_cause() {
    let site = ApiSite::new();
    let free = site.meta.site.node.within(|| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    site.kubeconfig(&kubeconfig(&format!("server: http://{free}"), "token: x"));
    let start = Instant::now();
    let said = site
        .meta
        .call("ADD", &site.conf("a"))
        .fails(11, &format!("API server http://{free} does not answer"));
    assert!(said.contains("refused"), "{said}");
    assert!((Duration::from_secs(8)..Duration::from_secs(16)).contains(&start.elapsed()));
    // A pod that asks for nothing does not notice.
    let start = Instant::now();
    site.meta.call("ADD", &site.conf("")).id("c2").ok();
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_policed_network_that_cannot_be_told_of_is_taken_back() {
    let site = ApiSite::new();
    site.api.nad("web", "a", &zoned(json!({})));
    site.api.fault("PATCH", Fault::Status(403), Times::Always);
    let conf = site.conf("a");
    site.meta.call("ADD", &conf).fails(142, "does not allow netpath's credentials PATCH");
    assert_eq!((site.meta.links(), site.meta.remembered()), (vec!["lo".to_owned()], vec![]));
    assert!(site.meta.site.rows().is_empty());
    // The administrator's default is a zone like any other.
    site.api.nad("web", "a", &cni::conf(json!({})));
    site.meta.site.masters(r#"{"eno1": {"zone": {"local": ["10.9.0.0/24"]}}}"#);
    site.meta.call("ADD", &conf).fails(142, "does not allow netpath's credentials PATCH");
    site.meta.site.masters("{}");
    site.meta.call("ADD", &conf).ok();
    assert!(site.record()["pending_status"].is_string());
    site.meta.call("DEL", &conf).ok();
}

#[test]
fn masters_json_bounds_networks_of_the_api_by_their_namespace() {
    let site = ApiSite::new();
    for namespace in ["web", "infra"] {
        site.api.nad(namespace, "a", &zoned(json!({})));
    }
    let zone = r#""zone": {"local": ["10.9.0.0/24"]}"#;
    site.meta
        .site
        .masters(&format!(r#"{{"eno1": {{{zone}, "nadNamespaces": ["infra"], "podNamespaces": ["web"]}}}}"#));
    site.meta.call("ADD", &site.conf("a")).fails(105, "infra");
    site.meta.call("ADD", &site.conf("infra/a")).ok();
    site.meta.call("DEL", &site.conf("infra/a")).ok();
    site.meta.site.masters(&format!(r#"{{"eno1": {{{zone}, "podNamespaces": ["shop"]}}}}"#));
    site.meta.call("ADD", &site.conf("infra/a")).fails(105, "shop");
    // The same for a plugin that is executed.
    site.api.nad("web", "b", &json!({"cniVersion": "1.0.0", "type": "one", "master": "eno1"}));
    site.meta.call("ADD", &site.conf("b")).fails(105, "shop");
    assert_eq!(site.meta.remembered(), NOTHING);
}

/// An authority, a server's certificate of it for 127.0.0.1, and a client's.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    /// Certificate and key.
    fn issue(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        (certificate, key)
    }

    /// A server with a certificate for `name`; where `clients` is set it demands theirs.
    fn server(&self, name: &str, clients: Option<&Authority>) -> Arc<rustls::ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let (certificate, key) = self.issue(name);
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions();
        let builder = match clients {
            None => builder.unwrap().with_no_client_auth(),
            Some(authority) => {
                let mut roots = rustls::RootCertStore::empty();
                roots.add(authority.issuer.der().clone()).unwrap();
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
                builder.unwrap().with_client_cert_verifier(verifier)
            }
        };
        Arc::new(builder.with_single_cert(vec![certificate.der().clone()], key).unwrap())
    }
}

/// A node before a server with TLS.
fn tls_site(server: Arc<rustls::ServerConfig>) -> ApiSite {
    let meta = MetaSite::new();
    let api = FakeApi::with_tls(&meta.site.node, Some(server));
    api.pod("web", "p", "u1", json!({}));
    api.nad("web", "a", &plugin("one"));
    ApiSite { meta, api }
}

#[test]
fn the_server_is_the_one_whose_authority_is_named() {
    let (own, other) = (Authority::new(), Authority::new());
    let site = tls_site(own.server("127.0.0.1", None));
    // Multus writes an IPv4 address in brackets.
    let server = format!("server: https://[127.0.0.1]:{}", site.api.address.port());
    let data = |authority: &Authority| {
        let pem = netpath::spec::base64::encode(authority.issuer.pem().as_bytes());
        kubeconfig(&format!("{server}\ncertificate-authority-data: {pem}"), "token: x")
    };
    let conf = site.conf("a");
    site.kubeconfig(&data(&own));
    site.meta.call("ADD", &conf).ok();
    assert!(site.api.status_text("web", "p").is_some());
    site.meta.call("DEL", &conf).ok();

    // That is not tried again and again.
    let start = Instant::now();
    site.kubeconfig(&data(&other));
    let said = site.meta.call("ADD", &conf).fails(142, "certificate of the API server https://127.0.0.1:");
    assert!(said.contains("invalid peer certificate") && said.contains("etc/kubeconfig"), "{said}");
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    site.kubeconfig(&kubeconfig(&format!("{server}\ninsecure-skip-tls-verify: true"), "token: x"));
    site.meta.call("ADD", &conf).ok();

    // Of the right authority, for another name.
    let site = tls_site(own.server("kubernetes", None));
    let pem = site.meta.site.root.join("etc/ca.pem");
    site.meta.site.write(&pem, &own.issuer.pem());
    let server =
        format!("server: https://127.0.0.1:{}\ncertificate-authority: ca.pem", site.api.address.port());
    site.kubeconfig(&kubeconfig(&server, "token: x"));
    site.meta.call("ADD", &conf).fails(142, "certificate of the API server");
    assert_eq!(site.meta.remembered(), NOTHING);
}

#[test]
fn a_client_certificate_says_who_we_are() {
    let authority = Authority::new();
    let site = tls_site(authority.server("127.0.0.1", Some(&authority)));
    let (certificate, key) = authority.issue("netpath");
    let (_, foreign) = authority.issue("other");
    let root = &site.meta.site.root;
    for (name, pem) in [
        ("ca.pem", authority.issuer.pem()),
        ("own.pem", certificate.pem()),
        ("own.key", key.serialize_pem()),
        ("foreign.key", foreign.serialize_pem()),
    ] {
        site.meta.site.write(&root.join("etc").join(name), &pem);
    }
    let server = format!("server: https://{}\ncertificate-authority: ca.pem", site.api.address);
    site.kubeconfig(&kubeconfig(&server, "client-certificate: own.pem\nclient-key: own.key"));
    site.meta.call("ADD", &site.conf("a")).ok();
    site.kubeconfig(&kubeconfig(&server, "client-certificate: own.pem\nclient-key: foreign.key"));
    site.meta
        .call("ADD", &site.conf("a"))
        .id("c2")
        .fails(7, "certificate and key must be PEM, and belong to each other");
}
