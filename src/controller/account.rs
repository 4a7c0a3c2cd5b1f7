//! The controller's view of the AWS account, shared by all Services.
//!
//! Read whole when the controller becomes responsible and at every drift check; kept up to date in between by each of
//! our own writes ([`Observed::record`]). A plan for one Service therefore costs no read. The view is never the source
//! of truth: whatever it gets wrong, the next drift check puts right, and every create is idempotent in AWS.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::desired::{Desired, Policy, Refusal, desired};
use super::facts::{Asked, Facts, NodeGroups, choose_node_group};
use super::observed::{Asg, Balancer, Intent, Observed, Outcome, SourceState, TargetGroup};
use super::placement::{Placement, Scene, Seniority, Targets, membership_of, place};
use super::plan::{AttributesOf, Plan, Step, plan};
use super::shares;
use crate::aws::Aws;
use crate::aws::classify::AwsError;
use crate::aws::ec2::Instance;
use crate::cluster::lease::Claim;
use crate::model::id::{AsgName, InstanceId, LoadBalancerArn, SecurityGroupId, ServiceKey, TargetGroupArn, VpcId};
use crate::model::node::{Labels, Worker};
use crate::model::ownership::{self, Owner, Tags};
use crate::model::service::ServiceSpec;

/// How long the tags of a load balancer that is not ours are believed. Ours are read at every drift check.
const FOREIGN_TAGS_LIFETIME: Duration = Duration::from_hours(1);
/// Waits of an instance that AWS does not take as a target.
const UNFIT_DELAYS: (Duration, Duration) = (Duration::from_secs(10), Duration::from_mins(5));
/// Attachments that somebody else takes away this often within this time are worth a word.
const STRIPPED: (usize, Duration) = (3, Duration::from_hours(1));
/// A refused attachment is tried again after this time: an instance refresh takes many minutes.
pub const REFUSAL_LIFETIME: Duration = Duration::from_secs(30);

/// The shared view and what hangs on it.
#[derive(Debug)]
pub struct Account {
    /// Clients.
    pub aws: Aws,
    /// The operator's decisions.
    pub policy: Policy,
    /// VPC, if the operator names it.
    pub vpc: Option<VpcId>,
    state: Mutex<State>,
    /// One at a time looks after what all Services share.
    pub shared: tokio::sync::Mutex<()>,
    /// Rings when placement has something to look at.
    pub placement: Notify,
    /// Rings when a load balancer that is being set up should be looked at.
    pub provisioning: Notify,
    /// Rings when the account should be read again soon.
    pub recheck: Notify,
    /// Owners whose Services should be looked at again.
    pub wake: mpsc::UnboundedSender<Owner>,
    /// How many reconciles are about to make target groups.
    coming: AtomicUsize,
    /// Whether this process may write.
    claim: Claim,
}

/// As long as it lives, target groups are about to be made.
#[derive(Debug)]
pub struct Coming<'a>(&'a AtomicUsize);

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the lock protects. Held for moments, never across an await.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// What AWS has.
    pub observed: Observed,
    /// The network, once it has been read.
    pub facts: Option<Facts>,
    /// What Services named since the network was read, so that it is read with it the next time.
    pub asked: Asked,
    /// Why the network could not be read.
    pub network_problem: Option<String>,
    /// When it was read, or that was tried.
    pub network_read: Option<Instant>,
    /// Nodes by name.
    pub workers: BTreeMap<String, Worker>,
    /// Networks of instances.
    pub instances: BTreeMap<InstanceId, Instance>,
    /// Auto Scaling groups of which a node's network has been read, even if that node is gone.
    pub surveyed: BTreeSet<AsgName>,
    /// Tags of the security groups that instances carry.
    pub group_tags: BTreeMap<SecurityGroupId, Tags>,
    /// Auto Scaling groups of instances.
    pub membership: BTreeMap<InstanceId, Option<AsgName>>,
    /// Targets of each target group.
    pub targets: BTreeMap<TargetGroupArn, Targets>,
    /// Who gets a slot first.
    pub seniority: BTreeMap<TargetGroupArn, Seniority>,
    /// The same of target groups that are about to be made, by name.
    pub promised: BTreeMap<String, Seniority>,
    /// Names of target groups that a Service waits to see served, before something else is taken away.
    pub awaited: BTreeSet<String>,
    /// UIDs of Services that are being deleted.
    pub leaving: BTreeSet<String>,
    /// Auto Scaling groups that refuse attachments.
    pub refusing: BTreeMap<AsgName, Refused>,
    /// When somebody else took our target groups off an Auto Scaling group.
    stripped: BTreeMap<(AsgName, TargetGroupArn), Vec<Instant>>,
    /// Instances that AWS did not take.
    pub unfit: BTreeMap<InstanceId, Unfit>,
    /// How many instances a target group may have beside those of attachments, and until when that holds.
    pub shares: BTreeMap<TargetGroupArn, (usize, Instant)>,
    /// Load balancers that are not ours, since when we know.
    pub foreign: BTreeMap<LoadBalancerArn, Instant>,
    /// Numbers our writes.
    clock: u64,
    /// The last write to each name, so that an older reading does not undo it in the view.
    written: BTreeMap<String, u64>,
    /// Names that one reading has missed. A second one in a row makes them gone: describes can lag behind creates.
    missed: BTreeSet<String>,
}

