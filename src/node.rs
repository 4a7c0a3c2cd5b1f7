//! `weir node`: forwards NodePorts, ClusterIPs and external addresses on one node.
//!
//! ```text
//!   Services, EndpointSlices ──► Index ──contribute──► Programme ──changes──► kernel ──► conntrack, health checks
//!   Node, addresses ───► Facts ────┘                      ▲                     │
//!                                                         └── order of endpoints ┘ (read once, at start)
//! ```

pub mod endpoint;
pub mod index;
pub mod programme;
pub mod ruleset;
pub mod service;
