//! Rules and chains as values: rendered for nft here, walked by the tracer next door.

use std::fmt::{self, Write as _};

use ipnet::IpNet;
use sha2::{Digest as _, Sha256};

use super::Family;
use super::object::{Backend, Collection, HIGH, PortId, Protocol, Region, Target};

/// A hook of the kernel's packet path at which a nat base chain of ours sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// Packets that arrive, before routing.
    Prerouting,
    /// Packets this host sends.
    Output,
    /// Packets that leave, after routing.
    Postrouting,
}

impl Hook {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Prerouting, Self::Output, Self::Postrouting];

    /// Its name, and that of the chain on it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        }
    }

    /// Its number in the kernel (linux/netfilter.h).
    pub const fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Output => 3,
            Self::Postrouting => 4,
        }
    }

    /// Before iptables (−100, 100) and the VPC CNI's own table (−90). The first nat chain of a hook that translates a
    /// connection is the last one asked.
    pub const fn priority(self) -> i32 {
        match self {
            Self::Prerouting | Self::Output => -105,
            Self::Postrouting => 99,
        }
    }
}

/// The endpoint that clients of a Service port with session affinity are pinned to, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PinSet {
    /// Service port.
    pub id: PortId,
    /// Endpoint, as a hash.
    pub endpoint: u32,
    /// Seconds a client may be idle. The kernel cannot change it on a set, so the set's name tells it.
    pub seconds: u32,
}

impl fmt::Display for PinSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pins-{}-{:08x}-{}", self.id, self.endpoint, self.seconds)
    }
}

/// What a packet must be for a rule to act on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// It came in by an interface whose name begins like this.
    FromInterface(String),
    /// This host sent it.
    FromHost,
    /// Its source is in one of these ranges.
    SourceIn(Vec<IpNet>),
    /// Its source is in none of these ranges.
    SourceOutside(Vec<IpNet>),
    /// Its destination is in one of these ranges.
    DestinationIn(Vec<IpNet>),
    /// Its destination is a member of a set.
    DestinationOf(Collection),
    /// It was sent to an endpoint at its own source address.
    Hairpin,
    /// It carries our mark.
    Marked(u32),
    /// Its source is pinned to an endpoint.
    Pinned(PinSet),
    /// A moment ago another connection from the same source port went to the same endpoint: it may have taken that port
    /// on this node without being in the connection table yet, so that both would be given it and one would be dropped.
    PortTaken,
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// Goes on where a verdict map says, if the frontend is in it.
    Dispatch(Collection),
    /// Goes on in a chain, and does not return.
    Goto(Target),
    /// Goes on in one of several chains, each as likely as the others.
    GotoAny(Vec<Target>),
    /// Sets our mark.
    Mark(u32),
    /// Clears our mark.
    Unmark(u32),
    /// Sends the connection to one of so many endpoints, each as likely as the others.
    Pick(Protocol, u16, Region),
    /// Sends the connection to an endpoint.
    Translate(Protocol, Backend),
    /// Remembers the source in a set.
    Remember(PinSet),
    /// Gives the connection this node's address, and a port that nobody has: its own if it can be.
    Masquerade,
    /// The same, with a random port.
    MasqueradeRandom,
    /// Ends the chain.
    Return,
    /// Drops the packet.
    Drop,
    /// Answers ICMP port unreachable.
    Reject,
}

/// A rule: what it does with packets that match all of its conditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Conditions.
    pub matches: Vec<Match>,
    /// Action.
    pub statement: Statement,
}

impl Rule {
    /// A rule for every packet.
    pub fn always(statement: Statement) -> Self {
        Self { matches: Vec::new(), statement }
    }

    /// A rule with one condition.
    pub fn when(matched: Match, statement: Statement) -> Self {
        Self { matches: vec![matched], statement }
    }

    /// As nft reads it, without the comment.
    pub fn text(&self, family: Family) -> String {
        let mut text = String::new();
        for matched in &self.matches {
            let _ = write!(text, "{} ", matched.text(family));
        }
        text.push_str(&self.statement.text(family));
        text
    }

    /// Its comment: a hash of its text, by which a rule in the kernel is recognised without reading the rule.
    pub fn digest(&self, family: Family) -> String {
        digest(&self.text(family))
    }
}

/// Eight hexadecimal digits of a hash.
pub fn digest(text: &str) -> String {
    let hash = Sha256::digest(text.as_bytes());
    format!("{:02x}{:02x}{:02x}{:02x}", hash[0], hash[1], hash[2], hash[3])
}

