#!/usr/bin/env python3
"""Applies the same Services to the AWS Load Balancer Controller and to weir, and compares what AWS then has.

    make compare-lbc LBC=path/to/controller
    make compare-lbc LBC=path/to/controller ARGS="--only 'tls*' --verbose"

Both run one after the other on one control plane of real parts, each in an account of its own of the emulated AWS. The
Services are created, then some of them are changed, then all are deleted; AWS calls of both are counted. Services that
one of the two refuses come after that and are not counted. At last both run in one account, and Services go from one to
the other as docs/from-aws-load-balancer-controller.md says. It takes about seven minutes.

LBC is not part of this repository and is not built by it: take its program, called `controller`, out of the release
image of version 3.5. That is why `make test` does not run this.

Exit code 1: a difference that tests/lbc/differences.py does not name, or a named one that was not seen.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from lbc import controller, migration
from lbc.comparison import Verdict, calls_line, judge, stale
from lbc.differences import DIFFERENCES
from lbc.facts import Facts, Reading
from lbc.manifests import REFUSED, SERVED, Case, Furniture
from sandbox import scene
from sandbox.aws import Account, LocalStack
from sandbox.checks import CALM
from sandbox.cluster import ControlPlane
from sandbox.process import wait_for
from sandbox.scene import Scene
from sandbox.weir import Weir, binary

NAMESPACE = "shop"
QUIET_SECONDS = 5.0
#: LBC goes on trying what it cannot do, so that there may be no quiet after a refusal.
REFUSAL_SECONDS = 45.0
PATIENCE_SECONDS = 300.0

#: What all Services of a controller share is judged under this name.
SHARED = "(all Services)"
CHANGED = " (changed)"
READS = ("Describe", "List", "Get")


@dataclass
class Observed:
    """What one controller made of the Services."""

    facts: dict[str, Facts] = field(default_factory=dict)
    calls: dict[str, Counter[str]] = field(default_factory=dict)
    """By phase: reads and writes."""
    errors: dict[str, Counter[str]] = field(default_factory=dict)
    """By phase: what AWS refused."""
    words: dict[str, list[str]] = field(default_factory=dict)
    """Warnings about each Service."""


@dataclass
class Kind:
    """One of the two controllers: its Services' class, and what its calls are logged under."""

    name: str
    account: str
    client: str
    load_balancer_class: str


LBC = Kind("LBC", "000000000001", "other", controller.LOAD_BALANCER_CLASS)
WEIR = Kind("weir", "000000000002", "rust", scene.LOAD_BALANCER_CLASS)
BOTH_ACCOUNT = "000000000003"


class Side:
    """One controller at work on the Services, in an account and on Nodes of its own."""

    def __init__(self, kind: Kind, place: Place, cases: dict[str, Case]) -> None:
        self.kind, self.cases = kind, cases
        self.cluster, self.account, self.furniture = place.cluster, place.account, place.furniture
        self.numbers = {name: number for number, name in enumerate([*SERVED, *REFUSED])}
        self.observed = Observed()

    def observe(self) -> Observed:
        served = [name for name in SERVED if name in self.cases]
        refused = [name for name in REFUSED if name in self.cases]
        changing = [name for name in served if self.cases[name].then]
        if served:
            self._counted("create", lambda: self._create(served))
            self._read(served)
            self.observed.facts[SHARED] = self._reading().of_cluster()
        if changing:
            self._counted("change", lambda: self._change(changing))
            self._read(changing, CHANGED)
        if served:
            self._counted("delete", lambda: self._delete(served))
        if refused:
            self._create(refused, REFUSAL_SECONDS)
            self._read(refused)
            self._delete(refused)
        return self.observed

    # --- phases

    def _create(self, names: list[str], patience: float = PATIENCE_SECONDS) -> None:
        for name in names:
            self._apply(name, self.cases[name])
        wait_for(
            lambda: all(map(self._settled, names)), PATIENCE_SECONDS, "each Service to be served, or a word on it", 0.5
        )
        self._quiet(patience)

    def _change(self, names: list[str]) -> None:
        for name in names:
            if then := self.cases[name].then:
                self._apply(name, then)
        self._quiet()

    def _delete(self, names: list[str]) -> None:
        for name in names:
            self.cluster.delete(name)
        for name in names:
            self.cluster.wait_gone(name, PATIENCE_SECONDS)
        self._quiet()

    def _apply(self, name: str, case: Case) -> None:
        manifest = case.manifest(name, self.numbers[name], self.kind.load_balancer_class, self.furniture.known)
        self.cluster.kube.apply(self.cluster.path("services", name), manifest)

    def _settled(self, name: str) -> bool:
        return bool(self.cluster.hostname(name) or self._warnings(name))

    def _quiet(self, patience: float = PATIENCE_SECONDS) -> None:
        """Returns when the controller has made no call for a while, or when patience ends."""
        last, since, deadline = -1, time.monotonic(), time.monotonic() + patience
        while time.monotonic() - since < QUIET_SECONDS and time.monotonic() < deadline:
            time.sleep(0.5)
            calls = self.account.calls(client=self.kind.client)
            if (newest := max((call["n"] for call in calls), default=0)) != last:
                last, since = newest, time.monotonic()

    # --- what came of it

    def _counted(self, phase: str, work: Callable[[], None]) -> None:
        mark = self.account.mark()
        work()
        calls = self.account.calls(mark, self.kind.client)
        kinds = ["read" if call["operation"].startswith(READS) else "write" for call in calls]
        self.observed.calls[phase] = Counter(kinds)
        failed = (f"{call['operation']}: {call['code']}" for call in calls if call["code"])
        self.observed.errors[phase] = Counter(failed)

    def _reading(self) -> Reading:
        return Reading(self.account, self.furniture.roles)

    def _read(self, names: list[str], suffix: str = "") -> None:
        reading = self._reading()
        for name in names:
            self.observed.facts[name + suffix] = reading.of_service(self.cluster.service(name))
            self.observed.words[name + suffix] = self._warnings(name)

    def _warnings(self, name: str) -> list[str]:
        """The last warning of each reason; LBC's differ by the id of a request."""
        selector = f"involvedObject.name={name},type=Warning"
        events = self.cluster.kube.list(self.cluster.path("events"), fieldSelector=selector)
        last = {event["reason"]: event["message"] for event in events}
        return [f"{reason}: {message}" for reason, message in last.items()]


