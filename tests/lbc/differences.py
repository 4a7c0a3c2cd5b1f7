"""Where weir is meant to differ from the AWS Load Balancer Controller, and why.

docs/from-aws-load-balancer-controller.md tells users about each under the same name; a test holds the two together.
"""

from __future__ import annotations

from lbc.comparison import ABSENT, ANY, Difference

#: What says whom a health check asks. Who gives any of these means a server of their own.
WHOM = ("healthcheck-protocol", "healthcheck-port", "healthcheck-path")
#: Services with TLS by one certificate. Where there are more, clients are to be offered all of them.
ONE_CERTIFICATE = (
    "tls",
    "tls-policy",
    "tls-on-some-ports",
    "tls-beside-udp",
    "tls-leaves-a-port*",
    "tls-to-the-pods",
    "tls-ends-at-the-balancer",
    "alpn*",
    "backend-protocol-http",
)
TARGET_GROUP = "target group of * / "
OF_80 = "target group of 80 / attributes"


def differs(
    name: str,
    reason: str,
    *facts: tuple[str, str, str],
    services: tuple[str, ...] = (ANY,),
    unless: tuple[str, ...] = (),
) -> tuple[Difference, ...]:
    """A difference that shows in several facts: (path, LBC's value, weir's value)."""
    return tuple(Difference(name, reason, path, lbc, weir, services, unless) for path, lbc, weir in facts)


def refused(name: str, reason: str, *services: str) -> tuple[Difference, ...]:
    """Services that LBC serves and weir refuses."""
    return differs(name, reason, ("served", "yes", "no"), services=services)


def unset(section: str, fact: str, lbc: str, weir: str) -> tuple[Difference, ...]:
    """What a Service set once and no longer does: LBC has the old value, weir AWS's default."""
    reason = "what a Service no longer sets has AWS's default again; LBC leaves the old value"
    return differs("unset-is-default", reason, (f"{section} / {fact}", lbc, weir), services=("* (changed)",))


OWNERSHIP = (
    *differs(
        "ownership-tags",
        "each marks what it owns with tags of its own",
        ("* / tags / elbv2.k8s.aws/*", ANY, ABSENT),
        ("* / tags / service.k8s.aws/*", ANY, ABSENT),
        ("* / tags / weir.dev/*", ABSENT, ANY),
    ),
    *differs(
        "finalizer",
        "each holds a Service by a finalizer of its own",
        ("finalizers", '["service.k8s.aws/resources"]', '["weir.dev/load-balancer"]'),
    ),
    *differs(
        "descriptions",
        "each describes its security groups and rules in words of its own",
        ("* group / Description", "[[]k8s] *", "*oad balancer*"),
        ("own group / inbound / *", "", "weir.dev/cluster=demo: source ranges"),
    ),
)

DEFAULTS = (
    *differs(
        "default-scheme",
        "a Service is made to be reached from outside unless it says otherwise; --default-scheme=internal",
        ("load balancer / Scheme", "internal", "internet-facing"),
        ("load balancer / attributes / ipv6.deny_all_igw_traffic", "true", "false"),
        unless=("scheme", "internal"),
    ),
    *differs(
        "default-tls-policy",
        "TLS 1.0 and 1.1 are not offered unless a Service asks for them",
        ("listener * / SslPolicy", "ELBSecurityPolicy-2016-08", "ELBSecurityPolicy-TLS13-1-2-2021-06"),
        unless=("ssl-negotiation-policy",),
    ),
    *differs(
        "default-health-check",
        "under policy Cluster too, checks ask the node, so that one that drains is left before it ends",
        (TARGET_GROUP + "HealthCheckProtocol", "TCP", "HTTP"),
        (TARGET_GROUP + "HealthCheckPort", "traffic-port", "10256"),
        (TARGET_GROUP + "HealthCheckPath", ABSENT, "/healthz"),
        (TARGET_GROUP + "Matcher", ABSENT, "200-399"),
        unless=WHOM,
    ),
    *differs(
        "default-health-thresholds",
        "a dead node is left after two failed checks, not three",
        (TARGET_GROUP + "HealthyThresholdCount", "3", "2"),
        unless=("healthcheck-healthy-threshold",),
    ),
    *differs(
        "default-health-thresholds",
        "a dead node is left after two failed checks, not three",
        (TARGET_GROUP + "UnhealthyThresholdCount", "3", "2"),
        unless=("healthcheck-unhealthy-threshold",),
    ),
    *differs(
        "default-health-timeout",
        "the time-out is AWS's own for the protocol of the check: 6 s for HTTP, 10 s for others",
        (TARGET_GROUP + "HealthCheckTimeoutSeconds", "10", "6"),
        (TARGET_GROUP + "HealthCheckTimeoutSeconds", "6", "10"),
        unless=("healthcheck-timeout",),
    ),
)

