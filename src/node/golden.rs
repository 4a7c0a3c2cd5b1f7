//! Rulesets as scripts, compared with `tests/golden/*.nft` and, where that is allowed, with what nft and the kernel make
//! of them, each test in a network namespace of its own.
//!
//! `WEIR_REWRITE_GOLDEN=1 cargo test --lib golden` writes the files anew; what has changed in them is to be read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

use super::kernel::{Applied, Table, elements};
use super::programme::Programme;
use super::question::Ruleset;
use super::ruleset::fixed_chains;
use super::scene::{Scene, events};
use super::service::Mode;
use crate::netfilter::netlink::Channel;
use crate::netfilter::object::{Collection, Target};
use crate::netfilter::rule::{Chain, ChainName, TAKEN_PORTS};
use crate::netfilter::script::{Script, TABLE, layout_chain};
use crate::netfilter::{Family, nft};

#[path = "../../tests/namespace/mod.rs"]
mod namespace;

const REWRITE: &str = "WEIR_REWRITE_GOLDEN";
/// Random histories that are carried to the kernel, and of these, those after which unused chains are waited for.
const HISTORIES: usize = 12;
const CLEARED: usize = 2;
/// As long as unused chains are kept, and a little more.
const LINGERING: Duration = Duration::from_millis(2_100);

struct Golden {
    name: &'static str,
    family: Family,
    ruleset: Ruleset,
}

impl Golden {
    /// As a table of another layout is replaced, only that there is none.
    fn script(&self) -> String {
        let mut script = Script::new(self.family);
        script.add_table();
        script.declare_collections();
        for (_, pins) in self.ruleset.programme.private() {
            for pins in pins {
                script.declare_pins(pins);
            }
        }
        script.write_chains(self.ruleset.chains.values());
        let elements: BTreeMap<_, _> = self.ruleset.programme.elements().collect();
        script.add_elements(elements.iter());
        script.text().to_owned()
    }
}

fn scene(service: Value, endpoints: &[&str]) -> Scene {
    let mut scene = Scene::new();
    scene.service("web", service);
    scene.endpoints("web", endpoints);
    scene
}

fn service(more: Value) -> Value {
    let mut spec = json!({
        "clusterIP": "10.96.0.10",
        "ports": [{"name": "web", "port": 80, "nodePort": 30080, "protocol": "TCP"}],
    });
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"spec": spec})
}

fn goldens() -> Vec<Golden> {
    let v4 = |name, scene: Scene| Golden { name, family: Family::Ipv4, ruleset: scene.ruleset(Family::Ipv4) };
    let endpoints = ["near1", "far1", "far2"];
    let plain = json!({"ports": [{"name": "web", "port": 80, "protocol": "TCP"}]});
    let mut balanced = service(json!({
        "type": "LoadBalancer", "externalTrafficPolicy": "Local",
        "loadBalancerSourceRanges": ["203.0.113.0/24", "192.0.2.0/25"],
    }));
    balanced["status"] = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.8"}]}});
    let affine = service(json!({
        "type": "NodePort", "sessionAffinity": "ClientIP", "externalTrafficPolicy": "Local",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}},
    }));
    let dual = service(json!({
        "type": "NodePort", "clusterIPs": ["10.96.0.10", "fd00:96::a"], "externalIPs": ["2001:db8::7"],
        "ports": [{"name": "web", "port": 53, "nodePort": 30053, "protocol": "UDP"}],
    }));
    let mut beside = Scene::of_mode(Mode::Beside("weir".to_owned()));
    let mut labelled = service(json!({"type": "NodePort"}));
    labelled["metadata"] = json!({"labels": {"service.kubernetes.io/service-proxy-name": "weir"}});
    beside.service("web", labelled);
    beside.endpoints("web", &endpoints);
    // Policy Local has another endpoint than the first of policy Cluster.
    let draining = scene(
        service(json!({"type": "NodePort", "externalTrafficPolicy": "Local"})),
        &["near1 draining", "far1", "far2"],
    );
    vec![
        v4("cluster-ip", scene(service(plain.clone()), &endpoints)),
        v4("no-endpoints", scene(service(plain), &[])),
        v4("node-port", scene(service(json!({"type": "NodePort"})), &endpoints)),
        v4(
            "node-port-local",
            scene(service(json!({"type": "NodePort", "externalTrafficPolicy": "Local"})), &endpoints),
        ),
        v4("node-port-local-draining", draining),
        v4("source-ranges", scene(balanced, &endpoints)),
        v4("affinity", scene(affine, &endpoints)),
        Golden { name: "ipv6", family: Family::Ipv6, ruleset: scene(dual, &endpoints).ruleset(Family::Ipv6) },
        v4("beside", beside),
    ]
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

#[test]
fn scripts_are_as_they_were() {
    let goldens = goldens();
    for golden in &goldens {
        let (file, script) = (folder().join(format!("{}.nft", golden.name)), golden.script());
        if std::env::var_os(REWRITE).is_some() {
            fs::create_dir_all(folder()).unwrap();
            fs::write(&file, &script).unwrap();
        }
        let known = fs::read_to_string(&file).unwrap_or_default();
        let changed = known.lines().zip(script.lines()).find(|(known, now)| known != now);
        assert!(
            known == script,
            "{}: set {REWRITE} if this is right. First of what has changed: {changed:#?}",
            golden.name
        );
    }
    let files = fs::read_dir(folder()).unwrap().filter(|file| file.as_ref().unwrap().path().extension().is_some());
    assert_eq!(files.count(), goldens.len(), "a file is nobody's");
}

