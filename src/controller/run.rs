//! Wiring: streams in, loops side by side, and the end of all of them when one ends.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures::{StreamExt, TryStreamExt as _};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Service};
use kube::api::ListParams;
use kube::runtime::controller::{Config, Controller};
use kube::runtime::reflector::{ObjectRef, Store, store};
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, ResourceExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;

use super::account::Account;
use super::cluster_name::{Doubt, doubt};
use super::reconcile::{Context, ensure_shared, give_back, interrupted, reconcile, release_shared, retain_services};
use super::report::Reporter;
use super::standing::Standings;
use super::{detail, drift, targets};
use crate::admin::{self, Health};
use crate::aws::Aws;
use crate::aws::classify::AwsError;
use crate::cluster::event::{Events, Kind};
use crate::cluster::lease::{Candidate, Claim};
use crate::cluster::node::{read_workers, region_of, trim_node};
use crate::cluster::{cluster_uid, connect};
use crate::metrics::Metrics;
use crate::model::node::Worker;
use crate::model::ownership::Owner;
use crate::model::service::is_claimed;
use crate::process::end_on_signal;
use crate::settings;
use crate::telemetry::chain;

/// After something was missed or failed, the account is read again this soon.
const RECHECK: Duration = Duration::from_secs(3);
/// Load balancers that AWS is setting up are looked at this often; it takes one to three minutes.
const PROVISIONING: Duration = Duration::from_secs(5);
/// Why the process ends when another one may lead.
const LOST: &str = "lost the Lease: another replica may lead now; ending, so that nothing is written twice";
/// The first look comes sooner.
const FIRST_LOOK: Duration = Duration::from_millis(500);

/// Runs the controller until a signal or the loss of leadership.
///
/// # Errors
/// Why it could not start, or had to end.
pub async fn run(settings: settings::Controller) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    end_on_signal(stop.clone())?;
    let metrics = Metrics::default();
    let health = Health::default();
    let listener = TcpListener::bind(settings.listen)
        .await
        .with_context(|| format!("--listen: cannot listen on {}", settings.listen))?;
    let shown = metrics.clone();
    tokio::spawn(admin::serve(listener, health.clone(), move || shown.render()));

    let client = connect().await?;
    let instance = std::env::var("HOSTNAME").unwrap_or_else(|_| format!("weir-{}", std::process::id()));
    let mut tasks = JoinSet::new();
    let (nodes, node_changes) = watch_nodes(&mut tasks, &client, &metrics);
    let (services, service_writer) = store();
    let mut lease = candidate(&settings, &client, &instance, &health);
    let claim = lease.claim();
    metrics.follow(claim.clone());
    tokio::select! {
        () = stop.cancelled() => return finish(tasks, lease).await,
        ended = tasks.join_next() => bail!("ended before it began: {ended:?}"),
        () = lease.lost() => bail!(LOST),
        () = claim.won() => {}
    }
    // Whoever leads and cannot work is seen.
    health.set_ready(false);

    let (account, woken) = tokio::select! {
        opened = open_account(&settings, &client, &nodes, claim, &metrics) => opened?,
        () = stop.cancelled() => return finish(tasks, lease).await,
        () = lease.lost() => bail!(LOST),
    };
    let events = Events::new(client.clone(), instance);
    let reporter = Arc::new(Reporter::new(events, services.clone(), nodes.clone(), metrics.clone()));
    let context = Arc::new(Context {
        client: client.clone(),
        account: Arc::clone(&account),
        reporter: Arc::clone(&reporter),
        services: services.clone(),
        class: settings.load_balancer_class.clone(),
        claim_classless: settings.claim_classless,
        longest_wait: settings.retry_max_interval,
        metrics: metrics.clone(),
        standings: Standings::default(),
        failures: Mutex::default(),
        contests: Mutex::default(),
    });

    let mut rotation = drift::Rotation::default();
    tokio::select! {
        () = read_first(&context, &mut rotation, &stop) => {}
        () = lease.lost() => bail!(LOST),
    }
    if stop.is_cancelled() {
        return finish(tasks, lease).await;
    }
    check_name(&account)?;

    let (drifted, drifts) = unbounded_channel();
    tasks.spawn(follow_nodes(Arc::clone(&account), nodes, node_changes));
    tasks.spawn(targets::run(Arc::clone(&account), reporter, settings.retry_max_interval));
    tasks.spawn(watch_provisioning(Arc::clone(&account)));
    tasks.spawn(check_drift(Arc::clone(&context), rotation, settings.drift_interval, drifted));
    tasks.spawn(detail::walk(Arc::clone(&context.account), settings.drift_interval));

    let stream = watcher(Api::<Service>::all(client), watcher::Config::default()).default_backoff().modify(
        |service: &mut Service| {
            service.metadata.managed_fields = None;
        },
    );
    let failing = metrics.clone();
    let stream = reflector(service_writer, stream).applied_objects().inspect_err(move |error| {
        failing.watch_failed("Services");
        tracing::warn!(error = %chain(error), "cannot watch Services");
    });
    let woken = UnboundedReceiverStream::new(woken)
        .map(|owner: Owner| ObjectRef::new(&owner.service.name).within(&owner.service.namespace));
    let controller = Controller::for_stream(stream, services)
        .with_config(Config::default().concurrency(settings.concurrency))
        .reconcile_on(woken)
        .reconcile_all_on(UnboundedReceiverStream::new(drifts))
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(reconcile, interrupted, context)
        .for_each(|outcome| {
            if let Err(error) = outcome {
                tracing::debug!(%error, "a reconcile was not finished");
            }
            std::future::ready(())
        });
    health.set_ready(true);
    tokio::pin!(controller);
    tokio::select! {
        () = &mut controller => {}
        ended = tasks.join_next() => {
            stop.cancel();
            bail!("a task of the controller ended: {ended:?}");
        }
        () = lease.lost() => bail!(LOST),
    }
    finish(tasks, lease).await
}

