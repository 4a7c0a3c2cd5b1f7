//! A Service as its owner wrote it → [`ServiceSpec`], the only door to everything that follows.

mod access;
mod address;
mod balancer;
mod listener;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;

use self::access::{most_of_a_family, parse_source_ranges};
pub use self::address::AddressType;
use self::address::parse_address_type;
use self::balancer::{parse_name, parse_scheme, parse_subnets, parse_tags};
use self::listener::{parse_ports, to_port};
use super::annotation::{Annotations, Problem};
use super::id::ServiceKey;
use super::ownership::{Owner, Tags};

/// The finalizer that keeps a Service until its AWS resources are gone. Our own: the cloud controller takes
/// `service.kubernetes.io/load-balancer-cleanup` off any Service that is being deleted, whatever its class
/// (k8s.io/cloud-provider, `controllers/service`).
pub const FINALIZER: &str = "weir.dev/load-balancer";
/// Inbound rules of one security group (VPC quotas).
const RULE_LIMIT: usize = 60;

/// Where a load balancer can be reached from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
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
}

impl Protocol {
    /// The protocol as ELB spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::TcpUdp => "TCP_UDP",
        }
    }

    /// Protocols as EC2's security groups and a Service's ports have them.
    pub const fn parts(self) -> &'static [Transport] {
        match self {
            Self::Tcp => &[Transport::Tcp],
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// Port of the listener.
    pub port: u16,
    /// Protocol of listener and target group.
    pub protocol: Protocol,
    /// Port of the targets.
    pub node_port: u16,
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
    /// Ids or `Name` tags of subnets, if asked for.
    pub subnets: Vec<String>,
    /// Tags for every resource.
    pub tags: Tags,
    /// Who may connect.
    pub source_ranges: BTreeSet<IpNet>,
    /// Listeners by port.
    pub ports: BTreeMap<u16, Port>,
    /// The port that answers for the node under `externalTrafficPolicy: Local`; `None` under `Cluster`.
    pub local_health_port: Option<u16>,
}

/// Whether weir is responsible for a Service: its type and class decide, and nothing else.
pub fn is_claimed(service: &Service, class: &str, claim_classless: bool) -> bool {
    let Some(spec) = &service.spec else { return false };
    spec.type_.as_deref() == Some("LoadBalancer")
        && spec.load_balancer_class.as_deref().map_or(claim_classless, |given| given == class)
}

/// Namespace, name and UID of a Service that the API server returned.
pub fn owner_of(service: &Service) -> Owner {
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    let meta = &service.metadata;
    Owner { service: ServiceKey::new(text(&meta.namespace), text(&meta.name)), uid: text(&meta.uid) }
}

/// Parses a Service.
///
/// # Errors
/// Everything that is wrong with it, sorted.
pub fn parse(service: &Service) -> Result<ServiceSpec, Vec<Problem>> {
    let mut problems = vec![];
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
    let source_ranges = parse_source_ranges(&ranges, annotations, address_type, &mut problems);
    let ports = parse_ports(&spec.ports.unwrap_or_default(), &mut problems);

    let families = spec.ip_families.unwrap_or_default();
    if families.first().is_some_and(|family| family == "IPv6") {
        let expected = "IPv4 first; this release of weir makes IPv4 target groups only";
        problems.push(Problem::new("spec.ipFamilies", families.join(","), "begins with IPv6", expected));
    }
    let rules: usize =
        ports.values().map(|port| port.protocol.parts().len()).sum::<usize>() * most_of_a_family(&source_ranges);
    if rules > RULE_LIMIT {
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
        subnets,
        tags,
        source_ranges,
        ports,
        local_health_port,
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
