"""Who weir is to AWS: a role under a policy of iam/, and its credentials by either of the two ways that EKS has."""

from __future__ import annotations

import base64
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any, Self

from botocore.exceptions import ClientError

from sandbox.aws import Account
from sandbox.cluster import ControlPlane
from sandbox.process import LOOPBACK

IAM = Path(__file__).resolve().parents[2] / "iam"
NAMESPACE, SERVICE_ACCOUNT = "weir-system", "weir-controller"
#: What the tokens of service accounts are made out for: to STS in IRSA, and to EKS in Pod Identity.
STS_AUDIENCE, EKS_AUDIENCE = "sts.amazonaws.com", "pods.eks.amazonaws.com"
#: The issuer of the control plane's tokens, in place of an EKS cluster's.
PROVIDER = "kubernetes.default.svc"

#: Takes the root's keys out of the environment of a `Weir`.
NO_KEYS = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}

Document = dict[str, Any]


def document(name: str, account: Account) -> Document:
    """A file of iam/, with its placeholders replaced as its README says."""
    text = (IAM / name).read_text()
    for placeholder, value in {
        "CLUSTER_NAME": account.cluster,
        "ACCOUNT_ID": account.id,
        "OIDC_PROVIDER": PROVIDER,
    }.items():
        text = text.replace(placeholder, value)
    return json.loads(text)


class Role:
    """The controller's role in one account."""

    def __init__(self, account: Account, trust: Document, policy: Document | None = None, name: str = "weir") -> None:
        self._iam, self.name = account.iam, name
        made = self._iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))
        self.arn: str = made["Role"]["Arn"]
        if policy:
            self.allow(policy)

    def allow(self, policy: Document) -> None:
        """Replaces what it may do."""
        self._iam.put_role_policy(RoleName=self.name, PolicyName="weir", PolicyDocument=json.dumps(policy))

    def trust(self, trust: Document) -> None:
        """Replaces who may become it."""
        self._iam.update_assume_role_policy(RoleName=self.name, PolicyDocument=json.dumps(trust))


def register_issuer(account: Account) -> None:
    """What `eksctl utils associate-iam-oidc-provider` does: the account believes the cluster's tokens."""
    account.iam.create_open_id_connect_provider(
        Url=f"https://{PROVIDER}", ClientIDList=[STS_AUDIENCE], ThumbprintList=["0" * 40]
    )


def service_account_token(
    control_plane: ControlPlane, audience: str, name: str = SERVICE_ACCOUNT, namespace: str = NAMESPACE
) -> str:
    """A token as the kubelet projects it into a pod of this service account, from the real API server."""
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": [audience]}}
    return control_plane.kube.create(path, request)["status"]["token"]


def claims_of(token: str) -> Document:
    """What a token says."""
    payload = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))


def forged(token: str, **claims: Any) -> str:
    """The token with other claims; its signature no longer fits, which the emulator does not see."""
    header, _, signature = token.split(".")
    payload = base64.urlsafe_b64encode(json.dumps(claims_of(token) | claims).encode()).decode().rstrip("=")
    return ".".join([header, payload, signature])


def web_identity(role: Role, token_file: Path) -> dict[str, str]:
    """IRSA: the variables that EKS's webhook sets in a pod."""
    return NO_KEYS | {
        "AWS_ROLE_ARN": role.arn,
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(token_file),
        "AWS_ROLE_SESSION_NAME": "weir",
    }


class PodIdentityAgent:
    """EKS Pod Identity: the agent on the node, and behind it the service that assumes the role for a pod.

    Context manager. `seen` are the tokens it was shown, in order.
    """

    def __init__(self, account: Account, role: Role) -> None:
        self._account, self._role = account, role
        self.seen: list[str] = []
        agent = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = agent.answer(self.headers.get("Authorization", ""))
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, format: str, *arguments: Any) -> None:
                """Nobody reads it."""

        self._server = ThreadingHTTPServer((LOOPBACK, 0), Handler)

    def environment(self, token_file: Path) -> dict[str, str]:
        """The variables that EKS sets in a pod."""
        return NO_KEYS | {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"http://{LOOPBACK}:{self._server.server_port}/v1/credentials",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(token_file),
        }

    def answer(self, token: str) -> tuple[int, Document]:
        self.seen.append(token)
        claims = claims_of(token)
        if claims["aud"] != [EKS_AUDIENCE]:
            return 400, {"code": "InvalidTokenException", "message": f"the token is made out for {claims['aud']}"}
        pod = claims["kubernetes.io"]
        tags = {
            "eks-cluster-name": self._account.cluster,
            "kubernetes-namespace": pod["namespace"],
            "kubernetes-service-account": pod["serviceaccount"]["name"],
        }
        try:
            made = self._account.sts.assume_role(
                RoleArn=self._role.arn,
                RoleSessionName="eks-weir",
                Tags=[{"Key": key, "Value": value} for key, value in tags.items()],
            )["Credentials"]
        except ClientError as error:
            return 400, {"code": error.response["Error"]["Code"], "message": error.response["Error"]["Message"]}
        return 200, {
            "AccessKeyId": made["AccessKeyId"],
            "SecretAccessKey": made["SecretAccessKey"],
            "Token": made["SessionToken"],
            "AccountId": self._account.id,
            "Expiration": made["Expiration"].strftime("%Y-%m-%dT%H:%M:%SZ"),
        }

    def __enter__(self) -> Self:
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
