"""A customer's own entries of the audit log, asked of the batcher."""

from __future__ import annotations

from gateway.auth import Principal, Scope
from gateway.errors import RefusedError, unavailable
from runtime.bus import Bus
from runtime.errors import TransientError
from schemas.audit_log import AuditPage, AuditQuery, decode_audit_reply
from schemas.codec import encode
from schemas.errors import MalformedMessageError
from schemas.subjects import audit_query


class AuditLog:
    """Answers for a principal that is authenticated already.

    Args:
        bus: The connection.
        timeout_s: How long an answer may take.
    """

    def __init__(self, bus: Bus, timeout_s: float) -> None:
        self._bus = bus
        self._timeout_s = timeout_s

    async def page(self, principal: Principal, query: AuditQuery) -> AuditPage:
        """Entries, newest first.

        Raises:
            RefusedError: FORBIDDEN, BAD_REQUEST or UNAVAILABLE.
            TransientError: Nobody answers.
        """
        principal.require(Scope.VMS_READ)
        if not self._bus.connected:
            raise unavailable()
        answer = await self._bus.request(
            audit_query(principal.customer_id), encode(query), timeout_s=self._timeout_s
        )
        try:
            reply = decode_audit_reply(answer.data)
        except MalformedMessageError as error:
            raise TransientError(f"malformed audit reply: {error.detail}") from error
        if reply.error is not None:
            raise RefusedError(reply.error.code, reply.error.message)
        if reply.page is None or any(
            entry.customer_id != principal.customer_id for entry in reply.page.entries
        ):
            raise TransientError("the audit reply is not for this customer")
        return reply.page
