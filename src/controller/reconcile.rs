//! One Service, from what its owner wrote to what AWS has: claim, parse, desire, plan, apply, report.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;
use kube::runtime::controller::Action;
use kube::runtime::reflector::Store;
use tokio::time::Instant;
use tracing::Instrument as _;

use super::account::{Account, StepError};
use super::apply::apply;
use super::contest::{self, Contests};
use super::desired::{Desired, Refusal, missing_zones};
use super::observed::BalancerState;
use super::plan::{COLLIDES, DELETION_PROTECTION, NOT_SET_UP, Plan, Step, Wait, teardown};
use super::report::{self, Reporter};
use super::standing::{Standings, State};
use super::{backend, detail, drift};
use crate::aws::classify::Class;
use crate::cluster::event::Kind;
use crate::cluster::service::{set_finalizer, set_hostname};
use crate::metrics::{Metrics, Reconciled};
use crate::model::annotation::{self, Annotations, Problem};
use crate::model::attribute::surplus;
use crate::model::service::{FINALIZER, ServiceSpec, is_claimed, node_labels_of, owner_of, parse};
use crate::telemetry::{chain, otlp};

/// Plans in a row before others get their turn. A first create takes two, a replacement three.
const ROUNDS: usize = 8;
/// A network that cannot be used is looked at again this often.
const NETWORK_RETRY: Duration = Duration::from_secs(30);
/// A write that the API server refuses for another reason than a conflict is tried again this often.
const REFUSED_WRITE: Duration = Duration::from_secs(15);
/// Something was lost under our feet: plan again.
const AGAIN: Duration = Duration::from_secs(1);

/// What every reconcile shares.
pub struct Context {
    /// The Kubernetes client.
    pub client: kube::Client,
    /// The account.
    pub account: Arc<Account>,
    /// Says what happened.
    pub reporter: Arc<Reporter>,
    /// All Services.
    pub services: Store<Service>,
    /// The class we claim.
    pub class: String,
    /// Whether Services without class are ours too.
    pub claim_classless: bool,
    /// Longest wait after a failure.
    pub longest_wait: Duration,
    /// Metrics.
    pub metrics: Metrics,
    /// How Services stand.
    pub standings: Standings,
    /// Failures by UID.
    pub failures: Mutex<BTreeMap<String, Failure>>,
    /// Writes that somebody undoes.
    pub contests: Mutex<Contests>,
}

/// Failures of one Service in a row.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Of what its owner wrote. An edit ends the wait.
    fingerprint: u64,
    count: u32,
    until: Instant,
    /// Steps that wait alone, since nothing depends on them. None: the whole Service waits.
    alone: Vec<Step>,
}

/// A reconcile that was cut short. Tried again.
#[derive(Debug, thiserror::Error)]
pub enum Interrupted {
    /// By the API server.
    #[error("the API server refused a write to the Service")]
    Refused(#[from] kube::Error),
    /// By the loss of leadership.
    #[error(transparent)]
    NotLeader(StepError),
}

/// How a reconcile ended.
enum Ending {
    Settled,
    Waiting,
    Refused(Option<Duration>),
    Failed(Failed),
}

/// What failed, and the steps that need not hold up the others until they are tried again.
struct Failed {
    error: StepError,
    /// Sentences about what else failed.
    others: Vec<String>,
    alone: Vec<Step>,
}

impl From<StepError> for Ending {
    fn from(error: StepError) -> Self {
        Self::Failed(Failed { error, others: vec![], alone: vec![] })
    }
}

impl Context {
    /// The client for a write to a Service.
    fn writer(&self) -> Result<&kube::Client, Interrupted> {
        self.account.fence().map_err(Interrupted::NotLeader)?;
        Ok(&self.client)
    }

