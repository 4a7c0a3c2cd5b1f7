//! Whole answers, from files and snapshots, without any network.

use serde_json::{Value, json};

use super::*;
use crate::controller::account::State;
use crate::controller::observed::Asg;
use crate::controller::placement::Targets;
use crate::controller::plan::tests::{CLUSTER, facts, policy};
use crate::model::id::InstanceId;
use crate::model::service::CLASS;

const ANNOTATION: &str = "service.beta.kubernetes.io/aws-load-balancer-";

/// One node in one Auto Scaling group, and these Services.
fn snapshot(services: &[Value]) -> Snapshot {
    let mut state = State::default();
    state.facts = Some(facts());
    let asg = Asg { instances: ["i-1".into()].into(), ..Asg::default() };
    state.observed.asgs.insert("workers".into(), asg);
    state.membership.insert(InstanceId::from("i-1"), Some("workers".into()));
    snapshot_of(&state, services)
}

fn snapshot_of(state: &State, services: &[Value]) -> Snapshot {
    let node = json!({"metadata": {"name": "node-1"}, "spec": {"providerID": "aws:///us-east-1a/i-1"}});
    let stored = snapshot::Settings {
        region: "us-east-1".into(),
        policy: policy(),
        class: CLASS.into(),
        claim_classless: false,
        now: Timestamp::UNIX_EPOCH,
    };
    let services = services.iter().map(|service| serde_json::from_value(service.clone()).unwrap());
    Snapshot::of(state, stored, vec![serde_json::from_value(node).unwrap()], services.collect())
}

/// A Service of the cluster.
fn service(name: &str, node_port: u16) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "uid": format!("u-{name}"), "annotations": {}},
        "spec": {
            "type": "LoadBalancer", "loadBalancerClass": CLASS, "ipFamilies": ["IPv4"],
            "ports": [{"name": "web", "port": 80, "nodePort": node_port}],
        },
    })
}

/// The snapshot after everything in it has been done.
fn settled(services: &[Value]) -> Snapshot {
    let before = snapshot(services);
    let cast = cast(&before, &[], Timestamp::UNIX_EPOCH);
    let wishes: Vec<_> = cast.iter().filter_map(|entry| entry.wish.clone()).collect();
    let mut state = before.state();
    let script = Script { policy: &before.policy, wishes: &wishes, needs_shared: true, now: Instant::now() };
    assert!(rehearse(&mut state, &script).settled);
    for group in state.observed.target_groups.values() {
        state.targets.insert(group.arn.clone(), Targets { known: true, ..Targets::default() });
    }
    snapshot_of(&state, services)
}

fn report(snapshot: &Snapshot, files: &str) -> Report {
    let manifests = manifest::parse(&[("a.yaml".to_owned(), files.to_owned())], "shop").unwrap();
    let scope = if files.is_empty() { Scope::All } else { Scope::Files(manifests.iter().map(Manifest::key).collect()) };
    let cast = cast(snapshot, &manifests, Timestamp::UNIX_EPOCH);
    Report::of(snapshot, &cast, &rehearse_all(snapshot, &cast), &scope)
}

fn file(name: &str, more: Value) -> String {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"type": "LoadBalancer", "ports": [{"name": "web", "port": 80}]},
    });
    for (pointer, value) in more.as_object().unwrap() {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        service.pointer_mut(parent).unwrap().as_object_mut().unwrap().insert(key.to_owned(), value.clone());
    }
    service.to_string()
}

