"""Services with the endpoints a test says, without selectors and controllers in between."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sandbox.fabric import FAMILIES, Family, Pod
from sandbox.kube import Kube, Object
from sandbox.scene import LOAD_BALANCER_CLASS

SERVICE_NAME_LABEL = "kubernetes.io/service-name"


@dataclass(frozen=True)
class Port:
    """A Service's port, and the number its endpoints listen on; `None` leaves that out of a slice."""

    name: str = "web"
    port: int = 80
    target: int | None = 8080
    protocol: str = "TCP"


#: Both protocols on one number, which must be kept apart.
PORTS = (Port(), Port("web-udp", protocol="UDP"))


@dataclass(frozen=True)
class Endpoint:
    """A pod in an EndpointSlice. `None` leaves a condition out; `zones` and `nodes` are topology hints."""

    pod: Pod
    ready: bool | None = True
    serving: bool | None = None
    terminating: bool | None = None
    zones: Sequence[str] = ()
    nodes: Sequence[str] = ()

    def manifest(self, family: Family) -> Object:
        conditions = {"ready": self.ready, "serving": self.serving, "terminating": self.terminating}
        body: Object = {
            "addresses": [self.pod.address(family)],
            "nodeName": self.pod.node.name,
            "zone": self.pod.node.zone,
            "conditions": {name: value for name, value in conditions.items() if value is not None},
        }
        hints = {
            "forZones": [{"name": zone} for zone in self.zones],
            "forNodes": [{"name": node} for node in self.nodes],
        }
        if self.zones or self.nodes:
            body["hints"] = {name: value for name, value in hints.items() if value}
        return body


def draining(pod: Pod) -> Endpoint:
    """A pod that is being deleted and still answers."""
    return Endpoint(pod, ready=False, serving=True, terminating=True)


def unready(pod: Pod) -> Endpoint:
    return Endpoint(pod, ready=False, serving=False, terminating=False)


@dataclass
class Service:
    """A Service and its EndpointSlices, one a family."""

    kube: Kube
    path: str
    slices: str
    name: str
    ports: Sequence[Port] = field(default=PORTS)

    @property
    def object(self) -> Object:
        return self.kube.get(self.path)

    def cluster_ip(self, family: Family = 4) -> str:
        [address] = [ip for ip in self.object["spec"]["clusterIPs"] if (":" in ip) == (family == 6)]
        return address

    def node_port(self, port: str = "web") -> int:
        [found] = [each["nodePort"] for each in self.object["spec"]["ports"] if each["name"] == port]
        return found

    @property
    def health_port(self) -> int:
        """The healthCheckNodePort."""
        return self.object["spec"]["healthCheckNodePort"]

    def patch(self, **spec: Any) -> Object:
        """Merge-patches the spec; `None` removes a field."""
        return self.kube.patch(self.path, {"spec": spec})

    def label(self, name: str, value: str | None) -> None:
        """Sets a label; `None` removes it."""
        self.kube.patch(self.path, {"metadata": {"labels": {name: value}}})

    def set_ingress(self, *entries: Object) -> None:
        """Writes status.loadBalancer, as its controller would: `{"ip": …, "ipMode": …}` or `{"hostname": …}`."""
        self.kube.patch(f"{self.path}/status", {"status": {"loadBalancer": {"ingress": list(entries)}}})

    def set_endpoints(self, endpoints: Iterable[Pod | Endpoint]) -> None:
        """Replaces the endpoints in both families. A Pod stands for a ready endpoint."""
        rows = list(endpoints)
        for family in FAMILIES:
            self.put_slice(f"{self.name}-{family}", rows, family, self.ports)

    def put_slice(
        self,
        name: str,
        endpoints: Iterable[Pod | Endpoint],
        family: Family = 4,
        ports: Sequence[Port] = PORTS,
        labels: dict[str, str | None] | None = None,
        names: Sequence[str] = (),
    ) -> None:
        """Writes one slice whole. `labels` come on top of the Service's name; with `names` it is one of type FQDN."""
        rows = [each if isinstance(each, Endpoint) else Endpoint(each) for each in endpoints]
        manifest = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": name, "labels": {SERVICE_NAME_LABEL: self.name, **(labels or {})}},
            "addressType": "FQDN" if names else f"IPv{family}",
            "ports": [
                {"name": each.name, "protocol": each.protocol, **({"port": each.target} if each.target else {})}
                for each in ports
            ],
            "endpoints": [*(each.manifest(family) for each in rows), *({"addresses": [name]} for name in names)],
        }
        self.kube.apply(f"{self.slices}/{name}", manifest)

    def delete_slice(self, name: str) -> None:
        self.kube.delete(f"{self.slices}/{name}")

    def delete(self) -> None:
        """Removes it and its slices, in the order in which a cluster does."""
        self.kube.delete(self.path)
        self.kube.delete(self.slices, labelSelector=f"{SERVICE_NAME_LABEL}={self.name}")


class Services:
    """Makes Services in a namespace of its own. `close` removes what is left of them."""

    _numbers = itertools.count(1)

    def __init__(self, kube: Kube, namespace: str) -> None:
        self.kube, self.namespace = kube, namespace
        self._made: list[Service] = []
        kube.create("/api/v1/namespaces", {"metadata": {"name": namespace}})

    def create(
        self,
        endpoints: Iterable[Pod | Endpoint] = (),
        *,
        ports: Sequence[Port] = PORTS,
        labels: dict[str, str] | None = None,
        families: Sequence[Family] = FAMILIES,
        **spec: Any,
    ) -> Service:
        """A dual-stack ClusterIP Service under a fresh name; `spec` adds to or replaces its spec's fields."""
        name = f"service-{next(self._numbers)}"
        if spec.get("type") == "LoadBalancer":
            spec = {"loadBalancerClass": LOAD_BALANCER_CLASS, **spec}
        body = {
            "metadata": {"name": name, "labels": labels or {}},
            "spec": {
                "ipFamilyPolicy": "RequireDualStack" if len(families) == 2 else "SingleStack",
                "ipFamilies": [f"IPv{family}" for family in families],
                "ports": [
                    {"name": each.name, "port": each.port, "targetPort": each.target, "protocol": each.protocol}
                    for each in ports
                ],
                **spec,
            },
        }
        collection = f"/api/v1/namespaces/{self.namespace}/services"
        self.kube.create(collection, body)
        slices = f"/apis/discovery.k8s.io/v1/namespaces/{self.namespace}/endpointslices"
        service = Service(self.kube, f"{collection}/{name}", slices, name, ports)
        self._made.append(service)
        service.set_endpoints(endpoints)
        return service

    def clear(self) -> None:
        """Deletes all Services made so far."""
        for service in self._made:
            service.delete()
        self._made.clear()

    def close(self) -> None:
        self.clear()
        self.kube.delete(f"/api/v1/namespaces/{self.namespace}")
