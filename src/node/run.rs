//! Wiring of a node: watches in, rules out, and what stands beside them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use futures::stream::{self, BoxStream};
use futures::{FutureExt as _, Stream, StreamExt as _, future};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::Api;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::addresses::{follow, primary_addresses};
use super::agent::Agent;
use super::conntrack::ServingByFrontend;
use super::health::NodeHealth;
use super::health_check_port::{self, HealthCheckPorts};
use super::index::Index;
use super::kernel::Table;
use super::metrics::{NodeMetrics, trigger_time};
use super::ranges::ServiceRanges;
use super::ruleset::Facts;
use super::service::{Mode, key};
use super::{eligibility, kube_proxy, sysctl};
use crate::admin::{self, Health};
use crate::cluster::connect;
use crate::cluster::event::{Events, Kind};
use crate::metrics::catalogue::count;
use crate::model::id::ServiceKey;
use crate::netfilter::netlink::{Channel, Notice, Watch};
use crate::netfilter::script::TABLE;
use crate::netfilter::{Family, flows};
use crate::process::end_on_signal;
use crate::settings;
use crate::telemetry::chain;

/// All of the kernel is compared with what it should hold this often, in case somebody has changed our tables.
const COMPARE: Duration = Duration::from_hours(1);
/// Pause before the kernel's notices are asked for again.
const REOPEN: Duration = Duration::from_secs(5);
/// Events that wait are taken up together.
const BURST: usize = 4096;
/// Unused chains are looked for this often while there are any.
const CLEAR: Duration = Duration::from_secs(1);

/// Something that happened.
enum Happening {
    Service(Box<Event<Service>>),
    Slice(Box<Event<EndpointSlice>>),
    Node(Box<Event<Node>>),
    Range(Box<Event<ServiceCIDR>>),
    /// There are no ServiceCIDRs in this cluster.
    NoRanges,
    Addresses(BTreeSet<IpAddr>),
    Kernel(Notice),
    /// From now on the kernel tells what others do to our tables.
    Watching,
}

/// Deletes our tables.
///
/// # Errors
/// One of them is still there.
pub fn clean_up(settings: &settings::Node) -> anyhow::Result<()> {
    // Of both families, whatever this host speaks now; and one that fails does not keep the other.
    let delete = |family| -> anyhow::Result<()> {
        let mut table = Table::open(family, settings.masquerade_mark).context("cannot open a netlink socket")?;
        table.delete().with_context(|| format!("cannot delete the {family} table"))
    };
    let outcomes = Family::ALL.map(delete);
    outcomes.into_iter().collect()
}

/// Runs a node until a signal.
///
/// # Errors
/// Why it could not start, or had to end.
pub async fn run(settings: settings::Node) -> anyhow::Result<()> {
    if settings.node_name.is_empty() {
        bail!("--node-name or NODE_NAME: the name of this node's Node object is missing");
    }
    let stop = CancellationToken::new();
    end_on_signal(stop.clone())?;
    let client = connect().await?;
    if let Some(warning) = settings.nodeport_addresses.warning() {
        tracing::warn!("{warning}");
    }
    set_sysctls(&settings);
    if settings.mode == settings::NodeMode::Replace {
        tell_of_kube_proxy();
    }
    let tables = open_tables(settings.masquerade_mark)?;
    let families: Vec<_> = tables.iter().map(Table::family).collect();
    let health = NodeHealth::new(families.iter().copied(), settings.sync_period * 2);
    let metrics = NodeMetrics::default();
    let ready = Health::default();
    serve(&settings, &health, &metrics, &ready).await?;

    let ours: Vec<_> = tables.iter().map(Table::port).collect();
    let index = Index::new(settings.node_name.clone(), settings.proxy_mode(), settings.external_ips);
    let facts = first_facts(&settings);
    let agent = Agent::new(tables, index, facts, health.clone(), metrics.clone(), settings.sync_period)
        .context("cannot read the rules that are there")?;
    let (rules_are_in, watch_begins) = oneshot::channel();
    let addresses = follow::addresses().await?;
    let happenings = happenings(&client, &settings, &metrics, addresses, notices(watch_begins, ours));
    let (sweeps, swept) = mpsc::unbounded_channel();
    tokio::spawn(sweep(swept, metrics.clone(), families));
    let driver = Driver {
        agent,
        lists: Lists::default(),
        node: None,
        local: BTreeSet::new(),
        ports: HealthCheckPorts::new(health.clone()),
        events: Events::new(client, settings.node_name.clone()),
        complained: BTreeSet::new(),
        listening: BTreeSet::new(),
        started: Timestamp::now(),
        triggers: Vec::new(),
        last_sync: None,
        rules_are_in: Some(rules_are_in),
        health,
        metrics,
        ready,
        sweeps,
        settings,
    };
    tokio::select! {
        outcome = driver.drive(happenings) => outcome,
        () = stop.cancelled() => {
            tracing::info!("ended; the rules stay");
            Ok(())
        }
    }
}

