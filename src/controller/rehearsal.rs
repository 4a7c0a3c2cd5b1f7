//! Pure: what would be done, told to its end. The controller's own decisions are taken round by round in a copy of its
//! view, where every step succeeds at once and nothing is to be waited for longer than a round.
//!
//! ```text
//! wishes ─decide─► steps ─imagine─► view ─place─► attachments, registrations ─► view, a round later ─┐
//!            ▲                                                                                       │
//!            └────────────────────────── until nothing moves any more ───────────────────────────────┘
//! ```
//!
//! What AWS would refuse is not known here, and whoever changes the account meanwhile changes the outcome.

mod act;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use tokio::time::Instant;

use self::act::describe;
pub use self::act::{Act, Change, Kind};
use super::account::State;
use super::backend;
use super::desired::{Policy, Refusal};
use super::observed::{
    Balancer, BalancerState, Carried, Intent, Listener, Observed, Outcome, SecurityGroup, SourceState, TargetGroup,
};
use super::placement::Note;
use super::plan::{Plan, Step, Wait, teardown};
use crate::model::attribute::Attributes;
use crate::model::id::{AsgName, InstanceId, ListenerArn, TargetGroupArn};
use crate::model::node::Labels;
use crate::model::ownership::{self, Owner};
use crate::model::service::{Protocol, ServiceSpec, Tls};

/// More than any change takes: subnets, targets, set-up and release each have their rounds.
const ROUNDS: usize = 80;

/// What is to become of a Service.
#[derive(Clone, Debug)]
pub enum Wish {
    /// It is to have what it asks for.
    Serve(Box<ServiceSpec>),
    /// It cannot be served as written, and keeps what it has, with the nodes that have these labels for targets. `None`:
    /// which nodes it asks for cannot be told either.
    Keep(Owner, Option<Labels>),
    /// It is to have nothing any more, even if that takes deletion protection to be switched off.
    Release { owner: Owner, unprotect: bool },
}

impl Wish {
    /// The Service.
    pub fn owner(&self) -> &Owner {
        match self {
            Self::Serve(spec) => &spec.owner,
            Self::Keep(owner, _) | Self::Release { owner, .. } => owner,
        }
    }
}

/// What is rehearsed.
#[derive(Clone, Copy, Debug)]
pub struct Script<'a> {
    /// The operator's decisions.
    pub policy: &'a Policy,
    /// Services, in the order in which they would be looked at.
    pub wishes: &'a [Wish],
    /// Whether a Service needs what all share, even if it has nothing yet.
    pub needs_shared: bool,
    /// The time.
    pub now: Instant,
}

/// What would be done.
#[derive(Clone, Debug, Default)]
pub struct Rehearsal {
    /// For each wish.
    pub parts: Vec<Part>,
    /// For all Services together, or for none that exists.
    pub shared: Vec<Act>,
    /// Target groups whose targets must be read before a decision.
    pub unread: BTreeSet<TargetGroupArn>,
    /// Instances whose Auto Scaling group must be looked up before a decision.
    pub unresolved: BTreeSet<InstanceId>,
    /// Whether it came to its end.
    pub settled: bool,
}

/// What would be done for one Service.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// In order.
    pub acts: Vec<Act>,
    /// Why it cannot be served.
    pub refusal: Option<Refusal>,
    /// What its owner should know about its targets.
    pub notes: BTreeSet<Note>,
    had_balancer: bool,
    leaves: bool,
}

/// What becomes of a Service, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// It gets its load balancer.
    Create,
    /// What it has is changed.
    Change,
    /// Another load balancer, with another hostname, takes the place of the one it has.
    Replace,
    /// It loses what it has.
    Delete,
    /// Nothing is to be done.
    None,
    /// It cannot be served as written.
    Refused,
}

impl Part {
    /// What becomes of the Service.
    pub fn fate(&self) -> Fate {
        let makes_balancer =
            |act: &Act| matches!(act, Act::Take { step, .. } if matches!(**step, Step::CreateBalancer(_)));
        if self.refusal.is_some() {
            Fate::Refused
        } else if self.acts.iter().all(|act| act.kind() == Kind::Wait) {
            Fate::None
        } else if self.leaves {
            Fate::Delete
        } else if !self.acts.iter().any(makes_balancer) {
            Fate::Change
        } else if self.had_balancer {
            Fate::Replace
        } else {
            Fate::Create
        }
    }
}

