"""What the API promises to clients, as an OpenAPI document: `docs/openapi.json` is its copy.

Litestar knows routes, parameters and which type is whose body. The types themselves are described
by msgspec, which checks them, and what is the same on all routes is added here: problems, the
idempotency key, whether an operation may be over at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
from litestar import Litestar, Response
from litestar.handlers import HTTPRouteHandler

from gateway.bodies import BODY
from gateway.deprecation import DEPRECATED
from gateway.problems import MEDIA_TYPE
from schemas.api import Problem
from schemas.idempotency import IDEMPOTENCY_HEADER, KEY_PATTERN, MAX_KEY, REPLAYED_HEADER
from schemas.ids import TOKEN_PATTERN
from schemas.json_schema import components

_METHODS = ("get", "put", "post", "delete", "patch")
_MADE = "openapi_document"
_IN_PATH = re.compile(r"\{(\w+)\}")
_NAMES = frozenset({"customer_id", "host_id", "plan_id"})
"""Ids that people have chosen; all others are UUIDs."""
_FROM_CREATE = {
    "vm_id": "$response.body#/vm/vm_id",
    "operation_id": "$response.body#/operation/operation_id",
}
_REF = "#/components/schemas/{name}"

_ALWAYS = {
    "400": "The request is not valid; `errors` names the fields.",
    "401": "There is no token, or it is not good.",
    "403": "The token lacks a scope, or the customer may not do this.",
    "404": "It is not there, or it is not yours.",
    "429": "Too many requests; `Retry-After` says when to come again.",
    "503": "Not at the moment; nothing was changed. `Retry-After` says when to come again.",
}
_OF_MUTATIONS = {
    "409": "Its state does not allow it, or the first request with the key is under way.",
    "413": "The body is too large.",
    "415": "The body is no JSON.",
    "422": "It cannot be done, or the idempotency key belongs to another request.",
    "502": "The hypervisor failed.",
    "504": "No host began in time.",
}


def document(app: Litestar) -> dict[str, Any]:
    """The OpenAPI document of an app, made once: everybody may ask for it."""
    known: dict[str, Any] | None = app.state.get(_MADE)
    if known is None:
        known = app.state[_MADE] = _document(app)
    return known


def _document(app: Litestar) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(app.openapi_schema.to_schema())
    found["components"]["schemas"] |= _described(app)
    found["components"]["parameters"] = {"IdempotencyKey": _KEY}
    found["components"]["responses"] = {"Problem": _PROBLEM}
    handlers = {
        (route.path_format, method.lower()): handler for route, method, handler in _handlers(app)
    }
    operations = [
        (path, method, item[method])
        for path, item in found["paths"].items()
        for method in _METHODS
        if method in item
    ]
    for path, method, operation in operations:
        _complete(path, method, operation, handlers[path, method])
    _link(operations)
    return found


def _link(operations: list[tuple[str, str, dict[str, Any]]]) -> None:
    """Say which operations take the ids that a create answers with."""
    links = {}
    for path, method, operation in operations:
        names = _IN_PATH.findall(path)
        if len(names) == 1 and names[0] in _FROM_CREATE and method != "patch":
            links[operation["operationId"]] = {
                "operationId": operation["operationId"],
                "parameters": {names[0]: _FROM_CREATE[names[0]]},
            }
    for path, method, operation in operations:
        if method == "post" and path == "/v1/vms":
            for status in ("201", "202"):
                operation["responses"][status]["links"] = links


def _complete(path: str, method: str, operation: dict[str, Any], handler: HTTPRouteHandler) -> None:
    mutation = method != "get"
    operation["operationId"] = _camel(handler.fn.__name__)
    if DEPRECATED in handler.opt:
        operation["deprecated"] = True
    parameters = operation.setdefault("parameters", [])
    for parameter in parameters:
        parameter["schema"] = _without_null(parameter["schema"])
        if parameter["in"] == "path" and parameter["name"] in _NAMES:
            parameter["schema"] |= {"pattern": TOKEN_PATTERN, "maxLength": 63}
        elif parameter["in"] == "path" and parameter["name"].endswith("_id"):
            parameter["schema"].setdefault("format", "uuid")
    if mutation and not any(p.get("name") == IDEMPOTENCY_HEADER for p in parameters):
        parameters.append({"$ref": "#/components/parameters/IdempotencyKey"})
    if body := operation.get("requestBody"):
        for media in body["content"].values():
            plain = _without_null(media["schema"])
            if plain != media["schema"]:
                # A body that may be left out; `null` is none.
                media["schema"], body["required"] = plain, False
    responses = operation["responses"]
    if "202" in responses:
        # With `Prefer: wait`, the end of the operation.
        done = "201" if "{" not in path else "200"
        responses.setdefault(done, {**responses["202"], "description": "Done."})
    if mutation:
        for status, response in responses.items():
            if status < "300":
                response.setdefault("headers", {})[REPLAYED_HEADER] = _REPLAYED
    for status, words in (_ALWAYS | (_OF_MUTATIONS if mutation else {})).items():
        responses[status] = {"description": words, "content": _PROBLEM["content"]}
    responses["default"] = {"$ref": "#/components/responses/Problem"}
    operation["responses"] = dict(sorted(responses.items()))


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _described(app: Litestar) -> dict[str, Any]:
    """All bodies, as the library describes them that checks them."""
    kinds: set[Any] = {Problem}
    for _, _, handler in _handlers(app):
        if (body := handler.opt.get(BODY)) is not None:
            kinds.add(body)
        returned = handler.parsed_fn_signature.return_type
        if returned.is_subclass_of(Response) and returned.inner_types:
            kind = returned.inner_types[0].annotation
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
                kinds.add(kind)
    return components(kinds, _REF)


def _handlers(app: Litestar) -> Iterator[tuple[Any, str, HTTPRouteHandler]]:
    for route in app.routes:
        for method, (handler, _) in getattr(route, "route_handler_map", {}).items():
            if handler.resolve_include_in_schema():
                yield route, method, handler


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of what is there: parameters and optional bodies are left out, never null."""
    for word in ("oneOf", "anyOf"):
        if {"type": "null"} in schema.get(word, ()):
            left = [one for one in schema[word] if one != {"type": "null"}]
            rest = {name: value for name, value in schema.items() if name != word}
            return {**rest, **left[0]} if len(left) == 1 else {**rest, word: left}
    kinds = schema.get("type")
    if isinstance(kinds, list) and "null" in kinds:
        left = [kind for kind in kinds if kind != "null"]
        return {**schema, "type": left[0] if len(left) == 1 else left}
    return dict(schema)


_KEY = {
    "name": IDEMPOTENCY_HEADER,
    "in": "header",
    "required": False,
    "description": "Chosen by the caller. The same request with the same key is done once, and "
    "gets the same answer for 24 hours; another request with it gets 422.",
    "schema": {"type": "string", "pattern": KEY_PATTERN, "minLength": 1, "maxLength": MAX_KEY},
}
_REPLAYED = {
    "description": "`true` if this is the answer that an earlier request with the key got.",
    "schema": {"type": "string", "enum": ["true"]},
}
_PROBLEM: dict[str, Any] = {
    "description": "Whatever else goes wrong: `code` is stable.",
    "content": {MEDIA_TYPE: {"schema": {"$ref": _REF.format(name="Problem")}}},
}
