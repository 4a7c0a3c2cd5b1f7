//! EndpointSlices → the endpoints a connection may go to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::discovery::v1;

use super::service::port_number;
use crate::model::id::ServiceKey;
use crate::netfilter::Family;
use crate::netfilter::object::{Backend, Protocol};

const SERVICE_LABEL: &str = "kubernetes.io/service-name";
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// A port of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Port {
    name: String,
    protocol: Protocol,
    number: u16,
}

/// An endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a condition of the API, independent of the others")]
struct Endpoint {
    address: IpAddr,
    /// Whether it is on our node.
    local: bool,
    ready: bool,
    serving: bool,
    terminating: bool,
    /// Whether it is meant for our node, if it is meant for any in particular.
    for_node: Option<bool>,
    /// The zones it is meant for.
    zones: Option<Box<[String]>>,
}

/// An EndpointSlice, as far as it concerns us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The Service it belongs to.
    pub service: ServiceKey,
    family: Family,
    ports: Vec<Port>,
    endpoints: Vec<Endpoint>,
}

impl Slice {
    /// The slice, if it belongs to a Service that has an address (P3) and is of a family (P4).
    pub fn read(slice: &v1::EndpointSlice, node: &str) -> Option<Self> {
        let labels = slice.metadata.labels.as_ref()?;
        if labels.contains_key(HEADLESS_LABEL) {
            return None;
        }
        let family = match slice.address_type.as_str() {
            "IPv4" => Family::Ipv4,
            "IPv6" => Family::Ipv6,
            _ => return None,
        };
        let ports = slice.ports.iter().flatten().filter_map(|port| {
            Some(Port {
                name: port.name.clone()?,
                protocol: Protocol::parse(port.protocol.as_deref().unwrap_or("TCP"))?,
                number: port.port.and_then(port_number)?,
            })
        });
        Some(Self {
            service: ServiceKey::new(slice.metadata.namespace.clone()?, labels.get(SERVICE_LABEL)?),
            family,
            ports: ports.collect(),
            endpoints: slice.endpoints.iter().filter_map(|endpoint| Endpoint::read(endpoint, family, node)).collect(),
        })
    }
}

impl Endpoint {
    fn read(endpoint: &v1::Endpoint, family: Family, node: &str) -> Option<Self> {
        let address = endpoint.addresses.first()?.parse().ok().filter(|address| family.has(*address))?;
        let conditions = endpoint.conditions.as_ref();
        let hints = endpoint.hints.as_ref();
        let nodes = hints.and_then(|hints| hints.for_nodes.as_ref()).filter(|nodes| !nodes.is_empty());
        let zones = hints.and_then(|hints| hints.for_zones.as_ref()).filter(|zones| !zones.is_empty());
        Some(Self {
            address,
            local: endpoint.node_name.as_deref() == Some(node),
            ready: conditions.and_then(|known| known.ready).unwrap_or(true),
            serving: conditions.and_then(|known| known.serving).unwrap_or(true),
            terminating: conditions.and_then(|known| known.terminating).unwrap_or(false),
            for_node: nodes.map(|nodes| nodes.iter().any(|hint| hint.name == node)),
            zones: zones.map(|zones| zones.iter().map(|hint| hint.name.clone()).collect()),
        })
    }

    fn is_draining(&self) -> bool {
        self.serving && self.terminating
    }
}

/// An endpoint that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Candidate {
    /// Where it is.
    pub backend: Backend,
    /// Whether it is on our node.
    pub local: bool,
}

/// The endpoints of a Service port in one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// For policy Cluster, sorted.
    pub cluster: Vec<Candidate>,
    /// For policy Local, sorted. Empty where `cluster` is.
    pub local: Vec<Candidate>,
    /// All that answer, also those that no new connection goes to: what established flows may go on with.
    pub serving: Vec<Backend>,
}

