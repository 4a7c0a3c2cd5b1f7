//! Text for `nft -f -`: declarations, chains, and whole rulesets.

use std::fmt::Write as _;

use super::Family;
use super::object::{Collection, Key, Protocol, Value};
use super::rule::{Chain, ChainName, PinSet, TAKEN_PORTS, digest};

/// Name of our table in either family.
pub const TABLE: &str = "weir";
/// Elements in one command: fewer, longer commands are fewer objects for nft's parser.
const ELEMENTS_PER_COMMAND: usize = 500;

/// A script under construction, for the table of one family. What `nft -f` reads is one transaction: all or nothing.
#[derive(Debug)]
pub struct Script {
    family: Family,
    text: String,
}

impl Script {
    /// An empty script.
    pub const fn new(family: Family) -> Self {
        Self { family, text: String::new() }
    }

    /// Whether it would do nothing.
    pub const fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// The script.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Makes the table if there is none.
    pub fn add_table(&mut self) {
        self.line(&format!("add table {}", self.table()));
    }

    /// Deletes the table with all that is in it; it need not exist.
    pub fn delete_table(&mut self) {
        // `destroy` is newer than the nft of most images; adding first makes deleting safe.
        self.add_table();
        self.line(&format!("delete table {}", self.table()));
    }

    /// Makes the maps and sets that every Service shares, and an empty chain whose name tells how they are declared.
    pub fn declare_collections(&mut self) {
        let table = self.table();
        self.line(&format!("add chain {table} {}", layout_chain(self.family)));
        for declaration in declarations(self.family) {
            self.line(&format!("add {}", declaration.replacen('@', &format!("{table} "), 1)));
        }
    }

    /// Makes the set that remembers the clients of one endpoint. Of no size: the kernel makes room for all of a size at
    /// once, two megabytes for the 65,535 clients that it allows in any case, and there may be thousands of sets.
    pub fn declare_pins(&mut self, pins: &PinSet) {
        let (table, kind) = (self.table(), self.family.address_type());
        self.line(&format!(
            "add set {table} {pins} {{ type {kind}; flags dynamic,timeout; timeout {}s; }}",
            pins.seconds
        ));
    }

    fn add_chain(&mut self, name: ChainName) {
        let table = self.table();
        match name {
            ChainName::Base(hook) => self.line(&format!(
                "add chain {table} {name} {{ type nat hook {} priority {}; }}",
                hook.name(),
                hook.priority()
            )),
            ChainName::Regular(_) => self.line(&format!("add chain {table} {name}")),
        }
    }

    fn flush_chain(&mut self, name: ChainName) {
        self.flush_chain_named(&name.to_string());
    }

    /// Empties a chain of any name.
    pub fn flush_chain_named(&mut self, name: &str) {
        self.line(&format!("flush chain {} {name}", self.table()));
    }

    /// Deletes a chain of any name, to which nothing may refer.
    pub fn delete_chain(&mut self, name: &str) {
        self.flush_chain_named(name);
        self.line(&format!("delete chain {} {name}", self.table()));
    }

    /// Deletes a set of any name.
    pub fn delete_set(&mut self, name: &str) {
        self.line(&format!("delete set {} {name}", self.table()));
    }

    fn add_rules(&mut self, chain: &Chain) {
        let table = self.table();
        for rule in &chain.rules {
            let (text, digest) = (rule.text(self.family), rule.digest(self.family));
            self.line(&format!("add rule {table} {} {text} comment \"{digest}\"", chain.name));
        }
    }

    /// Gives chains exactly these rules, whether they exist or not: first all of them are made, since they refer to each
    /// other.
    pub fn write_chains<'a>(&mut self, chains: impl Iterator<Item = &'a Chain> + Clone) {
        for chain in chains.clone() {
            self.add_chain(chain.name);
        }
        for chain in chains {
            self.flush_chain(chain.name);
            self.add_rules(chain);
        }
    }

    /// Adds elements, which must be sorted by collection to be few commands.
    pub fn add_elements<'a>(&mut self, elements: impl Iterator<Item = (&'a Key, &'a Value)>) {
        self.elements("add", elements.map(|(key, value)| (key, key.text() + &value.text())));
    }

    /// Deletes elements, which must exist.
    pub fn delete_elements<'a>(&mut self, elements: impl Iterator<Item = (&'a Key, &'a Value)>) {
        // With its value: nft 1.0.6 takes the deletion of a map's element only so.
        self.elements("delete", elements.map(|(key, value)| (key, key.text() + &value.text())));
    }

    fn elements<'a>(&mut self, verb: &str, elements: impl Iterator<Item = (&'a Key, String)>) {
        let table = self.table();
        let mut open: Option<(Collection, usize)> = None;
        for (key, text) in elements {
            let collection = key.collection();
            match &mut open {
                Some((same, count)) if *same == collection && *count < ELEMENTS_PER_COMMAND => {
                    *count += 1;
                    let _ = write!(self.text, ", {text}");
                }
                _ => {
                    if open.is_some() {
                        self.text.push_str(" }\n");
                    }
                    let _ = write!(self.text, "{verb} element {table} {} {{ {text}", collection.name());
                    open = Some((collection, 1));
                }
            }
        }
        if open.is_some() {
            self.text.push_str(" }\n");
        }
    }

    fn table(&self) -> String {
        format!("{} {TABLE}", self.family.word())
    }

    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }
}

/// What [`Script::declare_collections`] makes, with `@` before each name.
fn declarations(family: Family) -> Vec<String> {
    let (kind, ip) = (family.address_type(), family.word());
    let declare = |collection: Collection| {
        let name = collection.name();
        match collection {
            Collection::Inside | Collection::Outside => {
                format!("map @{name} {{ type {kind} . inet_proto . inet_service : verdict; }}")
            }
            Collection::Endpoints(protocol) => endpoints(ip, name, protocol),
            Collection::ClusterIps | Collection::LocalEndpoints => format!("set @{name} {{ type {kind}; }}"),
            Collection::Hairpin => format!("set @{name} {{ type {kind} . {kind}; }}"),
        }
    };
    let mut declared: Vec<_> = Collection::ALL.into_iter().map(declare).collect();
    declared.push(format!(
        "set @{TAKEN_PORTS} {{ type inet_proto . inet_service . {kind} . inet_service; size 65535; flags dynamic,timeout; timeout 1s; }}"
    ));
    declared
}

/// nft 1.0.6 finds "conflicting protocols" when it reads back a key of `th dport`, so each protocol has its own map.
fn endpoints(ip: &str, name: &str, protocol: Protocol) -> String {
    let port = format!("{} dport", protocol.word());
    format!("map @{name} {{ typeof {ip} daddr . {port} . numgen random mod 65536 : {ip} daddr . {port}; }}")
}

/// Name of the chain that tells how the maps and sets are declared: a table of another layout is replaced as a whole.
pub fn layout_chain(family: Family) -> String {
    format!("layout-{}", digest(&declarations(family).join("\n")))
}
