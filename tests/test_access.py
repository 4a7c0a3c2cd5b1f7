"""Who may connect to a Service's load balancer: ranges, prefix lists, ICMP, and whose security groups decide."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox.checks import ANNOTATION, CALM, balancer, group, node_rules, note, wait_rest, writes
from sandbox.process import wait_for
from sandbox.rows import Mistake, Row, Shown, Trial, assert_refused, assert_warned

ENFORCE = "EnforceSecurityGroupInboundRulesOnPrivateLinkTraffic"
OPEN = ("tcp", 80, 80, "0.0.0.0/0")
CHANGED = {"AuthorizeSecurityGroupIngress": 1, "RevokeSecurityGroupIngress": 1}
GROUPS = {"SetSecurityGroups": 1}


@pytest.fixture
def own(account) -> list[str]:
    """Security groups of the Service's owner; the second is called web."""
    made = []
    for name in ("first", "web"):
        tag = [{"ResourceType": "security-group", "Tags": [{"Key": "Name", "Value": name}]}]
        made.append(account.ec2.create_security_group(
            GroupName=name, Description="theirs", VpcId=account.names["vpc"], TagSpecifications=tag
        )["GroupId"])  # fmt: skip
    return made


@pytest.fixture
def lists(account) -> dict[str, str]:
    """Prefix lists: one for few entries, one for many, one of IPv6."""
    sizes = {"few": (3, "IPv4"), "many": (59, "IPv4"), "v6": (3, "IPv6")}
    return {
        name: account.ec2.create_managed_prefix_list(PrefixListName=name, MaxEntries=size, AddressFamily=family)[
            "PrefixList"
        ]["PrefixListId"]
        for name, (size, family) in sizes.items()
    }


def inbound(row: dict[str, Any]) -> set[tuple[str, int, int, str]]:
    """(protocol, from, to, source) of a group's rules, whatever the source."""
    kinds = {"IpRanges": "CidrIp", "Ipv6Ranges": "CidrIpv6", "PrefixListIds": "PrefixListId"}
    found = set()
    for rule in row["IpPermissions"]:
        sources = [source[key] for kind, key in kinds.items() for source in rule.get(kind, [])]
        found |= {(rule["IpProtocol"], rule["FromPort"], rule["ToPort"], source) for source in sources}
    return found


def show(account, hostname: str) -> Shown:
    row = balancer(account, hostname)
    groups = account.ec2.describe_security_groups(GroupIds=row["SecurityGroups"])["SecurityGroups"]
    tagged = {each["GroupId"]: {tag["Key"]: tag["Value"] for tag in each.get("Tags", [])} for each in groups}
    roles = {key: found.get("weir.dev/resource", key) for key, found in tagged.items()}
    frontends = [each for each in groups if roles[each["GroupId"]] == "frontend-group"]
    return {
        "groups": set(roles.values()),
        "rules": set().union(*map(inbound, frontends)),
        "private link": row[ENFORCE],
    }


OURS = {"groups": {"frontend-group", "backend-group"}}


def table(own: list[str], lists: dict[str, str]) -> tuple[Row, ...]:
    first, web = own
    few, everyone = lists["few"], {"rules": {OPEN}}
    of_list = {"rules": {("tcp", 80, 80, few)}}
    icmp = {"rules": {OPEN, ("icmp", 3, 4, "0.0.0.0/0")}}
    return (
        Row("spec.loadBalancerSourceRanges", ["10.0.0.0/8"], {"rules": {("tcp", 80, 80, "10.0.0.0/8")}}, everyone,
            CHANGED),
        Row("security-group-prefix-lists", few, of_list, everyone, CHANGED),
        Row("enable-icmp-for-path-mtu-discovery", "on", icmp, everyone, {"AuthorizeSecurityGroupIngress": 1},
            undone={"RevokeSecurityGroupIngress": 1}),
        Row("inbound-sg-rules-on-private-link-traffic", "off", {"private link": "off"}, {"private link": "on"}, GROUPS),
        Row("security-groups", f"{first}, web", {"groups": {first, web}}, OURS, GROUPS | {"DeleteSecurityGroup": 1},
            undone=GROUPS | {"CreateSecurityGroup": 1, "AuthorizeSecurityGroupIngress": 1}),
        Row("manage-backend-security-group-rules", "true", {"groups": {first, "backend-group"}}, {"groups": {first}},
            GROUPS, annotations={"security-groups": first}),
        Row("manage-backend-security-group-rules", "false", {"groups": {"frontend-group"}}, OURS, GROUPS),
        Row("disable-nlb-sg", "false", OURS, OURS, {}),
    )  # fmt: skip


