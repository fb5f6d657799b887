"""What a customer's VMs have used in one window, asked of the batcher."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import msgspec

from gateway.auth import Principal, Scope
from gateway.errors import RefusedError, unavailable
from gateway.host_names import HostNames
from gateway.settings import GatewaySettings
from runtime.bus import Bus
from runtime.errors import TransientError
from schemas.codec import encode
from schemas.errors import MalformedMessageError
from schemas.subjects import usage_query
from schemas.usage import UsageQuery, UsageReport, decode_usage_reply


class UsageReportService:
    """Answers for principals that are authenticated already.

    Raises RefusedError for what it will not do, and TransientError when the bus is away.
    """

    def __init__(self, bus: Bus, names: HostNames, settings: GatewaySettings) -> None:
        self._bus = bus
        self._names = names
        self._timeout_s = settings.usage_timeout_s

    async def report(
        self, principal: Principal, start: datetime, end: datetime, vm_ids: tuple[UUID, ...]
    ) -> UsageReport:
        """What the customer has used in `[start, end)`."""
        principal.require(Scope.USAGE_READ)
        if not self._bus.connected:
            raise unavailable()
        query = UsageQuery(start=start, end=end, vm_ids=vm_ids)
        answer = await self._bus.request(
            usage_query(principal.customer_id),
            encode(query),
            timeout_s=self._timeout_s,
        )
        try:
            reply = decode_usage_reply(answer.data)
        except MalformedMessageError as error:
            raise TransientError(f"malformed usage reply: {error.detail}") from error
        if reply.error is not None:
            raise RefusedError(reply.error.code, reply.error.message)
        if reply.report is None or reply.report.customer_id != principal.customer_id:
            raise TransientError("the usage reply is not for this customer")
        lost = self._names.all(principal, reply.report.lost_hosts)
        return msgspec.structs.replace(reply.report, lost_hosts=lost)
