//! The servers on healthCheckNodePorts: what a load balancer asks about one Service of policy Local.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use jiff::Timestamp;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::admin;
use crate::cluster::reason::Reason;
use crate::model::id::ServiceKey;
use crate::node::health::{self, NodeHealth};

/// Reason of the Event about a port that cannot be listened on (P50).
pub const REASON: Reason = Reason::FailedToStartServiceHealthcheck;

static WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// What one healthCheckNodePort answers about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The Service.
    pub service: ServiceKey,
    /// Its UID, for Events.
    pub uid: String,
    /// Distinct addresses of its local ready endpoints, over all ports (P48).
    pub local_endpoints: usize,
}

/// A port that could not be listened on. It is tried again at the next [`HealthCheckPorts::reconcile`].
#[derive(Debug)]
pub struct BindFailure {
    /// The Service whose port it is.
    pub service: ServiceKey,
    /// Its UID.
    pub uid: String,
    address: SocketAddr,
    error: io::Error,
}

impl fmt::Display for BindFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, error, .. } = self;
        write!(
            f,
            "spec.healthCheckNodePort: this node cannot listen on {address}: {error}; load balancers take it for unhealthy"
        )
    }
}

type Shared = Arc<Mutex<HealthCheck>>;

/// The open ports.
#[derive(Debug)]
pub struct HealthCheckPorts {
    node: NodeHealth,
    checks: BTreeMap<u16, Shared>,
    listeners: BTreeMap<SocketAddr, JoinHandle<()>>,
}

impl HealthCheckPorts {
    /// No open port yet; answers depend on the node's health as well.
    pub const fn new(node: NodeHealth) -> Self {
        Self { node, checks: BTreeMap::new(), listeners: BTreeMap::new() }
    }

    /// Opens and closes listeners until exactly these ports are open on these addresses. A port that stays open answers
    /// with the new content at once, without a moment of being closed.
    pub async fn reconcile(
        &mut self,
        addresses: &BTreeSet<IpAddr>,
        desired: BTreeMap<u16, HealthCheck>,
    ) -> Vec<BindFailure> {
        // First the old ones: the unspecified address cannot be bound beside another.
        let (ports, gone): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut self.listeners)
            .into_iter()
            .partition(|(at, _)| addresses.contains(&at.ip()) && desired.contains_key(&at.port()));
        self.listeners = ports;
        for listener in gone.into_values() {
            close(listener).await;
        }
        self.checks.retain(|port, _| desired.contains_key(port));

        let mut failures = Vec::new();
        for (port, check) in desired {
            for ip in addresses {
                let address = SocketAddr::new(*ip, port);
                if self.listeners.contains_key(&address) {
                    continue;
                }
                match TcpListener::bind(address).await {
                    Ok(listener) => self.open(address, listener, &check),
                    Err(error) => {
                        let (service, uid) = (check.service.clone(), check.uid.clone());
                        failures.push(BindFailure { service, uid, address, error });
                    }
                }
            }
            if let Some(shared) = self.checks.get(&port) {
                *shared.lock().unwrap_or_else(PoisonError::into_inner) = check;
            }
        }
        failures
    }

    fn open(&mut self, address: SocketAddr, listener: TcpListener, check: &HealthCheck) {
        let check = self.checks.entry(address.port()).or_insert_with(|| Arc::new(Mutex::new(check.clone())));
        let (check, node) = (Arc::clone(check), self.node.clone());
        let serve = admin::answer(listener, move |_, _| {
            let check = check.lock().unwrap_or_else(PoisonError::into_inner);
            respond(&check, node.serves(Timestamp::now()))
        });
        self.listeners.insert(address, tokio::spawn(serve));
    }
}

impl Drop for HealthCheckPorts {
    fn drop(&mut self) {
        self.listeners.values().for_each(JoinHandle::abort);
    }
}

/// Returns once the socket is closed, so that the port can be bound again.
async fn close(listener: JoinHandle<()>) {
    listener.abort();
    // The outcome is the cancellation.
    let _ = listener.await;
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    service: Named<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct Named<'a> {
    namespace: &'a str,
    name: &'a str,
}

