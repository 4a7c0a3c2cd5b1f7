"""Fixtures: one control plane and one emulated AWS for the run; an account, a namespace and a weir for each test."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path

import pytest
from sandbox import netns, proxies
from sandbox.aws import Account, LocalStack
from sandbox.cluster import ControlPlane
from sandbox.manifests import install
from sandbox.rig import Rig
from sandbox.scene import Scene
from sandbox.weir import Weir

#: Short enough that a test of drift repair does not wait long.
DEFAULT_FLAGS = ("--drift-interval=3s",)

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def localstack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    with LocalStack(tmp_path_factory.mktemp("localstack")) as running:
        yield running


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with ControlPlane(tmp_path_factory.mktemp("control-plane")) as running:
        yield running


@pytest.fixture(scope="session")
def installed(control_plane: ControlPlane) -> None:
    """The repository's manifests, applied to the control plane."""
    install(control_plane)


@pytest.fixture
def account(localstack: LocalStack) -> Iterator[Account]:
    """A fresh AWS account with a VPC and three workers; faults and settings end with the test.

    It is not emptied afterwards: nobody meets it again, and emptying takes the emulator two seconds.
    """
    fresh = Account(localstack, f"{next(_numbers):012d}")
    fresh.seed(workers=3)
    defaults = localstack.settings()
    yield fresh
    localstack.faults([])
    localstack.settings(**defaults)
    localstack.enforce_policies(False)


@pytest.fixture
def cluster(control_plane: ControlPlane, account: Account) -> Iterator[Scene]:
    """The account's workers as Nodes, and a namespace; both are gone after the test."""
    scene = Scene(control_plane, f"test-{account.id.lstrip('0')}", account.node_manifests())
    yield scene
    scene.close()


class WeirFactory:
    """Starts weirs for one test: `weir("--flag=value")`. They end with the test, and none of them may panic."""

    def __init__(self, scene: Scene, account: Account, directory: Path) -> None:
        self._scene, self._account, self._directory = scene, account, directory
        self.started: list[Weir] = []

    def __call__(
        self,
        *flags: str,
        kubeconfig: Path | None = None,
        key: str | None = None,
        environment: Mapping[str, str] | None = None,
        awaited: bool = True,
    ) -> Weir:
        """`kubeconfig` other than the admin's, and an access `key` other than the account's root, limit its rights.
        Not `awaited`, it is only started."""
        named = {flag.partition("=")[0] for flag in flags}
        defaults = [flag for flag in DEFAULT_FLAGS if flag.partition("=")[0] not in named]
        weir = Weir(
            self._directory,
            kubeconfig or self._scene.control_plane.kubeconfig,
            self._account.localstack.endpoint,
            key or self._account.id,
            self._account.cluster,
            *defaults,
            *flags,
            environment=environment,
        )
        self.started.append(weir)
        if awaited:
            weir.wait_ready()
        return weir

    def close(self) -> None:
        for weir in self.started:
            weir.stop()
        for weir in self.started:
            weir.assert_no_panic()


@pytest.fixture
def weir(installed: None, cluster: Scene, account: Account, tmp_path: Path) -> Iterator[WeirFactory]:
    factory = WeirFactory(cluster, account, tmp_path)
    yield factory
    factory.close()


@pytest.fixture(scope="module", params=proxies.PROXIES)
def proxy_kind(request: pytest.FixtureRequest) -> str:
    """The same traffic meets each service proxy; what differs must be among the named improvements."""
    if reason := netns.missing() or proxies.missing(request.param):
        pytest.skip(reason)
    return request.param


@pytest.fixture(scope="module")
def shared_rig(control_plane: ControlPlane, proxy_kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with Rig(control_plane, tmp_path_factory.mktemp(proxy_kind), proxy_kind, f"rig-{next(_numbers)}") as rig:
        yield rig


@pytest.fixture
def rig(shared_rig: Rig) -> Iterator[Rig]:
    """Nodes, pods and a client, and a way to make Services, which end with the test."""
    yield shared_rig
    shared_rig.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds to a failed test what a person would look at first."""
    report = yield
    if report.failed:
        fixtures = getattr(item, "funcargs", {})
        for title, collect in _diagnosis(fixtures, torn_down=report.when == "teardown").items():
            report.sections.append((title, _collected(collect)))
    return report


def _diagnosis(fixtures: dict[str, object], torn_down: bool) -> dict[str, Callable[[], str]]:
    """What the test's fixtures can tell: title and how to get it. Torn down, only log files are left."""
    parts: dict[str, Callable[[], str]] = {}
    match fixtures:
        case {"weir": WeirFactory() as factory}:
            for number, weir in enumerate(factory.started, 1):
                parts[f"log of weir {number}"] = weir.tail
    if torn_down:
        return parts
    match fixtures:
        case {"account": Account() as account}:
            parts["AWS calls of weir"] = lambda: "\n".join(map(_call_line, account.calls()[-40:]))
    match fixtures:
        case {"cluster": Scene() as scene}:
            parts["Services and their Events"] = scene.describe
    match fixtures:
        case {"rig": Rig() as rig}:
            parts["nodes and their rules"] = rig.workers.describe
    return parts


def _collected(collect: Callable[[], str]) -> str:
    try:
        return collect()
    except Exception as problem:  # the failure being reported matters more than this one
        return f"not available: {problem!r}"


def _call_line(call: dict[str, object]) -> str:
    outcome = call["code"] or call["status"] or "under way"
    return f"{call['n']:>6} {call['time']} {call['service']} {call['operation']} {outcome} {call['request']}"
