//! The AWS edge: SDK shapes in, our own out. No decision is made here.

pub mod autoscaling;
pub mod classify;
pub mod ec2;
pub mod elbv2;
pub mod fence;
pub mod inquiry;
pub mod throttle;

use std::sync::Arc;

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};

use self::fence::Fence;
use self::throttle::Throttle;
use crate::cluster::lease::Claim;
use crate::metrics::{CountCalls, Metrics};

/// Attempts of one call in all. Throttling and server errors are tried again by the SDK with exponential waits and
/// jitter; what still fails goes back to the Service's own, longer back-off.
const ATTEMPTS: u32 = 4;
/// A call that takes longer has lost its answer; the next plan finds out what it did.
const CALL_TIMEOUT: std::time::Duration = std::time::Duration::from_mins(1);

/// Clients for the four services, and the buckets that keep us polite.
#[derive(Clone, Debug)]
pub struct Aws {
    elb: aws_sdk_elasticloadbalancingv2::Client,
    ec2: aws_sdk_ec2::Client,
    autoscaling: aws_sdk_autoscaling::Client,
    sts: aws_sdk_sts::Client,
    throttle: Arc<Throttle>,
    metrics: Metrics,
    region: String,
}

/// Configuration from the environment: credentials of IRSA, EKS Pod Identity or a profile, endpoints, and the Region
/// unless one is given.
///
/// # Errors
/// There are no CA certificates. The SDK would panic at its first call.
pub async fn configuration(region: Option<String>) -> anyhow::Result<SdkConfig> {
    if rustls_native_certs::load_native_certs().certs.is_empty() {
        anyhow::bail!(
            "cannot check who answers for AWS: no CA certificates are found; install ca-certificates, or set \
             SSL_CERT_FILE to a file of them"
        );
    }
    let loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
        .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
        .timeout_config(TimeoutConfig::builder().operation_timeout(CALL_TIMEOUT).build());
    Ok(match region {
        Some(region) => loader.region(Region::new(region)).load().await,
        None => loader.load().await,
    })
}

impl Aws {
    /// Clients with the environment's credentials, for this Region or the environment's.
    ///
    /// # Errors
    /// No Region is known, or no CA certificate.
    pub async fn connect(region: Option<String>, metrics: &Metrics, claim: &Claim) -> anyhow::Result<Self> {
        let config = configuration(region).await?;
        if config.region().is_none() {
            anyhow::bail!("cannot find the AWS Region: set --region or AWS_REGION");
        }
        Ok(Self::new(&config, metrics, claim))
    }

    /// Clients of this configuration, whose writes leave only while the claim holds.
    pub fn new(config: &SdkConfig, metrics: &Metrics, claim: &Claim) -> Self {
        let (count, fence) = (|service| CountCalls::new(metrics, service), Fence::new(claim));
        let elb = aws_sdk_elasticloadbalancingv2::config::Builder::from(config);
        let elb = elb.interceptor(count("elasticloadbalancing")).interceptor(fence.clone());
        let ec2 = aws_sdk_ec2::config::Builder::from(config);
        let ec2 = ec2.interceptor(count("ec2")).interceptor(fence.clone());
        let autoscaling = aws_sdk_autoscaling::config::Builder::from(config);
        let autoscaling = autoscaling.interceptor(count("autoscaling")).interceptor(fence);
        let sts = aws_sdk_sts::config::Builder::from(config).interceptor(count("sts"));
        Self {
            elb: aws_sdk_elasticloadbalancingv2::Client::from_conf(elb.build()),
            ec2: aws_sdk_ec2::Client::from_conf(ec2.build()),
            autoscaling: aws_sdk_autoscaling::Client::from_conf(autoscaling.build()),
            sts: aws_sdk_sts::Client::from_conf(sts.build()),
            throttle: Arc::new(Throttle::default()),
            metrics: metrics.clone(),
            region: config.region().map(ToString::to_string).unwrap_or_default(),
        }
    }

    /// For a command that reads once, and a person who waits.
    #[must_use]
    pub fn at_once(self) -> Self {
        Self { throttle: Arc::new(Throttle::at_once()), ..self }
    }

    /// Where calls are counted.
    pub const fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The Region of every call.
    pub fn region(&self) -> &str {
        &self.region
    }
}

/// Sends a request after its bucket lets it go, measures both, traces the call, and says what failed in our words.
///
/// `call!(self.read, "elasticloadbalancing:DescribeTags", "resource", self.elb.describe_tags()…)`
macro_rules! call {
    ($self:ident . $bucket:ident, $action:literal, $resource:expr, $request:expr) => {{
        let asked = tokio::time::Instant::now();
        let bucket = $self.throttle.$bucket($action).await;
        $self.metrics.throttled(bucket, asked.elapsed());
        let sent = tokio::time::Instant::now();
        let span = $crate::telemetry::otlp::call($action);
        // Boxed, since every caller's future holds it.
        let answer = tracing::Instrument::instrument(Box::pin($request.send()), span.clone()).await;
        let answer = answer.map_err(|error| $crate::aws::classify::AwsError::new($action, $resource, &error));
        if let Err(error) = &answer {
            $crate::telemetry::otlp::failed(&span, &error.code);
        }
        $self.metrics.called($action, sent.elapsed(), answer.as_ref().err().map(|error| error.class));
        answer
    }};
}
pub(crate) use call;
