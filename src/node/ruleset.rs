//! What a Service port needs in the kernel, and what all of them share. Pure: nothing here knows what is there already.
//!
//! ```text
//!   prerouting ──┬─ from a pod of this node ──► inside ──┐
//!                └─ from anywhere else ───────► outside ─┼─► lb-tcp-3-snat ─► lb-tcp-3 ─► endpoints-tcp
//!   output ─────── from this host ────────────► inside ──┤       (marks)      (one of 3)
//!                                                        ├─► refuse, drop
//!                                                        └─► guard-…, affinity-… of the few that need them
//!   postrouting ── marked ──► source-nat: nothing if the endpoint is on this node, else masquerade
//! ```
//!
//! The first packet of a connection costs two lookups and a translation, however many Services there are; the packets
//! after it never come here, since all base chains are nat chains.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use sha2::{Digest as _, Sha256};

use super::endpoint::{Candidate, Choice};
use super::service::{Mode, Port, Service, TrafficPolicy};
use crate::model::id::ServiceKey;
use crate::netfilter::Family;
use crate::netfilter::object::{
    Backend, Collection, Frontend, HIGH, Key, PortId, Private, Region, SourceNat, Target, Value,
};
use crate::netfilter::rule::{Chain, ChainName, Hook, Match, PinSet, Rule, Statement};

/// What of the node and of our settings the ruleset depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Which Services are ours.
    pub mode: Mode,
    /// Addresses on which NodePorts answer.
    pub node_port_addresses: BTreeSet<IpAddr>,
    /// Addresses of the node itself.
    pub node_addresses: BTreeSet<IpAddr>,
    /// How names of the interfaces of this node's pods begin.
    pub pod_interfaces: Vec<String>,
    /// Ranges of the addresses of this node's pods.
    pub pod_ranges: Vec<IpNet>,
    /// Ranges of ClusterIPs.
    pub service_ranges: Vec<IpNet>,
    /// The zone the node is in.
    pub zone: Option<String>,
    /// Give every connection to a ClusterIP this node's address.
    pub masquerade_all: bool,
    /// The bit by which a packet is known that needs this node's address.
    pub mark: u32,
}

impl Facts {
    fn knows_pods(&self) -> bool {
        !self.pod_interfaces.is_empty() || !self.pod_ranges.is_empty()
    }
}

/// What a Service port needs in the tables of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contribution {
    /// Elements, each once.
    pub elements: Vec<(Key, Value)>,
    /// Chains of its own.
    pub chains: Vec<Chain>,
    /// Sets of its own.
    pub pins: Vec<PinSet>,
    /// Its endpoints in the order of their indices, to be kept as far as possible when they change.
    pub order: Order,
}

/// The endpoints of a Service port, by index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// In [`Region::Low`].
    pub low: Vec<Backend>,
    /// In [`Region::High`].
    pub high: Vec<Backend>,
}

