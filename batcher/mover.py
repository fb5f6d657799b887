"""Makes the store agree with the corrections: rows go to their owner and get their words.

Rows are copied under their owner first, ticks and each rollup by itself, since ticks expire before
minutes do and those before hours and days. Only then are they deleted where they stood. All columns
that are billed are maxima, and the same tick is the same row: copying twice changes nothing. So it
can be stopped anywhere and begun again, and whoever begins again needs to know nothing but what the
corrections say: it looks for rows that stand under a wrong customer.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

import structlog

from batcher.backfill_sql import (
    LEVELS,
    TABLES,
    UNDER_WAY,
    Astray,
    Parameters,
    astray,
    copy,
    delete,
    other_words,
    set_words,
)
from batcher.store import Store
from runtime.corrections import Attribution
from runtime.errors import TransientError

_log = structlog.get_logger("decisec.mover")

_PIECE_MS = 2 * 3_600_000
"""Ticks that are copied at once: an embedded store takes no inserts meanwhile."""
_SETTINGS = {"max_execution_time": 300, "max_memory_usage": 4 * 1024**3}
_LOOK_EVERY_S = 0.05
_LOOK_AT_MOST_EVERY_S = 0.5
"""The engine deletes in the background and takes a second or two to get round to it."""
_ROUNDS = 5

Check = Callable[[], Awaitable[bool]]


class OutdatedError(TransientError):
    """Another correction was accepted meanwhile: look at it first."""


class Mover:
    """Moves rows in one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._on_replicas = bool(store.settings.store_cluster)

    async def astray(self, attributions: Sequence[Attribution]) -> list[Astray]:
        """What stands under a wrong customer.

        Raises:
            As `Store.query` does.
        """
        question = astray(attributions)
        if question is None:
            return []
        by_vm = {one.vm_id: one for one in attributions}
        rows = await self._store.query(*question, settings=_SETTINGS)
        return [
            Astray(
                vm_id=vm_id,
                incarnation=int(incarnation),
                customer_id=str(customer),
                owner=str(by_vm[vm_id.bytes].owner(int(incarnation))),
                first_ms=int(first),
                last_ms=int(last),
            )
            for customer, vm_id, incarnation, first, last in rows
        ]

    async def settle(self, attributions: Sequence[Attribution], still_true: Check) -> int:
        """Let the store agree with what was corrected of some VMs.

        Args:
            attributions: What was corrected.
            still_true: Asked before anything is deleted.

        Returns:
            How many incarnations, and spans of ticks with their words, had to be put right.

        Raises:
            OutdatedError: These are not the corrections any more.
            TransientError: The store is away, or deletes for long. Nothing is lost.
            FatalError: It refuses.
        """
        done = 0
        for _ in range(_ROUNDS):
            if not (found := await self.astray(attributions)):
                break
            done = max(done, len(found))
            await self._move(found, still_true)
        else:
            raise TransientError("rows keep coming under their former owner")
        for one in attributions:
            for number in range(len(one.words)):
                done += await self._set_words(one, number, still_true)
        return done

    async def _move(self, found: Sequence[Astray], still_true: Check) -> None:
        if self._on_replicas:
            # What another replica has taken must be here to be copied: the deletion knows it.
            for table in TABLES:
                await self._store.command(f"SYSTEM SYNC REPLICA {table}")
        for rows in found:
            await self._copy(rows)
        by_customer: dict[str, list[tuple[UUID, int]]] = defaultdict(list)
        for rows in found:
            by_customer[rows.customer_id].append((rows.vm_id, rows.incarnation))
        for customer_id, pairs in by_customer.items():
            for table in TABLES:
                if not await still_true():
                    raise OutdatedError("another correction was accepted meanwhile")
                await self._store.command(
                    *delete(table, customer_id, pairs, wait=self._on_replicas)
                )
        await self._mutated()
        _log.info("rows.moved", incarnations=len(found), customers=sorted(by_customer))

    async def _copy(self, rows: Astray) -> None:
        for level in LEVELS:
            if level.table != "samples":
                await self._store.command(*copy(level, rows, None, None))
                continue
            begin = rows.first_ms
            while begin <= rows.last_ms and rows.last_ms:
                await self._store.command(*copy(level, rows, begin, begin + _PIECE_MS))
                begin += _PIECE_MS

    async def _set_words(self, one: Attribution, number: int, still_true: Check) -> int:
        for attempt in range(_ROUNDS):
            wrong = await self._count(other_words(one, number))
            if not wrong:
                return int(attempt > 0)
            if not await still_true():
                raise OutdatedError("another correction was accepted meanwhile")
            await self._store.command(*set_words(one, number, wait=self._on_replicas))
            await self._mutated()
        raise TransientError("rows keep coming with their former words")

    async def _count(self, question: tuple[str, Parameters]) -> int:
        rows = await self._store.query(*question, settings=_SETTINGS)
        return int(rows[0][0])

    async def _mutated(self) -> None:
        """Return once nothing is being deleted or changed any more; inserts go on meanwhile."""
        wait_s = _LOOK_EVERY_S
        told = False
        while True:
            rows = await self._store.query(
                UNDER_WAY, {"database": self._store.database, "tables": list(TABLES)}
            )
            if not int(rows[0][0]):
                return
            if rows[0][1] and not told:
                _log.warning("rows.not_moved_yet", error=str(rows[0][1])[:300])
                told = True
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _LOOK_AT_MOST_EVERY_S)
