//! What AWS has: the types, the slice of it that belongs to one Service, and how a step that succeeded changes it.
//!
//! [`Observed::record`] is used twice: to keep the view up to date after each of our own writes, so that nothing must
//! be read back, and by the property tests, where it plays AWS.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::plan::{AttributesOf, NOT_SET_UP, Resource, Step};
use crate::model::attribute::Attributes;
use crate::model::id::{
    AsgName, InstanceId, ListenerArn, LoadBalancerArn, SecurityGroupId, SubnetId, TargetGroupArn, VpcId, Zone,
};
use crate::model::node::Labels;
use crate::model::ownership::{self, Owner, Role, Tags};
use crate::model::service::{AddressType, Scheme};
use crate::model::text;

/// Everything in the account that concerns this cluster's load balancers. Names are unique in an account and Region
/// (security groups: in a VPC) and ours are deterministic, so names are the keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// Load balancers of this cluster.
    pub balancers: BTreeMap<String, Balancer>,
    /// Names that load balancers of others hold.
    pub foreign_balancers: BTreeMap<String, LoadBalancerArn>,
    /// ARNs and ids of what belongs to other clusters of this name, with those clusters' ids.
    pub twins: BTreeMap<String, String>,
    /// Target groups that AWS lists under a name of ours, whatever their tags.
    pub listed: BTreeSet<TargetGroupArn>,
    /// Target groups of this cluster.
    pub target_groups: BTreeMap<String, TargetGroup>,
    /// Security groups of this cluster.
    pub groups: BTreeMap<String, SecurityGroup>,
    /// Security groups with rules that name the backend group, and those rules.
    pub node_rules: BTreeMap<SecurityGroupId, BTreeSet<IngressRule>>,
    /// All Auto Scaling groups of the account.
    pub asgs: BTreeMap<AsgName, Asg>,
    /// Names of load balancers that were made again because AWS could not set the first one up. Not in AWS.
    pub remade: BTreeSet<String>,
}

/// A Network Load Balancer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balancer {
    /// Its ARN.
    pub arn: LoadBalancerArn,
    /// Its name.
    pub name: String,
    /// Its DNS name, in whatever case AWS shows it.
    pub dns_name: String,
    /// Internal or internet-facing.
    pub scheme: Scheme,
    /// IP families of its clients.
    pub address_type: AddressType,
    /// Its state.
    pub state: BalancerState,
    /// Its subnet in each enabled zone, and its addresses there.
    pub subnets: BTreeMap<Zone, Mapping>,
    /// Whether it has an IPv6 prefix in each subnet for UDP clients.
    pub source_nat: bool,
    /// Security groups it carries.
    pub groups: BTreeSet<SecurityGroupId>,
    /// Whether their inbound rules hold for what comes through PrivateLink too.
    pub rules_on_private_link: bool,
    /// Capacity units reserved for it; `None` until they have been read.
    pub capacity: Option<i32>,
    /// Its tags.
    pub tags: Tags,
    /// Listeners by port; `None` until they have been read.
    pub listeners: Option<BTreeMap<u16, Listener>>,
    /// Its attributes; `None` until they have been read.
    pub attributes: Option<Attributes>,
}

/// A load balancer's part in one zone. Addresses that nobody chose are `None`, if AWS does not show them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// Its subnet.
    pub subnet: SubnetId,
    /// Allocation id of its Elastic IP.
    pub allocation: Option<String>,
    /// Its private IPv4 address.
    pub private_ipv4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// Its prefix for UDP clients with IPv6 addresses.
    #[serde(with = "text::option")]
    pub source_nat_prefix: Option<Ipv6Net>,
}

impl<S: Into<SubnetId>> From<S> for Mapping {
    fn from(subnet: S) -> Self {
        let subnet = subnet.into();
        Self { subnet, allocation: None, private_ipv4: None, ipv6: None, source_nat_prefix: None }
    }
}

impl Mapping {
    /// This one, with what `observed` has in the same subnet where nothing else is asked for: AWS wants enabled zones
    /// given as they are (ELB API, `SetSubnets`).
    #[must_use]
    pub fn over(&self, observed: &Self) -> Self {
        if self.subnet != observed.subnet {
            return self.clone();
        }
        Self {
            subnet: self.subnet.clone(),
            allocation: self.allocation.clone().or_else(|| observed.allocation.clone()),
            private_ipv4: self.private_ipv4.or(observed.private_ipv4),
            ipv6: self.ipv6.or(observed.ipv6),
            source_nat_prefix: self.source_nat_prefix.or(observed.source_nat_prefix),
        }
    }

