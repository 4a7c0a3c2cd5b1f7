//! Flags → checked settings. Every flag has an environment variable beside it; every default has its reason here.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use hyper::Uri;
use ipnet::IpNet;
use jiff::SignedDuration;

use crate::command;
use crate::command::settings::{Overrides, Place};
use crate::controller::desired::Policy;
use crate::model::id::VpcId;
use crate::model::service::{CLASS, Scheme};
use crate::netfilter::object::Protocol;
use crate::node::addresses::NodePortAddresses;
use crate::node::service::Mode;

/// `type: LoadBalancer` on EKS, through Network Load Balancers and the workers' Auto Scaling groups.
#[derive(Debug, Parser)]
#[command(version, about, propagate_version = true)]
pub struct Cli {
    /// What to run.
    #[command(subcommand)]
    pub command: Command,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Provision Network Load Balancers for Services of type LoadBalancer
    ///
    /// Watches Services whose spec.loadBalancerClass is --load-balancer-class, makes a Network Load Balancer for each,
    /// attaches its target groups to the workers' Auto Scaling groups, and writes the hostname into the status. Takes
    /// its AWS credentials and Region from the environment (IRSA, EKS Pod Identity, AWS_REGION) and the cluster from
    /// KUBECONFIG or the pod's service account.
    Controller(Controller),

    /// Forward Services on this node, in place of kube-proxy or beside it
    ///
    /// Watches Services and EndpointSlices and keeps one nftables table per address family (ip weir, ip6 weir) that
    /// sends connections to ClusterIPs, NodePorts and external addresses to their endpoints. Needs the host's network,
    /// the capability NET_ADMIN and the nft program. Rules stay when it ends; --cleanup removes them.
    Node(NodeCommand),

    /// Show Services with their load balancers, listeners, target groups and targets
    ///
    /// Reads the cluster and the account, and changes nothing.
    Status(command::settings::Status),

    /// Find out what is wrong: the cause first, then what follows from it
    ///
    /// Looks at identity, permissions, network, Auto Scaling groups, quotas, policies and Services, and says what to do.
    /// Ends with exit code 1 if it found an error. Run it where the controller runs to see the account with its
    /// credentials; elsewhere it uses those of the environment. Changes nothing.
    Doctor(command::settings::Doctor),

    /// Show what the controller would create, change, replace and delete in AWS, and why
    ///
    /// Reads Services from the cluster or from files, and changes nothing. Exit code: 0 there is nothing to do, 2 there
    /// is, 1 it failed or a Service is refused. With --snapshot it needs no network.
    Plan(command::settings::Plan),

    /// Find what weir made in AWS for Services that are gone, and delete it
    ///
    /// Shows only, unless --delete is given. What does not carry the tags of this cluster is never touched. Exit code:
    /// 0 there is nothing left, 2 there is, 1 it failed.
    Gc(command::settings::Gc),
}

impl Cli {
    /// Reads the command line.
    ///
    /// # Errors
    /// It is wrong, or asks for help.
    pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut command = Self::command();
        let matches = command.try_get_matches_from_mut(arguments)?;
        if let Some(("plan", plan)) = matches.subcommand()
            && plan.value_source("snapshot").is_some()
        {
            let names = Overrides::augment_args(Place::augment_args(clap::Command::new("plan")));
            let mut names = names.get_arguments().map(|argument| argument.get_id().as_str());
            let given = |name: &&str| plan.value_source(name) == Some(ValueSource::CommandLine);
            if let Some(name) = names.find(given) {
                let flag = name.replace('_', "-");
                let wrong = format!("--{flag} cannot be used with --snapshot, which holds its own settings\n");
                return Err(command.error(ErrorKind::ArgumentConflict, wrong));
            }
        }
        Self::from_arg_matches(&matches)
    }
}

/// `weir node`, and what people ask it.
#[derive(Clone, Debug, Args)]
pub struct NodeCommand {
    /// Question.
    #[command(subcommand)]
    pub question: Option<NodeQuestion>,

    /// Settings.
    #[command(flatten)]
    pub settings: Node,
}

