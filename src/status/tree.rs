//! Pure: what was read → one tree for each Service.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::aws::inquiry::Health;
use crate::controller::observed::{Asg, Balancer, BalancerState, Listener, Observed, SourceState, TargetGroup};
use crate::controller::report;
use crate::model::id::{AsgName, InstanceId, TargetGroupArn};
use crate::model::node::{Labels, Worker};

/// What was read.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Name of the cluster.
    pub cluster: String,
    /// The class that weir serves.
    pub class: String,
    /// Services to show.
    pub services: Vec<Service>,
    /// Nodes.
    pub workers: Vec<Worker>,
    /// What AWS has of this cluster.
    pub observed: Observed,
    /// How the targets of target groups are.
    pub health: BTreeMap<TargetGroupArn, BTreeMap<InstanceId, Health>>,
}

/// A Service as the API server has it.
#[derive(Clone, Debug)]
pub struct Service {
    /// `namespace/name`.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Whether weir looks after it.
    pub is_ours: bool,
    /// Its type.
    pub kind: String,
    /// Its class.
    pub class: Option<String>,
    /// Hostname in its status.
    pub hostname: Option<String>,
    /// Whether it is being deleted.
    pub is_leaving: bool,
    /// What is wrong with it as it is written.
    pub problems: Vec<String>,
    /// Labels of the nodes that it asks for; none: every node may be a target.
    pub node_labels: Labels,
    /// What the controller said of it, oldest first: reason, words, whether it is a warning. Or why we do not know.
    pub told: Result<Vec<(String, String, bool)>, String>,
}

/// Where a Service stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// Its hostname is published, and leads to an active load balancer.
    Ready,
    /// Something is still to be done.
    Pending,
    /// It cannot be served as it is written.
    Refused,
    /// It is being deleted.
    Deleting,
    /// weir does not look after it.
    NotOurs,
}

/// A Service and what AWS has for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tree {
    /// `namespace/name`.
    pub service: String,
    /// Where it stands.
    pub state: State,
    /// The name by which it is reached.
    pub hostname: Option<String>,
    /// What there is to say of its state.
    pub words: Vec<String>,
    /// Load balancers; more than one while one replaces another.
    pub load_balancers: Vec<BalancerTree>,
    /// Target groups that no listener leads to.
    pub idle_target_groups: Vec<TargetGroupTree>,
}

/// A load balancer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BalancerTree {
    /// Its name.
    pub name: String,
    /// Its ARN.
    pub arn: String,
    /// Its DNS name, as AWS shows it.
    pub dns_name: String,
    /// `active`, `provisioning` or `failed`.
    pub state: &'static str,
    /// Why it failed.
    pub reason: Option<String>,
    /// `internal` or `internet-facing`.
    pub scheme: String,
    /// Subnet of each zone.
    pub zones: BTreeMap<String, String>,
    /// Listeners.
    pub listeners: Vec<ListenerTree>,
}

/// A listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListenerTree {
    /// Its port.
    pub port: u16,
    /// Its protocol.
    pub protocol: String,
    /// What it leads to, if that is a target group of this Service.
    pub target_group: Option<TargetGroupTree>,
}

/// A target group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetGroupTree {
    /// Its name.
    pub name: String,
    /// Its ARN.
    pub arn: String,
    /// The NodePort behind it.
    pub node_port: u16,
    /// Its health check, in words.
    pub health_check: String,
    /// Targets that are healthy.
    pub healthy: usize,
    /// Targets.
    pub total: usize,
    /// Where its targets come from.
    pub sources: Vec<SourceTree>,
    /// Nodes that could be targets and are none.
    pub missing: Vec<String>,
}

/// Where targets come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceTree {
    /// The Auto Scaling group of these instances; none for those in no group.
    pub auto_scaling_group: Option<String>,
    /// `added`, `adding` or `removing` where the target group is attached to it; otherwise weir registers its instances.
    pub attachment: Option<&'static str>,
    /// Why it is not attached, where that can be told.
    pub because: Option<&'static str>,
    /// Targets that are healthy.
    pub healthy: usize,
    /// Targets.
    pub total: usize,
    /// The targets.
    pub targets: Vec<TargetTree>,
}

/// A target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetTree {
    /// Its id.
    pub instance: String,
    /// Its node, if it is one.
    pub node: Option<String>,
    /// Its state.
    pub state: String,
    /// Why it is not healthy.
    pub reason: Option<String>,
}

/// One tree for each Service, in their order.
pub fn trees(seen: &Seen) -> Vec<Tree> {
    seen.services.iter().map(|service| tree(seen, service)).collect()
}

