"""The caller."""

from __future__ import annotations

import msgspec
from litestar import Response, get

from gateway.bodies import StrictRequest
from gateway.routes.common import answer, service, who
from schemas.quotas import QuotaView


class WhoAmI(msgspec.Struct, frozen=True, kw_only=True):
    """What the token says.

    Attributes:
        subject: As the issuer calls whoever asks.
        customer_id: Empty for an operator who acts for no customer.
        scopes: Those that mean something here.
    """

    subject: str
    customer_id: str
    scopes: tuple[str, ...]


@get("/whoami", summary="What the token says")
async def whoami(request: StrictRequest) -> Response[WhoAmI]:
    """Subject, customer and scopes of the token.

    Needs no scope: it is for finding out whether a token is taken, and for whom. `customer_id` is
    empty for an operator who acts for no customer.
    """
    principal = who(request)
    return answer(
        WhoAmI(
            subject=principal.subject,
            customer_id=principal.customer_id,
            scopes=tuple(sorted(principal.scopes)),
        )
    )


@get("/quotas", summary="What you may have, and what is used of it")
async def get_quotas(request: StrictRequest) -> Response[QuotaView]:
    """Limits of all VMs together, and what they take; VMs that are being made count as well."""
    return answer(service(request).quotas(who(request)))


HANDLERS = (whoami, get_quotas)