/// Plays a script to its end, in this view.
pub fn rehearse(state: &mut State, script: &Script<'_>) -> Rehearsal {
    let mut stage = Stage::new(state, script);
    for _ in 0..ROUNDS {
        let mut moved = false;
        for (index, wish) in script.wishes.iter().enumerate() {
            moved |= stage.act(index, wish);
        }
        moved |= stage.place();
        stage.tell_waits();
        moved |= stage.pass_time();
        if !moved {
            stage.rehearsal.settled = true;
            break;
        }
    }
    stage.release_shared();
    stage.rehearsal
}

struct Stage<'a> {
    state: &'a mut State,
    script: &'a Script<'a>,
    /// Which wish a Service's UID has.
    cast: BTreeMap<&'a str, usize>,
    waits: Vec<Vec<Wait>>,
    rehearsal: Rehearsal,
}

impl<'a> Stage<'a> {
    fn new(state: &'a mut State, script: &'a Script<'a>) -> Self {
        let cluster = &script.policy.cluster;
        let mut parts = vec![];
        for wish in script.wishes {
            let uid = &wish.owner().uid;
            parts.push(Part {
                had_balancer: !state.observed.of(cluster, uid).balancers.is_empty(),
                leaves: matches!(wish, Wish::Release { .. }),
                ..Part::default()
            });
            match wish {
                Wish::Keep(_, Some(nodes)) => drop(state.keep_serving(cluster, uid, nodes)),
                Wish::Release { .. } => drop(state.leaving.insert(uid.clone())),
                Wish::Keep(_, None) | Wish::Serve(_) => {}
            }
        }
        let cast = script.wishes.iter().enumerate().map(|(index, wish)| (wish.owner().uid.as_str(), index)).collect();
        let waits = vec![vec![]; parts.len()];
        let rehearsal = Rehearsal { parts, ..Rehearsal::default() };
        Self { state, script, cast, waits, rehearsal }
    }

    /// One Service's next steps. Returns whether anything moved.
    fn act(&mut self, index: usize, wish: &Wish) -> bool {
        let policy = self.script.policy;
        let (desired, plan) = match wish {
            Wish::Keep(..) => return false,
            Wish::Serve(_) if self.rehearsal.parts[index].refusal.is_some() => return false,
            Wish::Release { owner, unprotect } => {
                (None, teardown(&self.state.observed.of(&policy.cluster, &owner.uid), *unprotect))
            }
            Wish::Serve(spec) => match self.state.decide(spec, policy) {
                Ok((desired, plan)) => (Some(desired), plan),
                Err(refusal) => {
                    self.rehearsal.parts[index].refusal = Some(refusal);
                    return self.state.keep_serving(&policy.cluster, &spec.owner.uid, &spec.node_labels);
                }
            },
        };
        if desired.is_some() {
            self.make_shared();
        }
        let Plan { steps, waits } = plan;
        for step in &steps {
            let act = describe(step, desired.as_ref(), &self.state.observed, &policy.cluster, &wish.owner().uid);
            if self.take(step) && step.is_write() {
                self.rehearsal.parts[index].acts.push(act);
            }
        }
        self.waits[index] = waits;
        !steps.is_empty()
    }

    /// Takes a step, unless what it needs does not exist.
    fn take(&mut self, step: &Step) -> bool {
        let Some(outcome) = imagine(&self.state.observed, step) else { return false };
        self.state.record(step, outcome);
        if let Step::ModifyListener { balancer, port, .. } = step
            && let Some(listener) = self.state.observed.listener_mut(balancer, *port)
        {
            // Under another protocol it has none, which the controller would read.
            listener.attributes.get_or_insert_default();
            listener.certificates.get_or_insert_default();
        }
        true
    }

    fn make_shared(&mut self) {
        // Rules name the group, which comes first.
        for _ in 0..2 {
            let chosen = self.state.facts.as_ref().map(|facts| &facts.node_groups.chosen);
            let steps = chosen.map(|chosen| backend::missing(self.script.policy, &self.state.observed, chosen));
            let steps = steps.unwrap_or_default();
            if steps.is_empty() {
                return;
            }
            self.take_shared(steps);
        }
    }

