"""What `schemathesis run` is told of this API that no schema says. Named by SCHEMATHESIS_HOOKS.

Bodies that fit the schema of a create get an image that a host has, and devices that go together.
Prices begin with a whole hour.
Numbers of JSON Schema's `integer` such as 88.0 become 88: whoever writes a fraction is refused.
"""

from __future__ import annotations

import re
from typing import Any

import schemathesis

HOUR = re.compile(r"^(\d{4}-\d\d-\d\d[Tt]\d\d):.*$", re.DOTALL)
IMAGE = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def whole(value: Any) -> Any:
    """The value with its whole numbers written as such."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {name: whole(one) for name, one in value.items()}
    return [whole(one) for one in value] if isinstance(value, list) else value


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Bodies as a caller who knows the service sends them."""
    body = whole(body)
    if not isinstance(body, dict):
        return body
    image = body.get("image")
    if isinstance(image, str) and IMAGE.fullmatch(image):
        body["image"] = "tiny"
    if isinstance(body.get("network"), bool):
        body["network"] = True
    balloon = body.get("balloon_mib")
    if isinstance(balloon, int) and not isinstance(balloon, bool) and 0 <= balloon <= 1_048_576:
        body["balloon_mib"] = 0
    valid_from = body.get("valid_from")
    if isinstance(valid_from, str) and HOUR.match(valid_from):
        body["valid_from"] = HOUR.sub(r"\1:00:00Z", valid_from)
    return body


@schemathesis.hook
def filter_query(context: Any, query: Any) -> bool:
    """Not `?offset=null`: the word is taken for a parameter that is left out."""
    return not isinstance(query, dict) or all(one not in (None, "null") for one in query.values())
