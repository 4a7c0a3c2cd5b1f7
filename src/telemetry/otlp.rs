//! Traces, by OTLP over HTTP: one for each reconcile of a Service with its AWS calls, one for each sync of a node.
//!
//! They leave in batches from a thread of the SDK's own, through a queue that drops what it cannot hold: work never waits
//! for a collector. `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_TRACES_SAMPLER`
//! and `OTEL_BSP_*` mean what OpenTelemetry says. Without a collector nothing of this is made.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use hyper::Uri;
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry::{Key, KeyValue};
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::runtime::Handle;
use tracing::field::Empty;
use tracing::level_filters::LevelFilter;
use tracing::{Metadata, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{FilterFn, Targets};
use tracing_subscriber::registry::LookupSpan;

use super::chain;
use crate::model::id::ServiceKey;

/// Target of spans that the log does not show: there a line carries its Service, whichever call it waits for.
const ONLY_FOR_TRACES: &str = "weir::only_for_traces";
/// A collector that takes longer has lost a batch.
const TIMEOUT: Duration = Duration::from_secs(5);
/// What has not left by then, at the end of the process, is lost.
const LAST_BATCH: Duration = Duration::from_secs(2);

/// Where traces go to, if anywhere.
#[derive(Debug, Default)]
pub struct Traces(Option<SdkTracerProvider>);

impl Traces {
    /// Traces to the collector with this base URL, sent by the runtime that this is called in.
    ///
    /// # Errors
    /// The environment asks for what is not built in, such as a compression.
    pub fn to(endpoint: &Uri) -> anyhow::Result<Self> {
        let collector = Collector {
            client: HyperClient::with_default_connector(TIMEOUT, None),
            runtime: Handle::current(),
            is_failing: AtomicBool::new(false),
        };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(collector)
            .with_endpoint(format!("{}/v1/traces", endpoint.to_string().trim_end_matches('/')))
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(TIMEOUT)
            .build()?;
        let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource()).build();
        Ok(Self(Some(provider)))
    }

    /// The layer that makes traces of spans, and of what is logged within them.
    pub fn layer<S>(&self) -> Option<Box<dyn Layer<S> + Send + Sync>>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        let tracer = self.0.as_ref()?.tracer("weir");
        let layer = tracing_opentelemetry::layer().with_tracer(tracer).with_location(false).with_threads(false);
        // kube and the SDKs have spans of their own, which would be roots above ours.
        Some(layer.with_filter(Targets::new().with_target("weir", LevelFilter::INFO)).boxed())
    }

    /// Sends what waits, within two seconds. Call it while the runtime still runs, and not within it.
    pub fn end(self) {
        if let Some(provider) = self.0
            && let Err(error) = provider.shutdown_with_timeout(LAST_BATCH)
        {
            tracing::warn!(error = %chain(&error), "the last traces are lost");
        }
    }
}

/// Who sends: the environment tells, and else our name.
fn resource() -> Resource {
    let name = Key::from_static_str("service.name");
    let detected = Resource::builder().build();
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let resource = Resource::builder().with_attribute(version);
    match detected.get(&name) {
        Some(given) if !given.as_str().starts_with("unknown_service") => resource.build(),
        _ => resource.with_service_name("weir").build(),
    }
}