fn tree(seen: &Seen, service: &Service) -> Tree {
    let slice = seen.observed.of(&seen.cluster, &service.uid);
    let groups: BTreeMap<_, _> = slice.target_groups.iter().map(|group| (&group.arn, *group)).collect();
    let view = View { seen, node_labels: &service.node_labels };
    let balancers: Vec<_> = slice.balancers.iter().map(|balancer| view.balancer(balancer, &groups)).collect();
    let led_to: BTreeSet<_> = slice
        .balancers
        .iter()
        .flat_map(|balancer| balancer.listeners.iter().flat_map(BTreeMap::values))
        .filter_map(|listener| listener.target_group.as_ref())
        .collect();
    let idle = groups.iter().filter(|(arn, _)| !led_to.contains(*arn));
    let idle = idle.map(|(_, group)| view.target_group(group)).collect();
    let state = state(service, &balancers);
    Tree {
        service: service.name.clone(),
        state,
        hostname: service.hostname.clone(),
        words: words(seen, service, state, &balancers),
        load_balancers: balancers,
        idle_target_groups: idle,
    }
}

fn state(service: &Service, balancers: &[BalancerTree]) -> State {
    let leads = |balancer: &BalancerTree| {
        balancer.state == "active"
            && service.hostname.as_ref().is_some_and(|name| name.eq_ignore_ascii_case(&balancer.dns_name))
    };
    if service.is_leaving {
        State::Deleting
    } else if !service.is_ours {
        State::NotOurs
    } else if !service.problems.is_empty() || last(service).is_some_and(|(reason, ..)| reason == report::INVALID.name())
    {
        State::Refused
    } else if balancers.iter().any(leads) {
        State::Ready
    } else {
        State::Pending
    }
}

/// The last thing the controller said since all was well.
fn last(service: &Service) -> Option<&(String, String, bool)> {
    service.told.as_ref().ok()?.last().filter(|(reason, ..)| !report::is_well(reason))
}

fn words(seen: &Seen, service: &Service, state: State, balancers: &[BalancerTree]) -> Vec<String> {
    let said = last(service).map(|(reason, note, _)| format!("{reason}: {note}"));
    let mut words = vec![];
    match state {
        State::Ready => words.extend(last(service).filter(|(_, _, is_warning)| *is_warning).and(said)),
        State::NotOurs if service.kind != "LoadBalancer" => words.push(format!("its type is {}", service.kind)),
        State::NotOurs => {
            let class = service.class.as_deref().unwrap_or("none");
            words.push(format!("its spec.loadBalancerClass is {class}, and weir serves {}", seen.class));
        }
        State::Refused if !service.problems.is_empty() => words.extend(service.problems.iter().cloned()),
        State::Refused => words.extend(said),
        State::Deleting => words.push(said.unwrap_or_else(|| nothing_said(service, "its deletion"))),
        State::Pending => {
            words.extend(lacks(service, balancers));
            words.extend(said);
            if service.told.as_ref().map_or(true, Vec::is_empty) {
                words.push(nothing_said(service, "it"));
            }
        }
    }
    words
}

fn nothing_said(service: &Service, of: &str) -> String {
    match &service.told {
        Ok(_) => format!(
            "the controller has said nothing of {of} within the last hour or so; `weir doctor` looks for the reason"
        ),
        Err(why) => format!("what the controller said of {of} is not known: {why}"),
    }
}

/// What a Service of ours should have and has not.
fn lacks(service: &Service, balancers: &[BalancerTree]) -> Option<String> {
    let hostname = service.hostname.as_deref();
    match (hostname, balancers) {
        (None, []) => Some("there is no load balancer yet".into()),
        (Some(hostname), []) => {
            Some(format!("{hostname} is published, and there is no load balancer of this Service: somebody deleted it"))
        }
        (Some(hostname), some) if !some.iter().any(|each| each.dns_name.eq_ignore_ascii_case(hostname)) => {
            Some(format!("{hostname} is published, which is no load balancer of this Service"))
        }
        _ => None,
    }
}

type Groups<'a> = BTreeMap<&'a TargetGroupArn, &'a TargetGroup>;

/// What was read, as one Service looks at it.
struct View<'a> {
    seen: &'a Seen,
    node_labels: &'a Labels,
}

