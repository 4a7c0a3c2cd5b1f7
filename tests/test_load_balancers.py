"""What a Service asks of its load balancer: addresses, attributes, capacity, tags; and what cannot be had any more."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sandbox.checks import (
    ANNOTATION,
    CALM,
    FINALIZER,
    balancer,
    balancers,
    counted,
    group,
    listeners,
    note,
    rules,
    tags,
    target_of,
    targets,
    wait_nothing_left,
    wait_rest,
    writes,
)
from sandbox.process import wait_for
from sandbox.rows import Mistake, Row, Shown, Trial, assert_refused

PROTECTION = "deletion_protection.enabled"
CROSS_ZONE = "load_balancing.cross_zone.enabled"
ROUTING = "dns_record.client_routing_policy"
LOGS, BUCKET, PREFIX = (f"access_logs.s3.{key}" for key in ("enabled", "bucket", "prefix"))
NAT = "enable-prefix-for-ipv6-source-nat"
DUAL = {"ip-address-type": "dualstack"}
ATTRIBUTES = {"ModifyLoadBalancerAttributes": 1}
SUBNETS = {"SetSubnets": 1}
RULE = {"AuthorizeSecurityGroupIngress": 1}
INVALID = "InvalidConfiguration"
SECONDARY = "secondary_ips.auto_assigned.per_subnet"


def annotated(values: dict[str, str]) -> dict[str, str]:
    return {ANNOTATION + key: value for key, value in values.items()}


def annotate(cluster, name: str, **values: str | None) -> None:
    keyed = {ANNOTATION + key.replace("_", "-"): value for key, value in values.items()}
    cluster.patch(name, {"metadata": {"annotations": keyed}})


@pytest.fixture
def ipv6(account) -> list[str]:
    """What the IPv6 ranges of the subnets begin with."""
    return account.workers.add_ipv6(account.names["vpc"], account.names["subnets"])


def attributes(account, arn: str) -> dict[str, str]:
    rows = account.elbv2.describe_load_balancer_attributes(LoadBalancerArn=arn)["Attributes"]
    return {row["Key"]: row["Value"] for row in rows}


def show(account, hostname: str) -> Shown:
    row = balancer(account, hostname)
    arn = row["LoadBalancerArn"]
    zones = sorted(row["AvailabilityZones"], key=lambda zone: zone["ZoneName"])
    reserved = account.elbv2.describe_capacity_reservation(LoadBalancerArn=arn)
    [listener] = listeners(account, arn).values()
    arns = [arn, listener["ListenerArn"], target_of(listener)]
    return attributes(account, arn) | {
        "type": row["IpAddressType"],
        "source NAT": row["EnablePrefixForIpv6SourceNat"],
        "prefix": zones[0].get("SourceNatIpv6Prefixes"),
        "subnets": [zone["SubnetId"] for zone in zones],
        "capacity": reserved.get("MinimumLoadBalancerCapacity", {}).get("CapacityUnits", 0),
        "team": {tags(account, each).get("team") for each in arns},
    }


def table(account, ipv6: list[str]) -> tuple[Row, ...]:
    """Each input of a load balancer that can be changed in place."""
    subnets, prefix = account.names["subnets"], f"{ipv6[0]}:8000::/80"
    on = DUAL | {NAT: "on"}

    def attribute(key: str, value: str, name: str, given: str, default: str, **more: Any) -> Row:
        return Row(key, value, {name: given}, {name: default}, ATTRIBUTES, **more)

    return (
        Row("ip-address-type", "dualstack", {"type": "dualstack"}, {"type": "ipv4"}, RULE | {"SetIpAddressType": 1},
            undone={"SetIpAddressType": 1, "RevokeSecurityGroupIngress": 1}),
        Row(NAT, "on", {"source NAT": "on"}, {"source NAT": "off"}, SUBNETS, annotations=DUAL),
        # What AWS chose and what was chosen look the same, so that a prefix which nobody asks for any more stays.
        Row("source-nat-ipv6-prefixes", f"{prefix},auto_assigned,auto_assigned", {"prefix": [prefix]},
            {"prefix": [prefix]}, {}, annotations=on | {"subnets": ",".join(subnets)}),
        Row("subnets", ",".join(subnets[:2]), {"subnets": subnets[:2]}, {"subnets": subnets}, SUBNETS),
        attribute("attributes", f"{ROUTING}=availability_zone_affinity", ROUTING, "availability_zone_affinity",
                  "any_availability_zone"),
        attribute("attributes", "zonal_shift.config.enabled=true", "zonal_shift.config.enabled", "true", "false"),
        attribute("cross-zone-load-balancing-enabled", "True", CROSS_ZONE, "true", "false"),
        attribute("access-log-enabled", "true", LOGS, "true", "false",
                  annotations={"access-log-s3-bucket-name": "logs"}),
        attribute("access-log-s3-bucket-name", "logs", BUCKET, "logs", ""),
        attribute("access-log-s3-bucket-prefix", "shop", PREFIX, "shop", "",
                  annotations={"access-log-enabled": "true", "access-log-s3-bucket-name": "logs"}),
        Row("minimum-load-balancer-capacity", "CapacityUnits=3000", {"capacity": 3000}, {"capacity": 0},
            {"ModifyCapacityReservation": 1}),
        Row("additional-resource-tags", "team=shop", {"team": {"shop"}}, {"team": {None}},
            {"AddTags": 3, "CreateTags": 1}, undone={"RemoveTags": 3, "DeleteTags": 1}),
    )  # fmt: skip


def test_each_input_takes_effect_and_goes_back_to_its_default(cluster, account, weir, ipv6):
    """Given at birth, taken away and given again: the writes that this needs, and no others."""
    controller = weir(CALM)
    trial = Trial(cluster, account, table(account, ipv6), show)
    trial.start()
    trial.turn(given=False)
    trial.turn(given=True)
    reads = counted(account.calls())
    assert not {"DescribeLoadBalancerAttributes", "DescribeCapacityReservation"} & set(reads), "what weir made it knows"

    # Nobody is there while inputs go and somebody changes others.
    controller.stop()
    names = {row.key: name for name, row in trial.rows.items()}
    gone = ("minimum-load-balancer-capacity", "additional-resource-tags", "cross-zone-load-balancing-enabled")
    for key in gone:
        cluster.patch(names[key], trial.rows[names[key]].patch(False))
    by_hand = balancer(account, trial.hostnames[names["subnets"]])["LoadBalancerArn"]
    wrong = [{"Key": CROSS_ZONE, "Value": "true"}]
    account.elbv2.modify_load_balancer_attributes(LoadBalancerArn=by_hand, Attributes=wrong)
    mark = account.mark()
    weir("--drift-interval=1s")

    def is_put_right() -> bool:
        shown = {key: show(account, trial.hostnames[names[key]]) for key in gone}
        defaults = all(trial.rows[names[key]].default.items() <= seen.items() for key, seen in shown.items())
        return defaults and attributes(account, by_hand)[CROSS_ZONE] == "false"

    wait_for(is_put_right, 60, "what is not asked for to be put right")
    wait_rest(account)
    expected = {"ModifyLoadBalancerAttributes": 2, "ModifyCapacityReservation": 1, "RemoveTags": 3, "DeleteTags": 1}
    assert counted(writes(account, mark)) == expected


MAP = r"key=value,… with \, for a comma inside a value"


def mistakes(account) -> tuple[Mistake, ...]:
    subnets = account.names["subnets"]
    each, listed = "one address in each of " + ",".join(subnets), ",".join(subnets)
    eips = "eipalloc-0a,eipalloc-0b,eipalloc-0c"
    private = "10.0.0.9,10.0.16.9,10.0.32.9"
    no_dual = f"no such annotation, or dualstack in {ANNOTATION}ip-address-type"
    internal = {"scheme": "internal"}
    return (
        Mistake("ip-address-type", "ipv6", "is an unknown IP address type", "ipv4 or dualstack"),
        Mistake("ip-address-type", "dualstack", f"cannot be had with UDP on port 53 while source NAT by prefix is off",
                f"ipv4, or on in {ANNOTATION}{NAT}",
                spec={"ports": [{"port": 53, "protocol": "UDP", "targetPort": 5353}]}),
        Mistake("eip-allocations", "eip-1", 'has "eip-1", which is no allocation id',
                "an allocation id for each subnet, each once"),
        Mistake("eip-allocations", "eipalloc-0a,eipalloc-0b", "has 2 entries for 3 subnets",
                f"one for each of {','.join(sorted(subnets))}, in this order"),
        Mistake("eip-allocations", eips, "can only be set for an internet-facing load balancer",
                f"no such annotation, or internet-facing in {ANNOTATION}scheme", annotations=internal),
        Mistake("private-ipv4-addresses", "10.0.0.9,::1", 'has "::1", which is no IPv4 address',
                "an IPv4 address for each subnet, each once"),
        Mistake("private-ipv4-addresses", private, "can only be set for an internal load balancer",
                f"no such annotation, or internal in {ANNOTATION}scheme"),
        Mistake("private-ipv4-addresses", "10.0.0.9,10.0.16.9,10.9.0.9",
                "has 10.9.0.9, which is in none of the load balancer's subnets", each, annotations=internal),
        Mistake("ipv6-addresses", "10.0.0.9", 'has "10.0.0.9", which is no IPv6 address',
                "an IPv6 address for each subnet, each once", annotations=DUAL),
        Mistake("ipv6-addresses", "2001:db8::9", "needs a dualstack load balancer", no_dual),
        Mistake(NAT, "true", "is neither on nor off", "on or off", annotations=DUAL),
        Mistake(NAT, "on", "needs a dualstack load balancer", no_dual),
        Mistake("source-nat-ipv6-prefixes", "auto_assigned", "is given although source NAT by prefix is off",
                f"no such annotation, or on in {ANNOTATION}{NAT}", annotations=DUAL),
        Mistake("source-nat-ipv6-prefixes", "2001:db8::/64",
                'has "2001:db8::/64", which is no IPv6 prefix of length 80',
                "auto_assigned or an IPv6 prefix such as 2001:db8::/80 for each subnet", annotations=DUAL | {NAT: "on"}),
        Mistake("attributes", f"{CROSS_ZONE}=maybe", f'has "maybe" for {CROSS_ZONE}', "true or false"),
        Mistake("attributes", "deletion_protection", 'has the part "deletion_protection" without "="', MAP),
        Mistake("cross-zone-load-balancing-enabled", "yes", "is no truth value", "true or false"),
        Mistake("access-log-enabled", "true", "turns access logs on without a bucket",
                f"a bucket, as in {ANNOTATION}access-log-s3-bucket-name"),
        Mistake("access-log-s3-bucket-name", "logs", f"contradicts {BUCKET}=others",
                f"one of the two, as in {ANNOTATION}attributes", annotations={"attributes": f"{BUCKET}=others"}),
        Mistake("access-log-s3-bucket-prefix", "shop", f"contradicts {PREFIX}=other",
                f"one of the two, as in {ANNOTATION}attributes", annotations={"attributes": f"{PREFIX}=other"}),
        Mistake("minimum-load-balancer-capacity", "Units=3", 'has the key "Units"',
                "CapacityUnits=<number>, where 0 reserves nothing"),
        Mistake("internal", "yes", "is no truth value", "true or false"),
    )  # fmt: skip


def test_each_mistake_is_one_sentence(cluster, account, weir, ipv6):
    weir(CALM)
    assert_refused(cluster, account, mistakes(account))


def test_dualstack_where_a_subnet_has_no_ipv6(cluster, account, weir):
    """Of a Service that exists it is refused with the subnets' names; a new one gets the subnets that will do."""
    subnets = account.names["subnets"]
    account.workers.add_ipv6(account.names["vpc"], subnets[:2])
    weir(CALM)
    for name, asked in {"old": {}, "new": DUAL}.items():
        cluster.expose(name, annotations=annotated(asked))
    old, new = (show(account, cluster.wait_hostname(name)) for name in ("old", "new"))
    assert (new["type"], new["subnets"]) == ("dualstack", subnets[:2]) and old["subnets"] == subnets
    wait_rest(account)
    mark = account.mark()
    annotate(cluster, "old", ip_address_type="dualstack")
    assert note(cluster, "old", INVALID) == (
        f'{ANNOTATION}ip-address-type: "dualstack" cannot be had in {subnets[2]}, which has no IPv6 range; '
        "expected ipv4, or subnets that all have an IPv6 CIDR block"
    )
    assert writes(account, mark) == []
    where = "zone us-east-1c has nodes, and load balancer"
    assert note(cluster, "new", "ZoneWithoutSubnet").startswith(where)
    assert [reason for reason, _ in cluster.events("old")].count("ZoneWithoutSubnet") == 0


