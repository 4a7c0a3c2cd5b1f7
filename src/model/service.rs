//! A Service as its owner wrote it → [`ServiceSpec`], the only door to everything that follows.

mod access;
mod address;
mod balancer;
mod listener;
mod nodes;
mod target_group;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use serde::{Deserialize, Serialize};

pub use self::access::AccessSpec;
use self::access::{most_of_a_family, parse_access, parse_source_ranges, without_effect};
pub use self::address::{AddressSpec, AddressType, SourceNatPrefix};
use self::address::{parse_address_type, parse_addresses};
use self::balancer::{parse_attributes, parse_capacity, parse_name, parse_scheme, parse_subnets, parse_tags};
use self::listener::{named, parse_listener_attributes, parse_merging, parse_ports, parse_tls, refuse, to_port};
use self::nodes::parse_node_labels;
use super::annotation::{self, Annotations, Problem};
use super::attribute::Attributes;
use super::family::Family;
use super::id::ServiceKey;
use super::node::Labels;
use super::ownership::{Owner, Tags};

/// The finalizer that keeps a Service until its AWS resources are gone. Our own: the cloud controller takes
/// `service.kubernetes.io/load-balancer-cleanup` off any Service that is being deleted, whatever its class
/// (k8s.io/cloud-provider, `controllers/service`).
pub const FINALIZER: &str = "weir.dev/load-balancer";
/// The load balancer class that the admission policy gives to a Service without one.
pub const CLASS: &str = "weir.dev/nlb";
/// Inbound rules of one security group (VPC quotas).
pub const RULE_LIMIT: usize = 60;

/// Where a load balancer can be reached from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, Serialize, Deserialize)]
pub enum Scheme {
    /// From inside the VPC.
    Internal,
    /// From the internet.
    InternetFacing,
}

impl Scheme {
    /// The scheme as AWS and the annotation spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::InternetFacing => "internet-facing",
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Protocol of a listener and its target group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// Both on one port, through one NodePort number.
    TcpUdp,
    /// TCP with TLS, ended by the load balancer; of a target group: begun anew by it.
    Tls,
}

impl Protocol {
    /// The protocol as ELB spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::TcpUdp => "TCP_UDP",
            Self::Tls => "TLS",
        }
    }

    /// Protocols as EC2's security groups and a Service's ports have them.
    pub const fn parts(self) -> &'static [Transport] {
        match self {
            Self::Tcp | Self::Tls => &[Transport::Tcp],
            Self::Udp => &[Transport::Udp],
            Self::TcpUdp => &[Transport::Tcp, Transport::Udp],
        }
    }
}

/// A transport protocol, as security-group rules know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// The protocol as EC2 spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// One listener and the NodePort behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Port of the listener.
    pub port: u16,
    /// Protocol of the listener.
    pub protocol: Protocol,
    /// TLS settings of the listener, if it is one.
    pub tls: Option<Tls>,
    /// Attributes of the listener, as far as asked for.
    pub listener_attributes: Attributes,
    /// Protocol of the target group.
    pub target_protocol: Protocol,
    /// Port of the targets.
    pub node_port: u16,
    /// Attributes of the target group, as far as asked for.
    pub attributes: Attributes,
}

impl Port {
    /// A port with nothing else asked for.
    pub const fn new(port: u16, protocol: Protocol, node_port: u16) -> Self {
        Self {
            port,
            protocol,
            tls: None,
            listener_attributes: Attributes::new(),
            target_protocol: protocol,
            node_port,
            attributes: Attributes::new(),
        }
    }
}

/// TLS settings of a listener.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tls {
    /// ARNs of its certificates; the first is the default one.
    pub certificates: Vec<String>,
    /// Its security policy.
    pub policy: String,
    /// Its ALPN policy, if not `None`.
    pub alpn: Option<String>,
}

/// Protocol of a health check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HealthProtocol {
    /// A connection is enough.
    Tcp,
    /// A request, and a good code in answer.
    Http,
    /// The same, with TLS.
    Https,
}

impl HealthProtocol {
    /// The protocol as ELB spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Http => "HTTP",
            Self::Https => "HTTPS",
        }
    }
}

/// Port of a health check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HealthPort {
    /// The one that traffic goes to.
    Traffic,
    /// This one.
    Number(u16),
}

