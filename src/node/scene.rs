//! Scenes for tests: Services and EndpointSlices as the API server tells of them, on a node named `here`.
//!
//! Endpoints have names instead of addresses: `near1` is the first pod of this node, `far2` the second of another; each
//! has an address in either family. In outcomes a `*` follows those that see this node's address for the client's.

use std::net::IpAddr;

use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Value, json};

use super::index::Index;
use super::question::{Ruleset, ruleset};
use super::ruleset::Facts;
use super::service::Mode;
use crate::model::id::ServiceKey;
use crate::netfilter::Family;
use crate::netfilter::object::{Backend, Frontend, Protocol};
use crate::netfilter::trace::{Arrival, Origin, Outcome, Packet, trace};

/// What the tests' Services listen on behind their ports.
pub const TARGET_PORT: u16 = 8080;

/// A node and what it has been told.
pub struct Scene {
    pub index: Index,
    pub facts: Facts,
}

/// A node of addresses 10.0.1.5 and fd00::1:5 in zone `a` that knows its pods by `eni`.
pub fn facts(mode: Mode) -> Facts {
    let addresses: Vec<IpAddr> = ["10.0.1.5", "fd00::1:5"].iter().map(|address| address.parse().unwrap()).collect();
    Facts {
        mode,
        node_port_addresses: addresses.iter().copied().collect(),
        node_addresses: addresses.into_iter().collect(),
        pod_interfaces: vec!["eni".to_owned()],
        pod_ranges: Vec::new(),
        service_ranges: vec!["10.96.0.0/16".parse().unwrap(), "fd00:96::/108".parse().unwrap()],
        zone: Some("a".to_owned()),
        masquerade_all: false,
        mark: 0x4000,
    }
}

impl Scene {
    /// A node without kube-proxy that has been told nothing.
    pub fn new() -> Self {
        Self::of_mode(Mode::Replace("weir".to_owned()))
    }

    pub fn of_mode(mode: Mode) -> Self {
        Self { index: Index::new("here".to_owned(), mode.clone(), true), facts: facts(mode) }
    }

    /// Service `n/NAME`, as old as it says, or else of the second 100.
    pub fn service(&mut self, name: &str, object: Value) {
        let mut whole = json!({"metadata": {"namespace": "n", "name": name, "creationTimestamp": at(100)}});
        merge(&mut whole, object);
        self.index.apply_service(&serde_json::from_value(whole).unwrap());
    }

    /// The endpoints of a Service, in one slice of each family; each may be followed by `draining`, `unready`,
    /// `zone=ZONE` or `node=NODE`. All have a port `web` of every protocol.
    pub fn endpoints(&mut self, service: &str, endpoints: &[&str]) {
        for family in Family::ALL {
            let protocols = Protocol::ALL.map(|protocol| protocol.word().to_uppercase());
            let ports = protocols.map(|protocol| json!({"name": "web", "port": TARGET_PORT, "protocol": protocol}));
            let endpoints: Vec<_> = endpoints.iter().map(|text| endpoint(text, family)).collect();
            let slice = json!({
                "metadata": {
                    "namespace": "n", "name": format!("{service}-{family}"),
                    "labels": {"kubernetes.io/service-name": service},
                },
                "addressType": family.name(), "ports": ports, "endpoints": endpoints,
            });
            self.index.apply_slice(&serde_json::from_value(slice).unwrap());
        }
    }

    /// Deletes the slices of a Service.
    pub fn no_endpoints(&mut self, service: &str) {
        for family in Family::ALL {
            self.index.delete_slice(&key(&format!("{service}-{family}")));
        }
    }

    /// Lets an event happen; returns whether it is that things are carried on.
    pub fn happen(&mut self, event: Event) -> bool {
        match event {
            Event::Service(name, service) => self.service(name, service),
            Event::NoService(name) => self.index.delete_service(&key(name)),
            Event::Endpoints(name, some) => self.endpoints(name, &some),
            Event::NoEndpoints(name) => self.no_endpoints(name),
            Event::Carry => return true,
        }
        false
    }

