use serde_json::{Value, json};

use super::*;

/// A slice of Service `n/s` whose endpoints are (address, node, conditions, hints).
fn slice(ports: Value, endpoints: &[(&str, &str, Value, Value)]) -> Slice {
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|(address, node, conditions, hints)| {
            json!({"addresses": [address], "nodeName": node, "conditions": conditions, "hints": hints})
        })
        .collect();
    read(json!({"kubernetes.io/service-name": "s"}), "IPv4", ports, json!(endpoints)).unwrap()
}

fn read(labels: Value, family: &str, ports: Value, endpoints: Value) -> Option<Slice> {
    let object = json!({
        "metadata": {"namespace": "n", "name": "s-1", "labels": labels},
        "addressType": family, "ports": ports, "endpoints": endpoints,
    });
    Slice::read(&serde_json::from_value(object).unwrap(), "here")
}

fn web() -> Value {
    json!([{"name": "web", "port": 8080, "protocol": "TCP"}])
}

fn chosen(slices: &[Slice], zone: Option<&str>) -> (Vec<String>, Vec<String>) {
    let choice = choose(slices.iter(), Family::Ipv4, "web", Protocol::Tcp, zone);
    let text = |some: &[Candidate]| some.iter().map(|candidate| candidate.backend.to_string()).collect();
    (text(&choice.cluster), text(&choice.local))
}

fn texts(some: &[&str]) -> Vec<String> {
    some.iter().map(ToString::to_string).collect()
}

#[test]
fn p3_p4_slices_that_do_not_count() {
    let service = json!({"kubernetes.io/service-name": "s"});
    assert!(read(service.clone(), "IPv6", web(), json!([])).is_some());
    assert_eq!(read(service.clone(), "FQDN", web(), json!([])), None);
    assert_eq!(read(json!({}), "IPv4", web(), json!([])), None);
    let headless = json!({"kubernetes.io/service-name": "s", HEADLESS_LABEL: ""});
    assert_eq!(read(headless, "IPv4", web(), json!([])), None);
    let odd =
        json!([{"addresses": ["fd00::1"]}, {"addresses": ["pod.example"]}, {"addresses": ["10.0.0.1", "10.0.0.2"]}]);
    let slice = read(service, "IPv4", web(), odd).unwrap();
    assert_eq!(chosen(&[slice], None).0, texts(&["10.0.0.1:8080"]));
}

#[test]
fn p5_ports_are_joined_by_name_and_protocol() {
    let ports = json!([
        {"name": "web", "port": 8080, "protocol": "UDP"}, {"name": "other", "port": 1, "protocol": "TCP"},
        {"port": 2, "protocol": "TCP"}, {"name": "web", "protocol": "TCP"}, {"name": "web", "port": 0, "protocol": "TCP"},
    ]);
    let nothing = slice(ports, &[("10.0.0.1", "here", json!({}), json!({}))]);
    let one = slice(web(), &[("10.0.0.2", "here", json!({}), json!({}))]);
    let other = json!([{"name": "web", "port": 9090, "protocol": "TCP"}]);
    let two = slice(other, &[("10.0.0.3", "there", json!({}), json!({}))]);
    assert_eq!(chosen(&[nothing, one, two], None).0, texts(&["10.0.0.2:8080", "10.0.0.3:9090"]));
}

