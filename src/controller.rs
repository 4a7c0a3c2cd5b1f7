//! The controller: Services of type LoadBalancer → Network Load Balancers.

pub mod account;
pub mod apply;
pub mod backend;
pub mod cluster_name;
pub mod contest;
pub mod desired;
pub mod detail;
pub mod drift;
pub mod facts;
pub mod observed;
pub mod placement;
pub mod plan;
pub mod reconcile;
pub mod rehearsal;
pub mod report;
pub mod run;
pub mod shares;
pub mod standing;
pub mod targets;
