//! A Service as the node sees it: the addresses and ports it answers on, and how its endpoints are chosen.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use k8s_openapi::api::core::v1;

use crate::model::id::ServiceKey;
use crate::netfilter::Family;
use crate::netfilter::object::Protocol;

/// The label by which a Service says that another proxy than kube-proxy serves it.
pub const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// Which Services are ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// All but those whose label [`PROXY_NAME_LABEL`] has another value than this: there is no kube-proxy, and what was
    /// ours beside one stays ours.
    Replace(String),
    /// Those whose label has this value: kube-proxy serves the others.
    Beside(String),
}

impl Mode {
    fn owns(&self, service: &v1::Service) -> bool {
        let label = service.metadata.labels.as_ref().and_then(|labels| labels.get(PROXY_NAME_LABEL));
        match self {
            Self::Replace(name) => label.is_none_or(|label| label == name),
            Self::Beside(name) => label == Some(name),
        }
    }
}

/// Which endpoints a connection may go to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// Any.
    #[default]
    Cluster,
    /// Those on the node the connection comes to.
    Local,
}

impl TrafficPolicy {
    fn read(text: Option<&str>) -> Self {
        if text == Some("Local") { Self::Local } else { Self::Cluster }
    }
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name, empty if it has none.
    pub name: String,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port on all addresses but the nodes'.
    pub port: u16,
    /// Port on the nodes' addresses.
    pub node_port: Option<u16>,
}

/// A Service that has frontends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its UID, for Events.
    pub uid: String,
    /// When it was made, in seconds since 1970: of two Services that claim a frontend, the older has it.
    pub created: i64,
    /// Its ports.
    pub ports: Vec<Port>,
    /// ClusterIPs, one of a family.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// Addresses of load balancers that hand packets over as they are (`ipMode: VIP`).
    pub balancer_ips: Vec<IpAddr>,
    /// Sources that may use the load balancers' addresses; empty if any may.
    pub source_ranges: Vec<IpNet>,
    /// Policy for connections from outside the cluster.
    pub external_policy: TrafficPolicy,
    /// Policy for connections to the ClusterIP.
    pub internal_policy: TrafficPolicy,
    /// How many seconds an idle client stays with its endpoint, if it does at all.
    pub affinity: Option<u32>,
    /// Port on which load balancers ask for local endpoints.
    pub health_check_port: Option<u16>,
}

/// Idle time of session affinity where a Service gives none (Kubernetes API, `ClientIPConfig`): three hours.
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;

impl Service {
    /// The Service, if it is ours and has any frontend.
    pub fn read(service: &v1::Service, mode: &Mode, external_ips: bool) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
        let has_address = spec.cluster_ip.as_deref().is_some_and(|ip| !ip.is_empty() && ip != "None");
        if !mode.owns(service) || kind == "ExternalName" || !has_address {
            return None;
        }
        let is_balanced = kind == "LoadBalancer";
        let external_policy = TrafficPolicy::read(spec.external_traffic_policy.as_deref());
        let health_check_port = spec.health_check_node_port.and_then(port_number);
        Some(Self {
            uid: service.metadata.uid.clone().unwrap_or_default(),
            created: service.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
            ports: spec.ports.iter().flatten().filter_map(read_port).collect(),
            cluster_ips: parse_all(spec.cluster_ips.as_ref().unwrap_or(&spec.cluster_ip.iter().cloned().collect())),
            external_ips: if external_ips {
                servable(parse_all(spec.external_ips.as_deref().unwrap_or_default()))
            } else {
                vec![]
            },
            balancer_ips: if is_balanced { balancer_ips(service) } else { Vec::new() },
            source_ranges: parse_ranges(spec.load_balancer_source_ranges.as_deref().unwrap_or_default()),
            external_policy,
            internal_policy: TrafficPolicy::read(spec.internal_traffic_policy.as_deref()),
            affinity: affinity(spec),
            health_check_port: health_check_port.filter(|_| is_balanced && external_policy == TrafficPolicy::Local),
        })
    }

    /// Its ClusterIP of a family. Without one it has no frontend of that family.
    pub fn cluster_ip(&self, family: Family) -> Option<IpAddr> {
        self.cluster_ips.iter().copied().find(|ip| family.has(*ip))
    }

    /// Ranges of a family that guard the load balancers' addresses, or `None` if every source may use them.
    pub fn guard(&self, family: Family) -> Option<Vec<IpNet>> {
        let mut ranges: Vec<_> = self.source_ranges.iter().filter(|range| family.has(range.addr())).copied().collect();
        if ranges.is_empty() || ranges.iter().any(|range| range.prefix_len() == 0) {
            return None;
        }
        // nft refuses ranges that overlap.
        ranges = IpNet::aggregate(&ranges);
        ranges.sort();
        Some(ranges)
    }
}

