"""What a Service's owner, or the account, gets wrong: one sentence, no write, no storm, and recovery by itself."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from sandbox.checks import (
    ANNOTATION,
    CALM,
    NOTHING,
    assert_silent,
    balancer,
    balancers,
    counted,
    is_served,
    left_in_aws,
    note,
    serve,
    wait_drift_checks,
    writes,
)
from sandbox.process import wait_for

INVALID = "InvalidConfiguration"
NAME_RULE = "1 to 32 letters, digits and hyphens, no hyphen at either end, not beginning with internal-"
SUBNET_RULE = "subnet ids or values of their Name tags, each once, separated by commas"
TAG_RULE = "at most 45 tags; keys up to 127 and values up to 255 letters, digits, blanks and + - = . _ : / @"


def annotated(key: str, value: str, wrong: str, expected: str) -> Case:
    key = ANNOTATION + key
    return Case({"annotations": {key: value}}, f'{key}: "{value}" {wrong}; expected {expected}', annotation(key, None))


def annotation(key: str, value: str | None) -> dict[str, Any]:
    return {"metadata": {"annotations": {key: value}}}


class Case(NamedTuple):
    given: dict[str, Any]
    """What `expose` is given."""
    sentence: str
    """The Event's note."""
    correction: dict[str, Any]
    """The patch that puts it right."""


def port(name: str, number: int, protocol: str, node_port: int) -> dict[str, Any]:
    return {"name": name, "port": number, "protocol": protocol, "targetPort": 8080, "nodePort": node_port}


# Ranges that lie side by side would be merged; these do not.
MANY = [f"10.{2 * number}.0.0/24" for number in range(61)]

