//! Carries out what [`placement`](super::placement) says: the one writer of targets and traffic sources.
//!
//! One pass does a batch for each Auto Scaling group, all groups side by side, then looks again. A failure puts off
//! just the group it concerns.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::Instant;

use super::account::{Account, REFUSAL_LIFETIME, Refused, StepError};
use super::drift::learn_networks;
use super::observed::{Asg, Observed, SourceState};
use super::placement::{Note, Placement};
use super::report::Reporter;
use super::standing::measure;
use crate::aws::autoscaling::SOURCES_PER_CALL;
use crate::aws::classify::{AwsError, Class};
use crate::aws::elbv2::Registration;
use crate::cluster::reason::Reason;
use crate::model::id::{AsgName, InstanceId, TargetGroupArn};
use crate::model::ownership;
use crate::telemetry::chain;

/// Services that come together are served together: what arrives within this time shares its calls, and so does what
/// is known to be coming, up to the longer time.
const GATHER: (Duration, Duration) = (Duration::from_millis(300), Duration::from_secs(4));
/// Waits between two looks at changes under way in an Auto Scaling group.
const LOOK: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// An instance that AWS does not take is worth a word after this time; most are just starting or stopping.
const UNFIT_PATIENCE: Duration = Duration::from_mins(2);
/// A look even without a ring, for what waits for a time to pass.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// Stands among target groups and Auto Scaling groups for the question which instance is in which.
const MEMBERSHIP: &str = "membership";

/// What failed, and when to try again.
#[derive(Debug)]
struct Backoff {
    failed: BTreeMap<String, (Instant, u32)>,
    longest: Duration,
}

impl Backoff {
    fn is_due(&self, key: &str, now: Instant) -> bool {
        self.failed.get(key).is_none_or(|(until, _)| *until <= now)
    }

    /// Puts a key off and returns how often it has failed.
    fn put_off(&mut self, key: &str, error: &AwsError, now: Instant) -> u32 {
        let (first, longest) = error.delays();
        let entry = self.failed.entry(key.to_owned()).or_insert((now, 0));
        entry.1 += 1;
        entry.0 = now + longest.min(self.longest).min(first * 2u32.saturating_pow(entry.1 - 1));
        entry.1
    }

    fn forget(&mut self, key: &str) {
        self.failed.remove(key);
    }

    /// Forgets what is due and gone.
    fn retain(&mut self, is_there: impl Fn(&str) -> bool, now: Instant) {
        self.failed.retain(|key, (until, _)| *until > now || key == MEMBERSHIP || is_there(key));
    }
}

/// Runs until the process ends. No failure is waited after for more than `longest`.
pub async fn run(account: Arc<Account>, reporter: Arc<Reporter>, longest: Duration) {
    let mut backoff = Backoff { failed: BTreeMap::new(), longest };
    let mut look = LOOK.0;
    let mut looked = Instant::now();
    loop {
        let is_changing = is_changing(&account);
        let pause = if is_changing { look } else { HEARTBEAT };
        tokio::select! {
            () = account.placement.notified() => gather(&account).await,
            () = tokio::time::sleep(pause) => {}
        }
        if is_changing && looked.elapsed() >= look {
            look_at_changes(&account, &reporter).await;
            looked = Instant::now();
            look = LOOK.1.min(look * 2);
        } else if !is_changing {
            look = LOOK.0;
        }
        if account.is_more_coming() {
            gather(&account).await;
        }
        pass(&account, &reporter, &mut backoff).await;
    }
}

/// Waits for more that can share a call, while there is more to come and no call is full.
async fn gather(account: &Account) {
    let began = Instant::now();
    loop {
        let is_over = tokio::select! {
            () = account.placement.notified() => false,
            () = tokio::time::sleep(GATHER.0) => !account.is_more_coming(),
        };
        let placement = account.state().place(&account.policy.cluster, Instant::now());
        let is_full = placement.attach.values().any(|groups| groups.len() >= SOURCES_PER_CALL);
        if is_over || is_full || began.elapsed() >= GATHER.1 {
            return;
        }
    }
}