/// A refusal of attachments.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Not tried again before.
    pub until: Instant,
    /// AWS's words.
    pub words: String,
}

/// An instance that AWS did not take as a target.
#[derive(Clone, Debug)]
pub struct Unfit {
    /// Not tried again before.
    pub until: Instant,
    /// Since when.
    pub since: Instant,
    /// How often.
    pub failures: u32,
    /// AWS's words.
    pub words: String,
}

/// A step that did not happen.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// AWS refused it.
    #[error(transparent)]
    Aws(#[from] AwsError),
    /// Another process is responsible now.
    #[error("this process is no longer the leader")]
    NotLeader,
    /// What the step is about is not in the view any more: the next plan knows better.
    #[error("{0} is gone")]
    Gone(String),
    /// AWS could not set up a load balancer, nor the one made in its place.
    #[error("AWS could not set up load balancer {balancer}, nor the one made in its place: {reason}")]
    SetUpFailed { balancer: String, reason: String },
    /// Each plan was followed by another one.
    #[error("something is left to do after {0} plans in a row")]
    NoEnd(usize),
}

impl Account {
    /// An account nobody has looked at yet, and where the owners to wake come out.
    pub fn new(aws: Aws, policy: Policy, vpc: Option<VpcId>, claim: Claim) -> (Self, mpsc::UnboundedReceiver<Owner>) {
        let (wake, woken) = mpsc::unbounded_channel();
        let account = Self {
            aws,
            policy,
            vpc,
            state: Mutex::default(),
            shared: tokio::sync::Mutex::default(),
            placement: Notify::new(),
            provisioning: Notify::new(),
            recheck: Notify::new(),
            wake,
            coming: AtomicUsize::new(0),
            claim,
        };
        (account, woken)
    }

    /// The view. Never held across an await.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails unless this process is the leader. Asked before each write; each attempt of a call to AWS asks once more,
    /// when it is about to leave ([`crate::aws::fence`]).
    ///
    /// # Errors
    /// [`StepError::NotLeader`].
    pub fn fence(&self) -> Result<(), StepError> {
        if self.claim.holds() { Ok(()) } else { Err(StepError::NotLeader) }
    }

    /// Announces target groups, so that attaching waits for them and takes them together.
    pub fn announce(&self) -> Coming<'_> {
        self.coming.fetch_add(1, Ordering::Relaxed);
        Coming(&self.coming)
    }

    /// Whether target groups are about to be made.
    pub fn is_more_coming(&self) -> bool {
        self.coming.load(Ordering::Relaxed) > 0
    }

    /// Wakes the Services that own resources with these tags.
    pub fn wake_owners(&self, owned: &[Tags]) {
        for tags in owned {
            self.wake_owner_of(tags);
        }
    }

    /// Wakes the Service that owns a resource with these tags.
    pub fn wake_owner_of(&self, tags: &Tags) {
        if let Some(owner) = ownership::owner(&self.policy.cluster, tags) {
            // The receiver lives as long as the process.
            let _ = self.wake.send(owner);
        }
    }
}

