//! The state of a running node, and how a change travels through it: index → contributions → programme → kernel.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::conntrack::ServingByFrontend;
use super::health::NodeHealth;
use super::index::Index;
use super::kernel::{Applied, Error, Table};
use super::metrics::{NodeMetrics, SyncKind, TrafficPolicy as Policy};
use super::programme::{PortName, Programme, Rank};
use super::ruleset::{Contribution, Facts, Order, fixed_chains};
use crate::model::id::ServiceKey;
use crate::netfilter::Family;
use crate::netfilter::object::{Backend, Frontend, Key, PortId, Protocol};
use crate::telemetry::{chain, otlp};

/// After so many failures in a row the table is made anew: what others did to it may be beyond comparison.
const BEYOND_COMPARISON: u32 = 3;
/// What others change in our tables is undone after so long: they may not be done yet, and may do more.
const SUSPICION: Duration = Duration::from_secs(5);
/// After a failure the kernel is compared as a whole this soon; then later and later, up to the sync period.
const FIRST_RETRY: Duration = Duration::from_millis(250);

/// One family: what it is to hold, and the table that is to hold it.
struct Half {
    table: Table,
    programme: Programme,
    /// Orders of endpoints found in the kernel at start.
    orders: HashMap<Frontend, Order>,
    /// What the programme holds is to be compared with the kernel, since when, and how often that has failed.
    compare: Option<Compare>,
    /// Somebody else has changed the table: it is to be compared at this time.
    suspect: Option<Instant>,
    warned: BTreeSet<Frontend>,
    /// UDP frontends that have changed since the kernel was told last: their flows are looked at when it has been.
    serving: ServingByFrontend,
}

/// What came of a sync.
#[derive(Debug, Default)]
pub struct Synced {
    /// UDP frontends whose flows may have to go.
    pub serving: ServingByFrontend,
    /// Whether the kernel holds all that it should, in every family.
    pub complete: bool,
}

#[derive(Clone, Copy)]
struct Compare {
    not_before: Instant,
    failures: u32,
}

impl Compare {
    fn now() -> Self {
        Self { not_before: Instant::now(), failures: 0 }
    }

    /// In turns with comparisons: these may need no nft, which may be what is wrong.
    const fn is_beyond(self) -> bool {
        self.failures >= BEYOND_COMPARISON && self.failures % 2 == BEYOND_COMPARISON % 2
    }

    fn failed(before: Option<Self>, longest: Duration) -> Self {
        let failures = before.map_or(0, |before| before.failures).saturating_add(1);
        let wait = FIRST_RETRY.saturating_mul(1 << failures.min(16)).min(longest);
        Self { not_before: Instant::now() + wait, failures }
    }
}

/// See the module's text.
pub struct Agent {
    /// What the API server told.
    pub index: Index,
    /// What the node is like.
    pub facts: Facts,
    halves: Vec<Half>,
    health: NodeHealth,
    metrics: NodeMetrics,
    longest_wait: Duration,
    facts_changed: bool,
}

impl Agent {
    /// An agent for the families of these tables, which have been read for the order of endpoints.
    ///
    /// # Errors
    /// The kernel refuses to answer.
    pub fn new(
        tables: Vec<Table>,
        index: Index,
        facts: Facts,
        health: NodeHealth,
        metrics: NodeMetrics,
        longest_wait: Duration,
    ) -> Result<Self, Error> {
        let halves = tables.into_iter().map(Half::new).collect::<Result<_, Error>>()?;
        let agent = Self { index, facts, halves, health, metrics, longest_wait, facts_changed: false };
        for half in agent.halves.iter().filter(|half| half.table.was_found()) {
            agent.health.inherited(half.table.family());
        }
        agent.queued();
        Ok(agent)
    }

    /// The node is like this from now on.
    pub fn set_facts(&mut self, facts: Facts) {
        if self.facts != facts {
            self.facts = facts;
            self.facts_changed = true;
            self.index.touch_all();
        }
    }

    /// The kernel may not hold what it should: all of it is to be compared.
    pub fn compare(&mut self, family: Option<Family>) {
        for half in &mut self.halves {
            if family.is_none_or(|family| family == half.table.family()) {
                // At once, even if it failed a moment ago: something has happened since.
                half.compare = Some(Compare::now());
            }
        }
        self.queued();
    }

    /// Something in a table was changed, by the socket of that number.
    pub fn changed(&mut self, family: Family, port: u32) {
        for half in self.halves.iter_mut().filter(|half| half.table.family() == family) {
            if half.suspect.is_none() && !half.table.has_written(port) {
                self.metrics.disturbed(family);
                tracing::warn!(%family, port, "somebody changed our table; comparing it soon");
                half.suspect = Some(Instant::now() + SUSPICION);
            }
        }
    }

