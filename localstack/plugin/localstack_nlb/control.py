"""What tests steer and see, on the same port as AWS. README.md holds the contract.

/moto-api/calls      GET ?account= ?client= ?since=, DELETE ?account=
/moto-api/faults     GET, POST [fault, ...]
/moto-api/settings   GET, POST {name: value}
/moto-api/audit      GET ?account= ?client=, DELETE     IAM actions, resources and condition keys that the calls asked for
/moto-api/policy     GET, POST {"enforce": true}
/moto-api/reset      POST ?account=
"""

import json
from collections.abc import Callable
from typing import Any

from localstack.aws import handlers
from localstack.aws.protocol.serializer import create_serializer
from localstack.http import Response
from localstack.runtime import hooks
from localstack.services.edge import ROUTER

from localstack_nlb import calls, faults, permissions
from localstack_nlb.accounts import ONE_AT_A_TIME
from localstack_nlb.settings import SETTINGS


def answer(value: Any, status: int = 200) -> Response:
    return Response(json.dumps(value), status=status, content_type="application/json")


def body_of(request: Any, empty: Any) -> Any:
    return json.loads(request.get_data() or json.dumps(empty))


def refusing(endpoint: Callable) -> Callable:
    """A body that makes no sense is the test's mistake: 400 with the reason, and nothing changes."""

    def run(request: Any, **_: Any) -> Response:
        try:
            return endpoint(request)
        except (TypeError, ValueError) as problem:
            return answer({"error": str(problem)}, 400)

    return run


# --- paths


def call_log(request: Any) -> Response:
    asked = request.args
    if request.method == "DELETE":
        calls.forget_calls(asked.get("account"))
        return answer([])
    found = calls.find_calls(asked.get("account"), asked.get("client"), int(asked.get("since", 0)))
    return answer([call.shown() for call in found])


def fault_list(request: Any) -> Response:
    if request.method == "POST":
        faults.replace_faults(body_of(request, []))
    return answer([fault.shown() for fault in faults.FAULTS])


def settings(request: Any) -> Response:
    if request.method == "POST":
        SETTINGS.change(body_of(request, {}))
    return answer(SETTINGS.shown())


def audit(request: Any) -> Response:
    if request.method == "DELETE":
        permissions.AUDIT.clear()
    return answer(permissions.find_questions(request.args.get("account"), request.args.get("client")))


def policy(request: Any) -> Response:
    if request.method == "POST":
        permissions.MODE["enforce"] = bool(body_of(request, {})["enforce"])
    return answer(permissions.MODE)


def reset(request: Any) -> Response:
    """Everything; or with ?account= that account's resources and call log, and nothing that belongs to the process."""
    from moto.core.base_backend import BackendDict
    from moto.moto_api._internal.models import moto_api_backend

    account = request.args.get("account")
    with ONE_AT_A_TIME:
        if account:
            for backends in list(BackendDict._instances):
                if account in backends:
                    for backend in list(backends[account].values()):
                        backend.reset()
        else:
            moto_api_backend.reset()
            SETTINGS.reset()
            permissions.AUDIT.clear()
            permissions.MODE["enforce"] = False
            faults.replace_faults([])
    calls.forget_calls(account)
    return answer({"status": "ok"})


# --- around every AWS call


def receive(_chain: Any, context: Any, _response: Any) -> None:
    """Before the service: log the call, let a fault act, check the permission."""
    if not context.service or not context.operation or context.is_internal_call:
        return
    context.nlb_call = call = calls.open_call(context)
    context.nlb_fault = fault = faults.choose_fault(call)
    if fault:
        faults.act_before(fault)
    with ONE_AT_A_TIME:
        permissions.check(context)


def send(_chain: Any, context: Any, response: Any) -> None:
    """After the service: log the outcome, hold the answer back, put an error in its place."""
    call, fault = context.get("nlb_call"), context.get("nlb_fault")
    if not call:
        return
    error = context.service_exception
    calls.close_call(call, response.status_code, error.code if error else None)
    if not fault:
        return
    faults.hold_back(fault)
    if fault.code and fault.when == "after":
        serializer = create_serializer(context.service, context.protocol)
        lost = serializer.serialize_error_to_response(
            fault.error(), context.operation, context.request.headers, context.request_id
        )
        response.update_from(lost)


@hooks.on_infra_start()
def register_control_endpoints() -> None:
    handlers.serve_custom_service_request_handlers.append(receive)
    handlers.run_custom_response_handlers.append(send)
    for path, endpoint, methods in (
        ("calls", call_log, ["GET", "DELETE"]),
        ("faults", fault_list, ["GET", "POST"]),
        ("settings", settings, ["GET", "POST"]),
        ("audit", audit, ["GET", "DELETE"]),
        ("policy", policy, ["GET", "POST"]),
        ("reset", reset, ["POST"]),
    ):
        ROUTER.add(path=f"/moto-api/{path}", endpoint=refusing(endpoint), methods=methods)