/// Tables of the families that this host has (P69).
fn open_tables(mark: u32) -> anyhow::Result<Vec<Table>> {
    // The file is there if, and only if, the kernel speaks IPv6 in this network namespace.
    let has_v6 = std::fs::read_to_string("/proc/net/if_inet6").is_ok_and(|addresses| !addresses.trim().is_empty());
    let families = Family::ALL.into_iter().filter(|family| *family == Family::Ipv4 || has_v6);
    let tables = families.map(|family| Table::open(family, mark)).collect::<Result<_, _>>();
    tables.context("cannot open a netlink socket")
}

/// Rules of kube-proxy answer for Services that we no longer know of; who starts us in its place should end it and remove
/// them, and is told how (P89).
fn tell_of_kube_proxy() {
    let Ok(mut channel) = Channel::open() else { return };
    for rules in kube_proxy::rules(&mut channel).unwrap_or_default() {
        tracing::warn!("{rules} is there: end kube-proxy and run `kube-proxy --cleanup`");
    }
}

fn set_sysctls(settings: &settings::Node) {
    if settings.keep_sysctls || settings.mode == settings::NodeMode::Beside {
        return;
    }
    let (written, refused) = sysctl::ensure(Path::new("/"));
    for write in written {
        tracing::info!(path = write.path, value = write.value, "set");
    }
    for refused in refused {
        tracing::warn!("{refused}");
    }
}

/// Facts that are known before anything has been read.
pub fn first_facts(settings: &settings::Node) -> Facts {
    Facts {
        mode: settings.proxy_mode(),
        node_port_addresses: BTreeSet::new(),
        node_addresses: BTreeSet::new(),
        pod_interfaces: settings.pod_interface_prefixes.iter().filter(|prefix| !prefix.is_empty()).cloned().collect(),
        pod_ranges: settings.pod_cidrs.clone(),
        service_ranges: Vec::new(),
        zone: None,
        masquerade_all: settings.masquerade_all,
        mark: settings.masquerade_mark,
    }
}

async fn serve(
    settings: &settings::Node,
    health: &NodeHealth,
    metrics: &NodeMetrics,
    ready: &Health,
) -> anyhow::Result<()> {
    let bind = |flag: &'static str, address| async move {
        TcpListener::bind(address).await.with_context(|| format!("{flag}: cannot listen on {address}"))
    };
    let probes = bind("--healthz-address", settings.healthz_address).await?;
    let inside = bind("--metrics-address", settings.metrics_address).await?;
    let counted = metrics.clone();
    tokio::spawn(super::health::serve(probes, health.clone(), move |probe, code| counted.answered(probe, code)));
    let rendered = metrics.clone();
    tokio::spawn(admin::serve(inside, ready.clone(), move || rendered.render()));
    Ok(())
}

fn happenings(
    client: &kube::Client,
    settings: &settings::Node,
    metrics: &NodeMetrics,
    addresses: watch::Receiver<BTreeSet<IpAddr>>,
    notices: BoxStream<'static, Happening>,
) -> impl Stream<Item = Vec<Happening>> + use<> {
    let all = watcher::Config::default();
    let this = all.clone().fields(&format!("metadata.name={}", settings.node_name));
    let services = watcher(Api::<Service>::all(client.clone()), all.clone()).default_backoff();
    let slices = watcher(Api::<EndpointSlice>::all(client.clone()), all.clone()).default_backoff();
    let node = watcher(Api::<Node>::all(client.clone()), this).default_backoff();
    let mut streams: Vec<BoxStream<'static, Happening>> = vec![
        heard(services, metrics, "Services", Happening::Service),
        heard(slices, metrics, "EndpointSlices", Happening::Slice),
        heard(node, metrics, "Node", Happening::Node),
        changes(addresses),
        notices,
    ];
    streams.push(match settings.proxy_mode() {
        Mode::Replace(_) => ranges(client, metrics, all),
        // kube-proxy looks after unused addresses.
        Mode::Beside(_) => stream::once(async { Happening::NoRanges }).boxed(),
    });
    stream::select_all(streams).ready_chunks(BURST)
}