#[test]
fn a_new_service_in_a_file_is_told_whole_and_what_is_not_known_is_said() {
    let report = report(&snapshot(&[]), &file("order", json!({})));
    let scope = Scope::Files([ServiceKey::new("shop", "order")].into());
    let prefix = name::cluster_prefix(CLUSTER);
    let text = report.text(&scope);
    let (head, shared) = text.split_once("\nfor all Services together\n").unwrap();
    assert_eq!(
        head.replace(&prefix, "weir-"),
        "cluster demo in us-east-1, read at 1970-01-01T00:00:00Z\n\
         \n\
         shop/order: create, from a.yaml\n\
         \x20 ? spec.loadBalancerClass is weir.dev/nlb, which the admission policy sets\n\
         \x20 ? the API server allocates the NodePort of port 80\n\
         \x20 ? it does not exist yet: names end in <hash>, which depends on its UID\n\
         \x20 + create security group weir-order-<hash>\n\
         \x20 ~ allow in security group weir-order-<hash>: tcp 80 from 0.0.0.0/0\n\
         \x20 + create internet-facing load balancer weir-order-<hash> in subnet-a (za), subnet-b (zb)\n\
         \x20 + create target group weir-order-80-<hash> for TCP <allocated at creation>\n\
         \x20 + create listener TCP 80 on weir-order-<hash> to weir-order-80-<hash>\n\
         \x20 + attach target group weir-order-80-<hash> to Auto Scaling group workers\n"
    );
    assert!(shared.starts_with(&format!("  + create security group {prefix}backend-")), "{shared}");
    assert!(shared.ends_with("\n\nServices: 1 to create\n"), "{shared}");
    assert_eq!(report.exit_code(), ExitCode::from(PENDING));
}

#[test]
fn a_file_that_says_what_is_there_leaves_nothing_to_do() {
    let known = settled(&[service("order", 30080), service("cart", 30081)]);
    let quiet = report(&known, "");
    assert_eq!(quiet.exit_code(), ExitCode::SUCCESS);
    assert!(quiet.text(&Scope::All).ends_with("\n\nServices: 2 with nothing to do\n"), "{}", quiet.text(&Scope::All));
    let same = report(&known, &file("order", json!({})));
    assert_eq!((same.exit_code(), same.services.len()), (ExitCode::SUCCESS, 1), "{same:?}");
    assert_eq!(same.services[0].assumed, [""; 0], "class, UID and NodePort are those of the Service");
}

#[test]
fn a_port_more_has_no_name_for_its_target_group_yet() {
    let ports = json!([{"name": "web", "port": 80}, {"name": "tls", "port": 443}]);
    let report = report(&settled(&[service("order", 30080)]), &file("order", json!({"/spec/ports": ports})));
    let line = &report.services[0];
    assert_eq!(line.action, Fate::Change);
    let made: Vec<_> = line.steps.iter().filter(|step| step.text.contains("-443-")).collect();
    assert!(made.len() >= 3 && made.iter().all(|step| step.text.contains("-443-<hash>")), "{made:?}");
    assert!(made[0].text.ends_with("for TCP <allocated at creation>"), "{made:?}");
    let balancer = line.steps.iter().find(|step| step.text.contains("create listener")).unwrap();
    assert!(!balancer.text.split(" on ").nth(1).unwrap().starts_with('<'), "{balancer:?}");
    assert_eq!(line.steps.iter().filter(|step| step.text.contains("order-<hash>")).count(), 0, "{line:?}");
}

#[test]
fn another_scheme_replaces_and_says_that_the_hostname_changes() {
    let scheme = json!({"/metadata/annotations": {format!("{ANNOTATION}scheme"): "internal"}});
    let report = report(&settled(&[service("order", 30080)]), &file("order", scheme));
    let line = &report.services[0];
    assert_eq!(line.action, Fate::Replace);
    assert!(line.notes.iter().any(|note| note.starts_with("the hostname in its status changes")), "{line:?}");
    assert_eq!(report.exit_code(), ExitCode::from(PENDING));
}

#[test]
fn a_refused_service_is_shown_with_its_sentences_and_counts_as_an_error() {
    let wrong = json!({"/metadata/annotations": {format!("{ANNOTATION}scheme"): "public"}});
    let known = settled(&[service("order", 30080)]);
    let report = report(&known, &file("order", wrong));
    let line = &report.services[0];
    assert_eq!((line.action, line.steps.len()), (Fate::Refused, 0));
    assert!(line.problems[0].contains("\"public\" is an unknown scheme"), "{line:?}");
    assert_eq!(report.exit_code(), ExitCode::FAILURE);
    let unknown = json!({"/metadata/annotations": {format!("{ANNOTATION}subnets"): "subnet-9"}});
    let report = super::tests::report(&known, &file("order", unknown));
    assert!(report.services[0].problems[0].contains("subnet-9"), "{report:?}");
}

