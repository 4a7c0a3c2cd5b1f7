//! A Service as its owner wrote it → [`ServiceSpec`], the only door to everything that follows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnet::{IpNet, Ipv4Net};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Service, ServicePort};

use super::annotation::{self, Annotations, Problem};
use super::id::ServiceKey;
use super::name::NAME_LIMIT;
use super::ownership::{Owner, TAG_PREFIX, TAG_VALUE_LIMIT, Tags, encode_keys};

/// The finalizer that keeps a Service until its AWS resources are gone. Our own: the cloud controller takes
/// `service.kubernetes.io/load-balancer-cleanup` off any Service that is being deleted, whatever its class
/// (k8s.io/cloud-provider, `controllers/service`).
pub const FINALIZER: &str = "weir.dev/load-balancer";
/// Listeners of one Network Load Balancer (ELB quotas; cannot be raised).
const LISTENER_LIMIT: usize = 50;
/// Inbound rules of one security group (VPC quotas).
const RULE_LIMIT: usize = 60;
/// Tags of one ELB resource; weir needs five of them.
const USER_TAG_LIMIT: usize = 45;

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
    let mut keep = |problem: Problem| problems.push(problem);

    let scheme = parse_scheme(annotations).map_err(&mut keep).unwrap_or_default();
    let name = parse_name(annotations).map_err(&mut keep).unwrap_or_default();
    let subnets = parse_subnets(annotations).map_err(&mut keep).unwrap_or_default();
    let tags = parse_tags(annotations).map_err(&mut keep).unwrap_or_default();
    let source_ranges =
        parse_source_ranges(&spec.load_balancer_source_ranges.unwrap_or_default(), annotations, &mut keep);
    let ports = parse_ports(&spec.ports.unwrap_or_default(), &mut keep);

    let families = spec.ip_families.unwrap_or_default();
    if families.first().is_some_and(|family| family == "IPv6") {
        let expected = "IPv4 first; this release of weir makes IPv4 target groups only";
        keep(Problem::new("spec.ipFamilies", families.join(","), "begins with IPv6", expected));
    }
    let rules: usize = ports.values().map(|port| port.protocol.parts().len()).sum::<usize>() * source_ranges.len();
    if rules > RULE_LIMIT {
        let wrong = format!("needs {rules} inbound rules in a security group");
        let expected = format!("at most {RULE_LIMIT}; merge source ranges or split the Service");
        keep(Problem::new(
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
        keep(Problem::new("spec.healthCheckNodePort", value, "is no port", "the port that policy Local is given"));
    }
    if !problems.is_empty() {
        problems.sort();
        return Err(problems);
    }
    let created = service.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    let owner = owner_of(service);
    Ok(ServiceSpec { owner, created, scheme, name, subnets, tags, source_ranges, ports, local_health_port })
}

fn parse_scheme(annotations: Annotations<'_>) -> Result<Option<Scheme>, Problem> {
    match annotations.text(annotation::SCHEME) {
        None => Ok(None),
        Some("internal") => Ok(Some(Scheme::Internal)),
        Some("internet-facing") => Ok(Some(Scheme::InternetFacing)),
        Some(other) => {
            Err(Problem::new(annotation::SCHEME, other, "is an unknown scheme", "internal or internet-facing"))
        }
    }
}

fn parse_name(annotations: Annotations<'_>) -> Result<Option<String>, Problem> {
    let Some(name) = annotations.text(annotation::NAME) else { return Ok(None) };
    let wrong = if name.chars().count() > NAME_LIMIT {
        format!("is {} characters long", name.chars().count())
    } else if let Some(bad) = name.chars().find(|letter| !letter.is_ascii_alphanumeric() && *letter != '-') {
        format!("has the character {bad:?}")
    } else if name.starts_with('-') || name.ends_with('-') {
        "begins or ends with a hyphen".to_owned()
    } else if name.starts_with("internal-") {
        "begins with \"internal-\"".to_owned()
    } else {
        return Ok(Some(name.to_owned()));
    };
    let expected = "1 to 32 letters, digits and hyphens, no hyphen at either end, not beginning with internal-";
    Err(Problem::new(annotation::NAME, name, wrong, expected))
}

fn parse_subnets(annotations: Annotations<'_>) -> Result<Vec<String>, Problem> {
    let list = annotations.list(annotation::SUBNETS);
    let text = annotations.text(annotation::SUBNETS).unwrap_or_default();
    let expected = "subnet ids or values of their Name tags, each once, separated by commas";
    let wrong = |what: String| Err(Problem::new(annotation::SUBNETS, text, what, expected));
    if list.is_empty() && !text.is_empty() {
        return wrong("names no subnet".into());
    }
    let mut seen = BTreeSet::new();
    for part in &list {
        let id = part.strip_prefix("subnet-");
        if id.is_some_and(|hex| hex.is_empty() || !hex.bytes().all(|byte| byte.is_ascii_hexdigit())) {
            return wrong(format!("has {part:?}, which is no subnet id"));
        }
        if !seen.insert(part) {
            return wrong(format!("has {part:?} twice"));
        }
    }
    Ok(list.into_iter().map(str::to_owned).collect())
}

fn parse_tags(annotations: Annotations<'_>) -> Result<Tags, Problem> {
    let tags = annotations.map(annotation::RESOURCE_TAGS)?;
    let legal = |text: &str| text.chars().all(|letter| letter.is_alphanumeric() || " +-=._:/@".contains(letter));
    let mut wrong = None;
    for (key, value) in &tags {
        if key.to_ascii_lowercase().starts_with("aws:") {
            wrong = Some(format!("has the key {key:?}, which AWS reserves"));
        } else if key.starts_with(TAG_PREFIX) {
            wrong = Some(format!("has the key {key:?}, with which weir marks what it owns"));
        } else if key.chars().count() > 127 || value.chars().count() > TAG_VALUE_LIMIT {
            wrong = Some(format!("has the tag {key:?}, which is too long"));
        } else if !legal(key) || !legal(value) {
            wrong = Some(format!("has the tag {key:?} with a character that AWS does not take"));
        }
    }
    if tags.len() > USER_TAG_LIMIT {
        wrong = Some(format!("has {} tags", tags.len()));
    } else if encode_keys(tags.keys()).chars().count() > TAG_VALUE_LIMIT {
        wrong = Some(format!("has keys of more than {TAG_VALUE_LIMIT} characters in all"));
    }
    match wrong {
        None => Ok(tags),
        Some(wrong) => {
            let expected =
                "at most 45 tags; keys up to 127 and values up to 255 letters, digits, blanks and + - = . _ : / @";
            let text = annotations.text(annotation::RESOURCE_TAGS).unwrap_or_default();
            Err(Problem::new(annotation::RESOURCE_TAGS, text, wrong, expected))
        }
    }
}

/// The ranges of the spec, else of the annotation, else everyone. Canonical and without those another one covers.
fn parse_source_ranges(
    in_spec: &[String],
    annotations: Annotations<'_>,
    keep: &mut impl FnMut(Problem),
) -> BTreeSet<IpNet> {
    let (field, texts) = if in_spec.is_empty() {
        (annotation::SOURCE_RANGES, annotations.list(annotation::SOURCE_RANGES))
    } else {
        ("spec.loadBalancerSourceRanges", in_spec.iter().map(|text| text.trim()).collect())
    };
    let mut ranges = vec![];
    for text in texts {
        match text.parse::<IpNet>() {
            Ok(IpNet::V4(range)) => ranges.push(IpNet::V4(range.trunc())),
            Ok(IpNet::V6(_)) => {
                keep(Problem::new(
                    field,
                    text,
                    "is an IPv6 range and the load balancer is not dualstack",
                    "IPv4 ranges",
                ));
            }
            Err(_) => keep(Problem::new(field, text, "is no address range", "CIDR blocks such as 192.0.2.0/24")),
        }
    }
    if ranges.is_empty() {
        ranges.push(IpNet::V4(Ipv4Net::default()));
    }
    IpNet::aggregate(&ranges).into_iter().collect()
}

fn parse_ports(ports: &[ServicePort], keep: &mut impl FnMut(Problem)) -> BTreeMap<u16, Port> {
    let mut parsed: BTreeMap<u16, Port> = BTreeMap::new();
    for (index, port) in ports.iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        let Some(number) = to_port(port.port) else {
            keep(Problem::new(format!("{field}.port"), port.port.to_string(), "is no port", "1 to 65535"));
            continue;
        };
        let protocol = match port.protocol.as_deref().unwrap_or("TCP") {
            "TCP" => Protocol::Tcp,
            "UDP" => Protocol::Udp,
            other => {
                let wrong = "is no protocol of a Network Load Balancer";
                keep(Problem::new(format!("{field}.protocol"), other, wrong, "TCP or UDP"));
                continue;
            }
        };
        let Some(node_port) = port.node_port.and_then(to_port) else {
            let value = port.node_port.unwrap_or_default().to_string();
            let wrong = format!("is no NodePort for port {number}");
            let expected = "a nodePort, or spec.allocateLoadBalancerNodePorts: true";
            keep(Problem::new(format!("{field}.nodePort"), value, wrong, expected));
            continue;
        };
        match parsed.get_mut(&number) {
            None => {
                parsed.insert(number, Port { port: number, protocol, node_port });
            }
            Some(other) if other.protocol != protocol && other.node_port == node_port => {
                other.protocol = Protocol::TcpUdp;
            }
            Some(other) if other.protocol != protocol => {
                let wrong = format!("differs from nodePort {} of the same port {number}", other.node_port);
                let expected =
                    "one NodePort for both protocols, since a Network Load Balancer has one listener per port";
                keep(Problem::new(format!("{field}.nodePort"), node_port.to_string(), wrong, expected));
            }
            Some(_) => {
                keep(Problem::new(format!("{field}.port"), number.to_string(), "is given twice", "each port once"));
            }
        }
    }
    if parsed.len() > LISTENER_LIMIT {
        let wrong = "are more ports than a Network Load Balancer has listeners";
        keep(Problem::new("spec.ports", parsed.len().to_string(), wrong, format!("at most {LISTENER_LIMIT}")));
    }
    parsed
}

fn to_port(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|port| *port != 0)
}

#[cfg(test)]
mod tests;
