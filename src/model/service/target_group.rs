//! What a Service says of its target groups: attributes and health checks.

use std::collections::{BTreeMap, BTreeSet};

use super::{HealthCheckSpec, HealthPort, HealthProtocol, Port, Protocol, kept};
use crate::model::annotation::{self, Annotations, Problem};
use crate::model::attribute::{Attributes, Holder};

const PROXY_PROTOCOL: &str = "proxy_protocol_v2.enabled";
const STICKINESS: &str = "stickiness.enabled";

/// Gives each port the attributes of its target group.
pub(super) fn parse_attributes(
    annotations: Annotations<'_>,
    has_affinity: bool,
    ports: &mut BTreeMap<u16, Port>,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<String>,
) {
    let for_all = annotations.map(annotation::TARGET_GROUP_ATTRIBUTES).map_err(|problem| problems.push(problem));
    let for_all = for_all.unwrap_or_default();
    let all: Vec<_> = ports.values().map(|port| port.target_protocol).collect();
    object(annotation::TARGET_GROUP_ATTRIBUTES, annotations, &for_all, &all, problems);
    for port in ports.values_mut() {
        port.attributes.extend(for_all.clone());
    }
    for (key, suffix) in annotations.family(annotation::TARGET_GROUP_ATTRIBUTES_OF) {
        let Some(port) = suffix.parse().ok().and_then(|number: u16| ports.get_mut(&number)) else {
            problems.push(no_such_port(key, suffix, annotations, "a key that ends in the number of a port"));
            continue;
        };
        let own = annotations.map(key).map_err(|problem| problems.push(problem)).unwrap_or_default();
        object(key, annotations, &own, &[port.target_protocol], problems);
        // As in the AWS Load Balancer Controller, an empty value does not override.
        port.attributes.extend(own.into_iter().filter(|(_, value)| !value.is_empty()));
    }
    proxy_protocol(annotations, ports, problems);
    for port in ports.values_mut().filter(|_| has_affinity) {
        if port.protocol == Protocol::Tls {
            let number = port.port;
            warnings.push(format!(
                "spec.sessionAffinity: \"ClientIP\" on port {number}: a TLS listener does not send a client to the same \
                 node again"
            ));
            continue;
        }
        port.attributes.entry(STICKINESS.into()).or_insert_with(|| "true".into());
        let keeps_client = port.attributes.get("preserve_client_ip.enabled").is_none_or(|value| value == "true");
        if !keeps_client {
            warnings.push(format!(
                "spec.sessionAffinity: \"ClientIP\" on port {}: without client addresses the nodes see the load \
                 balancer's, and clients share endpoints",
                port.port
            ));
        }
    }
}

/// Takes note of attributes that are none, or that target groups of these protocols cannot have.
fn object(
    key: &str,
    annotations: Annotations<'_>,
    asked: &Attributes,
    protocols: &[Protocol],
    problems: &mut Vec<Problem>,
) {
    let text = annotations.text(key).unwrap_or_default();
    for (name, value) in asked {
        let mut holders = protocols.iter().map(|protocol| Holder::TargetGroup(*protocol));
        if let Some((wrong, expected)) = holders.find_map(|holder| holder.objection(name, value)) {
            problems.push(Problem::new(key, text, wrong, expected));
        }
    }
    let flag = |name: &str| asked.get(name).map(String::as_str);
    let interval = "target_health_state.unhealthy.draining_interval_seconds";
    let terminates = "target_health_state.unhealthy.connection_termination.enabled";
    if flag(interval).is_some_and(|seconds| seconds != "0") && flag(terminates) != Some("false") {
        let wrong = format!("has {interval} without {terminates}=false");
        problems.push(Problem::new(key, text, wrong, "both, or neither"));
    }
}

