//! Flags of the commands for people.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use crate::model::id::ServiceKey;
use crate::model::service::Scheme;
use crate::settings::{Controller, Log, LogFormat, NodeMode, cluster_name, duration, mark, port_range};

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

/// `weir plan`.
#[derive(Clone, Debug, Args)]
pub struct Plan {
    /// Services to plan; without them all of weir's
    #[arg(value_name = "NAMESPACE/NAME", value_parser = service_key, conflicts_with = "files")]
    pub services: Vec<ServiceKey>,

    /// Plan the Services in this file, or in the .yaml, .yml and .json files of this directory, in place of the
    /// cluster's; - is standard input. Can be given several times
    #[arg(long = "filename", short = 'f', value_name = "FILE")]
    pub files: Vec<PathBuf>,

    /// Namespace of the Services whose file names none
    #[arg(long, short = 'n', default_value = "default")]
    pub default_namespace: String,

    /// Store what was read from the cluster and the account in this file
    #[arg(long, value_name = "FILE")]
    pub save_snapshot: Option<PathBuf>,

    /// Plan with what is stored in this file, settings included, and without any network
    #[arg(long, value_name = "FILE", conflicts_with = "save_snapshot")]
    pub snapshot: Option<PathBuf>,

    /// How to write it
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,

    /// Where.
    #[command(flatten)]
    pub place: Place,

    /// What the controller's Deployment does not tell.
    #[command(flatten)]
    pub overrides: Overrides,

    /// What to log: a level, or directives such as info,weir=debug
    #[arg(long, env = "WEIR_LOG", default_value = "warn")]
    pub log: String,
}

/// Settings of the controller, in place of those that its Deployment gives it.
#[derive(Clone, Debug, Args)]
pub struct Overrides {
    /// VPC of the load balancers, if the controller is given one
    #[arg(long, env = "WEIR_VPC_ID")]
    pub vpc_id: Option<String>,

    /// The load balancer class that the controller serves
    #[arg(long, env = "WEIR_LOAD_BALANCER_CLASS")]
    pub load_balancer_class: Option<String>,

    /// The controller serves Services without a class too
    #[arg(long, env = "WEIR_CLAIM_CLASSLESS")]
    pub claim_classless: bool,

    /// The controller's scheme of a load balancer whose Service asks for none
    #[arg(long, env = "WEIR_DEFAULT_SCHEME", value_enum)]
    pub default_scheme: Option<Scheme>,

    /// The controller's NodePorts of the cluster
    #[arg(long, env = "WEIR_NODE_PORT_RANGE", value_parser = port_range)]
    pub node_port_range: Option<(u16, u16)>,

    /// The controller's port on which every node answers GET /healthz
    #[arg(long, env = "WEIR_HEALTH_PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub health_port: Option<u16>,
}

impl Overrides {
    /// The controller's settings with these in their place.
    #[must_use]
    pub fn over(&self, controller: Controller) -> Controller {
        Controller {
            vpc_id: self.vpc_id.clone().or(controller.vpc_id),
            load_balancer_class: self.load_balancer_class.clone().unwrap_or(controller.load_balancer_class),
            claim_classless: self.claim_classless || controller.claim_classless,
            default_scheme: self.default_scheme.unwrap_or(controller.default_scheme),
            node_port_range: self.node_port_range.unwrap_or(controller.node_port_range),
            health_port: self.health_port.unwrap_or(controller.health_port),
            ..controller
        }
    }
}

/// `weir gc`.
#[derive(Clone, Debug, Args)]
pub struct Gc {
    /// Delete what is found. Without this nothing is changed
    ///
    /// While it deletes, weir gc holds the Lease of the controller: it begins only if no controller holds it, and no
    /// controller begins before it has ended.
    #[arg(long)]
    pub delete: bool,

    /// Of a cluster that is gone: everything that it left. Kubernetes is not asked
    ///
    /// Refused where two clusters of this name left something (see --cluster-uid), and where instances of the cluster
    /// still run (see --force).
    #[arg(long)]
    pub all: bool,

    /// With --all: of several clusters that had this name the one with this id, the UID of its namespace kube-system
    #[arg(long, requires = "all")]
    pub cluster_uid: Option<String>,

    /// With --delete: go on although a controller holds the Lease, or instances of the cluster still run
    #[arg(long, requires = "delete")]
    pub force: bool,

    /// With --delete: how long to wait for AWS to let go of what is to be deleted
    // The network interfaces of a load balancer outlive it by some minutes, and keep its security groups.
    #[arg(long, default_value = "10m", value_parser = duration)]
    pub timeout: Duration,

    /// How to write it
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,

    /// Where.
    #[command(flatten)]
    pub place: Place,

    /// What to log: a level, or directives such as info,weir=debug
    #[arg(long, env = "WEIR_LOG", default_value = "warn")]
    pub log: String,
}

/// A log for people: standard error, beside the answer.
pub fn log(log: &str) -> Log {
    Log { log_format: LogFormat::Text, log: log.to_owned(), otlp_endpoint: None }
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
    use clap::Parser as _;

    use super::*;
    use crate::settings::{Cli, Command};

    #[test]
    fn what_is_said_goes_before_what_is_deployed() {
        let deployed = || {
            let line = ["weir", "controller", "--cluster-name=demo", "--health-port=1", "--vpc-id=vpc-1"];
            match Cli::try_parse_from(line).unwrap().command {
                Command::Controller(settings) => settings,
                other => panic!("{other:?}"),
            }
        };
        let nothing = Overrides {
            vpc_id: None,
            load_balancer_class: None,
            claim_classless: false,
            default_scheme: None,
            node_port_range: None,
            health_port: None,
        };
        let kept = nothing.over(deployed());
        assert_eq!((kept.health_port, kept.vpc_id.as_deref()), (1, Some("vpc-1")));
        let said = Overrides { health_port: Some(2), default_scheme: Some(Scheme::Internal), ..nothing };
        let changed = said.over(deployed());
        assert_eq!((changed.health_port, changed.default_scheme), (2, Scheme::Internal));
        assert_eq!(changed.vpc_id.as_deref(), Some("vpc-1"));
    }

    #[test]
    fn services_by_name() {
        assert_eq!(service_key("shop/order"), Ok(ServiceKey::new("shop", "order")));
        assert_eq!(service_key("order"), Ok(ServiceKey::new("default", "order")));
        for bad in ["", "/order", "shop/", "shop/order/80"] {
            assert!(service_key(bad).is_err(), "{bad}");
        }
    }
}
