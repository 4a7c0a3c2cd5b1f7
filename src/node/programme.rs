//! What the tables of one family are to hold, and what of it has changed since the kernel was told last. Pure.
//!
//! Two Service ports may ask for the same element: a ClusterIP has several ports, and for a moment two Services may
//! have the same NodePort. Of different values the one of the older Service stands, so that the order in which events
//! arrive makes no difference. A ClusterIP is an exception: it stays with the Service it was given to, though an older one
//! may name it as its external IP.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use super::ruleset::{Contribution, Order};
use crate::model::id::ServiceKey;
use crate::netfilter::object::{Frontend, Key, PortId, Protocol, Target, Value};
use crate::netfilter::rule::{Chain, ChainName, PinSet};

/// Whose claim to an element counts: the older Service's, and of two as old that with the lesser hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// When the Service was made, in seconds since 1970.
    pub created: i64,
    /// Service port.
    pub id: PortId,
}

/// A port of a Service, by what no other port of it has.
pub type PortName = (String, Protocol);

#[derive(Debug)]
struct Claim {
    /// Whether the address is one that the Service was not given by the API server: anybody can write an external IP.
    is_guest: bool,
    rank: Rank,
    value: Value,
}

impl Claim {
    fn precedes(&self, other: &Self) -> bool {
        (self.is_guest, self.rank) < (other.is_guest, other.rank)
    }
}

/// All claims to an element. There is hardly ever a second one, and tens of thousands of lists of one would be most of
/// what a node needs.
#[derive(Debug)]
struct Claims {
    first: Claim,
    others: Vec<Claim>,
}

impl Claims {
    /// Takes in a claim, in place of an earlier one of the same Service port.
    fn put(&mut self, claim: Claim) {
        if self.first.rank == claim.rank {
            self.first = claim;
        } else {
            self.others.retain(|known| known.rank != claim.rank);
            self.others.push(claim);
        }
    }

    /// Forgets the claim of a Service port. Returns whether any is left; if not, this must go.
    fn take_back(&mut self, rank: Rank) -> bool {
        if self.first.rank != rank {
            self.others.retain(|claim| claim.rank != rank);
            return true;
        }
        let next = self.others.pop();
        let is_left = next.is_some();
        if let Some(next) = next {
            self.first = next;
        }
        is_left
    }

    /// The value that stands.
    fn winner(&self) -> Value {
        self.holder().value
    }

    /// The claim of the Service whose ClusterIP it is, or else of the oldest.
    fn holder(&self) -> &Claim {
        self.others.iter().fold(&self.first, |best, claim| if claim.precedes(best) { claim } else { best })
    }
}

/// What the ports of one Service need. A list: most Services have one port, and a node of a map has room for eleven.
type Ports = Box<[(PortName, (Rank, Contribution))]>;

/// A change of one element. With both, it is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The element.
    pub key: Key,
    /// What it is now, if it is there.
    pub old: Option<Value>,
    /// What it is to be, if it is to be there.
    pub new: Option<Value>,
}

/// What has to be done besides elements. Chains are made before, and deleted after, the elements that point to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Structure {
    /// Sets to make.
    pub new_pins: BTreeSet<PinSet>,
    /// Chains to make or to give other rules.
    pub write: BTreeMap<ChainName, Chain>,
    /// Chains that nothing points to any longer.
    pub stale_chains: BTreeSet<Target>,
    /// Sets that no rule names any longer.
    pub stale_pins: BTreeSet<PinSet>,
}

