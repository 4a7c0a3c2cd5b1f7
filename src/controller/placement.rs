//! Pure: which Auto Scaling group holds which target group, and which nodes are registered one by one.
//!
//! A target group attached to an Auto Scaling group as a *traffic source* gets and loses its targets without a call of
//! ours, so that is where it goes first. What cannot go there is registered directly:
//!
//! ```text
//! node's Auto Scaling group                      | its targets come from
//! -----------------------------------------------+---------------------------------------------------------
//! has a free slot of its 50                      | the attachment (oldest Service first; no move without need)
//! has none                                       | RegisterTargets, until one is free
//! checks health by ELB                           | RegisterTargets: it would terminate nodes a Service makes unhealthy
//! in an instance refresh, attach refused         | RegisterTargets, until the refresh ends
//! has AddToLoadBalancer suspended                | the attachment, and RegisterTargets for what it does not add
//! none (Karpenter, hand-made)                    | RegisterTargets
//! any, and the Service asks for labels of nodes  | RegisterTargets if the node has them: an attachment takes every node
//! any, but the node is excluded by label         | nothing; taken out again where an attachment put it in
//! ```
//!
//! Moves keep a node registered: attach before anything is taken away, register before and after a detach. Only what is
//! ours is ever detached or deregistered.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::observed::{Asg, Intent, Observed, SourceState, TargetGroup};
use super::shares::keep_within;
use crate::cluster::reason::Reason;
use crate::model::annotation;
use crate::model::id::{AsgName, InstanceId, TargetGroupArn};
use crate::model::name;
use crate::model::node::{Labels, Origin, Worker};
use crate::model::ownership;

/// Target groups of one Auto Scaling group; cannot be raised (EC2 Auto Scaling quotas).
pub const SLOTS: usize = 50;

/// What we know of a target group's targets. Not read from AWS while attachments alone decide.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Targets {
    /// Whether `direct`, `expelled` and `strangers` are complete.
    pub known: bool,
    /// Instances of nodes that are registered, as far as an attachment does not account for them.
    pub direct: BTreeSet<InstanceId>,
    /// Instances that are not registered although an attachment should have done it, because we took them out.
    pub expelled: BTreeSet<InstanceId>,
    /// Registered instances that were no node and in no attached Auto Scaling group when the targets were read.
    pub strangers: BTreeSet<InstanceId>,
}

/// Everything placement looks at.
#[derive(Debug)]
pub struct Scene<'a> {
    /// Name of the cluster.
    pub cluster: &'a str,
    /// What AWS has.
    pub observed: &'a Observed,
    /// The nodes.
    pub workers: &'a BTreeMap<String, Worker>,
    /// Groups of instances that AWS has told us: `None` for an instance in no group.
    pub membership: &'a BTreeMap<InstanceId, Option<AsgName>>,
    /// Targets of each target group.
    pub targets: &'a BTreeMap<TargetGroupArn, Targets>,
    /// Age and order of each target group's Service.
    pub seniority: &'a BTreeMap<TargetGroupArn, Seniority>,
    /// UIDs of Services that are being deleted, whether or not that has been planned: they get no slot any more.
    pub leaving: &'a BTreeSet<String>,
    /// Auto Scaling groups that refuse attachments for now, and AWS's words.
    pub refusing: &'a BTreeMap<AsgName, String>,
    /// Instances that AWS refused as targets a moment ago.
    pub unfit: &'a BTreeSet<InstanceId>,
    /// How many instances a target group may have that no attachment accounts for, where a quota is used up.
    pub shares: &'a BTreeMap<TargetGroupArn, usize>,
}

/// The order in which target groups get slots.
pub type Seniority = (Timestamp, String, u16);

