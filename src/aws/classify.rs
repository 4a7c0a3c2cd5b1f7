//! Error codes of AWS → nine classes, each with a delay and a sentence. Decided by code, never by message, but for the
//! few cases in which Auto Scaling answers `ValidationError` to everything.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;

use crate::cluster::reason::Reason;
use crate::telemetry::chain;

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
    /// AWS does not know who calls: there are no credentials, or they have expired or are not accepted.
    Unauthenticated,
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
            // Credentials are renewed by others, and then AWS has nothing against us.
            Self::Unauthenticated => (5, 60),
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
            Self::Unauthenticated => Reason::AwsCredentialsInvalid,
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
            Class::Denied => match self.other_action() {
                None => write!(
                    f,
                    "AWS denies {action} on {resource}; the controller's IAM role needs this permission ({code}: \
                     {message})"
                ),
                Some(other) => write!(
                    f,
                    "AWS denies {other}, which {action} on {resource} asks for{}; the controller's IAM role needs this \
                     permission ({code}: {message})",
                    self.creation(other)
                ),
            },
            Class::Unauthenticated => write!(
                f,
                "the controller has no valid AWS credentials for {action} on {resource}; look at its role and who may \
                 assume it, at its token and at the clock of its node ({code}: {message})"
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

    /// The action that AWS names, where that is not the call's own: tags at creation are a permission of their own, and
    /// so is what ELB asks for when an account gets its first load balancer.
    fn other_action(&self) -> Option<&str> {
        let (_, rest) = self.message.split_once("is not authorized to perform: ")?;
        let named = rest.split_whitespace().next()?;
        (named != self.action && named.contains(':')).then_some(named)
    }

    /// The condition key by which a policy knows that tags are given at creation (LBC#2692).
    fn creation(&self, other: &str) -> String {
        match (other.split_once(':'), self.action.split_once(':')) {
            (Some((service, "AddTags" | "CreateTags")), Some((_, operation))) => {
                format!(" with the condition key {service}:CreateAction = {operation}")
            }
            _ => String::new(),
        }
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
            None => match credentials_error(error) {
                Some(missing) => {
                    let reason = missing.source().map_or_else(|| missing.to_string(), chain);
                    // A list of all that was tried comes in lines.
                    ("NoCredentials".to_owned(), reason.split_whitespace().collect::<Vec<_>>().join(" "))
                }
                None => ("NoAnswer".to_owned(), chain(error)),
            },
        };
        let status = error.raw_response().map_or(0, |response| response.status().as_u16());
        let class = classify(&code, &message, status);
        let message = if class == Class::Unauthenticated { steady(&message).to_owned() } else { message };
        Self { action, resource: resource.into(), class, code, message }
    }

    /// An answer that lacks what AWS always sends.
    pub fn incomplete(action: &'static str, resource: impl Into<String>) -> Self {
        let (code, message) = ("IncompleteAnswer".to_owned(), "the answer lacks the resource".to_owned());
        Self { action, resource: resource.into(), class: Class::Transient, code, message }
    }
}

/// Why there are no credentials, if that is what kept a call from being made.
fn credentials_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a CredentialsError> {
    let mut link = Some(error);
    while let Some(cause) = link {
        if let Some(missing) = cause.downcast_ref() {
            return Some(missing);
        }
        link = cause.source();
    }
    None
}