impl Structure {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct Programme {
    services: HashMap<ServiceKey, Ports>,
    claims: HashMap<Key, Claims>,
    /// Elements whose claims have changed, with what the kernel has for them.
    pending: BTreeMap<Key, Option<Value>>,
    structure: Structure,
    /// Chains of `structure` that the kernel does not have: if they go before they are made, nothing is to be deleted.
    unmade: BTreeSet<Target>,
    /// Endpoints of all Service ports.
    endpoints: usize,
}

impl Programme {
    /// Replaces what one Service needs.
    ///
    /// Returns frontends that another Service has, and will have until it lets go of them.
    pub fn set(&mut self, service: &ServiceKey, ports: BTreeMap<PortName, (Rank, Contribution)>) -> BTreeSet<Frontend> {
        let mut lost = BTreeSet::new();
        for (rank, contribution) in ports.values() {
            let own: Vec<_> = contribution.elements.iter().filter_map(|(key, _)| cluster_ip(key)).collect();
            for (key, value) in &contribution.elements {
                let is_guest = key.frontend().is_some_and(|frontend| !own.contains(&frontend.address));
                if self.claim(*key, Claim { is_guest, rank: *rank, value: *value }) {
                    lost.extend(frontend(key));
                }
            }
        }
        let before = self.services.remove(service).unwrap_or_default();
        for (name, (rank, contribution)) in &before {
            let kept = ports.get(name).filter(|(now, _)| now == rank).map(|(_, contribution)| contribution);
            for (key, _) in &contribution.elements {
                if kept.is_none_or(|kept| kept.elements.binary_search_by_key(key, |(key, _)| *key).is_err()) {
                    self.release(*key, *rank);
                }
            }
        }
        self.restructure(before.iter().map(|(_, made)| made), ports.values());
        let count = |made: &Contribution| made.order.low.len().max(made.order.high.len());
        self.endpoints += ports.values().map(|(_, made)| count(made)).sum::<usize>();
        self.endpoints -= before.iter().map(|(_, (_, made))| count(made)).sum::<usize>();
        if !ports.is_empty() {
            self.services.insert(service.clone(), ports.into_iter().collect());
        }
        lost
    }

    /// The endpoints of a Service port as they are ordered now.
    pub fn order(&self, service: &ServiceKey, port: &PortName) -> Option<&Order> {
        let (_, (_, contribution)) = self.services.get(service)?.iter().find(|(name, _)| name == port)?;
        Some(&contribution.order)
    }

    /// What the ports of a Service need.
    pub fn ports(&self, service: &ServiceKey) -> impl Iterator<Item = &Contribution> {
        self.services.get(service).into_iter().flatten().map(|(_, (_, contribution))| contribution)
    }

    /// Endpoints of all Service ports.
    pub const fn endpoints(&self) -> usize {
        self.endpoints
    }

    /// What an element is to be.
    pub fn value(&self, key: &Key) -> Option<Value> {
        self.claims.get(key).map(Claims::winner)
    }

    /// The Service port whose value of an element stands.
    pub fn holder(&self, key: &Key) -> Option<PortId> {
        self.claims.get(key).map(|claims| claims.holder().rank.id)
    }

    /// All elements.
    pub fn elements(&self) -> impl Iterator<Item = (Key, Value)> {
        self.claims.iter().map(|(key, claims)| (*key, claims.winner()))
    }

    fn contributions(&self) -> impl Iterator<Item = &Contribution> {
        self.services.values().flatten().map(|(_, (_, contribution))| contribution)
    }

    /// Chains and sets of single Service ports.
    pub fn private(&self) -> impl Iterator<Item = (&Chain, &[PinSet])> {
        self.contributions().flat_map(|made| {
            made.chains.iter().enumerate().map(|(at, chain)| (chain, if at == 0 { &made.pins[..] } else { &[] }))
        })
    }

    /// Shared chains that elements and chains point to.
    pub fn picks(&self) -> BTreeSet<Target> {
        let from_elements = self.elements().filter_map(|(_, value)| pick(&value));
        let from_chains = self.private().flat_map(|(chain, _)| chain.targets().filter(|target| !target.is_private()));
        from_elements.chain(from_chains).collect()
    }