fn candidate(settings: &settings::Controller, client: &kube::Client, instance: &str, health: &Health) -> Candidate {
    if settings.leader_elect {
        Candidate::stand(client.clone(), settings.namespace.clone(), instance, health.clone())
    } else {
        Candidate::alone()
    }
}

/// Keeps a store of the Nodes, and says when it changes.
fn watch_nodes(
    tasks: &mut JoinSet<()>,
    client: &kube::Client,
    metrics: &Metrics,
) -> (Store<Node>, watch::Receiver<()>) {
    let (nodes, writer) = store();
    let (changed, changes) = watch::channel(());
    let stream = watcher(Api::<Node>::all(client.clone()), watcher::Config::default())
        .default_backoff()
        .modify(trim_node)
        .reflect(writer);
    let metrics = metrics.clone();
    tasks.spawn(stream.for_each(move |event| {
        match event {
            // Nobody listens before this process leads.
            Ok(_) => drop(changed.send(())),
            Err(error) => {
                metrics.watch_failed("Nodes");
                tracing::warn!(error = %chain(&error), "cannot watch Nodes");
            }
        }
        std::future::ready(())
    }));
    (nodes, changes)
}

/// Keeps the account's nodes up to date.
async fn follow_nodes(account: Arc<Account>, nodes: Store<Node>, mut changes: watch::Receiver<()>) {
    while changes.changed().await.is_ok() {
        let lacks_network = {
            let mut state = account.state();
            let workers = workers_of(&nodes);
            if workers == state.workers {
                // A heartbeat, most likely.
                continue;
            }
            state.replace_workers(&account.policy.cluster, workers) || state.facts.is_none()
        };
        account.placement.notify_one();
        if lacks_network {
            account.recheck.notify_one();
        }
    }
}

/// The account of the environment's credentials, with the nodes as they are once they have been listed.
async fn open_account(
    settings: &settings::Controller,
    client: &kube::Client,
    nodes: &Store<Node>,
    claim: Claim,
    metrics: &Metrics,
) -> anyhow::Result<(Arc<Account>, UnboundedReceiver<Owner>)> {
    nodes.wait_until_ready().await.context("the watch of Nodes ended")?;
    let cluster_uid = cluster_uid(client).await?;
    let region = settings.region.clone().or_else(|| region_of(nodes.state().iter().map(Arc::as_ref)));
    let aws = Aws::connect(region, metrics, &claim).await?;
    let policy = settings.policy(cluster_uid);
    let (account, woken) = Account::new(aws, policy, settings.vpc(), claim);
    account.state().workers = workers_of(nodes);
    Ok((Arc::new(account), woken))
}

fn workers_of(nodes: &Store<Node>) -> BTreeMap<String, Worker> {
    read_workers(nodes.state().iter().map(Arc::as_ref))
}

/// Ends what is under way, then lets the Lease go: the next leader must not meet a write of ours.
async fn finish(mut tasks: JoinSet<()>, lease: Candidate) -> anyhow::Result<()> {
    tasks.shutdown().await;
    lease.resign().await;
    tracing::info!("ended");
    Ok(())
}

/// Tells what was read, and ends where that is another cluster's: going on would make everything a second time.
fn check_name(account: &Account) -> anyhow::Result<()> {
    let state = account.state();
    let (cluster, region) = (&account.policy.cluster, account.aws.region());
    let (asgs, balancers) = (state.observed.asgs.len(), state.observed.balancers.len());
    tracing::info!(cluster, region, asgs, balancers, "read the account");
    match doubt(cluster, &state) {
        Some(Doubt::Wrong(sentence)) => bail!(sentence),
        Some(Doubt::Unknown(sentence)) => tracing::warn!("{sentence}"),
        None => {}
    }
    Ok(())
}