def test_each_input_takes_effect_and_goes_back_to_its_default(cluster, account, weir, own, lists):
    """Given at birth, taken away and given again: the writes that this needs, and no others. The owner's security groups
    are as they were."""

    def theirs() -> list[Any]:
        found = account.ec2.describe_security_groups(GroupIds=own)["SecurityGroups"]
        return [(row["IpPermissions"], row["IpPermissionsEgress"], row["Tags"]) for row in found]

    before = theirs()
    weir(CALM)
    trial = Trial(cluster, account, table(own, lists), show)
    trial.start()
    admitted = node_rules(account)
    trial.turn(given=False)
    trial.turn(given=True)
    assert theirs() == before
    assert node_rules(account) == admitted, "no Service adds a rule to the nodes"


def test_each_mistake_is_one_sentence_and_what_has_no_effect_is_said(cluster, account, weir, own, lists):
    groups = "up to 16 ids of security groups or values of their Name tags, each once"
    there = f"ids or Name tags of security groups of {account.names['vpc']}"
    here = "ids of prefix lists such as pl-0123abcd"
    many = lists["many"]
    mistakes = (
        Mistake("spec.loadBalancerSourceRanges", "2001:db8::/32", "is an IPv6 range and the load balancer is not "
                "dualstack", "IPv4 ranges", spec={"loadBalancerSourceRanges": ["2001:db8::/32"]}),
        Mistake("security-group-prefix-lists", "office", 'has "office", which is no id of a prefix list', here),
        Mistake("security-group-prefix-lists", "pl-0123abcd", "has pl-0123abcd, which does not exist",
                "prefix lists of this account and Region"),
        Mistake("security-group-prefix-lists", many,
                f"needs 118 inbound rules in a security group, which counts {many} as 59",
                "at most 60; take smaller lists or split the Service",
                spec={"ports": [{"name": f"p{port}", "port": port, "targetPort": 8080} for port in (80, 81)]}),
        Mistake("security-groups", "sg-x", 'has "sg-x", which is no id of a security group', groups),
        Mistake("security-groups", "db", "has db, which does not exist", there),
        Mistake("manage-backend-security-group-rules", "on", "is no truth value", "true or false"),
        Mistake("inbound-sg-rules-on-private-link-traffic", "false", "is neither on nor off", "on or off"),
        Mistake("disable-nlb-sg", "true", "asks for a load balancer without security groups, which could never get any "
                "later", "false"),
    )  # fmt: skip
    weir(CALM)
    assert_refused(cluster, account, mistakes)
    key = f"{ANNOTATION}enable-icmp-for-path-mtu-discovery"
    rules = f"is ignored; the rules of the groups in {ANNOTATION}security-groups are their owner's"
    warnings = (
        ("icmp", {"enable-icmp-for-path-mtu-discovery": "true"}, {},
         f'{key}: "true" is taken as off; expected on or off'),
        ("ranges", {"security-groups": own[0]}, {"loadBalancerSourceRanges": ["10.0.0.0/8"]},
         f"spec.loadBalancerSourceRanges: {rules}"),
        ("classic", {"extra-security-groups": own[0]}, {},
         f"{ANNOTATION}extra-security-groups: is ignored; it applies to Classic load balancers only"),
    )  # fmt: skip
    assert_warned(cluster, warnings)

    # What did not exist is found as soon as it does and the Service is looked at.
    db = account.ec2.create_security_group(
        GroupName="db", Description="theirs", VpcId=account.names["vpc"],
        TagSpecifications=[{"ResourceType": "security-group", "Tags": [{"Key": "Name", "Value": "db"}]}],
    )["GroupId"]  # fmt: skip
    [name] = [f"wrong-{number}" for number, mistake in enumerate(mistakes) if mistake.value == "db"]
    cluster.patch(name, {"metadata": {"annotations": {ANNOTATION + "scheme": "internal"}}})
    assert balancer(account, cluster.wait_hostname(name))["SecurityGroups"] == [db]


def test_ranges_of_both_families_and_a_list_of_each(cluster, account, weir, lists):
    """Each source to each port, ICMP of its family; the families' rules are counted apart."""
    account.workers.add_ipv6(account.names["vpc"], account.names["subnets"])
    weir(CALM)
    asked = {
        "ip-address-type": "dualstack",
        "security-group-prefix-lists": f"{lists['many']},{lists['v6']}",
        "enable-icmp-for-path-mtu-discovery": "off",
    }
    key = "service.beta.kubernetes.io/load-balancer-source-ranges"
    ranges = {key: "10.0.0.0/8, 2001:db8::/32"}
    cluster.expose("order", annotations={ANNOTATION + name: value for name, value in asked.items()} | ranges)
    cluster.wait_hostname("order")
    sources = {"10.0.0.0/8", "2001:db8::/32", lists["many"], lists["v6"]}
    rules = {("tcp", 80, 80, each) for each in sources}
    wait_for(lambda: inbound(group(account, "frontend-group")) == rules, 10, "the rules")
    wait_rest(account)
    mark = account.mark()
    cluster.patch("order", {"metadata": {"annotations": {ANNOTATION + "enable-icmp-for-path-mtu-discovery": "on"}}})
    assert "needs 120 inbound rules" in note(cluster, "order", "InvalidConfiguration")
    assert writes(account, mark) == [] and inbound(group(account, "frontend-group")) == rules
