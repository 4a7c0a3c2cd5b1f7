"""The call log: one row per AWS API call, in the order of arrival, with its outcome once it took effect."""

import itertools
import json
import re
import threading
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any


@dataclass
class Call:
    n: int
    time: str
    account: str
    region: str
    service: str
    operation: str
    request: dict[str, Any]
    client: str
    app: str | None
    """The application id (AWS_SDK_UA_APP_ID) in its user agent."""
    status: int | None = None
    """None while the call is under way, or delayed by a fault."""
    code: str | None = None
    ms: float | None = None
    started: float = field(default=0, repr=False)

    def shown(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "started"}


CALLS: list[Call] = []
_numbers = itertools.count(1)
_writing = threading.Lock()


def client_of(headers: Any) -> str:
    """Who calls: the controller uses the Rust SDK, the tests themselves boto3."""
    agent = f"{headers.get('User-Agent', '')} {headers.get('X-Amz-User-Agent', '')}".lower()
    if "aws-sdk-rust" in agent:
        return "rust"
    return "boto" if "boto" in agent else "other"


def app_of(headers: Any) -> str | None:
    """Which of several processes calls, if they have been given names."""
    agent = f"{headers.get('User-Agent', '')} {headers.get('X-Amz-User-Agent', '')}"
    found = re.search(r"(?:^| )app/(\S+)", agent)
    return found[1] if found else None


def plain(value: Any) -> Any:
    """Request parameters as JSON can hold them."""
    return json.loads(json.dumps(value, default=str))


def open_call(context: Any) -> Call:
    started, request = time.perf_counter(), plain(context.service_request or {})
    with _writing:  # numbers rise in the list
        call = Call(
            n=next(_numbers),
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            account=context.account_id,
            region=context.region,
            service=context.service.service_name,
            operation=context.operation.name,
            request=request,
            client=client_of(context.request.headers),
            app=app_of(context.request.headers),
            started=started,
        )
        CALLS.append(call)
    return call


def close_call(call: Call, status: int, code: str | None) -> None:
    call.status, call.code = status, code
    call.ms = round((time.perf_counter() - call.started) * 1000, 1)


def find_calls(account: str | None = None, client: str | None = None, since: int = 0) -> list[Call]:
    return [
        call
        for call in list(CALLS)
        if call.n > since and account in (None, call.account) and client in (None, call.client)
    ]


def forget_calls(account: str | None = None) -> None:
    """Numbers go on where they were, so that `since` stays true."""
    with _writing:
        CALLS[:] = [call for call in CALLS if account not in (None, call.account)]
