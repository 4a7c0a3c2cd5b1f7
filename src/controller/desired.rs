//! Pure: `ServiceSpec + Facts (+ what exists) → Desired`.
//!
//! What exists plays a part in three answers only: a scheme that is no longer asked for stays what it is, a load
//! balancer keeps its name and its zones, and a name that somebody else holds is refused.

mod access;
mod address;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use self::access::{frontend_rules, own_groups};
use self::address::mappings;
use super::facts::{Facts, discover_subnets, named_subnets};
use super::observed::{Balancer, Carried, HealthCheck, IngressRule, Mapping, Observed, Source};
use crate::model::annotation::{self, Problem};
use crate::model::attribute::Attributes;
use crate::model::family::Family;
use crate::model::id::{SecurityGroupId, SubnetId, VpcId, Zone};
use crate::model::name::{self, TargetGroupTraits};
use crate::model::node::{Labels, Worker, ZONE_LABEL};
use crate::model::ownership::{self, Owner, Role, Tags};
use crate::model::service::{
    AddressType, HealthCheckSpec, HealthPort, HealthProtocol, Port, Protocol, Scheme, ServiceSpec, Tls,
};

/// What the operator decided for all Services.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Name of the cluster, as in the tags of its resources.
    pub cluster: String,
    /// UID of the cluster's namespace `kube-system`.
    pub cluster_uid: String,
    /// Scheme of a Service that asks for none.
    pub default_scheme: Scheme,
    /// First and last NodePort of the cluster.
    pub node_ports: (u16, u16),
    /// Port on which each node answers `/healthz` for itself.
    pub health_port: u16,
}

/// What AWS should have for one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// The load balancer.
    pub balancer: DesiredBalancer,
    /// The security group with the source ranges, unless the Service brings groups of its owner's.
    pub frontend: Option<DesiredGroup>,
    /// The target group behind each listener, by the listener's port.
    pub target_groups: BTreeMap<u16, DesiredTargetGroup>,
    /// Listeners by port.
    pub listeners: BTreeMap<u16, DesiredListener>,
    /// Tags of each listener.
    pub listener_tags: Tags,
}

/// A desired load balancer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredBalancer {
    /// Its name.
    pub name: String,
    /// Its scheme.
    pub scheme: Scheme,
    /// IP families of its clients.
    pub address_type: AddressType,
    /// Its subnet in each zone, and its addresses there.
    pub subnets: BTreeMap<Zone, Mapping>,
    /// Whether it has an IPv6 prefix in each subnet for UDP clients.
    pub source_nat: bool,
    /// Its security groups: the Service's own or the owner's, then the one that the nodes admit.
    pub groups: Vec<Carried>,
    /// Ids of those of them that exist.
    pub group_ids: BTreeSet<SecurityGroupId>,
    /// Whether their inbound rules hold for what comes through PrivateLink too.
    pub rules_on_private_link: bool,
    /// Capacity units reserved for it.
    pub capacity: i32,
    /// Its tags.
    pub tags: Tags,
    /// Its attributes, as far as asked for.
    pub attributes: Attributes,
}

/// A desired listener. Its target group is the one of the same port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredListener {
    /// Its protocol.
    pub protocol: Protocol,
    /// Its TLS settings, if it is TLS.
    pub tls: Option<Tls>,
    /// Its attributes, as far as asked for.
    pub attributes: Attributes,
}

/// A desired security group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredGroup {
    /// Its name.
    pub name: String,
    /// Its description.
    pub description: String,
    /// Its inbound rules.
    pub rules: BTreeSet<IngressRule>,
    /// Its tags.
    pub tags: Tags,
}

/// A desired target group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredTargetGroup {
    /// Its name.
    pub name: String,
    /// Its VPC.
    pub vpc: VpcId,
    /// Its protocol.
    pub protocol: Protocol,
    /// IP family of its targets.
    pub family: Family,
    /// The NodePort.
    pub port: u16,
    /// Its health check.
    pub health: HealthCheck,
    /// Labels of the nodes that may be its targets; none: every node may.
    pub nodes: Labels,
    /// Its tags.
    pub tags: Tags,
    /// Its attributes, as far as asked for.
    pub attributes: Attributes,
}

