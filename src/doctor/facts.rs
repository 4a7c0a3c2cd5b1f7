//! What the checks look at: plain values, gathered once. Whatever could not be read says why.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::aws::classify::AwsError;
use crate::aws::ec2::{Instance, Reference};
use crate::aws::inquiry::{Caller, Health};
use crate::controller::facts::Subnet;
use crate::controller::observed::{Asg, Balancer, SecurityGroup};
use crate::controller::report;
use crate::model::id::{AsgName, InstanceId, SecurityGroupId, ServiceKey, SubnetId, TargetGroupArn, VpcId};
use crate::model::node::Worker;
use crate::model::ownership::Tags;
use crate::model::service::{AddressType, Scheme, is_class_served};
use crate::netfilter::netlink::{FilterSeen, TableSeen};
use crate::settings::{Controller, Node};

/// Why something could not be looked at, as the end of a sentence that begins with what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unseen(pub String);

/// Something that was read, or why it was not.
pub type Seen<T> = Result<T, Unseen>;

/// Everything about a cluster and its account.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The controller's settings; `None` where nobody says the cluster's name.
    pub controller: Seen<Controller>,
    /// How long a Service may wait.
    pub patience: Duration,
    /// When the facts were gathered, by the API server's clock if it told.
    pub now: Timestamp,
    /// The cluster.
    pub kubernetes: Kubernetes,
    /// The account.
    pub cloud: Cloud,
}

/// Why the API server cannot be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApiProblem {
    /// No kubeconfig and no service account.
    NotConfigured(String),
    /// No answer.
    Unreachable(String),
    /// It does not know us.
    Unauthorized(String),
}

/// The cluster.
#[derive(Clone, Debug)]
pub struct Kubernetes {
    /// Major and minor version of the API server.
    pub api: Result<(u32, u32), ApiProblem>,
    /// How far this host's clock is ahead of the API server's.
    pub ahead: Option<SignedDuration>,
    /// UID of the namespace `kube-system`.
    pub uid: Seen<String>,
    /// What the controller's ServiceAccount may not do, in words: `patch services/status`.
    pub forbidden: Seen<Vec<String>>,
    /// Nodes.
    pub nodes: Seen<Vec<NodeSeen>>,
    /// Services of type LoadBalancer, and others that still carry our finalizer.
    pub services: Seen<Vec<ServiceSeen>>,
    /// What the controller has said of Services and Nodes.
    pub told: Seen<Vec<Told>>,
    /// The controller's Lease.
    pub lease: Seen<Option<LeaseSeen>>,
    /// The controller's Deployment.
    pub deployment: Seen<Option<DeploymentSeen>>,
    /// Admission policies.
    pub policy: Seen<Policies>,
    /// The AWS Load Balancer Controller, wherever it is.
    pub lbc: Seen<Lbc>,
    /// kube-proxy's DaemonSet and ours.
    pub proxies: Seen<Proxies>,
}

/// A Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSeen {
    /// As placement sees it; `None` for a Fargate node.
    pub worker: Option<Worker>,
    /// Its zone, by its label.
    pub zone: Option<String>,
    /// Its Region, by its label.
    pub region: Option<String>,
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSeen {
    /// Namespace and name.
    pub key: ServiceKey,
    /// UID.
    pub uid: String,
    /// When it was created.
    pub created: Timestamp,
    /// When its deletion was asked for.
    pub deleted: Option<Timestamp>,
    /// Whether its type is LoadBalancer.
    pub is_balancer: bool,
    /// Its class.
    pub class: Option<String>,
    /// Finalizers.
    pub finalizers: Vec<String>,
    /// Hostname or address in its status.
    pub address: Option<String>,
    /// What is wrong with it as it is written; of Services of our class alone.
    pub problems: Vec<String>,
    /// The scheme it asks for.
    pub scheme: Option<Scheme>,
    /// IP families of its clients.
    pub address_type: AddressType,
    /// Whether it names its subnets.
    pub names_subnets: bool,
    /// How many listeners it asks for.
    pub listeners: usize,
    /// Whether one of its target groups keeps the client's address.
    pub keeps_client_address: bool,
}

