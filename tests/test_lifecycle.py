"""The main job: a Service gets a load balancer through the Auto Scaling group, keeps it right, and gives it back."""

from __future__ import annotations

import pytest

from sandbox.checks import (
    ANNOTATION,
    CALM,
    FINALIZER,
    NOTHING,
    attached,
    balancer,
    balancers,
    counted,
    group,
    is_served,
    left_in_aws,
    listeners,
    node_rules,
    rules,
    serve,
    tags,
    target_group,
    target_groups,
    target_of,
    targets,
    wait_drift_checks,
    wait_nothing_left,
    wait_rest,
    writes,
)
from sandbox.process import wait_for


def ports(*rows: tuple[str, int, str] | tuple[str, int, str, int]) -> list[dict[str, object]]:
    """A Service's ports from (name, port, protocol) and perhaps a nodePort."""
    return [
        {"name": name, "port": port, "protocol": protocol, "targetPort": 8080}
        | ({"nodePort": rest[0]} if rest else {})
        for name, port, protocol, *rest in rows
    ]


def node_port(cluster, name: str, index: int = 0) -> int:
    return cluster.service(name)["spec"]["ports"][index]["nodePort"]


def the_listeners(account, hostname):
    return listeners(account, balancer(account, hostname)["LoadBalancerArn"])


def patch_finalizers(cluster, name: str, finalizers: list[str] | None) -> None:
    cluster.patch(name, {"metadata": {"finalizers": finalizers}})


def test_create_makes_all_of_it_and_delete_leaves_nothing(cluster, account, weir):
    """The story of the tutorial, on the cloud's side; D3, D5, D6, D9."""
    weir()
    hostname = serve(cluster, account)
    service = cluster.service("order")
    lb = balancer(account, hostname)
    assert lb["Type"] == "network" and lb["Scheme"] == "internet-facing"
    assert {zone["SubnetId"] for zone in lb["AvailabilityZones"]} == set(account.names["subnets"])
    frontend, backend = group(account, "frontend-group"), group(account, "backend-group")
    assert set(lb["SecurityGroups"]) == {frontend["GroupId"], backend["GroupId"]}
    assert rules(frontend) == {("tcp", 80, 80, "0.0.0.0/0")}
    assert node_rules(account) == {
        ("tcp", 30000, 32767, backend["GroupId"]),
        ("udp", 30000, 32767, backend["GroupId"]),
        ("tcp", 10256, 10256, backend["GroupId"]),
    }

    [(port, listener)] = the_listeners(account, hostname).items()
    assert (port, listener["Protocol"]) == (80, "TCP")
    tg = target_group(account, target_of(listener))
    assert (tg["Protocol"], tg["Port"], tg["TargetType"]) == ("TCP", node_port(cluster, "order"), "instance")
    check = tg["HealthCheckProtocol"], tg["HealthCheckPort"], tg["HealthCheckPath"]
    assert check == ("HTTP", "10256", "/healthz")
    assert attached(account) == {tg["TargetGroupArn"]}
    assert targets(account, tg["TargetGroupArn"]) == set(account.names["instances"])

    owner = {
        "weir.dev/cluster": account.cluster,
        "weir.dev/cluster-uid": cluster.kube.get("/api/v1/namespaces/kube-system")["metadata"]["uid"],
        "weir.dev/service": f"{cluster.namespace}/order",
        "weir.dev/service-uid": service["metadata"]["uid"],
    }
    for arn, role in (
        (lb["LoadBalancerArn"], "load-balancer"),
        (tg["TargetGroupArn"], "target-group"),
        (listener["ListenerArn"], "listener"),
    ):
        assert tags(account, arn) == {**owner, "weir.dev/resource": role}

    [ingress] = service["status"]["loadBalancer"]["ingress"]
    assert ingress == {"hostname": hostname, "ports": [{"port": 80, "protocol": "TCP"}]}
    assert service["metadata"]["finalizers"] == [FINALIZER]
    notes = [note for reason, note in cluster.events("order") if reason == "LoadBalancerReady"]
    assert notes == [f"load balancer {lb['LoadBalancerName']} is reachable at {hostname}"]

    cluster.delete("order")
    cluster.wait_gone("order")
    wait_nothing_left(account)
    assert attached(account) == set()
    reasons = [reason for reason, _ in cluster.events("order")]
    assert reasons.count("LoadBalancerDeleted") == 1
    assert not [reason for reason in reasons if reason.startswith("Aws")], "no failure on the way"


