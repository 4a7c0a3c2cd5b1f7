"""The AWS Load Balancer Controller, version 3.5, as a process. Its program is not part of this repository."""

from __future__ import annotations

import os
from pathlib import Path

import requests

from sandbox import certificates
from sandbox.cluster import ControlPlane
from sandbox.kube import KubeError, Object
from sandbox.process import LOOPBACK, Process, free_port
from sandbox.weir import REGION

LOAD_BALANCER_CLASS = "service.k8s.aws/nlb"
START_SECONDS = 60.0
STOP_SECONDS = 15.0
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

#: Its custom resources: (plural, kind, scope). Only TargetGroupBindings are used for Services, but it watches both.
RESOURCES = (
    ("targetgroupbindings", "TargetGroupBinding", "Namespaced"),
    ("ingressclassparams", "IngressClassParams", "Cluster"),
)

#: Service ids of its SDK. What has none here goes to $AWS_ENDPOINT_URL, which is the emulator as well.
SERVICES = ("EC2", "Elastic Load Balancing v2", "STS", "ACM", "Resource Groups Tagging API")

#: Everything but Services is off; so are add-ons of other load balancers, which ask the account at each start.
FLAGS = (
    "--enable-leader-election=false",
    "--metrics-bind-addr=0",
    "--enable-shield=false",
    "--enable-waf=false",
    "--enable-wafv2=false",
    "--feature-gates=NLBGatewayAPI=false,ALBGatewayAPI=false",
)


class Controller:
    """LBC, with its defaults but for FLAGS. `program` is what is called `controller` in its image.

    It starts a webhook server whatever its flags; since no webhook is registered with the API server, nobody asks it.
    As with weir, its environment has no credential of the developer's.
    """

    def __init__(
        self,
        program: Path,
        directory: Path,
        control_plane: ControlPlane,
        endpoint: str,
        account: str,
        cluster: str,
        vpc: str,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        define_resources(control_plane)
        self._health = f"{LOOPBACK}:{free_port()}"
        keys = certificates.generate(directory / "webhook", [LOOPBACK], ["localhost"])
        command: list[str | Path] = [
            program,
            *FLAGS,
            f"--cluster-name={cluster}",
            f"--kubeconfig={control_plane.kubeconfig}",
            f"--aws-region={REGION}",
            f"--aws-vpc-id={vpc}",
            f"--aws-api-endpoints={','.join(f'{service}={endpoint}' for service in SERVICES)}",
            f"--health-probe-bind-addr={self._health}",
            f"--webhook-bind-port={free_port()}",
            f"--webhook-cert-dir={keys.server.parent}",
            f"--webhook-cert-file={keys.server.name}",
            f"--webhook-key-file={keys.server_key.name}",
        ]
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": account,
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self._process = Process("aws-load-balancer-controller", command, directory / "lbc.log", environment)

    def wait_ready(self) -> None:
        self._process.wait_ready(self._ready, START_SECONDS)

    def stop(self) -> int:
        return self._process.terminate(STOP_SECONDS)

    def tail(self, lines: int = 40) -> str:
        return self._process.tail(lines)

    def _ready(self) -> bool:
        session = requests.Session()
        session.trust_env = False
        try:
            return session.get(f"http://{self._health}/readyz", timeout=5).ok
        except requests.ConnectionError:
            return False


def define_resources(control_plane: ControlPlane) -> None:
    """Its custom resources, with any content: what it writes it alone reads."""
    kube = control_plane.kube
    for plural, kind, scope in RESOURCES:
        try:
            kube.create(DEFINITIONS, definition(plural, kind, scope))
        except KubeError as error:
            if error.reason != "AlreadyExists":
                raise
    paths = [f"{DEFINITIONS}/{plural}.elbv2.k8s.aws" for plural, _, _ in RESOURCES]
    kube.wait(lambda: all(is_established(kube.get(path)) for path in paths), 20, "LBC's custom resources to be known")


def definition(plural: str, kind: str, scope: str) -> Object:
    version = {
        "name": "v1beta1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
        "subresources": {"status": {}},
    }
    names = {"plural": plural, "singular": kind.lower(), "kind": kind, "listKind": f"{kind}List"}
    return {
        "metadata": {"name": f"{plural}.elbv2.k8s.aws"},
        "spec": {"group": "elbv2.k8s.aws", "scope": scope, "names": names, "versions": [version]},
    }


def is_established(found: Object) -> bool:
    conditions = found.get("status", {}).get("conditions") or []
    return any(each["type"] == "Established" and each["status"] == "True" for each in conditions)