/// A refusal of credentials up to what is another one each time, so that it makes one Event: the id of the request, or a
/// time, as in `20261126T154500Z` and in seconds since 1970.
fn steady(message: &str) -> &str {
    let text = message.split(", aws_request_id").next().unwrap_or_default();
    let mut from = 0;
    while let Some(next) = text[from..].find(|letter: char| letter.is_ascii_digit()) {
        let start = from + next;
        let length = text[start..].bytes().take_while(u8::is_ascii_digit).count();
        if matches!(length, 8 | 10) {
            return text[..start].trim_end();
        }
        from = start + length;
    }
    text
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
        // ELB learns of a new security group a moment after EC2 has made it.
        "InvalidSecurityGroup" => Class::Missing,
        "SubnetNotFound" | "InvalidSubnetID.NotFound" => Class::Invalid,
        "DuplicateLoadBalancerName" | "DuplicateTargetGroupName" | "DuplicateListener" => Class::Exists,
        "InvalidGroup.Duplicate" | "InvalidPermission.Duplicate" => Class::Exists,
        "AccessDenied" | "AccessDeniedException" | "UnauthorizedOperation" => Class::Denied,
        "NoCredentials" | "AuthFailure" | "InvalidClientTokenId" | "UnrecognizedClientException" => {
            Class::Unauthenticated
        }
        "ExpiredToken" | "ExpiredTokenException" | "RequestExpired" => Class::Unauthenticated,
        "RequestTimeTooSkewed" | "RequestInTheFuture" => Class::Unauthenticated,
        "SignatureDoesNotMatch" | "InvalidSignatureException" | "IncompleteSignature" => Class::Unauthenticated,
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
    use aws_smithy_runtime_api::client::result::ConnectorError;

    use super::*;

    #[test]
    fn codes() {
        for (code, status, class) in [
            ("LoadBalancerNotFound", 400, Class::Missing),
            ("InvalidSecurityGroup", 400, Class::Missing),
            ("InvalidGroup.Duplicate", 400, Class::Exists),
            ("Throttling", 400, Class::Throttled),
            ("UnauthorizedOperation", 403, Class::Denied),
            ("RequestExpired", 400, Class::Unauthenticated),
            ("RequestTimeTooSkewed", 403, Class::Unauthenticated),
            ("RequestInTheFuture", 400, Class::Unauthenticated),
            ("AuthFailure", 401, Class::Unauthenticated),
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

    fn denial(action: &'static str, message: &str) -> AwsError {
        let (code, message) = ("AccessDenied".into(), message.into());
        AwsError { action, resource: "arn:aws:x".into(), class: Class::Denied, code, message }
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
        let own = "User: arn:aws:sts::1:assumed-role/weir/weir is not authorized to perform: \
                   elasticloadbalancing:DeleteLoadBalancer on resource: arn:aws:x";
        for message in ["no", own] {
            let sentence = denial("elasticloadbalancing:DeleteLoadBalancer", message).to_string();
            assert!(
                sentence.starts_with("AWS denies elasticloadbalancing:DeleteLoadBalancer on arn:aws:x; "),
                "{sentence}"
            );
        }
    }

    #[test]
    fn r53_a_denial_names_the_permission_that_is_missing_not_the_call() {
        let tags = "User: arn:aws:sts::1:assumed-role/weir/weir is not authorized to perform: \
                    elasticloadbalancing:AddTags on resource: arn:aws:x because no identity-based policy allows it";
        let sentence = denial("elasticloadbalancing:CreateLoadBalancer", tags).to_string();
        let told = "AWS denies elasticloadbalancing:AddTags, which elasticloadbalancing:CreateLoadBalancer on arn:aws:x \
                    asks for with the condition key elasticloadbalancing:CreateAction = CreateLoadBalancer; ";
        assert!(sentence.starts_with(told), "{sentence}");
        let first = "User: x is not authorized to perform: ec2:DescribeAccountAttributes";
        let sentence = denial("elasticloadbalancing:CreateLoadBalancer", first).to_string();
        assert!(sentence.contains("denies ec2:DescribeAccountAttributes, which"), "{sentence}");
        assert!(!sentence.contains("CreateAction"), "{sentence}");
    }

    #[test]
    fn a_call_without_credentials_says_why_there_are_none() {
        type Refused = SdkError<aws_sdk_ec2::operation::describe_vpcs::DescribeVpcsError, HttpResponse>;
        let missing = CredentialsError::provider_error("the token has expired");
        let other = Refused::dispatch_failure(ConnectorError::other(missing.into(), None));
        let error = AwsError::new("ec2:DescribeVpcs", "*", &other);
        assert_eq!((error.class, error.code.as_str()), (Class::Unauthenticated, "NoCredentials"));
        assert!(error.to_string().contains("the token has expired"), "{error}");
        let lost = Refused::dispatch_failure(ConnectorError::io("connection refused".into()));
        let error = AwsError::new("ec2:DescribeVpcs", "*", &lost);
        assert_eq!((error.class, error.code.as_str()), (Class::Transient, "NoAnswer"));
        assert!(error.message.ends_with("connection refused"), "{error}");
    }
    #[test]
    fn a_refusal_of_credentials_has_the_same_words_each_time() {
        for (message, words) in [
            (
                "Token expired: current date/time 1795709015 must be before 1795709000",
                "Token expired: current date/time",
            ),
            ("Signature expired: 20261126T154500Z is now earlier than 20261126T160000Z", "Signature expired:"),
            ("code: \"AccessDenied\", aws_request_id: \"e8ee5e93\" }", "code: \"AccessDenied\""),
            ("role arn:aws:iam::123456789012:role/weir", "role arn:aws:iam::123456789012:role/weir"),
        ] {
            assert_eq!(steady(message), words);
        }
    }
}