def test_a_port_is_added_and_removed(cluster, account, weir):
    weir(CALM)
    hostname = serve(cluster, account)
    before = the_listeners(account, hostname)
    cluster.patch("order", {"spec": {"ports": ports(("main", 80, "TCP"), ("more", 443, "TCP"))}})
    wait_for(lambda: set(the_listeners(account, hostname)) == {80, 443}, 15, "two listeners")
    wait_for(lambda: is_served(account, hostname), 15, "both to be served")
    assert the_listeners(account, hostname)[80] == before[80], "the first one is left alone"
    assert {rule[1] for rule in rules(group(account, "frontend-group"))} == {80, 443}
    wait_for(lambda: len(cluster.service("order")["status"]["loadBalancer"]["ingress"][0]["ports"]) == 2, 10, "status")

    cluster.patch("order", {"spec": {"ports": ports(("main", 80, "TCP"))}})
    wait_for(lambda: len(target_groups(account)) == 1, 15, "the second target group to go")
    assert the_listeners(account, hostname) == before
    assert attached(account) == {target_of(before[80])}
    assert rules(group(account, "frontend-group")) == {("tcp", 80, 80, "0.0.0.0/0")}
    assert cluster.hostname("order") == hostname


def test_a_port_number_is_changed(cluster, account, weir):
    weir(CALM)
    hostname = serve(cluster, account)
    number = node_port(cluster, "order")
    cluster.patch("order", {"spec": {"ports": ports(("main", 81, "TCP", number))}})
    wait_for(lambda: set(the_listeners(account, hostname)) == {81}, 15, "the listener on 81 alone")
    wait_for(lambda: len(target_groups(account)) == 1 and is_served(account, hostname), 15, "it to be served")
    assert rules(group(account, "frontend-group")) == {("tcp", 81, 81, "0.0.0.0/0")}
    [ingress] = cluster.service("order")["status"]["loadBalancer"]["ingress"]
    assert ingress["ports"] == [{"port": 81, "protocol": "TCP"}]


def test_r37_a_node_port_is_changed_under_traffic(cluster, account, weir):
    """R37: listener and hostname stay; the new target group has its targets before the listener moves to it."""
    weir(CALM)
    hostname = serve(cluster, account)
    [before] = the_listeners(account, hostname).values()
    number = 30081 if node_port(cluster, "order") != 30081 else 30082
    mark = account.mark()
    cluster.patch("order", {"spec": {"ports": ports(("main", 80, "TCP", number))}})
    wait_for(lambda: [tg["Port"] for tg in target_groups(account)] == [number], 20, "only the new target group")
    wait_rest(account)
    [after] = the_listeners(account, hostname).values()
    assert after["ListenerArn"] == before["ListenerArn"]
    assert target_of(after) != target_of(before)
    assert cluster.hostname("order") == hostname
    assert is_served(account, hostname) and attached(account) == {target_of(after)}
    order = [call["operation"] for call in writes(account, mark)]
    assert order == [
        "CreateTargetGroup",
        "AttachTrafficSources",
        "ModifyListener",
        "DetachTrafficSources",
        "DeleteTargetGroup",
    ]


def test_r42_a_udp_service(cluster, account, weir):
    """R42: a UDP target group is checked by HTTP on the node."""
    weir(CALM)
    hostname = serve(cluster, account, ports=ports(("log", 514, "UDP")))
    [listener] = the_listeners(account, hostname).values()
    tg = target_group(account, target_of(listener))
    assert (listener["Protocol"], tg["Protocol"]) == ("UDP", "UDP")
    assert (tg["HealthCheckProtocol"], tg["HealthCheckPort"]) == ("HTTP", "10256")
    assert rules(group(account, "frontend-group")) == {("udp", 514, 514, "0.0.0.0/0")}