    fn release_shared(&mut self) {
        let cluster = &self.script.policy.cluster;
        if !self.script.needs_shared && self.state.observed.owners(cluster).is_empty() {
            let steps = backend::leftovers(cluster, &self.state.observed);
            self.take_shared(steps);
        }
    }

    fn take_shared(&mut self, steps: Vec<Step>) {
        for step in steps {
            self.take(&step);
            self.rehearsal.shared.push(Act::Take { step: Box::new(step), replaces: None, changes: vec![] });
        }
    }

    /// What the one writer of targets would do. Returns whether anything moved.
    fn place(&mut self) -> bool {
        let cluster = self.script.policy.cluster.as_str();
        let before = self.served();
        let placement = self.state.place(cluster, self.script.now);
        let mut acts = vec![];
        for (arn, instances) in &placement.register {
            self.state.record_registered(arn, instances);
            acts.push((arn.clone(), Moved::Register(instances.clone())));
        }
        // What is not registered now must not be detached now.
        let placement = self.state.place(cluster, self.script.now);
        for (asg, groups) in &placement.attach {
            let groups = self.state.begin_attach(asg, groups);
            self.state.end_attach(asg, &groups, true);
            acts.extend(groups.into_iter().map(|arn| (arn, Moved::Attach(asg.clone()))));
        }
        let is_safe = |arn: &&TargetGroupArn| !placement.read.contains(*arn) && !placement.register.contains_key(*arn);
        for (asg, groups) in &placement.detach {
            let groups: Vec<_> = groups.iter().filter(is_safe).cloned().collect();
            self.state.begin_detach(asg, &groups);
            acts.extend(groups.into_iter().map(|arn| (arn, Moved::Detach(asg.clone()))));
        }
        for (asg, groups) in &placement.detach_legacy {
            let groups: Vec<_> = groups.iter().cloned().collect();
            self.state.begin_detach_legacy(asg, &groups);
            acts.extend(groups.into_iter().map(|arn| (arn, Moved::Detach(asg.clone()))));
        }
        for (arn, instances) in &placement.deregister {
            self.state.record_deregistered(arn, instances);
            acts.push((arn.clone(), Moved::Deregister(instances.clone())));
        }
        let mut moved = !acts.is_empty();
        for (arn, act) in acts {
            self.tell(&arn, act);
        }
        let (placement, _) = self.state.mark_served(cluster, self.script.now);
        self.rehearsal.unread = placement.read;
        self.rehearsal.unresolved = placement.resolve;
        for (arn, notes) in placement.notes {
            if let Some(index) = self.index_of(&arn) {
                self.rehearsal.parts[index].notes = notes;
            }
        }
        moved |= self.served() != before;
        moved
    }

    fn served(&self) -> BTreeSet<String> {
        let served = self.state.observed.target_groups.values().filter(|group| group.served);
        served.map(|group| group.name.clone()).collect()
    }

    /// The wish of the Service that owns a target group.
    fn index_of(&self, arn: &TargetGroupArn) -> Option<usize> {
        let group = self.state.observed.target_group(arn)?;
        let owner = ownership::owner(&self.script.policy.cluster, &group.tags)?;
        self.cast.get(owner.uid.as_str()).copied()
    }

    fn tell(&mut self, arn: &TargetGroupArn, moved: Moved) {
        // One that is gone has its ARN only.
        let known = self.state.observed.target_group(arn);
        let target_group = known.map_or_else(|| arn.to_string(), |group| group.name.clone());
        let act = match moved {
            Moved::Attach(asg) => Act::Attach { target_group, asg },
            Moved::Detach(asg) => Act::Detach { target_group, asg },
            Moved::Register(instances) => Act::Register { target_group, instances },
            Moved::Deregister(instances) => Act::Deregister { target_group, instances },
        };
        match self.index_of(arn) {
            Some(index) => self.rehearsal.parts[index].acts.push(act),
            None => self.rehearsal.shared.push(act),
        }
    }

    /// What is waited for comes after what was done in the meantime, once.
    fn tell_waits(&mut self) {
        for (part, waits) in self.rehearsal.parts.iter_mut().zip(&mut self.waits) {
            for wait in std::mem::take(waits) {
                let act = Act::Wait(wait);
                if !part.acts.contains(&act) {
                    part.acts.push(act);
                }
            }
        }
    }