/// Whether some Auto Scaling group has changes under way that something waits for: a target group that is to go, more to
/// attach or detach than fits beside those under way, a target group that takes over, or an instance that is to be taken out.
fn is_changing(account: &Account) -> bool {
    !waited_for(account).is_empty()
}

fn waited_for(account: &Account) -> BTreeSet<AsgName> {
    let state = account.state();
    let placement = state.place(&account.policy.cluster, Instant::now());
    let asgs = state.observed.asgs.iter();
    let waited = asgs.filter(|(name, asg)| {
        let is = |wanted| asg.states().any(|state| state == wanted);
        let takes_over =
            |arn| state.observed.target_group(arn).is_some_and(|group| state.awaited.contains(&group.name));
        let mut adding = asg.sources.iter().filter(|(_, state)| **state == SourceState::Adding);
        let full = asg.changing() >= SOURCES_PER_CALL;
        is(SourceState::Removing)
            || (is(SourceState::Adding) && placement.attach.contains_key(*name))
            || (full && placement.detach.contains_key(*name))
            || placement.settle.contains(*name)
            || adding.any(|(arn, _)| takes_over(arn))
    });
    waited.map(|(name, _)| name.clone()).collect()
}

async fn look_at_changes(account: &Account, reporter: &Reporter) {
    for asg in waited_for(account) {
        let Err(error) = look_at(account, &asg).await else { continue };
        tracing::warn!(%asg, error = %chain(&error), "cannot read traffic sources");
        if error.is_worth_an_event(1) {
            let waiting = account.state().observed.asgs.get(&asg).map(changing).unwrap_or_default();
            for owner in owners(account, &waiting) {
                reporter.warn_owner(&owner, error.class.reason(), &[error.to_string()].into()).await;
            }
        }
    }
}

/// Reads what is attached to an Auto Scaling group, and in which state.
async fn look_at(account: &Account, asg: &AsgName) -> Result<(), AwsError> {
    let has_legacy = account.state().observed.asgs.get(asg).is_some_and(|known| !known.legacy.is_empty());
    let sources = account.aws.describe_sources(asg).await?;
    let legacy = if has_legacy { account.aws.describe_legacy(asg).await? } else { BTreeMap::new() };
    let mut state = account.state();
    let Some(known) = state.observed.asgs.get_mut(asg) else { return Ok(()) };
    let before = std::mem::replace(&mut known.sources, sources).into_keys();
    let before = before.chain(std::mem::replace(&mut known.legacy, legacy).into_keys());
    let let_go: Vec<_> = before.filter(|arn| !known.lists(arn)).collect();
    let gone: Vec<_> = let_go.iter().filter_map(|arn| Some(state.observed.target_group(arn)?.tags.clone())).collect();
    for arn in &let_go {
        // Its instances left with it: what is registered must be read again.
        state.targets.entry(arn.clone()).and_modify(|targets| targets.known = false);
    }
    state.touch(asg.as_str());
    drop(state);
    account.wake_owners(&gone);
    Ok(())
}

/// Target groups that are being attached to an Auto Scaling group or detached from it.
fn changing(asg: &Asg) -> BTreeSet<TargetGroupArn> {
    let all = asg.sources.iter().chain(&asg.legacy);
    all.filter(|(_, state)| **state != SourceState::Added).map(|(arn, _)| arn.clone()).collect()
}

/// One pass.
async fn pass(account: &Account, reporter: &Reporter, backoff: &mut Backoff) {
    let now = Instant::now();
    let leaving = reporter.leaving();
    let placement = {
        let mut state = account.state();
        let Observed { target_groups, asgs, .. } = &state.observed;
        let names = asgs.keys().map(AsgName::as_str);
        let there: BTreeSet<_> = names.chain(target_groups.values().map(|group| group.arn.as_str())).collect();
        backoff.retain(|key| there.contains(key), now);
        state.leaving = leaving;
        state.place(&account.policy.cluster, now)
    };
    if !placement.is_empty() && account.fence().is_ok() {
        if !placement.resolve.is_empty() || !placement.read.is_empty() {
            find_out(account, reporter, &placement, backoff, now).await;
            account.placement.notify_one();
        }
        make_room(account, reporter, &placement, backoff, now).await;
        register(account, reporter, &placement, backoff, now).await;
        // What is not registered now must not be detached now.
        let placement = account.state().place(&account.policy.cluster, now);
        let asgs = placement.attach.keys().chain(placement.detach.keys()).chain(placement.detach_legacy.keys());
        let asgs: BTreeSet<_> = asgs.cloned().collect();
        let due: Vec<_> = asgs.into_iter().filter(|asg| backoff.is_due(asg.as_str(), now)).collect();
        let outcomes = join_all(due.iter().map(|asg| drive(account, &placement, asg, backoff.longest))).await;
        for (asg, outcome) in due.iter().zip(outcomes) {
            settle(account, reporter, backoff, asg, outcome, now).await;
        }
        deregister(account, reporter, &placement, backoff, now).await;
    }
    let placement = mark_served(account);
    measure(account);
    tell(account, reporter, &placement).await;
}