def test_r41_tcp_and_udp_share_a_listener(cluster, account, weir):
    """R41: 53/TCP and 53/UDP on one NodePort are one TCP_UDP listener, and both are in the status."""
    weir(CALM)
    both = ports(("tcp", 53, "TCP", 30153), ("udp", 53, "UDP", 30153))
    hostname = serve(cluster, account, "dns", ports=both)
    [listener] = the_listeners(account, hostname).values()
    [tg] = target_groups(account)
    assert listener["Protocol"] == tg["Protocol"] == "TCP_UDP"
    assert rules(group(account, "frontend-group")) == {("tcp", 53, 53, "0.0.0.0/0"), ("udp", 53, 53, "0.0.0.0/0")}
    [ingress] = cluster.service("dns")["status"]["loadBalancer"]["ingress"]
    assert {(port["port"], port["protocol"]) for port in ingress["ports"]} == {(53, "TCP"), (53, "UDP")}


def test_source_ranges_are_changed(cluster, account, weir):
    weir(CALM)
    serve(cluster, account, loadBalancerSourceRanges=["192.0.2.0/24"])
    assert rules(group(account, "frontend-group")) == {("tcp", 80, 80, "192.0.2.0/24")}
    mark = account.mark()
    cluster.patch("order", {"spec": {"loadBalancerSourceRanges": ["198.51.100.0/24", "203.0.113.7/32"]}})
    wanted = {("tcp", 80, 80, "198.51.100.0/24"), ("tcp", 80, 80, "203.0.113.7/32")}
    wait_for(lambda: rules(group(account, "frontend-group")) == wanted, 15, "the new ranges alone")
    cluster.patch("order", {"spec": {"loadBalancerSourceRanges": None}})
    everyone = {("tcp", 80, 80, "0.0.0.0/0")}
    wait_for(lambda: rules(group(account, "frontend-group")) == everyone, 15, "everyone to be let in")
    operations = {"AuthorizeSecurityGroupIngress": 2, "RevokeSecurityGroupIngress": 2}
    assert counted(writes(account, mark)) == operations


def test_r37_policy_local_and_back(cluster, account, weir):
    """R37: one ModifyTargetGroup each way."""
    weir(CALM)
    hostname = serve(cluster, account)
    mark = account.mark()

    def health_port() -> str:
        [tg] = target_groups(account)
        return tg["HealthCheckPort"]

    cluster.patch("order", {"spec": {"externalTrafficPolicy": "Local"}})
    local = str(cluster.service("order")["spec"]["healthCheckNodePort"])
    wait_for(lambda: health_port() == local, 15, "checks on the healthCheckNodePort")
    cluster.patch("order", {"spec": {"externalTrafficPolicy": "Cluster"}})
    wait_for(lambda: health_port() == "10256", 15, "checks on 10256")
    wait_rest(account)
    assert counted(writes(account, mark)) == {"ModifyTargetGroup": 2}
    assert cluster.hostname("order") == hostname


def test_a_bare_kubectl_expose_gets_the_class_and_a_load_balancer(cluster, account, weir, installed):
    """D1: the MutatingAdmissionPolicy sets the class."""
    weir(CALM)
    node = cluster.kube.list("/api/v1/nodes")[0]["metadata"]["name"]
    cluster.run_pod("order", node, "10.244.0.5", {"app": "order"})
    expose = ("expose", "pod", "order", "--type=LoadBalancer", "--port=80", "--target-port=8080")
    cluster.control_plane.kubectl("-n", cluster.namespace, *expose)
    assert cluster.service("order")["spec"]["loadBalancerClass"] == "weir.dev/nlb"
    cluster.wait_hostname("order")