#[test]
fn p6_p7_p8_draining_endpoints_serve_when_nobody_else_does() {
    let (none, draining) = (json!({}), json!({"ready": false, "serving": true, "terminating": true}));
    let (unready, ended) =
        (json!({"ready": false, "serving": false}), json!({"ready": false, "serving": false, "terminating": true}));
    let mixed = slice(
        web(),
        &[
            ("10.0.0.1", "there", json!({}), none.clone()),
            ("10.0.0.2", "here", draining.clone(), none.clone()),
            ("10.0.0.3", "here", unready.clone(), none.clone()),
            ("10.0.0.4", "here", ended.clone(), none.clone()),
        ],
    );
    // The policies fall back each on its own.
    assert_eq!(chosen(std::slice::from_ref(&mixed), None), (texts(&["10.0.0.1:8080"]), texts(&["10.0.0.2:8080"])));
    let choice = choose([&mixed].into_iter(), Family::Ipv4, "web", Protocol::Tcp, None);
    assert_eq!(choice.serving.len(), 2);

    let leaving = slice(
        web(),
        &[
            ("10.0.0.1", "there", draining.clone(), none.clone()),
            ("10.0.0.2", "here", draining, none.clone()),
            ("10.0.0.3", "here", ended, none.clone()),
        ],
    );
    assert_eq!(chosen(&[leaving], None), (texts(&["10.0.0.1:8080", "10.0.0.2:8080"]), texts(&["10.0.0.2:8080"])));
    let nobody = slice(web(), &[("10.0.0.1", "here", unready, none)]);
    assert_eq!(chosen(&[nobody], None), (texts(&[]), texts(&[])));
}

#[test]
fn p43_p44_hints_count_only_if_all_have_them() {
    let zone = |zone: &str| json!({"forZones": [{"name": zone}]});
    let node = |node: &str| json!({"forNodes": [{"name": node}], "forZones": [{"name": "a"}]});
    let with = |first: Value, second: Value| {
        slice(web(), &[("10.0.0.1", "here", json!({}), first), ("10.0.0.2", "there", json!({}), second)])
    };
    let both = texts(&["10.0.0.1:8080", "10.0.0.2:8080"]);
    let second = texts(&["10.0.0.2:8080"]);
    let cluster = |slice: Slice, zone: Option<&str>| chosen(&[slice], zone).0;
    assert_eq!(cluster(with(zone("a"), zone("b")), Some("b")), second);
    assert_eq!(cluster(with(zone("a"), zone("b")), Some("c")), both);
    assert_eq!(cluster(with(zone("a"), zone("b")), None), both);
    assert_eq!(cluster(with(json!({}), zone("b")), Some("b")), both);
    assert_eq!(cluster(with(node("there"), node("here")), Some("b")), second);
    assert_eq!(cluster(with(node("there"), node("there")), Some("a")), both);
    // Policy Local knows no hints.
    assert_eq!(chosen(&[with(zone("a"), zone("b"))], Some("b")).1, texts(&["10.0.0.1:8080"]));
    // Nor does an endpoint that is not ready spoil them.
    let draining = json!({"ready": false, "serving": true, "terminating": true});
    let third = slice(web(), &[("10.0.0.3", "there", draining, json!({}))]);
    assert_eq!(chosen(&[with(zone("a"), zone("b")), third], Some("b")).0, second);
}

#[test]
fn p48_local_addresses_are_counted_once() {
    let two = json!([{"name": "web", "port": 80, "protocol": "TCP"}, {"name": "x", "port": 81, "protocol": "TCP"}]);
    let draining = json!({"ready": false, "serving": true, "terminating": true});
    let slice = slice(
        two,
        &[
            ("10.0.0.1", "here", json!({}), json!({})),
            ("10.0.0.2", "here", draining, json!({})),
            ("10.0.0.3", "there", json!({}), json!({})),
        ],
    );
    assert_eq!(count_local([&slice, &slice].into_iter()), 1);
}

#[test]
fn one_endpoint_in_two_slices_is_what_the_better_says() {
    let draining = json!({"ready": false, "serving": true, "terminating": true});
    let old = slice(web(), &[("10.0.0.1", "here", draining, json!({}))]);
    let new = slice(web(), &[("10.0.0.1", "here", json!({}), json!({}))]);
    for slices in [[old.clone(), new.clone()], [new, old]] {
        assert_eq!(chosen(&slices, None).0, texts(&["10.0.0.1:8080"]));
    }
}