/// Nothing is planned before the account has been read once. What hinders that is said, and tried again.
async fn read_first(context: &Context, rotation: &mut drift::Rotation, stop: &CancellationToken) {
    let longest = context.longest_wait.min(Duration::from_mins(1));
    let mut delay = Duration::from_secs(1).min(longest);
    let (mut failures, mut told) = (0, None);
    loop {
        let began = Instant::now();
        let Err(error) = drift::check(&context.account, rotation).await else {
            return context.metrics.checked(began.elapsed(), Timestamp::now());
        };
        failures += 1;
        let region = context.account.aws.region();
        tracing::error!(error = %chain(&error), region, ?delay, "cannot read the account");
        if error.is_worth_an_event(failures) && told.as_ref() != Some(&error) {
            tell_waiting(context, &error).await;
            told = Some(error);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(delay) => delay = (delay * 2).min(longest),
        }
    }
}

/// Tells Services that nobody looks at yet what they wait for.
async fn tell_waiting(context: &Context, error: &AwsError) {
    let services = match Api::<Service>::all(context.client.clone()).list(&ListParams::default()).await {
        Ok(list) => list.items,
        Err(unread) => return tracing::warn!(error = %chain(&unread), "cannot tell Services what they wait for"),
    };
    // A Region that does not exist has no endpoints, and the error does not say of which Region.
    let note = format!("the AWS account cannot be read in Region {}: {error}", context.account.aws.region());
    for service in services.iter().filter(|service| is_claimed(service, &context.class, context.claim_classless)) {
        context.reporter.tell(service, Kind::Warning, error.class.reason(), &note).await;
    }
}

/// Looks at load balancers that are being set up, all in one call, while there are any.
async fn watch_provisioning(account: Arc<Account>) {
    loop {
        account.provisioning.notified().await;
        let mut pause = FIRST_LOOK;
        loop {
            tokio::time::sleep(pause).await;
            pause = PROVISIONING.min(pause * 2);
            let pending = account.state().provisioning();
            if pending.is_empty() {
                break;
            }
            match account.aws.describe_balancers_by_arn(&pending).await {
                Ok(fresh) => {
                    let changed = account.state().record_states(fresh);
                    account.wake_owners(&changed);
                }
                Err(error) => tracing::warn!(error = %chain(&error), "cannot read load balancers"),
            }
        }
    }
}

/// Reads the account again and again, and has every Service looked at after it.
async fn check_drift(
    context: Arc<Context>,
    mut rotation: drift::Rotation,
    interval: Duration,
    drifted: UnboundedSender<()>,
) {
    let account = &context.account;
    let mut pause = interval;
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = account.recheck.notified() => tokio::time::sleep(RECHECK.min(interval)).await,
        }
        if account.fence().is_err() {
            continue;
        }
        let began = Instant::now();
        pause = match drift::check(account, &mut rotation).await {
            Ok(again) => {
                context.metrics.checked(began.elapsed(), Timestamp::now());
                if again { RECHECK.min(interval) } else { interval }
            }
            Err(error) => {
                context.metrics.drift_check_failures.inc();
                tracing::warn!(error = %chain(&error), "cannot read the account");
                RECHECK.max(interval / 10)
            }
        };
        if !account.state().provisioning().is_empty() {
            account.provisioning.notify_one();
        }
        collect_orphans(&context).await;
        let ours = |service: &Service| is_claimed(service, &context.class, context.claim_classless);
        let count = context.services.state_filter(|service| ours(service)).len();
        retain_services(&context, &context.services.state().iter().filter_map(|service| service.uid()).collect());
        // A Service that is refused has nothing, and nothing is made for it.
        let is_needed = !context.account.state().observed.owners(&context.account.policy.cluster).is_empty();
        if count == 0 {
            release_shared(&context).await;
        } else if is_needed && let Err(error) = ensure_shared(&context).await {
            tracing::warn!(error = %chain(&error), "cannot put right what all Services share");
        }
        if drifted.send(()).is_err() {
            return;
        }
    }
}

/// Gives back what belongs to Services that are gone: their finalizer was taken off by somebody else. The API server
/// itself is asked, not the cache, before anything is deleted.
async fn collect_orphans(context: &Context) {
    let owners = context.account.state().observed.owners(&context.account.policy.cluster);
    for owner in owners {
        let is_theirs = |service: &Service| service.uid().as_deref() == Some(&owner.uid);
        if context.services.find(|service| is_theirs(service)).is_some() {
            continue;
        }
        let api: Api<Service> = Api::namespaced(context.client.clone(), &owner.service.namespace);
        match api.get_opt(&owner.service.name).await {
            Ok(found) if found.as_ref().is_some_and(is_theirs) => {}
            Ok(_) => {
                tracing::info!(service = %owner.service, uid = owner.uid, "giving back what a Service left behind");
                if let Err(error) = give_back(&context.account, &owner.uid, false).await {
                    tracing::warn!(service = %owner.service, error = %chain(&error), "left for the next drift check");
                }
            }
            Err(error) => tracing::warn!(%error, "cannot ask for a Service"),
        }
    }
}