/// Questions about the forwarding of a node.
#[derive(Clone, Debug, Subcommand)]
pub enum NodeQuestion {
    /// Tell what becomes of a connection, rule by rule
    ///
    /// Reads Services and EndpointSlices and follows the first packet of a connection through the rules that this node
    /// has for them. Changes nothing and needs no privilege.
    Trace {
        /// Where the connection comes from: host, pod:ADDRESS or ADDRESS
        from: String,
        /// Where it goes: ADDRESS:PORT
        to: std::net::SocketAddr,
        /// Its protocol: tcp, udp or sctp
        #[arg(long, default_value = "tcp", value_parser = protocol)]
        protocol: Protocol,
    },
    /// Show the rules of a Service, or of a port number
    ///
    /// Prints the elements and chains by which this node forwards a Service, and whether the kernel holds them (if this
    /// process may look).
    Rules {
        /// NAMESPACE/NAME, NAME in the namespace default, or a port number
        service: String,
    },
}

/// Settings of a node.
#[derive(Clone, Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct Node {
    /// Name of this node's Node object
    #[arg(long, env = "NODE_NAME", global = true, default_value = "", hide_default_value = true)]
    pub node_name: String,

    /// Serve all Services, or only those that name this proxy while kube-proxy serves the others
    #[arg(long, env = "WEIR_NODE_MODE", value_enum, default_value_t = NodeMode::Replace, global = true)]
    pub mode: NodeMode,

    /// The value of the label service.kubernetes.io/service-proxy-name of our Services: with --mode=beside those that have
    /// it are served, with --mode=replace those that have no other
    #[arg(long, env = "WEIR_SERVICE_PROXY_NAME", default_value = "weir", global = true)]
    pub service_proxy_name: String,

    /// Addresses on which NodePorts answer: primary (the Node object's first of each family), all, localhost (none, see
    /// the documentation), or CIDRs separated by commas
    #[arg(long, env = "WEIR_NODEPORT_ADDRESSES", default_value = "primary", global = true)]
    pub nodeport_addresses: NodePortAddresses,

    /// How the names of the interfaces of this node's pods begin, separated by commas; empty if unknown
    // The VPC CNI's veths.
    #[arg(long, env = "WEIR_POD_INTERFACE_PREFIXES", value_delimiter = ',', default_value = "eni", global = true)]
    pub pod_interface_prefixes: Vec<String>,

    /// Ranges of the addresses of this node's pods, separated by commas, where interfaces do not tell
    #[arg(long, env = "WEIR_POD_CIDRS", value_delimiter = ',', global = true)]
    pub pod_cidrs: Vec<IpNet>,

    /// Give every connection to a ClusterIP this node's address
    #[arg(long, env = "WEIR_MASQUERADE_ALL", global = true)]
    pub masquerade_all: bool,

    /// Bit of the packet mark by which packets are known that get this node's address
    // Free of the VPC CNI's (0x80), kube-proxy's and the kubelet's (0x4000, 0x8000) and Calico's (0xffff0000).
    #[arg(long, env = "WEIR_MASQUERADE_MARK", default_value = "0x1000", value_parser = mark, global = true)]
    pub masquerade_mark: u32,

    /// Serve spec.externalIPs
    #[arg(long, env = "WEIR_EXTERNAL_IPS", default_value_t = true, action = clap::ArgAction::Set, global = true)]
    pub external_ips: bool,

    /// Address of /healthz and /livez
    #[arg(long, env = "WEIR_HEALTHZ_ADDRESS", default_value = "0.0.0.0:10256")]
    pub healthz_address: SocketAddr,

    /// Address of /readyz and /metrics
    #[arg(long, env = "WEIR_METRICS_ADDRESS", default_value = "127.0.0.1:10249")]
    pub metrics_address: SocketAddr,

    /// Shortest time between two changes of the rules
    // A change costs well under a millisecond; this only gathers bursts.
    #[arg(long, env = "WEIR_MIN_SYNC_PERIOD", default_value = "20ms", value_parser = duration)]
    pub min_sync_period: Duration,

    /// How long a change may wait before /healthz says 503, halved; also the longest wait after a failure
    #[arg(long, env = "WEIR_SYNC_PERIOD", default_value = "30s", value_parser = duration)]
    pub sync_period: Duration,

    /// Leave the kernel's conntrack settings as they are (always so with --mode=beside)
    #[arg(long, env = "WEIR_KEEP_SYSCTLS")]
    pub keep_sysctls: bool,

    /// Delete our tables, and end
    #[arg(long)]
    pub cleanup: bool,

    /// Logs.
    #[command(flatten)]
    pub log: Log,
}

/// Whose Services a node serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NodeMode {
    /// All but those that name another proxy.
    Replace,
    /// Those that name this proxy.
    Beside,
}