impl View<'_> {
    fn balancer(&self, balancer: &Balancer, groups: &Groups<'_>) -> BalancerTree {
        let (state, reason) = match &balancer.state {
            BalancerState::Active => ("active", None),
            BalancerState::Provisioning => ("provisioning", None),
            BalancerState::Failed(reason) => ("failed", Some(reason.clone())),
        };
        let group =
            |listener: &Listener| groups.get(listener.target_group.as_ref()?).map(|group| self.target_group(group));
        let listener = |(port, listener): (&u16, &Listener)| ListenerTree {
            port: *port,
            protocol: listener.protocol.clone(),
            target_group: group(listener),
        };
        BalancerTree {
            name: balancer.name.clone(),
            arn: balancer.arn.to_string(),
            dns_name: balancer.dns_name.clone(),
            state,
            reason,
            scheme: balancer.scheme.as_str().to_owned(),
            zones: balancer
                .subnets
                .iter()
                .map(|(zone, subnet)| (zone.to_string(), subnet.subnet.to_string()))
                .collect(),
            listeners: balancer.listeners.iter().flatten().map(listener).collect(),
        }
    }

    fn target_group(&self, group: &TargetGroup) -> TargetGroupTree {
        let none = BTreeMap::new();
        let targets = self.seen.health.get(&group.arn).unwrap_or(&none);
        let sources = self.sources(group, targets);
        let nodes = self.seen.workers.iter().filter(|worker| worker.eligible && worker.has_labels(self.node_labels));
        let is_missing =
            |worker: &&Worker| !worker.instance.as_ref().is_ok_and(|instance| targets.contains_key(instance));
        let health = &group.health;
        let path = health.path.as_deref().unwrap_or_default();
        TargetGroupTree {
            name: group.name.clone(),
            arn: group.arn.to_string(),
            node_port: group.port,
            health_check: format!("{} {}{path}", health.protocol, health.port),
            healthy: sources.iter().map(|source| source.healthy).sum(),
            total: targets.len(),
            sources,
            missing: nodes.filter(is_missing).map(missing).collect(),
        }
    }

    /// Targets by the Auto Scaling group of their instance. One that the target group is attached to is there also
    /// without targets.
    fn sources(&self, group: &TargetGroup, targets: &BTreeMap<InstanceId, Health>) -> Vec<SourceTree> {
        let asgs = &self.seen.observed.asgs;
        let home = |instance: &InstanceId| asgs.iter().find(|(_, asg)| asg.instances.contains(instance));
        let mut by_asg: BTreeMap<Option<&AsgName>, Vec<(&InstanceId, &Health)>> = BTreeMap::new();
        for (name, _) in asgs.iter().filter(|(_, asg)| asg.lists(&group.arn)) {
            by_asg.entry(Some(name)).or_default();
        }
        for (instance, health) in targets {
            by_asg.entry(home(instance).map(|(name, _)| name)).or_default().push((instance, health));
        }
        by_asg.into_iter().map(|(name, targets)| self.source(group, name, &targets)).collect()
    }

    fn source(&self, group: &TargetGroup, name: Option<&AsgName>, targets: &[(&InstanceId, &Health)]) -> SourceTree {
        let asg = name.and_then(|name| self.seen.observed.asgs.get(name));
        let attachment = asg.and_then(|asg| asg.sources.get(&group.arn).or_else(|| asg.legacy.get(&group.arn)));
        let node = |instance: &InstanceId| {
            let is_it = |worker: &&Worker| worker.instance.as_ref() == Ok(instance);
            self.seen.workers.iter().find(is_it).map(|worker| worker.name.clone())
        };
        let target = |(instance, health): &(&InstanceId, &Health)| TargetTree {
            instance: instance.to_string(),
            node: node(instance),
            state: health.state.clone(),
            reason: health.reason.clone(),
        };
        let is_picky = !self.node_labels.is_empty();
        SourceTree {
            auto_scaling_group: name.map(ToString::to_string),
            attachment: attachment.map(|state| match state {
                SourceState::Added => "added",
                SourceState::Adding => "adding",
                SourceState::Removing => "removing",
            }),
            because: asg.filter(|_| attachment.is_none()).and_then(|asg| because(asg, is_picky)),
            healthy: targets.iter().filter(|(_, health)| health.state == "healthy").count(),
            total: targets.len(),
            targets: targets.iter().map(target).collect(),
        }
    }
}

/// A node that is no target, and why if that shows on it.
fn missing(worker: &Worker) -> String {
    match &worker.instance {
        Ok(_) => worker.name.clone(),
        Err(problem) => format!("{} ({problem})", worker.name),
    }
}

/// Why nothing is attached to an Auto Scaling group, where it shows.
fn because(asg: &Asg, is_picky: bool) -> Option<&'static str> {
    if is_picky {
        Some("the Service asks for labels of nodes")
    } else if asg.elb_health {
        Some("its health check type is ELB")
    } else if asg.sources.len() + asg.legacy.len() >= crate::controller::placement::SLOTS {
        Some("all of its slots are taken")
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