fn heard<K: Send + 'static>(
    events: impl Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
    metrics: &NodeMetrics,
    what: &'static str,
    wrap: fn(Box<Event<K>>) -> Happening,
) -> BoxStream<'static, Happening> {
    let metrics = metrics.clone();
    let failed = move |error: &watcher::Error| {
        metrics.watch_failed(what);
        tracing::warn!(error = %chain(error), "cannot watch {what}");
    };
    let good = events.filter_map(move |event| future::ready(event.inspect_err(&failed).ok()));
    good.map(move |event| wrap(Box::new(event))).boxed()
}

/// ServiceCIDRs are served from Kubernetes 1.33 on.
fn ranges(client: &kube::Client, metrics: &NodeMetrics, config: watcher::Config) -> BoxStream<'static, Happening> {
    let events = watcher(Api::<ServiceCIDR>::all(client.clone()), config).default_backoff();
    let metrics = metrics.clone();
    let mapped = events.filter_map(move |event| {
        future::ready(match event {
            Ok(event) => Some(Happening::Range(Box::new(event))),
            Err(watcher::Error::InitialListFailed(kube::Error::Api(status))) if status.code == 404 => {
                Some(Happening::NoRanges)
            }
            // An older role: forwarding matters more than dropping what nobody has.
            Err(watcher::Error::InitialListFailed(kube::Error::Api(status))) if status.code == 403 => {
                tracing::warn!("may not list ServiceCIDRs: unused Service addresses are not dropped");
                Some(Happening::NoRanges)
            }
            Err(error) => {
                metrics.watch_failed("ServiceCIDRs");
                tracing::warn!(error = %chain(&error), "cannot watch ServiceCIDRs");
                None
            }
        })
    });
    mapped.boxed()
}

/// The node's addresses as they are, and as they become.
fn changes(mut addresses: watch::Receiver<BTreeSet<IpAddr>>) -> BoxStream<'static, Happening> {
    addresses.mark_changed();
    let changes = stream::unfold(addresses, |mut addresses| async move {
        addresses.changed().await.ok()?;
        let now = addresses.borrow_and_update().clone();
        Some((Happening::Addresses(now), addresses))
    });
    changes.boxed()
}

/// What others do to our tables, from the first sync on. The kernel writes a notice for every element as soon as anybody
/// listens, and the notices of a cold load are most of its time although a filter drops them.
fn notices(begin: oneshot::Receiver<()>, ours: Vec<u32>) -> BoxStream<'static, Happening> {
    // The other end of `begin` goes only with the whole driver.
    let begun = begin.into_stream().filter_map(|begun| future::ready(begun.ok()));
    let told = begun.flat_map(move |()| {
        stream::unfold((None, ours.clone()), |(watch, ours)| async move {
            let (happening, watch) = next_notice(watch, &ours).await;
            Some((happening, (Some(watch), ours)))
        })
    });
    told.boxed()
}

/// Opens the watch if there is none, and again whenever it fails.
async fn next_notice(watch: Option<Watch>, ours: &[u32]) -> (Happening, Watch) {
    let mut open = watch;
    loop {
        if let Some(mut watch) = open.take() {
            match watch.next().await {
                Ok(notice) => return (Happening::Kernel(notice), watch),
                Err(error) => tracing::warn!(%error, "lost the kernel's notices about tables"),
            }
            tokio::time::sleep(REOPEN).await;
        }
        match Watch::open(TABLE, ours) {
            Ok(watch) => return (Happening::Watching, watch),
            Err(error) => tracing::warn!(%error, "cannot watch the kernel's tables"),
        }
        tokio::time::sleep(REOPEN).await;
    }
}

/// What has been listed in full at least once, and what a running listing has brought so far.
#[derive(Default)]
struct Lists {
    services: Listing,
    slices: Listing,
    node: Listing,
    ranges: ServiceRanges,
}

#[derive(Default)]
struct Listing {
    done: bool,
    seen: BTreeSet<ServiceKey>,
}

impl Lists {
    /// Nothing is programmed before (P10).
    fn are_done(&self) -> bool {
        [&self.services, &self.slices, &self.node].iter().all(|listing| listing.done) && self.ranges.is_known()
    }
}