impl Node {
    /// The mode, with the label's value.
    pub fn proxy_mode(&self) -> Mode {
        match self.mode {
            NodeMode::Replace => Mode::Replace(self.service_proxy_name.clone()),
            NodeMode::Beside => Mode::Beside(self.service_proxy_name.clone()),
        }
    }
}

/// Settings of the controller.
#[derive(Clone, Debug, Args)]
pub struct Controller {
    /// Name of the cluster, as in the tag kubernetes.io/cluster/<name> of its subnets and Auto Scaling groups. Marks
    /// what weir makes: never change it while Services exist
    #[arg(long, env = "WEIR_CLUSTER_NAME", value_parser = cluster_name)]
    pub cluster_name: String,

    /// AWS Region; without it the one of the environment, or of the nodes' provider ids
    #[arg(long, env = "WEIR_REGION")]
    pub region: Option<String>,

    /// VPC of the load balancers; without it the one of the nodes' instances
    #[arg(long, env = "WEIR_VPC_ID")]
    pub vpc_id: Option<String>,

    /// The load balancer class to serve
    #[arg(long, env = "WEIR_LOAD_BALANCER_CLASS", default_value = CLASS)]
    pub load_balancer_class: String,

    /// Serve Services without a class too. Only where no other load balancer controller does
    #[arg(long, env = "WEIR_CLAIM_CLASSLESS")]
    pub claim_classless: bool,

    /// Scheme of a load balancer whose Service asks for none
    #[arg(long, env = "WEIR_DEFAULT_SCHEME", value_enum, default_value_t = Scheme::InternetFacing)]
    pub default_scheme: Scheme,

    /// NodePorts of the cluster, as given to the API server
    #[arg(long, env = "WEIR_NODE_PORT_RANGE", default_value = "30000-32767", value_parser = port_range)]
    pub node_port_range: (u16, u16),

    /// Port on which every node answers GET /healthz for load balancers under externalTrafficPolicy Cluster
    #[arg(long, env = "WEIR_HEALTH_PORT", default_value_t = 10256, value_parser = clap::value_parser!(u16).range(1..))]
    pub health_port: u16,

    /// Time between two checks of everything in AWS
    // 100 Services cost about 30 reads; at five minutes that is a tenth of a read a second, and a mistake made in the
    // console is put right within the time it takes to notice it.
    #[arg(long, env = "WEIR_DRIFT_INTERVAL", default_value = "5m", value_parser = duration)]
    pub drift_interval: Duration,

    /// Longest wait after a failure
    // Whoever repaired a permission should not have to wait for longer.
    #[arg(long, env = "WEIR_RETRY_MAX_INTERVAL", default_value = "5m", value_parser = duration)]
    pub retry_max_interval: Duration,

    /// Services worked on at the same time
    // AWS's buckets, not our threads, are what limits; this bounds memory.
    #[arg(long, env = "WEIR_CONCURRENCY", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    pub concurrency: u16,

    /// Run only while holding a Lease, so that several replicas can stand by
    #[arg(long, env = "WEIR_LEADER_ELECT", default_value_t = true, action = clap::ArgAction::Set)]
    pub leader_elect: bool,

    /// Namespace of the Lease
    #[arg(long, env = "WEIR_NAMESPACE", default_value = "weir-system")]
    pub namespace: String,

    /// Address of /livez, /readyz and /metrics
    #[arg(long, env = "WEIR_LISTEN", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,

    /// Logs.
    #[command(flatten)]
    pub log: Log,
}

impl Controller {
    /// What planning needs of it.
    pub fn policy(&self, cluster_uid: String) -> Policy {
        Policy {
            cluster: self.cluster_name.clone(),
            cluster_uid,
            default_scheme: self.default_scheme,
            node_ports: self.node_port_range,
            health_port: self.health_port,
        }
    }

    /// The VPC, if it is given.
    pub fn vpc(&self) -> Option<VpcId> {
        self.vpc_id.as_deref().map(Into::into)
    }
}

/// Settings of the log and of traces.
#[derive(Clone, Debug, Args)]
pub struct Log {
    /// Form of the log
    #[arg(long, env = "WEIR_LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,

    /// What to log: a level, or directives such as info,weir=debug
    #[arg(long, env = "WEIR_LOG", default_value = "info")]
    pub log: String,

    /// Collector that gets traces by OTLP over HTTP, as in http://collector:4318; without it none are made
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_parser = collector)]
    pub otlp_endpoint: Option<Uri>,
}