/// Namespace and name of an object in a namespace.
pub fn key(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Option<ServiceKey> {
    Some(ServiceKey::new(metadata.namespace.clone()?, metadata.name.clone()?))
}

/// Port numbers of the API are wider than ports; 0 is none.
pub fn port_number(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|port| *port != 0)
}

fn read_port(port: &v1::ServicePort) -> Option<Port> {
    Some(Port {
        name: port.name.clone().unwrap_or_default(),
        protocol: Protocol::parse(port.protocol.as_deref().unwrap_or("TCP"))?,
        port: port_number(port.port)?,
        node_port: port.node_port.and_then(port_number),
    })
}

fn affinity(spec: &v1::ServiceSpec) -> Option<u32> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let seconds = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
    Some(seconds.and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(DEFAULT_AFFINITY_SECONDS))
}

fn balancer_ips(service: &v1::Service) -> Vec<IpAddr> {
    let ingress = service.status.as_ref().and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
    let by_packet = ingress.into_iter().flatten().filter(|entry| entry.ip_mode.as_deref() != Some("Proxy"));
    servable(by_packet.filter_map(|entry| entry.ip.as_ref()?.parse().ok()).collect())
}

/// Without addresses that no packet from elsewhere is sent to: a rule for one would take over what the node says to
/// itself (P26), or to its whole neighbourhood.
fn servable(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let is_odd = |ip: &IpAddr| {
        let ip = ip.to_canonical();
        ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST)
    };
    addresses.into_iter().filter(|ip| !is_odd(ip)).collect()
}

fn parse_all(addresses: &[String]) -> Vec<IpAddr> {
    addresses.iter().filter_map(|address| address.trim().parse().ok()).collect()
}

