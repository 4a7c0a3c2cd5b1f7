"""Whoever sets something wrong learns it: an exit code and a sentence, or a process that is not ready and says why.

What cannot become right by itself ends weir, and the last line of its log is the reason. What can, is waited for.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from sandbox.checks import writes
from sandbox.process import LOOPBACK, free_port, wait_for
from sandbox.weir import binary

#: A leader tries again after one, two, four, ... seconds.
SOON = 15.0
SOURCE = Path(__file__).resolve().parents[1] / "src"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(binary()), *arguments], env=environment, capture_output=True, text=True, timeout=20, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["controller", "--cluster-name=demo", "--drift-intervall=1m"], "'--drift-intervall'"),
        (["controller"], "--cluster-name"),
        (["controller", "--cluster-name=a b"], "expected 1 to 100 letters, digits, hyphens"),
        (["controller", "--cluster-name=demo", "--drift-interval=5"], "expected a time such as 30s or 5m"),
        (["controller", "--cluster-name=demo", "--node-port-range=2-1"], "expected two ports, the lower first"),
        (["node", "--node-name=n", "--masquerade-mark=0x4000"], "used by kube-proxy"),
        (["node", "--otlp-endpoint=collector:4318"], "expected the http:// URL of a collector"),
        (["forward"], "'forward'"),
    ],
)
def test_a_command_line_that_makes_no_sense_ends_with_2_and_says_what_is_wrong(arguments: list[str], words: str):
    done = run(*arguments)
    assert done.returncode == 2 and words in done.stderr, done.stderr


def test_a_variable_is_judged_like_its_flag():
    done = run("controller", WEIR_CLUSTER_NAME="demo", WEIR_CONCURRENCY="0")
    assert done.returncode == 2 and "--concurrency" in done.stderr, done.stderr


def reason(log: str) -> str:
    """The last line of a log, which must say why weir ended."""
    last = json.loads(log.splitlines()[-1])
    assert last["level"] == "ERROR" and last["message"] == "ended", last
    return last["error"]


@pytest.mark.parametrize("role", [["controller", "--cluster-name=demo", "--listen=127.0.0.1:0"], ["node"]])
def test_a_kubeconfig_that_does_not_exist_is_named(role: list[str], tmp_path: Path):
    missing = tmp_path / "missing.kubeconfig"
    done = run(*role, KUBECONFIG=str(missing), NODE_NAME="n")
    assert done.returncode == 1
    assert "cannot find the cluster: set KUBECONFIG" in reason(done.stderr) and str(missing) in reason(done.stderr)


def test_a_filter_of_the_log_that_is_none_is_named():
    done = run("controller", "--cluster-name=demo", "--log=loud=very")
    assert (done.returncode, '--log: "loud=very" is no log filter' in done.stderr) == (1, True), done.stderr


def ended(weir) -> str:
    assert weir.wait_end(SOON) == 1
    return reason("\n".join(json.dumps(line) for line in weir.log()))


def test_an_address_that_is_taken_is_named(weir):
    first = weir()
    assert f"--listen: cannot listen on {first.address}" in ended(weir(f"--listen={first.address}", awaited=False))


def test_a_region_that_nobody_names_ends_it(control_plane, account, weir, cluster):
    """R52: neither the environment nor a flag, nor a label of a node."""
    for node in cluster.kube.list("/api/v1/nodes"):
        path = f"/api/v1/nodes/{node['metadata']['name']}"
        cluster.kube.patch(path, {"metadata": {"labels": {"topology.kubernetes.io/region": None}}})
    started = weir(environment={"AWS_REGION": ""}, awaited=False)
    assert "cannot find the AWS Region: set --region or AWS_REGION" in ended(started)


def test_a_region_that_does_not_exist_is_named_and_waited_for(cluster, account, weir):
    """Its endpoints have no addresses; no list of Regions in a program would hold for long."""
    started = weir("--region=eu-cental-1", environment={"AWS_ENDPOINT_URL": ""}, awaited=False)
    line = wait_said(started, "cannot read the account", "dns error")
    assert (line["level"], line["region"]) == ("ERROR", "eu-cental-1")
    assert started.get("/readyz") == 503 and started.get("/livez") == 200


def test_without_ca_certificates_it_ends_with_a_sentence(cluster, account, weir, tmp_path):
    """The AWS SDK would panic."""
    nowhere = str(tmp_path / "none")
    started = weir(environment={"SSL_CERT_FILE": nowhere, "SSL_CERT_DIR": nowhere}, awaited=False)
    assert "no CA certificates are found; install ca-certificates, or set SSL_CERT_FILE" in ended(started)


def test_the_name_of_another_cluster_ends_it_before_anything_is_made(cluster, account, weir):
    """All that weir made under a wrong name it would make a second time under the right one."""
    cluster.expose("order")
    sentence = ended(weir("--cluster-name=prod", awaited=False))
    assert sentence.startswith('--cluster-name: "prod" is the name of no cluster here: ')
    assert "Auto Scaling group workers carries that of \"demo\"" in sentence
    assert writes(account) == []


def wait_said(weir, *words: str) -> dict:
    """A line of the log with these words."""

    def found() -> dict | None:
        lines = (line for line in weir.log() if all(word in json.dumps(line) for word in words))
        return next(lines, None)

    return wait_for(found, SOON, f"a line with {words}")


def test_credentials_that_aws_does_not_take_are_told_and_waited_for(cluster, account, weir):
    """R55: an expired token, and a clock that is wrong. Both are repaired while weir runs."""
    cluster.expose("order")
    account.faults({"code": "ExpiredToken", "status": 403, "message": "The token has expired", "count": -1})
    started = weir("--retry-max-interval=2s", awaited=False)
    wait_said(started, "cannot read the account", "ExpiredToken", "The token has expired")
    assert started.get("/readyz") == 503 and started.get("/livez") == 200
    skewed = "Signature expired: 20261126T100000Z is now earlier than 20261126T101500Z"
    account.faults({"code": "SignatureDoesNotMatch", "status": 403, "message": skewed, "count": -1})
    wait_said(started, "cannot read the account", "SignatureDoesNotMatch", "Signature expired")
    account.faults()
    started.wait_ready()
    cluster.wait_hostname("order")


def test_an_api_server_that_cannot_be_reached_is_named_and_waited_for(control_plane, account, weir):
    nowhere = f"https://{LOOPBACK}:{free_port()}"
    kubeconfig = control_plane.write_kubeconfig("nowhere", control_plane.token, nowhere)
    started = weir("--leader-elect=true", kubeconfig=kubeconfig, awaited=False)
    assert nowhere in wait_said(started, "starting")["api_server"]
    line = wait_said(started, "cannot read or renew the Lease")
    assert "refused" in line["error"].lower(), line
    wait_said(started, "cannot watch Nodes")
    assert started.get("/readyz") == 503
    assert started.stop() == 0


def test_a_missing_namespace_of_the_lease_is_named_and_waited_for(cluster, account, weir):
    started = weir("--leader-elect=true", "--namespace=not-yet", awaited=False)
    line = wait_said(started, "cannot read or renew the Lease")
    assert line["error"].startswith("the namespace not-yet does not exist: make it, or name another one by --namespace")
    assert started.get("/readyz") == 503
    cluster.kube.create("/api/v1/namespaces", {"metadata": {"name": "not-yet"}})
    started.wait_ready()
    wait_said(started, "became leader")
    told = [each for each in started.log() if each["message"].startswith("cannot read or renew the Lease")]
    assert len(told) == 1, "the same is not said at every look"


def test_rights_that_are_missing_are_named(control_plane, cluster, account, weir):
    """A ServiceAccount without any."""
    token = cluster.kube.service_account_token("default", "default")
    kubeconfig = control_plane.write_kubeconfig("powerless", token)
    started = weir("--leader-elect=true", kubeconfig=kubeconfig, awaited=False)
    wait_said(started, "cannot read or renew the Lease", "leases.coordination.k8s.io", "forbidden")
    wait_said(started, "cannot watch Nodes", "forbidden")
    assert started.get("/readyz") == 503


def test_a_leader_that_may_not_list_nodes_ends_when_it_is_told_to(control_plane, cluster, account, weir):
    """It waits for them, and for the signal beside."""
    token = cluster.kube.service_account_token("default", "default")
    kubeconfig = control_plane.write_kubeconfig("powerless", token)
    started = weir("--leader-elect=false", kubeconfig=kubeconfig, awaited=False)
    wait_said(started, "cannot watch Nodes", "forbidden")
    assert started.stop() == 0, "an orderly end"


def test_no_partition_is_taken_for_granted() -> None:
    """R54: aws-cn and aws-us-gov have ARNs and endpoints of their own. Labels of EKS are the same everywhere."""
    for path in SOURCE.glob("**/*.rs"):
        code = "" if path.name == "tests.rs" else path.read_text().partition("#[cfg(test)]")[0]
        code = code.replace("eks.amazonaws.com/", "")
        assert "arn:aws:" not in code and "amazonaws.com" not in code, path
