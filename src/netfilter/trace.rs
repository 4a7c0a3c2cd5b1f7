//! What the ruleset does with the first packet of a connection, rule by rule: for tests, and for people.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::net::IpAddr;

use super::Family;
use super::object::{Backend, Collection, Frontend, HIGH, Key, Region, Target, Value};
use super::rule::{Chain, ChainName, Hook, Match, Rule, Statement};

/// Where a packet comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This host.
    Host,
    /// An interface of this host.
    Interface(String),
}

/// The first packet of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Where it comes from.
    pub origin: Origin,
    /// Its source address.
    pub source: IpAddr,
    /// Its destination.
    pub destination: Frontend,
}

/// An endpoint the connection may get to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arrival {
    /// The endpoint.
    pub backend: Backend,
    /// Whether it sees this node's address instead of the client's.
    pub masqueraded: bool,
}

/// What becomes of the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is none of ours and goes on as it came.
    Untouched,
    /// Nobody answers.
    Dropped,
    /// The client is told that nobody is there.
    Refused,
    /// It gets to one of these, each as likely as the others.
    Sent(Vec<Arrival>),
}

/// The outcome, and the rules that led to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Rules that matched, each with its chain.
    pub steps: Vec<String>,
    /// The outcome.
    pub outcome: Outcome,
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            writeln!(f, "  {step}")?;
        }
        match &self.outcome {
            Outcome::Untouched => write!(f, "not a Service's address and port: goes on as it came"),
            Outcome::Dropped => write!(f, "dropped"),
            Outcome::Refused => write!(f, "refused with ICMP port unreachable"),
            Outcome::Sent(arrivals) => {
                write!(f, "sent to one of {}:", arrivals.len())?;
                for Arrival { backend, masqueraded } in arrivals {
                    let source = if *masqueraded { "this node's address" } else { "the client's address" };
                    write!(f, "\n  {backend}, which sees {source}")?;
                }
                Ok(())
            }
        }
    }
}

/// What is looked up while walking.
pub trait Elements {
    /// The value of an element, if it is there.
    fn value(&self, key: &Key) -> Option<Value>;
}

/// Follows a packet through the chains of one family.
pub fn trace(chains: &BTreeMap<ChainName, Chain>, elements: &dyn Elements, packet: &Packet) -> Trace {
    let family = if packet.source.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
    let mut walk = Walk { family, chains, elements, packet, marked: false, sent_to: None, steps: Vec::new() };
    let hook = if packet.origin == Origin::Host { Hook::Output } else { Hook::Prerouting };
    let outcome = match walk.chain(ChainName::Base(hook)) {
        End::Ran | End::Masqueraded => Outcome::Untouched,
        End::Dropped => Outcome::Dropped,
        End::Refused => Outcome::Refused,
        End::Sent(backends) => {
            let mut arrivals: Vec<_> = backends.into_iter().map(|backend| walk.arrive(backend)).collect();
            arrivals.sort_unstable();
            Outcome::Sent(arrivals)
        }
    };
    Trace { steps: walk.steps, outcome }
}

/// How a chain ended.
enum End {
    Ran,
    Dropped,
    Refused,
    Sent(Vec<Backend>),
    Masqueraded,
}

struct Walk<'a> {
    family: Family,
    chains: &'a BTreeMap<ChainName, Chain>,
    elements: &'a dyn Elements,
    packet: &'a Packet,
    marked: bool,
    sent_to: Option<Backend>,
    steps: Vec<String>,
}

