//! Services that nobody meant: whatever the API server lets through is either served or refused in a sentence that names
//! the field and its value, and nothing panics.
//!
//! First the corpus, tests/corpus/*.json, then random Services for ten seconds, or as many as `WEIR_FUZZ_SECONDS` says.
//! What fails is made as small as it can be and added to the corpus.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{env, fs};

use k8s_openapi::api::core::v1::Service;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::test_runner::{Config, TestError, TestRunner};
use serde_json::{Value, json};
use weir::controller::desired::{Policy, Refusal, desired};
use weir::controller::facts::{Facts, NodeGroups, PrefixList, Subnet};
use weir::controller::observed::Observed;
use weir::controller::plan::plan;
use weir::model::annotation::{Annotations, Problem, TABLE};
use weir::model::family::Family;
use weir::model::ownership::Tags;
use weir::model::service::{Scheme, parse};

const SECONDS: &str = "WEIR_FUZZ_SECONDS";
const CLUSTER: &str = "demo";

fn corpus() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

/// Parts of values that mean something somewhere.
const WORDS: [&str; 44] = [
    "true",
    "false",
    "on",
    "off",
    "*",
    "0",
    "1",
    "-1",
    "5",
    "80",
    "443",
    "65536",
    "99999999999999999999",
    "tcp",
    "http",
    "HTTPS",
    "ssl",
    "None",
    "HTTP2Only",
    "internal",
    "internet-facing",
    "dualstack",
    "ipv4",
    "instance",
    "ip",
    "traffic-port",
    "web",
    "dns",
    "/",
    "/ready",
    "200-399",
    "subnet-0a",
    "sg-0a",
    "pl-0a",
    "eipalloc-0a",
    "10.0.0.0/8",
    "10.0.0.9",
    "::/0",
    "fd00::1",
    "auto_assigned",
    "CapacityUnits=100",
    "ELBSecurityPolicy-2016-08",
    "arn:aws:acm:us-east-1:111122223333:certificate/a",
    "deletion_protection.enabled=true",
];
/// What stands between and around them.
const GLUE: [&str; 8] = [",", "=", " ", "\\", ", ", "\u{a0}", "\"", "\n"];

fn text() -> impl Strategy<Value = String> {
    let word = || select(WORDS.to_vec()).prop_map(str::to_owned);
    let glued = prop::collection::vec((word(), select(GLUE.to_vec())), 0..5);
    let glued = glued.prop_map(|parts| parts.iter().map(|(word, glue)| format!("{word}{glue}")).collect());
    prop_oneof![4 => word(), 3 => glued, 2 => ".{0,20}", 1 => "[ -~]{0,300}"]
}

/// A key of the table, one of its families, or a slip of the pen.
fn key() -> impl Strategy<Value = String> {
    let rows: Vec<&str> = TABLE.iter().map(|row| row.key).collect();
    let suffix = select(vec!["80", "443", "TCP-80", "TLS-443", "UDP-53", "TCP_UDP-53", "tcp-80", "", "x", "-1"]);
    (select(rows), suffix, 0..20u8).prop_map(|(key, suffix, slip)| match slip {
        0 => format!("{key}s"),
        _ if key.ends_with('.') => format!("{key}{suffix}"),
        _ => key.to_owned(),
    })
}

fn port() -> impl Strategy<Value = Value> {
    let number = select(vec![1, 53, 80, 80, 443, 65535]);
    let node_port = select(vec![0, 30053, 30080, 30080, 30443, 32767]);
    let name = prop::option::of(select(vec!["web", "dns", "tls", ""]));
    (number, node_port, select(vec!["TCP", "UDP", "SCTP"]), name).prop_map(|(port, node_port, protocol, name)| {
        json!({"port": port, "nodePort": node_port, "protocol": protocol, "name": name})
    })
}

prop_compose! {
    fn service()(
        annotations in prop::collection::btree_map(key(), text(), 0..6),
        ports in prop::collection::vec(port(), 0..5),
        policy in select(vec!["Cluster", "Local"]),
        health in prop::option::of(select(vec![0, 31500])),
        affinity in select(vec!["None", "ClientIP"]),
        families in subsequence(vec!["IPv4", "IPv6"], 0..=2).prop_shuffle(),
        ranges in prop::collection::vec(select(vec!["0.0.0.0/0", " 10.0.0.1/8", "::/0", "fd00::/8", "x", ""]), 0..3),
        address in prop::option::of(select(vec!["", "192.0.2.1"])),
        name in "[a-z]([-a-z0-9]{0,61}[a-z0-9])?",
    ) -> Value {
        json!({
            "metadata": {"namespace": "shop", "name": name, "uid": "u-1", "annotations": annotations},
            "spec": {
                "type": "LoadBalancer", "loadBalancerClass": "weir.dev/nlb", "ports": ports,
                "externalTrafficPolicy": policy, "healthCheckNodePort": health, "sessionAffinity": affinity,
                "ipFamilies": families, "loadBalancerSourceRanges": ranges, "loadBalancerIP": address,
            },
        })
    }
}

