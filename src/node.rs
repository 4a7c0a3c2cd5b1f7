//! `weir node`: forwards NodePorts, ClusterIPs and external addresses on one node.
//!
//! ```text
//!   Services, EndpointSlices ──► Index ──contribute──► Programme ──changes──► kernel ──► conntrack, health checks
//!   Node, addresses ───► Facts ────┘                      ▲                     │
//!                                                         └── order of endpoints ┘ (read once, at start)
//! ```

pub mod addresses;
pub mod agent;
pub mod conntrack;
pub mod eligibility;
pub mod endpoint;
#[cfg(test)]
mod golden;
pub mod health;
pub mod health_check_port;
pub mod index;
pub mod kernel;
pub mod kube_proxy;
pub mod local;
pub mod metrics;
pub mod programme;
pub mod question;
pub mod ranges;
pub mod ruleset;
pub mod run;
#[cfg(test)]
mod scene;
pub mod service;
pub mod sysctl;