/// Forms of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// A tag value: EC2 and ELB both take it, and a name that is cut would mark other clusters' resources as ours.
pub(crate) fn cluster_name(text: &str) -> Result<String, String> {
    let legal = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    if text.is_empty() || text.len() > 100 || !text.chars().all(legal) {
        return Err("expected 1 to 100 letters, digits, hyphens, underscores and dots".into());
    }
    Ok(text.to_owned())
}

pub(crate) fn port_range(text: &str) -> Result<(u16, u16), String> {
    let parse = |part: &str| part.trim().parse::<u16>().ok().filter(|port| *port != 0);
    let range = text.split_once('-').and_then(|(first, last)| Some((parse(first)?, parse(last)?)));
    range
        .filter(|(first, last)| first <= last)
        .ok_or_else(|| "expected two ports, the lower first, as in 30000-32767".into())
}

/// The base of a collector's URLs. HTTP alone: TLS would need a second stack of certificates, for what stays in a cluster.
fn collector(text: &str) -> Result<Uri, String> {
    let parsed = text.parse::<Uri>().ok();
    let legal = |uri: &Uri| uri.scheme_str() == Some("http") && uri.host().is_some() && uri.query().is_none();
    parsed.filter(legal).ok_or_else(|| {
        "expected the http:// URL of a collector that takes OTLP over HTTP, such as http://collector:4318 (not https)".into()
    })
}

fn protocol(text: &str) -> Result<Protocol, String> {
    Protocol::parse(text).ok_or_else(|| "expected tcp, udp or sctp".into())
}

/// One bit, given in hexadecimal or decimal digits.
pub(crate) fn mark(text: &str) -> Result<u32, String> {
    let parsed =
        text.strip_prefix("0x").map_or_else(|| text.parse().ok(), |digits| u32::from_str_radix(digits, 16).ok());
    let taken = [(0x80, "the VPC CNI"), (0x4000, "kube-proxy"), (0x8000, "the kubelet"), (0xffff_0000, "Calico")];
    let mark = parsed.filter(|mark| mark.is_power_of_two()).ok_or("expected a single bit, such as 0x1000")?;
    match taken.iter().find(|(bits, _)| bits & mark != 0) {
        Some((_, whose)) => Err(format!("this bit is used by {whose}; expected another, such as 0x1000")),
        None => Ok(mark),
    }
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<SignedDuration>().ok().and_then(|span| Duration::try_from(span).ok());
    parsed.filter(|span| !span.is_zero()).ok_or_else(|| "expected a time such as 30s or 5m".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_snapshot_brings_its_settings() {
        let read = |line: &str| Cli::read(line.split(' ').map(OsString::from));
        assert!(read("weir plan --snapshot x").is_ok());
        assert!(read("weir plan --cluster-name demo --default-scheme internal").is_ok());
        assert!(read("weir plan").is_ok(), "the controller's Deployment tells");
        for flag in ["--cluster-name=demo", "--default-scheme=internal"] {
            let error = read(&format!("weir plan --snapshot x {flag}")).unwrap_err().to_string();
            let name = flag.split('=').next().unwrap();
            assert!(error.contains(&format!("{name} cannot be used with --snapshot")), "{error}");
        }
    }

    #[test]
    fn values() {
        assert_eq!(port_range("30000-32767"), Ok((30000, 32767)));
        for bad in ["", "1", "2-1", "0-5", "a-b", "1-70000"] {
            assert!(port_range(bad).is_err(), "{bad}");
        }
        assert_eq!(duration("5m"), Ok(Duration::from_mins(5)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for bad in ["", "0s", "-1s", "5", "soon"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        // P23.
        assert_eq!(mark("0x1000"), Ok(0x1000));
        for bad in ["0", "0x3", "0x80", "0x4000", "0x8000", "0x10000", "x", "0x100000000"] {
            assert!(mark(bad).is_err(), "{bad}");
        }
        for good in ["http://collector:4318", "http://10.0.0.1:4318/", "http://[fd00::1]:4318/otlp"] {
            assert!(collector(good).is_ok(), "{good}");
        }
        for bad in ["", "collector:4318", "https://collector:4318", "grpc://collector:4317", "http://", "http://c/?a=b"]
        {
            assert!(collector(bad).is_err(), "{bad}");
        }
        assert!(cluster_name("my-cluster_1.x").is_ok());
        for bad in ["", "a b", "ü"] {
            assert!(cluster_name(bad).is_err(), "{bad}");
        }
    }
}
