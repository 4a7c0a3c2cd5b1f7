"""What a Service asks of its target groups: attributes, health checks, and which nodes may be targets."""

from __future__ import annotations

from typing import Any

from sandbox.checks import (
    ANNOTATION,
    CALM,
    attached,
    balancer,
    counted,
    listeners,
    note,
    target_group,
    target_groups,
    target_of,
    targets,
    wait_rest,
    writes,
)
from sandbox.process import wait_for
from sandbox.rows import Mistake, Row, Shown, Trial, assert_refused, assert_warned
from sandbox.view import node_of

INVALID = "InvalidConfiguration"
NODE_LABELS = ANNOTATION + "target-node-labels"


def annotate(cluster, name: str, key: str, value: str | None) -> None:
    cluster.patch(name, {"metadata": {"annotations": {key: value}}})


def target_group_of(cluster, account, name: str, port: int = 80) -> str:
    """ARN of the target group behind a listener of a Service."""
    hostname = cluster.wait_hostname(name)
    return target_of(listeners(account, balancer(account, hostname)["LoadBalancerArn"])[port])


# --- which nodes


def label(cluster, instance: str, pool: str | None) -> None:
    cluster.kube.patch(node_of(cluster, instance), {"metadata": {"labels": {"pool": pool}}})


def wait_targets(account, arn: str, instances: set[str], timeout: float = 20) -> None:
    wait_for(lambda: targets(account, arn) == instances, timeout, f"{sorted(instances)} to be the targets")


def asked_for(calls: list[dict[str, Any]], operation: str) -> list[set[str]]:
    """The instances of each call of this operation."""
    return [{row["Id"] for row in call["request"]["Targets"]} for call in calls if call["operation"] == operation]


def test_nodes_with_the_labels_asked_for_are_the_targets(cluster, account, weir):
    """target-node-labels: registered one by one, as labels come and go; a label on no node is worth a word."""
    web, batch, spare = account.names["instances"]
    label(cluster, web, "web")
    label(cluster, batch, "batch")
    controller = weir(CALM)
    mark = account.mark()
    for name, labels in {"plain": "", "picky": "pool=web", "nobody": "pool=gone"}.items():
        cluster.expose(name, annotations={NODE_LABELS: labels})
    cluster.expose("wrong", annotations={NODE_LABELS: "pool"})
    plain, picky, nobody = (target_group_of(cluster, account, name) for name in ("plain", "picky", "nobody"))
    wait_targets(account, plain, {web, batch, spare})
    wait_targets(account, picky, {web})
    wait_rest(account)
    assert attached(account) == {plain}
    assert targets(account, nobody) == set()
    assert note(cluster, "nobody", "NoTargetNode") == (
        f'{NODE_LABELS}: "pool=gone" is on no node that can be a target, so the load balancer has none'
    )
    assert note(cluster, "wrong", INVALID) == (
        f'{NODE_LABELS}: "pool" has the part "pool" without "="; '
        r"expected key=value,… with \, for a comma inside a value"
    )
    assert counted(writes(account, mark))["CreateLoadBalancer"] == 3

    mark = account.mark()
    label(cluster, spare, "web")
    wait_targets(account, picky, {web, spare})
    label(cluster, web, "batch")
    wait_targets(account, picky, {spare})
    wait_rest(account)
    assert asked_for(writes(account, mark), "RegisterTargets") == [{spare}]
    assert asked_for(writes(account, mark), "DeregisterTargets") == [{web}]
    assert len(writes(account, mark)) == 2

    # A new process finds all that as it should be.
    controller.stop()
    mark = account.mark()
    weir(CALM)
    wait_rest(account)
    assert writes(account, mark) == []
    assert targets(account, picky) == {spare} and attached(account) == {plain}


