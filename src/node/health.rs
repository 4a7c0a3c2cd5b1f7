//! `/healthz` and `/livez` of a node: what load balancers and the kubelet are told.
//!
//! Both say whether changes reach the kernel in time; `/healthz` also says whether the node is still wanted. Time enters
//! as an argument everywhere but in [`serve`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::{Response, StatusCode};
use jiff::Timestamp;
use serde::Serialize;
use tokio::net::TcpListener;

use crate::admin;
use crate::model::family::Family;

/// How far one family's rules are.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    /// Since when a change waits that no sync has taken up.
    queued: Option<Timestamp>,
    /// Since when the oldest change waits that the running sync has taken up.
    taken: Option<Timestamp>,
    /// When changes last reached the kernel.
    done: Option<Timestamp>,
    /// Whether an earlier process has left its rules.
    inherited: bool,
}

impl Progress {
    fn oldest_wait(self) -> Option<Timestamp> {
        self.taken.or(self.queued)
    }
}

#[derive(Debug)]
struct State {
    families: BTreeMap<Family, Progress>,
    eligible: bool,
}

/// The node's health, shared by the sync loop and the servers.
#[derive(Clone, Debug)]
pub struct NodeHealth {
    state: Arc<Mutex<State>>,
    patience: Duration,
}

impl NodeHealth {
    /// Health of a node that serves these families. A change may wait for `patience`, twice the sync period by the
    /// contract (P52). Until something else is known, all is well: a node that starts is alive, and is not on its way out.
    pub fn new(families: impl IntoIterator<Item = Family>, patience: Duration) -> Self {
        let families = families.into_iter().map(|family| (family, Progress::default())).collect();
        Self { state: Arc::new(Mutex::new(State { families, eligible: true })), patience }
    }

    /// A change waits to be applied.
    pub fn queued(&self, family: Family, now: Timestamp) {
        self.update(family, |progress| progress.queued = progress.queued.or(Some(now)));
    }

    /// A sync takes up all changes that wait.
    pub fn taken(&self, family: Family) {
        self.update(family, |progress| progress.taken = progress.taken.or(progress.queued.take()));
    }

    /// The sync reached the kernel. Changes that came while it ran still wait.
    pub fn applied(&self, family: Family, now: Timestamp) {
        self.update(family, |progress| (progress.taken, progress.done) = (None, Some(now)));
    }

    /// There are rules of an earlier process: the node forwards already, if not what is new.
    pub fn inherited(&self, family: Family) {
        self.update(family, |progress| progress.inherited = true);
    }

    /// The sync failed: what it took up waits on, for as long as it has waited already.
    pub fn failed(&self, family: Family, now: Timestamp) {
        self.update(family, |progress| progress.queued = progress.taken.take().or(progress.queued).or(Some(now)));
    }

    /// Whether load balancers should use this node (see [`super::eligibility`]).
    pub fn set_eligible(&self, eligible: bool) {
        self.lock().eligible = eligible;
    }

    /// Whether changes reach the kernel in time, in every family.
    pub fn is_healthy(&self, now: Timestamp) -> bool {
        self.lock().families.values().all(|progress| self.is_in_time(*progress, now))
    }

    /// Whether load balancers may send connections here, but for the node's eligibility.
    pub fn serves(&self, now: Timestamp) -> bool {
        self.is_healthy(now) && self.has_rules()
    }

    fn has_rules(&self) -> bool {
        self.lock().families.values().all(|progress| progress.done.is_some() || progress.inherited)
    }

    /// The answer of `/healthz` (P51–P53).
    pub fn healthz(&self, now: Timestamp) -> (StatusCode, Body) {
        let mut body = self.body(now);
        let eligible = self.lock().eligible;
        body.node_eligible = Some(eligible);
        // A node that has not programmed anything yet would drop what a load balancer sends to it.
        body.healthy &= self.has_rules();
        let healthy = body.healthy && eligible;
        (code(healthy), body.updated_if(healthy))
    }

    /// The answer of `/livez`, which knows nothing of eligibility (P54).
    pub fn livez(&self, now: Timestamp) -> (StatusCode, Body) {
        let body = self.body(now);
        let healthy = body.healthy;
        (code(healthy), body.updated_if(healthy))
    }

    fn body(&self, now: Timestamp) -> Body {
        let state = self.lock();
        let of_family = |(family, progress): (&Family, &Progress)| {
            (family.name(), FamilyBody { last_updated: progress.done, healthy: self.is_in_time(*progress, now) })
        };
        let status: BTreeMap<_, _> = state.families.iter().map(of_family).collect();
        Body {
            last_updated: status.values().filter_map(|family| family.last_updated).max(),
            current_time: now,
            node_eligible: None,
            healthy: status.values().all(|family| family.healthy),
            status,
        }
    }

    fn is_in_time(&self, progress: Progress, now: Timestamp) -> bool {
        progress
            .oldest_wait()
            .is_none_or(|since| now.duration_since(since).unsigned_abs() < self.patience || since > now)
    }

    fn update(&self, family: Family, change: impl FnOnce(&mut Progress)) {
        if let Some(progress) = self.lock().families.get_mut(&family) {
            change(progress);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What `/healthz` and `/livez` say, field by field as kube-proxy does; a family that was never synced says `null`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Body {
    last_updated: Option<Timestamp>,
    current_time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    status: BTreeMap<&'static str, FamilyBody>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyBody {
    last_updated: Option<Timestamp>,
    healthy: bool,
}

impl Body {
    /// A good answer is as fresh as can be, also on a node where nothing changes: readers take an old `lastUpdated` for
    /// a stuck proxy.
    fn updated_if(mut self, healthy: bool) -> Self {
        if healthy {
            self.last_updated = Some(self.current_time);
        }
        self
    }
}

/// Which of the two was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// `/healthz`
    Healthz,
    /// `/livez`
    Livez,
}

/// Serves `/healthz` and `/livez` until the future is dropped; `count` hears of each answer.
pub async fn serve<C>(listener: TcpListener, health: NodeHealth, count: C)
where
    C: Fn(Probe, StatusCode) + Clone + Send + 'static,
{
    admin::answer(listener, move |_, path| {
        let now = Timestamp::now();
        let (probe, (code, body)) = match path {
            "/healthz" => (Probe::Healthz, health.healthz(now)),
            "/livez" => (Probe::Livez, health.livez(now)),
            _ => return plain(StatusCode::NOT_FOUND),
        };
        count(probe, code);
        json(code, &body)
    })
    .await;
}

/// A JSON answer with the headers that kube-proxy sends.
pub(super) fn json(code: StatusCode, body: &impl Serialize) -> Response<Full<Bytes>> {
    // Plain structs with string keys always serialise.
    let body = serde_json::to_vec(body).unwrap_or_default();
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn plain(code: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::default();
    *response.status_mut() = code;
    response
}

const fn code(healthy: bool) -> StatusCode {
    if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

#[cfg(test)]
pub(super) mod tests;
