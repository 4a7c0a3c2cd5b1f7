use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;
use crate::netfilter::Family;
use crate::netfilter::object::{HIGH, Region};
use crate::netfilter::rule::Statement;
use crate::node::ruleset::{Facts, pick_chains};
use crate::node::scene::{self, Scene, events};

const FAMILY: Family = Family::Ipv4;

/// A scene, the programme that follows it change by change, and a kernel that is told what the programme says.
struct Follower {
    scene: Scene,
    programme: Programme,
    kernel: Kernel,
}

impl Follower {
    fn new() -> Self {
        Self { scene: Scene::new(), programme: Programme::default(), kernel: Kernel::default() }
    }

    /// Brings the programme up to date; returns frontends that older Services have.
    fn follow(&mut self) -> BTreeSet<Frontend> {
        let mut lost = BTreeSet::new();
        for key in self.scene.index.take_changed() {
            let programme = &self.programme;
            let order = |_: &_, port: &super::super::service::Port| {
                programme.order(&key, &(port.name.clone(), port.protocol)).cloned().unwrap_or_default()
            };
            let made = self.scene.index.contributions(FAMILY, &key, &self.scene.facts, order);
            lost.extend(self.programme.set(&key, made));
        }
        lost
    }

    /// Brings the kernel up to date; returns what that took.
    fn carry(&mut self) -> (Vec<Change>, Structure) {
        self.follow();
        let (changes, structure) = self.programme.take();
        self.kernel.apply(&changes, &structure);
        (changes, structure)
    }

    /// Asserts that the kernel has what it should.
    fn check(&self) {
        let elements: BTreeMap<_, _> = self.programme.elements().collect();
        assert_eq!(self.kernel.elements, elements);
        assert_eq!(
            (&self.kernel.chains, &self.kernel.pins),
            (&private(&self.programme).0, &private(&self.programme).1)
        );
        let fresh = self.scene.ruleset(FAMILY);
        assert_eq!(private(&self.programme), private(&fresh.programme));
        assert_eq!(self.programme.picks(), fresh.programme.picks());
        assert_eq!(Meaning::of(&self.programme), Meaning::of(&fresh.programme));
    }
}

fn private(programme: &Programme) -> (BTreeMap<ChainName, Chain>, BTreeSet<PinSet>) {
    let chains = programme.private().map(|(chain, _)| (chain.name, chain.clone())).collect();
    (chains, programme.private().flat_map(|(_, pins)| pins).copied().collect())
}

/// What a programme does, whatever the order of endpoints.
#[derive(Debug, PartialEq, Eq)]
struct Meaning {
    /// All elements, without the values of endpoints.
    elements: BTreeMap<Key, Option<Value>>,
    /// The endpoints that a frontend's verdicts choose from, by where they begin and how many they are.
    endpoints: BTreeMap<(Frontend, u16, u16), BTreeSet<Value>>,
}

impl Meaning {
    fn of(programme: &Programme) -> Self {
        let plain = |(key, value)| (key, Some(value).filter(|_| !matches!(key, Key::Endpoint(..))));
        let mut endpoints = BTreeMap::new();
        let (chains, _) = private(programme);
        for (key, value) in programme.elements() {
            let Some(frontend) = frontend(&key) else { continue };
            let mut targets: Vec<_> = pick(&value).into_iter().collect();
            if let Value::Goto(target) = value {
                targets.extend(chains.get(&ChainName::Regular(target)).into_iter().flat_map(Chain::targets));
            }
            for target in targets {
                let Target::Pick { count, region, .. } = target else { continue };
                let base = if region == Region::High { HIGH } else { 0 };
                let values: BTreeSet<_> =
                    (base..base + count).filter_map(|at| programme.value(&Key::Endpoint(frontend, at))).collect();
                assert_eq!(values.len(), usize::from(count), "{frontend} has fewer endpoints than it chooses from");
                endpoints.insert((frontend, base, count), values);
            }
        }
        Self { elements: programme.elements().map(plain).collect(), endpoints }
    }
}

/// A model of the kernel that, like it, refuses what is not so.
#[derive(Default)]
struct Kernel {
    elements: BTreeMap<Key, Value>,
    chains: BTreeMap<ChainName, Chain>,
    pins: BTreeSet<PinSet>,
}