/// Why a Service cannot be served as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Its owner must change the Service.
    Service(Vec<Problem>),
    /// Something in the account must change; looked at again by itself.
    Network(String),
}

/// What a Service should have.
///
/// # Errors
/// Why it can have nothing, or must keep what it has.
pub fn desired(spec: &ServiceSpec, facts: &Facts, policy: &Policy, observed: &Observed) -> Result<Desired, Refusal> {
    let Owner { service, uid } = &spec.owner;
    let cluster = &policy.cluster;
    let existing = observed.of(cluster, uid).balancers;
    let scheme = spec.scheme.or_else(|| Some(existing.first()?.scheme)).unwrap_or(policy.default_scheme);
    let generated = name::balancer(cluster, service, uid, scheme.as_str());
    let wanted_name = spec.name.clone().unwrap_or(generated);
    let same_scheme = || existing.iter().copied().filter(|balancer| balancer.scheme == scheme);
    let kept = same_scheme().find(|balancer| balancer.name == wanted_name).or_else(|| same_scheme().next());

    let mut problems = vec![];
    take(check_name(spec, &wanted_name, kept, observed, policy), &mut problems);
    let name = kept.map_or(wanted_name, |balancer| balancer.name.clone());
    let subnets = match subnets(spec, scheme, facts, policy, kept) {
        Ok(subnets) => mappings(spec, scheme, &subnets, facts, kept).unwrap_or_else(|found| {
            problems.extend(found);
            BTreeMap::new()
        }),
        Err(Refusal::Service(found)) => {
            problems.extend(found);
            BTreeMap::new()
        }
        Err(network @ Refusal::Network(_)) => return Err(network),
    };
    let tags = |role| {
        let tags = ownership::service_tags(cluster, &spec.owner, role, &spec.tags);
        ownership::with_cluster_uid(tags, &policy.cluster_uid)
    };
    let mut groups = take(own_groups(spec, facts), &mut problems);
    let frontend = spec.access.groups.is_empty().then(|| DesiredGroup {
        name: name::frontend_group(cluster, service, uid),
        description: format!("Sources that may reach the load balancer of Service {service}")
            .chars()
            .take(255)
            .collect(),
        rules: take(frontend_rules(spec, facts), &mut problems),
        tags: tags(Role::FrontendGroup),
    });
    if !problems.is_empty() {
        problems.sort();
        return Err(Refusal::Service(problems));
    }
    groups.extend(frontend.iter().map(|group| Carried::Ours(group.name.clone())));
    groups.extend(spec.access.carries_backend().then(|| Carried::Ours(name::backend_group(cluster))));
    let target_groups = spec
        .ports
        .iter()
        .map(|(port, listener)| {
            let protocol = listener.target_protocol;
            let traits = TargetGroupTraits {
                protocol: protocol.as_str(),
                node_port: listener.node_port,
                family: spec.family,
                picks_nodes: !spec.node_labels.is_empty(),
            };
            let group = DesiredTargetGroup {
                name: name::target_group(cluster, service, &name, *port, traits),
                family: spec.family,
                vpc: facts.vpc.clone(),
                protocol,
                port: listener.node_port,
                health: health_check(spec, listener, policy),
                nodes: spec.node_labels.clone(),
                tags: tags(Role::TargetGroup),
                attributes: listener.attributes.clone(),
            };
            (*port, group)
        })
        .collect();
    let group_ids = groups.iter().filter_map(|group| observed.id_of(group)).collect();
    let balancer = DesiredBalancer {
        name,
        scheme,
        address_type: spec.address_type,
        subnets,
        source_nat: spec.addresses.source_nat,
        groups,
        group_ids,
        rules_on_private_link: spec.access.rules_on_private_link,
        capacity: spec.capacity,
        tags: tags(Role::Balancer),
        attributes: spec.attributes.clone(),
    };
    let listeners = spec.ports.iter().map(|(port, listener)| {
        let (protocol, tls) = (listener.protocol, listener.tls.clone());
        (*port, DesiredListener { protocol, tls, attributes: listener.listener_attributes.clone() })
    });
    let listeners = listeners.collect();
    Ok(Desired { balancer, frontend, target_groups, listeners, listener_tags: tags(Role::Listener) })
}