fn proxy_protocol(annotations: Annotations<'_>, ports: &mut BTreeMap<u16, Port>, problems: &mut Vec<Problem>) {
    let for_all = annotations.text(annotation::PROXY_PROTOCOL);
    if let Some(text) = for_all.filter(|text| *text != "*") {
        problems.push(Problem::new(annotation::PROXY_PROTOCOL, text, "is unknown", "*"));
        return;
    }
    let Some(text) = annotations.text(annotation::PROXY_PROTOCOL_PORTS) else {
        if for_all.is_some() {
            for port in ports.values_mut() {
                port.attributes.insert(PROXY_PROTOCOL.into(), "true".into());
            }
        }
        return;
    };
    if for_all.is_some() {
        let wrong = format!("is given together with {}", annotation::PROXY_PROTOCOL);
        problems.push(Problem::new(annotation::PROXY_PROTOCOL_PORTS, text, wrong, "one of the two"));
        return;
    }
    let (key, expected) = (annotation::PROXY_PROTOCOL_PORTS, "numbers of ports of the Service");
    let mut chosen = BTreeSet::new();
    for part in kept(annotations.list(key, "port", expected), problems) {
        match part.parse().ok().filter(|number| ports.contains_key(number)) {
            Some(number) => drop(chosen.insert(number)),
            None => problems.push(no_such_port(key, part, annotations, expected)),
        }
    }
    for (number, port) in ports {
        port.attributes.insert(PROXY_PROTOCOL.into(), chosen.contains(number).to_string());
    }
}

pub(super) fn no_such_port(key: &str, part: &str, annotations: Annotations<'_>, expected: &str) -> Problem {
    let text = annotations.text(key).unwrap_or_default();
    Problem::new(key, text, format!("names {part:?}, which is no port of the Service"), expected)
}

/// Settings of health checks. `names` holds the NodePort of each named port.
pub(super) fn parse_health(
    annotations: Annotations<'_>,
    names: &BTreeMap<String, Port>,
    ports: &BTreeMap<u16, Port>,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<String>,
) -> HealthCheckSpec {
    let protocol = kept(parse_health_protocol(annotations), problems);
    let health = HealthCheckSpec {
        protocol,
        port: kept(parse_health_port(annotations, names, ports), problems),
        path: kept(parse_path(annotations), problems),
        codes: kept(parse_codes(annotations), problems),
        interval: kept(annotations.number(annotation::HEALTH_INTERVAL, 5..=300), problems),
        timeout: kept(annotations.number(annotation::HEALTH_TIMEOUT, 2..=120), problems),
        healthy: kept(annotations.number(annotation::HEALTHY_THRESHOLD, 2..=10), problems),
        unhealthy: kept(annotations.number(annotation::UNHEALTHY_THRESHOLD, 2..=10), problems),
    };
    let is_udp = |number: u16| ports.values().any(|port| port.node_port == number && port.protocol == Protocol::Udp);
    if let Some(HealthPort::Number(number)) =
        health.port.filter(|port| matches!(port, HealthPort::Number(number) if is_udp(*number)))
    {
        warnings.push(format!(
            "{}: \"{number}\" is the nodePort of a UDP port; a health check is TCP or HTTP, and gets no answer there",
            annotation::HEALTH_PORT
        ));
    }
    let interval = health.interval.unwrap_or(HealthCheckSpec::INTERVAL);
    if let Some(timeout) = health.timeout.filter(|timeout| *timeout > interval) {
        let wrong = format!("is longer than the interval of {interval} seconds");
        problems.push(Problem::new(annotation::HEALTH_TIMEOUT, timeout.to_string(), wrong, "at most the interval"));
    }
    if protocol == Some(HealthProtocol::Tcp) {
        for key in [annotation::HEALTH_PATH, annotation::HEALTH_CODES] {
            if let Some(text) = annotations.text(key) {
                warnings.push(format!("{key}: {text:?} is ignored; a TCP check asks for no path and gets no code"));
            }
        }
    }
    health
}

/// A server that expects the PROXY protocol may not answer a check without it.
pub(super) fn warn_of_proxied_checks(
    health: &HealthCheckSpec,
    ports: &BTreeMap<u16, Port>,
    local: bool,
    warnings: &mut Vec<String>,
) {
    let requests = match health.protocol {
        Some(protocol) => protocol != HealthProtocol::Tcp,
        None => health.path.is_some() || health.codes.is_some(),
    };
    let asks_their_server = health.protocol.is_some() || health.path.is_some();
    let checks_traffic = match health.port {
        Some(HealthPort::Traffic) => true,
        Some(HealthPort::Number(_)) => false,
        None => asks_their_server && !local,
    };
    let proxied = ports.values().find(|port| port.attributes.get(PROXY_PROTOCOL).is_some_and(|value| value == "true"));
    if let Some(port) = proxied.filter(|_| requests && checks_traffic) {
        warnings.push(format!(
            "{}: the health check asks port {} over HTTP, whose server expects the PROXY protocol and may refuse it; \
             without this annotation the node is asked instead",
            [
                (health.port.is_some(), annotation::HEALTH_PORT),
                (health.protocol.is_some(), annotation::HEALTH_PROTOCOL),
            ]
            .iter()
            .find_map(|(given, key)| given.then_some(*key))
            .unwrap_or(annotation::HEALTH_PATH),
            port.port
        ));
    }
}

