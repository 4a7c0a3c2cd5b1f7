"""IAM: who may become a role, how long that lasts, and whom policies do not limit."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from typing import Any

import boto3
import pytest
import seed
from conftest import REGION, Control, World

ISSUER = "oidc.eks.us-east-1.amazonaws.com/id/0123456789ABCDEF"
SUBJECT = "system:serviceaccount:weir-system:weir-controller"
AUDIENCE = "sts.amazonaws.com"
EVERYTHING = {"Effect": "Allow", "Action": "*", "Resource": "*"}


def token(**claims: Any) -> str:
    """As a service account's, unsigned."""
    whole = {"iss": f"https://{ISSUER}", "sub": SUBJECT, "aud": [AUDIENCE], "exp": time.time() + 600} | claims
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in ({}, whole)]
    return ".".join([*parts, "signature"])


def document(*statements: dict) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})


@pytest.fixture
def role(world: World) -> Callable[..., str]:
    """role(*trust): the ARN of a role that may do everything and trusts whom these statements say."""
    iam = seed.client("iam", world.endpoint, world.account_id, REGION)

    def make(*trust: dict) -> str:
        name = world.name("role")
        made = iam.create_role(RoleName=name, AssumeRolePolicyDocument=document(*trust))
        iam.put_role_policy(RoleName=name, PolicyName="p", PolicyDocument=document(EVERYTHING))
        return made["Role"]["Arn"]

    return make


@pytest.fixture
def trusting_role(world: World, role: Callable[..., str]) -> str:
    """A role for one service account of one cluster."""
    iam = seed.client("iam", world.endpoint, world.account_id, REGION)
    provider = iam.create_open_id_connect_provider(
        Url=f"https://{ISSUER}", ClientIDList=[AUDIENCE], ThumbprintList=["0" * 40]
    )["OpenIDConnectProviderArn"]
    return role(
        {
            "Effect": "Allow",
            "Principal": {"Federated": provider},
            "Action": "sts:AssumeRoleWithWebIdentity",
            "Condition": {"StringEquals": {f"{ISSUER}:sub": SUBJECT, f"{ISSUER}:aud": AUDIENCE}},
        }
    )


def assume(world: World, role: str, web_identity: str) -> dict:
    sts = seed.client("sts", world.endpoint, world.account_id, REGION)
    return sts.assume_role_with_web_identity(RoleArn=role, RoleSessionName="session", WebIdentityToken=web_identity)


def client(world: World, service: str, credentials: dict) -> Any:
    return boto3.client(
        service,
        endpoint_url=world.endpoint,
        region_name=REGION,
        aws_access_key_id=credentials["AccessKeyId"],
        aws_secret_access_key=credentials["SecretAccessKey"],
        aws_session_token=credentials["SessionToken"],
    )


def test_a_token_of_the_service_account_gets_the_role(world: World, control: Control, trusting_role: str) -> None:
    control.post("policy", {"enforce": True})
    credentials = assume(world, trusting_role, token())["Credentials"]
    assert client(world, "ec2", credentials).describe_vpcs()["Vpcs"]


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"sub": "system:serviceaccount:default:default"}, "AccessDenied"),
        ({"aud": ["https://kubernetes.default.svc"]}, "InvalidIdentityToken"),
        ({"iss": "https://oidc.eks.us-east-1.amazonaws.com/id/OTHER"}, "InvalidIdentityToken"),
        ({"exp": time.time() - 1}, "ExpiredTokenException"),
    ],
    ids=["subject", "audience", "issuer", "expired"],
)
def test_any_other_token_gets_nothing(
    world: World, trusting_role: str, refusal: Callable, claims: dict, code: str
) -> None:
    assert refusal(assume, world=world, role=trusting_role, web_identity=token(**claims)).code == code


def test_what_is_no_token_and_no_role_gets_nothing(world: World, trusting_role: str, refusal: Callable) -> None:
    assert refusal(assume, world=world, role=trusting_role, web_identity="x" * 20).code == "InvalidIdentityToken"
    unknown = trusting_role.rpartition("/")[0] + "/unknown"
    assert refusal(assume, world=world, role=unknown, web_identity=token()).code == "AccessDenied"


def test_a_role_for_a_service_of_aws(world: World, role: Callable[..., str], refusal: Callable) -> None:
    """The root's key stands for the service. Tags of the session are asked for, and can be demanded."""
    principal = {"Service": "pods.eks.amazonaws.com"}
    here = {"StringEquals": {"aws:RequestTag/eks-cluster-name": "demo"}}
    sts = seed.client("sts", world.endpoint, world.account_id, REGION)

    def trust(*actions: str) -> dict:
        return {"Effect": "Allow", "Principal": principal, "Action": list(actions), "Condition": here}

    def become(arn: str, cluster: str) -> dict:
        tags = [{"Key": "eks-cluster-name", "Value": cluster}]
        return sts.assume_role(RoleArn=arn, RoleSessionName="session", Tags=tags)

    good = role(trust("sts:AssumeRole", "sts:TagSession"))
    assert become(good, "demo")["Credentials"]["SessionToken"]
    assert "sts:AssumeRole" in refusal(become, arn=good, cluster="other").message
    untagged = role(trust("sts:AssumeRole"))
    assert "sts:TagSession" in refusal(become, arn=untagged, cluster="demo").message


def test_a_user_needs_to_be_trusted(world: World, role: Callable[..., str], refusal: Callable) -> None:
    iam = seed.client("iam", world.endpoint, world.account_id, REGION)
    name = world.name("user")
    user = iam.create_user(UserName=name)["User"]["Arn"]
    key = iam.create_access_key(UserName=name)["AccessKey"]
    sts = boto3.client(
        "sts",
        endpoint_url=world.endpoint,
        region_name=REGION,
        aws_access_key_id=key["AccessKeyId"],
        aws_secret_access_key=key["SecretAccessKey"],
    )
    trusted = role({"Effect": "Allow", "Principal": {"AWS": user}, "Action": "sts:AssumeRole"})
    assert sts.assume_role(RoleArn=trusted, RoleSessionName="session")["Credentials"]
    service = role({"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"})
    assert refusal(sts.assume_role, RoleArn=service, RoleSessionName="session").code == "AccessDenied"


def test_a_session_ends(world: World, control: Control, trusting_role: str, refusal: Callable) -> None:
    control.settings(session_seconds=1)
    control.post("policy", {"enforce": True})
    credentials = assume(world, trusting_role, token())["Credentials"]
    ec2, elb = client(world, "ec2", credentials), client(world, "elbv2", credentials)
    assert ec2.describe_vpcs()["Vpcs"]
    time.sleep(1.1)
    assert refusal(ec2.describe_vpcs).code == "RequestExpired"
    assert refusal(elb.describe_load_balancers).code == "ExpiredToken"


def test_unknown_keys(world: World, control: Control, refusal: Callable) -> None:
    control.post("policy", {"enforce": True})
    keys = {"AccessKeyId": "ASIAQAAAAAAAAAAAAAAA", "SecretAccessKey": "x", "SessionToken": "y"}
    assert refusal(client(world, "ec2", keys).describe_vpcs).code == "AuthFailure"
    assert refusal(client(world, "elbv2", keys).describe_load_balancers).code == "InvalidClientTokenId"


def test_policies_do_not_limit_the_root(world: World, control: Control) -> None:
    control.post("policy", {"enforce": True})
    assert world.balancer()["LoadBalancerArn"]