impl Kernel {
    fn apply(&mut self, changes: &[Change], structure: &Structure) {
        for pins in &structure.new_pins {
            assert!(self.pins.insert(*pins), "{pins} is there already");
        }
        self.chains.extend(structure.write.iter().map(|(name, chain)| (*name, chain.clone())));
        self.assert_whole();
        for change in changes {
            assert_ne!(change.old, change.new, "{change:?} changes nothing");
            let old = match change.new {
                Some(value) => self.elements.insert(change.key, value),
                None => self.elements.remove(&change.key),
            };
            assert_eq!(old, change.old, "{change:?}");
        }
        for target in &structure.stale_chains {
            assert!(self.chains.remove(&ChainName::Regular(*target)).is_some(), "{target} is not there");
        }
        for pins in &structure.stale_pins {
            assert!(self.pins.remove(pins), "{pins} is not there");
        }
        self.assert_whole();
    }

    /// Asserts that whatever is pointed to is there.
    fn assert_whole(&self) {
        let of_elements = self.elements.values().filter_map(|value| match value {
            Value::Goto(target) => Some(*target),
            _ => None,
        });
        for target in of_elements.chain(self.chains.values().flat_map(Chain::targets)) {
            assert!(
                !target.is_private() || self.chains.contains_key(&ChainName::Regular(target)),
                "{target} is missing"
            );
        }
        for rule in self.chains.values().flat_map(|chain| &chain.rules) {
            let named = rule.matches.iter().filter_map(|matched| match matched {
                crate::netfilter::rule::Match::Pinned(pins) => Some(pins),
                _ => None,
            });
            let remembered = if let Statement::Remember(pins) = &rule.statement { Some(pins) } else { None };
            assert!(
                named.chain(remembered).all(|pins| self.pins.contains(pins)),
                "{rule:?} names a set that is missing"
            );
        }
    }
}

fn node_port(created: u32, cluster_ip: &str, more: Json) -> Json {
    let mut spec = json!({
        "type": "NodePort", "clusterIP": cluster_ip,
        "ports": [{"name": "web", "port": 80, "nodePort": 30080, "protocol": "TCP"}],
    });
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"metadata": {"creationTimestamp": scene::at(created)}, "spec": spec})
}

#[test]
fn of_two_services_the_older_has_the_node_port_in_any_order_of_events() {
    let port = scene::frontend("10.0.1.5:30080");
    for order in [["old", "young"], ["young", "old"]] {
        let mut node = Follower::new();
        let mut lost = BTreeSet::new();
        for name in order {
            let (created, ip) = if name == "old" { (10, "10.96.0.10") } else { (20, "10.96.0.20") };
            node.scene.service(name, node_port(created, ip, json!({})));
            node.scene.endpoints(name, if name == "old" { &["far1"] } else { &["far2", "far3"] });
            lost.extend(node.follow());
            node.carry();
        }
        // Whoever was first had it for the time being; only the younger is told that it has not.
        assert_eq!(lost.contains(&port), order == ["old", "young"], "{order:?}");
        node.check();
        node.scene.expect(&[("outside", "10.0.1.5:30080", "far1*"), ("pod", "10.96.0.20:80", "far2 far3")]);
        assert_eq!(pick_of(&node, Key::Outside(port)), Some(1));

        node.scene.index.delete_service(&scene::key("old"));
        node.carry();
        node.check();
        assert_eq!(pick_of(&node, Key::Outside(port)), Some(2));
        node.scene.expect(&[("outside", "10.0.1.5:30080", "far2* far3*"), ("pod", "10.96.0.10:80", "dropped")]);
    }
}

#[test]
fn a_cluster_ip_stays_with_the_service_it_was_given_to() {
    let victim = scene::frontend("10.96.0.20:80");
    for order in [["thief", "owner"], ["owner", "thief"]] {
        let mut node = Follower::new();
        let mut lost = BTreeSet::new();
        for name in order {
            let (created, ip, more) = match name {
                "thief" => (10, "10.96.0.10", json!({"externalIPs": ["10.96.0.20"]})),
                _ => (20, "10.96.0.20", json!({})),
            };
            node.scene.service(name, node_port(created, ip, more));
            node.scene.endpoints(name, if name == "thief" { &["far1", "far2"] } else { &["far3"] });
            lost.extend(node.follow());
            node.carry();
        }
        assert_eq!(lost.contains(&victim), order == ["owner", "thief"], "{order:?}");
        node.check();
        assert_eq!(pick_of(&node, Key::Inside(victim)), Some(1));
        node.scene.expect(&[("pod", "10.96.0.20:80", "far3"), ("pod", "10.96.0.10:80", "far1 far2")]);

        node.scene.index.delete_service(&scene::key("owner"));
        node.carry();
        node.check();
        assert_eq!(pick_of(&node, Key::Inside(victim)), Some(2));
    }
}