fn facts() -> Facts {
    let subnet = |id: &str, zone: &str, range: &str| {
        let tags = [("kubernetes.io/role/elb", "1"), ("kubernetes.io/role/internal-elb", "1"), ("Name", "web")];
        let subnet = Subnet {
            zone: zone.into(),
            in_availability_zone: true,
            ranges: [range.parse().expect("a range"), "fd00::/64".parse().expect("a range")].into(),
            free_addresses: 100,
            is_public: true,
            tags: tags.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        };
        (id.into(), subnet)
    };
    let subnets = [subnet("subnet-0a", "za", "10.0.0.0/24"), subnet("subnet-0b", "zb", "10.0.1.0/24")].into();
    Facts {
        vpc: "vpc-1".into(),
        subnets,
        node_groups: NodeGroups::default(),
        groups: [("sg-0a".into(), Some("web".into()))].into(),
        prefix_lists: [("pl-0a".into(), PrefixList { family: Family::Ipv4, max_entries: 50 })].into(),
    }
}

fn policy() -> Policy {
    Policy {
        cluster: CLUSTER.into(),
        cluster_uid: "c-1".into(),
        default_scheme: Scheme::InternetFacing,
        node_ports: (30000, 32767),
        health_port: 10256,
    }
}

/// Whether a problem names a field that the Service has, and quotes what it says there.
fn is_a_sentence(problem: &Problem, annotations: &BTreeMap<String, String>) -> Result<(), String> {
    let of_annotation = annotations.get(&problem.field);
    if of_annotation.is_none() && !problem.field.starts_with("spec.") && problem.field != "load balancer name" {
        return Err(format!("{problem}: {:?} is no field of the Service", problem.field));
    }
    // A list may be quoted without its blanks.
    let squeezed = |text: &str| text.replace(|letter: char| letter == ',' || letter.is_whitespace(), "");
    if of_annotation.is_some_and(|given| !squeezed(given).contains(&squeezed(&problem.value))) {
        return Err(format!("{problem}: does not quote what was given"));
    }
    if problem.wrong.is_empty() || problem.expected.is_empty() {
        return Err(format!("{problem}: says nothing"));
    }
    Ok(())
}

/// Parses, decides and plans, as the controller would.
fn judge(value: &Value) -> Result<(), String> {
    let service: Service = serde_json::from_value(value.clone()).map_err(|error| error.to_string())?;
    let none = BTreeMap::new();
    let annotations = service.metadata.annotations.as_ref().unwrap_or(&none);
    let _ = Annotations(annotations).warnings();
    let is_good = |problems: &[Problem]| problems.iter().try_for_each(|problem| is_a_sentence(problem, annotations));
    let spec = match parse(&service) {
        Ok(spec) => spec,
        Err(problems) if problems.is_empty() => return Err("refused without a word".into()),
        Err(problems) => return is_good(&problems),
    };
    let observed = Observed::default();
    match desired(&spec, &facts(), &policy(), &observed) {
        Ok(desired) => {
            let plan = plan(&desired, &observed.of(CLUSTER, &spec.owner.uid));
            let text: Vec<_> = plan.steps.iter().map(ToString::to_string).collect();
            if text.is_empty() && !spec.ports.is_empty() {
                return Err("nothing is planned".into());
            }
            let too_long = |tags: &Tags| tags.iter().any(|(key, value)| key.len() > 512 || value.len() > 1024);
            if too_long(&desired.balancer.tags) || desired.balancer.name.len() > 32 {
                return Err(format!("AWS would refuse {:?}", desired.balancer));
            }
            Ok(())
        }
        Err(Refusal::Service(problems)) => is_good(&problems),
        Err(Refusal::Network(sentence)) if sentence.is_empty() => Err("refused without a word".into()),
        Err(Refusal::Network(_)) => Ok(()),
    }
}

#[test]
fn the_corpus() {
    let files: BTreeSet<_> =
        fs::read_dir(corpus()).expect("a corpus").map(|file| file.expect("a file").path()).collect();
    assert!(!files.is_empty());
    for file in files {
        let value = serde_json::from_str(&fs::read_to_string(&file).expect("a text")).expect("JSON");
        judge(&value).unwrap_or_else(|fault| panic!("{}: {fault}", file.display()));
    }
}

#[test]
fn services_that_nobody_meant() {
    let seconds = env::var(SECONDS).ok().and_then(|text| text.parse().ok()).unwrap_or(10);
    let (started, mut cases) = (Instant::now(), 0);
    while started.elapsed() < Duration::from_secs(seconds) {
        let config = Config { cases: 500, failure_persistence: None, ..Config::default() };
        let ended = TestRunner::new(config).run(&service(), |value| judge(&value).map_err(TestCaseError::fail));
        if let Err(TestError::Fail(reason, value)) = ended {
            let text = serde_json::to_string_pretty(&value).expect("JSON");
            let file = corpus().join(format!("found-{cases}-{}.json", text.len()));
            fs::write(&file, &text).expect("a corpus to write to");
            panic!("{reason}; kept as {}:\n{text}", file.display());
        }
        cases += 500;
    }
    println!("{cases} Services judged");
}
