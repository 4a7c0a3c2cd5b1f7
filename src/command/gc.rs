//! `weir gc`: what weir made in AWS for Services that are gone.
//!
//! The controller gives such things back by itself after each drift check. This is for when there is none any more, or
//! none yet, and for a cluster that is gone with everything in it. Found by the tags of the cluster, decided by
//! [`teardown`](crate::controller::plan::teardown) as for any Service that is deleted, and written through the same
//! fence: while it deletes, this process is the leader.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Node, Service};
use kube::{Api, ResourceExt};
use serde::Serialize;
use tokio::time::Instant;

use super::deployed;
use super::observation::{Reading, list_nodes, list_services, observe};
use super::report::{Line, lines, write_line, write_lines};
use super::settings::{self, Output};
use crate::admin::Health;
use crate::aws::classify::Class;
use crate::cluster::lease::{self, Candidate, Claim};
use crate::cluster::{cluster_uid, connect};
use crate::controller::account::{Account, StepError};
use crate::controller::apply::apply;
use crate::controller::desired::Policy;
use crate::controller::observed::Observed;
use crate::controller::plan::Wait;
use crate::controller::reconcile::give_back;
use crate::controller::rehearsal::{Act, Rehearsal, Script, Wish, rehearse};
use crate::controller::{backend, targets};
use crate::model::id::ServiceKey;
use crate::model::ownership::{self, CLUSTER_TAG, CLUSTER_UID_TAG, Owner, Role, SERVICE_TAG, Tags, UID_TAG};
use crate::model::service::{FINALIZER, Scheme, is_claimed, owner_of};
use crate::settings::Controller;
use crate::telemetry;

/// Exit code where something is left.
const LEFT: u8 = 2;
/// Waits between two tries; AWS takes its time to let go.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// As long as it takes to see that whoever held the Lease is gone, and a little more.
const TAKEOVER: Duration = Duration::from_secs(20);

/// Finds, prints, and deletes if asked to.
///
/// # Errors
/// What could not be read, or why nothing may be deleted.
pub async fn run(settings: settings::Gc) -> anyhow::Result<ExitCode> {
    telemetry::start(&settings::log(&settings.log))?;
    let cluster = if settings.all { None } else { Some(Cluster::read(&settings.place).await?) };
    let mut sight = Sight::take(&settings, cluster.as_ref(), Claim::none()).await?;
    let mut left = BTreeMap::new();
    if settings.delete && !sight.found.is_empty() {
        sight.found.check(&settings)?;
        let lease = match &cluster {
            Some(cluster) if !settings.force => hold_lease(&cluster.client, &settings.place.namespace).await?,
            _ => Candidate::alone(),
        };
        let outcome = async {
            // What a controller has done until now is seen only now.
            sight = Sight::take(&settings, cluster.as_ref(), lease.claim()).await?;
            sight.found.check(&settings)?;
            delete(&sight, cluster.as_ref(), settings.timeout).await
        };
        let outcome = outcome.await;
        lease.resign().await;
        left = outcome?;
    }
    let report = Report::of(&settings, &sight, left);
    super::answer(&match settings.output {
        Output::Text => report.text(),
        Output::Json => serde_json::to_string_pretty(&report)? + "\n",
    })?;
    Ok(report.exit_code())
}

/// The account, and what was found in it.
struct Sight {
    account: Account,
    found: Found,
}

impl Sight {
    async fn take(settings: &settings::Gc, cluster: Option<&Cluster>, claim: Claim) -> anyhow::Result<Self> {
        let account = match cluster {
            Some(cluster) => {
                let Controller { cluster_name, region, .. } = &cluster.controller;
                open(cluster_name, region.as_deref(), cluster.uid.clone(), &cluster.nodes, claim).await?
            }
            None => open_gone(settings, claim).await?,
        };
        // After AWS: what is seen there then belongs to a Service that is seen here, or to one that is gone.
        let living = match cluster {
            Some(cluster) => list_services(&cluster.client).await?,
            None => vec![],
        };
        let doubtful = set_aside(&account);
        let running = if cluster.is_none() { running(&account).await? } else { vec![] };
        let found = Found::of(&account, cluster, &living, Signs { doubtful, running });
        Ok(Self { account, found })
    }
}

/// A cluster that can be asked.
struct Cluster {
    client: kube::Client,
    controller: Controller,
    uid: String,
    nodes: Vec<Node>,
}

