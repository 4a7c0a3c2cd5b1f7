"""What holds of every command for people, whatever it is asked."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from sandbox.aws import Account
from sandbox.doctor import environment, run
from sandbox.scene import NODES, Scene
from sandbox.weir import binary

#: A question to each command.
QUESTIONS = {
    "plan": ["plan", "--cluster-name=demo"],
    "plan of nothing": ["plan", "--snapshot=/nonexistent"],
    "gc": ["gc", "--cluster-name=demo", "--log=debug"],
    "gc --delete": ["gc", "--cluster-name=demo", "--delete"],
    "status": ["status", "--cluster-name=demo"],
    "status --watch": ["status", "--cluster-name=demo", "--watch", "--interval=100ms"],
    "doctor": ["doctor", "--cluster-name=demo"],
    "doctor node": ["doctor", "node"],
    "node trace": ["node", "trace", "host", "10.96.0.1:443"],
    "node trace of IPv6": ["node", "trace", "2001:db8::1", "[fd00::1]:443"],
    "node rules": ["node", "rules", "default/kubernetes"],
    "help": ["plan", "--help"],
}


@pytest.fixture
def person(cluster: Scene, account: Account) -> dict[str, str]:
    """The environment of somebody who looks at this cluster, and at the first of its nodes."""
    settled = environment(cluster.control_plane.kubeconfig, account.localstack.endpoint, account.id)
    return settled | {"NODE_NAME": str(cluster.kube.list(NODES)[0]["metadata"]["name"])}


def test_nobody_has_to_read_to_the_end(person: dict[str, str]) -> None:
    """`| head` ends each of them without a complaint, on standard output and on standard error."""
    for title, question in QUESTIONS.items():
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.Popen(
            [binary(), *question], env={"PATH": os.environ["PATH"], **person}, stdout=writing, stderr=subprocess.PIPE, text=True
        )
        os.close(writing)
        try:
            _, errors = done.communicate(timeout=60)
        finally:
            done.kill()
        assert "panicked" not in errors and "Broken pipe" not in errors, (title, errors)
        assert done.returncode in (0, 1, 2), (title, done.returncode)
        reading, writing = os.pipe()
        os.close(reading)
        code = subprocess.call(
            [binary(), *question], env={"PATH": os.environ["PATH"], **person}, stdout=writing, stderr=writing, timeout=60
        )
        os.close(writing)
        assert code in (0, 1, 2), (title, code)


def test_an_answer_is_plain_text(person: dict[str, str]) -> None:
    """Neither colours nor other escapes, at whatever level of the log."""
    for question in QUESTIONS.values():
        if "--watch" not in question:
            done = run(*question, **person)
            assert "\x1b" not in done.stdout + done.stderr, (question, done.stderr[:500])


def test_mistakes_of_the_command_line_name_the_word(tmp_path: Path) -> None:
    """Without cluster, account or root; the exit code is that of a mistake."""
    for arguments, code, word in (
        (["plan", "--no-such-flag"], 1, "--no-such-flag"),
        (["gc", "--cluster-uid=a"], 1, "--all"),
        (["gc", "--force"], 1, "--delete"),
        (["gc", "--all", "--delete"], 1, "--cluster-name"),
        (["status", "a/b/c"], 2, "a/b/c"),
        (["doctor", "--patience=soon"], 2, "soon"),
        (["node", "trace", "host", "10.0.0.1"], 2, "10.0.0.1"),
        (["node", "rules", "a"], 1, "--node-name"),
    ):
        done = run(*arguments, HOME=str(tmp_path), KUBECONFIG="/nonexistent", AWS_EC2_METADATA_DISABLED="true")
        assert done.returncode == code and word in done.stderr and not done.stdout, (arguments, done)
