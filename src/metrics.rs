//! What the controller counts and measures, and the interceptor that counts attempts of AWS calls.
//!
//! Labels have few values, or one for each thing that exists now: a Service that is gone is not shown any more. None is
//! called like a label that a Prometheus adds to what it scrapes (`service`, `namespace`, `pod`, `instance`).

pub mod catalogue;
mod process;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::FinalizerInterceptorContextRef;
use aws_smithy_runtime_api::client::orchestrator::Metadata;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::ConfigBag;
use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use self::catalogue::{Catalogue, Present};
use crate::aws::classify::Class;
use crate::cluster::lease::Claim;

/// An attempt of an AWS call.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Attempt {
    action: String,
    result: &'static str,
}

/// An AWS call as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Called {
    action: &'static str,
    result: &'static str,
}

/// An action alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfAction {
    action: &'static str,
}

/// A token bucket.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfBucket {
    bucket: &'static str,
}

/// Labels of a reconcile.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reconciled {
    /// `settled`, `waiting`, `refused` or `failed`.
    pub result: &'static str,
}

/// How Services stand.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
pub struct OfState {
    /// `ready`, `waiting`, `refused`, `failed` or `deleting`.
    pub state: &'static str,
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
pub struct OfService {
    /// Its namespace.
    pub service_namespace: String,
    /// Its name.
    pub service_name: String,
}

/// An Auto Scaling group.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
pub struct OfAsg {
    /// Its name.
    pub auto_scaling_group: String,
}

/// Where target groups get their targets from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
pub struct OfPlacement {
    /// `attached`: an Auto Scaling group holds it. `direct`: none does.
    pub placement: &'static str,
}

/// An Event.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfReason {
    /// Its reason.
    pub reason: &'static str,
}

/// A kind of object that is watched.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfResource {
    /// `Services`, `Nodes` and the like.
    pub resource: &'static str,
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// All metrics of the controller.
#[derive(Clone, Debug)]
pub struct Metrics {
    catalogue: Arc<Mutex<Catalogue>>,
    claim: Arc<OnceLock<Claim>>,
    leader: Gauge,
    aws_attempts: Family<Attempt, Counter>,
    aws_calls: Family<Called, Counter>,
    aws_call_duration: Histograms<OfAction>,
    throttle_wait: Family<OfBucket, Counter<f64, AtomicU64>>,
    /// Reconciles of Services.
    pub reconciles: Family<Reconciled, Counter>,
    /// Their time.
    pub reconcile_duration: Histogram,
    /// Reconciles under way.
    pub reconciles_running: Gauge,
    /// Services of ours by how they stand.
    pub services: Arc<Present<OfState>>,
    /// Each Service of ours: whether AWS has all that it asks for.
    pub service_ready: Arc<Present<OfService>>,
    drift_checks: Counter,
    /// Drift checks that failed.
    pub drift_check_failures: Counter,
    drift_check_duration: Histogram,
    drift_check_last_success: Gauge<f64, AtomicU64>,
    /// Steps for a Service that has not changed.
    pub drift_repairs: Counter,
    /// Target groups that hold a slot of each Auto Scaling group.
    pub slots_used: Arc<Present<OfAsg>>,
    /// Auto Scaling groups that take no target group for now.
    pub refusing: Gauge,
    /// Target groups by placement.
    pub target_groups: Arc<Present<OfPlacement>>,
    /// Registrations beside attachments.
    pub direct_targets: Gauge,
    /// Nodes that can be targets.
    pub nodes: Gauge,
    /// Nodes that AWS does not take as targets.
    pub unfit_nodes: Gauge,
    /// Events that were published.
    pub events: Family<OfReason, Counter>,
    /// Watches that failed.
    pub watch_errors: Family<OfResource, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            catalogue: Arc::new(Mutex::new(Catalogue::new("controller"))),
            claim: Arc::default(),
            leader: Gauge::default(),
            aws_attempts: Family::default(),
            aws_calls: Family::default(),
            aws_call_duration: Family::new_with_constructor(centiseconds_and_up),
            throttle_wait: Family::default(),
            reconciles: Family::default(),
            reconcile_duration: centiseconds_and_up(),
            reconciles_running: Gauge::default(),
            services: Arc::default(),
            service_ready: Arc::default(),
            drift_checks: Counter::default(),
            drift_check_failures: Counter::default(),
            drift_check_duration: centiseconds_and_up(),
            drift_check_last_success: Gauge::default(),
            drift_repairs: Counter::default(),
            slots_used: Arc::default(),
            refusing: Gauge::default(),
            target_groups: Arc::default(),
            direct_targets: Gauge::default(),
            nodes: Gauge::default(),
            unfit_nodes: Gauge::default(),
            events: Family::default(),
            watch_errors: Family::default(),
        };
        let mut catalogue = metrics.catalogue();
        metrics.register_work(&mut catalogue);
        metrics.register_account(&mut catalogue);
        drop(catalogue);
        metrics
    }
}

