//! What a Service says of its listeners.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ServicePort;

use super::{Port, Protocol};
use crate::model::annotation::Problem;

/// Listeners of one Network Load Balancer (ELB quotas; cannot be raised).
const LISTENER_LIMIT: usize = 50;

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
                parsed.insert(number, Port { port: number, protocol, node_port });
            }
            Some(other) if other.protocol != protocol && other.node_port == node_port => {
                other.protocol = Protocol::TcpUdp;
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

/// A port, if the number is one.
pub(super) fn to_port(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|port| *port != 0)
}