/// What to do about targets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// Target groups to attach, oldest Service first.
    pub attach: BTreeMap<AsgName, Vec<TargetGroupArn>>,
    /// Target groups to detach.
    pub detach: BTreeMap<AsgName, BTreeSet<TargetGroupArn>>,
    /// Target groups to detach by the older calls.
    pub detach_legacy: BTreeMap<AsgName, BTreeSet<TargetGroupArn>>,
    /// Instances to register.
    pub register: BTreeMap<TargetGroupArn, BTreeSet<InstanceId>>,
    /// Instances to deregister.
    pub deregister: BTreeMap<TargetGroupArn, BTreeSet<InstanceId>>,
    /// Target groups whose targets must be read before a decision.
    pub read: BTreeSet<TargetGroupArn>,
    /// Instances whose Auto Scaling group must be looked up before a decision.
    pub resolve: BTreeSet<InstanceId>,
    /// Auto Scaling groups whose attachments must be seen to end before an excluded instance can be taken out again.
    pub settle: BTreeSet<AsgName>,
    /// Things worth a word to a Service's owner.
    pub notes: BTreeMap<TargetGroupArn, BTreeSet<Note>>,
}

/// Something about targets that a Service's owner should know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Note {
    /// All of its slots are taken.
    NoSlot(AsgName),
    /// It terminates instances that target groups report unhealthy.
    ElbHealthCheck(AsgName),
    /// It refuses attachments: during an instance refresh, or for another reason that may last. With AWS's words.
    Refuses(AsgName, String),
    /// Somebody else detaches the target group again and again.
    Stripped(AsgName),
    /// A quota of targets is used up.
    Full { has: usize, of: usize },
    /// There is nothing to send traffic to.
    NoNode,
    /// There are nodes, and none has the labels that the Service asks for.
    NoNodeWith(Labels),
}

impl Note {
    /// Reason of the Event.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::NoSlot(_) => Reason::AutoScalingGroupFull,
            Self::ElbHealthCheck(_) => Reason::AutoScalingGroupUsesElbHealth,
            Self::Refuses(..) => Reason::AutoScalingGroupRefuses,
            Self::Full { .. } => Reason::TargetQuotaUsedUp,
            Self::Stripped(_) => Reason::AttachmentRemovedByOthers,
            Self::NoNode | Self::NoNodeWith(_) => Reason::NoTargetNode,
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direct = "its nodes are registered one by one";
        match self {
            Self::NoSlot(asg) => {
                write!(f, "Auto Scaling group {asg} has {SLOTS} target groups, which is AWS's limit; {direct}")
            }
            Self::ElbHealthCheck(asg) => write!(
                f,
                "Auto Scaling group {asg} has health check type ELB and would terminate nodes that this Service makes \
                 unhealthy; {direct}. Set the health check type to EC2 to have it attached"
            ),
            Self::Refuses(asg, words) => {
                write!(f, "Auto Scaling group {asg} takes no target group for now ({words}); {direct} until it does")
            }
            Self::Stripped(asg) => write!(
                f,
                "something else manages the target groups of Auto Scaling group {asg}: it took this Service's off \
                 three times within an hour. Have it ignore them (Terraform: ignore_changes on traffic_source and \
                 target_group_arns)"
            ),
            Self::Full { has, of } => write!(
                f,
                "AWS takes no more targets for the load balancer: {has} of {of} nodes are targets of this port, so that \
                 every port has some. A higher quota helps, or fewer nodes by aws-load-balancer-target-node-labels"
            ),
            Self::NoNode => f.write_str("no node of the cluster can be a target, so the load balancer has none"),
            Self::NoNodeWith(labels) => {
                let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
                write!(
                    f,
                    "{}: {:?} is on no node that can be a target, so the load balancer has none",
                    annotation::TARGET_NODE_LABELS,
                    labels.join(",")
                )
            }
        }
    }
}

impl Placement {
    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.attach.is_empty()
            && self.detach.is_empty()
            && self.detach_legacy.is_empty()
            && self.register.is_empty()
            && self.deregister.is_empty()
            && self.read.is_empty()
            && self.resolve.is_empty()
    }

    /// Whether everything has been done that makes a target group's nodes its targets.
    pub fn is_served(&self, group: &TargetGroupArn) -> bool {
        !self.register.contains_key(group)
            && !self.read.contains(group)
            && self.resolve.is_empty()
            && !self.attach.values().any(|groups| groups.contains(group))
    }
}

