//! What a node counts and measures (P80), and when an EndpointSlice's change was made.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::StatusCode;
use jiff::Timestamp;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use crate::metrics::OfResource;
use crate::metrics::catalogue::Catalogue;
use crate::model::family::Family;
use crate::netfilter::flows::Swept;
use crate::node::health::Probe;

/// When the change was made that an EndpointSlice shows, as its controller writes it.
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// How much a sync looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncKind {
    /// All that the kernel holds.
    Full,
    /// What changed.
    Partial,
}

/// A traffic policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// `spec.internalTrafficPolicy`
    Internal,
    /// `spec.externalTrafficPolicy`
    External,
}

/// Labels of a sync.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Sync {
    kind: &'static str,
    family: &'static str,
}

/// A family alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfFamily {
    family: &'static str,
}

/// A policy alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPolicy {
    traffic_policy: &'static str,
}

/// A status code alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCode {
    code: u16,
}

type Seconds = Gauge<f64, AtomicU64>;
type PerFamily<M> = Labelled<OfFamily, M>;
type Histograms<L> = Labelled<L, Histogram, fn() -> Histogram>;

/// All metrics of a node.
#[derive(Clone, Debug)]
pub struct NodeMetrics {
    catalogue: Arc<Mutex<Catalogue>>,
    sync_duration: Histograms<Sync>,
    sync_queued: PerFamily<Seconds>,
    sync_done: PerFamily<Seconds>,
    sync_failures: PerFamily<Counter>,
    without_local_endpoints: Labelled<OfPolicy, Gauge>,
    conntrack_deleted: PerFamily<Counter>,
    conntrack_duration: Histograms<OfFamily>,
    healthz: Labelled<OfCode, Counter>,
    livez: Labelled<OfCode, Counter>,
    programming: Histogram,
    /// Services that are forwarded.
    pub services: Gauge,
    /// Endpoints of all ports of these Services.
    pub endpoints: Gauge,
    disturbances: PerFamily<Counter>,
    watch_errors: Labelled<OfResource, Counter>,
    /// Whether load balancers may send to this node.
    pub eligible: Gauge,
    /// Services whose healthCheckNodePort cannot be listened on.
    pub health_check_ports_failed: Gauge,
}

impl Default for NodeMetrics {
    fn default() -> Self {
        let metrics = Self {
            catalogue: Arc::new(Mutex::new(Catalogue::new("node"))),
            sync_duration: Labelled::new_with_constructor(milliseconds_and_up),
            sync_queued: Labelled::default(),
            sync_done: Labelled::default(),
            sync_failures: Labelled::default(),
            without_local_endpoints: Labelled::default(),
            conntrack_deleted: Labelled::default(),
            conntrack_duration: Labelled::new_with_constructor(milliseconds_and_up),
            healthz: Labelled::default(),
            livez: Labelled::default(),
            programming: Histogram::new(exponential_buckets(0.01, 2.0, 16)),
            services: Gauge::default(),
            endpoints: Gauge::default(),
            disturbances: Labelled::default(),
            watch_errors: Labelled::default(),
            eligible: Gauge::default(),
            health_check_ports_failed: Gauge::default(),
        };
        metrics.register(&mut metrics.catalogue());
        metrics
    }
}

