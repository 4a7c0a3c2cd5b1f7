"""Somebody changes AWS behind weir's back: the next drift check puts it right."""

from __future__ import annotations

from math import ceil

import pytest

from sandbox.checks import (
    ANNOTATION,
    attached,
    balancer,
    balancers,
    counted,
    group,
    is_served,
    listeners,
    node_rules,
    note,
    rules,
    serve,
    tags,
    target_groups,
    target_of,
    targets,
    wait_drift_checks,
    wait_nothing_left,
    wait_rest,
    writes,
)
from sandbox.process import wait_for

FAST = "--drift-interval=1s"
#: Reads of what AWS shows one at a time, which the slow walk does.
WALK = ("Attributes", "Certificates", "Reservation")


def arn_of(account, hostname: str) -> str:
    return balancer(account, hostname)["LoadBalancerArn"]


def test_r50_a_load_balancer_deleted_in_the_console_is_made_again(cluster, account, weir):
    """R50: the status gets the new hostname. It takes two readings, since a describe may lag behind a create."""
    weir()
    old = serve(cluster, account)
    account.elbv2.delete_load_balancer(LoadBalancerArn=arn_of(account, old))
    wait_for(lambda: cluster.hostname("order") not in (None, old), 30, "another hostname")
    new = cluster.hostname("order")
    wait_for(lambda: is_served(account, new), 15, "it to be served")
    assert len(balancers(account)) == len(target_groups(account)) == 1


def test_one_reading_that_misses_a_load_balancer_makes_no_second_one(cluster, account, weir):
    """A describe that lags: missed once is not gone."""
    weir(FAST)
    hostname = serve(cluster, account)
    arn = arn_of(account, hostname)
    mark = account.mark()
    name = balancer(account, hostname)["LoadBalancerName"]
    # A listing without it, once: the load balancer is renamed away for one reading by hiding its cluster tag.
    cluster_tag = {"Key": "weir.dev/cluster", "Value": account.cluster}
    account.elbv2.remove_tags(ResourceArns=[arn], TagKeys=[cluster_tag["Key"]])
    wait_drift_checks(account, 1)
    account.elbv2.add_tags(ResourceArns=[arn], Tags=[cluster_tag])
    wait_drift_checks(account, 3)
    created = [call for call in writes(account, mark) if call["operation"] == "CreateLoadBalancer"]
    assert created == [] and [lb["LoadBalancerName"] for lb in balancers(account)] == [name]


def test_r50_a_deleted_listener_comes_back(cluster, account, weir):
    weir(FAST)
    hostname = serve(cluster, account)
    arn = arn_of(account, hostname)
    [before] = listeners(account, arn).values()
    mark = account.mark()
    account.elbv2.delete_listener(ListenerArn=before["ListenerArn"])
    wait_for(lambda: set(listeners(account, arn)) == {80}, 20, "the listener")
    [after] = listeners(account, arn).values()
    assert target_of(after) == target_of(before)
    wait_rest(account)
    assert counted(writes(account, mark)) == {"CreateListener": 1}
    assert cluster.hostname("order") == hostname


def test_r50_a_listener_pointed_elsewhere_comes_back(cluster, account, weir):
    """The target group it was pointed at is not ours, and stays."""
    weir(FAST)
    hostname = serve(cluster, account)
    arn = arn_of(account, hostname)
    [before] = listeners(account, arn).values()
    theirs = account.elbv2.create_target_group(
        Name="theirs", Protocol="TCP", Port=9999, VpcId=account.names["vpc"], TargetType="instance"
    )["TargetGroups"][0]["TargetGroupArn"]
    mark = account.mark()
    account.elbv2.modify_listener(
        ListenerArn=before["ListenerArn"], DefaultActions=[{"Type": "forward", "TargetGroupArn": theirs}]
    )
    wait_for(lambda: target_of(listeners(account, arn)[80]) == target_of(before), 20, "the listener to come back")
    wait_rest(account)
    assert counted(writes(account, mark)) == {"ModifyListener": 1}
    assert theirs in {tg["TargetGroupArn"] for tg in target_groups(account)}


def test_r51_a_foreign_listener_is_removed_and_announced(cluster, account, weir):
    """R51: one behaviour at all times; the Event names port and ARN."""
    weir(FAST)
    hostname = serve(cluster, account)
    arn = arn_of(account, hostname)
    [ours] = listeners(account, arn).values()
    foreign = account.elbv2.create_listener(
        LoadBalancerArn=arn,
        Protocol="TCP",
        Port=9000,
        DefaultActions=[{"Type": "forward", "TargetGroupArn": target_of(ours)}],
    )["Listeners"][0]["ListenerArn"]
    wait_for(lambda: set(listeners(account, arn)) == {80}, 20, "the foreign listener to go")
    assert listeners(account, arn)[80]["ListenerArn"] == ours["ListenerArn"]
    told = [note for _, note in cluster.events("order") if foreign in note]
    assert len(told) == 1 and "9000" in told[0]


