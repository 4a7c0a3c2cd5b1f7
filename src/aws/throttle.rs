//! Token buckets, one for each class of operation, as AWS has them: each service counts for itself, so that security
//! groups do not wait for load balancers.
//!
//! AWS gives reads of ELB a bucket of 40, refilled with 10 a second, for the account and Region, shared with every
//! other tool there (ELB user guide, "Request throttling"). These stay below it. For writes to ELB no figure is
//! published. EC2 counts each action for itself (EC2 developer guide, "Request throttling").

use std::num::NonZeroU32;

use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};

/// Tokens a second, and tokens in a full bucket.
type Size = (u32, u32);

const READS: Size = (8, 20);
/// Of a command that reads once: they are spread over four services, each of which has a bucket of its own with AWS.
const READS_AT_ONCE: Size = (8, 60);
/// What the AWS Load Balancer Controller allows itself for all calls to ELB but registrations, after years in large
/// accounts (its `aws-api-throttle`, PR 2810). For us it holds writes alone.
const BALANCER_WRITES: Size = (10, 40);
/// For each action. EC2 refills most actions that change something with 5 a second, up to 50; a fifth is left to others.
const NETWORK_WRITES: Size = (4, 40);
/// Ten target groups go in one call, so that more would gain nothing.
const SCALING_WRITES: Size = (5, 20);
/// Also the AWS Load Balancer Controller's.
const TARGETS: Size = (4, 20);

/// The buckets.
#[derive(Debug)]
pub struct Throttle {
    reads: DefaultDirectRateLimiter,
    balancers: DefaultDirectRateLimiter,
    network: DefaultKeyedRateLimiter<&'static str>,
    scaling: DefaultDirectRateLimiter,
    targets: DefaultDirectRateLimiter,
}

const fn quota((rate, burst): Size) -> Quota {
    let rate = NonZeroU32::new(rate).expect("not zero");
    Quota::per_second(rate).allow_burst(NonZeroU32::new(burst).expect("not zero"))
}

impl Default for Throttle {
    fn default() -> Self {
        Self {
            reads: RateLimiter::direct(quota(READS)),
            balancers: RateLimiter::direct(quota(BALANCER_WRITES)),
            network: RateLimiter::keyed(quota(NETWORK_WRITES)),
            scaling: RateLimiter::direct(quota(SCALING_WRITES)),
            targets: RateLimiter::direct(quota(TARGETS)),
        }
    }
}

impl Throttle {
    /// Buckets of a command that reads once and ends.
    pub fn at_once() -> Self {
        Self { reads: RateLimiter::direct(quota(READS_AT_ONCE)), ..Self::default() }
    }

    /// Waits for a describe. Returns the bucket's name, as the others do.
    pub async fn read(&self, _action: &'static str) -> &'static str {
        self.reads.until_ready().await;
        "reads"
    }

    /// Waits for a create, modify or delete. `action` is the IAM action: its service has a bucket of its own.
    pub async fn write(&self, action: &'static str) -> &'static str {
        match action.split_once(':') {
            Some(("ec2", _)) => {
                self.network.until_key_ready(&action).await;
                "network_writes"
            }
            Some(("autoscaling", _)) => {
                self.scaling.until_ready().await;
                "scaling_writes"
            }
            _ => {
                self.balancers.until_ready().await;
                "balancer_writes"
            }
        }
    }

    /// Waits for a registration or deregistration of targets.
    pub async fn targets(&self, _action: &'static str) -> &'static str {
        self.targets.until_ready().await;
        "targets"
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    /// How many calls go at once, up to 100.
    fn burst(throttle: &Throttle, action: &'static str) -> u32 {
        (0..100).take_while(|_| throttle.write(action).now_or_never().is_some()).count().try_into().unwrap()
    }

    #[test]
    fn a_bucket_holds_what_it_says_and_leaves_the_others_alone() {
        let throttle = Throttle::default();
        // A token may come in while the bucket is emptied.
        let is_about = |seen: u32, size: Size| (size.1..=size.1 + 1).contains(&seen);
        assert!(is_about(burst(&throttle, "ec2:CreateSecurityGroup"), NETWORK_WRITES));
        assert!(is_about(burst(&throttle, "ec2:DeleteSecurityGroup"), NETWORK_WRITES), "each action of EC2 for itself");
        assert!(is_about(burst(&throttle, "elasticloadbalancing:CreateLoadBalancer"), BALANCER_WRITES));
        assert!(burst(&throttle, "elasticloadbalancing:CreateTargetGroup") <= 1, "ELB's share one");
        assert!(is_about(burst(&throttle, "autoscaling:AttachTrafficSources"), SCALING_WRITES));
    }
}