impl Walk<'_> {
    fn chain(&mut self, name: ChainName) -> End {
        let Some(chain) = self.chains.get(&name) else { return End::Ran };
        for rule in &chain.rules {
            if !rule.matches.iter().all(|matched| self.matches(matched)) {
                continue;
            }
            if let Some(end) = self.run(name, rule) {
                return end;
            }
        }
        End::Ran
    }

    /// Where a packet goes after routing, once its destination is an endpoint.
    fn arrive(&mut self, backend: Backend) -> Arrival {
        let (marked, steps) = (self.marked, self.steps.len());
        self.sent_to = Some(backend);
        let masqueraded = matches!(self.chain(ChainName::Base(Hook::Postrouting)), End::Masqueraded);
        for step in &mut self.steps[steps..] {
            *step = format!("{step}   [{backend}]");
        }
        self.marked = marked;
        Arrival { backend, masqueraded }
    }

    fn destination(&self) -> IpAddr {
        self.sent_to.map_or(self.packet.destination.address, |backend| backend.address)
    }

    fn has(&self, set: Collection, address: IpAddr) -> bool {
        let key = match set {
            Collection::ClusterIps => Key::ClusterIp(address),
            Collection::LocalEndpoints => Key::LocalEndpoint(address),
            Collection::Hairpin => Key::Hairpin(address),
            Collection::Inside | Collection::Outside | Collection::Endpoints(_) => return false,
        };
        self.elements.value(&key).is_some()
    }

    fn matches(&self, matched: &Match) -> bool {
        let source = self.packet.source;
        match matched {
            Match::FromInterface(prefix) => {
                matches!(&self.packet.origin, Origin::Interface(name) if name.starts_with(prefix.as_str()))
            }
            Match::FromHost => self.packet.origin == Origin::Host,
            Match::SourceIn(ranges) => ranges.iter().any(|range| range.contains(&source)),
            Match::SourceOutside(ranges) => !ranges.iter().any(|range| range.contains(&source)),
            Match::DestinationIn(ranges) => ranges.iter().any(|range| range.contains(&self.destination())),
            Match::DestinationOf(set) => self.has(*set, self.destination()),
            Match::Hairpin => source == self.destination() && self.has(Collection::Hairpin, source),
            Match::Marked(_) => self.marked,
            // The first connection of a client, and the only one of its port.
            Match::Pinned(_) | Match::PortTaken => false,
        }
    }

    /// Carries out a rule; `None` goes on to the next one.
    fn run(&mut self, name: ChainName, rule: &Rule) -> Option<End> {
        let at = self.steps.len();
        self.steps.push(format!("{name}: {}", rule.text(self.family)));
        let frontend = self.packet.destination;
        match &rule.statement {
            Statement::Dispatch(map) => {
                let key = if *map == Collection::Inside { Key::Inside(frontend) } else { Key::Outside(frontend) };
                match self.elements.value(&key) {
                    Some(Value::Goto(target)) => {
                        let _ = write!(self.steps[at], " {{ {frontend} : goto {target} }}");
                        Some(self.chain(ChainName::Regular(target)))
                    }
                    Some(Value::Drop) => Some(End::Dropped),
                    // A lookup that finds nothing is a rule that did not match.
                    Some(Value::Member | Value::Backend(_)) | None => {
                        self.steps.truncate(at);
                        None
                    }
                }
            }
            Statement::Goto(target) => Some(self.chain(ChainName::Regular(*target))),
            Statement::GotoAny(targets) => Some(self.any(targets)),
            Statement::Mark(_) => {
                self.marked = true;
                None
            }
            Statement::Unmark(_) => {
                self.marked = false;
                None
            }
            Statement::Pick(_, count, region) => Some(End::Sent(self.pick(*count, *region))),
            Statement::Translate(_, backend) => Some(End::Sent(vec![*backend])),
            Statement::Remember(_) => None,
            Statement::Masquerade | Statement::MasqueradeRandom => Some(End::Masqueraded),
            Statement::Return => Some(End::Ran),
            Statement::Drop => Some(End::Dropped),
            Statement::Reject => Some(End::Refused),
        }
    }

    fn any(&mut self, targets: &[Target]) -> End {
        let mut backends = Vec::new();
        for target in targets {
            if let End::Sent(more) = self.chain(ChainName::Regular(*target)) {
                backends.extend(more);
            }
        }
        End::Sent(backends)
    }

    fn pick(&self, count: u16, region: Region) -> Vec<Backend> {
        let base = if region == Region::High { HIGH } else { 0 };
        let found = (base..base + count).filter_map(|at| {
            match self.elements.value(&Key::Endpoint(self.packet.destination, at)) {
                Some(Value::Backend(backend)) => Some(backend),
                _ => None,
            }
        });
        found.collect()
    }
}
