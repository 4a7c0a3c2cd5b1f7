//! The last look at leadership: at each attempt of each write, when it is about to leave.
//!
//! A step asks before it begins. After that it may wait for a token, for credentials, or between two attempts of the SDK,
//! and the process itself may be stopped for a while; leadership can be gone when the call leaves.

use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::BeforeTransmitInterceptorContextRef;
use aws_smithy_runtime_api::client::orchestrator::Metadata;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::ConfigBag;

use crate::cluster::lease::Claim;

/// Keeps writes back that must not leave any more.
#[derive(Clone, Debug)]
pub struct Fence(Claim);

/// Why a write was kept back.
#[derive(Debug, thiserror::Error)]
#[error("kept back, since this process is no longer the leader")]
struct NotLeader;

impl Fence {
    /// A fence that follows this claim.
    pub fn new(claim: &Claim) -> Self {
        Self(claim.clone())
    }
}

impl Intercept for Fence {
    fn name(&self) -> &'static str {
        "Fence"
    }

    fn read_before_transmit(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        bag: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let is_read = bag.load::<Metadata>().is_some_and(|call| call.name().starts_with("Describe"));
        if is_read || self.0.holds() { Ok(()) } else { Err(NotLeader.into()) }
    }
}