    /// What has changed since the last call, or since [`Programme::forget`].
    pub fn take(&mut self) -> (Vec<Change>, Structure) {
        let pending = std::mem::take(&mut self.pending);
        let changes = pending.into_iter().map(|(key, old)| Change { key, old, new: self.value(&key) });
        let changes = changes.filter(|change| change.old != change.new).collect();
        self.unmade.clear();
        (changes, std::mem::take(&mut self.structure))
    }

    /// Forgets what has changed: all of the kernel is about to be compared.
    pub fn forget(&mut self) {
        self.pending.clear();
        self.structure = Structure::default();
        self.unmade.clear();
    }

    /// Whether another Service's value stands.
    fn claim(&mut self, key: Key, claim: Claim) -> bool {
        let value = claim.value;
        let (before, now) = match self.claims.entry(key) {
            Entry::Vacant(vacant) => (None, vacant.insert(Claims { first: claim, others: Vec::new() }).winner()),
            Entry::Occupied(mut occupied) => {
                let claims = occupied.get_mut();
                let before = claims.winner();
                claims.put(claim);
                (Some(before), claims.winner())
            }
        };
        if before != Some(now) {
            self.pending.entry(key).or_insert(before);
        }
        now != value
    }

    fn release(&mut self, key: Key, rank: Rank) {
        let Entry::Occupied(mut occupied) = self.claims.entry(key) else { return };
        let claims = occupied.get_mut();
        let before = claims.winner();
        let now = if claims.take_back(rank) {
            Some(claims.winner())
        } else {
            occupied.remove();
            None
        };
        if now != Some(before) {
            self.pending.entry(key).or_insert(Some(before));
        }
    }

    fn restructure<'a>(
        &mut self,
        before: impl Iterator<Item = &'a (Rank, Contribution)>,
        now: impl Iterator<Item = &'a (Rank, Contribution)>,
    ) {
        let (chains, pins) = private_of(before);
        let (new_chains, new_pins) = private_of(now);
        let structure = &mut self.structure;
        for (target, chain) in &new_chains {
            let is_made = structure.stale_chains.remove(target) || chains.contains_key(target);
            if chains.get(target) != Some(chain) {
                structure.write.insert(chain.name, (*chain).clone());
            }
            if !is_made {
                self.unmade.insert(*target);
            }
        }
        for target in chains.keys().filter(|target| !new_chains.contains_key(target)) {
            structure.write.remove(&ChainName::Regular(*target));
            if !self.unmade.remove(target) {
                structure.stale_chains.insert(*target);
            }
        }
        for set in new_pins.difference(&pins) {
            if !structure.stale_pins.remove(set) {
                structure.new_pins.insert(*set);
            }
        }
        for set in pins.difference(&new_pins) {
            if !structure.new_pins.remove(set) {
                structure.stale_pins.insert(*set);
            }
        }
    }
}

fn private_of<'a>(
    contributions: impl Iterator<Item = &'a (Rank, Contribution)>,
) -> (BTreeMap<Target, &'a Chain>, BTreeSet<PinSet>) {
    let (mut chains, mut pins) = (BTreeMap::new(), BTreeSet::new());
    for (_, contribution) in contributions {
        for chain in &contribution.chains {
            if let ChainName::Regular(target) = chain.name {
                chains.insert(target, chain);
            }
        }
        pins.extend(contribution.pins.iter().copied());
    }
    (chains, pins)
}

fn frontend(key: &Key) -> Option<Frontend> {
    match key {
        Key::Inside(frontend) | Key::Outside(frontend) => Some(*frontend),
        _ => None,
    }
}

const fn cluster_ip(key: &Key) -> Option<IpAddr> {
    match key {
        Key::ClusterIp(address) => Some(*address),
        _ => None,
    }
}

/// The shared chain a verdict goes to.
pub fn pick(value: &Value) -> Option<Target> {
    match value {
        Value::Goto(target @ Target::Pick { .. }) => Some(*target),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