    fn is_ours(&self, service: &Service) -> bool {
        is_claimed(service, &self.class, self.claim_classless) && service.metadata.deletion_timestamp.is_none()
    }
}

/// Reconciles one Service.
///
/// # Errors
/// What the API server refused.
pub async fn reconcile(service: Arc<Service>, context: Arc<Context>) -> Result<Action, Interrupted> {
    let uid = service.uid().unwrap_or_default();
    let is_ours = context.is_ours(&service);
    let has_finalizer = service.finalizers().iter().any(|finalizer| finalizer == FINALIZER);
    let owns = !context.account.state().observed.of(&context.account.policy.cluster, &uid).is_empty();
    if !is_ours && !has_finalizer && !owns {
        return Ok(Action::await_change());
    }
    if is_ours && owns && !has_finalizer {
        // Somebody took it off: whatever else waits, the Service must not vanish. The write brings it here again.
        set_finalizer(context.writer()?, &service, true).await?;
        return Ok(Action::await_change());
    }
    let fingerprint = fingerprint(&service);
    let (rest, alone) = remaining_wait(&context, &uid, fingerprint).unzip();
    if let Some(rest) = rest
        && alone.as_ref().is_none_or(Vec::is_empty)
    {
        // What failed waits; the hostname does not.
        if is_ours
            && let Ok(spec) = parse(&service)
            && let Ok((desired, plan)) = decide(&context, &spec)
        {
            publish_hostname(&service, &context, &desired, &plan, &Failures::default()).await?;
        }
        return Ok(Action::requeue(rest));
    }
    let waiting = Failures { steps: alone.unwrap_or_default(), errors: vec![] };
    let began = Instant::now();
    let _running = Running::new(&context.metrics);
    let is_settled = context.standings.is_settled(&uid, fingerprint);
    let because = match (is_ours, service.metadata.deletion_timestamp.is_some()) {
        (true, _) if is_settled => "it has not changed since it was settled, but AWS or the network has",
        (true, _) => "the Service asks for it",
        (false, true) => "the Service is being deleted",
        (false, false) => "the Service is no longer of this controller's class",
    };
    let trace_id = tracing::field::Empty;
    let span = tracing::info_span!(parent: None, "reconcile", service = %owner_of(&service).service, because, trace_id);
    otlp::describe_reconcile(&span, &owner_of(&service).service);
    let work =
        async { if is_ours { serve(&service, &context, waiting).await } else { release(&service, &context).await } };
    let ending = work.instrument(span.clone()).await;
    context.account.state().forget_promises(&owner_of(&service).service);
    let ending = ending?;
    let result = match &ending {
        Ending::Settled => "settled",
        Ending::Waiting => "waiting",
        Ending::Refused(_) => "refused",
        Ending::Failed(_) => "failed",
    };
    otlp::describe_outcome(&span, result);
    context.metrics.reconciles.get_or_create(&Reconciled { result }).inc();
    context.metrics.reconcile_duration.observe(began.elapsed().as_secs_f64());
    note_standing(&context, &service, is_ours, &ending, fingerprint);
    Ok(match ending {
        Ending::Failed(failure) => failed(&service, &context, fingerprint, failure).await,
        Ending::Refused(delay) => delay.map_or_else(Action::await_change, Action::requeue),
        Ending::Settled | Ending::Waiting if let Some(rest) = rest => Action::requeue(rest),
        Ending::Waiting => Action::await_change(),
        Ending::Settled => {
            failures(&context).remove(&uid);
            context.reporter.forget(&uid, report::is_passing);
            let is_over = context.reporter.forget(&uid, report::is_trouble);
            if is_ours && (is_over || context.reporter.owes(&service, report::RECOVERED)) {
                context.reporter.forget(&uid, |reason| reason == report::RECOVERED);
                let note = "what hindered it is over; all that the Service asks for is in place";
                context.reporter.tell(&service, Kind::Normal, report::RECOVERED, note).await;
            }
            Action::await_change()
        }
    })
}

/// As long as it lives, a reconcile is under way.
struct Running<'a>(&'a Metrics);

impl<'a> Running<'a> {
    fn new(metrics: &'a Metrics) -> Self {
        metrics.reconciles_running.inc();
        Self(metrics)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.reconciles_running.dec();
    }
}

fn note_standing(context: &Context, service: &Service, is_ours: bool, ending: &Ending, fingerprint: u64) {
    let uid = service.uid().unwrap_or_default();
    let state = match ending {
        Ending::Settled if !is_ours => return context.standings.retain(|known| known != uid, &context.metrics),
        _ if !is_ours => State::Deleting,
        Ending::Settled => State::Ready,
        Ending::Waiting => State::Waiting,
        Ending::Refused(_) => State::Refused,
        Ending::Failed(_) => State::Failed,
    };
    context.standings.note(&uid, &owner_of(service).service, state, fingerprint, &context.metrics);
}

