//! Carries a programme to the kernel: elements over netlink, everything else through nft.
//!
//! Chains are made before elements point to them and deleted well after. What is wrong in the kernel is found by
//! comparing everything once at start, after a failure, and every hour; between that, only changes are carried over.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::programme::{Change, Programme, Structure, pick};
use super::ruleset::{Order, pick_chains};
use crate::netfilter::netlink::{self, Channel, ElementChange, Verb};
use crate::netfilter::object::{Backend, Collection, Frontend, HIGH, Key, Target, Value};
use crate::netfilter::rule::{Chain, ChainName, PinSet, TAKEN_PORTS};
use crate::netfilter::script::{Script, TABLE, layout_chain};
use crate::netfilter::{Family, nft};

/// Kernels before 6.2 hold on to a chain for a moment after the last element that points to it is gone.
const LINGERING: Duration = Duration::from_secs(2);
/// Changes in one transaction, unless one frontend has more.
const PIECE: usize = 20_000;
const READ_ATTEMPTS: usize = 5;
/// The kernel tells of a change within moments.
const WRITERS: usize = 64;
/// Whatever refers to an unused chain for longer is not ours.
const REFUSALS: u8 = 5;

/// Why the kernel does not hold what it should.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Chains and sets.
    #[error("cannot change the rules")]
    Rules(#[from] nft::Error),
    /// Elements.
    #[error("cannot change the elements")]
    Elements(#[from] netlink::Error),
}

impl Error {
    /// Whether the kernel refuses us as such, whatever we ask for.
    pub const fn is_denied(&self) -> bool {
        matches!(self, Self::Rules(nft::Error::Denied) | Self::Elements(netlink::Error::Denied))
    }
}

/// How much was changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Elements added, deleted or replaced.
    pub elements: usize,
    /// Runs of nft.
    pub scripts: usize,
}

/// Our table of one family.
#[derive(Debug)]
pub struct Table {
    family: Family,
    mark: u32,
    channel: Channel,
    /// Regular chains in the kernel.
    chains: BTreeSet<Target>,
    /// Chains that are there whatever the Services are, as they were written.
    fixed: Vec<Chain>,
    stale: BTreeMap<Stale, Unused>,
    /// Whether a table of our layout was there when it was read for the first time.
    found: bool,
    /// Numbers of the last runs of nft, newest first.
    writers: VecDeque<u32>,
}

/// Since when something is unused, and how often its deletion was refused.
#[derive(Clone, Copy, Debug)]
struct Unused {
    since: Instant,
    refusals: u8,
}

impl Unused {
    fn now() -> Self {
        Self { since: Instant::now(), refusals: 0 }
    }
}

/// What nothing uses any longer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stale {
    Chain(String),
    // After the chains whose rules name them.
    Set(String),
}

/// What is in the kernel.
struct Observed {
    chains: BTreeMap<String, netlink::Chain>,
    sets: BTreeSet<String>,
}

impl Table {
    /// Of one family; `mark` is the bit of packets that get this node's address.
    ///
    /// # Errors
    /// The system gives no netlink socket.
    pub fn open(family: Family, mark: u32) -> std::io::Result<Self> {
        let channel = Channel::open()?;
        let (chains, fixed, stale, writers) = <_>::default();
        Ok(Self { family, mark, channel, chains, fixed, stale, found: false, writers })
    }

    /// The family.
    pub const fn family(&self) -> Family {
        self.family
    }

    /// Whether the kernel has it, for all that can be known.
    pub fn is_there(&mut self) -> bool {
        self.channel.has_table(self.family, TABLE).unwrap_or(false)
    }

    /// Whether [`Table::orders`] found rules of an earlier process.
    pub const fn was_found(&self) -> bool {
        self.found
    }

    /// The number by which the kernel tells our changes from others'.
    pub const fn port(&self) -> u32 {
        self.channel.port()
    }