def test_labels_asked_for_of_a_running_service(cluster, account, weir):
    """target-node-labels on a live Service, and off again: a node that serves is a target in every moment.

    An Auto Scaling group that lets go of a target group deregisters all of its instances there, whoever registered them.
    So another target group takes over once it has the nodes, registered by weir or by the Auto Scaling group.
    """
    web, batch, spare = account.names["instances"]
    label(cluster, web, "web")
    label(cluster, batch, "batch")
    # While it attaches, nothing is registered yet; while it detaches, nothing is any more.
    account.localstack.settings(attach_seconds=1, detach_seconds=2)
    weir(CALM)
    cluster.expose("order")
    first = target_group_of(cluster, account, "order")
    wait_targets(account, first, {web, batch, spare})
    wait_rest(account)

    mark = account.mark()
    annotate(cluster, "order", NODE_LABELS, "pool=web")
    second = taken_over(cluster, account, first, web)
    wait_targets(account, second, {web})
    wait_rest(account)
    steps = writes(account, mark)
    assert asked_for(steps, "RegisterTargets") == [{web}]
    assert [call["operation"] for call in steps] == [
        "CreateTargetGroup",
        "RegisterTargets",
        "ModifyListener",
        "DetachTrafficSources",
        "DeleteTargetGroup",
    ]

    # Other labels are no reason for another target group.
    mark = account.mark()
    annotate(cluster, "order", NODE_LABELS, "pool=batch")
    wait_targets(account, second, {batch})
    wait_rest(account)
    assert [call["operation"] for call in writes(account, mark)] == ["RegisterTargets", "DeregisterTargets"]

    mark = account.mark()
    annotate(cluster, "order", NODE_LABELS, None)
    third = taken_over(cluster, account, second, batch)
    wait_targets(account, third, {web, batch, spare})
    wait_rest(account)
    assert [call["operation"] for call in writes(account, mark)] == [
        "CreateTargetGroup",
        "AttachTrafficSources",
        "ModifyListener",
        "DeleteTargetGroup",
    ]


def taken_over(cluster, account, before: str, node: str) -> str:
    """Waits until another target group has taken the place of this one, which is gone then. The node has to be a target
    of the one that the listener points at whenever it is looked at."""

    def is_over() -> bool:
        arn = target_group_of(cluster, account, "order")
        try:
            is_registered = node in targets(account, arn)
        except account.elbv2.exceptions.TargetGroupNotFoundException:
            is_registered = False
        # It may have moved in between.
        assert is_registered or target_group_of(cluster, account, "order") != arn, f"{node} is no target of {arn}"
        return before not in [group["TargetGroupArn"] for group in target_groups(account)]

    wait_for(is_over, 30, "another target group to take over")
    return target_group_of(cluster, account, "order")


# --- attributes and health checks

DELAY, CROSS_ZONE = "deregistration_delay.timeout_seconds", "load_balancing.cross_zone.enabled"
OF_BALANCER = "use_load_balancer_configuration"
PROXY, STICKY = "proxy_protocol_v2.enabled", "stickiness.enabled"
TERMINATION = "deregistration_delay.connection_termination.enabled"
ATTRIBUTES = {"ModifyTargetGroupAttributes": 1}
HEALTH = {"ModifyTargetGroup": 1}
OURS = {"protocol": "HTTP", "health port": "10256", "path": "/healthz", "codes": "200-399"}


def dns(protocol: str = "UDP") -> dict[str, Any]:
    """A spec with the one port 53."""
    return {"ports": [{"name": "dns", "port": 53, "targetPort": 53, "protocol": protocol}]}


def web(node_port: int) -> dict[str, Any]:
    """A spec with the one port 80, whose NodePort is known."""
    return {"ports": [{"name": "web", "port": 80, "targetPort": 8080, "nodePort": node_port}]}


def health(key: str, value: str, shown: Shown, default: Shown, **more: Any) -> Row:
    return Row("healthcheck-" + key, value, shown, default, HEALTH, **more)


def attribute(key: str, value: str, name: str, on: str, off: str, **more: Any) -> Row:
    return Row(key, value, {name: on}, {name: off}, ATTRIBUTES, **more)