/// What to do when a reconcile was interrupted: a conflict passes by itself.
pub fn interrupted(_: Arc<Service>, error: &Interrupted, _: Arc<Context>) -> Action {
    match error {
        Interrupted::Refused(kube::Error::Api(status)) if status.code == 409 => Action::requeue(AGAIN),
        Interrupted::NotLeader(_) => Action::requeue(AGAIN),
        Interrupted::Refused(refused) => {
            tracing::warn!(error = %chain(refused), "the API server refused a write to a Service");
            Action::requeue(REFUSED_WRITE)
        }
    }
}

async fn serve(service: &Service, context: &Context, mut failures: Failures) -> Result<Ending, Interrupted> {
    let none = BTreeMap::new();
    let mut warnings = Annotations(service.metadata.annotations.as_ref().unwrap_or(&none)).warnings();
    let parsed = parse(service);
    warnings.extend(parsed.iter().flat_map(|spec| spec.warnings.clone()));
    if !warnings.is_empty() {
        context.reporter.tell(service, Kind::Warning, report::IGNORED, &warnings.join("; ")).await;
    }
    let spec = match parsed {
        Ok(spec) => spec,
        Err(problems) => return Ok(refuse(service, context, &problems).await),
    };
    keep_serving(service, context);
    let mut read_again = false;
    for round in 0..ROUNDS {
        if let Some(error) = ensure_known(context, &spec).await {
            return Ok(error.into());
        }
        if failures.errors.is_empty() {
            let unread = detail::learn(&context.account, &spec).await;
            failures.errors.extend(unread.into_iter().map(StepError::from));
        }
        let (desired, mut plan) = match decide(context, &spec) {
            Ok(decided) => decided,
            // They may name a subnet that was made after the network was read.
            Err(Refusal::Service(problems)) if !read_again && is_about_new_subnets(service, context, &problems) => {
                read_again = true;
                drift::read_network(&context.account).await;
                continue;
            }
            Err(Refusal::Service(problems)) => return Ok(refuse(service, context, &problems).await),
            Err(Refusal::Network(sentence)) => {
                let retry = NETWORK_RETRY.min(context.longest_wait);
                context.reporter.tell(service, Kind::Warning, report::NETWORK, &sentence).await;
                let read = context.account.state().network_read;
                // A check has every Service looked at again: one that has just been made must not ring for the next.
                if read.is_none_or(|read| read.elapsed() >= retry) {
                    context.account.recheck.notify_one();
                }
                return Ok(Ending::Refused(Some(retry)));
            }
        };
        // Only now that the Service is known to be good: a refused one leaves no trace.
        if round == 0 && !set_finalizer(context.writer()?, service, true).await? {
            return Ok(Ending::Settled);
        }
        let held = match ensure_shared(context).await {
            Ok(held) => held,
            Err(error) => return Ok(error.into()),
        };
        // Before anything is taken away, and whatever else fails.
        let usable = publish_hostname(service, context, &desired, &plan, &failures).await?;
        let makes_groups = plan.steps.iter().any(|step| matches!(step, Step::CreateTargetGroup(_)));
        let _coming = makes_groups.then(|| context.account.announce());
        tell_removed_listeners(service, context, &plan).await;
        tell_interruptions(service, context, &desired, &plan).await;
        let contested = hold_contested(service, context, &mut plan, held).await;
        let Progress { taken, ended } = carry_out(&context.account, &plan, &mut failures).await;
        note_taken(service, context, &taken);
        if let Some(error) = ended {
            return Ok(error.into());
        }
        if taken.is_empty() {
            tell_node_groups(service, context).await;
            tell_missing_zones(service, context, &spec, &desired).await;
            tell_kept_addresses(service, context, &desired).await;
            if let Some(error) = give_up_setting_up(context, &plan) {
                return Ok(error.into());
            }
            return Ok(match failures.into_failed() {
                Some(failed) => Ending::Failed(failed),
                None if contested => Ending::Waiting,
                None if usable && plan.waits.is_empty() => {
                    context.account.state().observed.remade.remove(&desired.balancer.name);
                    Ending::Settled
                }
                None => {
                    tell_waits(service, context, &plan.waits).await;
                    Ending::Waiting
                }
            });
        }
    }
    Ok(Ending::Refused(Some(AGAIN)))
}

