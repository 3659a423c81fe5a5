//! Metrics and health, for Prometheus and the kubelet.

use std::{convert::Infallible, sync::Arc, sync::Mutex, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, header::CONTENT_TYPE, server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use super::{Shared, metrics::Scraper, watch::What};

/// What Prometheus asks for by default.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";
/// Who says nothing for so long is let go.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections at a time: the port is open to the network.
const CONNECTIONS: usize = 64;

/// Serves for as long as the process lives.
pub(super) async fn serve(listener: TcpListener, shared: &Arc<Shared>) {
    let scraper = Arc::new(Mutex::new(Scraper::default()));
    let room = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (shared, scraper) = (Arc::clone(shared), Arc::clone(&scraper));
        tokio::spawn(async move {
            let answer = service_fn(|request| {
                let (shared, scraper) = (Arc::clone(&shared), Arc::clone(&scraper));
                // Reading the kernel's tables blocks, and takes a while where there are many pods.
                let answer = tokio::task::spawn_blocking(move || answer(&shared, &scraper, &request));
                async move {
                    let failed = |_| say(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "see the log\n".to_owned());
                    Ok::<_, Infallible>(answer.await.unwrap_or_else(failed))
                }
            });
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
            if let Err(error) = server.serve_connection(TokioIo::new(stream), answer).await {
                tracing::debug!(%error, "a connection broke");
            }
            drop(place);
        });
    }
}

fn answer(shared: &Shared, scraper: &Mutex<Scraper>, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return say(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET /metrics, /healthz or /readyz\n".to_owned());
    }
    match request.uri().path() {
        "/metrics" => {
            let mut scraper = scraper.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            say(StatusCode::OK, OPENMETRICS, scraper.text(shared))
        }
        // Whoever answers lives; what it cannot do is no reason to start it again.
        "/healthz" => say(StatusCode::OK, TEXT, "ok\n".to_owned()),
        "/readyz" => {
            let missing = missing(shared);
            match missing.is_empty() {
                true => say(StatusCode::OK, TEXT, "ok\n".to_owned()),
                false => say(StatusCode::SERVICE_UNAVAILABLE, TEXT, missing.join("\n") + "\n"),
            }
        }
        _ => say(StatusCode::NOT_FOUND, TEXT, "GET /metrics, /healthz or /readyz\n".to_owned()),
    }
}

/// Why the agent is not ready, a line each.
fn missing(shared: &Shared) -> Vec<String> {
    let report = shared.report();
    let mut missing = Vec::new();
    if let Some(path) = &report.disabled {
        missing.push(format!(
            "netpath is uninstalled on this node: {} says so; remove it to have it back",
            path.display()
        ));
    }
    if report.passes == 0 {
        missing.push("the node has not been looked at yet".to_owned());
    }
    if shared.options.networks.is_none() {
        for what in What::ALL {
            match report.watches.get(&what) {
                Some(None) => {}
                Some(Some(error)) => missing.push(format!("{} cannot be watched: {error}", what.label())),
                None => missing.push(format!("{} are not listed yet", what.label())),
            }
        }
    }
    missing.extend(report.errors.iter().map(|(what, error)| format!("{what}: {error}")));
    // A line each, whatever names and messages of others are in it.
    let shown = |text: &String| -> String {
        let text = text.chars().take(2000);
        text.flat_map(|it| if it.is_control() { it.escape_default().collect() } else { vec![it] }).collect()
    };
    missing.iter().map(shown).collect()
}

fn say(status: StatusCode, content_type: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}