/// Chooses among the endpoints of a Service's slices (P5 to P8, P43, P44).
pub fn choose<'a>(
    slices: impl Iterator<Item = &'a Slice>,
    family: Family,
    name: &str,
    protocol: Protocol,
    zone: Option<&str>,
) -> Choice {
    let endpoints = endpoints(slices, family, name, protocol);
    let candidate =
        |(backend, endpoint): (&Backend, &&Endpoint)| Candidate { backend: *backend, local: endpoint.local };
    let pick = |wanted: &dyn Fn(&Endpoint) -> bool| -> Vec<_> {
        endpoints.iter().filter(|(_, endpoint)| wanted(endpoint)).map(candidate).collect()
    };
    let ready: Vec<_> = endpoints.values().copied().filter(|endpoint| endpoint.ready).collect();
    let near = topology(&ready, zone);
    let or_draining = |some: Vec<Candidate>, local: bool| {
        if some.is_empty() { pick(&|endpoint| endpoint.is_draining() && (endpoint.local || !local)) } else { some }
    };
    Choice {
        cluster: or_draining(pick(&|endpoint| endpoint.ready && near.allows(endpoint)), false),
        local: or_draining(pick(&|endpoint| endpoint.ready && endpoint.local), true),
        serving: endpoints.iter().filter(|(_, endpoint)| endpoint.serving).map(|(backend, _)| *backend).collect(),
    }
}

/// Ready endpoints on our node, over all ports of a Service (P48). A pod of two families is one endpoint.
pub fn count_local<'a>(slices: impl Iterator<Item = &'a Slice>) -> usize {
    let endpoints = slices.flat_map(|slice| &slice.endpoints);
    let ready = endpoints.filter(|endpoint| endpoint.local && endpoint.ready);
    let addresses: BTreeSet<_> = ready.map(|endpoint| endpoint.address).collect();
    let of_v4 = addresses.iter().filter(|address| address.is_ipv4()).count();
    of_v4.max(addresses.len() - of_v4)
}

/// The endpoints of a port. The same one may be in two slices for a moment; it is what the better of them says.
fn endpoints<'a>(
    slices: impl Iterator<Item = &'a Slice>,
    family: Family,
    name: &str,
    protocol: Protocol,
) -> BTreeMap<Backend, &'a Endpoint> {
    let mut endpoints: BTreeMap<Backend, &Endpoint> = BTreeMap::new();
    for slice in slices.filter(|slice| slice.family == family) {
        let ports = slice.ports.iter().filter(|port| port.name == name && port.protocol == protocol);
        for (port, endpoint) in ports.flat_map(|port| slice.endpoints.iter().map(move |endpoint| (port, endpoint))) {
            let backend = Backend { address: endpoint.address, port: port.number };
            let rank = |endpoint: &Endpoint| (endpoint.ready, endpoint.is_draining(), endpoint.local);
            let known = endpoints.entry(backend).or_insert(endpoint);
            if rank(endpoint) > rank(known) {
                *known = endpoint;
            }
        }
    }
    endpoints
}

/// Which ready endpoints are near enough.
enum Near<'a> {
    All,
    Node,
    Zone(&'a str),
}

impl Near<'_> {
    fn allows(&self, endpoint: &Endpoint) -> bool {
        match self {
            Self::All => true,
            Self::Node => endpoint.for_node == Some(true),
            Self::Zone(zone) => endpoint.zones.iter().flatten().any(|hint| hint == zone),
        }
    }
}

/// Hints count only if every ready endpoint has them and one of them is for us: otherwise some would get no traffic.
fn topology<'a>(ready: &[&Endpoint], zone: Option<&'a str>) -> Near<'a> {
    let all = |known: &dyn Fn(&Endpoint) -> bool| ready.iter().all(|endpoint| known(endpoint));
    let any = |near: &Near<'_>| ready.iter().any(|endpoint| near.allows(endpoint));
    if all(&|endpoint| endpoint.for_node.is_some()) && any(&Near::Node) {
        return Near::Node;
    }
    if let Some(zone) = zone.map(Near::Zone).filter(any)
        && all(&|endpoint| endpoint.zones.is_some())
    {
        return zone;
    }
    Near::All
}

#[cfg(test)]
mod tests;
