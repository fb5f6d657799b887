"""What operators do to a store by its door stands in the audit, also where it fails."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from batcher.archive import Archive
from batcher.host_usage import HostUsages
from batcher.store_door import StoreDoor
from batcher.windows import Retention
from runtime.bus import Message
from runtime.clock import SystemClock
from runtime.reading import read_stream
from schemas import subjects
from schemas.audit import decode_audit_entry
from schemas.codec import encode
from schemas.errors import ErrorCode
from schemas.ids import new_id
from schemas.store import StoreQuestion, decode_store_reply
from tests.support.backfill import Past, past
from tests.support.store import Reading, enriched, insert


def door_of(store: Past) -> StoreDoor:
    """A door of these parts."""
    clock = SystemClock()
    long_ago = datetime.now(UTC) - timedelta(days=400)
    retention = Retention(long_ago, timedelta(days=7), timedelta(days=90))
    archive = Archive(store.store, store.watermark(), retention, clock, 10, lambda: None)
    return StoreDoor(store.store, retention, store.bus, clock, store.backfills, HostUsages(archive))


async def test_a_repair_that_the_store_refuses_is_audited_as_failed(tmp_path: Path) -> None:
    """Begun and ended under one id, with the error; whoever asked is told the same."""
    async with past(tmp_path) as store:
        now = datetime.now(UTC)
        now_ms = int(now.timestamp()) * 1000
        await insert(store.store, [enriched([Reading(new_id(), now_ms)])])
        for table in ("usage_hour", "usage_day"):
            await store.store.command(f"TRUNCATE TABLE {table}")
        store.store.refuses = True
        question = StoreQuestion(day=now.date(), actor="tester", reason="lost a disk")
        answer = await door_of(store).answer(Message("store.ask.repair", encode(question), {}, ""))
        problem = decode_store_reply(answer).error
        assert problem is not None
        assert (problem.code, problem.message) == (
            ErrorCode.INTERNAL, "this user may not do that",
        )  # fmt: skip
        begun, ended = [
            decode_audit_entry(m.data) for m in await read_stream(store.bus, subjects.AUDIT)
        ]
        assert (begun.outcome, ended.outcome) == ("under_way", "failed")
        assert begun.details | {"phase": "ended", "error": problem.message} == ended.details
        for entry in (begun, ended):
            assert entry.action == "store-repair"
            assert entry.target == f"usage of {now.date()}"
            assert (entry.actor, entry.reason) == ("tester", "lost a disk")