/// Reads what a decision needs.
async fn find_out(account: &Account, reporter: &Reporter, placement: &Placement, backoff: &mut Backoff, now: Instant) {
    if !placement.resolve.is_empty() && backoff.is_due(MEMBERSHIP, now) {
        let instances: Vec<_> = placement.resolve.iter().cloned().collect();
        match learn_membership(account, &instances).await {
            Ok(()) => backoff.forget(MEMBERSHIP),
            Err(error) => {
                // Without the answer such a node is nobody's target.
                let served = account.state().observed.served();
                fail(account, reporter, backoff, MEMBERSHIP, &served, &error, now).await;
            }
        }
    }
    for arn in placement.read.iter().filter(|arn| backoff.is_due(arn.as_str(), now)).cloned().collect::<Vec<_>>() {
        match account.aws.describe_targets(&arn).await {
            Ok(listed) => account.state().record_targets(&account.policy.cluster, &arn, &listed, false),
            Err(error) => {
                if error.class == Class::Missing {
                    lost(account, &arn);
                }
                fail(account, reporter, backoff, arn.as_str(), &BTreeSet::from([arn.clone()]), &error, now).await;
            }
        }
    }
}

/// Reads the Auto Scaling groups and the networks of instances.
///
/// # Errors
/// What could not be read.
pub async fn learn_membership(account: &Account, instances: &[InstanceId]) -> Result<(), AwsError> {
    let membership = account.aws.describe_membership(instances).await?;
    learn_networks(account, account.aws.describe_instances(instances).await?, false).await?;
    let mut state = account.state();
    let unknown = membership.values().flatten().any(|name| !state.observed.asgs.contains_key(name));
    state.membership.extend(membership);
    drop(state);
    if unknown {
        account.recheck.notify_one();
    }
    Ok(())
}

/// A target group that a call did not find: it is gone, or was made a moment ago. The reading that follows tells, and
/// where it is gone its Service makes it again.
fn lost(account: &Account, arn: &TargetGroupArn) {
    let mut state = account.state();
    let Some(name) = state.observed.target_group(arn).map(|group| group.name.clone()) else { return };
    state.note_missed(name);
    drop(state);
    account.recheck.notify_one();
}

/// Where a quota is used up, some give up targets before others take them.
async fn make_room(account: &Account, reporter: &Reporter, placement: &Placement, backoff: &mut Backoff, now: Instant) {
    let shared: BTreeSet<_> = account.state().shares.keys().cloned().collect();
    let giving = placement.deregister.iter().filter(|(arn, _)| shared.contains(*arn));
    let giving = giving.map(|(arn, instances)| (arn.clone(), instances.clone())).collect();
    let giving = Placement { deregister: giving, ..Placement::default() };
    deregister(account, reporter, &giving, backoff, now).await;
}