ROWS = (
    health("protocol", "tcp", {"protocol": "TCP", "health port": "traffic-port", "path": None, "codes": None}, OURS),
    health("protocol", "HTTPS", {"protocol": "HTTPS", "health port": "traffic-port", "path": "/", "timeout": 10}, OURS),
    health("port", "traffic-port", {"protocol": "TCP", "health port": "traffic-port", "path": None}, OURS),
    health("port", "8081", {"protocol": "TCP", "health port": "8081", "path": None, "codes": None}, OURS),
    health("port", "web", {"protocol": "TCP", "health port": "30981"}, OURS, spec=web(30981)),
    health("path", "/ready", {"protocol": "HTTP", "health port": "traffic-port", "path": "/ready"}, OURS),
    health("success-codes", "200, 204", {"codes": "200,204"}, OURS),
    health("interval", "30", {"interval": 30}, {"interval": 10}),
    health("interval", "5", {"interval": 5, "timeout": 5}, {"interval": 10, "timeout": 6}),
    health("timeout", "3", {"timeout": 3}, {"timeout": 6}),
    health("healthy-threshold", "4", {"healthy": 4}, {"healthy": 2}),
    health("unhealthy-threshold", "3", {"unhealthy": 3}, {"unhealthy": 2}),
    attribute("target-group-attributes", f"{DELAY}=30", DELAY, "30", "300"),
    attribute("target-group-attributes", f"{TERMINATION}=false", TERMINATION, "false", "true", spec=dns()),
    attribute("target-group-attributes.80", f"{CROSS_ZONE}=true", CROSS_ZONE, "true", OF_BALANCER),
    attribute("target-group-attributes.80", f"{DELAY}=9", DELAY, "9", "60", annotations={
        "target-group-attributes": f"{DELAY}=60"}),
    attribute("proxy-protocol", "*", PROXY, "true", "false"),
    attribute("proxy-protocol-per-target-group", "80", PROXY, "true", "false"),
    attribute("spec.sessionAffinity", "ClientIP", STICKY, "true", "false", absent="None"),
    Row("multi-cluster-target-group", "false", OURS, OURS, {}),
    Row("nlb-target-type", "instance", {"type": "instance"}, {"type": "instance"}, {}),
)  # fmt: skip


def show(account, hostname: str) -> Shown:
    """The first target group of a Service: settings, health check and attributes."""
    [*arns] = {target_of(row) for row in listeners(account, balancer(account, hostname)["LoadBalancerArn"]).values()}
    group = target_group(account, arns[0])
    attributes = account.elbv2.describe_target_group_attributes(TargetGroupArn=arns[0])["Attributes"]
    return {row["Key"]: row["Value"] for row in attributes} | {
        "type": group["TargetType"],
        "protocol": group["HealthCheckProtocol"],
        "health port": group["HealthCheckPort"],
        "path": group.get("HealthCheckPath"),
        "codes": group.get("Matcher", {}).get("HttpCode"),
        "interval": group["HealthCheckIntervalSeconds"],
        "timeout": group["HealthCheckTimeoutSeconds"],
        "healthy": group["HealthyThresholdCount"],
        "unhealthy": group["UnhealthyThresholdCount"],
    }


def test_each_input_takes_effect_and_goes_back_to_its_default(cluster, account, weir):
    """R46: given at birth, taken away and given again: the writes that this needs, no others, and no attribute is read."""
    controller = weir(CALM)
    trial = Trial(cluster, account, ROWS, show)
    trial.start()
    trial.turn(given=False)
    trial.turn(given=True)
    assert "DescribeTargetGroupAttributes" not in counted(account.calls())

    # Nobody is there while one input goes and somebody changes another.
    controller.stop()
    names = {row.key: name for name, row in trial.rows.items()}
    cluster.patch(names["proxy-protocol"], trial.rows[names["proxy-protocol"]].patch(False))
    plain = target_group_of(cluster, account, names["nlb-target-type"])
    by_hand = [{"Key": DELAY, "Value": "7"}, {"Key": STICKY, "Value": "true"}]
    account.elbv2.modify_target_group_attributes(TargetGroupArn=plain, Attributes=by_hand)
    mark = account.mark()
    weir("--drift-interval=1s")

    def is_as_asked(name: str, key: str, value: str) -> bool:
        return show(account, trial.hostnames[name])[key] == value

    wait_for(lambda: is_as_asked(names["nlb-target-type"], STICKY, "false"), 60, "what was set by hand to be put right")
    wait_for(lambda: is_as_asked(names["proxy-protocol"], PROXY, "false"), 60, "what is not asked for any more to go")
    wait_rest(account)
    changed = [sorted(row["Key"] for row in call["request"]["Attributes"]) for call in writes(account, mark)]
    assert sorted(changed) == [[DELAY, STICKY], [PROXY]]