impl NodeMetrics {
    fn catalogue(&self) -> MutexGuard<'_, Catalogue> {
        self.catalogue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self, catalogue: &mut Catalogue) {
        catalogue.add_seconds(
            "weir_node_sync_duration",
            &["kind", "family"],
            "Time of syncs to the kernel: full, of all that it holds, or partial, of what changed",
            self.sync_duration.clone(),
        );
        catalogue.add_seconds(
            "weir_node_sync_last_queued_timestamp",
            &["family"],
            "When a change last asked for a sync",
            self.sync_queued.clone(),
        );
        catalogue.add_seconds(
            "weir_node_sync_last_done_timestamp",
            &["family"],
            "When a sync last reached the kernel",
            self.sync_done.clone(),
        );
        catalogue.add("weir_node_sync_failures", &["family"], "Syncs that failed", self.sync_failures.clone());
        catalogue.add_seconds(
            "weir_node_network_programming_duration",
            &[],
            "Time from the change of an endpoint to its rules in the kernel",
            self.programming.clone(),
        );
        catalogue.add(
            "weir_node_table_disturbances",
            &["family"],
            "Changes of weir's tables by others; each is undone",
            self.disturbances.clone(),
        );
        catalogue.add("weir_node_services", &[], "Services that are forwarded", self.services.clone());
        catalogue.add("weir_node_endpoints", &[], "Endpoints of all ports of these Services", self.endpoints.clone());
        catalogue.add(
            "weir_node_services_without_local_endpoints",
            &["traffic_policy"],
            "Services of traffic policy Local with no usable endpoint on this node",
            self.without_local_endpoints.clone(),
        );
        self.register_surroundings(catalogue);
    }

    fn register_surroundings(&self, catalogue: &mut Catalogue) {
        catalogue.add(
            "weir_node_eligible",
            &[],
            "1 if load balancers may send to this node, 0 if /healthz answers 503 because it is on its way out",
            self.eligible.clone(),
        );
        catalogue.add("weir_node_healthz", &["code"], "Answers of /healthz by status code", self.healthz.clone());
        catalogue.add("weir_node_livez", &["code"], "Answers of /livez by status code", self.livez.clone());
        catalogue.add(
            "weir_node_health_check_ports_failed",
            &[],
            "Services whose healthCheckNodePort this node cannot listen on",
            self.health_check_ports_failed.clone(),
        );
        catalogue.add(
            "weir_node_conntrack_deleted_flows",
            &["family"],
            "Stale UDP flows deleted",
            self.conntrack_deleted.clone(),
        );
        catalogue.add_seconds(
            "weir_node_conntrack_sweep_duration",
            &["family"],
            "Time of sweeps for stale UDP flows",
            self.conntrack_duration.clone(),
        );
        catalogue.add(
            "weir_node_watch_errors",
            &["resource"],
            "Failures of watches; each is begun again",
            self.watch_errors.clone(),
        );
        for resource in ["Services", "EndpointSlices", "Node", "ServiceCIDRs"] {
            self.watch_errors.get_or_create(&OfResource { resource }).inc_by(0);
        }
        for family in Family::ALL {
            self.sync_failures.get_or_create(&of(family)).inc_by(0);
            self.disturbances.get_or_create(&of(family)).inc_by(0);
            self.conntrack_deleted.get_or_create(&of(family)).inc_by(0);
        }
    }

    /// The OpenMetrics text.
    pub fn render(&self) -> String {
        self.catalogue().render()
    }

    /// The table for people.
    pub fn table(&self) -> String {
        self.catalogue().table()
    }

    /// Somebody else has changed our table.
    pub fn disturbed(&self, family: Family) {
        self.disturbances.get_or_create(&of(family)).inc();
    }

    /// A watch has failed.
    pub fn watch_failed(&self, resource: &'static str) {
        self.watch_errors.get_or_create(&OfResource { resource }).inc();
    }

    /// A change asks for a sync.
    pub fn sync_queued(&self, family: Family, now: Timestamp) {
        self.sync_queued.get_or_create(&of(family)).set(now.as_duration().as_secs_f64());
    }

    /// A sync reached the kernel.
    pub fn sync_done(&self, kind: SyncKind, family: Family, took: Duration, now: Timestamp) {
        let kind = match kind {
            SyncKind::Full => "full",
            SyncKind::Partial => "partial",
        };
        self.sync_duration.get_or_create(&Sync { kind, family: family.name() }).observe(took.as_secs_f64());
        self.sync_done.get_or_create(&of(family)).set(now.as_duration().as_secs_f64());
    }

    /// A sync failed.
    pub fn sync_failed(&self, family: Family) {
        self.sync_failures.get_or_create(&of(family)).inc();
    }

    /// How many Services of this policy being Local have no usable endpoint on this node.
    pub fn set_without_local_endpoints(&self, policy: TrafficPolicy, services: i64) {
        let traffic_policy = match policy {
            TrafficPolicy::Internal => "internal",
            TrafficPolicy::External => "external",
        };
        self.without_local_endpoints.get_or_create(&OfPolicy { traffic_policy }).set(services);
    }

    /// Conntrack was swept.
    pub fn swept(&self, family: Family, swept: Swept, took: Duration) {
        self.conntrack_deleted.get_or_create(&of(family)).inc_by(swept.deleted);
        self.conntrack_duration.get_or_create(&of(family)).observe(took.as_secs_f64());
    }

    /// `/healthz` or `/livez` was answered (see [`super::health::serve`]).
    pub fn answered(&self, probe: Probe, code: StatusCode) {
        let answers = match probe {
            Probe::Healthz => &self.healthz,
            Probe::Livez => &self.livez,
        };
        answers.get_or_create(&OfCode { code: code.as_u16() }).inc();
    }

    /// A change made at `trigger` is in the kernel.
    pub fn programmed(&self, trigger: Timestamp, now: Timestamp) {
        // Two clocks: the controller's may be ahead.
        self.programming.observe(now.duration_since(trigger).as_secs_f64().max(0.0));
    }
}