NODES = (
    *differs(
        "membership",
        "nodes are targets because their Auto Scaling group has the target group as a traffic source",
        (TARGET_GROUP + "traffic sources", "[]", '["workers"]'),
    ),
    *differs(
        "node-rules",
        "load balancers are admitted to the NodePort range once, so that Services add no rule to the nodes",
        ("the nodes' group / inbound / *", "elbv2.k8s.aws/targetGroupBinding=shared", ABSENT),
        ("the nodes' group / inbound / *", ABSENT, "weir.dev/cluster=demo: load balancers to nodes"),
    ),
    *differs(
        "node-port",
        "a target group's port is the NodePort; LBC leaves the old one and registers targets with another",
        (TARGET_GROUP + "Port", "30???", "30???"),
        services=("node-port-changes (changed)",),
    ),
)

MEANING = (
    *unset("load balancer / attributes", "dns_record.client_routing_policy", "availability_zone_affinity", "any_*"),
    *unset("load balancer / attributes", "zonal_shift.config.enabled", "true", "false"),
    *unset("listener 443", "AlpnPolicy", '["HTTP2Preferred"]', ABSENT),
    *unset("listener 80 / attributes", "tcp.idle_timeout.seconds", "600", "350"),
    *unset(OF_80, "deregistration_delay.connection_termination.enabled", "true", "false"),
    *unset(OF_80, "load_balancing.cross_zone.enabled", "true", "use_load_balancer_configuration"),
    *unset(OF_80, "preserve_client_ip.enabled", "false", "true"),
    *unset(OF_80, "stickiness.enabled", "true", "false"),
    *unset(OF_80, "target_group_health.dns_failover.minimum_healthy_targets.count", "2", "1"),
    *unset(OF_80, "target_health_state.unhealthy.connection_termination.enabled", "false", "true"),
    *unset(OF_80, "target_health_state.unhealthy.draining_interval_seconds", "300", "0"),
    *differs(
        "access-logs-off",
        "access-log-enabled: false turns access logs off; LBC never says so to AWS",
        ("load balancer / attributes / access_logs.s3.enabled", "true", "false"),
        ("load balancer / attributes / access_logs.s3.bucket", "logs", ""),
        services=("access-logs-end (changed)",),
    ),
    *differs(
        "merged-protocols",
        "TCP and UDP on one port become one TCP_UDP listener unasked; LBC serves one of them, without a word",
        ("listener 53 / Protocol", "TCP", "TCP_UDP"),
        ("listener 53 / attributes / tcp.idle_timeout.seconds", "350", ABSENT),
        ("target group of 53 / Protocol", "TCP", "TCP_UDP"),
        ("target group of 53 / attributes / *.connection_termination.enabled", ANY, ANY),
        services=("unmerged-protocols",),
        unless=("enable-tcp-udp-listener",),
    ),
    *differs(
        "first-family",
        "targets are of the first of spec.ipFamilies; LBC makes them IPv6 if it is anywhere in the list",
        (TARGET_GROUP + "IpAddressType", "ipv6", "ipv4"),
        services=("both-families",),
    ),
    *differs(
        "session-affinity",
        "spec.sessionAffinity: ClientIP keeps a client on its node by stickiness; LBC does not look at it",
        (TARGET_GROUP + "attributes / stickiness.enabled", "false", "true"),
        services=("client-affinity",),
    ),
    *differs(
        "covered-ranges",
        "a source range that another one covers needs no rule",
        ("own group / inbound / tcp 80 10.1.0.0/16", "", ABSENT),
        services=("ranges-that-overlap",),
    ),
    *differs(
        "default-certificate",
        "a single certificate is the default one; LBC adds it to the list of more certificates, too",
        ("listener * / more certificates / certificate a.example.com", "yes", ABSENT),
        services=ONE_CERTIFICATE,
    ),
    *differs(
        "path-alone",
        "a health check path without a protocol asks for HTTP; LBC drops it and checks TCP",
        (TARGET_GROUP + "HealthCheckProtocol", "TCP", "HTTP"),
        (TARGET_GROUP + "HealthCheckPath", ABSENT, "/alive"),
        (TARGET_GROUP + "Matcher", ABSENT, "200-399"),
        services=("health-path-alone",),
    ),
    *differs(
        "all-ports-by-star",
        "ssl-ports: * means all TCP ports, as for AWS's cloud provider",
        ("served", "no", "yes"),
        services=("tls-on-all-by-star",),
    ),
)

REFUSALS = (
    *refused("ip-targets", "targets are nodes", "ip-targets"),
    *refused("multi-cluster", "an Auto Scaling group registers its nodes whoever else registers any", "multi-cluster"),
    *refused("weighted-actions", "each port has one target group", "weighted-action"),
    *refused("no-security-groups", "a load balancer made without any can never get one", "no-security-groups"),
    *refused(
        "contradictions",
        "two annotations that say different things are a mistake",
        "two-cross-zones",
        "two-schemes",
        "two-proxy-protocols",
    ),
    *refused(
        "without-effect",
        "an annotation that could have no effect as written is a mistake",
        "attribute-of-a-missing-port",
        "idle-timeout-of-a-missing-port",
        "tls-without-certificate",
        "backend-protocol-misspelt",
        "logs-without-bucket",
    ),
    *differs(
        "half-built",
        "of what is refused nothing is made; LBC begins, and AWS refuses the rest",
        ("half-built", ANY, "[]"),
    ),
)

DIFFERENCES: tuple[Difference, ...] = (*OWNERSHIP, *DEFAULTS, *NODES, *MEANING, *REFUSALS)
