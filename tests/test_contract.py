"""Every statement of the contracts is shown by a test, or listed with the reason why not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
#: Of the service proxy, and reports from the field.
STATEMENTS = {"P": range(1, 97), "R": range(1, 59)}


def numbers(text: str, letter: str) -> set[int]:
    """Those named in a text: P7, p7_in_a_name, and each of P7 to P9 or P7–P9."""
    found = set()
    either = f"[{letter}{letter.lower()}]"
    for first, last in re.findall(rf"\b{either}(\d+)(?:\s*(?:–|to)\s*{letter}(\d+))?(?=\b|_)", text):
        found |= set(range(int(first), int(last or first) + 1))
    return found


def part_with_tests(path: Path) -> str:
    """A Rust file's tests: all of it below tests/ or if it is called so, else what follows the attribute."""
    text = path.read_text()
    if path.name == "tests.rs" or path.parent.name == "tests":
        return text
    return text.partition("#[cfg(test)]")[2]


@pytest.mark.parametrize(
    ("letter", "document", "heading"),
    [("P", "node.md", "## The contract's numbers"), ("R", "field-reports.md", "## Without a test")],
)
def test_every_statement_is_tested_or_excepted(letter: str, document: str, heading: str) -> None:
    shown = set()
    for path in [*ROOT.glob("src/**/*.rs"), *ROOT.glob("tests/*.rs")]:
        shown |= numbers(part_with_tests(path), letter)
    for path in ROOT.glob("tests/test_*.py"):
        if path != Path(__file__):
            shown |= numbers(path.read_text(), letter)
    _, _, listed = (ROOT / "docs" / document).read_text().partition(heading)
    rows = re.findall(rf"^\| ({letter}[^|]+)\|", listed, re.MULTILINE)
    excepted = {number for row in rows for number in numbers(row, letter)}
    assert excepted
    assert not sorted(set(STATEMENTS[letter]) - shown - excepted)
    assert not sorted(excepted & shown), "listed as not shown, but a test names it"