    /// What was chosen in it, beside the subnet.
    pub fn addresses(&self) -> Vec<String> {
        let mut chosen: Vec<_> = self.allocation.iter().cloned().collect();
        chosen.extend(self.private_ipv4.map(|address| address.to_string()));
        chosen.extend(self.ipv6.map(|address| address.to_string()));
        chosen.extend(self.source_nat_prefix.map(|prefix| prefix.to_string()));
        chosen
    }

    /// Whether both have an address that only one load balancer can have.
    pub fn collides_with(&self, other: &Self) -> bool {
        let same_ipv4 = self.private_ipv4.is_some() && self.private_ipv4 == other.private_ipv4;
        let same_ipv6 = self.ipv6.is_some() && self.ipv6 == other.ipv6;
        (self.allocation.is_some() && self.allocation == other.allocation) || same_ipv4 || same_ipv6
    }
}

/// A security group that a load balancer is to carry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Carried {
    /// One of ours, by name.
    Ours(String),
    /// One of the Service's owner. It is never changed.
    Theirs(SecurityGroupId),
}

impl fmt::Display for Carried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ours(name) => f.write_str(name),
            Self::Theirs(id) => id.fmt(f),
        }
    }
}

/// State of a load balancer (ELB API, `LoadBalancerState`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BalancerState {
    /// Being set up; its name does not resolve yet.
    Provisioning,
    /// Usable: `active` or `active_impaired`.
    Active,
    /// Could not be set up, with AWS's reason.
    Failed(String),
}

/// A listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Its ARN.
    pub arn: ListenerArn,
    /// Protocol as ELB spells it.
    pub protocol: String,
    /// The target group it forwards to; `None` if it does anything else.
    pub target_group: Option<TargetGroupArn>,
    /// ARN of its default certificate, if it is TLS.
    pub certificate: Option<String>,
    /// Its security policy, if it is TLS.
    pub policy: Option<String>,
    /// Its ALPN policy, if it is not `None`.
    pub alpn: Option<String>,
    /// ARNs in its list of certificates, the default one among them or not; `None` until they have been read.
    pub certificates: Option<BTreeSet<String>>,
    /// Its attributes; `None` until they have been read.
    pub attributes: Option<Attributes>,
    /// Its tags; `None` until they have been read.
    pub tags: Option<Tags>,
}

impl Listener {
    /// What another listing does not show is what it was, unless the protocol is another one: AWS drops certificates with
    /// TLS (ELB API, `ModifyListener`), and says nothing of attributes.
    pub fn keep(&mut self, before: &Self) {
        if self.arn == before.arn {
            self.tags = self.tags.take().or_else(|| before.tags.clone());
        }
        if self.arn == before.arn && self.protocol == before.protocol {
            self.certificates = self.certificates.take().or_else(|| before.certificates.clone());
            self.attributes = self.attributes.take().or_else(|| before.attributes.clone());
        }
    }
}

/// A target group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetGroup {
    /// Its ARN.
    pub arn: TargetGroupArn,
    /// Its name.
    pub name: String,
    /// Protocol as ELB spells it.
    pub protocol: String,
    /// Port of its targets.
    pub port: u16,
    /// Its VPC.
    pub vpc: VpcId,
    /// Its health check.
    pub health: HealthCheck,
    /// Its tags.
    pub tags: Tags,
    /// Its attributes; `None` until they have been read.
    pub attributes: Option<Attributes>,
    /// What placement does with it.
    pub intent: Intent,
    /// Labels of the nodes that may be its targets; none: every node may. Not in AWS: decided anew by each plan.
    pub nodes: Labels,
    /// Whether placement has done all it can for it: every eligible node is a target, or none is there.
    pub served: bool,
}

/// What placement does with a target group. Not in AWS: decided anew by each plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Intent {
    /// Nobody has planned its Service yet: leave everything as it is.
    Undecided,
    /// Every eligible node is to be a target.
    Serve,
    /// Nothing is to hold it: it will be deleted.
    Release,
}

/// A health check, in AWS's words and units (seconds).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HealthCheck {
    /// `HTTP`, `TCP`, …
    pub protocol: String,
    /// A port number, or `traffic-port`.
    pub port: String,
    /// Path of an HTTP check.
    pub path: Option<String>,
    /// Seconds between two checks.
    pub interval: i32,
    /// Seconds until a check counts as failed.
    pub timeout: i32,
    /// Good checks in a row that make a target healthy.
    pub healthy: i32,
    /// Bad checks in a row that make a target unhealthy.
    pub unhealthy: i32,
    /// HTTP status codes of a good answer.
    pub codes: Option<String>,
}

