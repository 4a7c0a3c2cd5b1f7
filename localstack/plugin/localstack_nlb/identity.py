"""Who calls, and who may become a role: access keys, sessions that end, trust policies, tokens of service accounts.

moto hands out the session of any role to anybody and lets it live for ever. The rules here follow the IAM user guide
("Roles terms and concepts", "Create a role for OpenID Connect federation") and the STS reference. Not checked:
signatures, of requests and of tokens.
"""

import base64
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from localstack.services.moto import call_moto
from localstack.utils.patch import patch
from moto.core.utils import utcnow
from moto.iam.access_control import CreateAccessKeyFailure, IAMPolicy, create_access_key
from moto.iam.models import iam_backends
from moto.sts.models import AssumedRole, sts_backends

from localstack_nlb.accounts import refuse
from localstack_nlb.policies import Facts, listed, statement_applies
from localstack_nlb.settings import SETTINGS

PARTITION = "aws"
WEB_IDENTITY = "sts:AssumeRoleWithWebIdentity"


@dataclass(frozen=True)
class Caller:
    arn: str
    statements: list[dict] | None
    """Of all its policies. None: the account's root, whom policies do not limit."""


def access_key(context: Any) -> str:
    return context.request.headers["Authorization"].partition("Credential=")[2].partition("/")[0]


def caller(context: Any) -> Caller:
    """The owner of the call's access key. A key of 12 digits, which is the account's number, is its root's."""
    key, account = access_key(context), context.account_id
    if key == account:
        return Caller(f"arn:{PARTITION}:iam::{account}:root", None)
    try:
        owner = create_access_key(account, PARTITION, key, context.request.headers)
    except CreateAccessKeyFailure as failure:
        raise invalid_key(context) from failure
    session = sts_backends[account][PARTITION].get_assumed_role_from_access_key(key)
    if session and session.expiration <= utcnow():
        raise expired(context)
    documents = [IAMPolicy(policy)._policy_json for policy in owner.collect_policies()]
    return Caller(owner.arn, [statement for document in documents for statement in listed(document["Statement"])])


def invalid_key(context: Any) -> Exception:
    """ec2 has a code of its own for this."""
    if context.service.service_name == "ec2":
        return refuse("AuthFailure", "AWS was not able to validate the provided access credentials", 401)
    return refuse("InvalidClientTokenId", "The security token included in the request is invalid.", 403)


def expired(context: Any) -> Exception:
    if context.service.service_name == "ec2":
        return refuse("RequestExpired", "Request has expired.", 400)
    return refuse("ExpiredToken", "The security token included in the request is expired", 403)


@patch(AssumedRole.__init__)
def _end_session(start: Callable, self: AssumedRole, *given: Any, **named: Any) -> None:
    """Sessions as short as a test wants them: STS itself gives none under a quarter of an hour."""
    start(self, *given, **named)
    if SETTINGS.session_seconds:
        self.expiration = utcnow() + timedelta(seconds=SETTINGS.session_seconds)


def trust_policy(role_arn: str) -> list[dict]:
    """The statements by which a role says who may become it; none for a role that does not exist."""
    account, name = role_arn.split(":")[4], role_arn.rsplit("/", 1)[-1]
    for role in iam_backends[account][PARTITION].roles.values():
        if role.name == name:
            return listed(json.loads(role.assume_role_policy_document)["Statement"])
    return []


def trusts(role_arn: str, action: str, principal: tuple[str, str], facts: Facts) -> bool:
    kind, name = principal
    return any(
        statement["Effect"] == "Allow"
        and name in listed(statement["Principal"].get(kind, []))
        and statement_applies(statement, action, role_arn, facts)
        for statement in trust_policy(role_arn)
    )


def assume_role(context: Any, request: Mapping[str, Any]) -> Any:
    """By a principal of the account. The root's key also stands for AWS's own services, which have no keys: with it, a
    trust policy that names a service is met. Tags of the session ask for sts:TagSession."""
    arn, who = request["RoleArn"], caller(context)
    facts: Facts = {f"aws:RequestTag/{tag['Key']}": tag["Value"] for tag in request.get("Tags") or []}
    principals = [("AWS", who.arn), ("AWS", f"arn:{PARTITION}:iam::{context.account_id}:root")]
    if who.statements is None:
        named = [statement["Principal"].get("Service", []) for statement in trust_policy(arn)]
        principals += [("Service", service) for services in named for service in listed(services)]
    for action in ["sts:AssumeRole", *(["sts:TagSession"] if facts else [])]:
        if not any(trusts(arn, action, principal, facts) for principal in principals):
            raise refuse("AccessDenied", f"User: {who.arn} is not authorized to perform: {action} on resource: {arn}", 403)
    return call_moto(context)


def assume_role_with_web_identity(context: Any, request: Mapping[str, Any]) -> Any:
    arn, claims = request["RoleArn"], claims_of(request["WebIdentityToken"])
    issuer = str(claims.get("iss", "")).removeprefix("https://")
    account = arn.split(":")[4]
    provider = iam_backends[account][PARTITION].open_id_providers.get(
        f"arn:{PARTITION}:iam::{account}:oidc-provider/{issuer}"
    )
    if not provider:
        words = f"No OpenIDConnect provider found in your account for https://{issuer}"
        raise refuse("InvalidIdentityToken", words)
    audience = [each for each in listed(claims.get("aud", [])) if each in provider.client_id_list]
    if not audience:
        raise refuse("InvalidIdentityToken", "Incorrect token audience")
    now, end = int(time.time()), int(claims.get("exp", 0))
    if end <= now:
        words = f"Token expired: current date/time {now} must be before the expiration date/time {end}"
        raise refuse("ExpiredTokenException", words)
    facts = {f"{issuer}:sub": claims.get("sub", ""), f"{issuer}:aud": audience[0]}
    if not trusts(arn, WEB_IDENTITY, ("Federated", provider.arn), facts):
        raise refuse("AccessDenied", f"Not authorized to perform {WEB_IDENTITY}", 403)
    return call_moto(context)


def claims_of(token: str) -> dict[str, Any]:
    """What a JSON Web Token says. Nobody's signature is checked: the emulator cannot ask the issuer for its keys."""
    try:
        _, payload, _ = token.strip().split(".")
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except ValueError:
        claims = None
    if not isinstance(claims, dict):
        raise refuse("InvalidIdentityToken", "The ID Token provided is not a valid JWT.")
    return claims
