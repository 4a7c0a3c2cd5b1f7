//! Identifiers as types, so that a target group's ARN cannot be passed where a load balancer's is meant.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! identifier {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(String);

        impl $name {
            /// The identifier as AWS spells it.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl<S: Into<String>> From<S> for $name {
            fn from(text: S) -> Self {
                Self(text.into())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )+};
}

identifier!(
    /// ARN of a Network Load Balancer.
    LoadBalancerArn,
    /// ARN of a target group; also the identifier of a traffic source.
    TargetGroupArn,
    /// ARN of a listener.
    ListenerArn,
    /// `sg-…`
    SecurityGroupId,
    /// `subnet-…`
    SubnetId,
    /// `vpc-…`
    VpcId,
    /// `i-…`
    InstanceId,
    /// Name of an Auto Scaling group, unique in an account and Region.
    AsgName,
    /// Name of an Availability Zone, e.g. `us-east-1a`.
    Zone,
);

/// Namespace and name of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// The Service's namespace.
    pub namespace: String,
    /// The Service's name.
    pub name: String,
}

impl ServiceKey {
    /// A key of its two parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