    /// The order of endpoints in the kernel, so that a restart moves none of them.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn orders(&mut self) -> Result<HashMap<Frontend, Order>, Error> {
        let mut found: HashMap<Frontend, BTreeMap<u16, Backend>> = HashMap::new();
        let is_ours = self.observe()?.is_some_and(|observed| observed.has_layout(self.family));
        if is_ours {
            for collection in Collection::ALL.into_iter().filter(|all| matches!(all, Collection::Endpoints(_))) {
                self.each(collection, |_, element| {
                    if let Some((Key::Endpoint(frontend, at), Value::Backend(backend))) = element {
                        found.entry(frontend).or_default().insert(at, backend);
                    }
                })?;
            }
        }
        self.found = is_ours;
        let order = |endpoints: BTreeMap<u16, Backend>| {
            let (low, high): (Vec<_>, Vec<_>) = endpoints.into_iter().partition(|(at, _)| *at < HIGH);
            let backends = |some: Vec<(u16, Backend)>| some.into_iter().map(|(_, backend)| backend).collect();
            Order { low: backends(low), high: backends(high) }
        };
        Ok(found.into_iter().map(|(frontend, endpoints)| (frontend, order(endpoints))).collect())
    }

    /// Compares all that the kernel holds with all that it should, and makes the difference good.
    ///
    /// # Errors
    /// An unknown part was made good; only another call knows.
    pub fn reconcile(&mut self, programme: &Programme, fixed: Vec<Chain>) -> Result<Applied, Error> {
        let wanted = self.wanted(programme, &fixed);
        let mut applied = Applied::default();
        let observed = self.observe()?;
        let observed = match observed {
            Some(observed) if observed.has_layout(self.family) => observed,
            // Of another version of weir, or what is left of ours.
            Some(_) => return self.replace(programme, fixed),
            None => {
                self.create(&mut applied)?;
                Observed { chains: BTreeMap::new(), sets: BTreeSet::new() }
            }
        };
        let (base, regular): (Vec<_>, Vec<_>) =
            wanted.chains.iter().partition(|chain| matches!(chain.name, ChainName::Base(_)));
        self.write_differing(&observed, &wanted.pins, &regular, &mut applied)?;
        applied.elements += self.reconcile_elements(programme)?;
        self.write_differing(&observed, &BTreeSet::new(), &base, &mut applied)?;
        self.retire_unknown(&observed, &wanted);
        self.remember(&wanted, fixed);
        Ok(applied)
    }

    /// Carries changes over: no more is read and written than they are.
    ///
    /// # Errors
    /// [`Table::reconcile`] must be called next.
    pub fn apply(&mut self, changes: &[Change], structure: &Structure, fixed: Vec<Chain>) -> Result<Applied, Error> {
        let mut applied = Applied::default();
        let mut script = Script::new(self.family);
        for pins in &structure.new_pins {
            self.stale.remove(&Stale::Set(pins.to_string()));
            script.declare_pins(pins);
        }
        let picks = self.new_picks(changes, structure);
        let changed_fixed: Vec<_> = fixed.iter().filter(|chain| !self.fixed.contains(chain)).collect();
        script.write_chains(picks.iter().chain(structure.write.values()).chain(changed_fixed));
        self.run(&script, &mut applied)?;
        for chain in picks.iter().chain(structure.write.values()) {
            self.stale.remove(&Stale::Chain(chain.name.to_string()));
            if let ChainName::Regular(target) = chain.name {
                self.chains.insert(target);
            }
        }
        self.fixed = fixed;
        self.commit(changes)?;
        applied.elements = changes.len();
        let chains = structure.stale_chains.iter().map(|chain| Stale::Chain(chain.to_string()));
        let sets = structure.stale_pins.iter().map(|pins| Stale::Set(pins.to_string()));
        self.stale.extend(chains.chain(sets).map(|name| (name, Unused::now())));
        Ok(applied)
    }

    /// Whether [`Table::clear_stale`] will have something to do.
    pub fn has_stale(&self) -> bool {
        !self.stale.is_empty()
    }

    /// Deletes chains and sets that nothing has used for a while.
    ///
    /// # Errors
    /// They are tried again a while later, and after a few refusals left to the next comparison of everything.
    pub fn clear_stale(&mut self) -> Result<(), Error> {
        let ripe: Vec<_> = self
            .stale
            .iter()
            .filter(|(_, unused)| unused.since.elapsed() >= LINGERING)
            .map(|(name, _)| name.clone())
            .collect();
        let together = self.delete_stale(&ripe);
        if together.is_ok() || ripe.len() < 2 {
            return together;
        }
        // One of them is still in use: the others need not stay for it.
        ripe.iter().try_for_each(|name| self.delete_stale(std::slice::from_ref(name)))
    }

    fn delete_stale(&mut self, names: &[Stale]) -> Result<(), Error> {
        let mut script = Script::new(self.family);
        // Chains refer to each other: all are emptied before any is deleted.
        for stale in names {
            if let Stale::Chain(name) = stale {
                script.flush_chain_named(name);
            }
        }
        for stale in names {
            match stale {
                Stale::Chain(name) => script.delete_chain(name),
                Stale::Set(name) => script.delete_set(name),
            }
        }
        let outcome = self.run(&script, &mut Applied::default());
        for name in names {
            match (&outcome, self.stale.get_mut(name)) {
                (Ok(()), _) => {
                    self.forget_stale(name);
                }
                (Err(_), Some(unused)) if names.len() == 1 => {
                    *unused = Unused { since: Instant::now(), refusals: unused.refusals + 1 };
                    if unused.refusals >= REFUSALS {
                        self.stale.remove(name);
                    }
                }
                (Err(_), _) => {}
            }
        }
        outcome
    }

    fn forget_stale(&mut self, stale: &Stale) {
        if let Stale::Chain(name) = stale
            && let Some(target) = Target::parse(name)
        {
            self.chains.remove(&target);
        }
        self.stale.remove(stale);
    }

    fn run(&mut self, script: &Script, applied: &mut Applied) -> Result<(), Error> {
        if !script.is_empty() {
            applied.scripts += 1;
            let writer = nft::run(script.text())?;
            self.writers.truncate(WRITERS - 1);
            self.writers.push_front(writer);
        }
        Ok(())
    }

    /// Whether a change that the kernel tells of was made by an nft of ours, as far as that can be known.
    pub fn has_written(&self, port: u32) -> bool {
        self.writers.contains(&port)
    }

    /// Deletes the table with all that is in it.
    ///
    /// # Errors
    /// It is still there.
    pub fn delete(&mut self) -> Result<(), Error> {
        let mut script = Script::new(self.family);
        script.delete_table();
        self.run(&script, &mut Applied::default())
    }

    fn wanted(&self, programme: &Programme, fixed: &[Chain]) -> Wanted {
        let mut chains: BTreeMap<ChainName, Chain> = fixed.iter().map(|chain| (chain.name, chain.clone())).collect();
        for target in programme.picks() {
            chains.extend(pick_chains(target, self.mark).into_iter().map(|chain| (chain.name, chain)));
        }
        let mut pins = BTreeSet::new();
        for (chain, sets) in programme.private() {
            chains.insert(chain.name, chain.clone());
            pins.extend(sets.iter().copied());
        }
        Wanted { chains: chains.into_values().collect(), pins }
    }

    fn remember(&mut self, wanted: &Wanted, fixed: Vec<Chain>) {
        let regular = wanted.chains.iter().filter_map(|chain| match chain.name {
            ChainName::Regular(target) => Some(target),
            ChainName::Base(_) => None,
        });
        self.chains.extend(regular);
        self.fixed = fixed;
        // What was unused may have been wanted again before it was deleted.
        for chain in &wanted.chains {
            self.stale.remove(&Stale::Chain(chain.name.to_string()));
        }
        for pins in &wanted.pins {
            self.stale.remove(&Stale::Set(pins.to_string()));
        }
    }

    fn observe(&mut self) -> Result<Option<Observed>, Error> {
        let family = self.family;
        retry(|| {
            if !self.channel.has_table(family, TABLE)? {
                return Ok(None);
            }
            let (chains, sets) = (self.channel.chains(family, TABLE)?, self.channel.sets(family, TABLE)?);
            Ok(Some(Observed { chains, sets }))
        })
    }

    fn create(&mut self, applied: &mut Applied) -> Result<(), Error> {
        self.chains.clear();
        self.stale.clear();
        let mut script = Script::new(self.family);
        script.add_table();
        script.declare_collections();
        self.run(&script, applied)
    }

    /// Makes the table anew, whatever there is, in one transaction: no packet meets neither. Clients of Services with
    /// affinity are pinned anew.
    ///
    /// # Errors
    /// Nothing has changed.
    pub fn replace(&mut self, programme: &Programme, fixed: Vec<Chain>) -> Result<Applied, Error> {
        let wanted = self.wanted(programme, &fixed);
        let mut applied = Applied::default();
        let elements: BTreeMap<_, _> = programme.elements().collect();
        let mut script = Script::new(self.family);
        script.delete_table();
        script.add_table();
        script.declare_collections();
        wanted.pins.iter().for_each(|pins| script.declare_pins(pins));
        script.write_chains(wanted.chains.iter());
        script.add_elements(elements.iter());
        self.run(&script, &mut applied)?;
        applied.elements = elements.len();
        self.chains.clear();
        self.stale.clear();
        self.remember(&wanted, fixed);
        Ok(applied)
    }

    /// Makes chains that are missing, and gives those other rules that have not theirs.
    fn write_differing(
        &mut self,
        observed: &Observed,
        pins: &BTreeSet<PinSet>,
        chains: &[&Chain],
        applied: &mut Applied,
    ) -> Result<(), Error> {
        let mut script = Script::new(self.family);
        for set in pins.iter().filter(|set| !observed.sets.contains(&set.to_string())) {
            script.declare_pins(set);
        }
        let differing: Vec<_> = chains.iter().copied().filter(|chain| !observed.has(chain, self.family)).collect();
        for chain in differing.iter().filter(|chain| observed.is_misplaced(chain.name)) {
            script.delete_chain(&chain.name.to_string());
        }
        script.write_chains(differing.into_iter());
        self.run(&script, applied)
    }

    fn reconcile_elements(&mut self, programme: &Programme) -> Result<usize, Error> {
        let mut missing: HashMap<Key, Value> = programme.elements().collect();
        let mut changes = Vec::new();
        let mut foreign: Vec<(Collection, Vec<u8>)> = Vec::new();
        for collection in Collection::ALL {
            self.each(collection, |bytes, element| match element {
                Some((key, old)) => match missing.remove(&key) {
                    Some(new) if new == old => {}
                    new => changes.push(Change { key, old: Some(old), new }),
                },
                None => foreign.push((collection, bytes.to_vec())),
            })?;
        }
        changes.extend(missing.into_iter().map(|(key, new)| Change { key, old: None, new: Some(new) }));
        if !foreign.is_empty() {
            tracing::warn!(count = foreign.len(), "deleting elements of our table that somebody else wrote");
            let deletions = foreign.iter().map(|(collection, key)| ElementChange {
                set: collection.name(),
                key,
                value: netlink::Value::None,
                verb: Verb::Delete,
            });
            self.channel.commit(self.family, TABLE, deletions)?;
            // A key that is ours may have had a value that is not.
            return Ok(foreign.len() + self.reconcile_elements(programme)?);
        }
        self.commit(&changes)?;
        Ok(changes.len())
    }

    /// Hands over every element, and what it means if it is one of ours.
    fn each(&mut self, collection: Collection, each: impl FnMut(&[u8], Option<(Key, Value)>)) -> Result<(), Error> {
        read_each(&mut self.channel, self.family, collection, each)
    }

    fn new_picks(&self, changes: &[Change], structure: &Structure) -> Vec<Chain> {
        let from_changes = changes.iter().filter_map(|change| pick(&change.new?));
        let from_chains = structure.write.values().flat_map(Chain::targets).filter(|target| !target.is_private());
        let targets: BTreeSet<_> =
            from_changes.chain(from_chains).filter(|target| !self.chains.contains(target)).collect();
        let chains = targets.into_iter().flat_map(|target| pick_chains(target, self.mark));
        let new = chains.filter(|chain| match chain.name {
            ChainName::Regular(target) => !self.chains.contains(&target),
            ChainName::Base(_) => false,
        });
        new.map(|chain| (chain.name, chain)).collect::<BTreeMap<_, _>>().into_values().collect()
    }

    /// In one transaction, or in a few of which each has all changes of its frontends.
    fn commit(&mut self, changes: &[Change]) -> Result<(), Error> {
        let mut ordered: Vec<&Change> = changes.iter().collect();
        ordered.sort_unstable_by_key(|change| (change.key.frontend(), change.key));
        let mut rest = &ordered[..];
        while !rest.is_empty() {
            let mut end = rest.len().min(PIECE);
            while end < rest.len() && rest[end].key.frontend() == rest[end - 1].key.frontend() {
                end += 1;
            }
            let (piece, after) = rest.split_at(end);
            self.commit_piece(piece)?;
            rest = after;
        }
        Ok(())
    }

    fn commit_piece(&mut self, changes: &[&Change]) -> Result<(), Error> {
        let encoded: Vec<_> = changes.iter().map(|change| Encoded::new(change)).collect();
        // All deletions come first: a chain may not run out of references before it gets new ones, and does not.
        let deletions = encoded.iter().filter(|change| change.deletes).map(|change| change.element(Verb::Delete));
        let additions = encoded.iter().filter(|change| change.adds()).map(|change| change.element(Verb::Add));
        Ok(self.channel.commit(self.family, TABLE, deletions.chain(additions))?)
    }

    /// Chains and sets in our table that we know nothing of, or no longer.
    fn retire_unknown(&mut self, observed: &Observed, wanted: &Wanted) {
        let chains: BTreeSet<_> = wanted.chains.iter().map(|chain| chain.name.to_string()).collect();
        let layout = layout_chain(self.family);
        // Shared chains are kept: they cost nothing, and are soon used again.
        let is_kept = |name: &str| {
            chains.contains(name) || name == layout || Target::parse(name).is_some_and(|target| !target.is_private())
        };
        let sets: BTreeSet<_> = wanted.pins.iter().map(ToString::to_string).collect();
        let is_shared = |name: &str| name == TAKEN_PORTS || Collection::ALL.iter().any(|all| all.name() == name);
        for name in observed.chains.keys().filter(|name| !is_kept(name)) {
            self.stale.entry(Stale::Chain(name.clone())).or_insert_with(Unused::now);
        }
        for name in observed.sets.iter().filter(|name| !sets.contains(*name) && !is_shared(name)) {
            self.stale.entry(Stale::Set(name.clone())).or_insert_with(Unused::now);
        }
        let kept = observed.chains.iter().filter_map(|(name, chain)| {
            let target = Target::parse(name).filter(|target| !target.is_private())?;
            // Whatever its rules are, they are to be those of this version.
            let ours =
                pick_chains(target, self.mark).into_iter().find(|ours| ours.name == ChainName::Regular(target))?;
            has_digests(chain, &ours, self.family).then_some(target)
        });
        self.chains = kept.collect();
    }
}