impl State {
    /// Takes note of a step of ours.
    pub fn record(&mut self, step: &Step, outcome: Outcome) {
        self.touch(step_subject(step));
        if let Step::CreateTargetGroup(group) = step
            && let Outcome::TargetGroup(made) = &outcome
        {
            debug_assert_eq!(group.name, made.name);
            // Nobody else knows a target group that was made a moment ago: its targets are known to be none.
            self.targets.insert(made.arn.clone(), Targets { known: true, ..Targets::default() });
            if let Some(seniority) = self.promised.remove(&made.name) {
                self.seniority.insert(made.arn.clone(), seniority);
            }
        }
        self.observed.record(step, outcome);
    }

    /// What a Service should have, and what to do about it. Takes note of the order in which its target groups get slots.
    ///
    /// # Errors
    /// Why it can have nothing, or must keep what it has.
    pub fn decide(&mut self, spec: &ServiceSpec, policy: &Policy) -> Result<(Desired, Plan), Refusal> {
        let Some(facts) = &self.facts else {
            let unknown = "the cluster's network has not been read yet";
            return Err(Refusal::Network(self.network_problem.clone().unwrap_or_else(|| unknown.into())));
        };
        // A load balancer that hinders a Service by its name is asked about at the next check: it may have been made for
        // this very Service, by a process that ended, and its tags not have shown yet.
        if let Some(arn) = spec.name.as_ref().and_then(|name| self.observed.foreign_balancers.get(name)) {
            self.foreign.remove(arn);
        }
        let desired = desired(spec, facts, policy, &self.observed)?;
        for (port, group) in &desired.target_groups {
            let seniority = (spec.created, spec.owner.service.to_string(), *port);
            let arn = self.observed.target_groups.get(&group.name).map(|known| known.arn.clone());
            match arn {
                Some(arn) => drop(self.seniority.insert(arn, seniority)),
                None => drop(self.promised.insert(group.name.clone(), seniority)),
            }
        }
        let plan = plan(&desired, &self.observed.of(&policy.cluster, &spec.owner.uid));
        Ok((desired, plan))
    }

    /// Forgets target groups that a Service was about to make. One that it still wants it announces again.
    pub fn forget_promises(&mut self, service: &ServiceKey) {
        let service = service.to_string();
        self.promised.retain(|_, (_, promised_to, _)| *promised_to != service);
    }

    /// Marks a name as written now.
    pub fn touch(&mut self, name: impl Into<String>) {
        self.clock += 1;
        self.written.insert(name.into(), self.clock);
    }

    /// Whether a name was written after write number `since`.
    pub fn is_written_since(&self, name: &str, since: u64) -> bool {
        self.written.get(name).is_some_and(|write| *write > since)
    }

    /// Takes note of a name that a call did not find. If the next reading misses it as well, it is gone.
    pub fn note_missed(&mut self, name: String) {
        self.missed.insert(name);
    }

    /// The number of the last write, to tell a reading that began before a write from one that began after it.
    pub const fn now(&self) -> u64 {
        self.clock
    }

