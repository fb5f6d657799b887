"""Operations: commands, and how far they have come."""

from __future__ import annotations

from litestar import Response, get

from gateway.bodies import StrictRequest
from gateway.errors import RefusedError
from gateway.routes.common import Id, answer, service, who
from schemas.api import OperationView
from schemas.errors import ErrorCode, InvalidIdError
from schemas.ids import parse_uuid


@get("/operations/{operation_id:str}", summary="Look at an operation")
async def get_operation(request: StrictRequest, operation_id: Id) -> Response[OperationView]:
    """A command and how far it has come."""
    try:
        wanted = parse_uuid(operation_id)
    except InvalidIdError:
        raise RefusedError(ErrorCode.NOT_FOUND, "There is no such operation.") from None
    return answer(await service(request).operation(who(request), wanted))


HANDLERS = (get_operation,)
