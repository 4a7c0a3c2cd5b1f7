//! What people ask about a node's forwarding. Reads the API server and, where it may, the kernel; changes nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::Api;
use kube::api::ListParams;

use super::addresses::primary_addresses;
use super::index::Index;
use super::programme::Programme;
use super::ruleset::{Facts, Order, fixed_chains, pick_chains};
use super::run::first_facts;
use crate::command;
use crate::model::id::ServiceKey;
use crate::netfilter::Family;
use crate::netfilter::netlink::Channel;
use crate::netfilter::object::{Frontend, Key, Protocol, Target, Value};
use crate::netfilter::rule::{Chain, ChainName};
use crate::netfilter::script::TABLE;
use crate::netfilter::trace::{Elements, Origin, Packet, trace};
use crate::settings::{self, NodeQuestion};

/// Everything of one family, as the node computes it.
pub struct Ruleset {
    /// Elements, and chains of single Service ports.
    pub programme: Programme,
    /// All chains.
    pub chains: BTreeMap<ChainName, Chain>,
}

impl Elements for Programme {
    fn value(&self, key: &Key) -> Option<Value> {
        Self::value(self, key)
    }
}

/// Answers a question on standard output.
///
/// # Errors
/// It cannot be answered, and why.
pub async fn answer(question: NodeQuestion, settings: settings::Node) -> anyhow::Result<()> {
    if settings.node_name.is_empty() {
        bail!("--node-name or NODE_NAME: which node's rules?");
    }
    let client = kube::Client::try_default().await.context("cannot find the cluster: set KUBECONFIG")?;
    let (index, facts) = read(&client, &settings).await?;
    let text = match question {
        NodeQuestion::Trace { from, to, protocol } => tell_path(&index, &facts, &from, to, protocol)?,
        NodeQuestion::Rules { service } => tell_rules(&index, &facts, &service)?,
    };
    command::answer(&text)?;
    Ok(())
}

async fn read(client: &kube::Client, settings: &settings::Node) -> anyhow::Result<(Index, Facts)> {
    let all = ListParams::default();
    let node = Api::<Node>::all(client.clone()).get(&settings.node_name).await;
    let node = node.with_context(|| format!("--node-name: cannot read Node {}", settings.node_name))?;
    let mut index = Index::new(settings.node_name.clone(), settings.proxy_mode(), settings.external_ips);
    for service in Api::<Service>::all(client.clone()).list(&all).await.context("cannot list Services")? {
        index.apply_service(&service);
    }
    let slices = Api::<EndpointSlice>::all(client.clone()).list(&all).await.context("cannot list EndpointSlices")?;
    for slice in slices {
        index.apply_slice(&slice);
    }
    // Absent before Kubernetes 1.33; then nothing is known of unused addresses.
    let ranges = Api::<ServiceCIDR>::all(client.clone()).list(&all).await.map(|list| list.items).unwrap_or_default();
    let cidrs = ranges.into_iter().filter_map(|range| range.spec?.cidrs).flatten();
    let primary = primary_addresses(&node);
    let labels = node.metadata.labels.unwrap_or_default();
    let facts = Facts {
        node_port_addresses: settings.nodeport_addresses.select(&primary, &primary.iter().copied().collect()),
        node_addresses: primary.into_iter().collect(),
        service_ranges: cidrs.filter_map(|cidr| cidr.parse().ok()).collect(),
        zone: labels.get("topology.kubernetes.io/zone").cloned(),
        ..first_facts(settings)
    };
    Ok((index, facts))
}

/// Computes everything of one family.
pub fn ruleset(index: &Index, facts: &Facts, family: Family) -> Ruleset {
    let mut programme = Programme::default();
    for (key, _) in index.services() {
        programme.set(key, index.contributions(family, key, facts, |_, _| Order::default()));
    }
    let picks = programme.picks();
    let shared = picks.into_iter().flat_map(|target| pick_chains(target, facts.mark));
    let private: Vec<_> = programme.private().map(|(chain, _)| chain.clone()).collect();
    let chains = fixed_chains(family, facts).into_iter().chain(shared).chain(private);
    let chains = chains.map(|chain| (chain.name, chain)).collect();
    Ruleset { programme, chains }
}

fn tell_path(index: &Index, facts: &Facts, from: &str, to: SocketAddr, protocol: Protocol) -> anyhow::Result<String> {
    let (origin, source) = origin(facts, from, to)?;
    let family = Family::of(to.ip());
    if Family::of(source) != family {
        bail!("FROM is an {} address and TO an {family} one", Family::of(source));
    }
    let destination = Frontend { address: to.ip(), protocol, port: to.port() };
    let ruleset = ruleset(index, facts, family);
    let path = trace(&ruleset.chains, &ruleset.programme, &Packet { origin, source, destination });
    let mut text = format!("{source} to {destination}");
    if let Some(owner) = owner(index, &ruleset.programme, &destination, family, facts) {
        let _ = write!(text, ", Service {owner}");
    }
    Ok(format!("{text}\n{path}\n"))
}

