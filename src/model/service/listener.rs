//! What a Service says of its listeners.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::ServicePort;

use super::target_group::no_such_port;
use super::{Port, Protocol, Tls, kept};
use crate::model::annotation::{self, Annotations, Problem};
use crate::model::attribute::Holder;

/// Listeners of one Network Load Balancer (ELB quotas; cannot be raised).
const LISTENER_LIMIT: usize = 50;
/// TLS 1.2 and 1.3, AWS's own recommendation. The API's default would still allow TLS 1.0.
const SSL_POLICY: &str = "ELBSecurityPolicy-TLS13-1-2-2021-06";

/// Ports by number.
pub(super) fn parse_ports(ports: &[ServicePort], problems: &mut Vec<Problem>) -> BTreeMap<u16, Port> {
    let mut parsed: BTreeMap<u16, Port> = BTreeMap::new();
    for (index, port) in ports.iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        let Some(number) = to_port(port.port) else {
            problems.push(Problem::new(format!("{field}.port"), port.port.to_string(), "is no port", "1 to 65535"));
            continue;
        };
        let protocol = match port.protocol.as_deref().unwrap_or("TCP") {
            "TCP" => Protocol::Tcp,
            "UDP" => Protocol::Udp,
            other => {
                let wrong = "is no protocol of a Network Load Balancer";
                problems.push(Problem::new(format!("{field}.protocol"), other, wrong, "TCP or UDP"));
                continue;
            }
        };
        let Some(node_port) = port.node_port.and_then(to_port) else {
            let value = port.node_port.unwrap_or_default().to_string();
            let wrong = format!("is no NodePort for port {number}");
            let expected = "a nodePort, or spec.allocateLoadBalancerNodePorts: true";
            problems.push(Problem::new(format!("{field}.nodePort"), value, wrong, expected));
            continue;
        };
        match parsed.get_mut(&number) {
            None => {
                parsed.insert(number, Port::new(number, protocol, node_port));
            }
            Some(other) if other.protocol != protocol && other.node_port == node_port => {
                (other.protocol, other.target_protocol) = (Protocol::TcpUdp, Protocol::TcpUdp);
            }
            Some(other) if other.protocol != protocol => {
                let wrong = format!("differs from nodePort {} of the same port {number}", other.node_port);
                let expected =
                    "one NodePort for both protocols, since a Network Load Balancer has one listener per port";
                problems.push(Problem::new(format!("{field}.nodePort"), node_port.to_string(), wrong, expected));
            }
            Some(_) => {
                problems.push(Problem::new(
                    format!("{field}.port"),
                    number.to_string(),
                    "is given twice",
                    "each port once",
                ));
            }
        }
    }
    if parsed.len() > LISTENER_LIMIT {
        let wrong = "are more ports than a Network Load Balancer has listeners";
        problems.push(Problem::new("spec.ports", parsed.len().to_string(), wrong, format!("at most {LISTENER_LIMIT}")));
    }
    parsed
}

/// Ports by the names that the Service gives them, each with the protocol of that name.
pub(super) fn named(ports: &[ServicePort]) -> BTreeMap<String, Port> {
    let parsed = ports.iter().filter_map(|port| {
        let protocol = if port.protocol.as_deref() == Some("UDP") { Protocol::Udp } else { Protocol::Tcp };
        Some((port.name.clone()?, Port::new(to_port(port.port)?, protocol, to_port(port.node_port?)?)))
    });
    parsed.collect()
}

/// Whether TCP and UDP may share a port: they do, unless the Service says no.
pub(super) fn parse_merging(annotations: Annotations<'_>, ports: &BTreeMap<u16, Port>) -> Result<(), Problem> {
    let key = annotation::TCP_UDP_LISTENER;
    let shared = ports.values().find(|port| port.protocol == Protocol::TcpUdp);
    match (annotations.flag(key)?, shared) {
        (Some(false), Some(port)) => {
            let text = annotations.text(key).unwrap_or_default();
            let wrong = format!("forbids what port {} asks for, TCP and UDP on one port", port.port);
            Err(Problem::new(key, text, wrong, "true, or one protocol for each port"))
        }
        _ => Ok(()),
    }
}