impl Metrics {
    fn catalogue(&self) -> MutexGuard<'_, Catalogue> {
        self.catalogue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register_work(&self, catalogue: &mut Catalogue) {
        catalogue.add("weir_leader", &[], "1 if this replica may write, 0 if it stands by", self.leader.clone());
        catalogue.add(
            "weir_services",
            &["state"],
            "Services of this controller's class: ready, waiting, refused (their owner must change them), failed (it is \
             tried again) or deleting",
            self.services.gauges(),
        );
        catalogue.add(
            "weir_service_ready",
            &["service_namespace", "service_name"],
            "1 if AWS has all that this Service asks for and the hostname is published, else 0",
            self.service_ready.gauges(),
        );
        catalogue.add("weir_reconciles", &["result"], "Reconciles of Services by result", self.reconciles.clone());
        catalogue.add_seconds("weir_reconcile_duration", &[], "Time of reconciles", self.reconcile_duration.clone());
        catalogue.add(
            "weir_reconciles_running",
            &[],
            "Reconciles under way; --concurrency is the limit",
            self.reconciles_running.clone(),
        );
        catalogue.add("weir_events", &["reason"], "Events published, also as parts of a series", self.events.clone());
        catalogue.add(
            "weir_watch_errors",
            &["resource"],
            "Failures of watches; each is begun again",
            self.watch_errors.clone(),
        );
        for result in ["settled", "waiting", "refused", "failed"] {
            self.reconciles.get_or_create(&Reconciled { result }).inc_by(0);
        }
        for resource in ["Services", "Nodes"] {
            self.watch_errors.get_or_create(&OfResource { resource }).inc_by(0);
        }
    }

    fn register_account(&self, catalogue: &mut Catalogue) {
        catalogue.add(
            "weir_aws_calls",
            &["action", "result"],
            "AWS calls by IAM action; the result is ok, or the reason of the Event that tells of such a failure",
            self.aws_calls.clone(),
        );
        catalogue.add(
            "weir_aws_attempts",
            &["action", "result"],
            "Attempts of AWS calls, of which a call has up to four; ok or error",
            self.aws_attempts.clone(),
        );
        catalogue.add_seconds(
            "weir_aws_call_duration",
            &["action"],
            "Time of AWS calls with all of their attempts",
            self.aws_call_duration.clone(),
        );
        catalogue.add_seconds(
            "weir_aws_throttle_wait",
            &["bucket"],
            "Time that calls have waited for a token of weir's own, before they were made",
            self.throttle_wait.clone(),
        );
        catalogue.add("weir_drift_checks", &[], "Drift checks that read the whole account", self.drift_checks.clone());
        catalogue.add("weir_drift_check_failures", &[], "Drift checks that failed", self.drift_check_failures.clone());
        catalogue.add_seconds(
            "weir_drift_check_duration",
            &[],
            "Time of drift checks",
            self.drift_check_duration.clone(),
        );
        catalogue.add_seconds(
            "weir_drift_check_last_success_timestamp",
            &[],
            "When a drift check last read the whole account",
            self.drift_check_last_success.clone(),
        );
        catalogue.add(
            "weir_drift_repairs",
            &[],
            "Steps taken for Services that had been settled and were not changed since: what others did in AWS",
            self.drift_repairs.clone(),
        );
        catalogue.add(
            "weir_auto_scaling_group_target_groups",
            &["auto_scaling_group"],
            "Target groups attached to an Auto Scaling group that holds nodes or target groups of this cluster, \
             other people's included; AWS allows 50",
            self.slots_used.gauges(),
        );
        catalogue.add(
            "weir_auto_scaling_groups_refusing",
            &[],
            "Auto Scaling groups that take no target group for now, because of an instance refresh, say",
            self.refusing.clone(),
        );
        catalogue.add(
            "weir_target_groups",
            &["placement"],
            "Target groups that are attached to an Auto Scaling group, or whose nodes are all registered directly",
            self.target_groups.gauges(),
        );
        catalogue.add(
            "weir_direct_targets",
            &[],
            "Registrations of nodes that no attachment accounts for, over all target groups whose targets are known",
            self.direct_targets.clone(),
        );
        catalogue.add("weir_nodes", &[], "Nodes that can be targets", self.nodes.clone());
        catalogue.add(
            "weir_unfit_nodes",
            &[],
            "Nodes whose instances AWS does not take as targets for now",
            self.unfit_nodes.clone(),
        );
    }

