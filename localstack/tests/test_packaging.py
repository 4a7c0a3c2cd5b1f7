"""The files that people without this test suite use: init script, compose file, lock, environment."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import seed
import yaml
from conftest import HERE, REGION
from packaging.requirements import Requirement

INIT_SCRIPT = HERE / "init" / "ready.d" / "10-seed.py"


def run_script(command: list[str], endpoint: str, account: str, folder: Path) -> dict:
    variables = {"AWS_ENDPOINT_URL": endpoint, "SEED_ACCOUNT": account, "SEED_CLUSTER": "shop", "SEED_WORKERS": "2"}
    ran = subprocess.run(command, env=os.environ | variables, cwd=folder, capture_output=True, text=True, timeout=30)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_init_script_seeds_the_account_it_is_told(endpoint: str, account: str, tmp_path: Path) -> None:
    made = run_script([sys.executable, str(INIT_SCRIPT)], endpoint, account, tmp_path)
    there = seed.Account(endpoint, account, REGION, "shop")
    assert made["instances"] == there.members("workers") and len(made["instances"]) == 2
    assert len(there.node_manifests()) == 2


def test_init_script_runs_by_exec_as_in_the_container(endpoint: str, account: str, tmp_path: Path) -> None:
    """seed.py where the image has it: on the path's place of an unknown __file__, PYTHONPATH standing in for it."""
    program = f"import sys; sys.path.insert(0, {str(HERE)!r}); exec(open({str(INIT_SCRIPT)!r}, 'rb').read(), {{}})"
    assert len(run_script([sys.executable, "-c", program], endpoint, account, tmp_path)["instances"]) == 2


def test_compose_file_says_what_environment_json_says() -> None:
    service = yaml.safe_load((HERE / "compose.yaml").read_text())["services"]["localstack"]
    only_outside = {"GATEWAY_SERVER", "DNS_ADDRESS"}
    wanted = json.loads((HERE / "environment.json").read_text())
    assert {k: v for k, v in service["environment"].items() if not k.startswith("SEED_")} == {
        k: v for k, v in wanted.items() if k not in only_outside
    }
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert "FROM localstack/localstack:4.14.0" in (HERE / "Dockerfile").read_text()
    assert service["image"].endswith(":4.14.0")


def test_lock_is_complete_hashed_and_what_runs_here() -> None:
    lock = (HERE / "requirements.txt").read_text()
    pins = dict(re.findall(r"^([a-z0-9._-]+)==(\S+) \\$", lock, re.MULTILINE))
    blocks = re.split(r"^(?=[a-z0-9._-]+==)", lock, flags=re.MULTILINE)[1:]
    assert len(blocks) == len(pins) and all("--hash=sha256:" in block for block in blocks)
    assert not re.search(r"https?://|^-|/work|/opt", lock, re.MULTILINE)
    assert {name: version(name) for name in pins} == pins
    for line in (HERE / "requirements.in").read_text().splitlines():
        if line and not line.startswith("#"):
            asked = Requirement(line.partition("#")[0].strip())
            assert asked.specifier.contains(pins[re.sub(r"[._-]+", "-", asked.name).lower()])