    pub fn ruleset(&self, family: Family) -> Ruleset {
        ruleset(&self.index, &self.facts, family)
    }

    /// What becomes of a connection, `to` an address, a port and, if it is not TCP, a protocol: `10.96.0.1:53/udp`.
    ///
    /// It comes from `host`, `pod` (one that is no endpoint), an endpoint on this node, `outside`, or the address of
    /// another outsider.
    pub fn outcome(&self, from: &str, to: &str) -> String {
        let destination = frontend(to);
        let family = Family::of(destination.address);
        let pick = |v4: &str, v6: &str| if family == Family::Ipv4 { v4.to_owned() } else { v6.to_owned() };
        let (origin, source) = match from {
            "host" => (Origin::Host, pick("10.0.1.5", "fd00::1:5")),
            "pod" => (Origin::Interface("eni0123".to_owned()), address("near9", family)),
            near if near.starts_with("near") => (Origin::Interface("eni4567".to_owned()), address(near, family)),
            "outside" => (Origin::Interface("eth0".to_owned()), pick("203.0.113.9", "2001:db8::9")),
            other => (Origin::Interface("eth0".to_owned()), other.to_owned()),
        };
        let packet = Packet { origin, source: source.parse().unwrap(), destination };
        let ruleset = self.ruleset(family);
        tell(&trace(&ruleset.chains, &ruleset.programme, &packet).outcome)
    }

    /// Asserts the outcome of each (from, to).
    pub fn expect(&self, cases: &[(&str, &str, &str)]) {
        for (from, to, wanted) in cases {
            assert_eq!(self.outcome(from, to), *wanted, "from {from} to {to}");
        }
    }
}

pub fn key(name: &str) -> ServiceKey {
    ServiceKey::new("n", name)
}

