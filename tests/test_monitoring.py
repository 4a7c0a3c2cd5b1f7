"""What an operator looks at: metrics as the documentation says, and a dashboard and alerts that ask for what there is.

The metrics are scraped from a controller that had work, failures and drift, and from a node that forwards. What is asked
is parsed as PromQL, and looked for in what was scraped.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

import promql_parser as promql
import pytest
import yaml
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from sandbox import netns, proxies
from sandbox.checks import ANNOTATION, node_rules, serve, wait_rest
from sandbox.manifests import MANIFESTS
from sandbox.process import LOOPBACK, wait_for
from sandbox.proxies import METRICS_PORT
from sandbox.rig import Rig, soon
from sandbox.weir import ROOT
from sandbox.wire import get

MONITORING = MANIFESTS / "components" / "monitoring"
OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
#: What a Prometheus adds to each series it scrapes; a metric's own label of that name would be renamed.
OF_THE_TARGET = {"job", "instance", "namespace", "pod", "container", "service", "endpoint", "node"}
#: Of a controller with a few Services and of a node: far from what would hurt a Prometheus.
MANY = 1500


@dataclass(frozen=True)
class Documented:
    name: str
    kind: str
    labels: frozenset[str]


def documented(heading: str) -> dict[str, Documented]:
    """The table below a heading of docs/metrics.md."""
    text = (ROOT / "docs" / "metrics.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \|", text, re.MULTILINE)
    return {name: Documented(name, kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


class Scrape:
    """What one process shows, read by a strict parser of OpenMetrics."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    def shown(self) -> dict[str, Documented]:
        """Each metric as the documentation would have it."""
        suffixes = {"counter": "_total", "info": "_info"}
        found = {}
        for family in self.families.values():
            name = family.name + suffixes.get(family.type, "")
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            found[name] = Documented(name, family.type, frozenset(labels))
        return found

    def series(self, name: str) -> list[dict[str, str]]:
        return [sample.labels for sample in self.samples if sample.name == name]

    def value(self, name: str, **labels: str) -> float:
        values = [each.value for each in self.samples if each.name == name and labels.items() <= each.labels.items()]
        return sum(values)


def assert_as_documented(scrape: Scrape, heading: str) -> None:
    assert scrape.shown() == documented(heading)


def assert_well_named(scrape: Scrape) -> None:
    """What promtool would complain about, and what makes trouble in Kubernetes."""
    for family in scrape.families.values():
        assert re.fullmatch(r"(weir|process)_[a-z][a-z0-9_]*", family.name), family.name
        assert not re.search(r"_(total|count|sum|bucket|info|milliseconds|ms|minutes|kilobytes)$", family.name)
        assert len(family.documentation) > 5 and not family.documentation.endswith(".."), family.name
        for unit in ("seconds", "bytes"):
            assert (family.unit == unit) == family.name.endswith(f"_{unit}"), family.name
        for sample in family.samples:
            assert not OF_THE_TARGET & set(sample.labels), sample
    assert len(scrape.samples) < MANY


@pytest.fixture(scope="module")
def proxy_kind() -> str:
    if reason := netns.missing() or proxies.missing("weir"):
        pytest.skip(reason)
    return "weir"


# --- the controller


@pytest.fixture
def worked(cluster, account, weir) -> Iterator:
    """A controller whose Services are ready, refused, failed and gone, and to which AWS was not always kind."""
    controller = weir("--drift-interval=1s", "--retry-max-interval=2s")
    serve(cluster, account)
    break_something(account)
    wait_for(lambda: Scrape(controller.metrics()).value("weir_drift_repairs_total") > 0, 20, "a repair")
    cluster.expose("refused", annotations={f"{ANNOTATION}scheme": "nowhere"})
    cluster.wait_event("refused", "InvalidConfiguration")
    account.faults(
        {"operation": "CreateLoadBalancer", "code": "TooManyLoadBalancers", "count": -1},
        {"operation": "DescribeTags", "code": "Throttling", "count": 4},
        {"operation": "DescribeSubnets", "code": "UnauthorizedOperation", "status": 403},
        {"operation": "DescribeLoadBalancers", "code": "ExpiredToken", "status": 403},
    )
    cluster.expose("failed")
    cluster.wait_event("failed", "AwsQuotaExceeded")
    cluster.expose("gone", annotations={f"{ANNOTATION}scheme": "nowhere"})
    cluster.wait_event("gone", "InvalidConfiguration")
    cluster.delete("gone")
    results = ("AwsThrottled", "AwsAccessDenied", "AwsCredentialsInvalid", "AwsQuotaExceeded")

    def failed() -> bool:
        scrape = Scrape(controller.metrics())
        return all(scrape.value("weir_aws_calls_total", result=result) for result in results)

    wait_for(failed, 30, "calls that fail in each way")
    yield controller