/// A node that can be reasoned about.
struct Node<'a> {
    instance: &'a InstanceId,
    asg: Option<&'a AsgName>,
    worker: &'a Worker,
}

impl Node<'_> {
    /// Whether it may be a target of this target group.
    fn may_serve(&self, group: &TargetGroup) -> bool {
        self.worker.eligible && self.worker.has_labels(&group.nodes)
    }
}

/// Whether an Auto Scaling group may hold a target group: it registers all of its instances, so not where the Service
/// asks for some of the nodes only.
fn may_be_attached(group: &TargetGroup) -> bool {
    group.intent == Intent::Serve && group.nodes.is_empty()
}

/// Decides.
pub fn place(scene: &Scene<'_>) -> Placement {
    let mut placement = Placement::default();
    let nodes = resolve(scene, &mut placement.resolve);
    let holders = attachments(scene, &nodes, &mut placement);
    legacy(scene, &mut placement);
    for group in scene.observed.target_groups.values().filter(|group| group.intent == Intent::Serve) {
        targets(scene, &nodes, group, holders.get(&group.arn), &mut placement);
    }
    placement.register.retain(|_, instances| !instances.is_empty());
    placement.deregister.retain(|_, instances| !instances.is_empty());
    placement
}

/// The Auto Scaling group that a node's instance is in: what AWS said, else what its labels say. `None` if neither does.
pub fn membership_of(scene: &Scene<'_>, worker: &Worker, instance: &InstanceId) -> Option<Option<AsgName>> {
    if let Some(told) = scene.membership.get(instance) {
        return Some(told.clone());
    }
    match &worker.origin {
        Origin::NoGroup => Some(None),
        Origin::Tagged { key, value } => {
            let mut tagged = scene.observed.asgs.iter().filter(|(_, asg)| {
                asg.is_tagged_for(scene.cluster) && asg.tags.get(*key).is_some_and(|tag| tag == value)
            });
            // A managed node group can have several Auto Scaling groups; then the label is no answer.
            match (tagged.next(), tagged.next()) {
                (Some((name, _)), None) => Some(Some(name.clone())),
                _ => None,
            }
        }
        Origin::Unknown => None,
    }
}

fn resolve<'a>(scene: &'a Scene<'a>, unresolved: &mut BTreeSet<InstanceId>) -> Vec<Node<'a>> {
    let mut nodes = vec![];
    for worker in scene.workers.values() {
        let Ok(instance) = &worker.instance else { continue };
        match membership_of(scene, worker, instance) {
            Some(asg) => {
                let asg = asg.and_then(|name| scene.observed.asgs.get_key_value(&name)).map(|(name, _)| name);
                nodes.push(Node { instance, asg, worker });
            }
            None => {
                unresolved.insert(instance.clone());
            }
        }
    }
    nodes
}