/// Health checks ask the node, not the pods, unless told otherwise: `/healthz` of the service proxy under policy
/// Cluster, the Service's healthCheckNodePort under Local (KEP-3836, KEP-1997). Ten seconds and two checks: a dead node
/// is out within 20 s.
///
/// Who gives a protocol or path and no port means their own server, as with the AWS Load Balancer Controller: the check
/// then goes to the traffic port. Under policy Local it stays on the healthCheckNodePort, as there. UDP answers no check,
/// so that such a target group keeps ours.
fn health_check(spec: &ServiceSpec, port: &Port, policy: &Policy) -> HealthCheck {
    let asked = &spec.health;
    let means_their_server = asked.protocol.is_some() || asked.path.is_some();
    let of_node = || spec.local_health_port.unwrap_or(policy.health_port).to_string();
    let may_ask_node = !means_their_server || spec.local_health_port.is_some();
    let answers = port.target_protocol != Protocol::Udp;
    let checked_port = match asked.port {
        Some(HealthPort::Number(number)) => number.to_string(),
        None if may_ask_node || !answers => of_node(),
        Some(HealthPort::Traffic) | None => TRAFFIC_PORT.to_owned(),
    };
    let is_ours = asked.port.is_none() && !answers && spec.local_health_port.is_none();
    // Of their own server nothing is known but that it listens, and `/` if it speaks HTTP.
    let asks_node = checked_port == of_node() || spec.local_health_port.is_some();
    let speaks_http = asks_node || asked.path.is_some() || asked.codes.is_some();
    let default_protocol = if speaks_http { HealthProtocol::Http } else { HealthProtocol::Tcp };
    let protocol = asked.protocol.filter(|_| !is_ours).unwrap_or(default_protocol);
    let requests = protocol != HealthProtocol::Tcp;
    let default_path = if asks_node { "/healthz" } else { "/" };
    let path = asked.path.clone().filter(|_| !is_ours).unwrap_or_else(|| default_path.to_owned());
    let codes = asked.codes.clone().unwrap_or_else(|| "200-399".to_owned());
    let interval = asked.interval.unwrap_or(HealthCheckSpec::INTERVAL);
    let timeout = if protocol == HealthProtocol::Http { 6 } else { 10 };
    HealthCheck {
        protocol: protocol.as_str().to_owned(),
        port: checked_port,
        path: requests.then_some(path),
        interval,
        timeout: asked.timeout.unwrap_or_else(|| timeout.min(interval)),
        healthy: asked.healthy.unwrap_or(2),
        unhealthy: asked.unhealthy.unwrap_or(2),
        codes: requests.then_some(codes),
    }
}

const TRAFFIC_PORT: &str = "traffic-port";

/// Rules that admit all load balancers of the cluster to its nodes. A constant handful: no Service adds one.
pub fn node_rules(policy: &Policy, backend: &SecurityGroupId) -> BTreeSet<IngressRule> {
    let (first, last) = policy.node_ports;
    let rule = |protocol: &str, from: u16, to: u16| IngressRule {
        protocol: protocol.into(),
        from: from.into(),
        to: to.into(),
        source: Source::Group(backend.clone()),
    };
    let mut rules = BTreeSet::from([rule("tcp", first, last), rule("udp", first, last)]);
    if !(first..=last).contains(&policy.health_port) {
        rules.insert(rule("tcp", policy.health_port, policy.health_port));
    }
    rules
}

/// Zones of nodes that may be targets, in which the load balancer has no subnet and which it does not reach from others.
pub fn missing_zones<'a>(
    workers: impl Iterator<Item = &'a Worker>,
    spec: &ServiceSpec,
    desired: &Desired,
) -> BTreeSet<String> {
    const CROSS_ZONE: &str = "load_balancing.cross_zone.enabled";
    let is_on = |attributes: &Attributes| match attributes.get(CROSS_ZONE).map(String::as_str) {
        Some("true") => Some(true),
        Some("false") => Some(false),
        _ => None,
    };
    let of_balancer = is_on(&spec.attributes).unwrap_or_default();
    if spec.ports.values().all(|port| is_on(&port.attributes).unwrap_or(of_balancer)) {
        return BTreeSet::new();
    }
    let may_serve = |worker: &&Worker| worker.eligible && worker.has_labels(&spec.node_labels);
    let zones = workers.filter(may_serve).filter_map(|worker| worker.labels.get(ZONE_LABEL)).cloned();
    zones.filter(|zone| !desired.balancer.subnets.contains_key(&Zone::from(zone.as_str()))).collect()
}

