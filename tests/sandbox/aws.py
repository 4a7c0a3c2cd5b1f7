"""AWS, emulated: one LocalStack process with our plugin, and accounts in it that cost nothing to make."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

import requests

from sandbox.process import LOOPBACK, Process, free_port

REGION = "us-east-1"
START_SECONDS = 60.0
EMULATOR = Path(__file__).resolve().parents[2] / "localstack"

Row = dict[str, Any]


@cache
def seeding() -> ModuleType:
    """`localstack/seed.py`. That directory is no package: its name is the one of LocalStack's own."""
    specification = importlib.util.spec_from_file_location("weir_seed", EMULATOR / "seed.py")
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


class LocalStack:
    """Context manager: the emulator answers inside it, and is gone after it. `directory` holds its files and log."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.endpoint = f"http://{LOOPBACK}:{free_port()}"
        self._http = requests.Session()
        self._http.trust_env = False

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),
            **json.loads((EMULATOR / "environment.json").read_text()),
            "GATEWAY_LISTEN": self.endpoint.removeprefix("http://"),
            "FILESYSTEM_ROOT": str(self.directory / "files"),
        }
        command = [sys.executable, "-m", "localstack.runtime.main"]
        self._process = Process("localstack", command, self.directory / "localstack.log", environment, self.directory)
        try:
            self._process.wait_ready(self._healthy, START_SECONDS)
        except BaseException:
            self._process.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()

    @property
    def pid(self) -> int:
        return self._process.pid

    def calls(self, account: str | None = None, client: str | None = "rust", since: int = 0) -> list[Row]:
        """The call log after number `since`, of one account and one kind of client (weir's is "rust")."""
        asked = {"account": account, "client": client, "since": since}
        return self._control("GET", "calls", asked)

    def faults(self, rows: list[Row] | None = None) -> list[Row]:
        """Replaces the faults that calls will meet, if `rows` is given; returns them with their hits so far."""
        return self._control("GET", "faults") if rows is None else self._control("POST", "faults", body=rows)

    def settings(self, **values: Any) -> Row:
        """Changes delays and states of the emulator, if any are given; returns all of them."""
        return self._control("POST", "settings", body=values) if values else self._control("GET", "settings")

    def enforce_policies(self, enforce: bool) -> None:
        """Whether each call must be allowed by its caller's IAM policies."""
        self._control("POST", "policy", body={"enforce": enforce})

    def audit(self, account: str | None = None, client: str | None = None) -> list[Row]:
        """The IAM actions, resources and condition keys that calls asked for so far."""
        return self._control("GET", "audit", {"account": account, "client": client})

    def mark(self) -> int:
        """The number of the last call so far, of any account."""
        return max((call["n"] for call in self.calls(client=None)), default=0)

    def reset(self, account: str | None = None) -> None:
        """Forgets one account's resources and calls; without one, everything, and settings and faults too."""
        self._control("POST", "reset", {"account": account})

    def _healthy(self) -> bool:
        try:
            return self._http.get(f"{self.endpoint}/_localstack/health", timeout=5).ok
        except (requests.ConnectionError, requests.Timeout):
            return False

    def _control(self, method: str, name: str, parameters: Row | None = None, body: Any = None) -> Any:
        url = f"{self.endpoint}/moto-api/{name}"
        response = self._http.request(method, url, params=parameters, json=body, timeout=30)
        if not response.ok:
            raise ValueError(f"{method} {url}: {response.status_code} {response.text}")
        return response.json()


class Account:
    """One account of the emulator: clients for it, and its part of the call log."""

    def __init__(self, localstack: LocalStack, number: str, cluster: str = "demo") -> None:
        assert len(number) == 12 and number.isdigit(), number
        self.localstack = localstack
        self.id = number
        self.cluster = cluster
        self.names: Row = {}
        """Names and ids of what `seed` made."""

    def seed(self, workers: int = 3) -> None:
        """VPC, subnets, the nodes' security group, and an Auto Scaling group of `workers` instances."""
        self.names = seeding().seed(self.localstack.endpoint, self.id, REGION, self.cluster, workers)

    def node_manifests(self) -> list[Row]:
        """The Node objects of the instances that run now."""
        return seeding().node_manifests(self.localstack.endpoint, self.id, REGION, self.cluster)

    def calls(self, since: int = 0, client: str | None = "rust") -> list[Row]:
        return self.localstack.calls(self.id, client, since)

    def mark(self) -> int:
        """The number of the last call so far, as `since` of a later `calls`."""
        return max((call["n"] for call in self.calls(client=None)), default=0)

    def faults(self, *rows: Row) -> list[Row]:
        """Faults for weir's calls in this account; a row may widen that. Without rows: none any more."""
        return self.localstack.faults([{"account": self.id, "client": "rust", **row} for row in rows])

    @cached_property
    def workers(self) -> Any:
        """What a test does to the cloud side of the cluster later: more groups, single instances, scaling."""
        return seeding().Account(self.localstack.endpoint, self.id, REGION, self.cluster)

    @cached_property
    def ec2(self) -> Any:
        return self.client("ec2")

    @cached_property
    def elbv2(self) -> Any:
        return self.client("elbv2")

    @cached_property
    def autoscaling(self) -> Any:
        return self.client("autoscaling")

    @cached_property
    def sts(self) -> Any:
        return self.client("sts")

    @cached_property
    def iam(self) -> Any:
        return self.client("iam")

    def client(self, service: str) -> Any:
        """A boto3 client that hardly retries: an unexpected error shall show, not be worked around."""
        return seeding().client(service, self.localstack.endpoint, self.id, REGION)
