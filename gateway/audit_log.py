"""A customer's own entries of the audit log, asked of the batcher."""

from __future__ import annotations

from gateway.auth import Principal, Scope
from gateway.store_questions import StoreQuestions
from runtime.bus import Bus
from runtime.errors import TransientError
from schemas.audit_log import AuditPage, AuditQuery, decode_audit_reply
from schemas.subjects import audit_query


class AuditLog:
    """Answers for a principal that is authenticated already.

    Args:
        bus: The connection.
        timeout_s: How long an answer may take.
    """

    def __init__(self, bus: Bus, timeout_s: float) -> None:
        self._store = StoreQuestions(bus, timeout_s)

    async def page(self, principal: Principal, query: AuditQuery) -> AuditPage:
        """Entries, newest first.

        Raises:
            RefusedError: FORBIDDEN, BAD_REQUEST or UNAVAILABLE.
            TransientError: Nobody answers.
        """
        principal.require(Scope.VMS_READ)
        reply = await self._store.ask(audit_query(principal.customer_id), query, decode_audit_reply)
        if reply.page is None or any(
            entry.customer_id != principal.customer_id for entry in reply.page.entries
        ):
            raise TransientError("the audit reply is not for this customer")
        return reply.page