/// What a Service asks of its health checks. Seconds, and checks in a row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthCheckSpec {
    /// Protocol.
    pub protocol: Option<HealthProtocol>,
    /// Port.
    pub port: Option<HealthPort>,
    /// Path of a request.
    pub path: Option<String>,
    /// Codes of a good answer.
    pub codes: Option<String>,
    /// Time between two checks.
    pub interval: Option<i32>,
    /// Time until a check counts as failed.
    pub timeout: Option<i32>,
    /// Good checks that make a target healthy.
    pub healthy: Option<i32>,
    /// Bad checks that make a target unhealthy.
    pub unhealthy: Option<i32>,
}

impl HealthCheckSpec {
    /// Seconds between two checks, if nothing is asked for.
    pub const INTERVAL: i32 = 10;
}

/// A LoadBalancer Service after parsing: what its owner asks for, with nothing looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSpec {
    /// Namespace, name and UID.
    pub owner: Owner,
    /// When the Service was created; the older one is served first where slots are short.
    pub created: Timestamp,
    /// Scheme, if asked for.
    pub scheme: Option<Scheme>,
    /// Name of the load balancer, if asked for.
    pub name: Option<String>,
    /// IP families of the clients.
    pub address_type: AddressType,
    /// IP family of the targets: the first one of the Service's.
    pub family: Family,
    /// Ids or `Name` tags of subnets, if asked for.
    pub subnets: Vec<String>,
    /// Addresses asked for.
    pub addresses: AddressSpec,
    /// Capacity units to be reserved; 0 reserves nothing.
    pub capacity: i32,
    /// Tags for every resource.
    pub tags: Tags,
    /// Who may connect, beside prefix lists.
    pub source_ranges: BTreeSet<IpNet>,
    /// Security groups and what else is said of them.
    pub access: AccessSpec,
    /// Listeners by port.
    pub ports: BTreeMap<u16, Port>,
    /// The port that answers for the node under `externalTrafficPolicy: Local`; `None` under `Cluster`.
    pub local_health_port: Option<u16>,
    /// What is asked of health checks.
    pub health: HealthCheckSpec,
    /// Attributes of the load balancer, as far as asked for.
    pub attributes: Attributes,
    /// Sentences about what will have no effect, or not the expected one.
    pub warnings: Vec<String>,
    /// Labels of the nodes that may be targets; none: every node may.
    pub node_labels: Labels,
}

impl ServiceSpec {
    /// Inbound rules that one address range needs.
    pub fn rules_for_each_source(&self) -> usize {
        rules_for_each_source(&self.ports, &self.access)
    }
}

fn rules_for_each_source(ports: &BTreeMap<u16, Port>, access: &AccessSpec) -> usize {
    ports.values().map(|port| port.protocol.parts().len()).sum::<usize>() + usize::from(access.icmp)
}

/// Whether weir is responsible for a Service: its type and class decide, and nothing else.
pub fn is_claimed(service: &Service, class: &str, claim_classless: bool) -> bool {
    let Some(spec) = &service.spec else { return false };
    spec.type_.as_deref() == Some("LoadBalancer")
        && is_class_served(spec.load_balancer_class.as_deref(), class, claim_classless)
}

/// Whether Services of type LoadBalancer with this `spec.loadBalancerClass` are weir's.
pub fn is_class_served(given: Option<&str>, class: &str, claim_classless: bool) -> bool {
    given.map_or(claim_classless, |given| given == class)
}

/// Namespace, name and UID of a Service that the API server returned.
pub fn owner_of(service: &Service) -> Owner {
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    let meta = &service.metadata;
    Owner { service: ServiceKey::new(text(&meta.namespace), text(&meta.name)), uid: text(&meta.uid) }
}

/// Labels of the nodes that may be a Service's targets, whatever else is wrong with it. `None` if they cannot be told.
pub fn node_labels_of(service: &Service) -> Option<Labels> {
    let none = BTreeMap::new();
    parse_node_labels(Annotations(service.metadata.annotations.as_ref().unwrap_or(&none))).ok()
}