struct Driver {
    agent: Agent,
    lists: Lists,
    node: Option<Node>,
    local: BTreeSet<IpAddr>,
    ports: HealthCheckPorts,
    events: Events,
    complained: BTreeSet<ServiceKey>,
    /// Addresses at which the health checks of Services were answered last.
    listening: BTreeSet<IpAddr>,
    started: Timestamp,
    /// When changes were made that the next sync carries to the kernel.
    triggers: Vec<Timestamp>,
    last_sync: Option<Instant>,
    /// Told after the first sync.
    rules_are_in: Option<oneshot::Sender<()>>,
    health: NodeHealth,
    metrics: NodeMetrics,
    ready: Health,
    sweeps: mpsc::UnboundedSender<ServingByFrontend>,
    settings: settings::Node,
}

impl Driver {
    async fn drive(mut self, happenings: impl Stream<Item = Vec<Happening>>) -> anyhow::Result<()> {
        tokio::pin!(happenings);
        let mut hourly = tokio::time::interval_at(tokio::time::Instant::now() + COMPARE, COMPARE);
        let mut clearing = tokio::time::interval(CLEAR);
        clearing.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let due = self.due();
            let wait = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                burst = happenings.next() => {
                    let Some(burst) = burst else { bail!("all watches ended") };
                    self.take_in(burst);
                }
                () = wait => self.sync().await,
                _ = hourly.tick() => self.agent.compare(None),
                _ = clearing.tick(), if self.agent.has_stale() => {
                    tokio::task::block_in_place(|| self.agent.clear_stale());
                }
            }
        }
    }

    /// When to sync: at once after a time of rest, otherwise not more often than we may.
    fn due(&self) -> Option<Instant> {
        if !self.lists.are_done() {
            return None;
        }
        let next = self.agent.next()?;
        let earliest = self.last_sync.map(|last| last + self.settings.min_sync_period);
        Some(earliest.map_or(next, |earliest| earliest.max(next)))
    }

    fn take_in(&mut self, burst: Vec<Happening>) {
        for happening in burst {
            match happening {
                Happening::Service(event) => self.take_service(*event),
                Happening::Slice(event) => self.take_slice(*event),
                Happening::Node(event) => self.take_node(*event),
                Happening::Range(event) => self.lists.ranges.take(&event),
                Happening::NoRanges => self.lists.ranges.there_are_none(),
                Happening::Addresses(local) => self.local = local,
                Happening::Kernel(Notice::Deleted(family, port)) => self.agent.deleted(family, port),
                Happening::Kernel(Notice::Lost) => self.agent.compare(None),
                Happening::Watching => self.agent.compare_missing(),
                Happening::Kernel(Notice::Changed(family, port)) => self.agent.changed(family, port),
            }
        }
        self.agent.set_facts(self.facts());
        if self.agent.next().is_some() {
            self.agent.queued();
        }
    }

    fn take_service(&mut self, event: Event<Service>) {
        let listing = &mut self.lists.services;
        match event {
            Event::Init => listing.seen.clear(),
            Event::InitApply(service) => {
                listing.seen.extend(key(&service.metadata));
                self.agent.index.apply_service(&service);
            }
            Event::InitDone => {
                listing.done = true;
                self.agent.index.keep_services(&std::mem::take(&mut listing.seen));
            }
            Event::Apply(service) => self.agent.index.apply_service(&service),
            Event::Delete(service) => {
                if let Some(key) = key(&service.metadata) {
                    self.agent.index.delete_service(&key);
                }
            }
        }
    }

    fn take_slice(&mut self, event: Event<EndpointSlice>) {
        let listing = &mut self.lists.slices;
        match event {
            Event::Init => listing.seen.clear(),
            Event::InitApply(slice) => {
                listing.seen.extend(key(&slice.metadata));
                self.agent.index.apply_slice(&slice);
            }
            Event::InitDone => {
                listing.done = true;
                self.agent.index.keep_slices(&std::mem::take(&mut listing.seen));
            }
            Event::Apply(slice) => {
                self.triggers.extend(trigger_time(&slice, self.started));
                self.agent.index.apply_slice(&slice);
            }
            Event::Delete(slice) => {
                if let Some(key) = key(&slice.metadata) {
                    self.agent.index.delete_slice(&key);
                }
            }
        }
    }

    fn take_node(&mut self, event: Event<Node>) {
        let listing = &mut self.lists.node;
        match event {
            Event::Init => listing.seen.clear(),
            Event::InitApply(node) | Event::Apply(node) => {
                listing.seen.insert(ServiceKey::new("", self.settings.node_name.clone()));
                self.node = Some(node);
            }
            Event::InitDone => {
                listing.done = true;
                if listing.seen.is_empty() {
                    tracing::warn!(node = self.settings.node_name, "there is no Node of this name: no NodePorts yet");
                    self.node = None;
                }
            }
            Event::Delete(_) => self.node = None,
        }
        // The last known state stands while the API server is away (P55).
        if self.lists.node.done {
            let eligible = eligibility::check(self.node.as_ref(), eligibility::DrainSignals::All);
            self.health.set_eligible(eligible.is_ok());
            self.metrics.eligible.set(i64::from(eligible.is_ok()));
        }
    }

    fn facts(&self) -> Facts {
        let primary = self.node.as_ref().map(primary_addresses).unwrap_or_default();
        let mut node_addresses = self.local.clone();
        node_addresses.extend(primary.iter().copied());
        let labels = self.node.as_ref().and_then(|node| node.metadata.labels.as_ref());
        Facts {
            node_port_addresses: self.settings.nodeport_addresses.select(&primary, &self.local),
            node_addresses,
            service_ranges: self.lists.ranges.all(),
            zone: labels.and_then(|labels| labels.get("topology.kubernetes.io/zone")).cloned(),
            ..self.agent.facts.clone()
        }
    }

    async fn sync(&mut self) {
        self.last_sync = Some(Instant::now());
        let synced = tokio::task::block_in_place(|| self.agent.sync());
        if synced.complete {
            let now = Timestamp::now();
            for trigger in self.triggers.drain(..) {
                self.metrics.programmed(trigger, now);
            }
            self.ready.set_ready(true);
            if let Some(rules_are_in) = self.rules_are_in.take() {
                // Its receiver goes only with the watches.
                let _ = rules_are_in.send(());
            }
        }
        // The sweeper ends with the process.
        let _ = self.sweeps.send(synced.serving);
        self.open_health_checks().await;
    }

    async fn open_health_checks(&mut self) {
        let selected = &self.agent.facts.node_port_addresses;
        let addresses = self.settings.nodeport_addresses.listen_on(selected);
        let changed = self.agent.index.take_health_checks_changed() || addresses != self.listening;
        if !changed && self.complained.is_empty() {
            return;
        }
        let failures = self.ports.reconcile(&addresses, self.agent.index.health_checks()).await;
        let failed: BTreeSet<_> = failures.iter().map(|failure| failure.service.clone()).collect();
        for failure in failures {
            if !self.complained.contains(&failure.service) {
                let note = failure.to_string();
                tracing::warn!(service = %failure.service, "{note}");
                self.tell(&failure.service, failure.uid, note);
            }
        }
        self.metrics.health_check_ports_failed.set(count(failed.len()));
        self.complained = failed;
        self.listening = addresses;
    }

    fn tell(&self, service: &ServiceKey, uid: String, note: String) {
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Service".to_owned()),
            namespace: Some(service.namespace.clone()),
            name: Some(service.name.clone()),
            uid: Some(uid),
            ..ObjectReference::default()
        };
        let events = self.events.clone();
        tokio::spawn(async move {
            if let Err(error) = events.publish(&about, Kind::Warning, health_check_port::REASON, &note).await {
                tracing::warn!(%error, "cannot publish an Event");
            }
        });
    }
}

