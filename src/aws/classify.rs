//! Error codes of AWS → eight classes, each with a delay and a sentence. Decided by code, never by message, but for the
//! few cases in which Auto Scaling answers `ValidationError` to everything.

use std::fmt;
use std::time::Duration;

use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::display::DisplayErrorContext;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;

use crate::cluster::reason::Reason;

/// What kind of failure it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// It does not exist; a deletion has then succeeded.
    Missing,
    /// It exists; a creation may then have succeeded before.
    Exists,
    /// Too many calls.
    Throttled,
    /// A permission is missing.
    Denied,
    /// A quota is used up.
    Quota,
    /// Something else must happen first: a dependency, a state, another change under way.
    Conflict,
    /// AWS does not take the request as it is.
    Invalid,
    /// Network, server or time-out: unknown whether it took effect.
    Transient,
}

impl Class {
    /// The first wait and the longest one between two tries.
    #[expect(clippy::match_same_arms, reason = "equal by chance, one reason for each")]
    pub const fn delays(self) -> (Duration, Duration) {
        let seconds = match self {
            Self::Missing | Self::Exists => (1, 60),
            Self::Throttled => (5, 120),
            // Somebody must act; an edit of the Service starts the next try at once.
            Self::Denied => (60, 300),
            Self::Quota => (30, 300),
            Self::Conflict => (2, 60),
            Self::Invalid => (10, 300),
            Self::Transient => (1, 60),
        };
        (Duration::from_secs(seconds.0), Duration::from_secs(seconds.1))
    }

    /// Reason of the Event.
    pub const fn reason(self) -> Reason {
        match self {
            Self::Missing => Reason::AwsResourceMissing,
            Self::Exists => Reason::AwsResourceExists,
            Self::Throttled => Reason::AwsThrottled,
            Self::Denied => Reason::AwsAccessDenied,
            Self::Quota => Reason::AwsQuotaExceeded,
            Self::Conflict => Reason::AwsConflict,
            Self::Invalid => Reason::AwsRequestRefused,
            Self::Transient => Reason::AwsUnavailable,
        }
    }

    const fn is_worth_an_event_at_once(self) -> bool {
        !matches!(self, Self::Throttled | Self::Conflict | Self::Transient | Self::Missing | Self::Exists)
    }
}

/// What the resource of a call begins with that failed for the bucket of access logs.
pub const BUCKET: &str = "bucket ";

/// A call that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct AwsError {
    /// The IAM action, e.g. `elasticloadbalancing:CreateLoadBalancer`.
    pub action: &'static str,
    /// ARN, id or name of what it was about.
    pub resource: String,
    /// The kind of failure.
    pub class: Class,
    /// AWS's code.
    pub code: String,
    /// AWS's words.
    pub message: String,
}

impl fmt::Display for AwsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { action, resource, code, message, .. } = self;
        match self.class {
            Class::Denied => write!(
                f,
                "AWS denies {action} on {resource}; the controller's IAM role needs this permission ({code}: {message})"
            ),
            Class::Quota => write!(f, "an AWS quota is used up: {action} on {resource} ({code}: {message})"),
            Class::Conflict if code == "OperationNotPermitted" && self.is_kept_balancer() => write!(
                f,
                "load balancer {resource} is protected against deletion; to let it go, write \
                 deletion_protection.enabled=false into the annotation aws-load-balancer-attributes, or switch that \
                 attribute off in AWS ({code}: {message})"
            ),
            Class::Invalid if resource.starts_with(BUCKET) => {
                write!(f, "ELB cannot write to {resource}: {message} ({code})")
            }
            Class::Throttled => write!(f, "AWS throttles {action} on {resource} ({code}: {message})"),
            _ => write!(f, "{action} on {resource} failed ({code}: {message})"),
        }
    }
}

impl AwsError {
    /// Whether AWS refuses to delete a load balancer: protection, or an endpoint service that uses it. Only people
    /// can change that.
    fn is_kept_balancer(&self) -> bool {
        self.class == Class::Conflict && self.action == "elasticloadbalancing:DeleteLoadBalancer"
    }

    /// The first wait and the longest one before the next try.
    pub fn delays(&self) -> (Duration, Duration) {
        if self.is_kept_balancer() { Class::Denied.delays() } else { self.class.delays() }
    }

    /// Whether an Event is worth it after this many failures in a row. Conflicts and hiccups mostly pass by themselves.
    pub fn is_worth_an_event(&self, failures: u32) -> bool {
        failures >= 4 || self.class.is_worth_an_event_at_once() || self.is_kept_balancer()
    }

