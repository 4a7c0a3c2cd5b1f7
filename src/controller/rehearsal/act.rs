//! What would happen, in words: each act, what it changes, and what it takes the place of.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

use super::imagine_listener;
use crate::controller::desired::Desired;
use crate::controller::observed::{HealthCheck, Listener, Mapping, Observed, Slice};
use crate::controller::plan::{AttributesOf, Resource, Step, Wait};
use crate::model::attribute::Attributes;
use crate::model::id::{AsgName, InstanceId, Zone};
use crate::model::node::Labels;

/// Something that would happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// A step of a plan is taken. What it changes, or how what it makes differs from what that takes the place of.
    Take { step: Box<Step>, replaces: Option<String>, changes: Vec<Change> },
    /// A target group is attached to an Auto Scaling group.
    Attach { target_group: String, asg: AsgName },
    /// A target group is detached.
    Detach { target_group: String, asg: AsgName },
    /// Instances are registered one by one.
    Register { target_group: String, instances: BTreeSet<InstanceId> },
    /// Instances are taken out again.
    Deregister { target_group: String, instances: BTreeSet<InstanceId> },
    /// Something must happen before it goes on.
    Wait(Wait),
}

/// How something is changed. `None`: it is not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// What.
    pub what: String,
    /// What it is.
    pub from: Option<String>,
    /// What it becomes.
    pub to: Option<String>,
}

/// What an act does to AWS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It makes something.
    Create,
    /// It changes something.
    Change,
    /// It takes something away.
    Delete,
    /// Nothing.
    Wait,
}

impl Act {
    /// What it does.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Take { step, .. } => match **step {
                Step::CreateGroup { .. }
                | Step::CreateBalancer(_)
                | Step::CreateTargetGroup(_)
                | Step::CreateListener { .. } => Kind::Create,
                Step::DeleteGroup { .. }
                | Step::DeleteBalancer { .. }
                | Step::DeleteTargetGroup { .. }
                | Step::DeleteListener { .. } => Kind::Delete,
                Step::Authorize { .. }
                | Step::Revoke { .. }
                | Step::AuthorizeNodes { .. }
                | Step::RevokeNodes { .. }
                | Step::SetGroups { .. }
                | Step::SetAddressType { .. }
                | Step::SetSubnets { .. }
                | Step::ReserveCapacity { .. }
                | Step::ModifyHealthCheck { .. }
                | Step::Intend { .. }
                | Step::Select { .. }
                | Step::ModifyListener { .. }
                | Step::AddCertificate { .. }
                | Step::RemoveCertificate { .. }
                | Step::ModifyAttributes { .. }
                | Step::Tag { .. }
                | Step::Untag { .. } => Kind::Change,
            },
            Self::Attach { .. } | Self::Register { .. } => Kind::Create,
            Self::Detach { .. } | Self::Deregister { .. } => Kind::Delete,
            Self::Wait(_) => Kind::Wait,
        }
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listed =
            |instances: &BTreeSet<InstanceId>| instances.iter().map(InstanceId::as_str).collect::<Vec<_>>().join(", ");
        match self {
            Self::Take { step, replaces, changes } => {
                step.fmt(f)?;
                if let Some(replaced) = replaces {
                    write!(f, " in place of {replaced}")?;
                }
                let changes: Vec<_> = changes.iter().map(ToString::to_string).collect();
                if changes.is_empty() { Ok(()) } else { write!(f, " ({})", changes.join("; ")) }
            }
            Self::Attach { target_group, asg } => {
                write!(f, "attach target group {target_group} to Auto Scaling group {asg}")
            }
            Self::Detach { target_group, asg } => {
                write!(f, "detach target group {target_group} from Auto Scaling group {asg}")
            }
            Self::Register { target_group, instances } => {
                write!(f, "register in target group {target_group}: {}", listed(instances))
            }
            Self::Deregister { target_group, instances } => {
                write!(f, "deregister from target group {target_group}: {}", listed(instances))
            }
            Self::Wait(wait) => wait.fmt(f),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |side: &Option<String>| side.clone().unwrap_or_else(|| "none".to_owned());
        write!(f, "{}: {} → {}", self.what, shown(&self.from), shown(&self.to))
    }
}