/// A hash of a Service port's name.
pub fn port_id(service: &ServiceKey, port: &Port) -> PortId {
    let mut hash = Sha256::new();
    for part in [&service.namespace, &service.name, &port.name, port.protocol.word()] {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    PortId(leading(&hash.finalize()))
}

fn leading(hash: &[u8]) -> u64 {
    hash.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn endpoint_id(backend: Backend) -> u32 {
    let mut bytes = Vec::new();
    backend.write(&mut bytes);
    u32_hash(&bytes)
}

fn u32_hash(bytes: &[u8]) -> u32 {
    u32::try_from(leading(&Sha256::digest(bytes)) >> 32).unwrap_or_default()
}

/// Where a connection that meets a frontend goes.
#[derive(Clone, Copy, Debug)]
struct Route {
    policy: TrafficPolicy,
    source: SourceNat,
}

/// One kind of frontends of a Service port.
struct Kind {
    addresses: Vec<IpAddr>,
    port: u16,
    inside: Route,
    outside: Route,
    guard: Option<Vec<IpNet>>,
}

/// What a Service port needs. `order` is where its endpoints are now, so that few of them move.
pub fn contribute(
    family: Family,
    key: &ServiceKey,
    service: &Service,
    port: &Port,
    choice: &Choice,
    facts: &Facts,
    order: &Order,
) -> Contribution {
    let Some(cluster_ip) = service.cluster_ip(family) else { return Contribution::default() };
    let kinds = kinds(family, cluster_ip, service, port, facts);
    let uses_local = kinds.iter().any(|kind| kind.outside.policy == TrafficPolicy::Local);
    let mut writer = Writer {
        port,
        id: port_id(key, port),
        affinity: service.affinity,
        mark: facts.mark,
        layout: Layout::new(choice, uses_local, order),
        has_any: !choice.cluster.is_empty(),
        made: Contribution::default(),
    };
    for kind in &kinds {
        writer.write(kind);
    }
    for candidate in choice.cluster.iter().chain(&choice.local).filter(|candidate| candidate.local) {
        let address = candidate.backend.address;
        writer.made.elements.push((Key::LocalEndpoint(address), Value::Member));
        writer.made.elements.push((Key::Hairpin(address), Value::Member));
    }
    writer.made.elements.push((Key::ClusterIp(cluster_ip), Value::Member));
    writer.finish()
}

fn kinds(family: Family, cluster_ip: IpAddr, service: &Service, port: &Port, facts: &Facts) -> Vec<Kind> {
    let of_family = |addresses: &[IpAddr]| addresses.iter().copied().filter(|ip| family.has(*ip)).collect::<Vec<_>>();
    let internal = |source| Route { policy: service.internal_policy, source };
    let always_if = |condition| if condition { SourceNat::Always } else { SourceNat::Never };
    let cluster = Kind {
        addresses: vec![cluster_ip],
        port: port.port,
        // The host's own connections have an address of this node already.
        inside: internal(always_if(facts.masquerade_all)),
        // Where pods cannot be told from others, these may be pods.
        outside: internal(always_if(facts.masquerade_all || facts.knows_pods())),
        guard: None,
    };
    // Inside sources get all endpoints under either policy: nothing is lost by sending them on.
    let (inside, outside) = match service.external_policy {
        TrafficPolicy::Cluster => (SourceNat::Always, SourceNat::Always),
        TrafficPolicy::Local => (SourceNat::FromHost, SourceNat::Never),
    };
    let external = |addresses, port| Kind {
        addresses,
        port,
        inside: Route { policy: TrafficPolicy::Cluster, source: inside },
        outside: Route { policy: service.external_policy, source: outside },
        guard: None,
    };
    let balancers = external(of_family(&service.balancer_ips), port.port);
    let balancers = Kind { guard: guard(family, service, facts), ..balancers };
    // An external IP that is also a balancer's address is guarded as that.
    let mut kinds = vec![cluster, balancers, external(of_family(&service.external_ips), port.port)];
    if let Some(node_port) = port.node_port {
        let addresses: Vec<_> = facts.node_port_addresses.iter().copied().collect();
        kinds.push(external(of_family(&addresses), node_port));
    }
    kinds
}

/// Sources that may use the addresses of the Service's load balancers, if not all may (P35). A balancer's address that
/// the node holds itself is let through where the node is (P36).
fn guard(family: Family, service: &Service, facts: &Facts) -> Option<Vec<IpNet>> {
    let mut ranges = service.guard(family)?;
    let is_let_through = |address: &IpAddr| ranges.iter().any(|range| range.contains(address));
    if facts.node_addresses.iter().any(is_let_through) {
        ranges.extend(service.balancer_ips.iter().copied().filter(|ip| family.has(*ip)).map(IpNet::from));
        ranges = IpNet::aggregate(&ranges);
        ranges.sort();
    }
    Some(ranges)
}

/// Where the endpoints are in the endpoint map: one order serves both policies wherever it can.
struct Layout {
    order: Order,
    local: Pickable,
}

/// The endpoints of policy Local.
#[derive(Clone, Copy)]
struct Pickable {
    count: u16,
    region: Region,
}

impl Layout {
    fn new(choice: &Choice, uses_local: bool, before: &Order) -> Self {
        if !uses_local {
            let low = arrange(&before.low, &[&choice.cluster]);
            return Self { order: Order { low, high: Vec::new() }, local: Pickable { count: 0, region: Region::Low } };
        }
        let (near, far): (Vec<_>, Vec<_>) = choice.cluster.iter().copied().partition(|candidate| candidate.local);
        let region = if near == choice.local { Region::Low } else { Region::High };
        let low = arrange(&before.low, &[&near, &far]);
        let high = if region == Region::High { arrange(&before.high, &[&choice.local]) } else { Vec::new() };
        Self { order: Order { low, high }, local: Pickable { count: count(choice.local.len()), region } }
    }

    fn pickable(&self, policy: TrafficPolicy) -> Pickable {
        match policy {
            TrafficPolicy::Cluster => Pickable { count: count(self.order.low.len()), region: Region::Low },
            TrafficPolicy::Local => self.local,
        }
    }

    fn backends(&self, Pickable { count, region }: Pickable) -> &[Backend] {
        let all = if region == Region::Low { &self.order.low } else { &self.order.high };
        &all[..usize::from(count).min(all.len())]
    }
}

fn count(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(HIGH).min(HIGH)
}

/// Orders groups of endpoints one after the other, each endpoint where it was before if that is within its group.
pub fn arrange(before: &[Backend], groups: &[&[Candidate]]) -> Vec<Backend> {
    let mut arranged = Vec::new();
    for group in groups {
        let start = arranged.len();
        // The index is 15 bits wide, and a sixteenth tells the regions apart.
        let wanted = &group[..group.len().min(usize::from(HIGH) - start)];
        let slots = start..start + wanted.len();
        let mut homeless: BTreeSet<Backend> = wanted.iter().map(|candidate| candidate.backend).collect();
        let kept: Vec<_> =
            slots.map(|slot| before.get(slot).copied().filter(|backend| homeless.remove(backend))).collect();
        arranged.extend(kept.into_iter().map(|slot| slot.or_else(|| homeless.pop_first())).map_while(|slot| slot));
    }
    arranged
}

struct Writer<'a> {
    port: &'a Port,
    id: PortId,
    affinity: Option<u32>,
    mark: u32,
    layout: Layout,
    has_any: bool,
    made: Contribution,
}

impl Writer<'_> {
    fn write(&mut self, kind: &Kind) {
        if kind.addresses.is_empty() {
            return;
        }
        let inside = self.guarded(self.verdict(kind.inside), kind.guard.as_deref());
        let outside = self.guarded(self.verdict(kind.outside), kind.guard.as_deref());
        let uses = |policy| kind.inside.policy == policy || kind.outside.policy == policy;
        let low = uses(TrafficPolicy::Cluster) || self.layout.local.region == Region::Low;
        let high = uses(TrafficPolicy::Local) && self.layout.local.region == Region::High;
        for address in &kind.addresses {
            let frontend = Frontend { address: *address, protocol: self.port.protocol, port: kind.port };
            self.made.elements.push((Key::Inside(frontend), inside));
            self.made.elements.push((Key::Outside(frontend), outside));
            if self.affinity.is_some() {
                continue;
            }
            let regions = [(low, 0, &self.layout.order.low), (high, HIGH, &self.layout.order.high)];
            for (_, base, backends) in regions.into_iter().filter(|(is_used, ..)| *is_used) {
                let endpoints = (base..=u16::MAX).zip(backends);
                let elements = endpoints.map(|(at, backend)| (Key::Endpoint(frontend, at), Value::Backend(*backend)));
                self.made.elements.extend(elements);
            }
        }
    }

    fn verdict(&self, route: Route) -> Value {
        let pickable = self.layout.pickable(route.policy);
        match (pickable.count, self.affinity) {
            // Elsewhere there are some: whoever asks is to ask another node (P31).
            (0, _) if self.has_any => Value::Drop,
            (0, _) => Value::Goto(Target::Refuse),
            (_, Some(_)) => {
                // Chains of session affinity are not prefixes of each other, so policy Local has its own.
                let private = Private::Affinity(match route.policy {
                    TrafficPolicy::Cluster => Region::Low,
                    TrafficPolicy::Local => Region::High,
                });
                Value::Goto(Target::Own { id: self.id, private, source: route.source })
            }
            (count, None) => Value::Goto(Target::Pick {
                protocol: self.port.protocol,
                count,
                region: pickable.region,
                source: route.source,
            }),
        }
    }

    /// The verdict for sources in the ranges only; all others are dropped.
    fn guarded(&mut self, verdict: Value, ranges: Option<&[IpNet]>) -> Value {
        let (Some(ranges), Value::Goto(next)) = (ranges, verdict) else { return verdict };
        let private = Private::Guard(u32_hash(next.to_string().as_bytes()));
        let target = Target::Own { id: self.id, private, source: SourceNat::Never };
        let chain = Chain::regular(
            target,
            vec![
                Rule::when(Match::SourceOutside(ranges.to_vec()), Statement::Drop),
                Rule::always(Statement::Goto(next)),
            ],
        );
        if !self.made.chains.contains(&chain) {
            self.made.chains.push(chain);
        }
        Value::Goto(target)
    }

    fn finish(mut self) -> Contribution {
        if let Some(seconds) = self.affinity {
            self.write_affinity(seconds);
        }
        self.made.order = self.layout.order;
        // One address may be of several kinds: the first of them stands.
        self.made.elements.sort_by_key(|(key, _)| *key);
        self.made.elements.dedup_by_key(|(key, _)| *key);
        // They are kept for as long as the Service lives.
        self.made.elements.shrink_to_fit();
        self.made
    }

    fn write_affinity(&mut self, seconds: u32) {
        let used: BTreeSet<Target> = self.made.elements.iter().filter_map(|(_, value)| own_target(value)).collect();
        let guarded: BTreeSet<Target> = self.made.chains.iter().flat_map(Chain::targets).collect();
        let mut pinned = BTreeSet::new();
        let mut plain = BTreeSet::new();
        for target in used.union(&guarded) {
            let Target::Own { private: Private::Affinity(region), source, .. } = *target else { continue };
            plain.insert(region);
            self.made.chains.extend(marking(*target, source, self.mark));
        }
        for region in plain {
            let policy = if region == Region::Low { TrafficPolicy::Cluster } else { TrafficPolicy::Local };
            let backends = self.layout.backends(self.layout.pickable(policy)).to_vec();
            let target = Target::Own { id: self.id, private: Private::Affinity(region), source: SourceNat::Never };
            self.made.chains.push(Chain::regular(target, self.affinity_rules(seconds, &backends)));
            pinned.extend(backends);
        }
        for backend in pinned {
            let pins = self.pins(seconds, backend);
            self.made.pins.push(pins);
            self.made.chains.push(Chain::regular(
                self.pin(backend),
                vec![
                    Rule::always(Statement::Remember(pins)),
                    Rule::always(Statement::Translate(self.port.protocol, backend)),
                ],
            ));
        }
    }

    fn affinity_rules(&self, seconds: u32, backends: &[Backend]) -> Vec<Rule> {
        let mut backends = backends.to_vec();
        backends.sort_unstable();
        let known = backends.iter().map(|backend| {
            Rule::when(Match::Pinned(self.pins(seconds, *backend)), Statement::Goto(self.pin(*backend)))
        });
        let any = Rule::always(Statement::GotoAny(backends.iter().map(|backend| self.pin(*backend)).collect()));
        known.chain([any]).collect()
    }

    fn pin(&self, backend: Backend) -> Target {
        Target::Pin { id: self.id, endpoint: endpoint_id(backend) }
    }

    fn pins(&self, seconds: u32, backend: Backend) -> PinSet {
        PinSet { id: self.id, endpoint: endpoint_id(backend), seconds }
    }
}