    /// Reads an error of the SDK.
    pub fn new<E>(action: &'static str, resource: impl Into<String>, error: &SdkError<E, HttpResponse>) -> Self
    where
        E: std::error::Error + ProvideErrorMetadata + 'static,
    {
        let (code, message) = match error.as_service_error() {
            Some(service) => (
                service.code().unwrap_or("Unknown").to_owned(),
                shorten(service.message().unwrap_or_default()).to_owned(),
            ),
            None => ("NoAnswer".to_owned(), DisplayErrorContext(error).to_string()),
        };
        let status = error.raw_response().map_or(0, |response| response.status().as_u16());
        Self { action, resource: resource.into(), class: classify(&code, &message, status), code, message }
    }

    /// An answer that lacks what AWS always sends.
    pub fn incomplete(action: &'static str, resource: impl Into<String>) -> Self {
        let (code, message) = ("IncompleteAnswer".to_owned(), "the answer lacks the resource".to_owned());
        Self { action, resource: resource.into(), class: Class::Transient, code, message }
    }
}

/// EC2 adds a text to a denial that is another one each time, and can be read by AWS's own tools only.
fn shorten(message: &str) -> &str {
    message.split("Encoded authorization failure message").next().unwrap_or_default().trim_end()
}

/// The class of a code. `status` is the HTTP status, 0 where there was no answer.
#[expect(clippy::match_same_arms, reason = "grouped by service")]
fn classify(code: &str, message: &str, status: u16) -> Class {
    match code {
        "LoadBalancerNotFound" | "TargetGroupNotFound" | "ListenerNotFound" | "RuleNotFound" => Class::Missing,
        "InvalidGroup.NotFound" | "InvalidGroupId.NotFound" | "InvalidPermission.NotFound" => Class::Missing,
        "InvalidSecurityGroup" | "SubnetNotFound" | "InvalidSubnetID.NotFound" => Class::Invalid,
        "DuplicateLoadBalancerName" | "DuplicateTargetGroupName" | "DuplicateListener" => Class::Exists,
        "InvalidGroup.Duplicate" | "InvalidPermission.Duplicate" => Class::Exists,
        "AccessDenied" | "AccessDeniedException" | "UnauthorizedOperation" | "AuthFailure" => Class::Denied,
        "UnrecognizedClientException" | "InvalidClientTokenId" | "ExpiredToken" => Class::Denied,
        "Throttling" | "ThrottlingException" | "ThrottledException" | "RequestThrottled" => Class::Throttled,
        "RequestLimitExceeded" | "RequestThrottledException" | "TooManyRequestsException" => Class::Throttled,
        "DependencyViolation" | "ResourceInUse" | "ResourceContention" | "OperationNotPermitted" => Class::Conflict,
        "ResourceInUseFault" | "ResourceContentionFault" | "ScalingActivityInProgress" => Class::Conflict,
        "InstanceRefreshInProgress" | "InstanceRefreshInProgressFault" => Class::Conflict,
        "TargetGroupAssociationLimit" => Class::Conflict,
        "CapacityReservationPending" | "PriorRequestNotComplete" | "InsufficientCapacity" => Class::Conflict,
        "CapacityUnitsLimitExceeded" | "CapacityDecreaseRequestsLimitExceeded" => Class::Quota,
        "RulesPerSecurityGroupLimitExceeded" | "SecurityGroupLimitExceeded" => Class::Quota,
        "LimitExceeded" | "LimitExceededFault" | "VcpuLimitExceeded" => Class::Quota,
        code if code.starts_with("TooMany") => Class::Quota,
        // Auto Scaling answers ValidationError to everything; these two pass by themselves.
        "ValidationError" if message.contains("update too many") => Class::Throttled,
        "ValidationError" if message.contains("pending delete") => Class::Conflict,
        _ if status == 0 || status >= 500 => Class::Transient,
        _ => Class::Invalid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes() {
        for (code, status, class) in [
            ("LoadBalancerNotFound", 400, Class::Missing),
            ("InvalidGroup.Duplicate", 400, Class::Exists),
            ("Throttling", 400, Class::Throttled),
            ("UnauthorizedOperation", 403, Class::Denied),
            ("TooManyLoadBalancers", 400, Class::Quota),
            ("TooManyTargets", 400, Class::Quota),
            ("DependencyViolation", 400, Class::Conflict),
            ("InvalidConfigurationRequest", 400, Class::Invalid),
            ("InternalFailure", 500, Class::Transient),
            ("NoAnswer", 0, Class::Transient),
        ] {
            assert_eq!(classify(code, "", status), class, "{code}");
        }
    }

    #[test]
    fn r13_the_limit_of_changes_in_flight_is_throttling() {
        let words = "Trying to update too many Load Balancers/Target Groups at once. The limit is 10";
        assert_eq!(classify("ValidationError", words, 400), Class::Throttled);
        assert_eq!(classify("ValidationError", "something else", 400), Class::Invalid);
    }

    #[test]
    fn a_bucket_that_elb_cannot_write_to_is_named() {
        let error = AwsError {
            action: "elasticloadbalancing:ModifyLoadBalancerAttributes",
            resource: format!("{BUCKET}logs"),
            class: Class::Invalid,
            code: "InvalidConfigurationRequest".into(),
            message: "Access Denied for bucket: logs".into(),
        };
        let sentence = "ELB cannot write to bucket logs: Access Denied for bucket: logs (InvalidConfigurationRequest)";
        assert_eq!(error.to_string(), sentence);
    }

    #[test]
    fn a_denial_names_the_action_and_the_resource() {
        let error = AwsError {
            action: "elasticloadbalancing:DeleteLoadBalancer",
            resource: "arn:aws:elasticloadbalancing:x".into(),
            class: Class::Denied,
            code: "AccessDenied".into(),
            message: "no".into(),
        };
        let sentence = error.to_string();
        assert!(sentence.contains("elasticloadbalancing:DeleteLoadBalancer on arn:aws:elasticloadbalancing:x"));
    }
}