def test_a_service_without_a_class_is_served_where_weir_claims_it(cluster, account, weir):
    """D1: without the policy, which an API server before 1.36 does not know, --claim-classless stands in for it."""
    without = {"labels": {"weir.dev/class": "none"}, "loadBalancerClass": None}
    cluster.expose("order", **without)
    first = weir(CALM)
    cluster.expose("ours")
    cluster.wait_hostname("ours")
    assert not cluster.service("order")["metadata"].get("finalizers") and cluster.events("order") == []
    first.stop()
    weir(CALM, "--claim-classless")
    cluster.expose("theirs", loadBalancerClass="example.com/other")
    cluster.wait_hostname("order")
    assert "loadBalancerClass" not in cluster.service("order")["spec"]
    assert not cluster.service("theirs")["metadata"].get("finalizers")
    for name in ("order", "ours"):
        cluster.delete(name)
        cluster.wait_gone(name)
    wait_nothing_left(account)


def test_a_node_port_service_becomes_a_load_balancer_and_a_cluster_ip(cluster, account, weir, installed):
    """D1, R5: the class is set on the edit, and all goes when the type does."""
    weir(CALM)
    cluster.expose("order", type="NodePort", loadBalancerClass=None)
    cluster.patch("order", {"spec": {"type": "LoadBalancer"}})
    cluster.wait_hostname("order")
    cluster.patch("order", {"spec": {"type": "ClusterIP", "loadBalancerClass": None}})
    wait_for(lambda: not cluster.service("order")["metadata"].get("finalizers"), 30, "the finalizer to go")
    wait_nothing_left(account)
    assert cluster.hostname("order") is None
    assert not [note for reason, note in cluster.events("order") if reason.startswith("Aws")]


def test_r5_the_type_changes_while_weir_is_down(cluster, account, weir):
    """R5."""
    first = weir()
    serve(cluster, account)
    assert first.stop() == 0
    cluster.patch("order", {"spec": {"type": "ClusterIP", "loadBalancerClass": None}})
    weir()
    wait_for(lambda: not cluster.service("order")["metadata"].get("finalizers"), 30, "the finalizer to go")
    wait_nothing_left(account)


def test_a_service_deleted_while_weir_is_down(cluster, account, weir):
    first = weir()
    serve(cluster, account)
    assert first.stop() == 0
    cluster.delete("order")
    weir()
    cluster.wait_gone("order")
    wait_nothing_left(account)


def test_a_foreign_class_is_left_alone(cluster, account, weir):
    """D1: no finalizer, no Event, no call."""
    weir(CALM)
    mark = account.mark()
    cluster.expose("theirs", loadBalancerClass="example.com/other")
    cluster.expose("ours")
    cluster.wait_hostname("ours")
    theirs = cluster.service("theirs")
    assert not theirs["metadata"].get("finalizers") and not theirs["status"]["loadBalancer"]
    assert cluster.events("theirs") == []
    assert [call for call in writes(account, mark) if f"{cluster.namespace}/theirs" in str(call["request"])] == []


def test_d7_nothing_is_written_when_nothing_changed(cluster, account, weir):
    """D7, R57: a touched Service, drift checks and a restart make no write and no Event. Names of ports and what only
    nodes look at are nothing to AWS."""
    first = weir("--drift-interval=1s")
    serve(cluster, account)
    mark, events = account.mark(), cluster.events("order")
    cluster.patch("order", {"metadata": {"labels": {"touched": "yes"}}})
    [port] = cluster.service("order")["spec"]["ports"]
    renamed = port | {"name": "renamed", "targetPort": 9090, "appProtocol": "http"}
    elsewhere = {"internalTrafficPolicy": "Local", "publishNotReadyAddresses": True, "externalIPs": ["192.0.2.7"]}
    cluster.patch("order", {"spec": {"ports": [renamed], "selector": {"app": "other"}, **elsewhere}})
    wait_drift_checks(account, 2)
    assert first.stop() == 0
    weir("--drift-interval=1s")
    wait_drift_checks(account, 3)
    assert counted(writes(account, mark)) == {}
    assert cluster.events("order") == events


def delete_by_force(cluster, account, weir):
    """A Service that was served goes without its finalizer while weir is down."""
    first = weir()
    serve(cluster, account)
    assert first.stop() == 0
    patch_finalizers(cluster, "order", None)
    cluster.delete("order")
    cluster.wait_gone("order")


