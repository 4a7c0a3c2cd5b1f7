"""Tag rules of elbv2: 50 per resource, each key once, `aws:` reserved, DescribeTags for at most 20 resources.

Source: "Tag restrictions" in the Elastic Load Balancing guides; the limit of 20 is in the API model. moto allows ten
tags, repeats of a key and unknown resources.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from localstack.services.moto import call_moto
from localstack.utils.patch import patch
from moto.elbv2.models import ELBv2Backend

from localstack_nlb.accounts import balancing, quoted, refuse

LIMIT = 50


def tag_map(request: Mapping[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag.get("Value", "") for tag in request.get("Tags") or []}


def check_tags(tags: Iterable[Mapping[str, str]] | None, existing: Iterable[str] = ()) -> None:
    keys = [tag["Key"] for tag in tags or []]
    if twice := [key for key, times in Counter(keys).items() if times > 1]:
        raise refuse("DuplicateTagKeys", f"Tag keys specified more than once: {quoted(twice)}")
    if any(key.startswith("aws:") for key in keys):
        raise refuse("ValidationError", "Tag keys cannot begin with 'aws:'")
    if len({*keys, *existing}) > LIMIT:
        raise refuse("TooManyTags", f"The maximum number of tags per resource is {LIMIT}")


@patch(ELBv2Backend.add_tags)
def _add_tags(_add: Callable, self: ELBv2Backend, resource_arns: list[str], tags: list[dict[str, str]]) -> None:
    """All resources or none."""
    for arn in resource_arns:
        self._get_resource_by_arn(arn)
        check_tags(tags, self.tagging_service.get_tag_dict_for_resource(arn))
    for arn in resource_arns:
        self.tagging_service.tag_resource(arn, tags)


def describe_tags(context: Any, request: Mapping[str, Any]) -> dict:
    arns = request.get("ResourceArns") or []
    if len(arns) > 20:
        raise refuse("ValidationError", "Cannot have more than 20 resources described")
    for arn in arns:
        balancing(context)._get_resource_by_arn(arn)
    return call_moto(context)
