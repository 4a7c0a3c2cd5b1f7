//! weir makes `type: LoadBalancer` work on EKS.
//!
//! ```text
//!   Service ──parse──► ServiceSpec ─┐
//!   VPC, subnets, nodes ─► Facts ───┼─desired─► Desired ─┐
//!                                   │                    ├─plan─► Plan ─apply─► AWS ─► status, Events
//!   AWS ─────drift check────────────┴──► Observed ───────┤            │
//!                    ▲                                   └─place─► Placement ─► traffic sources, targets
//!                    └───────────── each write of ours is recorded ───┘
//! ```
//!
//! What decides is pure and lives in [`model`] and in `controller::{desired, plan, placement}`; what acts is thin and
//! lives in [`aws`], [`cluster`] and the rest of [`controller`].

#![forbid(unsafe_code)]
#![warn(clippy::pedantic, clippy::unwrap_used, clippy::panic)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::panic,
        clippy::needless_pass_by_value,
        reason = "a test that panics has failed, as it should, and json! is read best in place"
    )
)]
#![allow(clippy::must_use_candidate, reason = "noise in a binary's own library")]
#![allow(clippy::doc_markdown, reason = "names of AWS operations and Kubernetes kinds read as prose")]
#![allow(clippy::similar_names, reason = "asg and arn, uid and id are the field's words")]

pub mod admin;
pub mod aws;
pub mod cluster;
pub mod command;
pub mod controller;
pub mod doctor;
pub mod metrics;
pub mod model;
pub mod netfilter;
pub mod node;
pub mod process;
#[cfg(test)]
mod reference;
pub mod settings;
pub mod status;
pub mod telemetry;