impl Cluster {
    async fn read(place: &settings::Place) -> anyhow::Result<Self> {
        let client = connect().await.context("for what a cluster left that is gone there is --all")?;
        let controller = deployed::known(&client, place).await?;
        let uid = cluster_uid(&client).await?;
        let nodes = list_nodes(&client).await?;
        Ok(Self { client, controller, uid, nodes })
    }

    /// A Service that is to have a load balancer now, if there is one.
    async fn wanting(&self) -> anyhow::Result<Option<ServiceKey>> {
        let services = list_services(&self.client).await?;
        Ok(services.iter().find(|service| self.wants(service)).map(|service| owner_of(service).service))
    }

    /// Whether a Service is to have a load balancer.
    fn wants(&self, service: &Service) -> bool {
        let Controller { load_balancer_class: class, claim_classless, .. } = &self.controller;
        service.metadata.deletion_timestamp.is_none() && is_claimed(service, class, *claim_classless)
    }
}

/// The account, as far as it concerns the cluster with this UID.
async fn open(
    cluster_name: &str,
    region: Option<&str>,
    cluster_uid: String,
    nodes: &[Node],
    claim: Claim,
) -> anyhow::Result<Account> {
    // What is deleted is not planned: only whose it is plays a part.
    let policy = Policy {
        cluster: cluster_name.to_owned(),
        cluster_uid,
        default_scheme: Scheme::InternetFacing,
        node_ports: (0, 0),
        health_port: 0,
    };
    let account = observe(Reading { region, vpc: None, policy, nodes }, claim).await?;
    // Read once more after the Auto Scaling groups: a target group that was made and attached between the two readings
    // must not look like one that is gone.
    let groups = account.aws.describe_target_groups().await.context("cannot read the account")?;
    account.state().observed.listed.extend(groups.into_iter().map(|group| group.arn));
    Ok(account)
}

/// The account as a cluster left it that is gone. Which cluster that was, the tags say.
async fn open_gone(settings: &settings::Gc, claim: Claim) -> anyhow::Result<Account> {
    let settings::Place { cluster_name, region, .. } = &settings.place;
    let name = cluster_name.as_deref().context("--cluster-name: with --all it must be given")?;
    let given = settings.cluster_uid.clone();
    let account = open(name, region.as_deref(), given.clone().unwrap_or_default(), &[], claim.clone()).await?;
    if given.is_some() {
        return Ok(account);
    }
    let uids: BTreeSet<_> = account.state().observed.twins.values().cloned().collect();
    let mut uids = uids.into_iter();
    match (uids.next(), uids.len()) {
        (None, _) => Ok(account),
        (Some(only), 0) => open(name, region.as_deref(), only, &[], claim).await,
        (Some(first), _) => {
            let all: Vec<_> = std::iter::once(first).chain(uids).collect();
            bail!(
                "several clusters of the name {name} left something; say with --cluster-uid which is meant: {}",
                all.join(", ")
            )
        }
    }
}

/// Takes out of the view what carries the cluster's name, and no id: nothing proves that this cluster made it, and not
/// another one of the name, or the one that a slip of the name has hit. A controller knows its name, and puts the id on
/// what it serves. Returns why, by resource.
fn set_aside(account: &Account) -> BTreeMap<String, String> {
    let mut state = account.state();
    let Observed { balancers, target_groups, groups, .. } = &mut state.observed;
    let lacks = |tags: &Tags| !tags.contains_key(CLUSTER_UID_TAG);
    let balancers = balancers.extract_if(.., |_, it| lacks(&it.tags)).map(|(_, it)| it.arn.to_string());
    let target_groups = target_groups.extract_if(.., |_, it| lacks(&it.tags)).map(|(_, it)| it.arn.to_string());
    let groups = groups.extract_if(.., |_, it| lacks(&it.tags)).map(|(_, it)| it.id.to_string());
    let why = format!(
        "carries {CLUSTER_TAG}, but not {CLUSTER_UID_TAG}, which would say of which cluster of this name it is"
    );
    balancers.chain(target_groups).chain(groups).map(|resource| (resource, why.clone())).collect()
}