def addresses(account, hostname: str, key: str) -> list[str | None]:
    zones = sorted(balancer(account, hostname)["AvailabilityZones"], key=lambda zone: zone["ZoneName"])
    return [next((row[key] for row in zone["LoadBalancerAddresses"] if key in row), None) for zone in zones]


def test_addresses_are_given_at_birth_and_stay(cluster, account, weir, ipv6):
    """R36: elastic IPs in the order of the subnets, others by the subnet they lie in; an edit is refused, all runs on."""
    subnets = account.names["subnets"]
    eips = [account.ec2.allocate_address(Domain="vpc")["AllocationId"] for _ in range(4)]
    private = ["10.0.0.9", "10.0.16.9", "10.0.32.9"]
    v6 = [f"{prefix}::9" for prefix in ipv6]
    weir(CALM)
    first, second, third, spare = eips
    asked: dict[str, dict[str, str]] = {
        "elastic": {"subnets": ",".join(subnets[::-1]), "eip-allocations": f"{third},{second},{first}"},
        "private": {"scheme": "internal", "private-ipv4-addresses": ",".join(private[::-1])},
        "dual": DUAL | {"ipv6-addresses": ",".join(v6), "scheme": "internal"},
    }
    for name, values in asked.items():
        cluster.expose(name, annotations=annotated(values))
    hostnames = {name: cluster.wait_hostname(name) for name in asked}
    kinds = {"elastic": "AllocationId", "private": "PrivateIPv4Address", "dual": "IPv6Address"}
    born = {name: addresses(account, hostnames[name], key) for name, key in kinds.items()}
    assert born == {"elastic": [first, second, third], "private": private, "dual": v6}

    wait_rest(account)
    mark = account.mark()
    annotate(cluster, "elastic", eip_allocations=f"{spare},{second},{first}")
    annotate(cluster, "private", private_ipv4_addresses="10.0.0.9,10.0.16.9,10.0.32.10")
    annotate(cluster, "dual", ipv6_addresses=f"{v6[0]}9,{v6[1]},{v6[2]}")
    said = {name: note(cluster, name, INVALID) for name in asked}
    keep = "expected what it has, another subnet for that zone, or a new Service"
    cannot = "cannot be given to the load balancer, which has"
    assert said == {
        "elastic": f'{ANNOTATION}eip-allocations: "{spare}" {cannot} {third} in {subnets[2]}; {keep}',
        "private": f'{ANNOTATION}private-ipv4-addresses: "10.0.32.10" {cannot} 10.0.32.9 in {subnets[2]}; {keep}',
        "dual": f'{ANNOTATION}ipv6-addresses: "{v6[0]}9" {cannot} {v6[0]} in {subnets[0]}; {keep}',
    }
    assert writes(account, mark) == []
    annotate(cluster, "elastic", eip_allocations=None)
    wait_for(lambda: any("cannot be taken from" in text for _, text in cluster.events("elastic")), 10, "the sentence")
    assert writes(account, mark) == [] and addresses(account, hostnames["elastic"], "AllocationId") == born["elastic"]

    # A zone can be left out and come back, with what it had in the others.
    annotate(cluster, "elastic", subnets=",".join(subnets[:2]), eip_allocations=f"{first},{second}")
    wait_for(lambda: len(balancer(account, hostnames["elastic"])["AvailabilityZones"]) == 2, 10, "two zones")
    annotate(cluster, "elastic", subnets=",".join(subnets), eip_allocations=f"{first},{second},{spare}")
    expected = [first, second, spare]
    wait_for(lambda: addresses(account, hostnames["elastic"], "AllocationId") == expected, 10, "the third zone")
    wait_rest(account)
    assert counted(writes(account, mark)) == {"SetSubnets": 2}

    # The same addresses behind another scheme: the old load balancer goes first, and that is said.
    mark = account.mark()
    annotate(cluster, "dual", ipv6_addresses=",".join(v6), scheme="internet-facing")
    changed = wait_for(lambda: (found := cluster.hostname("dual")) != hostnames["dual"] and found, 40, "the new name")
    assert addresses(account, changed, "IPv6Address") == v6
    assert "needs its addresses; expect an interruption" in note(cluster, "dual", "Interruption")
    order = [call["operation"] for call in writes(account, mark) if "LoadBalancer" in call["operation"]]
    assert order == ["DeleteLoadBalancer", "CreateLoadBalancer"]