fn respond(check: &HealthCheck, healthy: bool) -> Response<Full<Bytes>> {
    let HealthCheck { service, uid: _, local_endpoints } = check;
    let code = if healthy && *local_endpoints > 0 { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let service = Named { namespace: &service.namespace, name: &service.name };
    let body = Body { service, local_endpoints: *local_endpoints, service_proxy_healthy: healthy };
    let mut response = health::json(code, &body);
    response.headers_mut().insert(&WEIGHT, HeaderValue::from(*local_endpoints));
    response
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::family::Family;
    use crate::node::health::tests::ask;

    fn check(name: &str, local_endpoints: usize) -> HealthCheck {
        HealthCheck { service: ServiceKey::new("shop", name), uid: format!("uid-{name}"), local_endpoints }
    }

    fn loopback() -> BTreeSet<IpAddr> {
        BTreeSet::from([IpAddr::from([127, 0, 0, 1])])
    }

    fn node() -> NodeHealth {
        let health = NodeHealth::new([Family::Ipv4], Duration::from_mins(1));
        health.applied(Family::Ipv4, Timestamp::now());
        health
    }

    async fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
    }

    async fn status(port: u16) -> Option<String> {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        ask(address, "GET", "/").await.ok().map(|(status, _, _)| status.split(' ').nth(1).unwrap().to_owned())
    }

    #[tokio::test]
    async fn p46_p47_any_path_and_method_is_answered() {
        let port = free_port().await;
        let mut ports = HealthCheckPorts::new(node());
        assert!(ports.reconcile(&loopback(), BTreeMap::from([(port, check("order", 2))])).await.is_empty());
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        for (method, path) in [("GET", "/"), ("GET", "/healthz?x"), ("POST", "/any/path"), ("OPTIONS", "*")] {
            let (status, headers, body) = ask(address, method, path).await.unwrap();
            assert_eq!(status, "HTTP/1.1 200 OK");
            assert!(headers.contains("content-type: application/json"), "{headers}");
            assert!(headers.contains("x-content-type-options: nosniff"), "{headers}");
            assert!(headers.contains("x-load-balancing-endpoint-weight: 2"), "{headers}");
            let expected =
                r#"{"service":{"namespace":"shop","name":"order"},"localEndpoints":2,"serviceProxyHealthy":true}"#;
            assert_eq!(body, expected);
        }
    }

    #[tokio::test]
    async fn p48_p49_the_code_follows_endpoints_and_health_but_not_eligibility() {
        let (port, node) = (free_port().await, node());
        let mut ports = HealthCheckPorts::new(node.clone());
        for (endpoints, code) in [(1, "200"), (0, "503"), (3, "200")] {
            ports.reconcile(&loopback(), BTreeMap::from([(port, check("order", endpoints))])).await;
            assert_eq!(status(port).await.as_deref(), Some(code));
        }
        node.set_eligible(false);
        assert_eq!(status(port).await.as_deref(), Some("200"));
        node.queued(Family::Ipv4, Timestamp::UNIX_EPOCH);
        assert_eq!(status(port).await.as_deref(), Some("503"));
    }

    #[tokio::test]
    async fn p50_a_changed_port_closes_the_old_listener_and_a_service_may_take_over_a_port() {
        let (first, second) = (free_port().await, free_port().await);
        let mut ports = HealthCheckPorts::new(node());
        ports.reconcile(&loopback(), BTreeMap::from([(first, check("order", 1))])).await;
        ports.reconcile(&loopback(), BTreeMap::from([(second, check("order", 1))])).await;
        assert_eq!((status(first).await, status(second).await.as_deref()), (None, Some("200")));
        ports.reconcile(&loopback(), BTreeMap::from([(second, check("stock", 0))])).await;
        assert_eq!(status(second).await.as_deref(), Some("503"));
        ports.reconcile(&BTreeSet::new(), BTreeMap::from([(second, check("stock", 0))])).await;
        assert_eq!(status(second).await, None);
    }

    #[tokio::test]
    async fn p50_a_port_in_use_is_told_and_tried_again() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = taken.local_addr().unwrap().port();
        let desired = BTreeMap::from([(port, check("order", 1))]);
        let mut ports = HealthCheckPorts::new(node());
        let failures = ports.reconcile(&loopback(), desired.clone()).await;
        let [failure] = &failures[..] else { panic!("{failures:?}") };
        assert_eq!((&failure.service, &failure.uid[..]), (&ServiceKey::new("shop", "order"), "uid-order"));
        assert!(failure.to_string().contains(&format!("127.0.0.1:{port}")), "{failure}");
        drop(taken);
        assert!(ports.reconcile(&loopback(), desired).await.is_empty());
        assert_eq!(status(port).await.as_deref(), Some("200"));
    }
}
