"""What a Service asks of its listeners: TLS, protocols, attributes; and how they change while clients use them."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox.checks import (
    ANNOTATION,
    CALM,
    attached,
    balancer,
    balancers,
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

POLICY = "ELBSecurityPolicy-TLS13-1-2-2021-06"
STRICT = "ELBSecurityPolicy-FS-1-2-Res-2020-10"
IDLE = "tcp.idle_timeout.seconds"
ATTRIBUTE = "listener-attributes.TCP-80"
MODIFY = {"ModifyListener": 1}
ADDED, MODIFIED, REMOVED = "AddListenerCertificates", "ModifyListener", "RemoveListenerCertificates"
BOTH = {"ports": [
    {"name": "web", "port": 80, "targetPort": 8080}, {"name": "tls", "port": 443, "targetPort": 8443},
]}  # fmt: skip


def dns(*protocols: str, node_port: int) -> dict[str, Any]:
    """A spec with port 53 of these protocols, through one NodePort."""
    ports = [{"name": each.lower(), "port": 53, "protocol": each, "nodePort": node_port} for each in protocols]
    return {"ports": ports}


@pytest.fixture
def certificates(account) -> list[str]:
    """ARNs of certificates that exist, in the order of their names."""
    acm = account.client("acm")
    return [acm.request_certificate(DomainName=f"{name}.example.org")["CertificateArn"] for name in "abc"]


def annotate(cluster, name: str, **values: str | None) -> None:
    keyed = {ANNOTATION + key.replace("_", "-"): value for key, value in values.items()}
    cluster.patch(name, {"metadata": {"annotations": keyed}})


def others(account, listener: str) -> set[str]:
    """The list of certificates. The default one is in it only where it is to be offered by its names like the rest."""
    rows = account.elbv2.describe_listener_certificates(ListenerArn=listener)["Certificates"]
    return {row["CertificateArn"] for row in rows if not row["IsDefault"]}


def listeners_of(cluster, account, name: str) -> dict[int, dict[str, Any]]:
    return listeners(account, balancer(account, cluster.wait_hostname(name))["LoadBalancerArn"])


def show(account, hostname: str) -> Shown:
    """Of each listener: its protocol, what belongs to TLS, its attribute and the protocol of its targets."""
    shown: Shown = {}
    for port, row in listeners(account, balancer(account, hostname)["LoadBalancerArn"]).items():
        arn, protocol = row["ListenerArn"], row["Protocol"]
        shown |= {port: protocol, f"{port} targets": target_group(account, target_of(row))["Protocol"]}
        if protocol == "TLS":
            [default] = row["Certificates"]
            shown |= {
                f"{port} certificates": [default["CertificateArn"], *sorted(others(account, arn))],
                f"{port} policy": row["SslPolicy"],
                f"{port} alpn": row.get("AlpnPolicy", []),
            }
        if protocol == "TCP":
            attributes = account.elbv2.describe_listener_attributes(ListenerArn=arn)["Attributes"]
            shown |= {f"{port} {each['Key']}": each["Value"] for each in attributes}
    return shown


def rows(certificates: list[str]) -> tuple[Row, ...]:
    first, second, third = certificates
    tls, two = {"ssl-cert": first}, {"ssl-cert": f"{first},{second}"}
    both = [first, *sorted([first, second])]
    plain = {80: "TCP", "80 targets": "TCP", "80 certificates": None, "80 policy": None, "80 alpn": None}
    secure = {80: "TLS", "80 targets": "TCP", "80 policy": POLICY, "80 alpn": []}
    return (
        Row("ssl-cert", first, secure | {"80 certificates": [first]}, plain, MODIFY),
        Row("ssl-cert", f"{first}, {second},{third}", secure | {"80 certificates": [first, *sorted(certificates)]},
            plain, MODIFY | {"AddListenerCertificates": 3}, undone=MODIFY),
        Row("ssl-ports", "tls", {80: "TCP", 443: "TLS"}, {80: "TLS", 443: "TLS"}, MODIFY, annotations=tls, spec=BOTH),
        Row("ssl-ports", "443", {80: "TCP", "443 certificates": both}, {"80 certificates": both,
            "443 certificates": both}, MODIFY, undone=MODIFY | {"AddListenerCertificates": 2}, annotations=two,
            spec=BOTH),
        Row("ssl-ports", "*", {80: "TLS", 443: "TLS"}, {80: "TLS", 443: "TLS"}, {}, annotations=tls, spec=BOTH),
        Row("ssl-negotiation-policy", STRICT, {"80 policy": STRICT}, {"80 policy": POLICY}, MODIFY, annotations=tls),
        Row("alpn-policy", "HTTP2Preferred", {"80 alpn": ["HTTP2Preferred"]}, {"80 alpn": []}, MODIFY, annotations=tls),
        Row("backend-protocol", "tcp", secure, secure, {}, annotations=tls),
        Row(ATTRIBUTE, f"{IDLE}=600", {f"80 {IDLE}": "600"}, {f"80 {IDLE}": "350"}, {"ModifyListenerAttributes": 1}),
        Row("enable-tcp-udp-listener", "true", {53: "TCP_UDP"}, {53: "TCP_UDP"}, {},
            spec=dns("TCP", "UDP", node_port=30753)),
    )  # fmt: skip


def test_each_input_takes_effect_and_goes_back_to_its_default(cluster, account, weir, certificates):
    """R38: given at birth, taken away and given again: the writes that this needs, and no others."""
    controller = weir(CALM)
    trial = Trial(cluster, account, rows(certificates), show)
    trial.start()
    trial.turn(given=False)
    trial.turn(given=True)
    assert {name for name in counted(account.calls()) if "Certificates" in name and "Describe" in name} == set()

    # Nobody is there while one input goes and somebody changes others.
    controller.stop()
    names = {row.key: name for name, row in trial.rows.items()}
    arns = {name: listeners_of(cluster, account, name) for name in names.values()}
    cluster.patch(names[ATTRIBUTE], trial.rows[names[ATTRIBUTE]].patch(False))
    extra, policy = (arns[names[key]][80]["ListenerArn"] for key in ("alpn-policy", "ssl-negotiation-policy"))
    account.elbv2.add_listener_certificates(ListenerArn=extra, Certificates=[{"CertificateArn": certificates[2]}])
    account.elbv2.modify_listener(ListenerArn=policy, SslPolicy=POLICY)
    mark = account.mark()
    weir("--drift-interval=1s")

    def is_put_right() -> bool:
        shown = {key: show(account, trial.hostnames[names[key]]) for key in (ATTRIBUTE, "ssl-negotiation-policy")}
        return (
            shown[ATTRIBUTE][f"80 {IDLE}"] == "350"
            and shown["ssl-negotiation-policy"]["80 policy"] == STRICT
            and others(account, extra) == set()
        )

    wait_for(is_put_right, 60, "what is not asked for to be put right")
    wait_rest(account)
    expected = {"ModifyListener": 1, "ModifyListenerAttributes": 1, "RemoveListenerCertificates": 1}
    assert counted(writes(account, mark)) == expected


def test_certificates_of_a_running_service(cluster, account, weir, certificates):
    """ssl-cert, changed: the default one in place, others added before those that go are removed, each in a call.

    With several, the default one is in the list too: AWS chooses by name and key type among those in the list only."""
    first, second, third = certificates
    weir(CALM)
    cluster.expose("order", annotations={ANNOTATION + "ssl-cert": f"{first},{second}"})
    listener = listeners_of(cluster, account, "order")[80]["ListenerArn"]
    wait_for(lambda: others(account, listener) == {first, second}, 15, "both certificates")
    wait_rest(account)
    for wanted, steps in {
        f"{second},{first}": [MODIFIED],
        f"{third},{second}": [ADDED, MODIFIED, REMOVED],
        f"{third},{first}": [ADDED, REMOVED],
        f"{second}": [MODIFIED, REMOVED, REMOVED],
        f"{second},{third}": [ADDED, ADDED],
        f"{second},{first},{third}": [ADDED],
    }.items():
        mark = account.mark()
        annotate(cluster, "order", ssl_cert=wanted)
        default, *more = wanted.split(",")
        listed = {default, *more} if more else set()

        def is_shown(default: str = default, listed: set[str] = listed) -> bool:
            row = listeners_of(cluster, account, "order")[80]
            return row["Certificates"] == [{"CertificateArn": default}] and others(account, listener) >= listed

        wait_for(is_shown, 15, f"certificates {wanted}")
        wait_rest(account)
        assert [call["operation"] for call in writes(account, mark)] == steps, wanted
        assert others(account, listener) == listed


def test_a_certificate_that_does_not_exist_holds_up_its_port_only(cluster, account, weir, certificates):
    """The other port has listener and targets, the name is out, the owner reads which certificate; then it heals."""
    weir(CALM)
    missing = certificates[0][:-4] + "0000"
    given = {ANNOTATION + "ssl-cert": missing, ANNOTATION + "ssl-ports": "tls"}
    cluster.expose("order", annotations=given, **BOTH)
    made = listeners_of(cluster, account, "order")
    assert {port: row["Protocol"] for port, row in made.items()} == {80: "TCP"}
    assert f"Certificate '{missing}' not found" in note(cluster, "order", "AwsRequestRefused")
    workers = set(account.names["instances"])
    wait_for(lambda: targets(account, target_of(made[80])) == workers, 15, "the nodes to be targets")
    annotate(cluster, "order", ssl_cert=certificates[1])
    wait_for(lambda: 443 in listeners_of(cluster, account, "order"), 15, "the other listener")
    assert listeners_of(cluster, account, "order")[443]["Protocol"] == "TLS"

    # The same on a listener that serves: it goes on as it is.
    mark = account.mark()
    annotate(cluster, "order", ssl_cert=missing)
    wait_for(lambda: counted(writes(account, mark))["ModifyListener"], 15, "a try")
    wait_rest(account)
    assert listeners_of(cluster, account, "order")[443]["Certificates"] == [{"CertificateArn": certificates[1]}]


def test_a_listener_moves_to_its_new_target_group_once_that_has_the_nodes(cluster, account, weir, certificates):
    """backend-protocol, nodePort and protocol: new target group, targets, listener in place, old target group gone."""
    weir(CALM)
    cluster.expose("order", annotations={ANNOTATION + "ssl-cert": certificates[0]})
    cluster.expose("names", **dns("TCP", node_port=30754))
    edits = {
        "order": ({"metadata": {"annotations": {ANNOTATION + "backend-protocol": "ssl"}}}, 80, "TLS", "TLS"),
        "names": ({"spec": dns("TCP", "UDP", node_port=30754)}, 53, "TCP_UDP", "TCP_UDP"),
    }
    for name in edits:
        cluster.wait_hostname(name)
    wait_for(lambda: len(attached(account)) == 2, 15, "both to be attached")
    wait_rest(account)
    for name, (edit, port, protocol, target_protocol) in edits.items():
        before = listeners_of(cluster, account, name)[port]
        mark = account.mark()
        cluster.patch(name, edit)
        wait_for(lambda: len(target_groups(account)) == 3, 15, "the new target group")
        wait_for(lambda: len(target_groups(account)) == 2, 30, "the old target group to go")
        wait_rest(account)
        after = listeners_of(cluster, account, name)[port]
        group = target_group(account, target_of(after))
        assert (after["ListenerArn"], after["Protocol"]) == (before["ListenerArn"], protocol)
        assert group["Protocol"] == target_protocol and target_of(after) != target_of(before)
        assert targets(account, group["TargetGroupArn"]) == set(account.names["instances"])
        steps = [call["operation"] for call in writes(account, mark) if "SecurityGroup" not in call["operation"]]
        moved = ["CreateTargetGroup", "AttachTrafficSources", "ModifyListener"]
        assert steps == [*moved, "DetachTrafficSources", "DeleteTargetGroup"], name
    assert len(balancers(account)) == 2


CERT = "arn:aws:acm:us-east-1:111122223333:certificate/12345678-1234-1234-1234-123456789012"
CERTS = "ARNs of ACM or IAM server certificates, each once, separated by commas"
GIVEN = {"ssl-cert": CERT}
KEY = "a key that ends in protocol and port, such as TCP-80"

MISTAKES = (
    Mistake("ssl-cert", "cert-1", 'has "cert-1", which is no certificate\'s ARN', CERTS),
    Mistake("ssl-cert", f"{CERT},{CERT}", f'has "{CERT}" twice', CERTS),
    Mistake("ssl-cert", ",", "names no certificate", CERTS),
    Mistake("ssl-ports", "443", f"is given without {ANNOTATION}ssl-cert", "a certificate too",
            spec={"ports": [{"name": "tls", "port": 443}]}),
    Mistake("ssl-ports", "https", 'names "https", which is no port of the Service', "*, or some of main, 80",
            annotations=GIVEN),
    Mistake("ssl-ports", "53", 'names "53", whose protocol is TCP_UDP', "TCP ports", annotations=GIVEN,
            spec=dns("TCP", "UDP", node_port=30755)),
    Mistake("ssl-negotiation-policy", "TLS-1-2", "is no security policy",
            f"the name of a security policy, such as {POLICY}", annotations=GIVEN),
    Mistake("alpn-policy", "http/1.1", "is unknown", "None, HTTP1Only, HTTP2Only, HTTP2Optional or HTTP2Preferred",
            annotations=GIVEN),
    Mistake("backend-protocol", "grpc", "is an unknown protocol", "tcp or ssl", annotations=GIVEN),
    Mistake("listener-attributes.TCP-80", f"{IDLE}=59", f'has "59" for {IDLE}', "a number from 60 to 6000"),
    Mistake("listener-attributes.TCP-81", f"{IDLE}=60", 'is for "TCP-81", which is no listener of the Service', KEY),
    Mistake("listener-attributes.UDP-80", f"{IDLE}=60", 'is for "UDP-80", which is no listener of the Service', KEY),
    Mistake("listener-attributes.TLS-80", f"{IDLE}=60", "is for a TLS listener, which has no attributes",
            "a TCP listener", annotations=GIVEN),
    Mistake("enable-tcp-udp-listener", "false", "forbids what port 53 asks for, TCP and UDP on one port",
            "true, or one protocol for each port", spec=dns("TCP", "UDP", node_port=30756)),
    Mistake("enable-tcp-udp-listener", "on", "is no truth value", "true or false"),
    Mistake("quic-enabled-ports", "443", "asks for QUIC, which is not supported by this controller",
            "no such annotation"),
)  # fmt: skip

WARNINGS = (
    ("backend", {"backend-protocol": "https"}, {},
     f'{ANNOTATION}backend-protocol: "https" is taken as tcp; a Network Load Balancer does not speak HTTP'),
    ("alpn", {"alpn-policy": "HTTP1Only"}, {}, f'{ANNOTATION}alpn-policy: "HTTP1Only" is ignored; no listener is TLS'),
)  # fmt: skip


def test_each_mistake_is_one_sentence_and_what_has_no_effect_is_said(cluster, account, weir):
    weir(CALM)
    assert_refused(cluster, account, MISTAKES)
    action = "service.beta.kubernetes.io/actions.TCP-80"
    cluster.expose("action", annotations={action: "{}"})
    assert note(cluster, "action", "InvalidConfiguration") == (
        f'{action}: "{{}}" asks for an action, which is not supported by this controller; '
        "expected no such annotation; each port forwards to its own targets"
    )
    assert writes(account) == []
    assert_warned(cluster, WARNINGS)