    /// Takes over a reading that began at write number `began`. Returns whether something was missed for the first
    /// time, so that another reading should follow soon.
    pub fn merge(&mut self, fresh: Observed, began: u64, now: Instant) -> bool {
        self.note_stripped(&fresh, began, now);
        let before = members(&self.observed);
        let Self { observed, written, missed, .. } = self;
        let is_newer = |name: &str| written.get(name).is_some_and(|write| *write > began);
        let mut once = BTreeSet::new();
        let mut missing = |name: &str| {
            let twice = missed.contains(name);
            if !twice {
                once.insert(name.to_owned());
            }
            twice
        };
        merge_map(&mut observed.balancers, fresh.balancers, String::as_str, is_newer, &mut missing, |old, new| {
            if old.arn == new.arn {
                new.attributes = new.attributes.take().or_else(|| old.attributes.take());
                new.capacity = new.capacity.or(old.capacity);
                for (port, listener) in new.listeners.iter_mut().flatten() {
                    old.listeners
                        .iter()
                        .flatten()
                        .filter(|(known, _)| *known == port)
                        .for_each(|(_, it)| listener.keep(it));
                }
            }
            new.listeners = new.listeners.take().or_else(|| old.listeners.take());
        });
        merge_map(
            &mut observed.target_groups,
            fresh.target_groups,
            String::as_str,
            is_newer,
            &mut missing,
            |old, new| {
                (new.intent, new.served) = (old.intent, old.served);
                if old.arn == new.arn {
                    new.attributes = new.attributes.take().or_else(|| old.attributes.take());
                }
                new.nodes = std::mem::take(&mut old.nodes);
            },
        );
        merge_map(&mut observed.groups, fresh.groups, String::as_str, is_newer, &mut missing, |_, _| {});
        merge_map(
            &mut observed.node_rules,
            fresh.node_rules,
            SecurityGroupId::as_str,
            is_newer,
            &mut |_| true,
            |_, _| {},
        );
        merge_map(&mut observed.asgs, fresh.asgs, AsgName::as_str, is_newer, &mut |_| true, keep_states);
        observed.foreign_balancers = fresh.foreign_balancers;
        observed.listed = fresh.listed;
        observed.twins = fresh.twins;
        *missed = once;
        let there = names(observed);
        // What is neither in the view nor newer than the reading no reading can take for new any more.
        written.retain(|name, write| *write > began || there.contains(name.as_str()));
        let lives: BTreeSet<_> = observed.target_groups.values().map(|group| &group.arn).collect();
        self.targets.retain(|arn, _| lives.contains(arn));
        self.seniority.retain(|arn, _| lives.contains(arn));
        self.shares.retain(|arn, _| lives.contains(arn));
        let nodes: BTreeSet<_> =
            self.workers.values().filter_map(|worker| worker.instance.as_ref().ok()).cloned().collect();
        self.membership.retain(|instance, _| nodes.contains(instance));
        self.unfit.retain(|instance, _| nodes.contains(instance));
        self.foreign.retain(|_, since| now - *since < FOREIGN_TAGS_LIFETIME);
        let after = members(observed);
        self.membership.extend(after.iter().map(|(instance, asg)| (instance.clone(), Some(asg.clone()))));
        for (instance, left) in &before {
            if after.get(instance) != Some(left) {
                self.note_left(instance, left, after.get(instance));
            }
        }
        for (instance, entered) in &after {
            if !before.contains_key(instance) {
                self.forget_target(instance, entered);
            }
        }
        !self.missed.is_empty()
    }

    /// Takes note of an instance that is no longer in an Auto Scaling group, and perhaps in another one. It may still be
    /// a node.
    fn note_left(&mut self, instance: &InstanceId, left: &AsgName, entered: Option<&AsgName>) {
        self.forget_target(instance, left);
        if let Some(entered) = entered {
            self.forget_target(instance, entered);
        } else if let Some(told) = self.membership.get_mut(instance) {
            *told = None;
        }
    }

    /// What is attached to an Auto Scaling group gets an instance that enters, and loses one that leaves, by itself.
    fn forget_target(&mut self, instance: &InstanceId, asg: &AsgName) {
        for arn in self.observed.asgs.get(asg).into_iter().flat_map(|asg| asg.sources.keys()) {
            if let Some(targets) = self.targets.get_mut(arn) {
                targets.direct.remove(instance);
                targets.expelled.remove(instance);
            }
        }
    }

    /// Takes note of attachments that are gone although nobody here detached them.
    fn note_stripped(&mut self, fresh: &Observed, began: u64, now: Instant) {
        let ours = |arn| self.observed.target_group(arn).is_some_and(|group| group.intent == Intent::Serve);
        for (name, asg) in &self.observed.asgs {
            let is_newer = self.written.get(name.as_str()).is_some_and(|write| *write > began);
            let Some(seen) = fresh.asgs.get(name).filter(|_| !is_newer) else { continue };
            let held = asg.sources.iter().filter(|(_, state)| **state != SourceState::Removing).map(|(arn, _)| arn);
            for arn in held.filter(|arn| !seen.sources.contains_key(*arn) && ours(*arn)) {
                self.stripped.entry((name.clone(), arn.clone())).or_default().push(now);
            }
        }
        let asgs = &self.observed.asgs;
        let detached = asgs.iter().filter_map(|(name, asg)| Some((asg, fresh.asgs.get(name)?)));
        for (asg, seen) in detached {
            for arn in asg.sources.keys().filter(|arn| !seen.sources.contains_key(*arn)) {
                if let Some(targets) = self.targets.get_mut(arn) {
                    // Its instances left with it, whoever registered them.
                    targets.known = false;
                    targets.direct.retain(|instance| !asg.instances.contains(instance));
                }
            }
        }
        self.stripped.retain(|_, times| {
            times.retain(|time| now - *time < STRIPPED.1);
            !times.is_empty()
        });
    }