/// Signs that a cluster lives, in sentences: Auto Scaling groups with instances, and instances in none, as Karpenter
/// launches them.
async fn running(account: &Account) -> anyhow::Result<Vec<String>> {
    let cluster = &account.policy.cluster;
    let mut instances =
        account.aws.describe_running(cluster).await.context("cannot tell whether the cluster is gone")?;
    let state = account.state();
    let asgs = state.observed.asgs.iter().filter(|(_, asg)| asg.is_tagged_for(cluster) && !asg.instances.is_empty());
    let mut signs = vec![];
    for (name, asg) in asgs {
        instances.retain(|instance| !asg.instances.contains(instance));
        signs.push(format!("Auto Scaling group {name} has instances"));
    }
    if let Some(one) = instances.first() {
        signs.push(format!("{} more instances carry its tag and run ({one})", instances.len()));
    }
    Ok(signs)
}

/// What was found out beside the view.
struct Signs {
    /// What carries the cluster's name, and no id.
    doubtful: BTreeMap<String, String>,
    /// What shows that the cluster lives.
    running: Vec<String>,
}

/// What there is to delete, and what is left alone.
struct Found {
    /// Services that are gone and own something.
    owners: Vec<Owner>,
    /// What would be done.
    rehearsal: Rehearsal,
    /// Whether the shared resources stay in any case.
    needs_shared: bool,
    /// What carries the cluster's name and is left alone, and why.
    kept: BTreeMap<String, String>,
    /// Services that wait for weir.
    waiting: Vec<String>,
    /// With `--all`: what shows that the cluster lives, in sentences.
    running: Vec<String>,
}

impl Found {
    fn of(account: &Account, cluster: Option<&Cluster>, living: &[Service], signs: Signs) -> Self {
        let Signs { doubtful, running } = signs;
        let is_wanted = |service: &Service| cluster.is_some_and(|cluster| cluster.wants(service));
        let state = account.state().clone();
        let cluster = &account.policy.cluster;
        let uids: BTreeSet<_> = living.iter().filter_map(ResourceExt::uid).collect();
        let owners: Vec<_> =
            state.observed.owners(cluster).into_iter().filter(|owner| !uids.contains(&owner.uid)).collect();
        let mut unowned = unowned(cluster, &state.observed);
        unowned.extend(doubtful);
        let needs_shared = !unowned.is_empty() || living.iter().any(is_wanted);
        let twins = state.observed.twins.iter();
        let twins =
            twins.map(|(resource, uid)| (resource.clone(), format!("belongs to another cluster of this name, {uid}")));
        let kept = twins.chain(unowned).collect();
        let waits = |service: &&Service| {
            service.metadata.deletion_timestamp.is_some()
                && service.finalizers().iter().any(|finalizer| finalizer == FINALIZER)
        };
        let waiting = living.iter().filter(waits).map(|service| owner_of(service).service.to_string()).collect();
        let wishes: Vec<_> =
            owners.iter().map(|owner| Wish::Release { owner: owner.clone(), unprotect: false }).collect();
        let script = Script { policy: &account.policy, wishes: &wishes, needs_shared, now: Instant::now() };
        let mut view = state;
        let rehearsal = rehearse(&mut view, &script);
        Self { owners, rehearsal, needs_shared, kept, waiting, running }
    }

    fn is_empty(&self) -> bool {
        self.owners.is_empty() && self.rehearsal.shared.is_empty()
    }

    /// Whether it may be deleted.
    fn check(&self, settings: &settings::Gc) -> anyhow::Result<()> {
        if settings.all && !settings.force && !self.running.is_empty() {
            let signs = self.running.join(", ");
            bail!(
                "the cluster does not seem to be gone: {signs}. Without --all what belongs to Services that are gone \
                 is found; --force deletes everything all the same"
            );
        }
        Ok(())
    }
}

/// What carries the cluster's tag, and not those of a Service: whose it is cannot be told.
fn unowned(cluster: &str, observed: &Observed) -> BTreeMap<String, String> {
    let balancers = observed.balancers.values().map(|balancer| (balancer.arn.as_str(), &balancer.tags));
    let target_groups = observed.target_groups.values().map(|group| (group.arn.as_str(), &group.tags));
    let groups = observed.groups.values().map(|group| (group.id.as_str(), &group.tags));
    let all = balancers.chain(target_groups).chain(groups);
    let lacking = all.filter(|(_, tags)| {
        ownership::owner(cluster, tags).is_none() && ownership::role(tags) != Some(Role::BackendGroup)
    });
    let why = format!("carries {CLUSTER_TAG}, but not {SERVICE_TAG} and {UID_TAG}, which would say whose it is");
    lacking.map(|(resource, _)| (resource.to_owned(), why.clone())).collect()
}

