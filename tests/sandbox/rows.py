"""Tables of inputs: what each of them does in AWS, what it costs, and what is there once it is taken away again.

All rows of a table live side by side, each as a Service of its own under one weir, so that its waits are shared.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from sandbox.aws import Account
from sandbox.checks import ANNOTATION, balancer, listeners, note, target_of, wait_rest, writes
from sandbox.process import wait_for
from sandbox.scene import Scene

#: Where a key stands for a field of the spec.
SPEC = "spec."

Shown = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One input."""

    key: str
    """An annotation without what all of them begin with, or `spec.` and a field."""
    value: str
    shown: Shown
    """Part of what AWS shows while the input is given."""
    default: Shown
    """The same part without it."""
    calls: dict[str, int]
    """Writes that giving it to a Service that is served costs; there are no others."""
    undone: dict[str, int] | None = None
    """Writes that taking it away costs, if they are not the same."""
    absent: str | None = None
    """A spec's field cannot be taken away: its value then."""
    annotations: dict[str, str] = field(default_factory=dict)
    """What else the Service asks for, all the time."""
    spec: dict[str, Any] = field(default_factory=dict)
    """Fields of its spec, all the time."""

    def patch(self, given: bool) -> dict[str, Any]:
        value = self.value if given else self.absent
        if self.key.startswith(SPEC):
            return {"spec": {self.key.removeprefix(SPEC): value}}
        return {"metadata": {"annotations": {ANNOTATION + self.key: value}}}


class Trial:
    """The Services of a table's rows. `show` reads of AWS what there is to compare, by a Service's hostname."""

    def __init__(
        self, cluster: Scene, account: Account, rows: Iterable[Row], show: Callable[[Account, str], Shown]
    ) -> None:
        self.cluster, self.account, self.show = cluster, account, show
        self.rows = {f"row-{number}": row for number, row in enumerate(rows)}
        self.hostnames: dict[str, str] = {}

    def start(self) -> None:
        """Makes the Services with their inputs, and returns once AWS shows all of them."""
        for name, row in self.rows.items():
            given = row.patch(True)
            annotations = {ANNOTATION + key: value for key, value in row.annotations.items()}
            annotations |= given.get("metadata", {}).get("annotations", {})
            self.cluster.expose(name, annotations=annotations, **(row.spec | given.get("spec", {})))
        self.hostnames = {name: self.cluster.wait_hostname(name, 60) for name in self.rows}
        self.wait_shown(given=True)
        wait_rest(self.account)

    def turn(self, given: bool) -> None:
        """Gives or takes all inputs, and compares what AWS shows and what it cost."""
        marks = {name: self.marks(name) for name in self.rows}
        mark = self.account.mark()
        for name, row in self.rows.items():
            self.cluster.patch(name, row.patch(given))
        self.wait_shown(given)
        wait_rest(self.account)
        calls = writes(self.account, mark)
        marks = {name: [*before, *self.marks(name)] for name, before in marks.items()}
        costs, expected = {}, {}
        for name, row in self.rows.items():
            marked = [call for call in calls if any(part in json.dumps(call["request"]) for part in marks[name])]
            costs[row.key, name] = dict(Counter(call["operation"] for call in marked))
            expected[row.key, name] = row.calls if given or row.undone is None else row.undone
        others = {row: (cost, expected[row]) for row, cost in costs.items() if cost != expected[row]}
        assert not others, f"writes, and those that were expected: {others}"
        besides = len(calls) - sum(sum(cost.values()) for cost in costs.values())
        assert besides == 0, f"{besides} writes are about none of the Services"

    def marks(self, name: str) -> list[str]:
        """What stands in the ARNs of a Service's load balancer, listeners and target groups, its security group, and the
        Service's tag."""
        row = balancer(self.account, self.hostnames[name])
        known = listeners(self.account, row["LoadBalancerArn"]).values()
        tag = f"{self.cluster.namespace}/{name}"
        mine = [{"Name": "tag:weir.dev/service", "Values": [tag]}]
        groups = self.account.ec2.describe_security_groups(Filters=mine)["SecurityGroups"]
        arns = [row["LoadBalancerArn"].partition("/net/")[2], *{target_of(listener) for listener in known}]
        return [*arns, *(group["GroupId"] for group in groups), f'"{tag}"']

    def wait_shown(self, given: bool, timeout: float = 60.0) -> None:
        missing: dict[Any, Any] = {}

        def compare() -> bool:
            missing.clear()
            for name, row in self.rows.items():
                wanted = row.shown if given else row.default
                seen = self.show(self.account, self.hostnames[name])
                if different := {key: seen.get(key) for key, value in wanted.items() if seen.get(key) != value}:
                    missing[row.key, row.value] = {"seen": different, "wanted": wanted}
            return not missing

        try:
            wait_for(compare, timeout, "AWS to show what was asked for", pause=0.3)
        except TimeoutError:
            assert not missing, missing
            raise


@dataclass(frozen=True)
class Mistake:
    """An input that is refused, and the sentence about it."""

    key: str
    value: str
    wrong: str
    expected: str
    annotations: dict[str, str] = field(default_factory=dict)
    spec: dict[str, Any] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        key = self.key if self.key.startswith(SPEC) else ANNOTATION + self.key
        return f'{key}: "{self.value}" {self.wrong}; expected {self.expected}'

    @property
    def given(self) -> dict[str, str]:
        own = {} if self.key.startswith(SPEC) else {self.key: self.value}
        return {ANNOTATION + key: value for key, value in (self.annotations | own).items()}


def assert_refused(cluster: Scene, account: Account, mistakes: Iterable[Mistake]) -> None:
    """Each mistake is one sentence, and nothing is made for any of them."""
    mark = account.mark()
    named = {f"wrong-{number}": mistake for number, mistake in enumerate(mistakes)}
    for name, mistake in named.items():
        cluster.expose(name, annotations=mistake.given, **mistake.spec)
    said = {name: note(cluster, name, "InvalidConfiguration", 20) for name in named}
    differing = {said[name]: mistake.sentence for name, mistake in named.items() if said[name] != mistake.sentence}
    assert not differing, f"what was said, and what was expected: {differing}"
    assert not (calls := writes(account, mark)), calls
    for name in named:
        service = cluster.service(name)
        assert not service["metadata"].get("finalizers") and not service["status"]["loadBalancer"]


def assert_warned(cluster: Scene, warnings: Iterable[tuple[str, dict[str, str], dict[str, Any], str]]) -> None:
    """(name, annotations, spec, sentence): the Service is served all the same."""
    named = list(warnings)
    for name, annotations, spec, _ in named:
        given = {ANNOTATION + key: value for key, value in annotations.items()}
        cluster.expose(name, annotations=given, **spec)
    for name, _, _, sentence in named:
        assert (said := note(cluster, name, "ConfigurationIgnored", 20)) == sentence, said
    for name, *_ in named:
        cluster.wait_hostname(name, 60)