fn own_target(value: &Value) -> Option<Target> {
    match value {
        Value::Goto(target @ Target::Own { .. }) => Some(*target),
        _ => None,
    }
}

/// The chain that marks a packet and goes on to the chain that does not; none is needed where nothing is marked.
fn marking(target: Target, source: SourceNat, mark: u32) -> Option<Chain> {
    let next = match target {
        Target::Pick { protocol, count, region, .. } => {
            Target::Pick { protocol, count, region, source: SourceNat::Never }
        }
        Target::Own { id, private, .. } => Target::Own { id, private, source: SourceNat::Never },
        other => other,
    };
    let mark = Statement::Mark(mark);
    let first = match source {
        SourceNat::Never => return None,
        SourceNat::Always => Rule::always(mark),
        SourceNat::FromHost => Rule::when(Match::FromHost, mark),
    };
    Some(Chain::regular(target, vec![first, Rule::always(Statement::Goto(next))]))
}

/// The chains behind a verdict that all Service ports with as many endpoints share.
pub fn pick_chains(target: Target, mark: u32) -> Vec<Chain> {
    let Target::Pick { protocol, count, region, source } = target else { return Vec::new() };
    let plain = Target::Pick { protocol, count, region, source: SourceNat::Never };
    let pick = Chain::regular(plain, vec![Rule::always(Statement::Pick(protocol, count, region))]);
    std::iter::once(pick).chain(marking(target, source, mark)).collect()
}

