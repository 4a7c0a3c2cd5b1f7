//! Flags of the commands for people.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use crate::model::id::ServiceKey;
use crate::settings::{NodeMode, cluster_name, duration, mark};

/// Which cluster is meant, and where its controller runs.
///
/// What is not said here is taken from the controller's Deployment.
#[derive(Clone, Debug, Args)]
pub struct Place {
    /// Name of the cluster; without it the one that the controller's Deployment is given
    #[arg(long, env = "WEIR_CLUSTER_NAME", value_parser = cluster_name)]
    pub cluster_name: Option<String>,

    /// AWS Region; without it the controller's, the one of the environment, or of the nodes
    #[arg(long, env = "WEIR_REGION")]
    pub region: Option<String>,

    /// Namespace of the controller's Deployment (weir-controller) and of its Lease
    #[arg(long, env = "WEIR_NAMESPACE", default_value = "weir-system")]
    pub namespace: String,
}

/// How an answer is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// `weir status`.
#[derive(Clone, Debug, Args)]
pub struct Status {
    /// Services to show; without them all of weir's
    #[arg(value_name = "NAMESPACE/NAME", value_parser = service_key)]
    pub services: Vec<ServiceKey>,

    /// Show it again and again
    #[arg(long, short)]
    pub watch: bool,

    /// With --watch: pause between two looks
    // A look at 100 Services costs about 130 calls, which weir's own bucket spreads over a quarter of a minute.
    #[arg(long, default_value = "5s", value_parser = duration)]
    pub interval: Duration,

    /// How to write it
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,

    /// Where.
    #[command(flatten)]
    pub place: Place,
}

/// `weir doctor`.
#[derive(Clone, Debug, Args)]
pub struct Doctor {
    /// Question.
    #[command(subcommand)]
    pub scope: Option<DoctorScope>,

    /// How to write it
    #[arg(long, short, value_enum, default_value_t, global = true)]
    pub output: Output,

    /// How long a Service may wait for its load balancer, or for its deletion, before it is a finding
    // AWS takes one to three minutes for a load balancer.
    #[arg(long, default_value = "5m", value_parser = duration)]
    pub patience: Duration,

    /// Where.
    #[command(flatten)]
    pub place: Place,
}

/// What `weir doctor` looks at in place of the cluster and the account.
#[derive(Clone, Debug, Subcommand)]
pub enum DoctorScope {
    /// Look at this node: nftables, kube-proxy's rules, routing, marks, health port
    ///
    /// Run it where weir node runs: on the host's network, with the capability NET_ADMIN. It reads the kernel only.
    Node(DoctorNode),
}

/// `weir doctor node`; the flags mean what they mean to `weir node`.
#[derive(Clone, Debug, Args)]
pub struct DoctorNode {
    /// Whose Services weir node serves
    #[arg(long, env = "WEIR_NODE_MODE", value_enum, default_value_t = NodeMode::Replace)]
    pub mode: NodeMode,

    /// Bit of the packet mark that weir node uses
    #[arg(long, env = "WEIR_MASQUERADE_MARK", default_value = "0x1000", value_parser = mark)]
    pub masquerade_mark: u32,

    /// Where weir node answers /healthz
    #[arg(long, env = "WEIR_HEALTHZ_ADDRESS", default_value = "0.0.0.0:10256")]
    pub healthz_address: SocketAddr,

    /// Whether weir node leaves the kernel's conntrack settings as they are
    #[arg(long, env = "WEIR_KEEP_SYSCTLS")]
    pub keep_sysctls: bool,
}

fn service_key(text: &str) -> Result<ServiceKey, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(ServiceKey::new(namespace, name))
        }
        None if !text.is_empty() => Ok(ServiceKey::new("default", text)),
        _ => Err("expected NAMESPACE/NAME, or NAME in the namespace default".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_by_name() {
        assert_eq!(service_key("shop/order"), Ok(ServiceKey::new("shop", "order")));
        assert_eq!(service_key("order"), Ok(ServiceKey::new("default", "order")));
        for bad in ["", "/order", "shop/", "shop/order/80"] {
            assert!(service_key(bad).is_err(), "{bad}");
        }
    }
}