/// Independent steps that failed in one reconcile, or wait since an earlier one. They are planned again in its later
/// rounds, and not tried again.
#[derive(Default)]
struct Failures {
    steps: Vec<Step>,
    errors: Vec<StepError>,
}

impl Failures {
    /// Whether a step must not be taken now: it failed, or it needs one that did.
    fn forbid(&self, step: &Step) -> bool {
        self.steps.iter().any(|failed| failed == step || step.needs(failed))
    }

    /// What failed, the gravest first: what its owner or the account's must repair goes before what passes by itself.
    fn into_failed(self) -> Option<Failed> {
        let Self { steps: alone, mut errors } = self;
        let is_grave = |error: &StepError| matches!(error, StepError::Aws(error) if error.is_worth_an_event(1));
        let gravest = errors.iter().position(is_grave).unwrap_or_default();
        if errors.is_empty() {
            return None;
        }
        let error = errors.remove(gravest);
        let first = error.to_string();
        let mut others: Vec<_> = errors.iter().map(ToString::to_string).filter(|other| *other != first).collect();
        others.sort();
        others.dedup();
        Some(Failed { error, others, alone })
    }
}

/// What became of a plan.
struct Progress<'a> {
    /// Steps that were taken.
    taken: Vec<&'a Step>,
    /// What kept the rest back.
    ended: Option<StepError>,
}

/// Takes a plan's steps. What does not depend on a step that failed is done all the same.
async fn carry_out<'a>(account: &Account, plan: &'a Plan, failures: &mut Failures) -> Progress<'a> {
    let mut taken = vec![];
    for step in &plan.steps {
        if failures.forbid(step) {
            continue;
        }
        match apply(account, step).await {
            Ok(()) => taken.push(step),
            Err(error @ StepError::Aws(_)) if step.is_independent() => {
                failures.steps.push(step.clone());
                failures.errors.push(error);
            }
            Err(error) => return Progress { taken, ended: Some(error) },
        }
    }
    Progress { taken, ended: None }
}

/// Takes steps that somebody undoes again and again out of a plan, and says so, also of those that all Services share.
/// Returns whether there were any.
async fn hold_contested(service: &Service, context: &Context, plan: &mut Plan, shared: BTreeSet<String>) -> bool {
    let (uid, fingerprint) = (service.uid().unwrap_or_default(), fingerprint(service));
    let mut notes = contests(context).hold(&uid, fingerprint, &mut plan.steps, Instant::now());
    notes.extend(shared);
    context.reporter.tell_all(service, Kind::Warning, report::CONTESTED, &notes).await;
    !notes.is_empty()
}

/// Takes note of steps that were taken, whatever else failed: what is put right again and again is contested, and what
/// is put right although nobody edited the Service had drifted.
fn note_taken(service: &Service, context: &Context, taken: &[&Step]) {
    let (uid, fingerprint) = (service.uid().unwrap_or_default(), fingerprint(service));
    let is_repair = context.standings.is_settled(&uid, fingerprint);
    let mut contests = contests(context);
    for step in taken.iter().filter(|step| step.is_write()) {
        contests.note(&uid, fingerprint, step, Instant::now());
        if is_repair {
            context.metrics.drift_repairs.inc();
        }
    }
}

/// A listener may have been made by hand: whoever did that must learn where it went.
async fn tell_removed_listeners(service: &Service, context: &Context, plan: &Plan) {
    for step in &plan.steps {
        let Step::DeleteListener { balancer, port, .. } = step else { continue };
        let arn = {
            let state = context.account.state();
            let listeners = state.observed.balancers.get(balancer).and_then(|balancer| balancer.listeners.as_ref());
            listeners.and_then(|listeners| listeners.get(port)).map(|listener| listener.arn.to_string())
        };
        let arn = arn.unwrap_or_default();
        let note =
            format!("removing listener {port} of load balancer {balancer} ({arn}): the Service does not ask for it");
        context.reporter.tell(service, Kind::Normal, report::LISTENER_REMOVED, &note).await;
    }
}