CASES = {
    "unknown scheme": annotated("scheme", "public", "is an unknown scheme", "internal or internet-facing"),
    "malformed subnet": annotated("subnets", "subnet-xyz", 'has "subnet-xyz", which is no subnet id', SUBNET_RULE),
    "subnet given twice": annotated("subnets", "a, b,a", 'has "a" twice', SUBNET_RULE),
    "empty subnet list": annotated("subnets", ",", "names no subnet", SUBNET_RULE),
    "long name": annotated("name", "n" * 33, "is 33 characters long", NAME_RULE),
    "character in the name": annotated("name", "my_lb", "has the character '_'", NAME_RULE),
    "hyphen at the edge": annotated("name", "order-", "begins or ends with a hyphen", NAME_RULE),
    "reserved beginning": annotated("name", "internal-order", 'begins with "internal-"', NAME_RULE),
    "tag without value": annotated(
        "additional-resource-tags",
        "team=a,blue",
        'has the part "blue" without "="',
        r"key=value,… with \, for a comma inside a value",
    ),
    "reserved tag": annotated(
        "additional-resource-tags", "aws:team=a", 'has the key "aws:team", which AWS reserves', TAG_RULE
    ),
    "tag of ours": annotated(
        "additional-resource-tags",
        "weir.dev/cluster=other",
        'has the key "weir.dev/cluster", with which weir marks what it owns',
        TAG_RULE,
    ),
    "character in a tag": annotated(
        "additional-resource-tags", "team=a*b", 'has the tag "team" with a character that AWS does not take', TAG_RULE
    ),
    "two NodePorts for one port": Case(
        {"ports": [port("tcp", 53, "TCP", 30153), port("udp", 53, "UDP", 30154)]},
        'spec.ports[1].nodePort: "30154" differs from nodePort 30153 of the same port 53; expected one NodePort for '
        "both protocols, since a Network Load Balancer has one listener per port",
        {"spec": {"ports": [port("tcp", 53, "TCP", 30153), port("udp", 53, "UDP", 30153)]}},
    ),
    "no NodePort": Case(
        {"allocateLoadBalancerNodePorts": False},
        'spec.ports[0].nodePort: "0" is no NodePort for port 80; expected a nodePort, or '
        "spec.allocateLoadBalancerNodePorts: true",
        {"spec": {"allocateLoadBalancerNodePorts": True}},
    ),
    "too many rules (R29)": Case(
        {"loadBalancerSourceRanges": MANY},
        'spec.ports: "1 ports × 61 ranges" needs 61 inbound rules in a security group; expected at most 60; merge '
        "source ranges or split the Service",
        {"spec": {"loadBalancerSourceRanges": ["10.0.0.0/8"]}},
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_mistake_is_one_sentence_and_no_write(cluster, account, weir, case):
    """D2: refused before any write; R49: tried at once after the correction."""
    weir(CALM)
    mark = account.mark()
    cluster.expose("order", **case.given)
    assert note(cluster, "order", INVALID) == case.sentence
    assert_silent(account)
    assert counted(writes(account, mark)) == {}
    service = cluster.service("order")
    assert not service["metadata"].get("finalizers") and not service["status"]["loadBalancer"]
    assert [reason for reason, _ in cluster.events("order")] == [INVALID]

    cluster.patch("order", case.correction)
    cluster.wait_hostname("order", 15)
    assert note(cluster, "order", INVALID) == case.sentence


def test_a_refused_service_leaves_no_trace_in_drift_checks_either(cluster, account, weir):
    """Where no Service can be served, what all of them share is not made."""
    weir("--drift-interval=1s")
    mark = account.mark()
    cluster.expose("order", annotations={ANNOTATION + "scheme": "public"})
    note(cluster, "order", INVALID)
    wait_drift_checks(account, 3)
    assert counted(writes(account, mark)) == {}
    cluster.delete("order")
    cluster.wait_gone("order")
    assert left_in_aws(account) == NOTHING


def test_a_mistake_in_a_running_service_leaves_it_running(cluster, account, weir):
    weir(CALM)
    hostname = serve(cluster, account)
    mark = account.mark()
    cluster.patch("order", annotation(ANNOTATION + "scheme", "public"))
    assert "is an unknown scheme" in note(cluster, "order", INVALID)
    assert_silent(account)
    assert counted(writes(account, mark)) == {}
    assert is_served(account, hostname) and cluster.hostname("order") == hostname
    cluster.delete("order")
    cluster.wait_gone("order")


def test_an_unknown_subnet(cluster, account, weir):
    """The sentence names it; the right one is taken up at once."""
    weir(CALM)
    key = ANNOTATION + "subnets"
    mark = account.mark()
    cluster.expose("order", annotations={key: "subnet-0123abcd"})
    sentence = note(cluster, "order", INVALID)
    vpc = account.names["vpc"]
    assert sentence == (
        f'{key}: "subnet-0123abcd" has subnet-0123abcd, which does not exist; '
        f"expected subnets of {vpc}, one for each zone"
    )
    assert counted(account.calls(mark))["DescribeSubnets"] == 1, "AWS was asked once more before the word"
    assert_silent(account, 5)
    assert note(cluster, "order", INVALID) == sentence
    assert counted(writes(account, mark)) == {}
    cluster.patch("order", annotation(key, account.names["subnets"][1]))
    hostname = cluster.wait_hostname("order")
    [zone] = balancer(account, hostname)["AvailabilityZones"]
    assert zone["SubnetId"] == account.names["subnets"][1]


def test_a_name_that_somebody_else_holds(cluster, account, weir):
    """D4: never adopted, and nothing half-built beside it."""
    theirs = account.elbv2.create_load_balancer(Name="taken", Type="network", Subnets=account.names["subnets"])
    arn = theirs["LoadBalancers"][0]["LoadBalancerArn"]
    weir(CALM)
    key = ANNOTATION + "name"
    mark = account.mark()
    cluster.expose("order", annotations={key: "taken"})
    assert note(cluster, "order", INVALID) == (
        f'{key}: "taken" is already the name of load balancer {arn}, which this Service does not own; '
        "expected a name that is free in the account and Region"
    )
    assert_silent(account)
    assert counted(writes(account, mark)) == {}
    cluster.patch("order", annotation(key, "free"))
    cluster.wait_hostname("order")
    assert {lb["LoadBalancerName"] for lb in balancers(account)} == {"taken", "free"}
    cluster.delete("order")
    cluster.wait_gone("order")
    assert [lb["LoadBalancerArn"] for lb in balancers(account)] == [arn]


def test_a_name_taken_since_the_account_was_read(cluster, account, weir):
    """The view does not know it yet; AWS does. Refused with an Event, the foreign one untouched."""
    weir(CALM)
    arn = account.elbv2.create_load_balancer(Name="taken", Type="network", Subnets=account.names["subnets"])
    arn = arn["LoadBalancers"][0]["LoadBalancerArn"]
    key = ANNOTATION + "name"
    cluster.expose("order", annotations={key: "taken"})
    assert arn in note(cluster, "order", INVALID, 20)
    mark = account.mark()
    cluster.patch("order", annotation(key, "free"))
    cluster.wait_hostname("order")
    assert "taken" not in str([call["request"] for call in writes(account, mark)])
    cluster.delete("order")
    cluster.wait_gone("order")
    [left] = balancers(account)
    assert left["LoadBalancerArn"] == arn
    assert not left.get("SecurityGroups")


def test_a_name_that_another_service_holds(cluster, account, weir):
    weir(CALM)
    key = ANNOTATION + "name"
    hostname = serve(cluster, account, "first", annotations={key: "shared"})
    mark = account.mark()
    cluster.expose("second", annotations={key: "shared"})
    sentence = note(cluster, "second", INVALID)
    assert f"is already the name of the load balancer of Service {cluster.namespace}/first" in sentence
    assert_silent(account)
    assert counted(writes(account, mark)) == {}
    assert is_served(account, hostname)


def test_r40_no_usable_subnet_heals_by_itself(cluster, account, weir):
    """R40: each subnet with its reason; a tag on one of them is enough, without an edit of the Service."""
    subnets = account.names["subnets"]
    ours = f"kubernetes.io/cluster/{account.cluster}"
    account.ec2.delete_tags(Resources=subnets, Tags=[{"Key": ours}])
    theirs = [{"Key": "kubernetes.io/cluster/other", "Value": "owned"}]
    account.ec2.create_tags(Resources=subnets, Tags=theirs)
    weir("--retry-max-interval=5s")
    mark = account.mark()
    cluster.expose("order")
    sentence = note(cluster, "order", "NetworkNotUsable")
    assert account.names["vpc"] in sentence
    for subnet, zone in zip(subnets, account.names["zones"], strict=True):
        assert f"{subnet} ({zone}) is tagged for another cluster" in sentence
    wait_drift_checks(account, 2)
    assert counted(writes(account, mark)) == {}
    assert len(account.calls(mark)) < 60, counted(account.calls(mark))
    assert note(cluster, "order", "NetworkNotUsable") == sentence

    account.ec2.create_tags(Resources=[subnets[2]], Tags=[{"Key": ours, "Value": "shared"}])
    hostname = cluster.wait_hostname("order", 60)
    assert [zone["SubnetId"] for zone in balancer(account, hostname)["AvailabilityZones"]] == [subnets[2]]


def test_r48_a_network_that_cannot_be_used_is_not_read_all_the_time(cluster, account, weir):
    """R40, R48: looked at every half minute, not in a circle of check, refusal and check."""
    weir(CALM, "--vpc-id=vpc-00000000000000000")
    cluster.expose("order")
    note(cluster, "order", "NetworkNotUsable")
    assert_silent(account, 8)


def test_a_subnet_made_after_the_network_was_read(cluster, account, weir):
    """The first look does not know it; weir looks again before it says anything."""
    weir(CALM)
    fresh = account.workers.add_subnet(
        account.names["vpc"], account.names["zones"][0], "10.0.96.0/20", account.names["route_table"]
    )
    cluster.expose("order", annotations={ANNOTATION + "subnets": fresh})
    hostname = cluster.wait_hostname("order", 15)
    [zone] = balancer(account, hostname)["AvailabilityZones"]
    assert zone["SubnetId"] == fresh
    assert INVALID not in [reason for reason, _ in cluster.events("order")]


def test_no_node_at_all(cluster, account, weir):
    """One clear Event without a node; it heals when nodes come, even where drift checks are rare."""
    nodes = cluster.kube.list("/api/v1/nodes")
    for node in nodes:
        cluster.kube.delete(f"/api/v1/nodes/{node['metadata']['name']}")
    weir(CALM)
    mark = account.mark()
    cluster.expose("order")
    sentence = note(cluster, "order", "NetworkNotUsable")
    assert sentence == "cannot find the cluster's VPC: the cluster has no node; set --vpc-id"
    assert counted(writes(account, mark)) == {}
    assert [reason for reason, _ in cluster.events("order")] == ["NetworkNotUsable"]
    for node in account.node_manifests():
        cluster.kube.create("/api/v1/nodes", node)
    hostname = cluster.wait_hostname("order", 40)
    wait_for(lambda: is_served(account, hostname), 20, "the nodes to be targets")


def test_annotations_without_effect_are_named_once(cluster, account, weir):
    """R34: a warning for what is unknown, foreign, or for Classic ones; the Service is served all the same."""
    weir(CALM)
    annotations = {
        ANNOTATION + "shceme": "internal",
        ANNOTATION + "type": "nlb-ip",
        ANNOTATION + "connection-idle-timeout": "60",
        "example.com/mine": "1",
    }
    cluster.expose("order", annotations=annotations)
    hostname = cluster.wait_hostname("order")
    sentence = note(cluster, "order", "ConfigurationIgnored")
    assert f"unknown and ignored: {ANNOTATION}shceme" in sentence
    assert f"{ANNOTATION}connection-idle-timeout: is ignored; it applies to Classic load balancers only" in sentence
    assert "example.com" not in sentence
    assert balancer(account, hostname)["Scheme"] == "internet-facing"
    cluster.patch("order", {"metadata": {"labels": {"touched": "yes"}}})
    cluster.patch("order", {"spec": {"externalTrafficPolicy": "Local"}})
    assert note(cluster, "order", "ConfigurationIgnored") == sentence