    /// A table was deleted, by the socket of that number.
    pub fn deleted(&mut self, family: Family, port: u32) {
        let is_this = |half: &Half| half.table.family() == family && !half.table.has_written(port);
        if self.halves.iter().any(is_this) {
            self.metrics.disturbed(family);
            tracing::warn!(%family, port, "somebody deleted our table; making it anew");
            self.compare(Some(family));
        }
    }

    /// Tables that are gone are to be made anew.
    pub fn compare_missing(&mut self) {
        let missing = |half: &mut Half| (!half.table.is_there()).then(|| half.table.family());
        let families: Vec<_> = self.halves.iter_mut().filter_map(missing).collect();
        for family in families {
            self.compare(Some(family));
        }
    }

    /// Something waits to be carried to the kernel.
    pub fn queued(&self) {
        let now = Timestamp::now();
        for half in &self.halves {
            self.health.queued(half.table.family(), now);
            self.metrics.sync_queued(half.table.family(), now);
        }
    }

    /// When [`Agent::sync`] should be called next, if at all.
    pub fn next(&self) -> Option<Instant> {
        if self.index.has_changed() || self.facts_changed {
            return Some(Instant::now());
        }
        self.halves.iter().filter_map(Half::next).min()
    }

    /// Whether chains wait to be deleted.
    pub fn has_stale(&self) -> bool {
        self.halves.iter().any(|half| half.table.has_stale())
    }

    /// Deletes chains that nothing has used for a while.
    pub fn clear_stale(&mut self) {
        for half in &mut self.halves {
            if let Err(error) = half.table.clear_stale() {
                let family = half.table.family();
                tracing::warn!(%family, error = %chain(&error), "cannot delete unused chains");
            }
        }
    }

    /// Carries all changes to the kernel. Blocks for as long as that takes.
    pub fn sync(&mut self) -> Synced {
        let changed = self.index.take_changed();
        let is_full = self.halves.iter().any(|half| half.compare.is_some());
        let span = otlp::sync(if is_full { "full" } else { "partial" }, changed.len()).entered();
        self.facts_changed = false;
        let mut synced = Synced { complete: true, ..Synced::default() };
        for half in &mut self.halves {
            let family = half.table.family();
            self.health.taken(family);
            for key in &changed {
                half.update(key, &self.index, &self.facts);
            }
            let started = Instant::now();
            half.look_again();
            let kind = if half.compare.is_some() { SyncKind::Full } else { SyncKind::Partial };
            match half.carry(&self.facts) {
                Ok(None) => synced.complete = false,
                Ok(Some(applied)) => {
                    let took = started.elapsed();
                    synced.serving.extend(std::mem::take(&mut half.serving));
                    self.health.applied(family, Timestamp::now());
                    self.metrics.sync_done(kind, family, took, Timestamp::now());
                    tracing::debug!(%family, ?kind, elements = applied.elements, scripts = applied.scripts, ?took, "synced");
                }
                Err(error) => {
                    synced.complete = false;
                    half.compare = Some(Compare::failed(half.compare, self.longest_wait));
                    self.health.failed(family, Timestamp::now());
                    self.metrics.sync_failed(family);
                    tracing::error!(%family, error = %chain(&error), "the last good rules stay");
                }
            }
        }
        otlp::describe_outcome(&span, if synced.complete { "complete" } else { "incomplete" });
        self.measure();
        synced
    }

    fn measure(&self) {
        let (services, _) = self.index.counts();
        self.metrics.services.set(i64::try_from(services).unwrap_or(i64::MAX));
        let endpoints: usize = self.halves.iter().map(|half| half.programme.endpoints()).sum();
        self.metrics.endpoints.set(i64::try_from(endpoints).unwrap_or(i64::MAX));
        let lacking = self.index.lacking();
        for (policy, services) in [(Policy::External, lacking.external), (Policy::Internal, lacking.internal)] {
            self.metrics.set_without_local_endpoints(policy, i64::try_from(services).unwrap_or(i64::MAX));
        }
    }
}

impl Half {
    fn new(mut table: Table) -> Result<Self, Error> {
        let orders = match table.orders() {
            Err(error) if error.is_denied() => return Err(error),
            // Without them endpoints only change places. What is wrong with the table the first sync puts right.
            Err(error) => {
                tracing::warn!(family = %table.family(), error = %chain(&error), "cannot read the rules that are there");
                HashMap::new()
            }
            Ok(orders) => orders,
        };
        let (programme, warned, serving) = <_>::default();
        Ok(Self { table, programme, orders, compare: Some(Compare::now()), suspect: None, warned, serving })
    }