/// Some changes cut connections: the owner hears of it before they do.
async fn tell_interruptions(service: &Service, context: &Context, desired: &Desired, plan: &Plan) {
    for step in &plan.steps {
        match step {
            Step::SetSubnets { balancer, subnets, .. } => {
                let enabled =
                    context.account.state().observed.balancers.get(balancer).map(|known| known.subnets.clone());
                let enabled = enabled.unwrap_or_default();
                let wanted = desired.balancer.subnets.iter().filter(|(zone, _)| !subnets.contains_key(*zone));
                let swaps: Vec<_> = wanted
                    .filter_map(|(zone, new)| {
                        Some(format!("{} to {} in {zone}", enabled.get(zone)?.subnet, new.subnet))
                    })
                    .collect();
                if !swaps.is_empty() {
                    let note = format!(
                        "load balancer {balancer} moves from subnet {}: AWS swaps no subnet in one call, so each of \
                         these zones is left out first, which ends the connections through it, and comes back with \
                         its new subnet",
                        swaps.join(", ")
                    );
                    context.reporter.tell(service, Kind::Normal, report::SUBNET_SWAP, &note).await;
                }
            }
            Step::DeleteBalancer { because: COLLIDES, .. } => {
                context.reporter.tell(service, Kind::Warning, report::INTERRUPTION, &step.to_string()).await;
            }
            Step::DeleteBalancer { name, because: NOT_SET_UP } => {
                let state = context.account.state().observed.balancers.get(name).map(|known| known.state.clone());
                let Some(BalancerState::Failed(reason)) = state else { continue };
                let note =
                    format!("AWS could not set up load balancer {name}: {reason}; it is deleted and made again, once");
                context.reporter.tell(service, Kind::Warning, report::FAILED, &note).await;
            }
            _ => {}
        }
    }
}

/// Where AWS could not set up a load balancer twice in a row: the failure to wait after. Then it is made again, once.
fn give_up_setting_up(context: &Context, plan: &Plan) -> Option<StepError> {
    plan.waits.iter().find_map(|wait| match wait {
        Wait::SetUpFailed { balancer, reason } => {
            context.account.state().observed.remade.remove(balancer);
            Some(StepError::SetUpFailed { balancer: balancer.clone(), reason: reason.clone() })
        }
        _ => None,
    })
}

/// A choice between several security groups of the nodes is worth a word.
async fn tell_node_groups(service: &Service, context: &Context) {
    let facts = context.account.state().facts.clone();
    let warnings = facts.map(|facts| facts.node_groups.warnings).unwrap_or_default();
    context.reporter.tell_all(service, Kind::Warning, report::NODE_GROUPS, &warnings).await;
}

/// Nodes in a zone in which the load balancer has no subnet get no traffic, unless it crosses zones.
async fn tell_missing_zones(service: &Service, context: &Context, spec: &ServiceSpec, desired: &Desired) {
    let missing = missing_zones(context.account.state().workers.values(), spec, desired);
    let balancer = &desired.balancer.name;
    let note = |zone: &String| {
        format!(
            "zone {zone} has nodes, and load balancer {balancer} has no subnet there, so that they get no traffic; add a \
             subnet of that zone, or set load_balancing.cross_zone.enabled=true in aws-load-balancer-attributes"
        )
    };
    let notes = missing.iter().map(note).collect();
    context.reporter.tell_all(service, Kind::Warning, report::ZONE_MISSING, &notes).await;
}

/// Secondary addresses that are not asked for stay: AWS would refuse to take them back, with all else in the same call.
async fn tell_kept_addresses(service: &Service, context: &Context, desired: &Desired) {
    let name = &desired.balancer.name;
    let kept = {
        let state = context.account.state();
        let attributes = state.observed.balancers.get(name).and_then(|known| known.attributes.as_ref());
        attributes.and_then(|attributes| surplus(&desired.balancer.attributes, attributes))
    };
    let note = kept.map(|(present, wanted)| {
        format!(
            "load balancer {name} has {present} secondary addresses in each zone, and {wanted} are asked for; AWS takes \
             none back, so it keeps them. Ask for {present} in aws-load-balancer-attributes, or make the Service again"
        )
    });
    context.reporter.tell_all(service, Kind::Warning, report::ADDRESSES_KEPT, &note.into_iter().collect()).await;
}

