//! `weir doctor`: what is wrong, the cause first.
//!
//! ```text
//!   Kubernetes ─┐
//!   AWS ────────┼─gather─► Facts ─examine─► Report ─► text, JSON
//!   kernel ─────┘              (pure: each check looks at facts alone)
//! ```
//!
//! Checks stand in the order of causes: what could make a later one fail comes before it. A check that lacks facts says
//! why, and is neither good nor bad.

pub mod check;
pub mod facts;
pub mod gather;
pub mod identity;
pub mod kubernetes;
pub mod network;
pub mod node;
pub mod print;
pub mod proxies;
pub mod rights;
pub mod scaling;
pub mod services;
#[cfg(test)]
mod tests;

use self::check::Check;
use self::facts::{Facts, NodeFacts};

/// All checks of a cluster and its account, causes first.
pub fn cluster_checks() -> Vec<&'static Check<Facts>> {
    let groups: [&'static [Check<Facts>]; 9] = [
        kubernetes::API,
        identity::CHECKS,
        kubernetes::RIGHTS,
        network::CHECKS,
        scaling::CHECKS,
        kubernetes::ADMISSION,
        proxies::CHECKS,
        kubernetes::LEADER,
        services::CHECKS,
    ];
    groups.into_iter().flatten().collect()
}

/// All checks of one node, causes first.
pub fn node_checks() -> Vec<&'static Check<NodeFacts>> {
    node::CHECKS.iter().collect()
}
