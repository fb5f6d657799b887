"""What a customer's VMs have used in one window, asked of the batcher."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import msgspec

from gateway.auth import Principal, Scope
from gateway.host_names import HostNames
from gateway.settings import GatewaySettings
from gateway.store_questions import StoreQuestions, of_customer
from runtime.bus import Bus
from schemas.subjects import usage_query
from schemas.usage import UsageQuery, UsageReport, decode_usage_reply


class UsageReportService:
    """Answers for principals that are authenticated already.

    Raises RefusedError for what it will not do, and TransientError when the bus is away.
    """

    def __init__(self, bus: Bus, names: HostNames, settings: GatewaySettings) -> None:
        self._store = StoreQuestions(bus, settings.usage_timeout_s)
        self._names = names

    async def report(
        self, principal: Principal, start: datetime, end: datetime, vm_ids: tuple[UUID, ...]
    ) -> UsageReport:
        """What the customer has used in `[start, end)`."""
        principal.require(Scope.USAGE_READ)
        customer_id = principal.customer_id
        query = UsageQuery(start=start, end=end, vm_ids=vm_ids)
        reply = await self._store.ask(usage_query(customer_id), query, decode_usage_reply)
        report = of_customer(reply.report, customer_id)
        lost = self._names.all(principal, report.lost_hosts)
        return msgspec.structs.replace(report, lost_hosts=lost)
