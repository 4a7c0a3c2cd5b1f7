"""PageSize and Marker for elbv2 listings that moto always answers whole."""

from collections.abc import Callable, Mapping
from typing import Any

from localstack.services.moto import call_moto

from localstack_nlb.accounts import refuse

PAGE = 400


def page(key: str, everything: list, request: Mapping[str, Any]) -> dict:
    """A marker is the number of rows before it; AWS's is opaque, too. ValidationError for one that is none."""
    marker, size = str(request.get("Marker") or 0), int(request.get("PageSize") or PAGE)
    if not marker.isdigit() or not 1 <= size <= PAGE:
        raise refuse("ValidationError", f"Invalid marker '{marker}' or page size '{size}'")
    start = int(marker)
    result = {key: everything[start : start + size]}
    if start + size < len(everything):
        result["NextMarker"] = str(start + size)
    return result


def paged(key: str) -> Callable[[Any, Mapping[str, Any]], dict]:
    def handler(context: Any, request: Mapping[str, Any]) -> dict:
        return page(key, call_moto(context)[key], request)

    return handler