/// The chains that are there whatever the Services are. Base chains come last.
pub fn fixed_chains(family: Family, facts: &Facts) -> Vec<Chain> {
    let refuse = Chain::regular(Target::Refuse, vec![Rule::always(Statement::Reject)]);
    let mut source_nat = vec![Rule::always(Statement::Unmark(facts.mark))];
    if !facts.masquerade_all {
        source_nat.push(Rule::when(Match::DestinationOf(Collection::LocalEndpoints), Statement::Return));
    }
    source_nat.push(Rule::when(Match::PortTaken, Statement::MasqueradeRandom));
    source_nat.push(Rule::always(Statement::Masquerade));
    let source_nat = Chain::regular(Target::SourceNat, source_nat);
    let base = |hook, rules| Chain { name: ChainName::Base(hook), rules };
    vec![
        refuse,
        Chain::regular(Target::Unknown, unknown_ports(family, facts)),
        source_nat,
        base(Hook::Prerouting, prerouting(family, facts)),
        base(Hook::Output, dispatch(Collection::Inside)),
        base(
            Hook::Postrouting,
            vec![
                Rule::when(Match::Hairpin, Statement::Masquerade),
                Rule::when(Match::Marked(facts.mark), Statement::Goto(Target::SourceNat)),
            ],
        ),
    ]
}

