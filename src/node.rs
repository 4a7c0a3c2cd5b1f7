//! `weir node`: what forwards Services on one node, and what stands around it.

pub mod addresses;
pub mod conntrack;
pub mod eligibility;
pub mod health;
pub mod health_check_port;
pub mod metrics;
pub mod sysctl;