/// An Event of the controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// UID of what it is about.
    pub uid: String,
    /// Its reason.
    pub reason: String,
    /// Its words.
    pub note: String,
    /// When it was said last.
    pub at: Timestamp,
}

/// A Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseSeen {
    /// Who holds it.
    pub holder: Option<String>,
    /// When it was renewed.
    pub renewed: Option<Timestamp>,
}

/// The controller's Deployment.
#[derive(Clone, Debug)]
pub struct DeploymentSeen {
    /// Namespace and name.
    pub name: String,
    /// The controller's settings, or what is wrong with its flags.
    pub settings: Result<Controller, String>,
    /// How many pods it wants.
    pub desired: i32,
    /// How many are available.
    pub available: i32,
    /// What Kubernetes says of it when it is not available.
    pub words: Option<String>,
}

/// What there is of weir's admission policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a thing of its own that is there or not")]
pub struct Policies {
    /// Whether the API server knows policies that change something.
    pub is_served: bool,
    /// `weir-class`, which gives Services our class.
    pub has_policy: bool,
    /// What puts it into force.
    pub has_binding: bool,
    /// Whether `weir-annotations`, which refuses mistakes, is there and in force.
    pub validates: bool,
}

/// The AWS Load Balancer Controller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lbc {
    /// Its Deployments: namespace and name, the class they serve, pods that are available.
    pub deployments: Vec<(String, String, i32)>,
    /// The webhook that gives Services its class.
    pub webhook: Option<Webhook>,
}

/// A webhook that looks at every new Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// Its name and its configuration's.
    pub name: String,
    /// Whether Services are refused while nobody answers it.
    pub is_needed: bool,
}

/// Service proxies as DaemonSets.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    /// Nodes that kube-proxy's DaemonSet runs on.
    pub kube_proxy: Option<i32>,
    /// Our DaemonSet's settings, or what is wrong with its flags.
    pub weir: Option<Result<Node, String>>,
}

/// Why there are no credentials that could be tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoCredentials {
    /// Nobody offers any.
    Missing(String),
    /// They have run out.
    Expired(String),
    /// Whoever should hand them out refuses, or cannot be reached.
    Refused(String),
}

/// Who we are to AWS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Known.
    Known(Caller),
    /// Nobody: there are no credentials.
    Nobody(NoCredentials),
    /// AWS refuses the call, or does not answer.
    Refused(AwsError),
    /// Nobody tells the Region.
    NoRegion,
    /// Nobody could be trusted to be AWS, and why.
    NoTrust(String),
}

/// The account.
#[derive(Clone, Debug)]
pub struct Cloud {
    /// The Region.
    pub region: String,
    /// Who we are.
    pub identity: Identity,
    /// Reads that failed, whatever they were for, and writes that a dry run denies.
    pub failures: Vec<AwsError>,
    /// Instances of the nodes that exist.
    pub instances: Seen<BTreeMap<InstanceId, Instance>>,
    /// The cluster's VPC.
    pub vpc: Seen<VpcId>,
    /// Its subnets.
    pub subnets: Seen<BTreeMap<SubnetId, Subnet>>,
    /// Security groups on the nodes.
    pub node_groups: Seen<BTreeMap<SecurityGroupId, SecurityGroup>>,
    /// The group that all our load balancers carry.
    pub backend: Seen<Option<SecurityGroupId>>,
    /// Rules elsewhere that name it.
    pub references: Seen<Vec<Reference>>,
    /// Network Load Balancers with their tags, and how many there are.
    pub balancers: Seen<Vec<Balancer>>,
    /// Every target group.
    pub target_groups: Seen<BTreeSet<TargetGroupArn>>,
    /// Tags of target groups that weir could have named.
    pub target_group_tags: Seen<BTreeMap<TargetGroupArn, Tags>>,
    /// Targets of our target groups; of the first ones only, if there are many.
    pub health: Seen<BTreeMap<TargetGroupArn, BTreeMap<InstanceId, Health>>>,
    /// Auto Scaling groups.
    pub asgs: Seen<BTreeMap<AsgName, Asg>>,
    /// Those in an instance refresh.
    pub refreshing: Seen<BTreeSet<AsgName>>,
    /// Limits of the account.
    pub limits: Seen<BTreeMap<String, usize>>,
}

