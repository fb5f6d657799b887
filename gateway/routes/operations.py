"""Operations: commands, and how far they have come."""

from __future__ import annotations

from typing import Annotated

from litestar import Response, get
from litestar.params import QueryParameter

from gateway.bodies import StrictRequest
from gateway.operation_service import OperationService, no_such_operation
from gateway.routes import examples
from gateway.routes.common import Cursor, Id, answer, query_id, who
from schemas.api import OperationList, OperationView
from schemas.errors import InvalidIdError
from schemas.hosts import OperationStatus
from schemas.ids import parse_uuid

Limit = Annotated[int, QueryParameter(ge=1, le=1000, description="Operations on a page.")]
OfVm = Annotated[str, QueryParameter(description="Only operations on this VM.")]
Status = Annotated[
    OperationStatus | None,
    QueryParameter(name="status", description="Only operations that have come so far."),
]


@get("/operations", summary="List operations", operation_class=examples.operation_list)
async def list_operations(
    request: StrictRequest,
    limit: Limit = 100,
    cursor: Cursor = "",
    vm_id: OfVm = "",
    operation_status: Status = None,
) -> Response[OperationList]:
    """What was asked for of late, newest first.

    At most the last 1000 operations, and not those of before a week ago. One that is not listed
    any more can still be looked at by its id for a week.
    """
    return answer(
        operations(request).page(
            who(request),
            vm_id=query_id("vm_id", vm_id) if vm_id else None,
            status=operation_status,
            cursor=cursor,
            limit=limit,
        )
    )


@get(
    "/operations/{operation_id:str}",
    summary="Look at an operation",
    operation_class=examples.operation,
)
async def get_operation(request: StrictRequest, operation_id: Id) -> Response[OperationView]:
    """A command and how far it has come."""
    try:
        wanted = parse_uuid(operation_id)
    except InvalidIdError:
        raise no_such_operation() from None
    return answer(await operations(request).get(who(request), wanted))


def operations(request: StrictRequest) -> OperationService:
    """The service that the app was built around."""
    found: OperationService = request.app.state.operations
    return found


HANDLERS = (list_operations, get_operation)