/// Plans attachments; returns the Auto Scaling groups that will hold each target group.
fn attachments<'a>(
    scene: &'a Scene<'a>,
    nodes: &[Node<'a>],
    placement: &mut Placement,
) -> BTreeMap<&'a TargetGroupArn, BTreeSet<&'a AsgName>> {
    let mut holders: BTreeMap<&TargetGroupArn, BTreeSet<&AsgName>> = BTreeMap::new();
    let groups: BTreeMap<_, _> = scene.observed.target_groups.values().map(|group| (&group.arn, group)).collect();
    for (asg_name, asg) in &scene.observed.asgs {
        let mut leaving = BTreeSet::new();
        for (arn, _) in asg.sources.iter().filter(|(_, state)| **state != SourceState::Removing) {
            let stays = match groups.get(arn) {
                Some(group) if group.intent == Intent::Undecided => true,
                Some(group) => may_be_attached(group) && !asg.elb_health,
                None if is_ghost(scene, arn) => false,
                None => continue,
            };
            if stays {
                holders.entry(arn).or_default().insert(asg_name);
            } else {
                leaving.insert(arn.clone());
            }
        }
        if !leaving.is_empty() {
            placement.detach.insert(asg_name.clone(), leaving);
        }
        if !holds_workers(scene, nodes, asg_name, asg) {
            continue;
        }
        let waiting = waiting(scene, asg);
        let note = if asg.elb_health {
            Some(Note::ElbHealthCheck(asg_name.clone()))
        } else {
            scene.refusing.get(asg_name).map(|words| Note::Refuses(asg_name.clone(), words.clone()))
        };
        if let Some(note) = note {
            for arn in groups.values().filter(|group| may_be_attached(group)).map(|group| &group.arn) {
                if asg.elb_health || !asg.sources.contains_key(arn) {
                    placement.notes.entry(arn.clone()).or_default().insert(note.clone());
                }
            }
            continue;
        }
        let free = SLOTS.saturating_sub(asg.sources.len() + asg.legacy.len());
        for (_, arn) in waiting.iter().skip(free) {
            placement.notes.entry((*arn).clone()).or_default().insert(Note::NoSlot(asg_name.clone()));
        }
        let admitted: Vec<_> = waiting.iter().take(free).map(|(_, arn)| *arn).collect();
        for arn in &admitted {
            holders.entry(arn).or_default().insert(asg_name);
        }
        if !admitted.is_empty() {
            placement.attach.insert(asg_name.clone(), admitted.into_iter().cloned().collect());
        }
    }
    holders
}

/// Target groups that an Auto Scaling group could take, the first to be attached first.
fn waiting<'a>(scene: &Scene<'a>, asg: &Asg) -> Vec<(Option<&'a Seniority>, &'a TargetGroupArn)> {
    let leaves = |group: &TargetGroup| {
        ownership::owner(scene.cluster, &group.tags).is_some_and(|owner| scene.leaving.contains(&owner.uid))
    };
    let groups = scene.observed.target_groups.values();
    let lacking = groups.filter(|group| may_be_attached(group) && !asg.sources.contains_key(&group.arn));
    let mut waiting: Vec<_> =
        lacking.filter(|group| !leaves(group)).map(|group| (scene.seniority.get(&group.arn), &group.arn)).collect();
    waiting.sort();
    waiting
}

/// Plans detachments of what the older calls attached and must not stay.
fn legacy(scene: &Scene<'_>, placement: &mut Placement) {
    let stale = |arn: &TargetGroupArn| match scene.observed.target_group(arn) {
        Some(group) => group.intent == Intent::Release,
        None => is_ghost(scene, arn),
    };
    for (name, asg) in &scene.observed.asgs {
        let attached = asg.legacy.iter().filter(|(_, state)| **state != SourceState::Removing);
        let leaving: BTreeSet<_> = attached.map(|(arn, _)| arn).filter(|arn| stale(arn)).cloned().collect();
        if !leaving.is_empty() {
            placement.detach_legacy.insert(name.clone(), leaving);
        }
    }
}

/// Whether target groups belong on this Auto Scaling group: it is one of the cluster's, by tag or by a node in it, and
/// not one whose every node is excluded (a control plane, say).
fn holds_workers(scene: &Scene<'_>, nodes: &[Node<'_>], name: &AsgName, asg: &Asg) -> bool {
    let mut members = nodes.iter().filter(|node| node.asg == Some(name)).peekable();
    let has_nodes = members.peek().is_some();
    !asg.deleting && if has_nodes { members.any(|node| node.worker.eligible) } else { asg.is_tagged_for(scene.cluster) }
}

