"""Where weir means to differ from kube-proxy, by name. Everything else must look the same to traffic."""

from __future__ import annotations

IMPROVEMENTS = {
    "the client of a local endpoint is kept": (
        "Policy Cluster chose an endpoint on this node. Its answers pass this node's conntrack whatever address they "
        "go to, so nothing forces the client's address to be replaced (P18, section C)."
    ),
    "NodePort flows are cleaned without endpoints": (
        "A UDP Service lost its last endpoint: flows by way of its NodePort go as well (P61)."
    ),
    "a lost table comes back within seconds": "Somebody flushed the rules, and nothing else changes (P76).",
    "the node's new addresses are followed": "NodePorts answer on an address the Node object got later (P24, P57).",
}


def improved(kind: str, name: str) -> bool:
    """Whether a proxy of this kind has the improvement of this name."""
    assert name in IMPROVEMENTS, f"{name!r} is not a named improvement"
    return kind == "weir"