    /// When it is to be compared, if at all.
    fn next(&self) -> Option<Instant> {
        self.compare.map(|compare| compare.not_before).or(self.suspect)
    }

    /// Turns a suspicion that is due into a comparison.
    fn look_again(&mut self) {
        if self.suspect.is_some_and(|due| due <= Instant::now()) {
            self.compare.get_or_insert_with(Compare::now);
        }
    }

    fn update(&mut self, key: &ServiceKey, index: &Index, facts: &Facts) {
        let family = self.table.family();
        let before = udp_frontends(self.programme.ports(key));
        let (programme, orders) = (&self.programme, &self.orders);
        let made = index.contributions(family, key, facts, |service, port| {
            let known = programme.order(key, &(port.name.clone(), port.protocol)).cloned();
            known.unwrap_or_else(|| {
                let address = service.cluster_ip(family);
                let at = |address| Frontend { address, protocol: port.protocol, port: port.port };
                address.and_then(|address| orders.get(&at(address))).cloned().unwrap_or_default()
            })
        });
        let now = serving_now(family, key, index, facts, &made);
        let lost = self.programme.set(key, made);
        self.list_serving(&before, now);
        for frontend in &lost {
            if self.warned.insert(*frontend) {
                tracing::warn!(service = %key, %frontend, "another Service has this address and port, which is older or has it as its ClusterIP");
            }
        }
    }

    /// Lists a Service's UDP frontends with the endpoints that serve them; those that are nobody's any longer with none.
    /// What another Service has is that Service's business.
    fn list_serving(
        &mut self,
        before: &BTreeSet<Frontend>,
        now: BTreeMap<Frontend, (PortId, Arc<HashSet<SocketAddr>>)>,
    ) {
        let socket = |frontend: &Frontend| SocketAddr::new(frontend.address, frontend.port);
        for frontend in before {
            if self.programme.holder(&Key::Inside(*frontend)).is_none() {
                self.serving.insert(socket(frontend), Arc::default());
            }
        }
        for (frontend, (id, endpoints)) in now {
            if self.programme.holder(&Key::Inside(frontend)) == Some(id) {
                self.serving.insert(socket(&frontend), endpoints);
            }
        }
    }

    /// `None` if it is not time yet.
    fn carry(&mut self, facts: &Facts) -> Result<Option<Applied>, Error> {
        let fixed = fixed_chains(self.table.family(), facts);
        if let Some(compare) = self.compare {
            if compare.not_before > Instant::now() {
                return Ok(None);
            }
            self.programme.forget();
            self.suspect = None;
            let applied = if compare.is_beyond() {
                tracing::warn!(family = %self.table.family(), "making our table anew");
                self.table.replace(&self.programme, fixed)?
            } else {
                self.table.reconcile(&self.programme, fixed)?
            };
            self.compare = None;
            self.orders = HashMap::new();
            return Ok(Some(applied));
        }
        let (changes, structure) = self.programme.take();
        self.table.apply(&changes, &structure, fixed).map(Some)
    }
}

fn udp_frontends<'a>(contributions: impl Iterator<Item = &'a Contribution>) -> BTreeSet<Frontend> {
    let elements = contributions.flat_map(|made| &made.elements);
    let frontends = elements.filter_map(|(key, _)| match key {
        Key::Inside(frontend) if frontend.protocol == Protocol::Udp => Some(*frontend),
        _ => None,
    });
    frontends.collect()
}

/// A Service's UDP frontends, each with its port and the endpoints that serve it.
fn serving_now(
    family: Family,
    key: &ServiceKey,
    index: &Index,
    facts: &Facts,
    made: &BTreeMap<PortName, (Rank, Contribution)>,
) -> BTreeMap<Frontend, (PortId, Arc<HashSet<SocketAddr>>)> {
    let mut now = BTreeMap::new();
    let ports = index.service(key).into_iter().flat_map(|service| &service.ports);
    for port in ports.filter(|port| port.protocol == Protocol::Udp) {
        let Some((rank, contribution)) = made.get(&(port.name.clone(), port.protocol)) else { continue };
        let choice = index.choose(key, port, family, facts.zone.as_deref());
        let at = |backend: &Backend| SocketAddr::new(backend.address, backend.port);
        let endpoints: Arc<HashSet<_>> = Arc::new(choice.serving.iter().map(at).collect());
        let frontends = udp_frontends(std::iter::once(contribution)).into_iter();
        now.extend(frontends.map(|frontend| (frontend, (rank.id, Arc::clone(&endpoints)))));
    }
    now
}
