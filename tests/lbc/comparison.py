"""Pure: the facts of two controllers against the list of deliberate differences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from lbc.facts import Facts
from lbc.manifests import Case

#: In the place of a value: the controller has no such fact.
ABSENT = "(absent)"
#: A value that may be anything.
ANY = "*"


@dataclass(frozen=True)
class Difference:
    """Where the two are meant to differ: path and both values must fit, and the Service must not have asked otherwise.

    Path, values and names of Services are patterns of fnmatch. A difference of several facts is several of one name.
    """

    name: str
    reason: str
    path: str
    lbc: str
    weir: str
    services: tuple[str, ...] = (ANY,)
    unless: tuple[str, ...] = ()
    """Annotations that void it: what a Service asks for is no default."""

    def fits(self, found: Deviation, case: Case | None) -> bool:
        """`case` is absent for what belongs to no Service."""
        if case and any(case.sets(key) for key in self.unless):
            return False
        return (
            any(fnmatchcase(found.service, each) for each in self.services)
            and fnmatchcase(found.path, self.path)
            and fits(found.lbc, self.lbc)
            and fits(found.weir, self.weir)
        )


@dataclass(frozen=True)
class Deviation:
    """One fact that is not the same."""

    service: str
    path: str
    lbc: str
    weir: str


@dataclass
class Verdict:
    """What came out for one Service, or for what all share."""

    equal: int = 0
    deliberate: Counter[str] = field(default_factory=Counter)
    unexpected: list[Deviation] = field(default_factory=list)


def fits(value: str, pattern: str) -> bool:
    """A pattern of ANY alone wants a value that is there; without wildcards, brackets mean themselves."""
    if pattern == ANY:
        return value != ABSENT
    return value == pattern or fnmatchcase(value, pattern)


def deviations(service: str, lbc: Facts, weir: Facts) -> list[Deviation]:
    paths = sorted(lbc.keys() | weir.keys())
    pairs = ((path, lbc.get(path, ABSENT), weir.get(path, ABSENT)) for path in paths)
    return [Deviation(service, path, one, other) for path, one, other in pairs if one != other]


def judge(
    service: str, case: Case | None, lbc: Facts, weir: Facts, known: Sequence[Difference], must_be_served: bool = False
) -> Verdict:
    """Of a Service that one of them does not serve, only what is left of it is compared. One that must be served and is
    served by neither is no equality."""
    if "no" in (lbc.get("served"), weir.get("served")):
        lbc, weir = ({path: facts[path] for path in ("served", "half-built")} for facts in (lbc, weir))
    found = deviations(service, lbc, weir)
    verdict = Verdict(equal=len(lbc.keys() | weir.keys()) - len(found))
    if must_be_served and lbc.get("served") == weir.get("served") == "no":
        verdict.unexpected.append(Deviation(service, "served", "no", "no"))
    for each in found:
        if reason := next((difference for difference in known if difference.fits(each, case)), None):
            verdict.deliberate[reason.name] += 1
        else:
            verdict.unexpected.append(each)
    return verdict


def stale(verdicts: Iterable[Verdict], known: Sequence[Difference]) -> list[str]:
    """Names of differences that were not seen: they are no longer true, or nothing shows them."""
    seen = {name for verdict in verdicts for name in verdict.deliberate}
    return sorted({difference.name for difference in known} - seen)


def calls_line(phase: str, services: int, lbc: Mapping[str, int], weir: Mapping[str, int]) -> str:
    """Calls of both for the same work, by kind, and how many times as many LBC makes."""
    totals = [sum(calls.values()) for calls in (lbc, weir)]
    ratio = f"{totals[0] / totals[1]:.1f} times" if totals[1] else "no call of weir's"
    parts = [
        f"{total} ({total / services:.1f} a Service; {calls['write']} writes)"
        for total, calls in zip(totals, (lbc, weir), strict=True)
    ]
    return f"{phase:8}  LBC {parts[0]}   weir {parts[1]}   {ratio}"
