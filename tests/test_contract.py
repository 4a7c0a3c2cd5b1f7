"""Every statement of the service proxy contract is shown by a test, or listed with the reason why not."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STATEMENTS = range(1, 97)


def numbers(text: str) -> set[int]:
    """Those named in a text: P7, p7_in_a_name, and each of P7 to P9 or P7–P9."""
    found = set()
    for first, last in re.findall(r"\b[Pp](\d+)(?:\s*(?:–|to)\s*P(\d+))?(?=\b|_)", text):
        found |= set(range(int(first), int(last or first) + 1))
    return found


def part_with_tests(path: Path) -> str:
    """A Rust file's tests: all of it below tests/ or if it is called so, else what follows the attribute."""
    text = path.read_text()
    if path.name == "tests.rs" or path.parent.name == "tests":
        return text
    return text.partition("#[cfg(test)]")[2]


def test_every_statement_is_tested_or_excepted() -> None:
    shown = set()
    for path in [*ROOT.glob("src/**/*.rs"), *ROOT.glob("tests/*.rs")]:
        shown |= numbers(part_with_tests(path))
    for path in ROOT.glob("tests/test_*.py"):
        if path != Path(__file__):
            shown |= numbers(path.read_text())
    _, _, listed = (ROOT / "docs" / "node.md").read_text().partition("## The contract's numbers")
    excepted = {number for row in re.findall(r"^\| (P[^|]+)\|", listed, re.MULTILINE) for number in numbers(row)}
    assert excepted
    assert not sorted(set(STATEMENTS) - shown - excepted)
    assert not sorted(excepted & shown), "listed as not shown, but a test names it"