def test_r6_the_finalizer_comes_back(cluster, account, weir):
    """R6: within five seconds, and without a call to AWS."""
    weir(CALM)
    serve(cluster, account)
    mark = account.mark()
    patch_finalizers(cluster, "order", None)
    wait_for(lambda: cluster.service("order")["metadata"].get("finalizers") == [FINALIZER], 5, "the finalizer")
    assert account.calls(mark) == []


def test_r6_what_a_forced_deletion_leaves_is_collected(cluster, account, weir):
    """R6: the finalizer is taken off while weir is down, so that nobody tells it of the deletion."""
    delete_by_force(cluster, account, weir)
    assert left_in_aws(account) != NOTHING
    weir()
    wait_nothing_left(account)


def test_another_cluster_of_the_same_name_keeps_what_it_owns(cluster, account, weir):
    """Its Services are unknown here, as those of a forced deletion are; the cluster's id tells the two cases apart."""
    delete_by_force(cluster, account, weir)
    arns = [row["LoadBalancerArn"] for row in balancers(account)]
    arns += [row["TargetGroupArn"] for row in target_groups(account)]
    theirs = {"Key": "weir.dev/cluster-uid", "Value": "00000000-0000-0000-0000-000000000000"}
    account.elbv2.add_tags(ResourceArns=arns, Tags=[theirs])
    groups = [group(account, role)["GroupId"] for role in ("frontend-group", "backend-group")]
    account.ec2.create_tags(Resources=groups, Tags=[theirs])
    before, listed, mark = left_in_aws(account), attached(account), account.mark()
    second = weir("--drift-interval=1s")
    wait_drift_checks(account, 3)
    assert counted(writes(account, mark)) == {}
    assert (left_in_aws(account), attached(account)) == (before, listed)
    assert [line for line in second.log() if "another cluster has this one's name" in str(line)]


@pytest.mark.parametrize("removed", ["early", "late"])
def test_r58_the_finalizer_of_the_cloud_controller_is_not_ours(cluster, account, weir, removed):
    """R58: it may be there, and go at any moment; the clean-up is complete all the same."""
    foreign = "service.kubernetes.io/load-balancer-cleanup"
    weir(CALM)
    serve(cluster, account)
    patch_finalizers(cluster, "order", [foreign, FINALIZER])
    if removed == "early":
        patch_finalizers(cluster, "order", [FINALIZER])
        cluster.delete("order")
    else:
        cluster.delete("order")
        wait_for(lambda: cluster.service("order")["metadata"]["finalizers"] == [foreign], 20, "ours alone to go")
        patch_finalizers(cluster, "order", None)
    cluster.wait_gone("order")
    wait_nothing_left(account)


def test_a_service_made_again_gets_a_load_balancer_of_its_own(cluster, account, weir):
    """D4: the UID decides, not the name."""
    weir(CALM)
    first = serve(cluster, account)
    cluster.delete("order")
    cluster.wait_gone("order")
    second = serve(cluster, account)
    assert second != first
    [lb] = balancers(account)
    assert tags(account, lb["LoadBalancerArn"])["weir.dev/service-uid"] == cluster.service("order")["metadata"]["uid"]
    assert len(target_groups(account)) == 1


