"""Services that use what both controllers know, and what these need of an account. The same for both but for the class.

Values in braces are names of things in the account, see `Furniture`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sandbox.aws import Account
from sandbox.kube import Object

PREFIX = "service.beta.kubernetes.io/"
#: NodePorts of one Service: a block of its own, so that both controllers find the same numbers.
FIRST_NODE_PORT, BLOCK = 30000, 16

HTTP = ("http", 80, "TCP")
HTTPS = ("https", 443, "TCP")
ADMIN = ("admin", 8443, "TCP")
SYSLOG = ("syslog", 514, "UDP")
DNS = (("dns-tcp", 53, "TCP"), ("dns-udp", 53, "UDP"))

Port = tuple[str, int, str]


@dataclass(frozen=True)
class Case:
    """A Service. Annotations are written without their prefix; `then` is what it is changed to when it is served."""

    annotations: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[Port, ...] = (HTTP,)
    spec: Mapping[str, Any] = field(default_factory=dict)
    then: Case | None = None

    def sets(self, key: str) -> bool:
        """Whether the Service has an annotation with this key, or one of the family that ends in a dot."""
        return any(each == key or (key.endswith(".") and each.startswith(key)) for each in self.annotations)

    def manifest(self, name: str, number: int, load_balancer_class: str, known: Mapping[str, str]) -> Object:
        """The object; `number` picks its block of NodePorts."""
        first = FIRST_NODE_PORT + number * BLOCK
        node_ports: dict[int, int] = {}
        ports = []
        for port_name, port, protocol in self.ports:
            node_port = node_ports.setdefault(port, first + len(node_ports))
            each = {"name": port_name, "port": port, "protocol": protocol, "targetPort": 8080, "nodePort": node_port}
            ports.append(each)
        spec = {
            "type": "LoadBalancer",
            "loadBalancerClass": load_balancer_class,
            "selector": {"app": name},
            "ports": ports,
            **self.spec,
        }
        if spec.get("externalTrafficPolicy") == "Local":
            spec["healthCheckNodePort"] = first + BLOCK - 1
        if spec.get("allocateLoadBalancerNodePorts") is False:
            for each in ports:
                del each["nodePort"]
        annotations = {PREFIX + full_key(key): value.format_map(known) for key, value in self.annotations.items()}
        metadata = {"name": name, "annotations": annotations}
        return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def full_key(key: str) -> str:
    return key if key.startswith(("load-balancer-", "actions.")) else f"aws-load-balancer-{key}"


def public(annotations: Mapping[str, str] | None = None, *ports: Port, then: Case | None = None, **spec: Any) -> Case:
    """An internet-facing Service: the default scheme, where the two differ, has a Service of its own."""
    return Case({"scheme": "internet-facing", **(annotations or {})}, ports or (HTTP,), spec, then)


def local(annotations: Mapping[str, str] | None = None, *ports: Port, then: Case | None = None) -> Case:
    return public(annotations, *ports, then=then, externalTrafficPolicy="Local")


EVERY_HEALTH_SETTING = {
    "healthcheck-protocol": "http",
    "healthcheck-port": "8081",
    "healthcheck-path": "/alive",
    "healthcheck-success-codes": "200-204",
    "healthcheck-interval": "15",
    "healthcheck-timeout": "5",
    "healthcheck-healthy-threshold": "4",
    "healthcheck-unhealthy-threshold": "5",
}

#: Both serve these. The calls they cost are counted.
SERVED: dict[str, Case] = {
    "nothing-set": Case(),
    "type-external": public({"type": "external", "nlb-target-type": "instance"}),
    # --- the load balancer
    "internal": Case({"scheme": "internal"}),
    "internal-by-old-key": Case({"internal": "true"}),
    "public-by-old-key": Case({"internal": "false"}),
    "scheme-changes": public(then=Case({"scheme": "internal"})),
    "named": public({"name": "order-of-shop"}),
    "subnets-by-id": public({"subnets": "{subnet_a},{subnet_b}"}, then=public({"subnets": "{subnet_b}"})),
    "subnets-by-name": public({"subnets": "edge-a,{subnet_b}"}),
    "tagged": public(
        {"additional-resource-tags": r"team=web,cost=a\=b"}, then=public({"additional-resource-tags": "team=ops"})
    ),
    "elastic-ips": public(
        {"eip-allocations": "{eip_a},{eip_b},{eip_c}", "subnets": "{subnet_b},{subnet_a},{subnet_c}"}
    ),
    "elastic-ips-of-two-zones": public({"eip-allocations": "{eip_d},{eip_e}", "subnets": "{subnet_a},{subnet_b}"}),
    "private-addresses": Case(
        {"scheme": "internal", "private-ipv4-addresses": "10.0.0.200,10.0.16.200,10.0.32.200"},
    ),
    "dualstack": public({"ip-address-type": "dualstack"}, then=public({"ip-address-type": "ipv4"})),
    "dualstack-later": public(then=public({"ip-address-type": "dualstack"})),
    "ipv6-addresses": public({"ip-address-type": "dualstack", "ipv6-addresses": "{ipv6_a},{ipv6_b},{ipv6_c}"}),
    "ipv6-targets": public({"ip-address-type": "dualstack"}, ipFamilies=["IPv6"], ipFamilyPolicy="SingleStack"),
    "both-families": public(
        {"ip-address-type": "dualstack"}, ipFamilies=["IPv4", "IPv6"], ipFamilyPolicy="RequireDualStack"
    ),
    "udp-over-ipv6": public({"ip-address-type": "dualstack", "enable-prefix-for-ipv6-source-nat": "on"}, SYSLOG),
    "source-nat-prefixes": public(
        {
            "ip-address-type": "dualstack",
            "enable-prefix-for-ipv6-source-nat": "on",
            "source-nat-ipv6-prefixes": "{nat_a},auto_assigned,{nat_c}",
            "subnets": "{subnet_a},{subnet_b},{subnet_c}",
        },
        SYSLOG,
    ),
    "capacity": public({"minimum-load-balancer-capacity": "CapacityUnits=1000"}),
    # --- its attributes
    "attributes": public(
        {
            "attributes": "load_balancing.cross_zone.enabled=true,zonal_shift.config.enabled=true,"
            "dns_record.client_routing_policy=availability_zone_affinity"
        },
        then=public({"attributes": "load_balancing.cross_zone.enabled=true"}),
    ),
    "deletion-protected": public(
        {"attributes": "deletion_protection.enabled=true"},
        then=public({"attributes": "deletion_protection.enabled=false"}),
    ),
    "cross-zone": public(
        {"cross-zone-load-balancing-enabled": "true"}, then=public({"cross-zone-load-balancing-enabled": "false"})
    ),
    "access-logs": public(
        {"access-log-enabled": "true", "access-log-s3-bucket-name": "logs", "access-log-s3-bucket-prefix": "shop"},
    ),
    "access-logs-end": public(
        {"access-log-enabled": "true", "access-log-s3-bucket-name": "logs"},
        then=public({"access-log-enabled": "false"}),
    ),
    # --- listeners
    "udp": public({}, SYSLOG),
    "tcp-and-udp-on-one-port": public({"enable-tcp-udp-listener": "true"}, *DNS),
    "tcp-and-udp-ports": public({}, HTTP, SYSLOG),
    "many-ports": public({}, *((f"p{port}", port, "TCP") for port in range(9000, 9012))),
    "ports-change": public({}, HTTP, HTTPS, then=public({}, ADMIN, HTTPS)),
    "node-port-changes": public({}, HTTP, HTTPS, then=public({}, HTTPS)),
    "tls": public({"ssl-cert": "{certificate_a}"}, HTTPS),
    "tls-policy": public(
        {"ssl-cert": "{certificate_a}", "ssl-negotiation-policy": "ELBSecurityPolicy-TLS13-1-3-2021-06"}, HTTPS
    ),
    "tls-on-some-ports": public({"ssl-cert": "{certificate_a}", "ssl-ports": "https,8443"}, HTTP, HTTPS, ADMIN),
    "tls-beside-udp": public({"ssl-cert": "{certificate_a}"}, HTTPS, SYSLOG),
    "tls-more-certificates": public(
        {"ssl-cert": "{certificate_a},{certificate_b},{certificate_c}"},
        HTTPS,
        then=public({"ssl-cert": "{certificate_b},{certificate_c}"}, HTTPS),
    ),
    "tls-begins": public({}, HTTPS, then=public({"ssl-cert": "{certificate_a},{certificate_b}"}, HTTPS)),
    "tls-ends": public({"ssl-cert": "{certificate_a},{certificate_b}"}, HTTPS, then=public({}, HTTPS)),
    "tls-leaves-a-port": public(
        {"ssl-cert": "{certificate_a}"},
        HTTPS,
        ADMIN,
        then=public({"ssl-cert": "{certificate_a}", "ssl-ports": "8443"}, HTTPS, ADMIN),
    ),
    "tls-to-the-pods": public({"ssl-cert": "{certificate_a}", "backend-protocol": "ssl"}, HTTPS),
    "tls-ends-at-the-balancer": public({"ssl-cert": "{certificate_a}", "backend-protocol": "tcp"}, HTTPS),
    "alpn": public(
        {"ssl-cert": "{certificate_a}", "alpn-policy": "HTTP2Preferred"},
        HTTPS,
        then=public({"ssl-cert": "{certificate_a}"}, HTTPS),
    ),
    "listener-attributes": public({"listener-attributes.TCP-80": "tcp.idle_timeout.seconds=600"}, then=public()),
    # --- target groups
    "target-group-attributes": public(
        {
            "target-group-attributes": "deregistration_delay.timeout_seconds=60,preserve_client_ip.enabled=false,"
            "deregistration_delay.connection_termination.enabled=true,load_balancing.cross_zone.enabled=true,"
            "stickiness.enabled=true,stickiness.type=source_ip,"
            "target_health_state.unhealthy.connection_termination.enabled=false,"
            "target_health_state.unhealthy.draining_interval_seconds=300,"
            "target_group_health.dns_failover.minimum_healthy_targets.count=2"
        },
        then=public({"target-group-attributes": "deregistration_delay.timeout_seconds=60"}),
    ),
    "target-group-attributes-of-a-port": public(
        {
            "target-group-attributes": "deregistration_delay.timeout_seconds=60",
            "target-group-attributes.443": "deregistration_delay.timeout_seconds=90",
        },
        HTTP,
        HTTPS,
    ),
    "proxy-protocol": public({"proxy-protocol": "*"}, HTTP, HTTPS, then=public({}, HTTP, HTTPS)),
    "proxy-protocol-of-a-port": public({"proxy-protocol-per-target-group": "443"}, HTTP, HTTPS),
    "node-labels": public({"target-node-labels": "pool=web"}),
    "client-affinity": public(sessionAffinity="ClientIP"),
    # --- health checks
    "health-all-set": public(EVERY_HEALTH_SETTING, then=public()),
    "health-tcp": public({"healthcheck-protocol": "tcp"}),
    "health-http": public({"healthcheck-protocol": "http"}),
    "health-port-alone": public({"healthcheck-port": "8081"}),
    "health-path-alone": public({"healthcheck-path": "/alive"}),
    "health-https": public({"healthcheck-protocol": "HTTPS", "healthcheck-path": "/alive"}),
    "health-of-a-named-port": public({"healthcheck-port": "admin", "healthcheck-protocol": "tcp"}, HTTP, ADMIN),
    "health-of-the-traffic-port": public({"healthcheck-port": "traffic-port", "healthcheck-protocol": "tcp"}),
    "health-timing": public(
        {
            "healthcheck-interval": "30",
            "healthcheck-timeout": "8",
            "healthcheck-healthy-threshold": "5",
            "healthcheck-unhealthy-threshold": "5",
        },
    ),
    "health-of-udp": public({"healthcheck-protocol": "http", "healthcheck-port": "8081"}, SYSLOG),
    "policy-local": local(then=public()),
    "policy-local-later": public(then=local()),
    "policy-local-timing": local({"healthcheck-interval": "30", "healthcheck-unhealthy-threshold": "3"}),
    "policy-local-tcp": local({"healthcheck-protocol": "tcp", "healthcheck-port": "traffic-port"}),
    "policy-local-all-set": local(EVERY_HEALTH_SETTING),
    "policy-local-udp": local({}, SYSLOG),
    # --- who may connect
    "ranges": public(
        loadBalancerSourceRanges=["192.0.2.0/24", "198.51.100.0/24"],
        then=public(loadBalancerSourceRanges=["198.51.100.0/24", "203.0.113.0/24"]),
    ),
    "ranges-by-annotation": public({"load-balancer-source-ranges": "192.0.2.0/24, 198.51.100.0/24"}, HTTP, SYSLOG),
    "ranges-by-both": public(
        {"load-balancer-source-ranges": "192.0.2.0/24"}, loadBalancerSourceRanges=["198.51.100.0/24"]
    ),
    "ranges-of-both-families": public(
        {"ip-address-type": "dualstack", "load-balancer-source-ranges": "192.0.2.0/24,2001:db8::/32"}
    ),
    "ranges-that-overlap": public({"load-balancer-source-ranges": "10.0.0.0/8,10.1.0.0/16"}),
    "prefix-lists": public({"security-group-prefix-lists": "{office}"}),
    "prefix-lists-and-ranges": public(
        {"security-group-prefix-lists": "{office}", "load-balancer-source-ranges": "192.0.2.0/24"}
    ),
    "icmp": public({"enable-icmp-for-path-mtu-discovery": "on"}, HTTP, HTTPS, then=public({}, HTTP, HTTPS)),
    "own-groups": public({"security-groups": "{group_a},{group_b}"}),
    "own-groups-by-name": public({"security-groups": "front-a"}, then=public({"security-groups": "front-b"})),
    "own-groups-and-node-rules": public({"security-groups": "front-a", "manage-backend-security-group-rules": "true"}),
    "own-groups-later": public(then=public({"security-groups": "front-a"})),
    "private-link-rules": public(
        {"inbound-sg-rules-on-private-link-traffic": "off"},
        then=public({"inbound-sg-rules-on-private-link-traffic": "on"}),
    ),
    # --- what is not for Network Load Balancers, or for nobody
    "classic-annotations": public(
        {
            "access-log-emit-interval": "5",
            "connection-draining-enabled": "true",
            "connection-draining-timeout": "60",
            "connection-idle-timeout": "60",
            "extra-security-groups": "{group_a}",
        }
    ),
    "unknown-annotation": public({"shceme": "internal"}),
}

#: One of the two refuses these, or both do.
REFUSED: dict[str, Case] = {
    "ip-targets": public({"nlb-target-type": "ip"}),
    "multi-cluster": public({"multi-cluster-target-group": "true"}),
    "weighted-action": public(
        {
            "actions.TCP-80": '{{"type":"forward","forwardConfig":{{"baseServiceWeight":100,"targetGroups":[]}}}}',
        }
    ),
    "no-security-groups": public({"disable-nlb-sg": "true"}),
    "unmerged-protocols": public({}, *DNS),
    "udp-on-dualstack": public({"ip-address-type": "dualstack"}, SYSLOG),
    "scheme-misspelt": public({"scheme": "public"}),
    "boolean-misspelt": public({"cross-zone-load-balancing-enabled": "yes"}),
    "map-without-value": public({"target-group-attributes": "stickiness.enabled"}),
    "attribute-misspelt": public({"attributes": "cross_zone.enabled=true"}),
    "attribute-out-of-range": public({"target-group-attributes": "deregistration_delay.timeout_seconds=9999"}),
    "attribute-of-a-missing-port": public({"target-group-attributes.81": "stickiness.enabled=true"}),
    "idle-timeout-of-a-missing-port": public({"listener-attributes.TCP-81": "tcp.idle_timeout.seconds=600"}),
    "tls-on-a-missing-port": public({"ssl-cert": "{certificate_a}", "ssl-ports": "htps"}, HTTPS),
    "tls-on-all-by-star": public({"ssl-cert": "{certificate_a}", "ssl-ports": "*"}, HTTPS),
    "tls-without-certificate": public({"ssl-ports": "443"}, HTTPS),
    "tls-policy-misspelt": public({"ssl-cert": "{certificate_a}", "ssl-negotiation-policy": "TLS13"}, HTTPS),
    "backend-protocol-http": public({"ssl-cert": "{certificate_a}", "backend-protocol": "http"}, HTTPS),
    "backend-protocol-misspelt": public({"ssl-cert": "{certificate_a}", "backend-protocol": "tls"}, HTTPS),
    "two-cross-zones": public(
        {"cross-zone-load-balancing-enabled": "true", "attributes": "load_balancing.cross_zone.enabled=false"}
    ),
    "two-schemes": public({"internal": "true"}),
    "two-proxy-protocols": public({"proxy-protocol": "*", "proxy-protocol-per-target-group": "80"}),
    "health-interval-out-of-range": public({"healthcheck-interval": "3"}),
    "health-port-of-no-name": public({"healthcheck-port": "alive"}),
    "health-path-without-slash": public({"healthcheck-protocol": "http", "healthcheck-path": "alive"}),
    "logs-without-bucket": public({"access-log-enabled": "true"}),
    "subnet-twice": public({"subnets": "{subnet_a},{subnet_a}"}),
    "two-subnets-of-a-zone": public({"subnets": "{subnet_a},edge-a"}),
    "tag-with-a-comma": public({"additional-resource-tags": r"cost=a\,b"}),
    "name-too-long": public({"name": "n" * 33}),
    "ipv6-range-on-ipv4": public({"load-balancer-source-ranges": "2001:db8::/32"}),
    "no-node-port": public(allocateLoadBalancerNodePorts=False),
    "labels-of-no-node": public({"target-node-labels": "pool=gone"}),
}


class Furniture:
    """What an account has beside the cluster: `known` by the names in the manifests, `roles` by their ids.

    Two accounts differ in ids only; with a role in the place of each, they can be compared.
    """

    def __init__(self, account: Account) -> None:
        self.account = account
        self.known: dict[str, str] = {}
        self.roles: dict[str, str] = {}
        names = account.names
        self.roles[names["vpc"]] = "the VPC"
        self.roles[names["node_security_group"]] = "the nodes' group"
        self._subnets(names["subnets"], names["zones"])
        self._workers(names["instances"])
        self._groups(names["vpc"])
        self._certificates()
        self._addresses()
        self._prefix_list()

    def label_workers(self, nodes: list[Object]) -> list[Object]:
        """The Node objects, with the worker of the first zone in a pool of its own."""
        for node in nodes:
            if node["metadata"]["labels"]["topology.kubernetes.io/zone"].endswith("a"):
                node["metadata"]["labels"]["pool"] = "web"
        return nodes

    def _learn(self, name: str, identity: str, role: str) -> None:
        self.known[name], self.roles[identity] = identity, role

    def _subnets(self, subnets: list[str], zones: list[str]) -> None:
        ec2, vpc = self.account.ec2, self.account.names["vpc"]
        ec2.associate_vpc_cidr_block(VpcId=vpc, AmazonProvidedIpv6CidrBlock=True)
        [found] = ec2.describe_vpcs(VpcIds=[vpc])["Vpcs"]
        network = found["Ipv6CidrBlockAssociationSet"][0]["Ipv6CidrBlock"]
        start = network.partition("::/")[0]
        for number, (subnet, zone) in enumerate(zip(subnets, zones, strict=True)):
            letter = zone[-1]
            self._learn(f"subnet_{letter}", subnet, f"subnet of zone {letter}")
            prefix = subnet_prefix(start, number)
            ec2.associate_subnet_cidr_block(SubnetId=subnet, Ipv6CidrBlock=f"{prefix}::/64")
            self._learn(f"ipv6_{letter}", f"{prefix}::99", f"IPv6 address of zone {letter}")
            self._learn(f"nat_{letter}", f"{prefix}:5::/80", f"prefix of zone {letter}")
            self.roles[f"{prefix}:ffff::/80"] = f"given prefix of zone {letter}"  # by the emulator
        tags = [{"ResourceType": "subnet", "Tags": [{"Key": "Name", "Value": "edge-a"}]}]
        edge = ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.96.0/20", AvailabilityZone=zones[0], TagSpecifications=tags)
        self.roles[edge["Subnet"]["SubnetId"]] = "edge-a"

    def _workers(self, instances: list[str]) -> None:
        reservations = self.account.ec2.describe_instances(InstanceIds=instances)["Reservations"]
        for instance in (each for reservation in reservations for each in reservation["Instances"]):
            self.roles[instance["InstanceId"]] = f"worker of zone {instance['Placement']['AvailabilityZone'][-1]}"
        assert len(set(self.roles[each] for each in instances)) == len(instances), "one worker in each zone"

    def _groups(self, vpc: str) -> None:
        for letter in "ab":
            tags = [{"ResourceType": "security-group", "Tags": [{"Key": "Name", "Value": f"front-{letter}"}]}]
            made = self.account.ec2.create_security_group(
                GroupName=f"front-{letter}", Description="Of the shop", VpcId=vpc, TagSpecifications=tags
            )
            self._learn(f"group_{letter}", made["GroupId"], f"front-{letter}")

    def _certificates(self) -> None:
        acm = self.account.client("acm")
        for letter in "abc":
            made = acm.request_certificate(DomainName=f"{letter}.example.com", ValidationMethod="DNS")
            self._learn(f"certificate_{letter}", made["CertificateArn"], f"certificate {letter}.example.com")

    def _addresses(self) -> None:
        for letter in "abcde":
            made = self.account.ec2.allocate_address(Domain="vpc")
            self._learn(f"eip_{letter}", made["AllocationId"], f"elastic IP {letter}")
            self.roles[made["PublicIp"]] = f"address of elastic IP {letter}"

    def _prefix_list(self) -> None:
        made = self.account.ec2.create_managed_prefix_list(
            PrefixListName="office", MaxEntries=3, AddressFamily="IPv4", Entries=[{"Cidr": "192.0.2.0/24"}]
        )
        self._learn("office", made["PrefixList"]["PrefixListId"], "prefix list office")


def subnet_prefix(start: str, number: int) -> str:
    """First four groups of a /64 in a /56 that begins with `start`, the last two digits of which are free."""
    groups = [int(group or "0", 16) for group in start.split(":")]
    groups += [0] * (4 - len(groups))
    return ":".join(f"{group:x}" for group in [*groups[:3], groups[3] + number])