def test_policy_local_asks_the_services_own_health_port(cluster, account, weir):
    """externalTrafficPolicy: port, path and thresholds go there and back in one call each."""
    weir(CALM)
    cluster.expose("order")
    arn = target_group_of(cluster, account, "order")
    wait_rest(account)
    for policy in ("Local", "Cluster"):
        mark = account.mark()
        service = cluster.patch("order", {"spec": {"externalTrafficPolicy": policy}})
        wanted = str(service["spec"].get("healthCheckNodePort") or 10256)
        wait_for(lambda wanted=wanted: target_group(account, arn)["HealthCheckPort"] == wanted, 15, "the health port")
        wait_rest(account)
        assert counted(writes(account, mark)) == HEALTH


RANGE = "{} to {}".format
CODES = "codes or ranges of codes from 200 to 599, as in 200,204 or 200-399"
PORTS = "traffic-port, 1 to 65535, or the name of a port of the Service"
MAP = r"key=value,… with \, for a comma inside a value"
NONE = "which is no attribute of a target group of a Network Load Balancer"


def mistaken(key: str, value: str, wrong: str, expected: str, **more: Any) -> Mistake:
    return Mistake(key, value, wrong, expected, **more)


MISTAKES = (
    mistaken("healthcheck-protocol", "udp", "is an unsupported health check protocol", "tcp, http or https"),
    mistaken("healthcheck-port", "metrics", "is no port", PORTS),
    mistaken("healthcheck-port", "70000", "is out of range", PORTS),
    mistaken("healthcheck-port", "dns", "is a UDP port, which answers no check", "a TCP port", spec=dns()),
    mistaken("healthcheck-path", "ready", 'does not begin with "/"', "a path such as /healthz"),
    mistaken("healthcheck-success-codes", "200-600", "has a part that is no HTTP status code", CODES),
    mistaken("healthcheck-interval", "4", "is out of range", RANGE(5, 300)),
    mistaken("healthcheck-interval", "10s", "is no whole number", RANGE(5, 300)),
    mistaken("healthcheck-timeout", "121", "is out of range", RANGE(2, 120)),
    mistaken("healthcheck-timeout", "11", "is longer than the interval of 10 seconds", "at most the interval"),
    mistaken("healthcheck-healthy-threshold", "1", "is out of range", RANGE(2, 10)),
    mistaken("healthcheck-unhealthy-threshold", "11", "is out of range", RANGE(2, 10)),
    mistaken("target-group-attributes", f"{DELAY}", f'has the part "{DELAY}" without "="', MAP),
    mistaken("target-group-attributes", f"{DELAY}=3601", f'has "3601" for {DELAY}', "a number from 0 to 3600"),
    mistaken("target-group-attributes", "preserve_client_ip.enabled=false",
             "turns off preserve_client_ip.enabled, which cannot be disabled for UDP", "true", spec=dns()),
    mistaken("target-group-attributes.81", f"{DELAY}=3", 'names "81", which is no port of the Service',
             "a key that ends in the number of a port"),
    mistaken("target-group-attributes.80", f"{CROSS_ZONE}=maybe", f'has "maybe" for {CROSS_ZONE}',
             f"true, false or {OF_BALANCER}"),
    mistaken("proxy-protocol", "80", "is unknown", "*"),
    mistaken("proxy-protocol-per-target-group", "81", 'names "81", which is no port of the Service',
             "numbers of ports of the Service"),
    mistaken("proxy-protocol-per-target-group", "80", f"is given together with {ANNOTATION}proxy-protocol",
             "one of the two", annotations={"proxy-protocol": "*"}),
    mistaken("target-node-labels", "pool=a b", 'has the value "a b", which is no label\'s',
             "labels of nodes, as in key=value,other=value"),
    mistaken("multi-cluster-target-group", "true", "is not supported by this controller, which attaches target groups "
             "to Auto Scaling groups", "false"),
    mistaken("nlb-target-type", "ip", "is not supported by this controller", "instance"),
    mistaken("spec.ipFamilies", "IPv6", "begins with IPv6 and the load balancer is not dualstack",
             f"IPv4 first, or dualstack in {ANNOTATION}ip-address-type",
             spec={"ipFamilies": ["IPv6"], "ipFamilyPolicy": "SingleStack"}),
)  # fmt: skip

