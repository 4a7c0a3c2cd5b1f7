use k8s_openapi::api::core::v1::{ServicePort, ServiceSpec as KubernetesSpec};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::model::annotation;

fn service(spec: serde_json::Value, annotations: &[(&str, &str)]) -> Service {
    let annotations: BTreeMap<_, _> = annotations.iter().copied().collect();
    serde_json::from_value(json!({
        "metadata": {"namespace": "shop", "name": "order", "uid": "u-1", "annotations": annotations},
        "spec": spec,
    }))
    .unwrap()
}

fn one_port() -> serde_json::Value {
    json!({"type": "LoadBalancer", "loadBalancerClass": "weir.dev/nlb",
           "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}]})
}

fn sentence(spec: serde_json::Value, annotations: &[(&str, &str)]) -> String {
    let problems = parse(&service(spec, annotations)).expect_err("refused");
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_bare_expose() {
    let spec = parse(&service(one_port(), &[])).unwrap();
    assert_eq!(spec.ports, BTreeMap::from([(80, Port::new(80, Protocol::Tcp, 30080))]));
    assert_eq!(spec.source_ranges, BTreeSet::from(["0.0.0.0/0".parse().unwrap()]));
    assert_eq!((spec.scheme, spec.name, spec.local_health_port), (None, None, None));
}

#[test]
fn claims_by_class_alone() {
    let ours = service(one_port(), &[]);
    assert!(is_claimed(&ours, "weir.dev/nlb", false));
    assert!(!is_claimed(&ours, "service.k8s.aws/nlb", true));
    let classless =
        service(json!({"type": "LoadBalancer"}), &[("service.beta.kubernetes.io/aws-load-balancer-type", "nlb")]);
    assert!(!is_claimed(&classless, "weir.dev/nlb", false));
    assert!(is_claimed(&classless, "weir.dev/nlb", true));
    assert!(!is_claimed(
        &service(json!({"type": "NodePort", "loadBalancerClass": "weir.dev/nlb"}), &[]),
        "weir.dev/nlb",
        true
    ));
}

#[test]
fn scheme() {
    assert_eq!(
        sentence(one_port(), &[(annotation::SCHEME, "public")]),
        "service.beta.kubernetes.io/aws-load-balancer-scheme: \"public\" is an unknown scheme; expected internal or internet-facing"
    );
    assert_eq!(
        parse(&service(one_port(), &[(annotation::SCHEME, " internal ")])).unwrap().scheme,
        Some(Scheme::Internal)
    );
}

#[test]
fn the_older_spelling_of_the_scheme() {
    let scheme = |annotations: &[_]| parse(&service(one_port(), annotations)).unwrap().scheme;
    assert_eq!(scheme(&[(annotation::INTERNAL, "True")]), Some(Scheme::Internal));
    assert_eq!(scheme(&[(annotation::INTERNAL, "0")]), Some(Scheme::InternetFacing));
    let agreeing = [(annotation::INTERNAL, "true"), (annotation::SCHEME, "internal")];
    assert_eq!(scheme(&agreeing), Some(Scheme::Internal));
    assert_eq!(
        sentence(one_port(), &[(annotation::INTERNAL, "yes")]),
        "service.beta.kubernetes.io/aws-load-balancer-internal: \"yes\" is no truth value; expected true or false"
    );
    assert_eq!(
        sentence(one_port(), &[(annotation::INTERNAL, "false"), (annotation::SCHEME, "internal")]),
        "service.beta.kubernetes.io/aws-load-balancer-internal: \"false\" contradicts the scheme internal; expected \
         one of the two, as in service.beta.kubernetes.io/aws-load-balancer-scheme"
    );
}

/// Two TCP ports, one UDP port.
fn three_ports() -> serde_json::Value {
    json!({"type": "LoadBalancer", "ports": [
        {"name": "web", "port": 80, "nodePort": 30080, "protocol": "TCP"},
        {"name": "tls", "port": 443, "nodePort": 30443, "protocol": "TCP"},
        {"name": "dns", "port": 53, "nodePort": 30053, "protocol": "UDP"},
    ]})
}

fn parsed(annotations: &[(&str, &str)]) -> ServiceSpec {
    parse(&service(three_ports(), annotations)).unwrap()
}

const CERT: &str = "arn:aws:acm:us-east-1:111122223333:certificate/a";
const OTHER: &str = "arn:aws-cn:iam::111122223333:server-certificate/b";

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn sentences_about_listeners_and_target_groups() {
    let listener = format!("{}TCP-81", annotation::LISTENER_ATTRIBUTES);
    let of_udp = format!("{}UDP-53", annotation::LISTENER_ATTRIBUTES);
    let tcp = format!("{}TCP-80", annotation::LISTENER_ATTRIBUTES);
    let group = format!("{}8080", annotation::TARGET_GROUP_ATTRIBUTES_OF);
    let action = format!("{}TCP-80", annotation::ACTIONS);
    let policies = "None, HTTP1Only, HTTP2Only, HTTP2Optional or HTTP2Preferred";
    let cert_rule = "ARNs of ACM or IAM server certificates, each once, separated by commas";
    let (cert, cert_twice) = (format!("{CERT},arn:aws:s3:::x"), format!("{CERT},{CERT}"));
    let cases: &[(&str, &str, String)] = &[
        (annotation::SSL_CERT, &cert, format!("has \"arn:aws:s3:::x\", which is no certificate's ARN; expected {cert_rule}")),
        (annotation::SSL_CERT, &cert_twice, format!("has {CERT:?} twice; expected {cert_rule}")),
        (annotation::SSL_CERT, ",", format!("names no certificate; expected {cert_rule}")),
        (
            annotation::SSL_PORTS,
            "443",
            format!("is given without {}; expected a certificate too", annotation::SSL_CERT),
        ),
        (
            annotation::SSL_POLICY,
            "TLS 1.2",
            "is no security policy; expected the name of a security policy, such as ELBSecurityPolicy-TLS13-1-2-2021-06"
                .into(),
        ),
        (annotation::ALPN_POLICY, "h2", format!("is unknown; expected {policies}")),
        (annotation::BACKEND_PROTOCOL, "grpc", "is an unknown protocol; expected tcp or ssl".into()),
        (
            &listener,
            "tcp.idle_timeout.seconds=60",
            "is for \"TCP-81\", which is no listener of the Service; expected a key that ends in protocol and port, such as \
             TCP-80"
                .into(),
        ),
        (
            &of_udp,
            "tcp.idle_timeout.seconds=60",
            "is for a UDP listener, which has no attributes; expected a TCP listener".into(),
        ),
        (
            &tcp,
            "tcp.idle_timeout.seconds=59",
            "has \"59\" for tcp.idle_timeout.seconds; expected a number from 60 to 6000".into(),
        ),
        (
            annotation::QUIC_PORTS,
            "443",
            "asks for QUIC, which is not supported by this controller; expected no such annotation".into(),
        ),
        (
            &action,
            "{}",
            "asks for an action, which is not supported by this controller; expected no such annotation; each port \
             forwards to its own targets"
                .into(),
        ),
        (annotation::TARGET_TYPE, "ip", "is not supported by this controller; expected instance".into()),
        (
            annotation::MULTI_CLUSTER,
            "true",
            "is not supported by this controller, which attaches target groups to Auto Scaling groups; expected false"
                .into(),
        ),
        (
            annotation::TARGET_GROUP_ATTRIBUTES,
            "preserve_client_ip.enabled=false",
            "turns off preserve_client_ip.enabled, which cannot be disabled for UDP; expected true".into(),
        ),
        (
            annotation::TARGET_GROUP_ATTRIBUTES,
            "target_health_state.unhealthy.draining_interval_seconds=10",
            "has target_health_state.unhealthy.draining_interval_seconds without \
             target_health_state.unhealthy.connection_termination.enabled=false; expected both, or neither"
                .into(),
        ),
        (
            &group,
            "stickiness.enabled=true",
            "names \"8080\", which is no port of the Service; expected a key that ends in the number of a port".into(),
        ),
        (annotation::PROXY_PROTOCOL, "on", "is unknown; expected *".into()),
        (
            annotation::PROXY_PROTOCOL_PORTS,
            "80, 81",
            "names \"81\", which is no port of the Service; expected numbers of ports of the Service".into(),
        ),
        (
            annotation::HEALTH_PROTOCOL,
            "udp",
            "is an unsupported health check protocol; expected tcp, http or https".into(),
        ),
        (
            annotation::HEALTH_PORT,
            "admin",
            "is no port; expected traffic-port, 1 to 65535, or the name of a port of the Service".into(),
        ),
        (
            annotation::HEALTH_PORT,
            "65536",
            "is out of range; expected traffic-port, 1 to 65535, or the name of a port of the Service".into(),
        ),
        (
            annotation::HEALTH_PORT,
            "traffic-port",
            "cannot check port 53, since UDP answers no check; expected a number, or the name of a TCP port".into(),
        ),
        (annotation::HEALTH_PORT, "dns", "is a UDP port, which answers no check; expected a TCP port".into()),
        (annotation::HEALTH_PATH, "ready", "does not begin with \"/\"; expected a path such as /healthz".into()),
        (
            annotation::HEALTH_CODES,
            "200-199",
            "has a part that is no HTTP status code; expected codes or ranges of codes from 200 to 599, as in 200,204 or \
             200-399"
                .into(),
        ),
        (annotation::HEALTH_INTERVAL, "4", "is out of range; expected 5 to 300".into()),
        (annotation::HEALTH_INTERVAL, "soon", "is no whole number; expected 5 to 300".into()),
        (annotation::HEALTH_TIMEOUT, "11", "is longer than the interval of 10 seconds; expected at most the interval".into()),
        (annotation::HEALTHY_THRESHOLD, "1", "is out of range; expected 2 to 10".into()),
        (annotation::UNHEALTHY_THRESHOLD, "11", "is out of range; expected 2 to 10".into()),
    ];
    for (key, value, rest) in cases {
        assert_eq!(sentence(three_ports(), &[(key, value)]), format!("{key}: {value:?} {rest}"));
    }
}

#[test]
fn contradictions() {
    for (annotations, rest) in [
        (
            [(annotation::SSL_CERT, CERT), (annotation::SSL_PORTS, "web,dns")],
            "names \"dns\", whose protocol is UDP; expected TCP ports",
        ),
        (
            [(annotation::SSL_CERT, CERT), (annotation::SSL_PORTS, "admin")],
            "names \"admin\", which is no port of the Service; expected *, or some of dns, tls, web, 53, 80, 443",
        ),
        ([(annotation::PROXY_PROTOCOL, "*"), (annotation::PROXY_PROTOCOL_PORTS, "80")], "is given together with "),
        (
            [(annotation::ATTRIBUTES, "load_balancing.cross_zone.enabled=true"), (annotation::CROSS_ZONE, "false")],
            "contradicts load_balancing.cross_zone.enabled=true; expected one of the two, as in ",
        ),
    ] {
        let sentence = sentence(three_ports(), &annotations);
        assert!(sentence.contains(rest), "{sentence}");
    }
}

#[test]
fn sentences_about_attributes_of_the_load_balancer() {
    for (key, value, rest) in [
        (annotation::ATTRIBUTES, "idle_timeout.timeout_seconds=60", "which is no attribute of a Network Load Balancer"),
        (annotation::ATTRIBUTES, "deletion_protection.enabled=yes", "expected true or false"),
        (
            annotation::ATTRIBUTES,
            "secondary_ips.auto_assigned.per_subnet=8",
            "has \"8\" for secondary_ips.auto_assigned.per_subnet; expected a number from 0 to 7",
        ),
        (annotation::CROSS_ZONE, "on", "is no truth value; expected true or false"),
        (annotation::ACCESS_LOG, "true", "turns access logs on without a bucket; expected a bucket, as in "),
    ] {
        let sentence = sentence(three_ports(), &[(key, value)]);
        assert!(sentence.starts_with(&format!("{key}: {value:?} ")) && sentence.contains(rest), "{sentence}");
    }
}

#[test]
fn tls() {
    let both = format!("{CERT}, {OTHER}");
    let spec = parsed(&[
        (annotation::SSL_CERT, &both),
        (annotation::SSL_PORTS, "tls"),
        (annotation::ALPN_POLICY, "HTTP2Optional"),
        (annotation::BACKEND_PROTOCOL, "ssl"),
    ]);
    let tls = Tls {
        certificates: vec![CERT.into(), OTHER.into()],
        policy: "ELBSecurityPolicy-TLS13-1-2-2021-06".into(),
        alpn: Some("HTTP2Optional".into()),
    };
    let protocols = |spec: &ServiceSpec| {
        spec.ports.values().map(|port| (port.port, port.protocol, port.target_protocol)).collect::<Vec<_>>()
    };
    let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
    assert_eq!(protocols(&spec), [(53, udp, udp), (80, tcp, tcp), (443, Protocol::Tls, Protocol::Tls)]);
    assert_eq!(spec.ports[&443].tls, Some(tls));
    let all = parsed(&[(annotation::SSL_CERT, CERT), (annotation::SSL_PORTS, "*"), (annotation::ALPN_POLICY, "None")]);
    assert_eq!(protocols(&all), [(53, udp, udp), (80, Protocol::Tls, tcp), (443, Protocol::Tls, tcp)]);
    assert_eq!(all.ports[&80].tls.as_ref().unwrap().alpn, None);
    let none = parsed(&[(annotation::BACKEND_PROTOCOL, "https"), (annotation::ALPN_POLICY, "HTTP1Only")]);
    assert_eq!(none.warnings.len(), 2, "{:?}", none.warnings);
}

#[test]
fn attributes_of_target_groups_go_from_the_general_to_the_particular() {
    let own = format!("{}80", annotation::TARGET_GROUP_ATTRIBUTES_OF);
    let spec = parsed(&[
        (annotation::TARGET_GROUP_ATTRIBUTES, "deregistration_delay.timeout_seconds=30,stickiness.enabled=true"),
        (&own, "deregistration_delay.timeout_seconds=10"),
        (annotation::PROXY_PROTOCOL_PORTS, "443"),
    ]);
    let value = |port: u16, key: &str| spec.ports[&port].attributes.get(key).cloned().unwrap_or_default();
    let delays = [53, 80, 443].map(|port| value(port, "deregistration_delay.timeout_seconds"));
    assert_eq!(delays, ["30", "10", "30"]);
    assert_eq!([53, 80, 443].map(|port| value(port, "proxy_protocol_v2.enabled")), ["false", "false", "true"]);
    assert_eq!(value(80, "stickiness.enabled"), "true");
}

#[test]
fn r45_a_check_of_a_server_that_expects_the_proxy_protocol_is_warned_of() {
    let warnings = |annotations: &[(&str, &str)]| parse(&service(one_port(), annotations)).unwrap().warnings;
    let proxied = (annotation::PROXY_PROTOCOL, "*");
    assert_eq!(warnings(&[proxied]), Vec::<String>::new());
    assert_eq!(warnings(&[proxied, (annotation::HEALTH_PORT, "8081")]), Vec::<String>::new());
    assert_eq!(warnings(&[proxied, (annotation::HEALTH_PROTOCOL, "tcp")]), Vec::<String>::new());
    assert_eq!(warnings(&[proxied, (annotation::HEALTH_PORT, "traffic-port")]), Vec::<String>::new(), "by connecting");
    for key in [(annotation::HEALTH_PROTOCOL, "http"), (annotation::HEALTH_PATH, "/ready")] {
        let warnings = warnings(&[proxied, key]);
        assert!(warnings.len() == 1 && warnings[0].contains("expects the PROXY protocol"), "{warnings:?}");
    }
}

#[test]
fn affinity_keeps_the_node_too() {
    let mut kubernetes = three_ports();
    kubernetes["sessionAffinity"] = "ClientIP".into();
    let spec = parse(&service(kubernetes.clone(), &[(annotation::SSL_CERT, CERT)])).unwrap();
    let sticky = |port: &Port| port.attributes.get("stickiness.enabled").map(String::as_str) == Some("true");
    assert_eq!(spec.ports.values().map(sticky).collect::<Vec<_>>(), [true, false, false], "not where TLS ends");
    assert_eq!(spec.warnings.len(), 2, "{:?}", spec.warnings);
    let spec = parse(&service(kubernetes.clone(), &[])).unwrap();
    assert!(spec.ports.values().all(sticky) && spec.warnings.is_empty());
    let off = [(annotation::TARGET_GROUP_ATTRIBUTES, "stickiness.enabled=false")];
    let spec = parse(&service(kubernetes, &off)).unwrap();
    assert!(spec.ports.values().all(|port| port.attributes["stickiness.enabled"] == "false"));
}

#[test]
fn a_shared_port_can_be_forbidden() {
    let shared = json!({"type": "LoadBalancer", "ports": [
        {"port": 53, "nodePort": 30053, "protocol": "TCP"}, {"port": 53, "nodePort": 30053, "protocol": "UDP"},
    ]});
    assert!(parse(&service(shared.clone(), &[(annotation::TCP_UDP_LISTENER, "1")])).is_ok());
    assert_eq!(
        sentence(shared, &[(annotation::TCP_UDP_LISTENER, "false")]),
        format!(
            "{}: \"false\" forbids what port 53 asks for, TCP and UDP on one port; expected true, or one protocol for \
             each port",
            annotation::TCP_UDP_LISTENER
        )
    );
}

#[test]
fn names() {
    for (name, part) in [
        ("a-name-that-is-longer-than-thirty-two", "is 37 characters long"),
        ("under_score", "has the character '_'"),
        ("-edge", "begins or ends with a hyphen"),
        ("internal-x", "begins with \"internal-\""),
        ("grün", "has the character 'ü'"),
    ] {
        let sentence = sentence(one_port(), &[(annotation::NAME, name)]);
        assert!(sentence.contains(part) && sentence.contains(name), "{sentence}");
    }
    assert_eq!(parse(&service(one_port(), &[(annotation::NAME, "order")])).unwrap().name.as_deref(), Some("order"));
}

#[test]
fn no_list_that_names_nothing_is_taken_for_none() {
    let beside = [
        (annotation::IP_ADDRESS_TYPE, "dualstack"),
        (annotation::SOURCE_NAT, "on"),
        (annotation::SSL_CERT, "arn:aws:acm:us-east-1:1:certificate/a"),
    ];
    for (key, what) in [
        (annotation::SUBNETS, "subnet"),
        (annotation::EIP_ALLOCATIONS, "allocation id"),
        (annotation::PRIVATE_IPV4_ADDRESSES, "IPv4 address"),
        (annotation::IPV6_ADDRESSES, "IPv6 address"),
        (annotation::SOURCE_NAT_PREFIXES, "IPv6 prefix"),
        (annotation::SSL_CERT, "certificate"),
        (annotation::SSL_PORTS, "port"),
        (annotation::PROXY_PROTOCOL_PORTS, "port"),
        (annotation::SOURCE_RANGES, "address range"),
        (annotation::PREFIX_LISTS, "prefix list"),
        (annotation::SECURITY_GROUPS, "security group"),
    ] {
        let beside: Vec<_> = beside.into_iter().filter(|(other, _)| *other != key).chain([(key, " , ")]).collect();
        let sentence = sentence(one_port(), &beside);
        assert!(sentence.starts_with(&format!("{key}: \",\" names no {what}; expected ")), "{sentence}");
    }
}

#[test]
fn subnets() {
    for (list, part) in [
        (",", "names no subnet"),
        ("subnet-xyz", "no subnet id"),
        ("a,b,a", "\"a\" twice"),
        ("subnet-", "no subnet id"),
    ] {
        assert!(sentence(one_port(), &[(annotation::SUBNETS, list)]).contains(part), "{list}");
    }
    assert_eq!(
        parse(&service(one_port(), &[(annotation::SUBNETS, "subnet-0a, public-b")])).unwrap().subnets,
        ["subnet-0a", "public-b"]
    );
}

#[test]
fn tags() {
    for (text, part) in [
        ("aws:x=1", "which AWS reserves"),
        ("weir.dev/cluster=mine", "weir marks what it owns"),
        ("a=b;c", "with a character that AWS does not take"),
        ("a", "without \"=\""),
    ] {
        assert!(sentence(one_port(), &[(annotation::RESOURCE_TAGS, text)]).contains(part), "{text}");
    }
    let many = (0..46).map(|n| format!("k{n}=v")).collect::<Vec<_>>().join(",");
    assert!(sentence(one_port(), &[(annotation::RESOURCE_TAGS, &many)]).contains("has 46 tags"));
}

#[test]
fn source_ranges_are_canonical_and_the_spec_goes_first() {
    let mut spec = one_port();
    spec["loadBalancerSourceRanges"] = json!(["10.1.2.3/8", " 10.9.0.0/16", "192.0.2.0/25", "192.0.2.128/25"]);
    let parsed = parse(&service(spec, &[(annotation::SOURCE_RANGES, "203.0.113.0/24")])).unwrap();
    let texts: Vec<_> = parsed.source_ranges.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["10.0.0.0/8", "192.0.2.0/24"]);
    let parsed = parse(&service(one_port(), &[(annotation::SOURCE_RANGES, "203.0.113.0/24,")])).unwrap();
    assert_eq!(parsed.source_ranges.len(), 1);
    assert!(sentence(one_port(), &[(annotation::SOURCE_RANGES, "::/0")]).contains("not dualstack"));
    assert!(
        sentence(one_port(), &[(annotation::SOURCE_RANGES, "nonsense")]).contains("\"nonsense\" is no address range")
    );
}

#[test]
fn ip_address_types() {
    let address_type = |text| parse(&service(one_port(), &[(annotation::IP_ADDRESS_TYPE, text)])).unwrap().address_type;
    assert_eq!(address_type(" dualstack "), AddressType::Dualstack);
    assert_eq!(address_type("ipv4"), AddressType::Ipv4);
    assert_eq!(address_type(""), AddressType::Ipv4);
    assert_eq!(
        sentence(one_port(), &[(annotation::IP_ADDRESS_TYPE, "ipv6"), (annotation::SOURCE_RANGES, "fd00::/8")]),
        "service.beta.kubernetes.io/aws-load-balancer-ip-address-type: \"ipv6\" is an unknown IP address type; expected \
         ipv4 or dualstack"
    );
}

#[test]
fn dualstack_admits_both_families_and_counts_their_rules_apart() {
    let ranges = |ranges: &[String]| {
        let mut spec = one_port();
        spec["loadBalancerSourceRanges"] = json!(ranges);
        parse(&service(spec, &[(annotation::IP_ADDRESS_TYPE, "dualstack")]))
    };
    assert_eq!(ranges(&[]).unwrap().source_ranges, ["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()].into());
    let one_family = ranges(&["fd00:1::1/32".to_owned()]).unwrap().source_ranges;
    assert_eq!(one_family, ["fd00:1::/32".parse().unwrap()].into());
    let of_both = |count: u8| {
        let v4 = (0..count).map(|n| format!("10.{}.0.0/16", n * 2));
        v4.chain((0..count).map(|n| format!("fd00:{:x}::/32", n * 2))).collect::<Vec<_>>()
    };
    assert!(ranges(&of_both(60)).is_ok());
    assert!(ranges(&of_both(61)).unwrap_err()[0].to_string().contains("needs 61 inbound rules"));
}

/// The one problem with a dualstack Service with these annotations, without its beginning.
fn dualstack_sentence(annotations: &[(&str, &str)]) -> String {
    let dualstack = [(annotation::IP_ADDRESS_TYPE, "dualstack")];
    let text = sentence(one_port(), &[annotations, &dualstack].concat());
    text.trim_start_matches("service.beta.kubernetes.io/aws-load-balancer-").to_owned()
}

#[test]
fn addresses() {
    let spec = parse(&service(
        one_port(),
        &[
            (annotation::IP_ADDRESS_TYPE, "dualstack"),
            (annotation::EIP_ALLOCATIONS, "eipalloc-0a, eipalloc-0b"),
            (annotation::PRIVATE_IPV4_ADDRESSES, "10.0.0.9"),
            (annotation::IPV6_ADDRESSES, "2001:db8::9"),
            (annotation::SOURCE_NAT, "on"),
            (annotation::SOURCE_NAT_PREFIXES, "auto_assigned, 2001:db8::1/80"),
        ],
    ));
    let addresses = spec.unwrap().addresses;
    assert_eq!(addresses.allocations, ["eipalloc-0a", "eipalloc-0b"]);
    assert_eq!(addresses.private_ipv4, ["10.0.0.9".parse::<std::net::Ipv4Addr>().unwrap()]);
    assert_eq!(addresses.ipv6, ["2001:db8::9".parse::<std::net::Ipv6Addr>().unwrap()]);
    assert!(addresses.source_nat);
    let chosen = SourceNatPrefix::Chosen("2001:db8::/80".parse().unwrap());
    assert_eq!(addresses.source_nat_prefixes, [SourceNatPrefix::Auto, chosen]);
}

#[test]
fn addresses_that_are_none() {
    let prefixes = "auto_assigned or an IPv6 prefix such as 2001:db8::/80 for each subnet";
    for (key, value, rest) in [
        (
            annotation::EIP_ALLOCATIONS,
            "eipalloc-1,eip",
            "has \"eip\", which is no allocation id; expected an allocation id for each subnet, each once",
        ),
        (
            annotation::EIP_ALLOCATIONS,
            "eipalloc-1,eipalloc-1",
            "has \"eipalloc-1\" twice; expected an allocation id for each subnet, each once",
        ),
        (
            annotation::EIP_ALLOCATIONS,
            ",",
            "names no allocation id; expected an allocation id for each subnet, each once",
        ),
        (
            annotation::PRIVATE_IPV4_ADDRESSES,
            "10.0.0.9,::1",
            "has \"::1\", which is no IPv4 address; expected an IPv4 address for each subnet, each once",
        ),
        (
            annotation::IPV6_ADDRESSES,
            "10.0.0.9",
            "has \"10.0.0.9\", which is no IPv6 address; expected an IPv6 address for each subnet, each once",
        ),
        (annotation::SOURCE_NAT, "true", "is neither on nor off; expected on or off"),
    ] {
        assert!(dualstack_sentence(&[(key, value)]).ends_with(&format!(": {value:?} {rest}")), "{key} {value}");
    }
    for value in ["2001:db8::/64", "10.0.0.0/80", "on"] {
        let sentence = dualstack_sentence(&[(annotation::SOURCE_NAT, "on"), (annotation::SOURCE_NAT_PREFIXES, value)]);
        let wrong = format!("has {value:?}, which is no IPv6 prefix of length 80; expected {prefixes}");
        assert_eq!(sentence, format!("source-nat-ipv6-prefixes: {value:?} {wrong}"));
    }
}

#[test]
fn ipv6_addresses_and_source_nat_need_dualstack() {
    for (key, value) in [(annotation::IPV6_ADDRESSES, "2001:db8::9"), (annotation::SOURCE_NAT, "on")] {
        assert_eq!(
            sentence(one_port(), &[(key, value)]),
            format!(
                "{key}: {value:?} needs a dualstack load balancer; expected no such annotation, or dualstack in \
                 service.beta.kubernetes.io/aws-load-balancer-ip-address-type"
            )
        );
    }
    assert!(sentence(one_port(), &[(annotation::SOURCE_NAT_PREFIXES, "auto_assigned")]).contains(
        "is given although source NAT by prefix is off; expected no such annotation, or on in \
         service.beta.kubernetes.io/aws-load-balancer-enable-prefix-for-ipv6-source-nat"
    ));
}

#[test]
fn r43_udp_for_both_families_needs_source_nat() {
    let udp = json!({"ports": [{"port": 53, "nodePort": 30053, "protocol": "UDP"}]});
    let dualstack = (annotation::IP_ADDRESS_TYPE, "dualstack");
    assert_eq!(
        sentence(udp.clone(), &[dualstack]),
        "service.beta.kubernetes.io/aws-load-balancer-ip-address-type: \"dualstack\" cannot be had with UDP on port 53 \
         while source NAT by prefix is off; expected ipv4, or on in \
         service.beta.kubernetes.io/aws-load-balancer-enable-prefix-for-ipv6-source-nat"
    );
    assert!(parse(&service(udp.clone(), &[dualstack, (annotation::SOURCE_NAT, "on")])).is_ok());
    assert!(parse(&service(udp, &[])).is_ok());
}

#[test]
fn capacity() {
    let units = |text| parse(&service(one_port(), &[(annotation::CAPACITY, text)])).unwrap().capacity;
    assert_eq!((units(""), units("CapacityUnits=0"), units(" CapacityUnits = 3000 ")), (0, 0, 3000));
    for (value, wrong) in [
        ("Units=3000", "has the key \"Units\""),
        ("CapacityUnits=many", "has \"many\", which is no number"),
        ("CapacityUnits=-1", "has \"-1\", which is no number"),
    ] {
        let key = annotation::CAPACITY;
        let expected = "CapacityUnits=<number>, where 0 reserves nothing";
        assert_eq!(sentence(one_port(), &[(key, value)]), format!("{key}: {value:?} {wrong}; expected {expected}"));
    }
}

#[test]
fn access() {
    let access = |annotations: &[_]| parse(&service(one_port(), annotations)).unwrap().access;
    assert_eq!(access(&[]), AccessSpec::default());
    assert!(access(&[]).carries_backend());
    let own = access(&[(annotation::SECURITY_GROUPS, "sg-0a, web")]);
    assert_eq!(own.groups, ["sg-0a", "web"]);
    assert!(!own.carries_backend(), "whoever brings groups looks after the nodes");
    let managed = (annotation::MANAGE_BACKEND_RULES, "true");
    assert!(access(&[(annotation::SECURITY_GROUPS, "sg-0a"), managed]).carries_backend());
    assert!(!access(&[(annotation::MANAGE_BACKEND_RULES, "false")]).carries_backend());
    assert!(!access(&[(annotation::PRIVATE_LINK_RULES, "off")]).rules_on_private_link);
    assert!(access(&[(annotation::ICMP, "on")]).icmp);
    assert!(!access(&[(annotation::ICMP, "true")]).icmp, "anything but on is off");
    assert_eq!(access(&[(annotation::NO_SECURITY_GROUPS, "false")]), AccessSpec::default());
}

#[test]
fn prefix_lists_take_the_place_of_everyone() {
    let lists = (annotation::PREFIX_LISTS, "pl-2, pl-1,pl-2");
    let spec = parse(&service(one_port(), &[lists])).unwrap();
    assert_eq!(spec.access.prefix_lists, ["pl-2", "pl-1"]);
    assert!(spec.source_ranges.is_empty());
    let both = parse(&service(one_port(), &[lists, (annotation::SOURCE_RANGES, "10.0.0.0/8")])).unwrap();
    assert_eq!(both.source_ranges.len(), 1);
}

#[test]
fn access_that_is_none() {
    let groups = "up to 16 ids of security groups or values of their Name tags, each once";
    let many = (0..17).map(|n| format!("sg-{n:x}")).collect::<Vec<_>>().join(",");
    for (key, value, rest) in [
        (
            annotation::PREFIX_LISTS,
            "pl-x",
            "has \"pl-x\", which is no id of a prefix list; expected ids of prefix lists such as pl-0123abcd"
                .to_owned(),
        ),
        (
            annotation::PREFIX_LISTS,
            ",",
            "names no prefix list; expected ids of prefix lists such as pl-0123abcd".to_owned(),
        ),
        (
            annotation::SECURITY_GROUPS,
            "sg-web",
            format!("has \"sg-web\", which is no id of a security group; expected {groups}"),
        ),
        (annotation::SECURITY_GROUPS, "web,web", format!("has \"web\" twice; expected {groups}")),
        (annotation::SECURITY_GROUPS, &many, format!("has 17 security groups; expected {groups}")),
        (annotation::MANAGE_BACKEND_RULES, "on", "is no truth value; expected true or false".to_owned()),
        (annotation::PRIVATE_LINK_RULES, "true", "is neither on nor off; expected on or off".to_owned()),
        (
            annotation::NO_SECURITY_GROUPS,
            "true",
            "asks for a load balancer without security groups, which could never get any later; expected false"
                .to_owned(),
        ),
    ] {
        assert_eq!(sentence(one_port(), &[(key, value)]), format!("{key}: {value:?} {rest}"));
    }
}

#[test]
fn what_the_owners_groups_make_useless_is_said() {
    let own = (annotation::SECURITY_GROUPS, "sg-0a");
    let mut spec = one_port();
    spec["loadBalancerSourceRanges"] = json!(["10.0.0.0/8"]);
    let warnings = parse(&service(spec, &[own, (annotation::PREFIX_LISTS, "pl-1"), (annotation::ICMP, "yes")]));
    let rules = "is ignored; the rules of the groups in service.beta.kubernetes.io/aws-load-balancer-security-groups are \
                 their owner's";
    assert_eq!(
        warnings.unwrap().warnings,
        [
            format!("{}: \"yes\" is taken as off; expected on or off", annotation::ICMP),
            format!("{}: {rules}", annotation::PREFIX_LISTS),
            format!("{}: {rules}", annotation::ICMP),
            format!("spec.loadBalancerSourceRanges: {rules}"),
        ]
    );
}

#[test]
fn icmp_counts_once_for_each_range() {
    let ranges: Vec<_> = (0..30).map(|n| format!("10.{}.0.0/16", n * 2)).collect();
    let mut spec = one_port();
    spec["loadBalancerSourceRanges"] = json!(ranges);
    assert!(parse(&service(spec.clone(), &[(annotation::ICMP, "on")])).is_ok(), "60 rules");
    spec["ports"].as_array_mut().unwrap().push(json!({"port": 81, "nodePort": 30081}));
    assert!(parse(&service(spec.clone(), &[])).is_ok());
    assert!(sentence(spec.clone(), &[(annotation::ICMP, "on")]).contains("needs 90 inbound rules"));
    let own = [(annotation::ICMP, "on"), (annotation::SECURITY_GROUPS, "sg-0a")];
    assert!(parse(&service(spec, &own)).is_ok(), "groups of the owner's get no rules");
}

#[test]
fn a_port_without_node_port() {
    let spec = json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": [{"port": 80}]});
    assert_eq!(
        sentence(spec, &[]),
        "spec.ports[0].nodePort: \"0\" is no NodePort for port 80; expected a nodePort, or spec.allocateLoadBalancerNodePorts: true"
    );
}

#[test]
fn r41_tcp_and_udp_on_one_port_merge_when_they_share_the_node_port() {
    let ports = |udp| {
        json!({"type": "LoadBalancer", "ports": [
        {"port": 53, "nodePort": 30053, "protocol": "TCP"}, {"port": 53, "nodePort": udp, "protocol": "UDP"}]})
    };
    let merged = parse(&service(ports(30053), &[])).unwrap();
    assert_eq!(merged.ports[&53].protocol, Protocol::TcpUdp);
    assert!(sentence(ports(30054), &[]).contains("differs from nodePort 30053 of the same port 53"));
}

#[test]
fn a_udp_port_answers_no_health_check() {
    let warnings = |port| parsed(&[(annotation::HEALTH_PORT, port)]).warnings;
    assert_eq!(
        warnings("30053"),
        ["service.beta.kubernetes.io/aws-load-balancer-healthcheck-port: \"30053\" is the nodePort of a UDP port; a \
          health check is TCP or HTTP, and gets no answer there"]
    );
    assert_eq!(warnings("30080"), Vec::<String>::new());
}

#[test]
fn ipv6_first_needs_dualstack() {
    let families = |families: &[&str], annotations: &[(&str, &str)]| {
        let mut spec = one_port();
        spec["ipFamilies"] = json!(families);
        parse(&service(spec, annotations))
    };
    let dualstack = [(annotation::IP_ADDRESS_TYPE, "dualstack")];
    assert_eq!(families(&["IPv6", "IPv4"], &dualstack).unwrap().family, Family::Ipv6);
    assert_eq!(families(&["IPv4", "IPv6"], &dualstack).unwrap().family, Family::Ipv4);
    assert_eq!(families(&["IPv4", "IPv6"], &[]).unwrap().family, Family::Ipv4);
    assert_eq!(
        families(&["IPv6"], &[]).unwrap_err()[0].to_string(),
        "spec.ipFamilies: \"IPv6\" begins with IPv6 and the load balancer is not dualstack; expected IPv4 first, or \
         dualstack in service.beta.kubernetes.io/aws-load-balancer-ip-address-type"
    );
}

#[test]
fn node_labels() {
    let labels = |text| parse(&service(one_port(), &[(annotation::TARGET_NODE_LABELS, text)])).unwrap().node_labels;
    let expected = [("example.com/pool", "web"), ("spot", "")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(labels("example.com/pool = web, spot="), expected.into());
    assert_eq!(labels(" "), BTreeMap::new());
    for (text, wrong, expected) in [
        ("pool", "has the part \"pool\" without \"=\"", r"key=value,… with \, for a comma inside a value"),
        ("/x=1", "has the key \"/x\", which is no label's", "labels of nodes, as in key=value,other=value"),
        ("a=b c", "has the value \"b c\", which is no label's", "labels of nodes, as in key=value,other=value"),
    ] {
        let key = annotation::TARGET_NODE_LABELS;
        assert_eq!(sentence(one_port(), &[(key, text)]), format!("{key}: {text:?} {wrong}; expected {expected}"));
        assert_eq!(node_labels_of(&service(one_port(), &[(key, text)])), None);
    }
    // Targets do not wait for the rest to be put right.
    let broken = service(one_port(), &[(annotation::TARGET_NODE_LABELS, "pool=web"), (annotation::SCHEME, "x")]);
    assert_eq!(node_labels_of(&broken).unwrap().len(), 1);
}

#[test]
fn odd_ports() {
    let spec = json!({"ports": [{"port": 1, "nodePort": 30001, "protocol": "SCTP"}, {"port": 0, "nodePort": 30002}]});
    let text = sentence(spec, &[]);
    assert!(text.contains("spec.ports[0].protocol: \"SCTP\"") && text.contains("spec.ports[1].port: \"0\""), "{text}");
    let twice = json!({"ports": [{"port": 1, "nodePort": 30001}, {"port": 1, "nodePort": 30002}]});
    assert!(sentence(twice, &[]).contains("is given twice"));
    let ports =
        |count: u16| (1..=count).map(|port| json!({"port": port, "nodePort": 30000 + port})).collect::<Vec<_>>();
    assert!(parse(&service(json!({"ports": ports(50)}), &[])).is_ok());
    assert_eq!(
        sentence(json!({"ports": ports(51)}), &[]),
        "spec.ports: \"51\" are more ports than a Network Load Balancer has listeners; expected at most 50"
    );
}

#[test]
fn r29_too_many_rules_are_refused_with_the_number() {
    let ports: Vec<_> = (1..=30).map(|n| json!({"port": n, "nodePort": 30000 + n})).collect();
    let ranges: Vec<_> = (0..3).map(|n| format!("10.{}.0.0/16", n * 2)).collect();
    let text = sentence(json!({"ports": ports, "loadBalancerSourceRanges": ranges}), &[]);
    assert!(text.contains("needs 90 inbound rules") && text.contains("at most 60"), "{text}");
}

#[test]
fn policy_local_brings_its_health_port() {
    let mut spec = one_port();
    spec["externalTrafficPolicy"] = json!("Local");
    assert!(sentence(spec.clone(), &[]).contains("spec.healthCheckNodePort"));
    spec["healthCheckNodePort"] = json!(31000);
    assert_eq!(parse(&service(spec, &[])).unwrap().local_health_port, Some(31000));
}

#[test]
fn all_problems_come_at_once_and_sorted() {
    let text = sentence(json!({"ports": [{"port": 80}]}), &[(annotation::SCHEME, "x"), (annotation::NAME, "_")]);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 3);
    assert!(lines.is_sorted(), "{lines:?}");
}

proptest! {
    #[test]
    fn no_service_makes_the_parser_panic(
        ports in prop::collection::vec((any::<i32>(), any::<Option<i32>>(), "[A-Z]{0,4}"), 0..4),
        ranges in prop::collection::vec(".{0,20}", 0..4),
        values in prop::collection::vec((0..annotation::TABLE.len(), "(TCP-)?[0-9]{0,3}", ".{0,40}"), 0..12),
        health in any::<Option<i32>>(),
    ) {
        let mut service = service(json!({}), &[]);
        let keyed = values.into_iter().map(|(row, suffix, value)| {
            let key = annotation::TABLE[row].key;
            (if key.ends_with('.') { format!("{key}{suffix}") } else { key.to_owned() }, value)
        });
        service.metadata.annotations = Some(keyed.collect());
        let port = |(port, node_port, protocol)| ServicePort { port, node_port, protocol: Some(protocol), ..Default::default() };
        service.spec = Some(KubernetesSpec {
            ports: Some(ports.into_iter().map(port).collect()),
            load_balancer_source_ranges: Some(ranges),
            external_traffic_policy: health.map(|_| "Local".into()),
            health_check_node_port: health,
            ..Default::default()
        });
        for problem in parse(&service).err().unwrap_or_default() {
            prop_assert!(!problem.field.is_empty() && !problem.expected.is_empty());
        }
    }
}