/// `host`, `pod:ADDRESS`, or the address of somebody else.
fn origin(facts: &Facts, from: &str, to: SocketAddr) -> anyhow::Result<(Origin, IpAddr)> {
    let parse = |text: &str| {
        text.parse::<IpAddr>().with_context(|| format!("FROM is {from:?}; it should be host, pod:ADDRESS or ADDRESS"))
    };
    if from == "host" {
        let own = facts.node_addresses.iter().find(|address| address.is_ipv4() == to.is_ipv4());
        return Ok((Origin::Host, *own.context("this node has no address of the family of TO")?));
    }
    if let Some(pod) = from.strip_prefix("pod:") {
        let interface = facts.pod_interfaces.first().cloned().unwrap_or_else(|| "a pod's".to_owned());
        return Ok((Origin::Interface(interface), parse(pod)?));
    }
    Ok((Origin::Interface("outside".to_owned()), parse(from)?))
}

fn owner(
    index: &Index,
    programme: &Programme,
    frontend: &Frontend,
    family: Family,
    facts: &Facts,
) -> Option<ServiceKey> {
    programme.value(&Key::Inside(*frontend))?;
    let has = |key: &ServiceKey| {
        let made = index.contributions(family, key, facts, |_, _| Order::default());
        made.values().any(|(_, made)| made.elements.iter().any(|(key, _)| *key == Key::Inside(*frontend)))
    };
    index.services().map(|(key, _)| key).find(|key| has(key)).cloned()
}

fn tell_rules(index: &Index, facts: &Facts, service: &str) -> anyhow::Result<String> {
    let wanted = wanted(index, service)?;
    let mut text = String::new();
    for family in Family::ALL {
        let ruleset = ruleset(index, facts, family);
        let kernel = Kernel::read(family);
        for key in &wanted {
            let mut chains = std::collections::BTreeSet::new();
            let elements: Vec<_> = ruleset.programme.ports(key).flat_map(|made| &made.elements).collect();
            if elements.is_empty() {
                continue;
            }
            let _ = writeln!(text, "Service {key}, table {} {TABLE} ({}):", family.word(), kernel.word());
            for (element, value) in elements {
                let there = kernel.holds(element, value);
                let _ =
                    writeln!(text, "  {:<14} {}{}{there}", element.collection().name(), element.text(), value.text());
                if let Value::Goto(target) = value {
                    follow(&ruleset, *target, &mut chains);
                }
            }
            for chain in chains.iter().filter_map(|target| ruleset.chains.get(&ChainName::Regular(*target))) {
                let _ = writeln!(text, "  chain {}", chain.name);
                for rule in &chain.rules {
                    let _ = writeln!(text, "    {}", rule.text(family));
                }
            }
        }
    }
    if text.is_empty() {
        text = format!("{service}: no rules; it has no ClusterIP, or another proxy serves it\n");
    }
    Ok(text)
}

fn follow(ruleset: &Ruleset, target: Target, chains: &mut std::collections::BTreeSet<Target>) {
    if chains.insert(target)
        && let Some(chain) = ruleset.chains.get(&ChainName::Regular(target))
    {
        for next in chain.targets() {
            follow(ruleset, next, chains);
        }
    }
}

fn wanted(index: &Index, service: &str) -> anyhow::Result<Vec<ServiceKey>> {
    if let Ok(number) = service.parse::<u16>() {
        let has = |port: &super::service::Port| port.port == number || port.node_port == Some(number);
        let mut keys: Vec<_> =
            index.services().filter(|(_, service)| service.ports.iter().any(has)).map(|(key, _)| key.clone()).collect();
        keys.sort();
        if keys.is_empty() {
            bail!("no Service has port or NodePort {number}");
        }
        return Ok(keys);
    }
    let (namespace, name) = service.split_once('/').unwrap_or(("default", service));
    let key = ServiceKey::new(namespace, name);
    if index.service(&key).is_none() {
        bail!("Service {key} does not exist, has no ClusterIP, or is served by another proxy");
    }
    Ok(vec![key])
}

/// What the kernel of this host holds, if this process may see it.
struct Kernel(Option<BTreeMap<Key, Value>>);

impl Kernel {
    fn read(family: Family) -> Self {
        let read = || -> Option<BTreeMap<Key, Value>> {
            let mut channel = Channel::open().ok()?;
            channel.has_table(family, TABLE).ok().filter(|there| *there)?;
            super::kernel::elements(&mut channel, family).ok()
        };
        Self(read())
    }

    const fn word(&self) -> &'static str {
        if self.0.is_some() { "compared with the kernel" } else { "as they should be; no such table can be seen here" }
    }

    fn holds(&self, key: &Key, value: &Value) -> &'static str {
        match &self.0 {
            // Endpoints may stand in another order.
            Some(elements) if key_is_ordered(key) => {
                if elements.contains_key(key) {
                    ""
                } else {
                    "   MISSING"
                }
            }
            Some(elements) if elements.get(key) == Some(value) => "",
            Some(_) => "   MISSING",
            None => "",
        }
    }
}

const fn key_is_ordered(key: &Key) -> bool {
    matches!(key, Key::Endpoint(..))
}