/// Refuses a name that others hold, and a change of the name of a load balancer that exists: AWS cannot rename one.
fn check_name(
    spec: &ServiceSpec,
    wanted: &str,
    kept: Option<&Balancer>,
    observed: &Observed,
    policy: &Policy,
) -> Result<(), Problem> {
    let refuse = |wrong: String, expected: &str| {
        let (field, value) = match &spec.name {
            Some(name) => (annotation::NAME, name.as_str()),
            None => ("load balancer name", wanted),
        };
        Err(Problem::new(field, value, wrong, expected))
    };
    if let Some(kept) = kept {
        if spec.name.is_some() && kept.name != wanted {
            let wrong = format!("cannot be given to the load balancer, which exists as {:?}", kept.name);
            return refuse(wrong, "the existing name, or a new Service");
        }
        return Ok(());
    }
    if let Some(arn) = observed.foreign_balancers.get(wanted) {
        let wrong = format!("is already the name of load balancer {arn}, which this Service does not own");
        return refuse(wrong, "a name that is free in the account and Region");
    }
    if let Some(taken) = observed.balancers.get(wanted) {
        let holder = ownership::owner(&policy.cluster, &taken.tags);
        let wrong = match holder {
            Some(holder) if holder.uid == spec.owner.uid => {
                format!("is the name of this Service's {} load balancer, which another one must replace", taken.scheme)
            }
            Some(holder) => format!("is already the name of the load balancer of Service {}", holder.service),
            None => format!("is already the name of load balancer {}", taken.arn),
        };
        return refuse(wrong, "another name");
    }
    Ok(())
}

/// Subnets asked for, in that order; else those the load balancer has, and one for each zone that has come since, by id.
/// A zone is never taken away by discovery, since that would cut its connections, nor added where addresses are listed
/// for those there are.
fn subnets(
    spec: &ServiceSpec,
    scheme: Scheme,
    facts: &Facts,
    policy: &Policy,
    kept: Option<&Balancer>,
) -> Result<Vec<(Zone, SubnetId)>, Refusal> {
    let enabled = kept.iter().flat_map(|balancer| &balancer.subnets);
    let enabled: BTreeMap<_, _> = enabled.map(|(zone, mapping)| (zone.clone(), mapping.subnet.clone())).collect();
    if !spec.subnets.is_empty() {
        let named = named_subnets(&spec.subnets, facts).map_err(|problem| Refusal::Service(vec![problem]))?;
        let is_swap = |(zone, subnet): &(Zone, SubnetId)| enabled.get(zone).is_some_and(|other| other != subnet);
        if !enabled.is_empty() && named.iter().all(is_swap) {
            let wrong = "replaces the subnet of every zone at once, which would leave the load balancer without any";
            let expected = "at least one zone that keeps its subnet meanwhile";
            let problem = Problem::new(annotation::SUBNETS, spec.subnets.join(","), wrong, expected);
            return Err(Refusal::Service(vec![problem]));
        }
        return Ok(named);
    }
    let mut chosen: BTreeMap<_, _> =
        enabled.into_iter().filter(|(_, subnet)| facts.subnets.contains_key(subnet)).collect();
    if chosen.is_empty() || !spec.addresses.is_for_each_subnet() {
        match discover_subnets(&policy.cluster, scheme, spec.address_type, facts) {
            Ok(found) => {
                for (zone, subnet) in found {
                    chosen.entry(zone).or_insert(subnet);
                }
            }
            Err(sentence) if chosen.is_empty() => return Err(Refusal::Network(sentence)),
            Err(_) => {}
        }
    }
    let mut chosen: Vec<_> = chosen.into_iter().collect();
    chosen.sort_by(|(_, one), (_, other)| one.cmp(other));
    Ok(chosen)
}

/// The value, or its default after taking note of what is wrong.
fn take<T: Default>(found: Result<T, Problem>, problems: &mut Vec<Problem>) -> T {
    found.unwrap_or_else(|problem| {
        problems.push(problem);
        T::default()
    })
}

#[cfg(test)]
mod tests;