fn decide(context: &Context, spec: &ServiceSpec) -> Result<(Desired, Plan), Refusal> {
    let account = &context.account;
    let mut state = account.state();
    let (desired, plan) = state.decide(spec, &account.policy)?;
    if plan.waits.iter().any(|wait| matches!(wait, Wait::Provisioning { .. })) {
        account.provisioning.notify_one();
    }
    let takes_over = |wait: &Wait| matches!(wait, Wait::Targets { .. } | Wait::Replacement { .. });
    if plan.waits.iter().any(takes_over) {
        let served = |name: &String| state.observed.target_groups.get(name).is_some_and(|group| group.served);
        let names = desired.target_groups.values().map(|group| group.name.clone());
        let unserved: Vec<_> = names.filter(|name| !served(name)).collect();
        state.awaited.extend(unserved);
        account.placement.notify_one();
    }
    Ok((desired, plan))
}

/// Reads what a plan for the Service needs and nobody has read yet.
async fn ensure_known(context: &Context, spec: &ServiceSpec) -> Option<StepError> {
    if let Err(error) = drift::learn_named(&context.account, spec).await {
        return Some(error.into());
    }
    ensure_listeners_known(context, spec).await
}

/// Reads the listeners of the Service's load balancers where nobody has yet.
async fn ensure_listeners_known(context: &Context, spec: &ServiceSpec) -> Option<StepError> {
    let unread: Vec<_> = {
        let state = context.account.state();
        let slice = state.observed.of(&context.account.policy.cluster, &spec.owner.uid);
        let unread = slice.balancers.iter().filter(|balancer| balancer.listeners.is_none());
        unread.map(|balancer| (balancer.name.clone(), balancer.arn.clone())).collect()
    };
    for (name, arn) in unread {
        match context.account.aws.describe_listeners_of(&arn).await {
            Ok(listeners) => {
                if let Some(balancer) = context.account.state().observed.balancers.get_mut(&name) {
                    balancer.listeners = Some(listeners);
                }
            }
            Err(error) => return Some(error.into()),
        }
    }
    None
}

/// Writes the hostname once the load balancer can be used; until then it stays what it is, so that nobody looks up a
/// name that does not resolve yet and remembers the answer (CAPA#5032). Returns whether it can be used.
async fn publish_hostname(
    service: &Service,
    context: &Context,
    desired: &Desired,
    plan: &Plan,
    failures: &Failures,
) -> Result<bool, Interrupted> {
    // One that replaces another comes with all of its listeners and targets. A listener that AWS refuses does not keep
    // the others' clients out.
    let coming = |step: &&Step| matches!(step, Step::CreateListener { .. }) && !failures.forbid(step);
    let lacks_listener = plan.steps.iter().any(|step| coming(&step));
    if lacks_listener || plan.waits.iter().any(|wait| matches!(wait, Wait::Replacement { .. })) {
        return Ok(false);
    }
    let balancer = context.account.state().observed.balancers.get(&desired.balancer.name).cloned();
    let Some(balancer) = balancer else { return Ok(false) };
    let has_listener = balancer.listeners.as_ref().is_some_and(|listeners| !listeners.is_empty());
    if balancer.state != BalancerState::Active || !has_listener {
        return Ok(false);
    }
    let is_new = set_hostname(context.writer()?, service, Some(&balancer.dns_name)).await?;
    if is_new || context.reporter.owes(service, report::READY) {
        let note =
            format!("load balancer {} is reachable at {}", balancer.name, balancer.dns_name.to_ascii_lowercase());
        context.reporter.tell(service, Kind::Normal, report::READY, &note).await;
    }
    Ok(true)
}

async fn tell_waits(service: &Service, context: &Context, waits: &[Wait]) {
    let mut sentences: Vec<_> = waits.iter().map(ToString::to_string).collect();
    sentences.dedup();
    if !sentences.is_empty() {
        context.reporter.tell(service, Kind::Normal, report::WAITING, &sentences.join("; ")).await;
    }
}

/// Which nodes the Service asks for is unknown where just that is wrong; then its targets stay what they are.
fn keep_serving(service: &Service, context: &Context) {
    let uid = service.uid().unwrap_or_default();
    let Some(nodes) = node_labels_of(service) else { return };
    if context.account.state().keep_serving(&context.account.policy.cluster, &uid, &nodes) {
        context.account.placement.notify_one();
    }
}