WARNINGS = (
    ("path", {"healthcheck-protocol": "tcp", "healthcheck-path": "/ready"}, {},
     f'{ANNOTATION}healthcheck-path: "/ready" is ignored; a TCP check asks for no path and gets no code'),
    ("health", {"healthcheck-port": "30953"}, {"ports": [dns()["ports"][0] | {"nodePort": 30953}]},
     f'{ANNOTATION}healthcheck-port: "30953" is the nodePort of a UDP port; a health check is TCP or HTTP, and gets no '
     "answer there"),
    ("affinity", {"target-group-attributes": "preserve_client_ip.enabled=false"}, {"sessionAffinity": "ClientIP"},
     'spec.sessionAffinity: "ClientIP" on port 80: without client addresses the nodes see the load balancer\'s, and '
     "clients share endpoints"),
    ("address", {}, {"loadBalancerIP": "192.0.2.1"},
     'spec.loadBalancerIP: "192.0.2.1" is ignored; a Network Load Balancer takes addresses from '
     "aws-load-balancer-private-ipv4-addresses or aws-load-balancer-eip-allocations"),
)  # fmt: skip


def test_each_mistake_is_one_sentence_and_what_has_no_effect_is_said(cluster, account, weir):
    weir(CALM)
    assert_refused(cluster, account, MISTAKES)
    assert_warned(cluster, WARNINGS)


def test_attributes_that_aws_refuses_hold_up_nothing_else(cluster, account, weir):
    """The nodes are targets and the name is out; the owner reads AWS's words, and it is tried again."""
    weir(CALM, "--retry-max-interval=2s")
    refused = {"code": "InvalidConfigurationRequest", "message": "not today", "count": 2}
    account.faults({"operation": "ModifyTargetGroupAttributes", **refused})
    cluster.expose("order", annotations={ANNOTATION + "target-group-attributes": f"{DELAY}=30"})
    arn = target_group_of(cluster, account, "order")
    wait_targets(account, arn, set(account.names["instances"]))
    said = note(cluster, "order", "AwsRequestRefused")
    assert "ModifyTargetGroupAttributes" in said and "not today" in said
    wait_for(lambda: show(account, cluster.hostname("order"))[DELAY] == "30", 60, "the attribute to be set after all")


def test_ipv6_targets(cluster, account, weir):
    """spec.ipFamilies: the first family is that of the targets, behind a load balancer for both."""
    for number, subnet in enumerate(account.names["subnets"]):
        account.ec2.associate_subnet_cidr_block(SubnetId=subnet, Ipv6CidrBlock=f"2600:1f18:0:{number:x}::/64")
    weir(CALM)
    both = {"ipFamilyPolicy": "RequireDualStack"}
    for name, families in {"six": ["IPv6", "IPv4"], "four": ["IPv4", "IPv6"]}.items():
        annotations = {ANNOTATION + "ip-address-type": "dualstack"}
        cluster.expose(name, annotations=annotations, ipFamilies=families, **both)
    for name, family in {"six": "ipv6", "four": "ipv4"}.items():
        assert target_group(account, target_group_of(cluster, account, name))["IpAddressType"] == family