# --- the parts, started and ended


class Sandbox:
    """A control plane, an emulated AWS, and the two programs."""

    def __init__(self, program: Path, control_plane: ControlPlane, localstack: LocalStack, directory: Path) -> None:
        self.program, self.control_plane, self.localstack, self.directory = (
            program,
            control_plane,
            localstack,
            directory,
        )

    @contextmanager
    def place(self, account: str) -> Iterator[Place]:
        """An account with workers, which are the cluster's Nodes as long as it is used."""
        place = Place(self.control_plane, Account(self.localstack, account))
        yield place
        place.cluster.close()
        path = f"/api/v1/namespaces/{NAMESPACE}"
        self.control_plane.kube.wait(lambda: self.control_plane.kube.find(path) is None, 60, "the namespace to go")

    @contextmanager
    def running(self, kind: Kind, place: Place, *flags: str) -> Iterator[None]:
        process = self._lbc(place.account) if kind is LBC else self._weir(place.account, *flags)
        try:
            process.wait_ready()
            yield
        finally:
            process.stop()

    def _lbc(self, account: Account) -> controller.Controller:
        directory, endpoint = self.directory / f"lbc-{account.id}", self.localstack.endpoint
        return controller.Controller(
            self.program, directory, self.control_plane, endpoint, account.id, account.cluster, account.names["vpc"]
        )

    def _weir(self, account: Account, *flags: str) -> Weir:
        directory, endpoint = self.directory / f"weir-{account.id}", self.localstack.endpoint
        return Weir(directory, self.control_plane.kubeconfig, endpoint, account.id, account.cluster, *flags)


class Place:
    """An account, what its Services name, and a namespace for them."""

    def __init__(self, control_plane: ControlPlane, account: Account) -> None:
        self.account = account
        account.seed(workers=3)
        self.furniture = Furniture(account)
        self.cluster = Scene(control_plane, NAMESPACE, self.furniture.label_workers(account.node_manifests()))


def observe_both(sandbox: Sandbox, cases: dict[str, Case]) -> dict[str, Observed]:
    observed = {}
    for kind in (LBC, WEIR):
        started = time.monotonic()
        with sandbox.place(kind.account) as place, sandbox.running(kind, place, CALM):
            observed[kind.name] = Side(kind, place, cases).observe()
        say(f"{kind.name}: {len(cases)} Services in {time.monotonic() - started:.0f} s")
    return observed


def migrate(sandbox: Sandbox) -> None:
    say("from LBC to weir:")
    with sandbox.place(BOTH_ACCOUNT) as place, sandbox.running(LBC, place), sandbox.running(WEIR, place):
        migration.walk(place.cluster, place.account, say)


def say(line: str = "") -> None:
    print(line, flush=True)


# --- the report