def test_r33_a_change_of_scheme_replaces_the_load_balancer(cluster, account, weir):
    """R33: the old one serves until the new one is active and has targets; the hostname changes once."""
    weir()
    old = serve(cluster, account)
    old_name = balancer(account, old)["LoadBalancerName"]
    account.localstack.settings(provision_seconds=3)
    mark = account.mark()
    cluster.patch("order", {"metadata": {"annotations": {ANNOTATION + "scheme": "internal"}}})
    wait_for(lambda: len(balancers(account)) == 2, 15, "the second load balancer")
    assert cluster.hostname("order") == old and is_served(account, old), "the old one serves meanwhile"
    seen = set()

    def replaced() -> bool:
        seen.add(cluster.hostname("order"))
        return len(balancers(account)) == 1 and len(target_groups(account)) == 1

    wait_for(replaced, 30, "the old one to go")
    [lb] = balancers(account)
    new = lb["DNSName"].lower()
    wait_for(lambda: cluster.hostname("order") == new, 10, "the new hostname")
    assert lb["Scheme"] == "internal" and seen <= {old, new}
    assert is_served(account, new)
    calls = writes(account, mark)
    assert counted(calls)["CreateLoadBalancer"] == counted(calls)["DeleteLoadBalancer"] == 1
    active = [call["n"] for call in calls if call["operation"] in ("AttachTrafficSources", "CreateListener")]
    assert max(active) < next(call["n"] for call in calls if call["operation"] == "DeleteLoadBalancer")
    told = " ".join(note for _, note in cluster.events("order"))
    assert old_name in told and lb["LoadBalancerName"] in told

    mark = account.mark()
    cluster.patch("order", {"metadata": {"annotations": {ANNOTATION + "scheme": None}}})
    wait_drift_checks(account, 2)
    assert counted(writes(account, mark)) == {}, "without the annotation the scheme stays"


def test_resource_tags_are_set_changed_and_removed(cluster, account, weir):
    """A tag of somebody else's stays through all of it."""
    weir("--drift-interval=1s")
    key = ANNOTATION + "additional-resource-tags"
    hostname = serve(cluster, account, annotations={key: "team=blue,cost=7"})
    lb = balancer(account, hostname)["LoadBalancerArn"]
    [tg] = [row["TargetGroupArn"] for row in target_groups(account)]

    def users() -> list[dict[str, str]]:
        rows = [tags(account, lb), tags(account, tg)]
        frontend = group(account, "frontend-group")["Tags"]
        rows.append({tag["Key"]: tag["Value"] for tag in frontend})
        return [{k: v for k, v in row.items() if not k.startswith("weir.dev/")} for row in rows]

    assert users() == [{"team": "blue", "cost": "7"}] * 3
    account.elbv2.add_tags(ResourceArns=[lb, tg], Tags=[{"Key": "audit", "Value": "theirs"}])
    cluster.patch("order", {"metadata": {"annotations": {key: "team=red"}}})
    theirs = {"audit": "theirs"}
    wanted = [{"team": "red", **theirs}, {"team": "red", **theirs}, {"team": "red"}]
    wait_for(lambda: users() == wanted, 15, "the tags to be changed")
    cluster.patch("order", {"metadata": {"annotations": {key: None}}})
    wait_for(lambda: users() == [theirs, theirs, {}], 15, "the tags to go")
    assert "weir.dev/managed-tags" not in tags(account, lb)


def test_d5_services_share_the_rules_of_the_nodes(cluster, account, weir):
    """D5, R29: the second Service adds none, and the first one's end takes none away."""
    weir(CALM)
    serve(cluster, account, "one")
    shared = node_rules(account)
    assert len(shared) == 3
    hostname = serve(cluster, account, "two")
    assert node_rules(account) == shared
    cluster.delete("one")
    cluster.wait_gone("one")
    wait_rest(account)
    assert node_rules(account) == shared
    assert is_served(account, hostname)
    cluster.delete("two")
    cluster.wait_gone("two")
    wait_nothing_left(account)


def test_d8_few_calls_for_many_services(cluster, account, weir):
    """D8: at most 8 AWS calls for each Service made, and 5 for each deleted."""
    count = 10
    weir(CALM)
    mark = account.mark()
    names = [f"order-{number}" for number in range(count)]
    for name in names:
        cluster.expose(name)
    for name in names:
        cluster.wait_hostname(name)
    wait_for(lambda: len(attached(account)) == count, 20, "all to be attached")
    wait_rest(account)
    made = account.calls(mark)
    mark = account.mark()
    for name in names:
        cluster.delete(name)
    for name in names:
        cluster.wait_gone(name)
    wait_nothing_left(account)
    gone = account.calls(mark)
    assert len(made) <= 8 * count, counted(made)
    assert len(gone) <= 5 * count, counted(gone)