async fn register(account: &Account, reporter: &Reporter, placement: &Placement, backoff: &mut Backoff, now: Instant) {
    for (arn, instances) in
        placement.register.iter().filter(|(arn, _)| backoff.is_due(arn.as_str(), now)).collect::<Vec<_>>()
    {
        if account.fence().is_err() {
            return;
        }
        // One target group is enough to learn that AWS does not take an instance.
        let instances: BTreeSet<_> = {
            let state = account.state();
            let is_fit = |instance: &&InstanceId| state.unfit.get(*instance).is_none_or(|entry| entry.until <= now);
            instances.iter().filter(is_fit).cloned().collect()
        };
        if instances.is_empty() {
            continue;
        }
        let services = named(account, std::slice::from_ref(arn));
        tracing::info!(services, %arn, instances = listed(&instances), "registering nodes that no attachment registers");
        match account.aws.register(arn, &instances).await {
            Ok(outcome) => {
                let full = outcome.full.clone();
                record_registered(account, arn, outcome, now);
                match full {
                    None => backoff.forget(arn.as_str()),
                    Some(_) if account.state().share_out(&account.policy.cluster, arn, now) => {
                        account.placement.notify_one();
                    }
                    Some(error) => {
                        fail(account, reporter, backoff, arn.as_str(), &BTreeSet::from([arn.clone()]), &error, now)
                            .await;
                    }
                }
            }
            Err(error) => {
                if error.class == Class::Missing {
                    lost(account, arn);
                }
                fail(account, reporter, backoff, arn.as_str(), &BTreeSet::from([arn.clone()]), &error, now).await;
            }
        }
    }
}

fn record_registered(account: &Account, arn: &TargetGroupArn, outcome: Registration, now: Instant) {
    let mut state = account.state();
    state.record_registered(arn, &outcome.registered);
    for (instance, words) in outcome.unfit {
        state.record_unfit(instance, words, now);
    }
}

async fn deregister(
    account: &Account,
    reporter: &Reporter,
    placement: &Placement,
    backoff: &mut Backoff,
    now: Instant,
) {
    for (arn, instances) in
        placement.deregister.iter().filter(|(arn, _)| backoff.is_due(arn.as_str(), now)).collect::<Vec<_>>()
    {
        if account.fence().is_err() {
            return;
        }
        let services = named(account, std::slice::from_ref(arn));
        tracing::info!(services, %arn, instances = listed(instances), "deregistering what may not be a target");
        match account.aws.deregister(arn, instances).await {
            Ok(()) => {
                account.state().record_deregistered(arn, instances);
            }
            Err(error) => {
                fail(account, reporter, backoff, arn.as_str(), &BTreeSet::from([arn.clone()]), &error, now).await;
            }
        }
    }
}

/// What came of one Auto Scaling group's turn.
enum Turn {
    Fine,
    /// The call failed for these target groups.
    Failed(BTreeSet<TargetGroupArn>, AwsError),
}

/// One batch of attachments and one of detachments. Ten a call and about ten under way in a group at a time are what
/// Auto Scaling takes (terraform-provider-aws#11301).
async fn drive(account: &Account, placement: &Placement, asg: &AsgName, longest: Duration) -> Result<Turn, StepError> {
    let room = || {
        let state = account.state();
        let changing = state.observed.asgs.get(asg).map_or(0, Asg::changing);
        SOURCES_PER_CALL.saturating_sub(changing)
    };
    let batch: Vec<_> = placement.attach.get(asg).into_iter().flatten().take(room()).cloned().collect();
    if !batch.is_empty() {
        if let Some(failed) = attach(account, asg, &batch, longest).await? {
            return Ok(failed);
        }
        account.placement.notify_one();
    }
    let is_safe = |arn: &&TargetGroupArn| !placement.read.contains(*arn) && !placement.register.contains_key(*arn);
    let leaving = placement.detach.get(asg).into_iter().flatten().filter(is_safe);
    let batch: Vec<_> = leaving.take(room()).cloned().collect();
    if !batch.is_empty() {
        account.fence()?;
        tracing::info!(%asg, target_groups = batch.len(), services = named(account, &batch), "detaching");
        if let Err(error) = account.aws.detach(asg, &batch).await {
            account.recheck.notify_one();
            return Ok(Turn::Failed(batch.into_iter().collect(), error));
        }
        account.state().begin_detach(asg, &batch);
        account.placement.notify_one();
    }
    let leaving = placement.detach_legacy.get(asg).into_iter().flatten();
    let batch: Vec<_> = leaving.take(room()).cloned().collect();
    if batch.is_empty() { Ok(Turn::Fine) } else { detach_legacy(account, asg, &batch).await }
}