/// When the change was made that this slice shows, if it says so and it was after `since`: what was there before this
/// process started says nothing about its speed.
pub fn trigger_time(slice: &EndpointSlice, since: Timestamp) -> Option<Timestamp> {
    let text = slice.metadata.annotations.as_ref()?.get(TRIGGER_TIME)?;
    text.parse().ok().filter(|trigger| *trigger >= since)
}

const fn of(family: Family) -> OfFamily {
    OfFamily { family: family.name() }
}

/// From a change's few milliseconds up to a cold load's seconds.
fn milliseconds_and_up() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 16))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn p80_every_metric_is_shown() {
        let metrics = NodeMetrics::default();
        metrics.sync_queued(Family::Ipv4, at(10));
        metrics.sync_done(SyncKind::Partial, Family::Ipv4, Duration::from_millis(3), at(11));
        metrics.sync_failed(Family::Ipv6);
        metrics.services.set(5);
        metrics.endpoints.set(15);
        metrics.set_without_local_endpoints(TrafficPolicy::External, 2);
        metrics.swept(Family::Ipv4, Swept { listed: 9, deleted: 4, complete: true }, Duration::from_millis(1));
        metrics.answered(Probe::Healthz, StatusCode::SERVICE_UNAVAILABLE);
        metrics.answered(Probe::Livez, StatusCode::OK);
        metrics.programmed(at(10), at(11));
        let text = metrics.render();
        for line in [
            "weir_node_sync_duration_seconds_count{kind=\"partial\",family=\"IPv4\"} 1",
            "weir_node_sync_last_queued_timestamp_seconds{family=\"IPv4\"} 10.0",
            "weir_node_sync_last_done_timestamp_seconds{family=\"IPv4\"} 11.0",
            "weir_node_sync_failures_total{family=\"IPv6\"} 1",
            "weir_node_services 5",
            "weir_node_endpoints 15",
            "weir_node_services_without_local_endpoints{traffic_policy=\"external\"} 2",
            "weir_node_conntrack_deleted_flows_total{family=\"IPv4\"} 4",
            "weir_node_conntrack_sweep_duration_seconds_count{family=\"IPv4\"} 1",
            "weir_node_healthz_total{code=\"503\"} 1",
            "weir_node_livez_total{code=\"200\"} 1",
            "weir_node_network_programming_duration_seconds_sum 1.0",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn p80_a_trigger_time_counts_if_it_can_be_read_and_is_of_this_process() {
        let slice = |time: &str| {
            let mut slice = EndpointSlice::default();
            slice.metadata.annotations = Some([(TRIGGER_TIME.to_owned(), time.to_owned())].into());
            slice
        };
        assert_eq!(trigger_time(&slice("1970-01-01T00:01:40Z"), at(100)), Some(at(100)));
        assert_eq!(trigger_time(&slice("1970-01-01T00:01:40Z"), at(101)), None);
        assert_eq!(trigger_time(&slice("soon"), at(0)), None);
        assert_eq!(trigger_time(&EndpointSlice::default(), at(0)), None);
    }

    #[test]
    fn p80_a_controllers_clock_ahead_of_ours_is_no_negative_time() {
        let metrics = NodeMetrics::default();
        metrics.programmed(at(20), at(10));
        assert!(metrics.render().contains("weir_node_network_programming_duration_seconds_sum 0.0"));
    }
}