impl Facts {
    /// The cluster's name.
    ///
    /// # Errors
    /// Nobody says it.
    pub fn cluster(&self) -> Seen<&str> {
        self.controller.as_ref().map(|settings| settings.cluster_name.as_str()).map_err(Clone::clone)
    }

    /// Nodes that can be targets of anything.
    ///
    /// # Errors
    /// Nodes could not be read.
    pub fn workers(&self) -> Seen<impl Iterator<Item = &Worker>> {
        Ok(seen(&self.kubernetes.nodes)?.iter().filter_map(|node| node.worker.as_ref()))
    }

    /// Instances of the nodes.
    ///
    /// # Errors
    /// Nodes could not be read.
    pub fn instances(&self) -> Seen<BTreeSet<&InstanceId>> {
        Ok(self.workers()?.filter_map(|worker| worker.instance.as_ref().ok()).collect())
    }

    /// Services that weir looks after.
    ///
    /// # Errors
    /// Services could not be read.
    pub fn ours(&self) -> Seen<impl Iterator<Item = &ServiceSeen>> {
        let settings = seen(&self.controller)?;
        let is_ours = |service: &&ServiceSeen| {
            let class = &settings.load_balancer_class;
            service.is_balancer && is_class_served(service.class.as_deref(), class, settings.claim_classless)
        };
        Ok(seen(&self.kubernetes.services)?.iter().filter(is_ours))
    }

    /// What the controller has said of something since it was last well, oldest first.
    ///
    /// # Errors
    /// Events could not be read.
    pub fn told(&self, uid: &str) -> Seen<Vec<&Told>> {
        let mut told: Vec<_> = seen(&self.kubernetes.told)?.iter().filter(|told| told.uid == uid).collect();
        told.sort_by_key(|told| told.at);
        let well = told.iter().rposition(|told| report::is_well(&told.reason));
        Ok(told.split_off(well.map_or(0, |well| well + 1)))
    }
}

/// What was read, or why it was not.
///
/// # Errors
/// Why it was not.
pub fn seen<T>(what: &Seen<T>) -> Seen<&T> {
    what.as_ref().map_err(Clone::clone)
}

/// Everything about a node.
#[derive(Clone, Debug)]
pub struct NodeFacts {
    /// Whether weir alone forwards here.
    pub replaces: bool,
    /// The bit of the packet mark that is ours.
    pub mark: u32,
    /// Where health is asked for.
    pub healthz: SocketAddr,
    /// What answers there.
    pub answer: Answer,
    /// Whether this process has the capability NET_ADMIN.
    pub has_net_admin: bool,
    /// Major and minor version of the kernel.
    pub kernel: Option<(u32, u32)>,
    /// Version of nft, or why it could not be asked.
    pub nft: Result<(u32, u32, u32), String>,
    /// Whether the kernel speaks IPv6 here.
    pub has_ipv6: bool,
    /// Tables of nftables.
    pub tables: Seen<Vec<TableSeen>>,
    /// Filter chains where packets enter, of all tables.
    pub filters: Seen<Vec<FilterSeen>>,
    /// Tables and chains of kube-proxy.
    pub kube_proxy: Seen<Vec<String>>,
    /// Tables of legacy iptables, which nftables does not show.
    pub legacy: Vec<String>,
    /// `net.ipv4.ip_forward`.
    pub forwards: Option<bool>,
    /// `net.ipv6.conf.all.forwarding`.
    pub forwards_v6: Option<bool>,
    /// Interfaces of default routes, and how strictly they check the way back: 0 not, 1 strictly, 2 loosely.
    pub uplinks: Vec<(String, u8)>,
    /// Marks that routing rules look at: value and mask.
    pub marks: Seen<Vec<(u32, u32)>>,
    /// Conntrack settings that are not as weir node would set them: file, value wanted.
    pub conntrack: Vec<(&'static str, u64)>,
}

/// What answers at the health port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// weir, with this status.
    Weir(u16),
    /// Something else.
    Other(String),
    /// Nobody listens.
    Nobody,
}