#[test]
fn what_is_not_weirs_is_said_and_what_is_gone_is_given_back() {
    let known = settled(&[service("order", 30080), service("cart", 30081), service("late", 30082)]);
    let cluster_ip = report(&known, &file("other", json!({"/spec/type": "ClusterIP"})));
    assert_eq!(cluster_ip.services[0].because.as_deref(), Some("weir does not serve it: spec.type is ClusterIP"));
    assert_eq!(cluster_ip.exit_code(), ExitCode::SUCCESS);
    let foreign = report(&known, &file("order", json!({"/spec/loadBalancerClass": "theirs"})));
    assert_eq!(foreign.services[0].action, Fate::Delete);

    let mut late = service("late", 30082);
    late["metadata"]["deletionTimestamp"] = json!("1970-01-01T00:00:00Z");
    let fewer = snapshot_of(&known.state(), &[service("order", 30080), late]);
    let report = report(&fewer, "");
    let told: Vec<_> =
        report.services.iter().map(|line| (line.service.as_str(), line.action, line.because.as_deref())).collect();
    assert_eq!(
        told,
        [
            ("shop/cart", Fate::Delete, Some("the Service is gone")),
            ("shop/late", Fate::Delete, Some("the Service is being deleted")),
            ("shop/order", Fate::None, None),
        ]
    );
}

#[test]
fn programs_get_the_same() {
    let report = report(&snapshot(&[]), &file("order", json!({})));
    let value = serde_json::to_value(&report).unwrap();
    assert_eq!(value["summary"], json!({"create": 1}));
    let line = &value["services"][0];
    assert_eq!(
        (&line["service"], &line["action"], &line["file"]),
        (&json!("shop/order"), &json!("create"), &json!("a.yaml"))
    );
    assert_eq!(line["steps"][0]["kind"], "create");
    assert_eq!(value["shared"][0]["kind"], "create");
}

#[test]
fn a_snapshot_that_was_stored_gives_the_same_answer() {
    let taken = settled(&[service("order", 30080)]);
    let path = std::env::temp_dir().join(format!("weir-plan-{}.json", std::process::id()));
    taken.save(&path).unwrap();
    let loaded = Snapshot::load(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(loaded.observed, taken.observed);
    assert_eq!(loaded.facts, taken.facts);
    let scheme = json!({"/metadata/annotations": {format!("{ANNOTATION}scheme"): "internal"}});
    for files in [String::new(), file("order", scheme), file("new", json!({}))] {
        let answers = [&taken, &loaded].map(|snapshot| serde_json::to_value(report(snapshot, &files)).unwrap());
        assert_eq!(answers[0], answers[1]);
    }
}

#[test]
fn what_a_snapshot_cannot_know_is_said() {
    let taken = Snapshot { is_stored: true, ..settled(&[]) };
    let groups = json!({"/metadata/annotations": {format!("{ANNOTATION}security-groups"): "sg-0123"}});
    let report = report(&taken, &file("order", groups));
    let line = &report.services[0];
    assert_eq!(line.action, Fate::Refused);
    assert!(line.notes.iter().any(|note| note.ends_with("counts as missing: sg-0123")), "{line:?}");
}

#[test]
fn a_file_that_is_no_snapshot_of_this_layout_is_refused() {
    let path = std::env::temp_dir().join(format!("weir-layout-{}.json", std::process::id()));
    for (text, words) in [
        ("{}", "is no snapshot of weir plan"),
        (r#"{"layout": 99, "weir": "9.9", "snapshot": {}}"#, "was written by weir 9.9 in layout 99"),
        (r#"{"layout": 1, "weir": "0.0", "snapshot": {}}"#, "was written by weir 0.0; take it again"),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = format!("{:#}", Snapshot::load(&path).unwrap_err());
        assert!(error.contains(words), "{error}");
    }
    std::fs::remove_file(&path).unwrap();
}
