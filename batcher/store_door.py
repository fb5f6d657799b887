"""Answers `store.ask.<verb>`: how the store stands, rollups repaired, the past corrected."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime

import msgspec
import structlog

from batcher.audit_log import page
from batcher.backfill import Backfills
from batcher.backfill_rules import RefusedBackfillError
from batcher.consistency import Consistency, checkable
from batcher.host_usage import HostUsages
from batcher.migrations import shipped, statuses
from batcher.retention import kept_days
from batcher.store import Store
from batcher.windows import RefusedQueryError, Retention
from runtime.audit import Act, write_entry
from runtime.bus import Bus, Message
from runtime.clock import Clock
from runtime.errors import DecisecError, FatalError, PoisonError, TransientError
from runtime.publisher import Publisher
from schemas.audit import AuditOutcome
from schemas.codec import encode
from schemas.corrections import Backfill, BackfillWish
from schemas.errors import ErrorCode, ErrorInfo, MalformedMessageError
from schemas.ids import new_id
from schemas.store import (
    DayCheck,
    StoreQuestion,
    StoreReply,
    StoreStatus,
    StoreVerb,
    TableStatus,
    decode_store_question,
)
from schemas.units import NS_PER_S

_log = structlog.get_logger("decisec.store_door")

SUBJECT = "store.ask.*"
_ACTION = "store-repair"
_AUDIT_LIMIT_S = 20
_MOST_SHOWN = 2000
"""Of a list in an answer: NATS takes 1 MiB."""


class _RefusedError(ValueError):
    """The question cannot be answered as it stands."""


class StoreDoor:
    """A bus handler: one question after the other. Whoever may ask is an operator (by subject)."""

    def __init__(
        self,
        store: Store,
        retention: Retention,
        bus: Bus,
        clock: Clock,
        backfills: Backfills,
        host_usages: HostUsages,
    ) -> None:
        self._store = store
        self._retention = retention
        self._publisher = Publisher(bus)
        self._clock = clock
        self._consistency = Consistency(store, clock)
        self._backfills = backfills
        self._host_usages = host_usages

    async def answer(self, message: Message) -> bytes:
        """The encoded `StoreReply`; errors travel inside it."""
        return encode(await self._reply(message))

    async def _reply(self, message: Message) -> StoreReply:
        try:
            question = decode_store_question(message.data)
            match message.subject.rpartition(".")[2]:
                case StoreVerb.STATUS:
                    return StoreReply(status=await self._status())
                case StoreVerb.CHECK:
                    return StoreReply(check=_shown(await self._check(question)))
                case StoreVerb.REPAIR:
                    return StoreReply(check=_shown(await self._repair(question)))
                case StoreVerb.PREVIEW:
                    return StoreReply(backfill=await self._backfills.preview(_wish(question)))
                case StoreVerb.BACKFILL:
                    return StoreReply(backfill=await self._backfill(question))
                case StoreVerb.USAGE:
                    return StoreReply(usage=await self._host_usages.answer(question))
                case StoreVerb.AUDIT if question.audit is not None:
                    return StoreReply(
                        audit=await page(
                            self._store, question.customer, question.audit, limit_s=_AUDIT_LIMIT_S
                        )
                    )
                case other:
                    return _refusal(ErrorCode.BAD_REQUEST, f"{other[:80]!r} asks nothing known")
        except (
            MalformedMessageError,
            _RefusedError,
            RefusedBackfillError,
            RefusedQueryError,
        ) as error:
            return _refusal(ErrorCode.BAD_REQUEST, str(error))
        except (TransientError, PoisonError) as error:
            _log.warning("question.failed", subject=message.subject, error=str(error))
            return _refusal(ErrorCode.UNAVAILABLE, f"try again later: {error}")
        except FatalError as error:
            _log.error("question.failed", subject=message.subject, error=str(error))
            return _refusal(ErrorCode.INTERNAL, str(error))

    async def _status(self) -> StoreStatus:
        store = self._store
        engine = await store.query("SELECT version()")
        kept = kept_days(store.settings)
        sizes = await store.query(
            "SELECT table, sum(rows), sum(bytes_on_disk) FROM system.parts"
            " WHERE active AND database = {database:String} GROUP BY table",
            {"database": store.database},
        )
        by_table = {str(name): (int(rows), int(size)) for name, rows, size in sizes}
        first, last = checkable(self._retention, self._now())
        return StoreStatus(
            engine=str(engine[0][0]),
            embedded=store.settings.embedded,
            database=store.database,
            cluster=store.settings.store_cluster,
            first_day=first,
            last_day=last,
            migrations=await statuses(store, shipped()),
            tables=tuple(
                TableStatus(
                    name=name,
                    rows=by_table.get(name, (0, 0))[0],
                    size_bytes=by_table.get(name, (0, 0))[1],
                    kept_days=days,
                )
                for name, days in kept.items()
            ),
        )

    async def _check(self, question: StoreQuestion) -> DayCheck:
        return await self._consistency.check(self._day(question))

    async def _repair(self, question: StoreQuestion) -> DayCheck:
        day = self._day(question)
        if not (question.actor and question.reason):
            raise _RefusedError("a repair needs an actor and a reason")
        async with self._audited(question, day) as details:
            done = await self._consistency.repair(day)
            details["customers"] = " ".join(done.repaired)
            details["behind"] = str(sum(d.behind for d in done.differences))
            details["left_behind"] = str(sum(d.behind for d in done.left))
        return done

    async def _backfill(self, question: StoreQuestion) -> Backfill:
        if not (question.actor and question.reason):
            raise _RefusedError("a backfill needs an actor and a reason")
        return await self._backfills.accept(_wish(question), question.actor, question.reason)

    def _day(self, question: StoreQuestion) -> date:
        first, last = checkable(self._retention, self._now())
        if question.day is None or not first <= question.day <= last:
            raise _RefusedError(f"ticks are kept whole from {first} to {last}: name a day of those")
        return question.day

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.wall_ns() / NS_PER_S, UTC)

    @asynccontextmanager
    async def _audited(self, question: StoreQuestion, day: date) -> AsyncIterator[dict[str, str]]:
        """An entry before anything is done, and one afterwards with what was found.

        Raises:
            TransientError: The first entry could not be written, and nothing was done.
        """
        act = Act(
            act_id=new_id(),
            actor=question.actor,
            action=_ACTION,
            target=f"usage of {day}",
            reason=question.reason,
        )
        await write_entry(self._publisher, act.begun(self._now()))
        found: dict[str, str] = {}
        try:
            yield found
        except DecisecError as error:
            failed = {**found, "error": str(error)[:400]}
            entry = act.ended(self._now(), AuditOutcome.FAILED, failed)
            await write_entry(self._publisher, entry)
            raise
        await write_entry(self._publisher, act.ended(self._now(), AuditOutcome.SUCCEEDED, found))


def _wish(question: StoreQuestion) -> BackfillWish:
    if question.backfill is None:
        raise _RefusedError("it says of nothing what is to be corrected")
    return question.backfill


def _shown(check: DayCheck) -> DayCheck:
    """As much of it as one answer holds."""
    return msgspec.structs.replace(
        check,
        differences=check.differences[:_MOST_SHOWN],
        repaired=check.repaired[:_MOST_SHOWN],
        left=check.left[:_MOST_SHOWN],
        not_shown=max(0, len(check.differences) - _MOST_SHOWN),
    )


def _refusal(code: ErrorCode, message: str) -> StoreReply:
    return StoreReply(error=ErrorInfo(code=code, message=message))