fn pick_of(node: &Follower, key: Key) -> Option<u16> {
    match node.kernel.elements.get(&key)? {
        Value::Goto(Target::Pick { count, .. }) => Some(*count),
        _ => None,
    }
}

#[test]
fn of_two_services_as_old_one_has_the_node_port_always() {
    let owner = |order: [&str; 2]| {
        let mut node = Follower::new();
        for name in order {
            node.scene.service(name, node_port(10, if name == "a" { "10.96.0.10" } else { "10.96.0.20" }, json!({})));
            node.scene.endpoints(name, if name == "a" { &["far1"] } else { &["far2"] });
            node.carry();
        }
        node.check();
        node.kernel.elements[&Key::Endpoint(scene::frontend("10.0.1.5:30080"), 0)]
    };
    assert_eq!(owner(["a", "b"]), owner(["b", "a"]));
}

#[test]
fn what_is_undone_before_it_was_carried_over_is_no_change() {
    let mut node = Follower::new();
    let affine = |seconds: u32| json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}});
    node.scene.endpoints("web", &["near1", "far1"]);
    // Made and gone.
    node.scene.service("web", node_port(10, "10.96.0.10", affine(5)));
    node.follow();
    node.scene.index.delete_service(&scene::key("web"));
    assert_eq!(node.carry(), (Vec::new(), Structure::default()));

    // There, changed, and changed back.
    node.scene.service("web", node_port(10, "10.96.0.10", json!({})));
    node.carry();
    node.check();
    node.scene.service("web", node_port(10, "10.96.0.10", affine(5)));
    node.scene.endpoints("web", &["far2"]);
    node.follow();
    node.scene.service("web", node_port(10, "10.96.0.10", json!({})));
    node.scene.endpoints("web", &["near1", "far1"]);
    let (changes, structure) = node.carry();
    node.check();
    // Only the order of endpoints may differ.
    assert!(changes.iter().all(|change| matches!(change.key, Key::Endpoint(..))), "{changes:?}");
    assert!(structure.is_empty(), "{structure:?}");

    // Gone, and there again as it was.
    node.scene.index.delete_service(&scene::key("web"));
    node.follow();
    node.scene.service("web", node_port(10, "10.96.0.10", json!({})));
    let (changes, structure) = node.carry();
    node.check();
    assert!(changes.iter().all(|change| matches!(change.key, Key::Endpoint(..))), "{changes:?}");
    assert!(structure.is_empty(), "{structure:?}");
}

#[test]
fn what_the_kernel_is_compared_with_anyway_is_not_carried_over_as_well() {
    let mut node = Follower::new();
    node.scene.service("web", node_port(10, "10.96.0.10", json!({"sessionAffinity": "ClientIP"})));
    node.scene.endpoints("web", &["near1"]);
    node.follow();
    node.programme.forget();
    assert_eq!(node.programme.take(), (Vec::new(), Structure::default()));
    // From then on, its chains count as made.
    node.scene.index.delete_service(&scene::key("web"));
    node.follow();
    let (changes, structure) = node.programme.take();
    assert!(changes.iter().all(|change| change.new.is_none() && change.old.is_some()));
    assert!(!structure.stale_chains.is_empty() && structure.stale_pins.len() == 1);
}

