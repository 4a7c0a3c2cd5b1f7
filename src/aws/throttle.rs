//! Token buckets, one for each class of operation.
//!
//! AWS gives reads of ELB a bucket of 40, refilled with 10 a second, for the account and Region, shared with every
//! other tool there (ELB user guide, "Request throttling"). These stay below it. Writes are ours to space out too: the
//! AWS Load Balancer Controller found 3 to 4 a second with a burst of 20 to be safe.

use std::num::NonZeroU32;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

const READS_PER_SECOND: NonZeroU32 = NonZeroU32::new(8).expect("not zero");
const READ_BURST: NonZeroU32 = NonZeroU32::new(20).expect("not zero");
const WRITES_PER_SECOND: NonZeroU32 = NonZeroU32::new(10).expect("not zero");
const WRITE_BURST: NonZeroU32 = NonZeroU32::new(40).expect("not zero");
const TARGETS_PER_SECOND: NonZeroU32 = NonZeroU32::new(4).expect("not zero");
const TARGETS_BURST: NonZeroU32 = NonZeroU32::new(20).expect("not zero");

/// The buckets.
#[derive(Debug)]
pub struct Throttle {
    reads: DefaultDirectRateLimiter,
    writes: DefaultDirectRateLimiter,
    targets: DefaultDirectRateLimiter,
}

impl Default for Throttle {
    fn default() -> Self {
        let bucket = |rate, burst| RateLimiter::direct(Quota::per_second(rate).allow_burst(burst));
        Self {
            reads: bucket(READS_PER_SECOND, READ_BURST),
            writes: bucket(WRITES_PER_SECOND, WRITE_BURST),
            targets: bucket(TARGETS_PER_SECOND, TARGETS_BURST),
        }
    }
}

impl Throttle {
    /// Waits for a describe.
    pub async fn read(&self) {
        self.reads.until_ready().await;
    }

    /// Waits for a create, modify or delete.
    pub async fn write(&self) {
        self.writes.until_ready().await;
    }

    /// Waits for a registration or deregistration of targets.
    pub async fn targets(&self) {
        self.targets.until_ready().await;
    }
}