/// Takes the controller's Lease.
async fn hold_lease(client: &kube::Client, namespace: &str) -> anyhow::Result<Candidate> {
    let known = Api::<Namespace>::all(client.clone()).get_opt(namespace).await;
    if known.with_context(|| format!("cannot read the namespace {namespace} of the Lease"))?.is_none() {
        // Nobody can hold a Lease there.
        return Ok(Candidate::alone());
    }
    let advice = "it gives these things back itself after its next drift check. Stop it first, or add --force";
    let holder = lease::holder(client, namespace, Timestamp::now()).await.context("cannot read the Lease")?;
    if let Some(holder) = holder {
        bail!("a controller is at work ({holder} holds the Lease in {namespace}): {advice}");
    }
    let candidate = Candidate::stand(client.clone(), namespace.to_owned(), "weir-gc", Health::default());
    if tokio::time::timeout(TAKEOVER, candidate.claim().won()).await.is_err() {
        candidate.resign().await;
        bail!("the Lease in {namespace} cannot be had; if a controller holds it, {advice}");
    }
    Ok(candidate)
}

/// Deletes until nothing is left, nothing can be done about the rest, or the time is over. Returns what is left of each
/// UID, and of what all share under an empty one, and why.
async fn delete(
    sight: &Sight,
    cluster: Option<&Cluster>,
    timeout: Duration,
) -> anyhow::Result<BTreeMap<String, String>> {
    let Sight { account, found } = sight;
    let deadline = Instant::now() + timeout;
    let mut left = BTreeMap::new();
    let mut open = found.owners.clone();
    let mut pause = PAUSE.0;
    let mut is_stuck = false;
    loop {
        let mut again = vec![];
        for owner in open {
            let (because, is_hopeless) = match give_back(account, &owner.uid, false).await {
                Ok(waits) if waits.is_empty() => {
                    left.remove(&owner.uid);
                    continue;
                }
                Ok(waits) => {
                    // Nobody lets go of it if we cannot.
                    let is_held = waits.iter().all(|wait| matches!(wait, Wait::Detaching { .. }));
                    let because = waits.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
                    let is_hopeless = is_stuck && is_held && left.get(&owner.uid) == Some(&because);
                    (because, is_hopeless)
                }
                Err(StepError::NotLeader) => bail!("the Lease was lost; what is left is shown when this runs again"),
                Err(error) => (error.to_string(), is_hopeless(&error)),
            };
            if left.insert(owner.uid.clone(), because.clone()).as_ref() != Some(&because) {
                super::tell(&format!("{}: {because}", owner.service));
            }
            if !is_hopeless {
                again.push(owner);
            }
        }
        open = again;
        let mut failed = targets::let_go(account).await;
        let released = account.state().place(&account.policy.cluster, Instant::now());
        let is_clear = released.detach.is_empty() && released.detach_legacy.is_empty();
        // A Service may have come while AWS was waited for.
        let newcomer = match cluster {
            Some(cluster) if open.is_empty() && is_clear && !found.needs_shared => cluster.wanting().await?,
            _ => None,
        };
        if open.is_empty() && is_clear && newcomer.is_none() {
            failed.extend(release_shared(account, found).await.err());
        }
        let is_over = failed.iter().all(is_hopeless);
        is_stuck = is_over && !failed.is_empty();
        let needed = newcomer.map(|service| format!("Service {service} needs it by now"));
        match failed.first().map(ToString::to_string).or(needed) {
            Some(because) => drop(left.insert(String::new(), because)),
            None => drop(left.remove("")),
        }
        if (open.is_empty() && is_over && (is_clear || is_stuck)) || Instant::now() >= deadline {
            return Ok(left);
        }
        tokio::time::sleep(pause).await;
        pause = PAUSE.1.min(pause * 2);
    }
}

/// Deletes what all Services share, if nobody needs it any more.
async fn release_shared(account: &Account, found: &Found) -> Result<(), StepError> {
    let cluster = &account.policy.cluster;
    let steps = {
        let state = account.state();
        let is_needed = found.needs_shared || !state.observed.owners(cluster).is_empty();
        if is_needed { vec![] } else { backend::leftovers(cluster, &state.observed) }
    };
    for step in &steps {
        apply(account, step).await?;
    }
    Ok(())
}