/// A step, with what it changes in what is there before it is taken.
pub(super) fn describe(step: &Step, desired: Option<&Desired>, observed: &Observed, cluster: &str, uid: &str) -> Act {
    let replacement = desired.and_then(|desired| replacement(step, desired, &observed.of(cluster, uid)));
    let (replaces, changes) = match replacement {
        Some((replaced, changes)) => (Some(replaced), changes),
        None => (None, changes(step, observed).unwrap_or_default()),
    };
    Act::Take { step: Box::new(step.clone()), replaces, changes }
}

/// The name of what a new resource takes the place of, and what AWS could not change there.
fn replacement(step: &Step, desired: &Desired, slice: &Slice<'_>) -> Option<(String, Vec<Change>)> {
    match step {
        Step::CreateBalancer(new) => {
            let old = slice.balancers.iter().find(|old| old.name != new.name)?;
            Some((old.name.clone(), differing([("scheme", old.scheme.as_str(), new.scheme.as_str())])))
        }
        Step::CreateTargetGroup(new) => {
            let (port, _) = desired.target_groups.iter().find(|(_, group)| group.name == new.name)?;
            let mut balancers = slice.balancers.iter();
            let (balancer, listener) =
                balancers.find_map(|balancer| Some((balancer, balancer.listeners.as_ref()?.get(port)?)))?;
            let old = listener.target_group.as_ref()?;
            let old = slice.target_groups.iter().find(|group| group.arn == *old)?;
            let changes = differing([
                ("NodePort", old.port.to_string().as_str(), new.port.to_string().as_str()),
                ("protocol", old.protocol.as_str(), new.protocol.as_str()),
                ("VPC", old.vpc.as_str(), new.vpc.as_str()),
                ("load balancer", balancer.name.as_str(), desired.balancer.name.as_str()),
                ("nodes", nodes_of(&old.nodes).as_str(), nodes_of(&new.nodes).as_str()),
            ]);
            Some((old.name.clone(), changes))
        }
        _ => None,
    }
}

fn nodes_of(labels: &Labels) -> String {
    let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    if labels.is_empty() { "all".to_owned() } else { labels.join(",") }
}

fn differing<const N: usize>(sides: [(&str, &str, &str); N]) -> Vec<Change> {
    let differ = sides.into_iter().filter(|(_, from, to)| from != to);
    differ.map(|(what, from, to)| change(what, Some(from), Some(to))).collect()
}

fn change(what: &str, from: Option<&str>, to: Option<&str>) -> Change {
    Change { what: what.to_owned(), from: from.map(str::to_owned), to: to.map(str::to_owned) }
}

/// What a step changes, as far as its own words do not say it all.
fn changes(step: &Step, observed: &Observed) -> Option<Vec<Change>> {
    Some(match step {
        Step::SetAddressType { balancer, address_type } => {
            let before = observed.balancers.get(balancer)?.address_type;
            vec![change("IP address type", Some(before.as_str()), Some(address_type.as_str()))]
        }
        Step::SetSubnets { balancer, subnets, address_type, source_nat } => {
            let before = observed.balancers.get(balancer)?;
            let mut changes = subnet_changes(&before.subnets, subnets);
            if let Some(after) = address_type {
                changes.extend(differing([("IP address type", before.address_type.as_str(), after.as_str())]));
            }
            if let Some(after) = source_nat {
                let word = |on: bool| if on { "on" } else { "off" };
                changes.extend(differing([("IPv6 source NAT", word(before.source_nat), word(*after))]));
            }
            changes
        }
        Step::SetGroups { balancer, groups, rules_on_private_link } => {
            let before = observed.balancers.get(balancer)?;
            let known: BTreeMap<_, _> = observed.groups.values().map(|group| (&group.id, &group.name)).collect();
            let name = |id| known.get(id).map_or_else(|| format!("{id}"), |name| (*name).clone());
            let names =
                |all: Vec<String>| all.into_iter().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ");
            let had = names(before.groups.iter().map(name).collect());
            let has = names(groups.iter().map(ToString::to_string).collect());
            let word = |on: bool| if on { "on" } else { "off" };
            differing([
                ("security groups", had.as_str(), has.as_str()),
                ("rules on PrivateLink", word(before.rules_on_private_link), word(*rules_on_private_link)),
            ])
        }
        Step::ReserveCapacity { balancer, units } => {
            let before = observed.balancers.get(balancer)?.capacity.unwrap_or_default();
            vec![change("capacity units", Some(&before.to_string()), Some(&units.to_string()))]
        }
        Step::ModifyHealthCheck { target_group, health } => {
            health_changes(&observed.target_groups.get(target_group)?.health, health)
        }
        Step::ModifyListener { balancer, port, protocol, tls, target_group } => {
            let before = observed.balancers.get(balancer)?.listeners.as_ref()?.get(port)?;
            let after = observed.target_groups.get(target_group)?.arn.clone();
            listener_changes(before, &imagine_listener(before.arn.clone(), *protocol, tls.as_ref(), after), observed)
        }
        Step::ModifyAttributes { of, attributes } => {
            let none = Attributes::new();
            let before = attributes_of(of, observed).unwrap_or(&none);
            let sides = attributes.iter().map(|(key, to)| change(key, before.get(key).map(String::as_str), Some(to)));
            sides.collect()
        }
        Step::Tag { resource, tags } => {
            let before = match resource {
                Resource::Balancer(name) => &observed.balancers.get(name)?.tags,
                Resource::TargetGroup(name) => &observed.target_groups.get(name)?.tags,
                Resource::Group(name) => &observed.groups.get(name)?.tags,
                Resource::Listener(balancer, port) => {
                    observed.balancers.get(balancer)?.listeners.as_ref()?.get(port)?.tags.as_ref()?
                }
            };
            tags.iter().map(|(key, to)| change(key, before.get(key).map(String::as_str), Some(to))).collect()
        }
        _ => return None,
    })
}

