"""Usage of a host, for operators: that of all incarnations that ran there, whoever's they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from batcher.archive import Archive
from batcher.store import Store
from batcher.usage import bounded, totals_of, vm_row
from batcher.usage_sql import HOST_USAGE
from batcher.watermark import Until
from batcher.windows import RefusedQueryError, Window, check, instant_of
from schemas.ids import HostId
from schemas.store import CustomerUsage, HostUsage, HostUsageRow, StoreQuestion
from schemas.usage import UsageQuery, UsageRow

_MOST_VMS = 2000
"""In an answer: NATS takes 1 MiB."""


class HostUsages:
    """Answers what was used on a host in a window."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    async def answer(self, question: StoreQuestion) -> HostUsage:
        """What a question asks for.

        Raises:
            RefusedQueryError: It cannot be answered as it stands.
            TransientError, FatalError: As `Store.query` does.
        """
        archive = self._archive
        if question.host is None or question.start is None or question.end is None:
            raise RefusedQueryError("usage of a host needs a host, a start and an end")
        query = UsageQuery(start=question.start, end=question.end)
        now = archive.now
        window = check(query, archive.retention, now)
        known_since = archive.retention.hosts_known_since
        if known_since and query.start < known_since:
            raise RefusedQueryError(
                "this store knows hosts only from when it was updated on: start at "
                f"{known_since.isoformat(timespec='minutes')} or later"
            )
        # First this: what has arrived by then is in the answer that is read after it.
        before = await archive.watermark.undisturbed(None, ())
        until = await archive.watermark.host_complete_until(question.host)
        window = window.rolled(archive.rolled_until_ms())
        customers, vms = await host_report(
            archive.store, question.host, window, limit_s=archive.limit_s
        )
        after = await archive.watermark.undisturbed(None, ())
        if before is None or before != after:
            # Rows are being moved, and may have been read under both customers or half.
            until = Until(None, until.lost_hosts)
        counted_from = window.counted_from
        return HostUsage(
            host_id=question.host,
            start=query.start,
            end=query.end,
            customers=customers,
            totals=totals_of(vms),
            vms=vms[:_MOST_VMS],
            not_shown=max(0, len(vms) - _MOST_VMS),
            samples_since=instant_of(counted_from) if counted_from > window.start else None,
            complete_until=until.time,
            complete=until.time is not None and query.end <= until.time,
            lost=bool(until.lost_hosts),
        )


async def host_report(
    store: Store, host_id: HostId, window: Window, *, limit_s: int
) -> tuple[tuple[CustomerUsage, ...], tuple[HostUsageRow, ...]]:
    """By customer, and by customer and VM. Raises as `HostUsages.answer` does."""
    rows = await bounded(store, HOST_USAGE, {"host": host_id, **window.bounds}, limit_s=limit_s)
    by_vm: dict[tuple[str, UUID], list[Sequence[Any]]] = defaultdict(list)
    for row in rows:
        by_vm[str(row[0]), row[1]].append(row[1:])
    by_customer: dict[str, list[UsageRow]] = defaultdict(list)
    for customer_id, vm_id in sorted(by_vm):
        by_customer[customer_id].append(vm_row(vm_id, by_vm[customer_id, vm_id]))
    return (
        tuple(
            CustomerUsage(
                customer_id=customer_id,
                vms=len(vms),
                incarnations=sum(vm.incarnations for vm in vms),
                samples=sum(vm.samples for vm in vms),
                totals=totals_of(vms),
            )
            for customer_id, vms in by_customer.items()
        ),
        tuple(
            HostUsageRow.of(customer_id, vm)
            for customer_id, vms in by_customer.items()
            for vm in vms
        ),
    )