    /// AWS finishes what is under way. Returns whether there was anything.
    fn pass_time(&mut self) -> bool {
        let mut moved = false;
        let observed = &mut self.state.observed;
        for balancer in observed.balancers.values_mut().filter(|it| it.state == BalancerState::Provisioning) {
            balancer.state = BalancerState::Active;
            moved = true;
        }
        for asg in observed.asgs.values_mut() {
            moved |= asg.changing() > 0;
            for attached in [&mut asg.sources, &mut asg.legacy] {
                attached.retain(|_, state| *state != SourceState::Removing);
                for state in attached.values_mut() {
                    *state = SourceState::Added;
                }
            }
        }
        moved
    }
}

/// What became of a target group's targets.
enum Moved {
    Attach(AsgName),
    Detach(AsgName),
    Register(BTreeSet<InstanceId>),
    Deregister(BTreeSet<InstanceId>),
}

/// What AWS would answer to a step, with names in place of ids. `None`: what the step needs does not exist.
pub fn imagine(observed: &Observed, step: &Step) -> Option<Outcome> {
    let ids = |groups: &[Carried]| groups.iter().map(|group| observed.id_of(group)).collect::<Option<BTreeSet<_>>>();
    Some(match step {
        Step::CreateGroup { name, tags, .. } => Outcome::Group(SecurityGroup {
            id: name.as_str().into(),
            name: name.clone(),
            rules: BTreeSet::new(),
            tags: tags.clone(),
        }),
        Step::CreateBalancer(wanted) => Outcome::Balancer(Balancer {
            arn: format!("imagined:loadbalancer/{}", wanted.name).into(),
            name: wanted.name.clone(),
            dns_name: format!("{}.elb", wanted.name),
            scheme: wanted.scheme,
            address_type: wanted.address_type,
            state: BalancerState::Provisioning,
            subnets: wanted.subnets.clone(),
            source_nat: wanted.source_nat,
            groups: ids(&wanted.groups)?,
            rules_on_private_link: true,
            capacity: Some(0),
            tags: wanted.tags.clone(),
            listeners: Some(BTreeMap::new()),
            attributes: Some(Attributes::new()),
        }),
        Step::CreateTargetGroup(wanted) => Outcome::TargetGroup(TargetGroup {
            arn: format!("imagined:targetgroup/{}", wanted.name).into(),
            name: wanted.name.clone(),
            protocol: wanted.protocol.as_str().into(),
            port: wanted.port,
            vpc: wanted.vpc.clone(),
            health: wanted.health.clone(),
            tags: wanted.tags.clone(),
            attributes: Some(Attributes::new()),
            intent: Intent::Serve,
            nodes: wanted.nodes.clone(),
            served: false,
        }),
        Step::CreateListener { balancer, port, protocol, tls, target_group, .. }
        | Step::ModifyListener { balancer, port, protocol, tls, target_group } => {
            let before = observed.balancers.get(balancer)?.listeners.as_ref()?.get(port);
            let arn = before
                .map_or_else(|| format!("imagined:listener/{balancer}/{port}").into(), |before| before.arn.clone());
            let target_group = observed.target_groups.get(target_group)?.arn.clone();
            let is_new = before.is_none();
            Outcome::Listener(Listener {
                certificates: is_new.then(BTreeSet::new),
                attributes: is_new.then(Attributes::new),
                tags: match step {
                    Step::CreateListener { tags, .. } => Some(tags.clone()),
                    _ => None,
                },
                ..imagine_listener(arn, *protocol, tls.as_ref(), target_group)
            })
        }
        Step::SetGroups { groups, .. } => ids(groups).map(|_| Outcome::Done)?,
        _ => Outcome::Done,
    })
}

fn imagine_listener(arn: ListenerArn, protocol: Protocol, tls: Option<&Tls>, target_group: TargetGroupArn) -> Listener {
    Listener {
        arn,
        protocol: protocol.as_str().into(),
        target_group: Some(target_group),
        certificate: tls.and_then(|tls| tls.certificates.first().cloned()),
        policy: tls.map(|tls| tls.policy.clone()),
        alpn: tls.and_then(|tls| tls.alpn.clone()),
        certificates: None,
        attributes: None,
        tags: None,
    }
}

#[cfg(test)]
mod tests;