    /// Takes note of attachments about to be made, before the call: a plan made meanwhile must not delete what is being
    /// attached. Leaves out what is no longer to be served.
    pub fn begin_attach(&mut self, asg: &AsgName, batch: &[TargetGroupArn]) -> Vec<TargetGroupArn> {
        let is_wanted = |group: &TargetGroup| group.intent == Intent::Serve && group.nodes.is_empty();
        let wanted = |arn: &&TargetGroupArn| self.observed.target_group(arn).is_some_and(is_wanted);
        let wanted: Vec<_> = batch.iter().filter(wanted).cloned().collect();
        self.touch(asg.as_str());
        if let Some(known) = self.observed.asgs.get_mut(asg) {
            known.sources.extend(wanted.iter().map(|arn| (arn.clone(), SourceState::Adding)));
        }
        wanted
    }

    /// Takes note of how that call ended.
    pub fn end_attach(&mut self, asg: &AsgName, batch: &[TargetGroupArn], succeeded: bool) {
        self.touch(asg.as_str());
        let members = self.observed.asgs.get(asg).map(|asg| asg.instances.clone()).unwrap_or_default();
        for arn in batch {
            if succeeded {
                self.targets.entry(arn.clone()).or_default().expelled.retain(|instance| !members.contains(instance));
            } else if let Some(known) = self.observed.asgs.get_mut(asg) {
                known.sources.remove(arn);
            }
        }
    }

    /// Takes note of detachments that have begun. AWS deregisters the group's instances, whoever registered them.
    pub fn begin_detach(&mut self, asg: &AsgName, batch: &[TargetGroupArn]) {
        self.touch(asg.as_str());
        let Some(known) = self.observed.asgs.get_mut(asg) else { return };
        for arn in batch {
            known.sources.insert(arn.clone(), SourceState::Removing);
            self.targets.entry(arn.clone()).or_default().direct.retain(|instance| !known.instances.contains(instance));
        }
    }

    /// Takes note of detachments by the older calls that have begun.
    pub fn begin_detach_legacy(&mut self, asg: &AsgName, batch: &[TargetGroupArn]) {
        self.touch(asg.as_str());
        if let Some(known) = self.observed.asgs.get_mut(asg) {
            known.legacy.extend(batch.iter().map(|arn| (arn.clone(), SourceState::Removing)));
        }
    }

    /// Attachments that somebody else takes away again and again.
    pub fn stripped_repeatedly(&self) -> impl Iterator<Item = &(AsgName, TargetGroupArn)> {
        self.stripped.iter().filter(|(_, times)| times.len() >= STRIPPED.0).map(|(key, _)| key)
    }

    /// What placement says now.
    pub fn place(&self, cluster: &str, now: Instant) -> Placement {
        let refusing = self.refusing.iter().filter(|(_, refused)| refused.until > now);
        let refusing = refusing.map(|(name, refused)| (name.clone(), refused.words.clone())).collect();
        let unfit = self.unfit.iter().filter(|(_, entry)| entry.until > now).map(|(id, _)| id.clone()).collect();
        let shares = self.shares.iter().filter(|(_, (_, until))| *until > now);
        let shares = shares.map(|(arn, (most, _))| (arn.clone(), *most)).collect();
        place(&self.scene(cluster, &refusing, &unfit, &shares))
    }