/// One batch of detachments by the older calls. Only of what is to be deleted, so no target is looked after.
async fn detach_legacy(account: &Account, asg: &AsgName, batch: &[TargetGroupArn]) -> Result<Turn, StepError> {
    account.fence()?;
    tracing::info!(%asg, target_groups = batch.len(), services = named(account, batch), "detaching what the older calls attached");
    if let Err(error) = account.aws.detach_legacy(asg, batch).await {
        account.recheck.notify_one();
        return Ok(Turn::Failed(batch.iter().cloned().collect(), error));
    }
    account.state().begin_detach_legacy(asg, batch);
    account.placement.notify_one();
    Ok(Turn::Fine)
}

/// Detaches what is to be deleted, a batch from each Auto Scaling group, and looks at what detaches. For a process that
/// serves nothing. Returns what failed.
pub async fn let_go(account: &Account) -> Vec<StepError> {
    let placement = account.state().place(&account.policy.cluster, Instant::now());
    let asgs: BTreeSet<_> = placement.detach.keys().chain(placement.detach_legacy.keys()).collect();
    let turns = join_all(asgs.into_iter().map(|asg| drive(account, &placement, asg, Duration::ZERO))).await;
    let mut failed = vec![];
    for turn in turns {
        match turn {
            Ok(Turn::Fine) => {}
            Ok(Turn::Failed(_, error)) => failed.push(error.into()),
            Err(error) => failed.push(error),
        }
    }
    for asg in waited_for(account) {
        failed.extend(look_at(account, &asg).await.err().map(StepError::from));
    }
    failed
}

async fn attach(
    account: &Account,
    asg: &AsgName,
    batch: &[TargetGroupArn],
    longest: Duration,
) -> Result<Option<Turn>, StepError> {
    account.fence()?;
    let batch = &account.state().begin_attach(asg, batch)[..];
    if batch.is_empty() {
        return Ok(None);
    }
    tracing::info!(%asg, target_groups = batch.len(), services = named(account, batch), "attaching");
    let answer = account.aws.attach(asg, batch).await;
    account.state().end_attach(asg, batch, answer.is_ok());
    match answer {
        Ok(()) => Ok(None),
        // One that vanished fails the whole batch (KIA#254): find it, and attach the others.
        Err(error) if error.message.contains("may not be valid") && batch.len() > 1 => {
            let mut failed = None;
            for arn in batch {
                failed = Box::pin(attach(account, asg, std::slice::from_ref(arn), longest)).await?.or(failed);
            }
            Ok(failed)
        }
        // Or Auto Scaling has not learnt yet that ELB made it.
        Err(error) if error.message.contains("may not be valid") => {
            for arn in batch {
                lost(account, arn);
            }
            let error = AwsError { class: Class::Missing, ..error };
            Ok(Some(Turn::Failed(batch.iter().cloned().collect(), error)))
        }
        Err(error) if error.code.starts_with("InstanceRefreshInProgress") => {
            refuse(account, asg, &error, REFUSAL_LIFETIME);
            account.placement.notify_one();
            Ok(None)
        }
        Err(error) => {
            // Others attach too: the number of free slots may be an old one.
            account.recheck.notify_one();
            if matches!(error.class, Class::Denied | Class::Invalid | Class::Quota) {
                // It may last: the nodes must not stay without traffic meanwhile.
                refuse(account, asg, &error, error.delays().0.min(longest));
            }
            Ok(Some(Turn::Failed(batch.iter().cloned().collect(), error)))
        }
    }
}

/// Takes note of an Auto Scaling group that takes no target group for this long.
fn refuse(account: &Account, asg: &AsgName, error: &AwsError, lifetime: Duration) {
    let words = format!("{}: {}", error.code, error.message);
    account.state().refusing.insert(asg.clone(), Refused { until: Instant::now() + lifetime, words });
}

async fn settle(
    account: &Account,
    reporter: &Reporter,
    backoff: &mut Backoff,
    asg: &AsgName,
    outcome: Result<Turn, StepError>,
    now: Instant,
) {
    match outcome {
        Ok(Turn::Fine) => backoff.forget(asg.as_str()),
        Ok(Turn::Failed(groups, error)) => fail(account, reporter, backoff, asg.as_str(), &groups, &error, now).await,
        Err(error) => tracing::info!(%asg, %error, "nothing done"),
    }
}