/// A security group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityGroup {
    /// Its id.
    pub id: SecurityGroupId,
    /// Its name.
    pub name: String,
    /// Inbound rules.
    pub rules: BTreeSet<IngressRule>,
    /// Its tags.
    pub tags: Tags,
}

/// An inbound rule. A description plays no part in a rule's identity, in AWS neither.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct IngressRule {
    /// `tcp`, `udp`, `icmp`, or `-1` for all.
    pub protocol: String,
    /// First port.
    pub from: i32,
    /// Last port.
    pub to: i32,
    /// Who may send.
    pub source: Source,
}

impl fmt::Display for IngressRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.protocol, self.from)?;
        if self.to != self.from {
            write!(f, "-{}", self.to)?;
        }
        write!(f, " from {}", self.source)
    }
}

/// Source of an inbound rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Source {
    /// An address range.
    Range(#[serde(with = "text")] IpNet),
    /// A security group.
    Group(SecurityGroupId),
    /// A prefix list.
    PrefixList(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range(range) => range.fmt(f),
            Self::Group(group) => group.fmt(f),
            Self::PrefixList(list) => f.write_str(list),
        }
    }
}

/// An Auto Scaling group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asg {
    /// Its tags.
    pub tags: Tags,
    /// Its health check type includes `ELB`: it terminates what a target group reports unhealthy.
    pub elb_health: bool,
    /// The process `AddToLoadBalancer` is suspended: it registers no new instance.
    pub add_suspended: bool,
    /// It is being deleted.
    pub deleting: bool,
    /// Its instances.
    pub instances: BTreeSet<InstanceId>,
    /// Target groups attached as traffic sources.
    pub sources: BTreeMap<TargetGroupArn, SourceState>,
    /// Target groups attached by the older calls, which the newer ones neither show nor detach. Ours get there by hand
    /// only, and hinder the group as much: they are detached before they are deleted.
    pub legacy: BTreeMap<TargetGroupArn, SourceState>,
}

/// State of a traffic source (Auto Scaling API, `TrafficSourceState`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceState {
    /// Instances are being registered.
    Adding,
    /// All instances are registered.
    Added,
    /// Instances are being deregistered.
    Removing,
}

impl Asg {
    /// States of everything attached, by whichever calls.
    pub fn states(&self) -> impl Iterator<Item = SourceState> {
        self.sources.values().chain(self.legacy.values()).copied()
    }

    /// How many attachments and detachments are under way.
    pub fn changing(&self) -> usize {
        self.states().filter(|state| *state != SourceState::Added).count()
    }

    /// Whether it lists a target group, by whichever calls it was attached.
    pub fn lists(&self, arn: &TargetGroupArn) -> bool {
        self.sources.contains_key(arn) || self.legacy.contains_key(arn)
    }

    /// Whether it belongs to the cluster, by the tags that EKS, eksctl and kOps give it.
    pub fn is_tagged_for(&self, cluster: &str) -> bool {
        let control_plane = ["k8s.io/role/control-plane", "k8s.io/role/master"];
        let ours = self.tags.contains_key(&format!("kubernetes.io/cluster/{cluster}"))
            || self.tags.get("eks:cluster-name").is_some_and(|name| name == cluster);
        ours && !control_plane.iter().any(|key| self.tags.contains_key(*key))
    }
}

/// One Service's part of what AWS has.
#[derive(Debug, Default)]
pub struct Slice<'a> {
    /// Load balancers; more than one while one replaces another.
    pub balancers: Vec<&'a Balancer>,
    /// Target groups.
    pub target_groups: Vec<&'a TargetGroup>,
    /// Frontend security groups.
    pub groups: Vec<&'a SecurityGroup>,
    /// Auto Scaling groups that list a target group, by the target group's name.
    pub attachments: BTreeMap<&'a str, Vec<&'a AsgName>>,
    /// Names of load balancers that were made again because AWS could not set the first one up.
    pub remade: BTreeSet<&'a str>,
}

impl Slice<'_> {
    /// Whether the Service has nothing in AWS.
    pub fn is_empty(&self) -> bool {
        self.balancers.is_empty() && self.target_groups.is_empty() && self.groups.is_empty()
    }
}

/// What AWS answered to a step that makes something.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Nothing to remember beyond the step itself.
    Done,
    /// A load balancer was made.
    Balancer(Balancer),
    /// A target group was made.
    TargetGroup(TargetGroup),
    /// A security group was made.
    Group(SecurityGroup),
    /// A listener was made or changed.
    Listener(Listener),
}

