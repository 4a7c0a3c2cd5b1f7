use proptest::prelude::*;
use proptest::sample::subsequence;
use serde_json::json;

use super::*;
use crate::node::scene::{self, Scene, TARGET_PORT};

/// A LoadBalancer Service with every kind of frontend in both families, and policies as given.
fn everything(external: &str, internal: &str, protocol: &str) -> serde_json::Value {
    json!({
        "spec": {
            "type": "LoadBalancer", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10", "fd00:96::a"],
            "ports": [{"name": "web", "port": 80, "protocol": protocol.to_uppercase(), "nodePort": 30080}],
            "externalIPs": ["198.51.100.7", "2001:db8:7::7"],
            "externalTrafficPolicy": external, "internalTrafficPolicy": internal,
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.8"}, {"ip": "2001:db8:7::8", "ipMode": "VIP"}]}},
    })
}

fn with_everything(external: &str, internal: &str, protocol: &str, endpoints: &[&str]) -> Scene {
    let mut scene = Scene::new();
    scene.service("web", everything(external, internal, protocol));
    scene.endpoints("web", endpoints);
    scene
}

const CLUSTER_IPS: [&str; 2] = ["10.96.0.10:80", "[fd00:96::a]:80"];
const EXTERNALS: [&str; 6] = [
    "10.0.1.5:30080",
    "[fd00::1:5]:30080",
    "198.51.100.7:80",
    "[2001:db8:7::7]:80",
    "198.51.100.8:80",
    "[2001:db8:7::8]:80",
];

#[test]
fn the_source_nat_matrix() {
    // Section C of the contract, P14, P17, P18, P29, P34 and P68. Two departures: a connection of the host to a
    // ClusterIP keeps its source (P22), and so does every connection whose endpoint is on this node.
    let cases = [
        // (policies, from, ClusterIP, others)
        ("Cluster", "pod", "near1 far1", "near1 far1*"),
        ("Cluster", "host", "near1 far1", "near1 far1*"),
        ("Cluster", "outside", "near1 far1*", "near1 far1*"),
        ("Cluster", "near1", "near1* far1", "near1* far1*"),
        ("Local", "pod", "near1", "near1 far1"),
        ("Local", "host", "near1", "near1 far1*"),
        ("Local", "outside", "near1", "near1"),
        ("Local", "near1", "near1*", "near1* far1"),
    ];
    for protocol in ["tcp", "udp", "sctp"] {
        for (policy, from, cluster_ip, external) in cases {
            let scene = with_everything(policy, policy, protocol, &["near1", "far1"]);
            let of =
                |all: &[&'static str], wanted: &'static str| all.iter().map(|to| (*to, wanted)).collect::<Vec<_>>();
            for (to, wanted) in [of(&CLUSTER_IPS, cluster_ip), of(&EXTERNALS, external)].concat() {
                let to = format!("{to}/{protocol}");
                assert_eq!(scene.outcome(from, &to), wanted, "policy {policy}, from {from} to {to}");
            }
        }
    }
}

#[test]
fn p17_each_policy_governs_its_own_frontends() {
    with_everything("Local", "Cluster", "tcp", &["near1", "far1"]).expect(&[
        ("outside", "10.96.0.10:80", "near1 far1*"),
        ("pod", "10.96.0.10:80", "near1 far1"),
        ("outside", "10.0.1.5:30080", "near1"),
    ]);
    with_everything("Cluster", "Local", "tcp", &["near1", "far1"])
        .expect(&[("outside", "10.96.0.10:80", "near1"), ("outside", "10.0.1.5:30080", "near1 far1*")]);
}

#[test]
fn p11_one_number_on_two_protocols_is_two_ports() {
    let mut scene = Scene::new();
    let port = |name: &str, protocol: &str| json!({"name": name, "port": 53, "protocol": protocol, "nodePort": 30053});
    let ports = json!([port("web", "UDP"), port("none", "TCP")]);
    scene.service("dns", json!({"spec": {"type": "NodePort", "clusterIP": "10.96.0.10", "ports": ports}}));
    scene.endpoints("dns", &["near1"]);
    scene.expect(&[
        ("pod", "10.96.0.10:53/udp", "near1"),
        ("pod", "10.96.0.10:53/tcp", "refused"),
        ("pod", "10.0.1.5:30053/udp", "near1"),
        ("pod", "10.0.1.5:30053/tcp", "refused"),
        ("pod", "10.0.1.5:30053/sctp", "untouched"),
    ]);
}

#[test]
fn p15_p16_addresses_and_ports_that_nothing_answers_on() {
    let cases = [
        // (to, without kube-proxy, beside it)
        ("10.96.0.10:81", "refused", "refused"),
        ("10.96.0.10:80/udp", "refused", "refused"),
        ("[fd00:96::a]:81", "refused", "refused"),
        ("10.96.0.11:80", "dropped", "untouched"),
        ("[fd00:96::b]:80", "dropped", "untouched"),
        ("10.97.0.1:80", "untouched", "untouched"),
        ("198.51.100.7:81", "untouched", "untouched"),
        ("10.0.1.5:30081", "untouched", "untouched"),
    ];
    let beside = Mode::Beside("weir".to_owned());
    for from in ["host", "pod", "outside"] {
        for (to, alone, with_kube_proxy) in cases {
            for (mode, wanted) in [(Mode::Replace("weir".to_owned()), alone), (beside.clone(), with_kube_proxy)] {
                let mut scene = Scene::of_mode(mode.clone());
                let mut service = everything("Cluster", "Cluster", "tcp");
                if mode == beside {
                    service["metadata"] = json!({"labels": {"service.kubernetes.io/service-proxy-name": "weir"}});
                }
                scene.service("web", service);
                scene.endpoints("web", &["far1"]);
                assert_eq!(scene.outcome(from, to), wanted, "{mode:?}, from {from} to {to}");
            }
        }
    }
}

#[test]
fn p19_where_pods_cannot_be_told_apart() {
    let scene = |policy| {
        let mut scene = with_everything(policy, policy, "tcp", &["near1", "far1"]);
        scene.facts.pod_interfaces.clear();
        scene
    };
    scene("Cluster").expect(&[
        ("pod", "10.96.0.10:80", "near1 far1"),
        ("host", "10.96.0.10:80", "near1 far1"),
        ("outside", "10.96.0.10:80", "near1 far1"),
        ("near1", "10.96.0.10:80", "near1* far1"),
        ("pod", "10.0.1.5:30080", "near1 far1*"),
    ]);
    scene("Local").expect(&[
        ("pod", "10.0.1.5:30080", "near1"),
        ("host", "10.0.1.5:30080", "near1 far1*"),
        ("outside", "10.0.1.5:30080", "near1"),
    ]);
    // Told apart by their addresses instead.
    let mut by_range = scene("Local");
    by_range.facts.pod_ranges = vec!["10.1.0.0/16".parse().unwrap()];
    by_range.expect(&[("pod", "10.0.1.5:30080", "near1 far1"), ("outside", "10.0.1.5:30080", "near1")]);
}

#[test]
fn p20_masquerade_all_is_about_cluster_ips() {
    let mut scene = with_everything("Local", "Cluster", "tcp", &["near1", "far1"]);
    scene.facts.masquerade_all = true;
    scene.expect(&[
        ("pod", "10.96.0.10:80", "near1* far1*"),
        ("host", "10.96.0.10:80", "near1* far1*"),
        ("outside", "10.96.0.10:80", "near1* far1*"),
        ("pod", "10.0.1.5:30080", "near1 far1"),
        ("outside", "10.0.1.5:30080", "near1"),
    ]);
}

#[test]
fn p24_node_ports_answer_on_their_addresses_only() {
    let mut scene = with_everything("Cluster", "Cluster", "tcp", &["far1"]);
    scene.facts.node_port_addresses = ["10.0.2.5".parse().unwrap()].into();
    scene.expect(&[
        ("outside", "10.0.2.5:30080", "far1*"),
        ("outside", "10.0.1.5:30080", "untouched"),
        ("outside", "[fd00::1:5]:30080", "untouched"),
    ]);
}

#[test]
fn p29_external_ips_can_be_switched_off() {
    let mut scene = Scene::new();
    scene.index = crate::node::index::Index::new("here".to_owned(), Mode::Replace("weir".to_owned()), false);
    scene.service("web", everything("Cluster", "Cluster", "tcp"));
    scene.endpoints("web", &["far1"]);
    scene.expect(&[("outside", "198.51.100.7:80", "untouched"), ("outside", "198.51.100.8:80", "far1*")]);
}

#[test]
fn p30_a_balancer_that_is_a_proxy_has_no_rule() {
    let mut scene = Scene::new();
    let mut service = everything("Cluster", "Cluster", "tcp");
    service["status"]["loadBalancer"]["ingress"][0]["ipMode"] = json!("Proxy");
    scene.service("web", service);
    scene.endpoints("web", &["far1"]);
    scene.expect(&[("pod", "198.51.100.8:80", "untouched"), ("pod", "[2001:db8:7::8]:80", "far1*")]);
}

#[test]
fn p31_p32_p34_where_no_endpoint_may_be_used() {
    let nobody = [
        // (endpoints, from, ClusterIP, others)
        (&["far1"][..], "pod", "dropped", "far1"),
        (&["far1"], "host", "dropped", "far1*"),
        (&["far1"], "outside", "dropped", "dropped"),
        (&[], "pod", "refused", "refused"),
        (&[], "host", "refused", "refused"),
        (&[], "outside", "refused", "refused"),
        (&["near1 unready", "far1 unready"], "outside", "refused", "refused"),
        // Draining ones serve while no other of this node does.
        (&["near1 draining", "far1"], "outside", "near1", "near1"),
        (&["near1 draining", "far1"], "pod", "near1", "far1"),
        (&["near1 draining", "near2", "far1"], "outside", "near2", "near2"),
    ];
    for (endpoints, from, cluster_ip, external) in nobody {
        let scene = with_everything("Local", "Local", "tcp", endpoints);
        for to in CLUSTER_IPS {
            assert_eq!(scene.outcome(from, to), cluster_ip, "{endpoints:?}, from {from} to {to}");
        }
        for to in EXTERNALS {
            assert_eq!(scene.outcome(from, to), external, "{endpoints:?}, from {from} to {to}");
        }
    }
}

/// [`everything`] with source ranges.
fn guarded(policy: &str, ranges: &[&str], more: serde_json::Value) -> Scene {
    let mut scene = Scene::new();
    let mut service = everything(policy, "Cluster", "tcp");
    service["spec"]["loadBalancerSourceRanges"] = json!(ranges);
    service["spec"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    scene.service("web", service);
    scene.endpoints("web", &["near1", "far1"]);
    scene
}

#[test]
fn p35_ranges_guard_the_addresses_of_balancers() {
    for affinity in ["None", "ClientIP"] {
        for (policy, sent) in [("Cluster", "near1 far1*"), ("Local", "near1")] {
            let ranges = [" 203.0.113.0/24 ", "2001:db8::/64", "203.0.113.128/25"];
            guarded(policy, &ranges, json!({"sessionAffinity": affinity})).expect(&[
                ("outside", "198.51.100.8:80", sent),
                ("outside", "[2001:db8:7::8]:80", sent),
                ("192.0.2.1", "198.51.100.8:80", "dropped"),
                ("2001:db9::1", "[2001:db8:7::8]:80", "dropped"),
                ("pod", "198.51.100.8:80", "dropped"),
                ("host", "198.51.100.8:80", "dropped"),
                ("192.0.2.1", "198.51.100.7:80", sent),
                ("192.0.2.1", "10.0.1.5:30080", sent),
                ("192.0.2.1", "10.96.0.10:80", "near1 far1*"),
                ("pod", "10.96.0.10:80", "near1 far1"),
            ]);
        }
    }
    // Pods within the ranges take the short circuit.
    guarded("Local", &["10.1.0.0/16"], json!({})).expect(&[
        ("pod", "198.51.100.8:80", "near1 far1"),
        ("near1", "198.51.100.8:80", "near1* far1"),
        ("outside", "198.51.100.8:80", "dropped"),
    ]);
    guarded("Cluster", &["10.0.0.0/8", "0.0.0.0/0"], json!({}))
        .expect(&[("outside", "198.51.100.8:80", "near1 far1*"), ("outside", "[2001:db8:7::8]:80", "near1 far1*")]);
}

#[test]
fn p35_a_guard_is_asked_before_a_refusal() {
    let mut scene = guarded("Local", &["203.0.113.0/24"], json!({}));
    scene.endpoints("web", &[]);
    scene.expect(&[("outside", "198.51.100.8:80", "refused"), ("192.0.2.1", "198.51.100.8:80", "dropped")]);
    scene.endpoints("web", &["far1"]);
    scene.expect(&[("outside", "198.51.100.8:80", "dropped"), ("192.0.2.1", "198.51.100.8:80", "dropped")]);
}

#[test]
fn p36_where_the_node_may_so_may_the_address_it_holds_itself() {
    guarded("Cluster", &["10.0.1.0/24"], json!({})).expect(&[
        ("host", "198.51.100.8:80", "near1 far1*"),
        ("198.51.100.8", "198.51.100.8:80", "near1 far1*"),
        ("198.51.100.9", "198.51.100.8:80", "dropped"),
    ]);
    guarded("Cluster", &["10.0.2.0/24"], json!({})).expect(&[("198.51.100.8", "198.51.100.8:80", "dropped")]);
}

#[test]
fn an_external_ip_that_is_a_balancers_address_is_guarded() {
    let more = json!({"externalIPs": ["198.51.100.8", "198.51.100.7", "198.51.100.7"]});
    let scene = guarded("Cluster", &["203.0.113.0/24"], more);
    scene.expect(&[
        ("192.0.2.1", "198.51.100.8:80", "dropped"),
        ("outside", "198.51.100.8:80", "near1 far1*"),
        ("192.0.2.1", "198.51.100.7:80", "near1 far1*"),
    ]);
    for made in scene.ruleset(Family::Ipv4).programme.ports(&scene::key("web")) {
        assert!(made.elements.is_sorted_by(|(one, _), (other, _)| one < other), "an element is there twice");
    }
}

#[test]
fn a_node_address_may_be_an_external_ip_of_the_same_port() {
    let more = json!({
        "externalIPs": ["10.0.1.5"], "ports": [{"name": "web", "port": 30080, "nodePort": 30080, "protocol": "TCP"}],
    });
    guarded("Local", &[], more).expect(&[
        ("outside", "10.0.1.5:30080", "near1"),
        ("pod", "10.0.1.5:30080", "near1 far1"),
        ("host", "10.96.0.10:30080", "near1 far1"),
    ]);
}

#[test]
fn p38_p41_affinity_chooses_among_what_the_policy_allows() {
    for protocol in ["tcp", "udp"] {
        let mut service = everything("Local", "Cluster", protocol);
        service["spec"]["sessionAffinity"] = json!("ClientIP");
        let mut scene = Scene::new();
        scene.service("web", service);
        scene.endpoints("web", &["near1", "near2", "far1"]);
        for (from, to, wanted) in [
            ("pod", "10.96.0.10:80", "near1 near2 far1"),
            ("outside", "10.96.0.10:80", "near1 near2 far1*"),
            ("near2", "10.96.0.10:80", "near1 near2* far1"),
            ("outside", "10.0.1.5:30080", "near1 near2"),
            ("pod", "10.0.1.5:30080", "near1 near2 far1"),
            ("host", "198.51.100.7:80", "near1 near2 far1*"),
        ] {
            assert_eq!(scene.outcome(from, &format!("{to}/{protocol}")), wanted, "from {from} to {to}/{protocol}");
        }
        scene.endpoints("web", &["far1"]);
        assert_eq!(scene.outcome("outside", &format!("10.0.1.5:30080/{protocol}")), "dropped");
        scene.endpoints("web", &[]);
        assert_eq!(scene.outcome("outside", &format!("10.0.1.5:30080/{protocol}")), "refused");
    }
}

#[test]
fn p38_one_pin_serves_every_frontend() {
    let mut scene = guarded("Local", &["203.0.113.0/24"], json!({"sessionAffinity": "ClientIP"}));
    scene.endpoints("web", &["near1", "near2", "far1"]);
    let ruleset = scene.ruleset(Family::Ipv4);
    let made = ruleset.programme.ports(&scene::key("web")).next().unwrap();
    let names: BTreeSet<_> = made.chains.iter().map(|chain| chain.name).collect();
    assert_eq!(names.len(), made.chains.len(), "a chain is there twice");
    assert_eq!(made.pins.len(), 3);
    assert!(made.pins.iter().all(|pins| pins.seconds == 10_800));
    // Where clients are pinned, no endpoint is looked up by index.
    assert!(!made.elements.iter().any(|(key, _)| matches!(key, Key::Endpoint(..))));
    // Whoever is pinned is asked for first, whatever the chances.
    for chain in made.chains.iter().filter(|chain| chain.rules.len() > 2) {
        assert!(matches!(chain.rules.last().unwrap().statement, Statement::GotoAny(_)));
        assert!(chain.rules.iter().rev().skip(1).all(|rule| matches!(rule.matches[..], [Match::Pinned(_)])));
    }
}

#[test]
fn p43_p44_p45_topology_is_for_policy_cluster() {
    let zones = ["near1 zone=a", "near2 zone=b", "far1 zone=a", "far2 zone=b"];
    let mut scene = with_everything("Local", "Cluster", "tcp", &zones);
    scene.expect(&[
        ("pod", "10.96.0.10:80", "near1 far1"),
        ("outside", "10.0.1.5:30080", "near1 near2"),
        ("pod", "10.0.1.5:30080", "near1 far1"),
    ]);
    scene.facts.zone = Some("b".to_owned());
    scene.expect(&[("pod", "10.96.0.10:80", "near2 far2")]);
    scene.facts.zone = Some("c".to_owned());
    scene.expect(&[("pod", "10.96.0.10:80", "near1 near2 far1 far2")]);
    scene.endpoints("web", &["near1 zone=b", "near2 zone=b", "far1 zone=a"]);
    scene.facts.zone = Some("a".to_owned());
    // No endpoint of policy Cluster is here: those of policy Local are kept apart from them, but do not see less.
    scene.expect(&[("outside", "10.96.0.10:80", "far1*"), ("outside", "10.0.1.5:30080", "near1 near2")]);
    scene.endpoints("web", &["near1 node=here", "far1 node=there"]);
    scene.expect(&[("pod", "10.96.0.10:80", "near1"), ("pod", "10.0.1.5:30080", "near1")]);
}

#[test]
fn p68_a_family_without_cluster_ip_has_no_frontend() {
    let mut service = everything("Cluster", "Cluster", "tcp");
    service["spec"]["clusterIPs"] = json!(["10.96.0.10"]);
    let mut scene = Scene::new();
    scene.service("web", service);
    scene.endpoints("web", &["far1"]);
    for to in ["[fd00::1:5]:30080", "[2001:db8:7::7]:80", "[2001:db8:7::8]:80"] {
        assert_eq!(scene.outcome("outside", to), "untouched", "{to}");
    }
    assert_eq!(scene.ruleset(Family::Ipv6).programme.elements().count(), 0);
}

#[test]
fn a_thousand_endpoints_are_chosen_from_alike() {
    let names: Vec<_> = (1..=1000).map(|number| format!("far{number}")).collect();
    let scene = with_everything("Cluster", "Cluster", "tcp", &names.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(scene.outcome("pod", "10.96.0.10:80").split(' ').count(), 1000);
}

fn candidates(local: bool, count: u16) -> Vec<Candidate> {
    let net = if local { 1 } else { 2 };
    let address = |number: u16| IpAddr::from([10, net, number.to_be_bytes()[0], number.to_be_bytes()[1]]);
    let backend = |number| Backend { address: address(number), port: TARGET_PORT };
    (0..count).map(|number| Candidate { backend: backend(number), local }).collect()
}

#[test]
fn more_endpoints_than_an_index_can_tell_apart_are_cut_off() {
    let service = serde_json::from_value(everything("Local", "Cluster", "tcp")).unwrap();
    let service = Service::read(&service, &Mode::Replace("weir".to_owned()), true).unwrap();
    let facts = scene::facts(Mode::Replace("weir".to_owned()));
    let made = |cluster: Vec<Candidate>, local: Vec<Candidate>| {
        let choice = Choice { cluster, local, serving: Vec::new() };
        let (key, order) = (scene::key("web"), Order::default());
        contribute(Family::Ipv4, &key, &service, &service.ports[0], &choice, &facts, &order)
    };
    let counts = |made: &Contribution, to: &str| {
        let frontend = scene::frontend(to);
        let verdict = |key| match made.elements.iter().find(|(found, _)| *found == key) {
            Some((_, Value::Goto(Target::Pick { count, region, .. }))) => (*count, *region),
            other => panic!("{other:?}"),
        };
        (verdict(Key::Inside(frontend)), verdict(Key::Outside(frontend)))
    };
    let far = candidates(false, 40_000);
    let near = candidates(true, 40_000);

    let mixed = made([candidates(true, 2), far.clone()].concat(), candidates(true, 2));
    assert_eq!(counts(&mixed, "10.0.1.5:30080"), ((HIGH, Region::Low), (2, Region::Low)));
    assert_eq!(mixed.order.low.len(), usize::from(HIGH));

    // Both regions full: policy Cluster has none of this node's, policy Local all of them.
    let both = made(far, near);
    assert_eq!(counts(&both, "10.0.1.5:30080"), ((HIGH, Region::Low), (HIGH, Region::High)));
    let indices = both.elements.iter().filter(|(key, _)| match key {
        Key::Endpoint(frontend, _) => *frontend == scene::frontend("10.0.1.5:30080"),
        _ => false,
    });
    assert_eq!(indices.count(), 2 * usize::from(HIGH));
}

#[test]
fn an_endpoint_that_leaves_moves_the_last_one_at_most() {
    let all = candidates(false, 5);
    let backend = |at: usize| all[at].backend;
    let before = arrange(&[], &[&all]);
    assert_eq!(before, (0..5).map(backend).collect::<Vec<_>>());
    let without: Vec<_> = all.iter().copied().filter(|candidate| candidate.backend != backend(1)).collect();
    assert_eq!(arrange(&before, &[&without]), [0, 4, 2, 3].map(backend));
}

prop_compose! {
    /// Endpoints of two groups, and an order of some of these and others before.
    fn arrangements()(
        before in subsequence((0..24_u16).collect::<Vec<_>>(), 0..=24).prop_flat_map(|some| Just(some).prop_shuffle()),
        near in subsequence((0..12_u16).collect::<Vec<_>>(), 0..=12),
        far in subsequence((8..24_u16).collect::<Vec<_>>(), 0..=16),
    ) -> (Vec<u16>, Vec<u16>, Vec<u16>) {
        let far = far.into_iter().filter(|number| !near.contains(number)).collect();
        (before, near, far)
    }
}

proptest! {
    #[test]
    fn endpoints_stay_where_they_are_if_they_can((before, near, far) in arrangements()) {
        let all = candidates(false, 24);
        let pick = |some: &[u16]| some.iter().map(|at| all[usize::from(*at)]).collect::<Vec<_>>();
        let backends = |some: &[u16]| pick(some).iter().map(|candidate| candidate.backend).collect::<Vec<_>>();
        let (before, groups) = (backends(&before), [backends(&near), backends(&far)]);
        let after = arrange(&before, &[&pick(&near), &pick(&far)]);
        prop_assert_eq!(after.len(), near.len() + far.len());
        let mut rest = &after[..];
        let mut start = 0;
        for group in &groups {
            let (slots, others) = rest.split_at(group.len());
            prop_assert_eq!(slots.iter().collect::<BTreeSet<_>>(), group.iter().collect::<BTreeSet<_>>());
            for (at, backend) in slots.iter().enumerate() {
                let was = before.get(start + at);
                prop_assert!(was == Some(backend) || !was.is_some_and(|was| group.contains(was)), "{:?} had to go", was);
            }
            start += group.len();
            rest = others;
        }
        prop_assert_eq!(arrange(&after, &[&pick(&near), &pick(&far)]), after, "and then nothing moves");
    }
}