/// Puts a key off, and tells the owners once it is worth a word.
async fn fail(
    account: &Account,
    reporter: &Reporter,
    backoff: &mut Backoff,
    key: &str,
    groups: &BTreeSet<TargetGroupArn>,
    error: &AwsError,
    now: Instant,
) {
    let failures = backoff.put_off(key, error, now);
    tracing::warn!(failures, error = %chain(error), "targets not changed");
    if error.is_worth_an_event(failures) {
        for owner in owners(account, groups) {
            reporter.warn_owner(&owner, error.class.reason(), &BTreeSet::from([error.to_string()])).await;
        }
    }
}

fn owners(account: &Account, groups: &BTreeSet<TargetGroupArn>) -> BTreeSet<ownership::Owner> {
    let state = account.state();
    let tags = groups.iter().filter_map(|arn| Some(&state.observed.target_group(arn)?.tags));
    tags.filter_map(|tags| ownership::owner(&account.policy.cluster, tags)).collect()
}

/// The Services that own these target groups, for the log.
fn named(account: &Account, groups: &[TargetGroupArn]) -> String {
    let owners = owners(account, &groups.iter().cloned().collect());
    owners.iter().map(|owner| owner.service.to_string()).collect::<Vec<_>>().join(", ")
}

fn listed(instances: &BTreeSet<InstanceId>) -> String {
    instances.iter().map(InstanceId::as_str).collect::<Vec<_>>().join(", ")
}

/// Marks the target groups for which everything is done, and wakes those that waited for it. Returns what is left to do.
fn mark_served(account: &Account) -> Placement {
    let (placement, woken) = account.state().mark_served(&account.policy.cluster, Instant::now());
    account.wake_owners(&woken);
    placement
}

/// Events about placement: on Services, and on Nodes that cannot be targets.
async fn tell(account: &Account, reporter: &Reporter, placement: &Placement) {
    let (notes, nodes) = {
        let state = account.state();
        let mut notes: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        let mut said_of = placement.notes.clone();
        for (asg, arn) in state.stripped_repeatedly() {
            said_of.entry(arn.clone()).or_default().insert(Note::Stripped(asg.clone()));
        }
        for (arn, said) in &said_of {
            let owner = state
                .observed
                .target_group(arn)
                .and_then(|group| ownership::owner(&account.policy.cluster, &group.tags));
            if let Some(owner) = owner {
                notes.entry(owner).or_default().extend(said.iter().cloned());
            }
        }
        let nodes: Vec<_> = state
            .workers
            .values()
            .filter_map(|worker| match &worker.instance {
                Err(sentence) => Some((worker.name.clone(), Reason::InvalidProviderID, sentence.clone())),
                Ok(instance) => {
                    let unfit = state.unfit.get(instance)?;
                    let lasting = unfit.since.elapsed() >= UNFIT_PATIENCE;
                    lasting.then(|| (worker.name.clone(), Reason::TargetRefused, unfit.words.clone()))
                }
            })
            .collect();
        (notes, nodes)
    };
    for (owner, said) in notes {
        let mut by_reason: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for note in &said {
            by_reason.entry(note.reason()).or_default().insert(note.to_string());
        }
        for (reason, notes) in by_reason {
            reporter.warn_owner(&owner, reason, &notes).await;
        }
    }
    reporter.retain_nodes(&nodes.iter().map(|(name, reason, _)| (name.clone(), *reason)).collect());
    for (name, reason, sentence) in nodes {
        reporter.warn_node(&name, reason, &sentence).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_of_what_is_gone_are_forgotten_once_they_are_due() {
        let now = Instant::now();
        let later = now + Duration::from_mins(1);
        let failed = [("there", now), ("gone", now), ("gone a moment ago", later), (MEMBERSHIP, now)];
        let failed = failed.map(|(key, until)| (key.to_owned(), (until, 3)));
        let mut backoff = Backoff { failed: failed.into(), longest: Duration::from_mins(5) };
        backoff.retain(|key| key == "there", now);
        let kept: Vec<_> = backoff.failed.keys().map(String::as_str).collect();
        assert_eq!(kept, ["gone a moment ago", MEMBERSHIP, "there"]);
    }
}