fn attributes_of<'a>(of: &AttributesOf, observed: &'a Observed) -> Option<&'a Attributes> {
    match of {
        AttributesOf::Balancer(name) => observed.balancers.get(name)?.attributes.as_ref(),
        AttributesOf::TargetGroup(name) => observed.target_groups.get(name)?.attributes.as_ref(),
        AttributesOf::Listener(balancer, port) => {
            observed.balancers.get(balancer)?.listeners.as_ref()?.get(port)?.attributes.as_ref()
        }
    }
}

fn subnet_changes(before: &BTreeMap<Zone, Mapping>, after: &BTreeMap<Zone, Mapping>) -> Vec<Change> {
    let zones: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let differ = zones.into_iter().filter(|zone| before.get(*zone) != after.get(*zone));
    let subnet = |side: &BTreeMap<Zone, Mapping>, zone: &Zone| {
        let mapping = side.get(zone)?;
        let parts = std::iter::once(mapping.subnet.to_string()).chain(mapping.addresses());
        Some(parts.collect::<Vec<_>>().join(" "))
    };
    differ.map(|zone| Change { what: zone.to_string(), from: subnet(before, zone), to: subnet(after, zone) }).collect()
}

fn health_changes(before: &HealthCheck, after: &HealthCheck) -> Vec<Change> {
    let sides = |health: &HealthCheck| {
        [
            ("protocol", Some(health.protocol.clone())),
            ("port", Some(health.port.clone())),
            ("path", health.path.clone()),
            ("codes", health.codes.clone()),
            ("interval", Some(format!("{} s", health.interval))),
            ("timeout", Some(format!("{} s", health.timeout))),
            ("good checks", Some(health.healthy.to_string())),
            ("bad checks", Some(health.unhealthy.to_string())),
        ]
    };
    pairs(sides(before), sides(after))
}

fn listener_changes(before: &Listener, after: &Listener, observed: &Observed) -> Vec<Change> {
    let sides = |listener: &Listener| {
        let arn = listener.target_group.as_ref();
        let known = arn.and_then(|arn| observed.target_group(arn)).map(|group| group.name.clone());
        [
            ("protocol", Some(listener.protocol.clone())),
            ("target group", known.or_else(|| arn.map(ToString::to_string))),
            ("certificate", listener.certificate.clone()),
            ("policy", listener.policy.clone()),
            ("ALPN policy", listener.alpn.clone()),
        ]
    };
    pairs(sides(before), sides(after))
}

fn pairs<const N: usize>(before: [(&str, Option<String>); N], after: [(&str, Option<String>); N]) -> Vec<Change> {
    let sides = before.into_iter().zip(after).filter(|((_, from), (_, to))| from != to);
    sides.map(|((what, from), (_, to))| Change { what: what.to_owned(), from, to }).collect()
}