def verdicts_of(cases: dict[str, Case], observed: dict[str, Observed]) -> dict[str, Verdict]:
    lbc, weir = observed[LBC.name].facts, observed[WEIR.name].facts
    verdicts = {}
    for name in lbc:
        case = cases.get(name.removesuffix(CHANGED))
        asked = case.then if case and name.endswith(CHANGED) else case
        must_be_served = name.removesuffix(CHANGED) in SERVED
        verdicts[name] = judge(name, asked, lbc[name], weir[name], DIFFERENCES, must_be_served)
    return verdicts


def report(cases: dict[str, Case], observed: dict[str, Observed], verbose: bool, whole: bool) -> bool:
    """Prints all of it; whether it is as it should be."""
    verdicts = verdicts_of(cases, observed)
    report_services(verdicts, observed, verbose)
    report_differences(verdicts)
    report_calls(cases, observed)
    unseen = stale(verdicts.values(), DIFFERENCES) if whole else []
    for name in unseen:
        say(f"not seen: {name}. Take it out of tests/lbc/differences.py and the page, or add a Service that shows it.")
    unexpected = sum(len(verdict.unexpected) for verdict in verdicts.values())
    equal = sum(verdict.equal for verdict in verdicts.values())
    deliberate = sum(verdict.deliberate.total() for verdict in verdicts.values())
    say(f"{len(verdicts)} states: {equal} facts equal, {deliberate} deliberately different, {unexpected} unexpected")
    return not unexpected and not unseen


def report_services(verdicts: dict[str, Verdict], observed: dict[str, Observed], verbose: bool) -> None:
    width = max(map(len, verdicts))
    for name, verdict in verdicts.items():
        counts = (
            f"{verdict.equal:4} equal {verdict.deliberate.total():4} deliberate {len(verdict.unexpected):3} unexpected"
        )
        say(f"{name:{width}} {counts}")
        for each in verdict.unexpected:
            say(f"    {each.path}: LBC {each.lbc!r}, weir {each.weir!r}")
        if verbose or verdict.unexpected:
            for kind, seen in observed.items():
                for word in seen.words.get(name, []):
                    say(f"    {kind} says {word}")
        if verbose:
            for difference, count in sorted(verdict.deliberate.items()):
                say(f"    {difference}, {count} times")


def report_differences(verdicts: dict[str, Verdict]) -> None:
    say()
    say("deliberate differences:")
    counts = sum((verdict.deliberate for verdict in verdicts.values()), Counter())
    for name, reason in {each.name: each.reason for each in DIFFERENCES}.items():
        if counts[name]:
            say(f"  {name}, {counts[name]} times: {reason}")


def report_calls(cases: dict[str, Case], observed: dict[str, Observed]) -> None:
    say()
    say("AWS calls:")
    lbc, weir = observed[LBC.name], observed[WEIR.name]
    served = [case for name, case in cases.items() if name in SERVED]
    services = {"create": len(served), "change": len([case for case in served if case.then]), "delete": len(served)}
    for phase in lbc.calls:
        say("  " + calls_line(phase, services[phase], lbc.calls[phase], weir.calls[phase]))
        for kind, seen in observed.items():
            for error, count in seen.errors[phase].items():
                say(f"            {kind} got {error}, {count} times")
    say()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lbc", type=Path, required=True, help="LBC's program")
    parser.add_argument("--only", default="*", help="pattern of the Services' names; nothing else is done then")
    parser.add_argument(
        "--verbose", action="store_true", help="warnings about and deliberate differences of each Service"
    )
    parser.add_argument("--directory", type=Path, help="where logs stay; otherwise they go with the run")
    options = parser.parse_args()
    cases = {name: case for name, case in {**SERVED, **REFUSED}.items() if fnmatchcase(name, options.only)}
    if not cases:
        parser.error(f"--only: {options.only!r} is the name of no Service")
    for program in (options.lbc, binary()):
        if not (program.is_file() and os.access(program, os.X_OK)):
            parser.error(f"{str(program)!r} is no program")
    whole = options.only == "*"
    with ExitStack() as stack:
        if options.directory:
            options.directory.mkdir(parents=True, exist_ok=True)
            directory = Path(tempfile.mkdtemp(prefix="compare-lbc-", dir=options.directory)).resolve()
        else:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compare-lbc-")))
        localstack = stack.enter_context(LocalStack(directory / "localstack"))
        control_plane = stack.enter_context(ControlPlane(directory / "control-plane"))
        sandbox = Sandbox(options.lbc.resolve(), control_plane, localstack, directory)
        is_well = report(cases, observe_both(sandbox, cases), options.verbose, whole)
        if whole:
            migrate(sandbox)
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
