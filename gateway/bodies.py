"""Request bodies: JSON only, decoded strictly, with errors that name the field."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from litestar import Request

from gateway.errors import RefusedError
from schemas.admin_customers import CreateCustomerRequest, CustomerPatch
from schemas.admin_hosts import DrainRequest, FoundRequest, LossRequest
from schemas.api import (
    CreateVmRequest,
    FieldProblem,
    RestoreRequest,
    ShutdownRequest,
    SnapshotRequest,
    VmPatch,
)
from schemas.errors import ErrorCode
from schemas.price_plans import CreatePricePlanRequest, PriceVersionRequest

_AT = re.compile(r"^(?P<what>.*?)(?: - at (?P<where>.+))?$", re.DOTALL)
_NAMED = re.compile(r"(?:missing required|contains unknown) field `(?P<name>[^`]*)`")

_DECODERS: dict[type[msgspec.Struct], msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind)
    for kind in (
        CreateVmRequest,
        ShutdownRequest,
        SnapshotRequest,
        RestoreRequest,
        VmPatch,
        CreateCustomerRequest,
        CustomerPatch,
        DrainRequest,
        LossRequest,
        FoundRequest,
        CreatePricePlanRequest,
        PriceVersionRequest,
    )
}
BODY = "body"
"""Key in a handler's `opt` under which it names its body's type."""


MEDIA = "media"
"""Key of the media types that a handler takes instead of JSON, the best one first."""

MERGE_PATCH = "application/merge-patch+json"
_JSON = ("application/json",)


class StrictRequest(Request[Any, Any, Any]):
    """A request whose body is what its handler's `opt` says, without any coercion.

    The framework alone would take `"2"` for a number.
    """

    async def json(self) -> Any:
        """The decoded body.

        Raises:
            RefusedError: BAD_REQUEST or UNSUPPORTED.
        """
        kind = self.route_handler.opt.get(BODY)
        if kind is None:
            return None
        accepted: tuple[str, ...] = self.route_handler.opt.get(MEDIA, _JSON)
        if self.content_type[0] not in accepted:
            raise RefusedError(
                ErrorCode.UNSUPPORTED,
                f"The body must be sent as {accepted[0]}.",
                status=415,
                headers={
                    "Accept-Patch" if MEDIA in self.route_handler.opt else "Accept": ", ".join(
                        accepted
                    )
                },
            )
        return decode(await self.body(), kind)


def decode(data: bytes, kind: type[msgspec.Struct]) -> Any:
    """Bytes into one of the known bodies.

    Raises:
        RefusedError: BAD_REQUEST, with the field or the position.
    """
    try:
        return _DECODERS[kind].decode(data)
    except msgspec.ValidationError as error:
        problem = field_problem(str(error))
        raise RefusedError(
            ErrorCode.BAD_REQUEST, f"{problem.field}: {problem.message}", fields=(problem,)
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RefusedError(
            ErrorCode.BAD_REQUEST,
            f"The body is not valid JSON: {message}.",
            fields=(FieldProblem(field="$", message=message),),
        ) from None


def field_problem(message: str) -> FieldProblem:
    """Msgspec's words, taken apart into a JSON path and a sentence."""
    match = _AT.match(message)
    what = match["what"] if match else message
    where = (match["where"] if match else None) or "$"
    # "`key` in `$.labels`" is about a name in a map; the map is what has a path.
    path = where.rpartition(" in ")[2].strip("`")
    if named := _NAMED.search(what):
        path = f"{path}.{named['name'][:64]}"
    return FieldProblem(field=path, message=what[:256])