/// Runs the body in a network namespace of its own.
fn in_namespace(test: &str, body: impl FnOnce()) {
    namespace::in_namespace(&format!("{}::{test}", module_path!().split_once("::").unwrap().1), &[], body);
}

#[test]
fn nft_accepts_the_scripts() {
    in_namespace("nft_accepts_the_scripts", || {
        for golden in goldens() {
            let mut nft = Command::new("nft").args(["--check", "-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
            nft.stdin.take().unwrap().write_all(golden.script().as_bytes()).unwrap();
            assert!(nft.wait().unwrap().success(), "nft refuses {}", golden.name);
        }
    });
}

#[test]
fn what_is_written_twice_is_read_back_once() {
    in_namespace("what_is_written_twice_is_read_back_once", || {
        let mut channel = Channel::open().unwrap();
        for golden in goldens() {
            nft::run(&golden.script()).unwrap();
            nft::run(&golden.script()).unwrap();
            let Ruleset { programme, chains } = &golden.ruleset;
            assert_holds(&mut channel, golden.family, programme, chains);
            let found: BTreeSet<_> = channel.chains(golden.family, TABLE).unwrap().into_keys().collect();
            let wanted = golden.ruleset.chains.keys().map(ToString::to_string);
            assert_eq!(found, wanted.chain([layout_chain(golden.family)]).collect(), "{}", golden.name);
            let mut script = Script::new(golden.family);
            script.delete_table();
            nft::run(script.text()).unwrap();
        }
    });
}

/// Asserts that the kernel has these elements, and these chains with these rules.
fn assert_holds(channel: &mut Channel, family: Family, programme: &Programme, chains: &BTreeMap<ChainName, Chain>) {
    assert_eq!(elements(channel, family).unwrap(), programme.elements().collect());
    let found = channel.chains(family, TABLE).unwrap();
    for (name, chain) in chains {
        let digests: Vec<_> = chain.digests(family).into_iter().map(Some).collect();
        assert_eq!(found.get(&name.to_string()).map(|found| &found.comments), Some(&digests), "{name}");
    }
}

/// A table that follows a history. Its programme starts from nothing, as after a restart.
struct Follower {
    scene: Scene,
    programme: Programme,
    table: Table,
}

impl Follower {
    const FAMILY: Family = Family::Ipv4;

    fn new() -> Self {
        let scene = Scene::new();
        let table = Table::open(Self::FAMILY, scene.facts.mark).unwrap();
        Self { scene, programme: Programme::default(), table }
    }

    fn reconcile(&mut self) -> Applied {
        self.programme.forget();
        self.table.reconcile(&self.programme, fixed_chains(Self::FAMILY, &self.scene.facts)).unwrap()
    }

    fn carry(&mut self) {
        for key in self.scene.index.take_changed() {
            let programme = &self.programme;
            let made = self.scene.index.contributions(Self::FAMILY, &key, &self.scene.facts, |_, port| {
                programme.order(&key, &(port.name.clone(), port.protocol)).cloned().unwrap_or_default()
            });
            self.programme.set(&key, made);
        }
        let (changes, structure) = self.programme.take();
        self.table.apply(&changes, &structure, fixed_chains(Self::FAMILY, &self.scene.facts)).unwrap();
    }

    /// Asserts that the kernel has what the programme says.
    fn check(&self, channel: &mut Channel) {
        // A fresh ruleset has the same chains; its endpoints may stand in another order.
        let fresh = self.scene.ruleset(Self::FAMILY);
        assert_holds(channel, Self::FAMILY, &self.programme, &fresh.chains);
    }

    /// Deletes what nothing uses any longer, and asserts that it is gone.
    fn clear(&mut self, channel: &mut Channel) {
        std::thread::sleep(LINGERING);
        self.table.clear_stale().unwrap();
        assert!(!self.table.has_stale());
        let is_wanted =
            |target: Target| self.programme.private().any(|(chain, _)| chain.name == ChainName::Regular(target));
        for name in channel.chains(Self::FAMILY, TABLE).unwrap().keys() {
            let private = Target::parse(name).filter(|target| target.is_private());
            assert!(private.is_none_or(is_wanted), "{name} is still there");
        }
        let shared =
            Collection::ALL.iter().map(|collection| collection.name().to_owned()).chain([TAKEN_PORTS.to_owned()]);
        let pins = self.programme.private().flat_map(|(_, pins)| pins).map(ToString::to_string);
        assert_eq!(channel.sets(Self::FAMILY, TABLE).unwrap(), shared.chain(pins).collect());
    }
}

#[test]
fn p73_the_kernel_follows_any_history_and_a_restart_writes_nothing() {
    in_namespace("p73_the_kernel_follows_any_history_and_a_restart_writes_nothing", || {
        let mut runner = TestRunner::deterministic();
        let mut channel = Channel::open().unwrap();
        for at in 0..HISTORIES {
            // Each begins with what the last one left in the kernel.
            let mut node = Follower::new();
            node.reconcile();
            for event in events().new_tree(&mut runner).unwrap().current() {
                if node.scene.happen(event) {
                    node.carry();
                    node.check(&mut channel);
                }
            }
            node.carry();
            node.check(&mut channel);
            node.table = Table::open(Follower::FAMILY, node.scene.facts.mark).unwrap();
            assert_eq!(node.reconcile(), Applied::default());
            if at < CLEARED {
                node.clear(&mut channel);
                node.check(&mut channel);
            }
        }
    });
}