/// Deletes stale flows, one sweep at a time. What could not be swept is tried again with the next (P63).
async fn sweep(mut due: mpsc::UnboundedReceiver<ServingByFrontend>, metrics: NodeMetrics, families: Vec<Family>) {
    let mut kept = ServingByFrontend::default();
    while let Some(next) = due.recv().await {
        kept.extend(next);
        while let Some(Some(more)) = due.recv().now_or_never() {
            kept.extend(more);
        }
        let (serving, metrics, families) = (std::mem::take(&mut kept), metrics.clone(), families.clone());
        let swept = tokio::task::spawn_blocking(move || sweep_once(serving, &metrics, &families));
        kept = swept.await.unwrap_or_default();
    }
}

/// Returns what is to be tried again.
fn sweep_once(serving: ServingByFrontend, metrics: &NodeMetrics, families: &[Family]) -> ServingByFrontend {
    let mut failed = false;
    for family in families.iter().copied().filter(|family| !serving.is_empty(*family)) {
        let started = Instant::now();
        match flows::sweep(family, |flow| serving.is_stale(flow)) {
            Ok(swept) => metrics.swept(family, swept, started.elapsed()),
            Err(error) => {
                failed = true;
                tracing::warn!(%family, error = %chain(&error), "cannot delete stale flows");
            }
        }
    }
    if failed { serving } else { ServingByFrontend::default() }
}