fn dispatch(map: Collection) -> Vec<Rule> {
    vec![Rule::always(Statement::Dispatch(map)), Rule::always(Statement::Goto(Target::Unknown))]
}

fn prerouting(family: Family, facts: &Facts) -> Vec<Rule> {
    let interfaces = facts.pod_interfaces.iter().map(|prefix| Match::FromInterface(prefix.clone()));
    let ranges: Vec<_> = facts.pod_ranges.iter().filter(|range| family.has(range.addr())).copied().collect();
    let ranges = (!ranges.is_empty()).then(|| Match::SourceIn(IpNet::aggregate(&ranges)));
    let pods = interfaces.chain(ranges).map(|from| Rule::when(from, Statement::Dispatch(Collection::Inside)));
    pods.chain(dispatch(Collection::Outside)).collect()
}

/// P15 and P16. Beside kube-proxy, addresses that we know nothing of are its business.
fn unknown_ports(family: Family, facts: &Facts) -> Vec<Rule> {
    let mut rules = vec![Rule::when(Match::DestinationOf(Collection::ClusterIps), Statement::Goto(Target::Refuse))];
    let ranges: Vec<_> = facts.service_ranges.iter().filter(|range| family.has(range.addr())).copied().collect();
    if matches!(facts.mode, Mode::Replace(_)) && !ranges.is_empty() {
        rules.push(Rule::when(Match::DestinationIn(IpNet::aggregate(&ranges)), Statement::Drop));
    }
    rules
}

#[cfg(test)]
mod tests;