def break_something(account) -> None:
    """Lets another source into the Service's own group."""
    [group] = [
        each
        for each in account.ec2.describe_security_groups()["SecurityGroups"]
        if {"Key": "weir.dev/resource", "Value": "frontend-group"} in each.get("Tags", [])
    ]
    rule = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    account.ec2.authorize_security_group_ingress(GroupId=group["GroupId"], IpPermissions=[rule])


def test_the_controllers_metrics_say_how_things_stand(cluster, account, worked):
    scrape = Scrape(worked.metrics())
    assert_as_documented(scrape, "Controller")
    assert_well_named(scrape)
    assert scrape.value("weir_leader") == 1
    ready = {each["service_name"]: each for each in scrape.series("weir_service_ready")}
    assert set(ready) == {"order", "refused", "failed"}
    assert all(each["service_namespace"] == cluster.namespace for each in ready.values())
    assert [scrape.value("weir_service_ready", service_name=name) for name in ("order", "failed")] == [1, 0]
    states = {state: scrape.value("weir_services", state=state) for state in ("ready", "refused", "failed", "deleting")}
    assert states == {"ready": 1, "refused": 1, "failed": 1, "deleting": 0}
    assert scrape.value("weir_auto_scaling_group_target_groups", auto_scaling_group="workers") >= 1
    assert scrape.value("weir_nodes") == len(account.names["instances"])
    assert scrape.value("weir_events_total", reason="InvalidConfiguration") == 2
    attempts = scrape.value("weir_aws_attempts_total", action="elasticloadbalancing:DescribeTags", result="error")
    assert attempts == 4, "the SDK's own retries count"
    assert abs(time.time() - scrape.value("weir_drift_check_last_success_timestamp_seconds")) < 30
    account.faults()
    wait_for(lambda: cluster.hostname("failed"), 20, "the failed one to come up")
    for name in ("order", "refused", "failed"):
        cluster.delete(name)
        cluster.wait_gone(name)
    wait_for(lambda: not Scrape(worked.metrics()).series("weir_service_ready"), 10, "what is gone to be gone")


def test_each_line_of_the_log_about_a_service_names_it_and_says_why(cluster, account, weir):
    """One line for each decision: the step, the Service it is for, and what made it necessary."""
    controller = weir("--drift-interval=1s")
    serve(cluster, account)
    break_something(account)
    wait_for(lambda: any("no longer allow" in line.get("step", "") for line in controller.log()), 20, "a repair")
    wait_rest(account)
    cluster.delete("order")
    cluster.wait_gone("order")
    wait_for(lambda: not node_rules(account), 20, "what all share to go")
    lines = controller.log()
    assert not [line for line in lines if "text" in line], "every line is JSON"
    steps = [line for line in lines if line["message"] == "applying"]
    key = f"{cluster.namespace}/order"
    shared = [line for line in steps if line.get("span", {}).get("service") != key]
    assert all("node group" in line["step"] or "security group" in line["step"] for line in shared)
    whys = {line["step"].split()[0]: line["span"]["because"] for line in steps if line not in shared}
    assert whys["create"] == "the Service asks for it"
    assert whys["delete"] == "the Service is being deleted"
    [repair] = [line for line in steps if line["step"].startswith("no longer allow in security group")]
    assert repair["span"]["because"].startswith("it has not changed since it was settled")
    attached = [line for line in lines if line["message"] in ("attaching", "detaching")]
    assert attached and all(line["services"] == key for line in attached)
    assert all(line["level"] and line["timestamp"] for line in lines)


# --- the node


def scrape_node(rig: Rig) -> Scrape:
    answer = get(rig.node_a, LOOPBACK, METRICS_PORT, "/metrics")
    assert answer and answer.status == 200 and answer.headers["content-type"] == OPEN_METRICS
    return Scrape(answer.body)


@pytest.fixture
def forwarded(rig: Rig) -> Scrape:
    """A node that has seen changes, somebody at its table, and probes."""
    service = rig.service([rig.a1, rig.b1], type="NodePort", externalTrafficPolicy="Local")
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"), ("b1", "caller"))
    service.set_endpoints([rig.b1])
    rig.node_a.namespace.run("nft", "add", "chain", "ip", "weir", "visitor")
    get(rig.node_a, LOOPBACK, rig.proxy.healthz_port, "/livez")

    def complete() -> None:
        scrape = scrape_node(rig)
        assert scrape.value("weir_node_table_disturbances_total", family="IPv4") >= 1
        assert scrape.value("weir_node_services_without_local_endpoints", traffic_policy="external") >= 1
        assert scrape.shown() == documented("Node")

    soon(complete)
    return scrape_node(rig)


def test_a_nodes_metrics_are_as_documented(forwarded):
    assert_as_documented(forwarded, "Node")
    assert_well_named(forwarded)
    assert forwarded.value("weir_node_eligible") == 1
    assert forwarded.value("weir_node_services") >= 1


# --- what is asked