/// Makes listeners TLS.
pub(super) fn parse_tls(
    annotations: Annotations<'_>,
    names: &BTreeMap<String, Port>,
    ports: &mut BTreeMap<u16, Port>,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<String>,
) {
    let certificates = kept(parse_certificates(annotations), problems);
    let policy = kept(parse_policy(annotations), problems);
    let policies = ["None", "HTTP1Only", "HTTP2Only", "HTTP2Optional", "HTTP2Preferred"];
    let alpn = kept(annotations.word(annotation::ALPN_POLICY, &policies), problems);
    let backend = kept(parse_backend(annotations, warnings), problems);
    let chosen = tls_ports(annotations, names, ports, problems);
    if certificates.is_empty() {
        if let Some(text) = annotations.text(annotation::SSL_PORTS)
            && annotations.text(annotation::SSL_CERT).is_none()
        {
            let wrong = format!("is given without {}", annotation::SSL_CERT);
            problems.push(Problem::new(annotation::SSL_PORTS, text, wrong, "a certificate too"));
        }
        for key in [annotation::SSL_POLICY, annotation::ALPN_POLICY, annotation::BACKEND_PROTOCOL] {
            if let Some(text) = annotations.text(key).filter(|text| !["None", "tcp", "http", "https"].contains(text)) {
                warnings.push(format!("{key}: {text:?} is ignored; no listener is TLS"));
            }
        }
        return;
    }
    for port in ports.values_mut().filter(|port| chosen.contains(&port.port)) {
        port.protocol = Protocol::Tls;
        port.target_protocol = if backend { Protocol::Tls } else { Protocol::Tcp };
        let (certificates, policy) = (certificates.clone(), policy.unwrap_or(SSL_POLICY).to_owned());
        port.tls = Some(Tls { certificates, policy, alpn: alpn.filter(|alpn| *alpn != "None").map(Into::into) });
    }
}

fn parse_certificates(annotations: Annotations<'_>) -> Result<Vec<String>, Problem> {
    let key = annotation::SSL_CERT;
    let expected = "ARNs of ACM or IAM server certificates, each once, separated by commas";
    let list = annotations.list(key, "certificate", expected)?;
    let text = annotations.text(key).unwrap_or_default();
    let wrong = |what: String| Err(Problem::new(key, text, what, expected));
    for (index, arn) in list.iter().enumerate() {
        let parts: Vec<_> = arn.splitn(6, ':').collect();
        let is_arn = matches!(parts[..], ["arn", partition, "acm" | "iam", _, _, resource]
            if partition.starts_with("aws") && (resource.starts_with("certificate/") || resource.starts_with("server-certificate/")));
        if !is_arn {
            return wrong(format!("has {arn:?}, which is no certificate's ARN"));
        }
        if list[..index].contains(arn) {
            return wrong(format!("has {arn:?} twice"));
        }
    }
    Ok(list.into_iter().map(str::to_owned).collect())
}

fn parse_policy(annotations: Annotations<'_>) -> Result<Option<&str>, Problem> {
    let Some(text) = annotations.text(annotation::SSL_POLICY) else { return Ok(None) };
    let legal = |letter: char| letter.is_ascii_alphanumeric() || letter == '-';
    if text.starts_with("ELBSecurityPolicy-") && text.chars().all(legal) {
        return Ok(Some(text));
    }
    let expected = "the name of a security policy, such as ELBSecurityPolicy-TLS13-1-2-2021-06";
    Err(Problem::new(annotation::SSL_POLICY, text, "is no security policy", expected))
}

/// Whether TLS goes on to the targets.
fn parse_backend(annotations: Annotations<'_>, warnings: &mut Vec<String>) -> Result<bool, Problem> {
    let key = annotation::BACKEND_PROTOCOL;
    match annotations.text(key) {
        None | Some("tcp") => Ok(false),
        Some("ssl") => Ok(true),
        Some(text @ ("http" | "https")) => {
            warnings.push(format!("{key}: {text:?} is taken as tcp; a Network Load Balancer does not speak HTTP"));
            Ok(false)
        }
        Some(other) => Err(Problem::new(key, other, "is an unknown protocol", "tcp or ssl")),
    }
}