    fn scene<'a>(
        &'a self,
        cluster: &'a str,
        refusing: &'a BTreeMap<AsgName, String>,
        unfit: &'a BTreeSet<InstanceId>,
        shares: &'a BTreeMap<TargetGroupArn, usize>,
    ) -> Scene<'a> {
        Scene {
            cluster,
            observed: &self.observed,
            workers: &self.workers,
            membership: &self.membership,
            targets: &self.targets,
            seniority: &self.seniority,
            leaving: &self.leaving,
            refusing,
            unfit,
            shares,
        }
    }

    /// Takes note of the targets that AWS lists for a target group. `complete` says that the Auto Scaling groups will be
    /// read after this, so that an instance neither knows can be told from one launched a moment ago.
    pub fn record_targets(
        &mut self,
        cluster: &str,
        arn: &TargetGroupArn,
        listed: &BTreeSet<InstanceId>,
        complete: bool,
    ) {
        let (refusing, unfit, shares) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
        let scene = self.scene(cluster, &refusing, &unfit, &shares);
        let mut targets = Targets { known: true, ..Targets::default() };
        let mut strangers = listed.clone();
        for worker in self.workers.values() {
            let Ok(instance) = &worker.instance else { continue };
            strangers.remove(instance);
            let asg = membership_of(&scene, worker, instance).flatten();
            let asg = asg.and_then(|name| self.observed.asgs.get(&name));
            let attachment = asg.and_then(|asg| asg.sources.get(arn)).copied();
            if listed.contains(instance) && asg.is_some_and(|asg| asg.add_suspended) {
                targets.direct.insert(instance.clone());
                continue;
            }
            match (attachment, listed.contains(instance)) {
                // While it is being attached, what is missing may still come.
                (Some(SourceState::Added), false) => {
                    targets.expelled.insert(instance.clone());
                }
                (None, true) => {
                    targets.direct.insert(instance.clone());
                }
                _ => {}
            }
        }
        if complete {
            targets.strangers = strangers;
        }
        self.targets.insert(arn.clone(), targets);
    }

    /// Takes note of instances that were registered.
    pub fn record_registered(&mut self, arn: &TargetGroupArn, instances: &BTreeSet<InstanceId>) {
        for instance in instances {
            self.unfit.remove(instance);
        }
        let targets = self.targets.entry(arn.clone()).or_default();
        targets.expelled.retain(|instance| !instances.contains(instance));
        targets.direct.extend(instances.iter().cloned());
    }

    /// Takes note of instances that were deregistered. Where an attachment is still under way it may put them in again,
    /// so that they count as taken out only where it is complete.
    pub fn record_deregistered(&mut self, arn: &TargetGroupArn, instances: &BTreeSet<InstanceId>) {
        let complete = self.observed.asgs.values().filter(|asg| asg.sources.get(arn) == Some(&SourceState::Added));
        let held: BTreeSet<_> = complete.flat_map(|asg| asg.instances.intersection(instances)).cloned().collect();
        let Targets { direct, expelled, strangers, .. } = self.targets.entry(arn.clone()).or_default();
        direct.retain(|instance| !instances.contains(instance));
        strangers.retain(|instance| !instances.contains(instance));
        expelled.extend(held);
    }

    /// Deals out the targets there are among the target groups of a Service, since AWS takes no more for one of them.
    /// Returns whether that changed anything.
    pub fn share_out(&mut self, cluster: &str, arn: &TargetGroupArn, now: Instant) -> bool {
        let owner = |group: &TargetGroup| ownership::owner(cluster, &group.tags);
        let Some(whose) = self.observed.target_group(arn).and_then(owner) else { return false };
        let groups = self.observed.target_groups.values();
        let theirs = groups.filter(|group| group.intent == Intent::Serve && owner(group).as_ref() == Some(&whose));
        let dealt = shares::deal(&theirs.map(|group| group.arn.clone()).collect(), &self.targets);
        let is_news = |(arn, most): (&TargetGroupArn, &usize)| {
            self.shares.get(arn).is_none_or(|(known, until)| known != most || *until <= now)
        };
        let changed = dealt.iter().any(is_news);
        self.shares.extend(dealt.into_iter().map(|(arn, most)| (arn, (most, now + shares::LIFETIME))));
        changed
    }

    /// Takes note of an instance that AWS did not take.
    pub fn record_unfit(&mut self, instance: InstanceId, words: String, now: Instant) {
        let entry =
            self.unfit.entry(instance).or_insert(Unfit { until: now, since: now, failures: 0, words: String::new() });
        entry.failures += 1;
        let (first, longest) = UNFIT_DELAYS;
        entry.until = now + longest.min(first * 2u32.saturating_pow(entry.failures - 1));
        entry.words = words;
    }

    /// Takes note of a load balancer without our tags. Under a name of ours it may be one whose tags do not show yet: it
    /// is asked about at every check.
    pub fn note_foreign(&mut self, balancer: &Balancer, prefix: &str, now: Instant) {
        if !balancer.name.starts_with(prefix) {
            self.foreign.insert(balancer.arn.clone(), now);
        }
    }

    /// Whether the tags of this load balancer were read a while ago and are not ours.
    pub fn is_foreign(&self, arn: &LoadBalancerArn, now: Instant) -> bool {
        self.foreign.get(arn).is_some_and(|since| now - *since < FOREIGN_TAGS_LIFETIME)
    }

    /// Takes the nodes as they are now.
    ///
    /// Returns whether one of them may need rules in a security group that no node before it had: it is in no Auto
    /// Scaling group, or the first of its group, and its network has not been read. Others are set up as their siblings
    /// are, or were.
    pub fn replace_workers(&mut self, cluster: &str, workers: BTreeMap<String, Worker>) -> bool {
        let (read, _) = self.nodes_by_network(cluster);
        self.surveyed.extend(read.into_iter().flatten());
        self.surveyed.retain(|asg| self.observed.asgs.contains_key(asg));
        self.workers = workers;
        let (read, unread) = self.nodes_by_network(cluster);
        self.surveyed.extend(read.into_iter().flatten());
        unread.into_iter().any(|asg| asg.is_none_or(|asg| !self.surveyed.contains(&asg)))
    }

    /// Auto Scaling groups of nodes whose network has been read, and of those whose has not.
    fn nodes_by_network(&self, cluster: &str) -> (Vec<Option<AsgName>>, Vec<Option<AsgName>>) {
        let (refusing, unfit, shares) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
        let scene = self.scene(cluster, &refusing, &unfit, &shares);
        let (mut read, mut unread) = (Vec::new(), Vec::new());
        for worker in self.workers.values().filter(|worker| worker.eligible) {
            let Ok(instance) = &worker.instance else { continue };
            let Some(asg) = membership_of(&scene, worker, instance) else { continue };
            if self.instances.contains_key(instance) { read.push(asg) } else { unread.push(asg) }
        }
        (read, unread)
    }

    /// One security group for each way the nodes are set up.
    pub fn node_groups(&self, cluster: &str) -> NodeGroups {
        let mut groups = NodeGroups::default();
        let nodes = self.workers.values().filter(|worker| worker.eligible);
        for instance in nodes.filter_map(|worker| self.instances.get(worker.instance.as_ref().ok()?)) {
            let tagged =
                instance.groups.iter().map(|id| (id.clone(), self.group_tags.get(id).cloned().unwrap_or_default()));
            if let Some((chosen, warning)) = choose_node_group(cluster, &tagged.collect()) {
                groups.chosen.insert(chosen);
                groups.warnings.extend(warning);
            }
        }
        groups
    }

    /// Target membership never waits for a configuration to be put right: groups that nobody has planned since the
    /// start are served as they are, by the nodes with these labels. One that an Auto Scaling group has gets all of its
    /// nodes from there until another one takes over.
    ///
    /// Returns whether that changed anything.
    pub fn keep_serving(&mut self, cluster: &str, uid: &str, nodes: &Labels) -> bool {
        let mut changed = false;
        let Observed { asgs, target_groups, .. } = &mut self.observed;
        for group in target_groups.values_mut() {
            let is_attached = asgs.values().any(|asg| asg.sources.contains_key(&group.arn));
            let is_theirs = ownership::owner(cluster, &group.tags).is_some_and(|owner| owner.uid == uid);
            if is_theirs && group.intent == Intent::Undecided {
                group.intent = Intent::Serve;
                group.nodes = if is_attached { Labels::new() } else { nodes.clone() };
                changed = true;
            }
        }
        changed
    }

    /// Marks the target groups for which everything is done. Returns what is left to do, and the tags of those that a
    /// Service waited for.
    pub fn mark_served(&mut self, cluster: &str, now: Instant) -> (Placement, Vec<Tags>) {
        let placement = self.place(cluster, now);
        let Observed { asgs, target_groups, .. } = &mut self.observed;
        let is_adding =
            |arn: &TargetGroupArn| asgs.values().any(|asg| asg.sources.get(arn) == Some(&SourceState::Adding));
        let mut awaited = vec![];
        for group in target_groups.values_mut() {
            let served = group.intent == Intent::Serve && placement.is_served(&group.arn) && !is_adding(&group.arn);
            if served && !group.served && self.awaited.remove(&group.name) {
                awaited.push(group.tags.clone());
            }
            group.served = served;
        }
        self.awaited.retain(|name| target_groups.contains_key(name));
        (placement, awaited)
    }

    /// Load balancers that AWS is setting up.
    pub fn provisioning(&self) -> Vec<LoadBalancerArn> {
        use super::observed::BalancerState::Provisioning;
        let pending = self.observed.balancers.values().filter(|balancer| balancer.state == Provisioning);
        pending.map(|balancer| balancer.arn.clone()).collect()
    }

    /// Takes over states that were read by ARN. Returns the tags of those that changed.
    pub fn record_states(&mut self, fresh: Vec<Balancer>) -> Vec<Tags> {
        let mut changed = vec![];
        for balancer in fresh {
            if let Some(known) = self.observed.balancers.get_mut(&balancer.name)
                && known.arn == balancer.arn
                && known.state != balancer.state
            {
                known.state = balancer.state;
                changed.push(known.tags.clone());
            }
        }
        changed
    }
}