fn parse_health_protocol(annotations: Annotations<'_>) -> Result<Option<HealthProtocol>, Problem> {
    let Some(text) = annotations.text(annotation::HEALTH_PROTOCOL) else { return Ok(None) };
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Some(HealthProtocol::Tcp)),
        "http" => Ok(Some(HealthProtocol::Http)),
        "https" => Ok(Some(HealthProtocol::Https)),
        _ => {
            let wrong = "is an unsupported health check protocol";
            Err(Problem::new(annotation::HEALTH_PROTOCOL, text, wrong, "tcp, http or https"))
        }
    }
}

fn parse_health_port(
    annotations: Annotations<'_>,
    names: &BTreeMap<String, Port>,
    ports: &BTreeMap<u16, Port>,
) -> Result<Option<HealthPort>, Problem> {
    let key = annotation::HEALTH_PORT;
    let Some(text) = annotations.text(key) else { return Ok(None) };
    let udp_only = |port: &Port| port.protocol == Protocol::Udp;
    if text == "traffic-port" {
        return match ports.values().find(|port| udp_only(port)) {
            Some(port) => {
                let wrong = format!("cannot check port {}, since UDP answers no check", port.port);
                Err(Problem::new(key, text, wrong, "a number, or the name of a TCP port"))
            }
            None => Ok(Some(HealthPort::Traffic)),
        };
    }
    let expected = "traffic-port, 1 to 65535, or the name of a port of the Service";
    if let Ok(number) = text.parse::<i64>() {
        let port = u16::try_from(number).ok().filter(|port| *port != 0);
        let wrong = || Problem::new(key, text, "is out of range", expected);
        return port.map(|port| Some(HealthPort::Number(port))).ok_or_else(wrong);
    }
    match names.get(text) {
        Some(port) if udp_only(port) => {
            Err(Problem::new(key, text, "is a UDP port, which answers no check", "a TCP port"))
        }
        Some(port) => Ok(Some(HealthPort::Number(port.node_port))),
        None => Err(Problem::new(key, text, "is no port", expected)),
    }
}

fn parse_path(annotations: Annotations<'_>) -> Result<Option<String>, Problem> {
    let Some(text) = annotations.text(annotation::HEALTH_PATH) else { return Ok(None) };
    // ELB API, `HealthCheckPath`: 1 to 1024 characters.
    let wrong = if !text.starts_with('/') {
        "does not begin with \"/\""
    } else if text.chars().count() > 1024 {
        "is longer than 1024 characters"
    } else if text.contains(char::is_whitespace) {
        "has a blank"
    } else {
        return Ok(Some(text.to_owned()));
    };
    Err(Problem::new(annotation::HEALTH_PATH, text, wrong, "a path such as /healthz"))
}

fn parse_codes(annotations: Annotations<'_>) -> Result<Option<String>, Problem> {
    let Some(text) = annotations.text(annotation::HEALTH_CODES) else { return Ok(None) };
    let code = |text: &str| text.trim().parse::<u16>().ok().filter(|code| (200..=599).contains(code));
    let is_good = |part: &str| match part.split_once('-') {
        Some((first, last)) => code(first).zip(code(last)).is_some_and(|(first, last)| first <= last),
        None => code(part).is_some(),
    };
    if text.split(',').all(is_good) {
        // One spelling, so that AWS's answer compares equal.
        return Ok(Some(text.chars().filter(|letter| !letter.is_whitespace()).collect()));
    }
    let expected = "codes or ranges of codes from 200 to 599, as in 200,204 or 200-399";
    Err(Problem::new(annotation::HEALTH_CODES, text, "has a part that is no HTTP status code", expected))
}
