"""The policies that a cluster carries out by itself: the class is set, and what weir would refuse is refused at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from sandbox.checks import ANNOTATION, CALM, note
from sandbox.cluster import ControlPlane
from sandbox.kube import KubeError, Object
from sandbox.scene import LOAD_BALANCER_CLASS

INVALID = "InvalidConfiguration"
FLAGS = (
    "internal", "cross-zone-load-balancing-enabled", "access-log-enabled", "enable-tcp-udp-listener",
    "multi-cluster-target-group", "manage-backend-security-group-rules", "disable-nlb-sg",
)  # fmt: skip
NUMBERS = (
    "healthcheck-interval", "healthcheck-timeout", "healthcheck-healthy-threshold", "healthcheck-unhealthy-threshold",
)  # fmt: skip

#: Annotation and a value that CEL can judge by itself.
WRONG = (
    *((flag, "yes") for flag in FLAGS),
    *((number, value) for number in NUMBERS for value in ("ten", "-1", "+1", "9999999999", "1.5")),
    ("scheme", "public"),
    ("scheme", " Internal "),
    ("ip-address-type", "ipv6"),
    ("multi-cluster-target-group", "T"),
    ("disable-nlb-sg", "true"),
    ("enable-prefix-for-ipv6-source-nat", "true"),
    ("inbound-sg-rules-on-private-link-traffic", "no"),
    ("nlb-target-type", "ip"),
    ("quic-enabled-ports", "443"),
    ("alpn-policy", "h2"),
    ("backend-protocol", "grpc"),
    ("ssl-negotiation-policy", "TLS 1.2"),
    ("proxy-protocol", "on"),
    ("healthcheck-protocol", "udp"),
    ("healthcheck-path", "ready"),
    ("name", "order-"),
    ("name", "internal-order"),
)

RIGHT = {
    "scheme": " internal ",
    "internal": "True",
    "ip-address-type": "ipv4",
    "cross-zone-load-balancing-enabled": "0",
    "access-log-enabled": "f",
    "enable-tcp-udp-listener": "TRUE",
    "multi-cluster-target-group": "false",
    "disable-nlb-sg": "f",
    "inbound-sg-rules-on-private-link-traffic": "off",
    "nlb-target-type": "instance",
    "quic-enabled-ports": "  ",
    "alpn-policy": "HTTP2Optional",
    "backend-protocol": "ssl",
    "ssl-negotiation-policy": "ELBSecurityPolicy-TLS13-1-2-2021-06",
    "proxy-protocol": "*",
    "healthcheck-protocol": "HTTPS",
    "healthcheck-path": "/ready",
    "healthcheck-interval": "300",
    "healthcheck-timeout": "+2",
    "healthcheck-healthy-threshold": "10",
    "name": "an-order",
}


def service(name: str, annotations: dict[str, str], **spec: Any) -> Object:
    return {
        "metadata": {"name": name, "annotations": {ANNOTATION + key: value for key, value in annotations.items()}},
        "spec": {
            "type": "LoadBalancer",
            "loadBalancerClass": LOAD_BALANCER_CLASS,
            "ports": [{"port": 80}],
            "selector": {"app": name},
            **spec,
        },
    }


@pytest.fixture
def judged(control_plane: ControlPlane, installed: object) -> Iterator[str]:
    """The API path of Services in a namespace that has not opted out."""
    created = control_plane.kube.create("/api/v1/namespaces", {"metadata": {"generateName": "judged-"}})
    namespace = created["metadata"]["name"]
    yield f"/api/v1/namespaces/{namespace}/services"
    control_plane.kube.delete(f"/api/v1/namespaces/{namespace}")


def refusal(control_plane: ControlPlane, path: str, refused: Object) -> str:
    """What the API server says; the empty string if it takes the Service."""
    try:
        control_plane.kube.create(path, refused, dryRun="All")
    except KubeError as error:
        assert error.status == 422 or error.status == 403, error
        return str(error)
    return ""


def test_admission_and_controller_say_the_same(control_plane, judged, cluster, weir):
    """D2: whoever has the policy reads the sentence at `kubectl apply`, the others in an Event."""
    weir(CALM)
    for number, (key, value) in enumerate(WRONG):
        cluster.expose(f"order-{number}", annotations={ANNOTATION + key: value})
    for number, (key, value) in enumerate(WRONG):
        said = note(cluster, f"order-{number}", INVALID)
        assert said.startswith(f'{ANNOTATION}{key}: "{value.strip()}" '), said
        refused = refusal(control_plane, judged, service("order", {key: value}))
        assert said in refused, f"{key}={value!r}: the controller says {said!r}, admission says {refused!r}"


def test_what_is_right_is_let_through(control_plane, judged):
    assert refusal(control_plane, judged, service("order", RIGHT)) == ""
    mistaken = {"scheme": "public"}
    others = service("order", mistaken, loadBalancerClass="example.com/other")
    assert refusal(control_plane, judged, others) == "", "another class is another controller's"
    plain = service("order", mistaken, type="ClusterIP")
    del plain["spec"]["loadBalancerClass"]
    assert refusal(control_plane, judged, plain) == "", "no load balancer"


def test_a_service_or_a_namespace_keeps_its_own_provider(control_plane, judged):
    """D1: by the label weir.dev/class: none, whose absence gives a Service without a class weir's."""
    kube, namespace = control_plane.kube, "/api/v1/namespaces/" + judged.split("/")[4]

    def given(label: str | None = None) -> str | None:
        bare = service("order", {})
        del bare["spec"]["loadBalancerClass"]
        bare["metadata"]["labels"] = {"weir.dev/class": label} if label else {}
        return kube.create(judged, bare, dryRun="All")["spec"].get("loadBalancerClass")

    assert given() == given("some") == LOAD_BALANCER_CLASS
    assert given("none") is None
    kube.patch(namespace, {"metadata": {"labels": {"weir.dev/class": "none"}}})
    kube.wait(lambda: given() is None, 15, "opting out")
    kube.patch(namespace, {"metadata": {"labels": {"weir.dev/class": None}}})
    kube.wait(lambda: given() == LOAD_BALANCER_CLASS, 15, "the class to be given again")


def test_a_service_that_is_there_can_be_edited_in_other_ways_and_deleted(control_plane, judged):
    """Nothing may be stuck for an annotation that was let through before the policy was there."""
    kube = control_plane.kube
    namespace = judged.split("/")[4]
    labels = {"weir.dev/validation": "none"}
    kube.patch(f"/api/v1/namespaces/{namespace}", {"metadata": {"labels": labels}})
    kube.wait(lambda: not refusal(control_plane, judged, service("probe", {"scheme": "public"})), 15, "opting out")
    made = service("order", {"scheme": "public"})
    made["metadata"]["finalizers"] = ["example.com/held"]
    kube.create(judged, made)
    kube.patch(f"/api/v1/namespaces/{namespace}", {"metadata": {"labels": {"weir.dev/validation": None}}})
    kube.wait(lambda: refusal(control_plane, judged, service("probe", {"scheme": "public"})), 15, "being judged again")

    kube.patch(f"{judged}/order", {"metadata": {"labels": {"team": "a"}}})
    kube.patch(f"{judged}/order", {"spec": {"externalTrafficPolicy": "Local"}})
    with pytest.raises(KubeError, match="is an unknown scheme"):
        kube.patch(f"{judged}/order", {"metadata": {"annotations": {ANNOTATION + "name": "order"}}})
    kube.delete(f"{judged}/order")
    kube.patch(f"{judged}/order", {"metadata": {"finalizers": None}})
    kube.wait(lambda: not kube.list(judged), 10, "the Service to go")