/// Parses a Service.
///
/// # Errors
/// Everything that is wrong with it, sorted.
pub fn parse(service: &Service) -> Result<ServiceSpec, Vec<Problem>> {
    let (mut problems, mut warnings) = (vec![], vec![]);
    let none = BTreeMap::new();
    let annotations = Annotations(service.metadata.annotations.as_ref().unwrap_or(&none));
    let spec = service.spec.clone().unwrap_or_default();
    let scheme = kept(parse_scheme(annotations), &mut problems);
    let name = kept(parse_name(annotations), &mut problems);
    let subnets = kept(parse_subnets(annotations), &mut problems);
    let tags = kept(parse_tags(annotations), &mut problems);
    let ranges = spec.load_balancer_source_ranges.unwrap_or_default();
    let address_type = parse_address_type(annotations).unwrap_or_else(|problem| {
        problems.push(problem);
        // The one under which nothing that follows is wrong because of this.
        AddressType::Dualstack
    });
    let access = parse_access(annotations, &mut problems, &mut warnings);
    let source_ranges = parse_source_ranges(&ranges, annotations, address_type, &access, &mut problems);
    if !ranges.is_empty() && !access.groups.is_empty() {
        warnings.push(format!("spec.loadBalancerSourceRanges: {}", without_effect()));
    }
    let capacity = kept(parse_capacity(annotations), &mut problems);
    let attributes = parse_attributes(annotations, &mut problems);
    refuse(annotations, &mut problems);
    let service_ports = spec.ports.unwrap_or_default();
    let names = named(&service_ports);
    let mut ports = parse_ports(&service_ports, &mut problems);
    kept(parse_merging(annotations, &ports), &mut problems);
    let health = target_group::parse_health(annotations, &names, &ports, &mut problems, &mut warnings);
    parse_tls(annotations, &names, &mut ports, &mut problems, &mut warnings);
    parse_listener_attributes(annotations, &mut ports, &mut problems);
    let has_affinity = spec.session_affinity.as_deref() == Some("ClientIP");
    target_group::parse_attributes(annotations, has_affinity, &mut ports, &mut problems, &mut warnings);
    let node_labels = kept(parse_node_labels(annotations), &mut problems);
    let has_local_policy = spec.external_traffic_policy.as_deref() == Some("Local");
    target_group::warn_of_proxied_checks(&health, &ports, has_local_policy, &mut warnings);
    if let Some(address) = spec.load_balancer_ip.filter(|address| !address.is_empty()) {
        warnings.push(format!(
            "spec.loadBalancerIP: {address:?} is ignored; a Network Load Balancer takes addresses from {} or {}",
            "aws-load-balancer-private-ipv4-addresses", "aws-load-balancer-eip-allocations"
        ));
    }

    let families = spec.ip_families.unwrap_or_default();
    let family = if families.first().is_some_and(|family| family == "IPv6") { Family::Ipv6 } else { Family::Ipv4 };
    if family == Family::Ipv6 && address_type != AddressType::Dualstack {
        let wrong = "begins with IPv6 and the load balancer is not dualstack";
        let expected = format!("IPv4 first, or dualstack in {}", annotation::IP_ADDRESS_TYPE);
        problems.push(Problem::new("spec.ipFamilies", families.join(","), wrong, expected));
    }
    let addresses = parse_addresses(annotations, address_type, &ports, &mut problems);
    let rules = rules_for_each_source(&ports, &access) * most_of_a_family(&source_ranges);
    if rules > RULE_LIMIT && access.groups.is_empty() {
        let wrong = format!("needs {rules} inbound rules in a security group");
        let expected = format!("at most {RULE_LIMIT}; merge source ranges or split the Service");
        problems.push(Problem::new(
            "spec.ports",
            format!("{} ports × {} ranges", ports.len(), source_ranges.len()),
            wrong,
            expected,
        ));
    }
    let local = spec.external_traffic_policy.as_deref() == Some("Local");
    let local_health_port = if local { spec.health_check_node_port.and_then(to_port) } else { None };
    if local && local_health_port.is_none() {
        let value = spec.health_check_node_port.unwrap_or_default().to_string();
        problems.push(Problem::new(
            "spec.healthCheckNodePort",
            value,
            "is no port",
            "the port that policy Local is given",
        ));
    }
    if !problems.is_empty() {
        problems.sort();
        return Err(problems);
    }
    let created = service.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    let owner = owner_of(service);
    Ok(ServiceSpec {
        owner,
        created,
        scheme,
        name,
        address_type,
        family,
        subnets,
        addresses,
        capacity,
        tags,
        source_ranges,
        access,
        ports,
        local_health_port,
        health,
        attributes,
        warnings,
        node_labels,
    })
}

/// The value, or its default after taking note of what is wrong with it.
fn kept<T: Default>(parsed: Result<T, Problem>, problems: &mut Vec<Problem>) -> T {
    parsed.unwrap_or_else(|problem| {
        problems.push(problem);
        T::default()
    })
}

#[cfg(test)]
mod tests;