/// A chain's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChainName {
    /// A base chain.
    Base(Hook),
    /// A chain that others go to.
    Regular(Target),
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base(hook) => f.write_str(hook.name()),
            Self::Regular(target) => target.fmt(f),
        }
    }
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Name.
    pub name: ChainName,
    /// Rules, in order.
    pub rules: Vec<Rule>,
}

impl Chain {
    /// A chain that others go to.
    pub fn regular(target: Target, rules: Vec<Rule>) -> Self {
        Self { name: ChainName::Regular(target), rules }
    }

    /// What the comments of its rules in the kernel must be.
    pub fn digests(&self, family: Family) -> Vec<String> {
        self.rules.iter().map(|rule| rule.digest(family)).collect()
    }

    /// Chains that its rules go to.
    pub fn targets(&self) -> impl Iterator<Item = Target> {
        self.rules
            .iter()
            .flat_map(|rule| match &rule.statement {
                Statement::Goto(target) => std::slice::from_ref(target),
                Statement::GotoAny(targets) => targets,
                _ => &[],
            })
            .copied()
    }
}

impl Family {
    /// The word nft has for a table of this family and for its header.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ipv4 => "ip",
            Self::Ipv6 => "ip6",
        }
    }

    /// The word nft has for its addresses.
    pub const fn address_type(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4_addr",
            Self::Ipv6 => "ipv6_addr",
        }
    }
}

/// How often a source port may be kept for connections to one endpoint: the race that this settles lasts microseconds.
/// A longer moment would catch clients that reuse a port of their own, which must get the same port again: the endpoint
/// may still have the old connection in TIME_WAIT, and refuses another client's timestamps there (PAWS).
const KEPT_PER_SECOND: u32 = 100;

impl Match {
    fn text(&self, family: Family) -> String {
        let ip = family.word();
        match self {
            Self::FromInterface(prefix) => format!("iifname \"{prefix}*\""),
            // No interface: the kernel's index for it is 0.
            Self::FromHost => "iif 0".to_owned(),
            Self::SourceIn(ranges) => format!("{ip} saddr {{ {} }}", join(ranges)),
            Self::SourceOutside(ranges) => format!("{ip} saddr != {{ {} }}", join(ranges)),
            Self::DestinationIn(ranges) => format!("{ip} daddr {{ {} }}", join(ranges)),
            Self::DestinationOf(set) => format!("{ip} daddr @{}", set.name()),
            Self::Hairpin => format!("ct status dnat {ip} saddr . {ip} daddr @{}", Collection::Hairpin.name()),
            Self::Marked(mark) => format!("meta mark & {mark:#010x} != 0"),
            Self::Pinned(pins) => format!("{ip} saddr @{pins}"),
            Self::PortTaken => format!(
                "update @{TAKEN_PORTS} {{ meta l4proto . th sport . {ip} daddr . th dport limit rate over {KEPT_PER_SECOND}/second burst 1 packets }}"
            ),
        }
    }
}

/// Name of the set behind [`Match::PortTaken`].
pub const TAKEN_PORTS: &str = "taken-ports";

impl Statement {
    fn text(&self, family: Family) -> String {
        let ip = family.word();
        match self {
            Self::Dispatch(map) => format!("{ip} daddr . meta l4proto . th dport vmap @{}", map.name()),
            Self::Goto(target) => format!("goto {target}"),
            Self::GotoAny(targets) => {
                let arms: Vec<_> = targets.iter().enumerate().map(|(at, to)| format!("{at} : goto {to}")).collect();
                format!("numgen random mod {} vmap {{ {} }}", targets.len(), arms.join(", "))
            }
            Self::Mark(mark) => format!("meta mark set meta mark | {mark:#010x}"),
            Self::Unmark(mark) => format!("meta mark set meta mark & {:#010x}", !mark),
            Self::Pick(protocol, count, region) => {
                let offset = if *region == Region::High { format!(" offset {HIGH}") } else { String::new() };
                format!(
                    "dnat {ip} to {ip} daddr . {0} dport . numgen random mod {count}{offset} map @{1}",
                    protocol.word(),
                    Collection::Endpoints(*protocol).name(),
                )
            }
            Self::Translate(protocol, backend) => {
                format!("meta l4proto {} dnat {ip} to {backend}", protocol.word())
            }
            Self::Remember(pins) => format!("update @{pins} {{ {ip} saddr }}"),
            Self::Masquerade => "masquerade".to_owned(),
            Self::MasqueradeRandom => "masquerade fully-random".to_owned(),
            Self::Return => "return".to_owned(),
            Self::Drop => "drop".to_owned(),
            Self::Reject => "reject".to_owned(),
        }
    }
}

fn join(ranges: &[IpNet]) -> String {
    ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
