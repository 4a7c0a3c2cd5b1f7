"""Run by LocalStack once it is ready: seeds the account that the SEED_ variables name.

LocalStack runs it by exec, without __file__; seed.py lies in the folder that holds ready.d. By hand, from there:

    AWS_ENDPOINT_URL=http://127.0.0.1:4566 python init/ready.d/10-seed.py
"""

import json
import os
import sys
from pathlib import Path

beside = [
    Path(globals().get("__file__", "/etc/localstack/init/ready.d/10-seed.py")).resolve().parents[n] for n in (1, 2)
]
sys.path[:0] = [str(folder) for folder in beside if (folder / "seed.py").exists()]

from seed import seed  # noqa: E402

made = seed(
    endpoint=os.environ.get("AWS_ENDPOINT_URL", "http://127.0.0.1:4566"),
    account=os.environ.get("SEED_ACCOUNT", "000000000000"),
    region=os.environ.get("SEED_REGION", "us-east-1"),
    cluster=os.environ.get("SEED_CLUSTER", "demo"),
    workers=int(os.environ.get("SEED_WORKERS", "3")),
)
print(json.dumps(made, indent=2))
