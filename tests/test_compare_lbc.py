"""The comparison with the AWS Load Balancer Controller judges as it says. `make compare-lbc` runs the controllers."""

from __future__ import annotations

import re

import pytest

from lbc.comparison import ABSENT, ANY, Deviation, Difference, Verdict, calls_line, judge, stale
from lbc.differences import DIFFERENCES
from lbc.facts import generated, sources, traffic
from lbc.manifests import REFUSED, SERVED, Case, full_key, public, subnet_prefix
from sandbox.weir import ROOT

PAGE = ROOT / "docs" / "from-aws-load-balancer-controller.md"
TABLE = ROOT / "src" / "model" / "annotation" / "table.rs"
#: Keys that no Service of the comparison has, since the emulator could not tell the two apart.
NOT_EMULATED = {"aws-load-balancer-quic-enabled-ports"}

SERVED_FACTS = {"served": "yes", "half-built": "[]"}
SCHEME = Difference("scheme", "because", "load balancer / Scheme", "internal", "internet-facing", unless=("scheme",))


def judged(lbc: dict[str, str], weir: dict[str, str], case: Case | None = None) -> Verdict:
    return judge("order", case or Case(), SERVED_FACTS | lbc, SERVED_FACTS | weir, [SCHEME])


def test_what_only_one_of_them_has_is_a_deviation():
    verdict = judged({"a": "1", "b": "2"}, {"b": "2", "c": "3"})
    assert verdict.unexpected == [Deviation("order", "a", "1", ABSENT), Deviation("order", "c", ABSENT, "3")]
    assert verdict.equal == len(SERVED_FACTS) + 1 and not verdict.deliberate


def test_a_difference_needs_its_path_and_both_values():
    verdict = judged({"load balancer / Scheme": "internal"}, {"load balancer / Scheme": "internet-facing"})
    assert verdict.deliberate == {"scheme": 1} and not verdict.unexpected
    assert judged({"load balancer / Scheme": "internet-facing"}, {"load balancer / Scheme": "internal"}).unexpected
    assert judged({"Scheme": "internal"}, {"Scheme": "internet-facing"}).unexpected


def test_what_a_service_asks_for_is_no_default():
    asked = Case({"scheme": "internal"})
    assert judged(
        {"load balancer / Scheme": "internal"}, {"load balancer / Scheme": "internet-facing"}, asked
    ).unexpected


def test_a_family_of_annotations_is_asked_for_by_any_of_its_keys():
    case = Case({"listener-attributes.TCP-80": "tcp.idle_timeout.seconds=600"})
    assert case.sets("listener-attributes.") and not case.sets("listener-attributes") and not case.sets("attributes")


def test_any_value_is_no_missing_value():
    difference = Difference("tags", "because", "tags / *", ANY, ANY)
    assert difference.fits(Deviation("order", "tags / a", "1", "2"), None)
    assert not difference.fits(Deviation("order", "tags / a", "1", ABSENT), None)


def test_of_a_service_that_one_does_not_serve_the_rest_is_not_compared():
    verdict = judge("order", Case(), {"served": "no", "half-built": "[]"}, {**SERVED_FACTS, "a": "1"}, [SCHEME])
    assert verdict.unexpected == [Deviation("order", "served", "no", "yes")]


def test_what_neither_serves_is_no_equality_where_both_must():
    nothing = {"served": "no", "half-built": "[]"}
    assert not judge("order", Case(), nothing, nothing, []).unexpected
    assert judge("order", Case(), nothing, nothing, [], must_be_served=True).unexpected


def test_a_difference_that_nothing_shows_is_stale():
    verdict = judged({"load balancer / Scheme": "internal"}, {"load balancer / Scheme": "internet-facing"})
    other = Difference("other", "because", "a", "1", "2")
    assert stale([verdict], [SCHEME, other]) == ["other"]


def test_calls_are_shown_with_their_ratio():
    line = calls_line("create", 2, {"read": 30, "write": 10}, {"read": 1, "write": 9})
    assert "LBC 40 (20.0 a Service; 10 writes)" in line and "weir 10 (5.0 a Service; 9 writes)" in line
    assert line.endswith("4.0 times")
    assert calls_line("change", 1, {"read": 1, "write": 0}, {"read": 0, "write": 0}).endswith("no call of weir's")


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"IpProtocol": "tcp", "FromPort": 80, "ToPort": 80}, "tcp 80"),
        ({"IpProtocol": "udp", "FromPort": 30000, "ToPort": 32767}, "udp 30000-32767"),
        ({"IpProtocol": "icmp", "FromPort": 3, "ToPort": 4}, "icmp 3 4"),
        ({"IpProtocol": "-1"}, "all"),
    ],
)
def test_rules_are_told_by_their_traffic(rule, expected):
    assert traffic(rule) == expected


def test_a_rule_has_sources_of_each_kind():
    rule = {
        "IpRanges": [{"CidrIp": "10.0.0.0/8", "Description": "ours"}],
        "Ipv6Ranges": [{"CidrIpv6": "::/0"}],
        "PrefixListIds": [{"PrefixListId": "pl-1"}],
        "UserIdGroupPairs": [{"GroupId": "sg-1"}],
    }
    assert list(sources(rule)) == [("10.0.0.0/8", "ours"), ("::/0", ""), ("pl-1", ""), ("sg-1", "")]


def test_only_names_that_were_made_up_are_hidden():
    assert {generated(name) for name in ("k8s-shop-order-12", "weir-abc-order-12")} == {"generated"}
    assert generated("order-of-shop") == "order-of-shop"


def test_subnets_are_parts_of_the_vpc():
    assert subnet_prefix("2600:1f18:12:ab00", 2) == "2600:1f18:12:ab02"
    assert subnet_prefix("2600:1f18", 1) == "2600:1f18:0:1"


def test_both_find_the_same_node_ports():
    """Blocks of them do not overlap, and end before the range does."""
    known = dict.fromkeys(re.findall(r"{(\w+)}", str([case.annotations for case in (SERVED | REFUSED).values()])), "id")
    taken: set[int] = set()
    for number, (name, case) in enumerate((SERVED | REFUSED).items()):
        for each in filter(None, (case, case.then)):
            spec = each.manifest(name, number, "any", known)["spec"]
            ports = {port["nodePort"] for port in spec["ports"] if "nodePort" in port}
            assert not ports & taken and all(30000 <= port <= 32767 for port in ports), name
        taken |= ports
    both = public({}, ("a", 80, "TCP"), ("b", 80, "UDP")).manifest("both", 0, "any", {})
    assert [port["nodePort"] for port in both["spec"]["ports"]] == [30000, 30000], "one listener, one NodePort"


def test_every_annotation_is_in_a_service():
    """A new row of weir's table has to be compared, too."""
    keys = set(re.findall(r'key!\("([a-z0-9.-]+)"\)', TABLE.read_text())) - NOT_EMULATED
    cases = [each for case in (SERVED | REFUSED).values() for each in (case, case.then) if each]
    used = {full_key(key) for case in cases for key in case.annotations}
    families = tuple(key for key in keys if key.endswith("."))
    of_families = {family for family in families for key in used if key.startswith(family)}
    assert len(keys) > 40 and keys - used == of_families == set(families)


def test_the_page_tells_of_every_difference_and_of_no_other():
    rows = re.findall(r"^\| `([a-z-]+)`", PAGE.read_text(), re.MULTILINE)
    assert sorted(rows) == sorted({difference.name for difference in DIFFERENCES})