/// A second since 1970, as the API server writes it.
pub fn at(second: u32) -> String {
    format!("1970-01-01T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

pub fn frontend(text: &str) -> Frontend {
    let (socket, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let socket: std::net::SocketAddr = socket.parse().unwrap();
    Frontend { address: socket.ip(), protocol: Protocol::parse(protocol).unwrap(), port: socket.port() }
}

/// The address of a named endpoint.
pub fn address(name: &str, family: Family) -> String {
    let (net, number) = name.split_at(name.find(|c: char| c.is_ascii_digit()).unwrap());
    let net = if net == "near" { 1 } else { 2 };
    let number: u16 = number.parse().unwrap();
    match family {
        Family::Ipv4 => format!("10.{net}.{}.{}", number >> 8, number & 0xff),
        Family::Ipv6 => format!("fd00:{net}::{number:x}"),
    }
}

/// The name of an endpoint.
pub fn name(backend: Backend) -> String {
    assert_eq!(backend.port, TARGET_PORT);
    let (net, number) = match backend.address {
        IpAddr::V4(address) => {
            let [_, net, high, low] = address.octets();
            (u16::from(net), u16::from_be_bytes([high, low]))
        }
        IpAddr::V6(address) => (address.segments()[1], address.segments()[7]),
    };
    format!("{}{number}", if net == 1 { "near" } else { "far" })
}

fn endpoint(text: &str, family: Family) -> Value {
    let mut words = text.split(' ');
    let name = words.next().unwrap();
    let mut endpoint = json!({
        "addresses": [address(name, family)],
        "nodeName": if name.starts_with("near") { "here" } else { "there" },
        "conditions": {"ready": true, "serving": true, "terminating": false},
    });
    for word in words {
        let more = match word.split_once('=') {
            Some(("zone", zone)) => json!({"hints": {"forZones": [{"name": zone}]}}),
            Some(("node", node)) => json!({"hints": {"forNodes": [{"name": node}]}}),
            None if word == "draining" => json!({"conditions": {"ready": false, "terminating": true}}),
            None if word == "unready" => json!({"conditions": {"ready": false, "serving": false}}),
            _ => panic!("what is {word}?"),
        };
        merge(&mut endpoint, more);
    }
    endpoint
}

fn tell(outcome: &Outcome) -> String {
    let arrival = |Arrival { backend, masqueraded }: &Arrival| name(*backend) + if *masqueraded { "*" } else { "" };
    match outcome {
        Outcome::Untouched => "untouched".to_owned(),
        Outcome::Dropped => "dropped".to_owned(),
        Outcome::Refused => "refused".to_owned(),
        Outcome::Sent(arrivals) => arrivals.iter().map(arrival).collect::<Vec<_>>().join(" "),
    }
}

fn merge(into: &mut Value, more: Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (key, value) in more {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, more) => *into = more,
    }
}

/// Something that the API server tells, or the moment at which what it told is carried on.
#[derive(Clone, Debug)]
pub enum Event {
    Service(&'static str, Value),
    NoService(&'static str),
    Endpoints(&'static str, Vec<&'static str>),
    NoEndpoints(&'static str),
    Carry,
}

const NAMES: [&str; 3] = ["one", "two", "three"];
const ENDPOINTS: [&str; 8] =
    ["near1", "near2 zone=a", "near3 draining", "near4 zone=b", "far1", "far2 zone=a", "far3 draining", "far4 unready"];

prop_compose! {
    /// Services that get into each other's way.
    fn services()(
        created in 1..3_u32,
        cluster_ip in select(vec!["10.96.0.1", "10.96.0.2", "None"]),
        numbers in subsequence(vec![80, 81], 1..=2),
        node_port in proptest::option::of(30080..30082),
        protocol in select(vec!["TCP", "UDP"]),
        external_ips in subsequence(vec!["198.51.100.7", "198.51.100.8", "10.0.1.5"], 0..=2),
        balancers in subsequence(vec!["198.51.100.8", "198.51.100.9"], 0..=2),
        ranges in subsequence(vec!["203.0.113.0/24", "10.0.0.0/8"], 0..=2),
        (external, internal) in (select(vec!["Cluster", "Local"]), select(vec!["Cluster", "Local"])),
        affinity in proptest::option::of(5..7_u32),
    ) -> Value {
        let ports: Vec<_> = numbers.iter().enumerate().map(|(at, port)| json!({
            "name": if at == 0 { "web" } else { "more" }, "port": port, "protocol": protocol,
            "nodePort": if at == 0 { node_port } else { None },
        })).collect();
        let ingress: Vec<_> = balancers.iter().map(|ip| json!({"ip": ip})).collect();
        json!({
            "metadata": {"creationTimestamp": at(created)},
            "spec": {
                "type": "LoadBalancer", "clusterIP": cluster_ip, "ports": ports, "externalIPs": external_ips,
                "loadBalancerSourceRanges": ranges,
                "externalTrafficPolicy": external, "internalTrafficPolicy": internal,
                "sessionAffinity": if affinity.is_some() { "ClientIP" } else { "None" },
                "sessionAffinityConfig": affinity.map(|seconds| json!({"clientIP": {"timeoutSeconds": seconds}})),
            },
            "status": {"loadBalancer": {"ingress": ingress}},
        })
    }
}

/// Short histories.
pub fn events() -> impl Strategy<Value = Vec<Event>> {
    let name = || select(NAMES.to_vec());
    let event = prop_oneof![
        4 => (name(), services()).prop_map(|(name, service)| Event::Service(name, service)),
        1 => name().prop_map(Event::NoService),
        4 => (name(), subsequence(ENDPOINTS.to_vec(), 0..=8)).prop_map(|(name, some)| Event::Endpoints(name, some)),
        1 => name().prop_map(Event::NoEndpoints),
        3 => Just(Event::Carry),
    ];
    proptest::collection::vec(event, 1..40)
}