def test_udp_and_ipv6_go_together_with_source_nat(cluster, account, weir, ipv6):
    """One call for both; the listener comes after, and goes before they go."""
    weir(CALM)
    udp = [{"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 5353}]
    tcp = [{"name": "dns", "port": 53, "protocol": "TCP", "targetPort": 5353}]
    cluster.expose("names", ports=udp)
    hostname = cluster.wait_hostname("names")
    wait_rest(account)
    mark = account.mark()
    annotate(cluster, "names", ip_address_type="dualstack", **{NAT.replace("-", "_"): "on"})
    wait_for(lambda: balancer(account, hostname)["EnablePrefixForIpv6SourceNat"] == "on", 10, "source NAT")
    wait_rest(account)
    assert counted(writes(account, mark)) == SUBNETS | RULE
    mark = account.mark()
    cluster.patch("names", {
        "metadata": {"annotations": annotated({NAT: "off"})}, "spec": {"ports": tcp},
    })  # fmt: skip
    wait_for(lambda: balancer(account, hostname)["EnablePrefixForIpv6SourceNat"] == "off", 30, "source NAT to end")
    wait_rest(account)
    steps = [call["operation"] for call in writes(account, mark)]
    assert steps.index("ModifyListener") < steps.index("SetSubnets")
    assert balancer(account, hostname)["IpAddressType"] == "dualstack"


def test_protection_against_deletion(cluster, account, weir):
    """The owner's is switched off by the owner's word; another's is respected, and each is told of."""
    weir("--retry-max-interval=2s")
    cluster.expose("owner", annotations=annotated({"attributes": f"{PROTECTION}=true"}))
    cluster.expose("other")
    arns = {name: balancer(account, cluster.wait_hostname(name))["LoadBalancerArn"] for name in ("owner", "other")}
    wait_rest(account)
    assert attributes(account, arns["owner"])[PROTECTION] == "true"
    on = [{"Key": PROTECTION, "Value": "true"}]
    account.elbv2.modify_load_balancer_attributes(LoadBalancerArn=arns["other"], Attributes=on)
    for name in arns:
        cluster.delete(name)
    for name in arns:
        said = note(cluster, name, "AwsConflict")
        assert f"is protected against deletion; to let it go, write {PROTECTION}=false into the annotation" in said
    assert {row["LoadBalancerArn"] for row in balancers(account)} == set(arns.values())
    annotate(cluster, "owner", attributes=f"{PROTECTION}=false")
    cluster.wait_gone("owner")
    assert attributes(account, arns["other"])[PROTECTION] == "true"
    off = [{"Key": PROTECTION, "Value": "false"}]
    account.elbv2.modify_load_balancer_attributes(LoadBalancerArn=arns["other"], Attributes=off)
    cluster.wait_gone("other")
    wait_nothing_left(account)


def test_secondary_addresses_that_are_not_asked_for_any_more_stay_and_hold_up_nothing(cluster, account, weir):
    """AWS takes none back: what else the Service asks for is done, and its owner reads why this is not."""
    weir(CALM)
    cluster.expose("order", annotations=annotated({"attributes": f"{SECONDARY}=3"}))
    arn = balancer(account, cluster.wait_hostname("order"))["LoadBalancerArn"]
    wait_rest(account)
    mark = account.mark()
    annotate(cluster, "order", attributes=f"{SECONDARY}=1,{CROSS_ZONE}=true")
    assert "has 3 secondary addresses in each zone, and 1 are asked for" in note(
        cluster, "order", "SecondaryAddressesKept"
    )
    wait_rest(account)
    shown = attributes(account, arn)
    assert (shown[SECONDARY], shown[CROSS_ZONE]) == ("3", "true")
    assert counted(writes(account, mark)) == ATTRIBUTES


def test_a_bucket_that_elb_cannot_write_to_holds_up_nothing_else(cluster, account, weir):
    """R9: one sentence with AWS's words; hostname, targets and other attributes are there. A lost finalizer too."""
    weir(CALM)
    refusal = {"code": "InvalidConfigurationRequest", "message": "Access Denied for bucket: logs", "count": -1}
    account.faults({"operation": "ModifyLoadBalancerAttributes", "match": "access_logs", **refusal})
    asked = {"access-log-enabled": "true", "access-log-s3-bucket-name": "logs", "attributes": f"{CROSS_ZONE}=true"}
    cluster.expose("order", annotations=annotated(asked))
    hostname = cluster.wait_hostname("order")
    assert note(cluster, "order", "AwsRequestRefused") == (
        "ELB cannot write to bucket logs: Access Denied for bucket: logs (InvalidConfigurationRequest)"
    )
    row = balancer(account, hostname)
    shown = attributes(account, row["LoadBalancerArn"])
    assert (shown[CROSS_ZONE], shown[LOGS]) == ("true", "false")
    [listener] = listeners(account, row["LoadBalancerArn"]).values()
    workers = set(account.names["instances"])
    wait_for(lambda: targets(account, target_of(listener)) == workers, 15, "the nodes to be targets")

    # While that failure waits, and while the Service is refused.
    for edit in ({}, annotated({"scheme": "public"})):
        cluster.patch("order", {"metadata": {"finalizers": None, "annotations": edit}})
        wait_for(lambda: FINALIZER in cluster.service("order")["metadata"].get("finalizers", []), 3, "the finalizer")
    account.faults()
    annotate(cluster, "order", scheme=None)
    wait_for(lambda: attributes(account, row["LoadBalancerArn"])[LOGS] == "true", 15, "access logs")


def test_a_port_beyond_a_quota_holds_up_no_other(cluster, account, weir):
    """No target group for one port, no listener for another: the third is served, and the name is out."""
    weir(CALM)
    ports = [
        {"name": f"p{number}", "port": 80 + number, "targetPort": 8080, "nodePort": 30760 + number}
        for number in range(3)
    ]
    quotas = {"CreateTargetGroup": ("TooManyTargetGroups", 30761), "CreateListener": ("TooManyListeners", 82)}
    account.faults(*(
        {"operation": operation, "code": code, "match": f'"Port": {port}', "count": -1}
        for operation, (code, port) in quotas.items()
    ))  # fmt: skip
    cluster.expose("order", ports=ports)
    arn = balancer(account, cluster.wait_hostname("order"))["LoadBalancerArn"]
    [(port, listener)] = listeners(account, arn).items()
    assert port == 80
    workers = set(account.names["instances"])
    wait_for(lambda: targets(account, target_of(listener)) == workers, 15, "the nodes to be targets")
    said = [text for reason, text in cluster.events("order") if reason == "AwsQuotaExceeded"]
    assert len(said) == 2 and all(any(code in text for text in said) for code, _ in quotas.values()), said
    account.faults()
    cluster.patch("order", {"metadata": {"annotations": annotated({"attributes": f"{CROSS_ZONE}=true"})}})
    wait_for(lambda: set(listeners(account, arn)) == {80, 81, 82}, 15, "the other ports")


def test_at_a_quota_every_port_keeps_some_targets(cluster, account, weir):
    """Nodes in no Auto Scaling group; AWS takes eight targets, three ports want four nodes each."""
    for node in cluster.kube.list("/api/v1/nodes"):
        cluster.kube.delete(f"/api/v1/nodes/{node['metadata']['name']}")
    account.workers.scale("workers", 0)
    subnet, nodes = account.names["subnets"][0], account.names["node_security_group"]
    loose = {account.workers.launch_instance(subnet, nodes) for _ in range(4)}
    for node in account.node_manifests():
        if node["spec"]["providerID"].rpartition("/")[2] in loose:
            cluster.kube.create("/api/v1/nodes", node)
    account.localstack.settings(targets_per_balancer=8)
    weir(CALM)
    ports = [{"name": f"p{number}", "port": 80 + number, "targetPort": 8080} for number in range(3)]
    cluster.expose("order", ports=ports)
    arn = balancer(account, cluster.wait_hostname("order"))["LoadBalancerArn"]

    def counts() -> list[int]:
        groups = [target_of(row) for row in listeners(account, arn).values()]
        return sorted(len(targets(account, group)) for group in groups)

    wait_for(lambda: counts() == [2, 3, 3], 30, "the targets to be shared out")
    wait_rest(account)
    assert counts() == [2, 3, 3]
    said = [text for reason, text in cluster.events("order") if reason == "TargetQuotaUsedUp"]
    assert said and all("AWS takes no more targets for the load balancer" in text for text in said)
    assert len(account.calls()) < 150, json.dumps(counted(account.calls()))
