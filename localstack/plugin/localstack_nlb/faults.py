"""Faults that tests order: errors, delays, answers lost after the call took effect, answers held back.

A fault is chosen when a call arrives (first match in the list wins) and acts at one of two moments:

    arrives -> [delay] -> [before: error, the call does not happen] -> takes effect -> [stall] -> [after: error] -> answer
"""

import json
import re
import threading
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any

from localstack_nlb.accounts import refuse
from localstack_nlb.calls import Call

READ = re.compile(r"(Describe|List|Get)[A-Z]")


@dataclass
class Fault:
    operation: str = "*"
    service: str | None = None
    account: str | None = None
    client: str | None = None
    kind: str | None = None
    """"read" (Describe*, List*, Get*) or "write"."""
    match: str | None = None
    """A text that must occur in the request's parameters as JSON."""
    skip: int = 0
    """So many matching calls pass first."""
    count: int = 1
    """How many calls it hits then; -1 for ever."""
    code: str | None = None
    status: int = 400
    message: str | None = None
    when: str = "before"
    delay: float = 0
    stall: float = 0
    hits: int = 0
    stalled: int = 0
    seen: int = 0
    released: threading.Event = field(default_factory=threading.Event, repr=False)

    def applies(self, call: Call) -> bool:
        return (
            fnmatchcase(call.operation, self.operation)
            and self.service in (None, call.service)
            and self.account in (None, call.account)
            and self.client in (None, call.client)
            and self.kind in (None, "read" if READ.match(call.operation) else "write")
            and (self.match is None or self.match in json.dumps(call.request))
        )

    def shown(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ORDERED} | {"hits": self.hits, "stalled": self.stalled}

    def error(self) -> Exception:
        assert self.code
        return refuse(self.code, self.message or self.code, self.status)


ORDERED = [f.name for f in fields(Fault) if f.name not in ("hits", "stalled", "seen", "released")]
FAULTS: list[Fault] = []
_choosing = threading.Lock()


def parse_fault(row: dict[str, Any]) -> Fault:
    if unknown := sorted(set(row) - set(ORDERED)):
        raise ValueError(f"unknown fault fields {unknown}; there are {ORDERED}")
    fault = Fault(**row)
    if fault.when not in ("before", "after") or fault.kind not in (None, "read", "write"):
        raise ValueError("when is before or after, kind is read or write")
    if not (fault.code or fault.delay or fault.stall):
        raise ValueError("a fault without code, delay or stall does nothing")
    return fault


def replace_faults(rows: list[dict[str, Any]]) -> None:
    """A new list, all or nothing; answers that the old one holds back go out at once."""
    fresh = [parse_fault(row) for row in rows]
    with _choosing:
        old, FAULTS[:] = list(FAULTS), fresh
    for fault in old:
        fault.released.set()


def choose_fault(call: Call) -> Fault | None:
    with _choosing:
        for fault in FAULTS:
            if not fault.applies(call) or fault.count == 0:
                continue
            fault.seen += 1
            if fault.seen <= fault.skip:
                continue
            if fault.count < 0 or fault.hits < fault.count:
                fault.hits += 1
                return fault
    return None


def act_before(fault: Fault) -> None:
    if fault.delay:
        fault.released.wait(fault.delay)
    if fault.code and fault.when == "before":
        raise fault.error()


def hold_back(fault: Fault) -> None:
    """Keeps the answer for `stall` seconds, or until the list is replaced. Every request has a thread of its own
    (LocalStack's pool has 1,000), and no lock is held here: other calls go on."""
    if not fault.stall:
        return
    with _choosing:
        fault.stalled += 1
    try:
        fault.released.wait(fault.stall)
    finally:
        with _choosing:
            fault.stalled -= 1