/// Chains and sets that should be there.
struct Wanted {
    chains: Vec<Chain>,
    pins: BTreeSet<PinSet>,
}

impl Observed {
    fn has_layout(&self, family: Family) -> bool {
        let shared = Collection::ALL.iter().map(|collection| collection.name()).chain([TAKEN_PORTS]);
        self.chains.contains_key(&layout_chain(family)) && shared.into_iter().all(|set| self.sets.contains(set))
    }

    fn has(&self, chain: &Chain, family: Family) -> bool {
        let found = self.chains.get(&chain.name.to_string());
        found.is_some_and(|found| has_digests(found, chain, family)) && !self.is_misplaced(chain.name)
    }

    /// Whether it is a base chain at another place than it should be at.
    fn is_misplaced(&self, name: ChainName) -> bool {
        let base = self.chains.get(&name.to_string()).map(|chain| chain.base);
        match (name, base) {
            (_, None) | (ChainName::Regular(_), Some(None)) => false,
            (ChainName::Regular(_), Some(Some(_))) | (ChainName::Base(_), Some(None)) => true,
            (ChainName::Base(hook), Some(Some(base))) => base.hook != hook.number() || base.priority != hook.priority(),
        }
    }
}

fn has_digests(observed: &netlink::Chain, chain: &Chain, family: Family) -> bool {
    let digests = chain.digests(family);
    observed.comments.len() == digests.len()
        && observed.comments.iter().zip(&digests).all(|(comment, digest)| comment.as_ref() == Some(digest))
}

