//! `/livez`, `/readyz` and `/metrics`.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue, SERVER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// The header `Server` of every answer: kube-proxy's answers look the same otherwise.
pub const PROGRAM: &str = concat!("weir/", env!("CARGO_PKG_VERSION"));
/// What `/metrics` is. A Prometheus 3 that is not told takes nothing.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// What the answers depend on.
#[derive(Clone, Debug, Default)]
pub struct Health {
    ready: Arc<AtomicBool>,
}

impl Health {
    /// Says whether this process does its work, or stands by for it.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }
}

/// Serves until the process ends; `metrics` renders what `/metrics` shows.
pub async fn serve(listener: TcpListener, health: Health, metrics: impl Fn() -> String + Clone + Send + 'static) {
    answer(listener, move |method, path| respond(method, path, &health, &metrics)).await;
}

/// Answers every request by its method and path. Connections end with this future.
pub async fn answer<R>(listener: TcpListener, respond: R)
where
    R: Fn(&Method, &str) -> Response<Full<Bytes>> + Clone + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely; a pause keeps this from spinning.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                continue;
            }
        };
        let respond = respond.clone();
        connections.spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let mut response = respond(request.method(), request.uri().path());
                response.headers_mut().insert(SERVER, HeaderValue::from_static(PROGRAM));
                async move { Ok::<_, Infallible>(response) }
            });
            // With a timer, hyper ends a connection that sends no request for 30 s.
            let served = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
            if let Err(error) = served.await {
                tracing::debug!(%error, "a connection ended early");
            }
        });
    }
}

fn respond(method: &Method, path: &str, health: &Health, metrics: &impl Fn() -> String) -> Response<Full<Bytes>> {
    let ready = health.ready.load(Ordering::Relaxed);
    let (status, body) = match (method, path) {
        (&Method::GET, "/livez") => (StatusCode::OK, "ok\n".to_owned()),
        (&Method::GET, "/readyz") if ready => (StatusCode::OK, "ok\n".to_owned()),
        (&Method::GET, "/readyz") => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n".to_owned()),
        (&Method::GET, "/metrics") => (StatusCode::OK, metrics()),
        _ => (StatusCode::NOT_FOUND, "not found\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let kind = if path == "/metrics" { OPEN_METRICS } else { TEXT };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes() {
        let health = Health::default();
        let status = |path: &str| respond(&Method::GET, path, &health, &String::new).status();
        assert_eq!(status("/livez"), StatusCode::OK);
        assert_eq!(status("/readyz"), StatusCode::SERVICE_UNAVAILABLE);
        health.set_ready(true);
        assert_eq!(status("/readyz"), StatusCode::OK);
        assert_eq!(status("/metrics"), StatusCode::OK);
        assert_eq!(status("/"), StatusCode::NOT_FOUND);
    }
}