/// A target group of ours that is gone but still listed: its name tells, since its tags went with it.
fn is_ghost(scene: &Scene<'_>, arn: &TargetGroupArn) -> bool {
    let named = arn.as_str().split(":targetgroup/").nth(1);
    !scene.observed.listed.contains(arn)
        && named.is_some_and(|rest| rest.starts_with(&name::cluster_prefix(scene.cluster)))
}

/// Plans registrations of one target group.
fn targets(
    scene: &Scene<'_>,
    nodes: &[Node<'_>],
    group: &TargetGroup,
    holders: Option<&BTreeSet<&AsgName>>,
    placement: &mut Placement,
) {
    let arn = &group.arn;
    let unread = Targets::default();
    let known = scene.targets.get(arn).unwrap_or(&unread);
    let by_attachment =
        |node: &Node<'_>| node.asg.is_some_and(|asg| holders.is_some_and(|holders| holders.contains(asg)));
    let adds_nothing =
        |node: &Node<'_>| node.asg.and_then(|name| scene.observed.asgs.get(name)).is_some_and(|asg| asg.add_suspended);
    let attachment = |node: &Node<'_>| scene.observed.asgs.get(node.asg?)?.sources.get(arn).copied();
    let (mut register, mut deregister) = (BTreeSet::new(), BTreeSet::new());
    for node in nodes {
        let instance = node.instance;
        let missing = if by_attachment(node) {
            if !node.may_serve(group) {
                // Only once the attachment is complete, or it would put the instance in again.
                match attachment(node) {
                    Some(SourceState::Added) if !known.expelled.contains(instance) => {
                        deregister.insert(instance.clone());
                    }
                    Some(SourceState::Adding) => placement.settle.extend(node.asg.cloned()),
                    _ => {}
                }
                continue;
            }
            known.expelled.contains(instance) || (adds_nothing(node) && !known.direct.contains(instance))
        } else {
            node.may_serve(group) && !known.direct.contains(instance)
        };
        if missing && !scene.unfit.contains(instance) {
            register.insert(instance.clone());
        }
    }
    if nodes.iter().all(|node| !node.may_serve(group)) && placement.resolve.is_empty() {
        let is_picky = nodes.iter().any(|node| node.worker.eligible);
        let note = if is_picky { Note::NoNodeWith(group.nodes.clone()) } else { Note::NoNode };
        placement.notes.entry(arn.clone()).or_default().insert(note);
    }
    // An empty list of nodes is more likely a fault on the way here than a cluster without nodes.
    if !nodes.is_empty() {
        let stays: BTreeSet<_> = nodes.iter().filter(|node| node.may_serve(group)).map(|node| node.instance).collect();
        let unresolved = &placement.resolve;
        let gone = known.direct.iter().chain(&known.strangers);
        let gone = gone.filter(|instance| !stays.contains(instance) && !unresolved.contains(*instance));
        let held = |instance: &InstanceId| {
            holders
                .into_iter()
                .flatten()
                .any(|name| scene.observed.asgs.get(*name).is_some_and(|asg| asg.instances.contains(instance)))
        };
        let is_node = |instance: &InstanceId| nodes.iter().any(|node| node.instance == instance);
        deregister.extend(gone.filter(|instance| is_node(instance) || !held(instance)).cloned());
    }
    if let Some(most) = scene.shares.get(arn) {
        let asked = known.direct.len() + register.len();
        keep_within(*most, &known.direct, &mut register, &mut deregister);
        if asked > *most {
            placement.notes.entry(arn.clone()).or_default().insert(Note::Full { has: *most, of: asked });
        }
    }
    let acts = !register.is_empty() || !deregister.is_empty();
    // A detachment that ended may have taken out what was registered meanwhile, and what was registered for labels that
    // are no longer asked for is nobody's to take out but ours.
    if !known.known && (acts || !known.direct.is_empty() || !group.nodes.is_empty()) {
        placement.read.insert(arn.clone());
        return;
    }
    placement.register.insert(arn.clone(), register);
    placement.deregister.insert(arn.clone(), deregister);
}

#[cfg(test)]
mod tests;