class Asked:
    """An expression: what it selects, and by which labels it groups and joins."""

    def __init__(self, expression: str) -> None:
        self.selectors: list[promql.VectorSelector] = []
        #: Of each aggregation.
        self.groupings: list[set[str]] = []
        self.labels: set[str] = set()
        promql.walk(promql.parse(expression), self._visit)

    def _visit(self, expression: promql.Expr) -> bool:
        match expression:
            case promql.VectorSelector():
                self.selectors.append(expression)
            case promql.MatrixSelector():
                self.selectors.append(expression.vector_selector)
            case promql.AggregateExpr(modifier=modifier):
                self.groupings.append(set(modifier.labels if modifier else []))
                self.labels |= self.groupings[-1]
            case promql.BinaryExpr(modifier=modifier) if modifier:
                self.labels |= set(modifier.group_labels or [])
                self.labels |= set(modifier.matching.labels if modifier.matching else [])
        return True


def assert_answerable(expression: str, scrapes: list[Scrape]) -> None:
    """Every metric exists, with every label it is asked for, and the values that are asked for occur."""
    asked = Asked(expression)
    known: set[str] = set()
    for selector in asked.selectors:
        series = [labels for scrape in scrapes for labels in scrape.series(selector.name)]
        assert series, f"{expression}: there is no {selector.name}"
        names = {label for labels in series for label in labels}
        known |= names
        for matcher in selector.matchers.matchers:
            assert matcher.name in names, f"{expression}: {selector.name} has no label {matcher.name}"
            values = {labels.get(matcher.name) for labels in series}
            assert matcher.value in values, f"{expression}: {matcher.name} is never {matcher.value}"
    unknown = asked.labels - known - OF_THE_TARGET
    assert not unknown, f"{expression}: no metric has {unknown}"


def panels() -> list[dict]:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def alerts() -> list[dict]:
    rules = yaml.safe_load((MONITORING / "rules.yaml").read_text())
    return [rule for group in rules["spec"]["groups"] for rule in group["rules"]]


def test_the_dashboard_and_the_alerts_ask_for_what_there_is(worked, forwarded):
    scrapes = [Scrape(worked.metrics()), forwarded]
    queries = [target for panel in panels() for target in panel["targets"]]
    for query in queries:
        assert_answerable(query["expr"], scrapes)
        shown = set(re.findall(r"{{(\w+)}}", query["legendFormat"]))
        assert shown <= Asked(query["expr"]).labels | OF_THE_TARGET, query["expr"]
    for alert in alerts():
        assert_answerable(alert["expr"], scrapes)
        shown = set(re.findall(r"\$labels\.(\w+)", json.dumps(alert["annotations"])))
        assert shown <= Asked(alert["expr"]).labels | OF_THE_TARGET, alert["alert"]
    asked = {each.name for query in queries for each in Asked(query["expr"]).selectors}
    asked = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    left_out = set(documented("Controller")) | set(documented("Node"))
    assert left_out - asked == {"weir_node_livez_total"}, "every other metric is on the dashboard"


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("sum(weir_leaders)", "there is no weir_leaders"),
        ("sum by (service) (weir_leader) + sum by (zone) (weir_leader)", "no metric has {'zone'}"),
        ('weir_services{stat="ready"}', "has no label stat"),
        ('weir_services{state="happy"}', "is never happy"),
    ],
)
def test_a_wrong_question_is_noticed(expression: str, words: str) -> None:
    text = '# TYPE weir_leader gauge\nweir_leader 1\n# TYPE weir_services gauge\nweir_services{state="ready"} 1\n# EOF\n'
    with pytest.raises(AssertionError, match=re.escape(words)):
        assert_answerable(expression, [Scrape(text)])


def test_no_alert_adds_up_what_two_installations_show() -> None:
    """Two leaders in two namespaces are one each; a label of the cluster has a place in each clause too."""
    alike = {alert["alert"] for alert in alerts() if not all(Asked(alert["expr"]).groupings)}
    assert not alike, "each aggregation says by what"


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    page = (ROOT / "docs" / "runbooks.md").read_text()
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert [alert["alert"] for alert in alerts()] == list(sections), "in the same order"
    for alert in alerts():
        anchor = f"docs/runbooks.md#{alert['alert'].lower()}"
        assert alert["annotations"]["runbook_url"].endswith(anchor)
        assert alert["annotations"]["summary"].endswith(".")
        assert alert["labels"]["severity"] in ("critical", "warning", "info")
        assert "**Means:**" in sections[alert["alert"]] and "**Do:**" in sections[alert["alert"]]


def test_every_panel_has_a_place_of_its_own_and_a_title() -> None:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert panel["title"] and not cells & taken and place["x"] + place["w"] <= 24
        taken |= cells
    identifiers = [panel["id"] for panel in dashboard["panels"]]
    assert len(identifiers) == len(set(identifiers))