async fn refuse(service: &Service, context: &Context, problems: &[Problem]) -> Ending {
    keep_serving(service, context);
    context.reporter.tell(service, Kind::Warning, report::INVALID, &sentence_of(problems)).await;
    Ending::Refused(None)
}

fn sentence_of(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Whether a Service is to be refused for subnets it names, and has not been for the same reason before.
fn is_about_new_subnets(service: &Service, context: &Context, problems: &[Problem]) -> bool {
    problems.iter().any(|problem| problem.field == annotation::SUBNETS)
        && !context.reporter.has_told(service, report::INVALID, &sentence_of(problems))
}

/// Gives back everything a Service has, then the Service itself.
async fn release(service: &Service, context: &Context) -> Result<Ending, Interrupted> {
    let uid = service.uid().unwrap_or_default();
    if service.metadata.deletion_timestamp.is_some() {
        // Of the last importance: what costs money goes all the same.
        if let Err(error) = set_hostname(context.writer()?, service, None).await {
            tracing::warn!(error = %chain(&error), "cannot clear the hostname");
        }
    }
    match give_back(&context.account, &uid, unprotects(service)).await {
        Ok(waits) if waits.is_empty() => {}
        Ok(waits) => {
            tell_waits(service, context, &waits).await;
            return Ok(Ending::Waiting);
        }
        Err(error) => return Ok(error.into()),
    }
    release_shared(context).await;
    if service.finalizers().iter().any(|finalizer| finalizer == FINALIZER) {
        context
            .reporter
            .tell(service, Kind::Normal, report::DELETED, "the load balancer and all that belongs to it is gone")
            .await;
        set_finalizer(context.writer()?, service, false).await?;
    }
    context.reporter.forget(&uid, |_| true);
    contests(context).forget(&uid);
    Ok(Ending::Settled)
}

/// Whether a Service's owner says in so many words that its load balancer may be deleted.
pub fn unprotects(service: &Service) -> bool {
    let none = BTreeMap::new();
    let annotations = Annotations(service.metadata.annotations.as_ref().unwrap_or(&none));
    let asked = annotations.map(annotation::ATTRIBUTES).unwrap_or_default();
    asked.get(DELETION_PROTECTION).is_some_and(|value| value == "false")
}

/// Deletes what the Service with this UID owns. Returns what is waited for; nothing means that nothing is left.
///
/// # Errors
/// The step that failed.
pub async fn give_back(account: &Account, uid: &str, unprotect: bool) -> Result<Vec<Wait>, StepError> {
    let mut failures = Failures::default();
    for _ in 0..ROUNDS {
        let plan = teardown(&account.state().observed.of(&account.policy.cluster, uid), unprotect);
        if plan.steps.is_empty() {
            return Ok(plan.waits);
        }
        if let Some(error) = carry_out(account, &plan, &mut failures).await.ended {
            return Err(error);
        }
        if let Some(failed) = std::mem::take(&mut failures).into_failed() {
            return Err(failed.error);
        }
    }
    Err(StepError::NoEnd(ROUNDS))
}

/// Makes what all Services share: the backend group, and the rules that admit it to the nodes. Returns sentences about
/// steps that wait, since somebody undoes them again and again.
///
/// # Errors
/// The step that failed.
pub async fn ensure_shared(context: &Context) -> Result<BTreeSet<String>, StepError> {
    let account = &context.account;
    let _one_at_a_time = account.shared.lock().await;
    let mut held = BTreeSet::new();
    // Rules name the group by the id that AWS gives it.
    for _ in 0..2 {
        let mut steps = {
            let state = account.state();
            let Some(facts) = &state.facts else { return Ok(held) };
            backend::missing(&account.policy, &state.observed, &facts.node_groups.chosen)
        };
        held = contests(context).hold(contest::SHARED, 0, &mut steps, Instant::now());
        for step in &steps {
            apply(account, step).await?;
            // Without the group nothing else can be done: it never waits.
            if !matches!(step, Step::CreateGroup { .. }) {
                contests(context).note(contest::SHARED, 0, step, Instant::now());
            }
        }
    }
    Ok(held)
}

/// Gives back what all Services share, once there is none left. What fails is tried again with the next drift check.
pub async fn release_shared(context: &Context) {
    let account = &context.account;
    let cluster = &account.policy.cluster;
    let _one_at_a_time = account.shared.lock().await;
    let steps = {
        let state = account.state();
        let wanted = context.services.find(|service| context.is_ours(service)).is_some();
        if wanted || !state.observed.owners(cluster).is_empty() {
            return;
        }
        backend::leftovers(cluster, &state.observed)
    };
    // Nobody else undid what is taken away here.
    contests(context).forget(contest::SHARED);
    for step in &steps {
        if let Err(error) = apply(account, step).await {
            tracing::warn!(%step, error = %chain(&error), "left for the next drift check");
            return;
        }
    }
}

/// Forgets Services that are gone without our finalizer having been asked: all but those with these UIDs.
pub fn retain_services(context: &Context, uids: &BTreeSet<String>) {
    context.standings.retain(|uid| uids.contains(uid), &context.metrics);
    context.reporter.retain_services(uids);
    contests(context).retain(uids);
    failures(context).retain(|uid, _| uids.contains(uid));
}

fn contests(context: &Context) -> MutexGuard<'_, Contests> {
    context.contests.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failures(context: &Context) -> MutexGuard<'_, BTreeMap<String, Failure>> {
    context.failures.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is left of the wait after a failure, and the steps that wait alone. An edit of the Service ends it.
fn remaining_wait(context: &Context, uid: &str, fingerprint: u64) -> Option<(Duration, Vec<Step>)> {
    let mut failures = failures(context);
    let failure = failures.get(uid)?;
    if failure.fingerprint != fingerprint {
        failures.remove(uid);
        return None;
    }
    let rest = failure.until.saturating_duration_since(Instant::now());
    (!rest.is_zero()).then(|| (rest, failure.alone.clone()))
}

/// Notes a failure down. Returns how many there have been in a row, and the wait.
fn put_off(
    service: &Service,
    context: &Context,
    fingerprint: u64,
    (first, longest): (Duration, Duration),
    alone: Vec<Step>,
) -> (u32, Duration) {
    let uid = service.uid().unwrap_or_default();
    let mut failures = failures(context);
    let count = failures.get(&uid).map_or(0, |failure| failure.count) + 1;
    let delay = first.saturating_mul(2u32.saturating_pow(count - 1)).min(longest).min(context.longest_wait);
    failures.insert(uid, Failure { fingerprint, count, until: Instant::now() + delay, alone });
    (count, delay)
}

async fn failed(service: &Service, context: &Context, fingerprint: u64, failure: Failed) -> Action {
    let error = match failure.error {
        StepError::Aws(error) => error,
        error @ StepError::SetUpFailed { .. } => {
            // Only people can change what hinders AWS.
            let (_, delay) = put_off(service, context, fingerprint, Class::Denied.delays(), vec![]);
            let note = format!("{error}. It is tried again at growing intervals, and when the Service is edited");
            context.reporter.tell(service, Kind::Warning, report::FAILED, &note).await;
            return Action::requeue(delay);
        }
        error => {
            tracing::info!(service = %owner_of(service).service, %error, "plan again");
            return Action::requeue(AGAIN);
        }
    };
    let (count, delay) = put_off(service, context, fingerprint, error.delays(), failure.alone);
    if error.is_worth_an_event(count) {
        // An Event for each: a note has an end, and what stands there last would be cut off.
        let notes = std::iter::once(error.to_string()).chain(failure.others).collect();
        context.reporter.tell_all(service, Kind::Warning, error.class.reason(), &notes).await;
    }
    tracing::warn!(service = %owner_of(service).service, failures = count, ?delay, error = %chain(&error), "failed");
    // Where it may have taken effect, or the view may be wrong, look before the next try.
    if matches!(error.class, Class::Transient | Class::Exists | Class::Missing | Class::Invalid) {
        context.account.recheck.notify_one();
    }
    Action::requeue(delay)
}

/// Of what an owner can edit. Our own writes (finalizer, status) do not change it.
fn fingerprint(service: &Service) -> u64 {
    let mut hasher = DefaultHasher::new();
    format!("{:?}", service.spec).hash(&mut hasher);
    service.metadata.annotations.hash(&mut hasher);
    service.metadata.deletion_timestamp.is_some().hash(&mut hasher);
    hasher.finish()
}