/// All elements of our table that are ours.
///
/// # Errors
/// The kernel does not answer.
pub fn elements(channel: &mut Channel, family: Family) -> Result<BTreeMap<Key, Value>, Error> {
    let mut found = BTreeMap::new();
    for collection in Collection::ALL {
        read_each(channel, family, collection, |_, element| found.extend(element))?;
    }
    Ok(found)
}

fn read_each(
    channel: &mut Channel,
    family: Family,
    collection: Collection,
    mut each: impl FnMut(&[u8], Option<(Key, Value)>),
) -> Result<(), Error> {
    // Kept until the listing is known to be whole.
    let found = retry(|| {
        let mut found = Vec::new();
        channel.elements(family, TABLE, collection.name(), |key, value| {
            let element = Key::read(family, collection, key).zip(read_value(family, value));
            found.push((if element.is_none() { key.to_vec() } else { Vec::new() }, element));
        })?;
        Ok(found)
    })?;
    for (bytes, element) in found {
        each(&bytes, element);
    }
    Ok(())
}

/// A listing that was overtaken by a change is made again.
fn retry<T>(mut attempt: impl FnMut() -> Result<T, netlink::Error>) -> Result<T, Error> {
    let mut attempts = 1;
    loop {
        match attempt() {
            Err(netlink::Error::Interrupted) if attempts < READ_ATTEMPTS => attempts += 1,
            outcome => return Ok(outcome?),
        }
    }
}

