"""Whether IAM policy statements allow an action on a resource: Action, Resource, Condition, and Deny over Allow.

moto's own check compares every Resource with `*` and ignores conditions. The rules here follow the IAM reference,
"Policy evaluation logic" and "IAM JSON policy elements: Condition operators". Not covered: permission boundaries,
session policies, policy variables, NotResource.
"""

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

Facts = dict[str, Any]

TESTS: dict[str, Callable[[str, str], bool]] = {
    "StringEquals": lambda have, wanted: have == wanted,
    "StringEqualsIgnoreCase": lambda have, wanted: have.lower() == wanted.lower(),
    "StringLike": fnmatchcase,
    "ArnEquals": fnmatchcase,
    "ArnLike": fnmatchcase,
    "Bool": lambda have, wanted: str(have).lower() == str(wanted).lower(),
}


def listed(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def condition_holds(operator: str, key: str, wanted: Any, facts: Facts) -> bool:
    """One operator on one key. A missing key fails a plain operator and satisfies a negated one, an ...IfExists or a
    ForAllValues."""
    have = next((value for name, value in facts.items() if name.lower() == key.lower()), None)
    quantifier, _, name = operator.rpartition(":")
    if name == "Null":
        return (have is None) == (str(listed(wanted)[0]).lower() == "true")
    negated = "Not" in name
    if have is None:
        return quantifier == "ForAllValues" or name.endswith("IfExists") or (negated and quantifier != "ForAnyValue")
    test = TESTS[name.removesuffix("IfExists").replace("Not", "")]
    hits = [any(test(value, pattern) for pattern in listed(wanted)) != negated for value in listed(have)]
    return any(hits) if quantifier == "ForAnyValue" else all(hits)


def statement_applies(statement: dict, action: str, resource: str, facts: Facts) -> bool:
    def named(patterns: Any) -> bool:
        return any(fnmatchcase(action.lower(), pattern.lower()) for pattern in listed(patterns))

    if "Action" in statement and not named(statement["Action"]):
        return False
    if "NotAction" in statement and named(statement["NotAction"]):
        return False
    if "Resource" in statement and not any(p == "*" or fnmatchcase(resource, p) for p in listed(statement["Resource"])):
        return False
    return all(
        condition_holds(operator, key, wanted, facts)
        for operator, pairs in statement.get("Condition", {}).items()
        for key, wanted in pairs.items()
    )


def allowed(statements: list[dict], action: str, resource: str, facts: Facts) -> bool:
    effects = {s["Effect"] for s in statements if statement_applies(s, action, resource, facts)}
    return "Allow" in effects and "Deny" not in effects