def test_r32_what_somebody_undoes_again_and_again_is_left_alone_for_a_while(cluster, account, weir):
    """R32: two controllers at odds do not write for ever. An edit of the Service is a new word."""
    weir(FAST)
    hostname = serve(cluster, account, annotations={ANNOTATION + "additional-resource-tags": "team=a"})
    arn = arn_of(account, hostname)
    for _ in range(2):
        account.elbv2.remove_tags(ResourceArns=[arn], TagKeys=["team"])
        wait_for(lambda: tags(account, arn).get("team") == "a", 20, "the tag")
    mark = account.mark()
    account.elbv2.remove_tags(ResourceArns=[arn], TagKeys=["team"])
    sentence = note(cluster, "order", "Contested")
    assert f"tag {balancer(account, hostname)['LoadBalancerName']} with team" in sentence, sentence
    wait_drift_checks(account, 2)
    assert counted(writes(account, mark)) == {}
    cluster.patch("order", {"metadata": {"annotations": {ANNOTATION + "additional-resource-tags": "team=b"}}})
    wait_for(lambda: tags(account, arn).get("team") == "b", 20, "the tag after an edit")


def test_rules_of_the_nodes_that_somebody_takes_away_again_and_again_are_left_alone_too(cluster, account, weir):
    """They are every Service's: each is told, and none is held up."""
    weir(FAST)
    serve(cluster, account)

    def rules() -> list[dict]:
        identifier = account.names["node_security_group"]
        [group] = account.ec2.describe_security_groups(GroupIds=[identifier])["SecurityGroups"]
        return group["IpPermissions"]

    def take_away() -> None:
        account.ec2.revoke_security_group_ingress(GroupId=account.names["node_security_group"], IpPermissions=rules())

    take_away()
    wait_for(rules, 20, "the rules")
    take_away()
    assert "somebody has undone this twice within 10 minutes" in note(cluster, "order", "Contested")
    cluster.expose("another")
    cluster.wait_hostname("another")
    wait_drift_checks(account, 2)
    assert rules() == []


def test_r50_a_deleted_target_group_is_made_again(cluster, account, weir):
    """With everything that hangs on it taken off first, as AWS demands."""
    weir(FAST)
    hostname = serve(cluster, account)
    arn = arn_of(account, hostname)
    [listener] = listeners(account, arn).values()
    gone = target_of(listener)
    account.elbv2.delete_listener(ListenerArn=listener["ListenerArn"])
    account.autoscaling.detach_traffic_sources(
        AutoScalingGroupName="workers", TrafficSources=[{"Identifier": gone, "Type": "elbv2"}]
    )
    account.elbv2.delete_target_group(TargetGroupArn=gone)

    def healed() -> bool:
        found = listeners(account, arn)
        return set(found) == {80} and gone not in {tg["TargetGroupArn"] for tg in target_groups(account)}

    wait_for(healed, 30, "listener and target group")
    wait_for(lambda: is_served(account, hostname), 20, "it to be served")
    assert len(target_groups(account)) == 1


def test_r16_a_detached_target_group_is_attached_again(cluster, account, weir):
    """R16: within one drift check; after the third time one Event names the Auto Scaling group."""
    weir(FAST)
    hostname = serve(cluster, account)
    [arn] = attached(account)
    for _ in range(3):
        account.autoscaling.detach_traffic_sources(
            AutoScalingGroupName="workers", TrafficSources=[{"Identifier": arn, "Type": "elbv2"}]
        )
        wait_for(lambda: is_served(account, hostname), 20, "it to be attached and served")
        wait_rest(account)

    def told() -> list[str]:
        return [note for _, note in cluster.events("order") if "workers" in note and "something else" in note]

    wait_for(told, 15, "an Event about the Auto Scaling group")
    assert len(told()) == 1


