//! Counters and gauges, and the interceptor that counts AWS calls.

use std::sync::{Arc, Mutex, PoisonError};

use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::FinalizerInterceptorContextRef;
use aws_smithy_runtime_api::client::orchestrator::Metadata;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::ConfigBag;
use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge};
use prometheus_client::registry::Registry;

/// Labels of one AWS call.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Call {
    /// Service, as the SDK names it.
    service: String,
    /// Operation.
    operation: String,
    /// `ok` or `error`.
    result: &'static str,
}

/// Labels of a reconcile.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reconciled {
    /// `settled`, `waiting`, `refused` or `failed`.
    pub result: &'static str,
}

/// All metrics of the controller.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    /// Attempts of AWS calls.
    pub aws_calls: Family<Call, Counter>,
    /// Reconciles of Services.
    pub reconciles: Family<Reconciled, Counter>,
    /// Services of ours.
    pub services: Gauge,
    /// Drift checks that were finished.
    pub drift_checks: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("weir");
        let aws_calls = Family::default();
        registry.register("aws_calls", "Attempts of AWS calls by service, operation and result", aws_calls.clone());
        let reconciles = Family::default();
        registry.register("reconciles", "Reconciles of Services by result", reconciles.clone());
        let services = Gauge::default();
        registry.register("services", "LoadBalancer Services of this controller's class", services.clone());
        let drift_checks = Counter::default();
        registry.register("drift_checks", "Drift checks that read the whole account", drift_checks.clone());
        Self { registry: Arc::new(Mutex::new(registry)), aws_calls, reconciles, services, drift_checks }
    }
}

impl Metrics {
    /// The OpenMetrics text.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing into a String does not fail.
        encode(&mut text, &registry).map(|()| text).unwrap_or_default()
    }
}

/// Counts each attempt of each AWS call.
#[derive(Clone, Debug)]
pub struct CountCalls(Family<Call, Counter>);

impl CountCalls {
    /// A counter into these metrics.
    pub fn new(metrics: &Metrics) -> Self {
        Self(metrics.aws_calls.clone())
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
            let (service, operation) = (call.service().to_owned(), call.name().to_owned());
            self.0.get_or_create(&Call { service, operation, result }).inc();
        }
        Ok(())
    }
}
