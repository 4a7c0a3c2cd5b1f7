"""A role that is given its permissions one by one, as the controller asks for them by name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from localstack_nlb.policies import listed

from sandbox.identity import Document, Role
from sandbox.process import wait_for
from sandbox.weir import Weir

#: How weir names the permission it lacks, in its log and in Events.
DENIAL = re.compile(r"AWS denies (\w+:\w+)")


def actions(policy: Document) -> set[str]:
    return {action for statement in policy["Statement"] for action in listed(statement["Action"])}


def without(policy: Document, is_dropped: Callable[[str, str], bool]) -> Document:
    """The policy without those actions of its statements; `is_dropped` is asked with the Sid and the action."""
    kept = [
        statement | {"Action": wanted}
        for statement in policy["Statement"]
        if (wanted := [action for action in listed(statement["Action"]) if not is_dropped(statement["Sid"], action)])
    ]
    return policy | {"Statement": kept}


@dataclass
class Consent:
    """Grants what weir's log asks for, out of a policy, until that is granted whole."""

    role: Role
    policy: Document
    weir: Weir
    granted: dict[str, str] = field(default_factory=dict)
    """Action -> the line in which weir asked for it."""
    _read: int = 0

    def until(self, true: Callable[[], Any], what: str, timeout: float = 30) -> None:
        """Waits, and grants meanwhile."""

        def check() -> bool:
            self._listen()
            return bool(true())

        try:
            wait_for(check, timeout, what)
        except TimeoutError as late:
            raise AssertionError(f"{late}; the last that was asked for: {list(self.granted.values())[-1:]}") from None

    def until_asked(self, action: str, timeout: float = 30) -> None:
        """Waits until weir has asked for this."""
        self.until(lambda: action in self.granted, f"weir to ask for {action}", timeout)

    def _listen(self) -> None:
        lines = [json.dumps(line) for line in self.weir.log()[self._read :]]
        self._read += len(lines)
        for line in lines:
            for action in DENIAL.findall(line):
                if action not in self.granted:  # else of a call made before it was
                    self._grant(action, line)

    def _grant(self, action: str, line: str) -> None:
        assert action in actions(self.policy), f"weir needs {action}, which iam/ grants nowhere: {line}"
        self.granted[action] = line
        self.role.allow(without(self.policy, lambda _, other: other not in self.granted))