@pytest.mark.parametrize("change", ["revoked", "added"])
def test_r50_a_rule_of_the_frontend_group_is_restored(cluster, account, weir, change):
    weir(FAST)
    serve(cluster, account)
    frontend = group(account, "frontend-group")
    before, mark = rules(frontend), account.mark()
    if change == "revoked":
        account.ec2.revoke_security_group_ingress(
            GroupId=frontend["GroupId"], IpPermissions=[rule(80, "0.0.0.0/0")]
        )
    else:
        account.ec2.authorize_security_group_ingress(
            GroupId=frontend["GroupId"], IpPermissions=[rule(22, "0.0.0.0/0")]
        )
    wait_for(lambda: rules(group(account, "frontend-group")) == before, 20, "the rules to be restored")
    wait_rest(account)
    operation = {"revoked": "AuthorizeSecurityGroupIngress", "added": "RevokeSecurityGroupIngress"}[change]
    assert counted(writes(account, mark)) == {operation: 1}


def rule(port: int, source: str) -> dict[str, object]:
    return {"IpProtocol": "tcp", "FromPort": port, "ToPort": port, "IpRanges": [{"CidrIp": source}]}


def test_r50_the_groups_of_a_load_balancer_are_restored(cluster, account, weir):
    weir(FAST)
    hostname = serve(cluster, account)
    lb = balancer(account, hostname)
    mark = account.mark()
    account.elbv2.set_security_groups(
        LoadBalancerArn=lb["LoadBalancerArn"], SecurityGroups=[account.names["node_security_group"]]
    )
    wait_for(
        lambda: set(balancer(account, hostname)["SecurityGroups"]) == set(lb["SecurityGroups"]), 20, "the groups"
    )
    wait_rest(account)
    assert counted(writes(account, mark)) == {"SetSecurityGroups": 1}


def zones(account, hostname: str) -> set[str]:
    return {zone["SubnetId"] for zone in balancer(account, hostname)["AvailabilityZones"]}


def test_r50_a_zone_taken_away_comes_back(cluster, account, weir):
    """R39, R50."""
    weir(FAST)
    hostname = serve(cluster, account)
    subnets = account.names["subnets"]
    mark = account.mark()
    account.elbv2.set_subnets(LoadBalancerArn=arn_of(account, hostname), Subnets=subnets[:2])
    wait_for(lambda: zones(account, hostname) == set(subnets), 20, "the third zone")
    wait_rest(account)
    assert counted(writes(account, mark)) == {"SetSubnets": 1}


def test_r35_another_subnet_of_the_same_zone(cluster, account, weir):
    """R35: a zone is left out and put back, since AWS swaps none; with one zone only it is refused."""
    weir("--drift-interval=2s")
    a, b, c = account.names["subnets"]
    other = account.workers.add_subnet(
        account.names["vpc"], account.names["zones"][0], "10.0.96.0/20", account.names["route_table"]
    )
    key = ANNOTATION + "subnets"
    hostname = serve(cluster, account, annotations={key: f"{a},{b},{c}"})
    mark = account.mark()
    cluster.patch("order", {"metadata": {"annotations": {key: f"{other},{b},{c}"}}})
    wait_for(lambda: zones(account, hostname) == {other, b, c}, 20, "the swapped subnet")
    calls = [call["request"] for call in writes(account, mark) if call["operation"] == "SetSubnets"]
    sets = [{mapping["SubnetId"] for mapping in request["SubnetMappings"]} for request in calls]
    assert sets == [{b, c}, {other, b, c}]
    told = note(cluster, "order", "SubnetsChanging")
    assert f"{a} to {other} in {account.names['zones'][0]}" in told

    cluster.patch("order", {"metadata": {"annotations": {key: b}}})
    wait_for(lambda: zones(account, hostname) == {b}, 20, "one zone only")
    wait_rest(account)
    mark = account.mark()
    second = account.workers.add_subnet(
        account.names["vpc"], account.names["zones"][1], "10.0.112.0/20", account.names["route_table"]
    )
    wait_drift_checks(account, 2)
    cluster.patch("order", {"metadata": {"annotations": {key: second}}})
    words = "would leave the load balancer without any"
    wait_for(lambda: any(words in text for _, text in cluster.events("order")), 15, "an Event about the only zone")
    assert counted(writes(account, mark)) == {}
    assert zones(account, hostname) == {b}


def test_r50_tags_are_restored(cluster, account, weir):
    """All but the one that proves ownership: without that it is not ours to touch."""
    weir(FAST)
    key = ANNOTATION + "additional-resource-tags"
    hostname = serve(cluster, account, annotations={key: "team=blue"})
    arns = [arn_of(account, hostname), *(tg["TargetGroupArn"] for tg in target_groups(account))]
    before = [tags(account, arn) for arn in arns]
    account.elbv2.remove_tags(ResourceArns=arns, TagKeys=["team"])
    account.elbv2.add_tags(ResourceArns=arns, Tags=[{"Key": "weir.dev/resource", "Value": "nonsense"}])
    wait_for(lambda: [tags(account, arn) for arn in arns] == before, 20, "the tags")
    frontend = group(account, "frontend-group")
    account.ec2.delete_tags(Resources=[frontend["GroupId"]], Tags=[{"Key": "team"}])
    team = {"Key": "team", "Value": "blue"}
    wait_for(lambda: team in group(account, "frontend-group")["Tags"], 20, "the group's tag")


