"""Answers `usage.query.<customer>`: whose usage it is says the subject, never the message."""

from __future__ import annotations

import msgspec

from batcher.archive import Archive
from batcher.completeness import completed
from batcher.replies import replied
from batcher.telemetry import Instruments
from batcher.usage import report
from batcher.windows import check
from runtime.bus import Message
from schemas import subjects
from schemas.codec import encode
from schemas.errors import ErrorCode, ErrorInfo
from schemas.units import NS_PER_S
from schemas.usage import UsageReply, UsageReport, decode_usage_query

QUEUE = "batcher"
SUBJECT = "usage.query.*"
MAX_REPLY_BYTES = 1_000_000
"""Just under the 1 MiB that NATS takes."""


class UsageDoor:
    """A bus handler: one query after the other, each bounded in time and memory.

    With an embedded store a query and an insert wait for each other, because the engine has one
    thread: a query holds inserts up for `limit_s` at most.
    """

    def __init__(self, archive: Archive, instruments: Instruments) -> None:
        self._archive = archive
        self._instruments = instruments

    async def answer(self, message: Message) -> bytes:
        """The encoded `UsageReply` to a query; errors travel inside it."""
        clock = self._archive.clock
        began_ns = clock.monotonic_ns()
        reply = await replied(
            self._reply(message),
            message.subject,
            lambda error: UsageReply(error=error),
            less="ask for fewer VMs or a shorter window",
        )
        body = encode(reply)
        if len(body) > MAX_REPLY_BYTES:
            words = "the answer passes 1 MB; name at most 1000 VMs in vm_ids"
            reply = UsageReply(error=ErrorInfo(code=ErrorCode.BAD_REQUEST, message=words))
            body = encode(reply)
        outcome = reply.error.code.value if reply.error else "ok"
        self._instruments.answered((clock.monotonic_ns() - began_ns) / NS_PER_S, outcome)
        return body

    async def _reply(self, message: Message) -> UsageReply:
        archive = self._archive
        customer_id = subjects.customer_of(message.subject)
        query = decode_usage_query(message.data)
        window = check(query, archive.retention, archive.now)

        async def read() -> UsageReport:
            whole = window.rolled(archive.rolled_until_ms())
            return await report(archive.store, customer_id, query, whole, limit_s=archive.limit_s)

        answer, until = await completed(
            archive.watermark, customer_id, query.vm_ids, query.start, read
        )
        return UsageReply(
            report=msgspec.structs.replace(
                answer,
                complete_until=until.time,
                complete=until.time is not None and query.end <= until.time,
                lost_hosts=until.lost_hosts,
            )
        )