fn parse_ranges(ranges: &[String]) -> Vec<IpNet> {
    ranges.iter().filter_map(|range| range.trim().parse::<IpNet>().ok()).map(|range| range.trunc()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    fn alone() -> Mode {
        Mode::Replace("weir".to_owned())
    }

    use super::*;

    fn read(labels: Value, spec: Value, mode: &Mode) -> Option<Service> {
        let object = json!({"metadata": {"namespace": "n", "name": "s", "labels": labels}, "spec": spec});
        Service::read(&serde_json::from_value(object).unwrap(), mode, true)
    }

    fn port() -> Value {
        json!([{"name": "web", "port": 80, "protocol": "TCP", "nodePort": 30080}])
    }

    #[test]
    fn p1_without_an_address_there_are_no_frontends() {
        for spec in [
            json!({"ports": port(), "externalIPs": ["203.0.113.1"]}),
            json!({"clusterIP": "None", "ports": port(), "externalIPs": ["203.0.113.1"]}),
            json!({"clusterIP": "", "ports": port()}),
            json!({"clusterIP": "10.96.0.1", "type": "ExternalName", "ports": port()}),
        ] {
            assert_eq!(read(json!({}), spec.clone(), &alone()), None, "{spec}");
        }
    }

    #[test]
    fn p2_the_label_decides_whose_a_service_is() {
        let beside = Mode::Beside("weir".to_owned());
        let cases = [
            (json!({}), true, false),
            (json!({PROXY_NAME_LABEL: ""}), false, false),
            (json!({PROXY_NAME_LABEL: "other"}), false, false),
            (json!({PROXY_NAME_LABEL: "weir"}), true, true),
        ];
        for (labels, replace, with_kube_proxy) in cases {
            let spec = json!({"clusterIP": "10.96.0.1", "ports": port()});
            assert_eq!(read(labels.clone(), spec.clone(), &alone()).is_some(), replace, "{labels}");
            assert_eq!(read(labels.clone(), spec, &beside).is_some(), with_kube_proxy, "{labels}");
        }
    }

    #[test]
    fn p30_only_balancers_that_hand_packets_over_are_frontends() {
        let object = json!({
            "metadata": {"namespace": "n", "name": "s"},
            "spec": {"clusterIP": "10.96.0.1", "type": "LoadBalancer", "ports": port()},
            "status": {"loadBalancer": {"ingress": [
                {"ip": "203.0.113.1"}, {"ip": "203.0.113.2", "ipMode": "VIP"}, {"ip": "203.0.113.3", "ipMode": "Proxy"},
                {"hostname": "x.elb.amazonaws.com"}, {"ip": "2001:db8::1"},
            ]}},
        });
        let service = Service::read(&serde_json::from_value(object).unwrap(), &alone(), true).unwrap();
        let ips: Vec<_> = service.balancer_ips.iter().map(ToString::to_string).collect();
        assert_eq!(ips, ["203.0.113.1", "203.0.113.2", "2001:db8::1"]);
    }

    #[test]
    fn p26_what_a_node_says_to_itself_is_nobodys_frontend() {
        let odd = ["127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "::1", "::", "ff02::1", "::ffff:127.0.0.1"];
        let ingress: Vec<_> = odd.iter().map(|ip| json!({"ip": ip})).collect();
        let object = json!({
            "metadata": {"namespace": "n", "name": "s"},
            "spec": {"clusterIP": "10.96.0.1", "type": "LoadBalancer", "ports": port(), "externalIPs": odd},
            "status": {"loadBalancer": {"ingress": ingress}},
        });
        let service = Service::read(&serde_json::from_value(object).unwrap(), &alone(), true).unwrap();
        assert_eq!((service.external_ips, service.balancer_ips), (vec![], vec![]));
    }

    #[test]
    fn p35_ranges_of_a_family() {
        let guard = |ranges: Value| {
            let spec = json!({
                "clusterIP": "10.96.0.1", "type": "LoadBalancer", "ports": port(), "loadBalancerSourceRanges": ranges,
            });
            let service = read(json!({}), spec, &alone()).unwrap();
            let text = |family| {
                let ranges = service.guard(family)?;
                Some(ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
            };
            (text(Family::Ipv4), text(Family::Ipv6))
        };
        assert_eq!(guard(json!([])), (None, None));
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(guard(json!([" 10.1.2.3/16 ", "10.1.4.0/24", "fd00::/8"])), (some("10.1.0.0/16"), some("fd00::/8")));
        assert_eq!(guard(json!(["0.0.0.0/0", "10.0.0.0/8"])), (None, None));
    }

    #[test]
    fn p38_affinity_has_a_default_timeout() {
        let affinity = |spec: Value| {
            let mut whole = json!({"clusterIP": "10.96.0.1", "ports": port()});
            whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
            read(json!({}), whole, &alone()).unwrap().affinity
        };
        assert_eq!(affinity(json!({})), None);
        assert_eq!(affinity(json!({"sessionAffinity": "None"})), None);
        assert_eq!(affinity(json!({"sessionAffinity": "ClientIP"})), Some(10_800));
        let config = json!({"clientIP": {"timeoutSeconds": 5}});
        assert_eq!(affinity(json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config})), Some(5));
    }
}