    /// `weir_leader` follows this claim from now on.
    pub fn follow(&self, claim: Claim) {
        // There is one claim in a process.
        let _ = self.claim.set(claim);
    }

    /// The OpenMetrics text.
    pub fn render(&self) -> String {
        self.leader.set(i64::from(self.claim.get().is_some_and(Claim::holds)));
        self.catalogue().render()
    }

    /// The table for people.
    pub fn table(&self) -> String {
        self.catalogue().table()
    }

    /// A call has ended.
    pub fn called(&self, action: &'static str, took: Duration, failure: Option<Class>) {
        let result = failure.map_or("ok", |class| class.reason().name());
        self.aws_calls.get_or_create(&Called { action, result }).inc();
        self.aws_call_duration.get_or_create(&OfAction { action }).observe(took.as_secs_f64());
    }

    /// A call has waited for a token.
    pub fn throttled(&self, bucket: &'static str, waited: Duration) {
        self.throttle_wait.get_or_create(&OfBucket { bucket }).inc_by(waited.as_secs_f64());
    }

    /// A drift check has read everything.
    pub fn checked(&self, took: Duration, now: Timestamp) {
        self.drift_checks.inc();
        self.drift_check_duration.observe(took.as_secs_f64());
        self.drift_check_last_success.set(now.as_duration().as_secs_f64());
    }

    /// A watch has failed.
    pub fn watch_failed(&self, resource: &'static str) {
        self.watch_errors.get_or_create(&OfResource { resource }).inc();
    }
}

/// From a call's few hundredths of a second up to one that has been tried four times.
fn centiseconds_and_up() -> Histogram {
    Histogram::new(exponential_buckets(0.01, 2.0, 13))
}

/// Counts each attempt of each AWS call.
#[derive(Clone, Debug)]
pub struct CountCalls {
    service: &'static str,
    attempts: Family<Attempt, Counter>,
}

impl CountCalls {
    /// A counter into these metrics, for a service by its name in IAM actions.
    pub fn new(metrics: &Metrics, service: &'static str) -> Self {
        Self { service, attempts: metrics.aws_attempts.clone() }
    }
}

impl Intercept for CountCalls {
    fn name(&self) -> &'static str {
        "CountCalls"
    }

    fn read_after_attempt(
        &self,
        context: &FinalizerInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        bag: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if let Some(call) = bag.load::<Metadata>() {
            let failed = context.output_or_error().is_none_or(|answer| answer.is_err());
            let result = if failed { "error" } else { "ok" };
            let action = format!("{}:{}", self.service, call.name());
            self.attempts.get_or_create(&Attempt { action, result }).inc();
        }
        Ok(())
    }
}
