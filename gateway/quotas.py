"""Quotas that racing requests at several gateways cannot exceed.

What stands is counted from the records, which every gateway has in memory. What is only granted
stands in the customer's ledger, one entry that is written by compare and set: whoever writes it has
seen all that was granted before. Wishes that come together at a gateway are granted by one write.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

import structlog
from nats.js.kv import KeyValue

from gateway.background import Background
from gateway.errors import RefusedError, unavailable
from gateway.ledger import Wish, added, decide, held, limits_of
from gateway.quota_records import Records
from runtime.buckets import Bucket, Mirror, RevisionConflictError
from runtime.bus import Bus
from runtime.clock import utc_now
from runtime.errors import DecisecError, TransientError
from schemas.errors import ErrorCode
from schemas.hosts import Customer
from schemas.quotas import (
    Amounts,
    QuotaAmounts,
    QuotaLedger,
    QuotaView,
    decode_quota_ledger,
)
from schemas.subjects import QUOTAS

_log = structlog.get_logger("decisec.quotas")

HOLD_FOR = timedelta(seconds=30)
"""So long a hold counts whose gateway has died before what it is for was recorded."""
_MAX_BATCH = 512
_ATTEMPTS = 24
_READ_WITHIN_S = 2.0
_NOTHING = QuotaLedger()


class _Ledgers(Mirror[QuotaLedger]):
    """The ledgers with their revisions, for compare and set."""

    def __init__(self, bucket: Bucket[QuotaLedger]) -> None:
        super().__init__(bucket)
        self.entries: dict[str, tuple[QuotaLedger, int]] = {}

    def _note(self, entry: KeyValue.Entry) -> None:
        super()._note(entry)
        if entry.key in self.values:
            self.learn(entry.key, self.values[entry.key], entry.revision or 0)

    def learn(self, customer_id: str, ledger: QuotaLedger, revision: int) -> None:
        """Take what was read or written, unless it is older than what is known."""
        if revision >= self.entries.get(customer_id, (_NOTHING, 0))[1]:
            self.entries[customer_id] = ledger, revision


class Quotas:
    """Reserves, and tells what is used.

    Args:
        bus: The connection.
        customer_of: The operator's entry of a customer, if there is one.
        records: Where that stands what was made.
        background: Holds the writes.
    """

    def __init__(
        self,
        bus: Bus,
        customer_of: Callable[[str], Customer | None],
        records: tuple[Records, ...],
        background: Background,
    ) -> None:
        self._bucket = Bucket(bus, QUOTAS, decode_quota_ledger)
        self._ledgers = _Ledgers(self._bucket)
        self._customer_of = customer_of
        self._records = records
        self._background = background
        self._waiting: dict[str, dict[str, tuple[Wish, asyncio.Future[str]]]] = {}
        self._released: dict[str, set[str]] = {}
        self._working: set[str] = set()

    async def run(self) -> None:
        """Follow the ledgers until cancelled."""
        await self._ledgers.run()

    async def synced(self) -> None:
        """Return once all ledgers that stood at the start are known."""
        await self._ledgers.synced()

    async def reserve(
        self, customer_id: str, hold_id: str, amounts: Amounts, lasts: timedelta = HOLD_FOR
    ) -> None:
        """Have an amount for what is to be made; it counts until it stands in the records.

        Args:
            customer_id: Whose quota.
            hold_id: Id of what is to be made, as the records have it.
            amounts: What it takes.
            lasts: It must stand in the records by then.

        Raises:
            RefusedError: FORBIDDEN, the quota would be exceeded; or UNAVAILABLE.
        """
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        wish = Wish(hold_id, amounts, utc_now() + lasts)
        self._waiting.setdefault(customer_id, {})[hold_id] = wish, answer
        self._work(customer_id)
        try:
            over = await answer
        except asyncio.CancelledError:
            self._waiting.get(customer_id, {}).pop(hold_id, None)
            self.release(customer_id, hold_id)
            raise
        if over:
            raise RefusedError(ErrorCode.FORBIDDEN, f"The quota would be exceeded: {over}.")

    def release(self, customer_id: str, hold_id: str) -> None:
        """Give a hold back for what is not made after all; done in the background."""
        ledger, _ = self._ledgers.entries.get(customer_id, (_NOTHING, 0))
        if hold_id in ledger.holds or customer_id in self._working:
            self._released.setdefault(customer_id, set()).add(hold_id)
            with suppress(RefusedError):  # at the gateway's end; the hold ends by itself
                self._work(customer_id)

    def view(self, customer: Customer) -> QuotaView:
        """Limits, and what is used."""
        customer_id = customer.customer_id
        ledger, _ = self._ledgers.entries.get(customer_id, (_NOTHING, 0))
        holds = held(
            ledger,
            utc_now(),
            known=lambda hold_id: self._known(customer_id, hold_id),
            released=self._released.get(customer_id, set()),
        )
        return QuotaView(
            limits=shown(limits_of(customer)), used=shown(added((self._used(customer_id), holds)))
        )

    def _used(self, customer_id: str) -> Amounts:
        return added(records.used(customer_id) for records in self._records)

    def _known(self, customer_id: str, hold_id: str) -> bool:
        return any(records.known(customer_id, hold_id) for records in self._records)

    def _stored(self, customer_id: str, hold_id: str) -> bool:
        return any(records.stored(customer_id, hold_id) for records in self._records)

    def _work(self, customer_id: str) -> None:
        if customer_id not in self._working:
            self._background.spawn(self._serve(customer_id), name=f"quota-{customer_id}")
            self._working.add(customer_id)

    async def _serve(self, customer_id: str) -> None:
        """Write the ledger until nobody waits for it."""
        try:
            while self._waiting.get(customer_id) or self._released.get(customer_id):
                waiting = self._waiting.get(customer_id, {})
                batch = {hold_id: waiting.pop(hold_id) for hold_id in list(waiting)[:_MAX_BATCH]}
                released = self._released.pop(customer_id, set())
                try:
                    refused = await self._write(
                        customer_id, [w for w, _ in batch.values()], released
                    )
                except DecisecError as error:
                    _log.warning("quota.not_written", customer=customer_id, error=str(error))
                    for _, answer in batch.values():
                        if not answer.done():
                            answer.set_exception(unavailable())
                    continue
                for hold_id, (_, answer) in batch.items():
                    if not answer.done():
                        answer.set_result(refused.get(hold_id, ""))
        finally:
            self._working.discard(customer_id)
            if not self._waiting.get(customer_id):
                self._waiting.pop(customer_id, None)

    async def _write(
        self, customer_id: str, wishes: list[Wish], released: set[str]
    ) -> dict[str, str]:
        """Grant what fits; returns the refusals."""
        fresh = False
        for attempt in range(_ATTEMPTS):
            ledger, revision = await self._ledger(customer_id, fresh=fresh)
            await self._caught_up(ledger)
            customer = self._customer_of(customer_id) or Customer(
                customer_id=customer_id, created_at=utc_now()
            )
            decision = decide(
                ledger,
                wishes,
                limits_of(customer),
                self._used(customer_id),
                utc_now(),
                known=lambda hold_id: self._known(customer_id, hold_id),
                stored=lambda hold_id: self._stored(customer_id, hold_id),
                released=released,
                revisions={records.name: records.revision for records in self._records},
            )
            if decision.refused and not fresh:
                # Refused only by what the server says now.
                fresh = True
                continue
            if decision.ledger.holds == ledger.holds:
                return dict(decision.refused)
            try:
                written = await self._bucket.update(customer_id, decision.ledger, revision)
            except RevisionConflictError:
                fresh = True
                await asyncio.sleep(random.uniform(0, 0.002 * attempt))  # noqa: S311 - no secret
                continue
            self._ledgers.learn(customer_id, decision.ledger, written)
            return dict(decision.refused)
        raise TransientError(f"too many gateways write the ledger of {customer_id} at once")

    async def _ledger(self, customer_id: str, *, fresh: bool) -> tuple[QuotaLedger, int]:
        if fresh and (entry := await self._bucket.get(customer_id)) is not None:
            self._ledgers.learn(customer_id, entry.value, entry.revision)
            return entry.value, entry.revision
        return self._ledgers.entries.get(customer_id, (_NOTHING, 0))

    async def _caught_up(self, ledger: QuotaLedger) -> None:
        """Read the records as far as whoever left holds out had."""
        for records in self._records:
            wanted = ledger.seen.get(records.name, 0)
            if records.revision >= wanted:
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(_READ_WITHIN_S):
                    await records.reached(wanted)
                    continue
            if await records.last_revision() >= wanted:
                raise TransientError(f"{records.name} has not been read far enough")
            # The bucket was made anew since; nothing of then is in it.


def shown(amounts: Amounts) -> QuotaAmounts:
    """Amounts as the API has them."""
    return QuotaAmounts(
        vms=amounts.slots,
        vcpus=amounts.vcpus,
        memory_mib=amounts.memory_mib,
        disk_mib=amounts.disk_mib,
        snapshots=amounts.snapshots,
    )
