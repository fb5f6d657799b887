"""The operations of late, by customer: what `GET /v1/operations` lists, from memory.

The bucket keeps each operation for a week, by id only, and there may be hundreds of millions. So a
gateway remembers a bounded number: at its start the newest that stand in the bucket, from then on
each one that is written. Older ones are found by their ids all the same.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, insort
from collections import OrderedDict
from uuid import UUID

import nats.errors
import nats.js.errors
import structlog
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig, DeliverPolicy

from runtime.buckets import Bucket
from runtime.errors import PoisonError, TransientError
from runtime.retry import forever
from schemas.hosts import Operation

_log = structlog.get_logger("decisec.history")

PER_CUSTOMER = 1000
"""Operations of one customer: nobody pushes those of others out."""

IN_ALL = 20_000
"""Some 20 MB."""

_READ_WITHIN_S = 30.0


Place = tuple[str, str]
"""Where an operation stands among those of its customer: what sorts, and its id."""


def place_of(operation: Operation) -> Place:
    """By the time in its id; a create comes before all else that was asked for with it."""
    milliseconds = operation.operation_id.int >> 80
    rank = 0 if operation.verb == "create" else 1
    return f"{milliseconds:012x}{rank}", str(operation.operation_id)


class History:
    """Operations by customer, newest first.

    Args:
        per_customer: Of one customer at most.
        in_all: Of all together at most; the ones heard of first go first.
    """

    def __init__(self, per_customer: int = PER_CUSTOMER, in_all: int = IN_ALL) -> None:
        self._per_customer = per_customer
        self._in_all = in_all
        self._found: OrderedDict[UUID, Operation] = OrderedDict()
        self._places: dict[str, list[Place]] = {}

    def get(self, operation_id: UUID) -> Operation | None:
        """One that is remembered."""
        return self._found.get(operation_id)

    def take(self, operation: Operation) -> None:
        """Remember what an operation has come to."""
        operation_id, customer_id = operation.operation_id, operation.customer_id
        known = self._found.get(operation_id)
        if known is not None:
            same = (known.customer_id, known.verb) == (customer_id, operation.verb)
            if same and (operation.finished or not known.finished):
                self._found[operation_id] = operation
            return
        place = place_of(operation)
        places = self._places.setdefault(customer_id, [])
        if len(places) >= self._per_customer:
            if place < places[0]:
                return
            self.forget(UUID(places[0][1]))
            places = self._places.setdefault(customer_id, [])
        insort(places, place)
        self._found[operation_id] = operation
        if len(self._found) > self._in_all:
            self.forget(next(iter(self._found)))

    def forget(self, operation_id: UUID) -> None:
        """Remember one no more; nothing happens if it is not remembered."""
        operation = self._found.pop(operation_id, None)
        if operation is None:
            return
        places = self._places[operation.customer_id]
        del places[bisect_left(places, place_of(operation))]
        if not places:
            del self._places[operation.customer_id]

    def before(self, customer_id: str, last: Place | None) -> list[Operation]:
        """A customer's operations, newest first, from those older than `last` on."""
        places = self._places.get(customer_id, [])
        end = len(places) if last is None else bisect_left(places, last)
        return [self._found[UUID(place[1])] for place in reversed(places[:end])]

    async def read(self, bucket: Bucket[Operation]) -> None:
        """Take what stands in the bucket, the newest `in_all` of it. Waits while NATS is away."""
        async for attempt in forever("history"):
            with attempt:
                await self._read(bucket)

    async def _read(self, bucket: Bucket[Operation]) -> None:
        last = await bucket.last_revision()
        if last == 0:
            return
        done = asyncio.Event()
        prefix = f"$KV.{bucket.name}."

        async def take(message: Msg) -> None:
            where = message.metadata
            if not (message.headers or {}).get("KV-Operation"):
                self._take_old(bucket, message.subject.removeprefix(prefix), message.data)
            if where.sequence.stream >= last or not where.num_pending:
                done.set()

        config = ConsumerConfig(
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=max(1, last - self._in_all + 1),
        )
        try:
            subscription = await bucket.bus.js.subscribe(
                f"{prefix}>",
                stream=f"KV_{bucket.name}",
                cb=take,
                ordered_consumer=True,
                config=config,
            )
            try:
                async with asyncio.timeout(_READ_WITHIN_S):
                    await done.wait()
            finally:
                if bucket.bus.connected:
                    await subscription.unsubscribe()
        except (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError) as error:
            raise TransientError(f"cannot read {bucket.name}: {error}") from error
        _log.info("history.read", operations=len(self._found))

    def _take_old(self, bucket: Bucket[Operation], key: str, data: bytes) -> None:
        try:
            operation = bucket.decode(key, data)
        except PoisonError as error:
            _log.error("operation.refused", key=key, error=str(error))
            return
        # What was heard while this was under way is newer.
        if operation.operation_id not in self._found:
            self.take(operation)
