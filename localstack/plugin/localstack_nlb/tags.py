"""Tag rules of elbv2: 50 per resource, each key once, `aws:` reserved, DescribeTags for at most 20 resources.

Source: "Tag restrictions" in the Elastic Load Balancing guides; the limit of 20 and the characters are in the API model.
moto allows ten tags, repeats of a key, any character and unknown resources.
"""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from localstack.services.moto import call_moto
from localstack.utils.patch import patch
from moto.elbv2.models import ELBv2Backend

from localstack_nlb.accounts import balancing, quoted, refuse

LIMIT = 50
SIGNS = set("_.:/=+-@")
"""Allowed beside letters, digits and separators (pattern of TagKey and TagValue in the API model)."""


def tag_map(request: Mapping[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag.get("Value", "") for tag in request.get("Tags") or []}


def check_tags(tags: Sequence[Mapping[str, str]] | None, existing: Iterable[str] = ()) -> None:
    keys = [tag["Key"] for tag in tags or []]
    if twice := [key for key, times in Counter(keys).items() if times > 1]:
        raise refuse("DuplicateTagKeys", f"Tag keys specified more than once: {quoted(twice)}")
    if any(key.startswith("aws:") for key in keys):
        raise refuse("ValidationError", "Tag keys cannot begin with 'aws:'")
    for text in [*keys, *(tag.get("Value", "") for tag in tags or [])]:
        if not all(letter in SIGNS or unicodedata.category(letter)[0] in "LNZ" for letter in text):
            raise refuse("ValidationError", f"'{text}' has characters that tags of load balancers cannot have")
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


@patch(ELBv2Backend._get_resource_by_arn)
def _find_default_rules_too(find: Callable, self: ELBv2Backend, arn: str) -> Any:
    """DescribeRules shows the default rule of every listener with an ARN; moto then does not know it by that."""
    if ":listener-rule/" in arn:
        listener = self._get_resource_by_arn(arn.replace(":listener-rule/", ":listener/").rpartition("/")[0])
        if rule := next((rule for rule in listener._default_rule.values() if rule.arn == arn), None):
            return rule
    return find(self, arn)


def describe_tags(context: Any, request: Mapping[str, Any]) -> dict:
    arns = request.get("ResourceArns") or []
    if len(arns) > 20:
        raise refuse("ValidationError", "Cannot have more than 20 resources described")
    for arn in arns:
        balancing(context)._get_resource_by_arn(arn)
    return call_moto(context)