#[test]
fn p40_affinity_on_a_live_service() {
    let mut node = Follower::new();
    let service = |spec: Json| node_port(10, "10.96.0.10", spec);
    let affine = |seconds: u32| json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}});
    node.scene.endpoints("web", &["near1", "far1"]);
    node.scene.service("web", service(json!({})));
    node.carry();
    node.check();
    assert!(node.kernel.chains.is_empty());

    node.scene.service("web", service(affine(60)));
    node.carry();
    node.check();
    let pins = node.kernel.pins.clone();
    assert_eq!(pins.iter().map(|pins| pins.seconds).collect::<Vec<_>>(), [60, 60]);

    // An endpoint more: the pins of the others stay (what P40 calls better).
    node.scene.endpoints("web", &["near1", "far1", "far2"]);
    let (changes, structure) = node.carry();
    node.check();
    assert!(structure.stale_pins.is_empty() && structure.stale_chains.is_empty());
    assert_eq!(structure.new_pins.len(), 1);
    assert!(changes.is_empty(), "{changes:?}");
    assert!(node.kernel.pins.is_superset(&pins));

    // Another timeout: the kernel cannot change it, so there are other sets, and the chains name these.
    node.scene.service("web", service(affine(90)));
    let (changes, structure) = node.carry();
    node.check();
    assert_eq!((structure.new_pins.len(), structure.stale_pins.len()), (3, 3));
    assert!(structure.stale_chains.is_empty() && changes.is_empty());

    node.scene.service("web", service(json!({})));
    node.carry();
    node.check();
    assert!(node.kernel.chains.is_empty() && node.kernel.pins.is_empty());
}

#[test]
fn p35_ranges_on_a_live_service() {
    let mut node = Follower::new();
    let service = |ranges: &[&str]| {
        let mut service =
            node_port(10, "10.96.0.10", json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ranges}));
        service["status"] = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.8"}]}});
        service
    };
    node.scene.endpoints("web", &["far1"]);
    node.scene.service("web", service(&["203.0.113.0/24"]));
    node.carry();
    node.check();
    assert_eq!(node.kernel.chains.len(), 1);

    // Other ranges: the same chain, at once.
    node.scene.service("web", service(&["203.0.113.0/25"]));
    let (changes, structure) = node.carry();
    node.check();
    assert!(changes.is_empty() && structure.stale_chains.is_empty());
    assert_eq!(structure.write.len(), 1);

    // An endpoint more: the chain that chooses from two is another, so that it is not met before there are two.
    let before = node.kernel.chains.clone();
    node.scene.endpoints("web", &["far1", "far2"]);
    let (changes, structure) = node.carry();
    node.check();
    assert!(structure.write.keys().all(|name| !before.contains_key(name)), "{structure:?}");
    assert_eq!(structure.stale_chains.len(), 1);
    let balancer = scene::frontend("198.51.100.8:80");
    let switched = changes.iter().filter(|change| frontend(&change.key) == Some(balancer)).count();
    assert_eq!(switched, 2, "in the transaction that adds the endpoint");

    node.scene.service("web", service(&[]));
    node.carry();
    node.check();
    assert!(node.kernel.chains.is_empty());
}

#[test]
fn one_endpoint_exchanged_is_one_change_of_a_frontend() {
    let mut node = Follower::new();
    node.scene.service("web", node_port(10, "10.96.0.10", json!({})));
    node.scene.endpoints("web", &["far1", "far2", "far3"]);
    node.carry();
    node.scene.endpoints("web", &["far1", "far4", "far3"]);
    let (changes, structure) = node.carry();
    node.check();
    assert!(structure.is_empty());
    // The ClusterIP and the NodePort.
    assert_eq!(changes.len(), 2, "{changes:?}");
    assert!(changes.iter().all(|change| matches!(change.key, Key::Endpoint(_, 1))));
}

#[test]
fn shared_chains_are_those_that_something_goes_to() {
    let mut node = Follower::new();
    node.scene.service("web", node_port(10, "10.96.0.10", json!({})));
    node.scene.endpoints("web", &["far1", "far2"]);
    node.carry();
    let Facts { mark, .. } = node.scene.facts;
    let chains = node.programme.picks().into_iter().flat_map(|target| pick_chains(target, mark));
    let names: BTreeSet<_> = chains.map(|chain| chain.name.to_string()).collect();
    assert_eq!(names.iter().map(String::as_str).collect::<Vec<_>>(), ["lb-tcp-2", "lb-tcp-2-snat"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn change_by_change_is_as_good_as_from_the_start(events in events()) {
        let mut node = Follower::new();
        for event in events {
            if node.scene.happen(event) {
                node.carry();
                node.check();
            }
            node.follow();
        }
        node.carry();
        node.check();
        prop_assert_eq!(node.carry(), (Vec::new(), Structure::default()));
    }
}