fn read_value(family: Family, value: netlink::Value<'_>) -> Option<Value> {
    match value {
        netlink::Value::None => Some(Value::Member),
        netlink::Value::Drop => Some(Value::Drop),
        netlink::Value::Goto(chain) => Target::parse(chain).map(Value::Goto),
        netlink::Value::Data(bytes) => Backend::read(family, bytes).map(Value::Backend),
        netlink::Value::Other(_) => None,
    }
}

/// A change in the kernel's bytes.
struct Encoded {
    set: &'static str,
    key: Vec<u8>,
    deletes: bool,
    value: Option<EncodedValue>,
}

enum EncodedValue {
    Member,
    Drop,
    Goto(String),
    Data(Vec<u8>),
}

impl Encoded {
    fn new(change: &Change) -> Self {
        let mut key = Vec::with_capacity(40);
        change.key.write(&mut key);
        let value = change.new.map(|value| match value {
            Value::Member => EncodedValue::Member,
            Value::Drop => EncodedValue::Drop,
            Value::Goto(target) => EncodedValue::Goto(target.to_string()),
            Value::Backend(backend) => {
                let mut bytes = Vec::with_capacity(20);
                backend.write(&mut bytes);
                EncodedValue::Data(bytes)
            }
        });
        Self { set: change.key.collection().name(), key, deletes: change.old.is_some(), value }
    }

    const fn adds(&self) -> bool {
        self.value.is_some()
    }

    fn element(&self, verb: Verb) -> ElementChange<'_> {
        let value = match &self.value {
            None | Some(EncodedValue::Member) => netlink::Value::None,
            Some(EncodedValue::Drop) => netlink::Value::Drop,
            Some(EncodedValue::Goto(chain)) => netlink::Value::Goto(chain),
            Some(EncodedValue::Data(bytes)) => netlink::Value::Data(bytes),
        };
        ElementChange { set: self.set, key: &self.key, value, verb }
    }
}