/// Whether waiting for a few minutes changes nothing about it.
fn is_hopeless(error: &StepError) -> bool {
    match error {
        StepError::Aws(error) => error.delays().0 >= Class::Denied.delays().0,
        StepError::NotLeader => true,
        StepError::Gone(_) | StepError::SetUpFailed { .. } | StepError::NoEnd(_) => false,
    }
}

/// The answer.
#[derive(Debug, Serialize)]
struct Report {
    cluster: String,
    region: String,
    /// Whether it was told to delete.
    delete: bool,
    orphans: Vec<Orphan>,
    /// What is done for no Service in particular: what all share, and what Auto Scaling groups list that is gone.
    shared: Vec<Line>,
    /// Why some of that is still there.
    #[serde(skip_serializing_if = "Option::is_none")]
    left: Option<String>,
    /// What carries the cluster's name and is left alone, and why.
    kept: BTreeMap<String, String>,
    notes: Vec<String>,
}

/// What a Service left.
#[derive(Debug, Serialize)]
struct Orphan {
    service: String,
    uid: String,
    because: &'static str,
    steps: Vec<Line>,
    /// Why it is still there.
    #[serde(skip_serializing_if = "Option::is_none")]
    left: Option<String>,
}

impl Report {
    /// What is left of each UID, and of what all share under an empty one, is still there for a reason.
    fn of(settings: &settings::Gc, sight: &Sight, mut left: BTreeMap<String, String>) -> Self {
        let Sight { account, found } = sight;
        let because = if settings.all { "the cluster is gone" } else { "the Service is gone" };
        let orphans = found.owners.iter().zip(&found.rehearsal.parts).map(|(owner, part)| Orphan {
            service: owner.service.to_string(),
            uid: owner.uid.clone(),
            because,
            steps: lines(&without_waits(&part.acts)),
            left: left.remove(&owner.uid),
        });
        let mut notes: Vec<_> = found.waiting.iter().map(|service| {
            format!(
                "Service {service} is being deleted and waits for weir: start the controller, or take the finalizer \
                 {FINALIZER} off and run this again"
            )
        }).collect();
        notes.extend(found.running.iter().map(|sign| format!("the cluster does not seem to be gone: {sign}")));
        let orphans = orphans.collect();
        Self {
            cluster: account.policy.cluster.clone(),
            region: account.aws.region().to_owned(),
            delete: settings.delete,
            orphans,
            shared: lines(&found.rehearsal.shared),
            left: left.remove(""),
            kept: found.kept.clone(),
            notes,
        }
    }

    fn is_empty(&self) -> bool {
        self.orphans.is_empty() && self.shared.is_empty()
    }

    fn exit_code(&self) -> ExitCode {
        let is_left = self.left.is_some() || self.orphans.iter().any(|orphan| orphan.left.is_some());
        if is_left {
            ExitCode::FAILURE
        } else if self.delete || self.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(LEFT)
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a String does not fail.
        let _ = writeln!(text, "cluster {} in {}", self.cluster, self.region);
        for orphan in &self.orphans {
            let _ = writeln!(text, "\n{} ({}): {}", orphan.service, orphan.uid, orphan.because);
            write_lines(&mut text, &orphan.steps);
            orphan.left.iter().for_each(|why| write_line(&mut text, '!', &format!("not all is deleted: {why}")));
        }
        if !self.shared.is_empty() {
            let _ = writeln!(text, "\nfor no Service in particular");
            write_lines(&mut text, &self.shared);
        }
        if let Some(why) = &self.left {
            text.push('\n');
            write_line(&mut text, '!', &format!("not all is done: {why}"));
        }
        if !self.kept.is_empty() {
            let _ = writeln!(text, "\nleft alone");
            self.kept.iter().for_each(|(resource, why)| write_line(&mut text, '!', &format!("{resource} {why}")));
        }
        if !self.notes.is_empty() {
            text.push('\n');
            self.notes.iter().for_each(|note| write_line(&mut text, '!', note));
        }
        let end = match (self.is_empty(), self.delete, self.exit_code() == ExitCode::SUCCESS) {
            (true, ..) => "nothing is left",
            (false, false, _) => "nothing was changed; --delete does this",
            (false, true, true) => "done",
            (false, true, false) => "not all of this is done",
        };
        let _ = writeln!(text, "\n{end}");
        text
    }
}

/// Waits are of no interest here: everything goes.
fn without_waits(acts: &[Act]) -> Vec<Act> {
    acts.iter().filter(|act| !matches!(act, Act::Wait(_))).cloned().collect()
}