/// The Auto Scaling group of each instance that is in one.
fn members(observed: &Observed) -> BTreeMap<InstanceId, AsgName> {
    let of = |(name, asg): (&AsgName, &Asg)| {
        asg.instances.iter().map(|instance| (instance.clone(), name.clone())).collect::<Vec<_>>()
    };
    observed.asgs.iter().flat_map(of).collect()
}

/// Everything in the view that writes are remembered of.
fn names(observed: &Observed) -> BTreeSet<&str> {
    let Observed { balancers, target_groups, groups, node_rules, asgs, .. } = observed;
    let names = balancers.keys().chain(target_groups.keys()).chain(groups.keys()).map(String::as_str);
    let groups = node_rules.keys().map(SecurityGroupId::as_str);
    names.chain(groups).chain(asgs.keys().map(AsgName::as_str)).collect()
}

/// Takes over a reading into a map of the view: newer writes stay, what two readings in a row miss goes.
fn merge_map<K: Ord + Clone, V>(
    view: &mut BTreeMap<K, V>,
    fresh: BTreeMap<K, V>,
    name: impl Fn(&K) -> &str,
    is_newer: impl Fn(&str) -> bool,
    missing: &mut impl FnMut(&str) -> bool,
    keep: impl Fn(&mut V, &mut V),
) {
    view.retain(|key, _| fresh.contains_key(key) || is_newer(name(key)) || !missing(name(key)));
    for (key, mut new) in fresh {
        if is_newer(name(&key)) {
            continue;
        }
        if let Some(old) = view.get_mut(&key) {
            keep(old, &mut new);
        }
        view.insert(key, new);
    }
}