/// For the log: spans that it does not show.
pub fn not_only_for_traces() -> FilterFn {
    let is_shown: fn(&Metadata<'_>) -> bool = |metadata| metadata.target() != ONLY_FOR_TRACES;
    // Without the hint, every event of every crate would be looked at.
    FilterFn::new(is_shown).with_max_level_hint(LevelFilter::TRACE)
}

/// The client that batches go through.
#[derive(Debug)]
struct Collector {
    client: HyperClient,
    runtime: Handle,
    is_failing: AtomicBool,
}

impl HttpClient for Collector {
    // As the trait's macro has it.
    fn send_bytes<'me, 'sent>(
        &'me self,
        request: Request<Bytes>,
    ) -> BoxFuture<'sent, Result<Response<Bytes>, HttpError>>
    where
        'me: 'sent,
        Self: 'sent,
    {
        Box::pin(self.send(request))
    }
}

impl Collector {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (client, endpoint) = (self.client.clone(), request.uri().clone());
        // The SDK's thread is outside the runtime, and hyper needs one.
        let answer = self.runtime.spawn(async move { client.send_bytes(request).await }).await?;
        match &answer {
            Ok(answer) if answer.status().is_success() => self.succeeded(&endpoint),
            Ok(answer) => self.failed(&endpoint, &format!("it answers {}", answer.status())),
            Err(error) => self.failed(&endpoint, &chain(error.as_ref())),
        }
        answer
    }

    fn succeeded(&self, endpoint: &Uri) {
        if self.is_failing.swap(false, Ordering::Relaxed) {
            tracing::info!(%endpoint, "traces arrive again");
        }
    }

    /// Said once, until traces arrive again.
    fn failed(&self, endpoint: &Uri, error: &str) {
        if !self.is_failing.swap(true, Ordering::Relaxed) {
            tracing::warn!(%endpoint, error, "cannot send traces: they are lost until the collector takes them");
        }
    }
}

/// Says whose reconcile this is, and in the log which trace it is.
pub fn describe_reconcile(span: &Span, service: &ServiceKey) {
    span.set_attribute("k8s.namespace.name", service.namespace.clone());
    span.set_attribute("k8s.service.name", service.name.clone());
    let context = span.context();
    let trace = context.span().span_context().clone();
    if trace.is_sampled() {
        span.record("trace_id", trace.trace_id().to_string());
    }
}

/// Says what came of it.
pub fn describe_outcome(span: &Span, outcome: &'static str) {
    span.set_attribute("outcome", outcome);
}

/// An AWS call by its IAM action, with all of its attempts.
pub fn call(action: &'static str) -> Span {
    let (service, method) = action.split_once(':').unwrap_or(("", action));
    tracing::info_span!(
        target: ONLY_FOR_TRACES,
        "aws",
        otel.name = action,
        otel.kind = "client",
        rpc.system = "aws-api",
        rpc.service = service,
        rpc.method = method,
        error.type = Empty,
        otel.status_code = Empty,
    )
}

/// Says with what code an AWS call failed.
pub fn failed(call: &Span, code: &str) {
    call.record("error.type", code);
    call.record("otel.status_code", "ERROR");
}

/// A sync of a node's rules: all that the kernel holds is compared (`full`), or only what has changed (`partial`).
pub fn sync(kind: &'static str, changed_services: usize) -> Span {
    tracing::info_span!(target: ONLY_FOR_TRACES, "sync", kind, changed_services)
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;
    use wiremock::matchers::{header, method, path};
    use wiremock::{Mock, MockServer, ResponseTemplate};

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn the_last_sync_of_a_node_is_sent_when_it_ends() {
        let collector = MockServer::start().await;
        let takes = Mock::given(method("POST")).and(path("/base/v1/traces"));
        let takes = takes.and(header("content-type", "application/x-protobuf"));
        takes.respond_with(ResponseTemplate::new(200)).expect(1).mount(&collector).await;
        let traces = Traces::to(&format!("{}/base/", collector.uri()).parse().unwrap()).unwrap();
        let subscriber = tracing_subscriber::registry().with(traces.layer());
        tracing::subscriber::with_default(subscriber, || {
            let span = sync("full", 3).entered();
            describe_outcome(&span, "complete");
        });
        tokio::task::spawn_blocking(|| traces.end()).await.unwrap();
        let requests = collector.received_requests().await.unwrap();
        let body = String::from_utf8_lossy(&requests[0].body);
        for words in ["sync", "full", "changed_services", "outcome", "complete", "service.version"] {
            assert!(body.contains(words), "{words}: {body}");
        }
    }
}