/// Numbers of the ports whose listeners are to be TLS, if there are certificates.
fn tls_ports(
    annotations: Annotations<'_>,
    names: &BTreeMap<String, Port>,
    ports: &BTreeMap<u16, Port>,
    problems: &mut Vec<Problem>,
) -> BTreeSet<u16> {
    let key = annotation::SSL_PORTS;
    let text = annotations.text(key).unwrap_or_default();
    let tcp = ports.values().filter(|port| port.protocol == Protocol::Tcp);
    if text.is_empty() || text == "*" {
        return tcp.map(|port| port.port).collect();
    }
    let known = names.keys().cloned().chain(ports.keys().map(ToString::to_string)).collect::<Vec<_>>();
    let expected = format!("*, or some of {}", known.join(", "));
    let mut chosen = BTreeSet::new();
    for part in kept(annotations.list(key, "port", &expected), problems) {
        let number = part.parse().ok().or_else(|| names.get(part).map(|port| port.port));
        match number.and_then(|number| ports.get(&number)) {
            Some(port) if port.protocol == Protocol::Tcp => drop(chosen.insert(port.port)),
            Some(port) => {
                let wrong = format!("names {part:?}, whose protocol is {}", port.protocol.as_str());
                problems.push(Problem::new(key, text, wrong, "TCP ports"));
            }
            None => problems.push(no_such_port(key, part, annotations, &expected)),
        }
    }
    chosen
}

/// Gives listeners their attributes.
pub(super) fn parse_listener_attributes(
    annotations: Annotations<'_>,
    ports: &mut BTreeMap<u16, Port>,
    problems: &mut Vec<Problem>,
) {
    for (key, suffix) in annotations.family(annotation::LISTENER_ATTRIBUTES) {
        let text = annotations.text(key).unwrap_or_default();
        let sides = suffix.rsplit_once('-').and_then(|(protocol, port)| Some((protocol, port.parse::<u16>().ok()?)));
        let port = sides
            .and_then(|(protocol, number)| ports.get_mut(&number).filter(|port| port.protocol.as_str() == protocol));
        let Some(port) = port else {
            let wrong = format!("is for {suffix:?}, which is no listener of the Service");
            problems.push(Problem::new(key, text, wrong, "a key that ends in protocol and port, such as TCP-80"));
            continue;
        };
        let asked = kept(annotations.map(key), problems);
        if port.protocol != Protocol::Tcp && !asked.is_empty() {
            let wrong = format!("is for a {} listener, which has no attributes", port.protocol.as_str());
            problems.push(Problem::new(key, text, wrong, "a TCP listener"));
            continue;
        }
        for (name, value) in &asked {
            if let Some((wrong, expected)) = Holder::Listener(port.protocol).objection(name, value) {
                problems.push(Problem::new(key, text, wrong, expected));
            }
        }
        port.listener_attributes = asked;
    }
}

/// What others offer and weir does not.
pub(super) fn refuse(annotations: Annotations<'_>, problems: &mut Vec<Problem>) {
    if let Some(text) = annotations.text(annotation::TARGET_TYPE).filter(|text| *text != "instance") {
        problems.push(Problem::new(annotation::TARGET_TYPE, text, "is not supported by this controller", "instance"));
    }
    if let Some(text) = annotations.text(annotation::QUIC_PORTS) {
        let wrong = "asks for QUIC, which is not supported by this controller";
        problems.push(Problem::new(annotation::QUIC_PORTS, text, wrong, "no such annotation"));
    }
    for (key, _) in annotations.family(annotation::ACTIONS) {
        let text = annotations.text(key).unwrap_or_default();
        let wrong = "asks for an action, which is not supported by this controller";
        problems.push(Problem::new(key, text, wrong, "no such annotation; each port forwards to its own targets"));
    }
    if kept(annotations.flag(annotation::MULTI_CLUSTER), problems) == Some(true) {
        let text = annotations.text(annotation::MULTI_CLUSTER).unwrap_or_default();
        let wrong = "is not supported by this controller, which attaches target groups to Auto Scaling groups";
        problems.push(Problem::new(annotation::MULTI_CLUSTER, text, wrong, "false"));
    }
}

/// A port, if the number is one.
pub(super) fn to_port(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|port| *port != 0)
}
