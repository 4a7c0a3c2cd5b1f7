"""Traces by OTLP: what a collector gets, and what a collector that is not there does not hinder."""

from __future__ import annotations

import time

from sandbox.collector import Collector
from sandbox.process import LOOPBACK, free_port, wait_for

DENIED = {"code": "AccessDenied", "status": 403, "message": "not allowed"}
#: The SDK gathers spans for five seconds unless told otherwise.
OFTEN = {"OTEL_BSP_SCHEDULE_DELAY": "200", "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test"}
CANNOT = "cannot send traces: they are lost until the collector takes them"


def test_reconciles_are_traced_with_their_calls_and_a_missing_collector_hinders_none(cluster, account, weir):
    port = free_port()
    started = weir("--retry-max-interval=2s", f"--otlp-endpoint=http://{LOOPBACK}:{port}", environment=OFTEN)

    def said(message: str) -> int:
        return sum(line["message"] == message for line in started.log())

    cluster.expose("early")
    cluster.wait_hostname("early")
    wait_for(lambda: said(CANNOT), 10, "the warning")
    for name in ("second", "third"):
        cluster.expose(name)
        cluster.wait_hostname(name)
    assert said(CANNOT) == 1, "said once, not for each batch"

    account.faults({"operation": "CreateTargetGroup", **DENIED})
    with Collector(port) as collector:
        cluster.expose("order")

        def failed():
            calls = collector.named("elasticloadbalancing:CreateTargetGroup")
            return next((call for call in calls if call.is_error), None)

        call = wait_for(failed, 30, "the call that is denied")
        of = {"k8s.namespace.name": cluster.namespace, "k8s.service.name": "order", "outcome": "failed"}

        def reconciled():
            spans = collector.named("reconcile")
            return next((span for span in spans if of.items() <= span.attributes.items()), None)

        root = wait_for(reconciled, 10, "the reconcile it belongs to")
        assert root.parent == "" and (call.trace, call.parent) == (root.trace, root.id)
        about = {"rpc.system": "aws-api", "rpc.service": "elasticloadbalancing", "rpc.method": "CreateTargetGroup"}
        assert (about | {"error.type": "AccessDenied"}).items() <= call.attributes.items()
        assert root.resource["service.name"] == "weir"
        assert root.resource["deployment.environment.name"] == "test"
        assert said("traces arrive again") == 1
        told = {line["span"]["service"] for line in started.log() if line.get("span", {}).get("trace_id") == root.trace}
        assert told == {f"{cluster.namespace}/order"}, "the log leads to the trace"

        account.faults()
        cluster.wait_hostname("order")
        assert {span.parent for span in collector.named("reconcile")} == {""}

    began = time.monotonic()
    assert started.stop() == 0
    assert time.monotonic() - began < 5, "the last batch is given two seconds"
