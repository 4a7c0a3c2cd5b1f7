"""Listeners of network load balancers: one per port, fitting target groups, TLS, and groups that know their balancer."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from localstack.services.moto import call_moto
from moto.elbv2.exceptions import ActionTargetGroupNotFoundError, ListenerNotFoundError, LoadBalancerNotFoundError
from moto.elbv2.models import ELBv2Backend, FakeAction, FakeListener, FakeLoadBalancer
from moto.elbv2.responses import SSL_POLICIES

from localstack_nlb.accounts import balancing, quoted, refuse
from localstack_nlb.addresses import check_listener
from localstack_nlb.paging import page
from localstack_nlb.tags import check_tags

Request = Mapping[str, Any]

FITTING = {
    "TCP": {"TCP", "TCP_UDP"},
    "TLS": {"TCP", "TLS"},
    "UDP": {"UDP", "TCP_UDP"},
    "TCP_UDP": {"TCP_UDP"},
}
"""Listener protocol -> target group protocols ("Target group routing configuration" in the NLB guide)."""
LIMIT = 50
ALPN_POLICIES = {"None", "HTTP1Only", "HTTP2Only", "HTTP2Optional", "HTTP2Preferred"}
CERTIFICATES = 25
"""Of one load balancer, default ones not counted (quotas in the NLB guide)."""
IDLE_TIMEOUT = "tcp.idle_timeout.seconds"


def targets_of(actions: Iterable[FakeAction]) -> list[str]:
    """The target groups that forward actions name; AWS accepts TargetGroupArn and ForwardConfig, shows both."""
    arns: list[str] = []
    for action in actions:
        data = action.data
        if data.get("TargetGroupArn"):
            arns.append(data["TargetGroupArn"])
        arns += [group["TargetGroupArn"] for group in data.get("ForwardConfig", {}).get("TargetGroups", [])]
    return list(dict.fromkeys(arns))


def shown_action(action: FakeAction) -> dict:
    data = dict(action.data)
    if data.get("Type") == "forward" and (arns := targets_of([action])):
        data.setdefault("ForwardConfig", {"TargetGroups": [{"TargetGroupArn": arn} for arn in arns]})
        if len(arns) == 1:
            data.setdefault("TargetGroupArn", arns[0])
    return data


def shown(listener: FakeListener) -> dict:
    """As DescribeListeners answers: SslPolicy and Certificates for TLS only, ForwardConfig beside TargetGroupArn."""
    row = {
        "ListenerArn": listener.arn,
        "LoadBalancerArn": listener.load_balancer_arn,
        "Port": int(listener.port),
        "Protocol": listener.protocol,
        "DefaultActions": [shown_action(action) for action in listener.default_actions],
    }
    if listener.protocol in ("TLS", "HTTPS"):
        row |= {"SslPolicy": listener.ssl_policy, "Certificates": [{"CertificateArn": listener.certificate}]}
    if listener.alpn_policy:
        row["AlpnPolicy"] = list(listener.alpn_policy)
    return row


# --- what AWS refuses


def check_port(balancer: FakeLoadBalancer, port: int, itself: FakeListener | None = None) -> None:
    if not 1 <= port <= 65535:
        raise refuse("ValidationError", f"Port '{port}' must be between 1 and 65535")
    if any(int(known.port) == port and known is not itself for known in balancer.listeners.values()):
        raise refuse("DuplicateListener", "A listener already exists on this port for this load balancer")


def check_groups(backend: ELBv2Backend, balancer: FakeLoadBalancer, protocol: str, arns: Iterable[str]) -> None:
    """IncompatibleProtocols (terraform-provider-aws#4955); a group serves one load balancer,
    TargetGroupAssociationLimit (terraform-provider-aws#22005)."""
    for arn in arns:
        group = backend.target_groups.get(arn)
        if group is None:
            raise ActionTargetGroupNotFoundError(arn)
        if protocol in FITTING and group.protocol not in FITTING[protocol]:
            raise refuse(
                "IncompatibleProtocols",
                f"Listener protocol '{protocol}' is not supported with a target group with the protocol '{group.protocol}'",
            )
        if group.ip_address_type == "ipv6" and balancer.ip_address_type != "dualstack":
            raise refuse("InvalidConfigurationRequest", f"Target group '{arn}' is ipv6, the load balancer is not")
        if set(group.load_balancer_arns) - {balancer.arn}:
            raise refuse(
                "TargetGroupAssociationLimit",
                f"The following target groups cannot be associated with more than one load balancer: {quoted([arn])}",
            )


def check_tls(backend: ELBv2Backend, protocol: str, request: Request, before: FakeListener | None = None) -> None:
    """What belongs to TLS is refused elsewhere. A listener that becomes TLS needs a certificate, and a changed one its
    policy too ("you must add the security policy and default certificate properties", ModifyListener)."""
    certificates, policy = request.get("Certificates") or [], request.get("SslPolicy")
    alpn = [name for name in request.get("AlpnPolicy") or [] if name != "None"]
    if protocol != "TLS":
        if certificates or policy or alpn:
            raise refuse("ValidationError", f"Certificates and policies cannot be specified for {protocol} listeners")
        return
    becomes = before is None or before.protocol != "TLS"
    if becomes and not certificates:
        raise refuse("ValidationError", "A certificate must be specified for TLS listeners")
    if becomes and before is not None and not policy:
        raise refuse("ValidationError", "A security policy must be specified for a listener that becomes TLS")
    if len(certificates) > 1:
        raise refuse("TooManyCertificates", "You must provide exactly one certificate")
    check_certificates(backend, certificates)
    if policy and policy not in [known["name"] for known in SSL_POLICIES]:
        raise refuse("SSLPolicyNotFound", f"SSL policy '{policy}' not found")
    if len(alpn) > 1 or set(alpn) - ALPN_POLICIES:
        raise refuse("ALPNPolicyNotFound", f"ALPN policy {quoted(alpn)} is not supported")


def check_certificates(backend: ELBv2Backend, certificates: Iterable[Mapping]) -> None:
    for certificate in certificates:
        if not backend._certificate_exists(certificate["CertificateArn"]):
            raise refuse("CertificateNotFound", f"Certificate '{certificate['CertificateArn']}' not found")


# --- operations


def create_listener(context: Any, request: Request) -> dict:
    """The same request again answers the existing listener; another one on its port is DuplicateListener."""
    backend = balancing(context)
    balancer = backend.load_balancers.get(request["LoadBalancerArn"])
    if balancer is None:
        raise LoadBalancerNotFoundError()
    check_tags(request.get("Tags"))
    port, protocol = int(request.get("Port") or 0), request.get("Protocol") or ""
    for known in balancer.listeners.values():
        if int(known.port) == port and getattr(known, "settings", None) == dict(request):
            return {"Listeners": [shown(known)]}
    if balancer.type == "network":
        check_listener(balancer, protocol)
    check_port(balancer, port)
    if len(balancer.listeners) >= LIMIT:
        raise refuse("TooManyListeners", f"The maximum number of listeners per load balancer is {LIMIT}")
    if balancer.type == "network":
        check_tls(backend, protocol, request)
    check_groups(backend, balancer, protocol, targets_of(FakeAction(a) for a in copied(request["DefaultActions"])))
    arn = call_moto(context)["Listeners"][0]["ListenerArn"]
    listener = balancer.listeners[arn]
    listener.settings = dict(request)
    associate(backend, balancer, targets_of(listener.default_actions))
    return {"Listeners": [shown(listener)]}


def modify_listener(context: Any, request: Request) -> dict:
    """moto knows no NLB protocol but TCP here, ignores a new certificate and ALPN policy, takes unknown groups and
    leaves LoadBalancerArns of the groups as they were. A listener that leaves TLS loses what belongs to it."""
    backend = balancing(context)
    listener = backend.describe_listeners(None, [request["ListenerArn"]])[0]
    balancer = backend.load_balancers[listener.load_balancer_arn]
    if balancer.type != "network":
        return call_moto(context)
    protocol = request.get("Protocol") or listener.protocol
    if protocol not in FITTING:
        raise refuse("ValidationError", f"Listener protocol '{protocol}' must be one of {quoted(sorted(FITTING))}")
    actions = [FakeAction(data) for data in copied(request.get("DefaultActions") or [])] or listener.default_actions
    check_listener(balancer, protocol)
    check_port(balancer, int(request.get("Port") or listener.port), itself=listener)
    check_tls(backend, protocol, request, before=listener)
    check_groups(backend, balancer, protocol, targets_of(actions))

    touched = {*targets_of(listener.default_actions), *targets_of(actions)}
    listener.port, listener.protocol = int(request.get("Port") or listener.port), protocol
    listener.default_actions = listener._default_rule[0].actions = actions
    if protocol != "TLS":  # "removes the security policy and default certificate properties"
        listener.certificate, listener.certificates, listener.ssl_policy, listener.alpn_policy = None, [], None, []
    elif certificates := request.get("Certificates"):
        listener.certificate = certificates[0]["CertificateArn"]
        listener.certificates = [listener.certificate, *listener.certificates[1:]]
    listener.ssl_policy = request.get("SslPolicy") or listener.ssl_policy
    if "AlpnPolicy" in request:
        listener.alpn_policy = [name for name in request["AlpnPolicy"] if name != "None"]
    listener.settings = None
    associate(backend, balancer, touched)
    return {"Listeners": [shown(listener)]}


def delete_listener(context: Any, request: Request) -> dict:
    backend = balancing(context)
    listener = backend.describe_listeners(None, [request["ListenerArn"]])[0]
    result = call_moto(context)
    backend.tagging_service.delete_all_tags_for_resource(listener.arn)
    associate(backend, backend.load_balancers[listener.load_balancer_arn], targets_of(listener.default_actions))
    return result


def describe_listeners(context: Any, request: Request) -> dict:
    """Pages; any unknown ARN is ListenerNotFound."""
    backend, arns = balancing(context), request.get("ListenerArns") or []
    if not request.get("LoadBalancerArn") and not arns:
        return call_moto(context)
    found = backend.describe_listeners(request.get("LoadBalancerArn"), arns)
    if arns and len(found) < len(set(arns)):
        raise ListenerNotFoundError()
    return page("Listeners", [shown(listener) for listener in found], request)


def secure_listener(context: Any, request: Request) -> FakeListener:
    listener = balancing(context).describe_listeners(None, [request["ListenerArn"]])[0]
    if listener.protocol not in ("TLS", "HTTPS"):
        raise refuse("ValidationError", f"Listener '{listener.arn}' is {listener.protocol} and has no certificates")
    return listener


def check_single(request: Request) -> None:
    """"You can specify one certificate per call" (AddListenerCertificates, RemoveListenerCertificates)."""
    if len(request["Certificates"]) != 1:
        raise refuse("ValidationError", "Exactly one certificate must be specified")


def add_certificates(context: Any, request: Request) -> dict:
    """One that is in the list already is no error; moto takes it twice, and any that does not exist. The default may
    be in the list as well, and is shown twice then."""
    listener, backend = secure_listener(context, request), balancing(context)
    check_single(request)
    check_certificates(backend, request["Certificates"])
    asked = [certificate["CertificateArn"] for certificate in request["Certificates"]]
    added = [arn for arn in dict.fromkeys(asked) if arn not in listener.certificates[1:]]
    others = backend.load_balancers[listener.load_balancer_arn].listeners.values()
    if sum(len(known.certificates[1:]) for known in others) + len(added) > CERTIFICATES:
        raise refuse("TooManyCertificates", f"The maximum number of certificates per load balancer is {CERTIFICATES}")
    listener.certificates.extend(added)
    return {"Certificates": [{"CertificateArn": arn, "IsDefault": False} for arn in asked]}


def remove_certificates(context: Any, request: Request) -> dict:
    """The default one cannot be removed (OperationNotPermitted); moto removes it."""
    listener = secure_listener(context, request)
    check_single(request)
    asked = {certificate["CertificateArn"] for certificate in request["Certificates"]}
    if listener.certificate in asked:
        raise refuse("OperationNotPermitted", f"Default certificate '{listener.certificate}' cannot be removed")
    listener.certificates = [arn for arn in listener.certificates if arn not in asked]
    return {}


def describe_certificates(context: Any, request: Request) -> dict:
    arns = secure_listener(context, request).certificates
    rows = [{"CertificateArn": arn, "IsDefault": index == 0} for index, arn in enumerate(arns)]
    return page("Certificates", rows, request)


def describe_attributes(context: Any, request: Request) -> dict:
    """Listeners of network load balancers have one attribute, and only if they are TCP."""
    listener = balancing(context).describe_listeners(None, [request["ListenerArn"]])[0]
    known = listener.attributes if listener.protocol == "TCP" else {}
    return {"Attributes": [{"Key": key, "Value": value} for key, value in known.items()]}


def modify_attributes(context: Any, request: Request) -> dict:
    listener = balancing(context).describe_listeners(None, [request["ListenerArn"]])[0]
    if balancing(context).load_balancers[listener.load_balancer_arn].type != "network":
        return call_moto(context)
    for attribute in request["Attributes"]:
        key, value = attribute["Key"], attribute.get("Value", "")
        if key != IDLE_TIMEOUT or listener.protocol != "TCP":
            raise refuse("InvalidConfigurationRequest", f"Attribute '{key}' is not supported for {listener.protocol}")
        if not (value.isdigit() and 60 <= int(value) <= 6000):
            raise refuse("ValidationError", f"'{key}' value '{value}' must be between '60-6000' inclusive")
        listener.attributes[key] = value
    return describe_attributes(context, request)


def associate(backend: ELBv2Backend, balancer: FakeLoadBalancer, arns: Iterable[str]) -> None:
    """LoadBalancerArns of target groups says which load balancer forwards to them now."""
    used = {arn for listener in balancer.listeners.values() for arn in targets_of(listener.default_actions)}
    for arn in arns:
        if group := backend.target_groups.get(arn):
            group.load_balancer_arns[:] = [balancer.arn] if arn in used else []


def copied(actions: Iterable[Mapping[str, Any]]) -> list[dict]:
    """FakeAction fills in its argument, and the request is still compared with later ones."""
    return [copy.deepcopy(dict(action)) for action in actions]