impl Observed {
    /// The part of a Service. Its UID decides: a Service made again under the same name owns nothing of the first.
    pub fn of<'a>(&'a self, cluster: &str, uid: &str) -> Slice<'a> {
        let is_theirs = |tags: &Tags| ownership::owner(cluster, tags).is_some_and(|owner| owner.uid == uid);
        let target_groups: Vec<_> = self.target_groups.values().filter(|group| is_theirs(&group.tags)).collect();
        let attachments = target_groups
            .iter()
            .map(|group| {
                let holders = self.asgs.iter().filter(|(_, asg)| asg.lists(&group.arn));
                (group.name.as_str(), holders.map(|(name, _)| name).collect())
            })
            .collect();
        Slice {
            balancers: self.balancers.values().filter(|balancer| is_theirs(&balancer.tags)).collect(),
            target_groups,
            groups: self.groups.values().filter(|group| is_theirs(&group.tags)).collect(),
            attachments,
            remade: self.remade.iter().map(String::as_str).collect(),
        }
    }

    /// Every Service that owns something.
    pub fn owners(&self, cluster: &str) -> BTreeSet<Owner> {
        let tags = self.balancers.values().map(|balancer| &balancer.tags);
        let tags = tags.chain(self.target_groups.values().map(|group| &group.tags));
        let tags = tags.chain(self.groups.values().map(|group| &group.tags));
        tags.filter_map(|tags| ownership::owner(cluster, tags)).collect()
    }

    /// The backend group.
    pub fn backend_group(&self, cluster: &str) -> Option<&SecurityGroup> {
        self.groups.values().find(|group| {
            ownership::is_of_cluster(cluster, &group.tags) && ownership::role(&group.tags) == Some(Role::BackendGroup)
        })
    }

    /// The id of a group that a load balancer is to carry, if it exists.
    pub fn id_of(&self, group: &Carried) -> Option<SecurityGroupId> {
        match group {
            Carried::Ours(name) => self.groups.get(name).map(|group| group.id.clone()),
            Carried::Theirs(id) => Some(id.clone()),
        }
    }

    /// The target group with this ARN.
    pub fn target_group(&self, arn: &TargetGroupArn) -> Option<&TargetGroup> {
        self.target_groups.values().find(|group| group.arn == *arn)
    }

    /// Target groups whose nodes are to be targets.
    pub fn served(&self) -> BTreeSet<TargetGroupArn> {
        let served = self.target_groups.values().filter(|group| group.intent == Intent::Serve);
        served.map(|group| group.arn.clone()).collect()
    }

    /// Takes note of a step that succeeded.
    #[expect(clippy::too_many_lines, reason = "one arm for each kind of step, and nothing else")]
    pub fn record(&mut self, step: &Step, outcome: Outcome) {
        match outcome {
            Outcome::Balancer(balancer) => {
                self.balancers.insert(balancer.name.clone(), balancer);
                return;
            }
            Outcome::TargetGroup(group) => {
                self.target_groups.insert(group.name.clone(), group);
                return;
            }
            Outcome::Group(group) => {
                self.groups.insert(group.name.clone(), group);
                return;
            }
            Outcome::Listener(listener) => {
                if let Step::CreateListener { balancer, port, .. } | Step::ModifyListener { balancer, port, .. } = step
                    && let Some(balancer) = self.balancers.get_mut(balancer)
                {
                    let listeners = balancer.listeners.get_or_insert_default();
                    let mut listener = listener;
                    if let Some(before) = listeners.get(port) {
                        listener.keep(before);
                        if before.protocol != listener.protocol {
                            listener.certificates = Some(BTreeSet::new());
                        }
                    }
                    listeners.insert(*port, listener);
                }
                return;
            }
            Outcome::Done => {}
        }
        match step {
            Step::Authorize { group, rules, .. } => {
                if let Some(group) = self.groups.get_mut(group) {
                    group.rules.extend(rules.iter().cloned());
                }
            }
            Step::Revoke { group, rules } => {
                if let Some(group) = self.groups.get_mut(group) {
                    group.rules.retain(|rule| !rules.contains(rule));
                }
            }
            Step::AuthorizeNodes { group, rules, .. } => {
                self.node_rules.entry(group.clone()).or_default().extend(rules.iter().cloned());
            }
            Step::RevokeNodes { group, rules } => {
                if let Some(present) = self.node_rules.get_mut(group) {
                    present.retain(|rule| !rules.contains(rule));
                }
                self.node_rules.retain(|_, rules| !rules.is_empty());
            }
            Step::DeleteGroup { name, .. } => {
                self.groups.remove(name);
            }
            Step::SetGroups { balancer, .. }
            | Step::SetAddressType { balancer, .. }
            | Step::SetSubnets { balancer, .. }
            | Step::ReserveCapacity { balancer, .. }
            | Step::DeleteListener { balancer, .. } => self.record_change(balancer, step),
            Step::DeleteBalancer { name, because } => self.forget_balancer(name, because),
            Step::ModifyHealthCheck { target_group, health } => {
                if let Some(group) = self.target_groups.get_mut(target_group) {
                    group.health = health.clone();
                }
            }
            Step::Intend { target_group, intent } => {
                if let Some(group) = self.target_groups.get_mut(target_group) {
                    group.intent = *intent;
                    group.served = false;
                }
            }
            Step::Select { target_group, nodes } => {
                if let Some(group) = self.target_groups.get_mut(target_group) {
                    group.nodes = nodes.clone();
                    group.served = false;
                }
            }
            Step::DeleteTargetGroup { name, .. } => {
                self.target_groups.remove(name);
            }
            Step::AddCertificate { balancer, port, certificate } => {
                if let Some(listener) = self.listener_mut(balancer, *port) {
                    listener.certificates.get_or_insert_default().insert(certificate.clone());
                }
            }
            Step::RemoveCertificate { balancer, port, certificate } => {
                if let Some(present) = self.listener_mut(balancer, *port).and_then(|it| it.certificates.as_mut()) {
                    present.remove(certificate);
                }
            }
            Step::ModifyAttributes { of, attributes } => {
                let present = match of {
                    AttributesOf::Balancer(name) => self.balancers.get_mut(name).map(|it| &mut it.attributes),
                    AttributesOf::TargetGroup(name) => self.target_groups.get_mut(name).map(|it| &mut it.attributes),
                    AttributesOf::Listener(balancer, port) => {
                        self.listener_mut(balancer, *port).map(|it| &mut it.attributes)
                    }
                };
                if let Some(present) = present {
                    present.get_or_insert_default().extend(attributes.clone());
                }
            }
            Step::Tag { resource, tags } => {
                if let Some(present) = self.tags_of(resource) {
                    present.extend(tags.clone());
                }
            }
            Step::Untag { resource, keys } => {
                if let Some(present) = self.tags_of(resource) {
                    present.retain(|key, _| !keys.contains(key));
                }
            }
            // Their outcomes carry the new resource.
            Step::CreateGroup { .. }
            | Step::CreateBalancer(_)
            | Step::CreateTargetGroup { .. }
            | Step::CreateListener { .. }
            | Step::ModifyListener { .. } => {}
        }
    }

    /// Takes note of a change of a load balancer.
    fn record_change(&mut self, name: &str, step: &Step) {
        let ids = match step {
            Step::SetGroups { groups, .. } => groups.iter().filter_map(|group| self.id_of(group)).collect(),
            _ => BTreeSet::new(),
        };
        let Some(balancer) = self.balancers.get_mut(name) else { return };
        match step {
            Step::SetGroups { rules_on_private_link, .. } => {
                balancer.groups = ids;
                balancer.rules_on_private_link = *rules_on_private_link;
            }
            Step::SetAddressType { address_type, .. } => balancer.address_type = *address_type,
            Step::SetSubnets { subnets, address_type, source_nat, .. } => {
                balancer.subnets = subnets.clone();
                balancer.address_type = address_type.unwrap_or(balancer.address_type);
                balancer.source_nat = source_nat.unwrap_or(balancer.source_nat);
            }
            Step::ReserveCapacity { units, .. } => balancer.capacity = Some(*units),
            Step::DeleteListener { port, .. } => {
                balancer.listeners.get_or_insert_default().remove(port);
            }
            _ => {}
        }
    }

    fn forget_balancer(&mut self, name: &str, because: &str) {
        self.balancers.remove(name);
        if because == NOT_SET_UP {
            self.remade.insert(name.to_owned());
        } else {
            self.remade.remove(name);
        }
    }

    /// A listener, to take note of what was read of it.
    pub fn listener_mut(&mut self, balancer: &str, port: u16) -> Option<&mut Listener> {
        self.balancers.get_mut(balancer)?.listeners.as_mut()?.get_mut(&port)
    }

    fn tags_of(&mut self, resource: &Resource) -> Option<&mut Tags> {
        match resource {
            Resource::Balancer(name) => Some(&mut self.balancers.get_mut(name)?.tags),
            Resource::TargetGroup(name) => Some(&mut self.target_groups.get_mut(name)?.tags),
            Resource::Listener(balancer, port) => self.listener_mut(balancer, *port)?.tags.as_mut(),
            Resource::Group(name) => Some(&mut self.groups.get_mut(name)?.tags),
        }
    }
}