def test_r50_health_check_is_restored(cluster, account, weir):
    weir(FAST)
    serve(cluster, account)
    [tg] = target_groups(account)
    mark = account.mark()
    account.elbv2.modify_target_group(TargetGroupArn=tg["TargetGroupArn"], HealthCheckPort="9999")
    wait_for(lambda: target_groups(account)[0]["HealthCheckPort"] == "10256", 20, "the health check")
    wait_rest(account)
    assert counted(writes(account, mark)) == {"ModifyTargetGroup": 1}


def test_r50_a_rule_of_the_nodes_is_restored(cluster, account, weir):
    """Rules that do not name our group are somebody else's and stay."""
    weir(FAST)
    serve(cluster, account)
    before = node_rules(account)
    node, backend = account.names["node_security_group"], group(account, "backend-group")["GroupId"]
    account.ec2.authorize_security_group_ingress(GroupId=node, IpPermissions=[rule(22, "192.0.2.0/24")])
    range_of_ports = {"IpProtocol": "tcp", "FromPort": 30000, "ToPort": 32767}
    account.ec2.revoke_security_group_ingress(
        GroupId=node, IpPermissions=[{**range_of_ports, "UserIdGroupPairs": [{"GroupId": backend}]}]
    )
    wait_for(lambda: node_rules(account) == before | {("tcp", 22, 22, "192.0.2.0/24")}, 20, "the node rule")


def test_r10_a_load_balancer_deleted_by_hand_then_its_service(cluster, account, weir):
    """R10: what does not hang on a load balancer any more goes all the same, without an error."""
    weir("--drift-interval=1h")
    hostname = serve(cluster, account)
    account.elbv2.delete_load_balancer(LoadBalancerArn=arn_of(account, hostname))
    cluster.delete("order")
    cluster.wait_gone("order")
    wait_nothing_left(account)
    assert attached(account) == set()
    assert not [note for reason, note in cluster.events("order") if reason.startswith("Aws")]


def test_r10_all_deleted_by_hand_while_weir_is_down(cluster, account, weir):
    first = weir()
    hostname = serve(cluster, account)
    assert first.stop() == 0
    account.elbv2.delete_load_balancer(LoadBalancerArn=arn_of(account, hostname))
    cluster.delete("order")
    weir()
    cluster.wait_gone("order")
    wait_nothing_left(account)


def test_d8_a_drift_interval_is_a_handful_of_reads(cluster, account, weir):
    """D8: so many calls, in the check and in the walk, that a hundred Services cost forty; no write and no Event."""
    count, checks = 20, 3
    names = [f"order-{number}" for number in range(count)]
    weir("--drift-interval=4s")
    for name in names:
        cluster.expose(name)
    for name in names:
        cluster.wait_hostname(name)
    wait_for(lambda: len(attached(account)) == len(names), 20, "all to be attached")
    wait_rest(account)
    # Readings soon after a write follow one another faster.
    wait_drift_checks(account, 2)
    events = [cluster.events(name) for name in names]
    mark = account.mark()
    wait_drift_checks(account, checks)
    made = counted(account.calls(mark))
    assert counted(writes(account, mark)) == {}
    per_check = lambda *operations: sum(made.pop(name) for name in operations) / checks  # noqa: E731
    # Twenty ARNs a call, or four load balancers and target groups in turn.
    assert per_check("DescribeTags") == 2 * count / 20
    assert per_check("DescribeListeners") == 4 + ceil((count - 4) / 20)
    assert per_check("DescribeTargetHealth") == 4
    # A turn may lie on either side of a check.
    walked = sum(made.pop(name) for name in list(made) if name.endswith(WALK))
    assert 6 * (checks - 1) <= walked <= 6 * (checks + 1)
    fixed = sum(made.values()) / checks
    of_a_hundred = 2 * 100 / 20 + 4 + ceil(96 / 20) + 4 + 9 + fixed
    assert of_a_hundred <= 40, made
    assert [cluster.events(name) for name in names] == events
    assert all(targets(account, arn) == set(account.names["instances"]) for arn in attached(account))