/// The listing of Auto Scaling groups shows no states: changes under way stay what they were.
fn keep_states(old: &mut Asg, new: &mut Asg) {
    for (before, now) in [(&old.sources, &mut new.sources), (&old.legacy, &mut new.legacy)] {
        for (arn, state) in now {
            if let Some(known) = before.get(arn) {
                *state = *known;
            }
        }
    }
}

/// The name under which a step's write is remembered.
fn step_subject(step: &Step) -> &str {
    match step {
        Step::CreateGroup { name, .. }
        | Step::DeleteGroup { name, .. }
        | Step::DeleteBalancer { name, .. }
        | Step::DeleteTargetGroup { name, .. } => name,
        Step::Authorize { group, .. } | Step::Revoke { group, .. } => group,
        Step::AuthorizeNodes { group, .. } | Step::RevokeNodes { group, .. } => group.as_str(),
        Step::SetGroups { balancer, .. }
        | Step::SetAddressType { balancer, .. }
        | Step::SetSubnets { balancer, .. }
        | Step::ReserveCapacity { balancer, .. }
        | Step::CreateListener { balancer, .. }
        | Step::ModifyListener { balancer, .. }
        | Step::AddCertificate { balancer, .. }
        | Step::RemoveCertificate { balancer, .. }
        | Step::DeleteListener { balancer, .. } => balancer,
        Step::CreateBalancer(balancer) => &balancer.name,
        Step::ModifyAttributes { of, .. } => match of {
            AttributesOf::Balancer(name) | AttributesOf::TargetGroup(name) | AttributesOf::Listener(name, _) => name,
        },
        Step::CreateTargetGroup(group) => &group.name,
        Step::ModifyHealthCheck { target_group, .. }
        | Step::Intend { target_group, .. }
        | Step::Select { target_group, .. } => target_group,
        Step::Tag { resource, .. } | Step::Untag { resource, .. } => resource.name(),
    }
}
