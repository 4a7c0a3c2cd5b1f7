"""A thin client for the Kubernetes API: paths and plain dictionaries, nothing generated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import requests

from sandbox.process import wait_for

T = TypeVar("T")
Object = dict[str, Any]
Patch = Object | list[Object]

_PATCH_TYPES = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "strategic": "application/strategic-merge-patch+json",
}


class KubeError(Exception):
    """An answer of 400 or above, with the API server's own words."""

    def __init__(self, method: str, path: str, response: requests.Response) -> None:
        try:
            status = response.json()
        except ValueError:
            status = {}
        self.status = response.status_code
        self.reason: str = status.get("reason", "")
        self.message: str = status.get("message", response.text)
        super().__init__(f"{method} {path}: {self.status} {self.reason}: {self.message}")


class Kube:
    """Requests to one API server under one token. Paths are the API's own: `/api/v1/namespaces/x/services`."""

    def __init__(self, server: str, token: str, ca: Path) -> None:
        self.server = server
        self.token = token
        self.ca = ca
        self._session = requests.Session()
        self._session.trust_env = False  # a proxy or a netrc of the developer's has no say here
        self._session.verify = str(ca)
        self._session.headers["Authorization"] = f"Bearer {token}"

    def ready(self) -> bool:
        """Whether the API server answers and calls itself ready."""
        try:
            return self._session.get(self.server + "/readyz", timeout=5).ok
        except (requests.ConnectionError, requests.Timeout):
            return False

    def get(self, path: str, **parameters: str) -> Object:
        return self._call("GET", path, parameters)

    def find(self, path: str) -> Object | None:
        """Like `get`, but an absent object is `None`."""
        try:
            return self.get(path)
        except KubeError as error:
            if error.status == 404:
                return None
            raise

    def list(self, path: str, **parameters: str) -> list[Object]:
        """The items of a collection; `labelSelector` and `fieldSelector` are parameters."""
        return self.get(path, **parameters)["items"]

    def create(self, path: str, body: Object, **parameters: str) -> Object:
        """Creates in a collection. An object's `status` is dropped by the API server for most kinds: see `patch`."""
        return self._call("POST", path, parameters, body)

    def apply(self, path: str, body: Object, manager: str = "sandbox") -> Object:
        """Server-side apply of one object, or of its subresource, taking over fields that others own."""
        parameters = {"fieldManager": manager, "force": "true"}
        return self._call("PATCH", path, parameters, body, "application/apply-patch+yaml")

    def put(self, path: str, body: Object) -> Object:
        """Replaces an object, whatever it was."""
        return self._call("PUT", path, {}, body)

    def patch(self, path: str, body: Patch, kind: str = "merge") -> Object:
        """`kind` is merge, json or strategic. A path that ends in `/status` patches the status."""
        return self._call("PATCH", path, {}, body, _PATCH_TYPES[kind])

    def delete(self, path: str, **parameters: str) -> None:
        """Asks for deletion; an absent object is fine. Finalizers may keep it: wait with `find`."""
        try:
            self._call("DELETE", path, parameters)
        except KubeError as error:
            if error.status != 404:
                raise

    def wait(self, predicate: Callable[[], T | None], timeout: float, what: str = "the API server's state") -> T:
        """Calls `predicate` until it returns something true, and returns that."""
        return wait_for(predicate, timeout, what)

    def service_account_token(self, namespace: str, name: str) -> str:
        """A token with exactly this ServiceAccount's rights, to test what the installed RBAC allows."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        return str(self.create(path, request)["status"]["token"])

    def _call(
        self,
        method: str,
        path: str,
        parameters: dict[str, str],
        body: Patch | None = None,
        content_type: str = "application/json",
    ) -> Object:
        response = self._session.request(
            method,
            self.server + path,
            params=parameters,
            data=None if body is None else json.dumps(body),
            headers={"Content-Type": content_type},
            timeout=30,
        )
        if response.status_code >= 400:
            raise KubeError(method, path, response)
        return response.json()
