"""The caller."""

from __future__ import annotations

import msgspec
from litestar import Response, get

from gateway.bodies import StrictRequest
from gateway.routes.common import answer, who


class WhoAmI(msgspec.Struct, frozen=True, kw_only=True):
    """What the token says."""

    subject: str
    customer_id: str
    scopes: tuple[str, ...]


@get("/whoami", summary="What the token says")
async def whoami(request: StrictRequest) -> Response[WhoAmI]:
    """Subject, customer and scopes of the token."""
    principal = who(request)
    return answer(
        WhoAmI(
            subject=principal.subject,
            customer_id=principal.customer_id,
            scopes=tuple(sorted(principal.scopes)),
        )
    )


HANDLERS = (whoami,)
